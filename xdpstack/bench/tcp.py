"""tcp-rtt, tcp-rtt-kernel-peer, tcp-rps, tcp-stream: our TCP against the kernel's over the same veth pair."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from xdpstack.bench.breakdown import row_key
from xdpstack.bench.lab import PORT, Bed, Program, alike, bed, peer, settings
from xdpstack.bench.latency import RING, SIZE, STAMPED, rtt_row
from xdpstack.bench.registry import MANY, Context
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.lab import LinkEnd, Namespace

__all__ = ["pair", "rps", "rtt", "rtt_kernel_peer", "stream"]

CONNECTIONS = 64
WRITE = 1 << 20
BUFFER = 4 << 20
_ROOM = ("--buffer", str(BUFFER), "--ring", "512")
_PEER = "busy-polled kernel TCP"
_PORTS = iter(range(PORT + 1, 1 << 16))

# Either end sends by the queue that the other receives by, and receives by the other one. In generic mode the
# kernel takes the sender's queue 1 for a recorded 0, so both ends receive by 0 there.
_NEAR_QUEUES = ("--queue", "0", "--tx-queue", "1")
_FAR_QUEUES = ("--queue", "1", "--tx-queue", "0")
_ECHO_QUEUES = {"native": _FAR_QUEUES, "generic": _NEAR_QUEUES}
End = tuple[Namespace, list[str]]


def _ours(ground: Bed, mode: str, near: bool, port: int, *options: str) -> End:
    here, there = (ground.near, ground.far) if near else (ground.far, ground.near)
    command = [sys.executable, "-m", "xdpstack.bench.tcp_worker", mode, "--iface", here.name]
    command += [*_ends(here, there), "--port", str(port), "--core", str(ground.cores[0 if near else 1])]
    return ground.sender if near else ground.receiver, [*command, *options]


def _kernel(ground: Bed, mode: str, near: bool, port: int, *options: str) -> End:
    here, there = (ground.near, ground.far) if near else (ground.far, ground.near)
    command = [
        peer("tcp_peer"),
        "--mode",
        mode,
        *_ends(here, there),
        "--lport",
        str(port),
        "--rport",
        str(port),
    ]
    command += ["--core", str(ground.cores[0 if near else 1]), "--seconds", "40"]
    return ground.sender if near else ground.receiver, [*command, *options]


def _ends(here: LinkEnd, there: LinkEnd) -> list[str]:
    return ["--local", str(here.address), "--remote", str(there.address)]


def pair(ground: Bed, answering: End, asking: End) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the first says, what the second says): the first is ready before the second starts."""
    before = ground.core_to_core()
    with contextlib.closing(Program(*answering)) as first:
        first.ready()
        with contextlib.closing(Program(*asking)) as second:
            asked = second.wait(60)
        answered = first.stop()
    line = {"line_ns": [before, ground.core_to_core()]}
    return {**answered, **line}, {**asked, **line}


# ---- round trips ----------------------------------------------------------------------------------


def _counts(context: Context) -> list[str]:
    return ["--count", "500" if context.quick else "20000", "--skip", "50" if context.quick else "2000"]


def _kernel_pair(ground: Bed, counts: list[str]) -> dict[str, Any]:
    port = next(_PORTS)
    ping = _kernel(ground, "ping", True, port, "--size", str(SIZE), *counts)
    return pair(ground, _kernel(ground, "echo", False, port), ping)[1]


def _our_pair(ground: Bed, counts: list[str], xdp: str, *more: str) -> dict[str, Any]:
    """What the asking end says, and the stages that the answering one has stamped."""
    port, common = next(_PORTS), ("--ring", str(RING), "--xdp", xdp, *more)
    ask = _ours(ground, "ask", True, port, *_NEAR_QUEUES, *common, "--size", str(SIZE), *counts)
    answered, asked = pair(ground, _ours(ground, "echo", False, port, *_ECHO_QUEUES[xdp], *common), ask)
    return {**asked, "stages": answered["stages"]}


