"""The kernel's own list of AF_XDP tests by the same names: order and content of every frame are checked.

Each in native and generic mode, with and without busy polling, over veth; over real ports by
`make test-nic IFACE=eth1 [PEER=eth2]`, in zero-copy as well. What a host cannot do is skipped with a reason.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netns_tests import xsk_list as ground
from netns_tests.xsk_list import (
    BATCH,
    CHUNKS,
    CONTD,
    COUNT,
    JUMBO,
    LEAST,
    NIC,
    Beds,
    Entry,
    Program,
    Rig,
    collect,
    frames,
    kick,
    rig,
    same,
    select_in,
    select_out,
    sender_fd,
)

NAMES = """
    SEND_RECEIVE SEND_RECEIVE_2K_FRAME SEND_RECEIVE_SINGLE_PKT POLL_RX POLL_TX POLL_RXQ_FULL
    POLL_TXQ_FULL ALIGNED_INV_DESC ALIGNED_INV_DESC_2K_FRAME_SIZE UNALIGNED_INV_DESC
    UNALIGNED_INV_DESC_4001_FRAME_SIZE UMEM_HEADROOM BIDIRECTIONAL STAT_RX_DROPPED STAT_TX_INVALID
    STAT_RX_FULL STAT_FILL_EMPTY XDP_PROG_CLEANUP XDP_DROP_HALF XDP_SHARED_UMEM XDP_METADATA_COPY
    XDP_METADATA_COPY_MULTI_BUFF ALIGNED_INV_DESC_MULTI_BUFF UNALIGNED_INV_DESC_MULTI_BUFF
    TOO_MANY_FRAGS XDP_ADJUST_TAIL_SHRINK XDP_ADJUST_TAIL_GROW XDP_ADJUST_TAIL_SHRINK_MULTI_BUFF
    XDP_ADJUST_TAIL_GROW_MULTI_BUFF SEND_RECEIVE_9K_PACKETS SEND_RECEIVE_UNALIGNED
    SEND_RECEIVE_UNALIGNED_9K_PACKETS TX_QUEUE_CONSUMER TEARDOWN HW_SW_MIN_RING_SIZE HW_SW_MAX_RING_SIZE
