"""The igb's clock and its stamps in our time line. Time jumps here with the host's load: bounds are wide."""

from __future__ import annotations

import socket
import time

from tools.vmlab.tests.machine import PATIENCE, until, up
from tools.vmlab.tests.test_wire import (
    PTP_V2_EVENT,
    RAW_HARDWARE,
    SO_TIMESTAMPING,
    STAMP_SENT,
    TX_HARDWARE,
    phc_ns,
    sent_stamp,
)
from xdpstack.clock import tai_ns
from xdpstack.nic.surface import Host
from xdpstack.phc import Phc

SLACK = 50_000_000


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
