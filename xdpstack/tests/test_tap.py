"""A tap on one connection: what it holds, by tshark and by scapy, and what it leaves out."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgReader

import xdpstack.streams
from xdpstack._ffi import lib
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, SetupError
from xdpstack.tests.test_leases import A, B, arrives, joined, turn


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)


@pytest.fixture
def pair():
    with joined() as both:
        yield both


def frames(path):
    """(interface, flags, payload) of each."""
    with PcapNgReader(str(path)) as reader:
        found = []
        for packet in reader:
            whole = Ether(bytes(packet))
            assert IP in whole
            tcp = whole[TCP]
            found.append((packet.sniffed_on, str(tcp.flags), bytes(tcp.payload)))
    return found


def test_both_directions_are_there_in_order(pair, tmp_path):
    here, there = pair
    with here.tap(tmp_path / "one.pcapng") as tap:
        here.write(b"question")
        arrives(here, there, 8)
        there.take()
        there.write(b"answer")
        arrives(there, here, 6)
        assert here.take() == b"answer"
        here.close()
        turn(here.streams, there.streams, lambda: there.at_end)
    seen = frames(tmp_path / "one.pcapng")
    assert tap.written == len(seen)
    assert tap.lost == 0
    data = [(way, payload) for way, _, payload in seen if payload]
    assert data == [("out", b"question"), ("in", b"answer")]
    assert {way for way, _, _ in seen} == {"in", "out"}


def test_a_tap_from_the_first_segment_on_has_the_handshake(pair, tmp_path):
    here, there = pair
    listener = there.streams.listen(7001)
    one = here.streams.open(B, 7001, tap=tmp_path / "syn.pcapng")
    other = []

    def opened():
        other.extend(filter(None, [listener.take()]))
        return other and one.is_open

    turn(here.streams, there.streams, opened)
    here.write(b"not of it")
    arrives(here, there, 9)
    for tap in list(here.streams.taps):
        tap.close()
    seen = frames(tmp_path / "syn.pcapng")
    assert [(way, flags) for way, flags, _ in seen[:3]] == [("out", "S"), ("in", "SA"), ("out", "A")]
    assert not any(payload for _, _, payload in seen)


def test_tshark_reads_it_with_nanoseconds(pair, tmp_path):
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    here, there = pair
    path = tmp_path / "one.pcapng"
    with here.tap(path):
        before = int(lib.xds_clock_now(here.streams.engine.clock))
        here.write(b"question")
        arrives(here, there, 8)
    fields = ["ip.src", "ip.dst", "tcp.dstport", "tcp.len", "frame.interface_name", "frame.time_epoch"]
    words = [word for field in fields for word in ("-e", field)]
    command = [
        "tshark",
        "-r",
        path,
        "-Y",
        "tcp.len > 0",
        "-o",
        "tcp.check_checksum:TRUE",
        "-T",
        "fields",
        *words,
    ]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (line,) = lines
    *head, stamp = line.split("\t")
    assert head == [A, B, "7000", "8", "out"]
    seconds, _, fraction = stamp.partition(".")
    assert len(fraction) == 9
    assert abs(int(seconds) - before // 1_000_000_000) < 120  # UTC beside TAI


def test_taps_are_bounded_and_make_room_when_they_end(pair, tmp_path):
    here, _ = pair
    for turn_ in range(3):
        taps = [here.tap(tmp_path / f"{turn_}-{i}.pcapng") for i in range(lib.XDS_TAPS)]
        with pytest.raises(CapacityError, match="4 connections of this port have one"):
            here.tap(tmp_path / "more.pcapng")
        for tap in taps:
            tap.close()
            tap.close()
        assert not here.streams.taps


def test_what_cannot_be_tapped_says_why(pair, tmp_path):
    here, _ = pair
    with pytest.raises(SetupError, match="tap into"):
        here.tap(tmp_path / "no" / "folder.pcapng")
    with pytest.raises(SetupError, match="tap into"):
        here.streams.open(B, 7000, tap=tmp_path / "no" / "folder.pcapng")
    with pytest.raises(ConfigError, match=r"name it \*\.pcapng"):
        here.tap(tmp_path / "old.pcap")
    here.close()
    with pytest.raises(LocalProtocolError, match="was closed"):
        here.tap(tmp_path / "late.pcapng")


def test_a_tap_that_nobody_closed_ends_with_its_streams(tmp_path):
    with joined() as (here, there):
        here.tap(tmp_path / "left.pcapng")
        here.write(b"last words")
        arrives(here, there, 10)
    assert b"last words" in [payload for _, _, payload in frames(tmp_path / "left.pcapng")]
