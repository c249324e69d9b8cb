"""asyncio: echo round trips a second of one asyncio protocol, over our transport and over kernel sockets.

The asking end is the same for all: a kernel socket that spins (tools/bench/tcp_peer.c). The answering end is
one class (``xdpstack/bench/aio_echo.py``) in a process of its own, over our transport, asyncio's, uvloop's.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from typing import Any

from xdpstack.bench.breakdown import curves, row_key
from xdpstack.bench.lab import PORT, Bed, alike, bed, peer, settings
from xdpstack.bench.latency import STAMPED
from xdpstack.bench.registry import Context, Skip, tools_dir
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.bench.tcp import pair

__all__ = ["echo"]

SIZE = 64
CONTESTANTS = {
    "ours": ["ours"],
    "sleeping": ["ours", "--spins", "0"],
    "asyncio": ["asyncio"],
    "uvloop": ["uvloop"],
}
_PORTS = iter(range(PORT + 10_000, 1 << 16))


def _has_uvloop() -> bool:
    root = tools_dir()
    found = root is not None and (root.parents[1] / "build" / "peers" / "uvloop").is_dir()
    return found or importlib.util.find_spec("uvloop") is not None


def _trial(ground: Bed, transport: list[str], counts: list[str]) -> dict[str, Any]:
    port = str(next(_PORTS))
    ends = ["--local", str(ground.far.address), "--remote", str(ground.near.address)]
    answer = [sys.executable, "-m", "xdpstack.bench.aio_echo", *transport, "--iface", ground.far.name, *ends]
    answer += ["--port", port, "--core", str(ground.cores[1])]
    ask = [peer("tcp_peer"), "--mode", "ping", "--remote", str(ground.far.address), "--rport", port]
    ask += ["--core", str(ground.cores[0]), "--size", str(SIZE), "--seconds", "40", *counts]
    answered, asked = pair(ground, (ground.receiver, answer), (ground.sender, ask))
    return {**asked, "stages": answered["stages"]}


def echo(context: Context) -> Iterable[Row]:
    """Ours against uvloop, spinning for 0.1 ms before it waits (``asyncio``) and not at all; and against
    asyncio's own loop. The stages are of a trial of their own: see ``STAMPED``. Skip, behind what can be had,
    where uvloop is not installed."""
    contestants = {name: how for name, how in CONTESTANTS.items() if name != "uvloop" or _has_uvloop()}
    counts = ["--count", "300" if context.quick else "20000", "--skip", "30" if context.quick else "2000"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    with bed() as ground:
        for number in range(context.rounds()):
            context.say(f"  asyncio round {number + 1} of {context.rounds()}")
            for name, how in contestants.items():
                found[name].append(_trial(ground, how, counts))
        told = row_key(_trial(ground, ["ours", "--stamps"], counts)["stages"], STAMPED)
        rows = (
            ("asyncio", "ours", "uvloop"),
            ("asyncio.sleeping", "sleeping", "uvloop"),
            ("asyncio.plain", "ours", "asyncio"),
        )
        for name, mine, other in rows:
            if other not in found:
                continue
            (kept, against), note = alike(found[mine], found[other])
            yield row(
                name,
                median([a["rate"] for a in kept]),
                median([a["rate"] for a in against]),
                f"{other}, kernel sockets",
                unit="/s",
                better="higher",
                n=sum(a["n"] for a in found[mine]),
                rounds=spread([a["rate"] for a in found[mine]]),
                peer_rounds=spread([a["rate"] for a in found[other]]),
                **note,
                **curves(kept, against, of="round trips", unit="µs"),
                **(told if name == "asyncio" else {}),
                **settings(ground, payload=SIZE, in_flight=1, asking="busy-polled kernel TCP"),
            )
    if "uvloop" not in found:
        raise Skip("uvloop is not there: make bench-peers, or pip install 'xdpstack[bench]'")
