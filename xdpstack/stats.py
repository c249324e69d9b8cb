"""Counters and histograms in mapped memory: how a running engine is watched without touching its loop.

A :class:`Segment` is built at start by the engine's process, as ``/dev/shm/xdpstack-PID-NAME.stat``,
and written by one native thread with plain stores. A :class:`Reader` maps it read only, from any
process. The layout describes itself (``cffi_build/xds/stat.h``); histograms are ``hist.h``'s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack._ffi import ffi, lib, names, names_of_code, view
from xdpstack.clock import tai_ns
from xdpstack.closing import Closing
from xdpstack.errors import CapacityError, ConfigError, SetupError

__all__ = ["ROOT", "Found", "Histogram", "Reader", "Segment", "Summary", "process_start", "segments", "sweep"]

ROOT = Path("/dev/shm")
_FILE = re.compile(r"xdpstack-(\d+)-([A-Za-z0-9_.:+-]+)\.stat(\.new)?")
_KINDS = names("xds_stat_kind", "XDS_STAT_")


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is dead or a zombie.

    Together with the pid this names a process for good: a reused pid has another start.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a histogram says; times in ns. ``outliers`` lie above p75 + 1.5 (p75 - p25)."""

    count: int
    min: int
    mean: float
    deviation: float
    p25: int
    p50: int
    p75: int
    p90: int
    p95: int
    p99: int
    p999: int
    p9999: int
    max: int
    outliers: int
    below: int
    above: int


class Histogram:
    """Latencies in whole ns, 1 ns to 68 s, each within 0.4 %; recording costs about 2 ns in C.

    Over memory of its own, or with ``pointer`` over a ``struct xds_hist`` of somebody else
    (``keep`` is kept alive as long as this).
    """

    def __init__(self, pointer: Any = None, keep: object = None) -> None:
        self.pointer: Any = pointer if pointer is not None else ffi.new("struct xds_hist *")
        self._keep = keep
        if pointer is None:
            lib.xds_hist_init(self.pointer)

    def record(self, ns: int, *, every: int = 0) -> None:
        """Count one value. ``every``: ns between two of a load that waits for its answer before it goes on;
        what those would have taken that it left out meanwhile is counted too (coordinated omission)."""
        lib.xds_hist_record_paced(self.pointer, ns, every)

    def record_many(self, ns: np.ndarray[Any, Any]) -> None:
        """Count every element of an integer array."""
        array = np.ascontiguousarray(ns, dtype=np.int64)
        lib.xds_hist_record_many(self.pointer, ffi.from_buffer("int64_t[]", array), array.size)

    def merge(self, other: Histogram) -> None:
        """Add everything that ``other`` holds."""
        lib.xds_hist_merge(self.pointer, other.pointer)

    def clear(self) -> None:
        """Forget everything: after a warm-up."""
        lib.xds_hist_clear(self.pointer)

    def percentile(self, percent: float) -> int:
        """The smallest value, in ns, that at least ``percent`` (0 to 100) of the records do not exceed."""
        return int(lib.xds_hist_percentile(self.pointer, percent))

    def summary(self) -> Summary:
        """Everything at once, from one look at the buckets."""
        out = ffi.new("struct xds_hist_summary *")
        lib.xds_hist_summary(self.pointer, out)
        return Summary(**{field.name: getattr(out, field.name) for field in dataclasses.fields(Summary)})

    def buckets(self) -> np.ndarray[Any, Any]:
        """What is not empty: (start, count) in two columns, int64, in rising order of start (ns)."""
        counts = view(self.pointer.buckets, lib.XDS_HIST_BUCKETS, "uint64_t")
        used = np.flatnonzero(counts)
        starts = np.array([lib.xds_hist_bucket_start(int(i)) for i in used], dtype=np.int64)
        return np.column_stack([starts, counts[used].astype(np.int64)])

    def __len__(self) -> int:
        return int(self.pointer.count)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        s = self.summary()
        return f"<Histogram {s.count} records, p50 {s.p50} ns, p99 {s.p99} ns, max {s.max} ns>"


def _refused(what: str, code: int) -> Exception:
    if code == lib.XDS_ECAPACITY:
        return CapacityError(f"{what}: the segment's table is full")
    return ConfigError(f"{what}: a name or unit is empty, too long or has blanks")


