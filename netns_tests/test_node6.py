"""Feeds over IPv6 on a real kernel: groups joined and steered, one sender's, requests, a recording; datagrams
of endpoints, both ways; names with addresses of both families."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time

import numpy as np
import pytest

from netns_tests.test_node import TRANSPORTS
from netns_tests.test_tcp_linux6 import KERNEL, OWN, SHARED, own
from xdpstack import aio, hooks
from xdpstack import node as nodes
from xdpstack._ffi import ffi, lib
from xdpstack.dropped import EngineDrops
from xdpstack.engine import EngineConfig
from xdpstack.flows import udp_frame
from xdpstack.interface import Interface
from xdpstack.lab import Lab
from xdpstack.lab.mold import HEADER
from xdpstack.port import Subscription
from xdpstack.publish import Commander, CommandsConfig, PublishConfig
from xdpstack.replay import replay, summary
from xdpstack.stats import segments
from xdpstack.strategies.lift import ORDER
from xdpstack.tests.frames import plain_message, plain_packet

LEVEL = int(lib.XDS_LEVEL)
GROUP, PORT, PACKETS, PATIENCE = "ff15::77:1", 5000, 500, 60.0
LINE = f"[{GROUP}]:{PORT}"
KERNEL4, SHARED4 = "10.77.6.1", "10.77.6.2"


@pytest.fixture(scope="module")
def wired():
    """(venue, trader), once for all: a new link takes seconds until neighbours are found over it."""
    with Lab(f"t{os.getpid()}-node6", ipv6=True) as lab:
        venue, trader = lab.namespace("venue"), lab.namespace("trader")
        lab.veth(venue, "v0", f"{KERNEL4}/24", trader, "t0", f"{SHARED4}/24")
        own(venue, "v0", KERNEL)
        own(trader, "t0", SHARED)
        end = time.monotonic() + PATIENCE
        for space, link, other in ((venue, "v0", SHARED), (trader, "t0", KERNEL)):
            with space.enter():
                while not Interface.find(link).next_hop(other)[1]:
                    assert time.monotonic() < end, "they find each other"
        yield venue, trader


def send(skip: tuple[int, ...] = (), count: int = PACKETS) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("v0"))
        for seq in range(count):
            if seq not in skip:
                out.sendto(plain_packet(seq, plain_message("A", "B", 1, 100 + seq % 7, 1)), (GROUP, PORT))
            if seq % 50 == 0:
                time.sleep(0.001)


def collect(node: nodes.Node, venue, last: int, **how) -> np.ndarray:
    """Send everything, and take it until the last packet is there."""
    node.build()
    child = venue.fork(send, **how)
    taken, end = [], time.monotonic() + PATIENCE
    for batch in node.run(idle=lambda: time.monotonic() > end, spins=1000):
        taken.append(batch.updates.copy())
        if len(taken[-1]) and taken[-1]["seq"][-1] == last:
            break
    assert child.wait(PATIENCE) == 0
    return np.concatenate(taken)


@pytest.mark.parametrize("port", TRANSPORTS)
@pytest.mark.parametrize("line", [LINE, f"{LINE}@[{KERNEL}]"], ids=["anybody", "one-sender"])
def test_every_update_arrives_once_in_order_with_its_stamp(wired, port, line):
    venue, trader = wired
    with trader.enter(), nodes.open(port) as node:
        feed = node.feed("plain", groups=[line])
        updates = collect(node, venue, PACKETS - 1)
        assert updates["seq"].tolist() == list(range(PACKETS))
        assert (np.diff(updates["rx_ns"]) >= 0).all()
        assert abs(int(updates["rx_ns"][-1]) - time.clock_gettime_ns(time.CLOCK_TAI)) < 100 * 10**9
        assert feed.ages["decoded"].summary().count == PACKETS
        if port.startswith("xsk"):
            assert GROUP in str(node.filters[0].rules[0])


@pytest.mark.parametrize("port", TRANSPORTS)
def test_another_senders_datagrams_do_not_come(wired, port):
    venue, trader = wired
    with trader.enter(), nodes.open(port) as node:
        node.feed("plain", groups=[f"{LINE}@[2001:db8:77::99]"])
        node.build()
        child = venue.fork(send, count=20)
        list(node.run(idle=lambda: child.poll() is not None))
        assert child.wait(PATIENCE) == 0
        assert node.stats()["engine"]["delivered"] == 0


@pytest.mark.parametrize("port", TRANSPORTS)
def test_a_recording_replays_to_the_same_books_and_counters(wired, port, tmp_path):
    venue, trader = wired
    path = tmp_path / "r.pcapng"
    with trader.enter(), nodes.open(port, record=str(path)) as node:
        node.feed("plain", groups=[LINE], window=0.01)
        collect(node, venue, PACKETS - 1, skip=(100, 101, 300))
        live = summary(node)
    again = replay(path)
    for key in ("books", "messages", "lines", "gaps", "packets", "stale"):
        assert again[key] == live[key], key
    assert again["messages_total"] == PACKETS - 3


def mold(sequence: int, *messages: bytes) -> bytes:
    head = HEADER.pack(b"SESSION001", sequence, len(messages))
    return head + b"".join(struct.pack(">H", len(one)) + one for one in messages)


@pytest.mark.parametrize("port", TRANSPORTS)
def test_what_is_lost_is_asked_for_and_answered_over_ipv6(wired, port):
    venue, trader = wired
    event = b"S" + bytes(10) + b"O"
    with venue.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server, trader.enter(), nodes.open(port) as node:
        server.bind((KERNEL, 0))
        server.settimeout(PATIENCE)
        with venue.enter():
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("v0"))
        where = f"[{KERNEL}]:{server.getsockname()[1]}"
        patient = {"retry": 0.05, "retries": 200, "give_up": PATIENCE}
        feed = node.feed("itch50", groups=[LINE], request=where, **patient)
        node.build()
        for sequence in (1, 2, 5):
            server.sendto(mold(sequence, event), (GROUP, PORT))
        end = time.monotonic() + PATIENCE

        def until(done) -> None:
            for _ in node.run(idle=lambda: done() or time.monotonic() > end, spins=100):
                if done():
                    return

        until(lambda: node.stats()["engine"]["requests"])
        until(lambda: node.stats()["engine"]["sent"])
        server.setblocking(False)
        asked: list[tuple[bytes, tuple]] = []

        def hear() -> bool:
            try:
                asked.append(server.recvfrom(100))
            except BlockingIOError:
                return False
            return True

        until(hear)
        request, client = asked[0]
        assert HEADER.unpack(request) == (b"SESSION001", 3, 2)
        assert client[0] == SHARED
        server.sendto(mold(3, event, event), client)
        until(lambda: feed.channels[0].stats()["next_seq"] == 6)
        assert node.stats()["engine"]["unrouted"] == 0
        assert feed.channels[0].stats()["gaps_open"] == 0


def test_what_nobody_wanted_is_shown_with_its_addresses(wired):
    venue, trader = wired
    with trader.enter(), nodes.open("xsk:t0", engine=EngineConfig(name="six")) as node:
        node.build()
        node.filters[0].add_rule(f"udp dst [{SHARED}]:6000 -> main")
        node.start()
        (found,) = [one for one in segments() if one.pid == os.getpid() and one.name == "six"]
        with EngineDrops(found) as drops, venue.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.bind((KERNEL, 0))
            sender.sendto(b"to nobody", (SHARED, 6000))
            end, taken = time.monotonic() + PATIENCE, []
            while not taken and time.monotonic() < end:
                taken = drops.read(0.05)
            assert [one.reason for one in taken] == ["unrouted"]
            assert taken[0].data == udp_frame(b"to nobody", (SHARED, 6000), (KERNEL, sender.getsockname()[1]))


def test_an_engine_echoes_udp_over_ipv6_by_af_xdp(wired):
    venue, trader = wired
    with trader.enter(), nodes.open("xsk:t0") as node:
        node.build()
        node.filters[0].add_rule(f"udp dst [{SHARED}]:7 -> main")
        node.engine.add_udp(SHARED, 7, lib.xds_udp_echo_handler(), ffi.NULL)
        node.engine.hosts[0].add_neighbour(KERNEL, venue.link("v0").get_attr("IFLA_ADDRESS"))
        runner = node.start()
        with venue.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            for size in (1, 18, 19, 700, 1452):
                client.sendto(b"x" * size, (SHARED, 7))
                data, source = client.recvfrom(2048)
                assert (data, source[:2]) == (b"x" * size, (SHARED, 7))
        assert runner.running


def test_a_hook_and_a_commander_send_over_ipv6_by_af_xdp(wired, tmp_path):
    venue, trader = wired
    to, sport = Subscription(address=KERNEL, port=9000), 9001
    with venue.socket(socket.AF_INET6, socket.SOCK_DGRAM) as exchange:
        exchange.bind((KERNEL, to.port))
        exchange.settimeout(PATIENCE)
        with trader.enter(), nodes.open("xsk:t0") as node:
            node.feed("plain", groups=[LINE])
            tape, ring = PublishConfig(tape=f"{tmp_path}/t"), CommandsConfig(ring=f"{tmp_path}/r")
            node.engine.publish(tape, ring)
            node.build()
            node.engine.hosts[0].add_neighbour(KERNEL, venue.link("v0").get_attr("IFLA_ADDRESS"))
            node.engine.set_hook(level_hook())
            node.start()
            child = venue.fork(send, count=1)
            data, source = exchange.recvfrom(2048)
            assert child.wait(PATIENCE) == 0
            order = np.frombuffer(data, ORDER)[0]
            assert (int(order["instrument"]), int(order["price"]), int(order["qty"])) == (1, 100, 1)
            assert source[:2] == (SHARED, sport)
            with Commander(tmp_path / "r") as commander:
                commander.send(b"by command", to, sport=sport)
                data, source = exchange.recvfrom(2048)
            assert (data, source[:2]) == (b"by command", (SHARED, sport))


def level_hook():
    to = hooks.address(KERNEL)

    @hooks.hook(np.zeros(3, np.int64))
    def strategy(state, updates, outbox, now):
        for i in range(len(updates)):
            u = updates[i]
            if u.kind == LEVEL and u.instrument == 1:
                state[0] = u.instrument
                state[1] = u.price
                state[2] = u.qty
                hooks.send6(outbox, state.view(np.uint8), to, 9000, 9001, 0)
        return 0

    return strategy


def test_an_address_of_our_own_takes_and_sends_datagrams(wired):
    """Neighbours are found by NDP, both ways."""
    venue, trader = wired
    with (
        venue.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer,
        trader.enter(),
        nodes.open("xsk:t0", address=f"{OWN}/64") as node,
    ):
        peer.bind((KERNEL, 0))
        peer.setblocking(False)
        node.engine.add_udp(OWN, 4000)
        node.build()
        end, got, heard = time.monotonic() + PATIENCE, [], []
        claimed = lambda: node.engine.hosts[0].claimed(OWN)[0] == "owned"  # noqa: E731
        list(node.run(idle=lambda: claimed() or time.monotonic() > end, spins=100))
        node.engine.send(b"by NDP", Subscription(address=KERNEL, port=peer.getsockname()[1]), sport=4000)

        def hear() -> bool:
            try:
                heard.append(peer.recvfrom(100))
            except BlockingIOError:
                return time.monotonic() > end
            return True

        list(node.run(idle=hear, spins=100))
        assert heard[0][0] == b"by NDP"
        assert heard[0][1][:2] == (OWN, 4000)
        peer.sendto(b"back", (OWN, 4000))
        for batch in node.run(idle=lambda: time.monotonic() > end, spins=100):
            got += batch.datagrams
            if got:
                break
        assert got == [(KERNEL, peer.getsockname()[1], b"back")]


def link_local(space, link: str) -> str:
    """An interface's own, once nobody else is found to have it."""
    end = time.monotonic() + PATIENCE
    with space.enter():
        while True:
            found = [
                text.partition("/")[0] for text in Interface.find(link).addresses6 if text.startswith("fe80")
            ]
            if found:
                return found[0]
            assert time.monotonic() < end, "there is one"
            time.sleep(0.02)


