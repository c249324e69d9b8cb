"""rx-rate: the highest rate that a receiver takes without losing a packet.

On veth the receiver's softirq runs on the sender's core, so a sender is mostly slowed down by what it sends
to: flat out it finds the pace of the whole path. A trial sends a fixed number of packets; it counts when
every one was received. Flat out is tried first, then lower rates by bisection; a trial that lost is repeated
once, because a guest loses its cores now and then. The figure is the rate the receiver saw, first packet
to last, in the fastest trial without loss; ours and the peer take turns, a search each a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from xdpstack.bench.lab import PORT, Bed, bed, peer, settings
from xdpstack.bench.receive import GENERIC, OURS, RECVMMSG, Contestant, Load
from xdpstack.bench.registry import Context, Skip
from xdpstack.bench.rows import Row, median, row, spread

__all__ = ["rx_rate"]

STEPS = 4
"""Bisections: the figure is found to a sixteenth of the span at worst."""
FLOOR = 100_000.0
"""Packets a second; a receiver that loses at this rate is given 0."""
TRIES = 2


def _dpdk(ground: Bed, options: Sequence[str]) -> list[str]:
    core = str(ground.cores[1])
    return [peer("dpdk_rx"), "--iface", ground.far.name, "--core", core, "--seconds", "50", *options]


DPDK = Contestant("DPDK af_xdp", _dpdk)


def _trial(ground: Bed, who: Contestant, load: Load) -> tuple[float, float]:
    """(rate seen by the receiver or 0 when it lost, rate offered)."""
    options = ["--ring", "2048"] if who is not RECVMMSG else []
    if who.ours:
        options += ["--slices", "0", "--no-stamps"]
    for _ in range(TRIES):
        answer = who.receive(ground, load, *options)
        offered = float(answer["generator"]["rate"])
        if answer["seen"] >= answer["sent"] and answer["span_ns"]:
            return (answer["seen"] - 1) * 1e9 / answer["span_ns"], offered
    return 0.0, offered


def highest(ground: Bed, who: Contestant, load: Load, steps: int) -> tuple[float, dict[str, Any]]:
    """The best rate without loss, and how it was found."""
    best, offered = _trial(ground, who, load)
    tried = 1
    if best:
        return best, {"flat_out": True, "trials": tried}
    low, high = FLOOR, offered
    for _ in range(steps):
        middle = (low + high) / 2
        rate, _ = _trial(ground, who, replace(load, rate=middle))
        tried += 1
        if rate:
            best, low = max(best, rate), middle
        else:
            high = middle
    return best, {"flat_out": False, "trials": tried}


def _compare(
    context: Context, ground: Bed, name: str, mine: Contestant, other: Contestant, load: Load
) -> Row:
    ours: list[float] = []
    theirs: list[float] = []
    how: dict[str, int] = {"ours": 0, "peer": 0}
    for number in range(context.rounds()):
        context.say(f"  {name} round {number + 1} of {context.rounds()}")
        for who, rates, side in ((mine, ours, "ours"), (other, theirs, "peer")):
            rate, notes = highest(ground, who, load, 1 if context.quick else STEPS)
            rates.append(rate)
            how[side] += notes["flat_out"]
    return row(
        name,
        median(ours),
        median(theirs),
        other.name,
        unit="/s",
        better="higher",
        n=load.count * len(ours),
        rounds=spread(ours),
        peer_rounds=spread(theirs),
        flat_out=how["ours"],
        peer_flat_out=how["peer"],
        **settings(
            ground,
            generator=load.generator,
            batch=load.batch,
            payload=load.size,
            packets=load.count,
            ring=2048,
            rcvbuf="16 MiB",
            port=PORT,
            stamps="none on either side",
            xdp="generic" if mine is GENERIC else "native",
        ),
    )


def rx_rate(context: Context) -> Iterable[Row]:
    """``rx-rate`` (AF_XDP sender) and ``rx-rate.live`` against recvmmsg, ``rx-rate.dpdk`` against DPDK.

    What an AF_XDP sender sends comes frame by frame, and our filter takes it in generic mode; ``.native``:
    in native mode, which live frames need."""
    count = 3000 if context.quick else 150_000
    sender, live = Load("xsk_send", count), Load("live_frames", count, batch=64)
    with bed() as ground:
        yield _compare(context, ground, "rx-rate", GENERIC, RECVMMSG, sender)
        yield _compare(context, ground, "rx-rate.native", OURS, RECVMMSG, sender)
        yield _compare(context, ground, "rx-rate.live", OURS, RECVMMSG, live)
        try:
            peer("dpdk_rx")
        except Skip as reason:
            context.say(f"  rx-rate.dpdk is left out: {reason}")
            return
        yield _compare(context, ground, "rx-rate.dpdk", GENERIC, DPDK, sender)
        yield _compare(context, ground, "rx-rate.dpdk.native", OURS, DPDK, sender)
        yield _compare(context, ground, "rx-rate.dpdk.live", OURS, DPDK, live)
