"""Declarative files for fixed layouts: one TOML file a venue becomes a :class:`Schema`.

The keys are explained in xdpstack/schemas/README.md. Every error names the file and the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdpstack.schema.model import (
    BAD,
    FLAGS,
    FRAMINGS,
    KINDS,
    SESSIONS,
    SIDES,
    ByteMap,
    Field,
    Message,
    Schema,
    SchemaError,
    Update,
)

__all__ = ["build", "byte_map", "flag_map", "parse_layout"]

_TYPE = re.compile(
    r"^(?:(?P<kind>[ui])(?P<bits>8|16|24|32|40|48|64)|char(?P<len>\d*)"
    r"|(?P<sign>s?)price(?P<decimals>\d+)(?:x(?P<pbits>32|64))?)$"
)
_TOP = {
    "name", "title", "origin", "session", "framing", "byte_order", "book", "scale", "message_size",
    "type_offset", "instrument", "update", "header", "message",
}  # fmt: skip
_UPDATE = {
    "kind", "side", "price", "qty", "order_id", "ref", "venue_ns", "last", "hidden", "implied", "snapshot",
    "keeps_priority", "drop_empty", "level",
}  # fmt: skip
_SLOT_FIELDS = ("price", "qty", "order_id", "ref")
MIN_UPDATE_LENGTH = 8  # a slot is eight bytes inside the message


def _fail(where: str, why: str) -> SchemaError:
    return SchemaError(f"{where}: {why}")


def parse_layout(text: str, offset: int, where: str) -> list[Field]:
    """The fields of one layout, back to back from ``offset``; one ``name type`` a line."""
    fields = []
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        words = line.split(None, 2)
        match = _TYPE.match(words[1]) if len(words) > 1 else None
        if not match:
            raise _fail(
                where, f"layout line {line!r} is not 'name type' (u8..u64, i8..i64, charN, priceD, spriceD)"
            )
        kind, size, scale = _type_of(match)
        fields.append(Field(words[0], offset, size, kind, scale, note=words[2] if len(words) > 2 else ""))
        offset += size
    return fields


def _type_of(match: re.Match[str]) -> tuple[str, int, int | None]:
    if match["kind"]:
        return ("uint" if match["kind"] == "u" else "int"), int(match["bits"]) // 8, None
    if match["decimals"]:
        decimals = int(match["decimals"])
        bits = int(match["pbits"]) if match["pbits"] else (64 if decimals > 6 else 32)
        return ("int" if match["sign"] else "uint"), bits // 8, decimals
    return "char", int(match["len"] or 1), None


def byte_map(value: Any, words: Mapping[str, int], fields: Mapping[str, Field], where: str) -> ByteMap:
    """A word (``"bid"``) or a field's values as words (``{ field = "side", B = "bid", other = "none" }``)."""
    if isinstance(value, str):
        if value not in words:
            raise _fail(where, f"{value!r} is none of {', '.join(words)}")
        return ByteMap.constant(words[value])
    if not isinstance(value, dict) or value.get("field") not in fields:
        raise _fail(
            where, "expected a word or { field = NAME, VALUE = word, … } with a field of this message"
        )
    source = fields[value["field"]]
    if source.size != 1:
        raise _fail(where, f"{source.name} is {source.size} bytes; a map needs a field of one")
    other = value.get("other")
    table = bytearray([BAD if other is None else words[other]]) * 256
    for key, word in value.items():
        if key in ("field", "other"):
            continue
        if word not in words:
            raise _fail(where, f"{word!r} is none of {', '.join(words)}")
        table[_wire_value(source, key, where)] = words[word]
    return ByteMap(source.offset, bytes(table))


def _wire_value(source: Field, key: str, where: str) -> int:
    """A value as the file writes it: a character for char fields, else a number or a named value."""
    if key in source.values:
        return source.values[key]
    if source.kind == "char" and len(key) == 1:
        return ord(key)
    try:
        return int(key, 0) & 0xFF
    except ValueError:
        raise _fail(where, f"{key!r} is no value of {source.name}") from None


def flag_map(rules: Mapping[str, Any], fields: Mapping[str, Field], where: str) -> ByteMap:
    """All flags of an update in one table; at most one field can decide them."""
    table = bytearray(256)
    offset: int | None = None
    for flag, rule in rules.items():
        bit = FLAGS[flag]
        if rule is True:
            table = bytearray(v | bit for v in table)
            continue
        if rule is False:
            continue
        if not isinstance(rule, dict) or rule.get("field") not in fields:
            raise _fail(
                where, f"{flag}: expected true, false or {{ field = NAME, bit = N | values = CHARS }}"
            )
        source = fields[rule["field"]]
        if source.size != 1 or offset not in (None, source.offset):
            raise _fail(where, f"{flag}: flags may depend on one field of one byte")
        offset = source.offset
        wanted = {_wire_value(source, key, where) for key in rule.get("values", ())}
        for value in range(256):
            hit = value >> rule["bit"] & 1 if "bit" in rule else value in wanted
            table[value] |= bit if hit else 0
    return ByteMap(offset, bytes(table))


