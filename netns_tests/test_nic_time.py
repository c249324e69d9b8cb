"""Frames that a NIC stamped by its own clock, in our time line: a program stamps as such a NIC would."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator

from netns_tests.queue_frames import frame, send_all, senders
from netns_tests.xsk_list import Program
from xdpstack._ffi import lib
from xdpstack.clock import tai_ns
from xdpstack.engine import Engine, EngineConfig
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.lab import Namespace
from xdpstack.phc import PhcKeeper
from xdpstack.port import SockPort, Subscription, XskPort
from xdpstack.stats import Reader
from xdpstack.tests.test_phc import SECOND, MadeUp

Pair = tuple[Namespace, Namespace]
OURS = bytes.fromhex("ffffffffffff 020000000001 88b5") + bytes(50)
AHEAD = 77 * SECOND


@contextlib.contextmanager
def stamping(trader: Namespace, ahead_ns: int) -> Iterator[XskPort]:
    """A port behind a NIC whose clock is so far ahead of CLOCK_TAI."""
    with trader.enter(), Program("list_stamps", "t0", "native") as nic, XskPort("t0") as port:
        nic.set(Program.ADJUST, ahead_ns)
        for queue, fd in port.fds().items():
            nic.set_socket("", queue, fd)
        yield port


def taken(venue: Namespace, port: XskPort, count: int = 3) -> list[tuple[int, int]]:
    """Send so many frames; ``(rx_ns, flags)`` of each."""
    with venue.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
        mouth.bind(("v0", 0))
        for _ in range(count):
            mouth.send(OURS)
    got: list[tuple[int, int]] = []
    end = time.monotonic() + 60
    while len(got) < count and time.monotonic() < end:
        got += [(frame.rx_ns, frame.flags) for frame in port.receive(64)]
    port.release()
    assert len(got) == count
    return got


def test_a_nics_stamps_are_mapped_to_our_time_line(lab_pair: Pair) -> None:
    venue, trader = lab_pair
    with stamping(trader, AHEAD) as port:
        before = tai_ns()
        for ns, flags in taken(venue, port):
            assert before + AHEAD <= ns <= tai_ns() + AHEAD, "as opened: the NIC's own clock"
            assert flags & lib.XDS_FRAME_HW_STAMP
        with PhcKeeper(MadeUp(AHEAD)) as keeper:
            port.map_stamps(keeper)
            before = tai_ns()
            for ns, flags in taken(venue, port):
                assert before - 1_000_000 <= ns <= tai_ns() + 1_000_000
                assert flags & lib.XDS_FRAME_HW_STAMP
        stats = port.stats()
        assert (stats["rx_frames"], stats["rx_nic_stamped"], stats["rx_nic_refused"]) == (6, 3, 0)


def test_the_first_stage_of_a_message_is_the_nics(lab_pair: Pair) -> None:
    """And its age is counted from there, in the engine's segment, too, as others see it."""
    venue, trader = lab_pair
    line = Subscription(address="239.1.1.1", port=5000)
    feed = FeedConfig(schema="plain", channels=(ChannelConfig(lines=(line,)),))
    settings = EngineConfig(name=f"nic-{os.getpid()}", stage_warm_up=0)
    with stamping(trader, AHEAD) as port, PhcKeeper(MadeUp(AHEAD)) as keeper, Engine(settings) as engine:
        port.map_stamps(keeper)
        engine.add_link(port, promiscuous=True)
        found = engine.add_feed(feed)
        before = tai_ns()
        with senders(venue, 1) as (out,):
            send_all(out, [frame("239.1.1.1", 5000, seq) for seq in range(3)])
        came: list[int] = []
        end = time.monotonic() + 60
        while len(came) < 3 and time.monotonic() < end:
            batch = engine.turn()
            came += [int(row["receive"]) for row in batch.stages]
        after = tai_ns()
        assert len(came) == 3
        assert all(before - 1_000_000 <= ns <= after + 1_000_000 for ns in came)
        assert found.stages is not None
        total = found.stages.by_stage["total"].summary()
        assert total.count == 3
        assert total.max <= after - before + 2_000_000
        engine.show_ports()
        values = Reader(engine.segment.path).values()
        assert values["port.xsk:t0:0.rx_nic_stamped"] == 3
        engine.detach()


def test_a_stamp_that_cannot_be_mapped_never_gets_into_our_time_line(lab_pair: Pair) -> None:
    """Without a clock, and with that of another NIC, which shows another time."""
    venue, trader = lab_pair
    with stamping(trader, AHEAD) as port:
        port.map_stamps(None)
        before = tai_ns()
        got = taken(venue, port)
        with PhcKeeper(MadeUp(-AHEAD)) as other:
            port.map_stamps(other)
            got += taken(venue, port)
        for ns, flags in got:
            assert before <= ns <= tai_ns(), "the time of the call"
            assert not flags & lib.XDS_FRAME_HW_STAMP
        stats = port.stats()
        assert (stats["rx_nic_stamped"], stats["rx_nic_refused"]) == (0, 6)


def test_a_kernel_sockets_stamp_is_taken_before_it_is_read(lab_pair: Pair) -> None:
    """veth has no clock: with ``nic_stamps`` it is the kernel's, taken when the packet came."""
    venue, trader = lab_pair
    with trader.enter(), SockPort(["10.77.0.2:9000"], interface="t0", nic_stamps=True) as port:
        port.map_stamps(None)
        with venue.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            end = time.monotonic() + 60
            while time.monotonic() < end:  # the kernel begins to stamp a moment after it is asked
                before = tai_ns()
                mouth.sendto(b"tick", ("10.77.0.2", 9000))
                assert select.select([port], [], [], 60)[0], "it did not come"
                reading = tai_ns()
                (got,) = port.receive(8)
                assert before <= got.rx_ns <= tai_ns()
                assert (got.rx_ns <= reading) == (got.stamp == "kernel")
                if got.stamp == "kernel":
                    break
            assert (got.stamp, bytes(got.data)) == ("kernel", b"tick")
        assert (port.stats()["rx_nic_stamped"], port.stats()["rx_nic_refused"]) == (0, 0)
