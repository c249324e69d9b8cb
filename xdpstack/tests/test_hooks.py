"""Hooks by numba, and the strategy ``lift``: what they see, what the outbox takes, what a failure does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xdpstack import hooks
from xdpstack._ffi import dtype, ffi, lib
from xdpstack.strategies.lift import ORDER, lift

HOOK = "int(*)(void *, const struct xds_update *, size_t, struct xds_outbox *, int64_t)"


class Outbox:
    """An outbox with canaries behind its bytes and its list."""

    def __init__(self, cap: int = 256, entries: int = 8) -> None:
        self.data = np.full(cap + 64, 0xAB, np.uint8)
        self.list = np.zeros(entries + 1, dtype("struct xds_outgoing"))
        self.list[entries]["len"] = 0xDEAD
        self.raw = ffi.new("struct xds_outbox *")
        self.raw.data = ffi.from_buffer("uint8_t[]", self.data)
        self.raw.list = ffi.from_buffer("struct xds_outgoing[]", self.list)
        self.raw.cap, self.raw.max = cap, entries

    def call(self, hook: hooks.Hook, updates: np.ndarray[Any, Any], now: int = 7) -> int:
        raw = ffi.from_buffer("struct xds_update[]", updates)
        code = int(ffi.cast(HOOK, hook.address)(ffi.NULL, raw, len(updates), self.raw, now))
        assert set(self.data[self.raw.cap :]) == {0xAB}
        assert self.list[self.raw.max]["len"] == 0xDEAD
        return code

    def sent(self) -> list[tuple[bytes, int | bytes, int, int, int]]:
        found = []
        for e in self.list[: self.raw.count]:
            data = bytes(self.data[e["offset"] : e["offset"] + e["len"]])
            to = e["dst6"].tobytes() if e["six"] else int(e["dst"])
            found.append((data, to, int(e["dport"]), int(e["sport"]), int(e["port"])))
        return found


def updates(*rows: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    """(instrument, kind, price, flags) as updates of 5 units."""
    out = np.zeros(len(rows), dtype("struct xds_update"))
    for one, (instrument, kind, price, flags) in zip(out, rows, strict=True):
        one["instrument"], one["kind"], one["price"], one["flags"], one["qty"] = (
            instrument,
            kind,
            price,
            flags,
            5,
        )
    return out


@hooks.hook(np.zeros(4, np.int64))
def sender(state, updates, outbox, now):  # type: ignore[no-untyped-def]
    """Sends as many bytes as the price of each update says."""
    data = np.zeros(300, np.uint8)
    state[2] = now
    for u in updates:
        if hooks.send(outbox, data[: u.price], 0x0100007F, 9000, 9001, 2) == 0:
            state[0] += 1
        else:
            state[1] += 1
    return 0


def test_what_is_sent_lies_one_behind_the_other() -> None:
    box = Outbox()
    sender.state[:] = 0
    assert box.call(sender, updates((1, 1, 3, 0), (1, 1, 0, 0), (1, 1, 5, 0)), now=123) == 0
    where = (0x0100007F, 9000, 9001, 2)
    assert box.sent() == [(bytes(3), *where), (b"", *where), (bytes(5), *where)]
    assert box.raw.used == 8
    assert sender.state.tolist() == [3, 0, 123, 0]


@pytest.mark.parametrize("cap", range(12))
@pytest.mark.parametrize("entries", [0, 1, 2, 3])
def test_an_outbox_takes_what_fits_and_refuses_the_rest(cap: int, entries: int) -> None:
    box = Outbox(cap, entries)
    sender.state[:] = 0
    sizes, took, used = [4, 4, 2, 0], [], 0
    for size in sizes:
        if len(took) < entries and used + size <= cap:
            took.append(size)
            used += size
    assert box.call(sender, updates(*((1, 1, size, 0) for size in sizes))) == 0
    assert [len(data) for data, *_ in box.sent()] == took
    assert box.raw.used == used
    assert sender.state[:2].tolist() == [len(took), len(sizes) - len(took)]


def test_a_state_must_be_one_contiguous_row() -> None:
    for state in (np.zeros((2, 2)), np.zeros(8)[::2]):
        with pytest.raises(ValueError, match="contiguous array of one dimension"):
            hooks.hook(state)


def test_a_return_value_reaches_c() -> None:
    @hooks.hook(np.zeros(1, np.int64))
    def failing(state, updates, outbox, now):  # type: ignore[no-untyped-def]
        return -7

    assert Outbox().call(failing, updates()) == -7


SIX = hooks.address("fd00::9")


@hooks.hook(np.zeros(4, np.int64))
def sender6(state, updates, outbox, now):  # type: ignore[no-untyped-def]
    """As ``sender``, by turns over IPv6 and IPv4."""
    data = np.zeros(300, np.uint8)
    for i in range(len(updates)):
        size = updates[i].price
        if i % 2:
            code = hooks.send(outbox, data[:size], 0x0100007F, 9000, 9001, 2)
        else:
            code = hooks.send6(outbox, data[:size], SIX, 9000, 9001, 2)
        state[0 if code == 0 else 1] += 1
    return 0


@pytest.mark.parametrize("cap", range(12))
@pytest.mark.parametrize("entries", [0, 1, 2, 3])
def test_an_outbox_takes_datagrams_of_both_families(cap: int, entries: int) -> None:
    box = Outbox(cap, entries)
    sender6.state[:] = 0
    sizes, took, used = [4, 4, 2, 0], [], 0
    for at, size in enumerate(sizes):
        if len(took) < entries and used + size <= cap:
            took.append((bytes(size), 0x0100007F if at % 2 else SIX.tobytes(), 9000, 9001, 2))
            used += size
    assert box.call(sender6, updates(*((1, 1, size, 0) for size in sizes))) == 0
    assert box.sent() == took
    assert sender6.state[:2].tolist() == [len(took), len(sizes) - len(took)]


def test_an_address_is_its_16_bytes_ipv4_mapped() -> None:
    assert hooks.address("fd00::9").tobytes() == b"\xfd" + bytes(14) + b"\x09"
    assert hooks.address("10.0.0.9").tobytes() == bytes(10) + b"\xff\xff\x0a\0\0\x09"
    with pytest.raises(ValueError, match="does not appear to be"):
        hooks.address("exchange")


@pytest.mark.parametrize("to", ["10.0.0.9", "fd00::9"])
def test_lift_buys_each_print_at_or_below_its_limit_unless_stale(to: str) -> None:
    hook, box = lift(3, 100, (to, 4001), sport=4002, port=1), Outbox()
    execute, trade, add, stale = lib.XDS_EXECUTE, lib.XDS_TRADE, lib.XDS_ADD, lib.XDS_STALE
    rows = [
        (3, execute, 100, 0), (3, trade, 99, 0), (3, trade, 101, 0), (3, add, 50, 0),
        (4, trade, 50, 0), (3, trade, 50, stale),
    ]  # fmt: skip
    assert box.call(hook, updates(*rows)) == 0
    orders = [np.frombuffer(data, ORDER)[0].tolist() for data, *_ in box.sent()]
    assert orders == [(3, 100, 5), (3, 99, 5)]
    assert {tuple(rest) for _, *rest in box.sent()} == {(hooks.address(to).tobytes(), 4001, 4002, 1)}
    assert hook.state[:2].tolist() == [4, 2]  # prints seen, orders sent


def test_lift_counts_no_order_that_the_outbox_refused() -> None:
    hook, box = lift(3, 100, ("10.0.0.9", 4001), sport=4002), Outbox(cap=30)
    assert box.call(hook, updates(*((3, int(lib.XDS_TRADE), 90, 0) for _ in range(3)))) == 0
    assert (len(box.sent()), hook.state[:2].tolist()) == (1, [3, 1])
