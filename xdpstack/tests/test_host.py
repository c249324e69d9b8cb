"""cores/host: frames in and out, with scapy as the second opinion on every byte."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.tests.host_driver import (
    FAR,
    GATEWAY,
    GROUP,
    MAC,
    ME,
    PEER,
    SECOND,
    THEM,
    Host,
    raw_ip,
    raw_mac,
    scapy,
    udp_frame,
    verified,
)

Ether, ARP, IP, UDP, ICMP, Dot1Q, Dot1AD, Raw = (
    getattr(scapy, name) for name in ("Ether", "ARP", "IP", "UDP", "ICMP", "Dot1Q", "Dot1AD", "Raw")
)


@pytest.mark.parametrize("tags", [[], [Dot1Q(vlan=5)], [Dot1AD(vlan=7), Dot1Q(vlan=5)]])
@pytest.mark.parametrize("dst", [GROUP, ME])
@pytest.mark.parametrize("options", [[], [scapy.IPOption(b"\x01\x01\x01\x01"), scapy.IPOption(b"\x01" * 8)]])
def test_a_datagram_is_delivered_through_tags_and_options(tags, dst, options):
    frame = Ether(src=PEER, dst=MAC if dst == ME else "01:00:5e:36:0c:6f")
    for tag in tags:
        frame = frame / tag
    frame = frame / IP(src=THEM, dst=dst, options=options) / UDP(sport=7, dport=9) / b"hello"
    for tail in (b"", b"\0" * 18):  # Ethernet pads short frames
        code, got = Host().input(bytes(frame) + tail)
        assert (code, got) == (1, (b"hello", raw_ip(THEM), 7, raw_ip(dst), 9))


def test_three_tags_are_too_many():
    h = Host()
    frame = Ether(dst=MAC) / Dot1Q() / Dot1Q() / Dot1Q() / IP(src=THEM, dst=ME) / UDP() / b"x"
    assert h.input(frame)[0] == lib.XDS_EMALFORMED
    assert h.reasons() == {"vlan_depth": 1}


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Ether(dst=MAC, type=0x86DD) / (b"x" * 60), "ethertype"),
        (udp_frame(dst=ME, mac=PEER), "other_mac"),
        (udp_frame(dst="233.54.12.112"), "other_address"),
        (udp_frame(dst="10.0.0.77"), "other_address"),
        (udp_frame(version=6), "ip_version"),
        (udp_frame(ihl=4), "ip_length"),
        (udp_frame(len=19), "ip_length"),
        (udp_frame(len=500), "ip_truncated"),
        (udp_frame(chksum=1), "ip_checksum"),
        (udp_frame(ttl=0), "ip_ttl"),
        (udp_frame(flags="MF"), "ip_fragment"),
        (udp_frame(frag=3), "ip_fragment"),
        (Ether(dst=MAC) / IP(src="224.0.0.1", dst=ME) / UDP() / b"x", "ip_source"),
        (Ether(dst=MAC) / IP(src="127.0.0.1", dst=ME) / UDP() / b"x", "ip_source"),
        (Ether(dst=MAC) / IP(src="255.255.255.255", dst=ME) / UDP() / b"x", "ip_source"),
        (Ether(dst=MAC) / IP(src="240.0.0.1", dst=ME) / UDP() / b"x", "ip_source"),
        (Ether(dst=MAC) / IP(src="0.0.0.0", dst=ME) / UDP() / b"x", "ip_source"),
        (Ether(dst=MAC) / IP(src="0.1.2.3", dst=GROUP) / UDP() / b"x", "ip_source"),
        (Ether(dst=MAC) / IP(src=ME, dst=ME) / UDP() / b"x", "ip_source"),
        (Ether(dst=MAC) / IP(src=THEM, dst=ME) / scapy.TCP(), "protocol"),
        (Ether(dst=MAC) / IP(src=THEM, dst=ME) / UDP(len=7) / b"x", "udp_length"),
        (Ether(dst=MAC) / IP(src=THEM, dst=ME) / UDP(len=10) / b"x", "udp_length"),
        (Ether(dst=MAC) / IP(src=THEM, dst=ME) / UDP(chksum=1) / b"x", "udp_checksum"),
        (bytes(udp_frame())[:-1] + b"!", "udp_checksum"),
        (Ether(dst=MAC) / IP(src=THEM, dst=ME) / ICMP(chksum=1) / b"x", "icmp_bad"),
        (Ether(dst=MAC) / IP(src=THEM, dst=ME) / ICMP(type=3) / b"xxxx", "icmp_stray"),
        (Ether(dst=MAC) / IP(src=THEM, dst=ME) / ICMP(type=13) / b"xxxx", "icmp_other"),
        (Ether(dst=MAC) / ARP(hwtype=6, hwsrc=PEER, hwdst=PEER, pdst=ME) / (b"x" * 20), "arp_bad"),
        (Ether(dst=MAC) / ARP(op=9, pdst=ME), "arp_bad"),
    ],
)
def test_what_is_not_delivered_has_one_name(frame, reason):
    h = Host()
    code, got = h.input(frame)
    assert (code < 0, got) == (True, None)
    assert h.reasons() == {reason: 1}


def test_nobody_is_a_source_where_it_may_be_and_our_own_address_where_nothing_is_ours():
    query = IP(src="0.0.0.0", dst="224.0.0.1", proto=2, ttl=1) / (b"\x11\x64\xee\x9b" + bytes(4))
    h = Host()
    h.input(Ether(dst="01:00:5e:00:00:01") / query)
    assert "ip_source" not in h.reasons(), "a switch that queries groups has no address (RFC 4541)"
    assert Host(promiscuous=1).input(Ether(dst=MAC) / IP(src=ME, dst=GROUP) / UDP() / b"x")[0] == 1


def test_a_frame_cut_at_every_byte_is_refused_or_whole():
    for frame in (
        bytes(udp_frame(b"x" * 30)), bytes(Ether(dst=MAC) / ARP(hwsrc=PEER, psrc=THEM, pdst=ME)),
        bytes(Ether(src=PEER, dst=MAC) / Dot1Q(vlan=3) / IP(src=THEM, dst=ME) / ICMP() / b"ping"),
    ):  # fmt: skip
        for cut in range(len(frame)):
            assert Host().input(frame[:cut])[0] == lib.XDS_ETRUNC, cut
        assert Host().input(frame)[0] >= 0


def test_no_checksum_is_allowed_and_a_partial_one_only_where_told():
    none = Ether(dst=MAC) / IP(src=THEM, dst=ME) / UDP(chksum=0) / b"x"
    h = Host()
    assert h.input(none)[0] == 1
    assert h.stats.no_checksum == 1
    frame = Ether(dst=MAC) / IP(src=THEM, dst=ME) / UDP(sport=1, dport=2) / b"partial!"
    pseudo = scapy.in4_pseudoheader(17, IP(bytes(frame)[14:]), 16)
    partial = bytearray(bytes(frame))
    partial[40:42] = (scapy.checksum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    assert h.input(bytes(partial))[0] == lib.XDS_EMALFORMED
    lenient = Host(flags=lib.XDS_HOST_PARTIAL_CHECKSUM)
    assert lenient.input(bytes(partial))[0] == 1
    assert lenient.stats.partial_checksum == 1
    partial[41] ^= 1
    assert lenient.input(bytes(partial))[0] == lib.XDS_EMALFORMED


def test_verification_for_groups_can_be_switched_off():
    h = Host(flags=lib.XDS_HOST_NO_MULTICAST_CHECKSUM)
    frame = udp_frame()
    frame[UDP].chksum = 0x1234
    assert h.input(frame)[0] == 1
    assert h.stats.unverified == 1


def test_a_promiscuous_host_takes_any_destination():
    h = Host(promiscuous=1)
    assert h.input(udp_frame(dst="239.9.9.9"))[0] == 1
    assert h.input(udp_frame(dst="8.8.8.8", mac=PEER))[0] == 1


def test_a_group_that_was_left_is_another_address_again():
    h = Host()
    other = [f"239.1.{i // 250}.{i % 250}" for i in range(200)]
    for group in other:
        assert lib.xds_host_join(h.h, raw_ip(group)) == 0
    for group in other[::2]:
        assert lib.xds_host_leave(h.h, raw_ip(group)) == 0
    for i, group in enumerate(other):
        assert h.input(udp_frame(dst=group))[0] == (1 if i % 2 else lib.XDS_EFOREIGN)
    assert lib.xds_host_leave(h.h, raw_ip(other[0])) == lib.XDS_ESTATE
    assert lib.xds_host_join(h.h, raw_ip(ME)) == lib.XDS_ECONFIG


def test_arp_for_our_address_is_answered_and_for_others_is_not():
    h = Host()
    assert (
        h.input(Ether(src=PEER, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=PEER, psrc=THEM, pdst=ME))[0] == 0
    )
    (answer,) = h.output()
    assert (answer.dst, answer.src, len(answer)) == (PEER, MAC, 60)
    a = answer[ARP]
    assert (a.op, a.hwsrc, a.psrc, a.hwdst, a.pdst) == (2, MAC, ME, PEER, THEM)
    assert h.input(Ether(src=PEER) / ARP(op=1, hwsrc=PEER, psrc=THEM, pdst="10.0.0.3"))[0] == 0
    assert h.output() == []
    assert h.udp(b"known by its question", THEM)[0] > 0


def test_a_datagram_waits_for_its_neighbour_and_then_leaves():
    h = Host()
    assert h.udp(b"first", THEM)[0] == 0
    (question,) = h.output()
    assert (question.dst, question[ARP].op, question[ARP].pdst, question[ARP].psrc) == (
        "ff:ff:ff:ff:ff:ff", 1, THEM, ME,
    )  # fmt: skip
    assert h.udp(b"second", THEM)[0] == 0
    assert h.output() == []
    h.input(Ether(src=PEER, dst=MAC) / ARP(op=2, hwsrc=PEER, psrc=THEM, hwdst=MAC, pdst=ME))
    frames = h.output()
    assert [bytes(verified(f)[UDP].payload) for f in frames] == [b"first", b"second"]
    assert {f.dst for f in frames} == {PEER}
    assert h.udp(b"third", THEM)[0] > 0
    event = ffi.new("struct xds_host_event *")
    assert lib.xds_host_event(h.h, event) == 1
    assert (event.kind, event.ip) == (lib.XDS_HOST_EVENT_NEIGHBOUR, raw_ip(THEM))


def test_a_neighbour_that_never_answers_is_asked_three_times_and_given_up():
    h = Host()
    h.udp(b"lost", THEM)
    assert len(h.output()) == 1
    for t in (1, 2):
        assert h.deadline == t * SECOND
        assert len(h.tick(t * SECOND)) == 1
    assert h.tick(3 * SECOND) == []
    s = h.stats
    assert (s.arp_asked, s.arp_failed, s.held, s.held_lost) == (3, 1, 1, 1)
    assert h.deadline == lib.XDS_NEVER
    assert h.udp(b"again", THEM, now=4 * SECOND)[0] == 0


def test_an_old_entry_is_used_while_it_is_asked_for_again():
    h = Host()
    h.input(Ether(src=PEER) / ARP(op=1, hwsrc=PEER, psrc=THEM, pdst=ME))
    h.output()
    assert h.udp(b"x", THEM, now=61 * SECOND)[0] > 0
    assert [f[ARP].pdst for f in h.output()] == [THEM]
    h.input(Ether(src=PEER) / ARP(op=2, hwsrc="02:00:00:00:00:03", psrc=THEM, pdst=ME), now=61 * SECOND)
    assert h.udp(b"x", THEM, now=62 * SECOND)[1].dst == "02:00:00:00:00:03"


@pytest.mark.parametrize("vlan", [0, 42])
@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.sampled_from([THEM, "10.0.0.3", GROUP, FAR]), st.integers(0, 40)),
            st.tuples(st.just("arp"), st.sampled_from([THEM, "10.0.0.3", GATEWAY]), st.integers(2, 4)),
            st.tuples(st.just("fix"), st.sampled_from([THEM, FAR]), st.integers(5, 6)),
            st.tuples(st.just("mac"), st.just(""), st.integers(7, 8)),
            st.tuples(st.just("wait"), st.just(""), st.sampled_from([1, 59, 61])),
        ),
        max_size=40,
    ),
    st.randoms(use_true_random=False),
)
def test_a_flow_that_is_known_is_written_as_if_it_were_new(vlan, steps, chance):
    """A flow's first datagram takes the long way; a twin that only sees first ones says what the rest are."""
    h, twin, now, port = Host(vlan=vlan), Host(vlan=vlan), 0, 1000
    for kind, who, number in steps:
        if kind == "send":
            payload = chance.randbytes(number)
            for again in range(3):
                code, frame = h.udp(payload, who, 4000 + number % 3, 5000, now)
                port += 1  # never used before: nothing is known of it
                new_code, new = twin.udp(payload, who, 4000 + number % 3, port, now)
                assert code == new_code, f"step {kind} {who}, time {again}"
                if frame:
                    verified(frame)
                    new[UDP].dport, new[UDP].chksum = 5000, None
                    assert bytes(frame) == bytes(Ether(bytes(new)))
            assert [bytes(f[ARP]) for f in h.output(now) if ARP in f] == [
                bytes(f[ARP]) for f in twin.output(now) if ARP in f
            ]
        for each in (h, twin):
            if kind == "arp":
                mac = f"02:00:00:00:00:0{number}"
                each.input(Ether(src=mac) / ARP(op=1, hwsrc=mac, psrc=who, pdst=ME), now)
                each.output(now)
            elif kind == "fix":
                mac = raw_mac(f"02:00:00:00:00:0{number}")
                assert lib.xds_host_add_neighbour(each.h, raw_ip(who), mac) == 0
            elif kind == "mac":
                lib.xds_host_set_mac(each.h, raw_mac(f"02:00:00:00:00:0{number}"))
            elif kind == "wait":
                each.tick(now + number * SECOND)
        if kind == "wait":
            now += number * SECOND


