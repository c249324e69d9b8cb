"""Lines between two processes: whole, in order, never waited for longer than said."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from xdpstack.lines import Lines


@pytest.fixture
def ends():
    one, other = (Lines(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def test_lines_come_whole_and_in_order_however_they_were_cut(ends):
    one, other = ends
    large = {"text": "x" * 300_000}
    writer = threading.Thread(target=lambda: [one.write(said) for said in ({"a": 1}, large, {"b": [2]})])
    writer.start()
    assert [other.read(5.0) for _ in range(3)] == [{"a": 1}, large, {"b": [2]}]
    writer.join()
    assert other.read(0.0) is None


def test_half_a_line_is_kept_until_the_rest_comes():
    one, end = socket.socketpair()
    with one:
        other = Lines(end)
        one.sendall(b'{"a":')
        assert other.read(0.05) is None
        one.sendall(b' 1}\n{"b": 2}\n')
        assert (other.read(1.0), other.read(0.0)) == ({"a": 1}, {"b": 2})
        other.close()


def test_silence_and_an_end_are_none_in_time(ends):
    one, other = ends
    begin = time.monotonic()
    assert other.read(0.1) is None
    assert 0.1 <= time.monotonic() - begin < 2
    one.write({"last": True})
    one.close()
    assert not one.is_open
    assert other.read(1.0) == {"last": True}
    assert other.read(10.0) is None
    assert time.monotonic() - begin < 5
    with pytest.raises(BrokenPipeError):
        other.write({})


def test_room_is_told_before_a_write_would_wait(ends):
    one, _ = ends
    written = 0
    while one.has_room and written < 100_000:
        one.write({"alert": "y" * 100})
        written += 1
    assert 20 < written < 100_000
