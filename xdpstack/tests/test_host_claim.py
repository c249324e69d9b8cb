"""cores/host: own addresses are probed for, announced and defended (RFC 5227)."""

from __future__ import annotations

import itertools

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.tests.host_driver import (
    FAR,
    GATEWAY,
    MAC,
    ME,
    PEER,
    SECOND,
    THEM,
    Host,
    mapped,
    raw_ip,
    raw_mac,
    scapy,
)

Ether, ARP, IP, UDP, Raw = (getattr(scapy, name) for name in ("Ether", "ARP", "IP", "UDP", "Raw"))
OWNED, PROBING, TAKEN = lib.XDS_HOST_OWNED, lib.XDS_HOST_PROBING, lib.XDS_HOST_TAKEN


def claim(h, ip=ME, interval=SECOND, now=0):
    return lib.xds_host_claim(h.h, raw_ip(ip), interval, now)


def state(h, ip=ME):
    mac = ffi.new("uint8_t[6]")
    return lib.xds_host_claimed(h.h, raw_ip(ip), mac), bytes(mac)


def events(h):
    e, found = ffi.new("struct xds_host_event *"), []
    while lib.xds_host_event(h.h, e):
        found.append((e.kind, bytes(e.mac)))
    return found


def run(h, end):
    """(ns, frame) of everything that leaves up to ``end``."""
    found = []
    while h.deadline <= end:
        now = h.deadline
        found += [(now, frame) for frame in h.tick(now)]
        assert h.deadline > now
    return found


def arp(op=1, sender=ME, target=ME, mac=PEER):
    return (
        Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
        / ARP(op=op, hwsrc=mac, psrc=sender, pdst=target)
        / (b"\0" * 18)
    )


@pytest.mark.parametrize("seed", range(20))
def test_three_probes_and_two_announcements(seed):
    h = Host(seed=seed)
    assert claim(h, now=7) == 0
    frames = run(h, 60 * SECOND)
    assert [(f[ARP].psrc, f[ARP].pdst) for _, f in frames] == [("0.0.0.0", ME)] * 3 + [(ME, ME)] * 2
    for _, f in frames:
        assert (f.dst, f.src, f[ARP].op, f[ARP].hwsrc) == ("ff:ff:ff:ff:ff:ff", MAC, 1, MAC)
        assert f[ARP].hwdst == "00:00:00:00:00:00"
    times = [at for at, _ in frames]
    assert 7 <= times[0] < 7 + SECOND, "PROBE_WAIT"
    assert all(SECOND <= b - a < 2 * SECOND for a, b in itertools.pairwise(times[:3]))
    assert [times[3] - times[2], times[4] - times[3]] == [2 * SECOND] * 2, "ANNOUNCE_WAIT, ANNOUNCE_INTERVAL"
    assert state(h) == (OWNED, bytes(6))
    assert events(h) == [(lib.XDS_HOST_EVENT_CLAIMED, raw_mac(MAC))]
    assert (h.stats.arp_probed, h.stats.arp_announced, h.deadline) == (3, 2, lib.XDS_NEVER)


def test_waits_hang_on_the_seed():
    seen = set()
    for seed in range(10):
        h = Host(seed=seed)
        claim(h)
        seen.add(tuple(at for at, _ in run(h, 60 * SECOND)))
    assert len(seen) == 10


@pytest.mark.parametrize(
    "frame",
    [arp(), arp(2, target="0.0.0.0"), arp(2, target=THEM), arp(1, target=THEM), arp(1, "0.0.0.0", ME)],
    ids=["announced", "answers", "answers others", "asks", "probes too"],
)
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_who_has_it_already_or_wants_it_too_keeps_it(frame, after):
    h = Host()
    claim(h)
    for _ in range(after):
        assert len(h.tick(h.deadline)) == 1
    assert state(h) == (PROBING, bytes(6))
    assert h.input(frame) == (0, None)
    assert state(h) == (TAKEN, raw_mac(PEER))
    assert events(h)[-1] == (lib.XDS_HOST_EVENT_CONFLICT, raw_mac(PEER))
    assert h.output() == [], "nothing is answered for it"
    assert h.deadline == lib.XDS_NEVER
    assert h.stats.arp_conflicts == 1