def test_what_waited_leaves_when_the_neighbour_is_told():
    h = Host()
    code, _ = h.udp(b"waits", THEM)
    assert code == 0
    assert [frame[ARP].pdst for frame in h.output()] == [THEM]
    assert lib.xds_host_add_neighbour(h.h, raw_ip(THEM), raw_mac(PEER)) == 0
    (frame,) = h.output()
    assert (frame.dst, frame[UDP].load) == (PEER, b"waits")
    assert h.deadline == lib.XDS_NEVER


def test_a_fixed_neighbour_is_neither_asked_for_nor_moved():
    h = Host()
    assert lib.xds_host_add_neighbour(h.h, raw_ip(FAR), raw_mac(PEER)) == 0
    h.input(Ether(src=PEER) / ARP(op=2, hwsrc="02:00:00:00:00:03", psrc=FAR, pdst=ME))
    code, frame = h.udp(b"far away", FAR, now=900 * SECOND)
    assert code == len(frame)
    assert frame.dst == PEER
    assert h.deadline == lib.XDS_NEVER


def test_what_no_prefix_holds_goes_by_the_gateway_and_without_one_is_refused():
    h = Host()
    assert h.udp(b"x", FAR)[0] == 0
    assert h.output()[0][ARP].pdst == GATEWAY
    assert Host(gateway=0).udp(b"x", FAR)[0] == lib.XDS_EFOREIGN


