"""What is seen of running engines: names read as labels, losses by reason, rates and histograms of a time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from xdpstack import stats, tape
from xdpstack._ffi import lib
from xdpstack.engine import Engine, EngineConfig
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import Subscription, pipe
from xdpstack.ring import Ring
from xdpstack.stats import Histogram
from xdpstack.tests.frames import plain_message, plain_packet
from xdpstack.tests.watched import shown, watch_of
from xdpstack.watch import FORMS, Watch, drops, key_of, look, since


@pytest.mark.parametrize(
    ("name", "family", "field", "labels"),
    [
        ("engine.turns", "engine", "turns", {}),
        ("feed.itch-a.channel.12.gaps_open", "channel", "gaps_open", {"feed": "itch-a", "channel": "12"}),
        ("feed.a.b.channel.0.line.1.won", "line", "won", {"feed": "a.b", "channel": "0", "line": "1"}),
        ("feed.itch.books.reasons.bad_level", "books_reasons", "", {"feed": "itch", "reason": "bad_level"}),
        ("feed.itch.books.orders", "books", "orders", {"feed": "itch"}),
        ("feed.itch.decoded", "stage", "", {"feed": "itch", "stage": "decoded"}),
        ("feed.a.b.stage.wake", "stage", "", {"feed": "a.b", "stage": "wake"}),
        ("feed.itch.stage.warm_up", "stages", "warm_up", {"feed": "itch"}),
        ("conn.0.stage.tls_end", "stage", "", {"connection": "0", "stage": "tls_end"}),
        ("conn.rest.stage.warm_up", "stages", "warm_up", {"connection": "rest"}),
        ("conn.3.remote_port", "connection", "remote_port", {"connection": "3"}),
        (
            "port.xsk:eth0.100:0-3.rx_frames", "port", "rx_frames",
            {"port": "xsk:eth0.100:0-3", "interface": "eth0.100", "queue": "0-3"},
        ),
        ("port.sock:lo#1.rx_bytes", "port", "rx_bytes", {"port": "sock:lo#1", "interface": "lo"}),
        ("port.pcap:a.pcapng.rx_bytes", "port", "rx_bytes", {"port": "pcap:a.pcapng"}),
        (
            "host.xsk:eth0:3.reasons.udp_checksum", "host_frames", "",
            {"port": "xsk:eth0:3", "interface": "eth0", "queue": "3", "reason": "udp_checksum"},
        ),
        (
            "filter.main.no_socket.eth0.2", "no_socket", "",
            {"group": "main", "interface": "eth0", "queue": "2"},
        ),
        ("link.eth0.events.moved", "link_events", "", {"interface": "eth0", "reason": "moved"}),
        ("alert.slow book.firing", "alert", "firing", {"alert": "slow book"}),
        ("something.else", "something_else", "", {}),
    ],
)  # fmt: skip
def test_a_name_is_read_as_a_family_a_field_and_labels(
    name: str, family: str, field: str, labels: dict[str, str]
) -> None:
    key = key_of(name)
    assert (key.family, key.field, dict(key.labels)) == (family, field, labels)


def test_every_entry_of_a_real_engine_has_a_known_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stats.Segment.__init__.__kwdefaults__, "root", tmp_path)
    venue, trader = pipe(64, 2048)
    group = Subscription(address="239.1.1.1", port=5000)
    with venue, trader, Engine(EngineConfig(name="real")) as engine:
        engine.add_link(trader, promiscuous=True)
        engine.add_feed(FeedConfig(schema="plain", channels=(ChannelConfig(lines=(group,)),)))
        engine.keep_connection_stages()
        venue.send([udp_frame(plain_packet(0, plain_message("A", "B", 1, 100, 10)), ("239.1.1.1", 5000))])
        engine.turn()
        lib.xds_engine_reflect(engine.core)
        (seen,) = look(tmp_path).engines.values()
        engine.detach()
    families = {family for family, _ in FORMS}
    keys = {name: key_of(name) for name in [*seen.values, *seen.histograms]}
    assert [name for name, key in keys.items() if key.family not in families] == []
    assert {keys[name].family for name in seen.histograms} == {"stage"}
    stages = {keys[name]["stage"] for name in seen.histograms if keys[name]["feed"]}
    assert stages == {"decoded", "applied", "wake", "parsed", "callback", "total"}
    assert seen.values["feed.plain.channel.0.messages"] == 1


def test_what_is_lost_is_found_by_place_and_reason_and_what_was_taken_is_no_loss(tmp_path: Path) -> None:
    with shown(tmp_path):
        (engine,) = look(tmp_path).engines.values()
        assert [(d.where, d.reason, d.count) for d in drops(engine.values)] == [
            ("port xsk:eth0:3", "rx_ring_full", 500),
            ("engine", "unrouted", 100),
            ("port xsk:eth0:3 host", "udp_checksum", 100),
            ("feed itch-a books", "unknown_order", 3),
            ("feed itch-a channel 0", "units_lost", 1),
        ]


def test_the_peer_of_a_connection_is_named(tmp_path: Path) -> None:
    with shown(tmp_path) as engine:
        assert look(tmp_path).engines["trader"].peer("0") == "10.1.0.1:7001"
        assert look(tmp_path).engines["trader"].peer("1") == ""
        engine.gateway[5], engine.gateway[6] = 0x2001_0DB8 << 32, 9
        assert look(tmp_path).engines["trader"].peer("0") == "[2001:db8::9]:7001"
        engine.gateway[4] = 0
        assert look(tmp_path).engines["trader"].peer("0") == ""


def test_rates_are_known_from_the_second_look_on(tmp_path: Path) -> None:
    with shown(tmp_path) as engine:
        watch = watch_of(tmp_path, engine, seconds=0)
        assert watch.rate("trader", "engine.packets") is None
        watch = watch_of(tmp_path, engine, seconds=3)
        assert watch.seconds == 1.0
        assert watch.rate("trader", "engine.packets") == 500_000
        assert list(watch.history["trader"]) == [1_500_000, 750_000, 500_000]
        assert watch.rate("trader", "no.such.entry") is None
        assert watch.rate("nobody", "engine.packets") is None


def test_a_counter_that_began_anew_has_no_negative_rate(tmp_path: Path) -> None:
    with shown(tmp_path) as engine:
        watch = watch_of(tmp_path, engine, seconds=1)
        engine.link.rx_frames = 5  # the port was opened again
        watch.look()
        assert watch.rate("trader", "port.xsk:eth0:3.rx_frames") == 0


def test_an_engine_that_was_started_again_has_no_rate_at_first(tmp_path: Path) -> None:
    watch = Watch(root=tmp_path)
    with shown(tmp_path):
        watch.look()
    with shown(tmp_path):
        now = watch.look().engines["trader"]
        assert watch.before is not None
        other = watch.before.engines["trader"]
        assert now.path == other.path, "the same process, the same name"
        assert watch.rate("trader", "engine.packets") == 0
    assert watch.look().engines == {}
    assert watch.history == {}


def test_engines_of_one_name_are_told_apart_and_one_can_be_chosen(tmp_path: Path) -> None:
    with shown(tmp_path), shown(tmp_path, "other"):
        assert sorted(look(tmp_path).engines) == ["other", "trader"]
        assert list(look(tmp_path, "other").engines) == ["other"]
        assert sorted(look(tmp_path, str(os.getpid())).engines) == ["other", "trader"]
        assert look(tmp_path, "nobody").engines == {}


def test_a_histogram_of_the_time_between_two_looks() -> None:
    whole = Histogram()
    whole.record_many(np.arange(1000, 2000))
    before = Histogram()
    before.merge(whole)
    whole.record_many(np.full(10, 50_000))
    fresh = since(whole, before).summary()
    assert fresh.count == 10
    assert fresh.mean == 50_000
    for value in (fresh.min, fresh.p50, fresh.max):
        assert value == pytest.approx(50_000, rel=0.008)
    assert since(whole, None).summary() == whole.summary()
    assert since(whole, whole).summary().count == 0
    assert since(Histogram(), whole).summary().count == 0, "it was cleared"


def test_dead_engines_and_readers_of_tapes_are_seen(tmp_path: Path) -> None:
    with tape.Tape.create(tmp_path / "news.tape", 1 << 16) as writer:
        for _ in range(10):
            writer.write(b"x" * 100)
        with writer.reader("strategy", oldest=True):
            (seen,) = look(tmp_path).tapes
            assert (seen.tape, seen.written, seen.state) == ("news", 10, "alive")
            assert [(one["name"], one["lost"]) for one in seen.readers] == [("strategy", 0)]
            assert seen.readers[0]["lag"] >= 1000
    with Ring.create(tmp_path / "news.ring", 1 << 16) as ring, Ring.open(ring.path, "reader"):
        for _ in range(3):
            ring.write(1, b"order")
        (seen, _) = look(tmp_path).tapes
        assert (seen.tape, seen.bytes, seen.written, seen.state) == ("news.ring", 1 << 16, 3, "alive")
        assert [(one["pid"], one["lag_records"]) for one in seen.readers] == [(os.getpid(), 3)]
    (tmp_path / "none.ring").write_bytes(b"something else")
    (tmp_path / "xdpstack-4194999-gone.stat").write_bytes(b"half")  # no process has a number above 2^22
    found = look(tmp_path)
    assert [(one.name, one.state) for one in found.dead] == [("gone", "dead")]
