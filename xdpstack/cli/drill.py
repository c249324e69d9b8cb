"""``xdpstack drill``: scripts in packetdrill's grammar against our stack in virtual time, or the kernel's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdpstack.errors import ConfigError, XdpstackError

if TYPE_CHECKING:
    from xdpstack.drill import Script

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add ``drill`` to the command tree."""
    drill = commands.add_parser(
        "drill", help="play TCP scripts in packetdrill's grammar against our stack, or the kernel's"
    )
    drill.add_argument("scripts", nargs="+", metavar="FILE", help="a script, or a folder of *.pkt")
    drill.add_argument(
        "--kernel", action="store_true", help="the kernel's TCP, behind a TUN device, in real time (root)"
    )
    drill.add_argument(
        "--long",
        action="store_true",
        help="with --kernel: those too that are marked --long, which take minutes",
    )
    drill.add_argument("--v6", action="store_true", help="over IPv6")
    drill.add_argument("--quiet", action="store_true", help="only what went wrong, and the sum")
    drill.add_argument("--json", action="store_true", help="one JSON object")
    drill.set_defaults(run=_run)


def _files(names: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(path.rglob("*.pkt"))
            if not inside:
                raise ConfigError(f"drill: no *.pkt in {name}")
            found += inside
        else:
            found.append(path)
    return found


def _run(args: argparse.Namespace) -> int:
    from xdpstack.drill import Mismatch, parse

    scripts: list[Script] = []
    for path in _files(args.scripts):
        try:
            scripts.append(parse(path.read_text(), str(path)))
        except UnicodeDecodeError:
            raise ConfigError(f"drill: {path}: not a text") from None
    if args.kernel and not args.long:
        scripts = [script for script in scripts if "long" not in script.options]
    outcomes = _kernel(scripts, args.v6) if args.kernel else _virtual(scripts, args.v6)
    failed = [name for name, error in outcomes.items() if isinstance(error, Mismatch)]
    refused = [name for name, error in outcomes.items() if error and not isinstance(error, Mismatch)]
    if args.json:
        told = {name: str(error) if error else "" for name, error in outcomes.items()}
        print(json.dumps({"scripts": told, "failed": len(failed), "refused": len(refused)}))
    else:
        for name, error in outcomes.items():
            if error or not args.quiet:
                word = "ok" if not error else "failed" if name in failed else "refused"
                print(f"{word:<8} {error or name}")
        print(f"{len(outcomes)} scripts, {len(failed)} failed, {len(refused)} refused")
    return 1 if failed or refused else 0


def _virtual(scripts: list[Script], v6: bool) -> dict[str, XdpstackError | None]:
    from xdpstack.drill import Mismatch, Refused
    from xdpstack.drill.virtual import run

    outcomes: dict[str, XdpstackError | None] = {}
    for script in scripts:
        try:
            run(script, "v6" if v6 else "v4")
            outcomes[script.name] = None
        except (Mismatch, Refused) as error:
            outcomes[script.name] = error
    return outcomes


def _kernel(scripts: list[Script], v6: bool) -> dict[str, XdpstackError | None]:
    from xdpstack.drill.kernel import run_many

    return run_many(scripts, family="v6" if v6 else "v4")
