"""Linux as the peer of ``tools/examples/sock_echo.c``: sockets of ``xds_sock.h`` behind a TAP device; and
beside the facade, call by call, where that takes a link that is no loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from netns_tests.test_tcp_linux6 import own
from xdpstack.tests.facade_driver import FLAVOURS, Facade, Kernel
from xdpstack.tests.facade_filters import what_blocked_senders_reach
from xdpstack.tests.facade_scripts import LINKED
from xdpstack.tests.test_facade import difference

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {
    "v4": (socket.AF_INET, ("10.9.0.2", 7000), "10.9.0.1/24"),
    "v6": (socket.AF_INET6, ("fd09::2", 7000), "fd09::1/64"),
    "link-local": (socket.AF_INET6, ("fe80::2", 7000), "fe80::1/64"),
}
PATIENCE = 60.0

pytestmark = pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="/dev/net/tun is not there")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    archive = ROOT / "build/native/libxds.a"
    if not archive.exists():
        pytest.skip("the core was not built here: make build")
    program = tmp_path_factory.mktemp("echo") / "sock_echo"
    command = ["gcc", "-O1", "-Icffi_build", "tools/examples/sock_echo.c", archive, "-o", program]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return program


class Peer:
    """The kernel's side: sockets of a namespace, of one family, and the name of ours."""

    def __init__(self, space, family, there):
        self.space, self.family, self.there = space, family, there

    def socket(self, kind):
        one = self.space.socket(self.family, kind)
        one.settimeout(PATIENCE)
        return one

    def at(self, port):
        return (self.there[0], port, *self.there[2:])


@pytest.fixture(params=FAMILIES)
def peer(make_lab, program, request):
    """The kernel's side, while the program runs."""
    family, there, own = FAMILIES[request.param]
    space = make_lab(ipv6=family == socket.AF_INET6).namespace("kernel")
    running = space.popen([str(program), "tap0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "ready\n"
    with space.netlink() as route:
        index = route.link_lookup(ifname="tap0")[0]
        route.link("set", index=index, state="up")
        flags = {"flags": 2} if family == socket.AF_INET6 else {}  # IFA_F_NODAD
        address, _, bits = own.partition("/")
        route.addr("add", index=index, family=family, address=address, prefixlen=int(bits), **flags)
    yield Peer(space, family, (*there, 0, index) if family == socket.AF_INET6 else there)
    running.stdin.close()
    assert running.wait(PATIENCE) == 0


def opened(peer):
    one = peer.socket(socket.SOCK_STREAM)
    one.connect(peer.there)
    return one


def test_linux_has_everything_back_and_in_order(peer):
    data = os.urandom(1 << 20)
    with opened(peer) as one:
        sender = threading.Thread(target=lambda: (one.sendall(data), one.shutdown(socket.SHUT_WR)))
        sender.start()
        seen, count = hashlib.sha256(), 0
        while piece := one.recv(65536):
            seen.update(piece)
            count += len(piece)
        sender.join()
    assert count == len(data)
    assert seen.digest() == hashlib.sha256(data).digest()


def test_several_at_once_and_datagrams_beside_them(peer):
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(opened(peer)) for _ in range(6)]
        udp = stack.enter_context(peer.socket(socket.SOCK_DGRAM))
        udp.connect(peer.there)
        for turn in range(20):
            udp.send(b"datagram %d" % turn)
            for i, one in enumerate(many):
                one.sendall(b"%d of %d" % (turn, i))
            assert udp.recv(100) == b"datagram %d" % turn
            for i, one in enumerate(many):
                want = b"%d of %d" % (turn, i)
                assert one.recv(100) == want


def test_ports_where_nobody_is_refuse(peer):
    with peer.socket(socket.SOCK_STREAM) as one, pytest.raises(ConnectionRefusedError):
        one.connect(peer.at(7001))
    with peer.socket(socket.SOCK_DGRAM) as two:
        two.connect(peer.at(7001))
        two.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            two.recv(100)


def test_connections_come_and_go_in_more_than_there_are_places(peer):
    for _ in range(60):  # 16 sockets, 16 connections
        with opened(peer) as one:
            one.sendall(b"hello")
            assert one.recv(100) == b"hello"
            one.shutdown(socket.SHUT_WR)
            assert one.recv(100) == b""


class Linked(Kernel):
    """Linux in two namespaces, a side each, joined by a veth pair."""

    def __init__(self, flavour, spaces):
        super().__init__(flavour)
        self.spaces = spaces

    def link(self, side):
        return self.spaces[side][1]

    def raw(self, call, side, *arguments):
        if call != "socket":
            return super().raw(call, side, *arguments)
        with self.spaces[side][0].enter():
            return super().raw(call, side, *arguments)


@pytest.fixture(params=["v4", "v6"])
def linked(make_lab, request):
    lab = make_lab(ipv6=True)
    spaces = {side: lab.namespace(f"side-{side}") for side in "cs"}
    ends = {"v4": ("10.77.0.1", "10.77.0.2"), "v6": ("2001:db8:77::1", "2001:db8:77::2")}[request.param]
    v4 = [f"{end}/24" if request.param == "v4" else None for end in ends]
    lab.veth(spaces["c"], "c0", v4[0], spaces["s"], "s0", v4[1])
    indexes = {}
    for side, end in zip("cs", ends, strict=True):
        if request.param == "v6":
            own(spaces[side], f"{side}0", end)
        with spaces[side].netlink() as route:
            indexes[side] = route.link_lookup(ifname=f"{side}0")[0]
    flavour = dataclasses.replace(FLAVOURS[request.param], kernel=dict(zip("cs", ends, strict=True)))
    made = Linked(flavour, {side: (spaces[side], indexes[side]) for side in "cs"})
    yield request.param, made
    made.close_all()


@pytest.mark.parametrize("script", [*LINKED, what_blocked_senders_reach], ids=lambda script: script.__name__)
def test_calls_over_a_link_give_what_a_kernel_socket_gives(linked, script):
    name, kernel = linked
    facade = Facade(FLAVOURS[name])
    script(facade)
    script(kernel)
    assert not (said := difference(facade.log, kernel.log)), said
