"""stamp: what the stages of a message cost: the turns of two engines that do the same, one of them without.

Frames come by a pipe, so the kernel has no part in it. Turns alternate, and each pair of neighbours gives a
difference; the engine itself says how long a turn took, from its packets to sending. Of a stream, messages
are two bytes of length and a body, framed by a native hook; or a session's, of WebSocket and of FIX.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from xdpstack._ffi import ffi, lib
from xdpstack.bench.breakdown import between, merged, row_key
from xdpstack.bench.lab import peer
from xdpstack.bench.registry import Context
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.engine import Engine, EngineConfig
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import Subscription, pipe
from xdpstack.stages import StageHists
from xdpstack.streams import Streams

__all__ = ["BODY", "ENDS", "PORT", "Hooks", "Stream", "stamp"]

GROUP = ("239.1.1.1", 26477)
PACKETS, MESSAGES = 64, 16
"""Of a turn; of a packet."""
BODY = 64
"""Bytes of a stream's message, the two of its length among them."""
ENDS = (("02:00:00:00:00:01", "10.9.0.1"), ("02:00:00:00:00:02", "10.9.0.2"))
PORT = 7000
_WARM = 32
"""Turns before the first that counts: caches, the histograms' warm-up, the congestion window."""


class Hooks:
    """The C part, with a state that its counters lie in."""

    def __init__(self) -> None:
        self._program = ctypes.CDLL(peer("hooks.so"))
        self.state = ffi.new("uint64_t[]", 64)

    def pointer(self, name: str, form: str) -> Any:
        """One of its functions."""
        address = ctypes.cast(getattr(self._program, name), ctypes.c_void_p).value
        return ffi.cast(form, address)


class _Feed:
    """An engine with a feed and a hook, whose packets are put into its pipe."""

    def __init__(self, stages: bool, hooks: Hooks, stack: contextlib.ExitStack) -> None:
        self._venue, trader = pipe(4 * PACKETS, 2048)
        stack.enter_context(self._venue)
        stack.enter_context(trader)
        self.engine = stack.enter_context(Engine(EngineConfig(stages=stages, slow=0)))
        self.engine.add_link(trader, promiscuous=True)
        line = Subscription(address=GROUP[0], port=GROUP[1])
        config = FeedConfig(schema="plain", channels=(ChannelConfig(lines=(line,)),), books=False)
        self.engine.add_feed(config)
        self.engine.set_hook(hooks.pointer("bench_hook_updates", "xds_hook"), hooks.state)
        stack.callback(self.engine.detach)

    def fill(self, frames: list[bytes]) -> None:
        self._venue.send(frames)

    def settle(self) -> None:
        """Nothing is left to do after a turn."""

    def hists(self) -> list[StageHists]:
        """Of the stages that were stamped."""
        return [feed.stages for feed in self.engine.feeds if feed.stages is not None]


class Stream:
    """An engine whose hook frames what another engine's connection writes."""

    hook = "bench_stream_framed"

    def __init__(self, stages: bool, hooks: Hooks, stack: contextlib.ExitStack) -> None:
        sender, receiver = self._joined(stages, stack)
        receiver.set_hook(hooks.pointer(self.hook, "xds_stream_hook"), hooks.state)
        receiver.give(receiver.listen(PORT))
        self._connection = sender.open(ENDS[1][1], PORT)
        for _ in range(100):
            receiver.turn()
            sender.turn()
        assert self._connection.is_open
        stack.callback(self._connection.abort)

    def _joined(self, stages: bool, stack: contextlib.ExitStack) -> list[Streams]:
        """Two engines over a pipe; the second one is measured."""
        ends = [stack.enter_context(end) for end in pipe(64, 2048)]
        self._streams = []
        for number, end in enumerate(ends):
            engine = stack.enter_context(Engine(EngineConfig(stages=stages, slow=0)))
            (mac, address), (other, there) = ENDS[number], ENDS[1 - number]
            index = engine.add_link(end, mac=mac, addresses=[f"{address}/24"])
            engine.hosts[index].add_neighbour(there, other)
            self._streams.append(Streams(engine, index, congestion="none"))
            stack.callback(engine.detach)
        self.engine = self._streams[1].engine
        return self._streams

    def fill(self, data: bytes) -> None:
        """Have a turn's bytes on their way."""
        self._connection.put(data)

    def settle(self) -> None:
        """The ACK, which would make the next turn another's."""
        self._streams[0].turn()

    def hists(self) -> list[StageHists]:
        """Of the stages that were stamped."""
        return self.engine.connections.places if self.engine.connections is not None else []


