"""TCP of a node over kernel sockets: the calls of :mod:`xdpstack.streams`, where a port is ``sock:IFACE``.

    with xdpstack.open("sock:eth0") as node, node.connect("192.0.2.1", 7000) as peer:
        peer.write(b"hello")

A program that runs over AF_XDP runs here too: blocking, by callbacks and over :mod:`xdpstack.aio`, with
the same exceptions. Connections are bound to the interface. ``info()`` has what TCP_INFO has, by the same
names; a setting that the kernel has only for all connections, or not at all, is refused by name.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import ipaddress
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdpstack._ffi import ffi, lib
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, SetupError
from xdpstack.leases import Prepared, Room, View
from xdpstack.port.base import NEVER
from xdpstack.sock_figures import COUNTED
from xdpstack.stages import Stages
from xdpstack.streams import _LOOK, Connection, Listener, Streams
from xdpstack.tap import Tap
from xdpstack.tcp import CONGESTION, SET, STATES, address16, check_setting

if TYPE_CHECKING:
    from xdpstack.engine import Engine

__all__ = ["SockConnection", "SockListener", "SockStreams"]

_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_BITS = {
    errno.ECONNREFUSED: lib.XDS_STACK_REFUSED,
    errno.ECONNRESET: lib.XDS_STACK_RESET,
    errno.EPIPE: lib.XDS_STACK_RESET,
    errno.ETIMEDOUT: lib.XDS_STACK_TIMEOUT,
}
_SIOCOUTQ = termios.TIOCOUTQ
_SO_TIMESTAMPNS = 35
"""Python's socket module has no name for it."""
_MOST = 65536
_NO_TAP = "a tap is over AF_XDP: what kernel sockets send is seen by tcpdump"
_NO_LEASE = "views and rooms are over AF_XDP: kernel sockets have no memory to lend; use take() and put()"
_SECOND = 1_000_000_000


