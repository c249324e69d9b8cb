"""SBE XML templates, several versions of them, as one :class:`Schema`.

What is read: types, composites (a mantissa with a constant exponent is a price), enums, sets, root
fields, repeating groups; variable-length data behind the groups is stepped over by the message's
size. Versions merge by template id: a later version may append fields and groups, never move them.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xdpstack.schema import fixed
from xdpstack.schema.model import (
    KINDS,
    SESSIONS,
    SIDES,
    ByteMap,
    Define,
    Field,
    Group,
    Message,
    Schema,
    SchemaError,
    Update,
)

__all__ = ["Templates", "build", "merge", "read_templates"]

_PRIMITIVES = {
    "char": ("char", 1), "int8": ("int", 1), "int16": ("int", 2), "int32": ("int", 4), "int64": ("int", 8),
    "uint8": ("uint", 1), "uint16": ("uint", 2), "uint32": ("uint", 4), "uint64": ("uint", 8),
    "float": ("float", 4), "double": ("float", 8),
}  # fmt: skip
_TOP = {
    "name", "title", "origin", "session", "framing", "byte_order", "book", "scale", "templates", "instrument",
    "update", "rule",
}  # fmt: skip
_RULE = {
    "what", "messages", "group", "kind", "over", "side", "implied", "hidden", "price", "qty", "order_id",
    "ref", "level", "orders", "drop_empty",
}  # fmt: skip
HEADER = 8  # u16 block length, template id, schema id, version
SKIP = 0x40  # in the `over` map: no update (XDSI_MAP_SKIP)


@dataclass(frozen=True)
class Templates:
    """One XML file: its schema id, version and messages by template id."""

    schema_id: int
    version: int
    messages: dict[int, Message]


class _Types:
    """The <types> of one file: every name as the fields that it puts on the wire."""

    def __init__(self, root: ElementTree.Element, where: str) -> None:
        self.where = where
        self.by_name = {t.get("name", ""): t for types in root.iter("types") for t in types}

    def fields(self, name: str, type_: str, offset: int, since: int) -> list[Field]:
        """What ``name`` of ``type_`` occupies from ``offset`` on: nothing for constants."""
        if type_ in _PRIMITIVES:
            kind, size = _PRIMITIVES[type_]
            return [Field(name, offset, size, kind, since=since)]
        element = self.by_name.get(type_)
        if element is None:
            raise SchemaError(f"{self.where}: {name} has the unknown type {type_!r}")
        if element.tag == "type":
            return self._simple(name, element, offset, since)
        if element.tag == "composite":
            return self._composite(name, element, offset, since)
        (encoded,) = self.fields(name, element.get("encodingType", ""), offset, since)
        values = {}
        for value in element:
            text = (value.text or "").strip()
            values[value.get("name", "")] = ord(text) if encoded.kind == "char" else int(text)
        if element.tag == "set":
            return [replace(encoded, note="bits " + ", ".join(f"{v} {k}" for k, v in values.items()))]
        return [replace(encoded, values=values)]

    def _simple(self, name: str, element: ElementTree.Element, offset: int, since: int) -> list[Field]:
        if element.get("presence") == "constant":
            return []
        kind, size = _PRIMITIVES[element.get("primitiveType", "")]
        size *= int(element.get("length", "1"))
        null = element.get("nullValue")
        return [Field(name, offset, size, kind, null=None if null is None else int(null), since=since)]

    def _composite(self, name: str, element: ElementTree.Element, offset: int, since: int) -> list[Field]:
        parts: list[Field] = []
        exponent = None
        for part in element:
            if part.get("name") == "exponent" and part.get("presence") == "constant":
                exponent = int(part.text or "0")
            at = offset + int(part.get("offset", (parts[-1].end - offset) if parts else 0))
            parts += self._simple(f"{name}.{part.get('name')}", part, at, since)
        if len(parts) == 1 and exponent is not None and parts[0].name.endswith(".mantissa"):
            return [replace(parts[0], name=name, scale=-exponent)]
        return parts

    def dimension(self, name: str) -> dict[str, Field]:
        """blockLength and numInGroup of a group's dimension type."""
        element = self.by_name.get(name)
        if element is None:
            raise SchemaError(f"{self.where}: unknown dimension type {name!r}")
        return {f.name: replace(f, name=f.name) for f in self._composite("", element, 0, 0)}


