"""cores/host: routers asked for, and what their advertisements say."""

from __future__ import annotations

import pytest

from xdpstack._ffi import lib
from xdpstack.tests.host6_driver import ALL, FAR, LOCAL, ME, ROUTER, Host6, S, frame6, mac_of, raw
from xdpstack.tests.host_driver import MAC, PEER, SECOND

OTHER, OTHER_MAC = "fe80::fd", "02:00:00:00:00:09"
FLAGS = lib.XDS_HOST_ROUTERS


def ra(*options, src=ROUTER, mac=PEER, hlim=255, **fields):
    fields = {"routerlifetime": 1800, "chlim": 0} | fields
    link = [S.ICMPv6NDOptSrcLLAddr(lladdr=mac)] if mac else []
    return frame6(S.ICMPv6ND_RA(**fields), *link, *options, src=src, dst=ALL, hlim=hlim)


def heard(*options, now=0, **fields):
    h = Host6(flags=FLAGS)
    assert h.reason(ra(*options, **fields), now) == "ndp"
    return h


@pytest.mark.parametrize(("own", "source"), [(LOCAL, LOCAL), (ME, ME)])
def test_routers_are_asked_for_three_times(own, source):
    h = Host6(addresses=(f"{own}/64",), flags=FLAGS)
    frames = []
    while h.deadline != lib.XDS_NEVER:
        now = max(h.deadline, 0)
        frames += [(now, f) for f in h.tick(now)]
    assert [now for now, _ in frames] == [0, 4 * SECOND, 8 * SECOND]
    for _, frame in frames:
        want = S.Ether(src=MAC, dst=mac_of("ff02::2")) / S.IPv6(src=source, dst="ff02::2", hlim=255)
        assert bytes(frame) == bytes(want / S.ICMPv6ND_RS() / S.ICMPv6NDOptSrcLLAddr(lladdr=MAC))
    assert h.stats.routers_asked == 3


def test_nobody_is_asked_nor_heard_where_the_config_does_not_say_so():
    h = Host6()
    assert h.deadline == lib.XDS_NEVER
    assert h.reason(ra()) == "ndp"
    assert h.stats.routers_heard == 0
    assert h.udp6(b"x", FAR)[0] == lib.XDS_EFOREIGN


def test_while_the_address_is_probed_for_the_question_has_no_source():
    h = Host6(flags=FLAGS)
    lib.xds_host_claim6(h.h, raw(ME), SECOND, 0)
    (ask,) = [f for f in h.tick(0) if S.ICMPv6ND_RS in f]
    assert ask[S.IPv6].src == "::"
    assert S.ICMPv6NDOptSrcLLAddr not in ask


def test_a_router_is_the_way_to_everywhere_as_long_as_it_said():
    h = heard(routerlifetime=30)
    assert h.deadline == 30 * SECOND, "no more questions, then its end"
    assert h.udp6(b"x", FAR, now=SECOND)[1].dst == PEER
    assert h.udp6(b"x", FAR, now=30 * SECOND)[0] == lib.XDS_EFOREIGN
    h.tick(30 * SECOND)
    h = heard(routerlifetime=30)
    assert h.reason(ra(routerlifetime=0), now=SECOND) == "ndp"
    assert h.udp6(b"x", FAR, now=SECOND)[0] == lib.XDS_EFOREIGN, "it is none any more"


def test_another_router_takes_over_when_the_first_is_silent():
    h = heard()
    h.take(ra(src=OTHER, mac=OTHER_MAC))
    assert h.udp6(b"x", FAR, now=SECOND)[1].dst == PEER
    for n in range(2, 6):  # the first is asked whether it is there, and is not
        h.tick(n * SECOND)
    assert h.udp6(b"x", FAR, now=6 * SECOND)[1].dst == OTHER_MAC


