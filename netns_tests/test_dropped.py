"""What a filter and an engine refuse, with the reason; nothing is on when nobody looks, or after a kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdpstack import bpf
from xdpstack import node as nodes
from xdpstack.bpf import Filter
from xdpstack.clock import tai_ns
from xdpstack.dropped import HOLD, EngineDrops, FilterDrops, sources
from xdpstack.engine import EngineConfig
from xdpstack.errors import SetupError
from xdpstack.lab import Namespace
from xdpstack.lab.snapshot import Snapshot
from xdpstack.ring import Ring
from xdpstack.stats import ROOT, segments, sweep, tap_path

HERE = "10.77.0.2"
RULES = ["udp dst *:5000 -> drop", "udp dst *:5001 -> feed", "udp dst *:5002 -> pass"]


def send(venue: Namespace, port: int, payload: bytes = b"x", count: int = 1) -> None:
    with venue.socket() as sender:
        for _ in range(count):
            sender.sendto(payload, (HERE, port))


def wire(venue: Namespace, frame: bytes) -> None:
    with venue.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("v0", 0))
        raw.send(frame)


def gather(source, wanted: int, seconds: float = 5.0) -> list:
    taken, deadline = [], time.monotonic() + seconds
    while len(taken) < wanted and time.monotonic() < deadline:
        taken += source.read(0.05)
    return taken


def cli(trader: Namespace, *words: str):
    command = [sys.executable, "-m", "xdpstack", "capture", *words]
    return trader.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_filter_shows_each_reason_with_its_rule_and_the_whole_frame(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", rules=RULES) as steering, FilterDrops("t0") as drops:
        before = tai_ns()
        send(venue, 5000, b"dropped here", 2)
        send(venue, 5001, b"nobody takes it")
        send(venue, 5002, b"passes")
        send(venue, 5003, b"no rule names it")
        wire(venue, bytes.fromhex("02" * 12 + "0800" + "4100" + "00" * 50))  # an IPv4 header of 4 bytes
        taken = gather(drops, 4)
        ids = [rule.id for rule in steering.rules]
        assert [(one.reason, one.detail) for one in taken] == [
            ("dropped", f"rule {ids[0]}, queue 0"),
            ("dropped", f"rule {ids[0]}, queue 0"),
            ("no_socket", f"rule {ids[1]}, queue 0"),
            ("malformed", "queue 0"),
        ]
        assert taken[0].data.endswith(b"dropped here")
        assert taken[2].data.endswith(b"nobody takes it")
        assert all(one.length == len(one.data) for one in taken)
        assert all(before <= one.ns <= tai_ns() for one in taken)
        assert str(taken[0]) == f"filter t0: dropped, rule {ids[0]}, queue 0"
        assert drops.read(0.05) == []
        assert drops.lost == 0
        reasons = steering.counters().reasons
        assert (reasons["dropped"].packets, reasons["no_socket"].packets, reasons["passed"].packets) == (
            2,
            1,
            1,
        )


def tap_of(drops: FilterDrops):
    out = bpf.ffi.new("struct xds_tap *")
    assert bpf.lib.xds_drops_tap(drops._handle, out) == 0
    return out


def test_the_tap_is_off_before_and_after_and_has_one_reader(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", rules=RULES, pin=True) as steering:
        trader.lab.owns(steering._pin_dir)
        drops = FilterDrops("t0")
        assert tap_of(drops).until_ns > tai_ns()
        ready, tell = os.pipe()

        def second() -> int:
            try:
                FilterDrops("t0")
            except SetupError as error:
                os.write(tell, str(error).encode())
            return 0

        assert trader.fork(second).wait(20) == 0
        assert f"process {os.getpid()} does so already" in os.read(ready, 4096).decode()
        handle = drops._handle
        drops._handle = bpf.ffi.NULL  # as if it had been killed: nothing says that it is off
        bpf.lib.xds_drops_close(handle)
        with FilterDrops("t0") as again:
            assert len(gather_after(again, venue)) == 1
        watcher = FilterDrops("t0")
        bpf.lib.xds_drops_hold(watcher._handle, bpf.ffi.new("struct xds_tap *", {"until_ns": 1, "pid": 1}))
        send(venue, 5000)  # the first frame after its time switches it off
        deadline = time.monotonic() + 60
        while tap_of(watcher).until_ns and time.monotonic() < deadline:
            time.sleep(0.01)
        assert tap_of(watcher).until_ns == 0
        watcher.close()
        watcher.close()
        steering.unload()
        os.close(ready)
        os.close(tell)


def gather_after(drops: FilterDrops, venue: Namespace) -> list:
    send(venue, 5000)
    return gather(drops, 1)


def test_sampling_shows_a_part_and_a_full_buffer_is_counted(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", rules=RULES) as steering:
        with FilterDrops("t0", every=10) as drops:
            send(venue, 5000, count=1000)
            assert 40 <= len(gather(drops, 1000, 0.5)) <= 200
        with FilterDrops("t0") as drops:
            send(venue, 5000, bytes(1400), 2000)  # 2.8 MB, past two buffers of 256 KiB
            taken = gather(drops, 2000, 1.0)
            assert drops.lost > 500  # told without another frame, of every CPU
            assert len(taken) + drops.lost == 2000
        assert steering.counters().reasons["dropped"].packets == 3000


@pytest.mark.parametrize("port", ["xsk:t0", "sock:t0"])
def test_an_engine_shows_what_its_host_core_refused_and_what_nobody_wanted(lab_pair, port):
    venue, trader = lab_pair
    with trader.enter():
        before = Snapshot.take()
        with nodes.open(port, engine=EngineConfig(name="refuser")) as node:
            node.feed("plain", groups=["239.1.1.1:5000"])
            node.start()
            if port == "xsk:t0":
                node.filters[0].add_rule("udp dst *:6000 -> main")
                node.filters[0].add_rule("proto 99 -> main")
            (found,) = [one for one in segments() if one.pid == os.getpid() and one.name == "refuser"]
            with EngineDrops(found) as drops:
                if port == "xsk:t0":
                    send(venue, 6000, b"to nobody")
                    header = "4500001800010000406300000a4d00010a4d0002"
                    wire(venue, bytes.fromhex("ff" * 6 + "02" * 6 + "0800" + header + "01020304"))
                    first, second = gather(drops, 2)
                    assert (first.by, first.reason) == ("engine refuser port 0", "unrouted")
                    assert first.data.endswith(b"to nobody")
                    assert (second.by, second.reason, second.data[-4:]) == (
                        "engine refuser port 0",
                        "ip_checksum",
                        b"\x01\x02\x03\x04",
                    )
                    refused = node.stats()["engine"]
                    assert (refused["unrouted"], refused["host_refused"]) == (1, 1)
                assert drops.lost == 0
                assert drops.read() == []
            with sources("t0") as opened:
                assert [one.name for one in opened] == ["engine refuser"] + ["filter t0"] * (port == "xsk:t0")
        assert [
            item for item in Snapshot.take().added(before).get("shared_memory", []) if "refuser" in item
        ] == []


def test_a_killed_reader_of_an_engine_is_replaced_at_once_and_forgotten_when_its_ring_is_full(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), nodes.open("xsk:t0", engine=EngineConfig(name="goes-on")) as node:
        node.feed("plain", groups=["239.1.1.1:5000"])
        node.start()
        node.filters[0].add_rule("udp dst *:6000 -> main")
        (found,) = [one for one in segments() if one.pid == os.getpid() and one.name == "goes-on"]

        def killed() -> None:
            def die() -> None:
                EngineDrops(found)
                os.kill(os.getpid(), signal.SIGKILL)

            trader.fork(die).wait(20)

        killed()
        with EngineDrops(found) as drops:
            send(venue, 6000, b"after it")
            assert [one.data[-8:] for one in gather(drops, 1)] == [b"after it"]
        killed()
        with Ring.open(tap_path(found.path), "watcher") as tap:
            assert tap.pointer.reader_pid
            deadline = time.monotonic() + 60
            while tap.pointer.reader_pid and time.monotonic() < deadline:
                send(venue, 6000, bytes(1400), 50)
                time.sleep(0.02)
            assert tap.pointer.reader_pid == 0
            assert tap.stats["refused"] > 0
        with EngineDrops(found) as drops:
            send(venue, 6000, b"and again")
            assert [one.data[-9:] for one in gather(drops, 1)] == [b"and again"]


def comments(path: Path) -> list[tuple[bytes, str]]:
    """(frame, comment) of each enhanced packet block of a pcapng file."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == 6:
            length = struct.unpack_from("<I", data, at + 20)[0]
            option = at + 28 + (length + 3) // 4 * 4
            code, size_of = struct.unpack_from("<HH", data, option)
            assert code == 1  # opt_comment
            found.append((data[at + 28 : at + 28 + length], data[option + 4 : option + 4 + size_of].decode()))
        at += size
    return found


