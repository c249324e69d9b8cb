"""Loss recovery with SACK: RACK-TLP (RFC 8985), PRR (6937), what a timeout forgets (2018), Eifel (3522)."""

from __future__ import annotations

import pytest

from xdpstack.sim import MILLISECOND, NEVER, SECOND
from xdpstack.tests.tcp_peer import IRS, ISS, Peer

NOP = ("NOP", None)
ROUND_TRIP = 40 * MILLISECOND
NONE, REDUCE, FAST, TIMEOUT = range(4)


class Sender(Peer):
    """Segments of 1000 bytes are out; positions are counted from our first byte."""

    def __init__(self, segments=10, stamps=False, **settings):
        settings.setdefault("congestion", "newreno")
        super().__init__(stamp_offset=5000, no_stamps=not stamps, **settings)
        self.stamps, self.value = stamps, 100
        assert self.take().flags == "S"
        self.now += ROUND_TRIP
        options = [("MSS", 1012 if stamps else 1000), ("SAckOK", b""), *self.stamp(self.ticks() - 40)]
        self.give("SA", IRS, ISS + 1, options=options)
        assert self.take().flags == "A"
        self.core.write(b"x" * 1000 * segments)
        self.out = self.all()

    def ticks(self):
        return 5000 + self.now // MILLISECOND

    def stamp(self, echo):
        self.value = getattr(self, "value", 100) + 1
        return [NOP, NOP, ("Timestamp", (self.value, echo))] if self.stamps else []

    def all(self):
        """The first bytes of all segments that may go now."""
        found = []
        while segment := self.take():
            found.append((segment.seq - ISS - 1) & 0xFFFFFFFF)
        return found

    def ack(self, ack, *blocks, echo=None, after=0):
        self.now += after
        edges = [ISS + 1 + edge & 0xFFFFFFFF for block in blocks for edge in block]
        options = self.stamp(self.ticks() - 40 if echo is None else echo)
        if edges:
            options += [NOP, NOP, ("SAck", tuple(edges))]
        self.give("A", IRS + 1, ISS + 1 + ack, options=options)
        return self.all()

    @property
    def info(self):
        return self.core.info()


@pytest.mark.rfc("8985", "6.2")
def test_three_segments_sacked_behind_a_hole_bring_it_back():
    peer = Sender()
    assert peer.out == list(range(0, 10_000, 1000))
    assert peer.ack(0, (1000, 2000), after=ROUND_TRIP) == []
    assert peer.ack(0, (1000, 3000)) == []
    assert (peer.info.sacked, peer.info.in_flight, peer.info.outstanding) == (2000, 8000, 10_000)
    assert peer.ack(0, (1000, 4000)) == [0]
    assert (peer.info.recovery, peer.info.lost, peer.core.stats().fast_retransmits) == (FAST, 0, 1)
    assert peer.info.ssthresh == 5000
    assert peer.ack(10_000, after=ROUND_TRIP) == []
    assert (peer.info.recovery, peer.info.cwnd) == (NONE, 5000)
    assert peer.core.stats().retransmits == 1


@pytest.mark.rfc("8985", "6.2")
def test_one_sacked_segment_is_enough_once_the_reordering_window_is_over():
    peer = Sender(3)
    assert peer.ack(0, (1000, 2000), after=ROUND_TRIP) == []
    due = peer.core.deadline()
    assert due == peer.now + ROUND_TRIP // 4
    peer.later()
    assert peer.all() == [0]
    assert peer.info.recovery == FAST


@pytest.mark.rfc("8985", "6.2")
def test_what_comes_late_but_within_the_window_is_not_sent_again_and_makes_it_patient():
    peer = Sender(4)
    assert peer.ack(0, (1000, 2000), after=ROUND_TRIP) == []
    assert peer.ack(4000, after=5 * MILLISECOND) == []
    peer.core.write(b"x" * 6000)
    assert len(peer.all()) == 6
    assert peer.ack(4000, (5000, 9000), after=ROUND_TRIP) == [], "three behind it, but reordering was seen"
    assert peer.core.stats().retransmits == 0


