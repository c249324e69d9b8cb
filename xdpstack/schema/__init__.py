"""Venues' message layouts as data: one model, many products.

``load(name)`` reads a schema of xdpstack/schemas (or a path); ``xdpstack.schema.dtypes`` makes numpy
dtypes of it, ``emit_c`` the C decoder, ``document`` the reference tables, ``scapy_layer`` a scapy
layer and ``reference`` a slow, obvious decoder for tests. Nothing here imports the native core.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path

from xdpstack.schema.model import Schema, SchemaError

__all__ = ["FOLDER", "Schema", "SchemaError", "load", "names"]

FOLDER = Path(__file__).resolve().parent.parent / "schemas"


def names() -> list[str]:
    """The schemas that come with this package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str | Path) -> Schema:
    """The schema of a name (``"itch50"``) or of a file; SchemaError says what is wrong with it."""
    path = Path(name)
    if path.suffix != ".toml":
        path = FOLDER / f"{name}.toml"
        if not path.exists():
            raise SchemaError(f"there is no schema {str(name)!r}; known: {', '.join(names())}")
    return _load(path.resolve())


@functools.cache
def _load(path: Path) -> Schema:
    from xdpstack.schema import fixed, sbe  # they import this module's folder of words

    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise SchemaError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise SchemaError(f"{path.name}: {error}") from None
    return sbe.build(data, path) if data.get("framing") == "sbe" else fixed.build(data, path)
