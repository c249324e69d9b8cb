"""Two TCP cores over a simulated wire: what holds for every seed. `XDS_TCP_SEEDS=10000` runs more of them."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from xdpstack import tcp
from xdpstack.sim import MILLISECOND, NEVER, SECOND, Sim, Wire
from xdpstack.tcp import TcpCore

A, B = ("10.0.0.1", 4000), ("10.0.0.2", 80)
REASONS = {name: number for number, name in tcp.REASONS.items()}
SEEDS = int(os.environ.get("XDS_TCP_SEEDS", "500"))
RUNS = [0]


class User:
    """Writes its text as room allows, reads at its own pace, closes when both said all they had."""

    def __init__(self, core, text, reads, close_early):
        self.core, self.text, self.reads, self.close_early = core, text, reads, close_early
        self.written, self.got, self.events = 0, bytearray(), []
        self.closed = False

    def act(self):
        self.events += self.core.events()
        self.got += self.core.read(self.reads)
        if "open" not in self.events or self.closed or self.core.state == "closed":
            return
        if self.written < len(self.text):
            self.written += self.core.write(self.text[self.written : self.written + 65536])
        if self.written == len(self.text) and (self.close_early or "fin" in self.events):
            self.core.close()
            self.closed = True


class Watched(TcpCore):
    """Looks at each segment on its way out: the wire says what the peer allowed, info() what cwnd does.

    The right edge is the furthest that a whole segment of the peer's has named, by the scale of its SYN.
    """

    def __init__(self, *args, iss, **kwargs):
        super().__init__(*args, iss=iss, **kwargs)
        self.iss, self.acked, self.edge, self.sent = iss, 0, 0, 0
        self.shift: int | None = None

    def input(self, segment, source, destination, now):
        before = self.stats().reasons[REASONS["checksum"]]
        code = super().input(segment, source, destination, now)
        if len(segment) < 20 or self.stats().reasons[REASONS["checksum"]] > before:
            return code
        if segment[13] & 2:
            self.shift = scale(segment)
        if not segment[13] & 16 or self.shift is None:
            return code
        ack = self.acked + signed(int.from_bytes(segment[8:12], "big") - self.iss - self.acked)
        window = int.from_bytes(segment[14:16], "big") << (0 if segment[13] & 2 else self.shift)
        self.acked = max(self.acked, ack)
        self.edge = max(self.edge, ack + window)
        return code

    def output(self, now, room=65535):
        probes = self.stats().probes
        segment = super().output(now, room)
        if not segment or segment[13] & 6:
            return segment
        length = len(segment) - (segment[12] >> 4) * 4 + (segment[13] & 1)
        if length:
            seq = self.acked + signed(int.from_bytes(segment[4:8], "big") - self.iss - self.acked)
            probe = self.stats().probes > probes
            assert seq + length <= self.edge + probe, "beyond the window that the peer told"
            info = self.info()
            assert info.in_flight <= info.cwnd, "more in flight than cwnd"
            if seq + length > self.sent:
                assert info.outstanding <= info.send_window or probe, "more out than the peer's window"
            self.sent = max(self.sent, seq + length)
        return segment


def signed(number):
    return (number + 2**31) % 2**32 - 2**31


def scale(syn):
    """The shift in a SYN's window scale option, 0 without one."""
    at, end = 20, (syn[12] >> 4) * 4
    while at < end and syn[at]:
        if syn[at] == 3:
            return syn[at + 2]
        at += 1 if syn[at] == 1 else syn[at + 1]
    return 0


class Pair:
    """Two ends with a user each, and the invariants that are looked at after every turn."""

    def __init__(self, texts, wires, number, reads=(65536, 65536), crossing=False, settings=({}, {})):
        first = Watched(A, B, iss=0xFFFFFFF0 + number % 16, give_up_ns=3600 * SECOND, **settings[0])
        remote = A if crossing else None
        second = Watched(B, remote, iss=number, give_up_ns=3600 * SECOND, **settings[1])
        self.users = [
            User(first, texts[0], reads[0], True),
            User(second, texts[1], reads[1], number % 2 == 0),
        ]
        self.sim = Sim((first, second), (A[0], B[0]), wires, number, self.watch)

    def watch(self, end):
        self.users[end].act()

    def run(self):
        self.sim.run()
        for user in self.users:
            before = -1
            while len(user.got) != before:  # what lies in the buffer after the last segment
                before = len(user.got)
                user.act()
        return self

    def check(self):
        one, two = self.users
        for user, other in ((one, two), (two, one)):
            stats = user.core.stats()
            assert stats.received == sum(stats.reasons)
            assert bytes(user.got) == other.text[: len(user.got)], "bytes differ, or are out of order"
            assert user.core.state == "closed"
            assert user.core.deadline() == NEVER
            if "closed" in user.events and "closed" in other.events:
                assert len(user.got) == len(other.text)
            assert user.events[-1] in ("closed", "reset", "timeout", "refused")
            if len(user.got) < len(other.text):
                assert "closed" not in (user.events[-1], other.events[-1]), (
                    "bytes are missing, and nobody said so"
                )
        for end, user in enumerate(self.users):
            way = self.sim.way(end)
            assert user.core.stats().sent == way["sent"]
            assert way["sent"] + way["duplicated"] == way["lost"] + way["carried"], "a segment vanished"
            assert self.users[1 - end].core.stats().received == way["carried"]
        return self


