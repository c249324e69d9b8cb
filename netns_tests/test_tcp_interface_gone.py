"""The interface under an open connection goes: who reads, writes, is called or awaits hears of it in time.

An interface that comes back in time is none that went: the connection goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time

import pytest

from netns_tests.test_following import answers, echo
from netns_tests.test_links import change, delete, join_again
from netns_tests.test_tcp_linux import KERNEL, SHARED, WAYS, accept_and, listener
from xdpstack import aio
from xdpstack import node as nodes
from xdpstack.connecting import SharedAddress
from xdpstack.lab.host import in_thread  # netlink has an event loop of its own

PATIENCE = 120.0
LARGE = bytes(8 << 20)
LONG = bool(os.environ.get("XDS_TCP_GONE"))  # every way, interface and face
SOME = {("shared", "deleted", "read"), ("shared", "moved", "asyncio read"), ("own", "moved", "write")}


def hold(sock):
    """Reads nothing and says nothing."""
    time.sleep(PATIENCE)


def reads(node, port, goes, **more):
    with node.connect(KERNEL, port, timeout=PATIENCE, **more) as connection:
        connection.timeout = PATIENCE
        goes()
        connection.read()


def writes(node, port, goes, **more):
    with node.connect(KERNEL, port, timeout=PATIENCE, **more) as connection:
        connection.timeout = PATIENCE
        goes()
        connection.write(LARGE)


def is_called(node, port, goes, **more):
    streams, told = node.streams(), []
    with node.connect(KERNEL, port, timeout=PATIENCE, **more) as connection:
        connection.callback = told.append
        goes()
        connection.put(b"x")
        end = time.monotonic() + PATIENCE
        while connection.error is None:
            streams.turn(100)
            assert time.monotonic() < end, "nobody was told"
        assert told, "the callback was called"
        connection.check()


def awaited(work):
    def face(node, port, goes, **more):
        async def main():
            reader, writer = await aio.open_connection(node, KERNEL, port, **more)
            goes()
            try:
                await work(reader, writer)
            finally:
                writer.transport.abort()

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    return face


async def awaits_bytes(reader, writer):
    await reader.read(1)


async def awaits_room(reader, writer):
    writer.write(LARGE)
    await writer.drain()


class Paused(asyncio.Protocol):
    def __init__(self):
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        transport.pause_reading()

    def connection_lost(self, error):
        self.lost.set_result(error)


def is_paused(node, port, goes, **more):
    """It reads nothing now, and has written more than fits."""

    async def main():
        transport, protocol = await aio.create_connection(node, Paused, KERNEL, port, **more)
        transport.write(LARGE)
        goes()
        if (error := await protocol.lost) is not None:
            raise error

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


FACES = {
    "read": reads,
    "write": writes,
    "callback": is_called,
    "asyncio read": awaited(awaits_bytes),
    "asyncio write": awaited(awaits_room),
    "asyncio paused": is_paused,
}
GONE = {
    "deleted": (lambda kernel, us: delete(us, "t0"), errno.ENETDOWN, r"t0 was deleted and did not come back"),
    "moved": (
        lambda kernel, us: change(us, "t0", net_ns_fd=kernel.fd),
        errno.ENETDOWN,
        r"t0 was moved to another network namespace and did not come back",
    ),
}


@pytest.fixture
def held(lab_pair):
    kernel, us = lab_pair
    with listener(kernel) as server:
        child = kernel.fork(accept_and, hold, server)
        yield kernel, us, server.getsockname()[1]
        child.kill()


@pytest.mark.parametrize(
    ("way", "gone", "face"),
    [
        (way, gone, face)
        for way in WAYS
        for gone in GONE
        for face in FACES
        if LONG or (way, gone) == ("own", "deleted") or (way, gone, face) in SOME
    ],
)
def test_who_uses_a_connection_whose_interface_went_is_told(held, monkeypatch, way, gone, face):
    monkeypatch.setattr(SharedAddress, "withdrawn", 3600.0)
    kernel, us, port = held
    go, number, words = GONE[gone]
    with us.enter(), nodes.open("xsk:t0", link_wait=0.3, **WAYS[way]) as node:
        node.streams()
        begun = time.monotonic()
        with pytest.raises(OSError, match=words) as caught:
            FACES[face](node, port, lambda: in_thread(lambda: go(kernel, us)))
        assert caught.value.errno == number
        assert f"connection to {KERNEL}:{port}" in str(caught.value)
        assert time.monotonic() - begun < 60.0


@pytest.mark.parametrize("face", FACES if LONG else ["read", "asyncio write"])
def test_down_takes_the_kernels_way_along_and_of_a_shared_address_that_is_the_end(held, monkeypatch, face):
    monkeypatch.setattr(SharedAddress, "withdrawn", 0.3)
    _, us, port = held
    with us.enter(), nodes.open("xsk:t0") as node:
        with pytest.raises(OSError, match=f"no way to {KERNEL}") as caught:
            FACES[face](node, port, lambda: in_thread(lambda: change(us, "t0", state="down")))
        assert caught.value.errno == errno.ENETUNREACH


@pytest.mark.parametrize("face", ["write", "asyncio paused"])
def test_down_under_an_address_of_our_own_is_a_peer_that_does_not_answer(held, face):
    """As under the kernel's own connections: what was written is waited for as long as the user says."""
    _, us, port = held
    with us.enter(), nodes.open("xsk:t0", **WAYS["own"]) as node:
        node.streams()
        with pytest.raises(TimeoutError, match=f"{KERNEL}:{port}: Connection timed out"):
            FACES[face](
                node, port, lambda: in_thread(lambda: change(us, "t0", state="down")), give_up_ns=500_000_000
            )


