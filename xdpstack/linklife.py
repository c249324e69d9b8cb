"""A node's interfaces as they come and go: events, counters, and what is to be done about each.

:class:`LinkLife` owns the watch. It counts what happens, shows it in the engine's mapped counters
(``link.eth0.*``), keeps the events for the caller, and says which interface has to be opened again.
The node does the opening. Read by the loop's owner between two batches, never in a turn.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from xdpstack.clock import tai_ns
from xdpstack.closing import Closing
from xdpstack.errors import SetupError
from xdpstack.links import KINDS, STATES, LinkEvent, LinkWatch
from xdpstack.pins import netns_cookie
from xdpstack.stats import Reader, Segment, segments

__all__ = ["LinkLife", "seen_by_engines"]

log = logging.getLogger("xdpstack.links")

_KEPT = 1024  # events that wait for the caller; then the oldest go, counted
_RETRY = 0.1  # seconds between two tries to open again
_QUIET = {"recovered": logging.INFO, "up": logging.INFO, "created": logging.INFO}
_LEVELS = ("mtu", "mtu_max", "ifindex", "netns")


@dataclasses.dataclass(slots=True)
class _Life:
    """One interface."""

    wait: float  # seconds that it may be gone
    mtu_max: int = 0  # 0: any
    gone_at: float | None = None  # monotonic; until it is open again
    again: bool = False  # it has to be opened again
    told: bool = False  # that opening it again failed
    next_try: float = 0.0
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    words: Any = None


class LinkLife(Closing):
    """The interfaces of one node. A context manager."""

    def __init__(self, waits: dict[str, float], segment: Segment | None) -> None:
        """``waits``: the interfaces, and how many seconds each may be gone before that is an error."""
        self.watch = LinkWatch(waits)
        self._lives = {name: _Life(wait) for name, wait in waits.items()}
        self._events: deque[LinkEvent] = deque(maxlen=_KEPT)
        self._netns = netns_cookie()
        self.forgotten = 0
        """Events that nobody took in time."""
        words = {word: _unit(word) for word in (*STATES, *_LEVELS, *(f"events.{kind}" for kind in KINDS))}
        for name, life in self._lives.items():
            if segment is not None:
                life.words = segment.words(f"link.{name}", words)
            self._publish(name)

    # -- reading

    def look(self) -> list[LinkEvent]:
        """What happened since the last look. Raises SetupError for an interface that is gone for too long."""
        events = self.watch.read()
        for event in events:
            life = self._lives[event.interface]
            self._note(self._with_room(event, life))
            if event.kind in ("moved", "deleted"):
                life.again, life.gone_at = False, time.monotonic()
            elif event.kind == "created":
                life.again = True
        for name, life in self._lives.items():
            if life.gone_at is not None and time.monotonic() - life.gone_at > life.wait:
                self._give_up(name, life)
        return events

    def _with_room(self, event: LinkEvent, life: _Life) -> LinkEvent:
        """An MTU that is too large for the frames says so."""
        link = self.watch.link(event.interface)
        if event.kind != "mtu" or link is None or not 0 < life.mtu_max < link.mtu:
            return event
        more = f", above the {life.mtu_max} that a frame of the port holds: longer packets are dropped"
        return dataclasses.replace(event, text=event.text + more)

    def _note(self, event: LinkEvent) -> None:
        self._lives[event.interface].counts[event.kind] += 1
        log.log(_QUIET.get(event.kind, logging.WARNING), "%s", event)
        self.forgotten += len(self._events) == _KEPT
        self._events.append(event)
        self._publish(event.interface)

    def _give_up(self, name: str, life: _Life) -> None:
        state = self.watch.state(name)
        if state in ("moved", "deleted"):
            was = "was deleted" if state == "deleted" else "was moved to another network namespace"
            raise SetupError(
                f"{name} {was} and did not come back within {life.wait:g} s",
                remedy="bring it back and start again; link_wait sets how long to wait",
            )
        if state == "down":
            raise SetupError(
                f"{name} was made anew, but is still down after {life.wait:g} s", "", f"ip link set {name} up"
            )

    def take(self) -> list[LinkEvent]:
        """The events that were not taken yet, the oldest first."""
        taken = list(self._events)
        self._events.clear()
        return taken

    # -- what is to be done

    def due(self) -> list[str]:
        """Interfaces that should be opened again now: they are there, and up."""
        now = time.monotonic()
        found = []
        for name, life in self._lives.items():
            if life.again and now >= life.next_try and self.watch.state(name) in ("up", "no_carrier"):
                life.next_try = now + _RETRY
                found.append(name)
        return found

    def reopen(self, name: str) -> None:
        """It has to be opened again although it never went away (frames too small for its MTU)."""
        life = self._lives[name]
        life.again, life.gone_at = True, time.monotonic()

    def called(self, name: str) -> str:
        """What an interface is called now."""
        link = self.watch.link(name)
        return link.name if link is not None else name

    def done(self, name: str, text: str) -> None:
        """It is open again."""
        life = self._lives[name]
        life.again, life.told, life.gone_at = False, False, None
        self._note(LinkEvent("recovered", name, text, tai_ns()))

    def failed(self, name: str, error: SetupError, final: bool) -> None:
        """A try to open it again was refused. Raises it when that is final, or the time is over."""
        life = self._lives[name]
        over = life.gone_at is not None and time.monotonic() - life.gone_at > life.wait
        if not life.told or final or over:
            life.told = True
            self._note(LinkEvent("failed", name, str(error), tai_ns()))
        if final or over:
            raise error

    def fits(self, name: str, mtu_max: int) -> None:
        """Packets of up to ``mtu_max`` bytes behind their Ethernet header fit the frames."""
        self._lives[name].mtu_max = mtu_max
        self._publish(name)

    # -- showing

    def _publish(self, name: str) -> None:
        life = self._lives[name]
        if life.words is not None:
            for i, value in enumerate(self._values(name)):
                life.words[i] = value

    def _values(self, name: str) -> Iterable[int]:
        link, state, life = self.watch.link(name), self.watch.state(name), self._lives[name]
        yield from (int(state == word) for word in STATES)
        yield link.mtu if link else 0
        yield life.mtu_max
        yield link.index if link and state not in ("moved", "deleted") else 0
        yield self._netns
        yield from life.counts.values()

    def stats(self) -> dict[str, dict[str, Any]]:
        """By interface: ``state``, ``name`` now, ``mtu``, ``mtu_max`` of the frames (0: any), and ``events``,
        counted by kind, only what is not zero."""
        found = {}
        for name, life in self._lives.items():
            link = self.watch.link(name)
            found[name] = {
                "state": self.watch.state(name),
                "name": self.called(name),
                "mtu": link.mtu if link else 0,
                "mtu_max": life.mtu_max,
                "events": {kind: count for kind, count in life.counts.items() if count},
            }
        return found

    def close(self) -> None:
        """End the watch; twice is calm."""
        self.watch.close()


def _unit(word: str) -> tuple[str, bool]:
    """(unit, whether it is a level) of one of the words of an interface."""
    if word.startswith("events."):
        return "count", False
    units = {"mtu": "bytes", "mtu_max": "bytes", "ifindex": "number", "netns": "cookie"}
    return units.get(word, "state"), True


def seen_by_engines() -> dict[int, list[dict[str, Any]]]:
    """What running engines of this network namespace say of their interfaces, by the interface's number now
    (0: it is gone): ``engine``, ``pid``, ``interface`` (as it was called at the start), ``state``, ``mtu``,
    ``mtu_max`` and ``events``."""
    found: dict[int, list[dict[str, Any]]] = {}
    here = netns_cookie()
    for segment in segments():
        if segment.state != "alive":
            continue
        try:
            reader = segment.open()
        except OSError:
            continue  # it ended between the listing and now
        for one in _of_engine(reader, here):
            found.setdefault(one.pop("ifindex"), []).append(one)
    return found


def _of_engine(reader: Reader, here: int) -> Iterable[dict[str, Any]]:
    values = reader.values()
    for key, cookie in values.items():
        if not (key.startswith("link.") and key.endswith(".netns")) or cookie != here:
            continue
        prefix = key.removesuffix("netns")
        yield {
            "engine": reader.name,
            "pid": reader.pid,
            "interface": prefix[len("link.") : -1],
            "ifindex": values[f"{prefix}ifindex"],
            "state": next((word for word in STATES if values[prefix + word]), "deleted"),
            "mtu": values[f"{prefix}mtu"],
            "mtu_max": values[f"{prefix}mtu_max"],
            "events": {kind: n for kind in KINDS if (n := values[f"{prefix}events.{kind}"])},
        }
