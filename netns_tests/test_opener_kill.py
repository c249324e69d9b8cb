"""kill -9 of opener and workers at any moment: workers go on, leases are adopted, nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netns_tests.test_handover import load, plain
from netns_tests.test_opener import SMALL, Opener, as_nobody, folder, line, loaded, opener, policy, said
from xdpstack.bpf import Filter
from xdpstack.lab.snapshot import Snapshot, other_labs

__all__ = ["folder", "loaded", "opener"]

KILLS = int(os.environ.get("XDS_KILLS", "20"))

ROOMY = "rx_ring=1024, rx_frames=1024, tx_ring=64, tx_frames=64, frame_size=2048, huge_pages=False"
"""Holds half a second of BURST packets a millisecond: a worker is not always given a core at once. Larger
frames would not fit the 8 MiB that a container may lock."""
BURST = 2
WORKER = f"""
import threading
lease = Lease.open(PATH, "t0", {ROOMY})
lease.add_rules(["udp dst 239.1.1.1:5000"])
print("held", flush=True)
stop = []
threading.Thread(target=lambda: stop.append(sys.stdin.readline()), daemon=True).start()
seen, told = [], ""
while not stop:
    seen += [int.from_bytes(bytes(f.data[42:50]), "big") for f in lease.port.receive()]
    if lease.state != told:
        told = lease.state
        print(told, flush=True)
    time.sleep(0.0002)
gaps = [(a, b) for a, b in zip(seen, seen[1:]) if b != a + 1]
counts = lease.port.stats()
refused = [counts[key] for key in ("rx_ring_full", "rx_fill_empty", "rx_dropped")]
print("gaps", gaps[:3], "refused", refused, file=sys.stderr)
print(seen == list(range(len(seen))), len(seen), lease.resumed, flush=True)
lease.close()
"""


def until(worker: subprocess.Popen[str], word: str) -> None:
    while line(worker).strip() != word:
        pass


def rules_of(trader) -> list[str]:
    with trader.enter(), Filter.open_pinned("t0") as left:
        return [str(rule) for rule in left.rules]


def test_a_worker_receives_on_while_its_opener_is_killed_and_is_adopted_by_the_next(loaded, opener):
    venue, trader = loaded
    worker = as_nobody(trader, WORKER, opener.socket)
    until(worker, "held")
    ours, theirs = socket.socketpair()
    sender = venue.fork(load, theirs, burst=BURST)
    for _ in range(3):
        time.sleep(0.05)
        opener.process.kill()
        opener.process.wait()
        until(worker, "lost")
        opener.start()
        until(worker, "held")
    found = opener.status()
    assert [lease["pid"] for lease in found["leases"]] == [worker.pid]
    assert found["counts"]["leases_adopted"] == 1
    ours.sendall(b"x")
    sent = int.from_bytes(ours.recv(8), "big")
    assert sender.wait(10) == 0
    time.sleep(0.2)
    out, err = worker.communicate("\n", timeout=20)
    assert out.split()[-3:] == ["True", str(sent), "3"], (out, err, sent)
    opener.wait(lambda found: not found["leases"])
    assert rules_of(trader) == ["arp -> pass"]


def test_an_orphan_is_cleaned_up_when_its_time_is_over(loaded, folder):
    _, trader = loaded
    running = Opener(trader, policy(folder, limits="adopt = 1.0"))
    worker = as_nobody(trader, WORKER, running.socket)
    until(worker, "held")
    running.process.kill()
    running.process.wait()
    worker.kill()
    worker.communicate()
    assert rules_of(trader) == ["udp dst 239.1.1.1:5000 -> w", "arp -> pass"]
    running.start()
    assert running.status()["leases"][0]["orphan_since"] is not None
    found = running.wait(lambda found: not found["leases"])
    assert found["counts"]["leases_orphaned"] == 1
    assert rules_of(trader) == ["arp -> pass"]
    assert running.end() == 0


def test_a_stranger_cannot_take_a_lease_with_other_sockets(loaded, opener):
    _, trader = loaded
    worker = as_nobody(trader, WORKER, opener.socket)
    until(worker, "held")
    code = """
from xdpstack.opener import wire
from xdpstack.opener.client import question
import socket
with wire.connect(PATH, 5, "it") as c, socket.socket() as s:
    print(question(c, {"ask": "resume", "lease": 1}, "x", [s.fileno()])[0])
