"""cores/host: ICMPv6: echoes, errors that are sent, errors about packets of ours."""

from __future__ import annotations

import pytest

from xdpstack._ffi import lib
from xdpstack.tests.host6_driver import ALL, FAR, GROUP, ME, ROUTER, THEM, Host6, S, frame6, raw
from xdpstack.tests.host_driver import MAC, PEER, SECOND

NONE = bytes(16)


@pytest.mark.parametrize("size", [0, 1, 56, 1452])
@pytest.mark.parametrize("dst", [ME, ALL, GROUP])
def test_an_echo_is_answered_as_scapy_would(size, dst):
    h = Host6()
    ping = frame6(S.ICMPv6EchoRequest(id=7, seq=9, data=b"x" * size), dst=dst, tc=0xB9)
    assert h.reason(ping) == "icmp_echo"
    (pong,) = h.output()
    ip = S.IPv6(src=ME, dst=THEM, hlim=64, tc=0xB9)
    want = S.Ether(src=MAC, dst=PEER) / ip / S.ICMPv6EchoReply(id=7, seq=9, data=b"x" * size)
    assert bytes(pong) == bytes(want)
    assert h.stats.echo_answered == 1


def test_echoes_that_are_not_answered():
    ping = S.ICMPv6EchoRequest(data=b"x" * 8)
    assert Host6(flags=lib.XDS_HOST_NO_ECHO).reason(frame6(ping)) == "icmp_other"
    h = Host6()
    assert h.reason(frame6(ping, src="::")) == "icmp_other"
    assert h.reason(frame6(S.ICMPv6EchoRequest(cksum=1))) == "icmp_bad"
    assert h.reason(frame6(S.Raw(b"\x80\0\0"), nh=58)) == "icmp_bad"
    assert h.reason(frame6(S.ICMPv6EchoReply())) == "icmp_other"
    assert h.reason(frame6(S.ICMPv6EchoRequest(code=1))) == "icmp_other"
    lib.xds_host_claim6(h.h, raw(ME), SECOND, 0)
    assert h.reason(frame6(ping)) == "icmp_other", "it is not ours yet"
    assert h.output() == []
    full = Host6(slots=1)
    assert [full.reason(frame6(ping)) for _ in range(2)] == ["icmp_echo", "no_room"]


# ---- errors sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1183, 1184, 1185, 1400])
def test_the_sender_of_a_datagram_that_nobody_takes_is_told(size):
    h = Host6(known=[THEM])
    frame = frame6(S.UDP(sport=1, dport=2) / (b"x" * size))
    assert h.unreachable(bytes(frame) + b"pad") == 1
    (told,) = h.output()
    error = S.IPv6(src=ME, dst=THEM, hlim=64) / S.ICMPv6DestUnreach(code=4)
    assert bytes(told) == bytes(S.Ether(src=MAC, dst=PEER) / error / S.Raw(bytes(frame)[14:][:1232]))
    assert len(told) <= 14 + 1280


@pytest.mark.parametrize(("said", "code"), [(0, 0), (1, 3), (3, 4), (9, 1), (10, 1), (13, 1)])
def test_codes_of_icmp_have_their_like(said, code):
    h = Host6(known=[THEM])
    assert h.unreachable(frame6(S.UDP() / b"x"), said) == 1
    assert h.output()[0][S.ICMPv6DestUnreach].code == code


@pytest.mark.parametrize(
    "frame",
    [
        frame6(S.UDP() / b"x", dst=GROUP),
        frame6(S.UDP() / b"x", mac="ff:ff:ff:ff:ff:ff"),
        frame6(S.UDP() / b"x", dst="2001:db8::99"),
        *(frame6(S.UDP() / b"x", src=src) for src in ("::", "::1", "ff02::1", "::ffff:10.0.0.2")),
        *(frame6(S.Raw(bytes([kind]) + b"\0" * 15), nh=58) for kind in (1, 2, 3, 4, 100, 127, 137)),
        frame6(S.IPv6ExtHdrDestOpt(), S.ICMPv6DestUnreach()),
        frame6(S.IPv6ExtHdrFragment(nh=58, m=1), S.Raw(b"\1" + b"\0" * 15)),
    ],
)
def test_nobody_is_told_of_what_nobody_may_be_told_of(frame):
    h = Host6(known=[THEM])
    assert h.unreachable(frame) == 0
    assert h.output() == []
    assert h.unreachable(frame6(S.ICMPv6EchoRequest())) == 1


def test_a_frame_cut_anywhere_is_refused():
    whole = bytes(frame6(S.UDP() / b"xyz"))
    for cut in range(len(whole)):
        assert Host6(known=[THEM]).unreachable(whole[:cut]) == lib.XDS_ECONFIG, cut
    assert Host6().unreachable(whole, 2) == lib.XDS_ECONFIG, "no code says that"


