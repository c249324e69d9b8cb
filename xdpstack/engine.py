"""The engine: ready ports in, batches out. It never touches the host; :mod:`xdpstack.node` does.

Stepped: ``for batch in engine.run()``, one call into C a batch. Free-running: ``engine.start(cpu=1)``,
then batches come out of a ring (:class:`Published`). Views of a batch live until the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xdpstack._ffi import check, ffi, lib, names
from xdpstack.batch import Batch, Event, Published
from xdpstack.clock import calibrate
from xdpstack.closing import Closing
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, SetupError
from xdpstack.feed import Channel, Feed, FeedConfig, ip_to_int, refuse_faults, struct_dict
from xdpstack.memory import Arena, Pointer
from xdpstack.port import Subscription
from xdpstack.port.base import NEVER, raise_code
from xdpstack.publish import CommandsConfig, Publication, PublishConfig, command, datagram_command
from xdpstack.ring import Ring
from xdpstack.sessions import SessionConfig
from xdpstack.sock_figures import SockFigures
from xdpstack.stages import CONNECTION, ENDPOINT, FEED, ConnectionStages, StageHists
from xdpstack.stats import Histogram, Segment, tap_path
from xdpstack.tcp import address16
from xdpstack.visible import Ports, sock_name

__all__ = ["Batch", "Engine", "EngineConfig", "Event", "Published", "Runner", "SlowTurn"]

_LOOK_NS = 20_000_000
_TAP_BYTES = 1 << 19  # of refused frames that wait for `capture --dropped`
_CLOCK_GAUGES = frozenset(name for name, _ in ffi.typeof("struct xds_clock_stats").fields) - {
    "ticks",
    "steps",
}
_FEED_HISTS = lib.XDS_ENGINE_FEEDS * (2 + len(FEED))
_ENDPOINTS = 8
"""UDP endpoints that have histograms of their own; those behind them share."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Bounds of one engine. Counts are entries of one batch."""

    max_updates: int = 1 << 16
    max_messages: int = 0
    max_events: int = 4096
    burst: int = 64
    outbox_bytes: int = 1 << 16
    slow: float = 10e-6
    """An alert where a busy turn over live ports took longer (``Engine.alerts``); seconds, 0 is off."""
    alert_every: float = 1.0
    """At most one alert in so many seconds; the others are counted, and the next alert speaks of them."""
    stages: bool = True
    """Stamp the stages of each message (:mod:`xdpstack.stages`)."""
    stage_warm_up: int = 64
    """Packets of a feed, or messages of a connection, that its stages' histograms leave out at first."""
    stage_connections: int = 8
    """Connections at once that have histograms of their own; all others share one set."""
    name: str = ""
    """Publish counters and histograms in shared memory under this name (``xdpstack stats``)."""

    def __post_init__(self) -> None:
        refuse_faults(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SlowTurn:
    """An alert: a turn that took longer than ``EngineConfig.slow``. Times in ns."""

    turn: int
    ns: int
    """CLOCK_TAI when it began."""
    took_ns: int
    """From taking its packets to sending what came of them."""
    packets: int
    updates: int
    since: int
    """Slow turns after the alert before that were only counted."""
    since_ns: int
    """The longest of those."""

    def __str__(self) -> str:
        text = f"slow turn {self.turn:,}: {self.took_ns / 1000:,.1f} µs"
        text += f" for {self.packets:,} packets, {self.updates:,} updates"
        if self.since:
            text += f"; {self.since:,} more since the last alert, up to {self.since_ns / 1000:,.1f} µs"
        return text


CLAIMS = names("xds_host_claim_state", "XDS_HOST_")


class Host:
    """The host core of one link: its addresses, groups, neighbours, and reasons."""

    core = Pointer()

    def __init__(
        self,
        arena: Arena,
        *,
        promiscuous: bool = False,
        mac: str = "00:00:00:00:00:00",
        addresses: Sequence[str] = (),
        groups: Sequence[str] = (),
        sources: Sequence[tuple[str, str]] = (),
        gateway: str = "0.0.0.0",
        gateway6: str = "",
        routers: bool = False,
        reports: bool = False,
        answer_arp: bool = False,
        accept_partial_checksum: bool = False,
        rewritten: bool = False,
        mtu: int = 0,
        fragments: int = 0,
        seed: int = 0,
    ) -> None:
        """``mtu``: bytes of a packet that may go out, 0: 1500. ``fragments``: datagrams that may be put
        together at once. ``addresses`` are own ones with their prefix (``10.0.0.2/24``, ``2001:db8::2/64``);
        ``gateway6`` is the way to where no prefix of IPv6 leads. ``promiscuous``
        takes every destination, as captures need; ``rewritten`` counts wrong UDP checksums there, and goes
        on: who publishes a capture often replaces its addresses. ``answer_arp``: the addresses are ours
        alone, not the kernel's. ``sources``: (group, source) of groups that are wanted from these alone.
        ``routers``: what they advertise is taken; ``reports``: groups are reported by IGMP and MLD."""
        self.arena = arena
        raw = ffi.new("struct xds_host_config *")
        raw.promiscuous, raw.groups = promiscuous, max(16, 2 * (len(groups) + len(sources)))
        raw.gateway, raw.mtu, raw.fragments = ip_to_int(gateway), mtu, fragments
        raw.seed = seed or int.from_bytes(os.urandom(8), "little")
        raw.flags = (0 if answer_arp else lib.XDS_HOST_NO_ARP_ANSWER | lib.XDS_HOST_NO_ECHO) | (
            lib.XDS_HOST_PARTIAL_CHECKSUM if accept_partial_checksum else 0
        )
        raw.flags |= lib.XDS_HOST_REWRITTEN if rewritten else 0
        raw.flags |= (lib.XDS_HOST_ROUTERS if routers else 0) | (lib.XDS_HOST_REPORTS if reports else 0)
        raw.mac = bytes.fromhex(mac.replace(":", ""))
        self.core = ffi.cast("struct xds_host *", arena.alloc(lib.xds_host_size(raw)))
        check(lib.xds_host_init(self.core, raw), "host core")
        for address in addresses:
            ip, _, prefix = address.partition("/")
            length = int(prefix or (128 if ":" in ip else 32))
            check(lib.xds_host_add_address6(self.core, address16(ip), length), f"address {address}")
        for group in groups:
            check(lib.xds_host_join6(self.core, address16(group)), f"group {group}")
        for group, source in sources:
            code = lib.xds_host_join_source6(self.core, address16(group), address16(source))
            check(code, f"group {group} of {source}")
        if gateway6:
            route = (bytes(16), 0, address16(gateway6), bytes(16), 0)
            check(lib.xds_host_add_route6(self.core, *route), f"gateway {gateway6}")

    def add_neighbour(self, address: str, mac: str) -> None:
        """A neighbour that needs neither ARP nor NDP and never ages."""
        raw = ffi.new("uint8_t[6]", bytes.fromhex(mac.replace(":", "")))
        check(lib.xds_host_add_neighbour6(self.core, address16(address), raw), f"neighbour {address}")

    def claim(self, address: str, interval: float, now: int = 0) -> None:
        """Probe for an own address before its use: three times, ``interval`` s or more apart (RFC 5227), or
        once over IPv6 (RFC 4862)."""
        code = lib.xds_host_claim6(self.core, address16(address), int(interval * 1e9), now)
        check(code, f"claim {address}")

    def claimed(self, address: str) -> tuple[str, str]:
        """``owned``, ``probing`` or ``taken``, and the MAC of who had it too, if anybody had."""
        mac = ffi.new("uint8_t[6]")
        state = check(lib.xds_host_claimed6(self.core, address16(address), mac), f"own address {address}")
        return CLAIMS[state], bytes(mac).hex(":") if any(mac) else ""

    def stats(self) -> dict[str, Any]:
        """Frames by outcome: received = delivered + the sum of ``reasons``."""
        raw = ffi.new("struct xds_host_stats *")
        lib.xds_host_stats(self.core, raw)
        words = names("xds_host_reason", "XDS_HOST_")
        reasons = {words[i]: raw.reasons[i] for i in range(1, lib.XDS_HOST_REASONS) if raw.reasons[i]}
        counters = {name: value for name, value in struct_dict(raw).items() if name != "reasons"}
        return {**counters, "delivered": raw.reasons[0], "reasons": reasons}


def _summaries(hists: StageHists | None) -> dict[str, Any]:
    found = hists.by_stage if hists else {}
    return {word: dataclasses.asdict(one.summary()) for word, one in found.items()}


class Engine(Closing):
    """Ports, feeds and the turn. Owns the memory of its cores; borrows ready ports."""

    core = Pointer()

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self.arena = Arena()
        self.feeds: list[Feed] = []
        self.ports: list[Any] = []
        self.hosts: dict[int, Host] = {}
        self._keep: list[Any] = []  # hooks and rings that C points to
        raw = ffi.new("struct xds_engine_config *")
        raw.max_updates, raw.max_messages = self.config.max_updates, self.config.max_messages
        raw.max_events, raw.burst = self.config.max_events, self.config.burst
        raw.outbox_bytes, raw.slow_ns = self.config.outbox_bytes, int(self.config.slow * 1e9)
        raw.alert_ns = int(self.config.alert_every * 1e9)
        raw.flags = 0 if self.config.stages else lib.XDS_ENGINE_NO_STAGES
        size = lib.xds_engine_size(raw)
        if not size:
            raise ConfigError(
                "the engine's bounds contradict themselves (burst above 64, or no room for updates)"
            )
        self.core = ffi.cast("struct xds_engine *", self.arena.alloc(size))
        check(lib.xds_engine_init(self.core, raw), "engine")
        self.clock = ffi.cast("struct xds_clock *", self.arena.alloc(ffi.sizeof("struct xds_clock")))
        calibrate(self.clock)
        lib.xds_engine_set_clock(self.core, self.clock)
        hists = _FEED_HISTS + (self.config.stage_connections + 1) * len(CONNECTION)
        hists += (_ENDPOINTS + 1) * len(ENDPOINT)
        self.endpoints: dict[str, StageHists] = {}
        """Stages of UDP endpoints, by ``ADDRESS:PORT``; ``rest`` is of those behind the first eight."""
        self.segment = Segment(self.config.name, hists=hists) if self.config.name else None
        if self.segment:
            self._mirror(
                "engine",
                "struct xds_engine_stats",
                lib.XDS_MIRROR_ENGINE,
                gauges={"slow_worst_ns"},
                units={"busy_ns": "ns", "slow_worst_ns": "ns"},
            )
            self._mirror(
                "clock",
                "struct xds_clock_stats",
                lib.XDS_MIRROR_CLOCK,
                gauges=_CLOCK_GAUGES,
                units={word: word.rpartition("_")[2] for word in _CLOCK_GAUGES if "_" in word},
            )
            self._tap = Ring.create(tap_path(self.segment.path), _TAP_BYTES)
            lib.xds_engine_set_tap(self.core, self._tap.pointer)
        self._visible = Ports(self.core, self.segment, self.ports) if self.segment else None
        self._sock_streams: dict[str, int] = {}
        self._alert_cursor = ffi.new("uint64_t *")
        self._out = ffi.new("struct xds_batch *")
        self._batch: Batch | None = None
        self.connections: ConnectionStages | None = None
        self.runner: Runner | None = None
        self.publication: Publication | None = None
        self._publish: tuple[PublishConfig, CommandsConfig | None, Sequence[SessionConfig]] | None = None
        self._published_streams: dict[int, bool] = {}

    # -- set-up

    def add_link(self, port: Any, **host: Any) -> int:
        """Add a port that moves frames, with a host core of its own. Returns its index."""
        core = Host(self.arena, **host)
        index = check(lib.xds_engine_add_link(self.core, port.handle, core.core), f"cannot add {port!r}")
        port.hold()
        self.ports.append(port)
        self.hosts[index] = core
        if self._visible:
            self._visible.add(host=True)
        return index

    def add_sock(self, port: Any) -> int:
        """Add a port of kernel sockets. Returns its index."""
        index = check(lib.xds_engine_add_sock(self.core, port.handle), f"cannot add {port!r}")
        port.hold()
        self.ports.append(port)
        if self._visible:
            self._visible.add(host=False)
        return index

    def show_stack(self, index: int) -> None:
        """Port ``index`` has a TCP stack now: other processes see its counters."""
        if self._visible:
            self._visible.add_stack(index)

    def show_sock_streams(self, interface: str) -> SockFigures | None:
        """Where other processes see TCP over kernel sockets; None: nobody sees this engine."""
        if self.segment is None:
            return None
        name, number = sock_name(interface), self._sock_streams.get(interface, 0)
        self._sock_streams[interface] = number + 1
        return SockFigures(self.segment, f"{name}#{number}" if number else name)

    def keep_connection_stages(self) -> ConnectionStages | None:
        """Histograms of its connections' stages, made once; None where stages are switched off."""
        if self.connections is None and self.config.stages:
            warm_up = self.config.stage_warm_up
            made = ConnectionStages(self.segment, self.config.stage_connections, warm_up=warm_up)
            check(lib.xds_engine_set_conn_stages(self.core, made.raw, made.count), "stages of connections")
            self.connections = made
        return self.connections

    def swap_link(self, index: int, port: Any, mac: str) -> Any:
        """Put ``port`` in the place of port ``index``, whose interface was made anew with the address
        ``mac``. Returns the port that was there, its owner's to close. Not while the engine turns: see
        :meth:`paused`; LocalProtocolError while :attr:`holds_frames`."""
        code = lib.xds_engine_swap_link(self.core, index, port.handle, bytes.fromhex(mac.replace(":", "")))
        if code == lib.XDS_ESTATE:
            raise LocalProtocolError("the last batch was cut and still points into frames: turn again first")
        check(code, f"swap {self.ports[index]!r}")
        port.hold()
        old, self.ports[index] = self.ports[index], port
        old.let_go()
        return old

    def claim(self, index: int, address: str, interval: float) -> None:
        """Have port ``index`` probe for an own address before its use: see :meth:`Host.claim`."""
        self.hosts[index].claim(address, interval)
        lib.xds_engine_touch(self.core)

    @property
    def holds_frames(self) -> bool:
        """The last batch was too small: a block of the next one points into a port's frames."""
        return bool(lib.xds_engine_holds_frames(self.core))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The native thread, if one turns, stands still within the block, and goes on after it."""
        running = self.runner is not None and self.runner.pause()
        yield  # after an error nothing turns: what was half done is not polled
        if running and self.runner is not None:
            self.runner.resume()

    def add_feed(self, config: FeedConfig, **requests: Any) -> Feed:
        """Make a feed and attach it: see :meth:`attach_feed`."""
        return self.attach_feed(Feed(config, self.arena), **requests)

    def attach_feed(self, feed: Feed, *, via: int = 0, request_port: int = 0, local: str = "0.0.0.0") -> Feed:
        """Add a feed with its channels and lines. Requests leave by port ``via`` from ``request_port``;
        their answers come to ``local``."""
        config, what = feed.config, f"feed {feed.name}"
        try:
            feed.number = check(
                lib.xds_engine_add_feed(
                    self.core,
                    feed.decoder,
                    feed.memory,
                    feed.books.core if feed.books is not None else ffi.NULL,
                ),
                what,
            )
        except ValueError:
            raise ConfigError(
                f"{what}: a batch must hold the updates of the largest packet; raise max_updates"
            ) from None
        if feed.owners:
            lib.xds_engine_set_owners(
                self.core, feed.number, ffi.cast("uint8_t *", feed.owners), config.max_instruments
            )
        for position, channel in enumerate(feed.channels):
            ask = channel.config.request
            number = check(
                lib.xds_engine_add_channel(
                    self.core,
                    feed.number,
                    channel.core,
                    0,
                    0,
                    0,
                    0,
                ),
                what,
            )
            if ask:
                server = (address16(ask.address), ask.port, via, request_port)
                check(lib.xds_engine_set_server6(self.core, number, *server), f"{what}: requests to {ask}")
            for line, group in enumerate(channel.config.lines):
                self._add_line(number, line, group, what)
            if ask:
                answers = Subscription(address=local, port=request_port)
                self._add_line(number, len(channel.config.lines), answers, what)
            if self.segment:
                self._mirror_channel(feed, channel, number, position)
        decoded, applied = self._histogram(feed, "decoded"), self._histogram(feed, "applied")
        lib.xds_engine_set_hist(self.core, feed.number, decoded.pointer, applied.pointer)
        feed.ages = {"decoded": decoded, "applied": applied}
        if self.config.stages:
            feed.stages = StageHists(
                self.segment, f"feed.{feed.name}", FEED, warm_up=self.config.stage_warm_up
            )
            lib.xds_engine_set_stages(self.core, feed.number, feed.stages.pointer)
        if self.segment and feed.books is not None:
            self._mirror(
                f"feed.{feed.name}.books",
                "struct xds_books_stats",
                lib.XDS_MIRROR_BOOKS,
                feed.number,
                gauges={"orders", "levels", "orders_max", "levels_max", "memory_bytes"},
                words={"reasons": names("xds_book_reason", "XDS_BOOK_")},
            )
        self.feeds.append(feed)
        return feed

    def _histogram(self, feed: Feed, stage: str) -> Histogram:
        return self.segment.hist(f"feed.{feed.name}.{stage}") if self.segment else Histogram()

    def _mirror(self, prefix: str, ctype: str, what: int, index: int = 0, sub: int = 0, **how: Any) -> None:
        """Let other processes read a struct of counters of the engine's."""
        assert self.segment is not None
        words = ffi.cast("uint64_t *", self.segment.struct(prefix, ctype, **how))
        check(lib.xds_engine_mirror(self.core, words, what, index, sub), f"mirror {prefix}")

    def _mirror_channel(self, feed: Feed, channel: Channel, number: int, position: int) -> None:
        prefix = f"feed.{feed.name}.channel.{position}"
        gauges = {"next_seq", "gaps_open", "units_open"}
        self._mirror(prefix, "struct xds_channel_stats", lib.XDS_MIRROR_CHANNEL, number, gauges=gauges)
        for line in range(len(channel.config.lines) + (1 if channel.config.request else 0)):
            self._mirror(
                f"{prefix}.line.{line}",
                "struct xds_line_stats",
                lib.XDS_MIRROR_LINE,
                number,
                line,
                gauges={"buffered"},
            )

    def _add_line(self, channel: int, line: int, group: Subscription, what: str) -> None:
        address, source = address16(group.address), address16(group.source) if group.source else bytes(16)
        rc = lib.xds_engine_add_line6(self.core, channel, line, address, group.port, source)
        if rc == -errno.EEXIST:
            raise ConfigError(f"{what}: two lines listen to {group}")
        check(rc, f"{what}: line {group}")

    def add_udp(self, address: str, port: int, handler: Any = ffi.NULL, context: Any = ffi.NULL) -> None:
        """Datagrams to that address and port go to a native handler, or into ``batch.datagrams``.
        ``0.0.0.0``: any of IPv4, ``::``: any of IPv6."""
        self._keep += [handler, context]
        name = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        code = lib.xds_engine_add_udp6(self.core, address16(address), port, handler, context)
        number = check(code, f"endpoint {name}")
        if not self.config.stages:
            return
        name = name if len(self.endpoints) < _ENDPOINTS else "rest"
        if name not in self.endpoints:
            warm_up = self.config.stage_warm_up
            self.endpoints[name] = StageHists(self.segment, f"udp.{name}", ENDPOINT, warm_up=warm_up)
        lib.xds_engine_set_udp_stages(self.core, number, self.endpoints[name].pointer)

    def set_hook(self, hook: Any, context: Any = ffi.NULL) -> None:
        """Call ``hook`` (a cffi function pointer, or anything with ``.address`` such as a
        ``numba.cfunc``) with each run of updates, between books and sending."""
        address = getattr(hook, "address", None)
        pointer = ffi.cast("xds_hook", address) if address is not None else hook
        self._keep += [hook, context]
        lib.xds_engine_set_hook(
            self.core, pointer, ffi.cast("void *", context) if context is not None else ffi.NULL
        )

    def follow_turns(self, queue: int) -> None:
        """Follow the turn blocks of a recording, on that interface number of its capture."""
        lib.xds_engine_follow_turns(self.core, queue)

    def keep_journal(self, size: int) -> None:
        """Keep a copy of every delivered block, up to ``size`` bytes: see :meth:`journal`."""
        self._journal = ffi.cast("uint8_t *", self.arena.alloc(size))
        self._journal_size = size
        lib.xds_engine_set_journal(self.core, self._journal, size)

    def journal(self) -> bytes:
        """The blocks delivered so far: ``struct xds_journal_entry``, then its bytes padded to 8, each.
        CapacityError when they did not fit."""
        used = int(lib.xds_engine_journal(self.core))
        if used > self._journal_size:
            raise CapacityError(f"the journal of {self._journal_size:,} bytes is too small for {used:,}")
        return bytes(ffi.buffer(self._journal, used))

    # -- free-running

    def publish_streams(self, port: int, *, connects: bool) -> None:
        """Have :meth:`start` publish the connections of a port that are given. ``connects``: commands may
        open some. See :meth:`Streams.publish`."""
        if self._publish is None or self.publication is not None:
            raise LocalProtocolError("say first that the engine publishes, and start it after this")
        self._published_streams[port] = connects

    def publish(
        self,
        publish: PublishConfig,
        commands: CommandsConfig | None = None,
        sessions: Sequence[SessionConfig] = (),
    ) -> None:
        """Have :meth:`start` publish by a tape that other processes read, and take their ``commands``. By
        these, connections may be opened as one of ``sessions``."""
        if self.publication is not None:
            raise LocalProtocolError("the engine publishes already")
        self._publish = publish, commands, tuple(sessions)

    def start(
        self, *, cpu: int | None = None, ring_bytes: int = 8 << 20, rt_priority: int = 0, nap_us: int = 0
    ) -> Runner:
        """Turn on a native thread, pinned to ``cpu``, that publishes every batch by a private ring."""
        if self.runner is not None and self.runner.running:
            raise LocalProtocolError("the engine is running")
        if self._publish is not None and self.publication is None:
            names = [feed.name for feed in self.feeds]
            self.publication = Publication(names, *self._publish, segment=self.segment)
            for port, connects in self._published_streams.items():
                self.publication.streams(self.core, port, connects=connects)
        self.runner = Runner(self, cpu=cpu, ring_bytes=ring_bytes, rt_priority=rt_priority, nap_us=nap_us)
        return self.runner

    # -- stepped

    def _attached(self) -> None:
        if not self.ports:
            raise LocalProtocolError("the engine has no port, or was closed")

    @property
    def batch(self) -> Batch:
        """The batch of the last turn: one object, refilled by each."""
        if self._batch is None:
            check(lib.xds_engine_poll(self.core, 0, self._out), "first turn")
            self._batch = Batch(self.feeds, self.config, self._out, self.arena)
        return self._batch

    def turn(self, now: int = 0) -> Batch:
        """One turn, at ``now`` (CLOCK_TAI ns; 0 reads the clock)."""
        self._attached()
        check(lib.xds_engine_turn(self.core, now, self._out), "turn")
        if self._batch is None:
            self._batch = Batch(self.feeds, self.config, self._out, self.arena)
        return self._batch

    def run(
        self,
        *,
        spins: int = 10_000,
        idle: Callable[[], bool] | None = None,
        look: Callable[[], object] | None = None,
    ) -> Iterator[Batch]:
        """Batches until every port has ended. ``idle`` is called after ``spins`` empty turns; a true
        result ends the loop. ``look`` is called between two batches, every 20 ms or, when there are
        none, after ``spins`` turns. The batches are views: take what must outlive the next."""
        self._attached()
        out, poll, core = self._out, lib.xds_engine_poll, self.core
        batch: Batch | None = self._batch
        due = 0 if look is not None else NEVER
        while True:
            count = poll(core, spins, out)
            if count < 0:
                raise_code(count, f"read {', '.join(map(repr, self.ports))}")
            if batch is None:
                batch = self._batch = Batch(self.feeds, self.config, out, self.arena)
            if count or out.n_updates or out.n_events:
                yield batch
            elif idle is not None and idle():
                return
            if out.end:
                break
            if out.now >= due and look is not None:
                due = out.now + _LOOK_NS
                look()
        yield from self.finish()

    def finish(self) -> Iterator[Batch]:
        """What windows still hold when the input has ended; what is missing is given up."""
        more = 1
        while more:
            more = check(lib.xds_engine_finish(self.core, self._out), "finish")
            if self._out.n_updates or self._out.n_events:
                if self._batch is None:
                    self._batch = Batch(self.feeds, self.config, self._out, self.arena)
                yield self._batch

    def send(self, data: bytes, to: Subscription, *, sport: int, port: int = 0) -> None:
        """Send one datagram from an engine port."""
        rc = lib.xds_engine_send6(self.core, port, address16(to.address), to.port, sport, data, len(data))
        check(rc, f"send to {to}")

    def alerts(self) -> list[SlowTurn]:
        """Turns that took longer than ``EngineConfig.slow`` since the last call, at most one in
        ``alert_every``; the last 15 are kept. Costs the turn nothing: call it from any thread, and do with
        them what you like (``xdpstack run`` and ``feed listen`` print a line each)."""
        found, raw = [], ffi.new("struct xds_slow_turn *")
        while self._alert_cursor != ffi.NULL and lib.xds_engine_slow(self.core, self._alert_cursor, raw):
            found.append(SlowTurn(**struct_dict(raw)))
        return found

    def show_ports(self) -> None:
        """Let other processes see the ports' counters as they are now: not for the engine's own thread, see
        :mod:`xdpstack.visible`."""
        if self._visible:
            self._visible.show()

    def stats(self) -> dict[str, Any]:
        """Counters of the engine, its ports, hosts and feeds."""
        raw = ffi.new("struct xds_engine_stats *")
        lib.xds_engine_stats(self.core, raw)
        return {
            "engine": struct_dict(raw),
            "ports": [{"port": repr(port), **port.stats()} for port in self.ports],
            "hosts": {index: host.stats() for index, host in self.hosts.items()},
            "feeds": {
                feed.name: {
                    "decoder": feed.stats(),
                    "books": feed.books.stats() if feed.books is not None else None,
                    "channels": [channel.stats() for channel in feed.channels],
                    "age_ns": {
                        stage: dataclasses.asdict(ages.summary()) for stage, ages in feed.ages.items()
                    },
                    "stage_ns": _summaries(feed.stages),
                }
                for feed in self.feeds
            },
            "udp": {name: {"stage_ns": _summaries(one)} for name, one in self.endpoints.items()},
        }

    def detach(self) -> None:
        """End the thread and let the ports go, so that their owner may close them. No turn after it."""
        if self.runner is not None:
            self.runner.close()
            self.runner = None
        if self.publication is not None:
            for port in self._published_streams:
                lib.xds_engine_set_streams(self.core, port, ffi.NULL, ffi.NULL)
            self.publication.close()
            self.publication = None
        while self.ports:
            self.ports.pop().let_go()

    def close(self) -> None:
        """Detach, and give the memory back. Ports are their owner's to close."""
        self.detach()
        if self._batch is not None:
            self._batch.close()
        self._batch = None
        self._out = self._alert_cursor = ffi.NULL
        if self.segment:
            lib.xds_engine_reflect(self.core)
            self._tap.close(unlink=True)
            self.segment.close()
            self.segment = self._visible = None
        for feed in self.feeds:
            feed.ages, feed.stages = {}, None
        self.endpoints.clear()
        with contextlib.suppress(BufferError):  # what a kept view looks at stays mapped until the view ends
            self.arena.close()

    def __repr__(self) -> str:
        return (
            f"<Engine: {len(self.ports)} ports, {', '.join(feed.name for feed in self.feeds) or 'no feeds'}>"
        )


def _not_started(code: int, cpu: int | None, rt_priority: int) -> Exception:
    """Why the engine's thread was refused."""
    tried, reason = "start the engine's thread", os.strerror(-code) if code > -4096 else str(code)
    if code == -errno.EPERM and rt_priority:
        remedy = f"run it by sudo, with CAP_SYS_NICE, or after ulimit -r {rt_priority}"
        return SetupError(f"{tried} with real-time priority {rt_priority}", reason, remedy, -code)
    if code == -errno.EINVAL and cpu is not None:
        cores = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        return SetupError(f"{tried} on core {cpu}", reason, f"this process may use cores {cores}", -code)
    return SetupError(tried, reason, errno=-code)


class Runner:
    """A native thread that turns an engine. Iterate to take what it published."""

    def __init__(
        self, engine: Engine, *, cpu: int | None, ring_bytes: int, rt_priority: int, nap_us: int
    ) -> None:
        self._engine = engine
        self._ring, self._commands = Ring(ring_bytes), Ring(1 << 16)
        raw = ffi.new("struct xds_runner_config *")
        raw.cpu, raw.rt_priority = -1 if cpu is None else cpu, rt_priority
        raw.idle_spins, raw.nap_us = (1000, nap_us) if nap_us else (0, 0)
        self._core = ffi.cast("struct xds_runner *", engine.arena.alloc(lib.xds_runner_size()))
        check(
            lib.xds_runner_init(self._core, engine.core, self._ring.pointer, self._commands.pointer, raw),
            "free-running engine",
        )
        if engine.publication is not None:
            lib.xds_runner_publish(self._core, engine.publication.pointer)
        code = lib.xds_runner_start(self._core)
        if code < 0:
            self.close()
            raise _not_started(code, cpu, rt_priority)

    @property
    def running(self) -> bool:
        """The thread turns; false once every port has ended, or after a failure or stop."""
        if self._core == ffi.NULL:
            return False
        return bool(lib.xds_runner_state(self._core) == lib.XDS_RUNNER_RUNNING)

    @property
    def tid(self) -> int:
        """The thread's id, 0 before it runs and after close."""
        return int(lib.xds_runner_tid(self._core)) if self._core != ffi.NULL else 0

    def take(self) -> Iterator[Published]:
        """What was published since the last call; each is valid until the next is taken."""
        while records := self._ring.read():
            for record in records:
                yield Published(self._engine.feeds, record.data)
            self._ring.release()

    def send(self, data: bytes, to: Subscription, *, sport: int, port: int = 0) -> None:
        """Ask the thread to send one datagram. CapacityError: its command ring is full."""
        kind, data, fields = datagram_command(data, to)
        if not self._commands.write(0, command(kind, data, **fields, sport=sport, port=port)):
            raise CapacityError("the engine's command ring is full (64 KiB)")

    def pause(self) -> bool:
        """Let the thread end after its turn, until :meth:`resume`. False: it was not running."""
        return self.running and self.stop() == 0

    def resume(self) -> None:
        """Turn again, on a new thread with the same core and priority."""
        check(lib.xds_runner_start(self._core), "start the engine's thread again")

    def stop(self) -> int:
        """Ask the thread to end and wait. Returns 0, or -errno of what ended it. Twice is calm."""
        if self._core == ffi.NULL:
            return 0
        return int(lib.xds_runner_stop(self._core))

    def close(self) -> None:
        """Stop, and give the rings back."""
        if self._core == ffi.NULL:
            return
        self.stop()
        self._core = ffi.NULL
        self._ring.close()
        self._commands.close()
