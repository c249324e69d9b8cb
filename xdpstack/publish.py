"""What a free-running engine tells other processes, by a tape, and what they ask of it, by a ring.

The engine's side is configured (``[publish]`` and ``[commands]`` of a program, or :meth:`Engine.publish`); a
trading core in another process reads with :class:`Subscriber`, a cursor of its own, and asks with
:class:`Commander`. Formats are ``cffi_build/xds/publish.h``'s, described in ``cffi_build/xds/tape.md``.

    with Subscriber.open("/dev/shm/itch.tape", "core-1") as engine:
        batch = engine.gather()                # everything that waits
        act(batch.of("itch50"))                # struct xds_update: one view a feed, valid until the next
        for news in batch.news: ...            # events, answers, the engine's state
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xdpstack._ffi import check, dtype, ffi, lib, names, names_of_code
from xdpstack.closing import Closing
from xdpstack.errors import CapacityError, ConfigError, RemoteProtocolError, SetupError
from xdpstack.feed import ip_to_int, refuse_faults, struct_dict
from xdpstack.port import Subscription
from xdpstack.ring import Ring
from xdpstack.sessions import KINDS, Profiles, SessionConfig, SessionNews, session_news, session_stats
from xdpstack.stack import BITS, address_text
from xdpstack.tape import Tape, TapeReader, make_tape
from xdpstack.tcp import address16

__all__ = [
    "Commander",
    "CommandsConfig",
    "Gathered",
    "News",
    "Publication",
    "PublishConfig",
    "SessionNews",
    "StreamNews",
    "Subscriber",
    "told",
]

_KINDS = names("xds_publish_kind", "XDS_PUBLISH_")
_COMMANDS = {word: number for number, word in names("xds_command_kind", "XDS_COMMAND_").items()}
_REFUSALS = names("xds_command_refusal", "XDS_REFUSAL_")
_SUBSCRIBABLE = ("updates", "events", "messages", "state")
_HEAD = int(ffi.sizeof("struct xds_publish_head"))
_RECORD = int(ffi.sizeof("struct xds_tape_record"))
_BEHIND = {
    "stream": "struct xds_publish_stream",
    **dict.fromkeys(KINDS.values(), "struct xds_publish_session"),
}
"""Of a record with data: what the data comes behind."""
_STREAM = int(ffi.sizeof("struct xds_publish_stream"))
_ROWS = {
    "updates": dtype("struct xds_update"),
    "events": dtype("struct xds_event"),
    "answer": dtype("struct xds_publish_answer"),
}
_MESSAGE = dtype("struct xds_publish_message")
_STAGES = dtype("struct xds_stages")
_NO_STAGES = np.empty(0, _STAGES)
_SHARED = Path("/dev/shm")
_VERSION = 3


def _path(word: str, kind: str) -> Path:
    return Path(word) if "/" in word else _SHARED / f"{word}.{kind}"


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ConfigError(f'mode: wanted a mode such as "0640", not {text!r}')
    return mode


def _bits(words: Sequence[str], known: Sequence[str], key: str) -> int:
    bits = 0
    for word in words:
        if word not in known:
            raise ConfigError(f"{key}: {word!r} is none of {', '.join(known)}")
        bits |= 1 << list(known).index(word)
    return bits


def _kinds(words: Sequence[str]) -> int:
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"what: wanted a list of {', '.join(_SUBSCRIBABLE)}, not {words!r}")
    _bits(words, _SUBSCRIBABLE, "what")
    numbers = {word: number for number, word in _KINDS.items()}
    return sum(1 << numbers[word] for word in set(words))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishConfig:
    """The tape: a path, or a name in /dev/shm. What lies there of a process that died goes on."""

    tape: str
    bytes: int = int(lib.XDS_TAPE_BYTES)
    mode: str = "0600"
    what: list[str] = dataclasses.field(default_factory=lambda: ["updates", "events", "state"])
    """Of ``updates events messages state``; commands may change it. Messages need the engine's index."""
    state_every: float = 0.1
    """Seconds between two records of the engine's own counters."""
    keep: bool = False
    """Leave the file where it is at the end, else it is removed."""
    tcp: bool = False
    """Of the first AF_XDP port: commands may open TCP connections where it has an address of its own, and
    what happens on them is published."""
    sessions: int = 16
    """Connections at once that speak the protocol of a ``[[session]]``, where there are any."""

    def __post_init__(self) -> None:
        refuse_faults(self)
        _mode(self.mode)
        _kinds(self.what)
        if self.bytes < 65536 or self.bytes & (self.bytes - 1):
            raise ConfigError(f"bytes: wanted a power of two, 65536 at least, not {self.bytes}")
        if not 1 <= self.sessions <= lib.XDS_SESSIONS_MAX:
            raise ConfigError(f"sessions: wanted 1 to {lib.XDS_SESSIONS_MAX}, not {self.sessions}")
        if self.state_every < 0:
            raise ConfigError(f"state_every: wanted seconds, not {self.state_every}")

    @property
    def path(self) -> Path:
        """Where it lies."""
        return _path(self.tape, "tape")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommandsConfig:
    """The ring: a path, or a name in /dev/shm. Commands that waited for a process that died are dropped."""

    ring: str
    bytes: int = 1 << 18
    mode: str = "0600"

    def __post_init__(self) -> None:
        refuse_faults(self)
        _mode(self.mode)
        if self.bytes < 4096 or self.bytes & (self.bytes - 1):
            raise ConfigError(f"bytes: wanted a power of two, 4096 at least, not {self.bytes}")

    @property
    def path(self) -> Path:
        """Where it lies."""
        return _path(self.ring, "ring")


