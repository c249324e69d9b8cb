"""An interface that goes and comes back under a worker of an opener: its port is lent again, with the same
queues and rules, and nothing more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns_tests.test_handover import load, plain
from netns_tests.test_links import change, delete
from netns_tests.test_node_nic import move
from netns_tests.test_opener import Opener, as_nobody, folder, line, policy, said
from netns_tests.test_opener_kill import run_as_nobody
from xdpstack.bpf import Filter, attached
from xdpstack.errors import SetupError

__all__ = ["folder"]

TINY = "rx_ring=256, rx_frames=256, tx_ring=64, tx_frames=64, frame_size=2048, huge_pages=False"


def join(lab, venue, trader) -> None:
    lab.veth(venue, "v0", "10.77.0.1/24", trader, "t0", "10.77.0.2/24", queues=2)


@pytest.fixture
def ground(make_lab) -> Iterator[tuple]:
    """(lab, venue, trader); t0 has two queues and a pinned filter."""
    lab = make_lab()
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    join(lab, venue, trader)
    with trader.enter():
        Filter.load("t0", rules=["arp -> pass"], pin=True).close()
    yield lab, venue, trader
    with trader.enter(), contextlib.suppress(SetupError):  # one deletes it
        if attached("t0"):
            Filter.open_pinned("t0").unload()


@pytest.fixture
def opener(ground, folder) -> Iterator[Opener]:
    running = Opener(ground[2], policy(folder))
    yield running
    if running.process.poll() is None:
        assert running.end() == 0


def rules_of(trader) -> list[str]:
    with trader.enter(), Filter.open_pinned("t0") as left:
        return [str(rule) for rule in left.rules]


def config(folder: Path, opener: Opener) -> Path:
    path = folder / "c.toml"
    keys = TINY.replace(", ", "\n").replace("False", "false")
    path.write_text(
        f'[engine]\nname = "lent"\n[ports.main]\nport = "xsk:t0"\nopener = "{opener.socket}"\n{keys}\n'
        'link_wait = 10.0\n[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'
    )
    return path


def events(trader) -> dict[str, int]:
    """What the engine says of t0, as `status` shows it."""
    command = [sys.executable, "-m", "xdpstack", "status", "--json"]
    told = json.loads(trader.run(command).stdout)["interfaces"]
    engines = [engine for one in told for engine in one["engines"] if engine["engine"] == "lent"]
    return engines[0]["events"] if engines else {}


def until(trader, running, kind: str, count: int = 1, patience: float = 20.0) -> None:
    end = time.monotonic() + patience
    while (seen := events(trader)).get(kind, 0) < count:
        assert running.poll() is None, running.stderr.read()
        if time.monotonic() > end:
            running.kill()
            pytest.fail(f"{seen}: {running.stderr.read()}")
        time.sleep(0.1)


def packets(venue, burst: int = 2) -> int:
    """Send for a while; how many."""
    ours, theirs = socket.socketpair()
    sender = venue.fork(load, theirs, plain, burst)
    time.sleep(0.3)
    ours.sendall(b"x")
    sent = int.from_bytes(ours.recv(8), "big")
    assert sender.wait(10) == 0
    return sent


def ended(running: subprocess.Popen[str]) -> dict:
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    return json.loads(out)


@pytest.mark.parametrize("who", ["opener", "administrator"])
def test_a_port_is_lent_again_when_its_interface_was_made_anew(ground, opener, folder, who):
    """The filter is attached again by the opener, unless `load` has put a new one there."""
    lab, venue, trader = ground
    running = run_as_nobody(trader, config(folder, opener))
    sent = packets(venue)
    for number in (1, 2):
        delete(trader, "t0")
        until(trader, running, "deleted", number)
        running.send_signal(signal.SIGSTOP)  # nobody asks the opener before the new filter is there
        join(lab, venue, trader)
        if who == "administrator":
            with trader.enter():
                Filter.load("t0", rules=["arp -> pass"], pin=True).close()
        running.send_signal(signal.SIGCONT)
        until(trader, running, "recovered", number)
        assert rules_of(trader) == ["udp dst 239.1.1.1:5000 -> w", "arp -> pass"]
        sent += packets(venue)
    found = opener.status()
    assert found["counts"]["ports_reopened"] >= 2
    assert [lease["pid"] for lease in found["leases"]] == [running.pid]
    told = ended(running)
    assert told["packets"] == sent
    assert told["links"]["t0"]["events"]["recovered"] == 2
    opener.wait(lambda found: not found["leases"])
    assert rules_of(trader) == ["arp -> pass"]


def test_a_port_is_lent_again_after_another_namespace_and_for_a_larger_mtu(ground, opener, folder):
    _, venue, trader = ground
    path = config(folder, opener)
    path.write_text(path.read_text().replace("frame_size=2048\n", ""))
    running = run_as_nobody(trader, path)
    move(trader, venue)
    until(trader, running, "moved")
    move(venue, trader)
    change(trader, "t0", state="up")
    until(trader, running, "recovered")
    sent = packets(venue)
    change(venue, "v0", mtu=3000)
    change(trader, "t0", mtu=3000)
    until(trader, running, "recovered", 2)
    sent += packets(venue)
    assert ended(running)["packets"] == sent


def test_a_restarted_opener_lends_again_to_the_worker_it_adopted(ground, opener, folder):
    lab, venue, trader = ground
    running = run_as_nobody(trader, config(folder, opener))
    delete(trader, "t0")
    until(trader, running, "deleted")
    join(lab, venue, trader)
    until(trader, running, "recovered")
    opener.process.kill()
    opener.process.wait()
    opener.start()
    opener.wait(lambda found: found["leases"] and found["leases"][0]["orphan_since"] is None)
    sent = packets(venue)
    assert opener.status()["counts"]["leases_adopted"] == 1
    assert ended(running)["packets"] == sent


def test_where_the_filter_was_unloaded_the_worker_ends_with_the_reason(ground, opener, folder):
    lab, venue, trader = ground
    path = config(folder, opener)
    path.write_text(path.read_text().replace("link_wait = 10.0", "link_wait = 1.0"))
    running = run_as_nobody(trader, path)
    with trader.enter():
        Filter.open_pinned("t0").unload()
    delete(trader, "t0")
    join(lab, venue, trader)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 1
    assert "again by the opener: t0: no filter is loaded; xdpstack load t0" in err.splitlines()[-1]


def test_pins_of_an_interface_that_is_gone_stay_while_somebody_holds_the_filter(ground):
    lab, _, trader = ground
    other = lab.namespace("other")
    lab.veth(other, "a0", "10.78.0.1/24", other, "b0", "10.78.0.2/24")
    with trader.enter():
        held = Filter.open_pinned("t0")
    delete(trader, "t0")

    def load_elsewhere() -> bool:
        with other.enter():
            Filter.load("a0", pin=True).close()  # sweeps
            Filter.open_pinned("a0").unload()
        return held.pin_dir.exists()

    with held:
        assert load_elsewhere()
        assert held.pin_is_there
    assert not load_elsewhere()


WIDER = f"""
import json, os
from xdpstack.opener.client import question
from xdpstack.opener import wire
lease = Lease.open(PATH, "t0", range(0, 1), {TINY})
lease.add_rules(["udp dst 239.1.1.1:5000"])
lease.port.close()
def ask(**more):
    with lease._talk:  # else its watcher takes the answer
        answer, fds = question(lease._connection, {{"ask": "reopen", **more}}, "x")
    wire.close_all(fds)
    return answer
