"""cores/host: IPv6 as it goes out: packets, datagrams, ways, sources, paths' MTUs."""

from __future__ import annotations

import ipaddress
import random

import pytest

from xdpstack._ffi import lib
from xdpstack.tests.host6_driver import FAR, GROUP, ME, ROUTER, THEM, Host6, S, mac_of, raw, solicited
from xdpstack.tests.host_driver import MAC, PEER, SECOND

NONE = bytes(16)


def rebuilt(frame):
    """Scapy's own lengths and sums are the same."""
    again = S.Ether(bytes(frame))
    del again[S.IPv6].plen
    for layer, field in ((S.UDP, "chksum"), (S.TCP, "chksum")):
        if layer in again:
            del again[layer].fields[field]
    if S.UDP in again:
        del again[S.UDP].fields["len"]
    assert bytes(again) == bytes(frame)
    return again


@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 1400, 1452])
@pytest.mark.parametrize("vlan", [0, 7])
def test_a_datagram_is_what_scapy_would_build(size, vlan):
    h = Host6(known=[THEM], vlan=vlan)
    code, frame = h.udp6(bytes(i & 255 for i in range(size)), THEM)
    assert code == len(frame) == 14 + 4 * bool(vlan) + 48 + size
    rebuilt(frame)
    assert (frame.src, frame.dst) == (MAC, PEER)
    assert (frame[S.IPv6].src, frame[S.IPv6].dst, frame[S.IPv6].hlim, frame[S.IPv6].tc) == (ME, THEM, 64, 0)
    assert (frame[S.UDP].sport, frame[S.UDP].dport) == (4000, 5000)
    if vlan:
        assert frame[S.Dot1Q].vlan == vlan
    other = Host6(addresses=(f"{THEM}/64",), known=[ME], promiscuous=1)
    assert other.take(frame)[1][0] == bytes(i & 255 for i in range(size)), "what it builds it takes"
    assert h.stats.sent == 1


def test_a_sum_of_nought_is_written_as_ones():
    h = Host6(known=[THEM])
    words = random.Random(3)
    for _ in range(200):
        payload = words.randbytes(6)
        _, frame = h.udp6(payload + b"\0\0", THEM)
        sum_of = frame[S.UDP].chksum
        _, frame = h.udp6(payload + sum_of.to_bytes(2, "big"), THEM)
        assert frame[S.UDP].chksum == 0xFFFF


@pytest.mark.parametrize("copied", [True, False])
def test_a_segment_goes_with_the_sum_where_it_belongs(copied):
    h = Host6(known=[THEM])
    segment = bytes(S.TCP(sport=7, dport=9, chksum=0) / b"data")
    code, frame, source = h.ip(segment, raw(THEM), checksum_at=16, tos=0xB8, copied=copied)
    assert code == 14 + 40 + len(segment)
    assert source == raw(ME)
    rebuilt(frame)
    assert (frame[S.IPv6].tc, frame[S.IPv6].nh) == (0xB8, 6)


@pytest.mark.parametrize("copied", [True, False])
def test_what_cannot_be_sent_is_refused(copied):
    h = Host6(known=[THEM])
    cases = [
        (lib.XDS_ECONFIG, THEM, {"src": raw(THEM)}),
        (lib.XDS_ECONFIG, THEM, {"src": raw("10.0.0.1")}),
        (lib.XDS_ECONFIG, THEM, {"checksum_at": 4}),
        (lib.XDS_EFOREIGN, FAR, {}),
        (lib.XDS_EFOREIGN, "::", {}),
        (lib.XDS_EFOREIGN, ME, {}),
        (lib.XDS_ECONFIG, "10.0.0.9", {"src": raw(ME)}),
    ]
    for code, dst, more in cases:
        assert h.ip(b"12345", raw(dst), copied=copied, **more)[0] == code, (dst, more)
    assert h.ip(b"x" * 1461, raw(THEM), copied=copied)[0] == lib.XDS_ECAPACITY
    assert h.ip(b"x" * 1460, raw(THEM), copied=copied)[0] == 1514
    assert h.ip(b"x" * 200, raw(THEM), copied=copied, room=200)[0] == lib.XDS_ECAPACITY
    assert h.udp6(b"x" * 1453, THEM)[0] == lib.XDS_ECAPACITY
    assert h.udp6(b"x", THEM, room=60)[0] == lib.XDS_ECAPACITY
    assert Host6(addresses=()).udp6(b"x", THEM)[0] == lib.XDS_EFOREIGN
    assert h.stats.refused == len(cases) + 4


