"""`stats --plot`: curves are the histograms' percentiles, bars their means, and the page says both."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdpstack.cli import main
from xdpstack.errors import SetupError
from xdpstack.plot import draw_look, pictures_of, points_of
from xdpstack.stats import Histogram, Segment
from xdpstack.tests.test_figures import Page
from xdpstack.tests.watched import Shown, fixed, shown

WHEN = datetime.datetime(2025, 3, 4, 12, 0, tzinfo=datetime.UTC)


def test_points_are_percentiles_in_microseconds_as_far_as_the_count_can_tell() -> None:
    histogram = Histogram()
    assert points_of(histogram) == []
    for ns in range(1, 1001):
        histogram.record(ns)
    points = dict(points_of(histogram))
    assert points[50.0] == histogram.percentile(50) / 1e3
    assert points[99.0] == histogram.percentile(99) / 1e3
    assert 99.95 not in points, "a thousand records say nothing about it"
    assert points_of(histogram)[-1] == (pytest.approx(99.9), 1.0), "the largest"


def test_each_feed_and_connection_has_a_panel_and_stages_that_add_up_a_bar(tmp_path: Path) -> None:
    with shown(tmp_path) as engine:
        panels, (bars,) = pictures_of(fixed(tmp_path, 1.0))
        found = {panel.title: panel for panel in panels}
        assert list(found) == ["trader: feed itch-a", "trader: conn 10.1.0.1:7001"]
        curves = found["trader: feed itch-a"].curves
        assert list(curves) == ["wake", "parsed", "callback", "total", "decoded"]
        assert dict(curves["wake"])[50.0] == engine.stages["wake"].percentile(50) / 1e3
        (parts,) = bars.rows.values()
        assert list(parts) == ["wake", "parsed", "callback"]
        assert parts["parsed"] == engine.stages["parsed"].summary().mean / 1e3


def test_a_page_has_curves_latencies_losses_and_counters(tmp_path: Path) -> None:
    with shown(tmp_path), shown(tmp_path, "backup"):
        count = draw_look(fixed(tmp_path, 1.0), tmp_path / "all.html", when=WHEN)
        page = Page((tmp_path / "all.html").read_text())
    assert count == 12
    assert page.opened.count("svg") == 5
    assert page.asked == []
    for text in (
        "xdpstack: backup, trader", "Seen 04 March 2025, 12:00:00 UTC, since each engine's start.",
        "Latencies, µs", "callback", "Losses", "rx_ring_full", "Counters of trader (pid 4243)",
        "engine.packets", "1,000,000", "p99.99", "deviation", "outliers",
    ):  # fmt: skip
        assert text in page.texts, text


def test_engines_without_latencies_are_no_picture(tmp_path: Path) -> None:
    with Segment("quiet", root=tmp_path) as segment:
        segment.hist("feed.a.stage.wake")
        with pytest.raises(SetupError, match="no engine here has recorded a latency"):
            draw_look(fixed(tmp_path, 1.0), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.fixture
def engine() -> Iterator[Shown]:
    with Segment(f"plot-{os.getpid()}") as segment:
        made = Shown(segment)
        made.second(1000)
        yield made


def test_the_command_draws_a_picture_and_a_page(
    engine: Shown, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("now.png", "now.html"):
        assert main(["stats", engine.segment.name, "--plot", str(tmp_path / name)]) == 0
        said = capsys.readouterr()
        assert said.err == f"drew 6 curves into {tmp_path / name}\n"
        assert said.out == ""
    assert (tmp_path / "now.png").read_bytes().startswith(b"\x89PNG")
    assert engine.segment.name in (tmp_path / "now.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--plot", "x.txt"], 2, "wanted a name that ends in .png, .svg, .pdf, .html"),
        (["--plot", "x.png", "--watch"], 2, "--plot draws once: not with --watch or --json"),
        (["no-such-engine", "--plot", "x.png"], 1, "no engine here has recorded a latency"),
    ],
)
def test_a_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    words: list[str], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["stats", *words]) == code
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert says in said.err
    assert list(tmp_path.iterdir()) == []
