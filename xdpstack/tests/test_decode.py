"""The C decoders against the slow, obvious one and against scapy; totality on any bytes."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.schema import dtypes, load, names, plugin, reference, scapy_layer
from xdpstack.schema.model import FLAGS, KINDS, SIDES, Field, Message, Schema
from xdpstack.schema.native import NativeDecoder, decoders

PAGE = mmap.PAGESIZE
ROOM = 16 * PAGE
MASK = (1 << 64) - 1
BID, ASK = SIDES["bid"], SIDES["ask"]
INSTRUMENTS = 6  # few, so that the table gets full


class Guarded:
    """Memory between two pages that fault: a read outside of a block ends the test run."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, ROOM + 2 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (address, address + PAGE + ROOM):
            assert libc.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0

    def put(self, data: bytes, at_end: bool) -> memoryview:
        start = PAGE + (ROOM - len(data) if at_end else 0)
        self.map[start : start + len(data)] = data
        return memoryview(self.map)[start : start + len(data)]


GUARDED = Guarded()


def number(field: Field, rng: random.Random) -> bytes:
    """A field's bytes: mostly what the specification allows, sometimes anything."""
    order = "little"
    if field.values and rng.random() < 0.9:
        return rng.choice(list(field.values.values())).to_bytes(field.size, order)
    if field.name == "SecurityID":
        return rng.randrange(1, INSTRUMENTS + 3).to_bytes(field.size, order)
    if field.name == "RptSeq":
        return rng.randrange(1, 6).to_bytes(field.size, order)
    if field.null is not None and rng.random() < 0.1:
        return (field.null & ((1 << 8 * field.size) - 1)).to_bytes(field.size, order)
    if field.size > 2 and rng.random() < 0.5:
        return rng.randrange(1000).to_bytes(field.size, order)
    return rng.randbytes(field.size)


def block_bytes(fields: tuple[Field, ...], length: int, rng: random.Random) -> bytes:
    out = bytearray(rng.randbytes(max(length, max((f.end for f in fields), default=0))))
    for field in fields:
        out[field.offset : field.end] = number(field, rng)
    return bytes(out[:length])


def sbe_message(schema: Schema, message: Message, rng: random.Random) -> bytes:
    """One message of any version, its blocks of the known length, shorter or longer."""

    def vary(length: int) -> int:
        return max(0, length + (rng.randrange(-9, 9) if rng.random() < 0.2 else 0))

    version = rng.choice([*schema.versions, schema.versions[-1] + 3, rng.randrange(12)])
    length = vary(message.length)
    schema_id = schema.schema_id if rng.random() < 0.97 else 7
    out = b"".join(v.to_bytes(2, "little") for v in (length, message.id, schema_id, version))
    out += block_bytes(message.fields, length, rng)
    for group in message.groups:
        if group.since > version and rng.random() < 0.9:
            continue
        size, count = vary(group.block_length), rng.randrange(4)
        head = bytearray(rng.randbytes(group.dimension_size))
        head[group.length_offset : group.length_offset + 2] = size.to_bytes(2, "little")
        head[group.count_offset : group.count_offset + group.count_size] = count.to_bytes(
            group.count_size, "little"
        )
        out += bytes(head) + b"".join(block_bytes(group.fields, size, rng) for _ in range(count))
    return out if rng.random() < 0.95 else out[: rng.randrange(len(out) + 1)]


def fixed_message(schema: Schema, message: Message, rng: random.Random) -> bytes:
    out = bytearray(rng.randbytes(message.length))
    out[schema.type_offset] = message.id
    for update in message.updates:
        for table in (update.kind, update.side, update.flags):
            if table.offset is not None and rng.random() < 0.9 and table.offset != schema.type_offset:
                out[table.offset] = rng.choice([i for i, v in enumerate(table.table) if not v & 0x80])
    key = message.find(schema.key)
    if key and rng.random() < 0.95:
        keys = [bytes([65 + i]).ljust(8) for i in range(INSTRUMENTS + 2)]
        raw = (
            rng.choice(keys)[: key.size] if key.kind == "char" else bytes([0, rng.randrange(INSTRUMENTS + 1)])
        )
        if key.kind != "char" and schema.byte_order == "little":
            raw = raw[::-1]
        out[key.offset : key.end] = raw
    if rng.random() < 0.1:
        out += rng.randbytes(rng.randrange(5))
    return bytes(out)


