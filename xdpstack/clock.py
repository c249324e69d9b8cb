"""Time: every stamp of this package is CLOCK_TAI in nanoseconds.

:class:`Clock` reads it from the CPU's counter in about 10 ns from C (an engine shares it);
:func:`tai_ns` asks the system.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

from xdpstack._ffi import check, ffi, lib, names

__all__ = ["Clock", "Health", "SystemClock", "calibrate", "system_clock", "tai_ns", "tai_offset"]

SOURCES = Path("/sys/devices/system/clocksource/clocksource0")
_STATUS = {
    0x0001: "pll", 0x0002: "pps-frequency", 0x0004: "pps-time", 0x0008: "fll", 0x0010: "insert-leap",
    0x0020: "delete-leap", 0x0040: "unsynchronized", 0x0080: "hold", 0x0100: "pps-signal",
    0x0200: "pps-jitter", 0x0400: "pps-wander", 0x0800: "pps-error", 0x1000: "clock-error",
}  # fmt: skip


def tai_ns() -> int:
    """CLOCK_TAI now, in ns."""
    return time.clock_gettime_ns(time.CLOCK_TAI)


def tai_offset() -> int:
    """Seconds between CLOCK_TAI and UTC on this host: 37 since 2017, 0 where nobody told the kernel.

    With 0 our stamps are still one time line, but not comparable with another host's.
    """
    return round((tai_ns() - time.time_ns()) / 1e9)


def _sources(which: str, root: Path) -> list[str]:
    try:
        return (root / f"{which}_clocksource").read_text().split()
    except OSError:
        return []


def distrusted(root: Path = SOURCES) -> bool:
    """Whether the kernel took the TSC off its list of clock sources, as it does once it found it unstable."""
    there = _sources("available", root)
    return platform.machine() == "x86_64" and bool(there) and "tsc" not in there


def calibrate(pointer: Any, *, system: bool = False, root: Path = SOURCES) -> None:
    """Set up a ``struct xds_clock *``: by the counter where it and the kernel allow it, else the system."""
    why = lib.XDS_CLOCK_ASKED if system else lib.XDS_CLOCK_DISTRUSTED if distrusted(root) else 0
    lib.xds_clock_init(pointer, lib.XDS_CLOCK_SYSTEM if why else lib.XDS_CLOCK_COUNTER)
    if why:
        pointer.reason = why


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SystemClock:
    """What the kernel says of its own clock, times in ns. Source: adjtimex(2)."""

    synchronized: bool
    """NTP, PTP (phc2sys) or a pulse keeps it; which of them the kernel does not know."""
    offset_ns: int
    """That it still works off."""
    est_error_ns: int
    max_error_ns: int
    frequency_ppb: int
    """How much faster than its hardware it was told to run."""
    tai_offset_s: int
    """CLOCK_TAI less UTC, 0 where nobody told."""
    status: tuple[str, ...]
    clocksource: str
    """What the kernel reads; empty where it does not say."""

    def __str__(self) -> str:
        kept = "not synchronized"
        if self.synchronized:
            kept = f"synchronized, error about {self.est_error_ns / 1000:,.0f} µs"
            kept += f", {self.max_error_ns / 1000:,.0f} µs at most"
        tai = f"CLOCK_TAI {self.tai_offset_s} s ahead of UTC"
        if not self.tai_offset_s:
            tai = "nobody told it how far CLOCK_TAI is from UTC"
        return f"{kept}; {tai}; clock source {self.clocksource or 'unknown'}"


def system_clock(root: Path = SOURCES) -> SystemClock:
    """Ask the kernel, now."""
    raw = ffi.new("struct xds_clock_system *")
    check(lib.xds_clock_system(raw), "adjtimex")
    return SystemClock(
        synchronized=bool(raw.synchronized),
        offset_ns=raw.offset_ns,
        est_error_ns=raw.est_error_ns,
        max_error_ns=raw.max_error_ns,
        frequency_ppb=raw.frequency_ppb,
        tai_offset_s=raw.tai_s,
        status=tuple(word for bit, word in _STATUS.items() if raw.status & bit),
        clocksource=next(iter(_sources("current", root)), ""),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a clock does; times in ns."""

    source: str
    reason: str
    offset_ns: int
    """What it said minus CLOCK_TAI, at the last correction."""
    offset_max_ns: int
    """The largest of these, either way; what setting CLOCK_TAI did is left out and counted in ``steps``."""
    drift_ppm: float
    """How much faster (negative: slower) the counter runs than when its rate was known well."""
    spread_ns: int
    """How well the last comparison with CLOCK_TAI is known."""
    corrections: int
    steps: int
    last_ns: int
    """CLOCK_TAI of the last correction."""
    system: SystemClock


class Clock:
    """CLOCK_TAI from the CPU's counter, disciplined and never decreasing.

    Falls back to ``clock_gettime`` by itself; ``source`` and ``reason`` say so. One thread (an
    engine) at a time uses a clock; it holds no system resource.
    """

    def __init__(self, *, system: bool = False, sources: Path = SOURCES) -> None:
        """Calibrate, which takes about 10 ms; ``system`` asks for ``clock_gettime`` instead. ``sources``:
        where the kernel lists its clock sources."""
        self.pointer: Any = ffi.new("struct xds_clock *")
        calibrate(self.pointer, system=system, root=sources)

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
        """``ok``, or why it is not the counter: asked, not_invariant, no_counter, unstable
        (calibrations disagree), distrusted (the kernel found the TSC unstable)."""
        return names("xds_clock_reason", "XDS_CLOCK_")[self.pointer.reason]

    @property
    def error_ns(self) -> int:
        """What the clock said minus CLOCK_TAI at the last tick, in ns."""
        return int(self.pointer.error_ns)

    @property
    def steps(self) -> int:
        """How often somebody set CLOCK_TAI while we ran."""
        return int(self.pointer.steps)

    def health(self) -> Health:
        """Offset, drift, corrections, and what the kernel says of its own clock."""
        raw = ffi.new("struct xds_clock_stats *")
        lib.xds_clock_stats(self.pointer, raw)
        return Health(
            source=self.source,
            reason=self.reason,
            offset_ns=raw.ahead_ns - raw.behind_ns,
            offset_max_ns=raw.error_max_ns,
            drift_ppm=(raw.fast_ppb - raw.slow_ppb) / 1000,
            spread_ns=raw.spread_ns,
            corrections=raw.ticks,
            steps=raw.steps,
            last_ns=raw.tick_ns,
            system=system_clock(),
        )

    @property
    def hertz(self) -> float:
        """The counter's rate, counts a second; 0 without one."""
        return float(1e9 * 2**48 / self.pointer.rate) if self.pointer.rate else 0.0

    def __repr__(self) -> str:
        if self.source == "system":
            return f"<Clock system: {self.reason}>"
        return f"<Clock counter {self.hertz / 1e6:.3f} MHz, error {self.error_ns} ns>"
