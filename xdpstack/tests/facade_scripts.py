"""Sequences of calls that the kernel's sockets and the facade's answer alike: see ``test_facade.py``."""

from __future__ import annotations

import select
import socket
import struct

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
IN, OUT, RDHUP = select.POLLIN, select.POLLOUT, select.POLLRDHUP
TCP, IP, SOL = socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.SOL_SOCKET
RD, WR, RDWR = socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR
JOIN, LEAVE, JOIN_SOURCE, LEAVE_SOURCE = 42, 45, 46, 47  # MCAST_*, linux/in.h
ADD_SOURCE, DROP_SOURCE, PKTINFO = 39, 40, 8  # IP_*_SOURCE_MEMBERSHIP, IP_PKTINFO


def kinds_of_socket(e):
    for domain, kind, protocol in [
        (socket.AF_INET, STREAM, TCP),
        (socket.AF_INET, DGRAM, socket.IPPROTO_UDP),
        (socket.AF_INET, STREAM, socket.IPPROTO_UDP),
        (socket.AF_INET, DGRAM, TCP),
        (socket.AF_INET, socket.SOCK_SEQPACKET, 0),
        (socket.AF_INET, 4096 | STREAM, 0),
        (socket.AF_INET, 14, 0),
        (socket.AF_INET, STREAM, -1),
        (socket.AF_INET, STREAM, 3000),
        (200, STREAM, 0),
        (-1, STREAM, 0),
    ]:
        e.make("c", kind, domain, protocol)


def what_is_no_descriptor(e):
    from xdpstack.tests.facade_driver import Handle

    for h in (Handle("c", -1), Handle("c", 1_000_000)):
        e.bind(h)
        e.listen(h)
        e.accept(h)
        e.connect(h, e.at("s", 1))
        e.read(h)
        e.write(h, b"x")
        e.shutdown(h, WR)
        e.close(h)
        e.name(h)
        e.name(h, "getpeername")
        e.set(h, SOL, socket.SO_REUSEADDR, 1)
        e.get(h, SOL, socket.SO_TYPE)
        e.poll(h)


def names_of_addresses(e):
    for kind in (STREAM, DGRAM):
        h = e.make("s", kind)
        e.name(h)
        e.name(h, "getpeername")
        e.bind(h, e.at("s"), e.flavour.short)
        e.bind(h, e.at("s"), 0)
        e.bind(h, e.at("s", 0, e.flavour.other))
        e.bind(h, e.at("s", 0, 77))
        e.bind(h, e.at(e.flavour.stranger))
        e.bind(h, e.at("s"))
        e.bind(h, e.at("s"))
        name = e.name(h)
        e.name(h, size=8)
        e.name(h, size=0)
        other = e.make("s", kind)
        e.bind(other, name)
        e.bind(other, name[:2] + name[2:4] + bytes(len(name) - 4))  # any address, the same port
        e.bind(other, e.at(e.flavour.any))
        e.name(other)
        e.close(h)
        third = e.make("s", kind)
        e.bind(third, name)
        e.close(third)
        e.close(third)


def a_port_for_two(e):
    for kind in (STREAM, DGRAM):
        a, b = e.make("s", kind), e.make("s", kind)
        e.set(a, SOL, socket.SO_REUSEADDR, 1)
        e.bind(a)
        name = e.name(a)
        e.bind(b, name)
        e.set(b, SOL, socket.SO_REUSEADDR, 1)
        e.bind(b, name)
        if kind == STREAM:
            e.listen(a)
            e.listen(b)
            c = e.make("s")
            e.set(c, SOL, socket.SO_REUSEADDR, 1)
            e.bind(c, name)


def before_anything(e):
    h = e.make("c")
    e.poll(h)
    e.read(h)
    e.read(h, 0)
    e.write(h, b"x")
    e.write(h, b"")
    e.shutdown(h, 7)
    e.shutdown(h, WR)
    e.accept(h)
    e.connect(h, e.at("s", 1), 1)
    e.connect(h, e.at("s", 1), e.flavour.short)
    e.connect(h, e.at("s", 1, e.flavour.other))
    e.connect(h, e.at(e.flavour.group, 1))
    e.connect(h, e.at(e.flavour.broadcast or e.flavour.group, 1))
    e.get(h, SOL, socket.SO_ERROR)
    e.name(h, "getpeername")