def block_of(schema: Schema, rng: random.Random) -> bytes:
    """A block of framed messages, right or spoilt."""
    messages = []
    for _ in range(rng.randrange(8)):
        updating = [m for m in schema.messages if m.updates or m.define]
        message = rng.choice(updating if rng.random() < 0.6 else schema.messages)
        data = sbe_message(schema, message, rng) if schema.sbe else fixed_message(schema, message, rng)
        spoil = rng.random()
        if spoil < 0.05:
            data = rng.randbytes(rng.randrange(40))
        elif spoil < 0.1:
            data = data[: rng.randrange(len(data) + 1)]
        messages.append(data)
    out = bytearray(scapy_layer.frame(schema, messages))
    while out and rng.random() < 0.1:
        out[rng.randrange(len(out))] = rng.randrange(256)
    if rng.random() < 0.1:
        out = out[: rng.randrange(len(out) + 1)]
    return bytes(out)


def blocks(schema: Schema, seed: int) -> Iterator[reference.Block]:
    rng = random.Random(seed)
    for _ in range(rng.randrange(1, 6)):
        yield reference.Block(
            block_of(schema, rng),
            count=rng.choice([0xFFFF, 0xFFFF, rng.randrange(8)]),
            seq=rng.randrange(1 << 40),
            rx_ns=rng.randrange(1 << 62),
            line=rng.randrange(8),
            flags=rng.choice([0, 0, 0, rng.randrange(16)]),
        )


def same(native: NativeDecoder, slow: reference.Decoder, block: reference.Block, at_end: bool = True) -> None:
    """Both decode the block; everything that they say must be equal."""
    data = GUARDED.put(block.data, at_end)
    updates, messages = native.block(
        data, count=block.count, seq=block.seq, rx_ns=block.rx_ns, line=block.line, flags=block.flags
    )
    rows = slow.block(block)
    names_ = updates.dtype.names
    assert names_ == reference.Row._fields
    assert [tuple(int(v) & MASK for v in u) for u in updates] == [
        tuple(v & MASK for v in row) for row in rows
    ]
    found = [(int(m["type"]), int(m["len"]), int(m["seq"]), int(m["line"])) for m in messages]
    assert found == [(t, len(d), s & MASK, block.line) for t, d, s in slow.messages]
    for offset, (_, body, _) in zip(native.offsets(messages), slow.messages, strict=True):
        assert bytes(data[offset : offset + len(body)]) == body
    stats = native.stats()
    assert stats["reasons"] == {k: v for k, v in slow_reasons(slow).items() if v}
    assert stats["by_type"] == dict(slow.by_type)
    assert (stats["instrument_gaps"], stats["superseded"]) == (slow.gaps, slow.superseded)
    unread = ("short", "unknown_type", "unsupported")
    assert stats["messages"] == sum(stats["by_type"].values()) + sum(
        stats["reasons"].get(r, 0) for r in unread
    )
    d = native.c
    assert len(updates) <= 1 + len(block.data) * d.max_updates_per_byte_q8 // 256
    assert len(messages) <= 1 + len(block.data) * d.max_messages_per_byte_q8 // 256


def slow_reasons(slow: reference.Decoder) -> dict[str, int]:
    return {reason.lower(): count for reason, count in slow.reasons.items()}


def same_instruments(native: NativeDecoder, slow: reference.Decoder) -> None:
    mine = {
        i.index: (i.symbol.encode("latin-1"), i.scale, i.depth, i.implied_depth) for i in native.instruments()
    }
    theirs = {
        n: (i.symbol.split(b"\0")[0], i.scale, i.depth, i.implied_depth) for n, i in slow.instruments.items()
    }
    assert mine == theirs


def test_every_schema_has_its_decoder() -> None:
    assert decoders() == names()
    for name in names():
        with NativeDecoder(name) as native:
            assert tuple(native.types) == tuple(n[:39] for n in load(name).names)


@pytest.mark.parametrize("name", names())
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_c_and_the_slow_decoder_agree_on_any_stream(name: str, seed: int) -> None:
    schema = load(name)
    native = NativeDecoder(name, max_instruments=INSTRUMENTS, cap=4096)
    slow = reference.Decoder(schema, INSTRUMENTS)
    for block in blocks(schema, seed):
        same(native, slow, block, at_end=bool(seed & 1))
    same_instruments(native, slow)


