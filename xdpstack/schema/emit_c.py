"""The C decoder of a schema: tables for the machinery in cffi_build/cores/feed/decode_inl.h.

The output is deterministic, so a build that changed nothing compiles nothing anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from xdpstack.schema.model import (
    FRAMINGS,
    KINDS,
    SESSIONS,
    ByteMap,
    Field,
    Message,
    Schema,
    SchemaError,
    Update,
)

__all__ = ["Maps", "c_name", "emit", "head", "registry", "runs", "slot", "tail", "types_text"]

SLOT_BYTES = 8
UNKNOWN_ROW = 0xFF


def c_name(name: str) -> str:
    """The C identifier of a decoder: ``cme-mdp3`` is ``cme_mdp3``."""
    return name.replace("-", "_")


class Maps:
    """The 256-byte tables of a schema, each distinct one once."""

    def __init__(self) -> None:
        self.tables: list[bytes] = []

    def ref(self, byte_map: ByteMap) -> str:
        """The C name of this table."""
        if byte_map.table not in self.tables:
            self.tables.append(byte_map.table)
        return f"map_{self.tables.index(byte_map.table)}"

    def text(self) -> str:
        """The definitions; runs of one value as GNU ranges."""
        return "".join(
            f"static const uint8_t map_{i}[256] = {{{runs(t)}}};\n" for i, t in enumerate(self.tables)
        )


def runs(table: bytes) -> str:
    """A table's initializer: runs of one value as GNU ranges, zeros left out."""
    parts, start = [], 0
    for at in range(1, len(table) + 1):
        if at == len(table) or table[at] != table[start]:
            if table[start]:
                span = f"[{start}]" if at - start == 1 else f"[{start} ... {at - 1}]"
                parts.append(f"{span} = {table[start]}")
            start = at
    return ", ".join(parts) or "0"


def slot(field: Field | None, length: int, byte_order: str) -> tuple[int, int, int, int]:
    """(mask, off, shift, sign) of the eight bytes in a block of ``length`` that hold ``field``."""
    if field is None:
        return (0, 0, 0, 0)
    bits = 8 * field.size
    mask = (1 << bits) - 1
    sign = bits - 1 if field.kind == "int" and bits < 64 else 0
    backward, forward = field.end - SLOT_BYTES, field.offset
    big = byte_order == "big"
    if backward >= 0 and (big or forward + SLOT_BYTES > length):
        return (mask, backward, 0 if big else 64 - bits, sign)
    if forward + SLOT_BYTES > length:
        raise SchemaError(f"field {field.name!r}: a block of {length} bytes is too short to read it")
    return (mask, forward, 64 - bits if big else 0, sign)


def slot_text(values: tuple[int, int, int, int]) -> str:
    """A struct xdsi_slot initializer."""
    mask, off, shift, sign = values
    return f"{{.mask = {mask:#x}, .off = {off}, .shift = {shift}, .sign = {sign}}}" if mask else "{0}"


def _common(schema: Schema, name: str, every: bool) -> tuple[int, int, int, int] | None:
    """The slot of ``name`` when every message that needs it has it at one place.

    ``every``: the loop reads it from all types, so it must lie within the shortest of them.
    """
    needing = [m for m in schema.messages if m.updates or m.defines]
    places = {(f.offset, f.size) if (f := m.find(name)) else None for m in needing}
    if len(places) != 1 or None in places:
        return None
    floor = min(m.length for m in (schema.messages if every else needing) if m.length >= SLOT_BYTES)
    try:
        return slot(needing[0][name], floor, schema.byte_order)
    except SchemaError:
        return None


def _need(schema: Schema, message: Message) -> tuple[str, Field | None]:
    symbol = message.find(schema.symbol) if schema.symbol else None
    if message.defines:
        return "XDSI_NEED_INSTRUMENT | XDSI_NEED_DEFINE", symbol
    if not message.updates:
        return "0", None
    return "XDSI_NEED_INSTRUMENT" + (" | XDSI_NEED_SYMBOL" if symbol else ""), symbol


