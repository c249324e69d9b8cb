"""Which sources a member of a group wants and which it blocks (RFC 3678): sequences of calls that the
kernel's sockets and the facade's answer alike, see ``test_facade.py``."""

from __future__ import annotations

import itertools
import socket
import struct

from xdpstack.tests.facade_scripts import (
    ADD_SOURCE,
    DGRAM,
    DROP_SOURCE,
    IN,
    IP,
    JOIN,
    JOIN_SOURCE,
    LEAVE,
    LEAVE_SOURCE,
    STREAM,
)

IP6 = socket.IPPROTO_IPV6
UNBLOCK4, BLOCK4, FILTER4, ALL4, ALL6 = 37, 38, 41, 49, 29  # linux/in.h, linux/in6.h
BLOCK, UNBLOCK, FILTER = 43, 44, 48  # MCAST_*
EXCLUDE, INCLUDE = 0, 1
NO_LINK = 1 << 30


class Family:
    """Requests of one family, as bytes; groups and sources by their numbers."""

    def __init__(self, six: bool) -> None:
        self.six, self.level = six, IP6 if six else IP
        self.family = socket.AF_INET6 if six else socket.AF_INET

    def group(self, n=1):
        return socket.inet_pton(self.family, f"ff35::{n}" if self.six else f"239.1.1.{n}")

    def source(self, n):
        return socket.inet_pton(self.family, f"2001:db8:7::{n}" if self.six else f"10.7.7.{n}")

    def end(self, raw, family=None):
        return struct.pack("=HH4x16s104x" if self.six else "=HH4s120x", family or self.family, 0, raw)

    def request(self, *ends, link=1):
        return struct.pack("=I4x", link) + b"".join(map(self.end, ends))

    def filter(self, mode, *sources, group=None, link=1, count=None, family=None):
        count = len(sources) if count is None else count
        head = struct.pack("=I4x", link) + self.end(group or self.group(), family)
        return head + struct.pack("=II", mode, count) + b"".join(map(self.end, sources))


def _every_request(e, six, kind):
    """Each request after each two others: what a membership was decides what it may become."""
    f = Family(six)
    requests = {
        "join": (JOIN, f.request(f.group())),
        "leave": (LEAVE, f.request(f.group())),
        "wants 1": (JOIN_SOURCE, f.request(f.group(), f.source(1))),
        "wants 2": (JOIN_SOURCE, f.request(f.group(), f.source(2))),
        "no longer 1": (LEAVE_SOURCE, f.request(f.group(), f.source(1))),
        "blocks 1": (BLOCK, f.request(f.group(), f.source(1))),
        "blocks 2": (BLOCK, f.request(f.group(), f.source(2))),
        "unblocks 1": (UNBLOCK, f.request(f.group(), f.source(1))),
        "all but 2, 1": (FILTER, f.filter(EXCLUDE, f.source(2), f.source(1))),
        "1, 2 alone": (FILTER, f.filter(INCLUDE, f.source(1), f.source(2))),
        "all": (FILTER, f.filter(EXCLUDE)),
        "nobody": (FILTER, f.filter(INCLUDE)),
    }
    for three in itertools.product(requests, repeat=3):
        h = e.make("c", kind)
        for what in three:
            option, value = requests[what]
            e.note("then", what)
            e.set(h, f.level, option, value)
            e.ask(h, f.level, FILTER, f.filter(7, bytes(len(f.group())), bytes(len(f.group()))))
        e.close(h)


def sources_in_every_order(e):
    _every_request(e, False, DGRAM)


def sources_in_every_order6(e):
    _every_request(e, True, DGRAM)


def sources_of_tcp(e):
    """Linux lets TCP sockets into groups by all but the oldest of these requests."""
    f = Family(False)
    for kind in (STREAM, DGRAM):
        h = e.make("c", kind)
        by_one = bytes(4) + struct.pack("=i", 1)
        e.set(h, IP, socket.IP_ADD_MEMBERSHIP, f.group() + by_one)
        e.set(h, IP, socket.IP_DROP_MEMBERSHIP, f.group() + by_one)
        for option in (JOIN, JOIN, JOIN_SOURCE, LEAVE_SOURCE, BLOCK, UNBLOCK, LEAVE, LEAVE):
            e.set(h, IP, option, f.request(f.group(), f.source(1)))
        own = socket.inet_aton(e.addresses["c"])
        for option in (ADD_SOURCE, ADD_SOURCE, DROP_SOURCE, DROP_SOURCE, BLOCK4, UNBLOCK4):
            e.set(h, IP, option, f.group() + own + f.source(1))
        e.set(h, IP, JOIN, f.request(f.group()))
        e.close(h)


