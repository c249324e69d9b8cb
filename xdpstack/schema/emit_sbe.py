"""The C decoder of SBE templates: tables for cffi_build/cores/feed/decode_sbe_inl.h."""

from __future__ import annotations

import math

from xdpstack.schema.emit_c import UNKNOWN_ROW, Maps, head, runs, tail, types_text
from xdpstack.schema.model import ByteMap, Field, Group, Message, Schema, SchemaError, Update

__all__ = ["emit", "required_bytes"]

SBE_HEADER = 8
NO_PRICE = 0x7FFFFFFFFFFFFFFF
_NOTHING = ByteMap.constant(0)


def _slot(field: Field | None, *, price: bool = False, low: int = 0) -> str:
    """A struct xdsi_sbe_slot initializer. ``low``: keep this many bytes only (level: one word of 32)."""
    if field is None:
        return "{0}"
    if field.size > 8 or field.kind == "float":
        raise SchemaError(f"field {field.name!r} cannot be read as a number")
    mask = (1 << 8 * (low or 8)) - 1
    parts = [f".mask = {mask:#x}, .end = {field.end}, .shift = {64 - 8 * field.size}"]
    if field.since:
        parts.append(f".since = {field.since}")
    if field.kind == "int":
        parts.append(".is_signed = 1")
    if field.null is not None:
        null = field.null & 0xFFFFFFFFFFFFFFFF
        parts.append(f".has_null = 1, .null = {null:#x}u" + (f", .instead = {NO_PRICE:#x}" if price else ""))
    return "{" + ", ".join(parts) + "}"


def _map(byte_map: ByteMap | None, maps: Maps) -> str:
    byte_map = byte_map or _NOTHING
    return f"{{.table = {maps.ref(byte_map)}, .off = {byte_map.offset or 0}}}"


def _entry_fields(schema: Schema, group: Group, update: Update | None) -> list[Field]:
    """The numbers that a rule reads of an entry; maps are counted apart."""
    fields = []
    if update is None or not update.key_in_root:
        fields += [f for f in group.fields if f.name in (schema.key, schema.sequence)]
    if update is not None:
        named = (update.price, update.qty, update.order_id, update.ref, update.level, update.orders)
        fields += [f for f in named if f]
    return fields


def required_bytes(schema: Schema, group: Group, update: Update | None) -> int:
    """How long an entry must be: all that every known version has, and one byte at least."""
    oldest = schema.versions[0]
    ends = [f.end for f in _entry_fields(schema, group, update) if f.since <= oldest]
    if update is not None:
        byte_maps = (update.kind, update.side, update.flags, update.override)
        ends += [m.offset + 1 for m in byte_maps if m and m.offset is not None]
    return max(ends, default=1)


def _rule(schema: Schema, group: Group, update: Update | None, maps: Maps) -> str:
    own = update is None or not update.key_in_root
    find = {f.name: f for f in group.fields}
    fields = _entry_fields(schema, group, update)
    required = required_bytes(schema, group, update)
    lines = [
        f".required = {required}, .full = {max([required, *(f.end for f in fields)])}",
        f".since = {max((f.since for f in fields if f.since > schema.versions[0]), default=0)}",
    ]
    if own:
        lines.append(f".key = {_slot(find[schema.key])}")
        if schema.sequence in find:
            lines.append(f".rpt = {_slot(find[schema.sequence])}")
    else:
        lines.append(".key_in_root = 1")
    if update is not None:
        slots = {"qty": update.qty, "order": update.order_id, "ref": update.ref}
        lines += [f".{k} = {_slot(f)}" for k, f in slots.items() if f]
        lines += [
            f".{k} = {_slot(f, low=4)}" for k, f in (("level", update.level), ("orders", update.orders)) if f
        ]
        if update.price:
            scale = update.price.scale if update.price.scale is not None else schema.scale
            lines.append(f".price = {_slot(update.price, price=True)}, .scale = {scale}")
        lines.append(f".emits = 1, .drop_empty = {int(update.drop_empty)}")
    kind, side, flags = (update.kind, update.side, update.flags) if update else (None, None, None)
    over = update.override if update else None
    lines += [
        f".{k} = {_map(m, maps)}"
        for k, m in (("kind", kind), ("side", side), ("flags", flags), ("over", over))
    ]
    return "    {" + ",\n     ".join(lines) + "},"


