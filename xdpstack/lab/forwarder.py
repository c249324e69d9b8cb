"""A wire with faults between two namespaces: a process that carries frames between two veth pairs.

The kernel here may have no netem, and XDP cannot clone a packet; so frames go through two packet sockets
and, in each direction, an :class:`~xdpstack.lab.faults.Impairer` with a seed of its own. VLAN tags, which
the kernel takes off before a packet socket sees the frame, are put back. Frames keep their order but for
the faults.

Bounds: a turn takes at most ``BURST`` frames a side; what waits is bounded by the faults' ``queue``; what the
kernel dropped before us is counted as ``missed``.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import socket
import struct
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from xdpstack.errors import SetupError
from xdpstack.lab.faults import Faults, Impairer

if TYPE_CHECKING:
    from xdpstack.lab import Lab
    from xdpstack.lab.namespace import LinkEnd, Namespace

__all__ = ["COUNTERS", "Forwarder", "impaired_pair"]

COUNTERS = (
    "offered",
    "lost",
    "duplicated",
    "held",
    "corrupted",
    "overflowed",
    "sent",
    "refused",
    "missed",
    "waiting",
)
"""Of one direction: offered + duplicated = lost + overflowed + waiting + sent + refused. ``refused``: the
kernel did not take the frame (link down, too long); ``missed``: dropped before it reached us, not part of
the sum."""

BURST = 64
FRAME_MAX = 65536
RECEIVE_BUFFER = 64 << 20
"""Bytes as the kernel counts them, some 800 for a small frame."""

_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS, _PACKET_AUXDATA, _PACKET_QDISC_BYPASS = 1, 6, 8, 20
_PACKET_IGNORE_OUTGOING = 23
_PACKET_MR_PROMISC = 1
_AUXDATA = struct.Struct("IIIHHHH")
_TP_STATUS_VLAN_VALID, _TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6
_SPIN_NS = 1_500_000
"""Below this distance to the next deadline we spin: poll counts in milliseconds."""


def _packet_socket(link: str) -> socket.socket:
    """A raw socket that sees what comes in on a link, and nothing that we send."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        opened.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        with contextlib.suppress(OSError):
            opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        opened.bind((link, _ETH_P_ALL))
        member = struct.pack("iHH8s", socket.if_nametoindex(link), _PACKET_MR_PROMISC, 0, b"")
        opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


