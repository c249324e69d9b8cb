"""A capture through the engine, start to end: what was in it, and how its books stand.

The summary is one dict of plain values; its keys are documented at :func:`summary`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack import node as nodes
from xdpstack.engine import EngineConfig
from xdpstack.errors import ConfigError
from xdpstack.export import Export
from xdpstack.feed import Feed

__all__ = ["replay", "summary", "totals"]


def replay(
    capture: str | Path,
    schema: str | None = None,
    *,
    channels: Sequence[Sequence[str]] | None = None,
    speed: float = 0.0,
    symbols: Iterable[str] = (),
    out: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
    bounds: dict[str, int] | None = None,
    **channel: Any,
) -> dict[str, Any]:
    """Run a capture. ``speed`` 0 is flat out, 1 as recorded. Without ``schema`` the capture must be a
    recording of ours, which says itself what to run. ``out`` takes updates as .parquet or .csv."""
    wanted = set(symbols)
    events: list[dict[str, Any]] = []
    pace = _Pace(speed)
    bounds_of_batch = EngineConfig(
        max_updates=1 << 16, burst=1 if speed else 64
    )  # held back packet by packet
    with nodes.open(f"pcap:{capture}", engine=bounds_of_batch) as node:
        if schema is None:
            node.feeds_of_recording()
        else:
            node.feed(schema, channels=channels, bounds=bounds, **channel)
        export = Export(out, list(node.feeds.values()), wanted) if out else None
        packets = 0
        try:
            for batch in node.run():
                pace.wait(batch.now)
                events += [_event(event) for event in batch.events]
                if export:
                    export.write(batch)
                packets += batch.packets
                if progress:
                    progress(packets)
        finally:
            if export:
                export.close()
        result = summary(node, wanted)
        result["capture"] = str(capture)
        result["events"] = events
        return result


def _event(event: Any) -> dict[str, Any]:
    return {
        "kind": event.kind,
        "feed": event.feed,
        "channel": event.channel,
        "first": event.first,
        "count": event.count,
        "ns": event.ns,
    }


class _Pace:
    """Holds a replay back to ``speed`` times the recorded time."""

    def __init__(self, speed: float) -> None:
        if not (math.isfinite(speed) and speed >= 0):
            raise ConfigError(f"speed {speed} is not 0 (flat out) or more (1: as recorded)")
        self.speed, self.first, self.began = speed, 0, 0.0

    def wait(self, now: int) -> None:
        if not self.speed:
            return
        if not self.first:
            self.first, self.began = now, time.monotonic()
            return
        ahead = (now - self.first) / 1e9 / self.speed - (time.monotonic() - self.began)
        if ahead > 0:
            time.sleep(ahead)


def summary(node: nodes.Node, symbols: Iterable[str] = ()) -> dict[str, Any]:
    """The state of a node's feeds as one object:

    ``packets`` taken from the ports, of which ``unrouted`` belong to no line; ``slow_turns`` took
    longer than ``slow_limit_ns`` (the engine's ``slow``, 10 µs; live ports only), ``slow_worst_ns`` the
    longest of them; ``truncated`` records of
    the capture; ``host``: reasons of the host core, only what is not zero; ``missing``, when there are
    any: frames that came by queues without a socket (interface, group, queue, packets, bytes, mend, text);
    then of the feed: ``feed`` (its name); ``messages`` by type, ``messages_total``; ``updates``; ``lines``
    a list with each line's
    packets, won, duplicate, late, lost, reordered…; ``gaps`` found, filled, lost, open (ranges) and
    units; ``requests`` sent for them; ``restarts``, ``sessions``, ``ended``; ``reasons`` by layer, only
    what is not zero; ``instruments``; ``books``: a checksum each by symbol (with ``symbols``, only those,
    and ``unknown_symbols`` names those that are not there), ``stale``: the symbols behind an open gap.
    Of several feeds, each has its own object under ``feeds``. :func:`replay` adds ``capture``, its path,
    and ``events`` (kind, feed, channel, first, count, ns). ``links``: the state of each interface, and
    what happened to it (see :meth:`Node.link_events`).
    """
    stats = node.stats()
    wanted = set(symbols)
    feeds = {name: _feed_summary(feed, stats["feeds"][name], wanted) for name, feed in node.feeds.items()}
    lost = [dataclasses.asdict(one) | {"text": str(one)} for one in node.missing()]
    whole: dict[str, Any] = {
        "packets": stats["engine"]["packets"],
        "unrouted": stats["engine"]["unrouted"],
        "slow_turns": stats["engine"]["slow_turns"],
        "slow_limit_ns": round(node.engine.config.slow * 1e9),
        "slow_worst_ns": stats["engine"]["slow_worst_ns"],
        "truncated": sum(port.get("rx_truncated", 0) for port in stats["ports"]),
        "host": _merge(
            host["reasons"] | {key: host[key] for key in ("rewritten", "partial_checksum")}
            for host in stats["hosts"].values()
        ),
    }
    if lost:
        whole["missing"] = lost
    if stats["links"]:
        whole["links"] = stats["links"]
    if len(feeds) == 1:
        whole |= next(iter(feeds.values()))
    else:
        whole["feeds"] = feeds
    return whole


def _merge(counters: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counters:
        for name, value in one.items():
            if value:
                total[name] = total.get(name, 0) + value
    return total


def totals(channels: Iterable[dict[str, Any]], keys: Sequence[str]) -> dict[str, int]:
    """The sum of channels' counters, by name."""
    found = list(channels)
    return {key: sum(channel[key] for channel in found) for key in keys}


def _feed_summary(feed: Feed, stats: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    channels = stats["channels"]
    gaps = totals(channels, ["gaps_found", "gaps_filled", "gaps_lost", "gaps_open"])
    units = totals(channels, ["units_missed", "units_filled", "units_lost", "units_open"])
    reasons = {"decoder": stats["decoder"]["reasons"]}
    if stats["books"]:
        reasons["books"] = stats["books"]["reasons"]
    reasons["lines"] = _merge(
        {key: line[key] for key in ("malformed", "truncated", "foreign", "no_room", "late")}
        for channel in channels
        for line in channel["lines"]
    )
    result = {
        "feed": feed.name,
        "messages": stats["decoder"]["by_type"],
        "messages_total": stats["decoder"]["messages"],
        "updates": stats["decoder"]["updates"],
        "lines": [
            {"channel": number, **line}
            for number, channel in enumerate(channels)
            for line in channel["lines"]
        ],
        "gaps": {key.removeprefix("gaps_"): value for key, value in gaps.items()} | {"units": units},
        "requests": sum(channel["requests"] for channel in channels),
        **totals(channels, ["restarts", "sessions", "ended"]),
        "reasons": {layer: counts for layer, counts in reasons.items() if counts},
        "instruments": len(feed.indices()),
    }
    if feed.books is not None:
        checksums = feed.books.checksums()
        result["stale"] = [feed.symbol(i) for i in feed.indices() if feed.books.at(i).stale]
        result["books"] = {s: c for s, c in checksums.items() if not wanted or s in wanted}
        missing = sorted(wanted - set(checksums))
        if missing:
            result["unknown_symbols"] = missing
    return result


def busiest(batches: np.ndarray[Any, Any], count: int) -> list[int]:
    """The instruments with the most updates, from an array of counts by instrument."""
    order = np.argsort(batches, kind="stable")[::-1][:count]
    return [int(index) for index in order if batches[index]]


def count_updates(updates: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> None:
    """Add updates of one feed to the counts by instrument."""
    if len(updates):
        known = updates["instrument"][updates["instrument"] < len(counts)]
        np.add.at(counts, known, 1)
