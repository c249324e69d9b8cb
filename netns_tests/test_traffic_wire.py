"""``xdpstack traffic`` over veth: AF_XDP and live frames out, AF_XDP and sockets in, faults between."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
from typing import Any

import pytest

from netns_tests.test_tcp_linux6 import KERNEL, SHARED, own
from xdpstack.cli.capture import _steered
from xdpstack.lab import Lab, Namespace
from xdpstack.lab.faults import Faults
from xdpstack.lab.forwarder import impaired_pair
from xdpstack.tests.test_traffic import folded

Pair = tuple[Namespace, Namespace]
TO = "10.77.0.2:9000"


def start(namespace: Namespace, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xdpstack", "traffic", *map(str, words), "--json"]
    return namespace.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    said: dict[str, Any] = json.loads(out)
    return said


def counting(trader: Namespace, port: str, *words: object, dst: str = TO) -> subprocess.Popen[str]:
    """A receiver that is ready: it says so by a line of its own."""
    child = start(trader, "receive", port, "--dst", dst, *words)
    assert child.stderr is not None
    assert child.stderr.readline() == "counting\n"
    return child


@pytest.mark.parametrize("into", ["xsk:t0", "sock:t0"])
@pytest.mark.parametrize("size", [60, 1514])
def test_what_is_sent_is_counted_at_the_other_end(lab_pair: Pair, into: str, size: int) -> None:
    venue, trader = lab_pair
    receiver = counting(trader, into, "--count", 10**6, "--seconds", 90)
    words = ("--rate", 20_000, "--seconds", 60, "--size", size, "--count", 10_000)
    sender = start(venue, "send", "xsk:v0", "--dst", TO, *words)
    sent, got = finish(sender), finish(receiver)
    assert (sent["sent"], sent["by"], sent["ended_by"]) == (10_000, "xsk", "count")
    assert sent["bytes"] == size * 10_000
    assert (got["numbered"], got["received"], got["lost"]) == (10_000, 10_000, 0)
    assert (got["reordered"], got["doubled"], got["foreign"]) == (0, 0, 0)
    assert 0 < got["age_ns"]["min"] <= got["age_ns"]["p50"] <= got["age_ns"]["max"] < 90 * 10**9


def test_live_frames_are_counted_too(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    receiver = counting(trader, "xsk:t0", "--count", 50_000, "--seconds", 30)
    sent = finish(start(venue, "send", "xsk:v0", "--dst", TO, "--live", "--rate", 100_000, "--count", 50_000))
    got = finish(receiver)
    assert (sent["sent"], sent["by"], sent["ended_by"]) == (50_000, "live", "count")
    assert (got["received"], got["doubled"], got["foreign"]) == (50_000, 0, 0)


@pytest.fixture
def pair6(make_lab: Any) -> Pair:
    """(venue, trader) with addresses of IPv6 alone."""
    lab = make_lab(ipv6=True)
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    lab.veth(venue, "v0", None, trader, "t0", None)
    own(venue, "v0", KERNEL)
    own(trader, "t0", SHARED)
    return venue, trader


@pytest.mark.parametrize("into", ["xsk:t0", "sock:t0"])
@pytest.mark.parametrize("to", [f"[{SHARED}]:9000", "[ff15::9]:9000"], ids=["address", "group"])
def test_what_is_sent_over_ipv6_is_counted_at_the_other_end(pair6: Pair, into: str, to: str) -> None:
    """The kernel's socket takes what has a right checksum, and nothing else."""
    venue, trader = pair6
    receiver = counting(trader, into, "--count", 10**6, "--seconds", 90, dst=to)
    words = ("--rate", 20_000, "--seconds", 60, "--size", 200, "--count", 10_000)
    mac = trader.link("t0").get_attr("IFLA_ADDRESS")
    sender = start(venue, "send", "xsk:v0", "--dst", to, *words, *(("--dmac", mac) if SHARED in to else ()))
    sent, got = finish(sender), finish(receiver)
    assert (sent["sent"], sent["bytes"], sent["ended_by"]) == (10_000, 2_000_000, "count")
    assert (got["numbered"], got["received"], got["lost"]) == (10_000, 10_000, 0)
    assert (got["reordered"], got["doubled"], got["foreign"]) == (0, 0, 0)


def test_live_frames_over_ipv6_have_right_checksums(pair6: Pair) -> None:
    venue, trader = pair6
    to, frames, end = "[ff15::9]:9000", [], time.monotonic() + 60
    with trader.enter(), _steered("xsk:t0", [f"udp dst {to}"]) as port:
        sender = start(venue, "send", "xsk:v0", "--dst", to, "--live", "--rate", 100_000, "--count", 20_000)
        while len(frames) < 1000:
            assert time.monotonic() < end
            frames += [bytes(frame.data) for frame in port.receive(64)]
        assert finish(sender)["sent"] == 20_000
    pseudo = struct.pack("!II", 24, 17)
    assert {folded(frame[22:54] + pseudo + frame[54:]) for frame in frames} == {0xFFFF}
    assert len({frame[62:70] for frame in frames}) == len(frames), "each has its number"


