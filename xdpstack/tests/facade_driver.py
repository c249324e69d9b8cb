"""The same calls on two kinds of socket: the kernel's over loopback, and the facade's over two stacks.

A script is a function of one :class:`Sockets`; what its calls gave is in ``log``. Addresses are told by their
side, ``c`` (client) or ``s`` (server); ports are chosen by whoever binds, and only read back. Each speaks a
:class:`Flavour`: IPv4, IPv6, or IPv4 by sockets of IPv6.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import struct

import cffi

from xdpstack._ffi import ffi, lib
from xdpstack.engine import Host
from xdpstack.memory import Arena
from xdpstack.stack import Stack

MACS = {"c": "02:00:00:00:00:0c", "s": "02:00:00:00:00:05"}
LOCAL = {"c": "fe80::c", "s": "fe80::5"}
SECOND = 1_000_000_000
ROOM = 70_000
IP_PKTINFO = 8  # socket has it from Python 3.14 on

_libc_ffi = cffi.FFI()
_libc_ffi.cdef("""
int socket(int, int, int); int bind(int, void *, unsigned); int listen(int, int);
int accept4(int, void *, unsigned *, int); int connect(int, void *, unsigned);
long read(int, void *, size_t); long write(int, void *, size_t);
long recvfrom(int, void *, size_t, int, void *, unsigned *);
long sendto(int, void *, size_t, int, void *, unsigned);
int shutdown(int, int); int close(int); int poll(void *, unsigned long, int);
long recvmsg(int, void *, int); long sendmsg(int, void *, int);
int getsockname(int, void *, unsigned *); int getpeername(int, void *, unsigned *);
int setsockopt(int, int, int, void *, unsigned); int getsockopt(int, int, int, void *, unsigned *);
""")
_libc = _libc_ffi.dlopen(None)


@dataclasses.dataclass(frozen=True)
class Flavour:
    """A family of sockets, and addresses by what they are."""

    family: int
    kernel: dict[str, str]
    """Of the kernel's loopback interface, by side."""
    facade: dict[str, str]
    any: str
    stranger: str
    group: str
    broadcast: str
    """Empty: there is none."""

    @property
    def size(self) -> int:
        return 16 if self.family == socket.AF_INET else 28

    @property
    def short(self) -> int:
        """The most bytes that are too few for a name."""
        return 15 if self.family == socket.AF_INET else 23

    @property
    def other(self) -> int:
        """A family that it refuses."""
        return socket.AF_INET6 if self.family == socket.AF_INET else 77


def _mapped(sides: dict[str, str]) -> dict[str, str]:
    return {side: f"::ffff:{address}" for side, address in sides.items()}


FOUR = Flavour(
    socket.AF_INET,
    {"c": "127.0.0.1", "s": "127.0.0.2"},
    {"c": "10.0.0.1", "s": "10.0.0.2"},
    "0.0.0.0", "203.0.113.9", "224.0.0.9", "255.255.255.255",
)  # fmt: skip
SIX = Flavour(
    socket.AF_INET6,
    {"c": "::1", "s": "::1"},
    {"c": "fd00::1", "s": "fd00::2"},
    "::", "2001:db8::9", "ff0e::9", "",
)  # fmt: skip
MAPPED = Flavour(
    socket.AF_INET6,
    _mapped(FOUR.kernel),
    _mapped(FOUR.facade),
    "::ffff:0.0.0.0", "::ffff:203.0.113.9", "::ffff:224.0.0.9", "::ffff:255.255.255.255",
)  # fmt: skip
FLAVOURS = {"v4": FOUR, "v6": SIX, "mapped": MAPPED}


def sockaddr(address: str, port: int, family: int = socket.AF_INET, scope: int = 0) -> bytes:
    """By the form of the address; ``family`` may be a wrong one."""
    head = struct.pack("=H", family) + struct.pack(">H", port)
    if ":" not in address:
        return head + socket.inet_aton(address) + bytes(8)
    return head + bytes(4) + socket.inet_pton(socket.AF_INET6, address) + struct.pack("=I", scope)


class Handle:
    """A socket by whoever made it."""

    def __init__(self, side: str, fd: int, kind: int = socket.SOCK_STREAM) -> None:
        self.side, self.fd, self.kind = side, fd, kind


