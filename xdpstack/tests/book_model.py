"""The order books, slow and obvious: lists of levels, lists of orders, nothing clever.

It says what ``cffi_build/cores/book`` must do, refusals included, and recomputes the checksum from
its own lists. One update is a dict with the fields of ``struct xds_update``; ``apply`` changes it
as the native book does and returns the reason of a refusal, or 0.
"""

from __future__ import annotations

from typing import Any

from xdpstack._ffi import lib

BID, ASK = lib.XDS_BID, lib.XDS_ASK
NO_PRICE = lib.XDS_NO_PRICE
ALL = 0xFFFFFFFF
MAX = (1 << 63) - 1
BY_LEVEL = range(lib.XDS_LEVEL_INSERT, lib.XDS_LEVEL_DELETE_FROM + 1)


class Level:
    """One price. ``orders`` lists [id, qty] in time order (L3); else qty and count are the venue's."""

    def __init__(self, price: int, qty: int = 0, count: int = 0) -> None:
        self.price, self.set_qty, self.set_count = price, qty, count
        self.orders: list[list[int]] = []

    @property
    def qty(self) -> int:
        return sum(q for _, q in self.orders) if self.orders else self.set_qty

    @property
    def count(self) -> int:
        return len(self.orders) if self.orders else self.set_count