@pytest.mark.parametrize("name", names())
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), count=st.sampled_from([0xFFFF, 3]))
def test_c_and_the_slow_decoder_agree_on_any_bytes(name: str, data: bytes, count: int) -> None:
    native = NativeDecoder(name, max_instruments=INSTRUMENTS, cap=4096)
    same(native, reference.Decoder(load(name), INSTRUMENTS), reference.Block(data, count))


@pytest.mark.parametrize("name", names())
def test_a_block_cut_at_every_byte_gives_messages_or_a_reason(name: str) -> None:
    schema = load(name)
    rng = random.Random(7)
    messages = [
        sbe_message(schema, m, rng) if schema.sbe else fixed_message(schema, m, rng) for m in schema.messages
    ]
    for message in messages:
        whole = scapy_layer.frame(schema, [message, message])
        for cut in range(len(whole) + 1):
            native = NativeDecoder(name, max_instruments=INSTRUMENTS, cap=1024)
            same(native, reference.Decoder(schema, INSTRUMENTS), reference.Block(whole[:cut], 2))


def random_fields(fields: tuple[Field, ...], rng: random.Random) -> dict[str, bytes | int]:
    """A value for each field; text without trailing NULs, which numpy drops."""
    values: dict[str, bytes | int] = {}
    for field in fields:
        if field.kind == "char":
            values[field.name] = bytes(rng.choices(b"ABCDEFGH", k=field.size))
        else:
            low = -(1 << (8 * field.size - 1)) if field.kind == "int" else 0
            values[field.name] = low + rng.randrange(1 << 8 * field.size)
    return values


def read_back(array: np.ndarray, expected: list[dict[str, bytes | int]]) -> bool:
    columns = {name: dtypes.column(array, name).tolist() for name in expected[0]}
    return columns == {name: [row[name] for row in expected] for name in expected[0]}


@pytest.mark.parametrize("name", names())
def test_every_message_type_built_by_scapy_is_read_field_by_field(name: str) -> None:
    """scapy writes, our views and scapy read; they must agree on each field and group entry."""
    schema = load(name)
    rng = random.Random(3)
    for message in schema.messages:
        layer = scapy_layer.layers(schema)[message.name]
        root = random_fields(tuple(f for f in message.fields if f.name != "type"), rng)
        packet = layer(**{k.replace(".", "_"): v for k, v in root.items()})
        entries = {g.name: [random_fields(g.fields, rng) for _ in range(2)] for g in message.groups}
        for group, rows in entries.items():
            make = layer_entry(layer, group)
            setattr(packet, group, [make(**{k.replace(".", "_"): v for k, v in row.items()}) for row in rows])
        data = bytes(packet)
        if root:
            assert read_back(dtypes.view(message, data).reshape(1), [root]), message.name
        found = dtypes.groups(message, data) if message.header else {}
        assert list(found) == list(entries)
        for group, rows in entries.items():
            assert read_back(found[group], rows), (message.name, group)
        native = NativeDecoder(name, max_instruments=65_536, cap=64)
        messages = native.block(scapy_layer.frame(schema, [data]))[1]
        assert [schema.messages[int(m["type"])].name for m in messages] == [message.name]
        again = scapy_layer.parse(schema, data)
        assert again is not None
        assert bytes(again) == data


def layer_entry(layer: type, group: str) -> type:
    return next(f for f in layer.fields_desc if f.name == group).cls  # type: ignore[attr-defined,no-any-return]


# -- what each venue's messages mean ------------------------------------------------------------


def itch(name: str, **fields: object) -> bytes:
    schema = load("itch50")
    return bytes(scapy_layer.layers(schema)[name](stock_locate=7, timestamp=34_200_000_000_123, **fields))


def decode(name: str, *messages: bytes, **more: int) -> np.ndarray:
    native = NativeDecoder(name)
    return native.block(scapy_layer.frame(load(name), messages), **more)[0].copy()


