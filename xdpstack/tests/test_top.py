"""`xdpstack top` on a terminal of its own: drawn, resized, asked by keys, ended; and without a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from xdpstack.cli.top import _split
from xdpstack.stats import Segment
from xdpstack.tests.watched import Shown

SECONDS = 60.0


@pytest.fixture
def engine() -> Iterator[Shown]:
    with Segment(f"top-{os.getpid()}") as segment:
        shown = Shown(segment)
        shown.second(1_000_000)
        yield shown


class Terminal:
    """A terminal that `top` runs on."""

    def __init__(self, *words: str, columns: int = 100, lines: int = 30, **environment: str) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xdpstack", "top", *words], stdin=theirs, stdout=theirs, stderr=theirs,
            env=_without_size(environment),
        )  # fmt: skip

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern: str) -> str:
        """Read until it was drawn; what was read is then forgotten."""
        end = time.monotonic() + SECONDS
        while not re.search(pattern, self.text, re.DOTALL):
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.text[-2000:]!r}"
            if select.select([self.ours], [], [], left)[0]:
                self.text += os.read(self.ours, 65536).decode(errors="replace")
        seen, self.text = self.text, ""
        return seen

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def ended(self) -> int:
        """Read on until it has ended: a terminal that nobody reads would hold it up."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < end
            if select.select([self.ours], [], [], 0.05)[0]:
                self.text += os.read(self.ours, 65536).decode(errors="replace")
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


def _without_size(environment: dict[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    return {**kept, "TERM": "xterm-256color", **environment}


@pytest.fixture
def run() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for one in made:
        one.close()


def test_it_draws_obeys_keys_and_a_new_size_and_leaves_the_terminal_as_it_was(
    engine: Shown, run: list[Terminal]
) -> None:
    terminal = Terminal(engine.segment.name, "--interval", "0.2")
    run.append(terminal)
    first = terminal.until(r"xdpstack top.*q quit")
    assert "\x1b[?1049h" in first, "a screen of its own"
    assert re.search(r"\x1b\[3[1-6]m", terminal.until(r"over 0.*q quit")), "in colours"
    terminal.press("s")
    terminal.until("by rate")
    terminal.press("p")
    terminal.until("PAUSED")
    terminal.press(" ")
    terminal.resize(100, 12)  # the kernel sends SIGWINCH to who runs in front of it only: say it
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.until(r"\d\d lines below")
    terminal.press("e")
    terminal.until("only top-")
    assert termios.tcgetattr(terminal.theirs) != terminal.before
    terminal.press("q")
    assert terminal.ended() == 0
    assert "\x1b[?1049l" in terminal.text
    assert termios.tcgetattr(terminal.theirs) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(
    engine: Shown, run: list[Terminal], number: int
) -> None:
    terminal = Terminal(engine.segment.name)
    run.append(terminal)
    terminal.until("q quit")
    terminal.process.send_signal(number)
    assert terminal.ended() == (0 if number == signal.SIGTERM else 130)
    assert termios.tcgetattr(terminal.theirs) == terminal.before


def test_no_color_takes_the_colours_away(engine: Shown, run: list[Terminal]) -> None:
    terminal = Terminal(engine.segment.name, "--interval", "0.2", NO_COLOR="1")
    run.append(terminal)
    text = terminal.until(r"over 0.*q quit")
    assert not re.search(r"\x1b\[[\d;]*\b(3[0-7]|9[0-7]|38;5)[\d;]*m", text)
    terminal.press("q")
    assert terminal.ended() == 0


def once(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xdpstack", "top", *words], capture_output=True, text=True, timeout=SECONDS,
        env=_without_size(environment), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_without_a_terminal_one_screen_is_printed(engine: Shown) -> None:
    done = once(engine.segment.name, "--interval", "0.1", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("xdpstack top · 1 engine · over 0.")
    assert "feed itch-a" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_one_object(engine: Shown) -> None:
    done = once(engine.segment.name, "--json", "--interval", "0.1")
    assert [e["engine"] for e in json.loads(done.stdout)["engines"]] == [engine.segment.name]


def test_an_engine_that_is_not_there_is_a_failure() -> None:
    done = once("no-such-engine", "--once")
    assert done.returncode == 1
    assert "no engine is running" in done.stdout


def test_keys_come_apart() -> None:
    assert _split("sq\x1b[A\x1b[Bx\x1bOA") == ["s", "q", "up", "down", "x", "up"]
