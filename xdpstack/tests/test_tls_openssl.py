"""tls: a client's session over sockets of this machine, against `openssl s_server`."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess

import pytest

from xdpstack.tests.tls_peer import NAME, data, make_certificates, of, settings
from xdpstack.tls import TlsContext, TlsEvent, TlsSession

WAIT = 60.0  # seconds: for what takes milliseconds
BOTH = pytest.mark.parametrize("version", ["1.2", "1.3"])


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextlib.contextmanager
def s_server(certs, *words):
    """The program with our certificate, on a port that it chose."""
    command = [
        "openssl",
        "s_server",
        "-accept",
        "127.0.0.1:0",
        "-cert",
        certs / "server.pem",
        "-key",
        certs / "server.key",
    ]
    with subprocess.Popen(
        [*command, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as p:
        try:
            for line in p.stdout:
                if match := re.match(rb"ACCEPT .*:(\d+)", line):
                    yield p, int(match[1])
                    break
            else:
                raise AssertionError("it never listened")
        finally:
            p.kill()


class Wire:
    """A session over a kernel's socket."""

    def __init__(self, context: TlsContext, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
        self.tls = TlsSession(context)
        self.flush()

    def flush(self) -> None:
        while out := self.tls.output():
            self.sock.sendall(out)

    def until(self, kind: str, *, holds=lambda events: True) -> list[TlsEvent]:
        """Events up to one of a kind, and until what came holds."""
        events = self.tls.events()
        while not (any(e.kind == kind for e in events) and holds(events)):
            back = self.sock.recv(65536)
            events += self.tls.input(back) if back else self.tls.ended()
            self.flush()
            assert back or any(e.kind == kind for e in events), events
        return events

    def close(self) -> None:
        self.tls.close()
        self.sock.close()


@BOTH
def test_it_agrees_with_the_program_and_resumes(certs, version):
    with (
        s_server(certs, f"-tls{version.replace('.', '_')}", "-alpn", "fix", "-naccept", "3", "-rev") as (
            _,
            port,
        ),
        TlsContext(settings(certs, alpn=("fix",))) as context,
    ):
        for round_ in range(3):
            wire = Wire(context, port)
            shaken = of(wire.until("handshake"), "handshake")
            assert (shaken.version, shaken.alpn, shaken.verified) == (version, "fix", True)
            assert shaken.resumed == (round_ > 0)
            wire.tls.send(b"order 66\n")
            wire.flush()
            events = wire.until("data", holds=lambda events: data(events).endswith(b"\n"))
            assert data(events) == b"66 redro\n"
            wire.tls.end_session()
            wire.flush()
            wire.close()
        assert context.stats()["resumed"] == 2


def test_keys_change_both_ways(certs):
    with s_server(certs, "-tls1_3") as (program, port), TlsContext(settings(certs)) as context:
        wire = Wire(context, port)
        wire.until("handshake")
        for letter in (b"k\n", b"K\n"):  # its own keys; its own, and ours too
            program.stdin.write(letter)
            program.stdin.flush()
            wire.until("key_update")
        assert wire.tls.stats()["key_updates_in"] == 2
        wire.tls.send(b"behind it")  # our KeyUpdate goes before the next data (RFC 8446 4.6.3)
        wire.flush()
        assert wire.tls.stats()["key_updates_out"] == 1
        program.stdin.write(b"still here\n")
        program.stdin.flush()
        events = wire.until("data", holds=lambda events: data(events).endswith(b"\n"))
        assert data(events) == b"still here\n"
        wire.close()


def test_renegotiation_is_refused_and_the_session_is_over_or_goes_on_by_the_peers_choice(certs):
    with s_server(certs, "-tls1_2") as (program, port), TlsContext(settings(certs)) as context:
        wire = Wire(context, port)
        wire.until("handshake")
        program.stdin.write(b"r\n")  # HelloRequest
        program.stdin.flush()
        with contextlib.suppress(OSError):
            wire.sock.settimeout(WAIT)
            while wire.tls.stats()["alerts_out"] == 0:
                back = wire.sock.recv(65536)
                if not back:
                    break
                wire.tls.input(back)
        assert wire.tls.stats()["alerts_out"] == 1  # no_renegotiation
        assert context.stats()["full"] == 1
        wire.close()


def test_a_program_that_dies_is_a_truncation(certs):
    with s_server(certs) as (program, port), TlsContext(settings(certs)) as context:
        wire = Wire(context, port)
        wire.until("handshake")
        program.kill()
        wire.sock.settimeout(WAIT)
        with contextlib.suppress(ConnectionResetError):
            while back := wire.sock.recv(65536):
                wire.tls.input(back)
        assert of(wire.tls.ended(), "failed").reason == "truncated"
        wire.close()


def test_the_name_asked_for_is_in_the_hello(certs):
    words = (
        "-servername",
        NAME,
        "-cert2",
        certs / "server.pem",
        "-key2",
        certs / "server.key",
        "-servername_fatal",
    )
    with s_server(certs, *words) as (_, port):
        with TlsContext(settings(certs)) as context:
            wire = Wire(context, port)
            assert of(wire.until("handshake"), "handshake").verified
            wire.close()
        with TlsContext(settings(certs, server_name="other.test")) as context:
            wire = Wire(context, port)
            failed = of(wire.until("failed"), "failed")
            assert (failed.reason, failed.alert) == ("peer_alert", "unrecognized_name")
            wire.close()
