"""AF_XDP in zero-copy over a real driver's rings: igb on either end of a cable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tools.vmlab.tests.machine import PATIENCE, ZERO_COPY, Patience, run, until, up
from xdpstack import testing
from xdpstack.bpf import Filter
from xdpstack.errors import SetupError
from xdpstack.port import Frame, XskPort
from xdpstack.testing import check_link, make_frames

EVERYTHING = "any -> test"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "_PATIENCE_S", PATIENCE)


@pytest.fixture(scope="module")
def steering() -> Iterator[Filter]:
    """A filter on either card, for all tests here; the receiver's. To load one takes the emulation seconds,
    and so does the reset of the card that it is attached to."""
    up("igb0", "igb1")
    with (
        Filter.load("igb0", mode="native", carrier_wait=0),
        Filter.load("igb1", mode="native", rules=EVERYTHING, carrier_wait=0) as receivers,
    ):
        yield receivers


@contextlib.contextmanager
def joined(steering: Filter, queues: int | range = 0, **options: Any) -> Iterator[tuple[XskPort, XskPort]]:
    """A sender on igb0 and a receiver on igb1, zero-copy both, the receiver's filter between them."""
    up("igb0", "igb1")
    with (
        XskPort("igb0", **ZERO_COPY, **options) as sender,
        XskPort("igb1", queues, **ZERO_COPY, **options) as port,
    ):
        for queue, fd in port.fds().items():
            steering.set_socket("test", queue, fd)
        up("igb0", "igb1")  # a driver may have reset the link for either
        yield sender, port


def collect(port: XskPort, count: int, seconds: float = PATIENCE) -> list[tuple[bytes, Frame]]:
    got: list[tuple[bytes, Frame]] = []
    patience = Patience(seconds)
    while len(got) < count and patience:
        got += [(bytes(frame.data), frame) for frame in port.receive(64)]
    port.release()
    return got


def carry(sender: XskPort, port: XskPort, frames: list[bytes], burst: int = 32) -> list[bytes]:
    """Send in bursts and give what arrived."""
    got: list[bytes] = []
    for at in range(0, len(frames), burst):
        some = frames[at : at + burst]
        assert sender.send(some) == len(some)
        got += [data for data, _ in collect(port, len(some))]
    return got


def whole(port: XskPort, rx: int) -> None:
    until(lambda: port.flush() == 0)
    census = port.census()
    assert sum(n for name, n in census.items() if name.startswith("rx")) == rx
    assert census["tx_free"] == port.tx_frames


def test_zero_copy_over_igb_is_a_link(steering: Filter) -> None:
    check_link(lambda: joined(steering))


@pytest.mark.parametrize(
    "shape", [{}, {"frame_size": 4096, "headroom": 256}, {"frame_size": 3000, "unaligned": True}]
)
def test_frames_come_whole_in_order_and_every_chunk_goes_back(
    steering: Filter, shape: dict[str, int]
) -> None:
    with joined(steering, rx_frames=1024, **shape) as (sender, port):
        assert (sender.granted, port.granted) == ("zerocopy", "zerocopy")
        frames = make_frames(400)
        assert carry(sender, port, frames) == frames
        stats = port.stats()
        assert stats["rx_dropped"] == stats["rx_invalid"] == stats["rx_ring_full"] == 0
        assert sender.stats()["tx_invalid"] == 0
        whole(sender, 1024)
        whole(port, 1024)


def test_both_queues_grant_zero_copy_and_are_one_port(steering: Filter) -> None:
    with joined(steering, range(2)) as (sender, port):
        assert port.granted == "zerocopy"
        assert list(port.fds()) == [0, 1]
        frames = make_frames(64)
        assert carry(sender, port, frames) == frames


def test_a_queue_that_is_opened_again_at_once_is_granted_again(steering: Filter) -> None:
    """The kernel lets go of a zero-copy queue a moment after its socket's close; until then it is busy."""
    up("igb1")
    for turn in range(8):
        with XskPort("igb1", turn // 2 % 2, **ZERO_COPY) as port:
            assert port.granted == "zerocopy"


def test_a_queue_that_another_holds_is_named(steering: Filter) -> None:
    up("igb1")
    with XskPort("igb1", 1, **ZERO_COPY):
        with pytest.raises(SetupError, match="queue 1 of igb1: another socket holds the queue"):
            XskPort("igb1", 1, mode="zerocopy", require=True, bind_wait_ms=200)
        with XskPort("igb1", 0, **ZERO_COPY) as free:
            assert free.granted == "zerocopy"


@pytest.mark.parametrize(
    ("card", "ring", "frames"), [("80", 128, 256), ("4096", 16384, 16384)], ids=["MIN", "MAX"]
)
def test_hw_sw_ring_sizes(steering: Filter, card: str, ring: int, frames: int) -> None:
    """HW_SW_MIN_RING_SIZE and HW_SW_MAX_RING_SIZE of the kernel's list: the card's least and largest rings
    below small and large ones of the socket; every frame, in order. A burst is what the card surely has room
    for: its driver gives descriptors back by sixteens, and this card drops what finds none."""
    before = run("ethtool", "-g", "igb1").rpartition("settings:")[2]
    assert "RX:\t\t256" in before
    try:
        for link in ("igb0", "igb1"):
            run("ethtool", "-G", link, "rx", card, "tx", card)
            assert f"RX:\t\t{card}\n" in run("ethtool", "-g", link).rpartition("settings:")[2]
        with joined(steering, rx_ring=ring, rx_frames=frames, tx_ring=ring, tx_frames=ring) as (sender, port):
            sent = make_frames(3 * 300)
            assert carry(sender, port, sent, burst=min(int(card) // 2, 300)) == sent
            whole(sender, frames)
            whole(port, frames)
    finally:
        for link in ("igb0", "igb1"):
            run("ethtool", "-G", link, "rx", 256, "tx", 256)