def _with_tag(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The frame as it was on the wire: the VLAN tag that the kernel took off put back."""
    for level, kind, data in ancillary:
        if level == _SOL_PACKET and kind == _PACKET_AUXDATA and len(data) >= _AUXDATA.size:
            status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(data)
            if status & _TP_STATUS_VLAN_VALID:
                known = tpid if status & _TP_STATUS_VLAN_TPID_VALID else 0x8100
                return frame[:12] + struct.pack(">HH", known, tci) + frame[12:]
    return frame


class _Way:
    """One direction: from a socket, through the line, to the other socket."""

    def __init__(self, source: socket.socket, target: socket.socket, faults: Faults, counters: Any) -> None:
        self.source, self.target = source, target
        self.line = Impairer(faults)
        self.refused = self.missed = 0
        self.counters = counters

    def take(self, now_ns: int) -> int:
        """Move what has come into the line; returns how many frames."""
        receive, put = self.source.recvmsg, self.line.input
        for count in range(BURST):
            try:
                frame, ancillary, _, _ = receive(FRAME_MAX, 64)
            except BlockingIOError:
                return count
            except OSError as error:  # the link went down: it may come back
                if error.errno != errno.ENETDOWN:
                    raise
                return count
            put(_with_tag(frame, ancillary), now_ns)
        return BURST

    def give(self, now_ns: int) -> None:
        """Send what is due. A full transmit queue is waited for, a refusal is counted."""
        for sent in self.line.output(now_ns):
            try:
                self.target.send(sent.payload)
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.EAGAIN) and self._again(sent.payload):
                    continue
                self.refused += 1

    def _again(self, frame: bytes) -> bool:
        for _ in range(100):
            with contextlib.suppress(OSError):
                select.select([], [self.target], [], 0.001)
                self.target.send(frame)
                return True
        return False

    def publish(self) -> None:
        """Write the counters where the parent reads them."""
        line = self.line
        statistics = self.source.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self.missed += struct.unpack("II", statistics)[1]  # reading it sets it to 0
        self.counters[:] = (
            line.offered, line.lost, line.duplicated, line.held, line.corrupted, line.overflowed,
            line.sent - self.refused, self.refused, self.missed, line.waiting,
        )  # fmt: skip


def _forward(left: str, right: str, ways: tuple[Faults, Faults], counters: Any, ready: int) -> None:
    """The forwarder's process: runs until SIGTERM."""
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one, two = _packet_socket(left), _packet_socket(right)
    there = _Way(one, two, ways[0], counters[0])
    back = _Way(two, one, ways[1], counters[1])
    poller = select.poll()
    poller.register(one, select.POLLIN)
    poller.register(two, select.POLLIN)
    os.write(ready, b"r")
    os.close(ready)
    published = 0
    while not stopping:
        now = time.monotonic_ns()
        moved = there.take(now) + back.take(now)
        there.give(now)
        back.give(now)
        if now - published > 10_000_000 or not moved:
            there.publish()
            back.publish()
            published = now
        if moved:
            continue
        due = min(
            (at for at in (there.line.deadline(), back.line.deadline()) if at is not None), default=None
        )
        if due is None:
            poller.poll(100)
        elif due - now > _SPIN_NS:
            poller.poll((due - now) // 1_000_000 - 1)
    there.publish()
    back.publish()


class Forwarder:
    """Carries frames between the links ``left`` and ``right`` of one namespace, with faults each way."""

    def __init__(
        self,
        namespace: Namespace,
        left: str,
        right: str,
        *,
        forward: Faults | None = None,
        backward: Faults | None = None,
        cpu: int | None = None,
    ) -> None:
        """``forward``: what goes from left to right; ``cpu``: the core to run on, None for any."""
        self.namespace = namespace
        self.left, self.right = left, right
        self.forward, self.backward = forward or Faults(), backward or Faults()
        self.cpu = cpu
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._counters = np.frombuffer(self._memory, np.int64, 2 * len(COUNTERS)).reshape(2, -1)
        self._child: Any = None

    def __repr__(self) -> str:
        runs = f"process {self._child.pid}" if self._child else "down"
        return f"<Forwarder {self.left} - {self.right} in {self.namespace.name}, {runs}>"

    def __enter__(self) -> Forwarder:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Forwarder:
        """Start the process; returns when frames pass, SetupError when they cannot."""
        reader, writer = os.pipe()

        def run() -> int:
            os.close(reader)
            try:
                if self.cpu is not None:
                    os.sched_setaffinity(0, {self.cpu})
                _forward(self.left, self.right, (self.forward, self.backward), self._counters, writer)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.write(writer, str(error).encode())
                return 1
            return 0

        with open(reader, "rb", buffering=0) as answer:
            try:
                self._child = self.namespace.fork(run)
            finally:
                os.close(writer)
            if (said := answer.read(1000)) != b"r":
                self._child.wait(5)
                self._child = None
                raise SetupError(
                    f"forward between {self.left} and {self.right}", said.decode() or "it ended at once"
                )
        return self

    def counters(self) -> dict[str, dict[str, int]]:
        """``{"forward": {…}, "backward": {…}}`` by the names in COUNTERS, at most 10 ms old; final after
        close."""
        return {
            name: dict(zip(COUNTERS, map(int, row), strict=True))
            for name, row in zip(("forward", "backward"), self._counters, strict=True)
        }

    def close(self) -> None:
        """End the process; what waits in the lines is left behind, counted as ``waiting``."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(2)
        except TimeoutError:
            self._child.kill()
            self._child.wait(2)
        self._child = None


def impaired_pair(
    lab: Lab,
    a: Namespace,
    a_name: str,
    a_address: str,
    b: Namespace,
    b_name: str,
    b_address: str,
    *,
    forward: Faults | None = None,
    backward: Faults | None = None,
    queues: int = 1,
    mtu: int = 1500,
    cpu: int | None = None,
    wire: str = "wire",
) -> tuple[LinkEnd, LinkEnd, Forwarder]:
    """Join two namespaces as :meth:`Lab.veth` does, with a started forwarder in a third between them.

    ``forward``: faults from a to b. The ends know each other's link address, so nothing but their own
    frames passes.
    """
    middle = lab.namespace(wire)
    left, _ = lab.veth(a, a_name, a_address, middle, "wl", None, queues=queues, mtu=mtu)
    right, _ = lab.veth(b, b_name, b_address, middle, "wr", None, queues=queues, mtu=mtu)
    assert left.address is not None
    assert right.address is not None
    a.neighbour(a_name, right.address, right.mac)
    b.neighbour(b_name, left.address, left.mac)
    return left, right, Forwarder(middle, "wl", "wr", forward=forward, backward=backward, cpu=cpu).start()
