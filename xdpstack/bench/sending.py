"""tx and forward: what one core sends through the engine, and forwards between two ports.

`tx`: 64-byte frames (60 and the check sequence) flat out into an XDP program that drops them. Ours is an
engine whose handler fills the outbox each turn; the peer a bare libxdp loop over frames made beforehand.
`forward`: live frames flat out into a namespace in the middle, whose program receives, rewrites the MACs and
sends by its other port; the figure is what reached the far end a second. There the filter counts, for both.
Ours has one UMEM for both ports and sends live XDP frames; `forward.socket` is the same program by the
socket, from where the frames lie. testpmd runs without busy polling, which costs it a system call a poll here
(its shared_umem is not built into Debian's DPDK).
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from xdpstack.bench.breakdown import curves
from xdpstack.bench.lab import PORT, Bed, Middle, Program, bed, middle_bed, settings
from xdpstack.bench.registry import Context, Skip
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.bpf import Filter
from xdpstack.errors import SetupError
from xdpstack.lab import LinkEnd, Namespace

__all__ = ["forward", "tx"]

BATCH = 32
"""Frames a kick: what copy mode takes at once."""
LIVE_BATCH = 64
"""Frames a run of live XDP frames: more of them would cost less each."""
PACE, PACED = 200_000, 16
"""Frames a second, and at once, of forward's trial with stamps."""
TX_PAYLOAD = 18
"""Bytes of UDP payload in a frame of 60."""


@contextlib.contextmanager
def _sink(namespace: Namespace, link: LinkEnd) -> Iterator[Callable[[], int]]:
    """Count and drop at the XDP hook; gives a function that says how many came since it was last asked."""
    with namespace.enter():
        steering = Filter.load(link.name, rules="any -> drop", mode="native", stamp=False)
    seen = 0

    def since() -> int:
        nonlocal seen
        (count,) = steering.counters().rules.values()
        before, seen = seen, count.packets
        return seen - before

    with steering:
        yield since


def _ours_tx(ground: Bed, count: int, burst: int, way: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "xdpstack.bench.worker", "tx", "--iface", ground.near.name]
    command += ["--local", str(ground.near.address), "--remote", str(ground.far.address), "--port", str(PORT)]
    command += ["--core", str(ground.cores[0]), "--count", str(count), "--size", str(TX_PAYLOAD)]
    command += ["--no-stamps", "--burst", str(burst), "--tx", way]
    with contextlib.closing(Program(ground.sender, command)) as program:
        return program.wait(60)


def _bare_tx(ground: Bed, count: int, burst: int) -> dict[str, Any]:
    options = ["--count", str(count), "--batch", str(burst), "--stamp", "0"]
    return ground.generate("xsk_send", *options, size=TX_PAYLOAD)


def tx(context: Context) -> Iterable[Row]:
    """Frames a second from one core; every frame is counted at the far end, or the trial is void."""
    count = 5000 if context.quick else 400_000
    with bed() as ground, _sink(ground.receiver, ground.far) as since:
        for name, way, burst in (("tx", "socket", BATCH), ("tx.live", "live", LIVE_BATCH)):
            rates: dict[str, list[float]] = {"ours": [], "bare": []}
            for number in range(context.rounds()):
                context.say(f"  {name} round {number + 1} of {context.rounds()}")
                for who in rates:
                    since()
                    answer = (
                        _ours_tx(ground, count, burst, way)
                        if who == "ours"
                        else _bare_tx(ground, count, burst)
                    )
                    if (came := since()) < answer["sent"] or answer["sent"] < count:
                        tried = f"measure {name} ({who})"
                        raise SetupError(tried, f"{came} of {answer['sent']} frames came, of {count}")
                    rates[who].append(float(answer["rate"]))
            yield row(
                name,
                median(rates["ours"]),
                median(rates["bare"]),
                "bare libxdp",
                unit="/s",
                better="higher",
                n=count * context.rounds(),
                rounds=spread(rates["ours"]),
                peer_rounds=spread(rates["bare"]),
                **settings(ground, frame=64, batch=burst, sends_by=way, far_end="XDP drop"),
            )


# ---- forward -------------------------------------------------------------------------------------------


def _middle(ground: Middle) -> Namespace:
    assert ground.middle is not None
    return ground.middle


