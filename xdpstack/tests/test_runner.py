"""The free-running engine: what it publishes, what it loses aloud, how it is told and how it ends."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xdpstack import hooks
from xdpstack._ffi import lib
from xdpstack.engine import Engine, EngineConfig, Runner
from xdpstack.errors import CapacityError, LocalProtocolError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import PcapPort, PcapWriter, SockPort, Subscription
from xdpstack.tests.frames import plain_message, plain_packet

GROUP = ("239.1.1.1", 5000)
CONFIG = FeedConfig(
    schema="plain", channels=(ChannelConfig(lines=(Subscription(address=GROUP[0], port=GROUP[1]),)),)
)


def capture(path: Path, counts: list[int]) -> Path:
    """Packets of so many messages each."""
    seq = 0
    with PcapWriter(path) as writer:
        writer.add_interface("test")
        for number, count in enumerate(counts):
            messages = [plain_message("A", "B", 1, 100 + i, 10) for i in range(seq, seq + count)]
            writer.write(10**18 + number * 1000, udp_frame(plain_packet(number, *messages), GROUP))
            seq += count
    return path


def wait(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.001)


def run(path: Path, **options: int) -> tuple[list[tuple[int, list[int]]], int]:
    """(lost before, prices) of each published batch with updates, and how the thread ended."""
    with PcapPort(path) as port, Engine(EngineConfig(burst=1)) as engine:
        engine.add_link(port, promiscuous=True)
        engine.add_feed(CONFIG)
        runner = engine.start(**options)
        wait(lambda: not runner.running)
        found = [(one.lost_before, one.updates["price"].tolist()) for one in runner.take()]
        code = runner.stop()
        engine.detach()
    return [one for one in found if one[1]], code


def test_every_batch_is_published_with_its_updates(tmp_path: Path) -> None:
    found, code = run(capture(tmp_path / "a.pcapng", [1, 3, 2]))
    assert code == 0
    assert found == [(0, [100]), (0, [101, 102, 103]), (0, [104, 105])]


def test_a_batch_larger_than_the_ring_is_counted_by_the_next(tmp_path: Path) -> None:
    found, _ = run(capture(tmp_path / "a.pcapng", [1, 70, 1]), ring_bytes=1 << 12)
    assert found == [(0, [100]), (1, [171])]


def test_the_end_of_captures_flushes_what_windows_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with PcapWriter(path) as writer:
        writer.add_interface("test")
        for number, seq in enumerate((0, 2, 3)):
            data = plain_packet(seq, plain_message("A", "B", 1, 100 + seq, 10))
            writer.write(10**18 + number, udp_frame(data, GROUP))
    found, code = run(path)
    assert (code, [price for _, batch in found for price in batch]) == (0, [100, 102, 103])


def test_a_damaged_capture_ends_the_thread_with_its_code(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", [1] * 9)
    raw = bytearray(path.read_bytes())
    raw[24 + 8 : 24 + 12] = b"\xff\xff\xff\x7f"
    path.write_bytes(raw)
    assert run(path) == ([], lib.XDS_EMALFORMED)


def test_a_hook_ends_the_thread_by_a_negative_return(tmp_path: Path) -> None:
    @hooks.hook(np.zeros(1, np.int64))
    def strategy(state, updates, outbox, now):  # type: ignore[no-untyped-def]
        state[0] += len(updates)
        return -5 if state[0] >= 3 else 0

    with PcapPort(capture(tmp_path / "a.pcapng", [1] * 50)) as port, Engine(EngineConfig(burst=1)) as engine:
        engine.add_link(port, promiscuous=True)
        engine.add_feed(CONFIG)
        engine.set_hook(strategy)
        runner = engine.start()
        wait(lambda: not runner.running)
        assert runner.stop() == -5
        assert strategy.state[0] == 3
        assert engine.stats()["engine"]["hook_failed"] == 1
        engine.detach()


class Live:
    """A free-running engine over a kernel socket on the loopback."""

    def __init__(self) -> None:
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind(("127.0.0.1", 0))
        self.peer.settimeout(60)
        self.port = SockPort(["127.0.0.1:0"])
        self.here = self.port.local_port(0)
        self.engine = Engine()
        self.engine.add_sock(self.port)
        lines = (Subscription(address="127.0.0.1", port=self.here),)
        self.engine.add_feed(FeedConfig(schema="plain", channels=(ChannelConfig(lines=lines),)))

    def start(self) -> Runner:
        return self.engine.start(nap_us=50)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.port.close()
        self.peer.close()


def test_a_live_engine_publishes_obeys_and_stops() -> None:
    with Live() as live:
        runner = live.start()
        assert runner.running
        wait(lambda: runner.tid > 0)
        assert Path(f"/proc/self/task/{runner.tid}/comm").read_text() == "xds-engine\n"
        with pytest.raises(LocalProtocolError, match="running"):
            live.engine.start()
        data = plain_packet(0, plain_message("A", "B", 1, 77, 10))
        live.peer.sendto(data, ("127.0.0.1", live.here))
        prices: list[int] = []

        def came() -> bool:
            prices.extend(price for one in runner.take() for price in one.updates["price"].tolist())
            return bool(prices)

        wait(came)
        assert prices == [77]
        to = Subscription(address="127.0.0.1", port=live.peer.getsockname()[1])
        runner.send(b"an order", to, sport=live.here)
        assert live.peer.recvfrom(100) == (b"an order", ("127.0.0.1", live.here))
        assert runner.stop() == 0
        assert not runner.running
        assert runner.stop() == 0
        runner.close()
        runner.close()
        assert (runner.running, runner.tid, runner.stop()) == (False, 0, 0)


def test_a_full_command_ring_is_a_bound() -> None:
    with Live() as live:
        runner = live.start()
        assert runner.stop() == 0  # nobody obeys from here
        to = Subscription(address="127.0.0.1", port=9)
        sent = 0

        def fill() -> None:
            nonlocal sent
            while sent < 100:
                runner.send(bytes(1400), to, sport=live.here)
                sent += 1

        with pytest.raises(CapacityError, match="command ring is full"):
            fill()
        assert sent > 40


def test_a_core_that_is_not_there_is_told() -> None:
    with Live() as live, pytest.raises(OSError, match="start the engine's thread on core 1000"):
        live.engine.start(cpu=1000)
    assert os.cpu_count() < 1000  # type: ignore[operator]