def test_errors_are_bounded_together_with_those_of_ipv4():
    h = Host6(known=[THEM], error_burst=3, error_ns=SECOND, slots=64)
    told = [h.unreachable(frame6(S.UDP() / b"x"), now=n * SECOND // 10) for n in range(100)]
    assert sum(told) == 3 + 9
    assert (h.stats.icmp_told, h.stats.icmp_limited) == (12, 88)


# ---- errors taken --------------------------------------------------------------------------------


def about(kind, inner, src=ROUTER, dst=ME):
    return frame6(kind, S.Raw(bytes(inner)), src=src, dst=dst)


def inner(proto=None, src=ME, dst=FAR, **fields):
    return S.IPv6(src=src, dst=dst, **fields) / (proto or S.TCP(sport=7, dport=9, seq=0x01020304))


@pytest.mark.parametrize(
    "kind",
    [
        *(S.ICMPv6DestUnreach(code=code) for code in range(7)),
        S.ICMPv6TimeExceeded(),
        S.ICMPv6TimeExceeded(code=1),
        S.ICMPv6ParamProblem(code=1, ptr=6),
    ],
)
def test_an_error_is_told_with_the_flow_inside_it(kind):
    h = Host6()
    code, e = h.take(about(kind, inner()), now=5)
    assert code == lib.XDS_INPUT_ERROR
    assert (bytes(e.src), bytes(e.dst), bytes(e.from_ if hasattr(e, "from_") else getattr(e, "from"))) == (
        raw(ME), raw(FAR), raw(ROUTER),
    )  # fmt: skip
    assert (e.sport, e.dport, e.seq, e.protocol, e.mtu, e.ns) == (7, 9, 0x01020304, 6, 0, 5)
    assert (e.type, e.code) == (kind.type, kind.code)


def test_a_packet_that_was_too_big_names_the_mtu():
    h = Host6()
    large = inner(S.TCP(sport=7, dport=9) / (b"x" * 1400))
    code, e = h.take(about(S.ICMPv6PacketTooBig(mtu=1400), bytes(large)[:1232]))
    assert (code, e.mtu, e.type) == (lib.XDS_INPUT_ERROR, 1400, 2)
    assert lib.xds_host_path_mtu(h.h, raw(FAR), 0) == 1500, "only its owner can vouch for it"
    for mtu in (0, 68, 1279, 1460, 2**32 - 1):
        assert h.reason(about(S.ICMPv6PacketTooBig(mtu=mtu), bytes(large)[:1232])) == "icmp_stray"


@pytest.mark.parametrize(
    "frame",
    [
        about(S.ICMPv6DestUnreach(), inner(src="2001:db8::99")),
        about(S.ICMPv6DestUnreach(), inner(), dst="2001:db8::5"),
        about(S.ICMPv6DestUnreach(), inner(dst="ff02::1")),
        about(S.ICMPv6DestUnreach(), inner(dst="::")),
        about(S.ICMPv6DestUnreach(), bytes(inner())[:47]),
        about(S.ICMPv6DestUnreach(), inner(plen=7)),
        about(S.ICMPv6DestUnreach(), inner(version=4)),
    ],
)
def test_errors_about_nothing_of_ours_are_stray(frame):
    assert Host6(addresses=(f"{ME}/64", "2001:db8::5/64")).reason(frame) == "icmp_stray"


def test_what_became_of_datagrams_is_counted_and_a_path_learned():
    h = Host6(known=[ROUTER])
    assert lib.xds_host_add_route6(h.h, NONE, 0, raw(ROUTER), NONE, 0) == 0
    udp = inner(S.UDP(sport=4000, dport=5000) / (b"x" * 1400))
    assert h.reason(about(S.ICMPv6DestUnreach(code=4), udp)) == "icmp_stray", "nothing went there"
    assert h.udp6(b"x" * 1400, FAR)[0] > 0
    assert h.reason(about(S.ICMPv6DestUnreach(code=4), udp, src=FAR)) == "icmp_error"
    assert h.reason(about(S.ICMPv6DestUnreach(code=0), udp)) == "icmp_error"
    assert (h.stats.udp_refused, h.stats.udp_unreachable) == (1, 1)
    assert h.reason(about(S.ICMPv6PacketTooBig(mtu=1300), bytes(udp)[:1232])) == "icmp_error"
    assert lib.xds_host_path_mtu(h.h, raw(FAR), 0) == 1300
    assert h.udp6(b"x" * 1253, FAR)[0] == lib.XDS_ECAPACITY
