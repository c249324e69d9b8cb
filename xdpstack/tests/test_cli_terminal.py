"""Progress shows on a terminal, and only there: a line that is rewritten, gone at the end."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdpstack.demo import Progress

CAPTURE = Path(__file__).parents[1] / "captures" / "iex-deep10-2017-04-25.pcap.gz"
REPLAY = [sys.executable, "-m", "xdpstack", "feed", "replay", str(CAPTURE), "--feed", "iex-deep", "--json"]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """(what a user sees, what a program writes to)."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def seen(ours: int) -> str:
    """What was shown until the last writer closed it."""
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # EIO: nobody holds the other end
            break
        if not part:
            break
        text += part
    return text.decode()


def test_a_replay_counts_its_packets_on_a_terminal_and_leaves_the_line_free(
    terminal: tuple[int, int],
) -> None:
    ours, theirs = terminal
    running = subprocess.Popen(REPLAY, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = seen(ours)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    result = json.loads(out)
    assert result["packets"] + result["truncated"] == 121_315
    counts = [int(part.removesuffix(" packets").replace(",", "")) for part in shown.split("\r")[1:-1]]
    assert counts == sorted(counts)
    assert counts
    assert shown.endswith("\r\x1b[K"), "the line is free again"


def test_without_a_terminal_nothing_is_shown() -> None:
    done = subprocess.run(REPLAY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_demos_progress_is_one_line_on_a_terminal(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = terminal
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress()
        progress.say("preparing")
        progress.show("xsk: 1,000 of 2,000 packets played")
        progress.done()
        monkeypatch.undo()
    shown = seen(ours)
    assert "\n" not in shown
    assert "preparing\x1b[K\r" in shown
    assert "1,000 of 2,000" in shown
    assert shown.endswith("\x1b[K\r")


def test_the_demos_steps_are_lines_elsewhere_without_the_news(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.say("preparing")
    progress.show("xsk: 1,000 of 2,000 packets played")
    progress.done()
    shown = capsys.readouterr().err
    assert shown.endswith("preparing\n")
    assert shown.count("\n") == 1
