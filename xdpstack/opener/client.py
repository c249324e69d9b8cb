"""The worker's side: ask an opener for a port, keep the lease, come back when the opener was restarted.

    with Lease.open("/run/xdpstack/opener.sock", "eth0", range(3, 4)) as lease:
        lease.add_rules(["udp dst 233.54.12.111:26477"])
        for frame in lease.port.receive(): ...

None of it needs a capability. A thread of its own, asleep unless something happens, watches the connection:
when the opener dies the port goes on, and the lease is shown to the next one.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

from xdpstack.bpf import Count, Counters
from xdpstack.closing import Closing
from xdpstack.errors import RemoteProtocolError, SetupError
from xdpstack.opener import wire
from xdpstack.port import XskPort
from xdpstack.port.parts import Parts, adopt

__all__ = ["Lease", "status"]

log = logging.getLogger("xdpstack.opener")

_PATIENCE = 10.0  # seconds for an answer
_PAUSE, _PAUSE_MAX = 0.1, 5.0  # seconds between attempts to come back
_BUSY_PAUSE = 0.05
_COUNTED = 0.2  # seconds that counters wait for another question to be answered
_MOVE = 5.0  # seconds that a process which gave its port away keeps the lease for the other


class Lease(Closing):
    """A port and flows lent by an opener. ``state``: held, lost (the opener is away, the port goes on),
    moved (another process took it over) or ended (with ``why``)."""

    def __init__(self, path: str, connection: socket.socket, number: int, target: str) -> None:
        self.path, self.number, self.target = path, number, target
        self.state, self.why = "held", ""
        self.rules: dict[str, int] = {}  # in force for us, by text: the id that they are counted under
        self.resumed = 0
        self._options: dict[str, Any] = {}
        self._connection = connection
        self._talk = threading.Lock()  # one question at a time
        self._shown: list[int] = []  # descriptors of our sockets, to show to the next opener
        self._port: XskPort | None = None
        self._counted = Counters({}, {}, {})  # as of the last answer
        self._wake, self._waker = socket.socketpair()
        self._watcher = threading.Thread(target=self._watch, name="xdpstack-lease", daemon=True)

    # -- life

    @classmethod
    def open(
        cls,
        path: str,
        interface: str,
        queues: range | None = None,
        *,
        wait: float = 2.0,
        **options: Any,
    ) -> Self:
        """Ask the opener at ``path`` for ``queues`` (None: all that the policy gives). ``options`` are those
        of :class:`XskPort`; ``wait``: seconds that a busy queue is asked for again.

        SetupError: no opener there, or its refusal, in its words.
        """
        ask = {
            "ask": "open",
            "interface": interface,
            "queues": None if queues is None else [queues[0], queues[-1]],
            "options": options,
        }
        tried = f"open {interface}{'' if queues is None else f':{queues[0]}-{queues[-1]}'} by the opener"
        end = time.monotonic() + wait
        connection = wire.connect(path, _PATIENCE, "the opener")
        try:
            while True:
                answer, fds = question(connection, ask, tried)
                if "refused" not in answer or not answer.get("again") or time.monotonic() > end:
                    break
                time.sleep(_BUSY_PAUSE)
            if "refused" in answer:
                raise SetupError(tried, str(answer["refused"]))
            return cls._made(path, connection, answer, fds, options)
        except BaseException:
            connection.close()
            raise

    @classmethod
    def _made(
        cls,
        path: str,
        connection: socket.socket,
        answer: dict[str, Any],
        fds: list[int],
        options: dict[str, Any],
    ) -> Self:
        lease = cls(path, connection, int(answer["lease"]), str(answer["target"]))
        lease._options = options
        try:
            lease._keep(adopt(Parts(settings=answer["port"], fds=fds)))
            lease._learn(answer["ids"])
        except BaseException:
            lease.close()
            raise
        lease._watcher.start()
        return lease

    @classmethod
    def resume(
        cls,
        path: str,
        number: int,
        target: str,
        port: XskPort,
        options: dict[str, Any],
    ) -> Self:
        """Take a lease over whose port came from another process, see :meth:`describe`. SetupError: the
        opener refuses, and the port is closed."""
        connection = wire.connect(path, _PATIENCE, "the opener")
        lease = cls(path, connection, number, target)
        lease._options = dict(options)
        lease._keep(port)
        try:
            lease._show(connection)
        except BaseException:
            lease.close()
            raise
        lease._watcher.start()
        return lease

    def _keep(self, port: XskPort) -> None:
        self._port = port
        self._shown = port.sockets()

    def _show(self, connection: socket.socket) -> None:
        tried = f"take up lease {self.number}"
        answer, fds = question(connection, {"ask": "resume", "lease": self.number}, tried, self._shown)
        wire.close_all(fds)
        if "refused" in answer:
            raise SetupError(tried, str(answer["refused"]))
        self._learn(answer["ids"])

    def _learn(self, ids: dict[str, int]) -> None:
        self.rules = {str(rule): int(number) for rule, number in ids.items()}

    @property
    def port(self) -> XskPort:
        """The port; it is closed with the lease."""
        assert self._port is not None
        return self._port

    def close(self) -> None:
        """Give everything back, and wait until the opener has taken it. Twice is calm."""
        if self._port is not None:
            self._port.close()
            self._port = None
        self._let_go(ask_end=True)

    def part(self) -> None:
        """Another process is about to take the lease over: close what is here of the port. The connection
        stays until the opener has moved the lease, see :meth:`let_go`."""
        if self._port is not None:
            self._port.close()
            self._port = None

    def let_go(self) -> None:
        """End nothing, once the other process has the lease (or seconds later, when it did not come)."""
        end = time.monotonic() + _MOVE
        while self.state == "held" and time.monotonic() < end:
            time.sleep(0.005)
        self.part()
        self._let_go(ask_end=False)

    def _let_go(self, *, ask_end: bool) -> None:
        if self._waker.fileno() < 0:
            return
        held = self.state == "held"
        if self.state in ("held", "lost"):
            self.state = "ended" if ask_end else "moved"
        self._waker.send(b"x")
        if self._watcher.is_alive():
            self._watcher.join()
        if ask_end and held:
            with contextlib.suppress(SetupError, OSError, RemoteProtocolError):
                question(self._connection, {"ask": "end"}, "end the lease")
        self._connection.close()
        self._wake.close()
        self._waker.close()

    def __repr__(self) -> str:
        return f"<Lease {self.number} of {self.path}: {self.state}{f', {self.why}' if self.why else ''}>"

    # -- rules and counters

    def add_rules(self, rules: Sequence[str], *, only: bool = False) -> list[str]:
        """Ask for rules; all come into force, or none; ``only``: and no others. Returns their canonical
        texts. SetupError: the refusal, in the opener's words."""
        tried = f"ask the opener for {len(rules)} rule{'s' * (len(rules) != 1)}"
        with self._talk:
            if self.state != "held":
                raise SetupError(tried, f"the lease is {self.state}", self.why)
            answer, fds = self._ask({"ask": "rules", "rules": list(rules), "only": only}, tried)
        wire.close_all(fds)
        if "refused" in answer:
            raise SetupError(tried, str(answer["refused"]))
        self._learn(answer["ids"])
        return [str(rule) for rule in answer["rules"]]

    def counters(self) -> Counters:
        """What the filter counted for this lease, by the opener: packets and bytes of its rules, and of its
        queues without a socket; no reasons, which are of everybody's frames. While the opener is away, what
        it said last."""
        if self.state != "held" or not self._talk.acquire(timeout=_COUNTED):
            return self._counted
        try:
            answer, fds = self._ask({"ask": "counters"}, "ask the opener for counters")
            wire.close_all(fds)
        except (SetupError, RemoteProtocolError):
            return self._counted
        finally:
            self._talk.release()
        if "refused" not in answer:
            rules = {int(number): Count(*counted) for number, counted in answer["rules"].items()}
            missed = {(self.target, int(q)): Count(*counted) for q, counted in answer["no_socket"].items()}
            self._counted = Counters(rules, {}, missed)
        return self._counted

    def reopen(self) -> XskPort:
        """The interface went and came back: ask for the same queues once more, with the rules that are in
        force. The port before is the caller's to close, earlier where the device is the same. Returns the
        port, which is the lease's now. SetupError: not yet; with errno EPERM: not any more."""
        tried = f"open the port of lease {self.number} again by the opener"
        with self._talk:
            if self.state != "held":
                over = self.state in ("ended", "moved")
                raise SetupError(tried, f"the lease is {self.state}", self.why, errno.EPERM if over else None)
            ask = {"ask": "reopen", "options": self._options}
            answer, fds = self._ask(ask, tried)
            if "refused" in answer:
                wire.close_all(fds)
                number = errno.EBUSY if answer.get("again") else None if "again" in answer else errno.EPERM
                raise SetupError(tried, str(answer["refused"]), errno=number)
            self._keep(adopt(Parts(settings=answer["port"], fds=fds)))
            self._learn(answer["ids"])
        return self.port

    def describe(self) -> dict[str, Any]:
        """What another process needs, beside the port, to go on with this lease."""
        return {"path": self.path, "number": self.number, "target": self.target, "options": self._options}

    # -- the watch

    def _watch(self) -> None:
        while self.state in ("held", "lost"):
            if self.state == "lost":
                self._come_back()
                continue
            ready, _, _ = select.select([self._connection, self._wake], [], [])
            if self._wake in ready:
                return
            with self._talk:
                self._hear()

    def _ask(self, message: dict[str, Any], tried: str) -> tuple[dict[str, Any], list[int]]:
        """:func:`question` for one who holds ``_talk``. Where the lease has just moved, the opener's word
        of it comes first, and is no answer."""
        answer, fds = question(self._connection, message, tried)
        if "moved" in answer:
            wire.close_all(fds)
            self.state = "moved"
            raise SetupError(tried, "the lease is moved", errno=errno.EPERM)
        return answer, fds

    def _hear(self) -> None:
        """The opener speaks unasked, or is gone. An answer that is being waited for is not ours to take."""
        try:
            self._connection.settimeout(0)
            message, fds = wire.receive(self._connection)
            wire.close_all(fds)
        except BlockingIOError:
            return
        except (OSError, RemoteProtocolError):
            message = None
        finally:
            with contextlib.suppress(OSError):
                self._connection.settimeout(_PATIENCE)
        if self.state != "held":
            return
        if message is None:
            self.state = "lost"
            log.warning("%r: the opener is gone; the port goes on", self)
        elif "moved" in message:
            self.state = "moved"
        elif "ended" in message:
            self.why = str(message["ended"])
            self.state = "lost"  # an opener that was told to keep leases says so, too: try the next one

    def _come_back(self) -> None:
        pause = _PAUSE
        while self.state == "lost":
            ready, _, _ = select.select([self._wake], [], [], pause)
            if ready:
                return
            pause = min(pause * 2, _PAUSE_MAX)
            with contextlib.suppress(SetupError, OSError, RemoteProtocolError), self._talk:
                connection = wire.connect(self.path, _PATIENCE, "the opener")
                try:
                    self._show(connection)
                except SetupError as error:
                    connection.close()
                    if error.errno is None:  # it answered: no
                        self.state, self.why = "ended", error.reason
                        log.warning("%r", self)
                    continue
                except BaseException:
                    connection.close()
                    raise
                self._connection.close()
                self._connection = connection
                self.resumed += 1
                self.state = "held"


