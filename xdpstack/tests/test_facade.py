"""Sockets over a stack (``cffi_build/xds/xds_sock.h``): the kernel's answers, call by call, and ours."""

from __future__ import annotations

import errno
import select
import signal
import socket
import struct

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.tests.facade_driver import FLAVOURS, FOUR, LOCAL, MACS, SIX, Facade, Kernel
from xdpstack.tests.facade_filters import (
    BLOCK,
    EXCLUDE,
    FILTER,
    FILTERS,
    FILTERS6,
    INCLUDE,
    Family,
    what_blocked_senders_reach,
)
from xdpstack.tests.facade_messages import MESSAGES, MESSAGES4, MESSAGES6, number
from xdpstack.tests.facade_scripts import DGRAM, JOIN, LINKED, SCRIPTS, STREAM
from xdpstack.tests.facade_scripts6 import SCRIPTS6
from xdpstack.tests.host6_driver import S


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
            s.bind(("::1", 0))
    except OSError:
        return False
    return True


HAS_IPV6 = has_ipv6()


@pytest.fixture(autouse=True, scope="module")
def no_signal():
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGPIPE, before)


def difference(a, b):
    """The first place where two logs part, with what led there."""
    for i, (mine, theirs) in enumerate(zip(a, b, strict=False)):
        if mine != theirs:
            return f"after {a[max(0, i - 4) : i]}: facade {mine}, kernel {theirs}"
    return "" if len(a) == len(b) else f"{len(a)} calls and {len(b)}"


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("script", [*SCRIPTS, *MESSAGES], ids=lambda script: script.__name__)
def test_calls_give_what_a_kernel_socket_gives(script, flavour):
    if flavour != "v4" and not HAS_IPV6:
        pytest.skip("this host has no ::1")
    assert_alike(script, FLAVOURS[flavour])


@pytest.mark.skipif(not HAS_IPV6, reason="this host has no ::1")
@pytest.mark.parametrize("script", [*SCRIPTS6, *FILTERS6, *MESSAGES6], ids=lambda script: script.__name__)
def test_sockets_of_ipv6_give_what_a_kernel_socket_gives(script):
    assert_alike(script, FLAVOURS["v6"])


@pytest.mark.parametrize("script", [*FILTERS, *MESSAGES4], ids=lambda script: script.__name__)
def test_sockets_of_ipv4_give_what_a_kernel_socket_gives(script):
    assert_alike(script, FLAVOURS["v4"])


def assert_alike(script, flavour):
    logs = []
    for make in (Facade, Kernel):
        e = make(flavour)
        try:
            script(e)
        finally:
            e.close_all()
        logs.append(e.log)
    assert not (said := difference(*logs)), said


def test_a_name_of_ipv6_is_refused_by_a_socket_of_ipv4():
    e = Facade()
    h = e.make("c", DGRAM)
    name = struct.pack("=H", socket.AF_INET6) + bytes(26)
    assert e.raw("sendto", "c", h.fd, b"x", 1, 0, name, 28) == -errno.EAFNOSUPPORT


@pytest.mark.parametrize("kind", [STREAM, DGRAM])
def test_link_local_names_carry_the_link_and_are_told_with_it(kind):
    e = Facade(SIX, scope=7)
    h, c = e.make("s", kind), e.make("c", kind)
    assert e.bind(h, e.at(LOCAL["s"], 5000, 0, 8)) == -errno.ENODEV
    assert e.connect(c, e.at(LOCAL["s"], 5000, 0, 8)) == -errno.ENETUNREACH
    assert e.bind(h, e.at(LOCAL["s"], 5000, 0, 7)) == 0
    assert e.name(h) == e.at(LOCAL["s"], 5000, 0, 7)
    if kind == STREAM:
        e.listen(h)
    e.connect(c, e.at(LOCAL["s"], 5000, 0, 7))
    assert e.name(c, "getpeername") == e.at(LOCAL["s"], 5000, 0, 7)
    mine = e.name(c)
    assert mine[8:] == e.at(LOCAL["c"], 0, 0, 7)[8:]
    s = e.accept(h) if kind == STREAM else h
    assert e.write(c, b"here") == 4
    assert (e.read(s) == b"here") if kind == STREAM else (e.recvfrom(s) == mine)
    assert e.connect(c, bytes(28)) == 0
    assert e.connect(c, e.at(LOCAL["s"], 5000)) == (-errno.EINPROGRESS if kind == STREAM else 0), "told once"


