"""What wire and host may hold against a connection of ours: each a counted reason or a clear exception.

Frames are made by hand and put on the peer's end of the veth pair, beside a connection that goes on: it still
answers after each of them. The table is in ``cffi_build/cores/README.md``.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time

import pytest

from netns_tests.test_following import echo
from netns_tests.test_tcp_linux import KERNEL, OWN, SHARED, WAYS, accept_and, listener
from netns_tests.test_tcp_linux6 import KERNEL as KERNEL6
from netns_tests.test_tcp_linux6 import OWN as OWN6
from netns_tests.test_tcp_linux6 import SHARED as SHARED6
from netns_tests.test_tcp_linux6 import WAYS as WAYS6
from netns_tests.test_tcp_linux6 import listener as listener6
from netns_tests.test_tcp_linux6 import pair6 as pair6
from xdpstack import aio
from xdpstack import node as nodes

scapy = pytest.importorskip("scapy.all", reason="scapy writes the frames of this file")
Ether, IP, IPv6, TCP, ICMP, ARP, Raw = (
    getattr(scapy, name) for name in ("Ether", "IP", "IPv6", "TCP", "ICMP", "ARP", "Raw")
)
PATIENCE = 60.0
TIMES = 3


def mac(namespace, name):
    return dict(namespace.link(name)["attrs"])["IFLA_ADDRESS"]


class Beside:
    """A connection of ours to an echo of the kernel's, and a raw socket at the kernel's end of the wire."""

    def __init__(self, kernel, us, node, way, server):
        self.kernel, self.node, self.streams = kernel, node, node.streams()
        self.six = way.endswith("-v6")
        self.peer = KERNEL6 if self.six else KERNEL
        self.address = {"own": OWN, "shared": SHARED, "own-v6": OWN6, "shared-v6": SHARED6}[way]
        self.link = Ether(src=mac(kernel, "v0"), dst=mac(us, "t0"))
        self.raw = kernel.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.raw.bind(("v0", 3))
        self.raw.setblocking(False)
        self.connection = node.connect(self.peer, server.getsockname()[1], timeout=PATIENCE, no_stamps=1)
        self.connection.timeout = PATIENCE
        self.host = node.engine.hosts[0]
        self.seq = self.ack = 0
        self.talk(b"hello")

    def heard(self):
        """Every segment that was on the wire since the last call, as scapy reads it, with who sent it."""
        found = []
        while True:
            try:
                data, come = self.raw.recvfrom(65536)
            except BlockingIOError:
                return found
            frame = Ether(data)
            if TCP in frame:
                found.append((come[2] == socket.PACKET_OUTGOING, frame))

    def talk(self, text):
        """The echo answers: the connection goes on. Learns the numbers of the next byte each way."""
        self.heard()
        self.connection.write(text)
        assert self.connection.read_exactly(len(text)) == text
        self.connection.drain()
        ours = [frame for theirs, frame in self.heard() if not theirs and frame[TCP].sport == self.port]
        data = [frame for frame in ours if Raw in frame and bytes(frame[Raw]).endswith(text)][-1]
        self.ack = (data[TCP].seq + len(bytes(data[Raw]))) % 2**32
        self.seq = ours[-1][TCP].ack

    @property
    def port(self):
        return self.connection.local[1]

    def ip(self, **more):
        return self.link / (IPv6 if self.six else IP)(**({"src": self.peer, "dst": self.address} | more))

    def tcp(self, offset=0, **more):
        """A segment of the peer's, so many bytes behind what is next."""
        ends = {"sport": self.connection.remote[1], "dport": self.port, "flags": "A"}
        return TCP(**(ends | {"seq": (self.seq + offset) % 2**32, "ack": self.ack} | more))

    def with_options(self, options):
        """One whose options are these bytes, behind no-operations that fill them up."""
        options = options.rjust(-(-len(options) // 4) * 4, b"\x01")
        segment = bytes(self.tcp(dataofs=5 + len(options) // 4, chksum=0)) + options
        check = scapy.in4_chksum(6, IP(src=KERNEL, dst=self.address), segment)
        return self.ip(proto=6) / Raw(segment[:16] + struct.pack(">H", check) + segment[18:])

    def send(self, frame, times=TIMES):
        for _ in range(times):
            self.raw.send(bytes(frame))

    def until(self, done, what):
        self.streams.wait(done, PATIENCE, what)

    def count(self, where, reason):
        if where == "host":
            return self.host.stats()["reasons"].get(reason, 0)
        if where == "filter":
            return self.node.filters[0].counters().reasons[reason].packets
        if where == "stack":
            return self.streams.stats()["reasons"].get(reason, 0)
        if where == "streams":
            return self.streams.stats()[reason]
        info = self.connection.info()
        return info["reasons"].get(reason, 0) if where == "tcp" else info[reason]

    def counted(self, frame, where, reason, times=TIMES, others=False):
        """Each of them is counted so, and the connection goes on."""
        before = self.count(where, reason)
        self.send(frame, times)
        self.until(lambda: self.count(where, reason) >= before + times, f"{times} {reason} of {where}")
        if where != "filter" and not others:  # others: it sees the kernel's packets, too
            assert self.count(where, reason) == before + times
        assert self.connection.state == "established"


@pytest.fixture
def beside(request):
    way = getattr(request, "param", "own")
    six = way.endswith("-v6")
    kernel, us = request.getfixturevalue("pair6" if six else "lab_pair")
    options = WAYS6[way.removesuffix("-v6")] if six else WAYS[way]
    listening = listener6 if six else listener
    with us.enter(), nodes.open("xsk:t0", **options) as node, listening(kernel) as server:
        child = kernel.fork(accept_and, echo, server)
        one = Beside(kernel, us, node, way, server)
        yield one
        one.raw.close()
        child.kill()


both_ways = pytest.mark.parametrize("beside", list(WAYS), indirect=True)
over_ipv6 = pytest.mark.parametrize("beside", [f"{way}-v6" for way in WAYS], indirect=True)
every_way = pytest.mark.parametrize("beside", [*WAYS, *(f"{way}-v6" for way in WAYS)], indirect=True)


@both_ways
def test_damaged_packets_are_counted_by_what_is_wrong_and_disturb_nobody(beside):
    b, text = beside, Raw(b"damage")
    whole = bytes(b.ip() / b.tcp() / text)
    for frame, where, reason in (
        (b.ip(chksum=0x1234) / b.tcp() / text, "host", "ip_checksum"),
        (b.ip() / b.tcp(chksum=0x1234) / text, "host", "tcp_checksum"),
        (whole[:-1] + b"!", "host", "tcp_checksum"),
        (b.ip(ttl=0) / b.tcp() / text, "host", "ip_ttl"),
        (b.ip(ihl=4) / b.tcp() / text, "filter", "malformed"),
        (b.ip(len=10) / b.tcp() / text, "filter", "malformed"),
        (b.ip(len=30) / b.tcp() / text, "host", "tcp_checksum"),
        (b.ip(len=500) / b.tcp() / text, "host", "ip_truncated"),
        (whole[:-4], "host", "ip_truncated"),
        (b.ip(version=5) / b.tcp() / text, "filter", "malformed"),
        (b.ip() / b.tcp(dataofs=4) / text, "stack", "other"),
        (b.ip() / b.tcp(dataofs=15), "stack", "other"),
        (Ether(src=b.link.src, dst="02:00:00:00:00:99") / (b.ip() / b.tcp() / text)[IP], "host", "other_mac"),
    ):
        b.counted(frame, where, reason)
    b.talk(b"still here")


def test_options_that_cannot_be_are_counted_and_unknown_ones_are_passed_over(beside):
    b = beside
    for options in (
        b"\x08\x00",  # a length of nothing
        b"\x08\x01",  # less than what says so
        b"\x08\x0b",  # past the header
        b"\x01\x01\x05\xff",
        b"\x02\x04\x05",  # cut
    ):
        b.counted(b.with_options(options), "tcp", "options")
    unknown = b.tcp(options=[(253, b"what is this?"), ("NOP", None)], flags="PA")
    before = b.count("tcp", "options")
    b.raw.send(bytes(b.ip() / unknown / Raw(b"known")))
    assert b.connection.read_exactly(5) == b"known"
    assert b.count("tcp", "options") == before


@over_ipv6
def test_damaged_packets_of_ipv6_are_counted_by_what_is_wrong_and_disturb_nobody(beside):
    b, text = beside, Raw(b"damage")
    whole = bytes(b.ip() / b.tcp() / text)
    for frame, where, reason in (
        (b.ip() / b.tcp(chksum=0x1234) / text, "host", "tcp_checksum"),
        (whole[:-1] + b"!", "host", "tcp_checksum"),
        (b.ip(plen=22) / b.tcp() / text, "host", "tcp_checksum"),
        (b.ip(plen=500) / b.tcp() / text, "host", "ip_truncated"),
        (whole[:-4], "host", "ip_truncated"),
        (b.ip() / b.tcp(dataofs=4) / text, "stack", "other"),
        (b.ip() / b.tcp(dataofs=15), "stack", "other"),
        (
            Ether(src=b.link.src, dst="02:00:00:00:00:99") / (b.ip() / b.tcp() / text)[IPv6],
            "host",
            "other_mac",
        ),
    ):
        b.counted(frame, where, reason)
    b.talk(b"still here")


MARTIANS = ("224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0", "0.1.2.3", "240.0.0.1")
MARTIANS6 = ("ff02::1", "::1", "::")


@every_way
def test_martians_are_counted_and_never_answered(beside):
    b = beside
    b.heard()
    for source in (*(MARTIANS6 if b.six else MARTIANS), b.address):
        for segment in (b.tcp(), b.tcp(flags="S"), b.tcp(flags="R")):
            b.counted(b.ip(src=source) / segment, "host", "ip_source", 1)
    b.talk(b"nobody was answered but you")
    for theirs, frame in b.heard():
        assert theirs or frame[IPv6 if b.six else IP].dst == b.peer


def test_what_is_not_for_us_goes_on_to_the_kernel_and_a_closed_port_resets(beside):
    b = beside
    b.counted(b.ip(dst="10.77.0.77") / b.tcp(), "filter", "unmatched")
    b.heard()
    b.counted(b.ip() / b.tcp(dport=7, flags="S"), "stack", "no_connection")
    b.counted(b.ip() / b.tcp(dport=7, flags="RA"), "stack", "stray_reset")
    b.until(lambda: b.streams.stats()["resets"] >= TIMES, "resets")
    resets = [f for theirs, f in b.heard() if not theirs and f[TCP].sport == 7]
    assert [frame[TCP].flags for frame in resets] == ["RA"] * TIMES
    b.talk(b"and you go on")


@pytest.mark.rfc("5961", "3.2", "4.2", "5.2", "7")
@every_way
def test_who_guesses_resets_syns_and_acks_ends_nothing(beside):
    """RFC 5961: outside the window nothing happens, inside only what names the next byte."""
    b = beside
    window = b.connection.info()["receive_window"]
    for segment, where, reason in (
        (b.tcp(-1, flags="R"), "tcp", "window"),
        (b.tcp(window + 1, flags="R"), "tcp", "window"),
        (b.tcp(1, flags="R"), "tcp", "reset_bad"),
        (b.tcp(window - 1, flags="RA"), "tcp", "reset_bad"),
        (b.tcp(0, flags="S"), "tcp", "syn_bad"),
        (b.tcp(1 << 30, flags="S"), "tcp", "window"),
        (b.tcp(0, flags="SA"), "tcp", "syn_bad"),
        (b.tcp(0, ack=(b.ack + 1) % 2**32) / Raw(b"forged"), "tcp", "ack_bad"),
        (b.tcp(0, ack=(b.ack - (1 << 30)) % 2**32) / Raw(b"forged"), "tcp", "ack_bad"),
        (b.tcp(window, flags="PA") / Raw(b"forged"), "tcp", "window"),
        (b.tcp(-6, flags="PA") / Raw(b"forged"), "tcp", "window"),
        (b.tcp(0, flags="") / Raw(b"forged"), "tcp", "no_ack"),
    ):
        b.counted(b.ip() / segment, where, reason)
    b.talk(b"not one byte of it was taken")
    before = b.connection.info()
    b.counted(b.ip() / b.tcp(1, flags="R"), "tcp", "reset_bad", 100)
    info = b.connection.info()
    told, held = (info[name] - before[name] for name in ("challenges", "challenges_held"))
    assert told + held == 100
    assert held > 0, "ten challenges a second, and no more"
    b.talk(b"and still you are there")
    b.raw.send(bytes(b.ip() / b.tcp(0, flags="R")))
    with pytest.raises(ConnectionResetError, match="reset by peer"):
        b.connection.read()


@pytest.mark.rfc("9293", "MUST-54", "SHLD-25", "MUST-56")
@both_ways
def test_who_guesses_icmp_ends_nothing_and_lowers_nothing(beside):
    """RFC 5927: an error must name what is in flight; even then it ends no connection that is open."""
    b = beside

    def about(seq, *, kind=3, code=1, mtu=0, **more):
        quoted = IP(src=b.address, dst=KERNEL, proto=6) / bytes(
            TCP(sport=more.get("sport", b.port), dport=b.connection.remote[1], seq=seq % 2**32)
        )
        return b.ip(src="10.77.0.1") / ICMP(type=kind, code=code, nexthopmtu=mtu) / quoted

    mss = b.connection.info()["mss"]
    for frame in (
        about(b.ack),  # nothing is in flight: the next byte has not been sent
        about(b.ack - 100_000),
        about(b.ack + 1, code=3),
        about(b.ack + 1, code=4, mtu=576),
        about(b.ack - 1, kind=11, code=0),
    ):
        b.counted(frame, "streams", "errors_forged")
    if b.address == OWN:  # the filter sends us errors about our own flows alone
        b.counted(about(b.ack, sport=b.port ^ 1), "streams", "errors_stray")
    b.counted(about(b.ack, code=4, mtu=68), "streams", "errors_forged")
    b.talk(b"nothing was lost by it")
    assert b.connection.info()["mss"] == mss
    assert b.connection.info()["trouble"] == ""


def test_what_lies_in_more_pieces_than_can_be_noted_is_counted_and_comes_again(beside):
    b = beside
    b.heard()
    for hole in range(70):  # one byte of each two
        b.raw.send(bytes(b.ip() / b.tcp(1 + 2 * hole, flags="PA") / Raw(b"x")))
    b.until(lambda: b.connection.info()["reasons"].get("disordered", 0) == 6, "six that found no place")
    assert b.connection.info()["disordered"] == 64
    b.raw.send(bytes(b.ip() / b.tcp(0, flags="PA") / Raw(b"x" * 140)))
    assert b.connection.read_exactly(140) == b"x" * 140
    assert b.connection.state == "established"


def test_what_does_not_fit_the_buffer_is_refused_and_the_window_says_so(beside):
    b = beside
    room = b.connection.info()["receive_window"]
    sent = 0
    while sent < room:  # nobody reads
        piece = min(1400, room - sent)
        b.raw.send(bytes(b.ip() / b.tcp(sent, flags="PA") / Raw(b"y" * piece)))
        sent += piece
    b.until(lambda: b.connection.info()["unread"] == room, "a full buffer")
    assert b.connection.info()["receive_window"] == 0
    b.counted(b.ip() / b.tcp(room, flags="PA") / Raw(b"one more"), "tcp", "window", others=True)
    assert b.connection.read_exactly(room) == b"y" * room


# -- what the host has against it, told alike to who waits, who is called and who awaits


def blocking(node, host, port):
    node.connect(host, port, timeout=PATIENCE)


def called(node, host, port):
    streams = node.streams()
    connection = streams.open(host, port)
    told: list[int] = []
    connection.callback = told.append
    end = time.monotonic() + PATIENCE
    while not told:
        streams.turn(100)
        assert time.monotonic() < end
    try:
        connection.check()
    finally:
        connection.close()


def awaited(node, host, port):
    asyncio.run(asyncio.wait_for(aio.open_connection(node, host, port), PATIENCE))


FACES = {"blocking": blocking, "callback": called, "asyncio": awaited}


@pytest.mark.rfc("9293", "MUST-47")
@pytest.mark.parametrize(("way", "face"), [("own", "callback"), ("own", "asyncio"), ("shared", "blocking")])
def test_what_cannot_be_opened_raises_the_same_whoever_asks(make_pair, way, face):
    _, us = make_pair(neighbours=False)
    with us.enter(), nodes.open("xsk:t0", **WAYS[way]) as node:
        node.streams()
        for host, port, kind, number in (
            (KERNEL, 9, ConnectionRefusedError, errno.ECONNREFUSED),
            ("10.77.0.66", 80, OSError, errno.EHOSTUNREACH),
            ("198.51.100.1", 80, OSError, errno.ENETUNREACH),
        ):
            with pytest.raises(kind) as caught:
                FACES[face](node, host, port)
            assert caught.value.errno == number
            assert host in str(caught.value)
        assert node.streams().stats()["connections"] == 0
        if way == "shared":
            assert node.filters[0].rules == []
