"""The main job, end to end, in a lab of its own: ``make demo``.

A venue namespace plays three feeds at once, each line damaged by a seed, and answers (and once
refuses) retransmission requests. A trader namespace steers them by XDP into AF_XDP, arbitrates,
recovers, decodes and builds books; then the same again over kernel sockets. An auditor that knows
what was sent holds both runs to it. Two trading cores, processes of their own, read the trader's engine by a
tape, one of them sends orders by a command ring, and both must have seen what the engine gave.

    demo/         the order of things, progress, exit code
    demo/play.py    what is played, and with which damage
    demo/trader.py  the trader's process
    demo/core.py    a trading core; demo/cores.py: two of them, the order desk, and whether they agree
    demo/audit.py   who checks, against the venue's truth and the trader's own recording
    demo/report.py  tables
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xdpstack import stats
from xdpstack.demo import audit, cores, play, report, trader
from xdpstack.errors import SetupError
from xdpstack.feed import FeedConfig
from xdpstack.lab import Lab, sweep
from xdpstack.lab.mold import RequestServer
from xdpstack.lab.namespace import Child, Namespace
from xdpstack.lab.venue import Play, Player

__all__ = ["run"]

_VENUE, _TRADER = "10.77.0.1", "10.77.0.2"
_QUIET = 0.6  # seconds after the last packet: windows and requests end in less


class Progress:
    """One line on a terminal, rewritten; plain lines elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        """A step begins."""
        end = "\x1b[K\r" if self._terminal else "\n"
        print(f"[{time.monotonic() - self._began:5.1f} s] {what}", end=end, file=sys.stderr, flush=True)

    def show(self, what: str) -> None:
        """News within a step: on a terminal only."""
        if self._terminal:
            self.say(what)

    def done(self) -> None:
        """Leave the line free."""
        if self._terminal:
            print("\x1b[K", end="\r", file=sys.stderr, flush=True)


class TraderProcess:
    """The trader's child: tells its progress by a pipe, ends when a trading core has its engine shut down."""

    def __init__(
        self,
        namespace: Namespace,
        transport: str,
        feeds: Sequence[FeedConfig],
        files: tuple[Path, Path],
        folder: Path,
    ) -> None:
        """``files``: tape and command ring, which the trader makes."""
        self._news_r, self._news_w = os.pipe()
        self.child: Child = namespace.fork(self._main, transport, feeds, files, folder)
        os.close(self._news_w)
        self._news = os.fdopen(self._news_r, "r")

    def _main(
        self, transport: str, feeds: Sequence[FeedConfig], files: tuple[Path, Path], folder: Path
    ) -> int:
        os.close(self._news_r)
        return trader.main(transport, feeds, files, folder, self._news_w)

    def wait_ready(self) -> int:
        """Until it listens; the port that it sends from. SetupError with its own words when it could not."""
        for line in self._news:
            word = json.loads(line)
            if "failed" in word:
                raise SetupError("the trader could not start", word["failed"])
            if "ready" in word:
                return int(word["ready"])
        raise SetupError("the trader ended before it listened", f"exit code {self.child.wait(5)}")

    def check(self) -> None:
        """It has ended: was all well?"""
        failed = [word["failed"] for word in map(json.loads, self._news) if "failed" in word]
        code = self.child.wait(60)
        if code or failed:
            raise SetupError("the trader failed", failed[0] if failed else f"exit code {code}")

    def close(self) -> None:
        """End it at once, whatever it does."""
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait(5)
        self._news.close()


@contextlib.contextmanager
def _request_server(venue: Namespace, playing: Play) -> Iterator[RequestServer]:
    server = RequestServer(venue, _VENUE, play.REQUEST_PORT, playing.answerer("itch50"), cpu=0)
    with server:
        yield server


def _one_run(
    lab: Lab,
    playing: Play,
    trading_feeds: Sequence[FeedConfig],
    transport: str,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Play everything once into a trader over one transport. Returns what both ends say."""
    venue, there = lab.namespaces["venue"], lab.namespaces["trader"]
    folder.mkdir(parents=True, exist_ok=True)
    files = cores.shared(lab, transport)
    with (
        _request_server(venue, playing) as server,
        contextlib.closing(cores.Desk(venue, _VENUE)) as desk,
        contextlib.closing(TraderProcess(there, transport, trading_feeds, files, folder)) as trading,
    ):
        segment = stats.ROOT / f"xdpstack-{trading.child.pid}-demo-{transport}.stat"
        for path in (segment, stats.tap_path(segment), f"{files[0]}.{trading.child.pid}.new"):
            lab.owns(path)  # were it killed
        sport = trading.wait_ready()
        with contextlib.closing(cores.Cores(there, files, desk, sport, folder)) as reading:
            played = _play(venue, playing, transport, desk, progress)
            reading.shut_down(trading.child)
            trading.check()
            seen = reading.results()
        desk.look()
        requests = server.counters()
    result: dict[str, Any] = json.loads((folder / "trader.json").read_text())
    result["venue"] = {"played": played, "request_server": requests}
    result["cores"], result["desk"] = seen, desk.orders
    return result


def _play(
    venue: Namespace, playing: Play, transport: str, desk: cores.Desk, progress: Progress
) -> dict[str, Any]:
    """Everything once, and the silence after it."""
    with Player(venue, playing, source=_VENUE, cpu=0) as player:
        while player.running:
            news = player.progress()
            if news and "total" in news:
                progress.show(f"{transport}: {news['sent']:,} of {news['total']:,} packets played")
            desk.look()
            time.sleep(0.1)
        played = player.wait(10)
    time.sleep(_QUIET)
    return played


def run(out: Path, seconds: float = 10.0, transports: tuple[str, ...] = ("xsk", "sock")) -> int:
    """The whole demo. Writes ``out`` (JSON); returns 0 only if every promise was kept."""
    if os.geteuid():
        raise SetupError("the demo makes namespaces and loads XDP", "not root", "sudo make demo", 1)
    progress = Progress()
    sweep()
    stats.sweep()
    folder = out.parent / "demo"
    progress.say("preparing what the venue will play")
    feeds = play.feeds(seconds)
    playing = play.damaged(feeds)
    configs = play.trader_feeds(feeds, _VENUE)
    result: dict[str, Any] = {"play": playing.as_dict(), "runs": {}, "audit": {}}
    with Lab("demo") as lab:
        venue, there = lab.namespace("venue"), lab.namespace("trader")
        lab.veth(venue, "v0", f"{_VENUE}/24", there, "t0", f"{_TRADER}/24")
        for transport in transports:
            progress.say(f"{transport}: playing {len(playing.times):,} packets in {playing.seconds:.0f} s")
            result["runs"][transport] = _one_run(
                lab, playing, configs, transport, folder / transport, progress
            )
    progress.say("auditing: the venue's truth, the recordings, the undamaged stream")
    for transport in transports:
        result["audit"][transport] = audit.audit(
            result["runs"][transport], playing, feeds, folder / transport
        )
    result["ok"] = all(finding["ok"] for finding in result["audit"].values())
    progress.done()
    report.show(result)
    out.write_text(json.dumps(result, indent=1))
    print(f"\neverything in {out}; recordings in {folder}")
    return 0 if result["ok"] else 1
