"""cores/host: neighbours over IPv6: asked, answered, out of date; own addresses probed for."""

from __future__ import annotations

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.tests.host6_driver import ALL, FAR, ME, THEM, Host6, S, frame6, mac_of, raw, solicited
from xdpstack.tests.host_driver import MAC, PEER, SECOND, raw_mac

OTHER = "02:00:00:00:00:03"
OWNED, PROBING, TAKEN = lib.XDS_HOST_OWNED, lib.XDS_HOST_PROBING, lib.XDS_HOST_TAKEN


def ns(target=ME, src=THEM, mac=PEER, dst=None, hlim=255, **fields):
    option = [S.ICMPv6NDOptSrcLLAddr(lladdr=mac)] if mac else []
    return frame6(
        S.ICMPv6ND_NS(tgt=target, **fields), *option, src=src, dst=dst or solicited(target), hlim=hlim
    )


def na(target=THEM, src=THEM, mac=PEER, dst=ME, hlim=255, **flags):
    option = [S.ICMPv6NDOptDstLLAddr(lladdr=mac)] if mac else []
    flags = {"R": 0, "S": 1, "O": 1} | flags
    return frame6(S.ICMPv6ND_NA(tgt=target, **flags), *option, src=src, dst=dst, hlim=hlim)


def asked(h):
    return [(f.dst, f[S.ICMPv6ND_NS].tgt) for f in h.output() if S.ICMPv6ND_NS in f]


@pytest.mark.parametrize("dst", [None, ME])
@pytest.mark.parametrize("mac", [PEER, None])
def test_a_question_is_answered_as_scapy_would(dst, mac):
    h = Host6()
    assert h.reason(ns(dst=dst, mac=mac)) == "ndp"
    (answer,) = h.output()
    want = S.Ether(src=MAC, dst=PEER) / S.IPv6(src=ME, dst=THEM, hlim=255)
    want = want / S.ICMPv6ND_NA(tgt=ME, R=0, S=1, O=1) / S.ICMPv6NDOptDstLLAddr(lladdr=MAC)
    assert bytes(answer) == bytes(want)
    assert h.stats.ndp_answered == 1


def test_who_probes_for_our_address_hears_of_it_with_all_others():
    h = Host6()
    assert h.reason(ns(src="::", mac=None)) == "ndp"
    (answer,) = h.output()
    assert (answer.dst, answer[S.IPv6].dst) == (mac_of(ALL), ALL)
    assert (answer[S.ICMPv6ND_NA].S, answer[S.ICMPv6ND_NA].O) == (0, 1)
    assert h.stats.arp_conflicts == 0


@pytest.mark.parametrize(
    "frame",
    [ns(hlim=254), na(hlim=1), ns(code=1), na(code=1), ns(target="ff02::5", dst=ME),
     na(target="ff02::5"), ns(src="::", mac=PEER), ns(src="::", mac=None, dst=ME), na(src="::"),
     na(dst=ALL), na(mac="01:00:00:00:00:01"),
     ns(mac="33:33:00:00:00:01"),
     frame6(S.ICMPv6ND_NS(tgt=ME), S.Raw(b"\1\0" + b"\0" * 6), hlim=255, dst=solicited(ME)),
     frame6(S.ICMPv6ND_NS(tgt=ME), S.Raw(b"\1\2" + b"\0" * 6), hlim=255, dst=solicited(ME)),
     frame6(S.ICMPv6ND_NA(tgt=THEM), S.Raw(b"\2"), hlim=255),
     frame6(S.Raw(bytes(S.ICMPv6ND_NS(tgt=ME))[:16]), nh=58, hlim=255)],
)  # fmt: skip
def test_what_breaks_the_rules_is_refused(frame):
    h = Host6()
    if S.Raw in frame and S.ICMPv6ND_NS not in frame and S.ICMPv6ND_NA not in frame:
        message = bytearray(bytes(frame)[54:])
        message[2:4] = b"\0\0"
        pseudo = S.IPv6(bytes(frame)[14:])
        from scapy.layers.inet6 import in6_chksum

        message[2:4] = in6_chksum(58, pseudo, bytes(message)).to_bytes(2, "big")
        frame = bytes(frame)[:54] + bytes(message)
    assert h.reason(frame) == "ndp_bad"
    assert h.output() == []
    assert h.udp6(b"x", THEM)[0] == 0, "nothing was learned"


