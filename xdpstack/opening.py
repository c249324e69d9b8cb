"""The part of a node that opens its ports: a capture, kernel sockets, AF_XDP (its own, lent, or of the
process that is taken over); joins groups, puts rules in force, and has answers to requests steered to them.

Everything that it changes on the host goes onto the node's stack of what is undone.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xdpstack._ffi import lib
from xdpstack.bpf import Filter
from xdpstack.config import PortConfig
from xdpstack.errors import ConfigError
from xdpstack.feed import Feed
from xdpstack.handover import Handed, Takeover
from xdpstack.interface import IP6_MTU, Interface, SolicitedGroup
from xdpstack.links import CARRIER_SECONDS, has_carrier, wait_for_carrier
from xdpstack.nic import Binding, Flow
from xdpstack.nic.irq import memory_on
from xdpstack.opener.client import Lease
from xdpstack.own import own_addresses, own_rules, said_of_groups
from xdpstack.port import Membership, PcapPort, SockPort, Spec, Subscription, open_link
from xdpstack.port.parts import adopt
from xdpstack.recorder import Recording
from xdpstack.returning import Returning
from xdpstack.rules import parse_rule
from xdpstack.steering import steering

__all__ = ["NodePort", "Opening", "Shared"]

PROBE_MS = 20  # a LAN answers in less than one; RFC 5227 has 1,000
_ADDRESSES = lib.XDS_HOST_ADDRESSES
_FRAGMENTS = 8  # datagrams and packets to an own address that are put together at once


@dataclasses.dataclass(slots=True)
class NodePort:
    """A port between its configuration and the engine."""

    config: PortConfig
    kind: str
    interface: str = ""
    spec: Spec | None = None
    port: Any = None
    filter: Filter | None = None
    index: int = -1
    binding: Binding | None = None
    lease: Lease | None = None
    rules: list[str] = dataclasses.field(default_factory=list)  # asked for: put in force by the end of build
    inherited: dict[str, int] = dataclasses.field(default_factory=dict)  # of who was taken over: text to id
    handed: Handed | None = None
    watched: str = ""  # what its interface was called when the node was built; "" without one
    number: int = 0  # the interface that its sockets are bound to


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What a node of a fleet gets from it for a port: the filter with the rules of its feeds, the bound
    NIC."""

    filter: Filter
    binding: Binding
    queue: int


