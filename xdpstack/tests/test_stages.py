"""Stages of messages: beside updates, in the outbox of hooks, in histograms. Over pipes and the loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdpstack import hooks
from xdpstack import node as nodes
from xdpstack._ffi import dtype, ffi, lib, view
from xdpstack.clock import tai_ns
from xdpstack.engine import Engine, EngineConfig
from xdpstack.feed import ChannelConfig, Feed, FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import PcapWriter, PipePort, SockPort, Subscription, pipe
from xdpstack.stages import FEED, STAGES, StageHists
from xdpstack.stats import ROOT, Reader
from xdpstack.tests.frames import plain_message, plain_packet

GROUP, OTHER = ("239.1.1.1", 5000), ("239.1.1.2", 5001)


def line(group: tuple[str, int]) -> Subscription:
    return Subscription(address=group[0], port=group[1])


class Bench:
    """An engine over a pipe, with feed ``plain`` of one or two channels."""

    def __init__(self, engine: Engine, venue: PipePort, feed: Feed) -> None:
        self.engine, self.venue, self.feed = engine, venue, feed
        self.sent: dict[tuple[str, int], int] = {}

    def send(self, *counts: int, group: tuple[str, int] = GROUP, skip: int = 0) -> None:
        """A packet of so many messages, each; ``skip``: sequence numbers that are never sent."""
        for count in counts:
            seq = self.sent.get(group, 0) + skip
            messages = [plain_message("A", "B", 1, 100 + n, 10) for n in range(count)]
            self.venue.send([udp_frame(plain_packet(seq, *messages), group)])
            self.sent[group] = seq + 1


@contextlib.contextmanager
def bench(*groups: tuple[str, int], slots: int = 256, **config: Any) -> Iterator[Bench]:
    venue, trader = pipe(slots, 2048)
    with venue, trader, Engine(EngineConfig(**config)) as engine:
        engine.add_link(trader, promiscuous=True)
        channels = tuple(ChannelConfig(lines=(line(group),), window=0.0) for group in groups or (GROUP,))
        yield Bench(engine, venue, engine.add_feed(FeedConfig(schema="plain", channels=channels)))
        engine.detach()


def test_stages_lie_beside_the_updates_in_the_order_of_their_moments() -> None:
    with bench() as b:
        before = tai_ns()
        b.send(3, 1, 2)
        batch = b.engine.turn()
        rows, updates = batch.stages.copy(), batch.updates.copy()
        assert rows["first"].tolist() == [0, 3, 4]
        assert rows["count"].tolist() == [3, 1, 2]
        assert set(rows["feed"]) == set(rows["channel"]) == {0}
        assert (rows["tls_start"] == 0).all()
        assert (rows["tls_end"] == 0).all()
        slack = 20_000  # the pipe stamps by the caller's clock, the engine by its own
        assert (rows["receive"] >= before - slack).all()
        assert (rows["wake"] >= rows["receive"] - slack).all()
        assert (rows["wake"] == batch.now).all()
        assert (rows["parsed"] >= rows["wake"]).all()
        assert (np.diff(rows["parsed"]) >= 0).all()
        assert (rows["callback"] >= rows["parsed"]).all()
        beside = batch.stages_by_update
        assert (beside["receive"] == updates["rx_ns"]).all()
        assert (beside["parsed"] == np.repeat(rows["parsed"], [3, 1, 2])).all()
        assert len(b.engine.turn().stages) == 0, "the next turn has its own"


def test_a_hook_finds_the_rows_of_its_updates_in_the_outbox() -> None:
    seen: list[tuple[int, list[int], list[int]]] = []

    @ffi.callback("xds_hook")
    def hook(context: Any, updates: Any, count: int, outbox: Any, now: int) -> int:
        rows = view(outbox.stages, outbox.n_stages, "struct xds_stages")
        at = tai_ns()
        assert all(0 < row["callback"] <= at + 20_000 for row in rows)
        seen.append((outbox.channel, rows["count"].tolist(), [updates[i].rx_ns for i in range(count)]))
        return 0

    with bench(GROUP, OTHER) as b:
        b.engine.set_hook(hook)
        b.send(2, 1)
        b.send(4, group=OTHER)
        b.send(1)
        batch = b.engine.turn()
        rows = batch.stages
        assert [(channel, counts) for channel, counts, _ in seen] == [(0, [2, 1]), (1, [4]), (0, [1])]
        assert [ns for *_, stamps in seen for ns in stamps] == batch.updates["rx_ns"].tolist()
        assert rows["channel"].tolist() == [0, 0, 1, 0]
        entered = rows["callback"].tolist()
        assert entered == sorted(entered)
        assert entered[0] == entered[1], "one call, one moment"


@hooks.hook(np.zeros(4, np.int64))
def looker(state, updates, outbox, now):  # type: ignore[no-untyped-def]
    """Sums up what it finds beside its updates."""
    rows = hooks.stages(outbox)
    for i in range(len(rows)):
        row = rows[i]
        state[0] += 1
        state[1] += row.count
        state[2] += row.wake == now
        state[3] += row.callback >= row.parsed
    return 0


def test_a_compiled_hook_reads_the_stages() -> None:
    looker.state[:] = 0
    with bench() as b:
        b.engine.set_hook(looker)
        b.send(2, 3)
        b.engine.turn()
    assert looker.state.tolist() == [2, 5, 2, 2]


def test_the_histograms_hold_each_interval_of_each_packet_behind_the_warm_up() -> None:
    name = f"stages-{os.getpid()}"
    with bench(name=name, stage_warm_up=3) as b:
        rows = []
        for _ in range(4):
            b.send(2, 1)
            rows.append(b.engine.turn().stages.copy())
        kept = np.concatenate(rows)[3:]
        assert b.feed.stages.left_out == 3
        seen = Reader(ROOT / f"xdpstack-{os.getpid()}-{name}.stat")
        assert seen.values()["feed.plain.stage.warm_up"] == 3
        clock = seen.values()
        assert clock["clock.source"] in (lib.XDS_CLOCK_COUNTER, lib.XDS_CLOCK_SYSTEM)
        assert clock["clock.ahead_ns"] == 0 or clock["clock.behind_ns"] == 0
        found = {n: h.summary() for n, h in seen.histograms().items() if ".stage." in n}
        assert set(found) == {f"feed.plain.stage.{word}" for word in FEED}
        for word, begin, end in (
            ("wake", "receive", "wake"),
            ("parsed", "wake", "parsed"),
            ("callback", "parsed", "callback"),
            ("total", "receive", "callback"),
        ):
            spent = (kept[end] - kept[begin]).astype(np.int64)
            one = found[f"feed.plain.stage.{word}"]
            assert (one.count, one.min, one.max) == (5, spent.min(), spent.max())
            assert one.mean == pytest.approx(np.maximum(spent, 0).mean())
        told = b.engine.stats()["feeds"]["plain"]
        assert told["stage_ns"]["parsed"]["count"] == 5
        assert told["age_ns"]["decoded"]["count"] == 8, "ages leave nothing out"


def test_a_packet_behind_a_gap_keeps_its_own_receive_stamp() -> None:
    with bench() as b:
        b.send(1)
        b.engine.turn()
        b.send(1, skip=2)
        rows = [b.engine.turn().stages.copy() for _ in range(3)]
        (row,) = np.concatenate(rows)
        assert row["receive"] < row["wake"], "it waited until the gap was given up"


def test_stages_can_be_switched_off_and_ages_stay() -> None:
    with bench(stages=False) as b:
        b.send(2, 2)
        batch = b.engine.turn()
        assert len(batch.updates) == 4
        assert len(batch.stages) == 0
        assert (batch.stages_by_update["receive"] == 0).all()
        told = b.engine.stats()["feeds"]["plain"]
        assert told["stage_ns"] == {}
        assert told["age_ns"]["decoded"]["count"] == told["age_ns"]["applied"]["count"] == 2


def test_a_capture_has_no_stages(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with PcapWriter(path) as writer:
        writer.add_interface("test")
        writer.write(1_000_000, udp_frame(plain_packet(0, plain_message("A", "B", 1, 100, 1)), GROUP))
    with nodes.open(f"pcap:{path}") as node:
        node.feed("plain", groups=["239.1.1.1:5000"])
        rows = [(len(batch.updates), len(batch.stages)) for batch in node.run()]
    assert (1, 0) in rows
    assert all(stages == 0 for _, stages in rows)


def test_more_packets_than_a_batch_has_rows_for_are_counted_and_in_the_histograms() -> None:
    """A gap in front of more packets than that, given up at once: one turn delivers them all."""
    count = lib.XDS_STAGES_MAX + 30
    venue, trader = pipe(256, 2048)
    channel = ChannelConfig(lines=(line(GROUP),), window=3600.0, window_packets=4096)
    with venue, trader, Engine(EngineConfig(stage_warm_up=0)) as engine:
        engine.add_link(trader, promiscuous=True)
        feed = engine.add_feed(FeedConfig(schema="plain", channels=(channel,)))

        def send(*seqs: int) -> None:
            for seq in seqs:
                venue.send([udp_frame(plain_packet(seq, plain_message("A", "B", 1, 100, 1)), GROUP)])

        send(0)
        engine.turn()
        for begin in range(2, count + 1, 50):
            send(*range(begin, min(begin + 50, count + 1)))
            assert len(engine.turn().updates) == 0
        send(1)
        batch = engine.turn()
        lost = engine.stats()["engine"]["stages_lost"]
        assert (len(batch.updates), lost, len(batch.stages)) == (count, lib.XDS_STAGES_MAX, 30)
        beside = batch.stages_by_update
        assert (beside["receive"][: lib.XDS_STAGES_MAX] == 0).all()
        assert (beside["receive"][lib.XDS_STAGES_MAX :] == batch.updates["rx_ns"][lib.XDS_STAGES_MAX :]).all()
        assert feed.stages.by_stage["total"].summary().count == count + 1
        engine.detach()


def test_a_thread_publishes_the_stages_with_the_batch() -> None:
    with (
        SockPort(["127.0.0.1:0"]) as port,
        Engine() as engine,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        engine.add_sock(port)
        here = ("127.0.0.1", port.local_port(0))
        engine.add_feed(FeedConfig(schema="plain", channels=(ChannelConfig(lines=(line(here),)),)))
        runner = engine.start(nap_us=50)
        peer.sendto(plain_packet(0, *[plain_message("A", "B", 1, 77, 10)] * 3), here)
        found = []
        end = time.monotonic() + 60
        while not found:
            assert time.monotonic() < end
            found = [
                (one.stages.copy(), one.stages_by_update["receive"].tolist() == one.updates["rx_ns"].tolist())
                for one in runner.take()
                if len(one.updates)
            ]
        ((rows, beside),) = found
        assert beside
        assert rows["count"].tolist() == [3]
        assert rows["wake"][0] <= rows["parsed"][0] <= rows["callback"][0]
        engine.detach()


@given(
    st.lists(
        st.tuples(
            *[st.integers(0, 10_000)] * 6, st.sets(st.sampled_from(("tls_start", "tls_end", "parsed")))
        ),
        max_size=60,
    ),
    st.integers(0, 5),
)
def test_every_interval_begins_at_the_moment_before_it_that_there_was(rows: Any, warm_up: int) -> None:
    """The fold against the same in words, whatever stages a message did not have."""
    words = ("wake", "tls_start", "tls_end", "parsed", "callback")
    hists = StageHists(None, "x", [*words, "total"], warm_up=warm_up)
    wanted: dict[str, list[int]] = {word: [] for word in (*words, "total")}
    made = np.zeros(len(rows), dtype("struct xds_stages"))
    for i, (*steps, missing) in enumerate(rows):
        at = 1_000_000
        for word, step in zip(("receive", *words), steps, strict=True):
            at += step
            made[i][word] = 0 if word in missing else at
        if i < warm_up:
            continue
        last = int(made[i]["receive"])
        for word in words:
            if word not in missing:
                wanted[word].append(int(made[i][word]) - last)
                last = int(made[i][word])
        wanted["total"].append(int(made[i]["callback"] - made[i]["receive"]))
    lib.xds_stages_fold(hists.pointer, ffi.from_buffer("struct xds_stages[]", made), len(made))
    assert hists.left_out == min(warm_up, len(rows))
    for word, values in wanted.items():
        one = hists.by_stage[word].summary()
        assert one.count == len(values)
        if values:
            assert (one.min, one.max) == (min(values), max(values))
            assert one.mean == pytest.approx(sum(values) / len(values))


def test_the_words_are_those_of_the_header() -> None:
    assert sorted(STAGES.values()) == sorted(["total", "wake", "tls_start", "tls_end", "parsed", "callback"])
    fields = dtype("struct xds_stages").names
    assert fields is not None
    assert fields[:6] == ("receive", "wake", "tls_start", "tls_end", "parsed", "callback")