def test_groups_have_their_mac_and_hop_limit():
    h = Host6(multicast_ttl=3)
    _, frame = h.udp6(b"x", GROUP)
    assert (frame.dst, frame[S.IPv6].hlim) == (mac_of(GROUP), 3)
    assert h.ip(b"x", raw(GROUP), ttl=9)[1][S.IPv6].hlim == 9


# ---- sources and ways ----------------------------------------------------------------------------

OWN = ["2001:db8::1", "2001:db8:1::1", "2001:db8:1:8000::1", "fd00::1", "fe80::1"]


@pytest.mark.parametrize(
    ("dst", "source"),
    [
        ("2001:db8::77", OWN[0]),
        ("2001:db8:1::77", OWN[1]),
        ("2001:db8:1:ffff::7", OWN[2]),
        ("fd00::9", OWN[3]),
        ("fe80::9", OWN[4]),
        ("ff02::1", OWN[4]),
        ("ff05::1", OWN[3]),
        ("2001:db8:8000::1", OWN[0]),
    ],
)
def test_the_source_has_the_scope_then_the_longest_common_prefix(dst, source):
    """RFC 6724 5, rules 2 and 8."""
    h = Host6(addresses=[f"{own}/64" for own in OWN])
    assert lib.xds_host_add_route6(h.h, NONE, 0, raw(ROUTER), NONE, 0) == 0
    _, _, chosen = h.ip(b"x", raw(dst))
    assert str(ipaddress.IPv6Address(chosen)) == source


def way(h, dst):
    """(who is asked for, or None, source)."""
    code, frame, source = h.ip(b"x", raw(dst))
    if code == lib.XDS_EFOREIGN:
        return None
    asked = [f[S.ICMPv6ND_NS].tgt for f in h.output() if S.ICMPv6ND_NS in f]
    h.tick(10 * SECOND)
    for n in range(4):
        h.tick((20 + 10 * n) * SECOND)
    return (asked[0] if asked else frame.dst), str(ipaddress.IPv6Address(source))


def test_the_longest_prefix_decides_then_the_metric():
    h = Host6(addresses=(f"{ME}/64", "2001:db8:0:1::1/64"))
    a, b, c = "2001:db8::a", "2001:db8::b", "2001:db8:0:1::c"
    assert way(h, FAR) is None
    add = lib.xds_host_add_route6
    assert add(h.h, NONE, 0, raw(a), NONE, 10) == 0
    assert add(h.h, NONE, 0, raw(b), NONE, 5) == 0
    assert add(h.h, raw("2001:db8:ffff::"), 48, raw(c), raw(ME), 100) == 0
    assert add(h.h, raw("2001:db8:ffff::9"), 128, NONE, NONE, 7) == 0
    assert way(h, "2001:db9::1") == (b, ME)
    assert way(h, "2001:db8:ffff::1") == (c, ME)
    assert way(h, FAR)[0] == FAR, "straight there"
    assert way(h, "fe80::77")[0] == "fe80::77"
    assert lib.xds_host_del_route6(h.h, NONE, 0, 5) == 0
    assert lib.xds_host_del_route6(h.h, NONE, 0, 5) == lib.XDS_ESTATE
    assert way(h, "2001:db9::1") == (a, ME)


def test_prefixes_are_told_apart_bit_by_bit():
    rng = random.Random(7)
    h = Host6(routes=64)
    table = []
    for n in range(40):
        bits = rng.randrange(1, 129)
        net = ipaddress.ip_network(
            (rng.getrandbits(128) & ~(0xE0 << 120) | (0x20 << 120), bits), strict=False
        )
        hop = f"2001:db8::1:{n:x}"
        if lib.xds_host_add_route6(h.h, net.network_address.packed, bits, raw(hop), NONE, n) == 0:
            table.append((net, hop))
        lib.xds_host_add_neighbour6(h.h, raw(hop), bytes([2, 0, 0, 0, 1, n]))
    assert len(table) == 40
    for net, _ in table:
        inside = net.network_address + rng.randrange(net.num_addresses)
        for dst in (inside, ipaddress.ip_address(int(inside) ^ (1 << 127 - rng.randrange(3, 127)))):
            fits = [(m.prefixlen, -i, hop) for i, (m, hop) in enumerate(table) if dst in m]
            code, frame, _ = h.ip(b"x", dst.packed)
            if not fits:
                assert code == lib.XDS_EFOREIGN
            else:
                assert frame.dst == f"02:00:00:00:01:{int(max(fits)[2].rsplit(':')[-1], 16):02x}"


