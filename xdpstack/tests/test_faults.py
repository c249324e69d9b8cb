"""The damage model: exact truth, order, conservation, statistics."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.errors import ConfigError
from xdpstack.lab.faults import Faults, Impairer, impair, moved

chances = st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])
faults = st.builds(
    Faults,
    seed=st.integers(0, 2**32),
    loss=chances,
    burst=st.sampled_from([0.0, 0.0, 0.1]),
    burst_length=st.sampled_from([1, 3, 10_000]),
    duplicate=chances,
    reorder=chances,
    corrupt=chances,
    displacement=st.integers(1, 5),
    hold_ns=st.sampled_from([1, 1000, 10**9]),
    delay_ns=st.sampled_from([0, 500]),
    jitter_ns=st.sampled_from([0, 5000]),
    rate=st.sampled_from([0, 8_000_000]),
    queue=st.sampled_from([1, 5, 10_000]),
)
streams = st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=9)), max_size=60)


def timed(stream):
    now, out = 0, []
    for gap, payload in stream:
        now += gap
        out.append((now, payload))
    return out


@given(faults, streams)
@settings(max_examples=200, deadline=None)
def test_truth_explains_every_packet_that_left_and_every_one_that_did_not(how, stream):
    packets = timed(stream)
    result = impair(packets, how)
    truth = result.truth
    assert truth.offered == len(packets)
    copies = [0] * len(packets)
    turned = dict(truth.corrupted)
    for sent in result.packets:
        copies[sent.index] += 1
        original = packets[sent.index][1]
        if sent.index in turned:
            bit = turned[sent.index]
            number = int.from_bytes(original, "big") ^ 1 << (len(original) * 8 - 1 - bit)
            original = number.to_bytes(len(original), "big")
        assert sent.payload == original
        assert sent.ns >= packets[sent.index][0] + how.delay_ns
    for index, count in enumerate(copies):
        due = 0 if index in truth.lost else 2 if index in truth.duplicated else 1
        assert count == due - truth.overflowed.count(index)
    times = [sent.ns for sent in result.packets]
    assert times == sorted(times)
    assert truth.moved == moved([sent.index for sent in result.packets])


@given(faults, streams)
@settings(max_examples=100, deadline=None)
def test_the_live_line_does_the_same_as_the_schedule_and_loses_nothing_on_the_way(how, stream):
    packets = timed(stream)
    line, out = Impairer(how), []
    for ns, payload in packets:
        out += line.output(ns - 1)
        line.input(payload, ns)
        assert line.offered + line.duplicated == line.sent + line.lost + line.overflowed + line.waiting
    while (due := line.deadline()) is not None:
        fresh = line.output(due)
        assert line.offered + line.duplicated == line.sent + line.lost + line.overflowed + line.waiting
        out += fresh
    assert out == impair(packets, how).packets


@given(faults, streams)
@settings(max_examples=50, deadline=None)
def test_a_seed_says_it_all(how, stream):
    assert impair(timed(stream), how) == impair(timed(stream), how)


@given(streams)
@settings(max_examples=50, deadline=None)
def test_a_line_without_faults_changes_nothing(stream):
    packets = timed(stream)
    result = impair(packets, Faults(queue=100))
    assert [(sent.ns, sent.payload) for sent in result.packets] == packets
    assert not any([result.truth.lost, result.truth.duplicated, result.truth.moved, result.truth.corrupted])


@given(st.integers(0, 1000), st.sets(st.integers(0, 99)), st.sets(st.integers(0, 99)))
@settings(max_examples=50, deadline=None)
def test_what_is_chosen_is_lost_and_what_is_kept_arrives(seed, lose, keep):
    how = Faults(seed=seed, loss=0.3, duplicate=0.2, reorder=0.3)
    result = impair([(n * 10, bytes([n])) for n in range(100)], how, lose=lose, keep=keep)
    arrived = {sent.index for sent in result.packets}
    assert not arrived & lose
    assert arrived >= keep - lose
    assert set(result.truth.lost) == set(range(100)) - arrived


@pytest.mark.parametrize("field", ["loss", "duplicate", "reorder", "corrupt"])
def test_the_share_of_damaged_packets_is_the_chance_within_five_sigma(field):
    count, chance = 40_000, 0.03
    truth = impair([(n * 1000, b"x" * 20) for n in range(count)], Faults(seed=7, **{field: chance})).truth
    hits = {
        "loss": truth.lost,
        "duplicate": truth.duplicated,
        "reorder": truth.moved,
        "corrupt": [index for index, _ in truth.corrupted],
    }[field]
    sigma = math.sqrt(count * chance * (1 - chance))
    assert abs(len(hits) - count * chance) < 5 * sigma
    others = [truth.lost, truth.duplicated, truth.moved, truth.corrupted]
    assert sum(map(len, others)) == len(hits), "nothing else happened"


@pytest.mark.parametrize("length", [1, 8, 5000])
def test_a_burst_takes_so_many_in_a_row_across_chunks_too_and_touches_nothing_else(length):
    count, packets = 20_000, [(n, b"x") for n in range(20_000)]
    lost = impair(packets, Faults(seed=7, burst=0.001, burst_length=length)).truth.lost
    runs = [n for n in lost if n - 1 not in set(lost)] if length < 5000 else [lost[0]]
    for first in runs:
        assert {*range(first, min(first + length, count))} <= set(lost)
    if length < 5000:
        sigma = math.sqrt(count * 0.001)
        assert abs(len(lost) / length - count * 0.001) < 5 * sigma
    beside = impair(packets, Faults(seed=7, burst=0.001, burst_length=length, duplicate=0.01)).truth
    alone = impair(packets, Faults(seed=7, duplicate=0.01)).truth
    assert beside.lost == lost
    assert beside.duplicated == [n for n in alone.duplicated if n not in set(lost)]


def test_a_packet_held_back_lets_one_to_displacement_others_pass():
    how = Faults(seed=3, reorder=0.01, displacement=4)
    order = [sent.index for sent in impair([(n * 1000, b"x") for n in range(20_000)], how).packets]
    at = {index: place for place, index in enumerate(order)}
    passed = [sum(1 for later in order[: at[index]] if later > index) for index in moved(order)]
    assert set(passed) == {1, 2, 3, 4}


def test_a_packet_held_back_at_the_end_of_a_burst_leaves_after_hold_ns():
    out = impair([(1000, b"x"), (10**9, b"y")], Faults(reorder=1.0, hold_ns=5000)).packets
    assert [(sent.ns, sent.payload) for sent in out] == [(6000, b"x"), (10**9 + 5000, b"y")]


def test_rate_spaces_packets_by_their_bits_and_the_queue_is_bounded():
    out = impair([(0, b"x" * 125)] * 10, Faults(rate=1_000_000, queue=4))
    assert [sent.ns for sent in out.packets] == [1_000_000, 2_000_000, 3_000_000, 4_000_000]
    assert out.truth.overflowed == [4, 5, 6, 7, 8, 9]


def test_jitter_fills_its_range_and_never_reorders():
    out = impair([(n * 10_000, b"x") for n in range(2000)], Faults(seed=1, delay_ns=100, jitter_ns=8000))
    late = [sent.ns - sent.index * 10_000 - 100 for sent in out.packets]
    assert 0 <= min(late) < 200
    assert 7800 < max(late) <= 8000
    assert out.truth.moved == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": 1.1},
        {"corrupt": -0.1},
        {"burst": 2},
        {"burst_length": 0},
        {"rate": -1},
        {"displacement": 0},
        {"queue": 0},
    ],
)
def test_a_wrong_setting_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Faults(**wrong)


def test_a_schedule_that_goes_back_in_time_is_refused():
    with pytest.raises(ConfigError, match="packet 1 is at 5 ns"):
        impair([(10, b"a"), (5, b"b")], Faults())


def test_the_damage_of_a_seed_never_changes():
    """The first damages of seed 1: recorded runs and truths depend on them."""
    how = Faults(seed=1, loss=0.01, duplicate=0.01, reorder=0.01, corrupt=0.01)
    truth = impair([(n * 1000, bytes(8)) for n in range(400)], how).truth
    assert (truth.lost, truth.duplicated, truth.moved, truth.corrupted) == GOLDEN


GOLDEN = ([191, 257], [46, 116, 375, 393], [13, 114, 118, 216, 292], [(65, 46), (361, 3), (377, 27)])
