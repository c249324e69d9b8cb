"""A slow, obvious decoder of the same model: what the C decoder must agree with, update by update.

It shares no code with the generator: fields are read byte by byte from the model's offsets, enumerations
through the model's tables. For tests, and for reading a capture by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, SupportsBytes

from xdpstack.schema.model import BAD, FLAGS, Field, Group, Message, Schema, Update

__all__ = ["Block", "Decoder", "Row", "frame"]

NO_PRICE = 0x7FFFFFFFFFFFFFFF
ALL_INSTRUMENTS = 0xFFFFFFFF
RECOVERED, STALE, RESTART = 1, 4, 8  # enum xds_block_flag
CLEAR = 13


class Row(NamedTuple):
    """One update, in the order of struct xds_update."""

    rx_ns: int
    venue_ns: int
    seq: int
    order_id: int
    price: int
    qty: int
    ref: int
    instrument: int
    kind: int
    side: int
    flags: int
    line: int


@dataclass
class Block:
    """What struct xds_block says."""

    data: bytes
    count: int = 0xFFFF
    seq: int = 0
    rx_ns: int = 0
    line: int = 0
    flags: int = 0


@dataclass
class _Instrument:
    symbol: bytes = b""
    scale: int = 0
    depth: int = 0
    implied_depth: int = 0
    priced: bool = False
    rpt: int | None = None
    stale: bool = False
    snapshot: bool = False
    anew: bool = False


@dataclass
class Decoder:
    """Decodes blocks of one feed. ``reasons`` counts by the names of enum xds_decode_reason."""

    schema: Schema
    max_instruments: int = 1000
    reasons: Counter[str] = field(default_factory=Counter)
    by_type: Counter[str] = field(default_factory=Counter)
    instruments: dict[int, _Instrument] = field(default_factory=dict)
    index: dict[int, int] = field(default_factory=dict)
    messages: list[tuple[int, bytes, int]] = field(default_factory=list)
    gaps: int = 0
    superseded: int = 0

    def block(self, block: Block) -> list[Row]:
        """The updates of one block; ``messages`` holds (type index, bytes, sequence) of its messages."""
        self.messages = []
        rows: list[Row] = []
        if self.schema.sbe and block.flags & RESTART:
            self._begin_anew()
        frames = _Frames(self.schema, block)
        for number, data in enumerate(frames):
            step = number if self.schema.session in ("mold64", "iextp") else 0
            (self._sbe if self.schema.sbe else self._fixed)(block, data, block.seq + step, rows)
        if frames.reason:
            self.reasons[frames.reason] += 1
        if self.schema.last_of_block and rows:
            rows[-1] = rows[-1]._replace(flags=rows[-1].flags | FLAGS["last"])
        return rows

    # -- fixed layouts ---------------------------------------------------------------------------

    def _fixed(self, block: Block, data: bytes, seq: int, rows: list[Row]) -> None:
        schema = self.schema
        at = schema.type_offset
        message = schema.by_id(data[at]) if len(data) > at else None
        if message is None or len(data) < message.length:
            self.reasons["SHORT" if message or len(data) <= at else "UNKNOWN_TYPE"] += 1
            self.messages.append((0xFFFF, data, seq))
            return
        self.by_type[message.name] += 1
        self.messages.append((schema.messages.index(message), data, seq))
        if not message.updates and not message.defines:
            return
        inst = self._fixed_instrument(message, data)
        if inst is None:
            self.reasons["NO_INSTRUMENT"] += 1
            return
        base = _flags_of(block)
        time = message.find(schema.venue_ns)
        venue_ns = self._number(data, time) if time else 0
        made: list[Row] = []
        for update in message.updates:
            kind, side, flags = update.kind.of(data), update.side.of(data), update.flags.of(data)
            row = Row(
                block.rx_ns, venue_ns, seq, self._of(data, update.order_id), self._of(data, update.price),
                self._of(data, update.qty), self._of(data, update.ref) | update.fixed_level,
                inst, kind, side, flags | base, block.line,
            )  # fmt: skip
            bad = (kind | side) & BAD
            if bad:
                self.reasons["BAD_VALUE"] += 1
            if not bad and kind and not (update.drop_empty and not row.qty):
                made.append(row)
            elif made:
                made[-1] = made[-1]._replace(flags=made[-1].flags | (flags & FLAGS["last"]))
        rows += made

    def _fixed_instrument(self, message: Message, data: bytes) -> int | None:
        key = self._number(data, message[self.schema.key])
        index = self._find(key)
        symbol = message.find(self.schema.symbol)
        if index is not None and symbol:
            known = self.instruments[index]
            if message.defines or not known.symbol:
                known.symbol = data[symbol.offset : symbol.end][:24].rstrip(b" \0")
        return index

    def _new(self) -> _Instrument:
        schema = self.schema
        return _Instrument(scale=schema.scale, depth=schema.depth, implied_depth=schema.implied_depth)

    def _find(self, key: int) -> int | None:
        key %= 1 << 64
        if self.schema.index == "direct":
            if key >= self.max_instruments:
                return None
            self.instruments.setdefault(key, self._new())
            return key
        if key not in self.index:
            if len(self.index) == self.max_instruments:
                return None
            self.index[key] = len(self.index)
            self.instruments[self.index[key]] = self._new()
        return self.index[key]

    def _of(self, data: bytes, where: Field | None) -> int:
        return self._number(data, where) if where else 0

    def _number(self, data: bytes, where: Field) -> int:
        raw = data[where.offset : where.end]
        order = self.schema.byte_order
        return int.from_bytes(raw, "big" if order == "big" else "little", signed=where.kind == "int")

    # -- SBE -------------------------------------------------------------------------------------

    def _sbe(self, block: Block, data: bytes, seq: int, rows: list[Row]) -> None:
        words = [int.from_bytes(data[i : i + 2], "little") for i in (0, 2, 4, 6)] if len(data) >= 8 else None
        message = None
        if words is None:
            self.reasons["SHORT"] += 1
        elif words[2] != self.schema.schema_id or words[3] < self.schema.versions[0]:
            self.reasons["UNSUPPORTED"] += 1
        else:
            message = self.schema.by_id(words[1])
            if message is None:
                self.reasons["UNKNOWN_TYPE"] += 1
            elif words[0] > len(data) - 8:
                self.reasons["SHORT"] += 1
                message = None
        if message is None or words is None:
            self.messages.append((0xFFFF, data, seq))
            return
        self.messages.append((self.schema.messages.index(message), data, seq))
        self.by_type[message.name] += 1
        self._sbe_message(
            _Context(block, message, data[8 : 8 + words[0]], words[3], rows), data[8 + words[0] :]
        )

    def _sbe_message(self, c: _Context, rest: bytes) -> None:
        schema = self.schema
        before = len(c.rows)
        c.flags = _flags_of(c.block)
        c.venue_ns = self._root(c, schema.venue_ns) or 0
        if c.venue_ns >= 1 << 63:
            c.venue_ns -= 1 << 64
        ends = bool((self._root(c, schema.event_field) or 0) & (1 << schema.event_bit))
        snapshot = any(u.clear_first for u in c.message.updates)
        first = before if snapshot else 0
        if any(u.all_instruments for u in c.message.updates):
            self._begin_anew()
            c.rows.append(c.clear(ALL_INSTRUMENTS))
            ends, first = True, before
        if c.message.define:
            self._sbe_define(c)
        if snapshot:
            if not self._sbe_snapshot(c):
                return
            ends = True
        self._sbe_groups(c, rest)
        if ends and len(c.rows) > first:
            c.rows[-1] = c.rows[-1]._replace(flags=c.rows[-1].flags | FLAGS["last"])

    def _root(self, c: _Context, name: str) -> int | None:
        where = c.message.find(name)
        if where is None or where.end > len(c.root) or where.since > c.version:
            return None
        return self._sbe_number(c.root, where)

    def _sbe_number(self, data: bytes, where: Field, null: int = 0) -> int:
        value = int.from_bytes(data[where.offset : where.end], "little", signed=where.kind == "int")
        return null if where.null is not None and value == where.null else value

    def _begin_anew(self) -> None:
        for instrument in self.instruments.values():
            instrument.anew, instrument.snapshot = True, False

    def _sbe_define(self, c: _Context) -> None:
        define = c.message.define
        if define is None or define.key.end > len(c.root) or define.symbol.end > len(c.root):
            return
        index = self._find(self._sbe_number(c.root, define.key))
        if index is None:
            self.reasons["NO_INSTRUMENT"] += 1
            return
        c.inst = index
        self.instruments[index].symbol = c.root[define.symbol.offset : define.symbol.end].rstrip(b" \0")

    def _sbe_snapshot(self, c: _Context) -> bool:
        key, rpt = c.message[self.schema.key], c.message[self.schema.sequence]
        if key.end > len(c.root) or rpt.end > len(c.root):
            self.reasons["BAD_GROUP"] += 1
            return False
        number = self._sbe_number(c.root, rpt)
        c.inst = self._find(self._sbe_number(c.root, key))
        if c.inst is None:
            self.reasons["NO_INSTRUMENT"] += 1
            return False
        known = self.instruments[c.inst]
        if known.rpt is not None and number < known.rpt:
            self.superseded += 1
            return False
        known.rpt, known.stale, known.snapshot, known.anew = number, False, True, False
        c.flags = c.flags & ~FLAGS["stale"] | FLAGS["snapshot"]
        c.rows.append(c.clear(c.inst))
        return True

    def _sbe_groups(self, c: _Context, rest: bytes) -> None:
        for group in c.message.groups:
            if group.since > c.version:
                continue
            size = group.dimension_size
            if len(rest) < size:
                self.reasons["BAD_GROUP"] += 1
                return
            length = int.from_bytes(rest[group.length_offset : group.length_offset + 2], "little")
            count = int.from_bytes(rest[group.count_offset : group.count_offset + group.count_size], "little")
            if count * length > len(rest) - size:
                self.reasons["BAD_GROUP"] += 1
                return
            entries = [rest[size + i * length : size + (i + 1) * length] for i in range(count)]
            self._sbe_entries(c, group, entries, length)
            rest = rest[size + count * length :]

    def _sbe_entries(self, c: _Context, group: Group, entries: list[bytes], length: int) -> None:
        define = c.message.define
        if define and define.depth_group == group.name and define.depth and define.depth_where:
            end = define.depth_where.offset + len(define.depth_value)
            for entry in entries if define.depth.end <= length and end <= length else []:
                word = entry[define.depth_where.offset : end]
                depth = self._sbe_number(entry, define.depth) & 0xFF
                if c.inst is not None and word == define.depth_value:
                    self.instruments[c.inst].depth = depth
                elif c.inst is not None and word == define.implied_value:
                    self.instruments[c.inst].implied_depth = depth
        update = next((u for u in c.message.updates if u.group == group.name), None)
        names = {f.name for f in group.fields}
        if update is None and not {self.schema.key, self.schema.sequence} <= names:
            return
        if entries and length < self._required(group, update):
            self.reasons["BAD_GROUP"] += 1
            return
        for entry in entries:
            self._sbe_entry(c, group, update, entry)

    def _required(self, group: Group, update: Update | None) -> int:
        oldest = self.schema.versions[0]
        wanted: list[Field | None] = []
        if update is None or not update.key_in_root:
            wanted += [f for f in group.fields if f.name in (self.schema.key, self.schema.sequence)]
        ends = [1]
        if update is not None:
            wanted += [update.price, update.qty, update.order_id, update.ref, update.level, update.orders]
            for table in (update.kind, update.side, update.flags, update.override):
                if table is not None and table.offset is not None:
                    ends.append(table.offset + 1)
        return max(ends + [f.end for f in wanted if f is not None and f.since <= oldest])

    def _present(self, c: _Context, entry: bytes, where: Field | None, null: int = 0) -> int:
        if where is None or where.end > len(entry) or where.since > c.version:
            return 0
        return self._sbe_number(entry, where, null)

    def _sbe_entry(self, c: _Context, group: Group, update: Update | None, entry: bytes) -> None:
        flags = c.flags
        sequence = next((f for f in group.fields if f.name == self.schema.sequence), None)
        if update is None or not update.key_in_root:
            c.inst = self._find(self._sbe_number(entry, group[self.schema.key]))
            if c.inst is None:
                self.reasons["NO_INSTRUMENT"] += 1
                return
            if sequence is not None:
                known = self.instruments[c.inst]
                if not self._step(known, self._sbe_number(entry, sequence), flags):
                    return
                flags = flags & ~FLAGS["stale"] | (FLAGS["stale"] if known.stale else 0)
        if update is None or c.inst is None:
            return
        kind, side = update.kind.of(entry), update.side.of(entry)
        over = update.override.of(entry) if update.override else 0
        kind = over & ~0x40 if over else kind
        if (kind | side) & BAD:
            self.reasons["BAD_VALUE"] += 1
            return
        qty = self._present(c, entry, update.qty)
        if not kind or (update.drop_empty and not qty):
            return
        price: int | None = self._present(c, entry, update.price, NO_PRICE)
        if update.price is not None:
            price = self._rescaled(self.instruments[c.inst], price or 0, update.price.scale or 0)
        if price is None:
            self.reasons["BAD_VALUE"] += 1
            return
        level, orders = self._present(c, entry, update.level), self._present(c, entry, update.orders)
        ref = self._present(c, entry, update.ref) | (level & 0xFFFFFFFF) | (orders & 0xFFFFFFFF) << 32
        order_id = self._present(c, entry, update.order_id)
        flags |= update.flags.of(entry)
        block = c.block
        c.rows.append(
            Row(
                block.rx_ns,
                c.venue_ns,
                block.seq,
                order_id,
                price,
                qty,
                ref,
                c.inst,
                kind,
                side,
                flags,
                block.line,
            )
        )

    def _step(self, known: _Instrument, number: int, flags: int) -> bool:
        missed = bool(flags & FLAGS["stale"]) and number != 1
        if known.rpt is None:
            known.stale, known.anew = known.stale or missed, False
        elif number == known.rpt + 1:
            known.stale = known.stale or (known.anew and missed)
            known.snapshot, known.anew = False, False
        elif number > known.rpt:
            self.gaps += 1
            known.stale, known.snapshot, known.anew = True, False, False
        elif known.snapshot:
            self.superseded += 1
            return False
        elif known.anew:
            known.stale, known.anew = missed, False
        elif flags & FLAGS["stale"]:
            known.stale = True
        known.rpt = number
        return True

    @staticmethod
    def _rescaled(known: _Instrument, price: int, scale: int) -> int | None:
        if not known.priced:
            known.priced, known.scale = True, scale
        if price == NO_PRICE or scale == known.scale:
            return price
        if scale < known.scale:
            price *= 10 ** (known.scale - scale)
            return price if -(1 << 63) <= price < 1 << 63 else None
        step = 10 ** (scale - known.scale)
        return None if price % step else price // step


@dataclass
class _Context:
    """One SBE message on its way."""

    block: Block
    message: Message
    root: bytes
    version: int
    rows: list[Row]
    inst: int | None = None
    flags: int = 0
    venue_ns: int = 0

    def clear(self, inst: int) -> Row:
        """The CLEAR of one instrument or of all."""
        block = self.block
        return Row(block.rx_ns, self.venue_ns, block.seq, 0, 0, 0, 0, inst, CLEAR, 0, self.flags, block.line)


def _flags_of(block: Block) -> int:
    flags = FLAGS["recovered"] if block.flags & RECOVERED else 0
    return flags | (FLAGS["stale"] if block.flags & STALE else 0)


class _Frames:
    """The messages of a block without their framing; ``reason`` is what ended it early."""

    def __init__(self, schema: Schema, block: Block) -> None:
        self.schema = schema
        self.block = block
        self.reason = ""

    def __iter__(self) -> Iterator[bytes]:
        data, count = self.block.data, 0
        announced = None if self.block.count == 0xFFFF else self.block.count
        while data and count != announced:
            length = self._length(data)
            if length is None:
                return
            skip = 0 if self.schema.framing == "fixed" else 2
            yield data[skip : skip + length]
            data = data[skip + length :]
            count += 1
        if data:
            self.reason = "TRAILING"
        elif announced is not None and count < announced:
            self.reason = "MISSING"

    def _length(self, data: bytes) -> int | None:
        if self.schema.framing == "fixed":
            message = (
                self.schema.by_id(data[self.schema.type_offset])
                if len(data) > self.schema.type_offset
                else None
            )
            if len(data) <= self.schema.type_offset:
                self.reason = "TRUNCATED"
                return None
            length = message.length if message else self.schema.message_size
            if not length:
                self.reason = "BAD_LENGTH"
                return None
            left = len(data)
        else:
            left = len(data) - 2
            length = int.from_bytes(data[:2], "big" if self.schema.framing == "u16be" else "little")
            if self.schema.sbe and left >= 0:
                if length < 2:
                    self.reason = "BAD_LENGTH"
                    return None
                length -= 2
        if left < 0 or length > left:
            self.reason = "TRUNCATED"
            return None
        return length


def frame(schema: Schema, messages: Iterable[SupportsBytes | bytes]) -> bytes:
    """Messages with the schema's framing, back to back."""
    out = bytearray()
    for message in messages:
        data = bytes(message)
        if schema.framing == "u16be":
            out += len(data).to_bytes(2, "big")
        elif schema.framing == "u16le":
            out += len(data).to_bytes(2, "little")
        elif schema.sbe:
            out += (len(data) + 2).to_bytes(2, "little")
        out += data
    return bytes(out)