@pytest.mark.parametrize("vlan", [0, 42])
@pytest.mark.parametrize("size", [0, 1, 2, 17, 200, 1471, 1472])
def test_datagrams_are_what_scapy_builds(vlan, size):
    h = Host(vlan=vlan)
    payload = random.Random(size).randbytes(size)
    _, frame = h.udp(payload, GROUP, 4001, 26477)
    want = Ether(src=MAC, dst="01:00:5e:36:0c:6f")
    want = want / Dot1Q(vlan=vlan) if vlan else want
    want = want / IP(src=ME, dst=GROUP, ttl=1, flags="DF", id=0) / UDP(sport=4001, dport=26477) / Raw(payload)
    assert bytes(frame) == bytes(want)
    assert Host().input(frame)[1][0] == payload


def test_a_group_maps_to_its_low_23_bits():
    assert Host().udp(b"x", "239.255.129.3")[1].dst == "01:00:5e:7f:81:03"


def test_every_size_of_room_is_enough_or_refused():
    for room in range(0, 60):
        code, _ = Host().udp(b"0123456789", GROUP, room=room)
        assert code == (52 if room >= 52 else lib.XDS_ECAPACITY)
    assert Host().udp(b"x" * 1473, GROUP)[0] == lib.XDS_ECAPACITY