class SockStreams(Streams):
    """The connections and listeners of one interface, as kernel sockets."""

    def __init__(
        self,
        engine: Engine,
        interface: str = "",
        *,
        watch: Callable[[], None] = lambda: None,
        connections: int = 64,
        listeners: int = 8,
        send_bytes: int = 0,
        receive_bytes: int = 0,
        **settings: Any,
    ) -> None:
        """``settings``: of each connection. Buffers of 0 bytes are the kernel's to size. ConfigError:
        one that kernel sockets do not have."""
        self.engine, self.interface, self.index = engine, interface, -1
        self._bounds = (connections, listeners)
        self._buffers = {socket.SO_SNDBUF: send_bytes, socket.SO_RCVBUF: receive_bytes}
        self._settings = settings
        _options(settings)
        self._live: dict[int, Connection | Listener] = {}
        self._leaving = {}
        self._look_at = 0.0
        self._watch = watch
        self._staged, self._wake = engine.keep_connection_stages() is not None, 0
        self._figures = engine.show_sock_streams(interface)
        self.broken = None
        self._counts = dict.fromkeys(("opened", "accepted", "refused", "connections_max"), 0)
        self._epoll = select.epoll()
        self._poll = select.poll()
        self._polled = -1
        self._hook = None
        self.leased, self.taps = {}, set()
        self.nap = 1.0
        """Seconds that a wait sleeps at most: what the kernel tells nobody of is looked for so often."""
        self.closed = False

    # -- opening

    def _open_to(
        self,
        address: str,
        port: int,
        *,
        local: tuple[str, int] = ("", 0),
        tap: str | os.PathLike[str] = "",
        **settings: Any,
    ) -> Connection:
        if tap:
            raise LocalProtocolError(_NO_TAP)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        scope = f"%{self.interface}" if self.interface and ipaddress.ip_address(address).is_link_local else ""
        found = socket.getaddrinfo(
            address + scope * (family == socket.AF_INET6), port, family, socket.SOCK_STREAM
        )
        where = f"connect to {found[0][4][0]}:{port}"
        if not port:
            raise ConfigError(f"{where}: no own address, a port of 0, or settings that contradict each other")
        self._count(Connection, where)
        _way(family, found[0][4], where)
        one = self._socket(family, settings)
        try:
            if local != ("", 0):
                one.bind(local)
            code = one.connect_ex(found[0][4])
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, f"{where}: {os.strerror(code)}")
        except BaseException:
            self._counts["refused"] += 1
            one.close()
            raise
        self._counts["opened"] += 1
        connection = SockConnection(self, one, (str(found[0][4][0]), port), settings)
        self._add(connection)
        return connection

    def listen(self, port: int, *, address: str = "", backlog: int = 16, **settings: Any) -> Listener:
        """Wait for connections: see :meth:`Streams.listen`."""
        self._usable()
        where = f"listen on {address or '*'}:{port}"
        self._count(Listener, where)
        one = self._socket(socket.AF_INET6 if ":" in address else socket.AF_INET, settings)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, port))
            one.listen(backlog)
        except OSError as error:
            one.close()
            raise OSError(error.errno, f"{where}: {os.strerror(error.errno or 0)}") from None
        listener = SockListener(self, one, (address, _end(one.getsockname())[1]), settings)
        self._add(listener)
        return listener

    def _socket(self, family: int, settings: dict[str, Any]) -> socket.socket:
        options = _options({**self._settings, **settings})
        one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if self.interface:
                name = self.interface.encode() + b"\0"
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            for option, size in self._buffers.items():
                if size:
                    one.setsockopt(socket.SOL_SOCKET, option, size)
            for level, option, value in options:
                _set(one, level, option, value)
            self._stamp(one)
        except OSError as error:
            one.close()
            raise SetupError(
                f"a socket on {self.interface}", error.strerror or "", errno=error.errno
            ) from None
        return one

    def _stamp(self, one: socket.socket) -> None:
        """Have the kernel stamp what it receives by a socket."""
        if self._staged:
            one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    @property
    def stamping(self) -> bool:
        """Whether stages are stamped: not while a native thread turns, whose clock it is."""
        runner = self.engine.runner
        return self._staged and not (runner is not None and runner.running)

    def _count(self, kind: type, where: str) -> None:
        alive = sum(isinstance(one, kind) for one in self._live.values())
        if alive >= self._bounds[kind is Listener]:
            raise CapacityError(f"{where}: every connection, listener or local port is in use")

    def _add(self, one: Connection | Listener) -> None:
        self._live[one.number] = one
        self._epoll.register(one.number, _EVENTS)
        alive = sum(isinstance(other, Connection) for other in self._live.values())
        self._counts["connections_max"] = max(alive, self._counts["connections_max"])

    def _gone(self, number: int, hold: Any) -> None:
        self._live.pop(number, None)

    # -- native hooks

    def set_hook(self, hook: Any, context: Any = None) -> None:
        """LocalProtocolError: there is no turn of ours that a hook could run in."""
        raise LocalProtocolError("a native hook serves connections over AF_XDP, not over kernel sockets")

    def publish(self) -> None:
        """ConfigError: as above."""
        raise ConfigError("publish.tcp: connections over AF_XDP are published, not those of kernel sockets")

    # -- turning

    @property
    def port(self) -> object:
        """The kernel's sockets stay."""
        return self._epoll

    def fileno(self) -> int:
        """Readable while something happened that nobody was told of."""
        return self._epoll.fileno()

    def deadline(self) -> int:
        """The kernel's timers are its own."""
        return NEVER

    def pump(self) -> None:
        """The kernel sends by itself."""

    def look(self) -> None:
        """Tell connections what happened to them."""
        self._told()

    def _told(self) -> int:
        found = [] if self.closed else self._epoll.poll(0, 256)
        if found:
            self._wake = self._now() if self.stamping else 0
        for number, events in found:
            one = self._live.get(number)
            if isinstance(one, SockConnection):
                one.happened(events)
            elif one is not None:
                one._tell(lib.XDS_STACK_ACCEPTABLE)
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + _LOOK
            self._interface()
            self._show()
        return len(found)

    def _show(self) -> None:
        """Let other processes see some connections, in turn, and what all have counted."""
        if self._figures is None:
            return
        found = self._figures.look([one for one in self._live.values() if isinstance(one, SockConnection)])
        for one, told in found:
            if one._placed:
                core, number, counted = self.engine.core, one.number, told.stats.retransmits
                info = ffi.addressof(told, "info")
                lib.xds_engine_conn_told(core, number, info, counted, told.delivery_rate)
        self._figures.show(self.stats())

    def _interface(self) -> None:
        try:
            self._watch()
            self.broken = None
        except SetupError as error:
            self.broken = OSError(errno.ENETDOWN, str(error))
            for one in list(self._live.values()):
                if isinstance(one, SockConnection):
                    one._fail(self.broken)

    def turn(self, spins: int = 0) -> int:
        """What happened since the last call; how many news there were."""
        return self._told()

    def sleep(self, seconds: float) -> None:
        """Until something happens, or so many seconds have passed."""
        super().sleep(min(seconds, self.nap))

    def stats(self) -> dict[str, Any]:
        """``opened``, ``accepted``, ``refused`` (by this side's kernel at once), ``connections``,
        ``connections_max``."""
        return {**self._counts, "connections": self.unfinished}

    def close(self) -> None:
        """Close everything; what was written is the kernel's to bring there."""
        if self.closed:
            return
        for one in list(self._live.values()):
            with contextlib.suppress(OSError, LocalProtocolError):
                one.close()
        self._show()
        self.closed = True
        self._epoll.close()

    @property
    def unfinished(self) -> int:
        """Connections that nobody has closed."""
        return sum(isinstance(one, Connection) for one in self._live.values())


