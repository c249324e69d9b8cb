"""A scapy layer of every message, made from the same schema: the second opinion that tests build and
parse packets with. Needs scapy (the `test` extra).

``layers(schema)`` gives one Packet class a message; SBE messages have the 8-byte header, the root
block and one list of entries a group. ``frame(schema, messages)`` is what a packet carries behind its
session header.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from scapy import fields as sf
from scapy.packet import Packet

from xdpstack.schema.model import Field, Group, Message, Schema
from xdpstack.schema.reference import frame

__all__ = ["frame", "layers", "parse"]


class _Number(sf.Field[int, bytes]):
    """An integer of any size in either byte order; scapy's own know only some sizes."""

    __slots__ = ["order", "signed"]

    def __init__(self, name: str, size: int, order: str, signed: bool) -> None:
        super().__init__(name, 0, f"{size}s")
        self.order: Any = order
        self.signed = signed

    def i2m(self, pkt: Any, x: Any) -> bytes:
        return int(x or 0).to_bytes(self.sz, self.order, signed=self.signed)

    def m2i(self, pkt: Any, x: Any) -> int:
        return int.from_bytes(x, self.order, signed=self.signed)

    def i2repr(self, pkt: Any, x: Any) -> str:
        return repr(x)


def _field(field: Field, order: str) -> Any:
    name = field.name.replace(".", "_")
    if field.kind == "char":
        return sf.StrFixedLenField(name, b" " * field.size, field.size)
    if field.kind == "float":
        return (sf.IEEEDoubleField if field.size == 8 else sf.IEEEFloatField)(name, 0)
    return _Number(name, field.size, order, field.kind == "int")


def _block(fields: Iterable[Field], length: int, order: str) -> list[Any]:
    """The fields with the bytes between and behind them, which no field names."""
    out, at = [], 0
    for field in sorted(fields, key=lambda f: f.offset):
        if field.offset > at:
            out.append(sf.StrFixedLenField(f"pad_{at}", b"\0" * (field.offset - at), field.offset - at))
        out.append(_field(field, order))
        at = field.end
    if length > at:
        out.append(sf.StrFixedLenField(f"pad_{at}", b"\0" * (length - at), length - at))
    return out


class _Plain(Packet):
    """What is behind a message or an entry is the next one's, not its payload."""

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s


def _group_fields(group: Group, name: str) -> list[Any]:
    entry = type(
        f"{name}_{group.name}", (_Plain,), {"fields_desc": _block(group.fields, group.block_length, "little")}
    )
    head: dict[int, Any] = {
        group.length_offset: _Number(f"{group.name}_length", group.length_size, "little", False),
        group.count_offset: sf.FieldLenField(
            f"{group.name}_count", None, count_of=group.name, fmt="B" if group.count_size == 1 else "<H"
        ),
    }
    head[group.length_offset].default = group.block_length
    out: list[Any] = []
    at = 0
    for offset in sorted(head):
        if offset > at:
            out.append(sf.StrFixedLenField(f"{group.name}_pad_{at}", b"\0" * (offset - at), offset - at))
        out.append(head[offset])
        at = offset + (group.length_size if offset == group.length_offset else group.count_size)
    count = f"{group.name}_count"
    out.append(sf.PacketListField(group.name, [], entry, count_from=lambda pkt: getattr(pkt, count)))
    return out


def _layer(schema: Schema, message: Message) -> type[Packet]:
    fields = _block(message.fields, message.length, schema.byte_order)
    if schema.sbe:
        header = (
            ("block_length", message.length),
            ("template_id", message.id),
            ("schema_id", schema.schema_id),
            ("version", schema.versions[-1]),
        )
        fields = [sf.LEShortField(name, value) for name, value in header] + fields
        for group in message.groups:
            fields += _group_fields(group, message.name)
    else:
        for field in fields:
            if field.name == "type":
                field.default = bytes([message.id])
    return type(message.name, (_Plain,), {"fields_desc": fields, "name": message.name})


@functools.cache
def layers(schema: Schema) -> dict[str, type[Packet]]:
    """One Packet class a message, by message name. Field names are the schema's, dots as underscores."""
    return {message.name: _layer(schema, message) for message in schema.messages}


def parse(schema: Schema, data: bytes) -> Packet | None:
    """One message, without its framing, as a packet; None for a type that the schema lacks."""
    id_ = int.from_bytes(data[2:4], "little") if schema.sbe else data[schema.type_offset]
    message = schema.by_id(id_)
    return None if message is None else layers(schema)[message.name](data)
