"""Datagrams from kernel UDP sockets, and group membership for ports that bypass the kernel."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, NamedTuple

from xdpstack._ffi import ffi, lib, names
from xdpstack.closing import Closing
from xdpstack.errors import ConfigError, SetupError
from xdpstack.port.base import SLICE, Datagram, Memory, Port, fields, now_tai, raise_code

__all__ = ["Membership", "Sent", "SockPort", "Subscription", "ends_of"]

_MCAST_JOIN_SOURCE_GROUP: Final = 46
_STAMPS: Final = names("xds_dgram_stamp", "XDS_DGRAM_")
_SUBSCRIPTION = re.compile(
    r"(?:(?P<four>[\d.]+)|\[(?P<six>[0-9A-Fa-f:.]+)\]):(?P<port>\d+)"
    r"(?:@\[?(?P<source>[0-9A-Fa-f:.]+)\]?)?(?:%(?P<interface>\S+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What one kernel socket receives: a group or a local address, ``ADDRESS:PORT[@SOURCE][%INTERFACE]``; an
    address of IPv6 stands in brackets, ``[ff15::1]:5000@[2001:db8::9]%eth0``."""

    address: str
    port: int
    source: str = ""
    """(S,G): only from this sender; empty: from any."""
    interface: str = ""
    """Where the group is joined; empty: by the routing table."""

    @classmethod
    def parse(cls, text: str) -> Subscription:
        """From its written form. ConfigError."""
        match = _SUBSCRIPTION.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"{text!r} is not ADDRESS:PORT[@SOURCE][%INTERFACE] (IPv6: [ADDRESS]:PORT)")
        return cls(
            address=match["four"] or match["six"],
            port=int(match["port"]),
            source=match["source"] or "",
            interface=match["interface"] or "",
        )

    def __post_init__(self) -> None:
        address, source = _address(self.address), _address(self.source) if self.source else None
        object.__setattr__(self, "address", str(address))
        object.__setattr__(self, "source", str(source or ""))
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} is not in 0 .. 65535")
        if source is not None and not address.is_multicast:
            raise ConfigError(f"{self.address} is no multicast group, so @{self.source} has no meaning")
        if source is not None and source.version != address.version:
            raise ConfigError(f"{self.address} and @{self.source} are of two families")

    @property
    def place(self) -> str:
        """``ADDRESS:PORT``, as a rule has it."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def is_group(self) -> bool:
        """The address is a multicast group."""
        return ip_address(self.address).is_multicast

    def __str__(self) -> str:
        source = f"[{self.source}]" if ":" in self.source else self.source
        return (
            self.place + (f"@{source}" if source else "") + (f"%{self.interface}" if self.interface else "")
        )


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        address = ip_address(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not an address of IPv4 or IPv6") from None
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address.scope_id):
        raise ConfigError(
            f"{text!r}: write IPv4 as 192.0.2.1, and the link behind the port: [fe80::1]:5000%eth0"
        )
    return address


def ends_of(raw: Any) -> tuple[tuple[str, int], tuple[str, int]]:
    """(source, destination) of a ``struct xds_dgram``."""
    if raw.six:
        source, to = str(IPv6Address(bytes(raw.src6))), str(IPv6Address(bytes(raw.dst6)))
    else:
        source, to = (socket.inet_ntoa(number.to_bytes(4, "little")) for number in (raw.src, raw.dst))
    return (source, raw.sport), (to, raw.dport)


def _ifindex(interface: str) -> int:
    if not interface:
        return 0
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise SetupError(
            f"use interface {interface}",
            "no such interface in this network namespace",
            "ip link shows what there is",
        ) from None


class Sent(NamedTuple):
    """When a datagram left."""

    socket: int
    """Of the socket that it was sent from."""
    number: int
    """Of the datagram among those of its socket, from 0 on."""
    ns: int
    """CLOCK_TAI: when the driver took it, or the NIC put it on the wire."""
    stamp: str
    """Who took it: ``kernel`` or ``nic``."""


class SockPort(Port):
    """Datagrams from kernel UDP sockets, one socket a subscription.

    ``interface`` is where groups are joined that name none. ``slots`` bounds one burst, ``slot_bytes`` one
    datagram; ``rcvbuf`` is the kernel's buffer in bytes (with CAP_NET_ADMIN, else up to net.core.rmem_max:
    the attribute ``rcvbuf`` says). ``busy_poll`` in µs, 0: off. ``nic_stamps``: take the stamps of the NIC
    of ``interface`` where it gives some (``ethtool -T``; ``hwstamp_ctl`` switches them on), mapped to
    CLOCK_TAI by the clock of :meth:`map_stamps`, else the kernel's. ``tx_stamps``: of what is sent, too, by
    :meth:`sent`. Raises ConfigError, SetupError.
    """

    kind = "sock"

    def __init__(
        self,
        subscriptions: Sequence[str | Subscription],
        *,
        interface: str = "",
        slots: int = 1024,
        slot_bytes: int = 9216,
        rcvbuf: int = 16 << 20,
        busy_poll: int = 0,
        nic_stamps: bool = False,
        tx_stamps: bool = False,
        port_index: int = 0,
    ) -> None:
        super().__init__()
        self.subscriptions = [
            Subscription.parse(one) if isinstance(one, str) else one for one in subscriptions
        ]
        if not 1 <= len(self.subscriptions) <= lib.XDS_SOCK_MAX:
            raise ConfigError(
                f"{len(self.subscriptions)} subscriptions; a port takes 1 to {lib.XDS_SOCK_MAX}"
            )
        self.interface = interface
        config = self._config()
        config.slots, config.slot_bytes, config.rcvbuf_bytes = slots, slot_bytes, rcvbuf
        config.busy_poll_us, config.port_index = busy_poll, port_index
        config.flags = lib.XDS_SOCK_NIC_STAMPS if nic_stamps else 0
        config.flags |= lib.XDS_SOCK_TX_STAMPS if tx_stamps else 0
        self.nic_stamps = nic_stamps
        size = lib.xds_sock_size(config)
        if size == 0:
            raise ConfigError(f"{slots} slots of {slot_bytes} bytes: 1 .. 65536 slots of 64 .. 65536 bytes")
        self._memory = Memory(size, huge=False)
        self._dgrams = ffi.new("struct xds_dgram[]", SLICE)
        self._last_stats: dict[str, int] = {}
        report, out = ffi.new("struct xds_sock_report *"), ffi.new("struct xds_sock **")
        code = lib.xds_sock_open(self._memory.pointer, config, out, report)
        if code < 0:
            self._memory.close()
            self._memory = None
            self._closed = True
            raise self._refused(code, report)
        self._handle = out[0]
        self.rcvbuf = int(report.rcvbuf)
        """Bytes of receive buffer that the kernel granted, the least of all sockets."""

    def _config(self) -> Any:
        config = ffi.new("struct xds_sock_config *")
        config.count = len(self.subscriptions)
        for slot, one in zip(config.address, self.subscriptions, strict=False):
            address, source = ip_address(one.address), ip_address(one.source) if one.source else None
            slot.port, slot.six = one.port, address.version == 6
            if slot.six:
                slot.address6, slot.source6 = address.packed, source.packed if source else bytes(16)
            else:
                slot.address = int.from_bytes(address.packed, "little")
                slot.source = int.from_bytes(source.packed, "little") if source else 0
            slot.ifindex = _ifindex(one.interface or self.interface)
        return config

    def rejoin(self, interface: str) -> None:
        """``interface``, where groups are joined that name none, was made anew or came back: join them
        there. An engine may go on reading. SetupError."""
        self.interface = interface
        report = ffi.new("struct xds_sock_report *")
        code = lib.xds_sock_rejoin(self.handle, self._config(), _ifindex(interface), report)
        if code < 0:
            raise self._refused(code, report)

    def map_stamps(self, clock: Any) -> None:
        """Turn the stamps of the NIC of ``interface`` into CLOCK_TAI by a :class:`xdpstack.phc.PhcKeeper`;
        not while it receives. None: there is no such clock, so each counts as ``rx_nic_refused``."""
        face = ffi.NULL if clock is None else clock.face
        lib.xds_sock_set_nic_clock(self.handle, face, _ifindex(self.interface))
        self._nic_clock = face  # C points to it

    def _refused(self, code: int, report: Any) -> SetupError:
        subscription = self.subscriptions[report.index]
        step = ("configure", "open a socket for", "bind", "join", "ask for stamps on", "busy-poll", "")[
            report.step
        ]
        reasons = {
            errno.EADDRNOTAVAIL: ("the address is not of this host", "ip address shows those that are"),
            errno.EADDRINUSE: (
                "another socket has the port for itself",
                "end that process, or choose another port",
            ),
            errno.ENODEV: ("no route says by which interface", "name one: ADDRESS:PORT%INTERFACE"),
            errno.ENOBUFS: ("too many groups", "sysctl net.ipv4.igmp_max_memberships=4096"),
            errno.EACCES: ("the process may not", "CAP_NET_BIND_SERVICE, or a port above 1023"),
            errno.EPERM: ("the process may not", "CAP_NET_ADMIN"),
        }
        reason, remedy = reasons.get(-code, (os.strerror(-code) if code > -4096 else str(code), ""))
        return SetupError(f"{step} {subscription}", reason, remedy, -code if code > -4096 else None)

    def fileno(self) -> int:
        """A descriptor to poll on."""
        return int(lib.xds_sock_fd(self.handle))

    def local_port(self, index: int = 0) -> int:
        """The UDP port that the index-th socket is bound to."""
        return int(lib.xds_sock_port(self.handle, index))

    def receive(self, count: int = 64, now: int | None = None) -> list[Datagram]:
        """Take up to ``count`` datagrams, at most ``slots``; the views of the call before end here."""
        self._drop_views()
        lib.xds_sock_release(self.handle)
        moment = now_tai() if now is None else now
        taken: list[Datagram] = []
        while len(taken) < count:
            got = lib.xds_sock_rx(self.handle, self._dgrams, min(SLICE, count - len(taken)), moment)
            if got <= 0:
                if not taken:
                    raise_code(got, f"receive from {self!r}")
                break
            for one in self._dgrams[0:got]:
                view = self._view(one.data, one.len)
                taken.append(Datagram(view, one.rx_ns, *ends_of(one), _STAMPS[one.stamp]))
        return taken

    def send(self, data: bytes | memoryview, to: tuple[str, int], index: int = 0) -> int:
        """Send one datagram from the index-th socket; returns its bytes. OSError: refused by the kernel."""
        buffer, address = ffi.from_buffer(data), _address(to[0])
        if address.version == 6:
            got = lib.xds_sock_send6(self.handle, index, address.packed, to[1], buffer, len(buffer))
        else:
            number = int.from_bytes(address.packed, "little")
            got = lib.xds_sock_send(self.handle, index, number, to[1], buffer, len(buffer))
        return raise_code(got, f"send by {self!r}")

    def sent(self) -> list[Sent]:
        """When datagrams left, since the last call; a port that was opened with ``tx_stamps``. They come a
        moment after the datagram has gone: poll ``fileno`` or ask again."""
        out = ffi.new("struct xds_sock_tx_stamp[]", SLICE)
        found: list[Sent] = []
        while got := raise_code(lib.xds_sock_tx_stamps(self.handle, out, SLICE), f"stamps of {self!r}"):
            found += [Sent(one.index, one.number, one.ns, _STAMPS[one.stamp]) for one in out[0:got]]
        return found

    def stats(self) -> dict[str, int]:
        """The counters of ``struct xds_sock_stats``; after close the last ones."""
        if not self._closed:
            out = ffi.new("struct xds_sock_stats *")
            lib.xds_sock_stats(self._handle, out)
            self._last_stats = fields(out, "struct xds_sock_stats")
        return dict(self._last_stats)

    def _close_native(self) -> None:
        if self._handle != ffi.NULL:
            self.stats()
            lib.xds_sock_close(self._handle)

    def __repr__(self) -> str:
        names = ",".join(map(str, self.subscriptions[:2])) + (",…" if len(self.subscriptions) > 2 else "")
        return f"<SockPort {names}{' closed' if self._closed else ''}>"


class Membership(Closing):
    """A group joined by a kernel socket that receives nothing: XDP takes the packets, the kernel speaks IGMP
    or MLD.

    Held as long as the AF_XDP port needs the group: the NIC's MAC filter and the switch forward it only then.
    """

    def __init__(self, interface: str, group: str, source: str | None = None) -> None:
        self.interface, self.group, self.source = interface, group, source
        address = _address(group)
        if not address.is_multicast:
            raise ConfigError(f"{group} is no multicast group (224.0.0.0/4, ff00::/8)")
        index, six = _ifindex(interface), address.version == 6
        family = socket.AF_INET6 if six else socket.AF_INET
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if source is None and six:
                request = struct.pack("=16sI", address.packed, index)
                self._socket.setsockopt(level, socket.IPV6_JOIN_GROUP, request)
            elif source is None:
                request = struct.pack("=4s4si", address.packed, b"\0" * 4, index)
                self._socket.setsockopt(level, socket.IP_ADD_MEMBERSHIP, request)
            else:
                form = "=I4xHHI16s104xHHI16s104x" if six else "=I4xHH4s120xHH4s120x"
                ends = (family, 0, 0) if six else (family, 0)
                request = struct.pack(form, index, *ends, address.packed, *ends, _address(source).packed)
                self._socket.setsockopt(level, _MCAST_JOIN_SOURCE_GROUP, request)
        except OSError as error:
            self._socket.close()
            remedy = "sysctl net.ipv4.igmp_max_memberships=4096" if error.errno == errno.ENOBUFS else ""
            raise SetupError(f"join {self}", error.strerror or str(error), remedy, error.errno) from None

    def close(self) -> None:
        """Leave the group; twice is calm."""
        self._socket.close()

    def __str__(self) -> str:
        return f"{self.group}" + (f"@{self.source}" if self.source else "") + f" on {self.interface}"

    def __repr__(self) -> str:
        return f"<Membership {self}{' left' if self._socket.fileno() < 0 else ''}>"
