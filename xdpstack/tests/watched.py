"""Engines to be watched that never ran: segments whose values stand here, seen as if by one process at fixed
times, so that whatever shows them says the same in every run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xdpstack._ffi import ffi, lib, names
from xdpstack.stats import Segment
from xdpstack.visible import stack_words
from xdpstack.watch import Look, Watch, look

HOST_WORDS = {"reasons": names("xds_host_reason", "XDS_HOST_")}
STAGES = ("wake", "parsed", "callback", "total")
CLOCK = (
    "source", "reason", "ahead_ns", "behind_ns", "error_max_ns", "fast_ppb", "slow_ppb", "steps", "ticks",
)  # fmt: skip
PLACE = tuple(field for field, _ in ffi.typeof("struct xds_stage_conn_words").fields)
BOOK_WORDS = {"reasons": names("xds_book_reason", "XDS_BOOK_")}


class Shown:
    """An engine that takes packets of a feed by two lines and loses some."""

    def __init__(self, segment: Segment, port: str = "xsk:eth0:3") -> None:
        self.segment, self.port = segment, port
        gauges = {"slow_worst_ns"}
        units = {"busy_ns": "ns", "slow_worst_ns": "ns"}
        self.engine = segment.struct("engine", "struct xds_engine_stats", gauges=gauges, units=units)
        self.link = segment.struct(f"port.{port}", "struct xds_link_stats", units={"rx_bytes": "bytes"})
        self.host = segment.struct(f"host.{port}", "struct xds_host_stats", words=HOST_WORDS)
        stack, tcp = stack_words(segment, port)
        self.stack = ffi.cast("struct xds_stack_stats *", stack)
        self.tcp = ffi.cast("struct xds_stack_totals *", tcp)
        channel = {"next_seq", "gaps_open", "units_open"}
        prefix = "feed.itch-a.channel.0"
        self.channel = segment.struct(prefix, "struct xds_channel_stats", gauges=channel)
        self.lines = [
            segment.struct(f"{prefix}.line.{n}", "struct xds_line_stats", gauges={"buffered"})
            for n in range(2)
        ]
        levels = {"orders", "levels", "orders_max", "levels_max", "memory_bytes"}
        self.books = segment.struct(
            "feed.itch-a.books", "struct xds_books_stats", gauges=levels, words=BOOK_WORDS
        )
        self.decoded = segment.hist("feed.itch-a.decoded")
        self.stages = {word: segment.hist(f"feed.itch-a.stage.{word}") for word in STAGES}
        self.left_out = segment.counter("feed.itch-a.stage.warm_up", "packets")
        self.left_out[0] = 64
        unit = {word: word.rpartition("_")[2] if "_" in word else "count" for word in CLOCK}
        clock = segment.words("clock", {word: (unit[word], word not in ("ticks", "steps")) for word in CLOCK})
        for number, value in enumerate((lib.XDS_CLOCK_COUNTER, 0, 12, 0, 85, 0, 310, 1, 7)):
            clock[number] = value
        nic = segment.struct("phc.eth0", "struct xds_phc_stats")
        nic.ahead_ns, nic.error_ns, nic.error_max_ns, nic.slow_ppb = 37_000_000_412, 34, 61, 2_150
        nic.spread_ns, nic.comparisons, nic.failed = 940, 812, 2
        self.gateway = segment.words("conn.0", {word: ("count", word != "connections") for word in PLACE})
        values = (2, 5, 0, 40_001, 7001, 0, 0xFFFF_0A01_0001, lib.XDS_TCP_ESTABLISHED)
        values += (48_000, 31_000, 28_960, 2_896, 4_344, 1_448, 3, 1_250_000)
        for number, value in enumerate(values):
            self.gateway[number] = value
        self.order = segment.hist("conn.0.stage.callback")

    def second(self, packets: int) -> None:
        """A second passes in which so many packets come; one in ten thousand is refused."""
        bad = packets // 10_000
        e, link, host = self.engine, self.link, self.host
        e.turns += 2_000_000
        e.turns_busy += packets // 2
        e.busy_ns += 300 * packets
        e.packets += packets
        e.delivered += packets - 2 * bad
        e.updates += 4 * packets
        e.unrouted += bad
        e.host_refused += bad
        e.sent += packets // 1000
        e.slow_turns += 3
        e.slow_worst_ns = 48_200
        link.rx_frames += packets
        link.rx_bytes += 420 * packets
        link.rx_ring_full += 5 * bad
        link.tx_frames += packets // 1000
        host.received += packets
        host.reasons[lib.XDS_HOST_DELIVERED] += packets - bad
        host.reasons[lib.XDS_HOST_UDP_CHECKSUM] += bad
        host.reasons[lib.XDS_HOST_ARP] += 2
        self.stack.received += packets // 100
        self.stack.reasons[lib.XDS_STACK_TAKEN] += packets // 100
        self.stack.sent += packets // 200
        self.stack.opened += 1
        self.tcp.states[lib.XDS_TCP_ESTABLISHED] = self.stack.connections = self.stack.opened
        self.tcp.tcp.received += packets // 100
        self.tcp.tcp.reasons[lib.XDS_TCP_DELIVERED] += packets // 100
        self.tcp.tcp.retransmits += 3
        self.tcp.tcp.timeouts += 1
        self.channel.messages += 4 * packets
        self.channel.gaps_found += 2
        self.channel.gaps_open = 1
        self.channel.units_filled += 7
        self.channel.units_lost += 1
        for line, won in zip(self.lines, (packets * 3 // 8, packets // 8), strict=True):
            line.packets += packets // 2
            line.won += won
            line.duplicate += packets // 2 - won
        self.books.orders, self.books.levels = 81_234, 9_120
        self.books.reasons[lib.XDS_BOOK_UNKNOWN_ORDER] += 3
        for nanoseconds in range(400, 400 + 8 * 1000, 8):
            self.decoded.record(nanoseconds)
        self.decoded.record(1_200_000)
        for number, histogram in enumerate(self.stages.values()):
            for nanoseconds in range(100, 600):
                histogram.record(nanoseconds * (1 + 2 * number))
        self.order.record(9_000)


def speak(segment: Segment) -> None:
    """Three sessions of WebSocket in an engine's segment; one failed, and a message was too long."""
    words = {"reasons": {1: "masked", 2: "too_long"}}
    ws = segment.struct("session.ws", "struct xds_publish_session_stats", gauges={"live"}, words=words)
    ws.begun, ws.live, ws.opened, ws.failed = 3, 2, 3, 1
    ws.received, ws.delivered, ws.reasons[2] = 12, 11, 1


