"""One TCP connection of the native core (``cffi_build/xds/tcp.h``): segments in, segments out, no I/O.

The caller brings the time (ns, any clock that never steps back) and carries the segments.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from xdpstack._ffi import check, ffi, lib, names
from xdpstack.errors import ConfigError

__all__ = [
    "BOUNDS",
    "EVENTS",
    "REASONS",
    "SET",
    "STATES",
    "TcpCore",
    "address16",
    "check_setting",
    "table_setting",
]

STATES = names("xds_tcp_state", "XDS_TCP_")
REASONS = names("xds_tcp_reason", "XDS_TCP_")
EVENTS = names("xds_tcp_event_kind", "XDS_TCP_EVENT_")
CONGESTION = {"cubic": 0, "newreno": 1, "none": 2}
SET = {word: value for value, word in names("xds_tcp_setting", "XDS_TCP_SET_").items()}
"""What may change while a connection is open."""
_SECOND = 1_000_000_000
_EVER = 2**62
_KEEP = (10_000_000, 30 * 86_400 * _SECOND)
BOUNDS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(
        ("nagle", "no_stamps", "no_sack", "keepalive", "user_timeout", "give_up_fixed", "ecn"), (0, 1)
    ),
    **dict.fromkeys(("keep_idle_ns", "keep_interval_ns"), _KEEP),
    **dict.fromkeys(("give_up_ns", "msl_ns"), (0, _EVER)),
    "mss": (64, 65_495),
    "delayed_ack_ns": (0, _SECOND // 2),
    "rto_min_ns": (0, 60 * _SECOND),
    "keep_count": (0, 127),
    "dscp": (0, 63),
    "pieces": (0, 4096),
}
"""Settings of a connection (``struct xds_tcp_config``), least and most; 0 always takes the default."""


_FLAGS = frozenset(name for name, bounds in BOUNDS.items() if bounds == (0, 1)) | {"cookies"}
_SECONDS = {name.removesuffix("_ns"): name for name in BOUNDS if name.endswith("_ns")}
_OF_ALL = {"connections": (1, 131_072), "listeners": (1, 1024)}
_BUFFERS = ("send_bytes", "receive_bytes")


def table_setting(name: str, value: object) -> tuple[str, Any]:
    """A key of ``[tcp]`` as a keyword of :class:`~xdpstack.stack.Stack`: what the keywords have in ns is in
    seconds there, and without ``_ns``. ConfigError says what is wrong with it."""
    if name == "congestion":
        if value not in CONGESTION:
            raise ConfigError(f"wanted one of {', '.join(CONGESTION)}, not {value!r}")
        return name, value
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise ConfigError(f"wanted true or false, not {value!r}")
        return name, bool(value) if name == "cookies" else int(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in _SECONDS:
        least, most = (bound / _SECOND for bound in BOUNDS[_SECONDS[name]])
        most = min(most, 30 * 86_400)
        words = f"from {least:g} to {int(most) if most >= 1 else most:,}"
        if not (number and (value == 0 or least <= value <= most)):  # type: ignore[operator]
            raise ConfigError(f"wanted seconds {words}, or 0 for the default, not {value!r}")
        return _SECONDS[name], round(value * _SECOND)  # type: ignore[operator]
    if name in _BUFFERS:
        if not (type(value) is int and 256 <= value <= 1 << 30 and value & (value - 1) == 0):
            raise ConfigError(f"wanted a power of two from 256 to 1,073,741,824 bytes, not {value!r}")
        return name, value
    bounds = {**BOUNDS, **_OF_ALL}.get(name)
    if bounds is None or name in _SECONDS.values():
        known = sorted({"congestion", *_FLAGS, *_SECONDS, *_BUFFERS, *_OF_ALL, *_WHOLE})
        raise ConfigError(f"unknown key (known: {', '.join(known)})")
    usual = value == 0 and name in BOUNDS
    if type(value) is not int or not (usual or bounds[0] <= value <= bounds[1]):
        raise ConfigError(f"wanted a whole number from {bounds[0]:,} to {bounds[1]:,}, not {value!r}")
    return name, value


_WHOLE = frozenset(BOUNDS) - _FLAGS - set(_SECONDS.values())


def check_setting(name: str, value: object) -> int:
    """The value, if it can be. ConfigError says what is wrong with it."""
    if name not in BOUNDS:
        raise ConfigError(f"TCP setting {name}: there is none of that name")
    if not isinstance(value, int):
        raise ConfigError(f"TCP setting {name}: {value!r} is no whole number")
    least, most = BOUNDS[name]
    if value and not least <= value <= most:
        raise ConfigError(f"TCP setting {name}: {value:,} is not from {least:,} to {most:,}")
    return int(value)


def address16(text: str) -> bytes:
    """The 16 bytes of an address as the core knows it: IPv4 as ``::ffff:a.b.c.d``."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


