"""asyncio over AF_XDP: asyncio's own streams and protocols on our transport, and kernel sockets as peers."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import socket
import threading

import pytest

from xdpstack import aio
from xdpstack import node as nodes
from xdpstack.errors import LocalProtocolError

KERNEL, SHARED, OWN = "10.77.0.1", "10.77.0.2", "10.77.0.9"
PATIENCE = 240.0
TEXT = random.Random(1).randbytes(1 << 20)


both_ways = pytest.mark.parametrize("pair", ["own", "shared"], indirect=True)


@pytest.fixture
def pair(lab_pair, request):
    """The kernel's namespace and a node, with an address of its own or the kernel's."""
    kernel, ours = lab_pair
    options = {"address": f"{OWN}/24"} if getattr(request, "param", "own") == "own" else {}
    with ours.enter(), nodes.open("xsk:t0", **options) as node:
        yield kernel, node


def address(node):
    return OWN if node.program.ports[0].options else SHARED


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


async def echo(reader, writer):
    """asyncio's own example."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


def kernels_echo(server):
    async def main():
        done = asyncio.Event()

        async def one(reader, writer):
            await echo(reader, writer)
            done.set()

        async with await asyncio.start_server(one, sock=server):
            await done.wait()

    run(main())


def kernels_client(address, port):
    async def main():
        reader, writer = await asyncio.open_connection(address, port)
        await exchange(reader, writer)

    run(main())


async def exchange(reader, writer):
    """A mebibyte there and back."""

    async def say():
        writer.write(TEXT)
        await writer.drain()
        writer.write_eof()

    talk = asyncio.create_task(say())
    sha = hashlib.sha256()
    while data := await reader.read(10_000):
        sha.update(data)
    await talk
    writer.close()
    await writer.wait_closed()
    assert sha.digest() == hashlib.sha256(TEXT).digest()


def settle(node):
    streams = node.streams()
    streams.wait(lambda: streams.unfinished == 0, PATIENCE, "the end of all connections")


@both_ways
def test_stream_client_of_ours_and_asyncios_server(pair):
    kernel, node = pair
    with kernel.enter():
        server = socket.create_server((KERNEL, 0))
    with server:
        child = kernel.fork(kernels_echo, server)

        async def main():
            reader, writer = await aio.open_connection(node, KERNEL, server.getsockname()[1])
            assert writer.get_extra_info("peername") == (KERNEL, server.getsockname()[1])
            assert writer.get_extra_info("sockname")[0] == address(node)
            await exchange(reader, writer)

        run(main())
        settle(node)
        assert child.wait(PATIENCE) == 0


@both_ways
def test_stream_server_of_ours_and_asyncios_client(pair):
    kernel, node = pair

    async def main():
        done = asyncio.Event()

        async def one(reader, writer):
            await echo(reader, writer)
            done.set()

        async with await aio.start_server(node, one, 7000) as server:
            assert server.is_serving()
            assert server.address == ("", 7000)
            child = kernel.fork(kernels_client, address(node), 7000)
            await done.wait()
            while child.poll() is None:
                await asyncio.sleep(0.01)
            assert child.wait(PATIENCE) == 0
        assert not server.is_serving()

    run(main())
    settle(node)
    assert node.streams().stats()["accepted"] == 1


class Recorder(asyncio.Protocol):
    """What a protocol of asyncio's is told, in order."""

    def __init__(self):
        self.seen, self.data = [], bytearray()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.seen.append("made")

    def data_received(self, data):
        self.data += data

    def eof_received(self):
        self.seen.append("eof")

    def pause_writing(self):
        self.seen.append("pause")

    def resume_writing(self):
        self.seen.append("resume")

    def connection_lost(self, error):
        self.seen.append(type(error).__name__)
        self.lost.set_result(error)


