"""The structs of linux/ethtool.h that bind queues, over a :class:`Surface`: one function a command.

The ioctl is used throughout and netlink nowhere: classification rules have no netlink form in any kernel,
RSS contexts only since 6.17, and drivers answer both doors alike for the rest.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import struct
from collections.abc import Mapping

from xdpstack.nic.surface import Surface

__all__ = [
    "COALESCE",
    "DEFAULT_CONTEXT",
    "Feature",
    "FlowRule",
    "Rss",
    "channels",
    "coalesce",
    "delete_rule",
    "driver",
    "features",
    "insert_rule",
    "new_context",
    "remove_context",
    "ring_count",
    "rings",
    "rss",
    "rules",
    "set_channels",
    "set_coalesce",
    "set_features",
    "set_indirection",
    "set_rings",
]

GDRVINFO, GCOALESCE, SCOALESCE, GRINGPARAM, SRINGPARAM = 0x03, 0x0E, 0x0F, 0x10, 0x11
GSTRINGS, GSSET_INFO, GFEATURES, SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
GRXRINGS, GRXCLSRLCNT, GRXCLSRULE, GRXCLSRLALL, SRXCLSRLDEL, SRXCLSRLINS = range(0x2D, 0x33)
GCHANNELS, SCHANNELS, GRSSH, SRSSH = 0x3C, 0x3D, 0x46, 0x47

_CHANNELS = ("rx", "tx", "other", "combined")
_RINGS = ("rx", "rx_mini", "rx_jumbo", "tx")
COALESCE = (
    "rx_usecs",
    "rx_frames",
    "rx_usecs_irq",
    "rx_frames_irq",
    "tx_usecs",
    "tx_frames",
    "tx_usecs_irq",
    "tx_frames_irq",
    "stats_block_usecs",
    "adaptive_rx",
    "adaptive_tx",
    "pkt_rate_low",
    "rx_usecs_low",
    "rx_frames_low",
    "tx_usecs_low",
    "tx_frames_low",
    "pkt_rate_high",
    "rx_usecs_high",
    "rx_frames_high",
    "tx_usecs_high",
    "tx_frames_high",
    "rate_sample_interval",
)
"""``struct ethtool_coalesce``, in order, as ethtool(8) spells them with ``-`` for ``_``."""


def driver(surface: Surface, interface: str) -> str:
    """The driver's own name, e.g. ``ice``; empty when it has none."""
    try:
        info = surface.ethtool(interface, struct.pack("I", GDRVINFO).ljust(196, b"\0"))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return ""
    return info[4:36].split(b"\0")[0].decode(errors="replace")


# ---- channels, rings, coalescing -----------------------------------------------------------------


def channels(surface: Surface, interface: str) -> tuple[dict[str, int], dict[str, int]]:
    """Counts now and at most, by ``rx``, ``tx``, ``other``, ``combined``."""
    raw = struct.unpack("9I", surface.ethtool(interface, struct.pack("9I", GCHANNELS, *[0] * 8)))
    return dict(zip(_CHANNELS, raw[5:9], strict=True)), dict(zip(_CHANNELS, raw[1:5], strict=True))


def set_channels(surface: Surface, interface: str, counts: Mapping[str, int]) -> None:
    """Set channel counts; the driver may reset the link."""
    now, _ = channels(surface, interface)
    now |= counts
    surface.ethtool(interface, struct.pack("9I", SCHANNELS, 0, 0, 0, 0, *(now[key] for key in _CHANNELS)))


def rings(surface: Surface, interface: str) -> tuple[dict[str, int], dict[str, int]]:
    """Descriptors a ring, now and at most, by ``rx``, ``rx_mini``, ``rx_jumbo``, ``tx``."""
    raw = struct.unpack("9I", surface.ethtool(interface, struct.pack("9I", GRINGPARAM, *[0] * 8)))
    return dict(zip(_RINGS, raw[5:9], strict=True)), dict(zip(_RINGS, raw[1:5], strict=True))


