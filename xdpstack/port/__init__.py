"""Ports: where frames and datagrams come from and go to.

A *link* moves frames: ``XskPort`` (AF_XDP queues), ``PcapPort`` (a capture, in virtual time) and
``PipePort`` (memory). ``SockPort`` gives datagrams from kernel sockets. All are context managers that own
their memory; the engine takes their ``handle``, and Python may step them without an engine::

    with open_link("xsk:eth0:0-3") as port:
        for frame in port.receive(64):      # frame.data: a view, valid until the next receive
            print(frame.rx_ns, bytes(frame.data))

Stamps are int64 nanoseconds of CLOCK_TAI; those of a foreign capture are what the file holds (UTC).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from xdpstack.errors import ConfigError
from xdpstack.port.base import NEVER, Datagram, Frame, Hints, LinkPort
from xdpstack.port.pcap import PcapPort, PcapWriter
from xdpstack.port.pipe import PipePort, pipe
from xdpstack.port.sock import Membership, SockPort, Subscription
from xdpstack.port.xsk import XskPort, probe, row_of

__all__ = [
    "NEVER",
    "Datagram",
    "Frame",
    "Hints",
    "LinkPort",
    "Membership",
    "PcapPort",
    "PcapWriter",
    "PipePort",
    "SockPort",
    "Spec",
    "Subscription",
    "XskPort",
    "open_link",
    "parse_spec",
    "pipe",
    "row_of",
]

_XSK = re.compile(r"xsk:(?P<interface>[^:\s/]{1,15})(?::(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A port's name, taken apart: ``xsk:eth0:0-3``, ``xsk:eth1:3``, ``pcap:FILE``, ``pipe``."""

    kind: Literal["xsk", "pcap", "pipe"]
    interface: str = ""
    queues: range | None = None
    """None: every queue of the interface."""
    path: str = ""


def parse_spec(text: str) -> Spec:
    """Take a port's name apart. ConfigError: it is none."""
    if text == "pipe":
        return Spec(kind="pipe")
    if text.startswith("pcap:") and len(text) > 5:
        return Spec(kind="pcap", path=text[5:])
    match = _XSK.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"port {text!r} is none of xsk:INTERFACE, xsk:INTERFACE:QUEUE, xsk:INTERFACE:FIRST-LAST, "
            "pcap:FILE, pipe"
        )
    if match["first"] is None:
        return Spec(kind="xsk", interface=match["interface"])
    first, last = int(match["first"]), int(match["last"] or match["first"])
    if last < first:
        raise ConfigError(f"port {text!r}: queue {last} is below {first}")
    return Spec(kind="xsk", interface=match["interface"], queues=range(first, last + 1))


def open_link(spec: str | Spec, **options: Any) -> LinkPort:
    """Open a link by its name; ``options`` are those of its class. ``pipe`` gives the left end (``.peer``).

    Raises ConfigError for a name that is none, SetupError where the host refuses.
    """
    name = parse_spec(spec) if isinstance(spec, str) else spec
    if name.kind == "pipe":
        return pipe(**options)[0]
    if name.kind == "pcap":
        return PcapPort(name.path, **options)
    queues = name.queues if name.queues is not None else range(probe(name.interface).rx_queues)
    return XskPort(name.interface, queues, **options)
