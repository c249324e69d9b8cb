"""A free-running engine speaks FIX over AF_XDP with a venue of simplefix; this process reads the tape."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netns_tests.programs import started, written
from xdpstack.fix import parse
from xdpstack.lab import Namespace
from xdpstack.publish import Commander, SessionNews, Subscriber

Pair = tuple[Namespace, Namespace]
PATIENCE = 60.0
OWN, VENUE, PORT = "10.77.0.9", "10.77.0.1", 9878
TABLE = """
[[session]]
name = "venue"
protocol = "fix"
sender_comp_id = "BUYSIDE"
target_comp_id = "VENUE"
open_timeout = 60.0
close_timeout = 60.0
resend_timeout = 60.0
{more}
"""
QUIET = "heartbeat = 600"


class Engine:
    """A running program, as another process sees it."""

    def __init__(self, reader: Subscriber, ask: Commander) -> None:
        self.reader, self.ask = reader, ask
        self.answers: dict[int, tuple[str, int]] = {}
        self.said: list[SessionNews] = []
        self.ended: set[int] = set()
        self.published: dict[str, Any] = {}

    def until(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, (self.answers, self.said, self.ended)
            self.reader.wait(0.1)
            for news in self.reader.read():
                if news.kind == "answer":
                    number, why = news.answer()
                    self.answers[number] = why, news.connection()
                elif news.kind == "stream":
                    one = news.stream()
                    assert not len(one.data)  # a session's bytes are not published besides
                    if {"closed", "reset", "refused"} & set(one.what):
                        self.ended.add(one.connection)
                elif news.kind == "fix":
                    told = news.session()
                    self.said.append(told._replace(data=told.data.tobytes()))
                elif news.kind == "state":
                    self.published = news.state()["published"]["sessions"]["fix"]

    def answer(self, number: int) -> tuple[str, int]:
        self.until(lambda: number in self.answers)
        return self.answers[number]

    def connect(self, kind: int = 0) -> int:
        why, connection = self.answer(self.ask.connect(VENUE, PORT + kind, session="venue"))
        assert why == ""
        return connection

    def of(self, connection: int, *what: str) -> list[SessionNews]:
        return [one for one in self.said if one.connection == connection and (not what or one.what in what)]

    def opened(self, kind: int = 0) -> int:
        connection = self.connect(kind)
        self.until(lambda: self.of(connection, "open"))
        return connection

    def order(self, connection: int, name: str) -> None:
        """Sent, and answered by an ExecutionReport."""
        data = f"35=D|11={name}|55=EUR/USD|54=1|38=100|".replace("|", "\x01").encode()
        assert self.answer(self.ask.write(connection, data)) == ("", connection)
        self.until(lambda: self.reports(connection)[-1:] == [name])

    def reports(self, connection: int) -> list[str]:
        return [dict(parse(one.data))[11].decode() for one in self.of(connection, "message")]

    def last(self, connection: int) -> SessionNews:
        """Its last event, once its TCP connection is gone."""
        self.until(lambda: connection in self.ended)
        return self.of(connection)[-1]

    def hang_up(self, connection: int) -> SessionNews:
        assert self.answer(self.ask.hang_up(connection, reason=b"enough")) == ("", connection)
        return self.last(connection)


@contextlib.contextmanager
def trading(venue: Namespace) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "netns_tests.fix_venue", VENUE, str(PORT)]
    process = venue.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def heard(process: subprocess.Popen[str]) -> str:
    """The venue's next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def running(trader: Namespace, folder: Path, more: str = QUIET) -> Iterator[Engine]:
    published = f'[publish]\ntape = "{folder}/tape"\ntcp = true\n[commands]\nring = "{folder}/ring"\n'
    program = written(folder, options=f'address = "{OWN}/24"', more=published + TABLE.format(more=more))
    process = started(trader, program)
    try:
        with (
            Subscriber.open(folder / "tape", oldest=True) as reader,
            Commander(folder / "ring", sessions=reader.sessions) as ask,
        ):
            yield Engine(reader, ask)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert not (folder / "tape").exists()
        assert not (folder / "ring").exists()
    finally:
        process.kill()
        process.communicate()