class Model:
    """All instruments. ``sides[instrument, implied, side]`` lists the levels, best first."""

    def __init__(
        self, kind: int, instruments: int, max_orders: int = 1 << 30, max_levels: int = 1 << 28
    ) -> None:
        self.kind, self.instruments = kind, instruments
        self.max_orders, self.max_levels = max_orders, max_levels
        self.depth: dict[tuple[int, int], int] = {}
        self.stale: set[int] = set()
        self.reasons = [0] * 16
        self.trades = self.updates = self.applied = 0
        self.touched: set[tuple[int, int]] = set()
        self.reset()

    def reset(self) -> None:
        self.sides: dict[tuple[int, int, int], list[Level]] = {
            (i, implied, side): []
            for i in range(self.instruments)
            for implied in (0, 1)
            for side in (BID, ASK)
        }
        self.by_level: set[tuple[int, int, int]] = set()
        self.where: dict[int, tuple[int, int]] = {}  # order id -> instrument, side
        self.touched.clear()

    def levels_alive(self) -> int:
        return sum(len(levels) for levels in self.sides.values())

    def find(self, order_id: int) -> tuple[list[Level], Level, list[int]] | None:
        if order_id not in self.where:
            return None
        instrument, side = self.where[order_id]
        levels = self.sides[instrument, 0, side]
        return next((levels, v, order) for v in levels for order in v.orders if order[0] == order_id)

    @staticmethod
    def better(side: int, a: int, b: int) -> bool:
        return a > b if side == BID else a < b

    def no_room(self, levels: list[Level], price: int, qty: int) -> int:
        """The reason why ``qty`` cannot join ``price``, 0 when it can."""
        for level in levels:
            if level.price == price:
                return lib.XDS_BOOK_BAD_UPDATE if level.qty + qty > MAX else 0
        return lib.XDS_BOOK_NO_LEVEL_ROOM if self.levels_alive() == self.max_levels else 0

    def level_at(self, levels: list[Level], side: int, price: int) -> Level:
        for i, level in enumerate(levels):
            if level.price == price:
                return level
            if self.better(side, price, level.price):
                levels.insert(i, Level(price))
                return levels[i]
        levels.append(Level(price))
        return levels[-1]

    def remove(self, levels: list[Level], level: Level, order: list[int]) -> None:
        level.orders.remove(order)
        if not level.orders:
            levels.remove(level)
        del self.where[order[0]]

    def crossed(self, instrument: int, implied: int) -> bool:
        bids, asks = self.sides[instrument, implied, BID], self.sides[instrument, implied, ASK]
        return bool(bids and asks and bids[0].price >= asks[0].price)

    def apply(self, u: dict[str, Any]) -> int:
        why = self.judge(u)
        self.updates += 1
        if why:
            self.reasons[why] += 1
            u["flags"] |= lib.XDS_REJECTED
        else:
            self.applied += 1
        if u["flags"] & lib.XDS_LAST:
            self.reasons[lib.XDS_BOOK_CROSSED] += sum(self.crossed(*book) for book in self.touched)
            self.touched.clear()
        return why

    def judge(self, u: dict[str, Any]) -> int:
        kind, instrument = u["kind"], u["instrument"]
        if kind == lib.XDS_CLEAR and instrument == ALL:
            self.reset()
            return 0
        if instrument >= self.instruments:
            return lib.XDS_BOOK_BAD_INSTRUMENT
        if instrument in self.stale:
            u["flags"] |= lib.XDS_STALE
        if kind in (lib.XDS_TRADE, lib.XDS_TRADE_BREAK):
            self.trades += 1
            return 0
        if kind == lib.XDS_CLEAR:
            self.clear(instrument)
            return 0
        implied = 1 if self.kind == 2 and u["flags"] & lib.XDS_IMPLIED else 0
        why = self.apply_order(u) if self.kind == 3 else self.apply_level(u, implied)
        if not why:
            self.touched.add((instrument, implied))
        return why

    def clear(self, instrument: int) -> None:
        for key, levels in self.sides.items():
            if key[0] == instrument:
                levels.clear()
                self.by_level.discard(key)
        self.where = {k: v for k, v in self.where.items() if v[0] != instrument}

    def apply_order(self, u: dict[str, Any]) -> int:
        kind = u["kind"]
        if kind == lib.XDS_ADD:
            return self.add(u)
        if kind in (lib.XDS_EXECUTE, lib.XDS_EXECUTE_AT, lib.XDS_REDUCE, lib.XDS_DELETE):
            return self.leave(u)
        if kind in (lib.XDS_REPLACE, lib.XDS_MODIFY):
            return self.move(u)
        return int(lib.XDS_BOOK_BAD_UPDATE)

    def add(self, u: dict[str, Any]) -> int:
        if u["side"] not in (BID, ASK) or u["price"] == NO_PRICE or u["qty"] <= 0:
            return lib.XDS_BOOK_BAD_UPDATE
        if u["order_id"] in self.where:
            return lib.XDS_BOOK_DUPLICATE_ORDER
        if len(self.where) == self.max_orders:
            return lib.XDS_BOOK_NO_ORDER_ROOM
        levels = self.sides[u["instrument"], 0, u["side"]]
        if why := self.no_room(levels, u["price"], u["qty"]):
            return why
        self.level_at(levels, u["side"], u["price"]).orders.append([u["order_id"], u["qty"]])
        self.where[u["order_id"]] = (u["instrument"], u["side"])
        return 0

    def leave(self, u: dict[str, Any]) -> int:
        found = self.find(u["order_id"])
        if not found:
            return lib.XDS_BOOK_UNKNOWN_ORDER
        levels, level, order = found
        instrument, side = self.where[u["order_id"]]
        if instrument != u["instrument"]:
            return lib.XDS_BOOK_BAD_INSTRUMENT
        if u["kind"] == lib.XDS_DELETE:
            u["qty"] = order[1]
        elif u["qty"] <= 0 or (u["kind"] == lib.XDS_EXECUTE_AT and u["price"] == NO_PRICE):
            return lib.XDS_BOOK_BAD_UPDATE
        elif u["qty"] > order[1]:
            return lib.XDS_BOOK_EXCESS_QTY
        u["side"] = side
        if u["kind"] != lib.XDS_EXECUTE_AT:
            u["price"] = level.price
        if u["qty"] < order[1]:
            order[1] -= u["qty"]
        else:
            self.remove(levels, level, order)
        return 0

    def move(self, u: dict[str, Any]) -> int:
        old = u["ref"] if u["kind"] == lib.XDS_REPLACE else u["order_id"]
        if u["price"] == NO_PRICE or u["qty"] <= 0:
            return lib.XDS_BOOK_BAD_UPDATE
        found = self.find(old)
        if not found:
            return lib.XDS_BOOK_UNKNOWN_ORDER
        levels, level, order = found
        instrument, side = self.where[old]
        if instrument != u["instrument"]:
            return lib.XDS_BOOK_BAD_INSTRUMENT
        if u["order_id"] != old and u["order_id"] in self.where:
            return lib.XDS_BOOK_DUPLICATE_ORDER
        keeps = u["kind"] == lib.XDS_MODIFY and u["flags"] & lib.XDS_KEEPS_PRIORITY
        if keeps and level.price == u["price"]:
            if level.qty - order[1] + u["qty"] > MAX:
                return lib.XDS_BOOK_BAD_UPDATE
            order[1] = u["qty"]
            u["side"] = side
            return 0
        if why := self.no_room(levels, u["price"], u["qty"]):
            return why
        u["side"] = side
        self.remove(levels, level, order)
        self.level_at(levels, side, u["price"]).orders.append([u["order_id"], u["qty"]])
        self.where[u["order_id"]] = (instrument, side)
        return 0

    def apply_level(self, u: dict[str, Any], implied: int) -> int:
        if u["side"] not in (BID, ASK):
            return lib.XDS_BOOK_BAD_UPDATE
        key = (u["instrument"], implied, u["side"])
        levels, placed = self.sides[key], key in self.by_level
        kind, number, count = u["kind"], u["ref"] & 0xFFFFFFFF, u["ref"] >> 32
        if kind == lib.XDS_LEVEL:
            return lib.XDS_BOOK_BAD_UPDATE if levels and placed else self.set_level(u, key)
        if kind not in BY_LEVEL or (levels and not placed):
            return lib.XDS_BOOK_BAD_UPDATE
        if kind in (lib.XDS_LEVEL_INSERT, lib.XDS_LEVEL_CHANGE):
            return self.place_level(u, key, number, count)
        if kind == lib.XDS_LEVEL_DELETE_THRU:
            number = len(levels)
        elif not 1 <= number <= len(levels):
            return lib.XDS_BOOK_BAD_LEVEL
        if kind == lib.XDS_LEVEL_DELETE:
            u["price"] = levels[number - 1].price
            del levels[number - 1]
        else:
            del levels[:number]
        return 0

    def set_level(self, u: dict[str, Any], key: tuple[int, int, int]) -> int:
        levels = self.sides[key]
        if u["price"] == NO_PRICE or u["qty"] < 0:
            return lib.XDS_BOOK_BAD_UPDATE
        there = next((level for level in levels if level.price == u["price"]), None)
        if not u["qty"]:
            if not there:
                return lib.XDS_BOOK_BAD_LEVEL
            levels.remove(there)
            return 0
        if not there:
            if self.levels_alive() == self.max_levels:
                return lib.XDS_BOOK_NO_LEVEL_ROOM
            there = self.level_at(levels, u["side"], u["price"])
        there.set_qty, there.set_count = u["qty"], u["ref"] & 0xFFFFFFFF
        self.by_level.discard(key)
        return 0

    def place_level(self, u: dict[str, Any], key: tuple[int, int, int], number: int, count: int) -> int:
        levels, depth = self.sides[key], self.depth.get(key[:2], 0)
        if u["price"] == NO_PRICE or u["qty"] <= 0:
            return lib.XDS_BOOK_BAD_UPDATE
        level = Level(u["price"], u["qty"], count)
        if u["kind"] == lib.XDS_LEVEL_CHANGE:
            if not 1 <= number <= len(levels):
                return lib.XDS_BOOK_BAD_LEVEL
            levels[number - 1] = level
        else:
            if not 1 <= number <= len(levels) + 1 or (depth and number > depth):
                return lib.XDS_BOOK_BAD_LEVEL
            if depth:
                del levels[depth - 1 :]
            if self.levels_alive() == self.max_levels:
                return lib.XDS_BOOK_NO_LEVEL_ROOM
            levels.insert(number - 1, level)
            self.by_level.add(key)
        above = levels[number - 2] if number > 1 else None
        below = levels[number] if number < len(levels) else None
        sound = not above or self.better(key[2], above.price, level.price)
        sound = sound and (not below or self.better(key[2], level.price, below.price))
        self.reasons[lib.XDS_BOOK_DISORDERED] += not sound
        return 0

    def levels(self, instrument: int, side: int) -> list[tuple[int, int, int, int]]:
        """(price, qty, orders, flags), outright and implied merged best first, outright before implied."""
        outright, implied = (list(self.sides[instrument, i, side]) for i in (0, 1))
        out = []
        while outright or implied:
            second = not outright or bool(implied and self.better(side, implied[0].price, outright[0].price))
            level = (implied if second else outright).pop(0)
            out.append((level.price, level.qty, level.count, lib.XDS_IMPLIED if second else 0))
        return out

    def orders(self, instrument: int, side: int) -> list[tuple[int, int, int, int]]:
        """(id, price, qty, ahead) in price-time order."""
        out = []
        for level in self.sides[instrument, 0, side]:
            ahead = 0
            for order_id, qty in level.orders:
                out.append((order_id, level.price, qty, ahead))
                ahead += qty
        return out

    def checksum(self, instrument: int) -> int:
        """FNV-1a 64 as documented in cffi_build/cores/book/README.md."""
        data = b""
        for implied in (0, 1) if self.kind == 2 else (0,):
            for side in (BID, ASK):
                levels = self.sides[instrument, implied, side]
                data += len(levels).to_bytes(4, "little")
                for level in levels:
                    data += level.price.to_bytes(8, "little", signed=True)
                    data += level.qty.to_bytes(8, "little") + level.count.to_bytes(4, "little")
                    for order_id, qty in level.orders:
                        data += order_id.to_bytes(8, "little") + qty.to_bytes(8, "little")
        return fnv1a(data)

    def checksum_all(self) -> int:
        data = b""
        for i in range(self.instruments):
            if any(levels for key, levels in self.sides.items() if key[0] == i):
                data += i.to_bytes(4, "little") + self.checksum(i).to_bytes(8, "little")
        return fnv1a(data)


def fnv1a(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h
