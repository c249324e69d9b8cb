"""Holds a trader's run to what the venue really sent.

1. Every message was delivered once, in order, byte by byte, or lies in a gap reported as open
   (:class:`xdpstack.lab.truth.Verifier` over the engine's journal of delivered blocks).
2. The trader's own recording, replayed, gives the same books, counters and events.
3. The undamaged stream through an engine gives the same books, for every instrument that is behind
   no open gap.
4. Both trading cores saw every update and event that the engine gave, and every order arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack import replay
from xdpstack._ffi import dtype, lib
from xdpstack.demo import cores
from xdpstack.demo.trader import JOURNAL, RECORDING
from xdpstack.flows import udp_frame
from xdpstack.lab.feeds import Feed
from xdpstack.lab.truth import Verifier
from xdpstack.lab.venue import Play
from xdpstack.port import PcapWriter

__all__ = ["audit"]

_BOUNDS = {"max_orders": 1 << 17, "max_levels": 1 << 17}


def audit(run: dict[str, Any], play: Play, feeds: Sequence[Feed], folder: Path) -> dict[str, Any]:
    """All four checks of one run. ``ok`` is their conjunction, ``faults`` the first breaches in words."""
    delivery = _delivery(run, play, feeds, (folder / JOURNAL).read_bytes())
    recording = _recording(run, folder / RECORDING)
    undamaged = {feed.name: _undamaged(run, play, feed, folder) for feed in feeds}
    complete = _complete(run)
    agreement = cores.agreement(run)
    faults = [*complete, *recording["faults"], *agreement["faults"]]
    for report in delivery.values():
        faults += report["faults"]
    for comparison in undamaged.values():
        faults += comparison["faults"]
    return {
        "ok": not faults,
        "faults": faults,
        "delivery": delivery,
        "recording": recording,
        "undamaged": undamaged,
        "cores": agreement,
    }


def _complete(run: dict[str, Any]) -> list[str]:
    """Nothing may have been lost on the way to the auditor."""
    faults = []
    if not run["venue"]["played"]["complete"]:
        faults.append("the venue could not play to its end")
    if run["recording"]["lost"]:
        faults.append(f"the recording lost {run['recording']['lost']} records")
    if run["published"]["lost"]:
        faults.append(f"the ring lost {run['published']['lost']} batches")
    for port in run["stats"]["ports"]:
        faults += [
            f"the port counts {port[key]} {key}"
            for key in ("rx_dropped", "rx_ring_full", "rx_fill_empty")
            if port.get(key)
        ]
    engine = run["stats"]["engine"]
    outcomes = ("delivered", "unrouted", "segments", "host_consumed", "host_refused")
    if engine["packets"] != sum(engine[key] for key in outcomes):
        faults.append("packets are not delivered + reasons")
    return faults


def _delivery(run: dict[str, Any], play: Play, feeds: Sequence[Feed], journal: bytes) -> dict[str, Any]:
    verifiers = [Verifier(play.truths[feed.name]) for feed in feeds]
    form, at = dtype("struct xds_journal_entry"), 0
    started = [False] * len(feeds)
    while at < len(journal):
        entry = np.frombuffer(journal, form, 1, at)[0]
        length, feed = int(entry["len"]), int(entry["feed"])
        data = journal[at + form.itemsize : at + form.itemsize + length]
        at += form.itemsize + -(-length // 8) * 8
        if int(entry["flags"]) & lib.XDS_BLOCK_RESTART and started[feed]:
            verifiers[feed].restart()
        started[feed] = True
        verifiers[feed].block(int(entry["seq"]), data)
    names = {feed.name: number for number, feed in enumerate(feeds)}
    epochs = [0] * len(feeds)
    for event in run["events"]:
        number = names[event["feed"]]
        if event["kind"] in ("restart", "session"):
            epochs[number] += 1
        elif event["kind"] == "gap_lost":
            verifiers[number].gap(event["first"], event["count"], epochs[number])
    return {feed.name: verifiers[number].report().as_dict() for number, feed in enumerate(feeds)}


def _recording(run: dict[str, Any], path: Path) -> dict[str, Any]:
    again = replay.replay(path)
    faults = []
    for name, feed in again["feeds"].items():
        mine = run["feeds"][name]
        if feed["books"] != mine["books"]:
            different = [s for s in mine["books"] if feed["books"].get(s) != mine["books"][s]]
            faults.append(f"{name}: the recording's replay gives other books: {', '.join(different[:5])}")
        faults += [
            f"{name}: the replay counts {key} {feed[key]}, the run {mine[key]}"
            for key in ("messages", "updates", "lines", "gaps", "restarts", "sessions", "reasons")
            if feed[key] != mine[key]
        ]
    keys = ("kind", "feed", "channel", "first", "count", "ns")
    if [[e[k] for k in keys] for e in again["events"]] != [[e[k] for k in keys] for e in run["events"]]:
        faults.append("the recording's replay gives other events")
    return {"faults": faults, "packets": again["packets"], "events": len(again["events"])}


def _undamaged(run: dict[str, Any], play: Play, feed: Feed, folder: Path) -> dict[str, Any]:
    """The first line, undamaged, through an engine: the books that there should be."""
    capture = folder.parent / f"{feed.name}.undamaged.pcapng"
    line = feed.lines[0]
    if not capture.exists() or folder.name == "xsk":
        with PcapWriter(capture) as writer:
            writer.add_interface("truth")
            for ns, payload in line.packets:
                writer.write(ns, udp_frame(payload, (line.group, line.port)))
    truth = replay.replay(capture, feed.name, channels=[[f"{line.group}:{line.port}"]], bounds=_BOUNDS)
    last = len(play.truths[feed.name].epochs) - 1
    open_now = any(not hole.served and hole.epoch == last for hole in play.truths[feed.name].holes)
    mine = run["feeds"][feed.name]
    stale = set(mine["stale"])
    different = [s for s in truth["books"] if s not in stale and mine["books"].get(s) != truth["books"][s]]
    faults = []
    if different or len(truth["books"]) != len(mine["books"]):
        faults.append(
            f"{feed.name}: {len(different)} books differ from the undamaged stream's: "
            + ", ".join(different[:5])
        )
    if stale and not open_now and not run["feeds"][feed.name]["gaps"]["lost"]:
        faults.append(f"{feed.name}: {len(stale)} books are marked stale, and no gap was left open")
    if open_now and not stale:
        faults.append(f"{feed.name}: a gap is open for ever, and no book behind it is marked stale")
    return {
        "faults": faults,
        "compared": len(set(truth["books"]) - stale),
        "behind_gap": len(stale),
        "messages": truth["messages_total"],
    }
