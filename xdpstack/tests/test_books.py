"""The native books against the model, step by step, with sound and with inconsistent input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xdpstack._ffi import dtype, ffi, lib
from xdpstack.tests.book_model import ALL, ASK, BID, NO_PRICE, Model

UPDATE = dtype("struct xds_update")
FIELDS = list(UPDATE.names or ())
CANARY = 256


class Books:
    """The native books over numpy memory with canaries on both sides."""

    def __init__(self, kind: int, instruments: int = 3, orders: int = 64, levels: int = 64) -> None:
        cfg = ffi.new(
            "struct xds_books_config *",
            {"kind": kind, "max_instruments": instruments, "max_orders": orders, "max_levels": levels},
        )
        self.size = lib.xds_books_size(cfg)
        assert self.size
        self.memory = np.full(self.size + 2 * CANARY + 64, 0xA5, dtype=np.uint8)
        self.start = CANARY + -(self.memory.ctypes.data + CANARY) % 64
        pointer = ffi.cast("void *", self.memory.ctypes.data + self.start)
        assert lib.xds_books_init(pointer, cfg) == 0
        self.b = ffi.cast("struct xds_books *", pointer)

    def apply(self, updates: list[dict[str, Any]]) -> list[dict[str, Any]]:
        array = np.zeros(len(updates), UPDATE)
        for i, update in enumerate(updates):
            for name, value in update.items():
                array[name][i] = value
        refused = lib.xds_books_apply(self.b, ffi.cast("struct xds_update *", array.ctypes.data), len(array))
        assert refused == sum(bool(flags & lib.XDS_REJECTED) for flags in array["flags"])
        return [{name: int(row[name]) for name in FIELDS} for row in array]

    def levels(self, instrument: int, side: int, cap: int = 256) -> list[tuple[int, int, int, int]]:
        out = ffi.new("struct xds_level[]", cap)
        n = lib.xds_books_levels(self.b, instrument, side, out, cap)
        return [(v.price, v.qty, v.orders, v.flags) for v in out[0:n]]

    def orders(self, instrument: int, side: int, cap: int = 256) -> list[tuple[int, int, int, int]]:
        out = ffi.new("struct xds_order[]", cap)
        n = lib.xds_books_orders(self.b, instrument, side, out, cap)
        assert all(o.instrument == instrument and o.side == side for o in out[0:n])
        return [(o.order_id, o.price, o.qty, o.ahead) for o in out[0:n]]

    def stats(self) -> Any:
        out = ffi.new("struct xds_books_stats *")
        lib.xds_books_stats(self.b, out)
        return out

    def audit(self) -> None:
        line = lib.xds_books_audit(self.b)
        assert line == 0, f"the audit's check at line {line} of audit.c failed"
        assert (self.memory[: self.start] == 0xA5).all(), "wrote before the arena"
        assert (self.memory[self.start + self.size :] == 0xA5).all(), "wrote behind the arena"


def whole(update: dict[str, Any]) -> dict[str, Any]:
    return {name: update.get(name, 0) for name in FIELDS}


def compare(books: Books, model: Model) -> None:
    books.audit()
    for i in range(model.instruments):
        for side in (BID, ASK):
            assert books.levels(i, side) == model.levels(i, side)
            if model.kind == 3:
                assert books.orders(i, side) == model.orders(i, side)
        assert lib.xds_books_checksum(books.b, i) == model.checksum(i)
    assert lib.xds_books_checksum_all(books.b) == model.checksum_all()
    stats = books.stats()
    assert list(stats.reasons) == model.reasons
    assert (stats.updates, stats.applied, stats.trades) == (model.updates, model.applied, model.trades)
    assert (stats.orders, stats.levels) == (len(model.where), model.levels_alive())


def compare_tops(books: Books, model: Model) -> None:
    tops = np.zeros(model.instruments + 2, dtype("struct xds_top"))
    pointer = ffi.cast("struct xds_top *", tops.ctypes.data)
    assert lib.xds_books_top(books.b, 0, pointer, len(tops)) == model.instruments
    for i in range(model.instruments):
        for side, word in ((BID, "bid"), (ASK, "ask")):
            best = (*model.levels(i, side), (NO_PRICE, 0, 0, 0))[0]
            assert tuple(int(tops[f"{word}_{name}"][i]) for name in ("price", "qty", "orders")) == best[:3]
        assert tops["instrument"][i] == i
        assert tops["stale"][i] == (i in model.stale)
    assert lib.xds_books_top(books.b, 1, pointer, 1) == 1
    assert tops["instrument"][0] == 1


def run(books: Books, model: Model, batches: list[list[dict[str, Any]]]) -> None:
    for batch in batches:
        expected = [whole(u) for u in batch]
        for u in expected:
            model.apply(u)
        assert books.apply(batch) == expected
        compare(books, model)
    compare_tops(books, model)


ORDER_KINDS = [1, 1, 1, 1, 2, 3, 4, 5, 6, 6, 16, 16, 14, 15, 13, 7, 8, 0, 200]
LEVEL_KINDS = [8, 8, 8, 8, 9, 9, 10, 10, 11, 12, 13, 14, 1, 0, 200]
PRICE_KINDS = [7, 7, 7, 7, 7, 8, 10, 11, 13, 16]
quantity = st.one_of(st.integers(1, 9), st.integers(-1, 3), st.just((1 << 63) - 5))
price = st.one_of(st.integers(-3, 6), st.sampled_from([NO_PRICE, -(1 << 63), NO_PRICE - 1]))


def batches(kinds: list[int], refs: Any, flags: list[int]) -> Any:
    one = st.fixed_dictionaries(
        {
            "kind": st.sampled_from(kinds),
            "instrument": st.sampled_from([0, 0, 0, 1, 1, 2, 3, 9, ALL]),
            "side": st.sampled_from([1, 1, 1, 2, 2, 2, 0, 3]),
            "price": price,
            "qty": quantity,
            "order_id": st.integers(0, 12),
            "ref": refs,
            "flags": st.sampled_from(flags),
        }
    )
    return st.lists(st.lists(one, min_size=1, max_size=40), min_size=1, max_size=6)


quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(batches(ORDER_KINDS, st.integers(0, 12), [0, 1, 1, 32, 33]), st.integers(1, 12), st.integers(1, 12))
def test_books_by_order_agree_with_the_model_whatever_comes(todo: Any, orders: int, levels: int) -> None:
    books, model = Books(3, 3, orders, levels), Model(3, 3, orders, levels)
    lib.xds_books_set_stale(books.b, 1, 1)
    model.stale.add(1)
    run(books, model, todo)


placed = st.integers(0, 7).map(lambda number: number | 5 << 32)


@quick
@given(batches(LEVEL_KINDS, placed, [0, 1, 1, 8, 9]), st.integers(1, 12), st.integers(0, 4))
def test_books_placed_by_level_agree_with_the_model_whatever_comes(
    todo: Any, levels: int, depth: int
) -> None:
    books, model = Books(2, 3, 0, levels), Model(2, 3, max_levels=levels)
    for i in range(3):
        assert lib.xds_books_set_depth(books.b, i, depth, 1) == 0
        model.depth[i, 0], model.depth[i, 1] = depth, 1
    run(books, model, todo)


@quick
@given(batches(PRICE_KINDS, st.integers(0, 3), [0, 1, 1, 8, 9]))
def test_books_by_price_agree_with_the_model_whatever_comes(todo: Any) -> None:
    run(Books(2), Model(2, 3, max_levels=64), todo)


def order(order_id: int, price: int = 100, qty: int = 10, side: int = BID, **more: int) -> dict[str, Any]:
    return {
        "kind": lib.XDS_ADD,
        "order_id": order_id,
        "price": price,
        "qty": qty,
        "side": side,
        "flags": 1,
    } | more


def test_a_long_life_with_hundreds_of_levels_agrees_with_the_model() -> None:
    rng = np.random.default_rng(7)
    books, model = Books(3, 2, 4000, 3000), Model(3, 2, 4000, 3000)
    for step in range(40):
        kinds = rng.choice([1, 1, 1, 1, 2, 4, 5, 6] if step < 30 else [1, 2, 5, 5, 5, 6], 200)
        ids, refs = rng.integers(0, 4000, 200), rng.integers(0, 4000, 200)
        prices, qtys, sides = rng.integers(0, 900, 200), rng.integers(1, 50, 200), rng.integers(1, 3, 200)
        batch = [
            {
                "kind": int(k),
                "order_id": int(i),
                "ref": int(r),
                "price": int(p),
                "qty": int(q),
                "side": int(s),
            }
            | {"instrument": int(i) & 1, "flags": lib.XDS_LAST}
            for k, i, r, p, q, s in zip(kinds, ids, refs, prices, qtys, sides, strict=True)
        ]
        expected = [whole(u) for u in batch]
        for u in expected:
            model.apply(u)
        assert books.apply(batch) == expected
        books.audit()
    assert books.stats().levels > 500
    for i in range(2):
        assert books.orders(i, BID, 4000) == model.orders(i, BID)
        assert books.levels(i, ASK, 3000) == model.levels(i, ASK)
    assert lib.xds_books_checksum_all(books.b) == model.checksum_all()
    assert list(books.stats().reasons) == model.reasons


def test_an_order_added_and_executed_in_one_array_leaves_nothing() -> None:
    books = Books(3)
    out = books.apply([order(7), {"kind": lib.XDS_EXECUTE, "order_id": 7, "qty": 10, "flags": 1}])
    assert (out[1]["price"], out[1]["side"]) == (100, BID)
    assert books.levels(0, BID) == []
    books.audit()


def test_queue_position_is_the_quantity_ahead_at_the_price() -> None:
    books = Books(3)
    books.apply([order(1, qty=5), order(2, qty=7), order(3, qty=9), order(4, price=101)])
    found = ffi.new("struct xds_order *")
    assert lib.xds_books_order(books.b, 3, found) == 1
    assert (found.ahead, found.qty, found.price, found.side) == (12, 9, 100, BID)
    assert lib.xds_books_order(books.b, 99, found) == 0
    assert [o[0] for o in books.orders(0, BID)] == [4, 1, 2, 3]


def test_stale_instruments_mark_their_updates_until_they_are_whole_again() -> None:
    books = Books(3)
    lib.xds_books_set_stale(books.b, 0, 1)
    assert books.apply([order(1)])[0]["flags"] & lib.XDS_STALE
    assert not books.apply([order(2, instrument=1)])[0]["flags"] & lib.XDS_STALE
    lib.xds_books_set_stale(books.b, ALL, 1)
    assert lib.xds_books_stale(books.b, 2) == 1
    lib.xds_books_set_stale(books.b, ALL, 0)
    assert not books.apply([order(3)])[0]["flags"] & lib.XDS_STALE
    assert lib.xds_books_stale(books.b, 99) == lib.XDS_ECONFIG


def test_a_sequenced_book_is_clean_again_with_an_update_that_goes_on_and_nothing_else() -> None:
    stale, snapshot = lib.XDS_STALE, lib.XDS_SNAPSHOT
    level = {"kind": lib.XDS_LEVEL_INSERT, "side": 1, "price": 5, "qty": 1, "ref": 1}
    trade = {"kind": lib.XDS_TRADE, "price": 5, "qty": 1}
    clear = {"kind": lib.XDS_CLEAR}
    for update, flags, left in [
        (level, 0, 0), (trade, 0, 0), (level, stale, 1), (trade, stale, 1), (level, snapshot, 1),
        (clear, 0, 1), (clear, snapshot, 1), (level, snapshot | stale, 1),
    ]:  # fmt: skip
        books = Books(2)
        lib.xds_books_set_sequenced(books.b, 1)
        lib.xds_books_set_stale(books.b, ALL, 1)
        (done,) = books.apply([{**update, "instrument": 1, "flags": flags}])
        assert lib.xds_books_stale(books.b, 1) == left, (update, flags)
        assert bool(done["flags"] & stale) == bool(left)
        assert lib.xds_books_stale(books.b, 0) == 1, "another instrument's proof is none"
        other = Books(2)
        lib.xds_books_set_stale(other.b, ALL, 1)
        assert other.apply([{**update, "instrument": 1, "flags": flags}])[0]["flags"] & stale


def test_clearing_all_instruments_leaves_an_empty_book_that_works_again() -> None:
    books, untouched = Books(3), Books(3)
    empty = lib.xds_books_checksum_all(untouched.b)
    books.apply([order(i, instrument=i % 3) for i in range(30)])
    assert lib.xds_books_checksum_all(books.b) != empty
    books.apply([{"kind": lib.XDS_CLEAR, "instrument": ALL, "flags": 1}])
    assert lib.xds_books_checksum_all(books.b) == empty
    books.audit()
    books.apply([order(i) for i in range(30)])
    assert books.stats().orders == 30
    books.audit()


def test_a_crossed_book_is_counted_at_the_end_of_its_event_and_not_before() -> None:
    books = Books(3)
    books.apply([order(1, price=100), order(2, price=99, side=ASK, flags=0)])
    assert books.stats().reasons[lib.XDS_BOOK_CROSSED] == 0
    books.apply([{"kind": lib.XDS_DELETE, "order_id": 1, "flags": lib.XDS_LAST}])
    assert books.stats().reasons[lib.XDS_BOOK_CROSSED] == 0
    books.apply([order(3, price=99)])
    assert books.stats().reasons[lib.XDS_BOOK_CROSSED] == 1


def test_every_level_of_the_pool_can_be_alive_on_one_side() -> None:
    books = Books(3, 1, 5000, 5000)
    for first in range(0, 5000, 1000):
        books.apply([order(i, price=i * 7919 % 5000) for i in range(first, first + 1000)])
    assert books.stats().levels == 5000
    assert books.stats().reasons[lib.XDS_BOOK_NO_LEVEL_ROOM] == 0
    books.apply([order(9999, price=-1)])
    assert books.stats().reasons[lib.XDS_BOOK_NO_ORDER_ROOM] == 1
    books.audit()


@pytest.mark.parametrize("shift", [3, 4, 20, 40, 58])
def test_ids_of_any_stride_are_found_and_removed(shift: int) -> None:
    books = Books(3, 1, 64, 64)
    ids = [i << shift & (1 << 64) - 1 for i in range(60)]
    books.apply([order(i) for i in ids])
    books.apply([{"kind": lib.XDS_DELETE, "order_id": i, "flags": 1} for i in ids[::2]])
    books.audit()
    assert [o[0] for o in books.orders(0, BID)] == ids[1::2]


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": 0},
        {"kind": 4},
        {"max_instruments": 0},
        {"max_levels": 0},
        {"max_orders": 0},
        {"max_orders": (1 << 30) + 1},
        {"max_levels": (1 << 28) + 1},
        {"max_instruments": (1 << 24) + 1},
    ],
)
def test_a_configuration_without_sense_has_no_size_and_no_init(bad: dict[str, int]) -> None:
    good = {"kind": 3, "max_instruments": 1, "max_orders": 1, "max_levels": 1}
    cfg = ffi.new("struct xds_books_config *", good | bad)
    assert lib.xds_books_size(cfg) == 0
    assert lib.xds_books_init(ffi.NULL, cfg) == lib.XDS_ECONFIG


def test_the_memory_that_is_reserved_is_what_the_statistics_show() -> None:
    books = Books(3, 100, 1000, 1000)
    assert books.stats().memory_bytes == books.size


def test_two_million_orders_of_a_full_days_symbols_live_at_once_and_not_one_more() -> None:
    alive, symbols = 2_000_000, 8_900
    books = Books(3, instruments=symbols, orders=alive, levels=1 << 20)
    reserved = books.stats().memory_bytes
    updates = np.zeros(alive, UPDATE)
    number = np.arange(alive)
    updates["kind"], updates["qty"], updates["side"] = lib.XDS_ADD, 100, 1 + number % 2
    updates["order_id"], updates["instrument"] = 1 + 7 * number, number % symbols
    updates["price"] = np.where(number % 2, 20_000, 10_000) + number // symbols % 40
    pointer = ffi.cast("struct xds_update *", updates.ctypes.data)
    assert lib.xds_books_apply(books.b, pointer, alive) == 0
    stats = books.stats()
    assert (stats.orders, stats.orders_max, stats.applied) == (alive, alive, alive)
    assert sum(row[2] for row in books.levels(77, 1)) + sum(row[2] for row in books.levels(77, 2)) == len(
        number[number % symbols == 77]
    )
    (more,) = books.apply([order(10**12)])
    assert more["flags"] & lib.XDS_REJECTED
    assert books.stats().reasons[lib.XDS_BOOK_NO_ORDER_ROOM] == 1
    books.audit()
    updates["kind"] = lib.XDS_DELETE
    assert lib.xds_books_apply(books.b, pointer, alive) == 0
    stats = books.stats()
    assert (stats.orders, stats.levels, stats.memory_bytes) == (0, 0, reserved), "memory never grew"
    books.audit()
