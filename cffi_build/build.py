"""Make xdpstack/_xds: cffi's glue over every header in cffi_build/xds.

The C core is compiled by the Makefile into build/native/libxds.a; this file turns the public
headers into cffi's declarations, so there is no second copy of any struct, and links both into one
extension module. Usage: ``python cffi_build/build.py --archive LIB --out DIR [--cflags …]``.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
HEADERS = HERE / "xds"
SHARED = HERE.parent / "bpf" / "xds_shared.h"  # the contract with the XDP program is Python's as well

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_CONSTANT = re.compile(r"^\s*#\s*define\s+([A-Za-z_]\w*)\s+\(?(-?(?:0[xX][0-9a-fA-F]+|\d+))[uUlL]*\)?\s*$")
_ASSERT = re.compile(r"_Static_assert\s*\(.*?\)\s*;", re.S)


def ordered_headers() -> list[Path]:
    """Every public header, each after those it includes."""
    done: list[Path] = []

    def visit(path: Path) -> None:
        if path in done:
            return
        for name in _INCLUDE.findall(path.read_text()):
            visit(SHARED if Path(name).name == SHARED.name else HEADERS / Path(name).name)
        done.append(path)

    for path in sorted([*HEADERS.glob("*.h"), SHARED]):
        if not path.name.endswith("_inl.h"):  # code, for users of C and C++
            visit(path)
    return done


def declarations(path: Path) -> str:
    """The part of a header that cffi reads: no comments, no preprocessor but integer constants."""
    lines = []
    for line in _COMMENT.sub("", path.read_text()).replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("#"):
            constant = _CONSTANT.match(line)
            if constant:
                lines.append(f"#define {constant[1]} {constant[2]}")
            continue
        lines.append(line)
    return _ASSERT.sub("", "\n".join(lines))


_PROTOTYPE = re.compile(r"^[^\n(){}]*?\b(xds_\w+)\s*\([^;{]*\)\s*;", re.M)


def all_defined(text: str, archive: Path) -> str:
    """The declarations, refused where nothing defines one: at import it would be a riddle."""
    listing = subprocess.run(
        ["gcc-nm", "-A", "--defined-only", archive], capture_output=True, text=True, check=True
    )
    defined = {line.split()[-1] for line in listing.stdout.splitlines() if line.strip()}
    missing = [match[1] for match in _PROTOTYPE.finditer(text) if match[1] not in defined]
    if missing:
        raise SystemExit("declared but defined nowhere: " + ", ".join(missing))
    return text


def make_ffi(archive: Path, cflags: list[str], ldflags: list[str]) -> FFI:
    """The FFI builder for the whole core."""
    ffi = FFI()
    headers = ordered_headers()
    for path in headers:
        ffi.cdef(all_defined(declarations(path), archive))
    ffi.set_source(
        "xdpstack._xds",
        "\n".join(f'#include "{path.name}"' for path in headers),
        include_dirs=[str(HEADERS), str(SHARED.parent)],
        extra_objects=[str(archive)],
        extra_compile_args=cflags,
        extra_link_args=ldflags,
    )
    return ffi


def main(argv: list[str] | None = None) -> int:
    """Build the extension module; the Makefile's last step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder that holds xdpstack/")
    parser.add_argument("--tmp", type=Path, required=True)
    parser.add_argument("--cflags", default="")
    parser.add_argument("--ldflags", default="")
    args = parser.parse_args(argv)
    ffi = make_ffi(args.archive.resolve(), shlex.split(args.cflags), shlex.split(args.ldflags))
    built = Path(ffi.compile(tmpdir=str(args.tmp), verbose=False))
    target = args.out / "xdpstack" / built.name
    partial = target.with_suffix(".partial")
    partial.write_bytes(built.read_bytes())
    partial.chmod(0o755)
    partial.replace(target)  # a running process keeps the old one
    return 0


if __name__ == "__main__":
    sys.exit(main())
