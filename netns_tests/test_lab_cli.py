"""``xdpstack lab`` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from xdpstack.lab import host
from xdpstack.lab.snapshot import Snapshot


def xdpstack(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xdpstack", *words], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def name():
    chosen = f"t{os.getpid()}-cli"
    yield chosen
    xdpstack("lab", "down", chosen)


def test_a_lab_stands_from_up_to_down_and_leaves_nothing(name):
    before = Snapshot.take()
    up = xdpstack("lab", "up", name, "--queues", "2", "--json")
    assert up.returncode == 0, up.stderr
    made = json.loads(up.stdout)
    assert [ns["name"] for ns in made["namespaces"]] == ["venue", "trader"]
    shown = xdpstack("lab", "exec", "--lab", name, "trader", "ip", "-o", "-4", "addr", "show", "t0")
    assert "10.77.0.2/24" in shown.stdout
    labs = json.loads(xdpstack("lab", "status", "--json").stdout)["labs"]
    assert name in [lab["name"] for lab in labs]
    assert name in xdpstack("lab", "status").stdout
    again = xdpstack("lab", "up", name)
    assert again.returncode == 1
    assert "xdpstack lab down" in again.stderr
    inside = subprocess.Popen(
        [sys.executable, "-m", "xdpstack", "lab", "exec", "--lab", name, "venue", "sleep", "60"]
    )
    inodes = [os.stat(ns["path"]).st_ino for ns in made["namespaces"]]
    while not host.processes_in([{"inode": inodes[0], "cookie": made["namespaces"][0]["cookie"]}], ""):
        assert inside.poll() is None
    down = xdpstack("lab", "down", name, "--json")
    assert json.loads(down.stdout) == {"name": name, "removed": True}
    assert inside.wait(60) == -9, "what ran in the lab ended with it"
    assert name not in xdpstack("lab", "status").stdout
    ours = [
        name,
        *[f"net:[{inode}]" for inode in inodes],
        *[f"/{ns['cookie']}-" for ns in made["namespaces"]],
    ]
    assert before.wait_restored(but=lambda item: not any(mark in item for mark in ours)) == {}


def test_what_is_not_there_is_one_sentence_and_the_right_exit_code():
    for words, code in [
        (("lab", "down", "nobody-made-this"), 1),
        (("lab", "exec", "--lab", "nobody-made-this", "venue", "true"), 1),
        (("lab", "up", "../x"), 2),
        (("lab", "up", "x", "--mtu", "9"), 2),
        (("lab", "exec", "trader"), 2),
        (("lab",), 2),
    ]:
        done = xdpstack(*words)
        assert done.returncode == code, words
        assert done.stderr
        assert "Traceback" not in done.stderr


def test_a_command_that_does_not_exist_and_a_wrong_namespace_are_named(name):
    assert xdpstack("lab", "up", name).returncode == 0
    missing = xdpstack("lab", "exec", "--lab", name, "venue", "no-such-program")
    assert missing.returncode == 2
    assert "no-such-program" in missing.stderr
    wrong = xdpstack("lab", "exec", "--lab", name, "vanue", "true")
    assert wrong.returncode == 2
    assert "venue, trader" in wrong.stderr
    assert xdpstack("lab", "exec", "--lab", name, "venue", "sh", "-c", "exit 3").returncode == 3
