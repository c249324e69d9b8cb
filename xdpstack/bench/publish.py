"""publish: what it costs an engine that other processes read its tape.

Turns of a stepped engine, whose frames come by a pipe, are published one after the other by two publishers:
one that nobody has subscribed to, and one that puts the turn's updates and their stages on a tape. The
difference of the neighbours is a turn's price; the call itself, from Python, is in both.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack._ffi import lib
from xdpstack.bench.registry import Context
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.bench.stamp import GROUP
from xdpstack.clock import Clock
from xdpstack.engine import Engine, EngineConfig
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import Subscription, pipe
from xdpstack.publish import Publication, PublishConfig, Subscriber

__all__ = ["publish"]

PACKETS, MESSAGES = 64, 16
_WARM = 32


def _packet(sequence: int, messages: int) -> bytes:
    """One of the plain framing, each message with a price of its own."""
    body = b"".join(struct.pack("<2sHQQQ", b"AB", 1, 100 + k, 10, 0) for k in range(messages))
    return udp_frame(struct.pack("<IHH", sequence, messages, 0) + body, GROUP)


class Pair:
    """An engine, a publisher without subscribers, and one with; ``tape`` is the second one's."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._venue, trader = pipe(4 * PACKETS, 2048)
        stack.enter_context(self._venue)
        stack.enter_context(trader)
        self.engine = stack.enter_context(Engine(EngineConfig(slow=0)))
        self.engine.add_link(trader, promiscuous=True)
        line = Subscription(address=GROUP[0], port=GROUP[1])
        config = FeedConfig(schema="plain", channels=(ChannelConfig(lines=(line,)),), books=False)
        feed = self.engine.add_feed(config)
        stack.callback(self.engine.detach)
        self.tape = folder / "read.tape"
        self.sides = [
            stack.enter_context(Publication([feed.name], PublishConfig(tape=str(path), what=what)))
            for path, what in ((folder / "silent.tape", []), (self.tape, ["updates"]))
        ]

    def turns(self, packets: int, messages: int, count: int) -> np.ndarray[Any, Any]:
        """Counts of the CPU's counter: a row a turn, columns silent and published, alternately first."""
        found = np.zeros((count + _WARM, 2), np.int64)
        now, turn, core, out = (
            lib.xds_clock_counter,
            lib.xds_publisher_turn,
            self.engine.core,
            self.engine._out,
        )
        sequence = 0
        for i in range(count + _WARM):
            self._venue.send([_packet(sequence + k, messages) for k in range(packets)])
            sequence += packets
            self.engine.turn()
            for k in (0, 1) if i % 2 else (1, 0):
                pointer = self.sides[k].pointer
                begin = now()
                turn(pointer, core, out)
                found[i, k] = now() - begin
        return found[_WARM:]


def _read(tape: str, ready: Event, done: Event) -> None:
    with contextlib.suppress(EOFError), Subscriber.open(tape, "bench") as engine:
        ready.set()
        while not done.is_set():
            engine.gather()


@contextlib.contextmanager
def _reader(tape: Path, wanted: bool) -> Iterator[None]:
    """A process that reads the tape all the while, on another core where there is one."""
    if not wanted:
        yield
        return
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_read, args=(str(tape), ready, done))
    process.start()
    try:
        ready.wait(60)
        yield
    finally:
        done.set()
        process.join(60)
        process.kill()
        process.join()


def _row(context: Context, name: str, packets: int, messages: int, each: int, *, read: bool = False) -> Row:
    """The median over rounds of the median difference, of ``each`` things a turn."""
    turns = 40 if context.quick else 4000 // packets + 1000
    ns = 1e9 / (Clock().hertz or 1e9)
    rounds: list[float] = []
    for number in range(context.rounds()):
        context.say(f"  {name} round {number + 1} of {context.rounds()}")
        with contextlib.ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="xdpstack-"))
            )
            pair = Pair(folder, stack)
            with _reader(pair.tape, read):
                found = pair.turns(packets, messages, turns)
        rounds.append(float(np.median(found[:, 1] - found[:, 0])) * ns / each)
    return row(
        name, median(rounds), unit="ns", n=turns * len(rounds) * each, rounds=spread(rounds),
        settings={"packets": packets, "messages_a_packet": messages, "read_meanwhile": read},
    )  # fmt: skip


def publish(context: Context) -> Iterable[Row]:
    """Of a turn with one message, as a quiet feed has them; the same while a process reads the tape; of an
    update in full turns."""
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(cores)})
        yield _row(context, "publish", 1, 1, 1)
        yield _row(context, "publish.burst", PACKETS, MESSAGES, PACKETS * MESSAGES)
        os.sched_setaffinity(0, cores)
        yield _row(context, "publish.read", 1, 1, 1, read=True)
    finally:
        os.sched_setaffinity(0, cores)
