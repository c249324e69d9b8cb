"""``xdpstack demo``: the main job in a lab of its own; what ``make demo`` runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xdpstack.cli._numbers import some_seconds

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add ``demo``."""
    parser = commands.add_parser("demo", help="the main job in two namespaces that it makes and removes")
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo.json"), help="where the result goes (JSON)"
    )
    parser.add_argument("--seconds", type=some_seconds, default=10.0, help="length of one play")
    parser.add_argument(
        "--transport", action="append", choices=("xsk", "sock"), help="only this one (default: both)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 only if every promise was kept."""
    from xdpstack import demo

    args.out.parent.mkdir(parents=True, exist_ok=True)
    return demo.run(args.out, args.seconds, tuple(args.transport or ("xsk", "sock")))