@contextlib.contextmanager
def _ours_forward(ground: Middle, way: str, ages: list[dict[str, Any]] | None = None) -> Iterator[None]:
    """``ages``: what comes is stamped, and how long each frame was there is put there in the end."""
    left, right = ground.ports
    command = [
        sys.executable,
        "-m",
        "xdpstack.bench.worker",
        "forward",
        "--iface",
        left.name,
        "--out",
        right.name,
    ]
    command += ["--dmac", ground.far.mac, "--back-dmac", ground.near.mac]
    command += ["--no-stamps"] if ages is None else []
    command += ["--core", str(ground.cores[1]), "--seconds", "50", "--tx", way]
    with contextlib.closing(Program(_middle(ground), command)) as program:
        program.ready()
        yield
        answer = program.stop()
        if ages is not None:
            ages.append(answer["ages"])


def testpmd() -> list[str]:
    """The command that starts DPDK's own forwarder. Skip where it is not installed."""
    path = subprocess.run(["which", "dpdk-testpmd"], capture_output=True, text=True).stdout.strip()
    if not path:
        raise Skip("dpdk-testpmd is not installed: make bench-peers")
    return ["stdbuf", "-oL", "chrt", "-f", "10", path]


@contextlib.contextmanager
def _dpdk_forward(ground: Middle) -> Iterator[None]:
    left, right = ground.ports
    main, core = ground.cores
    command = [*testpmd(), "-l", f"{main},{core}", "--main-lcore", str(main), "--no-huge", "-m", "256"]
    command += ["--no-pci", "--no-telemetry", "--no-shconf", "--log-level", "error"]
    for number, port in enumerate((left, right)):
        command += ["--vdev", f"net_af_xdp{number},iface={port.name},busy_budget=0"]
    command += ["--"]
    command += ["--forward-mode=mac", "--auto-start", "--nb-cores=1", "--total-num-mbufs=20480"]
    command += [f"--eth-peer=0,{ground.near.mac}", f"--eth-peer=1,{ground.far.mac}"]
    environment = {"LIBXDP_SKIP_DISPATCHER": "1"}
    with contextlib.closing(Program(_middle(ground), command, waits=True, env=environment)) as program:
        program.ready("Press enter to exit")
        yield
        program.end_input()


def _settled(since: Callable[[], int]) -> int:
    """What came, once nothing has come for 50 ms: the last rings full belong to the trial. 5 s at most."""
    total, end = 0, time.monotonic() + 5
    while time.monotonic() < end:
        time.sleep(0.05)
        came = since()
        total += came
        if total and not came:
            break
    return total


def forward(context: Context) -> Iterable[Row]:
    """Frames a second that reach the far end while more are offered: ours both ways, testpmd, in turns. How
    long a frame was with ours is of a trial of its own at a rate that queues nowhere, with stamps."""
    testpmd()
    count = 20_000 if context.quick else 1_500_000
    ways: dict[str, Callable[[Middle], contextlib.AbstractContextManager[None]]] = {
        "live": functools.partial(_ours_forward, way="live"),
        "socket": functools.partial(_ours_forward, way="socket"),
        "dpdk": _dpdk_forward,
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with middle_bed() as ground, _sink(ground.receiver, ground.far) as since:
        for number in range(context.rounds()):
            context.say(f"  forward round {number + 1} of {context.rounds()}")
            for who, run in ways.items():
                with run(ground):
                    since()
                    sent = ground.generate("live_frames", "--count", str(count), "--batch", "64", size=64)
                    rates[who].append(_settled(since) / sent["seconds"])
        ages: dict[str, list[dict[str, Any]]] = {"live": [], "socket": []}
        for way, found in ages.items():
            with _ours_forward(ground, way, found):
                paced = ["--count", str(count // 10), "--rate", str(PACE), "--batch", str(PACED)]
                ground.generate("live_frames", *paced, size=64)
                _settled(since)
        for name, way in (("forward", "live"), ("forward.socket", "socket")):
            yield row(
                name,
                median(rates[way]),
                median(rates["dpdk"]),
                "DPDK testpmd af_xdp",
                unit="/s",
                better="higher",
                n=count * context.rounds(),
                rounds=spread(rates[way]),
                peer_rounds=spread(rates["dpdk"]),
                offered=round(sent["rate"]),
                sends_by=way,
                **curves(ages[way], of=f"from hook to kick at {PACE / 1000:g} k/s", unit="µs"),
                **settings(ground, generator="live_frames", payload=64, frames=count, far_end="XDP drop"),
            )
