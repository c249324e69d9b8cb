"""Running engines as a screen, an exporter or an alert wants them: what :mod:`xdpstack.stats` and the tapes
say, taken at one moment, with every entry's name read as a family and its labels.

A :class:`Watch` looks again and again and knows what came since its last look: rates, and histograms of that
time alone. It maps the memory read only; an engine never notices that it is watched.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack._ffi import ffi, lib, view
from xdpstack.clock import tai_ns
from xdpstack.errors import SetupError
from xdpstack.stats import ROOT, Found, Histogram, Reader, segments

__all__ = [
    "FORMS",
    "STAGES",
    "Drop",
    "Engine",
    "Key",
    "Look",
    "TapeReaders",
    "Watch",
    "drops",
    "key_of",
    "look",
    "since",
]

FORMS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (family, re.compile(pattern))
    for family, pattern in (
        ("line", r"feed\.(?P<feed>.+)\.channel\.(?P<channel>\d+)\.line\.(?P<line>\d+)\.(?P<field>\w+)"),
        ("channel", r"feed\.(?P<feed>.+)\.channel\.(?P<channel>\d+)\.(?P<field>\w+)"),
        ("books_reasons", r"feed\.(?P<feed>.+)\.books\.reasons\.(?P<reason>\w+)"),
        ("books", r"feed\.(?P<feed>.+)\.books\.(?P<field>\w+)"),
        ("host_frames", r"host\.(?P<port>.+)\.reasons\.(?P<reason>\w+)"),
        ("host", r"host\.(?P<port>.+)\.(?P<field>\w+)"),
        ("port", r"port\.(?P<port>.+)\.(?P<field>\w+)"),
        ("stack_segments", r"stack\.(?P<port>.+)\.reasons\.(?P<reason>\w+)"),
        ("stack", r"stack\.(?P<port>.+)\.(?P<field>\w+)"),
        ("tcp_segments", r"tcp\.(?P<port>.+)\.reasons\.(?P<reason>\w+)"),
        ("tcp_states", r"tcp\.(?P<port>.+)\.states\.(?P<state>\w+)"),
        ("tcp", r"tcp\.(?P<port>.+)\.(?P<field>\w+)"),
        ("session_messages", r"session\.(?P<protocol>\w+)\.reasons\.(?P<reason>\w+)"),
        ("session", r"session\.(?P<protocol>\w+)\.(?P<field>\w+)"),
        ("link_events", r"link\.(?P<interface>.+)\.events\.(?P<reason>\w+)"),
        ("link", r"link\.(?P<interface>.+)\.(?P<field>\w+)"),
        ("no_socket", r"filter\.(?P<group>.+)\.no_socket\.(?P<interface>.+)\.(?P<queue>\d+)"),
        ("alert", r"alert\.(?P<alert>.+)\.(?P<field>\w+)"),
        ("phc", r"phc\.(?P<interface>.+)\.(?P<field>\w+)"),
        ("clock", r"clock\.(?P<field>\w+)"),
        ("engine", r"engine\.(?P<field>\w+)"),
        ("stages", r"feed\.(?P<feed>.+)\.stage\.(?P<field>warm_up)"),
        ("stages", r"conn\.(?P<connection>\d+|rest)\.stage\.(?P<field>warm_up)"),
        ("stages", r"udp\.(?P<endpoint>.+)\.stage\.(?P<field>warm_up)"),
        ("stage", r"udp\.(?P<endpoint>.+)\.stage\.(?P<stage>\w+)"),
        ("stage", r"feed\.(?P<feed>.+)\.stage\.(?P<stage>\w+)"),
        ("stage", r"feed\.(?P<feed>.+)\.(?P<stage>decoded|applied)"),
        ("stage", r"conn\.(?P<connection>\d+|rest)\.stage\.(?P<stage>\w+)"),
        ("connection", r"conn\.(?P<connection>\d+|rest)\.(?P<field>\w+)"),
    )
)
STAGES = ("wake", "tls_start", "tls_end", "parsed", "callback", "total", "decoded", "applied")
"""Histograms of a feed or connection, in the order in which they are shown; others follow."""
_PORT = re.compile(r"(xsk|sock):(?P<interface>[^:#]+)(:(?P<queue>[\d-]+))?(#\d+)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """An entry's name, read: ``feed.itch.channel.0.gaps_open`` is family ``channel``, field ``gaps_open``,
    labels feed and channel. A name of no known form is a family of its own, without labels."""

    family: str
    field: str
    labels: tuple[tuple[str, str], ...]

    def __getitem__(self, label: str) -> str:
        """A label's value, empty without it."""
        return dict(self.labels).get(label, "")


