"""Where a member lies in a structure of the running kernel, from its BTF.

Format: Documentation/bpf/btf.rst of the kernel. Only what it takes to find one member.
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["member_offset"]

VMLINUX = Path("/sys/kernel/btf/vmlinux")
MAGIC, STRUCT = 0xEB9F, 4
# Bytes after a type's 12: a fixed number, or a number a member.
FIXED = {1: 4, 3: 12, 14: 4, 17: 4}  # INT, ARRAY, VAR, DECL_TAG
EACH = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}  # STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64
KINDS = 19


def member_offset(structure: str, member: str, path: Path = VMLINUX) -> int | None:
    """Bytes from the start of ``structure`` to ``member``. None: no BTF here, or it has no such member."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        return _search(data, structure.encode(), member.encode())
    except (struct.error, ValueError):  # it ends in the middle
        return None


def _search(data: bytes, structure: bytes, member: bytes) -> int | None:
    magic, _, _, head, types, types_len, strings, strings_len = struct.unpack_from("<HBBIIIII", data)
    if magic != MAGIC:  # a big-endian kernel's, or none at all
        return None
    text = data[head + strings : head + strings + strings_len]
    wanted = text.find(b"\0" + structure + b"\0") + 1
    at, end = head + types, head + types + types_len
    while wanted and at < end:
        name, info, _ = struct.unpack_from("<III", data, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        if not 0 < kind <= KINDS:  # newer than this reader: it cannot be stepped over
            return None
        at += 12
        if kind == STRUCT and name == wanted and count:
            return _member(data, at, count, bool(info >> 31), text, member)
        at += FIXED.get(kind, EACH.get(kind, 0) * count)
    return None


def _member(data: bytes, at: int, count: int, bitfields: bool, text: bytes, member: bytes) -> int | None:
    for number in range(count):
        name, _, offset = struct.unpack_from("<III", data, at + 12 * number)
        if text[name : text.index(b"\0", name)] == member:
            return int(offset & 0xFFFFFF if bitfields else offset) // 8
    return None
