"""cores/tcp: one connection, segment by segment, with scapy as the second opinion on what it builds."""

from __future__ import annotations

import pytest

from xdpstack.sim import MILLISECOND, NEVER, SECOND, Sim, Wire
from xdpstack.tcp import TcpCore, address16
from xdpstack.tests.tcp_peer import FAMILIES, IRS, ISS, ME, PEER, Peer, reasons


@pytest.mark.rfc("9293", "MUST-14")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_syn_names_segment_size_and_scale_and_its_answer_opens(family):
    peer = Peer(FAMILIES[family], receive_bytes=1 << 20)
    syn = peer.take()
    assert ("MSS", 1460) in syn.options
    assert ("WScale", 5) in syn.options
    assert peer.give("SA", IRS, ISS + 1, options=[("MSS", 700), ("WScale", 3)], window=100) == 0
    assert peer.take().flags == "A"
    assert peer.core.info().mss == 700
    assert peer.core.write(b"x" * 3000) == 3000
    assert len(peer.take().payload) == 100  # the window of a SYN is not scaled; half of the largest goes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_listener_answers_a_syn_and_takes_data_with_the_third_segment(family):
    peer = Peer(FAMILIES[family], passive=True)
    assert peer.give("S", IRS) == 0
    answer = peer.take()
    assert answer.flags == "SA"
    assert answer.ack == IRS + 1
    assert peer.give("A", IRS + 1, ISS + 1, b"hello") == 0
    assert peer.core.state == "established"
    assert peer.core.read() == b"hello"
    assert peer.take().ack == (IRS + 6) & 0xFFFFFFFF


@pytest.mark.rfc("9293", "MUST-11")
def test_a_reset_in_syn_received_takes_a_listener_back_and_refuses_an_opener():
    peer = Peer(passive=True)
    peer.give("S", IRS)
    peer.take()
    peer.give("R", IRS + 1)
    assert peer.core.state == "listen"
    assert peer.core.events() == []
    assert peer.core.deadline() == NEVER
    opener = Peer()
    opener.take()
    opener.give("RA", 0, ISS + 1)
    assert opener.core.state == "closed"
    assert opener.core.events() == ["refused"]


def test_a_reset_in_syn_sent_counts_only_with_our_number():
    peer = Peer()
    peer.take()
    assert peer.give("RA", 0, ISS + 2) != 0
    assert peer.give("R", 0) != 0
    assert peer.core.state == "syn_sent"
    assert reasons(peer.core) == {"ack_bad": 1, "reset_bad": 1}
    assert peer.take() is None
    peer.give("A", 5, ISS + 9)
    reset = peer.take()
    assert reset.flags == "R"
    assert reset.seq == (ISS + 9) & 0xFFFFFFFF


def test_a_closed_connection_answers_with_a_reset_and_a_reset_with_nothing():
    peer = Peer()
    peer.take()
    peer.core.close()
    peer.give("S", 7, data=b"abc")
    reset = peer.take()
    assert reset.flags == "RA"
    assert reset.seq == 0
    assert reset.ack == 11
    peer.give("R", 7)
    assert peer.take() is None
    assert reasons(peer.core) == {"no_state": 2}


@pytest.mark.rfc("9293", "MAY-12")
def test_a_reset_must_be_exactly_the_next_byte():
    peer = Peer().established()
    peer.give("R", IRS + 2)
    assert peer.take().flags == "A"
    assert peer.core.state == "established"
    peer.give("R", IRS + 1 + 70000)
    assert peer.take() is None
    peer.give("R", IRS + 1)
    assert peer.core.state == "closed"
    assert peer.core.events() == ["reset"]
    assert reasons(peer.core) == {"delivered": 2, "reset_bad": 1, "window": 1}


@pytest.mark.rfc("9293", "MAY-12")
def test_challenges_are_ten_a_second():
    peer = Peer().established()
    answers = 0
    for _ in range(30):
        peer.give("S", IRS + 1)
        answers += peer.take() is not None
    assert answers == 10
    assert peer.core.stats().challenges_held == 20
    peer.now += SECOND
    peer.give("S", IRS + 1)
    assert peer.take() is not None


