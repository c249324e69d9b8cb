"""The page of options beside ``xds_sock.h``: each row, beside Linux, on all four kinds of socket; and what
some of them do."""

from __future__ import annotations

import errno
import re
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.tests.facade_driver import FLAVOURS, FOUR, SIX, Facade, Kernel
from xdpstack.tests.facade_scripts import DGRAM, IN, IP, SOL, STREAM, TCP
from xdpstack.tests.facade_scripts6 import IP6
from xdpstack.tests.host6_driver import S
from xdpstack.tests.test_facade import HAS_IPV6, assert_alike, wire

HEADERS = Path(__file__).resolve().parents[2] / "cffi_build" / "xds"
PAGE, HEADER = HEADERS / "xds_sock.md", HEADERS / "xds_sock.h"
LEVELS = {"socket": SOL, "tcp": TCP, "ip": IP, "ipv6": IP6, "udp": socket.IPPROTO_UDP}
NOBODYS = 9999
"""The number of no option."""
IP_BIND_ADDRESS_NO_PORT, IP_MTU, IP_MTU_DISCOVER, IPV6_MTU, IPV6_MTU_DISCOVER = 24, 14, 10, 24, 23
LINK = struct.pack("=I4x", 1)
GROUP4 = struct.pack("=HH4s120x", socket.AF_INET, 0, bytes([239, 1, 1, 1]))
GROUP6 = struct.pack("=HH4x16s104x", socket.AF_INET6, 0, b"\xff\x15" + bytes(13) + b"\1")
TIMES = ((2, 40_000), (0, 0), (-1, 0), (1, 1_000_000), (1, -1))


class Row(NamedTuple):
    manual: str
    name: str
    number: int
    set: str
    get: str

    @property
    def level(self) -> int:
        return LEVELS[self.manual]

    def __str__(self) -> str:
        return f"{self.manual}-{self.name}"


def rows() -> list[Row]:
    found, manual = [], ""
    for line in PAGE.read_text().splitlines():
        manual = m[1] if (m := re.match(r"## (\w+)\(7\)", line)) else manual
        if manual and (m := re.match(r"\| (\w+) \| (\d+) \| ([\w ]+) \| ([\w ]+) \|", line)):
            found.append(Row(manual, m[1], int(m[2]), m[3], m[4]))
    return found


