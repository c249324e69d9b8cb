"""Explicit congestion notification (RFC 3168) and what stands in the TOS of what is sent (RFC 2474)."""

from __future__ import annotations

import random

import pytest

from xdpstack.sim import MILLISECOND, SECOND, Wire
from xdpstack.tcp import address16
from xdpstack.tests.stack_driver import MACS, A, B, End, Two
from xdpstack.tests.tcp_peer import IRS, ISS, Peer, scapy

Ether, IP, TCP = (getattr(scapy, name) for name in ("Ether", "IP", "TCP"))
ECT, CE = 2, 3


def agreed(**settings):
    """An open connection of which both ends want ECN."""
    peer = Peer(ecn=1, **settings)
    assert peer.take().flags == "SEC"
    peer.give("SAE", IRS, ISS + 1, options=[("MSS", 1000)])
    assert peer.take().flags == "A"
    assert peer.core.info().ecn == 1
    return peer


def marked(peer, start, data, flags="A", tos=CE):
    """Data of the peer that met congestion."""
    segment = peer.packet(flags, IRS + 1 + start, ISS + 1, data)
    return peer.core.input(segment, address16(peer.them), address16(peer.me), peer.now, tos)


@pytest.mark.rfc("9293", "SHLD-8")
@pytest.mark.rfc("3168", "6.1.1")
@pytest.mark.parametrize(
    ("wanted", "answer", "ecn"), [(1, "SAE", 1), (1, "SA", 0), (1, "SAEC", 0), (0, "SAE", 0)]
)
def test_it_is_used_where_both_want_it(wanted, answer, ecn):
    peer = Peer(ecn=wanted)
    assert peer.take().flags == ("SEC" if wanted else "S")
    assert peer.core.tos == 0  # a SYN itself cannot be marked
    peer.give(answer, IRS, ISS + 1, options=[("MSS", 1000)])
    assert peer.core.info().ecn == ecn
    assert peer.take().flags == "A"
    assert peer.core.tos == 0
    peer.core.write(b"x")
    peer.take()
    assert peer.core.tos == (ECT if ecn else 0)


@pytest.mark.rfc("3168", "6.1.1")
@pytest.mark.parametrize(
    ("wanted", "asked", "answer"), [(1, "SEC", "SAE"), (1, "S", "SA"), (1, "SE", "SA"), (0, "SEC", "SA")]
)
def test_a_listener_answers_who_asked(wanted, asked, answer):
    peer = Peer(passive=True, ecn=wanted)
    peer.give(asked, IRS)
    assert peer.take().flags == answer
    assert peer.core.tos == 0
    peer.give("A", IRS + 1, ISS + 1)
    assert peer.core.info().ecn == (answer == "SAE")


@pytest.mark.rfc("3168", "6.1.1.1")
def test_a_syn_that_was_lost_goes_again_without():
    peer = Peer(ecn=1)
    assert peer.take().flags == "SEC"
    peer.later()
    assert peer.take().flags == "S"
    peer.give("SAE", IRS, ISS + 1)
    assert peer.core.info().ecn == 0


@pytest.mark.rfc("3168", "6.1.3")
def test_a_mark_is_told_with_every_ack_until_the_peer_says_that_it_heard():
    peer = agreed()
    marked(peer, 0, b"a", tos=ECT)
    assert peer.take().flags == "A"
    marked(peer, 1, b"b")
    assert peer.take().flags == "AE"
    marked(peer, 2, b"c", tos=ECT)
    assert peer.take().flags == "AE"
    peer.core.write(b"data tells it too")
    assert peer.take().flags == "PAE"
    marked(peer, 3, b"d", "AC", tos=ECT)
    assert peer.take().flags == "A"
    marked(peer, 4, b"e", "AC")  # heard, and another one
    assert peer.take().flags == "AE"
    assert peer.core.read() == b"abcde"
    assert peer.core.stats().marks_seen == 2


@pytest.mark.rfc("3168", "6.1.3")
def test_only_data_that_is_taken_counts():
    peer = agreed()
    marked(peer, 100_000, b"outside the window")
    assert peer.take().flags == "A"
    marked(peer, 0, b"")
    peer.core.write(b"x")
    assert peer.take().flags == "PA"
    other = Peer().established()
    marked(other, 0, b"no ecn")
    assert other.take().flags == "A"
    assert other.core.stats().marks_seen == 0


@pytest.mark.rfc("3168", "6.1.2")
@pytest.mark.parametrize(("congestion", "kept"), [("newreno", 0.5), ("cubic", 0.7)])
def test_the_window_shrinks_once_a_window_and_the_next_new_data_says_so(congestion, kept):
    peer = agreed(congestion=congestion)
    peer.core.write(b"x" * 60_000)
    out = list(iter(peer.take, None))
    assert len(out) == 10
    at = ISS + 1
    flags = []
    for _ in range(10):  # all of the window is answered with ECE: one reduction
        at += 1000
        peer.now += MILLISECOND
        peer.give("AE", IRS + 1, at)
        flags += [(str(s.flags), peer.core.tos) for s in iter(peer.take, None)]
    assert peer.core.info().ssthresh == kept * 10_000
    assert peer.core.info().cwnd == pytest.approx(kept * 10_000, abs=1000)
    assert peer.core.stats().marks_told == 1
    assert flags[0] == ("AC", ECT)
    assert {flag for flag, _ in flags[1:]} == {"A"}
    peer.give("AE", IRS + 1, at + 1000)  # the peer has heard, and this is another one
    assert peer.core.stats().marks_told == 2
    assert peer.core.stats().retransmits == 0


