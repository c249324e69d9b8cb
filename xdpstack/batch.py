"""What a turn gave: views over the engine's memory, or over a record of its ring.

Nothing is copied and nothing is owned here: a view lives until the next turn (stepped), or until the
next batch is taken (free-running).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from xdpstack._ffi import dtype, ffi, lib, names
from xdpstack.errors import CapacityError
from xdpstack.feed import Feed
from xdpstack.memory import Arena
from xdpstack.port.sock import ends_of
from xdpstack.schema.dtypes import view as schema_view
from xdpstack.stages import Stages

__all__ = ["Batch", "Event", "Published"]

_EVENTS = names("xds_event_kind", "XDS_EVENT_")


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something beside the stream: a gap, a restart. ``first`` and ``count`` are sequence units."""

    kind: str
    feed: str
    channel: int
    first: int
    count: int
    ns: int


class Bounds(Protocol):
    """The part of an engine's configuration that sizes its batches."""

    @property
    def max_updates(self) -> int:
        """Updates of one batch."""

    @property
    def max_messages(self) -> int:
        """Messages of one batch; 0: no index of them."""

    @property
    def max_events(self) -> int:
        """Events of one batch."""


class _Taken:
    """What both kinds of batch share: a C struct of counts, and arrays that runs point into."""

    __slots__ = ("_feeds", "_raw")

    _feeds: Sequence[Feed]
    _raw: Any

    @property
    def updates(self) -> np.ndarray[Any, Any]:
        """Normalised updates, shape (n,), dtype of ``struct xds_update``."""
        raise NotImplementedError

    @property
    def runs(self) -> np.ndarray[Any, Any]:
        """Which updates belong to which feed and channel, dtype of ``struct xds_run``."""
        raise NotImplementedError

    @property
    def raw_events(self) -> np.ndarray[Any, Any]:
        """Events as they lie, dtype of ``struct xds_event``."""
        raise NotImplementedError

    @property
    def stages(self) -> np.ndarray[Any, Any]:
        """When its packets passed each stage, in the order of their updates: a row a packet, dtype of
        ``struct xds_stages``, times in CLOCK_TAI ns; ``first`` and ``count`` say which updates are its own.
        Empty over captures, and where ``EngineConfig.stages`` is off."""
        raise NotImplementedError

    @property
    def stages_by_update(self) -> np.ndarray[Any, Any]:
        """:attr:`stages` of each update, a copy: row i is beside ``updates[i]``; zeros where a turn had more
        than ``XDS_STAGES_MAX`` packets and theirs were dropped (``stages_lost`` counts them)."""
        rows = self.stages
        found = np.zeros(len(self.updates), rows.dtype)
        if len(rows):
            own = np.repeat(rows, rows["count"])
            found[len(found) - len(own) :] = own
        return found

    @property
    def events(self) -> list[Event]:
        """Gaps found, asked for, filled and lost, restarts, ends of session."""
        return [
            Event(_EVENTS[kind], self._feeds[feed].name, channel, first, count, ns)
            for ns, first, count, kind, feed, channel in self.raw_events.tolist()
        ]

    @property
    def now(self) -> int:
        """CLOCK_TAI ns at the start of the turn; over a capture the last packet's stamp."""
        return int(self._raw.now)

    @property
    def packets(self) -> int:
        """Frames and datagrams that it came from."""
        return int(self._raw.n_packets)

    @property
    def open_gaps(self) -> int:
        """Ranges missing at that turn, over all channels."""
        return int(self._raw.open_gaps)

    @property
    def end(self) -> bool:
        """Every port has ended: the capture is done."""
        return bool(self._raw.end)

    def of(self, feed: Feed) -> np.ndarray[Any, Any]:
        """The updates of one feed: a view where they lie together, else a copy."""
        updates, runs = self.updates, self.runs
        mine = runs[runs["feed"] == feed.number]
        parts = [updates[run["first"] : run["first"] + run["count"]] for run in mine]
        return parts[0] if len(parts) == 1 else np.concatenate([updates[:0], *parts])

    def __repr__(self) -> str:
        raw = self._raw
        kind = type(self).__name__
        return f"<{kind} {raw.turn}: {raw.n_packets} packets, {raw.n_updates} updates, {raw.n_events} events>"