def set_rings(surface: Surface, interface: str, sizes: Mapping[str, int]) -> None:
    """Set ring sizes; the driver rounds to what it can, and may reset the link."""
    now, _ = rings(surface, interface)
    now |= sizes
    surface.ethtool(interface, struct.pack("9I", SRINGPARAM, 0, 0, 0, 0, *(now[key] for key in _RINGS)))


def coalesce(surface: Surface, interface: str) -> dict[str, int]:
    """Interrupt coalescing, by the names of ``COALESCE``."""
    count = len(COALESCE)
    raw = surface.ethtool(interface, struct.pack(f"{1 + count}I", GCOALESCE, *[0] * count))
    return dict(zip(COALESCE, struct.unpack(f"{1 + count}I", raw)[1:], strict=True))


def set_coalesce(surface: Surface, interface: str, values: Mapping[str, int]) -> None:
    """Set coalescing; a driver refuses (EOPNOTSUPP) a parameter that it does not have."""
    now = coalesce(surface, interface) | dict(values)
    surface.ethtool(interface, struct.pack(f"{1 + len(COALESCE)}I", SCOALESCE, *(now[k] for k in COALESCE)))


# ---- features ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """One offload. ``wanted`` is what was asked for, ``active`` what is, given the others."""

    wanted: bool
    active: bool
    can_change: bool


_SS_FEATURES = 4


def _feature_names(surface: Surface, interface: str) -> list[str]:
    asked = surface.ethtool(interface, struct.pack("=IIQI", GSSET_INFO, 0, 1 << _SS_FEATURES, 0))
    _, _, mask, count = struct.unpack("=IIQI", asked)
    if not mask or not count:
        return []
    raw = surface.ethtool(
        interface, struct.pack("3I", GSTRINGS, _SS_FEATURES, count).ljust(12 + 32 * count, b"\0")
    )
    return [raw[12 + 32 * n : 44 + 32 * n].split(b"\0")[0].decode() for n in range(count)]


def features(surface: Surface, interface: str) -> dict[str, Feature]:
    """Every offload by the kernel's name, e.g. ``rx-gro``, ``rx-vlan-hw-parse``."""
    names = _feature_names(surface, interface)
    blocks = (len(names) + 31) // 32
    raw = surface.ethtool(interface, struct.pack("II", GFEATURES, blocks).ljust(8 + 16 * blocks, b"\0"))
    found = {}
    for number, name in enumerate(names):
        block, bit = divmod(number, 32)
        available, wanted, active, never = struct.unpack_from("4I", raw, 8 + 16 * block)
        found[name] = Feature(
            bool(wanted >> bit & 1), bool(active >> bit & 1), bool(available & ~never & 1 << bit)
        )
    return found


