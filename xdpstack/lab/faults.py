"""Seeded damage to a stream of packets, pure: loss, duplication, reordering, corruption, delay, jitter, rate.

One model, two uses: :func:`impair` damages a whole schedule beforehand and says exactly what it did, the
:class:`Impairer` does the same packet by packet under a clock that its caller brings (the live forwarder).

Rules:

1. What happens to packet *i* depends on the seed and on *i* alone, never on its bytes or its time.
2. The line is serial: delay, jitter and rate never change the order; only ``reorder`` does. A packet that is
   held back leaves behind 1 to ``displacement`` later packets, or after ``hold_ns`` when too few come.
3. Nothing is silent: offered + duplicated = sent + lost + overflowed + waiting, always.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from xdpstack.errors import ConfigError

__all__ = ["Faults", "Impaired", "Impairer", "Sent", "Truth", "impair"]

LOSE, DUPLICATE, HOLD, CORRUPT = 1, 2, 4, 8

_CHUNK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How a line treats its packets. Chances are of one packet, from 0 to 1, drawn independently."""

    seed: int = 0
    loss: float = 0.0
    burst: float = 0.0
    """The chance that ``burst_length`` packets in a row are lost from this one on."""
    burst_length: int = 8
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    """One bit of the packet is turned over."""
    displacement: int = 3
    """A packet held back lets 1 to this many others pass."""
    hold_ns: int = 50_000_000
    """Longest time that a packet is held back for others to pass."""
    delay_ns: int = 0
    jitter_ns: int = 0
    """Up to this much is added to the delay; the line stays in order."""
    rate: int = 0
    """Bits a second of the line, counted over the packet's bytes; 0 is no limit."""
    queue: int = 10_000
    """Packets that may wait for their time; what comes then is dropped and counted."""

    def __post_init__(self) -> None:
        for name in ("loss", "burst", "duplicate", "reorder", "corrupt"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"faults: {name} is {getattr(self, name)}, a chance is from 0 to 1")
        for name in ("seed", "hold_ns", "delay_ns", "jitter_ns", "rate"):
            if getattr(self, name) < 0:
                raise ConfigError(f"faults: {name} is {getattr(self, name)}, below 0")
        for name in ("burst_length", "displacement", "queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"faults: {name} is {getattr(self, name)}, at least 1")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Verdicts:
    """What happens to packet 0, 1, 2, …: drawn a chunk at a time from raw PCG64 words.

    numpy keeps the raw words of a seed the same in every version, so a seed means the same damage for ever.
    """

    __slots__ = ("_bits", "_burst_bits", "_faults", "_left", "at", "codes", "details")

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._bits = np.random.PCG64(faults.seed)
        self._burst_bits = self._bits.jumped()  # of its own: without bursts a seed means what it did before
        self._left = 0
        self.codes: list[int] = []
        self.details: Any = None
        self.at = 0

    def next(self) -> tuple[int, int, float, float]:
        """``(code, places, bit, jitter)``: places to hold back, the bit and the jitter as fractions."""
        at = self.at
        if at == len(self.codes):
            self._fill()
            at = 0
        self.at = at + 1
        code = self.codes[at]
        if code == 0 and not self._faults.jitter_ns:
            return 0, 0, 0.0, 0.0
        places, bit, jitter = self.details[at]
        return code, 1 + int(places * self._faults.displacement), bit, jitter

    def _fill(self) -> None:
        faults = self._faults
        words = self._bits.random_raw(_CHUNK * 7).reshape(_CHUNK, 7)
        draws = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        chances = (faults.loss, faults.duplicate, faults.reorder, faults.corrupt)
        codes = np.zeros(_CHUNK, np.int64)
        for column, (chance, code) in enumerate(zip(chances, (LOSE, DUPLICATE, HOLD, CORRUPT), strict=True)):
            codes |= np.where(draws[:, column] < chance, code, 0)
        if faults.burst:
            codes[self._bursts()] = LOSE
        codes[codes & LOSE != 0] = LOSE
        self.codes = codes.tolist()
        self.details = draws[:, 4:].tolist()
        self.at = 0

    def _bursts(self) -> Any:
        """Which packets of the chunk a burst takes, from this chunk or the one before."""
        length = self._faults.burst_length
        words = self._burst_bits.random_raw(_CHUNK)
        starts = np.flatnonzero((words >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self._faults.burst)
        taken = np.zeros(_CHUNK, bool)
        taken[: self._left] = True
        self._left = max(self._left - _CHUNK, 0)
        for start in starts.tolist():
            taken[start : start + length] = True
            self._left = max(self._left, start + length - _CHUNK)
        return taken


@dataclass(slots=True)
class Truth:
    """What was done to a stream; packets by their index in the undamaged one."""

    offered: int = 0
    lost: list[int] = field(default_factory=list)
    duplicated: list[int] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    """Their first copy left after a later packet's first copy."""
    corrupted: list[tuple[int, int]] = field(default_factory=list)
    """Index and the bit that was turned over, counted from the first byte's highest."""
    overflowed: list[int] = field(default_factory=list)
    """Dropped because the queue was full."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet as it leaves the line."""

    ns: int
    index: int
    """In the undamaged stream."""
    payload: bytes


def flip(payload: bytes, fraction: float) -> tuple[bytes, int]:
    """Turn over the bit at ``fraction`` of the payload; returns the damaged bytes and the bit's number."""
    if not payload:
        return payload, 0
    bit = int(fraction * len(payload) * 8)
    damaged = bytearray(payload)
    damaged[bit >> 3] ^= 0x80 >> (bit & 7)
    return bytes(damaged), bit


class Impairer:
    """The line: packets go in by :meth:`input`, come out by :meth:`output` when their time has come."""

    def __init__(self, faults: Faults, *, keep: Collection[int] = (), truth: Truth | None = None) -> None:
        """``keep``: packets by index that are neither lost, held back nor corrupted. ``truth``: filled if
        given."""
        self.faults = faults
        self.offered = self.lost = self.duplicated = self.held = self.corrupted = self.overflowed = (
            self.sent
        ) = 0
        self._keep = keep
        self._truth = truth
        self._verdicts = Verdicts(faults)
        self._plain = not (faults.delay_ns or faults.jitter_ns or faults.rate)
        self._waiting: deque[Sent] = deque()
        self._held: list[list[Any]] = []  # [others still to pass, latest ns, index, payload, copies]
        self._busy_until = 0
        self._last_due = 0

    @property
    def waiting(self) -> int:
        """Packets inside: held back or waiting for their time."""
        return len(self._waiting) + sum(int(item[4]) for item in self._held)

    def input(self, payload: bytes, now_ns: int) -> None:
        """Take one packet at ``now_ns``, which never goes back."""
        if self._held:
            self._release(now_ns)
        index = self.offered
        self.offered = index + 1
        code, places, bit, jitter = self._verdicts.next()
        if code and index in self._keep:
            code &= DUPLICATE
        if code == 0:
            self._queue(index, payload, now_ns, jitter)
        elif code == LOSE:
            self.lost += 1
            if self._truth is not None:
                self._truth.lost.append(index)
        else:
            copies = 1
            if code & DUPLICATE:
                copies = 2
                self.duplicated += 1
                if self._truth is not None:
                    self._truth.duplicated.append(index)
            if code & CORRUPT:
                payload, turned = flip(payload, bit)
                self.corrupted += 1
                if self._truth is not None:
                    self._truth.corrupted.append((index, turned))
            if code & HOLD:
                self.held += 1
                self._held.append([places + 1, now_ns + self.faults.hold_ns, index, payload, copies])
            else:
                for _ in range(copies):
                    self._queue(index, payload, now_ns, jitter)
        if self._held:
            self._pass(now_ns)

    def _pass(self, now_ns: int) -> None:
        """One more packet went by; those that have let enough of them pass follow it."""
        for item in self._held:
            item[0] -= 1
        if self._held[0][0] <= 0 or any(item[0] <= 0 for item in self._held):
            ready = [item for item in self._held if item[0] <= 0]
            self._held = [item for item in self._held if item[0] > 0]
            for _, _, index, payload, copies in ready:
                for _ in range(copies):
                    self._queue(index, payload, now_ns, 0.0)

    def _release(self, now_ns: int) -> None:
        """Let go of what was held back for long enough, at the time when that was."""
        while self._held and (first := min(self._held, key=lambda item: item[1]))[1] <= now_ns:
            self._held.remove(first)
            for _ in range(first[4]):
                self._queue(first[2], first[3], first[1], 0.0)

    def _queue(self, index: int, payload: bytes, now_ns: int, jitter: float) -> None:
        if self._plain:
            due = now_ns
        else:
            faults = self.faults
            due = now_ns + faults.delay_ns + int(jitter * faults.jitter_ns)
            if due < self._last_due:
                due = self._last_due
            self._last_due = due
            if faults.rate:
                due = max(due, self._busy_until) + len(payload) * 8_000_000_000 // faults.rate
                self._busy_until = due
        if len(self._waiting) >= self.faults.queue:
            self.overflowed += 1
            if self._truth is not None:
                self._truth.overflowed.append(index)
            return
        self._waiting.append(Sent(due, index, payload))

    def output(self, now_ns: int) -> list[Sent]:
        """The packets whose time has come, in the order in which they leave."""
        if self._held:
            self._release(now_ns)
        waiting, ready = self._waiting, []
        while waiting and waiting[0].ns <= now_ns:
            ready.append(waiting.popleft())
        self.sent += len(ready)
        return ready

    def deadline(self) -> int | None:
        """When :meth:`output` has something next, None for never."""
        times = [int(item[1]) for item in self._held]
        if self._waiting:
            times.append(self._waiting[0].ns)
        return min(times) if times else None


@dataclass(frozen=True, slots=True)
class Impaired:
    """A damaged schedule and the truth about it."""

    packets: list[Sent]
    truth: Truth


def impair(
    packets: Iterable[tuple[int, bytes]],
    faults: Faults,
    *,
    lose: Collection[int] = (),
    keep: Collection[int] = (),
) -> Impaired:
    """Damage a schedule of ``(ns, payload)`` in time order.

    ``lose``: packets, by index, that are lost besides; ``keep``: packets that are neither lost, held back nor
    corrupted. A packet in both is lost. The result is in the order in which packets leave.
    """
    truth = Truth()
    line = Impairer(faults, keep=keep, truth=truth)
    out: list[Sent] = []
    last = 0
    for ns, payload in packets:
        if ns < last:
            raise ConfigError(
                f"impair: packet {line.offered} is at {ns} ns, before its predecessor at {last} ns"
            )
        last = ns
        out += line.output(ns - 1)
        line.input(payload, ns)
    while (due := line.deadline()) is not None:
        out += line.output(due)
    truth.offered = line.offered
    if lose:
        out = [sent for sent in out if sent.index not in lose]
        truth.lost = sorted({*truth.lost, *(index for index in lose if index < truth.offered)})
        truth.duplicated = [index for index in truth.duplicated if index not in lose]
        truth.corrupted = [pair for pair in truth.corrupted if pair[0] not in lose]
        truth.overflowed = [index for index in truth.overflowed if index not in lose]
    truth.moved = moved([sent.index for sent in out])
    return Impaired(out, truth)


def moved(order: Sequence[int]) -> list[int]:
    """The packets whose first copy comes after the first copy of a later packet."""
    seen: set[int] = set()
    highest, found = -1, []
    for index in order:
        if index in seen:
            continue
        seen.add(index)
        if index < highest:
            found.append(index)
        else:
            highest = index
    return sorted(found)
