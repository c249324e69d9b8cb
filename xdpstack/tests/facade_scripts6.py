"""Sequences of calls on AF_INET6 sockets, beside those of ``facade_scripts.py``: see ``test_facade.py``."""

from __future__ import annotations

import select
import socket
import struct

from xdpstack.tests.facade_driver import FOUR, MAPPED
from xdpstack.tests.facade_scripts import (
    DGRAM,
    IN,
    JOIN,
    JOIN_SOURCE,
    LEAVE,
    LEAVE_SOURCE,
    OUT,
    PKTINFO,
    STREAM,
)

IP6, ONLY = socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
NO_LINK = 1 << 30  # a scope that no interface has


def port_of(name):
    return struct.unpack(">H", name[2:4])[0]


def kinds_of_socket6(e):
    for kind, protocol in [
        (STREAM, socket.IPPROTO_TCP),
        (DGRAM, socket.IPPROTO_UDP),
        (STREAM, socket.IPPROTO_UDP),
        (DGRAM, socket.IPPROTO_TCP),
        (socket.SOCK_SEQPACKET, 0),
        (14, 0),
        (STREAM, -1),
        (STREAM, 3000),
    ]:
        e.make("c", kind, socket.AF_INET6, protocol)


def only_of_ipv6(e):
    for kind in (STREAM, DGRAM):
        h = e.make("s", kind)
        e.get(h, IP6, ONLY)
        e.set(h, IP6, ONLY, b"\1")
        for value in (1, 0, 7):
            e.set(h, IP6, ONLY, value)
            e.get(h, IP6, ONLY)
        e.get(h, IP6, ONLY, 2)
        e.get(h, IP6, 9999)
        e.set(h, IP6, 9999, 1)
        e.bind(h, e.at("s", 0))
        e.set(h, IP6, ONLY, 0)
        e.get(h, socket.SOL_SOCKET, socket.SO_DOMAIN)
        with e.speaking(FOUR):
            four = e.make("s", kind)
            e.set(four, IP6, ONLY, 1)
            e.get(four, IP6, ONLY)


def a_port_in_each_family(e):
    """Any address of IPv6 takes IPv4's too, unless it is told not to."""
    for kind in (STREAM, DGRAM):
        both = e.make("s", kind)
        e.bind(both, e.at("::"))
        port = port_of(e.name(both))
        alone = e.make("s", kind)
        e.set(alone, IP6, ONLY, 1)
        e.bind(alone, e.at("::", port))
        with e.speaking(FOUR):
            four = e.make("s", kind)
            e.bind(four, e.at("0.0.0.0", port))
            e.bind(four, e.at("s", port))
        e.close(both)
        e.bind(alone, e.at("::", port))
        with e.speaking(FOUR):
            e.bind(four, e.at("0.0.0.0", port))
        other = e.make("s", kind)
        e.bind(other, e.at("::ffff:0.0.0.0", port))
        with e.speaking(MAPPED):
            e.bind(other, e.at("s", port))
        e.bind(other, e.at("s", port))
        if kind == STREAM:
            e.listen(alone)
            e.listen(four)


def two_listeners_at_one_port(e):
    six = e.make("s")
    e.set(six, IP6, ONLY, 1)
    e.bind(six, e.at("::"))
    port = port_of(e.name(six))
    e.listen(six)
    with e.speaking(FOUR):
        four = e.make("s")
        e.bind(four, e.at("0.0.0.0", port))
        e.listen(four)
        c = e.make("c")
        e.connect(c, e.at("s", port))
        e.until(c, OUT)
        e.until(four, IN)
        e.poll(six)
        e.accept(four)
    c = e.make("c")
    e.connect(c, e.at("s", port))
    e.until(c, OUT)
    e.until(six, IN)
    e.poll(four)
    e.accept(six)
    e.close(four)
    with e.speaking(FOUR):
        c = e.make("c")
        e.connect(c, e.at("s", port))
        e.until(c, select.POLLERR)
        e.get(c, socket.SOL_SOCKET, socket.SO_ERROR)


def a_listener_of_both_families(e):
    h = e.make("s")
    e.bind(h, e.at("::"))
    port = port_of(e.name(h))
    e.listen(h)
    with e.speaking(FOUR):
        c = e.make("c")
        e.connect(c, e.at("s", port))
        e.until(c, OUT)
    e.until(h, IN)
    s = e.accept(h)
    e.name(s)
    e.name(s, "getpeername")
    e.write(s, b"over IPv4")
    e.until(c, IN)
    e.read(c)
    d = e.make("c")
    e.connect(d, e.at("s", port))
    e.until(d, OUT)
    e.until(h, IN)
    t = e.accept(h)
    e.name(t)
    e.name(t, "getpeername")


