"""TCP over AF_XDP with Linux as the peer: both ways to live on an interface, both directions, every end.

``XDS_TCP_BYTES=1073741824`` (in ``make soak``) sends that much each way; `make test` a few MiB."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
import select
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from xdpstack import node as nodes
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError
from xdpstack.lab import Namespace
from xdpstack.streams import Connection

KERNEL, SHARED, OWN = "10.77.0.1", "10.77.0.2", "10.77.0.9"
BYTES = int(os.environ.get("XDS_TCP_BYTES", str(4 << 20)))
PATIENCE = 240.0 + BYTES / 1e6
WAYS = {"own": {"address": f"{OWN}/24"}, "shared": {}}


both_ways = pytest.mark.parametrize("way", WAYS, indirect=True)


@pytest.fixture
def way(request):
    return getattr(request, "param", "own")


@pytest.fixture
def wired(lab_pair, way):
    """(the kernel's namespace, the node, our address, our namespace)."""
    kernel, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0", **WAYS[way]) as node:
        node.streams()
        yield kernel, node, OWN if way == "own" else SHARED, ours


def blocks(seed: int, count: int):
    """The same bytes for the same seed, in pieces of 64 KiB."""
    chance = random.Random(seed)
    piece = chance.randbytes(1 << 16)
    for number in range(-(-count // len(piece))):
        yield struct.pack(">Q", number) + piece[8 : min(len(piece), count - number * len(piece))]


def digest(seed: int, count: int) -> str:
    sha = hashlib.sha256()
    for block in blocks(seed, count):
        sha.update(block)
    return sha.hexdigest()


def listener(kernel: Namespace, port: int = 0) -> socket.socket:
    with kernel.enter():
        return socket.create_server((KERNEL, port))


def exchange(sock: socket.socket, mine: int, theirs: int, count: int) -> None:
    """A kernel's socket: send one text while the other is read, and compare it."""
    sha, queue, got, rest = hashlib.sha256(), blocks(mine, count), 0, b""
    reading = sending = True
    sock.setblocking(False)
    while reading or sending:
        readable, writable, _ = select.select([sock] * reading, [sock] * sending, [], PATIENCE)
        assert readable or writable, f"nothing moves after {got:,} bytes"
        if writable and (rest := rest or next(queue, b"")):
            rest = rest[sock.send(rest) :]
        elif writable:
            sock.shutdown(socket.SHUT_WR)
            sending = False
        if readable:
            data = sock.recv(1 << 16)
            reading = bool(data)
            sha.update(data)
            got += len(data)
    assert sha.hexdigest() == digest(theirs, count), f"{got:,} bytes, and not the right ones"


def ours(connection: Connection, mine: int, theirs: int, count: int) -> None:
    """The same with a connection of ours."""
    sha, queue, got, rest = hashlib.sha256(), blocks(mine, count), 0, b""
    reading = sending = True
    end = time.monotonic() + PATIENCE
    while reading or sending:
        data, sent = connection.take() if reading else None, 0
        if data is not None:
            reading = bool(data)
            sha.update(data)
            got += len(data)
        if sending and (rest := rest or next(queue, b"")):
            sent = connection.put(rest)
            rest = rest[sent:]
        elif sending:
            connection.shutdown()
            sending = False
        if data or sent:
            end = time.monotonic() + PATIENCE
        else:
            connection.streams.turn(100)
            assert time.monotonic() < end, f"nothing moves after {got:,} bytes: {connection.info()}"
    assert sha.hexdigest() == digest(theirs, count), f"{got:,} bytes, and not the right ones"


def accept_and(work, server: socket.socket, *args) -> None:
    server.settimeout(PATIENCE)
    sock, _ = server.accept()
    with sock:
        work(sock, *args)


def settle(node, seconds: float = PATIENCE) -> None:
    """Turn until every connection has ended, or waits."""
    streams = node.streams()
    streams.wait(lambda: streams.unfinished == 0, seconds, "the end of all connections")


def no_resets_by_the_kernel(kernel: Namespace) -> None:
    """The kernel in our namespace never answered for us: the peer has seen no reset."""
    text = kernel.run(["cat", "/proc/net/netstat", "/proc/net/snmp"]).stdout.splitlines()
    tables = dict(zip(text[::2], text[1::2], strict=True))
    for names, values in tables.items():
        if names.startswith("Tcp:"):
            counters = dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))
            assert counters["EstabResets"] == 0


def texts_to(kernel, node, address, server, peer):
    """Texts both ways over a connection of ours to a listener of the kernel's; gives its info()."""
    child = kernel.fork(accept_and, exchange, server, 1, 2, BYTES)
    connection = node.connect(peer, server.getsockname()[1], timeout=PATIENCE)
    assert connection.local[0] == address
    ours(connection, 2, 1, BYTES)
    info = connection.info()
    connection.close()
    settle(node)
    assert child.wait(PATIENCE) == 0
    assert info["received_bytes"] == info["sent_bytes"] == BYTES
    assert info["srtt_ns"] > 0
    no_resets_by_the_kernel(kernel)
    stats = node.stats()["tcp"]["main"]
    assert stats["received"] == stats["taken"] + sum(stats["reasons"].values())
    core = node.stats()["engine"]
    outcomes = ("delivered", "unrouted", "segments", "host_consumed", "host_refused")
    assert core["packets"] == sum(core[name] for name in outcomes)
    return info


def texts_from(kernel, node, waiting, address, peer):
    """Texts both ways over a connection that a program of the kernel's opens to a listener of ours."""

    def call() -> None:
        with socket.create_connection((address, 7000), timeout=PATIENCE) as sock:
            exchange(sock, 1, 2, BYTES)

    child = kernel.fork(call)
    connection = waiting.accept(PATIENCE)
    assert connection.remote[0] == peer
    assert connection.local == (address, 7000)
    ours(connection, 2, 1, BYTES)
    connection.close()
    settle(node)
    assert child.wait(PATIENCE) == 0


@pytest.mark.rfc("9293", "MUST-2", "MUST-3")
@both_ways
def test_texts_both_ways_to_a_kernels_listener(wired):
    kernel, node, address, _ = wired
    with listener(kernel) as server:
        texts_to(kernel, node, address, server, KERNEL)


@both_ways
def test_texts_both_ways_from_a_kernels_program(wired):
    kernel, node, address, _ = wired
    with node.listen(7000, backlog=4) as waiting:
        texts_from(kernel, node, waiting, address, KERNEL)
    no_resets_by_the_kernel(kernel)


def test_blocking_reads_and_writes(wired):
    kernel, node, _, _ = wired

    def echo(sock: socket.socket) -> None:
        while data := sock.recv(1 << 16):
            sock.sendall(data)

    with listener(kernel) as server:
        child = kernel.fork(accept_and, echo, server)
        with node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE) as connection:
            connection.timeout = PATIENCE
            for size in (1, 64, 1000, 60_000):
                text = os.urandom(size)
                connection.write(text)
                assert connection.read_exactly(size) == text
            connection.drain()
            connection.shutdown()
            assert connection.read() == b""
            assert connection.read() == b""
            with pytest.raises(BrokenPipeError):
                connection.write(b"more")
            with pytest.raises(EOFError, match="0 of 5 bytes"):
                connection.read_exactly(5)
        assert child.wait(PATIENCE) == 0
    with pytest.raises(LocalProtocolError, match="closed"):
        connection.read()
    assert "closed" in repr(connection)