def pattern(length, number):
    return random.Random(number).randbytes(length)


wires = st.builds(
    Wire,
    latency=st.integers(0, 50).map(lambda ms: ms * MILLISECOND),
    jitter=st.sampled_from([0, 0, MILLISECOND, 20 * MILLISECOND]),
    rate=st.sampled_from([0, 0, 100_000, 10_000_000]),
    queue=st.sampled_from([4, 16, 64]),
    loss=st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.2]),
    burst=st.sampled_from([0.0, 0.0, 0.01]),
    duplicate=st.sampled_from([0.0, 0.05]),
    reorder=st.sampled_from([0.0, 0.1]),
    corrupt=st.sampled_from([0.0, 0.0, 0.02]),
    mtu=st.sampled_from([65535, 65535, 65535, 600]),
)
ends = st.fixed_dictionaries(
    {
        "send_bytes": st.sampled_from([256, 4096, 65536]),
        "receive_bytes": st.sampled_from([256, 4096, 65536, 1 << 20]),
        "mss": st.sampled_from([64, 536, 1460]),
        "nagle": st.sampled_from([0, 1]),
        "delayed_ack_ns": st.sampled_from([0, 40 * MILLISECOND]),
        "congestion": st.sampled_from(["cubic", "newreno", "none"]),
        "no_stamps": st.sampled_from([0, 0, 1]),
        "no_sack": st.sampled_from([0, 0, 1]),
        "stamp_offset": st.sampled_from([0, 0xFFFFF000]),
    }
)


@pytest.mark.timeout(300 + SEEDS)
@seed(20261128)
@settings(max_examples=SEEDS, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
@given(
    number=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*[st.sampled_from([0, 1, 100, 3000, 20_000])] * 2),
    ways=st.tuples(wires, wires),
    reads=st.tuples(*[st.sampled_from([40, 700, 65536])] * 2),
    crossing=st.booleans(),
    both=st.tuples(ends, ends),
)
def test_every_seed_ends_with_equal_bytes_or_an_error(number, sizes, ways, reads, crossing, both):
    texts = pattern(sizes[0], number), pattern(sizes[1], number + 1)
    Pair(texts, ways, number, reads, crossing, both).run().check()
    RUNS[0] += 1


def test_what_a_full_board_sends_again_stays_within_cwnd():
    """Short lost pieces leave as one segment, and long ones found no place to be split: all of it counts."""
    ways = (
        Wire(latency=40 * MILLISECOND, queue=16, loss=0.05, burst=0.01, reorder=0.1, mtu=600),
        Wire(
            latency=44 * MILLISECOND,
            jitter=MILLISECOND,
            rate=100_000,
            queue=16,
            loss=0.05,
            corrupt=0.02,
            mtu=600,
        ),
    )
    ends = (
        {"send_bytes": 4096, "receive_bytes": 4096, "mss": 536, "nagle": 1, "congestion": "cubic",
         "delayed_ack_ns": 40 * MILLISECOND, "stamp_offset": 0xFFFFF000},
        {"send_bytes": 256, "receive_bytes": 65536, "mss": 64, "nagle": 1, "congestion": "newreno"},
    )  # fmt: skip
    number = 38453
    texts = pattern(20_000, number), pattern(3000, number + 1)
    pair = Pair(texts, ways, number, (700, 40), True, ends).run().check()
    assert [len(user.got) for user in pair.users] == [3000, 20_000]


def test_so_many_seeds_were_run(capsys):
    """Said even where the output of tests that pass is not shown."""
    if not RUNS[0]:
        pytest.skip("the test of every seed was not run")
    with capsys.disabled():
        print(f"\n{RUNS[0]:,} seeds over two simulated ends held every property")
    assert RUNS[0] >= SEEDS


@pytest.mark.parametrize("number", range(20))
def test_a_wire_that_loses_a_twentieth_still_carries_everything(number):
    """An error told to both would satisfy the test of every seed; here nobody may give up."""
    wire = Wire(
        latency=number * 5 * MILLISECOND,
        jitter=number % 3 * MILLISECOND,
        loss=0.05,
        duplicate=0.05,
        reorder=0.1,
        corrupt=0.02,
    )
    stamps = ({"no_stamps": number % 2}, {"no_stamps": number % 5 == 0})
    texts = pattern(30_000, number), pattern(20_000, number + 1)
    pair = Pair(texts, (wire, wire), number, settings=stamps).run().check()
    for user, other in (pair.users, pair.users[::-1]):
        assert bytes(user.got) == other.text
        assert user.events[-1] == "closed"


