"""``xdpstack doctor``: what holds this host back, and the command that mends it.

Exit codes: 0 nothing fails, 1 something fails (a check, or a change of --fix or --restore), 2 usage; with
``--strict`` 3 where only advice is left (something is warn), for scripts that want a host at its best.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xdpstack.errors import ConfigError

if TYPE_CHECKING:
    from xdpstack.doctor import Check, Mended

__all__ = ["register"]

_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "unknown": "36"}


def register(commands: Any) -> None:
    """Add ``doctor``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="what holds this host back, and the command that mends it", description=__doc__
    )
    parser.add_argument("interface", nargs="?", help="look at this interface, too")
    parser.add_argument(
        "--check", action="append", default=[], metavar="NAME", help="only this check; may be given again"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--fix", action="store_true",
        help="make the reversible changes, noted in a journal first, and say what was before and after",
    )  # fmt: skip
    what.add_argument(
        "--restore", action="store_true",
        help="put back what --fix changed and what ports that were killed left, last change first",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="one object: state, interface, checks (name, state, found, why, remedy); with --fix also "
        "changes (check, what, before, after, error); with --restore restored (what, before, after) and left",
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

    if args.restore:
        return _restore(args)
    changes = _fix(args) if args.fix else []
    checks = examine(args.interface, insist=args.insist, only=args.check)
    worst = next(state for state in STATES if any(c.state == state for c in checks))
    failed = worst == "fail" or any(change.error for change in changes)
    if args.json:
        shown = {
            "state": worst,
            "interface": args.interface,
            "checks": [check.shown() for check in checks],
            **({"changes": [dataclasses.asdict(change) for change in changes]} if args.fix else {}),
        }
        print(json.dumps(shown, ensure_ascii=False))
    else:
        show_changes(changes)
        show(checks)
    return 1 if failed else 3 if worst == "warn" and args.strict else 0


def _fix(args: argparse.Namespace) -> list[Mended]:
    """Make every change once, in rounds: a link that comes up shows what was not to be seen before."""
    from xdpstack.doctor import Change, examine, mend

    made: list[Mended] = []
    tried: set[Change] = set()
    for _ in range(3):
        checks = examine(args.interface, insist=args.insist, only=args.check)
        fresh = [
            dataclasses.replace(check, changes=tuple(c for c in check.changes if c not in tried))
            for check in checks
        ]
        made += mend(fresh)
        tried |= {change for check in fresh for change in check.changes}
        if not any(check.changes for check in fresh):
            break
    return made


def _restore(args: argparse.Namespace) -> int:
    from xdpstack.doctor import restore

    if args.interface or args.check:
        raise ConfigError("doctor: --restore puts everything back: name no interface and no check")
    restored, left = restore()
    if args.json:
        rows = [{"what": row.what, "before": row.before, "after": row.after} for row in restored]
        print(json.dumps({"restored": rows, "left": left}, ensure_ascii=False))
    else:
        show_changes(restored)
        for sentence in left:
            print(f"left    {sentence}")
        if not restored and not left:
            print("nothing to put back")
    return 1 if left else 0


def show_changes(changes: Sequence[Mended]) -> None:
    """A line a change: what was before, and after."""
    for change in changes:
        if change.error:
            print(f"failed  {change.what}: {change.error}")
        else:
            print(f"changed {change.what}: {change.before or 'nothing'} -> {change.after or 'nothing'}")


def show(checks: Sequence[Check]) -> None:
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
                print(f"{'':8}{'':{width}}  > {c.remedy}" + ("   (--fix does it)" if c.changes else ""))
