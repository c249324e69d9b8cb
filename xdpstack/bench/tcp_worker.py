"""Ours as the ends of TCP benches: an engine with one AF_XDP port, its TCP served by a native stream hook.

    python -m xdpstack.bench.tcp_worker echo|ask|drain|pour --iface NAME --core N --local A --remote A …

echo and drain listen and say ``ready``; ask and pour connect (Python turns the engine until every connection
is open), and then, as for the others, the engine's own thread turns: pinned, SCHED_FIFO, spinning. The hooks
are those of tools/bench/streams.c. Ends like the peers, with one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
from typing import Any

import numpy as np

from xdpstack._ffi import ffi
from xdpstack.bench.breakdown import merged
from xdpstack.bench.lab import PORT, peer
from xdpstack.bench.worker import PRIORITY, SAMPLES, Life, summary
from xdpstack.bpf import Filter
from xdpstack.engine import Engine, EngineConfig
from xdpstack.interface import Interface
from xdpstack.port.xsk import Way, XskPort
from xdpstack.streams import Streams

__all__ = ["engine_of", "main"]

LISTENING = {"echo", "drain"}
SHOWN = (
    "mss",
    "cwnd",
    "send_window",
    "srtt_ns",
    "retransmits",
    "timeouts",
    "fast_retransmits",
    "tail_probes",
)


class _Stream(ctypes.Structure):
    """``struct bench_stream`` of tools/bench/streams.c."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("messages", "limit", "bytes", "total", "skip", "count", "cap")
        ),
        ("samples", ctypes.c_void_p),
        *((name, ctypes.c_uint64) for name in ("sent", "first", "last", "ended")),
        ("size", ctypes.c_uint32),
        ("one", ctypes.c_uint32),
    ]


def engine_of(
    args: argparse.Namespace, undo: contextlib.ExitStack, xdp: str = "native", tx: Way = "socket"
) -> tuple[Engine, XskPort]:
    """An engine with one port that gets what comes by TCP to this end's address; ``undo`` closes it.
    ``xdp``: where the filter hangs, ``native`` or ``generic``; ``tx``: as of ``XskPort``."""
    interface = Interface.find(args.iface)
    rule, stamps = f"tcp dst {args.local} -> bench", args.stamps
    steering = undo.enter_context(Filter.load(interface.name, mode=xdp, rules=[rule], stamp=stamps))
    port = undo.enter_context(
        XskPort(
            interface.name,
            args.queue,
            tx_queue=args.tx_queue,
            mode="copy",
            rx_ring=args.ring,
            rx_frames=args.ring,
            tx_ring=args.ring,
            tx=tx,
            huge_pages=False,
            stamps=stamps,
        )
    )
    for queue, fd in port.fds().items():
        steering.set_socket("bench", queue, fd)
    engine = undo.enter_context(Engine(EngineConfig(max_updates=1 << 12, slow=0)))
    undo.callback(engine.detach)
    index = engine.add_link(port, mac=interface.mac, addresses=[f"{args.local}/24"], mtu=interface.mtu)
    mac = interface.neighbour(args.remote)
    assert mac is not None, f"no neighbour {args.remote}"
    engine.hosts[index].add_neighbour(args.remote, mac)
    return engine, port


