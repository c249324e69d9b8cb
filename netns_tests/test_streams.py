"""Streams over AF_XDP and over kernel sockets: the same promises, blocking, by callback and under asyncio."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from xdpstack import aio
from xdpstack import node as nodes
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError
from xdpstack.testing_streams import CHECKS, PATIENCE, Peer, check_streams

KERNEL, SHARED, OWN = "10.77.0.1", "10.77.0.2", "10.77.0.9"
WAYS = {"own": ("xsk:t0", OWN), "shared": ("xsk:t0", SHARED), "sock": ("sock:t0", SHARED)}


@pytest.fixture(params=WAYS)
def ends(lab_pair, request):
    """(the node, its peer), by each way of being on an interface."""
    kernel, ours = lab_pair
    port, own = WAYS[request.param]
    options = {"address": f"{OWN}/24"} if request.param == "own" else {}
    with ours.enter(), nodes.open(port, **options) as node:
        yield node, Peer(lambda: kernel.socket(socket.AF_INET, socket.SOCK_STREAM), KERNEL, own)


@pytest.fixture
def sock(lab_pair):
    kernel, ours = lab_pair
    with ours.enter(), nodes.open("sock:t0") as node:
        yield node, Peer(lambda: kernel.socket(socket.AF_INET, socket.SOCK_STREAM), KERNEL, SHARED)


@pytest.mark.timeout(600)
def test_streams_keep_their_promises(ends):
    node, peer = ends
    assert len(CHECKS) >= 13
    check_streams(node.streams(), peer)


def test_asyncio_runs_over_each(ends):
    node, peer = ends
    data = bytes(range(256)) * 1024

    async def serve(reader, writer):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def client(port):
        with peer.make() as one:
            one.setblocking(False)
            await asyncio.get_running_loop().sock_connect(one, (peer.own, port))
            reader, writer = await asyncio.open_connection(sock=one)
            return await exchange(reader, writer)

    async def exchange(reader, writer):
        async def say():
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        talk, got = asyncio.create_task(say()), b""
        while piece := await reader.read(65536):
            got += piece
        await talk
        writer.close()
        await writer.wait_closed()
        return got

    async def main():
        async with await aio.start_server(node, serve, 7000):
            assert await client(7000) == data
        with peer.server() as server:
            server.setblocking(False)
            theirs = await asyncio.start_server(serve, sock=server)
            async with theirs:
                reader, writer = await aio.open_connection(node, KERNEL, server.getsockname()[1])
                assert await exchange(reader, writer) == data
        with peer.make() as silent:
            silent.bind((KERNEL, 0))
            with pytest.raises(ConnectionRefusedError):
                await aio.open_connection(node, KERNEL, silent.getsockname()[1])

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_kernel_sockets_refuse_settings_that_they_do_not_have(sock):
    node, peer = sock
    for settings, said in [
        ({"congestion": "none"}, "kernel sockets always have one"),
        ({"ecn": 1}, "TCP setting ecn: kernel sockets have none of their own"),
        ({"msl_ns": 5}, "TCP setting msl_ns: kernel sockets have none of their own"),
        ({"keep_idle_ns": 1_500_000_000}, "whole seconds"),
    ]:
        with pytest.raises(ConfigError, match=said):
            node.connect(peer.address, 9, **settings)
    with pytest.raises(LocalProtocolError, match="over AF_XDP, not over kernel sockets"):
        node.streams().set_hook(None)
    with peer.accepted(node.streams()) as (mine, _):
        for lend in (mine.take_view, mine.put_view):
            with pytest.raises(LocalProtocolError, match="kernel sockets have no memory to lend"):
                lend()
        with pytest.raises(LocalProtocolError, match="a tap is over AF_XDP"):
            mine.tap("x.pcapng")
        with pytest.raises(LocalProtocolError, match="messages are prepared over AF_XDP"):
            mine.prepare(b"x")
    with pytest.raises(LocalProtocolError, match="has its settings already"):
        node.streams(connections=3)


def test_kernel_sockets_are_bounded_and_counted(lab_pair):
    kernel, ours = lab_pair
    with ours.enter(), nodes.open("sock:t0") as node:
        peer = Peer(lambda: kernel.socket(socket.AF_INET, socket.SOCK_STREAM), KERNEL, SHARED)
        streams = node.streams(connections=1, listeners=1)
        with peer.server() as server, peer.opened(streams, server):
            with pytest.raises(CapacityError, match="every connection, listener or local port"):
                streams.connect(KERNEL, server.getsockname()[1])
            with streams.listen(7000), pytest.raises(CapacityError):
                streams.listen(7001)
        assert streams.stats() == {
            "opened": 1, "accepted": 0, "refused": 0, "connections": 0, "connections_max": 1,
        }  # fmt: skip


def test_where_no_route_leads_is_told_at_once(ends):
    node, _ = ends
    with pytest.raises(OSError, match=r"(connect|no way) to 192\.0\.2\.1") as caught:
        node.connect("192.0.2.1", 9)
    assert caught.value.errno == errno.ENETUNREACH


@pytest.mark.parametrize("port", ["xsk:t0", "sock:t0"])
def test_a_program_in_toml_says_how_its_connections_are(lab_pair, tmp_path, port):
    kernel, ours = lab_pair
    path = tmp_path / "it.toml"
    path.write_text(
        f'[ports.main]\nport = "{port}"\n[tcp]\ngive_up = 20.0\nnagle = true\nmss = 500\nconnections = 1\n'
    )
    with ours.enter(), nodes.open(str(path)) as node:
        peer = Peer(lambda: kernel.socket(socket.AF_INET, socket.SOCK_STREAM), KERNEL, SHARED)
        streams = node.streams()
        with peer.accepted(streams) as (mine, theirs):
            assert mine.info()["give_up_ns"] == 20_000_000_000
            assert mine.info()["mss"] <= 500
            mine.write(b"x")
            assert theirs.recv(10) == b"x"
            with pytest.raises(CapacityError):
                streams.connect(KERNEL, 9)
