"""TCP connections of an engine's port: connect, listen, and blocking reads and writes with exceptions.

    with xdpstack.open("xsk:eth0:3", address="192.0.2.9/24") as node:
        with node.connect("192.0.2.1", 7000) as peer:
            peer.write(b"hello")
            print(peer.read())

Whoever waits here turns the engine, so its feeds would lose batches: with feeds use ``take``, ``put`` and
``callback`` between two batches of ``node.run()``. One thread at a time, as everything of an engine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xdpstack._ffi import check, ffi, lib
from xdpstack.closing import Closing
from xdpstack.errors import ConfigError, LocalProtocolError, SetupError
from xdpstack.leases import Leasing
from xdpstack.port.base import raise_code
from xdpstack.stack import Stack
from xdpstack.stages import Stages
from xdpstack.tap import Tap

if TYPE_CHECKING:
    from xdpstack.engine import Engine

__all__ = ["Connection", "Listener", "Steering", "Streams"]

SPINS = 200
"""Empty turns before a wait sleeps until the port has frames: some ten microseconds."""
LINGER = 2.0
"""Seconds that closing may take until what was written is acknowledged."""
_NAP = 0.1
_HELD = 1.0
_NEVER = float("inf")
_LOOK = 0.02

_OPEN, _FIN, _CLOSED = lib.XDS_STACK_OPEN, lib.XDS_STACK_FIN, lib.XDS_STACK_CLOSED
_ERRORS: dict[int, tuple[type[OSError], int]] = {
    lib.XDS_STACK_RESET: (ConnectionResetError, errno.ECONNRESET),
    lib.XDS_STACK_REFUSED: (ConnectionRefusedError, errno.ECONNREFUSED),
    lib.XDS_STACK_TIMEOUT: (TimeoutError, errno.ETIMEDOUT),
    lib.XDS_STACK_UNREACHABLE: (OSError, errno.EHOSTUNREACH),
}


class Steering(Protocol):
    """Who brings a flow's packets to the port, and keeps the kernel's hands off them."""

    def begin(self, local: tuple[str, int], remote: tuple[str, int] | None) -> tuple[tuple[str, int], Any]:
        """Before the first packet: the local end to use (as given where nothing hangs on it) and a token."""

    def end(self, token: Any) -> None:
        """After the last one."""

    def look(self, remotes: Collection[str]) -> Mapping[str, OSError]:
        """Called some times a second while there are flows, with the addresses that they go to. Returns those
        that cannot be reached any more, and why."""

    def doubt(self, remotes: Collection[str]) -> None:
        """Nothing that was sent to these was acknowledged, three times in a row."""


class Unsteered:
    """Everything for the host's addresses comes to the port anyway."""

    def begin(self, local: tuple[str, int], remote: tuple[str, int] | None) -> tuple[tuple[str, int], Any]:
        """As it is."""
        return local, None

    def end(self, token: Any) -> None:
        """Nothing to take back."""

    def look(self, remotes: Collection[str]) -> Mapping[str, OSError]:
        """Nothing changes."""
        return {}

    def doubt(self, remotes: Collection[str]) -> None:
        """The host asks for their neighbours itself."""


class _Hold:
    """Steering that several share: a listener and whom it accepted. It ends with the last of them."""

    def __init__(self, steering: Steering, token: Any) -> None:
        self._steering, self._token, self._users = steering, token, 1

    def share(self) -> _Hold:
        self._users += 1
        return self

    def drop(self) -> None:
        self._users -= 1
        if not self._users:
            self._steering.end(self._token)