def test_itch_add_execute_replace_and_delete_mean_what_update_h_says() -> None:
    updates = decode(
        "itch50",
        itch("add_order", order_reference=11, side=b"B", shares=300, stock=b"AAPL    ", price=1_501_200),
        itch("add_order_mpid", order_reference=12, side=b"S", shares=100, stock=b"AAPL    ", price=1_501_300),
        itch("order_executed", order_reference=11, executed_shares=100, match_number=900),
        itch("order_executed_with_price", order_reference=11, executed_shares=50, match_number=901,
             printable=b"N", execution_price=1_501_250),
        itch("order_cancel", order_reference=11, cancelled_shares=25),
        itch("order_replace", order_reference=11, new_order_reference=13, shares=10, price=1_501_000),
        itch("order_delete", order_reference=12),
        itch("trade", side=b"B", shares=5, stock=b"AAPL    ", price=1_501_260, match_number=902),
        itch("cross_trade", shares=1 << 33, stock=b"AAPL    ", cross_price=1_500_000, match_number=903),
        itch("broken_trade", match_number=903),
        seq=50,
    )  # fmt: skip
    last, hidden = FLAGS["last"], FLAGS["last"] | FLAGS["hidden"]
    columns = ["kind", "side", "order_id", "price", "qty", "ref", "flags"]
    assert [tuple(int(u[c]) for c in columns) for u in updates] == [
        (KINDS["add"], BID, 11, 1_501_200, 300, 0, last),
        (KINDS["add"], ASK, 12, 1_501_300, 100, 0, last),
        (KINDS["execute"], 0, 11, 0, 100, 900, last),
        (KINDS["execute_at"], 0, 11, 1_501_250, 50, 901, hidden),
        (KINDS["reduce"], 0, 11, 0, 25, 0, last),
        (KINDS["replace"], 0, 13, 1_501_000, 10, 11, last),
        (KINDS["delete"], 0, 12, 0, 0, 0, last),
        (KINDS["trade"], BID, 0, 1_501_260, 5, 902, last),
        (KINDS["trade"], 0, 0, 1_500_000, 1 << 33, 903, last),
        (KINDS["trade_break"], 0, 0, 0, 0, 903, last),
    ]
    assert updates["seq"].tolist() == list(range(50, 60))
    assert set(updates["instrument"].tolist()) == {7}
    assert set(updates["venue_ns"].tolist()) == {34_200_000_000_123}


def test_itch_symbols_come_from_orders_when_the_directory_was_missed() -> None:
    native = NativeDecoder("itch50")
    native.block(scapy_layer.frame(load("itch50"), [itch("order_delete", order_reference=1)]))
    (before,) = native.instruments()
    assert (before.index, before.symbol, before.scale) == (7, "", 4)
    native.block(scapy_layer.frame(load("itch50"), [itch("add_order", side=b"B", stock=b"AAPL    ")]))
    (named,) = native.instruments()
    assert (named.symbol, named.flags) == ("AAPL", lib.XDS_INSTRUMENT_USED | lib.XDS_INSTRUMENT_SYMBOL)
    native.block(scapy_layer.frame(load("itch50"), [itch("stock_directory", stock=b"AAPLW   ")]))
    (renamed,) = native.instruments()
    assert renamed.symbol == "AAPLW"
    assert renamed.flags & lib.XDS_INSTRUMENT_DEFINED


def test_a_locate_beyond_the_table_is_counted_and_withheld() -> None:
    native = NativeDecoder("itch50", max_instruments=7)
    updates, messages = native.block(scapy_layer.frame(load("itch50"), [itch("order_delete")]))
    assert (len(updates), len(messages)) == (0, 1)
    assert native.stats()["reasons"] == {"no_instrument": 1}


def test_a_side_that_the_specification_lacks_is_counted_and_withheld() -> None:
    native = NativeDecoder("itch50")
    message = itch("add_order", side=b"Z", stock=b"AAPL    ")
    assert len(native.block(scapy_layer.frame(load("itch50"), [message]))[0]) == 0
    assert native.stats()["reasons"] == {"bad_value": 1}


def test_unknown_types_are_skipped_by_their_length_and_counted() -> None:
    native = NativeDecoder("itch50")
    block = scapy_layer.frame(load("itch50"), [b"z" * 50, itch("order_delete", order_reference=4)])
    updates, messages = native.block(block, count=2)
    assert updates["order_id"].tolist() == [4]
    assert messages["type"].tolist() == [0xFFFF, load("itch50").names.index("order_delete")]
    assert native.stats()["reasons"] == {"unknown_type": 1}


def test_a_longer_message_than_known_is_read_as_far_as_known() -> None:
    updates = decode("itch50", itch("order_delete", order_reference=4) + b"more of a later version")
    assert updates["order_id"].tolist() == [4]


def test_full_arrays_stop_the_block_and_are_counted() -> None:
    native = NativeDecoder("itch50", cap=3)
    block = scapy_layer.frame(load("itch50"), [itch("order_delete", order_reference=i) for i in range(5)])
    updates, messages = native.block(block, count=5)
    assert (len(updates), len(messages)) == (3, 3)
    assert native.stats()["reasons"] == {"capacity": 1}


