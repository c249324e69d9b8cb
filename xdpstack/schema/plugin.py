"""A user's own venue: a schema file becomes a loadable decoder, this tree untouched.

``build(Path("venue.toml"), Path("venue.so"))``, then ``load(Path("venue.so"))`` or
``NativeDecoder("venue.so")``. Needs gcc (or $CC) and the C sources that this package is built from.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from xdpstack.errors import ConfigError, SetupError
from xdpstack.schema import emit_c
from xdpstack.schema import load as load_schema

__all__ = ["build", "load"]

SOURCES = Path(__file__).resolve().parent.parent.parent / "cffi_build"
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-DXDS_PLUGIN",
]


def build(schema_file: str | Path, out: str | Path | None = None, cflags: list[str] | None = None) -> Path:
    """Generate, compile and link the decoder of ``schema_file`` into ``out`` (default NAME.so); returns it.

    SchemaError (a ConfigError) for a bad schema, SetupError when the compiler or the sources are missing.
    """
    schema = load_schema(Path(schema_file))
    out = Path(out) if out is not None else Path(f"{schema.name}.so")
    text = emit_c.emit(schema)
    if not (SOURCES / "cores" / "feed" / "decode_inl.h").exists():
        raise SetupError(
            f"building {out.name}", f"{SOURCES} is not there", "build from a checkout of this project"
        )
    with tempfile.TemporaryDirectory(prefix="xdpstack-") as folder:
        source = Path(folder) / f"{emit_c.c_name(schema.name)}.c"
        source.write_text(text)
        made = Path(folder) / "decoder.so"
        inputs = [str(source), str(SOURCES / "cores" / "feed" / "symtab.c")]
        includes = [f"-I{SOURCES}", f"-I{SOURCES / 'xds'}"]
        compiler = shlex.split(os.environ.get("CC", "gcc"))
        command = [*compiler, *FLAGS, *(cflags or []), *includes, *inputs, "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise SetupError(f"running {compiler[0]}", str(error), "apt-get install gcc") from None
        if done.returncode:
            raise SetupError(f"compiling {source.name}", done.stderr.strip().splitlines()[0])
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".partial")
        partial.write_bytes(made.read_bytes())
        partial.chmod(0o755)
        partial.replace(out)  # a process that has the old one loaded keeps it
    return out


def load(path: str | Path) -> Any:
    """The ``const struct xds_decoder *`` of a built decoder; it stays loaded until the process ends."""
    from xdpstack._ffi import ffi, lib

    path = Path(path).resolve()
    if not path.exists():
        raise ConfigError(f"there is no decoder file {path}")
    found = ffi.new("const struct xds_decoder **")
    why = ffi.new("char[]", 256)
    if lib.xds_decoder_load(str(path).encode(), found, why, 256) < 0:
        raise SetupError(f"loading {path.name}", ffi.string(why).decode(errors="replace"))
    return found[0]
