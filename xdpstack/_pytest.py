"""What our test runs print: skips are counted aloud, frames are compared in a line, and a hypothesis failure
can be replayed.

Loaded by ``addopts`` in pyproject.toml for both test folders.
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import zip_longest

import hypothesis
import pytest

__all__: list[str] = []

# No deadline: two cores are shared with whatever else runs. A fixed order in CI, so that a failure there
# is the change's; elsewhere every run looks somewhere else, and a failure prints how to see it again.
hypothesis.settings.register_profile("default", deadline=None, max_examples=100, print_blob=True)
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("default"), derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

# `make asan` preloads its runtime into this process. Foreign programs that tests start do not bear it; our
# own find it without (ASAN_OPTIONS=verify_asan_link_order=0).
if "libasan" in os.environ.get("LD_PRELOAD", ""):
    del os.environ["LD_PRELOAD"]


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr)


def _packets(value: object) -> list[bytes] | None:
    return value if isinstance(value, list) and all(isinstance(one, bytes) for one in value) else None


def _shown(packet: bytes | None) -> str:
    return "nothing" if packet is None else f"{len(packet)} bytes {packet[:32].hex()}"


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Where two lists of packets part. pytest's own words for it are both lists whole: hundreds of thousands
    of bytes where CI is set, and of a log's end nothing else is left."""
    ours, theirs = _packets(left), _packets(right)
    if op != "==" or ours is None or theirs is None:
        return None
    pairs = zip_longest(ours, theirs)
    at, (one, other) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    return [
        f"{len(ours)} packets == {len(theirs)} packets",
        f"the first that differs is number {at}:",
        f"  left:  {_shown(one)}",
        f"  right: {_shown(other)}",
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count what could not run, by reason, where nobody overlooks it."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section("tests that could not run", sep="=", yellow=True, bold=True)
    reasons = Counter(_reason(report) for report in skipped)
    for reason, count in reasons.most_common():
        tests = "1 test" if count == 1 else f"{count} tests"
        terminalreporter.line(f"{tests} could not run: {reason}", yellow=True, bold=True)
    terminalreporter.line(f"{len(skipped)} in all", yellow=True, bold=True)
