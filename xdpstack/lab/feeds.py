"""The demo venue's feeds: undamaged lines with their times, from the captures in the repository.

Times are nanoseconds from the start of the play. A recording's idle time is shortened (:func:`squeeze`):
gaps longer than some length are cut to it, bursts and order stay as they were.

Two lines may not lose the same packet by chance: what one line's seed loses the later lines keep, so that
the only holes in all lines are the chosen ones. The ends of an epoch are never damaged (``GUARD`` packets):
a receiver cannot tell a lost end from a silent venue.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from xdpstack import schema
from xdpstack.errors import ConfigError
from xdpstack.lab import mold
from xdpstack.lab.capture import read_datagrams
from xdpstack.lab.truth import epochs_of
from xdpstack.venues import day

__all__ = [
    "CAPTURES",
    "GUARD",
    "Feed",
    "Line",
    "cme",
    "day_packets",
    "iex",
    "itch",
    "itch_messages",
    "squeeze",
]

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
GUARD = 8
"""Packets at either end of an epoch that no line loses or moves."""


@dataclass(slots=True, kw_only=True)
class Line:
    """One line of a feed, undamaged: where it is sent and ``(ns, payload)`` in time order."""

    name: str
    group: str
    port: int
    source_port: int
    packets: list[tuple[int, bytes]]


@dataclass(slots=True, kw_only=True)
class Feed:
    """A feed with its lines; all lines carry the same packets in the same order."""

    name: str
    session: str
    """mold64, iextp or cme."""
    lines: list[Line]
    holes: list[int] = field(default_factory=list)
    """Packets, by index, that no line carries."""
    refused: list[tuple[bytes, int, int]] | None = None
    """Ranges (session, first, count) that the request server refuses; None: the feed has no such server."""
    guarded: set[int] = field(default_factory=set)
    """Packets that are never damaged."""

    @property
    def duration_ns(self) -> int:
        """When the last packet of any line is due."""
        return max(line.packets[-1][0] for line in self.lines)


def squeeze(times: Sequence[int], total_ns: int, start_ns: int = 0) -> list[int]:
    """Shorten idle time so that all fits in ``total_ns``: each gap becomes ``min(gap, X)`` with the largest
    such X.

    Times that go back (a capture's two cards disagree by microseconds) are taken as 1 ns after their
    predecessor.
    """
    gaps = [max(1, after - before) for before, after in pairwise(times)]
    if sum(gaps) > total_ns:
        ordered, kept = sorted(gaps), 0
        limit = max(1, total_ns // max(1, len(gaps)))
        for place, gap in enumerate(ordered):
            longest = (total_ns - kept) // (len(ordered) - place)
            if gap > longest:
                limit = max(1, longest)
                break
            kept += gap
        gaps = [min(gap, limit) for gap in gaps]
    out, at = [], start_ns
    for gap in [0, *gaps][: len(times)]:
        at += gap
        out.append(at)
    return out


def _guards(session: str, packets: Sequence[tuple[int, bytes]]) -> set[int]:
    """The packets at the ends of the epochs, and those that only say that nothing happened."""
    _, places = epochs_of(session, (payload for _, payload in packets))
    found: set[int] = set()
    start = 0
    for index in range(1, len(places) + 1):
        if index == len(places) or places[index][0] != places[index - 1][0]:
            found.update(range(start, min(start + GUARD, index)))
            found.update(range(max(start, index - GUARD), index))
            start = index
    found.update(index for index, (_, _, count) in enumerate(places) if count == 0)
    return found


def cme(seconds: float = 12.0, capture: Path = CAPTURES / "cme-mdp3-v8-line-a-and-b.pcapng") -> Feed:
    """CME MDP 3.0, one channel, lines A and B as recorded: groups, ports, contents and order of arrival."""
    datagrams = read_datagrams(capture).datagrams
    times = squeeze([one.ns for one in datagrams], int(seconds * 1e9))
    lines: dict[tuple[str, int], Line] = {}
    for ns, one in zip(times, datagrams, strict=True):
        group, port = one.destination
        if one.destination not in lines:
            name = "AB"[len(lines)] if len(lines) < 2 else str(len(lines))
            lines[one.destination] = Line(
                name=name, group=group, port=port, source_port=one.source[1], packets=[]
            )
        lines[one.destination].packets.append((ns, one.payload))
    ordered = sorted(lines.values(), key=lambda line: line.port)
    for name, line in zip("AB", ordered, strict=True):
        line.name = name
    return Feed(name="cme-mdp3", session="cme", lines=ordered, guarded=_guards("cme", ordered[0].packets))


def _second_line(first: Line, group: str, port: int, skew_ns: int) -> Line:
    """A line B with the same packets a little later."""
    packets = [(ns + skew_ns, payload) for ns, payload in first.packets]
    return Line(name="B", group=group, port=port, source_port=port, packets=packets)


def iex(
    seconds: float = 12.0,
    capture: Path = CAPTURES / "iex-deep10-2017-04-25.pcap.gz",
    *,
    lines: int = 2,
    skew_ns: int = 20_000,
) -> Feed:
    """IEX DEEP as recorded, its group and port; the last record, cut short, is left out.

    The capture holds one line. Line B (224.2.3.11:16649) is made from it, ``skew_ns`` later; ``lines=1``
    leaves it out.
    """
    datagrams = read_datagrams(capture).datagrams
    times = squeeze([one.ns for one in datagrams], int(seconds * 1e9))
    group, port = datagrams[0].destination
    packets = [(ns, one.payload) for ns, one in zip(times, datagrams, strict=True)]
    first = Line(name="A", group=group, port=port, source_port=datagrams[0].source[1], packets=packets)
    made = [first] if lines == 1 else [first, _second_line(first, "224.2.3.11", port + 1, skew_ns)]
    return Feed(name="iex-deep", session="iextp", lines=made, guarded=_guards("iextp", packets))


def itch_messages(path: Path = CAPTURES / "ritch-ex20101224.itch50") -> list[tuple[int, bytes]]:
    """The messages ``(ns since midnight, bytes)`` of a file with two zero bytes in place of each length."""
    sizes = {message.id: message.length for message in schema.load("itch50").messages}
    raw, at, out = path.read_bytes(), 0, []
    while at < len(raw):
        size = sizes.get(raw[at + 2]) if at + 2 < len(raw) else None
        if size is None or raw[at : at + 2] != b"\0\0" or at + 2 + size > len(raw):
            raise ConfigError(f"{path}: no whole ITCH 5.0 message behind two zero bytes at {at}")
        message = raw[at + 2 : at + 2 + size]
        out.append((int.from_bytes(message[5:11], "big"), message))
        at += 2 + size
    return out


def day_packets(parameters: day.Day = day.DEMO, gather_ns: int = 100_000) -> Iterator[tuple[int, bytes]]:
    """The generated Nasdaq day as MoldUDP64 packets ``(ns, payload)``; a packet gathers what falls within
    ``gather_ns``."""
    return day.packets(day.generate(parameters), gather_ns=gather_ns)


def itch(
    seconds: float = 12.0,
    later: Iterable[tuple[int, bytes]] | None = None,
    *,
    session: bytes = b"XDPSTACK01",
    seed: int = 1,
    served: int = 12,
    refused: int = 1,
    pause: float = 0.5,
    skew_ns: int = 20_000,
) -> Feed:
    """ITCH 5.0 over MoldUDP64 on lines A 233.54.12.111:26477 and B 233.54.13.111:26478.

    Session 1 is the file of a whole order life cycle; ``later``, MoldUDP64 packets ``(ns, payload)`` of other
    sessions, comes after a ``pause`` (seconds). Each session ends with end-of-session packets, and
    heartbeats fill the pause. ``served`` holes in both lines are spread over all sessions; ``refused`` more
    lie in session 1, and the request server does not give out what was in them.
    """
    chance = random.Random(seed)
    own = mold.pack(itch_messages(), session, seed=seed)
    following = list(later) if later is not None else []
    silence = int(pause * 1e9)
    active = int(seconds * 1e9) - silence * (2 if following else 1)
    share = active // 4 if following else active
    times = squeeze([ns for ns, _ in own], share)
    packets = [(at, payload) for at, (_, payload) in zip(times, own, strict=True)]
    packets += _ending(packets, silence)
    if following:
        start = packets[-1][0] + 1_000_000
        times = squeeze([ns for ns, _ in following], max(1, active - share), start)
        packets += [(at, payload) for at, (_, payload) in zip(times, following, strict=True)]
        packets += _ending(packets, silence)
    first = Line(name="A", group="233.54.12.111", port=26477, source_port=26477, packets=packets)
    guarded = _guards("mold64", packets)
    holes: list[int] = []
    _, places = epochs_of("mold64", (payload for _, payload in packets))
    ranges: list[tuple[bytes, int, int]] = []

    def dig(low: int, high: int) -> list[int]:
        """One to three packets in a row, away from the guarded ends and from other holes."""
        for _ in range(1000):
            begin, size = chance.randrange(low, high), chance.randint(1, 3)
            near = range(begin - 20, begin + size + 20)
            if begin + size <= high and not any(at in guarded or at in holes for at in near):
                holes.extend(range(begin, begin + size))
                return list(range(begin, begin + size))
        raise ConfigError(f"itch: no room for a hole between packets {low} and {high}")

    for number in range(refused):
        middle = len(own) * (2 * number + 1) // (2 * refused)
        dug = dig(max(0, middle - len(own) // 8), min(len(own), middle + len(own) // 8 + 50))
        units = sum(places[index][2] for index in dug)
        ranges.append((session, places[dug[0]][1], units))
    for number in range(served):
        dig(len(packets) * number // served, len(packets) * (number + 1) // served)
    second = _second_line(first, "233.54.13.111", 26478, skew_ns)
    return Feed(
        name="itch50",
        session="mold64",
        lines=[first, second],
        holes=sorted(holes),
        refused=ranges,
        guarded=guarded,
    )


def _ending(packets: Sequence[tuple[int, bytes]], silence_ns: int) -> list[tuple[int, bytes]]:
    """Heartbeats through the silence after a session, then its end, three times."""
    last_ns, payload = packets[-1]
    session, sequence, count = mold.HEADER.unpack_from(payload)
    following = sequence + (0 if count == mold.END_OF_SESSION else count)
    beats = max(2, silence_ns // 50_000_000)
    out = [
        (last_ns + silence_ns * (n + 1) // (beats + 1), mold.control(session, following))
        for n in range(beats)
    ]
    end = mold.control(session, following, end=True)
    return [*out, *[(last_ns + silence_ns + n * 100_000, end) for n in range(3)]]
