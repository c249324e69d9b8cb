"""Messages in pieces and what is said beside them (``sendmsg``, ``recvmsg``, their flags): sequences of calls
that the kernel's sockets and the facade's answer alike, see ``test_facade.py``."""

from __future__ import annotations

import socket
import struct

from xdpstack.tests.facade_driver import FOUR, MAPPED
from xdpstack.tests.facade_scripts import DGRAM, IN, IP, PKTINFO, SOL, STREAM

IP6 = socket.IPPROTO_IPV6
RECVTTL, RECVTOS, DONTFRAG = 12, 13, 62  # linux/in.h, linux/in6.h
ERRQUEUE, OOB, DONTROUTE, WAITALL = (
    socket.MSG_ERRQUEUE,
    socket.MSG_OOB,
    socket.MSG_DONTROUTE,
    socket.MSG_WAITALL,
)
NO_LINK = 1 << 30
STRANGER = socket.inet_aton("203.0.113.9")


def number(v):
    return struct.pack("=i", v)


def port_of(name):
    return struct.unpack(">H", name[2:4])[0]


def pieces_in_one(e):
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b)
    there = e.name(b)
    e.sendmsg(a, (b"nowhere",))
    e.sendmsg(a, (b"x",), there[: e.flavour.short])
    e.sendmsg(a, (b"x",), e.at("s", 0))
    e.sendmsg(a, (b"x",), e.at("s", 1, e.flavour.other))
    e.sendmsg(a, [b""] * 1025, there)
    e.sendmsg(a, (bytes(40_000), bytes(40_000)), there)
    for pieces in ((), (b"",), (b"one",), (b"in", b"", b" pieces", b"."), [b"ab"] * 300):
        e.sendmsg(a, pieces, there)
        e.until(b, IN)
        e.recvmsg(b)
    e.connect(a, there)
    e.sendmsg(a, (b"to", b" one"))
    e.until(b, IN)
    e.recvmsg(b)


def pieces_of_a_stream(e):
    c, s, h = e.pair()
    for pieces in ((), (b"",), (b"one",), (b"in", b"", b" pieces", b"."), [b"ab"] * 300):
        e.sendmsg(c, pieces)
    e.take(s, 3 + 10 + 600)
    e.read(s)
    e.sendmsg(c, [b"x"] * 1025)
    e.sendmsg(h, (b"x",))
    for control in (
        [(99, 1, b"unknown level")], [(IP, 99, b"")], [(SOL, 999, b"")], [(SOL, 1, number(0))],
        b"\1" * 16, b"\x10" + bytes(7), [(IP, PKTINFO, b"not looked at")], [(17, 103, bytes(2))],
    ):  # fmt: skip
        e.sendmsg(c, (b"beside", b" it"), control=control)
    e.sendmsg(c, (b"an address",), e.at("c", 9))
    e.shutdown(c, socket.SHUT_WR)
    e.sendmsg(c, (b"x",))
    e.sendmsg(c, ())
    e.sendmsg(e.make("c"), (b"x",))


def _tell(e, b, *options):
    for level, option in options:
        for value in (7, 0, 1):
            e.set(b, level, option, value)
            e.get(b, level, option)


def _sent(e, a, b, there, controls):
    """What is taken is told again at the other end."""
    for control in controls:
        if isinstance(control, bytes):
            control = bytearray(control)
        if (e.sendmsg(a, (b"beside",), there, control) or -1) > 0:
            e.until(b, IN)
            e.recvmsg(b)


