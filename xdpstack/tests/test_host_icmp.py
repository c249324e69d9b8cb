"""cores/host: ICMP errors that are sent: about what, to whom, how often."""

from __future__ import annotations

import pytest

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
)

Ether, ARP, IP, UDP, ICMP, TCP, Raw, Dot1Q = (
    getattr(scapy, name) for name in ("Ether", "ARP", "IP", "UDP", "ICMP", "TCP", "Raw", "Dot1Q")
)


def known(**settings):
    h = Host(**settings)
    for who in (THEM, GATEWAY):
        assert lib.xds_host_add_neighbour(h.h, raw_ip(who), raw_mac(PEER)) == 0
    return h


def unreachable(h, frame, code=3, now=0):
    data = bytes(frame)
    keep = ffi.new("uint8_t[]", data or b"\0")
    f = ffi.new("struct xds_frame *", {"data": keep, "len": len(data)})
    return lib.xds_host_unreachable(h.h, f, code, now)


@pytest.mark.parametrize("size", [0, 1, 7, 528, 1400])
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_the_sender_of_a_datagram_that_nobody_takes_is_told(size, tags):
    h = known()
    frame = Ether(src=PEER, dst=MAC)
    for tag in range(tags):
        frame = frame / Dot1Q(vlan=tag + 1)
    frame = Ether(bytes(frame / IP(src=THEM, dst=ME, tos=8) / UDP(sport=7, dport=9) / Raw(b"x" * size)))
    assert h.input(bytes(frame) + b"\0" * 18)[0] == 1
    assert unreachable(h, bytes(frame) + b"\0" * 18) == 1
    (told,) = h.output()
    assert (scapy.checksum(bytes(told[IP])[:20]), scapy.checksum(told.original[34:])) == (0, 0)
    assert (told.src, told.dst, told[IP].src, told[IP].dst, told[IP].ttl) == (MAC, PEER, ME, THEM, 64)
    assert (told[ICMP].type, told[ICMP].code) == (3, 3)
    quoted = told.original[42:]  # scapy looks for extensions in there
    assert quoted == bytes(frame[IP])[:548], "as much as 576 bytes hold"
    assert h.stats.icmp_told == 1


def test_a_protocol_that_nobody_takes_is_told_where_the_config_says():
    segment = Ether(src=PEER, dst=MAC) / IP(src=THEM, dst=ME) / TCP() / b"x"
    quiet, h = known(), known(flags=lib.XDS_HOST_UNREACHABLE)
    for each in (quiet, h):
        assert each.input(segment)[0] == lib.XDS_EFOREIGN
        assert each.reasons() == {"protocol": 1}
    assert quiet.output() == []
    assert [(f[ICMP].type, f[ICMP].code) for f in h.output()] == [(3, 2)]
    assert lib.xds_host_take(h.h, 6) == 0
    assert h.input(segment)[0] == lib.XDS_INPUT_PACKET
    assert h.output() == []


@pytest.mark.parametrize(
    "frame",
    [
        udp_frame(dst=GROUP),
        udp_frame(dst=ME, mac="ff:ff:ff:ff:ff:ff"),
        udp_frame(dst="10.0.0.77"),
        udp_frame(dst=ME, frag=1),
        *(
            Ether(src=PEER, dst=MAC) / IP(src=source, dst=ME) / UDP() / b"x"
            for source in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1")
        ),
        *(Ether(src=PEER, dst=MAC) / IP(src=THEM, dst=ME) / ICMP(type=t) / b"x" for t in (3, 4, 5, 11, 12)),
    ],
)
def test_nobody_is_told_of_what_nobody_may_be_told_of(frame):
    h = known()
    assert unreachable(h, frame) == 0
    assert h.output() == []
    assert unreachable(h, Ether(src=PEER, dst=MAC) / IP(src=THEM, dst=ME) / ICMP(type=8) / b"x") == 1


def test_a_frame_cut_anywhere_is_refused():
    whole = bytes(Ether(src=PEER, dst=MAC) / Dot1Q() / IP(src=THEM, dst=ME) / UDP() / b"xyz")
    for cut in range(len(whole)):
        assert unreachable(known(), whole[:cut]) == lib.XDS_ECONFIG, cut
    assert unreachable(known(), whole) == 1
    assert unreachable(known(), whole, code=16) == lib.XDS_ECONFIG
    assert unreachable(known(), Ether(dst=MAC) / ARP() / (b"x" * 30)) == lib.XDS_ECONFIG


def test_errors_are_bounded_in_a_burst_and_in_the_long_run():
    h = known(error_burst=3, error_ns=SECOND, slots=64)
    frame = udp_frame(dst=ME)
    now, told = 100 * SECOND, []
    for step in range(100):  # ten a second for ten seconds
        told += [step] * (unreachable(h, frame, now=now + step * SECOND // 10) == 1)
    assert told == [0, 1, 2, *range(10, 100, 10)]
    assert (h.stats.icmp_told, h.stats.icmp_limited) == (12, 88)
    assert len(h.output()) == 12
    again = [unreachable(h, frame, now=now + 500 * SECOND) for _ in range(5)]
    assert again == [1, 1, 1, 0, 0], "a rest fills the bucket, no more"


def test_an_error_waits_for_its_neighbour_and_goes_by_the_gateway():
    h = Host()
    assert unreachable(h, Ether(src=PEER, dst=MAC) / IP(src=FAR, dst=ME) / UDP() / b"x") == 1
    assert [f[ARP].pdst for f in h.output()] == [GATEWAY]
    h.input(Ether(src=PEER, dst=MAC) / ARP(op=2, hwsrc=PEER, psrc=GATEWAY, hwdst=MAC, pdst=ME))
    assert [(f.dst, f[IP].dst, f[ICMP].type) for f in h.output()] == [(PEER, FAR, 3)]
    far = Ether(src=PEER, dst=MAC) / IP(src=FAR, dst=ME) / UDP() / b"x"
    assert unreachable(Host(gateway=0), far) == lib.XDS_EFOREIGN
    full = known(slots=1)
    assert [unreachable(full, udp_frame(dst=ME)) for _ in range(2)] == [1, lib.XDS_ECAPACITY]
