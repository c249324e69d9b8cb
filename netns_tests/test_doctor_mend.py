"""``doctor --fix`` and ``--restore`` on real links and a sysctl: everything comes back, after kill -9 too."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from xdpstack import netdev
from xdpstack.bpf import Filter
from xdpstack.doctor import Change, Check, mend, restore
from xdpstack.lab import Namespace

COMMAND = [sys.executable, "-m", "xdpstack", "doctor"]
CHECKS = ["--check", "link", "--check", "offloads"]
POLL = Path("/proc/sys/net/core/busy_poll")


@pytest.fixture
def both(lab: Any) -> Namespace:
    """One namespace with both ends of a veth pair: a0 is down, and b0 leaves checksums unfinished."""
    namespace: Namespace = lab.namespace("both")
    lab.veth(namespace, "a0", "10.77.0.1/24", namespace, "b0", "10.77.0.2/24")
    namespace.set_offloads("b0", True)
    namespace.run(["ip", "link", "set", "dev", "a0", "down"])
    return namespace


def settings(namespace: Namespace) -> dict[str, str]:
    """Everything of both ends that can be set: features, flags, MTU, queues, deferral, coalescing."""
    found = {}
    for name in ("a0", "b0"):
        found[f"{name} features"] = namespace.run(["ethtool", "-k", name]).stdout
        with namespace.netlink() as route:
            (link,) = route.get_links(ifname=name)
        for key in ("IFLA_MTU", "IFLA_TXQLEN", "IFLA_NUM_RX_QUEUES", "IFLA_GROUP", "IFLA_PROMISCUITY"):
            found[f"{name} {key}"] = str(link.get_attr(key))
        # IFF_RUNNING and IFF_LOWER_UP are states; the kernel sets the first a moment late.
        found[f"{name} flags"] = hex(link["flags"] & ~(1 << 6 | 1 << 16))
        code = "from xdpstack.doctor import Host; print(Host().interface('%s').read(%s))"
        files = "'napi_defer_hard_irqs', 'gro_flush_timeout', 'mtu', 'tx_queue_len', 'threaded'"
        found[f"{name} files"] = namespace.run([sys.executable, "-c", code % (name, files)]).stdout
    return found


def doctor(namespace: Namespace, *args: str, code: int = 0) -> Any:
    with namespace.popen([*COMMAND, *args, "--json"], stdout=subprocess.PIPE, text=True) as child:
        out, _ = child.communicate(timeout=60)
    assert child.returncode == code, out
    return json.loads(out)


def test_fix_then_restore_brings_everything_back(both: Namespace) -> None:
    before = settings(both)
    shown = doctor(both, "a0", *CHECKS, "--fix")
    assert {(c["check"], c["what"], c["before"], c["after"]) for c in shown["changes"]} == {
        ("link", "a0 state", "off", "on"),
        ("offloads", "b0 tx-checksum-ip-generic", "on", "off"),
    }
    assert {c["name"]: c["state"] for c in shown["checks"]} == {"link": "ok", "offloads": "ok"}
    assert settings(both) != before
    shown = doctor(both, "--restore")
    assert [c["what"] for c in shown["restored"]] == ["b0 feature tx-checksum-ip-generic", "a0 link-up"]
    assert shown["left"] == []
    assert settings(both) == before
    assert doctor(both, "--restore") == {"restored": [], "left": []}


def test_settings_of_every_kind_come_back(both: Namespace) -> None:
    before = settings(both)
    code = (
        "from xdpstack.doctor import Check, mend; from xdpstack.doctor.check import Change\n"
        "changes = (Change('link', 'b0', 'mtu', '3498'), Change('napi', 'a0', '', '2 200000'),\n"
        " Change('link', 'a0', 'state', 'up'), Change('feature', 'b0', 'rx-gro', 'on'))\n"
        "made = mend([Check(name='x', state='warn', found='', why='', changes=changes)])\n"
        "print([(c.before, c.after, c.error) for c in made])"
    )
    out = both.run([sys.executable, "-c", code]).stdout
    assert out.startswith("[('1500', '3498', ''), ('0 0', '2 200000', ''), ('off', 'on', ''), (")
    assert "a0 files" in before
    assert settings(both)["a0 files"].startswith("['2', '200000'")
    doctor(both, "--restore")
    assert settings(both) == before


def test_deferral_of_one_queue_comes_back(lab_pair: tuple[Namespace, Namespace]) -> None:
    _venue, trader = lab_pair
    with trader.enter(), Filter.load("t0"):  # a veth has NAPI instances while a program is on it
        index = socket.if_nametoindex("t0")
        before = netdev.napis(index)
        if not before or before[0].defer_hard_irqs is None:
            pytest.skip("this kernel (before 6.13) has no deferral by queue")
        change = Change("napi", "t0", str(before[0].id), "2 200000")
        (made,) = mend([Check(name="x", state="warn", found="", why="", changes=(change,))])
        assert (made.before, made.after, made.error) == ("0 0", "2 200000", "")
        assert netdev.napis(index)[0].gro_flush_timeout_ns == 200_000
        (undone,), left = restore()
        assert (undone.after, left) == ("0 0", [])
        assert netdev.napis(index) == before


@pytest.mark.parametrize("delay", [0.0, 0.3, 0.45, 0.6, 0.75, 0.9])
def test_a_doctor_that_is_killed_is_undone_by_restore(both: Namespace, delay: float) -> None:
    before = settings(both)
    child = both.popen([*COMMAND, "a0", *CHECKS, "--fix"], stdout=subprocess.DEVNULL)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert doctor(both, "--restore")["left"] == []
    assert settings(both) == before


def test_a_sysctl_of_a_namespace_is_put_back_from_there(both: Namespace) -> None:
    was = POLL.read_text()
    try:
        POLL.write_text("1")
        run = [*COMMAND, "--check", "busy-poll", "--fix"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[0] == f"changed {POLL}: 1 -> 0"
        assert done.returncode == 0
        assert POLL.read_text() == "0\n"
        assert doctor(both, "--restore") == {"restored": [], "left": []}  # it does not even see the file
        assert POLL.read_text() == "0\n"
        done = subprocess.run([*COMMAND, "--restore"], capture_output=True, text=True, timeout=60)
        assert f"changed this host file {POLL}: 0 -> 1" in done.stdout.splitlines()
        assert POLL.read_text() == "1\n"
    finally:
        POLL.write_text(was)
