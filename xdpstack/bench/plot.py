"""``xdpstack bench --plot FILE``: percentile curves of the rows that have them, ours beside the peer's, of
each stage where stages were stamped, with a bar of their shares; as a picture or, with the table of all rows,
as a page. :mod:`xdpstack.figures` draws them; :mod:`xdpstack.bench.breakdown` says what a row carries.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence

from xdpstack import figures
from xdpstack.bench.breakdown import FIGURES
from xdpstack.bench.rows import Row, Target, cells
from xdpstack.errors import SetupError
from xdpstack.figures import Bars, Grid, Panel, check
from xdpstack.plot import PARTS

__all__ = ["Panel", "bars", "check", "draw", "panels"]

_PART = re.compile(r"(?P<base>.+)\.p(?P<percent>\d\d)")


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
        of = row.more.get("percentiles_of")
        panel = Panel(f"{row.bench}: {of}" if of else row.bench, row.more.get("percentiles_unit", row.unit))
        _add(panel, "ours", _points(row, "percentiles"))
        _add(panel, row.peer_name or "peer", _points(row, "peer_percentiles"))
        if panel.curves:
            found[row.bench] = panel
    curves = [panel for panel in found.values() if any(len(points) > 1 for points in panel.curves.values())]
    return [*curves, *(_by_stage(row) for row in rows if row.more.get("stage_ns"))]


def _by_stage(row: Row) -> Panel:
    """A curve a stage; a stage has as many records as it was reached."""
    panel = Panel(f"{row.bench}: stages", "ns")
    stages = row.more["stage_ns"]
    for stage in [stage for stage in (*PARTS, "total") if stage in stages]:
        told = stages[stage]
        last = 100 * (1 - 1 / max(told["n"], 10))
        points = [
            (percent, float(value))
            for key, value in told.items()
            if (percent := last if key == "max" else _percent(key)) is not None and percent <= last
        ]
        panel.curves[stage] = sorted(points)
    return panel


def bars(rows: Sequence[Row]) -> list[Bars]:
    """A bar a row whose stages were stamped: what each has of their mean times, which add up (percentiles do
    not). In percent, as rows differ by orders of magnitude."""
    found = {}
    for row in rows:
        told = row.more.get("stage_ns", {})
        means = {part: told[part]["mean"] for part in PARTS if part in told}
        if whole := sum(means.values()):
            shares = {part: 100 * mean / whole for part, mean in means.items()}
            found[f"{row.bench}\n{_time(whole)}"] = shares
    return [Bars("mean time, by stage", "%", found)] if found else []


def _time(ns: float) -> str:
    for unit, size in (("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def _add(panel: Panel, who: str, points: list[tuple[float, float]]) -> None:
    if points:
        panel.curves[who] = sorted([*panel.curves.get(who, []), *points])


def _points(row: Row, key: str) -> list[tuple[float, float]]:
    """The percentiles that a row carries for one side, as far as so many samples can tell them."""
    table: Mapping[str, float] = row.more.get(key) or {}
    last = 100 * (1 - 1 / max(table.get("n", row.n), 2))
    points = []
    for name, value in table.items():
        percent = last if name == "max" else _percent(name)
        if percent is not None and (percent < last or name == "max") and math.isfinite(value):
            points.append((percent, value))
    return points


def _percent(key: str) -> float | None:
    """p50 is 50, p999 is 99.9."""
    digits = key.removeprefix("p")
    return float(f"{digits[:2]}.{digits[2:] or 0}") if digits.isdigit() and len(digits) > 1 else None


def draw(
    rows: Sequence[Row], path: str | os.PathLike[str], targets: Mapping[str, Target] | None = None
) -> int:
    """Draw every panel; returns how many there are. SetupError: none, or it cannot be written."""
    found = panels(rows)
    if not found:
        raise SetupError(f"draw {path}", "no row of these benches has percentiles", "udp-rtt and wake have")
    parts = bars(rows)
    table = cells([(row, (targets or {}).get(row.bench)) for row in rows])
    settings = [
        Grid(f"Settings of {row.bench}", ("", "value"), [(key, str(value)) for key, value in given.items()])
        for row in rows
        if (given := row.more.get("settings"))
    ]
    grids = [Grid("Rows", table[0], table[1:]), *settings]
    notes = ["Ours beside the peer's, in one run on one machine."]
    if parts:
        head = ("", "stage", "records", *FIGURES)
        lines = [
            (row.bench, stage, f"{told['n']:,}", *(f"{told[figure]:,.0f}" for figure in FIGURES))
            for row in rows
            for stage, told in row.more.get("stage_ns", {}).items()
        ]
        apart = [f"{row.bench}: {of}." for row in rows if (of := row.more.get("stages_of"))]
        note = " ".join(["By HDR histograms, within 0.4 %; medians of the rounds.", *apart])
        grids.insert(1, Grid("Stages, ns", head, lines, note))
    figures.draw(path, [*found, *parts], grids, title="xdpstack bench", notes=notes)
    return len(found)
