"""A play before it is sent: times, damage, holes, truth."""

from __future__ import annotations

import collections
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.errors import ConfigError
from xdpstack.lab import feeds, mold
from xdpstack.lab.faults import Faults
from xdpstack.lab.truth import parse
from xdpstack.lab.venue import Play
from xdpstack.venues.day import Day, generate

HOW = Faults(loss=0.02, duplicate=0.01, reorder=0.01)


@pytest.fixture(scope="module")
def play():
    day = mold.pack([(n * 10**6, bytes([n % 251]) * 30) for n in range(5000)], b"XDPSTACK02", seed=3)
    return Play([feeds.cme(3), feeds.itch(3, day)], faults=HOW, seed=5)


@given(st.lists(st.integers(-5, 10**9), min_size=1, max_size=50), st.integers(100, 10**9))
@settings(max_examples=200, deadline=None)
def test_squeezed_time_fits_keeps_order_and_shortens_only_the_longest_gaps(gaps, total):
    times, at = [], 10**15
    for gap in gaps:
        at += gap
        times.append(at)
    out = feeds.squeeze(times, total, 7)
    assert out[0] == 7
    before = [max(1, b - a) for a, b in itertools.pairwise(times)]
    after = [b - a for a, b in itertools.pairwise(out)]
    assert all(gap >= 1 for gap in after)
    assert sum(after) <= max(total, len(after))
    if before:
        limit = max(after)
        assert after == [min(gap, limit) for gap in before] or sum(before) <= total
        if sum(before) > total > 2 * len(after):
            assert sum(after) >= total - len(after), "no more was cut than needed"


def test_every_line_carries_what_the_truth_says(play):
    sent = collections.defaultdict(list)
    for line, payload in zip(play.lines, play.payloads, strict=True):
        sent[line].append(payload)
    for number, (name, line, *_) in enumerate(play.destinations):
        truth = play.truths[name]
        told = next(one for one in truth.lines if one.name == line)
        assert len(sent[number]) == told.sent == told.offered - len(told.lost) + len(told.duplicated)
        assert sum(map(len, sent[number])) == told.bytes
        units = collections.Counter()
        for payload in sent[number]:
            session, sequence, count, _ = parse(truth.session, payload)
            for unit in range(sequence, sequence + count):
                units[session, unit] += 1
        assert truth.units - len(units) == told.lost_units


def test_lines_lose_different_packets_and_only_chosen_holes_are_in_all(play):
    for name, truth in play.truths.items():
        one, two = (set(line.lost) for line in truth.lines)
        assert one - two
        assert two - one
        carried = set()
        for line, payload in zip(play.lines, play.payloads, strict=True):
            if play.destinations[line][0] == name:
                session, sequence, count, _ = parse(truth.session, payload)
                carried.update((session, unit) for unit in range(sequence, sequence + count))
        missing = {
            (epoch.session, unit)
            for epoch in truth.epochs
            for unit in range(epoch.first, epoch.first + epoch.count)
        } - carried
        told = {
            (truth.epochs[hole.epoch].session, unit)
            for hole in truth.holes
            for unit in range(hole.first, hole.first + hole.count)
        }
        assert missing == told
    assert play.truths["cme-mdp3"].holes == []
    holes = play.truths["itch50"].holes
    assert sum(hole.served for hole in holes) == 12
    assert sum(not hole.served for hole in holes) == 1
    assert {hole.epoch for hole in holes} == {0, 1}


def test_the_ends_of_sessions_are_never_damaged(play):
    truth = play.truths["itch50"]
    for line in truth.lines:
        assert not set(line.lost) & feeds.itch(3).guarded
    ends = [payload for payload in play.payloads if len(payload) == 20 and payload[18:] == b"\xff\xff"]
    assert len(ends) >= 2 * 2 * 3, "two sessions, two lines, three times each"


def test_a_seed_is_a_play(play):
    day = mold.pack([(n * 10**6, bytes([n % 251]) * 30) for n in range(5000)], b"XDPSTACK02", seed=3)
    again = Play([feeds.cme(3), feeds.itch(3, day)], faults=HOW, seed=5)
    assert again.payloads == play.payloads
    assert again.times == play.times
    assert again.as_dict() == play.as_dict()
    other = Play([feeds.cme(3)], faults=HOW, seed=6)
    assert other.truths["cme-mdp3"].lines[0].lost != play.truths["cme-mdp3"].lines[0].lost


def test_the_play_lasts_as_long_as_asked(play):
    assert 2.9 < play.seconds < 3.2
    assert play.times == sorted(play.times)


def test_the_answerer_of_a_play_gives_holes_and_refuses_the_refused(play):
    answerer = play.answerer("itch50")
    truth = play.truths["itch50"]
    for hole in truth.holes:
        epoch = truth.epochs[hole.epoch]
        answer = answerer.answer(mold.HEADER.pack(epoch.session, hole.first, hole.count))
        if hole.served:
            assert answer[20:] == epoch.slice(hole.first, int.from_bytes(answer[18:20], "big"))
        else:
            assert answer is None
    with pytest.raises(ConfigError, match="no request server"):
        play.answerer("cme-mdp3")


def test_cme_lines_are_those_of_the_capture():
    feed = feeds.cme(1)
    assert [(line.name, line.group, line.port, len(line.packets)) for line in feed.lines] == [
        ("A", "224.0.31.11", 14320, 5000),
        ("B", "224.0.32.11", 15320, 5000),
    ]


def test_two_feeds_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two feeds"):
        Play([feeds.cme(1), feeds.cme(1)])


def test_the_generated_day_is_a_session_of_its_own():
    parameters = Day(messages=5000, symbols=20, orders_alive=200)
    feed = feeds.itch(2, feeds.day_packets(parameters), served=6)
    truth = Play([feed], faults=HOW).truths["itch50"]
    assert [(epoch.session, epoch.first, epoch.count) for epoch in truth.epochs] == [
        (b"XDPSTACK01", 1, 12_012),
        (b"XDPDAY0001", 1, 5000),
    ]
    assert {hole.epoch for hole in truth.holes if hole.served} == {0, 1}
    assert truth.epochs[1].data == generate(parameters).tobytes()