ROWS = rows()
VALUES: dict[str, tuple[int | bytes, ...]] = {
    "SO_BINDTODEVICE": (b"", b"\0", b"nobody0\0"),
    "SO_LINGER": (struct.pack("ii", 1, 3), struct.pack("ii", 0, 0), 1),
    "SO_RCVTIMEO": tuple(struct.pack("=qq", *t) for t in TIMES),
    "TCP_CONGESTION": (b"reno", b"cubic", b"nothing", b""),
    "TCP_MAXSEG": (1000, 0, 87, 32_768),
    "TCP_USER_TIMEOUT": (30_000, 0, -1),
    "IP_MTU_DISCOVER": (2, 1, 6, -1, b"\2", b"\1"),
    "IPV6_MTU_DISCOVER": (2, 0, 1, 6, -1, b"\2"),
    "IPV6_MTU": (0, 1279, -1, b"\0"),
    "IP_OPTIONS": (b"", bytes(41)),
    "IP_MULTICAST_TTL": (1, 255, 256, -1),
    "IP_TTL": (1, 255, 0, 256, -1),
    "IPV6_MULTICAST_HOPS": (1, 255, 256, -1),
    "IPV6_UNICAST_HOPS": (1, 255, 256, -1),
    "IP_MULTICAST_IF": (bytes(4), bytes([203, 0, 113, 9]), bytes(8) + struct.pack("=i", 1)),
    "IP_ADD_MEMBERSHIP": (bytes([239, 1, 1, 1]) + bytes(4) + struct.pack("=i", 1), bytes(3)),
    "IP_ADD_SOURCE_MEMBERSHIP": (bytes([239, 1, 1, 1]) + bytes(4) + bytes([10, 7, 7, 1]), bytes(3)),
    "IP_MSFILTER": (bytes([239, 1, 1, 1]) + bytes(12), bytes(3)),
    "IPV6_JOIN_GROUP": (GROUP6[8:24] + struct.pack("=I", 1), bytes(3)),
    "IPV6_PKTINFO": (bytes(20), bytes(16) + struct.pack("=I", 1), bytes(3)),
    "ip-MCAST_JOIN_GROUP": (LINK + GROUP4, LINK),
    "ipv6-MCAST_JOIN_GROUP": (LINK + GROUP6, LINK),
    "ip-MCAST_JOIN_SOURCE_GROUP": (LINK + GROUP4 + GROUP4.replace(b"\xef", b"\x0a"), LINK),
    "ipv6-MCAST_JOIN_SOURCE_GROUP": (LINK + GROUP6 + GROUP6.replace(b"\xff\x15", b"\x20\x01"), LINK),
    "ip-MCAST_MSFILTER": (LINK + GROUP4 + bytes(8), LINK),
    "ipv6-MCAST_MSFILTER": (LINK + GROUP6 + bytes(8), LINK),
}
"""What is set; of others 1, 0 and -1."""
LIKE = {
    "SO_SNDTIMEO": "SO_RCVTIMEO",
    "IP_DROP_MEMBERSHIP": "IP_ADD_MEMBERSHIP",
    **dict.fromkeys(
        ("IP_DROP_SOURCE_MEMBERSHIP", "IP_BLOCK_SOURCE", "IP_UNBLOCK_SOURCE"), "IP_ADD_SOURCE_MEMBERSHIP"
    ),
    "IPV6_LEAVE_GROUP": "IPV6_JOIN_GROUP",
    "MCAST_LEAVE_GROUP": "MCAST_JOIN_GROUP",
    **dict.fromkeys(
        ("MCAST_LEAVE_SOURCE_GROUP", "MCAST_BLOCK_SOURCE", "MCAST_UNBLOCK_SOURCE"), "MCAST_JOIN_SOURCE_GROUP"
    ),
}
PART: dict[str, tuple[int | bytes, ...]] = {
    "TCP_CONGESTION": (),
    "IP_MTU_DISCOVER": (0, 3, 4, 5),
    "IP_MULTICAST_TTL": (0,),
    "IP_OPTIONS": (bytes(4), b"\1\1\1\0"),
    "IPV6_MTU": (1280, 1500),
    "IPV6_MTU_DISCOVER": (3, 4, 5),
    "IPV6_MULTICAST_HOPS": (0,),
    "IPV6_UNICAST_HOPS": (0,),
}
"""Of what is kept in part: values that Linux takes, where it is an option of the socket at all."""


def values_of(row: Row) -> tuple[int | bytes, ...]:
    name = LIKE.get(row.name, row.name)
    return VALUES.get(f"{row.manual}-{name}", VALUES.get(name, (1, 0, -1)))


def put(e, h, level, option, value) -> int:
    data = value if isinstance(value, bytes) else struct.pack("=i", value)
    return e.raw("setsockopt", h.side, h.fd, level, option, data, len(data))


def ask(e, h, level, option, size=16) -> int | bytes:
    room, length = bytearray(256), bytearray(struct.pack("=I", size))
    code = e.raw("getsockopt", h.side, h.fd, level, option, room, length)
    return code or bytes(room[: struct.unpack("=I", length)[0]])


def kinds(make, flavours=(FOUR, SIX)):
    """A socket of each kind, and whose it is."""
    for flavour in flavours:
        e = make(flavour)
        yield from ((e, e.make("c", kind)) for kind in (STREAM, DGRAM))
        e.close_all()


VARIES = {"TCP_CONGESTION"}
"""What a socket has at first is the host's to say."""
FAMILIES = (FOUR, SIX) if HAS_IPV6 else (FOUR,)


def told(row: Row, make) -> list[list[object]]:
    """All that each kind of socket says of it, but for what is refused."""
    found = []
    for e, h in kinds(make, FAMILIES):
        said: list[object] = []
        for value in values_of(row):
            if row.set != "refused":
                said.append(("set", value, put(e, h, row.level, row.number, value)))
            if row.get != "refused":
                got = ask(e, h, row.level, row.number)
                said.append("some value" if row.get == "own" and isinstance(got, bytes) else got)
        found.append(said)
    return found


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_an_option_does_what_the_page_says(row):
    assert told(row, Facade) == told(row, Kernel)
    for e, h in kinds(Facade):
        if row.set == "refused":
            code = put(e, h, row.level, row.number, 1)
            assert code == put(e, h, row.level, NOBODYS, 1) == -errno.ENOPROTOOPT
        if row.get == "refused":
            assert ask(e, h, row.level, row.number) == ask(e, h, row.level, NOBODYS)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name not in VARIES and row.get == "as Linux"], ids=str
)
def test_an_option_begins_as_on_linux(row):
    both = zip(kinds(Facade, FAMILIES), kinds(Kernel, FAMILIES), strict=True)
    for (ours, mine), (linux, theirs) in both:
        assert ask(ours, mine, row.level, row.number) == ask(linux, theirs, row.level, row.number)