def a_listener(e):
    h = e.make("s")
    e.listen(h)
    e.name(h)
    h, name = e.listener()
    e.poll(h)
    e.accept(h)
    e.listen(h, 9)
    e.listen(h, -1)
    e.bind(h)
    e.connect(h, name)
    e.read(h)
    e.write(h, b"x")
    e.name(h, "getpeername")
    e.get(h, SOL, socket.SO_ACCEPTCONN)
    e.shutdown(h, WR)
    e.poll(h)
    e.shutdown(h, RD)
    e.poll(h)
    e.accept(h)
    e.get(h, SOL, socket.SO_ACCEPTCONN)
    e.listen(h)
    e.poll(h)
    e.close(h)


def opening(e):
    h, name = e.listener()
    c = e.make("c")
    e.connect(c, name)
    e.until(c, OUT)
    e.connect(c, name)
    e.connect(c, name)
    e.until(h, IN)
    e.poll(h)
    s = e.accept(h)
    e.accept(h)
    e.poll(h)
    for one in (c, s):
        e.name(one)
        e.name(one, "getpeername")
        e.poll(one)
        e.listen(one)
        e.bind(one)
        e.get(one, SOL, socket.SO_ERROR)
        e.get(one, SOL, socket.SO_ACCEPTCONN)
    e.connect(s, name)


def refused(e):
    c, name = e.make("c"), e.nobody()
    e.connect(c, name)
    e.until(c, IN)
    e.poll(c)
    e.name(c, "getpeername")
    e.get(c, SOL, socket.SO_ERROR)
    e.get(c, SOL, socket.SO_ERROR)
    e.poll(c)
    e.read(c)
    e.write(c, b"x")
    e.connect(c, name)
    e.poll(c)
    h, there = e.listener()
    e.connect(c, there)
    e.until(c, OUT)
    e.connect(c, there)
    e.until(h, IN)


def refused_and_shut_down(e):
    c, name = e.make("c"), e.nobody()
    e.connect(c, name)
    e.until(c, IN)
    e.shutdown(c, WR)
    e.connect(c, name)
    e.listen(c)
    e.get(c, SOL, socket.SO_ERROR)
    e.connect(c, bytes(16))  # AF_UNSPEC
    e.connect(c, name)
    e.until(c, IN)
    e.get(c, SOL, socket.SO_ERROR)


def refused_and_asked_by_connect(e):
    c, name = e.make("c"), e.nobody()
    e.connect(c, name)
    e.until(c, IN)
    e.connect(c, name)
    e.poll(c)
    e.read(c)
    e.connect(c, name)
    e.until(c, IN)
    e.write(c, b"x")
    e.read(c)
    e.read(c)


def nobody_at_port_zero(e):
    c = e.make("c")
    e.connect(c, e.at("s", 0))
    e.until(c, IN)
    e.get(c, SOL, socket.SO_ERROR)


def talking(e):
    c, s, _ = e.pair()
    e.read(c)
    e.write(c, b"hello")
    e.until(s, IN)
    e.poll(s)
    e.read(s, 2)
    e.read(s, 0)
    e.read(s)
    e.read(s)
    e.write(s, b"")
    e.sendto(s, b"with an address", e.at("c", 9))
    e.until(c, IN)
    e.read(c)


def half_closed(e):
    c, s, _ = e.pair()
    e.write(c, b"last words")
    e.shutdown(c, WR)
    e.until(s, RDHUP)
    e.poll(c)
    e.poll(s)
    e.write(c, b"x")
    e.shutdown(c, WR)
    e.read(s, 4)
    e.read(s)
    e.read(s)
    e.read(s)
    e.write(s, b"an answer")
    e.until(c, IN)
    e.read(c)
    e.read(c)
    e.shutdown(s, WR)
    e.until(c, RDHUP)
    e.poll(s)
    e.poll(c)
    e.read(c)
    e.write(s, b"x")
    e.shutdown(c, RDWR)
    e.shutdown(s, WR)
    e.name(c, "getpeername")
    e.name(s, "getpeername")
    e.close(c)
    e.close(s)


