"""One engine a queue, from one configuration: a node for each queue of a port, on threads or in processes.

    [engine]
    engines = "queue"             # one engine for each queue of the port
    cpus = [2, 3]                 # in turn
    workers = "threads"           # or "processes"

What is the host's (the NIC's settings, the filter, its rules) is brought up once, here; each node has its own
socket, feeds, books, counters (``NAME.q3``) and recording (``FILE.q3``). A packet comes by one queue, so
nothing comes twice; the lines of a channel must come by the same queue to be arbitrated, so a channel of
several lines, or with a request server, needs ``steer`` and a NIC with flow rules.

    with fleet.open("trading.toml") as engines:
        for node, batch in engines.run():   # stepped, in turn; or engines.start()
            ...

Processes are forked one after the other, each ready before the next: two of them never publish rules at the
same time. They end with their parent, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from xdpstack import config as configuration
from xdpstack.batch import Batch
from xdpstack.bpf import Filter
from xdpstack.config import Program
from xdpstack.errors import ConfigError, LocalProtocolError, SetupError
from xdpstack.missing import Missing, missing
from xdpstack.nic import Binding, Flow, restore
from xdpstack.node import Node, Shared, add_rule, steering
from xdpstack.port import parse_spec
from xdpstack.replay import summary as summary_of
from xdpstack.stats import Segment

__all__ = ["Fleet", "Worker", "open"]

log = logging.getLogger("xdpstack.fleet")

READY_SECONDS = 30.0
"""That a worker may take to open its queue."""
END_SECONDS = 10.0
"""That a worker may take to end before it is killed."""


@dataclasses.dataclass(slots=True)
class Worker:
    """A process that runs one engine."""

    name: str
    queue: int
    pid: int
    pipe: int
    status: int | None = None
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def running(self) -> bool:
        """It has not ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is None


