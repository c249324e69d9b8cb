"""A NIC's clock against CLOCK_TAI: the mapping against made-up clocks, and what is no clock is told."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.clock import tai_ns
from xdpstack.errors import SetupError
from xdpstack.phc import Mapping, NicTimes, Phc, PhcKeeper, Sample
from xdpstack.port import SockPort
from xdpstack.stats import Reader, Segment
from xdpstack.watch import key_of

SECOND = 1_000_000_000


@given(
    offset=st.integers(-40 * SECOND, 10**18),
    ppm=st.integers(-100, 100),
    noise=st.lists(st.integers(-50, 50), min_size=16, max_size=40),
    back=st.integers(0, SECOND),
)
def test_stamps_before_and_behind_a_comparison_are_mapped_within_a_bound(offset, ppm, noise, back):
    """The NIC's clock shows any time and drifts; comparisons are off by up to 50 ns."""
    m, tai, device = Mapping(), 100 * SECOND, 100 * SECOND + offset
    for one in noise:
        m.add(device, tai + one)
        tai += SECOND
        device += SECOND + SECOND * ppm // 1_000_000
    assert (m.samples, m.steps) == (len(noise), 0)
    assert abs(m.error_ns) < 1000
    assert abs(m.drift_ppm - ppm) < 1
    assert abs(m.to_tai(device) - tai) < 2000, "a second behind the last comparison"
    earlier = device - SECOND - SECOND * ppm // 1_000_000 - back
    assert abs(m.to_tai(earlier) - (tai - SECOND - back * 1_000_000 // (1_000_000 + ppm))) < 2000, "before it"


@given(st.integers(-50 * SECOND, 50 * SECOND).filter(lambda ns: abs(ns) > 2_000_000))
def test_a_clock_that_was_set_is_followed_at_once(by):
    m = Mapping()
    for second in range(5):
        m.add(100 * SECOND + second * SECOND, 1000 * SECOND + second * SECOND)
    m.add(105 * SECOND + by, 1005 * SECOND)
    assert m.steps == 1
    assert m.to_tai(105 * SECOND + by) == 1005 * SECOND
    m.add(106 * SECOND + by, 1006 * SECOND)
    assert m.steps == 1
    assert abs(m.to_tai(106 * SECOND + by + 500) - (1006 * SECOND + 500)) < 100


def test_what_is_no_clock_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"open the clock .*ptp99"):
        Phc(tmp_path / "ptp99")
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"read the clock .*file"):
        Phc(tmp_path / "file")
    with pytest.raises(SetupError, match="open the clock of lo: it has none of its own"):
        Phc.of("lo")
    (tmp_path / "eth7/device/ptp/ptp123").mkdir(parents=True)
    with pytest.raises(SetupError, match="open the clock /dev/ptp123"):
        Phc.of("eth7", tmp_path)


def test_an_offset_is_the_devices_less_ours() -> None:
    assert Sample(device_ns=10, tai_ns=7, spread_ns=1, how="precise").offset_ns == 3


class MadeUp:
    """A NIC's clock that is so far ahead of CLOCK_TAI; ``fails`` of its comparisons get no answer."""

    def __init__(self, ahead_ns: int, fails: int = 0) -> None:
        self.ahead_ns, self.fails, self.closed = ahead_ns, fails, False
        self.mapping = Mapping()
        self._compare()

    def _compare(self) -> None:
        now = tai_ns()
        self.last = Sample(device_ns=now + self.ahead_ns, tai_ns=now, spread_ns=40, how="extended")
        self.mapping.add(self.last.device_ns, now)

    def tick(self) -> Sample:
        if self.fails:
            self.fails -= 1
            raise SetupError("read the clock", "it does not answer")
        self._compare()
        return self.last

    def close(self) -> None:
        self.closed = True


def until(holds) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


