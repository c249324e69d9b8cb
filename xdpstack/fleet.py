"""One engine a queue, from one configuration: a node for each queue of the ports, on threads or in processes.

    [engine]
    engines = "queue"             # one engine for each queue; of several ports the nth queue of each
    cpus = [2, 3]                 # in turn
    workers = "threads"           # or "processes"

What is the host's (the NIC's settings, the filter, its rules) is brought up once, here; each node has its own
socket, feeds, books, counters (``NAME.q3``) and recording (``FILE.q3``). A packet comes by one queue, so
nothing comes twice; the lines of a channel must come by the same queue to be arbitrated, so a channel of
several lines, or with a request server, needs ``steer`` and a NIC with flow rules. With several ports a
line is taken to come by one of them: what comes by two is seen by two engines.

    with fleet.open("trading.toml") as engines:
        for node, batch in engines.run():   # stepped, in turn; or engines.start()
            ...

Interfaces are followed like those of a node (:mod:`xdpstack.linklife`): one that comes back gets the NIC's
settings and the filter here, and then each engine opens its queue again.

Processes are forked one after the other, each ready before the next: two of them never publish rules at the
same time. They end with their parent, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from xdpstack import config as configuration
from xdpstack.alerts import Alert, Judge
from xdpstack.batch import Batch
from xdpstack.bpf import Filter
from xdpstack.closing import Closing
from xdpstack.config import PortConfig, Program
from xdpstack.errors import ConfigError, LocalProtocolError, SetupError
from xdpstack.lines import Lines
from xdpstack.linklife import LinkLife
from xdpstack.links import LinkEvent
from xdpstack.missing import Missing, missing
from xdpstack.nic import Binding, Flow, restore
from xdpstack.node import Node, Shared
from xdpstack.port import Subscription, parse_spec
from xdpstack.replay import summary as summary_of
from xdpstack.returning import LINK_WAIT, bring_back, leave, note_all, wants_larger
from xdpstack.stats import Segment
from xdpstack.steering import add_rule, steering

__all__ = ["Fleet", "Worker", "open"]

log = logging.getLogger("xdpstack.fleet")

READY_SECONDS = 30.0
"""That a worker may take to open its queue."""
END_SECONDS = 10.0
"""That a worker may take to end before it is killed."""
LOOK_SECONDS = 0.02
"""Between two looks at the interfaces, stepped."""


@dataclasses.dataclass(slots=True)
class _Side:
    """One port of a fleet: what of it is the host's."""

    config: PortConfig
    watched: str
    """Its interface, as it is called in the configuration."""
    named: range | None
    interface: str = ""
    """What that is called now."""
    queues: list[int] = dataclasses.field(default_factory=list)
    filter: Filter | None = None
    binding: Binding | None = None

    @classmethod
    def of(cls, config: PortConfig) -> _Side:
        spec = parse_spec(config.port)
        name = spec.interface or ""
        return cls(config, name, spec.queues, name)

    @property
    def bound(self) -> Binding:
        assert self.binding is not None
        return self.binding

    @property
    def steer(self) -> Filter:
        assert self.filter is not None
        return self.filter

    def place(self, channel: int) -> int | None:
        """Which of its queues, counted from 0, a channel comes by; None: any."""
        queue = self.bound.flow_queues.get(channel)
        return None if queue is None else self.queues.index(queue)