class _End:
    """One engine, one port, its streams and the hook."""

    def __init__(self, args: argparse.Namespace, undo: contextlib.ExitStack) -> None:
        self.args = args
        library = ctypes.CDLL(peer("hooks.so"))
        library.bench_hook_ns_per_tick.restype = ctypes.c_double
        self.ns_per_tick = float(library.bench_hook_ns_per_tick())
        self._first, self._info = 0, dict[str, Any]()
        self.samples = np.zeros(SAMPLES, np.uint32)
        self.hook = _Stream(
            cap=SAMPLES,
            samples=self.samples.ctypes.data,
            limit=args.count + args.skip,
            skip=args.skip,
            total=args.bytes,
            size=args.size,
            one=args.connections == 1,
        )
        self.engine, self.port = engine_of(args, undo, args.xdp, args.tx)
        self.streams = undo.enter_context(
            Streams(
                self.engine,
                0,
                connections=2 * args.connections + 8,
                send_bytes=args.buffer,
                receive_bytes=args.buffer,
            )
        )
        address = ctypes.cast(getattr(library, f"bench_stream_{args.mode}"), ctypes.c_void_p).value
        pointer = ffi.cast("xds_stream_hook", address)
        self.streams.set_hook(pointer, ffi.cast("void *", ctypes.addressof(self.hook)))

    def run(self) -> dict[str, Any]:
        """Until the hook has what it was to get, SIGTERM, or the bound in seconds."""
        args, hook, life = self.args, self.hook, Life(self.args.seconds)
        if args.mode in LISTENING:
            self.streams.give(self.streams.listen(args.port, backlog=args.connections))
        else:
            opened = [self.streams.connect(args.remote, args.port) for _ in range(args.connections)]
            for one in opened:
                self.streams.give(one)
            self._first = opened[0].number
        runner = self.engine.start(cpu=args.core, rt_priority=PRIORITY)
        others = os.sched_getaffinity(0) - {args.core}
        if others:
            os.sched_setaffinity(0, others)
        if args.mode in LISTENING:
            print("ready", flush=True)
        for _ in life.ticks(0.005):
            self._look()
            if hook.ended or (args.mode == "ask" and hook.messages >= hook.limit):
                break
        runner.stop()
        return self.result()

    def _look(self) -> None:
        """What the first connection says of itself, while it is there; the thread goes on meanwhile."""
        if self._first:
            with contextlib.suppress(ValueError):
                self._info = self.streams.stack.info(self._first)

    def result(self) -> dict[str, Any]:
        """The hook's account."""
        hook = self.hook
        seconds = (hook.last - hook.first) * self.ns_per_tick / 1e9 if hook.last > hook.first else 0.0
        made: dict[str, Any] = {"peer": f"xdpstack {self.args.mode}", "lost": 0}
        made |= {"messages": int(hook.messages), "bytes": int(hook.bytes), "seconds": seconds}
        if self.args.mode == "drain":
            made["rate"] = hook.bytes / seconds if seconds else 0.0
        elif not hook.one and seconds:
            made["rate"] = (hook.messages - hook.skip - 1) / seconds
        stats, port = self.streams.stats(), self.port.stats()
        made |= {"segments": stats["received"], "sent": stats["sent"], "tx_no_frame": port["tx_no_frame"]}
        made |= {name: port[name] for name in ("tx_kicks", "tx_live", "tx_live_runs", "tx_live_refused")}
        spent = resource.getrusage(resource.RUSAGE_SELF)
        made |= {"user_s": round(spent.ru_utime, 3), "system_s": round(spent.ru_stime, 3)}
        made["stages"] = merged(self.engine.connections.places if self.engine.connections else ())
        made["connection"] = {k: v for k, v in self._info.items() if k in SHOWN}
        return {**made, **summary(self.samples[: hook.count] * self.ns_per_tick)}


def main(argv: list[str] | None = None) -> int:
    """Run one end; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["ask", "drain", "echo", "pour"])
    parser.add_argument("--iface", required=True)
    parser.add_argument("--local", required=True, help="this end's IPv4 address")
    parser.add_argument("--remote", required=True, help="the other end's IPv4 address")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--queue", type=int, default=0, help="what is received by")
    parser.add_argument("--tx-queue", type=int, default=None, help="what is sent by (default: --queue)")
    parser.add_argument(
        "--xdp", choices=["native", "generic"], default="native", help="where the filter hangs"
    )
    parser.add_argument("--stamps", action="store_true", help="stamp what comes, as no peer does")
    parser.add_argument("--ring", type=int, default=2048, help="descriptors and frames")
    parser.add_argument("--tx", choices=["socket", "live", "auto"], default="socket", help="how frames leave")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--size", type=int, default=64, help="bytes of a message or of a write")
    parser.add_argument("--buffer", type=int, default=65536, help="bytes of a connection, each way")
    parser.add_argument("--skip", type=int, default=0, help="answers that are not timed")
    parser.add_argument("--count", type=int, default=0, help="answers that are")
    parser.add_argument("--bytes", type=int, default=0, help="pour: in all")
    parser.add_argument("--seconds", type=float, default=50)
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as undo:
        answer = _End(args, undo).run()
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