class Buffered(asyncio.BufferedProtocol):
    def __init__(self):
        self.room, self.got = bytearray(7), bytearray()
        self.lost = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint):
        return self.room

    def buffer_updated(self, count):
        self.got += self.room[:count]

    def eof_received(self):
        return False

    def connection_lost(self, error):
        self.lost.set_result(error)


def serve_once(kernel, work):
    """A kernel's socket that was accepted goes to ``work``, in a process of its own; its port."""
    with kernel.enter():
        server = socket.create_server((KERNEL, 0))

    def main():
        server.settimeout(PATIENCE)
        sock, _ = server.accept()
        sock.settimeout(PATIENCE)
        with sock:
            work(sock)

    child = kernel.fork(main)
    port = server.getsockname()[1]
    server.close()
    return child, port


def test_a_protocol_is_told_what_asyncio_would_tell(pair):
    kernel, node = pair

    def work(sock):
        got = 0
        while got < len(TEXT):
            got += len(sock.recv(1000))
        sock.sendall(b"thanks")

    child, port = serve_once(kernel, work)

    async def main():
        transport, protocol = await aio.create_connection(node, Recorder, KERNEL, port)
        assert transport.get_protocol() is protocol
        transport.write(TEXT[:-2])
        assert transport.get_write_buffer_size() > 0
        transport.writelines([TEXT[-2:-1], TEXT[-1:]])
        assert await protocol.lost is None
        assert protocol.seen == ["made", "pause", "resume", "eof", "NoneType"]
        assert bytes(protocol.data) == b"thanks"
        assert transport.is_closing()
        transport.write(b"nobody hears")
        transport.close()
        transport.abort()

    run(main())
    assert child.wait(PATIENCE) == 0


def test_a_buffered_protocol_gets_its_bytes_in_its_own_room(pair):
    kernel, node = pair
    child, port = serve_once(kernel, lambda sock: sock.sendall(TEXT[:1000]))

    async def main():
        _, protocol = await aio.create_connection(node, Buffered, KERNEL, port)
        assert await protocol.lost is None
        assert bytes(protocol.got) == TEXT[:1000]

    run(main())
    assert child.wait(PATIENCE) == 0


def test_who_pauses_reading_holds_the_peer(pair):
    kernel, node = pair
    child, port = serve_once(kernel, lambda sock: sock.sendall(TEXT))

    async def main():
        transport, protocol = await aio.create_connection(node, Recorder, KERNEL, port)
        transport.pause_reading()
        assert not transport.is_reading()
        connection = transport.get_extra_info("connection")
        while connection.info()["receive_window"] > 1448:
            await asyncio.sleep(0.01)
        held = len(protocol.data)
        await asyncio.sleep(0.05)
        assert len(protocol.data) == held
        transport.resume_reading()
        await protocol.lost
        assert bytes(protocol.data) == TEXT

    run(main())
    assert child.wait(PATIENCE) == 0


def test_refused_reset_and_no_room_are_asyncios_exceptions(pair):
    kernel, node = pair

    def rude(sock):
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    child, port = serve_once(kernel, rude)

    async def main():
        with pytest.raises(ConnectionRefusedError):
            await aio.open_connection(node, KERNEL, 9)
        transport, protocol = await aio.create_connection(node, Recorder, KERNEL, port)
        transport.write(b"x")
        assert isinstance(await protocol.lost, ConnectionResetError)
        with pytest.raises(OSError, match="no way") as caught:
            await aio.open_connection(node, "198.51.100.1", 80)
        assert caught.value.errno == errno.ENETUNREACH
        server = await aio.create_server(node, Recorder, 7000)
        with pytest.raises(OSError, match="in use"):
            await aio.create_server(node, Recorder, 7000)
        server.close()
        server.close()
        await server.wait_closed()

    run(main())
    assert child.wait(PATIENCE) == 0
    assert node.streams().stats()["connections"] == 0


