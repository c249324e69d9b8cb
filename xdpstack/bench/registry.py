"""Which benches there are, what each has to reach, and where each is found.

Network benches are modules of this package. The in-memory ones are in tools/bench/book_bench.py, beside
their peers, and are found when the source tree is there: a module with ``BENCHES``, a mapping from the
name to a function ``(quick: bool) -> iterable of rows`` (:class:`Row` or dictionaries of its JSON keys).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdpstack.bench.rows import Row, Target, from_json
from xdpstack.errors import ConfigError

__all__ = ["MANY", "TARGETS", "Bench", "Context", "Skip", "benches", "find", "target_of", "tools_dir"]


MANY = 15
"""Rounds: the host moves a guest's cores from one to the next, and of five it left one or two."""


class Skip(Exception):  # a reason, no fault: N818 does not fit
    """This bench cannot run here; the reason is the argument, and says what would mend it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """How a bench is to run."""

    quick: bool = False
    """Tiny counts: the shape of the rows is right, the figures mean little."""
    say: Callable[[str], None] = lambda text: None
    """Takes a line of progress."""

    def rounds(self, number: int = 5) -> int:
        """How often ours and the peer take turns: MANY where rounds in one state of the host are compared."""
        return 1 if self.quick else number


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A name, a sentence, and the function that gives its rows."""

    name: str
    about: str
    run: Callable[[Context], Iterable[Row]]


_RATE = Target.ratio_at_least
TARGETS: Mapping[str, Target] = {
    "rx": Target.above_peer_at_most(40, "ns"),
    "rx-kernel": Target.ratio_at_most(0.3),
    "jumbo": Target.ratio_at_most(0.5),
    "rx-rate": _RATE(1.15),
    "rx-rate.live": _RATE(1.4),
    "rx-rate.dpdk": _RATE(0.98),
    "tx": _RATE(0.95),
    "forward": _RATE(1.1),
    "rules": _RATE(0.8),
    "rules.live": _RATE(0.8),
    "queues": Target.ratio_at_most(1.1),
    "udp-rtt": Target.ratio_at_most(0.6),
    "tcp-rtt": Target.ratio_at_most(0.6),
    "tcp-rtt-kernel-peer": Target.ratio_at_most(0.8),
    "tcp-rps": _RATE(1.8),
    "tcp-stream": _RATE(1.0),
    "asyncio": _RATE(1.3),
    "tcp-segment": Target.at_most(100, "ns"),
    "itch": Target.at_most(12, "ns") & Target.ratio_at_most(0.2),
    "book": Target.at_most(120, "ns") & Target.ratio_at_most(0.5),
    "book.8900": Target.ratio_at_most(0.5),
    "sbe": Target.at_most(150, "ns"),
    "batch": Target.at_most(15, "ns"),
    "wake": Target.at_most(1.5, "µs"),
    "hop": Target.ratio_at_most(1.6),
    "ring-throughput": Target.at_least(100e6, "/s"),
    "ring-throughput.single": Target.at_least(15e6, "/s"),
    "ring-python": Target.at_most(20, "ns"),
    "ring-python.64": Target.at_most(20, "ns"),
    "iceoryx2": Target.ratio_at_most(0.7),
    "stamp": Target.at_most(3, "ns"),
    "stamp.stream": Target.at_most(25, "ns"),
    "stamp.ws": Target.at_most(25, "ns"),
    "stamp.fix": Target.at_most(25, "ns"),
    "publish": Target.at_most(250, "ns"),
    "publish.burst": Target.at_most(15, "ns"),
}
"""By the name of a row."""

