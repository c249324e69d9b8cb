"""What the checks look at: files under a root, and questions that no file answers.

``Host()`` is this host: its files, and the functions of ``system`` for the questions. ``Host(root,
answers)`` is any other one: a tree of files and recorded answers, where a question that nobody recorded is
None, like a file that is not there. So every check runs on a host that is not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xdpstack.doctor import system
from xdpstack.doctor.check import Change

__all__ = ["Host", "Interface", "cpus", "cpus_text"]


class Host:
    """The files under ``root`` and the answers to ``ask``."""

    def __init__(self, root: Path | str = "/", answers: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        self.real = answers is None and self.root == Path("/")
        self._answers = answers or {}

    # -- files --

    def raw(self, path: str) -> bytes | None:
        """The bytes of a file; None when it is not there or not ours to read."""
        try:
            return (self.root / path.lstrip("/")).read_bytes()
        except OSError:
            return None

    def read(self, path: str) -> str | None:
        """The text of a file, stripped; None when it is not there, not ours to read, or not text."""
        data = self.raw(path)
        try:
            return None if data is None else data.decode().strip()
        except UnicodeDecodeError:
            return None

    def number(self, path: str) -> int | None:
        """A file that holds one integer."""
        text = self.read(path)
        return int(text) if text and re.fullmatch(r"-?\d+", text) else None

    def list(self, pattern: str) -> list[str]:
        """Paths that match a glob, sorted by the numbers in them."""
        found = [f"/{p.relative_to(self.root)}" for p in self.root.glob(pattern.lstrip("/"))]
        return sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path)])

    def gunzip(self, path: str) -> str | None:
        """The text of a compressed file."""
        data = self.raw(path)
        with contextlib.suppress(OSError, EOFError, UnicodeDecodeError):
            return None if data is None else gzip.decompress(data).decode()
        return None

    # -- questions --

    def ask(self, question: str, *about: Any) -> Any:
        """The answer of a function of ``system``, or the recorded one; None: it cannot be known here."""
        if self.real:
            function: Callable[..., Any] = getattr(system, question)
            return function(*about)
        answer = self._answers.get(question)
        if about and isinstance(answer, Mapping):
            return answer.get(about[0])
        return answer

    def links(self) -> dict[str, dict[str, Any]]:
        """The interfaces by name, as ``system.links`` has them."""
        return self.ask("links") or {}

    def interface(self, name: str) -> Interface | None:
        """One interface; None when there is none of that name."""
        link = self.links().get(name)
        return None if link is None else Interface(self, name, link)

    @contextlib.contextmanager
    def devices(self, name: str, index: int) -> Iterator[Path | None]:
        """The folder of an interface in /sys/class/net, of the caller's network namespace.

        /sys shows the devices of the namespace that mounted it; for another one the kernel is asked for
        a view that goes with the ``with`` block. None when that is refused.
        """
        folder = self.root / "sys/class/net" / name
        if self.number(f"/sys/class/net/{name}/ifindex") == index:
            yield folder
        elif not self.real:
            yield None
        else:
            with system.sysfs() as view:
                yield None if view is None else view / "class/net" / name


@dataclasses.dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a host, for the checks."""

    host: Host
    name: str
    link: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        """A fact of the link, as ``system.links`` has it; None when it was not told."""
        return self.link.get(key)

    def ask(self, question: str) -> Any:
        """A question about this interface, by its name."""
        return self.host.ask(question, self.name)

    @property
    def driver(self) -> str:
        """The driver's own name, e.g. ``veth``, ``mlx5_core``; empty when it does not tell."""
        return str((self.ask("driver") or {}).get("driver", ""))

    def read(self, *files: str) -> list[str | None]:
        """Files of this interface in /sys; None for each that cannot be read."""
        with self.host.devices(self.name, self["index"]) as folder:
            return [None if folder is None else _text(folder / file) for file in files]

    def list(self, folder: str) -> list[str]:
        """The names in a folder of this interface in /sys."""
        with self.host.devices(self.name, self["index"]) as base:
            if base is None:
                return []
            names = [path.name for path in (base / folder).glob("*")]
        return sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])

    def change(self, kind: str, key: str, value: object) -> Change:
        """A change of this interface."""
        return Change(kind, self.name, key, str(value))


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def cpus(text: str | None) -> set[int]:
    """A kernel list of CPUs, ``0,2-3``, as a set."""
    found: set[int] = set()
    for part in filter(None, (text or "").split(",")):
        first, _, last = part.partition("-")
        if first.isdigit():  # "(null)" is how nohz_full says none
            found.update(range(int(first), int(last or first) + 1))
    return found


def cpus_text(numbers: set[int]) -> str:
    """The shortest kernel list of a set of CPUs."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
