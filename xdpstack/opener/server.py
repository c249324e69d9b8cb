"""The opener's process: one loop that accepts, asks the policy, opens, gives, and takes back.

A connection is a lease's life: when it ends, however it ends, the lease's sockets leave the filter's map
and its rules go, at once. A message that is not ours ends its connection with a sentence. A killed opener
leaves everything as it is: workers go on, and show their sockets to the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import selectors
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from xdpstack.errors import RemoteProtocolError, SetupError, XdpstackError
from xdpstack.opener import wire
from xdpstack.opener.leases import Lease, Leases
from xdpstack.opener.policy import Peer, Policy, Refused, Worker, span
from xdpstack.port import XskPort
from xdpstack.port.parts import Parts, part

__all__ = ["Server"]

log = logging.getLogger("xdpstack.opener")

_PORT_KEYS: dict[str, type] = {
    "mode": str, "require": bool, "need_wakeup": bool, "stamps": bool, "busy_poll": int,
    "busy_poll_budget": int, "rx_ring": int, "rx_frames": int, "tx_ring": int, "tx_frames": int,
    "frame_size": int, "huge_pages": bool, "headroom": int, "unaligned": bool, "jumbo": bool, "slabs": int,
    "tx_queue": int, "tx_budget": int, "tx": str,
}  # fmt: skip
_BIND_WAIT_MS = 200  # a worker asks again; nobody waits long behind it
_BACKLOG = 128
_LISTEN_FDS_START = 3


@dataclasses.dataclass(slots=True, eq=False)
class _Client:
    connection: socket.socket
    peer: Peer
    deadline: float  # CLOCK_MONOTONIC until which it must have a lease; inf with one
    lease: Lease | None = None


class Server:
    """An opener that serves its policy from :meth:`start` to :meth:`close`; :meth:`step` is one round."""

    def __init__(self, policy: Policy, *, keep: bool = False) -> None:
        self.policy, self.keep = policy, keep
        self.counts: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._clients: set[_Client] = set()
        self._listener: socket.socket | None = None
        self._passed = False  # the listening socket came from the service manager
        self._lock = -1
        self._leases = Leases(Path(policy.socket + ".leases"))
        self._asks: dict[str, Callable[[_Client, dict[str, Any], list[int]], None]] = {
            "open": self._open,
            "reopen": self._reopen,
            "rules": self._rules,
            "counters": self._counters,
            "resume": self._resume,
            "end": self._end,
            "status": self._status,
        }

    # -- life

    def start(self) -> Self:
        """Take the lock, adopt what the journal holds, listen. Raises SetupError."""
        Path(self.policy.socket).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._leases = Leases.read(self._leases.path)
            self._recover()
            self._listener = self._listen()
        except BaseException:
            self._leases.close()
            self._drop_lock()
            raise
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        return self

    def _take_lock(self) -> None:
        path = self.policy.socket + ".lock"
        while True:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
                os.close(self._lock)
                raise SetupError(
                    f"serve {self.policy.socket}",
                    f"another opener does (pid {holder or 'unknown'})",
                    "end it, or choose another socket",
                    errno.EBUSY,
                ) from None
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == os.fstat(self._lock).st_ino:
                    break
            os.close(self._lock)  # its file was removed by who had it
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _drop_lock(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.policy.socket + ".lock")
        os.close(self._lock)

    def _recover(self) -> None:
        """Wait for the workers of the journal's leases; what nobody holds any more goes now."""
        for interface in self.policy.interfaces:
            try:
                self._leases.filter(interface)
            except SetupError as error:
                raise SetupError(
                    f"serve {interface}", error.reason or str(error), error.remedy, error.errno
                ) from None
            mine = {w.target for w in self.policy.workers if w.interface == interface}
            self._leases.targets.setdefault(interface, set()).update(mine)
        for lease in self._leases.living.values():
            lease.orphan_since = time.monotonic()
        self._leases.write()
        for interface in self.policy.interfaces:
            self._leases.follow(interface)

    def _listen(self) -> socket.socket:
        if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
            self._passed = True
            return socket.socket(fileno=_LISTEN_FDS_START)
        path = self.policy.socket
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise SetupError(
                    f"serve {path}", "a file of that name is no socket", "remove it", errno.EEXIST
                )
            os.unlink(path)  # its opener is gone: we have the lock
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(path)
            os.chmod(path, self.policy.mode)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise SetupError(f"serve {path}", error.strerror or str(error), errno=error.errno) from None
        return listener

    def close(self) -> None:
        """End: with ``keep``, workers go on for the next opener to adopt; else their leases end, told so."""
        if self._listener is None:
            return
        self._listener.close()
        for client in list(self._clients):
            if self.keep:
                client.lease = None
            self._drop(client, "the opener ends")
        if not self.keep:
            for lease in list(self._leases.living.values()):
                self._leases.end(lease)
        self._leases.close()
        self._selector.close()
        if not self._passed:
            with contextlib.suppress(OSError):
                os.unlink(self.policy.socket)
        self._drop_lock()
        self._listener = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the loop

    def wake_by(self, fd: int) -> None:
        """End a round's waiting when something can be read here (signals)."""
        self._selector.register(fd, selectors.EVENT_READ)

    def step(self, timeout: float = 1.0) -> None:
        """Wait up to ``timeout`` seconds for something to do, and do it."""
        for key, _ in self._selector.select(min(timeout, self._patience())):
            if key.fileobj is self._listener:
                self._accept()
            elif key.data in self._clients:
                self._hear(key.data)
            elif key.data is None and isinstance(key.fileobj, int):
                os.read(key.fileobj, 4096)
        now = time.monotonic()
        for client in [c for c in self._clients if c.deadline <= now]:
            self.counts["silent"] += 1
            self._drop(client, f"nothing was asked for {self.policy.limits.silence:g} s")
        self._end_orphans(now)

    def _patience(self) -> float:
        now = time.monotonic()
        waits = [client.deadline - now for client in self._clients]
        waits += [
            lease.orphan_since + self.policy.limits.adopt - now
            for lease in self._leases.living.values()
            if lease.orphan_since is not None
        ]
        return max(0.0, min(waits, default=3600.0))

    def _end_orphans(self, now: float) -> None:
        for lease in list(self._leases.living.values()):
            if lease.orphan_since is not None and lease.orphan_since + self.policy.limits.adopt <= now:
                self._close_lease(lease, "orphaned")

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # out of descriptors: the next ones wait in the queue, not in a busy loop
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self.counts["accept_failed"] += 1
                time.sleep(0.01)
            return
        connection.setblocking(False)
        peer, limits = wire.peer_of(connection), self.policy.limits
        client = _Client(connection, peer, time.monotonic() + limits.silence)
        try:
            if peer.uid != 0:
                self.policy.admitting(peer)
            if len(self._clients) >= limits.connections:
                raise Refused(f"{limits.connections} connections are open already")
            if sum(other.peer.uid == peer.uid for other in self._clients) >= limits.connections_user:
                raise Refused(f"{peer.name} has {limits.connections_user} connections already")
        except Refused as why:
            self.counts["refused_connections"] += 1
            self._say(client, {"refused": str(why)})
            connection.close()
            return
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _hear(self, client: _Client) -> None:
        fds: list[int] = []
        try:
            message, fds = wire.receive(client.connection)
            if message is None:
                self._drop(client)
                return
            ask = self._asks.get(str(message.get("ask")))
            if ask is None:
                raise Refused(f"asked for one of {', '.join(self._asks)}, please")
            ask(client, message, fds)
        except BlockingIOError:
            return
        except Refused as why:
            self.counts["refused"] += 1
            self._say(client, {"refused": str(why)})
        except RemoteProtocolError as error:
            self.counts["garbage"] += 1
            self._drop(client, str(error))
        except (XdpstackError, OSError, ValueError) as error:
            if isinstance(error, ConnectionError):
                self._drop(client)
                return
            self.counts["failed"] += 1
            again = getattr(error, "errno", None) == errno.EBUSY
            self._say(client, {"refused": str(error), "again": again})
        finally:
            wire.close_all(fds)

    def _say(self, client: _Client, message: dict[str, Any], fds: list[int] | None = None) -> bool:
        try:
            wire.send(client.connection, message, fds or [])
            return True
        except OSError:  # it does not read, or is gone: its connection ends with the next round
            with contextlib.suppress(OSError):
                client.connection.shutdown(socket.SHUT_RDWR)
            return False

    def _drop(self, client: _Client, why: str = "") -> None:
        """End a connection, and with it its lease."""
        if client not in self._clients:
            return
        self._clients.discard(client)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.connection)
        if why:
            self._say(client, {"ended": why})
        client.connection.close()
        if client.lease is not None:
            self._close_lease(client.lease, "ended")
            client.lease = None

    def _close_lease(self, lease: Lease, how: str) -> None:
        self.counts[f"leases_{how}"] += 1
        log.info("%s: %s", lease, how)
        self._leases.end(lease)

    # -- what is asked

    def _open(self, client: _Client, message: dict[str, Any], fds: list[int]) -> None:
        worker, queues = self._wanted(client, message)
        options = _options(worker, queues, message.get("options"))
        self._leases.filter(worker.interface)  # without one there is nothing to lend
        parts = _port(worker.interface, queues, options)
        try:
            lease = Lease(
                id=self._leases.number(),
                worker=worker.name,
                uid=client.peer.uid,
                pid=client.peer.pid,
                interface=worker.interface,
                queues=(queues[0], queues[-1]),
                target=worker.target,
                cookies=[wire.socket_cookie(fd) for fd in parts.sockets],
            )
            self._leases.add(lease)
            client.lease, client.deadline = lease, float("inf")
            if self._give(client, lease, parts):
                self.counts["leases_given"] += 1
                log.info("%s: queues %s of %s", lease, span(queues), worker.interface)
        finally:
            parts.close()

    def _give(self, client: _Client, lease: Lease, parts: Parts) -> bool:
        """Let the filter know a lease's sockets, and the worker have them."""
        steer = self._leases.filter(lease.interface)
        for queue, fd in parts.receivers.items():
            steer.set_socket(lease.target, queue, fd)
        self._leases.follow(lease.interface)
        answer = {
            "lease": lease.id,
            "target": lease.target,
            "port": parts.settings,
            "ids": self._ids(lease),
        }
        return self._say(client, answer, parts.fds)

    def _reopen(self, client: _Client, message: dict[str, Any], fds: list[int]) -> None:
        """The interface of a lease went and came back: the same queues of it once more, with the same rules.
        Nothing of what a lease is about can be said here."""
        lease = self._lease_of(client)
        options = _options(self._worker_of(lease), lease.numbers, message.get("options"))
        parts = _port(lease.interface, lease.numbers, options)
        try:
            cookies = [wire.socket_cookie(fd) for fd in parts.sockets]
            lease.cookies, lease.before = cookies, lease.cookies
            self._leases.write()
            if self._give(client, lease, parts):
                self.counts["ports_reopened"] += 1
                log.info("%s: opened again", lease)
        finally:
            parts.close()

    def _counters(self, client: _Client, message: dict[str, Any], fds: list[int]) -> None:
        """What was counted for a lease: its own rules and queues, nobody else's."""
        self._say(client, self._leases.counters(self._lease_of(client)))

    def _worker_of(self, lease: Lease) -> Worker:
        worker = next((w for w in self.policy.workers if w.name == lease.worker), None)
        if worker is None:
            raise Refused(f"{lease.worker} is in the policy no more")
        return worker

    def _wanted(self, client: _Client, message: dict[str, Any]) -> tuple[Worker, range]:
        """What an ``open`` is about, when the policy and the other leases allow it."""
        interface, asked = message.get("interface"), message.get("queues")
        if client.lease is not None:
            raise Refused("this connection has a lease: one a connection")
        if not isinstance(interface, str):
            raise Refused("which interface?")
        queues = None
        if asked is not None:
            match asked:
                case [int(first), int(last)] if 0 <= first <= last < 128:
                    queues = range(first, last + 1)
                case _:
                    raise Refused(f"queues {asked!r:.40}: wanted [first, last], from 0 to 127")
        worker, queues = self.policy.find(client.peer, interface, queues)
        if (holder := self._leases.holder(interface, queues)) is not None:
            raise Refused(f"queue {span(holder.numbers)} of {interface} is leased: {holder}")
        if sum(lease.worker == worker.name for lease in self._leases.living.values()) >= worker.leases:
            raise Refused(f"{worker.name} has its {worker.leases} lease{'s' * (worker.leases > 1)} already")
        return worker, queues

    def _rules(self, client: _Client, message: dict[str, Any], fds: list[int]) -> None:
        """Put rules in force, when the policy covers every one: all, or none. ``only``: and no others."""
        lease, texts, only = self._lease_of(client), message.get("rules"), message.get("only") is True
        if not isinstance(texts, list) or not all(
            isinstance(text, str) and len(text) < 400 for text in texts
        ):
            raise Refused("rules: wanted a list of texts")
        worker = self._worker_of(lease)
        wanted = [str(worker.rule(text)) for text in texts]
        before = lease.rules
        rules = list(dict.fromkeys([*([] if only else before), *wanted]))
        if len(rules) > self.policy.limits.asks:
            raise Refused(f"more than {self.policy.limits.asks} rules for one lease")
        lease.rules = rules
        self._leases.write()
        try:
            self._leases.follow(lease.interface)
        except BaseException:
            lease.rules = before
            self._leases.write()
            raise
        self._say(client, {"rules": wanted, "ids": self._ids(lease)})

    def _ids(self, lease: Lease) -> dict[str, int]:
        """The numbers under which a lease's rules are counted."""
        there = self._leases.filter(lease.interface).rules
        return {str(rule): rule.id for rule in there if str(rule) in lease.rules}

    def _resume(self, client: _Client, message: dict[str, Any], fds: list[int]) -> None:
        """A worker shows the sockets of its lease: after a restart of ours, or because it took them over."""
        lease = self._leases.living.get(message["lease"]) if isinstance(message.get("lease"), int) else None
        if lease is None:
            raise Refused("that lease is over")
        if client.lease is not None:
            raise Refused("this connection has a lease: one a connection")
        worker = next((w for w in self.policy.workers if w.name == lease.worker), None)
        if worker is None or not worker.admits(client.peer) or client.peer.uid != lease.uid:
            raise Refused(f"{client.peer.name} may not have {lease}")
        try:
            shown = [wire.socket_cookie(fd) for fd in fds]
        except OSError:
            shown = []
        if not shown or shown not in (lease.cookies, lease.before):
            raise Refused(f"these are not the sockets of {lease}")
        for other in self._clients:
            if other.lease is lease:
                other.lease, other.deadline = None, time.monotonic() + self.policy.limits.silence
                self._say(other, {"moved": lease.id})
                self.counts["leases_handed_over"] += 1
        if lease.orphan_since is not None:
            self.counts["leases_adopted"] += 1
        client.lease, client.deadline = lease, float("inf")
        lease.pid, lease.orphan_since = client.peer.pid, None
        self._leases.write()
        self._say(client, {"lease": lease.id, "rules": lease.rules, "ids": self._ids(lease)})

    def _end(self, client: _Client, message: dict[str, Any], fds: list[int]) -> None:
        lease = self._lease_of(client)
        client.lease, client.deadline = None, time.monotonic() + self.policy.limits.silence
        self._close_lease(lease, "ended")
        self._say(client, {"over": lease.id})

    def _status(self, client: _Client, message: dict[str, Any], fds: list[int]) -> None:
        """Everything to root, its own leases to anybody else."""
        mine = [e for e in self._leases.describe() if client.peer.uid in (0, e["uid"])]
        answer: dict[str, Any] = {"leases": mine, "pid": os.getpid(), "connections": len(self._clients)}
        if client.peer.uid == 0:
            answer["counts"] = dict(self.counts)
        self._say(client, answer)

    @staticmethod
    def _lease_of(client: _Client) -> Lease:
        if client.lease is None:
            raise Refused("this connection has no lease")
        return client.lease


