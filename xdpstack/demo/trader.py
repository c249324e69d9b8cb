"""The trader's process: filter, port, feeds, books, free-running on core 1; Python looks on from core 0.

Its engine publishes on a tape and takes commands from a ring: others trade (:mod:`xdpstack.demo.core`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack import node as nodes
from xdpstack import replay
from xdpstack.config import PortConfig, Program
from xdpstack.demo.core import Seen
from xdpstack.engine import EngineConfig, Runner
from xdpstack.errors import XdpstackError
from xdpstack.feed import Feed, FeedConfig
from xdpstack.publish import CommandsConfig, PublishConfig

__all__ = ["JOURNAL", "RECORDING", "main"]

RECORDING = "recording.pcapng"
JOURNAL = "journal.bin"
_JOURNAL_BYTES = 96 << 20
_RING_BYTES = 64 << 20
_TAPE_BYTES = 64 << 20  # more than a run publishes: a core that the machine holds up is not lapped
_CPU = 1  # the engine's core; Python, the recorder and the whole venue share the other
_BUSIEST = 3
_OPTIONS = {
    "xsk": {"rx_ring": 32768, "rx_frames": 32768},  # half a second of the play's peak rate
    "sock": {"rcvbuf": 64 << 20},
}
_LOOK = 0.25  # seconds between two looks into the ring


def main(
    transport: str, feeds: Sequence[FeedConfig], files: tuple[Path, Path], folder: Path, news: int
) -> int:
    """Run until a command ends the engine; results go into ``folder``. ``files``: tape and command ring.
    Returns the exit code."""
    os.sched_setaffinity(0, {0})
    program = Program(
        ports=(PortConfig(port=f"{transport}:t0", options=_OPTIONS[transport]),),
        feeds=tuple(feeds),
        engine=EngineConfig(name=f"demo-{transport}"),
        record=str(folder / RECORDING),
        publish=PublishConfig(tape=str(files[0]), bytes=_TAPE_BYTES),
        commands=CommandsConfig(ring=str(files[1])),
    )
    try:
        with nodes.open(program) as node:
            _trade(node, folder, news)
    except (XdpstackError, OSError) as error:
        os.write(news, json.dumps({"failed": str(error)}).encode() + b"\n")
        return 1
    return 0


class _Watcher:
    """Counts what comes out of the ring: updates by instrument, events."""

    def __init__(self, feeds: dict[str, Feed]) -> None:
        self.feeds = feeds
        self.counts = {name: np.zeros(feed.config.max_instruments, np.int64) for name, feed in feeds.items()}
        self.seen = {name: Seen() for name in feeds}  # what the cores must have seen, too
        self.events: list[dict[str, Any]] = []
        self.raw_events: list[list[int]] = []
        self.batches = self.lost = 0

    def take(self, runner: Runner) -> None:
        """Everything that was published since the last call."""
        for batch in runner.take():
            self.batches += 1
            self.lost += batch.lost_before
            self.events += [dataclasses.asdict(event) for event in batch.events]
            self.raw_events += [list(event) for event in batch.raw_events.tolist()]
            for name, feed in self.feeds.items():
                rows = batch.of(feed)
                replay.count_updates(rows, self.counts[name])
                self.seen[name].take(rows)


def _trade(node: nodes.Node, folder: Path, news: int) -> None:
    node.build()
    node.engine.keep_journal(_JOURNAL_BYTES)
    runner = node.start(cpu=_CPU, ring_bytes=_RING_BYTES)
    watcher = _Watcher(node.feeds)
    os.write(news, json.dumps({"ready": node.requests["itch50"][1]}).encode() + b"\n")
    while runner.running:
        time.sleep(_LOOK)
        watcher.take(runner)
    failed = node.stop()
    watcher.take(runner)
    if failed:
        raise OSError(-failed, f"the engine's thread: {os.strerror(-failed)}")
    recorder = node.recorder
    assert recorder is not None
    recorder.close()
    (folder / JOURNAL).write_bytes(node.engine.journal())
    result = replay.summary(node)
    result["stats"] = node.stats()
    result["events"] = watcher.events
    result["events_raw"] = watcher.raw_events
    result["seen"] = {name: seen.as_dict() for name, seen in watcher.seen.items()}
    result["published"] = {"batches": watcher.batches, "lost": watcher.lost}
    result["recording"] = {"records": recorder.written, "lost": recorder.lost}
    result["granted"] = getattr(node.ports[0], "granted", "kernel sockets")
    result["xdp_mode"] = [steering.mode for steering in node.filters]
    result["top"] = {name: _top(feed, watcher.counts[name]) for name, feed in node.feeds.items()}
    (folder / "trader.json").write_text(json.dumps(result, default=str))


def _top(feed: Feed, counts: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Top of book of the busiest instruments, prices as exact decimals."""
    rows = []
    for index in replay.busiest(counts, _BUSIEST):
        book = feed.book.at(index)
        row: dict[str, Any] = {
            "symbol": feed.symbol(index),
            "updates": int(counts[index]),
            "stale": book.stale,
        }
        for side in ("bid", "ask"):
            levels = book.levels(side, 1)
            row[side] = (
                [int(levels[0]["qty"]), int(levels[0]["price"]) / 10**book.scale] if len(levels) else None
            )
        rows.append(row)
    return rows
