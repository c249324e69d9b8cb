"""cores/host against Linux over IPv6: datagrams both ways, whole and in pieces, neighbours, errors, MLD."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable

import pytest

from netns_tests.test_tcp_linux6 import own
from xdpstack._ffi import lib
from xdpstack.lab import Namespace
from xdpstack.tests.host6_driver import GROUP, Host6, S, raw
from xdpstack.tests.host_driver import raw_mac

OURS, KERNEL = "2001:db8:77::9", "2001:db8:77::1"
PATIENCE = 60.0


class Wired6:
    """A host core on a packet socket: an address of its own, of which the kernel there knows nothing."""

    def __init__(self, namespace: Namespace, name: str, **settings) -> None:
        with namespace.enter():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind((name, 0))
        self.host = Host6(addresses=(f"{OURS}/64", "fe80::9/64"), **settings)
        lib.xds_host_set_mac(self.host.h, raw_mac(namespace.link(name).get_attr("IFLA_ADDRESS")))
        self.last = b""

    def run(self, done: Callable[[], bool], take: Callable[[int, object], None] = lambda code, what: None):
        """Frames in, answers out, until done() holds; each outcome to ``take``."""
        until = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < until, f"nothing came of it: {self.host.reasons()}"
            now = time.time_ns()
            for frame in self.host.tick(now):
                self.socket.send(bytes(frame))
            if not select.select([self.socket], [], [], 0.02)[0]:
                continue
            data, (_, _, kind, *_) = self.socket.recvfrom(65536)
            if kind != socket.PACKET_OUTGOING:
                self.last = data
                take(*self.host.take(data, now))
                lib.xds_host_release(self.host.h)

    def send(self, payload: bytes, port: int) -> None:
        code, frame = self.host.udp6(payload, KERNEL, dport=port, now=time.time_ns())
        assert code >= 0
        if frame is not None:
            self.socket.send(bytes(frame))


@pytest.fixture
def wired6(make_lab):
    opened = []

    def make(**settings) -> tuple[Wired6, Namespace]:
        lab = make_lab(ipv6=True)
        peer, ours = lab.namespace("peer"), lab.namespace("ours")
        lab.veth(peer, "p0", None, ours, "o0", None)
        own(peer, "p0", KERNEL)
        opened.append(Wired6(ours, "o0", **settings))
        return opened[-1], peer

    yield make
    for wired in opened:
        wired.socket.close()


def bound(peer: Namespace) -> socket.socket:
    with peer.enter():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind((KERNEL, 0))
    sock.setblocking(False)
    return sock


def test_the_kernel_takes_our_datagrams_and_we_take_its_own_in_pieces_too(wired6):
    w, peer = wired6(fragments=2)
    with bound(peer) as sock:
        w.send(b"hello", sock.getsockname()[1])
        w.run(lambda: bool(select.select([sock], [], [], 0)[0]))
        data, (address, source, *_) = sock.recvfrom(2048)
        assert (data, address, source) == (b"hello", OURS, 4000)
        port = sock.getsockname()[1]
        for size in (0, 1, 1452, 1453, 9000, 60_000):
            got: list[tuple] = []
            payload = bytes(n & 255 for n in range(size))
            sock.sendto(payload, (OURS, 7))
            w.run(lambda: bool(got), lambda code, what: got.append(what) if code == 4 else None)  # noqa: B023
            same = got[0][0] == payload
            assert same, f"{size} bytes sent, {len(got[0][0])} other ones came"
            assert got[0][1:5] == (raw(KERNEL), port, raw(OURS), 7)
    stats = w.host.stats
    assert stats.reassembled == 3
    assert stats.ndp_learned >= 1, "the kernel answered"


def test_errors_reach_who_sent_what_they_are_about(wired6):
    w, peer = wired6()
    with bound(peer) as sock:
        closed = sock.getsockname()[1]
    w.send(b"x", closed)
    w.run(lambda: w.host.stats.udp_refused == 1)
    with bound(peer) as sock:
        sock.connect((OURS, 9))
        sock.send(b"x")
        w.run(lambda: w.host.reasons().get("datagram6", 0) == 1)
        assert w.host.unreachable(w.last, now=time.time_ns()) == 1
        w.run(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED)


def test_our_address_is_found_free_and_then_kept(wired6):
    w, peer = wired6()
    assert lib.xds_host_claim6(w.host.h, raw(OURS), 50_000_000, time.time_ns()) == 0
    w.run(lambda: w.host.stats.ndp_announced == 2)
    with peer.netlink() as route:
        index = route.link_lookup(ifname="p0")[0]
        route.addr("add", index=index, address=OURS, prefixlen=64, family=socket.AF_INET6)

        def refused() -> bool:
            (entry,) = (e for e in route.get_addr(index=index) if e.get_attr("IFA_ADDRESS") == OURS)
            return bool(int(entry.get_attr("IFA_FLAGS")) & 0x08)  # IFA_F_DADFAILED

        w.run(refused)
    assert w.host.stats.ndp_answered + w.host.stats.arp_conflicts >= 1


def test_the_kernels_reports_are_understood_and_a_group_reaches_us(wired6):
    w, peer = wired6(flags=lib.XDS_HOST_REPORTS, group=None)
    assert lib.xds_host_join6(w.host.h, raw("ff02::16")) == 0  # as a router would
    with bound(peer) as sock:
        index = peer.link("p0")["index"]
        sock.setsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, raw("ff05::77") + index.to_bytes(4, "little")
        )
        w.run(lambda: w.host.reasons().get("mld", 0) >= 1)
        assert S.ICMPv6MLReport2 in S.Ether(w.last)
        assert lib.xds_host_join6(w.host.h, raw(GROUP)) == 0
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.sendto(b"to all", (GROUP, 7))
        w.run(lambda: w.host.reasons().get("datagram6", 0) == 1)
    assert w.host.stats.mld_reports >= 2