def words_beside(e):
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b)
    there = e.name(b)
    _tell(e, b, (IP, PKTINFO), (IP, RECVTTL), (IP, RECVTOS))
    own = socket.inet_aton(e.addresses["c"])
    _sent(e, a, b, there, [
        [], [(IP, socket.IP_TTL, number(9))], [(IP, socket.IP_TTL, number(255))],
        [(IP, socket.IP_TTL, number(0))], [(IP, socket.IP_TTL, number(256))], [(IP, socket.IP_TTL, b"\5")],
        [(IP, socket.IP_TOS, number(0xB8))], [(IP, socket.IP_TOS, b"\x22")], [(IP, socket.IP_TOS, b"")],
        [(IP, socket.IP_TOS, number(256))], [(IP, socket.IP_TOS, number(-1))],
        [(IP, socket.IP_TOS, number(0x10)), (IP, socket.IP_TTL, number(3))],
        [(IP, socket.IP_TTL, number(3)), (IP, 99, b"")], [(99, 99, b"")], [(SOL, 999, b"")],
        [(SOL, 1, number(0))], [(IP6, socket.IPV6_HOPLIMIT, number(5))], [(17, 99, b"")],
        [(IP, PKTINFO, number(1) + own + bytes(4))], [(IP, PKTINFO, number(0) + own + bytes(4))],
        [(IP, PKTINFO, bytes(12))], [(IP, PKTINFO, bytes(11))], [(IP, PKTINFO, bytes(13))],
        [(IP, PKTINFO, number(0) + STRANGER + bytes(4))], [(IP, PKTINFO, number(NO_LINK) + bytes(8))],
        [(IP, PKTINFO, number(NO_LINK) + STRANGER + bytes(4))],
        [(IP, PKTINFO, number(NO_LINK) + own + bytes(4))], [(IP, PKTINFO, number(1) + bytes(4) + STRANGER)],
        bytes(15), bytes(16), struct.pack("=Qii", 17, IP, socket.IP_TOS),
    ])  # fmt: skip
    e.set(a, IP, socket.IP_TTL, 77)
    e.set(a, IP, socket.IP_TOS, 0x20)
    _sent(e, a, b, there, [[], [(IP, socket.IP_TTL, number(9))], [(IP, socket.IP_TOS, b"\0")], []])
    for control in (256, 28 + 24 + 17, 28 + 24 + 16, 28 + 24, 28 + 20, 28):
        e.sendto(a, b"cut", there)
        e.until(b, IN)
        e.recvmsg(b, control=control)


def words_beside6(e):
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b, e.at("::"))
    there = e.at("s", port_of(e.name(b)))
    hops, mark, info = socket.IPV6_HOPLIMIT, socket.IPV6_TCLASS, socket.IPV6_PKTINFO
    _tell(
        e,
        b,
        (IP6, socket.IPV6_RECVPKTINFO),
        (IP6, socket.IPV6_RECVHOPLIMIT),
        (IP6, socket.IPV6_RECVTCLASS),
    )
    own = socket.inet_pton(socket.AF_INET6, e.addresses["c"])
    stranger, near = (socket.inet_pton(socket.AF_INET6, one) for one in (e.flavour.stranger, "fe80::77"))
    mapped = bytes(10) + b"\xff\xff" + STRANGER
    _sent(e, a, b, there, [
        [], [(IP6, hops, number(9))], [(IP6, hops, number(-1))], [(IP6, hops, number(-2))],
        [(IP6, hops, number(256))], [(IP6, hops, b"\5")], [(IP6, mark, number(0xB8))],
        [(IP6, mark, number(-2))], [(IP6, mark, number(256))],
        [(IP6, mark, b"\1")], [(IP6, mark, number(0x22)), (IP6, hops, number(3))],
        [(IP6, hops, number(3)), (IP6, 99, b"")], [(99, 99, b"")], [(SOL, 999, b"")], [(SOL, 1, number(0))],
        [(IP, socket.IP_TTL, number(5))], [(17, 99, b"")], [(IP6, DONTFRAG, number(1))],
        [(IP6, DONTFRAG, number(0))], [(IP6, DONTFRAG, number(2))], [(IP6, DONTFRAG, b"")],
        [(IP6, info, own + number(1))], [(IP6, info, own + number(0))], [(IP6, info, bytes(20))],
        [(IP6, info, bytes(19))], [(IP6, info, bytes(24))], [(IP6, info, stranger + number(0))],
        [(IP6, info, stranger + number(1))], [(IP6, info, near + number(0))], [(IP6, info, near + number(1))],
        [(IP6, info, bytes(16) + number(NO_LINK))], [(IP6, info, own + number(NO_LINK))],
        [(IP6, info, bytes(16) + number(1)), (IP6, info, own + number(0))], [(IP6, info, mapped + number(0))],
        bytes(15), bytes(16),
    ])  # fmt: skip
    e.set(a, IP6, socket.IPV6_UNICAST_HOPS, 77)
    e.set(a, IP6, socket.IPV6_TCLASS, 0x20)
    _sent(e, a, b, there, [[], [(IP6, hops, number(9))], [(IP6, mark, number(0))]])
    for control in (256, 40 + 24 + 20, 40 + 24 + 16, 40 + 24, 40 + 16, 36):
        e.sendto(a, b"cut", there)
        e.until(b, IN)
        e.recvmsg(b, control=control)


