"""``xdpstack stats``: the counters and histograms of running engines, read from their mapped memory."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from xdpstack.cli._numbers import some_seconds
from xdpstack.errors import ConfigError

if TYPE_CHECKING:
    from xdpstack.clock import SystemClock
    from xdpstack.stats import Found, Reader, Summary

__all__ = ["register"]

MEND = 'queues = "all" opens it, steer = true keeps the flow off it'
_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


def register(commands: Any) -> None:
    """Add ``stats``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "stats", help="counters and latencies of running engines", description=__doc__
    )
    parser.add_argument("engine", nargs="?", help="only this engine: its name or its process id")
    parser.add_argument(
        "--json",
        action="store_true",
        help="one object: clock (the kernel's), engines (values, histograms, units), dead",
    )
    parser.add_argument("--watch", action="store_true", help="again and again, with rates, until interrupted")
    parser.add_argument(
        "--interval", type=some_seconds, default=1.0, metavar="S", help="with --watch: seconds (1)"
    )
    parser.add_argument("--all", action="store_true", help="what is zero, too")
    parser.add_argument(
        "--plot", metavar="FILE",
        help="percentile curves and stages into FILE.png, .svg or .pdf, or with the tables a page FILE.html",
    )  # fmt: skip
    parser.add_argument("--sweep", action="store_true", help="remove what dead engines left in /dev/shm")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show them once, or until interrupted. 1 when the named engine is not there."""
    from xdpstack.stats import sweep

    if args.sweep:
        removed = [str(path) for path in sweep()]
        print(json.dumps({"removed": removed}) if args.json else "\n".join(removed) or "nothing to remove")
        return 0
    if args.plot:
        return _plot(args)
    last: dict[str, tuple[float, dict[str, int]]] = {}
    while True:
        found = _chosen(args.engine)
        engines = [reader for reader in map(_open, found) if reader]
        if args.json:
            print(json.dumps(_as_object(found, engines)), flush=True)
        else:
            text = _render(found, engines, last if args.watch else None, everything=args.all)
            if args.engine and not found:
                text = f"no engine is running called {args.engine}"
            print((_CLEAR if args.watch and sys.stdout.isatty() else "") + text, flush=True)
        if not args.watch:
            return 0 if engines or not args.engine else 1
        last = {str(r.path): (time.monotonic(), r.values()) for r in engines}
        time.sleep(args.interval)


def _plot(args: argparse.Namespace) -> int:
    """Draw them once."""
    from xdpstack.figures import check
    from xdpstack.plot import draw_look
    from xdpstack.watch import look

    if args.watch or args.json:
        raise ConfigError("stats: --plot draws once: not with --watch or --json")
    check(args.plot)
    count = draw_look(look(only=args.engine), args.plot)
    print(f"drew {count} curves into {args.plot}", file=sys.stderr)
    return 0


def _chosen(engine: str | None) -> list[Found]:
    from xdpstack.stats import segments

    return [f for f in segments() if engine is None or engine in (f.name, str(f.pid))]


def _open(found: Found) -> Reader | None:
    if found.state != "alive":
        return None
    try:
        return found.open()
    except OSError:
        return None  # it ended between the listing and now


def _system_clock() -> SystemClock | None:
    from xdpstack.clock import system_clock

    with contextlib.suppress(OSError):  # a sandbox may refuse the question
        return system_clock()
    return None


def _as_object(found: list[Found], engines: list[Reader]) -> dict[str, Any]:
    from xdpstack import shm

    others = [f for f in found if f.state != "alive"]
    return {
        "segments": list(shm.found()),
        "clock": dataclasses.asdict(clock) if (clock := _system_clock()) else None,
        "engines": [reader.as_dict() for reader in engines],
        "dead": [
            {"path": str(f.path), "pid": f.pid, "name": f.name, "state": f.state, "reason": f.reason}
            for f in others
        ],
    }


def _render(
    found: list[Found],
    engines: list[Reader],
    last: dict[str, tuple[float, dict[str, int]]] | None,
    *,
    everything: bool,
) -> str:
    lines: list[str] = []
    for reader in engines:
        lines += _render_engine(reader, (last or {}).get(str(reader.path)), everything=everything)
        lines.append("")
    if engines:
        lines.append(f"the system's clock: {_system_clock() or 'cannot be asked'}")
    lines += _segments()
    for f in found:
        if f.state != "alive":
            lines.append(f"{f.path}: {f.state}, {f.reason}")
    if any(f.state == "dead" for f in found):
        lines.append("remove what dead engines left: xdpstack stats --sweep")
    return "\n".join(lines).rstrip() or "no engine is running"


def _segments() -> list[str]:
    """Tapes and rings in /dev/shm that somebody reads, and how far behind each is."""
    from xdpstack import shm
    from xdpstack.tape import behind

    return [
        f"{s['path']}: {s['written']:,} records; "
        + "; ".join(
            f"{r['name'] or 'reader'} ({r['pid']}) {behind(r)}, {r['lost']:,} lost" for r in s["readers"]
        )
        for s in shm.found()
        if s["readers"]
    ]


def _render_engine(
    reader: Reader, before: tuple[float, dict[str, int]] | None, *, everything: bool
) -> list[str]:
    values, units, gauges = reader.values(), reader.units(), reader.gauges()
    lines = [f"{reader.name} (pid {reader.pid})"]
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if not (value or everything):
            continue
        rate = ""
        if before and name not in gauges and name in before[1]:
            per_second = (value - before[1][name]) / max(time.monotonic() - before[0], 1e-9)
            rate = f"{per_second:>14,.0f} /s"
        lines.append(f"  {name:<{width}} {value:>20,} {units[name]:<10}{rate}".rstrip())
        if value and ".no_socket." in name:
            interface, _, queue = name.partition(".no_socket.")[2].rpartition(".")
            lines.append(f"    queue {queue} of {interface} has no socket: {MEND}")
    histograms = {name: h.summary() for name, h in reader.histograms().items()}
    shown = {name: s for name, s in histograms.items() if s.count or everything}
    if shown:
        width = max(map(len, shown))
        lines.append(f"  {'':<{width}} {'count':>12} " + " ".join(f"{c:>10}" for c in _COLUMNS) + "  unit")
        lines += [f"  {name:<{width}} {_columns(s)}  {units[name]}" for name, s in shown.items()]
    return lines


_COLUMNS = ("p50", "p90", "p95", "p99", "p99.9", "p99.99", "max", "mean", "deviation", "outliers")


def _columns(s: Summary) -> str:
    times = (s.p50, s.p90, s.p95, s.p99, s.p999, s.p9999, s.max, round(s.mean), round(s.deviation))
    return f"{s.count:>12,} " + " ".join(f"{cell:>10,}" for cell in (*times, s.outliers))
