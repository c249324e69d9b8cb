"""The user's door: a node brings the host up (filter, rules, groups, ports), runs one engine over it,
and takes everything down in reverse.

    with xdpstack.open("xsk:eth0:3") as node:
        feed = node.feed("itch50", groups=["233.54.12.111:26477", "233.54.13.111:26477"])
        for batch in node.run():
            top = feed.book["AAPL"].levels("bid", 5)

The same program runs over ``sock:eth0`` (kernel sockets) and ``pcap:FILE`` (virtual time).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xdpstack import config as configuration
from xdpstack._ffi import lib
from xdpstack.alerts import Alert, Judge
from xdpstack.bpf import Filter
from xdpstack.closing import Closing
from xdpstack.config import PortConfig, Program
from xdpstack.connecting import Connecting
from xdpstack.engine import Batch, Engine, EngineConfig, Runner
from xdpstack.errors import ConfigError, LocalProtocolError, SetupError
from xdpstack.feed import ChannelConfig, Feed, FeedConfig
from xdpstack.flows import channels_of, scan
from xdpstack.handover import Handed, Offer, Takeover
from xdpstack.linklife import LinkLife
from xdpstack.missing import Missing, missing
from xdpstack.nic import Binding, Flow, NicConfig, restore
from xdpstack.opener.policy import span
from xdpstack.opening import NodePort, Opening, Shared
from xdpstack.phc import NicTimes
from xdpstack.placing import Placed
from xdpstack.port import Membership, PcapPort, Subscription, parse_spec
from xdpstack.port.parts import snapshot
from xdpstack.recorder import Recorder, Recording, feed_to_plan
from xdpstack.steering import filter_words

__all__ = ["Node", "Shared", "open"]

log = logging.getLogger("xdpstack.node")


class Node(Opening, Connecting, Closing):
    """Ports and feeds of one engine on this host. A context manager; close it twice calmly."""

    def __init__(
        self,
        program: Program,
        shared: Mapping[str, Shared] | None = None,
        *,
        takeover: Takeover | None = None,
        force: bool = False,
    ) -> None:
        """``force``: replace what somebody else attached to an interface, and say what that was. ``shared``:
        by port, what a fleet has of it."""
        if program.engines != "one":
            raise ConfigError(f'engines = "{program.engines}" takes several nodes: xdpstack.fleet.open')
        self.program, self.force = program, force
        self._shared = shared
        self._takeover, self._handed_over = takeover, False
        self._joined: dict[tuple[str, str, str | None], Membership] = {}
        self._ports = [self._parse(port) for port in program.ports]
        self.engine = Engine(program.engine)
        if program.publish is not None:
            self.engine.publish(program.publish, program.commands, program.sessions)
        self._tcp = {}
        self._undo = contextlib.ExitStack()
        self._undo.callback(self.engine.close)
        self._nic_times = NicTimes(self.engine.segment)
        self._undo.callback(self._nic_times.close)
        self._built = False
        self._requests: dict[str, tuple[str, int]] = {}  # by feed: where answers come to
        self._recorded_requests: dict[str, tuple[str, int]] = {}
        self.recorder: Recorder | None = None
        self._words: dict[str, Any] = {}
        self._life: LinkLife | None = None
        self.notes: list[str] = []
        """Sentences about what the host did not grant, and the mend; known when it is built."""
        self.placed: Placed | None = None
        """What the process holds for the engine's speed, once it was started."""
        self.feeds: dict[str, Feed] = {}
        try:
            for feed in program.feeds:
                self._declare(feed)
        except BaseException:
            self.close()
            raise

    # -- what the user says

    def feed(
        self,
        schema: str,
        *,
        groups: Sequence[str] | None = None,
        channels: Sequence[Sequence[str]] | None = None,
        request: str | None = None,
        name: str = "",
        books: bool = True,
        bounds: Mapping[str, int] | None = None,
        **channel: Any,
    ) -> Feed:
        """Declare a feed before the first turn. ``groups`` are the lines of one channel, ``channels``
        several such lists; over a capture both may be left out: its flows are looked at. ``request``
        names a MoldUDP64 request server; further keys are those of :class:`ChannelConfig`."""
        if self._built:
            raise LocalProtocolError("feeds are declared before the first turn")
        if groups is not None:
            channels = [groups]
        if channels is None:
            channels = self._find_channels()
        server = Subscription.parse(request) if request else None
        made = tuple(
            ChannelConfig(lines=tuple(Subscription.parse(line) for line in lines), request=server, **channel)
            for lines in channels
        )
        config = FeedConfig(schema=schema, channels=made, name=name, books=books, **(bounds or {}))
        return self._declare(config)

    def feeds_of_recording(self) -> None:
        """Declare the feeds that a recording of ours says were running. ConfigError: it is not ours."""
        recording = Recording.of(self._ports[0].interface) if self._ports[0].kind == "pcap" else None
        if recording is None:
            raise ConfigError(f"{self._ports[0].interface} is no recording of ours; name its --feed")
        for config in recording.feeds():
            self._declare(config)
        self._recorded_requests = recording.requests()

    def _declare(self, config: FeedConfig) -> Feed:
        name = config.name or config.schema
        if name in self.feeds:
            raise ConfigError(f"two feeds are called {name}")
        feed = Feed(config, self.engine.arena)
        self.feeds[name] = feed
        return feed

    # -- bringing the host up

    @staticmethod
    def _parse(config: PortConfig) -> NodePort:
        kind, _, rest = config.port.partition(":")
        if kind == "sock" and rest:
            return NodePort(config, kind, rest)
        spec = parse_spec(config.port)
        if spec.kind == "pipe":
            raise ConfigError("a pipe is for two engines in one process; a node takes xsk, sock or pcap")
        return NodePort(config, spec.kind, spec.interface or spec.path, spec)

    def _find_channels(self) -> list[list[str]]:
        port = self._ports[0]
        if port.kind != "pcap":
            raise ConfigError("a live feed needs its groups")
        with PcapPort(port.interface) as capture:
            found = [[str(group) for group in lines] for lines in channels_of(scan(_frames(capture)))]
        if not found:
            raise SetupError(f"look for feeds in {port.interface}", "it holds no UDP packet")
        return found

    def build(self) -> None:
        """Bring everything up; :meth:`run` and :meth:`start` do it when it was not done."""
        if self._built:
            return
        self._built = True
        try:
            self._bind()
            if self._takeover is not None:
                self._take_over(self._takeover)
            self._watch()
            for port in self._ports:
                self._open(port)
            for feed in self.feeds.values():
                self._attach(feed)
            self._enforce()
            self._settle()
            if self.program.record:
                plan = {
                    "feeds": [feed_to_plan(feed.config) for feed in self.feeds.values()],
                    "requests": self._requests,
                }
                self.recorder = self._undo.enter_context(Recorder(self.program.record, self.engine, plan))
            self._undo.callback(self.engine.detach)  # first of all: nobody turns while ports close
        except BaseException:
            self.engine.detach()  # else the ports refuse to close, and hide what went wrong
            self.close()
            raise

    def _bind(self) -> None:
        """Undo what the dead left on this host's NICs; have ours as they are asked for; split ports by
        queues."""
        if self._shared is not None:
            for port in self._ports:
                mine = self._shared[port.config.name]
                port.filter, port.binding = mine.filter, mine.binding
            return
        if any(port.kind == "xsk" and not port.config.options.get("opener") for port in self._ports):
            self.notes += restore()[1]
        opened: list[NodePort] = []
        for port in self._ports:
            if port.kind != "xsk":
                opened.append(port)
                continue
            assert port.spec is not None
            if port.config.options.get("opener"):
                opened.append(self._lent(port))
                continue
            port.binding = Binding(port.interface, port.config.nic)
            self._undo.callback(port.binding.close)
            named = port.spec.queues
            chosen = port.config.queues if named is None else tuple(named)
            queues = port.binding.prepare(chosen, self._flows())
            for run in _runs(queues):
                spec = dataclasses.replace(port.spec, queues=run)
                opened.append(dataclasses.replace(port, spec=spec))
        self._ports = opened

    @staticmethod
    def _lent(port: NodePort) -> NodePort:
        """A port by an opener has the queues that it is given, and changes nothing on the NIC."""
        assert port.spec is not None
        if port.config.nic != NicConfig():
            raise ConfigError(
                f"port {port.config.name}: with an opener, the NIC is not this program's to change"
            )
        runs = _runs(port.config.queues or ())
        if len(runs) > 1:
            raise ConfigError(f"port {port.config.name}: an opener lends queues in a row; make it two ports")
        named = port.spec.queues or (runs[0] if runs else None)
        return dataclasses.replace(port, spec=dataclasses.replace(port.spec, queues=named))

    def _flows(self) -> list[Flow]:
        channels = [channel for feed in self.feeds.values() for channel in feed.channels]
        return [
            Flow(dst=line.address, dport=line.port, src=line.source or "", channel=number)
            for number, channel in enumerate(channels)
            for line in channel.config.lines
        ]

    def _settle(self) -> None:
        self.notes += self._nic_times.notes
        if self._shared is not None:
            return
        for binding in self._bindings():
            binding.note_far_cores([] if self.program.cpu is None else [self.program.cpu])
            binding.settle(binding.queues)
            self.notes += binding.notes
        self.notes += [
            f"{port.config.name} sends by {port.port.way}"
            for port in self._ports
            if port.config.options.get("tx", "socket") != "socket"
        ]
        for note in self.notes:
            log.info("%s", note)

    def _bindings(self) -> list[Binding]:
        return list({id(port.binding): port.binding for port in self._ports if port.binding}.values())

    # -- from process to process

    def _names(self) -> list[tuple[str, str]]:
        """The ports by name, with their queues where they are told."""
        return [
            (port.config.name, f"{port.kind}:{port.interface}" + (f":{span(queues)}" if queues else ""))
            for port in self._ports
            for queues in [port.spec.queues if port.spec else None]
        ]

    def _filter_words(self) -> dict[str, dict[str, Any]]:
        """The settings of the filter of each AF_XDP port that is not an opener's."""
        return {
            port.config.name: filter_words(port.config.options)
            for port in self._ports
            if port.kind == "xsk" and not port.config.options.get("opener")
        }

    def offer(self, *, replace: bool = False) -> Offer:
        """Offer the ports at the ``[handover]`` socket; see :meth:`hand_over`. Raises SetupError."""
        if not self.program.handover:
            raise ConfigError('no handover: add [handover] with socket = "PATH"')
        replace = replace or self._takeover is not None
        return Offer(self.program.handover, self._names(), self._filter_words(), replace=replace)

    def hand_over(self, offer: Offer, connection: socket.socket) -> bool:
        """Give every port to the process that asked. True: this node has let go of them, and can still say
        what it counted; False: the other failed before it had them, and this node stands as before, its
        thread ended: start it again. LocalProtocolError: it has TCP connections, which do not move."""
        if any(streams.unfinished for streams in self._tcp.values()):
            raise LocalProtocolError("TCP connections do not move to another process: close them first")
        self.stop()
        handed: list[Handed] = []
        try:
            for port in self._ports:
                handed.append(self._handed_port(port))
            if not offer.give(connection, handed):
                return False
        finally:
            for one in handed:
                one.close()
        self._handed_over = True
        for steer in self.filters:
            steer.hand_to(offer.taken_by)
        self.engine.detach()
        for port in self._ports:
            if port.lease is not None:
                port.lease.part()
            port.port.close()
        offer.gone(connection)
        return True

    def _handed_port(self, port: NodePort) -> Handed:
        lease, parts = port.lease, snapshot(port.port)
        try:
            if lease is not None:
                held, rules, mode, pins = [], [], "none", None
            else:
                assert port.filter is not None
                held, mode, pins = port.filter.fds(), port.filter.mode, port.filter.pin_dir
                rules = [rule.id for rule in port.filter.rules if rule.group == port.config.name]
            return Handed(
                name=port.config.name,
                port=port.interface,
                parts=parts,
                filter_fds={place: os.dup(fd) for place, fd in enumerate(held) if fd >= 0},
                mode=mode,
                pin_dir=str(pins) if pins else None,
                rules=rules,
                lease=lease.describe() if lease is not None else None,
            )
        except BaseException:
            parts.close()
            raise

    def _attach(self, feed: Feed) -> None:
        port = self._ports[0]
        local, sport = "0.0.0.0", 0
        if any(channel.config.request for channel in feed.channels):
            local, sport = self._request_source(port, feed)
            self._requests[feed.name] = (local, sport)
        self.engine.attach_feed(feed, via=port.index, request_port=sport, local=local)

    # -- running

    def run(self, **options: Any) -> Iterator[Batch]:
        """Batches, one call into C each; see :meth:`Engine.run`. Interfaces that come back are opened
        again between two batches: see :meth:`link_events`."""
        self.build()
        return self.engine.run(look=self._look if self._life is not None else None, **options)

    def start(self, *, cpu: int | None = None, **options: Any) -> Runner:
        """Turn on a native thread of its own; see :meth:`Engine.start`. What the program's ``placement`` asks
        for is held until the node is closed. SetupError: it is not allowed."""
        self.build()
        if self.program.publish is not None and self.program.publish.tcp and self.engine.publication is None:
            self.streams().publish()
        wanted = self.program.placement
        if self.placed is None and (wanted.lock_memory or wanted.cpu_latency is not None):
            self.placed = self._undo.enter_context(Placed(wanted))
            self.notes += self.placed.notes
        options.setdefault("rt_priority", wanted.rt_priority)
        return self.engine.start(cpu=cpu, **options)

    def _look(self) -> None:
        super()._look()
        for streams in self._tcp.values():
            streams.look()

    @property
    def running(self) -> bool:
        """The native thread turns."""
        runner = self.engine.runner
        return runner is not None and runner.running

    @property
    def requests(self) -> dict[str, tuple[str, int]]:
        """By feed that asks again: the local address and port that it asks from."""
        return dict(self._requests)

    def stop(self) -> int:
        """End the native thread. Returns 0, or -errno of what ended it before."""
        return self.engine.runner.stop() if self.engine.runner else 0

    def stats(self) -> dict[str, Any]:
        """Everything that is counted: engine, ports, hosts, feeds, and the filters' rules."""
        stats = self.engine.stats()
        stats["links"] = self._life.stats() if self._life is not None else {}
        stats["filters"] = {
            p.config.name: dataclasses.asdict(counting.counters())
            for p in self._ports
            if (counting := p.filter or p.lease) is not None
        }
        stats["tcp"] = {name: streams.stats() for name, streams in self._tcp.items()}
        stats["phc"] = self._nic_times.stats()
        stats["leases"] = {p.config.name: repr(p.lease) for p in self._ports if p.lease}
        return stats

    def missing(self) -> list[Missing]:
        """Frames that our filters sent to queues without a socket of ours, and the mend of each. Brings up to
        date what other processes see of that and of the ports."""
        self.engine.show_ports()
        found = []
        for steer in self.filters:
            mine = [port for port in self._ports if port.filter is steer]
            queues = {queue for port in mine for queue in port.port.queues}
            groups = {port.config.name for port in mine}
            for one in missing(steer.ifname, steer.counters(), queues):
                if one.group in groups:  # a pinned filter serves others, too
                    found.append(one)
                    self._show_missing(one)
        return found

    def _show_missing(self, one: Missing) -> None:
        """Let `xdpstack stats` see it: its own word in the first engine's segment."""
        if self.engine.segment is None:
            return
        name = f"filter.{one.group}.no_socket.{one.interface}.{one.queue}"
        if name not in self._words:
            self._words[name] = self.engine.segment.counter(name, "packets")
        self._words[name][0] = one.packets

    def judge(self, *tell: Callable[[Alert], object]) -> Judge:
        """The program's ``[[alert]]`` rules, for the loop that waits for its engine and calls ``look`` there.
        ``tell``: who hears of each alert, besides the log and whoever watches the engine."""
        return Judge(self.program.alerts, [str(os.getpid())], self.engine.segment, tell)

    @property
    def ports(self) -> list[Any]:
        """The open ports."""
        return [port.port for port in self._ports if port.port is not None]

    @property
    def filters(self) -> list[Filter]:
        """The XDP filters of the node's AF_XDP ports, one an interface."""
        return list({id(port.filter): port.filter for port in self._ports if port.filter}.values())

    def close(self) -> None:
        """Everything put back, in reverse order."""
        self._undo.close()

    def __repr__(self) -> str:
        ports = ", ".join(port.config.port for port in self._ports)
        return f"<Node {ports}: {', '.join(self.feeds) or 'no feeds'}>"