@pytest.mark.rfc("3168", "6.1.5", "6.1.6")
def test_what_goes_again_and_probes_cannot_be_marked():
    peer = agreed()
    peer.core.write(b"x")
    peer.take()
    assert peer.core.tos == ECT
    peer.later()
    assert bytes(peer.take().payload) == b"x"
    assert peer.core.tos == 0
    peer.give("A", IRS + 1, ISS + 2, window=0)
    peer.core.write(b"y")
    assert peer.take() is None
    peer.later()
    assert bytes(peer.take().payload) == b"y"
    assert peer.core.tos == 0


@pytest.mark.rfc("3168", "6.1.2")
def test_a_loss_is_told_as_a_reduction_too():
    peer = agreed()
    peer.core.write(b"x" * 1000)
    peer.take()
    peer.later()
    peer.take()
    peer.give("A", IRS + 1, ISS + 1001)
    peer.core.write(b"y")
    assert peer.take().flags == "PAC"
    peer.core.write(b"z")
    assert peer.take().flags == "PA"


# -- TOS, all the way to the frame


def tos_of(frame):
    packet = Ether(frame)
    again = Ether(frame)
    del again[IP].chksum, again[TCP].chksum
    assert bytes(again) == frame
    return packet[IP].tos


@pytest.mark.rfc("9293", "MUST-48", "SHLD-22", "SHLD-21", "SHLD-23")
@pytest.mark.parametrize("known", [True, False])
def test_the_dscp_that_was_set_is_in_every_frame_and_may_change(known):
    two = Two(known=known, b={"dscp": 10})
    mine, theirs = two.pair(dscp=46)
    for text in (b"one", b"two", b"three"):
        two.a.stack.write(mine, text)
        two.later(1)
        assert two.b.stack.read(theirs) == text
    two.a.stack.set(mine, "dscp", 8, two.now)
    two.a.stack.write(mine, b"four")
    two.a.stack.close(mine, two.now)
    two.later(1)
    sent = {0: [], 1: []}
    for _, end, frame in two.sim.segments:
        if TCP in Ether(frame):
            sent[end].append(tos_of(frame) >> 2)
    assert set(sent[1]) == {10}
    assert sent[0][:5] == [46] * 5
    changed = sent[0].index(8)
    assert set(sent[0][:changed]) == {46}
    assert set(sent[0][changed:]) == {8}


class Marking(End):
    """An end behind a queue that marks what it can, and drops what it cannot."""

    share = 0.0
    chance = random.Random(1)
    marks = 0

    def input(self, frame, source, destination, now):
        if frame[12:14] == b"\x08\x00" and frame[15] & 3 == ECT and self.chance.random() < self.share:
            packet = Ether(frame)
            packet[IP].tos |= CE
            del packet[IP].chksum
            frame = bytes(packet)
            self.marks += 1
        return super().input(frame, source, destination, now)


@pytest.mark.parametrize("cookies", [False, True])
def test_two_stacks_slow_down_by_marks_and_lose_nothing(cookies):
    two = Two(Wire(latency=5 * MILLISECOND), a={"ecn": 1}, b={"ecn": 1})
    marking = Marking(B, secret=b"other key 16 byt", ecn=1)
    marking.host.add_neighbour(A, MACS[A])
    marking.chance = random.Random(7)
    two.b = marking
    two.sim.ends = (two.a, marking)
    if cookies:
        listener = marking.stack.listen(80, backlog=1)
        syn = TCP(sport=5, dport=80, flags="S", seq=1)
        marking.stack.frame(bytes(Ether(src=MACS[A], dst=MACS[B]) / IP(src=A, dst=B) / syn), two.now)
        mine = two.a.stack.connect((B, 80), two.now)
        two.run(lambda: "acceptable" in marking.seen.get(listener, ()))
        theirs = marking.stack.accept(listener)
        assert marking.check()["cookies_taken"] == 1
    else:
        mine, theirs = two.pair()
    assert two.a.stack.info(mine)["ecn"] == marking.stack.info(theirs)["ecn"] == 1
    marking.share = 0.05
    text, written, got = random.Random(3).randbytes(600_000), 0, bytearray()
    end = two.now + 600 * SECOND
    while len(got) < len(text) and two.now < end:
        written += two.a.stack.write(mine, text[written : written + 50_000])
        two.later(0.005)
        got += marking.stack.read(theirs)
    assert bytes(got) == text
    info = two.a.stack.info(mine)
    assert info["retransmits"] == info["timeouts"] == 0
    assert marking.marks == marking.stack.info(theirs)["marks_seen"] > 5
    assert 0 < info["marks_told"] <= marking.marks
    assert info["ssthresh"] < 100_000
