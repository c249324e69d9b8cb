"""The ground of the network benches: two namespaces, one veth pair, peers as programs with one protocol.

    core 0   the sender, and with it the kernel's share of receiving: on veth the receiver's softirq runs
             on the core of whoever sends
    core 1   the receive thread that is measured

A program (a peer in C or a worker of ours) prints ``ready`` when it can be measured and one JSON object when
it ends; SIGTERM ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdpstack.bench.registry import Skip, tools_dir
from xdpstack.errors import SetupError
from xdpstack.lab import Lab, LinkEnd, Namespace

__all__ = [
    "FAR",
    "PORT",
    "WHOLE",
    "Bed",
    "Middle",
    "Program",
    "alike",
    "bed",
    "middle_bed",
    "peer",
    "settings",
]

PORT = 9001
_SENDER, _RECEIVER = "10.111.0.1", "10.111.0.2"
FAR = 120
"""ns for a line between cores; a guest whose cores share a cache sees 30 to 60, else 200 and more."""
WHOLE = 5
"""Rounds, or trials a side, of one state that make a figure."""
_READY_SECONDS = 30.0
_END_SECONDS = 20.0


def peer(name: str) -> str:
    """The path of a built peer; Skip tells what to run when it is not there."""
    root = tools_dir()
    path = root.parents[1] / "build" / "bench" / name if root else None
    if path is None or not path.exists():
        raise Skip(f"build/bench/{name} is not built: make bench-peers")
    return str(path)


@dataclass(frozen=True, slots=True)
class Bed:
    """Two namespaces joined by veth: ``sender`` holds the generators, ``receiver`` what is measured."""

    sender: Namespace
    receiver: Namespace
    near: LinkEnd
    """The sender's end."""
    far: LinkEnd
    """The receiver's end."""
    cores: tuple[int, int]
    """Of the sender and the kernel's share; of the receive thread."""
    queues: int = 1
    """Of each end."""

    def frame_options(self, size: int, *, multicast: str | None = None) -> list[str]:
        """Options that make a generator send to the receiver."""
        return [
            *("--iface", self.near.name, "--smac", self.near.mac, "--dmac", self.far.mac),
            *("--src", str(self.near.address), "--dst", multicast or str(self.far.address)),
            *("--port", str(PORT), "--size", str(size), "--core", str(self.cores[0])),
        ]

    def generate(self, name: str, *options: str, size: int = 64, seconds: float = 30) -> dict[str, Any]:
        """Run a generator to its end and return what it says."""
        command = [peer(name), *self.frame_options(size), "--seconds", str(seconds), *options]
        with contextlib.closing(Program(self.sender, command)) as program:
            return program.wait(seconds + _END_SECONDS)

    def core_to_core(self) -> int:
        """ns for a cache line to reach the other core, now: a guest's cores may lie near or far, and move."""
        command = [peer("core_pair"), "--core", str(self.cores[0]), "--other", str(self.cores[1])]
        with contextlib.closing(Program(self.sender, command)) as program:
            return int(program.wait()["p50"])

    def gro(self, on: bool) -> None:
        """GRO of the receiver's end: without an XDP program it is what lets veth take redirected frames."""
        command = ["ethtool", "-K", self.far.name, "gro", "on" if on else "off"]
        self.receiver.run(command)


@dataclass(frozen=True, slots=True)
class Middle(Bed):
    """A bed with a namespace between its ends: what the sender sends goes to ``ports[0]`` there."""

    middle: Namespace | None = None
    ports: tuple[LinkEnd, ...] = ()

    def frame_options(self, size: int, *, multicast: str | None = None) -> list[str]:
        """Options that make a generator send to the receiver, by way of the middle."""
        options = Bed.frame_options(self, size, multicast=multicast)
        options[options.index("--dmac") + 1] = self.ports[0].mac
        return options


