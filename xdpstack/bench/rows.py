"""One line of a bench: the figures, their ratio, whether the target is met; as JSON and in a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KEYS", "Row", "Target", "cells", "from_json", "median", "render", "row", "spread"]

KEYS = ("bench", "ours", "peer", "peer_name", "ratio", "unit", "better", "n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of ours, beside a peer's where there is one."""

    bench: str
    ours: float
    """In ``unit``; the median of the rounds."""
    peer: float | None = None
    peer_name: str | None = None
    unit: str
    """ns, µs, /s or B/s."""
    better: str
    """``lower`` or ``higher``."""
    n: int
    """Packets, messages or round trips behind ``ours``."""
    more: dict[str, Any] = field(default_factory=dict)
    """Percentiles, settings, remarks: further keys of the JSON line."""

    @property
    def ratio(self) -> float | None:
        """ours ÷ peer."""
        if self.peer is None or not self.peer or not math.isfinite(self.peer):
            return None
        return self.ours / self.peer

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of this row."""
        ratio = self.ratio
        return {
            "bench": self.bench,
            "ours": _short(self.ours),
            "peer": None if self.peer is None else _short(self.peer),
            "peer_name": self.peer_name,
            "ratio": None if ratio is None else round(ratio, 4),
            "unit": self.unit,
            "better": self.better,
            "n": self.n,
            **self.more,
        }

    def as_json(self) -> str:
        """One line."""
        return json.dumps(self.as_dict(), ensure_ascii=False)


def row(
    bench: str,
    ours: float,
    peer: float | None = None,
    peer_name: str | None = None,
    *,
    unit: str,
    n: int,
    better: str = "lower",
    **more: Any,
) -> Row:
    """A :class:`Row` in one call; further keywords become further keys of its JSON line."""
    return Row(
        bench=bench,
        ours=ours,
        peer=peer,
        peer_name=peer_name,
        unit=unit,
        better=better,
        n=n,
        more=more,
    )


def from_json(line: str | dict[str, Any]) -> Row:
    """Read back what :meth:`Row.as_json` wrote; ``ratio`` is computed, not taken."""
    data = dict(json.loads(line) if isinstance(line, str) else line)
    known = {key: data.pop(key, None) for key in KEYS}
    known.pop("ratio")
    return Row(**known, more=data)


@dataclass(frozen=True, slots=True)
class Target:
    """What a row has to reach, in words and as a test of the row."""

    text: str
    met: Callable[[Row], bool]

    @classmethod
    def ratio_at_most(cls, bound: float) -> Target:
        """Ours takes at most ``bound`` times what the peer takes."""
        return cls(f"≤ {bound:g}× peer", lambda r: r.ratio is not None and r.ratio <= bound)

    @classmethod
    def ratio_at_least(cls, bound: float) -> Target:
        """Ours does at least ``bound`` times what the peer does."""
        return cls(f"≥ {bound:g}× peer", lambda r: r.ratio is not None and r.ratio >= bound)

    @classmethod
    def at_most(cls, bound: float, unit: str) -> Target:
        """Ours is at most ``bound`` of the row's unit."""
        return cls(f"≤ {bound:g} {unit}", lambda r: r.ours <= bound)

    @classmethod
    def at_least(cls, bound: float, unit: str) -> Target:
        """Ours is at least ``bound`` of the row's unit, which is so many a second."""
        return cls(f"≥ {bound / 1e6:g} M{unit}", lambda r: r.ours >= bound)

    @classmethod
    def above_peer_at_most(cls, bound: float, unit: str) -> Target:
        """Ours is at most ``bound`` of the row's unit above the peer."""
        return cls(f"≤ peer + {bound:g} {unit}", lambda r: r.peer is not None and r.ours - r.peer <= bound)

    def __and__(self, other: Target) -> Target:
        return Target(f"{self.text}, {other.text}", lambda r: self.met(r) and other.met(r))


# ---- statistics -----------------------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def spread(values: Sequence[float]) -> list[float]:
    """The rounds as they came, rounded: shows how far a median can be trusted."""
    return [_short(value) for value in values]


def _short(value: float) -> float:
    if not math.isfinite(value):
        return value
    return round(value) if abs(value) >= 10000 else float(f"{value:.5g}")


# ---- the table ------------------------------------------------------------------------------------


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "B/s":
        return f"{value / 1e6:.1f} MB/s"
    if unit == "/s":
        return f"{value / 1e6:.3f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"
    return f"{value:.1f} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def cells(rows: Sequence[tuple[Row, Target | None]]) -> list[tuple[str, ...]]:
    """A head and the rows as words, each target said with met or missed."""
    found: list[tuple[str, ...]] = [("bench", "ours", "peer", "", "ratio", "target", "")]
    for r, target in rows:
        ratio = r.ratio
        verdict = "" if target is None else "met" if target.met(r) else "MISSED"
        found.append(
            (
                r.bench,
                _figure(r.ours, r.unit),
                _figure(r.peer, r.unit),
                r.peer_name or "",
                "-" if ratio is None else f"{ratio:.3f}",
                "" if target is None else target.text,
                verdict,
            )
        )
    return found


def render(rows: Sequence[tuple[Row, Target | None]]) -> list[str]:
    """The rows as lines of text, columns aligned."""
    shown = cells(rows)
    widths = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
    right = {1, 2, 4}
    return [
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in shown
    ]