def test_nothing_is_answered_for_addresses_of_others_or_of_the_kernel():
    h = Host6()
    lib.xds_host_join6(h.h, raw(solicited(FAR)))
    assert h.reason(ns(target=FAR)) == "ndp"
    shared = Host6(flags=lib.XDS_HOST_NO_ARP_ANSWER)
    assert shared.reason(ns()) == "ndp"
    assert h.output() == [] == shared.output()
    assert shared.udp6(b"x", THEM)[0] > 0, "but what the question says is learned"
    full = Host6(slots=1)
    assert [full.reason(ns()) for _ in range(2)] == ["ndp", "no_room"]


def test_an_answer_resolves_and_tells():
    h = Host6()
    assert h.udp6(b"x", THEM)[0] == 0
    assert asked(h) == [(mac_of(solicited(THEM)), THEM)]
    assert h.reason(na(mac=None)) == "ndp"
    assert h.udp6(b"y", THEM)[0] == 0, "without an address nothing is resolved"
    h.take(na())
    assert h.event() == (lib.XDS_HOST_EVENT_NEIGHBOUR, raw(THEM), raw_mac(PEER))
    assert [f.dst for f in h.output()] == [PEER, PEER]
    assert h.udp6(b"z", THEM)[1].dst == PEER


def test_an_answer_that_nobody_asked_for_makes_no_entry():
    h = Host6()
    assert h.reason(na()) == "ndp"
    assert h.udp6(b"x", THEM)[0] == 0


def test_a_question_makes_an_entry_that_is_confirmed_at_its_first_use():
    """RFC 4861 7.2.3 and 7.3.3: the neighbour alone is asked."""
    h = Host6()
    h.take(ns(), now=10 * SECOND)
    h.output()
    assert h.udp6(b"x", THEM, now=10 * SECOND)[1].dst == PEER
    assert asked(h) == [(PEER, THEM)]
    h.take(na(mac=None), now=10 * SECOND)
    assert h.udp6(b"x", THEM, now=20 * SECOND)[0] > 0
    assert asked(h) == []


def known(**settings):
    h = Host6(age_ns=10 * SECOND, **settings)
    h.udp6(b"x", THEM)
    h.output()
    h.take(na())
    h.output()
    while h.event():
        pass
    return h


def test_an_old_entry_is_asked_alone_and_used_until_nobody_answers():
    h = known()
    assert h.udp6(b"x", THEM, now=10 * SECOND)[0] > 0
    assert asked(h) == []
    assert h.udp6(b"x", THEM, now=11 * SECOND)[0] > 0
    assert asked(h) == [(PEER, THEM)]
    for n in (12, 13):
        assert h.udp6(b"x", THEM, now=n * SECOND)[0] > 0
        assert [f.dst for f in h.tick(n * SECOND)] == [PEER]
    h.tick(14 * SECOND)
    assert h.event() == (lib.XDS_HOST_EVENT_LOST, raw(THEM), raw_mac(PEER))
    assert h.udp6(b"x", THEM, now=14 * SECOND)[0] == 0
    assert asked(h) == [(mac_of(solicited(THEM)), THEM)], "and then everybody"


@pytest.mark.parametrize(
    ("flags", "mac", "where", "asks"),
    [
        ({"S": 1, "O": 1}, OTHER, OTHER, False),
        ({"S": 0, "O": 1}, OTHER, OTHER, True),
        ({"S": 1, "O": 0}, OTHER, PEER, True),
        ({"S": 0, "O": 0}, OTHER, PEER, True),
        ({"S": 0, "O": 1}, PEER, PEER, False),
        ({"S": 1, "O": 0}, PEER, PEER, False),
    ],
)
def test_what_an_advertisement_changes_hangs_on_its_flags(flags, mac, where, asks):
    """RFC 4861 7.2.5 and appendix C."""
    h = known()
    dst = ME if flags["S"] else ALL
    assert h.reason(na(mac=mac, dst=dst, **flags), now=SECOND) == "ndp"
    assert h.udp6(b"x", THEM, now=SECOND)[1].dst == where
    assert bool(asked(h)) == asks
    moved = h.event()
    assert moved == ((lib.XDS_HOST_EVENT_MOVED, raw(THEM), raw_mac(OTHER)) if where == OTHER else None)


def test_fixed_entries_stay():
    h = Host6(known=[THEM])
    h.take(na(mac=OTHER))
    h.take(ns(mac=OTHER))
    h.output()
    assert h.udp6(b"x", THEM)[1].dst == PEER


# ---- own addresses -------------------------------------------------------------------------------


