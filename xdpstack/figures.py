"""Percentile curves and stage breakdowns as a picture (.png, .svg, .pdf) or as one page (.html).

The x axis of curves counts nines, so that the tail has room: p50, p90, p99, p99.9 and, where it is known, the
largest of n at 1 - 1/n. A page holds its pictures and tables itself and asks nothing of the network.
matplotlib is needed for this alone (``pip install 'xdpstack[plots]'``).
"""

from __future__ import annotations

import html
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdpstack.errors import ConfigError, SetupError

__all__ = ["Bars", "Grid", "Panel", "check", "draw", "nines"]

_PICTURES = (".png", ".svg", ".pdf")
_ROOMY = 6
"""Bars of a picture that have two lines of name each."""
_TICKS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99, "p99.999": 99.999}


@dataclass(slots=True)
class Panel:
    """One picture: points of (percent, value) by who they are of, values in ``unit``."""

    title: str
    unit: str
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


@dataclass(slots=True)
class Bars:
    """One picture: a bar a row, made of parts that add up, values in ``unit``."""

    title: str
    unit: str
    rows: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Grid:
    """A table of a page: the first column is words, the others are figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def check(path: str | os.PathLike[str]) -> None:
    """Before anything is measured: ConfigError for a name that is no picture's or page's, SetupError
    without matplotlib or where nothing can be written."""
    file = Path(path)
    if file.suffix.lower() not in (*_PICTURES, ".html"):
        raise ConfigError(f"--plot {path}: wanted a name that ends in {', '.join(_PICTURES)}, .html")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SetupError(
            f"draw {path}", "matplotlib is not installed", "pip install 'xdpstack[plots]'"
        ) from None
    if not file.parent.is_dir() or file.is_dir() or not os.access(file.parent, os.W_OK):
        raise SetupError(f"draw {path}", "nothing can be written there")


def nines(percent: float) -> float:
    """Where a percentile lies on the x axis: 90 is 1, 99 is 2."""
    return -math.log10(1 - percent / 100)


def draw(
    path: str | os.PathLike[str],
    pictures: Sequence[Panel | Bars],
    grids: Sequence[Grid] = (),
    *,
    title: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Draw all into one picture, or with the tables into one page. SetupError: it cannot be written."""
    file = Path(path)
    try:
        if file.suffix.lower() == ".html":
            file.write_text(_page(pictures, grids, title, notes), encoding="utf-8")
        else:
            _figure(pictures, title).savefig(file, dpi=120)
    except OSError as error:
        raise SetupError(f"draw {path}", error.strerror or str(error), errno=error.errno) from None


def _figure(pictures: Sequence[Panel | Bars], title: str = "") -> Any:
    from matplotlib.figure import Figure

    across = min(3, len(pictures))
    down = -(-len(pictures) // across)
    figure = Figure(figsize=(5 * across, 3.6 * down + (0.4 if title else 0)), layout="constrained")
    if title:
        figure.suptitle(title)
    for place, picture in enumerate(pictures, 1):
        axes = figure.add_subplot(down, across, place)
        if isinstance(picture, Panel):
            _draw_curves(axes, picture)
        else:
            _draw_bars(axes, picture)
    return figure


def _draw_curves(axes: Any, panel: Panel) -> None:
    last = 0.0
    for who, points in panel.curves.items():
        at = [nines(percent) for percent, _ in points]
        style = "s--" if who != "ours" and "ours" in panel.curves else "o-"
        axes.plot(at, [value for _, value in points], style, label=who, markersize=4 if len(at) < 10 else 2)
        last = max(last, *at)
    values = [value for points in panel.curves.values() for _, value in points]
    least = min((value for value in values if value > 0), default=1.0)
    if max(values) > 20 * least:
        if min(values) > 0:
            axes.set_yscale("log")
        else:  # what takes no time has a place below the first power of ten
            axes.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(least)))
            axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(bottom=0)
    ticks = {name: nines(percent) for name, percent in _TICKS.items() if nines(percent) <= last + 0.01}
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    axes.grid(True, alpha=0.3)
    axes.legend()


def _draw_bars(axes: Any, bars: Bars) -> None:
    parts = list(dict.fromkeys(part for row in bars.rows.values() for part in row))
    names, many = list(bars.rows), len(bars.rows) > _ROOMY
    for place, name in enumerate(names):
        left = 0.0
        for part, value in bars.rows[name].items():
            axes.barh(place, value, left=left, height=0.6, color=f"C{parts.index(part)}", label=part)
            left += value
        axes.text(left, place, f" {left:.3g}", va="center", fontsize="x-small" if many else "small")
    size = {"fontsize": min(8.0, 100 / len(names))} if many else {}
    axes.set_yticks(range(len(names)), [name.replace("\n", "  ") if many else name for name in names], **size)
    axes.set_ylim(len(names) - 0.4, -max(1.2, 0.7 + 0.13 * len(names)))  # room for the legend
    axes.margins(x=0.15)
    axes.set_title(bars.title)
    axes.set_xlabel(bars.unit)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend([handles[part] for part in parts], parts, fontsize="small", loc="upper right", ncols=3)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222;"
    "background:#fff}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}"
    "th,td{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #888}td{font-variant-numeric:"
    "tabular-nums}.missed{color:#b00020}p{color:#555}svg{max-width:100%;height:auto}"
)


def _svg(picture: Panel | Bars, number: int) -> str:
    """A picture as an element of a page; names inside it are told apart by ``number``."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"picture {number}"}):
        _figure([picture]).savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _page(pictures: Sequence[Panel | Bars], grids: Sequence[Grid], title: str, notes: Sequence[str]) -> str:
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(note)}</p>" for note in notes),
        *(_svg(picture, number) for number, picture in enumerate(pictures)),
    ]  # fmt: skip
    for grid in grids:
        parts += [f"<h2>{html.escape(grid.title)}</h2>", "<table>", _row("th", grid.head)]
        parts += [_row("td", row) for row in grid.rows]
        parts += ["</table>", f"<p>{html.escape(grid.note)}</p>" if grid.note else ""]
    return "\n".join(part for part in [*parts, "</body></html>"] if part) + "\n"


def _row(kind: str, cells: Sequence[str]) -> str:
    made = (
        f"<{kind}{' class=missed' if cell == 'MISSED' else ''}>{html.escape(cell)}</{kind}>" for cell in cells
    )
    return f"<tr>{''.join(made)}</tr>"
