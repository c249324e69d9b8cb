"""What all connections of a stack counted together: by one look, by passes over a few at a time, and in
mapped memory, on the screen and for Prometheus."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xdpstack.streams
from xdpstack._ffi import ffi, lib
from xdpstack.stats import ROOT, Reader
from xdpstack.tests.test_stream_hooks import B, both, joined, opened
from xdpstack.watch import drops, look

SUMS = ("received", "sent", "received_bytes", "sent_bytes", "retransmits")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)


def seen(stack):
    """What the last whole pass found: states, and counters as one list."""
    raw = ffi.new("struct xds_stack_totals *")
    lib.xds_stack_seen(stack.core, raw)
    return flat(raw)


def now(stack):
    raw = ffi.new("struct xds_stack_totals *")
    lib.xds_stack_totals(stack.core, raw)
    return flat(raw)


def flat(raw):
    count = ffi.sizeof("struct xds_stack_totals") // 8
    words = list(ffi.unpack(ffi.cast("uint64_t *", raw), count))
    return words[: lib.XDS_TCP_STATES], words[lib.XDS_TCP_STATES :]


def whole_pass(stack):
    """What is under way ends, and another is made."""
    for _ in range(2):
        lib.xds_stack_pass(stack.core, 1 << 20)
    return seen(stack)


def test_the_sum_is_that_of_each_and_of_those_that_are_gone():
    with joined() as (_engine, mine, theirs):
        listener = theirs.listen(7)
        first, second = opened(mine, theirs), opened(mine, theirs)
        accepted = [listener.accept(60.0) for _ in range(2)]
        first.put(b"x" * 1000)
        second.put(b"y" * 500)
        both(mine, theirs, lambda: sum(one.info()["received_bytes"] for one in accepted) == 1500)
        infos = [one.info() for one in (first, second)]
        found = mine.stack.totals()
        assert found["states"] == {"established": 2}
        assert {word: found[word] for word in SUMS} == {word: sum(i[word] for i in infos) for word in SUMS}
        assert found["sent_bytes"] == 1500
        first.abort()
        both(mine, theirs, lambda: any(one.error is not None for one in accepted))
        first.close()
        later = mine.stack.totals()
        assert later["states"] == {"established": 1}
        assert later["sent_bytes"] == 1500
        assert later["received"] >= found["received"]
        assert theirs.stack.totals()["received_bytes"] == 1500


STEPS = st.lists(
    st.one_of(
        st.just(("open", 0)),
        st.tuples(st.just("close"), st.integers(0, 7)),
        st.tuples(st.just("abort"), st.integers(0, 7)),
        st.tuples(st.just("put"), st.integers(0, 7)),
        st.tuples(st.just("pass"), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_happens_between_passes_sums_only_grow_and_arrive(steps):
    xdpstack.streams.LINGER = 0.0
    with joined() as (_engine, mine, theirs):
        listener, live, last = theirs.listen(7), [], [0] * len(now(mine.stack)[1])
        for step, number in steps:
            one = live[number % len(live)] if live else None
            if step == "open" and len(live) < 8:
                live.append(mine.open(B, 7))
            elif step == "pass":
                lib.xds_stack_pass(mine.stack.core, number)
                sums = seen(mine.stack)[1]
                assert all(a <= b for a, b in zip(last, sums, strict=True)), "a sum became less"
                last = sums
            elif one is not None and step == "put" and one.is_open and one.error is None:
                one.put(b"x" * 100)
            elif one is not None and step in ("close", "abort"):
                if step == "abort":
                    one.abort()
                one.close()
                live.remove(one)
            for _ in range(2):
                mine.turn()
                theirs.turn()
            while (came := listener.take()) is not None:
                came.callback = lambda bits: None
        states, sums = whole_pass(mine.stack)
        assert (states, sums) == now(mine.stack)
        assert sum(states) == mine.stack.stats()["connections"]
        assert all(a <= b for a, b in zip(last, sums, strict=True))


def test_from_outside_a_stack_is_seen_with_its_states_losses_and_sums():
    name = f"totals-{os.getpid()}"
    with joined(name=name) as (engine, mine, theirs):
        listener = theirs.listen(7)
        connection = opened(mine, theirs)
        accepted = listener.accept(60.0)
        connection.put(b"x" * 3000)
        both(mine, theirs, lambda: accepted.info()["received_bytes"] == 3000)
        with pytest.raises(ConnectionRefusedError):
            mine.connect(B, 9, timeout=60.0)
        reader = Reader(ROOT / f"xdpstack-{os.getpid()}-{name}.stat")

        def shown(port, word):
            return reader.values()[f"{word[0]}.{port}.{word[1]}"]

        one, other = "pipe", "pipe#1"
        for _ in range(64):
            lib.xds_engine_reflect(engine.core)
        assert shown(one, ("tcp", "states.established")) == 1
        assert shown(one, ("tcp", "sent_bytes")) == shown(other, ("tcp", "received_bytes")) == 3000
        for port, streams in ((one, mine), (other, theirs)):
            stats, totals = streams.stack.stats(), streams.stack.totals()
            assert shown(port, ("stack", "received")) == stats["received"] > 0
            assert shown(port, ("stack", "sent")) == stats["sent"] > 0
            assert shown(port, ("stack", "reasons.taken")) == stats["taken"]
            assert {word: shown(port, ("tcp", word)) for word in SUMS} == {w: totals[w] for w in SUMS}
        assert shown(other, ("stack", "reasons.no_connection")) == 1
        assert {"stack.pipe.connections", "tcp.pipe.states.time_wait"} <= reader.gauges()
        assert reader.units()["tcp.pipe.sent_bytes"] == "bytes"
        (found,) = look(ROOT, name).engines.values()
        assert found.states()["pipe#1"] == {"established": 1}
        assert [(d.where, d.reason, d.count) for d in drops(found.values) if d.where.endswith("tcp")] == [
            ("port pipe#1 tcp", "no_connection", 1)
        ]


def test_the_screen_has_a_line_a_stack_and_prometheus_its_states():
    pytest.importorskip("rich")
    pytest.importorskip("prometheus_client")
    from xdpstack.metrics import Collector, expose
    from xdpstack.screen import State, as_text
    from xdpstack.watch import Watch

    name = f"totals-{os.getpid()}"
    with joined(name=name) as (engine, mine, theirs):
        listener = theirs.listen(7)
        opened(mine, theirs)
        listener.accept(60.0)
        watch = Watch(only=name)
        for _ in range(64):
            lib.xds_engine_reflect(engine.core)
        watch.look()
        lines = as_text(watch, State(), 140).splitlines()
        (head,) = [line for line in lines if line.split()[:1] == ["TCP"]]
        row = lines[lines.index(head) + 1].split()
        told = dict(zip(head.replace("RX/s", "RX").replace("TX/s", "TX").split(), row, strict=True))
        assert (told["TCP"], told["ESTABLISHED"], told["OTHERS"]) == ("pipe", "1", "0")
        assert (told["OPENED"], told["ACCEPTED"]) == ("1", "0")
        text = expose(Collector(lambda: look(ROOT, name)))
        labels = f'{{engine="{name}",interface="",port="pipe",queue=""'
        assert f'xdpstack_tcp_states{labels},state="established"}} 1.0' in text
        assert f"xdpstack_stack_opened_total{labels}}} 1.0" in text
        assert f'xdpstack_stack_segments_total{labels},reason="taken"}}' in text
