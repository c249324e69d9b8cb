"""A NIC's own clock (``/dev/ptpN``), and what its stamps mean in our time line.

    with Phc.of("eth0") as clock:
        clock.tick()                    # once a second or so
        when = clock.to_tai(stamp)      # of a frame that the NIC stamped

The NIC's clock need not be kept by ``phc2sys`` or ``ptp4l``: whatever it shows and however fast it runs, it
is compared with CLOCK_TAI, and a stamp is mapped. Where somebody sets it, the mapping begins anew.

A :class:`PhcKeeper` compares again and again on a thread of its own, for ports that map the stamps of what
they receive (``port.map_stamps``). A node has one for each interface whose stamps it asks for
(:class:`NicTimes`).
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdpstack._ffi import ffi, lib, names
from xdpstack.closing import Closing
from xdpstack.errors import SetupError
from xdpstack.stats import Segment

__all__ = ["Mapping", "NicTimes", "Phc", "PhcKeeper", "Sample"]

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


class PhcKeeper(Closing):
    """A NIC's clock that is compared with CLOCK_TAI as long as this is open: a few times in the first second,
    then once a second, on a thread of its own. ``face`` is the ``struct xds_clock_face *`` that ports map by,
    from any thread; ``words`` the ``struct xds_phc_stats *`` with the clock's health."""

    def __init__(self, clock: Any, words: Any = None) -> None:
        """``clock``: a :class:`Phc`, given; closed with this. ``words``: where its health is shown."""
        self.clock = clock
        self.face: Any = ffi.new("struct xds_clock_face *")
        self.words: Any = ffi.new("struct xds_phc_stats *") if words is None else words
        self._ended = threading.Event()
        self._show()
        self._thread = threading.Thread(target=self._keep, name="xdpstack-phc", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._ended.wait(self.clock.mapping.pointer.wait_ns / 1e9):
            try:
                self.clock.tick()
            except SetupError:  # its interface is gone, or the card does not answer: what is known goes on
                self.words.failed += 1
            else:
                self._show()

    def _show(self) -> None:
        mapping, last, words = self.clock.mapping, self.clock.last, self.words
        lib.xds_clock_show(mapping.pointer, self.face)
        ppb, error = round(mapping.drift_ppm * 1000), abs(mapping.error_ns)
        words.ahead_ns, words.behind_ns = max(0, last.offset_ns), max(0, -last.offset_ns)
        words.fast_ppb, words.slow_ppb = max(0, ppb), max(0, -ppb)
        words.error_ns, words.spread_ns = error, last.spread_ns
        if error <= STEP_NS:  # beyond it a clock was set: counted as a step
            words.error_max_ns = max(words.error_max_ns, error)
        words.comparisons, words.steps, words.last_ns = mapping.samples, mapping.steps, last.tai_ns

    def close(self) -> None:
        """End the thread and close the clock; ``face`` stays as it is. Twice is calm."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.clock.close()

    def __repr__(self) -> str:
        return f"<PhcKeeper {self.clock!r}>"


class NicTimes(Closing):
    """The clocks of the interfaces whose stamps a node asks for, by name; their health as ``phc.IFACE.…`` in
    the engine's segment, where there is one."""

    def __init__(self, segment: Segment | None = None, clock_of: Callable[[str], Any] = Phc.of) -> None:
        self._segment, self._clock_of = segment, clock_of
        self._kept: dict[str, PhcKeeper] = {}
        self._words: dict[str, Any] = {}
        self.notes: list[str] = []
        """Sentences about interfaces whose stamps cannot be mapped."""

    def map(self, port: Any, interface: str, *, anew: bool = False) -> None:
        """Have ``port`` map the stamps of ``interface``. Where its clock cannot be read, a stamp by the NIC
        counts as refused and the frame has the time of the call: it is never another time line's. ``anew``:
        the interface was made anew, and its clock with it."""
        if anew and interface in self._kept:
            self._kept.pop(interface).close()
        if interface not in self._kept:
            try:
                clock = self._clock_of(interface)
            except SetupError as error:
                self.notes.append(f"{interface}: stamps of its own could not be mapped: {error}")
                port.map_stamps(None)
                return
            self._kept[interface] = PhcKeeper(clock, self._room(interface))
        port.map_stamps(self._kept[interface])

    def _room(self, interface: str) -> Any:
        if self._segment is not None and interface not in self._words:
            fields = [name for name, _ in ffi.typeof("struct xds_phc_stats").fields]
            levels = frozenset(fields) - {"comparisons", "steps", "failed"}
            units = {word: word.rpartition("_")[2] for word in levels}
            self._words[interface] = self._segment.struct(
                f"phc.{interface}", "struct xds_phc_stats", gauges=levels, units=units
            )
        return self._words.get(interface)

    def stats(self) -> dict[str, dict[str, int]]:
        """By interface the words of ``struct xds_phc_stats``."""
        fields = [name for name, _ in ffi.typeof("struct xds_phc_stats").fields]
        return {
            name: {field: int(getattr(kept.words, field)) for field in fields}
            for name, kept in self._kept.items()
        }

    def close(self) -> None:
        """End the threads. Twice is calm."""
        while self._kept:
            self._kept.popitem()[1].close()