class Sockets:
    """What both kinds have: calls by name, results that can be compared."""

    def __init__(self, flavour: Flavour) -> None:
        self.flavour, self.addresses = flavour, self.every(flavour)
        self.log: list[tuple[object, ...]] = []

    def raw(self, call: str, side: str, *arguments: object) -> int:
        raise NotImplementedError

    def settle(self) -> None:
        """Whatever was sent has arrived."""

    def close_all(self) -> None:
        """Give back what is open."""

    def link(self, side: str) -> int:
        """The number of a side's link."""
        return 1

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

    def make(self, side, kind=socket.SOCK_STREAM, domain=0, protocol=0):
        domain = domain or self.flavour.family
        fd = self._call("socket", side, domain, kind | socket.SOCK_NONBLOCK, protocol)
        if fd >= 0:
            self.note("socket", "made")
        return Handle(side, fd, kind)

    def simple(self, what, h, *arguments):
        """A call whose result is a number that both have."""
        code = self._call(what, h.side, h.fd, *arguments)
        return code if code < 0 else self.note(what, code)

    def at(self, side, port=0, family=0, scope=0):
        return sockaddr(self.addresses.get(side, side), port, family or self.flavour.family, scope)

    def bind(self, h, name=None, length=None):
        name = self.at(h.side) if name is None else name
        return self.simple("bind", h, bytes(name), len(name) if length is None else length)

    def connect(self, h, name, length=None):
        return self.simple("connect", h, bytes(name), len(name) if length is None else length)

    def listen(self, h, backlog=5):
        return self.simple("listen", h, backlog)

    def accept(self, h):
        room, size = self._room_for_name()
        fd = self._call("accept", h.side, h.fd, room, size)
        if fd >= 0:
            self.note("accept", ("from", self._words(room)))
        return Handle(h.side, fd)

    def _room_for_name(self, size=None):
        size = self.flavour.size if size is None else size
        return bytearray(self.flavour.size), bytearray(struct.pack("=I", size))

    def name(self, h, which="getsockname", size=None):
        """The name as bytes; noted is the side and whether there is a port."""
        room, length = self._room_for_name(size)
        if self._call(which, h.side, h.fd, room, length) < 0:
            return b""
        self.note(which, ("cut" if size is not None else self._words(room), struct.unpack("=I", length)[0]))
        return bytes(room)

    def _words(self, room):
        family, scope = struct.unpack("=H", room[:2])[0], 0
        if family == socket.AF_INET6:
            address = socket.inet_ntop(socket.AF_INET6, bytes(room[8:24]))
            scope = struct.unpack("=I", room[24:28])[0]
        else:
            address = socket.inet_ntoa(bytes(room[4:8]))
        return self._sides().get(address, address), family, bool(room[2] | room[3]), bool(scope)

    def _sides(self):
        """What is said of an address: the kernel has one of IPv6 for both sides."""
        said = {address: "a side" for address in self.every(SIX).values()}
        said |= {address: side for side, address in self.every(FOUR).items()}
        return said | {address: f"{side}, mapped" for side, address in self.every(MAPPED).items()}

    def every(self, flavour):
        """The addresses of a flavour, by side."""
        raise NotImplementedError

    @contextlib.contextmanager
    def speaking(self, flavour):
        """Sockets and names are of that flavour within the block."""
        before = self.flavour, self.addresses
        self.flavour, self.addresses = flavour, self.every(flavour)
        yield
        self.flavour, self.addresses = before

    def read(self, h, most=ROOM):
        room = bytearray(most)
        count = self._call("read", h.side, h.fd, room, most)
        return None if count < 0 else self.note("read", bytes(room[:count]))

    def recvfrom(self, h, most=ROOM, flags=0):
        room, (name, length) = bytearray(most), self._room_for_name()
        count = self._call("recvfrom", h.side, h.fd, room, most, flags, name, length)
        if count >= 0:
            named = struct.unpack("=I", length)[0]
            self.note("recvfrom", (bytes(room[:count]), self._words(name) if named else "", named))
        return bytes(name)

    def recvmsg(self, h, pieces=(ROOM,), flags=0, control=256, named=True):
        """Into pieces of these sizes. Noted: what came, whose, each control message, and the flags."""
        rooms = [bytearray(size) for size in pieces]
        (name, _), held = self._room_for_name(), bytearray(control)
        keep = [self._one.from_buffer(one) for one in (*rooms, name, held) if one]
        at = {
            id(one): int(self._one.cast("uintptr_t", self._one.from_buffer(one)))
            for one in (*rooms, name, held)
            if one
        }
        vector = b"".join(struct.pack("=QQ", at.get(id(one), 0), len(one)) for one in rooms)
        words = (at[id(name)] if named else 0, len(name) if named else 0)
        vectors = bytearray(vector)
        keep.append(self._one.from_buffer(vectors))
        where = int(self._one.cast("uintptr_t", keep[-1])) if vectors else 0
        head = bytearray(
            struct.pack("=QI4xQQQQi4x", *words, where, len(rooms), at.get(id(held), 0), len(held), -1)
        )
        count = self._call("recvmsg", h.side, h.fd, head, flags)
        if count < 0:
            return None
        _, size, _, _, _, used, given = struct.unpack("=QI4xQQQQi4x", head)
        data = b"".join(bytes(one) for one in rooms)
        data = (
            data[: min(count, len(data))]
            if h.kind == socket.SOCK_DGRAM or not flags & socket.MSG_TRUNC
            else b""
        )
        whose = self._words(name) if named and size else ""
        self.note(
            "recvmsg", (count, data, whose, size if named else 0, self._controls(held, used), used, given)
        )
        return data

    def sendmsg(self, h, pieces, name=b"", control=(), flags=0):
        """control: (level, type, data), or bytes as they are. What was sent, or None."""
        held = bytearray(control if isinstance(control, (bytes, bytearray)) else b"")
        for level, kind, data in () if held else control:
            held += struct.pack("=Qii", 16 + len(data), level, kind) + data + bytes(-len(data) % 8)
        keep = [bytearray(one) for one in (*pieces, name, held)]
        keep = [self._one.from_buffer(one) if one else self._one.NULL for one in keep]
        *data, whom, beside = (int(self._one.cast("uintptr_t", one)) for one in keep)
        pairs = zip(data, pieces, strict=True)
        vectors = bytearray(b"".join(struct.pack("=QQ", at, len(one)) for at, one in pairs)) or bytearray(16)
        keep.append(self._one.from_buffer(vectors))
        where = int(self._one.cast("uintptr_t", keep[-1]))
        head = struct.pack("=QI4xQQQQi4x", whom, len(name), where, len(pieces), beside, len(held), 0)
        return self.simple("sendmsg", h, bytearray(head), flags)

    def _controls(self, held, used):
        found, at = [], 0
        while at + 16 <= used:
            length, level, kind = struct.unpack_from("=Qii", held, at)
            body = bytes(held[at + 16 : at + length])
            if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO) and len(body) == 12:
                link, *ends = struct.unpack("=I4s4s", body)
                body = (link, *(self._side(socket.inet_ntoa(end)) for end in ends))
            elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(body) == 20:
                ends = [socket.inet_ntop(socket.AF_INET6, body[:16])]
                body = (struct.unpack("=I", body[16:])[0], *map(self._side, ends))
            elif kind in (IP_PKTINFO, socket.IPV6_PKTINFO):
                body = "cut"  # through an address
            found.append((level, kind, length, body))
            at += (length + 7) & ~7
        return found

    def _side(self, address):
        return self._sides().get(address, address)

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

    def ask(self, h, level, option, value):
        """getsockopt() with a question in the room for the answer, which may name an own address of IPv4."""
        room, length = bytearray(value), bytearray(struct.pack("=I", len(value)))
        if self._call("getsockopt", h.side, h.fd, level, option, room, length) >= 0:
            own = socket.inet_aton(self.every(FOUR)[h.side])
            self.note("getsockopt", bytes(room[: struct.unpack("=I", length)[0]]).replace(own, b"here"))

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
    """Linux, on two addresses of the loopback interface (on one of IPv6)."""

    _one = _libc_ffi

    def __init__(self, flavour: Flavour = FOUR) -> None:
        super().__init__(flavour)
        self._open: set[int] = set()

    def every(self, flavour):
        return flavour.kernel

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

    _one = ffi

    def __init__(
        self,
        flavour: Flavour = FOUR,
        *,
        lossless: bool = True,
        stack: dict[str, object] | None = None,
        **config: int,
    ) -> None:
        super().__init__(flavour)
        self.now, self.lossless = SECOND, lossless
        self.hosts, self.stacks, self.socks = {}, {}, {}
        self.arena = Arena()
        for side in self.addresses:
            own = [f"{FOUR.facade[side]}/24", f"{SIX.facade[side]}/64", f"{LOCAL[side]}/64"]
            host = Host(self.arena, mac=MACS[side], addresses=own, answer_arp=True)
            settings = {"nagle": 1, "secret": side.encode() * 16, **(stack or {})}
            one = Stack(self.arena, host, **settings)
            raw = ffi.new("struct xds_socks_config *", config)
            memory = self.arena.alloc(lib.xds_socks_size(raw, one.core))
            assert lib.xds_socks_init(memory, raw, one.core, host.core) == 0
            self.hosts[side], self.stacks[side] = host, one
            self.socks[side] = ffi.cast("struct xds_socks *", memory)
        for side, other in ("cs", "sc"):
            for address in (FOUR.facade[other], SIX.facade[other], LOCAL[other]):
                self.hosts[side].add_neighbour(address, MACS[other])
        self._room = ffi.new("uint8_t[2048]")

    def every(self, flavour):
        return flavour.facade

    def raw(self, call, side, *arguments):
        raw = _buffers(call, arguments, ffi)
        if call in ("poll", "recvmsg", "sendmsg"):
            at, kind = (0, "struct pollfd *") if call == "poll" else (1, "struct msghdr *")
            raw[at] = ffi.cast(kind, raw[at])
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
