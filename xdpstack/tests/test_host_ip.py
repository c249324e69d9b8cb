"""cores/host below other protocols: packets handed over, payloads sent, their way and their source."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import lib
from xdpstack.tests.host_driver import (
    FAR,
    GATEWAY,
    GROUP,
    MAC,
    ME,
    PEER,
    THEM,
    Host,
    Packet,
    mapped,
    raw_ip,
    raw_mac,
    scapy,
)

Ether, ARP, IP, TCP, Raw, Dot1Q = (getattr(scapy, n) for n in ("Ether", "ARP", "IP", "TCP", "Raw", "Dot1Q"))
TCP_AT = {"checksum_at": 16}


def segment(payload=b"data", **fields):
    ip = {"src": THEM, "dst": ME, "tos": 0xB9, "ttl": 17} | fields
    return Ether(src=PEER, dst=MAC) / IP(**ip) / TCP(sport=1, dport=2, flags="PA") / Raw(payload)


def taking(*protocols, **settings):
    h = Host(**settings)
    for protocol in protocols or (6,):
        assert lib.xds_host_take(h.h, protocol) == 0
    return h


@pytest.mark.parametrize("tail", [b"", b"\0" * 20])
@pytest.mark.parametrize("options", [[], [scapy.IPOption(b"\x01" * 8)]])
def test_a_segment_is_handed_over_with_all_that_its_header_says(tail, options):
    frame = segment(options=options)
    want = bytes(frame[TCP])
    code, packet = taking().input(bytes(frame) + tail)
    assert code == lib.XDS_INPUT_PACKET
    assert packet == Packet(6, mapped(THEM), mapped(ME), 0xB9, 17, want)


def test_only_what_was_taken_is_handed_over_and_each_has_one_name():
    h = taking(6, 132, 255)
    frames = [segment(), segment(proto=132), segment(proto=255), segment(proto=41), segment(proto=0)]
    codes = [h.input(frame)[0] for frame in frames]
    assert codes == [lib.XDS_INPUT_PACKET] * 3 + [lib.XDS_EFOREIGN] * 2
    assert h.reasons() == {"handed_over": 3, "protocol": 2}
    for protocol in (1, 17, 256):
        assert lib.xds_host_take(h.h, protocol) == lib.XDS_ECONFIG


def test_a_wrong_tcp_checksum_is_refused_and_a_partial_one_only_where_told():
    wrong = segment()
    wrong[TCP].chksum = 1
    h = taking()
    assert h.input(wrong)[0] == lib.XDS_EMALFORMED
    assert h.reasons() == {"tcp_checksum": 1}
    whole = bytes(segment())
    pseudo = scapy.in4_pseudoheader(6, IP(whole[14:]), len(whole) - 34)
    partial = bytearray(whole)
    partial[50:52] = (scapy.checksum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    assert taking().input(bytes(partial))[0] == lib.XDS_EMALFORMED
    lenient = taking(flags=lib.XDS_HOST_PARTIAL_CHECKSUM)
    assert lenient.input(bytes(partial))[0] == lib.XDS_INPUT_PACKET
    assert lenient.stats.partial_checksum == 1
    short = Ether(src=PEER, dst=MAC) / IP(src=THEM, dst=ME, proto=6) / Raw(b"x" * 17)
    assert lenient.input(short)[0] == lib.XDS_EMALFORMED


def known(**settings):
    h = Host(**settings)
    for who in (THEM, GATEWAY):
        assert lib.xds_host_add_neighbour(h.h, raw_ip(who), raw_mac(PEER)) == 0
    return h


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("vlan", [0, 42])
@pytest.mark.parametrize("size", [0, 1, 2, 33, 1439, 1440])
def test_segments_are_what_scapy_builds(copied, vlan, size):
    want = Ether(src=MAC, dst=PEER)
    want = want / Dot1Q(vlan=vlan) if vlan else want
    want = want / IP(src=ME, dst=THEM, ttl=64, flags="DF", id=0, tos=0x2E)
    want = Ether(bytes(want / TCP(sport=5, dport=6, seq=7) / Raw(random.Random(size).randbytes(size))))
    load = bytearray(bytes(want[TCP]))
    load[16:18] = b"\xff\xff"  # what stood there does not matter
    code, frame, source = known(vlan=vlan).ip(bytes(load), THEM, copied=copied, tos=0x2E, **TCP_AT)
    assert (code, source) == (len(frame), mapped(ME))
    assert bytes(frame) == bytes(want)


def test_a_payload_waits_for_its_neighbour_and_a_reservation_asks_for_it():
    for copied in (True, False):
        h = Host()
        assert h.ip(b"early", THEM, 99, copied=copied)[0] == 0
        assert [f[ARP].pdst for f in h.output()] == [THEM]
        h.input(Ether(src=PEER, dst=MAC) / ARP(op=2, hwsrc=PEER, psrc=THEM, hwdst=MAC, pdst=ME))
        left = h.output()
        assert [f[IP].proto for f in left] == ([99] if copied else [])
        assert [bytes(f[IP].payload) for f in left] == ([b"early"] if copied else [])
        assert h.ip(b"now", THEM, 99, copied=copied)[1].dst == PEER


@pytest.mark.parametrize("copied", [True, False])
def test_what_cannot_be_sent_is_refused(copied):
    h = known()
    cases = [
        (lib.XDS_ECONFIG, {"src": mapped(THEM)}),
        (lib.XDS_ECONFIG, {"src": b"\xfe\x80" + bytes(14)}),
        (lib.XDS_ECONFIG, {"checksum_at": 4}),  # of five bytes
        (lib.XDS_ECONFIG, {"checksum_at": 1}),
    ]
    for code, more in cases:
        assert h.ip(b"12345", THEM, copied=copied, **more)[0] == code, more
    nowhere = [b"\x20\x01" + bytes(14), mapped("0.0.0.0"), mapped("255.255.255.255"), bytes(16)]
    assert [h.ip(b"x", dst, copied=copied)[0] for dst in nowhere] == [lib.XDS_EFOREIGN] * 4
    assert h.ip(b"x" * 1481, THEM, copied=copied)[0] == lib.XDS_ECAPACITY
    assert h.ip(b"x" * 1480, THEM, copied=copied)[0] == 1514
    assert h.stats.refused == len(cases) + len(nowhere) + 1
    assert Host(gateway=0).ip(b"x", FAR, copied=copied)[0] == lib.XDS_EFOREIGN
    assert Host(addresses=()).ip(b"x", THEM, copied=copied)[0] == lib.XDS_ECONFIG
    for room in range(60):
        code = h.ip(b"0123456789", THEM, room=room, copied=copied)[0]
        assert code == (44 if room >= 44 else lib.XDS_ECAPACITY), room


@pytest.mark.rfc("9293", "MUST-49")
def test_hops_are_the_hosts_unless_told():
    h = known(ttl=61)
    assert h.ip(b"x", THEM)[1][IP].ttl == 61
    assert h.ip(b"x", THEM, ttl=255)[1][IP].ttl == 255
    assert h.ip(b"x", GROUP)[1][IP].ttl == 1


# ---- routes --------------------------------------------------------------------------------------


def way(h: Host, dst: str) -> tuple[str, str] | None:
    """``(next hop, source)`` that a payload to dst takes: the hop is who is asked for."""
    code, frame, source = h.ip(b"x", dst)
    if code == lib.XDS_EFOREIGN:
        return None
    assert (code, frame) == (0, None)
    asked = [f for f in h.output() if ARP in f]
    return asked[-1][ARP].pdst if asked else "", str(ipaddress.IPv4Address(source[12:]))


def model(own, routes, gateway, dst):
    """The same by sorting every route that holds dst."""
    to = ipaddress.IPv4Address(dst)
    rows = [(i.network, None, str(i.ip), 0) for i in map(ipaddress.IPv4Interface, own)]
    rows += [(ipaddress.IPv4Network("0.0.0.0/0"), gateway, None, 0)] if gateway else []
    rows += [(ipaddress.IPv4Network(net), via, src, metric) for net, via, src, metric in routes]
    fits = [row for row in rows if to in row[0]]
    if not fits:
        return None
    _, via, src, _ = min(fits, key=lambda row: (-row[0].prefixlen, row[3]))
    beside = [
        str(i.ip) for i in map(ipaddress.IPv4Interface, own) if via and ipaddress.ip_address(via) in i.network
    ]
    return via or dst, src or (beside or [own[0].split("/")[0]])[0]


OWN = ["10.0.0.1/24", "10.0.0.9/24", "10.1.0.1/16", "10.1.2.1/24", "172.16.0.1/32"]
VIA = [None, "10.0.0.254", "10.1.0.254", "10.1.2.254"]
NETS = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/25", "10.1.2.0/24", "192.0.2.0/24"]
NETS += ["192.0.2.9/32", "192.0.2.8/29"]
TARGETS = ["10.0.0.2", "10.0.0.200", "10.1.2.3", "10.1.9.9", "10.9.9.9", "8.8.8.8"]
TARGETS += ["192.0.2.9", "192.0.2.10", "192.0.2.77"]


@settings(max_examples=150, deadline=None)
@given(
    st.permutations(OWN),
    st.lists(
        st.tuples(
            st.sampled_from(NETS),
            st.sampled_from(VIA),
            st.sampled_from([None, *(own.split("/")[0] for own in OWN)]),
            st.integers(0, 2),
        ),
        max_size=8,
        unique_by=lambda route: (route[0], route[3]),
    ),
    st.sampled_from(VIA),
    st.sets(st.integers(0, 7)),
)
def test_ways_and_sources_are_those_of_a_sorted_list(own, routes, gateway, gone):
    h = Host(addresses=own, gateway=raw_ip(gateway or "0.0.0.0"), neighbours=64)
    for net, via, src, metric in routes:
        dst, _, bits = net.partition("/")
        args = (raw_ip(via or "0.0.0.0"), raw_ip(src or "0.0.0.0"), metric)
        assert lib.xds_host_add_route(h.h, raw_ip(dst), int(bits), *args) == 0
        assert lib.xds_host_add_route(h.h, raw_ip(dst), int(bits), *args) == lib.XDS_ESTATE
    for net, _, _, metric in (route for i, route in enumerate(routes) if i in gone):
        dst, _, bits = net.partition("/")
        assert lib.xds_host_del_route(h.h, raw_ip(dst), int(bits), metric) == 0
        assert lib.xds_host_del_route(h.h, raw_ip(dst), int(bits), metric) == lib.XDS_ESTATE
    routes = [route for i, route in enumerate(routes) if i not in gone]
    seen: set[str] = set()
    for dst in TARGETS:
        got, want = way(h, dst), model(own, routes, gateway, dst)
        if got and want:
            assert got[1] == want[1], f"the source to {dst}"
            assert got[0] == (want[0] if want[0] not in seen else ""), f"the way to {dst}"
            seen.add(want[0])
        else:
            assert got == want, f"a way to {dst}"


def test_routes_that_cannot_be_are_refused():
    h = Host(routes=2)
    add = lib.xds_host_add_route
    assert add(h.h, raw_ip("192.0.2.1"), 24, 0, 0, 0) == lib.XDS_ECONFIG
    assert add(h.h, raw_ip("192.0.2.0"), 33, 0, 0, 0) == lib.XDS_ECONFIG
    assert add(h.h, raw_ip("192.0.2.0"), 24, 0, raw_ip(THEM), 0) == lib.XDS_ECONFIG
    assert add(h.h, raw_ip("192.0.2.0"), 24, raw_ip("192.0.2.1"), 0, 0) == lib.XDS_EFOREIGN
    assert add(h.h, raw_ip("192.0.2.0"), 24, raw_ip(ME), 0, 0) == lib.XDS_EFOREIGN
    assert [add(h.h, raw_ip("192.0.2.0"), 24, 0, 0, metric) for metric in (0, 1, 2)] == [
        0,
        0,
        lib.XDS_ECAPACITY,
    ]
    assert lib.xds_host_del_route(h.h, 0, 33, 0) == lib.XDS_ESTATE


def test_a_group_goes_from_the_first_address_unless_a_route_says_another():
    h = Host(addresses=("10.0.0.1/24", "10.1.0.1/16"), gateway=raw_ip("10.1.0.254"))
    assert h.ip(b"x", GROUP)[2] == mapped("10.0.0.1")
    assert lib.xds_host_add_route(h.h, raw_ip("224.0.0.0"), 4, 0, raw_ip("10.1.0.1"), 0) == 0
    assert h.ip(b"x", GROUP)[2] == mapped("10.1.0.1")
    assert h.udp(b"x", GROUP)[1][IP].src == "10.1.0.1"


def test_a_flow_that_is_known_follows_a_route_that_came_later():
    h = Host(addresses=("10.0.0.1/24", "10.1.0.1/16"), gateway=raw_ip(GATEWAY))
    for who, mac in ((GATEWAY, PEER), ("10.1.0.254", "02:00:00:00:00:03")):
        assert lib.xds_host_add_neighbour(h.h, raw_ip(who), raw_mac(mac)) == 0
    assert [(f.dst, f[IP].src) for f in (h.udp(b"x", FAR)[1] for _ in range(2))] == [(PEER, "10.0.0.1")] * 2
    assert lib.xds_host_add_route(h.h, raw_ip("192.0.2.0"), 24, raw_ip("10.1.0.254"), 0, 7) == 0
    frame = h.udp(b"x", FAR)[1]
    assert (frame.dst, frame[IP].src) == ("02:00:00:00:00:03", "10.1.0.1")
    assert lib.xds_host_del_route(h.h, raw_ip("192.0.2.0"), 24, 7) == 0
    assert h.udp(b"x", FAR)[1].dst == PEER
