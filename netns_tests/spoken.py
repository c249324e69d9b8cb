"""A running engine whose connections speak protocols, as another process sees it and commands it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from netns_tests.programs import started, written
from xdpstack.lab import Namespace
from xdpstack.publish import Commander, SessionNews, Subscriber

__all__ = ["OWN", "PATIENCE", "VENUE", "Engine", "Pair", "running", "serving"]

Pair = tuple[Namespace, Namespace]
PATIENCE = 60.0
OWN, VENUE = "10.77.0.9", "10.77.0.1"


class Engine:
    """The program; ``server`` is whom it meets, at ``port``."""

    def __init__(
        self, reader: Subscriber, ask: Commander, server: subprocess.Popen[str], port: int, protocol: str
    ) -> None:
        self.reader, self.ask, self.server, self.port, self.protocol = reader, ask, server, port, protocol
        self.answers: dict[int, tuple[str, int]] = {}
        self.said: list[SessionNews] = []
        self.ended: set[int] = set()
        self.published: dict[str, Any] = {}
        """What sessions of the protocol have counted."""

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
                elif news.kind in ("tls", "ws", "fix"):
                    told = news.session()
                    self.said.append(told._replace(data=told.data.tobytes()))
                elif news.kind == "state":
                    self.published = news.state()["published"]["sessions"][self.protocol]

    def answer(self, number: int) -> tuple[str, int]:
        self.until(lambda: number in self.answers)
        return self.answers[number]

    def connect(self, session: str) -> int:
        why, connection = self.answer(self.ask.connect(VENUE, self.port, session=session))
        assert why == ""
        return connection

    def of(self, connection: int, *what: str) -> list[SessionNews]:
        return [one for one in self.said if one.connection == connection and (not what or one.what in what)]

    def last(self, connection: int) -> SessionNews:
        """Its last event, once its TCP connection is gone, too."""
        self.until(lambda: connection in self.ended and self.of(connection, "closed", "failed"))
        return self.of(connection)[-1]

    def heard(self) -> str:
        """The server's next line."""
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()


@contextlib.contextmanager
def running(
    trader: Namespace, folder: Path, tables: str, server: subprocess.Popen[str], port: int, protocol: str
) -> Iterator[Engine]:
    """An engine with ``tables`` of sessions; what it made is gone afterwards."""
    published = f'[publish]\ntape = "{folder}/tape"\ntcp = true\n[commands]\nring = "{folder}/ring"\n'
    program = written(folder, options=f'address = "{OWN}/24"', more=published + tables)
    process = started(trader, program)
    try:
        with (
            Subscriber.open(folder / "tape", oldest=True) as reader,
            Commander(folder / "ring", sessions=reader.sessions) as ask,
        ):
            yield Engine(reader, ask, server, port, protocol)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert not (folder / "tape").exists()
        assert not (folder / "ring").exists()
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def serving(venue: Namespace, module: str, port: int, *files: str) -> Iterator[subprocess.Popen[str]]:
    """A program of ours that listens there, ready; ``files``: its certificate and key, for TLS."""
    command = [sys.executable, "-m", module, VENUE, str(port), *files]
    process = venue.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
