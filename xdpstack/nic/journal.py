"""What was changed on this host and by whom: written before the change is made, gone when it is undone.

One file a network namespace and boot, under /run/xdpstack/nic, replaced whole and fsync'd at every step, so
that it is never half written. An exclusive lock on the folder is held from reading a setting until its
change is noted: two processes cannot take each other's change for the state of the host. An owner is a
process id with its start time, so that a number that is used again is nobody.

Two changes of one setting make a chain; whoever leaves first is taken out of it: his ``before`` becomes that
of the next, and the host is touched only by the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xdpstack.errors import SetupError

__all__ = [
    "FOLDER",
    "KEPT",
    "Entry",
    "Held",
    "Journal",
    "is_alive",
    "namespaces",
    "this_netns",
    "this_process",
]

FOLDER = Path("/run/xdpstack/nic")


@dataclasses.dataclass(slots=True, kw_only=True)
class Entry:
    """One change. ``before``, ``wanted`` and ``taken`` are values of its operation, as JSON has them."""

    id: str
    owner: int
    started: int
    """Start time of the owner, in clock ticks since boot: /proc/PID/stat, field 22."""
    operation: str
    index: int
    """Of the interface; its name may change."""
    interface: str
    driver: str
    key: list[Any]
    before: Any
    wanted: Any
    taken: Any = None
    """What was read back after the change."""
    is_made: bool = False
    """``taken`` is known."""
    is_left: bool = False
    """Its owner is done with it, but others rest on it, or it was refused: who leaves next tries again."""
    netns: int = 0
    """Inode of the network namespace, 0: not known."""

    @property
    def setting(self) -> tuple[str, int, str]:
        """What it is a change of."""
        return self.operation, self.index, json.dumps(self.key)


def this_process() -> tuple[int, int]:
    """Id and start time of this process."""
    return os.getpid(), _start_time(os.getpid()) or 0


def this_netns() -> int:
    """Inode of this thread's network namespace."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def namespaces() -> set[int]:
    """Inodes of every network namespace that a thread is in, a descriptor holds, or a mount keeps."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for links in (process.glob("task/*/ns/net"), process.glob("fd/*")):
            with contextlib.suppress(OSError):
                for link in links:
                    with contextlib.suppress(OSError):  # a thread or descriptor that ended meanwhile
                        found.add(os.readlink(link))
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found.update(re.findall(r" (net:\[\d+\]) ", (process / "mountinfo").read_text()))
    return {int(name[5:-1]) for name in found if name.startswith("net:[")}


def _sees_every_process() -> bool:
    """In the first pid namespace: what is not in /proc is not there."""
    return os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"  # PROC_PID_INIT_INO


KEPT = (0, 0)
"""The owner, in place of a process, of what was made to stay: by ``doctor --fix``, until ``--restore``."""


def is_alive(entry: Entry) -> bool:
    """The process that made the change still runs, or the change was made to stay."""
    return (entry.owner, entry.started) == KEPT or _start_time(entry.owner) == entry.started


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])  # a zombie holds nothing any more


class Journal:
    """The changes of one network namespace."""

    def __init__(self, cookie: int, folder: Path | str = FOLDER) -> None:
        self.folder = Path(folder)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.path = self.folder / f"{boot}-{cookie}.json"

    @property
    def _new(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    @property
    def is_there(self) -> bool:
        """Somebody noted something, or was killed while noting it."""
        return self.path.exists() or self._new.exists()

    @contextlib.contextmanager
    def held(self) -> Iterator[Held]:
        """The entries, under the lock. SetupError: the folder cannot be written, or the file is damaged."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SetupError(
                f"keep a journal in {self.folder}",
                os.strerror(error.errno or 0),
                "run it by sudo",
                error.errno,
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._forget_other_boots()
            self._new.unlink(missing_ok=True)  # of a writer that was killed before it took its name
            yield Held(self.path, fd, self._load())
        finally:
            os.close(fd)

    def entries(self) -> list[Entry]:
        """A look at the entries, without the lock: the file is replaced whole."""
        return self._load()

    def _load(self) -> list[Entry]:
        try:
            return self._read(self.path)
        except FileNotFoundError:
            return []

    @staticmethod
    def _read(path: Path) -> list[Entry]:
        text = path.read_text()
        try:
            return [Entry(**entry) for entry in json.loads(text)]
        except (ValueError, TypeError):
            raise SetupError(
                f"read the journal {path}",
                "it is damaged",
                "look at it, put back what it names, and remove it",
            ) from None

    def forget_ended(self) -> list[Entry]:
        """Forget the journals of network namespaces that have ended, and their devices with them. Returns
        what they held. A namespace is known by its inode; from inside a container nothing is forgotten."""
        forgotten: list[Entry] = []
        if not any(self._others()) or not _sees_every_process():
            return forgotten
        with self.held():
            living = namespaces()
            for path in self._others():
                with contextlib.suppress(OSError, SetupError):  # a damaged one is for its own reader to say
                    entries = Journal._read(path)
                    places = {entry.netns if entry.index else 0 for entry in entries}
                    if not places & (living | {0}) and not any(_start_time(one.owner) for one in entries):
                        path.unlink()
                        forgotten += entries
        return forgotten

    def _others(self) -> list[Path]:
        """Journals of other namespaces, of this boot."""
        mine, pattern = self.path.name, self.path.name[:36] + r"-\d+\.json"
        with contextlib.suppress(OSError):
            return [p for p in self.folder.iterdir() if p.name != mine and re.fullmatch(pattern, p.name)]
        return []

    def _forget_other_boots(self) -> None:
        """What an earlier boot noted is undone by the boot itself."""
        boot = self.path.name[:36]
        for path in self.folder.iterdir():
            if re.fullmatch(r"[0-9a-f-]{36}-\d+\.json(\.new)?", path.name) and path.name[:36] != boot:
                path.unlink(missing_ok=True)


class Held:
    """The entries of a journal while its lock is held; each change of them is on disk when it returns."""

    def __init__(self, path: Path, folder_fd: int, entries: list[Entry]) -> None:
        self._path, self._folder_fd = path, folder_fd
        self.entries = entries

    def add(self, entry: Entry) -> None:
        """Note a change that is about to be made."""
        self.entries.append(entry)
        self.save()

    def drop(self, entry: Entry) -> None:
        """Forget a change that is undone."""
        self.entries.remove(entry)
        self.save()

    def leave(self, entry: Entry) -> None:
        """Its owner is done with it; whoever leaves next tries to put it back."""
        if not entry.is_left:
            entry.is_left = True
            self.save()

    def later(self, entry: Entry) -> Entry | None:
        """The next change of the same setting after this one."""
        after = self.entries[self.entries.index(entry) + 1 :]
        return next((other for other in after if other.setting == entry.setting), None)

    def first(self, entry: Entry) -> Entry:
        """The first change of the same setting: its ``before`` is what was there before all of us."""
        return next(other for other in self.entries if other.setting == entry.setting)

    def save(self) -> None:
        """Replace the file; none is left when there is nothing to remember."""
        if not self.entries:
            self._path.unlink(missing_ok=True)
            os.fsync(self._folder_fd)
            return
        new = self._path.with_name(self._path.name + ".new")
        with open(new, "w") as file:
            json.dump([dataclasses.asdict(entry) for entry in self.entries], file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        os.fsync(self._folder_fd)
