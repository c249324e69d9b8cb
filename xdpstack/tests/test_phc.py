"""A NIC's clock against CLOCK_TAI: the mapping against made-up clocks, and what is no clock is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdpstack.errors import SetupError
from xdpstack.phc import Mapping, Phc, Sample

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
