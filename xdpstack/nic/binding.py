"""A NIC bound to a port: every change that its configuration asks for, in the order that holds, and undone.

Two steps, because a driver rebuilds its queues when a program or a socket comes: :meth:`Binding.prepare`
before the filter is attached (channels, rings, offloads, coalescing, stamping, steering, filters),
:meth:`Binding.settle` when the sockets are bound (interrupts, NAPI deferral).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
from collections.abc import Sequence

from xdpstack.closing import Closing
from xdpstack.errors import ConfigError, SetupError
from xdpstack.nic import ethtool, operations
from xdpstack.nic.change import Changes
from xdpstack.nic.drivers import unsuitable
from xdpstack.nic.irq import cpus_of_node, irqbalance, node_of, queue_irqs
from xdpstack.nic.journal import Journal
from xdpstack.nic.settings import Flow, NicConfig
from xdpstack.nic.surface import Host, Link, Surface

__all__ = ["Binding", "find_link"]

log = logging.getLogger("xdpstack.nic")

# Offloads that change what was on the wire before we see it, by the kernel's names; the second only where
# the peer is a kernel whose frames never meet a wire.
MERGING = ("rx-gro", "rx-gro-hw", "rx-lro", "rx-vlan-hw-parse")
VETH = ("rx-gro", "tx-checksum-ip-generic", "tx-scatter-gather", "tx-tcp-segmentation", "tx-udp-segmentation")


def find_link(surface: Surface, interface: str) -> Link:
    """The interface, when it is one with queues. SetupError: there is none, or what to use instead."""
    link = surface.link(interface)
    if link is None:
        raise SetupError(f"no interface {interface}", "not in this network namespace", "see `ip link`")
    bad = unsuitable(link)
    if bad is not None:
        raise SetupError(f"bind queues of {interface}", *bad, errno=errno.EOPNOTSUPP)
    return link


class Binding(Closing):
    """What was changed for one port. A context manager; everything is put back when it closes."""

    def __init__(
        self,
        interface: str,
        config: NicConfig,
        *,
        surface: Surface | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.surface: Surface = surface or Host()
        self.link = find_link(self.surface, interface)
        self.config = config
        self.changes = Changes(self.link, self.surface, journal)
        self.notes: list[str] = []
        """Sentences for the user: what could not be had, and the mend."""
        self.flow_queues: dict[int, int] = {}
        """By channel: the queue that flow rules of the NIC send it to; empty without them."""
        self.queues: list[int] = []
        self._by_rules, self._by_mac, self.context = False, False, 0
        """``context``: the number of the RSS context that flow rules name, 0: they name queues."""
        self._mac_queues: dict[str, int] = {}
        self._members = contextlib.ExitStack()
        self._flows: list[tuple[Flow, int | None]] = []  # what add_flow was asked for later
        self._prepared: list[Flow] = []
        self._settled: Sequence[int] = ()
        self._journal = journal
        self.lost = ""
        """``moved`` or ``deleted``: the interface went away so, and :meth:`again` makes everything on the one
        that comes; ``open``: it did, and :meth:`settle_again` is to come."""

    # -- before the filter

    def prepare(self, queues: Sequence[int] | None = None, flows: Sequence[Flow] = ()) -> list[int]:
        """Make what must be made before the filter is attached. ``queues``: None is all of them.
        Returns the queues. SetupError: something was refused, and everything is put back."""
        self._prepared = list(flows)
        try:
            return self._prepare(queues, flows)
        except BaseException:
            self.close()
            raise

    def _prepare(self, queues: Sequence[int] | None, flows: Sequence[Flow]) -> list[int]:
        config, make = self.config, self.changes.make
        if config.channels:
            make(operations.Channels(config.channels))
        chosen = self.queues = self._choose(queues)
        if not config.channels and self.changes.rests_on("channels"):
            make(operations.Queues(chosen))  # whose channels they are keeps them until we are done
            self._choose(chosen)
        if config.nic_rx_ring or config.nic_tx_ring:
            make(operations.Rings(config.nic_rx_ring, config.nic_tx_ring))
        if config.bypass_offloads:
            self._turn_off_offloads()
        if config.coalesce:
            make(operations.Coalesce(config.coalesce))
        if config.timestamps:
            make(operations.Timestamps())
        if config.isolate:
            self._isolate(chosen)
        if config.steer and flows:
            self._steer(chosen, flows)
        self._join()
        return chosen

    def queue_count(self) -> int:
        """Receive queues that the NIC has now."""
        try:
            now, _ = ethtool.channels(self.surface, self.link.name)
            return max(1, now["combined"] + now["rx"])
        except OSError:
            told = self.surface.queues(self.link.index) or []
            return max(1, sum(queue.kind == "rx" for queue in told))

    def _choose(self, queues: Sequence[int] | None) -> list[int]:
        count = self.queue_count()
        if queues is None:
            return list(range(count))
        if max(queues) >= count:
            raise SetupError(
                f"open queue {max(queues)} of {self.link.name}",
                f"it has {count} receive queue{'s' if count > 1 else ''}, numbered from 0",
                f"choose one of them, or channels = {max(queues) + 1}",
                errno.EINVAL,
            )
        return list(queues)

    def _turn_off_offloads(self) -> None:
        names = VETH if self.link.kind == "veth" else MERGING
        there = ethtool.features(self.surface, self.link.name)
        for name in names:
            feature = there.get(name)
            if feature is None or not (feature.can_change or feature.active):
                continue
            if not feature.can_change:
                self.notes.append(f"{self.link.name}: its driver keeps {name} on; frames may come changed")
                continue
            # Noted even when it is off already: another port of this host may have turned it off.
            self.changes.make(operations.Feature(name, False))
        if self.link.kind == "veth":
            self.notes.append(
                f"{self.link.name}: what its other end leaves unfinished is not seen from here; there: "
                "ethtool -K PEER tx off"
            )

    def _isolate(self, chosen: Sequence[int]) -> None:
        others = [queue for queue in range(self.queue_count()) if queue not in chosen]
        if not others:
            raise SetupError(
                f"keep other traffic off the queues of {self.link.name}",
                "all of them are the port's",
                f"channels = {len(chosen) + 1}, or leave isolate out",
            )
        self.changes.make(operations.Indirection(others))

    def _steer(self, chosen: Sequence[int], flows: Sequence[Flow]) -> None:
        if self._has_flow_rules() and self._steer_by_rules(chosen, flows):
            return
        if len(chosen) == self.queue_count():
            self.notes.append(f"{self.link.name} has no flow rules; every queue is open, so none is needed")
            return
        try:
            self.changes.make(operations.Indirection(chosen))
        except SetupError as error:
            raise SetupError(
                f"steer flows to queues {_listed(chosen)} of {self.link.name}",
                f"it has neither flow rules nor an RSS table ({error})",
                'queues = "all", or channels = 1',
                errno.EOPNOTSUPP,
            ) from None
        self.notes.append(
            f"{self.link.name} has no flow rules: its RSS table sends everything to queues {_listed(chosen)}"
        )

    def add_flow(self, flow: Flow, queue: int | None = None) -> None:
        """Steer one more flow, after :meth:`prepare`: to the queue of its channel, or to ``queue``."""
        self._steer_one(flow, queue)
        self._flows.append((flow, queue))

    def _steer_one(self, flow: Flow, queue: int | None = None) -> None:
        if not self.config.steer or not self._by_rules:
            return
        chosen = queue if queue is not None else self.flow_queues.get(flow.channel, min(self.queues))
        if self._by_mac:
            self.changes.make(operations.Rule(protocol="ether", dst=self._mac_of(flow, chosen), queue=chosen))
            return
        context = self.context
        rule = {"dst": flow.dst, "dport": flow.dport, "src": flow.src, "context": context}
        self.changes.make(operations.Rule(**rule, queue=0 if context else chosen))

    def _mac_of(self, flow: Flow, queue: int) -> str:
        """The link address that a flow comes to: that of its group, or the NIC's own."""
        address = ipaddress.ip_address(flow.dst)
        low = address.packed[-4:]
        if address.version == 4:
            low = bytes((0, low[1] & 0x7F, low[2], low[3]))
        mac = f"33:33:{low.hex(':')}" if address.version == 6 else f"01:00:5e:{low[1:].hex(':')}"
        mac = mac if address.is_multicast else self.link.mac
        if self._mac_queues.setdefault(mac, queue) != queue:
            raise SetupError(
                f"steer {flow.dst} to queue {queue} of {self.link.name}",
                f"the NIC tells flows apart by link address only, and {mac} goes to "
                f"queue {self._mac_queues[mac]} already",
                "one queue for both channels, or a NIC whose rules know ports",
                errno.EEXIST,
            )
        return mac

    def _has_flow_rules(self) -> bool:
        feature = ethtool.features(self.surface, self.link.name).get("rx-ntuple-filter")
        if feature is None or not (feature.can_change or feature.active):
            return False  # igb of older chips lists rules, and takes none
        if feature.can_change:
            self.changes.make(operations.Feature("rx-ntuple-filter", True))
        try:
            ethtool.rules(self.surface, self.link.name)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return False
            raise
        return True

    def _steer_by_rules(self, chosen: Sequence[int], flows: Sequence[Flow]) -> bool:
        """False: the NIC has rules, but none that name these flows."""
        self._by_rules = True
        self.context = self._new_context(chosen) if self.config.spread else 0
        for number, flow in enumerate(dict.fromkeys(flows)):
            if not self.context:
                self.flow_queues[flow.channel] = chosen[flow.channel % len(chosen)]
            try:
                self._steer_one(flow)
            except SetupError as error:
                if number or self.context or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                if not self._first_by_mac(flow):
                    self._by_rules = self._by_mac = False
                    self.flow_queues.clear()
                    return False
        return True

    def _first_by_mac(self, flow: Flow) -> bool:
        """Whether the NIC takes rules by link address (igb, igc), since it takes none by port."""
        self._by_mac = True
        try:
            self._steer_one(flow)
        except SetupError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            return False
        self.notes.append(f"{self.link.name} tells flows apart by link address only: groups, not ports")
        return True

    def _new_context(self, chosen: Sequence[int]) -> int:
        size = len(ethtool.rss(self.surface, self.link.name).table) or len(chosen)
        table = [chosen[n % len(chosen)] for n in range(size)]
        operation = operations.Context(table)
        before = operation.read(self.surface, self.link)
        made = self.changes.make(operation)
        return int(next(number for number in made if number not in before))

    def _join(self) -> None:
        config, join = self.config, self.surface.join
        wanted = [("promiscuous", b"")] * config.promiscuous + [("all-multicast", b"")] * config.all_multicast
        wanted += [("multicast", bytes.fromhex(mac.replace(":", ""))) for mac in config.multicast_macs]
        for kind, mac in wanted:
            try:
                self._members.callback(join(self.link.index, kind, mac).close)
            except OSError as error:
                raise SetupError(
                    f"have {self.link.name} let in {kind} frames", error.strerror or "", errno=error.errno
                ) from None

    # -- after the sockets

    def settle(self, queues: Sequence[int]) -> None:
        """Make what holds only for queues that are bound. SetupError: everything is put back."""
        self._settled = queues
        try:
            self._place_interrupts(queues)
            self._defer(queues)
        except BaseException:
            self.close()
            raise

    def _place_interrupts(self, queues: Sequence[int]) -> None:
        cpus = self.config.irq_cpus
        if not cpus:
            return
        irqs = queue_irqs(self.surface, self.link)
        found = [queue for queue in queues if queue in irqs]
        if len(found) < len(queues):
            missing = [queue for queue in queues if queue not in irqs]
            self.notes.append(
                f"{self.link.name}: no interrupt is known for queues {_listed(missing)}"
                + ("; a veth has none" if self.link.kind == "veth" else "")
            )
        for place, queue in enumerate(found):
            self.changes.make(operations.Affinity(irqs[queue], str(cpus[place % len(cpus)])))
        pid = irqbalance(self.surface) if found else None
        if pid is not None:
            banned = " ".join(f"--banirq={irqs[queue]}" for queue in found)
            self.notes.append(
                f"irqbalance (process {pid}) moves interrupts back: systemctl stop irqbalance, "
                f"or start it with {banned}"
            )

    def _defer(self, queues: Sequence[int]) -> None:
        config = self.config
        if not config.defer_hard_irqs:
            return
        napis = self.surface.napis(self.link.index)
        if napis is None or any(napi.defer_hard_irqs is None for napi in napis):
            self.changes.make(operations.DeviceNapi(config.defer_hard_irqs, config.gro_flush_timeout))
            return
        linked = {
            queue.napi_id
            for queue in self.surface.queues(self.link.index) or []
            if queue.kind == "rx" and queue.id in queues and queue.napi_id is not None
        }
        # A driver that does not link queues to instances (veth) gets the deferral for all of them.
        for napi in napis:
            if not linked or napi.id in linked:
                self.changes.make(operations.Napi(napi.id, config.defer_hard_irqs, config.gro_flush_timeout))

    def node(self) -> int | None:
        """The NUMA node to take memory from; None: no wish, or one node only. ConfigError: no such node."""
        if not self.config.numa:
            return None
        if self.config.numa == "nic":
            return node_of(self.surface, self.link)
        node = int(self.config.numa)
        if f"node{node}" not in self.surface.names("/sys/devices/system/node"):
            raise ConfigError(f"numa: this host has no node {node}")
        return node

    def note_far_cores(self, cpus: Sequence[int]) -> None:
        """Say which of the engines' cores are not on the node that ``numa`` names, or else on the NIC's."""
        node = self.node() if self.config.numa else node_of(self.surface, self.link)
        near = cpus_of_node(self.surface, node) if node is not None else []
        far = [cpu for cpu in cpus if near and cpu not in near]
        if far:
            listed, whose = ", ".join(map(str, near)), "the frames are" if self.config.numa else "the NIC is"
            self.notes.append(
                f"{self.link.name}: core {_listed(far)} is not on node {node}, where {whose}; "
                f"it has cores {listed}"
            )

    # -- after the interface went

    def again(self, interface: str) -> list[str]:
        """The interface came back, or was made anew, as ``interface``: make on it what :meth:`prepare` made,
        for the same queues; :meth:`settle_again` follows when the sockets are bound. Returns notes that are
        new. SetupError: something was refused; this may be tried again."""
        link = find_link(self.surface, interface)
        if self.lost == "moved" and link.mac == self.link.mac:  # its settings came back with it
            self.changes.follow(link)
        self.close()  # of a device that ended nothing is left, of one that was away all of it
        self.link = link
        self.changes = Changes(self.link, self.surface, self._journal)
        known, self.notes = self.notes, []
        self._by_rules, self._by_mac, self.context = False, False, 0
        self.flow_queues.clear()
        self._mac_queues.clear()
        try:
            self.prepare(self.queues, self._prepared)
            for flow, queue in self._flows:
                self._steer_one(flow, queue)
        except BaseException:
            self.close()
            raise
        finally:
            fresh = [note for note in self.notes if note not in known]
            self.notes = known + fresh
        self.lost = "open"
        return fresh

    def steer_again(self, interface: str, context: int) -> None:
        """After :meth:`again` in another process, which this one was forked from: steer what
        :meth:`add_flow` was asked for here. ``context``: of the other's binding now."""
        self.changes.undo()
        self.link, self.context = find_link(self.surface, interface), context
        self.changes = Changes(self.link, self.surface, self._journal)
        self._mac_queues.clear()
        for flow, queue in self._flows:
            self._steer_one(flow, queue)

    def settle_again(self) -> list[str]:
        """See :meth:`again`; from now on nothing is lost."""
        known, self.notes = self.notes, []
        try:
            self.settle(self._settled)
        finally:
            fresh = [note for note in self.notes if note not in known]
            self.notes = known + fresh
        self.lost = ""
        return fresh

    # -- the end

    def close(self) -> list[str]:
        """Put everything back, last change first; calm when repeated. Returns what could not be."""
        self._members.close()
        return self.changes.undo()

    def __repr__(self) -> str:
        return f"<Binding of {self.link.name}: {self.changes!r}>"


def _listed(queues: Sequence[int]) -> str:
    return ", ".join(map(str, queues))
