"""``xdpstack stats --plot FILE``: the latencies of running engines as curves, and where the time goes.

Each feed and connection has a panel of percentile curves, one a stage; below, a bar each of its stages' mean
times, which add up to the whole (percentiles do not).
"""

from __future__ import annotations

import datetime
import os

from xdpstack.errors import SetupError
from xdpstack.figures import Bars, Grid, Panel, draw
from xdpstack.stats import Histogram
from xdpstack.watch import Engine, Look, drops

__all__ = ["draw_look", "pictures_of", "points_of"]

_PERCENTS = (
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 85.0, 90.0, 95.0, 97.0, 98.0, 99.0, 99.5, 99.7,
    99.9, 99.95, 99.97, 99.99, 99.995, 99.999, 99.9999,
)  # fmt: skip
PARTS = ("wake", "tls_start", "tls_end", "parsed", "callback")
"""Stages whose times add up, in their order."""


def points_of(histogram: Histogram) -> list[tuple[float, float]]:
    """(percent, µs) of a histogram, as far as its count can tell, and its largest at 1 - 1/n."""
    count = len(histogram)
    if not count:
        return []
    last = 100 * (1 - 1 / max(count, 2))
    points = [(percent, histogram.percentile(percent) / 1e3) for percent in _PERCENTS if percent < last]
    return [*points, (last, int(histogram.pointer.max) / 1e3)]


def _subjects(engine: Engine) -> dict[str, dict[str, Histogram]]:
    """Histograms with records, by whose they are and by stage."""
    found: dict[str, dict[str, Histogram]] = {}
    for subject, stage, name in engine.stages():
        if len(engine.histograms[name]):
            found.setdefault(subject, {})[stage or "all"] = engine.histograms[name]
    return found


def pictures_of(look: Look) -> tuple[list[Panel], list[Bars]]:
    """The curves, and the breakdown where there are stages that add up."""
    panels, rows = [], {}
    for engine in look.engines.values():
        for subject, stages in _subjects(engine).items():
            curves = {stage: points_of(histogram) for stage, histogram in stages.items()}
            panels.append(Panel(f"{engine.label}: {subject}", "µs", curves))
            parts = {part: stages[part].summary().mean / 1e3 for part in PARTS if part in stages}
            if len(parts) > 1:
                rows[f"{engine.label}\n{subject}"] = parts
    return panels, [Bars("mean time in each stage", "µs", rows)] if rows else []


def _latencies(look: Look) -> Grid:
    words = ("p50", "p90", "p99", "p99.9", "p99.99", "max", "mean", "deviation", "outliers")
    head = ("", "stage", "records", *words)
    rows = []
    for engine in look.engines.values():
        for subject, stages in _subjects(engine).items():
            for stage, histogram in stages.items():
                s = histogram.summary()
                times = (s.p50, s.p90, s.p99, s.p999, s.p9999, s.max, s.mean, s.deviation)
                shown = (f"{value / 1e3:,.2f}" for value in times)
                rows.append((f"{engine.label}: {subject}", stage, f"{s.count:,}", *shown, f"{s.outliers:,}"))
    return Grid("Latencies, µs", head, rows, "By HDR histograms, within 0.4 %.")


def _counters(engine: Engine) -> Grid:
    rows = [(name, f"{value:,}", engine.units[name]) for name, value in engine.values.items() if value]
    return Grid(f"Counters of {engine.label} (pid {engine.pid})", ("", "value", "unit"), rows)


def _losses(look: Look) -> Grid:
    rows = [
        (f"{engine.label}: {drop.where}", drop.reason, f"{drop.count:,}")
        for engine in look.engines.values()
        for drop in drops(engine.values)
    ]
    return Grid("Losses", ("", "reason", "count"), rows, "" if rows else "None.")


def draw_look(look: Look, path: str | os.PathLike[str], *, when: datetime.datetime | None = None) -> int:
    """Draw what was seen; returns how many curves there are. SetupError: none, or it cannot be written."""
    panels, bars = pictures_of(look)
    if not panels:
        raise SetupError(f"draw {path}", "no engine here has recorded a latency")
    at = when or datetime.datetime.now().astimezone()
    names = ", ".join(look.engines)
    draw(
        path, [*panels, *bars], [_latencies(look), _losses(look), *map(_counters, look.engines.values())],
        title=f"xdpstack: {names}", notes=[f"Seen {at:%d %B %Y, %H:%M:%S %Z}, since each engine's start."],
    )  # fmt: skip
    return sum(len(panel.curves) for panel in panels)
