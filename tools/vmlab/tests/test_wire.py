"""What happens on a wire: cables pulled, tags stripped, frames lost and doubled, a card's own stamps."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.vmlab.tests.machine import PATIENCE, ZERO_COPY, Patience, cable, carrier, mouth, run, until, up
from xdpstack.bpf import Filter
from xdpstack.nic.surface import Host
from xdpstack.port import XskPort

TO_US = "udp dst 10.9.0.2:9000 -> test"
SO_TIMESTAMPING = 65  # _NEW: struct __kernel_timespec
TX_HARDWARE, RX_HARDWARE, RAW_HARDWARE = 1, 4, 64
PTP_V2_EVENT, PTP_V2_SYNC, STAMP_SENT = 12, 13, 1  # HWTSTAMP_FILTER_PTP_V2_*, HWTSTAMP_TX_ON


def payloads(port: XskPort, count: int) -> list[bytes]:
    """The last four bytes of frames that come."""
    got: list[bytes] = []
    patience = Patience()
    while len(got) < count and patience:
        got += [bytes(frame.data[-4:]) for frame in port.receive(64)]
    port.release()
    return got


@contextmanager
def receiver(rule: str = TO_US) -> Iterator[tuple[XskPort, Filter]]:
    """A port on both queues of igb1, zero-copy, behind a filter."""
    with (
        Filter.load("igb1", mode="native", rules=rule) as steering,
        XskPort("igb1", range(2), **ZERO_COPY) as port,
    ):
        for queue, fd in port.fds().items():
            steering.set_socket("test", queue, fd)
        up("igb1")
        yield port, steering


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [struct.pack("!I", first + n) for n in range(count)]


def test_a_port_receives_again_after_its_cable_was_pulled() -> None:
    up("igb0", "igb1")
    with receiver() as (port, _), mouth() as sender:
        up("igb0")
        for turn in range(2):
            sent = numbers(20, first=100 * turn)
            for number in sent:
                sender.send(bytes(14) + number)
            assert payloads(port, 20) == sent
            if turn == 0:
                assert cable("igb1", False) == "ok"
                until(lambda: not carrier("igb1"))
                assert port.receive(8) == []
                assert cable("igb1", True) == "ok"
                until(lambda: carrier("igb1"))
        assert port.granted == "zerocopy"
        census = port.census()
        assert sum(count for name, count in census.items() if name.startswith("rx")) == 2 * 4096


def test_attaching_to_a_card_that_resets_itself_returns_with_its_carrier() -> None:
    up("igb1")
    before = int(Path("/sys/class/net/igb1/carrier_down_count").read_text())
    for _ in range(2):
        with Filter.load("igb1", mode="native"):
            assert carrier("igb1")
        until(lambda: carrier("igb1"))
    assert int(Path("/sys/class/net/igb1/carrier_down_count").read_text()) > before, "it did reset itself"


def test_a_vlan_rule_sees_the_tag_where_the_card_leaves_it_on_the_frame() -> None:
    up("igb0", "igb1")
    for link in ("igb0", "igb1"):  # on the receiver it lets VLAN 7 through the card's own VLAN filter
        run("ip", "link", "add", "link", link, "name", f"{link}.7", "type", "vlan", "id", 7)
    try:
        run("ip", "link", "set", "igb0.7", "up")
        run("ethtool", "-K", "igb1", "rxvlan", "off")
        with receiver("vlan 7 udp dst 10.9.0.2:9000 -> test") as (port, steering), mouth("igb0.7") as sender:
            up("igb0", "igb0.7")
            sent = numbers(10)
            for number in sent:
                sender.send(bytes(14) + number)
            got: list[bytes] = []
            patience = Patience()
            while len(got) < 10 and patience:
                got += [bytes(frame.data) for frame in port.receive(16)]
            assert [frame[-4:] for frame in got] == sent
            assert {frame[12:16] for frame in got} == {b"\x81\x00\x00\x07"}
            assert [count.packets for count in steering.counters().rules.values()] == [10]
    finally:
        run("ip", "link", "del", "igb0.7")
        run("ip", "link", "del", "igb1.7")
        run("ethtool", "-K", "igb1", "rxvlan", "on")


def test_what_netem_loses_or_doubles_is_what_a_port_misses_or_sees_twice() -> None:
    """One after the other: netem may lose a copy that it made, and counts that as lost too."""
    up("igb0", "igb1")
    netem = ("dev", "igb0", "root", "netem", "limit", 10000)
    run("tc", "qdisc", "add", *netem)
    try:
        with receiver() as (port, _), mouth() as sender:
            up("igb0")
            for word in ("loss", "duplicate"):
                run("tc", "qdisc", "del", "dev", "igb0", "root")
                run("tc", "qdisc", "add", *netem, word, "10%")
                got = []
                for at in range(0, 600, 100):  # none overflows the receiver's 256 descriptors
                    for number in numbers(100, first=at):
                        sender.send(bytes(14) + number)
                    passed, dropped = left(queued=at + 100)
                    got += payloads(port, passed - len(got))
                assert len(got) == passed, "what left the queue came, each as often as it left"
                if word == "loss":
                    assert len(got) == len(set(got)) == 600 - dropped < 600
                else:
                    assert set(got) == set(numbers(600))
                    assert passed > 600
    finally:
        run("tc", "qdisc", "del", "dev", "igb0", "root")


def left(queued: int) -> tuple[int, int]:
    """What netem on igb0 let pass and what it dropped, when it has no more of what it was given."""
    counts: list[int] = []

    def empty() -> bool:
        said = run("tc", "-s", "qdisc", "show", "dev", "igb0")
        found = re.search(r"Sent \d+ bytes (\d+) pkt \(dropped (\d+).*backlog \d+b (\d+)p", said, re.DOTALL)
        assert found, said
        counts[:] = map(int, found.groups())
        return counts[2] == 0 and counts[0] + counts[1] >= queued

    until(empty)
    return counts[0], counts[1]


def phc_ns(link: str) -> int:
    """The time of a card's own clock."""
    name = next(Path(f"/sys/class/net/{link}/device/ptp").iterdir()).name
    with open(f"/dev/{name}") as clock:
        return time.clock_gettime_ns((~clock.fileno() << 3) | 3)  # FD_TO_CLOCKID of clock_gettime(2)