@pytest.mark.rfc("9293", "SHLD-8", "MAY-5")
def test_a_kernel_agrees_on_ecn_and_answers_keepalives(wired):
    kernel, node, _, _ = wired

    def tell(sock: socket.socket) -> None:
        options = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
        sock.sendall(bytes([options & 8]))  # TCPI_OPT_ECN
        while data := sock.recv(100):
            sock.sendall(data)

    keep = {"keepalive": 1, "keep_idle_ns": 20_000_000, "keep_interval_ns": 1_000_000_000, "keep_count": 127}
    with listener(kernel) as server:
        child = kernel.fork(accept_and, tell, server)
        port = server.getsockname()[1]
        with node.connect(
            KERNEL, port, timeout=PATIENCE, ecn=1, dscp=46, user_timeout=1, **keep
        ) as connection:
            connection.timeout = PATIENCE
            assert connection.read_exactly(1) == b"\x08"
            assert connection.info()["ecn"] == 1
            node.streams().wait(lambda: connection.info()["keepalives"] > 3, PATIENCE, "probes")
            connection.set(keepalive=0, dscp=0, give_up_ns=100_000_000_000)
            connection.write(b"alive")
            assert connection.read_exactly(5) == b"alive"
            with pytest.raises(ConfigError, match="TCP setting keep_count: 128 is not from 0 to 127"):
                connection.set(keep_count=128)
        assert child.wait(PATIENCE) == 0


