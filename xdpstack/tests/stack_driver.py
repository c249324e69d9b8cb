"""Two stacks over a simulated wire of frames, and a user for each connection."""

from __future__ import annotations

from xdpstack._ffi import lib
from xdpstack.engine import Host
from xdpstack.memory import Arena
from xdpstack.sim import SECOND, Sim, Wire
from xdpstack.stack import BITS, Stack

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "2001:db8::1", "2001:db8::2"
MACS = {A: "02:00:00:00:00:0a", B: "02:00:00:00:00:0b", A6: "02:00:00:00:00:0a", B6: "02:00:00:00:00:0b"}
NAMES = {word: value for value, word in BITS.items()}


def words(bits: int) -> set[str]:
    return {word for value, word in BITS.items() if bits & value}


class End:
    """A stack as one end of a :class:`Sim`; ``seen`` is what happened to each number, in order."""

    def __init__(self, address=A, secret=b"k" * 16, host=None, **settings):
        self.arena = Arena()
        self.address = address
        own = {
            "mac": MACS[address],
            "addresses": [address + ("/64" if ":" in address else "/24")],
            "answer_arp": True,
        }
        self.host = Host(self.arena, **(own | (host or {})))
        self.stack = Stack(self.arena, self.host, secret=secret, **settings)
        self.seen: dict[int, set[str]] = {}

    def input(self, frame, source, destination, now):
        return self.stack.frame(frame, now)

    def output(self, now):
        return self.stack.output(now)

    def deadline(self):
        return self.stack.deadline()

    def tick(self, now):
        self.stack.tick(now)

    def look(self):
        for number, bits in self.stack.events():
            self.seen.setdefault(number, set()).update(words(bits))

    def check(self):
        """What holds at any time."""
        stats = self.stack.stats()
        assert stats["received"] == stats["taken"] + sum(stats["reasons"].values())
        host = self.host.stats()
        assert host["received"] == host["delivered"] + sum(host["reasons"].values())
        return stats


class Two:
    """``a`` and ``b``, 10.0.0.1 and 10.0.0.2 or as ``ends`` says, joined. ``wire``: one, or one each way."""

    def __init__(self, wire=None, number=1, a=None, b=None, known=True, ends=(A, B)):
        self.ends = ends
        self.a, self.b = End(ends[0], **(a or {})), End(ends[1], secret=b"other key 16 byt", **(b or {}))
        wires = wire if isinstance(wire, tuple) else (wire or Wire(),) * 2
        if known:
            self.a.host.add_neighbour(ends[1], MACS[ends[1]])
            self.b.host.add_neighbour(ends[0], MACS[ends[0]])
        self.act = lambda: None
        self.sim = Sim((self.a, self.b), ends, wires, number, self.watch)

    def watch(self, end):
        (self.a, self.b)[end].look()
        self.act()

    @property
    def now(self):
        return self.sim.now

    def run(self, until=None):
        self.sim.run(until)

    def later(self, seconds):
        """Let that much time pass."""
        end = self.sim.now + int(seconds * SECOND)
        self.sim.run(lambda: min(self.a.deadline(), self.b.deadline(), self.sim.arrival()) > end)
        self.sim.now = max(self.sim.now, end)

    def pair(self, port=80, **how):
        """An established connection: its numbers at a and b."""
        listener = self.b.stack.listen(port)
        mine = self.a.stack.connect((self.ends[1], port), self.now, **how)
        self.run(lambda: "acceptable" in self.b.seen.get(listener, ()))
        theirs = self.b.stack.accept(listener)
        assert theirs > 0
        self.b.stack.unlisten(listener)
        self.run(lambda: "open" in self.a.seen.get(mine, ()))
        return mine, theirs

    def state(self, end, number):
        return end.stack.info(number)["state"]


def never(end):
    return end.deadline() == lib.XDS_NEVER
