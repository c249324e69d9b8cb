"""Alerts by rule: when each fires, how often it is said, what is refused, and who hears of it."""

from __future__ import annotations

import dataclasses
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xdpstack import config, tape
from xdpstack import node as nodes
from xdpstack.alerts import Alert, AlertRule, Alerts, Judge, load
from xdpstack.errors import ConfigError
from xdpstack.stats import Reader, Segment, segments
from xdpstack.tests.watched import fixed, shown
from xdpstack.watch import Look, TapeReaders, Watch


class Clock:
    """Looks at a folder, a second after each other or as many as a test says."""

    def __init__(self, root: Path) -> None:
        self.root, self.at = root, 0.0
        self.watch = Watch(self.take)

    def take(self) -> Look:
        return fixed(self.root, self.at)

    def look(self, alerts: Alerts, seconds: float = 1.0) -> list[Alert]:
        self.at += seconds
        self.watch.look()
        return alerts.look(self.watch)


def rule(when: str, **keys: object) -> AlertRule:
    return AlertRule(name="one", when=when, **keys)  # type: ignore[arg-type]


def test_a_latency_above_its_limit_fires_by_what_came_since_the_last_look(tmp_path: Path) -> None:
    limit = rule("latency", stage="decoded", percentile=99.0, above=50e-6)
    with shown(tmp_path) as engine:
        clock, alerts = Clock(tmp_path), Alerts([limit])
        assert clock.look(alerts) == [], "the first look has no time before it"
        engine.second(1000)
        assert clock.look(alerts) == [], "8 µs"
        for _ in range(100):
            engine.decoded.record(70_000)
        (alert,) = clock.look(alerts)
        assert (alert.engine, alert.firing) == ("trader", True)
        assert alert.value == pytest.approx(70e-6, rel=0.01)
        assert str(alert).startswith("alert one: feed itch-a decoded: p99 is 69.9 µs")
        assert str(alert).endswith(", above 50.0 µs (engine trader)")
        (alert,) = clock.look(alerts)
        assert not alert.firing
        assert str(alert) == "alert one: feed itch-a decoded: good again (engine trader)"
        assert alerts.firing == []
        assert alerts.fired == {"one": 1}


@pytest.mark.parametrize(
    ("keys", "fires"),
    [({"feed": "itch-a"}, True), ({"feed": "other"}, False), ({"engine": "trader"}, True),
     ({"engine": "backup"}, False), ({"stage": "total"}, True), ({"stage": "tls_end"}, False),
     ({"connection": "0"}, True), ({"connection": "7"}, False)],
)  # fmt: skip
def test_a_rule_is_narrowed_by_its_keys(tmp_path: Path, keys: dict[str, str], fires: bool) -> None:
    with shown(tmp_path) as engine:
        clock, alerts = Clock(tmp_path), Alerts([rule("latency", above=1e-9, **keys)])
        clock.look(alerts)
        engine.second(1000)
        assert bool(clock.look(alerts)) == fires


def test_an_open_gap_fires_once_it_lasts_and_is_said_again_later(tmp_path: Path) -> None:
    with shown(tmp_path) as engine:
        clock, alerts = Clock(tmp_path), Alerts([rule("gap", lasts=3.0, again=10.0)])
        assert [bool(clock.look(alerts)) for _ in range(3)] == [False, False, False]
        (alert,) = clock.look(alerts)
        assert str(alert) == "alert one: feed itch-a channel 0: 1 gaps are open, above 0 (engine trader)"
        assert clock.look(alerts, 9.0) == []
        assert len(clock.look(alerts, 1.0)) == 1, "a reminder"
        assert alerts.fired == {"one": 1}
        engine.channel.gaps_open = 0
        (alert,) = clock.look(alerts)
        assert not alert.firing
        engine.channel.gaps_open = 2
        assert clock.look(alerts) == [], "it must last anew"


def test_a_lapped_reader_and_one_that_lags_fire(tmp_path: Path) -> None:
    lapped, lag = rule("lapped"), dataclasses.replace(rule("lag", above=3000.0), name="two")
    with tape.Tape.create(tmp_path / "news.tape", 1 << 16) as writer:
        with writer.reader("slow", oldest=True) as reader:
            clock, alerts = Clock(tmp_path), Alerts([lapped, lag])
            writer.write(b"x")
            assert clock.look(alerts) == []
            for _ in range(100):
                writer.write(b"x" * 1000)
            (alert,) = clock.look(alerts)
            assert (alert.rule.name, alert.subject) == ("two", "reader slow of news")
            assert alert.value > 3000
            lost = reader.read().lost
            assert lost > 0
            said = {alert.rule.name: alert for alert in clock.look(alerts)}
            assert said["one"].value == lost
            assert str(said["one"]) == f"alert one: reader slow of news: {lost} records were lost, above 0"
        said = {alert.rule.name: alert for alert in clock.look(alerts)}
        assert not said["one"].firing