@both_ways
def test_refused_where_nobody_listens(wired):
    _, node, _, _ = wired
    with pytest.raises(ConnectionRefusedError, match=f"{KERNEL}:9: Connection refused"):
        node.connect(KERNEL, 9, timeout=PATIENCE)
    assert node.streams().stats()["connections"] == 0


@both_ways
def test_our_port_without_a_listener_refuses(wired):
    kernel, node, address, _ = wired

    def call() -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, 7001), timeout=PATIENCE)

    child = kernel.fork(call)
    streams = node.streams()
    streams.wait(lambda: child.poll() is not None, PATIENCE, "the caller")
    assert child.wait(PATIENCE) == 0


@pytest.mark.rfc("9293", "MUST-12", "MUST-47")
@both_ways
def test_a_reset_by_the_peer_ends_reads_and_writes_after_what_had_come(wired):
    kernel, node, _, _ = wired
    with listener(kernel) as server:

        def rude(sock: socket.socket) -> None:
            sock.sendall(b"last words")
            sock.recv(2)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        child = kernel.fork(accept_and, rude, server)
        with node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE) as connection:
            connection.timeout = PATIENCE
            assert connection.read_exactly(4) == b"last"
            connection.write(b"ok")
            assert connection.read_exactly(6) == b" words"
            with pytest.raises(ConnectionResetError, match="reset by peer"):
                connection.read()
            with pytest.raises(ConnectionResetError):
                connection.write(b"x")
        assert child.wait(PATIENCE) == 0
    assert node.streams().stats()["connections"] == 0


def test_half_close_by_us_reads_on(wired):
    kernel, node, _, _ = wired

    def sum_up(sock: socket.socket) -> None:
        got = b""
        while data := sock.recv(100):
            got += data
        sock.sendall(hashlib.sha256(got).digest() * 1000)

    with listener(kernel) as server:
        child = kernel.fork(accept_and, sum_up, server)
        with node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE) as connection:
            connection.timeout = PATIENCE
            connection.write(b"x" * 100_000)
            connection.shutdown()
            connection.shutdown()
            assert connection.read_exactly(32_000) == hashlib.sha256(b"x" * 100_000).digest() * 1000
            assert connection.read() == b""
        assert child.wait(PATIENCE) == 0


@both_ways
def test_a_peer_that_is_killed_ends_the_read(wired):
    kernel, node, _, _ = wired
    with listener(kernel) as server:

        def forever(sock: socket.socket) -> None:
            sock.sendall(b"here")
            time.sleep(PATIENCE)

        child = kernel.fork(accept_and, forever, server)
        with node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE) as connection:
            connection.timeout = PATIENCE
            assert connection.read_exactly(4) == b"here"
            os.kill(child.pid, signal.SIGKILL)
            assert connection.read() == b""  # its kernel says a FIN
        child.wait(PATIENCE)


@pytest.mark.rfc("9293", "MUST-12", "MUST-20")
def test_a_peer_that_is_cut_off_times_out(wired):
    kernel, node, _, _ = wired
    with (
        listener(kernel) as server,
        node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE, give_up_ns=300_000_000) as connection,
    ):
        connection.timeout = PATIENCE
        with kernel.netlink() as route:
            route.link("set", index=route.link_lookup(ifname="v0")[0], state="down")
        connection.write(b"hello?")
        with pytest.raises(TimeoutError, match="timed out"):
            connection.read()
        assert connection.state == "closed"


