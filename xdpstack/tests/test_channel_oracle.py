"""channel.c against the oracle: every packet's fate, every block, event, counter and deadline, at every step.

A step names its packet by where it lies from what the channel expects, so that short lists of steps reach
gaps, overlaps, wild jumps, restarts and other sessions; hypothesis shrinks what disagrees.
"""

from __future__ import annotations

import random
import struct
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import lib
from xdpstack.tests.channel_model import OUTCOMES, Channel, cme, iex, mold, plain
from xdpstack.tests.channel_oracle import CME, HEADER, IEX, MOLD, NEVER, PLAIN, Oracle

SESSIONS = [PLAIN, MOLD, IEX, CME]
NAMES = [b"SESSION001", b"SESSION002", b"SESSION003"]
SERVER = {"request_max": 10, "retries": 3}
CHANNEL = (
    "blocks", "messages", "next_seq", "gaps_found", "gaps_filled", "gaps_lost", "gaps_open", "units_missed",
    "units_filled", "units_lost", "units_open", "requests", "retransmitted_packets", "retransmitted_useless",
    "restarts", "sessions", "ended", "events_lost",
)  # fmt: skip
LINE = (*OUTCOMES, "packets", "bytes", "lost", "reordered")


class Step(NamedTuple):
    """One thing that happens to a channel."""

    kind: str = "data"  # data, heartbeat, end, timers, tick, ask
    line: int = 0  # past the last: the request server's, where there is one
    base: str = "line"  # from where its sequence counts: line, next, top, zero, far
    offset: int = 0
    units: int = 1
    dns: int = 10  # of the send time, from the latest one
    dt: int = 10  # ns that pass before it
    name: int = 0  # which session
    cut: int = -1  # bytes that are left of it; -1: all
    poke: tuple[int, int] | None = None  # a byte of it that is wrong: where, what


class Both:
    """A channel and its oracle, stepped together."""

    def __init__(self, session: int, **more: Any) -> None:
        server = SERVER if more.pop("server", False) and session == MOLD else {}
        self.c = Channel(session, **{"slot_bytes": 64, **server, **more})
        self.o = Oracle(self.c.cfg)
        self.session, self.now, self.ns = session, 0, 1000
        self.history: list[Step] = []

    def packet(self, step: Step) -> bytes:
        o = self.o
        line = o.lines[min(step.line, o.cfg.lines - 1)]
        base = {
            "line": line.expect if o.joined else 20, "next": o.next, "top": o.top, "zero": 0,
            "far": o.top + o.cfg.window_packets * lib.XDS_CHANNEL_FAR,
        }[step.base]  # fmt: skip
        seq = max(0, base + step.offset)
        self.ns = max(self.ns, self.ns + step.dns)
        ns = self.ns + min(step.dns, 0)
        messages = [struct.pack("<Q", (seq + i) % 2**64) for i in range(step.units)]
        if self.session == MOLD:
            count = {"heartbeat": 0, "end": 0xFFFF}.get(step.kind)
            raw = mold(seq, [] if count is not None else messages, NAMES[step.name], count)
        elif self.session == IEX:
            raw = iex(seq, messages if step.kind == "data" else [], ns, session=7 + step.name)
        elif self.session == CME:
            raw = cme(seq % 2**32, ns, messages[0])
        else:
            raw = plain(seq, messages[0])
        if step.poke:
            at = step.poke[0] % len(raw)
            raw = raw[:at] + bytes([step.poke[1]]) + raw[at + 1 :]
        return raw if step.cut < 0 else raw[: step.cut]

    def do(self, step: Step) -> None:
        self.history.append(step)
        self.now += step.dt
        if step.kind == "timers":
            self.timers()
        elif step.kind == "tick":
            self.c.tick(self.now)
            self.o.tick(self.now)
        elif step.kind == "ask":
            self.ask(self.now, step)
        else:
            lines = self.o.cfg.lines + (1 if self.o.cfg.request_max else 0)
            self.input(step.line % lines, self.packet(step))
        self.compare()

    def input(self, line: int, raw: bytes) -> None:
        assert self.c.input(line, raw, now=self.now) == self.o.input(line, raw, now=self.now), "its code"

    def ask(self, now: int, step: Step) -> None:
        """Requests leave; the server answers one of them, wholly or with a part."""
        asked = self.c.requests(now)
        assert asked == self.o.requests(now), "what is asked for"
        if asked and step.units > 1:
            name, seq, count = asked[step.offset % len(asked)]
            messages = [struct.pack("<Q", seq + i) for i in range(min(count, step.units))]
            self.input(self.o.cfg.lines, mold(seq, messages, name))

    def timers(self) -> None:
        """As an engine: everything whose time has come, each at its time; it ends."""
        for _ in range(1000):
            due = self.c.deadline
            if due > self.now:
                return
            assert self.c.requests(due) == self.o.requests(due)
            self.c.tick(due)
            self.o.tick(due)
            self.compare()
        raise AssertionError("a deadline that does not go away")

    def finish(self) -> None:
        self.c.finish(self.now)
        self.o.finish(self.now)
        self.compare()
        assert self.o.stats["gaps_open"] == len(self.o.waiting) == 0

    def compare(self) -> None:
        c, o = self.c, self.o
        assert c.blocks == o.blocks
        assert [(*event, ns) for event, ns in zip(c.events, c.times, strict=True)] == o.events
        for kept in (c.blocks, c.log, c.events, c.times, o.blocks, o.events):
            kept.clear()
        stats, wanted = c.stats, dict(o.counters())
        assert {n: getattr(stats, n) for n in CHANNEL} == {n: wanted.get(n, 0) for n in CHANNEL}
        for index in range(o.cfg.lines + 1):
            line, wanted = c.line(index), dict(o.line_counters(index))
            got = {n: getattr(line, n) for n in LINE}
            assert got == {n: wanted.get(n, 0) for n in LINE}, f"line {index}"
        assert c.deadline == o.deadline