def test_the_command_prints_and_writes_each_with_its_reason(lab_pair, tmp_path):
    venue, trader = lab_pair
    out = tmp_path / "refused.pcapng"
    with trader.enter(), Filter.load("t0", rules=RULES):
        running = cli(trader, "t0", "--dropped", "-w", str(out), "--count", "3")
        wait_for_reader(trader)
        send(venue, 5000, b"one")
        send(venue, 5001, b"two", 2)
        said, error = running.communicate(timeout=30)
    assert running.returncode == 0, error
    lines = said.splitlines()
    assert len(lines) == 6, said
    assert " to 10.77.0.2:5000 45 bytes; filter t0: dropped, rule 1, queue 0" in lines[0]
    assert lines[3] == "3 refused frames of filter t0"
    assert [line.split() for line in lines[4:]] == [
        ["filter", "t0:", "dropped", "1"],
        ["filter", "t0:", "no_socket", "2"],
    ]
    kept = comments(out)
    assert [text for _, text in kept] == [
        "filter t0: dropped, rule 1, queue 0",
        "filter t0: no_socket, rule 2, queue 0",
        "filter t0: no_socket, rule 2, queue 0",
    ]
    assert kept[0][0].endswith(b"one")


def wait_for_reader(trader: Namespace) -> None:
    """Until another process holds the tap of t0's filter."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with trader.enter():
                FilterDrops("t0").close()
        except SetupError as error:
            if "does so already" in str(error):
                return
            raise
        time.sleep(0.2)
    raise AssertionError("the command does not read")


def test_it_ends_by_sigint_and_after_a_kill_nothing_stays_on(lab_pair):
    venue, trader = lab_pair
    with trader.enter(), Filter.load("t0", rules=RULES):
        running = cli(trader, "t0", "--dropped", "--json")
        wait_for_reader(trader)
        running.send_signal(signal.SIGINT)
        said, error = running.communicate(timeout=30)
        assert running.returncode == 0, error
        assert json.loads(said) == {
            "watched": ["filter t0"],
            "file": None,
            "ended_by": "signal",
            "frames": 0,
            "every": 1,
            "reasons": {},
            "lost": {"filter t0": 0},
        }
        running = cli(trader, "t0", "--dropped", "--json")
        wait_for_reader(trader)
        running.kill()
        running.wait()
        with FilterDrops("t0") as drops:  # its number is free again, at once
            assert len(gather_after(drops, venue)) == 1
    assert HOLD <= 5


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["t0", "--dropped"], 1, "watch what t0 refuses: no filter of ours and no engine; xdpstack status"),
        (["nosuch0", "--dropped"], 1, "watch what nosuch0 refuses: no such interface or engine"),
        (["--dropped"], 2, "capture --dropped needs an interface or an engine's name"),
        (["t0", "--dropped", "--rules", "udp"], 2, "takes no --rules"),
        (["t0", "--every", "5", "-w", "x.pcap"], 2, "capture --every goes with --dropped"),
        (["--dropped", "--read", "x.pcap"], 2, "neither PORT nor -w nor --dropped"),
        (["t0", "--dropped", "-w", "x.pcap"], 2, "only .pcapng keeps the reason"),
    ],
)
def test_what_cannot_be_watched_is_one_sentence(lab_pair, words, code, said):
    _, trader = lab_pair
    running = cli(trader, *words)
    out, error = running.communicate(timeout=30)
    assert (running.returncode, out) == (code, "")
    assert said in error
    assert error.count("\n") == 1


def test_the_tap_of_a_dead_engine_is_swept_with_its_counters(lab_pair):
    _, trader = lab_pair

    def die() -> None:
        node = nodes.open("xsk:t0", engine=EngineConfig(name="dies"))
        node.build()
        os.kill(os.getpid(), signal.SIGKILL)

    child = trader.fork(die)
    child.wait(20)
    left = sorted(path.suffix for path in ROOT.glob(f"xdpstack-{child.pid}-dies.*"))
    assert left == [".stat", ".tap"]
    sweep()
    assert list(ROOT.glob(f"xdpstack-{child.pid}-dies.*")) == []
