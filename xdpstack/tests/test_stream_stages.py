"""Stages of connections: in callbacks, in hooks that frame or do not, by place and for all the rest."""

from __future__ import annotations

import ipaddress
import os

import numpy as np
import pytest

import xdpstack.streams
from xdpstack import hooks
from xdpstack._ffi import lib
from xdpstack.clock import tai_ns
from xdpstack.errors import ConfigError
from xdpstack.stages import ConnectionStages
from xdpstack.stats import ROOT, Reader
from xdpstack.tests.test_stream_hooks import A, B, both, echo, joined, opened, serve

SLACK = 20_000  # a pipe stamps by the caller's clock, the engine by its own


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)
    echo.state[:] = framer.state[:] = bytewise.state[:] = 0


@hooks.stream(np.zeros(1 << 12, np.uint8))
def framer(room, event):  # type: ignore[no-untyped-def]
    """Messages of one byte of length and so many behind it; room[0] of them, room[1] in no good order."""
    if event.what & hooks.ACCEPTABLE:
        while hooks.accept(event) > 0:
            pass
        return 0
    count = hooks.read(event, room[8:])
    at = 8
    while at < 8 + count:
        hooks.parsed(event)
        at += 1 + room[at]
        hooks.entered(event)
        room[0] += 1
        rows = hooks.stages_of_event(event)
        if len(rows) and rows[0].receive > rows[0].wake + 20_000:
            room[1] += 1
    return 0


@hooks.stream(np.zeros(300, np.uint8))
def bytewise(room, event):  # type: ignore[no-untyped-def]
    """Each byte is a message; room[0] of them."""
    if event.what & hooks.ACCEPTABLE:
        while hooks.accept(event) > 0:
            pass
        return 0
    for _ in range(hooks.read(event, room[8:])):
        hooks.message(event)
        room[0] += 1
    return 0


@hooks.stream(np.zeros(300, np.uint8))
def careless(room, event):  # type: ignore[no-untyped-def]
    """Each byte is a message, of which only the even ones are said to be framed; room[0] of them."""
    if event.what & hooks.ACCEPTABLE:
        while hooks.accept(event) > 0:
            pass
        return 0
    for i in range(hooks.read(event, room[8:])):
        if room[8 + i] % 2 == 0:
            hooks.parsed(event)
        hooks.entered(event)
        room[0] += 1
    return 0


def counts(hists):
    """Of TLS none: what has any of it shows."""
    return {word: len(one) for word, one in hists.by_stage.items() if len(one) or "tls" not in word}


def place_of(engine, connection):
    """The histograms that a connection has of its own."""
    for number in range(engine.connections.count - 1):
        words = engine.connections.raw[number].words
        if (words.id, words.port) == (connection.number, connection.streams.index):
            return engine.connections.places[number]
    raise AssertionError("no place is its own")


def test_a_callback_knows_when_its_bytes_passed_each_stage():
    with joined(stage_warm_up=0) as (engine, mine, theirs):
        serve(theirs)
        connection = opened(mine, theirs)
        seen = []
        connection.callback = lambda bits: seen.append((bits, connection.stages, tai_ns()))
        before = tai_ns()
        connection.put(b"twelve bytes")
        both(mine, theirs, lambda: connection.take() == b"twelve bytes")
        assert connection.stages is None, "only within the callback"
        ((_, stages, after),) = [one for one in seen if one[0] & lib.XDS_STACK_READABLE]
        assert before - SLACK <= stages.receive <= stages.wake + SLACK
        assert stages.wake <= stages.callback <= after + SLACK
        assert (stages.tls_start, stages.tls_end, stages.parsed) == (0, 0, 0)
        assert all(one[1] is None for one in seen if not one[0] & lib.XDS_STACK_READABLE)
        hists = place_of(engine, connection)
        assert counts(hists) == {"wake": 1, "parsed": 0, "callback": 1, "total": 1}
        total = hists.by_stage["total"].summary()
        assert total.min == total.max == stages.callback - stages.receive


