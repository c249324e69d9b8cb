"""cores/host: ICMP errors about what was sent, and path MTUs: by the flow inside, bounded, forgotten."""

from __future__ import annotations

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
    mapped,
    raw_ip,
    raw_mac,
    scapy,
    verified,
)

Ether, IP, UDP, ICMP, TCP, Raw, IPerror = (
    getattr(scapy, name) for name in ("Ether", "IP", "UDP", "ICMP", "TCP", "Raw", "IPerror")
)
ROUTER = "203.0.113.1"
MINUTE = 60 * SECOND


def known(**config):
    h = Host(**config)
    for who in (THEM, GATEWAY):
        assert lib.xds_host_add_neighbour(h.h, raw_ip(who), raw_mac(PEER)) == 0
    return h


def about(packet, kind=3, code=3, quoted=28, source=ROUTER, **fields):
    """An ICMP error of a router about a packet of ours, of which it sends the first bytes."""
    inside = bytes(packet)[:quoted]
    return (
        Ether(src=PEER, dst=MAC) / IP(src=source, dst=ME) / ICMP(type=kind, code=code, **fields) / Raw(inside)
    )


def segment(dst=FAR, sport=4000, dport=80, seq=7, size=1460, source=ME, **fields):
    return IP(
        bytes(
            IP(src=source, dst=dst, flags="DF", **fields)
            / TCP(sport=sport, dport=dport, seq=seq)
            / Raw(b"x" * size)
        )
    )


def error(h):
    e = lib.xds_host_error(h.h)
    found = {name: getattr(e, name) for name, _ in ffi.typeof(e).item.fields if name != "pad"}
    return found | {name: bytes(found[name]) for name in ("src", "dst", "from")}


def path(h, dst=FAR, now=0):
    return lib.xds_host_path_mtu(h.h, mapped(dst), now)


def learn(h, mtu, dst=FAR, now=0):
    return lib.xds_host_path_learn(h.h, mapped(dst), mtu, now)


@pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 3), (3, 13), (5, 1), (11, 0), (12, 0)])
@pytest.mark.parametrize("quoted", [28, 40, 548])
def test_an_error_names_the_flow_inside_it(kind, code, quoted):
    h = known()
    assert h.input(about(segment(), kind, code, quoted), now=5)[0] == lib.XDS_INPUT_ERROR
    assert error(h) == {
        "ns": 5, "src": mapped(ME), "dst": mapped(FAR), "from": mapped(ROUTER), "sport": 4000, "dport": 80,
        "seq": 7, "mtu": 0, "type": kind, "code": code, "protocol": 6,
    }  # fmt: skip
    assert h.reasons() == {"icmp_error": 1}
    assert h.output() == []


def test_options_of_the_packet_inside_are_passed_over():
    h = known()
    packet = segment(options=[scapy.IPOption_NOP()] * 8, seq=9)
    assert packet.ihl == 7
    assert h.input(about(packet, quoted=36))[0] == lib.XDS_INPUT_ERROR
    assert error(h)["seq"] == 9


@pytest.mark.parametrize(
    "frame",
    [
        about(segment(source="10.0.0.77")),  # nothing that we sent
        about(segment(frag=3)),  # no ports in there
        about(segment(dst=GROUP)),
        about(segment(dst="0.0.0.0")),
        about(segment(), quoted=27),
        about(segment(), quoted=0),
        about(b"\x65" + bytes(segment())[1:]),
        about(b"\x44" + bytes(segment())[1:]),
        about(bytes(segment())[:2] + b"\0\x14" + bytes(segment())[4:]),
    ],
)
def test_what_is_about_nothing_of_ours_is_counted(frame):
    h = known()
    assert h.input(frame)[0] == lib.XDS_EFOREIGN
    assert h.reasons() == {"icmp_stray": 1}


def test_a_source_quench_and_a_wrong_checksum_say_nothing():
    h = known()
    assert h.input(about(segment(), 4, 0))[0] == lib.XDS_EFOREIGN
    assert h.input(about(segment(), chksum=1))[0] == lib.XDS_EMALFORMED
    assert h.reasons() == {"icmp_other": 1, "icmp_bad": 1}


