"""TCP over AF_XDP and Linux's, with damage in between: every text arrives whole, in both directions at once.

``XDS_TCP_IMPAIRED_BYTES=67108864`` (in ``make soak``) sends that much each way through each impairment, and
outages last their full five seconds; `make test` a mebibyte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import select
import signal
import socket
import struct
import time

import pytest

from netns_tests.test_tcp_linux import (
    KERNEL,
    OWN,
    PATIENCE,
    SHARED,
    WAYS,
    accept_and,
    blocks,
    digest,
    exchange,
    ours,
    settle,
)
from xdpstack import node as nodes
from xdpstack.lab import Namespace
from xdpstack.lab.faults import Faults
from xdpstack.lab.forwarder import impaired_pair
from xdpstack.streams import Connection

BYTES = int(os.environ.get("XDS_TCP_IMPAIRED_BYTES", str(1 << 20)))
LONG = BYTES > 16 << 20
OUTAGE = 5.0 if LONG else 1.0
DAMAGE = {
    "loss of 1 %": {"loss": 0.01},
    "loss of 5 %": {"loss": 0.05},
    "bursts": {"burst": 0.005, "burst_length": 5},
    "reordering of 10 %": {"reorder": 0.1, "hold_ns": 2_000_000},
    "duplication": {"duplicate": 0.05},
    "corruption": {"corrupt": 0.02},
    "20 ms and 5": {"delay_ns": 15_000_000, "jitter_ns": 10_000_000},
}
pytestmark = pytest.mark.timeout(1200 if LONG else 300)


@dataclasses.dataclass(frozen=True)
class Net:
    """The kernel's namespace and ours on one link, and their addresses of one family: the tests below run
    over either, those of IPv6 from ``test_tcp_impaired6.py``."""

    kernel: Namespace
    us: Namespace
    theirs: str
    shared: str
    own: str
    prefix: int

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.theirs else socket.AF_INET

    def way(self, way: str) -> dict[str, str]:
        """For ``nodes.open``."""
        return {"address": f"{self.own}/{self.prefix}"} if way == "own" else {}

    def address(self, way: str) -> str:
        return self.own if way == "own" else self.shared

    def listener(self, kernel: Namespace) -> socket.socket:
        with kernel.enter():
            return socket.create_server((self.theirs, 0), family=self.family)


@pytest.fixture
def make_net(make_pair):
    """Nets on demand; the arguments are those of ``Lab.veth``."""
    return lambda **more: Net(*make_pair(**more), KERNEL, SHARED, OWN, 24)


@pytest.fixture
def net(make_net) -> Net:
    return make_net()


@pytest.fixture
def damaged(lab, request):
    """(the kernel's namespace, ours, the forwarder): the same kind of damage each way, seeds of their own."""
    kernel, us = lab.namespace("kernel"), lab.namespace("us")
    how = [Faults(seed=seed, **getattr(request, "param", {})) for seed in (1, 2)]
    ends = (kernel, "v0", f"{KERNEL}/24", us, "t0", f"{SHARED}/24")
    *_, forwarder = impaired_pair(lab, *ends, forward=how[0], backward=how[1])
    return kernel, us, forwarder


def stands(node) -> None:
    """Received = taken + reasons, nothing waits to be sent, and no connection is left but in TIME-WAIT."""
    stats = node.stats()["tcp"]["main"]
    assert stats["received"] == stats["taken"] + sum(stats["reasons"].values())
    core = node.stats()["engine"]
    outcomes = ("delivered", "unrouted", "segments", "host_consumed", "host_refused")
    assert core["packets"] == sum(core[name] for name in outcomes)
    assert node.streams().unfinished == 0


def both_texts(net: Net, opener: str, way: str = "shared", **settings: int) -> dict:
    """Our connection's last info(), after a text each way at once. ``opener``: who connects."""
    with net.us.enter(), nodes.open("xsk:t0", **net.way(way)) as node:
        address = net.address(way)
        ends, where = (net.theirs, address), {"address": address}
        return texts_over(node, net.kernel, opener, net.listener, ends, where, **settings)


def texts_over(
    node, kernel, opener: str, listening, ends: tuple[str, str], where=None, **settings: int
) -> dict:
    """The same over a node that is open. ``listening``: makes the kernel's listener; ``ends``: the kernel's
    address and ours; ``where``: what ``node.listen`` is told of ours."""
    theirs, address = ends
    node.streams(send_bytes=1 << 20, receive_bytes=1 << 20)
    if opener == "us":
        with listening(kernel) as server:
            child = kernel.fork(accept_and, exchange, server, 1, 2, BYTES)
            connection = node.connect(theirs, server.getsockname()[1], timeout=PATIENCE, **settings)
    else:

        def call() -> None:
            with socket.create_connection((address, 7000), timeout=PATIENCE) as sock:
                exchange(sock, 1, 2, BYTES)

        with node.listen(7000, **(where or {}), **settings) as waiting:
            child = kernel.fork(call)
            connection = waiting.accept(PATIENCE)
    connection.timeout = PATIENCE
    ours(connection, 2, 1, BYTES)
    connection.drain()
    info = connection.info()
    connection.close()
    settle(node)
    assert child.wait(PATIENCE) == 0
    stands(node)
    assert info["received_bytes"] == info["sent_bytes"] == BYTES
    return info


def damage_of(forwarder) -> dict[str, int]:
    """Close it; what it did to frames of both ways. Each kind that was asked for has happened."""
    forwarder.close()
    ways, how = forwarder.counters(), forwarder.forward
    happened = {name: sum(way[name] for way in ways.values()) for name in ways["forward"]}
    assert happened["lost"] > 0 or not (how.loss or how.burst)
    assert happened["held"] > 0 or not how.reorder
    assert happened["duplicated"] > 0 or not how.duplicate
    assert happened["corrupted"] > 0 or not how.corrupt
    return happened


FEW = ("bursts", "reordering of 10 %")  # of those that the kernel opens, in `make test`


@pytest.mark.parametrize(
    ("damaged", "opener"),
    [
        pytest.param(how, opener, id=f"{name}-{opener}")
        for name, how in DAMAGE.items()
        for opener in ("us", "kernel")
        if LONG or opener == "us" or name in FEW
    ],
    indirect=["damaged"],
)
def test_texts_pass_damage_whole(damaged, opener):
    kernel, us, forwarder = damaged
    begun = time.monotonic()
    info = both_texts(Net(kernel, us, KERNEL, SHARED, OWN, 24), opener)
    seconds = time.monotonic() - begun
    happened = damage_of(forwarder)
    print(f"{2 * BYTES / seconds / 1e6:.1f} MB/s, {info['retransmits']:,} sent again of {happened}")
    assert info["retransmits"] > 0 or not LONG or not happened["lost"]  # of few all may be ACKs
    assert info["srtt_ns"] > 2 * forwarder.forward.delay_ns


@pytest.mark.parametrize("opener", ["us", "kernel"])
@pytest.mark.parametrize(
    ("mtu", "way"), [(576, "own"), (576, "shared"), (1500, "own"), (9000, "own"), (9000, "shared")]
)
def test_texts_pass_links_of_every_size_whole(make_net, mtu, way, opener):
    texts_of_size(make_net(mtu=mtu), mtu - 52, way, opener)


def texts_of_size(net: Net, mss: int, way: str, opener: str) -> None:
    """mss: the link's less two headers and the stamps."""
    info = both_texts(net, opener, way)
    assert info["mss"] == mss
    assert info["retransmits"] < 0.01 * info["sent"] + 10


def feed(sock: socket.socket, seed: int, count: int) -> None:
    for block in blocks(seed, count):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def drink(sock: socket.socket) -> str:
    sha = hashlib.sha256()
    while data := sock.recv(1 << 16):
        sha.update(data)
    return sha.hexdigest()


def write_all(connection: Connection, seed: int, count: int) -> None:
    for block in blocks(seed, count):
        connection.write(block)
    connection.shutdown()


def read_all(connection: Connection) -> str:
    sha = hashlib.sha256()
    while data := connection.read():
        sha.update(data)
    return sha.hexdigest()


@contextlib.contextmanager
def joined(net: Net, node, opener: str, work, *args, way: str = "shared", **settings):
    """Our connection to a child of the kernel's that does ``work`` with its end; ``opener``: who connects."""
    with contextlib.ExitStack() as undo:
        if opener == "us":
            server = undo.enter_context(net.listener(net.kernel))
            if "rcvbuf" in settings:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings["rcvbuf"])
            child = net.kernel.fork(accept_and, work, server, *args)
            connection = node.connect(net.theirs, server.getsockname()[1], timeout=PATIENCE)
        else:

            def call() -> None:
                with socket.socket(net.family) as sock:
                    if "rcvbuf" in settings:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings["rcvbuf"])
                    sock.settimeout(PATIENCE)
                    sock.connect((net.address(way), 7000))
                    work(sock, *args)

            door = undo.enter_context(node.listen(7000, address=net.address(way)))
            child = net.kernel.fork(call)
            connection = door.accept(PATIENCE)
        connection.timeout = PATIENCE
        yield connection, child