def words_beside_what_is_mapped(e):
    """A socket of IPv6 that sends over IPv4 takes the words of that, and IPV6_PKTINFO."""
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b, e.at("::"))
    port = port_of(e.name(b))
    for level, option in (
        (IP, PKTINFO), (IP, RECVTTL), (IP, RECVTOS), (IP6, socket.IPV6_RECVPKTINFO),
        (IP6, socket.IPV6_RECVHOPLIMIT), (IP6, socket.IPV6_RECVTCLASS),
    ):  # fmt: skip
        e.set(b, level, option, 1)
    info = socket.IPV6_PKTINFO
    with e.speaking(MAPPED):
        there = e.at("s", port)
        own = socket.inet_pton(socket.AF_INET6, e.addresses["c"])
        _sent(e, a, b, there, [
            [(IP, socket.IP_TTL, number(9)), (IP, socket.IP_TOS, b"\x20")],
            [(IP6, socket.IPV6_HOPLIMIT, number(9))], [(IP6, socket.IPV6_TCLASS, b"any length")],
            [(IP6, info, own + number(1))], [(IP6, info, own + number(0))], [(IP6, info, own)],
            [(IP6, info, bytes(20))], [(IP6, info, own[:12] + STRANGER + number(0))],
            [(IP6, info, own + number(NO_LINK))], [(IP, PKTINFO, number(1) + own[12:] + bytes(4))],
        ])  # fmt: skip
    with e.speaking(FOUR):
        four = e.make("c", DGRAM)
        e.sendto(four, b"by four", e.at("s", port))
    e.until(b, IN)
    with e.speaking(MAPPED):
        e.recvmsg(b)


def a_link_that_sticks(e):
    """IPV6_PKTINFO by setsockopt()."""
    h = e.make("s", DGRAM)
    e.bind(h, e.at("::"))
    there = e.at("s", port_of(e.name(h)))
    own = socket.inet_pton(socket.AF_INET6, e.addresses["c"])
    stranger = socket.inet_pton(socket.AF_INET6, e.flavour.stranger)
    for kind in (DGRAM, STREAM):
        a = e.make("c", kind)
        e.get(a, IP6, socket.IPV6_PKTINFO, 20)
        for value in (
            own + number(1), own + number(0), stranger + number(1), bytes(19), b"", bytes(24),
            bytes(16) + number(NO_LINK), own + number(NO_LINK),
        ):  # fmt: skip
            e.set(a, IP6, socket.IPV6_PKTINFO, value)
            if kind == DGRAM:
                e.sendto(a, b"x", there)
                e.sendmsg(a, (b"x",), there, [(IP6, socket.IPV6_PKTINFO, bytes(16) + number(1))])
                with e.speaking(MAPPED):
                    e.sendto(a, b"x", e.at("s", port_of(there)))
        e.connect(a, there)
        e.set(a, IP6, socket.IPV6_PKTINFO, bytes(20))
        if kind == DGRAM:
            e.connect(a, there)
    while e.recvfrom(h, flags=socket.MSG_DONTWAIT)[2:4] != b"\0\0":
        pass


def flags_that_say_nothing(e):
    """Of what is read; Linux looks at few."""
    c, s, h = e.pair()
    a, b = e.make("c", DGRAM), e.make("s", DGRAM)
    e.bind(b)
    for one in (c, s, h, a, b):
        for flags in (ERRQUEUE, OOB, ERRQUEUE | OOB, DONTROUTE, WAITALL, socket.MSG_CMSG_CLOEXEC, 1 << 23):
            e.recvfrom(one, flags=flags)
            e.recvmsg(one, flags=flags)
    e.write(c, b"some bytes")
    e.until(s, IN)
    e.recvmsg(s, (2,), OOB)
    e.recvmsg(s, (2,), ERRQUEUE)
    e.recvmsg(s, (2,), WAITALL)
    e.recvmsg(s, (70_000,), WAITALL | socket.MSG_CMSG_CLOEXEC)
    for flags in (OOB, DONTROUTE, socket.MSG_CMSG_CLOEXEC, 1 << 23, WAITALL):
        e.sendto(a, b"a datagram", e.name(b))
        e.until(b, IN)
        e.recvmsg(b, (5,), ERRQUEUE)
        e.recvmsg(b, (5,), flags)
    e.shutdown(c, socket.SHUT_WR)
    e.until(s, 0x2000)
    e.recvfrom(s, flags=OOB)
    e.recvfrom(s, flags=ERRQUEUE)
    for flags in (socket.MSG_CONFIRM, socket.MSG_EOR, socket.MSG_NOSIGNAL, 1 << 23):
        e.sendto(s, b"sent", b"", flags=flags)
        e.sendto(a, b"sent", e.name(b), flags=flags)
        e.until(b, IN)
        e.read(b)
    if e.flavour.broadcast:  # over IPv4; over IPv6 Linux does not look at it
        e.sendto(a, b"x", e.name(b), flags=OOB)


MESSAGES = [pieces_in_one, pieces_of_a_stream, flags_that_say_nothing]
MESSAGES4 = [words_beside]
MESSAGES6 = [words_beside6, words_beside_what_is_mapped, a_link_that_sticks]
