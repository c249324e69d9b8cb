"""What a venue's messages are, whether they came from a declarative file or from SBE XML.

A :class:`Schema` has messages; a message has fields at offsets and, in SBE, repeating groups; an
:class:`Update` says how a message, or each entry of a group, becomes one normalised update. Every
product (C decoder, dtypes, tables, scapy layer, reference decoder) is made from this model alone.
Standard library only: it runs before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xdpstack.errors import ConfigError

if TYPE_CHECKING:  # the build generates C with the standard library alone
    import numpy as np

__all__ = [
    "FLAGS", "FRAMINGS", "KINDS", "SESSIONS", "SIDES", "ByteMap", "Define", "Field", "Group", "Message",
    "Schema", "SchemaError", "Update",
]  # fmt: skip

# The words of update.h and channel.h; test_schema holds them equal to the compiled enums.
KINDS = {
    "none": 0, "add": 1, "execute": 2, "execute_at": 3, "reduce": 4, "delete": 5, "replace": 6, "level": 7,
    "level_insert": 8, "level_change": 9, "level_delete": 10, "level_delete_thru": 11,
    "level_delete_from": 12, "clear": 13, "trade": 14, "trade_break": 15, "modify": 16,
}  # fmt: skip
SIDES = {"none": 0, "bid": 1, "ask": 2}
FLAGS = {
    "last": 1,
    "stale": 2,
    "snapshot": 4,
    "implied": 8,
    "recovered": 16,
    "keeps_priority": 32,
    "hidden": 64,
}
SESSIONS = {"plain": 1, "mold64": 2, "iextp": 3, "cme": 4}
FRAMINGS = {"u16be": 1, "u16le": 2, "sbe": 3, "fixed": 4}
BAD = 0x80  # in a map: a value that the specification does not have


class SchemaError(ConfigError):
    """A schema file that contradicts itself; the sentence names file and key."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field at a fixed offset.

    ``kind`` is ``uint``, ``int`` or ``char`` (bytes); ``count`` above 1 is an array. ``scale`` is the
    number of decimals of a price, None for what is not one. ``null`` is the wire value that means
    absent. ``values`` names enumeration values. ``since`` is the first schema version that has it.
    """

    name: str
    offset: int
    size: int
    kind: str
    scale: int | None = None
    null: int | None = None
    since: int = 0
    values: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Group:
    """A repeating group of SBE: a dimension header, then ``count`` entries of ``block_length`` bytes."""

    name: str
    fields: tuple[Field, ...]
    block_length: int
    dimension_size: int
    length_offset: int
    length_size: int
    count_offset: int
    count_size: int
    since: int = 0

    def __getitem__(self, name: str) -> Field:
        """The field of this name."""
        return next(f for f in self.fields if f.name == name)


@dataclass(frozen=True, slots=True)
class ByteMap:
    """A byte of the message through a table of 256: enumerations to our words.

    ``offset`` None is a constant: the table has one value everywhere.
    """

    offset: int | None
    table: bytes

    @classmethod
    def constant(cls, value: int) -> ByteMap:
        """The same value whatever the message says."""
        return cls(None, bytes([value]) * 256)

    def of(self, data: bytes, at: int = 0) -> int:
        """The mapped value in ``data``, whose block begins at ``at``."""
        return self.table[0 if self.offset is None else data[at + self.offset]]


@dataclass(frozen=True, slots=True)
class Update:
    """One normalised update made from a message, or from each entry of ``group``.

    ``override`` (SBE) replaces the kind where it is not 0: a book reset among price levels.
    """

    kind: ByteMap
    side: ByteMap
    flags: ByteMap
    order_id: Field | None = None
    price: Field | None = None
    qty: Field | None = None
    ref: Field | None = None
    level: Field | None = None
    orders: Field | None = None
    drop_empty: bool = False
    fixed_level: int = 0
    group: str | None = None
    override: ByteMap | None = None
    all_instruments: bool = False
    key_in_root: bool = False
    clear_first: bool = False


@dataclass(frozen=True, slots=True)
class Define:
    """Where an instrument definition (SBE) says symbol, depth and price scale."""

    key: Field
    symbol: Field
    scale: int
    depth_group: str | None = None
    depth: Field | None = None
    depth_where: Field | None = None
    depth_value: bytes = b""
    implied_value: bytes = b""


@dataclass(frozen=True, slots=True)
class Message:
    """One message type. Offsets count from the type's first byte (SBE: from the root block, which lies
    ``header`` bytes behind the message's first)."""

    name: str
    title: str
    id: int
    fields: tuple[Field, ...]
    length: int
    groups: tuple[Group, ...] = ()
    since: int = 0
    updates: tuple[Update, ...] = ()
    defines: bool = False
    define: Define | None = None
    byte_order: str = "little"
    header: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the message as it lies on the wire (SBE: message header and root block)."""
        from xdpstack.schema import dtypes

        return dtypes.message_dtype(self)

    def __getitem__(self, name: str) -> Field:
        """The field of this name."""
        return next(f for f in self.fields if f.name == name)

    def find(self, name: str) -> Field | None:
        """The field of this name, or None."""
        return next((f for f in self.fields if f.name == name), None)

    def group(self, name: str) -> Group:
        """The repeating group of this name."""
        return next(g for g in self.groups if g.name == name)


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """A venue's whole message set and how it maps to normalised updates."""

    name: str
    title: str
    origin: str
    session: str
    framing: str
    byte_order: str
    book: int
    scale: int
    messages: tuple[Message, ...]
    type_offset: int = 0
    message_size: int = 0  # framing "fixed": the size of every type, 0 where they differ
    index: str = "hash"  # instruments: "direct" by a small number, "hash" by any 64-bit key
    key: str = ""
    symbol: str = ""
    depth: int = 0  # levels of an instrument that no definition came for; 0 all
    implied_depth: int = 0
    venue_ns: str = ""
    last_of_block: bool = False
    schema_id: int = 0  # SBE
    versions: tuple[int, ...] = ()  # SBE: the versions whose templates were merged
    event_field: str = ""  # SBE: root field whose bit `event_bit` ends the venue's event
    event_bit: int = 0
    sequence: str = ""  # SBE: the instrument's own sequence in group entries

    @property
    def sbe(self) -> bool:
        """Whether messages are SBE (a header, a root block, groups)."""
        return self.framing == "sbe"

    @property
    def names(self) -> tuple[str, ...]:
        """Message names, in the order of the decoder's types."""
        return tuple(m.name for m in self.messages)

    def message(self, name: str) -> Message:
        """The message of this name; ConfigError names those that exist."""
        for message in self.messages:
            if message.name == name:
                return message
        raise SchemaError(f"{self.name}: there is no message {name!r}; known: {', '.join(self.names)}")

    def by_id(self, type_: int) -> Message | None:
        """The message of this type byte or template id, or None."""
        return next((m for m in self.messages if m.id == type_), None)
