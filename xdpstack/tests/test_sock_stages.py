"""Stages where the kernel has the sockets: of TCP connections; and of UDP endpoints, over pipes as well."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from xdpstack._ffi import ffi, lib
from xdpstack.clock import tai_ns
from xdpstack.engine import Engine, EngineConfig
from xdpstack.flows import udp_frame
from xdpstack.port import SockPort, pipe
from xdpstack.sock_streams import SockConnection, SockStreams
from xdpstack.stages import ENDPOINT
from xdpstack.stats import ROOT, Reader
from xdpstack.tests.test_runner import wait

HOME = "127.0.0.1"
SLACK = 50_000_000
"""ns between two clocks, and between the kernel's seconds of TAI and those that it had when it stamped."""


@contextlib.contextmanager
def joined(address: str = HOME, **config: object) -> Iterator[tuple[Engine, SockConnection, SockConnection]]:
    """A connection of kernel sockets over loopback, both ends the same engine's."""
    with Engine(EngineConfig(**config)) as engine, SockStreams(engine) as streams:
        listener = streams.listen(0, address=address)
        near = streams.connect(address, listener.address[1], timeout=60.0)
        far = listener.accept(60.0)
        far.timeout = near.timeout = 60.0
        yield engine, near, far


def stamped(near: SockConnection, far: SockConnection) -> None:
    """The kernel begins to stamp some milliseconds after the first socket wanted it to."""
    end = time.monotonic() + 60
    while not lib.xds_sock_stream_stamp(far.number):
        assert time.monotonic() < end, "the kernel never stamped"
        far.take()
        near.write(b"x")
    near.write(b".")  # behind all of them, which a busy kernel may bring later
    while not far.read().endswith(b"."):
        pass


def place_of(engine: Engine, one: SockConnection) -> int:
    assert engine.connections is not None
    for number in range(engine.connections.count - 1):
        words = engine.connections.raw[number].words
        if (words.id, words.port) == (one.number, lib.XDS_ENGINE_PORTS):
            return number
    raise AssertionError("no place is its own")


@pytest.mark.parametrize("address", [HOME, "::1"])
def test_a_callback_knows_when_the_kernel_had_its_bytes(address):
    with joined(address, stage_warm_up=0) as (engine, near, far):
        stamped(near, far)
        hists = engine.connections.places[place_of(engine, far)].by_stage
        before_count = len(hists["total"])
        seen = []
        far.callback = lambda bits: seen.append((bits, far.stages, tai_ns()))
        before = tai_ns()
        near.write(b"twelve bytes")
        wait(lambda: far.streams.turn() < 0 or bool(seen), 60.0)
        assert len(hists["total"]) == before_count + 1
        assert far.take(5) == b"twelv"
        assert far.take() == b"e bytes"
        assert far.stages is None, "only within the callback"
        ((_, stages, after),) = [one for one in seen if one[0] & lib.XDS_STACK_READABLE]
        assert before - SLACK <= stages.receive <= after + SLACK
        assert stages.wake <= stages.callback <= after + SLACK
        assert (stages.tls_start, stages.tls_end, stages.parsed) == (0, 0, 0)
        assert len(hists["total"]) == before_count + 1
        assert len(hists["wake"]) == len(hists["callback"]) == len(hists["total"])
        assert len(hists["parsed"]) == 0
        words = engine.connections.raw[place_of(engine, far)].words
        assert (words.local_port, words.remote_port) == (far.local[1], far.remote[1])
        peer = ipaddress.IPv6Address(words.remote_high << 64 | words.remote_low)
        assert str(peer.ipv4_mapped or peer) == address


def test_who_reads_without_being_told_is_counted_once_a_packet():
    with joined(stage_warm_up=0) as (engine, near, far):
        stamped(near, far)
        hists = engine.connections.places[place_of(engine, far)].by_stage
        before = len(hists["total"])
        for done in range(1, 4):
            near.write(b"12345678")
            wait(lambda: lib.xds_sock_stream_stamp(far.number) != 0, 60.0)
            assert far.take(3) == b"123"
            assert far.take(3) == b"456"
            assert far.take() == b"78"
            assert far.take() is None
            assert len(hists["total"]) == before + done


