"""The opener's policy: which users may have which queues and flows.

    socket = "/run/xdpstack/opener.sock"    # default; systemd's socket goes before it
    mode = "0666"                           # of the socket: who may ask at all

    [workers.trader]
    users = ["trader", 1001]                # by name or number
    groups = ["traders"]                    # Unix groups, supplementary ones too
    interface = "eth0"
    queues = "0-3"                          # or one number
    rules = ["udp dst 233.54.12.0/22"]      # what it may ask for, this or any part of it
    target = "trader"                       # the socket group of its rules; default: the table's name
    send = true                             # false: a port that only receives
    leases = 1                              # at once
    memory = 64                             # MiB of frames, at most

Rules have no target here: it is the worker's own. Every mistake is one sentence with file, line and key.
"""

from __future__ import annotations

import dataclasses
import grp
import pwd
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdpstack import config
from xdpstack.config import Reader
from xdpstack.errors import ConfigError
from xdpstack.feed import fault
from xdpstack.rules import ACTIONS, GROUP, Rule, parse_rule

__all__ = ["SOCKET", "Limits", "Peer", "Policy", "Refused", "Worker", "load"]

SOCKET = "/run/xdpstack/opener.sock"


class Refused(Exception):
    """The policy's no, in one sentence for the worker."""


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says (SO_PEERCRED, SO_PEERGROUPS)."""

    pid: int
    uid: int
    gids: frozenset[int]

    @property
    def name(self) -> str:
        """``user trader (1001)``."""
        try:
            return f"user {pwd.getpwuid(self.uid).pw_name} ({self.uid})"
        except KeyError:
            return f"user {self.uid}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One table of the policy."""

    name: str
    users: frozenset[int]
    groups: frozenset[int]
    interface: str
    queues: range
    rules: tuple[Rule, ...]
    target: str
    send: bool = True
    leases: int = 1
    memory: int = 64

    def admits(self, peer: Peer) -> bool:
        """Whether this table is about that peer."""
        return peer.uid in self.users or bool(peer.gids & self.groups)

    def rule(self, text: str) -> Rule:
        """A rule that the worker asks for, with its own target. Raises Refused."""
        match, arrow, target = text.partition("->")
        if arrow and target.strip() != self.target:
            raise Refused(f"rule {text!r}: its target is {self.target}, no other")
        try:
            wanted = parse_rule(f"{match.strip()} -> {self.target}")
        except ConfigError as error:
            raise Refused(str(error)) from None
        if not any(allowed.covers(wanted) for allowed in self.rules):
            some = "; ".join(str(rule).partition(" ->")[0] for rule in self.rules) or "no rule"
            raise Refused(f"rule {text!r} is wider than the policy of {self.name} allows ({some})")
        return wanted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the opener: ``[limits]``."""

    connections: int = 64  # at once
    connections_user: int = 16  # of one user
    silence: float = 5.0  # seconds until a connection that holds no lease must speak
    adopt: float = 10.0  # seconds that a restarted opener waits for running workers
    asks: int = 64  # rules of one lease


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The whole file."""

    path: str
    workers: tuple[Worker, ...]
    socket: str = SOCKET
    mode: int = 0o666
    limits: Limits = dataclasses.field(default_factory=Limits)

    @property
    def interfaces(self) -> list[str]:
        """Every interface that it names."""
        return sorted({worker.interface for worker in self.workers})

    def find(self, peer: Peer, interface: str, queues: range | None) -> tuple[Worker, range]:
        """The table that lets ``peer`` have these queues (None: all of its table). Raises Refused."""
        mine = self.admitting(peer)
        here = [worker for worker in mine if worker.interface == interface]
        if not here:
            names = ", ".join(sorted({worker.interface for worker in mine}))
            raise Refused(f"{peer.name} may have {names}, not {interface}")
        for worker in here:
            wanted = worker.queues if queues is None else queues
            if wanted and wanted[0] in worker.queues and wanted[-1] in worker.queues:
                return worker, wanted
        assert queues is not None
        may = " or ".join(span(worker.queues) for worker in here)
        raise Refused(f"{peer.name} may have queue {may} of {interface}, not {span(queues)}")

    def admitting(self, peer: Peer) -> list[Worker]:
        """The tables about ``peer``. Raises Refused when there is none."""
        mine = [worker for worker in self.workers if worker.admits(peer)]
        if not mine:
            raise Refused(f"{peer.name} is in no table of the policy")
        return mine


def span(queues: range) -> str:
    """``3``, or ``0-3``."""
    return str(queues[0]) + (f"-{queues[-1]}" if len(queues) > 1 else "")


# ---- reading ----------------------------------------------------------------------------------------

_NAME = re.compile(r"[\w-]{1,31}")
_INTERFACE = re.compile(r"[^:\s/]{1,15}")


