"""A FIX venue that thinks for itself: simplefix reads and builds, the rules are here, others move the bytes.

It answers an order (35=D) by an ExecutionReport with the same ClOrdID, asks for what it missed, and sends
again what it is asked for. What it hears is kept as it came: ``{tag: value}``, of each tag the first."""

from __future__ import annotations

import time
from collections.abc import Sequence

import simplefix

__all__ = ["Acceptor"]

Fields = Sequence[tuple[int, object]]


class Acceptor:
    """Its numbers outlive connections: ``connected()`` begins a new one."""

    def __init__(self, *, me: str = "VENUE", them: str = "BUYSIDE", begin: str = "FIX.4.4") -> None:
        self.me, self.them, self.begin = me, them, begin
        self.next_out = self.next_in = 1
        self.heard: list[dict[int, str]] = []
        self.out = bytearray()
        self.sent: dict[int, tuple[str, Fields, float]] = {}
        self.refuses = ""
        """Text of the Logout that answers a Logon; empty: it is welcome."""
        self.silent = self.over = False
        """Silent: nothing is answered; over: both Logouts went."""
        self.hushes = False
        """It falls silent with its Logon."""
        self.deaf = 0
        """So many of the next messages are not heard."""
        self._asked, self._parser = 0, simplefix.FixParser()

    def connected(self) -> None:
        """A new connection."""
        self.out.clear()
        self._asked, self._parser, self.over = 0, simplefix.FixParser(), False

    def take(self, data: bytes) -> None:
        """Bytes that came."""
        self._parser.append_buffer(data)
        while (message := self._parser.get_message()) is not None:
            raw = message.encode(raw=True)
            fields: dict[int, str] = {}
            for tag, value in message.pairs:
                fields.setdefault(int(tag), value.decode("latin-1"))
            body = raw.index(b"\x0135=") + 1
            assert int(fields[9]) == len(raw) - 7 - body, raw
            assert int(fields[10]) == sum(raw[:-7]) % 256, raw
            if self.deaf:
                self.deaf -= 1
                continue
            self.heard.append(fields)
            if not self.silent:
                self._handle(fields)

    def of(self, kind: str) -> list[dict[int, str]]:
        """Messages of this MsgType that were heard."""
        return [fields for fields in self.heard if fields[35] == kind]

    def say(self, kind: str, *fields: tuple[int, object], lost: bool = False) -> None:
        """The next message; ``lost``: it has a number, and never leaves."""
        seq, self.next_out = self.next_out, self.next_out + 1
        if kind not in ("0", "1", "2", "3", "4", "5", "A"):
            self.sent[seq] = kind, fields, time.time()
        if not lost:
            self.out += self.built(kind, seq, fields)

    def built(self, kind: str, seq: int, fields: Fields, sent: float = 0.0, *, fill: bool = False) -> bytes:
        """A message; one that was ``sent`` before, or fills, is a possible duplicate."""
        message = simplefix.FixMessage()
        for tag, value in ((8, self.begin), (35, kind), (49, self.me), (56, self.them), (34, seq)):
            message.append_pair(tag, value)
        message.append_utc_timestamp(52)
        if sent or fill:
            message.append_pair(43, "Y")
            message.append_utc_timestamp(122, sent or None)
        for tag, value in fields:
            message.append_pair(tag, value)
        return bytes(message.encode())

    def _handle(self, fields: dict[int, str]) -> None:
        kind, seq = fields[35], int(fields[34])
        if kind == "A":
            self._logon(fields)
        elif kind == "2":
            self._resend(int(fields[7]), int(fields[16]) or self.next_out - 1)
        elif kind == "5":
            self.say("5")
            self.over = True
        if seq > self.next_in:
            if self._asked < self.next_in:  # once a gap
                self._asked = seq
                self.say("2", (7, self.next_in), (16, 0))
            return
        if seq < self.next_in:
            assert fields.get(43) == "Y", fields
            return
        self.next_in = int(fields[36]) if kind == "4" else seq + 1
        if kind == "1":
            self.say("0", (112, fields[112]))
        elif kind == "D":
            self.say("8", (37, f"O-{seq}"), (11, fields[11]), (17, f"E-{seq}"), (150, 0), (39, 0))

    def _logon(self, fields: dict[int, str]) -> None:
        if fields.get(141) == "Y":
            self.next_out = self.next_in = 1
            self.sent.clear()
        if self.refuses:
            self.say("5", (58, self.refuses))
            return
        again = [(tag, fields[tag]) for tag in (98, 108, 141, 1137) if tag in fields]
        self.say("A", *again)
        self.silent = self.hushes

    def _resend(self, first: int, last: int) -> None:
        while first <= last:
            if first in self.sent:
                kind, fields, when = self.sent[first]
                self.out += self.built(kind, first, fields, when)
                first += 1
                continue
            end = first
            while end <= last and end not in self.sent:
                end += 1
            self.out += self.built("4", first, ((123, "Y"), (36, end)), fill=True)
            first = end
