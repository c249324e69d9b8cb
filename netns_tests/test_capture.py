"""``xdpstack capture`` over veth, beside a filter of ours or alone."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdpstack.bpf import Filter, attached
from xdpstack.lab import Namespace
from xdpstack.port import PcapPort

Pair = tuple[Namespace, Namespace]


def start(trader: Namespace, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xdpstack", "capture", *map(str, words)]
    return trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_filter(trader: Namespace) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with trader.enter():
            if attached("t0") is not None:
                time.sleep(0.3)  # until the socket is in the map too
                return
        time.sleep(0.02)
    raise AssertionError("the capture attached no filter")


def finish(child: subprocess.Popen[str]) -> dict[str, object]:
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0, err
    said = json.loads(out)
    assert isinstance(said, dict)
    return said


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng.zst"])
def test_what_the_rule_names_is_in_the_file_and_the_rest_is_not(
    lab_pair: Pair, tmp_path: Path, suffix: str
) -> None:
    venue, trader = lab_pair
    path = tmp_path / f"a{suffix}"
    child = start(
        trader, "xsk:t0:0", "-w", path, "--rules", "udp dst 10.77.0.2:9000", "--count", 200, "--json"
    )
    wait_for_filter(trader)
    with venue.socket() as sender:
        for number in range(200):
            sender.sendto(b"not this", ("10.77.0.2", 9001))
            sender.sendto(number.to_bytes(4, "big"), ("10.77.0.2", 9000))
    said = finish(child)
    assert (said["frames"], said["ended_by"], said["granted"], said["dropped"]) == (200, "count", "copy", 0)
    with PcapPort(path) as port:
        frames = port.receive(300)
        assert [int.from_bytes(frame.data[42:46], "big") for frame in frames] == list(range(200))
        assert port.clock == ("tai" if "ng" in suffix else "utc")
        assert [frame.rx_ns for frame in frames] == sorted(frame.rx_ns for frame in frames)
    with trader.enter():
        assert attached("t0") is None, "the filter is gone with the capture"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_capture_with_a_whole_file(lab_pair: Pair, tmp_path: Path, number: int) -> None:
    venue, trader = lab_pair
    path = tmp_path / "a.pcapng.gz"
    child = start(trader, "xsk:t0", "-w", path, "--rules", "udp", "--json")
    wait_for_filter(trader)
    with venue.socket() as sender:
        for _ in range(50):
            sender.sendto(b"x", ("10.77.0.2", 9000))
    time.sleep(0.3)
    child.send_signal(number)
    said = finish(child)
    assert (said["frames"], said["ended_by"]) == (50, "signal")
    with PcapPort(path) as port:
        assert len(port.receive(100)) == 50
        assert port.stats()["rx_truncated"] == 0


def test_seconds_end_a_capture(lab_pair: Pair, tmp_path: Path) -> None:
    _, trader = lab_pair
    said = finish(
        start(trader, "xsk:t0:0", "-w", tmp_path / "a.pcap", "--rules", "udp", "--seconds", 0.5, "--json")
    )
    assert (said["frames"], said["ended_by"]) == (0, "seconds")


def test_a_pinned_filter_is_used_and_left_as_it_was(lab_pair: Pair, tmp_path: Path) -> None:
    venue, trader = lab_pair
    with contextlib.ExitStack() as stack:
        with trader.enter():
            steering = Filter.load("t0", rules="udp dst 10.77.0.2:1 -> drop", pin=True)
            stack.callback(unload, trader, steering)
            before = [str(rule) for rule in steering.rules]
        words = ("-w", tmp_path / "a.pcap", "--rules", "udp dst 10.77.0.2:9000", "--count", 5, "--json")
        child = start(trader, "xsk:t0:0", *words)
        end = time.monotonic() + 60
        while len(steering.rules) == len(before) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)
        with venue.socket() as sender:
            for _ in range(5):
                sender.sendto(b"x", ("10.77.0.2", 9000))
        assert finish(child)["frames"] == 5
        assert [str(rule) for rule in steering.rules] == before


def unload(trader: Namespace, steering: Filter) -> None:
    with trader.enter():
        steering.unload()
