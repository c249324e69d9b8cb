"""The receive path after start: no allocation, and no system call but the kick and the wake-up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdpstack.lab import Namespace
from xdpstack.testing_quiet import assert_quiet, counted_allocations
from xdpstack.tests.frames import plain_message, plain_packet

CONFIG = """
[ports.main]
port = "{port}"
[feeds.plain]
[[feeds.plain.channels]]
lines = ["239.1.1.1:5000", "239.1.1.2:5000"]
window = 0.001
"""


def stream(seconds: float) -> None:
    """Two lines with holes of their own and in common, so that windows and gaps are at work too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
        end, seq = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            packet = plain_packet(
                seq, *(plain_message("A", "B", seq % 50, 100 + k, 1 + seq % 9) for k in range(8))
            )
            for line, address in enumerate(("239.1.1.1", "239.1.1.2")):
                if seq % 100 != 7 + line and seq % 1000 != 500:
                    out.sendto(packet, (address, 5000))
            seq += 1
            if seq % 20 == 0:
                time.sleep(0.0005)


def engine_thread(pid: int) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "comm").read_text().strip() == "xds-engine":
                return int(task.name)
        time.sleep(0.05)
    raise AssertionError("the engine's thread did not start")


# On kernel sockets the receive itself is a system call: recvmmsg, after a look with epoll.
@pytest.mark.parametrize(
    ("port", "allowed"),
    [
        ("xsk:t0", {"sendto", "recvfrom", "recvmsg", "poll"}),
        ("sock:t0", {"recvmmsg", "epoll_wait", "poll", "getsockopt"}),
    ],
)
def test_the_receive_path_allocates_nothing_and_makes_no_other_system_call(
    lab_pair: tuple[Namespace, Namespace], tmp_path: Path, port: str, allowed: set[str]
) -> None:
    venue, trader = lab_pair
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.format(port=port))
    with counted_allocations() as counted:
        running = trader.popen(
            [sys.executable, "-m", "xdpstack", "run", str(config), "--json"],
            env={**os.environ, **counted.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stderr.readline().startswith("running")
        tid = engine_thread(running.pid)
        sender = venue.fork(stream, 12.0)
        time.sleep(0.5)
        counted.assert_quiet(tid, 2.0)
        calls = assert_quiet(tid, 2.0, allowed=allowed)
        assert sender.poll() is None, "the stream ended before it was measured"
        sender.kill()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    result = json.loads(out)
    assert result["packets"] > 1000
    assert result["gaps"]["lost"] > 0
    print(f"{port}: {calls}")
