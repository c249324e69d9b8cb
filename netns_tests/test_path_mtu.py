"""ICMP errors and path MTU with real routers: Linux forwards, tells, cuts; a link drops without a word."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import time

import pytest

from netns_tests.test_tcp_linux import PATIENCE, accept_and, exchange, ours, settle
from xdpstack import node as nodes
from xdpstack.port import Subscription

GATEWAY, SHARED, OWN = "10.77.0.1", "10.77.0.2", "10.77.0.9"
SERVER = "10.78.0.2"
BYTES = 8 << 20
WAYS = {"own": {"address": f"{OWN}/24"}, "shared": {}}


@pytest.fixture
def routed(lab):
    """(our namespace, the router's, the server's): two links of 1,500 bytes, and the router's in between."""
    us, router, server = (lab.namespace(name) for name in ("us", "router", "server"))
    lab.veth(router, "r0", f"{GATEWAY}/24", us, "t0", f"{SHARED}/24")
    lab.veth(router, "r1", "10.78.0.1/24", server, "s0", f"{SERVER}/24")
    router.sysctl("net.ipv4.ip_forward", 1)
    us.run(["ip", "route", "add", "default", "via", GATEWAY])
    server.run(["ip", "route", "add", "default", "via", "10.78.0.1"])
    return us, router, server


def narrow(router, mtu: int) -> None:
    """The router forwards no more than that, either way, and says so."""
    router.run(["ip", "route", "replace", "10.77.0.0/24", "dev", "r0", "src", GATEWAY, "mtu", str(mtu)])
    router.run(["ip", "route", "replace", "10.78.0.0/24", "dev", "r1", "src", "10.78.0.1", "mtu", str(mtu)])


def counter(namespace, name: str) -> int:
    text = namespace.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    for names, values in zip(text[::2], text[1::2], strict=True):
        found = dict(zip(names.split()[1:], values.split()[1:], strict=True))
        if name in found:
            return int(found[name])
    raise AssertionError(name)


@contextlib.contextmanager
def listening(server, work, *args):
    with server.enter():
        sock = socket.create_server((SERVER, 0))
    with sock:
        child = server.fork(accept_and, work, sock, *args)
        yield sock.getsockname()[1]
        assert child.wait(PATIENCE) == 0


@pytest.mark.parametrize(("way", "mtu"), [("own", 1280), ("own", 576), ("shared", 1006)])
def test_eight_mebibytes_pass_a_narrow_router_both_ways(routed, way, mtu):
    us, router, server = routed
    narrow(router, mtu)
    with (
        us.enter(),
        nodes.open("xsk:t0", **WAYS[way]) as node,
        listening(server, exchange, 1, 2, BYTES) as port,
    ):
        connection = node.connect(SERVER, port, timeout=PATIENCE)
        ours(connection, 2, 1, BYTES)
        info = connection.info()
        connection.close()
        settle(node)
        host = node.engine.stats()["hosts"][0]
    assert info["mss"] <= mtu - 52
    assert info["path_cuts"] >= 1
    assert host["path_learned"] == 1
    assert counter(router, "FragFails") >= 2, "one a direction at least"
    assert counter(router, "FragCreates") == 0


def test_a_router_with_less_than_every_path_has_may_cut(routed):
    """Below 552 bytes Linux cuts what we let it; the server puts it together."""
    us, router, server = routed
    router.run(["ip", "route", "replace", "10.78.0.0/24", "dev", "r1", "src", "10.78.0.1", "mtu", "400"])
    text = bytes(range(256)) * 4096

    def take(sock: socket.socket) -> None:
        sha = hashlib.sha256()
        while data := sock.recv(1 << 16):
            sha.update(data)
        sock.sendall(sha.digest())

    with us.enter(), nodes.open("xsk:t0", **WAYS["own"]) as node, listening(server, take) as port:
        connection = node.connect(SERVER, port, timeout=PATIENCE)
        connection.timeout = PATIENCE
        connection.write(text)
        connection.shutdown()
        assert connection.read_exactly(32) == hashlib.sha256(text).digest()
        assert connection.info()["mss"] <= 500
        connection.close()
        settle(node)
    assert counter(router, "FragOKs") > 100


def test_a_link_that_drops_what_is_too_large_without_a_word(lab):
    """The peer takes 1,500 bytes, its link 1,300: a black hole."""
    us, server = lab.namespace("us"), lab.namespace("server")
    lab.veth(server, "s0", f"{GATEWAY}/24", us, "t0", f"{SHARED}/24")
    server.run(["ip", "link", "set", "s0", "mtu", "1300"])
    server.run(
        [
            "ip",
            "route",
            "replace",
            "10.77.0.0/24",
            "dev",
            "s0",
            "src",
            GATEWAY,
            "mtu",
            "1300",
            "advmss",
            "1460",
        ]
    )
    with server.enter():
        sock = socket.create_server((GATEWAY, 0))
    with sock, us.enter(), nodes.open("xsk:t0", **WAYS["own"]) as node:
        child = server.fork(accept_and, exchange, sock, 1, 2, 1 << 20)
        connection = node.connect(GATEWAY, sock.getsockname()[1], timeout=PATIENCE)
        ours(connection, 2, 1, 1 << 20)
        info = connection.info()
        connection.close()
        settle(node)
        assert child.wait(PATIENCE) == 0
    assert info["black_holes"] >= 1
    assert info["mss"] <= 1248


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "number"), [("prohibit", errno.EHOSTUNREACH), ("unreachable", None)])
def test_a_router_that_refuses_ends_a_connect_where_waiting_would_not_help(routed, way, kind, number):
    us, router, _ = routed
    router.run(["ip", "route", "add", kind, "10.79.0.0/16"])
    with us.enter(), nodes.open("xsk:t0", **WAYS[way]) as node:
        if number is None:  # a host may come back: waited for, and told
            with pytest.raises(
                TimeoutError, match=f"timed out \\({GATEWAY} said: host unreachable\\)"
            ) as caught:
                node.connect("10.79.0.1", 80, timeout=PATIENCE, give_up_ns=1_500_000_000)
        else:
            with pytest.raises(OSError, match=f"{GATEWAY} said: communication prohibited") as caught:
                node.connect("10.79.0.1", 80, timeout=PATIENCE)
        assert caught.value.errno == (number or errno.ETIMEDOUT)
        assert node.streams().stats()["errors"] >= 1
        assert node.streams().stats()["connections"] == 0


def test_a_datagrams_end_is_counted(routed):
    us, _, _ = routed
    with us.enter(), nodes.open("xsk:t0", **WAYS["own"]) as node:
        node.streams()
        end = time.monotonic() + PATIENCE
        while not node.engine.stats()["hosts"][0]["udp_refused"]:
            node.engine.send(b"anybody?", Subscription(address=SERVER, port=9), sport=5000)
            node.streams().turn(100)
            assert time.monotonic() < end, node.engine.stats()["hosts"][0]
