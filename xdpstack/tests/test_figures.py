"""Pictures and pages: written in every form, a page whole by itself, and mistakes said before the work."""

from __future__ import annotations

import itertools
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from xdpstack import figures
from xdpstack.errors import ConfigError, SetupError
from xdpstack.figures import Bars, Grid, Panel, nines

PANEL = Panel("one & two", "µs", {"ours": [(50.0, 3.0), (99.0, 8.0)], "theirs": [(50.0, 6.0), (99.0, 400.0)]})
BARS = Bars("stages", "ns", {"feed a": {"wake": 10.0, "parsed": 30.0}, "feed b": {"wake": 20.0}})
GRID = Grid(
    "Rows <all>", ("", "p50", "verdict"), [("a&b", "3.00", "met"), ("c", "9.00", "MISSED")], "A note."
)


class Page(HTMLParser):
    """What a page holds: elements in order that they open, texts, and addresses that it asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.asked: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)
        self.asked += [
            value or "" for name, value in attrs
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#")
        ]  # fmt: skip

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "!doctype"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".pdf", b"%PDF-")]
)
def test_a_picture_is_written(tmp_path: Path, suffix: str, magic: bytes) -> None:
    file = tmp_path / f"figure{suffix}"
    figures.check(file)
    figures.draw(file, [PANEL, BARS], [GRID], title="both")
    assert file.read_bytes().startswith(magic)
    assert file.stat().st_size > 5000


def test_a_page_holds_its_pictures_and_tables_and_asks_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    figures.check(file)
    figures.draw(file, [PANEL, BARS], [GRID], title="today & all", notes=["seen at noon"])
    page = Page(file.read_text())
    assert page.open == [], "everything is closed"
    assert page.asked == []
    assert page.opened.count("svg") == 2
    assert "script" not in page.opened
    for text in ("today & all", "seen at noon", "one & two", "Rows <all>", "a&b", "3.00", "A note.", "p99"):
        assert text in page.texts
    assert "<td class=missed>MISSED</td>" in file.read_text()


def test_what_a_bar_is_made_of_is_named_and_summed(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    figures.draw(file, [BARS])
    texts = Page(file.read_text()).texts
    for text in ("wake", "parsed", "feed a", "feed b", "40", "20", "ns"):
        assert text in texts


@pytest.mark.parametrize(
    ("values", "scale"),
    [((3.0, 8.0), "linear"), ((0.0, 8.0), "linear"), ((0.0, 0.0), "linear"), ((3.0, 80.0), "log"),
     ((0.0, 30.0, 8e6), "symlog")],
)  # fmt: skip
def test_values_far_apart_are_drawn_by_their_order_and_none_is_left_out(
    values: tuple[float, ...], scale: str
) -> None:
    curves = {f"{value:g}": [(50.0, value), (99.0, value)] for value in values}
    (axes,) = figures._figure([Panel("far apart", "ns", curves)]).axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= min(values) <= max(values) <= high


@pytest.mark.parametrize("count", [2, 6, 7, 18])
def test_names_of_bars_do_not_run_into_each_other_nor_the_legend_into_bars(count: int) -> None:
    bars = Bars("stages", "%", {f"row {n}\n{n} µs": {"wake": 40.0, "callback": 60.0} for n in range(count)})
    figure = figures._figure([bars])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    words = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(words) == count
    assert all(not one.overlaps(other) for one, other in itertools.pairwise(words))
    legend = axes.get_legend().get_window_extent()
    assert not any(legend.overlaps(patch.get_window_extent()) for patch in axes.patches)


def test_the_same_page_is_written_again(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        figures.draw(tmp_path / name, [PANEL, BARS], [GRID], title="t")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_nines_are_counted() -> None:
    assert [nines(percent) for percent in (90.0, 99.0, 99.9)] == pytest.approx([1, 2, 3])
    assert nines(0.0) == 0


def test_a_name_that_is_no_pictures_is_refused_and_so_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wanted a name that ends in \.png, \.svg, \.pdf, \.html"):
        figures.check(tmp_path / "x.txt")
    (tmp_path / "x.html").mkdir()
    with pytest.raises(SetupError, match="nothing can be written there"):
        figures.check(tmp_path / "x.html")
    with pytest.raises(SetupError, match="Is a directory"):
        figures.draw(tmp_path / "x.html", [PANEL])


def test_without_matplotlib_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SetupError, match=r"pip install 'xdpstack\[plots\]'"):
        figures.check(tmp_path / "x.png")
