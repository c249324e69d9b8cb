"""The congestion window: CUBIC (RFC 9438), NewReno (RFC 5681), none; over a wire whose queue overflows."""

from __future__ import annotations

from itertools import pairwise

import pytest

from xdpstack.sim import MILLISECOND, SECOND, Sim, Wire
from xdpstack.tcp import TcpCore
from xdpstack.tests.tcp_peer import IRS, ISS, ME, PEER, Peer

MSS = 1000
ROUND_TRIP = 100 * MILLISECOND


class Path:
    """A peer that acknowledges all that is out, once a round trip, and may lose the first of it."""

    def __init__(self, congestion="cubic"):
        self.peer = Peer(congestion=congestion, no_stamps=1, send_bytes=1 << 20)
        self.peer.take()
        self.peer.now += ROUND_TRIP
        options = [("MSS", MSS), ("SAckOK", b""), ("WScale", 5)]
        self.peer.give("SA", IRS, ISS + 1, options=options, window=65535)
        self.peer.take()
        self.acked = 0

    @property
    def cwnd(self):
        return self.peer.core.info().cwnd

    def fill(self, data=1 << 20):
        self.peer.core.write(b"x" * data)
        count = 0
        while self.peer.core.output(self.peer.now):
            count += 1
        return count

    def ack(self, to, *blocks):
        edges = [ISS + 1 + edge & 0xFFFFFFFF for block in blocks for edge in block]
        options = [("NOP", None)] * 2 + [("SAck", tuple(edges))] if edges else []
        self.peer.give("A", IRS + 1, ISS + 1 + to, options=options, window=65535)
        self.acked = to

    def round(self, data=1 << 20, step=MSS):
        """Everything that the window allows, and an ACK for each step of it a round trip later."""
        self.fill(data)
        end = self.acked + self.peer.core.info().outstanding
        self.peer.now += ROUND_TRIP
        for at in range(self.acked + step, end + step, step):
            self.ack(min(at, end))
            self.fill(0)
        return self.cwnd

    def lose(self):
        """One loss: the first segment that is out; repaired a round trip later."""
        self.fill()
        end = self.acked + self.peer.core.info().outstanding
        self.peer.now += ROUND_TRIP
        first = self.acked
        for at in range(first + 4 * MSS, end + 4 * MSS, 4 * MSS):
            self.ack(first, (first + MSS, min(at, end)))
            self.fill(0)
        self.peer.now += ROUND_TRIP
        self.ack(end)
        return self.peer.core.info().ssthresh


@pytest.mark.rfc("6928", "2")
@pytest.mark.parametrize("mss", [1000, 1460, 4000])
def test_it_starts_with_ten_segments_or_what_ten_usual_ones_hold(mss):
    peer = Peer(no_stamps=1, mss=mss)
    peer.take()
    peer.give("SA", IRS, ISS + 1, options=[("MSS", mss)])
    assert peer.core.info().cwnd == min(10 * mss, max(2 * mss, 14600))


@pytest.mark.rfc("9293", "MUST-19")
@pytest.mark.rfc("5681", "3.1")
@pytest.mark.parametrize("congestion", ["cubic", "newreno"])
def test_it_doubles_each_round_trip_until_something_is_lost(congestion):
    path = Path(congestion)
    assert [path.round() for _ in range(3)] == [20_000, 40_000, 80_000]


@pytest.mark.rfc("7661", "4")
@pytest.mark.parametrize("congestion", ["cubic", "newreno"])
def test_a_window_that_is_not_used_does_not_grow(congestion):
    path = Path(congestion)
    for _ in range(10):
        path.round(2000)
    assert path.cwnd < 20_000