OPENERS = pytest.mark.parametrize("opener", ["us", "kernel"] if LONG else ["us"])


@pytest.mark.rfc("9293", "MUST-35", "MUST-36", "MUST-37")
@OPENERS
def test_a_kernels_reader_that_stops_is_asked_until_it_reads_again(net, opener):
    again, go = os.pipe()

    def lazy(sock: socket.socket) -> None:
        assert sock.recv(1, socket.MSG_PEEK)
        os.read(again, 1)
        assert drink(sock) == digest(1, count)

    count = max(BYTES, 8 << 20)
    with (
        net.us.enter(),
        nodes.open("xsk:t0") as node,
        joined(net, node, opener, lazy, rcvbuf=1 << 16) as (connection, child),
    ):
        queue, rest, begun = blocks(1, count), b"", time.monotonic()
        while connection.info()["probes"] < 3 or time.monotonic() - begun < OUTAGE:
            rest = rest or next(queue)
            rest = rest[connection.put(rest) :]
            node.streams().turn(100)
            assert time.monotonic() - begun < PATIENCE, connection.info()
        assert connection.info()["in_flight"] <= 1
        os.write(go, b"x")
        for block in (rest, *queue):
            connection.write(block)
        connection.shutdown()
        connection.drain()
        connection.close()
        settle(node)
        assert child.wait(PATIENCE) == 0
        stands(node)
    os.close(again)
    os.close(go)


