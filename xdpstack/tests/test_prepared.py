"""Prepared sends: on the wire the same bytes as by an ordinary write, from Python and from a native hook."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xdpstack.streams
from xdpstack import hooks
from xdpstack._ffi import ffi, lib
from xdpstack.errors import CapacityError
from xdpstack.tests.stack_driver import Two
from xdpstack.tests.test_leases import arrives, joined, turn


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)


def first_frames(say):
    """What leaves when ``say(stack, number)`` has written, on a fresh connection; the same each time."""
    two = Two()
    mine, theirs = two.pair()
    say(two.a.stack, mine)
    frames = []
    while frame := two.a.stack.output(two.now):
        frames.append(frame)
        two.b.stack.frame(frame, two.now)
    return frames, two.b.stack.read(theirs)


CHANGE = st.tuples(st.integers(0, 2000), st.binary(max_size=9))


@given(st.binary(min_size=1, max_size=1500), st.lists(CHANGE, max_size=3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_frames_are_those_of_an_ordinary_write(data, changes, first):
    """More than a segment (1,448 bytes) too, and behind bytes that were written before."""
    inside = [(at % len(data), change) for at, change in changes]
    inside = [(at, change[: len(data) - at]) for at, change in inside]
    want = bytearray(data)
    for at, change in inside:
        want[at : at + len(change)] = change
    before = b"before" if first else b""

    def ordinary(stack, number):
        if before:
            stack.write(number, before)
        assert stack.write(number, bytes(want)) == len(want)

    def prepared(stack, number):
        memory = ffi.from_buffer("uint8_t[]", bytearray(data))
        message = ffi.new("struct xds_tcp_message *")
        lib.xds_tcp_prepare(message, memory, len(memory))
        for at, change in inside[:-1]:
            assert lib.xds_tcp_patch(message, at, change, len(change)) == 0
        at, change = inside[-1] if inside else (0, b"")
        if before:
            stack.write(number, before)
        done = lib.xds_stack_send(stack.core, number, message, at, change, len(change))
        assert done == len(want)

    (mine, got), (theirs, also) = first_frames(prepared), first_frames(ordinary)
    assert len(mine) == len(theirs)
    assert not [i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]
    assert got == also == before + want


def test_a_message_is_sent_again_and_again_with_a_few_bytes_changed():
    with joined() as (here, there):
        order = here.prepare(b"buy 100 at 000.00;")
        assert len(order) == 18
        for price in (b"101.25", b"101.50"):
            assert order.send(11, price)
        assert order.send()
        order.patch(4, b"999")
        assert bytes(order) == b"buy 999 at 101.50;"
        assert order.send()
        arrives(here, there, 72)
        assert there.take() == (b"buy 100 at 101.25;buy 100 at 101.50;buy 100 at 101.50;buy 999 at 101.50;")


def test_what_cannot_be_sent_says_why():
    with joined(send_bytes=256, receive_bytes=256) as (here, there):
        for bad in (b"", bytes(257)):
            with pytest.raises(CapacityError, match="wanted from 1 to 256"):
                here.prepare(bad)
        message = here.prepare(bytes(200))
        for at, change in ((199, b"12"), (-1, b"1"), (300, b"1")):
            with pytest.raises(CapacityError, match="of a message of 200"):
                message.send(at, change)
            with pytest.raises(CapacityError, match="of a message of 200"):
                message.patch(at, change)
        assert message.send()
        assert not message.send()  # not all of it fits, so nothing is sent
        turn(here.streams, there.streams, lambda: there.info()["unread"] == 200)
        assert there.take() == bytes(200)
        here.shutdown()
        with pytest.raises(BrokenPipeError):
            message.send()


STATE = np.zeros(8, np.int64)


@hooks.stream(STATE)
def trader(state, event):  # type: ignore[no-untyped-def]
    """Sends the message whose address is state[0] when it is asked, with the asker's first byte in it."""
    room = np.empty(8, np.uint8)
    if event.what & hooks.READABLE and hooks.read(event, room) > 0:
        state[1] = hooks.send_prepared(event, state[0], 4, room[:1])
        state[2] = hooks.send_prepared(event, state[0], 99, room[:1])
    return 0


def test_a_native_hook_sends_what_python_prepared():
    with joined() as (here, there):
        message = there.prepare(b"lot x of it")
        STATE[:] = 0
        STATE[0] = message.address
        there.streams.set_hook(trader)
        there.streams.give(there)
        here.write(b"7")
        arrives(there, here, 11)
        assert here.take() == b"lot 7 of it"
        assert STATE[1] == 11
        assert STATE[2] == lib.XDS_ECAPACITY