class Segment(Closing):
    """The memory that an engine's counters live in, seen from the process that owns it.

    A context manager: the file is removed at the end. What was handed out stays valid memory as
    long as it is referenced, so a native thread may outlive the name. ``pointer`` is the
    ``struct xds_stat *``.
    """

    def __init__(
        self, name: str, *, root: Path = ROOT, entries: int = 2048, hists: int = 64, groups: int = 128
    ) -> None:
        """Make the segment; bounds are the entries, histograms and groups of words that it can hold."""
        self.name = name
        self.path = root / f"xdpstack-{os.getpid()}-{name}.stat"
        if not _FILE.fullmatch(self.path.name):
            raise ConfigError(f"{name!r} cannot name a segment: letters, digits and _ . : + - only")
        size = lib.xds_stat_size(entries, hists, groups)
        partial = self.path.with_suffix(".stat.new")
        try:
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SetupError(
                f"make {partial}", error.strerror or "", "run `xdpstack stats --sweep`", error.errno
            ) from None
        try:
            os.posix_fallocate(fd, 0, size)  # now, not as SIGBUS in the loop
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._memory = ffi.from_buffer("char[]", self._map, require_writable=True)
        self.pointer = ffi.cast("struct xds_stat *", self._memory)
        start = process_start(os.getpid()) or 0
        code = lib.xds_stat_init(self.pointer, size, entries, name.encode(), os.getpid(), start, tai_ns())
        if code < 0:
            partial.unlink()
            raise _refused(f"segment {name!r}", code)
        partial.rename(self.path)  # whole or not at all
        self._keep: list[Any] = [self._memory]
        self.closed = False

    def counter(self, name: str, unit: str, *, gauge: bool = False) -> Any:
        """A ``uint64_t *`` of its own, which only grows (``gauge``: a level)."""
        kind = lib.XDS_STAT_GAUGE if gauge else lib.XDS_STAT_COUNTER
        word = lib.xds_stat_counter(self.pointer, name.encode(), unit.encode(), kind)
        if word == ffi.NULL:
            raise CapacityError(f"counter {name!r}: the segment is full, or the name or unit does not fit")
        return word

    def words(self, prefix: str, names: Mapping[str, tuple[str, bool]]) -> Any:
        """A ``uint64_t *`` to as many words as ``names`` has, in its order: ``{name: (unit, gauge)}``."""
        base = lib.xds_stat_group(self.pointer, len(names))
        if base == ffi.NULL:
            raise CapacityError(f"{prefix}: no room for {len(names)} words in the segment")
        for i, (name, (unit, gauge)) in enumerate(names.items()):
            kind = lib.XDS_STAT_GAUGE if gauge else lib.XDS_STAT_COUNTER
            code = lib.xds_stat_name(self.pointer, base + i, f"{prefix}.{name}".encode(), unit.encode(), kind)
            if code < 0:
                raise _refused(f"{prefix}.{name}", code)
        return base

    def hist(self, name: str, unit: str = "ns") -> Histogram:
        """A histogram in the segment; its ``pointer`` is for C."""
        h = lib.xds_stat_hist(self.pointer, name.encode(), unit.encode())
        if h == ffi.NULL:
            raise CapacityError(f"histogram {name!r}: the segment is full, or the name does not fit")
        return Histogram(h, keep=self._memory)

    def struct(
        self,
        prefix: str,
        ctype: str,
        *,
        units: Mapping[str, str] | None = None,
        gauges: frozenset[str] | set[str] = frozenset(),
        words: Mapping[str, Mapping[int, str]] | None = None,
    ) -> Any:
        """A C struct of 64-bit counters in the segment, a pointer to it; its fields become entries.

        A field's entry is ``prefix.field``, its unit ``units[field]`` or ``count``. An array field has
        one entry an element that ``words[field]`` names (``names("xds_book_reason", …)``), or all of
        them by number. C fills it, e.g. ``lib.xds_link_stats(link, pointer)``.
        """
        struct = ffi.typeof(ctype)
        base = lib.xds_stat_group(self.pointer, (ffi.sizeof(struct) + 7) // 8)
        if base == ffi.NULL:
            raise CapacityError(f"{prefix}: no room for {ctype} in the segment")
        for field, member in struct.fields:
            labels: list[tuple[int, str]] = [(0, field)]
            if member.type.kind == "array":
                chosen = (words or {}).get(field) or {i: str(i) for i in range(member.type.length)}
                labels = [
                    (i, f"{field}.{word}") for i, word in sorted(chosen.items()) if i < member.type.length
                ]
            if ffi.sizeof(member.type if member.type.kind != "array" else member.type.item) != 8:
                raise ConfigError(f"{ctype}.{field} is not made of 64-bit words")
            for i, label in labels:
                kind = lib.XDS_STAT_GAUGE if field in gauges else lib.XDS_STAT_COUNTER
                unit = (units or {}).get(field, "count").encode()
                code = lib.xds_stat_name(
                    self.pointer, base + member.offset // 8 + i, f"{prefix}.{label}".encode(), unit, kind
                )
                if code < 0:
                    raise _refused(f"{prefix}.{label}", code)
        return ffi.cast(ffi.typeof(f"{ctype} *"), base)

    def beat(self, now_ns: int) -> None:
        """The loop lives; C loops call ``xds_stat_beat``."""
        lib.xds_stat_beat(self.pointer, now_ns)

    def close(self) -> None:
        """Remove the file. The memory goes when the last reference to it does."""
        if not self.closed:
            self.closed = True
            self.path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.pointer.n_entries} entries"
        return f"<Segment {self.name} {state} {self.path}>"


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    unit: str
    kind: str
    offset: int