def test_reserve_and_commit_write_the_same_frame_without_a_copy():
    h = Host()
    buffer = ffi.new("uint8_t[2048]")
    frame = ffi.new("struct xds_frame *", {"data": buffer, "len": 2048})
    payload = ffi.new("uint8_t **")
    room = lib.xds_host_udp_reserve(h.h, frame, 4000, raw_ip(GROUP), 5000, payload, 0)
    assert room == 1472
    ffi.memmove(payload[0], b"in place", 8)
    n = lib.xds_host_udp_commit(h.h, frame, 8)
    assert bytes(ffi.buffer(buffer, n)) == bytes(h.udp(b"in place", GROUP)[1])
    frame.len = 2048
    assert lib.xds_host_udp_reserve(h.h, frame, 4000, raw_ip(THEM), 5000, payload, 0) == 0
    assert len(h.output()) == 1


def test_an_echo_request_is_answered_with_the_same_bytes():
    h = Host()
    ping = (
        Ether(src=PEER, dst=MAC)
        / Dot1Q(vlan=9)
        / IP(src=THEM, dst=ME, tos=8)
        / ICMP(id=7, seq=3)
        / b"odd bytes"
    )
    assert h.input(ping)[0] == 0
    (reply,) = h.output()
    verified(reply)
    assert (reply.dst, reply.src, reply[Dot1Q].vlan) == (PEER, MAC, 9)
    assert (reply[IP].src, reply[IP].dst, reply[IP].ttl, reply[IP].tos) == (ME, THEM, 64, 8)
    assert (reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq, reply[Raw].load) == (0, 7, 3, b"odd bytes")
    quiet = Host(flags=lib.XDS_HOST_NO_ECHO)
    assert quiet.input(ping)[0] == lib.XDS_EFOREIGN