def test_a_lag_in_records_fires_whatever_its_bytes(tmp_path: Path) -> None:
    few, many = rule("lag", unit="records", above=5.0), rule("lag", unit="records", above=1000.0)
    many = dataclasses.replace(many, name="many")
    with tape.Tape.create(tmp_path / "news.tape", 1 << 16) as writer, writer.reader("slow") as reader:
        clock, alerts = Clock(tmp_path), Alerts([few, many])
        for _ in range(5):
            writer.write(b"y" * 2000)
        assert clock.look(alerts) == [], "10,000 bytes and five records, which is not above"
        writer.write(b"x")
        (alert,) = clock.look(alerts)
        assert str(alert) == "alert one: reader slow of news: 6 records behind, above 5"
        while reader.lag:
            reader.read()
        assert [alert.firing for alert in clock.look(alerts)] == [False]
        assert alerts.firing == []


def test_a_lag_that_is_not_known_leaves_an_alert_as_it_was(tmp_path: Path) -> None:
    behind: list[int | None] = [9, None, None, 2, None, 9]
    reader = {"name": "slow", "pid": 1, "lag": 100, "lag_records": None, "lost": 0, "laps": 0}
    with shown(tmp_path):
        base = fixed(tmp_path, 0.0)
    looks = [
        dataclasses.replace(base, at=float(second), tapes=[
            TapeReaders(tape="news", bytes=1 << 16, written=9, state="alive",
                        readers=[{**reader, "lag_records": records}])
        ])
        for second, records in enumerate(behind)
    ]  # fmt: skip
    taken = iter(looks)
    watch, alerts = Watch(lambda: next(taken)), Alerts([rule("lag", unit="records", above=5.0)])
    said, firing = [], []
    for _ in behind:
        watch.look()
        said.append([alert.firing for alert in alerts.look(watch)])
        firing.append(len(alerts.firing))
    assert said == [[True], [], [], [False], [], [True]]
    assert firing == [1, 1, 1, 0, 0, 1]
    assert alerts.fired == {"one": 2}


def test_drops_that_grow_fire_by_reason_or_all_together(tmp_path: Path) -> None:
    every, one = rule("drops", above=500.0), rule("drops", reason="udp_checksum", above=99.0)
    one = dataclasses.replace(one, name="two")
    with shown(tmp_path) as engine:
        clock, alerts = Clock(tmp_path), Alerts([every, one])
        assert clock.look(alerts) == []
        engine.second(1_000_000)
        said = {alert.rule.name: alert for alert in clock.look(alerts)}
        assert said["one"].value == 100 + 100 + 500 + 3 + 1
        assert (said["two"].subject, said["two"].value) == ("port xsk:eth0:3 host udp_checksum", 100)
        assert [alert.firing for alert in clock.look(alerts)] == [False, False]


def test_an_engine_that_stands_still_is_killed_or_is_not_there_fires(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    named, every = rule("dead", engine="trader", lasts=1.0), dataclasses.replace(rule("dead"), name="two")
    alerts = Alerts([named, every])
    with shown(tmp_path) as engine:
        assert clock.look(alerts) == []
        engine.second(0)
        assert clock.look(alerts) == []
        (alert,) = clock.look(alerts)
        assert (alert.rule.name, alert.subject) == ("two", "engine trader")
        (alert,) = clock.look(alerts)
        assert alert.rule.name == "one", "it lasted a second"
        engine.second(0)
        assert [alert.firing for alert in clock.look(alerts)] == [False, False]
    clock.look(alerts)
    (alert,) = clock.look(alerts)
    assert str(alert) == "alert one: engine trader: does not turn (engine trader)"
    (tmp_path / "xdpstack-4194999-gone.stat").write_bytes(b"half")  # no process has so large a number
    (alert,) = clock.look(alerts)
    assert (alert.rule.name, alert.subject) == ("two", "engine gone")


def test_the_log_and_callbacks_hear_of_it_and_a_callback_may_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def bad(alert: Alert) -> None:
        raise RuntimeError("no")

    clock, alerts = Clock(tmp_path), Alerts([rule("gap")], [bad, lambda alert: heard.append(str(alert))])
    with caplog.at_level(logging.INFO, "xdpstack.alerts"):
        with shown(tmp_path):
            clock.look(alerts)
        clock.look(alerts)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "INFO", "ERROR"]
    assert len(heard) == 2
    assert "good again" in heard[1]
    assert "the callback for alert one failed" in caplog.text


def test_which_rules_fire_is_seen_from_outside(tmp_path: Path) -> None:
    with shown(tmp_path) as engine, Segment("judge", root=tmp_path) as segment:
        alerts = Alerts([rule("gap")])
        alerts.show_in(segment)
        clock = Clock(tmp_path)
        clock.look(alerts)
        clock.look(alerts)
        assert Reader(segment.path).values() == {"alert.one.firing": 1, "alert.one.fired": 1}
        engine.channel.gaps_open = 0
        clock.look(alerts)
        assert Reader(segment.path).values() == {"alert.one.firing": 0, "alert.one.fired": 1}