def addresses_of(host: str, port: int) -> list[str]:
    """The addresses of a name, of both families, as the system's resolver orders them (RFC 6724). OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class Streams(Closing):
    """The connections and listeners of one port of an engine."""

    def __init__(
        self,
        engine: Engine,
        index: int,
        *,
        steering: Steering | None = None,
        watch: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> None:
        """``settings``: those of :class:`~xdpstack.stack.Stack`. ``watch`` is called some times a second; a
        SetupError of it ends all connections. ConfigError: a port without frames, or of virtual time."""
        self.engine, self.index = engine, index
        if index not in engine.hosts:
            raise ConfigError(f"TCP needs a port of frames: {engine.ports[index]!r} has none")
        self.stack = Stack(engine.arena, engine.hosts[index], **settings)
        if lib.xds_engine_set_stack(engine.core, index, self.stack.core) < 0:
            raise ConfigError(f"TCP needs a live port: {engine.ports[index]!r} is none")
        engine.show_stack(index)
        self._steering: Steering = steering or Unsteered()
        self._live: dict[int, Connection | Listener] = {}
        self._leaving: dict[int, _Hold] = {}
        self._look_at = 0.0
        self._news: list[tuple[int, int]] = []
        self._watch = watch
        self.broken: OSError | None = None
        """Why nothing moves: the interface is gone."""
        self._out = ffi.new("struct xds_batch *")
        engine.keep_connection_stages()
        self._event, self._stages = ffi.new("struct xds_stack_event *"), ffi.new("struct xds_stages *")
        self._poll = select.poll()
        self._polled = -1
        self._hook: tuple[Any, Any] | None = None
        self.leased = dict.fromkeys(("views", "view_bytes", "rooms", "room_bytes", "misused"), 0)
        """Leases so far and the bytes that were used of them; uses after a lease's end."""
        self.taps: set[Tap] = set()
        self.closed = False

    # -- opening

    def connect(
        self,
        host: str,
        port: int,
        *,
        timeout: float | None = 30.0,
        local: tuple[str, int] = ("", 0),
        **settings: Any,
    ) -> Connection:
        """Open a connection and wait for it. A name's addresses, of both families, are tried in the order in
        which the system gives them, each for its share of the time that is left. ``settings``: ``congestion``
        and fields of ``struct xds_tcp_config``. Raises ConnectionRefusedError, TimeoutError, OSError (no way
        there, no such name, the neighbour does not answer, the local port is taken), CapacityError,
        ConfigError: those of the last address."""
        self._usable()
        left = addresses_of(host, port)
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            share = None if until is None else max(until - time.monotonic(), 0.0) / len(left)
            address = left.pop(0)
            try:
                return self._connect_to(address, port, share, local=local, **settings)
            except (OSError, ConfigError):
                if not left:
                    raise

    def _connect_to(self, address: str, port: int, timeout: float | None, **settings: Any) -> Connection:
        connection = self._open_to(address, port, **settings)
        try:
            self.wait(lambda: connection.is_open or connection.error is not None, timeout, connection.what)
            connection.check()
        except BaseException:
            connection.abort()
            connection.close()
            raise
        return connection

    def open(
        self,
        host: str,
        port: int,
        *,
        local: tuple[str, int] = ("", 0),
        tap: str | os.PathLike[str] = "",
        **settings: Any,
    ) -> Connection:
        """The same without waiting: see :attr:`Connection.is_open` and :attr:`Connection.callback`. Of the
        addresses of a name the first to which there is a way counts."""
        self._usable()
        left = addresses_of(host, port)
        while True:
            address = left.pop(0)
            try:
                return self._open_to(address, port, local=local, tap=tap, **settings)
            except (OSError, ConfigError):
                if not left:
                    raise

    def _open_to(
        self,
        address: str,
        port: int,
        *,
        local: tuple[str, int] = ("", 0),
        tap: str | os.PathLike[str] = "",
        **settings: Any,
    ) -> Connection:
        remote = (address, port)
        mine, hold = self._begin(local, remote)
        try:
            number = self.stack.connect(remote, self._now(), local=mine, **settings)
        except BaseException:
            hold.drop()
            raise
        connection = Connection(self, number, hold)
        self._live[number] = connection
        if tap:
            try:
                connection.tap(tap)
            except BaseException:
                connection.abort()
                connection.close()
                raise
        self.pump()
        return connection

    def listen(self, port: int, *, address: str = "", backlog: int = 16, **settings: Any) -> Listener:
        """Wait for connections to an own address; all of them: "". ``backlog``: most that are half open, and
        most that wait to be accepted; ``settings``: as for :meth:`connect`, of whom it accepts. OSError: the
        port is taken."""
        self._usable()
        mine, hold = self._begin((address, port), None)
        try:
            number = self.stack.listen(mine[1], address=address, backlog=backlog, **settings)
        except BaseException:
            hold.drop()
            raise
        listener = Listener(self, number, (address, mine[1]), hold)
        self._live[number] = listener
        return listener

    def _begin(self, local: tuple[str, int], remote: tuple[str, int] | None) -> tuple[tuple[str, int], _Hold]:
        mine, token = self._steering.begin(local, remote)
        return mine, _Hold(self._steering, token)

    # -- native hooks

    def set_hook(self, hook: Any, context: Any = ffi.NULL) -> None:
        """Call ``hook`` within the turn with what happens to the connections and listeners that :meth:`give`
        hands to it: a cffi pointer (``xds_stream_hook``), or anything with ``.address``, as
        :func:`xdpstack.hooks.stream` makes. What it writes leaves in the same turn, and a native thread may
        turn. ``context``: its first argument (void *)."""
        self._usable()
        address = getattr(hook, "address", None)
        pointer = ffi.cast("xds_stream_hook", address) if address is not None else hook
        self._hook = (hook, context)  # what C points to stays
        raw = ffi.cast("void *", context)
        check(lib.xds_engine_set_streams(self.engine.core, self.index, pointer, raw), "stream hook")

    def publish(self) -> None:
        """Let the engine's tape be the hook: what happens to whom :meth:`give` hands over is published from
        :meth:`Engine.start` on, and commands write and close. They open connections, too, where the port's
        address is its own. Raises LocalProtocolError: the engine publishes nothing, or started before."""
        self._usable()
        self.engine.publish_streams(self.index, connects=isinstance(self._steering, Unsteered))
        self._hook = (None, None)

    def give(self, one: Connection | Listener) -> None:
        """Hand a connection, or a listener and all whom it accepts, to the native hook. It is called with
        what holds now (open, readable, fin), the ``callback`` no more. Keep the listener: closing it takes
        back the steering of those whom the hook accepted. LocalProtocolError: no hook, closed."""
        self._usable()
        if one.closed or self._hook is None:
            raise LocalProtocolError(f"{one!r} was closed" if one.closed else "no stream hook was set")
        self.stack.give(one.number, self._now())
        self.pump()

    # -- turning

    def _usable(self) -> None:
        if self.closed:
            raise LocalProtocolError("this node's TCP was closed")
        if self.engine.runner is not None and self.engine.runner.running:
            raise LocalProtocolError(
                "a native thread turns this engine: a stream hook serves its connections (Streams.give); "
                "for calls from Python let it stand still: with engine.paused()"
            )

    def _now(self) -> int:
        return int(lib.xds_clock_now(self.engine.clock))

    def pump(self) -> None:
        """Send what was written, now rather than with the next turn."""
        lib.xds_engine_pump(self.engine.core, self.index)

    def gather(self) -> None:
        """Let connections know what has happened to them; :meth:`look` tells their users."""
        event, stages = ffi.new("struct xds_stack_event *"), ffi.new("struct xds_stages *")
        while lib.xds_engine_stream_event(self.engine.core, self.index, event, stages) > 0:
            self._news.append((event.id, event.what))
            if isinstance(one := self._live.get(event.id), Connection):
                one._note(event.what)

    def _pass_on(self, number: int, bits: int, doubted: set[str]) -> None:
        if (one := self._live.get(number)) is None:
            return
        if bits & lib.XDS_STACK_STALLED and isinstance(one, Connection):
            doubted.add(one.remote[0])
        one._tell(bits)

    def look(self) -> None:
        """Tell connections what happened to them: after each turn that somebody else made."""
        doubted: set[str] = set()
        news, self._news = self._news, []
        for number, bits in news:
            self._pass_on(number, bits, doubted)
        event = self._event
        while lib.xds_engine_stream_event(self.engine.core, self.index, event, self._stages) > 0:
            self._pass_on(event.id, event.what, doubted)
        event.id = 0
        if doubted:
            self._steering.doubt(doubted)
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + _LOOK
            for number in [n for n in self._leaving if not self.stack.lingers(n)]:
                self._leaving.pop(number).drop()
            if self._live:
                self._follow()
                self.pump()  # what waited for a neighbour

    def _follow(self) -> None:
        """What became of the interface, and of the ways of those who are connected."""
        connections = [one for one in self._live.values() if isinstance(one, Connection)]
        try:
            self._watch()
            self.broken = None
        except SetupError as error:
            self.broken = OSError(errno.ENETDOWN, str(error))
            for one in connections:
                one._fail(self.broken)
            return
        gone = self._steering.look({one.remote[0] for one in connections})
        for one in connections:
            if (why := gone.get(one.remote[0])) is not None:
                one._fail(why)

    @property
    def port(self) -> object:
        """What :meth:`fileno` is of: an interface that was made anew has another."""
        return self.engine.ports[self.index]

    def fileno(self) -> int:
        """Readable when a turn is due because of frames; -1: none to wait on."""
        return int(self.engine.ports[self.index].fileno())

    def deadline(self) -> int:
        """When a turn is due because of a timer, CLOCK_TAI ns; ``2**63 - 1`` is never."""
        return self.stack.deadline()

    def turn(self, spins: int = 0) -> int:
        """Turn the engine until packets came or ``spins`` empty turns have passed; how many came."""
        count = int(lib.xds_engine_poll(self.engine.core, spins, self._out))
        if count < 0:
            raise_code(count, f"read {self.engine.ports[self.index]!r}")
        self.look()
        return count

    def sleep(self, seconds: float) -> None:
        """Until the port has frames, a timer is due, or so many seconds have passed."""
        seconds = min(seconds, _NAP, (self.deadline() - self._now()) / 1e9)
        if seconds <= 0:
            return
        fd = self.fileno()
        if fd < 0:
            time.sleep(min(seconds, 0.001))
            return
        if fd != self._polled:
            self._poll, self._polled = select.poll(), fd
            self._poll.register(fd, select.POLLIN)
        self._poll.poll(max(1, int(seconds * 1000)))

    def wait(self, done: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Turn until ``done()``. TimeoutError after ``timeout`` seconds (None: never), of which one look to
        the next counts one at most: a process that was held still does not take that for silence."""
        self._usable()
        if done():
            return
        if self.engine.feeds:
            raise LocalProtocolError(
                "waiting for TCP turns the engine, and its feeds would lose batches: use take() and put()"
            )
        left, last = _NEVER if timeout is None else timeout, time.monotonic()
        while True:
            came = self.turn(SPINS)
            if done():
                return
            if self.broken is not None:
                raise OSError(self.broken.errno, f"{what}: {self.broken.strerror}")
            now = time.monotonic()
            left, last = left - min(now - last, _HELD), now
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, f"{what}: nothing for {timeout:g} s")
            if not came:
                self.sleep(left)

    def _gone(self, number: int, hold: _Hold) -> None:
        self._live.pop(number, None)
        if self.stack.lingers(number):
            self._leaving[number] = hold
        else:
            hold.drop()

    def stats(self) -> dict[str, Any]:
        """Counters of the stack, see :meth:`Stack.stats`; ``leased``: views and rooms without a copy."""
        return {**self.stack.stats(), "leased": dict(self.leased)}

    def close(self) -> None:
        """Close everything, wait (2 s at most) until what was written has been acknowledged, and take the
        steering back. What is left then is reset."""
        if self.closed:
            return
        with self.engine.paused():
            for one in list(self._live.values()):
                with contextlib.suppress(OSError, LocalProtocolError):
                    one.close()
            if self._hook is not None and self.engine.ports:
                lib.xds_stack_close_given(self.stack.core, self._now())
        if self.engine.ports and not self.engine.feeds:
            with contextlib.suppress(OSError, LocalProtocolError):
                self.wait(lambda: self.unfinished == 0, LINGER, "close")
        self.closed = True
        for hold in self._leaving.values():
            hold.drop()
        self._leaving.clear()
        for tap in list(self.taps):
            tap.close()

    @property
    def unfinished(self) -> int:
        """Connections that have not come to TIME-WAIT or their end."""
        stats = self.stack.stats()
        return int(stats["connections"] - stats["time_waits"])

    def __repr__(self) -> str:
        return f"<Streams: {len(self._live)} open, {len(self._leaving)} leaving>"


def _moments(s: Any) -> Stages:
    return Stages(s.receive, s.wake, s.tls_start, s.tls_end, s.parsed, s.callback)


class Connection(Leasing, Closing):
    """One connection. ``timeout``: seconds that a read or write may wait, None: for ever."""

    def __init__(self, streams: Streams, number: int, hold: _Hold) -> None:
        self.streams, self.number, self._hold = streams, number, hold
        self.timeout: float | None = None
        self.callback: Callable[[int], object] | None = None
        """Called with or-ed bits of :data:`xdpstack.stack.BITS` when something happened."""
        self.error: OSError | None = None
        self.is_open = self.at_end = self.closed = False
        self.local, self.remote = streams.stack.ends(number)
        self.what = f"connection to {self.remote[0]}:{self.remote[1]}"

    @property
    def stages(self) -> Stages | None:
        """Within :attr:`callback`: when the first of the bytes that it is called for passed each stage.
        None where none came, elsewhere, and where ``EngineConfig.stages`` is off."""
        s = self.streams._stages
        if self.streams._event.id != self.number or not s.receive:
            return None
        return _moments(s)

    def message(self) -> Stages | None:
        """Say that a message is whole among the bytes that came last, and is handled now: its stages, which
        go into the connection's histograms (``parsed``, ``callback``, ``total``). From the first message on,
        news of bytes count no more by themselves. None where ``EngineConfig.stages`` is off, and before any
        bytes with a stamp."""
        self.streams._usable()
        found = ffi.new("struct xds_stages *")
        if not lib.xds_engine_conn_message(self.streams.engine.core, self._port(), self.number, found):
            return None
        return _moments(found)

    def _port(self) -> int:
        return self.streams.index

    def _note(self, bits: int) -> None:
        self.is_open |= bool(bits & _OPEN)
        self.at_end |= bool(bits & (_FIN | _CLOSED))
        for bit, (kind, number) in _ERRORS.items():
            if bits & bit and self.error is None:
                self.error = kind(number, f"{self.what}: {os.strerror(number)}{self._trouble()}")

    def _tell(self, bits: int) -> None:
        self._note(bits)
        if self.callback is not None:
            self.callback(bits)

    def _fail(self, why: OSError) -> None:
        """It cannot go on, which the peer is told if it can be."""
        if self.error is None:
            self.error = OSError(why.errno, f"{self.what}: {why.strerror}")
            self.streams.stack.abort(self.number)
            self._tell(lib.XDS_STACK_UNREACHABLE)

    def _trouble(self) -> str:
        with contextlib.suppress(ValueError):  # it was closed already
            if said := self.streams.stack.trouble(self.number):
                return f" ({said})"
        return ""

    def check(self) -> None:
        """Raise what ended the connection, if something did."""
        if self.closed:
            raise LocalProtocolError(f"{self.what} was closed")
        if self.error is not None:
            raise type(self.error)(*self.error.args)

    # -- without waiting

    def take(self, most: int = 65536) -> bytes | None:
        """Up to ``most`` bytes that are there; None: none now; b"": the peer sends no more. Raises what ended
        the connection, once everything before it was read."""
        if self.closed:
            raise LocalProtocolError(f"{self.what} was closed")
        if self._view is not None:
            raise LocalProtocolError(f"{self.what}: a view is leased; give it back first")
        if data := self.streams.stack.read(self.number, most):
            return data
        if self.at_end and self.error is None:
            return b""
        self.check()
        return None

    def put(self, data: bytes | bytearray | memoryview) -> int:
        """Give bytes to be sent; how many fitted. Sent at once: no turn is needed."""
        self.check()
        if self._filled is not None:
            raise LocalProtocolError(f"{self.what}: room is reserved; commit it first")
        try:
            done = self.streams.stack.write(self.number, data)
        except ValueError:
            self.streams.gather()
            self.check()  # it may have ended a moment ago
            raise BrokenPipeError(errno.EPIPE, f"{self.what}: closed for sending") from None
        if done:
            self.streams.pump()
        return done

    # -- waiting

    def read(self, most: int = 65536) -> bytes:
        """At least one byte, up to ``most`` (65536 at most); b"" once the peer sends no more. Raises
        ConnectionResetError, TimeoutError."""
        data = self.take(most)
        if data is None:
            found: list[bytes] = []

            def come() -> bool:
                got = self.take(most)
                if got is not None:
                    found.append(got)
                return got is not None

            self.streams.wait(come, self.timeout, f"read from the {self.what}")
            data = found[0]
        if data:
            self.streams.pump()  # the window has grown: the peer may be waiting for it
        return data

    def read_exactly(self, count: int) -> bytes:
        """So many bytes. EOFError where the peer ended before."""
        got = bytearray()
        while len(got) < count:
            piece = self.read(min(65536, count - len(got)))
            if not piece:
                raise EOFError(f"{self.what}: {len(got):,} of {count:,} bytes, and no more")
            got += piece
        return bytes(got)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Give all of it to be sent, waiting for room. Raises ConnectionResetError, BrokenPipeError,
        TimeoutError."""
        rest = memoryview(data).cast("B")
        rest = rest[self.put(rest) :] if rest else rest
        while rest:
            taken: list[int] = []

            def fits(rest: memoryview = rest, taken: list[int] = taken) -> bool:
                if done := self.put(rest):
                    taken.append(done)
                return bool(done)

            self.streams.wait(fits, self.timeout, f"write to the {self.what}")
            rest = rest[taken[0] :]

    def drain(self) -> None:
        """Wait until everything written has been acknowledged."""

        def empty() -> bool:
            self.check()
            info = self.info()
            return bool(info["unsent"] == 0 and info["outstanding"] == 0)

        self.streams.wait(empty, self.timeout, f"write to the {self.what}")

    def warm(self, length: int = 64) -> bool:
        """Run the way of a write of so many bytes, short of the port, and send nothing: the next real one
        finds code and memory in the caches. False: nothing was sent yet that shows the way."""
        self.check()
        return self.streams.stack.warm(self.number, length, self.streams._now()) > 0

    def set(self, **settings: int) -> None:
        """Change settings while it is open: ``nagle``, ``delayed_ack_ns``, ``give_up_ns`` (nothing was
        acknowledged for so long: TimeoutError), ``keepalive`` (an idle peer is asked whether it is there),
        ``keep_idle_ns``, ``keep_interval_ns``, ``keep_count``, ``dscp``; 0 is the default. ConfigError."""
        self.check()
        for name, value in settings.items():
            self.streams.stack.set(self.number, name, value, self.streams._now())
        self.streams.pump()

    def tap(self, path: str | os.PathLike[str]) -> Tap:
        """Copy each of its frames, whichever way it goes, into a pcapng at ``path``: until the tap is closed,
        or the node is. SetupError, CapacityError: see :class:`~xdpstack.tap.Tap`."""
        self.check()
        return Tap(self.streams, self.number, Path(path))

    # -- its end

    def shutdown(self) -> None:
        """Send no more: the peer reads its end; reading goes on. Twice is calm."""
        if not self.closed:
            with contextlib.suppress(ValueError):
                self.streams.stack.shutdown(self.number)
            self.streams.pump()

    def abort(self) -> None:
        """Reset it at once."""
        if not self.closed:
            self.streams.stack.abort(self.number)
            self.error = self.error or ConnectionAbortedError(errno.ECONNABORTED, f"{self.what}: ended here")
            self.streams.pump()

    def close(self) -> None:
        """Let go: what was written is still sent, then it ends by itself. Where bytes were not read the peer
        is reset. Twice is calm."""
        if self.closed:
            return
        self._end_leases()
        self.closed = True
        self.streams.stack.close(self.number, self.streams._now())
        self.streams.pump()
        self.streams._gone(self.number, self._hold)

    @property
    def state(self) -> str:
        """RFC 9293's word, lower case: ``established``, ``fin_wait_1``, …; ``closed`` after close."""
        return "closed" if self.closed else str(self.info()["state"])

    def info(self) -> dict[str, Any]:
        """State, windows, round trips (ns), counters; ``trouble``: what a router said of packets that are not
        acknowledged. LocalProtocolError after :meth:`close`."""
        if self.closed:
            raise LocalProtocolError(f"{self.what} was closed")
        return self.streams.stack.info(self.number)

    def __repr__(self) -> str:
        return (
            f"<Connection {self.local[0]}:{self.local[1]} - {self.remote[0]}:{self.remote[1]} {self.state}>"
        )


class Listener(Closing):
    """Waits for connections; ``address`` is (address, port), the address "" for every own one."""

    def __init__(self, streams: Streams, number: int, address: tuple[str, int], hold: _Hold) -> None:
        self.streams, self.number, self.address, self._hold = streams, number, address, hold
        self.callback: Callable[[int], object] | None = None
        self.closed = False

    def _tell(self, bits: int) -> None:
        if self.callback is not None:
            self.callback(bits)

    def take(self) -> Connection | None:
        """A connection that came; None: there is none now."""
        if self.closed:
            raise LocalProtocolError("the listener was closed")
        number = self.streams.stack.accept(self.number)
        if not number:
            return None
        connection = Connection(self.streams, number, self._hold.share())
        connection.is_open = True
        self.streams._live[number] = connection
        return connection

    def accept(self, timeout: float | None = None) -> Connection:
        """Wait for a connection. TimeoutError."""
        found: list[Connection] = []

        def come() -> bool:
            if (one := self.take()) is not None:
                found.append(one)
            return bool(found)

        self.streams.wait(come, timeout, f"accept on port {self.address[1]}")
        return found[0]

    def close(self) -> None:
        """Wait no more; whom nobody accepted is reset. Twice is calm."""
        if self.closed:
            return
        self.closed = True
        self.streams.stack.unlisten(self.number)
        self.streams.pump()
        self.streams._gone(self.number, self._hold)

    def __repr__(self) -> str:
        return f"<Listener {self.address[0] or '*'}:{self.address[1]}>"
