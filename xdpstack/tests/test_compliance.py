"""tools/compliance.py: COMPLIANCE.md is what the tests' tags say, and nothing is kept that no test holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compliance():
    spec = importlib.util.spec_from_file_location("compliance", ROOT / "tools" / "compliance.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compliance"] = module
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_the_tags_say(compliance):
    assert list(compliance.problems(compliance.tags())) == []
    stale = compliance.TARGET.read_text() != compliance.written(compliance.tags())
    assert not stale, "COMPLIANCE.md is stale: run `make compliance`"


def test_every_requirement_of_the_appendix_stands_there(compliance):
    numbers = {row.number for rows in compliance.rows().values() for row in rows}
    wanted = {("MUST", 69), ("SHLD", 31), ("MAY", 18), ("REC", 1)}
    assert numbers == {f"{word}-{i}" for word, last in wanted for i in range(1, last + 1)}


def test_what_does_not_fit_is_said(compliance):
    table = (
        "\n# One\nMUST-1 | a | kept |\nMUST-2 | b | perhaps |\nMUST-1 | a | not yet |\nMAY-1 | c | kept |\n"
    )
    found = {("9293", "MUST-1"): ["t::a"], ("9293", "MUST-99"): ["t::b"], ("9293", "3.4"): ["t::c"]}
    assert list(compliance.problems(found, table)) == [
        "MUST-2: 'perhaps' is no verdict",
        "MUST-1 stands there twice",
        "MUST-1 is not yet kept, and a test holds it",
        "MAY-1 is kept, and no test holds it",
        "a test is tagged MUST-99, which RFC 9293 has not",
    ]


def test_tags_are_read_without_running_a_test(compliance, tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text(
        'import pytest\n\n\n@pytest.mark.rfc("1", "MUST-1", "2.3")\n@pytest.mark.parametrize("x", [1])\n'
        "def test_a(x):\n    raise SystemExit\n\n\ndef test_b():\n    pass\n"
    )
    assert compliance.tags([file]) == {
        ("1", "MUST-1"): ["test_it::test_a"],
        ("1", "2.3"): ["test_it::test_a"],
    }
