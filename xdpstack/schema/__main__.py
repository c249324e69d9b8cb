"""``python -m xdpstack.schema``: what the build calls.

c FILE.toml -o OUT.c            the C decoder
registry FILE.toml… -o OUT.c    the list of decoders
doc [-o OUT.md]                 the reference tables of every schema
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xdpstack.errors import ConfigError
from xdpstack.schema import document, emit_c, load


def _write(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Run one generator."""
    parser = argparse.ArgumentParser(prog="xdpstack.schema", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("c", help="the C decoder of one schema")
    one.add_argument("file", type=Path)
    several = commands.add_parser("registry", help="the list of decoders")
    several.add_argument("file", type=Path, nargs="+")
    doc = commands.add_parser("doc", help="the reference tables")
    for command in (one, several, doc):
        command.add_argument("-o", "--out", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.command == "c":
            text = emit_c.emit(load(args.file))
        elif args.command == "registry":
            text = emit_c.registry(load(f).name for f in args.file)
        else:
            text = document.all_tables()
    except ConfigError as error:
        print(f"xdpstack.schema: {error}", file=sys.stderr)
        return 2
    _write(text, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
