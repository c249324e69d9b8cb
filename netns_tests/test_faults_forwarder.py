"""The live forwarder: the same damage as the pure model, on a real UDP stream."""

from __future__ import annotations

import os
import select
import socket
import struct
import time

import pytest

from xdpstack.errors import SetupError
from xdpstack.lab.faults import Faults, impair
from xdpstack.lab.forwarder import COUNTERS, Forwarder, impaired_pair


@pytest.fixture
def wired(lab):
    """Two namespaces behind a forwarder; call it with the faults."""

    def make(**more):
        a, b = lab.namespace("a"), lab.namespace("b")
        *_, forwarder = impaired_pair(lab, a, "a0", "10.78.0.1/24", b, "b0", "10.78.0.2/24", **more)
        return a, b, forwarder

    return make


def receive(sock, quiet=0.0, most=10**6):
    """What comes until nothing has come for `quiet` seconds; without it the first may take its time."""
    out, wait = [], quiet or 5.0
    while len(out) < most and select.select([sock], [], [], wait)[0]:
        out.append(sock.recv(2048))
        wait = quiet or 0.3
    return out


def holds(counters):
    for way in counters.values():
        assert set(way) == set(COUNTERS)
        inside = sum(way[name] for name in ("lost", "overflowed", "waiting", "sent", "refused"))
        assert way["offered"] + way["duplicated"] == inside


def stream(a, b, count, pace=50, every=64, size=100):
    """Send numbered datagrams from a to b in small bursts; returns what b received."""
    out = []
    with b.socket() as receiver, a.socket() as sender:
        receiver.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
        receiver.bind(("10.78.0.2", 7000))
        sender.connect(("10.78.0.2", 7000))
        for number in range(count):
            sender.send(struct.pack(">I", number) + bytes(size - 4))
            if number % every == every - 1:
                time.sleep(pace / 1e6)
        out = receive(receiver, 0.5)
    return [struct.unpack_from(">I", data)[0] for data in out]


def test_a_udp_stream_is_damaged_exactly_as_the_pure_model_says(wired):
    how = Faults(seed=11, loss=0.02, duplicate=0.02, reorder=0.02, hold_ns=10**10)
    a, b, forwarder = wired(forward=how)
    count = 20_000
    got = stream(a, b, count)
    expected = [sent.index for sent in impair([(n, b"x") for n in range(count)], how).packets]
    forwarder.close()
    counters = forwarder.counters()
    holds(counters)
    assert counters["forward"]["offered"] == count
    assert counters["forward"]["missed"] == 0
    still_held = counters["forward"]["waiting"]
    assert got == expected[: len(expected) - still_held]
    assert still_held <= 3


def test_both_ways_have_their_own_faults(wired):
    a, b, forwarder = wired(forward=Faults(seed=1, loss=1.0), backward=Faults(seed=2, duplicate=1.0))
    with a.socket() as one, b.socket() as two:
        one.bind(("10.78.0.1", 7001))
        two.bind(("10.78.0.2", 7001))
        one.sendto(b"there", ("10.78.0.2", 7001))
        two.sendto(b"back", ("10.78.0.1", 7001))
        assert receive(one) == [b"back", b"back"]
        assert receive(two, 0.05) == []
    forwarder.close()
    holds(forwarder.counters())


def test_a_corrupted_frame_is_dropped_by_the_kernels_checks(wired):
    a, b, forwarder = wired(forward=Faults(seed=5, corrupt=0.2))
    got = stream(a, b, 2000, size=1400)
    forwarder.close()
    way = forwarder.counters()["forward"]
    assert 300 < way["corrupted"] < 500
    # a bit in the Ethernet source address harms nobody, every other one is found
    assert 2000 - way["corrupted"] <= len(got) <= 2000 - way["corrupted"] + 10


def test_delay_and_rate_hold_frames_for_their_time(wired):
    a, b, _ = wired(forward=Faults(delay_ns=20_000_000, rate=8_000_000))
    with b.socket() as receiver, a.socket() as sender:
        receiver.bind(("10.78.0.2", 7000))
        receiver.settimeout(60)
        start = time.monotonic()
        for _ in range(10):
            sender.sendto(bytes(958), ("10.78.0.2", 7000))  # 1000 bytes a frame: 1 ms at 8 Mbit/s
        receiver.recv(2000)
        first = time.monotonic() - start
        for _ in range(9):
            receiver.recv(2000)
        last = time.monotonic() - start
    assert 0.021 <= first < 0.2
    assert 0.030 <= last < 0.3


def test_vlan_tags_and_multicast_pass_whole(wired):
    a, b, _ = wired()
    frame = (
        bytes.fromhex("01005e0000fb020000000001") + bytes.fromhex("81000064") + b"\x88\xb5" + bytes(range(60))
    )
    with (
        a.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
        b.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap,
    ):
        sender.bind(("a0", 0))
        tap.bind(("b0", 3))
        tap.setsockopt(263, 8, 1)
        tap.settimeout(60)
        sender.send(frame)
        data, ancillary, _, _ = tap.recvmsg(2000, 100)
    tci = struct.unpack_from("IIIHHHH", ancillary[0][2])[5]
    assert data[:12] + struct.pack(">HH", 0x8100, tci) + data[12:] == frame


def test_fifty_thousand_frames_a_second_pass_without_loss(wired):
    a, b, forwarder = wired(forward=Faults(seed=1))
    count, rate = 60_000, 50_000
    with b.socket() as receiver, a.socket() as sender:
        receiver.setsockopt(socket.SOL_SOCKET, 33, 128 << 20)
        receiver.bind(("10.78.0.2", 7000))
        sender.connect(("10.78.0.2", 7000))
        start = time.monotonic()
        for number in range(count):
            sender.send(struct.pack(">I", number))
            while number % 32 == 0 and (ahead := number / rate - (time.monotonic() - start)) > 0:
                time.sleep(ahead)
        sending = time.monotonic() - start
        while forwarder.counters()["forward"]["offered"] < count and time.monotonic() - start < 20:
            time.sleep(0.005)
        passing = time.monotonic() - start
        got = [struct.unpack(">I", data)[0] for data in receive(receiver, 0.2)]
    forwarder.close()
    way = forwarder.counters()["forward"]
    holds(forwarder.counters())
    assert way["missed"] == 0
    assert got == list(range(count))
    print(f"sent in {sending:.2f} s, through in {passing:.2f} s")
    assert passing < 2 * sending + 1  # the two cores may be shared; alone it keeps up


def test_a_link_that_is_not_there_is_said(lab):
    middle = lab.namespace("wire")
    with pytest.raises(SetupError, match="nolink"):
        Forwarder(middle, "nolink0", "nolink1").start()
    assert lab.children() == []


def test_a_forwarder_dies_with_its_lab(make_lab):
    lab = make_lab()
    a, b = lab.namespace("a"), lab.namespace("b")
    *_, forwarder = impaired_pair(lab, a, "a0", "10.78.0.1/24", b, "b0", "10.78.0.2/24")
    pid = forwarder._child.pid
    lab.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
