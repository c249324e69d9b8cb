"""What a test run prints at its end: skips by reason, counted."""

import os
import subprocess
import sys

TESTS = """
import pytest
from hypothesis import given, settings, strategies as st

@pytest.mark.parametrize("i", range(3))
def test_skipped(i):
    pytest.skip("no such device")

def test_alone():
    pytest.skip("no peer installed")

def test_packets():
    assert [b"a" * 60, b"b" * 9000] == [b"a" * 60, b"c" * 9000, b""]

@given(st.integers())
def test_wrong(x):
    assert x < 10
"""


def test_skips_are_counted_by_reason_and_failures_say_how_to_see_them_again(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "xdpstack._pytest",
            "-p",
            "no:cacheprovider",
            tmp_path / "test_some.py",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CI": "1"},
    )
    assert "3 tests could not run: no such device" in done.stdout
    assert "1 test could not run: no peer installed" in done.stdout
    assert "4 in all" in done.stdout
    assert "2 packets == 3 packets" in done.stdout
    assert "the first that differs is number 1:" in done.stdout
    assert f"left:  9000 bytes {'62' * 32}\n" in done.stdout
    assert "62" * 100 not in done.stdout, "a log's end is not to be filled with packets"
    assert "reproduce_failure" in done.stdout
    assert done.returncode == 1