def test_who_waits_too_long_is_told(wired):
    kernel, node, _, _ = wired
    with listener(kernel) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection = node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE)
        connection.timeout = 0.05
        with pytest.raises(TimeoutError, match=r"read from the connection .*: nothing for 0.05 s"):
            connection.read()
        with pytest.raises(TimeoutError, match="write to"):
            connection.write(b"x" * (8 << 20))  # nobody reads
        assert connection.state == "established"
        connection.abort()
        connection.close()
    with node.listen(7000) as waiting, pytest.raises(TimeoutError, match="accept on port 7000"):
        waiting.accept(0.05)


def test_a_neighbour_that_never_answers(wired):
    _, node, _, _ = wired
    with pytest.raises(OSError, match="No route to host") as caught:
        node.connect("10.77.0.66", 80, timeout=PATIENCE)
    assert caught.value.errno == errno.EHOSTUNREACH


@both_ways
def test_no_way_there_no_such_name_no_such_port(wired, way):
    _, node, _, _ = wired
    with pytest.raises(OSError) as caught:
        node.connect("198.51.100.1", 80, timeout=PATIENCE)
    assert caught.value.errno == errno.ENETUNREACH
    with pytest.raises(socket.gaierror):
        node.connect("no.such.name.invalid", 80)
    with pytest.raises((ConfigError, OverflowError)):
        node.connect(KERNEL, 0)
    with pytest.raises(ConfigError, match="congestion"):
        node.connect(KERNEL, 80, congestion="hope")
    assert node.streams().stats()["connections"] == 0
    if way == "shared":
        assert not node.filters[0].rules


def test_steering_begins_before_the_first_packet_and_ends_after_the_last(lab_pair):
    kernel, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0") as node, listener(kernel) as server:
        port = server.getsockname()[1]
        streams = node.streams(msl_ns=50_000_000)
        assert node.filters[0].rules == []
        connection = node.connect(KERNEL, port, timeout=PATIENCE)
        assert [str(rule) for rule in node.filters[0].rules] == [
            f"tcp dst {SHARED}:{connection.local[1]} -> main",
            f"icmp-error tcp src {SHARED}:{connection.local[1]} -> main",
        ]
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(connection.local)  # the kernel's programs cannot have it
        connection.close()
        server.accept()[0].close()
        streams.wait(lambda: not node.filters[0].rules, PATIENCE, "the end of TIME-WAIT")
        with socket.socket() as other:
            other.bind(connection.local)
        no_resets_by_the_kernel(kernel)


def test_flows_of_a_shared_address_are_bounded_by_the_filters_rules(lab_pair):
    kernel, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0") as node, listener(kernel) as server:
        streams, to = node.streams(), server.getsockname()
        steer = node.filters[0]
        steer.add_rules([f"udp dst 10.99.{n // 250}.{n % 250 + 1}:5000 -> main" for n in range(1021)])
        connection = node.connect(*to, timeout=PATIENCE)
        with pytest.raises(CapacityError, match="1025 rules, at most 1024 fit"):
            node.connect(*to, timeout=PATIENCE)
        assert len(steer.rules) == 1023
        assert streams.stats()["connections"] == 1
        sock, _ = server.accept()
        with sock:
            sock.sendall(b"and on")
            connection.timeout = PATIENCE
            assert connection.read_exactly(6) == b"and on"
        connection.close()


def test_a_listener_and_whom_it_accepted_share_a_rule(lab_pair):
    kernel, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0") as node:
        node.streams(msl_ns=50_000_000)
        waiting = node.listen(7000)
        with kernel.enter():
            sock = socket.socket()
            sock.setblocking(False)
            assert sock.connect_ex((SHARED, 7000)) == errno.EINPROGRESS
        connection = waiting.accept(PATIENCE)
        waiting.close()
        assert len(node.filters[0].rules) == 2, "the flow's, and ICMP errors about it"
        connection.timeout = PATIENCE
        sock.send(b"still")
        assert connection.read() == b"still"
        connection.close()
        sock.close()
        streams = node.streams()
        streams.wait(lambda: not node.filters[0].rules, PATIENCE, "its end")


