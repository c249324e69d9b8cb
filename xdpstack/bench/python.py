"""batch: what a delivered message costs in Python, when messages come in batches of 64 or more.

The generated plain feed is replayed from memory through a stepped engine. The time of the loop, less the
time the same packets take when nobody looks at the batches, is Python's; it is paid a batch, and shared by
the messages in it.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from xdpstack._ffi import ffi, lib
from xdpstack.bench.registry import Context
from xdpstack.bench.rows import Row, median, row, spread
from xdpstack.engine import Engine, EngineConfig
from xdpstack.node import open as open_node

__all__ = ["batch"]

GROUP, PORT = "239.1.1.1", 26477


def _capture(path: Path, packets: int, messages: int) -> None:
    """A pcap of the plain framing (spec: u32 sequence, u16 count, u16 pad; 28-byte messages)."""
    with path.open("wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
        for sequence in range(packets):
            body = struct.pack("<IHH", sequence, messages, 0)
            for i in range(messages):
                price = 10_000 + (sequence * 7 + i) % 64
                body += struct.pack("<BBHQQQ", ord("A"), ord("B"), i % 8, price, 100 + i, 0)
            udp = struct.pack(">HHHH", 9000, PORT, 8 + len(body), 0) + body
            head = struct.pack(
                ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, _ip("10.0.0.1"), _ip(GROUP)
            )
            head = head[:10] + struct.pack(">H", _sum(head)) + head[12:]
            frame = bytes.fromhex("01005e010101020000000001") + b"\x08\x00" + head + udp
            ns = sequence * 10_000
            out.write(struct.pack("<IIII", ns // 10**9, ns % 10**9, len(frame), len(frame)) + frame)


def _ip(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def _looked(path: Path, limit: int) -> tuple[float, int, int]:
    """(seconds, messages, batches) of a Python loop that takes each batch's updates as an array."""
    with open_node(f"pcap:{path}", engine=EngineConfig(burst=limit)) as node:
        node.feed("plain", groups=[f"{GROUP}:{PORT}"], books=False)
        messages = batches = 0
        stream = node.run()
        begin = time.perf_counter()
        for item in stream:
            messages += len(item.updates)
            batches += 1
        return time.perf_counter() - begin, messages, batches


def _unlooked(path: Path, limit: int) -> float:
    """Seconds for the same turns with the least Python there can be: the C call in a loop, in C's time."""
    with open_node(f"pcap:{path}", engine=EngineConfig(burst=limit)) as node:
        node.feed("plain", groups=[f"{GROUP}:{PORT}"], books=False)
        node.build()
        engine: Engine = node.engine
        out = ffi.new("struct xds_batch *")
        poll, core, spent = lib.xds_engine_poll, engine.core, 0
        clock = time.perf_counter_ns
        while not out.end:
            begin = clock()
            poll(core, 10_000, out)
            spent += clock() - begin
        return spent / 1e9


def batch(context: Context) -> Iterable[Row]:
    """Stepped, one update array a batch of at least 64 messages."""
    packets, each = (200, 16) if context.quick else (20_000, 16)
    burst = 4
    costs: list[float] = []
    sizes: list[float] = []
    total = 0
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(TemporaryDirectory(prefix="xdpstack-bench-"))) / "plain.pcap"
        _capture(path, packets, each)
        _looked(path, burst)
        for number in range(context.rounds()):
            context.say(f"  batch round {number + 1} of {context.rounds()}")
            floor = _unlooked(path, burst)
            seconds, messages, batches = _looked(path, burst)
            costs.append((seconds - floor) * 1e9 / messages)
            sizes.append(messages / batches)
            total += messages
    yield row(
        "batch",
        median(costs),
        unit="ns",
        n=total,
        rounds=spread(costs),
        messages_a_batch=round(median(sizes), 1),
        settings={"feed": "plain", "port": "pcap", "messages_a_packet": each, "packets_a_turn": burst},
    )
