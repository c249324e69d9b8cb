"""tcp-segment with tiny counts: whole rows, one ACK a segment, an open connection. No figure is tested."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from xdpstack.bench import Context, benches
from xdpstack.bench.rows import KEYS
from xdpstack.bench.segment import BATCH, LONG_BATCH, Pair

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@pytest.fixture(scope="module", autouse=True)
def hooks():
    """The C part; the other peers are not needed."""
    if not shutil.which("make"):
        pytest.skip("no make here to build the peer with")
    command = ["make", "-s", "-f", "tools/bench/Makefile", "build/bench/hooks.so"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True, env=PLAIN)


def test_each_segment_of_the_bench_is_taken_and_acknowledged():
    cores = os.sched_getaffinity(0)
    rows = [made.as_dict() for made in benches()["tcp-segment"].run(Context(quick=True))]
    assert [line["bench"] for line in rows] == ["tcp-segment", "tcp-segment.read", "tcp-segment.prepared"]
    prepared = rows.pop()
    assert prepared["n"] == 20 * LONG_BATCH
    assert prepared["ours"] > 0
    assert prepared["peer"] > 0
    for line in rows:
        assert list(line)[: len(KEYS)] == list(KEYS)
        assert line["n"] == 20 * BATCH
        assert line["ours"] > 0
        assert line["peer"] is None
    assert os.sched_getaffinity(0) == cores


def test_the_pair_has_an_open_connection_with_stamps():
    pair = Pair()
    try:
        for stack, number in zip(pair.stacks, (pair.client, pair.server), strict=True):
            info = stack.info(number)
            assert info["state"] == "established"
            assert info["stamps"] == 1
    finally:
        pair.close()
