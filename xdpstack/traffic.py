"""Generated traffic: numbered, stamped frames at a rate or flat out, counted at both ends.

    frames = Template.udp(src="10.77.0.1:5000", dst="10.77.0.2:9000", smac=…, dmac=…, size=60)
    with open_link("xsk:v0") as port:
        sent = Sender(port, frames, rate=100_000, count=1_000_000, seconds=10).run()

The loops are in C (``cffi_build/ports/traffic.c``); frame n is due at begin + n / rate, so what a run sends
is ``min(count, rate × seconds)`` unless the path is too slow. Every run is bounded by frames and seconds.
A :class:`Receiver` counts over an AF_XDP port, a capture, a pipe or kernel sockets; end marks tell it what
was sent. Numbers need UDP with room for 16 bytes; the UDP checksum of numbered IPv4 frames is 0 (none), that
of IPv6, which needs one, is kept right.
"""

from __future__ import annotations

import importlib
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

import numpy as np

from xdpstack._ffi import ffi, lib
from xdpstack.clock import Clock
from xdpstack.dispatcher import OBJECT
from xdpstack.errors import ConfigError, SetupError
from xdpstack.port import LinkPort, PcapPort, SockPort
from xdpstack.port.base import raise_code
from xdpstack.stats import Histogram

__all__ = ["LIVE_FLOOR", "SECONDS_MAX", "Receiver", "Sender", "Sent", "Template", "send_live"]

NUMBER_BYTES: Final[int] = lib.XDS_TRAFFIC_BYTES
"""Bytes of payload that number and stamp take."""
SECONDS_MAX: Final = 3600.0
COUNT_MAX: Final = 1 << 32
TEMPLATES_MAX: Final = 1 << 20
LIVE_FLOOR: Final = 100_000
"""Frames a second: live frames cannot be paced below."""
_SLICE_NS: Final = 50_000_000
_FRAME_MIN: Final = 60
_ETH_IPV4, _ETH_VLAN, _ETH_IPV6, _UDP = 0x0800, (0x8100, 0x88A8), 0x86DD, 17
_ETHERTYPE: Final = (b"\x08\x00", b"\x86\xdd")
"""By whether it is IPv6."""


# ---- templates ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Template:
    """Frames that are sent in turn, and where in each number and stamp go (0: it is sent as it is)."""

    frames: tuple[bytes, ...]
    at: tuple[int, ...]

    @property
    def numbered(self) -> bool:
        """True when every frame carries a number, so that loss, order and copies can be told."""
        return all(self.at)

    @classmethod
    def udp(cls, *, src: str, dst: str, smac: str, dmac: str = "", vlan: str = "", size: int = 0) -> Template:
        """One UDP frame of ``size`` bytes without its check sequence, 0: the least that there is. ``src`` and
        ``dst`` are ADDRESS:PORT, or [ADDRESS]:PORT of IPv6.

        ``vlan``: an id, or OUTER.INNER. ``dmac`` may be left out where ``dst`` is a multicast group.
        ConfigError names what does not fit.
        """
        (source, sport), (target, dport) = endpoint(src), endpoint(dst)
        if source.version != target.version:
            raise ConfigError(f"from {source} to {target}: both IPv4, or both IPv6")
        if not dmac and not target.is_multicast:
            raise ConfigError(f"no link address is known for {target}: give its MAC address")
        six = target.version == 6
        head = (_mac(dmac) if dmac else _group_mac(target)) + _mac(smac) + _tags(vlan)
        head += _ETHERTYPE[six]
        least = max(_FRAME_MIN, len(head) + (48 if six else 28) + NUMBER_BYTES)
        size = size or least
        if not least <= size <= 65535:
            raise ConfigError(f"size {size}: this frame takes {least} to 65535 bytes")
        body = size - len(head) - (40 if six else 20)
        udp = struct.pack("!HHHH", sport, dport, body, 0)
        ends = source.packed + target.packed
        if six:
            ip = struct.pack("!IHBB", 6 << 28, body, _UDP, 64) + ends
        else:
            ip = struct.pack("!BBHHHBBH", 0x45, 0, size - len(head), 0, 0x4000, 64, _UDP, 0) + ends
            ip = ip[:10] + _checksum(ip) + ip[12:]
        return cls.of([(head + ip + udp).ljust(size, b"\0")])

    @classmethod
    def of(cls, frames: Iterable[bytes], *, number: bool = True) -> Template:
        """From whole Ethernet frames; ``number``: into each that is UDP and has room for it."""
        made: list[bytes] = []
        at: list[int] = []
        for frame in frames:
            if not 14 <= len(frame) <= 65535:
                raise ConfigError(f"a frame of {len(frame)} bytes: from 14 to 65535")
            if len(made) == TEMPLATES_MAX:
                raise ConfigError(f"more than {TEMPLATES_MAX} frames to send in turn: take a part of them")
            where = _payload_at(frame) if number else 0
            made.append(_to_be_numbered(frame, where) if where else bytes(frame))
            at.append(where)
        if not made:
            raise ConfigError("no frames to send")
        return cls(tuple(made), tuple(at))

    @classmethod
    def scapy(cls, expression: str) -> Template:
        """What a scapy expression makes, a packet or a list: ``Ether()/IP(dst="10.0.0.2")/UDP(dport=9)``."""
        try:
            names: Any = importlib.import_module("scapy.all")
        except ImportError:
            raise SetupError(
                "read a scapy expression", "scapy is not installed", "pip install scapy"
            ) from None
        try:
            made = eval(expression, {"__builtins__": {}, **vars(names)})
            packets = list(made) if isinstance(made, names.Packet | list | tuple) else None
        except Exception as error:
            raise ConfigError(f"scapy expression {expression!r}: {error or type(error).__name__}") from None
        if not packets or not all(isinstance(one, names.Ether) for one in packets):
            raise ConfigError(f"scapy expression {expression!r} gives no Ether packet")
        frames = [bytes(one).ljust(_FRAME_MIN, b"\0") for one in packets]
        return cls.of(frames)

    @classmethod
    def capture(cls, path: str | Path, *, number: bool = False) -> Template:
        """The Ethernet frames of a capture, unchanged or numbered; a frame that was cut is left out."""
        with PcapPort(path) as port:

            def whole() -> Iterable[bytes]:
                while frames := port.receive(64):
                    yield from (bytes(f.data) for f in frames if not f.flags & lib.XDS_FRAME_CUT)

            try:
                return cls.of(whole(), number=number)
            except ConfigError as error:
                raise ConfigError(f"capture {path}: {error}") from None


