"""Ours as programs: an engine on one AF_XDP port, with the protocol of the peers in tools/bench.

    python -m xdpstack.bench.worker rx|wake|echo|ping|send|tx|forward --iface NAME --core N …

The engine runs free on its own thread, as in production: pinned, SCHED_FIFO, spinning. What it hands
packets to is a native function (tools/bench/hooks.c), as a user's would be. This process's Python only
starts it, looks at its counters now and then from the other core, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from xdpstack._ffi import check, ffi, lib
from xdpstack.bench.breakdown import PERCENTILES as KEPT
from xdpstack.bench.breakdown import merged
from xdpstack.bench.lab import peer
from xdpstack.bpf import Filter
from xdpstack.clock import Clock
from xdpstack.engine import Engine, EngineConfig
from xdpstack.feed import ip_to_int
from xdpstack.interface import Interface
from xdpstack.port import Subscription, pipe
from xdpstack.port.xsk import XskPort, row_of
from xdpstack.stats import Histogram

__all__ = ["PRIORITY", "SAMPLES", "Life", "main", "summary"]

SLICE = 1000
"""Packets, as BENCH_SLICE in tools/bench/bench.h."""
SLICE_NS = 50_000_000
"""ns that the forwarder stays in C."""
PERIOD = 0.002
"""Seconds between two looks at the engine's counters."""
PRIORITY = 10
"""SCHED_FIFO, as the peers' --fifo."""
SAMPLES = 1 << 21
PERCENTILES = {"min": 0.0, "p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}


class _Hook(ctypes.Structure):
    """``struct bench_hook`` of tools/bench/hooks.c."""

    _fields_ = [
        ("packets", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("sum", ctypes.c_uint64),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("skip", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("cap", ctypes.c_uint64),
        ("samples", ctypes.c_void_p),
        ("sequence", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("sent", ctypes.c_uint64),
        ("dst", ctypes.c_uint32),
        ("len", ctypes.c_uint32),
        ("batch", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
        ("tick", ctypes.c_uint16),
    ]


class _Bench:
    """One engine with one port and one endpoint that calls a native handler."""

    def __init__(self, args: argparse.Namespace, handler: str) -> None:
        self.args = args
        self._undo = contextlib.ExitStack()
        library = self.library = ctypes.CDLL(peer("hooks.so"))
        self.samples = np.zeros(SAMPLES, np.uint32)
        self.hook = _Hook(skip=args.skip, cap=SAMPLES, samples=self.samples.ctypes.data, limit=args.count)
        interface = Interface.find(args.iface)
        rules = [f"udp dst 10.200.{n // 250}.{n % 250 + 1}:{2000 + n} -> pass" for n in range(args.rules - 1)]
        rules.append(f"udp dst {args.local}:{args.port} -> bench")
        row = row_of(interface.name, {"mode": "copy"})
        steering = self._undo.enter_context(
            Filter.load(interface.name, mode=args.xdp, rules=rules, stamp=args.stamps, row=row)
        )
        self.port = self._undo.enter_context(
            XskPort(
                interface.name,
                range(args.queues) if args.queues else args.queue,
                tx_queue=args.tx_queue,
                tx=args.tx,
                mode="copy",
                row=row,
                rx_ring=args.ring,
                rx_frames=args.ring,
                huge_pages=False,
                stamps=args.stamps,
            )
        )
        for queue, fd in self.port.fds().items():
            steering.set_socket("bench", queue, fd)
        self.engine = self._undo.enter_context(Engine(EngineConfig(max_updates=1 << 12, burst=args.burst)))
        index = self.engine.add_link(self.port, mac=interface.mac, addresses=[args.local])
        if args.remote:
            mac = interface.neighbour(args.remote)
            assert mac is not None, f"no neighbour {args.remote}"
            self.engine.hosts[index].add_neighbour(args.remote, mac)
        if handler == "echo":
            pointer = lib.xds_udp_echo_handler()
        else:
            address = ctypes.cast(getattr(library, f"bench_hook_{handler}"), ctypes.c_void_p).value
            pointer = ffi.cast("xds_dgram_hook", address)
        self.engine.add_udp(args.local, args.port, pointer, ffi.cast("void *", ctypes.addressof(self.hook)))

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def start(self) -> Any:
        """Let the engine run on its core, and step aside to the other."""
        runner = self.engine.start(cpu=self.args.core, rt_priority=PRIORITY)
        others = os.sched_getaffinity(0) - {self.args.core}
        if others:
            os.sched_setaffinity(0, others)
        print("ready", flush=True)
        return runner

    def counters(self) -> dict[str, int]:
        """The engine's own, as they are now."""
        raw = ffi.new("struct xds_engine_stats *")
        lib.xds_engine_stats(self.engine.core, raw)
        return {
            "packets": raw.packets,
            "busy_ns": raw.busy_ns,
            "turns": raw.turns,
            "turns_busy": raw.turns_busy,
        }

    def percentiles(self, *, ticks: bool = False) -> dict[str, Any]:
        """Of the handler's samples, in ns; ``ticks``: they are the counter's."""
        scale = 1.0
        if ticks:
            self.library.bench_hook_ns_per_tick.restype = ctypes.c_double
            scale = self.library.bench_hook_ns_per_tick()
        return summary(self.samples[: self.hook.count] * scale)


def summary(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Count and percentiles with the keys that the peers print; real samples, no interpolation."""
    if not len(values):
        return {"n": 0, **dict.fromkeys(PERCENTILES, 0)}
    found = np.percentile(values, list(PERCENTILES.values()), method="lower")
    return {"n": len(values), **{key: int(value) for key, value in zip(PERCENTILES, found, strict=True)}}


class Life:
    """Until SIGTERM, SIGINT or the bound in seconds."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._end = time.monotonic() + min(seconds, 60)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self.over = True

    def ticks(self, period: float) -> Iterator[None]:
        """Once a period, in seconds, until it is over."""
        while not self.over and time.monotonic() < self._end:
            yield
            time.sleep(period)


def _rx(args: argparse.Namespace) -> dict[str, Any]:
    life = Life(args.seconds)
    slices: list[float] = []
    with _Bench(args, "count") as bench:
        runner = bench.start()
        if args.slices:
            with contextlib.suppress(OSError):  # above the sender on this core, else no slice ends in time
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY + 10))
        base = last = bench.counters()
        for _ in life.ticks(PERIOD if args.slices else 0.02):
            now = bench.counters()
            if now["packets"] < args.skip:
                base = last = now
                continue
            packets = now["packets"] - last["packets"]
            if packets >= SLICE:
                slices.append((now["busy_ns"] - last["busy_ns"]) * 1000 / packets)
                last = now
        runner.stop()
        end, port = bench.counters(), bench.port.stats()
        return {
            "peer": "xdpstack",
            "seen": int(bench.hook.packets),
            "packets": end["packets"] - base["packets"],
            "bytes": int(bench.hook.bytes),
            "polls": end["turns"],
            "polls_busy": end["turns_busy"] - base["turns_busy"],
            "busy_ns": end["busy_ns"] - base["busy_ns"],
            "span_ns": int(bench.hook.last - bench.hook.first),
            "slice_ps": summary(np.array(slices)),
            "slices_ps": sorted(map(round, slices)),
            "stages": merged(bench.engine.endpoints.values()),
            **{key: port[key] for key in ("rx_dropped", "rx_ring_full", "rx_fill_empty") if key in port},
        }


def _wake(args: argparse.Namespace) -> dict[str, Any]:
    life = Life(args.seconds)
    with _Bench(args, "wake") as bench:
        runner = bench.start()
        for _ in life.ticks(0.02):
            pass
        runner.stop()
        told = merged(bench.engine.endpoints.values())
        return {"peer": "xdpstack", "seen": int(bench.hook.packets), **bench.percentiles(), "stages": told}


def _echo(args: argparse.Namespace) -> dict[str, Any]:
    life = Life(args.seconds)
    with _Bench(args, "echo") as bench:
        runner = bench.start()
        for _ in life.ticks(0.02):
            pass
        runner.stop()
        told = merged(bench.engine.endpoints.values())
        return {"peer": "xdpstack echo", "seen": bench.counters()["packets"], "stages": told}


def _ping(args: argparse.Namespace) -> dict[str, Any]:
    """Keeps one in flight; starts again what stands still for 10 ms, and counts it as lost."""
    life = Life(args.seconds)
    lost, seen = 0, -1
    with _Bench(args, "ping") as bench:
        runner = bench.start()
        to = Subscription(address=args.remote, port=args.port)
        for _ in life.ticks(0.01):
            if bench.hook.packets >= args.count:
                break
            if bench.hook.packets == seen or seen < 0:
                lost += seen >= 0
                bench.hook.sent = 0  # this one is not timed: it began in Python
                data = int(bench.hook.sequence).to_bytes(8, "little").ljust(args.size, b"\0")
                runner.send(data, to, sport=args.port)
            seen = int(bench.hook.packets)
        runner.stop()
        return {"peer": "xdpstack", "lost": lost, **bench.percentiles(ticks=True)}


def _send(args: argparse.Namespace) -> dict[str, Any]:
    """A generator of frames that take several chunks: one UDP datagram without a sum, numbered, paced."""
    os.sched_setaffinity(0, {args.core})
    interface = Interface.find(args.iface)
    to = interface.neighbour(args.remote)
    assert to is not None, f"no neighbour {args.remote}"
    frame = _datagram(to, interface.mac, args)
    sent, begin = 0, time.monotonic()
    with Filter.load(args.iface, mode="native"), XskPort(args.iface, mode="copy") as port:
        frames = ffi.new("struct xds_frame[]", args.burst)
        while sent < args.count:
            while args.rate and sent > (time.monotonic() - begin) * args.rate:
                pass
            got = lib.xds_link_reserve(port.handle, frames, min(args.burst, args.count - sent))
            for slot in frames[0:got]:
                frame[42:50] = sent.to_bytes(8, "little")
                ffi.memmove(slot.data, frame, len(frame))
                slot.len = len(frame)
                sent += 1
            lib.xds_link_commit(port.handle, frames, got)
            port.flush()
        while port.flush():
            pass
    return {"sent": sent, "seconds": round(time.monotonic() - begin, 3)}


def _datagram(to: str, mac: str, args: argparse.Namespace) -> bytearray:
    head = struct.pack("!BBHIBBH", 0x45, 0, 28 + args.size, 0, 64, 17, 0)
    head += socket.inet_aton(args.local) + socket.inet_aton(args.remote)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = 0xFFFF - (total & 0xFFFF) - (total >> 16)
    ip = head[:10] + total.to_bytes(2, "big") + head[12:]
    udp = struct.pack("!HHHH", args.port, args.port, 8 + args.size, 0)
    return bytearray(bytes.fromhex((to + mac).replace(":", "")) + b"\x08\0" + ip + udp + bytes(args.size))


def _tx(args: argparse.Namespace) -> dict[str, Any]:
    """Flat out: each turn's batch is called for by a datagram that comes round through a pipe."""
    life = Life(args.seconds)
    with _Bench(args, "send") as bench, contextlib.ExitStack() as stack:
        left, right = (stack.enter_context(end) for end in pipe(slots=16))
        stack.callback(bench.engine.close)
        macs, addresses = ("02:00:00:00:00:0a", "02:00:00:00:00:0b"), ("10.255.0.1", "10.255.0.2")
        index = bench.engine.add_link(left, mac=macs[0], addresses=addresses[:1])
        bench.engine.add_link(right, mac=macs[1], addresses=addresses[1:])
        bench.engine.hosts[index].add_neighbour(addresses[1], macs[1])
        hook, address = bench.hook, ctypes.cast(bench.library.bench_hook_send, ctypes.c_void_p).value
        hook.dst, hook.len, hook.batch = ip_to_int(args.remote), args.size, args.burst
        hook.port, hook.tick = args.port, index
        pointer = ffi.cast("void *", ctypes.addressof(hook))
        bench.engine.add_udp(addresses[1], 7, ffi.cast("xds_dgram_hook", address), pointer)
        runner = bench.start()
        runner.send(b"tick", Subscription(address=addresses[1], port=7), sport=7, port=index)
        for _ in life.ticks(0.01):
            if hook.packets >= args.count:
                break
        time.sleep(0.02)  # the turn that sends the last batch
        runner.stop()
        seconds = (hook.last - hook.first) / 1e9
        return {
            "peer": "xdpstack tx",
            "sent": hook.packets,
            "seconds": seconds,
            "rate": hook.bytes / seconds if seconds else 0,
            "tx_no_frame": bench.port.stats()["tx_no_frame"],
        }


def _forward(args: argparse.Namespace) -> dict[str, Any]:
    """Two ports joined, both ways, in one thread; frames leave with new MACs."""
    life = Life(args.seconds)
    names, macs = (args.iface, args.out), (args.back_dmac, args.dmac)
    state, links = ffi.new("struct xds_traffic_forward *"), ffi.new("struct xds_link *[2]")
    clock, ages = Clock(), Histogram()
    if args.stamps:
        state.ages = ages.pointer
    with contextlib.ExitStack() as stack:
        share: dict[str, Any] = {"lend": 2 * args.ring}  # the other port's chunks: nothing is copied
        for at, (name, mac) in enumerate(zip(names, macs, strict=True)):
            steering = stack.enter_context(
                Filter.load(name, mode="native", rules="any -> bench", stamp=args.stamps)
            )
            port = stack.enter_context(
                XskPort(
                    name,
                    mode="copy",
                    rx_ring=args.ring,
                    rx_frames=args.ring,
                    tx_ring=args.ring,
                    tx="auto" if args.tx == "live" and at == 0 else args.tx,
                    huge_pages=False,
                    stamps=args.stamps,
                    **share,
                )
            )
            share = {"share": port}
            steering.set_socket("bench", 0, port.fds()[0])
            links[at] = port.handle
            state.to[at] = bytes.fromhex(mac.replace(":", ""))
            state.source[at] = bytes.fromhex(Interface.find(name).mac.replace(":", ""))
        os.sched_setaffinity(0, {args.core})
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        print("ready", flush=True)
        for _ in life.ticks(0):
            check(lib.xds_traffic_forward(state, links, clock.pointer, SLICE_NS), "forward")
        told = ages.summary()
        return {
            "peer": "xdpstack forward",
            "forwarded": list(state.forwarded),
            "refused": state.refused,
            "ages": {"n": told.count, **{key: getattr(told, key) for key in KEPT}},
        }


_MODES = {
    "send": _send,
    "rx": _rx,
    "wake": _wake,
    "echo": _echo,
    "ping": _ping,
    "tx": _tx,
    "forward": _forward,
}


def main(argv: list[str] | None = None) -> int:
    """Run one worker; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=sorted(_MODES))
    parser.add_argument("--iface", required=True)
    parser.add_argument("--local", default="", help="this end's IPv4 address")
    parser.add_argument("--remote", default="", help="the other end's IPv4 address")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--queue", type=int, default=0, help="what is received by")
    parser.add_argument("--tx-queue", type=int, default=None, help="what is sent by (default: --queue)")
    parser.add_argument("--ring", type=int, default=2048, help="descriptors and frames")
    parser.add_argument("--burst", type=int, default=64)
    parser.add_argument("--xdp", choices=("native", "generic"), default="native", help="how the filter hangs")
    parser.add_argument("--no-stamps", dest="stamps", action="store_false", help="as the peers: none")
    parser.add_argument("--queues", type=int, default=0, help="so many from 0, instead of --queue")
    parser.add_argument("--rules", type=int, default=1, help="the last one is ours")
    parser.add_argument("--out", default="", help="forward: the other interface")
    parser.add_argument("--tx", default="socket", help="how frames leave: socket, live or auto")
    parser.add_argument("--dmac", default="", help="forward: who gets what leaves by --out")
    parser.add_argument("--back-dmac", default="", help="forward: who gets what leaves by --iface")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0, help="frames a second; 0: flat out")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=50)
    args = parser.parse_args(argv)
    print(json.dumps(_MODES[args.mode](args)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