def test_who_frames_says_of_each_message_and_others_see_it():
    name = f"framed-{os.getpid()}"
    with joined(stage_warm_up=0, name=name) as (engine, near, far):
        stamped(near, far)
        number = place_of(engine, far)
        hists = engine.connections.places[number].by_stage
        before = {word: len(one) for word, one in hists.items()}
        near.write(b"12345678")
        assert far.read_exactly(4) == b"1234"  # without a callback: who reads counts, and may frame
        first = far.message()
        assert far.read_exactly(4) == b"5678"
        second = far.message()
        assert first.receive == second.receive > 0
        assert first.wake <= first.parsed == first.callback <= second.parsed
        near.write(b"and more")
        seen = []
        far.callback = lambda bits: seen.append((bits, far.take(), far.stages, far.message()))
        wait(lambda: far.streams.turn() < 0 or any(data for _, data, _, _ in seen), 60.0)
        ((_, data, news, third),) = [one for one in seen if one[1]]
        assert data == b"and more"
        assert (news.receive, news.wake, news.parsed) == (third.receive, third.wake, 0)
        after = {
            word: len(one) - before[word] for word, one in hists.items() if len(one) or "tls" not in word
        }
        assert after == {"wake": 2, "parsed": 3, "callback": 4, "total": 4}, "the first news counted, too"
        there = Reader(ROOT / f"xdpstack-{os.getpid()}-{name}.stat").histograms()
        assert len(there[f"conn.{number}.stage.parsed"]) == 3
        far.callback = None
        assert near.message() is None, "nothing came to it"


def test_a_connection_that_was_closed_gives_its_place_to_the_next():
    with joined(stage_warm_up=0, stage_connections=2) as (engine, near, far):
        stamped(near, far)
        own, other = place_of(engine, near), place_of(engine, far)
        assert {own, other} == {0, 1}
        rest = engine.connections.raw[2].words
        streams = near.streams
        listener = streams.listen(0, address=HOME)
        third = streams.connect(HOME, listener.address[1], timeout=60.0)
        assert rest.connections == 1, "both places are taken"
        near.close()
        fourth = streams.connect(HOME, listener.address[1], timeout=60.0)
        assert place_of(engine, fourth) == own
        assert engine.connections.raw[own].words.connections == 2
        assert len(engine.connections.places[own].by_stage["total"]) == 0
        far.abort()
        fifth = streams.connect(HOME, listener.address[1], timeout=60.0)
        assert place_of(engine, fifth) == other
        for one in (third, fourth, fifth):
            one.close()


def test_switched_off_nothing_is_stamped():
    with joined(stages=False) as (engine, near, far):
        assert engine.connections is None
        seen = []
        far.callback = lambda bits: seen.append(far.stages)
        near.write(b"12345678")
        wait(lambda: far.streams.turn() < 0 or bool(seen), 60.0)
        assert far.read(8) == b"12345678"
        assert set(seen) == {None}
        assert far.message() is None
        assert lib.xds_engine_conn_entered(engine.core, far.number, 1, 1) == 0


def test_a_socket_that_has_nothing_to_read_has_no_stamp():
    with socket.socket() as one:
        assert lib.xds_sock_stream_stamp(one.fileno()) == 0
    assert lib.xds_sock_stream_stamp(-1) == 0


# ---- endpoints --------------------------------------------------------------------------------------


