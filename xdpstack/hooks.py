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

TCP connections have a hook of their own, called with each event of what :meth:`Streams.give` handed to it:

    @hooks.stream(np.zeros(1 << 16, np.uint8))
    def echo(room, event):
        if event.what & hooks.ACCEPTABLE:
            while hooks.accept(event) > 0:
                pass
        count = hooks.read(event, room)
        if count > 0:
            hooks.write(event, room[:count])
        if event.what & hooks.FIN:
            hooks.close(event)
        return 0

    streams = node.streams()
    streams.set_hook(echo)
    streams.give(node.listen(7))
    node.engine.start(cpu=1)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xdpstack._ffi import dtype, ffi, lib
from xdpstack.tcp import address16

__all__ = [
    "ACCEPTABLE",
    "FIN",
    "OPEN",
    "READABLE",
    "WRITABLE",
    "Hook",
    "StreamHook",
    "accept",
    "address",
    "close",
    "entered",
    "hook",
    "message",
    "parsed",
    "read",
    "send",
    "send6",
    "send_prepared",
    "stages",
    "stages_of_event",
    "stream",
    "write",
]

_UPDATE = numba.from_dtype(dtype("struct xds_update"))
_OUTBOX = numba.from_dtype(dtype("struct xds_outbox"))
_OUTGOING = dtype("struct xds_outgoing")
_STAGES = dtype("struct xds_stages")
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


def address(text: str) -> np.ndarray[Any, Any]:
    """An address of either family as :func:`send6` takes it. ValueError: it is none."""
    return np.frombuffer(address16(text), np.uint8)


@numba.njit  # type: ignore[untyped-decorator]
def _place(box: Any, size: int) -> bool:
    """Whether the outbox has room for one more datagram of so many bytes."""
    return box.count < box.max and box.cap - box.used >= size  # type: ignore[no-any-return]


@numba.njit  # type: ignore[untyped-decorator]
def _entries(box: Any) -> Any:
    return numba.carray(_pointer(np.uint64(box.list)), (box.max,), _OUTGOING)


@numba.njit  # type: ignore[untyped-decorator]
def _put(outbox: Any, data: Any, dport: int, sport: int, port: int) -> None:
    """The datagram of the next entry, whose destination is there already."""
    box, size = outbox[0], len(data)
    room = numba.carray(_pointer(np.uint64(box.data)), (box.cap,), np.uint8)
    for i in range(size):
        room[box.used + i] = data[i]
    entry = _entries(box)[box.count]
    entry.offset = box.used
    entry.len = size
    entry.dport = dport
    entry.sport = sport
    entry.port = port
    outbox[0].used = box.used + size
    outbox[0].count = box.count + 1


@numba.njit  # type: ignore[untyped-decorator]
def send(outbox: Any, data: Any, dst: int, dport: int, sport: int, port: int) -> int:
    """Queue one datagram: ``data`` (uint8 array) to ``dst`` (IPv4 as ``feed.ip_to_int`` gives it) and
    ``dport`` from ``sport``, by engine port ``port``. Returns 0, XDS_ECAPACITY where the outbox is full."""
    box = outbox[0]
    if not _place(box, len(data)):
        return _FULL
    _entries(box)[box.count].dst = dst
    _put(outbox, data, dport, sport, port)
    return 0


@numba.njit  # type: ignore[untyped-decorator]
def send6(outbox: Any, data: Any, dst: Any, dport: int, sport: int, port: int) -> int:
    """:func:`send` to an address of either family: ``dst`` is 16 bytes as :func:`address` gives them."""
    box = outbox[0]
    if not _place(box, len(data)):
        return _FULL
    entry = _entries(box)[box.count]
    entry.six = 1
    for i in range(16):
        entry.dst6[i] = dst[i]
    _put(outbox, data, dport, sport, port)
    return 0


@numba.njit  # type: ignore[untyped-decorator]
def stages(outbox: Any) -> Any:
    """When the packets of the updates that the hook was called with passed each stage: records of ``struct
    xds_stages`` (``receive``, ``wake``, ``parsed``, ``callback``, CLOCK_TAI ns), none over captures."""
    box = outbox[0]
    return numba.carray(_pointer(np.uint64(box.stages)), (box.n_stages,), _STAGES)


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


# ---- streams --------------------------------------------------------------------------------------

OPEN, READABLE, WRITABLE = int(lib.XDS_STACK_OPEN), int(lib.XDS_STACK_READABLE), int(lib.XDS_STACK_WRITABLE)
FIN, ACCEPTABLE = int(lib.XDS_STACK_FIN), int(lib.XDS_STACK_ACCEPTABLE)

_STREAM = numba.from_dtype(dtype("struct xds_stream"))
_STREAM_SIGNATURE = types.int32(types.voidptr, types.CPointer(_STREAM))