class SockConnection(Connection):
    """A connection that is a kernel socket: see :class:`~xdpstack.streams.Connection`."""

    streams: SockStreams

    def __init__(
        self, streams: SockStreams, one: socket.socket, remote: tuple[str, int], settings: dict[str, Any]
    ) -> None:
        self.streams, self._socket, self.number, self._settings = streams, one, one.fileno(), settings
        self.timeout = None
        self.callback = None
        self.error = None
        self.is_open = self.at_end = self.closed = False
        self._shut = self._wants_room = self._placed = False
        self._moments: Stages | None = None
        self._seen, self._newest = False, 0  # bytes that were told of; the stamp that was counted last
        self.local, self.remote = _end(one.getsockname()), remote
        self.what = f"connection to {remote[0]}:{remote[1]}"

    @property
    def stages(self) -> Stages | None:
        """See :attr:`Connection.stages`; ``receive`` is the kernel's stamp, of packets that it joined before
        they were read the newest's."""
        return self._moments

    def message(self) -> Stages | None:
        """See :meth:`Connection.message`; None as well while a native thread turns."""
        return super().message() if self._placed and self.streams.stamping else None

    def _port(self) -> int:
        return int(lib.XDS_ENGINE_PORTS)

    def _begin(self) -> None:
        """It is open: its stages have a place."""
        if self.streams._staged and not self._placed:
            self._placed = True
            ends = ffi.new("struct xds_stack_ends *")
            ends.local, ends.remote = address16(_bare(self.local[0])), address16(_bare(self.remote[0]))
            ends.local_port, ends.remote_port = self.local[1], self.remote[1]
            lib.xds_engine_conn_begin(self.streams.engine.core, self.number, ends)

    def _told(self) -> Any:
        """``struct xds_sock_tcp`` of now; None: its socket is gone."""
        told = ffi.new("struct xds_sock_tcp *")
        return told if lib.xds_sock_tcp(self._socket.fileno(), told) == 0 else None

    def _end(self) -> None:
        if self.streams._figures is not None:
            self.streams._figures.ended(self)
        if self._placed:
            self._placed = False
            lib.xds_engine_conn_end(self.streams.engine.core, self.number)

    def _enter(self, wake: int) -> None:
        """It is told of, or reads unasked, what was found at ``wake``. A packet counts once."""
        receive = lib.xds_sock_stream_stamp(self.number)
        if receive in (0, self._newest):
            return
        self._newest = receive
        entered = lib.xds_engine_conn_entered(self.streams.engine.core, self.number, receive, wake)
        self._moments = Stages(receive, wake, 0, 0, 0, entered) if entered else None

    def happened(self, events: int) -> None:
        """What epoll says of it."""
        bits, failed = 0, events & (select.EPOLLERR | select.EPOLLHUP)
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if failed else 0
        if number:
            bits |= self._ended(number)
        elif not self.is_open and events & select.EPOLLOUT and not failed:
            self.local = _end(self._socket.getsockname())
            bits |= lib.XDS_STACK_OPEN
        if self.is_open or bits & lib.XDS_STACK_OPEN:
            bits |= lib.XDS_STACK_READABLE if events & select.EPOLLIN else 0
            bits |= lib.XDS_STACK_FIN if events & select.EPOLLRDHUP and not number else 0
            bits |= lib.XDS_STACK_CLOSED if events & select.EPOLLHUP and not number else 0
        if events & select.EPOLLOUT and self._wants_room:
            self._wants_room = False
            bits |= lib.XDS_STACK_WRITABLE
        if bits & lib.XDS_STACK_OPEN:
            self._begin()
        if bits & lib.XDS_STACK_READABLE and self._placed and self.streams._wake:
            self._enter(self.streams._wake)
            self._seen = True
        if bits:
            self._tell(bits)
        self._moments = None

    def _ended(self, number: int) -> int:
        if self.error is None:
            number = errno.ECONNRESET if number == errno.EPIPE else number
            self.error = OSError(number, f"{self.what}: {os.strerror(number)}")
        return int(_BITS.get(number, lib.XDS_STACK_UNREACHABLE))

    def _fail(self, why: OSError) -> None:
        if self.error is None:
            self._reset()
            self.error = OSError(why.errno, f"{self.what}: {why.strerror}")
            self._tell(lib.XDS_STACK_UNREACHABLE)

    def _trouble(self) -> str:
        return ""

    def take(self, most: int = _MOST) -> bytes | None:
        """See :meth:`Connection.take`."""
        if self.closed:
            raise LocalProtocolError(f"{self.what} was closed")
        if self._placed and not self._seen and self.streams.stamping:
            self._enter(self.streams._now())
            self._moments = None
        self._seen = False
        try:
            data = self._socket.recv(min(most, _MOST)) if most > 0 and self._socket.fileno() >= 0 else None
        except BlockingIOError:
            data = None
        except OSError as error:
            self._ended(error.errno or errno.EIO)
            data = None
        if data:
            return data
        self.check()
        if data is None:
            return None
        self.at_end = True
        return b""

    def put(self, data: bytes | bytearray | memoryview) -> int:
        """See :meth:`Connection.put`."""
        self.check()
        if self._shut:
            raise BrokenPipeError(errno.EPIPE, f"{self.what}: closed for sending")
        try:
            done = self._socket.send(data, socket.MSG_NOSIGNAL) if self.is_open and len(data) else 0
        except BlockingIOError:
            done = 0
        except OSError as error:
            self._ended(error.errno or errno.EIO)
            self.check()
            raise
        self._wants_room |= done < memoryview(data).nbytes
        return done

    def drain(self) -> None:
        """Wait until everything written has been acknowledged."""

        def empty() -> bool:
            self.check()
            return not self._queued(_SIOCOUTQ)

        self.streams.nap = 0.001
        try:
            self.streams.wait(empty, self.timeout, f"write to the {self.what}")
        finally:
            self.streams.nap = 1.0

    def _queued(self, request: int) -> int:
        room = array.array("i", [0])
        fcntl.ioctl(self._socket, request, room)
        return room[0]

    def tap(self, path: str | os.PathLike[str]) -> Tap:
        """LocalProtocolError: the kernel has taps of its own."""
        raise LocalProtocolError(_NO_TAP)

    def take_view(self, most: int = _MOST) -> View | None:
        """LocalProtocolError: kernel sockets have no memory to lend."""
        raise LocalProtocolError(_NO_LEASE)

    def prepare(self, data: bytes | bytearray | memoryview) -> Prepared:
        """LocalProtocolError: the kernel prepares nothing."""
        raise LocalProtocolError("messages are prepared over AF_XDP: the kernel builds each by itself")

    def put_view(self, most: int = _MOST) -> Room | None:
        """LocalProtocolError: kernel sockets have no memory to lend."""
        raise LocalProtocolError(_NO_LEASE)

    def warm(self, length: int = 64) -> bool:
        """False: the kernel has no such thing."""
        self.check()
        return False

    def set(self, **settings: int) -> None:
        """See :meth:`Connection.set`. ConfigError also: the kernel has no such setting."""
        self.check()
        for name in settings:
            check_setting(name, settings[name])
            if name not in SET:
                raise ConfigError(f"TCP setting {name}: only a new connection takes it")
        for level, option, value in _options(settings, fresh=False):
            _set(self._socket, level, option, value)
        self._settings = {**self._settings, **settings}

    # -- its end

    def shutdown(self) -> None:
        """Send no more. Twice is calm."""
        self._shut = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _reset(self) -> None:
        self._end()
        if self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()

    def abort(self) -> None:
        """Reset it at once."""
        if not self.closed:
            self._reset()
            self.error = self.error or ConnectionAbortedError(errno.ECONNABORTED, f"{self.what}: ended here")

    def close(self) -> None:
        """Let go: see :meth:`Connection.close`."""
        if self.closed:
            return
        self.closed = True
        self._end()
        self._socket.close()
        self.streams._gone(self.number, None)

    def info(self) -> dict[str, Any]:
        """What TCP_INFO has, by the names of :meth:`Connection.info`, and ``delivery_rate`` in bytes a
        second; what an older kernel does not tell is left out."""
        if self.closed:
            raise LocalProtocolError(f"{self.what} was closed")
        told = self._told()
        if told is None:
            return {"state": "closed", "trouble": ""}
        return _info(told)


