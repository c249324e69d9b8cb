"""The part of a node that follows its interfaces and opens again what comes back. Between turns only."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xdpstack.bpf import Filter
from xdpstack.config import Program
from xdpstack.engine import Engine
from xdpstack.errors import SetupError
from xdpstack.interface import Interface, apart
from xdpstack.linklife import LinkLife
from xdpstack.links import LinkEvent
from xdpstack.nic import Binding
from xdpstack.nic.irq import memory_on
from xdpstack.phc import NicTimes
from xdpstack.port import Membership, XskPort, open_link
from xdpstack.port.xsk import require_features

__all__ = ["LINK_WAIT", "Returning", "bring_back", "leave", "note_all", "wants_larger"]

log = logging.getLogger("xdpstack.links")

LINK_WAIT = 30.0
"""Seconds that an interface may be gone (deleted, or in another namespace) before that ends the node."""
FRAME_MTU_MAX = 4096 - 256 - 22
"""The largest MTU that fits a chunk of 4,096 bytes: what the kernel and the link header need taken off."""


class Returning:
    """What :class:`xdpstack.node.Node` does about interfaces that come and go; it owns all that is here."""

    _ports: list[Any]
    _joined: dict[tuple[str, str, str | None], Membership]
    _life: LinkLife | None
    _shared: Any
    _undo: contextlib.ExitStack
    _nic_times: NicTimes
    engine: Engine
    program: Program

    def _watch(self) -> None:
        """Follow the interfaces of the live ports; those of a fleet are its own to follow."""
        if self._shared is not None:
            return
        waits: dict[str, float] = {}
        for port in self._ports:
            if port.kind != "pcap":
                port.watched = port.interface
                wait = float(port.config.options.get("link_wait", LINK_WAIT))
                waits[port.watched] = max(wait, waits.get(port.watched, 0.0))
        if waits:
            self._life = self._undo.enter_context(LinkLife(waits, self.engine.segment))

    def link_events(self) -> list[LinkEvent]:
        """What happened to the interfaces since the last call, the oldest first (1,024 are kept).

        Carrier lost and back, down and up, renamed, MTU, moved, deleted, created; then what was done:
        ``recovered`` (sockets opened, filter attached, groups joined again) or ``failed``. :meth:`run`
        looks by itself, between two batches; with :meth:`start` call this a few times a second, from one
        thread. Raises SetupError where an interface did not come back within its ``link_wait``."""
        self._look()
        return self._life.take() if self._life is not None else []

    def _look_at_links(self) -> None:
        Returning._look(self)

    def _look(self) -> None:
        if self._life is None:
            return
        for event in self._life.look():
            for port in self._ports:
                if port.watched == event.interface:
                    self._react(port, event.kind)
        for name in self._life.due():
            apart(lambda name=name: self._reopen(name))  # type: ignore[misc]

    def _react(self, port: Any, kind: str) -> None:
        """What cannot wait until the interface is back."""
        assert self._life is not None
        port.interface = self._life.called(port.watched)
        if kind in ("moved", "deleted") and port.binding is not None:
            port.binding.lost = kind
        if kind == "moved" and port.filter is not None:
            leave(port.filter, port.config.name, port.port.queues)
        elif (
            kind == "mtu"
            and isinstance(port.port, XskPort)
            and wants_larger(self._life, port.watched, port.port.mtu_max, port.config.options)
        ):
            self._life.reopen(port.watched)

    def _reopen(self, name: str) -> None:
        """Bring back every port of an interface that is there again."""
        assert self._life is not None
        if self.engine.holds_frames:
            return  # the next turn delivers what points into them
        mine = [port for port in self._ports if port.watched == name]
        try:
            done = [self._reopen_one(port, name) for port in mine]
            for port in mine:
                if port.binding is not None and port.binding.lost:
                    note_all(name, port.binding.settle_again())
        except SetupError as error:
            foreign = error.errno == errno.EBUSY and "program" in str(error)
            refused = error.errno == errno.EPERM and any(port.lease is not None for port in mine)
            self._life.failed(name, error, final=foreign or refused or self.is_broken())
        else:
            self._life.done(name, "; ".join(done))

    def _reopen_one(self, port: Any, name: str) -> str:
        if port.lease is not None:
            return self._reopen_lent(port)
        if port.filter is None:
            port.port.rejoin(port.interface)
            return "groups joined again"
        return self._reopen_xsk(port)

    def _reopen_xsk(self, port: Any) -> str:
        return self._open_anew(port, bring_back(port.interface, port.binding, port.filter))

    def _open_anew(self, port: Any, again: bool) -> str:
        """Sockets on an interface whose NIC and filter are as they should be. ``again``: the filter was
        attached again."""
        interface = Interface.find(port.interface)
        old = port.port
        with contextlib.ExitStack() as stack:
            if not again and interface.index == port.number:  # they hold their queues: first close them
                stack.enter_context(self.engine.paused())
                old.let_go()
                old.close()
                old.hold()
            link = self._open_again(port)
            with contextlib.ExitStack() as failed:
                failed.push(link)
                for queue, fd in link.fds().items():
                    port.filter.set_socket(port.config.name, queue, fd)
                stack.enter_context(self.engine.paused())
                self.engine.swap_link(port.index, link, interface.mac)
                failed.pop_all()
        old.close()
        port.port, port.number = link, interface.index
        self._join_again(port.interface)
        queues = f"{len(link.queues)} queue{'s' if len(link.queues) > 1 else ''}"
        return f"{queues} opened again ({link.granted})" + (
            f", filter attached again ({port.filter.mode})" if again else ", its filter had stayed"
        )

    def _reopen_lent(self, port: Any) -> str:
        """The opener has the interface, the filter and our rules: it is asked for the same queues."""
        interface, old = Interface.find(port.interface), port.port
        with contextlib.ExitStack() as stack:
            if interface.index == port.number:  # it holds its queues: first close it
                stack.enter_context(self.engine.paused())
                old.let_go()
                old.close()
                old.hold()
            link = port.lease.reopen()
            stack.enter_context(self.engine.paused())
            self.engine.swap_link(port.index, link, interface.mac)
        old.close()
        port.port, port.number = link, interface.index
        if self._life is not None:
            self._life.fits(port.watched, link.mtu_max)
        self._join_again(port.interface)
        return f"port lent again ({link.granted})"

    def _open_again(self, port: Any) -> XskPort:
        options = self._port_options(port)
        if self.program.handover:
            options["shared"] = True
        with memory_on(port.binding.node() if port.binding else None):
            spec = dataclasses.replace(port.spec, interface=port.interface)
            link = open_link(spec, row=port.filter.row if port.filter else 0, **options)
        assert isinstance(link, XskPort)
        self._map_stamps(port, link, anew=True)
        if self._life is not None:
            self._life.fits(port.watched, link.mtu_max)
        return link

    def _map_stamps(self, port: Any, link: XskPort, *, anew: bool = False) -> None:
        """Where the filter asks the driver for its stamps, have them mapped. What an opener lends has the
        opener's filter, which does not ask."""
        if port.filter is not None and "timestamp" in (port.filter.info()["metadata"] or ()):
            self._nic_times.map(link, port.interface, anew=anew)

    # -- for a fleet, which follows the interfaces of its nodes itself

    def open_again(self, name: str, interface: str, again: bool) -> None:
        """Open port ``name`` again on ``interface``, as it is called now; NIC and filter are as they should
        be. ``again``: the filter was attached again. Raises SetupError."""
        port = next(port for port in self._ports if port.config.name == name)
        port.interface = interface
        self._open_anew(port, again)

    def mtu_max(self) -> dict[str, int]:
        """The longest packet that fits the frames of each AF_XDP port, by name; 0: any."""
        return {port.config.name: port.port.mtu_max for port in self._ports if port.kind == "xsk"}

    def is_broken(self) -> bool:
        """A port was closed to be opened again, and that failed."""
        return any(port.port.closed for port in self._ports)

    def _join_again(self, interface: str) -> None:
        """The groups of an interface: its memberships ended with it, or with its name here."""
        for key, membership in self._joined.items():
            if key[0] == interface:
                membership.close()
                self._joined[key] = Membership(*key)

    @staticmethod
    def _port_options(port: Any) -> dict[str, Any]:
        """What of a port's options is the port's own."""
        words = {"filter", "accept_partial_checksum", "opener", "link_wait", "carrier_wait"}
        words |= {"dispatcher", "priority", "metadata", "address", "probe_ms"}
        words |= {"link_local", "routers", "reports"}
        return {key: value for key, value in port.config.options.items() if key not in words}


