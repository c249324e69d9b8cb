"""``xdpstack doctor``: what holds this host back, and the command that mends it.

Exit codes: 0 nothing fails, 1 something fails, 2 usage; with ``--strict`` 3 where only advice is left
(something is warn), for scripts that want a host at its best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
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
        "--json", action="store_true",
        help="one object: state, interface, checks (name, state, found, why, remedy)",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true", help="exit with 3 where a check is warn and none fails"
    )
    parser.add_argument(
        "--try", dest="insist", action="store_true",
        help="open a socket for a moment on an interface with the default route, too, to see what is granted",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every check; the exit code says how bad the worst is."""
    from xdpstack.doctor import STATES, examine

    checks = examine(args.interface, insist=args.insist)
    worst = next(state for state in STATES if any(c.state == state for c in checks))
    if args.json:
        shown = [check.shown() for check in checks]
        print(json.dumps({"state": worst, "interface": args.interface, "checks": shown}, ensure_ascii=False))
    else:
        show(checks)
    return 1 if worst == "fail" else 3 if worst == "warn" and args.strict else 0


def show(checks: Sequence[Any]) -> None:
    """A line a check; why and what to do below those that are not good."""
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