def test_routes_that_cannot_be_are_refused():
    h = Host6(routes=2)
    add = lib.xds_host_add_route6
    assert add(h.h, raw("2001:db9::1"), 64, NONE, NONE, 0) == lib.XDS_ECONFIG, "bits behind the prefix"
    assert add(h.h, raw("2001:db9::"), 129, NONE, NONE, 0) == lib.XDS_ECONFIG
    assert add(h.h, raw("2001:db9::"), 32, NONE, raw(THEM), 0) == lib.XDS_ECONFIG
    assert add(h.h, raw("2001:db9::"), 32, raw("10.0.0.1"), NONE, 0) == lib.XDS_ECONFIG
    assert add(h.h, raw("2001:db9::"), 32, raw("2001:dbb::1"), NONE, 0) == lib.XDS_EFOREIGN
    assert add(h.h, raw("2001:db9::"), 32, raw(ME), NONE, 0) == lib.XDS_EFOREIGN
    assert add(h.h, raw("2001:db9::"), 32, raw(ROUTER), NONE, 0) == 0
    assert add(h.h, raw("2001:db9::"), 32, raw(THEM), NONE, 0) == lib.XDS_ESTATE
    assert add(h.h, raw("2001:db9::"), 33, raw(THEM), NONE, 0) == 0
    assert add(h.h, raw("2001:db9::"), 34, raw(THEM), NONE, 0) == lib.XDS_ECAPACITY


# ---- held, and paths -----------------------------------------------------------------------------


def test_a_datagram_waits_for_its_neighbour():
    h = Host6()
    assert h.udp6(b"one", THEM)[0] == 0
    assert h.ip(b"two", raw(THEM))[0] == 0
    (ask,) = h.output()
    assert (ask.dst, ask[S.IPv6].src, ask[S.IPv6].dst) == (mac_of(solicited(THEM)), ME, solicited(THEM))
    answer = S.Ether(src=PEER, dst=MAC) / S.IPv6(src=THEM, dst=ME, hlim=255)
    answer = answer / S.ICMPv6ND_NA(tgt=THEM, S=1, O=1) / S.ICMPv6NDOptDstLLAddr(lladdr=PEER)
    assert h.reason(answer) == "ndp"
    frames = h.output()
    assert [f.dst for f in frames] == [PEER, PEER]
    assert frames[0][S.UDP].load == b"one"
    rebuilt(frames[0])


def test_a_neighbour_that_never_answers_is_given_up():
    h = Host6()
    assert h.udp6(b"one", THEM)[0] == 0
    seen = len(h.output())
    while h.deadline != lib.XDS_NEVER:
        seen += len(h.tick(h.deadline))
    assert (seen, h.stats.ndp_asked, h.stats.ndp_failed, h.stats.held_lost) == (3, 3, 1, 1)
    assert h.event() == (lib.XDS_HOST_EVENT_LOST, raw(THEM), bytes(6))


def test_nothing_leaves_from_an_address_that_is_not_ours_yet():
    h = Host6(known=[THEM])
    assert lib.xds_host_claim6(h.h, raw(ME), SECOND, 0) == 0
    assert h.udp6(b"x", THEM)[0] == lib.XDS_ESTATE
    assert h.ip(b"x", raw(THEM), src=raw(ME))[0] == lib.XDS_ESTATE
    two = Host6(addresses=(f"{ME}/64", "2001:db8::5/64"), known=[THEM])
    lib.xds_host_claim6(two.h, raw(ME), SECOND, 0)
    assert two.udp6(b"x", THEM)[1][S.IPv6].src == "2001:db8::5", "another may be used"


def test_a_path_has_an_mtu_for_a_while_and_never_less_than_1280():
    h = Host6(known=[THEM], path_ns=SECOND)
    learn, mtu = lib.xds_host_path_learn, lib.xds_host_path_mtu
    assert learn(h.h, raw(THEM), 1279, 0) == 0 == learn(h.h, raw(THEM), 1500, 0)
    assert mtu(h.h, raw(THEM), 0) == 1500
    assert learn(h.h, raw(THEM), 1280, 0) == 1
    assert mtu(h.h, raw(THEM), 0) == 1280
    assert h.udp6(b"x" * 1233, THEM)[0] == lib.XDS_ECAPACITY
    assert h.stats.path_too_large == 1
    code, frame = h.udp6(b"x" * 1232, THEM)
    assert code == 14 + 1280
    assert S.IPv6ExtHdrFragment not in frame
    assert h.udp6(b"x" * 1233, THEM, now=SECOND)[0] > 0, "a larger one is tried again"
