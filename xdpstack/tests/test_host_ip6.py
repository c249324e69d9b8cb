"""cores/host: IPv6 as it comes in: headers, extension headers, fragments, datagrams, packets."""

from __future__ import annotations

import itertools
import random

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.tests.host6_driver import (
    ALL,
    GROUP,
    LOCAL,
    ME,
    THEM,
    Host6,
    S,
    frame6,
    mac_of,
    raw,
    solicited,
)
from xdpstack.tests.host_driver import PEER, SECOND, Host, raw_ip, udp_frame


def udp(payload=b"payload"):
    return S.UDP(sport=1, dport=26477) / S.Raw(payload)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 64, 1451, 1452])
@pytest.mark.parametrize("dst", [ME, GROUP])
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_a_datagram_is_given_with_what_its_headers_say(size, dst, tags):
    payload = bytes(i & 255 for i in range(size))
    frame = frame6(udp(payload), dst=dst, tc=0xB9, hlim=17)
    for tag in range(tags):
        frame = S.Ether(src=PEER, dst=frame.dst) / S.Dot1Q(vlan=tag + 1) / frame.payload
    code, got = Host6().take(bytes(frame) + b"pad" * 5)
    assert code == lib.XDS_INPUT_DATAGRAM
    assert got == (payload, raw(THEM), 1, raw(dst), 26477, 0xB9, 17)


def test_ipv6_begins_with_the_first_address_of_it():
    h = Host()
    assert h.input(frame6(udp()))[0] == lib.XDS_EFOREIGN
    assert h.reasons() == {"ethertype": 1}
    assert lib.xds_host_add_address6(h.h, raw(ME), 64) == 0
    assert h.input(frame6(udp()))[0] == lib.XDS_INPUT_DATAGRAM
    assert h.input(udp_frame(dst="10.0.0.1"))[0] == 1, "IPv4 beside it"


def test_mapped_addresses_are_ipv4():
    h = Host6(addresses=())
    four = raw("10.0.0.1")
    assert lib.xds_host_add_address6(h.h, four, 24) == 0
    assert lib.xds_host_add_route6(h.h, raw("192.0.2.0"), 24, raw("10.0.0.7"), bytes(16), 0) == 0
    assert (
        lib.xds_host_add_route6(h.h, raw("192.0.2.0"), 33, raw("10.0.0.7"), bytes(16), 0) == lib.XDS_ECONFIG
    )
    assert lib.xds_host_join6(h.h, raw("239.1.1.1")) == 0 == lib.xds_host_leave6(h.h, raw("239.1.1.1"))
    assert lib.xds_host_add_neighbour6(h.h, raw("10.0.0.7"), b"\2" * 6) == 0
    code, frame = h.udp6(b"x", "192.0.2.1")
    assert code > 0
    assert frame.dst == "02:02:02:02:02:02"
    assert frame["IP"].dst == "192.0.2.1"
    assert lib.xds_host_del_route6(h.h, raw("192.0.2.0"), 24, 0) == 0
    assert lib.xds_host_claim6(h.h, four, SECOND, 0) == 0
    assert lib.xds_host_claimed(h.h, raw_ip("10.0.0.1"), ffi.new("uint8_t[6]")) == lib.XDS_HOST_PROBING


@pytest.mark.parametrize(
    ("why", "frame"),
    [
        ("other_address", frame6(udp(), dst="2001:db8::99")),
        ("other_address", frame6(udp(), dst="ff05::99")),
        ("other_address", frame6(udp(), dst=solicited("2001:db8::77"))),
        ("other_mac", frame6(udp(), mac="02:00:00:00:00:77")),
        ("ip_source", frame6(udp(), src="ff02::5")),
        ("ip_source", frame6(udp(), src="::1")),
        ("ip_source", frame6(udp(), src="::")),
        ("ip_source", frame6(udp(), src=ME)),
        ("ip_source", frame6(udp(), src="::ffff:10.0.0.2")),
        ("ip_version", frame6(udp(), version=5)),
        ("udp_checksum", frame6(S.UDP(chksum=0) / b"x")),
        ("udp_checksum", frame6(S.UDP(chksum=1) / b"x")),
        ("udp_length", frame6(S.UDP(len=7) / b"x")),
        ("udp_length", frame6(S.UDP(len=10) / b"x")),
        ("udp_length", frame6(S.Raw(b"1234567"), nh=17)),
        ("protocol", frame6(S.Raw(b"12345678"), nh=59)),
        ("protocol", frame6(S.TCP())),
        ("ip_truncated", frame6(udp(), plen=200)),
    ],
)
def test_what_is_refused_has_its_reason(why, frame):
    h = Host6()
    assert h.reason(frame) == why
    assert h.output() == []
    assert h.reason(frame6(udp())) == "datagram6"