def reading_no_more(e):
    c, s, _ = e.pair()
    e.shutdown(c, RD)
    e.poll(c)
    e.read(c)
    e.write(s, b"still comes")
    e.until(c, IN)
    e.read(c)
    e.write(c, b"still goes")
    e.until(s, IN)
    e.read(s)


def closed_by_the_peer(e):
    c, s, _ = e.pair()
    e.write(s, b"bye")
    e.close(s)
    e.until(c, RDHUP)
    e.poll(c)
    e.read(c)
    e.read(c)
    e.write(c, b"x")  # the peer answers with a reset
    e.until(c, select.POLLERR)
    e.poll(c)
    e.write(c, b"x")
    e.write(c, b"x")
    e.read(c)


def reset_by_the_peer(e):
    c, s, _ = e.pair()
    e.write(s, b"before")
    e.until(c, IN)
    e.set(s, SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
    e.close(s)
    e.until(c, select.POLLERR)
    e.poll(c)
    e.read(c)
    e.read(c)
    e.read(c)
    e.write(c, b"x")
    e.poll(c)
    e.shutdown(c, WR)
    e.name(c, "getpeername")


def reset_where_bytes_were_not_read(e):
    c, s, _ = e.pair()
    e.write(c, b"nobody reads this")
    e.until(s, IN)
    e.close(s)
    e.until(c, select.POLLERR)
    e.write(c, b"x")
    e.write(c, b"x")
    e.get(c, SOL, socket.SO_ERROR)


def a_full_buffer(e):
    c, s, _ = e.pair()
    count = e.fill(c)
    e.take(s, count)
    e.until(c, OUT)
    e.read(s)


def taken_back(e):
    c, s, _ = e.pair()
    e.connect(c, bytes(16))  # AF_UNSPEC
    e.until(s, select.POLLERR)
    e.get(s, SOL, socket.SO_ERROR)
    e.get(c, SOL, socket.SO_ERROR)
    e.name(c, "getpeername")  # getsockname shows the port that was, on Linux: it has none
    e.poll(c)
    h, name = e.listener()
    e.connect(c, name)
    e.until(c, OUT)
    e.until(h, IN)
    e.name(c, "getpeername")


def a_listener_goes(e):
    h, name = e.listener()
    c = e.make("c")
    e.connect(c, name)
    e.until(h, IN)
    e.close(h)
    e.until(c, select.POLLERR)
    e.get(c, SOL, socket.SO_ERROR)
    again = e.make("c")
    e.connect(again, name)
    e.until(again, select.POLLERR)
    e.get(again, SOL, socket.SO_ERROR)


def options(e):
    h = e.make("c")
    for level, option in [
        (SOL, socket.SO_TYPE), (SOL, socket.SO_DOMAIN), (SOL, socket.SO_PROTOCOL), (SOL, socket.SO_ERROR),
        (SOL, socket.SO_REUSEADDR), (SOL, socket.SO_KEEPALIVE), (SOL, socket.SO_BROADCAST),
        (TCP, socket.TCP_NODELAY), (TCP, socket.TCP_USER_TIMEOUT), (TCP, 9999), (SOL, 9999), (9999, 1),
    ]:  # fmt: skip
        e.get(h, level, option)
        e.get(h, level, option, 2)
    e.get(h, SOL, socket.SO_LINGER, 8)
    for value in (1, 0, 5, -1):
        for level, option in [
            (SOL, socket.SO_REUSEADDR), (SOL, socket.SO_KEEPALIVE), (SOL, socket.SO_BROADCAST),
            (TCP, socket.TCP_NODELAY), (TCP, socket.TCP_USER_TIMEOUT), (SOL, socket.SO_TYPE), (SOL, 9999),
            (TCP, 9999), (9999, 1),
        ]:  # fmt: skip
            e.set(h, level, option, value)
            e.get(h, level, option)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
        for value in (1, 99, 0, -1, 128, 32767, 32768):
            e.set(h, TCP, option, value)
            e.get(h, TCP, option)
    for value in (0, 87, 88, 1000, 32768):
        e.set(h, TCP, socket.TCP_MAXSEG, value)
    e.set(h, SOL, socket.SO_REUSEADDR, b"\1")
    e.set(h, TCP, socket.TCP_NODELAY, b"")
    e.set(h, SOL, socket.SO_LINGER, 1)
    e.set(h, SOL, socket.SO_LINGER, struct.pack("ii", 1, 3))
    e.get(h, SOL, socket.SO_LINGER, 8)
    for name in (b"reno", b"cubic", b"nothing", b""):
        e.set(h, TCP, socket.TCP_CONGESTION, name)
        e.get(h, TCP, socket.TCP_CONGESTION, 16)
    for value in (0, 0x10, 0xB8, 0xBB):
        e.set(h, IP, socket.IP_TOS, value)
        e.get(h, IP, socket.IP_TOS)


def options_are_inherited(e):
    h, name = e.listener()
    e.set(h, TCP, socket.TCP_NODELAY, 1)
    e.set(h, SOL, socket.SO_KEEPALIVE, 1)
    e.set(h, TCP, socket.TCP_KEEPIDLE, 30)
    c = e.make("c")
    e.connect(c, name)
    e.until(h, IN)
    s = e.accept(h)
    for one in (c, s):
        e.get(one, TCP, socket.TCP_NODELAY)
        e.get(one, SOL, socket.SO_KEEPALIVE)
        e.get(one, TCP, socket.TCP_KEEPIDLE)
    e.set(s, TCP, socket.TCP_NODELAY, 0)
    e.set(s, TCP, socket.TCP_KEEPCNT, 3)
    e.get(s, TCP, socket.TCP_NODELAY)
    e.get(s, TCP, socket.TCP_KEEPCNT)


def datagrams(e):
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b)
    there = e.name(b)
    e.poll(a)
    e.read(a)
    e.write(a, b"nowhere")
    e.sendto(a, b"x", there, e.flavour.short)
    e.sendto(a, b"x", e.at("s", 0))
    e.sendto(a, b"x", e.at("s", 1, e.flavour.other))
    e.sendto(a, bytes(65536), there)
    if e.flavour.broadcast:
        e.sendto(a, b"x", e.at(e.flavour.broadcast, 9))
    e.name(a)
    e.sendto(a, b"one", there)
    e.name(a)
    e.sendto(a, b"", there)
    e.sendto(a, b"three, longer", there)
    e.until(b, IN)
    e.poll(b)
    back = e.recvfrom(b)
    e.until(b, IN)
    e.recvfrom(b)
    e.until(b, IN)
    e.recvfrom(b, 5)
    e.recvfrom(b)
    e.sendto(b, b"back", back)
    e.until(a, IN)
    e.recvfrom(a)
    e.listen(a)
    e.accept(a)
    e.get(a, SOL, socket.SO_TYPE)
    e.get(a, SOL, socket.SO_PROTOCOL)
    e.get(a, TCP, socket.TCP_NODELAY)
    e.set(a, TCP, socket.TCP_NODELAY, 1)
    e.close(a)