""".split()  # noqa: SIM905

MODES = ["native", "generic", *(["zerocopy"] if NIC else [])]
TOO_LONG = JUMBO + 1
"""Bytes that no descriptor may have."""
LARGE, WHOLE = 3072, 4096
"""Bytes of a descriptor: most of a chunk, all of one."""
UNALIGNED = {"unaligned": True, "frame_size": 4096}
RAW = {"raw": True}

Make = Callable[..., contextlib.AbstractContextManager[Rig]]


def test_the_list_is_the_kernels() -> None:
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {name for name in here if name.isupper()} == set(NAMES)


@pytest.fixture(scope="module")
def beds() -> Iterator[Beds]:
    made = Beds()
    with made.stack:
        yield made


@pytest.fixture(params=MODES, scope="module")
def mode(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture(params=[False, True], ids=["", "busy"])
def busy(request: pytest.FixtureRequest) -> bool:
    value: bool = request.param
    return value


@pytest.fixture
def make(beds: Beds, mode: str, busy: bool) -> Make:
    """Rigs in this mode: ``make(mtu=9000, rx={…}, tx={…}, program="…")``."""
    return lambda mtu=1500, **more: rig(beds.get(mtu), mode, busy, **more)


# ---- sending and receiving ---------------------------------------------------------------------------


def test_SEND_RECEIVE(make: Make) -> None:
    with make(rx={"frame_size": 4096}) as ends:
        ends.carry(frames(ends.bed, COUNT))


def test_SEND_RECEIVE_2K_FRAME(make: Make) -> None:
    with make(rx={"frame_size": 2048}) as ends:
        ends.carry(frames(ends.bed, COUNT))


def test_SEND_RECEIVE_SINGLE_PKT(make: Make) -> None:
    with make() as ends:
        ends.carry(frames(ends.bed, 1))
        assert collect(ends.rx, 1, patience=0.1) == [], "one frame comes once"


def test_SEND_RECEIVE_9K_PACKETS(make: Make) -> None:
    with make(mtu=JUMBO, rx={"slabs": BATCH}) as ends:
        ends.carry(frames(ends.bed, COUNT, JUMBO))


def test_SEND_RECEIVE_UNALIGNED(make: Make, mode: str) -> None:
    """Every second frame lies across the end of a page, on both sides. In zero-copy not of a huge page: the
    next one lies anywhere in memory, and the kernel refuses what is not in one piece there."""
    with make(rx={**UNALIGNED, **RAW}) as ends:
        huge, across = 2 << 20, LEAST // 2
        if mode == "zerocopy" and not ends.tx.stats()["huge_pages"] * ends.rx.stats()["huge_pages"]:
            pytest.skip("in zero-copy a frame lies across small pages by luck; sysctl vm.nr_hugepages=64")
        pages = [page for page in range(1, CHUNKS) if page * 4096 % huge]
        places = [pages[n % len(pages)] * 4096 - (across if n % 2 else 0) for n in range(COUNT)]
        _fill(ends.rx, [place - 256 for place in places[: CHUNKS // 2]])
        sent, seen = frames(ends.bed, COUNT), []
        for at in range(0, COUNT, BATCH):
            part = sent[at : at + BATCH]
            ends.post([Entry(place, LEAST, 0, one) for place, one in zip(places[at:], part, strict=False)])
            ends.drain()
            got = collect(ends.rx, len(part))
            same([data for data, _ in got], part)
            seen += got
        assert ends.tx.stats()["tx_invalid"] == 0


def test_SEND_RECEIVE_UNALIGNED_9K_PACKETS(make: Make) -> None:
    with make(mtu=JUMBO, rx={**UNALIGNED, "slabs": BATCH}) as ends:
        ends.carry(frames(ends.bed, COUNT // 2, JUMBO))


def test_UMEM_HEADROOM(make: Make) -> None:
    headroom = 128
    with make(rx={"frame_size": 4096, "headroom": headroom}) as ends:
        ends.carry(frames(ends.bed, COUNT // 2))
        assert ends.tx.send(frames(ends.bed, 1)) == 1
        end = None
        while end is None:
            got = [frame for frame in ends.rx.receive(8) if ground.is_ours(frame)]
            end = got[0] if got else None
        place = _address(end.data) - _address(ends.rx.umem())
        assert place % 4096 == 256 + headroom, "the kernel's room, then ours, then the packet"
        del end, got
        ends.rx.release()


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def _fill(port: Any, addresses: list[int]) -> None:
    assert port.post_fill(addresses) == len(addresses)
    select_in(port.fileno(), 0)  # poll() wakes a driver that waits for chunks


def test_BIDIRECTIONAL(make: Make) -> None:
    with make(both=True) as ends:
        if ends.bed.looped:
            pytest.skip("one looped interface has one direction")
        ends.carry(frames(ends.bed, COUNT // 2))
        there, back = frames(ends.bed, COUNT // 2), frames(ends.bed, COUNT // 2, back=True)
        for at in range(0, len(back), BATCH):
            assert ends.rx.send(back[at : at + BATCH]) == ends.tx.send(there[at : at + BATCH]) == BATCH
            same([data for data, _ in collect(ends.tx, BATCH)], back[at : at + BATCH])
            same([data for data, _ in collect(ends.rx, BATCH)], there[at : at + BATCH])


def test_TEARDOWN(make: Make) -> None:
    for _ in range(10):
        with make() as ends:
            ends.carry(frames(ends.bed, COUNT // 8))


# ---- poll() --------------------------------------------------------------------------------------------


def test_POLL_RX(make: Make) -> None:
    with make() as ends:
        ends.carry(frames(ends.bed, COUNT // 2), poll=True)


def test_POLL_TX(make: Make) -> None:
    """poll() for room drives what is posted; in copy mode nothing else is needed."""
    with make(tx=RAW) as ends:
        sent = frames(ends.bed, COUNT // 2)
        for at in range(0, len(sent), BATCH):
            part = sent[at : at + BATCH]
            ends.post([Entry(number * 2048, LEAST, 0, one) for number, one in enumerate(part)])
            end = ground.time.monotonic() + ground.PATIENCE
            while ground.time.monotonic() < end:
                assert select_out(sender_fd(ends.tx), 1000), "there is room in the ring"
                if not ends.tx.census()["tx_queued"]:
                    break
            same([data for data, _ in collect(ends.rx, len(part))], part)
            ends.drain()


def test_POLL_RXQ_FULL(make: Make) -> None:
    """Nobody sends: the receiver's poll() ends by its time."""
    with make() as ends:
        assert collect(ends.rx, 1, patience=0.05) == []
        if ends.bed.veth:
            assert not select_in(ends.rx.fileno(), 100)