class Batch(_Taken):
    """What one turn gave, valid until the next: one object an engine, refilled by each turn."""

    __slots__ = ("_all_events", "_all_messages", "_all_runs", "_all_stages", "_all_updates")

    def __init__(self, feeds: Sequence[Feed], bounds: Bounds, raw: Any, arena: Arena) -> None:
        self._feeds, self._raw = feeds, raw
        self._all_updates = _array(arena, raw.updates, bounds.max_updates, "struct xds_update")
        self._all_runs = _array(arena, raw.runs, bounds.max_updates, "struct xds_run")
        self._all_messages = _array(arena, raw.messages, bounds.max_messages, "struct xds_message")
        self._all_events = _array(arena, raw.events, bounds.max_events, "struct xds_event")
        self._all_stages = _array(arena, raw.stages, lib.XDS_STAGES_MAX, "struct xds_stages")

    def close(self) -> None:
        """The engine closes: from now on it holds nothing."""
        self._raw = ffi.new("struct xds_batch *", {"end": 1})
        for name in self.__slots__:
            setattr(self, name, getattr(self, name)[:0].copy())

    @property
    def updates(self) -> np.ndarray[Any, Any]:
        """Normalised updates, shape (n,), dtype of ``struct xds_update``."""
        return self._all_updates[: self._raw.n_updates]

    @property
    def runs(self) -> np.ndarray[Any, Any]:
        """Which updates belong to which feed and channel, dtype of ``struct xds_run``."""
        return self._all_runs[: self._raw.n_runs]

    @property
    def stages(self) -> np.ndarray[Any, Any]:
        """When its packets passed each stage, a row a packet, dtype of ``struct xds_stages``."""
        return self._all_stages[: self._raw.n_stages]

    @property
    def raw_events(self) -> np.ndarray[Any, Any]:
        """Events as they lie, dtype of ``struct xds_event``."""
        return self._all_events[: self._raw.n_events]

    @property
    def messages(self) -> np.ndarray[Any, Any]:
        """The index of messages (needs ``max_messages``), dtype of ``struct xds_message``."""
        return self._all_messages[: self._raw.n_messages]

    @property
    def datagrams(self) -> list[tuple[str, int, bytes]]:
        """(source, source port, payload) of datagrams to endpoints without a handler."""
        return [
            (*ends_of(one)[0], bytes(ffi.buffer(one.data, one.len)))
            for one in self._raw.dgrams[0 : self._raw.n_dgrams]
        ]

    @property
    def datagram_stages(self) -> list[Stages]:
        """When each of :attr:`datagrams` was received, its turn began, and the batch was ready. Over
        captures, and where ``EngineConfig.stages`` is off, only the first two are known."""
        raw = self._raw
        return [
            Stages(one.rx_ns, raw.now, 0, 0, 0, raw.dgrams_ns) for one in raw.dgrams[0 : self._raw.n_dgrams]
        ]

    def _message(self, index: int) -> Any:
        if not 0 <= index < self._raw.n_messages:
            raise IndexError(f"message {index} of {self._raw.n_messages}")
        return self._raw.messages[index]

    def message(self, index: int) -> np.ndarray[Any, Any]:
        """Message ``index`` where it lies: shape (), the dtype of its own type (SBE: its root block)."""
        raw = self._message(index)
        feed = self._feeds[raw.feed]
        return schema_view(feed.messages[raw.type], memoryview(ffi.buffer(raw.data, raw.len)))

    def view(self, index: int, form: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Message ``index`` where it lies, as one element of a dtype of yours: no copy."""
        message = self._message(index)
        if message.len < form.itemsize:
            raise CapacityError(f"message {index} has {message.len} bytes, its type {form.itemsize}")
        return np.frombuffer(ffi.buffer(message.data, form.itemsize), form)


class Published(_Taken):
    """One batch out of a free-running engine's ring, valid until the next is taken."""

    __slots__ = ("_parts",)

    def __init__(self, feeds: Sequence[Feed], record: np.ndarray[Any, Any]) -> None:
        self._feeds = feeds
        self._raw = raw = ffi.from_buffer("struct xds_published *", record)
        at, self._parts = ffi.sizeof("struct xds_published"), {}
        for name, count in (
            ("run", raw.n_runs),
            ("event", raw.n_events),
            ("update", raw.n_updates),
            ("stages", raw.n_stages),
        ):
            form = dtype(f"struct xds_{name}")
            end = at + count * form.itemsize
            self._parts[name] = np.frombuffer(record[at:end], form)
            at = -(-end // 64) * 64

    @property
    def updates(self) -> np.ndarray[Any, Any]:
        """Normalised updates, shape (n,), dtype of ``struct xds_update``."""
        return self._parts["update"]

    @property
    def runs(self) -> np.ndarray[Any, Any]:
        """Which updates belong to which feed and channel, dtype of ``struct xds_run``."""
        return self._parts["run"]

    @property
    def stages(self) -> np.ndarray[Any, Any]:
        """When its packets passed each stage, a row a packet, dtype of ``struct xds_stages``."""
        return self._parts["stages"]

    @property
    def raw_events(self) -> np.ndarray[Any, Any]:
        """Events as they lie, dtype of ``struct xds_event``."""
        return self._parts["event"]

    @property
    def lost_before(self) -> int:
        """Batches that found the ring full since the one before."""
        return int(self._raw.lost_before)


def _array(arena: Arena, pointer: Any, count: int, type_: str) -> np.ndarray[Any, Any]:
    form = dtype(type_)
    if pointer == ffi.NULL or not count:
        return np.zeros(0, form)
    return np.frombuffer(arena.view(pointer, count * form.itemsize), form)
