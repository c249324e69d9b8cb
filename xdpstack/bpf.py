"""The XDP filter on an interface: load it, change its rules while traffic flows, give it sockets.

    with Filter.load("eth0", rules=["udp dst 233.54.12.111:26477 -> trader"]) as steering:
        steering.set_socket("trader", queue=0, fd=socket_fd)

Unless ``pin=True``, the filter lives as long as the object (or the process, however that ends). Pins lie
in bpffs under /sys/fs/bpf/xdpstack/<cookie of the network namespace>-<ifindex>/, because two
namespaces may give one number to different interfaces.

``ip netns exec`` hides bpffs (it mounts a new /sys): enter namespaces with setns.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from xdpstack import _ffi
from xdpstack._ffi import ffi, lib
from xdpstack.attached import MODE_NAMES, Attached, all_attached, attached, ifindex_of, refused
from xdpstack.errors import CapacityError, ConfigError, SetupError
from xdpstack.links import CARRIER_SECONDS, has_carrier, wait_for_carrier
from xdpstack.netdev import SINCE, Capabilities, capabilities
from xdpstack.nic import ethtool, quirks_of
from xdpstack.nic.surface import Host
from xdpstack.rules import GROUP, Decision, Rule, compile_tables, parse_rule, parse_rules

__all__ = [
    "METADATA",
    "Attached",
    "Count",
    "Counters",
    "Filter",
    "all_attached",
    "attached",
    "detach_any",
    "netns_cookie",
    "ours",
    "pinned",
]

log = logging.getLogger("xdpstack.bpf")

BPFFS = Path("/sys/fs/bpf")
OBJECT = Path(__file__).parent / "_bpf" / "xds_rx.bpf.o"
MODES = {"auto": lib.XDS_ATTACH_AUTO, "native": lib.XDS_ATTACH_NATIVE, "generic": lib.XDS_ATTACH_GENERIC}
METADATA = {
    "timestamp": lib.XDS_META_NIC,
    "hash": lib.XDS_META_HASH,
    "vlan-tag": lib.XDS_META_VLAN,
}
"""What a driver can be asked about a received frame, in the words of ``netdev.RX_METADATA``."""
REASONS = {
    value: word
    for value, word in sorted(_ffi.names("xds_reason", "XDS_REASON_").items())
    if value < lib.XDS_REASONS
}
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x1

RuleLike = str | Rule


@dataclass(frozen=True, slots=True)
class Count:
    """Packets and bytes (whole frames)."""

    packets: int
    bytes: int

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)

    def __sub__(self, other: Count) -> Count:
        return Count(self.packets - other.packets, self.bytes - other.bytes)


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot, summed over CPUs. Every frame counts one reason; a rule counts what it matched."""

    rules: dict[int, Count]  # by rule id, every rule in force
    reasons: dict[str, Count]  # by the word of enum xds_reason
    no_socket: dict[tuple[str, int], Count]  # by (group, queue): redirects that found no socket


# ---- The host -----------------------------------------------------------------------------------