@pytest.mark.rfc("8985", "6.2")
@pytest.mark.parametrize("stamps", [False, True])
def test_a_retransmission_that_is_lost_is_sent_a_third_time_without_a_timeout(stamps):
    peer = Sender(10, stamps=stamps)
    assert peer.ack(0, (1000, 4000), after=ROUND_TRIP) == [0]
    peer.core.write(b"x" * 5000)
    peer.now += MILLISECOND
    sent = peer.ack(0, (1000, 8000))
    assert sent, "PRR lets new data go for what has left"
    again = peer.ack(0, (1000, 10_000 + 1000), after=ROUND_TRIP)
    assert again[0] == 0, "it was sent before something that has come by now"
    assert peer.core.stats().timeouts == 0


@pytest.mark.rfc("8985", "6.2")
@pytest.mark.parametrize("stamps", [False, True])
def test_a_retransmission_that_is_lost_shows_by_the_next_ones_that_come(stamps):
    """Nothing new need be sent. Beside a hole each echo is of what came before it: it says nothing here."""
    peer = Sender(10, stamps=stamps)
    first = peer.ticks()
    assert peer.ack(0, (5000, 8000), after=ROUND_TRIP, echo=first) == [0, 1000, 2000]
    assert peer.ack(0, (1000, 2000), (5000, 8000), echo=first, after=ROUND_TRIP)[0] == 0
    assert peer.core.stats().timeouts == 0


