"""Recordings: they replay bit for bit, say when they are incomplete, and say when they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xdpstack import node as nodes
from xdpstack.cli import main
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import CapacityError, SetupError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.port import PcapPort, PcapWriter, Subscription
from xdpstack.recorder import Recorder, Recording, feed_from_plan, feed_to_plan
from xdpstack.replay import replay

V8 = Path(__file__).parents[1] / "captures" / "cme-mdp3-v8-line-a-and-b.pcapng"
LINES = [["224.0.31.11:14320", "224.0.32.11:15320"]]
USER0 = 147


def test_a_recording_of_a_capture_replays_to_the_same_books(tmp_path: Path) -> None:
    path = tmp_path / "r.pcapng.zst"
    with nodes.open(f"pcap:{V8}", record=str(path)) as node:
        feed = node.feed("cme-mdp3", channels=LINES)
        updates = b"".join(batch.of(feed).tobytes() for batch in node.run())
        books = feed.book.checksums()
        assert node.recorder is not None
        node.recorder.close()
        assert node.recorder.lost == 0
        assert node.recorder.written > 10_000
    with nodes.open(f"pcap:{path}") as node:
        node.feeds_of_recording()
        (feed,) = node.feeds.values()
        assert b"".join(batch.of(feed).tobytes() for batch in node.run()) == updates
        assert feed.book.checksums() == books
    assert replay(path)["messages_total"] == 5_299


def test_a_full_ring_is_counted_and_told_at_the_end(tmp_path: Path) -> None:
    with PcapPort(V8) as port, Engine(EngineConfig(burst=64)) as engine:
        engine.add_link(port, promiscuous=True)
        lines = tuple(Subscription.parse(line) for line in LINES[0])
        engine.add_feed(FeedConfig(schema="cme-mdp3", channels=(ChannelConfig(lines=lines),)))
        recorder = Recorder(tmp_path / "r.pcapng", engine, {}, ring_bytes=1 << 12)
        for _ in engine.run():
            pass
        assert recorder.lost > 0
        written, lost = recorder.written, recorder.lost
        with pytest.raises(CapacityError, match=rf"{lost} records did not fit the ring of 4,096 bytes"):
            recorder.close()
        assert recorder.lost == lost
        assert recorder.written >= written
        recorder.close()  # told once
        engine.detach()
    with PcapPort(tmp_path / "r.pcapng", all_types=True) as port:  # what was written is a whole file
        found = 0
        while frames := port.receive(64):
            found += len(frames)
        assert port.stats()["rx_truncated"] == 0
    assert found == recorder.written + 1  # and the description


def test_a_plan_is_the_configuration_through_json() -> None:
    lines = (Subscription(address="239.1.1.1", port=1, source="10.0.0.1"),)
    server = Subscription(address="10.0.0.2", port=2)
    channel = ChannelConfig(lines=lines, request=server, session="AB", first_seq=1 << 40)
    config = FeedConfig(schema="itch50", name="a", channels=(channel, ChannelConfig(lines=lines)))
    assert feed_from_plan(json.loads(json.dumps(feed_to_plan(config)))) == config


def written(path: Path, *records: tuple[int, bytes]) -> Path:
    with PcapWriter(path) as writer:
        writer.add_interface("port0")
        writer.add_interface("turns", USER0)
        for interface, data in records:
            writer.write(1, data, interface=interface)
    return path


PLAN: dict[str, Any] = {"feeds": [], "requests": {}}
LINE = {"address": "239.1.1.1", "port": 1}


@pytest.mark.parametrize(
    "plan",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"5", b'"x"', b"null", b"{}", b"[" * 100_000,
        json.dumps(PLAN | {"requests": 3}).encode(),
        json.dumps(PLAN | {"requests": {"a": ["10.0.0.1"]}}).encode(),
        json.dumps({"feeds": []}).encode(),
        json.dumps(PLAN | {"feeds": {}, "requests": []}).encode(),
        json.dumps(PLAN | {"feeds": [{"schema": "plain"}]}).encode(),
        json.dumps(PLAN | {"feeds": [{"schema": "plain", "channels": [{"lines": [LINE]}]}]}).encode(),
        json.dumps(PLAN | {"feeds": [{"channels": [], "max_orders": -1, "schema": "plain"}]}).encode(),
        json.dumps(PLAN | {"feeds": [{"channels": [], "nobody": 1, "schema": "plain"}]}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_description_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, plan: bytes
) -> None:
    path = written(tmp_path / "r.pcapng", (1, b"CONF" + plan))
    with pytest.raises(SetupError, match="its description is damaged"):
        Recording.of(path)
    assert main(["feed", "replay", str(path)]) == 1
    said = capsys.readouterr()
    assert said.err == f"xdpstack: read recording {path}: its description is damaged\n"
    assert main(["feed", "replay", str(path), "--feed", "plain", "--groups", "239.1.1.1:1"]) == 1


def test_somebody_elses_capture_is_none(tmp_path: Path) -> None:
    assert Recording.of(V8) is None
    assert Recording.of(written(tmp_path / "a.pcapng", (0, bytes(60)))) is None
    assert Recording.of(written(tmp_path / "b.pcapng")) is None


def test_turn_blocks_that_are_none_do_not_hurt(tmp_path: Path) -> None:
    plan = json.dumps(PLAN | {"feeds": [feed_to_plan(FeedConfig(schema="plain", channels=()))]}).encode()
    noise = [(1, b"TURN"), (1, bytes(32)), (0, bytes(60)), (1, b"TURN" + b"\xff" * 28), (0, b"\xff" * 60)]
    result = replay(written(tmp_path / "r.pcapng", (1, b"CONF" + plan), *noise))
    assert result["messages_total"] == 0
