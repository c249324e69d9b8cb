"""The only door from this package to the host: one ethtool ioctl, time-stamping ioctls, files of /proc and
/sys, NAPI by netlink, packet-socket memberships.

Everything above works on a :class:`Surface`, so that tests may bring one that records and refuses what a
kernel would. Errors are OSError, as the kernel gives them; the operations turn them into sentences. All of
it is about the network namespace of the calling thread: /sys/class/net is read from a mount of the
namespace's own where the one at /sys shows another's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import os
import re
import socket
import struct
from pathlib import Path
from typing import Protocol

from pyroute2 import IPRoute

from xdpstack import netdev

__all__ = ["Host", "Link", "Membership", "Surface"]

SIOCETHTOOL = 0x8946  # linux/sockios.h
SIOCSHWTSTAMP, SIOCGHWTSTAMP = 0x89B0, 0x89B1
SOL_PACKET, PACKET_ADD_MEMBERSHIP = 263, 1  # linux/if_packet.h
MEMBERSHIPS = {"multicast": 0, "promiscuous": 1, "all-multicast": 2}  # PACKET_MR_*

_FSOPEN, _FSCONFIG, _FSMOUNT, _FSCONFIG_CREATE = 430, 431, 432, 6  # the same on every architecture


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface, as rtnetlink tells it."""

    name: str
    index: int
    mac: str
    mtu: int
    kind: str
    """``veth``, ``bond``, ``vlan``, … ; empty for hardware."""
    is_loopback: bool
    master: str
    """The bond or bridge that it belongs to; empty for none."""
    lower: str
    """The device below it, of a VLAN device and the like; empty for none."""


class Membership(Protocol):
    """Something that the kernel takes back when it is closed, or when its process ends."""

    def close(self) -> None:
        """Take it back."""


