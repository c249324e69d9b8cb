"""What an engine's process may hold for its speed while it runs: locked memory, a bound on wake-ups.

Both belong to the process: the kernel takes them back when it ends, however it ends. The core and the
real-time priority of an engine's thread are set as it starts (:meth:`xdpstack.engine.Engine.start`); what is
the NIC's (interrupts, deferral) has keys of its own under ``[ports.NAME]`` and a journal.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import struct
import threading
from pathlib import Path

from xdpstack.closing import Closing
from xdpstack.errors import ConfigError, SetupError

__all__ = ["Placed", "Placement", "locked_bytes"]

DMA_LATENCY = Path("/dev/cpu_dma_latency")
_CURRENT, _FUTURE = 1, 2  # MCL_ of linux/mman.h
_libc = ctypes.CDLL(None, use_errno=True)
_guard = threading.Lock()
_locks = 0  # how many in this process hold its memory locked


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How the engines of a program are to run; keys of ``[engine]``."""

    rt_priority: int = 0
    """SCHED_FIFO, 1 to 99; 0: an ordinary thread."""
    lock_memory: bool = False
    """No page of the process leaves memory, and what it maps is there at once: mlockall(2)."""
    cpu_latency: float | None = None
    """Seconds that an idle core may take to wake while it runs, 0.0 for the least; None: no wish."""

    def __post_init__(self) -> None:
        if type(self.rt_priority) is not int or not 0 <= self.rt_priority <= 99:
            raise ConfigError(f"rt_priority: wanted 0 to 99, not {self.rt_priority!r}")
        if type(self.lock_memory) is not bool:
            raise ConfigError(f"lock_memory: wanted true or false, not {self.lock_memory!r}")
        wish = self.cpu_latency
        if wish is not None and (type(wish) not in (int, float) or not 0 <= wish <= 1):
            raise ConfigError(f"cpu_latency: wanted seconds from 0 to 1, not {wish!r}")


def locked_bytes() -> int:
    """How much of this process's memory is locked."""
    match = re.search(r"^VmLck:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(match[1]) << 10 if match else 0


class Placed(Closing):
    """A placement in force: until it is closed, or its process ends. ``notes``: what was, and what is."""

    def __init__(self, wanted: Placement, *, dma_latency: Path = DMA_LATENCY) -> None:
        """Lock memory and hold the wake-ups, as ``wanted``. SetupError: not allowed; nothing is held."""
        self.notes: list[str] = []
        self._fd = -1
        self._locks = False
        try:
            if wanted.cpu_latency is not None:
                self._hold(dma_latency, round(wanted.cpu_latency * 1e6))
            if wanted.lock_memory:
                self._lock()
        except BaseException:
            self.close()
            raise

    def _hold(self, path: Path, microseconds: int) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            before = os.pread(self._fd, 4, 0)
            os.write(self._fd, struct.pack("i", microseconds))
            after = os.pread(self._fd, 4, 0)
        except OSError as error:
            what = f"hold wake-ups of cores at {microseconds} µs"
            raise SetupError(what, f"{path}: {error.strerror}", "run it by sudo", error.errno) from None
        was, now = (f"{struct.unpack('i', raw)[0]:,}" if len(raw) == 4 else "?" for raw in (before, after))
        self.notes.append(f"cores wake within {now} µs while this runs (before: {was} µs)")

    def _lock(self) -> None:
        global _locks
        before = locked_bytes()
        with _guard:
            if _locks == 0 and _libc.mlockall(_CURRENT | _FUTURE):
                code = ctypes.get_errno()
                _libc.munlockall()  # what was locked before it met the limit
                remedy = "ulimit -l unlimited, or CAP_IPC_LOCK"
                raise SetupError("lock the process's memory", os.strerror(code), remedy, code)
            _locks += 1
            self._locks = True
        now = locked_bytes()
        self.notes.append(f"memory is locked: {now >> 20:,} MiB (before: {before >> 20:,} MiB)")

    def close(self) -> None:
        """Let go. Memory is unlocked when the last of the process does."""
        global _locks
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._locks:
            self._locks = False
            with _guard:
                _locks -= 1
                if _locks == 0:
                    _libc.munlockall()

    def __repr__(self) -> str:
        held = [word for word, on in (("memory", self._locks), ("wake-ups", self._fd >= 0)) if on]
        return f"<Placed: {', '.join(held) or 'nothing held'}>"
