"""IPv6 with Linux as the peer: TCP both ways over an address of our own and over the kernel's, neighbours
both ways, ping, conflicts, and a router in the middle whose next link takes less."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

import pytest

from netns_tests.test_tcp_linux import (
    PATIENCE,
    a_thousand_at_once,
    a_thousand_of_the_kernels,
    accept_and,
    kernels_one_after_another,
    no_resets_by_the_kernel,
    one_after_another,
    texts_from,
    texts_to,
)
from xdpstack import node as nodes
from xdpstack.errors import ConfigError
from xdpstack.lab import Namespace

KERNEL, SHARED, OWN, FAR = "2001:db8:77::1", "2001:db8:77::2", "2001:db8:77::9", "2001:db8:78::1"
WAYS = {"own": {"address": f"{OWN}/64"}, "shared": {}}
NODAD = 0x02

both_ways = pytest.mark.parametrize("way", WAYS, indirect=True)


def own(ns: Namespace, link: str, address: str, prefix: int = 64) -> None:
    with ns.netlink() as route:
        index = route.link_lookup(ifname=link)[0]
        route.addr("add", index=index, address=address, prefixlen=prefix, family=socket.AF_INET6, flags=NODAD)


@pytest.fixture
def pair6(make_lab) -> tuple[Namespace, Namespace]:
    lab = make_lab(ipv6=True)
    kernel, mine = lab.namespace("venue"), lab.namespace("trader")
    lab.veth(kernel, "v0", None, mine, "t0", None)
    own(kernel, "v0", KERNEL)
    own(mine, "t0", SHARED)
    return kernel, mine


@pytest.fixture
def way(request):
    return getattr(request, "param", "own")


@pytest.fixture
def wired(pair6, way):
    """(the kernel's namespace, the node, our address, our namespace)."""
    kernel, mine = pair6
    with mine.enter(), nodes.open("xsk:t0", **WAYS[way]) as node:
        node.streams()
        yield kernel, node, OWN if way == "own" else SHARED, mine


def listener(kernel: Namespace, address: str = KERNEL) -> socket.socket:
    with kernel.enter():
        return socket.create_server((address, 0), family=socket.AF_INET6)


@both_ways
def test_texts_both_ways_to_a_kernels_listener(wired):
    kernel, node, address, _ = wired
    with listener(kernel) as server:
        info = texts_to(kernel, node, address, server, KERNEL)
    assert info["mss"] == 1428, "1,500 less 40, 20, and 12 of time stamps"


@both_ways
def test_texts_both_ways_from_a_kernels_program(wired):
    kernel, node, address, _ = wired
    with node.listen(7000, address=address, backlog=4) as waiting:
        texts_from(kernel, node, waiting, address, KERNEL)
    no_resets_by_the_kernel(kernel)


def test_a_thousand_at_once_and_places_are_a_bound(pair6):
    a_thousand_at_once(*pair6, WAYS["own"], listener)


def test_a_thousand_connections_of_the_kernels_at_once_are_accepted(pair6):
    a_thousand_of_the_kernels(*pair6, WAYS["own"])


def test_opened_and_closed_one_after_another_leaves_nothing(pair6):
    one_after_another(*pair6, WAYS["own"], listener)


def test_kernels_connections_one_after_another_leave_nothing(pair6):
    kernels_one_after_another(*pair6, WAYS["own"])


@both_ways
def test_nobody_listens_and_nobody_is_there(wired):
    kernel, node, _, _ = wired
    with pytest.raises(ConnectionRefusedError):
        node.connect(KERNEL, 9, timeout=PATIENCE)
    with pytest.raises(OSError) as caught:
        node.connect("2001:db8:77::dead", 9, timeout=PATIENCE)
    assert caught.value.errno == errno.EHOSTUNREACH
    with pytest.raises(OSError) as caught:
        node.connect("2001:db9::1", 9, timeout=PATIENCE)
    assert caught.value.errno == errno.ENETUNREACH
    assert kernel.run(["true"]).returncode == 0


def ping(address: str, count: int) -> None:
    """Echoes by the kernel's raw socket, each answered before the next."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.settimeout(PATIENCE)
        for number in range(count):
            asked = struct.pack("!HHHH", 128 << 8, 0, 7, number) + b"x" * 56
            sock.sendto(asked, (address, 0))
            while (got := sock.recvfrom(2048)[0])[0] != 129:
                pass
            assert got[4:] == asked[4:]


def neighbour_of(ns: Namespace, link: str, address: str):
    with ns.netlink() as route:
        index = route.link_lookup(ifname=link)[0]
        for entry in route.get_neighbours(family=socket.AF_INET6, ifindex=index):
            if entry.get_attr("NDA_DST") == address:
                return entry.get_attr("NDA_LLADDR"), entry["state"]
    return None


def test_the_kernel_resolves_and_pings_an_address_of_ours(wired):
    kernel, node, address, mine = wired
    assert neighbour_of(kernel, "v0", address) is None
    child = kernel.fork(ping, address, 3)
    node.streams().wait(lambda: child.poll() is not None, PATIENCE, "the end of ping")
    assert child.wait(60) == 0
    mac, _ = neighbour_of(kernel, "v0", address)
    assert mac == mine.link("t0").get_attr("IFLA_ADDRESS")
    host = node.engine.hosts[0].stats()
    assert host["echo_answered"] == 3
    assert host["ndp_answered"] >= 1


def test_an_address_that_the_kernel_has_is_not_taken(pair6):
    _, mine = pair6
    with (
        mine.enter(),
        nodes.open("xsk:t0", address=f"{KERNEL}/64", probe_ms=500) as node,
        pytest.raises(OSError, match="in use by"),
    ):
        node.connect(FAR, 9, timeout=PATIENCE)


def test_bad_words_about_an_address():
    for text in ("2001:db8::1", "ff02::1/64", "::1/128", "::/0", "2001:db8::zz/64"):
        with (
            pytest.raises(ConfigError, match="wanted an address with its prefix"),
            nodes.open("xsk:t0", address=text),
        ):
            pass


@both_ways
def test_a_router_whose_next_link_takes_less_says_so(make_lab, way):
    lab = make_lab(ipv6=True)
    far, router, mine = (lab.namespace(name) for name in ("far", "router", "trader"))
    lab.veth(router, "v0", None, mine, "t0", None)
    lab.veth(router, "f0", None, far, "f1", None)
    with router.netlink() as route:  # at one end: the other names 1,440 bytes in its SYN
        route.link("set", index=route.link_lookup(ifname="f0")[0], mtu=1300)
    own(router, "v0", KERNEL)
    own(mine, "t0", SHARED)
    own(router, "f0", "2001:db8:78::fe")
    own(far, "f1", FAR)
    router.sysctl("net.ipv6.conf.all.forwarding", 1)
    for ns, hop in ((far, "2001:db8:78::fe"), (mine, KERNEL)):
        with ns.netlink() as route:
            route.route("add", dst="default", gateway=hop, family=socket.AF_INET6)
    with far.enter():
        server = socket.create_server((FAR, 0), family=socket.AF_INET6)
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        stack.enter_context(mine.enter())
        node = stack.enter_context(nodes.open("xsk:t0", **WAYS[way]))
        got = bytearray()

        def take(sock: socket.socket) -> None:
            while data := sock.recv(1 << 16):
                got.extend(data)
            assert len(got) == 200_000

        child = far.fork(accept_and, take, server)
        connection = node.connect(FAR, server.getsockname()[1], timeout=PATIENCE)
        connection.write(b"x" * 200_000)
        connection.shutdown()
        node.streams().wait(lambda: child.poll() is not None, PATIENCE, "the far end")
        assert child.wait(60) == 0
        info = connection.info()
        connection.close()
    assert info["mss"] == 1300 - 60 - 12
    assert info["path_cuts"] >= 1
