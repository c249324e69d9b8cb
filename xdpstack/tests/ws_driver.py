"""One WebSocket connection of the core, driven by hand: bytes in, events out, its promises looked at."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from typing import NamedTuple

from xdpstack._ffi import ffi, lib

SECOND = 1_000_000_000
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONNECTING, OPEN, CLOSING, WAITING, CLOSED = range(5)
TEXT, BINARY = lib.XDS_WS_EVENT_TEXT, lib.XDS_WS_EVENT_BINARY
PING, PONG = lib.XDS_WS_EVENT_PING, lib.XDS_WS_EVENT_PONG
WORDS = {
    lib.XDS_WS_EVENT_OPEN: "open",
    TEXT: "text",
    BINARY: "binary",
    PING: "ping",
    PONG: "pong",
    lib.XDS_WS_EVENT_CLOSE: "close",
    lib.XDS_WS_EVENT_FAILED: "failed",
}
REASONS = {
    value: name.removeprefix("XDS_WS_")
    for value, name in ffi.typeof("enum xds_ws_reason").elements.items()
    if name != "XDS_WS_REASONS"
}
CANARY = b"\xa5" * 64


class Event(NamedTuple):
    what: str
    data: bytes
    reason: str = "NONE"
    code: int = 0
    frames: int = 0


class Frame(NamedTuple):
    """One that we sent, unmasked."""

    fin: int
    op: int
    data: bytes
    mask: bytes


def frame(op, data=b"", *, fin=1, rsv=0, mask=None, length=None):
    """A frame as a server sends it, or as it may not."""
    n = len(data) if length is None else length
    masked = 0 if mask is None else 0x80
    if n < 126:
        size = bytes([masked | n])
    elif n < 65536:
        size = bytes([masked | 126]) + n.to_bytes(2, "big")
    else:
        size = bytes([masked | 127]) + n.to_bytes(8, "big")
    if mask is not None:
        data = mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data))
    return bytes([fin << 7 | rsv << 4 | op]) + size + data


def frames(data):
    """What a client sent, frame by frame; every one must be masked and whole."""
    found, at = [], 0
    while at < len(data):
        first, second = data[at], data[at + 1]
        assert second & 0x80, "a client masks every frame (5.1)"
        n, at = second & 127, at + 2
        if n == 126:
            n, at = int.from_bytes(data[at : at + 2], "big"), at + 2
            assert n > 125
        elif n == 127:
            n, at = int.from_bytes(data[at : at + 8], "big"), at + 8
            assert n > 65535
        mask, at = data[at : at + 4], at + 4
        assert at + n <= len(data)
        plain = bytes(b ^ mask[i % 4] for i, b in enumerate(data[at : at + n]))
        assert not first & 0x70
        found.append(Frame(first >> 7, first & 15, plain, mask))
        at += n
    return found


class Ws:
    """A connection in a block of exactly its size; canaries behind it and behind what output() may fill."""

    def __init__(
        self, *, seed=b"0123456789abcdef", now=0, host="peer.example", message_max=1 << 18, **config
    ):
        self._texts = []
        self.config = ffi.new("struct xds_ws_config *")
        for name, value in {"host": host, "message_max": message_max, **config}.items():
            if isinstance(value, str):
                self._texts.append(ffi.new("char[]", value.encode("latin-1")))
                value = self._texts[-1]
            setattr(self.config, name, value)
        size = lib.xds_ws_size(self.config)
        if not size:
            raise ValueError("a bad configuration")
        self._mem = ffi.new("uint8_t[]", size + 64 + len(CANARY))
        start = -int(ffi.cast("uintptr_t", self._mem)) % 64
        self._end = ffi.buffer(self._mem + start + size, len(CANARY))
        self._end[:] = CANARY
        self.w = ffi.cast("struct xds_ws *", self._mem + start)
        assert lib.xds_ws_init(self.w, self.config, seed, now) == 0
        for text in self._texts:  # borrowed until init returned
            ffi.memmove(text, b"\0" * len(text), len(text))
        self.now = now
        self.faults = []

    @property
    def state(self):
        return lib.xds_ws_state(self.w)

    @property
    def deadline(self):
        return lib.xds_ws_deadline(self.w)

    @property
    def stats(self):
        out = ffi.new("struct xds_ws_stats *")
        lib.xds_ws_stats(self.w, out)
        return out

    def events(self):
        e, found = ffi.new("struct xds_ws_event *"), []
        while lib.xds_ws_event(self.w, e):
            assert e.ns == self.now
            assert e.frames or WORDS[e.what] not in ("text", "binary")
            self.rtt_ns, self.lent = e.rtt_ns, bool(e.lent)
            data = bytes(ffi.buffer(e.data, e.len)) if e.len else b""
            found.append(Event(WORDS[e.what], data, REASONS[e.reason], e.code, e.frames))
        return found

    def give(self, data, now=None):
        """All of data, event by event, each time from a block of just that size."""
        self.now = self.now if now is None else now
        found = []
        while data:
            block = ffi.new("uint8_t[]", data)
            used = lib.xds_ws_input(self.w, block, len(data), self.now)
            found += self.events()
            if used < 0:
                self.faults.append(used)
                assert found[-1].what == "failed"
                used = len(data)
            assert used > 0
            data = data[used:]
        self.check()
        return found

    def cut(self, data, cuts):
        """The same, in pieces that end at cuts."""
        edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
        return [e for a, b in itertools.pairwise(edges) for e in self.give(data[a:b])]

    def output(self, cap=1 << 20):
        """All that is to be sent, cap bytes a time."""
        room, sent = ffi.new("uint8_t[]", cap + len(CANARY)), b""
        canary = ffi.buffer(room + cap, len(CANARY))
        canary[:] = CANARY
        while n := lib.xds_ws_output(self.w, room, cap, self.now):
            assert 0 < n <= cap
            sent += bytes(ffi.buffer(room, n))
        assert canary[:] == CANARY
        self.check()
        return sent

    def frames(self):
        return frames(self.output())

    def send(self, data, what=TEXT, more=0):
        data = data.encode() if isinstance(data, str) else data
        got = lib.xds_ws_send(self.w, what, data, len(data), more)
        self.check()
        return got

    def close(self, code=1000, reason=b"", now=None):
        self.now = self.now if now is None else now
        return lib.xds_ws_close(self.w, code, reason, len(reason), self.now)

    def eof(self):
        got = lib.xds_ws_eof(self.w, self.now)
        self.check()
        return got, self.events()

    def tick(self, now=None):
        self.now = self.deadline if now is None else now
        lib.xds_ws_tick(self.w, self.now)
        self.check()
        return self.events()

    def check(self):
        """What holds at all times."""
        s = self.stats
        refused = sum(s.reasons[lib.XDS_WS_RSV : lib.XDS_WS_CLOSE_BAD + 1])
        assert s.frames == s.taken + refused + s.cut
        assert s.cut <= 1
        assert s.reasons[0] == 0
        assert sum(s.reasons) <= 1, "a connection fails once"
        assert self._end[:] == CANARY
        if self.state == CLOSED:
            assert self.deadline == lib.XDS_NEVER

    def answer(self, *lines, status="101 Switching Protocols", accept=None, drop=()):
        """A server's answer to the request that waits (which is taken)."""
        self.request = self.output()
        key = re.search(rb"\r\nSec-WebSocket-Key: (\S+)\r\n", self.request)[1]
        right = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        usual = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": right if accept is None else accept,
        }
        head = [f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in usual.items() if k not in drop), *lines]
        return "".join(line + "\r\n" for line in [*head, ""]).encode("latin-1")


def opened(**config):
    """A connection behind its handshake."""
    w = Ws(**config)
    assert w.give(w.answer()) == [Event("open", b"")]
    assert w.state == OPEN
    return w