def test_a_frame_cut_anywhere_is_refused():
    h, whole = Host6(), bytes(frame6(S.IPv6ExtHdrHopByHop(), S.IPv6ExtHdrDestOpt(), udp(b"xyz")))
    for cut in range(14, len(whole)):
        assert h.take(whole[:cut])[0] == lib.XDS_ETRUNC, cut
    assert h.take(whole)[0] == lib.XDS_INPUT_DATAGRAM


def test_sums_that_a_veth_left_undone_are_taken_where_the_config_says():
    pseudo = sum(int.from_bytes((raw(THEM) + raw(ME))[i : i + 2], "big") for i in range(0, 32, 2)) + 17 + 9
    while pseudo >> 16:
        pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    frame = frame6(S.UDP(chksum=pseudo, sport=1, dport=2) / b"x")
    assert Host6().reason(frame) == "udp_checksum"
    h = Host6(flags=lib.XDS_HOST_PARTIAL_CHECKSUM)
    assert h.reason(frame) == "datagram6"
    assert h.stats.partial_checksum == 1
    assert h.reason(frame6(S.UDP(chksum=0) / b"x")) == "udp_checksum", "0 is never a sum"


# ---- extension headers ---------------------------------------------------------------------------


def dest(*options):
    return S.IPv6ExtHdrDestOpt(options=list(options))


def unknown(kind, size=3):
    return S.HBHOptUnknown(otype=kind, optdata=b"\0" * size)


@pytest.mark.parametrize(
    "layers",
    [
        [S.IPv6ExtHdrHopByHop(options=[S.RouterAlert()])],
        [S.IPv6ExtHdrHopByHop(), dest(), S.IPv6ExtHdrRouting(segleft=0, addresses=["::7"]), dest()],
        [dest(unknown(0x1E), S.Pad1(), S.PadN(optdata=b"\0\0"))],
        [S.IPv6ExtHdrFragment(id=7), dest()],
        [S.IPv6ExtHdrFragment(id=7), S.IPv6ExtHdrFragment(id=8)],
        [dest()] * 8,
        [dest(*[unknown(0x1E)] * 8)],
    ],
)
def test_extension_headers_are_walked(layers):
    h = Host6()
    assert h.take(frame6(*[layer.copy() for layer in layers], udp()))[0] == lib.XDS_INPUT_DATAGRAM
    assert h.reason(frame6(*[layer.copy() for layer in layers], S.Raw(b""), nh=None)) in (
        "protocol",
        "headers_bad",
        "udp_length",
    )


