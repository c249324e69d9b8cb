"""The cards that the other tests rely on: their queues, clocks, cables and modules are there and are true."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from tools.vmlab.tests.machine import LINKS, PATIENCE, cable, carrier, run, until, up


@pytest.mark.parametrize("link", ["igb0", "igb1"])
def test_a_card_has_two_queues_and_a_clock_that_runs(link: str) -> None:
    assert "driver: igb" in run("ethtool", "-i", link)
    channels = run("ethtool", "-l", link)
    assert re.findall(r"Combined:\s+(\d+)", channels)[1] == "2"
    said = run("ethtool", "-T", link)
    number = re.search(r"(?:PTP Hardware Clock|Hardware timestamp provider index): (\d+)", said)
    assert number, said
    with open(f"/dev/ptp{number[1]}") as clock:
        read = (~clock.fileno() << 3) | 3  # FD_TO_CLOCKID of clock_gettime(2)
        first = time.clock_gettime_ns(read)
        until(lambda: time.clock_gettime_ns(read) - first >= 50_000_000)


@pytest.mark.parametrize(("one", "other"), [LINKS[:2], LINKS[1::-1], LINKS[2:], LINKS[:1:-1]])
def test_a_frame_goes_through_its_cable_and_nowhere_else(one: str, other: str) -> None:
    up(*LINKS)
    frame = bytes.fromhex("ffffffffffff020000000001 88b5") + one.encode().ljust(50, b".")
    ears = {}
    for link in LINKS:
        ears[link] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        ears[link].bind((link, 0x88B5))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
        mouth.bind((one, 0))
        mouth.send(frame)
    ears[other].settimeout(PATIENCE)
    assert ears[other].recv(2048) == frame
    for link in set(LINKS) - {one, other}:
        ears[link].setblocking(False)
        with pytest.raises(BlockingIOError):
            ears[link].recv(2048)
    for ear in ears.values():
        ear.close()


@pytest.mark.parametrize("link", ["igb0", "virtio0"])
def test_a_cable_can_be_pulled_and_plugged(link: str) -> None:
    up(link)
    assert cable(link, False) == "ok"
    until(lambda: not carrier(link))
    assert cable(link, True) == "ok"
    until(lambda: carrier(link))
    assert cable("eth0", False) == "no such request: link eth0 off"


def test_the_kernel_has_what_many_hosts_lack() -> None:
    release = [int(part) for part in re.findall(r"\d+", run("uname", "-r"))[:2]]
    assert release >= [6, 14], "igb has zero-copy from Linux 6.14 on"
    assert Path("/sys/kernel/btf/vmlinux").exists()
    for module in ("8021q", "bonding", "sch_netem", "veth", "dummy"):
        run("modprobe", module)
        assert Path(f"/sys/module/{module}").exists()


def test_what_is_written_here_is_gone_with_the_machine_and_the_host_is_read_only() -> None:
    kinds = {line.split()[1]: line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert kinds["/"] == "overlay"
    assert kinds["/sys/fs/bpf"] == "bpf"