@lru_cache(maxsize=65536)
def key_of(name: str) -> Key:
    """Read an entry's name."""
    for family, form in FORMS:
        match = form.fullmatch(name)
        if match:
            found = match.groupdict()
            field = found.pop("field", "")
            port = _PORT.fullmatch(found.get("port", ""))
            found |= {key: value for key, value in port.groupdict().items() if value} if port else {}
            return Key(family, field, tuple(sorted(found.items())))
    return Key(re.sub(r"\W", "_", name), "", ())


# What became of a packet or an update that did not arrive, by family: the fields, or (of `reasons`) all but.
_LOST: dict[str, frozenset[str]] = {
    "engine": frozenset(
        {"unrouted", "events_lost", "send_refused", "hook_failed", "ring_lost", "record_lost"}
    ),
    "port": frozenset(
        {
            "rx_dropped", "rx_ring_full", "rx_fill_empty", "rx_invalid", "rx_truncated", "rx_chain_long",
            "rx_chain_malformed", "tx_invalid", "tx_no_frame", "tx_refused",
        }
    ),
    "host": frozenset({"held_lost"}),
    "stack": frozenset({"send_lost", "resets_lost", "cookies_bad", "cookies_lost"}),
    "channel": frozenset({"units_lost", "events_lost"}),
    "line": frozenset({"malformed", "truncated", "foreign", "no_room"}),
}  # fmt: skip
_TAKEN: dict[str, frozenset[str]] = {
    "host_frames": frozenset(
        {
            "delivered", "arp", "icmp_echo", "handed_over", "fragment", "fragment_copy", "icmp_error", "igmp",
            "datagram6", "ndp", "mld",
        }
    ),
    "stack_segments": frozenset({"taken", "cookie", "stray_reset"}),
    "tcp_segments": frozenset({"delivered"}),
    "session_messages": frozenset(),
    "books_reasons": frozenset({"ok", "crossed", "disordered", "reasons"}),
}  # fmt: skip


