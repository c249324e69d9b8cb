"""AF_XDP over veth in every mode: chunks, headroom, frames over several chunks, the raw door."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.bpf import Filter
from xdpstack.clock import Clock
from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import Lab, Namespace, pair
from xdpstack.port import Frame, XskPort, row_of
from xdpstack.testing import check_link, make_frames

Pair = tuple[Namespace, Namespace]
EVERYTHING = "any -> test"
JOINED = lib.XDS_FRAME_JOINED


@contextlib.contextmanager
def link(
    ends: Pair, *, mode: str = "auto", sender: dict[str, Any] | None = None, **options: Any
) -> Iterator[tuple[XskPort, XskPort, Filter]]:
    """A sender on v0, a receiver with ``options`` on t0 (``in_a_row``: with its chunks in a row where they
    can be), and the filter that feeds it."""
    venue, trader = ends
    in_a_row = options.pop("in_a_row", False)
    with contextlib.ExitStack() as stack:
        with venue.enter():
            stack.enter_context(Filter.load("v0", mode=mode))
            sends = stack.enter_context(XskPort("v0", **(options if sender is None else sender)))
        with trader.enter():
            row = row_of("t0", options) if in_a_row else 0
            steering = stack.enter_context(Filter.load("t0", mode=mode, rules=EVERYTHING, row=row))
            port = stack.enter_context(XskPort("t0", row=row, **options))
        for queue, fd in port.fds().items():
            steering.set_socket("test", queue, fd)
        yield sends, port, steering


def collect(port: XskPort, count: int, burst: int = 64, patience: float = 5.0) -> list[tuple[bytes, Frame]]:
    got: list[tuple[bytes, Frame]] = []
    end = time.monotonic() + patience
    while len(got) < count and time.monotonic() < end:
        got += [(bytes(frame.data), frame) for frame in port.receive(burst) if ours(frame)]
    port.release()
    return got


def ours(frame: Frame) -> bool:
    return bytes(frame.data[12:14]) == b"\x88\xb5"


def whole(port: XskPort, rx: int, tx: int) -> None:
    """Nothing is under way, and every chunk and frame has one owner."""
    end = time.monotonic() + 60
    while port.flush() and time.monotonic() < end:
        pass
    census = port.census()
    assert sum(n for name, n in census.items() if name.startswith("rx")) == rx
    assert (census["tx_free"], census["tx_reserved"]) == (tx, 0)


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("options", [{}, {"headroom": 504}, {"frame_size": 2048}], ids=str)
def test_pieces_of_long_frames_lie_in_a_row_and_keep_their_last_bytes(
    make_pair: Callable[..., Pair], options: dict[str, int], mode: str
) -> None:
    """All lengths about the end of each chunk, where the stamp of the next frame is written: all are read
    when many more have come, in numbers that go round the UMEM several times."""
    few = {"rx_frames": 256, "rx_ring": 256}
    with link(make_pair(mtu=9000), mode=mode, sender=few, in_a_row=True, **few, **options) as (
        sender,
        port,
        _,
    ):
        row = port.row
        assert row == options.get("frame_size", 4096) - 256 - options.get("headroom", 0)
        lengths = [
            n * row + d for n in range(1, 9015 // row + 1) for d in range(-70, 71) if n * row + d < 9015
        ]
        lengths += [60, 9014] * (len(lengths) // 2)
        random.Random(7).shuffle(lengths)
        payloads = random.Random(8).randbytes(9014)
        frames = [b"\2" * 12 + b"\x88\xb5" + number.to_bytes(4) + payloads[: length - 18]
                  for number, length in enumerate(lengths)]  # fmt: skip
        got: list[tuple[bytes, Frame]] = []
        for at in range(0, len(frames), 25):  # veth delivers while it sends: all lie there before one is read
            assert sender.send(frames[at : at + 25]) == len(frames[at : at + 25])
            got += collect(port, len(frames[at : at + 25]))
        assert len(got) == len(frames)
        for number, ((data, _), frame) in enumerate(zip(got, frames, strict=True)):
            assert data == frame, f"frame {number}: {len(data)} bytes of {len(frame)}"
        before = time.clock_gettime_ns(time.CLOCK_TAI) - 60_000_000_000
        assert all(before < frame.rx_ns for _, frame in got), "each has its stamp, moved or not"
        stats = port.stats()
        several = sum(length > row for length in lengths)
        assert stats["rx_joined"] + stats["rx_in_a_row"] == several + moved_into_two(lengths, row)
        assert stats["rx_joined"] <= several // 20, "only those that go round the UMEM's end are copied"
        assert stats["rx_chain_long"] == stats["rx_chain_malformed"] == stats["rx_dropped"] == 0
        whole(port, 256, port.tx_frames)


def moved_into_two(lengths: list[int], row: int) -> int:
    """Frames of one chunk that get bytes in front, and so take two."""
    return sum(row - 64 < length <= row for length in lengths)


SHAPES = {
    "2048": {"frame_size": 2048},
    "4096": {"frame_size": 4096},
    "4096-headroom-1024": {"frame_size": 4096, "headroom": 1024},
    "2048-headroom-192": {"frame_size": 2048, "headroom": 192},
    "unaligned-2048": {"frame_size": 2048, "unaligned": True},
    "unaligned-4096": {"frame_size": 4096, "unaligned": True},
    "unaligned-4001": {"frame_size": 4001, "unaligned": True},
    "unaligned-3000-headroom-100": {"frame_size": 3000, "unaligned": True, "headroom": 100},
}


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("shape", SHAPES)
def test_frames_come_whole_in_order_and_their_chunks_go_back(
    make_pair: Callable[..., Pair], shape: str, mtu: int, mode: str
) -> None:
    with link(make_pair(mtu=mtu), mode=mode, rx_frames=1024, **SHAPES[shape]) as (sender, port, _):
        assert port.jumbo == (mtu > 1500)
        frames = make_frames(600, longest=mtu + 14)
        got = []
        for at in range(0, 600, 50):
            assert sender.send(frames[at : at + 50]) == 50
            got += collect(port, 50)
        assert [data for data, _ in got] == frames
        stats = port.stats()
        room = SHAPES[shape]["frame_size"] - 256 - SHAPES[shape].get("headroom", 0)
        longer = [len(data) > room for data in frames]
        assert [bool(frame.flags & JOINED) for _, frame in got] == longer, (
            "who came in several chunks says so"
        )
        assert stats["rx_joined"] == sum(longer)
        before = time.clock_gettime_ns(time.CLOCK_TAI) - 60_000_000_000
        assert all(before < frame.rx_ns for _, frame in got), "stamps of the hook arrive in each shape"
        assert stats["rx_invalid"] == stats["rx_dropped"] == stats["rx_ring_full"] == 0
        assert stats["rx_chain_long"] == stats["rx_chain_malformed"] == 0
        assert sender.stats()["tx_invalid"] == 0
        whole(port, 1024, port.tx_frames)
        whole(sender, 1024, sender.tx_frames)


@pytest.mark.parametrize("shape", ["4096", "unaligned-4001"])
def test_jumbo_frames_over_veth_are_a_link(make_pair: Callable[..., Pair], shape: str) -> None:
    @contextlib.contextmanager
    def jumbo() -> Iterator[tuple[XskPort, XskPort]]:
        with link(make_pair(mtu=9000), **SHAPES[shape]) as (sender, port, _):
            yield sender, port

    check_link(jumbo)


def test_without_a_free_slab_joined_frames_wait_in_the_ring(make_pair: Callable[..., Pair]) -> None:
    with link(make_pair(mtu=9000), slabs=4) as (sender, port, _):
        frames = make_frames(40, longest=9014)
        frames = [data if len(data) > 3840 else data + b"x" * (4000 - len(data)) for data in frames]
        assert sender.send(frames) == 40
        got = []
        for _ in range(10):
            part = port.receive(64)
            assert len(part) == 4, "as many as there are slabs"
            got += [bytes(frame.data) for frame in part]
        assert got == frames, "nothing is lost"
        assert port.stats()["rx_chain_waits"] >= 9
        assert port.receive(64) == []
        whole(port, 4096, port.tx_frames)


@pytest.mark.parametrize("burst", [1, 2, 3, 5])
def test_a_burst_never_cuts_a_frame(make_pair: Callable[..., Pair], burst: int) -> None:
    with link(make_pair(mtu=9000), frame_size=2048) as (sender, port, _):
        frames = make_frames(60, longest=9014, seed=burst)
        assert sender.send(frames) == 60
        assert [data for data, _ in collect(port, 60, burst)] == frames
        whole(port, 4096, port.tx_frames)


def test_a_frame_longer_than_the_port_was_opened_for_is_dropped_and_counted(
    make_pair: Callable[..., Pair],
) -> None:
    venue, trader = ends = make_pair(mtu=9000)
    with contextlib.ExitStack() as stack:
        for space, name in ((trader, "t0"), (venue, "v0")):
            set_mtu(space, name, 5000)
        sender, port, _ = stack.enter_context(link(ends))
        for space, name in ((trader, "t0"), (venue, "v0")):
            set_mtu(space, name, 9000)
        with venue.enter():
            sender.close()
            sender = stack.enter_context(XskPort("v0"))
        short, long = make_frames(2, longest=5014)[1], make_frames(2, longest=9014)[1]
        assert sender.send([short, long, long, short]) == 4
        assert [data for data, _ in collect(port, 2)] == [short, short]
        assert port.stats()["rx_chain_long"] == 2
        assert port.stats()["rx_frames"] + port.stats()["rx_chain_long"] == 4
        whole(port, 4096, port.tx_frames)


def set_mtu(space: Namespace, name: str, mtu: int) -> None:
    with space.netlink() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], mtu=mtu)


def test_without_jumbo_a_long_frame_is_the_kernels_drop(make_pair: Callable[..., Pair]) -> None:
    venue, trader = ends = make_pair(mtu=1500)
    with link(ends, sender={"tx_frames": 0}) as (first, port, _):
        for space, name in ((trader, "t0"), (venue, "v0")):
            set_mtu(space, name, 9000)
        first.close()
        with venue.enter(), XskPort("v0") as sender:
            frames = make_frames(2, longest=9014)
            assert sender.send(frames) == 2
            assert [data for data, _ in collect(port, 1)] == frames[:1]
            assert port.stats()["rx_dropped"] == 1


def test_a_longest_frame_fills_the_rings_exactly(make_pair: Callable[..., Pair]) -> None:
    """TX and completion ring have a place for each chunk of each frame."""
    with link(make_pair(mtu=9000), tx_ring=64, frame_size=2048) as (sender, port, _):
        assert sender.tx_frames == 64 // 5, "9,022 bytes take five chunks of 2,048"
        frames = ffi.new("struct xds_frame[]", 64)
        data = make_frames(2, longest=9014)[1]
        for _ in range(20):
            count = lib.xds_link_reserve(sender.handle, frames, 64)
            assert count == 12
            for number in range(count):
                ffi.memmove(frames[number].data, data, len(data))
                frames[number].len = len(data)
            assert lib.xds_link_commit(sender.handle, frames, count) == count
            assert sender.census()["tx_queued"] == count
            sender.flush()
            assert [one for one, _ in collect(port, count)] == [data] * count
            whole(sender, 4096, 12)


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("busy_poll", [0, 20])
@pytest.mark.parametrize("need_wakeup", [True, False])
def test_wake_ups_and_busy_polling_change_nothing_in_what_comes(
    make_pair: Callable[..., Pair], need_wakeup: bool, busy_poll: int, mode: str
) -> None:
    options = {"need_wakeup": need_wakeup, "busy_poll": busy_poll}
    with link(make_pair(), mode=mode, **options) as (sender, port, _):
        frames = make_frames(300)
        assert sender.send(frames) == 300
        assert [data for data, _ in collect(port, 300)] == frames
        port.receive(1)
        assert (port.stats()["rx_wakeups"] > 0) == (busy_poll > 0), "copy mode itself asks for none"
        whole(port, 4096, 2048)


# ---- The raw door ------------------------------------------------------------------------------


def test_raw_descriptors_go_as_they_are_and_the_kernel_counts_the_bad_ones(lab_pair: Pair) -> None:
    with link(lab_pair, sender={"raw": True}) as (sender, port, _):
        frames = ffi.new("struct xds_frame[]", 4)
        assert lib.xds_link_reserve(sender.handle, frames, 4) == 0, "its frames are the test's"
        base, data = 4096 * 2048, make_frames(3)
        umem = sender.umem()
        for number, one in enumerate(data):
            umem[base + number * 2048 :][: len(one)] = one
        good = [(base + number * 2048, len(one), 0) for number, one in enumerate(data)]
        bad = [(len(umem), 60, 0), (base + 2040, 60, 0), (base, 2049, 0), (base, 60, 1 << 7), (base, 0, 0)]
        assert sender.post([good[0], *bad, *good[1:]]) == 8
        sender.flush()
        assert [one for one, _ in collect(port, 3)] == data
        assert sender.stats()["tx_invalid"] == len(bad)


def test_raw_fill_addresses_go_as_they_are_and_the_kernel_passes_bad_ones_over(lab_pair: Pair) -> None:
    with link(lab_pair, sender={}, raw=True, rx_frames=16, rx_ring=16) as (sender, port, _):
        data = make_frames(4, longest=60)
        assert sender.send(data[:2]) == 2
        time.sleep(0.05)
        assert port.receive(8) == []
        assert port.stats()["rx_dropped"] == 2, "nothing was filled"
        umem = len(port.umem())
        assert port.post_fill([umem, 0, 2048 + 77]) == 3
        assert sender.send(data[2:]) == 2
        got = collect(port, 2)
        assert [one for one, _ in got] == data[2:]
        port.release()
        assert port.census()["rx_filled"] == 2, "the chunks went back, the bad address did not come"


def test_the_door_is_shut_on_a_port_that_is_not_raw(lab_pair: Pair) -> None:
    _, trader = lab_pair
    with trader.enter(), XskPort("t0") as port:
        with pytest.raises(ValueError, match="not allowed"):
            port.post([(0, 60, 0)])
        with pytest.raises(ValueError, match="not allowed"):
            port.post_fill([0])


# ---- Any configuration -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labs() -> Iterator[dict[int, Pair]]:
    """A pair with two queues for each MTU."""
    with contextlib.ExitStack() as stack:
        yield {
            mtu: pair(stack.enter_context(Lab(f"modes{random.randrange(1 << 20)}-{mtu}")), mtu=mtu, queues=2)
            for mtu in (1500, 3000, 9000)
        }


powers = st.sampled_from([1, 2, 16, 64, 256, 1024, 4096])
OPTIONS = st.fixed_dictionaries(
    {
        "frame_size": st.one_of(st.sampled_from([0, 2048, 4096]), st.integers(2000, 4200)),
        "unaligned": st.booleans(),
        "headroom": st.one_of(st.just(0), st.integers(0, 4096)),
        "rx_ring": powers,
        "rx_frames": powers,
        "tx_ring": powers,
        "slabs": st.sampled_from([0, 1, 2, 64, 256]),
        "need_wakeup": st.booleans(),
        "busy_poll": st.sampled_from([0, 0, 20]),
        "stamps": st.booleans(),
        "tx_queue": st.sampled_from([None, 0, 1]),
        "jumbo": st.booleans(),
        "huge_pages": st.booleans(),
    }
)


NARROWEST: dict[str, Any] = {
    "frame_size": 2048, "unaligned": False, "headroom": 2048 - 256 - 320 - 128, "slabs": 1, "jumbo": True,
    "rx_ring": 256, "rx_frames": 1024, "tx_ring": 1024, "tx_queue": 1, "need_wakeup": True, "busy_poll": 0,
    "stamps": True, "huge_pages": False,
}  # fmt: skip
"""As much headroom as the kernel allows."""
CUT: dict[str, Any] = NARROWEST | {
    "frame_size": 2609, "unaligned": True, "headroom": 0, "slabs": 64, "tx_ring": 2,
}  # fmt: skip
"""Two chunks a frame, and no place for the descriptor that ends at a page."""


def refusal(options: dict[str, Any], mtu: int) -> str:
    """A word of the reason why a configuration is refused, or nothing: the rules, a second time."""
    size = options["frame_size"] or (2048 if mtu + 22 <= 1792 else 4096)
    if not options["unaligned"] and size not in (2048, 4096):
        return "frame_size"
    if not 2048 <= size <= 4096:
        return "frame_size"
    if options["headroom"] > size - 256 - 320 - 128:
        return "headroom"
    if mtu + 22 <= size - 256 - options["headroom"]:
        return ""
    if not options["jumbo"]:
        return "MTU"
    if options["slabs"] == 0:
        return "slabs"
    each = -(-(mtu + 22) // size)
    in_a_row = options.get("in_a_row") and (size - 256 - options["headroom"]) % 8 == 0
    if options["unaligned"] and each > 1 and not in_a_row:
        each += 1  # a descriptor ends at a page's end as well
    return "tx_ring has no room" if options["tx_ring"] < each and options.get("tx_frames") != 0 else ""


CONFIGURATIONS = int(os.environ.get("XDS_CONFIGURATIONS", "8"))
"""Valid ones that are carried through: ``make soak`` takes more."""
COMPARED, FRAMES = 3_000, 1_000_000
"""Frames that each carries: compared byte by byte; in all."""
RELAXED: dict[str, Any] = {
    "deadline": None,
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],  # a failure names its configuration at once
    "suppress_health_check": [
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
    ],
}
MTUS = st.sampled_from([1500, 3000, 9000])


@settings(max_examples=150, **RELAXED)
@example(options=dict(NARROWEST), mtu=9000)
@example(options=dict(CUT), mtu=3000)
@given(options=OPTIONS, mtu=MTUS)
def test_a_configuration_opens_or_is_refused_with_the_reason(
    labs: dict[int, Pair], options: dict[str, Any], mtu: int
) -> None:
    why = refusal(options, mtu)
    with labs[mtu][1].enter():
        if why:
            with pytest.raises((ConfigError, SetupError), match=why):
                XskPort("t0", **options)
            return
        with XskPort("t0", **options) as port:
            whole(port, options["rx_frames"], port.tx_frames)


def window_of(options: dict[str, Any], mtu: int) -> int:
    """How many of the longest frames the rings of a valid configuration hold."""
    size = options["frame_size"] or (2048 if mtu + 22 <= 1792 else 4096)
    moved = 64 if options["in_a_row"] else 0
    per_frame = -(-(mtu + 14 + moved) // (size - 256 - options["headroom"]))
    return min(options["rx_ring"], options["rx_frames"], 64 * per_frame) // per_frame


@pytest.mark.timeout(120 + 60 * CONFIGURATIONS)
@settings(max_examples=CONFIGURATIONS, **RELAXED)
@given(options=OPTIONS, in_a_row=st.booleans(), mtu=MTUS, seed=st.integers(0, 1 << 30))
def test_a_valid_configuration_carries_a_million_frames_and_each_chunk_keeps_one_owner(
    labs: dict[int, Pair], options: dict[str, Any], in_a_row: bool, mtu: int, seed: int
) -> None:
    options |= {"in_a_row": in_a_row}
    assume(not refusal(options, mtu) and window_of(options, mtu) > 0)
    window, chance = window_of(options, mtu), random.Random(seed)
    patterns = [(one, len(one)) for one in make_frames(16, longest=mtu + 14, seed=seed)]
    with link(labs[mtu], sender={}, **options) as (sender, port, _):
        carry(sender, port, patterns, window, chance)
        whole(port, options["rx_frames"], port.tx_frames)
        carry_numbers(sender, port, [length for _, length in patterns], window)
        whole(port, options["rx_frames"], port.tx_frames)
        whole(sender, 4096, sender.tx_frames)
        stats = port.stats()
        assert stats["rx_frames"] >= FRAMES
        assert stats["rx_invalid"] == stats["rx_dropped"] == stats["rx_ring_full"] == 0
        assert stats["rx_chain_long"] == stats["rx_chain_malformed"] == 0


def carry_numbers(sender: XskPort, port: XskPort, lengths: list[int], window: int) -> None:
    """The rest of the million, by the generator and its counter: each once, in order, at full length."""
    datagrams = []
    for length in (max(length, 60) for length in lengths):
        head = (
            b"\xff" * 6
            + b"\x02\0\0\0\0\1\x08\0"
            + struct.pack("!BBHIBBH", 0x45, 0, length - 14, 0, 64, 17, 0)
        )
        head += bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack("!HHHH", 1, 2, length - 34, 0)
        datagrams.append(ffi.from_buffer(head.ljust(length, b"\x5a")))
    frames = ffi.new("struct xds_traffic_frame[]", [(one, len(one), 42) for one in datagrams])
    seen, clock = ffi.new("uint64_t[]", lib.XDS_TRAFFIC_WINDOW // 64), Clock().pointer
    out, into = ffi.new("struct xds_traffic_send *"), ffi.new("struct xds_traffic_receive *", {"seen": seen})
    out.frames, out.frame_count, out.batch, out.duration_ns = frames, len(lengths), window, 3600 * 10**9
    while out.sent < FRAMES - COMPARED:
        out.count += window
        assert lib.xds_traffic_send(out, sender.handle, clock, 5 * 10**9) == 1
        into.want = out.sent
        came = lib.xds_traffic_receive_link(into, port.handle, clock, 5 * 10**9)
        assert came == 1, f"{out.sent - into.received} frames did not come: {port.stats()}"
    assert (into.received, into.bytes) == (out.sent, out.bytes)
    assert into.doubled == into.reordered == into.stale == 0
    assert into.next == out.sent


def carry(
    sender: XskPort, port: XskPort, patterns: list[tuple[bytes, int]], window: int, chance: random.Random
) -> None:
    """Send numbered frames in bursts of at most ``window``; each must come once, whole and in order."""
    out, into = ffi.new("struct xds_frame[]", 64), ffi.new("struct xds_frame[]", 64)
    order = itertools.cycle(chance.sample(range(len(patterns)), len(patterns)))
    sent = 0
    while sent < COMPARED:
        want = lib.xds_link_reserve(sender.handle, out, min(window, chance.randint(1, 64), sender.tx_frames))
        expected = []
        for number in range(want):
            data, length = patterns[next(order)]
            ffi.memmove(out[number].data, data, length)
            ffi.buffer(out[number].data, length)[14:18] = sent.to_bytes(4, "big")
            out[number].len = length
            expected.append((data, length, sent))
            sent += 1
        assert lib.xds_link_commit(sender.handle, out, want) == want
        got, end = 0, time.monotonic() + 60
        while got < want:
            lib.xds_link_flush(sender.handle, 0)
            count = lib.xds_link_rx(port.handle, into, chance.randint(1, 64), 1)
            for frame in into[0:count]:
                received = ffi.buffer(frame.data, frame.len)
                if received[12:14] != b"\x88\xb5":
                    continue
                data, length, number = expected[got]
                assert len(received) == length
                assert received[14:18] == number.to_bytes(4, "big"), "in order"
                assert received[:14] == data[:14]
                assert received[18:] == data[18:], "whole"
                got += 1
            lib.xds_link_release(port.handle)
            assert time.monotonic() < end, f"{want - got} of {want} frames did not come: {port.stats()}"