class Surface(Protocol):
    """What the operations of this package ask of a host. Raises OSError."""

    def ethtool(self, interface: str, request: bytes) -> bytes:
        """One SIOCETHTOOL: the struct of ``request`` as the kernel filled it."""

    def stamping(self, interface: str, config: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
        """Read or set ``struct hwtstamp_config`` {flags, tx_type, rx_filter}; returns it."""

    def read(self, path: str) -> str:
        """The text of a file of /proc or /sys, stripped."""

    def write(self, path: str, text: str) -> None:
        """Write a file of /proc or /sys."""

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none where there is no such folder."""

    def link(self, interface: str | int) -> Link | None:
        """An interface by name or index."""

    def queues(self, index: int) -> list[netdev.Queue] | None:
        """See :func:`xdpstack.netdev.queues`."""

    def napis(self, index: int) -> list[netdev.Napi] | None:
        """See :func:`xdpstack.netdev.napis`."""

    def set_napi(self, napi: int, defer_hard_irqs: int, gro_flush_timeout_ns: int) -> None:
        """See :func:`xdpstack.netdev.set_napi`."""

    def join(self, index: int, kind: str, mac: bytes = b"") -> Membership:
        """Hold a filter of the NIC open: ``promiscuous``, ``all-multicast`` or ``multicast`` with an
        address. The kernel counts holders, and lets go when the last has ended, by whatever signal."""

    def cookie(self) -> int:
        """The network namespace's cookie."""


class Host:
    """The real one."""

    def ethtool(self, interface: str, request: bytes) -> bytes:
        """See :class:`Surface`."""
        buffer = ctypes.create_string_buffer(request, len(request))
        self._ioctl(interface, SIOCETHTOOL, buffer)
        return buffer.raw

    def stamping(self, interface: str, config: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
        """See :class:`Surface`."""
        buffer = ctypes.create_string_buffer(struct.pack("3i", *(config or (0, 0, 0))), 12)
        self._ioctl(interface, SIOCGHWTSTAMP if config is None else SIOCSHWTSTAMP, buffer)
        flags, tx_type, rx_filter = struct.unpack("3i", buffer.raw)
        return flags, tx_type, rx_filter

    @staticmethod
    def _ioctl(interface: str, number: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        request = struct.pack("16sP", interface.encode()[:15], ctypes.addressof(buffer)).ljust(40, b"\0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, number, request)

    def read(self, path: str) -> str:
        """See :class:`Surface`."""
        with self._open(path, os.O_RDONLY) as fd:
            return os.read(fd, 1 << 20).decode(errors="replace").strip()

    def write(self, path: str, text: str) -> None:
        """See :class:`Surface`."""
        with self._open(path, os.O_WRONLY) as fd:
            os.write(fd, text.encode())

    def names(self, folder: str) -> list[str]:
        """See :class:`Surface`."""
        try:
            with self._open(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
                return sorted(os.listdir(fd))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _open(self, path: str, flags: int) -> _Descriptor:
        match = re.match(r"/sys/class/net/([^/]+)", path)
        if match and not self._shown(match[1]):
            with _Descriptor(_own_sysfs()) as sysfs:
                return _Descriptor(os.open(path.removeprefix("/sys/"), flags | os.O_CLOEXEC, dir_fd=sysfs))
        return _Descriptor(os.open(path, flags | os.O_CLOEXEC))

    @staticmethod
    def _shown(interface: str) -> bool:
        """/sys shows this interface of this namespace, and not a namesake of another."""
        try:
            there = int(Path(f"/sys/class/net/{interface}/ifindex").read_text())
            return there == socket.if_nametoindex(interface)
        except (OSError, ValueError):
            return False

    def link(self, interface: str | int) -> Link | None:
        """See :class:`Surface`."""
        with IPRoute() as route:
            links = {int(link["index"]): link for link in route.get_links()}
        for index, link in links.items():
            if interface in (index, link.get_attr("IFLA_IFNAME")):
                break
        else:
            return None

        def name_of(attribute: str) -> str:
            other = links.get(link.get_attr(attribute) or 0)
            return str(other.get_attr("IFLA_IFNAME")) if other is not None else ""

        info = link.get_attr("IFLA_LINKINFO")
        kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""
        return Link(
            name=str(link.get_attr("IFLA_IFNAME")),
            index=index,
            mac=str(link.get_attr("IFLA_ADDRESS") or ""),
            mtu=int(link.get_attr("IFLA_MTU")),
            kind=kind,
            is_loopback=bool(link["flags"] & 8),
            master=name_of("IFLA_MASTER"),
            lower=name_of("IFLA_LINK") if kind != "veth" else "",
        )

    def queues(self, index: int) -> list[netdev.Queue] | None:
        """See :class:`Surface`."""
        return netdev.queues(index)

    def napis(self, index: int) -> list[netdev.Napi] | None:
        """See :class:`Surface`."""
        return netdev.napis(index)

    def set_napi(self, napi: int, defer_hard_irqs: int, gro_flush_timeout_ns: int) -> None:
        """See :class:`Surface`."""
        netdev.set_napi(napi, defer_hard_irqs=defer_hard_irqs, gro_flush_timeout_ns=gro_flush_timeout_ns)

    def join(self, index: int, kind: str, mac: bytes = b"") -> Membership:
        """See :class:`Surface`."""
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: it receives nothing
        try:
            request = struct.pack("iHH8s", index, MEMBERSHIPS[kind], len(mac), mac)
            sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
        except BaseException:
            sock.close()
            raise
        return sock

    def cookie(self) -> int:
        """See :class:`Surface`."""
        so_netns_cookie = 71  # asm-generic/socket.h, Linux 5.14
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            return int(struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, so_netns_cookie, 8))[0])


class _Descriptor:
    """A descriptor for a ``with`` block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _own_sysfs() -> int:
    """A mount of sysfs that shows this thread's network namespace, attached nowhere (Linux 5.2)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result = int(libc.syscall(number, *arguments))
        if result < 0:
            code = ctypes.get_errno()
            # To the caller it is a file that is not to be seen from here.
            raise OSError(errno.ENOENT, f"/sys shows another network namespace: {os.strerror(code)}")
        return result

    with _Descriptor(call(_FSOPEN, b"sysfs", 1)) as context:
        call(_FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0)
        return call(_FSMOUNT, context, 1, 0)
