"""The same calls on two kinds of socket: the kernel's over loopback, and the facade's over two stacks.

A script is a function of one :class:`Sockets`; what its calls gave is in ``log``. Addresses are told by their
side, ``c`` (client) or ``s`` (server); ports are chosen by whoever binds, and only read back.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import ClassVar

import cffi

from xdpstack._ffi import ffi, lib
from xdpstack.engine import Host
from xdpstack.memory import Arena
from xdpstack.stack import Stack

MACS = {"c": "02:00:00:00:00:0c", "s": "02:00:00:00:00:05"}
SECOND = 1_000_000_000
ROOM = 70_000

_libc_ffi = cffi.FFI()
_libc_ffi.cdef("""
int socket(int, int, int); int bind(int, void *, unsigned); int listen(int, int);
int accept4(int, void *, unsigned *, int); int connect(int, void *, unsigned);
long read(int, void *, size_t); long write(int, void *, size_t);
long recvfrom(int, void *, size_t, int, void *, unsigned *);
long sendto(int, void *, size_t, int, void *, unsigned);
int shutdown(int, int); int close(int); int poll(void *, unsigned long, int);
int getsockname(int, void *, unsigned *); int getpeername(int, void *, unsigned *);
int setsockopt(int, int, int, void *, unsigned); int getsockopt(int, int, int, void *, unsigned *);
""")
_libc = _libc_ffi.dlopen(None)


def sockaddr(address: str, port: int, family: int = socket.AF_INET) -> bytes:
    return struct.pack("=H", family) + struct.pack(">H", port) + socket.inet_aton(address) + bytes(8)


class Handle:
    """A socket by whoever made it."""

    def __init__(self, side: str, fd: int) -> None:
        self.side, self.fd = side, fd


class Sockets:
    """What both kinds have: calls by name, results that can be compared."""

    addresses: ClassVar[dict[str, str]]

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def raw(self, call: str, side: str, *arguments: object) -> int:
        raise NotImplementedError

    def settle(self) -> None:
        """Whatever was sent has arrived."""

    def close_all(self) -> None:
        """Give back what is open."""

    def note(self, what: str, result: object) -> object:
        self.log.append((len(self.log), what, result))
        return result

    def _call(self, what: str, side: str, *arguments: object) -> int:
        code = int(self.raw(what, side, *arguments))
        self.settle()
        if code < 0:
            self.note(what, os.strerror(-code))
        return code

    # -- calls

    def make(self, side, kind=socket.SOCK_STREAM, domain=socket.AF_INET, protocol=0):
        fd = self._call("socket", side, domain, kind | socket.SOCK_NONBLOCK, protocol)
        if fd >= 0:
            self.note("socket", "made")
        return Handle(side, fd)

    def simple(self, what, h, *arguments):
        """A call whose result is a number that both have."""
        code = self._call(what, h.side, h.fd, *arguments)
        return code if code < 0 else self.note(what, code)

    def at(self, side, port=0, family=socket.AF_INET):
        return sockaddr(self.addresses.get(side, side), port, family)

    def bind(self, h, name=None, length=None):
        name = self.at(h.side) if name is None else name
        return self.simple("bind", h, bytes(name), len(name) if length is None else length)

    def connect(self, h, name, length=None):
        return self.simple("connect", h, bytes(name), len(name) if length is None else length)

    def listen(self, h, backlog=5):
        return self.simple("listen", h, backlog)

    def accept(self, h):
        room, size = bytearray(16), bytearray(struct.pack("=I", 16))
        fd = self._call("accept", h.side, h.fd, room, size)
        if fd >= 0:
            self.note("accept", ("from", self._words(room)))
        return Handle(h.side, fd)

    def name(self, h, which="getsockname", size=16):
        """The name as bytes; noted is the side and whether there is a port."""
        room, length = bytearray(16), bytearray(struct.pack("=I", size))
        if self._call(which, h.side, h.fd, room, length) < 0:
            return b""
        self.note(which, (self._words(room) if size == 16 else "cut", struct.unpack("=I", length)[0]))
        return bytes(room)

    def _words(self, room):
        sides = {address: side for side, address in self.addresses.items()}
        address = socket.inet_ntoa(bytes(room[4:8]))
        return sides.get(address, address), struct.unpack("=H", room[:2])[0], bool(room[2] | room[3])

    def read(self, h, most=ROOM):
        room = bytearray(most)
        count = self._call("read", h.side, h.fd, room, most)
        return None if count < 0 else self.note("read", bytes(room[:count]))

    def recvfrom(self, h, most=ROOM):
        room, name, length = bytearray(most), bytearray(16), bytearray(struct.pack("=I", 16))
        count = self._call("recvfrom", h.side, h.fd, room, most, 0, name, length)
        if count >= 0:
            self.note("recvfrom", (bytes(room[:count]), self._words(name), struct.unpack("=I", length)[0]))
        return bytes(name)

    def write(self, h, data):
        return self.simple("write", h, data, len(data))

    def sendto(self, h, data, name, length=None, flags=0):
        return self.simple("sendto", h, data, len(data), flags, name, len(name) if length is None else length)

    def fill(self, h):
        """Write until it says no, also once what was written has moved on; how much fits differs."""
        count = step = 1
        while step:
            step = 0
            while (done := int(self.raw("write", h.side, h.fd, bytes(65536), 65536))) > 0:
                step += done
            self.settle()
            count += step
        self.note("fill", os.strerror(-done))
        return count - 1

    def take(self, h, count):
        """Read so many bytes."""
        while count > 0:
            self.until(h, select.POLLIN)
            room = bytearray(min(count, 65536))
            got = int(self.raw("read", h.side, h.fd, room, len(room)))
            assert got > 0, got
            count -= got
            self.settle()

    def shutdown(self, h, how):
        return self.simple("shutdown", h, how)

    def close(self, h):
        return self.simple("close", h)

    def poll(self, h, events=0x7FFF):
        return self.note("poll", self._poll(h, events))

    def _poll(self, h, events, wait=0):
        fds = bytearray(struct.pack("=ihh", h.fd, events, 0))
        assert self.raw("poll", h.side, fds, 1, *([wait] if isinstance(self, Kernel) else [])) >= 0
        return struct.unpack("=ihh", fds)[2]

    def until(self, h, events):
        """Wait for one of them."""
        self.settle()
        found = self._poll(h, events, 20_000)
        assert found & events, (found, events)

    def set(self, h, level, option, value):
        data = value if isinstance(value, bytes) else struct.pack("=i", value)
        return self.simple("setsockopt", h, level, option, data, len(data))

    def get(self, h, level, option, size=4):
        room, length = bytearray(max(size, 1)), bytearray(struct.pack("=I", size))
        if self._call("getsockopt", h.side, h.fd, level, option, room, length) >= 0:
            self.note("getsockopt", bytes(room[: struct.unpack("=I", length)[0]]))

    # -- beginnings

    def listener(self):
        """A listening socket of the server, and its name."""
        h = self.make("s")
        self.bind(h)
        self.listen(h)
        return h, self.name(h)

    def pair(self):
        """(client, server, listener): a connection."""
        h, name = self.listener()
        c = self.make("c")
        self.connect(c, name)
        self.until(c, select.POLLOUT)
        self.until(h, select.POLLIN)
        return c, self.accept(h), h

    def nobody(self, kind=socket.SOCK_STREAM):
        """A name at the server where nobody listens, nor will."""
        h = self.make("s", kind)
        self.bind(h)
        return self.name(h)


class Kernel(Sockets):
    """Linux, on two addresses of the loopback interface."""

    addresses: ClassVar = {"c": "127.0.0.1", "s": "127.0.0.2"}

    def __init__(self) -> None:
        super().__init__()
        self._open: set[int] = set()

    def raw(self, call, side, *arguments):
        if call == "accept":
            call, arguments = "accept4", (*arguments, os.O_NONBLOCK)
        raw = _buffers(call, arguments, _libc_ffi)
        code = getattr(_libc, call)(*raw)
        if code < 0:
            return -_libc_ffi.errno
        if call in ("socket", "accept4"):
            self._open.add(code)
        if call == "close":
            self._open.discard(arguments[0])
        return code

    def close_all(self):
        for fd in self._open:
            os.close(fd)


class Facade(Sockets):
    """Two stacks, joined by memory; ``now`` is ours."""

    addresses: ClassVar = {"c": "10.0.0.1", "s": "10.0.0.2"}

    def __init__(self, lossless: bool = True, stack: dict[str, object] | None = None, **config: int) -> None:
        super().__init__()
        self.now, self.lossless = SECOND, lossless
        self.hosts, self.stacks, self.socks = {}, {}, {}
        self.arena = Arena()
        for side, address in self.addresses.items():
            host = Host(self.arena, mac=MACS[side], addresses=[f"{address}/24"], answer_arp=True)
            settings = {"nagle": 1, "secret": side.encode() * 16, **(stack or {})}
            one = Stack(self.arena, host, **settings)
            raw = ffi.new("struct xds_socks_config *", config)
            memory = self.arena.alloc(lib.xds_socks_size(raw, one.core))
            assert lib.xds_socks_init(memory, raw, one.core, host.core) == 0
            self.hosts[side], self.stacks[side] = host, one
            self.socks[side] = ffi.cast("struct xds_socks *", memory)
        for side, other in ("cs", "sc"):
            self.hosts[side].add_neighbour(self.addresses[other], MACS[other])
        self._room = ffi.new("uint8_t[2048]")

    def raw(self, call, side, *arguments):
        raw = _buffers(call, arguments, ffi)
        if call == "poll":
            raw[0] = ffi.cast("struct pollfd *", raw[0])
        return getattr(lib, f"xds_{call}")(self.socks[side], *raw)

    def settle(self):
        if self.lossless:
            self.carry()

    def carry(self, drop=False):
        """Everything that is to be sent arrives (or is lost), and what answers it."""
        moved = True
        while moved:
            moved = False
            for side, other in ("cs", "sc"):
                f = ffi.new("struct xds_frame *", {"data": self._room, "len": 2048})
                while lib.xds_socks_output(self.socks[side], f, self.now) > 0:
                    moved = True
                    if not drop:
                        lib.xds_socks_frame(self.socks[other], f, self.now)
                    f.data, f.len = self._room, 2048

    def later(self, seconds):
        """Timers, one by one, up to then."""
        end = self.now + int(seconds * SECOND)
        while (due := min(lib.xds_socks_deadline(n) for n in self.socks.values())) <= end:
            self.now = max(self.now, due)
            for n in self.socks.values():
                lib.xds_socks_tick(n, self.now)
            self.settle()
        self.now = end

    def stats(self, side):
        raw = ffi.new("struct xds_socks_stats *")
        lib.xds_socks_stats(self.socks[side], raw)
        return {name: getattr(raw, name) for name, _ in ffi.typeof(raw).item.fields}


def _buffers(call, arguments, one):
    raw = [a if isinstance(a, int) else one.from_buffer(a) if a else one.new("char[1]") for a in arguments]
    if call in ("accept", "accept4", "getsockname", "getpeername", "recvfrom", "getsockopt"):
        at = 2 if call == "accept4" else -1
        raw[at] = one.cast("uint32_t *" if one is ffi else "unsigned *", raw[at])
    return raw
