"""``xdpstack top``: running engines on a live terminal screen, read from their mapped memory.

Keys: q ends, s sorts (name, rate, drops), p or the space bar pauses, e and E choose an engine, w shows the
latencies of the last interval, j and k or the arrows scroll. Without a terminal one screen is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from xdpstack.cli._numbers import some_seconds
from xdpstack.errors import SetupError

if TYPE_CHECKING:
    from xdpstack.screen import State
    from xdpstack.watch import Watch

__all__ = ["register"]

_ARROWS = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down"}


def register(commands: Any) -> None:
    """Add ``top``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "top", help="running engines on a live screen", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("engine", nargs="?", help="only this engine: its name or its process id")
    parser.add_argument(
        "--interval", type=some_seconds, default=1.0, metavar="S", help="seconds between two looks (1)"
    )
    parser.add_argument(
        "--once", action="store_true", help="two looks, one screen as text; so it is without a terminal"
    )
    parser.add_argument(
        "--json", action="store_true",
        help="two looks, one object: seconds, engines (rates, drops, latencies), tapes, dead",
    )  # fmt: skip
    parser.add_argument("--sort", choices=("name", "rate", "drops"), default="name", help="of engines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show them. 1 when the named engine is not there at the start."""
    try:
        from xdpstack.screen import State, as_object, as_text
    except ImportError:
        raise SetupError(
            "draw a screen", "rich is not installed", "pip install 'xdpstack[terminal]'"
        ) from None
    from xdpstack.watch import Watch

    watch, state = Watch(only=args.engine), State(sort=args.sort)
    first = watch.look()
    if args.once or args.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        if first.engines:
            time.sleep(args.interval)
            watch.look()
        if args.json:
            print(json.dumps(as_object(watch)))
        else:
            print(as_text(watch, state, shutil.get_terminal_size((140, 50)).columns), end="")
    elif first.engines or not args.engine:
        live(watch, state, args.interval)
    else:
        raise SetupError(f"watch engine {args.engine}", "there is none of that name or process id")
    return 0 if first.engines or not args.engine else 1


def live(watch: Watch, state: State, interval: float) -> None:
    """Draw until a key or a signal ends it; the terminal is left as it was."""
    from rich.console import Console
    from rich.live import Live

    from xdpstack.screen import Screen

    console = Console(highlight=False)
    with (
        _keys() as keys,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as screen,
    ):
        due = time.monotonic() + interval
        while True:
            assert watch.now is not None
            screen.update(Screen(watch, state, height=console.size.height), refresh=True)
            for key in keys(max(0.0, due - time.monotonic())):
                if not state.press(key, sorted(watch.now.engines)):
                    return
            if time.monotonic() >= due:
                due = time.monotonic() + interval
                if not state.paused:
                    watch.look()


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits so many seconds at most and gives the keys that were pressed: at once when there
    are some, and none at once when the window's size changed. SIGTERM is a ``q``."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)

    def wake(number: int, _: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(wake_write, b"q" if number == signal.SIGTERM else b"r")

    def read(seconds: float) -> list[str]:
        ready, _, _ = select.select([fd, wake_read], [], [], seconds)
        words = ["q"] if wake_read in ready and b"q" in os.read(wake_read, 64) else []
        if fd in ready:
            pressed = os.read(fd, 64).decode(errors="replace")
            words += _split(pressed) if pressed else ["q"]  # the terminal is gone
        return words

    handlers = {number: signal.signal(number, wake) for number in (signal.SIGWINCH, signal.SIGTERM)}
    try:
        tty.setcbreak(fd)
        yield read
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(wake_read)
        os.close(wake_write)


def _split(pressed: str) -> list[str]:
    """Keys out of what a terminal sent: arrows come as three characters."""
    found = []
    while pressed:
        word = _ARROWS.get(pressed[:3])
        found.append(word or pressed[0])
        pressed = pressed[3 if word else 1 :]
    return found
