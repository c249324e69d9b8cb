"""The ends of ``stamp.ws`` and ``stamp.fix``: an engine with a session that a command opened, and its venue.

The session's events go onto a tape that nobody reads. The venue is another engine's connection: it answers
the handshake here, in a few lines, and sends messages of 64 bytes (FIX: of 72 and more).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from xdpstack._ffi import check, ffi, lib
from xdpstack.bench.stamp import BODY, ENDS, PORT, Hooks, Stream
from xdpstack.errors import SetupError
from xdpstack.fix import FixSettings
from xdpstack.publish import Commander, CommandsConfig, Publication, PublishConfig
from xdpstack.sessions import SessionConfig
from xdpstack.ws import WsSettings

__all__ = ["FixSession", "WsSession", "fix_messages", "ws_messages"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TURNS = 100
"""In which a session opens, or something is broken."""


class _Session(Stream):
    """An engine whose session takes what another engine's connection writes."""

    config: ClassVar[SessionConfig]

    def __init__(self, stages: bool, hooks: Hooks, stack: contextlib.ExitStack) -> None:
        venue, trader = self._joined(stages, stack)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="xdpstack-bench-", dir="/dev/shm")))
        ring = str(folder / "ring")
        published = PublishConfig(tape=str(folder / "tape"), what=[], state_every=0.0)
        self.publication = stack.enter_context(
            Publication([], published, CommandsConfig(ring=ring), [self.config])
        )
        self.publication.streams(self.engine.core, trader.index, connects=True)
        stack.callback(lib.xds_engine_set_streams, self.engine.core, trader.index, ffi.NULL, ffi.NULL)
        listener = venue.listen(PORT)
        commander = stack.enter_context(Commander(ring, sessions=[self.config.name]))
        commander.connect(ENDS[0][1], PORT, session=self.config.name)
        check(lib.xds_publisher_obey(self.publication.pointer, self.engine.core), "connect")
        asked, answer, taken = b"", b"", None
        for _ in range(_TURNS):
            self.engine.turn()
            venue.turn()
            taken = taken or listener.take()
            if taken and not answer and (answer := self.answer(asked := asked + (taken.take() or b""))):
                taken.put(answer)
        if taken is None or self.published() != 1:
            raise SetupError(f"bench stamp.{self.config.name}", f"the session did not open: {asked!r}")
        self._connection = taken
        stack.callback(taken.abort)

    def published(self) -> int:
        """Events of the session so far; the first is that it opened."""
        return int(self.publication.stats()["records"][self.config.protocol])

    def answer(self, asked: bytes) -> bytes:
        """What the venue says to a handshake; nothing before that is whole."""
        raise NotImplementedError


class WsSession(_Session):
    """A WebSocket's client."""

    config = SessionConfig(name="ws", protocol="ws", settings=WsSettings(host="venue"))

    def answer(self, asked: bytes) -> bytes:
        """RFC 6455, 4.2.2."""
        key = re.search(rb"Sec-WebSocket-Key: (\S+)\r\n", asked)
        if not key or not asked.endswith(b"\r\n\r\n"):
            return b""
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        return head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"


class FixSession(_Session):
    """A FIX 4.4 initiator."""

    config = SessionConfig(
        name="fix",
        protocol="fix",
        settings=FixSettings(sender_comp_id="T", target_comp_id="V", time_tolerance=0.0),
    )

    def answer(self, asked: bytes) -> bytes:
        """A Logon for a Logon."""
        whole = re.search(rb"\x0135=A\x01.*\x0110=\d{3}\x01", asked)
        return _fix(b"A", 1, b"98=0\x01108=30\x01") if whole else b""


def _fix(kind: bytes, number: int, more: bytes) -> bytes:
    body = b"35=%b\x0149=V\x0156=T\x0134=%d\x0152=20260102-03:04:05\x01%b" % (kind, number, more)
    whole = b"8=FIX.4.4\x019=%d\x01%b" % (len(body), body)
    return whole + b"10=%03d\x01" % (sum(whole) % 256)


def ws_messages(count: int) -> Iterator[bytes]:
    """So many binary messages a turn, of one frame each."""
    one = bytes([0x82, BODY - 2]) + bytes(BODY - 2)
    while True:
        yield one * count


def fix_messages(count: int) -> Iterator[bytes]:
    """So many a turn; the number is all that differs."""
    number = 2  # the Logon was 1
    while True:
        yield b"".join(_fix(b"8", number + i, b"") for i in range(count))
        number += count
