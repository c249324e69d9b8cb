"""UDP datagrams out of a capture file: the little that the lab's venue needs, standard library only.

pcap (either byte order, micro- or nanoseconds) and pcapng, plain or gzip; Ethernet with up to two VLAN
tags, IPv4, UDP. A file that is cut short gives what is whole and says so. Captures for the engine are read
by the ``pcap`` port.
"""

from __future__ import annotations

import gzip
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xdpstack.errors import ConfigError

__all__ = ["Datagram", "Datagrams", "read_datagrams"]

_PCAP = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
"""Magic numbers and the nanoseconds of one unit of their stamps."""
_LINK_ETHERNET = 1
_VLAN = (b"\x81\x00", b"\x88\xa8")


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram as it was captured."""

    ns: int
    """Capture time, nanoseconds since 1970."""
    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes


@dataclass(slots=True)
class Datagrams:
    """A capture's UDP datagrams in file order."""

    datagrams: list[Datagram] = field(default_factory=list)
    other: int = 0
    """Frames that are not whole UDP over IPv4."""
    truncated: bool = False
    """The file's last record is cut short."""


class _Short(Exception):
    """The file ends inside a record."""


def read_datagrams(path: str | Path) -> Datagrams:
    """Read a whole capture; ConfigError when it is neither pcap nor pcapng over Ethernet."""
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if len(raw) < 4:
        raise ConfigError(f"{path}: not a capture, it has {len(raw)} bytes")
    found = Datagrams()
    frames = _pcapng(raw, path) if raw[:4] == b"\x0a\x0d\x0d\x0a" else _pcap(raw, path)
    try:
        for ns, frame in frames:
            datagram = _udp(ns, frame)
            if datagram is None:
                found.other += 1
            else:
                found.datagrams.append(datagram)
    except _Short:
        found.truncated = True
    return found


def _pcap(raw: bytes, path: str | Path) -> Iterator[tuple[int, memoryview]]:
    for order in "<>":
        unit = _PCAP.get(struct.unpack_from(order + "I", raw)[0])
        if unit is not None:
            break
    else:
        raise ConfigError(f"{path}: neither pcap nor pcapng (it begins with {raw[:4].hex()})")
    if len(raw) < 24:
        raise _Short
    if struct.unpack_from(order + "I", raw, 20)[0] & 0xFFFF != _LINK_ETHERNET:
        raise ConfigError(f"{path}: not a capture of Ethernet")
    record, at, view = struct.Struct(order + "IIII"), 24, memoryview(raw)
    while at < len(raw):
        if at + record.size > len(raw):
            raise _Short
        seconds, fraction, kept, _ = record.unpack_from(raw, at)
        at += record.size
        if at + kept > len(raw):
            raise _Short
        yield seconds * 1_000_000_000 + fraction * unit, view[at : at + kept]
        at += kept


def _pcapng(raw: bytes, path: str | Path) -> Iterator[tuple[int, memoryview]]:
    at, order, view = 0, "<", memoryview(raw)
    interfaces: list[tuple[int, int]] = []  # link type, stamps a second
    while at < len(raw):
        if at + 12 > len(raw):
            raise _Short
        if raw[at : at + 4] == b"\x0a\x0d\x0d\x0a":
            order = "<" if raw[at + 8 : at + 12] == b"\x4d\x3c\x2b\x1a" else ">"
            interfaces = []
        kind, size = struct.unpack_from(order + "II", raw, at)
        if size < 12 or size % 4:
            raise ConfigError(f"{path}: a block of {size} bytes at {at}")
        if at + size > len(raw):
            raise _Short
        body = view[at + 8 : at + size - 4]
        if kind == 1:
            interfaces.append((struct.unpack_from(order + "H", body)[0], _resolution(body[8:], order)))
        elif kind == 6:
            which, high, low, kept = struct.unpack_from(order + "IIII", body)
            if which >= len(interfaces) or 20 + kept > len(body):
                raise ConfigError(f"{path}: a packet block at {at} that does not hold together")
            link, rate = interfaces[which]
            if link == _LINK_ETHERNET:
                yield ((high << 32 | low) * 1_000_000_000) // rate, body[20 : 20 + kept]
        at += size


def _resolution(options: memoryview, order: str) -> int:
    """Stamps a second of an interface: option 9 (if_tsresol), a million when it is absent."""
    at = 0
    while at + 4 <= len(options):
        code, size = struct.unpack_from(order + "HH", options, at)
        if code == 0:
            break
        if code == 9 and size == 1:
            value = options[at + 4]
            return int(2 ** (value & 0x7F) if value & 0x80 else 10**value)
        at += 4 + (size + 3) // 4 * 4
    return 1_000_000


def _udp(ns: int, frame: memoryview) -> Datagram | None:
    """The datagram in an Ethernet frame; None for fragments and everything else."""
    at = 12
    while len(frame) >= at + 4 and bytes(frame[at : at + 2]) in _VLAN and at < 20:
        at += 4
    if len(frame) < at + 30 or bytes(frame[at : at + 2]) != b"\x08\x00" or frame[at + 2] >> 4 != 4:
        return None
    ip = at + 2
    header = (frame[ip] & 15) * 4
    fragment = (frame[ip + 6] & 0x3F) << 8 | frame[ip + 7]
    if frame[ip + 9] != socket.IPPROTO_UDP or fragment or header < 20 or len(frame) < ip + header + 8:
        return None
    udp = ip + header
    source_port, port, length = struct.unpack_from(">HHH", frame, udp)
    if length < 8 or udp + length > len(frame):
        return None
    return Datagram(
        ns,
        (socket.inet_ntoa(frame[ip + 12 : ip + 16]), source_port),
        (socket.inet_ntoa(frame[ip + 16 : ip + 20]), port),
        bytes(frame[udp + 8 : udp + length]),
    )
