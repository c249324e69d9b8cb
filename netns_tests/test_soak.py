"""Many frames through one port: each delivered or counted by name, each with one owner, memory flat.

``make soak`` sends a hundred million (SOAK_FRAMES); ``make test`` as many as take seconds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdpstack.bpf import Filter
from xdpstack.lab import Namespace
from xdpstack.port import XskPort
from xdpstack.traffic import Receiver

FRAMES = int(os.environ.get("SOAK_FRAMES", "2000000"))
SLOWEST = 200_000
"""Frames a second that any machine reaches: bounds the run."""
PATIENCE = 120 + FRAMES / SLOWEST


def resident() -> int:
    """KiB of this process in memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def slab() -> int:
    """KiB that the kernel keeps in objects of its own and cannot give back."""
    found = re.search(r"SUnreclaim:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.timeout(PATIENCE + 60)
def test_every_frame_of_a_soak_is_delivered_or_named(lab_pair: tuple[Namespace, Namespace]) -> None:
    venue, trader = lab_pair
    command = [sys.executable, "-m", "xdpstack", "traffic", "send", "xsk:v0", "--dst", "10.77.0.2:9000"]
    command += ["--live", "--count", str(FRAMES), "--seconds", str(min(3600, int(PATIENCE))), "--json"]
    with (
        trader.enter(),
        Filter.load("t0", rules="udp dst 10.77.0.2:9000 -> soak") as steering,
        XskPort("t0", tx_frames=0) as port,
    ):
        for queue, fd in port.fds().items():
            steering.set_socket("soak", queue, fd)
        receiver = Receiver(port, seconds=min(3600, PATIENCE))
        sender = venue.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        memory: list[int] = []
        seen, still_since = -1, time.monotonic()

        def over() -> bool:
            nonlocal seen, still_since
            got = receiver.report()["received"]
            if len(memory) < 10 * got / FRAMES:  # ten times on the way
                memory.append(resident())
            if got != seen:
                seen, still_since = got, time.monotonic()
            return sender.poll() is not None and time.monotonic() - still_since > 0.5

        kernel_before = slab()
        said = receiver.run(over)
        out, err = sender.communicate(timeout=30)
        assert sender.returncode == 0, err
        sent = json.loads(out)["sent"]
        stats, census = port.stats(), port.census()
        named = stats["rx_dropped"] + stats["rx_ring_full"]
        rules = steering.counters().rules.values()

        assert sent == FRAMES
        assert said["received"] + named == sent, "delivered, or dropped by a name"
        assert said["doubled"] == said["foreign"] == said["stale"] == 0
        assert said["reordered"] == 0, "one queue keeps the order"
        assert sum(rule.packets for rule in rules) == sent, "the filter counted the same"
        assert sum(n for name, n in census.items() if name.startswith("rx")) == 4096, "one owner each"
        assert census["rx_leased"] == 0
        assert max(memory[2:]) - min(memory[2:]) <= 512, f"KiB on the way: {memory}"
        assert slab() - kernel_before < 64 * 1024, "the kernel kept no frame"
