"""An address of a port's own on a real link: the link-local one beside it, reports to a querier, a router."""

from __future__ import annotations

import os
import socket
import time

import pytest

from netns_tests.test_tcp_linux6 import KERNEL, OWN, PATIENCE, own, ping
from xdpstack import node as nodes
from xdpstack.lab import Lab
from xdpstack.port import Subscription
from xdpstack.tests.host6_driver import S

BESIDE, ROUTER, PREFIX, FAR = "fe80::9", "fe80::fe", "2001:db8:99::", "2001:db8:ffff::1"
ETH_ALL = 3
GROUP, GROUP4 = "ff15::77:1", "239.77.0.1"


@pytest.fixture(scope="module")
def wired():
    """(the kernel's namespace, ours): addresses of both families at the kernel's end, none at ours."""
    with Lab(f"t{os.getpid()}-own", ipv6=True) as lab:
        kernel, mine = lab.namespace("venue"), lab.namespace("trader")
        lab.veth(kernel, "v0", "10.77.0.1/24", mine, "t0", None)
        own(kernel, "v0", KERNEL)
        yield kernel, mine


class Wire:
    """The kernel's end of the link, frame by frame."""

    def __init__(self, kernel) -> None:
        self.socket = kernel.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
        self.socket.bind(("v0", 0))
        self.socket.setblocking(False)
        self.mac = kernel.link("v0").get_attr("IFLA_ADDRESS")

    def send(self, packet) -> None:
        self.socket.send(bytes(S.Ether(src=self.mac, dst=packet[0]) / packet[1]))

    def until(self, node, wanted):
        """The first frame that ``wanted`` gives something for, while the node turns."""
        end, found = time.monotonic() + PATIENCE, []

        def look() -> bool:
            while not found:
                try:
                    frame = S.Ether(self.socket.recv(65536))
                except BlockingIOError:
                    break
                if (what := wanted(frame)) is not None:
                    found.append(what)
            return bool(found) or time.monotonic() > end

        list(node.run(idle=look, spins=100))
        assert found, "it came"
        return found[0]

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()


def until(node, done) -> None:
    end = time.monotonic() + PATIENCE
    list(node.run(idle=lambda: done() or time.monotonic() > end, spins=100))
    assert done()


def claimed(node, address: str) -> str:
    return node.engine.hosts[0].claimed(address)[0]


def test_the_link_local_address_beside_it_is_found_and_pinged(wired):
    kernel, mine = wired
    with mine.enter(), nodes.open("xsk:t0", address=f"{OWN}/64") as node:
        node.build()
        until(node, lambda: claimed(node, BESIDE) == "owned" and claimed(node, OWN) == "owned")
        child = kernel.fork(ping, f"{BESIDE}%v0", 3)
        until(node, lambda: child.poll() is not None)
        assert child.wait(PATIENCE) == 0
        assert node.engine.hosts[0].stats()["echo_answered"] == 3


def test_who_has_the_link_local_one_keeps_it_and_the_configured_one_is_used(wired):
    kernel, mine = wired
    own(kernel, "v0", BESIDE)
    try:
        with mine.enter(), nodes.open("xsk:t0", address=f"{OWN}/64", probe_ms=500) as node:
            node.build()
            until(node, lambda: claimed(node, OWN) == "owned" and claimed(node, BESIDE) == "taken")
            with pytest.raises(OSError, match=f"address {BESIDE} is in use by"):
                node.connect("fe80::1234", 9, timeout=PATIENCE)
            with pytest.raises(ConnectionRefusedError):
                node.connect(KERNEL, 9, timeout=PATIENCE)
    finally:
        with kernel.netlink() as route:
            index = route.link_lookup(ifname="v0")[0]
            route.addr("del", index=index, address=BESIDE, prefixlen=64, family=socket.AF_INET6)


def query6():
    head = S.IPv6(src="fe80::1", dst="ff02::1", hlim=1) / S.IPv6ExtHdrHopByHop(options=[S.RouterAlert()])
    return "33:33:00:00:00:01", head / S.ICMPv6MLQuery2(mladdr="::", mrd=100)


def query4():
    alert = b"\x94\x04\x00\x00"
    body = b"\x11\x01\xee\xfe\x00\x00\x00\x00"  # a general query of version 2, 0.1 s
    head = S.IP4(src="10.77.0.1", dst="224.0.0.1", ttl=1, proto=2, options=alert)
    return "01:00:5e:00:00:01", head / S.Raw(body)


