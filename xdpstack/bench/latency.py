"""udp-rtt and wake: how long a packet is under way between two spinning ends, and to a hook."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from xdpstack.bench.breakdown import between, curves, row_key
from xdpstack.bench.lab import PORT, Bed, Program, alike, bed, peer, settings
from xdpstack.bench.registry import MANY, Context
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.lab import LinkEnd, Namespace

__all__ = ["STAMPED", "rtt_row", "udp_rtt", "wake"]

SIZE = 64
RING = 64
"""Descriptors and frames of the AF_XDP ends in udp-rtt, ours and the bare one's: with one packet in flight,
more frames only take turns in being cold."""
STAMPED = "one more trial with stamps: the answering end"
"""What the stages of a round trip are of; the figure is measured without stamps, as the peer has none."""


def _worker(mode: str, here: LinkEnd, there: LinkEnd, core: int, *options: str) -> list[str]:
    command = [sys.executable, "-m", "xdpstack.bench.worker", mode, "--iface", here.name, "--port", str(PORT)]
    return [
        *command,
        "--local",
        str(here.address),
        "--remote",
        str(there.address),
        "--core",
        str(core),
        *options,
    ]


def _pair(
    ground: Bed, echo: tuple[Namespace, list[str]], ping: tuple[Namespace, list[str]], stages: bool = False
) -> dict[str, Any]:
    """What the asking end says; ``stages``: and those that the answering one has stamped."""
    before = ground.core_to_core()
    with contextlib.closing(Program(*echo)) as answering:
        answering.ready()
        with contextlib.closing(Program(*ping)) as asking:
            answer = asking.wait(60)
        if stages:
            answer["stages"] = answering.stop()["stages"]
    return {**answer, "line_ns": [before, ground.core_to_core()]}


# Neither end receives by the queue that it sends by. In native mode veth delivers by the sender's queue; in
# generic mode the kernel takes the sender's queue 1 for a recorded 0, so both ends receive by 0 there.
_PING_QUEUES = ("--queue", "0", "--tx-queue", "1")
_ECHO_QUEUES = {"native": ("--queue", "1", "--tx-queue", "0"), "generic": _PING_QUEUES}


def _ours(ground: Bed, xdp: str, *options: str, stages: bool = False) -> dict[str, Any]:
    common = (*(() if stages else ("--no-stamps",)), "--ring", str(RING), "--xdp", xdp)
    echo = _worker("echo", ground.far, ground.near, ground.cores[1], *common, *_ECHO_QUEUES[xdp])
    ping = _worker(
        *("ping", ground.near, ground.far, ground.cores[0], *common, *_PING_QUEUES),
        *("--size", str(SIZE), *options),
    )
    return _pair(ground, (ground.receiver, echo), (ground.sender, ping), stages)


def _kernel(ground: Bed, *options: str) -> dict[str, Any]:
    def end(mode: str, here: LinkEnd, there: LinkEnd, core: int) -> list[str]:
        addresses = ["--local", str(here.address), "--remote", str(there.address)]
        ports = ["--lport", str(PORT), "--rport", str(PORT)]
        return [peer("udp_rtt"), "--mode", mode, *addresses, *ports, "--core", str(core), "--seconds", "40"]

    echo = end("echo", ground.far, ground.near, ground.cores[1])
    ping = [*end("ping", ground.near, ground.far, ground.cores[0]), "--size", str(SIZE), *options]
    return _pair(ground, (ground.receiver, echo), (ground.sender, ping))


def _bare(ground: Bed, xdp: str, *options: str) -> dict[str, Any]:
    def end(mode: str, here: LinkEnd, there: LinkEnd, core: int) -> list[str]:
        addresses = ["--src", str(here.address), "--dst", str(there.address)]
        macs = ["--smac", here.mac, "--dmac", there.mac]
        command = [peer("bare_rtt"), "--mode", mode, "--iface", here.name, *addresses, *macs]
        return [*command, "--ring", str(RING), "--xdp", xdp, "--core", str(core), "--seconds", "40"]

    echo = [*end("echo", ground.far, ground.near, ground.cores[1]), *_ECHO_QUEUES[xdp]]
    ping = [*end("ping", ground.near, ground.far, ground.cores[0]), *_PING_QUEUES]
    return _pair(ground, (ground.receiver, echo), (ground.sender, [*ping, "--size", str(SIZE), *options]))


def udp_rtt(context: Context) -> Iterable[Row]:
    """Two engines, each spinning on a core of its own; one in flight, the next leaves in the same turn.

    The filter hangs in generic mode: a frame alone passes veth quicker so than through its NAPI and page
    pool. ``udp-rtt.native``: in native mode; ``udp-rtt.bare``: against bare libxdp, both in generic mode.
    The stages are of a trial of their own: see ``STAMPED``."""
    options = ["--count", "500" if context.quick else "20000", "--skip", "50" if context.quick else "2000"]
    rounds = context.rounds(MANY)
    ours: list[dict[str, Any]] = []
    native: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    floor: list[dict[str, Any]] = []
    with bed(queues=2) as ground:
        for number in range(rounds):
            context.say(f"  udp-rtt round {number + 1} of {rounds}")
            ours.append(_ours(ground, "generic", *options))
            theirs.append(_kernel(ground, *options))
            native.append(_ours(ground, "native", *options))
            floor.append(_bare(ground, "generic", *options))
        told = row_key(_ours(ground, "generic", *options, stages=True)["stages"], STAMPED)
        yield rtt_row(ground, "udp-rtt", "generic", ours, theirs, "busy-polled kernel UDP", told)
        yield rtt_row(ground, "udp-rtt.native", "native", native, theirs, "busy-polled kernel UDP")
        yield rtt_row(ground, "udp-rtt.bare", "generic", ours, floor, "bare libxdp")


def rtt_row(
    ground: Bed,
    name: str,
    xdp: str,
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    who: str,
    stages: Mapping[str, Any] | None = None,
) -> Row:
    """Round trips, µs: the median p50 of rounds that saw one state of the machine, against ``who``'s, with
    the percentiles of the same rounds. ``stages``: further keys of the row."""
    (kept, against), note = alike(ours, theirs)
    return row(
        name,
        median([a["p50"] / 1000 for a in kept]),
        median([a["p50"] / 1000 for a in against]),
        who,
        unit="µs",
        n=sum(a["n"] for a in ours),
        rounds=spread([a["p50"] / 1000 for a in ours]),
        peer_rounds=spread([a["p50"] / 1000 for a in theirs]),
        **note,
        lost=sum(a["lost"] for a in ours),
        peer_lost=sum(a["lost"] for a in theirs),
        **curves(kept, against),
        **(stages or {}),
        **settings(ground, payload=SIZE, in_flight=1, ring=RING, xdp=xdp, stamps="none on either side"),
    )


def wake(context: Context) -> Iterable[Row]:
    """From the stamp that the XDP program writes to the first line of a native hook; single packets."""
    count, rate = (500, 20_000) if context.quick else (40_000, 40_000)
    answers: list[dict[str, Any]] = []
    with bed() as ground:
        for number in range(context.rounds()):
            context.say(f"  wake round {number + 1} of {context.rounds()}")
            command = _worker("wake", ground.far, ground.near, ground.cores[1], "--skip", str(count // 20))
            with contextlib.closing(Program(ground.receiver, command)) as program:
                program.ready()
                ground.generate("xsk_send", "--count", str(count), "--rate", str(rate), "--batch", "1")
                answers.append(program.stop())
        figures = [a["p50"] / 1000 for a in answers]
        yield row(
            "wake",
            median(figures),
            unit="µs",
            n=sum(a["n"] for a in answers),
            rounds=spread(figures),
            **curves(answers),
            **row_key(between([a["stages"] for a in answers])),
            **settings(ground, generator="xsk_send", rate=rate, batch=1, payload=SIZE),
        )