"""
    assert "these are not the sockets of lease 1" in said(as_nobody(trader, code, opener.socket))
    worker.communicate("\n", timeout=20)


def test_keep_leaves_workers_for_the_next_opener_and_its_end_without_it_ends_them(loaded, folder):
    _, trader = loaded
    running = Opener(trader, policy(folder), "--keep")
    worker = as_nobody(trader, WORKER, running.socket)
    until(worker, "held")
    assert running.end() == 0
    until(worker, "lost")
    assert rules_of(trader)[0] == "udp dst 239.1.1.1:5000 -> w"
    running.words = ()
    running.start()
    until(worker, "held")
    assert running.end() == 0
    until(worker, "lost")
    assert rules_of(trader) == ["arp -> pass"]
    assert sorted(os.listdir(folder)) == ["policy.log", "policy.toml"]
    running.start()
    until(worker, "ended")
    assert running.end() == 0
    out, _ = worker.communicate("\n", timeout=20)
    assert "True" in out


@pytest.mark.parametrize("seed", range(KILLS))
def test_anybody_killed_at_a_random_moment_leaves_nothing(loaded, folder, seed):
    _, trader = loaded
    chance = random.Random(seed)
    path = policy(folder, limits="adopt = 0.5")
    with trader.enter():
        before = Snapshot.take()
    running = Opener(trader, path)
    worker = as_nobody(trader, WORKER, running.socket)
    time.sleep(chance.uniform(0.2, 1.2))
    both = [running.process, worker]
    for victim in chance.choice((both[:1], both[1:], both, both[::-1])):
        victim.kill()
        victim.wait()
        time.sleep(chance.uniform(0, 0.02))
    if running.process.poll() is not None:
        running.start()
    if worker.poll() is None:
        time.sleep(0.3)
        worker.kill()
    worker.communicate()
    running.wait(lambda found: not found["leases"], 10)
    assert rules_of(trader) == ["arp -> pass"]
    assert running.end() == 0
    assert sorted(os.listdir(folder)) == ["policy.log", "policy.toml"]
    with trader.enter():
        assert before.wait_restored(but=other_labs) == {}
    running.start()
    code = f'with Lease.open(PATH, "t0", {SMALL}) as lease:\n    print(lease.state)\n'
    assert said(as_nobody(trader, code, running.socket)) == "held\n", "both queues are free again"
    assert running.end() == 0


# ---- run, as nobody, over an opener ----


def config(folder: Path, opener: Opener) -> Path:
    path = folder / "c.toml"
    path.write_text(
        f'[ports.main]\nport = "xsk:t0"\nopener = "{opener.socket}"\nrx_frames = 1024\nrx_ring = 1024\n'
        "tx_ring = 64\nhuge_pages = false\n"
        '[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'
        f'[handover]\nsocket = "{folder}/mine/run.sock"\n'
    )
    (folder / "mine").mkdir()
    os.chown(folder / "mine", 65534, 65534)
    return path


def run_as_nobody(trader, path: Path, *words: str) -> subprocess.Popen[str]:
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    command += ["--bounding-set", "-all", sys.executable, "-m", "xdpstack", "run", str(path), "--json"]
    command += words
    running = trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = running.stderr.readline()
    assert told.startswith("running"), told + running.stderr.read()
    return running


def test_run_as_nobody_over_an_opener_and_its_handover_lose_nothing(loaded, opener, folder):
    venue, trader = loaded
    path = config(folder, opener)
    running = run_as_nobody(trader, path)
    ours, theirs = socket.socketpair()
    sender = venue.fork(load, theirs, plain, 4)  # a ring of 1,024 frames holds a pause of 0.28 s
    results = []
    for _ in range(2):
        time.sleep(0.1)
        following = run_as_nobody(trader, path, "--takeover")
        out, err = running.communicate(timeout=20)
        assert running.returncode == 0, err
        assert f"handed over to process {following.pid}" in err
        results.append(json.loads(out))
        running = following
    assert [lease["pid"] for lease in opener.status()["leases"]] == [running.pid]
    ours.sendall(b"x")
    sent = int.from_bytes(ours.recv(8), "big")
    assert sender.wait(10) == 0
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    results.append(json.loads(out))
    assert sum(result["packets"] for result in results) == sent
    assert all(result["packets"] and not result["gaps"]["found"] for result in results)
    opener.wait(lambda found: not found["leases"])
    assert rules_of(trader) == ["arp -> pass"]


def test_python_opens_a_node_over_an_opener(loaded, opener):
    venue, trader = loaded
    code = f"""
import xdpstack
with xdpstack.open("xsk:t0", opener=PATH, {SMALL}) as node:
    node.feed("plain", groups=["239.1.1.1:5000"])
    node.build()
    print("ready", flush=True)
    end, seen = time.monotonic() + 60, 0
    for batch in node.run(idle=lambda: time.monotonic() > end, spins=1000):
        seen += batch.packets
        if seen >= 32:
            break
    stats = node.stats()
    counted = sum(rule["packets"] for rule in stats["filters"]["main"]["rules"].values())
    print(seen >= 32, stats["leases"]["main"].split()[-1], counted >= 32)
"""
    worker = as_nobody(trader, code, opener.socket)
    assert line(worker) == "ready\n"
    ours, theirs = socket.socketpair()
    sender = venue.fork(load, theirs, plain)
    time.sleep(0.2)
    ours.sendall(b"x")
    ours.recv(8)
    assert sender.wait(10) == 0
    assert said(worker) == "True held> True\n"
