"""stamp with tiny counts: whole rows, both engines did the same, one of them stamped. No figure is tested."""

import contextlib
import os

import pytest

from xdpstack.bench import Context, benches
from xdpstack.bench.rows import KEYS
from xdpstack.bench.stamp import (
    MESSAGES,
    PACKETS,
    Hooks,
    Stream,
    StreamTwo,
    _Feed,
    _messages,
    _packets,
    _turns,
)
from xdpstack.bench.stamp_session import FixSession, WsSession, fix_messages, ws_messages
from xdpstack.tests.test_bench_segment import hooks  # noqa: F401  (builds the C part)


def test_the_rows_are_whole():
    cores = os.sched_getaffinity(0)
    rows = [made.as_dict() for made in benches()["stamp"].run(Context(quick=True))]
    assert [line["bench"] for line in rows] == [
        "stamp",
        "stamp.stream",
        "stamp.stream.two",
        "stamp.stream.single",
        "stamp.ws",
        "stamp.fix",
    ]
    assert [line["n"] for line in rows] == [40 * PACKETS * MESSAGES, *(40 * 16,) * 2, 40, *(40 * 16,) * 2]
    for line in rows:
        assert list(line)[: len(KEYS)] == list(KEYS)
        assert line["without"] > 0
        assert line["with_stages"] > 0
        assert line["peer"] is None
    assert os.sched_getaffinity(0) == cores


@pytest.mark.parametrize(
    ("form", "loads"),
    [
        (_Feed, _packets),
        (Stream, lambda: _messages(16)),
        (StreamTwo, lambda: _messages(16)),
        (WsSession, lambda: ws_messages(16)),
        (FixSession, lambda: fix_messages(16)),
    ],
)
def test_both_engines_do_the_same_and_one_of_them_stamps(form, loads):
    with contextlib.ExitStack() as stack:
        without, with_ = [form(stages, Hooks(), stack) for stages in (False, True)]
        spent = _turns([without, with_], loads(), 10)
        assert (spent > 0).all()
        counts = []
        for one in (without, with_):
            told = one.engine.stats()["engine"]
            counts.append((told["packets"], told["updates"], told["segments"]))
        assert counts[0] == counts[1]
        if form is _Feed:
            (feed,) = with_.engine.feeds
            assert counts[0][:2] == (42 * PACKETS, 42 * PACKETS * MESSAGES)
            assert len(feed.stages.by_stage["total"]) == 42 * PACKETS - feed.stages.left_out
            assert without.engine.feeds[0].stages is None
        else:
            (own,) = [one for one in with_.engine.connections.places if len(one.by_stage["parsed"])]
            assert len(own.by_stage["parsed"]) == 42 * 16 - own.left_out
            assert without.engine.connections is None
        if form in (WsSession, FixSession):
            assert [one.published() for one in (without, with_)] == [1 + 42 * 16] * 2
