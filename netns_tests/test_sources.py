"""Several addresses on an interface that is shared with the kernel: a connection's source and way are those
that the kernel would choose, whenever an address came."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

import pytest

from netns_tests.test_tcp_linux import PATIENCE
from netns_tests.test_tcp_linux6 import own
from xdpstack import node as nodes

NETS = {
    "v4": (socket.AF_INET, "10.77.{}.{}", 24, "192.0.2.1", "192.0.2.0/24", "198.51.100.1", "198.51.100.0/24"),
    "v6": (
        socket.AF_INET6,
        "2001:db8:77:{}::{}",
        64,
        "2001:db8:a::1",
        "2001:db8:a::/64",
        "2001:db8:b::1",
        "2001:db8:b::/64",
    ),
}


class Ends:
    """In net 0 the kernel has 1 and we have 2 and 22, in net 1 it has 1 and we 2; two nets are behind it."""

    def __init__(self, lab, family: str) -> None:
        self.family, self.text, self.bits, self.far, self.far_net, self.near, self.near_net = NETS[family]
        self.kernel, self.us = lab.namespace("venue"), lab.namespace("trader")
        lab.veth(self.kernel, "v0", None, self.us, "t0", None)
        for net in (0, 1):
            self.add(self.kernel, "v0", self.at(net, 1))
            self.add(self.us, "t0", self.at(net, 2))
        self.add(self.us, "t0", self.at(0, 22))
        for one in (self.far, self.near):
            self.add(self.kernel, "v0", one, 128 if ":" in one else 32)
        self.route(self.far_net, "via", self.at(0, 1), "src", self.at(0, 22))
        self.route(self.near_net, "src", self.at(1, 2))  # on the link, though nobody here has such an address
        self.route("default", "via", self.at(0, 99))  # nobody

    def at(self, net: int, host: int) -> str:
        return str(ipaddress.ip_address(self.text.format(net, host)))

    def add(self, space, link: str, address: str, bits: int = 0) -> None:
        if self.family == socket.AF_INET6:
            own(space, link, address, bits or self.bits)
        else:
            space.run(["ip", "addr", "add", f"{address}/{bits or self.bits}", "dev", link])

    def route(self, *words: str) -> None:
        self.us.run(
            ["ip", "-6" if self.family == socket.AF_INET6 else "-4", "route", "add", *words, "dev", "t0"]
        )

    @contextlib.contextmanager
    def listener(self):
        with self.kernel.enter():
            server = socket.create_server(("", 0), family=self.family)
        server.settimeout(PATIENCE)
        with server:
            yield server, server.getsockname()[1]

    def kernels_source(self, to: str, port: int, server: socket.socket) -> str:
        with socket.socket(self.family) as sock:
            sock.settimeout(PATIENCE)
            sock.connect((to, port))
            server.accept()[0].close()
            return str(sock.getsockname()[0])


@pytest.fixture(params=NETS)
def ends(make_lab, request) -> Ends:
    return Ends(make_lab(ipv6=True), request.param)


def test_a_connection_has_the_source_and_the_way_that_the_kernels_would_have(ends):
    wanted = {
        ends.at(0, 1): ends.at(0, 2),
        ends.at(1, 1): ends.at(1, 2),
        ends.far: ends.at(0, 22),
        ends.near: ends.at(1, 2),
    }
    with ends.listener() as (server, port), ends.us.enter(), nodes.open("xsk:t0") as node:
        for to, source in wanted.items():
            if ends.family == socket.AF_INET:  # over IPv6 the kernel has two that fit net 0 alike
                assert ends.kernels_source(to, port, server) == source
            source = ends.kernels_source(to, port, server)
            with node.connect(to, port, timeout=PATIENCE) as one:
                theirs, peer = server.accept()
                with theirs:
                    assert peer[0] == one.local[0] == source
                    theirs.sendall(b"hello")
                    one.timeout = PATIENCE
                    assert one.read_exactly(5) == b"hello"


def welcomed(ends: Ends, node, door, address: str) -> None:
    """A program of the kernel's comes to one of our addresses."""

    def call() -> None:
        with socket.socket(ends.family) as sock:
            sock.settimeout(PATIENCE)
            sock.connect((address, 7000))
            assert sock.recv(10) == b"welcome"

    child = ends.kernel.fork(call)
    with door.accept(PATIENCE) as one:
        assert one.local == (address, 7000)
        one.write(b"welcome")
    node.streams().wait(lambda: child.poll() is not None, PATIENCE, "the caller")
    assert child.wait(PATIENCE) == 0


def test_every_address_is_listened_on_by_its_name(ends):
    with ends.us.enter(), nodes.open("xsk:t0") as node:
        for address in (ends.at(1, 2), ends.at(0, 22)):
            with node.listen(7000, address=address) as door:
                welcomed(ends, node, door, address)


@pytest.mark.parametrize("name", ["", "::"])
def test_all_addresses_are_listened_on_at_once_and_kept_from_the_kernels_programs(ends, name):
    ours = [ends.at(0, 2), ends.at(0, 22), ends.at(1, 2)]
    with ends.us.enter(), nodes.open("xsk:t0") as node:
        node.streams(msl_ns=1_000_000)
        with node.listen(7000, address=name) as door:
            for address in ours:
                welcomed(ends, node, door, address)
                with socket.socket(ends.family) as sock, pytest.raises(OSError, match="in use"):
                    sock.bind((address, 7000))
        node.streams().wait(lambda: not node.filters[0].rules, PATIENCE, "the end of the last one")
        for address in ours:
            with socket.socket(ends.family) as sock:
                sock.bind((address, 7000))


def test_an_address_that_came_later_is_used_and_one_that_is_nobodys_is_refused(ends):
    with ends.listener() as (server, port), ends.us.enter(), nodes.open("xsk:t0") as node:
        node.streams()
        ends.add(ends.kernel, "v0", ends.at(2, 1))
        ends.add(ends.us, "t0", ends.at(2, 2))
        with node.connect(ends.at(2, 1), port, timeout=PATIENCE) as one:
            theirs, peer = server.accept()
            with theirs:
                assert peer[0] == one.local[0] == ends.at(2, 2)
        with pytest.raises(OSError) as caught:
            node.connect(ends.at(2, 1), port, local=(ends.at(2, 77), 0), timeout=PATIENCE)
        assert caught.value.errno == errno.EADDRNOTAVAIL