def test_no_index_of_messages_is_written_when_none_is_wanted() -> None:
    native = NativeDecoder("itch50")
    native._sink.messages = ffi.NULL
    updates, messages = native.block(
        scapy_layer.frame(load("itch50"), [itch("order_delete", order_reference=4)])
    )
    assert (len(updates), len(messages)) == (1, 0)


def plain(kind: str, **fields: object) -> bytes:
    return bytes(scapy_layer.layers(load("plain"))[kind](**fields))


def test_plain_levels_end_with_the_packet() -> None:
    updates = decode(
        "plain",
        plain("add", side=b"B", symbol_id=3, price=100, quantity=5, order_id=1),
        plain("update", side=b"A", symbol_id=3, price=101, quantity=6, order_id=2),
        plain("delete", side=b"B", symbol_id=3, price=100, quantity=9, order_id=1),
        seq=12,
    )
    columns = ["kind", "side", "instrument", "price", "qty", "order_id", "flags", "seq"]
    level = KINDS["level"]
    assert [tuple(int(u[c]) for c in columns) for u in updates] == [
        (level, BID, 3, 100, 5, 1, 0, 12),
        (level, ASK, 3, 101, 6, 2, 0, 12),
        (level, BID, 3, 100, 0, 1, FLAGS["last"], 12),
    ]


def iex(feed: str, name: str, **fields: object) -> bytes:
    return bytes(scapy_layer.layers(load(feed))[name](timestamp=9, **fields))


def test_iex_deep_event_flags_end_the_event() -> None:
    updates = decode(
        "iex-deep",
        iex("iex-deep", "price_level_buy", event_flags=0, symbol=b"ZIEXT   ", size=100, price=990_500),
        iex("iex-deep", "price_level_sell", event_flags=1, symbol=b"ZIEXT   ", size=0, price=990_600),
        iex("iex-deep", "trade_report", symbol=b"ZEXIT   ", size=7, price=5, trade_id=77),
        iex("iex-deep", "trade_break", symbol=b"ZEXIT   ", size=7, price=5, trade_id=77),
    )
    columns = ["kind", "side", "instrument", "price", "qty", "ref", "flags", "venue_ns"]
    assert [tuple(int(u[c]) for c in columns) for u in updates] == [
        (KINDS["level"], BID, 0, 990_500, 100, 0, 0, 9),
        (KINDS["level"], ASK, 0, 990_600, 0, 0, FLAGS["last"], 9),
        (KINDS["trade"], 0, 1, 5, 7, 77, 0, 9),
        (KINDS["trade_break"], 0, 1, 5, 7, 77, 0, 9),
    ]


@pytest.mark.parametrize(
    ("bid", "ask", "kinds"), [(5, 6, "TTII"), (5, 0, "TTI"), (0, 6, "TTI"), (0, 0, "TT")]
)
def test_an_iex_quote_replaces_both_sides_and_its_last_update_ends_the_event(
    bid: int, ask: int, kinds: str
) -> None:
    updates = decode(
        "iex-tops",
        iex(
            "iex-tops",
            "quote_update",
            symbol=b"A       ",
            bid_size=bid,
            bid_price=10,
            ask_size=ask,
            ask_price=11,
        ),
    )
    words = {KINDS["level_delete_thru"]: "T", KINDS["level_insert"]: "I"}
    assert "".join(words[int(k)] for k in updates["kind"]) == kinds
    assert [int(f) for f in updates["flags"]] == [0] * (len(kinds) - 1) + [FLAGS["last"]]
    for update in updates[2:]:
        assert int(update["ref"]) == 1
        assert (int(update["side"]), int(update["price"]), int(update["qty"])) in ((BID, 10, 5), (ASK, 11, 6))


# -- CME ----------------------------------------------------------------------------------------


Entry = dict[str, object]


def cme(
    id_: int,
    entries: Sequence[Entry] = (),
    *,
    group: str = "NoMDEntries",
    version: int = 9,
    **root: object,
) -> bytes:
    schema = load("cme-mdp3")
    message = schema.by_id(id_)
    assert message is not None
    layer = scapy_layer.layers(schema)[message.name]
    packet = layer(version=version, **root)
    setattr(packet, group, [layer_entry(layer, group)(**entry) for entry in entries])
    return bytes(packet)