@pytest.mark.parametrize("port", TRANSPORTS)
@pytest.mark.parametrize("scope", ["", "%t0"], ids=["bare", "scoped"])
def test_a_link_local_peer_is_one_of_the_ports_link(wired, port, scope):
    venue, trader = wired
    theirs, ours = link_local(venue, "v0"), link_local(trader, "t0")
    with venue.enter():
        server = socket.socket(socket.AF_INET6)
        server.bind((theirs, 0, 0, socket.if_nametoindex("v0")))
    server.listen()
    server.settimeout(PATIENCE)
    with server, trader.enter(), nodes.open(port) as node:
        number = server.getsockname()[1]
        with node.connect(theirs + scope, number, timeout=PATIENCE) as one:
            taken, (peer, *_) = server.accept()
            with taken:
                assert peer.partition("%")[0] == ours
                taken.sendall(b"on this link")
                assert one.read_exactly(12) == b"on this link"
            assert one.remote == (theirs, number)


@pytest.fixture
def named(wired, monkeypatch):
    """(the kernel's namespace, ours); the name ``exchange`` has an address of each family, IPv6's first."""
    known = socket.getaddrinfo

    def resolve(host, *arguments, **more):
        hosts = (KERNEL, KERNEL4) if host == "exchange" else (host,)
        return [found for one in hosts for found in known(one, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return wired


@pytest.mark.parametrize("port", ["xsk:t0", "sock:t0"])
@pytest.mark.parametrize("listens", [KERNEL, KERNEL4], ids=["v6", "v4"])
def test_a_names_addresses_are_tried_in_their_order(named, port, listens):
    """Where IPv6 refuses, IPv4 is next; by blocking calls and under asyncio."""
    kernel, mine = named
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    with kernel.enter():
        server = socket.create_server((listens, 0), family=family)
    number = server.getsockname()[1]
    server.settimeout(PATIENCE)

    async def by_asyncio(node):
        reader, writer = await aio.open_connection(node, "exchange", number)
        taken, _ = await asyncio.to_thread(server.accept)
        with taken:
            await asyncio.to_thread(taken.sendall, b"hello")
            assert await reader.readexactly(5) == b"hello"
        writer.close()
        return writer.get_extra_info("peername")

    with server, mine.enter(), nodes.open(port) as node:
        with node.connect("exchange", number, timeout=PATIENCE) as one:
            assert one.remote == (listens, number)
            server.accept()[0].close()
        assert asyncio.run(by_asyncio(node))[0] == listens


@pytest.mark.parametrize("port", ["xsk:t0", "sock:t0"])
def test_where_no_address_of_a_name_answers_the_last_ones_error_is_told(named, port):
    kernel, mine = named
    with kernel.enter():
        closed = socket.create_server((KERNEL4, 0))
        number = closed.getsockname()[1]
        closed.close()
    with mine.enter(), nodes.open(port) as node, pytest.raises(ConnectionRefusedError, match=KERNEL4):
        node.connect("exchange", number, timeout=PATIENCE)
