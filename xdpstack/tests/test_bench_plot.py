"""The curves of a bench: which rows have them, what they hold, and what is said when none can be drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from xdpstack.bench import breakdown, plot, row
from xdpstack.bench.rows import Row, Target, from_json
from xdpstack.cli import main
from xdpstack.errors import SetupError
from xdpstack.stages import FEED, StageHists
from xdpstack.tests.test_figures import Page

OURS = {"p50": 3.2, "p90": 3.9, "p99": 8.0, "p999": 22.5, "max": 140.0}
PEER = {"p50": 6.0, "p90": 7.0, "p99": 12.0, "p999": 60.0, "max": 300.0}

SLICES = breakdown.pooled(
    range(70_000, 171_000, 1000), [60_000] * 5, per=1000, of="slices of 1,000 packets"
)  # fmt: skip
ROUND_TRIPS = breakdown.curves([{"n": 50, **dict.fromkeys(PEER, 7000)}], of="round trips", unit="µs")


def rows() -> list[Row]:
    return [
        row("udp-rtt", 3.2, 6.0, "kernel UDP", unit="µs", n=250_000, percentiles=OURS, peer_percentiles=PEER),
        row("wake", 1.2, unit="µs", n=10_000, percentiles=OURS),
        row("rx", 70.0, 60.0, "bare", unit="ns", n=9, p90=95.0, **SLICES),
        row("asyncio", 2e4, unit="/s", better="higher", n=99, **ROUND_TRIPS),
        row("rx-rate", 1e6, 8e5, "recvmmsg", unit="/s", better="higher", n=9),
        row("book.add.p50", 40.0, unit="ns", n=9),
        row("book.add.p99", 160.0, unit="ns", n=9),
    ]


def test_rows_with_percentiles_have_a_panel_and_the_others_none() -> None:
    found = {panel.title: panel for panel in plot.panels(rows())}
    slices, trips = "rx: slices of 1,000 packets", "asyncio: round trips"
    assert list(found) == ["udp-rtt", "wake", slices, trips, "book.add"]
    assert list(found["udp-rtt"].curves) == ["ours", "kernel UDP"]
    assert found["udp-rtt"].curves["ours"] == [
        (50.0, 3.2), (90.0, 3.9), (99.0, 8.0), (99.9, 22.5), (pytest.approx(99.9996), 140.0),
    ]  # fmt: skip
    assert found["wake"].curves["ours"][-1] == (pytest.approx(99.99), 140.0)
    assert found[slices].curves == {
        "ours": [
            (10.0, 80.0),
            (50.0, 120.0),
            (90.0, 160.0),
            (99.0, 169.0),
            (pytest.approx(100 - 100 / 101), 170),
        ],
        "bare": [(10.0, 60.0), (50.0, 60.0), (80.0, 60.0)],
    }  # its own figure, 70, is the tenth percentile of other rounds, and no point of the curve
    assert found[trips].curves == {"ours": [(50.0, 7.0), (90.0, 7.0), (98.0, 7.0)]}
    assert (found[slices].unit, found[trips].unit) == ("ns", "µs")
    assert found["book.add"].curves == {"ours": [(50.0, 40.0), (99.0, 160.0)]}
    assert (found["udp-rtt"].unit, found["book.add"].unit) == ("µs", "ns")


STAGES = {
    "callback": {
        "n": 1000,
        "mean": 100.0,
        "p50": 90.0,
        "p90": 120.0,
        "p99": 150.0,
        "p999": 180.0,
        "max": 200.0,
    },
    "wake": {"n": 1000, "mean": 300.0, "p50": 290.0, "p90": 320.0, "p99": 350.0, "p999": 380.0, "max": 900.0},
    "total": {
        "n": 1000,
        "mean": 400.0,
        "p50": 380.0,
        "p90": 440.0,
        "p99": 500.0,
        "p999": 560.0,
        "max": 1100.0,
    },
}


SAID = "By HDR histograms, within 0.4 %; medians of the rounds. wake.staged: one more trial."


def staged() -> list[Row]:
    return [
        *rows(),
        row("wake.staged", 0.4, unit="µs", n=1000, **breakdown.row_key(STAGES, "one more trial")),
    ]


def test_a_row_with_stages_has_a_curve_each_and_a_bar_of_their_shares() -> None:
    assert plot.bars(rows()) == []
    panel = plot.panels(staged())[-1]
    assert (panel.title, panel.unit, list(panel.curves)) == (
        "wake.staged: stages", "ns", ["wake", "callback", "total"]
    )  # fmt: skip
    assert panel.curves["wake"] == [
        (50.0, 290.0), (90.0, 320.0), (99.0, 350.0), (99.9, 380.0), (pytest.approx(99.9), 900.0)
    ]  # fmt: skip
    (bars,) = plot.bars([from_json(json.dumps(one.as_dict())) for one in staged()])
    assert (bars.unit, bars.rows) == ("%", {"wake.staged\n400 ns": {"wake": 75.0, "callback": 25.0}})


def test_a_page_has_the_stages_as_a_table_too(tmp_path: Path) -> None:
    assert plot.draw(staged(), tmp_path / "all.html") == 6
    page = Page((tmp_path / "all.html").read_text())
    assert page.opened.count("svg") == 7
    for text in ("Stages, ns", "wake.staged", "callback", "1,000", "1,100", SAID):
        assert text in page.texts, text


def test_stages_of_rounds_are_merged_by_the_median_and_those_of_connections_into_one() -> None:
    first, second = (StageHists(None, "x", FEED, warm_up=0) for _ in range(2))
    for ns in (10, 20, 30):
        first.by_stage["wake"].record(ns)
    second.by_stage["wake"].record(100)
    told = breakdown.merged([first, second])
    assert list(told) == ["wake"]
    assert (told["wake"]["n"], told["wake"]["mean"], told["wake"]["max"]) == (4, 40.0, 100.0)
    rounds = [{"wake": {**told["wake"], "mean": mean}, "callback": told["wake"]} for mean in (1.0, 5.0, 2.0)]
    del rounds[1]["callback"]
    found = breakdown.between(rounds)
    assert list(found) == ["wake"]
    assert (found["wake"]["n"], found["wake"]["mean"]) == (12, 2.0)
    assert breakdown.between([]) == {}
    assert breakdown.row_key({}) == breakdown.row_key({}, "nothing") == {}


def test_curves_are_medians_of_the_rounds_and_pooled_ones_what_their_number_can_tell() -> None:
    answers = [{"n": n, **{key: n * 1000.0 for key in breakdown.PERCENTILES}} for n in (5, 7, 90)]
    assert breakdown.curves(answers) == {"percentiles": {"n": 7, **dict.fromkeys(breakdown.PERCENTILES, 7.0)}}
    both = breakdown.curves(answers[:1], answers[1:2], per=1)
    assert (both["percentiles"]["max"], both["peer_percentiles"]["p50"]) == (5000.0, 7000.0)
    assert "percentiles_of" not in both
    found = breakdown.pooled(range(1, 11), [])
    assert found == {"percentiles": {"n": 10, "p10": 1, "p50": 5, "p90": 9, "max": 10}}
    assert breakdown.pooled([], [1.0]) == {"peer_percentiles": {"n": 1, "max": 1.0}}


def test_rows_that_came_as_json_are_drawn_too() -> None:
    again = [from_json(json.dumps(one.as_dict())) for one in rows()]
    assert [panel.curves for panel in plot.panels(again)] == [panel.curves for panel in plot.panels(rows())]


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".pdf", b"%PDF-")]
)
def test_a_picture_is_written(tmp_path: Path, suffix: str, magic: bytes) -> None:
    file = tmp_path / f"curves{suffix}"
    plot.check(file)
    assert plot.draw(rows(), file) == 5
    assert file.read_bytes().startswith(magic)
    assert file.stat().st_size > 5000


def test_its_words_are_in_the_picture(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot.draw(rows(), tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    for word in ("udp-rtt", "kernel UDP", "ours", "p99.9", "µs", "book.add"):
        assert f">{word}<" in text


def test_a_page_has_the_curves_every_row_and_the_settings(tmp_path: Path) -> None:
    given = [*rows(), row("tcp-rtt", 9.0, 6.0, "kernel", unit="µs", n=7, settings={"cores": "0,1"})]
    targets = {"tcp-rtt": Target.ratio_at_most(1.0), "wake": Target.at_most(2.0, "µs")}
    assert plot.draw(given, tmp_path / "all.html", targets) == 5
    page = Page((tmp_path / "all.html").read_text())
    assert page.opened.count("svg") == 5
    assert page.asked == []
    for text in ("rx-rate", "1.000 M/s", "1.500", "MISSED", "met", "Settings of tcp-rtt", "cores", "0,1"):
        assert text in page.texts, text


def test_rows_without_percentiles_are_no_picture(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no row of these benches has percentiles"):
        plot.draw([row("rx-rate", 1e6, unit="/s", n=1)], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("curves.txt", 2, "curves.txt: wanted a name that ends in .png, .svg, .pdf, .html"),
        ("no/curves.png", 1, "no/curves.png: nothing can be written there"),
    ],
)
def test_a_mistake_is_said_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    name: str, code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "batch", "--quick", "--plot", name]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says in said.err


def test_without_matplotlib_one_sentence_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "batch", "--quick", "--plot", str(tmp_path / "x.png")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("x.png: matplotlib is not installed; pip install 'xdpstack[plots]'\n")


def test_a_bench_without_percentiles_says_so_after_its_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", "batch", "--quick", "--plot", str(tmp_path / "x.png")]) == 1
    said = capsys.readouterr()
    assert "batch" in said.out
    assert "no row of these benches has percentiles" in said.err