@pytest.mark.rfc("8985", "6.2")
def test_what_came_so_soon_after_it_was_sent_again_is_its_first_sending():
    peer = Sender(10, stamps=True)
    first = peer.ticks()
    assert peer.ack(0, (5000, 8000), after=ROUND_TRIP, echo=first) == [0, 1000, 2000]
    assert 0 not in peer.ack(0, (1000, 2000), (5000, 8000), echo=first, after=ROUND_TRIP // 2)


@pytest.mark.rfc("8985", "7.2")
def test_a_tail_that_is_lost_is_asked_for_after_two_round_trips():
    peer = Sender(5)
    assert peer.ack(3000, after=ROUND_TRIP) == []
    assert peer.core.deadline() == peer.now + 2 * peer.info.srtt_ns
    peer.later()
    assert peer.all() == [4000], "nothing new to send: the last segment again"
    assert peer.core.stats().tail_probes == 1
    assert peer.ack(3000, (4000, 5000), after=ROUND_TRIP) == [3000]
    assert peer.core.stats().timeouts == 0


@pytest.mark.rfc("8985", "7.3")
def test_a_tail_probe_is_new_data_where_there_is_some():
    peer = Sender(5, nagle=1)
    peer.core.write(b"y" * 10)
    assert peer.all() == [], "Nagle"
    peer.later()
    assert peer.all() == [5000]


@pytest.mark.rfc("8985", "7.2")
def test_a_single_segment_waits_for_a_delayed_ack_but_no_longer_than_for_the_timeout():
    peer = Sender(1)
    rto = peer.info.rto_ns
    assert peer.core.deadline() == peer.now + min(2 * peer.info.srtt_ns + SECOND // 5, rto)
    peer.later()
    assert peer.all() == [0]
    assert (peer.core.stats().tail_probes, peer.core.stats().timeouts) == (1, 0)
    peer.later()
    assert peer.all() == [0]
    assert peer.core.stats().timeouts == 1


@pytest.mark.rfc("8985", "7.4")
def test_a_probe_that_repaired_a_loss_reduces_the_window_once():
    peer = Sender(5)
    peer.ack(4000, after=ROUND_TRIP)
    before = peer.info.cwnd
    peer.later()
    assert peer.all() == [4000]
    peer.ack(5000, after=ROUND_TRIP)
    peer.core.write(b"x" * 3000)
    peer.all()
    peer.ack(6000, after=ROUND_TRIP)
    assert (peer.info.recovery, peer.info.ssthresh < before) == (REDUCE, True)
    assert peer.core.stats().fast_retransmits == 0


@pytest.mark.rfc("8985", "7.4")
def test_a_probe_whose_segment_had_come_reduces_nothing():
    peer = Sender(5)
    peer.ack(4000, after=ROUND_TRIP)
    peer.later()
    peer.all()
    peer.ack(5000, (4000, 5000), after=ROUND_TRIP)
    assert peer.core.stats().dsacks == 1
    peer.core.write(b"x" * 3000)
    peer.all()
    peer.ack(8000, after=ROUND_TRIP)
    assert peer.info.ssthresh > 1 << 30


@pytest.mark.rfc("8985", "7.4")
def test_what_a_probe_repaired_was_lost_of_what_was_out_then_not_of_what_is_out_now():
    peer = Sender(10)
    peer.later()
    assert peer.all() == [9000]
    peer.ack(10_000, after=ROUND_TRIP)
    peer.core.write(b"x" * 1000)
    assert peer.all() == [10_000]
    peer.ack(11_000, after=ROUND_TRIP)
    assert peer.info.ssthresh == 5000, "half of the ten, and not two segments because one was out"


@pytest.mark.rfc("8985", "7.4")
@pytest.mark.parametrize(
    ("blocks", "reduces"),
    [
        ([(9000, 10_000)], False),  # the probe came twice
        ([(8000, 9000)], True),  # something else did
        ([], False),  # a peer without DSACK says the same once more
        ([(10_000, 11_000)], True),  # new data behind a hole: nothing about the probe
    ],
)
def test_only_what_speaks_of_the_probe_says_that_it_was_not_needed(blocks, reduces):
    peer = Sender(10)
    peer.later()
    peer.all()
    peer.ack(10_000, after=ROUND_TRIP)
    peer.core.write(b"x" * 2000)
    peer.all()
    peer.ack(10_000, *blocks)
    peer.ack(12_000, after=ROUND_TRIP)
    assert (peer.info.ssthresh < 1 << 30) == reduces


@pytest.mark.rfc("6937", "3")
def test_prr_sends_half_of_what_comes_and_ends_at_ssthresh():
    peer = Sender(30)
    assert peer.out == list(range(0, 10_000, 1000)), "the initial window"
    sent = 0
    peer.ack(0, (1000, 4000), after=ROUND_TRIP)
    for end in range(5000, 11_000, 1000):
        sent += len(peer.ack(0, (1000, end)))
        assert peer.info.in_flight <= peer.info.cwnd
    assert sent == 4, "ten were out, five remain: one was sent again"
    assert peer.info.in_flight == 5000
    peer.ack(10_000)
    assert (peer.info.recovery, peer.info.cwnd) == (NONE, 5000)


@pytest.mark.rfc("6937", "3")
def test_prr_grows_back_to_ssthresh_after_heavy_loss():
    peer = Sender(30)
    first = peer.ack(0, (7000, 10_000), after=ROUND_TRIP)
    assert peer.info.ssthresh == 5000
    assert first[0] == 0
    assert peer.info.in_flight <= peer.info.ssthresh
    for hole in range(1000, 7000, 1000):
        peer.ack(hole, (7000, 10_000), after=MILLISECOND)
        assert peer.info.in_flight <= peer.info.cwnd <= 5000
    assert peer.core.stats().retransmits == 7
    assert peer.core.stats().timeouts == 0


@pytest.mark.rfc("2018", "8")
def test_a_timeout_forgets_what_was_sacked_for_the_peer_may_have_reneged():
    peer = Sender(4)
    peer.ack(0, (1000, 2000), (3000, 4000), after=ROUND_TRIP)
    while not peer.core.stats().timeouts:
        peer.later()
        peer.all()
    assert (peer.info.sacked, peer.info.recovery, peer.info.cwnd) == (0, TIMEOUT, 1000)
    assert peer.ack(1000, after=ROUND_TRIP) == [1000, 2000], "though it was sacked"
    assert peer.ack(3000, after=ROUND_TRIP) == [3000]
    peer.ack(4000, after=ROUND_TRIP)
    assert (peer.info.recovery, peer.core.deadline()) == (NONE, NEVER)


@pytest.mark.rfc("2018", "5")
def test_what_is_sacked_again_after_a_timeout_is_not_sent_again():
    peer = Sender(6)
    while not peer.core.stats().timeouts:
        peer.later()
        peer.all()
    assert peer.info.lost == 5000
    assert peer.ack(1000, (2000, 6000), after=ROUND_TRIP) == [1000]
    assert peer.ack(6000, after=ROUND_TRIP) == []


@pytest.mark.rfc("2018", "5")
@pytest.mark.parametrize("block", [(2000, 1000), (9000, 99_000), (1 << 31, 5), (-5, 3), (5, 5)])
def test_blocks_of_what_was_never_sent_are_counted_and_change_nothing(block):
    peer = Sender()
    peer.ack(0, block, after=ROUND_TRIP)
    assert (peer.core.stats().sack_bad, peer.info.sacked, peer.info.in_flight) == (1, 0, 10_000)


@pytest.mark.rfc("2018", "5")
def test_blocks_need_not_end_where_segments_do():
    peer = Sender()
    assert peer.ack(0, (1500, 2700), after=ROUND_TRIP) == []
    assert (peer.info.sacked, peer.info.in_flight) == (1200, 8800)
    assert peer.ack(0, (1500, 5700)) == [0]
    assert (peer.info.in_flight, peer.info.lost) == (10_000 - 4200 - 500, 500)
    assert peer.ack(0, (1500, 6700)) == [1000]


def test_the_board_is_bounded_whatever_a_peer_names():
    peer = Sender()
    for start in range(1, 9000, 4):
        peer.ack(0, (start, start + 1))
    info = peer.info
    assert info.sacked <= 128
    assert info.sacked + info.lost + info.in_flight == info.outstanding
    peer.ack(10_000)
    assert (peer.info.outstanding, peer.info.in_flight, peer.info.sacked) == (0, 0, 0)


@pytest.mark.rfc("6298", "5.3", "5.7")
@pytest.mark.parametrize("sack", [True, False])
def test_an_ack_after_back_offs_starts_the_timer_by_what_it_measured(sack):
    peer = Sender(4, stamps=True, congestion="none", no_sack=not sack)
    rto = peer.info.rto_ns
    while peer.core.stats().timeouts < 2:
        peer.later()
        again = peer.all()
    assert again == [0, 1000, 2000, 3000], "nothing holds it back"
    assert peer.info.rto_ns == 4 * rto
    assert peer.ack(1000, after=ROUND_TRIP) == []
    assert peer.info.rto_ns < 2 * rto
    assert peer.core.deadline() == peer.now + peer.info.rto_ns, "else the next loss waits for four times that"


@pytest.mark.rfc("3522", "3.2")
def test_a_timeout_for_nothing_is_undone_by_the_stamp_of_the_first_answer():
    peer = Sender(10, stamps=True)
    late = peer.ticks()
    cwnd = peer.info.cwnd
    while not peer.core.stats().timeouts:
        peer.later()
        peer.all()
    assert peer.info.cwnd == 1000
    new = peer.ack(2000, echo=late)
    assert new == [], "nothing is lost: nothing goes again"
    assert (peer.core.stats().undone, peer.info.recovery, peer.info.lost) == (1, NONE, 0)
    assert peer.info.in_flight == 8000
    assert peer.info.ssthresh >= cwnd
    assert peer.info.cwnd == 8000 + 2000, "RFC 4015 3.2: what is out, and what came"


@pytest.mark.rfc("3522", "3.2")
def test_a_timeout_whose_repair_is_what_came_stays():
    peer = Sender(10, stamps=True)
    while not peer.core.stats().timeouts:
        peer.later()
        peer.all()
    peer.ack(1000, echo=peer.ticks())
    assert (peer.core.stats().undone, peer.info.recovery) == (0, TIMEOUT)


@pytest.mark.rfc("3522", "3.2")
def test_only_the_first_answer_and_the_first_repair_are_compared():
    """Two holes: the repair of the second goes out before the repair of the first is answered for."""
    peer = Sender(10, stamps=True)
    assert peer.ack(0, (1000, 2000), (4000, 8000), after=ROUND_TRIP)[0] == 0
    first = peer.ticks()
    peer.now += 5 * MILLISECOND
    peer.ack(2000, (4000, 9000), echo=first)
    peer.now += 5 * MILLISECOND
    peer.ack(3000, (4000, 10_000), echo=first)
    peer.ack(10_000, echo=first)
    assert (peer.core.stats().undone, peer.info.ssthresh) == (0, 5000)


@pytest.mark.rfc("3708", "3")
def test_a_fast_retransmission_of_what_was_late_is_undone_by_its_dsack():
    peer = Sender()
    assert peer.ack(0, (1000, 4000), after=ROUND_TRIP) == [0]
    peer.ack(4000)
    assert peer.info.ssthresh == 5000
    peer.ack(4000, (0, 1000))
    assert peer.core.stats().undone == 1
    assert (peer.info.cwnd, peer.info.recovery) == (10_000, NONE)
    assert peer.info.ssthresh >= 10_000


def test_pieces_that_were_written_one_by_one_go_again_as_whole_segments():
    peer = Sender(0)
    for _ in range(30):
        peer.core.write(b"z" * 100)
        assert peer.take()
    while not peer.core.stats().timeouts:
        peer.later()
        peer.all()
    assert peer.ack(1000, after=ROUND_TRIP) == [1000, 2000]
