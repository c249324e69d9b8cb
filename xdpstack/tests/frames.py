"""Frames and plain-framing packets for tests, built with struct alone."""

from __future__ import annotations

import ipaddress
import struct


def udp_frame(payload: bytes, dst: str = "239.1.1.1", dport: int = 5000, src: str = "10.0.0.1", sport: int = 4000) -> bytes:
    """An Ethernet frame with IPv4 and UDP, header checksum right, UDP checksum 0 (none)."""
    group = ipaddress.IPv4Address(dst).packed
    mac = bytes([1, 0, 0x5E, group[1] & 0x7F, group[2], group[3]]) if group[0] >> 4 == 14 else b"\x02" + b"\0" * 5
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, ipaddress.IPv4Address(src).packed, group
    )
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    return mac + b"\x02\0\0\0\0\x01\x08\0" + header + struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def plain_message(kind: str, side: str, symbol: int, price: int, qty: int, order: int = 0) -> bytes:
    """One 28-byte message of the plain framing (spec: little-endian, packed)."""
    return struct.pack("<BBHQQQ", ord(kind), ord(side), symbol, price, qty, order)


def plain_packet(seq: int, *messages: bytes) -> bytes:
    """One packet of the plain framing."""
    return struct.pack("<IHH", seq, len(messages), 0) + b"".join(messages)
