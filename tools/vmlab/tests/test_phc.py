"""The igb's clock and its stamps in our time line. Time jumps here with the host's load: bounds are wide."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

from netns_tests.xsk_list import Program
from tools.vmlab.tests.machine import PATIENCE, run, until, up, write
from tools.vmlab.tests.test_wire import (
    PTP_V2_EVENT,
    RAW_HARDWARE,
    SO_TIMESTAMPING,
    STAMP_SENT,
    TX_HARDWARE,
    phc_ns,
    sent_stamp,
)
from xdpstack import config
from xdpstack import node as nodes
from xdpstack.clock import tai_ns
from xdpstack.nic.surface import Host
from xdpstack.phc import Phc, PhcKeeper
from xdpstack.port import SockPort
from xdpstack.port.sock import Sent

SLACK = 50_000_000
ENDS = ("10.9.0.77", "224.0.1.129")


def test_a_reading_of_the_cards_clock_is_mapped_to_the_moment_of_reading() -> None:
    up("igb0")
    with Phc.of("igb0") as clock:
        assert clock.last.how in ("precise", "extended", "plain")
        for _ in range(5):
            time.sleep(0.2)
            sample = clock.tick()
            assert 0 <= sample.spread_ns < 10**9
        before = tai_ns()
        device = phc_ns("igb0")
        after = tai_ns()
        assert before - SLACK <= clock.to_tai(device) <= after + SLACK
        assert clock.mapping.samples == 6


def test_the_cards_stamp_of_a_sent_frame_is_when_it_was_sent() -> None:
    up("igb0", "igb1")
    host, card = Host(), "igb0"
    kept = host.stamping(card)
    try:
        assert host.stamping(card, (0, STAMP_SENT, PTP_V2_EVENT))[2] == PTP_V2_EVENT
        sync = bytes.fromhex("011b19000000 020000000001 88f7 00 02 002c") + bytes(40)
        with (
            Phc.of(card) as clock,
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88F7)) as ear,
        ):
            ear.bind((card, 0x88F7))
            ear.settimeout(PATIENCE)
            ear.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_HARDWARE | RAW_HARDWARE)
            before = tai_ns()
            ear.send(sync)
            stamps: list[int] = []
            until(lambda: sent_stamp(ear, stamps))
            after = tai_ns()
            clock.tick()
            assert before - SLACK <= clock.to_tai(stamps[0]) <= after + SLACK
    finally:
        host.stamping(card, kept)


def test_a_kernel_socket_has_the_cards_stamp_in_our_time_line() -> None:
    """The emulated 82576 stamps PTP messages over Ethernet, once a reset: a program behind the stamp makes a
    datagram of one."""
    up("igb0")
    host, card = Host(), "igb1"
    run("ip", "addr", "replace", "10.9.0.2/24", "dev", card)
    write(f"/proc/sys/net/ipv4/conf/{card}/rp_filter", 0)
    run("ip", "link", "set", card, "down")
    kept = host.stamping(card)
    try:
        up("igb0", card)
        assert host.stamping(card, (0, 0, PTP_V2_EVENT))[2] == PTP_V2_EVENT
        with (
            SockPort(["224.0.1.129:319"], interface=card, nic_stamps=True) as port,
            PhcKeeper(Phc.of(card)) as keeper,
            Program("list_strip", card, "generic"),
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth,
        ):
            port.map_stamps(keeper)
            mouth.bind(("igb0", 0))  # from an address that is not this host's own
            udp = struct.pack(">HHHH", 319, 319, 48, 0) + bytes(40)
            ip = struct.pack(
                ">HHHHBBH4s4s", 0x4500, 20 + len(udp), 0, 0, 1, 17, 0, *map(socket.inet_aton, ENDS)
            )
            total = sum(struct.unpack(">10H", ip))
            total = (total & 0xFFFF) + (total >> 16)
            ip = ip[:10] + struct.pack(">H", ~total & 0xFFFF) + ip[12:]
            before = tai_ns()
            mouth.send(bytes.fromhex("01005e000181 020000000001 88f7 00 02 002c") + ip + udp)
            got = []
            until(lambda: got.extend((one.rx_ns, one.stamp) for one in port.receive(8)) or got)
            after = tai_ns()
            assert [stamp for _, stamp in got] == ["nic"]
            assert before - SLACK <= got[0][0] <= after + SLACK
            assert port.stats()["rx_nic_stamped"] == 1
    finally:
        host.stamping(card, kept)


def test_a_node_maps_the_stamps_of_its_interface_by_itself(tmp_path: Path) -> None:
    """And its health is among the node's figures; where an interface has no clock, a sentence says so."""
    up("igb0", "igb1")
    file = tmp_path / "stamps.toml"
    run("ip", "addr", "replace", "10.9.0.2/24", "dev", "igb1")
    for link, clocks in (("igb1", 1), ("virtio1", 0)):
        up(link)
        file.write_text(
            f'[ports.main]\nport = "sock:{link}"\nnic_stamps = true\n'
            '[feeds.plain]\n[[feeds.plain.channels]]\nlines = ["239.1.1.1:5000"]\n'
        )
        with nodes.Node(config.load(file)) as node:
            node.build()
            assert list(node.stats()["phc"]) == ["igb1"] * clocks
            assert [note for note in node.notes if "could not be mapped" in note][clocks:] == [
                f"{link}: stamps of its own could not be mapped: open the clock of {link}: it has none of its"
                " own; stamps are taken at the XDP hook"
            ][clocks:]
            if clocks:
                until(lambda node=node: node.stats()["phc"]["igb1"]["comparisons"] >= 3)


def test_a_kernel_socket_is_told_when_the_card_sent() -> None:
    up("igb0", "igb1")
    host, card = Host(), "igb0"
    run("ip", "addr", "replace", "10.9.0.1/24", "dev", card)
    run("ip", "neigh", "replace", "10.9.0.2", "lladdr", "52:54:00:00:00:02", "dev", card)
    kept = host.stamping(card)
    try:
        host.stamping(card, (0, STAMP_SENT, 0))
        with (
            SockPort(["10.9.0.1:0"], interface=card, nic_stamps=True, tx_stamps=True) as port,
            PhcKeeper(Phc.of(card)) as keeper,
        ):
            port.map_stamps(keeper)
            for number in range(3):
                before = tai_ns()
                port.send(b"an order", ("10.9.0.2", 9000))
                got: list[Sent] = []
                until(lambda got=got: got.extend(port.sent()) or got)
                (one,) = got
                assert (one.socket, one.number, one.stamp) == (0, number, "nic")
                assert before - SLACK <= one.ns <= tai_ns() + SLACK
    finally:
        host.stamping(card, kept)
