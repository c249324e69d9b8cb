"""A free-running engine speaks FIX over AF_XDP with a venue of simplefix; this process reads the tape."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns_tests.spoken import PATIENCE, VENUE, Engine, Pair, running, serving
from xdpstack.fix import parse
from xdpstack.lab import Namespace
from xdpstack.publish import SessionNews
from xdpstack.tests.tls_peer import NAME, make_certificates
from xdpstack.tls import tls_words

PORT = 9878
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


def opened(engine: Engine, kind: int = 0) -> int:
    connection = connect(engine, kind)
    engine.until(lambda: [one for one in engine.of(connection, "open") if one.protocol == "fix"])
    return connection


def connect(engine: Engine, kind: int = 0) -> int:
    """To one of the venue's ports."""
    why, connection = engine.answer(engine.ask.connect(VENUE, PORT + kind, session="venue"))
    assert why == ""
    return connection


def order(engine: Engine, connection: int, name: str) -> None:
    """Sent, and answered by an ExecutionReport."""
    data = f"35=D|11={name}|55=EUR/USD|54=1|38=100|".replace("|", "\x01").encode()
    assert engine.answer(engine.ask.write(connection, data)) == ("", connection)
    engine.until(lambda: reports(engine, connection)[-1:] == [name])


def reports(engine: Engine, connection: int) -> list[str]:
    return [dict(parse(one.data))[11].decode() for one in engine.of(connection, "message")]


def hang_up(engine: Engine, connection: int) -> SessionNews:
    """Its last event of FIX."""
    assert engine.answer(engine.ask.hang_up(connection, reason=b"enough")) == ("", connection)
    engine.last(connection)
    return [one for one in engine.of(connection) if one.protocol == "fix"][-1]


@contextlib.contextmanager
def speaking(
    trader: Namespace, folder: Path, server: subprocess.Popen[str], more: str = QUIET
) -> Iterator[Engine]:
    with running(trader, folder, TABLE.format(more=more), server, PORT, "fix") as engine:
        yield engine


def test_orders_go_both_ways_over_af_xdp_and_the_next_process_goes_on(lab_pair: Pair, tmp_path: Path) -> None:
    venue, trader = lab_pair
    with serving(venue, "netns_tests.fix_venue", PORT) as process:
        with speaking(trader, tmp_path, process) as engine:
            connection = opened(engine)
            assert engine.heard() == "A 1"
            first = engine.of(connection)[0]
            assert (first.session, first.code, first.seq, first.name) == ("venue", 600, 1, "A")
            for number in range(20):
                order(engine, connection, f"C-{number}")
                assert engine.heard() == f"D {number + 2} C-{number}"
            for one in engine.of(connection, "message"):
                received, woken, begun, done, parsed, called = one.stages
                assert received > 0  # may be behind the wake: a turn takes what comes while it looks
                assert 0 < woken <= parsed <= called
                assert received <= called
                assert (begun, done) == (0, 0)
            assert engine.answer(engine.ask.write(connection, b"", ping=True))[0] == ""
            engine.until(lambda: any(one.until for one in engine.of(connection, "heartbeat")))
            assert engine.heard() == "1 22"
            last = hang_up(engine, connection)
            assert engine.heard() == "5 23 enough"
            assert (last.what, last.seq, last.until) == ("closed", 24, 24)
            numbers = [one.number for one in engine.of(connection)]
            assert numbers == list(range(1, len(numbers) + 1))
            again = opened(engine)  # the same process, a new connection
            order(engine, again, "again")
            last = hang_up(engine, again)
            assert (last.what, last.seq, last.until) == ("closed", 27, 27)
            engine.until(lambda: engine.published.get("closed") == 2)
            stats = engine.published
            assert stats["received"] == stats["delivered"] == stats["sent"] == 26
            assert stats["reasons"] == {}
        assert [engine.heard() for _ in range(3)] == ["A 24", "D 25 again", "5 26 enough"]
        with speaking(
            trader, tmp_path, process, f"{QUIET}\nnext_in = {last.seq}\nnext_out = {last.until}"
        ) as engine:
            connection = opened(engine)
            order(engine, connection, "anew")
            assert [one.what for one in engine.of(connection)] == ["open", "message"]  # no gap on either side
            assert hang_up(engine, connection).what == "closed"
        assert [engine.heard() for _ in range(3)] == ["A 27", "D 28 anew", "5 29 enough"]


