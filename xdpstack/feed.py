"""A feed: a venue's decoder, its channels with their lines, and the books behind them."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xdpstack import schema
from xdpstack._ffi import check, dtype, ffi, lib, names
from xdpstack.errors import CapacityError, ConfigError
from xdpstack.memory import Arena, Pointer
from xdpstack.port import Subscription
from xdpstack.schema import native

__all__ = [
    "Book",
    "Books",
    "Channel",
    "ChannelConfig",
    "Feed",
    "FeedConfig",
    "fault",
    "ip_to_int",
    "refuse_faults",
]

_SIDES = {"bid": 1, "ask": 2}


def ip_to_int(address: str) -> int:
    """An IPv4 address as the integer whose memory is network order (what C calls be32)."""
    return int.from_bytes(ipaddress.IPv4Address(address).packed, "little")


_LIMITS = {"first_seq": (1 << 64) - 1}
_CHOICES = {"start": ("late", "first")}
_LETTERS = {"session": 10}  # MoldUDP64


def fault(field: dataclasses.Field[Any], value: object) -> str:
    """What is wrong with a value of a configuration's field: ``wanted …, not …``; empty when it is right.

    Counts fit 32 bits (``first_seq`` 64), times are finite and at most a billion seconds."""
    limit = _LIMITS.get(field.name, (1 << 32) - 1)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if field.type == "int" and not (isinstance(value, int) and number and 0 <= value <= limit):
        return f"wanted a whole number from 0 to {limit}, not {value!r}"
    if field.type == "float" and not (isinstance(value, (int, float)) and number and _is_time(value)):
        return f"wanted seconds from 0 to 1e9, not {value!r}"
    if field.type == "bool" and not isinstance(value, bool):
        return f"wanted true or false, not {value!r}"
    if field.type == "str" and not (isinstance(value, str) and value.isprintable()):
        return f"wanted a string, not {value!r}"
    if field.name in _CHOICES and value not in _CHOICES[field.name]:
        return f"wanted one of {', '.join(_CHOICES[field.name])}, not {value!r}"
    if field.name in _LETTERS and not (str(value).isascii() and len(str(value)) <= _LETTERS[field.name]):
        return f"wanted at most {_LETTERS[field.name]} ASCII letters, not {value!r}"
    return ""


def _is_time(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 1e9


def refuse_faults(config: Any) -> None:
    """Raise ConfigError for the first wrong field of a configuration."""
    for field in dataclasses.fields(config):
        why = fault(field, getattr(config, field.name))
        if why:
            raise ConfigError(f"{field.name}: {why}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """One sequenced channel: its lines, its reorder window, its request server. Times in seconds."""

    lines: Sequence[Subscription]
    window_packets: int = 1024
    slot_bytes: int = 2048
    window: float = 0.005
    retry: float = 0.01
    give_up: float = 1.0
    retries: int = 5
    request: Subscription | None = None
    request_max: int = 256
    start: str = "late"
    first_seq: int = 1
    restart: float = 0.0
    session: str = ""

    def __post_init__(self) -> None:
        refuse_faults(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeedConfig:
    """A feed by schema name, with the bounds of its books."""

    schema: str
    channels: Sequence[ChannelConfig]
    name: str = ""
    books: bool = True
    max_instruments: int = 65536
    max_orders: int = 1 << 20
    max_levels: int = 1 << 19

    def __post_init__(self) -> None:
        refuse_faults(self)


class Channel:
    """One channel's native core and its address plan."""

    core = Pointer()

    def __init__(self, feed: Feed, config: ChannelConfig, arena: Arena) -> None:
        self.feed, self.config, self.arena = feed, config, arena
        if not 1 <= len(config.lines) <= lib.XDS_LINES_MAX:
            raise ConfigError(
                f"feed {feed.name}: a channel has 1 to {lib.XDS_LINES_MAX} lines, not {len(config.lines)}"
            )
        raw = ffi.new("struct xds_channel_config *")
        raw.session, raw.framing = feed.decoder.session, feed.decoder.framing
        raw.lines = len(config.lines)
        raw.start = lib.XDS_START_FIRST if config.start == "first" else lib.XDS_START_LATE
        raw.first_seq = config.first_seq
        raw.window_packets, raw.slot_bytes = config.window_packets, config.slot_bytes
        raw.window_ns, raw.retry_ns = int(config.window * 1e9), int(config.retry * 1e9)
        raw.give_up_ns, raw.restart_ns = int(config.give_up * 1e9), int(config.restart * 1e9)
        raw.request_max = config.request_max if config.request else 0
        raw.retries = config.retries if config.request else 0
        name = config.session.encode()
        ffi.buffer(raw.session_name)[: len(name)] = name
        size = lib.xds_channel_size(raw)
        if not size:
            raise ConfigError(
                f"feed {feed.name}: the channel {config.lines[0]} contradicts itself (window a power of two?)"
            )
        self.core = ffi.cast("struct xds_channel *", arena.alloc(size))
        check(lib.xds_channel_init(self.core, raw), f"feed {feed.name}: channel {config.lines[0]}")

    def stats(self) -> dict[str, Any]:
        """Counters of the channel, with ``lines`` (a dict each, the request server's answers last)."""
        raw = ffi.new("struct xds_channel_stats *")
        lib.xds_channel_stats(self.core, raw)
        stats: dict[str, Any] = struct_dict(raw)
        line = ffi.new("struct xds_line_stats *")
        stats["lines"] = []
        for index in range(len(self.config.lines) + 1):
            if lib.xds_channel_line_stats(self.core, index, line) == 0:
                who = str(self.config.lines[index]) if index < len(self.config.lines) else "retransmission"
                stats["lines"].append({"line": who, **struct_dict(line)})
        return stats


