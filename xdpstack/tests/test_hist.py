"""The histogram against numpy's percentiles and against a plain list."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdpstack._ffi import lib
from xdpstack.stats import Histogram

TOP = 2**36
# Half a bucket: its middle is never further from a value of it than this share of the value.
ERROR = 1 / 256
ns = st.one_of(
    st.integers(0, 300),
    st.integers(0, 10_000_000),
    st.integers(0, TOP - 1),
    st.integers(0, 62).map(lambda b: 2**b - 1),
)


def exact(values, percent):
    """The smallest value that at least percent of the values do not exceed."""
    return int(np.percentile(np.array(values, dtype=np.int64), percent, method="inverted_cdf"))


def filled(values):
    h = Histogram()
    h.record_many(np.array(values, dtype=np.int64))
    return h


@given(st.lists(ns, min_size=1, max_size=400), st.sampled_from([0, 1, 25, 50, 75, 90, 95, 99, 99.9, 100]))
def test_percentiles_agree_with_numpy_within_half_a_bucket(values, percent):
    got, want = filled(values).percentile(percent), exact(values, percent)
    if want < TOP:
        assert abs(got - want) <= want * ERROR
    else:  # beyond the range only the bounds are known
        assert TOP * (1 - ERROR) <= got <= max(values)


@given(st.lists(st.integers(0, TOP - 1), min_size=1, max_size=400))
def test_the_summary_agrees_with_numpy(values):
    s, array = filled(values).summary(), np.array(values, dtype=np.int64)
    assert (s.count, s.min, s.max, s.below, s.above) == (len(values), array.min(), array.max(), 0, 0)
    assert math.isclose(s.mean, sum(values) / len(values), rel_tol=1e-12)
    assert abs(s.deviation - array.std()) <= array.max() * ERROR + 1
    for name, percent in [
        ("p25", 25),
        ("p50", 50),
        ("p75", 75),
        ("p90", 90),
        ("p95", 95),
        ("p99", 99),
        ("p999", 99.9),
        ("p9999", 99.99),
    ]:
        assert getattr(s, name) == filled(values).percentile(percent)


@given(st.lists(ns, max_size=100), st.lists(ns, max_size=100))
def test_merging_is_as_if_all_had_been_recorded_in_one(a, b):
    both, all_in_one = filled(a), filled(a + b)
    both.merge(filled(b))
    assert both.summary() == all_in_one.summary()
    assert np.array_equal(both.buckets(), all_in_one.buckets())


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=60), st.integers(1, 700))
def test_a_paced_record_counts_those_that_were_left_out_while_it_waited(values, every):
    """As if a value had been taken every interval: each one in a stall waited for the rest of it."""
    h, wanted = Histogram(), []
    for value in values:
        h.record(value, every=every)
        wanted += [value, *np.arange(value - every, 0, -every).tolist()]
    assert np.array_equal(h.buckets(), filled(wanted).buckets())
    assert h.summary() == filled(wanted).summary()


@given(st.lists(st.lists(st.integers(0, TOP - 1), max_size=80), min_size=1, max_size=6))
def test_merged_histograms_agree_with_numpy_over_all_their_values(parts):
    merged = Histogram()
    for part in parts:
        merged.merge(filled(part))
    values = np.array([value for part in parts for value in part], dtype=np.int64)
    s = merged.summary()
    assert s.count == len(values)
    if not len(values):
        return
    assert (s.min, s.max) == (values.min(), values.max())
    assert math.isclose(s.mean, sum(values.tolist()) / len(values), rel_tol=1e-12, abs_tol=1e-9)
    assert abs(s.deviation - values.std()) <= values.max() * ERROR + 1
    for name, percent in (("p25", 25), ("p50", 50), ("p75", 75), ("p99", 99), ("p9999", 99.99)):
        assert abs(getattr(s, name) - exact(values, percent)) <= exact(values, percent) * ERROR
    fence = s.p75 + 1.5 * (s.p75 - s.p25)  # of the buckets that begin above it
    assert s.outliers == merged.buckets()[merged.buckets()[:, 0] > fence, 1].sum()


@given(st.integers(0, TOP - 1))
def test_every_value_lies_in_its_bucket(value):
    bucket = lib.xds_hist_bucket(value)
    start, end = lib.xds_hist_bucket_start(bucket), lib.xds_hist_bucket_start(bucket + 1)
    assert start <= value < end
    assert end - start <= max(1, start / 128)


def test_the_buckets_cover_the_range_without_hole_or_overlap():
    starts = [lib.xds_hist_bucket_start(i) for i in range(lib.XDS_HIST_BUCKETS + 1)]
    assert starts[0] == 0
    assert starts[-1] == TOP
    assert all(a < b for a, b in itertools.pairwise(starts))
    assert all(lib.xds_hist_bucket(start) == i for i, start in enumerate(starts[:-1]))


def test_what_lies_outside_is_counted_and_its_bounds_are_exact():
    h = filled([-5, 10, TOP, TOP + 123])
    s = h.summary()
    assert (s.count, s.below, s.above, s.min, s.max) == (4, 1, 2, -5, TOP + 123)
    assert lib.xds_hist_bucket(-1) == 0
    assert lib.xds_hist_bucket(TOP) == lib.XDS_HIST_BUCKETS - 1


def test_nothing_recorded_says_nothing():
    h = Histogram()
    s = h.summary()
    assert (s.count, s.min, s.max, s.mean, s.p50, h.percentile(50)) == (0, 0, 0, 0.0, 0, 0)
    assert len(h.buckets()) == 0


def test_the_maximum_is_exact_at_the_hundredth_percentile():
    assert filled([1, 2, 123_456_789]).percentile(100) == 123_456_789


def test_outliers_are_those_above_tukeys_fence():
    values = [*range(100, 200), 5000, 6000]  # p25 125, p75 176: the fence is at 252
    assert filled(values).summary().outliers == 2


def test_clear_forgets_the_warm_up():
    h = filled([1, 2, 3])
    h.clear()
    h.record(7)
    assert (len(h), h.percentile(50), h.summary().min) == (1, 7, 7)
    assert "1 records" in repr(h)


@pytest.mark.parametrize("count", [1, 999, 1000, 1001])
def test_p999_of_few_records_is_the_right_one(count):
    h = filled(range(count))
    assert abs(h.percentile(99.9) - exact(range(count), 99.9)) <= 4