def test_groups_are_reported_from_an_address_of_our_own(wired):
    """At once by what says that they are joined; and when somebody asks."""
    kernel, mine = wired
    with mine.enter(), Wire(kernel) as wire, nodes.open("xsk:t0", address=f"{OWN}/64", reports=True) as node:
        node.feed("plain", groups=[f"[{GROUP}]:5000"])
        node.build()

        def record(kind: int):
            def of(frame):
                if S.ICMPv6MLReport2 not in frame or frame[S.IPv6].src != BESIDE:
                    return None
                said = [r for r in frame[S.ICMPv6MLReport2].records if r.dst == GROUP and r.rtype == kind]
                return frame if said else None

            return of

        until(node, lambda: claimed(node, BESIDE) == "owned")
        wire.until(node, record(4))
        wire.send(query6())
        wire.until(node, record(2))
        stats = node.engine.hosts[0].stats()
        assert stats["mld_queries"] == 1
        assert stats["mld_reports"] >= 2


def test_sources_are_reported_by_igmp_and_an_older_querier_is_answered_in_its_own_words(wired):
    kernel, mine = wired
    own4 = "10.77.0.9"
    line = f"{GROUP4}:5000@10.77.0.1"
    with mine.enter(), Wire(kernel) as wire, nodes.open("xsk:t0", address=f"{own4}/24", reports=True) as node:
        node.feed("plain", groups=[line])
        node.build()

        def igmp(kind: int):
            def of(frame):
                if S.IP4 not in frame or frame[S.IP4].src != own4 or frame[S.IP4].proto != 2:
                    return None
                body = bytes(frame[S.IP4].payload)
                return body if body[0] == kind else None

            return of

        until(node, lambda: claimed(node, own4) == "owned")
        body = wire.until(node, igmp(0x22))
        group = socket.inet_aton(GROUP4)
        assert body[8:20] == b"\x05\0\0\x01" + group + socket.inet_aton("10.77.0.1"), "allow one source"
        wire.send(query4())
        assert wire.until(node, igmp(0x16))[4:8] == group
        assert node.engine.hosts[0].stats()["igmp_queries"] == 1


def advertisement(mac: str):
    head = S.IPv6(src=ROUTER, dst="ff02::1", hlim=255) / S.ICMPv6ND_RA(routerlifetime=1800, chlim=33)
    prefix = S.ICMPv6NDOptPrefixInfo(prefix=PREFIX, prefixlen=64, L=1, A=0)
    return "33:33:00:00:00:01", head / S.ICMPv6NDOptSrcLLAddr(lladdr=mac) / prefix


def test_a_routers_word_is_taken_where_that_is_wanted(wired):
    kernel, mine = wired
    with mine.enter(), Wire(kernel) as wire, nodes.open("xsk:t0", address=f"{OWN}/64", routers=True) as node:
        node.build()
        until(node, lambda: claimed(node, OWN) == "owned")
        host = node.engine.hosts[0]
        with pytest.raises(ValueError, match="foreign"):
            node.engine.send(b"no way", Subscription(address=FAR, port=9), sport=4000)
        wire.send(advertisement(wire.mac))
        until(node, lambda: host.stats()["routers_heard"] == 1)
        node.engine.send(b"far away", Subscription(address=FAR, port=9), sport=4000)
        frame = wire.until(node, lambda f: f if S.UDP in f and S.IPv6 in f else None)
        assert (frame.dst, frame[S.IPv6].src, frame[S.IPv6].dst, frame[S.IPv6].hlim) == (
            wire.mac,
            OWN,
            FAR,
            33,
        )


def test_a_routers_word_is_the_kernels_business_where_nothing_is_said(wired):
    kernel, mine = wired
    with mine.enter(), Wire(kernel) as wire, nodes.open("xsk:t0", address=f"{OWN}/64") as node:
        node.build()
        until(node, lambda: claimed(node, OWN) == "owned")
        wire.send(advertisement(wire.mac))
        child = kernel.fork(ping, OWN, 2)
        until(node, lambda: child.poll() is not None)
        assert child.wait(PATIENCE) == 0
        stats = node.engine.hosts[0].stats()
        assert stats["routers_heard"] == stats["routers_asked"] == 0
        assert not any("icmp6" in str(rule) for rule in node.filters[0].rules)