def level(
    action: int, price: int, place: int, rpt: int, kind: bytes = b"0", **more: object
) -> dict[str, object]:
    return {
        "MDUpdateAction": action, "MDEntryPx": price, "MDPriceLevel": place, "RptSeq": rpt,
        "MDEntryType": kind, "SecurityID": 55, "MDEntrySize": 10, "NumberOfOrders": 3, **more,
    }  # fmt: skip


def test_cme_book_actions_levels_and_orders() -> None:
    words = ["insert", "change", "delete", "delete_thru", "delete_from", "change"]
    entries = [level(a, 100 + a, a + 1, a + 1, b"01EF01"[a : a + 1]) for a in range(6)]
    updates = decode("cme-mdp3", cme(46, entries, TransactTime=8, MatchEventIndicator=0x84))
    assert [int(k) for k in updates["kind"]] == [KINDS[f"level_{w}"] for w in words]
    assert [int(s) for s in updates["side"]] == [BID, ASK, BID, ASK, BID, ASK]
    assert [int(r) & 0xFFFFFFFF for r in updates["ref"]] == [1, 2, 3, 4, 5, 6]
    assert {int(r) >> 32 for r in updates["ref"]} == {3}
    implied = FLAGS["implied"]
    assert [int(f) for f in updates["flags"]] == [0, 0, implied, implied, 0, FLAGS["last"]]
    assert set(updates["venue_ns"].tolist()) == {8}


def test_cme_prices_keep_the_scale_that_the_instrument_began_with() -> None:
    native = NativeDecoder("cme-mdp3")
    schema = load("cme-mdp3")
    new, old = (
        cme(46, [level(0, 1_234_000_000_000, 1, 1)]),
        cme(32, [level(1, 12_350_000_000, 1, 2)], version=8),
    )
    updates = native.block(scapy_layer.frame(schema, [new, old]))[0]
    assert updates["price"].tolist() == [1_234_000_000_000, 1_235_000_000_000]
    assert [i.scale for i in native.instruments()] == [9]


def test_cme_null_prices_and_quantities_are_told() -> None:
    null = 2**31 - 1
    entry = level(0, lib.XDS_NO_PRICE, 1, 1, MDEntrySize=null, NumberOfOrders=null)
    updates = decode("cme-mdp3", cme(46, [entry]))
    assert updates["price"].tolist() == [lib.XDS_NO_PRICE]
    assert updates["qty"].tolist() == [0]
    assert updates["ref"].tolist() == [1]


def test_cme_trades_carry_aggressor_and_trade_id() -> None:
    entry = {
        "MDEntryPx": 7,
        "MDEntrySize": 2,
        "SecurityID": 55,
        "RptSeq": 1,
        "AggressorSide": 2,
        "MDTradeEntryID": 99,
    }
    gone = {**entry, "RptSeq": 2, "MDUpdateAction": 2, "AggressorSide": 255}
    updates = decode("cme-mdp3", cme(48, [entry, gone], MatchEventIndicator=1))
    columns = ["kind", "side", "price", "qty", "ref", "flags"]
    assert [tuple(int(u[c]) for c in columns) for u in updates] == [
        (KINDS["trade"], ASK, 7, 2, 99, 0),
        (KINDS["trade_break"], 0, 7, 2, 99, 0),
    ]


def test_the_end_of_a_cme_event_in_a_message_without_updates_marks_the_update_before_it() -> None:
    book = cme(46, [level(0, 1, 1, 1)], MatchEventIndicator=0)
    volume = cme(37, [{"SecurityID": 55, "RptSeq": 2, "MDEntrySize": 5}], MatchEventIndicator=0x80)
    assert [int(f) for f in decode("cme-mdp3", book, volume)["flags"]] == [FLAGS["last"]]


