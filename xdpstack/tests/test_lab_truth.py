"""The verifier: it accepts every honest receiver and catches every way to cheat."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack.lab import mold
from xdpstack.lab.capture import read_datagrams
from xdpstack.lab.feeds import CAPTURES, itch_messages
from xdpstack.lab.truth import FeedTruth, Hole, Verifier, epochs_of, holes_of, parse

SESSIONS = [b"SESSION--1", b"SESSION--2"]
PACKETS = [
    payload
    for number, session in enumerate(SESSIONS)
    for _, payload in [
        *mold.pack(
            [(n, bytes([n % 7]) * (n % 7 + number)) for n in range(200)], session, most=5, seed=number
        ),
        (0, mold.control(session, 201)),
        (0, mold.control(session, 201, end=True)),
    ]
]
EPOCHS, PLACES = epochs_of("mold64", PACKETS)


def truth(lost=(), refused=()):
    carried = [place for index, place in enumerate(PLACES) if index not in lost]
    return FeedTruth(
        name="t", session="mold64", epochs=EPOCHS, lines=[], holes=holes_of(EPOCHS, [carried], list(refused))
    )


def receive(verifier, lost=(), tell=True):
    """An honest receiver that gets every packet but the lost ones and reports the rest."""
    expected = [epoch.first for epoch in EPOCHS]
    for index, payload in enumerate(PACKETS):
        session, sequence, count, body = parse("mold64", payload)
        which = SESSIONS.index(session)
        if which != verifier.epoch:
            verifier.restart(session)
        if index in lost:
            continue
        if sequence > expected[which] and tell:
            verifier.gap(expected[which], sequence - expected[which])
        if count:
            verifier.block(sequence, body)
        expected[which] = sequence + count
    return verifier.report()


def test_epochs_hold_every_message():
    assert [(epoch.session, epoch.first, epoch.count) for epoch in EPOCHS] == [
        (SESSIONS[0], 1, 200),
        (SESSIONS[1], 1, 200),
    ]
    assert EPOCHS[0].slice(4, 1) == b"\0\3" + b"\3" * 3


@given(st.sets(st.integers(0, len(PACKETS) - 3), max_size=30))
@settings(max_examples=100, deadline=None)
def test_an_honest_receiver_is_believed(lost):
    data = {index for index in lost if PLACES[index][2]}
    report = receive(Verifier(truth(data)), data)
    missed = sum(PLACES[index][2] for index in data)
    assert report.ok, report.faults
    assert (report.units, report.delivered, report.open, report.silent) == (400, 400 - missed, missed, 0)
    assert report.needless == missed, "the request server had all of it"


@given(st.integers(0, len(PACKETS) - 3))
@settings(max_examples=60, deadline=None)
def test_silence_about_a_gap_is_caught(index):
    if PLACES[index][2]:
        report = receive(Verifier(truth()), {index}, tell=False)
        assert not report.ok
        assert report.silent == PLACES[index][2]


def cheat_twice(verifier):
    verifier.block(1, parse("mold64", PACKETS[0])[3])
    verifier.block(1, parse("mold64", PACKETS[0])[3])


def cheat_order(verifier):
    _, sequence, _, body = parse("mold64", PACKETS[1])
    verifier.block(sequence, body)
    verifier.block(1, parse("mold64", PACKETS[0])[3])


def cheat_bytes(verifier):
    body = bytearray(EPOCHS[0].slice(1, 5))
    body[-1] ^= 1
    verifier.block(1, bytes(body))


def cheat_half_a_unit(verifier):
    verifier.block(1, EPOCHS[0].slice(1, 5)[:-1])


def cheat_invented_sequence(verifier):
    verifier.block(201, b"\0\0")


def cheat_invented_restart(verifier):
    verifier.restart(b"SESSION--9")


def cheat_gap_that_was_delivered(verifier):
    verifier.block(1, EPOCHS[0].slice(1, 200))
    verifier.gap(5, 1)


def cheat_gap_beyond_the_end(verifier):
    verifier.gap(190, 50)


@pytest.mark.parametrize(
    "cheat", [value for name, value in list(globals().items()) if name.startswith("cheat_")]
)
def test_every_way_to_cheat_is_caught(cheat):
    verifier = Verifier(truth())
    cheat(verifier)
    before = verifier._report.breaches
    report = verifier.report()
    if cheat in (cheat_gap_that_was_delivered, cheat_gap_beyond_the_end):
        assert report.breaches > before
    else:
        assert before == 1
    assert not report.ok


def test_holes_are_split_where_the_server_refuses():
    lost = {
        index for index, place in enumerate(PLACES) if place[0] == 0 and 50 <= place[1] < 100 and place[2]
    }
    first = min(PLACES[index][1] for index in lost)
    count = sum(PLACES[index][2] for index in lost)
    found = truth(lost, [(SESSIONS[0], first + 3, 4)]).holes
    assert found == [
        Hole(epoch=0, first=first, count=3, served=True),
        Hole(epoch=0, first=first + 3, count=4, served=False),
        Hole(epoch=0, first=first + 7, count=count - 7, served=True),
    ]


def test_a_truth_saved_and_loaded_is_the_same(tmp_path):
    one = truth({3, 4}, [(SESSIONS[0], 1, 1)])
    one.save(tmp_path)
    other = FeedTruth.load(tmp_path, "t")
    assert other.as_dict() == one.as_dict()
    assert [epoch.data for epoch in other.epochs] == [epoch.data for epoch in one.epochs]
    assert other.holes == one.holes


def test_iex_has_twelve_epochs_and_all_its_messages():
    payloads = [one.payload for one in read_datagrams(CAPTURES / "iex-deep10-2017-04-25.pcap.gz").datagrams]
    epochs, places = epochs_of("iextp", payloads)
    assert len(epochs) == 12, "eleven restarts"
    assert {epoch.first for epoch in epochs} == {1}
    assert sum(epoch.count for epoch in epochs) == 391_999
    assert len(places) == 121_314


def test_the_itch_file_is_whole():
    messages = itch_messages()
    assert len(messages) == 12_012
    assert sum(len(message) + 2 for _, message in messages) == 465_048
