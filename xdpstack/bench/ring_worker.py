"""The Python ends of the benches of rings: one process on a core of its own, spinning, SCHED_FIFO.

    python -m xdpstack.bench.ring_worker ask|answer|consume --over tape|iceoryx2 --core N --at FOLDER …

``ask`` sends 64 bytes, waits until they are back, and so on; ``answer`` sends back what comes; ``consume``
takes what a writer of another process left on a tape, as one numpy array a read. ``answer`` and ``consume``
print ``ready``; ``ask`` and ``consume`` end by printing one JSON object, ``answer`` with what asks it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack.bench.worker import PRIORITY, summary
from xdpstack.tape import Tape, TapeReader, make_tape

__all__ = ["PREFIX", "RECORD", "main"]

RECORD = np.dtype([("word", "<u8", 8)])
PREFIX = "xdpstack_bench_"
"""Of what iceoryx2 makes in shared memory."""
NAMES = ("there", "back")
_SECONDS = 50.0
"""No end lives longer."""
_END = 2**63
"""The number that ends the answering side."""


class _Words(ctypes.Structure):
    _fields_ = [("word", ctypes.c_uint64 * 8)]


class _OverTape:
    """A tape each way; ``send`` takes what ``take`` gave."""

    def __init__(self, at: Path, asks: bool) -> None:
        mine, other = NAMES if asks else NAMES[::-1]
        for name in NAMES:
            with contextlib.suppress(Exception):
                make_tape(at / name, 1 << 20, dtype=RECORD)
        self.reader = TapeReader.open(at / other, oldest=True)
        self.tape = Tape.open(at / mine)
        self.message = np.zeros(1, RECORD)
        self._rows, self.send = self.reader.rows, self.tape.write

    def number(self, number: int) -> Any:
        self.message["word"][0, 0] = number
        return self.message

    def take(self) -> Any:
        rows = self._rows()
        while not len(rows):
            rows = self._rows()
        return rows

    @staticmethod
    def number_of(message: Any) -> int:
        return int(message["word"][0, 0])


class _OverIceoryx:
    """A publish-subscribe service each way, in the node's own folder and by a prefix of its own."""

    def __init__(self, at: Path, asks: bool) -> None:
        peers = Path(__file__).resolve().parents[2] / "build" / "peers"
        sys.path.append(str(peers))
        iox2: Any = __import__("iceoryx2")
        iox2.set_log_level(iox2.LogLevel.Error)
        config = iox2.config.default()
        config.global_cfg.prefix = iox2.FileName.new(PREFIX)
        config.global_cfg.root_path = iox2.Path.new(str(at))
        self._node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)
        services = [
            self._node.service_builder(iox2.ServiceName.new(name)).publish_subscribe(_Words).open_or_create()
            for name in (NAMES if asks else NAMES[::-1])
        ]
        self._kept = services
        publisher = services[0].publisher_builder().create()
        self._subscriber = services[1].subscriber_builder().create()
        self.send: Callable[[Any], Any] = publisher.send_copy
        self._receive = self._subscriber.receive
        self.message = _Words()

    def number(self, number: int) -> Any:
        self.message.word[0] = number
        return self.message

    def take(self) -> Any:
        sample = self._receive()
        while sample is None:
            sample = self._receive()
        return sample.payload().contents

    @staticmethod
    def number_of(message: Any) -> int:
        return int(message.word[0])


_OVER: dict[str, Any] = {"tape": _OverTape, "iceoryx2": _OverIceoryx}


def _ask(args: argparse.Namespace) -> dict[str, Any]:
    side = _OVER[args.over](args.at, True)
    clock, samples = time.perf_counter_ns, np.zeros(args.count)
    side.send(side.number(0))
    while side.number_of(side.take()):  # the other end is there, and what it missed it will not answer
        pass
    for number in range(1 - args.skip, args.count + 1):
        message = side.number(number + args.skip)
        begin = clock()
        side.send(message)
        back = side.take()
        end = clock()
        if side.number_of(back) != number + args.skip:
            raise SystemExit(f"message {number + args.skip} came back as {side.number_of(back)}")
        if number > 0:
            samples[number - 1] = (end - begin) / 2
    side.send(side.number(_END))
    return summary(samples)


def _answer(args: argparse.Namespace) -> None:
    side = _OVER[args.over](args.at, False)
    print("ready", flush=True)
    take, send, number_of = side.take, side.send, side.number_of
    while True:
        message = take()
        if number_of(message) == _END:
            return
        send(message)


def _consume(args: argparse.Namespace) -> dict[str, Any]:
    """Time of the reads that gave ``least`` records or more, a record; every array's ends are looked at."""
    clock = time.perf_counter_ns
    spent = records = reads = small = 0
    with TapeReader.open(args.at) as reader:
        print("ready", flush=True)
        take, end_at = reader.rows, time.monotonic() + _SECONDS
        with contextlib.suppress(EOFError):
            while time.monotonic() < end_at:
                begin = clock()
                rows = take()
                end = clock()
                count = len(rows)
                if count >= args.least:
                    spent += end - begin
                    records += count
                    reads += 1
                    first, last = rows["word"][0, 0], rows["word"][-1, 7]
                    if last - first != count - 1:
                        raise SystemExit(f"{count} records from {first} to {last}")
                small += 0 < count < args.least
        return {
            "n": records,
            "ns": spent / max(records, 1),
            "a_read": records / max(reads, 1),
            "small_reads": small,
            "lost": reader.lost,
        }


def main(argv: list[str] | None = None) -> int:
    """Run one end; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("ask", "answer", "consume"))
    parser.add_argument("--over", choices=sorted(_OVER), default="tape")
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--at", type=Path, required=True, help="a folder of the two; consume: the tape")
    parser.add_argument("--count", type=int, default=20_000, help="round trips")
    parser.add_argument("--skip", type=int, default=2000, help="round trips before, not timed")
    parser.add_argument("--least", type=int, default=64, help="consume: records of a read that counts")
    args = parser.parse_args(argv)
    signal.alarm(int(_SECONDS) + 5)  # what spins for ever is ended by it
    os.sched_setaffinity(0, {args.core})
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    if args.mode == "answer":
        _answer(args)
        return 0
    print(json.dumps(_ask(args) if args.mode == "ask" else _consume(args)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