def _block(element: ElementTree.Element, types: _Types) -> tuple[Field, ...]:
    fields: list[Field] = []
    for item in element.findall("field"):
        at = int(item.get("offset", fields[-1].end if fields else 0))
        since = int(item.get("sinceVersion", "0"))
        fields += types.fields(item.get("name", ""), item.get("type", ""), at, since)
    return tuple(fields)


def _group(element: ElementTree.Element, types: _Types) -> Group:
    parts = types.dimension(element.get("dimensionType", "groupSizeEncoding"))
    length, count = parts[".blockLength"], parts[".numInGroup"]
    if length.size != 2 or count.size > 2:
        raise SchemaError(f"{types.where}: group {element.get('name')}: unsupported dimension type")
    fields = _block(element, types)
    block = int(element.get("blockLength", max((f.end for f in fields), default=0)))
    since = int(element.get("sinceVersion", "0"))
    size = max(length.end, count.end)
    return Group(
        element.get("name", ""),
        fields,
        block,
        size,
        length.offset,
        length.size,
        count.offset,
        count.size,
        since,
    )


def read_templates(path: Path) -> Templates:
    """The messages of one SBE XML file; SchemaError says what cannot be read."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise SchemaError(f"{path.name}: {error}") from None
    if root.get("byteOrder", "littleEndian") != "littleEndian":
        raise SchemaError(f"{path.name}: only little-endian SBE is read")
    types = _Types(root, path.name)
    messages = {}
    for element in root:
        if not element.tag.endswith("message"):
            continue
        fields = _block(element, types)
        length = int(element.get("blockLength", max((f.end for f in fields), default=0)))
        id_, name = int(element.get("id", "-1")), element.get("name", "")
        groups = tuple(_group(g, types) for g in element.findall("group"))
        since = int(element.get("sinceVersion", "0"))
        messages[id_] = Message(
            name, element.get("description", name), id_, fields, length, groups, since, header=HEADER
        )
    return Templates(int(root.get("id", "0")), int(root.get("version", "0")), messages)


def _merged_fields(
    old: tuple[Field, ...], new: tuple[Field, ...], version: int, where: str
) -> tuple[Field, ...]:
    """The newer fields; what the older version lacks came after it, whatever the file says."""
    before = {f.name: f for f in old}
    after = {f.name for f in new}
    merged = []
    for field in new:
        known = before.get(field.name)
        if known is None:
            field = replace(field, since=max(field.since, version + 1))
        elif (known.offset, known.size) != (field.offset, field.size):
            raise SchemaError(
                f"{where}.{field.name} moved after version {version}: the versions do not merge"
            )
        else:
            field = replace(field, since=known.since)
        merged.append(field)
    if set(before) - after:
        raise SchemaError(f"{where}: {sorted(set(before) - after)[0]} is gone after version {version}")
    return tuple(merged)


def _merged_message(old: Message, new: Message, version: int) -> Message:
    fields = _merged_fields(old.fields, new.fields, version, new.name)
    known = {g.name: g for g in old.groups}
    groups = []
    for group in new.groups:
        before = known.get(group.name)
        if before is None:
            group = replace(group, since=max(group.since, version + 1))
        else:
            inner = _merged_fields(before.fields, group.fields, version, f"{new.name}.{group.name}")
            group = replace(group, fields=inner, since=before.since)
        groups.append(group)
    return replace(new, fields=fields, groups=tuple(groups), since=old.since)


def merge(files: list[Templates]) -> dict[int, Message]:
    """All templates of all versions, oldest first, each in its newest form."""
    merged: dict[int, Message] = {}
    for index, templates in enumerate(files):
        if templates.schema_id != files[0].schema_id:
            raise SchemaError("the template files have different schema ids")
        for id_, message in templates.messages.items():
            if id_ in merged:
                message = _merged_message(merged[id_], message, files[index - 1].version)
            merged[id_] = message
    return dict(sorted(merged.items()))


def _map(value: Any, words: Mapping[str, int], fields: Mapping[str, Field], where: str) -> ByteMap:
    return fixed.byte_map(value, words, fields, where)


def _rule_update(spec: Mapping[str, Any], message: Message, where: str) -> Update:
    group = message.group(spec["group"])
    fields = {f.name: f for f in group.fields}
    slots: dict[str, Any] = {}
    for key in ("price", "qty", "order_id", "ref", "level", "orders"):
        if key in spec:
            if spec[key] not in fields:
                raise SchemaError(f"{where}: {key} = {spec[key]!r}: {group.name} has no such field")
            slots[key] = fields[spec[key]]
    flags = {k: spec[k] for k in ("implied", "hidden") if k in spec}
    snapshot = spec.get("what") == "snapshot"
    return Update(
        kind=_map(spec["kind"], KINDS, fields, f"{where}: kind"),
        side=_map(spec.get("side", "none"), SIDES, fields, f"{where}: side"),
        flags=fixed.flag_map(flags, fields, where),
        override=_map(spec["over"], {**KINDS, "skip": SKIP}, fields, f"{where}: over")
        if "over" in spec
        else None,
        group=group.name,
        drop_empty=bool(spec.get("drop_empty", False)),
        key_in_root=snapshot,
        clear_first=snapshot,
        **slots,
    )


def _rules(data: Mapping[str, Any], where: str, known: set[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for spec in data.get("rule", []):
        unknown = set(spec) - _RULE
        if unknown:
            raise SchemaError(f"{where}: rule: unknown key {sorted(unknown)[0]!r}")
        for name in spec.get("messages", []):
            if name not in known:
                raise SchemaError(f"{where}: rule: there is no message {name!r}")
            yield name, spec


def _with_rules(message: Message, specs: list[Mapping[str, Any]], where: str) -> Message:
    updates: list[Update] = []
    for spec in specs:
        if spec.get("what") == "reset":
            nothing = ByteMap.constant(0)
            updates.append(Update(ByteMap.constant(KINDS["clear"]), nothing, nothing, all_instruments=True))
        elif not any(g.name == spec.get("group") for g in message.groups):
            raise SchemaError(f"{where}: rule: {message.name} has no group {spec.get('group')!r}")
        else:
            updates.append(_rule_update(spec, message, f"{where}: rule for {message.name}"))
    return replace(message, updates=tuple(updates))


def _define(message: Message, instrument: Mapping[str, Any], scale: int, where: str) -> Define:
    key, symbol = message.find(instrument.get("key", "")), message.find(instrument.get("symbol", ""))
    if key is None or symbol is None:
        raise SchemaError(f"{where}: {message.name} lacks the instrument's key or symbol")
    depth = instrument.get("depth")
    if depth is None or not any(g.name == depth["group"] for g in message.groups):
        return Define(key, symbol, scale)
    group = message.group(depth["group"])
    outright, implied = (str(depth[k]).encode() for k in ("outright", "implied"))
    if len(outright) != len(implied) or len(outright) > min(8, group[depth["where"]].size):
        raise SchemaError(f"{where}: instrument.depth: outright and implied must be of one length, up to 8")
    field, chooser = group[depth["field"]], group[depth["where"]]
    return Define(key, symbol, scale, group.name, field, chooser, outright, implied)


def build(data: Mapping[str, Any], path: Path) -> Schema:
    """The schema of one parsed TOML file that names SBE templates."""
    where = path.name
    unknown = set(data) - _TOP
    if unknown:
        raise SchemaError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    if data.get("session") not in SESSIONS:
        raise SchemaError(f"{where}: session must be one of {', '.join(SESSIONS)}")
    if not data.get("templates"):
        raise SchemaError(f"{where}: templates must name SBE XML files")
    files = sorted(
        (read_templates(path.parent / name) for name in data["templates"]), key=lambda t: t.version
    )
    messages = list(merge(files).values())
    if len(messages) > 64:
        raise SchemaError(f"{where}: more than 64 templates")
    by_message: dict[str, list[Mapping[str, Any]]] = {}
    for name, spec in _rules(data, where, {m.name for m in messages}):
        by_message.setdefault(name, []).append(spec)
    instrument = data.get("instrument", {})
    for i, message in enumerate(messages):
        message = _with_rules(message, by_message.get(message.name, []), where)
        if message.name in instrument.get("define", []):
            message = replace(message, define=_define(message, instrument, data.get("scale", 0), where))
        messages[i] = message
    event = data.get("update", {}).get("event", {})
    return Schema(
        name=data.get("name", path.stem),
        title=data.get("title", path.stem),
        origin=data.get("origin", ""),
        session=data["session"],
        framing="sbe",
        byte_order="little",
        book=data.get("book", 0),
        scale=data.get("scale", 0),
        messages=tuple(messages),
        key=instrument.get("key", ""),
        symbol=instrument.get("symbol", ""),
        depth=instrument.get("depth", {}).get("default", 0),
        implied_depth=instrument.get("depth", {}).get("implied_default", 0),
        venue_ns=data.get("update", {}).get("venue_ns", ""),
        schema_id=files[0].schema_id,
        versions=tuple(t.version for t in files),
        event_field=event.get("field", ""),
        event_bit=event.get("bit", 0),
        sequence=instrument.get("sequence", ""),
    )
