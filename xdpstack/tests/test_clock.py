"""The clock against the system's, and its discipline against made-up counters."""

import platform
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdpstack._ffi import ffi, lib
from xdpstack.clock import Clock, system_clock, tai_ns, tai_offset

SECOND = 1_000_000_000
GIGAHERTZ_3 = (1 << 48) // 3  # a counter of 3 GHz: ns a count in 2^-48


SETS = st.one_of(st.integers(2, 900), st.integers(-900, -2)).map(lambda ms: ms * 1_000_000)


def made_up(counter=1000, ns=10 * SECOND, rate=GIGAHERTZ_3):
    c = ffi.new("struct xds_clock *")
    lib.xds_clock_set(c, counter, ns, rate)
    return c


def needs_counter(clock):
    if clock.source != "counter":
        pytest.skip(f"this CPU's counter is not used: {clock.reason}")
    return clock


def gap_to_system(clock):
    """How far a reading lies outside two of the system's clock around it; 0 inside. The best of some."""
    gaps = []
    for _ in range(200):
        before, now, after = tai_ns(), clock.now(), tai_ns()
        gaps.append(max(before - now, now - after, 0))
    return min(gaps)


def test_a_reading_lies_between_two_readings_of_the_system_clock():
    clock = Clock()
    for _ in range(5):
        time.sleep(0.02)
        assert gap_to_system(clock) < 1000


def test_a_clock_that_nobody_reads_for_a_while_is_still_right():
    clock = needs_counter(Clock())
    clock.now()
    time.sleep(0.5)
    clock.now()
    assert abs(clock.error_ns) < 20_000
    time.sleep(0.3)
    assert gap_to_system(clock) < 1000


def test_readings_never_decrease():
    clock = Clock()
    end = time.monotonic() + 0.3
    last = clock.now()
    while time.monotonic() < end:
        now = clock.now()
        assert now >= last
        last = now


def test_the_system_clock_serves_when_asked_for():
    clock = Clock(system=True)
    assert (clock.source, clock.reason) == ("system", "asked")
    assert gap_to_system(clock) == 0
    clock.tick()
    assert clock.hertz == 0
    assert "asked" in repr(clock)


def test_the_counter_is_not_used_for_no_reason():
    clock = Clock()
    assert (clock.source == "counter") == (clock.reason == "ok")
    assert ("MHz" in repr(clock)) == (clock.source == "counter")


def test_the_rate_of_two_samples_that_tell_nothing_is_zero():
    assert lib.xds_clock_rate(10, 100, 10, 200) == 0
    assert lib.xds_clock_rate(10, 100, 20, 100) == 0
    assert lib.xds_clock_rate(20, 100, 10, 200) == 0
    assert lib.xds_clock_rate(0, 0, 3000, 1000) == GIGAHERTZ_3


def test_the_clock_follows_at_once_when_the_system_clock_is_set_forward():
    c = made_up()
    later = 1000 + 3 * SECOND
    lib.xds_clock_discipline(c, later, 10 * SECOND + 3600 * SECOND)
    assert c.steps == 1
    assert lib.xds_clock_at(c, later) == 10 * SECOND + 3600 * SECOND


