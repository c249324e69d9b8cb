"""The doctor on cards: what a driver grants, its clock, interrupts, --fix and --restore, bonds and VLANs."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.vmlab.tests.machine import run, until, up
from xdpstack import cli
from xdpstack.nic.journal import FOLDER

MENDED = ["--check", "link", "--check", "offloads", "--check", "napi-deferral"]


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    yield
    if list(FOLDER.glob("*.json*")):
        doctor("--restore")


def doctor(*args: str) -> Any:
    """The command, in this process: the emulation takes ten seconds to start another Python."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        cli.main(["doctor", *args, "--json"])
    assert errors.getvalue() == ""
    return json.loads(out.getvalue())


def checks(*args: str) -> dict[str, Any]:
    return {check["name"]: check for check in doctor(*args)["checks"]}


@functools.cache
def looked_at(link: str) -> dict[str, Any]:
    """Every check of a card that is up, looked at once."""
    up(link)
    return checks(link)


def settings(link: str) -> str:
    """Everything of a card that --fix may touch."""
    said = "".join(run("ethtool", flag, link, check=False) for flag in ("-k", "-l", "-g", "-c"))
    files = f"/sys/class/net/{link}/", ("mtu", "napi_defer_hard_irqs", "gro_flush_timeout", "flags")
    return said + "".join(Path(files[0] + name).read_text() for name in files[1])


def test_a_card_grants_zero_copy_and_the_trial_leaves_its_queue_free() -> None:
    up("igb0")
    found: dict[str, str] = {}

    def free() -> bool:
        found.update(checks("igb0", "--check", "mode")["mode"])
        return "holds a socket" not in found["found"]  # igb frees a queue a moment late

    for _ in range(2):
        until(free)
        assert (found["state"], found["found"]) == ("ok", "native, zero-copy")


def test_a_card_has_a_clock_queues_and_interrupts() -> None:
    found = looked_at("igb0")
    assert re.match(r"/dev/ptp\d+ \(", found["phc"]["found"])
    assert found["driver"]["found"].startswith("igb: basic, redirect")
    assert found["queues"]["found"] == "2 receive, 2 transmit"
    assert found["interrupts"]["found"].startswith("on cores ")
    assert found["kind"]["found"] == "a NIC"
    assert found["link"]["state"] == "ok"


def test_a_card_without_its_cable_fails_and_one_that_is_down_says_what_it_waits_for() -> None:
    found = checks("igb0")
    assert (found["link"]["state"], found["link"]["found"]) == ("fail", "down")
    assert found["interrupts"]["state"] in ("ok", "unknown")  # the kernel may remember them
    assert found["napi-deferral"]["state"] == "unknown"
    assert found["mode"]["found"] == "not tried: the interface is down"


def test_fix_then_restore_brings_a_card_back() -> None:
    before = settings("igb0")
    shown = doctor("igb0", *MENDED, "--fix")
    assert [change["error"] for change in shown["changes"]] == [""] * len(shown["changes"])
    assert {"igb0 state", "igb0 rx-vlan-hw-parse"} <= {change["what"] for change in shown["changes"]}
    assert {c["name"]: c["state"] for c in shown["checks"]} == dict.fromkeys(
        ("link", "offloads", "napi-deferral"), "ok"
    )
    assert sum("deferral" in change["what"] for change in shown["changes"]) >= 1
    assert settings("igb0") != before
    assert doctor("--restore")["left"] == []
    assert settings("igb0") == before


@pytest.mark.parametrize("notes", [1, 3])
def test_a_doctor_that_is_killed_is_undone(notes: int) -> None:
    """Killed as soon as that many changes are noted: the last of them is made, half made, or not yet."""
    before = settings("igb0")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            doctor("igb0", *MENDED, "--fix")
        signal.pause()  # the kill may come late
    until(lambda: noted() >= notes)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert doctor("--restore")["left"] == []
    assert settings("igb0") == before


def noted() -> int:
    """Changes in the journals."""
    return sum(len(json.loads(path.read_text())) for path in FOLDER.glob("*.json"))


def test_bonds_vlans_and_dummies_get_a_clear_answer() -> None:
    run("ip", "link", "add", "bond9", "type", "bond")
    run("ip", "link", "set", "igb0", "down")
    run("ip", "link", "set", "igb0", "master", "bond9")
    run("ip", "link", "add", "link", "igb1", "name", "igb1.7", "type", "vlan", "id", "7")
    run("ip", "link", "add", "dummy9", "type", "dummy")
    try:
        found = {
            name: checks(name, "--check", "kind")["kind"] for name in ("bond9", "igb0", "igb1.7", "dummy9")
        }
    finally:
        for name in ("bond9", "igb1.7", "dummy9"):
            run("ip", "link", "del", name)
    assert {check["state"] for check in found.values()} == {"warn"}
    assert found["bond9"]["found"].startswith("a bond of igb0: its members have the queues")
    assert found["bond9"]["remedy"] == "xdpstack doctor igb0"
    assert found["igb0"]["found"].startswith("a member of bond9")
    assert found["igb1.7"]["remedy"] == "use igb1, with rules that name the VLAN"
    assert found["dummy9"]["found"].startswith("a dummy")


@pytest.mark.parametrize("link", ["igb0", "virtio0"])
def test_every_question_about_a_card_has_an_answer(link: str) -> None:
    unknown = {name for name, check in looked_at(link).items() if check["state"] == "unknown"}
    # A guest has no idle states, its kernel lies elsewhere; igb tells the NAPI of no queue.
    assert unknown <= {"kernel-options", "governor", "c-states", "huge-pages-1g", "mode", "tick", "phc"}
