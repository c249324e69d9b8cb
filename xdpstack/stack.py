"""TCP over one host core (``cffi_build/xds/stack.h``): frames in, frames out, no I/O and no clock.

Connections and listeners are numbers. What the user does here leaves with :meth:`Stack.output`, or, over an
engine, with its next turn. :mod:`xdpstack.streams` is the face for programs.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from xdpstack._ffi import check, ffi, lib, names
from xdpstack.errors import CapacityError, ConfigError
from xdpstack.memory import Arena, Pointer
from xdpstack.tcp import CONGESTION, SET, STATES, address16, check_setting

if TYPE_CHECKING:
    from xdpstack.engine import Host

__all__ = ["BITS", "Stack", "address_text"]

BITS = {value: word for value, word in names("xds_stack_event_bit", "XDS_STACK_").items()}
"""What may have happened to a connection, by bit."""
REASONS = names("xds_stack_reason", "XDS_STACK_")
UNREACHABLE = {
    0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable",
    5: "source route failed", 6: "network unknown", 7: "host unknown", 8: "host isolated",
    9: "network prohibited", 10: "host prohibited", 13: "communication prohibited",
}  # fmt: skip
"""Codes of ICMP type 3, RFC 1122 3.2.2.1 and 1812 5.2.7.1."""
UNREACHABLE6 = {
    0: "no route there", 1: "communication prohibited", 2: "beyond the source's scope",
    3: "address unreachable", 4: "port unreachable", 5: "source address refused", 6: "route rejects",
}  # fmt: skip
"""Codes of ICMPv6 type 1, RFC 4443 3.1."""
_ROOM = 65536


def address_text(raw: bytes) -> str:
    """An address of 16 bytes as it is written: IPv4 where one is mapped into it."""
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


class Stack:
    """Connections of one host. ``settings`` are fields of ``struct xds_tcp_config`` for each of them,
    times in ns; ``secret``: 16 unpredictable bytes, the system's where it is left out; ``cookies``: a SYN
    past a listener's backlog is answered by one (RFC 4987).

    Raises ConfigError for bounds that contradict each other.
    """

    core = Pointer()

    def __init__(
        self,
        arena: Arena,
        host: Host,
        *,
        connections: int = 64,
        listeners: int = 8,
        send_bytes: int = 65536,
        receive_bytes: int = 65536,
        ports: tuple[int, int] = (49152, 65535),
        secret: bytes = b"",
        cookies: bool = True,
        congestion: str = "cubic",
        **settings: int,
    ) -> None:
        self.arena, self.host = arena, host
        raw = ffi.new("struct xds_stack_config *")
        raw.connections, raw.listeners = connections, listeners
        raw.send_bytes, raw.receive_bytes = send_bytes, receive_bytes
        raw.port_first, raw.port_last = ports
        raw.no_cookies = not cookies
        raw.secret = list(secret or os.urandom(16))
        _set(raw.tcp, congestion, settings)
        size = lib.xds_stack_size(raw)
        if not size:
            raise ConfigError(
                "TCP settings: more than 131,072 connections, a buffer that is no power of two from 256 "
                "bytes to 1 GiB, or a time out of range"
            )
        self.core = ffi.cast("struct xds_stack *", arena.alloc(size))
        check(lib.xds_stack_init(self.core, raw, host.core), "TCP stack")
        self.send_bytes, self.receive_bytes = send_bytes, receive_bytes
        self._frame, self._dgram = ffi.new("struct xds_frame *"), ffi.new("struct xds_dgram *")
        self._room = ffi.new("uint8_t[]", _ROOM)
        self._piece, self._room_piece = ffi.new("const uint8_t **"), ffi.new("uint8_t **")
        self._event, self._ends = ffi.new("struct xds_stack_event *"), ffi.new("struct xds_stack_ends *")

    # -- frames and time

    def frame(self, data: bytes, now: int) -> int:
        """Take a frame: 0 where it was TCP, ARP or an echo; else as ``xds_host_input()``."""
        f = self._frame
        f.data, f.len = ffi.from_buffer("uint8_t[]", data), len(data)
        return int(lib.xds_stack_frame(self.core, f, self._dgram, now))

    def output(self, now: int, room: int = _ROOM) -> bytes:
        """The next frame to send, empty where there is none."""
        f = self._frame
        f.data, f.len = self._room, room
        length = check(lib.xds_stack_output(self.core, f, now), "TCP output")
        return ffi.buffer(self._room, length)[:]  # type: ignore[no-any-return]

    def deadline(self) -> int:
        """When :meth:`tick` is due, in ns; early at times, never late. ``2**63 - 1`` is never."""
        return int(lib.xds_stack_deadline(self.core))

    def tick(self, now: int) -> None:
        """Let the timers that are due run, the host's too."""
        lib.xds_stack_tick(self.core, now)

    def events(self) -> Iterator[tuple[int, int]]:
        """(number, or-ed bits of :data:`BITS`) of every connection and listener with news."""
        e = self._event
        while lib.xds_stack_event(self.core, e):
            yield e.id, e.what

    def give(self, number: int, now: int) -> None:
        """Hand a connection or a listener to the second reader of events: see ``xds_stack_give()``."""
        check(lib.xds_stack_give(self.core, number, now), "TCP connection")

    def given(self) -> Iterator[tuple[int, int]]:
        """As :meth:`events`, of what was given; over an engine its stream hook takes them."""
        e = self._event
        while lib.xds_stack_given(self.core, e):
            yield e.id, e.what

    # -- opening

    def connect(
        self,
        remote: tuple[str, int],
        now: int,
        *,
        local: tuple[str, int] = ("", 0),
        congestion: str = "",
        **settings: int,
    ) -> int:
        """Begin to open a connection; its number. ``local``: what is empty or 0 is chosen. OSError: no way
        there, or these ends are in use; CapacityError; ConfigError."""
        cfg = ffi.new("struct xds_tcp_config *")
        lib.xds_stack_defaults(self.core, cfg)
        cfg.remote, cfg.remote_port = list(address16(remote[0])), remote[1]
        cfg.local_port = local[1]
        if local[0]:
            cfg.local = list(address16(local[0]))
        _set(cfg, congestion, settings)
        code = lib.xds_stack_connect(self.core, cfg, now)
        return _opened(code, f"connect to {remote[0]}:{remote[1]}")

    def listen(
        self, port: int, *, address: str = "", backlog: int = 16, congestion: str = "", **settings: int
    ) -> int:
        """Wait for connections to an own address (all of them: ""); a listener's number. ``settings`` are of
        whom it will accept; past ``backlog`` a SYN is answered by a cookie."""
        cfg = ffi.new("struct xds_tcp_config *")
        lib.xds_stack_defaults(self.core, cfg)
        cfg.local_port = port
        if address:
            cfg.local = list(address16(address))
        _set(cfg, congestion, settings)
        code = lib.xds_stack_listen_as(self.core, cfg, backlog, lib.XDS_STACK_IP4 | lib.XDS_STACK_IP6)
        return _opened(code, f"listen on {address or '*'}:{port}")

    def accept(self, listener: int) -> int:
        """The number of a connection that came, 0: there is none."""
        return check(lib.xds_stack_accept(self.core, listener), "accept")

    def unlisten(self, listener: int) -> None:
        """Wait no more; whom nobody accepted is reset."""
        lib.xds_stack_unlisten(self.core, listener)

    # -- a connection by its number

    def write(self, number: int, data: bytes | bytearray | memoryview) -> int:
        """Copy bytes to be sent: how many fitted. ValueError: closed for sending, or ended."""
        raw = ffi.from_buffer("uint8_t[]", data)
        return check(lib.xds_stack_write(self.core, number, raw, len(raw)), "TCP write")

    def read(self, number: int, most: int = _ROOM) -> bytes:
        """Up to ``most`` bytes (at most 65536) that have come in order, empty: none now."""
        length = check(lib.xds_stack_read(self.core, number, self._room, min(most, _ROOM)), "TCP read")
        return ffi.buffer(self._room, length)[:]  # type: ignore[no-any-return]

    def read_into(self, number: int, buffer: bytearray | memoryview) -> int:
        """The same into a buffer of the caller's; how many."""
        raw = ffi.from_buffer("uint8_t[]", buffer, require_writable=True)
        return check(lib.xds_stack_read(self.core, number, raw, len(raw)), "TCP read")

    def peek(self, number: int) -> tuple[Any, int]:
        """(pointer, bytes) of what has come in order and was not read, up to the ring's end. ValueError: the
        connection was closed."""
        count = check(lib.xds_stack_peek(self.core, number, self._piece), "TCP view")
        return self._piece[0], count

    def consume(self, number: int, count: int) -> None:
        """So many bytes of it are read."""
        check(lib.xds_stack_consume(self.core, number, count), "TCP view")

    def reserve(self, number: int) -> tuple[Any, int]:
        """(pointer, bytes) of room to write into, up to the ring's end; 0: none now, and ``writable`` will be
        told. ValueError: closed for sending, or ended."""
        count = check(lib.xds_stack_reserve(self.core, number, self._room_piece), "TCP room")
        return self._room_piece[0], count

    def commit(self, number: int, count: int) -> None:
        """So many bytes of it are to be sent. ValueError: closed for sending, or ended."""
        check(lib.xds_stack_commit(self.core, number, count), "TCP room")

    def warm(self, number: int, length: int, now: int) -> int:
        """Build a frame with so many bytes where nobody sees it, and change nothing; its length, 0: no path
        is known yet. ValueError: the connection was closed."""
        return check(lib.xds_stack_warm(self.core, number, length, now), "TCP warm")

    def shutdown(self, number: int) -> None:
        """Send no more. ValueError where that was said before."""
        check(lib.xds_stack_shutdown(self.core, number), "TCP shutdown")

    def set(self, number: int, name: str, value: int, now: int) -> None:
        """Change one of :data:`xdpstack.tcp.SET` while it is open; 0: the default. ConfigError: there is none
        of that name, or it cannot be; ValueError: the connection was closed."""
        value = check_setting(name, value)
        if name not in SET:
            raise ConfigError(f"TCP setting {name}: only a new connection takes it")
        check(lib.xds_stack_set(self.core, number, SET[name], value, now), f"TCP setting {name}")

    def abort(self, number: int) -> None:
        """End at once, with a reset for the peer."""
        lib.xds_stack_abort(self.core, number)

    def close(self, number: int, now: int) -> None:
        """Let go: it runs to its end by itself, with a reset where bytes were not read."""
        lib.xds_stack_close(self.core, number, now)

    def lingers(self, number: int) -> bool:
        """Its ends are still taken."""
        return bool(lib.xds_stack_lingers(self.core, number))

    def ends(self, number: int) -> tuple[tuple[str, int], tuple[str, int]]:
        """(local, remote) of a connection, each an address and a port."""
        e = self._ends
        check(lib.xds_stack_ends(self.core, number, e), "TCP connection")
        return (address_text(bytes(e.local)), e.local_port), (address_text(bytes(e.remote)), e.remote_port)

    def info(self, number: int) -> dict[str, Any]:
        """State, windows, round trips (ns) and counters of a connection; ValueError: it was closed."""
        tcp = lib.xds_stack_tcp(self.core, number)
        if tcp == ffi.NULL:
            raise ValueError("no such connection: it was closed")
        info, stats = ffi.new("struct xds_tcp_info *"), ffi.new("struct xds_tcp_stats *")
        lib.xds_tcp_info(tcp, info)
        lib.xds_tcp_stats(tcp, stats)
        found = {name: getattr(info, name) for name, _ in ffi.typeof(info).item.fields if name != "pad"}
        words = names("xds_tcp_reason", "XDS_TCP_")
        found["state"] = STATES[info.state]
        found["trouble"] = self.trouble(number)
        for name, _ in ffi.typeof(stats).item.fields:
            if name == "reasons":
                found["reasons"] = {words[i]: n for i, n in enumerate(stats.reasons) if i and n}
            else:
                found[name] = getattr(stats, name)
        return found

    def trouble(self, number: int) -> str:
        """What a router, or the peer, said of its packets since the last was acknowledged; "": nothing.
        ValueError: it was closed."""
        raw = ffi.new("struct xds_stack_trouble *")
        if not check(lib.xds_stack_trouble(self.core, number, raw), "TCP connection"):
            return ""
        teller = address_text(bytes(getattr(raw, "from")))
        six = ":" in teller
        unreachable, codes = (1, UNREACHABLE6) if six else (3, UNREACHABLE)
        others = (
            {3: "time exceeded", 4: "parameter problem"}
            if six
            else {11: "time exceeded", 12: "parameter problem"}
        )
        words = codes.get(raw.code, f"unreachable, code {raw.code}") if raw.type == unreachable else ""
        words = words or others.get(raw.type, f"ICMP{'v6' * six} type {raw.type}")
        return f"{teller} said: {words}"

    def stats(self) -> dict[str, Any]:
        """Counters: received = taken + the sum of ``reasons``."""
        raw = ffi.new("struct xds_stack_stats *")
        lib.xds_stack_stats(self.core, raw)
        found = {name: getattr(raw, name) for name, _ in ffi.typeof(raw).item.fields if name != "reasons"}
        found["taken"] = raw.reasons[0]
        found["reasons"] = {REASONS[i]: n for i, n in enumerate(raw.reasons) if i and n}
        return found

    def totals(self) -> dict[str, Any]:
        """Of all connections together, those that are gone too: ``states`` (how many are in each, now) and
        the sums of what :meth:`info` counts of each."""
        raw = ffi.new("struct xds_stack_totals *")
        lib.xds_stack_totals(self.core, raw)
        words = names("xds_tcp_reason", "XDS_TCP_")
        found: dict[str, Any] = {"states": {STATES[i]: n for i, n in enumerate(raw.states) if n}}
        for name, _ in ffi.typeof(raw.tcp).fields:
            value = getattr(raw.tcp, name)
            found[name] = (
                {words[i]: n for i, n in enumerate(value) if i and n} if name == "reasons" else value
            )
        return found


def _set(cfg: Any, congestion: str, settings: dict[str, int]) -> None:
    if congestion:
        if congestion not in CONGESTION:
            raise ConfigError(f"congestion {congestion!r}: one of {', '.join(CONGESTION)}")
        cfg.congestion = CONGESTION[congestion]
    for name, value in settings.items():
        setattr(cfg, name, check_setting(name, value))


def _opened(code: int, what: str) -> int:
    if code >= 0:
        return code
    if code == lib.XDS_EFOREIGN:
        raise OSError(errno.ENETUNREACH, f"{what}: no way there")
    if code == lib.XDS_ECAPACITY:
        raise CapacityError(f"{what}: every connection, listener or local port is in use")
    if code == lib.XDS_ECONFIG:
        raise ConfigError(f"{what}: no own address, a port of 0, or settings that contradict each other")
    return check(code, what)