def test_a_frame_cut_anywhere_surprises_nobody():
    whole = bytes(about(segment()))
    for length in range(len(whole)):
        assert known().input(whole[:length])[0] < 0
    for length in range(len(whole) - 42):  # whole frames around less and less
        h = known()
        code = h.input(about(segment(), quoted=length))[0]
        assert code == (lib.XDS_INPUT_ERROR if length >= 28 else lib.XDS_EFOREIGN), length


def test_what_becomes_of_datagrams_is_counted():
    h = known()
    frame = h.udp(b"hello?", FAR, 4000, 5000)[1]
    errors = [(3, 3), (3, 2), (3, 1), (11, 0), (12, 0), (5, 1)]
    for kind, code in errors:
        assert h.input(about(frame[IP], kind, code))[0] == lib.XDS_INPUT_ERROR
    assert (h.stats.udp_refused, h.stats.udp_unreachable) == (2, 3)
    stranger = IP(src=ME, dst=FAR) / UDP(sport=4001, dport=5000) / b"hello?"
    assert h.input(about(stranger))[0] == lib.XDS_EFOREIGN, "nothing went there"
    assert (h.stats.udp_refused, h.reasons()) == (2, {"icmp_error": len(errors), "icmp_stray": 1})


# ---- path MTU --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "total", "mtu"),
    [
        (1280, 1500, 1280),
        (0, 1500, 1492),  # RFC 1191 7: a router that does not say
        (0, 1492, 1006),
        (0, 4352, 2002),
        (0, 65535, 32000),
        (0, 552, 508),
        (1500, 1500, 1492),  # no larger than what did not pass
        (67, 1500, 1492),
        (68, 1500, 68),
        (0, 68, 68),
    ],
)
def test_a_router_says_how_large_or_the_plateaus_do(said, total, mtu):
    h = known(mtu=65535)
    packet = bytearray(bytes(segment(size=28)))
    packet[2:4] = total.to_bytes(2, "big")
    assert h.input(about(bytes(packet), 3, 4, nexthopmtu=said))[0] == lib.XDS_INPUT_ERROR
    assert error(h)["mtu"] == mtu
    assert path(h) == 65535, "who owns the flow has not vouched for it"


def test_datagrams_are_refused_where_the_path_takes_less():
    h = known()
    code, frame = h.udp(b"x" * 1472, FAR)
    assert code == 1514
    assert h.input(about(frame[IP], 3, 4, nexthopmtu=1280))[0] == lib.XDS_INPUT_ERROR
    assert path(h) == 1280
    assert h.stats.path_learned == 1
    for _ in range(3):  # at first, and along the way that is kept
        assert h.udp(b"x" * 1253, FAR)[0] == lib.XDS_ECAPACITY
        assert verified(h.udp(b"x" * 1252, FAR)[1])[IP].flags == "DF"
    assert h.stats.path_too_large == 3
    assert h.udp(b"x" * 1472, THEM)[0] == 1514, "others are as before"
    for copied in (True, False):
        assert h.ip(b"x" * 1261, FAR, copied=copied)[0] == lib.XDS_ECAPACITY or not copied
        assert h.ip(b"x" * 1260, FAR, copied=copied)[0] == 1294
    assert h.ip(b"x" * 1480, FAR, now=10 * MINUTE)[0] == 1514, "a larger one is tried again"
    assert (h.stats.path_forgotten, path(h, now=10 * MINUTE)) == (1, 1500)


def test_the_way_that_is_kept_is_forgotten_with_the_path():
    h = known(path_ns=SECOND)
    assert learn(h, 1280) == 1
    assert h.udp(b"x" * 1252, FAR)[0] == 1294
    assert h.udp(b"x" * 1472, FAR, now=SECOND - 1)[0] == lib.XDS_ECAPACITY
    assert h.udp(b"x" * 1472, FAR, now=SECOND)[0] == 1514