# -- what comes back in time


@contextlib.contextmanager
def echoing(kernel, us, way):
    """(a node, a connection of its to an echo)."""
    with listener(kernel) as server:
        child = kernel.fork(accept_and, echo, server)
        with us.enter(), nodes.open("xsk:t0", link_wait=PATIENCE, **WAYS[way]) as node:
            connection = node.connect(KERNEL, server.getsockname()[1], timeout=PATIENCE)
            answers(connection, b"before")
            yield node, connection
            connection.close()
        child.kill()


def away_and_back(way):
    def down_and_up(lab, kernel, us):
        change(us, "t0", state="down")
        yield
        change(us, "t0", state="up")

    def renamed(lab, kernel, us):
        change(us, "t0", ifname="t9")
        yield

    def made_anew(lab, kernel, us):
        delete(us, "t0")
        yield
        join_again(lab, kernel, us)

    def moved_and_back(lab, kernel, us):
        change(us, "t0", net_ns_fd=kernel.fd)
        yield
        change(kernel, "t0", net_ns_fd=us.fd)
        with us.netlink() as route:
            number = route.link_lookup(ifname="t0")[0]
            route.addr("add", index=number, address=SHARED, prefixlen=24)
        change(us, "t0", state="up")

    return {one.__name__: one for one in (down_and_up, renamed, made_anew, moved_and_back)}[way]


BACK = ("down_and_up", "renamed", "made_anew", "moved_and_back")


@pytest.mark.parametrize(
    ("way", "back"),
    [(way, back) for way in WAYS for back in BACK if LONG or way == "own" or back in BACK[2:]],
)
def test_a_connection_goes_on_over_an_interface_that_came_back(lab_pair, monkeypatch, way, back):
    monkeypatch.setattr(SharedAddress, "withdrawn", 3600.0)
    kernel, us = lab_pair
    with echoing(kernel, us, way) as (node, connection):
        steps = away_and_back(back)(us.lab, kernel, us)
        next(steps)
        connection.put(b"meanwhile")
        seen = time.monotonic() + 0.3
        node.streams().wait(lambda: time.monotonic() > seen, PATIENCE, "a moment without it")
        next(steps, None)
        assert connection.read_exactly(9) == b"meanwhile"
        answers(connection, b"after")


@pytest.mark.parametrize("back", BACK if LONG else BACK[2:])
def test_a_protocol_goes_on_over_an_interface_that_came_back(lab_pair, back):
    kernel, us = lab_pair
    with (
        listener(kernel) as server,
        us.enter(),
        nodes.open("xsk:t0", link_wait=PATIENCE, **WAYS["own"]) as node,
    ):
        child = kernel.fork(accept_and, echo, server)
        node.streams()

        async def main():
            reader, writer = await aio.open_connection(node, KERNEL, server.getsockname()[1])
            steps = away_and_back(back)(us.lab, kernel, us)
            in_thread(lambda: next(steps))
            await asyncio.sleep(0.3)
            in_thread(lambda: next(steps, None))
            for text in (b"first", b"second"):
                writer.write(text)
                assert await reader.readexactly(len(text)) == text
            writer.transport.abort()

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        child.kill()
