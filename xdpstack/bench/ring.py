"""Rings between processes: a hop, records a second, what a record costs in numpy, and a hop in Python.

Two processes on two cores, one tape between them (two for what goes to and fro); no network, no namespace. In
C they are ``tools/bench/tape_bench.c``, in Python ``xdpstack/bench/ring_worker.py``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xdpstack.bench.breakdown import curves
from xdpstack.bench.lab import FAR, alike, peer
from xdpstack.bench.registry import MANY, Context, Skip, tools_dir
from xdpstack.bench.ring_worker import PREFIX, RECORD
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.errors import SetupError
from xdpstack.tape import make_tape

__all__ = ["hop", "iceoryx2", "python", "throughput"]

SHARED = Path("/dev/shm")
TAPE = 1 << 22
"""Above a core's L2: so a line that the writer needs again lies in the L3, not with the reader."""
_SECONDS = 60.0
_WORKER = [sys.executable, "-m", "xdpstack.bench.ring_worker"]


def _cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Skip("needs two cores: one writes, one reads")
    return cores[0], cores[1]


@contextlib.contextmanager
def _program(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that is gone afterwards, whatever happens."""
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(":")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise SetupError("bench of rings", f"still ran after {_SECONDS:.0f} s") from None
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        said = err.strip().splitlines()
        raise SetupError("bench of rings", said[-1] if said else f"exit {process.returncode}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _run(command: Sequence[str]) -> dict[str, Any]:
    with _program(command) as process:
        return _result(process)


def _line_ns() -> int:
    """ns for a cache line to reach the other core, now."""
    near, far = _cores()
    return int(_run([peer("core_pair"), "--core", str(near), "--other", str(far)])["p50"])


def _native(*options: str) -> dict[str, Any]:
    """One run of tape_bench, with the state of the machine before and after."""
    near, far = _cores()
    before = _line_ns()
    found = _run([peer("tape_bench"), "--core", str(near), "--other", str(far), *options])
    return {**found, "line_ns": [before, _line_ns()]}


def _settings(**more: Any) -> dict[str, Any]:
    near, far = _cores()
    return {"settings": {"kernel": os.uname().release, "cores": [near, far], "record_bytes": 64, **more}}


def hop(context: Context) -> Iterable[Row]:
    """One way through a tape against one way of a bare cache line, in turns of 100 round trips each."""
    turns = "200" if context.quick else "4000"
    found = []
    for number in range(context.rounds()):
        context.say(f"  hop round {number + 1} of {context.rounds()}")
        found.append(_native("--mode", "hop", "--turns", turns))
    ours, bare = ([f[key]["p50"] / 1000 for f in found] for key in ("hop_ps", "bare_ps"))
    yield row(
        "hop",
        median(ours),
        median(bare),
        "bare cache line",
        unit="ns",
        n=sum(f["hop_ps"]["n"] for f in found) * 100,
        rounds=spread(ours),
        peer_rounds=spread(bare),
        ratio_by_turns=median([f["ratio_permille"]["p50"] / 1000 for f in found]),
        p99_turn=median([f["hop_ps"]["p99"] / 1000 for f in found]),
        **curves([f["hop_ps"] for f in found], [f["bare_ps"] for f in found], of="turns of 100 trips"),
        **_settings(trips_a_turn=100, tape_bytes=1 << 18),
    )


def throughput(context: Context) -> Iterable[Row]:
    """Records of 64 bytes a second that reach the reader, each looked at; written in batches, one by one."""
    seconds = "0.05" if context.quick else "0.5"
    rounds = context.rounds(MANY)
    for name, batch in (("ring-throughput", 256), ("ring-throughput.single", 1)):
        found = []
        for number in range(rounds):
            context.say(f"  {name} round {number + 1} of {rounds}")
            size = ("--bytes", str(TAPE))
            found.append(_native("--mode", "rate", "--batch", str(batch), "--seconds", seconds, *size))
        (kept,), note = alike(found)
        rates = [f["n"] * 1e9 / f["ns"] for f in kept]
        yield row(
            name,
            median(rates),
            unit="/s",
            better="higher",
            n=sum(f["n"] for f in kept),
            rounds=spread([f["n"] * 1e9 / f["ns"] for f in found]),
            lost=sum(f["lost"] for f in kept),
            line_ns=[f["line_ns"] for f in found],
            far_is_above_ns=FAR,
            **note,
            **_settings(batch=batch, tape_bytes=TAPE),
        )


def _consumed(batch: int, seconds: str) -> dict[str, Any]:
    """A run of ``consume`` behind a writer of ``batch`` records at a time, 16 million a second."""
    near, far = _cores()
    before = _line_ns()  # while nobody spins
    with TemporaryDirectory(prefix="xdpstack-bench-", dir=SHARED) as folder:
        path = Path(folder) / "tape"
        make_tape(path, 1 << 20, dtype=RECORD)
        with _program([*_WORKER, "consume", "--core", str(far), "--at", str(path)]) as reader:
            assert reader.stdout is not None
            if reader.stdout.readline() != "ready\n":
                _result(reader)
            feed = [peer("tape_bench"), "--mode", "feed", "--core", str(near), "--path", str(path)]
            times = ["--batch", str(batch), "--gap", str(batch * 125 // 2), "--seconds", seconds]
            _run([*feed, *times])
            found = _result(reader)
    return {**found, "line_ns": [before, _line_ns()]}


def python(context: Context) -> Iterable[Row]:
    """ns a record until it lies in a numpy array of another process; written 256 at a time, and 64."""
    seconds = "0.1" if context.quick else "1"
    for name, batch in (("ring-python", 256), ("ring-python.64", 64)):
        found = []
        for number in range(context.rounds()):
            context.say(f"  {name} round {number + 1} of {context.rounds()}")
            found.append(_consumed(batch, seconds))
        (kept,), note = alike(found)
        yield row(
            name,
            median([f["ns"] for f in kept]),
            unit="ns",
            n=sum(f["n"] for f in kept),
            rounds=spread([f["ns"] for f in found]),
            records_a_read=round(median([f["a_read"] for f in kept]), 1),
            small_reads=sum(f["small_reads"] for f in kept),
            lost=sum(f["lost"] for f in kept),
            **note,
            **_settings(written=f"{batch} records each {batch * 125 / 2000:g} µs", tape_bytes=1 << 20),
        )


def _trip(over: str, counts: Sequence[str]) -> dict[str, Any]:
    near, far = _cores()
    with TemporaryDirectory(prefix="xdpstack-bench-", dir=SHARED) as folder:
        tail = ["--over", over, "--at", folder, *counts]
        try:
            with _program([*_WORKER, "answer", "--core", str(far), *tail]) as answer:
                assert answer.stdout is not None
                if answer.stdout.readline() != "ready\n":
                    _result(answer)
                return _run([*_WORKER, "ask", "--core", str(near), *tail])
        finally:
            for left in SHARED.glob(f"{PREFIX}*"):
                left.unlink(missing_ok=True)


def iceoryx2(context: Context) -> Iterable[Row]:
    """One way of a round trip of 64 bytes, both ends in Python: ours and iceoryx2 take turns."""
    root = tools_dir()
    there = root is not None and (root.parents[1] / "build" / "peers" / "iceoryx2").is_dir()
    if not there and importlib.util.find_spec("iceoryx2") is None:
        raise Skip("iceoryx2 is not there: make bench-peers")
    counts = ["--count", "200", "--skip", "20"] if context.quick else ["--count", "20000", "--skip", "2000"]
    found: dict[str, list[dict[str, Any]]] = {"tape": [], "iceoryx2": []}
    for number in range(context.rounds()):
        context.say(f"  iceoryx2 round {number + 1} of {context.rounds()}")
        for over, trials in found.items():
            before = _line_ns()
            trials.append({**_trip(over, counts), "line_ns": [before, _line_ns()]})
    (kept, against), note = alike(found["tape"], found["iceoryx2"])
    yield row(
        "iceoryx2",
        median([f["p50"] for f in kept]),
        median([f["p50"] for f in against]),
        "iceoryx2, publish-subscribe",
        unit="ns",
        n=sum(f["n"] for f in kept),
        rounds=spread([f["p50"] for f in found["tape"]]),
        peer_rounds=spread([f["p50"] for f in found["iceoryx2"]]),
        p99=median([f["p99"] for f in kept]),
        peer_p99=median([f["p99"] for f in against]),
        **curves(kept, against, per=1),
        **note,
        **_settings(in_flight=1),
    )
