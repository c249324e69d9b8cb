"""The door: the only module that imports the native core.

``ffi`` and ``lib`` are cffi's; ``dtype`` derives a numpy dtype from a C struct, ``names`` the words
of a C enum, so that neither has a second copy in Python.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from xdpstack._xds import ffi, lib

__all__ = ["check", "dtype", "ffi", "lib", "names", "view"]

_PRIMITIVE = {
    "int8_t": "i1", "uint8_t": "u1", "int16_t": "i2", "uint16_t": "u2", "int32_t": "i4",
    "uint32_t": "u4", "int64_t": "i8", "uint64_t": "u8", "char": "S1", "int": "i4",
    "unsigned int": "u4", "double": "f8", "float": "f4", "size_t": "u8",
}  # fmt: skip


@functools.cache
def dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a C type, e.g. ``dtype("struct xds_update")``: same offsets, same size."""
    return _dtype_of(ffi.typeof(name))


def _dtype_of(ctype: Any) -> np.dtype[Any]:
    if ctype.kind == "primitive":
        return np.dtype(_PRIMITIVE[ctype.cname])
    if ctype.kind == "pointer":
        return np.dtype("u8")
    if ctype.kind == "enum":
        return np.dtype("u4")
    if ctype.kind == "array":
        if ctype.item.cname == "char":
            return np.dtype(f"S{ctype.length}")
        return np.dtype((_dtype_of(ctype.item), (ctype.length,)))
    if ctype.kind == "struct":
        fields = [(name, _dtype_of(field.type), field.offset) for name, field in ctype.fields]
        return np.dtype(
            {
                "names": [name for name, _, _ in fields],
                "formats": [form for _, form, _ in fields],
                "offsets": [offset for _, _, offset in fields],
                "itemsize": ffi.sizeof(ctype),
            }
        )
    raise TypeError(f"no dtype for C type {ctype.cname!r}")


@functools.cache
def names(enum: str, prefix: str = "") -> dict[int, str]:
    """The words of a C enum by value, lower case, without their prefix."""
    elements: dict[int, str] = ffi.typeof(f"enum {enum}").elements
    return {value: word.removeprefix(prefix).lower() for value, word in elements.items()}


def view(pointer: Any, count: int, type_: str) -> np.ndarray[Any, Any]:
    """A numpy array over ``count`` C structs at ``pointer``: no copy, valid as long as the memory."""
    form = dtype(type_)
    return np.frombuffer(ffi.buffer(pointer, count * form.itemsize), dtype=form)


def check(code: int, what: str) -> int:
    """Return ``code`` when it is a count, raise OSError with ``what`` when it is -errno."""
    if code >= 0:
        return code
    if code > -4096:
        raise OSError(-code, f"{what}: {os.strerror(-code)}")
    raise ValueError(f"{what}: {names_of_code(code)}")


def names_of_code(code: int) -> str:
    """The name of a code below -4096, e.g. ``truncated``."""
    for name in dir(lib):
        if name.startswith("XDS_E") and isinstance(value := getattr(lib, name), int) and value == code:
            return name.removeprefix("XDS_E").lower()
    return str(code)