@pytest.mark.parametrize("row", [row for row in ROWS if row.set == "in part"], ids=str)
def test_what_is_refused_of_an_option_that_is_kept_in_part_linux_takes(row):
    assert row.name in PART, "which values are refused"
    both = zip(kinds(Facade, FAMILIES), kinds(Kernel, FAMILIES), strict=True)
    for (ours, mine), (linux, theirs) in both:
        before = ask(ours, mine, row.level, row.number)
        for value in PART[row.name]:
            if put(linux, theirs, row.level, row.number, value) == 0:
                assert put(ours, mine, row.level, row.number, value) == -errno.ENOPROTOOPT
        assert ask(ours, mine, row.level, row.number) == before


def test_the_page_names_each_option_once_by_its_number_and_so_does_the_header():
    header = re.sub(r"[\s*]+", " ", HEADER.read_text())
    words = set(re.findall(r"\b(?:SO|TCP|IP|IPV6|UDP|MCAST)_[A-Z0-9_]+\b", header.split("SOL_SOCKET:")[1]))
    kept = {row.name for row in ROWS if row.set != "refused" or row.get != "refused"}
    keeps = {row.name for row in ROWS if {row.set, row.get} & {"own", "in part"}} | {
        row.name for row in ROWS if "as Linux" in (row.set, row.get) and "refused" not in (row.set, row.get)
    }
    assert len({(row.level, row.name) for row in ROWS}) == len(ROWS) > 120
    assert keeps <= words, "the header has what is kept"
    assert words <= kept, "and nothing else"
    for row in ROWS:
        assert getattr(socket, row.name, row.number) == row.number, row
        assert row.set in ("as Linux", "own", "in part", "refused"), row
        assert row.get in ("as Linux", "own", "refused"), row


def test_what_usual_programs_set_is_on_the_page_and_what_is_refused_of_it_is_said():
    by_name = {row.name: row for row in ROWS}
    section = PAGE.read_text().split("## Usual programs")[1].split("\n## ")[0]
    lines = re.findall(r"^\| ([a-z0-9, ]+) \| (.*) \| (.*)\|$", section, re.M)[1:]
    assert [line[0] for line in lines] == ["curl", "nginx", "iperf3", "ssh, sshd", "redis"]
    for program, options, refused in lines:
        parts = [part.strip() for part in re.split(r"[,;]|(?<=[A-Z]) and ", options)]
        for part in parts:
            name = re.search(r"\b[A-Z][A-Z_0-9]{5,}\b", part)[0]
            reads = "to be read" in options[options.index(part) :].split(",")[0].split(";")[0]
            verdict = by_name[name].get if reads or name in ("SO_ERROR", "TCP_INFO") else by_name[name].set
            assert (verdict == "refused") == (name in refused and not reads), (program, part)


# ---- what they do --------------------------------------------------------------------------------------


def a_port_that_is_chosen_late(e):
    _, name = e.listener()
    for kind in (STREAM, DGRAM):
        h = e.make("c", kind)
        e.set(h, IP, IP_BIND_ADDRESS_NO_PORT, 1)
        for _ in range(2):  # it is not in use by that
            e.bind(h)
            e.name(h)
        e.connect(h, name)
        e.name(h)
        e.bind(h)
        e.connect(h, bytes(16))  # of TCP, Linux shows the port that was until the next
        e.bind(h)
        e.name(h)
        other = e.make("c", kind)
        e.set(other, IP, IP_BIND_ADDRESS_NO_PORT, 1)
        e.bind(other)
        if kind == STREAM:
            e.listen(other)
        else:
            e.sendto(other, b"to nobody", e.at("s", 9))
        e.name(other)
        e.bind(e.make("c", kind))