def _call(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the extension that compiled code can call."""
    address = int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))
    return ctypes.CFUNCTYPE(result, *arguments)(address)


_INT, _ANY, _U32, _I64 = ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int64
_accept = _call("xds_stack_accept", _INT, _ANY, _INT)
_read = _call("xds_stack_read", _INT, _ANY, _INT, _ANY, _U32)
_write = _call("xds_stack_write", _INT, _ANY, _INT, _ANY, _U32)
_send = _call("xds_stack_send", _INT, _ANY, _INT, _ANY, _U32, _ANY, _U32)
_close = _call("xds_stack_close", None, _ANY, _INT, _I64)
_parsed = _call("xds_engine_parsed", None, _ANY)
_entered = _call("xds_engine_entered", None, _ANY)
_message = _call("xds_engine_message", None, _ANY)


@numba.njit  # type: ignore[untyped-decorator]
def accept(event: Any) -> int:
    """The number of a connection that came to the event's listener, 0: none. Its own events follow."""
    return _accept(_pointer(np.uint64(event.stack)), event.id)  # type: ignore[no-any-return]


@numba.njit  # type: ignore[untyped-decorator]
def read(event: Any, room: Any) -> int:
    """Bytes of the event's connection into ``room`` (uint8 array): how many, 0: none now."""
    return _read(_pointer(np.uint64(event.stack)), event.id, room.ctypes, len(room))  # type: ignore[no-any-return]


@numba.njit  # type: ignore[untyped-decorator]
def write(event: Any, data: Any) -> int:
    """Give ``data`` (uint8 array) to be sent on the event's connection: how many bytes fitted; WRITABLE comes
    when there is room again. Negative: closed for sending."""
    return _write(_pointer(np.uint64(event.stack)), event.id, data.ctypes, len(data))  # type: ignore[no-any-return]


@numba.njit  # type: ignore[untyped-decorator]
def send_prepared(event: Any, message: int, at: int, change: Any) -> int:
    """Send what :meth:`Connection.prepare` made ready (``message``: its ``address``) on the event's
    connection, with ``change`` (uint8 array, may be empty) from byte ``at`` on. Its length, 0: no room for
    all of it now; negative: closed for sending, or the change lies outside."""
    stack = _pointer(np.uint64(event.stack))
    return _send(stack, event.id, _pointer(np.uint64(message)), at, change.ctypes, len(change))  # type: ignore[no-any-return]


@numba.njit  # type: ignore[untyped-decorator]
def close(event: Any) -> None:
    """Let go of the event's connection: what was written is still sent."""
    _close(_pointer(np.uint64(event.stack)), event.id, event.now)


@numba.njit  # type: ignore[untyped-decorator]
def stages_of_event(event: Any) -> Any:
    """When the first of the bytes that the event tells of passed each stage: one of ``struct xds_stages``,
    ``receive`` 0 where none came; none where ``EngineConfig.stages`` is off."""
    count = 1 if event.stages else 0
    return numba.carray(_pointer(np.uint64(event.stages)), (count,), _STAGES)


@numba.njit  # type: ignore[untyped-decorator]
def parsed(event: Any) -> None:
    """A message was found whole among the event's bytes: its stages have this moment."""
    _parsed(_pointer(np.uint64(event.engine)))


@numba.njit  # type: ignore[untyped-decorator]
def entered(event: Any) -> None:
    """Its handler is entered now, which completes the message's stages. A hook that never says so counts as
    entered when it is called."""
    _entered(_pointer(np.uint64(event.engine)))


@numba.njit  # type: ignore[untyped-decorator]
def message(event: Any) -> None:
    """:func:`parsed` and :func:`entered` at once, where nothing lies between: one reading of the clock."""
    _message(_pointer(np.uint64(event.engine)))


class StreamHook:
    """A compiled hook of streams; ``Streams.set_hook`` takes it. Keeps its state array alive."""

    def __init__(self, function: Callable[..., int], state: np.ndarray[Any, Any]) -> None:
        compiled = numba.njit(function)
        address, length, form = state.ctypes.data, len(state), state.dtype

        @numba.cfunc(_STREAM_SIGNATURE)  # type: ignore[untyped-decorator]
        def entry(context: Any, event: Any) -> int:
            mine = numba.carray(_pointer(np.uint64(address)), (length,), form)
            code: int = compiled(mine, numba.carray(event, (1,))[0])
            return code

        self.state = state
        self._entry = entry
        self.address = int(entry.address)


def stream(state: np.ndarray[Any, Any]) -> Callable[[Callable[..., int]], StreamHook]:
    """Compile ``function(state, event) -> int`` into a :class:`StreamHook`: ``event`` has ``id``, ``what``
    (or-ed :data:`OPEN`, :data:`READABLE`, …), ``now`` and ``port``. A negative return ends a free-running
    engine."""
    if not state.flags.c_contiguous or state.ndim != 1:
        raise ValueError("a hook's state is a contiguous array of one dimension")
    return lambda function: StreamHook(function, state)