@pytest.mark.parametrize(
    ("why", "code", "pointer", "layers"),
    [
        ("headers_bad", None, 0, [dest()] * 9),
        ("headers_bad", None, 0, [dest(*[unknown(0x1E)] * 9)]),
        ("headers_bad", 1, 40, [dest(), S.IPv6ExtHdrHopByHop()]),
        ("headers_bad", 1, 40, [S.IPv6ExtHdrHopByHop(), S.IPv6ExtHdrHopByHop()]),
        ("headers_bad", None, 0, [S.IPv6ExtHdrDestOpt(options=[], len=200)]),
        ("headers_bad", None, 0, [dest(S.HBHOptUnknown(otype=0x1E, optlen=200, optdata=b"\0" * 4))]),
        ("option", None, 0, [dest(unknown(0x5E))]),
        ("option", 2, 42, [dest(unknown(0x9E))]),
        ("option", 2, 42, [dest(unknown(0xDE))]),
        ("option", 2, 42, [S.IPv6ExtHdrHopByHop(options=[unknown(0xC2, 4)])]),
        ("routing", 0, 42, [S.IPv6ExtHdrRouting(type=0, segleft=1, addresses=["::7"])]),
        ("routing", 0, 50, [dest(), S.IPv6ExtHdrRouting(type=4, segleft=1, addresses=["::7"])]),
    ],
)
def test_extension_headers_that_cannot_be_are_named_and_their_sender_told(why, code, pointer, layers):
    h = Host6(known=[THEM])
    frame = frame6(*[layer.copy() for layer in layers], udp())
    assert h.reason(frame) == why
    told = h.output()
    if code is None:
        assert told == []
        return
    (problem,) = told
    assert problem[S.ICMPv6ParamProblem].code == code
    assert problem[S.ICMPv6ParamProblem].ptr == pointer
    assert problem.original[14 + 48 :] == bytes(frame)[14:][:1232]
    assert (problem[S.IPv6].src, problem[S.IPv6].dst, problem.dst) == (ME, THEM, PEER)


@pytest.mark.parametrize(("kind", "told"), [(0x9E, 1), (0xDE, 0), (0x5E, 0)])
def test_an_option_in_a_packet_to_a_group_is_told_of_only_where_its_type_says_so(kind, told):
    h = Host6(known=[THEM])
    assert h.reason(frame6(dest(unknown(kind)), udp(), dst=GROUP)) == "option"
    assert [f[S.IPv6].src for f in h.output()] == [ME] * told


def test_a_protocol_that_nobody_takes_is_told_where_the_config_says():
    h = Host6(known=[THEM], flags=lib.XDS_HOST_UNREACHABLE)
    assert h.reason(frame6(dest(), S.TCP())) == "protocol"
    (told,) = h.output()
    assert (told[S.ICMPv6ParamProblem].code, told[S.ICMPv6ParamProblem].ptr) == (1, 40)
    assert lib.xds_host_take(h.h, 6) == 0
    assert h.reason(frame6(dest(), S.TCP())) == "handed_over"
    assert lib.xds_host_take(h.h, 58) == lib.XDS_ECONFIG


def test_a_segment_is_handed_over_with_all_that_its_header_says():
    h = Host6()
    lib.xds_host_take(h.h, 6)
    frame = frame6(S.TCP(sport=7, dport=9) / b"data", tc=3, hlim=9)
    code, packet = h.take(bytes(frame) + b"\0" * 7)
    want = bytes(S.Ether(bytes(frame))[S.TCP])
    assert code == lib.XDS_INPUT_PACKET
    assert packet == (6, raw(THEM), raw(ME), 3, 9, want)
    bad = bytearray(bytes(frame))
    bad[-1] ^= 1
    assert h.reason(bytes(bad)) == "tcp_checksum"


# ---- fragments -----------------------------------------------------------------------------------