def test_POLL_TXQ_FULL(make: Make) -> None:
    """Nobody takes completions back: the rings fill, and the sender's poll() ends by its time."""
    with make(tx=RAW) as ends:
        fd, posted = sender_fd(ends.tx), 0
        one = frames(ends.bed, 1)[0]
        while select_out(fd, 100):
            ends.post([Entry(0, LEAST, 0, one)])
            posted += 1
            while posted % BATCH and ends.tx.census()["tx_queued"] < BATCH and posted < 20_000:
                ends.post([Entry(0, LEAST)])
                posted += 1
            assert posted < 20_000, "the rings never filled"
        assert posted >= 2048, "it says full only when it is"
        ends.drain()
        assert select_out(fd, 100), "completions taken back make room again"


# ---- descriptors that the kernel must refuse --------------------------------------------------------------


def _invalid(ends: Rig, chunk: int, unaligned: bool) -> None:
    """Valid descriptors between invalid ones: those come, in order; these are counted."""
    size = len(ends.tx.umem(len(ends.tx.queues)))
    ends.tx.release()
    across_page, across_2k = unaligned, unaligned or chunk > 2048
    table = [
        (0, LEAST, True),  # the first byte of the UMEM
        (chunk * 2 if not unaligned else 0x2000, LEAST, True),
        (-2, LEAST, False),  # across its start
        (0, TOO_LONG, False),
        (size - LEAST, LEAST, True),  # up to its end
        (size, LEAST, False),  # behind it
        (size - LEAST // 2, LEAST, False),  # across its end
        (0x5000 - LEAST // 2, LEAST, across_page),
        (0x6800 - LEAST // 2, LEAST, across_2k),
        (0x8000, LEAST, True),
    ]
    made = iter(frames(ends.bed, len(table)))
    entries = [Entry(addr, length, 0, next(made) if good else b"") for addr, length, good in table]
    ends.post(entries)
    ends.drain()
    good = [entry.data for entry in entries if entry.data]
    same([data for data, _ in collect(ends.rx, len(good))], good)
    assert collect(ends.rx, 1, patience=0.05) == []
    assert ends.tx.stats()["tx_invalid"] == len(entries) - len(good)


def test_ALIGNED_INV_DESC(make: Make) -> None:
    with make(tx={**RAW, "frame_size": 4096}) as ends:
        _invalid(ends, 4096, False)


def test_ALIGNED_INV_DESC_2K_FRAME_SIZE(make: Make) -> None:
    with make(tx={**RAW, "frame_size": 2048}) as ends:
        _invalid(ends, 2048, False)


def test_UNALIGNED_INV_DESC(make: Make) -> None:
    with make(tx={**RAW, **UNALIGNED}) as ends:
        _invalid(ends, 4096, True)


def test_UNALIGNED_INV_DESC_4001_FRAME_SIZE(make: Make) -> None:
    """The UMEM ends in the middle of a page."""
    with make(tx={**RAW, "unaligned": True, "frame_size": 4001}) as ends:
        rest = len(ends.tx.umem(len(ends.tx.queues))) % 4096
        ends.tx.release()
        assert LEAST < rest < 4096 - LEAST, "the test is of a UMEM that ends within a page"
        _invalid(ends, 4001, True)


def _chains(ends: Rig, unaligned: bool) -> None:
    """Frames over several descriptors: one bad descriptor spoils its frame and no other."""
    size = len(ends.tx.umem(len(ends.tx.queues)))
    ends.tx.release()
    first, long, across, last = frames(ends.bed, 4, [LEAST, 2 * WHOLE, LARGE + LEAST, LEAST])
    bad = [  # the bad one is the last of its frame: kernels differ in what they take from behind it
        *(Entry(0x2000, LARGE, CONTD), Entry(0x3000, LARGE, CONTD), Entry(0x4000, 0)),  # none is empty
        *(Entry(0x2000, LARGE, CONTD), Entry(size, LARGE)),  # outside
        *(Entry(0x2000, LARGE, CONTD), Entry(0x3000, TOO_LONG)),
        *(Entry(0x2000, LARGE, CONTD), Entry(0x3000, LARGE, 0xFFFE)),  # unknown options
    ]
    two = [Entry(0x10000, WHOLE, CONTD, long[:WHOLE]), Entry(0x11000, WHOLE, 0, long[WHOLE:])]
    edge = 0x15000 - LEAST // 2  # legal where chunks are not aligned
    crossing = [
        Entry(0x12000, LARGE, CONTD, across[:LARGE]),
        Entry(edge, LEAST, 0, across[LARGE:] if unaligned else b""),
    ]
    ends.post([Entry(0, LEAST, 0, first), *bad, *two, *crossing, Entry(0x18000, LEAST, 0, last)])
    ends.drain()
    good = [first, long, *([across] if unaligned else []), last]
    same([data for data, _ in collect(ends.rx, len(good))], good)
    assert collect(ends.rx, 1, patience=0.05) == []
    assert ends.tx.stats()["tx_invalid"] > 0


def test_ALIGNED_INV_DESC_MULTI_BUFF(make: Make) -> None:
    with make(mtu=JUMBO, tx={**RAW, "frame_size": 4096}, rx={"frame_size": 4096}) as ends:
        _chains(ends, False)


def test_UNALIGNED_INV_DESC_MULTI_BUFF(make: Make) -> None:
    with make(mtu=JUMBO, tx={**RAW, **UNALIGNED}, rx=UNALIGNED) as ends:
        _chains(ends, True)


def test_TOO_MANY_FRAGS(make: Make, mode: str) -> None:
    """As many descriptors as a frame may have, then as many and one more."""
    most = _most_descriptors(mode)
    with make(mtu=JUMBO, tx={**RAW, "frame_size": 4096}) as ends:
        first, long, last = frames(ends.bed, 3, [LEAST, most * LEAST, LEAST])
        pieces = [
            Entry((8 + i) * 4096, LEAST, CONTD if i < most - 1 else 0, long[i * LEAST : (i + 1) * LEAST])
            for i in range(most)
        ]
        endless = [Entry((64 + i) * 4096, LEAST, CONTD if i < most else 0) for i in range(most + 1)]
        ends.post([Entry(0, LEAST, 0, first), *pieces, *endless, Entry(4096, LEAST, 0, last)])
        ends.drain()
        same([data for data, _ in collect(ends.rx, 3)], [first, long, last])
        assert collect(ends.rx, 1, patience=0.05) == []


def _most_descriptors(mode: str) -> int:
    if mode == "zerocopy":
        from xdpstack.netdev import capabilities

        index = ground.socket.if_nametoindex(NIC)
        most = capabilities(index).zc_max_segs or 1
        if most < 2:
            pytest.skip(f"{NIC} takes one descriptor a frame in zero-copy")
        return int(most)
    path = Path("/proc/sys/net/core/max_skb_frags")
    return int(path.read_text()) + 1  # the first lies in the skb's own head


# ---- what the kernel counts ------------------------------------------------------------------------------


def test_STAT_RX_DROPPED(make: Make, mode: str) -> None:
    """Every second frame is longer than a chunk has room for behind its headroom."""
    if mode == "zerocopy":
        pytest.skip("in zero-copy the NIC, not the kernel, drops what is too long")
    room, longer = 1024, 1100  # newer kernels keep 320 bytes of it for themselves
    options = {"frame_size": 4096, "headroom": 4096 - 256 - room, "raw": True, "jumbo": False}
    with make(rx=options, tx={}) as ends:
        _fill(ends.rx, [number * 4096 for number in range(CHUNKS)])
        sent = frames(ends.bed, COUNT // 2, [longer if n % 2 else LEAST for n in range(COUNT // 2)])
        for at in range(0, len(sent), BATCH):
            part = sent[at : at + BATCH]
            assert ends.tx.send(part) == BATCH
            same([data for data, _ in collect(ends.rx, BATCH // 2)], part[::2])
        assert ends.rx.stats()["rx_dropped"] == len(sent) // 2


def test_STAT_TX_INVALID(make: Make) -> None:
    with make(tx={**RAW, "frame_size": 4096}) as ends:
        sent = frames(ends.bed, COUNT)
        for at in range(0, COUNT, BATCH):
            part = sent[at : at + BATCH]
            ends.post(
                [
                    Entry(0, TOO_LONG) if number % 2 else Entry(number * 4096, LEAST, 0, one)
                    for number, one in enumerate(part)
                ]
            )
            ends.drain()
            same([data for data, _ in collect(ends.rx, BATCH // 2)], part[::2])
        assert ends.tx.stats()["tx_invalid"] == COUNT // 2


def test_STAT_RX_FULL(make: Make) -> None:
    """The receiver takes nothing; there are more chunks than places in its ring."""
    many = CHUNKS + CHUNKS // 2
    with make(rx={"rx_ring": CHUNKS, "rx_frames": 2 * CHUNKS}) as ends:
        sent = frames(ends.bed, many)
        assert ends.tx.send(sent) == many
        _until(lambda: ends.rx.stats()["rx_ring_full"])
        same([data for data, _ in collect(ends.rx, CHUNKS)], sent[:CHUNKS])
        assert collect(ends.rx, 1, patience=0.05) == []
        stats = ends.rx.stats()
        assert stats["rx_ring_full"] == many - CHUNKS or not ends.bed.veth, "a real port may hold some back"


def test_STAT_FILL_EMPTY(make: Make) -> None:
    """Chunks are given once and never again."""
    many = CHUNKS + CHUNKS // 2
    with make(rx={**RAW, "rx_ring": 2 * CHUNKS, "rx_frames": 2 * CHUNKS, "frame_size": 2048}, tx={}) as ends:
        _fill(ends.rx, [number * 2048 for number in range(CHUNKS)])
        sent = frames(ends.bed, many)
        assert ends.tx.send(sent) == many
        _until(lambda: ends.rx.stats()["rx_fill_empty"])
        stats = ends.rx.stats()
        assert stats["rx_fill_empty"] == many - CHUNKS or not ends.bed.veth
        same([data for data, _ in collect(ends.rx, CHUNKS)], sent[:CHUNKS])


def _until(seen: Callable[[], int]) -> None:
    end = ground.time.monotonic() + ground.PATIENCE
    while not seen():
        assert ground.time.monotonic() < end, "the kernel counted nothing"
        ground.time.sleep(0.01)


def test_TX_QUEUE_CONSUMER(make: Make, mode: str) -> None:
    """One kick takes its budget and says so at once: the consumer's place moves by just as many."""
    if mode == "zerocopy":
        pytest.skip("a budget a kick is copy mode's")
    budget = 32
    with make(tx={**RAW, "tx_budget": budget}) as ends:
        sent = frames(ends.bed, budget + 1)
        ends.post([Entry(number * 2048, LEAST, 0, one) for number, one in enumerate(sent)])
        assert ends.tx.census()["tx_queued"] == budget + 1
        assert kick(sender_fd(ends.tx)) == errno.EAGAIN
        assert ends.tx.census()["tx_queued"] == 1
        assert kick(sender_fd(ends.tx)) == 0
        assert ends.tx.census()["tx_queued"] == 0
        same([data for data, _ in collect(ends.rx, budget + 1)], sent)


# ---- programs ----------------------------------------------------------------------------------------------


def test_XDP_PROG_CLEANUP(make: Make, mode: str) -> None:
    """A queue's sockets go, the program stays, and the sockets of another one receive by it."""
    with make() as first:
        bed, steering = first.bed, first.steering
        first.carry(frames(bed, COUNT // 4))
    chosen = mode != "generic" and bed.veth  # veth names no other queue to the generic hook; NICs choose
    with make(queue=1 if chosen else 0) as second:
        assert second.steering is steering, "nothing was attached anew"
        second.carry(frames(bed, COUNT // 4))


def test_XDP_DROP_HALF(make: Make) -> None:
    with make(program="list_drop_half") as ends:
        sent = frames(ends.bed, COUNT)
        for at in range(0, COUNT, BATCH):
            assert ends.tx.send(sent[at : at + BATCH]) == BATCH
            same([data for data, _ in collect(ends.rx, BATCH // 2)], sent[at : at + BATCH : 2])


def test_XDP_SHARED_UMEM(make: Make, mode: str) -> None:
    """One UMEM under the sockets of both ends, both ways; then under those of two queues."""
    with make(rx={"lend": 4 * CHUNKS}, both=True, share=True) as ends:
        if ends.bed.looped:
            pytest.skip("one looped interface has one direction")
        there, back = frames(ends.bed, COUNT // 2), frames(ends.bed, COUNT // 2, back=True)
        for at in range(0, len(back), BATCH):
            assert ends.rx.send(back[at : at + BATCH]) == ends.tx.send(there[at : at + BATCH]) == BATCH
            same([data for data, _ in collect(ends.tx, BATCH)], back[at : at + BATCH])
            same([data for data, _ in collect(ends.rx, BATCH)], there[at : at + BATCH])
        veth = ends.bed.veth
    if not veth or mode == "generic":
        return  # who sends chooses the queue on veth only, and there not in generic mode
    with (
        make(rx={"one_umem": True}, tx={}, queues=range(2)) as ends,
        ends.bed.enter("sender"),
        ground.XskPort(ends.bed.sender, 1, mode="copy") as second,
    ):
        sent = frames(ends.bed, COUNT // 2)
        for at in range(0, len(sent), BATCH):
            part = sent[at : at + BATCH]
            assert ends.tx.send(part[::2]) == second.send(part[1::2]) == BATCH // 2
            got = collect(ends.rx, BATCH)
            for queue in (0, 1):
                same([data for data, frame in got if frame.queue == queue], part[queue::2])


def _metadata(ends: Rig, size: int) -> None:
    """What the program wrote before each packet arrives with it."""
    sent = frames(ends.bed, COUNT // 2, size)
    for at in range(0, len(sent), BATCH):
        assert ends.tx.send(sent[at : at + BATCH]) == BATCH
        got = collect(ends.rx, BATCH)
        same([data for data, _ in got], sent[at : at + BATCH])
        assert [frame.rx_ns for _, frame in got] == list(range(at, at + BATCH))


def test_XDP_METADATA_COPY(make: Make) -> None:
    with make(program="list_metadata") as ends:
        _metadata(ends, LEAST)


@pytest.mark.parametrize("size", [LEAST, JUMBO])
def test_XDP_METADATA_COPY_MULTI_BUFF(make: Make, size: int) -> None:
    with make(mtu=JUMBO, program="list_metadata") as ends:
        _metadata(ends, size)


@pytest.mark.parametrize(("mtu", "size"), [(1500, LEAST), (JUMBO, LEAST), (JUMBO, JUMBO)])
def test_what_a_driver_told_comes_with_its_frame(make: Make, mtu: int, size: int) -> None:
    """Beside the kernel's list: the filter's hints, of frames in one chunk and of those that are joined."""
    with make(mtu=mtu, program="list_hints") as ends:
        sent = frames(ends.bed, BATCH, size)
        assert ends.tx.send(sent) == BATCH
        got = collect(ends.rx, BATCH)
        same([data for data, _ in got], sent)
        for number, (_, frame) in enumerate(got):
            hints, each = frame.hints, number & 3
            assert frame.rx_ns == number
            if each == 3:
                assert hints is None
                continue
            assert hints is not None
            assert hints.hash == (None if each == 2 else 0xFEED0000 + number)
            assert hints.hash_type == 8
            assert hints.vlan == (None if each == 1 else (0x88A8, 0x6000 + number))


def _tail(ends: Rig, by: int, size: int) -> None:
    assert isinstance(ends.steering, Program)
    ends.steering.set(Program.ADJUST, by)
    sent = frames(ends.bed, BATCH, size)
    assert ends.tx.send(sent) == BATCH
    moved = [(one + bytes(max(0, by)))[: size + by] for one in sent]
    got = [data for data, _ in collect(ends.rx, BATCH, patience=1.0)]
    refusals = ends.steering.get(Program.REFUSED)
    assert len(got) + refusals == BATCH, "each frame was moved and came, or was refused"
    if not got:
        why = ground.refused(ends.steering.get(Program.RESULT))
        pytest.skip(f"this driver's kernel refuses to move the tail by {by}: {why}")
    numbers = [int.from_bytes(data[14:16], "big") for data in got]
    assert numbers == sorted(numbers)
    same(got, [moved[number] for number in numbers])  # veth refuses some for want of room behind them


def test_XDP_ADJUST_TAIL_SHRINK(make: Make) -> None:
    with make(program="list_adjust_tail") as ends:
        _tail(ends, -4, 2 * LEAST)


def test_XDP_ADJUST_TAIL_GROW(make: Make) -> None:
    with make(program="list_adjust_tail") as ends:
        _tail(ends, 4, 2 * LEAST)


def test_XDP_ADJUST_TAIL_SHRINK_MULTI_BUFF(make: Make) -> None:
    """By all of the last buffer and some of the one before."""
    with make(mtu=JUMBO, program="list_adjust_tail") as ends:
        _tail(ends, -WHOLE, 2 * LARGE)


def test_XDP_ADJUST_TAIL_GROW_MULTI_BUFF(make: Make) -> None:
    """Within the last buffer."""
    with make(mtu=JUMBO, program="list_adjust_tail") as ends:
        _tail(ends, WHOLE // 2 - 1, 2 * LARGE)


# ---- the rings of the NIC itself ---------------------------------------------------------------------------


def test_HW_SW_MIN_RING_SIZE(make: Make, beds: Beds) -> None:
    with ground.ring_sizes(beds.get(1500), rx=2 * BATCH, tx=BATCH), make() as ends:
        for batch in (1, BATCH - 1):
            sent = frames(ends.bed, COUNT // 8)
            for at in range(0, len(sent), batch):
                assert ends.tx.send(sent[at : at + batch]) == len(sent[at : at + batch])
                same([data for data, _ in collect(ends.rx, batch)][:batch], sent[at : at + batch])


def test_HW_SW_MAX_RING_SIZE(make: Make, beds: Beds) -> None:
    rings = {"rx_ring": 8 * CHUNKS, "rx_frames": 8 * CHUNKS, "tx_ring": 8 * CHUNKS, "frame_size": 4096}
    with ground.ring_sizes(beds.get(1500)) as (_, most), make(rx=rings) as ends:
        batch = min(2048, most - 8)
        sent = frames(ends.bed, 8 * CHUNKS)
        for at in range(0, len(sent), batch):
            part = sent[at : at + batch]
            assert ends.tx.send(part) == len(part)
            same([data for data, _ in collect(ends.rx, len(part))], part)