def test_answers_are_bounded_by_the_slots():
    h = Host(slots=2)
    ping = Ether(src=PEER, dst=MAC) / IP(src=THEM, dst=ME) / ICMP() / b"x"
    assert [h.input(ping)[0] for _ in range(3)] == [0, 0, lib.XDS_ECAPACITY]
    assert h.reasons() == {"icmp_echo": 2, "no_room": 1}


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=1472), st.integers(1, 65535), st.integers(1, 65535), st.integers(0, 3))
def test_checksums_agree_with_scapy_for_any_payload_and_alignment(payload, sport, dport, shift):
    frame = bytes(udp_frame(payload))
    data = ffi.new("uint8_t[]", b"\xff" * shift + frame)
    f = ffi.new("struct xds_frame *", {"data": data + shift, "len": len(frame)})
    out = ffi.new("struct xds_dgram *")
    h = Host()
    assert lib.xds_host_input(h.h, f, out, 0) == 1
    assert bytes(ffi.buffer(out.data, out.len)) == payload
    verified(h.udp(payload, GROUP, sport, dport)[1])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("uaipg"), st.integers(0, 2**32), st.binary(max_size=60)), max_size=12)
)
def test_damaged_frames_are_delivered_whole_or_counted(frames):
    kinds = {
        "u": lambda: udp_frame(b"data"),
        "a": lambda: Ether(src=PEER, dst=MAC) / ARP(op=1, hwsrc=PEER, psrc=THEM, pdst=ME),
        "i": lambda: Ether(src=PEER, dst=MAC) / IP(src=THEM, dst=ME) / ICMP() / b"ping",
        "p": lambda: Ether(src=PEER, dst=MAC) / Dot1Q() / IP(src=THEM, dst=ME) / UDP() / b"x",
    }
    h = Host(slots=4)
    for now, (kind, damage, garbage) in enumerate(frames):
        data = bytearray(garbage if kind == "g" else bytes(kinds[kind]()))
        if data and damage % 3:
            data[damage % len(data)] ^= 1 << (damage % 8)
        if damage % 5 == 0:
            del data[damage % (len(data) + 1) :]
        code, _ = h.input(bytes(data), now=now)
        assert code in (1, 0, lib.XDS_ETRUNC, lib.XDS_EMALFORMED, lib.XDS_EFOREIGN, lib.XDS_ECAPACITY)
        h.tick(now * SECOND)
        h.udp(b"out", THEM, now=now * SECOND)
    assert h.stats.received == len(frames)