class StreamTwo(Stream):
    hook = "bench_stream_framed_two"


def _busy(engine: Engine) -> Callable[[], int]:
    raw = ffi.new("struct xds_engine_stats *")

    def look() -> int:
        lib.xds_engine_stats(engine.core, raw)
        return int(raw.busy_ns)

    return look


def _turns(pair: list[Any], loads: Iterator[Any], turns: int) -> np.ndarray[Any, Any]:
    """ns of each turn: a row a load, columns as the pair; which is first alternates."""
    found = np.zeros((turns + _WARM, 2), np.int64)
    looks = [_busy(one.engine) for one in pair]
    for i in range(turns + _WARM):
        load = next(loads)
        for k in (0, 1) if i % 2 else (1, 0):
            one, look = pair[k], looks[k]
            one.fill(load)
            before = look()
            one.engine.turn()
            found[i, k] = look() - before
            one.settle()
    return found[_WARM:]


def _packets() -> Iterator[list[bytes]]:
    """Bursts of the plain framing; the sequence number is all that differs."""
    body = b"".join(
        b"AB"
        + (1).to_bytes(2, "little")
        + (100 + i).to_bytes(8, "little")
        + (10).to_bytes(8, "little")
        + bytes(8)
        for i in range(MESSAGES)
    )
    whole = udp_frame(bytes(4) + MESSAGES.to_bytes(2, "little") + bytes(2) + body, GROUP)
    head, rest = whole[:42], whole[46:]
    sequence = 0
    while True:
        yield [head + (sequence + i).to_bytes(4, "little") + rest for i in range(PACKETS)]
        sequence += PACKETS


def _messages(count: int) -> Iterator[bytes]:
    one = (BODY - 2).to_bytes(2, "big") + bytes(BODY - 2)
    while True:
        yield one * count


def _row(
    context: Context, name: str, form: Any, loads: Callable[[], Iterator[Any]], count: int, **more: Any
) -> Row:
    """The median over rounds of the median difference, a message."""
    turns = 40 if context.quick else 1500
    rounds: list[float] = []
    sides: list[np.ndarray[Any, Any]] = []
    told: list[dict[str, dict[str, float]]] = []
    for number in range(context.rounds()):
        context.say(f"  {name} round {number + 1} of {context.rounds()}")
        with contextlib.ExitStack() as stack:
            hooks = Hooks()
            pair = [form(stages, hooks, stack) for stages in (False, True)]
            found = _turns(pair, loads(), turns)
            told.append(merged(pair[1].hists()))
        rounds.append(float(np.median(found[:, 1] - found[:, 0])) / count)
        sides.append(np.median(found, axis=0) / count)
    without, with_ = np.median(sides, axis=0)
    return row(
        name,
        median(rounds),
        unit="ns",
        n=turns * len(rounds) * count,
        rounds=spread(rounds),
        without=round(float(without), 2),
        with_stages=round(float(with_), 2),
        **row_key(between(told)),
        settings=more,
    )


def stamp(context: Context) -> Iterable[Row]:
    """Of a feed's message; of a stream's: by one reading of the clock and by two; alone in its turn; of a
    session's over it."""
    from xdpstack.bench import stamp_session as session  # which is made of this module's parts

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield _row(
            context, "stamp", _Feed, _packets, PACKETS * MESSAGES, packets=PACKETS, messages_a_packet=MESSAGES
        )
        for name, form, count in (
            ("stamp.stream", Stream, 16),
            ("stamp.stream.two", StreamTwo, 16),
            ("stamp.stream.single", Stream, 1),
        ):
            loads = functools.partial(_messages, count)
            yield _row(context, name, form, loads, count, bytes=BODY, messages=count)
        for name, form, load in (
            ("stamp.ws", session.WsSession, session.ws_messages),
            ("stamp.fix", session.FixSession, session.fix_messages),
        ):
            yield _row(context, name, form, functools.partial(load, 16), 16, messages=16)
    finally:
        os.sched_setaffinity(0, cores)