class SockListener(Listener):
    """A listening kernel socket: see :class:`~xdpstack.streams.Listener`."""

    streams: SockStreams

    def __init__(
        self, streams: SockStreams, one: socket.socket, address: tuple[str, int], settings: dict[str, Any]
    ) -> None:
        self.streams, self._socket, self.number = streams, one, one.fileno()
        self.address, self._settings = address, settings
        self.callback = None
        self.closed = False

    def take(self) -> Connection | None:
        """A connection that came; None: there is none now. CapacityError: as many are open as may be."""
        if self.closed:
            raise LocalProtocolError("the listener was closed")
        self.streams._count(Connection, f"accept on port {self.address[1]}")
        try:
            one, remote = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        one.setblocking(False)
        self.streams._counts["accepted"] += 1
        connection = SockConnection(self.streams, one, _end(remote), self._settings)
        connection.is_open = True
        self.streams._stamp(one)
        connection._begin()
        self.streams._add(connection)
        return connection

    def close(self) -> None:
        """Wait no more; whom nobody accepted is reset. Twice is calm."""
        if not self.closed:
            self.closed = True
            self._socket.close()
            self.streams._gone(self.number, None)


def _bare(address: str) -> str:
    """Without the link that a link-local one is of."""
    return address.partition("%")[0]