class Publication(Closing):
    """The engine's side: the tape's writer, the ring's reader. SetupError while a live process is either."""

    def __init__(
        self,
        feeds: Sequence[str],
        publish: PublishConfig,
        commands: CommandsConfig | None = None,
        sessions: Sequence[SessionConfig] = (),
        segment: Any = None,
    ) -> None:
        """``sessions``: what connections may be opened as; ``segment``: where their counters are shown."""
        self.closed = False
        self.config, self.commands_config = publish, commands
        with contextlib.ExitStack() as undo:
            self._tape = _writer(publish)
            undo.callback(self._tape.close, unlink=not publish.keep)
            said = {"publish": _VERSION, "feeds": list(feeds), "sessions": [one.name for one in sessions]}
            text = json.dumps(said).encode()
            if len(text) >= lib.XDS_TAPE_TEXT:
                raise ConfigError("the names of feeds and sessions are too long to be told on the tape")
            ffi.buffer(self._tape.pointer.text)[:] = text.ljust(lib.XDS_TAPE_TEXT, b"\0")
            self._ring = _reader(commands) if commands else None
            if self._ring:
                undo.callback(self._ring.close, unlink=True)
            self.pointer = ffi.new("struct xds_publisher *")
            code = lib.xds_publisher_init(
                self.pointer,
                self._tape._writer,
                self._ring.pointer if self._ring else ffi.NULL,
                _kinds(publish.what),
                (1 << lib.XDS_ENGINE_FEEDS) - 1,
                int(publish.state_every * 1e9),
            )
            if code == lib.XDS_ECONFIG:
                raise SetupError(
                    f"publish by {publish.path}", "the tape's records have a length of their own", "remove it"
                )
            check(code, "publish")
            if sessions:
                profiles = undo.enter_context(Profiles(sessions))
                profiles.attach(self.pointer, publish.sessions, segment)
                undo.callback(lib.xds_publisher_end, self.pointer)
            self._undo = undo.pop_all()

    def streams(self, core: Any, port: int, *, connects: bool) -> None:
        """Publish the connections of an engine port that are given; ``connects``: commands may open some."""
        check(lib.xds_publisher_streams(self.pointer, core, port, connects), "publish TCP")

    def stats(self) -> dict[str, Any]:
        """Records by kind, bytes of TCP data, commands, answers by name (``none``: done), ``sessions`` by
        protocol."""
        return _publish_stats(self.pointer.stats)

    def close(self) -> None:
        """Finish the tape: readers see its end. Both files are removed, unless the tape is to be kept."""
        if not self.closed:
            self.closed = True
            self._tape.finish()
            self._undo.close()

    def __repr__(self) -> str:
        return f"<Publication {self.config.path} {self._tape.written} records>"


def _publish_stats(raw: Any) -> dict[str, Any]:
    return {
        "records": {word: int(raw.records[number]) for number, word in _KINDS.items()},
        "commands": int(raw.commands),
        "answers": {word: int(raw.answers[number]) for number, word in _REFUSALS.items()},
        "stream_bytes": int(raw.stream_bytes),
        "sessions": {kind: session_stats(raw.sessions[number - 1], kind) for number, kind in KINDS.items()},
    }


