"""Six moments in the life of a message: received, the loop woke, TLS read start and end, parsed, and the
callback was entered.

They lie beside the messages (:attr:`Batch.stages`, ``hooks.stages``) and in histograms of mapped memory, one
a moment, named by the moment that ends the interval: ``feed.NAME.stage.wake`` is from receive to wake.
``feed.NAME.stage.total`` is all of it. The layout is ``cffi_build/xds/stages.h``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xdpstack._ffi import ffi, names
from xdpstack.stats import Histogram, Segment

__all__ = ["FEED", "STAGES", "StageHists"]

STAGES = {value: word for value, word in names("xds_stage", "XDS_STAGE_").items() if word != "xds_stages"}
"""The histograms: total, wake, tls_start, tls_end, parsed, callback."""
FEED = ("wake", "parsed", "callback", "total")
"""Those that a feed has: its packets are not encrypted."""


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
