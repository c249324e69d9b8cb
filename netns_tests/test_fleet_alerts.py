"""[[alert]] over engines in processes of their own: judged by their parent, on its log, seen from outside."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns_tests.queue_frames import frame, send_all, senders
from xdpstack.lab import Namespace
from xdpstack.stats import segments

PATIENCE = 60.0
GROUPS = ("239.1.1.1", "239.1.1.2")
FILE = """
[engine]
name = "heard"
engines = "queue"
workers = "processes"
cpus = [0, 1]
[ports.main]
port = "xsk:t0"
queues = "all"
[feeds.plain]
[[feeds.plain.channels]]
lines = ["239.1.1.1:5000"]
window = 3600.0
give_up = 3600.0
[[feeds.plain.channels]]
lines = ["239.1.1.2:5000"]
window = 3600.0
give_up = 3600.0
[[alert]]
name = "hole"
when = "gap"
[[alert]]
name = "deaf"
when = "dead"
engine = "nobody"
"""


class Lines:
    """What a process says on standard error, line by line, each in its time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.all: list[str] = []
        assert process.stderr is not None
        self._thread = threading.Thread(target=lambda: [self._said.put(line) for line in process.stderr])
        self._thread.start()

    def until(self, *words: str) -> str:
        """The next line that has all of these."""
        end = time.monotonic() + PATIENCE
        while (left := end - time.monotonic()) > 0:
            try:
                self.all.append(self._said.get(timeout=left))
            except queue.Empty:
                break
            if all(word in self.all[-1] for word in words):
                return self.all[-1]
        raise AssertionError(f"no line with {words} in {self.all}")

    def end(self) -> None:
        self._thread.join()


@pytest.fixture
def running(
    make_pair, tmp_path: Path
) -> Iterator[tuple[Namespace, subprocess.Popen[str], Lines]]:  # fmt: skip
    venue, trader = make_pair(queues=2)
    file = tmp_path / "heard.toml"
    file.write_text(FILE)
    process = trader.popen(
        [sys.executable, "-m", "xdpstack", "run", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = Lines(process)
    try:
        yield venue, process, lines
    finally:
        process.kill()
        process.wait()
        lines.end()
        for stream in (process.stdout, process.stderr):
            stream.close()


def shown(engine: str) -> dict[str, int]:
    """The values of the one engine of that name."""
    (found,) = [one for one in segments() if one.name == engine and one.state == "alive"]
    return found.open().values()


def until(holds) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def test_a_gap_of_one_worker_is_heard_and_seen_and_good_again_when_it_is_filled(running) -> None:
    """It names the engine of the queue; the other one's channel, which has no gap, stays unsaid."""
    venue, process, lines = running
    lines.until("running: <Fleet xsk:t0: queues 0, 1")
    lines.until("alert deaf: engine nobody: does not turn")
    with senders(venue, 2) as out:
        for number, group in enumerate(GROUPS):
            send_all(out[number], [frame(group, 5000, seq) for seq in range(3)])
        until(lambda: all(shown(f"heard.q{n}")["engine.packets"] == 3 for n in range(2)))
        assert shown("heard")["alert.hole.firing"] == 0
        send_all(out[1], [frame(GROUPS[1], 5000, 5)])
        said = lines.until("alert hole:")
        assert "alert hole: feed plain channel 1: 1 gaps are open, above 0 (engine heard.q1)" in said
        until(lambda: shown("heard")["alert.hole.firing"] == 1)
        send_all(out[1], [frame(GROUPS[1], 5000, seq) for seq in (3, 4)])
        said = lines.until("alert hole:")
        assert "alert hole: feed plain channel 1: good again (engine heard.q1)" in said
        until(lambda: shown("heard")["alert.hole.firing"] == 0)
        assert shown("heard")["alert.hole.fired"] == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    lines.end()
    assert [one.name for one in segments() if one.name.startswith("heard")] == []
    assert not [line for line in lines.all if "alert " in line and "heard.q0" in line]
