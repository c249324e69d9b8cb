"""Bytes of a connection without a copy: views of what came, room for what is to be sent.

    with connection.read_view() as view:  # in the stack's own receive memory
        price = view.data[8:16]
        view.done(64)  # so many are read; the rest stays
    with connection.write_view() as room:  # in its send memory
        room.data[:5] = b"hello"
        room.done(5)  # sent

A lease ends with ``done()``, with its ``with`` block, or when the connection is closed. It is no longer to
be used then: the memoryview raises ValueError, :attr:`Lease.data` LocalProtocolError (counted in
``stats()``); while a slice of it or an array looks at the memory, ``done()`` is refused. What comes meanwhile
overwrites nothing.
"""

from __future__ import annotations

import contextlib
import errno
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from xdpstack._ffi import ffi, lib
from xdpstack.closing import Closing
from xdpstack.errors import CapacityError, LocalProtocolError

if TYPE_CHECKING:
    from xdpstack.streams import Connection, Streams

__all__ = ["Lease", "Leasing", "Prepared", "Room", "View"]

_MOST = 1 << 30


class Lease(Closing):
    """Some of a connection's memory, for a while."""

    word = "lease"
    counter = ""

    def __init__(self, connection: Connection, memory: np.ndarray[Any, Any]) -> None:
        self._connection, self._data, self._length = connection, memory.data, len(memory)
        self._lent = weakref.ref(memory)  # it lives as long as anybody looks
        self.ended = False
        connection.streams.leased[self.counter + "s"] += 1

    @property
    def data(self) -> memoryview:
        """The bytes. LocalProtocolError after the lease's end."""
        self._alive()
        return self._data

    def __len__(self) -> int:
        return self._length

    def _alive(self) -> None:
        if self.ended:
            self._connection.streams.leased["misused"] += 1
            raise LocalProtocolError(f"{self._connection.what}: this {self.word}'s lease has ended")

    def _end(self) -> None:
        with contextlib.suppress(BufferError):
            self._data.release()
        if (memory := self._lent()) is not None:
            self._data = memory.data
            raise LocalProtocolError(
                f"{self._connection.what}: a slice or an array looks at the {self.word}; let go of it, or "
                "copy it, before the lease ends"
            )
        self.ended = True
        self._forget()

    def _forget(self) -> None:
        """The connection may lend again."""
        raise NotImplementedError

    def close(self) -> None:
        """Give it back, with nothing read or sent. Twice is calm."""
        if not self.ended:
            self._end()

    def _count(self, count: int) -> int:
        if not 0 <= count <= self._length:
            raise CapacityError(
                f"{self._connection.what}: {count:,} bytes of a {self.word} of {self._length:,}"
            )
        return count

    def _used(self, count: int) -> None:
        self._connection.streams.leased[self.counter + "_bytes"] += count

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._length} bytes{', ended' if self.ended else ''}>"


class View(Lease):
    """What has come, in order, up to the end of the receive buffer's ring: there may be more behind it.
    Read-only. A ``with`` block that was left without :meth:`done` has read all of it, by an exception
    nothing."""

    word, counter = "view", "view"

    def done(self, count: int | None = None) -> None:
        """The first ``count`` bytes (None: all) are read; the rest comes next. CapacityError."""
        self._alive()
        count = self._count(self._length if count is None else count)
        self._end()
        self._used(count)
        one = self._connection
        one.streams.stack.consume(one.number, count)
        one.streams.pump()  # the window has grown: the peer may be waiting for it

    def _forget(self) -> None:
        self._connection._view = None

    def __exit__(self, kind: object = None, *_: object) -> None:
        if kind is None and not self.ended:
            self.done()
        else:
            self.close()


class Room(Lease):
    """Where the next bytes to be sent lie, up to the end of the send buffer's ring. What was not committed by
    :meth:`done` is not sent."""

    word, counter = "room", "room"

    def done(self, count: int | None = None) -> None:
        """The first ``count`` bytes (None: all) are to be sent, now. CapacityError; BrokenPipeError and
        what ended the connection meanwhile."""
        self._alive()
        count = self._count(self._length if count is None else count)
        self.close()
        one = self._connection
        one.check()
        try:
            one.streams.stack.commit(one.number, count)
        except ValueError:
            raise BrokenPipeError(errno.EPIPE, f"{one.what}: closed for sending") from None
        self._used(count)
        one.streams.pump()

    def _forget(self) -> None:
        self._connection._filled = None


