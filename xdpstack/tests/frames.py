"""Plain-framing packets for tests, built with struct alone."""

from __future__ import annotations

import struct


def plain_message(kind: str, side: str, symbol: int, price: int, qty: int, order: int = 0) -> bytes:
    """One 28-byte message of the plain framing (spec: little-endian, packed)."""
    return struct.pack("<BBHQQQ", ord(kind), ord(side), symbol, price, qty, order)


def plain_packet(seq: int, *messages: bytes) -> bytes:
    """One packet of the plain framing."""
    return struct.pack("<IHH", seq, len(messages), 0) + b"".join(messages)