STEP = st.builds(
    Step,
    kind=st.sampled_from(["data"] * 8 + ["heartbeat", "end", "timers", "tick", "ask", "ask"]),
    line=st.integers(0, 2),
    base=st.sampled_from(["line", "line", "line", "next", "top", "zero", "far"]),
    offset=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5, 9, 40, -1, -2, -4, -9, -40]),
    units=st.integers(1, 6),
    dns=st.sampled_from([10, 10, 10, 0, -1, -25, 5000]),
    dt=st.sampled_from([0, 10, 10, 300, 1001, 2500, 120_000]),
    name=st.sampled_from([0, 0, 0, 0, 1, 2]),
    cut=st.one_of(st.just(-1), st.just(-1), st.just(-1), st.integers(0, 60)),
    poke=st.one_of(st.none(), st.none(), st.none(), st.tuples(st.integers(0, 80), st.integers(0, 255))),
)
SHAPE = st.fixed_dictionaries(
    {"lines": st.integers(1, 3), "window_packets": st.sampled_from([1, 2, 4, 16]), "server": st.booleans()}
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SESSIONS), SHAPE, st.lists(STEP, max_size=40))
def test_every_step_ends_as_the_oracle_says(session: int, shape: dict[str, Any], steps: list[Step]) -> None:
    both = Both(session, **shape)
    for step in steps:
        both.do(step)
    both.finish()


def some_step(chance: random.Random, wildness: float) -> Step:
    """Mostly the line's next packet, now and then lost, late, twice, damaged or of somebody else."""
    if chance.random() > wildness:
        skip = 0 if chance.random() > 0.08 else chance.randint(1, 4)
        return Step(
            line=chance.randint(0, 2), offset=skip, units=chance.randint(1, 5), dt=chance.randint(0, 40)
        )
    return Step(
        kind=chance.choice(["data"] * 6 + ["heartbeat", "end", "timers", "tick", "ask", "ask", "ask"]),
        line=chance.randint(0, 2),
        base=chance.choice(["line", "line", "next", "top", "zero", "far"]),
        offset=chance.choice([0, 1, 1, 2, 5, 30, -1, -3, -10, -60]),
        units=chance.randint(1, 8),
        dns=chance.choice([10, 0, -1, -40, 9000]),
        dt=chance.choice([0, 10, 500, 1500, 4000, 60_000]),
        name=chance.choice([0, 0, 0, 1, 2]),
        cut=chance.randint(0, 60) if chance.random() < 0.1 else -1,
        poke=(chance.randint(0, 80), chance.randint(0, 255)) if chance.random() < 0.1 else None,
    )


@pytest.mark.parametrize("wildness", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("session", SESSIONS, ids=["plain", "mold", "iex", "cme"])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32), shape=SHAPE)
def test_long_runs_end_as_the_oracle_says(
    session: int, wildness: float, seed: int, shape: dict[str, Any]
) -> None:
    chance, both = random.Random(seed), Both(session, **shape)
    for _ in range(1200):
        both.do(some_step(chance, wildness))
    both.finish()


class Stream:
    """One of two senders on the same lines: its own session (or run), its own sequence and time."""

    def __init__(self, name: int, seq: int) -> None:
        self.name, self.sent = name, [(seq, 1)]

    def send(self, chance: random.Random) -> tuple[int, int]:
        """The next packet, or (a line that lags) one of the last few again."""
        if chance.random() < 0.6:
            self.sent.append((sum(self.sent[-1]), chance.randint(1, 4)))
        return self.sent[-1 - min(len(self.sent) - 1, int(chance.expovariate(1.0)))]


