"""What a turn gives: updates by feed, messages as views of their own types, events. No root."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xdpstack import node as nodes
from xdpstack.engine import EngineConfig
from xdpstack.errors import CapacityError
from xdpstack.tests.test_engine import GROUP, MS, OTHER, adds, capture


def test_messages_are_views_with_their_own_dtype(tmp_path):
    from xdpstack.schema.dtypes import feed_dtypes

    form = feed_dtypes("plain")["add"]
    path = capture(tmp_path / "j.pcapng", [(1, GROUP, adds(0, 2))])
    with nodes.open(f"pcap:{path}", engine=EngineConfig(max_messages=1 << 14)) as node:
        node.feed("plain", groups=["239.1.1.1:5000"])
        for batch in node.run():
            prices = [int(batch.view(i, form)["price"][0]) for i in range(len(batch.messages))]
    assert prices == [100, 101]


@pytest.mark.parametrize(
    ("name", "feed", "kind", "field", "wanted"),
    [
        (
            "cme-mdp3-v8-line-a-and-b.pcapng",
            "cme-mdp3",
            "MDIncrementalRefreshBook32",
            "MatchEventIndicator",
            4898,
        ),
        ("iex-deep10-2017-04-25.pcap.gz", "iex-deep", "trade_report", "price", 83343),
    ],
)
def test_every_message_of_a_capture_is_a_view_of_its_own_type(name, feed, kind, field, wanted):
    path = Path(nodes.__file__).parent / "captures" / name
    seen = 0
    with nodes.open(f"pcap:{path}", engine=EngineConfig(max_messages=1 << 16)) as node:
        made = node.feed(feed)
        number = made.types().index(kind)
        for batch in node.run():
            for index in np.flatnonzero(batch.messages["type"] == number):
                assert batch.message(int(index))[field].shape == ()
                seen += 1
    assert seen == wanted


def test_the_updates_of_each_feed_come_apart(tmp_path):
    packets = []
    for seq in range(10):
        packets += [(seq * MS, GROUP, adds(seq, 2, symbol=1)), (seq * MS + 1, OTHER, adds(seq, 3, symbol=2))]
    with nodes.open(f"pcap:{capture(tmp_path / 'two.pcapng', packets)}") as node:
        one = node.feed("plain", groups=["239.1.1.1:5000"], name="one")
        two = node.feed("plain", groups=["239.1.1.2:5001"], name="two")
        for batch in node.run():
            assert set(batch.of(one)["instrument"].tolist()) <= {1}
            assert set(batch.of(two)["instrument"].tolist()) <= {2}
            assert len(batch.of(one)) + len(batch.of(two)) == len(batch.updates)
            assert batch.runs["count"].sum() == len(batch.updates)
            assert not batch.of(one).flags.owndata or len(batch.runs) > 2
        assert one.stats()["updates"] == 20
        assert two.stats()["updates"] == 30


def test_a_message_shorter_than_a_dtype_is_refused(tmp_path):
    path = capture(tmp_path / "s.pcapng", [(1, GROUP, adds(0))])
    with nodes.open(f"pcap:{path}", engine=EngineConfig(max_messages=1 << 14)) as node:
        node.feed("plain", groups=["239.1.1.1:5000"])
        for batch in node.run():
            if len(batch.messages):
                with pytest.raises(CapacityError, match="28 bytes"):
                    batch.view(0, np.dtype("S100"))


def test_a_view_that_was_kept_stays_readable_when_the_engine_is_gone(tmp_path):
    path = capture(tmp_path / "k.pcapng", [(1, GROUP, adds(0, 3))])
    with nodes.open(f"pcap:{path}") as node:
        node.feed("plain", groups=["239.1.1.1:5000"])
        kept = [batch.updates for batch in node.run()]
        arena = node.engine.arena
    assert arena.closed
    assert [int(price) for updates in kept for price in updates["price"]] == [100, 101, 102]
    assert len(arena._maps) == 1, "only what is looked at is still mapped"
    kept.clear()
    arena.close()
    assert arena._maps == []