def test_a_judge_looks_when_it_is_time_to_and_not_without_rules() -> None:
    judge = Judge([], ["nobody"])
    judge.look()
    assert judge.watch.now is None
    judge = Judge([rule("dead", engine="nobody-at-all")], [], every=3600.0)
    (alert,) = judge.look()
    assert alert.subject == "engine nobody-at-all"
    assert judge.look() == []


GOOD = '[[alert]]\nname = "a"\nwhen = "gap"\n'
LAG = '[[alert]]\nname = "b"\nwhen = "lag"\nabove = 5.0\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alert = 3", "1: alert: wanted tables [[alert]]"),
        ("[alert]\nname = 1", "1: alert: wanted tables [[alert]]"),
        ('[[alert]]\nwhen = "gap"', '1: alert: wanted name = "…" in each [[alert]]'),
        ('[[alert]]\nname = "a"', '1: alert: wanted when = "…" in each [[alert]]'),
        (GOOD + GOOD, "alert.name: two alerts are called 'a'"),
        (GOOD + "lasst = 3", "4: alert.lasst: unknown key"),
        (GOOD + 'lasts = "long"', "4: alert.lasts: "),
        (GOOD + "lasts = -1.0", "alert.lasts: wanted seconds from 0"),
        (GOOD + 'unit = "records"', 'alert.unit: when = "gap" does not ask for it'),
        (LAG + 'unit = "frames"', "5: alert.unit: wanted one of bytes, records, not 'frames' (alert b)"),
        (LAG + "unit = 5", "5: alert.unit: "),
        (GOOD + 'stage = "wake"', 'alert.stage: when = "gap" does not ask for it'),
        ('[[alert]]\nname = "a b"\nwhen = "gap"', "alert.name: wanted letters"),
        ('[[alert]]\nname = "a"\nwhen = "noon"', "3: alert.when: wanted one of latency, gap"),
        ('[[alert]]\nname = "a"\nwhen = "latency"', 'alert.above: when = "latency" takes a limit'),
        ('[[alert]]\nname = "a"\nwhen = "dead"\nabove = 3.0', "alert.above: when = \"dead\" has no limit"),
        (
            '[[alert]]\nname = "a"\nwhen = "latency"\nabove = 1.0\npercentile = 101.0',
            "alert.percentile: wanted 0 to 100",
        ),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_refused_by_file_line_and_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert says in str(refused.value)
    assert str(refused.value).startswith(f"{file}:")


def test_rules_come_from_a_programs_file_and_a_file_without_any_is_no_file_of_rules(tmp_path: Path) -> None:
    file = tmp_path / "day.toml"
    port = '[ports.main]\nport = "sock:lo"\n'
    file.write_text(port + GOOD)
    assert [one.name for one in config.load(file).alerts] == ["a"]
    assert load(file) == config.load(file).alerts
    file.write_text(port)
    assert config.load(file).alerts == ()
    with pytest.raises(ConfigError, match=r"there is no \[\[alert\]\]"):
        load(file)


def test_a_running_program_judges_its_rules_and_shows_them(tmp_path: Path) -> None:
    file = tmp_path / "my day.toml"
    file.write_text(
        '[ports.main]\nport = "sock:lo"\n[feeds.a]\nschema = "plain"\n'
        '[[feeds.a.channels]]\nlines = ["239.255.77.7:45777"]\n'
        '[[alert]]\nname = "other"\nwhen = "dead"\nengine = "nobody-at-all"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "xdpstack", "run", str(file)], stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(60.0, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        said = next((line for line in lines if "alert" in line), "")
        assert said == "xdpstack: alert other: engine nobody-at-all: does not turn (engine nobody-at-all)\n"
        (found,) = [one for one in segments() if one.pid == process.pid]
        assert found.name == "my_day"
        assert found.open().values()["alert.other.firing"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(60.0) == 0
        assert not found.path.exists()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_program_of_ones_own_hears_of_its_alerts(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        '[engine]\nname = "own"\n[ports.main]\nport = "sock:lo"\n[feeds.a]\nschema = "plain"\n'
        '[[feeds.a.channels]]\nlines = ["239.255.77.6:45776"]\n'
        '[[alert]]\nname = "other"\nwhen = "dead"\nengine = "nobody-at-all"\n'
    )
    heard: list[Alert] = []
    with nodes.open(file) as node:
        node.build()
        judge = node.judge(heard.append)
        judge.look()
        assert [alert.subject for alert in heard] == ["engine nobody-at-all"]
        assert node.engine.segment is not None
        assert Reader(node.engine.segment.path).values()["alert.other.firing"] == 1