def sources_of_tcp6(e):
    f = Family(True)
    for kind in (STREAM, DGRAM):
        h = e.make("c", kind)
        one = struct.pack("=I", 1)
        e.set(h, IP6, socket.IPV6_JOIN_GROUP, f.group() + one)
        e.set(h, IP6, socket.IPV6_LEAVE_GROUP, f.group() + one)
        for option in (JOIN, JOIN, JOIN_SOURCE, LEAVE_SOURCE, BLOCK, UNBLOCK, LEAVE, LEAVE):
            e.set(h, IP6, option, f.request(f.group(), f.source(1)))
        e.set(h, IP6, FILTER, f.filter(EXCLUDE, f.source(1)))
        e.set(h, IP6, JOIN, f.request(f.group()))
        e.set(h, IP6, FILTER, f.filter(EXCLUDE, f.source(1)))
        e.ask(h, IP6, FILTER, f.filter(7, f.source(9)))
        e.close(h)


def blocked_the_old_way(e):
    """IP_BLOCK_SOURCE, IP_UNBLOCK_SOURCE and IP_MSFILTER."""
    f, h = Family(False), e.make("c", DGRAM)
    own = socket.inet_aton(e.addresses["c"])

    def whole(mode, *sources, by=own, group=None, count=None):
        head = (group or f.group()) + by + struct.pack("=II", mode, len(sources) if count is None else count)
        return head + b"".join(sources)

    def told():
        for room in (3, 1, 0):
            e.ask(h, IP, FILTER4, whole(7, *[bytes(4)] * room))

    told()
    e.set(h, IP, BLOCK4, f.group() + own + f.source(1))
    e.set(h, IP, socket.IP_ADD_MEMBERSHIP, f.group() + own)
    told()
    for option, n in (
        (BLOCK4, 1), (BLOCK4, 1), (BLOCK4, 2), (UNBLOCK4, 3), (UNBLOCK4, 1), (BLOCK4, 3), (ADD_SOURCE, 4),
        (UNBLOCK4, 2), (UNBLOCK4, 3), (UNBLOCK4, 3), (DROP_SOURCE, 1), (BLOCK4, 4),
    ):  # fmt: skip
        e.set(h, IP, option, f.group() + own + f.source(n))
        told()
    for value in (
        whole(EXCLUDE), whole(INCLUDE, f.source(1)), whole(EXCLUDE, f.source(2), f.source(2)), whole(2),
        whole(INCLUDE, f.source(3), f.source(1), f.source(2)), whole(EXCLUDE, count=1), whole(EXCLUDE)[:15],
        whole(EXCLUDE, count=1 << 31), whole(EXCLUDE, count=99), whole(EXCLUDE, group=f.source(1)),
        whole(EXCLUDE, by=bytes([203, 0, 113, 9])), whole(EXCLUDE, group=f.group(2)),
        whole(INCLUDE, group=f.group(2)), whole(EXCLUDE, f.source(1)) + b"behind it",
    ):  # fmt: skip
        e.set(h, IP, FILTER4, value)
        told()
    for value in (
        whole(7)[:15], whole(7, group=f.source(1)), whole(7, by=bytes([203, 0, 113, 9])), b"",
        whole(7, group=f.group(2)),
    ):  # fmt: skip
        e.ask(h, IP, FILTER4, value)
    e.set(h, IP, BLOCK4, f.group() + own)
    e.set(h, IP, BLOCK4, f.group() + bytes([203, 0, 113, 9]) + f.source(1))
    e.set(h, IP, UNBLOCK4, f.source(1) + own + f.source(1))
    e.set(h, IP, FILTER4, whole(INCLUDE))
    told()


