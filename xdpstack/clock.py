"""Time: every stamp of this package is CLOCK_TAI in nanoseconds.

:class:`Clock` reads it from the CPU's counter in about 10 ns from C (an engine shares it);
:func:`tai_ns` asks the system.
"""

from __future__ import annotations

import time
from typing import Any

from xdpstack._ffi import ffi, lib, names

__all__ = ["Clock", "tai_ns", "tai_offset"]


def tai_ns() -> int:
    """CLOCK_TAI now, in ns."""
    return time.clock_gettime_ns(time.CLOCK_TAI)


def tai_offset() -> int:
    """Seconds between CLOCK_TAI and UTC on this host: 37 since 2017, 0 where nobody told the kernel.

    With 0 our stamps are still one time line, but not comparable with another host's.
    """
    return round((tai_ns() - time.time_ns()) / 1e9)


class Clock:
    """CLOCK_TAI from the CPU's counter, disciplined and never decreasing.

    Falls back to ``clock_gettime`` by itself; ``source`` and ``reason`` say so. One thread (an
    engine) at a time uses a clock; it holds no system resource.
    """

    def __init__(self, *, system: bool = False) -> None:
        """Calibrate, which takes about 10 ms; ``system`` asks for ``clock_gettime`` instead."""
        self.pointer: Any = ffi.new("struct xds_clock *")
        lib.xds_clock_init(self.pointer, lib.XDS_CLOCK_SYSTEM if system else lib.XDS_CLOCK_COUNTER)

    def now(self) -> int:
        """CLOCK_TAI in ns, never less than the reading before."""
        return int(lib.xds_clock_now(self.pointer))

    def tick(self) -> None:
        """Compare with the system and correct, now; ``now`` does it by itself once a second."""
        lib.xds_clock_tick(self.pointer)

    @property
    def source(self) -> str:
        """``counter`` or ``system``."""
        return names("xds_clock_source", "XDS_CLOCK_")[self.pointer.source]

    @property
    def reason(self) -> str:
        """``ok``, or why it is not the counter: asked, not_invariant, unstable, no_counter."""
        return names("xds_clock_reason", "XDS_CLOCK_")[self.pointer.reason]

    @property
    def error_ns(self) -> int:
        """What the clock said minus CLOCK_TAI at the last tick, in ns."""
        return int(self.pointer.error_ns)

    @property
    def steps(self) -> int:
        """How often somebody set CLOCK_TAI while we ran."""
        return int(self.pointer.steps)

    @property
    def hertz(self) -> float:
        """The counter's rate, counts a second; 0 without one."""
        return float(1e9 * 2**48 / self.pointer.rate) if self.pointer.rate else 0.0

    def __repr__(self) -> str:
        if self.source == "system":
            return f"<Clock system: {self.reason}>"
        return f"<Clock counter {self.hertz / 1e6:.3f} MHz, error {self.error_ns} ns>"