_ABOUT = {
    "rx": "busy time a packet in the receive thread, against a bare libxdp loop",
    "rx-kernel": "the same, against recvmmsg on a kernel UDP socket",
    "jumbo": "9,000-byte frames: busy time a byte in the receive thread, against recvmmsg",
    "rx-rate": "highest rate without loss: AF_XDP sender and live XDP frames; recvmmsg and DPDK",
    "tx": "64-byte frames a second from one core through the engine, against a bare libxdp loop",
    "forward": "receive, rewrite MACs, send, two ports: frames a second, against DPDK testpmd over af_xdp",
    "rules": "highest rate without loss with 1,024 rules loaded, against 1 rule",
    "queues": "busy time a packet with 1, 2 and 4 queues on one thread, the dearest against the cheapest",
    "udp-rtt": "echo round trip p50 through two engines, against busy-polled kernel UDP",
    "tcp-rtt": "echo round trip p50 over TCP, ours at both ends, against busy-polled kernel TCP",
    "tcp-rtt-kernel-peer": "the same with a kernel socket at the other end",
    "tcp-rps": "64 connections, 64-byte request and reply: requests a second, against kernel epoll",
    "tcp-stream": "one TCP connection, 1 MiB writes: bytes a second, without segmentation offload",
    "asyncio": "echo round trips a second of one asyncio protocol over our transport, against uvloop",
    "tcp-segment": "a TCP segment of 64 bytes in order and its ACK, from memory: frame in, frame out",
    "itch": "ITCH 5.0 from memory to normalised updates, against itch-book and itchcpp",
    "book": "decode and L3 book over the generated day, against the same two",
    "sbe": "CME capture, packets from memory to book",
    "batch": "cost in Python per delivered message, batches of 64 or more",
    "wake": "spinning hand-off, XDP hook to hook function in the engine, p50",
    "hop": "a 64-byte record to another process by a tape, p50, against a bare cache line",
    "ring-throughput": "64-byte records a second by a tape to another process: in batches, one by one",
    "ring-python": "a record into a numpy array of another process, reads of 64 or more",
    "iceoryx2": "64 bytes to another process and back, half of it, both ends in Python",
    "stamp": "the stages of a message, with and without: a feed's, a stream's, WebSocket's, FIX's",
    "publish": "what a tape for others costs the engine: a turn of one message; an update in full turns",
}
_NETWORK = {
    "rx": "xdpstack.bench.receive:rx",
    "rx-kernel": "xdpstack.bench.receive:rx_kernel",
    "jumbo": "xdpstack.bench.receive:jumbo",
    "rx-rate": "xdpstack.bench.rate:rx_rate",
    "tx": "xdpstack.bench.sending:tx",
    "forward": "xdpstack.bench.sending:forward",
    "rules": "xdpstack.bench.scaling:rules",
    "queues": "xdpstack.bench.scaling:queues",
    "udp-rtt": "xdpstack.bench.latency:udp_rtt",
    "wake": "xdpstack.bench.latency:wake",
    "tcp-rtt": "xdpstack.bench.tcp:rtt",
    "tcp-rtt-kernel-peer": "xdpstack.bench.tcp:rtt_kernel_peer",
    "tcp-rps": "xdpstack.bench.tcp:rps",
    "tcp-stream": "xdpstack.bench.tcp:stream",
    "asyncio": "xdpstack.bench.aio:echo",
    "tcp-segment": "xdpstack.bench.segment:segment",
    "batch": "xdpstack.bench.python:batch",
    "hop": "xdpstack.bench.ring:hop",
    "ring-throughput": "xdpstack.bench.ring:throughput",
    "ring-python": "xdpstack.bench.ring:python",
    "iceoryx2": "xdpstack.bench.ring:iceoryx2",
    "stamp": "xdpstack.bench.stamp:stamp",
    "publish": "xdpstack.bench.publish:publish",
}


def target_of(name: str) -> Target | None:
    """The target of the row of that name, None where it has none."""
    return TARGETS.get(name)


def tools_dir() -> Path | None:
    """tools/bench of the source tree that this package is imported from; None when installed without."""
    path = Path(__file__).resolve().parents[2] / "tools" / "bench"
    return path if path.is_dir() else None


def _ours(where: str) -> Callable[[Context], Iterable[Row]]:
    module, _, name = where.partition(":")

    def run(context: Context) -> Iterable[Row]:
        function: Callable[[Context], Iterable[Row]] = getattr(importlib.import_module(module), name)
        return function(context)

    return run


def _in_memory(name: str) -> Callable[[Context], Iterable[Row]]:
    def run(context: Context) -> Iterable[Row]:
        table = _book_benches()
        if name not in table:
            raise Skip("tools/bench/book_bench.py has no such bench")
        for item in table[name](context.quick):
            yield item if isinstance(item, Row) else from_json(item)

    return run


def _book_benches() -> Mapping[str, Callable[[bool], Iterable[Any]]]:
    folder = tools_dir()
    path = folder / "book_bench.py" if folder else None
    if path is None or not path.exists():
        raise Skip("tools/bench/book_bench.py is not there: it needs the source tree")
    name = "xdpstack_tools_book_bench"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    table: Mapping[str, Callable[[bool], Iterable[Any]]] = sys.modules[name].BENCHES
    return table


def benches() -> dict[str, Bench]:
    """Every bench by name, in the order of the table of targets."""
    return {
        name: Bench(
            name=name,
            about=about,
            run=_ours(_NETWORK[name]) if name in _NETWORK else _in_memory(name),
        )
        for name, about in _ABOUT.items()
    }


def find(names: Iterable[str]) -> list[Bench]:
    """The benches of these names, all where there is none. ConfigError names an unknown one."""
    known = benches()
    wanted = list(names) or list(known)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"no bench {name!r}; there are {', '.join(known)}")
    return [known[name] for name in wanted]
