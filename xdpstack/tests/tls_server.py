"""A TLS server on the far stack of an engine over a pipe: Python's ssl thinks, the test moves the bytes."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

from xdpstack.tests.tls_peer import Server

__all__ = ["TlsConnection", "TlsListener"]


class TlsConnection:
    """Plain text of a connection, with the calls of a plain one."""

    def __init__(self, under: Any, context: ssl.SSLContext | None) -> None:
        """Without ``context`` it says nothing of its own."""
        self.under, self.tls = under, Server(context) if context else None
        self.cipher = b""
        """All that came."""
        self.out = bytearray()
        """Cipher text that waits."""
        self.ended = False
        """The client's FIN came."""
        self.silent = False
        """What comes is read, and goes no further."""
        self._seen = 0

    @property
    def closed(self) -> bool:
        return bool(self.under.closed)

    @property
    def streams(self) -> Any:
        return self.under.streams

    def move(self) -> None:
        """Move what can be moved. ConnectionError: there is nothing left to move it by."""
        self.streams.gather()
        while not self.ended and (data := self.under.take()) is not None:
            self.ended = data == b""
            self.cipher += data
            if data and self.tls and not self.silent:
                self.tls.put(data)
        if self.tls and not self.silent:
            self.out += self.tls.take()
        if self.out:
            del self.out[: self.under.put(bytes(self.out))]

    def take(self) -> bytes | None:
        self.move()
        assert self.tls is not None
        data = self.tls.heard[self._seen :]
        self._seen += len(data)
        return data or (b"" if self.tls.shut or self.ended else None)

    def put(self, data: bytes) -> int:
        assert self.tls is not None
        self.tls.say(data)
        self.move()
        return len(data)

    def bye(self) -> None:
        """close_notify."""
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLError):  # it had failed
            self.tls.bye()
        self.move()

    def shutdown(self) -> None:
        self.bye()
        self.under.shutdown()

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(ConnectionError):
                self.bye()
            self.under.close()

    def abort(self) -> None:
        self.under.abort()


class TlsListener:
    """Whoever comes at a port of the far stack."""

    def __init__(self, live: Any, port: int, context: ssl.SSLContext | None) -> None:
        self.live, self.context = live, context
        self._listener = live.far.listen(port)
        self.came: list[TlsConnection] = []
        self.greeting = b""
        """What goes before all that TLS says."""

    def take(self) -> TlsConnection | None:
        one = self._listener.take()
        if one is not None:
            self.came.append(TlsConnection(one, self.context))
            self.came[-1].out += self.greeting
        return self.came[-1] if one is not None else None

    def turn(self) -> None:
        """Move what can be moved of the newest; the engine stands still meanwhile."""
        with self.live.engine.paused(), contextlib.suppress(ConnectionError):
            self.take()
            if self.came and not (far := self.came[-1]).closed:
                far.move()
                if far.ended and not far.out:  # it sends no more, so nobody hears us
                    far.under.close()