class TcpCore:
    """A connection from the first SYN to its end.

    ``settings`` are fields of ``struct xds_tcp_config``, times in ns. Raises ValueError for settings that
    contradict each other and for an unknown ``congestion`` (cubic, newreno, none).
    """

    def __init__(
        self,
        local: tuple[str, int],
        remote: tuple[str, int] | None,
        *,
        iss: int,
        congestion: str = "cubic",
        **settings: int,
    ) -> None:
        if congestion not in CONGESTION:
            raise ValueError(f"congestion {congestion!r}: one of {', '.join(CONGESTION)}")
        cfg = ffi.new(
            "struct xds_tcp_config *", {"iss": iss, "congestion": CONGESTION[congestion], **settings}
        )
        cfg.local_port, cfg.local = local[1], list(address16(local[0]))
        if remote is None:
            cfg.passive = 1
        else:
            cfg.remote_port, cfg.remote = remote[1], list(address16(remote[0]))
        size = lib.xds_tcp_size(cfg)
        if not size:
            raise ValueError(
                "TCP settings: a port of 0, a buffer that is no power of two, or a time out of range"
            )
        self._memory = ffi.new("char[]", size)
        self._tcp = ffi.cast("struct xds_tcp *", self._memory)
        check(lib.xds_tcp_init(self._memory, cfg), "TCP settings")
        self._segment = ffi.new("struct xds_tcp_segment *")
        self._room = ffi.new("uint8_t[65536]")
        self._event = ffi.new("struct xds_tcp_event *")
        self._info = ffi.new("struct xds_tcp_info *")

    def input(self, segment: bytes, source: bytes, destination: bytes, now: int, tos: int = 0) -> int:
        """Take a segment (from its TCP header) between two 16-byte addresses, in a packet of that TOS; 0, or
        the core's code."""
        s = self._segment
        data = ffi.from_buffer("uint8_t[]", segment)
        s.data, s.len, s.tos = data, len(segment), tos
        ffi.memmove(s.src, source, 16)
        ffi.memmove(s.dst, destination, 16)
        code: int = lib.xds_tcp_input(self._tcp, s, now)
        return code

    def output(self, now: int, room: int = 65535) -> bytes:
        """The next segment to send, empty where there is none."""
        length = check(lib.xds_tcp_output(self._tcp, self._room, room, now), "TCP output")
        return ffi.buffer(self._room, length)[:]  # type: ignore[no-any-return]

    def deadline(self) -> int:
        """When :meth:`tick` is due, in ns; ``2**63 - 1`` is never."""
        due: int = lib.xds_tcp_deadline(self._tcp)
        return due

    def tick(self, now: int) -> None:
        """Let the timers that are due run."""
        lib.xds_tcp_tick(self._tcp, now)

    def events(self) -> list[str]:
        """What happened since the last call: open, fin, closed, reset, refused, timeout, stalled."""
        found = []
        while lib.xds_tcp_event(self._tcp, self._event):
            found.append(EVENTS[self._event.kind])
        return found

    def write(self, data: bytes) -> int:
        """Copy bytes to be sent; how many fitted. ValueError after :meth:`close` or the end."""
        return check(lib.xds_tcp_write(self._tcp, ffi.from_buffer(data), len(data)), "TCP write")

    def read(self, most: int = 65536) -> bytes:
        """Up to ``most`` bytes (at most 65536) that have come in order."""
        length = lib.xds_tcp_read(self._tcp, self._room, min(most, 65536))
        return ffi.buffer(self._room, length)[:]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Send no more: a FIN follows what was written. ValueError where that was said before."""
        check(lib.xds_tcp_close(self._tcp), "TCP close")

    def abort(self) -> None:
        """End at once, with a reset for the peer."""
        lib.xds_tcp_abort(self._tcp)

    def set(self, name: str, value: int, now: int) -> None:
        """Change one of :data:`SET`. ValueError: it cannot be."""
        check(lib.xds_tcp_set(self._tcp, SET[name], value, now), f"TCP setting {name}")

    @property
    def tos(self) -> int:
        """For the IP packet round what :meth:`output` gave last: DSCP and ECN."""
        return int(lib.xds_tcp_tos(self._tcp))

    @property
    def state(self) -> str:
        """The state's name in RFC 9293, lower case with underscores."""
        return STATES[self.info().state]

    def info(self) -> Any:
        """``struct xds_tcp_info``: good until the next call."""
        lib.xds_tcp_info(self._tcp, self._info)
        return self._info

    def stats(self) -> Any:
        """A fresh ``struct xds_tcp_stats``."""
        stats = ffi.new("struct xds_tcp_stats *")
        lib.xds_tcp_stats(self._tcp, stats)
        return stats

    def __repr__(self) -> str:
        return f"<TcpCore {self.state}>"
