"""``xdpstack bench``: ours beside its peers, as a table or one JSON line a row."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add ``bench`` to the command tree."""
    parser = commands.add_parser("bench", help="measure, side by side with peers")
    parser.add_argument("names", nargs="*", metavar="NAME", help="benches to run (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON line a row")
    parser.add_argument("--quick", action="store_true", help="tiny counts: shapes, not figures")
    parser.add_argument("--list", action="store_true", help="name the benches and their targets")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="percentile curves of the rows that have them, into FILE.png, .svg or .pdf, or a page FILE.html",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from xdpstack.bench import plot
    from xdpstack.bench.registry import Context, Skip, find, target_of
    from xdpstack.bench.rows import Row, Target, render

    chosen = find(args.names)
    if args.plot:
        plot.check(args.plot)
    if args.list:
        return _list(chosen, args.json)
    tell = sys.stderr.isatty() and not args.json
    context = Context(quick=args.quick, say=(lambda text: print(text, file=sys.stderr)) if tell else _silent)
    rows: list[tuple[Row, Target | None]] = []
    failed, cores = 0, os.sched_getaffinity(0)
    for bench in chosen:
        context.say(f"{bench.name}: {bench.about}")
        try:
            for row in bench.run(context):
                rows.append((row, target_of(row.bench)))
                if args.json:
                    print(row.as_json(), flush=True)
        except Skip as reason:
            failed += 1
            print(f"xdpstack: bench {bench.name} skipped: {reason}", file=sys.stderr)
        except (OSError, RuntimeError) as error:
            failed += 1
            print(f"xdpstack: bench {bench.name} failed: {error}", file=sys.stderr)
        finally:
            os.sched_setaffinity(0, cores)  # a bench pins itself; the next one chooses anew
    if rows and not args.json:
        print("\n".join(render(rows)))
        _print_settings([row for row, _ in rows])
    if rows and args.plot:
        targets = {row.bench: target for row, target in rows if target is not None}
        count = plot.draw([row for row, _ in rows], args.plot, targets)
        print(f"drew {count} curves into {args.plot}", file=sys.stderr)
    return 1 if failed else 0


def _silent(text: str) -> None:
    pass


def _list(chosen: Any, as_json: bool) -> int:
    import json

    from xdpstack.bench.registry import target_of

    for bench in chosen:
        target = target_of(bench.name)
        text = target.text if target else None
        if as_json:
            print(json.dumps({"bench": bench.name, "about": bench.about, "target": text}, ensure_ascii=False))
        else:
            print(f"{bench.name:10} {bench.about}" + (f" ({text})" if text else ""))
    return 0


def _print_settings(rows: Any) -> None:
    """Settings beside the figures, each set once."""
    seen: dict[str, list[str]] = {}
    for row in rows:
        given = row.more.get("settings")
        if given:
            text = ", ".join(f"{key} {value}" for key, value in given.items())
            seen.setdefault(text, []).append(row.bench)
    for text, names in seen.items():
        print(f"\n{', '.join(names)}:\n  {text}")
