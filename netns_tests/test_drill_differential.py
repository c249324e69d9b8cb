"""The same random segments and calls against our stack and against Linux's: both take the same bytes.

A seed makes a script of segments (in order, out of order, overlapping, old, with a SYN, a RST or an ACK that
is wrong), writes and reads. After each step one old byte asks for an ACK: what it acknowledges, what was
read and what was sent must be the same at both. ``XDS_DRILL_SEEDS=2000`` (``make soak``) plays so many.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from xdpstack.drill import parse
from xdpstack.drill.kernel import Kernel
from xdpstack.drill.play import PORT
from xdpstack.drill.segment import FLAGS, Ends, Segment, build, read
from xdpstack.drill.virtual import Virtual

SEEDS = int(os.environ.get("XDS_DRILL_SEEDS", "60"))
STEPS = 30
PEER, START = 40001, 0xFFFFF000
TEXT = random.Random(5).randbytes(1 << 16)
WAIT = 20_000_000_000
BATCH = 20

pytestmark = [
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="/dev/net/tun is not there"),
    pytest.mark.timeout(300 + SEEDS),
]


def script(seed: int) -> list[tuple]:
    """What happens: offsets count the peer's bytes from its first."""
    chance, steps, front = random.Random(seed), [("data", 0, 10)], 10
    for _ in range(STEPS):
        kind = chance.choice(["data"] * 6 + ["read", "write", "syn", "rst", "future", "empty"])
        if kind == "data":
            at = max(0, front + chance.choice([0, 0, 0, 1, 200, 900, -5, -300, chance.randrange(-800, 1500)]))
            length = chance.choice([1, 10, 300, 536, chance.randrange(1, 1000)])
            front = max(front, at + length) if at <= front else front
            steps.append((kind, at, length))
        elif kind in ("syn", "rst", "future"):
            steps.append((kind, front + chance.randrange(1, 2000), 0))
        else:
            steps.append((kind, 0, chance.randrange(1, 3000)))
    steps += [("data", at, 1000) for at in range(0, front + 3000, 1000)]  # what was left out
    end = front + 4000
    steps += [("data", end - 1000, 1000), ("read", 0, 0), ("fin", end, 0), ("read", 0, 0), ("write", 0, 500)]
    if chance.random() < 0.5:
        steps.append(("kill", end + 1, 0))
    return steps


class Peer:
    """The other end of one connection of a machine, and what it has seen of it."""

    def __init__(self, machine, sack: bool) -> None:
        self.machine, self.seen, self.got, self.alive = machine, [], bytearray(), True
        self.written = 0
        waiting = machine.socket()
        machine.bind(waiting, PORT)
        machine.listen(waiting, 1)
        options = (("mss", 1000), *([("sackOK",)] if sack else []))
        self.ends = Ends(machine.remote, PEER, machine.local, PORT)
        self.give("S", -1, options=options, ack=0)
        answer = self.next()
        assert answer.flags == FLAGS["S"] | FLAGS["."]
        self.start = answer.seq + 1
        self.give(".", 0)
        end = time.monotonic() + WAIT / 1e9
        while True:
            with contextlib.suppress(BlockingIOError):
                self.fd = machine.accept(waiting)
                return
            assert time.monotonic() < end

    def give(self, flags: str, at: int, data: bytes = b"", options=(), ack: int | None = None) -> None:
        bits = sum(FLAGS[flag] for flag in flags)
        ack = (self.start + len(self.got)) & 0xFFFFFFFF if ack is None else ack
        seq = (START + 1 + at) & 0xFFFFFFFF
        self.machine.inject(build(Segment(self.ends, bits, seq, ack, 60000, 0, tuple(options), data)))

    def next(self, wait: int = WAIT) -> Segment | None:
        found = self.machine.sent(self.machine.now() + wait)
        return None if found is None else read(found[1])

    def take(self, segment: Segment) -> int:
        """Note what came; how far it acknowledges us."""
        if segment.flags & FLAGS["R"]:
            self.alive = False
        at = (segment.seq - self.start + 2**31) % 2**32 - 2**31
        if segment.payload and at <= len(self.got) < at + len(segment.payload):
            self.got += segment.payload[len(self.got) - at :]
        return (segment.ack - START - 1) % 2**32

    def asked(self) -> int:
        """What it has, as the answer to an old byte says it."""
        while (stale := self.next(0)) is not None:
            self.take(stale)
        if not self.alive:
            return -1
        self.give(".", 0, TEXT[:1])
        answer = self.next()
        assert answer is not None, "an old byte has no answer"
        most = self.take(answer)
        while (more := self.next(0)) is not None:
            most = max(most, self.take(more))
        return most if self.alive else -1

    def write(self, count: int) -> None:
        data = TEXT[self.written : self.written + count]
        assert self.machine.write(self.fd, data) == count
        self.written += count
        while len(self.got) < self.written and self.alive:
            segment = self.next()
            assert segment is not None, f"{len(self.got)} of {self.written} bytes came"
            self.take(segment)
            self.give(".", self.last)

    last = 0

    def step(self, kind: str, at: int, length: int) -> None:
        data = TEXT[at : at + length]
        what: object = None
        if kind in ("data", "fin"):
            self.give("F." if kind == "fin" else ".", at, data)
        elif kind == "syn":
            self.give("S", at, ack=0)
        elif kind == "rst" or kind == "kill":
            self.give("R", at)
        elif kind == "future":
            self.give(
                ".", self.last, b"not to be taken", ack=(self.start + len(self.got) + 5000) & 0xFFFFFFFF
            )
        elif kind == "empty":
            self.give(".", self.last)
        elif kind == "write":
            self.write(length)
        else:
            what = self.read()
        self.last = self.asked()
        self.seen.append((kind, at, length, self.last, len(self.got), what))

    def read(self) -> object:
        try:
            return self.machine.read(self.fd, 65536)
        except BlockingIOError:
            return "nothing"
        except OSError as error:
            return error.errno


def observed(machine, seed: int) -> list[tuple]:
    peer = Peer(machine, sack=bool(seed % 2))
    for step in script(seed):
        peer.step(*step)
        if not peer.alive or step[0] == "kill":
            break
    peer.seen.append(("end", peer.read(), peer.got == TEXT[: peer.written]))
    return peer.seen


def by_linux(seeds: list[int]) -> dict[int, list[tuple]]:
    """In threads of their own: each has a network namespace."""
    found: dict[int, list[tuple]] = {}
    failed: list[BaseException] = []

    def one(seed: int) -> None:
        try:
            machine = Kernel(parse("0 < R 5:5(0)", f"seed {seed}"))
            try:
                found[seed] = observed(machine, seed)
            finally:
                machine.finish()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            failed.append(error)

    for at in range(0, len(seeds), 4):
        threads = [threading.Thread(target=one, args=(seed,)) for seed in seeds[at : at + 4]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
    return found


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_both_take_and_say_the_same(first):
    seeds = list(range(first, min(first + BATCH, SEEDS)))
    theirs = by_linux(seeds)
    for seed in seeds:
        mine = observed(Virtual(parse("0 < R 5:5(0)", f"seed {seed}")), seed)
        for number, (ours, linux) in enumerate(zip(mine, theirs[seed], strict=False)):
            assert ours == linux, f"seed {seed}, step {number}: ours first, then Linux's"
        assert len(mine) == len(theirs[seed]), f"seed {seed}"