@pytest.mark.parametrize("server", [False, True], ids=["alone", "server"])
@pytest.mark.parametrize("session", SESSIONS, ids=["plain", "mold", "iex", "cme"])
@pytest.mark.parametrize("seed", range(2))
def test_two_sessions_mixed_for_long_end_as_the_oracle_says(session: int, server: bool, seed: int) -> None:
    """Both senders keep sending on both lines, lost and late here and there: nothing is delivered that is
    not one of the two's next, and every packet has its fate."""
    chance, both = random.Random(seed), Both(session, window_packets=8, server=server)
    streams = [Stream(0, 1), Stream(1, 1 if seed else 500)]
    for _ in range(2000):
        stream = chance.choice(streams) if chance.random() < 0.3 else streams[len(both.history) // 50 % 2]
        seq, units = stream.send(chance)
        units = units if session in (MOLD, IEX) else 1
        if chance.random() < 0.1:
            continue
        kind = chance.choice(["data"] * 12 + ["heartbeat", "timers", "ask"])
        both.do(
            Step(
                kind, chance.randint(0, 1), "zero", seq, units, chance.choice([0, 10, -30]), 400, stream.name
            )
        )
    both.finish()
    won = sum(line.fates["won"] for line in both.o.lines)
    foreign = sum(line.fates["foreign"] for line in both.o.lines)
    assert won == both.o.stats["blocks"] > 100
    assert foreign > 100 or session in (PLAIN, CME), "a session that was left never comes back"


@pytest.mark.parametrize("place", ["join", "order", "copy", "ahead", "behind", "other"])
@pytest.mark.parametrize("session", SESSIONS, ids=["plain", "mold", "iex", "cme"])
def test_a_packet_cut_at_every_byte_has_the_same_fate_in_every_place(session: int, place: str) -> None:
    step = {
        "join": Step(),
        "order": Step(base="next"),
        "copy": Step(line=1),
        "ahead": Step(base="top", offset=3),
        "behind": Step(base="next", offset=-3, dns=-5),
        "other": Step(base="zero", offset=1, name=1),
    }[place]._replace(units=4)
    whole = len(Both(session).packet(step))
    for cut in range(whole + 1):
        both = Both(session, server=True)
        for _ in range(0 if place == "join" else 5):
            both.do(Step(units=2))
        both.do(step._replace(cut=cut if cut < whole else -1))
        both.do(Step(base="next", units=2))
        both.finish()


@pytest.mark.parametrize("session", SESSIONS, ids=["plain", "mold", "iex", "cme"])
def test_every_byte_of_a_header_may_be_wrong(session: int) -> None:
    """Lengths, counts, sequences, names, times: each byte with each of a few values, in order and ahead."""
    for at in range(HEADER[session] + 2):
        for value in (0, 1, 2, 0x7F, 0x80, 0xFF):
            for step in (Step(base="next", units=3), Step(base="top", offset=2, units=3)):
                both = Both(session, server=True)
                for _ in range(4):
                    both.do(Step(units=2))
                both.do(step._replace(poke=(at, value)))
                for _ in range(3):
                    both.do(Step(base="next", units=2))
                both.do(Step("timers", dt=1_000_000))
                both.finish()


@pytest.mark.parametrize("session", SESSIONS, ids=["plain", "mold", "iex", "cme"])
def test_a_sequence_that_jumps_back_and_forth_ends_as_the_oracle_says(session: int) -> None:
    for stride in (1, 3, 7, 8, 9, 40, 600, 2000):
        both = Both(session, window_packets=8, server=True)
        for turn in range(120):
            both.do(Step(line=turn % 2, base="zero", offset=3000 + (stride if turn % 2 else 0) + turn, dt=30))
        both.do(Step("timers", dt=1_000_000))
        both.finish()


def test_the_oracle_is_not_the_channels_echo() -> None:
    """It knows nothing of the core: what it says of a plain story is what the story says."""
    both = Both(MOLD, server=True)
    for seq in (20, 21, 24, 22):
        both.input(0, mold(seq, [b"%d" % seq]))
    assert [block[0] for block in both.o.blocks] == [20, 21, 22]
    assert both.o.gaps() == [range(23, 24)]
    assert [event[:3] for event in both.o.events] == [
        (lib.XDS_EVENT_JOINED, 20, 0),
        (lib.XDS_EVENT_GAP_FOUND, 22, 2),
        (lib.XDS_EVENT_GAP_FILLED, 22, 1),
    ]
    assert both.o.deadline == 1000
    assert {name: count for name, count in both.o.line_counters(0) if count} == {
        "packets": 4, "bytes": 96, "won": 3, "buffered": 1, "lost": 1, "reordered": 1,
    }  # fmt: skip
    assert Oracle(both.c.cfg).deadline == NEVER
