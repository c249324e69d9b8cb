"""numpy dtypes of every message as it lies on the wire: a message is a view, never a copy.

Byte order is the wire's. Integers of 3, 5 or 6 bytes, which numpy lacks, are two fields ``hi`` and
``lo``; :func:`column` joins them. In SBE a message's dtype is its 8-byte header and root block;
:func:`groups` gives the entries of each repeating group as arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from xdpstack.schema import load
from xdpstack.schema.model import Field, Group, Message, SchemaError

__all__ = ["column", "feed_dtypes", "group_dtype", "groups", "message_dtype", "view"]

Buffer = bytes | bytearray | memoryview
_HEADER = ("block_length", "template_id", "schema_id", "version")


def _format(field: Field, order: str) -> Any:
    mark = ">" if order == "big" else "<"
    if field.kind == "char":
        return f"S{field.size}"
    letter = {"uint": "u", "int": "i", "float": "f"}[field.kind]
    if field.size in (1, 2, 4, 8):
        return f"{mark}{letter}{field.size}"
    low = 4 if field.size > 4 else 2
    parts = [("hi", f"{mark}{letter}{field.size - low}"), ("lo", f"{mark}u{low}")]
    return parts if order == "big" else parts[::-1]


def _dtype(fields: Iterable[Field], size: int, order: str, at: int = 0) -> np.dtype[Any]:
    names = [] if not at else list(_HEADER)
    formats: list[Any] = ["<u2"] * len(names)
    offsets = [2 * i for i in range(len(names))]
    for field in fields:
        names.append(field.name)
        formats.append(np.dtype(_format(field, order)))
        offsets.append(at + field.offset)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": at + size})


def message_dtype(message: Message, block_length: int | None = None) -> np.dtype[Any]:
    """The dtype of a message; in SBE of an acting ``block_length``, without the fields beyond it."""
    size = message.length if block_length is None else block_length
    return _dtype((f for f in message.fields if f.end <= size), size, message.byte_order, message.header)


def group_dtype(message: Message, group: Group | str, block_length: int | None = None) -> np.dtype[Any]:
    """The dtype of one entry of a repeating group."""
    group = message.group(group) if isinstance(group, str) else group
    size = group.block_length if block_length is None else block_length
    return _dtype((f for f in group.fields if f.end <= size), size, message.byte_order)


def feed_dtypes(name: str) -> dict[str, np.dtype[Any]]:
    """The dtype of every message of a feed, by message name."""
    return {message.name: message.dtype for message in load(name).messages}


def column(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """One field of a view as numbers: joins what :func:`message_dtype` had to split (48-bit times)."""
    field: np.ndarray[Any, Any] = array[name]
    if field.dtype.names is None:
        return field
    bits = 8 * field.dtype["lo"].itemsize
    joined: np.ndarray[Any, Any] = (field["hi"].astype("u8") << np.uint64(bits)) | field["lo"].astype("u8")
    return joined


def view(message: Message, data: Buffer) -> np.ndarray[Any, Any]:
    """One message as an array of shape (): no copy. SBE: by the block length that the message itself says."""
    form = message.dtype
    if message.header:
        length = int.from_bytes(data[:2], "little")
        form = form if length == message.length else message_dtype(message, length)
    if len(data) < form.itemsize:
        raise SchemaError(f"{message.name} needs {form.itemsize} bytes, there are {len(data)}")
    shaped: np.ndarray[Any, Any] = np.frombuffer(data, dtype=form, count=1).reshape(())
    return shaped


def groups(message: Message, data: Buffer) -> dict[str, np.ndarray[Any, Any]]:
    """The repeating groups of one SBE message, each an array of entries: no copy.

    ``data`` begins at the message header. SchemaError when a group overruns the message.
    """
    version = int.from_bytes(data[6:8], "little")
    at = message.header + int.from_bytes(data[:2], "little")
    found = {}
    for group in message.groups:
        if group.since > version:
            continue
        if at + group.dimension_size > len(data):
            raise SchemaError(f"{message.name}.{group.name} begins past the message's end")
        where = at + group.length_offset
        length = int.from_bytes(data[where : where + group.length_size], "little")
        where = at + group.count_offset
        count = int.from_bytes(data[where : where + group.count_size], "little")
        at += group.dimension_size
        if at + count * length > len(data):
            raise SchemaError(f"{message.name}.{group.name} overruns the message")
        if length:
            form = group_dtype(message, group, length)
            found[group.name] = np.frombuffer(data, dtype=form, count=count, offset=at)
        at += count * length
    return found