def _end(name: Any) -> tuple[str, int]:
    return str(name[0]), int(name[1])


def _way(family: int, to: Any, where: str) -> None:
    """OSError: no route leads there. (A socket that is bound to an interface would ask its neighbours.)"""
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:  # which sends nothing
        if (code := probe.connect_ex(to)) in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            raise OSError(code, f"{where}: no way there")


def _options(settings: dict[str, Any], fresh: bool = True) -> list[tuple[int, int, Any]]:
    """Settings as (level, option, value). Nagle is off where nothing is said, as it is over AF_XDP."""
    tcp, found = socket.IPPROTO_TCP, dict(settings)
    congestion = found.pop("congestion", "")
    if congestion and congestion not in CONGESTION:
        raise ConfigError(f"congestion {congestion!r}: one of {', '.join(CONGESTION)}")
    if congestion == "none":
        raise ConfigError("congestion 'none': kernel sockets always have one")
    values = {name: check_setting(name, value) for name, value in found.items()}
    options: list[tuple[int, int, Any]] = []
    if fresh or "nagle" in values:
        options.append((tcp, socket.TCP_NODELAY, not values.pop("nagle", 0)))
    if congestion:
        name = b"reno" if congestion == "newreno" else congestion.encode()
        options.append((tcp, socket.TCP_CONGESTION, name))
    for setting, value in values.items():
        options += _option(setting, value)
    return options