def datagrams_of_both_families(e):
    h = e.make("s", DGRAM)
    e.bind(h, e.at("::"))
    port = port_of(e.name(h))
    with e.speaking(FOUR):
        four = e.make("c", DGRAM)
        e.sendto(four, b"by four", e.at("s", port))
    e.until(h, IN)
    back = e.recvfrom(h)
    e.sendto(h, b"to four", back)
    with e.speaking(FOUR):
        e.until(four, IN)
        e.read(four)
    six = e.make("c", DGRAM)
    e.sendto(six, b"by six", e.at("s", port))
    e.until(h, IN)
    e.recvfrom(h)
    with e.speaking(FOUR):
        e.sendto(six, b"a name of four", e.at("s", port))
    e.until(h, IN)
    e.recvfrom(h)
    with e.speaking(MAPPED):
        e.connect(six, e.at("s", port))
        e.name(six)
        e.name(six, "getpeername")
        e.write(six, b"connected")
        e.until(h, IN)
        e.recvfrom(h)
    e.connect(six, bytes(28))
    e.name(six)
    e.connect(six, e.at("s", port))
    e.write(six, b"connected again")
    e.until(h, IN)
    e.recvfrom(h)


def from_one_family_to_the_other(e):
    for kind in (STREAM, DGRAM):
        with e.speaking(MAPPED):
            there = e.at("s", 9)
            h = e.make("c", kind)
            e.bind(h)
        e.connect(h, e.at("s", 9))
        alone = e.make("c", kind)
        e.set(alone, IP6, ONLY, 1)
        with e.speaking(MAPPED):
            e.bind(alone)
        e.connect(alone, there)
        if kind == DGRAM:
            e.sendto(h, b"x", e.at("s", 9))
            e.sendto(alone, b"x", there)
            with e.speaking(FOUR):
                e.sendto(alone, b"x", e.at("s", 9))
                e.connect(alone, e.at("s", 9))
            e.sendto(alone, b"x", bytes(1))
            e.sendto(alone, b"x", struct.pack("=H", 77) + bytes(26))
            e.sendto(alone, b"x", e.at("s", 0))
        e.name(alone)


def names_that_need_a_link(e):
    for kind in (STREAM, DGRAM):
        h = e.make("s", kind)
        e.bind(h, e.at("fe80::77"))
        e.bind(h, e.at("fe80::77"), 24)
        e.connect(h, e.at("fe80::77", 9))
        e.connect(h, e.at("fe80::77", 9), 24)
        e.bind(h, e.at("ff02::77"))
        if kind == STREAM:
            e.bind(h, e.at("ff0e::77"))
            e.connect(h, e.at("ff02::77", 9))
        e.bind(h, e.at("s", 0, 0, NO_LINK))  # which needs none
        e.name(h)
        e.bind(e.make("s", kind), e.at("fe80::77", 0, 0, NO_LINK))
        e.connect(e.make("s", kind), e.at("fe80::77", 9, 0, NO_LINK))


def marks6(e):
    for kind in (STREAM, DGRAM):
        h = e.make("c", kind)
        for value in (0, 0xB8, 0xBB, 256, -1, -2, b"\x20"):
            e.set(h, IP6, socket.IPV6_TCLASS, value)
            e.get(h, IP6, socket.IPV6_TCLASS)
    e.get(h, IP6, socket.IPV6_TCLASS, 2)
    for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
        e.get(h, IP6, option)
        for value in (1, 7, 255, 256, -1, -2, b"\x05"):
            e.set(h, IP6, option, value)
            e.get(h, IP6, option)


def groups6(e):
    h, c = e.make("c", DGRAM), e.make("c")
    group, other = (socket.inet_pton(socket.AF_INET6, text) for text in ("ff15::7", "ff15::8"))
    one, none = struct.pack("=I", 1), struct.pack("=I", NO_LINK)
    for option in (socket.IPV6_JOIN_GROUP, socket.IPV6_JOIN_GROUP, socket.IPV6_LEAVE_GROUP):
        e.set(h, IP6, option, group + one)
    e.set(h, IP6, socket.IPV6_LEAVE_GROUP, group + one)
    e.set(h, IP6, socket.IPV6_LEAVE_GROUP, other + one)
    e.set(h, IP6, socket.IPV6_JOIN_GROUP, group + bytes(3))
    e.set(h, IP6, socket.IPV6_JOIN_GROUP, bytes(16) + one)
    e.set(h, IP6, socket.IPV6_LEAVE_GROUP, bytes(16) + one)
    e.set(h, IP6, socket.IPV6_JOIN_GROUP, group + none)
    e.set(c, IP6, socket.IPV6_JOIN_GROUP, group + one)
    e.set(c, IP6, socket.IPV6_JOIN_GROUP, group)
    for one_of in (h, c):
        for value in (0, 1, NO_LINK, b"\1"):
            e.set(one_of, IP6, socket.IPV6_MULTICAST_IF, value)