def test_a_hook_that_frames_has_a_row_a_message_and_the_wake_once():
    with joined(stage_warm_up=0) as (engine, mine, theirs):
        theirs.set_hook(framer)
        theirs.give(theirs.listen(7))
        connection = opened(mine, theirs)
        for messages in (5, 1, 2):
            done = int(framer.state[0]) + messages
            connection.put(b"\x03abc" * messages)
            both(mine, theirs, lambda done=done: framer.state[0] == done)
        assert framer.state[1] == 0
        (hists,) = [one for one in engine.connections.places if len(one.by_stage["parsed"])]
        assert counts(hists) == {"wake": 3, "parsed": 8, "callback": 8, "total": 8}


def test_messages_that_nobody_said_were_framed_count_beside_those_that_were():
    careless.state[:] = 0
    with joined(stage_warm_up=3) as (engine, mine, theirs):
        theirs.set_hook(careless)
        theirs.give(theirs.listen(7))
        connection = opened(mine, theirs)
        connection.put(bytes(i % 3 for i in range(150)))  # 0, 1, 2, 0 …: a third is odd, so 49 behind three
        both(mine, theirs, lambda: careless.state[0] == 150)
        (hists,) = [one for one in engine.connections.places if len(one.by_stage["parsed"])]
        assert counts(hists) == {"wake": 1, "parsed": 98, "callback": 147, "total": 147}
        found = {word: one.summary() for word, one in hists.by_stage.items()}
        assert found["total"].max <= found["wake"].max + found["parsed"].max + found["callback"].max
        assert sum(count for _, count in hists.by_stage["total"].buckets()) == 147


def test_one_reading_serves_a_message_that_is_handed_over_at_once():
    with joined(stage_warm_up=10) as (engine, mine, theirs):
        theirs.set_hook(bytewise)
        theirs.give(theirs.listen(7))
        connection = opened(mine, theirs)
        connection.put(bytes(200))  # more than are gathered between two folds
        both(mine, theirs, lambda: bytewise.state[0] == 200)
        (hists,) = [one for one in engine.connections.places if len(one.by_stage["parsed"])]
        assert counts(hists) == {"wake": 1, "parsed": 190, "callback": 190, "total": 190}
        assert hists.left_out == 10
        assert hists.by_stage["callback"].summary().max == 0


def test_a_hook_that_does_not_frame_counts_as_entered_when_it_is_called():
    with joined(stage_warm_up=1) as (engine, mine, theirs):
        serve(theirs)
        connection = opened(mine, theirs)
        for done in range(1, 5):
            connection.put(b"12345678")
            both(mine, theirs, lambda done=done: connection.info()["received_bytes"] == 8 * done)
        served = [one for one in engine.connections.places if one.left_out and one.by_stage["total"]]
        assert served
        (hists,) = [one for one in served if one is not place_of(engine, connection)]
        assert counts(hists) == {"wake": 3, "parsed": 0, "callback": 3, "total": 3}
        assert hists.left_out == 1


