"""Which change rests on which: a flow rule on the table of rules that is turned on, and on its RSS context;
whatever names a queue on the channels that there are.

What one owner made may be what another builds on. So a setting is not taken back, and not changed, while the
journal holds something that would be lost with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xdpstack.nic.journal import Entry

__all__ = ["NTUPLE", "holding"]

NTUPLE = "rx-ntuple-filter"
"""The feature that flow rules need; drivers forget them when it is turned off."""


def holding(entries: Iterable[Entry], change: Entry, value: Any) -> list[Entry]:
    """The entries, but ``change`` and those of its setting, that would lose what they rest on if the setting
    of ``change`` became ``value``."""
    return [
        entry
        for entry in entries
        if entry.index == change.index and entry.setting != change.setting and _loses(entry, change, value)
    ]


def _loses(entry: Entry, change: Entry, value: Any) -> bool:
    if change.operation == "feature" and change.key == [NTUPLE]:
        return value is False and entry.operation == "rule"
    if change.operation == "channels":
        count = int(value["combined"]) + int(value["rx"])
        return max(_queues(entry), default=-1) >= count
    if change.operation == "context" and entry.operation == "rule":
        return entry.key[0].get("context", 0) in set(change.taken or ()) - set(value)
    return False


def _queues(entry: Entry) -> list[int]:
    """The receive queues that a change names."""
    if entry.operation == "rule" and not entry.key[0].get("context"):
        return [int(entry.key[0].get("queue", 0))]
    if entry.operation in ("context", "queues"):
        return list(entry.key[0])
    if entry.operation == "indirection":
        return list(entry.wanted or ())
    return []
