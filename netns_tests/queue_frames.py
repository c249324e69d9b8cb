"""Frames of the plain framing onto a chosen receive queue of a veth's other end: an AF_XDP socket on transmit
queue N delivers to receive queue N."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence

from xdpstack.bpf import Filter
from xdpstack.lab import Namespace
from xdpstack.port import XskPort
from xdpstack.tests.frames import plain_message, plain_packet


def frame(group: str, port: int, seq: int, symbol: int = 1) -> bytes:
    """One packet with one message, UDP without a checksum."""
    payload = plain_packet(seq, plain_message("A", "B", symbol, 100 + seq % 7, 1 + seq))
    address = socket.inet_aton(group)
    source = socket.inet_aton("10.77.0.1")
    fields = (0x45, 0, 28 + len(payload), seq & 0xFFFF, 0, 16, 17, 0, source, address)
    ip = struct.pack("!BBHHHBBH4s4s", *fields)
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + ip[12:]
    mac = b"\x01\0\x5e" + bytes([address[1] & 0x7F]) + address[2:]
    udp = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0)
    return mac + b"\x02\0\0\0\0\x01" + b"\x08\0" + ip + udp + payload


@contextlib.contextmanager
def senders(venue: Namespace, queues: int, interface: str = "v0") -> Iterator[list[XskPort]]:
    """A sender by queue, in the venue's namespace."""
    with contextlib.ExitStack() as stack:
        with venue.enter():
            stack.enter_context(Filter.load(interface))  # a veth takes XDP frames only where a program is
            ports = [stack.enter_context(XskPort(interface, queue)) for queue in range(queues)]
        yield ports


def send_all(port: XskPort, frames: Sequence[bytes]) -> None:
    """Send every frame, as the ring has room."""
    left = list(frames)
    while left:
        left = left[port.send(left[:64]) :]
        port.flush()
