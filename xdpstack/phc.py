"""A NIC's own clock (``/dev/ptpN``), and what its stamps mean in our time line.

    with Phc.of("eth0") as clock:
        clock.tick()                    # once a second or so
        when = clock.to_tai(stamp)      # of a frame that the NIC stamped

The NIC's clock need not be kept by ``phc2sys`` or ``ptp4l``: whatever it shows and however fast it runs, it
is compared with CLOCK_TAI, and a stamp is mapped. Where somebody sets it, the mapping begins anew.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from xdpstack._ffi import ffi, lib, names
from xdpstack.closing import Closing
from xdpstack.errors import SetupError

__all__ = ["Mapping", "Phc", "Sample"]

_ONE = 1 << 48
_HOW = names("xds_phc_how", "XDS_PHC_")
STEP_NS = 1_000_000
"""Beyond it one of the two clocks was set; it did not drift."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One comparison; times in ns."""

    device_ns: int
    """The NIC's clock."""
    tai_ns: int
    spread_ns: int
    """How far apart the readings around it were: its uncertainty; 0 where hardware latched both."""
    how: str
    """``precise``, ``extended`` or ``plain``: the best that the driver has."""

    @property
    def offset_ns(self) -> int:
        """The NIC's clock minus CLOCK_TAI."""
        return self.device_ns - self.tai_ns


class Mapping:
    """From a NIC's clock to CLOCK_TAI, by comparisons; ``pointer`` is a ``struct xds_clock *``."""

    def __init__(self) -> None:
        self.pointer: Any = ffi.new("struct xds_clock *")
        self.samples = self.steps = 0
        self.error_ns = 0
        """What the mapping said minus CLOCK_TAI, at the last comparison."""

    def add(self, device_ns: int, tai_ns: int) -> None:
        """Learn from one comparison."""
        self.samples += 1
        known = self.pointer.rate != 0
        ahead = known and device_ns > self.pointer.anchor
        self.error_ns = self.to_tai(device_ns) - tai_ns if known else 0
        if not ahead or abs(self.error_ns) > STEP_NS:
            self.steps += known
            lib.xds_clock_set(self.pointer, device_ns, tai_ns, _ONE)
        else:
            lib.xds_clock_discipline(self.pointer, device_ns, tai_ns)

    def to_tai(self, device_ns: int) -> int:
        """CLOCK_TAI, ns, of a stamp of that clock, before or behind the last comparison."""
        return int(lib.xds_clock_map(self.pointer, device_ns))

    @property
    def drift_ppm(self) -> float:
        """How much faster than CLOCK_TAI the NIC's clock runs."""
        return (_ONE / self.pointer.rate - 1) * 1e6 if self.pointer.rate else 0.0


class Phc(Closing):
    """The clock of a NIC, open; holds a file."""

    def __init__(self, path: str | Path) -> None:
        """Open ``/dev/ptpN`` and compare once. SetupError: there is none, or it may not be read."""
        self.path = Path(path)
        self.mapping = Mapping()
        self.closed = False
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SetupError(
                f"open the clock {path}",
                error.strerror or "",
                "ethtool -T IFACE names its clock",
                error.errno,
            ) from None
        try:
            self.last = self.tick()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, interface: str, root: Path = Path("/sys/class/net")) -> Phc:
        """The clock of an interface. SetupError: it has none."""
        found = sorted((root / interface / "device/ptp").glob("ptp*"))
        if not found:
            raise SetupError(
                f"open the clock of {interface}", "it has none of its own", "stamps are taken at the XDP hook"
            )
        return cls(Path("/dev") / found[0].name)

    def tick(self) -> Sample:
        """Compare and learn, now: a system call of some microseconds. SetupError: no clock."""
        raw = ffi.new("struct xds_phc_sample *")
        code = lib.xds_phc_sample(self._fd, raw)
        if code < 0:
            raise SetupError(f"read the clock {self.path}", os.strerror(-code), errno=-code)
        self.mapping.add(raw.device_ns, raw.tai_ns)
        self.last = Sample(
            device_ns=raw.device_ns, tai_ns=raw.tai_ns, spread_ns=raw.spread_ns, how=_HOW[raw.how]
        )
        return self.last

    def to_tai(self, device_ns: int) -> int:
        """CLOCK_TAI, ns, of a stamp that the NIC made."""
        return self.mapping.to_tai(device_ns)

    def close(self) -> None:
        """Close the file. Twice is calm."""
        if not self.closed:
            self.closed = True
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"<Phc {self.path} {self.last.how}, {self.last.offset_ns} ns from CLOCK_TAI>"