class Prepared:
    """A message that is ready to be sent: its bytes are laid down and summed, the headers the connection's.
    ``address``: for native hooks (:func:`xdpstack.hooks.send_prepared`), good while this object lives."""

    def __init__(self, connection: Connection, data: bytes | bytearray | memoryview) -> None:
        self._connection = connection
        self._data = ffi.from_buffer("uint8_t[]", bytearray(data))
        self.raw = ffi.new("struct xds_tcp_message *")
        lib.xds_tcp_prepare(self.raw, self._data, len(self._data))
        self.address = int(ffi.cast("uintptr_t", self.raw))

    def __len__(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return bytes(ffi.buffer(self._data))

    def patch(self, at: int, change: bytes | bytearray | memoryview) -> None:
        """Change some bytes, ahead of time. CapacityError: outside of the message."""
        if at < 0 or lib.xds_tcp_patch(self.raw, at, ffi.from_buffer("uint8_t[]", change), len(change)):
            raise CapacityError(f"{len(change):,} bytes at {at:,} of a message of {len(self):,}")

    def send(self, at: int = 0, change: bytes = b"") -> bool:
        """Send it now, with ``change`` from byte ``at`` on, which stays for the next time. False: there is no
        room for all of it; nothing was sent. Raises what :meth:`Connection.put` does, and CapacityError."""
        one = self._connection
        one.check()
        if one._filled is not None:
            raise LocalProtocolError(f"{one.what}: room is reserved; commit it first")
        if change and not 0 <= at <= len(self) - len(change):
            raise CapacityError(f"{len(change):,} bytes at {at:,} of a message of {len(self):,}")
        done = lib.xds_stack_send(one.streams.stack.core, one.number, self.raw, at, change, len(change))
        if done < 0:
            raise BrokenPipeError(errno.EPIPE, f"{one.what}: closed for sending")
        if done:
            one.streams.pump()
        return bool(done)

    def __repr__(self) -> str:
        return f"<Prepared message of {len(self)} bytes>"


class Leasing:
    """The part of a :class:`~xdpstack.streams.Connection` that lends its memory: one view and one room at a
    time, between which ``take`` and ``put`` are refused."""

    streams: Streams
    number: int
    what: str
    timeout: float | None
    closed: bool
    at_end: bool
    error: OSError | None
    _view: View | None = None
    _filled: Room | None = None

    def check(self) -> None:
        """The connection's."""
        raise NotImplementedError

    def take_view(self, most: int = _MOST) -> View | None:
        """A view of up to ``most`` bytes that are there; None: none now; an empty one: the peer sends no
        more. Raises what ended the connection, once everything before it was read; LocalProtocolError: the
        last view was not given back."""
        if self.closed:
            raise LocalProtocolError(f"{self.what} was closed")
        if self._view is not None:
            raise LocalProtocolError(f"{self.what}: a view is leased; give it back first")
        pointer, count = self.streams.stack.peek(self.number)
        if not count and not (self.at_end and self.error is None):
            self.check()
            return None
        self._view = self._lend(View, pointer, min(count, max(0, most)), True)
        return self._view

    def put_view(self, most: int = _MOST) -> Room | None:
        """Room for up to ``most`` bytes; None: none now. Raises what :meth:`Connection.put` does, and
        LocalProtocolError: the last room was not committed."""
        self.check()
        if self._filled is not None:
            raise LocalProtocolError(f"{self.what}: room is reserved; commit it first")
        try:
            pointer, count = self.streams.stack.reserve(self.number)
        except ValueError:
            self.streams.gather()
            self.check()  # it may have ended a moment ago
            raise BrokenPipeError(errno.EPIPE, f"{self.what}: closed for sending") from None
        if not count:
            return None
        self._filled = self._lend(Room, pointer, min(count, max(0, most)), False)
        return self._filled

    def _lend(self, kind: Any, pointer: Any, count: int, read_only: bool) -> Any:
        memory = np.frombuffer(self.streams.stack.arena.view(pointer, count), np.uint8)
        memory.flags.writeable = not read_only
        return kind(self, memory)

    def read_view(self, most: int = _MOST) -> View:
        """The same, waiting for at least one byte or the peer's end. TimeoutError."""
        view: View = self._wait_for(lambda: self.take_view(most), f"read from the {self.what}")
        return view

    def write_view(self, most: int = _MOST) -> Room:
        """The same, waiting for room. TimeoutError."""
        room: Room = self._wait_for(lambda: self.put_view(most), f"write to the {self.what}")
        return room

    def prepare(self, data: bytes | bytearray | memoryview) -> Prepared:
        """Make a message ready before it is needed: :meth:`Prepared.send` is one call. CapacityError: it is
        empty, or larger than the send buffer."""
        if not 0 < len(data) <= self.streams.stack.send_bytes:
            most = self.streams.stack.send_bytes
            raise CapacityError(f"{self.what}: a message of {len(data):,} bytes; wanted from 1 to {most:,}")
        return Prepared(cast("Connection", self), data)

    def _wait_for(self, take: Callable[[], Any], what: str) -> Any:
        found: list[Any] = []

        def come() -> bool:
            if (one := take()) is not None:
                found.append(one)
            return bool(found)

        self.streams.wait(come, self.timeout, what)
        return found[0]

    def _end_leases(self) -> None:
        """The connection is closed: whoever looks at an array still sees stale bytes, and no others'."""
        for one in (self._view, self._filled):
            if one is not None:
                with contextlib.suppress(LocalProtocolError):
                    one.close()
                one.ended = True
        self._view = self._filled = None
