"""A tap on one TCP connection: each of its frames, whichever way it goes, in a pcapng with nanosecond stamps.

    with node.connect("192.0.2.1", 7000) as peer, peer.tap("orders.pcapng"):
        ...
    node.connect("192.0.2.1", 7000, tap="orders.pcapng")  # from its first SYN, until it is closed

Interfaces ``in`` and ``out`` say the way. The turn copies into a ring and never waits; a thread writes the
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdpstack._ffi import check, ffi, lib
from xdpstack.closing import Closing
from xdpstack.errors import CapacityError, ConfigError, SetupError
from xdpstack.port import PcapWriter
from xdpstack.ring import Ring

if TYPE_CHECKING:
    from xdpstack.streams import Streams

__all__ = ["Drained", "Tap"]

_RING_BYTES = 4 << 20


class Drained(Closing):
    """A capture that a thread writes out of a ring: its figures and its end. Opened by who inherits it."""

    path: Path
    what, pieces = "capture", "frames"
    _writer: PcapWriter
    _ring: Ring
    _ring_bytes: int
    _core: Any
    _closed, _ended = False, (0, 0)

    @property
    def written(self) -> int:
        """Records in the file so far: frames, and in a recording turn blocks."""
        return self._ended[0] if self._closed else int(lib.xds_recorder_written(self._core))

    @property
    def lost(self) -> int:
        """Records that found the ring full: with any, the file is incomplete."""
        return self._ended[1] if self._closed else int(lib.xds_recorder_lost(self._core))

    def _untie(self) -> None:
        """Nothing more comes into the ring."""
        raise NotImplementedError

    def close(self) -> None:
        """Drain and finish the file; twice is calm. CapacityError: it is incomplete; OSError: not written."""
        if self._closed:
            return
        self._untie()
        code = lib.xds_recorder_stop(self._core)
        self._ended = self.written, self.lost
        self._closed = True  # the core's memory may go from here on
        self._writer.close()
        self._ring.close()
        if code == lib.XDS_ECAPACITY:
            raise CapacityError(
                f"{self.path}: {self.lost} {self.pieces} did not fit the ring of {self._ring_bytes:,} bytes: "
                f"the {self.what} is incomplete"
            )
        check(code, f"{self.path}: the {self.what} failed")


class Tap(Drained):
    """Copies a connection's frames from construction to :meth:`close`, those after the connection's own too.

    Raises ConfigError where it is named otherwise, SetupError where it cannot be made, CapacityError where
    the port has 4 taps already."""

    def __init__(self, streams: Streams, number: int, path: str | Path) -> None:
        self.path, self._streams = Path(path), streams
        if ".pcapng" not in self.path.suffixes:
            raise ConfigError(f"tap into {path}: name it *.pcapng, then .gz or .zst where packed")
        try:
            self._writer = PcapWriter(path, clock="tai", snaplen=1 << 17)
        except OSError as error:
            raise SetupError(f"tap into {path}", error.strerror or str(error), errno=error.errno) from None
        for way in ("in", "out"):
            self._writer.add_interface(way)
        self._ring, self._ring_bytes = Ring(_RING_BYTES), _RING_BYTES
        self._memory = ffi.new("uint8_t[]", lib.xds_recorder_size() + 64)  # ours: the thread outlives no tap
        address = int(ffi.cast("uintptr_t", self._memory))
        self._core = ffi.cast("struct xds_recorder *", -(-address // 64) * 64)
        check(lib.xds_recorder_init(self._core, self._ring.pointer, self._writer.handle, 2), "tap")
        check(lib.xds_recorder_start(self._core, -1), "tap's thread")
        streams.taps.add(self)
        code = lib.xds_engine_tap(streams.engine.core, streams.index, number, self._core)
        if code < 0:
            self.close()
            if code == lib.XDS_ECAPACITY:
                raise CapacityError(f"tap into {path}: {lib.XDS_TAPS} connections of this port have one")
            check(code, f"tap into {path}")

    def _untie(self) -> None:
        if not self._streams.engine.arena.closed:
            lib.xds_engine_untap(self._streams.engine.core, self._streams.index, self._core)
        self._streams.taps.discard(self)

    def __repr__(self) -> str:
        return f"<Tap {self.path}: {self.written} frames, {self.lost} lost>"
