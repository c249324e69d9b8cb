"""Native hooks of TCP streams: two stacks of one engine over a pipe, stepped and on the engine's thread."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

import xdpstack.streams
from xdpstack import hooks
from xdpstack._ffi import ffi, lib
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import LocalProtocolError
from xdpstack.port import pipe
from xdpstack.streams import Streams

A, B = "10.0.0.1", "10.0.0.2"
MACS = {A: "02:00:00:00:00:0a", B: "02:00:00:00:00:0b"}
PATIENCE = 60.0


@hooks.stream(np.zeros(32, np.int64))
def echo(state, event):  # type: ignore[no-untyped-def]
    """Accepts, sends everything back, closes after the peer; notes what it saw."""
    state[event.what & 15] += 1
    if event.what & hooks.ACCEPTABLE:
        while hooks.accept(event) > 0:
            state[17] += 1
        return 0
    room = np.empty(256, np.uint8)
    count = hooks.read(event, room)
    while count > 0:
        hooks.write(event, room[:count])
        count = hooks.read(event, room)
    if event.what & hooks.FIN:
        state[18] += 1
        hooks.close(event)
    return 0


@hooks.stream(np.zeros(32, np.int64))
def ask(state, event):  # type: ignore[no-untyped-def]
    """Asks state[20] times, each with one byte more; what came back is counted in state[21]."""
    room = np.zeros(256, np.uint8)
    if event.what & hooks.OPEN:
        state[22] = hooks.write(event, room[:1])
    count = hooks.read(event, room)
    if count > 0:
        state[21] += count
        state[22] -= count
        if state[22] == 0 and state[23] < state[20]:
            state[23] += 1
            state[22] = hooks.write(event, room[: state[23] % 100 + 1])
    return 0


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """New states; and closing does not wait for a peer that lives in the same process."""
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)
    echo.state[:] = ask.state[:] = 0


@contextlib.contextmanager
def joined(**config):
    """(engine, the streams of 10.0.0.1, those of 10.0.0.2)."""
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for end in pipe(slots=64)]
        engine = stack.enter_context(Engine(EngineConfig(slow=0, **config)))
        streams = []
        for end, here, there in zip(ends, (A, B), (B, A), strict=True):
            index = engine.add_link(end, mac=MACS[here], addresses=[f"{here}/24"])
            engine.hosts[index].add_neighbour(there, MACS[there])
            streams.append(Streams(engine, index))
        yield engine, *streams
        for one in streams:
            one.close()
        engine.detach()


def both(one, other, done):
    """Turn, with news for either, until it is so."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "nothing came of it"
        one.turn()
        other.look()


def opened(mine, theirs, port=7):
    """A connection of ours to a port that somebody answers."""
    connection = mine.open(B, port)
    both(mine, theirs, lambda: connection.is_open)
    return connection


def wait(done):
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.002)


def serve(streams):
    streams.set_hook(echo)
    streams.give(streams.listen(7))


def test_a_hook_accepts_answers_and_closes_while_python_turns():
    with joined() as (_, mine, theirs):
        serve(theirs)
        connection = opened(mine, theirs)
        connection.put(b"twelve bytes")
        got = bytearray()

        def whole():
            got.extend(connection.take() or b"")
            return len(got) == 12

        both(mine, theirs, whole)
        assert got == b"twelve bytes"
        assert echo.state[17] == 1
        connection.shutdown()
        both(mine, theirs, lambda: connection.at_end)
        assert echo.state[18] == 1
        assert theirs.stack.stats()["accepted"] == 1


def test_two_hooks_talk_on_the_engines_own_thread_with_an_ack_on_each_answer():
    with joined() as (engine, mine, theirs):
        serve(theirs)
        ask.state[20] = 5000
        connection = opened(mine, theirs)
        mine.set_hook(ask)
        mine.give(connection)
        before = mine.stack.stats()["sent"]
        engine.start()
        wait(lambda: ask.state[23] == 5000 and ask.state[22] == 0)
        with pytest.raises(LocalProtocolError, match="let it stand still"):
            mine.open(B, 8)
        engine.runner.stop()
        assert ask.state[21] == sum(n % 100 + 1 for n in range(5001))
        assert mine.stack.stats()["sent"] - before < 2 * 5001  # an answer carries its ACK
        assert echo.state[17] == 1
        assert connection.info()["received_bytes"] == ask.state[21]


def test_what_was_given_keeps_its_events_from_python_and_tells_what_held_before():
    with joined() as (_, mine, theirs):
        listener = theirs.listen(7)
        connection = opened(mine, theirs)
        accepted = listener.accept()
        connection.put(b"early")
        both(mine, theirs, lambda: accepted.info()["unread"] == 5)
        bits = []
        accepted.callback = bits.append
        theirs.set_hook(echo)
        theirs.give(accepted)
        bits.clear()
        both(mine, theirs, lambda: connection.info()["unread"] == 5)
        assert echo.state[hooks.OPEN | hooks.READABLE] == 1
        assert connection.take() == b"early"
        assert bits == []


def test_what_waited_for_python_goes_to_the_hook_when_it_is_given():
    with joined() as (_, mine, theirs):
        listener = theirs.listen(7)
        connection = opened(mine, theirs)
        accepted = listener.accept()
        stack = theirs.stack
        connection.put(b"now")
        for _ in range(100):  # without look(): its news wait
            lib.xds_engine_poll(theirs.engine.core, 0, theirs._out)
        stack.give(accepted.number, 1)
        assert list(stack.events()) == []
        ((number, bits),) = stack.given()
        assert (number, bits & hooks.READABLE) == (accepted.number, hooks.READABLE)
        assert list(stack.given()) == []


def test_a_negative_return_ends_the_thread_with_its_code():
    @hooks.stream(np.zeros(1, np.int64))
    def failing(state, event):
        return -71

    with joined() as (engine, mine, theirs):
        theirs.listen(7)
        connection = opened(mine, theirs)
        mine.set_hook(failing)
        runner = engine.start()
        with engine.paused():
            mine.set_hook(failing)
            mine.stack.give(connection.number, 1)
        wait(lambda: not engine.runner.running)
        assert runner.stop() == -71


def test_nothing_is_given_without_a_hook_or_after_its_end():
    with joined() as (engine, _, theirs):
        listener = theirs.listen(7)
        with pytest.raises(LocalProtocolError, match="no stream hook was set"):
            theirs.give(listener)
        theirs.set_hook(echo)
        listener.close()
        with pytest.raises(LocalProtocolError, match="was closed"):
            theirs.give(listener)
        with pytest.raises(ValueError, match="TCP connection"):
            theirs.stack.give(12345, 1)
        assert lib.xds_engine_set_streams(engine.core, 7, ffi.NULL, ffi.NULL) == lib.XDS_ECONFIG


def test_closing_the_streams_closes_what_the_hook_accepted():
    with joined() as (_, mine, theirs):
        serve(theirs)
        connection = opened(mine, theirs)
        both(mine, theirs, lambda: theirs.stack.stats()["accepted"] == 1)
        lib.xds_stack_close_given(theirs.stack.core, theirs._now())
        theirs.pump()
        both(mine, theirs, lambda: connection.at_end)