def _writer(config: PublishConfig) -> Tape:
    if not config.path.exists():
        make_tape(config.path, config.bytes, mode=_mode(config.mode))
    return Tape.open(config.path)


def _reader(config: CommandsConfig) -> Ring:
    """The ring's reading side; what waits in it was for a process that is gone."""
    path = config.path
    if path.exists():
        ring = Ring.open(path, "reader")
        with contextlib.suppress(EOFError, RemoteProtocolError):
            while ring.read():
                ring.release()
        return ring
    Ring.create(path, config.bytes, mode=_mode(config.mode)).close()
    return Ring.open(path, "reader")


class StreamNews(NamedTuple):
    """What happened to a TCP connection of the engine."""

    port: int
    """Engine port; with ``connection`` it names the connection."""
    connection: int
    what: tuple[str, ...]
    """Of ``open readable writable fin closed reset refused timeout unreachable stalled``. One that is closed,
    reset, refused, timed out or unreachable is gone."""
    ns: int
    """CLOCK_TAI ns: when the engine's stack saw it."""
    at: int
    """Readable: position of the data in the stream, from 0 on; a jump is what this reader has lost."""
    data: np.ndarray[Any, Any]
    """What the peer sent (uint8), valid until the next read."""
    stages: tuple[int, ...]
    """Readable: CLOCK_TAI ns of the six stages (receive, wake, TLS begun and done, parsed, callback), 0 where
    one was not reached or the engine does not stamp."""
    local: tuple[str, int]
    """Of ``open``: address and port of either end."""
    remote: tuple[str, int]


class News(NamedTuple):
    """One record of an engine's tape. Arrays are valid until the next read."""

    number: int
    """On the tape; ``lost`` of the batch tells what is missing before it."""
    kind: str
    """``updates``, ``events``, ``messages``, ``state``, ``answer``, ``stream``, or a session's protocol:
    ``tls``, ``ws``, ``fix``."""
    now: int
    """CLOCK_TAI ns of the turn."""
    turn: int
    feed: str
    """Of updates; empty otherwise."""
    channel: int
    open_gaps: int
    sessions: Sequence[str]
    """Names of the engine's ``[[session]]`` tables."""
    rows: np.ndarray[Any, Any]
    """Updates, events, answers, or the table of messages."""
    data: np.ndarray[Any, Any]
    """The whole record (uint8): a message is ``data[row["offset"]:][:row["len"]]``."""

    def messages(self) -> Iterator[tuple[np.void, bytes]]:
        """Each row of a ``messages`` record with its bytes."""
        for row in self.rows:
            yield row, self.data[row["offset"] : int(row["offset"]) + int(row["len"])].tobytes()

    @property
    def stages(self) -> np.ndarray[Any, Any]:
        """Of updates and messages: when their packets passed each stage, dtype of ``struct xds_stages``,
        CLOCK_TAI ns. ``first`` and ``count`` say which of the updates are a packet's, ``first_message`` and
        ``messages`` which of the messages. Empty where the engine stamps none."""
        head = ffi.from_buffer("struct xds_publish_head *", self.data[:_HEAD])
        if self.kind not in ("updates", "messages") or not head.n_stages:
            return _NO_STAGES
        end = head.stages + head.n_stages * _STAGES.itemsize
        if not _HEAD <= head.stages <= end <= len(self.data):
            raise RemoteProtocolError(f"record {self.number}: its stages lie outside of it")
        return np.frombuffer(self.data[head.stages : end], _STAGES)

    def state(self) -> dict[str, Any]:
        """What a ``state`` record says: the engine's counters, and ``published``."""
        raw = ffi.new("struct xds_engine_stats *")
        stats = ffi.new("struct xds_publish_stats *")
        size = int(ffi.sizeof("struct xds_engine_stats"))
        ffi.memmove(raw, ffi.from_buffer(self.data[_HEAD:]), size)
        ffi.memmove(stats, ffi.from_buffer(self.data[_HEAD + size :]), ffi.sizeof("struct xds_publish_stats"))
        return {**struct_dict(raw), "published": _publish_stats(stats)}

    def answer(self) -> tuple[int, str]:
        """What an ``answer`` record says: the command's number, and why not (empty: it was done)."""
        refusal = int(self.rows["refusal"][0])
        return int(self.rows["number"][0]), _REFUSALS.get(refusal, str(refusal)) if refusal else ""

    def connection(self) -> int:
        """Which connection or listener an ``answer`` is about (that of ``connect`` or ``listen``: the new
        one), 0 none."""
        return int(self.rows["connection"][0])

    def stream(self) -> StreamNews:
        """What a ``stream`` record says."""
        raw = ffi.from_buffer("struct xds_publish_stream *", self.data[_HEAD : _HEAD + _STREAM])
        return StreamNews(
            port=raw.port,
            connection=raw.connection,
            what=tuple(word for bit, word in BITS.items() if raw.what & bit),
            ns=raw.ns,
            at=raw.at,
            data=self.data[_HEAD + _STREAM :][: raw.len],
            stages=tuple(raw.stages),
            local=(address_text(bytes(raw.local)), raw.local_port),
            remote=(address_text(bytes(raw.remote)), raw.remote_port),
        )

    def session(self) -> SessionNews:
        """What a record of a session's protocol says."""
        return session_news(self.kind, self.data[_HEAD:], self.sessions)


