"""A trading core: a process of its own that reads the trader's engine through shared memory.

Two of them read one engine in the demo, each with a cursor of its own; the engine waits for neither. What
comes are numpy views: one array of updates a feed and look. The second core also commands: an order is a
datagram that the engine sends for it, and at the end it has the engine shut down. Nothing here knows of
sockets, XDP or a feed's format.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack._ffi import lib
from xdpstack.errors import XdpstackError
from xdpstack.port import Subscription
from xdpstack.publish import Commander, Subscriber

__all__ = ["ORDER", "ORDERS_MAX", "Seen", "main"]

ORDER = struct.Struct("<QQqI4x")
"""An order's bytes: its number, the match that it follows, the price, the instrument."""
ORDERS_MAX = 200
_FEED = "itch50"  # that orders follow
_LOOK = 0.02  # seconds between two looks
_EVERY = 0.05  # seconds of the engine's time between two orders, at least
_PATIENCE = 60.0  # seconds that an answer may take on a host that is held up


class Seen:
    """What was seen of one feed: how much, and a checksum over every byte in its order."""

    def __init__(self) -> None:
        self.updates = self.crc = 0

    def take(self, rows: np.ndarray[Any, Any]) -> None:
        """Updates that came."""
        if len(rows):
            self.updates += len(rows)
            self.crc = zlib.crc32(rows.view(np.uint8).data, self.crc)

    def as_dict(self) -> dict[str, int]:
        """As JSON has it."""
        return {"updates": self.updates, "crc": self.crc}


class Core:
    """What both cores do, and what one of them does besides."""

    def __init__(
        self, engine: Subscriber, commander: Commander | None, desk: Subscription, sport: int
    ) -> None:
        self.engine, self.commander, self.desk, self.sport = engine, commander, desk, sport
        self.seen = {feed: Seen() for feed in engine.feeds}
        self.events: list[list[int]] = []
        self.orders: dict[int, bytes] = {}  # by the command's number
        self.answers: dict[int, str] = {}
        self.looks = 0
        self._next_ns = 0

    def look(self) -> None:
        """Everything that waits. Raises EOFError when the engine has finished."""
        batch = self.engine.gather()
        self.looks += 1
        for feed, seen in self.seen.items():
            seen.take(batch.of(feed))
        for news in batch.news:
            if news.kind == "events":
                self.events += [list(event) for event in news.rows.tolist()]
            elif news.kind == "answer":
                self.answers.update([news.answer()])
        if self.commander and batch.now >= self._next_ns and len(self.orders) < ORDERS_MAX:
            self._order(batch.of(_FEED), batch.now)

    def _order(self, rows: np.ndarray[Any, Any], now: int) -> None:
        """After a trade, at most one order a moment: the strategy, if this were one."""
        trades = rows[np.isin(rows["kind"], (lib.XDS_EXECUTE, lib.XDS_EXECUTE_AT, lib.XDS_TRADE))]
        if not len(trades) or self.commander is None:
            return
        last = trades[-1]
        order = ORDER.pack(len(self.orders) + 1, last["ref"], last["price"], last["instrument"])
        self.orders[self.commander.send(order, self.desk, sport=self.sport)] = order
        self._next_ns = now + int(_EVERY * 1e9)

    def until_answered(self, number: int) -> None:
        """Go on until a command has been answered. TimeoutError, EOFError."""
        end = time.monotonic() + _PATIENCE
        while number not in self.answers:
            if time.monotonic() > end:
                raise TimeoutError(f"the engine has not answered command {number} for {_PATIENCE:.0f} s")
            self.engine.wait(_LOOK)
            self.look()

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: everything that the auditor compares."""
        return {
            "feeds": {feed: seen.as_dict() for feed, seen in self.seen.items()},
            "events": self.events,
            "lost": self.engine.lost,
            "looks": self.looks,
            "orders": [order.hex() for order in self.orders.values()],
            "refused": {str(number): why for number, why in self.answers.items() if why},
            "answered": len(self.answers),
        }


def main(
    name: str, tape: Path, ring: Path | None, desk: Subscription, sport: int, stop: int, out: Path
) -> int:
    """Read until the engine has finished; who commands (``ring``) has it shut down once ``stop`` (a
    descriptor) can be read. Writes what it saw to ``out``. Returns the exit code."""
    os.sched_setaffinity(0, {0})
    try:
        with Subscriber.open(tape, name, oldest=True) as engine:
            commander = Commander(ring, engine.feeds) if ring else None
            core = Core(engine, commander, desk, sport)
            try:
                while not (commander and select.select([stop], [], [], 0)[0]):
                    core.look()
                    time.sleep(_LOOK)
                if commander:
                    core.until_answered(commander.shut_down())
                while True:
                    core.look()
                    engine.wait(_LOOK)
            except EOFError:
                pass
            finally:
                if commander:
                    commander.close()
            out.write_text(json.dumps(core.as_dict()))
    except (XdpstackError, OSError) as error:
        out.write_text(json.dumps({"failed": f"{name}: {error}"}))
        return 1
    return 0
