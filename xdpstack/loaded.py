"""A filter that the kernel has, on an interface or on none: its rules, its sockets, its counters, and what it
does with a frame. How it comes onto an interface is :mod:`xdpstack.bpf`'s."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from xdpstack import _ffi
from xdpstack._ffi import ffi, lib
from xdpstack.asks import METADATA
from xdpstack.attached import refused
from xdpstack.closing import Closing
from xdpstack.dispatcher import OBJECT, cannot
from xdpstack.errors import ConfigError, SetupError
from xdpstack.rules import Decision, Rule, compile_tables
from xdpstack.rulestate import RuleLike, RuleState, as_rules

__all__ = ["REASONS", "Count", "Counters", "Loaded"]

REASONS = {
    value: word
    for value, word in sorted(_ffi.names("xds_reason", "XDS_REASON_").items())
    if value < lib.XDS_REASONS
}


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


class Loaded(Closing):
    """A filter by its handle. ``ifname`` is "" where it is on no interface."""

    def __init__(self, handle: Any, ifname: str, mode: str = "none", pin_dir: Path | None = None) -> None:
        self._handle, self.ifname, self.mode, self._pin_dir = handle, ifname, mode, pin_dir
        self._scratch: Loaded | None = None
        self._known: tuple[int, RuleState] = (0, RuleState())  # version of the tables, what they say

    @classmethod
    def _load(
        cls,
        ifname: str,
        ifindex: int,
        stamp: bool,
        ask: int = 0,
        kind: int = lib.XDS_FILTER_OWN,
        row: int = 0,
    ) -> Self:
        """``ask``: bits of ``METADATA``; with any, the program is bound to the device ``ifindex``."""
        out = ffi.new("struct xds_filter **")
        code = lib.xds_filter_load(bytes(OBJECT), kind, ifindex if ask else 0, ask, stamp, row, out)
        if code == -errno.ENOENT and not OBJECT.exists():
            raise SetupError(f"load {OBJECT}", "it was not built", "make bpf", errno=errno.ENOENT)
        if code < 0 and kind == lib.XDS_FILTER_SHARED:
            raise cannot(code)
        if code < 0:
            remedy = "leave device_bound and metadata out: no program can be bound to it" if ask else ""
            raise refused(f"{ifname or 'dry run'}: load the XDP program", code, remedy)
        return cls(out[0], ifname)

    @classmethod
    def dry(cls, rules: str | Sequence[RuleLike] = (), *, dispatcher: bool = False) -> Self:
        """A filter that is on no interface: for :meth:`test`. ``dispatcher``: the program for one."""
        kind = lib.XDS_FILTER_SHARED_DRY if dispatcher else lib.XDS_FILTER_OWN
        steering = cls._load("", 0, True, 0, kind)
        try:
            steering._swap(RuleState().with_rules(as_rules(rules)))
        except BaseException:
            steering.close()
            raise
        return steering

    def close(self) -> None:
        """Let go of it. Calm when repeated."""
        handle, self._handle = self._handle, None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        if handle is not None:
            lib.xds_filter_close(handle)

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
        try:
            fd = os.open(self._pin_dir, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise SetupError(
                f"{self.ifname}: change its filter", "it was unloaded meanwhile", errno=errno.ENOENT
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _state(self) -> RuleState:
        version = ffi.new("uint32_t *")
        code = lib.xds_filter_version(self._alive(), version)
        if code == -errno.ENOENT:
            return RuleState()
        _ffi.check(code, "read the version of the rules")
        if version[0] != self._known[0]:
            tables = ffi.new("struct xds_tables *")
            _ffi.check(lib.xds_filter_current(self._alive(), tables), "read the rules in force")
            # Published between the two calls: newer than its version says, and read again next time.
            self._known = version[0], RuleState.decode(bytes(ffi.buffer(tables.notes, tables.notes_len)))
        return self._known[1]

    def _swap(self, change: tuple[RuleState, list[int]]) -> None:
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
        return self.add_rules([rule], before=before)[0]

    def add_rules(self, rules: Sequence[RuleLike], *, before: int | None = None) -> list[int]:
        """The same for several, in this order and at once."""
        parsed = as_rules(rules)
        with self._locked():
            state = self._state()
            at = len(state.rules) if before is None else self._index(state, before)
            state, fresh = state.with_rules([*state.rules[:at], *parsed, *state.rules[at:]])
            self._swap((state, fresh))
        return fresh

    def delete_rule(self, number: int) -> Rule:
        """Take the rule with this id out of force. Returns it."""
        return self.delete_rules([number])[0]

    def delete_rules(self, numbers: Sequence[int]) -> list[Rule]:
        """The same for several, at once."""
        with self._locked():
            state = self._state()
            rules = list(state.rules)
            gone = {self._index(state, number): number for number in numbers}
            self._swap(state.with_rules([rule for at, rule in enumerate(rules) if at not in gone]))
        return [rules[at] for at in gone]

    def replace_rules(self, rules: str | Sequence[RuleLike]) -> list[int]:
        """Put these rules in force instead, at once. A rule that was there before keeps id and counters."""
        parsed = as_rules(rules)
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
    def _index(state: RuleState, number: int) -> int:
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

    def info(self) -> dict[str, Any]:
        """Ids and sizes of program and link, as the kernel tells them. ``metadata``: the words that it asks
        its driver for, whoever loaded it (None: not told without CAP_SYS_ADMIN)."""
        out = ffi.new("struct xds_filter_info *")
        _ffi.check(lib.xds_filter_info(self._alive(), out), "ask for the program")
        keys = ("prog_id", "link_id", "ifindex", "verified", "jited_len", "device_bound", "shared")
        words = None if out.ask < 0 else [word for word, bit in METADATA.items() if out.ask & bit]
        return {**{key: int(getattr(out, key)) for key in keys}, "metadata": words}

    def asking(self, metadata: Collection[str]) -> Self:
        """Itself, where it asks the driver for ``metadata`` at least. SetupError: it does not, and no other
        can take its place while it is there."""
        asks = self.info()["metadata"] or ()
        if set(metadata) <= set(asks):
            return self
        raise SetupError(
            f"{self.ifname}: ask its driver for {', '.join(metadata)}",
            f"the filter there asks for {', '.join(asks) or 'nothing'}",
            f"xdpstack unload {self.ifname}, then load it --metadata {','.join(metadata)}",
            errno.EBUSY,
        )

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

    def _tester(self) -> Loaded:
        """Itself when it is on no interface, else a copy with the rules in force."""
        if not self.ifname:
            return self
        if self._scratch is None:
            self._scratch = Loaded._load("", 0, stamp=True)
        state = self._state()
        if self._scratch._state() != state:
            self._scratch._swap((state, []))
        return self._scratch


def _count(row: Any) -> Count:
    return Count(int(row["packets"]), int(row["bytes"]))