class Gathered:
    """Everything that one read gave: updates by feed, the rest by record; valid until the next read."""

    __slots__ = ("_feeds", "_first", "_first_row", "_stages", "_updates", "lost", "news", "now", "open_gaps")

    def __init__(
        self,
        feeds: Sequence[str],
        updates: np.ndarray[Any, Any],
        stages: np.ndarray[Any, Any],
        raw: Any,
        news: list[News],
        lost: int,
    ) -> None:
        self._feeds, self._updates, self._stages = feeds, updates, stages
        self._first, self._first_row = list(raw.first), list(raw.first_row)
        self.news = news
        """Events, messages, state and answers, in their order."""
        self.lost = lost
        """Records that are missing before the first of these."""
        self.now, self.open_gaps = int(raw.now), int(raw.open_gaps)
        """CLOCK_TAI ns of the last turn (0: nothing waited), and the ranges missing then."""

    def __len__(self) -> int:
        return int(self._first[-1])

    def of(self, feed: str) -> np.ndarray[Any, Any]:
        """The updates of one feed in their order, of all its channels: one view. ConfigError: no such."""
        number = self._number(feed)
        return self._updates[self._first[number] : self._first[number + 1]]

    def stages_of(self, feed: str) -> np.ndarray[Any, Any]:
        """When the packets that brought them passed each stage, dtype of ``struct xds_stages``: the updates
        ``of(feed)[row["first"]:][:row["count"]]`` came with the packet of a row. One view; ConfigError."""
        number = self._number(feed)
        return self._stages[self._first_row[number] : self._first_row[number + 1]]

    def _number(self, feed: str) -> int:
        if feed not in self._feeds:
            raise ConfigError(f"feed {feed!r} is none of {', '.join(self._feeds)}")
        return self._feeds.index(feed)

    def __repr__(self) -> str:
        return f"<Gathered {len(self)} updates, {len(self.news)} other records, {self.lost} lost>"


def told(reader: TapeReader) -> tuple[list[str], list[str]] | None:
    """What an engine's tape says of itself: names of feeds and of sessions; None: it is no engine's."""
    text = ffi.string(reader.pointer.text, lib.XDS_TAPE_TEXT).decode(errors="replace")
    try:
        said = json.loads(text)
        feeds, sessions = ([str(name) for name in said[key]] for key in ("feeds", "sessions"))
        return (feeds, sessions) if said["publish"] == _VERSION else None
    except (ValueError, KeyError, TypeError):
        return None


