"""JSON, a line each way, between a process and one that it forked."""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

__all__ = ["Lines"]


class Lines:
    """One end of a pair of stream sockets. Nothing is torn: a line is read when it is whole."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._data = end, b""

    @property
    def is_open(self) -> bool:
        """It was not closed here."""
        return self._socket.fileno() >= 0

    @property
    def has_room(self) -> bool:
        """A short line can be written without waiting for the other end."""
        return bool(select.select([], [self._socket], [], 0.0)[1])

    def write(self, said: dict[str, Any]) -> None:
        """Say something; waits for room. OSError: the other end is gone."""
        self._socket.sendall(json.dumps(said).encode() + b"\n", socket.MSG_NOSIGNAL)

    def read(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None: there was none for that long, or the other end is gone."""
        end = time.monotonic() + seconds
        while b"\n" not in self._data:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, end - time.monotonic()))
            try:
                more = self._socket.recv(1 << 16) if ready else b""
            except ConnectionResetError:
                more = b""
            if not more:
                if ready:  # not at once again and again
                    time.sleep(min(0.02, max(0.0, end - time.monotonic())))
                return None
            self._data += more
        line, _, self._data = self._data.partition(b"\n")
        return dict(json.loads(line))

    def close(self) -> None:
        """Twice is calm."""
        self._socket.close()