def the_path_of_who_has_a_peer(e):
    options = [(IP, IP_MTU)] + ([(IP6, IPV6_MTU)] if e.flavour.family == socket.AF_INET6 else [])

    def path(h):
        for level, option in options:
            said = ask(e, h, level, option)
            e.note("path", said if isinstance(said, int) else struct.unpack("=i", said)[0] >= 1280)

    h, name = e.listener()
    path(h)
    for kind in (STREAM, DGRAM):
        c = e.make("c", kind)
        path(c)
        e.bind(c)
        path(c)
        e.connect(c, name)
        path(c)
        if kind == STREAM:
            e.until(h, IN)
            path(e.accept(h))
        e.connect(c, bytes(16))
        path(c)
        if kind == DGRAM:
            e.sendto(c, b"", name)
            path(c)


def what_else_is_inherited(e):
    h, name = e.listener()
    six = e.flavour.family == socket.AF_INET6
    settings = [(SOL, socket.SO_BROADCAST, 1), (IP, IP_BIND_ADDRESS_NO_PORT, 1), (IP, IP_MTU_DISCOVER, 2)]
    settings += [(IP6, IPV6_MTU_DISCOVER, 2), (IP6, socket.IPV6_DONTFRAG, 1)] if six else []
    settings += [(SOL, option, struct.pack("=qq", 3, 40_000)) for option in (20, 21)]
    for setting in settings:
        e.set(h, *setting)
    c = e.make("c")
    e.connect(c, name)
    e.until(h, IN)
    s = e.accept(h)
    for one in (h, s, c):
        for level, option, _ in settings:
            e.get(one, level, option, 16)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "script",
    [a_port_that_is_chosen_late, the_path_of_who_has_a_peer, what_else_is_inherited],
    ids=lambda script: script.__name__,
)
def test_calls_give_what_a_kernel_socket_gives(script, flavour):
    if flavour != "v4" and not HAS_IPV6:
        pytest.skip("this host has no ::1")
    assert_alike(script, FLAVOURS[flavour])


def test_the_path_is_that_of_the_peer():
    for flavour, level, option in ((FOUR, IP, IP_MTU), (SIX, IP6, IPV6_MTU)):
        e = Facade(flavour)
        c, s, _ = e.pair()
        assert [ask(e, h, level, option, 4) for h in (c, s)] == [struct.pack("=i", 1500)] * 2


def test_what_goes_to_a_group_comes_from_the_address_of_the_interface():
    e = Facade(FOUR, lossless=False)
    second = bytes([10, 0, 0, 77])
    own = ffi.new("uint8_t[16]", bytes(10) + b"\xff\xff" + second)
    assert lib.xds_host_add_address6(e.hosts["c"].core, own, 24) == 0
    a, group = e.make("c", DGRAM), e.at("239.1.1.1", 7000)

    def source():
        assert e.sendto(a, b"to all", group) == 6
        return wire(e, "c", "s")[S.IP4].src

    assert source() == "10.0.0.1"
    for value, want in ((second, "10.0.0.77"), (bytes(4), "10.0.0.1"), (bytes(4) + second, "10.0.0.77")):
        assert e.set(a, IP, socket.IP_MULTICAST_IF, value) == 0
        assert source() == want
        assert ask(e, a, IP, socket.IP_MULTICAST_IF, 4) == (second if want[-1] == "7" else bytes(4))
    assert e.sendto(a, b"to one", e.at("s", 9)) == 6
    assert wire(e, "c", "s")[S.IP4].src == "10.0.0.1", "to groups alone"
    e.connect(a, group)
    assert e.name(a)[4:8] == second
    foreign = bytes(4) + bytes([10, 7, 7, 7]) + struct.pack("=i", 1)
    b = e.make("c", DGRAM)
    assert e.set(b, IP, socket.IP_MULTICAST_IF, foreign) == 0, "its link is ours"
    assert e.sendto(b, b"to all", group) == -errno.ENETUNREACH