class Opening(Returning):
    """What :class:`xdpstack.node.Node` does to open its ports; it owns all that is here."""

    _ports: list[NodePort]
    _handed_over: bool
    _requests: dict[str, tuple[str, int]]
    _recorded_requests: dict[str, tuple[str, int]]
    feeds: dict[str, Feed]
    force: bool
    notes: list[str]

    def _groups(self) -> list[Subscription]:
        return [group for feed in self.feeds.values() for group in feed.groups()]

    def _names(self) -> list[tuple[str, str]]:
        raise NotImplementedError

    def _filter_words(self) -> dict[str, dict[str, Any]]:
        raise NotImplementedError

    def _open(self, port: NodePort) -> None:
        if port.kind == "pcap":
            self._open_capture(port)
        elif port.kind == "sock":
            self._open_sock(port)
        else:
            self._open_xsk(port, Interface.find(port.interface))

    def _open_capture(self, port: NodePort) -> None:
        recording = Recording.of(port.interface)
        options = {"all_types": True} if recording else {}
        port.port = self._undo.enter_context(PcapPort(port.interface, **options, **port.config.options))
        port.index = self.engine.add_link(port.port, promiscuous=True, rewritten=recording is None)
        if recording:
            self.engine.follow_turns(recording.turns)

    def _open_sock(self, port: NodePort) -> None:
        wanted: list[Subscription] = [*self._groups()]
        for six in self._request_families():
            own = "::" if six else Interface.find(port.interface).address
            wanted.append(Subscription(address=own, port=0))
        options = self._port_options(port)
        port.port = self._undo.enter_context(SockPort(wanted, interface=port.interface, **options))
        if port.port.nic_stamps:
            self._nic_times.map(port.port, port.interface)
        port.index = self.engine.add_sock(port.port)

    def _open_xsk(self, port: NodePort, interface: Interface) -> None:
        partial = bool(port.config.options.get("accept_partial_checksum", False))
        others = [other for other in self._ports if other.port and other.interface == port.interface]
        self._join(interface)
        if port.handed is not None:
            self._adopt_xsk(port, port.handed, others)
        elif port.config.options.get("opener"):
            self._borrow_xsk(port)
        else:
            self._make_xsk(port, others)
        self._map_stamps(port, port.port)
        port.number = interface.index
        if self._life is not None:
            self._life.fits(port.watched, port.port.mtu_max)
        options = port.config.options
        own = own_addresses(options)
        shared = [*interface.addresses4[:_ADDRESSES]]
        mtu = min(interface.mtu, port.port.mtu_max or interface.mtu)
        if mtu >= IP6_MTU:
            shared += interface.addresses6[:_ADDRESSES]
        elif ":" in "".join(own):
            raise ConfigError(
                f"port {port.config.name}: IPv6 needs an MTU of {IP6_MTU}, and {mtu} is all there is"
            )
        anybody, listed = said_of_groups(self._groups())
        port.index = self.engine.add_link(
            port.port,
            mac=interface.mac,
            addresses=own or shared,
            answer_arp=bool(own),
            fragments=_FRAGMENTS if own else 0,
            mtu=mtu,
            groups=anybody,
            sources=listed,
            gateway=interface.gateway,
            gateway6="" if options.get("routers") else _gateway6(interface, own or shared),
            routers=bool(options.get("routers")),
            reports=bool(options.get("reports")),
            accept_partial_checksum=partial,
        )
        if self._shared is not None:
            return  # the fleet has put the rules in force
        if port.lease is None and any(other.config is port.config for other in others):
            return  # its group has the rules already
        for g in self._groups():
            source = f"src {g.source} " if g.source else ""
            port.rules.append(f"udp {source}dst {g.place}")
        port.rules += own_rules(own, options, self._groups())
        for address in [text.partition("/")[0] for text in own]:
            if ":" in address:
                self._undo.enter_context(SolicitedGroup(interface.index, address))
            if wait := int(options.get("probe_ms", PROBE_MS)):
                self.engine.claim(port.index, address, wait / 1000)

    def _join(self, interface: Interface) -> None:
        for address, source in sorted({(g.address, g.source) for g in self._groups() if g.is_group}):
            key = (interface.name, address, source or None)
            if key not in self._joined:
                self._joined[key] = Membership(*key)
                self._undo.callback(self._leave, key)

    def _leave(self, key: tuple[str, str, str | None]) -> None:
        self._joined[key].close()  # the one that it has then

    def _make_xsk(self, port: NodePort, others: list[NodePort]) -> None:
        """A port of our own, on the filter that is there or on our own."""
        assert port.spec is not None
        options = self._port_options(port)
        known = port.filter or _filter_of(others)
        if known:
            known.asking(port.config.options.get("metadata", ()))
        wait = float(port.config.options.get("carrier_wait", CARRIER_SECONDS))
        carrier = wait > 0 and has_carrier(port.interface)
        port.filter = known or self._undo.enter_context(
            steering(port.interface, port.config.options, force=self.force, carrier_wait=wait)
        )
        if self.program.handover:
            options["shared"] = True
        with memory_on(port.binding.node() if port.binding else None):
            port.port = open_link(port.spec, row=port.filter.row, **options)
        self._undo.callback(lambda: port.port.close())  # the one that it has then
        for queue, fd in port.port.fds().items():
            port.filter.set_socket(port.config.name, queue, fd)
            self._undo_socket(port.filter, port.config.name, queue)
        if carrier:  # zero-copy sockets reset some links once more
            wait_for_carrier(port.interface, wait)

    def _borrow_xsk(self, port: NodePort) -> None:
        """A port that an opener lends; the filter is the opener's to change."""
        assert port.spec is not None
        if {"filter", "dispatcher", "priority", "metadata"} & set(port.config.options):
            raise ConfigError(f"port {port.config.name}: with an opener, the filter is not yours to choose")
        path = str(port.config.options["opener"])
        lease = Lease.open(path, port.interface, port.spec.queues, **self._port_options(port))
        self._keep_lease(port, lease)

    def _keep_lease(self, port: NodePort, lease: Lease) -> None:
        port.lease, port.port = lease, lease.port
        self._undo.callback(lambda: lease.let_go() if self._handed_over else lease.close())

    def _undo_socket(self, steer: Filter, group: str, queue: int) -> None:
        if steer.is_pinned:  # it outlives us: take back what we put in
            self._undo.callback(self._unless_handed_over, steer.set_socket, group, queue, None)

    def _undo_rule(self, steer: Filter, number: int) -> None:
        if steer.is_pinned:
            self._undo.callback(self._unless_handed_over, steer.delete_rule, number)

    def _unless_handed_over(self, action: Callable[..., object], *args: object) -> None:
        if not self._handed_over:
            action(*args)

    def _enforce(self) -> None:
        """Put the rules in force that feeds and requests asked for, and end those that came with a takeover
        and are wanted no more."""
        for port in self._ports:
            if port.lease is not None:
                port.lease.add_rules(port.rules, only=True)
            elif port.filter is not None:
                for rule in port.rules:
                    self._add_rule(port, port.filter, f"{rule} -> {port.config.name}")
                for number in port.inherited.values():
                    port.filter.delete_rule(number)
                port.inherited.clear()

    def _add_rule(self, port: NodePort, steer: Filter, rule: str) -> None:
        number = port.inherited.pop(str(parse_rule(rule)), None)
        if number is None:
            there = steer.rules if steer.is_pinned else []
            number = steer.add_rule(rule, before=there[0].id if there else None)  # what runs goes first
        self._undo_rule(steer, number)

    def _take_over(self, takeover: Takeover) -> None:
        """Everything slow first; then the running process stops, and its ports are ours."""
        for port in self._ports:
            if port.kind != "xsk":
                raise ConfigError(f"port {port.config.port}: only xsk ports can be taken over")
            self._join(Interface.find(port.interface))
        for port, handed in zip(self._ports, takeover.take(self._names(), self._filter_words()), strict=True):
            self._undo.callback(handed.close)
            port.handed = handed

    def _adopt_xsk(self, port: NodePort, handed: Handed, others: list[NodePort]) -> None:
        name = port.config.name
        port.port = adopt(handed.parts)
        if handed.lease is not None:
            said = handed.lease
            where, number, target = str(said["path"]), int(said["number"]), str(said["target"])
            lease = Lease.resume(where, number, target, port.port, said["options"])
            self._keep_lease(port, lease)
            return
        self._undo.callback(lambda: port.port.close())
        port.filter = _filter_of(others)
        if port.filter is None:
            fds = [handed.filter_fds.get(place, -1) for place in range(lib.XDS_FILTER_FDS)]
            handed.filter_fds = {}
            pins = Path(handed.pin_dir) if handed.pin_dir else None
            port.filter = self._undo.enter_context(Filter.adopt(port.interface, fds, handed.mode, pins))
        for queue in port.port.queues:
            self._undo_socket(port.filter, name, queue)
        known = set(handed.rules) if not any(other.config is port.config for other in others) else set()
        port.inherited = {str(rule): rule.id for rule in port.filter.rules if rule.id in known}

    def _request_source(self, port: NodePort, feed: Feed) -> tuple[str, int]:
        """Reserve a local port for requests, and steer its answers to us. They may come to any address of the
        interface: which one asks hangs on the server's."""
        six = _asks_over_ipv6(feed)
        if port.kind == "pcap":
            source = self._recorded_requests.get(feed.name)
            return (source[0], source[1]) if source else ("::" if six else "0.0.0.0", 0)
        interface = Interface.find(port.interface)
        local = "::" if six else interface.address
        if port.kind == "sock":
            place = len(self._groups()) + self._request_families().index(six)
            return local, port.port.local_port(place)
        family = socket.AF_INET6 if six else socket.AF_INET
        holder = self._undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        if six:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind(("", 0))
        # The kernel must not queue what it is not meant to see: one byte of buffer, nothing read.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sport = int(holder.getsockname()[1])
        for text in interface.addresses6 if six else interface.addresses4[:_ADDRESSES]:
            address = text.partition("/")[0]
            port.rules.append(f"udp dst {Subscription(address=address, port=sport).place}")
            if port.binding is not None:
                queue = self._shared[port.config.name].queue if self._shared else None
                port.binding.add_flow(Flow(dst=address, dport=sport), queue)
        for server in {server.address for server in _servers(feed)}:
            hop, mac = interface.next_hop(server)
            if mac:
                self.engine.hosts[port.index].add_neighbour(hop, mac)
            elif not port.config.options.get("address"):
                self.notes.append(
                    f"feed {feed.name}: {hop}, the way to its request server, does not answer the kernel (nor"
                    " would its answers to us come here): no request leaves until the node is opened again"
                )
        return local, sport

    def _request_families(self) -> list[bool]:
        """Of the feeds that ask: whether over IPv6."""
        return sorted({_asks_over_ipv6(feed) for feed in self.feeds.values() if _servers(feed)})


def _servers(feed: Feed) -> list[Subscription]:
    return [channel.config.request for channel in feed.channels if channel.config.request]


def _asks_over_ipv6(feed: Feed) -> bool:
    families = {":" in server.address for server in _servers(feed)}
    if len(families) == 2:
        raise ConfigError(f"feed {feed.name}: its request servers are of IPv4 and of IPv6; make it two feeds")
    return True in families


def _filter_of(ports: Sequence[NodePort]) -> Filter | None:
    """The filter that one of an interface's ports has already."""
    return next((port.filter for port in ports if port.filter is not None), None)


def _gateway6(interface: Interface, own: list[str]) -> str:
    """The kernel's default router, where the host can reach it: link-local, or on a prefix of its own."""
    if not interface.gateway6 or not any(":" in text for text in own):
        return ""
    gateway = ipaddress.IPv6Address(interface.gateway6)
    nets = [ipaddress.ip_interface(text).network for text in own]
    return interface.gateway6 if gateway.is_link_local or any(gateway in net for net in nets) else ""