def _set(one: socket.socket, level: int, option: int, value: Any) -> None:
    one.setsockopt(level, option, value)
    if (level, option) == (socket.IPPROTO_IP, socket.IP_TOS) and one.family == socket.AF_INET6:
        one.setsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_TCLASS, value
        )  # the other counts for mapped addresses


def _option(name: str, value: int) -> list[tuple[int, int, Any]]:
    tcp = socket.IPPROTO_TCP
    seconds = {"keep_idle_ns": (socket.TCP_KEEPIDLE, 7200), "keep_interval_ns": (socket.TCP_KEEPINTVL, 75)}
    if name in seconds:
        option, usual = seconds[name]
        if value % _SECOND or value > 32767 * _SECOND:
            raise ConfigError(f"TCP setting {name}: kernel sockets count whole seconds, 32,767 at most")
        return [(tcp, option, value // _SECOND or usual)]
    if name == "keepalive":
        return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, value)]
    if name == "keep_count":
        return [(tcp, socket.TCP_KEEPCNT, value or 9)]
    if name == "give_up_ns":
        return [(tcp, socket.TCP_USER_TIMEOUT, min(-(-value // 1_000_000), 2**31 - 1))]
    if name == "dscp":
        return [(socket.IPPROTO_IP, socket.IP_TOS, value << 2)]
    if name == "mss":
        return [(tcp, socket.TCP_MAXSEG, value)] if value else []
    if name == "delayed_ack_ns":
        return [(tcp, socket.TCP_QUICKACK, not value)]
    if value:
        raise ConfigError(f"TCP setting {name}: kernel sockets have none of their own")
    return []


_TOLD = (
    "mss", "stamps", "sack", "ecn", "cwnd", "ssthresh", "in_flight", "unsent", "unread", "srtt_ns",
    "rttvar_ns", "rto_ns", "rtt_min_ns", "outstanding", "sacked", "lost", "recovery", "give_up_ns",
)  # fmt: skip
"""What every kernel tells of ``struct xds_tcp_info``."""


def _info(told: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"state": STATES[told.info.state], "trouble": ""}
    found |= {name: getattr(told.info, name) for name in _TOLD}
    found |= {name: getattr(told.stats, name) for name in COUNTED}
    for name in ("send_window", "receive_window"):
        if getattr(told, f"tells_{name}"):
            found[name] = getattr(told.info, name)
    found["delivery_rate"] = told.delivery_rate
    return found
