"""Views and rooms of a connection (``xdpstack/leases.py``): against a list as the model, and their end."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xdpstack.streams
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import CapacityError, LocalProtocolError
from xdpstack.port import pipe
from xdpstack.streams import Streams

A, B = "10.0.0.1", "10.0.0.2"
MACS = {A: "02:00:00:00:00:0a", B: "02:00:00:00:00:0b"}
PATIENCE = 60.0


@contextlib.contextmanager
def joined(**settings):
    """(here, there): both ends of a connection over a pipe."""
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for end in pipe(slots=64)]
        engine = stack.enter_context(Engine(EngineConfig(slow=0)))
        streams = []
        for end, mine, other in zip(ends, (A, B), (B, A), strict=True):
            index = engine.add_link(end, mac=MACS[mine], addresses=[f"{mine}/24"])
            engine.hosts[index].add_neighbour(other, MACS[other])
            streams.append(Streams(engine, index, **settings))
        one, other = streams
        listener = other.listen(7000)
        here = one.open(B, 7000)
        there = []

        def opened():
            there.extend(filter(None, [listener.take()]))
            return there and here.is_open

        turn(one, other, opened)
        yield here, there[0]
        for each in streams:
            each.close()
        engine.detach()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)


@pytest.fixture
def pair():
    with joined() as both:
        yield both


def turn(one, other, done):
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "nothing came of it"
        one.turn()
        other.look()


def arrives(here, there, count):
    turn(here.streams, there.streams, lambda: there.info()["unread"] == count)


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "room", "take", "view", "turn"]), st.integers(0, 300), st.booleans()),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_are_those_of_a_list_whichever_way_they_are_written_and_read(soon, steps):
    """Buffers of 256 bytes, so that every ring's end is met."""
    with joined(send_bytes=256, receive_bytes=256) as (here, there):
        sent, got, number = [], [], 0
        for what, size, short in steps:
            data = bytes((number + i) % 251 for i in range(size))
            if what == "put":
                done = here.put(data)
            elif what == "room" and (room := here.put_view(size)) is not None:
                done = len(room) // 2 if short else len(room)
                room.data[:] = data[: len(room)]
                room.done(done)
            else:
                done = 0
            sent += data[:done]
            number += done
            if what == "take":
                got += there.take(max(size, 1)) or b""
            elif what == "view" and (view := there.take_view(max(size, 1))) is not None:
                count = len(view) // 2 if short else len(view)
                got += view.data[:count]
                view.done(count)
            elif what == "turn":
                here.streams.turn()
                there.streams.look()
            assert got == sent[: len(got)]
        here.shutdown()

        def rest():
            if (view := there.take_view()) is None:
                return False
            with view:
                got.extend(view.data)
                return not len(view)

        turn(here.streams, there.streams, rest)
        assert got == sent


def test_a_view_lies_in_the_receive_memory_and_stays_while_more_comes(pair):
    here, there = pair
    here.write(b"first")
    arrives(here, there, 5)
    view = there.take_view()
    here.write(b", second")
    arrives(here, there, 13)
    assert view.data == b"first"
    pointer, count = there.streams.stack.peek(there.number)
    address = np.frombuffer(view.data, np.uint8).__array_interface__["data"][0]
    assert (address, count) == (int(xdpstack.streams.ffi.cast("uintptr_t", pointer)), 13)
    view.done(2)
    with there.take_view() as rest:
        assert rest.data == b"rst, second"
    assert there.take_view() is None


def test_room_is_sent_as_far_as_it_was_committed(pair):
    here, there = pair
    with here.put_view(100) as room:
        assert len(room) == 100
        room.data[:9] = b"committed"
        room.done(9)
    with here.put_view(100) as room:
        room.data[:4] = b"lost"
    here.put(b", then")
    arrives(here, there, 15)
    assert there.take() == b"committed, then"


