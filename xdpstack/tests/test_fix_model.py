"""cores/fix under hypothesis: however bytes are cut the same comes out; and between two sessions over a wire
that breaks, loses and garbles, every message that was taken arrives once, in order."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.fix import FixCore, format_time
from xdpstack.tests.fix_peer import ME, NOW, PEER, SECOND, FixPeer

OLD = format_time(NOW - SECOND)
KINDS = {
    "8": [(37, "O-1"), (58, "10=000")],
    "0": [(112, "1")],
    "1": [(112, "x")],
    "2": [(7, 1), (16, 0)],
    "3": [(45, 1)],
    "4": [(123, "Y"), (36, 6)],
    "5": [(58, "bye")],
    "A": [(98, 0), (108, 30)],
    "B": [(95, 4), (96, b"\x01\x01=\x01")],
}


@st.composite
def streams(draw):
    """What a peer may send: mostly right, some ahead, some doubled, some garbled, some no messages at all."""
    peer, raw = FixPeer(), b""
    raw += peer.make("A", (98, 0), (108, 30))
    for _ in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from("8888B01234" + ("5" if draw(st.integers(0, 9)) == 0 else "8")))
        match draw(st.integers(0, 9)):
            case 0:
                one = peer.make(kind, *KINDS[kind], seq=peer.seq + draw(st.integers(1, 3)))
            case 1:
                one = peer.make(kind, *KINDS[kind], seq=max(1, peer.seq - 1), dup=True, orig=OLD)
            case 2:
                one = peer.make(kind, *KINDS[kind])
                at = draw(st.integers(0, len(one) - 1))
                one = one[:at] + draw(st.binary(min_size=1, max_size=3)) + one[at + 1 :]
            case 3:
                one = draw(st.binary(max_size=20)) + b"8=FI" + peer.make(kind, *KINDS[kind])
            case _:
                one = peer.make(kind, *KINDS[kind])
        raw += one
    return raw


def outcome(pieces):
    core = FixCore(ME, PEER)
    core.open(NOW)
    assert core.output(NOW)
    core.send(b"35=D\x0111=1\x01", NOW)
    events, said = [], b""
    for piece in pieces:
        events += core.feed(piece, NOW)
        said += core.output(NOW)
    return events, said, core.stats(), core.info()


@given(streams(), st.lists(st.integers(0, 2000), max_size=12))
@settings(deadline=None)
def test_any_cut_gives_the_same(raw, cuts):
    at = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    whole = outcome([raw])
    assert outcome([raw[a:b] for a, b in pairwise(at)]) == whole
    assert outcome([raw[i : i + 1] for i in range(len(raw))]) == whole


def body(side: str, number: int) -> bytes:
    return f"35=8\x0137={side}-{number}\x0158={'x' * (number * 37 % 200 + 1)}\x01".encode()


class Pair:
    """Two sessions, what is on its way between them, and the plain truth: what was taken, what arrived."""

    def __init__(self, resend_max: int) -> None:
        more = {"store_bytes": 1 << 20, "resend_max": resend_max, "heartbeat_s": 5, "resend_ns": 2 * SECOND}
        self.now = NOW
        self.cores = {"a": FixCore(ME, PEER, **more), "b": FixCore(PEER, ME, acceptor=1, **more)}
        self.way = {"a": b"", "b": b""}
        self.taken: dict[str, list[bytes]] = {"a": [], "b": []}
        self.arrived: dict[str, list[bytes]] = {"a": [], "b": []}
        self.reopen()

    def reopen(self) -> None:
        self.way = {"a": b"", "b": b""}
        self.garbled = {"a": False, "b": False}
        for core in self.cores.values():
            core.hang_up(self.now)
            core.events()
            core.open(self.now)

    def send(self, side: str) -> None:
        message = body(side, len(self.taken[side]))
        if self.cores[side].send(message, self.now) == 0:
            self.taken[side].append(message)

    def carry(self, side: str, most: int) -> None:
        other = self.cores["b" if side == "a" else "a"]
        self.way[side] += self.cores[side].output(self.now)
        piece, self.way[side] = self.way[side][:most], self.way[side][most:]
        self.garbled[side] &= bool(self.way[side])
        for event in other.feed(piece, self.now):
            if event.kind == "message":
                start = event.data.index(b"\x0137=") + 1
                self.arrived[side].append(b"35=8\x01" + event.data[start:-7])

    def garble(self, side: str, at: int) -> None:
        """One byte of what is on its way: of two that are wrong FIX's sum of bytes may see nothing."""
        way = bytearray(self.way[side] + self.cores[side].output(self.now))
        if way and not self.garbled[side]:
            way[at % len(way)] ^= 0x10
            self.garbled[side] = True
        self.way[side] = bytes(way)

    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND
        for core in self.cores.values():
            if core.deadline() <= self.now:
                core.tick(self.now)
                core.events()

    def settle(self) -> None:
        """Until both have what the other sent: heartbeats show gaps, broken sessions begin again."""
        for _ in range(400):
            for side in "abab":
                self.carry(side, 1 << 20)
            if any(core.state == "ended" for core in self.cores.values()):
                self.reopen()
            infos = {side: core.info() for side, core in self.cores.items()}
            if (
                all(core.state == "up" for core in self.cores.values())
                and infos["a"]["next_out"] == infos["b"]["next_in"]
                and infos["b"]["next_out"] == infos["a"]["next_in"]
            ):
                return
            self.wait(1)
        raise AssertionError(f"never at rest: {self.cores}")


STEP = st.one_of(
    st.tuples(st.just("send"), st.sampled_from("ab")),
    st.tuples(st.just("carry"), st.sampled_from("ab"), st.integers(1, 900)),
    st.tuples(st.just("garble"), st.sampled_from("ab"), st.integers(0, 900)),
    st.tuples(st.just("wait"), st.integers(1, 4)),
    st.tuples(st.just("reopen")),
)


@given(st.lists(STEP, max_size=60), st.sampled_from([0, 0, 8, 9]))
@settings(deadline=None)
def test_what_was_taken_arrives_once_and_in_order(steps, resend_max):
    pair = Pair(resend_max)
    pair.settle()
    for name, *args in steps:
        getattr(pair, name)(*args)
    pair.settle()
    assert pair.arrived == pair.taken
    for core in pair.cores.values():
        stats = core.stats()
        assert stats["received_bytes"] >= stats["skipped_bytes"]
