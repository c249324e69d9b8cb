"""Named segments of shared memory, declared in TOML: tapes and rings that several programs share.

    [segments.prices]
    kind = "tape"                 # or "ring": one reader, a full ring says so
    bytes = 8_388_608             # of data, a power of two
    dtype = "update"              # a record: "update", a numpy type, or [["price", "<i8"], ["qty", "<u4"]]
    path = "/dev/shm/prices.tape" # unless said: /dev/shm/NAME.KIND
    mode = "0640"
    owner = "feed"
    group = "trading"
    huge = false                  # true for a path in a hugetlbfs: pages of 2 MiB

Every mistake is one sentence with file, line and key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack import config
from xdpstack._ffi import dtype as struct_dtype
from xdpstack._ffi import lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.ring import Ring
from xdpstack.tape import Tape, TapeInfo, make_tape

__all__ = ["ROOT", "SegmentConfig", "found", "initialise", "load", "locate", "look", "remove"]

ROOT = Path("/dev/shm")
_MAGIC = {
    lib.XDS_TAPE_MAGIC.to_bytes(8, "little"): "tape",
    lib.XDS_RING_MAGIC.to_bytes(8, "little"): "ring",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig:
    """One segment as it is declared; see the module's words for the keys."""

    name: str
    kind: str = "tape"
    bytes: int = int(lib.XDS_TAPE_BYTES)
    dtype: Any = None
    path: str = ""
    mode: str = "0600"
    owner: str = ""
    group: str = ""
    huge: bool = False

    @property
    def file(self) -> Path:
        """Where it lies."""
        return Path(self.path) if self.path else ROOT / f"{self.name}.{self.kind}"

    @property
    def form(self) -> np.dtype[Any] | None:
        """What a record is; raises what numpy raises for what is no dtype."""
        if self.dtype is None:
            return None
        if self.dtype == "update":
            return struct_dtype("struct xds_update")
        words = self.dtype
        if isinstance(words, list):
            words = [tuple(tuple(x) if isinstance(x, list) else x for x in f) for f in words]
        form: np.dtype[Any] = np.dtype(words)
        return form


def load(path: str | Path) -> list[SegmentConfig]:
    """The segments of a TOML file; other tables than ``segments`` are another program's. ConfigError."""
    root, reader = config.read(path)
    table = root.get("segments")
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(f"{path}:1: segments: there is no [segments.NAME]")
    made = []
    for name, keys in table.items():
        at = ("segments", name)
        if not isinstance(keys, Mapping):
            raise reader.fail(at, "wanted a table, [segments.NAME]")
        if "/" in name or name.startswith("."):
            raise reader.fail(at, "a name is a file's name")
        segment: SegmentConfig = reader.build(SegmentConfig, keys, at, name=name)
        _refuse(segment, reader, at)
        made.append(segment)
    return made