@pytest.mark.rfc("9293", "MAY-12")
def test_an_ack_of_what_was_not_sent_is_refused():
    peer = Peer().established()
    peer.give("A", IRS + 1, ISS + 2, b"no")
    assert peer.core.read() == b""
    assert reasons(peer.core)["ack_bad"] == 1
    assert peer.take().flags == "A"


@pytest.mark.rfc("9293", "SHLD-31", "MAY-13")
def test_pieces_out_of_order_are_joined():
    peer = Peer().established()
    text = bytes(range(60))
    for start, end in [(40, 60), (10, 25), (20, 45), (0, 5), (3, 12)]:
        peer.give("A", IRS + 1 + start, ISS + 1, text[start:end])
        assert peer.take().flags == "A"
    assert peer.core.read() == text
    assert peer.core.stats().out_of_order == 3
    assert peer.core.info().disordered == 0


def test_a_hole_too_many_is_counted_and_nothing_is_lost_by_it():
    peer = Peer().established()
    for i in range(70):
        peer.give("A", IRS + 3 + 2 * i, ISS + 1, b"b")
    assert reasons(peer.core)["disordered"] == 6
    assert peer.core.info().disordered == 64


@pytest.mark.rfc("9293", "MUST-19")
def test_a_lost_segment_goes_again_after_the_timeout_that_doubles():
    peer = Peer().established()
    peer.core.write(b"abc")
    assert bytes(peer.take().payload) == b"abc"
    waits = []
    for _ in range(4):
        before = peer.now
        peer.later()
        waits.append(peer.now - before)
        again = peer.take()
        assert bytes(again.payload) == b"abc"
        assert again.seq == ISS + 1
    assert waits[1:] == [2 * waits[0], 4 * waits[0], 8 * waits[0]]


def test_three_duplicates_bring_the_segment_back_before_the_timeout():
    peer = Peer(congestion="newreno").established()
    peer.core.write(b"x" * 8000)
    segments = [peer.take() for _ in range(8)]
    assert [len(s.payload) for s in segments] == [1000] * 8
    assert peer.take() is None
    for _ in range(2):
        peer.give("A", IRS + 1, ISS + 1)
    assert peer.take() is None
    peer.give("A", IRS + 1, ISS + 1)
    assert peer.take().seq == ISS + 1
    assert peer.core.stats().fast_retransmits == 1
    assert peer.core.info().ssthresh == 4000


@pytest.mark.rfc("9293", "MUST-20", "MUST-21")
def test_a_silent_peer_is_given_up_on_after_the_time_that_was_set():
    peer = Peer(give_up_ns=20 * SECOND).established()
    peer.core.write(b"abc")
    start = peer.now
    while peer.core.state != "closed":
        peer.take()
        peer.later()
    assert peer.core.events()[-1:] == ["timeout"]
    assert 20 * SECOND <= peer.now - start < 60 * SECOND
    assert peer.core.deadline() == NEVER


@pytest.mark.rfc("9293", "MUST-37")
def test_a_closed_window_is_probed_with_one_byte_for_as_long_as_the_peer_answers():
    peer = Peer(give_up_ns=20 * SECOND).established(window=0)
    peer.core.write(b"abc")
    for _ in range(12):
        assert peer.take() is None
        peer.later()
        assert bytes(peer.take().payload) == b"a"
        peer.give("A", IRS + 1, ISS + 1, window=0)
    peer.give("A", IRS + 1, ISS + 1, window=1000)
    assert bytes(peer.take().payload) == b"abc"


def test_a_closed_window_of_a_peer_that_is_gone_is_given_up():
    for write in (b"abc", b""):  # the FIN alone, too
        peer = Peer(give_up_ns=20 * SECOND).established(window=0)
        start = peer.now
        peer.core.write(write)
        peer.core.close()
        for _ in range(100):
            while peer.take():
                pass
            if peer.core.state == "closed":
                break
            peer.later()
        assert peer.core.events()[-1:] == ["timeout"]
        assert 20 * SECOND <= peer.now - start < 60 * SECOND


