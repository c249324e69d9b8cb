"""The engine over captures: routes, books, gaps, bounds, recordings, hooks. No root, no NIC."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdpstack import node as nodes
from xdpstack._ffi import ffi, lib
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import ConfigError, LocalProtocolError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import PcapPort, PcapWriter, Subscription, pipe
from xdpstack.replay import replay
from xdpstack.tests.frames import plain_message, plain_packet

GROUP = ("239.1.1.1", 5000)
OTHER = ("239.1.1.2", 5001)
MS = 1_000_000


def capture(path: Path, packets: list[tuple[int, tuple[str, int], bytes]]) -> Path:
    with PcapWriter(path) as writer:
        writer.add_interface("test")
        for ns, to, payload in packets:
            writer.write(ns, udp_frame(payload, to))
    return path


def adds(seq: int, count: int = 1, symbol: int = 1) -> bytes:
    return plain_packet(seq, *(plain_message("A", "B", symbol, 100 + seq + i, 10) for i in range(count)))


def lines(*groups: tuple[str, int]) -> tuple[Subscription, ...]:
    return tuple(Subscription(address=address, port=port) for address, port in groups)


def test_a_level_of_the_plain_framing_reaches_the_book(tmp_path):
    path = capture(tmp_path / "a.pcapng", [(MS, GROUP, adds(0)), (2 * MS, GROUP, adds(1))])
    with nodes.open(f"pcap:{path}") as node:
        feed = node.feed("plain", groups=["239.1.1.1:5000"])
        updates = np.concatenate([batch.updates.copy() for batch in node.run()])
        assert updates["price"].tolist() == [100, 101]
        assert updates["rx_ns"].tolist() == [MS, 2 * MS]
        assert feed.book["#1"].levels("bid")["price"].tolist() == [101, 100]


def test_flows_that_carry_the_same_payloads_are_found_to_be_lines(tmp_path):
    packets = []
    for seq in range(50):
        packets += [(seq * MS, GROUP, adds(seq)), (seq * MS + 10, OTHER, adds(seq))]
    packets += [(99 * MS, ("239.9.9.9", 1), adds(7, 3, symbol=9))]
    result = replay(capture(tmp_path / "b.pcapng", packets), "plain")
    found = {(line["channel"], line["line"]) for line in result["lines"] if line["packets"]}
    assert found == {(0, "239.1.1.1:5000"), (0, "239.1.1.2:5001"), (1, "239.9.9.9:1")}
    assert result["messages_total"] == 53


@pytest.mark.parametrize("looked_for", [False, True])
def test_lines_of_ipv6_and_ipv4_are_lines_of_one_channel(tmp_path, looked_for):
    six = ("ff15::1", 5000)
    packets = [
        (seq * MS, where, adds(seq))
        for seq in range(30)
        for where in (GROUP, six)
        if seq != 5 or where == six
    ]
    path = capture(tmp_path / "six.pcapng", packets)
    groups = None if looked_for else [["239.1.1.1:5000", "[ff15::1]:5000"]]
    result = replay(path, "plain", channels=groups)
    assert (result["messages_total"], result["gaps"]["found"], result["unrouted"]) == (30, 0, 0)
    found = {line["line"]: line["packets"] for line in result["lines"] if line["packets"]}
    assert found == {"239.1.1.1:5000": 29, "[ff15::1]:5000": 30}


@pytest.mark.parametrize("own", ["10.0.0.2", "fd00::2"])
def test_an_own_address_is_claimed_by_an_engine_that_nothing_comes_to(own):
    left, right = pipe(64, 2048)
    with left, right, Engine() as engine:
        engine.add_link(left, mac="02:00:00:00:00:02", addresses=[f"{own}/24"], answer_arp=True)
        engine.claim(0, own, 0.001)
        end = time.monotonic() + 60
        while engine.hosts[0].claimed(own)[0] != "owned":
            engine.turn()
            assert time.monotonic() < end
        engine.detach()


def test_a_line_of_ipv6_is_of_one_port_and_one_source(tmp_path):
    group, other = ("ff35::8000:1", 5000), ("ff35::8000:1", 5001)
    path = tmp_path / "ssm.pcapng"
    with PcapWriter(path) as writer:
        writer.add_interface("test")
        for seq in range(4):
            writer.write(4 * seq + 1, udp_frame(adds(seq), group, ("fd00::1", 1)))
            writer.write(4 * seq + 2, udp_frame(adds(9), group, ("fd00::2", 1)))
            writer.write(4 * seq + 3, udp_frame(adds(9), other, ("fd00::1", 1)))
    result = replay(path, "plain", channels=[["[ff35::8000:1]:5000@fd00::1"]])
    assert (result["messages_total"], result["unrouted"], result["packets"]) == (4, 8, 12)


def test_what_no_line_wants_is_counted_as_unrouted(tmp_path):
    path = capture(tmp_path / "c.pcapng", [(1, GROUP, adds(0)), (2, OTHER, adds(0))])
    result = replay(path, "plain", channels=[["239.1.1.1:5000"]])
    assert (result["packets"], result["unrouted"], result["messages_total"]) == (2, 1, 1)


def test_a_gap_is_given_up_in_virtual_time_and_marks_the_book_stale(tmp_path):
    packets = [(seq * MS, GROUP, adds(seq)) for seq in range(20) if seq not in (5, 6)]
    with nodes.open(f"pcap:{capture(tmp_path / 'd.pcapng', packets)}") as node:
        feed = node.feed("plain", groups=["239.1.1.1:5000"], window=0.003)
        events, stale = [], []
        for batch in node.run():
            events += batch.events
            stale += [bool(flags & lib.XDS_STALE) for flags in batch.updates["flags"]]
        assert [(e.kind, e.first, e.count) for e in events if e.kind.startswith("gap")] == [
            ("gap_found", 5, 2),
            ("gap_lost", 5, 2),
        ]
        lost = next(e for e in events if e.kind == "gap_lost")
        assert lost.ns == 10 * MS  # found at 7 ms, given up 3 ms later, between two packets
        assert stale == [False] * 5 + [True] * 13
        assert feed.book["#1"].stale


def test_a_small_batch_gives_the_same_updates_as_a_large_one(tmp_path):
    packets = [(seq * MS, GROUP, adds(seq, 40)) for seq in range(100) if seq % 17]
    path = capture(tmp_path / "e.pcapng", packets)

    def run(config: EngineConfig) -> bytes:
        with nodes.open(f"pcap:{path}", engine=config) as node:
            node.feed("plain", groups=["239.1.1.1:5000"], window=0.002, window_packets=64)
            return b"".join(batch.updates.tobytes() for batch in node.run())

    assert run(EngineConfig(max_updates=400)) == run(EngineConfig(max_updates=1 << 16))
    assert run(EngineConfig(burst=1)) == run(EngineConfig(burst=64))


def test_a_batch_too_small_for_one_packet_is_refused():
    with Engine(EngineConfig(max_updates=8)) as engine, pytest.raises(ConfigError, match="raise max_updates"):
        engine.add_feed(FeedConfig(schema="plain", channels=(ChannelConfig(lines=lines(GROUP)),)))


def test_an_unknown_feed_names_those_that_there_are():
    with Engine() as engine, pytest.raises(ConfigError, match=r"no decoder 'nyse'.*itch50"):
        engine.add_feed(FeedConfig(schema="nyse", channels=(ChannelConfig(lines=lines(GROUP)),)))


def test_two_lines_on_one_address_are_refused():
    with Engine() as engine, pytest.raises(ConfigError, match="two lines listen"):
        engine.add_feed(FeedConfig(schema="plain", channels=(ChannelConfig(lines=lines(GROUP, GROUP)),)))


def test_a_gap_of_one_channel_leaves_the_books_of_another_alone(tmp_path):
    packets = []
    for seq in range(20):
        if seq != 5:
            packets.append((seq * MS, GROUP, adds(seq, symbol=1)))
        packets.append((seq * MS + 1, OTHER, adds(seq, symbol=2)))
    with nodes.open(f"pcap:{capture(tmp_path / 'f.pcapng', packets)}") as node:
        feed = node.feed("plain", channels=[["239.1.1.1:5000"], ["239.1.1.2:5001"]], window=0.003)
        for _ in node.run():
            pass
        assert feed.book["#1"].stale
        assert not feed.book["#2"].stale


def test_a_restart_clears_the_books_of_its_channel(tmp_path):
    packets = [(seq * MS, GROUP, adds(seq, symbol=1)) for seq in range(2000)]
    packets += [(20_000 * MS + seq * MS, GROUP, adds(seq, symbol=3)) for seq in range(5)]
    with nodes.open(f"pcap:{capture(tmp_path / 'g.pcapng', packets)}") as node:
        feed = node.feed("plain", groups=["239.1.1.1:5000"])
        events = [event for batch in node.run() for event in batch.events]
        assert [e.kind for e in events] == ["joined", "restart"]
        assert len(feed.book["#1"].levels("bid")) == 0
        assert len(feed.book["#3"].levels("bid", 10)) == 5


def test_a_hook_of_c_sees_every_update_after_the_books_took_it(tmp_path):
    path = capture(tmp_path / "h.pcapng", [(seq * MS, GROUP, adds(seq, 3)) for seq in range(10)])
    seen: list[tuple[int, int]] = []
    with nodes.open(f"pcap:{path}") as node:
        feed = node.feed("plain", groups=["239.1.1.1:5000"])

        @ffi.callback("xds_hook")
        def hook(context, updates, count, outbox, now):
            best = feed.book.at(1).levels("bid", 1)
            seen.extend((int(updates[i].price), int(best["price"][0])) for i in range(count))
            return 0

        node.engine.set_hook(hook)
        for _ in node.run():
            pass
    assert [price for price, _ in seen] == [100 + seq + i for seq in range(10) for i in range(3)]
    assert all(price <= best for price, best in seen)


def test_datagrams_of_an_endpoint_without_a_handler_come_with_the_batch(tmp_path):
    path = capture(tmp_path / "i.pcapng", [(1, ("10.0.0.9", 77), b"hello"), (2, ("10.0.0.9", 77), b"there")])
    with PcapPort(path) as port, Engine() as engine:
        engine.add_link(port, promiscuous=True)
        engine.add_udp("10.0.0.9", 77)
        got = [datagram for batch in engine.run() for datagram in batch.datagrams]
    assert got == [("10.0.0.1", 4000, b"hello"), ("10.0.0.1", 4000, b"there")]


def test_the_journal_holds_every_delivered_block(tmp_path):
    path = capture(tmp_path / "k.pcapng", [(seq, GROUP, adds(seq)) for seq in range(5)])
    with nodes.open(f"pcap:{path}") as node:
        node.feed("plain", groups=["239.1.1.1:5000"])
        node.build()
        node.engine.keep_journal(1 << 16)
        for _ in node.run():
            pass
        journal = node.engine.journal()
    size = ffi.sizeof("struct xds_journal_entry")
    blocks = [journal[at + size : at + size + 28] for at in range(0, len(journal), size + 32)]
    assert blocks == [adds(seq)[8:] for seq in range(5)]


@given(
    plan=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.booleans()), max_size=60),
    burst=st.integers(1, 64),
)
def test_packets_are_delivered_or_counted_whatever_comes(tmp_path_factory, plan, burst):
    packets = []
    for at, (seq, cut, other) in enumerate(plan):
        payload = adds(seq, 2)
        packets.append((at * MS, OTHER if other else GROUP, payload[: len(payload) - 9 * cut]))
    path = capture(tmp_path_factory.mktemp("p") / "p.pcapng", packets)
    with PcapPort(path) as port, Engine(EngineConfig(burst=burst)) as engine:
        engine.add_link(port, promiscuous=True)
        feed = engine.add_feed(
            FeedConfig(schema="plain", channels=(ChannelConfig(lines=lines(GROUP, OTHER), window=0.01),))
        )
        delivered = sum(len(batch.updates) for batch in engine.run())
        stats = engine.stats()
        core = stats["engine"]
        assert core["packets"] == len(plan)
        assert (
            core["packets"]
            == core["delivered"]
            + core["unrouted"]
            + core["segments"]
            + core["host_consumed"]
            + core["host_refused"]
        )
        counted = 0
        for line in feed.channels[0].stats()["lines"]:
            outcomes = (
                "won",
                "duplicate",
                "late",
                "heartbeat",
                "malformed",
                "truncated",
                "foreign",
                "no_room",
                "buffered",
            )
            assert line["packets"] == sum(line[word] for word in outcomes)
            counted += line["packets"]
        assert counted == len(plan)
        assert delivered == feed.stats()["updates"]


def test_a_recording_of_somebody_else_needs_a_feed_name(tmp_path):
    path = capture(tmp_path / "l.pcapng", [(1, GROUP, struct.pack("<I", 0))])
    with pytest.raises(ConfigError, match="no recording of ours"):
        replay(path)


def test_what_outlives_its_engine_says_so_and_crashes_nothing(tmp_path):
    path = capture(tmp_path / "z.pcapng", [(MS, GROUP, adds(0, 3))])
    with nodes.open(f"pcap:{path}", engine=EngineConfig(max_messages=4096)) as node:
        feed = node.feed("plain", groups=["239.1.1.1:5000"])
        for batch in node.run():  # noqa: B007
            pass
        book, books, channel, engine = feed.book["#1"], feed.book, feed.channels[0], node.engine
        host = engine.hosts[0]
    assert (len(batch.updates), len(batch.messages), batch.events, batch.end) == (0, 0, [], True)
    assert "closed" in repr(feed)
    assert "closed" in repr(book)
    asked = [
        lambda: book.levels("bid"), lambda: book.orders("bid"), lambda: book.stale, lambda: book.checksum,
        lambda: book.scale, books.checksums, books.stats, lambda: list(books), lambda: books["#1"],
        channel.stats, feed.stats, feed.indices, lambda: feed.symbol(1), host.stats, engine.stats,
        engine.journal, lambda: engine.set_hook(ffi.NULL), lambda: engine.add_udp("0.0.0.0", 1),
    ]  # fmt: skip
    for question in asked:
        with pytest.raises(LocalProtocolError, match="closed"):
            question()
    with pytest.raises(LocalProtocolError, match="no port, or was closed"):
        engine.turn()


@pytest.mark.parametrize("index", [-1, 3, 10**9])
def test_a_message_that_is_not_there_is_an_index_error(tmp_path, index):
    path = capture(tmp_path / "y.pcapng", [(MS, GROUP, adds(0, 3))])
    with nodes.open(f"pcap:{path}", engine=EngineConfig(max_messages=4096)) as node:
        node.feed("plain", groups=["239.1.1.1:5000"])
        for batch in node.run():
            with pytest.raises(IndexError, match="of 3"):
                batch.message(index)
            with pytest.raises(IndexError, match="of 3"):
                batch.view(index, np.dtype("u1"))
