"""kill -9 of anybody at any moment: children die, and the host is as it was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from xdpstack._ffi import lib
from xdpstack.lab import host, sweep
from xdpstack.lab.snapshot import Snapshot, other_labs


@pytest.fixture(autouse=True, scope="module")
def bpffs():
    """Pins need it mounted; it stays, as a host has it."""
    assert lib.xds_bpffs_prepare(b"/sys/fs/bpf") >= 0


OWNER = textwrap.dedent("""
    import os, sys, time
    from xdpstack.bpf import Filter
    from xdpstack.lab import Lab, pair
    with Lab(sys.argv[1]) as lab:
        print("up", flush=True)
        venue, trader = pair(lab)
        shared = lab.owns(f"/dev/shm/xdpstack-{sys.argv[1]}")
        shared.write_bytes(b"x" * 4096)
        segment = f"/dev/shm/xdpstack-{os.getpid()}-engine.stat"
        open(segment, "w").close()
        os.makedirs(lab.owns(f"/sys/fs/bpf/xdpstack-{sys.argv[1]}"), exist_ok=True)
        with trader.enter():
            Filter.load("t0", pin=True)
        venue.fork(time.sleep, 60)
        trader.popen(["sh", "-c", "setsid sleep 60 & setsid sleep 60 & exec sleep 60"])
        def nested():
            trader.fork(time.sleep, 60)
            trader.popen(["sleep", "60"])
            time.sleep(60)
        venue.fork(nested)
        print("ready", flush=True)
        try:
            time.sleep(float(sys.argv[2]))
        finally:
            os.unlink(segment)
""")


def start(name: str, seconds: float = 60) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OWNER, name, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def descendants(pid: int) -> list[int]:
    found, parents = [], {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    todo = [pid]
    while todo:
        at = todo.pop()
        below = [child for child, parent in parents.items() if parent == at]
        found += below
        todo += below
    return found


def gone(name: str, before: Snapshot, pids: list[tuple[int, int | None]], patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    while (alive := [pid for pid, born in pids if born and host.start_time(pid) == born]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert alive == []
    left = before.wait_restored(max(0.1, deadline - time.monotonic()), but=other_labs)
    assert left == {}, left
    assert not (host.STATE_DIR / f"{name}.json").exists()


@pytest.mark.parametrize("seed", range(20))
def test_owner_killed_at_a_random_moment(seed):
    chance = random.Random(seed)
    name = f"t{os.getpid()}-kill{seed}"
    before = Snapshot.take()
    with start(name) as owner:
        if seed % 3:
            assert owner.stdout.readline() == "up\n"
            time.sleep(chance.uniform(0.0, 0.2))
        else:
            time.sleep(chance.uniform(0.0, 0.5))
        pids = [(pid, host.start_time(pid)) for pid in descendants(owner.pid)]
        owner.kill()
        owner.wait()
        gone(name, before, pids)


def test_an_owner_killed_when_all_of_it_is_there_leaves_nothing():
    name = f"t{os.getpid()}-whole"
    before = Snapshot.take()
    with start(name) as owner:
        assert owner.stdout.readline() == "up\n"
        assert owner.stdout.readline() == "ready\n"
        pids = [(pid, host.start_time(pid)) for pid in descendants(owner.pid)]
        owner.kill()
        owner.wait()
        gone(name, before, pids, patience=60.0)


@pytest.mark.parametrize("seed", range(6))
def test_owner_and_warden_killed_then_the_next_start_sweeps(seed):
    name = f"t{os.getpid()}-both{seed}"
    before = Snapshot.take()
    with start(name) as owner:
        assert owner.stdout.readline() == "up\n"
        if seed % 2:
            assert owner.stdout.readline() == "ready\n"
        else:
            time.sleep(random.Random(seed).uniform(0, 0.1))
        below = descendants(owner.pid)
        pids = [(pid, host.start_time(pid)) for pid in below]
        for pid in below:
            cmdline = Path(f"/proc/{pid}/cmdline")
            if cmdline.exists() and b"host.py" in cmdline.read_bytes():
                os.kill(pid, signal.SIGKILL)
        owner.kill()
        owner.wait()
        sweep()
        gone(name, before, pids, patience=1.0)


@pytest.mark.parametrize("seed", range(6))
def test_any_descendant_killed_then_the_lab_still_ends_clean(seed):
    chance = random.Random(seed)
    name = f"t{os.getpid()}-child{seed}"
    before = Snapshot.take()
    with start(name, seconds=0.5) as owner:
        assert owner.stdout.readline() == "up\n"
        assert owner.stdout.readline() == "ready\n"
        time.sleep(0.1)
        below = descendants(owner.pid)
        pids = [(pid, host.start_time(pid)) for pid in below]
        victim = chance.choice(below)
        under = [(pid, host.start_time(pid)) for pid in descendants(victim)]
        python = b"python" in Path(f"/proc/{victim}/cmdline").read_bytes()
        os.kill(victim, signal.SIGKILL)
        if python:
            deadline = time.monotonic() + 1
            while (
                any(born and host.start_time(pid) == born for pid, born in under)
                and time.monotonic() < deadline
            ):
                time.sleep(0.01)
            assert not any(born and host.start_time(pid) == born for pid, born in under), (
                "its children die with it"
            )
        assert owner.wait(10) == 0
        gone(name, before, pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_lab_puts_everything_back(number):
    name = f"t{os.getpid()}-sig{number}"
    before = Snapshot.take()
    with start(name) as owner:
        assert owner.stdout.readline() == "up\n"
        assert owner.stdout.readline() == "ready\n"
        pids = [(pid, host.start_time(pid)) for pid in descendants(owner.pid)]
        owner.send_signal(number)
        assert owner.wait(10) != 0
        gone(name, before, pids, patience=1.0)


def test_a_persistent_lab_half_made_is_swept():
    name = f"t{os.getpid()}-half"
    before = Snapshot.take()
    script = (
        "import os, sys\nfrom xdpstack.lab import Lab\nlab = Lab(sys.argv[1], persistent=True).start()\n"
        "lab.namespace('venue')\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, name], check=False)
    gone(name, before, [])


def test_a_sweep_leaves_living_labs_and_strangers_alone(lab):
    namespace = lab.namespace("a")
    child = namespace.fork(time.sleep, 30)
    stranger = host.STATE_DIR / "t-stranger.json"
    foreign = Path("/dev/shm") / f"xdpstack-foreign-{os.getpid()}"
    foreign.write_bytes(b"x")
    try:
        host.write_state(
            stranger,
            {
                "name": "t-stranger", "boot": host.boot_id(), "owner": 1, "start": -1, "persistent": False,
                "namespaces": {"a": {"inode": namespace.inode, "cookie": namespace.cookie + 1}},
                "owned": ["/etc/passwd", "/dev/shm/../../etc/hosts"],
            },
        )  # fmt: skip
        assert "t-stranger" in sweep()
        assert child.poll() is None, "the inode is the same, the cookie is not"
        assert lab.state_path.exists()
        assert foreign.exists()
        assert Path("/etc/passwd").exists()
        assert Path("/etc/hosts").exists()
    finally:
        foreign.unlink()
        stranger.unlink(missing_ok=True)


def test_a_torn_state_file_is_swept():
    host.STATE_DIR.mkdir(parents=True, exist_ok=True)
    torn = host.STATE_DIR / f"t{os.getpid()}-torn.json"
    torn.write_text('{"name": "x", "own')
    assert torn.stem in sweep()
    assert not torn.exists()