@contextlib.contextmanager
def shown(root: Path, name: str = "trader") -> Iterator[Shown]:
    """One such engine, in its fourth second."""
    with Segment(name, root=root) as segment:
        engine = Shown(segment)
        engine.second(1_000_000)
        yield engine


def fixed(root: Path, at: float) -> Look:
    """A look at ``root`` as if process 4242 and those after it had them all, at that second."""
    found = look(root)
    engines = {
        label: dataclasses.replace(engine, pid=4242 + number)
        for number, (label, engine) in enumerate(found.engines.items())
    }
    tapes = [
        dataclasses.replace(one, readers=[{**who, "pid": 5150 + n} for n, who in enumerate(one.readers)])
        for one in found.tapes
    ]
    dead = [dataclasses.replace(one, reason=one.reason.replace(str(root), "/dev/shm")) for one in found.dead]
    return dataclasses.replace(
        found, at=at, now_ns=1_700_000_000_000_000_000, engines=engines, tapes=tapes, dead=dead
    )


def watch_of(root: Path, *engines: Any, seconds: int = 2) -> Watch:
    """Watch it for some seconds in which 1.5 million, then 750,000 and so on, packets come."""
    times = iter(range(1000))
    watch = Watch(lambda: fixed(root, float(next(times))))
    watch.look()
    for number in range(seconds):
        for engine in engines:
            engine.second(1_500_000 // (1 + number))
        watch.look()
    return watch
