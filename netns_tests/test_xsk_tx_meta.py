"""AF_XDP over veth: what a frame is sent with: a checksum, a time stamp, a launch time."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from netns_tests.test_xsk_modes import Pair, collect, link, whole
from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.port import XskPort
from xdpstack.testing import make_frames

META: dict[str, Any] = {"tx_metadata": True, "tx_software_checksum": True}


def ones_sum(data: bytes) -> int:
    """The one's complement sum of RFC 1071, not inverted."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("shape", [{}, {"frame_size": 4096}, {"frame_size": 3000, "unaligned": True}])
def test_the_kernel_completes_a_checksum(lab_pair: Pair, shape: dict[str, Any]) -> None:
    chance = random.Random(1)
    with link(lab_pair, sender={**META, **shape}) as (sender, port, _):
        assert sender.tx_features == {"tx-timestamp", "tx-checksum"}
        for frame in make_frames(200, seed=3):
            start = chance.randrange(14, len(frame) - 18)
            place = chance.randrange(0, len(frame) - start - 2)
            pseudo = chance.randrange(1 << 16)  # what a sender puts there: the pseudo-header's sum
            data = bytearray(frame)
            data[start + place : start + place + 2] = pseudo.to_bytes(2, "big")
            expected = 0xFFFF - ones_sum(bytes(data[start:]))
            assert sender.send_one(data, checksum=(start, place))
            ((got, _),) = collect(port, 1)
            data[start + place : start + place + 2] = (expected or 0xFFFF).to_bytes(2, "big")
            assert got == bytes(data)
        whole(sender, 4096, 2048)


def test_a_time_stamp_comes_back_with_its_cookie(lab_pair: Pair) -> None:
    with link(lab_pair, sender=META) as (sender, port, _):
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        for number, frame in enumerate(make_frames(100)):
            assert sender.send_one(frame, stamp=number % 2 == 0, cookie=number + 7)
        collect(port, 100)
        stamps, end = sender.tx_stamps(), time.monotonic() + 60
        while len(stamps) < 50 and time.monotonic() < end:
            stamps += sender.tx_stamps()
        after = time.clock_gettime_ns(time.CLOCK_TAI)
        assert [cookie for cookie, _ in stamps] == list(range(7, 107, 2)), "only who asked, in order"
        assert all(before <= ns <= after for _, ns in stamps)
        whole(sender, 4096, 2048)


def test_a_plain_frame_asks_for_nothing_even_where_the_last_one_did(lab_pair: Pair) -> None:
    with link(lab_pair, sender={**META, "tx_ring": 4}) as (sender, port, _):
        for frame in make_frames(4):
            sender.send_one(frame, stamp=True, checksum=(14, 4))
        collect(port, 4)
        whole(sender, 4096, 4)
        assert len(sender.tx_stamps()) == 4
        frames = make_frames(40, seed=5)
        for at in range(0, 40, 4):
            assert sender.send(frames[at : at + 4]) == 4
            assert [data for data, _ in collect(port, 4)] == frames[at : at + 4]
        assert sender.tx_stamps() == []


def test_stamps_that_nobody_fetches_are_bounded_and_counted(lab_pair: Pair) -> None:
    with link(lab_pair, sender=META) as (sender, port, _):
        for number in range(1100):
            sender.send_one(b"\xff" * 60, stamp=True, cookie=number)
            port.receive(64)
        whole(sender, 4096, 2048)
        assert [cookie for cookie, _ in sender.tx_stamps()] == list(range(1024))
        assert sender.stats()["tx_stamps_lost"] == 76


def test_a_frame_over_several_chunks_carries_its_metadata_once(make_pair: Callable[..., Pair]) -> None:
    shape = {"frame_size": 4001, "unaligned": True}
    with link(make_pair(mtu=9000), sender={**META, **shape}, **shape) as (sender, port, _):
        frames = make_frames(50, longest=9014)
        for number, frame in enumerate(frames):
            assert sender.send_one(frame, stamp=True, cookie=number)
        assert [data for data, _ in collect(port, 50)] == frames
        whole(sender, 4096, sender.tx_frames)
        assert [cookie for cookie, _ in sender.tx_stamps()] == list(range(50))
        assert sender.stats()["tx_invalid"] == 0


def test_metadata_and_several_aligned_chunks_are_refused_with_the_reason(
    make_pair: Callable[..., Pair],
) -> None:
    _, trader = make_pair(mtu=9000)
    with trader.enter(), pytest.raises(ConfigError, match="unaligned chunks, or a smaller MTU"):
        XskPort("t0", tx_metadata=True)


def test_what_the_port_or_driver_has_not_is_refused_by_name(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter(), XskPort("t0") as port:
        assert port.tx_features == frozenset()
        with pytest.raises(SetupError, match=r"tx-timestamp .* there is none"):
            port.send_one(b"x" * 60, stamp=True)
        assert port.send_one(b"x" * 60), "without a wish it is an ordinary frame"
        frames = ffi.new("struct xds_frame[]", 1)
        assert lib.xds_link_reserve(port.handle, frames, 1) == 1
        assert lib.xds_xsk_tx_meta(port.handle, frames) == ffi.NULL
        frames[0].len = 0
        assert lib.xds_link_commit(port.handle, frames, 1) == 0
    with trader.enter(), XskPort("t0", tx_metadata=True) as port:
        with pytest.raises(SetupError, match=r"tx-launch-time-fifo .* there is tx-checksum, tx-timestamp"):
            port.send_one(b"x" * 60, launch_ns=1)
        with pytest.raises(ValueError, match="1 to"):
            port.send_one(b"x" * 5000, stamp=True)
        whole(port, 4096, 2048)
