"""The scripts of ``xdpstack/tests/drill`` against Linux: what it does otherwise stands in
``kernel-differences.txt`` beside them, each with the reason, and nothing else does.

``XDS_DRILL_LONG=1`` (``make soak``) plays those too that take minutes, and the matrices whole over IPv6; else
IPv6 has one place of the window for each state × segment, another one for each.
"""

from __future__ import annotations

import os
import platform
import re
import threading
from pathlib import Path

import pytest

from xdpstack.drill import Mismatch, parse
from xdpstack.drill.kernel import run_many
from xdpstack.errors import SetupError

FOLDER = Path(__file__).resolve().parents[1] / "xdpstack" / "tests" / "drill"
LONG = bool(os.environ.get("XDS_DRILL_LONG"))
LISTED = FOLDER / "kernel-differences.txt"
SEGMENTS, PLACES = ("syn", "fin", "rst", "ack", "data"), ("left", "next", "in", "edge", "right")
OF_MATRIX = re.compile(rf"^matrix.*-3\.10\.7\.4-(.+)-({'|'.join(SEGMENTS)})-({'|'.join(PLACES)})\.pkt$")

pytestmark = pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="/dev/net/tun is not there")


def listed():
    """Script and line -> why Linux differs there."""
    found = {}
    for line in LISTED.read_text().splitlines():
        if line and not line.startswith("#"):
            place, _, reason = line.partition(" ")
            assert reason.strip(), line
            found[place] = reason.strip()
    return found


def calibrated():
    """The kernel that the list was made with."""
    return re.search(r"^# Linux (\d+\.\d+)$", LISTED.read_text(), re.M)[1]


def place_of(error):
    return ":".join(str(error).split(":")[:2]) if error else ""


def matrices():
    """(state, segment, place, stamped) -> script: both matrices."""
    found = {}
    for path in FOLDER.glob("matrix*/*.pkt"):
        name = str(path.relative_to(FOLDER))
        found[*OF_MATRIX.match(name).groups(), name.startswith("matrix-stamped/")] = name
    return found


def square():
    """Of them each state × segment once: the place moves with either, and every other one is stamped."""
    names = matrices()
    states = sorted({state for state, *_ in names})
    return {
        names[state, segment, PLACES[(i + k) % len(PLACES)], (i + k) % 2 == 1]
        for i, state in enumerate(states)
        for k, segment in enumerate(SEGMENTS)
    }


def test_a_square_of_the_matrices_meets_each_state_with_each_segment_at_each_place():
    ways = {name: how for how, name in matrices().items()}
    met = [ways[name] for name in square()]
    states = {state for state, *_ in ways.values()}
    assert len(ways) == len(states) * len(SEGMENTS) * len(PLACES) * 2 == 400
    assert {(state, segment) for state, segment, *_ in met} == {(a, b) for a in states for b in SEGMENTS}
    assert len(met) == len(states) * len(SEGMENTS)
    assert all(len({place for state, _, place, _ in met if state == one}) == len(PLACES) for one in states)
    assert all({stamped for state, *_, stamped in met if state == one} == {True, False} for one in states)


def test_the_list_names_scripts_and_lines_that_are_there():
    for place in listed():
        name, _, line = place.removeprefix("v6/").partition(":")
        assert int(line) <= len((FOLDER / name).read_text().splitlines()), place


@pytest.mark.timeout(1200 if LONG else 300)
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_linux_keeps_to_the_scripts_but_where_that_is_listed(family):
    places = sorted(listed(), key=lambda place: place.startswith("v6/"))  # those of IPv6 count before
    places = [place.removeprefix("v6/") for place in places if family == "v6" or place[:3] != "v6/"]
    by_script = {place.partition(":")[0]: place for place in places}
    scripts = [parse(path.read_text(), str(path.relative_to(FOLDER))) for path in FOLDER.rglob("*.pkt")]
    if not LONG:
        scripts = [script for script in scripts if "long" not in script.options]
    if not LONG and family == "v6":
        some = square()
        scripts = [script for script in scripts if script.name[:6] != "matrix" or script.name in some]

    def good(script, outcome):
        return place_of(outcome) == by_script.get(script.name, "")

    outcomes = run_many(scripts, family=family, attempts=5, good=good)
    wrong = []
    for script in scripts:
        outcome, expected = outcomes[script.name], by_script.get(script.name, "")
        if place_of(outcome) != expected:
            wrong.append(f"{outcome or script.name + ' agrees'}; listed: {expected or 'nothing'}")
    if wrong and not platform.release().startswith(calibrated() + "."):
        pytest.skip(f"listed for Linux {calibrated()}, and this is {platform.release()}: " + "; ".join(wrong))
    assert not wrong, "\n".join(wrong)
    assert all(error is None or isinstance(error, Mismatch) for error in outcomes.values())


def test_a_script_leaves_nothing_behind_and_a_kernel_that_answers_otherwise_is_noticed():
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    script = parse("0 < S 5:5(0) win 9\n+0 > R. 0:0(0) ack 7", "a.pkt")
    outcome = run_many([script], attempts=2)["a.pkt"]
    assert str(outcome).startswith("a.pkt:2: `> R. 0:0(0) ack 6 win 0` was sent")
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads
    assert not Path("/sys/class/net/tun0").exists()


def test_without_privilege_it_is_said(monkeypatch):
    from xdpstack.drill import kernel

    def refuse():
        raise SetupError("network namespace for a script", "Operation not permitted", "run it as root")

    monkeypatch.setattr(kernel, "_leave_for_own_namespace", refuse)
    with pytest.raises(SetupError, match="run it as root"):
        run_many([parse("0 < R 5:5(0)", "a.pkt")])
