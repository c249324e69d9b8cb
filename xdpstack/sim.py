"""Two TCP cores, or stacks, over a wire in virtual time: seeded, fast, the same every time.

A wire has latency, jitter, a rate with a queue, loss (random, in bursts, or chosen segments), duplication,
reordering, corruption and a largest segment; each direction draws from one seeded generator.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from xdpstack.tcp import address16

__all__ = ["MILLISECOND", "NEVER", "SECOND", "End", "Sim", "Wire"]

MILLISECOND = 1_000_000
SECOND = 1_000_000_000
NEVER = 2**63 - 1


class End(Protocol):
    """What a wire joins: a TCP core, or a stack with its host (then segments are whole frames)."""

    def input(self, segment: bytes, source: bytes, destination: bytes, now: int) -> int:
        """Take one that has arrived."""

    def output(self, now: int) -> bytes:
        """The next to send, empty where there is none."""

    def deadline(self) -> int:
        """When tick is due."""

    def tick(self, now: int) -> None:
        """Let timers run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What happens to segments on their way. Times in ns, probabilities from 0 to 1."""

    latency: int = MILLISECOND
    jitter: int = 0
    """Added to the latency, even between 0 and this: segments overtake each other."""
    rate: int = 0
    """Bytes a second; 0 is no limit."""
    queue: int = 64
    """Segments that wait for the rate; more are dropped."""
    loss: float = 0.0
    burst: float = 0.0
    """The chance that a segment begins a loss of ``burst_length`` in a row."""
    burst_length: int = 4
    lose: frozenset[int] = frozenset()
    """Segments to lose by their number in this direction, from 0."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """The chance of being late by another ``reorder_by``."""
    reorder_by: int = 5 * MILLISECOND
    corrupt: float = 0.0
    mtu: int = 65535
    """The longest segment that passes, from its TCP header; longer ones are dropped without a word."""


@dataclass(slots=True)
class _Direction:
    wire: Wire
    sent: int = 0
    free_at: int = 0
    burst_left: int = 0
    carried: int = 0
    duplicated: int = 0
    lost: int = 0
    queued: list[int] = field(default_factory=list)


class Sim:
    """Ends 0 and 1 and the wires between them.

    ``watch(end)`` is called after each turn of an end: what a user would do then. ``wires`` are the ways
    from 0 to 1 and from 1 to 0.
    """

    def __init__(
        self,
        ends: tuple[End, End],
        addresses: tuple[str, str],
        wires: tuple[Wire, Wire],
        seed: int,
        watch: Callable[[int], None] = lambda end: None,
    ) -> None:
        self.ends = ends
        self.now = SECOND
        self.segments: list[tuple[int, int, bytes]] = []
        """(ns, sending end, segment) of everything that was sent, lost or not."""
        self._addresses = [address16(text) for text in addresses]
        self._ways = [_Direction(wire) for wire in wires]
        self._random = random.Random(seed)
        self._flying: list[tuple[int, int, int, bytes]] = []
        self._order = 0
        self._watch = watch

    def _lost(self, way: _Direction, segment: bytes) -> bool:
        wire, number = way.wire, way.sent
        way.sent += 1
        if way.burst_left:
            way.burst_left -= 1
            return True
        if wire.burst and self._random.random() < wire.burst:
            way.burst_left = wire.burst_length - 1
            return True
        chance = bool(wire.loss) and self._random.random() < wire.loss
        return chance or number in wire.lose or len(segment) > wire.mtu

    def _departure(self, way: _Direction, length: int) -> int | None:
        """When the last byte is on the wire; None where the queue is full."""
        if not way.wire.rate:
            return self.now
        way.queued = [at for at in way.queued if at > self.now]
        if len(way.queued) >= way.wire.queue:
            return None
        way.free_at = max(way.free_at, self.now) + length * SECOND // way.wire.rate
        way.queued.append(way.free_at)
        return way.free_at

    def _send(self, end: int, segment: bytes) -> None:
        way, draw = self._ways[end], self._random
        self.segments.append((self.now, end, segment))
        leaves = None if self._lost(way, segment) else self._departure(way, len(segment))
        if leaves is None:
            way.lost += 1
            return
        wire = way.wire
        copies = 1 + (bool(wire.duplicate) and draw.random() < wire.duplicate)
        way.duplicated += copies - 1
        for _ in range(copies):
            at = leaves + wire.latency + (draw.randrange(wire.jitter + 1) if wire.jitter else 0)
            if wire.reorder and draw.random() < wire.reorder:
                at += wire.reorder_by
            data = segment
            if wire.corrupt and draw.random() < wire.corrupt:
                spot = draw.randrange(len(segment))
                data = segment[:spot] + bytes([segment[spot] ^ 1 << draw.randrange(8)]) + segment[spot + 1 :]
            self._order += 1
            way.carried += 1
            heapq.heappush(self._flying, (at, self._order, 1 - end, data))

    def turn(self, end: int) -> None:
        """Send everything that an end has to send now, then let its user act, until neither does."""
        core = self.ends[end]
        for _ in range(10_000):
            self._watch(end)
            segment = core.output(self.now)
            if not segment:
                return
            self._send(end, segment)
        raise AssertionError(f"end {end} sends for ever at {self.now}")

    def arrival(self) -> int:
        """When the next segment on its way arrives, ns; NEVER where none is."""
        return self._flying[0][0] if self._flying else NEVER

    def way(self, end: int) -> dict[str, int]:
        """What became of what an end sent: sent + duplicated = lost + carried, some of which still fly."""
        way = self._ways[end]
        return {name: getattr(way, name) for name in ("sent", "duplicated", "lost", "carried")}

    def step(self) -> bool:
        """One arrival or timer; False where nothing is left to happen."""
        due = [core.deadline() for core in self.ends]
        arrival = self.arrival()
        soonest = min(arrival, *due)
        if soonest == NEVER:
            return False
        self.now = max(self.now, soonest)
        if arrival == soonest:
            _, _, end, data = heapq.heappop(self._flying)
            self.ends[end].input(data, self._addresses[1 - end], self._addresses[end], self.now)
        else:
            end = due.index(soonest)
            self.ends[end].tick(self.now)
        self.turn(end)
        return True

    def run(self, until: Callable[[], bool] | None = None, steps: int = 1_000_000) -> None:
        """Turn both ends, then step until ``until`` holds, or nothing happens. AssertionError: a livelock."""
        self.turn(0)
        self.turn(1)
        for _ in range(steps):
            if (until and until()) or not self.step():
                return
        raise AssertionError(f"still busy after {steps} steps, at {self.now} ns")