def test_a_venue_that_refuses_lies_or_loses(lab_pair: Pair, tmp_path: Path) -> None:
    venue, trader = lab_pair
    with (
        serving(venue, "netns_tests.fix_venue", PORT) as process,
        speaking(trader, tmp_path, process, f"{QUIET}\nreset = true") as engine,
    ):
        refused = engine.last(connect(engine, 1))
        assert (refused.what, refused.reason) == ("failed", "refused")
        assert refused.data == b"the Logon was refused: market is closed"
        lied = engine.last(connect(engine, 2))
        assert (lied.what, lied.reason, lied.data) == ("failed", "comp_id", b"CompID problem")
        connection = opened(engine, 3)
        engine.until(lambda: engine.of(connection, "filled"))
        assert [one.what for one in engine.of(connection)] == ["open", "gap", "message", "message", "filled"]
        lost, after = engine.of(connection, "message")
        assert [dict(parse(one.data))[148] for one in (lost, after)] == [b"lost", b"next"]
        assert hang_up(engine, connection).what == "closed"
        engine.until(lambda: engine.published.get("closed") == 1)
        stats = engine.published
        assert stats["failed"] == 2
        assert stats["reasons"] == {"comp_id": 1, "ahead": 1}
        assert stats["received"] == stats["delivered"] + 2


@pytest.mark.parametrize("how", ["killed", "stopped", "nobody"])
def test_a_venue_that_is_gone(lab_pair: Pair, tmp_path: Path, how: str) -> None:
    venue, trader = lab_pair
    more = "heartbeat = 1" if how == "stopped" else QUIET
    with (
        serving(venue, "netns_tests.fix_venue", PORT) as process,
        speaking(trader, tmp_path, process, more) as engine,
    ):
        if how == "nobody":
            process.kill()
            process.wait(PATIENCE)
            connection = connect(engine)
            engine.until(lambda: connection in engine.ended)
            assert engine.of(connection) == []  # nobody spoke
        else:
            connection = opened(engine)
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


def test_it_goes_over_tls(lab_pair: Pair, tmp_path: Path) -> None:
    venue, trader = lab_pair
    certs = make_certificates(tmp_path)
    more = (
        f'{QUIET}\ntls = true\nserver_name = "{NAME}"\nca_file = "{certs}/ca.pem"\nhandshake_timeout = 60.0'
    )
    with (
        serving(
            venue, "netns_tests.fix_venue", PORT, f"{certs}/server.pem", f"{certs}/server.key"
        ) as process,
        speaking(trader, tmp_path, process, more) as engine,
    ):
        for round in range(2):  # the next connection goes on with FIX's numbers
            connection = opened(engine)
            layer, logon = engine.of(connection, "open")
            assert (layer.protocol, tls_words(layer)["verified"]) == ("tls", True)
            assert (logon.protocol, logon.seq) == ("fix", 1 + 12 * round)
            for number in range(10):
                order(engine, connection, f"C-{round}-{number}")
            for one in engine.of(connection, "message"):
                received, woken, begun, done, parsed, called = one.stages
                assert received > 0
                assert 0 < woken <= begun <= done <= parsed <= called
            last = hang_up(engine, connection)
            assert (last.what, last.seq, last.until) == ("closed", 13 + 12 * round, 13 + 12 * round)
            assert engine.of(connection, "failed") == []
        engine.until(lambda: engine.published.get("closed") == 2)
        assert engine.published["received"] == engine.published["delivered"] == 24
