"""The other end of a FIX session by hand: simplefix builds what it says and reads what we say."""

from __future__ import annotations

import simplefix

from xdpstack.fix import REASONS, FixCore, FixEvent, format_time

NOW = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
ME, PEER = "BUYSIDE", "VENUE"
SENT = object()  # the header's SendingTime where a test does not bring one


def message(*fields: tuple[int, object], begin: str = "FIX.4.4") -> bytes:
    """A message of exactly these fields behind 8 and 9, as simplefix encodes it."""
    built = simplefix.FixMessage()
    built.append_pair(8, begin)
    for tag, value in fields:
        built.append_pair(tag, value)
    return built.encode()


def resum(raw: bytes) -> bytes:
    """The message with the right CheckSum, and nothing else changed."""
    head = raw[: raw.rindex(b"10=")]
    return head + b"10=%03d\x01" % (sum(head) % 256)


def read(raw: bytes) -> list[dict[int, str]]:
    """Messages as simplefix reads them, each verified by our own sums."""
    parser, found = simplefix.FixParser(), []
    parser.append_buffer(raw)
    while (got := parser.get_message()) is not None:
        assert resum(got.encode(raw=True)) == got.encode(raw=True)
        assert (
            int(got.get(9))
            == len(got.encode(raw=True)) - len(b"8=" + got.get(8) + b"\x019=" + got.get(9)) - 8
        )
        found.append({int(tag): value.decode("latin-1") for tag, value in reversed(got.pairs)})
    return found


class FixPeer:
    """An acceptor by hand against an initiator of ours, or the other way round."""

    def __init__(self, version: str = "FIX.4.4", *, open_at: int = NOW, **settings: object) -> None:
        self.version, self.now, self.seq = version, open_at, 1
        self.core = FixCore(ME, PEER, version=version, **settings)
        self.core.open(self.now)

    def up(self, **more: object) -> FixPeer:
        """Logged on, both sides at 2."""
        assert [m[35] for m in self.said()] in (["A"], [])
        assert self.kinds(self.give("A", (98, 0), (108, 30)))[0] == "logon"
        self.said()
        return self

    def make(self, kind: str, *body, seq=None, sending=SENT, dup=False, orig=None, frm=PEER, to=ME) -> bytes:
        """One message of the peer's; ``seq`` other than the next does not count on."""
        if seq is None:
            seq, self.seq = self.seq, self.seq + 1
        head = [(35, kind), (49, frm), (56, to), (34, seq)]
        if sending is SENT:
            sending = format_time(self.now)
        if sending is not None:
            head.append((52, sending))
        if dup:
            head.append((43, "Y"))
        if orig is not None:
            head.append((122, orig))
        return message(*head, *body, begin=self.version)

    def give(self, kind: str, *body, **more) -> list[FixEvent]:
        return self.bytes(self.make(kind, *body, **more))

    def bytes(self, raw: bytes) -> list[FixEvent]:
        return self.core.feed(raw, self.now)

    def said(self) -> list[dict[int, str]]:
        """What ours has sent since."""
        return read(self.core.output(self.now))

    def wait(self, seconds: float) -> list[FixEvent]:
        """Time passes, every deadline is kept."""
        end = self.now + int(seconds * SECOND)
        found: list[FixEvent] = []
        while self.core.deadline() <= end and self.core.deadline() >= 0:
            self.now = max(self.core.deadline(), self.now)
            self.core.tick(self.now)
            found += self.core.events()
        self.now = end
        return found

    @staticmethod
    def kinds(events: list[FixEvent]) -> list[str]:
        return [event.kind for event in events]

    def reasons(self) -> dict[str, int]:
        """Reasons that counted; and the sum holds."""
        stats = self.core.stats()
        words = [word for word in REASONS.values() if word != "reasons"]
        assert stats["received"] == sum(stats[word] for word in words)
        return {word: stats[word] for word in words if stats[word] and word != "delivered"}
