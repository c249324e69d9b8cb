"""IP packets with TCP segments, made and read in Python alone: a second opinion beside the native core."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["FLAGS", "Ends", "Segment", "build", "read"]

FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, ".": 16, "U": 32, "E": 64, "W": 128}
_TCP = socket.IPPROTO_TCP


@dataclass(frozen=True, slots=True)
class Ends:
    """From where to where."""

    source: str
    sport: int
    target: str
    dport: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as it is on the wire: absolute numbers, options as :class:`xdpstack.drill.script.Packet`
    writes them."""

    ends: Ends
    flags: int
    seq: int
    ack: int
    window: int
    urgent: int
    options: tuple[tuple[Any, ...], ...]
    payload: bytes
    ecn: int = 0


def _sum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _pseudo(source: bytes, target: bytes, length: int) -> bytes:
    if len(source) == 4:
        return source + target + struct.pack("!HH", _TCP, length)
    return source + target + struct.pack("!II", length, _TCP)


def _option(option: tuple[Any, ...]) -> bytes:
    kind = option[0]
    if kind == "eol":
        return b"\0"
    if kind == "nop":
        return b"\1"
    if kind == "mss":
        return struct.pack("!BBH", 2, 4, option[1])
    if kind == "wscale":
        return struct.pack("!BBB", 3, 3, option[1])
    if kind == "sackOK":
        return b"\4\2"
    if kind == "TS":
        return struct.pack("!BBII", 8, 10, option[1], option[2])
    edges = [edge for block in option[1] for edge in block]
    return struct.pack(f"!BB{len(edges)}I", 5, 2 + 4 * len(edges), *edges)


def build(segment: Segment) -> bytes:
    """The IP packet. ValueError: more options than a header holds."""
    options = b"".join(_option(option) for option in segment.options)
    options += b"\0" * (-len(options) % 4)
    if len(options) > 40:
        raise ValueError(f"{len(options)} bytes of TCP options, 40 are the most")
    ends = segment.ends
    source, target = _packed(ends.source), _packed(ends.target)
    head = struct.pack(
        "!HHIIBBHHH",
        ends.sport,
        ends.dport,
        segment.seq & 0xFFFFFFFF,
        segment.ack & 0xFFFFFFFF,
        (5 + len(options) // 4) << 4,
        segment.flags,
        segment.window,
        0,
        segment.urgent,
    )
    tcp = head + options + segment.payload
    check = ~_sum(_pseudo(source, target, len(tcp)) + tcp) & 0xFFFF
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28 | segment.ecn << 20, len(tcp), _TCP, 64) + source + target + tcp
    ip = struct.pack("!BBHHHBBH", 0x45, segment.ecn, 20 + len(tcp), 0, 0x4000, 64, _TCP, 0) + source + target
    return ip[:10] + struct.pack("!H", ~_sum(ip) & 0xFFFF) + ip[12:] + tcp


def read(packet: bytes) -> Segment:
    """A packet's segment, every length and checksum verified; ValueError says what is wrong with it."""
    if not packet or packet[0] >> 4 not in (4, 6):
        raise ValueError("no IP packet")
    if packet[0] >> 4 == 4:
        head, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
        if _sum(packet[:head]) != 0xFFFF:
            raise ValueError("a wrong checksum of the IPv4 header")
        protocol, ecn = packet[9], packet[1] & 3
        source, target = packet[12:16], packet[16:20]
    else:
        head, total = 40, 40 + struct.unpack_from("!H", packet, 4)[0]
        protocol, ecn = packet[6], packet[1] >> 4 & 3
        source, target = packet[8:24], packet[24:40]
    if protocol != _TCP:
        raise ValueError(f"IP protocol {protocol}, no TCP")
    if total != len(packet):
        raise ValueError(f"{total} bytes by the IP header, {len(packet)} in fact")
    tcp = packet[head:]
    if _sum(_pseudo(source, target, len(tcp)) + tcp) != 0xFFFF:
        raise ValueError("a wrong TCP checksum")
    sport, dport, seq, ack, offset, flags, window, _, urgent = struct.unpack_from("!HHIIBBHHH", tcp)
    start = (offset >> 4) * 4
    if offset & 15:
        raise ValueError("reserved bits that are not zero")
    if not 20 <= start <= len(tcp):
        raise ValueError(f"a TCP header of {start} bytes")
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    ends = Ends(socket.inet_ntop(family, source), sport, socket.inet_ntop(family, target), dport)
    return Segment(ends, flags, seq, ack, window, urgent, _options(tcp[20:start]), tcp[start:], ecn)


def _options(raw: bytes) -> tuple[tuple[Any, ...], ...]:
    found: list[tuple[Any, ...]] = []
    at = 0
    while at < len(raw):
        kind = raw[at]
        if kind < 2:
            found.append(("nop",) if kind else ("eol",))
            at += 1
            continue
        length = raw[at + 1] if at + 1 < len(raw) else 0
        body = raw[at + 2 : at + length]
        if length < 2 or at + length > len(raw):
            raise ValueError(f"TCP option {kind} of {length} bytes")
        found.append(_read_option(kind, body))
        at += length
    return tuple(found)


def _read_option(kind: int, body: bytes) -> tuple[Any, ...]:
    if kind == 2 and len(body) == 2:
        return "mss", int.from_bytes(body, "big")
    if kind == 3 and len(body) == 1:
        return "wscale", body[0]
    if kind == 4 and not body:
        return ("sackOK",)
    if kind == 8 and len(body) == 8:
        return "TS", *struct.unpack("!II", body)
    if kind == 5 and body and len(body) % 8 == 0:
        edges = struct.unpack(f"!{len(body) // 4}I", body)
        return "sack", tuple(zip(edges[::2], edges[1::2], strict=True))
    raise ValueError(f"TCP option {kind} of {len(body) + 2} bytes")