def test_a_router_of_the_configuration_comes_first():
    h = heard()
    assert lib.xds_host_add_neighbour6(h.h, raw("fe80::aa"), b"\2\2\2\2\2\2") == 0
    assert lib.xds_host_add_route6(h.h, bytes(16), 0, raw("fe80::aa"), bytes(16), 0) == 0
    assert h.udp6(b"x", FAR)[1].dst == "02:02:02:02:02:02"


def prefix(net="2001:db8:ffff::", bits=64, on_link=1, life=1800, **fields):
    return S.ICMPv6NDOptPrefixInfo(prefix=net, prefixlen=bits, L=on_link, A=1, validlifetime=life, **fields)


def asked(h):
    return [f[S.ICMPv6ND_NS].tgt for f in h.output() if S.ICMPv6ND_NS in f]


@pytest.mark.parametrize(
    ("option", "direct"),
    [
        (prefix(), True),
        (prefix("2001:db8:fff0::", 44), True),
        (prefix("2001:db8:ffff::", 127), False),
        (prefix("2001:db8:ffff::8", 127), True),
        (prefix(on_link=0), False),
        (prefix(life=0), False),
        (prefix(bits=129), False),
        (prefix("fe80::"), False),
        (prefix(len=3), None),
    ],
)
def test_a_prefix_on_the_link_needs_no_router(option, direct):
    h = Host6(flags=FLAGS)
    reason = h.reason(ra(option))
    if direct is None:
        assert reason == "ndp_bad"
        return
    code, _ = h.udp6(b"x", FAR)
    assert (code == 0 and asked(h)[0] == FAR) if direct else code > 0


def test_a_prefix_option_of_another_length_says_nothing():
    for units in (1, 2, 3, 5):
        option = S.Raw(bytes([3, units, 64, 0xC0]) + b"\xff" * (8 * units - 4))
        h = heard(option)
        assert h.udp6(b"x", FAR)[1].dst == PEER


def test_a_prefix_ends_in_its_time():
    h = heard(prefix(life=10))
    assert h.udp6(b"x", FAR, now=9 * SECOND)[0] == 0
    while h.deadline <= 20 * SECOND:
        h.tick(h.deadline)
    assert h.udp6(b"x", FAR, now=20 * SECOND)[1].dst == PEER
    assert heard(prefix(life=0xFFFFFFFF), routerlifetime=0).deadline == lib.XDS_NEVER


def test_the_links_mtu_and_hop_limit_are_as_the_router_says():
    h = heard(S.ICMPv6NDOptMTU(mtu=1400), chlim=17)
    code, frame = h.udp6(b"x" * 1352, FAR)
    assert code == 14 + 1400
    assert frame[S.IPv6].hlim == 17
    assert h.udp6(b"x" * 1353, FAR)[0] == lib.XDS_ECAPACITY
    for bad in (1279, 1501, 0):
        assert heard(S.ICMPv6NDOptMTU(mtu=bad)).udp6(b"x" * 1452, FAR)[0] == 14 + 1500


@pytest.mark.parametrize(
    "frame",
    [
        ra(hlim=64),
        ra(src="2001:db8::77"),
        ra(code=1),
        ra(mac="01:00:00:00:00:00"),
        ra(S.Raw(b"\1\0")),
        frame6(S.ICMPv6ND_RA(), S.Raw(b"\5\1\0"), src=ROUTER, dst=ALL, hlim=255),
    ],
)
def test_advertisements_that_break_the_rules_are_refused(frame):
    h = Host6(flags=FLAGS)
    assert h.reason(frame) == "ndp_bad"
    assert h.udp6(b"x", FAR)[0] == lib.XDS_EFOREIGN


def test_more_routers_and_prefixes_than_there_is_room_for():
    h = Host6(flags=FLAGS)
    for n in range(1, 20):
        mac = f"02:00:00:00:01:{n:02x}"
        option = prefix(f"2001:db8:{n:x}::", life=100 + n)
        assert h.reason(ra(option, src=f"fe80::{n:x}", mac=mac, routerlifetime=100 + n)) == "ndp"
    assert h.stats.routers_heard == 19
    assert h.udp6(b"x", "2001:db9::1")[0] > 0