class Program:
    """A peer or a worker in a namespace; :meth:`ready` waits for its word, :meth:`stop` gives its JSON."""

    def __init__(
        self,
        namespace: Namespace,
        command: Sequence[str],
        *,
        waits: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """``waits``: it runs until its standard input ends, which is when it is closed."""
        self.what = Path(command[0]).name if command[0] != sys.executable else " ".join(command[2:5])
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        self._process = namespace.popen(
            command,
            stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **(env or {})},
        )

    def __repr__(self) -> str:
        return f"<Program {self.what} {self._process.poll()}>"

    def ready(self, says: str = "ready") -> Program:
        """Wait until it says so; SetupError with its own words when it ends instead."""
        watch = threading.Timer(_READY_SECONDS, self._process.kill)
        watch.start()
        try:
            for line in self._process.stdout:
                if line.strip() == says:
                    return self
        finally:
            watch.cancel()
        raise self._failed()

    def wait(self, timeout: float = _END_SECONDS, *, told: bool = False) -> dict[str, Any]:
        """Wait for its end; the JSON object on its last line. ``told``: SIGTERM may have met one that was
        ending by itself, when Python had given the signal its old meaning back; what it printed is whole."""
        try:
            out, err = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise SetupError(f"bench program {self.what}", f"still ran after {timeout:.0f} s") from None
        lines = [line for line in out.splitlines() if line.startswith("{")]
        good = (0, -signal.SIGTERM) if told else (0,)
        if self._process.returncode not in good or not lines:
            raise self._failed(err)
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer

    def stop(self) -> dict[str, Any]:
        """End it by SIGTERM and return its JSON object."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        return self.wait(told=True)

    def end_input(self) -> None:
        """Close the standard input of one that waits for its end, and see it go: it puts its things back."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate("\n", timeout=_END_SECONDS)

    def close(self) -> None:
        """Make sure that it is gone."""
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(Exception):
            self._process.communicate(timeout=5)

    def _failed(self, err: str = "") -> SetupError:
        if not err:
            with contextlib.suppress(Exception):
                err = self._process.communicate(timeout=5)[1]
        said = err.strip().splitlines()
        return SetupError(
            f"bench program {self.what}", said[-1] if said else f"exit {self._process.returncode}"
        )


def alike(*sides: list[dict[str, Any]]) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """What was measured in one state of the machine, and a note on it.

    The host moves a guest's cores between near and far; each trial carries ``line_ns``, before and after.
    Of the two states the one with more whole rounds is kept (near, when equal). Where the state changes so
    often that fewer than ``WHOLE`` are, single trials of one state are compared, if every side has as many as
    that; else what whole rounds there are, and with none, all.
    """
    states = [[_far(trial) for trial in side] for side in sides]
    rounds: dict[bool, list[int]] = {
        far: [n for n, round_ in enumerate(zip(*states, strict=True)) if set(round_) == {far}]
        for far in (False, True)
    }
    state = len(rounds[True]) > len(rounds[False])
    kept = rounds[state]
    note: dict[str, Any] = {"rounds_alike": len(kept)}
    if len(kept) < WHOLE:
        trials = {far: [side.count(far) for side in states] for far in (False, True)}
        often = min(trials[True]) > min(trials[False])
        if min(trials[often]) >= WHOLE:
            single = [
                [trial for trial, far in zip(side, fars, strict=True) if far is often]
                for side, fars in zip(sides, states, strict=True)
            ]
            return single, {**note, "trials_alike": trials[often], "cores": _WORDS[often]}
    note["cores"] = _WORDS[state] if kept else "mixed"
    return [[side[i] for i in kept] if kept else list(side) for side in sides], note


_WORDS = {False: "near", True: "far"}


def _far(trial: dict[str, Any]) -> bool | None:
    """Whether the cores were far apart before and after a trial; None: it changed."""
    found = {ns > FAR for ns in trial["line_ns"]}
    return found.pop() if len(found) == 1 else None


def _cores() -> tuple[int, int]:
    """Two cores to pin to. Skip where there are none, or no right to make namespaces."""
    if os.geteuid():
        raise Skip("needs root: it makes network namespaces")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Skip("needs two cores: one sends, one receives")
    return cores[0], cores[1]


@contextlib.contextmanager
def bed(queues: int = 1, mtu: int = 1500) -> Iterator[Bed]:
    """Make the two namespaces and the pair; everything is gone afterwards. Skip where it cannot be."""
    cores = _cores()
    with Lab(f"bench{os.getpid()}") as lab:
        sender, receiver = lab.namespace("sender"), lab.namespace("receiver")
        near, far = lab.veth(
            sender, "bx0", f"{_SENDER}/24", receiver, "bx1", f"{_RECEIVER}/24", queues=queues, mtu=mtu
        )
        yield Bed(sender, receiver, near, far, cores, queues)


@contextlib.contextmanager
def middle_bed() -> Iterator[Middle]:
    """Three namespaces in a row, everything gone afterwards. Skip where it cannot be."""
    cores = _cores()
    with Lab(f"bench{os.getpid()}") as lab:
        sender, middle, receiver = map(lab.namespace, ("sender", "middle", "receiver"))
        near, left = lab.veth(sender, "bx0", f"{_SENDER}/24", middle, "mx0", None)
        right, far = lab.veth(middle, "mx1", None, receiver, "bx1", f"{_RECEIVER}/24")
        yield Middle(sender, receiver, near, far, cores, 1, middle, (left, right))


def settings(bed: Bed, **more: Any) -> Mapping[str, Any]:
    """What stands beside a figure: machine, kernel, cores, and the bench's own settings."""
    return {
        "settings": {
            "link": f"veth, copy mode, queues: {bed.queues}",
            "kernel": os.uname().release,
            "sender_core": bed.cores[0],
            "receiver_core": bed.cores[1],
            "core_to_core_ns": bed.core_to_core(),
            **more,
        }
    }