@dataclasses.dataclass(slots=True)
class Worker:
    """A process that runs one engine."""

    name: str
    queue: int
    pid: int
    lines: Lines
    status: int | None = None
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    alerts: list[str] = dataclasses.field(default_factory=list)
    """Slow turns that it told of and nobody has taken yet."""

    @property
    def running(self) -> bool:
        """It has not ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is None

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """What it says next; alerts are kept. None: it ended, or said nothing for that long."""
        end = time.monotonic() + seconds
        while (said := self.lines.read(max(0.0, end - time.monotonic()))) is not None:
            if "alert" not in said:
                return said
            self.alerts.append(said["alert"])
        return None


class Fleet(Closing):
    """The engines of some ports, one a queue. A context manager; close it twice calmly."""

    def __init__(self, program: Program, *, force: bool = False) -> None:
        if any(port.port.partition(":")[0] != "xsk" or port.options.get("opener") for port in program.ports):
            raise ConfigError('engines = "queue" takes ports of the kind xsk, without an opener')
        if not program.feeds:
            raise ConfigError('engines = "queue": no feed')
        self.program, self.force = program, force
        self._sides = [_Side.of(port) for port in program.ports]
        if len({side.watched for side in self._sides}) < len(self._sides):
            raise ConfigError('engines = "queue": two ports of one interface: name all its queues in one')
        self._undo = contextlib.ExitStack()
        self._built = False
        self.queues: list[int] = []
        """Of the first port, one an engine."""
        self.nodes: list[Node] = []
        """By queue, with ``workers = "threads"``."""
        self.workers: list[Worker] = []
        """By queue, with ``workers = "processes"``, once started."""
        self.notes: list[str] = []
        self._life: LinkLife | None = None
        self._segment: Segment | None = None
        self._words: dict[str, Any] = {}

    # -- bringing the host up

    def build(self) -> None:
        """Bring up the NIC, the filter and, on threads, every node."""
        if self._built:
            return
        self._built = True
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        self.notes += restore()[1]
        for side in self._sides:
            side.binding = Binding(side.interface, side.config.nic)
            self._undo.callback(side.binding.close)
            chosen = side.config.queues if side.named is None else tuple(side.named)
            side.queues = side.binding.prepare(chosen, self._flows())
        self.queues = self._sides[0].queues
        self._refuse_uneven_ports()
        self._refuse_split_channels()
        for side in self._sides:
            self._steer(side)
        if self.program.engine.name:
            self._segment = self._undo.enter_context(Segment(self.program.engine.name, entries=256))
        waits = {side.watched: float(side.config.options.get("link_wait", LINK_WAIT)) for side in self._sides}
        self._life = self._undo.enter_context(LinkLife(waits, self._segment))
        if self.program.workers == "threads":
            for position in range(len(self.queues)):
                node = self._undo.enter_context(self._node(position))
                self.nodes.append(node)
                node.build()
                self._fits(node.mtu_max())
            self._settle()

    def _steer(self, side: _Side) -> None:
        options = side.config.options
        side.filter = self._undo.enter_context(steering(side.interface, options, force=self.force))
        for flow in dict.fromkeys(self._flows()):
            source = f"src {flow.src} " if flow.src else ""
            place = Subscription(address=flow.dst, port=flow.dport).place
            rule = f"udp {source}dst {place} -> {side.config.name}"
            add_rule(self._undo, side.filter, rule)

    def _settle(self) -> None:
        for side in self._sides:
            side.bound.note_far_cores(self.program.cpus)
            side.bound.settle(side.queues)
            self.notes += side.bound.notes

    def _flows(self) -> list[Flow]:
        channels = [channel for feed in self.program.feeds for channel in feed.channels]
        return [
            Flow(dst=line.address, dport=line.port, src=line.source or "", channel=number)
            for number, channel in enumerate(channels)
            for line in channel.lines
        ]

    def _refuse_uneven_ports(self) -> None:
        first = self._sides[0]
        for side in self._sides[1:]:
            if len(side.queues) != len(first.queues):
                raise ConfigError(
                    f'engines = "queue": port {first.config.name} has {len(first.queues)} queues, '
                    f"{side.config.name} has {len(side.queues)}: an engine takes one of each; choose "
                    "as many by queues or channels"
                )

    def _place(self, channel: int) -> int | None:
        """The engine that a channel comes to by every port; None: any."""
        places = {side.place(channel) for side in self._sides}
        return places.pop() if len(places) == 1 else None

    def _refuse_split_channels(self) -> None:
        """A channel whose packets may come by several queues cannot be put together by one engine."""
        number = 0
        for feed in self.program.feeds:
            for channel in feed.channels:
                several = len(channel.lines) > 1 or channel.request is not None
                if several and self._place(number) is None and len(self.queues) > 1:
                    what = f"{len(channel.lines)} lines" if len(channel.lines) > 1 else "a request server"
                    name = feed.name or feed.schema
                    raise ConfigError(
                        f'engines = "queue": channel {number} of {name} has {what}, whose '
                        "packets may come by different queues; steer = true on a NIC with flow rules keeps "
                        'them together, engines = "one" does without'
                    )
                number += 1

    def _program(self, position: int) -> Program:
        """The program of one engine: its channels where the NICs' rules say which, else all."""
        number, feeds = 0, []
        for feed in self.program.feeds:
            mine = []
            for channel in feed.channels:
                if self._place(number) in (None, position):
                    mine.append(channel)
                number += 1
            if mine:
                feeds.append(dataclasses.replace(feed, channels=tuple(mine)))
        name, queue = self.program.engine.name, self.queues[position]
        return dataclasses.replace(
            self.program,
            ports=tuple(
                dataclasses.replace(
                    side.config, port=f"xsk:{side.interface}:{side.queues[position]}", queues=None
                )
                for side in self._sides
            ),
            feeds=tuple(feeds),
            engine=dataclasses.replace(self.program.engine, name=f"{name}.q{queue}" if name else ""),
            record=_with_queue(self.program.record, queue),
            engines="one",
        )

    def _node(self, position: int) -> Node:
        shared = {
            side.config.name: Shared(filter=side.steer, binding=side.bound, queue=side.queues[position])
            for side in self._sides
        }
        return Node(self._program(position), shared)

    # -- interfaces that come and go

    def link_events(self) -> list[LinkEvent]:
        """What happened to the interfaces since the last call: see :meth:`Node.link_events`. :meth:`run`
        looks by itself; with :meth:`start` call this a few times a second, from one thread."""
        self._look()
        return self._life.take() if self._life is not None else []

    def links(self) -> dict[str, dict[str, Any]]:
        """The state of each interface, and what happened to it, counted."""
        return self._life.stats() if self._life is not None else {}

    def _look(self) -> None:
        if self._life is None:
            return
        for event in self._life.look():
            for side in self._sides:
                if side.watched == event.interface:
                    self._react(side, event.kind)
        for name in self._life.due():
            self._reopen(next(side for side in self._sides if side.watched == name))

    def _react(self, side: _Side, kind: str) -> None:
        """What cannot wait until the interface is back."""
        assert self._life is not None
        side.interface = self._life.called(side.watched)
        if kind in ("moved", "deleted"):
            side.bound.lost = kind
        if kind == "moved":
            leave(side.steer, side.config.name, side.queues)
        elif kind == "mtu":
            mtu_max = self.links()[side.watched]["mtu_max"]
            if wants_larger(self._life, side.watched, mtu_max, side.config.options):
                self._life.reopen(side.watched)

    def _reopen(self, side: _Side) -> None:
        """Bring back one port: what is the host's here, then each engine's queue."""
        assert self._life is not None
        if any(node.engine.holds_frames for node in self.nodes):
            return  # the next turn delivers what points into them
        fresh = side.bound.lost != ""
        try:
            again = bring_back(side.interface, side.bound, side.steer)
            self._life.fits(side.watched, 0)
            if self.program.workers == "threads":
                for node in self.nodes:
                    node.open_again(side.config.name, side.interface, again)
                    self._fits(node.mtu_max())
            else:
                for worker in self.workers:
                    if worker.running:
                        self._ask_to_reopen(worker, side, again, fresh)
            if side.bound.lost:
                note_all(side.interface, side.bound.settle_again())
        except SetupError as error:
            foreign = error.errno == errno.EBUSY and "program" in str(error)
            self._life.failed(side.watched, error, final=foreign or any(n.is_broken() for n in self.nodes))
        else:
            how = f"filter attached again ({side.steer.mode})" if again else "its filter had stayed"
            self._life.done(side.watched, f"{len(side.queues)} engines opened their queues again, {how}")

    def _ask_to_reopen(self, worker: Worker, side: _Side, again: bool, fresh: bool) -> None:
        pins = side.steer.pin_dir
        ask = {"open": side.config.name, "interface": side.interface, "again": again}
        ask |= {"pins": str(pins) if pins else None, "context": side.bound.context if fresh else None}
        with contextlib.suppress(OSError):  # it has ended: no answer comes
            worker.lines.write(ask)
        said = worker.answer(READY_SECONDS) or {"error": "it ended, or took too long"}
        if "mtu_max" not in said:
            worker.report = said if "error" in said else worker.report
            why, number = said.get("refused") or said.get("error", "it has ended"), said.get("errno")
            raise SetupError(f"open queue {worker.queue} of {side.interface} again", why, "", number)
        self._fits(said["mtu_max"])

    def _fits(self, sizes: dict[str, int]) -> None:
        """The longest packets that an engine's ports take: the shortest of all engines' counts."""
        assert self._life is not None
        for side in self._sides:
            known, size = self._life.stats()[side.watched]["mtu_max"], sizes[side.config.name]
            self._life.fits(side.watched, min(known, size) if known and size else known or size)

    def alerts(self) -> list[tuple[str, str]]:
        """(engine, sentence) of each turn that was slow since the last call: see :meth:`Engine.alerts`."""
        if self.program.workers == "threads":
            return [
                (self._name(position), str(alert))
                for position, node in enumerate(self.nodes)
                for alert in node.engine.alerts()
            ]
        found = []
        for worker in self.workers:
            while worker.lines.is_open and (said := worker.lines.read(0.0)) is not None:
                if "alert" in said:
                    worker.alerts.append(said["alert"])
                else:
                    worker.report = said  # it has ended
            found += [(worker.name, alert) for alert in worker.alerts]
            worker.alerts.clear()
        return found

    # -- running

    def run(
        self, *, spins: int = 10_000, idle: Callable[[], bool] | None = None
    ) -> Iterator[tuple[Node, Batch]]:
        """Turn the engines one after the other, stepped. ``idle`` is called after ``spins`` rounds in which
        nothing came; a true result ends it. A batch is a view until its node turns again."""
        if self.program.workers != "threads":
            raise LocalProtocolError('workers = "processes" run by themselves: start()')
        self.build()
        empty, due = 0, 0.0
        while True:
            empty += 1
            if time.monotonic() >= due:
                self._look()
                due = time.monotonic() + LOOK_SECONDS
            for node in self.nodes:
                batch = node.engine.turn()
                if batch.packets or len(batch.updates) or batch.events:
                    empty = 0
                    yield node, batch
            if idle is not None and empty >= spins:
                empty = 0
                if idle():
                    return

    def start(self, **options: Any) -> None:
        """Turn every engine on a thread of its own, in this process or one each; options are those of
        :meth:`Engine.start`. SetupError: a worker could not open its queue."""
        self.build()
        if self.program.workers == "threads":
            for position, node in enumerate(self.nodes):
                node.start(cpu=self.cpu(position), **options)
            self.notes += self.nodes[0].placed.notes if self.nodes[0].placed else []
            return
        if self.workers:
            raise LocalProtocolError("the workers were started")
        try:
            for position in range(len(self.queues)):
                self._fork(position, options)
            self._settle()
        except BaseException:
            self.close()
            raise

    def cpu(self, position: int) -> int | None:
        """The core of an engine; None: the scheduler's choice."""
        cpus = self.program.cpus
        return cpus[position % len(cpus)] if cpus else None

    @property
    def running(self) -> bool:
        """Every engine turns."""
        if self.program.workers == "threads":
            return bool(self.nodes) and all(node.running for node in self.nodes)
        return bool(self.workers) and all(worker.running for worker in self.workers)

    def stop(self) -> list[str]:
        """End every engine. Returns a sentence for each that had failed."""
        if self.program.workers == "threads":
            codes = [node.stop() for node in self.nodes]
            return [
                f"the engine of queue {queue} ended: {os.strerror(-code) if code > -4096 else code}"
                for queue, code in zip(self.queues, codes, strict=False)
                if code
            ]
        return self._end_workers()

    def summary(self, symbols: Iterable[str] = ()) -> dict[str, Any]:
        """``packets``, ``slow_turns`` of all, ``missing``, ``links``, and under ``engines`` for each its
        ``engine`` (name), ``queue``, ``cpu`` and what :func:`xdpstack.replay.summary` says of it. Of
        processes: once they have ended."""
        if self.program.workers == "threads":
            parts = [summary_of(node, symbols) for node in self.nodes]
        else:
            parts = [worker.report.get("summary", {}) for worker in self.workers]
        engines = [
            {"engine": self._name(position), "queue": queue, "cpu": self.cpu(position), **part}
            for position, (queue, part) in enumerate(zip(self.queues, parts, strict=False))
        ]
        totals = {
            key: sum(part.get(key, 0) for part in parts) for key in ("packets", "unrouted", "slow_turns")
        }
        lost = [dataclasses.asdict(one) | {"text": str(one)} for one in self.missing()]
        links = self.links()
        return {
            **totals,
            **({"missing": lost} if lost else {}),
            **({"links": links} if links else {}),
            "engines": engines,
        }

    def _name(self, position: int) -> str:
        return f"{self.program.engine.name or 'engine'}.q{self.queues[position]}"

    @property
    def names(self) -> list[str]:
        """What the engines are called, in order of their queues."""
        return [self._name(position) for position in range(len(self.queues))]

    def judge(self, *tell: Callable[[Alert], object]) -> Judge:
        """The program's ``[[alert]]`` rules, judged over all engines: see :meth:`Node.judge`."""
        return Judge(self.program.alerts, [str(os.getpid()), *self.names], self._segment, tell)

    def missing(self) -> list[Missing]:
        """Frames that the filter sent to queues without an engine, and the mend of each. Brings up to date
        what other processes see of that and of the ports."""
        for node in self.nodes:
            node.engine.show_ports()
        found: list[Missing] = []
        for side in self._sides:
            if side.filter is not None:
                every = missing(side.interface, side.filter.counters(), side.queues)
                found += [one for one in every if one.group == side.config.name]
        for one in found:
            if self._segment is not None:
                name = f"filter.{one.group}.no_socket.{one.interface}.{one.queue}"
                if name not in self._words:
                    self._words[name] = self._segment.counter(name, "packets")
                self._words[name][0] = one.packets
        return found

    # -- processes

    def _fork(self, position: int, options: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        parent, queue = os.getpid(), self.queues[position]
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ours.close()
                self._undo.pop_all()  # the parent's to undo
                code = self._work(position, parent, Lines(theirs), options)
            finally:
                os._exit(code)
        theirs.close()
        worker = Worker(self._name(position), queue, pid, Lines(ours))
        self.workers.append(worker)
        said = worker.answer(READY_SECONDS)
        if said is None or "error" in said:
            why = said["error"] if said else "it ended, or took too long"
            raise SetupError(f"start the engine of queue {queue}", why)
        self._fits(said["mtu_max"])

    def _work(self, position: int, parent: int, lines: Lines, options: dict[str, Any]) -> int:
        """The life of a worker. Returns its exit code."""
        stop: list[int] = []
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent says when
        signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            return 1
        for worker in self.workers:
            worker.lines.close()  # those of its elders
        self.workers = []
        try:
            with self._node(position) as node:
                node.start(cpu=self.cpu(position), **options)
                lines.write({"ready": True, "mtu_max": node.mtu_max()})
                while not stop and node.running:
                    asked = lines.read(0.02)
                    if asked is not None:
                        lines.write(self._reopen_in_worker(node, asked))
                    _pass_alerts(node, lines)
                    node.engine.show_ports()
                failed = node.stop()
                _pass_alerts(node, lines)
                lines.write({"failed": failed, "summary": summary_of(node)})
        except Exception as error:
            with contextlib.suppress(OSError):
                lines.write({"error": str(error)})
            return 1
        finally:
            for side in self._sides:
                side.bound.changes.undo()  # what this process changed; the rest is its parent's
        return 1 if failed else 0

    def _reopen_in_worker(self, node: Node, asked: dict[str, Any]) -> dict[str, Any]:
        """Open a queue again; the parent has done what is the host's. Returns the answer."""
        side = next(side for side in self._sides if side.config.name == asked["open"])
        side.interface = asked["interface"]
        side.steer.follow(side.interface, Path(asked["pins"]) if asked["pins"] else None)
        try:
            if asked["context"] is not None:
                side.bound.steer_again(side.interface, asked["context"])
            while node.engine.holds_frames and node.running:
                time.sleep(0.001)  # the next turn delivers what points into them
            node.open_again(side.config.name, side.interface, asked["again"])
        except SetupError as error:
            if node.is_broken():
                raise
            return {"refused": str(error), "errno": error.errno}
        return {"opened": side.config.name, "mtu_max": node.mtu_max()}

    def _end_workers(self) -> list[str]:
        said = []
        for worker in self.workers:
            if worker.running:
                os.kill(worker.pid, signal.SIGTERM)
        for worker in self.workers:
            if worker.lines.is_open:
                worker.report = worker.answer(END_SECONDS) or worker.report
                worker.lines.close()
            deadline = time.monotonic() + END_SECONDS
            while worker.running:
                if time.monotonic() > deadline:
                    os.kill(worker.pid, signal.SIGKILL)
                    deadline += END_SECONDS
                time.sleep(0.005)
            if worker.status:
                code = os.waitstatus_to_exitcode(worker.status)
                why = worker.report.get("error") or (
                    f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                )
                said.append(f"the engine of queue {worker.queue} (process {worker.pid}) ended: {why}")
        return said

    # -- the end

    def close(self) -> None:
        """End the engines and put everything back, in reverse order."""
        self._end_workers()
        for node in self.nodes:
            node.stop()
        self._undo.close()

    def __repr__(self) -> str:
        queues = ", ".join(map(str, self.queues)) or "not built"
        feeds = ", ".join(feed.name or feed.schema for feed in self.program.feeds)
        ports = ", ".join(side.config.port for side in self._sides)
        return f"<Fleet {ports}: queues {queues}, {self.program.workers}: {feeds}>"


def open(what: str | Path | Program, *, force: bool = False) -> Fleet:
    """Engines from a TOML file or a :class:`Program`; ``force`` replaces an XDP program of somebody
    else's. Raises ConfigError."""
    return Fleet(what if isinstance(what, Program) else configuration.load(what), force=force)


def _with_queue(path: str | None, queue: int) -> str | None:
    """``day.pcapng.zst`` of queue 3 is ``day.q3.pcapng.zst``."""
    if not path:
        return path
    stem, dot, rest = Path(path).name.partition(".")
    return str(Path(path).with_name(f"{stem}.q{queue}{dot}{rest}"))


def _pass_alerts(node: Node, lines: Lines) -> None:
    """Tell the parent of slow turns; where it does not listen, they are only counted."""
    for alert in node.engine.alerts():
        if lines.has_room:
            lines.write({"alert": str(alert)})