def datagrams_to_one(e):
    a, b, other = (e.make(side, DGRAM) for side in "css")
    e.bind(b)
    e.bind(other)
    there, elsewhere = e.name(b), e.name(other)
    e.connect(a, there)
    e.connect(a, there)
    e.name(a, "getpeername")
    here = e.name(a)
    e.write(a, b"by write")
    e.until(b, IN)
    e.recvfrom(b)
    e.sendto(a, b"past it", elsewhere)
    e.until(other, IN)
    e.recvfrom(other)
    e.sendto(other, b"not for it", here)
    e.sendto(b, b"for it", here)
    e.until(a, IN)
    e.recvfrom(a)
    e.read(a)
    e.connect(a, bytes(16))
    e.name(a, "getpeername")
    e.write(a, b"x")
    e.connect(a, there)
    e.shutdown(a, WR)
    e.write(a, b"x")
    e.shutdown(a, RD)
    e.poll(a)
    e.read(a)


def datagrams_for_nobody(e):
    a, name = e.make("c", DGRAM), e.nobody()
    b = e.make("c", DGRAM)
    e.sendto(b, b"x", name)  # a TCP socket has the port, no UDP socket
    e.read(b)
    e.connect(a, name)
    e.write(a, b"x")
    e.until(a, select.POLLERR)
    e.poll(a)
    e.read(a)
    e.read(a)
    e.write(a, b"x")
    e.until(a, select.POLLERR)
    e.write(a, b"told here")
    e.poll(a)
    e.write(a, b"x")
    e.until(a, select.POLLERR)
    e.get(a, SOL, socket.SO_ERROR)
    e.get(a, SOL, socket.SO_ERROR)
    e.shutdown(b, WR)
    e.write(b, b"x")


