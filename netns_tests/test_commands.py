"""Commands to an engine in a process of its own, with Linux at the other end of the wire."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns_tests.programs import started, written
from xdpstack.lab import Namespace
from xdpstack.port import Subscription
from xdpstack.publish import Commander, StreamNews, Subscriber

Pair = tuple[Namespace, Namespace]
PATIENCE = 60.0
OWN = "10.77.0.9"


class Engine:
    """A running program of ``xdpstack run``, as another process sees it."""

    def __init__(self, reader: Subscriber, commander: Commander) -> None:
        self.reader, self.ask = reader, commander
        self.answers: dict[int, tuple[str, int]] = {}
        self.streams: list[StreamNews] = []
        self.data: dict[int, bytes] = {}

    def until(self, holds) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, (self.answers, self.streams)
            self.reader.wait(0.1)
            for news in self.reader.read():
                if news.kind == "answer":
                    number, why = news.answer()
                    self.answers[number] = why, news.connection()
                elif news.kind == "stream":
                    one = news.stream()
                    self.data[one.connection] = self.data.get(one.connection, b"") + one.data.tobytes()
                    self.streams.append(one._replace(data=one.data.copy()))

    def answer(self, number: int) -> tuple[str, int]:
        self.until(lambda: number in self.answers)
        return self.answers[number]

    def opened(self) -> list[StreamNews]:
        return [one for one in self.streams if "open" in one.what]


@contextlib.contextmanager
def running(trader: Namespace, folder: Path, options: str) -> Iterator[Engine]:
    more = f'[publish]\ntape = "{folder}/tape"\ntcp = true\n[commands]\nring = "{folder}/ring"\n'
    process = started(trader, written(folder, options=options, more=more))
    try:
        with Subscriber.open(folder / "tape", oldest=True) as reader, Commander(folder / "ring") as commander:
            yield Engine(reader, commander)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert not (folder / "tape").exists()
        assert not (folder / "ring").exists()
    finally:
        process.kill()
        process.communicate()


def test_an_engine_that_is_told_to_listen_accepts_whom_linux_sends(lab_pair: Pair, tmp_path: Path) -> None:
    venue, trader = lab_pair
    with running(trader, tmp_path, f'address = "{OWN}/24"') as engine:
        why, listener = engine.answer(engine.ask.listen(8080, backlog=2))
        assert (why, listener > 0) == ("", True)
        with contextlib.ExitStack() as stack:
            clients = []
            for number in range(4):
                with venue.enter():
                    client = socket.create_connection((OWN, 8080), timeout=PATIENCE)
                clients.append(stack.enter_context(client))
                engine.until(lambda number=number: len(engine.opened()) == number + 1)
                news = engine.opened()[number]
                assert (news.local, news.remote) == ((OWN, 8080), client.getsockname())
                client.sendall(b"order %d" % number)
                engine.until(lambda n=news, k=number: engine.data.get(n.connection) == b"order %d" % k)
                assert engine.answer(engine.ask.write(news.connection, b"done %d" % number))[0] == ""
                assert client.recv(64) == b"done %d" % number
            assert engine.answer(engine.ask.hang_up(listener)) == ("", listener)
            with venue.enter(), pytest.raises(ConnectionRefusedError):
                socket.create_connection((OWN, 8080), timeout=PATIENCE)
            first = engine.opened()[0].connection
            assert engine.answer(engine.ask.write(first, b", still"))[0] == ""
            assert clients[0].recv(64) == b", still"
            assert engine.answer(engine.ask.reset(first))[0] == ""
            with pytest.raises(ConnectionResetError):
                clients[0].recv(64)


def test_a_port_that_shares_the_kernels_address_does_not_listen_by_command(
    lab_pair: Pair, tmp_path: Path
) -> None:
    _venue, trader = lab_pair
    with running(trader, tmp_path, "") as engine:
        assert engine.answer(engine.ask.listen(8080))[0] == "steering"


@pytest.mark.parametrize("off_link", ["192.0.2.1", "2001:db8::1"])
def test_a_datagram_that_finds_no_way_is_refused_as_that(
    lab_pair: Pair, tmp_path: Path, off_link: str
) -> None:
    _venue, trader = lab_pair
    with running(trader, tmp_path, f'address = "{OWN}/24"') as engine:
        to = Subscription(address=off_link, port=9)
        assert engine.answer(engine.ask.send(b"lost", to, sport=9))[0] == "route"
