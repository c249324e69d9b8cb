"""What the kernel says of an interface of this network namespace."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import ipaddress
import socket
import struct
import time
from collections.abc import Callable
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from xdpstack.closing import Closing
from xdpstack.errors import SetupError

__all__ = ["IP6_MTU", "Interface", "SolicitedGroup", "apart", "neighbour_of", "nudge"]

T = TypeVar("T")
IP6_MTU = 1280
"""Bytes of a packet that every link carries which IPv6 runs over (RFC 8200 5)."""
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0  # linux/if_packet.h

_NTF_USE = 1  # linux/neighbour.h: as if a packet were to be sent there
_NEIGHBOUR_SECONDS = 1.0
_NOT_YET = 0x40 | 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED: linux/if_addr.h


def apart(work: Callable[[], T]) -> T:
    """Netlink runs an event loop of its own, which a thread that is in one already may not."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@dataclasses.dataclass(frozen=True, slots=True)
class Interface:
    """What netlink says of an interface: its index, its hardware address, its first IPv4 address, and all of
    them with their prefixes; those of IPv6 that are in use (neither tentative nor taken)."""

    name: str
    index: int
    mac: str
    address: str
    prefix: int
    gateway: str
    mtu: int
    addresses6: tuple[str, ...] = ()
    gateway6: str = ""
    addresses4: tuple[str, ...] = ()

    @classmethod
    def find(cls, name: str) -> Interface:
        """Raises SetupError where there is none of that name in this namespace."""
        with IPRoute() as route:
            found = route.link_lookup(ifname=name)
            if not found:
                raise SetupError(f"no interface {name}", "not in this network namespace", "see `ip link`")
            link = route.get_links(found[0])[0]
            addresses4 = tuple(
                f"{entry.get_attr('IFA_LOCAL') or entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}"
                for entry in route.get_addr(index=found[0], family=socket.AF_INET)
            )
            address, _, bits = (addresses4 or ("0.0.0.0/0",))[0].partition("/")
            gateway = "0.0.0.0"
            for entry in route.get_default_routes(family=socket.AF_INET):
                if entry.get_attr("RTA_OIF") == found[0] and entry.get_attr("RTA_GATEWAY"):
                    gateway = entry.get_attr("RTA_GATEWAY")
            addresses6 = tuple(
                f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}"
                for entry in route.get_addr(index=found[0], family=socket.AF_INET6)
                if not int(entry.get_attr("IFA_FLAGS") or entry["flags"]) & _NOT_YET
            )
            gateway6 = ""
            for entry in route.get_default_routes(family=socket.AF_INET6):
                if entry.get_attr("RTA_OIF") == found[0] and entry.get_attr("RTA_GATEWAY"):
                    gateway6 = entry.get_attr("RTA_GATEWAY")
            mac, mtu = link.get_attr("IFLA_ADDRESS"), int(link.get_attr("IFLA_MTU"))
            return cls(
                name, found[0], mac, address, int(bits), gateway, mtu, addresses6, gateway6, addresses4
            )

    def neighbour(self, address: str) -> str | None:
        """The hardware address that the kernel knows for a neighbour, None when it has none."""
        with IPRoute() as route:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for entry in route.get_neighbours(family=family, ifindex=self.index):
                if entry.get_attr("NDA_DST") == address and entry.get_attr("NDA_LLADDR"):
                    return str(entry.get_attr("NDA_LLADDR"))
        return None

    def next_hop(self, remote: str) -> tuple[str, str | None]:
        """The kernel's next hop to there, and its hardware address: it is asked for. None: nobody answers, or
        the kernel's way leaves by another interface."""
        asked = {"dst": remote, **({"oif": self.index} if remote.startswith("fe80:") else {})}
        with IPRoute() as route:
            try:
                way = route.route("get", **asked)[0]
            except NetlinkError:
                return remote, None
            hop = str(way.get_attr("RTA_GATEWAY") or remote)
            return hop, neighbour_of(route, self.index, hop) if way.get_attr(
                "RTA_OIF"
            ) == self.index else None


def nudge(route: IPRoute, index: int, hop: str) -> None:
    """The kernel asks for a neighbour, as if it had to send there."""
    with contextlib.suppress(NetlinkError):
        route.neigh("replace", dst=hop, ifindex=index, flags=_NTF_USE, state=0)


def neighbour_of(route: IPRoute, index: int, hop: str) -> str | None:
    """The hardware address of a neighbour, for which the kernel asks where it does not know it. None: nobody
    has answered within a second."""
    until = time.monotonic() + _NEIGHBOUR_SECONDS
    asked = False
    while True:
        family = socket.AF_INET6 if ":" in hop else socket.AF_INET
        for entry in route.get_neighbours(family=family, ifindex=index):
            if entry.get_attr("NDA_DST") == hop and entry.get_attr("NDA_LLADDR"):
                return str(entry.get_attr("NDA_LLADDR"))
        if not asked:
            nudge(route, index, hop)
            asked = True
        if time.monotonic() > until:
            return None
        time.sleep(0.005)


class SolicitedGroup(Closing):
    """The interface takes in the frames in which neighbours ask for an address of IPv6 (RFC 4291 2.7.1)."""

    def __init__(self, index: int, address: str) -> None:
        """Raises SetupError."""
        mac = b"\x33\x33\xff" + ipaddress.IPv6Address(address).packed[13:]
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            wanted = struct.pack("iHH8s", index, _PACKET_MR_MULTICAST, len(mac), mac)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wanted)
        except OSError as error:
            raise SetupError(
                f"hear who asks for {address}", error.strerror or "", "run it as root", error.errno
            ) from None

    def close(self) -> None:
        """Twice is calm."""
        self._socket.close()
