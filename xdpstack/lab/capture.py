"""UDP datagrams out of a capture file: Ethernet with up to two VLAN tags, IPv4, no fragments."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

from xdpstack.port.pcap import PcapPort

__all__ = ["Datagram", "Datagrams", "read_datagrams"]

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


def read_datagrams(path: str | Path) -> Datagrams:
    """Read a whole capture by the ``pcap`` port; SetupError when it is none."""
    found = Datagrams()
    with PcapPort(path) as port:
        while not port.at_end:
            for frame in port.receive(4096):
                datagram = _udp(frame.rx_ns, frame.data)
                if datagram is None:
                    found.other += 1
                else:
                    found.datagrams.append(datagram)
        found.truncated = port.stats()["rx_truncated"] > 0
    return found


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