def test_a_datagram_over_ipv6_is_no_longer_than_the_path():
    e = Facade(SIX)
    a = e.make("c", DGRAM)
    assert e.sendto(a, bytes(1453), e.at("s", 9)) == -errno.EMSGSIZE
    assert e.sendto(a, bytes(1452), e.at("s", 9)) == 1452
    assert e.stats("s")["datagrams_nobody"] == 1
    e.connect(a, e.at("s", 9))
    sport = struct.unpack(">H", e.name(a)[2:4])[0]
    e.lossless = False
    e.write(a, bytes(1400))
    e.carry(drop=True)
    ours = S.IPv6(src=SIX.facade["c"], dst=SIX.facade["s"]) / S.UDP(sport=sport, dport=9) / bytes(1400)
    told = (
        S.IPv6(src=SIX.facade["s"], dst=SIX.facade["c"]) / S.ICMPv6PacketTooBig(mtu=1300) / bytes(ours)[:900]
    )
    data = bytes(S.Ether(src=MACS["s"], dst=MACS["c"]) / told)
    keep = ffi.new("uint8_t[]", data)
    frame = ffi.new("struct xds_frame *", {"data": keep, "len": len(data)})
    lib.xds_socks_frame(e.socks["c"], frame, e.now)
    assert e.poll(a) & select.POLLERR
    assert e.write(a, b"told") == -errno.EMSGSIZE
    assert e.sendto(a, bytes(1253), e.at("s", 9)) == -errno.EMSGSIZE
    assert e.sendto(a, bytes(1252), e.at("s", 9)) == 1252


def test_connecting_goes_on_until_the_peer_answers_and_ends_where_nobody_does():
    e = Facade(lossless=False)
    h, name = e.listener()
    c = e.make("c")
    assert e.connect(c, name) == -errno.EINPROGRESS
    e.carry(drop=True)
    assert e.connect(c, name) == -errno.EALREADY
    assert (e.poll(c), e.write(c, b"x"), e.read(c)) == (0, -errno.EAGAIN, None)
    e.later(2)  # the SYN goes again
    e.carry()
    assert e.connect(c, name) == 0
    assert e.connect(c, name) == -errno.EISCONN
    assert e.accept(h).fd >= 0
    gone = e.make("c")
    assert e.connect(gone, name) == -errno.EINPROGRESS
    while not e.poll(gone) & select.POLLERR:
        e.later(1)
        e.carry(drop=True)
    assert e.connect(gone, name) == -errno.ETIMEDOUT


def test_a_neighbour_that_never_answers_is_a_host_that_cannot_be_reached():
    e = Facade(lossless=False)
    c, d = e.make("c"), e.make("c", DGRAM)
    assert e.connect(c, e.at("10.0.0.77", 9)) == -errno.EINPROGRESS
    assert e.sendto(d, b"x", e.at("10.0.0.77", 9)) == 1
    while not e.poll(c) & select.POLLERR:
        e.later(1)
        e.carry(drop=True)
    assert e.connect(c, e.at("10.0.0.77", 9)) == -errno.EHOSTUNREACH


def test_where_no_route_leads_is_told_at_once():
    e = Facade()
    for where in ("192.0.2.9", "10.0.0.1", "0.0.0.0"):  # no gateway; our own; nobody's
        assert e.connect(e.make("c"), e.at(where, 9)) == -errno.ENETUNREACH
        d = e.make("c", DGRAM)
        assert e.sendto(d, b"x", e.at(where, 9)) == -errno.ENETUNREACH
        assert e.connect(d, e.at(where, 9)) == -errno.ENETUNREACH
        e.close(d)


def test_descriptors_end_and_are_used_again_the_lowest_first():
    e = Facade(sockets=3, datagram=1)
    a, b = e.make("c"), e.make("c", DGRAM)
    assert (a.fd, b.fd, e.make("c", DGRAM).fd) == (0, 1, -errno.ENOBUFS)
    assert e.make("c").fd == 2
    assert e.make("c").fd == -errno.EMFILE
    assert e.close(a) == 0
    assert e.close(a) == -errno.EBADF
    assert e.make("c").fd == 0


