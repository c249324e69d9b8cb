"""A running engine speaks TLS over AF_XDP with `openssl s_server`, WebSocket over it with `websockets`."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns_tests import spoken, test_session_ws
from netns_tests.spoken import PATIENCE, VENUE, Engine, Pair, running
from xdpstack.lab import Namespace
from xdpstack.tests.tls_peer import NAME, make_certificates
from xdpstack.tls import tls_words

PORT = 8443
TABLE = """
[[session]]
name = "{name}"
protocol = "tls"
server_name = "{whom}"
ca_file = "{certs}/ca.pem"
alpn = ["h2", "fix"]
handshake_timeout = 60.0
close_timeout = 60.0
"""
WSS = """
[[session]]
name = "echo"
protocol = "ws"
host = "{name}:8765"
path = "/echo"
subprotocols = ["v1"]
open_timeout = 60.0
close_timeout = 60.0
tls = true
ca_file = "{certs}/ca.pem"
handshake_timeout = 60.0
"""


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextlib.contextmanager
def serving(
    venue: Namespace, certs: Path, *words: str, name: str = "server"
) -> Iterator[subprocess.Popen[str]]:
    """The program with a certificate by name: it sends each line back, its letters in reverse."""
    files = ("-cert", str(certs / f"{name}.pem"), "-key", str(certs / f"{name}.key"))
    command = ["openssl", "s_server", "-accept", f"{VENUE}:{PORT}", *files, "-alpn", "fix", "-rev", *words]
    process = venue.popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert any(line.startswith("ACCEPT") for line in process.stdout)
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def speaking(pair: Pair, folder: Path, certs: Path, *words: str, name: str = "server") -> Iterator[Engine]:
    venue, trader = pair
    tables = TABLE.format(name="bare", whom=NAME, certs=certs)
    tables += TABLE.format(name="other", whom="other.test", certs=certs)
    with (
        serving(venue, certs, *words, name=name) as server,
        running(trader, folder, tables, server, PORT, "tls") as engine,
    ):
        yield engine


def plain(engine: Engine, connection: int) -> bytes:
    return b"".join(one.data for one in engine.of(connection, "message"))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_plain_text_goes_both_ways_over_af_xdp_and_the_next_session_resumes(
    lab_pair: Pair, tmp_path: Path, certs: Path, version: str
) -> None:
    with speaking(lab_pair, tmp_path, certs, f"-tls{version.replace('.', '_')}") as engine:
        for round_ in range(2):
            connection = engine.connect("bare")
            engine.until(lambda c=connection: engine.of(c, "open"))
            said = tls_words(engine.of(connection, "open")[0])
            assert (said["version"], said["alpn"], said["verified"]) == (version, "fix", True)
            assert said["resumed"] == (round_ > 0)
            for sent, back in (
                (b"order 66\n", b"66 redro\n"),
                (b"x" * 9000 + b"y\n", b"y" + b"x" * 9000 + b"\n"),
            ):
                assert engine.answer(engine.ask.write(connection, sent)) == ("", connection)
                engine.until(lambda c=connection, back=back: plain(engine, c).endswith(back))
            assert plain(engine, connection) == b"66 redro\n" + b"y" + b"x" * 9000 + b"\n"
            for one in engine.of(connection, "message"):
                received, woken, begun, done, parsed, called = one.stages
                assert received > 0  # the kernel's clock, and a turn takes what comes while it looks
                assert 0 < woken <= begun <= done <= parsed <= called
            assert engine.answer(engine.ask.hang_up(connection))[0] == ""
            last = engine.last(connection)
            assert (last.what, tls_words(last)) == ("closed", {"clean": True})
            numbers = [one.number for one in engine.of(connection)]
            assert numbers == list(range(1, len(numbers) + 1))
        engine.until(lambda: engine.published.get("closed") == 2)
        assert engine.published["received"] == engine.published["delivered"] > 4
        assert engine.published["reasons"] == {}


def test_a_certificate_that_does_not_hold_is_refused(lab_pair: Pair, tmp_path: Path, certs: Path) -> None:
    with speaking(lab_pair, tmp_path, certs) as engine:
        failed = engine.last(engine.connect("other"))
        assert (failed.what, failed.reason, tls_words(failed)) == (
            "failed", "wrong_name", {"alert": "bad_certificate"},
        )  # fmt: skip
        assert failed.data.decode().endswith("is for other names than other.test")
        connection = engine.connect("bare")  # which holds for the name that this one asks for
        engine.until(lambda: engine.of(connection, "open"))
        assert engine.answer(engine.ask.reset(connection))[0] == ""
        engine.until(lambda: engine.published.get("cut") == 1)
        assert engine.published["reasons"] == {"wrong_name": 1}
        assert engine.published["received"] == engine.published["delivered"] + 1
    with speaking(lab_pair, tmp_path, certs, name="stranger") as engine:
        failed = engine.last(engine.connect("bare"))
        assert (failed.reason, failed.verify > 0) == ("unknown_ca", True)
        assert tls_words(failed) == {"alert": "unknown_ca"}


def test_a_server_that_is_killed_is_a_truncation(lab_pair: Pair, tmp_path: Path, certs: Path) -> None:
    with speaking(lab_pair, tmp_path, certs) as engine:
        connection = engine.connect("bare")
        engine.until(lambda: engine.of(connection, "open"))
        engine.server.kill()
        engine.server.wait(PATIENCE)
        last = engine.last(connection)
        assert (last.what, last.reason) == ("failed", "truncated")
        assert engine.answer(engine.ask.write(connection, b"late"))[0] in ("connection", "not_open")
        nobody = engine.connect("bare")
        engine.until(lambda: nobody in engine.ended)
        assert engine.of(nobody) == []


def test_websocket_goes_over_it(lab_pair: Pair, tmp_path: Path, certs: Path) -> None:
    venue, trader = lab_pair
    tables = WSS.format(name=NAME, certs=certs)
    files = (str(certs / "server.pem"), str(certs / "server.key"))
    with (
        spoken.serving(venue, "netns_tests.ws_peer", test_session_ws.PORT, *files) as server,
        running(trader, tmp_path, tables, server, test_session_ws.PORT, "tls") as engine,
    ):
        connection = engine.connect("echo")
        engine.until(lambda: len(engine.of(connection, "open")) == 2)
        layer, opened = engine.of(connection, "open")
        assert (layer.protocol, tls_words(layer)["verified"]) == ("tls", True)
        assert (opened.protocol, opened.code) == ("ws", 101)
        assert engine.heard() == "open /echo v1"
        sent = [(b"order %d" % n if n % 2 else bytes([n]) * 9000, n % 2 == 1) for n in range(20)]
        for data, text in sent:
            assert engine.answer(engine.ask.write(connection, data, text=text)) == ("", connection)
            engine.until(lambda d=data: [one.data for one in engine.of(connection, "message")][-1:] == [d])
        came = engine.of(connection, "message")
        assert [(one.data, one.text) for one in came] == sent
        for one in came:
            received, woken, begun, done, parsed, called = one.stages
            assert received > 0
            assert 0 < woken <= begun <= done <= parsed <= called
        assert engine.answer(engine.ask.hang_up(connection, code=4001, reason=b"enough"))[0] == ""
        engine.last(connection)
        assert [one.code for one in engine.of(connection, "closed") if one.protocol == "ws"] == [4001]
        assert engine.of(connection, "failed") == []
        assert engine.heard() == "end 4001 enough"
        engine.until(lambda: engine.published.get("received", 0) > 20)
        assert engine.published["received"] == engine.published["delivered"]
