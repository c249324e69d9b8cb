"""The part of a node that opens TCP connections: whose address they have, and who steers their packets.

Two ways to live on an interface. With ``address="192.0.2.9/24"`` (or ``"2001:db8::9/64"``) a port has an
address of its own, of which the kernel knows nothing: ARP or NDP and everything to it come to us. Without,
the port shares the kernel's addresses: each flow has rules of its own (for ICMP errors too) from before its
first packet to after its last, its local port is kept from the kernel's programs by a bound socket, and the
kernel's neighbours and routes are asked for the way. A filter has 1,024 rules, so some five hundred flows can
be open over a shared address; over one's own as many as the stack has places.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from xdpstack._ffi import check, lib
from xdpstack.closing import Closing
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, SetupError
from xdpstack.interface import Interface, apart, neighbour_of, nudge
from xdpstack.own import own_addresses
from xdpstack.sock_streams import SockStreams
from xdpstack.streams import Connection, Listener, Streams, Unsteered
from xdpstack.tcp import address16

if TYPE_CHECKING:
    from xdpstack.bpf import Filter
    from xdpstack.config import Program
    from xdpstack.engine import Engine, Host

__all__ = ["Connecting", "SharedAddress"]

_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, and those of IPv6. An interface that is set down takes its
routes along, and only the link is told of."""
_OF_NEIGHBOURS = (28, 29, 30)  # RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH
_FIXED = 0x80 | 0x40  # NUD_PERMANENT, NUD_NOARP: nobody is asked for it
_ASKED_AGAIN = 1.0
_ANY = ("", "::")


class RouteWatch(Closing):
    """Hears when neighbours, routes or addresses of this network namespace change; never waits."""

    def __init__(self) -> None:
        """Raises SetupError."""
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            self._socket.bind((0, _GROUPS))
        except OSError as error:
            raise SetupError("watch the routes", error.strerror or "", errno=error.errno) from None

    def read(self) -> set[str]:
        """``neighbours``, ``routes``: which have changed since the last call."""
        found: set[str] = set()
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError:  # more than fitted (ENOBUFS): anything may have
                found |= {"neighbours", "routes"}
                if self._socket.fileno() < 0:
                    return found
                continue
            at = 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                found.add("neighbours" if kind in _OF_NEIGHBOURS else "routes")
                at += max(16, (length + 3) & ~3)

    def close(self) -> None:
        """Twice is calm."""
        self._socket.close()


class OwnAddress(Unsteered):
    """An address of ours alone, unless somebody else has it too (RFC 5227); one for the link beside it."""

    def __init__(self, host: Host, *addresses: str) -> None:
        self._host, self._addresses = host, addresses

    @property
    def probing(self) -> bool:
        """Nobody may use one of them yet."""
        return any(self._host.claimed(address)[0] == "probing" for address in self._addresses)

    def begin(self, local: tuple[str, int], remote: tuple[str, int] | None) -> tuple[tuple[str, int], Any]:
        """As it is. OSError (EADDRINUSE): somebody else answered for the address that it is from."""
        address = local[0] if local[0] in self._addresses else self._from(remote)
        state, mac = self._host.claimed(address)
        if state == "taken":
            raise OSError(errno.EADDRINUSE, f"address {address} is in use by {mac}")
        return super().begin(local, remote)

    def _from(self, remote: tuple[str, int] | None) -> str:
        """The one of the peer's scope, which the host will choose."""
        near = remote is not None and ipaddress.ip_address(remote[0]).is_link_local
        fit = [one for one in self._addresses if ipaddress.ip_address(one).is_link_local == near]
        return (fit or self._addresses)[0]