def loops6(e):
    for kind in (STREAM, DGRAM):
        h = e.make("c", kind)
        e.get(h, IP6, socket.IPV6_MULTICAST_LOOP)
        for value in (0, 1, 2, -1, b"\1"):
            e.set(h, IP6, socket.IPV6_MULTICAST_LOOP, value)
            e.get(h, IP6, socket.IPV6_MULTICAST_LOOP)


def hop_limits_of_tcp6(e):
    h, name = e.listener()
    e.set(h, IP6, socket.IPV6_UNICAST_HOPS, 9)
    c = e.make("c")
    e.set(c, IP6, socket.IPV6_UNICAST_HOPS, 7)
    e.connect(c, name)
    e.until(h, IN)
    s = e.accept(h)
    for one in (h, c, s):
        e.get(one, IP6, socket.IPV6_UNICAST_HOPS)
    for value in (1, 255, 256, -1, -2, b"\5"):
        e.set(s, IP6, socket.IPV6_UNICAST_HOPS, value)
        e.get(s, IP6, socket.IPV6_UNICAST_HOPS)


def source_lists6(e):
    h = e.make("c", DGRAM)
    group, other, one, two, three = (
        socket.inet_pton(socket.AF_INET6, text)
        for text in ("ff35::7", "ff35::8", "2001:db8:7::1", "2001:db8:7::2", "2001:db8:7::3")
    )
    link, none = struct.pack("=I4x", 1), struct.pack("=I4x", NO_LINK)

    def many(option, group, *sources, by=link):
        ends = b"".join(struct.pack("=HHI16s104x", socket.AF_INET6, 0, 0, end) for end in (group, *sources))
        e.set(h, IP6, option, by + ends)

    for option, *ends in (
        (JOIN, group), (JOIN, group), (LEAVE_SOURCE, group, one), (LEAVE, group), (LEAVE, group),
        (LEAVE_SOURCE, group, one), (JOIN_SOURCE, group, one), (JOIN_SOURCE, group, one),
        (JOIN_SOURCE, group, two), (JOIN, group), (LEAVE_SOURCE, group, three), (LEAVE_SOURCE, group, one),
        (LEAVE_SOURCE, group, two), (LEAVE_SOURCE, group, two), (JOIN, group), (JOIN_SOURCE, group, one),
        (LEAVE, group), (JOIN_SOURCE, one, two), (JOIN, one),
    ):  # fmt: skip
        many(option, *ends)
    many(JOIN_SOURCE, other, one, by=none)
    many(JOIN, other, by=none)
    for option in (JOIN, LEAVE, JOIN_SOURCE, LEAVE_SOURCE):
        e.set(h, IP6, option, bytes(60))
        e.set(h, IP6, option, link + bytes(256))


def by_which_address6(e):
    """IPV6_PKTINFO, of both families."""
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    for value in (0, 7, b"\1", 1):
        e.set(b, IP6, socket.IPV6_RECVPKTINFO, value)
        e.get(b, IP6, socket.IPV6_RECVPKTINFO)
    e.bind(b, e.at("::"))
    port = port_of(e.name(b))
    for control in (256, 40, 36, 35, 17, 15):
        e.sendto(a, b"where", e.at("s", port))
        e.until(b, IN)
        e.recvmsg(b, control=control)
    e.set(b, socket.IPPROTO_IP, PKTINFO, 1)
    with e.speaking(FOUR):
        four = e.make("c", DGRAM)
        there = e.at("s", port)
        for control in (256, 64, 40):
            e.sendto(four, b"over IPv4", there)
            e.until(b, IN)
            with e.speaking(MAPPED):
                e.recvmsg(b, control=control)


SCRIPTS6 = [
    kinds_of_socket6, only_of_ipv6, a_port_in_each_family, two_listeners_at_one_port,
    a_listener_of_both_families, datagrams_of_both_families, from_one_family_to_the_other,
    names_that_need_a_link, marks6, groups6, loops6,
    hop_limits_of_tcp6, source_lists6, by_which_address6,
]  # fmt: skip