def _mixed_pair(ground: Bed, counts: list[str]) -> dict[str, Any]:
    port = next(_PORTS)
    ask = _ours(ground, "ask", True, port, "--ring", str(RING), "--size", str(SIZE), *counts)
    return pair(ground, _kernel(ground, "echo", False, port), ask)[1]


def rtt(context: Context) -> Iterable[Row]:
    """Two engines, each spinning on a core of its own; one message in flight.

    The filter hangs in generic mode, as in ``udp-rtt`` and for its reason; ``tcp-rtt.native``: in native.
    The stages are of a trial of their own, as there."""
    counts, rounds = _counts(context), context.rounds(MANY)
    found: dict[str, list[dict[str, Any]]] = {"generic": [], "native": []}
    theirs: list[dict[str, Any]] = []
    with bed(queues=2) as ground:
        for number in range(rounds):
            context.say(f"  tcp-rtt round {number + 1} of {rounds}")
            found["generic"].append(_our_pair(ground, counts, "generic"))
            theirs.append(_kernel_pair(ground, counts))
            found["native"].append(_our_pair(ground, counts, "native"))
        told = row_key(_our_pair(ground, counts, "generic", "--stamps")["stages"], STAMPED)
        yield rtt_row(ground, "tcp-rtt", "generic", found["generic"], theirs, _PEER, told)
        yield rtt_row(ground, "tcp-rtt.native", "native", found["native"], theirs, _PEER)


def rtt_kernel_peer(context: Context) -> Iterable[Row]:
    """Ours asks, a kernel socket answers; against kernel sockets at both ends. In native mode, which is the
    quicker one here: what the kernel's TCP sends is a clone, and generic mode copies that, too."""
    counts, rounds = _counts(context), context.rounds(MANY)
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with bed() as ground:
        for number in range(rounds):
            context.say(f"  tcp-rtt-kernel-peer round {number + 1} of {rounds}")
            ours.append(_mixed_pair(ground, counts))
            theirs.append(_kernel_pair(ground, counts))
        yield rtt_row(ground, "tcp-rtt-kernel-peer", "native", ours, theirs, _PEER)


# ---- requests a second ----------------------------------------------------------------------------


