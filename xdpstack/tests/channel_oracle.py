"""What a channel must do, the slow and obvious way: units in plain dicts, packets in plain lists.

Written from the rules of ``cffi_build/xds/channel.h``, without its fast paths, slabs, intervals and free
lists: every missing unit is an entry of its own, a gap is a run of such entries that lie side by side.
``Oracle`` takes the same calls as ``channel_model.Channel`` and predicts all of it: each packet's code and
fate, every block with its bytes and flags, every event with its time, each counter, the next deadline.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

from xdpstack._ffi import lib

PLAIN, MOLD, IEX, CME = (
    lib.XDS_SESSION_PLAIN, lib.XDS_SESSION_MOLD64, lib.XDS_SESSION_IEXTP, lib.XDS_SESSION_CME,
)  # fmt: skip
HEADER = {PLAIN: 8, MOLD: 20, IEX: 40, CME: 12}
NEVER = lib.XDS_NEVER
SEQ_MAX = 0x7FFFFFFFFFFF0000
LOST_KEPT, HOLES_KEPT, SESSIONS_KEPT = 64, 16, 4  # bounds that channel_int.h names
NOT_ANNOUNCED = 0xFFFF


@dataclasses.dataclass
class Packet:
    """A packet as its header reads."""

    kind: str  # data, heartbeat, end
    seq: int
    units: int
    count: int
    data: bytes
    venue_ns: int
    ident: bytes
    line: int = 0
    rx_ns: int = 0

    @property
    def end(self) -> int:
        return self.seq + self.units


class Refused(Exception):
    """A packet that is not taken: ``code``."""

    def __init__(self, code: int) -> None:
        self.code = code


def read(session: int, raw: bytes) -> Packet:
    """The header of any bytes, or Refused."""
    if len(raw) < HEADER[session]:
        raise Refused(lib.XDS_ETRUNC)
    body = raw[HEADER[session] :]
    if session == PLAIN:
        seq, count, _ = struct.unpack_from("<IHH", raw)
        return Packet("data", seq, 1, count, body, 0, b"")
    if session == CME:
        seq, ns = struct.unpack_from("<Iq", raw)
        return Packet("data", seq, 1, NOT_ANNOUNCED, body, ns, b"")
    if session == MOLD:
        name, seq, count = struct.unpack_from(">10sQH", raw)
        kind = {0: "heartbeat", 0xFFFF: "end"}.get(count, "data")
        count = count if kind == "data" else 0
        if len(body) < 2 * count:
            raise Refused(lib.XDS_ETRUNC)
        return Packet(kind, seq, count, count, body, 0, name)
    size, count = struct.unpack_from("<HH", raw, 12)
    seq, ns = struct.unpack_from("<Qq", raw, 24)
    if size > len(body):
        raise Refused(lib.XDS_ETRUNC)
    if size < 2 * count:
        raise Refused(lib.XDS_EMALFORMED)
    ident = raw[:1] + b"\0" + raw[2:12]  # the reserved byte names nothing
    return Packet("data" if count else "heartbeat", seq, count, count, body[:size], ns, ident)


def behind(session: int, data: bytes, messages: int) -> bytes:
    """The bytes behind so many messages, or Refused where they end before."""
    for _ in range(messages):
        if len(data) < 2:
            raise Refused(lib.XDS_ETRUNC)
        size = 2 + int.from_bytes(data[:2], "big" if session == MOLD else "little")
        if size > len(data):
            raise Refused(lib.XDS_ETRUNC)
        data = data[size:]
    return data


@dataclasses.dataclass
class Ask:
    """What is known of one gap: when it was found, when it is due, how often it was asked for."""

    found: int
    due: int
    tries: int = 0
    asked_end: int = 0


class Line:
    """One line: what became of its packets, and what it never carried."""

    def __init__(self) -> None:
        self.fates: Counter[str] = Counter()
        self.expect = 0  # its next unit
        self.holes: list[set[int]] = []  # what it skipped in this run, newest last
        self.tail = range(0)  # what it had not carried when the run before ended
        self.run = 0
        self.fall_next = 0  # plain: what would confirm that it fell

    def skip(self, first: int, end: int) -> None:
        self.fates["lost"] += end - first
        self.holes = [*self.holes, set(range(first, end))][-HOLES_KEPT:]

    def carry(self, first: int, end: int) -> None:
        """Units came; some of them may lie in holes."""
        came, was, late = set(range(first, end)), self.holes, False
        self.holes = []
        room = HOLES_KEPT - len(was)
        for hole in was:
            late |= bool(hole & came)
            self.fates["lost"] -= len(hole & came)
            left = hole - came
            below, above = {u for u in left if u < first}, {u for u in left if u >= end}
            if below and above:  # a hole inside a hole makes two, where there is room to remember both
                self.holes.append(below)
                if room > 0:
                    self.holes.append(above)
                    room -= 1
            elif left:
                self.holes.append(left)
            else:
                room += 1
        self.fates["reordered"] += late

    def track(self, first: int, end: int) -> None:
        if first > self.expect:
            self.skip(self.expect, first)
        elif first < self.expect and end > first:
            self.carry(first, end)
        self.expect = max(self.expect, end)


class Oracle:
    """A channel that is too slow for a feed, and too simple to be wrong."""

    def __init__(self, cfg: Any) -> None:
        self.cfg, self.session = cfg, cfg.session
        self.per_message = cfg.session in (MOLD, IEX)
        self.lines = [Line() for _ in range(cfg.lines + 1)]
        self.missing: dict[int, Ask] = {}
        self.waiting: list[Packet] = []  # by sequence
        self.blocks: list[tuple[int, int, bytes, int, int]] = []
        self.events: list[tuple[int, int, int, int]] = []  # kind, first, count, ns
        self.stats: Counter[str] = Counter()
        self.next = self.top = self.join = self.now = 0
        self.lost: list[range] = []
        self.joined, self.ident, self.ended, self.run = False, b"", False, 0
        self.once = self.always = 0  # flags of the next block, of every block
        self.venue_max = self.run_ns = self.old_ns = self.run_seq = self.run_rx = 0
        self.restarted = False
        self.wild_end: int | None = None
        self.other: tuple[bytes, int] | None = None  # another session that was seen, and where
        self.former: list[bytes] = []

    # ---- gaps

    def gaps(self) -> list[range]:
        """Runs of missing units."""
        found: list[range] = []
        for unit in sorted(self.missing):
            if found and found[-1].stop == unit:
                found[-1] = range(found[-1].start, unit + 1)
            else:
                found.append(range(unit, unit + 1))
        return found

    def tell(self, what: str, first: int, count: int) -> None:
        self.events.append((getattr(lib, f"XDS_EVENT_{what}"), first, count, self.now))

    def miss(self, end: int) -> None:
        """Units up to end exist, and are missing from top on."""
        before = self.missing.get(self.top - 1)
        self.tell("GAP_FOUND", self.top, end - self.top)
        self.stats["units_missed"] += end - self.top
        if before is None:
            self.stats["gaps_found"] += 1
            before = Ask(self.now, self.now + self.cfg.window_ns)
        elif before.tries >= self.cfg.retries:
            before.tries = max(self.cfg.retries - 1, 0)  # the new part has not been asked for
        self.missing |= dict.fromkeys(range(self.top, end), before)
        self.top = end

    def fill(self, packet: Packet) -> None:
        for gap in self.gaps():
            came = range(max(gap.start, packet.seq), min(gap.stop, packet.end))
            if not came:
                continue
            self.stats["units_filled"] += len(came)
            self.tell("GAP_FILLED", came.start, len(came))
            asked = self.missing[gap.start]
            left = [r for r in (range(gap.start, came.start), range(came.stop, gap.stop)) if r]
            self.stats["gaps_filled"] += not left
            self.stats["gaps_found"] += len(left) == 2
            for unit in came:
                del self.missing[unit]
            for part in left:
                ask = dataclasses.replace(asked)
                if packet.line == self.cfg.lines and ask.tries:  # a part of an answer came
                    whole = part.start >= ask.asked_end
                    ask.tries = 0
                    ask.due = self.now + (0 if whole else min(self.cfg.window_ns, self.cfg.retry_ns))
                self.missing |= dict.fromkeys(part, ask)

    def give_up(self) -> None:
        gap = self.gaps()[0]
        self.stats["gaps_lost"] += 1
        self.stats["units_lost"] += len(gap)
        self.tell("GAP_LOST", gap.start, len(gap))
        self.lost = [*self.lost, gap][-LOST_KEPT:]
        self.next = gap.stop
        self.once |= lib.XDS_BLOCK_AFTER_GAP
        self.always |= lib.XDS_BLOCK_STALE
        for unit in gap:
            del self.missing[unit]

    def expired(self) -> bool:
        """The gap that holds the stream up has had its time."""
        ask = self.missing[self.next]
        if not self.cfg.request_max:
            return self.now >= ask.due
        return self.now - ask.found >= self.cfg.give_up_ns or (
            ask.tries >= self.cfg.retries and self.now >= ask.due
        )

    # ---- what can be delivered

    def deliver(self, packet: Packet) -> None:
        """The part of a packet that is new, from next on."""
        skip = self.next - packet.seq
        data = behind(self.session, packet.data, skip)
        count = packet.count if packet.count == NOT_ANNOUNCED else packet.count - skip
        flags = self.once | self.always
        flags |= lib.XDS_BLOCK_RECOVERED if packet.line == self.cfg.lines else 0
        self.blocks.append((self.next, count, data, packet.line, flags))
        self.once = 0
        self.next = packet.end
        self.lines[packet.line].fates["won"] += 1
        self.stats["blocks"] += 1
        self.stats["messages"] += 0 if count == NOT_ANNOUNCED else count

    def settle(self, packet: Packet | None = None, *, flush: bool = False, doom: bool = False) -> None:
        """Deliver, give up and drop until nothing can be done; ``packet`` is one of those that wait."""
        while True:
            if self.waiting and self.waiting[0].seq <= self.next:
                first = self.waiting.pop(0)
            elif packet and packet.seq <= self.next:
                first, packet = packet, None
            elif self.next in self.missing and (flush or doom or self.expired()):
                self.give_up()
                doom = False
                continue
            elif packet and len(self.waiting) == self.cfg.window_packets:
                doom = True
                continue
            else:
                break
            if first.end > self.next:
                self.deliver(first)
            else:  # others overtook it
                self.lines[first.line].fates["duplicate"] += 1
        if packet:
            self.keep(packet)

    def keep(self, packet: Packet) -> None:
        """It waits; those that lie inside it have nothing of their own any more."""
        inside = [p for p in self.waiting if packet.seq <= p.seq and p.end <= packet.end]
        for one in inside:
            self.lines[one.line].fates["duplicate"] += 1
        self.waiting = sorted([p for p in self.waiting if p not in inside] + [packet], key=lambda p: p.seq)

    # ---- a stream begins

    def begin(self, packet: Packet, first: int) -> None:
        for line in self.lines[:-1]:
            line.tail = range(line.expect, max(self.top, line.expect) if self.joined else line.expect)
            line.fates["lost"] += len(line.tail)
            line.holes, line.expect, line.fall_next = [], first, 0
        self.next = self.top = self.join = first
        self.lost, self.wild_end, self.ended, self.always = [], None, False, 0
        self.venue_max = self.run_ns = packet.venue_ns
        self.run_seq, self.run_rx = packet.seq, packet.rx_ns

    def begin_run(self, packet: Packet, *, session: bool) -> None:
        """The old run is released first; then the packet is the first of a new one."""
        self.settle(flush=True)
        old_top, self.old_ns = self.top, self.venue_max
        if session:
            self.former = [*self.former, self.ident][-SESSIONS_KEPT:]
            self.ident, self.other = packet.ident, None
        self.stats["sessions" if session else "restarts"] += 1
        lowest = 0 if self.session == PLAIN else 1
        near = 0 <= packet.seq - lowest <= self.cfg.window_packets
        self.begin(packet, lowest if near else packet.seq)
        self.restarted = not session
        self.run += 1
        for line in [self.lines[packet.line]] if self.session == PLAIN else self.lines[:-1]:
            line.run = self.run
        self.once = lib.XDS_BLOCK_RESTART
        self.tell("SESSION" if session else "RESTART", packet.seq, 0 if session else old_top)

    def may_join(self, packet: Packet) -> bool:
        if packet.line == self.cfg.lines:
            return False
        if self.session == IEX:
            return packet.ident[0] == 1
        wanted = bytes(self.cfg.session_name)[:10]
        if self.session == MOLD and wanted[0]:
            return packet.ident == bytes(
                ord(" ") if not w and g == ord(" ") else w for w, g in zip(wanted, packet.ident, strict=True)
            )
        return True

    def other_session(self, packet: Packet) -> None:
        """Another name than the one that is followed: Refused, or the packet begins its session."""
        if packet.line == self.cfg.lines or packet.ident in self.former:
            raise Refused(lib.XDS_EFOREIGN)
        if self.session == IEX:
            if packet.ident[:8] != self.ident[:8] or packet.venue_ns <= self.venue_max:
                raise Refused(lib.XDS_EFOREIGN)
            return
        if self.cfg.session_name[0]:
            raise Refused(lib.XDS_EFOREIGN)
        if packet.seq <= 1 or (self.other and self.other[0] == packet.ident and packet.seq > self.other[1]):
            return
        self.other = (packet.ident, packet.seq)
        raise Refused(lib.XDS_EFOREIGN)

    # ---- which run

    def run_of(self, packet: Packet) -> str:
        """Of this run, an older one, or the first of the next."""
        if self.session == PLAIN:
            return self.run_by_line(packet)
        if self.session == MOLD or packet.line == self.cfg.lines:
            return "this"
        ns, seq = packet.venue_ns, packet.seq
        if self.restarted and ns < self.run_ns and (seq > self.run_seq or ns <= self.old_ns):
            return "old"
        if seq >= self.top or ns <= self.venue_max or ns - self.venue_max < self.cfg.restart_ns:
            return "this"
        if self.session == CME and seq != 1 and self.top - seq <= self.cfg.window_packets:
            return "this"
        return "next"

    def run_by_line(self, packet: Packet) -> str:
        line, seq, window = self.lines[packet.line], packet.seq, self.cfg.window_packets
        settled = packet.rx_ns - self.run_rx > self.cfg.window_ns
        if line.run != self.run:  # another line showed the new run
            was = line.tail.start
            fell = seq < was and (seq == 0 or was - seq > window)
            if not fell and not settled and line.fates["packets"] > 1:
                return "old"
            line.run = self.run
            return "this"
        if seq >= line.expect:
            return "this"
        if seq == 0 and (settled or line.expect > window):
            return "next"
        if line.expect - seq <= window:
            return "this"
        if seq and line.fall_next == seq:
            return "next"
        line.fall_next = seq + 1
        return "this"

    def unwrapped(self, raw: int) -> int:
        """A 32-bit sequence, as close to the next one as it can lie; past 2^28 from it, as it is."""
        away = (raw - self.next + 2**31) % 2**32 - 2**31
        if abs(away) < 2**28 and self.next + away >= 0:
            return self.next + away
        return (self.next & ~0xFFFFFFFF) | raw

    def is_wild(self, packet: Packet) -> bool:
        """Too far ahead to be believed alone."""
        if packet.seq - self.top <= self.cfg.window_packets * lib.XDS_CHANNEL_FAR:
            return False
        if packet.kind != "data":
            return True
        went_on = self.wild_end is not None and 0 <= packet.seq - self.wild_end <= self.cfg.window_packets
        self.wild_end = None if went_on else packet.end
        return not went_on

    # ---- one packet, one fate

    def straight(self, packet: Packet) -> bool:
        """In order, or the plain copy of what was: the only packets whose messages are not walked."""
        line = self.lines[packet.line]
        if (
            not self.joined or self.missing or self.waiting or packet.kind != "data"
            or packet.line == self.cfg.lines or packet.seq != line.expect or packet.ident != self.ident
            or line.run != self.run or packet.seq > SEQ_MAX
        ):  # fmt: skip
            return False
        if packet.seq == self.next:
            return packet.venue_ns >= self.venue_max
        return (
            self.join <= packet.seq and packet.end <= self.next
            and self.run_ns <= packet.venue_ns <= self.venue_max
            and (not self.lost or packet.seq >= self.lost[-1].stop)
        )  # fmt: skip

    def classify(self, packet: Packet) -> None:
        line = self.lines[packet.line]
        if packet.seq > SEQ_MAX:
            raise Refused(lib.XDS_EMALFORMED)
        if self.per_message and packet.kind == "data" and not self.straight(packet):
            behind(self.session, packet.data, packet.count)
        if not self.joined:
            if not self.may_join(packet):
                raise Refused(lib.XDS_EFOREIGN)
            self.ident = packet.ident
            self.begin(packet, self.cfg.first_seq if self.cfg.start else packet.seq)
            self.joined = True
            self.tell("JOINED", packet.seq, 0)
        elif packet.ident != self.ident:
            self.other_session(packet)
            line.fates["heartbeat"] += packet.kind != "data"
            self.begin_run(packet, session=True)
            return self.place(packet)
        if self.session == PLAIN:
            packet.seq = self.unwrapped(packet.seq)
        run = self.run_of(packet)
        line.fates["heartbeat"] += packet.kind != "data"
        if run == "old":
            came = range(max(packet.seq, line.tail.start), min(packet.end, line.tail.stop))
            if came:
                line.fates["lost"] -= len(came)
                line.tail = range(came.stop, line.tail.stop)
            line.fates["late"] += packet.kind == "data"
        elif run == "next":
            packet.seq &= 0xFFFFFFFF if self.session == PLAIN else -1
            self.begin_run(packet, session=False)
            self.place(packet)
        elif not self.is_wild(packet):
            self.place(packet)
        elif packet.kind == "data":
            raise Refused(lib.XDS_EFOREIGN)

    def place(self, packet: Packet) -> None:
        """A packet of this run."""
        line, asked = self.lines[packet.line], packet.line == self.cfg.lines
        if not asked:
            self.venue_max = max(self.venue_max, packet.venue_ns)
            line.track(packet.seq, packet.end)
        if packet.kind != "data":
            if packet.seq > self.top:
                self.miss(packet.seq)
            if packet.kind == "end" and not self.ended:
                self.ended = True
                self.stats["ended"] += 1
                self.tell("END", packet.seq, 0)
            return
        units = range(packet.seq, packet.end)
        if packet.end <= self.top and not any(unit in self.missing for unit in units):
            late = packet.seq < self.join or any(u in lost for lost in self.lost for u in units)
            line.fates["late" if late else "duplicate"] += 1
            self.stats["retransmitted_useless"] += asked
            return
        ahead, large = packet.seq > self.next, len(packet.data) > self.cfg.slot_bytes
        full = len(self.waiting) == self.cfg.window_packets
        if ahead and (large or (full and self.cfg.request_max)):
            if packet.end > self.top:
                self.miss(packet.end)
            if self.cfg.request_max:
                for gap in self.gaps():
                    ask = self.missing[gap.start]
                    ask.due = ask.due if ask.tries else min(ask.due, self.now)
            line.fates["no_room"] += 1
            self.stats["retransmitted_useless"] += asked
            raise Refused(lib.XDS_ECAPACITY)
        self.fill(packet)
        if packet.seq > self.top:
            self.miss(packet.seq)
        self.top = max(self.top, packet.end)
        self.settle(packet, doom=ahead and full)

    # ---- the calls

    def input(self, line: int, raw: bytes, now: int = 0, rx: int | None = None) -> int:
        was, lane = len(self.blocks), self.lines[line]
        lane.fates["packets"] += 1
        lane.fates["bytes"] += len(raw)
        self.stats["retransmitted_packets"] += line == self.cfg.lines
        code = 0
        try:
            packet = read(self.session, raw)
            packet.line, packet.rx_ns, self.now = line, now if rx is None else rx, now
            self.classify(packet)
        except Refused as refused:
            code = refused.code
            name = {
                lib.XDS_ETRUNC: "truncated", lib.XDS_EMALFORMED: "malformed", lib.XDS_EFOREIGN: "foreign",
            }.get(code)  # fmt: skip
            if name:
                lane.fates[name] += 1
                self.stats["retransmitted_useless"] += line == self.cfg.lines
        if self.joined:
            self.settle()
        return 1 if len(self.blocks) > was else code

    def tick(self, now: int) -> None:
        self.now = now
        if self.missing:
            self.settle()

    def finish(self, now: int) -> None:
        self.now = now
        if self.joined:
            for line in self.lines[:-1]:
                line.track(self.top, self.top)
            self.settle(flush=True)

    def requests(self, now: int) -> list[tuple[bytes, int, int]]:
        asked = []
        for gap in self.gaps() if self.cfg.request_max else []:
            ask = self.missing[gap.start]
            while ask.tries < self.cfg.retries and ask.due <= now < ask.found + self.cfg.give_up_ns:
                self.now = now
                count = min(len(gap), self.cfg.request_max)
                ask.asked_end = gap.start + count
                ask.due = now + self.wait(ask.tries)
                ask.tries += 1
                self.stats["requests"] += 1
                self.tell("GAP_ASKED", gap.start, count)
                asked.append((self.ident, gap.start, count))
        return asked

    def wait(self, tries: int) -> int:
        """Doubles with each try, up to the time after which nothing is asked for."""
        doubled: int = self.cfg.retry_ns * 2**tries
        return doubled if doubled <= self.cfg.give_up_ns else self.cfg.give_up_ns

    @property
    def deadline(self) -> int:
        due = [NEVER]
        for position, gap in enumerate(self.gaps()):
            ask = self.missing[gap.start]
            if position == 0 or (self.cfg.request_max and ask.tries < self.cfg.retries):
                due.append(ask.due)
            if position == 0 and self.cfg.request_max:
                due.append(ask.found + self.cfg.give_up_ns)
        return min(due)

    # ---- what is compared

    def counters(self) -> Iterator[tuple[str, int]]:
        yield from self.stats.items()
        yield "next_seq", self.next
        yield "gaps_open", len(self.gaps())
        yield "units_open", len(self.missing)

    def line_counters(self, index: int) -> Iterator[tuple[str, int]]:
        yield from self.lines[index].fates.items()
        yield "buffered", sum(packet.line == index for packet in self.waiting)