def peeking(e):
    c, s, _ = e.pair()
    e.recvfrom(s, flags=socket.MSG_PEEK)
    e.write(c, b"look and then take")
    e.until(s, IN)
    e.recvfrom(s, 4, socket.MSG_PEEK)
    e.recvfrom(s, flags=socket.MSG_PEEK)
    e.read(s)
    e.shutdown(c, WR)
    e.until(s, RDHUP)
    e.recvfrom(s, flags=socket.MSG_PEEK)
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b)
    e.bind(a)
    e.sendto(a, b"one", e.name(b))
    e.sendto(a, b"two", e.name(b))
    e.until(b, IN)
    for most in (2, 70):
        e.recvfrom(b, most, socket.MSG_PEEK)
    e.recvfrom(b)
    e.until(b, IN)
    e.recvfrom(b)


def marks(e):
    for kind in (STREAM, DGRAM):
        h = e.make("c", kind)
        for value in (0, 0xB8, 0xBB, 256, b"\x20", b""):
            e.set(h, IP, socket.IP_TOS, value)
            e.get(h, IP, socket.IP_TOS)
            e.get(h, IP, socket.IP_TOS, 2)
    for option in (socket.IP_TTL, socket.IP_MULTICAST_TTL):
        e.get(h, IP, option)
        for value in (1, 7, 255, 256, -1, -2, b"\x05", b""):
            e.set(h, IP, option, value)
            e.get(h, IP, option)
    e.set(h, IP, 9999, 1)
    e.get(h, IP, 9999)


def groups(e):
    """By the link that both call 1: the kernel's loopback interface."""
    h = e.make("c", DGRAM)
    group, other = bytes([239, 1, 1, 1]), bytes([239, 1, 1, 2])
    by_one = bytes(4) + struct.pack("=i", 1)
    for option in (socket.IP_ADD_MEMBERSHIP, socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP):
        e.set(h, IP, option, group + by_one)
    e.set(h, IP, socket.IP_DROP_MEMBERSHIP, group + by_one)
    e.set(h, IP, socket.IP_DROP_MEMBERSHIP, other + by_one)
    e.set(h, IP, socket.IP_ADD_MEMBERSHIP, group + bytes(3))
    e.set(h, IP, socket.IP_ADD_MEMBERSHIP, bytes([10, 1, 1, 1]) + by_one)
    e.set(h, IP, socket.IP_ADD_MEMBERSHIP, group + bytes(4) + struct.pack("=i", 1 << 30))
    e.set(h, IP, socket.IP_ADD_MEMBERSHIP, group + bytes([203, 0, 113, 9]))
    e.set(h, IP, socket.IP_MULTICAST_IF, bytes(4))
    e.set(h, IP, socket.IP_MULTICAST_IF, bytes([203, 0, 113, 9]))
    e.set(h, IP, socket.IP_MULTICAST_IF, bytes(3))
    e.set(h, IP, socket.IP_MULTICAST_IF, group + by_one)
    c = e.make("c")
    e.set(c, IP, socket.IP_ADD_MEMBERSHIP, group + by_one)
    e.set(c, IP, socket.IP_MULTICAST_IF, bytes(4))
    e.set(c, IP, socket.IP_MULTICAST_TTL, 1)
    for one in (h, c):
        e.get(one, IP, socket.IP_MULTICAST_LOOP)
        for value in (0, 1, 2, b"\0", b""):
            e.set(one, IP, socket.IP_MULTICAST_LOOP, value)
            e.get(one, IP, socket.IP_MULTICAST_LOOP)


