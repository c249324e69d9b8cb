"""``xdpstack doctor``: what holds this host back, and the command that mends it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

__all__ = ["register"]

_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "unknown": "36"}


def register(commands: Any) -> None:
    """Add ``doctor``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="what holds this host back, and the command that mends it", description=__doc__
    )
    parser.add_argument("interface", nargs="?", help="look at this interface, too")
    parser.add_argument(
        "--json", action="store_true", help="one object: state, checks (name, state, found, why, remedy)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 when one fails."""
    from xdpstack.doctor import examine

    checks = examine(args.interface)
    worst = next((s for s in ("fail", "warn", "unknown") if any(c.state == s for c in checks)), "ok")
    if args.json:
        found = {
            "state": worst,
            "interface": args.interface,
            "checks": [dataclasses.asdict(c) for c in checks],
        }
        print(json.dumps(found, ensure_ascii=False))
        return int(worst == "fail")
    width = max(len(c.name) for c in checks)
    for c in checks:
        state = f"{c.state:<8}"
        if sys.stdout.isatty():
            state = f"\x1b[{_COLOURS[c.state]}m{state}\x1b[0m"
        print(f"{state}{c.name:<{width}}  {c.found}")
        if c.state != "ok":
            print(f"{'':8}{'':{width}}  {c.why}")
            if c.remedy:
                print(f"{'':8}{'':{width}}  > {c.remedy}")
    return int(worst == "fail")
