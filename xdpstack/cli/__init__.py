"""The command line: one module a group of commands, each with ``register(commands)``.

Exit codes: 0 good, 1 failed, 2 usage. Errors of ours are one sentence on standard error.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from typing import NoReturn

from xdpstack.errors import ConfigError, XdpstackError

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Usage mistakes are errors of ours: one sentence, like every other."""

    def error(self, message: str) -> NoReturn:
        where = self.prog.removeprefix("xdpstack").strip()
        raise ConfigError(f"{where}: {message}; see `{self.prog} --help`".removeprefix(": "))


def build_parser() -> argparse.ArgumentParser:
    """The whole command tree; each module in this package adds its own commands."""
    parser = _Parser(prog="xdpstack", description="Kernel-bypass packet processing for trading hosts.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if not module.startswith("_"):
            importlib.import_module(f"{__name__}.{module}").register(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the entry point of ``xdpstack``."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:2] == ["lab", "--vm"]:
        words[1] = "vm"  # the verb's other spelling
    try:
        args = build_parser().parse_args(words)
        code = int(args.run(args) or 0)
        sys.stdout.flush()  # here, not at exit, where nobody answers for a full disk
        return code
    except ConfigError as error:
        print(f"xdpstack: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _drop_output()
        return 0
    except (XdpstackError, OSError, ValueError) as error:  # ValueError: a protocol fault, see _ffi.check
        print(f"xdpstack: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _sentence(error: Exception) -> str:
    """What went wrong without "[Errno 2]", the file first."""
    if isinstance(error, XdpstackError) or not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _drop_output() -> None:
    """The reader of our output is gone (``| head``): what is still buffered goes nowhere, quietly."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
