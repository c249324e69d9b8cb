"""Time stamps and PAWS (RFC 7323 3 to 5): who sends them, what they echo, what is refused for them."""

from __future__ import annotations

import pytest

from xdpstack.sim import MILLISECOND, SECOND, Sim, Wire
from xdpstack.tcp import TcpCore
from xdpstack.tests.tcp_peer import FAMILIES, IRS, ISS, ME, PEER, Peer, reasons

NOP = ("NOP", None)
DAY = 86400 * SECOND
OFFSET = 0xFFFFFFF0  # of our stamps: they wrap within the first ticks


def stamp(value, echo=0):
    return [NOP, NOP, ("Timestamp", (value & 0xFFFFFFFF, echo & 0xFFFFFFFF))]


def ours(segment):
    """What a segment of ours says: (stamp, echo), or None."""
    return dict(segment.options).get("Timestamp")


def ticks(peer):
    return (OFFSET + peer.now // MILLISECOND) & 0xFFFFFFFF


def agreed(value=100, **settings):
    peer = Peer(stamp_offset=OFFSET, **settings).established(stamp(value))
    assert peer.core.info().stamps == 1
    return peer


@pytest.mark.rfc("9293", "MUST-16")
@pytest.mark.parametrize("family", FAMILIES)
def test_both_send_stamps_where_both_named_them(family):
    peer = Peer(FAMILIES[family], stamp_offset=OFFSET)
    assert ours(peer.take()) == (ticks(peer), 0)
    assert peer.give("SA", IRS, ISS + 1, options=[("MSS", 1000), *stamp(100, ticks(peer))]) == 0
    assert ours(peer.take()) == (ticks(peer), 100)
    assert peer.core.info().mss == 988
    peer.core.write(b"x" * 2000)
    peer.now += 5 * MILLISECOND
    sent = [peer.take(), peer.take()]
    assert [len(segment.payload) for segment in sent] == [988, 988]
    assert [ours(segment) for segment in sent] == [(ticks(peer), 100)] * 2
    assert [segment.dataofs for segment in sent] == [8, 8]


def test_a_listener_sends_them_only_to_whom_named_them():
    for options, answer in (((), None), (stamp(7), (ticks(Peer()), 7))):
        peer = Peer(passive=True, stamp_offset=OFFSET)
        peer.give("S", IRS, options=options)
        assert ours(peer.take()) == answer
        assert peer.core.info().stamps == bool(options)


def test_without_them_nothing_is_sent_or_refused():
    silent = Peer(no_stamps=1)
    assert ours(silent.take()) is None
    for peer in (Peer().established(), Peer(no_stamps=1).established(stamp(100))):
        assert peer.core.info().stamps == 0
        assert peer.core.info().mss == 1000
        peer.give("A", IRS + 1, ISS + 1, b"no stamp")
        peer.give("A", IRS + 9, ISS + 1, b" or one", options=stamp(1))
        assert peer.core.read() == b"no stamp or one"
        assert ours(peer.take()) is None


def test_a_stamp_older_than_the_newest_is_refused_and_answered():
    peer = agreed(100)
    assert peer.give("A", IRS + 1, ISS + 1, b"old", options=stamp(99)) != 0
    answer = peer.take()
    assert (answer.flags, answer.ack, ours(answer)) == ("A", IRS + 1, (ticks(peer), 100))
    assert peer.give("A", IRS + 1, ISS + 1, b"new", options=stamp(100)) == 0
    assert peer.core.read() == b"new"
    assert reasons(peer.core) == {"delivered": 2, "paws": 1}


def test_old_acks_without_data_are_answered_so_many_a_second():
    peer = agreed(100)
    answers = 0
    for _ in range(50):
        assert peer.give("A", IRS + 1, ISS + 1, options=stamp(99)) != 0
        answers += peer.take() is not None
    assert answers == 10
    assert reasons(peer.core) == {"delivered": 1, "paws": 50}


def test_stamps_wrap():
    peer = agreed(0xFFFFFFFE)
    at = IRS + 1
    for value in (0xFFFFFFFF, 0, 5):
        assert peer.give("A", at, ISS + 1, b"z", options=stamp(value)) == 0
        assert ours(peer.take())[1] == value
        at += 1
    assert peer.give("A", at, ISS + 1, b"z", options=stamp(0xFFFFFFFF)) != 0


def test_after_24_days_of_silence_an_old_stamp_says_nothing():
    peer = agreed(100)
    peer.now += 25 * DAY
    assert peer.give("A", IRS + 1, ISS + 1, b"awake", options=stamp(100 - (1 << 30))) == 0
    assert peer.core.read() == b"awake"


def test_a_segment_without_its_stamp_is_refused_and_a_reset_is_not():
    peer = agreed()
    assert peer.give("A", IRS + 1, ISS + 1, b"bare") != 0
    assert reasons(peer.core) == {"delivered": 1, "no_stamp": 1}
    assert peer.core.read() == b""
    assert peer.take() is None  # silently (RFC 7323 3.2)
    assert peer.give("R", IRS + 1) == 0
    assert peer.core.events() == ["reset"]


def test_what_is_echoed_is_of_the_segment_that_the_ack_waited_for():
    """A hole: what comes behind it is newer, but an echo of it would hide the wait for the hole (4.3)."""
    peer = agreed(100)
    peer.give("A", IRS + 4, ISS + 1, b"def", options=stamp(130))
    assert ours(peer.take())[1] == 100
    peer.give("A", IRS + 1, ISS + 1, b"abc", options=stamp(120))
    answer = peer.take()
    assert (answer.ack, ours(answer)[1]) == (IRS + 7, 120)


@pytest.mark.rfc("9293", "MUST-18")
def test_what_was_sent_again_is_timed_by_its_echo():
    plain, peer = Peer().established(), agreed()
    for one, echo in ((plain, None), (peer, True)):
        one.core.write(b"x" * 500)
        assert one.take()
        one.later()
        assert one.take()
        assert one.core.info().rto_ns == 2 * 200 * MILLISECOND
        sent = ticks(one)
        one.now += 30 * MILLISECOND
        one.give("A", IRS + 1, ISS + 501, options=stamp(101, sent) if echo else ())
    assert plain.core.info().rto_ns == 400 * MILLISECOND, "Karn: nothing was learned"
    assert peer.core.info().rto_ns == 200 * MILLISECOND
    assert 0 < peer.core.info().srtt_ns < 30 * MILLISECOND


def test_an_echo_of_nothing_that_we_sent_is_no_round_trip():
    peer = agreed()
    peer.core.write(b"x" * 500)
    peer.take()
    peer.later()
    peer.take()
    before = peer.core.info().rto_ns
    peer.give("A", IRS + 1, ISS + 501, options=stamp(101, ticks(peer) + 1000))
    assert peer.core.info().rto_ns == before


def test_a_reset_of_ours_has_a_stamp_too():
    peer = agreed(100)
    peer.core.abort()
    last = peer.take()
    assert (last.flags, ours(last)) == ("RA", (ticks(peer), 100))


def test_what_comes_again_because_our_ack_was_lost_is_echoed():
    peer = agreed(100)
    peer.give("A", IRS + 1, ISS + 1, b"abc", options=stamp(110))
    assert ours(peer.take())[1] == 110  # this one is lost
    assert peer.give("A", IRS + 1, ISS + 1, b"abc", options=stamp(900)) != 0
    answer = peer.take()
    assert (answer.ack, ours(answer)[1]) == (IRS + 4, 900)
    peer.give("A", IRS + 1 - (1 << 20), ISS + 1, b"abc", options=stamp(5000))
    assert ours(peer.take())[1] == 900, "older than a window: it may be forged"


@pytest.mark.parametrize("number", range(10))
def test_no_outage_is_taken_for_a_round_trip(number):
    """Over a wire that loses in bursts; the wire's own round trip is 40 ms."""
    first = TcpCore((ME, 1), (PEER, 2), iss=1, give_up_ns=3600 * SECOND)
    second = TcpCore((PEER, 2), None, iss=2)
    wire = Wire(latency=20 * MILLISECOND, burst=0.04, burst_length=4)
    left, got = bytearray(b"x" * 200_000), bytearray()

    def watch(end):
        if end == 0 and left and first.state == "established":
            del left[: first.write(bytes(left))]
        got.extend(second.read())
        assert first.info().srtt_ns < 50 * MILLISECOND

    sim = Sim((first, second), (ME, PEER), (wire, wire), number, watch)
    sim.run(until=lambda: len(got) == 200_000)
    assert len(got) == 200_000
    assert first.stats().retransmits > 0
