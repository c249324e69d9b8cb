"""TCP over AF_XDP and Linux's, with damage in between: every text arrives whole, in both directions at once.

``XDS_TCP_IMPAIRED_BYTES=67108864`` (in ``make soak``) sends that much each way through each impairment, and
outages last their full five seconds; `make test` a mebibyte.
"""

from __future__ import annotations

import contextlib
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
    listener,
    ours,
    settle,
)
from xdpstack import node as nodes
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


def both_texts(kernel, us, opener: str, way: str = "shared", **settings: int) -> dict:
    """Our connection's last info(), after a text each way at once. ``opener``: who connects."""
    with us.enter(), nodes.open("xsk:t0", **WAYS[way]) as node:
        ends = (KERNEL, OWN if way == "own" else SHARED)
        return texts_over(node, kernel, opener, listener, ends, **settings)


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
    info = both_texts(kernel, us, opener)
    seconds = time.monotonic() - begun
    happened = damage_of(forwarder)
    print(f"{2 * BYTES / seconds / 1e6:.1f} MB/s, {info['retransmits']:,} sent again of {happened}")
    assert info["retransmits"] > 0 or not LONG or not happened["lost"]  # of few all may be ACKs
    assert info["srtt_ns"] > 2 * forwarder.forward.delay_ns


@pytest.mark.parametrize("opener", ["us", "kernel"])
@pytest.mark.parametrize(
    ("mtu", "way"), [(576, "own"), (576, "shared"), (1500, "own"), (9000, "own"), (9000, "shared")]
)
def test_texts_pass_links_of_every_size_whole(make_pair, mtu, way, opener):
    kernel, us = make_pair(mtu=mtu)
    info = both_texts(kernel, us, opener, way)
    assert info["mss"] == mtu - 52, "two headers and the stamps"
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
def joined(kernel, node, opener: str, work, *args, way: str = "shared", **settings):
    """Our connection to a child of the kernel's that does ``work`` with its end; ``opener``: who connects."""
    with contextlib.ExitStack() as undo:
        if opener == "us":
            server = undo.enter_context(listener(kernel))
            if "rcvbuf" in settings:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings["rcvbuf"])
            child = kernel.fork(accept_and, work, server, *args)
            connection = node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE)
        else:

            def call() -> None:
                with socket.socket() as sock:
                    if "rcvbuf" in settings:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings["rcvbuf"])
                    sock.settimeout(PATIENCE)
                    sock.connect((OWN if way == "own" else SHARED, 7000))
                    work(sock, *args)

            door = undo.enter_context(node.listen(7000))
            child = kernel.fork(call)
            connection = door.accept(PATIENCE)
        connection.timeout = PATIENCE
        yield connection, child


OPENERS = pytest.mark.parametrize("opener", ["us", "kernel"] if LONG else ["us"])


