"""The generated day: sound by construction, the same on every machine, packed as MoldUDP64."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xdpstack._ffi import dtype, ffi, lib
from xdpstack.errors import ConfigError
from xdpstack.tests.book_model import Model
from xdpstack.tests.test_books import FIELDS, Books
from xdpstack.venues.day import DEMO, Day, generate, messages_of, packets

SMALL = Day(messages=20_000, symbols=40, orders_alive=2_000, seed=1)


def decode(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Every update of a framed stream, by the generated ITCH decoder."""
    decoder = lib.xds_decoder_find(b"itch50")
    cfg = ffi.new("struct xds_decoder_config *", {"max_instruments": 65536})
    memory = np.zeros(lib.xds_decoder_size(decoder, cfg) + 64, np.uint8)
    mem = ffi.cast("void *", memory.ctypes.data + -memory.ctypes.data % 64)
    assert lib.xds_decoder_init(decoder, mem, cfg) == 0
    updates = np.zeros(len(data) // 19 + 16, dtype("struct xds_update"))
    block = ffi.new(
        "struct xds_block *", {"data": ffi.from_buffer("uint8_t[]", data), "len": len(data), "seq": 1}
    )
    block.count = 0xFFFF
    sink = ffi.new("struct xds_sink *", {"cap_updates": len(updates)})
    sink.updates = ffi.cast("struct xds_update *", updates.ctypes.data)
    stepped = lib.xds_decoder_block(decoder, mem, block, sink)
    stats = ffi.new("struct xds_decoder_stats *")
    lib.xds_decoder_stats(decoder, mem, stats)
    assert list(stats.reasons) == [0] * 16
    assert stepped == stats.messages
    return updates[: sink.n_updates]


def test_the_model_takes_a_day_without_one_refusal_or_crossed_book() -> None:
    updates = decode(generate(SMALL))
    instruments = int(updates["instrument"].max()) + 1
    books, model = Books(3, instruments, 5_000, 50_000), Model(3, instruments)
    rows = [{name: int(row[name]) for name in FIELDS} for row in updates]
    got = books.apply([dict(row) for row in rows])
    for row in rows:
        assert model.apply(row) == 0
    assert got == rows
    assert sum(model.reasons) == 0
    assert list(books.stats().reasons) == model.reasons
    assert lib.xds_books_checksum_all(books.b) == model.checksum_all()
    books.audit()


def test_a_demo_day_fills_its_books_to_the_level_that_was_asked_for() -> None:
    updates = decode(generate(DEMO))
    books = Books(3, 1_000, 2 * DEMO.orders_alive, 200_000)
    refused = lib.xds_books_apply(books.b, ffi.cast("struct xds_update *", updates.ctypes.data), len(updates))
    stats = books.stats()
    assert refused == 0
    assert stats.reasons[lib.XDS_BOOK_CROSSED] == 0
    assert abs(stats.orders - DEMO.orders_alive) < 2_100
    books.audit()


def test_equal_parameters_give_equal_bytes_on_every_machine() -> None:
    digest = hashlib.sha256(generate(SMALL)).hexdigest()
    assert digest == "cc43073373e414b82b71d90bcf50be7ae9242dc324182ed70b86dbca69eab428"
    other = Day(SMALL.messages, SMALL.symbols, SMALL.orders_alive, seed=2)
    assert hashlib.sha256(generate(other)).hexdigest() != digest


def test_a_day_on_disk_is_the_day_in_memory(tmp_path: Path) -> None:
    assert bytes(generate(SMALL, tmp_path / "day")) == bytes(generate(SMALL))


def test_a_day_has_its_messages_its_directory_and_a_plausible_mix() -> None:
    messages = list(messages_of(generate(DEMO)))
    assert len(messages) == DEMO.messages
    kinds = Counter(chr(message[0]) for message in messages)
    assert kinds["R"] == kinds["H"] == DEMO.symbols
    assert [chr(m[11]) for m in messages if m[0] == ord("S")] == ["O", "S", "Q", "M", "E", "C"]
    assert 0.40 < (kinds["A"] + kinds["F"]) / len(messages) < 0.55
    assert 0.30 < kinds["D"] / len(messages) < 0.45
    assert all(kinds[kind] for kind in "UEXCPI")
    stamps = [int.from_bytes(m[5:11], "big") for m in messages]
    assert all(a <= b for a, b in pairwise(stamps))
    busiest = Counter(int.from_bytes(m[1:3], "big") for m in messages).most_common(1)[0][1]
    assert busiest > 4 * len(messages) / DEMO.symbols, "activity is skewed over symbols"


def test_packets_carry_every_message_once_in_order_with_sequence_numbers_that_join() -> None:
    data = generate(DEMO)
    sequence, joined, before, sizes = 1, [], 5_000, []
    for send_ns, payload in packets(data, session=b"SESS", start_ns=5_000):
        count = int.from_bytes(payload[18:20], "big")
        assert payload[:10] == b"SESS      "
        assert int.from_bytes(payload[10:18], "big") == sequence
        assert len(list(messages_of(payload[20:]))) == count
        assert send_ns >= before
        assert len(payload) <= 1_400
        sequence, before = sequence + count, send_ns
        sizes.append(count)
        joined.append(payload[20:])
    assert b"".join(joined) == bytes(data)
    assert min(sizes) == 1
    assert 20 < max(sizes) <= 40


@pytest.mark.parametrize("bad", [Day(100, 0, 100), Day(100, 70_000, 100), Day(10, 40, 100), Day(1000, 10, 1)])
def test_parameters_that_make_no_day_are_refused(bad: Day) -> None:
    with pytest.raises(ConfigError, match="a day needs"):
        generate(bad)
