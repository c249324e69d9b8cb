"""The command line: one module a group of commands, each with ``register(commands)``.

Exit codes: 0 good, 1 failed, 2 usage. Errors of ours are one sentence on standard error.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

from xdpstack.errors import ConfigError, XdpstackError

__all__ = ["main"]


def build_parser() -> argparse.ArgumentParser:
    """The whole command tree; each module in this package adds its own commands."""
    parser = argparse.ArgumentParser(
        prog="xdpstack", description="Kernel-bypass packet processing for trading hosts."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if not module.startswith("_"):
            importlib.import_module(f"{__name__}.{module}").register(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the entry point of ``xdpstack``."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except ConfigError as error:
        print(f"xdpstack: {error}", file=sys.stderr)
        return 2
    except (XdpstackError, OSError) as error:
        print(f"xdpstack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
