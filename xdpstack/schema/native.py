"""One C decoder from Python, block by block: for tools and tests. The engine calls the same C itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from xdpstack import _ffi
from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError
from xdpstack.schema import plugin

__all__ = ["Instrument", "NativeDecoder", "decoders", "find"]


@dataclass(frozen=True, slots=True)
class Instrument:
    """One entry of a decoder's instrument table; ``scale`` is decimals, ``depth`` 0 means all levels."""

    index: int
    symbol: str
    key: int
    scale: int
    depth: int
    implied_depth: int
    flags: int


def decoders() -> list[str]:
    """The decoders in this build, by name."""
    return [ffi.string(lib.xds_decoder_at(i).name).decode() for i in range(lib.xds_decoder_count())]


def find(name: str | Path) -> Any:
    """The ``const struct xds_decoder *`` of a name, or of the path of a built one (``venue.so``).

    Raises ConfigError for an unknown name, SetupError for a file that cannot be loaded.
    """
    if Path(name).suffix == ".so":
        return plugin.load(name)
    decoder = lib.xds_decoder_find(str(name).encode())
    if decoder == ffi.NULL:
        raise ConfigError(f"there is no decoder {str(name)!r}; known: {', '.join(decoders())}")
    return decoder


class NativeDecoder:
    """A decoder with memory of its own. ``name`` is one of :func:`decoders`, or the path of a built one.

    Raises ConfigError for an unknown name, SetupError for a file that cannot be loaded.
    """

    def __init__(self, name: str | Path, max_instruments: int = 10_000, cap: int = 65_536) -> None:
        self.c = find(name)
        config = ffi.new("struct xds_decoder_config *", {"max_instruments": max_instruments})
        size = lib.xds_decoder_size(self.c, config)
        if not size:
            raise ConfigError(f"max_instruments = {max_instruments} is out of range")
        self.memory = ffi.new("char[]", size + 64)
        _ffi.check(lib.xds_decoder_init(self.c, self.memory, config), "decoder init")
        self._updates = ffi.new("struct xds_update[]", cap)
        self._messages = ffi.new("struct xds_message[]", cap)
        self._sink = ffi.new("struct xds_sink *", {"updates": self._updates, "messages": self._messages})
        self._sink.cap_updates = self._sink.cap_messages = cap

    @property
    def types(self) -> list[str]:
        """Message names by type index."""
        return [ffi.string(self.c.types[i].name).decode() for i in range(self.c.n_types)]

    def block(
        self,
        data: bytes | bytearray | memoryview,
        *,
        count: int = 0xFFFF,
        seq: int = 0,
        rx_ns: int = 0,
        line: int = 0,
        flags: int = 0,
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Decode one block of framed messages: (updates, messages), views until the next call.

        ``messages["data"]`` are addresses into ``data``.
        """
        self._data = ffi.from_buffer(data)  # kept: the messages point into it
        block = ffi.new("struct xds_block *")
        block.data, block.len = ffi.cast("uint8_t *", self._data), len(data)
        block.count, block.seq, block.rx_ns, block.line, block.flags = count, seq, rx_ns, line, flags
        self._sink.n_updates = self._sink.n_messages = 0
        lib.xds_decoder_block(self.c, self.memory, block, self._sink)
        return (
            _ffi.view(self._updates, self._sink.n_updates, "struct xds_update"),
            _ffi.view(self._messages, self._sink.n_messages, "struct xds_message"),
        )

    def offsets(self, messages: np.ndarray[Any, Any]) -> list[int]:
        """Where the messages of the last block lie in its bytes."""
        base = int(ffi.cast("uintptr_t", self._data))
        return [int(address) - base for address in messages["data"]]

    def stats(self) -> dict[str, Any]:
        """Counters: blocks, bytes, messages, updates, ``reasons`` and ``by_type`` by name (those not 0)."""
        raw = ffi.new("struct xds_decoder_stats *")
        lib.xds_decoder_stats(self.c, self.memory, raw)
        words = _ffi.names("xds_decode_reason", "XDS_DECODE_")
        plain = ("blocks", "bytes", "messages", "updates", "instrument_gaps", "superseded")
        return {
            **{name: int(getattr(raw, name)) for name in plain},
            "reasons": {words[i]: int(n) for i, n in enumerate(raw.reasons) if n},
            "by_type": {name: int(raw.by_type[i]) for i, name in enumerate(self.types) if raw.by_type[i]},
        }

    def instruments(self) -> Iterator[Instrument]:
        """The instrument table as it is now."""
        for i in range(lib.xds_decoder_instruments(self.c, self.memory)):
            entry = lib.xds_decoder_instrument(self.c, self.memory, i)
            if entry != ffi.NULL:
                symbol = ffi.string(entry.symbol, 24).decode("latin-1")
                yield Instrument(
                    entry.index, symbol, entry.key, entry.scale, entry.depth, entry.implied_depth, entry.flags
                )

    def __enter__(self) -> NativeDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink = self._updates = self._messages = self.memory = None
