"""Each network bench with tiny counts: the shape of its rows, never its figures."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from xdpstack.bench import Context, Skip, benches
from xdpstack.bench.rows import KEYS

ROOT = Path(__file__).resolve().parents[1]
ROWS = {
    "rx": ["rx", "rx.flat", "rx.live"],
    "rx-kernel": ["rx-kernel", "rx-kernel.flat", "rx-kernel.live"],
    "jumbo": ["jumbo"],
    "rx-rate": ["rx-rate", "rx-rate.native", "rx-rate.live"],
    "udp-rtt": ["udp-rtt", "udp-rtt.native", "udp-rtt.bare"],
    "wake": ["wake"],
    "tx": ["tx", "tx.live"],
    "forward": ["forward", "forward.socket"],
    "rules": ["rules", "rules.live"],
    "queues": ["queues"],
    "asyncio": ["asyncio", "asyncio.sleeping", "asyncio.plain"],
    "tcp-rtt": ["tcp-rtt", "tcp-rtt.native"],
    "tcp-rtt-kernel-peer": ["tcp-rtt-kernel-peer"],
    "tcp-rps": ["tcp-rps"],
    "tcp-stream": ["tcp-stream", *(f"tcp-stream.{x}" for x in ("gso", "receive", "live", "offloaded"))],
}

DRAWN = {"rx", "udp-rtt", "wake", "forward", "asyncio", "tcp-rtt"}
"""Their rows have curves, and the first of them stages, where the worker is an engine."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and AF_XDP")


@pytest.fixture(scope="module", autouse=True)
def peers():
    """The peers of C that need no packages of their own; DPDK's comes by `make bench-peers` only."""
    if not shutil.which("make"):
        pytest.skip("no make here to build the peers with")
    command = ["make", "-s", "-f", "tools/bench/Makefile", "network"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_network_bench_gives_whole_rows_and_leaves_no_namespace(name):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a sender and a receiver need two cores")
    for _ in range(3):  # a rate is 0 where the machine lost packets at every one that was tried
        try:
            rows = [made.as_dict() for made in benches()[name].run(Context(quick=True))]
        except Skip as reason:
            pytest.skip(str(reason))
        if all(line["ours"] > 0 for line in rows):
            break
    found = [line["bench"] for line in rows if ".dpdk" not in line["bench"]]
    assert found == ROWS[name]
    for line in rows:
        assert list(line)[: len(KEYS)] == list(KEYS)
        assert line["n"] > 0
        assert line["ours"] > 0
        assert line["settings"]["core_to_core_ns"] > 0
        assert (line["ratio"] is None) == (line["peer"] is None)
        if name in DRAWN:
            curve = line["percentiles"]
            assert curve["n"] > 0
            assert 0 < curve.get("p50", curve["max"]) <= curve["max"]  # one slice has no median
    if name in DRAWN - {"forward"}:
        stages = rows[0]["stage_ns"]
        assert set(stages) == {"wake", "callback", "total"}
        assert all(stage["n"] == stages["total"]["n"] > 0 for stage in stages.values())
    assert not [path for path in Path("/run/xdpstack/lab").glob(f"bench{os.getpid()}*")]


def test_a_bench_that_pinned_itself_leaves_the_next_one_every_core(capsys, monkeypatch):
    from xdpstack.bench import registry
    from xdpstack.cli import main

    cores, seen = os.sched_getaffinity(0), []

    def pins(context):
        seen.append(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {min(cores)})
        return []

    made = [registry.Bench(name=name, about="", run=pins) for name in ("one", "two")]
    monkeypatch.setattr(registry, "find", lambda names: made)
    assert main(["bench", "one", "two", "--json"]) == 0
    assert seen == [cores, cores]
    assert os.sched_getaffinity(0) == cores