@pytest.mark.parametrize(
    "frame",
    [arp(mac=MAC), arp(1, "0.0.0.0", ME, MAC), arp(1, THEM, ME), arp(2, THEM, ME), arp(1, "0.0.0.0", THEM)],
    ids=["ours sent back", "our probe sent back", "a question", "an answer", "another's probe"],
)
def test_what_is_no_conflict(frame):
    h = Host()
    claim(h)
    h.tick(h.deadline)
    h.input(frame)
    assert state(h)[0] == PROBING
    assert h.output() == [], "a question for it is not answered before it is ours"
    run(h, 60 * SECOND)
    assert state(h)[0] == OWNED
    h.input(arp(1, THEM, ME))
    assert [f[ARP].op for f in h.output()] == [2]


def test_nothing_leaves_from_an_address_that_is_not_ours_yet():
    h = Host()
    for who in (THEM, GATEWAY):
        lib.xds_host_add_neighbour(h.h, raw_ip(who), raw_mac(PEER))
    assert h.udp(b"x", THEM)[0] > 0
    claim(h)
    for dst in (THEM, FAR, "239.1.2.3"):
        assert h.udp(b"x", dst)[0] == lib.XDS_ESTATE
        assert h.ip(b"x", dst)[0] == h.ip(b"x", dst, copied=False)[0] == lib.XDS_ESTATE
        assert h.ip(b"x", dst, src=mapped(ME))[0] == lib.XDS_ESTATE
    run(h, 60 * SECOND)
    assert h.udp(b"x", THEM, now=60 * SECOND)[0] > 0
    again = Host()
    claim(again)
    echo = Ether(src=PEER, dst=MAC) / IP(src=THEM, dst=ME) / scapy.ICMP() / b"x"
    assert again.input(echo)[0] == lib.XDS_EFOREIGN
    data = bytes(echo)
    frame = ffi.new("struct xds_frame *", {"data": ffi.from_buffer("uint8_t[]", data), "len": len(data)})
    assert lib.xds_host_unreachable(again.h, frame, 3, 0) == 0
    assert again.output() == []
    again.input(arp())
    assert again.udp(b"x", THEM)[0] == lib.XDS_ESTATE


def test_a_second_address_of_the_same_host_goes_on():
    h = Host(addresses=(f"{ME}/24", "10.9.0.1/24"))
    claim(h)
    h.input(arp())
    assert (state(h)[0], state(h, "10.9.0.1")[0]) == (TAKEN, OWNED)
    assert h.udp(b"x", "10.9.0.7")[0] == 0
    (question,) = h.output()
    assert (question[ARP].psrc, question[ARP].pdst) == ("10.9.0.1", "10.9.0.7")


def test_an_address_in_use_is_defended_once_in_ten_seconds():
    h = Host()
    for at in range(0, 30):
        h.input(arp(), now=at * SECOND)
    defence = h.output()
    assert [(f[ARP].op, f[ARP].psrc, f[ARP].pdst, f.dst) for f in defence] == [
        (1, ME, ME, "ff:ff:ff:ff:ff:ff")
    ] * 3
    assert (h.stats.arp_conflicts, h.stats.arp_defended) == (30, 3)
    assert state(h) == (OWNED, raw_mac(PEER))
    assert h.reasons() == {"arp": 30}


def test_the_kernels_address_is_the_kernels_business():
    h = Host(flags=lib.XDS_HOST_NO_ARP_ANSWER)
    h.input(arp())
    assert (h.output(), h.stats.arp_conflicts) == ([], 0)


def test_probes_that_find_no_slot_are_not_left_out():
    h = Host(slots=1)
    claim(h)
    lib.xds_host_tick(h.h, h.deadline)
    for _ in range(5):
        lib.xds_host_tick(h.h, h.deadline)
    assert (h.stats.arp_probed, state(h)[0]) == (1, PROBING)
    run(h, 90 * SECOND)
    assert (h.stats.arp_probed, h.stats.arp_announced, state(h)[0]) == (3, 2, OWNED)


def test_what_cannot_be_claimed():
    h = Host()
    assert claim(h, THEM) == lib.XDS_ESTATE
    assert state(h, THEM)[0] == lib.XDS_ESTATE
    assert claim(h, interval=0) == claim(h, interval=-1) == lib.XDS_ECONFIG
    lib.xds_host_set_mac(h.h, bytes(6))
    assert claim(h) == lib.XDS_ECONFIG
