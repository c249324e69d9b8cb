"""The harness: rows, targets, the table, the registry. No figure is tested; benches are no tests."""

import json

import pytest

from xdpstack.bench import Context, benches, find, row
from xdpstack.bench.lab import alike
from xdpstack.bench.receive import settled
from xdpstack.bench.registry import TARGETS
from xdpstack.bench.rows import KEYS, Target, from_json, median, render
from xdpstack.cli import main
from xdpstack.errors import ConfigError


def test_a_row_has_the_documented_keys_first_and_its_own_behind():
    line = json.loads(row("rx", 60.0, 30.0, "bare", unit="ns", n=7, p90=61.5).as_json())
    assert list(line) == [*KEYS, "p90"]
    assert line["ratio"] == 2.0
    assert line["better"] == "lower"


def test_a_row_without_a_peer_has_no_ratio():
    line = json.loads(row("wake", 1.25, unit="µs", n=1).as_json())
    assert (line["peer"], line["peer_name"], line["ratio"]) == (None, None, None)


def test_a_row_survives_its_own_json():
    made = row("rx-rate", 2e6, 1e6, "recvmmsg", unit="/s", better="higher", n=3, rounds=[1.0])
    assert from_json(made.as_json()).as_dict() == made.as_dict()


@pytest.mark.parametrize(
    ("name", "ours", "peer", "met"),
    [
        ("rx", 70, 30, True),
        ("rx", 70.1, 30, False),
        ("rx-kernel", 30, 100, True),
        ("rx-kernel", 31, 100, False),
        ("jumbo", 0.5, 1.0, True),
        ("jumbo", 0.51, 1.0, False),
        ("rx-rate", 1.15e6, 1e6, True),
        ("rx-rate", 1.14e6, 1e6, False),
        ("rx-rate.dpdk", 0.98e6, 1e6, True),
        ("udp-rtt", 3.0, 5.0, True),
        ("itch", 12, 60, True),
        ("itch", 12, 59, False),
        ("itch", 13, 600, False),
        ("tx", 0.95e6, 1e6, True),
        ("tx", 0.94e6, 1e6, False),
        ("forward", 1.1e6, 1e6, True),
        ("rules", 0.8e6, 1e6, True),
        ("queues", 110, 100, True),
        ("queues", 111, 100, False),
        ("tcp-rtt", 0.6, 1.0, True),
        ("tcp-rtt-kernel-peer", 0.81, 1.0, False),
        ("tcp-rps", 1.8e6, 1e6, True),
        ("tcp-stream", 0.99e9, 1e9, False),
        ("tcp-segment", 100, None, True),
        ("asyncio", 1.29e4, 1e4, False),
        ("wake", 1.5, None, True),
        ("batch", 15.1, None, False),
        ("hop", 80, 50, True),
        ("hop", 81, 50, False),
        ("ring-throughput", 100e6, None, True),
        ("ring-throughput", 99e6, None, False),
        ("ring-throughput.single", 15e6, None, True),
        ("ring-python", 20.1, None, False),
        ("ring-python.64", 20, None, True),
        ("iceoryx2", 0.7, 1, True),
        ("stamp", 3.1, None, False),
        ("stamp.stream", 25, None, True),
    ],
)
def test_a_target_is_met_at_its_bound_and_not_beyond(name, ours, peer, met):
    assert TARGETS[name].met(row(name, ours, peer, unit="", n=1)) is met


def test_a_ratio_target_is_missed_when_there_is_no_peer():
    assert not Target.ratio_at_most(9).met(row("x", 1.0, unit="ns", n=1))


def test_the_table_says_met_and_missed_and_aligns():
    lines = render(
        [
            (row("rx", 50.0, 30.0, "bare", unit="ns", n=1), TARGETS["rx"]),
            (row("rx-rate", 1.0e6, 1.0e6, "recvmmsg", unit="/s", better="higher", n=1), TARGETS["rx-rate"]),
            (row("rx-rate.detail", 1.5e3, unit="/s", n=1), None),
        ]
    )
    assert lines[1].endswith("met")
    assert lines[2].endswith("MISSED")
    assert "1.000 M/s" in lines[2]
    assert "1.5 k/s" in lines[3]
    starts = {line.index(text) for line, text in zip(lines[1:3], ("≤ peer", "≥ 1.15"), strict=True)}
    assert len(starts) == 1