small = dict({TINY})
answer = ask(options=small, queues=[0, 1], interface="lo", rules=["udp"], target="stack", lease=77)
config = answer["port"]["config"]
print(answer["port"]["interface"], config["queue_first"], config["queue_count"], answer["target"])
print(list(answer["ids"]), answer["lease"], len(answer["port"]["config"]) > 5)
print(ask(options={{**small, "rx_frames": 1 << 20}})["refused"])
print(ask(options={{**small, "tx_queue": 7}})["refused"])
print(ask(options={{**small, "raw": True}})["refused"][:12])
with wire.connect(PATH, 5, "it") as stranger:
    print(question(stranger, {{"ask": "reopen", "options": small}}, "x")[0]["refused"])
    print(question(stranger, {{"ask": "counters"}}, "x")[0]["refused"])
"""


def test_a_worker_cannot_widen_its_queues_flows_or_memory_by_asking_again(ground, opener):
    _, _, trader = ground
    told = said(as_nobody(trader, WIDER, opener.socket)).splitlines()
    assert told == [
        "t0 0 1 w",
        "['udp dst 239.1.1.1:5000 -> w'] 1 True",
        "1048640 frames of up to 2048 bytes: w may have 64 MiB",
        "tx_queue 7: w may have 0-1",
        "option 'raw'",
        "this connection has no lease",
        "this connection has no lease",
    ]


def test_a_python_worker_opens_its_port_again_by_its_lease(ground, opener):
    lab, venue, trader = ground
    code = f"""
with Lease.open(PATH, "t0", range(0, 1), {TINY}) as lease:
    lease.add_rules(["udp dst 239.1.1.1:5000"])
    print("ready", flush=True)
    sys.stdin.readline()
    old = lease.port
    new = lease.reopen()
    old.close()
    print(new is lease.port, new.queues, sorted(lease.rules), lease.state, flush=True)
"""
    worker = as_nobody(trader, code, opener.socket)
    assert line(worker) == "ready\n"
    delete(trader, "t0")
    join(lab, venue, trader)
    out, err = worker.communicate("\n", timeout=20)
    assert out == "True range(0, 1) ['udp dst 239.1.1.1:5000 -> w'] held\n", err
    assert os.path.exists(opener.socket)