def test_who_frames_in_python_says_of_each_message_and_news_count_no_more():
    with joined(stage_warm_up=0) as (engine, mine, theirs):
        serve(theirs)  # an echo
        connection = opened(mine, theirs)
        hists, found = place_of(engine, connection), []
        assert connection.message() is None, "before any bytes"

        def framing(bits: int) -> None:
            for _ in range(len(connection.take() or b"") // 4):
                found.append((connection.stages, connection.message()))

        connection.put(b"before it frames")
        both(mine, theirs, lambda: connection.take() is not None)
        assert counts(hists) == {"wake": 1, "parsed": 0, "callback": 1, "total": 1}
        connection.callback = framing
        for messages in (3, 1, 2):
            done = len(found) + messages
            connection.put(b"four" * messages)
            both(mine, theirs, lambda done=done: len(found) == done)
        # News counted until the first message: those before it framed, and what brought that message.
        assert counts(hists) == {"wake": 4, "parsed": 6, "callback": 8, "total": 8}
        for news, message in found:
            assert (message.receive, message.wake) == (news.receive, news.wake)
            assert news.wake <= message.parsed == message.callback
        moments = [message.parsed for _, message in found]
        assert moments == sorted(moments)
        last = found[-1][1]
        connection.callback = None
        late = connection.message()
        assert (late.receive, late.parsed >= last.parsed) == (last.receive, True), "a coroutine frames later"
        assert counts(hists)["parsed"] == 7


def test_a_warm_up_is_of_messages_where_they_are_told_of():
    with joined(stage_warm_up=5) as (engine, mine, theirs):
        serve(theirs)
        connection = opened(mine, theirs)
        connection.put(b"four")
        both(mine, theirs, lambda: connection.take() is not None)  # the first of five
        hists = place_of(engine, connection)
        for _ in range(6):
            connection.message()
        assert counts(hists) == {"wake": 0, "parsed": 2, "callback": 2, "total": 2}
        assert hists.left_out == 5


def test_a_place_is_one_connections_and_the_rest_share():
    with joined(stage_warm_up=0, stage_connections=1) as (engine, mine, theirs):
        own, rest = (engine.connections.raw[i].words for i in range(2))
        own_hists, rest_hists = engine.connections.places
        listener = theirs.listen(7)
        first = opened(mine, theirs)
        accepted = listener.accept(60.0)
        both(mine, theirs, lambda: own.connections + rest.connections == 2)
        holder, other = (first, accepted) if own.port == mine.index else (accepted, first)
        assert (own.id, own.port) == (holder.number, holder.streams.index)
        assert (own.local_port, own.remote_port) == (holder.local[1], holder.remote[1])
        address = ipaddress.IPv6Address(own.remote_high << 64 | own.remote_low)
        assert str(address.ipv4_mapped) == (B if holder is first else A)
        assert rest.connections == 1
        holder.put(b"to the one without")
        both(mine, theirs, lambda: len(rest_hists.by_stage["total"]) == 1)
        other.put(b"to the one that has it")
        both(mine, theirs, lambda: len(own_hists.by_stage["total"]) == 1)
        first.abort()
        both(mine, theirs, lambda: accepted.error is not None)
        holder.close()
        other.close()
        second = opened(mine, theirs)
        both(mine, theirs, lambda: own.connections + rest.connections == 3)
        assert own.connections == 2, "a place goes on to the next"
        assert len(own_hists.by_stage["total"]) == 0, "and begins anew"
        assert second.is_open
        assert second.message() is None, "the bytes were told of one that is gone"


def test_switched_off_nothing_is_kept_and_hooks_may_speak_all_the_same():
    with joined(stages=False) as (engine, mine, theirs):
        assert engine.connections is None
        theirs.set_hook(framer)
        theirs.give(theirs.listen(7))
        connection = opened(mine, theirs)
        seen = []
        connection.callback = lambda bits: seen.append(connection.stages)
        connection.put(b"\x01a\x01b")
        both(mine, theirs, lambda: framer.state[0] == 2)
        assert set(seen) <= {None}


@pytest.mark.parametrize("places", [-1, 65])
def test_places_are_bounded(places):
    with pytest.raises(ConfigError, match=f"wanted 0 to 64, not {places}"):
        ConnectionStages(None, places, warm_up=0)


def test_how_a_connection_does_is_seen_in_its_place_until_it_is_gone():
    name = f"conns-{os.getpid()}"
    with joined(stage_warm_up=0, name=name, stage_connections=3) as (engine, mine, theirs):
        serve(theirs)
        connection = opened(mine, theirs)
        connection.put(b"twelve bytes")
        both(mine, theirs, lambda: connection.take() == b"twelve bytes")
        (place,) = [n for n in range(3) if engine.connections.raw[n].words.local_port == connection.local[1]]
        words = engine.connections.raw[place].words
        both(mine, theirs, lambda: words.state == lib.XDS_TCP_ESTABLISHED)
        info = connection.info()
        for field in ("cwnd", "srtt_ns", "rtt_min_ns", "in_flight", "outstanding", "lost", "retransmits"):
            both(mine, theirs, lambda field=field: getattr(words, field) == info[field])
        assert info["cwnd"] > 0
        assert words.delivery_rate == 0, "our stack has none"
        seen = Reader(ROOT / f"xdpstack-{os.getpid()}-{name}.stat")
        assert seen.values()[f"conn.{place}.cwnd"] == info["cwnd"]
        assert seen.units()[f"conn.{place}.srtt_ns"] == "ns"
        connection.abort()
        connection.close()
        both(mine, theirs, lambda: (words.state, words.cwnd) == (lib.XDS_TCP_CLOSED, 0))