def set_features(surface: Surface, interface: str, wanted: Mapping[str, bool]) -> None:
    """Ask for offloads on or off. KeyError: the kernel has none of that name."""
    names = _feature_names(surface, interface)
    blocks = [[0, 0] for _ in range((len(names) + 31) // 32)]
    for name, on in wanted.items():
        if name not in names:
            raise KeyError(name)
        block, bit = divmod(names.index(name), 32)
        blocks[block][0] |= 1 << bit
        blocks[block][1] |= on << bit
    body = b"".join(struct.pack("II", *block) for block in blocks)
    surface.ethtool(interface, struct.pack("II", SFEATURES, len(blocks)) + body)


# ---- flow rules ----------------------------------------------------------------------------------

_UDP_V4, _TCP_V4, _UDP_V6, _TCP_V6, _ETHER = 0x02, 0x01, 0x06, 0x05, 0x12
_FLOW_RSS, _FLOW_EXT, _FLOW_MAC_EXT = 0x20000000, 0x80000000, 0x40000000
_LOC_SPECIAL, _LOC_ANY = 0x80000000, 0xFFFFFFFF
_RXNFC = 192  # sizeof(struct ethtool_rxnfc); offsets of its parts:
_FS, _COUNT, _LOCATIONS = 16, 184, 188
_H, _H_EXT, _M, _M_EXT, _COOKIE, _LOCATION = 4, 56, 76, 128, 152, 160  # within fs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FlowRule:
    """UDP or TCP packets to an address and port, or frames to a link address, go to one queue, or are spread
    over an RSS context."""

    dst: str
    dport: int = 0
    src: str = ""
    protocol: str = "udp"
    """``udp``, ``tcp``, or ``ether``: then ``dst`` is a link address."""
    vlan: int = 0
    """A VLAN id, 0: any."""
    queue: int = 0
    context: int = 0
    """An RSS context; ``queue`` is then added to what its table says."""

    def __str__(self) -> str:
        if self.protocol == "ether":
            return f"flow-type ether dst {self.dst} action {self.queue}"
        source = f" src-ip {self.src}" if self.src else ""
        six = "6" if ":" in self.dst else "4"
        where = f"context {self.context}" if self.context else f"action {self.queue}"
        vlan = f" vlan {self.vlan:#x} m 0xf000" if self.vlan else ""
        return f"flow-type {self.protocol}{six}{source} dst-ip {self.dst} dst-port {self.dport}{vlan} {where}"

    def pack(self) -> bytes:
        """``struct ethtool_rx_flow_spec``, without its location."""
        if self.protocol == "ether":
            spec = bytearray(168)
            struct.pack_into("I", spec, 0, _ETHER)
            spec[_H : _H + 6], spec[_M : _M + 6] = bytes.fromhex(self.dst.replace(":", "")), b"\xff" * 6
            struct.pack_into("Q", spec, _COOKIE, self.queue)
            return bytes(spec)
        destination = ipaddress.ip_address(self.dst)
        size = len(destination.packed)
        source = ipaddress.ip_address(self.src).packed if self.src else bytes(size)
        flow = {("udp", 4): _UDP_V4, ("tcp", 4): _TCP_V4, ("udp", 16): _UDP_V6, ("tcp", 16): _TCP_V6}
        kind = flow[self.protocol, size]
        values = source + destination.packed + struct.pack(">HH", 0, self.dport)
        ones = b"\xff" if self.src else b"\0"
        masks = ones * size + b"\xff" * size + struct.pack(">HH", 0, 0xFFFF)
        spec = bytearray(168)
        if self.vlan:
            kind |= _FLOW_EXT
            struct.pack_into(">H", spec, _H_EXT + 10, self.vlan)
            struct.pack_into(">H", spec, _M_EXT + 10, 0x0FFF)
        if self.context:
            kind |= _FLOW_RSS
        struct.pack_into("I", spec, 0, kind)
        spec[_H : _H + len(values)] = values
        spec[_M : _M + len(masks)] = masks
        struct.pack_into("Q", spec, _COOKIE, self.queue)
        return bytes(spec)

    @property
    def identity(self) -> bytes:
        """What a NIC's rule is known by: everything but where in the table it is."""
        return self.pack()[:_LOCATION] + struct.pack("I", self.context)


def _rxnfc(command: int, *, data: int = 0, spec: bytes = b"", count: int = 0, room: int = 0) -> bytes:
    raw = bytearray(_RXNFC + 4 * room)
    struct.pack_into("IIQ", raw, 0, command, struct.unpack_from("I", spec)[0] if spec else 0, data)
    raw[_FS : _FS + len(spec)] = spec
    struct.pack_into("I", raw, _COUNT, count)
    return bytes(raw)


def rules(surface: Surface, interface: str) -> dict[int, bytes]:
    """Identities of the classification rules by location. OSError EOPNOTSUPP: the NIC has none."""
    count = struct.unpack_from("I", surface.ethtool(interface, _rxnfc(GRXCLSRLCNT)), _COUNT)[0]
    if not count:
        return {}
    answer = surface.ethtool(interface, _rxnfc(GRXCLSRLALL, count=count, room=count))
    count = min(count, struct.unpack_from("I", answer, _COUNT)[0])
    found = {}
    for location in struct.unpack_from(f"{count}I", answer, _LOCATIONS):
        asked = bytearray(168)
        struct.pack_into("I", asked, _LOCATION, location)
        raw = surface.ethtool(interface, _rxnfc(GRXCLSRULE, spec=bytes(asked)))
        spec, context = raw[_FS : _FS + _LOCATION], struct.unpack_from("I", raw, _COUNT)[0]
        in_context = struct.unpack_from("I", spec)[0] & _FLOW_RSS
        found[location] = spec + struct.pack("I", context if in_context else 0)
    return found


def insert_rule(surface: Surface, interface: str, rule: FlowRule) -> int:
    """Put a rule into the NIC's table. Returns its location. OSError ENOSPC: the table is full."""
    answer = surface.ethtool(interface, _rxnfc(GRXCLSRLCNT))
    size = struct.unpack_from("Q", answer, 8)[0]
    spec = bytearray(rule.pack())
    if size & _LOC_SPECIAL:
        location = _LOC_ANY  # the driver chooses
    else:
        taken = rules(surface, interface)
        # From the end, as ethtool(8) does: what an administrator puts in by hand has the front.
        location = next((n for n in range(max(size, 1) - 1, -1, -1) if n not in taken), -1)
        if location < 0:
            raise OSError(errno.ENOSPC, f"all {size} places are taken")
    struct.pack_into("I", spec, _LOCATION, location)
    answer = surface.ethtool(interface, _rxnfc(SRXCLSRLINS, spec=bytes(spec), count=rule.context))
    return int(struct.unpack_from("I", answer, _FS + _LOCATION)[0])


def delete_rule(surface: Surface, interface: str, location: int) -> None:
    """Take the rule at a location out of the NIC's table."""
    spec = bytearray(168)
    struct.pack_into("I", spec, _LOCATION, location)
    surface.ethtool(interface, _rxnfc(SRXCLSRLDEL, spec=bytes(spec)))


# ---- receive-side scaling ------------------------------------------------------------------------

DEFAULT_CONTEXT = 0
_NEW_CONTEXT = _NO_CHANGE = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True, slots=True)
class Rss:
    """An RSS context: which queue each value of the hash goes to."""

    table: tuple[int, ...]
    key: bytes
    input_transform: int


def rss(surface: Surface, interface: str, context: int = DEFAULT_CONTEXT) -> Rss:
    """Read a context. OSError EOPNOTSUPP: the NIC has no table; ENOENT or EINVAL: no such context."""
    head = surface.ethtool(interface, struct.pack("4I8x", GRSSH, context, 0, 0))
    _, _, table, key = struct.unpack_from("4I", head)
    raw = surface.ethtool(
        interface, struct.pack("4I8x", GRSSH, context, table, key).ljust(24 + 4 * table + key, b"\0")
    )
    return Rss(struct.unpack_from(f"{table}I", raw, 24), raw[24 + 4 * table :], raw[17])


def ring_count(surface: Surface, interface: str) -> int:
    """Receive queues that the RSS table may name."""
    return max(1, int(struct.unpack_from("Q", surface.ethtool(interface, _rxnfc(GRXRINGS)), 8)[0]))


def _set_rss(surface: Surface, interface: str, context: int, table: tuple[int, ...] | None) -> int:
    transform = rss(surface, interface).input_transform
    count = 0 if table is None else len(table)
    raw = struct.pack("4IBB2xI", SRSSH, context, count, 0, 0, transform, 0)
    answer = surface.ethtool(interface, raw + struct.pack(f"{count}I", *(table or ())))
    return int(struct.unpack_from("I", answer, 4)[0])


def set_indirection(surface: Surface, interface: str, table: tuple[int, ...] | None) -> None:
    """Set the table of the default context; None: the driver's own, which no longer counts as set."""
    _set_rss(surface, interface, DEFAULT_CONTEXT, table)


def new_context(surface: Surface, interface: str, table: tuple[int, ...]) -> int:
    """Make an RSS context of its own with this table. Returns its number."""
    return _set_rss(surface, interface, _NEW_CONTEXT, table)


def remove_context(surface: Surface, interface: str, context: int) -> None:
    """Take an RSS context away; OSError EBUSY while a flow rule names it."""
    _set_rss(surface, interface, context, None)
