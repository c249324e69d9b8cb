"""Which UDP flows a capture holds, and which of them are lines of one channel.

Two flows whose first payloads are largely the same bytes carry the same stream: they are lines of
one channel (A and B). Only headers and hashes of payloads are read here; what the bytes mean is the
decoder's business.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import struct
from collections.abc import Iterable, Iterator

from xdpstack.port import Subscription

__all__ = ["FlowSeen", "channels_of", "scan", "udp_frame", "udp_payload"]

_SAMPLE = 4096  # payloads of each flow that are compared
_ALIKE = 0.5  # of the smaller sample

_ETH_IPV4, _ETH_IPV6, _ETH_VLAN, _ETH_QINQ = 0x0800, 0x86DD, 0x8100, 0x88A8


@dataclasses.dataclass(slots=True)
class FlowSeen:
    """One UDP destination of a capture. Counts are packets; ``sample`` holds payload hashes."""

    group: Subscription
    packets: int = 0
    sample: set[int] = dataclasses.field(default_factory=set)


def udp_payload(frame: bytes | memoryview) -> tuple[str, int, bytes] | None:
    """(destination, port, payload) of an Ethernet frame with UDP over IPv4, or over IPv6 without extension
    headers; None for all others."""
    at, kind = 14, int.from_bytes(frame[12:14], "big")
    while kind in (_ETH_VLAN, _ETH_QINQ) and len(frame) >= at + 4:
        kind, at = int.from_bytes(frame[at + 2 : at + 4], "big"), at + 4
    if kind == _ETH_IPV6 and len(frame) >= at + 48 and frame[at] >> 4 == 6 and frame[at + 6] == 17:
        return _udp_of(frame, at + 40, str(ipaddress.IPv6Address(bytes(frame[at + 24 : at + 40]))))
    if kind != _ETH_IPV4 or len(frame) < at + 28 or frame[at] >> 4 != 4 or frame[at + 9] != 17:
        return None
    if (
        int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF
    ):  # a fragment: a part of a datagram, or no ports
        return None
    return _udp_of(frame, at + (frame[at] & 15) * 4, ".".join(str(byte) for byte in frame[at + 16 : at + 20]))


def _udp_of(frame: bytes | memoryview, udp: int, destination: str) -> tuple[str, int, bytes] | None:
    if len(frame) < udp + 8:
        return None
    length = int.from_bytes(frame[udp + 4 : udp + 6], "big")
    return destination, int.from_bytes(frame[udp + 2 : udp + 4], "big"), bytes(frame[udp + 8 : udp + length])


def udp_frame(payload: bytes, to: tuple[str, int], source: tuple[str, int] | None = None) -> bytes:
    """The Ethernet frame of a datagram: IPv4 without options, UDP checksum 0 ("none"); IPv6 with one."""
    if ":" in to[0]:
        return _udp_frame6(payload, to, source or ("fd00::1", 4000))
    source = source or ("10.0.0.1", 4000)
    group, sender = ipaddress.IPv4Address(to[0]).packed, ipaddress.IPv4Address(source[0]).packed
    multicast = group[0] >> 4 == 14
    mac = bytes([1, 0, 0x5E, group[1] & 0x7F, group[2], group[3]]) if multicast else b"\x02\0\0\0\0\x02"
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, sender, group)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    header = header[:10] + checksum.to_bytes(2, "big") + header[12:]
    udp = struct.pack("!HHHH", source[1], to[1], 8 + len(payload), 0)
    frame: bytes = mac + b"\x02\0\0\0\0\x01\x08\0" + header + udp + payload
    return frame


def _udp_frame6(payload: bytes, to: tuple[str, int], source: tuple[str, int]) -> bytes:
    group, sender = ipaddress.IPv6Address(to[0]).packed, ipaddress.IPv6Address(source[0]).packed
    mac = b"\x33\x33" + group[12:] if group[0] == 0xFF else b"\x02\0\0\0\0\x02"
    udp = struct.pack("!HHHH", source[1], to[1], 8 + len(payload), 0)
    covered = sender + group + struct.pack("!II", 8 + len(payload), 17) + udp + payload
    total = sum(struct.unpack(f"!{(len(covered) + 1) // 2}H", covered + bytes(len(covered) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = (~total & 0xFFFF) or 0xFFFF
    header = struct.pack("!IHBB", 6 << 28, 8 + len(payload), 17, 64) + sender + group
    frame: bytes = (
        mac + b"\x02\0\0\0\0\x01\x86\xdd" + header + udp[:6] + checksum.to_bytes(2, "big") + payload
    )
    return frame


def scan(frames: Iterable[bytes | memoryview]) -> list[FlowSeen]:
    """Every UDP destination with its number of packets, in order of appearance."""
    flows: dict[bytes, FlowSeen] = {}
    for frame in frames:
        found = udp_payload(frame)
        if found is None:
            continue
        destination, port, payload = found
        key = f"{destination} {port}".encode()
        flow = flows.get(key)
        if flow is None:
            flow = flows[key] = FlowSeen(Subscription(address=destination, port=port))
        flow.packets += 1
        if len(flow.sample) < _SAMPLE and len(payload) > 0:
            flow.sample.add(hash(payload))
    return list(flows.values())


def channels_of(flows: Iterable[FlowSeen]) -> Iterator[list[Subscription]]:
    """Flows grouped into channels: those that carry the same payloads are lines of one."""
    left = list(flows)
    while left:
        first = left.pop(0)
        lines = [first]
        for other in left[:]:
            smaller = min(len(first.sample), len(other.sample))
            if smaller and len(first.sample & other.sample) > _ALIKE * smaller:
                lines.append(other)
                left.remove(other)
        yield [line.group for line in lines]