def _row(schema: Schema, message: Message, update: Update | None, more: int, maps: Maps) -> str:
    order = schema.byte_order
    none = ByteMap.constant(KINDS["none"])
    fields: dict[str, Field | None] = {"ORDER": None, "PRICE": None, "QTY": None, "REF": None}
    if update:
        fields = {"ORDER": update.order_id, "PRICE": update.price, "QTY": update.qty, "REF": update.ref}
    if update or message.defines:
        fields["TIME"] = message.find(schema.venue_ns) if schema.venue_ns else None
        fields["KEY"] = message.find(schema.key)
    need, symbol = _need(schema, message)
    kind, side, flags = (update.kind, update.side, update.flags) if update else (none, none, none)
    lines = [f".slot[XDSI_{k}] = {slot_text(slot(f, message.length, order))}" for k, f in fields.items() if f]
    lines += [
        f".kind = {maps.ref(kind)}, .side = {maps.ref(side)}, .flags = {maps.ref(flags)}",
        f".len = {message.length}",
        f".kind_off = {kind.offset or 0}, .side_off = {side.offset or 0}, .flags_off = {flags.offset or 0}",
        f".need = {need}",
    ]
    if symbol:
        lines.append(f".symbol_off = {symbol.offset}, .symbol_len = {symbol.size}")
    if update and update.fixed_level:
        lines.append(f".ref = {update.fixed_level}")
    if update and update.drop_empty:
        lines.append(".drop_empty = 1")
    if more:
        lines.append(f".more = {more}")
    return "    {" + ",\n     ".join(lines) + "},"


def _rows(schema: Schema, maps: Maps) -> list[str]:
    """Rows of the types, then those of second and later updates, chained by ``more``."""
    extra_at = len(schema.messages)
    first: list[str] = []
    extra: list[str] = []
    for message in schema.messages:
        updates: tuple[Update | None, ...] = message.updates or (None,)
        links = [extra_at + len(extra) + i for i in range(len(updates) - 1)] + [0]
        for i, update in enumerate(updates):
            text = _row(schema, message, update, links[i], maps)
            (first if i == 0 else extra).append(f"    /* {message.name} */\n{text}")
    if extra_at + len(extra) >= UNKNOWN_ROW:
        raise SchemaError(f"{schema.name}: too many rows")
    return first + extra


def types_text(schema: Schema, fixed_len: Iterable[int]) -> str:
    """The public list of types."""
    rows = [f'    {{"{m.name[:39]}", {m.id}, {n}}},' for m, n in zip(schema.messages, fixed_len, strict=True)]
    return "static const struct xds_type_info types[] = {\n" + "\n".join(rows) + "\n};\n"


def head(schema: Schema, include: str) -> str:
    """The first lines of every generated decoder."""
    title = f"/* {schema.title}: made from {schema.name}.toml by xdpstack.schema. Do not edit. */"
    return f'{title}\n#include "{include}"\n\n'


def tail(schema: Schema, call: str, updates_q8: int, messages_q8: int) -> str:
    """The functions and the description that end every generated decoder."""
    direct, variable = int(schema.index == "direct"), f"xdsi_decoder_{c_name(schema.name)}"
    return f"""
static size_t decoder_size(const struct xds_decoder_config *cfg)
{{
    return xdsi_decoder_size(cfg, {direct});
}}

extern const struct xds_decoder {variable};

static int decoder_init(void *mem, const struct xds_decoder_config *cfg)
{{
    return xdsi_decoder_init(mem, cfg, &{variable}, {direct}, {schema.scale});
}}

static int decoder_block(void *mem, const struct xds_block *b, struct xds_sink *out)
{{
    return {call}(mem, &layout, b, out);
}}

const struct xds_decoder {variable} = {{
    .name = "{schema.name}",
    .abi = XDS_DECODER_ABI,
    .session = {SESSIONS[schema.session]}, /* {schema.session} */
    .framing = {FRAMINGS[schema.framing]}, /* {schema.framing} */
    .n_types = {len(schema.messages)},
    .types = types,
    .book = {schema.book},
    .depth = {schema.depth},
    .implied_depth = {schema.implied_depth},
    .sequenced = {int(bool(schema.sequence))},
    .max_updates_per_byte_q8 = {updates_q8},
    .max_messages_per_byte_q8 = {messages_q8},
    .size = decoder_size,
    .init = decoder_init,
    .block = decoder_block,
}};
XDSI_DECODER_ENTRY({variable})
"""