def test_the_seconds_bound_live_frames(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    receiver = counting(trader, "xsk:t0", "--count", 10**7, "--seconds", 120)
    words = ("--live", "--rate", 100_000, "--seconds", 0.2, "--count", 10**7)
    sent = finish(start(venue, "send", "xsk:v0", "--dst", TO, *words))
    assert sent["ended_by"] == "seconds"
    assert 0 < sent["sent"] <= 20_001
    receiver.send_signal(15)
    assert finish(receiver)["received"] <= sent["sent"]


def test_the_seconds_bound_a_socket_too(lab_pair: Pair) -> None:
    venue, _ = lab_pair
    sent = finish(start(venue, "send", "xsk:v0", "--dst", TO, "--rate", 20_000, "--seconds", 0.2))
    assert (sent["by"], sent["ended_by"]) == ("xsk", "seconds")
    assert 0 < sent["sent"] <= 4001


def test_a_sender_of_live_frames_that_is_stopped_goes_on_where_it_was(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    receiver = counting(trader, "xsk:t0", "--count", 10**7, "--seconds", 600)  # the signal alone ends it
    words = ("--live", "--rate", 100_000, "--seconds", 120, "--count", 300_000)
    sender = start(venue, "send", "xsk:v0", "--dst", TO, *words)
    while sender.poll() is None:  # each time is sure to end some run of the kernel's
        sender.send_signal(signal.SIGSTOP)
        time.sleep(0.02)
        sender.send_signal(signal.SIGCONT)
        time.sleep(0.3)
    sent = finish(sender)
    assert (sent["sent"], sent["ended_by"]) == (300_000, "count")
    receiver.send_signal(signal.SIGTERM)
    got = finish(receiver)
    assert (got["doubled"], got["foreign"], got["stale"]) == (0, 0, 0)
    assert 0 < got["received"] <= 300_000


def test_a_signal_ends_live_frames_and_what_was_sent_is_said(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    receiver = counting(trader, "xsk:t0", "--count", 1, "--seconds", 120)
    words = ("--live", "--rate", 100_000, "--seconds", 120, "--count", 10**9)
    sender = start(venue, "send", "xsk:v0", "--dst", TO, *words)
    assert finish(receiver)["received"] >= 1
    sender.send_signal(signal.SIGINT)
    sent = finish(sender)
    assert sent["ended_by"] == "signal"
    assert 0 < sent["sent"] < 10**9


def test_both_ends_of_one_host_are_one_command(lab: Lab) -> None:
    here = lab.namespace("here")
    lab.veth(here, "a0", "10.77.0.1/24", here, "b0", "10.77.0.2/24")
    said = finish(
        start(here, "send", "xsk:a0", "--dst", TO, "--to", "xsk:b0", "--count", 5000, "--rate", 50_000)
    )
    assert (said["sent"], said["numbered"], said["received"], said["lost"]) == (5000, 5000, 5000, 0)


def test_faults_on_the_way_are_counted_by_name(lab: Lab) -> None:
    venue, trader = lab.namespace("venue"), lab.namespace("trader")
    faults = Faults(loss=0.02, duplicate=0.02, reorder=0.02, seed=5)
    *_, forwarder = impaired_pair(
        lab, venue, "v0", "10.77.0.1/24", trader, "t0", "10.77.0.2/24", forward=faults
    )
    receiver = counting(trader, "xsk:t0", "--count", 10**6, "--seconds", 30)
    sender = start(venue, "send", "xsk:v0", "--dst", TO, "--rate", 10_000, "--count", 5000)
    sent, got = finish(sender), finish(receiver)
    forwarder.close()
    way = forwarder.counters()["forward"]
    assert sent["sent"] == got["numbered"] == 5000
    assert 0 <= way["lost"] - got["lost"] <= 3, "the same, but for end marks"
    assert 0 <= way["duplicated"] - got["doubled"] <= 3
    assert got["lost"] > 50
    assert got["doubled"] > 50
    assert got["reordered"] > 50
    assert got["received"] == 5000 - got["lost"] + got["doubled"]


def test_a_queue_that_another_holds_is_one_sentence(lab_pair: Pair) -> None:
    _, trader = lab_pair
    first = counting(trader, "xsk:t0", "--seconds", 20)
    second = start(trader, "receive", "xsk:t0", "--dst", TO)
    out, err = second.communicate(timeout=30)
    assert (second.returncode, out, err.count("\n")) == (1, "", 1)
    assert "another socket holds the queue" in err
    first.send_signal(2)
    assert finish(first)["received"] == 0