class Fleet:
    """The engines of one port, one a queue. A context manager; close it twice calmly."""

    def __init__(self, program: Program, *, force: bool = False) -> None:
        if len(program.ports) != 1 or program.ports[0].port.partition(":")[0] != "xsk":
            raise ConfigError('engines = "queue" takes one port, of the kind xsk')
        if not program.feeds:
            raise ConfigError('engines = "queue": no feed')
        self.program, self.force = program, force
        self.port = program.ports[0]
        spec = parse_spec(self.port.port)
        self.interface = spec.interface or ""
        self._named = spec.queues
        self._undo = contextlib.ExitStack()
        self._built = False
        self.queues: list[int] = []
        self.nodes: list[Node] = []
        """By queue, with ``workers = "threads"``."""
        self.workers: list[Worker] = []
        """By queue, with ``workers = "processes"``, once started."""
        self.notes: list[str] = []
        self.filter: Filter | None = None
        self.binding: Binding | None = None
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
        self.binding = Binding(self.interface, self.port.nic)
        self._undo.callback(self.binding.close)
        chosen = self.port.queues if self._named is None else tuple(self._named)
        self.queues = self.binding.prepare(chosen, self._flows())
        self._refuse_split_channels()
        options = self.port.options
        mode, stamps = str(options.get("filter", "auto")), bool(options.get("stamps", True))
        self.filter = self._undo.enter_context(steering(self.interface, mode, stamps, force=self.force))
        for flow in dict.fromkeys(self._flows()):
            source = f"src {flow.src} " if flow.src else ""
            rule = f"udp {source}dst {flow.dst}:{flow.dport} -> {self.port.name}"
            add_rule(self._undo, self.filter, rule)
        if self.program.engine.name:
            self._segment = self._undo.enter_context(Segment(self.program.engine.name, entries=256))
        if self.program.workers == "threads":
            for position in range(len(self.queues)):
                node = self._undo.enter_context(self._node(position))
                self.nodes.append(node)
                node.build()
            self.binding.note_far_cores(self.program.cpus)
            self.binding.settle(self.queues)
            self.notes += self.binding.notes

    def _flows(self) -> list[Flow]:
        channels = [channel for feed in self.program.feeds for channel in feed.channels]
        return [
            Flow(dst=line.address, dport=line.port, src=line.source or "", channel=number)
            for number, channel in enumerate(channels)
            for line in channel.lines
        ]

    def _refuse_split_channels(self) -> None:
        """A channel whose packets may come by several queues cannot be put together by one engine."""
        assert self.binding is not None
        number = 0
        for feed in self.program.feeds:
            for channel in feed.channels:
                several = len(channel.lines) > 1 or channel.request is not None
                if several and number not in self.binding.flow_queues and len(self.queues) > 1:
                    what = f"{len(channel.lines)} lines" if len(channel.lines) > 1 else "a request server"
                    name = feed.name or feed.schema
                    raise ConfigError(
                        f'engines = "queue": channel {number} of {name} has {what}, whose '
                        "packets may come by different queues; steer = true on a NIC with flow rules keeps "
                        'them together, engines = "one" does without'
                    )
                number += 1

    def _program(self, position: int) -> Program:
        """The program of one queue: its channels where the NIC's rules say which, else all."""
        assert self.binding is not None
        queue, placed, number, feeds = self.queues[position], self.binding.flow_queues, 0, []
        for feed in self.program.feeds:
            mine = []
            for channel in feed.channels:
                if placed.get(number, queue) == queue:
                    mine.append(channel)
                number += 1
            if mine:
                feeds.append(dataclasses.replace(feed, channels=tuple(mine)))
        name = self.program.engine.name
        return dataclasses.replace(
            self.program,
            ports=(dataclasses.replace(self.port, port=f"xsk:{self.interface}:{queue}", queues=None),),
            feeds=tuple(feeds),
            engine=dataclasses.replace(self.program.engine, name=f"{name}.q{queue}" if name else ""),
            record=_with_queue(self.program.record, queue),
            engines="one",
        )

    def _node(self, position: int) -> Node:
        assert self.filter is not None
        assert self.binding is not None
        shared = Shared(filter=self.filter, binding=self.binding, queue=self.queues[position])
        return Node(self._program(position), shared)

    # -- running

    def run(
        self, *, spins: int = 10_000, idle: Callable[[], bool] | None = None
    ) -> Iterator[tuple[Node, Batch]]:
        """Turn the engines one after the other, stepped. ``idle`` is called after ``spins`` rounds in which
        nothing came; a true result ends it. A batch is a view until its node turns again."""
        if self.program.workers != "threads":
            raise LocalProtocolError('workers = "processes" run by themselves: start()')
        self.build()
        empty = 0
        while True:
            empty += 1
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
            return
        if self.workers:
            raise LocalProtocolError("the workers were started")
        try:
            for position in range(len(self.queues)):
                self._fork(position, options)
            assert self.binding is not None
            self.binding.note_far_cores(self.program.cpus)
            self.binding.settle(self.queues)
            self.notes += self.binding.notes
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
        """``packets``, ``slow_turns`` of all, ``missing``, and under ``engines`` for each its ``engine``
        (name), ``queue``, ``cpu`` and what :func:`xdpstack.replay.summary` says of it. Of processes: once
        they have ended."""
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
        return {**totals, **({"missing": lost} if lost else {}), "engines": engines}

    def _name(self, position: int) -> str:
        return f"{self.program.engine.name or 'engine'}.q{self.queues[position]}"

    def missing(self) -> list[Missing]:
        """Frames that the filter sent to queues without an engine, and the mend of each."""
        if self.filter is None:
            return []
        every = missing(self.interface, self.filter.counters(), self.queues)
        found = [one for one in every if one.group == self.port.name]
        for one in found:
            if self._segment is not None:
                name = f"filter.{one.group}.no_socket.{one.interface}.{one.queue}"
                if name not in self._words:
                    self._words[name] = self._segment.counter(name, "packets")
                self._words[name][0] = one.packets
        return found

    # -- processes

    def _fork(self, position: int, options: dict[str, Any]) -> None:
        reading, writing = os.pipe()
        parent, queue = os.getpid(), self.queues[position]
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reading)
                self._undo.pop_all()  # the parent's to undo
                code = self._work(position, parent, writing, options)
            finally:
                os._exit(code)
        os.close(writing)
        worker = Worker(self._name(position), queue, pid, reading)
        self.workers.append(worker)
        said = _read_line(reading, READY_SECONDS)
        if said is None or "error" in said:
            why = said["error"] if said else "it ended, or took too long"
            raise SetupError(f"start the engine of queue {queue}", why)

    def _work(self, position: int, parent: int, pipe: int, options: dict[str, Any]) -> int:
        """The life of a worker. Returns its exit code."""
        stop: list[int] = []
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent says when
        signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            return 1
        assert self.binding is not None
        self.workers = []
        try:
            with self._node(position) as node:
                node.start(cpu=self.cpu(position), **options)
                _write_line(pipe, {"ready": True})
                while not stop and node.running:
                    time.sleep(0.02)
                failed = node.stop()
                _write_line(pipe, {"failed": failed, "summary": summary_of(node)})
        except Exception as error:
            with contextlib.suppress(OSError):
                _write_line(pipe, {"error": str(error)})
            return 1
        finally:
            self.binding.changes.undo()  # what this process changed; the rest is its parent's
        return 1 if failed else 0

    def _end_workers(self) -> list[str]:
        said = []
        for worker in self.workers:
            if worker.running:
                os.kill(worker.pid, signal.SIGTERM)
        for worker in self.workers:
            if worker.pipe >= 0:
                worker.report = _read_line(worker.pipe, END_SECONDS) or {}
                os.close(worker.pipe)
                worker.pipe = -1
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

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        queues = ", ".join(map(str, self.queues)) or "not built"
        feeds = ", ".join(feed.name or feed.schema for feed in self.program.feeds)
        return f"<Fleet {self.port.port}: queues {queues}, {self.program.workers}: {feeds}>"


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


def _write_line(pipe: int, said: dict[str, Any]) -> None:
    data = memoryview(json.dumps(said).encode() + b"\n")
    while data:
        data = data[os.write(pipe, data) :]


def _read_line(pipe: int, seconds: float) -> dict[str, Any] | None:
    """One line of JSON; None: the writer ended or said nothing for that long."""
    import select

    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], seconds)
        more = os.read(pipe, 1 << 16) if ready else b""
        if not more:
            return None
        data += more
    return dict(json.loads(data))