def struct_dict(pointer: Any) -> dict[str, Any]:
    """A C struct of integers as a dict, field by field."""
    return {name: getattr(pointer, name) for name, _ in ffi.typeof(pointer).item.fields}


class Book(Mapping[str, Any]):
    """One instrument's book: a window on the native one, read on the thread that turns the engine."""

    def __init__(self, books: Books, index: int) -> None:
        self._books, self.index = books, index

    def levels(self, side: str, depth: int = 5) -> np.ndarray[Any, Any]:
        """Best levels first: a structured array of (price, qty, orders, flags); prices of ``scale``."""
        out = np.zeros(depth, dtype("struct xds_level"))
        count = lib.xds_books_levels(
            self._books.core, self.index, _SIDES[side], ffi.from_buffer("struct xds_level[]", out), depth
        )
        return out[: check(count, f"instrument {self.index}")]

    def orders(self, side: str, limit: int = 1000) -> np.ndarray[Any, Any]:
        """Orders in price-time order with the quantity ahead of each (L3 books only)."""
        out = np.zeros(limit, dtype("struct xds_order"))
        count = lib.xds_books_orders(
            self._books.core, self.index, _SIDES[side], ffi.from_buffer("struct xds_order[]", out), limit
        )
        return out[: check(count, f"instrument {self.index}")]

    @property
    def scale(self) -> int:
        """Prices are integers of 10 ** -scale."""
        return self._books.feed.scale(self.index)

    @property
    def stale(self) -> bool:
        """The book stands behind an open gap."""
        return bool(lib.xds_books_stale(self._books.core, self.index))

    @property
    def checksum(self) -> int:
        """A 64-bit hash of the whole state; how it is made stands in cffi_build/cores/book/README.md."""
        return int(lib.xds_books_checksum(self._books.core, self.index))

    def __getitem__(self, key: str) -> Any:
        return self.levels(key)

    def __iter__(self) -> Iterator[str]:
        return iter(_SIDES)

    def __len__(self) -> int:
        return len(_SIDES)

    def __repr__(self) -> str:
        if self._books.arena.closed:
            return f"<Book {self.index} closed>"
        bid, ask = self.levels("bid", 1), self.levels("ask", 1)
        show = [
            f"{level[0]['qty']} @ {level[0]['price'] / 10**self.scale}" if len(level) else "none"
            for level in (bid, ask)
        ]
        stale = " STALE" if self.stale else ""
        return f"<Book {self._books.feed.symbol(self.index)} bid {show[0]} ask {show[1]}{stale}>"


class Books(Mapping[str, Book]):
    """All books of a feed, by symbol."""

    core = Pointer()

    def __init__(self, feed: Feed, arena: Arena) -> None:
        self.feed, self.arena = feed, arena
        raw = ffi.new("struct xds_books_config *")
        raw.kind = feed.decoder.book
        raw.max_instruments = feed.config.max_instruments
        raw.max_orders, raw.max_levels = feed.config.max_orders, feed.config.max_levels
        size = lib.xds_books_size(raw)
        if not size:
            raise ConfigError(f"feed {feed.name}: bad bounds of its books")
        self.core = ffi.cast("struct xds_books *", arena.alloc(size))
        check(lib.xds_books_init(self.core, raw), f"feed {feed.name}: books")

    def __getitem__(self, symbol: str) -> Book:
        return Book(self, self.feed.index(symbol))

    def __iter__(self) -> Iterator[str]:
        return (self.feed.symbol(index) for index in self.feed.indices())

    def __len__(self) -> int:
        return len(self.feed.indices())

    def at(self, index: int) -> Book:
        """The book of an ``xds_update.instrument``."""
        return Book(self, index)

    def checksums(self) -> dict[str, str]:
        """Each instrument's checksum by symbol, 16 hexadecimal digits."""
        return {
            self.feed.symbol(i): f"{lib.xds_books_checksum(self.core, i):016x}" for i in self.feed.indices()
        }

    def stats(self) -> dict[str, Any]:
        """Counters of all books, refusals by name."""
        raw = ffi.new("struct xds_books_stats *")
        lib.xds_books_stats(self.core, raw)
        stats = struct_dict(raw)
        words = names("xds_book_reason", "XDS_BOOK_")
        stats["reasons"] = {
            words[i]: raw.reasons[i] for i in range(1, lib.XDS_BOOK_REASONS) if raw.reasons[i]
        }
        return stats