def _runs(queues: Sequence[int]) -> list[range]:
    """Ranges of consecutive numbers: a port of AF_XDP has one."""
    runs: list[range] = []
    for queue in queues:
        if runs and runs[-1].stop == queue:
            runs[-1] = range(runs[-1].start, queue + 1)
        else:
            runs.append(range(queue, queue + 1))
    return runs


def _running(program: Program) -> Takeover:
    if not program.handover:
        raise ConfigError('no handover: add [handover] with socket = "PATH"')
    return Takeover(program.handover)


def _frames(capture: PcapPort) -> Iterator[memoryview]:
    while frames := capture.receive(64, lib.XDS_NEVER):
        yield from (frame.data for frame in frames)


def open(
    what: str | Path | Program,
    *,
    record: str | None = None,
    engine: EngineConfig | None = None,
    takeover: bool = False,
    force: bool = False,
    **port: Any,
) -> Node:
    """A node from a port specification (``xsk:eth0:3``), a TOML file or a :class:`Program`. Further
    keys go to the port; ``opener="/run/xdpstack/opener.sock"`` borrows it from an opener. ``takeover``: of
    the process that runs this program now, which ends. ``force``: replaces what somebody else attached.
    Raises ConfigError and SetupError."""
    if isinstance(what, Program):
        return Node(what, takeover=_running(what) if takeover else None, force=force)
    if str(what).endswith(".toml"):
        program = configuration.load(what)
        return Node(program, takeover=_running(program) if takeover else None, force=force)
    return Node(
        Program(
            ports=(configuration.port_config(str(what), options=port),),
            feeds=(),
            engine=engine or EngineConfig(),
            record=record,
        ),
        force=force,
    )