@pytest.mark.rfc("9293", "MAY-8")
@OPENERS
def test_we_stop_reading_and_the_kernel_waits_until_we_read_again(net, opener):
    count = max(BYTES, 8 << 20)
    with (
        net.us.enter(),
        nodes.open("xsk:t0") as node,
        joined(net, node, opener, feed, 1, count) as (connection, child),
    ):
        begun, end = time.monotonic(), time.monotonic() + PATIENCE
        while connection.info()["receive_window"] > 1 or time.monotonic() - begun < OUTAGE:
            node.streams().turn(100)
            assert time.monotonic() < end, connection.info()
        info = connection.info()
        assert info["unread"] in (65534, 65536), "as much as a window can name, which may be in units of 2"
        assert read_all(connection) == digest(1, count)
        connection.close()
        settle(node)
        assert child.wait(PATIENCE) == 0
        stands(node)


def link(namespace, name: str, state: str) -> None:
    with namespace.netlink() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], state=state)


def outage(kernel, connection: Connection, turn) -> None:
    """The peer's link is down for OUTAGE seconds, and until ``turn()`` has seen enough."""
    link(kernel, "v0", "down")
    end = time.monotonic() + OUTAGE
    while not turn() or time.monotonic() < end:
        connection.streams.turn(100)
        connection.check()
    link(kernel, "v0", "up")


