"""Pipes: the link conformance, the bound, virtual time, and a model under hypothesis."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError, LocalProtocolError
from xdpstack.port import NEVER, PipePort, open_link, pipe
from xdpstack.testing import LinkFlow, check_flow, check_link, make_frames

MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"
PEER = "10.0.0.2", MACS[1]


@contextlib.contextmanager
def pair() -> Iterator[tuple[PipePort, PipePort]]:
    left, right = pipe(512, 2048)
    with left, right:
        yield left, right


def test_a_pipe_is_a_link() -> None:
    check_link(pair)


def test_the_other_direction_is_a_link_too() -> None:
    @contextlib.contextmanager
    def turned() -> Iterator[tuple[PipePort, PipePort]]:
        with pair() as (left, right):
            yield right, left

    check_link(turned)


@pytest.mark.parametrize("to", [("ff15::7", 7000), ("fd00::2", 7000)])
def test_a_pipe_under_host_cores_is_a_flow_over_ipv6(to: tuple[str, int]) -> None:
    @contextlib.contextmanager
    def flow() -> Iterator[tuple[LinkFlow, LinkFlow, tuple[str, int]]]:
        left, right = pipe(512, 2048)
        known = {"fd00::2": PEER[1]}
        with (
            LinkFlow(left, "fd00::1", ("fd00::1", 4000), mac=MACS[0], neighbours=known) as sender,
            LinkFlow(right, "fd00::2", to, mac=MACS[1]) as receiver,
        ):
            yield sender, receiver, to

    check_flow(flow)


@pytest.mark.parametrize("to", [("239.1.2.3", 7000), ("10.0.0.2", 7000)])
def test_a_pipe_under_host_cores_is_a_flow(to: tuple[str, int]) -> None:
    @contextlib.contextmanager
    def flow() -> Iterator[tuple[LinkFlow, LinkFlow, tuple[str, int]]]:
        left, right = pipe(512, 2048)
        with (
            LinkFlow(left, "10.0.0.1", ("10.0.0.1", 4000), mac=MACS[0], neighbours=dict([PEER])) as sender,
            LinkFlow(right, "10.0.0.2", to, mac=MACS[1]) as receiver,
        ):
            yield sender, receiver, to

    check_flow(flow)


def test_a_full_pipe_takes_no_more_and_counts_it() -> None:
    left, right = pipe(8, 128)
    with left, right:
        frames = make_frames(12, longest=100)
        assert left.send(frames) == 8
        assert left.stats()["tx_no_frame"] > 0
        assert [bytes(frame.data) for frame in right.receive(64)] == frames[:8]
        assert left.send(frames[8:]) == 0, "leased frames are not free yet"
        right.release()
        assert left.send(frames[8:]) == 4
        assert [bytes(frame.data) for frame in right.receive(64)] == frames[8:]


def test_nothing_arrives_before_flush() -> None:
    left, right = pipe(8, 128)
    with left, right:
        frames = ffi.new("struct xds_frame[]", 1)
        assert lib.xds_link_reserve(left.handle, frames, 1) == 1
        frames[0].len = 60
        assert lib.xds_link_commit(left.handle, frames, 1) == 1
        assert right.receive(8) == []
        left.flush(77)
        assert [frame.rx_ns for frame in right.receive(8)] == [77]


def test_virtual_time_holds_a_frame_until_its_stamp() -> None:
    left, right = pipe(8, 128, virtual_time=True)
    with left, right:
        assert right.deadline == NEVER
        left.send(make_frames(3, longest=100), now=5, stamps=[100, 200, 300])
        assert right.deadline == 100
        assert right.receive(8, now=99) == []
        assert [frame.rx_ns for frame in right.receive(8, now=200)] == [100, 200]
        assert right.deadline == 300
        assert [frame.rx_ns for frame in right.receive(8)] == [300]


@pytest.mark.parametrize(("slots", "slot_bytes"), [(0, 128), (8, 63), (8, 65537), ((1 << 20) + 1, 128)])
def test_sizes_out_of_bounds_are_named(slots: int, slot_bytes: int) -> None:
    with pytest.raises(ConfigError, match="slots"):
        pipe(slots, slot_bytes)


def test_one_end_may_close_before_the_other() -> None:
    left = open_link("pipe", slots=4, slot_bytes=128)
    assert isinstance(left, PipePort)
    right = left.peer
    left.close()
    with right, pytest.raises(LocalProtocolError):
        left.receive(1)


def test_a_slice_that_outlives_its_burst_keeps_the_memory() -> None:
    left, right = pipe(4, 128)
    left.send([b"x" * 60])
    part = right.receive(1)[0].data[4:8]
    right.release()
    left.close()
    with pytest.raises(BufferError, match="still lives"):
        right.close()
    assert bytes(part) == b"xxxx"
    del part
    right.close()


def test_a_held_port_refuses_to_close() -> None:
    left, right = pipe(4, 128)
    left.hold()
    with pytest.raises(LocalProtocolError, match="engine"):
        left.close()
    left.let_go()
    left.close()
    right.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1), st.integers(1, 6)),
        st.tuples(st.just("receive"), st.integers(0, 1), st.integers(1, 6)),
        st.tuples(st.just("release"), st.integers(0, 1), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_a_pipe_is_two_bounded_queues(steps: list[tuple[str, int, int]]) -> None:
    """The model: for each direction a deque of frames on their way and the number of leased ones."""
    slots, number = 5, 0
    ends = pipe(slots, 64)
    waiting: list[deque[bytes]] = [deque(), deque()]
    leased = [0, 0]
    with ends[0], ends[1]:
        for verb, end, count in steps:
            port, out, inward = ends[end], waiting[end], waiting[1 - end]
            if verb == "send":
                frames = [(number + i).to_bytes(4, "big") * 15 for i in range(count)]
                number += count
                free = slots - len(out) - leased[1 - end]
                taken = port.send(frames)
                assert taken == min(count, free)
                out.extend(frames[:taken])
            elif verb == "receive":
                got = [bytes(frame.data) for frame in port.receive(count)]
                expected = [inward.popleft() for _ in range(min(count, len(inward)))]
                assert got == expected
                leased[end] = len(got)
            else:
                port.release()
                leased[end] = 0