@pytest.mark.rfc("9293", "MUST-35", "MUST-36", "MUST-37")
@OPENERS
def test_a_kernels_reader_that_stops_is_asked_until_it_reads_again(lab_pair, opener):
    kernel, us = lab_pair
    again, go = os.pipe()

    def lazy(sock: socket.socket) -> None:
        assert sock.recv(1, socket.MSG_PEEK)
        os.read(again, 1)
        assert drink(sock) == digest(1, count)

    count = max(BYTES, 8 << 20)
    with (
        us.enter(),
        nodes.open("xsk:t0") as node,
        joined(kernel, node, opener, lazy, rcvbuf=1 << 16) as (connection, child),
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
def test_we_stop_reading_and_the_kernel_waits_until_we_read_again(lab_pair, opener):
    kernel, us = lab_pair
    count = max(BYTES, 8 << 20)
    with (
        us.enter(),
        nodes.open("xsk:t0") as node,
        joined(kernel, node, opener, feed, 1, count) as (connection, child),
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
def test_a_peer_that_is_cut_off_for_a_while_gets_and_sends_its_text_whole(lab_pair, way, opener):
    kernel, us = lab_pair
    count = max(BYTES, 8 << 20)

    def work(sock: socket.socket) -> None:
        assert drink(sock) == digest(1, count)
        feed(sock, 2, count)

    with (
        us.enter(),
        nodes.open("xsk:t0", **WAYS[way]) as node,
        joined(kernel, node, opener, work, way=way) as (connection, child),
    ):
        text = b"".join(blocks(1, count))
        connection.write(text[: count // 2])
        rest = memoryview(text)[count // 2 :]

        def press() -> bool:
            nonlocal rest
            rest = rest[connection.put(rest[:65536]) :]
            return connection.info()["timeouts"] > 0

        outage(kernel, connection, press)
        connection.write(rest)
        connection.shutdown()
        sha, got = hashlib.sha256(), 0
        while got < count:
            piece = connection.read()
            if got < count // 2 <= got + len(piece):
                outage(kernel, connection, lambda: True)
            sha.update(piece)
            got += len(piece)
        assert connection.read() == b""
        assert sha.hexdigest() == digest(2, count)
        connection.close()
        settle(node)
        assert child.wait(PATIENCE) == 0
        stands(node)


@OPENERS
def test_a_peer_that_is_killed_in_the_middle_resets(lab_pair, opener):
    kernel, us = lab_pair

    def forever(sock: socket.socket) -> None:
        assert sock.recv(1 << 16)
        time.sleep(PATIENCE)

    with (
        us.enter(),
        nodes.open("xsk:t0") as node,
        joined(kernel, node, opener, forever) as (connection, child),
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


def test_we_are_killed_in_the_middle_and_the_peer_is_told_and_the_port_serves_again(lab_pair):
    kernel, us = lab_pair

    def serve(count: int) -> None:
        with nodes.open("xsk:t0") as node, node.listen(7000) as waiting:
            connection = waiting.accept(PATIENCE)
            connection.timeout = PATIENCE
            write_all(connection, 1, count)
            connection.drain()
            connection.close()
            settle(node)

    def called() -> socket.socket:
        end = time.monotonic() + PATIENCE
        while True:  # until it listens
            with kernel.enter():
                sock = socket.socket()
            sock.settimeout(PATIENCE)
            try:
                sock.connect((SHARED, 7000))
                return sock
            except ConnectionRefusedError:
                sock.close()
                assert time.monotonic() < end

    child = us.fork(serve, 1 << 40)
    with called() as sock:
        for _ in range(64):
            assert sock.recv(1 << 16)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(PATIENCE)
        with pytest.raises(ConnectionResetError):
            drain_and_ask(sock)
    child = us.fork(serve, BYTES)
    with called() as sock:
        assert drink(sock) == digest(1, BYTES)
    assert child.wait(PATIENCE) == 0


_ADDRESSES = [address for n in range(100, 116) for address in (KERNEL, f"10.77.0.{n}")]


def flood(stopped: int, address: str, port: int) -> None:
    """SYNs from addresses that nobody has, and from the kernel's, which answers with resets: a few thousand a
    second, until a byte comes."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    chance, number = random.Random(1), 0
    target = socket.inet_aton(address)
    while not select.select([stopped], [], [], 0.005)[0]:
        for _ in range(32):
            source = socket.inet_aton(_ADDRESSES[number % len(_ADDRESSES)])
            number += 1
            head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 44, number & 0xFFFF, 0, 64, 6, 0, source, target)
            ends = chance.randrange(1024, 65536), port
            syn = struct.pack(">HHIIBBHHHBBH", *ends, number, 0, 0x60, 2, 65535, 0, 0, 2, 4, 1460)
            pseudo = struct.pack(">4s4sBBH", source, target, 0, 6, len(syn))
            total = sum(struct.unpack(f">{(len(pseudo) + len(syn)) // 2}H", pseudo + syn))
            total = (total & 0xFFFF) + (total >> 16)
            check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            raw.sendto(head + syn[:16] + struct.pack(">H", check) + syn[18:], (address, 0))


@pytest.mark.parametrize("way", WAYS)
def test_a_flood_of_syns_neither_stops_what_is_established_nor_whom_we_should_accept(lab_pair, way):
    kernel, us = lab_pair
    address, count = OWN if way == "own" else SHARED, max(BYTES, 4 << 20)

    def talk(begun: int) -> None:
        with socket.create_connection((address, 7000), timeout=PATIENCE) as sock:
            os.read(begun, 1)
            exchange(sock, 1, 2, count)

    ends = [os.pipe() for _ in range(2)]
    with us.enter(), nodes.open("xsk:t0", **WAYS[way]) as node:
        streams = node.streams(connections=64)

        def cookies() -> int:
            return streams.stats()["reasons"].get("cookie", 0)

        with node.listen(7000, backlog=8) as waiting:
            talker = kernel.fork(talk, ends[0][0])
            old = waiting.accept(PATIENCE)
            flooder = kernel.fork(flood, ends[1][0], address, 7000)
            streams.wait(lambda: cookies() > 1000, PATIENCE, "the flood")
            os.write(ends[0][1], b"x")
            ours(old, 2, 1, count)
            before = cookies()
            visitors = [kernel.fork(visit, address) for _ in range(4)]
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
        with contextlib.suppress(TimeoutError, ConnectionError), socket.socket() as sock:
            sock.settimeout(4.0)
            sock.connect((address, 7000))
            if sock.recv(10) == b"welcome":
                return
        assert time.monotonic() < end
