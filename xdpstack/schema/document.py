"""The reference tables of every schema: xdpstack/schemas/FORMATS.md. A test fails when it is stale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xdpstack.schema import load, names
from xdpstack.schema.model import KINDS, ByteMap, Field, Message, Schema, Update

__all__ = ["all_tables", "tables"]

_WORDS = {value: word for word, value in KINDS.items()}


def _type(field: Field) -> str:
    if field.kind == "char":
        return f"char[{field.size}]" if field.size > 1 else "char"
    word = {"uint": "u", "int": "i", "float": "f"}[field.kind] + str(8 * field.size)
    return word if field.scale is None else f"{word}, {field.scale} decimals"


def _remark(field: Field) -> str:
    parts = [field.note] if field.note else []
    if field.null is not None:
        parts.append(f"null {field.null}")
    if field.since:
        parts.append(f"since version {field.since}")
    if field.values:
        char = field.kind == "char"
        shown = (f"{chr(v) if char else v} {k}" for k, v in field.values.items())
        parts.append(", ".join(shown))
    return "; ".join(parts)


def _rows(fields: Iterable[Field]) -> Iterator[str]:
    yield "| offset | bytes | type | field | remark |"
    yield "| ---: | ---: | --- | --- | --- |"
    for field in fields:
        yield f"| {field.offset} | {field.size} | {_type(field)} | {field.name} | {_remark(field)} |"


def _kinds(byte_map: ByteMap) -> str:
    found = sorted({v for v in byte_map.table if v in _WORDS and v})
    return " / ".join(_WORDS[v].upper() for v in found)


def _says(update: Update) -> str:
    named = {
        "price": update.price, "qty": update.qty, "order_id": update.order_id, "ref": update.ref,
        "level": update.level, "orders": update.orders,
    }  # fmt: skip
    parts = [f"{key} = {field.name}" for key, field in named.items() if field]
    where = f" for each entry of {update.group}" if update.group else ""
    before = "CLEAR, then " if update.clear_first else ""
    return f"{before}{_kinds(update.kind)}{where}" + (f" ({', '.join(parts)})" if parts else "")


def _message(schema: Schema, message: Message) -> Iterator[str]:
    id_ = str(message.id) if schema.sbe or not 32 < message.id < 127 else f"`{chr(message.id)}`"
    yield f"### {id_} {message.name}"
    yield ""
    since = f", since version {message.since}" if message.since else ""
    yield f"{message.title}; {message.length} bytes{' in its root block' if schema.sbe else ''}{since}."
    for update in message.updates:
        yield f"Update: {_says(update)}."
    if not message.updates:
        yield "No update: a message only."
    yield ""
    if message.fields:
        yield from _rows(message.fields)
        yield ""
    for group in message.groups:
        since = f", since version {group.since}" if group.since else ""
        yield f"Group **{group.name}**: entries of {group.block_length} bytes{since}."
        yield ""
        yield from _rows(group.fields)
        yield ""


def tables(schema: Schema) -> str:
    """One schema's chapter, markdown."""
    book = {3: "by order (L3)", 2: "by price level (L2)", 0: "none"}[schema.book]
    lines = [
        f"## {schema.name}: {schema.title}",
        "",
        f"Origin: {schema.origin}.",
        "",
        f"Session {schema.session}, framing {schema.framing}, {schema.byte_order}-endian; book {book}; "
        f"{len(schema.messages)} message types.",
        "",
    ]
    for message in schema.messages:
        lines += _message(schema, message)
    return "\n".join(lines)


def all_tables() -> str:
    """The whole file."""
    intro = (
        "# Message layouts\n\nMade from the schema files of this folder by `python -m xdpstack.schema doc -o "
        "xdpstack/schemas/FORMATS.md`; do not edit. What becomes a normalised update says so.\n"
    )
    return "\n".join([intro, *(tables(load(name)) for name in names())]).rstrip() + "\n"
