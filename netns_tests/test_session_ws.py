"""A free-running engine speaks WebSocket over AF_XDP with a server of `websockets`; the tape tells of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns_tests.spoken import PATIENCE, Engine, Pair, running, serving

PORT = 8765
TABLE = """
[[session]]
name = "{name}"
protocol = "ws"
host = "venue.example:8765"
path = "/{name}"
subprotocols = ["v2", "v1"]
open_timeout = 60.0
close_timeout = 60.0
ping_timeout = 60.0
{more}
"""


@contextlib.contextmanager
def speaking(pair: Pair, folder: Path, *sessions: str, more: str = "") -> Iterator[Engine]:
    venue, trader = pair
    tables = "".join(TABLE.format(name=name, more=more) for name in sessions)
    with (
        serving(venue, "netns_tests.ws_peer", PORT) as server,
        running(trader, folder, tables, server, PORT, "ws") as engine,
    ):
        yield engine


def test_messages_go_both_ways_over_af_xdp_and_the_end_is_in_order(lab_pair: Pair, tmp_path: Path) -> None:
    with speaking(lab_pair, tmp_path, "echo", more="ping_interval = 0.2") as engine:
        connection = engine.connect("echo")
        engine.until(lambda: engine.of(connection, "open"))
        opened = engine.of(connection)[0]
        assert (opened.what, opened.data, opened.code, opened.session) == ("open", b"v1", 101, "echo")
        assert engine.heard() == "open /echo v1"
        sent = [(b"order %d" % n if n % 2 else bytes([n]) * 9000, n % 2 == 1) for n in range(20)]
        for data, text in sent:
            assert engine.answer(engine.ask.write(connection, data, text=text)) == ("", connection)
            engine.until(lambda d=data: [one.data for one in engine.of(connection, "message")][-1:] == [d])
        came = engine.of(connection, "message")
        assert [(one.data, one.text) for one in came] == sent
        for one in came:
            received, woken, begun, done, parsed, called = one.stages
            assert received > 0  # the kernel's clock, and a turn takes what comes while it looks
            assert 0 < woken <= parsed <= called
            assert (begun, done) == (0, 0)
        engine.until(lambda: any(pong.until > 0 for pong in engine.of(connection, "pong")))
        assert engine.answer(engine.ask.hang_up(connection, code=4001, reason=b"enough"))[0] == ""
        last = engine.last(connection)
        assert (last.what, last.code) == ("closed", 4001)
        assert engine.heard() == "end 4001 enough"
        numbers = [one.number for one in engine.of(connection)]
        assert numbers == list(range(1, len(numbers) + 1))
        engine.until(lambda: engine.published.get("closed") == 1)
        stats = engine.published
        assert stats["received"] == stats["delivered"] > 20
        assert stats["reasons"] == {}


def test_a_server_that_closes_refuses_or_lies(lab_pair: Pair, tmp_path: Path) -> None:
    with speaking(lab_pair, tmp_path, "bye", "refuse", "liar") as engine:
        connection = engine.connect("bye")
        last = engine.last(connection)
        assert [one.what for one in engine.of(connection)] == ["open", "message", "closing", "closed"]
        assert [one.data for one in engine.of(connection)][1:3] == [b"welcome", b"going"]
        assert last.code == 1001
        refused = engine.last(engine.connect("refuse"))
        assert (refused.what, refused.reason, refused.detail) == ("failed", "status", 403)
        assert refused.data == b"the server does not switch: HTTP/1.1 403 Forbidden"
        lied = engine.last(engine.connect("liar"))
        assert (lied.what, lied.reason) == ("failed", "accept")
        assert lied.data == b"the answer's Sec-WebSocket-Accept is not that of our key"
        engine.until(lambda: engine.published.get("failed") == 2)
        stats = engine.published
        assert stats["reasons"] == {"status": 1, "accept": 1}
        assert stats["received"] == stats["delivered"] + 2


@pytest.mark.parametrize("how", ["killed", "nobody"])
def test_a_server_that_is_gone(lab_pair: Pair, tmp_path: Path, how: str) -> None:
    with speaking(lab_pair, tmp_path, "echo") as engine:
        if how == "killed":
            connection = engine.connect("echo")
            engine.until(lambda: engine.of(connection, "open"))
            engine.server.kill()
            last = engine.last(connection)
            assert (last.what, last.reason) == ("failed", "eof")
            assert last.data == b"the connection ended without a close frame"
            engine.until(lambda: engine.published.get("failed") == 1)
        else:
            engine.server.kill()
            engine.server.wait(PATIENCE)
            connection = engine.connect("echo")
            engine.until(lambda: connection in engine.ended)
            assert engine.of(connection) == []  # nobody spoke
        assert engine.answer(engine.ask.write(connection, b"late"))[0] in ("connection", "not_open")