def claim(h, now=0):
    return lib.xds_host_claim6(h.h, raw(ME), SECOND, now)


def state(h):
    mac = ffi.new("uint8_t[6]")
    return lib.xds_host_claimed6(h.h, raw(ME), mac), bytes(mac)


def run(h, until=60 * SECOND):
    frames = []
    while h.deadline <= until:
        now = h.deadline
        frames += [(now, f) for f in h.tick(now)]
    return frames


@pytest.mark.parametrize("seed", range(10))
def test_one_probe_then_it_is_ours_and_announced(seed):
    """RFC 4862 5.4.2, RFC 4861 7.2.6."""
    h = Host6(seed=seed)
    assert claim(h, now=7) == 0
    (at, probe), *announced = run(h)
    want = S.Ether(src=MAC, dst=mac_of(solicited(ME))) / S.IPv6(src="::", dst=solicited(ME), hlim=255)
    assert bytes(probe) == bytes(want / S.ICMPv6ND_NS(tgt=ME))
    assert 7 <= at < 7 + SECOND
    assert [when - at for when, _ in announced] == [SECOND, 3 * SECOND]
    for _, f in announced:
        want = S.Ether(src=MAC, dst=mac_of(ALL)) / S.IPv6(src=ME, dst=ALL, hlim=255)
        want = want / S.ICMPv6ND_NA(tgt=ME, R=0, S=0, O=1) / S.ICMPv6NDOptDstLLAddr(lladdr=MAC)
        assert bytes(f) == bytes(want)
    assert state(h) == (OWNED, bytes(6))
    assert h.event() == (lib.XDS_HOST_EVENT_CLAIMED, raw(ME), raw_mac(MAC))
    assert (h.stats.ndp_probed, h.stats.ndp_announced, h.deadline) == (1, 2, lib.XDS_NEVER)


@pytest.mark.parametrize("frame", [na(ME, ME, dst=ALL, S=0), na(ME, ME), ns(src="::", mac=None)])
@pytest.mark.parametrize("after", [0, 1])
def test_who_has_it_already_or_wants_it_too_keeps_it(frame, after):
    h = Host6()
    claim(h)
    for _ in range(after):
        assert len(h.tick(h.deadline)) == 1
    h.take(frame)
    assert state(h) == (TAKEN, raw_mac(PEER))
    assert h.event() == (lib.XDS_HOST_EVENT_CONFLICT, raw(ME), raw_mac(PEER))
    assert run(h) == []
    assert h.stats.arp_conflicts == 1
    assert h.udp6(b"x", THEM)[0] == lib.XDS_ESTATE


@pytest.mark.parametrize("at_once", [ns(), ns(src="::", mac=None, target=FAR), na()])
def test_what_is_no_conflict(at_once):
    h = Host6()
    claim(h)
    (probe,) = h.tick(h.deadline)
    h.take(at_once)
    h.take(probe)  # by a switch that sends it back
    assert state(h)[0] == PROBING
    assert h.output() == [], "no question is answered before it is ours"
    run(h)
    assert state(h)[0] == OWNED
    h.take(ns())
    assert len(h.output()) == 1


def test_an_address_that_is_ours_is_defended_once_in_ten_seconds():
    h = Host6()
    for n in range(31):
        h.take(na(ME, ME, dst=ALL, S=0), now=n * SECOND)
    assert (h.stats.arp_conflicts, h.stats.arp_defended) == (31, 4)
    assert {f[S.IPv6].dst for f in h.output()} == {ALL}
    assert state(h) == (OWNED, raw_mac(PEER))


def test_what_cannot_be_claimed():
    h = Host6()
    assert lib.xds_host_claim6(h.h, raw(THEM), SECOND, 0) == lib.XDS_ESTATE
    assert lib.xds_host_claim6(h.h, raw(ME), 0, 0) == lib.XDS_ECONFIG
    assert lib.xds_host_claimed6(h.h, raw(THEM), ffi.new("uint8_t[6]")) == lib.XDS_ESTATE


def test_the_table_is_shared_with_arp_and_bounded():
    h = Host6(neighbours=2)
    lib.xds_host_add_address6(h.h, raw("10.0.0.1"), 24)
    for n, who in enumerate(["10.0.0.2", "2001:db8::2", "2001:db8::3"]):
        assert h.udp6(b"x", who)[0] == (0 if n < 2 else lib.XDS_ECAPACITY), who
    assert [type(f.payload).__name__ for f in h.output()] == ["ARP", "IPv6"]