def hop_limits_of_tcp(e):
    h, name = e.listener()
    e.get(h, IP, socket.IP_TTL)
    e.set(h, IP, socket.IP_TTL, 9)
    e.get(h, IP, socket.IP_TTL)
    c = e.make("c")
    e.set(c, IP, socket.IP_TTL, 7)
    e.connect(c, name)
    e.until(h, IN)
    s = e.accept(h)
    for one in (c, s):
        e.get(one, IP, socket.IP_TTL)
        for value in (1, 255, 256, -1, -2, b"\x05", b""):
            e.set(one, IP, socket.IP_TTL, value)
            e.get(one, IP, socket.IP_TTL)


def source_lists(e):
    """IP_ADD_SOURCE_MEMBERSHIP and its kin: what they say, in any order."""
    h = e.make("c", DGRAM)
    group, other = bytes([239, 1, 1, 1]), bytes([239, 1, 1, 2])
    one, two = bytes([10, 7, 7, 1]), bytes([10, 7, 7, 2])
    link, none = struct.pack("=I4x", 1), struct.pack("=I4x", 1 << 30)

    def many(option, group, *sources, by=link):
        ends = b"".join(struct.pack("=HH4s120x", socket.AF_INET, 0, end) for end in (group, *sources))
        e.set(h, IP, option, by + ends)

    many(JOIN, group)
    many(JOIN, group)
    many(LEAVE_SOURCE, group, one)
    many(LEAVE, group)
    many(LEAVE, group)
    many(LEAVE_SOURCE, group, one)
    many(JOIN_SOURCE, group, one)
    many(JOIN_SOURCE, group, one)
    many(JOIN_SOURCE, group, two)
    many(JOIN, group)
    many(LEAVE_SOURCE, group, bytes([10, 7, 7, 3]))
    many(LEAVE_SOURCE, group, one)
    many(LEAVE_SOURCE, group, two)
    many(LEAVE_SOURCE, group, two)
    many(JOIN, group)
    many(JOIN_SOURCE, group, one)  # no longer from anybody
    many(LEAVE, group)
    many(JOIN_SOURCE, other, one, by=none)
    many(JOIN, other, by=none)
    many(JOIN_SOURCE, one, two)
    many(JOIN, one)
    for option in (JOIN, LEAVE, JOIN_SOURCE, LEAVE_SOURCE):
        e.set(h, IP, option, bytes(60))
        e.set(h, IP, option, link + bytes(256))
    for option in (ADD_SOURCE, DROP_SOURCE):
        for value in (group + bytes(4) + one, group + bytes(3), group + bytes(8) + one, one + bytes(4) + two):
            e.set(h, IP, option, value)
        e.set(h, IP, option, group + bytes([203, 0, 113, 9]) + one)


def messages(e):
    """recvmsg() with and without what is cut."""
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b)
    name = e.name(b)
    e.recvmsg(b)
    for data, pieces, flags, control in (
        (b"hello", (70_000,), 0, 256),
        (b"in pieces", (2, 0, 3, 100), 0, 0),
        (b"too long", (2, 3), 0, 256),
        (b"too long", (2, 3), socket.MSG_TRUNC, 256),
        (b"", (9,), 0, 256),
        (b"nowhere to put it", (), 0, 256),
    ):
        e.sendto(a, data, name)
        e.until(b, IN)
        e.recvmsg(b, pieces, flags | socket.MSG_PEEK, control)
        e.recvmsg(b, pieces, flags, control, named=control > 0)
    e.sendto(a, b"recvfrom too", name)
    e.until(b, IN)
    e.recvfrom(b, 4, socket.MSG_TRUNC | socket.MSG_PEEK)
    e.recvfrom(b, 4, socket.MSG_TRUNC)
    e.poll(b)