def _refuse(segment: SegmentConfig, reader: config.Reader, at: tuple[str, ...]) -> None:
    if segment.kind not in ("tape", "ring"):
        raise reader.fail((*at, "kind"), f"wanted tape or ring, not {segment.kind!r}")
    if segment.bytes & (segment.bytes - 1) or segment.bytes < 4096:
        raise reader.fail((*at, "bytes"), f"wanted a power of two, 4096 at least, not {segment.bytes}")
    try:
        mode = int(segment.mode, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise reader.fail((*at, "mode"), f'wanted a mode such as "0640", not {segment.mode!r}')
    try:
        _ = segment.form
    except (TypeError, ValueError, KeyError) as error:
        raise reader.fail((*at, "dtype"), f"no dtype of numpy: {error}") from None


def initialise(segments: list[SegmentConfig]) -> list[tuple[Path, bool]]:
    """Make what is not there, all or none; what is there must be as declared. Each path, and whether made.

    SetupError: what lies there is something else, or the host refuses.
    """
    done: list[tuple[Path, bool]] = []
    try:
        for segment in segments:
            done.append((segment.file, _make(segment)))
    except BaseException:
        for path, made in done:
            if made:
                path.unlink(missing_ok=True)
        raise
    return done


def _make(segment: SegmentConfig) -> bool:
    path = segment.file
    if path.exists():
        _as_declared(segment, path)
        return False
    owner, group, mode = segment.owner or None, segment.group or None, int(segment.mode, 8)
    if segment.kind == "tape":
        form = segment.form
        make_tape(path, segment.bytes, dtype=form, mode=mode, owner=owner, group=group, huge=segment.huge)
        return True
    with Ring.create(
        path, segment.bytes, dtype=segment.form, mode=mode, owner=owner, group=group, huge=segment.huge
    ):
        pass
    return True


def _as_declared(segment: SegmentConfig, path: Path) -> None:
    """Refuse what lies there and is something else: another program may be using it."""
    there = look(path)
    wanted: dict[str, Any] = {"kind": segment.kind, "bytes": segment.bytes}
    if segment.kind == "tape":
        form = segment.form
        wanted["record_len"] = form.itemsize if form is not None else 0
        if form is not None and TapeInfo.read(path).dtype != form:
            raise SetupError(f"make {path}", "its records have another dtype", f"xdpstack shm rm {path}")
    elif segment.form is not None:
        wanted["dtype"] = str(segment.form)
    for key, value in wanted.items():
        if there[key] != value:
            why = f"it is there with {key} {there[key]}, not {value}"
            raise SetupError(f"make {path}", why, f"xdpstack shm rm {path}")


def _kind(path: Path) -> str | None:
    """``tape``, ``ring``, or None for whatever else it is."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return _MAGIC.get(os.read(fd, 8))
        finally:
            os.close(fd)
    return None


def look(path: Path | str) -> dict[str, Any]:
    """A segment from outside: kind, mode, sizes, state, writer (pid), written, readers, dtype."""
    path = Path(path)
    if not path.exists():
        raise SetupError(f"open {path}", "No such file or directory")
    kind = _kind(path)
    if kind is None:
        raise SetupError(f"open {path}", "neither a tape nor a ring")
    mode = f"{stat.S_IMODE(path.stat().st_mode):04o}"
    if kind == "tape":
        info = TapeInfo.read(path)
        return {
            "path": str(path), "kind": kind, "mode": mode, "bytes": info.bytes, "record_len": info.record_len,
            "state": info.state, "writer": info.writer, "written": info.written, "readers": info.readers,
            "dtype": None if info.dtype is None else str(info.dtype),
        }  # fmt: skip
    with Ring.open(path, "watcher") as ring:
        writer = int(ring.pointer.writer_pid)
        state = "alive" if ring.writer_alive else "dead" if writer else "idle"
        waiting = max(0, ring.stats["written"] - ring.stats["read"])
        reader = {
            "name": "", "pid": int(ring.pointer.reader_pid), "lag": ring.used, "lag_records": waiting,
            "lost": 0, "laps": 0,
        }  # fmt: skip
        return {
            "path": str(path), "kind": kind, "mode": mode, "bytes": ring.size, "record_len": 0,
            "state": "closed" if ring.pointer.closed else state, "writer": writer if ring.writer_alive else 0,
            "written": ring.stats["written"], "readers": [reader] if ring.reader_alive else [],
            "dtype": None if ring.dtype is None else str(ring.dtype),
        }  # fmt: skip


def found(root: Path = ROOT) -> Iterator[dict[str, Any]]:
    """Every tape and ring in a folder that this user may look at, by path."""
    for path in sorted(root.iterdir()):
        if _kind(path):
            with contextlib.suppress(SetupError):  # gone since, or nobody's version of now
                yield look(path)


def locate(word: str) -> Path:
    """A path, or the name of a segment in /dev/shm."""
    if "/" in word:
        return Path(word)
    for path in (ROOT / f"{word}.tape", ROOT / f"{word}.ring", ROOT / word):
        if path.exists():
            return path
    raise SetupError(f"find segment {word}", f"there is none in {ROOT}", "xdpstack shm list")


def remove(path: Path, *, force: bool = False) -> None:
    """Remove a segment; readers see its end. SetupError while a live process has it, unless forced."""
    there = look(path)
    users = [there["writer"], *(reader["pid"] for reader in there["readers"])]
    living = ", ".join(str(pid) for pid in users if pid)
    if living and not force:
        raise SetupError(f"remove {path}", f"process {living} has it", "end it, or --force")
    if there["kind"] == "tape" and not there["writer"]:
        with contextlib.suppress(SetupError), Tape.open(path) as tape:
            tape.finish()
    path.unlink(missing_ok=True)