@pytest.mark.rfc("9293", "MUST-19")
@pytest.mark.rfc("5681", "3.2")
def test_newreno_halves_and_adds_a_segment_a_round_trip():
    path = Path("newreno")
    path.round()
    path.round()
    assert path.lose() == 20_000
    path.fill()
    before = path.cwnd
    for n in range(1, 4):
        assert path.round() == pytest.approx(before + n * MSS, abs=MSS // 2)


@pytest.mark.rfc("9438", "4.6")
def test_cubic_keeps_seven_tenths():
    path = Path()
    path.round()
    path.round()
    assert path.cwnd == 40_000
    assert path.lose() == 28_000
    assert path.peer.core.info().cwnd == 28_000


@pytest.mark.rfc("9438", "4.2")
def test_cubic_is_back_where_it_lost_after_k_seconds_and_then_grows_faster_and_faster():
    path = Path()
    for _ in range(4):
        path.round()
    assert path.cwnd == 160_000
    path.lose()
    k = ((160 - 112) / 0.4) ** (1 / 3)  # seconds
    rounds = [path.cwnd] + [path.round(step=16 * MSS) for _ in range(round(k * 10) + 40)]
    at_k = rounds[round(k * 10)]
    assert at_k == pytest.approx(160_000, rel=0.02)
    steps = [b - a for a, b in pairwise(rounds)]
    middle = round(k * 10)
    assert sum(steps[:10]) > 3 * sum(steps[middle - 5 : middle + 5]), "concave: level around what was lost at"
    assert sum(steps[-10:]) > sum(steps[middle : middle + 10]), "convex: it looks for more"
    second = 0.4 * 3**3 + 160
    assert rounds[middle + 30] == pytest.approx(second * 1000, rel=0.05)


@pytest.mark.rfc("9438", "4.7")
def test_a_second_loss_below_the_first_leaves_room_for_others():
    path = Path()
    for _ in range(4):
        path.round()
    path.lose()
    path.round()
    window = path.cwnd
    assert window < 160_000
    path.lose()
    k = ((window * 0.85 - window * 0.7) / 1000 / 0.4) ** (1 / 3)
    rounds = [path.round(step=16 * MSS) for _ in range(round(k * 10))]
    assert rounds[-1] == pytest.approx(window * 0.85, rel=0.03)


@pytest.mark.rfc("9293", "MAY-18")
@pytest.mark.rfc("9438", "4.3")
def test_with_a_small_window_cubic_is_no_slower_than_newreno():
    windows = {}
    for congestion in ("cubic", "newreno"):
        path = Path(congestion)
        path.lose()
        path.fill()
        first = path.cwnd
        for _ in range(20):
            path.round()
        windows[congestion] = path.cwnd - first
    assert windows["cubic"] >= 20 * 0.5 * MSS
    assert windows["newreno"] == pytest.approx(20 * MSS, rel=0.1)


@pytest.mark.rfc("5681", "4.1")
def test_after_a_pause_it_starts_with_the_first_window_again():
    path = Path()
    path.round(1 << 17)
    while path.peer.core.info().unsent or path.peer.core.info().outstanding:
        path.round(0)
    assert path.cwnd > 20_000
    path.peer.now += 10 * SECOND
    assert path.fill() == 10


@pytest.mark.parametrize("congestion", ["cubic", "newreno", "none"])
def test_each_fills_a_slow_path_whose_queue_overflows(congestion):
    """10 MB/s, 10 ms, 100 segments of queue: a few losses each, and the path is used."""
    path = Wire(latency=5 * MILLISECOND, rate=10_000_000, queue=100)
    first = TcpCore((ME, 1), (PEER, 2), iss=1, congestion=congestion, send_bytes=1 << 20)
    second = TcpCore((PEER, 2), None, iss=2, receive_bytes=1 << 20)
    left, got = bytearray(b"x" * 3_000_000), bytearray()

    def watch(end):
        if end == 0 and left and first.state == "established":
            del left[: first.write(bytes(left[:65536]))]
        got.extend(second.read())

    sim = Sim((first, second), (ME, PEER), (path, Wire(latency=5 * MILLISECOND)), 1, watch)
    sim.run(until=lambda: len(got) == 3_000_000)
    assert sim.now - SECOND < 3_000_000 / 10_000_000 * SECOND * (1.5 if congestion != "none" else 10)
    assert first.stats().retransmits > 0
    assert first.stats().timeouts <= (0 if congestion != "none" else 1000)