@pytest.mark.parametrize("way", WAYS)
@OPENERS
def test_a_peer_that_is_cut_off_for_a_while_gets_and_sends_its_text_whole(net, way, opener):
    count = max(BYTES, 8 << 20)

    def work(sock: socket.socket) -> None:
        assert drink(sock) == digest(1, count)
        feed(sock, 2, count)

    with (
        net.us.enter(),
        nodes.open("xsk:t0", **net.way(way)) as node,
        joined(net, node, opener, work, way=way) as (connection, child),
    ):
        text = b"".join(blocks(1, count))
        connection.write(text[: count // 2])
        rest = memoryview(text)[count // 2 :]

        def press() -> bool:
            nonlocal rest
            rest = rest[connection.put(rest[:65536]) :]
            return connection.info()["timeouts"] > 0

        outage(net.kernel, connection, press)
        connection.write(rest)
        connection.shutdown()
        sha, got = hashlib.sha256(), 0
        while got < count:
            piece = connection.read()
            if got < count // 2 <= got + len(piece):
                outage(net.kernel, connection, lambda: True)
            sha.update(piece)
            got += len(piece)
        assert connection.read() == b""
        assert sha.hexdigest() == digest(2, count)
        connection.close()
        settle(node)
        assert child.wait(PATIENCE) == 0
        stands(node)


@OPENERS
def test_a_peer_that_is_killed_in_the_middle_resets(net, opener):
    def forever(sock: socket.socket) -> None:
        assert sock.recv(1 << 16)
        time.sleep(PATIENCE)

    with (
        net.us.enter(),
        nodes.open("xsk:t0") as node,
        joined(net, node, opener, forever) as (connection, child),
    ):
        streams, end = node.streams(), time.monotonic() + PATIENCE
        while connection.put(bytes(1 << 16)) or connection.info()["sent_bytes"] < 1 << 16:
            streams.turn(100)  # until neither end has room for more
            assert time.monotonic() < end
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ConnectionResetError, match="reset by peer"):
            connection.write(bytes(64 << 20))
        with pytest.raises(ConnectionResetError, match="reset by peer"):
            connection.read()
        connection.close()
        stands(node)
        assert node.streams().stats()["connections"] == 0
        child.wait(PATIENCE)


def drain_and_ask(sock: socket.socket) -> None:
    """What had come, and questions, until the kernel beside us answers what it does not know."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        sock.send(b"are you there?")
        sock.recv(1 << 16)


def test_we_are_killed_in_the_middle_and_the_peer_is_told_and_the_port_serves_again(net):
    def serve(count: int) -> None:
        with nodes.open("xsk:t0") as node, node.listen(7000, address=net.shared) as waiting:
            connection = waiting.accept(PATIENCE)
            connection.timeout = PATIENCE
            write_all(connection, 1, count)
            connection.drain()
            connection.close()
            settle(node)

    def called() -> socket.socket:
        end = time.monotonic() + PATIENCE
        while True:  # until it listens
            with net.kernel.enter():
                sock = socket.socket(net.family)
            sock.settimeout(PATIENCE)
            try:
                sock.connect((net.shared, 7000))
                return sock
            except ConnectionRefusedError:
                sock.close()
                assert time.monotonic() < end

    child = net.us.fork(serve, 1 << 40)
    with called() as sock:
        for _ in range(64):
            assert sock.recv(1 << 16)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(PATIENCE)
        with pytest.raises(ConnectionResetError):
            drain_and_ask(sock)
    child = net.us.fork(serve, BYTES)
    with called() as sock:
        assert drink(sock) == digest(1, BYTES)
    assert child.wait(PATIENCE) == 0


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def syn(source: bytes, target: bytes, ends: tuple[int, int], number: int) -> bytes:
    """A packet with a SYN. The kernel fills in IPv4's checksum."""
    tcp = struct.pack(
        ">HHIIBBHHHBBH", *ends, number, 0, 0x60, 2, 65535, 0, 0, 2, 4, 1460 if len(source) == 4 else 1440
    )
    check = _checksum(source + target + struct.pack(">II", len(tcp), 6) + tcp)
    tcp = tcp[:16] + struct.pack(">H", check) + tcp[18:]
    if len(source) == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 44, number & 0xFFFF, 0, 64, 6, 0)
    else:
        head = struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64)
    return head + source + target + tcp