@given(st.integers(1, 10**18), st.integers(10**9, 10**18), st.lists(st.integers(-100, 100), max_size=6))
def test_what_is_shown_of_a_clock_maps_as_the_clock_does(device, tai, noise):
    m, face = Mapping(), ffi.new("struct xds_clock_face *")
    assert lib.xds_clock_face_map(face, device) == 0, "nothing is shown yet"
    for number, one in enumerate([0, *noise]):
        m.add(device + number * SECOND, tai + number * SECOND + one)
        lib.xds_clock_show(m.pointer, face)
        for at in (device + number * SECOND - 1, device + number * SECOND, device + number * SECOND + 12_345):
            assert lib.xds_clock_face_map(face, at) == m.to_tai(at)


def test_who_maps_while_a_clock_is_shown_again_gets_one_of_both_or_nothing() -> None:
    """Two mappings a year apart take turns as fast as one thread can: a mixture would be neither's."""
    year = 365 * 86400 * SECOND
    made = [Mapping(), Mapping()]
    for m, ahead in zip(made, (0, year), strict=True):
        m.add(1000 * SECOND + ahead, 5000 * SECOND)
    face, done = ffi.new("struct xds_clock_face *"), threading.Event()
    lib.xds_clock_show(made[0].pointer, face)

    def keep_showing() -> None:
        while not done.is_set():
            for m in made:
                lib.xds_clock_show(m.pointer, face)

    thread = threading.Thread(target=keep_showing)
    thread.start()
    try:
        at = 1000 * SECOND + 7
        allowed = {0, *(m.to_tai(at) for m in made)}
        seen = {lib.xds_clock_face_map(face, at) for _ in range(200_000)}
    finally:
        done.set()
        thread.join()
    assert seen <= allowed
    assert face.version > 1


def test_a_clock_is_kept_until_it_is_closed_and_its_health_is_shown(tmp_path: Path) -> None:
    """Comparisons without an answer are counted, and what is known goes on."""
    clocks = {"eth0": MadeUp(-37 * SECOND, fails=2), "eth1": MadeUp(5 * SECOND)}
    with Segment("kept", root=tmp_path) as segment, SockPort(["127.0.0.1:0"], interface="lo") as port:
        with NicTimes(segment, clocks.__getitem__) as times:
            times.map(port, "eth0")
            times.map(port, "eth1")
            until(lambda: times.stats()["eth0"]["comparisons"] >= 4)
            told = times.stats()["eth0"]
            assert (told["ahead_ns"], told["behind_ns"], told["failed"]) == (0, 37 * SECOND, 2)
            assert (told["spread_ns"], told["steps"]) == (40, 0)
            assert told["error_max_ns"] < 1_000_000
            values = Reader(segment.path).values()
            assert values["phc.eth0.behind_ns"] == 37 * SECOND
            assert values["phc.eth1.ahead_ns"] == 5 * SECOND
            assert key_of("phc.eth0.7.behind_ns")["interface"] == "eth0.7"
            first = times.stats()["eth1"]["comparisons"]
            assert first >= 1
            clocks["eth1"] = anew = MadeUp(9 * SECOND)
            times.map(port, "eth1", anew=True)
            assert times.stats()["eth1"]["ahead_ns"] == 9 * SECOND
        assert all(clock.closed for clock in clocks.values())
        assert anew.closed
        assert times.stats() == {}
        times.close()
        assert "xdpstack-phc" not in {thread.name for thread in threading.enumerate()}


def test_where_no_clock_can_be_read_it_is_said_and_nothing_is_mapped() -> None:
    with SockPort(["127.0.0.1:0"], interface="lo", nic_stamps=True) as port, NicTimes() as times:
        times.map(port, "lo")
        assert times.stats() == {}
        (note,) = times.notes
        assert note == (
            "lo: stamps of its own could not be mapped: open the clock of lo: it has none of its own"
            "; stamps are taken at the XDP hook"
        )


def test_a_keeper_maps_stamps_that_came_before_and_behind_a_comparison() -> None:
    with PhcKeeper(MadeUp(123 * SECOND)) as keeper:
        until(lambda: keeper.words.comparisons >= 3)
        for ago in (-SECOND, 0, SECOND):
            now = tai_ns() + ago
            said = lib.xds_clock_face_map(keeper.face, now + 123 * SECOND)
            assert said == 0 or abs(said - now) < 1_000_000
    keeper.close()