def _index(schema: Schema) -> str:
    table = bytearray([UNKNOWN_ROW]) * 256
    for i, message in enumerate(schema.messages):
        table[message.id] = i
    return f"static const uint8_t type_index[256] = {{{runs(bytes(table))}}};\n"


def _emit_fixed(schema: Schema) -> str:
    maps = Maps()
    rows = _rows(schema, maps)
    order = schema.byte_order
    shortest = min(m.length for m in schema.messages)
    key = _common(schema, schema.key, schema.index == "direct")
    time = _common(schema, schema.venue_ns, True)
    slots = [
        (u.price, slot(f, m.length, order))
        for m in schema.messages
        for u in m.updates
        for f in (u.order_id, u.price, u.qty, u.ref)
    ]
    prefix = 0 if schema.framing == "fixed" else 2
    updates_q8 = max(math.ceil(256 * len(m.updates) / (m.length + prefix)) for m in schema.messages)
    messages_q8 = 128 if prefix else math.ceil(256 / (schema.message_size or shortest))
    layout = {
        "framing": FRAMINGS[schema.framing],
        "type_off": schema.type_offset,
        "big": int(order == "big"),
        "direct": int(schema.index == "direct"),
        "shifts": int(any(s[2] for _, s in slots)),
        "signs": int(any(s[3] for p, s in slots if p)),
        "mores": int(any(len(m.updates) > 1 or u.fixed_level for m in schema.messages for u in m.updates)),
        "shorts": int(shortest < SLOT_BYTES),
        "seq_step": int(schema.session in ("mold64", "iextp")),
        "last_of_block": int(schema.last_of_block),
        "unknown_len": schema.message_size,
    }
    members = [f"    .{k} = {v}," for k, v in layout.items()]
    members += [f"    .{k} = {slot_text(v)}," for k, v in (("time", time), ("key", key)) if v]
    return (
        head(schema, "cores/feed/decode_inl.h")
        + types_text(schema, (m.length for m in schema.messages))
        + "\n" + maps.text() + "\n"
        + "static const struct xdsi_row rows[] = {\n" + "\n".join(rows) + "\n};\n\n"
        + _index(schema)
        + "\nstatic const struct xdsi_fixed layout = {\n    .rows = rows,\n    .index = type_index,\n"
        + "\n".join(members) + "\n};\n"
        + tail(schema, "xdsi_fixed_block", updates_q8, messages_q8)
    )  # fmt: skip


def emit(schema: Schema) -> str:
    """The whole C file of a schema's decoder."""
    if schema.sbe:
        from xdpstack.schema import emit_sbe

        return emit_sbe.emit(schema)
    return _emit_fixed(schema)


def registry(names: Iterable[str]) -> str:
    """The list of decoders that cffi_build/cores/feed/decoders.c serves."""
    names = sorted(names)
    lines = [
        "/* The decoders of this build: made from xdpstack/schemas. Do not edit. */",
        '#include "xds/decode.h"',
        "",
    ]
    lines += [f"extern const struct xds_decoder xdsi_decoder_{c_name(n)};" for n in names]
    lines += [
        "extern const struct xds_decoder *const xdsi_decoder_list[];",
        "extern const unsigned xdsi_decoder_list_len;",
    ]
    lines += ["const struct xds_decoder *const xdsi_decoder_list[] = {"]
    lines += [f"    &xdsi_decoder_{c_name(n)}," for n in names]
    lines += ["    0,", "};", f"const unsigned xdsi_decoder_list_len = {len(names)};", ""]
    return "\n".join(lines)
