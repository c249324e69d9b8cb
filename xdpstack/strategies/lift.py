"""The smallest strategy that trades: when an instrument prints at or below a price, buy.

A ``numba`` hook in the engine's turn: the order (24 bytes: instrument, price, quantity, little-endian)
leaves by UDP, over either family, in the very turn that decoded the print, without Python on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xdpstack import hooks
from xdpstack._ffi import lib

__all__ = ["ORDER", "lift"]

ORDER = np.dtype([("instrument", "<u8"), ("price", "<i8"), ("qty", "<i8")])

_EXECUTE, _TRADE, _STALE = lib.XDS_EXECUTE, lib.XDS_TRADE, lib.XDS_STALE


def lift(instrument: int, limit: int, to: tuple[str, int], *, sport: int, port: int = 0) -> hooks.Hook:
    """Send one order each time ``instrument`` trades at ``limit`` (its scale) or below, unless its book
    is stale. ``hook.state`` begins with the prints seen and the orders sent."""
    dst, dport = hooks.address(to[0]), to[1]

    @hooks.hook(np.zeros(5, np.int64))
    def strategy(state: Any, updates: Any, outbox: Any, now: int) -> int:
        for i in range(len(updates)):
            u = updates[i]
            if u.instrument != instrument or (u.kind != _EXECUTE and u.kind != _TRADE):
                continue
            state[0] += 1
            if u.price > limit or u.flags & _STALE:
                continue
            order = state[2:5]  # room of ours: a hook allocates nothing
            order[0] = instrument
            order[1] = u.price
            order[2] = u.qty
            if hooks.send6(outbox, order.view(np.uint8), dst, dport, sport, port) == 0:
                state[1] += 1
        return 0

    return strategy
