"""What TCP makes of a line, in virtual time: the table of ``throughput.txt``.

``python -m xdpstack.tests.throughput`` writes it anew, after a change that is meant to show there.
"""

from __future__ import annotations

from pathlib import Path

from xdpstack.sim import MILLISECOND, SECOND, Sim, Wire
from xdpstack.tcp import TcpCore

FILE = Path(__file__).with_name("throughput.txt")
RATE = 12_500_000
"""Bytes a second of the line: 100 Mbit/s."""
LOSSES = (0.0, 0.001, 0.01, 0.05)
ROUND_TRIPS = (1, 20, 100)
BUFFERS = (64 << 10, 256 << 10, 1 << 20)
KINDS = ("cubic", "newreno", "none")
BYTES = 2 << 20
_HEAD = f"""\
TCP over a line of {RATE * 8 // 10**6} Mbit/s with a queue of 128 segments, in virtual time:
Mbit/s of {BYTES >> 20} MiB in one direction, the handshake and the last acknowledgement included. Loss is
random, the same chance each way; buffer: what either end may hold of each direction. Written by
`python -m xdpstack.tests.throughput`; test_throughput.py compares it.

"""


def seconds(congestion: str, loss: float, round_trip: int, buffer: int) -> float:
    """From the SYN until everything was acknowledged; ``round_trip``: ms, ``buffer``: bytes."""
    half = round_trip * MILLISECOND // 2
    wire = Wire(latency=half, loss=loss, rate=RATE, queue=128)
    more = {
        "send_bytes": buffer,
        "receive_bytes": buffer,
        "congestion": congestion,
        "give_up_ns": 3600 * SECOND,
    }
    sender = TcpCore(("10.0.0.1", 4000), ("10.0.0.2", 80), iss=1, **more)
    receiver = TcpCore(("10.0.0.2", 80), None, iss=2, **more)
    chunk = bytes(65536)
    written, got, opened = 0, 0, False

    def watch(end: int) -> None:
        nonlocal written, got, opened
        if end == 1:
            while data := receiver.read(65536):
                got += len(data)
            return
        opened = opened or "open" in sender.events()
        while opened and written < BYTES and (took := sender.write(chunk[: BYTES - written])):
            written += took

    sim = Sim((sender, receiver), ("10.0.0.1", "10.0.0.2"), (wire, wire), 20261128, watch)
    sim.run(lambda: got == BYTES and not sender.info().outstanding)
    assert got == BYTES
    return (sim.now - SECOND) / SECOND


def table() -> str:
    """The whole file."""
    lines = [f"{'':8} {'loss':>6} {'round trip':>11}" + "".join(f"{size >> 10:>8} KiB" for size in BUFFERS)]
    for kind in KINDS:
        for loss in LOSSES:
            for trip in ROUND_TRIPS:
                speeds = [BYTES * 8 / seconds(kind, loss, trip, size) / 1e6 for size in BUFFERS]
                row = f"{kind:8} {loss:>6.1%} {trip:>8} ms" + "".join(f"{speed:12.2f}" for speed in speeds)
                lines.append(row)
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(table())