def hardware_stamp(ear: socket.socket, flags: int = 0) -> int:
    """The card's stamp of the next frame, ns of its clock; 0: it has none."""
    _, extras, _, _ = ear.recvmsg(2048, 512, flags)
    for level, kind, data in extras:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPING):
            seconds, ns = struct.unpack_from("qq", data, 32)  # software, legacy, raw hardware
            return int(seconds * 1_000_000_000 + ns)
    return 0


def test_the_hardware_stamp_of_a_sent_frame_lies_between_two_readings_of_its_cards_clock() -> None:
    """82576 stamps PTP event messages only; this is a Sync over Ethernet."""
    up("igb0", "igb1")
    host, card = Host(), "igb0"
    before = host.stamping(card)
    try:
        assert host.stamping(card, (0, STAMP_SENT, PTP_V2_EVENT))[2] == PTP_V2_EVENT
        sync = bytes.fromhex("011b19000000 020000000001 88f7 00 02 002c") + bytes(40)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88F7)) as ear:
            ear.bind((card, 0x88F7))
            ear.settimeout(PATIENCE)
            ear.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_HARDWARE | RAW_HARDWARE)
            for _ in range(3):
                first = phc_ns(card)
                ear.send(sync)
                stamps: list[int] = []
                until(lambda stamps=stamps: sent_stamp(ear, stamps))
                assert first < stamps[0] < phc_ns(card)
    finally:
        host.stamping(card, before)


def test_the_hardware_stamp_of_a_received_frame_lies_between_two_readings_of_its_cards_clock() -> None:
    """82576 stamps PTP messages of one kind. The emulated one waits, after a stamp, for a read of a register
    that Linux does not read (RXSATRH), so that it stamps once a reset: each turn here begins with one."""
    up("igb0", "igb1")
    host, card = Host(), "igb1"
    before = host.stamping(card)
    try:
        assert host.stamping(card, (0, 0, PTP_V2_SYNC))[2] == PTP_V2_EVENT, "the driver widens it"
        sync = bytes.fromhex("525400000002 020000000001 88f7 00 02 002c") + bytes(40)
        for _ in range(2):
            run("ip", "link", "set", card, "down")
            up("igb0", card)
            with (
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88F7)) as ear,
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out,
            ):
                ear.bind((card, 0x88F7))
                out.bind(("igb0", 0))
                ear.settimeout(PATIENCE)
                ear.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_HARDWARE | RAW_HARDWARE)
                first = phc_ns(card)
                out.send(sync)
                assert first < hardware_stamp(ear) < phc_ns(card)
    finally:
        host.stamping(card, before)


def sent_stamp(ear: socket.socket, into: list[int]) -> bool:
    """Whether the error queue had the stamp of a frame that was sent."""
    try:
        into.append(hardware_stamp(ear, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    return True