def test_accept_without_a_free_descriptor_leaves_the_connection_in_the_queue():
    e = Facade(sockets=1, datagram=1)
    h, name = e.listener()
    c = e.make("c")
    e.connect(c, name)
    assert e.raw("accept", "s", h.fd, bytearray(16), bytearray(struct.pack("=I", 16))) == -errno.EMFILE
    assert e.poll(h) & select.POLLIN
    e.close(h)
    assert e.poll(c) & select.POLLERR


def test_a_datagram_is_dropped_and_counted_where_the_buffer_is_full():
    e = Facade(receive_bytes=400)
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b)
    name = e.name(b)
    for _ in range(9):
        e.sendto(a, bytes(100), name)
    stats = e.stats("s")
    assert stats["datagrams"] + stats["datagrams_full"] == 9
    assert stats["datagrams"] == 2  # 56 bytes go before each
    got = 0
    while e.read(b) is not None:
        got += 1
    assert got == 2


def test_datagrams_wait_for_output_in_a_bound_and_are_no_longer_than_the_path():
    e = Facade(lossless=False, send_bytes=1000)
    a = e.make("c", DGRAM)
    name = e.at("s", 9)
    assert e.sendto(a, bytes(1473), name) == -errno.EMSGSIZE
    assert e.sendto(a, bytes(980), name) == -errno.EMSGSIZE  # more than waits
    assert e.sendto(a, bytes(900), name) == 900
    assert not e.poll(a) & select.POLLOUT
    assert e.sendto(a, bytes(900), name) == -errno.EAGAIN
    e.carry()
    assert e.poll(a) & select.POLLOUT
    assert e.stats("s")["datagrams_nobody"] == 1
    assert e.stats("c")["sent"] == 1


def test_a_full_connection_is_not_writable_until_a_third_is_free():
    e = Facade()
    c, s, _ = e.pair()
    e.fill(c)
    assert not e.poll(c) & select.POLLOUT
    e.take(s, 65536)
    assert e.poll(c) & select.POLLOUT


def test_bytes_arrive_in_order_through_a_small_buffer():
    e = Facade(stack={"send_bytes": 256, "receive_bytes": 256})
    c, s, _ = e.pair()
    data, got = bytes(i * 7 & 255 for i in range(5000)), b""
    sent = 0
    while len(got) < len(data):
        if sent < len(data):
            sent += max(0, int(e.write(c, data[sent : sent + 300])))
        e.later(0.3)  # silly windows are waited out
        got += e.read(s, 200) or b""
    assert got == data