def test_a_path_only_shrinks_and_never_below_the_least():
    h = known()
    assert [learn(h, mtu, now=1) for mtu in (1500, 9000, 1400, 1400, 1499, 1280, 552)] == [
        0,
        0,
        1,
        0,
        0,
        1,
        1,
    ]
    assert verified(h.udp(b"x", FAR)[1])[IP].flags == "DF"
    assert [learn(h, mtu, now=2) for mtu in (551, 551, 68, 552)] == [1, 0, 0, 0]
    assert path(h, now=3) == 552
    assert h.stats.path_learned == 4


def test_where_even_the_least_does_not_pass_routers_may_cut():
    h = known()
    assert learn(h, 400) == 1
    seen = set()
    for _ in range(4):
        frames = [h.udp(b"x" * 524, FAR)[1], h.ip(b"y" * 532, FAR)[1], h.ip(b"z" * 532, FAR, copied=False)[1]]
        for frame in frames:
            assert verified(frame)[IP].flags == 0
            assert len(frame) == 566
            seen.add(frame[IP].id)
    assert len(seen) == 12, "fragments of two are never mixed up"
    assert h.udp(b"x", THEM)[1][IP].flags == "DF"


def test_a_link_that_is_smaller_than_the_least_is_no_trap():
    h = known(mtu=300)
    assert path(h) == 300
    assert learn(h, 400) == 0
    assert learn(h, 200) == 1
    assert path(h) == 300
    assert h.udp(b"x" * 272, FAR)[1][IP].flags == 0


def test_what_waits_for_its_neighbour_keeps_to_the_path_too():
    h = Host()
    assert learn(h, 1280, dst=THEM) == 1
    assert h.udp(b"x" * 1253, THEM)[0] == lib.XDS_ECAPACITY
    assert h.udp(b"x" * 1252, THEM)[0] == 0


def test_another_family_has_no_path_here():
    h = known()
    assert lib.xds_host_path_mtu(h.h, bytes(16), 0) == lib.XDS_EFOREIGN
    assert lib.xds_host_path_learn(h.h, bytes(15) + b"\1", 1280, 0) == 0
    assert lib.xds_host_path_learn(h.h, mapped(FAR), 0, 0) == 0


@pytest.mark.parametrize(
    "bad", [{"paths": 65537}, {"path_least": 67}, {"path_least": 65536}, {"path_ns": -1}]
)
def test_bounds_of_the_configuration(bad):
    cfg = ffi.new("struct xds_host_config *", bad)
    assert lib.xds_host_size(cfg) == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from([0, 68, 400, 551, 552, 1000, 1280, 1499, 1500, 2000]),
            st.integers(0, 40),
        ),
        max_size=60,
    )
)
def test_the_table_is_as_a_plain_model_says(steps):
    """Each step: somebody learns an MTU, some time later. Four places for six destinations."""
    h = known(paths=4, path_ns=100)
    model: dict[int, tuple[int, int, bool]] = {}  # destination: (until, mtu, cut)
    now = evicted = learned = 0
    for who, said, later in steps:
        now += later
        dst = f"192.0.2.{who + 1}"
        cut, mtu = said < 552, max(said, 552)
        there = model.get(who)
        if there and there[0] <= now:
            del model[who]
            there = None
        lowers = (
            bool(said)
            and mtu < 1500
            and (not there or mtu < there[1] or (mtu == there[1] and cut > there[2]))
        )
        assert learn(h, said, dst, now) == lowers
        if lowers:
            learned += 1
            if there is None and len(model) == 4:
                evicted += 1
                del model[min(model, key=lambda k: model[k][0])]
            model[who] = (now + 100, mtu, cut)
        if len({until for until, _, _ in model.values()}) < len(model):
            return  # which of two that are as old goes is nobody's business
        for other in range(6):
            found = model.get(other)
            if found and found[0] <= now:
                del model[other]
                found = None
            assert path(h, f"192.0.2.{other + 1}", now) == (found[1] if found else 1500)
    assert (h.stats.path_learned, h.stats.path_evicted) == (learned, evicted)
