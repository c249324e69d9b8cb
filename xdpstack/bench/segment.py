"""tcp-segment: what a small TCP segment in order costs, and the ACK that it makes: frames in, frames out.

Two stacks in this process, joined by Python while they open a connection; then C (``tools/bench/segments.c``)
makes the frames of a batch, times what the receiver does with them, and gives the sender the ACKs. The code
is the extension's own, as the engine calls it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from xdpstack._ffi import check, ffi, lib
from xdpstack.bench.lab import peer
from xdpstack.bench.registry import Context
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.engine import Host
from xdpstack.errors import SetupError
from xdpstack.memory import Arena
from xdpstack.stack import Stack

__all__ = ["segment"]

PAYLOAD = 64
BATCH = 64
"""Segments between two readings of the clock: the engine's burst."""
LONG, LONG_BATCH = 1024, 32
"""Of ``tcp-segment.prepared``: a message, each a segment, and how many lie in the send buffer."""
_CALLS = ("frame", "output", "event", "write", "read")
_ENDS = (("02:00:00:00:00:01", "10.9.0.1"), ("02:00:00:00:00:02", "10.9.0.2"))
_NOW = 1_000_000_000
_PORT = 7000


class _End(ctypes.Structure):
    """``struct bench_end`` of tools/bench/segments.c."""

    _fields_ = [("stack", ctypes.c_void_p), ("id", ctypes.c_int32), ("pad", ctypes.c_int32)]


class _Segments(ctypes.Structure):
    """``struct bench_segments`` there."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _CALLS),
        ("from_", _End),
        ("to", _End),
        ("now", ctypes.c_int64),
        ("batch", ctypes.c_uint32),
        ("rounds", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("whole", ctypes.c_uint32),
        ("samples", ctypes.c_void_p),
        ("segments", ctypes.c_uint64),
        ("acks", ctypes.c_uint64),
        ("send", ctypes.c_void_p),
        ("message", ctypes.c_void_p),
    ]


class Pair:
    """Two hosts with TCP and one open connection, in memory. ``settings``: of both stacks."""

    def __init__(self, **settings: Any) -> None:
        self.arena = Arena()
        self.stacks: list[Stack] = []
        for number, (mac, address) in enumerate(_ENDS):
            host = Host(self.arena, mac=mac, addresses=[f"{address}/24"])
            host.add_neighbour(_ENDS[1 - number][1], _ENDS[1 - number][0])
            self.stacks.append(Stack(self.arena, host, congestion="none", **settings))
        opening, waiting = self.stacks
        listener = waiting.listen(_PORT)
        self.client = opening.connect((_ENDS[1][1], _PORT), _NOW)
        while any([self._carry(opening, waiting), self._carry(waiting, opening)]):
            pass
        self.server = waiting.accept(listener)
        if not self.server:
            raise SetupError("open a connection in memory", "the second stack has none to accept")

    @staticmethod
    def _carry(source: Stack, to: Stack) -> bool:
        frame = source.output(_NOW)
        if frame:
            to.frame(frame, _NOW)
        return bool(frame)

    def close(self) -> None:
        """Give the memory back."""
        self.arena.close()


def _run(
    rounds: int, *, whole: bool = False, message: Any = None, sends: bool = False
) -> tuple[np.ndarray[Any, Any], int]:
    """ns a segment, by batch; how many segments. SetupError where one of them had no ACK. ``sends``: the
    sender's share instead, by write or of a prepared ``message``."""
    pair = Pair()
    try:
        program = ctypes.CDLL(peer("hooks.so"))
        run = program.bench_sends if sends else program.bench_segments
        samples = np.zeros(rounds, np.uint32)
        what = _Segments(now=_NOW, batch=BATCH, rounds=rounds, bytes=PAYLOAD, whole=whole)
        if sends:
            what.batch, what.bytes = LONG_BATCH, LONG
        if message is not None:
            what.message = int(ffi.cast("uintptr_t", message))
        for name in (*_CALLS, "send"):
            address = ffi.cast("uintptr_t", ffi.addressof(lib, f"xds_stack_{name}"))
            setattr(what, name, int(address))
        for end, stack, number in zip(
            (what.from_, what.to), pair.stacks, (pair.client, pair.server), strict=True
        ):
            end.stack, end.id = int(ffi.cast("uintptr_t", stack.core)), number
        what.samples = samples.ctypes.data
        check(run(ctypes.byref(what)), "tcp-segment")
        if what.acks != what.segments:
            raise SetupError(
                "measure a segment and its ACK", f"{what.segments:,} segments had {what.acks:,} ACKs"
            )
        return samples / 1000, int(what.segments)
    finally:
        pair.close()


def _prepared(context: Context, rounds: int) -> Row:
    """A message with four bytes changed, into a frame: prepared, against write() of the same bytes."""
    memory = ffi.new("uint8_t[]", LONG)
    message = ffi.new("struct xds_tcp_message *")
    lib.xds_tcp_prepare(message, memory, LONG)
    ours: list[float] = []
    theirs: list[float] = []
    count = 0
    for number in range(context.rounds()):
        context.say(f"  tcp-segment.prepared round {number + 1} of {context.rounds()}")
        for figures, one in ((ours, message), (theirs, None)):
            samples, segments = _run(rounds, message=one, sends=True)
            figures.append(float(np.median(samples)))
        count += segments
    return row(
        "tcp-segment.prepared",
        median(ours),
        median(theirs),
        "write",
        unit="ns",
        n=count,
        rounds=spread(ours),
        settings={"payload": LONG, "batch": LONG_BATCH, "changed": 4},
    )


def segment(context: Context) -> Iterable[Row]:
    """Frame in, ACK out; and the same with the event taken and the bytes read each time."""
    rounds = 20 if context.quick else 20_000
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        for name, whole in (("tcp-segment", False), ("tcp-segment.read", True)):
            figures, count = [], 0
            for number in range(context.rounds()):
                context.say(f"  {name} round {number + 1} of {context.rounds()}")
                samples, segments = _run(rounds, whole=whole)
                figures.append(float(np.median(samples)))
                count += segments
            yield row(
                name,
                median(figures),
                unit="ns",
                n=count,
                rounds=spread(figures),
                settings={"payload": PAYLOAD, "batch": BATCH, "congestion": "none", "timestamps": True},
            )
        yield _prepared(context, rounds)
    finally:
        os.sched_setaffinity(0, cores)