def test_orders_go_both_ways_over_af_xdp_and_the_next_process_goes_on(lab_pair: Pair, tmp_path: Path) -> None:
    venue, trader = lab_pair
    with trading(venue) as process:
        with running(trader, tmp_path) as engine:
            connection = engine.opened()
            assert heard(process) == "A 1"
            opened = engine.of(connection)[0]
            assert (opened.session, opened.code, opened.seq, opened.name) == ("venue", 600, 1, "A")
            for number in range(20):
                engine.order(connection, f"C-{number}")
                assert heard(process) == f"D {number + 2} C-{number}"
            for one in engine.of(connection, "message"):
                received, woken, begun, done, parsed, called = one.stages
                assert received > 0  # may be behind the wake: a turn takes what comes while it looks
                assert 0 < woken <= parsed <= called
                assert received <= called
                assert (begun, done) == (0, 0)
            assert engine.answer(engine.ask.write(connection, b"", ping=True))[0] == ""
            engine.until(lambda: any(one.until for one in engine.of(connection, "heartbeat")))
            assert heard(process) == "1 22"
            last = engine.hang_up(connection)
            assert heard(process) == "5 23 enough"
            assert (last.what, last.seq, last.until) == ("closed", 24, 24)
            numbers = [one.number for one in engine.of(connection)]
            assert numbers == list(range(1, len(numbers) + 1))
            again = engine.opened()  # the same process, a new connection
            engine.order(again, "again")
            last = engine.hang_up(again)
            assert (last.what, last.seq, last.until) == ("closed", 27, 27)
            engine.until(lambda: engine.published.get("closed") == 2)
            stats = engine.published
            assert stats["received"] == stats["delivered"] == stats["sent"] == 26
            assert stats["reasons"] == {}
        assert [heard(process) for _ in range(3)] == ["A 24", "D 25 again", "5 26 enough"]
        with running(trader, tmp_path, f"{QUIET}\nnext_in = {last.seq}\nnext_out = {last.until}") as engine:
            connection = engine.opened()
            engine.order(connection, "anew")
            assert [one.what for one in engine.of(connection)] == ["open", "message"]  # no gap on either side
            assert engine.hang_up(connection).what == "closed"
        assert [heard(process) for _ in range(3)] == ["A 27", "D 28 anew", "5 29 enough"]


def test_a_venue_that_refuses_lies_or_loses(lab_pair: Pair, tmp_path: Path) -> None:
    venue, trader = lab_pair
    with trading(venue), running(trader, tmp_path, f"{QUIET}\nreset = true") as engine:
        refused = engine.last(engine.connect(1))
        assert (refused.what, refused.reason) == ("failed", "refused")
        assert refused.data == b"the Logon was refused: market is closed"
        lied = engine.last(engine.connect(2))
        assert (lied.what, lied.reason, lied.data) == ("failed", "comp_id", b"CompID problem")
        connection = engine.opened(3)
        engine.until(lambda: engine.of(connection, "filled"))
        assert [one.what for one in engine.of(connection)] == ["open", "gap", "message", "message", "filled"]
        lost, after = engine.of(connection, "message")
        assert [dict(parse(one.data))[148] for one in (lost, after)] == [b"lost", b"next"]
        assert engine.hang_up(connection).what == "closed"
        engine.until(lambda: engine.published.get("closed") == 1)
        stats = engine.published
        assert stats["failed"] == 2
        assert stats["reasons"] == {"comp_id": 1, "ahead": 1}
        assert stats["received"] == stats["delivered"] + 2


@pytest.mark.parametrize("how", ["killed", "stopped", "nobody"])
def test_a_venue_that_is_gone(lab_pair: Pair, tmp_path: Path, how: str) -> None:
    venue, trader = lab_pair
    more = "heartbeat = 1" if how == "stopped" else QUIET
    with trading(venue) as process, running(trader, tmp_path, more) as engine:
        if how == "nobody":
            process.kill()
            process.wait(PATIENCE)
            connection = engine.connect()
            engine.until(lambda: connection in engine.ended)
            assert engine.of(connection) == []  # nobody spoke
        else:
            connection = engine.opened()
            process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            last = engine.last(connection)
            assert (last.what, last.reason) == ("failed", "hung_up" if how == "killed" else "silent")
            assert last.data == (
                b"the peer ended the connection, and not the session"
                if how == "killed"
                else b"nothing came, not even in answer to a TestRequest"
            )
            assert bool(engine.of(connection, "tested")) == (how == "stopped")
            engine.until(lambda: engine.published.get("failed") == 1)
        assert engine.answer(engine.ask.write(connection, b"35=D\x01"))[0] in ("connection", "not_open")