def test_a_jump_of_rptseq_marks_the_instrument_stale_until_a_snapshot() -> None:
    native, schema = NativeDecoder("cme-mdp3"), load("cme-mdp3")
    stale = FLAGS["stale"]

    def flags(*messages: bytes) -> list[int]:
        return [int(u["flags"]) & stale for u in native.block(scapy_layer.frame(schema, messages))[0]]

    assert flags(cme(46, [level(0, 1, 1, 1), level(0, 1, 1, 1, SecurityID=56)])) == [0, 0]
    volume = cme(37, [{"SecurityID": 55, "RptSeq": 2}])
    assert flags(volume, cme(46, [level(0, 1, 2, 3)])) == [0]  # RptSeq counts over all templates
    assert flags(cme(46, [level(0, 1, 1, 5), level(0, 1, 2, 2, SecurityID=56)])) == [stale, 0]
    assert native.stats()["instrument_gaps"] == 1
    older = {"SecurityID": 55, "RptSeq": 4}
    assert flags(cme(52, [], **older)) == []
    assert native.stats()["superseded"] == 1
    entries = [{"MDEntryType": b"0", "MDPriceLevel": 1, "MDEntryPx": 5}, {"MDEntryType": b"4"}]
    snapshot = cme(52, entries, SecurityID=55, RptSeq=6)
    updates = native.block(scapy_layer.frame(schema, [snapshot]))[0]
    assert [int(k) for k in updates["kind"]] == [KINDS["clear"], KINDS["level_insert"]]
    assert [int(f) for f in updates["flags"]] == [FLAGS["snapshot"], FLAGS["snapshot"] | FLAGS["last"]]
    assert flags(cme(46, [level(0, 1, 1, 6)])) == []  # the snapshot has it
    assert flags(cme(46, [level(0, 1, 1, 7)])) == [0]


def test_an_open_gap_of_the_channel_does_not_mark_instruments_whose_sequence_is_whole() -> None:
    native, schema = NativeDecoder("cme-mdp3"), load("cme-mdp3")
    native.block(scapy_layer.frame(schema, [cme(46, [level(0, 1, 1, 1)])]))
    block = scapy_layer.frame(schema, [cme(46, [level(0, 1, 1, 2), level(0, 1, 1, 9, SecurityID=77)])])
    updates = native.block(block, flags=lib.XDS_BLOCK_STALE)[0]
    assert [int(f) for f in updates["flags"]] == [0, FLAGS["stale"]]  # 77 was never seen before the gap


def test_behind_a_gap_only_the_next_number_is_no_sign_of_loss() -> None:
    """What is not flagged stale there is taken for a proof: a number that fell, one that goes on by chance
    after a reset, and a first one that is not 1 are none."""
    stale = FLAGS["stale"]
    for before, behind, wanted in [
        ([5], [6, 7], [0, 0]),
        ([5], [7, 8], [stale, stale]),
        ([5], [3, 4], [stale, stale]),
        ([5], [5, 6], [stale, stale]),
        ([], [1, 2], [0, 0]),
        ([], [4, 5], [stale, stale]),
        ([5, None], [6, 7], [stale, stale]),
        ([5, None], [1, 2], [0, 0]),
        ([5, None], [2, 3], [stale, stale]),
    ]:
        native, schema = NativeDecoder("cme-mdp3"), load("cme-mdp3")
        slow = reference.Decoder(schema)
        rows: list[int] = []
        for number, rpt in enumerate([*before, *behind]):
            message = cme(4, [{}]) if rpt is None else cme(46, [level(0, 1, 1, rpt)])
            data = scapy_layer.frame(schema, [message])
            flags = lib.XDS_BLOCK_STALE if number >= len(before) else 0
            updates = native.block(data, flags=flags)[0]
            again = slow.block(reference.Block(data, flags=flags))
            assert [int(u["flags"]) for u in updates] == [row.flags for row in again]
            rows += [int(u["flags"]) & stale for u in updates]
        assert rows[len(before) :] == wanted, (before, behind)


def test_a_channel_reset_clears_all_instruments_and_lets_their_sequences_begin_anew() -> None:
    native, schema = NativeDecoder("cme-mdp3"), load("cme-mdp3")
    native.block(scapy_layer.frame(schema, [cme(46, [level(0, 1, 1, 5)])]))
    messages = [cme(4, [{}], TransactTime=3), cme(46, [level(0, 1, 1, 1)])]
    updates = native.block(scapy_layer.frame(schema, messages))[0]
    first = updates[0]
    assert (int(first["kind"]), int(first["instrument"])) == (KINDS["clear"], lib.XDS_ALL_INSTRUMENTS)
    assert (int(first["flags"]), int(updates[1]["flags"])) == (FLAGS["last"], 0)
    assert native.stats()["instrument_gaps"] == 0


