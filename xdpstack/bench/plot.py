"""``xdpstack bench --plot FILE``: percentile curves of the rows that have them, ours beside the peer's.

The x axis counts nines, so that the tail has room: p50, p90, p99, p99.9 and, where it is known, the largest
of n at 1 - 1/n. matplotlib is needed for this alone (``pip install 'xdpstack[plots]'``).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdpstack.bench.rows import Row
from xdpstack.errors import ConfigError, SetupError

__all__ = ["Panel", "check", "draw", "panels"]

_SUFFIXES = (".png", ".svg", ".pdf")
_TICKS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99, "p99.999": 99.999}
_PART = re.compile(r"(?P<base>.+)\.p(?P<percent>\d\d)")


@dataclass(slots=True)
class Panel:
    """One picture: points of (percent, value) by who they are of, values in ``unit``."""

    title: str
    unit: str
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def check(path: str | os.PathLike[str]) -> None:
    """Before anything is measured: ConfigError for a name that is no picture's, SetupError without
    matplotlib or where nothing can be written."""
    file = Path(path)
    if file.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--plot {path}: wanted a name that ends in {', '.join(_SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SetupError(
            f"draw {path}", "matplotlib is not installed", "pip install 'xdpstack[plots]'"
        ) from None
    if not file.parent.is_dir() or file.is_dir() or not os.access(file.parent, os.W_OK):
        raise SetupError(f"draw {path}", "nothing can be written there")


def panels(rows: Sequence[Row]) -> list[Panel]:
    """A panel for each row with percentiles, and for rows that are one figure's percentiles (``x.p50``)."""
    found: dict[str, Panel] = {}
    for row in rows:
        part = _PART.fullmatch(row.bench)
        if part:
            panel = found.setdefault(part["base"], Panel(part["base"], row.unit))
            _add(panel, "ours", [(float(part["percent"]), row.ours)])
            if row.peer is not None:
                _add(panel, row.peer_name or "peer", [(float(part["percent"]), row.peer)])
            continue
        panel = Panel(row.bench, row.unit)
        _add(panel, "ours", _points(row, row.more, "", row.ours))
        _add(panel, row.peer_name or "peer", _points(row, row.more, "peer_", row.peer))
        if panel.curves:
            found[row.bench] = panel
    return [panel for panel in found.values() if any(len(points) > 1 for points in panel.curves.values())]


def _add(panel: Panel, who: str, points: list[tuple[float, float]]) -> None:
    if points:
        panel.curves[who] = sorted([*panel.curves.get(who, []), *points])


def _points(
    row: Row, more: Mapping[str, Any], prefix: str, middle: float | None
) -> list[tuple[float, float]]:
    """The percentiles that a row carries for one side: its own table, or p90 and p99 beside the median."""
    table: Mapping[str, float] = more.get(f"{prefix}percentiles") or {}
    if not table and middle is not None and f"{prefix}p90" in more:
        table = {"p50": middle, "p90": more[f"{prefix}p90"], "p99": more[f"{prefix}p99"]}
    points = []
    for key, value in table.items():
        percent = 100 * (1 - 1 / max(row.n, 10)) if key == "max" else _percent(key)
        if percent is not None and math.isfinite(value):
            points.append((percent, value))
    return points


def _percent(key: str) -> float | None:
    """p50 is 50, p999 is 99.9."""
    digits = key.removeprefix("p")
    return float(f"{digits[:2]}.{digits[2:] or 0}") if digits.isdigit() and len(digits) > 1 else None


def _nines(percent: float) -> float:
    return -math.log10(1 - percent / 100)


def draw(rows: Sequence[Row], path: str | os.PathLike[str]) -> int:
    """Draw every panel into one picture; returns how many there are. SetupError: none, or not writable."""
    from matplotlib.figure import Figure

    found = panels(rows)
    if not found:
        raise SetupError(f"draw {path}", "no row of these benches has percentiles", "udp-rtt and wake have")
    across = min(3, len(found))
    down = -(-len(found) // across)
    figure = Figure(figsize=(5 * across, 3.6 * down), layout="constrained")
    for place, panel in enumerate(found, 1):
        axes = figure.add_subplot(down, across, place)
        _draw_one(axes, panel)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise SetupError(f"draw {path}", error.strerror or str(error), errno=error.errno) from None
    return len(found)


def _draw_one(axes: Any, panel: Panel) -> None:
    last = 0.0
    for who, points in panel.curves.items():
        at = [_nines(percent) for percent, _ in points]
        style = "o-" if who == "ours" else "s--"
        axes.plot(at, [value for _, value in points], style, label=who, markersize=4)
        last = max(last, *at)
    values = [value for points in panel.curves.values() for _, value in points]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    ticks = {name: _nines(percent) for name, percent in _TICKS.items() if _nines(percent) <= last + 0.01}
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    axes.grid(True, alpha=0.3)
    axes.legend()