@pytest.mark.parametrize(("values", "middle"), [([3], 3), ([3, 1, 2], 2), ([4, 1, 2, 3], 2.5)])
def test_the_median_is_the_middle_of_the_sorted_rounds(values, middle):
    assert median(values) == middle


def test_every_bench_of_the_table_of_targets_is_registered():
    assert {name.split(".")[0] for name in TARGETS} == set(benches())


def test_an_unknown_bench_is_a_usage_error(capsys):
    with pytest.raises(ConfigError, match="no bench 'nonsense'; there are rx,"):
        find(["nonsense"])
    assert main(["bench", "nonsense"]) == 2
    assert "no bench 'nonsense'" in capsys.readouterr().err


def test_the_list_names_each_bench_with_its_target(capsys):
    assert main(["bench", "--list", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["bench"] for line in lines] == list(benches())
    assert all(line["target"] for line in lines)


def test_the_python_bench_gives_its_row_with_tiny_counts():
    (made,) = benches()["batch"].run(Context(quick=True))
    line = made.as_dict()
    assert list(line)[: len(KEYS)] == list(KEYS)
    assert line["bench"] == "batch"
    assert line["messages_a_batch"] >= 64
    assert line["n"] == 3200


def _trials(*lines):
    return [{"line_ns": list(line)} for line in lines]


def test_only_rounds_measured_in_one_state_of_the_machine_are_compared():
    ours = _trials((40, 45), (40, 210), (45, 45), (210, 215))
    peer = _trials((50, 40), (40, 40), (210, 40), (205, 210))
    (kept, against), note = alike(ours, peer)
    assert (kept, against) == ([ours[0]], [peer[0]])
    assert note == {"rounds_alike": 1, "cores": "near"}
    (kept, _), note = alike([*ours, ours[3]], [*peer, peer[3]])
    assert kept == [ours[3], ours[3]]
    assert note == {"rounds_alike": 2, "cores": "far"}


def test_where_the_state_changes_too_often_single_trials_are_compared():
    near, far, moved = (40, 45), (210, 220), (40, 210)
    ours = _trials(near, far, near, near, moved, near, near)
    peer = _trials(far, near, near, moved, near, near, near)
    (kept, against), note = alike(ours, peer)
    assert note == {"rounds_alike": 3, "trials_alike": [5, 5], "cores": "near"}
    assert kept == [ours[i] for i in (0, 2, 3, 5, 6)]
    assert against == [peer[i] for i in (1, 2, 4, 5, 6)]
    (kept, against), note = alike(ours[:-1], peer[:-1])  # four a side: the whole rounds are all there is
    assert (kept, against) == ([ours[2], ours[5]], [peer[2], peer[5]])
    assert note == {"rounds_alike": 2, "cores": "near"}
    many = _trials(*[far] * 7)
    (kept, _), note = alike([*many, *ours], [*many, *peer])
    assert (kept, note) == (many, {"rounds_alike": 7, "cores": "far"}), "rounds before trials"


def test_slices_are_compared_where_neither_rounds_nor_trials_can_be():
    def trial(line, *slices):
        middle = {"n": len(slices), "p50": sorted(slices)[1]}
        return {"line_ns": list(line), "slice_ps": middle, "slices_ps": list(slices)}

    ours = [trial((40, 210), 100_000, 500_000, 600_000) for _ in range(6)]
    peer = [trial((210, 40), 110_000, 520_000, 640_000) for _ in range(6)]
    figures, note = settled(ours, peer)
    assert figures == [100.0, 110.0]
    assert note == {"rounds_alike": 0, "cores": "mixed", "by": "slices"}
    for one in (*ours, *peer):
        one["line_ns"] = [210, 210]
    assert settled(ours, peer) == ([500.0, 520.0], {"rounds_alike": 6, "cores": "far"}), "rounds come first"


def test_with_no_whole_round_all_are_kept_and_said_to_be_mixed():
    ours, peer = _trials((40, 210)), _trials((40, 40))
    (kept, against), note = alike(ours, peer)
    assert (kept, against) == (ours, peer)
    assert note == {"rounds_alike": 0, "cores": "mixed"}
