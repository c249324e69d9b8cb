"""Requirements of RFC 9293 that no story of the other TCP tests tells: see COMPLIANCE.md."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.sim import MILLISECOND, SECOND
from xdpstack.tests.stack_driver import MACS, A, B, End, Two
from xdpstack.tests.tcp_peer import FAMILIES, IRS, ISS, Peer, reasons, scapy

Ether, IP, TCP, Raw = (getattr(scapy, name) for name in ("Ether", "IP", "TCP", "Raw"))
NOP = ("NOP", None)


def all_of(peer):
    """Everything that we have to send now."""
    found = []
    while (segment := peer.take()) is not None:
        found.append(segment)
    return found


@pytest.mark.rfc("9293", "SHLD-27", "MUST-60", "MUST-61", "SHLD-28", "MUST-65", "MUST-69", "MUST-68")
def test_writes_are_joined_to_full_segments_and_the_last_one_is_pushed():
    peer = Peer().established()
    for _ in range(25):
        peer.core.write(b"x" * 100)
    sent = all_of(peer)
    assert [(len(s.payload), str(s.flags)) for s in sent] == [(1000, "A"), (1000, "A"), (500, "PA")]
    assert all("MSS" not in dict(s.options) for s in sent)
    syn = Peer().take()
    assert syn.dataofs * 4 == len(bytes(syn))
    kinds = {"MSS": 4, "WScale": 3, "SAckOK": 2, "Timestamp": 10, "NOP": 1}
    assert sum(kinds[name] for name, _ in syn.options) == len(bytes(syn)) - 20  # no end of list, no rest


@pytest.mark.rfc("9293", "MUST-1", "REC-1")
def test_windows_are_large_and_have_no_sign():
    peer = Peer().established(window=65535)
    peer.core.write(b"x")
    assert peer.core.info().send_window == 65535
    scaled = Peer()
    scaled.take()
    scaled.give("SA", IRS, ISS + 1, options=[("MSS", 1000), ("WScale", 14)])
    scaled.take()
    scaled.give("A", IRS + 1, ISS + 1, window=65535)
    assert scaled.core.info().send_window == 65535 << 14


@pytest.mark.rfc("9293", "SHLD-14", "MUST-67")
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1500), st.integers(0, 3000), st.booleans()), max_size=40))
def test_the_edge_that_was_told_never_goes_back_and_the_buffer_holds_what_it_allows(steps):
    peer = Peer(receive_bytes=4096).established()
    at, edge = 0, 0
    for size, read, skip in steps:
        at += 10 if skip else 0  # a hole: what lies behind it is kept, not acknowledged
        peer.give("A", IRS + 1 + at, ISS + 1, b"x" * size)
        peer.core.read(read)
        for segment in all_of(peer):
            told = (segment.ack - IRS - 1) % 2**32 + segment.window
            assert told >= edge
            edge = told
        info = peer.core.info()
        assert info.unread + info.receive_window <= 4096
        at = at if skip else peer.core.stats().received_bytes


@pytest.mark.rfc("9293", "MUST-34", "SHLD-15", "SHLD-16", "MAY-7")
def test_a_window_taken_back_stops_new_data_and_old_data_goes_on():
    peer = Peer(congestion="none", no_sack=1).established(window=10_000)
    peer.core.write(b"x" * 20_000)
    assert len(all_of(peer)) == 10
    peer.give("A", IRS + 1, ISS + 1, window=3000)
    assert peer.core.info().send_window == 3000
    assert all_of(peer) == []
    peer.later()
    again = all_of(peer)
    assert {s.seq for s in again} == {
        (ISS + 1 + 1000 * i) % 2**32 for i in range(10)
    }  # what was out, no more
    assert all(s.seq - ISS - 1 < 10_000 for s in again if s.seq > ISS)


@pytest.mark.rfc("9293", "SHLD-17", "MUST-35", "MUST-37")
def test_who_shrinks_its_window_to_nothing_but_answers_is_not_given_up():
    peer = Peer(give_up_ns=20 * SECOND, congestion="none").established(window=3000)
    peer.core.write(b"x" * 3000)
    all_of(peer)
    start = peer.now
    while peer.now < start + 200 * SECOND:
        peer.give("A", IRS + 1, ISS + 1, window=0)
        peer.later()
        assert peer.core.state == "established"
        assert all(len(s.payload) for s in all_of(peer))
    peer.give("A", IRS + 1, ISS + 3001, window=3000)
    assert peer.core.events() == ["stalled"]


@pytest.mark.rfc("9293", "MUST-36", "SHLD-29", "SHLD-30")
def test_a_closed_window_is_probed_after_the_timeout_and_then_half_as_often_each_time():
    peer = Peer().established(window=0)
    peer.core.write(b"abc")
    assert peer.take() is None
    waits = []
    for _ in range(4):
        before = peer.now
        peer.later()
        waits.append(peer.now - before)
        assert bytes(peer.take().payload) == b"a"
        peer.give("A", IRS + 1, ISS + 1, window=0)
    rto = peer.core.info().rto_ns
    assert waits == [rto, 2 * rto, 4 * rto, 8 * rto]


@pytest.mark.rfc("9293", "MUST-66")
def test_a_reset_counts_while_our_window_is_closed():
    peer = Peer(receive_bytes=1024).established()
    peer.give("A", IRS + 1, ISS + 1, b"x" * 1024)
    assert peer.take().window == 0
    peer.give("R", IRS + 1025)
    assert peer.core.events() == ["reset"]


def test_urgent_data_is_ordinary_data():
    peer = Peer().established()
    peer.give("UA", IRS + 1, ISS + 1, b"urgent or not")
    assert peer.core.read() == b"urgent or not"
    assert reasons(peer.core) == {"delivered": 2}
    peer.core.write(b"never")
    assert peer.take().flags == "PA"


@pytest.mark.rfc("9293", "SHLD-13")
def test_no_call_sends_urgent_data():
    from xdpstack._ffi import ffi, lib

    assert not [name for name in dir(lib) if "urg" in name.lower()]
    assert not [name for name, _ in ffi.typeof("struct xds_tcp_config").fields if "urg" in name]


@pytest.mark.rfc("9293", "MUST-4", "MUST-5", "MUST-6", "MUST-64")
@pytest.mark.parametrize("shift", range(4))
def test_options_count_wherever_they_begin_and_unknown_ones_do_not(shift):
    peer = Peer(mss=1400)
    peer.take()
    strange = [(99, b"abc"), (253, b"")]
    options = [NOP] * shift + strange + [("Timestamp", (7, 0)), ("MSS", 900), ("EOL", None)]
    assert peer.give("SA", IRS, ISS + 1, options=options) == 0
    assert peer.core.info().mss == 888
    assert peer.core.info().stamps == 1
    peer.take()
    stamp = [NOP] * shift + [(99, b"z"), ("Timestamp", (9, 0))]
    assert peer.give("A", IRS + 1, ISS + 1, b"data", options=stamp) == 0
    assert dict(peer.take().options)["Timestamp"][1] == 9


@pytest.mark.rfc("9293", "MUST-15", "SHLD-5", "MAY-3", "MUST-16")
@pytest.mark.parametrize(("family", "silent"), [("v4", 536), ("v6", 1220)])
def test_a_peer_that_names_no_size_gets_small_segments(family, silent):
    for ours in (536, 1220, 1400):
        peer = Peer(FAMILIES[family], mss=ours)
        assert dict(peer.take().options)["MSS"] == ours
        peer.give("SA", IRS, ISS + 1)
        assert peer.core.info().mss == min(silent, ours)


@pytest.mark.rfc("9293", "SHLD-2")
def test_a_reset_may_carry_a_reason():
    peer = Peer().established()
    peer.give("R", IRS + 1, data=b"out of memory")
    assert peer.core.events() == ["reset"]


@pytest.mark.rfc("9293", "MUST-18")
def test_what_was_sent_again_is_not_timed():
    peer = Peer(no_stamps=1, no_sack=1).established()
    peer.core.write(b"abc")
    peer.take()
    before = peer.core.info().srtt_ns
    peer.later()
    assert bytes(peer.take().payload) == b"abc"
    backed_off = peer.core.info().rto_ns
    peer.now += MILLISECOND
    peer.give("A", IRS + 1, ISS + 4)
    assert peer.core.info().srtt_ns == before
    assert peer.core.info().rto_ns == backed_off  # until something is timed (RFC 6298 5)


@pytest.mark.rfc("9293", "MUST-58", "MUST-59")
def test_what_came_together_is_acknowledged_once():
    peer = Peer().established()
    for i in range(5):
        peer.give("A", IRS + 1 + 100 * i, ISS + 1, b"x" * 100)
    (ack,) = all_of(peer)
    assert ack.ack == (IRS + 501) % 2**32
    peer.give("A", IRS + 501, ISS + 1, b"question")
    peer.core.write(b"answer")
    (both,) = all_of(peer)
    assert (bytes(both.payload), both.ack) == (b"answer", (IRS + 509) % 2**32)


@pytest.mark.rfc("9293", "MUST-22", "MUST-23")
def test_a_syn_goes_again_for_three_minutes():
    peer = Peer()
    start, times = peer.now, []
    while peer.core.state == "syn_sent":
        times += [peer.now for _ in all_of(peer)]
        peer.later()
    assert peer.core.events()[-1:] == ["timeout"]
    assert peer.now - start >= 180 * SECOND
    assert [b - a for a, b in pairwise(times)][:4] == [SECOND << i for i in range(4)]


@pytest.mark.rfc("9293", "SHLD-11")
def test_data_goes_again_for_more_than_a_hundred_seconds():
    peer = Peer().established()
    peer.core.write(b"abc")
    start = peer.now
    while peer.core.state == "established":
        all_of(peer)
        peer.later()
    assert peer.core.events()[-1:] == ["timeout"]
    assert peer.now - start >= 100 * SECOND


@pytest.mark.rfc("9293", "MUST-40")
def test_an_ack_never_waits_for_half_a_second():
    with pytest.raises(ValueError, match="time out of range"):
        Peer(delayed_ack_ns=SECOND // 2 + 1)


def syn(**fields):
    ip = {"src": B, "dst": A} | {k: fields.pop(k) for k in ("src", "dst", "options") if k in fields}
    tcp = TCP(sport=9, dport=80, flags="S", seq=100)
    return bytes(Ether(src=MACS[B], dst=fields.pop("mac", MACS[A])) / IP(**ip) / tcp)


def listening():
    end = End()
    end.host.add_neighbour(B, MACS[B])
    end.stack.listen(80)
    return end


@pytest.mark.rfc("9293", "MUST-57")
@pytest.mark.parametrize(
    ("dst", "mac"),
    [
        ("10.0.0.255", "ff:ff:ff:ff:ff:ff"),
        ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
        ("224.0.0.1", "01:00:5e:00:00:01"),
    ],
)
def test_a_syn_to_many_is_dropped_in_silence(dst, mac):
    end = listening()
    end.stack.frame(syn(dst=dst, mac=mac), 0)
    assert end.stack.output(0) == b""
    assert end.check()["received"] == 0


@pytest.mark.rfc("9293", "MUST-63")
@pytest.mark.parametrize("src", ["224.0.0.1", "255.255.255.255", "127.0.0.1"])
def test_a_syn_from_nobody_is_dropped_in_silence(src):
    end = listening()
    end.stack.frame(syn(src=src), 0)
    assert end.stack.output(0) == b""
    assert end.check()["received"] == 0
    assert end.host.stats()["reasons"] == {"ip_source": 1}


@pytest.mark.rfc("9293", "MUST-50")
@pytest.mark.parametrize("option", [scapy.IPOption(b"\x01" * 8), scapy.IPOption_RR(routers=["10.0.0.7"])])
def test_options_of_ip_change_nothing(option):
    end = listening()
    end.stack.frame(syn(options=[option]), 0)
    answer = Ether(end.stack.output(0))
    assert answer[TCP].flags == "SA"
    assert answer[IP].ihl == 5


@pytest.mark.rfc("9293", "MUST-41", "MUST-42", "MUST-45")
def test_a_port_is_listened_on_while_connections_have_it():
    two = Two(b={"connections": 8})
    mine, theirs = two.pair()
    begun = two.b.stack.connect((A, 7), two.now, local=("", 80))  # SYN-SENT from the same port
    listener = two.b.stack.listen(80)
    again = two.a.stack.connect((B, 80), two.now)
    two.run(lambda: "acceptable" in two.b.seen.get(listener, ()))
    other = two.b.stack.accept(listener)
    assert len({theirs, other, begun}) == 3
    for here, there, text in ((mine, theirs, b"one"), (again, other, b"two")):
        two.a.stack.write(here, text)
        two.later(0.1)
        assert two.b.stack.read(there) == text
        assert two.b.stack.ends(there) == two.a.stack.ends(here)[::-1]


@pytest.mark.rfc("9293", "SHLD-6", "MUST-67")
@pytest.mark.parametrize("mtu", [576, 1400, 1500, 9000])
def test_the_size_that_is_named_is_what_the_mtu_holds(mtu):
    end = End(host={"mtu": mtu})
    end.host.add_neighbour(B, MACS[B])
    end.stack.connect((B, 80), 0)
    assert dict(Ether(end.stack.output(0))[TCP].options)["MSS"] == mtu - 40


@pytest.mark.rfc("9293", "MUST-55", "MUST-56")
@pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 5), (4, 0), (11, 0), (11, 1), (12, 0)])
def test_what_icmp_says_of_a_moment_ends_nothing(kind, code):
    two = Two()
    mine, theirs = two.pair()
    two.a.stack.write(mine, b"x")
    sent = two.a.stack.output(two.now)
    told = IP(src=B, dst=A) / scapy.ICMP(type=kind, code=code) / Raw(sent[14:42])
    two.a.stack.frame(bytes(Ether(src=MACS[B], dst=MACS[A]) / told), two.now)
    two.b.stack.frame(sent, two.now)
    two.run(lambda: two.a.stack.info(mine)["outstanding"] == 0)
    assert two.state(two.a, mine) == "established"
    assert two.b.stack.read(theirs) == b"x"
