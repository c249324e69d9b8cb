"""What the opener gave to whom, written down before it is given: a restarted opener goes on from there.

The journal is one JSON file, replaced whole. A lease names its sockets by their cookies, which the kernel
never gives twice, so a worker that comes back proves by its descriptors which lease is its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
from pathlib import Path
from typing import Any, Self

from xdpstack.bpf import Filter
from xdpstack.errors import ConfigError, SetupError

__all__ = ["Lease", "Leases"]

log = logging.getLogger("xdpstack.opener")


@dataclasses.dataclass(slots=True, kw_only=True)
class Lease:
    """Queues and flows that one worker has. ``rules`` are canonical texts, target included."""

    id: int
    worker: str
    uid: int
    pid: int
    interface: str
    queues: tuple[int, int]  # first, last
    target: str
    cookies: list[int]  # of its sockets, in order
    before: list[int] = dataclasses.field(default_factory=list)  # of those that its worker had before these
    rules: list[str] = dataclasses.field(default_factory=list)
    orphan_since: float | None = None  # CLOCK_MONOTONIC of the start that found it without its worker

    @property
    def numbers(self) -> range:
        """Its queues."""
        return range(self.queues[0], self.queues[1] + 1)

    def __str__(self) -> str:
        return f"lease {self.id} of {self.worker} (pid {self.pid})"


class Leases:
    """Every lease of an opener, its journal, and the filters' rules and sockets that follow from them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.living: dict[int, Lease] = {}
        self.targets: dict[str, set[str]] = {}  # by interface: groups whose rules are the opener's to change
        self._next = 1
        self._filters: dict[str, Filter] = {}

    # -- the journal

    @classmethod
    def read(cls, path: Path) -> Self:
        """Go on from a journal; none, or a torn one, is an empty one."""
        found = cls(path)
        try:
            notes = json.loads(path.read_text())
            found._next = int(notes["next"])
            found.targets = {name: set(groups) for name, groups in notes["targets"].items()}
            for entry in notes["leases"]:
                lease = Lease(**entry)
                lease.queues = (int(lease.queues[0]), int(lease.queues[1]))
                found.living[lease.id] = lease
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: not a journal of leases (%s); begun anew", path, error)
            found.living, found.targets = {}, {}
        return found

    def write(self) -> None:
        """Put the journal on the disk, whole."""
        notes = {
            "next": self._next,
            "targets": {name: sorted(groups) for name, groups in self.targets.items()},
            "leases": [dataclasses.asdict(lease) for lease in self.living.values()],
        }
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(notes))
        os.replace(beside, self.path)

    def number(self) -> int:
        """A number for a lease that is to be."""
        self._next += 1
        return self._next - 1

    def add(self, lease: Lease) -> None:
        """Write a lease down; its rules and sockets may follow."""
        self.living[lease.id] = lease
        self.targets.setdefault(lease.interface, set()).add(lease.target)
        self.write()

    def holder(self, interface: str, queues: range) -> Lease | None:
        """Who has one of these queues."""
        for lease in self.living.values():
            if lease.interface == interface and set(lease.numbers) & set(queues):
                return lease
        return None

    # -- the filter

    def filter(self, interface: str) -> Filter:
        """The filter that ``xdpstack load`` left there; one whose interface was made anew is attached to the
        new one, with its rules and counters. Raises SetupError when there is none."""
        known = self._filters.get(interface)
        if known is not None and known.is_in_place:
            return known
        try:
            found = Filter.open_pinned(interface)
        except SetupError as error:
            if known is None or error.errno != errno.ENOENT or not known.pin_is_there:
                raise  # never loaded, or unloaded by hand
            known.reattach(interface)
            return known
        if known is not None:
            known.close()
        self._filters[interface] = found
        return found

    def follow(self, interface: str) -> None:
        """Make the filter's rules follow from the leases: one swap, nothing when they do already.

        Rules of workers stand before all others, as those of a program that runs do.
        """
        steer = self.filter(interface)
        wanted: list[str] = []
        for lease in self.living.values():
            if lease.interface == interface:
                wanted += [rule for rule in lease.rules if rule not in wanted]
        ours = self.targets.get(interface, set())
        there = [str(rule) for rule in steer.rules]
        rest = [str(rule) for rule in steer.rules if rule.group not in ours]
        if there != wanted + rest:
            steer.replace_rules([*wanted, *rest])

    def counters(self, lease: Lease) -> dict[str, Any]:
        """What was counted for one lease, and nothing of others': ``rules`` by their text, ``no_socket`` by
        queue; packets and bytes. Raises SetupError."""
        steer = self.filter(lease.interface)
        counted, texts = steer.counters(), {rule.id: str(rule) for rule in steer.rules}
        return {
            "rules": {
                str(number): [count.packets, count.bytes]
                for number, count in counted.rules.items()
                if texts.get(number) in lease.rules
            },
            "no_socket": {
                str(queue): [count.packets, count.bytes]
                for (group, queue), count in counted.no_socket.items()
                if group == lease.target and queue in lease.numbers
            },
        }

    def end(self, lease: Lease) -> None:
        """Take back what a lease gave: its sockets leave the map first, then its rules. Calm when the
        interface or its filter is gone."""
        self.living.pop(lease.id, None)
        try:
            steer = self.filter(lease.interface)
            for queue in lease.numbers:
                steer.set_socket(lease.target, queue, None)
            self.follow(lease.interface)
        except (SetupError, OSError, ConfigError) as error:
            log.info("%s: nothing to take back: %s", lease, error)
        self.write()

    def close(self) -> None:
        """Let go of the filters. The journal stays while a lease lives, else it goes."""
        for steer in self._filters.values():
            steer.close()
        self._filters.clear()
        if not self.living:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def describe(self) -> list[dict[str, Any]]:
        """The leases, for ``status``."""
        return [dataclasses.asdict(lease) for lease in self.living.values()]