def test_an_option_that_only_a_new_connection_takes_says_so():
    e = Facade()
    c, _, _ = e.pair()
    assert e.set(c, socket.IPPROTO_TCP, socket.TCP_MAXSEG, 500) == -errno.EISCONN
    assert e.set(c, socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno") == -errno.EISCONN
    assert e.set(c, socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic") == 0
    assert e.set(c, socket.SOL_SOCKET, socket.SO_MARK, 9) == -errno.ENOPROTOOPT
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        held = e.get(c, socket.SOL_SOCKET, option)
        assert e.set(c, socket.SOL_SOCKET, option, 9) == 0
        assert e.get(c, socket.SOL_SOCKET, option) == held


def test_a_mark_of_dscp_is_on_the_wire_and_a_listener_hands_its_settings_on():
    e = Facade()
    h, name = e.listener()
    e.set(h, socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
    c = e.make("c")
    e.connect(c, name)
    s = e.accept(h)
    e.lossless = False
    e.write(s, b"marked")
    f = ffi.new("struct xds_frame *", {"data": e._room, "len": 2048})
    length = lib.xds_socks_output(e.socks["s"], f, e.now)
    assert length > 54
    assert e._room[15] == 0xB8


def wire(e, side, other):
    """The next frame of a side, seen by scapy and carried."""
    f = ffi.new("struct xds_frame *", {"data": e._room, "len": 2048})
    assert lib.xds_socks_output(e.socks[side], f, e.now) > 0
    frame = S.Ether(bytes(ffi.buffer(e._room, f.len)))
    lib.xds_socks_frame(e.socks[other], f, e.now)
    return frame


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_marks_and_hops_of_datagrams_are_on_the_wire(flavour):
    e = Facade(FLAVOURS[flavour], lossless=False)
    six = flavour == "v6"
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    mark, hops = (socket.IPV6_TCLASS, socket.IPV6_UNICAST_HOPS) if six else (socket.IP_TOS, socket.IP_TTL)
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b)
    there = e.name(b)
    e.sendto(a, b"plain", there)
    e.set(a, level, mark, 0xBB)
    e.set(a, level, hops, 7)
    e.sendto(a, b"marked", there)
    e.set(a, level, mark, 0)
    e.set(a, level, hops, -1)
    e.sendto(a, b"as before", there)
    layer, of_mark, of_hops = (S.IPv6, "tc", "hlim") if six else (S.IP4, "tos", "ttl")
    seen = [wire(e, "c", "s")[layer] for _ in range(3)]
    assert [(getattr(p, of_mark), getattr(p, of_hops)) for p in seen] == [(0, 64), (0xBB, 7), (0, 64)]
    for packet, data in zip(seen, (b"plain", b"marked", b"as before"), strict=True):
        assert e.read(b) == data, "its checksums are right"
        assert packet.payload.dport == struct.unpack(">H", there[2:4])[0]


@pytest.mark.parametrize("flavour", ["v4", "v6"])
def test_what_is_said_beside_a_datagram_is_on_the_wire_of_that_one_alone(flavour):
    e = Facade(FLAVOURS[flavour], lossless=False)
    six = flavour == "v6"
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    mark, hops = (socket.IPV6_TCLASS, socket.IPV6_HOPLIMIT) if six else (socket.IP_TOS, socket.IP_TTL)
    layer, of_mark, of_hops = (S.IPv6, "tc", "hlim") if six else (S.IP4, "tos", "ttl")
    family = socket.AF_INET6 if six else socket.AF_INET
    second = "fd00::77" if six else "10.0.0.77"
    raw = socket.inet_pton(family, second)
    own = ffi.new("uint8_t[16]", raw if six else bytes(10) + b"\xff\xff" + raw)
    assert lib.xds_host_add_address6(e.hosts["c"].core, own, 64 if six else 24) == 0
    info = (level, 50, raw + bytes(4)) if six else (level, 8, bytes(4) + raw + bytes(4))
    a = e.make("c", DGRAM)
    words = [(level, mark, number(0xB8)), (level, hops, number(7)), info]
    said = [(words, (second, 0xB8, 7)), ((), (e.addresses["c"], 0, 64))]
    if six:  # RFC 3542 6: the socket's; Linux 6.18 takes the mark's -1 for 255
        said.append(([(level, mark, number(-1)), (level, hops, number(-1))], (e.addresses["c"], 0, 64)))
    for control, want in said:
        assert e.sendmsg(a, (b"sa", b"id"), e.at("s", 9), control) == 4
        packet = wire(e, "c", "s")[layer]
        assert (packet.src, getattr(packet, of_mark), getattr(packet, of_hops)) == want
        assert bytes(packet.payload.payload) == b"said"


@pytest.mark.parametrize(
    ("options", "fields", "values"),
    [
        ((socket.IPV6_TCLASS, socket.IP_TOS), ("tc", "tos"), (0xB8, 0x20)),
        ((socket.IPV6_UNICAST_HOPS, socket.IP_TTL), ("hlim", "ttl"), (9, 8)),
    ],
    ids=["mark", "hop limit"],
)
def test_what_a_tcp_listener_of_both_families_sets_is_each_familys(options, fields, values):
    e = Facade(SIX)
    h = e.make("s")
    e.bind(h, e.at("::"))
    port = struct.unpack(">H", e.name(h)[2:4])[0]
    e.listen(h)
    levels = (socket.IPPROTO_IPV6, socket.IPPROTO_IP)
    for level, option, value in zip(levels, options, values, strict=True):
        e.set(h, level, option, value)
    for flavour, layer, field, wanted in zip((SIX, FOUR), (S.IPv6, S.IP4), fields, values, strict=True):
        with e.speaking(flavour):
            c = e.make("c")
            e.connect(c, e.at("s", port))
        s = e.accept(h)
        e.lossless = False
        e.write(s, b"marked")
        assert getattr(wire(e, "s", "c")[layer], field) == wanted
        e.lossless = True


@pytest.mark.parametrize("flavour", ["v4", "v6", "mapped"])
def test_a_groups_datagrams_come_to_its_members_and_to_nobody_once_they_have_left(flavour):
    e = Facade(FLAVOURS[flavour])
    group = "239.1.1.1" if flavour != "v6" else "ff15::7"
    where = f"::ffff:{group}" if flavour == "mapped" else group
    six = flavour == "v6"
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    into, out = (
        (socket.IPV6_JOIN_GROUP, socket.IPV6_LEAVE_GROUP)
        if six
        else (socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP)
    )
    raw = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, group)
    member = raw + (struct.pack("=I", 1) if six else bytes(4))
    a, b, c = e.make("c", DGRAM), e.make("s", DGRAM), e.make("s", DGRAM)
    for one in (b, c):
        e.set(one, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        e.bind(one, e.at(e.flavour.any.removeprefix("::ffff:") if flavour == "v4" else "::", 7000))
    assert e.sendto(a, b"nobody", e.at(where, 7000)) == 6
    assert e.read(b) is None
    assert e.set(b, level, into, member) == 0
    assert e.set(c, level, into, member) == 0
    e.sendto(a, b"both", e.at(where, 7000))
    assert (e.read(b), e.read(c)) == (b"both", b"both")
    assert e.close(b) == 0
    e.sendto(a, b"one", e.at(where, 7000))
    assert e.read(c) == b"one"
    assert e.set(c, level, out, member) == 0
    e.sendto(a, b"none", e.at(where, 7000))
    assert e.read(c) is None
    address = ffi.new("uint8_t[16]", raw if six else bytes(10) + b"\xff\xff" + raw)
    assert lib.xds_host_leave6(e.hosts["s"].core, address) == lib.XDS_ESTATE, "the host has left it"


def test_a_group_that_the_host_was_in_before_stays_when_sockets_leave():
    e = Facade(SIX)
    group = socket.inet_pton(socket.AF_INET6, "ff15::7")
    assert lib.xds_host_join6(e.hosts["s"].core, group) == 0
    h = e.make("s", DGRAM)
    assert e.set(h, socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + bytes(4)) == 0
    e.close(h)
    assert lib.xds_host_leave6(e.hosts["s"].core, group) == 0


def test_more_groups_than_a_socket_may_be_in_are_refused():
    e = Facade(SIX)
    h = e.make("s", DGRAM)
    for n in range(10):
        assert e.set(h, socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, bytes([239, 1, 1, n]) + bytes(4)) == 0
    for n in range(11):
        group = b"\xff\x15" + bytes(13) + bytes([n]) + bytes(4)
        code = e.set(h, socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        assert code == (0 if n < 10 else -errno.ENOBUFS)


def test_peeking_reads_round_the_end_of_the_buffer():
    e = Facade(stack={"send_bytes": 256, "receive_bytes": 256})
    c, s, _ = e.pair()
    e.write(c, bytes(200))
    e.later(1)
    assert e.read(s, 200) == bytes(200)
    e.later(1)
    data = bytes(range(1, 151))
    sent = 0
    while sent < len(data):
        sent += max(0, int(e.write(c, data[sent:])))
        e.later(1)
    for most in (10, 56, 57, 150, 200):
        room = bytearray(most)
        got = e.raw("recvfrom", "s", s.fd, room, most, socket.MSG_PEEK, b"", bytearray(4))
        assert bytes(room[:got]) == data[:most]
    assert e.read(s) == data


@pytest.mark.parametrize("flavour", ["v4", "v6"])
def test_hop_limits_of_tcp_are_on_the_wire(flavour):
    e = Facade(FLAVOURS[flavour], lossless=False)
    six = flavour == "v6"
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    option = socket.IPV6_UNICAST_HOPS if six else socket.IP_TTL
    layer, field = (S.IPv6, "hlim") if six else (S.IP4, "ttl")

    def hops(side):
        return getattr(wire(e, side, "cs"[side == "c"])[layer], field)

    h, name = e.listener()
    e.set(h, level, option, 9)
    c = e.make("c")
    e.set(c, level, option, 7)
    e.connect(c, name)
    assert [hops("c"), hops("s"), hops("c")] == [7, 9, 7], "of the SYN, of what answers it, and its ACK"
    s = e.accept(h)
    e.set(s, level, option, -1)
    for side, one, want in (("c", c, 7), ("c", c, 7), ("s", s, 64)):
        e.write(one, b"data")
        assert hops(side) == want
        e.carry()
    e.set(c, level, option, 200)
    for _ in range(2):
        e.write(c, b"data")
        assert hops("c") == 200
        e.carry()


@pytest.mark.parametrize("flavour", ["v4", "v6"])
def test_the_host_is_a_member_of_what_its_sockets_want_and_of_no_more(flavour):
    """Three sockets, one group: two lists, and anybody."""
    e = Facade(FLAVOURS[flavour])
    text, sources = ("239.1.1.1", "10.7.7.") if flavour == "v4" else ("ff35::7", "2001:db8:7::")
    family = socket.AF_INET if flavour == "v4" else socket.AF_INET6
    raw = socket.inet_pton(family, text)
    group = raw if flavour == "v6" else bytes(10) + b"\xff\xff" + raw
    host = e.hosts["s"].core

    def source(n):
        one = socket.inet_pton(family, f"{sources}{n}")
        return one if flavour == "v6" else bytes(10) + b"\xff\xff" + one

    def request(*ends):
        form = "=HH4s120x" if flavour == "v4" else "=HH4x16s104x"
        return bytes(8) + b"".join(
            struct.pack(form, family, 0, end[-16 if flavour == "v6" else -4 :]) for end in ends
        )

    level = socket.IPPROTO_IPV6 if flavour == "v6" else socket.IPPROTO_IP
    a, b, c = (e.make("s", DGRAM) for _ in range(3))

    def held():
        """Sources that the host has, by taking them away and giving them back."""
        found = [n for n in range(1, 10) if lib.xds_host_leave_source6(host, group, source(n)) == 0]
        for n in found:
            assert lib.xds_host_join_source6(host, group, source(n)) == 0
        return found

    for one, n in ((a, 1), (a, 2), (b, 2), (b, 3)):
        assert e.set(one, level, 46, request(group, source(n))) == 0
    assert held() == [1, 2, 3]
    assert e.set(a, level, 47, request(group, source(2))) == 0
    assert held() == [1, 2, 3], "somebody else wants it"
    assert e.set(c, level, 42, request(group)) == 0
    assert held() == [], "from anybody"
    assert e.set(b, level, 47, request(group, source(2))) == 0
    assert e.close(c) == 0
    assert held() == [1, 3]
    for n in range(4, 10):
        assert e.set(a, level, 46, request(group, source(n))) == 0
    code = e.set(b, level, 46, request(group, source(2)))
    assert code == -errno.ENOBUFS, "eight a group, all together"
    assert held() == [1, 3, 4, 5, 6, 7, 8, 9]
    assert e.close(a) == 0
    assert held() == [3]
    assert e.close(b) == 0
    assert lib.xds_host_leave6(host, group) == lib.XDS_ESTATE


@pytest.mark.parametrize("flavour", ["v4", "v6"])
@pytest.mark.parametrize("script", LINKED, ids=lambda script: script.__name__)
def test_what_the_scripts_for_a_link_say_is_what_they_mean(script, flavour):
    """Beside Linux they are played by ``netns_tests/test_facade_linux.py``."""
    e = Facade(FLAVOURS[flavour])
    script(e)
    assert [what for _, kind, what in e.log if kind == "read"] == [
        b"to all 1", b"mark", b"mark", b"to all 1", b"mark", b"to all 1", b"mark to us",
        b"to all 0", b"mark", b"mark", b"to all 0", b"mark", b"mark to us",
    ]  # fmt: skip


@pytest.mark.parametrize("flavour", ["v4", "v6"])
def test_what_blocked_senders_reach_is_what_the_script_means(flavour):
    e = Facade(FLAVOURS[flavour])
    what_blocked_senders_reach(e)
    assert [what for _, kind, what in e.log if kind == "read"] == [
        b"mark",
        b"to members", b"to members, too", b"mark",
        b"to members", b"to members, too", b"mark",
        b"to members, too", b"mark",
        b"to members", b"to members, too", b"mark",
        b"to members, too", b"mark",
    ]  # fmt: skip


def test_no_list_is_longer_than_eight_and_no_socket_takes_groups_that_are_not_left():
    e = Facade(datagram=1)
    f, h = Family(False), e.make("s", DGRAM)
    assert e.set(h, f.level, JOIN, f.request(f.group())) == 0
    assert e.set(h, f.level, FILTER, f.filter(EXCLUDE, *map(f.source, range(1, 9)))) == 0
    assert e.set(h, f.level, BLOCK, f.request(f.group(), f.source(9))) == -errno.ENOBUFS
    assert e.set(h, f.level, FILTER, f.filter(EXCLUDE, *map(f.source, range(1, 10)))) == -errno.ENOBUFS
    many = [e.make("s") for _ in range(2)]
    taken = [e.set(many[i & 1], f.level, JOIN, f.request(f.group(2 + i // 2))) for i in range(20)]
    assert taken == [0] * 19 + [-errno.ENOBUFS], "twenty: one of them UDP's"
    for one in many:
        e.close(one)
    again = e.make("s")
    taken = [e.set((h, again)[i & 1], f.level, JOIN, f.request(f.group(2 + i // 2))) for i in range(20)]
    assert taken == [0] * 19 + [-errno.ENOBUFS]


@pytest.mark.parametrize("six", [False, True])
def test_what_is_blocked_is_not_said_to_the_host_and_what_is_wanted_alone_is(six):
    e = Facade(SIX)
    f, h = Family(six), e.make("s", DGRAM)
    host = e.hosts["s"].core

    def raw(end):
        return ffi.new("uint8_t[16]", end if six else bytes(10) + b"\xff\xff" + end)

    assert e.set(h, f.level, JOIN, f.request(f.group())) == 0
    assert e.set(h, f.level, FILTER, f.filter(EXCLUDE, f.source(1))) == 0
    assert lib.xds_host_leave_source6(host, raw(f.group()), raw(f.source(1))) == lib.XDS_ESTATE
    assert e.set(h, f.level, FILTER, f.filter(INCLUDE, f.source(1), f.source(2))) == 0
    for n in (1, 2):
        assert lib.xds_host_leave_source6(host, raw(f.group()), raw(f.source(n))) == 0
    assert e.set(h, f.level, FILTER, f.filter(EXCLUDE)) == 0
    assert lib.xds_host_leave6(host, raw(f.group())) == 0


def test_tcp_info_tells_the_path():
    e = Facade()
    c, _, _ = e.pair()
    e.write(c, bytes(10_000))
    e.later(1)
    room, length = bytearray(256), bytearray(struct.pack("=I", 256))
    assert e.raw("getsockopt", "c", c.fd, socket.IPPROTO_TCP, socket.TCP_INFO, room, length) == 0
    size = struct.unpack("=I", length)[0]
    words = struct.unpack_from("=24I", room, 8)
    assert size >= 104
    assert words[2] == 1448  # tcpi_snd_mss
    assert words[4] == 0  # tcpi_unacked
    assert words[13] == 1500  # tcpi_pmtu
    assert words[18] >= 10  # tcpi_snd_cwnd


def test_flags_that_would_change_what_a_call_does_are_refused():
    e = Facade()
    c, s, _ = e.pair()
    assert e.raw("sendto", "c", c.fd, b"x", 1, socket.MSG_OOB, b"", 0) == -errno.EOPNOTSUPP
    assert e.raw("sendto", "c", c.fd, b"x", 1, socket.MSG_DONTWAIT, b"", 0) == 1
    for flags in (socket.MSG_FASTOPEN, socket.MSG_DONTROUTE):
        assert e.sendmsg(c, (b"x",), flags=flags) == -errno.EOPNOTSUPP
    d = e.make("c", DGRAM)
    assert e.sendmsg(d, (b"x",), e.at("s", 9), flags=socket.MSG_MORE) == -errno.EOPNOTSUPP
    assert e.sendmsg(c, (b"y",), flags=socket.MSG_MORE) == 1, "bytes of a stream need not wait"
    assert e.read(s) == b"xy"


def test_everything_that_was_opened_is_gone_at_the_end():
    e = Facade()
    for _ in range(3):
        c, s, h = e.pair()
        e.write(c, b"x")
        assert e.read(s) == b"x"
        for one in (c, s, h):
            e.close(one)
    e.later(200)
    for side in "cs":
        assert e.stacks[side].stats()["connections"] == 0
        assert lib.xds_socks_deadline(e.socks[side]) == lib.XDS_NEVER


@pytest.mark.parametrize(
    "config", [{"sockets": 131_073}, {"sockets": 2, "datagram": 3}, {"send_bytes": 8}, {"receive_bytes": 8}]
)
def test_a_configuration_that_cannot_be_has_no_size(config):
    e = Facade()
    raw = ffi.new("struct xds_socks_config *", config)
    assert lib.xds_socks_size(raw, e.stacks["c"].core) == 0
    assert (
        lib.xds_socks_init(e.arena.alloc(64), raw, e.stacks["c"].core, e.hosts["c"].core) == lib.XDS_ECONFIG
    )
