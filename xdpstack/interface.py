"""What the kernel says of an interface of this network namespace."""

from __future__ import annotations

import dataclasses
import socket

from pyroute2 import IPRoute

from xdpstack.errors import SetupError

__all__ = ["Interface"]


@dataclasses.dataclass(frozen=True, slots=True)
class Interface:
    """What netlink says of an interface: its index, its hardware address, its first IPv4 address."""

    name: str
    index: int
    mac: str
    address: str
    prefix: int
    gateway: str
    mtu: int

    @classmethod
    def find(cls, name: str) -> Interface:
        """Raises SetupError where there is none of that name in this namespace."""
        with IPRoute() as route:
            found = route.link_lookup(ifname=name)
            if not found:
                raise SetupError(f"no interface {name}", "not in this network namespace", "see `ip link`")
            link = route.get_links(found[0])[0]
            addresses = route.get_addr(index=found[0], family=socket.AF_INET)
            address = addresses[0].get_attr("IFA_ADDRESS") if addresses else "0.0.0.0"
            prefix = int(addresses[0]["prefixlen"]) if addresses else 0
            gateway = "0.0.0.0"
            for entry in route.get_default_routes(family=socket.AF_INET):
                if entry.get_attr("RTA_OIF") == found[0] and entry.get_attr("RTA_GATEWAY"):
                    gateway = entry.get_attr("RTA_GATEWAY")
            mac, mtu = link.get_attr("IFLA_ADDRESS"), int(link.get_attr("IFLA_MTU"))
            return cls(name, found[0], mac, address, prefix, gateway, mtu)

    def neighbour(self, address: str) -> str | None:
        """The hardware address that the kernel knows for a neighbour, None when it has none."""
        with IPRoute() as route:
            for entry in route.get_neighbours(family=socket.AF_INET, ifindex=self.index):
                if entry.get_attr("NDA_DST") == address and entry.get_attr("NDA_LLADDR"):
                    return str(entry.get_attr("NDA_LLADDR"))
        return None
