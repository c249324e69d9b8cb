"""`xdpstack trace` on a real kernel: what it counts is what was sent.

The tracer is a process of its own, since it may mount tracefs in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from xdpstack._ffi import lib
from xdpstack.bpf import Filter, attached
from xdpstack.lab import Namespace
from xdpstack.lab.snapshot import Snapshot, other_labs
from xdpstack.port import XskPort
from xdpstack.trace import headers

Pair = tuple[Namespace, Namespace]
COMMAND = [sys.executable, "-m", "xdpstack", "trace"]
FRAMES = 1000


@pytest.fixture(autouse=True)
def _can_run() -> None:
    """bcc and headers come by `make trace-deps`; without them nothing here can run, and says so."""
    pytest.importorskip("bcc", reason="python3-bpfcc is not there: sudo make trace-deps")
    try:
        headers.find()
    except OSError as error:
        pytest.skip(str(error))


def begin(namespace: Namespace, *args: str) -> subprocess.Popen[str]:
    child: subprocess.Popen[str] = namespace.popen(
        [*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = []
    while line := child.stderr.readline():
        said.append(line)
        if line == "tracing\n":
            return child
    raise AssertionError("".join(said))


def end(child: subprocess.Popen[str]) -> Any:
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    return json.loads(out)


@contextlib.contextmanager
def receiving(trader: Namespace, **options: Any) -> Iterator[tuple[XskPort, Filter]]:
    rule = "udp dst 10.77.0.2:9000 -> test"
    with trader.enter(), Filter.load("t0", rules=rule) as steering, XskPort("t0", **options) as port:
        for queue, fd in port.fds().items():
            steering.set_socket("test", queue, fd)
        yield port, steering


def send(venue: Namespace, count: int, port: int = 9000, pause: int = 32) -> None:
    with venue.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            sock.sendto(b"x" * 100, ("10.77.0.2", port))
            if number % pause == pause - 1:
                time.sleep(0.001)


def drain(port: XskPort, count: int, patience: float = 5.0) -> int:
    got, deadline = 0, time.monotonic() + patience
    while got < count and time.monotonic() < deadline:
        got += len(port.receive(64))
    return got


def redirects(shown: Any) -> dict[str, int]:
    return {row["error"]: row["packets"] for row in shown["xdp"] if row["what"] == "redirect"}


def test_redirects_and_polls_are_the_frames_that_were_sent(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with receiving(trader) as (port, _):
        program = attached("t0").prog_id
        child = begin(trader, "t0", "--json", "--seconds", "60")
        send(venue, FRAMES)
        assert drain(port, FRAMES) == FRAMES
        shown = end(child)
    assert redirects(shown) == {"": FRAMES}
    row = next(row for row in shown["xdp"] if row["what"] == "redirect")
    assert (row["interface"], row["program"], row["action"]) == ("t0", program, "redirect")
    assert [row["device"] for row in shown["napi"]] == ["t0"]
    assert shown["napi"][0]["packets"] == FRAMES
    assert shown["napi"][0]["queue"] == 0
    polls = shown["napi"][0]
    assert FRAMES / 64 <= polls["polls"] <= FRAMES + polls["empty"]
    received = [row for row in shown["softirq"] if row["vector"] == "net-rx"]
    assert sum(row["runs"] for row in received) > 0
    assert all(0 < row["longest_ns"] <= row["ns"] for row in received)
    if shown["wakeups"] is not None:  # everybody's, so at least ours
        assert shown["wakeups"]["calls"] > 0


def test_polls_are_told_by_queue(make_pair: Callable[..., Pair]) -> None:
    venue, trader = make_pair(queues=2)
    with trader.enter(), Filter.load("t0", rules="udp dst 10.77.0.2:9000 -> test") as steering:
        child = begin(trader, "t0", "--json", "--seconds", "60")
        with contextlib.ExitStack() as stack:
            for _ in range(24):  # flows enough that both queues get some
                sock = stack.enter_context(venue.socket(socket.AF_INET, socket.SOCK_DGRAM))
                for _ in range(5):
                    sock.sendto(b"x", ("10.77.0.2", 9000))
        time.sleep(0.1)
        shown = end(child)
        counted = {queue: count.packets for (_, queue), count in steering.counters().no_socket.items()}
    assert {row["queue"]: row["packets"] for row in shown["napi"]} == counted
    assert sorted(counted) == [0, 1]
    assert sum(counted.values()) == 120


def test_a_full_socket_shows_as_redirect_errors_and_nothing_is_lost_in_the_sum(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with receiving(trader, rx_ring=64, rx_frames=64) as (port, _):
        child = begin(trader, "t0", "--json", "--seconds", "60")
        send(venue, 200)
        time.sleep(0.1)
        assert drain(port, 64) == 64
        shown = end(child)
    found = redirects(shown)
    assert found.pop("") == 64
    assert sum(found.values()) == 200 - 64, found
    assert set(found) <= {"ENOSPC", "ENOBUFS", "ENOMEM"}


def test_an_aborted_program_shows_as_exceptions(lab_pair: Pair, tmp_path: Any) -> None:
    venue, trader = lab_pair
    source, thing = tmp_path / "p.c", tmp_path / "p.o"
    source.write_text('__attribute__((section("xdp"), used)) int foreign_abort(void *c) { return 0; }')
    subprocess.run(["clang", "-target", "bpf", "-O2", "-c", source, "-o", thing], check=True)
    trader.run(["ip", "link", "set", "dev", "t0", "xdpdrv", "obj", str(thing), "sec", "xdp"])
    trader.wait_carrier("t0")
    child = begin(trader, "t0", "--json", "--seconds", "60")
    send(venue, 50)
    time.sleep(0.1)
    shown = end(child)
    assert [(row["what"], row["action"], row["packets"]) for row in shown["xdp"]] == [
        ("exception", "aborted", 50)
    ]


def test_kicks_are_those_that_the_port_counted(lab_pair: Pair) -> None:
    _venue, trader = lab_pair
    with receiving(trader) as (port, _):
        child = begin(trader, "--json", "--seconds", "60")
        before = port.stats()["tx_kicks"]
        fd = lib.xds_xsk_fd(port.handle, len(port.queues))  # sending has a socket of its own
        frame = bytes(12) + b"\x08\x00" + bytes(50)
        for _ in range(40):
            port.send([frame] * 4)
            port.flush()
        kicked = port.stats()["tx_kicks"] - before
        shown = end(child)
    mine = [row for row in shown["kicks"] if row["pid"] == os.getpid() and row["kind"] == "tx"]
    assert kicked > 0
    assert sum(row["calls"] for row in mine) == kicked
    assert {row["fd"] for row in mine} == {fd}


def test_calls_without_data_on_other_sockets_are_no_kicks(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    child = begin(trader, "--json", "--seconds", "60")
    with venue.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("10.77.0.2", 9))
        libc = __import__("ctypes").CDLL(None)
        for _ in range(10):
            libc.sendto(sock.fileno(), None, 0, 0, None, 0)
        child.send_signal(signal.SIGINT)  # while the socket is there to be asked
        out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert [row for row in json.loads(out)["kicks"] if row["pid"] == os.getpid()] == []


def test_the_live_table_shows_totals_and_rates(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with receiving(trader) as (port, _):
        child = begin(trader, "t0", "--seconds", "1.2", "--interval", "0.4")
        send(venue, FRAMES)
        assert drain(port, FRAMES) == FRAMES
        out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    line = next(line for line in reversed(out.splitlines()) if " redirect " in line)
    assert line.split()[-2] == f"{FRAMES:,}"
    assert out.count("net-rx") >= 2


def test_nothing_is_left_behind_by_a_tracer_that_is_killed(lab_pair: Pair) -> None:
    _venue, trader = lab_pair
    before = Snapshot.take()
    child = begin(trader, "t0", "--json", "--seconds", "60")
    child.kill()
    child.communicate()
    assert before.wait_restored(but=other_labs) == {}


def test_nobody_is_told_in_one_sentence_that_it_takes_root(lab_pair: Pair) -> None:
    _venue, trader = lab_pair
    assert shutil.which("setpriv")
    with trader.popen(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *COMMAND, "t0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (1, "", "xdpstack: trace: not root; run it by sudo\n")