def test_a_port_that_a_program_has_is_in_use(lab_pair):
    _, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0") as node, socket.create_server((SHARED, 7000)):
        with pytest.raises(OSError, match="in use"):
            node.listen(7000)
        with pytest.raises(OSError, match="in use"):
            node.connect(KERNEL, 80, local=("", 7000))
        assert node.filters[0].rules == []


@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
def test_neighbours_that_nobody_knew_are_found_in_both_directions(make_pair, own):
    kernel, ours = make_pair(neighbours=False)
    address = OWN if own else SHARED
    with (
        ours.enter(),
        nodes.open("xsk:t0", **WAYS["own" if own else "shared"]) as node,
        node.listen(7000) as door,
    ):

        def call() -> None:
            with socket.create_connection((address, 7000), timeout=PATIENCE) as sock:
                assert sock.recv(10) == b"welcome"

        child = kernel.fork(call)
        with door.accept(PATIENCE) as connection:
            connection.write(b"welcome")
        node.streams().wait(lambda: child.poll() is not None, PATIENCE, "the caller")
        assert child.wait(PATIENCE) == 0
    kernel.run(["ip", "neigh", "flush", "all"])
    ours.run(["ip", "neigh", "flush", "all"])
    with (
        ours.enter(),
        nodes.open("xsk:t0", **WAYS["own" if own else "shared"]) as node,
        listener(kernel) as server,
    ):
        node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE).close()


def test_the_kernel_keeps_what_is_not_ours(lab_pair):
    """Its own connections over the same interface go on beside ours."""
    kernel, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0") as node, listener(kernel) as server:
        connection = node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE)
        server.accept()
        with socket.create_connection(server.getsockname(), timeout=PATIENCE) as theirs:
            sock, _ = server.accept()
            theirs.sendall(b"kernel to kernel")
            assert sock.recv(100) == b"kernel to kernel"
        assert connection.state == "established"
        connection.close()


def test_a_thousand_at_once_and_places_are_a_bound(lab_pair):
    a_thousand_at_once(*lab_pair, WAYS["own"], listener)


def a_thousand_at_once(kernel, ours, own, listening):
    """``own``: for ``nodes.open``; ``listening`` makes the kernel's listener. So below; those of IPv6 are
    in ``test_tcp_linux6.py``."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours.enter(), nodes.open("xsk:t0", **own) as node, contextlib.ExitStack() as undo:
        undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, files)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(files[0], 2048), max(files[1], 2048)))
        streams = node.streams(connections=1000, send_bytes=4096, receive_bytes=4096)
        server = undo.enter_context(listening(kernel))
        server.listen(1200)
        server.settimeout(PATIENCE)
        to, port = server.getsockname()[:2]
        mine = [streams.open(to, port) for _ in range(1000)]
        with pytest.raises(CapacityError, match="in use"):
            streams.open(to, port)
        streams.wait(lambda: all(one.is_open for one in mine), PATIENCE, "all of them")
        theirs = {}
        for _ in mine:
            sock, peer = server.accept()
            theirs[peer[1]] = undo.enter_context(sock)
        for number, one in enumerate(mine):
            one.put(b"%d" % number)
        for number, one in enumerate(mine):
            theirs[one.local[1]].settimeout(PATIENCE)
            assert theirs[one.local[1]].recv(10) == b"%d" % number
            theirs[one.local[1]].sendall(b"and %d" % number)
        streams.wait(lambda: all(one.info()["unread"] for one in mine), PATIENCE, "all answers")
        for number, one in enumerate(mine):
            assert one.take() == b"and %d" % number
            one.abort()
            one.close()
        assert streams.stats()["connections"] == 0


def resident() -> int:
    """KiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 10


