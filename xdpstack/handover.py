"""A running node gives its ports to a new process, which goes on where it stopped: restart without downtime.

The old process offers (``Offer``), the new one asks (``Takeover``) over a Unix socket that only their user
may use. What passes is a description and descriptors: of the sockets and frames of each AF_XDP port, of the
filter, of the opener's lease. In order:

    new  joins its groups, builds its engine, asks
    old  ends its thread between two turns, sends every port
    new  has them all, says so; dies it before that, the old one turns again: nothing has moved
    old  lets go, says so, ends
    new  maps the rings at their present indices, and turns

So each frame is seen by one of the two, once. Between the two turns frames wait in the RX ring, which bounds
the pause: 4,096 frames are 4 ms at a million a second. Books, windows and counters are not handed over: the
new engine begins its own, like a program that starts in the middle of a day.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import select
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from xdpstack.closing import Closing
from xdpstack.errors import ConfigError, RemoteProtocolError, SetupError
from xdpstack.opener import wire
from xdpstack.port.parts import Parts

__all__ = ["Handed", "Offer", "Takeover"]

_PATIENCE = 5.0  # seconds that either waits for the other


@dataclasses.dataclass(slots=True, kw_only=True)
class Handed:
    """One port on its way. ``filter_fds``: by position, see ``Filter.fds``; ``rules``: ids to be taken back
    at the end; ``lease``: of an opener."""

    name: str
    port: str
    parts: Parts
    filter_fds: dict[int, int]
    mode: str = "none"
    pin_dir: str | None = None
    rules: list[int] = dataclasses.field(default_factory=list)
    lease: dict[str, Any] | None = None

    def close(self) -> None:
        """Close what nobody took; twice is calm."""
        self.parts.close()
        wire.close_all(list(self.filter_fds.values()))
        self.filter_fds = {}

    def message(self) -> tuple[dict[str, Any], list[int]]:
        """As it travels."""
        said = {
            "name": self.name,
            "port": self.port,
            "settings": dict(self.parts.settings),
            "filter": list(self.filter_fds),
            "mode": self.mode,
            "pin_dir": self.pin_dir,
            "rules": self.rules,
            "lease": self.lease,
        }
        return said, [*self.parts.fds, *self.filter_fds.values()]

    @classmethod
    def of(cls, said: dict[str, Any], fds: list[int]) -> Self:
        """From a message, whose descriptors are given. RemoteProtocolError: it is damaged."""
        try:
            places = [int(place) for place in said["filter"]]
            count = len(fds) - len(places)
            return cls(
                name=str(said["name"]),
                port=str(said["port"]),
                parts=Parts(said["settings"], fds[:count]),
                filter_fds=dict(zip(places, fds[count:], strict=True)),
                mode=str(said["mode"]),
                pin_dir=said["pin_dir"],
                rules=[int(rule) for rule in said["rules"]],
                lease=said["lease"],
            )
        except (KeyError, TypeError, ValueError) as error:
            wire.close_all(fds)
            raise RemoteProtocolError(f"a port's description is damaged: {error!r}") from None


class Offer(Closing):
    """The old process's end: a socket at ``path`` that :meth:`wanted` looks at between two sleeps."""

    def __init__(
        self,
        path: str,
        ports: Iterable[tuple[str, str]],
        filters: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        replace: bool = False,
    ) -> None:
        """``filters``: by port, the settings of its filter, which a takeover cannot change. ``replace``: the
        process that offers there was taken over. Raises SetupError."""
        self.path, self._ports, self._filters = path, [list(port) for port in ports], filters or {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self.taken_by = 0  # pid of who took the ports
        beside = f"{path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
            if not replace:
                self._refuse_living()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
            self._listener.bind(beside)
            os.chmod(beside, 0o600)
            self._listener.listen(4)
            os.rename(beside, path)  # over the one of the process that was taken over
        except OSError as error:
            self._listener.close()
            if isinstance(error, SetupError):
                raise
            raise SetupError(
                f"offer handover at {path}", error.strerror or str(error), errno=error.errno
            ) from None
        self._inode = os.stat(path).st_ino

    def _refuse_living(self) -> None:
        """A socket where another process still answers is not ours to replace."""
        try:
            wire.connect(self.path, 1.0, "it").close()
        except SetupError:
            return
        raise SetupError(
            f"offer handover at {self.path}",
            "another process does",
            "end it, take it over (--takeover), or choose another socket",
            errno.EADDRINUSE,
        )

    def wait(self, seconds: float) -> socket.socket | None:
        """Sleep up to that long; a connection that asks for the ports ends the sleep. It is given."""
        ready, _, _ = select.select([self._listener], [], [], seconds)
        if not ready:
            return None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return None
        connection.settimeout(_PATIENCE)
        try:
            why = self._refusal(connection)
            if not why:
                return connection
            wire.send(connection, {"refused": why})
        except (OSError, RemoteProtocolError):
            pass
        connection.close()
        return None

    def _refusal(self, connection: socket.socket) -> str:
        peer = wire.peer_of(connection)
        if peer.uid not in (0, os.geteuid()):
            return f"{peer.name} is not the user of this process"
        connection.settimeout(0.5)  # nobody holds up a loop by saying nothing
        message, fds = wire.receive(connection)
        connection.settimeout(_PATIENCE)
        wire.close_all(fds)
        if message is None or message.get("ask") != "take over":
            return "asked to be taken over, please"
        if message.get("ports") != self._ports:
            ours = ", ".join(f"{name} = {port}" for name, port in self._ports)
            return f"its ports are others: this process has {ours}"
        return self._other_filter(message.get("filters"))

    def _other_filter(self, asked: object) -> str:
        """What a filter would have to change; an older process does not say what it wants."""
        for name, words in self._filters.items():
            wanted = asked.get(name) if isinstance(asked, dict) else None
            if not isinstance(wanted, dict):
                continue
            for key, there in words.items():
                if wanted.get(key, there) != there:
                    what = f"{key} = {json.dumps(there)}, not {json.dumps(wanted[key])}"
                    return f"port {name} keeps its filter, which has {what}; end it, then run"
        return ""

    def give(self, connection: socket.socket, handed: list[Handed]) -> bool:
        """Send every port. True: the other has them all, and waits for :meth:`gone`; False: it does not."""
        try:
            wire.send(connection, {"ports": len(handed)})
            for one in handed:
                message, fds = one.message()
                wire.send(connection, message, fds)
            answer, fds = wire.receive(connection)
            wire.close_all(fds)
            if answer is not None and answer.get("took") == len(handed):
                self.taken_by = wire.peer_of(connection).pid
                return True
        except (OSError, RemoteProtocolError, ValueError):
            pass
        connection.close()
        return False

    @staticmethod
    def gone(connection: socket.socket) -> None:
        """Say that nothing of ours touches the ports any more."""
        with contextlib.suppress(OSError):
            wire.send(connection, {"go": True})
        connection.close()

    def close(self) -> None:
        """End the offer; the socket's name goes unless it is another process's by now. Twice is calm."""
        if self._listener.fileno() < 0:
            return
        self._listener.close()
        if not self.taken_by:
            with contextlib.suppress(OSError):
                if os.stat(self.path).st_ino == self._inode:
                    os.unlink(self.path)


class Takeover:
    """The new process's end. Made early, to find the other; :meth:`take` late: it turns until then."""

    def __init__(self, path: str) -> None:
        """Raises SetupError: nobody offers there, or another user does."""
        self.path = path
        self._connect().close()

    def _connect(self) -> socket.socket:
        connection = wire.connect(self.path, 2 * _PATIENCE, "the running process")
        peer = wire.peer_of(connection)
        if peer.uid not in (0, os.geteuid()):
            connection.close()
            raise SetupError(f"take over at {self.path}", f"{peer.name} serves it, not this user")
        return connection

    def take(
        self, ports: Sequence[tuple[str, str]], filters: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[Handed]:
        """These ports, in this order, with filters of these settings, from the process that runs now; it has
        let go. SetupError: it keeps them."""
        tried = f"take over at {self.path}"
        handed: list[Handed] = []
        connection = self._connect()
        try:
            asked = {"ask": "take over", "ports": [list(port) for port in ports], "filters": filters or {}}
            wire.send(connection, asked)
            for _ in range(int(_next(connection, tried)[0]["ports"])):
                handed.append(Handed.of(*_next(connection, tried)))
            if len(handed) != len(ports):
                raise RemoteProtocolError(f"{len(handed)} ports came, not {len(ports)}")
            wire.send(connection, {"took": len(handed)})
            with contextlib.suppress(ConnectionResetError):
                wire.receive(connection)  # it has let go, or has ended, which is the same
        except (OSError, RemoteProtocolError, KeyError, ValueError) as error:
            for one in handed:
                one.close()
            if isinstance(error, (SetupError, ConfigError)):
                raise
            raise SetupError(tried, str(error)) from None
        finally:
            connection.close()
        return handed


def _next(connection: socket.socket, tried: str) -> tuple[dict[str, Any], list[int]]:
    message, fds = wire.receive(connection)
    if message is None:
        raise SetupError(tried, "the running process closed the connection")
    if "refused" in message:
        raise SetupError(tried, str(message["refused"]))
    return message, fds
