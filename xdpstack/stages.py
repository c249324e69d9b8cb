"""Six moments in the life of a message: received, the loop woke, TLS read start and end, parsed, and the
callback was entered.

They lie beside the messages (:attr:`Batch.stages`, ``hooks.stages``) and in histograms of mapped memory, one
a moment, named by the moment that ends the interval: ``feed.NAME.stage.wake`` is from receive to wake.
``feed.NAME.stage.total`` is all of it. The layout is ``cffi_build/xds/stages.h``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xdpstack._ffi import ffi, lib, names
from xdpstack.errors import ConfigError
from xdpstack.stats import Histogram, Segment

__all__ = ["CONNECTION", "ENDPOINT", "FEED", "STAGES", "ConnectionStages", "StageHists", "Stages"]

STAGES = {value: word for value, word in names("xds_stage", "XDS_STAGE_").items() if word != "xds_stages"}
"""The histograms: total, wake, tls_start, tls_end, parsed, callback."""
FEED = ("wake", "parsed", "callback", "total")
"""Those that a feed has: its packets are not encrypted."""
CONNECTION = ("wake", "tls_start", "tls_end", "parsed", "callback", "total")
"""Those that a TCP connection has; ``parsed`` where a hook, a session, or who calls ``Connection.message()``,
frames; ``tls_start`` and ``tls_end`` of a session over TLS, once a record."""

ENDPOINT = ("wake", "callback", "total")
"""Those that a UDP endpoint has."""
_UNITS = {
    "srtt_ns": "ns", "rtt_min_ns": "ns", "cwnd": "bytes", "in_flight": "bytes", "outstanding": "bytes",
    "lost": "bytes", "delivery_rate": "bytes/s",
}  # fmt: skip


class Stages(NamedTuple):
    """When a datagram, or the bytes of a connection, passed each stage, CLOCK_TAI ns; 0: no such moment."""

    receive: int
    wake: int
    tls_start: int
    tls_end: int
    parsed: int
    callback: int


class StageHists:
    """The histograms of one feed's or connection's stages, in a segment, or (None) in memory of their own."""

    def __init__(self, segment: Segment | None, prefix: str, stages: Sequence[str], *, warm_up: int) -> None:
        """``warm_up``: packets that are left out at first, counted in ``PREFIX.stage.warm_up``."""
        self.by_stage: dict[str, Histogram] = {}
        self.pointer: Any = ffi.new("struct xds_stage_hists *")
        for number, word in STAGES.items():
            if word in stages:
                name = f"{prefix}.stage.{word}"
                self.by_stage[word] = found = segment.hist(name) if segment else Histogram()
                self.pointer.of[number] = found.pointer
        self._left_out = (
            segment.counter(f"{prefix}.stage.warm_up", "packets") if segment else ffi.new("uint64_t *")
        )
        self.pointer.warm_up, self.pointer.leave_out = self._left_out, warm_up

    @property
    def left_out(self) -> int:
        """Packets so far that were left out as a warm-up."""
        return int(self._left_out[0])


class ConnectionStages:
    """Histograms of so many connections, ``conn.0.stage.wake`` …, and of all others, ``conn.rest.stage.…``.

    A place is a connection's from its opening until it is gone; ``conn.0.id``, ``.port``, ``.local_port``,
    ``.remote_port``, ``.remote_high`` and ``.remote_low`` say whose it is, ``.connections`` how many had it;
    ``.state`` (:data:`xdpstack.stack.STATES`), ``.srtt_ns``, ``.rtt_min_ns``, ``.cwnd``, ``.in_flight``,
    ``.outstanding``, ``.lost`` (bytes), ``.retransmits`` and ``.delivery_rate`` (bytes a second; of kernel
    sockets) how it does.
    """

    def __init__(self, segment: Segment | None, places: int, *, warm_up: int) -> None:
        """``warm_up``: events with bytes, of a connection, that are left out at first. ConfigError."""
        if not 0 <= places <= lib.XDS_STAGE_CONNS_MAX:
            most = lib.XDS_STAGE_CONNS_MAX
            raise ConfigError(f"stage_connections: wanted 0 to {most}, not {places}")
        self.count = places + 1
        self.raw: Any = ffi.new("struct xds_stage_conn[]", self.count)
        self.places: list[StageHists] = []
        self._keep: list[Any] = []
        for number in range(self.count):
            prefix = f"conn.{number}" if number < places else "conn.rest"
            ctype = "struct xds_stage_conn_words"
            gauges = {field for field, _ in ffi.typeof(ctype).fields} - {"connections"}
            words = (
                segment.struct(prefix, ctype, gauges=gauges, units=_UNITS)
                if segment
                else ffi.new(f"{ctype} *")
            )
            own = number < places
            hists = StageHists(segment, prefix, CONNECTION, warm_up=0 if own else warm_up)
            one = self.raw[number]
            one.hists, one.words, one.warm_up = hists.pointer[0], words, warm_up
            self.places.append(hists)
            self._keep.append(words)