@pytest.mark.rfc("9293", "MUST-38", "MUST-39")
def test_no_silly_windows_either_way():
    peer = Peer(receive_bytes=4096, mss=1000).established(window=4000)
    peer.core.write(b"x" * 8000)
    assert [len(peer.take().payload) for _ in range(4)] == [1000] * 4
    peer.give("A", IRS + 1, ISS + 4001, window=10)
    assert peer.take() is None  # ten bytes are not worth a segment
    for i in range(4):
        peer.give("A", IRS + 1 + 1000 * i, ISS + 4001, b"y" * 1000, window=10)
        told = peer.take().window
    assert told == 96
    peer.core.read(500)
    assert peer.take() is None
    peer.core.read(3500)
    assert peer.take().window == 4096


def test_an_answer_to_what_was_read_offers_the_window_that_stood_before():
    peer = Peer(receive_bytes=4096, mss=1000).established()
    for i in range(50):
        peer.give("A", IRS + 1 + 64 * i, ISS + 1 + 64 * i, b"y" * 64)
        assert peer.core.read() == b"y" * 64
        peer.core.write(b"x" * 64)
        answer = peer.take()
        assert (len(answer.payload), answer.window) == (64, 4096)
        assert peer.take() is None
    at = 64 * 50
    peer.give("A", IRS + 1 + at, ISS + 1 + at, b"y" * 64)
    peer.core.write(b"x")
    assert peer.take().window == 4096 - 64, "not while it lies unread"
    peer.core.read()
    peer.give("A", IRS + 1 + at + 64, ISS + 2 + at, b"y" * 64)
    assert peer.take().window == 4096 - 128, "and a bare ACK shows no small step"


@pytest.mark.rfc("9293", "SHLD-7", "MUST-17")
def test_nagle_holds_a_short_segment_while_another_is_out():
    for nagle in (0, 1):
        peer = Peer(nagle=nagle).established()
        peer.core.write(b"a")
        assert bytes(peer.take().payload) == b"a"
        peer.core.write(b"b")
        held = peer.take()
        assert (held is None) == bool(nagle)
        peer.give("A", IRS + 1, ISS + 2)
        if nagle:
            assert bytes(peer.take().payload) == b"b"


@pytest.mark.rfc("9293", "SHLD-18", "SHLD-19")
def test_a_delayed_ack_waits_but_not_for_a_second_segment():
    peer = Peer(delayed_ack_ns=40 * MILLISECOND, mss=1000).established()
    peer.give("A", IRS + 1, ISS + 1, b"x" * 1000)
    assert peer.take() is None
    assert peer.core.deadline() == peer.now + 40 * MILLISECOND
    peer.give("A", IRS + 1001, ISS + 1, b"x" * 1000)
    assert peer.take().ack == (IRS + 2001) & 0xFFFFFFFF
    peer.give("A", IRS + 2001, ISS + 1, b"x")
    peer.later()
    assert peer.take().ack == (IRS + 2002) & 0xFFFFFFFF


@pytest.mark.rfc("9293", "MUST-13")
def test_closing_first_ends_in_time_wait_which_answers_a_fin_and_ignores_a_reset():
    peer = Peer(msl_ns=SECOND).established()
    peer.core.write(b"bye")
    peer.core.close()
    fin = peer.take()
    assert fin.flags == "FPA"
    assert bytes(fin.payload) == b"bye"
    peer.give("A", IRS + 1, ISS + 5)
    assert peer.core.state == "fin_wait_2"
    peer.give("FA", IRS + 1, ISS + 5, b"too")
    assert peer.core.state == "time_wait"
    assert peer.core.events() == ["fin", "closed"]
    assert peer.take().ack == (IRS + 5) & 0xFFFFFFFF
    assert peer.core.read() == b"too"
    peer.give("R", IRS + 5)
    assert peer.core.state == "time_wait"
    peer.now += SECOND
    peer.give("FA", IRS + 4, ISS + 5)
    assert peer.take().ack == (IRS + 5) & 0xFFFFFFFF
    assert peer.core.deadline() == peer.now + 2 * SECOND
    peer.later()
    assert peer.core.state == "closed"
    assert peer.core.deadline() == NEVER


