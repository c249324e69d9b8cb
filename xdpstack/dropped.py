"""What a filter or an engine refused, frame by frame, with the reason: ``xdpstack capture --dropped``.

A filter copies refused frames into perf buffers, an engine into a ring beside its counters; both only
while somebody reads, both bounded: what does not fit is counted as lost, and nothing waits for the reader.
A reader that is killed leaves nothing on: a filter forgets it after :data:`HOLD` seconds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address
from typing import Any, NamedTuple, Protocol

import numpy as np

from xdpstack._ffi import check, ffi, lib, names
from xdpstack.attached import all_attached, refused
from xdpstack.clock import tai_ns
from xdpstack.closing import Closing
from xdpstack.dispatcher import chained
from xdpstack.errors import SetupError
from xdpstack.flows import udp_frame
from xdpstack.linklife import seen_by_engines
from xdpstack.links import links
from xdpstack.loaded import REASONS
from xdpstack.ring import Ring
from xdpstack.stats import Found, process_start, segments, tap_path

__all__ = ["HOLD", "EngineDrops", "FilterDrops", "Refused", "sources"]

HOLD = 3.0
"""Seconds that a filter goes on showing after its reader was last heard of."""
_PAGES = 64  # of each CPU's perf buffer: 256 KiB
_RENEW_NS = 500_000_000
_HOST_REASONS = names("xds_host_reason", "XDS_HOST_")


class Refused(NamedTuple):
    """One frame that was refused."""

    ns: int
    """CLOCK_TAI, at the hook or of its arrival."""
    by: str
    """``filter t0`` or ``engine NAME port 0``."""
    reason: str
    """A word of the filter's reasons, of the host core's, or ``unrouted``."""
    detail: str
    """The rule and the queue, where there are."""
    length: int
    """Bytes of the whole frame (of a datagram of a kernel socket: as if it had come in one)."""
    data: bytes
    """Its first bytes, 2,048 at most."""

    def __str__(self) -> str:
        return f"{self.by}: {self.reason}" + (f", {self.detail}" if self.detail else "")


class Source(Protocol):
    """A filter or an engine that shows what it refuses."""

    name: str

    @property
    def lost(self) -> int:
        """Frames that found no room, since the source was opened."""

    def read(self, wait: float) -> list[Refused]:
        """What was refused since the last call; waits up to ``wait`` seconds for the first."""

    def close(self) -> None:
        """Stop showing; twice is calm."""


def _programs(ifname: str) -> list[int]:
    """The ids of our filters on an interface, alone or in a dispatcher."""
    there = [(one.prog_id, one.name) for one in all_attached(ifname)]
    there += [(one.prog_id, one.name) for one in chained(ifname)]
    return [prog_id for prog_id, name in there if name.startswith("xds_rx")]


class FilterDrops(Closing):
    """What our XDP program on an interface refuses: dropped by a rule, malformed, or without a socket.
    A context manager."""

    def __init__(self, ifname: str, every: int = 1) -> None:
        """Begin; ``every``: show one in so many, by chance. Raises SetupError: no filter of ours is there,
        another reader is at it, or the process may not."""
        self.name, self._every, self._until = f"filter {ifname}", every, 0
        self._handle: Any = ffi.NULL
        there = _programs(ifname)
        if not there:
            raise SetupError(f"{ifname}: no filter of ours is attached", remedy=f"xdpstack load {ifname}")
        out = ffi.new("struct xds_drops **")
        code = lib.xds_drops_open(there[0], out)
        if code < 0:
            raise refused(f"{ifname}: watch what its filter refuses", code)
        self._handle, self._room = out[0], ffi.new("uint8_t const **")
        tap = ffi.new("struct xds_tap *")
        check(lib.xds_drops_tap(self._handle, tap), "read the tap")
        if tap.until_ns > tai_ns() and tap.pid != os.getpid() and process_start(tap.pid) is not None:
            pid = tap.pid
            self._free()
            raise SetupError(f"{ifname}: watch what its filter refuses", f"process {pid} does so already")
        code = lib.xds_drops_start(self._handle, _PAGES)
        if code < 0:
            self._free()
            raise refused(f"{ifname}: watch what its filter refuses", code)
        self._renew()

    def _renew(self) -> None:
        now = tai_ns()
        if self._until - now < int(HOLD * 1e9) - _RENEW_NS:
            self._until = now + int(HOLD * 1e9)
            tap = {"until_ns": self._until, "every": self._every, "pid": os.getpid()}
            check(lib.xds_drops_hold(self._handle, ffi.new("struct xds_tap *", tap)), "hold the tap")

    @property
    def lost(self) -> int:
        """Frames that found a CPU's buffer full, up to now."""
        return int(lib.xds_drops_lost(self._handle)) if self._handle != ffi.NULL else 0

    def read(self, wait: float = 0.0) -> list[Refused]:
        """What was refused since the last call; waits up to ``wait`` seconds for the first."""
        self._renew()
        used = lib.xds_drops_read(self._handle, int(wait * 1000), self._room)
        check(used, f"read from {self.name}")
        data = bytes(ffi.buffer(self._room[0], used))
        return list(self._records(data))

    def _records(self, data: bytes) -> Iterator[Refused]:
        at, head, size = 0, ffi.sizeof("struct xds_drops_record"), ffi.sizeof("struct xds_drop")
        while at < len(data):
            length = int.from_bytes(data[at : at + 4], "little")
            drop = ffi.from_buffer("struct xds_drop *", data[at + head : at + head + size])
            frame = data[at + head + size : at + head + length]
            detail = (f"rule {drop.rule}, " if drop.rule else "") + f"queue {drop.queue}"
            yield Refused(drop.ns, self.name, REASONS[drop.reason], detail, drop.length, frame)
            at += head + (length + 7) // 8 * 8

    def _free(self) -> None:
        handle, self._handle = self._handle, ffi.NULL
        if handle != ffi.NULL:
            lib.xds_drops_close(handle)

    def close(self) -> None:
        """Stop showing; twice is calm."""
        if self._handle != ffi.NULL:
            lib.xds_drops_hold(self._handle, ffi.new("struct xds_tap *"))
        self._free()


