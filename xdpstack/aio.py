"""asyncio over AF_XDP: existing protocols and stream programs run over a node's TCP unchanged.

    reader, writer = await aio.open_connection(node, "192.0.2.1", 7000)
    server = await aio.start_server(node, client_connected, 7000)
    transport, protocol = await aio.create_connection(node, MyProtocol, "192.0.2.1", 7000)

    with asyncio.Runner(loop_factory=lambda: aio.Loop(node)) as runner:  # libraries that ask the loop
        runner.run(main())

The names, arguments and callbacks are asyncio's. The engine turns when the port has frames or a timer of a
connection is due, within the event loop's own wait; nobody spins, unless told to: with ``spins=200`` the
engine turns so often in vain (some 50 ns each) before the loop waits again, and an answer that comes
meanwhile costs no wake-up. Open and close the node outside of the loop. A node with feeds turns by
``node.run()``, not here.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from xdpstack._ffi import lib
from xdpstack.connecting import Connecting
from xdpstack.errors import ConfigError, LocalProtocolError
from xdpstack.port.base import NEVER
from xdpstack.streams import Connection, Listener, Streams, addresses_of

__all__ = [
    "Loop",
    "Server",
    "Transport",
    "create_connection",
    "create_server",
    "open_connection",
    "start_server",
]

_READABLE = lib.XDS_STACK_READABLE | lib.XDS_STACK_FIN | lib.XDS_STACK_CLOSED
_BURSTS = 16  # turns in a row before other tasks have theirs
_LIMIT = 1 << 16
_LONGEST = 3600.0
_LOOK = 0.2  # seconds between two looks at the interface, where nothing else happens
_drivers: weakref.WeakKeyDictionary[Streams, _Driver] = weakref.WeakKeyDictionary()


class _Driver:
    """Turns the engine of one :class:`Streams` from one event loop, while somebody uses it."""

    def __init__(self, streams: Streams, loop: asyncio.AbstractEventLoop) -> None:
        self.streams, self.loop = streams, loop
        self._users = 0
        self._fd = -1
        self._port: Any = None  # what _fd is of: an interface that comes back has another
        self._timer: asyncio.TimerHandle | None = None
        self._looks: asyncio.TimerHandle | None = None
        self._due = NEVER
        self._turning = False
        self.spins = 0

    @classmethod
    def of(cls, what: Connecting | Streams) -> _Driver:
        """The one of a node or its streams in the running loop. LocalProtocolError: feeds would lose batches,
        or another loop has it."""
        streams = what if isinstance(what, Streams) else what.streams()
        loop, driver = asyncio.get_running_loop(), _drivers.get(streams)
        if streams.engine.feeds:
            raise LocalProtocolError("asyncio turns the engine, and its feeds would lose batches")
        if driver is not None and driver._users and driver.loop is not loop:
            raise LocalProtocolError("another event loop uses this node's TCP")
        if driver is None or driver.loop is not loop:
            driver = _drivers[streams] = cls(streams, loop)
        return driver

    def use(self) -> None:
        """One more: frames are waited for from the first on."""
        self._users += 1
        if self._users == 1:
            self._register()
            if self._looks is None:
                self._looks = self.loop.call_later(_LOOK, self._look)
        self.arm()

    def _register(self) -> None:
        """Wait for the frames of the port as it is now."""
        port = self.streams.port
        if self._fd >= 0 and port is self._port:
            return
        if self._fd >= 0:
            self.loop.remove_reader(self._fd)
        self._fd, self._port = self.streams.fileno(), port
        self.loop.add_reader(self._fd, self._turn)

    def _look(self) -> None:
        """An interface that is gone sends no frames: who only reads would never hear of it."""
        self._looks = None
        if self._fd < 0:
            return
        self._turn()
        if self._fd >= 0:
            self._looks = self.loop.call_later(_LOOK, self._look)

    def leave(self) -> None:
        """One fewer; after the last, what closes still has its timers until everything is acknowledged."""
        self._users -= 1
        self._rest()

    def _rest(self) -> None:
        if self._users or self._fd < 0:
            return
        if self.streams.unfinished and not self.streams.closed:
            return  # their last segments are on the way: the next turn looks again
        self.loop.remove_reader(self._fd)
        self._fd = -1
        self._disarm()
        if self._looks is not None:
            self._looks.cancel()
            self._looks = None

    def _turn(self) -> None:
        if self.streams.closed:
            self._users = 0
            self._rest()
            return
        self._turning = True
        try:
            for _ in range(_BURSTS):
                if not self.streams.turn(self.spins):
                    break
        finally:
            self._turning = False
        self._rest()
        if self._fd >= 0:
            self._register()
        self.arm()

    def _timeout(self) -> None:
        self._timer, self._due = None, NEVER
        self._turn()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, NEVER

    def arm(self) -> None:
        """Wake when the next timer of a connection is due. That one has moved on is found out when its old
        time has come: each acknowledgement moves one."""
        if self._turning or self._fd < 0:
            return
        due = self.streams.deadline()
        if due >= self._due:
            return
        self._disarm()
        left = (due - self.streams._now()) / 1e9
        self._due = due if left < _LONGEST else NEVER
        self._timer = self.loop.call_later(min(max(left, 0.0), _LONGEST), self._timeout)


class Ends:
    """What libraries ask of a transport's socket. It has no descriptor: nobody can wait for it."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def getsockname(self) -> tuple[str, int]:
        """Our (address, port)."""
        return self._connection.local

    def getpeername(self) -> tuple[str, int]:
        """The peer's."""
        return self._connection.remote

    def fileno(self) -> int:
        """None: -1."""
        return -1

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """TCP_NODELAY and SO_KEEPALIVE; of others OSError (ENOPROTOOPT)."""
        if (level, name) == (socket.IPPROTO_TCP, socket.TCP_NODELAY):
            self._connection.set(nagle=int(not value))
        elif (level, name) == (socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            self._connection.set(keepalive=int(bool(value)))
        else:
            raise OSError(errno.ENOPROTOOPT, f"option {name} of level {level}: not one of ours")


class Transport(asyncio.Transport):
    """A connection as asyncio knows one. ``get_extra_info``: ``peername``, ``sockname``, ``connection``, and
    ``socket``, which is :class:`Ends`."""

    def __init__(self, driver: _Driver, connection: Connection, protocol: asyncio.BaseProtocol) -> None:
        super().__init__(
            {
                "peername": connection.remote,
                "sockname": connection.local,
                "connection": connection,
                "socket": Ends(connection),
            }
        )
        self._driver, self._connection, self._protocol = driver, connection, protocol
        self._buffer = bytearray()
        self._high, self._low = _LIMIT, _LIMIT // 4
        self._paused = self._full = self._closing = self._ended = self._eof = self._read_all = False
        driver.use()

    def begin(self) -> None:
        """Tell the protocol, then what has come already."""
        self._protocol.connection_made(self)
        self._connection.callback = self._tell
        self._driver.loop.call_soon(self._read)

    def _tell(self, bits: int) -> None:
        if self._connection.error is not None and self._paused and self._buffer:
            self._end(self._connection.error)  # nobody reads, and what waits to be written would for ever
        elif bits & _READABLE or self._connection.error is not None:
            self._read()
        if bits & lib.XDS_STACK_WRITABLE:
            self._flush()

    # -- reading

    def _read(self) -> None:
        while not (self._paused or self._ended or self._read_all or self._closing):
            try:
                data = self._connection.take()
            except OSError as error:
                self._end(error)
                return
            if data is None:
                break
            if data:
                self._deliver(data)
                if len(data) < _LIMIT and not self._connection.at_end and self._connection.error is None:
                    break  # that was all
                continue
            self._read_all = True
            keep = isinstance(self._protocol, asyncio.Protocol | asyncio.BufferedProtocol) and bool(
                self._protocol.eof_received()
            )
            if not keep:
                self.close()
        if not self._ended and not self._connection.closed:
            self._driver.streams.pump()  # the window may have grown
            self._driver.arm()

    def _deliver(self, data: bytes) -> None:
        protocol = self._protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            protocol.data_received(data)  # type: ignore[attr-defined]
            return
        rest = memoryview(data)
        while rest:
            room = memoryview(protocol.get_buffer(len(rest))).cast("B")
            if not len(room):
                raise RuntimeError("get_buffer() gave no room")
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            protocol.buffer_updated(count)
            rest = rest[count:]

    def pause_reading(self) -> None:
        """Leave what comes in the connection's buffer: the peer's window closes."""
        self._paused = True

    def resume_reading(self) -> None:
        """Deliver again, with what has come meanwhile."""
        if self._paused:
            self._paused = False
            self._driver.loop.call_soon(self._read)

    def is_reading(self) -> bool:
        """Whether data is delivered."""
        return not (self._paused or self._closing or self._read_all)

    # -- writing

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send; what does not fit waits here."""
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._ended or self._closing or not data:
            return
        done = 0
        if not self._buffer:
            try:
                done = self._connection.put(data)
            except OSError as error:
                self._driver.loop.call_soon(self._end, error)
                return
        self._buffer += memoryview(data).cast("B")[done:]
        self._driver.arm()
        if len(self._buffer) > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """Send all of them."""
        self.write(b"".join(list_of_data))

    def _flush(self) -> None:
        if self._ended:
            return
        if self._buffer:
            try:
                del self._buffer[: self._connection.put(bytes(self._buffer))]
            except OSError as error:
                self._end(error)
                return
            self._driver.arm()
        if self._full and len(self._buffer) <= self._low:
            self._full = False
            self._protocol.resume_writing()
        if not self._buffer and self._closing:
            self._end(None)
        elif not self._buffer and self._eof:
            self._connection.shutdown()

    def write_eof(self) -> None:
        """Send no more after what was written."""
        if self._eof or self._closing:
            return
        self._eof = True
        if not self._buffer:
            self._connection.shutdown()
            self._driver.arm()

    def can_write_eof(self) -> bool:
        """TCP can."""
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When ``pause_writing`` and ``resume_writing`` are called, bytes that wait here."""
        if high is None:
            high = _LIMIT if low is None else 4 * low
        low = high // 4 if low is None else low
        if not 0 <= low <= high:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low

    def get_write_buffer_size(self) -> int:
        """Bytes that wait here; those in the connection's own buffer do not count."""
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """(low, high)."""
        return self._low, self._high

    # -- its end

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another protocol from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Closed, or about to be."""
        return self._closing or self._ended

    def close(self) -> None:
        """End it after what was written; the protocol is told by ``connection_lost(None)``."""
        if self._closing or self._ended:
            return
        self._closing = True
        if not self._buffer:
            self._driver.loop.call_soon(self._end, None)

    def abort(self) -> None:
        """Reset it at once."""
        if not self._ended:
            self._closing = True
            self._connection.abort()
            self._driver.loop.call_soon(self._end, None)

    def _end(self, error: OSError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._buffer.clear()
        self._connection.callback = None
        if not self._driver.streams.closed:
            self._connection.close()
        self._driver.leave()
        self._driver.arm()
        self._protocol.connection_lost(error)

    def __repr__(self) -> str:
        return f"<Transport {self._connection!r}{' closing' if self.is_closing() else ''}>"


class Server(asyncio.AbstractServer):
    """A listener whose connections get a protocol each."""

    def __init__(
        self, driver: _Driver, listener: Listener, factory: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self._driver, self.listener, self._factory = driver, listener, factory
        driver.use()
        listener.callback = self._tell

    def _tell(self, bits: int) -> None:
        while not self.listener.closed and (connection := self.listener.take()) is not None:
            Transport(self._driver, connection, self._factory()).begin()

    @property
    def address(self) -> tuple[str, int]:
        """(address, port); the address "" is every own one."""
        return self.listener.address

    @property
    def sockets(self) -> tuple[()]:
        """Of the kernel's: none."""
        return ()

    def close(self) -> None:
        """Accept no more; connections that were accepted go on."""
        if not self.listener.closed:
            self.listener.close()
            self._driver.leave()

    async def wait_closed(self) -> None:
        """As asyncio's."""

    def is_serving(self) -> bool:
        """Until :meth:`close`."""
        return not self.listener.closed

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._driver.loop

    async def start_serving(self) -> None:
        """It does from the start."""

    async def serve_forever(self) -> None:
        """Until cancelled; then it is closed."""
        try:
            await self._driver.loop.create_future()
        finally:
            self.close()


async def create_connection(
    node: Connecting | Streams,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    *,
    spins: int = 0,
    **settings: Any,
) -> tuple[Transport, asyncio.BaseProtocol]:
    """As ``loop.create_connection``. ``settings``: see :meth:`Streams.open`; ``spins``: see above. Names are
    resolved off the loop; their addresses, of both families, are tried one after another. Raises
    ConnectionRefusedError, TimeoutError, OSError, CapacityError, ConfigError: those of the last address."""
    driver = _Driver.of(node)
    driver.spins = spins or driver.spins
    left = await driver.loop.run_in_executor(None, addresses_of, host, port)
    while True:
        address = left.pop(0)
        try:
            return await _connect_to(driver, protocol_factory, address, port, settings)
        except (OSError, ConfigError):
            if not left:
                raise


async def _connect_to(
    driver: _Driver,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    address: str,
    port: int,
    settings: dict[str, Any],
) -> tuple[Transport, asyncio.BaseProtocol]:
    connection = driver.streams.open(address, port, **settings)
    done = driver.loop.create_future()

    def tell(bits: int) -> None:
        if (connection.is_open or connection.error is not None) and not done.done():
            done.set_result(None)

    connection.callback = tell
    driver.use()
    try:
        await done
        connection.check()
        protocol = protocol_factory()
        transport = Transport(driver, connection, protocol)
    except BaseException:
        connection.abort()
        connection.close()
        raise
    finally:
        driver.leave()
    transport.begin()
    return transport, protocol


async def create_server(
    node: Connecting | Streams,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    port: int,
    *,
    address: str = "",
    backlog: int = 100,
    spins: int = 0,
) -> Server:
    """As ``loop.create_server``: a protocol for each connection that comes. ``spins``: see above, of all of
    the node's TCP in this loop. OSError: the port is taken."""
    driver = _Driver.of(node)
    driver.spins = spins or driver.spins
    listener = driver.streams.listen(port, address=address, backlog=backlog)
    return Server(driver, listener, protocol_factory)


async def open_connection(
    node: Connecting | Streams, host: str, port: int, *, limit: int = _LIMIT, **settings: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As ``asyncio.open_connection``."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_connection(node, lambda: protocol, host, port, **settings)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def start_server(
    node: Connecting | Streams,
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    port: int,
    *,
    address: str = "",
    backlog: int = 100,
    limit: int = _LIMIT,
) -> Server:
    """As ``asyncio.start_server``."""
    loop = asyncio.get_running_loop()

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

    return await create_server(node, factory, port, address=address, backlog=backlog)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose TCP is a node's: libraries that ask the loop for connections and servers run
    unchanged. What brings a socket of its own, and TLS, is the kernel's as ever."""

    def __init__(self, node: Connecting | Streams, *, spins: int = 0) -> None:
        """``spins``: see above."""
        super().__init__()
        self._node, self._node_spins = node, spins

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: Any = None,
        sock: socket.socket | None = None,
        local_addr: tuple[str, int] | None = None,
        **more: Any,
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """As asyncio's; ``more``, which is about resolving names and TLS, counts for the kernel's alone."""
        if sock is not None or ssl or host is None or port is None:
            more |= {"ssl": ssl, "sock": sock, "local_addr": local_addr}
            return await super().create_connection(protocol_factory, host, port, **more)  # type: ignore[arg-type]
        local = {} if local_addr is None else {"local": local_addr}
        return await create_connection(
            self._node, protocol_factory, host, port, spins=self._node_spins, **local
        )

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: Any = None,
        sock: socket.socket | None = None,
        backlog: int = 100,
        **more: Any,
    ) -> asyncio.AbstractServer:
        """As asyncio's. ``host``: an own address of the node; "", "0.0.0.0" or None: every one."""
        if sock is not None or ssl or port is None:
            more |= {"ssl": ssl, "sock": sock, "backlog": backlog}
            return await super().create_server(protocol_factory, host, port, **more)
        address = "" if host in (None, "", "0.0.0.0") else str(host)
        return await create_server(
            self._node, protocol_factory, port, address=address, backlog=backlog, spins=self._node_spins
        )