def test_a_cancelled_connect_leaves_nothing(pair):
    _, node = pair
    streams = node.streams()

    async def main():
        task = asyncio.create_task(aio.open_connection(node, "10.77.0.66", 80))
        while not streams.stats()["opened"]:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert node.streams().stats()["connections"] == 0


def test_a_name_is_resolved_off_the_loop(pair, monkeypatch):
    """The resolver waits until the loop has gone on: on the loop it would wait for ever."""
    kernel, node = pair
    went_on, known, resolvers = threading.Event(), socket.getaddrinfo, []

    def resolve(host, *arguments, **more):
        if host == "exchange":
            resolvers.append(threading.current_thread())
            assert went_on.wait(PATIENCE), "the loop stood still"
        return known(KERNEL if host == "exchange" else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with kernel.enter():
        server = socket.create_server((KERNEL, 0))

    async def main():
        opening = asyncio.create_task(aio.open_connection(node, "exchange", server.getsockname()[1]))
        while not resolvers:
            await asyncio.sleep(0.001)
        assert not opening.done()
        went_on.set()
        _, writer = await opening
        assert writer.get_extra_info("peername")[0] == KERNEL
        writer.close()

    with server:
        run(main())
    assert resolvers[0] is not threading.main_thread()


def test_feeds_and_asyncio_do_not_share_an_engine(lab_pair):
    _, ours = lab_pair
    with ours.enter(), nodes.open("xsk:t0", address=f"{OWN}/24") as node:
        node.feed("plain", groups=["239.1.1.1:5000"])

        async def main():
            with pytest.raises(LocalProtocolError, match="would lose batches"):
                await aio.open_connection(node, KERNEL, 80)

        run(main())


@both_ways
def test_a_server_that_spins_before_it_waits_answers_all_the_same(pair):
    kernel, node = pair

    async def main():
        server = await aio.start_server(node, echo, 7000)
        other = await aio.create_server(node, asyncio.Protocol, 7001, spins=50)
        with kernel.enter():
            client = socket.socket()
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (address(node), 7000))
        for size in (1, 64, 5000):
            await loop.sock_sendall(client, TEXT[:size])
            got = b""
            while len(got) < size:
                got += await loop.sock_recv(client, 65536)
            assert got == TEXT[:size]
        client.close()
        for one in (server, other):
            one.close()

    run(main())


def test_a_loop_gives_the_nodes_tcp_to_who_asks_it_and_the_kernels_to_who_brings_a_socket(pair):
    kernel, node = pair
    with kernel.enter():
        server = socket.create_server((KERNEL, 0))

    async def main():
        loop = asyncio.get_running_loop()
        port = server.getsockname()[1]
        to, _ = await loop.create_connection(asyncio.Protocol, KERNEL, port, local_addr=("", 6000))
        ends = to.get_extra_info("socket")
        assert ends.getpeername() == (KERNEL, port)
        assert ends.getsockname() == (OWN, 6000)
        assert ends.fileno() == -1
        ends.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
        with pytest.raises(OSError) as caught:
            ends.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        assert caught.value.errno == errno.ENOPROTOOPT
        to.abort()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(asyncio.Protocol, KERNEL, 9)
        for host in ("0.0.0.0", OWN):
            waiting = await loop.create_server(asyncio.Protocol, host, 7000)
            assert waiting.address == ("" if host == "0.0.0.0" else OWN, 7000)
            assert waiting.sockets == ()
            waiting.close()
        theirs = await loop.create_server(asyncio.Protocol, sock=socket.create_server(("127.0.0.1", 0)))
        with socket.socket() as brought:
            brought.setblocking(False)
            await loop.sock_connect(brought, theirs.sockets[0].getsockname())
            through, _ = await loop.create_connection(asyncio.Protocol, sock=brought)
            assert not isinstance(through, aio.Transport)
            through.close()
        theirs.close()

    with server, asyncio.Runner(loop_factory=lambda: aio.Loop(node, spins=10)) as runner:
        runner.run(asyncio.wait_for(main(), PATIENCE))
    settle(node)