def question(
    connection: socket.socket, message: dict[str, Any], tried: str, fds: Sequence[int] = ()
) -> tuple[dict[str, Any], list[int]]:
    """Ask, and wait for the answer. SetupError: there is none; a refusal is an answer."""
    try:
        answer, given = _exchange(connection, message, fds)
    except TimeoutError:
        raise SetupError(tried, f"no answer within {_PATIENCE:g} s", errno=110) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError(tried, reason, "the opener ended, or refused the connection", error.errno) from None
    if answer is None:
        raise SetupError(tried, "the opener closed the connection", errno=104)
    if "ended" in answer:
        wire.close_all(given)
        raise SetupError(tried, str(answer["ended"]))
    return answer, given


def _exchange(
    connection: socket.socket, message: dict[str, Any], fds: Sequence[int]
) -> tuple[dict[str, Any] | None, list[int]]:
    """A refusal at the door came before we asked: the socket tells first that it is broken, then why."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send(connection, message, fds)
    try:
        return wire.receive(connection)
    except ConnectionResetError:
        return wire.receive(connection)


def status(path: str) -> dict[str, Any]:
    """What an opener says of itself: its leases (to root: everybody's) and, to root, its counts."""
    connection = wire.connect(path, _PATIENCE, "the opener")
    with connection:
        answer, fds = question(connection, {"ask": "status"}, f"ask {path}")
        wire.close_all(fds)
    if "refused" in answer:
        raise SetupError(f"ask {path}", str(answer["refused"]))
    return answer
