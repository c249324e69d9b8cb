"""Books behind gaps that stay open, on the CME capture: whatever is not marked stale equals, at every step,
the book of the stream that lost nothing; what lost nothing of its own is clean again."""

from __future__ import annotations

import bisect
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from xdpstack import node as nodes
from xdpstack.engine import EngineConfig
from xdpstack.flows import udp_frame
from xdpstack.lab import feeds
from xdpstack.port import PcapWriter
from xdpstack.schema import load, scapy_layer
from xdpstack.tests.test_decode import cme, level

Lost = Callable[[int], bool]
HALF = 2500


@pytest.fixture(scope="module")
def packets() -> list[tuple[int, bytes]]:
    """The first half of line A: (ns, payload); sequences go on by one."""
    return feeds.cme().lines[0].packets[:HALF]


def capture(path: Path, packets: list[tuple[int, bytes]], lost: Lost = lambda seq: False) -> Path:
    with PcapWriter(path) as writer:
        writer.add_interface("cme")
        for ns, payload in packets:
            if not lost(int.from_bytes(payload[:4], "little")):
                writer.write(ns, udp_frame(payload, ("224.0.31.1", 14310)))
    return path


class Told:
    """What a run said: after which sequence each book had which checksum, and when it was stale."""

    def __init__(self, path: Path, truth: Told | None = None) -> None:
        self.history: dict[int, tuple[list[int], list[int]]] = {}
        self.refreshed: set[str] = set()
        self.compared = 0
        self.number: dict[str, int] = {}  # by symbol: two runs may number their instruments differently
        with nodes.open(f"pcap:{path}", engine=EngineConfig(burst=1)) as node:
            feed = node.feed("cme-mdp3", channels=[["224.0.31.1:14310"]], window=0.001)
            for batch in node.run():
                seq = feed.channels[0].stats()["next_seq"] - 1
                for index in set(batch.updates["instrument"].tolist()):
                    self._note(feed, index, seq, truth)
            self.stale = {feed.symbol(i) for i in feed.indices() if feed.book.at(i).stale}
            self.books = feed.book.checksums()
            self.number = {feed.symbol(i): i for i in feed.indices()}
            self.gaps = feed.channels[0].stats()["gaps_lost"]

    def _note(self, feed: nodes.Feed, index: int, seq: int, truth: Told | None) -> None:
        book = feed.book.at(index)
        if truth is None:
            seqs, sums = self.history.setdefault(index, ([], []))
            seqs.append(seq)
            sums.append(book.checksum)
            return
        if book.stale:
            return
        self.compared += 1
        seqs, sums = truth.history[truth.number[feed.symbol(index)]]
        assert book.checksum == sums[bisect.bisect_right(seqs, seq) - 1], f"{book!r} after {seq} is no truth"
        if feed.channels[0].stats()["gaps_lost"]:  # every book was marked then
            self.refreshed.add(feed.symbol(index))


@pytest.fixture(scope="module")
def truth(packets: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Told:
    path = capture(tmp_path_factory.mktemp("cme") / "whole.pcapng", packets)
    return Told(path)


FIRST = 17_347_815


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("one packet", lambda seq: seq == FIRST + 200),
        ("a long hole", lambda seq: FIRST + 700 <= seq < FIRST + 760),
        ("every hundredth", lambda seq: seq % 100 == 7),
        ("every fiftieth by chance", lambda seq: random.Random(seq).random() < 0.02),
        ("every fifth", lambda seq: random.Random(seq + 10**9).random() < 0.2),
    ],
)
def test_a_book_that_is_not_stale_is_the_true_one_at_every_step(
    packets: list[tuple[int, bytes]], truth: Told, tmp_path: Path, name: str, lost: Lost
) -> None:
    told = Told(capture(tmp_path / "lossy.pcapng", packets, lost), truth)
    assert told.gaps > 0
    wrong = {s for s, checksum in told.books.items() if truth.books[s] != checksum}
    assert wrong <= told.stale, "no wrong book is called clean"
    assert told.compared > (10 if name == "every fifth" else 100)
    assert told.refreshed or name == "every fifth", "what lost nothing of its own is clean again"
    print(f"{name}: {len(told.refreshed)} refreshed, {len(told.stale)} stale, {len(wrong)} wrong")
    if name == "one packet":
        assert len(told.refreshed) > len(told.stale & wrong)


def test_a_snapshot_and_the_number_after_it_make_a_book_clean_again(tmp_path: Path) -> None:
    schema = load("cme-mdp3")
    entries = [{"MDEntryType": b"0", "MDPriceLevel": 1, "MDEntryPx": 5, "MDEntrySize": 9}]

    def snapshot(rpt: int) -> bytes:
        return cme(52, entries, SecurityID=55, RptSeq=rpt)

    story = [
        (1, cme(46, [level(0, 1, 1, 1)]), False),
        (3, cme(46, [level(0, 1, 1, 3)]), True),  # 2 was lost: a jump
        (4, snapshot(1), True),  # older than the book: withheld
        (5, snapshot(3), True),  # right or not, it cannot be known yet
        (6, cme(46, [level(0, 1, 2, 4)]), False),  # goes on from the snapshot
        (8, snapshot(4), True),  # 7 was lost; this is older than it, perhaps
        (9, cme(46, [level(0, 1, 1, 6)]), True),  # it was: 5 is missing
        (10, snapshot(6), True),
        (11, cme(46, [level(0, 1, 1, 7)]), False),
    ]
    path = tmp_path / "story.pcapng"
    with PcapWriter(path) as writer:
        writer.add_interface("cme")
        for seq, message, _ in story:
            payload = struct.pack("<IQ", seq, 1000 + seq) + scapy_layer.frame(schema, [message])
            writer.write(seq * 10**9, udp_frame(payload, ("224.0.31.1", 14310)))
    seen: list[tuple[int, bool]] = []
    with nodes.open(f"pcap:{path}", engine=EngineConfig(burst=1)) as node:
        feed = node.feed("cme-mdp3", channels=[["224.0.31.1:14310"]], window=0.001)
        for _ in node.run():
            seq = feed.channels[0].stats()["next_seq"] - 1
            seen.append((seq, feed.book.at(feed.indices()[0]).stale))
    wanted = {seq: stale for seq, _, stale in story}
    assert {seq for seq, _ in seen} >= {1, 4, 5, 6, 9, 10, 11}, (
        "3 and 8 wait in the window, and leave with 4 and 9"
    )
    assert dict(seen) == {seq: wanted[seq] for seq, _ in seen}