def rps(context: Context) -> Iterable[Row]:
    """64 connections with one request under way each: answers a second at the asking end."""
    count = 2000 if context.quick else 400_000
    many = ("--connections", str(CONNECTIONS))
    asks = (*many, "--size", str(SIZE), "--count", str(count))
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with bed(queues=2) as ground:
        for number in range(context.rounds()):
            context.say(f"  tcp-rps round {number + 1} of {context.rounds()}")
            port, ring = next(_PORTS), ("--ring", "256")
            ask = _ours(ground, "ask", True, port, *_NEAR_QUEUES, *ring, *asks, "--skip", str(count // 10))
            echo = _ours(ground, "echo", False, port, *_FAR_QUEUES, *ring, *many)
            ours.append(pair(ground, echo, ask)[1])
            port = next(_PORTS)
            load = _kernel(ground, "load", True, port, *asks)
            theirs.append(pair(ground, _kernel(ground, "serve", False, port), load)[1])
        (kept, against), note = alike(ours, theirs)
        yield row(
            "tcp-rps",
            median([a["rate"] for a in kept]),
            median([a["rate"] for a in against]),
            "kernel epoll",
            unit="/s",
            better="higher",
            n=sum(a["messages"] for a in ours),
            rounds=spread([a["rate"] for a in ours]),
            peer_rounds=spread([a["rate"] for a in theirs]),
            **note,
            **settings(ground, payload=SIZE, connections=CONNECTIONS),
        )


# ---- one stream -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _offload(ground: Bed, on: bool) -> Iterator[None]:
    """Segmentation offload of both ends by the device; checksums stay what the lab made them."""

    def turn(word: str) -> None:
        for namespace, end in ((ground.sender, ground.near), (ground.receiver, ground.far)):
            for what in ("tso", "gso", "gro"):
                with contextlib.suppress(subprocess.CalledProcessError):
                    namespace.run(["ethtool", "-K", end.name, what, word])

    turn("on" if on else "off")
    try:
        yield
    finally:
        turn("off")


@contextlib.contextmanager
def _segments(ground: Bed) -> Iterator[None]:
    """Kernel TCP that sends segments. Since Linux 4.17 it hands on up to 64 KiB at once, whatever ``ethtool``
    says, and GSO cuts them above the device: one that takes a segment at a time keeps it from that."""

    def most(segments: int) -> None:
        with ground.sender.netlink() as route:
            route.link("set", index=ground.near.index, gso_max_segs=segments)

    with ground.sender.netlink() as route:
        (link,) = route.get_links(ground.near.index)
    most(1)
    try:
        yield
    finally:
        most(link.get_attr("IFLA_GSO_MAX_SEGS"))


_STREAMS = (
    ("tcp-stream", "sends", "segments", "kernel TCP, no segmentation offload"),
    ("tcp-stream.gso", "sends", "kernel", "kernel TCP, GSO above the device"),
    ("tcp-stream.receive", "receives", "kernel", "kernel TCP, GSO above the device"),
    ("tcp-stream.live", "live", "merged", "kernel TCP, GSO, and GRO at its receiver"),
    ("tcp-stream.offloaded", "sends", "offloaded", "kernel TCP, offloaded"),
)


def stream(context: Context) -> Iterable[Row]:
    """Bytes a second of one connection, at the receiving end: ours sends to a kernel socket, ours receives
    from one; against the kernel at both ends that sends segment by segment, that has GSO cut what it sends
    above the device (``.gso``, and the sender of ``.receive``), and that offloads all (``.offloaded``).
    ``.live``: ours by live XDP frames, which veth takes where its far end has GRO on; so it has for the
    kernel's sender, too."""
    total = (8 if context.quick else 256) << 20
    amount = ("--bytes", str(total))
    found: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, trial: dict[str, Any]) -> None:
        found.setdefault(name, []).append(trial)

    with bed() as ground:
        for number in range(context.rounds()):
            context.say(f"  tcp-stream round {number + 1} of {context.rounds()}")
            with _offload(ground, False):
                add("sends", _our_stream(ground, *amount))
                port = next(_PORTS)
                drain = _ours(ground, "drain", False, port, *_ROOM)
                add("receives", pair(ground, drain, _pour(ground, port, *amount))[0])
                with _segments(ground):
                    add("segments", _kernel_stream(ground, *amount))
                add("kernel", _kernel_stream(ground, *amount))
                ground.gro(True)
                add("live", _our_stream(ground, *amount, "--tx", "live"))
                add("merged", _kernel_stream(ground, *amount))
            with _offload(ground, True):
                add("offloaded", _kernel_stream(ground, *amount))
        for name, mine, theirs, words in _STREAMS:
            (kept, against), note = alike(found[mine], found[theirs])
            yield row(
                name,
                median([a["rate"] for a in kept]),
                median([a["rate"] for a in against]),
                words,
                unit="B/s",
                better="higher",
                n=sum(a["bytes"] for a in found[mine]),
                rounds=spread([a["rate"] for a in found[mine]]),
                peer_rounds=spread([a["rate"] for a in found[theirs]]),
                **note,
                **settings(ground, write=WRITE, buffer=BUFFER),
            )


def _our_stream(ground: Bed, *options: str) -> dict[str, Any]:
    port = next(_PORTS)
    pour = _ours(ground, "pour", True, port, *_ROOM, "--size", str(WRITE), *options)
    return pair(ground, _kernel(ground, "drain", False, port), pour)[0]


def _pour(ground: Bed, port: int, *options: str) -> End:
    return _kernel(ground, "pour", True, port, "--write", str(WRITE), *options)


def _kernel_stream(ground: Bed, *options: str) -> dict[str, Any]:
    port = next(_PORTS)
    return pair(ground, _kernel(ground, "drain", False, port), _pour(ground, port, *options))[0]
