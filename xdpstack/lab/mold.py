"""MoldUDP64 (Nasdaq, version 1.00) at the venue's end: packing, parsing, and a server for lost messages.

A packet is ``session[10], sequence u64, count u16`` big-endian, then ``count`` messages, each behind its
u16 length. The sequence counts messages; count 0 is a heartbeat, 0xFFFF the end of the session, both with
the next sequence. A request is a header alone; its answer is one packet with as many of the asked messages
as fit.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import select
import signal
import socket
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab.truth import Epoch

if TYPE_CHECKING:
    from xdpstack.lab.namespace import Namespace

__all__ = ["END_OF_SESSION", "HEADER", "PAYLOAD_MAX", "Answerer", "RequestServer", "control", "pack"]

HEADER = struct.Struct(">10sQH")
END_OF_SESSION = 0xFFFF
PAYLOAD_MAX = 1472
"""UDP payload of a packet that fits an MTU of 1,500 bytes over IPv4."""


def pack(
    messages: Iterable[tuple[int, bytes]],
    session: bytes,
    *,
    first: int = 1,
    most: int = 12,
    payload_max: int = 1400,
    seed: int = 0,
) -> list[tuple[int, bytes]]:
    """Pack messages ``(ns, bytes)`` in order: 1 to ``most`` a packet by seed, at most ``payload_max`` bytes.

    A packet has the time of its last message: a venue cannot send what has not happened.
    """
    if len(session) != 10:
        raise ConfigError(f"MoldUDP64 session {session!r}: ten bytes")
    chance = random.Random(seed)
    packets: list[tuple[int, bytes]] = []
    waiting: list[bytes] = []
    size, sequence, last_ns, room = HEADER.size, first, 0, chance.randint(1, most)

    def close() -> None:
        nonlocal waiting, size, sequence, room
        header = HEADER.pack(session, sequence, len(waiting))
        packets.append((last_ns, header + b"".join(len(one).to_bytes(2, "big") + one for one in waiting)))
        sequence += len(waiting)
        waiting, size, room = [], HEADER.size, chance.randint(1, most)

    for ns, message in messages:
        if HEADER.size + 2 + len(message) > payload_max:
            raise ConfigError(f"a message of {len(message)} bytes does not fit packets of {payload_max}")
        if waiting and size + 2 + len(message) > payload_max:
            close()
        waiting.append(message)
        size += 2 + len(message)
        last_ns = ns
        if len(waiting) >= room:
            close()
    if waiting:
        close()
    return packets


def control(session: bytes, sequence: int, *, end: bool = False) -> bytes:
    """A heartbeat, or an end of session; ``sequence`` is the next message's."""
    return HEADER.pack(session, sequence, END_OF_SESSION if end else 0)


class Answerer:
    """The request server's mind, pure: a request in, an answer or None out, each counted by its outcome."""

    OUTCOMES = ("answered", "refused", "malformed", "foreign", "beyond", "dropped")

    def __init__(
        self,
        epochs: Sequence[Epoch],
        *,
        refused: Iterable[tuple[bytes, int, int]] = (),
        payload_max: int = PAYLOAD_MAX,
        loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        """``refused``: ranges (session, first, count) never given out. ``loss``: chance that an answer is
        dropped."""
        self._epochs = {epoch.session: epoch for epoch in epochs}
        self._refused = [(session, first, first + count) for session, first, count in refused]
        self._payload_max = payload_max
        self._loss = loss
        self._chance = random.Random(seed)
        self.counts = dict.fromkeys((*self.OUTCOMES, "requests", "messages"), 0)

    def answer(self, request: bytes) -> bytes | None:
        """The packet to send back; None when there is none."""
        self.counts["requests"] += 1
        outcome, packet, messages = self._decide(request)
        self.counts[outcome] += 1
        self.counts["messages"] += messages
        return packet

    def _decide(self, request: bytes) -> tuple[str, bytes | None, int]:
        if len(request) != HEADER.size:
            return "malformed", None, 0
        session, sequence, count = HEADER.unpack(request)
        if count in (0, END_OF_SESSION):
            return "malformed", None, 0
        epoch = self._epochs.get(session)
        if epoch is None:
            return "foreign", None, 0
        if not epoch.first <= sequence < epoch.first + epoch.count:
            return "beyond", None, 0
        end = min(sequence + count, epoch.first + epoch.count)
        for name, first, behind in self._refused:
            if name == session and first < end and sequence < behind:
                if first <= sequence:
                    return "refused", None, 0
                end = first
        start = sequence - epoch.first
        room = int(epoch.bounds[start]) + self._payload_max - HEADER.size
        fits = int(np.searchsorted(epoch.bounds, room, side="right")) - 1 - start
        given = min(end - sequence, fits)
        if given <= 0:
            return "refused", None, 0
        if self._loss and self._chance.random() < self._loss:
            return "dropped", None, 0
        return "answered", HEADER.pack(session, sequence, given) + epoch.slice(sequence, given), given


class RequestServer:
    """A MoldUDP64 request server: a process in the venue's namespace that answers over UDP unicast."""

    def __init__(
        self, namespace: Namespace, address: str, port: int, answerer: Answerer, *, cpu: int | None = None
    ) -> None:
        self.namespace = namespace
        self.address, self.port = address, port
        self.cpu = cpu
        self._answerer = answerer
        self._names = tuple(answerer.counts)
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._shared = np.frombuffer(self._memory, np.int64, len(self._names))
        self._child: Any = None

    def __enter__(self) -> RequestServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> RequestServer:
        """Bind and start answering; SetupError when the address is taken."""
        opened = self.namespace.socket()
        try:
            opened.bind((self.address, self.port))
            self.port = opened.getsockname()[1]
            self._child = self.namespace.fork(self._serve, opened)
        except OSError as error:
            raise SetupError(f"request server on {self.address}:{self.port}", str(error)) from error
        finally:
            opened.close()
        return self

    def _serve(self, opened: socket.socket) -> None:
        stopping: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.cpu is not None:
            os.sched_setaffinity(0, {self.cpu})
        opened.setblocking(False)
        while not stopping:
            select.select([opened], [], [], 0.1)
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        request, client = opened.recvfrom(2048)
                    except ConnectionError:
                        continue  # an earlier answer found nobody: the client's affair
                    answer = self._answerer.answer(request)
                    if answer is not None:
                        with contextlib.suppress(OSError):
                            opened.sendto(answer, client)
                    self._shared[:] = list(self._answerer.counts.values())

    def counters(self) -> dict[str, int]:
        """Requests by outcome: requests = answered + refused + malformed + foreign + beyond + dropped."""
        return dict(zip(self._names, map(int, self._shared), strict=True))

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(2)
            self._child = None