def sent_until(engine: Engine, port: SockPort, done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        while not done():
            assert time.monotonic() < end, "nothing came"
            far.sendto(b"12345678", (HOME, port.local_port(0)))
            engine.turn()


def test_datagrams_of_an_endpoint_have_stages_beside_them_and_in_mapped_memory():
    name = f"udp-{os.getpid()}"
    with SockPort([f"{HOME}:0"]) as port, Engine(EngineConfig(name=name, stage_warm_up=2)) as engine:
        engine.add_sock(port)
        engine.add_udp(HOME, port.local_port(0))
        hists = engine.endpoints[f"{HOME}:{port.local_port(0)}"]
        sent_until(engine, port, lambda: len(hists.by_stage["total"]) >= 3)
        assert hists.left_out == 2
        assert len(hists.by_stage["wake"]) == len(hists.by_stage["callback"])
        before, found = tai_ns(), []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.sendto(b"the last", (HOME, port.local_port(0)))

            def came() -> bool:
                batch = engine.turn()
                found.extend(zip(batch.datagrams, batch.datagram_stages, strict=True))
                return any(one[2] == b"the last" for one, _ in found)

            wait(came, 60.0)
        ((_, stages),) = [(one, row) for one, row in found if one[2] == b"the last"]
        assert before - SLACK <= stages.receive <= tai_ns() + SLACK
        assert 0 < stages.wake <= stages.callback <= tai_ns() + SLACK
        assert (stages.tls_start, stages.tls_end, stages.parsed) == (0, 0, 0)
        prefix = f"udp.{HOME}:{port.local_port(0)}.stage"
        seen = Reader(ROOT / f"xdpstack-{os.getpid()}-{name}.stat")
        there = {word: len(one) for word, one in seen.histograms().items() if word.startswith("udp.")}
        assert set(there) == {f"{prefix}.{word}" for word in ENDPOINT}
        assert set(there.values()) == {len(hists.by_stage["total"])}
        assert seen.values()[f"{prefix}.warm_up"] == 2
        told = engine.stats()["udp"][f"{HOME}:{port.local_port(0)}"]["stage_ns"]
        assert told["total"]["count"] == len(hists.by_stage["total"])


def test_a_handler_counts_as_entered_when_it_is_called():
    moments = []

    @ffi.callback("xds_dgram_hook")
    def handler(context, d, count, outbox, now):
        moments.append((d.rx_ns, now, tai_ns()))
        return 0

    venue, trader = pipe(64, 2048)
    with venue, trader, Engine(EngineConfig(stage_warm_up=0)) as engine:
        engine.add_link(trader, promiscuous=True)
        engine.add_udp("239.1.1.1", 5000, handler)
        for _ in range(3):
            venue.send([udp_frame(b"12345678", ("239.1.1.1", 5000))] * 2)
            engine.turn()
        hists = engine.endpoints["239.1.1.1:5000"].by_stage
        assert [len(hists[word]) for word in ENDPOINT] == [6, 6, 6]
        wakes = [max(0, now - receive) for receive, now, _ in moments]
        found = hists["wake"].summary()
        assert len(wakes) == 6
        assert max(0, found.max) == max(wakes)
        assert all(now <= entered + SLACK for _, now, entered in moments)
        engine.detach()


def test_those_behind_the_first_eight_endpoints_share():
    venue, trader = pipe(64, 2048)
    with venue, trader, Engine(EngineConfig(stage_warm_up=0)) as engine:
        engine.add_link(trader, promiscuous=True)
        for number in range(10):
            engine.add_udp("0.0.0.0", 5000 + number)
        assert list(engine.endpoints) == [*(f"0.0.0.0:{5000 + number}" for number in range(8)), "rest"]
        venue.send([udp_frame(b"1", ("239.1.1.1", 5000 + number)) for number in (0, 8, 9)])
        assert len(engine.turn().datagrams) == 3
        counts = {name: len(one.by_stage["total"]) for name, one in engine.endpoints.items()}
        assert {name: count for name, count in counts.items() if count} == {"0.0.0.0:5000": 1, "rest": 2}
        engine.detach()


def test_endpoints_without_stages_stay_as_they_were():
    venue, trader = pipe(64, 2048)
    with venue, trader, Engine(EngineConfig(stages=False)) as engine:
        engine.add_link(trader, promiscuous=True)
        engine.add_udp("0.0.0.0", 5000)
        venue.send([udp_frame(b"1", ("239.1.1.1", 5000))])
        batch = engine.turn()
        assert (len(batch.datagrams), engine.endpoints) == (1, {})
        assert batch.datagram_stages[0].callback == 0
        assert engine.stats()["udp"] == {}
        engine.detach()
