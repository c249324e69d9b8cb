"""The words of the doctor: what a check finds, and what ``--fix`` may change."""

from __future__ import annotations

import dataclasses

__all__ = ["FAIL", "OK", "STATES", "UNKNOWN", "WARN", "Change", "Check", "Finding"]

OK, WARN, FAIL, UNKNOWN = "ok", "warn", "fail", "unknown"
STATES = (FAIL, WARN, UNKNOWN, OK)
"""Worst first. fail: xdpstack cannot work so. warn: it works, and not at its best. unknown: it cannot be
seen from here, and the finding says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One reversible step: set ``key`` of ``subject`` to ``value``; what was there before is put back.

    ``kind``: ``file`` (key is a path under /proc or /sys), ``napi`` (polls and ns of interrupt deferral; key
    is the instance's id, empty for all of a device before Linux 6.13), ``feature`` (an offload as ethtool -k
    calls it, on or off), ``link`` (mtu in bytes, or state up or down). ``subject`` is the interface, empty
    for the host.
    """

    kind: str
    subject: str
    key: str
    value: str

    def __str__(self) -> str:
        key = f"deferral {self.key}".strip() if self.kind == "napi" else self.key
        return f"{self.subject} {key}".strip()


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw; the table adds its name and why it matters."""

    state: str
    found: str
    remedy: str = ""
    changes: tuple[Change, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding. ``state`` is ok, warn, fail (xdpstack cannot work so) or unknown."""

    name: str
    state: str
    found: str
    why: str
    remedy: str = ""
    changes: tuple[Change, ...] = ()
    """What ``--fix`` does about it; empty where only the remedy's command, or a person, can."""

    def shown(self) -> dict[str, str]:
        """The documented keys of ``--json``."""
        return {key: getattr(self, key) for key in ("name", "state", "found", "why", "remedy")}