class EngineDrops(Closing):
    """What a running engine that has a name refuses: the host core's reasons, and datagrams that nobody
    wanted. A context manager."""

    def __init__(self, found: Found) -> None:
        """Begin. Raises SetupError: another reader is at it, or the engine has ended."""
        self.name = f"engine {found.name}"
        self._ring = Ring.open(tap_path(found.path))
        while self._ring.read():  # what a reader before us left
            self._ring.release()
        self._began = int(self._ring.stats["refused"])

    @property
    def lost(self) -> int:
        """Frames that found the ring full."""
        return int(self._ring.stats["refused"]) - self._began

    def read(self, wait: float = 0.0) -> list[Refused]:
        """What was refused since the last call; waits up to ``wait`` seconds for the first."""
        deadline = time.monotonic() + wait
        while True:
            with self._ring.batch() as records:
                taken = [self._refused(record.data) for record in records]
            if taken or time.monotonic() >= deadline:
                return taken
            time.sleep(0.001)

    def _refused(self, record: np.ndarray[Any, Any]) -> Refused:
        raw = ffi.from_buffer("struct xds_refused *", record)
        data = bytes(record[ffi.sizeof("struct xds_refused") :])
        by = f"{self.name} port {raw.port}"
        if raw.layer == lib.XDS_REFUSED_HOST:
            return Refused(raw.ns, by, _HOST_REASONS[raw.reason], "", raw.len, data)
        frame = udp_frame(data, (_text(raw.dst, raw.dst6), raw.dport), (_text(raw.src, raw.src6), raw.sport))
        detail = "no line and no endpoint wants it"
        return Refused(raw.ns, by, "unrouted", detail, len(frame) - len(data) + raw.len, frame)

    def close(self) -> None:
        """Stop showing; twice is calm."""
        self._ring.close()


def _text(four: int, six: Any) -> str:
    """An address that lies in network order: of IPv6 where there is one."""
    if any(six):
        return str(IPv6Address(bytes(six)))
    return ".".join(str(byte) for byte in four.to_bytes(4, "little"))


@contextlib.contextmanager
def sources(what: str, every: int = 1) -> Iterator[Sequence[Source]]:
    """The filter of an interface and the engines that run over it, or one engine by its name or number.

    Raises SetupError where there is none."""
    link = links().get(what)
    alive = [found for found in segments() if found.state == "alive"]
    if link is not None:
        over = {(one["engine"], one["pid"]) for one in seen_by_engines().get(link.index, [])}
        engines = [found for found in alive if (found.name, found.pid) in over]
    else:
        engines = [found for found in alive if what in (found.name, str(found.pid))]
    with contextlib.ExitStack() as stack:
        opened: list[Source] = [stack.enter_context(EngineDrops(found)) for found in engines]
        if link is not None and _programs(what):
            opened.append(stack.enter_context(FilterDrops(what, every)))
        if not opened:
            reason = "no filter of ours and no engine" if link is not None else "no such interface or engine"
            raise SetupError(f"watch what {what} refuses", reason, "xdpstack status, xdpstack stats")
        yield opened