def test_after_its_end_a_lease_is_used_no_more_and_that_is_counted(pair):
    here, there = pair
    here.write(b"bytes")
    arrives(here, there, 5)
    view = there.take_view()
    kept = view.data
    view.done()
    with pytest.raises(ValueError, match="released"):
        bytes(kept)
    for use in (lambda: view.data, view.done):
        with pytest.raises(LocalProtocolError, match="lease has ended"):
            use()
    room = here.put_view(5)
    room.close()
    room.close()
    with pytest.raises(LocalProtocolError, match="lease has ended"):
        room.done(1)
    assert there.streams.stats()["leased"] == {
        "views": 1, "view_bytes": 5, "rooms": 0, "room_bytes": 0, "misused": 2,
    }  # fmt: skip
    assert here.streams.stats()["leased"]["misused"] == 1


def test_a_lease_does_not_end_while_an_array_looks_at_it(pair):
    here, there = pair
    here.write(b"12345678")
    arrives(here, there, 8)
    view = there.take_view()
    for look in (lambda: np.frombuffer(view.data, np.uint64), lambda: view.data[:], lambda: view.data[0:8:1]):
        array = look()
        with pytest.raises(LocalProtocolError, match="a slice or an array looks at the view"):
            view.done()
        assert array.tobytes() == b"12345678"
        del array
    assert view.data == b"12345678"
    view.done()
    assert there.take() is None


def test_one_view_and_one_room_at_a_time(pair):
    here, there = pair
    here.write(b"bytes")
    arrives(here, there, 5)
    view, room = there.take_view(), here.put_view(8)
    for call in (there.take, there.take_view):
        with pytest.raises(LocalProtocolError, match="a view is leased; give it back first"):
            call()
    for call in (lambda: here.put(b"x"), here.put_view):
        with pytest.raises(LocalProtocolError, match="room is reserved; commit it first"):
            call()
    with pytest.raises(CapacityError, match="9 bytes of a room of 8"):
        room.done(9)
    with pytest.raises(CapacityError, match="6 bytes of a view of 5"):
        view.done(6)
    with pytest.raises(TypeError):
        view.data[0] = 1  # what came is not ours to change
    room.done(0)
    view.close()
    assert there.take() == b"bytes"


def test_an_exception_in_the_block_leaves_what_came_unread(pair):
    here, there = pair
    here.write(b"again")
    arrives(here, there, 5)
    with pytest.raises(KeyError), there.take_view() as view:
        raise KeyError(bytes(view.data))
    assert there.take() == b"again"


def test_closing_the_connection_ends_its_leases(pair):
    here, there = pair
    here.write(b"bytes")
    arrives(here, there, 5)
    view, room = there.take_view(), there.put_view()
    kept = view.data
    array = np.frombuffer(room.data, np.uint8)
    there.close()
    assert view.ended
    assert room.ended
    with pytest.raises(ValueError, match="released"):
        bytes(kept)
    with pytest.raises(LocalProtocolError, match="lease has ended"):
        view.done()
    assert array.nbytes  # stale, not dangling


def test_the_ends_of_a_connection_are_told_by_leases_too(pair):
    here, there = pair
    room = there.put_view()
    here.write(b"last")
    here.shutdown()
    turn(here.streams, there.streams, lambda: there.at_end)
    with there.take_view() as view:
        assert view.data == b"last"
    with there.take_view() as view:
        assert len(view) == 0
    there.shutdown()
    with pytest.raises(BrokenPipeError):
        room.done(1)
    with pytest.raises(BrokenPipeError):
        there.put_view()
    with pytest.raises(BrokenPipeError):
        here.write_view()


def test_waiting_for_room_and_for_bytes(pair):
    here, there = pair
    here.timeout = there.timeout = 0.05
    with pytest.raises(TimeoutError):
        there.read_view()

    def fill():
        while True:  # nobody reads
            here.write_view().done()

    with pytest.raises(TimeoutError):
        fill()
