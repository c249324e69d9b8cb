"""Hooks of the turn written in Python, compiled by numba: native code, no GIL, no allocation.

    state = np.zeros(4, np.int64)

    @hooks.hook(state)
    def strategy(state, updates, outbox, now):
        for u in updates:                      # records of struct xds_update
            if u.kind == EXECUTE:
                hooks.send(outbox, payload, dst, 9000, 9001, 0)
        return 0

    engine.set_hook(strategy)

``updates`` are those of one run (one feed, one channel), after the books took them; what is sent
leaves in the same turn. A negative return ends a free-running engine. Needs numba
(``pip install 'xdpstack[hooks]'``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xdpstack._ffi import dtype, lib

__all__ = ["Hook", "hook", "send"]

_UPDATE = numba.from_dtype(dtype("struct xds_update"))
_OUTBOX = numba.from_dtype(dtype("struct xds_outbox"))
_OUTGOING = dtype("struct xds_outgoing")
_SIGNATURE = types.int32(
    types.voidptr, types.CPointer(_UPDATE), types.uintp, types.CPointer(_OUTBOX), types.int64
)
_FULL = int(lib.XDS_ECAPACITY)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    """An address as numba's void pointer."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), generate


@numba.njit  # type: ignore[untyped-decorator]
def send(outbox: Any, data: Any, dst: int, dport: int, sport: int, port: int) -> int:
    """Queue one datagram: ``data`` (uint8 array) to ``dst`` (IPv4 as ``feed.ip_to_int`` gives it) and
    ``dport`` from ``sport``, by engine port ``port``. Returns 0, XDS_ECAPACITY where the outbox is full."""
    box = outbox[0]
    size = len(data)
    if box.count >= box.max or box.cap - box.used < size:
        return _FULL
    room = numba.carray(_pointer(np.uint64(box.data)), (box.cap,), np.uint8)
    entries = numba.carray(_pointer(np.uint64(box.list)), (box.max,), _OUTGOING)
    for i in range(size):
        room[box.used + i] = data[i]
    entry = entries[box.count]
    entry.offset = box.used
    entry.len = size
    entry.dst = dst
    entry.dport = dport
    entry.sport = sport
    entry.port = port
    outbox[0].used = box.used + size
    outbox[0].count = box.count + 1
    return 0


class Hook:
    """A compiled hook; ``Engine.set_hook`` takes it. Keeps its state array alive."""

    def __init__(self, function: Callable[..., int], state: np.ndarray[Any, Any]) -> None:
        compiled = numba.njit(function)
        address, length, form = state.ctypes.data, len(state), state.dtype

        @numba.cfunc(_SIGNATURE)  # type: ignore[untyped-decorator]
        def entry(context: Any, updates: Any, count: int, outbox: Any, now: int) -> int:
            mine = numba.carray(_pointer(np.uint64(address)), (length,), form)
            code: int = compiled(mine, numba.carray(updates, (count,)), numba.carray(outbox, (1,)), now)
            return code

        self.state = state
        self._entry = entry
        self.address = int(entry.address)


def hook(state: np.ndarray[Any, Any]) -> Callable[[Callable[..., int]], Hook]:
    """Compile ``function(state, updates, outbox, now) -> int`` into a :class:`Hook`."""
    if not state.flags.c_contiguous or state.ndim != 1:
        raise ValueError("a hook's state is a contiguous array of one dimension")
    return lambda function: Hook(function, state)
