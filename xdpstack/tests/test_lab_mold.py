"""MoldUDP64 at the venue: packing and the request server's answers, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.errors import ConfigError
from xdpstack.lab import mold
from xdpstack.lab.truth import epochs_of

SESSION = b"SESSION--1"


def unpack(payload):
    session, sequence, count = mold.HEADER.unpack_from(payload)
    at, out = mold.HEADER.size, []
    for _ in range(count if count != mold.END_OF_SESSION else 0):
        size = int.from_bytes(payload[at : at + 2], "big")
        out.append(payload[at + 2 : at + 2 + size])
        at += 2 + size
    assert at == len(payload)
    return session, sequence, out


messages = st.lists(st.binary(max_size=300), min_size=1, max_size=60)


@given(messages, st.integers(1, 9), st.integers(0, 5), st.integers(1, 10**12))
@settings(max_examples=100, deadline=None)
def test_what_is_packed_comes_out_in_order_within_bounds(contents, most, seed, first):
    packets = mold.pack(
        list(enumerate(contents)), SESSION, first=first, most=most, payload_max=400, seed=seed
    )
    following, out = first, []
    for ns, payload in packets:
        session, sequence, inside = unpack(payload)
        assert session == SESSION
        assert sequence == following
        assert 1 <= len(inside) <= most
        assert len(payload) <= 400
        following += len(inside)
        out += inside
        assert ns == following - first - 1, "a packet has the time of its last message"
    assert out == contents


@given(messages, st.integers(0, 70), st.integers(1, 70), st.integers(0, 60), st.integers(1, 10))
@settings(max_examples=200, deadline=None)
def test_an_answer_holds_what_was_asked_and_nothing_that_is_refused(
    contents, at, count, refused_at, refused_count
):
    packets = mold.pack(list(enumerate(contents)), SESSION)
    epochs, _ = epochs_of("mold64", [payload for _, payload in packets])
    refused = set(range(1 + refused_at, 1 + refused_at + refused_count))
    answerer = mold.Answerer(epochs, refused=[(SESSION, 1 + refused_at, refused_count)], payload_max=500)
    answer = answerer.answer(mold.HEADER.pack(SESSION, 1 + at, count))
    if at >= len(contents):
        assert answer is None
        assert answerer.counts["beyond"] == 1
    elif 1 + at in refused:
        assert answer is None
        assert answerer.counts["refused"] == 1
    else:
        session, sequence, inside = unpack(answer)
        assert (session, sequence) == (SESSION, 1 + at)
        assert len(answer) <= 500
        assert inside == contents[at : at + len(inside)]
        assert len(inside) <= count
        end = 1 + at + len(inside)
        assert not refused & set(range(1 + at, end))
        full = len(inside) == count or end > len(contents) or end in refused
        assert full or len(answer) + 2 + len(contents[end - 1]) > 500, "as many as fit"
        assert answerer.counts["messages"] == len(inside)
    outcomes = sum(answerer.counts[name] for name in mold.Answerer.OUTCOMES)
    assert outcomes == answerer.counts["requests"] == 1


@given(st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_answered_or_counted(request):
    packets = mold.pack([(0, b"x")], SESSION)
    epochs, _ = epochs_of("mold64", [payload for _, payload in packets])
    answerer = mold.Answerer(epochs)
    answer = answerer.answer(request)
    assert (answer is not None) == (answerer.counts["answered"] == 1)
    assert sum(answerer.counts[name] for name in mold.Answerer.OUTCOMES) == 1


def test_lost_answers_are_seeded_and_counted():
    packets = mold.pack([(0, b"x")] * 5, SESSION)
    epochs, _ = epochs_of("mold64", [payload for _, payload in packets])
    runs = []
    for _ in range(2):
        answerer = mold.Answerer(epochs, loss=0.3, seed=4)
        runs.append([answerer.answer(mold.HEADER.pack(SESSION, 1, 5)) is None for _ in range(1000)])
        assert answerer.counts["dropped"] == sum(runs[-1])
    assert runs[0] == runs[1]
    assert 230 < sum(runs[0]) < 370


def test_the_bytes_are_those_of_the_specification():
    ((ns, payload),) = mold.pack([(1, b"S"), (2, b"ABC")], b"0123456789", first=7, most=2, seed=5)
    assert ns == 2
    assert (
        payload.hex()
        == "30313233343536373839" + "0000000000000007" + "0002" + "0001" + "53" + "0003" + "414243"
    )
    assert mold.control(SESSION, 9, end=True).hex() == SESSION.hex() + "0000000000000009" + "ffff"


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ConfigError, match="ten bytes"):
        mold.pack([], b"short")
    with pytest.raises(ConfigError, match="does not fit"):
        mold.pack([(0, bytes(2000))], SESSION)