@pytest.mark.parametrize("lost", range(12))
def test_any_one_segment_may_be_lost(lost):
    """The handshake's, data's and the close's, from either end: all bytes still come."""
    for way in (0, 1):
        ways = [Wire(), Wire()]
        ways[way] = Wire(lose=frozenset([lost]))
        pair = Pair((b"x" * 4000, b"y" * 4000), tuple(ways), lost).run().check()
        assert [len(u.got) for u in pair.users] == [4000, 4000]


def test_the_same_seed_gives_the_same_segments():
    wire = Wire(loss=0.1, jitter=MILLISECOND, duplicate=0.1, corrupt=0.05)
    runs = [Pair((pattern(30_000, 1), b"z" * 500), (wire, wire), 7).run().sim.segments for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]) > 50


def test_a_clean_wire_sees_no_retransmission():
    pair = Pair((pattern(1_000_000, 1), pattern(100_000, 2)), (Wire(), Wire()), 2).run().check()
    for user in pair.users:
        assert user.core.stats().retransmits == 0


def test_a_queue_that_overflows_slows_the_sender_but_not_to_a_halt():
    slow = Wire(latency=10 * MILLISECOND, rate=1_000_000, queue=8)
    pair = Pair((pattern(500_000, 1), b""), (slow, Wire(latency=10 * MILLISECOND)), 3).run().check()
    assert len(pair.users[1].got) == 500_000
    last = max(at for at, end, data in pair.sim.segments if end == 0 and len(data) > 100)
    assert last - SECOND < 2 * SECOND  # half a second at the wire's rate


def test_a_board_that_fills_up_behind_what_is_lost_holds_its_bound():
    """Small segments behind a lost last piece took places that there were not, and sending never ended."""
    common = {"latency": 27 * MILLISECOND, "duplicate": 0.05, "reorder": 0.1, "corrupt": 0.02}
    ways = (
        Wire(rate=100_000, queue=16, loss=0.2, **common),
        Wire(rate=10_000_000, queue=4, loss=0.05, **common),
    )
    ends = (
        {"send_bytes": 4096, "receive_bytes": 256, "mss": 536, "nagle": 1, "congestion": "none"},
        {"send_bytes": 65536, "receive_bytes": 4096, "mss": 64, "nagle": 1, "stamp_offset": 4294963200},
    )
    pair = Pair((pattern(20_000, 0), pattern(100, 1)), ways, 0, (700, 65536), False, ends).run().check()
    assert [len(user.got) for user in pair.users] == [100, 20_000]


@pytest.mark.parametrize("nagle", [0, 1])
def test_a_session_of_two_hours_with_small_writes_and_long_pauses(nagle):
    """As somebody at a terminal: a key or a line, an echo, nothing for minutes; a path that loses."""
    keep = {"keepalive": 1, "keep_idle_ns": 60 * SECOND, "nagle": nagle, "delayed_ack_ns": 40 * MILLISECOND}
    ends = TcpCore(A, B, iss=0xFFFFFFF0, **keep), TcpCore(B, None, iss=2, **keep)
    wire = Wire(latency=15 * MILLISECOND, jitter=10 * MILLISECOND, loss=0.05, reorder=0.02, duplicate=0.02)
    told, typed, echoed, waiting = ([], []), bytearray(), bytearray(), bytearray()

    def watch(end):
        told[end].extend(ends[end].events())
        data = ends[end].read(65536)
        if end == 0:
            echoed.extend(data)
            return
        waiting.extend(data)
        if waiting and ends[1].state == "established":
            del waiting[: ends[1].write(bytes(waiting))]

    sim = Sim(ends, (A[0], B[0]), (wire, wire), 5, watch)
    sim.run(lambda: "open" in told[0])
    chance, end = random.Random(7), sim.now + 7200 * SECOND
    while sim.now < end:
        pause = chance.choice([0.08, 0.3, 2, 150]) if len(typed) % 5 else 10
        then = sim.now + int(pause * SECOND)
        sim.run(lambda then=then: min(sim.arrival(), *(core.deadline() for core in ends)) > then)
        sim.now = max(sim.now, then)
        line = chance.randbytes(chance.choice([1, 1, 1, 40]))
        typed += line
        assert ends[0].write(line) == len(line)
        sim.turn(0)
    ends[0].close()
    sim.run(lambda: "fin" in told[1])
    ends[1].close()
    sim.run()
    assert echoed == typed
    assert len(typed) > 1000
    for core, events in zip(ends, told, strict=True):
        assert core.state == "closed"
        assert core.deadline() == NEVER
        assert events[-1] == "closed"
        assert {*events} <= {"open", "fin", "closed", "stalled", "writable"}
    assert ends[0].stats().keepalives > 0


def test_a_path_that_drops_what_passes_everywhere_times_out_and_says_so():
    core = TcpCore(A, B, iss=1, give_up_ns=10 * SECOND)
    other = TcpCore(B, None, iss=2)
    events = []

    def watch(end):
        if end == 0:
            events.extend(core.events())
            if events == ["open"] and not core.info().unsent and not core.info().in_flight:
                core.write(b"x" * 3000)

    Sim((core, other), (A[0], B[0]), (Wire(mtu=500), Wire()), 1, watch).run()
    assert events == ["open", "stalled", "timeout"]
    assert core.state == "closed"