def test_an_ack_waits_where_it_need_not_be_quick_and_goes_when_it_need():
    e = Facade(lossless=False)
    h, name = e.listener()
    c = e.make("c")
    e.connect(c, name)
    e.carry()
    s = e.accept(h)
    e.set(c, TCP, socket.TCP_NODELAY, 1)

    def answered():
        """What the server has to say of bytes that it was sent."""
        e.write(c, b"bytes")
        wire(e, "c", "s")
        f = ffi.new("struct xds_frame *", {"data": e._room, "len": 2048})
        return lib.xds_socks_output(e.socks["s"], f, e.now)

    assert answered() > 0
    assert e.set(s, TCP, socket.TCP_QUICKACK, 0) == 0
    assert answered() == 0
    assert lib.xds_socks_deadline(e.socks["s"]) <= e.now + 40_000_000
    assert e.set(s, TCP, socket.TCP_QUICKACK, 1) == 0
    assert wire(e, "s", "c")[S.TCP].flags == "A", "the one that waited"
    assert answered() > 0


def test_bytes_wait_for_no_timeout():
    e = Facade()
    c, _, _ = e.pair()
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO) if hasattr(socket, "SO_RCVTIMEO") else (20, 21):
        assert e.set(c, SOL, option, struct.pack("=qq", 60, 0)) == 0
    assert e.raw("read", "c", c.fd, bytearray(9), 9) == -errno.EAGAIN


def bytes_are_corked(e):
    """What waits goes with what follows, with the cork, or with the end."""
    c, s, h = e.pair()
    e.set(c, TCP, socket.TCP_CORK, 1)
    for option in (socket.TCP_CORK, socket.TCP_NODELAY):
        e.get(c, TCP, option)
    for data in (b"a short one", bytes(3000), b"and the rest"):
        e.write(c, data)
    e.set(c, TCP, socket.TCP_CORK, 0)
    e.get(c, TCP, socket.TCP_CORK)
    e.take(s, 3023)
    e.set(c, TCP, socket.TCP_CORK, 1)
    e.write(c, b"the last ones")
    e.shutdown(c, socket.SHUT_WR)
    e.take(s, 13)
    e.until(s, IN)
    e.read(s)
    e.set(h, TCP, socket.TCP_CORK, 1)
    again = e.make("c")
    e.set(again, TCP, socket.TCP_CORK, 1)
    e.connect(again, e.name(h))
    e.until(h, IN)
    for one in (again, e.accept(h)):
        for option in (socket.TCP_CORK, socket.TCP_NODELAY):
            e.get(one, TCP, option)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_corked_bytes_come_as_from_a_kernel_socket(flavour):
    if flavour != "v4" and not HAS_IPV6:
        pytest.skip("this host has no ::1")
    assert_alike(bytes_are_corked, FLAVOURS[flavour])


@pytest.mark.parametrize("nodelay", [0, 1])
def test_a_short_segment_waits_under_a_cork_and_no_longer_than_that(nodelay):
    e = Facade()
    c, s, _ = e.pair()
    e.set(c, TCP, socket.TCP_NODELAY, nodelay)
    e.set(c, TCP, socket.TCP_CORK, 1)
    e.write(c, b"short")
    assert e.read(s) is None
    e.later(0.1)
    assert e.read(s) is None
    e.write(c, bytes(2000))
    assert len(e.read(s)) == 1448, "a segment is full"
    e.set(c, TCP, socket.TCP_CORK, 0)
    assert len(e.read(s)) == 557
    e.set(c, TCP, socket.TCP_CORK, 1)
    for _ in range(3):
        e.write(c, b"waits")
        assert e.read(s) is None
        e.later(1.1)
        assert e.read(s) == b"waits", "a timeout, and no more"
    e.write(c, b"waits")
    e.set(c, TCP, socket.TCP_NODELAY, 1)
    assert e.read(s) == b"waits", "told to go, in spite of the cork"
    e.write(c, b"the end")
    assert e.read(s) is None
    e.close(c)
    assert e.read(s) == b"the end"


def test_a_peer_that_is_gone_ends_a_corked_connection_by_the_user_timeout_alone():
    e = Facade()
    c, s, _ = e.pair()
    e.set(c, TCP, socket.TCP_USER_TIMEOUT, 5000)
    e.set(c, TCP, socket.TCP_CORK, 1)
    for _ in range(20):  # of waiting, not of trouble
        e.write(c, b"waits")
        e.later(2)
        assert e.read(s) == b"waits"
    e.lossless = False
    e.write(c, b"lost")
    for _ in range(150):
        e.later(0.1)
        e.carry(drop=True)
    assert e.write(c, b"x") == -errno.ETIMEDOUT