class SharedAddress:
    """The kernel's address, flow by flow."""

    withdrawn = 5.0
    """Seconds that the kernel may have no way to a peer before its connections end: routes are often taken
    away and put back."""

    def __init__(
        self,
        steer: Filter,
        group: str,
        interface: Interface,
        host: Host,
        watch: RouteWatch,
        number: Callable[[], int],
    ) -> None:
        """``number``: what the interface is to the kernel now; one that was made anew has another."""
        self._steer, self._group, self._number = steer, group, number
        self._address = interface.address if interface.prefix else interface.addresses6[0].partition("/")[0]
        self._own = [ipaddress.ip_interface(one) for one in (*interface.addresses4, *interface.addresses6)]
        self._gateways = {4: interface.gateway, 6: interface.gateway6}
        self._host, self._watch = host, watch
        self._asked = 0
        self._hops: dict[str, str] = {}  # remote: next hop, where it is not what the host would choose
        self._lost: dict[str, float] = {}  # remote: since when the kernel has no way there
        self._doubted: dict[str, set[str]] = {}  # next hop that the kernel is to ask for: for these remotes
        self._doubted_at = 0.0

    @property
    def _index(self) -> int:
        return self._number()

    def begin(self, local: tuple[str, int], remote: tuple[str, int] | None) -> tuple[tuple[str, int], Any]:
        """Take a port from the kernel, learn the way, and steer what comes to the port. OSError."""
        with contextlib.ExitStack() as undo:
            if remote is None:
                apart(self._learn_neighbours)
                everywhere = [str(one.ip) for one in self._own] if local[0] in _ANY else [local[0]]
            else:
                everywhere = [local[0] or apart(lambda: self._learn_way(remote[0])) or self._address]
            names, port = [], local[1]
            for address in everywhere:
                holder = undo.enter_context(self._hold(address, port))
                name, port = holder.getsockname()[:2]
                names.append(name.partition("%")[0])
            if all(str(one.ip) != names[0] for one in self._own):
                apart(lambda: self._learn_address(names[0]))
            there = self._steer.rules if self._steer.is_pinned else []
            rules = []
            for name in names:
                place = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
                rules.append(f"tcp dst {place} -> {self._group}")
                rules.append(f"icmp-error tcp src {place} -> {self._group}")  # about what we sent
            numbers = self._steer.add_rules(rules, before=there[0].id if there else None)
            return (names[0], int(port)), (numbers, undo.pop_all())

    def _hold(self, address: str, port: int) -> socket.socket:
        """A socket that keeps the port from the kernel's programs. OSError."""
        six = ":" in address
        holder = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
        try:  # what is link-local belongs to an interface
            holder.bind((address, port, 0, self._index) if six else (address, port))
        except BaseException:
            holder.close()
            raise
        return holder

    def end(self, token: Any) -> None:
        """Give the flow back to the kernel, which knows nothing of it."""
        numbers, holders = token
        with contextlib.suppress(ConfigError, LocalProtocolError):  # the filter went first
            self._steer.delete_rules(numbers)
        holders.close()

    def look(self, remotes: Collection[str]) -> Mapping[str, OSError]:
        """Follow the kernel's neighbours and routes. (Where the host had to ask for one, the kernel has
        the answer: ours goes to it.) Returns whom it has had no way to for too long."""
        changed = self._watch.read()
        stats = self._host.stats()
        asked = stats["arp_asked"] + stats["ndp_asked"]
        if asked != self._asked or "neighbours" in changed:
            self._asked = asked
            apart(self._learn_neighbours)
        if self._doubted and time.monotonic() - self._doubted_at > _ASKED_AGAIN:
            left = ((hop, there.intersection(remotes)) for hop, there in self._doubted.items())
            self._doubted = {hop: there for hop, there in left if there}
            apart(lambda: self._ask_anew(set()))
        if "routes" in changed or self._lost:
            return apart(lambda: self._follow(remotes))
        return {}

    def doubt(self, remotes: Collection[str]) -> None:
        """The kernel forgets the way's neighbour and asks everybody for it, once a second until one answers
        (RFC 1122 2.3.2.1): it would ask only the one whom it knows. What an administrator fixed stays."""
        apart(lambda: self._ask_anew(remotes))

    def _ask_anew(self, remotes: Collection[str]) -> None:
        with IPRoute() as route:
            for remote in remotes:
                with contextlib.suppress(OSError):  # look() tells of ways that are gone
                    hop, _ = self._hop(route, remote)
                    if hop not in self._doubted:
                        self._doubted[hop] = set()
                        with contextlib.suppress(NetlinkError):
                            if not self._is_fixed(route, hop):
                                route.neigh("del", dst=hop, ifindex=self._index)
                    self._doubted[hop].add(remote)
            self._doubted = {hop: of for hop, of in self._doubted.items() if not self._is_fixed(route, hop)}
            for hop in self._doubted:
                nudge(route, self._index, hop)
        self._doubted_at = time.monotonic()

    def _is_fixed(self, route: Any, hop: str) -> bool:
        entry = self._entry(route, hop)
        return entry is not None and bool(entry["state"] & _FIXED)

    def _follow(self, remotes: Collection[str]) -> dict[str, OSError]:
        gone: dict[str, OSError] = {}
        now = time.monotonic()
        self._lost = {remote: since for remote, since in self._lost.items() if remote in remotes}
        for remote in self._hops.keys() - remotes:
            self._by(remote, "")
        with IPRoute() as route:
            for remote in remotes:
                try:
                    hop, _ = self._hop(route, remote)
                except OSError as error:
                    if now - self._lost.setdefault(remote, now) > self.withdrawn:
                        gone[remote] = error
                    continue
                self._lost.pop(remote, None)
                if self._by(remote, hop):
                    nudge(route, self._index, hop)  # its answer is a change that is seen
        return gone

    def _by(self, remote: str, hop: str) -> bool:
        """Go to ``remote`` by ``hop``; "": as the host would by itself. False: it did already."""
        there = ipaddress.ip_address(remote)
        near = any(there in one.network for one in self._own) or there.is_link_local
        mine = "" if hop == (remote if near else self._gateways[there.version]) else hop
        to, bits = address16(remote), there.max_prefixlen
        before = self._hops.get(remote, "")
        if mine == before:
            return False
        if before:
            lib.xds_host_del_route6(self._host.core, to, bits, 0)
            del self._hops[remote]
        if mine:
            by = address16("0.0.0.0" if there.version == 4 else "::") if hop == remote else address16(hop)
            code = lib.xds_host_add_route6(self._host.core, to, bits, by, bytes(16), 0)
            if code == lib.XDS_ECAPACITY:
                raise CapacityError(f"the way to {remote}: the host has as many routes as it can hold")
            if not code:
                self._hops[remote] = mine
        return True

    def _learn_neighbours(self) -> None:
        with IPRoute() as route:
            for family in (socket.AF_INET, socket.AF_INET6):
                for entry in route.get_neighbours(family=family, ifindex=self._index):
                    mac, address = entry.get_attr("NDA_LLADDR"), entry.get_attr("NDA_DST")
                    if mac and not ipaddress.ip_address(address).is_multicast:
                        self._doubted.pop(address, None)
                        with contextlib.suppress(ValueError):  # more than the host has room for
                            self._host.add_neighbour(address, mac)

    def _learn_address(self, mine: str) -> None:
        """It came after the port was opened. CapacityError: more than a host can have."""
        family = socket.AF_INET6 if ":" in mine else socket.AF_INET
        with IPRoute() as route:
            bits = [
                int(entry["prefixlen"])
                for entry in route.get_addr(family=family, index=self._index)
                if mine in (entry.get_attr("IFA_LOCAL"), entry.get_attr("IFA_ADDRESS"))
            ]
        there = ipaddress.ip_interface(f"{mine}/{bits[0]}" if bits else mine)
        code = lib.xds_host_add_address6(self._host.core, address16(mine), there.network.prefixlen)
        if code == lib.XDS_ECAPACITY:
            raise CapacityError(f"{mine}: the host has as many addresses as it can hold")
        check(code, f"address {mine}")
        self._own.append(there)

    def _learn_way(self, remote: str) -> str:
        """What the kernel would do: its next hop, and that one's hardware address. Returns its source ("": it
        names none)."""
        with IPRoute() as route:
            hop, source = self._hop(route, remote)
            self._by(remote, hop)
            mac = neighbour_of(route, self._index, hop)
        if mac:  # else the host asks, and says that nobody answered
            self._host.add_neighbour(hop, mac)
        return source

    def _hop(self, route: Any, remote: str) -> tuple[str, str]:
        """The kernel's next hop to there, and its source."""
        asked = {"dst": remote, **({"oif": self._index} if remote.startswith("fe80:") else {})}
        try:
            way = route.route("get", **asked)[0]
        except NetlinkError as error:
            raise OSError(error.code, f"no way to {remote}: {os.strerror(error.code)}") from None
        if way.get_attr("RTA_OIF") != self._index:
            raise OSError(errno.ENETUNREACH, f"the kernel's way to {remote} leaves by another interface")
        return str(way.get_attr("RTA_GATEWAY") or remote), str(way.get_attr("RTA_PREFSRC") or "")

    def _entry(self, route: Any, hop: str) -> Any:
        """The kernel's entry of a neighbour, None where it has none."""
        family = socket.AF_INET6 if ":" in hop else socket.AF_INET
        found = route.get_neighbours(family=family, ifindex=self._index)
        return next((entry for entry in found if entry.get_attr("NDA_DST") == hop), None)