def messages_of_tcp(e):
    c, s, _ = e.pair()
    e.recvmsg(s)
    e.write(c, b"0123456789abcdef")
    e.until(s, IN)
    e.recvmsg(s, (3, 4), socket.MSG_PEEK)
    e.recvmsg(s, (3, 0, 2))
    e.recvmsg(s, (4,), socket.MSG_TRUNC)
    e.recvmsg(s, (9,), named=False)
    e.write(c, b"last")
    e.shutdown(c, 1)
    e.until(s, IN)
    e.recvmsg(s)
    e.recvmsg(s)


def by_which_address(e):
    """IP_PKTINFO."""
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    for value in (1, b"\0", 7, b""):
        e.set(b, IP, PKTINFO, value)
        e.get(b, IP, PKTINFO)
    e.set(b, IP, PKTINFO, 1)
    e.bind(b, e.at(e.flavour.any if e.flavour.size == 16 else "::"))
    port = struct.unpack(">H", e.name(b)[2:4])[0]
    for control in (256, 28, 27, 20, 16, 15, 0):
        e.sendto(a, b"where", e.at("s", port))
        e.until(b, IN)
        e.recvmsg(b, control=control)


def what_members_hear(e):
    """One group: a socket that lists the sender, one that lists another, one that takes anybody; and one
    beside the sender, by IP_MULTICAST_LOOP. A mark tells that nothing else comes. Needs a link of its own."""
    six = e.flavour.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if six else IP
    loop, by = (
        (socket.IPV6_MULTICAST_LOOP, socket.IPV6_MULTICAST_IF)
        if six
        else (socket.IP_MULTICAST_LOOP, socket.IP_MULTICAST_IF)
    )
    group, marked = ("ff15::77", "ff15::78") if six else ("239.7.7.7", "239.7.7.8")

    def request(side, *ends):
        form = "=HH4x16s104x" if six else "=HH4s120x"
        packed = [socket.inet_pton(e.flavour.family, e.addresses.get(end, end)) for end in ends]
        head = struct.pack("=I4x", e.link(side))
        return head + b"".join(struct.pack(form, e.flavour.family, 0, end) for end in packed)

    a, z = e.make("c", DGRAM), e.make("s", DGRAM)
    e.set(a, level, by, e.link("c") if six else bytes(8) + struct.pack("=i", e.link("c")))
    listed, other, anybody, here = [e.make(side, DGRAM) for side in "sssc"]
    for one in (listed, other, anybody, here):
        e.set(one, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        e.bind(one, e.at(e.flavour.any, 7000))
    e.set(listed, level, JOIN_SOURCE, request("s", group, "c"))
    e.set(other, level, JOIN_SOURCE, request("s", group, e.flavour.stranger))
    e.set(anybody, level, JOIN, request("s", group))
    e.set(here, level, JOIN, request("c", group))
    for one in (listed, other, anybody):
        e.set(one, level, JOIN, request("s", marked))
    for loops in (1, 0):
        e.set(a, level, loop, loops)
        e.sendto(a, b"to all %d" % loops, e.at(group, 7000))
        e.sendto(a, b"mark", e.at(marked, 7000))
        e.sendto(z, b"mark to us", e.at("c", 7000))
        for one in (listed, other, anybody, here):
            while True:
                e.until(one, IN)
                if e.read(one) in (b"mark", b"mark to us"):
                    break


LINKED = [what_members_hear]
SCRIPTS = [
    kinds_of_socket, what_is_no_descriptor, names_of_addresses, a_port_for_two, before_anything,
    a_listener, opening, refused, refused_and_shut_down, refused_and_asked_by_connect,
    nobody_at_port_zero, talking, half_closed, reading_no_more, closed_by_the_peer,
    reset_by_the_peer, reset_where_bytes_were_not_read, a_full_buffer, taken_back, a_listener_goes,
    options, options_are_inherited, marks, groups, hop_limits_of_tcp,
    source_lists, messages, messages_of_tcp, by_which_address, peeking, datagrams, datagrams_to_one,
    datagrams_for_nobody,
]  # fmt: skip