def leave(steer: Filter, group: str, queues: Iterable[int]) -> None:
    """The interface is in another namespace now: nothing of ours is to act there."""
    for queue in queues:  # dead sockets would take what the kernel there should get
        steer.set_socket(group, queue, None)
    steer.let_go()


def wants_larger(life: LinkLife, name: str, mtu_max: int, options: Mapping[str, Any]) -> bool:
    """Whether an interface's MTU is above ``mtu_max``, and frames could be had that hold it."""
    link = life.watch.link(name)
    return link is not None and 0 < mtu_max < link.mtu and _fits(link.mtu, options)


def bring_back(interface: str, binding: Binding | None, steer: Filter) -> bool:
    """What the host needs before sockets are opened again: the NIC's settings, the filter. False: the filter
    had stayed. Raises SetupError."""
    if binding is not None and binding.lost in ("moved", "deleted"):
        note_all(interface, binding.again(interface))
    return steer.reattach(interface)


def note_all(interface: str, notes: Sequence[str]) -> None:
    """Log what an interface that was made anew did not grant."""
    for note in notes:
        log.warning("%s: %s", interface, note)


def _fits(mtu: int, options: Mapping[str, Any]) -> bool:
    """Whether a port that is opened anew could have frames for that MTU: larger, or of several chunks."""
    larger = mtu <= FRAME_MTU_MAX and not options.get("frame_size")
    try:
        require_features("", jumbo=True)
    except SetupError:
        return larger
    return larger or bool(options.get("jumbo", True))