def test_opened_and_closed_one_after_another_leaves_nothing(lab_pair):
    one_after_another(*lab_pair, WAYS["own"], listener)


def one_after_another(kernel, ours, own, listening):
    count = int(os.environ.get("XDS_TCP_CONNECTIONS", "200"))
    with ours.enter(), nodes.open("xsk:t0", **own) as node, listening(kernel) as server:

        def serve() -> None:
            for _ in range(count):
                sock, _ = server.accept()
                with sock:
                    sock.sendall(sock.recv(10))

        child = kernel.fork(serve)
        streams = node.streams(connections=8, msl_ns=1_000_000, ports=(50_000, 50_063))
        port, memory = node.engine.ports[0], 0
        frames = sum(port.census().values())
        for number in range(count):
            if number == count // 2:  # what is made once has been made
                node.stats()
                memory = resident()
            with node.connect(*server.getsockname()[:2], timeout=PATIENCE) as connection:
                connection.timeout = PATIENCE
                connection.write(b"%d" % number)
                assert connection.read() == b"%d" % number
                assert connection.read() == b""
        settle(node)
        assert child.wait(PATIENCE) == 0
        assert streams.stats()["opened"] == count
        assert node.stats()["ports"][0]["tx_no_frame"] == 0
        streams.wait(lambda: streams.stats()["connections"] == 0, PATIENCE, "TIME-WAIT")
        streams.wait(lambda: port.census()["rx_leased"] == 0, PATIENCE, "the last frame")
        assert sum(port.census().values()) == frames
        assert resident() < memory + 1024, "KiB more than after the first half"


def test_a_thousand_connections_of_the_kernels_at_once_are_accepted(lab_pair):
    a_thousand_of_the_kernels(*lab_pair, WAYS["own"])


def a_thousand_of_the_kernels(kernel, ours, own):
    address = own["address"].partition("/")[0]

    def call() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        socks = [socket.socket(family) for _ in range(1000)]
        for sock in socks:
            sock.setblocking(False)
            assert sock.connect_ex((address, 7000)) == errno.EINPROGRESS
        for number, sock in enumerate(socks):
            sock.settimeout(PATIENCE)
            assert sock.recv(7) == b"welcome"
            sock.send(b"%d" % number)
            assert sock.recv(10) == b"%d" % number

    with ours.enter(), nodes.open("xsk:t0", **own) as node:
        streams = node.streams(connections=1000, send_bytes=4096, receive_bytes=4096)
        mine: list[Connection] = []

        def answer(one: Connection) -> None:
            if data := one.take():
                assert one.put(data) == len(data)

        def come(bits: int) -> None:
            while (one := door.take()) is not None:
                one.callback = lambda bits, one=one: answer(one)
                assert one.put(b"welcome") == 7
                mine.append(one)

        with node.listen(7000, backlog=1024) as door:
            door.callback = come
            child = kernel.fork(call)
            streams.wait(lambda: child.poll() is not None, PATIENCE, "the kernel's program")
            assert child.wait(PATIENCE) == 0
            assert len(mine) == streams.stats()["connections_max"] == 1000
            for one in mine:
                one.abort()
                one.close()
        assert streams.stats()["connections"] == 0


def test_kernels_connections_one_after_another_leave_nothing(lab_pair):
    kernels_one_after_another(*lab_pair, WAYS["own"])


def kernels_one_after_another(kernel, ours, own):
    count = int(os.environ.get("XDS_TCP_CONNECTIONS", "200"))
    address = own["address"].partition("/")[0]

    def call() -> None:
        for number in range(count):
            with socket.create_connection((address, 7000), timeout=PATIENCE) as sock:
                sock.sendall(b"%d" % number)
                assert sock.recv(10) == b"%d" % number
                assert sock.recv(10) == b""

    with ours.enter(), nodes.open("xsk:t0", **own) as node:
        streams = node.streams(connections=8, msl_ns=1_000_000)
        port, memory = node.engine.ports[0], 0
        frames = sum(port.census().values())
        with node.listen(7000, backlog=4) as door:
            child = kernel.fork(call)
            for number in range(count):
                if number == count // 2:  # what is made once has been made
                    node.stats()
                    memory = resident()
                with door.accept(PATIENCE) as connection:
                    connection.timeout = PATIENCE
                    connection.write(connection.read())
            settle(node)
            streams.wait(lambda: child.poll() is not None, PATIENCE, "the kernel's program")
            assert child.wait(PATIENCE) == 0
        assert streams.stats()["accepted"] == count
        streams.wait(lambda: streams.stats()["connections"] == 0, PATIENCE, "TIME-WAIT")
        streams.wait(lambda: port.census()["rx_leased"] == 0, PATIENCE, "the last frame")
        assert sum(port.census().values()) == frames
        assert resident() < memory + 1024, "KiB more than after the first half"