def load(path: str | Path) -> Policy:
    """Read a policy. Raises ConfigError (file, line, key) and OSError."""
    root, reader = config.read(path)
    for key in root:
        if key not in ("socket", "mode", "limits", "workers"):
            raise reader.fail((key,), "unknown key (known: socket, mode, limits, workers)")
    socket, mode = root.get("socket", SOCKET), root.get("mode", "0666")
    if not isinstance(socket, str) or not socket.startswith("/") or len(socket) > 100:
        raise reader.fail(("socket",), f"wanted an absolute path of up to 100 letters, not {socket!r}")
    if not isinstance(mode, str) or not re.fullmatch(r"0?[0-7]{3}", mode):
        raise reader.fail(("mode",), f'wanted permissions like "0660", not {mode!r}')
    limits = root.get("limits", {})
    if not isinstance(limits, Mapping):
        raise reader.fail(("limits",), f"wanted a table [limits], not {limits!r}")
    tables = root.get("workers", {})
    if not isinstance(tables, Mapping) or not tables:
        raise reader.fail(
            ("workers",), "no worker: add [workers.NAME] with users, interface, queues and rules"
        )
    workers = tuple(_worker(reader, name, table) for name, table in tables.items())
    _refuse_shared_targets(reader, workers)
    return Policy(
        path=str(path),
        socket=socket,
        mode=int(mode, 8),
        workers=workers,
        limits=reader.build(Limits, limits, ("limits",)),
    )


def _refuse_shared_targets(reader: Reader, workers: tuple[Worker, ...]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for worker in workers:
        other = seen.setdefault((worker.interface, worker.target), worker.name)
        if other != worker.name:
            raise reader.fail(
                ("workers", worker.name, "target"), f"{worker.target!r} is the target of {other} already"
            )


def _worker(reader: Reader, name: str, table: object) -> Worker:
    keys = ("workers", name)
    if not isinstance(table, Mapping):
        raise reader.fail(keys, f"wanted a table [workers.{name}]")
    fields = {field.name: field for field in dataclasses.fields(Worker) if field.name != "name"}
    for key in table:
        if key not in fields:
            raise reader.fail((*keys, key), f"unknown key (known: {', '.join(fields)})")
    if not _NAME.fullmatch(name):
        raise reader.fail(keys, "a worker's name has letters, digits, _ and -, up to 31")
    target = table.get("target", name)
    if not isinstance(target, str) or not GROUP.fullmatch(target) or target in ACTIONS:
        raise reader.fail((*keys, "target"), f"{target!r} is not the name of a socket group")
    interface = table.get("interface")
    if not isinstance(interface, str) or not _INTERFACE.fullmatch(interface):
        raise reader.fail((*keys, "interface"), f"wanted the name of an interface, not {interface!r}")
    simple = {key: table[key] for key in ("send", "leases", "memory") if key in table}
    for key, value in simple.items():
        if why := fault(fields[key], value):
            raise reader.fail((*keys, key), why)
    worker = Worker(
        name=name,
        users=_ids(reader, (*keys, "users"), table.get("users", []), _uid),
        groups=_ids(reader, (*keys, "groups"), table.get("groups", []), _gid),
        interface=interface,
        queues=_queues(reader, (*keys, "queues"), table.get("queues")),
        rules=_rules(reader, (*keys, "rules"), table.get("rules"), target),
        target=target,
        **simple,
    )
    if not worker.users and not worker.groups:
        raise reader.fail(keys, 'nobody: add users = ["NAME"] or groups = ["NAME"]')
    return worker


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _ids(reader: Reader, keys: tuple[str, ...], value: object, find: Any) -> frozenset[int]:
    if not isinstance(value, list):
        raise reader.fail(keys, f'wanted a list of names or numbers, like ["trader"], not {value!r}')
    found = set()
    for one in value:
        if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 32:
            found.add(one)
        elif isinstance(one, str):
            try:
                found.add(find(one))
            except KeyError:
                raise reader.fail(keys, f"this host has no {keys[-1][:-1]} {one!r}") from None
        else:
            raise reader.fail(keys, f"{one!r} is neither a name nor a number")
    return frozenset(found)


def _queues(reader: Reader, keys: tuple[str, ...], value: object) -> range:
    match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", str(value)) if isinstance(value, (int, str)) else None
    if match is None or isinstance(value, bool):
        raise reader.fail(keys, f'wanted a number or a range like "0-3", not {value!r}')
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last > 127:
        raise reader.fail(keys, f"queues {value}: the first is above the last, or the last above 127")
    return range(first, last + 1)


def _rules(reader: Reader, keys: tuple[str, ...], value: object, target: str) -> tuple[Rule, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise reader.fail(keys, f'wanted a list like ["udp dst 239.1.1.0/24"], not {value!r}')
    found = []
    for one in value:
        if "->" in one:
            raise reader.fail(keys, f"rule {one!r}: without a target, which is {target}")
        try:
            found.append(parse_rule(f"{one} -> {target}"))
        except ConfigError as error:
            raise reader.fail(keys, str(error)) from None
    return tuple(found)
