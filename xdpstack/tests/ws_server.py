"""A WebSocket server on the far stack of an engine over a pipe: wsproto thinks, the test moves the bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError

__all__ = ["Server"]

Answer = Callable[[Request], Event | bytes]


class Server:
    """Whoever connects is accepted, as ``answer`` says; ends its side when the client does, unless silent."""

    def __init__(self, live: Any, port: int, answer: Answer | None = None) -> None:
        self.engine, self.answer = live.engine, answer or (lambda request: AcceptConnection())
        self.listener = live.far.listen(port)
        self.connection: Any = None
        self.ws = WSConnection(ConnectionType.SERVER)
        self.events: list[Event] = []
        self.raw = b""
        self.silent = self.ended = False
        """Silent: nothing is answered; ended: the client's FIN came."""
        self._out = bytearray()

    def turn(self) -> None:
        """Move what can be moved; the engine stands still meanwhile. A connection that was reset is left."""
        with self.engine.paused(), contextlib.suppress(ConnectionError):
            if self.connection is None:
                self.connection = self.listener.take()
            if self.connection is None or self.connection.closed:
                return
            self.connection.streams.gather()  # whether its end came
            while not self.ended and (data := self.connection.take()) is not None:
                self.ended = data == b""
                self.raw += data
                if data and not self.silent:
                    self.ws.receive_data(data)
                    for event in self.ws.events():
                        self.handle(event)
            if self._out:
                del self._out[: self.connection.put(bytes(self._out))]
            if self.ended and not self.silent and not self._out:
                self.connection.close()

    def handle(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Request):
            answer = self.answer(event)
            self._out += answer if isinstance(answer, bytes) else self.ws.send(answer)
        elif isinstance(event, Ping):
            self._out += self.ws.send(event.response())
        elif isinstance(event, CloseConnection):
            with contextlib.suppress(LocalProtocolError):  # ours went first
                self._out += self.ws.send(event.response())

    def send(self, *what: Event | bytes) -> None:
        """With the next turn."""
        for one in what:
            self._out += one if isinstance(one, bytes) else self.ws.send(one)

    def hang_up(self) -> None:
        """All was sent: end the connection, as a server does first (RFC 6455 7.1.1)."""
        with self.engine.paused():
            if not self.connection.closed:
                self.connection.close()

    def reset(self) -> None:
        with self.engine.paused():
            self.connection.abort()

    @property
    def is_drained(self) -> bool:
        return not self._out

    def said(self, form: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, form)]

    def messages(self) -> list[str | bytes]:
        """Whole ones."""
        found: list[str | bytes] = []
        whole = True
        for event in self.events:
            if isinstance(event, (TextMessage, BytesMessage)):
                data = event.data if isinstance(event.data, str) else bytes(event.data)
                if whole:
                    found.append(data)
                else:
                    found[-1] += data  # type: ignore[operator]
                whole = event.message_finished
        return found