def pieces(packet, size, ident=1, head=()):
    """(frame, offset) of the fragments of what stands behind the IPv6 header of a packet."""
    whole = bytes(S.IPv6(bytes(packet[S.IPv6])))
    body, following = whole[40:], whole[6]
    out = []
    for at in range(0, len(body), size):
        piece = body[at : at + size]
        more = at + len(piece) < len(body)
        header = S.IPv6ExtHdrFragment(nh=following, offset=at // 8, m=int(more), id=ident)
        out.append(frame6(*[h.copy() for h in head], header, S.Raw(piece)))
    return out


@pytest.mark.parametrize("head", [(), (S.IPv6ExtHdrHopByHop(),), (dest(), dest())])
def test_fragments_in_any_order_become_their_datagram(head):
    payload = random.Random(1).randbytes(200)
    parts = pieces(frame6(udp(payload)), 56, head=head)
    assert len(parts) == 4
    for order in itertools.permutations(parts):
        h = Host6(fragments=2)
        codes = [h.take(part) for part in order]
        assert [code for code, _ in codes[:3]] == [0, 0, 0]
        assert codes[3][0] == lib.XDS_INPUT_DATAGRAM
        assert codes[3][1][0] == payload
        assert h.stats.reassembled == 1
        assert h.reasons() == {"fragment": 3, "datagram6": 1}
        assert h.deadline == lib.XDS_NEVER


def test_headers_may_stand_in_the_part_that_is_cut():
    packet = frame6(dest(), S.IPv6ExtHdrRouting(segleft=0, addresses=["::7"]), udp(b"x" * 90))
    h = Host6(fragments=1)
    results = [h.take(part) for part in pieces(packet, 64)]
    assert results[-1][1][0] == b"x" * 90
    nested = frame6(S.IPv6ExtHdrFragment(id=5, m=1), S.Raw(bytes(udp(b"y" * 80))), nh=None)
    lib.xds_host_release(h.h)
    assert [h.take(part)[0] for part in pieces(nested, 64, ident=9)][-1] == lib.XDS_EMALFORMED
    assert h.reasons()["headers_bad"] == 1, "a fragment of fragments"


def test_fragments_of_segments_and_pings_are_whole_packets_too():
    h = Host6(fragments=1, known=[THEM])
    lib.xds_host_take(h.h, 6)
    segment = frame6(S.TCP(sport=1) / (b"z" * 300))
    code, packet = [h.take(part) for part in pieces(segment, 104)][-1]
    assert code == lib.XDS_INPUT_PACKET
    assert packet.data == bytes(S.Ether(bytes(segment))[S.TCP])
    lib.xds_host_release(h.h)
    ping = frame6(S.ICMPv6EchoRequest(id=3, data=b"p" * 300))
    for part in pieces(ping, 104, ident=2):
        h.take(part)
    (pong,) = h.output()
    assert pong[S.ICMPv6EchoReply].data == b"p" * 300


def test_an_overlap_breaks_the_datagram_and_all_that_still_comes_of_it():
    body = bytes(udp(b"x" * 92))

    def part(at, size, more=1):
        return frame6(S.IPv6ExtHdrFragment(nh=17, offset=at // 8, m=more, id=1), S.Raw(body[at : at + size]))

    h = Host6(fragments=2)
    assert h.reason(part(0, 48)) == "fragment"
    assert h.reason(part(0, 48)) == "fragment_copy", "the same again is no overlap (RFC 8200 4.5)"
    assert h.reason(part(40, 16)) == "fragment_overlap"
    assert h.reason(part(48, 52, 0)) == "fragment_broken"
    assert h.stats.reassembled == 0


def test_an_atomic_fragment_is_a_packet_by_itself():
    """RFC 6946: it meets nothing that waits under the same identification."""
    h = Host6(fragments=1)
    first = pieces(frame6(udp(b"q" * 100)), 56, ident=1)
    h.take(first[0])
    atomic = frame6(S.IPv6ExtHdrFragment(id=1), udp(b"alone"))
    assert h.take(atomic)[1][0] == b"alone"
    assert h.take(first[1])[1][0] == b"q" * 100
    assert Host6().take(atomic)[1][0] == b"alone", "without slabs too"


def test_fragments_that_cannot_be():
    h = Host6(fragments=1, known=[THEM], error_burst=10)
    cases = [
        ("fragment_bad", 0, 4, S.IPv6ExtHdrFragment(nh=17, m=1, id=1), b"x" * 13),
        ("fragment_bad", 0, 42, S.IPv6ExtHdrFragment(nh=17, m=0, offset=8191, id=1), b"x" * 16),
        ("fragment_bad", None, 0, S.IPv6ExtHdrFragment(nh=17, m=1, id=1), b""),
        ("fragment_headers", 3, 0, S.IPv6ExtHdrFragment(nh=6, m=1, id=1), b"x" * 16),
        ("fragment_headers", None, 0, S.IPv6ExtHdrFragment(nh=60, m=1, id=1), b"\x11\x01" + b"\0" * 6),
    ]
    for why, code, pointer, header, data in cases:
        assert h.reason(frame6(header, S.Raw(data))) == why
        told = h.output()
        assert [(t[S.ICMPv6ParamProblem].code, t[S.ICMPv6ParamProblem].ptr) for t in told] == (
            [] if code is None else [(code, pointer)]
        )
    assert Host6().reason(pieces(frame6(udp(b"x" * 99)), 56)[0]) == "ip_fragment"
    large = Host6(fragments=1, fragment_bytes=64)
    assert large.reason(pieces(frame6(udp(b"x" * 99)), 56)[1]) == "fragment_large"


def test_a_datagram_has_a_minute_and_its_sender_is_told_where_the_first_piece_came():
    parts = pieces(frame6(udp(b"x" * 100)), 56)
    for part, told in ((parts[0], 1), (parts[1], 0)):
        h = Host6(fragments=1, known=[THEM])
        assert h.take(part, now=5)[0] == 0
        assert h.deadline == 5 + 60 * SECOND
        frames = h.tick(h.deadline)
        assert [(f[S.ICMPv6TimeExceeded].code, f[S.IPv6].dst) for f in frames] == [(1, THEM)] * told
        assert h.stats.fragments_expired == 1
        assert h.reason(parts[1 - told]) == "fragment", "it begins anew"


def test_congestion_marks_of_any_piece_are_kept():
    parts = pieces(frame6(udp(b"x" * 100)), 56)
    parts[0][S.IPv6].tc, parts[1][S.IPv6].tc = 2, 3
    h = Host6(fragments=1)
    h.take(parts[0])
    assert h.take(parts[1])[1][5] == 3
    parts[1][S.IPv6].tc = 0
    h = Host6(fragments=1)
    h.take(parts[0])
    assert h.reason(parts[1]) == "fragment_ecn"


def test_ipv4_and_ipv6_share_the_slabs_and_meet_not():
    h = Host6(fragments=1)
    assert lib.xds_host_add_address6(h.h, raw("10.0.0.1"), 24) == 0
    one, two = pieces(frame6(udp(b"x" * 100)), 56)
    assert h.reason(one) == "fragment"
    four = udp_frame(b"y" * 96, dst="10.0.0.1", flags=1)
    assert h.reason(four) == "fragment", "the oldest made room"
    assert h.stats.fragments_evicted == 1
    assert h.reason(two) == "fragment"


def test_groups_and_all_nodes_are_ours_while_they_are_wanted():
    h = Host6(addresses=(f"{ME}/64", f"{LOCAL}/64"))
    assert lib.xds_host_join6(h.h, raw(THEM)) == lib.XDS_ECONFIG
    assert lib.xds_host_join6(h.h, raw("ff00::1")) == lib.XDS_ECONFIG, "scope 0 is nobody's"
    for dst in (GROUP, ALL, solicited(ME)):
        assert h.reason(frame6(udp(), dst=dst)) == "datagram6", dst
    assert lib.xds_host_leave6(h.h, raw(GROUP)) == 0
    assert lib.xds_host_leave6(h.h, raw(GROUP)) == lib.XDS_ESTATE
    assert h.reason(frame6(udp(), dst=GROUP)) == "other_address"
    assert lib.xds_host_join6(h.h, raw(solicited(ME))) == 0 == lib.xds_host_leave6(h.h, raw(solicited(ME)))
    assert h.reason(frame6(udp(), dst=solicited(ME))) == "datagram6", "the address's own membership stays"
    assert mac_of(solicited(ME)) == "33:33:ff:00:00:01"


def test_addresses_that_cannot_be_and_too_many():
    h = Host6(addresses=())
    add = lib.xds_host_add_address6
    for bad in ("::", "ff02::1", "::1"):
        assert add(h.h, raw(bad), 64) == lib.XDS_ECONFIG
    assert add(h.h, raw(ME), 129) == lib.XDS_ECONFIG
    assert [add(h.h, raw(f"2001:db8::{n}"), 64) for n in range(1, 10)] == [0] * 8 + [lib.XDS_ECAPACITY]
    assert add(h.h, raw(ME), 64) == 0, "it is there"
    small = Host6(addresses=(), mtu=1279)
    assert add(small.h, raw(ME), 64) == lib.XDS_ECONFIG, "a link that IPv6 does not run over"