_TAILS = {
    "books_reasons": " books", "host_frames": " host", "host": " host", "stack_segments": " tcp",
    "stack": " tcp", "tcp_segments": " tcp",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Something that was refused or lost: where, why, how many."""

    name: str
    where: str
    reason: str
    key: Key
    count: int


def _reason(key: Key) -> str | None:
    """Why what an entry counts did not arrive; None where that is no loss."""
    if key.family == "no_socket":
        return "no_socket"
    if key.family in _TAKEN:
        return None if key["reason"] in _TAKEN[key.family] else key["reason"]
    return key.field if key.field in _LOST.get(key.family, ()) else None


def _where(key: Key) -> str:
    if key.family in ("channel", "line"):
        line = f" line {key['line']}" if key.family == "line" else ""
        return f"feed {key['feed']} channel {key['channel']}{line}"
    if key.family == "no_socket":
        return f"filter {key['interface']}:{key['queue']}"
    if key.family == "session_messages":
        return f"sessions {key['protocol']}"
    named = "feed" if key.family == "books_reasons" else "port" if key["port"] else ""
    tail = _TAILS.get(key.family, "")
    return f"{named} {key[named]}{tail}" if named else key.family


def drops(values: Mapping[str, int]) -> list[Drop]:
    """Every counter of a loss that is not zero, the largest first."""
    found = []
    for name, count in values.items():
        key = key_of(name)
        reason = _reason(key)
        if reason is not None and count:
            found.append(Drop(name, _where(key), reason, key, count))
    return sorted(found, key=lambda drop: (-drop.count, drop.name))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine's segment as it was: values, and copies of the histograms."""

    label: str
    """Its name; with the process id behind it where two engines have one name."""
    name: str
    pid: int
    path: Path
    created_ns: int
    beat_ns: int
    values: dict[str, int]
    units: dict[str, str]
    gauges: set[str]
    histograms: dict[str, Histogram]

    def peer(self, connection: str) -> str:
        """Whose a connection's place is now: ``10.1.0.1:7001``; empty where it is nobody's."""
        fields = self.fields("connection").get((("connection", connection),), {})
        if not fields.get("remote_port"):
            return ""
        whole = fields.get("remote_high", 0) << 64 | fields.get("remote_low", 0)
        address = ipaddress.IPv6Address(whole)
        shown = str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address}]"
        return f"{shown}:{fields['remote_port']}"

    def states(self) -> dict[str, dict[str, int]]:
        """How many connections of each port are in each state, where any is."""
        found: dict[str, dict[str, int]] = {}
        for name, value in self.values.items():
            key = key_of(name)
            if key.family == "tcp_states" and value:
                found.setdefault(key["port"], {})[key["state"]] = value
        return found

    def stages(self) -> list[tuple[str, str, str]]:
        """Of each histogram whose it is (``feed itch``, ``conn 10.1.0.1:7001``), its stage and its name: in
        the segment's order, and within one feed or connection in that of time."""
        found = []
        for name in self.histograms:
            key = key_of(name)
            if key.family != "stage":
                found.append((name, "", name))
            elif key["feed"] or key["endpoint"]:
                whose = f"feed {key['feed']}" if key["feed"] else f"udp {key['endpoint']}"
                found.append((whose, key["stage"], name))
            else:
                place = key["connection"]
                found.append((f"conn {self.peer(place) or place}", key["stage"], name))
        subjects = list(dict.fromkeys(subject for subject, _, _ in found))
        rank = {stage: place for place, stage in enumerate(STAGES)}
        return sorted(found, key=lambda row: (subjects.index(row[0]), rank.get(row[1], len(rank))))

    def fields(self, family: str) -> dict[tuple[tuple[str, str], ...], dict[str, int]]:
        """The values of a family, by labels, then by field (``reason`` where it has none)."""
        found: dict[tuple[tuple[str, str], ...], dict[str, int]] = {}
        for name, value in self.values.items():
            key = key_of(name)
            if key.family == family:
                found.setdefault(key.labels, {})[key.field] = value
        return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TapeReaders:
    """A tape or ring, and who reads it: name, pid, ``lag`` in bytes, ``lag_records``, ``lost``, ``laps``.

    ``tape`` is the stem of a tape's file, the whole name of a ring's: both may have the same stem."""

    tape: str
    bytes: int
    written: int
    state: str
    readers: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Everything at one moment. ``at``: monotonic seconds; ``now_ns``: CLOCK_TAI."""

    at: float
    now_ns: int
    engines: dict[str, Engine]
    dead: list[Found]
    tapes: list[TapeReaders]


def _copy(histogram: Histogram) -> Histogram:
    made = Histogram()
    ffi.memmove(made.pointer, histogram.pointer, ffi.sizeof("struct xds_hist"))
    return made


def _buckets(histogram: Histogram) -> np.ndarray[Any, Any]:
    return view(histogram.pointer.buckets, lib.XDS_HIST_BUCKETS, "uint64_t")


def since(now: Histogram, before: Histogram | None) -> Histogram:
    """What came between two copies of one histogram; min and max are then those of their buckets, within
    0.8 %. All of it where there is nothing before, or where it was cleared meanwhile."""
    if before is None or now.pointer.count < before.pointer.count:
        return now
    made = _copy(now)
    counts = _buckets(made)
    counts -= np.minimum(counts, _buckets(before))
    made.pointer.count = int(counts.sum())
    for field in ("sum", "below", "above"):
        setattr(made.pointer, field, max(0, getattr(now.pointer, field) - getattr(before.pointer, field)))
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1])) if used.size else (0, 0)
    made.pointer.min = lib.xds_hist_bucket_start(first) if used.size else (1 << 63) - 1
    made.pointer.max = lib.xds_hist_bucket_start(last + 1) - 1 if used.size else -(1 << 63)
    return made


def _engine(reader: Reader, label: str) -> Engine:
    return Engine(
        label=label, name=reader.name, pid=reader.pid, path=reader.path, created_ns=reader.created_ns,
        beat_ns=reader.beat_ns, values=reader.values(), units=reader.units(), gauges=reader.gauges(),
        histograms={name: _copy(h) for name, h in reader.histograms().items()},
    )  # fmt: skip


def _tapes(root: Path) -> Iterator[TapeReaders]:
    from xdpstack import shm  # whose configuration has alerts, which look at us

    for path in sorted([*root.glob("*.tape"), *root.glob("*.ring")]):
        try:
            one = shm.look(path)
        except SetupError:  # neither, gone since, or not ours to read
            continue
        yield TapeReaders(
            tape=path.stem if path.suffix == ".tape" else path.name,
            **{word: one[word] for word in ("bytes", "written", "state", "readers")},
        )


def look(root: Path | None = None, only: str | Collection[str] | None = None) -> Look:
    """See every engine and tape under ``root`` (/dev/shm), or the engines of these names or process ids."""
    wanted = [only] if isinstance(only, str) else only
    root = ROOT if root is None else root
    at, found = time.monotonic(), segments(root)
    chosen = [one for one in found if wanted is None or one.name in wanted or str(one.pid) in wanted]
    living = [one for one in chosen if one.state == "alive"]
    names = [one.name for one in living]
    engines = {}
    for one in living:
        label = one.name if names.count(one.name) == 1 else f"{one.name}#{one.pid}"
        try:
            engines[label] = _engine(one.open(), label)
        except OSError:  # it ended between the listing and now
            continue
    dead = [one for one in chosen if one.state != "alive"]
    return Look(at=at, now_ns=tai_ns(), engines=engines, dead=dead, tapes=list(_tapes(root)))


class Watch:
    """Looks, one after the other, and what came between them. ``kept`` rates are remembered an engine."""

    def __init__(
        self, take: Callable[[], Look] | None = None, *, root: Path | None = None,
        only: str | Collection[str] | None = None, kept: int = 120,
    ) -> None:  # fmt: skip
        """``take`` gives a look; without it one is taken under ``root``."""
        self._take = take or (lambda: look(root, only))
        self._kept = kept
        self.before: Look | None = None
        self.now: Look | None = None
        self.history: dict[str, deque[float]] = {}
        """Packets a second of each engine, oldest first."""

    def look(self) -> Look:
        """Look again."""
        self.before, self.now = self.now, self._take()
        for label in self.now.engines:
            rate = self.rate(label, "engine.packets")
            if rate is not None:
                self.history.setdefault(label, deque(maxlen=self._kept)).append(rate)
        for label in set(self.history) - set(self.now.engines):
            del self.history[label]
        return self.now

    @property
    def seconds(self) -> float:
        """Between the last two looks; 0 before the second."""
        return self.now.at - self.before.at if self.now and self.before else 0.0

    def _last(self, label: str) -> Engine | None:
        """The engine in the look before, if it was the same process."""
        if self.now is None or self.before is None:
            return None
        last, this = self.before.engines.get(label), self.now.engines.get(label)
        return last if last is not None and this is not None and last.path == this.path else None

    def grown(self, label: str, name: str) -> int | None:
        """How much a counter grew since the look before; None: there was none."""
        last = self._last(label)
        if last is None or self.now is None:
            return None
        if name not in last.values and name not in self.now.engines[label].values:
            return None
        grown = self.now.engines[label].values.get(name, 0) - last.values.get(name, 0)
        return max(grown, 0)  # a port that was opened anew counts from 0

    def rate(self, label: str, name: str) -> float | None:
        """A counter's growth a second since the look before; None: not known yet."""
        grown = self.grown(label, name)
        return None if grown is None or self.seconds <= 0 else grown / self.seconds

    def fresh(self, label: str, name: str) -> Histogram | None:
        """What a histogram took since the look before; None: there was no look before."""
        last = self._last(label)
        if last is None or self.now is None:
            return None
        return since(self.now.engines[label].histograms[name], last.histograms.get(name))
