"""The screen of `top`, compared as text: the same looks give the same lines at every size of a window.

``python -m xdpstack.tests.test_screen`` writes them anew after a change that was meant.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdpstack.screen import SORTS, State, amount, as_object, as_text, duration, shape, spark
from xdpstack.stats import Histogram
from xdpstack.tape import Tape
from xdpstack.tests.watched import shown, speak, watch_of
from xdpstack.watch import Watch

GOLDEN = Path(__file__).with_name("top_screens.txt")
SIZES = {
    "whole": (State(), 140, 0),
    "one engine, its last second, a window of 100 x 20": (State(engine="trader", window=True), 100, 20),
    "scrolled by ten lines, by drops": (State(offset=10, sort="drops"), 100, 20),
    "narrow": (State(paused=True), 60, 12),
}
OTHERS = "sessions, an alert, readers and a dead engine"


def screens() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with shown(root) as one, shown(root, "backup") as other:
            watch = watch_of(root, one, other)
            for name, (state, width, height) in SIZES.items():
                yield f"== {name}\n" + as_text(watch, state, width, height)
    with tempfile.TemporaryDirectory() as folder:
        yield f"== {OTHERS}\n" + with_others(Path(folder))


def with_others(root: Path) -> str:
    """An engine whose sessions speak and whose rule fires, a slow reader and one that was lapped, and what an
    engine that was killed has left."""
    (root / "xdpstack-4194999-gone.stat").write_bytes(b"half")  # no process has so large a number
    with (
        shown(root) as engine,
        Tape.create(root / "news.tape", 1 << 16) as tape,
        tape.reader("slow"),
        tape.reader("lapped") as lapped,
    ):
        speak(engine.segment)
        firing = engine.segment.words("alert.gaps", {"firing": ("alerts", True), "fired": ("alerts", False)})
        firing[0] = firing[1] = 1
        for _ in range(100):
            tape.write(bytes(1000))
        lapped.read()
        for _ in range(3):
            tape.write(bytes(500))
        return as_text(watch_of(root, engine), State(), 120)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with shown(tmp_path) as one, shown(tmp_path, "backup") as other:
        other.second(5_000_000)
        yield watch_of(tmp_path, one, other)


@pytest.mark.parametrize("number", range(len(SIZES) + 1), ids=[*SIZES, OTHERS])
def test_a_screen_is_as_it_was(number: int) -> None:
    kept = re.split(r"(?m)^(?=== )", GOLDEN.read_text())[1:]
    assert len(kept) == len(SIZES) + 1
    now = list(screens())[number].splitlines()
    for line, (was, has) in enumerate(zip(kept[number].splitlines(), now, strict=True)):
        assert has == was, f"line {line}"


def test_no_line_is_wider_than_the_window_and_no_figure_is_cut(watch: Watch) -> None:
    whole = set(re.findall(r"\S+", as_text(watch, State(), 200)))
    for width in range(40, 200, 7):
        text = as_text(watch, State(), width)
        assert max(map(len, text.splitlines())) <= width
        figures = {word for word in re.findall(r"\S+", text) if re.fullmatch(r"[\d.,]+\S*", word)}
        assert figures <= whole, f"at width {width}"


def test_a_screen_has_as_many_lines_as_its_window(watch: Watch) -> None:
    for height in (3, 10, 30, 80):
        assert len(as_text(watch, State(), 120, height).splitlines()) == height


def test_keys_change_what_is_shown(watch: Watch) -> None:
    state, there = State(), ["backup", "trader"]
    assert state.press("e", there)
    assert state.engine == "backup"
    text = as_text(watch, state, 140)
    assert "only backup" in text
    assert "trader" not in text.replace("xdpstack top", "")
    state.press("e", there)
    assert state.engine == "trader"
    state.press("e", there)
    assert state.engine is None
    state.press("E", there)
    assert state.engine == "trader"
    state.press("E", there)
    for wanted in (*SORTS[1:], SORTS[0]):
        state.press("s", there)
        assert state.sort == wanted
    state.press("p", there)
    assert "PAUSED" in as_text(watch, state, 140)
    state.press(" ", there)
    assert not state.paused
    for key in ("k", "j", "down", "up", "j"):
        state.press(key, there)
    assert state.offset == 2
    assert not state.press("q", there)
    assert not state.press("\x03", there)
    assert state.press("?", there), "what is no key does nothing"


def test_engines_are_sorted_by_name_rate_or_drops(watch: Watch) -> None:
    def order(sort: str) -> list[str]:
        lines = as_text(watch, State(sort=sort), 140).splitlines()
        return [line.split()[0] for line in lines[2:4]]

    assert order("name") == ["backup", "trader"]
    assert order("rate") == ["backup", "trader"], "as many packets each"
    assert order("drops") == ["backup", "trader"], "it lost more"


def test_without_an_engine_it_says_so(tmp_path: Path) -> None:
    watch = Watch(root=tmp_path)
    watch.look()
    assert (
        as_text(watch, State(), 80)
        == "xdpstack top · 0 engines · first look · by name\nno engine is running\n"
    )


def test_the_same_as_an_object(watch: Watch) -> None:
    seen = json.loads(json.dumps(as_object(watch)))
    assert seen["seconds"] == 1.0
    trader = next(e for e in seen["engines"] if e["engine"] == "trader")
    assert trader["rates"]["engine.packets"] == 750_000
    assert {"where": "engine", "reason": "unrouted", "count": 325, "name": "engine.unrouted"} in trader[
        "drops"
    ]
    times = trader["latencies"]["feed.itch-a.decoded"]
    assert (times["run"]["count"], times["since"]["count"]) == (3003, 1001)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7.25, "7.2"), (999, "999"), (999.9, "1k"), (12_345, "12.3k"), (999_950, "1M"),
        (4.56e9, "4.56G"), (None, "-"),
    ],
)  # fmt: skip
def test_amounts_are_short(value: float | None, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0ns"), (812, "812ns"), (1234, "1.23µs"), (999_600, "1ms"), (34e6, "34ms"), (2.5e9, "2.5s"),
        (68e9, "68s"),
    ],
)  # fmt: skip
def test_times_have_a_unit(ns: float, text: str) -> None:
    assert duration(ns) == text


def test_bars_show_the_last_values_and_a_distribution() -> None:
    assert spark([9, 0, 1, 4, 8], 4) == " ▁▄█"
    assert spark([], 4) == ""
    histogram = Histogram()
    assert shape(histogram) == " " * 24
    for value in (1, 64, 127, 128, 1 << 40):
        histogram.record(value)
    bars = shape(histogram)
    assert len(bars) == 24
    assert [n for n, bar in enumerate(bars) if bar != " "] == [0, 1, 23]


if __name__ == "__main__":
    GOLDEN.write_text("".join(screens()))