class Reader:
    """A segment seen from outside: read only, at any time, from any process.

    Raises SetupError when the file is not a whole segment of our version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "the file is empty"
            raise SetupError(f"read {self.path}", reason, errno=getattr(error, "errno", None)) from None
        self._memory = ffi.from_buffer("char[]", self._map)
        self._size = len(self._map)
        self._stat = ffi.cast("struct xds_stat *", self._memory)
        self._words = np.frombuffer(self._map, dtype="u8", count=self._size // 8)
        self._entries: list[_Entry] = []
        self._load()

    def _load(self) -> None:
        count = lib.xds_stat_check(self._memory, self._size)
        if count < 0:
            raise SetupError(f"read {self.path}", f"not a segment of this version ({names_of_code(count)})")
        table = ffi.cast("struct xds_stat_entry *", self._memory + self._stat.header_bytes)
        self._entries = [
            _Entry(ffi.string(e.name).decode(), ffi.string(e.unit).decode(), _KINDS[e.kind], int(e.offset))
            for e in (table[i] for i in range(count))
        ]

    @property
    def entries(self) -> list[_Entry]:
        """Everything in the table now; grows while the owner starts up."""
        if len(self._entries) != self._stat.n_entries:
            self._load()
        return self._entries

    @property
    def name(self) -> str:
        """The engine's name."""
        return bytes(ffi.string(self._stat.name)).decode()

    @property
    def pid(self) -> int:
        """The owner's process id."""
        return int(self._stat.pid)

    @property
    def alive(self) -> bool:
        """Whether the owner still runs (the same process, not one with its pid)."""
        return process_start(self.pid) == int(self._stat.pid_start)

    @property
    def created_ns(self) -> int:
        """When it was made, CLOCK_TAI ns."""
        return int(self._stat.created_ns)

    @property
    def beat_ns(self) -> int:
        """When the loop last said that it lives, CLOCK_TAI ns; 0 never."""
        return int(self._stat.beat_ns)

    def values(self) -> dict[str, int]:
        """Every counter and gauge by name, as it is now."""
        return {e.name: int(self._words[e.offset // 8]) for e in self.entries if e.kind != "hist"}

    def units(self) -> dict[str, str]:
        """The unit of every entry."""
        return {e.name: e.unit for e in self.entries}

    def gauges(self) -> set[str]:
        """The names of what is a level and not a count."""
        return {e.name for e in self.entries if e.kind == "gauge"}

    def histograms(self) -> dict[str, Histogram]:
        """Every histogram by name, over the live memory."""
        return {
            e.name: Histogram(ffi.cast("struct xds_hist *", self._memory + e.offset), keep=self._memory)
            for e in self.entries
            if e.kind == "hist"
        }

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON: name, pid, alive, path, stamps (ns), values, histograms' summaries, units."""
        return {
            "name": self.name, "pid": self.pid, "alive": self.alive, "path": str(self.path),
            "created_ns": self.created_ns, "beat_ns": self.beat_ns, "values": self.values(),
            "histograms": {name: dataclasses.asdict(h.summary()) for name, h in self.histograms().items()},
            "units": self.units(),
        }  # fmt: skip

    def __repr__(self) -> str:
        state = "alive" if self.alive else "dead"
        return f"<Reader {self.name} pid {self.pid} {state} {len(self.entries)} entries>"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A segment file: whose it is and whether it can be read. ``state``: alive, dead, unreadable."""

    path: Path
    pid: int
    name: str
    state: str
    reason: str = ""

    def open(self) -> Reader:
        """Map it."""
        return Reader(self.path)


def segments(root: Path = ROOT) -> list[Found]:
    """Every segment under ``root``, dead owners' too, in order of pid and name."""
    return sorted(_scan(root), key=lambda found: (found.pid, found.name))


def _scan(root: Path) -> Iterator[Found]:
    for path in root.glob("xdpstack-*.stat*"):
        match = _FILE.fullmatch(path.name)
        if not match:
            continue
        pid, name = int(match[1]), match[2]
        if match[3]:  # half built: its maker is at it, or died there
            if process_start(pid) is None:
                yield Found(path, pid, name, "dead", "its owner died while making it")
            continue
        try:
            reader = Reader(path)
        except SetupError as error:
            if path.exists():  # else its owner closed it meanwhile
                state = "unreadable" if process_start(pid) is not None else "dead"
                yield Found(path, pid, name, state, str(error))
            continue
        alive = reader.alive
        yield Found(
            path, pid, name, "alive" if alive else "dead", "" if alive else f"process {pid} has ended"
        )


def tap_path(segment: Path) -> Path:
    """Where the engine of a segment shows what it refused: see :mod:`xdpstack.dropped`."""
    return segment.with_suffix(".tap")


def sweep(root: Path = ROOT, *, name: str = "") -> list[Path]:
    """Remove the segments of dead owners, and their taps; returns what was removed. ``name``: only those of
    that engine, and of a fleet's of that name (``NAME.q3``)."""
    removed = []
    for found in segments(root):
        called = not name or found.name == name or bool(re.fullmatch(re.escape(name) + r"\.q\d+", found.name))
        if found.state == "dead" and called:
            for path in (tap_path(found.path), found.path):
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed.append(path)
    return removed
