"""The demo as its users run it: it keeps its promises, and leaves the host as it was, however it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdpstack.lab.snapshot import Snapshot

COMMAND = [sys.executable, "-m", "xdpstack", "demo"]


def children_of(pid: int) -> list[int]:
    """Every process below one, nearest first."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found[1:]


@pytest.mark.timeout(300)
def test_the_demo_keeps_every_promise(tmp_path):
    before = Snapshot.take()
    out = tmp_path / "demo.json"
    done = subprocess.run(
        [*COMMAND, "--out", str(out)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["ok"]
    for transport in ("xsk", "sock"):
        run, audit = result["runs"][transport], result["audit"][transport]
        for name, truth in result["play"]["feeds"].items():
            delivery = audit["delivery"][name]
            assert delivery["units"] == truth["units"] == delivery["delivered"] + delivery["open"]
            assert audit["undamaged"][name]["compared"] > 0
            assert all(
                line["lost"] > 0 for line in run["feeds"][name]["lines"] if line["line"] != "retransmission"
            )
        itch = run["feeds"]["itch50"]
        assert itch["gaps"]["filled"] > itch["gaps"]["lost"] == 1
        assert run["venue"]["request_server"]["answered"] > 0
        assert run["feeds"]["iex-deep"]["restarts"] == 11
        assert run["stats"]["feeds"]["itch50"]["age_ns"]["applied"]["count"] > 10_000
        for core in run["cores"].values():  # two processes that read the engine by its tape
            assert core["lost"] == 0
            assert core["feeds"] == run["seen"]
            assert {name: one["updates"] for name, one in core["feeds"].items()} == {
                name: feed["updates"] for name, feed in run["feeds"].items()
            }
        assert run["desk"] == run["cores"]["core-2"]["orders"] != []
    assert before.wait_restored() == {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(4))
def test_the_host_is_as_it_was_after_a_kill_at_any_point(tmp_path, seed):
    chance = random.Random(seed)
    before = Snapshot.take()
    command = [*COMMAND, "--transport", "xsk", "--seconds", "8", "--out", str(tmp_path / "demo.json")]
    demo = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait = chance.uniform(0.5, 11.0)
    time.sleep(wait)
    below = children_of(demo.pid)
    victim = chance.choice([demo.pid, *below]) if below else demo.pid
    os.kill(victim, signal.SIGKILL)
    said = demo.communicate(timeout=60)[1]
    print(f"after {wait:.1f} s killed {'the demo' if victim == demo.pid else 'a child'}: {demo.returncode}")
    assert demo.returncode != 0 or victim != demo.pid
    assert before.wait_restored(5.0) == {}, said


def test_the_host_is_as_it_was_after_an_interrupt(tmp_path):
    before = Snapshot.take()
    demo = subprocess.Popen(
        [*COMMAND, "--transport", "xsk", "--out", str(tmp_path / "demo.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in demo.stderr:
        if "playing" in line:
            break
    time.sleep(1.0)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=30)
    assert demo.returncode != 0
    assert before.wait_restored() == {}
