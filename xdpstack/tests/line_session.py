"""A protocol of lines, and a cipher that hides nothing: sessions so small that the seam's own work is seen.

``Line``: we say ``hello`` and are open when the peer does; then each line is a message. ``!...`` is one that
is counted as a reason, ``?...`` a ping, ``bye`` the end in order, ``fail`` no end in order.
``Veil``: a ``T`` each way, then every byte xor 0x5a in records of a length (two bytes) and so many bytes; a
record of length 0 is its end in order.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from xdpstack._ffi import ffi, lib
from xdpstack.sessions import Spoken

BYTES = 64
ROOM = 1 << 16  # of what waits to be sent


class _Half:
    """What both have: what waits to be sent, events, counters."""

    def __init__(self, now: int, seed: bytes) -> None:
        self.out, self.events, self.seed = bytearray(), deque[tuple[int, int, int, bytes]](), seed
        self.received = self.delivered = self.sent = 0
        self.reasons = [0] * lib.XDS_SESSION_REASONS
        self.due = lib.XDS_NEVER
        self.open = self.over = False
        self.kept = b""
        self.said: Any = None

    def tell(self, what: int, data: bytes = b"", *, code: int = 0, flags: int = 0) -> None:
        self.over |= what in (lib.XDS_SESSION_CLOSED, lib.XDS_SESSION_FAILED)
        self.events.append((what, code, flags, data))

    def event(self, raw: Any) -> int:
        if not self.events:
            return 0
        raw.what, raw.code, raw.flags, data = self.events.popleft()
        self.said = ffi.from_buffer("uint8_t[]", data)
        raw.data, raw.len = self.said, len(data)
        return 1

    def output(self, room: Any, cap: int, now: int) -> int:
        n = min(cap, len(self.out))
        ffi.memmove(room, bytes(self.out[:n]), n)
        del self.out[:n]
        return n

    def tick(self, now: int) -> None:
        self.due = lib.XDS_NEVER
        self.tell(lib.XDS_SESSION_FAILED, b"too late", code=3)

    def stats(self, raw: Any) -> None:
        raw.received, raw.delivered, raw.sent = self.received, self.delivered, self.sent
        for number, count in enumerate(self.reasons):
            raw.reasons[number] = count


class LineHalf(_Half):
    def __init__(self, config: Line, now: int, seed: bytes) -> None:
        super().__init__(now, seed)
        self.out += b"hello\n"
        self.blocks = config.blocks
        if config.patience:
            self.due = now + int(config.patience * 1e9)

    def input(self, data: bytes, now: int) -> int:
        if self.events or self.over or (self.blocks and len(self.out) > self.blocks):
            return 0
        whole = self.kept + data
        end = whole.find(b"\n")
        if end < 0:
            self.kept = whole
            return len(data)
        taken, self.kept = end + 1 - len(self.kept), b""
        self.line(whole[:end])
        return taken

    def line(self, line: bytes) -> None:
        self.received += 1
        self.delivered += not line.startswith(b"!")
        if line == b"hello" and not self.open:
            self.open, self.due = True, lib.XDS_NEVER
            self.tell(lib.XDS_SESSION_OPEN, b"lines")
        elif line == b"bye":
            self.tell(lib.XDS_SESSION_CLOSED, b"bye", code=1000)
        elif line == b"fail":
            self.tell(lib.XDS_SESSION_FAILED, b"the peer said so", code=2)
        elif line.startswith(b"!"):
            self.reasons[1] += 1
        elif line.startswith(b"?"):
            self.tell(lib.XDS_SESSION_WS_PING, line[1:])
        else:
            self.tell(lib.XDS_SESSION_MESSAGE, line, flags=lib.XDS_SESSION_TEXT)

    def eof(self) -> None:
        if not self.over:
            self.tell(lib.XDS_SESSION_FAILED, b"no bye", code=4)

    def send(self, data: bytes, flags: int) -> int:
        if not self.open:
            return int(lib.XDS_ESTATE)
        if b"\n" in data:
            return int(lib.XDS_EMALFORMED)
        if len(self.out) + len(data) + 1 > ROOM:
            return int(lib.XDS_ECAPACITY)
        self.sent += 1
        self.out += (b"?" if flags & lib.XDS_SESSION_PING else b"") + data + b"\n"
        return 0

    def bid(self, code: int, reason: bytes) -> int:
        self.out += b"bye\n"
        return 0


class VeilHalf(_Half):
    def __init__(self, config: Veil, now: int, seed: bytes) -> None:
        super().__init__(now, seed)
        self.out += config.first.encode()

    def input(self, data: bytes, now: int) -> int:
        if self.events or self.over:
            return 0
        if not self.open:
            self.received += 1
            if data[:1] == b"T":
                self.open = True
                self.delivered += 1
                self.tell(lib.XDS_SESSION_OPEN, b"veil", code=0x304)
            else:
                self.reasons[5] += 1
                self.tell(lib.XDS_SESSION_FAILED, b"no T", code=5)
            return 1
        whole = self.kept + data
        size = int.from_bytes(whole[:2], "big")
        if len(whole) < 2 or len(whole) < 2 + size:
            self.kept = whole
            return len(data)
        taken, self.kept = 2 + size - len(self.kept), b""
        self.received += 1
        self.delivered += 1
        if size:
            self.tell(lib.XDS_SESSION_MESSAGE, bytes(byte ^ 0x5A for byte in whole[2 : 2 + size]))
        else:
            self.tell(lib.XDS_SESSION_CLOSED)
        return taken

    def eof(self) -> None:
        if not self.over:
            self.tell(lib.XDS_SESSION_FAILED, b"cut off", code=6)

    def send(self, data: bytes, flags: int) -> int:
        if not self.open:
            return int(lib.XDS_ESTATE)
        if len(self.out) + len(data) + 2 > ROOM:
            return int(lib.XDS_ECAPACITY)
        self.sent += 1
        self.out += len(data).to_bytes(2, "big") + bytes(byte ^ 0x5A for byte in data)
        return 0

    def bid(self, code: int, reason: bytes) -> int:
        self.out += b"\0\0"
        return 0


def _spoken(kind: int, made: Callable[[int, bytes], _Half | None]) -> Spoken:
    live: dict[int, Any] = {}
    config = ffi.new("int *")

    def of(mem: Any) -> Any:
        return live[int(ffi.cast("uintptr_t", mem))]

    def init(mem: Any, config: Any, now: int, seed: Any) -> int:
        one = made(now, bytes(ffi.buffer(seed, lib.XDS_SESSION_SEED)))
        if one is None:
            return int(lib.XDS_ECONFIG)
        live[int(ffi.cast("uintptr_t", mem))] = one
        return 0

    def taken(mem: Any, data: Any, size: int, now: int) -> int:
        if data == ffi.NULL:
            of(mem).eof()
            return 0
        return int(of(mem).input(bytes(ffi.buffer(data, size)), now))

    def end(mem: Any) -> None:
        del live[int(ffi.cast("uintptr_t", mem))]

    def bid(mem: Any, code: int, reason: Any, size: int, now: int) -> int:
        return int(of(mem).bid(code, bytes(ffi.buffer(reason, size)) if size else b""))

    calls: dict[str, Any] = {
        "size": lambda config: BYTES,
        "init": init,
        "input": taken,
        "event": lambda mem, out: of(mem).event(out),
        "output": lambda mem, room, cap, now: of(mem).output(room, cap, now),
        "deadline": lambda mem: of(mem).due,
        "tick": lambda mem, now: of(mem).tick(now),
        "send": lambda mem, m, now: of(mem).send(bytes(ffi.buffer(m.data, m.len)) if m.len else b"", m.flags),
        "close": bid,
        "stats": lambda mem, out: of(mem).stats(out),
        "end": end,
    }
    ops = ffi.new("struct xds_session_ops *", {"kind": kind})
    types = {name: field.type for name, field in ffi.typeof("struct xds_session_ops").fields}
    keep = [config, live]
    for name, call in calls.items():
        keep.append(ffi.callback(types[name], call))
        setattr(ops, name, keep[-1])
    return Spoken(ops, config, (ops, keep))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``protocol = "line"``: its records are WebSocket's."""

    patience: float = 0.0
    blocks: int = 0
    refuses: bool = False
    made: list[LineHalf] = dataclasses.field(default_factory=list)
    reasons: ClassVar[Mapping[int, str]] = {1: "bang", 2: "said_so", 3: "late", 4: "no_bye"}

    def speak(self) -> Spoken:
        def make(now: int, seed: bytes) -> LineHalf | None:
            if self.refuses:
                return None
            self.made.append(LineHalf(self, now, seed))
            return self.made[-1]

        return _spoken(lib.XDS_SESSION_WS, make)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Veil:
    """``tls = true`` over it."""

    server_name: str = ""
    first: str = "T"
    reasons: ClassVar[Mapping[int, str]] = {5: "no_t", 6: "cut_off"}

    def speak(self) -> Spoken:
        return _spoken(lib.XDS_SESSION_TLS, lambda now, seed: VeilHalf(self, now, seed))
