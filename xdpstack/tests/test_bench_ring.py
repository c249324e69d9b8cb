"""The benches of rings with tiny counts: the shape of their rows, never their figures."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from xdpstack.bench import Context, Skip, benches
from xdpstack.bench.ring_worker import PREFIX
from xdpstack.bench.rows import KEYS

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "hop": ["hop"],
    "ring-throughput": ["ring-throughput", "ring-throughput.single"],
    "ring-python": ["ring-python", "ring-python.64"],
    "iceoryx2": ["iceoryx2"],
}


@pytest.fixture(scope="module", autouse=True)
def peers():
    if not shutil.which("make") or not (ROOT / "tools/bench/Makefile").exists():
        pytest.skip("no make, or no source tree, to build the peers with")
    command = ["make", "-s", "-f", "tools/bench/Makefile", "build/bench/tape_bench", "build/bench/core_pair"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_bench_of_rings_gives_whole_rows_and_leaves_nothing_in_shared_memory(name):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a writer and a reader need two cores")
    try:
        rows = [made.as_dict() for made in benches()[name].run(Context(quick=True))]
    except Skip as reason:
        pytest.skip(str(reason))
    assert [line["bench"] for line in rows] == ROWS[name]
    for line in rows:
        assert list(line)[: len(KEYS)] == list(KEYS)
        assert line["n"] > 0
        assert line["ours"] > 0
        assert line["settings"]["record_bytes"] == 64
        assert (line["ratio"] is None) == (line["peer"] is None)
        if line["peer"] is not None:
            assert all(
                0 < line[side]["p50"] <= line[side]["max"] for side in ("percentiles", "peer_percentiles")
            )
    assert not list(Path("/dev/shm").glob(f"{PREFIX}*"))
