"""A generated Nasdaq day: ITCH 5.0 messages, and the MoldUDP64 packets that carry them.

The generator is native (``cffi_build/cores/book/day.c``), deterministic across machines, and sound by
construction; ``xdpstack/venues/README.md`` says what it models. ``DEMO``, ``BENCH_500`` and
``BENCH_ALL`` are the fixed parameters that the demo and the benches use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError

__all__ = ["BENCH_500", "BENCH_ALL", "DEMO", "Day", "generate", "messages_of", "packets"]

_LONGEST = 52  # bytes of the longest generated message with its length


@dataclass(frozen=True)
class Day:
    """The parameters of a day; equal parameters give equal bytes.

    ``messages`` counts everything, the opening's directory and trading-state messages too;
    ``orders_alive`` is the level that the day climbs to and then keeps within some 1,024.
    """

    messages: int
    symbols: int
    orders_alive: int
    seed: int = 20_260_105


DEMO = Day(messages=200_000, symbols=500, orders_alive=20_000)
BENCH_500 = Day(messages=10_000_000, symbols=500, orders_alive=100_000)
BENCH_ALL = Day(messages=30_000_000, symbols=8_900, orders_alive=2_000_000)


def generate(day: Day, path: Path | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The whole day: each message behind its big-endian 16-bit length, as in Nasdaq's files.

    In memory, or in the file ``path``, read back as a memmap. About 30 bytes a message.
    Raises ConfigError for parameters that make no day.
    """
    cfg = ffi.new("struct xds_day_config *", vars(day))
    size = lib.xds_day_size(cfg)
    if not size:
        raise ConfigError(
            f"{day}: a day needs 1 to 65,535 symbols, 64 orders or more, 2 messages a symbol and 6 more"
        )
    memory = np.empty(size, np.uint8)
    state = ffi.from_buffer(memory)
    lib.xds_day_init(state, cfg)
    if path is None:
        out = np.empty(
            day.messages * _LONGEST + lib.XDS_DAY_ROOM, np.uint8
        )  # touched only as far as it is used
        written = lib.xds_day_next(state, ffi.from_buffer("uint8_t[]", out), len(out))
        return out[:written]
    chunk = np.empty(1 << 24, np.uint8)
    with path.open("wb") as file:
        while written := lib.xds_day_next(state, ffi.from_buffer("uint8_t[]", chunk), len(chunk)):
            chunk[:written].tofile(file)
    return np.memmap(path, np.uint8, "r")


def messages_of(data: Any) -> Iterator[memoryview]:
    """The messages of a framed stream (bytes, or a numpy array of them), without their lengths."""
    view, at = memoryview(data).cast("B"), 0
    while at < len(view):
        length = view[at] << 8 | view[at + 1]
        yield view[at + 2 : at + 2 + length]
        at += 2 + length


def packets(
    data: Any,
    session: bytes = b"XDPDAY0001",
    start_ns: int = 0,
    first_sequence: int = 1,
    speed: float = 1.0,
    gather_ns: int = 10_000,
    most_messages: int = 40,
    most_bytes: int = 1_400,
) -> Iterator[tuple[int, bytes]]:
    """MoldUDP64 packets of a framed day as (send time in ns, UDP payload).

    A packet takes what falls within ``gather_ns`` of its first message, at most ``most_messages`` and
    ``most_bytes`` of payload; it is sent at the time of its last message, counted from the day's
    first message at ``start_ns`` and divided by ``speed``. Heartbeats and the end of session are the
    player's.
    """
    view = memoryview(data).cast("B")
    name = session.ljust(10)[:10]
    sequence, begin, count, opened, last = first_sequence, 0, 0, 0, 0
    zero: int | None = None
    at = 0

    def packet(end: int) -> tuple[int, bytes]:
        head = name + sequence.to_bytes(8, "big") + count.to_bytes(2, "big")
        return start_ns + int((last - (zero or 0)) / speed), head + bytes(view[begin:end])

    while at < len(view):
        end = at + 2 + (view[at] << 8 | view[at + 1])
        now = int.from_bytes(view[at + 7 : at + 13], "big")
        zero = now if zero is None else zero
        if count and (now - opened > gather_ns or count == most_messages or 20 + end - begin > most_bytes):
            yield packet(at)
            sequence, begin, count = sequence + count, at, 0
        if not count:
            opened = now
        count, last, at = count + 1, now, end
    if count:
        yield packet(at)
