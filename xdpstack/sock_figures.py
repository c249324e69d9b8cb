"""What the TCP connections over one port's kernel sockets have counted, for who watches from outside.

Entries are those of our own stack, ``stack.sock:IFACE.opened`` …, ``tcp.sock:IFACE.retransmits`` … and
``tcp.sock:IFACE.states.established``, as far as TCP_INFO has them. Each look asks the kernel of a few
connections; what a pass over all of them found counts when it is through. A connection that ends counts with
what it had last, so sums only grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xdpstack._ffi import lib
from xdpstack.stats import Segment
from xdpstack.tcp import STATES

if TYPE_CHECKING:
    from xdpstack.sock_streams import SockConnection

__all__ = ["COUNTED", "SockFigures"]

COUNTED = ("received", "sent", "received_bytes", "sent_bytes", "retransmits", "dsacks", "out_of_order")
"""Fields of ``struct xds_tcp_stats`` that the kernel has."""
PASS = 4
"""Connections that are looked at each time: a microsecond or two each."""
_WORDS = [STATES[number] for number in range(lib.XDS_TCP_STATES)]
_OPENED = {"opened": False, "accepted": False, "refused": False, "connections": True, "connections_max": True}


class SockFigures:
    """The words of one port in a segment."""

    def __init__(self, segment: Segment, name: str) -> None:
        """``name``: of the port, as in ``port.NAME``. CapacityError: the segment is full."""
        stack = {field: ("count", gauge) for field, gauge in _OPENED.items()}
        entries = {f"states.{word}": ("count", True) for word in _WORDS}
        entries |= {field: ("bytes" if field.endswith("_bytes") else "count", False) for field in COUNTED}
        self._stack, self._tcp = segment.words(f"stack.{name}", stack), segment.words(f"tcp.{name}", entries)
        self._segment = segment  # whose memory it is
        self._ended = [0] * len(COUNTED)
        self._sums, self._states = [0] * len(COUNTED), [0] * len(_WORDS)
        self._left: list[SockConnection] = []

    def _add(self, sums: list[int], told: Any) -> None:
        for place, field in enumerate(COUNTED):
            sums[place] += getattr(told.stats, field)

    def ended(self, one: SockConnection) -> None:
        """It is about to let go of its socket; twice is calm."""
        told = one._told()
        if told is None:
            return
        self._add(self._ended, told)
        if one in self._left:
            self._left.remove(one)
            self._add(self._sums, told)

    def look(self, live: Sequence[SockConnection]) -> list[tuple[SockConnection, Any]]:
        """Look at the next few of the connections that there are; what the kernel says of each."""
        if not self._left:
            self._sums, self._states = list(self._ended), [0] * len(_WORDS)
            self._left = list(live)
        found = []
        for _ in range(min(PASS, len(self._left))):
            one = self._left.pop(0)
            told = one._told()
            if told is not None:
                self._add(self._sums, told)
                self._states[told.info.state] += 1
                found.append((one, told))
        if not self._left:
            for place, value in enumerate([*self._states, *self._sums]):
                self._tcp[place] = value
        return found

    def show(self, counts: Mapping[str, int]) -> None:
        """Bring up to date what :meth:`SockStreams.stats` says."""
        for place, field in enumerate(_OPENED):
            self._stack[place] = counts[field]