def endpoint(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    """ADDRESS:PORT, or [ADDRESS]:PORT of IPv6, taken apart. ConfigError."""
    address, _, port = text.rpartition(":")
    try:
        found = (
            IPv6Address(address[1:-1]) if address[:1] + address[-1:] == "[]" else IPv4Address(address),
            int(port),
        )
    except ValueError:
        raise ConfigError(f"{text!r} is not ADDRESS:PORT, e.g. 10.0.0.2:9000 or [fd00::2]:9000") from None
    if "%" in address:
        raise ConfigError(f"{text!r}: the interface is named by the port")
    if not 0 < found[1] <= 65535:
        raise ConfigError(f"{text!r}: a port is from 1 to 65535")
    return found


def _group_mac(group: IPv4Address | IPv6Address) -> bytes:
    """RFC 1112 6.4, RFC 2464 7."""
    if group.version == 6:
        return b"\x33\x33" + group.packed[12:]
    return b"\x01\x00\x5e" + bytes([group.packed[1] & 127]) + group.packed[2:]


def _mac(text: str) -> bytes:
    parts = text.split(":")
    try:
        octets = bytes(int(part, 16) for part in parts)
    except ValueError:
        octets = b""
    if len(octets) != 6:
        raise ConfigError(f"{text!r} is not a MAC address like 02:00:00:00:00:01")
    return octets


def _tags(vlan: str) -> bytes:
    if not vlan:
        return b""
    words = vlan.split(".")
    if len(words) > 2 or not all(word.isdecimal() and 0 <= int(word) < 4095 for word in words):
        raise ConfigError(f"vlan {vlan!r}: an id from 0 to 4094, or OUTER.INNER")
    kinds = (0x8100,) if len(words) == 1 else (0x88A8, 0x8100)
    return b"".join(struct.pack("!HH", kind, int(word)) for kind, word in zip(kinds, words, strict=True))


def _checksum(data: bytes) -> bytes:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def _header_at(frame: bytes) -> tuple[int, int]:
    """Where the IP header lies behind VLAN tags, and its ethertype."""
    at, kind = 14, int.from_bytes(frame[12:14], "big")
    while kind in _ETH_VLAN and at < 22:
        kind, at = int.from_bytes(frame[at + 2 : at + 4], "big"), at + 4
    return at, kind


def _payload_at(frame: bytes) -> int:
    """Where the payload of a UDP datagram lies that is not fragmented; 0: it is none, or too short."""
    at, kind = _header_at(frame)
    if kind == _ETH_IPV6 and len(frame) >= at + 48 and frame[at + 6] == _UDP:
        body = at + 40
    elif kind == _ETH_IPV4 and len(frame) >= at + 28 and frame[at + 9] == _UDP:
        body = at + (frame[at] & 15) * 4
        if int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF:
            return 0
    else:
        return 0
    size = int.from_bytes(frame[body + 4 : body + 6], "big") - 8
    return body + 8 if size >= NUMBER_BYTES and len(frame) >= body + 8 + size else 0


def _to_be_numbered(frame: bytes, payload: int) -> bytes:
    """With zeros where number and stamp go, and the UDP checksum for that; none over IPv4."""
    at, kind = _header_at(frame)
    blank = frame[: payload - 2] + b"\0" * (2 + NUMBER_BYTES) + frame[payload + NUMBER_BYTES :]
    if kind != _ETH_IPV6:
        return blank
    udp = payload - 8
    size = int.from_bytes(blank[udp + 4 : udp + 6], "big")
    pseudo = blank[at + 8 : at + 40] + struct.pack("!II", size, _UDP)
    sum_ = _checksum(pseudo + blank[udp : udp + size])
    return blank[: payload - 2] + (b"\xff\xff" if sum_ == b"\0\0" else sum_) + blank[payload:]


# ---- sending --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a sender did. ``seconds``: first turn to last one; ``ended_by``: count, seconds or signal."""

    by: str
    sent: int
    numbered: int
    """Of them with a number; others cannot be told apart at the far end."""
    bytes: int
    seconds: float
    ended_by: str
    announced: int = 0
    """End marks that told the far end."""


def _bounds(rate: float, count: int, seconds: float, batch: int) -> None:
    if not 0 <= rate <= 1e9:
        raise ConfigError(f"rate {rate}: from 0 (flat out) to 1000000000 frames a second")
    if rate and rate != int(rate):
        raise ConfigError(f"rate {rate}: a whole number of frames a second")
    if not 1 <= count <= COUNT_MAX:
        raise ConfigError(f"count {count}: from 1 to {COUNT_MAX} frames")
    if not 0 < seconds <= SECONDS_MAX:
        raise ConfigError(f"seconds {seconds}: above 0, at most {SECONDS_MAX:.0f}")
    if not 1 <= batch <= lib.XDS_TRAFFIC_BATCH:
        raise ConfigError(f"batch {batch}: from 1 to {lib.XDS_TRAFFIC_BATCH} frames")


def _never() -> bool:
    return False


class Sender:
    """Sends a template by a link; ``step`` for 50 ms, ``run`` to the end. ConfigError: out of bounds."""

    def __init__(
        self,
        port: LinkPort,
        template: Template,
        *,
        rate: float = 0,
        count: int = 100_000,
        seconds: float = 10.0,
        batch: int = 32,
    ) -> None:
        _bounds(rate, count, seconds, batch)
        self.port, self.template = port, template
        self._clock = Clock()
        self._data = [ffi.from_buffer(frame) for frame in template.frames]
        self._table = ffi.new("struct xds_traffic_frame[]", len(template.frames))
        for slot, data, at in zip(self._table, self._data, template.at, strict=True):
            slot.data, slot.len, slot.at = data, len(data), at
        self._state = ffi.new("struct xds_traffic_send *")
        self._state.frames, self._state.frame_count = self._table, len(template.frames)
        self.late = Histogram()
        """ns from when a frame was due to when it was sent; empty where there is no rate."""
        self._state.late = self.late.pointer
        self._state.rate, self._state.count, self._state.batch = int(rate), count, batch
        self._state.duration_ns = int(seconds * 1e9)

    def step(self) -> bool:
        """Send what is due for 50 ms; True at the end. ValueError: a frame larger than the port's."""
        code = lib.xds_traffic_send(self._state, self.port.handle, self._clock.pointer, _SLICE_NS)
        if code == -90:  # EMSGSIZE
            longest = max(map(len, self.template.frames))
            raise ValueError(f"a frame of {longest} bytes is larger than {self.port!r} takes")
        return bool(raise_code(code, f"send by {self.port!r}"))

    def run(self, stop: Callable[[], Any] = _never) -> Sent:
        """Send to the end, or until ``stop()`` is true; then the end marks."""
        ended = ""
        while not ended:
            if self.step():
                ended = "count" if self._state.sent >= self._state.count else "seconds"
            elif stop():
                ended = "signal"
        marks = raise_code(
            lib.xds_traffic_end(self._state, self.port.handle, self._clock.pointer), "send end marks"
        )
        state = self._state
        took = (state.end_ns - state.begin_ns) / 1e9
        return Sent(
            by=self.port.kind,
            sent=state.sent,
            numbered=state.numbered,
            bytes=state.bytes,
            seconds=took,
            ended_by=ended,
            announced=marks,
        )


def send_live(
    interface: str,
    template: Template,
    *,
    rate: float = 0,
    count: int = 100_000,
    seconds: float = 10.0,
    batch: int = 64,
    stop: Callable[[], Any] = _never,
) -> Sent:
    """Send the template's first frame as live XDP frames, cheaper than a socket's; they carry no end marks.
    ``stop`` is asked after each signal.

    The far end of a veth pair must run an XDP program or GRO. ``rate`` is 0 or at least ``LIVE_FLOOR``.
    ConfigError: out of bounds. SetupError: the kernel refuses.
    """
    _bounds(rate, count, seconds, batch)
    if rate and rate < LIVE_FLOOR:
        raise ConfigError(f"rate {rate:.0f}: live frames go at {LIVE_FLOOR} a second or faster, or flat out")
    if len(template.frames) > 1 or not template.numbered:
        raise ConfigError("live frames are copies of one numbered UDP frame")
    run = ffi.new("struct xds_traffic_live *")
    path, data = (
        ffi.new("char[]", bytes(OBJECT.with_name("xds_live.bpf.o"))),
        ffi.from_buffer(template.frames[0]),
    )
    run.object, run.ifindex = path, _ifindex(interface)
    run.frame.data, run.frame.len, run.frame.at = data, len(data), template.at[0]
    run.mark, run.batch, run.rate, run.count = lib.XDS_TRAFFIC_MARK, batch, int(rate), count
    run.duration_ns = int(seconds * 1e9)
    while (code := lib.xds_traffic_live(run)) == 1 and not stop():
        pass  # the process was only stopped for a while
    if code < 0:
        reasons = {
            -1: ("the process may not", "run as root, or give it CAP_BPF and CAP_NET_ADMIN"),
            -2: ("the program is not built", "make bpf"),
            -95: ("this kernel has none", "Linux 5.18 or later"),
        }
        reason, remedy = reasons.get(code, (f"the kernel says {-code}", ""))
        raise SetupError(f"send live frames by {interface}", reason, remedy, -code)
    took = run.took_ns / 1e9
    ended = "signal" if code else "count" if run.sent >= count else "seconds"
    return Sent(
        by="live", sent=run.sent, numbered=run.sent, bytes=run.sent * len(data), seconds=took, ended_by=ended
    )


def _ifindex(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise SetupError(
            f"send by {interface}",
            "no such interface in this network namespace",
            "ip link shows what there is",
        ) from None


# ---- receiving ------------------------------------------------------------------------------------------


class Receiver:
    """Counts what comes by a link or by kernel sockets; ``step`` for 50 ms, ``run`` to the end.

    It ends after ``want`` frames (0: any number), 50 ms after an end mark, or after ``seconds``.
    """

    def __init__(self, port: LinkPort | SockPort, *, want: int = 0, seconds: float = 10.0) -> None:
        if not 0 < seconds <= SECONDS_MAX:
            raise ConfigError(f"seconds {seconds}: above 0, at most {SECONDS_MAX:.0f}")
        self.port, self.seconds = port, seconds
        self._clock = Clock()
        self._seen = np.zeros(lib.XDS_TRAFFIC_WINDOW // 64, np.uint64)
        self.ages = Histogram()
        """From the stamp of sending to that of reception, ns: one host's clocks, or synchronised ones."""
        self._state = ffi.new("struct xds_traffic_receive *")
        self._state.seen = ffi.cast("uint64_t *", self._seen.ctypes.data)
        self._state.ages, self._state.want = self.ages.pointer, want

    def step(self) -> bool:
        """Count for 50 ms; True at the end."""
        sock = isinstance(self.port, SockPort)
        receive = lib.xds_traffic_receive_sock if sock else lib.xds_traffic_receive_link
        code = receive(self._state, self.port.handle, self._clock.pointer, _SLICE_NS)
        return bool(raise_code(code, f"receive from {self.port!r}"))

    def run(self, stop: Callable[[], Any] = _never) -> dict[str, Any]:
        """Count to the end, or until ``stop()`` is true; what :meth:`report` says."""
        end = self._clock.now() + int(self.seconds * 1e9)
        while not self.step() and self._clock.now() < end and not stop():
            pass
        return self.report()

    def report(self, sent: int | None = None) -> dict[str, Any]:
        """Counts by name. ``sent``: numbers given, from the sender itself; else its end marks', else None.

        received = distinct + doubled + stale; lost = sent - distinct (None: nobody said what was sent).
        ``foreign`` frames have no number of ours: another's, or a capture's that is sent as it is.
        """
        state = self._state
        distinct = state.received - state.doubled - state.stale
        told = state.announced if sent is None and state.ends else sent
        summary = self.ages.summary()
        span = (state.last_ns - state.first_ns) / 1e9
        return {
            "numbered": told,
            "received": state.received,
            "lost": None if told is None else max(0, told - distinct),
            "reordered": state.reordered,
            "doubled": state.doubled,
            "stale": state.stale,
            "foreign": state.foreign,
            "bytes_received": state.bytes,
            "receive_seconds": span,
            "age_ns": {key: getattr(summary, key) for key in ("min", "p50", "p99", "max")},
        }