def test_closing_second_ends_at_the_last_ack():
    peer = Peer().established()
    peer.give("FA", IRS + 1, ISS + 1)
    assert peer.core.state == "close_wait"
    assert peer.take().ack == IRS + 2
    peer.core.write(b"more")
    peer.core.close()
    assert peer.core.state == "last_ack"
    assert peer.take().flags == "FPA"
    peer.give("A", IRS + 2, ISS + 6)
    assert peer.core.state == "closed"
    assert peer.core.events() == ["fin", "closed"]


def test_two_fins_that_cross_end_in_time_wait():
    peer = Peer().established()
    peer.core.close()
    peer.take()
    peer.give("FA", IRS + 1, ISS + 1)
    assert peer.core.state == "closing"
    assert peer.take().flags == "A"
    peer.give("A", IRS + 2, ISS + 2)
    assert peer.core.state == "time_wait"


def test_abort_tells_the_peer():
    peer = Peer().established()
    peer.core.write(b"abc")
    peer.take()
    peer.core.abort()
    reset = peer.take()
    assert reset.flags == "RA"
    assert reset.seq == ISS + 4
    assert peer.core.state == "closed"
    with pytest.raises(ValueError):
        peer.core.write(b"x")


@pytest.mark.rfc("9293", "MUST-3", "MUST-7")
def test_bad_segments_are_counted_by_reason():
    peer = Peer().established()
    good = peer.packet("A", IRS + 1, ISS + 1, b"data")
    addresses = address16(PEER), address16(ME)
    for n in range(20):
        assert peer.core.input(good[:n], *addresses, peer.now) != 0
    bent = bytearray(good)
    bent[-1] ^= 1
    assert peer.core.input(bytes(bent), *addresses, peer.now) != 0
    assert peer.core.input(good, address16("10.0.0.9"), addresses[1], peer.now) != 0
    assert peer.give("A", IRS + 1, ISS + 1, sport=81) != 0
    assert peer.give("A", IRS + 1, ISS + 1, options=[(77, b"")]) == 0
    assert peer.give("", IRS + 1) != 0
    for length in (0, 1, 9):
        long = bytearray(peer.packet("A", IRS + 1, ISS + 1, options=[("MSS", 1)]))
        long[21] = length
        long[16:18] = bytes(2)
        total = sum(
            int.from_bytes(x[i : i + 2], "big") for x in (*addresses, long) for i in range(0, len(x), 2)
        )
        total += 6 + len(long)
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        long[16:18] = (total ^ 0xFFFF).to_bytes(2, "big")
        assert peer.core.input(bytes(long), *addresses, peer.now) != 0
    assert reasons(peer.core) == {
        "delivered": 2,
        "short": 20,
        "checksum": 1,
        "other": 2,
        "no_ack": 1,
        "options": 3,
    }


@pytest.mark.rfc("9293", "MUST-10")
def test_both_may_open_at_once():
    ends = (TcpCore((ME, 1), (PEER, 2), iss=ISS), TcpCore((PEER, 2), (ME, 1), iss=IRS))
    sim = Sim(ends, (ME, PEER), (Wire(), Wire()), seed=1)
    sim.run(until=lambda: all(e.state == "established" for e in ends))
    assert [e.state for e in ends] == ["established"] * 2
    assert {e.events()[0] for e in ends} == {"open"}


def test_settings_that_cannot_be_are_refused():
    for bad in ({"send_bytes": 1000}, {"mss": 10}, {"delayed_ack_ns": SECOND}):
        with pytest.raises(ValueError, match="TCP settings"):
            TcpCore((ME, 1), (PEER, 2), iss=0, **bad)
    with pytest.raises(ValueError, match="cubic, newreno, none"):
        TcpCore((ME, 1), (PEER, 2), iss=0, congestion="bbr")