def lists_that_are_wrong(e):
    for six in (False, True) if e.flavour.size == 28 else (False,):
        f = Family(six)
        h = e.make("c", DGRAM)
        e.set(h, f.level, JOIN, f.request(f.group()))
        for value in (
            f.filter(2), f.filter(EXCLUDE, count=1), f.filter(EXCLUDE)[:-1], f.filter(EXCLUDE, count=99),
            f.filter(EXCLUDE, count=1 << 31), f.filter(EXCLUDE, link=NO_LINK),
            f.filter(EXCLUDE, group=f.source(1)),
            f.filter(EXCLUDE, group=f.group(2)), f.filter(INCLUDE, group=f.group(2)),
            f.filter(EXCLUDE, f.source(1), family=77), f.filter(2, family=77), b"",
            f.filter(EXCLUDE) + f.end(f.source(1), 77), f.filter(EXCLUDE, count=1) + f.end(f.source(1), 77),
            f.filter(EXCLUDE, f.source(1)) + b"behind it",
        ):  # fmt: skip
            e.set(h, f.level, FILTER, value)
            e.ask(h, f.level, FILTER, f.filter(7, bytes(len(f.group()))))
        for value in (
            f.filter(7)[:-1], f.filter(7, family=77), f.filter(7, group=f.source(1)),
            f.filter(7, link=NO_LINK), f.filter(7, link=0), f.filter(7, group=f.group(2)), b"",
        ):  # fmt: skip
            e.ask(h, f.level, FILTER, value)
        for option in (BLOCK, UNBLOCK):
            e.set(h, f.level, option, bytes(60))
            e.set(h, f.level, option, f.request(f.source(2), f.source(1)))
            e.set(h, f.level, option, f.request(f.group(), f.source(1), link=NO_LINK))
            e.set(h, f.level, option, f.request(f.group(3), f.source(1)))
            e.set(h, f.level, option, struct.pack("=I4x", 1) + bytes(256))


def groups_that_one_is_not_in(e):
    """IP_MULTICAST_ALL and IPV6_MULTICAST_ALL, as values."""
    for kind in (STREAM, DGRAM):
        h = e.make("c", kind)
        for level, option in ((IP, ALL4), (IP6, ALL6)) if e.flavour.size == 28 else ((IP, ALL4),):
            e.get(h, level, option)
            for value in (0, 1, 2, -1, 0, b"\1", b""):
                e.set(h, level, option, value)
                e.get(h, level, option)


def what_blocked_senders_reach(e):
    """One group: who blocks the sender, who blocks another, who unblocked it again; and who is in no group,
    with and without IP_MULTICAST_ALL. A mark tells that nothing else comes. Needs a link of its own."""
    six = e.flavour.family == socket.AF_INET6
    f = Family(six)
    by, every = (socket.IPV6_MULTICAST_IF, ALL6) if six else (socket.IP_MULTICAST_IF, ALL4)
    group = "ff35::1" if six else "239.1.1.1"
    sender = socket.inet_pton(f.family, e.addresses["c"])
    a = e.make("c", DGRAM)
    e.set(a, f.level, by, e.link("c") if six else bytes(8) + struct.pack("=i", e.link("c")))
    blocks, other, again, listed, out, deaf = [e.make("s", DGRAM) for _ in range(6)]
    for one in (blocks, other, again, listed, out, deaf):
        e.set(one, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        e.bind(one, e.at(e.flavour.any, 7000))
    link = e.link("s")
    for one in (blocks, other, again, listed):
        e.set(one, f.level, JOIN, f.request(f.group(), link=link))
    e.set(blocks, f.level, BLOCK, f.request(f.group(), sender, link=link))
    e.set(other, f.level, BLOCK, f.request(f.group(), f.source(9), link=link))
    e.set(again, f.level, BLOCK, f.request(f.group(), sender, link=link))
    e.set(again, f.level, UNBLOCK, f.request(f.group(), sender, link=link))
    e.set(listed, f.level, FILTER, f.filter(EXCLUDE, f.source(8), sender, link=link))
    e.set(deaf, f.level, every, 0)
    e.sendto(a, b"to members", e.at(group, 7000))
    e.set(deaf, f.level, every, 1)
    e.set(listed, f.level, FILTER, f.filter(INCLUDE, f.source(8), sender, link=link))
    e.sendto(a, b"to members, too", e.at(group, 7000))
    for one in (blocks, other, again, listed, out, deaf):
        e.set(one, f.level, LEAVE, f.request(f.group(), link=link))
    e.set(out, f.level, JOIN, f.request(f.group(2), link=link))
    marked = "ff35::2" if six else "239.1.1.2"
    e.sendto(a, b"mark", e.at(marked, 7000))
    for one in (blocks, other, again, listed, out, deaf):
        while True:
            e.until(one, IN)
            if e.read(one) == b"mark":
                break


FILTERS = [
    sources_in_every_order, sources_of_tcp, blocked_the_old_way, lists_that_are_wrong,
    groups_that_one_is_not_in,
]  # fmt: skip
FILTERS6 = [sources_in_every_order6, sources_of_tcp6, lists_that_are_wrong, groups_that_one_is_not_in]