def test_the_clock_slows_down_until_it_agrees_when_the_system_clock_is_set_back():
    c = made_up()
    counter, tai = 1000, 10 * SECOND
    last = 0
    for turn in range(60):
        counter += 3 * SECOND  # a second
        tai += SECOND - (SECOND // 2 if turn == 0 else 0)  # set back by half a second, once
        lib.xds_clock_discipline(c, counter, tai)
        now = lib.xds_clock_at(c, counter)
        assert now >= last
        last = now
    assert abs(lib.xds_clock_at(c, counter) - tai) < 1000
    assert c.steps == 1


def test_no_time_between_two_ticks_changes_nothing():
    c = made_up()
    before = bytes(ffi.buffer(c))
    lib.xds_clock_discipline(c, 1000, 10 * SECOND + 5)
    assert bytes(ffi.buffer(c)) == before


@given(
    rate=st.integers(GIGAHERTZ_3 * 3 // 6, GIGAHERTZ_3 * 3 * 40),  # 6 GHz to 25 MHz
    start=st.integers(0, 2**62),
    ppm=st.integers(-100, 100),
    steps=st.lists(
        st.tuples(st.integers(1_000_000, 5 * SECOND), st.integers(-30, 30)), min_size=12, max_size=40
    ),
)
def test_the_clock_is_continuous_monotone_and_converges_whatever_the_waits(rate, start, ppm, steps):
    """The counter runs at another rate than was calibrated (ppm); samples are off by up to 30 ns."""
    c = made_up(counter=start, ns=SECOND, rate=rate)
    true_rate = rate * (1_000_000 + ppm) // 1_000_000
    ns_true, counter, last = 0, start, 0
    for wait, noise in [*steps, *[(SECOND, 30), (SECOND, -30)] * 6]:
        ns_true += wait
        counter = start + (ns_true << 48) // true_rate
        tai = SECOND + ns_true + noise
        mid = lib.xds_clock_at(c, counter - (counter - c.anchor) // 2)
        before = lib.xds_clock_at(c, counter)
        lib.xds_clock_discipline(c, counter, tai)
        after = lib.xds_clock_at(c, counter)
        assert last <= mid <= before <= after
        assert c.steps or after == before  # continuous, but where the system's clock was set
        last = after
    assert abs(c.error_ns) < 1000 or c.steps  # two samples 60 ns apart, and what is left of the start


@given(
    rate=st.integers(GIGAHERTZ_3 // 2, GIGAHERTZ_3 * 3),
    wander=st.lists(st.integers(-200, 200), min_size=30, max_size=60),  # ppb a second, as crystals do
    noise=st.lists(st.integers(-40, 40), min_size=60, max_size=60),
    steps=st.dictionaries(st.integers(0, 20), SETS, max_size=3),
)
def test_time_never_runs_back_and_the_error_is_bounded_under_drift_and_steps(rate, wander, noise, steps):
    """The counter's rate wanders, samples are off, and somebody sets CLOCK_TAI while we run."""
    c = made_up(ns=100 * SECOND, rate=rate)
    counter, tai, last, calm = 1000, 100 * SECOND, 100 * SECOND, 0
    ppb = 0
    for second, change in enumerate(wander):
        ppb += change
        for _ in range(4):  # read between two corrections too
            counter += (SECOND // 4 << 48) * 1_000_000_000 // (rate * (1_000_000_000 + ppb))
            tai += SECOND // 4
            now = lib.xds_clock_at(c, counter)
            assert now >= last
            last = now
        set_by = steps.get(second, 0)
        tai += set_by
        # set back, it runs at nine tenths until the two agree: ten seconds for each
        calm = max(calm - 1, 0) if not set_by else calm + 4 - min(set_by, 0) * 10 // SECOND + 4
        lib.xds_clock_discipline(c, counter, tai + noise[second])
        after = lib.xds_clock_at(c, counter)
        assert after >= last
        last = after
        if not calm and second > 6:
            assert abs(after - tai) < 5000
    assert c.steps <= len(steps)


@given(ppb=st.integers(-100_000, 100_000))
def test_drift_is_told_by_how_much_the_rate_moved_since_it_was_known_well(ppb):
    c = made_up()
    counter, tai = 1000, 10 * SECOND
    for second in range(80):
        moved = ppb if second >= 20 else 0
        counter += 3 * (SECOND + SECOND * moved // 1_000_000_000)
        tai += SECOND
        lib.xds_clock_discipline(c, counter, tai)
    raw = ffi.new("struct xds_clock_stats *")
    lib.xds_clock_stats(c, raw)
    assert abs(raw.fast_ppb - raw.slow_ppb - ppb) <= 15 + abs(ppb) // 1000
    assert raw.fast_ppb == 0 or raw.slow_ppb == 0
    assert (raw.ticks, raw.steps, raw.tick_ns) == (80, 0, c.anchor_ns)


def test_the_health_of_a_clock_speaks_of_it_and_of_the_kernels():
    clock = Clock()
    time.sleep(0.05)
    clock.tick()
    health = clock.health()
    assert (health.source, health.reason) == (clock.source, clock.reason)
    assert health.offset_ns == clock.error_ns
    assert abs(health.offset_ns) <= max(health.offset_max_ns, 0)
    assert -1000 <= tai_ns() - health.last_ns < 600 * SECOND
    assert health.corrections >= (clock.source == "counter")
    assert health.system.tai_offset_s == tai_offset()
    assert health.system.synchronized == ("unsynchronized" not in health.system.status)
    assert ("not synchronized" in str(health.system)) == (not health.system.synchronized)


def test_a_counter_that_the_kernel_distrusts_is_not_used(tmp_path):
    (tmp_path / "available_clocksource").write_text("hpet acpi_pm \n")
    (tmp_path / "current_clocksource").write_text("hpet\n")
    clock = Clock(sources=tmp_path)
    if platform.machine() == "x86_64":
        assert (clock.source, clock.reason) == ("system", "distrusted")
        assert gap_to_system(clock) == 0
    assert system_clock(tmp_path).clocksource == "hpet"
    (tmp_path / "available_clocksource").write_text("tsc hpet acpi_pm \n")
    assert Clock(sources=tmp_path).reason == Clock().reason
    assert Clock(sources=tmp_path / "none").reason == Clock().reason
    assert system_clock(tmp_path / "none").clocksource == ""


def test_the_offset_of_tai_is_whole_seconds_that_exist():
    assert tai_offset() in (0, *range(10, 45))
