"""A slow, obvious reader of what a channel did: holds it against the truth, unit by unit.

``Channel`` is a thin face of the C core for tests; ``Truth`` knows every unit that was sent in each run
and what each line carried of it, and after each step compares the core's books with plain sets.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

from xdpstack._ffi import ffi, lib

Unit = tuple[int, int]  # run, sequence

FRAMING = {
    lib.XDS_SESSION_PLAIN: lib.XDS_FRAMING_FIXED,
    lib.XDS_SESSION_MOLD64: lib.XDS_FRAMING_U16BE,
    lib.XDS_SESSION_IEXTP: lib.XDS_FRAMING_U16LE,
    lib.XDS_SESSION_CME: lib.XDS_FRAMING_SBE,
}
OUTCOMES = (
    "won",
    "duplicate",
    "late",
    "heartbeat",
    "malformed",
    "truncated",
    "foreign",
    "no_room",
    "buffered",
)


def plain(seq: int, body: bytes = b"") -> bytes:
    return struct.pack("<IHH", seq & 0xFFFFFFFF, 0, 0) + body


def mold(seq: int, messages: list[bytes], session: bytes = b"SESSION001", count: int | None = None) -> bytes:
    body = b"".join(struct.pack(">H", len(m)) + m for m in messages)
    return session + struct.pack(">QH", seq, len(messages) if count is None else count) + body


def iex(
    seq: int, messages: list[bytes], ns: int, session: int = 7, channel: int = 1, version: int = 1
) -> bytes:
    body = b"".join(struct.pack("<H", len(m)) + m for m in messages)
    return (
        struct.pack("<BBHIIHHqqq", version, 0, 0x8004, channel, session, len(body), len(messages), 0, seq, ns)
        + body
    )


def cme(seq: int, ns: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", seq, ns) + body


class Channel:
    """The C core with its outputs collected; every step drains it as the engine does."""

    def __init__(self, session: int, **settings: Any) -> None:
        self.cfg = ffi.new("struct xds_channel_config *")
        values = {
            "session": session, "framing": FRAMING[session], "lines": 2, "window_packets": 16,
            "slot_bytes": 512, "window_ns": 1000, "retry_ns": 2000, "give_up_ns": 100_000,
        } | settings  # fmt: skip
        for name, value in values.items():
            setattr(self.cfg, name, value)
        size = lib.xds_channel_size(self.cfg)
        if not size:
            raise ValueError("configuration refused")
        self.mem = ffi.new("char[]", size)
        self.c = ffi.cast("struct xds_channel *", self.mem)
        assert lib.xds_channel_init(self.mem, self.cfg) == 0
        self.blocks: list[tuple[int, int, bytes, int, int]] = []  # seq, count, data, line, flags
        self.events: list[tuple[int, int, int]] = []  # kind, first, count
        self.times: list[int] = []  # of the events
        self._lost_told = 0
        self.log: list[tuple[str, Any]] = []  # blocks and events as they came

    def input(self, line: int, packet: bytes, now: int = 0, rx: int | None = None) -> int:
        data = ffi.new("uint8_t[]", packet) if packet else ffi.new("uint8_t[1]")  # a NUL behind, never read
        code: int = lib.xds_channel_input(self.c, line, data, len(packet), now if rx is None else rx, now)
        self.drain()
        return code

    def tick(self, now: int) -> None:
        lib.xds_channel_tick(self.c, now)
        self.drain()

    def finish(self, now: int) -> None:
        lib.xds_channel_finish(self.c, now)
        self.drain()

    def requests(self, now: int) -> list[tuple[bytes, int, int]]:
        out, room = [], ffi.new("uint8_t[20]")
        while (n := lib.xds_channel_output(self.c, room, 20, now)) > 0:
            assert n == 20
            session, seq, count = struct.unpack(">10sQH", bytes(ffi.buffer(room, 20)))
            out.append((session, seq, count))
        self.drain()
        return out

    def drain(self) -> None:
        block, event = ffi.new("struct xds_block *"), ffi.new("struct xds_event *")
        while lib.xds_channel_next(self.c, block):
            data = bytes(ffi.buffer(block.data, block.len))
            self.blocks.append((block.seq, block.count, data, block.line, block.flags))
            self.log.append(("block", self.blocks[-1]))
            assert len(self.log) < 1_000_000, "next() never ends"
        while lib.xds_channel_event(self.c, event):
            self.events.append((event.kind, event.first, event.count))
            self.times.append(event.ns)
            self._lost_told += event.count if event.kind == lib.XDS_EVENT_GAP_LOST else 0
            self.log.append(("event", self.events[-1]))
        self.check_books()

    @property
    def deadline(self) -> int:
        return int(lib.xds_channel_deadline(self.c))

    @property
    def stats(self) -> Any:
        out = ffi.new("struct xds_channel_stats *")
        lib.xds_channel_stats(self.c, out)
        return out

    def line(self, index: int) -> Any:
        out = ffi.new("struct xds_line_stats *")
        assert lib.xds_channel_line_stats(self.c, index, out) == 0
        return out

    def kinds(self) -> Counter[int]:
        return Counter(kind for kind, _, _ in self.events)

    def check_books(self) -> None:
        s = self.stats
        assert s.gaps_found == s.gaps_filled + s.gaps_lost + s.gaps_open
        assert s.units_missed == s.units_filled + s.units_lost + s.units_open
        for index in range(self.cfg.lines + 1):
            line = self.line(index)
            assert line.packets == sum(getattr(line, name) for name in OUTCOMES), index
        if not s.events_lost:
            assert self._lost_told == s.units_lost


def delivered(channel: Channel, units_of: Callable[[int], int]) -> list[range]:
    """Each block's units."""
    return [range(seq, seq + units_of(count)) for seq, count, *_ in channel.blocks]


def check_truth(channel: Channel, first: int, end: int, per_message: bool) -> None:
    """Delivered and lost together are exactly [first, end), in order, each once."""
    blocks = delivered(channel, (lambda count: count) if per_message else (lambda count: 1))
    got = [unit for block in blocks for unit in block]
    assert got == sorted(set(got)), "out of order, or twice"
    lost = [u for k, a, n in channel.events if k == lib.XDS_EVENT_GAP_LOST for u in range(a, a + n)]
    assert sorted(got + lost) == list(range(first, end))