def _update(
    spec: Mapping[str, Any], common: Mapping[str, Any], fields: Mapping[str, Field], where: str
) -> Update:
    unknown = set(spec) - _UPDATE
    if unknown:
        raise _fail(where, f"unknown key {sorted(unknown)[0]!r}")
    merged = {**common, **spec}
    named: dict[str, Any] = {}
    for key in _SLOT_FIELDS:
        name = merged.get(key)
        if name is None or (key not in spec and name not in fields):
            continue
        if name not in fields:
            raise _fail(where, f"{key} = {name!r}: there is no such field")
        if fields[name].kind == "char" or fields[name].size > 8:
            raise _fail(where, f"{key} = {name!r}: not a number")
        if fields[name].kind == "int" and key != "price" and fields[name].size < 8:
            raise _fail(where, f"{key} = {name!r}: only prices may be signed and narrower than 64 bits")
        named[key] = fields[name]
    side = merged.get("side", "none")
    if isinstance(side, dict) and "side" not in spec and side.get("field") not in fields:
        side = "none"
    last = merged.get("last", False)
    flags: dict[str, Any] = {
        key: merged[key] for key in ("hidden", "implied", "snapshot", "keeps_priority") if key in merged
    }
    flags["last"] = False if last == "block" else last
    return Update(
        kind=byte_map(merged.get("kind"), KINDS, fields, f"{where}: kind"),
        side=byte_map(side, SIDES, fields, f"{where}: side"),
        flags=flag_map(flags, fields, where),
        drop_empty=bool(merged.get("drop_empty", False)),
        fixed_level=int(merged.get("level", 0)),
        **named,
    )


def _message(name: str, spec: Mapping[str, Any], data: Mapping[str, Any], where: str) -> Message:
    unknown = set(spec) - {"id", "title", "layout", "update", "length"}
    if unknown:
        raise _fail(where, f"unknown key {sorted(unknown)[0]!r}")
    type_ = spec.get("id")
    if isinstance(type_, str) and len(type_) == 1:
        type_ = ord(type_)
    if not isinstance(type_, int) or not 0 <= type_ <= 255:
        raise _fail(where, "id must be one character or a number from 0 to 255")
    layout = spec.get("layout", "")
    if layout.startswith("="):
        other = layout[1:].strip()
        if other not in data["message"]:
            raise _fail(where, f"layout refers to {other!r}, which is no message")
        layout = data["message"][other].get("layout", "")
    type_offset = data.get("type_offset", 0)
    head = [Field("type", type_offset, 1, "char")]
    if type_offset:
        head = [*parse_layout(data.get("header", {}).get("before_type", ""), 0, where), *head]
        if head[-2].end != type_offset:
            raise _fail(where, "header.before_type must fill the bytes before the type")
    head += parse_layout(data.get("header", {}).get("layout", ""), type_offset + 1, where)
    fields = head + parse_layout(layout, head[-1].end, where)
    names = {f.name: f for f in fields}
    if len(names) != len(fields):
        raise _fail(where, "two fields have one name")
    length = fields[-1].end
    if spec.get("length", length) != length:
        raise _fail(where, f"length = {spec['length']}, but the layout has {length} bytes")
    specs = spec.get("update", [])
    specs = specs if isinstance(specs, list) else [specs]
    common = {k: v for k, v in data.get("update", {}).items() if k != "venue_ns"}
    updates = tuple(_update(s, common, names, f"{where}.update") for s in specs)
    if updates and (length < MIN_UPDATE_LENGTH or length > 255):
        raise _fail(where, "a type with updates must have 8 to 255 bytes")
    defines = name in data.get("instrument", {}).get("define", [])
    return Message(
        name, spec.get("title", name), type_, tuple(fields), length,
        updates=updates, defines=defines, byte_order=data["byte_order"],
    )  # fmt: skip


def build(data: Mapping[str, Any], path: Path) -> Schema:
    """The schema of one parsed TOML file of fixed layouts."""
    where = path.name
    unknown = set(data) - _TOP
    if unknown:
        raise _fail(where, f"unknown key {sorted(unknown)[0]!r}")
    for key, words in (("session", SESSIONS), ("framing", FRAMINGS), ("byte_order", {"big": 0, "little": 1})):
        if data.get(key) not in words:
            raise _fail(where, f"{key} must be one of {', '.join(words)}")
    if not data.get("message"):
        raise _fail(where, "there is no [message.NAME]")
    messages = tuple(
        _message(name, spec, data, f"{where}: message.{name}") for name, spec in data["message"].items()
    )
    ids = [m.id for m in messages]
    if len(set(ids)) != len(ids):
        raise _fail(where, "two messages have one id")
    if len(messages) > 64:
        raise _fail(where, "more than 64 messages")
    instrument = data.get("instrument", {})
    size = data.get("message_size", 0)
    if size and any(m.length != size for m in messages):
        raise _fail(where, f"message_size = {size}, but a layout has another length")
    schema = Schema(
        name=data.get("name", path.stem),
        title=data.get("title", path.stem),
        origin=data.get("origin", ""),
        session=data["session"],
        framing=data["framing"],
        byte_order=data["byte_order"],
        book=data.get("book", 0),
        scale=data.get("scale", 0),
        messages=messages,
        type_offset=data.get("type_offset", 0),
        message_size=size,
        index=instrument.get("index", "hash"),
        key=instrument.get("key", ""),
        symbol=instrument.get("symbol", ""),
        depth=instrument.get("depth", 0),
        venue_ns=data.get("update", {}).get("venue_ns", ""),
        last_of_block=data.get("update", {}).get("last") == "block",
    )
    _check_instruments(schema, where)
    return schema


def _check_instruments(schema: Schema, where: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", schema.name):
        raise _fail(where, f"name {schema.name!r}: small letters, digits and dashes")
    if schema.index not in ("direct", "hash"):
        raise _fail(where, "instrument.index must be direct or hash")
    for message in schema.messages:
        if not message.updates and not message.defines:
            continue
        key = message.find(schema.key)
        if key is None:
            raise _fail(where, f"message.{message.name} lacks the instrument's key {schema.key!r}")
        if key.size > (2 if schema.index == "direct" else 8):
            raise _fail(where, f"instrument.key {key.name!r} is wider than its index allows")