def test_a_reset_ends_staleness_where_the_sequence_begins_anew_and_nowhere_else() -> None:
    """A feed of several channels: the reset of one says nothing about another's instruments."""
    native, schema = NativeDecoder("cme-mdp3"), load("cme-mdp3")
    mine, other = {"SecurityID": 55}, {"SecurityID": 56}

    def flags(*messages: bytes) -> list[int]:
        return [
            int(u["flags"]) & FLAGS["stale"] for u in native.block(scapy_layer.frame(schema, messages))[0]
        ]

    flags(cme(46, [level(0, 1, 1, 7, **mine), level(0, 1, 1, 7, **other)]))
    stale = FLAGS["stale"]
    assert flags(cme(46, [level(0, 1, 1, 9, **mine), level(0, 1, 1, 9, **other)])) == [stale, stale]
    assert flags(cme(4, [{}])) == [0]
    assert flags(cme(46, [level(0, 1, 1, 1, **mine), level(0, 1, 1, 10, **other)])) == [0, stale]


@pytest.mark.parametrize(("id_", "version"), [(27, 8), (29, 8), (41, 8), (54, 9), (55, 9), (56, 9)])
def test_cme_definitions_name_instruments_and_their_depth(id_: int, version: int) -> None:
    native, schema = NativeDecoder("cme-mdp3"), load("cme-mdp3")
    feeds = [{"MDFeedType": b"GBI", "MarketDepth": 3}, {"MDFeedType": b"GBX", "MarketDepth": 5}]
    symbol = b"ESM6".ljust(20, b"\0")
    message = cme(id_, feeds, group="NoMDFeedTypes", version=version, SecurityID=-5, Symbol=symbol)
    native.block(scapy_layer.frame(schema, [message]))
    (found,) = native.instruments()
    assert (found.symbol, found.depth, found.implied_depth) == ("ESM6", 5, 3)
    assert found.key == (1 << 64) - 5


def test_fields_and_groups_later_than_the_acting_version_are_absent() -> None:
    """Version 5 has no MDTradeEntryID: the same bytes say nothing then."""
    entry = {"MDEntryPx": 7, "SecurityID": 55, "RptSeq": 1, "AggressorSide": 1, "MDTradeEntryID": 99}
    assert decode("cme-mdp3", cme(42, [entry], version=8))["ref"].tolist() == [99]
    assert decode("cme-mdp3", cme(42, [entry], version=5))["ref"].tolist() == [0]


def test_another_schema_or_an_older_version_is_unsupported() -> None:
    native, schema = NativeDecoder("cme-mdp3"), load("cme-mdp3")
    native.block(scapy_layer.frame(schema, [cme(46, version=4), cme(46, schema_id=2)]))
    assert native.stats()["reasons"] == {"unsupported": 2}


# -- a user's own venue ---------------------------------------------------------------------------

VENUE = """
name = "example"
title = "A venue of one's own"
session = "mold64"
framing = "u16be"
byte_order = "big"
book = 3
scale = 2
[instrument]
key = "symbol"
symbol = "symbol"
[update]
order_id = "order_id"
last = true
[message.order]
id = 1
layout = '''
symbol char6
action char
side u8
order_id u64
price sprice2
qty u24
'''
[message.order.update]
kind = { field = "action", N = "add", C = "delete", M = "modify" }
side = { field = "side", 1 = "bid", 2 = "ask" }
price = "price"
qty = "qty"
[message.beat]
id = 2
layout = "reserved u8"
"""


def test_a_users_schema_becomes_a_decoder_without_touching_the_tree(tmp_path: Path) -> None:
    path, made = tmp_path / "example.toml", tmp_path / "example.so"
    path.write_text(VENUE)
    plugin.build(path, made)
    native = NativeDecoder(made)
    schema = load(path)
    order = scapy_layer.layers(schema)["order"]
    messages = [
        order(symbol=b"ABC   ", action=b"N", side=1, order_id=5, price=-250, qty=70_000),
        scapy_layer.layers(schema)["beat"](),
        order(symbol=b"XYZ   ", action=b"C", side=2, order_id=5),
    ]
    updates = native.block(scapy_layer.frame(schema, messages), count=3)[0]
    columns = ["kind", "side", "price", "qty", "instrument"]
    assert [tuple(int(u[c]) for c in columns) for u in updates] == [
        (KINDS["add"], BID, -250, 70_000, 0),
        (KINDS["delete"], ASK, 0, 0, 1),
    ]
    assert [i.symbol for i in native.instruments()] == ["ABC", "XYZ"]
    slow = reference.Decoder(schema, INSTRUMENTS)
    for seed in range(40):
        small = NativeDecoder(made, max_instruments=INSTRUMENTS, cap=4096)
        slow = reference.Decoder(schema, INSTRUMENTS)
        for block in blocks(schema, seed):
            same(small, slow, block)