class Subscriber(Closing):
    """A reader of an engine's tape, with a cursor of its own; the engine never waits for it."""

    def __init__(self, reader: TapeReader) -> None:
        self.reader, self.closed = reader, False
        self._raw = ffi.new("struct xds_gathered *")
        self._updates, self._others = np.empty(0, _ROWS["updates"]), np.empty(0, np.uint32)
        self._stages = _NO_STAGES
        said = told(reader)
        if said is None:
            reader.close()
            raise SetupError(f"read {reader.path}", "no engine publishes by this tape")
        self.feeds, self.sessions = said
        """Names of the engine's feeds, and of its ``[[session]]`` tables."""

    @classmethod
    def open(cls, tape: Path | str, name: str = "", *, oldest: bool = False) -> Subscriber:
        """Attach by path or by name in /dev/shm, from the newest record on or the ``oldest`` still whole."""
        return cls(TapeReader.open(_path(str(tape), "tape"), name, oldest=oldest))

    def read(self) -> list[News]:
        """Everything that waits. EOFError: the engine has finished; RemoteProtocolError: this is no tape."""
        return [self.news_of(record) for record in self.reader.read()]

    def gather(self) -> Gathered:
        """Everything that waits, with the updates of each feed in one array: for who is called less often
        than the engine turns. Raises as :meth:`read`."""
        batch = self.reader.read()
        room = self.reader._room
        if len(batch) and not len(self._updates):  # as much as a read can give
            self._updates = np.empty(room.size // _ROWS["updates"].itemsize, _ROWS["updates"])
            self._others = np.empty(room.size // (_RECORD + _HEAD), np.uint32)
            self._stages = np.empty(room.size // _STAGES.itemsize, _STAGES)
        code = lib.xds_publish_gather(
            self.reader._to,
            room.size,
            len(batch),
            ffi.from_buffer("struct xds_update[]", self._updates),
            len(self._updates),
            ffi.from_buffer("struct xds_stages[]", self._stages),
            len(self._stages),
            ffi.from_buffer("uint32_t[]", self._others),
            len(self._others),
            self._raw,
        )
        if code < 0:
            raise RemoteProtocolError(
                f"{self.reader.path}: a record contradicts itself: {names_of_code(code)}"
            )
        news = [self.news_of(batch.at(int(place))) for place in self._others[: self._raw.others]]
        return Gathered(self.feeds, self._updates, self._stages, self._raw, news, batch.lost)

    def news_of(self, record: Any) -> News:
        """One record that the reader gave. RemoteProtocolError: it is none of an engine's."""
        data = record.data
        kind = _KINDS.get(record.kind)
        if kind is None or len(data) < _HEAD:
            raise RemoteProtocolError(f"{self.reader.path}: record {record.number} is of no known kind")
        head = ffi.from_buffer("struct xds_publish_head *", data[:_HEAD])
        count, at = int(head.count), _HEAD
        form = _ROWS.get(kind, _MESSAGE)
        if kind == "messages":
            at = int(head.table)
        if kind == "state":
            count = 0
        if kind in _BEHIND:
            count, at = 0, _HEAD + _bytes_of(data, _BEHIND[kind])
        if at + count * form.itemsize > len(data):
            raise RemoteProtocolError(f"{self.reader.path}: record {record.number} is cut")
        rows = np.frombuffer(data[at : at + count * form.itemsize], form)
        feed = ""
        if kind == "updates":
            feed = self.feeds[head.feed] if head.feed < len(self.feeds) else str(head.feed)
        turn, channel, gaps = head.turn, head.channel, head.open_gaps
        return News(record.number, kind, head.now, turn, feed, channel, gaps, self.sessions, rows, data)

    @property
    def lost(self) -> int:
        """Records that were overwritten before this reader came to them."""
        return self.reader.lost

    def wait(self, timeout: float) -> bool:
        """Sleep until something waits or the engine has finished, at most ``timeout`` s."""
        return self.reader.wait(timeout)

    @property
    def engine_alive(self) -> bool:
        """Whether the engine's process still runs."""
        return self.reader.writer_alive

    def close(self) -> None:
        """Give the slot back."""
        if not self.closed:
            self.closed = True
            self.reader.close()

    def __repr__(self) -> str:
        return f"<Subscriber {self.reader!r}>"


def _bytes_of(data: np.ndarray[Any, Any], form: str) -> int:
    """Bytes behind the head of a record: of a struct and of the data that it says it has."""
    size = int(ffi.sizeof(form))
    if len(data) < _HEAD + size:
        return size
    return size + int(ffi.from_buffer(f"{form} *", data[_HEAD : _HEAD + size]).len)


class Commander(Closing):
    """The writing side of an engine's command ring; one process at a time. Answers come by the tape."""

    def __init__(self, ring: Path | str, feeds: Sequence[str] = (), sessions: Sequence[str] = ()) -> None:
        """``feeds``, ``sessions``: as :class:`Subscriber` has them, where some are to be named. SetupError:
        no ring, or taken."""
        self._ring = Ring.open(_path(str(ring), "ring"), "writer")
        self._feeds, self._sessions = list(feeds), list(sessions)
        self._number, self.closed = 0, False

    def send(self, data: bytes, to: Subscription, *, sport: int, port: int = 0) -> int:
        """Have one datagram sent by an engine port, over either family. Returns the command's number."""
        kind, data, fields = datagram_command(data, to)
        return self._give(kind, data, **fields, sport=sport, port=port)

    def subscribe(self, what: Sequence[str] = (), feeds: Sequence[str] = ()) -> int:
        """Have kinds (``updates events messages state``), and those of ``feeds``, published."""
        return self._give("subscribe", what=_kinds(what), feeds=_bits(feeds, self._feeds, "feeds"))

    def cancel(self, what: Sequence[str] = (), feeds: Sequence[str] = ()) -> int:
        """Have them published no longer."""
        return self._give("cancel", what=_kinds(what), feeds=_bits(feeds, self._feeds, "feeds"))

    def connect(
        self, host: str, port: int, *, sport: int = 0, engine_port: int = 0, session: str | int = 0
    ) -> int:
        """Have a TCP connection opened to an address of either family; its number comes with the answer, that
        it is open with a ``stream`` record. ``sport``: local port, 0 any. ``session``: name or number (from 1
        on) of a ``[[session]]`` that it is to speak; ConfigError: there is none of that name."""
        number = session if isinstance(session, int) else self._profile(session)
        return self._give("connect", address16(host), dport=port, sport=sport, port=engine_port, feeds=number)

    def _profile(self, name: str) -> int:
        if name not in self._sessions:
            known = f"none of {', '.join(self._sessions)}" if self._sessions else "not known: there is none"
            raise ConfigError(f"session {name!r} is {known}")
        return self._sessions.index(name) + 1

    def listen(self, port: int, *, address: str = "", backlog: int = 0, engine_port: int = 0) -> int:
        """Have TCP connections accepted at ``port`` of an own address, or (empty) of any of either family.
        The listener's number comes with the answer; whom it accepts tells of itself, by a ``stream`` record
        that it is open. ``backlog``: most that may be half open, 0: 64. ``hang_up`` ends it; whom it accepted
        stays."""
        data = address16(address) if address else b""
        return self._give("listen", data, sport=port, what=backlog, port=engine_port)

    def write(
        self, connection: int, data: bytes, *, text: bool = False, ping: bool = False, engine_port: int = 0
    ) -> int:
        """Have data sent on a connection: all of it, or (refused: ``full``) nothing. What does not fit in
        the connection's send buffer never does. On one with a session it is a message: of WebSocket
        binary or ``text``, of FIX the fields from ``35=`` on, of TLS plain text; or a ``ping`` (of FIX a test
        request, without data)."""
        flags = lib.XDS_SESSION_TEXT * text | lib.XDS_SESSION_PING * ping
        return self._give("write", data, what=connection, port=engine_port, feeds=flags)

    def hang_up(self, connection: int, *, code: int = 0, reason: bytes = b"", engine_port: int = 0) -> int:
        """Have a connection closed, after what was written; or a listener. A session ends in order first
        (``code`` and ``reason``: of WebSocket's close frame; ``reason``: FIX's text); asked twice, or before
        it is open, at once."""
        return self._give("close", reason, what=connection, port=engine_port, dport=code)

    def reset(self, connection: int, *, engine_port: int = 0) -> int:
        """Have a connection ended at once; or a listener."""
        return self._give("reset", what=connection, port=engine_port)

    def shut_down(self) -> int:
        """Have the engine's thread end after the turn that reads it."""
        return self._give("stop")

    def _give(self, kind: str, data: bytes = b"", **fields: int) -> int:
        self._number += 1
        if not self._ring.write(0, command(kind, data, number=self._number, **fields)):
            raise CapacityError("the engine's command ring is full")
        return self._number

    def close(self) -> None:
        """Leave the side to another process."""
        if not self.closed:
            self.closed = True
            self._ring.close()

    def __repr__(self) -> str:
        return f"<Commander {self._ring!r}>"


def command(kind: str, data: bytes = b"", **fields: int) -> bytes:
    """A record of a command ring: its head, then its data."""
    head = ffi.new("struct xds_command *", {"kind": _COMMANDS[kind], "len": len(data), **fields})
    return bytes(ffi.buffer(head)) + data


def datagram_command(data: bytes, to: Subscription) -> tuple[str, bytes, dict[str, int]]:
    """Which command sends a datagram there, the data that it comes with, and what its head says of it."""
    if ":" in to.address:
        return "send6", address16(to.address) + data, {"dport": to.port}
    return "send", data, {"dport": to.port, "dst": ip_to_int(to.address)}