def _port(interface: str, queues: range, options: dict[str, Any]) -> Parts:
    """A port that is open, and nobody's yet."""
    with XskPort(interface, queues, shared=True, bind_wait_ms=_BIND_WAIT_MS, **options) as port:
        return part(port)


def _options(worker: Worker, queues: range, given: object) -> dict[str, Any]:
    """The port's options that a worker may choose, checked. Raises Refused."""
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise Refused("options: wanted an object")
    for key, value in given.items():
        form = _PORT_KEYS.get(key)
        if form is None:
            raise Refused(f"option {key!r:.40}: known are {', '.join(_PORT_KEYS)}")
        if type(value) is not form and not (value is None and key in ("tx_frames", "tx_queue")):
            raise Refused(f"option {key}: wanted {form.__name__}, not {value!r:.40}")
        if isinstance(value, int) and not 0 <= value <= 1 << 20:
            raise Refused(f"option {key}: from 0 to {1 << 20}, not {value}")
    options = dict(given)
    if options.get("tx_queue") is None:
        options.pop("tx_queue", None)
    elif options["tx_queue"] not in worker.queues:
        raise Refused(f"tx_queue {options['tx_queue']}: {worker.name} may have {span(worker.queues)}")
    if not worker.send:
        if options.get("tx_frames"):
            raise Refused(f"{worker.name} may not send: tx_frames=0")
        options["tx_frames"] = 0
    sending = options.get("tx_frames")
    frames = options.get("rx_frames", 4096) * len(queues)
    frames += options.get("tx_ring", 2048) if sending is None else sending
    size = options.get("frame_size") or 4096
    if frames * size > worker.memory << 20:
        raise Refused(f"{frames} frames of up to {size} bytes: {worker.name} may have {worker.memory} MiB")
    return options