def ask_until_told(sock: socket.socket) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        sock.sendall(b"are you there?")
        time.sleep(0.01)


@both_ways
def test_we_are_killed_and_the_peer_sees_a_reset_and_the_port_is_free(lab_pair, way):
    """-9 takes the filter along: the kernel answers what comes for a connection that it does not know."""
    kernel, ns = lab_pair
    address = OWN if way == "own" else SHARED

    def victim() -> None:
        with nodes.open("xsk:t0", **WAYS[way]) as node, node.listen(7000) as waiting:
            connection = waiting.accept(PATIENCE)
            connection.timeout = PATIENCE
            connection.write(connection.read())
            connection.read()

    def connected() -> socket.socket:
        with kernel.enter():
            sock = socket.socket()
        sock.settimeout(PATIENCE)
        end = time.monotonic() + PATIENCE
        while True:  # it takes a moment until it listens: then the kernel refuses, or nobody answers ARP
            try:
                sock.connect((address, 7000))
                return sock
            except OSError:
                assert time.monotonic() < end
                with kernel.enter():
                    sock = socket.socket()
                sock.settimeout(PATIENCE)

    for _ in range(2):
        child = ns.fork(victim)
        sock = connected()
        sock.sendall(b"hello")
        assert sock.recv(10) == b"hello"
        os.kill(child.pid, signal.SIGKILL)
        child.wait(PATIENCE)
        if way == "shared":  # of an address that nobody has it would hear nothing
            with pytest.raises(ConnectionError):
                ask_until_told(sock)
        sock.close()


def test_settings_are_taken_once_and_ports_without_frames_have_no_tcp(lab_pair):
    _, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0", **WAYS["own"]) as node:
        node.streams(connections=10)
        with pytest.raises(LocalProtocolError, match="has its settings already"):
            node.streams(connections=20)
        with pytest.raises(ConfigError, match="called other"):
            node.streams("other")
    with ours.enter(), nodes.open("sock:t0") as node:
        node.feed("plain", groups=["239.1.1.1:5000"])
        with pytest.raises(ConnectionRefusedError):  # its own kernel's sockets have it
            node.connect(KERNEL, 80)
    with pytest.raises(ConfigError, match=r"address: wanted an address with its prefix .*, not '10.0"):
        nodes.open("xsk:t0", address="10.0.0.1")


@pytest.mark.rfc("9293", "MUST-47", "SHLD-20")
def test_with_feeds_nobody_waits_and_callbacks_tell(lab_pair):
    kernel, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0", **WAYS["own"]) as node, listener(kernel) as server:
        node.feed("plain", groups=["239.1.1.1:5000"])
        streams = node.streams()
        with pytest.raises(LocalProtocolError, match="would lose batches"):
            node.connect(KERNEL, server.getsockname()[1])
        connection = streams.open(KERNEL, server.getsockname()[1])
        seen: list[int] = []
        connection.callback = seen.append
        end = time.monotonic() + PATIENCE
        for _ in node.run(spins=100, idle=lambda: connection.is_open):
            assert time.monotonic() < end
        assert connection.is_open
        assert seen
        sock, _ = server.accept()
        sock.sendall(b"tick")
        for _ in node.run(spins=100, idle=lambda: connection.take() == b"tick"):
            assert time.monotonic() < end
        sock.close()
        connection.close()