class Feed:
    """A venue's feed inside an engine."""

    memory = Pointer()

    def __init__(self, config: FeedConfig, arena: Arena) -> None:
        self.config, self.arena = config, arena
        self.name = config.name or config.schema
        self.decoder = native.find(config.schema)
        raw = ffi.new("struct xds_decoder_config *", {"max_instruments": config.max_instruments})
        size = lib.xds_decoder_size(self.decoder, raw)
        if not size:
            raise ConfigError(f"feed {self.name}: max_instruments {config.max_instruments} is out of bounds")
        self.memory = arena.alloc(size)
        check(lib.xds_decoder_init(self.decoder, self.memory, raw), f"feed {self.name}: decoder")
        self.books: Books | None = Books(self, arena) if config.books and self.decoder.book else None
        self.owners = arena.alloc(config.max_instruments) if len(config.channels) > 1 else ffi.NULL
        self.channels = [Channel(self, channel, arena) for channel in config.channels]
        self.number = -1  # in its engine
        self.ages: dict[str, Any] = {}  # histograms by stage, filled by the engine
        self.stages: Any = None  # a StageHists, where the engine keeps them

    @property
    def book(self) -> Books:
        """The books, by symbol."""
        if self.books is None:
            raise CapacityError(f"feed {self.name} keeps no books")
        return self.books

    def indices(self) -> list[int]:
        """Every instrument index that the decoder knows so far (some may have no symbol yet)."""
        count = lib.xds_decoder_instruments(self.decoder, self.memory)
        known = lib.xds_decoder_instrument
        return [i for i in range(count) if known(self.decoder, self.memory, i) != ffi.NULL]

    def symbol(self, index: int) -> str:
        """The instrument's symbol; where none was announced, the venue's own number after a #: its locate
        code, its security id."""
        raw = lib.xds_decoder_instrument(self.decoder, self.memory, index)
        text = ffi.string(raw.symbol).decode("ascii", "replace") if raw != ffi.NULL else ""
        return text or (f"#{raw.key}" if raw != ffi.NULL else f"#{index}")

    def scale(self, index: int) -> int:
        """Decimals of the instrument's prices."""
        raw = lib.xds_decoder_instrument(self.decoder, self.memory, index)
        return int(raw.scale) if raw != ffi.NULL else 0

    def index(self, symbol: str) -> int:
        """The instrument index of a symbol (or of ``#number``); KeyError when it is not known (yet)."""
        for index in self.indices():
            if self.symbol(index) == symbol:
                return index
        raise KeyError(symbol)

    @functools.cached_property
    def messages(self) -> list[Any]:
        """The schema's messages by ``xds_message.type``; ConfigError for a decoder built elsewhere."""
        return [schema.load(self.config.schema).message(name) for name in self.types()]

    def types(self) -> list[str]:
        """The names of the schema's message types, by ``xds_message.type``."""
        return [ffi.string(self.decoder.types[i].name).decode() for i in range(self.decoder.n_types)]

    def stats(self) -> dict[str, Any]:
        """Decoder counters: messages by type and reasons by name."""
        raw = ffi.new("struct xds_decoder_stats *")
        lib.xds_decoder_stats(self.decoder, self.memory, raw)
        words = names("xds_decode_reason", "XDS_DECODE_")
        return {
            "blocks": raw.blocks,
            "bytes": raw.bytes,
            "messages": raw.messages,
            "updates": raw.updates,
            "instrument_gaps": raw.instrument_gaps,
            "superseded": raw.superseded,
            "by_type": {name: raw.by_type[i] for i, name in enumerate(self.types()) if raw.by_type[i]},
            "reasons": {words[i]: raw.reasons[i] for i in range(1, lib.XDS_DECODE_REASONS) if raw.reasons[i]},
        }

    def groups(self) -> Iterable[Subscription]:
        """Every line of every channel."""
        return (line for channel in self.channels for line in channel.config.lines)

    def __repr__(self) -> str:
        if self.arena.closed:
            return f"<Feed {self.name} closed>"
        return f"<Feed {self.name}: {len(self.channels)} channels, {len(self.indices())} instruments>"