class _Tables:
    """Rules, groups and definitions of all templates, numbered as they come."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.maps = Maps()
        self.rules: list[str] = []
        self.groups: list[str] = []
        self.defines: list[str] = []
        self.bytes_per_update: list[float] = [SBE_HEADER + 2]

    def group(self, message: Message, group: Group) -> None:
        update = next((u for u in message.updates if u.group == group.name), None)
        watched = {self.schema.key, self.schema.sequence} <= {f.name for f in group.fields}
        rule = "0"
        if update is not None or watched:
            rule = f"&rules[{len(self.rules)}]"
            self.rules.append(
                f"    /* {message.name}.{group.name} */\n{_rule(self.schema, group, update, self.maps)}"
            )
            if update is not None:
                self.bytes_per_update.append(required_bytes(self.schema, group, update))
        self.groups.append(
            f"    {{.rule = {rule}, .since = {group.since}, .dim_size = {group.dimension_size}, "
            f".len_off = {group.length_offset}, .count_off = {group.count_offset}, "
            f".count_size = {group.count_size}}}, /* {message.name}.{group.name} */"
        )

    def define(self, message: Message) -> str:
        define = message.define
        if define is None:
            return "0"
        parts = [
            f".key = {_slot(define.key)}, .symbol_off = {define.symbol.offset}",
            f".symbol_len = {define.symbol.size}",
        ]
        index = -1
        if define.depth_group and define.depth and define.depth_where:
            index = [g.name for g in message.groups].index(define.depth_group)
            values = (define.depth_value, define.implied_value)
            where = ", ".join("{" + ", ".join(str(b) for b in v) + "}" for v in values)
            parts.append(f".depth = {_slot(define.depth)}")
            parts.append(
                f".where_off = {define.depth_where.offset}, .where_len = {len(define.depth_value)}"
                f", .where = {{{where}}}"
            )
        parts.append(f".depth_group = {index}")
        self.defines.append(f"    {{{', '.join(parts)}}}, /* {message.name} */")
        return f"&defines[{len(self.defines) - 1}]"

    def template(self, message: Message) -> str:
        first = len(self.groups)
        for group in message.groups:
            self.group(message, group)
        what = "PLAIN"
        lines = [
            f".groups = &groups[{first}], .n_groups = {len(message.groups)}, .define = {self.define(message)}"
        ]
        slots = [("time", self.schema.venue_ns), ("event", self.schema.event_field)]
        if any(u.clear_first for u in message.updates):
            what = "SNAPSHOT"
            slots += [("key", self.schema.key), ("rpt", self.schema.sequence)]
            for _, name in slots[2:]:
                if message.find(name) is None:
                    raise SchemaError(f"{self.schema.name}: snapshot {message.name} lacks {name!r}")
        if any(u.all_instruments for u in message.updates):
            what = "RESET"
        for slot, name in slots:
            field = message.find(name)
            if field:
                lines.append(f".{slot} = {_slot(field)}")
        lines.append(f".what = XDSI_SBE_{what}")
        return f"    /* {message.name} */\n    {{" + ",\n     ".join(lines) + "},"


def emit(schema: Schema) -> str:
    """The whole C file."""
    tables = _Tables(schema)
    templates = [tables.template(m) for m in schema.messages]
    highest = max(m.id for m in schema.messages)
    if highest > 4095:
        raise SchemaError(f"{schema.name}: template ids above 4095")
    index = bytearray([UNKNOWN_ROW]) * (highest + 1)
    for i, message in enumerate(schema.messages):
        index[message.id] = i
    parts = [
        head(schema, "cores/feed/decode_sbe_inl.h"),
        types_text(schema, (SBE_HEADER + m.length for m in schema.messages)),
        tables.maps.text(),
        _array("rule", "rules", tables.rules or ["    {.scale = 0},"]),
        _array("group", "groups", [*tables.groups, "    {.rule = 0},"]),
        _array("define", "defines", [*tables.defines, "    {.depth_group = -1},"]),
        _array("template", "templates", templates),
        f"static const uint8_t template_index[{len(index)}] = {{{runs(bytes(index))}}};\n",
        "static const struct xdsi_sbe layout = {\n    .templates = templates,\n    .index = template_index,\n"
        f"    .n_index = {len(index)},\n    .schema_id = {schema.schema_id},\n"
        f"    .first_version = {schema.versions[0]},\n    .event_mask = {1 << schema.event_bit:#x},\n}};\n",
    ]
    text = "\n".join(parts)
    return text + tail(schema, "xdsi_sbe_block", math.ceil(256 / min(tables.bytes_per_update)), 128)


def _array(struct: str, name: str, rows: list[str]) -> str:
    return f"static const struct xdsi_sbe_{struct} {name}[] = {{\n" + "\n".join(rows) + "\n};\n"
