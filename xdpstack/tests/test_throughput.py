"""The table of throughput by loss, round trip and buffer is what the core does today."""

from __future__ import annotations

import platform

import pytest

from xdpstack.tests import throughput


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CUBIC's last digits are another machine's")
def test_the_table_is_what_the_core_does():
    now, kept = throughput.table().splitlines(), throughput.FILE.read_text().splitlines()
    changed = [f"{old}\n{new}" for old, new in zip(kept, now, strict=True) if old != new]
    assert not changed, "python -m xdpstack.tests.throughput writes it anew; before and now:\n" + "\n".join(
        changed
    )


def test_the_table_says_what_it_should():
    """Loss is never faster, and without it a line is filled where the buffers hold a round trip's worth."""
    rows = {}
    for line in throughput.FILE.read_text().splitlines()[6:]:
        kind, loss, trip, _, *speeds = line.split()
        rows[kind, float(loss[:-1]), int(trip)] = [float(speed) for speed in speeds]
    assert len(rows) == len(throughput.KINDS) * len(throughput.LOSSES) * len(throughput.ROUND_TRIPS)
    for kind in throughput.KINDS:
        assert rows[kind, 0.0, 1][0] > 90, "of 100 Mbit/s, less the headers"
        for trip in throughput.ROUND_TRIPS:
            assert rows[kind, 5.0, trip][0] < rows[kind, 0.0, trip][0]
    for size in range(3):
        assert rows["cubic", 1.0, 1][size] > 80