def _flags(ifname: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH22x", ifname.encode(), 0))
    return int(struct.unpack_from("16xH", answer)[0])


def netns_cookie() -> int:
    """The cookie of this thread's network namespace: never used twice between two boots."""
    out = ffi.new("uint64_t *")
    _ffi.check(lib.xds_netns_cookie(out), "cookie of the network namespace")
    return int(out[0])


def _pin_dir(ifindex: int) -> Path:
    return BPFFS / "xdpstack" / f"{netns_cookie()}-{ifindex}"


def _prepare_bpffs() -> None:
    code = lib.xds_bpffs_prepare(bytes(BPFFS))
    if code < 0:
        raise refused(f"mount bpffs on {BPFFS}", code, "mount -t bpf bpf /sys/fs/bpf")
    if code == 1:
        log.warning("mounted bpffs on %s", BPFFS)
        with contextlib.suppress(OSError):
            if os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt"):
                log.warning("this is a private mount namespace: pins vanish with it")
    (BPFFS / "xdpstack").mkdir(mode=0o700, exist_ok=True)
    _sweep()


def _sweep() -> None:
    """Remove the pins of filters whose interface is gone (a namespace that ended takes its devices along)."""
    for path in (BPFFS / "xdpstack").iterdir():
        out, info = ffi.new("struct xds_filter **"), ffi.new("struct xds_filter_info *")
        if lib.xds_filter_reopen(bytes(path), out) < 0:
            continue
        gone = lib.xds_filter_info(out[0], info) == 0 and info.ifindex == 0
        lib.xds_filter_close(out[0])
        if gone:
            lib.xds_filter_unpin(bytes(path))


def warn_of_reset(ifname: str) -> None:
    """Some drivers take a live link down when a program is attached: say so before."""
    with contextlib.suppress(OSError):
        driver = ethtool.driver(Host(), ifname)
        quirks = quirks_of(driver)
        if quirks is not None and quirks.resets and driver != "veth":  # nothing of a veth's goes down
            log.warning("%s: attaching may interrupt a live link: with %s, %s", ifname, driver, quirks.resets)


def _asked(ifname: str, ifindex: int, mode: str, stamp: bool, metadata: Collection[str]) -> int:
    """The bits of what a driver is asked for. ConfigError: no such word, or it cannot be with the rest.
    SetupError: the driver has it not, as the kernel tells."""
    unknown = sorted(set(metadata) - set(METADATA))
    if unknown:
        raise ConfigError(f"metadata {unknown[0]!r} is none of {', '.join(METADATA)}")
    if metadata and not stamp:
        raise ConfigError("metadata lies beside the receive stamp: leave stamp on")
    if metadata and mode == "generic":
        raise ConfigError("metadata comes from the driver: in generic mode nobody asks it")
    there = capabilities(ifindex) if metadata else Capabilities()
    for word in metadata:
        if there.can(word):
            continue
        driver = ethtool.driver(Host(), ifname) or "of no name"
        has = ", ".join(sorted(there.rx_metadata or ())) or "nothing"
        raise SetupError(
            f"{ifname}: ask its driver for {word}",
            f"this kernel does not tell what driver {driver} has (Linux {SINCE['rx_metadata']} does)"
            if there.rx_metadata is None
            else f"driver {driver} tells {has} of received frames",
            f"leave {word} out of metadata",
            errno.EOPNOTSUPP,
        )
    return sum(METADATA[word] for word in set(metadata))


def ours(ifname: str) -> bool:
    """Whether what is attached to ``ifname`` is the filter that :meth:`Filter.load` pinned there."""
    there = {one.prog_id for one in all_attached(ifname)}
    if not there or ifname not in pinned():
        return False
    with Filter.open_pinned(ifname) as steering:
        return steering.info()["prog_id"] in there


def detach_any(ifname: str) -> None:
    """Detach whatever is on ``ifname``, whoever attached it, and remove pins of ours."""
    ifindex = ifindex_of(ifname)
    code = lib.xds_attached_remove(ifindex)
    if code < 0:
        raise refused(f"{ifname}: detach its XDP program", code)
    lib.xds_filter_unpin(bytes(_pin_dir(ifindex)))


def pinned() -> list[str]:
    """Interfaces of this network namespace with a pinned filter."""
    prefix, names = f"{netns_cookie()}-", []
    with contextlib.suppress(OSError):
        for path in sorted((BPFFS / "xdpstack").iterdir()):
            if path.name.startswith(prefix):
                with contextlib.suppress(OSError):
                    names.append(socket.if_indextoname(int(path.name[len(prefix) :])))
    return names


# ---- The filter ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """Everything about the rules that the tables do not say; kept beside them in the same map value."""

    rules: tuple[Rule, ...] = ()
    groups: dict[str, int] = field(default_factory=dict)
    next_id: int = 1

    def encode(self) -> bytes:
        rules = [[rule.id, str(rule)] for rule in self.rules]
        return json.dumps({"rules": rules, "groups": self.groups, "next_id": self.next_id}).encode()

    @classmethod
    def decode(cls, data: bytes) -> _State:
        notes = json.loads(data)
        rules = tuple(replace(parse_rule(text), id=number) for number, text in notes["rules"])
        return cls(rules, notes["groups"], notes["next_id"])

    def group(self, name: str) -> tuple[_State, int]:
        """The number of a group, a new one where it has none yet."""
        if not GROUP.fullmatch(name) or name in ("pass", "drop", "count"):
            raise ConfigError(
                f"{name!r} is not the name of a socket group (letters, digits, _ and -, up to 31)"
            )
        if name in self.groups:
            return self, self.groups[name]
        free = set(range(lib.XDS_GROUPS_MAX)) - set(self.groups.values())
        if not free:
            raise CapacityError(f"at most {lib.XDS_GROUPS_MAX} socket groups fit")
        return replace(self, groups={**self.groups, name: min(free)}), min(free)

    def with_rules(self, rules: Sequence[Rule]) -> tuple[_State, list[int]]:
        """These rules, in this order. Returns the ids that are new, whose counters start at zero."""
        state, taken = self, {rule.id for rule in (*self.rules, *rules)}
        numbered, fresh = [], []
        for rule in rules:
            if rule.group is not None:
                state, _ = state.group(rule.group)
            if not rule.id:
                number = state.next_id
                while number in taken:
                    number = number % (lib.XDS_RULE_IDS - 1) + 1
                taken.add(number)
                fresh.append(number)
                state = replace(state, next_id=number % (lib.XDS_RULE_IDS - 1) + 1)
                rule = replace(rule, id=number)
            numbered.append(rule)
        return replace(state, rules=tuple(numbered)), fresh


def _as_rules(rules: str | Sequence[RuleLike]) -> list[Rule]:
    if isinstance(rules, str):
        return [replace(rule, id=0) for rule in parse_rules(rules)]
    parsed = [parse_rule(r, f"rule {i}") if isinstance(r, str) else r for i, r in enumerate(rules, 1)]
    return [replace(rule, id=0) for rule in parsed]


class Filter:
    """The steering filter of one interface. Make it with :meth:`load`, :meth:`open_pinned` or :meth:`dry`."""

    def __init__(self, handle: Any, ifname: str, mode: str, pin_dir: Path | None = None) -> None:
        self._handle, self.ifname, self.mode, self._pin_dir = handle, ifname, mode, pin_dir
        self._asked = mode if mode in MODES else "auto"
        self.replaced: list[str] = []
        """What ``force`` took off the interface, one sentence each."""
        self._scratch: Filter | None = None
        self._known: tuple[int, _State] = (0, _State())  # version of the tables, what they say
        self._told: _State | None = None  # what somebody else says of tables that it cannot read

    # -- life --

    @classmethod
    def load(
        cls,
        ifname: str,
        mode: str = "auto",
        rules: str | Sequence[RuleLike] = (),
        *,
        pin: bool = False,
        force: bool = False,
        device_bound: bool = False,
        metadata: Collection[str] = (),
        stamp: bool = True,
        carrier_wait: float = CARRIER_SECONDS,
    ) -> Filter:
        """Load the program, put ``rules`` in force, attach it to ``ifname``.

        ``mode``: native, generic, or auto (native, else generic; ``.mode`` says which was granted).
        ``pin`` leaves it there after the process, until :meth:`unload`. ``force`` replaces what somebody
        else attached (``.replaced`` says what). A link that had carrier is waited for, ``carrier_wait``
        seconds at most, 0: not at all. ``device_bound`` asks the driver for time stamps where it has them;
        ``metadata`` for each of ``METADATA`` that it names, and refuses where the driver has one not
        (``port.Frame.hints`` shows hash and VLAN tag). ``stamp=False`` writes none.
        Raises ConfigError for rules, SetupError for the host.
        """
        if mode not in MODES:
            raise ConfigError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        parsed, ifindex = _as_rules(rules), ifindex_of(ifname)
        if not _flags(ifname) & _IFF_UP:
            raise SetupError(f"{ifname} is down", remedy=f"ip link set {ifname} up", errno=errno.ENETDOWN)
        ask = _asked(ifname, ifindex, mode, stamp, metadata) or (METADATA["timestamp"] if device_bound else 0)
        running = has_carrier(ifname)
        directory = _pin_dir(ifindex)
        replaced = cls._make_room(ifname, ifindex, directory, force)
        if running:
            warn_of_reset(ifname)
        steering = cls._load(ifname, ifindex, stamp, ask)
        steering.replaced = replaced
        try:
            steering._swap(_State().with_rules(parsed))
            code = lib.xds_filter_attach(steering._handle, ifindex, MODES["native" if ask else mode])
            if code < 0:
                raise steering._attach_error(code, mode)
            steering.mode, steering._asked = MODE_NAMES[code], mode
            if mode == "auto" and steering.mode == "generic":
                log.warning("%s: its driver refused native XDP, attached in generic mode", ifname)
            if pin:
                steering._pin(directory)
            if running and carrier_wait:
                wait_for_carrier(ifname, carrier_wait)
        except BaseException:
            steering.close()
            raise
        return steering

    @classmethod
    def open_pinned(cls, ifname: str) -> Filter:
        """Take up the filter that ``load(..., pin=True)`` left. Raises SetupError when there is none."""
        ifindex = ifindex_of(ifname)
        directory = _pin_dir(ifindex)
        out = ffi.new("struct xds_filter **")
        code = lib.xds_filter_reopen(bytes(directory), out)
        if code == -errno.ENOENT:
            raise SetupError(
                f"{ifname}: no filter is loaded", remedy=f"xdpstack load {ifname}", errno=errno.ENOENT
            )
        if code < 0:
            raise refused(f"open the pinned filter in {directory}", code)
        there = attached(ifname)
        return cls(out[0], ifname, there.mode if there else "none", directory)

    @classmethod
    def dry(cls, rules: str | Sequence[RuleLike] = ()) -> Filter:
        """A filter that is on no interface: for :meth:`test`."""
        steering = cls._load("", 0, stamp=True)
        try:
            steering._swap(_State().with_rules(_as_rules(rules)))
        except BaseException:
            steering.close()
            raise
        return steering

    # -- from process to process --

    def fds(self) -> list[int]:
        """Descriptors of link, program and maps, still its own: for another process, see :meth:`adopt`."""
        out = ffi.new("int32_t[]", lib.XDS_FILTER_FDS)
        lib.xds_filter_fds(self._alive(), out)
        return [int(fd) for fd in out]

    def counter_fds(self) -> list[int]:
        """Descriptors that read a pinned filter's counters and can do nothing else, given; see
        :meth:`counting`. Raises SetupError."""
        out = ffi.new("int32_t[]", lib.XDS_FILTER_FDS)
        code = lib.xds_filter_counter_fds(self._alive(), out)
        if code < 0:
            raise refused(f"{self.ifname}: open the counters to read", code)
        return [int(fd) for fd in out if fd >= 0]

    @classmethod
    def adopt(cls, ifname: str, fds: Sequence[int], mode: str, pin_dir: Path | None = None) -> Filter:
        """The filter whose :meth:`fds` came from another process; the descriptors are given."""
        out = ffi.new("struct xds_filter **")
        code = lib.xds_filter_adopt(list(fds), bytes(pin_dir) if pin_dir else b"", out)
        _ffi.check(code, f"{ifname}: take the filter over")
        return cls(out[0], ifname, mode, pin_dir)

    @classmethod
    def counting(cls, ifname: str, fds: Sequence[int]) -> Filter:
        """A filter that can only be read: its counters, by :meth:`counter_fds` of another process, given."""
        unseen = lib.XDS_FILTER_FDS - len(fds)
        only = cls.adopt(ifname, [-1] * unseen + list(fds), "none")
        only._told = _State()
        return only

    def tell(self, rules: dict[int, str], groups: dict[str, int]) -> None:
        """Say what rules and groups a :meth:`counting` filter has, so that it can name what it counts."""
        parsed = tuple(replace(parse_rule(text), id=number) for number, text in rules.items())
        self._told = _State(parsed, dict(groups))

    @property
    def pin_dir(self) -> Path | None:
        """Where its pins lie; None: it has none."""
        return self._pin_dir

    @classmethod
    def _load(cls, ifname: str, ifindex: int, stamp: bool, ask: int = 0) -> Filter:
        """``ask``: bits of ``METADATA``; with any, the program is bound to the device ``ifindex``."""
        out = ffi.new("struct xds_filter **")
        code = lib.xds_filter_load(bytes(OBJECT), ifindex if ask else 0, ask, stamp, out)
        if code == -errno.ENOENT and not OBJECT.exists():
            raise SetupError(f"load {OBJECT}", "it was not built", "make bpf", errno=errno.ENOENT)
        if code < 0:
            remedy = "leave device_bound and metadata out: no program can be bound to it" if ask else ""
            raise refused(f"{ifname or 'dry run'}: load the XDP program", code, remedy)
        return cls(out[0], ifname, "none")

    @classmethod
    def _make_room(cls, ifname: str, ifindex: int, directory: Path, force: bool) -> list[str]:
        """Nothing may be on the hook, in any mode. ``force`` takes it off; returns what that was."""
        there = all_attached(ifname)
        if there and not force:
            raise cls._taken(ifname, there)
        replaced = [str(one) for one in there]
        for one in replaced:
            log.warning("%s: replacing %s", ifname, one)
        if there and (code := lib.xds_attached_remove(ifindex)) < 0:
            raise refused(f"{ifname}: detach {replaced[0]}", code)
        if os.path.exists(directory / "xds_link"):  # of a filter that is on the hook no more
            lib.xds_filter_unpin(bytes(directory))
        return replaced

    @staticmethod
    def _taken(ifname: str, there: list[Attached]) -> SetupError:
        words = " and ".join(map(str, there))
        what = f"{words} {'is' if len(there) == 1 else 'are'} attached already"
        remedy = (
            f"xdpstack unload {ifname}" if ours(ifname) else f"xdpstack load {ifname} --force replaces it"
        )
        return SetupError(ifname, what, remedy, errno=errno.EBUSY)

    def _attach_error(self, code: int, mode: str) -> SetupError:
        if code == -errno.EBUSY and (there := all_attached(self.ifname)):
            return self._taken(self.ifname, there)
        remedy = "--mode generic works with every driver" if mode == "native" else ""
        return refused(f"{self.ifname}: attach the filter in {mode} mode", code, remedy)

    @property
    def is_pinned(self) -> bool:
        """Whether it stays after this object."""
        return self._pin_dir is not None

    def close(self) -> None:
        """Let go of it. An unpinned filter is detached; a pinned one stays. Calm when repeated."""
        handle, self._handle = self._handle, None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        if handle is not None:
            lib.xds_filter_close(handle)

    def let_go(self) -> None:
        """The interface is in another namespace: leave it there as it was found. A pinned filter stays."""
        if not self.is_pinned:
            code = lib.xds_filter_detach(self._alive())
            if code < 0 and code != -errno.ENOLINK:
                raise refused(f"{self.ifname}: detach the filter", code)
            self.mode = "none"

    def reattach(self, ifname: str) -> bool:
        """The interface came back, or was made anew, as ``ifname``: attach the same program to it, with its
        rules and counters. False: it is still attached there, nothing is done. Raises SetupError."""
        ifindex, self.ifname = ifindex_of(ifname), ifname
        if self.info()["ifindex"] == ifindex:
            return False
        pin = self.is_pinned
        if self._pin_dir is not None:
            lib.xds_filter_unpin(bytes(self._pin_dir))
            self._pin_dir = None
        code = lib.xds_filter_detach(self._alive())
        if code < 0 and code != -errno.ENOLINK:
            raise refused(f"{ifname}: detach the filter", code)
        self._make_room(ifname, ifindex, _pin_dir(ifindex), force=False)
        code = lib.xds_filter_attach(self._alive(), ifindex, MODES[self._asked])
        if code < 0:
            raise self._attach_error(code, self._asked)
        self.mode = MODE_NAMES[code]
        if pin:
            self._pin(_pin_dir(ifindex))
        return True

    def follow(self, ifname: str, pin_dir: Path | None) -> None:
        """Another process, which has this filter too, attached it again: to ``ifname``, pinned there."""
        self.ifname, self._pin_dir = ifname, pin_dir

    def _pin(self, directory: Path) -> None:
        _prepare_bpffs()
        code = lib.xds_filter_pin(self._alive(), bytes(directory))
        if code < 0:
            raise refused(f"pin the filter in {directory}", code)
        self._pin_dir = directory

    def unload(self) -> None:
        """Detach, pinned or not, and remove the pins."""
        code = lib.xds_filter_detach(self._alive())
        if code < 0 and code != -errno.ENOLINK:
            raise refused(f"{self.ifname}: detach the filter", code)
        if self._pin_dir is not None:
            _ffi.check(lib.xds_filter_unpin(bytes(self._pin_dir)), f"remove {self._pin_dir}")
            with contextlib.suppress(OSError):  # others' pins are in it
                self._pin_dir.parent.rmdir()
            self._pin_dir = None
        self.mode = "none"
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        if self._handle is None:
            return f"<Filter {self.ifname or 'dry'}: closed>"
        pin = ", pinned" if self.is_pinned else ""
        return f"<Filter {self.ifname or 'dry'}: {self.mode}, {len(self.rules)} rules{pin}>"

    def _alive(self) -> Any:
        if self._handle is None:
            raise SetupError("the filter is closed", errno=errno.EBADF)
        return self._handle

    # -- rules --

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: a pinned filter may be changed by several processes."""
        if self._pin_dir is None:
            yield
            return
        fd = os.open(self._pin_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _state(self) -> _State:
        if self._told is not None:
            return self._told
        version = ffi.new("uint32_t *")
        code = lib.xds_filter_version(self._alive(), version)
        if code == -errno.ENOENT:
            return _State()
        _ffi.check(code, "read the version of the rules")
        if version[0] != self._known[0]:
            tables = ffi.new("struct xds_tables *")
            _ffi.check(lib.xds_filter_current(self._alive(), tables), "read the rules in force")
            # Published between the two calls: newer than its version says, and read again next time.
            self._known = version[0], _State.decode(bytes(ffi.buffer(tables.notes, tables.notes_len)))
        return self._known[1]

    def _swap(self, change: tuple[_State, list[int]]) -> None:
        state, fresh = change
        tables = compile_tables(state.rules, state.groups, state.encode())
        for number in fresh:
            _ffi.check(lib.xds_filter_clear_rule(self._alive(), number), "clear a counter")
        code = lib.xds_filter_publish(self._alive(), tables)
        if code < 0:
            raise refused(f"{self.ifname}: publish {len(state.rules)} rules", code)

    @property
    def rules(self) -> list[Rule]:
        """The rules in force, in order, with their ids."""
        return list(self._state().rules)

    @property
    def groups(self) -> dict[str, int]:
        """Numbers of the socket groups by name."""
        return dict(self._state().groups)

    def add_rule(self, rule: RuleLike, *, before: int | None = None) -> int:
        """Put a rule in force, last or before the rule with id ``before``. Returns its id."""
        (parsed,) = _as_rules([rule])
        with self._locked():
            state = self._state()
            at = len(state.rules) if before is None else self._index(state, before)
            rules = [*state.rules[:at], parsed, *state.rules[at:]]
            state, fresh = state.with_rules(rules)
            self._swap((state, fresh))
        return fresh[0]

    def delete_rule(self, number: int) -> Rule:
        """Take the rule with this id out of force. Returns it."""
        with self._locked():
            state = self._state()
            rules = list(state.rules)
            gone = rules.pop(self._index(state, number))
            self._swap(state.with_rules(rules))
        return gone

    def replace_rules(self, rules: str | Sequence[RuleLike]) -> list[int]:
        """Put these rules in force instead, at once. A rule that was there before keeps id and counters."""
        parsed = _as_rules(rules)
        with self._locked():
            state = self._state()
            kept: dict[str, list[int]] = {}
            for old in state.rules:
                kept.setdefault(str(old), []).append(old.id)
            merged = [replace(r, id=ids.pop(0)) if (ids := kept.get(str(r))) else r for r in parsed]
            state, fresh = state.with_rules(merged)
            self._swap((state, fresh))
        return [rule.id for rule in state.rules]

    @staticmethod
    def _index(state: _State, number: int) -> int:
        for i, rule in enumerate(state.rules):
            if rule.id == number:
                return i
        raise ConfigError(f"no rule has the id {number}")

    # -- sockets --

    def set_socket(self, group: str, queue: int, fd: int | None) -> None:
        """Let an AF_XDP socket take the frames of ``group`` on queue ``queue``; None takes it away."""
        if not 0 <= queue < lib.XDS_QUEUES_MAX:
            raise ConfigError(f"queue {queue} is not in 0..{lib.XDS_QUEUES_MAX - 1}")
        with self._locked():
            before = self._state()
            state, number = before.group(group)
            if state is not before:
                self._swap((state, []))
        code = lib.xds_filter_set_socket(self._alive(), number, queue, -1 if fd is None else fd)
        if code < 0:
            raise refused(f"{self.ifname}: give group {group!r} its socket on queue {queue}", code)

    # -- reading --

    def counters(self) -> Counters:
        """Counters of the rules in force, the reasons, and the queues without a socket."""
        state = self._state()
        by_id = self._counts(lib.XDS_COUNT_RULES, lib.XDS_RULE_IDS)
        reasons = self._counts(lib.XDS_COUNT_REASONS, lib.XDS_REASONS)
        missing = self._counts(lib.XDS_COUNT_NO_SOCKET, lib.XDS_SOCKETS_MAX)
        names = {number: name for name, number in state.groups.items()}
        no_socket = {}
        for index in missing["packets"].nonzero()[0].tolist():
            group, queue = divmod(index, lib.XDS_QUEUES_MAX)
            no_socket[names.get(group, str(group)), queue] = _count(missing[index])
        return Counters(
            rules={rule.id: _count(by_id[rule.id]) for rule in state.rules},
            reasons={word: _count(reasons[value]) for value, word in REASONS.items()},
            no_socket=no_socket,
        )

    def _counts(self, which: int, count: int) -> Any:
        out = ffi.new("struct xds_count[]", count)
        _ffi.check(lib.xds_filter_counters(self._alive(), which, out, count), "read counters")
        return _ffi.view(out, count, "struct xds_count").copy()

    def info(self) -> dict[str, int]:
        """Ids and sizes of program and link, as the kernel tells them."""
        out = ffi.new("struct xds_filter_info *")
        _ffi.check(lib.xds_filter_info(self._alive(), out), "ask for the program")
        keys = ("prog_id", "link_id", "ifindex", "verified", "jited_len", "device_bound")
        return {key: int(getattr(out, key)) for key in keys}

    # -- dry run --

    def test(self, frame: bytes) -> Decision:
        """What the program does with a frame (14 bytes or more): a run in the kernel, on a copy of the
        filter, so that no counter of the live one moves. Redirects are shown as if every socket were there.
        """
        tester = self._tester()
        before = tester._snapshot()
        tester.run(frame)
        after = tester._snapshot()
        counted = {int(number) for number in (after[0]["packets"] != before[0]["packets"]).nonzero()[0]}
        (reason,) = (after[1]["packets"] != before[1]["packets"]).nonzero()[0].tolist()
        rules = tuple(rule for rule in tester.rules if rule.id in counted)
        word = REASONS[reason]
        ended = rules[-1] if rules and rules[-1].action != "count" else None
        action = ended.action if ended else "pass"
        return Decision(action, "redirected" if word == "no_socket" else word, ended, rules)

    def test_all(self, frames: Iterable[bytes]) -> Counters:
        """Counters of a dry run of many frames, as if every socket were there. Frames under 14 bytes, which
        the kernel does not run, count as malformed."""
        tester = self._tester()
        before, short = tester.counters(), [0, 0]
        for frame in frames:
            if len(frame) < 14:
                short = [short[0] + 1, short[1] + len(frame)]
            else:
                tester.run(frame)
        after = tester.counters()
        reasons = {word: after.reasons[word] - before.reasons[word] for word in after.reasons}
        reasons["redirected"] += reasons["no_socket"]
        reasons["no_socket"] = Count(0, 0)
        reasons["malformed"] += Count(*short)
        rules = {number: after.rules[number] - before.rules[number] for number in after.rules}
        return Counters(rules, reasons, {})

    def run(self, frame: bytes, repeat: int = 1) -> int:
        """Run the program on a frame ``repeat`` times (it counts). Returns ns a run."""
        verdict, ns = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        code = lib.xds_filter_test(self._alive(), frame, len(frame), repeat, verdict, ns)
        if code == -errno.EINVAL and len(frame) < 14:
            raise ConfigError(f"a frame of {len(frame)} bytes is no Ethernet frame: 14 or more")
        if code < 0:
            raise refused("run the program on a frame", code)
        return int(ns[0])

    def _snapshot(self) -> tuple[Any, Any]:
        return self._counts(lib.XDS_COUNT_RULES, lib.XDS_RULE_IDS), self._counts(
            lib.XDS_COUNT_REASONS, lib.XDS_REASONS
        )

    def _tester(self) -> Filter:
        """Itself when it is on no interface, else a copy with the rules in force."""
        if not self.ifname:
            return self
        if self._scratch is None:
            self._scratch = Filter._load("", 0, stamp=True)
        state = self._state()
        if self._scratch._state() != state:
            self._scratch._swap((state, []))
        return self._scratch


def _count(row: Any) -> Count:
    return Count(int(row["packets"]), int(row["bytes"]))