def flood(stopped: int, net: Net, address: str, port: int) -> None:
    """SYNs from addresses that nobody has, and from the kernel's, which answers with resets: a few thousand a
    second, until a byte comes."""
    raw = socket.socket(net.family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    chance, number = random.Random(1), 0
    target, theirs = (socket.inet_pton(net.family, one) for one in (address, net.theirs))
    while not select.select([stopped], [], [], 0.005)[0]:
        for _ in range(32):
            nobody = theirs[:-1] + bytes([100 + number // 2 % 16])
            source = nobody if number % 2 else theirs
            number += 1
            ends = chance.randrange(1024, 65536), port
            raw.sendto(syn(source, target, ends, number), (address, 0))


@pytest.mark.parametrize("way", WAYS)
def test_a_flood_of_syns_neither_stops_what_is_established_nor_whom_we_should_accept(net, way):
    address, count = net.address(way), max(BYTES, 4 << 20)

    def talk(begun: int) -> None:
        with socket.create_connection((address, 7000), timeout=PATIENCE) as sock:
            os.read(begun, 1)
            exchange(sock, 1, 2, count)

    ends = [os.pipe() for _ in range(2)]
    with net.us.enter(), nodes.open("xsk:t0", **net.way(way)) as node:
        streams = node.streams(connections=64)

        def cookies() -> int:
            return streams.stats()["reasons"].get("cookie", 0)

        with node.listen(7000, address=address, backlog=8) as waiting:
            talker = net.kernel.fork(talk, ends[0][0])
            old = waiting.accept(PATIENCE)
            flooder = net.kernel.fork(flood, ends[1][0], net, address, 7000)
            streams.wait(lambda: cookies() > 1000, PATIENCE, "the flood")
            os.write(ends[0][1], b"x")
            ours(old, 2, 1, count)
            before = cookies()
            visitors = [net.kernel.fork(visit, address) for _ in range(4)]
            welcomed = 0
            while any(one.poll() is None for one in visitors):
                if (visitor := waiting.take()) is not None:
                    assert visitor.put(b"welcome") == 7
                    visitor.close()
                    welcomed += 1
                streams.turn(100)
            assert [one.wait(PATIENCE) for one in visitors] == [0] * 4
            assert welcomed >= 4
            streams.wait(lambda: cookies() > before, PATIENCE, "the flood, which goes on")
            os.write(ends[1][1], b"x")
            assert flooder.wait(PATIENCE) == 0
            old.close()
        assert talker.wait(PATIENCE) == 0
        settle(node)
        stands(node)
        stats = streams.stats()
        assert stats["connections"] <= 64
        print(
            f"{stats['reasons']['cookie']:,} SYNs answered by cookies, {stats['cookies_taken']} of them meant"
        )
    for fd in (*ends[0], *ends[1]):
        os.close(fd)


def visit(address: str) -> None:
    """Connect until somebody says welcome: a cookie may be lost, and the next try is a second away."""
    end = time.monotonic() + PATIENCE
    while True:
        with (
            contextlib.suppress(TimeoutError, ConnectionError),
            socket.create_connection((address, 7000), timeout=4.0) as sock,
        ):
            if sock.recv(10) == b"welcome":
                return
        assert time.monotonic() < end
