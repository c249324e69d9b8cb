"""Alerts of slow turns: what they say, how often they come, who may read them. Time is an argument here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from xdpstack.clock import tai_ns
from xdpstack.engine import Engine, EngineConfig, SlowTurn
from xdpstack.errors import ConfigError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import PipePort, SockPort, Subscription, pipe
from xdpstack.stats import Reader
from xdpstack.tests.frames import plain_message, plain_packet

GROUP = ("239.1.1.1", 5000)
SECOND = 1_000_000_000


class Bench:
    """An engine over a pipe; a turn at a time that lies back is a turn that took that long."""

    def __init__(self, engine: Engine, venue: PipePort) -> None:
        self.engine, self.venue, self.sent = engine, venue, 0

    def turn(self, now: int, packets: int = 1, messages: int = 4) -> None:
        for _ in range(packets):
            each = [plain_message("A", "B", 1, 100 + n, 10) for n in range(messages)]
            self.venue.send([udp_frame(plain_packet(self.sent, *each), GROUP)])
            self.sent += 1
        self.engine.turn(now)


@contextlib.contextmanager
def bench(**config: object) -> Iterator[Bench]:
    venue, trader = pipe(512, 2048)
    with venue, trader, Engine(EngineConfig(**config)) as engine:  # type: ignore[arg-type]
        engine.add_link(trader, promiscuous=True)
        line = Subscription(address=GROUP[0], port=GROUP[1])
        engine.add_feed(FeedConfig(schema="plain", channels=(ChannelConfig(lines=(line,)),)))
        yield Bench(engine, venue)
        engine.detach()


def test_an_alert_names_the_turn_its_time_and_what_it_did() -> None:
    with bench(slow=1.0) as b:
        b.turn(0)
        assert b.engine.alerts() == [], "a turn as it should be"
        began = tai_ns() - 2 * SECOND
        b.turn(began, packets=3)
        (alert,) = b.engine.alerts()
        assert (alert.turn, alert.ns, alert.packets, alert.updates) == (2, began, 3, 12)
        assert (alert.since, alert.since_ns) == (0, 0)
        assert 2 * SECOND <= alert.took_ns <= tai_ns() - began
        assert b.engine.alerts() == [], "each is given once"
        stats = b.engine.stats()["engine"]
        assert (stats["slow_turns"], stats["slow_alerts"], stats["slow_worst_ns"]) == (1, 1, alert.took_ns)


def test_alerts_are_rare_and_the_next_one_speaks_of_those_that_were_not_kept() -> None:
    with bench(slow=1.0, alert_every=10.0) as b:
        start = tai_ns() - 30 * SECOND
        for after in (0, 5, 9.9, 10, 12):
            b.turn(start + int(after * SECOND))
        first, second = b.engine.alerts()
        assert (first.turn, first.since) == (1, 0)
        assert (second.turn, second.since) == (4, 2)
        assert 25 * SECOND <= second.since_ns < 30 * SECOND, "the longest of the two between"
        stats = b.engine.stats()["engine"]
        assert (stats["slow_turns"], stats["slow_alerts"]) == (5, 2)
        assert stats["slow_worst_ns"] == first.took_ns


def test_the_last_fifteen_are_kept() -> None:
    with bench(slow=1e-3, alert_every=0.0) as b:
        for number in range(40):
            b.turn(tai_ns() - SECOND + number)
        assert [alert.turn for alert in b.engine.alerts()] == list(range(26, 41))
        b.turn(tai_ns() - SECOND)
        assert [alert.turn for alert in b.engine.alerts()] == [41]
        assert b.engine.stats()["engine"]["slow_turns"] == 41


def test_a_turn_without_packets_and_a_threshold_of_zero_give_no_alert() -> None:
    with bench(slow=1e-3) as b:
        b.turn(tai_ns() - SECOND, packets=0)
        assert b.engine.alerts() == []
    with bench(slow=0.0) as b:
        b.turn(tai_ns() - SECOND)
        assert b.engine.alerts() == []
        assert b.engine.stats()["engine"]["slow_turns"] == 0


def test_after_close_there_are_none() -> None:
    with bench(slow=1e-3) as b:
        b.turn(tai_ns() - SECOND)
        engine = b.engine
    assert engine.alerts() == []


@pytest.mark.parametrize("wrong", [{"slow": -1.0}, {"alert_every": float("nan")}, {"slow": 2e9}])
def test_a_threshold_that_is_no_time_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: wanted seconds"):
        EngineConfig(**wrong)  # type: ignore[arg-type]


def test_another_process_sees_them_counted() -> None:
    with bench(slow=1e-3, name="alerts-test") as b:
        b.turn(tai_ns() - 2 * SECOND)
        b.turn(0)  # mirrors what the turns before it counted
        assert b.engine.segment is not None
        reader = Reader(b.engine.segment.path)
        values, units = reader.values(), reader.units()
        assert values["engine.slow_turns"] == values["engine.slow_alerts"] == 1
        assert values["engine.slow_worst_ns"] >= 2 * SECOND
        assert units["engine.slow_worst_ns"] == "ns"


def test_a_line_says_all_of_it() -> None:
    alert = SlowTurn(turn=1234, ns=1, took_ns=45_250, packets=64, updates=1200, since=0, since_ns=0)
    assert str(alert) == "slow turn 1,234: 45.2 µs for 64 packets, 1,200 updates"
    more = SlowTurn(turn=1, ns=1, took_ns=11_000, packets=1, updates=0, since=7, since_ns=99_000)
    assert str(more).endswith("; 7 more since the last alert, up to 99.0 µs")


def test_a_free_running_engines_alerts_are_read_while_it_turns() -> None:
    with SockPort(["127.0.0.1:0"]) as port, SockPort(["127.0.0.1:0"]) as venue:
        to = ("127.0.0.1", port.local_port())
        with Engine(EngineConfig(slow=1e-9, alert_every=0.0)) as engine:
            engine.add_sock(port)
            line = Subscription(address=to[0], port=to[1])
            engine.add_feed(FeedConfig(schema="plain", channels=(ChannelConfig(lines=(line,)),)))
            engine.start()
            seen: list[SlowTurn] = []
            end = time.monotonic() + 60
            sent = 0
            while sum(alert.packets for alert in seen) < 200 and time.monotonic() < end:
                venue.send(plain_packet(sent, plain_message("A", "B", 1, 100, 10)), to)
                sent += 1
                seen += engine.alerts()
            engine.detach()
            seen += engine.alerts()
    assert [alert.turn for alert in seen] == sorted({alert.turn for alert in seen})
    assert all(alert.took_ns > 0 and alert.packets == alert.updates > 0 for alert in seen)
    assert 200 <= sum(alert.packets for alert in seen) <= sent