class Connecting:
    """What :class:`xdpstack.node.Node` does about TCP."""

    _ports: list[Any]
    _shared: Any
    _undo: contextlib.ExitStack
    _tcp: dict[str, Streams]
    engine: Engine
    program: Program

    def build(self) -> None:
        """The node's."""
        raise NotImplementedError

    def streams(self, port: str = "", **settings: Any) -> Streams:
        """TCP of a port, by its name ("": the first AF_XDP port, else the first of kernel sockets).

        ``settings`` are those of :class:`~xdpstack.streams.Streams`, and taken the first time. Raises
        ConfigError and SetupError."""
        if (of_kernel := self._sock_port(port)) is not None:
            return self._over_sockets(of_kernel, settings)
        apart(self.build)
        found = next(
            (one for one in self._ports if one.kind == "xsk" and port in ("", one.config.name)), None
        )
        if found is None:
            raise ConfigError(
                f"TCP needs an AF_XDP port, or one of kernel sockets{f', called {port}' if port else ''}: "
                "xsk:IFACE:QUEUE or sock:IFACE"
            )
        name = found.config.name
        if (there := self._there(name, settings)) is not None:
            return there
        steering = self._steering(found)
        more = {**self.program.tcp, **settings}
        streams = Streams(self.engine, found.index, steering=steering, watch=self._look_at_links, **more)
        self._tcp[name] = streams
        self._undo.callback(streams.close)
        if isinstance(steering, OwnAddress) and not self.engine.feeds:
            streams.wait(lambda: not steering.probing, None, "an own address")
        return streams

    def _there(self, name: str, settings: dict[str, Any]) -> Streams | None:
        if name in self._tcp and settings:
            raise LocalProtocolError(f"TCP of port {name} has its settings already")
        return self._tcp.get(name)

    def _sock_port(self, name: str) -> Any:
        """Its port of kernel sockets, where that is the one."""
        fitting = [one for one in self._ports if name in ("", one.config.name)]
        if any(one.kind == "xsk" for one in fitting):
            return None
        return next((one for one in fitting if one.kind == "sock"), None)

    def _over_sockets(self, port: Any, settings: dict[str, Any]) -> Streams:
        """They need nothing of the engine: it is built when its feeds are wanted."""
        name = port.config.name
        if (there := self._there(name, settings)) is not None:
            return there
        apart(lambda: Interface.find(port.interface))
        more = {**self.program.tcp, **settings}
        streams = SockStreams(self.engine, port.interface, watch=self._look_at_links, **more)
        self._tcp[name] = streams
        self._undo.callback(streams.close)
        return streams

    def _look_at_links(self) -> None:
        """The node's: interfaces that come and go."""

    def _steering(self, port: Any) -> OwnAddress | SharedAddress:
        if own := own_addresses(port.config.options):
            return OwnAddress(self.engine.hosts[port.index], *(text.partition("/")[0] for text in own))
        if port.filter is None or self._shared is not None:
            raise ConfigError(
                f"port {port.config.name}: a filter that is not this node's takes no rules for connections; "
                'give the port an address of its own: address = "192.0.2.9/24"'
            )
        interface = apart(lambda: Interface.find(port.interface))
        if not interface.prefix and not interface.addresses6:
            raise ConfigError(
                f'{port.interface} has no address to share; give the port one: address = "192.0.2.9/24"'
            )
        host = self.engine.hosts[port.index]
        watch = self._undo.enter_context(apart(RouteWatch))
        return SharedAddress(port.filter, port.config.name, interface, host, watch, lambda: int(port.number))

    def connect(self, host: str, port: int, **options: Any) -> Connection:
        """Open a TCP connection: see :meth:`Streams.connect`."""
        return self.streams().connect(host, port, **options)

    def listen(self, port: int, **options: Any) -> Listener:
        """Wait for TCP connections: see :meth:`Streams.listen`."""
        return self.streams().listen(port, **options)
