"""Stages on an engine's tape: beside the updates and messages of each record, cut where records are cut, and
sorted by feed where a reader gathers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xdpstack._ffi import dtype, ffi
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import RemoteProtocolError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.flows import udp_frame
from xdpstack.port import Subscription, pipe
from xdpstack.publish import Gathered, News, PublishConfig, Subscriber
from xdpstack.tests.frames import plain_message, plain_packet
from xdpstack.tests.test_publish import head, tape_of
from xdpstack.tests.test_runner import wait

GROUPS = {"left": ("239.1.1.1", 5000), "right": ("239.1.1.2", 5001)}
ROWS = dtype("struct xds_stages")


def ran(folder: Path, packets: list[tuple[str, int]], **config: object) -> Subscriber:
    """A reader of the tape of an engine that took these packets of so many messages in one turn and ended."""
    venue, trader = pipe(256, 2048)
    sent = dict.fromkeys(GROUPS, 0)
    made = PublishConfig(
        tape=str(folder / "tape"), bytes=65536, what=["updates", "messages"], keep=True, state_every=0.0
    )
    with venue, trader, Engine(EngineConfig(max_messages=1 << 12, **config)) as engine:
        engine.add_link(trader, promiscuous=True)
        for name, (address, port) in GROUPS.items():
            line = Subscription(address=address, port=port)
            engine.add_feed(
                FeedConfig(schema="plain", name=name, channels=(ChannelConfig(lines=(line,), window=0.0),))
            )
        for name, count in packets:
            messages = [plain_message("A", "B", 1, 100 + n, 10) for n in range(count)]
            venue.send([udp_frame(plain_packet(sent[name], *messages), GROUPS[name])])
            sent[name] += 1
        engine.publish(made)
        engine.start(nap_us=200)
        reader = Subscriber.open(folder / "tape", oldest=True)
        wait(lambda: engine.stats()["engine"]["updates"] == sum(count for _, count in packets), 60.0)
        engine.detach()
    return reader


def whole(folder: Path, packets: list[tuple[str, int]], **config: object) -> tuple[list[News], Gathered]:
    """What such a reader reads, and what another gathers."""
    with ran(folder, packets, **config) as reader, Subscriber.open(folder / "tape", oldest=True) as other:
        return reader.read(), other.gather()


def in_order(rows: np.ndarray) -> None:
    assert (rows["receive"] > 0).all()
    assert (rows["wake"] <= rows["parsed"]).all()
    assert (rows["parsed"] <= rows["callback"]).all()
    assert (rows["tls_start"] == 0).all()
    assert (rows["tls_end"] == 0).all()


PACKETS = [("left", 3), ("left", 40), ("right", 1), ("left", 30), ("right", 40), ("right", 40), ("left", 2)]


def test_each_update_is_beside_the_stages_of_its_packet_whatever_was_cut(tmp_path):
    records, _ = whole(tmp_path, PACKETS)
    updates = [news for news in records if news.kind == "updates"]
    assert max(len(news.rows) for news in updates) == (65536 // 8 - 64) // 128, "some run was cut"
    packets = 0
    for news in updates:
        rows = news.stages
        in_order(rows)
        assert np.array_equal(np.repeat(rows["receive"], rows["count"]), news.rows["rx_ns"])
        assert rows["first"].tolist() == [0, *np.cumsum(rows["count"])[:-1].tolist()]
        assert (rows["messages"] == 0).all()
        packets += len(rows)
    assert sum(len(news.rows) for news in updates) == sum(count for _, count in PACKETS)
    assert packets > len(PACKETS), "a packet that was cut has a row in either record"


def test_each_message_is_beside_the_stages_of_its_packet(tmp_path):
    records, _ = whole(tmp_path, PACKETS)
    found = [news for news in records if news.kind == "messages"]
    assert len(found) > 1
    for news in found:
        rows = news.stages
        in_order(rows)
        assert np.array_equal(np.repeat(rows["receive"], rows["messages"]), news.rows["rx_ns"])
        assert np.array_equal(np.repeat(rows["feed"], rows["messages"]), news.rows["feed"])
        assert rows["first_message"].tolist() == [0, *np.cumsum(rows["messages"])[:-1].tolist()]
        assert all(len(data) == 28 for _, data in news.messages())
    assert sum(len(news.rows) for news in found) == sum(count for _, count in PACKETS)


def test_who_gathers_has_them_by_feed(tmp_path):
    records, batch = whole(tmp_path, PACKETS)
    for feed in GROUPS:
        updates, rows = batch.of(feed), batch.stages_of(feed)
        in_order(rows)
        assert len(updates) == sum(count for name, count in PACKETS if name == feed)
        for row in rows:
            mine = updates[row["first"] :][: row["count"]]
            assert len(mine) == row["count"]
            assert (mine["rx_ns"] == row["receive"]).all()
        assert np.array_equal(np.repeat(rows["receive"], rows["count"]), updates["rx_ns"])
    assert [len(news.stages) for news in records if news.kind not in ("updates", "messages")] == []


def test_an_engine_that_stamps_nothing_publishes_no_rows(tmp_path):
    records, batch = whole(tmp_path, PACKETS, stages=False)
    assert {len(news.stages) for news in records} == {0}
    assert [len(batch.stages_of(feed)) for feed in GROUPS] == [0, 0]
    assert len(batch) == sum(count for _, count in PACKETS)


def row(**fields: int) -> bytes:
    return bytes(ffi.buffer(ffi.new("struct xds_stages *", fields)))


@pytest.mark.parametrize(
    ("told", "rows"),
    [
        ({"stages": 64 + 64, "n_stages": 2}, row(count=1)),  # one is there
        ({"stages": 64, "n_stages": 1}, row(count=1)),  # they lie in the updates
        ({"stages": 64 + 60, "n_stages": 1}, row(count=1)),
        ({"stages": 0xFFFFFFF8, "n_stages": 1}, row(count=1)),
        ({"stages": 64 + 64, "n_stages": 0xFFFFFFFF}, row(count=1)),
        ({"stages": 64 + 64, "n_stages": 1}, row(count=2)),  # of updates that are not there
        ({"stages": 64 + 64, "n_stages": 1}, row(first=2)),
        ({"stages": 64 + 64, "n_stages": 1}, row(first=0xFFFFFFFF, count=1)),
    ],
)
def test_rows_that_contradict_their_record_are_refused(tmp_path, told, rows):
    record = (1, head(count=1, **told) + bytes(64) + rows)
    with (
        tape_of(tmp_path, [record]),
        Subscriber.open(tmp_path / "tape", oldest=True) as reader,
        pytest.raises(RemoteProtocolError, match="contradicts itself"),
    ):
        reader.gather()


def test_rows_that_lie_outside_of_a_record_are_not_read(tmp_path):
    record = (1, head(count=1, stages=128, n_stages=9) + bytes(64) + row(count=1))
    with tape_of(tmp_path, [record]), Subscriber.open(tmp_path / "tape", oldest=True) as reader:
        (news,) = reader.read()
        with pytest.raises(RemoteProtocolError, match="lie outside"):
            _ = news.stages
