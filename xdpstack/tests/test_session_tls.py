"""engine/session_tls.c: TLS over connections of an engine, alone and under another, with Python's ssl as the
server."""

from __future__ import annotations

import contextlib
import json
import re
import textwrap
import tomllib

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from wsproto.events import BytesMessage, CloseConnection, Request, TextMessage

import xdpstack.streams
import xdpstack.tls
from xdpstack._ffi import ffi, lib
from xdpstack.cli import main
from xdpstack.config import Reader as TomlReader
from xdpstack.config import _sessions
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import ConfigError, SetupError
from xdpstack.publish import CommandsConfig, PublishConfig
from xdpstack.sessions import PROTOCOLS, SessionConfig
from xdpstack.stats import Reader
from xdpstack.tape import TapeReader
from xdpstack.tests.fix_acceptor import Acceptor
from xdpstack.tests.line_session import Line
from xdpstack.tests.speaking import Speaking
from xdpstack.tests.test_publish_streams import PATIENCE, Live
from xdpstack.tests.test_session_fix import Server as FixServer
from xdpstack.tests.test_session_fix import order
from xdpstack.tests.test_stream_hooks import B, wait
from xdpstack.tests.tls_peer import NAME, make_certificates, server_context, settings
from xdpstack.tests.tls_server import TlsListener
from xdpstack.tests.ws_server import Server as WsServer
from xdpstack.tls import TlsSettings, tls_words

HTTPS = 443
BOTH = pytest.mark.parametrize("version", ["1.2", "1.3"])


@pytest.fixture(autouse=True)
def close_at_once(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class Wired(Speaking):
    """An engine whose connections may speak TLS, and the server that they meet."""

    protocol = "tls"

    def __init__(
        self, folder, stack, certs, *, peer=None, over=None, options=None, name="", greeting=b"", **keys
    ):
        patient = {"handshake_timeout": PATIENCE, "close_timeout": PATIENCE}
        tls = settings(certs, **{**patient, **keys})
        profile = SessionConfig(name="venue", protocol="tls", settings=tls)
        if over is not None:
            profile = SessionConfig(name="venue", protocol="ws", settings=over, tls=tls)
        self.live = Live(folder, stack, sessions=[profile], name=name, **(options or {}))
        self.server = TlsListener(self.live, HTTPS, server_context(certs) if peer is None else peer or None)
        self.server.greeting = greeting
        self.live.start()
        self.connect()

    def connect(self):
        why, self.connection = self.ask("connect", B, HTTPS, session="venue")
        assert why == ""

    @property
    def far(self):
        return self.server.came[-1]

    def at_peer(self, do):
        with self.live.engine.paused():
            do(self.far)

    def said(self, *what):
        return [one for one in self.live.said if not what or one.what in what]

    def words(self):
        """What happened, tickets left out: how many a server gives is its own choice."""
        return [one.what for one in self.said() if one.what != "ticket"]

    def open(self):
        self.until(lambda: self.said("open") and self.far.tls.open)
        return self

    def heard(self):
        """Plain text that came with the tape."""
        return b"".join(one.data for one in self.said("message"))

    def gone(self):
        """It ended, and so did what was spoken: the last event."""
        self.left()
        self.until(lambda: self.said("closed", "failed"))
        return self.said()[-1]


@pytest.fixture
def wired(tmp_path, certs):
    with contextlib.ExitStack() as stack:
        yield lambda **keys: Wired(tmp_path, stack, certs, **keys)


@BOTH
def test_plain_text_goes_both_ways_with_its_stages_and_the_end_is_in_order(wired, certs, version):
    w = wired(peer=server_context(certs, version=version, alpn=("fix",)), alpn=["http/1.1", "fix"]).open()
    opened = w.said("open")[0]
    cipher = "TLS_AES_128_GCM_SHA256" if version == "1.3" else "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
    assert tls_words(opened) == {
        "version": version, "cipher": cipher, "group": "x25519", "alpn": "fix", "resumed": False,
        "verified": True, "handshake_ns": opened.until,
    }  # fmt: skip
    assert (opened.session, opened.protocol, opened.verify) == ("venue", "tls", 0)
    assert opened.until > 0
    assert w.write(b"order 66") == ""
    assert w.write(b"") == ""  # no record, no harm
    assert w.write(b"x" * 40_000) == ""  # three records
    w.until(lambda: w.far.tls.heard == b"order 66" + b"x" * 40_000)
    w.at_peer(lambda far: far.put(b"filled"))
    w.until(lambda: w.heard() == b"filled")
    came = w.said("message")[0]
    received, woken, begun, done, parsed, called = came.stages
    assert 0 < received <= woken <= begun <= done <= parsed <= called
    assert w.ask("hang_up", w.connection) == ("", w.connection)
    w.until(lambda: w.far.tls.shut)  # our close_notify came
    assert w.write(b"late") == "not_open"
    w.at_peer(lambda far: far.close())
    last = w.gone()
    assert (last.what, tls_words(last)) == ("closed", {"clean": True})
    assert [one.number for one in w.said()] == list(range(1, len(w.said()) + 1))
    assert w.connection not in w.live.got  # its bytes are not published besides
    stats = w.ended()
    assert (stats["opened"], stats["closed"], stats["reasons"]) == (1, 1, {})
    assert stats["received"] > 3
    assert stats["sent"] > 4


@BOTH
def test_the_peer_closes_and_is_answered(wired, certs, version):
    w = wired(peer=server_context(certs, version=version)).open()
    w.at_peer(lambda far: far.put(b"last words"))
    w.at_peer(lambda far: far.shutdown())
    w.until(lambda: w.said("closed") and w.far.ended)
    assert w.heard() == b"last words"
    assert w.words() == ["open", "message", "closed"]
    assert tls_words(w.said()[-1]) == {"clean": True}
    assert w.far.tls.shut  # by our close_notify
    w.gone()
    assert w.ended()["closed"] == 1


@BOTH
def test_the_next_session_resumes(wired, certs, version):
    w = wired(peer=server_context(certs, version=version)).open()
    w.until(lambda: w.said("ticket"))
    w.at_peer(lambda far: far.close())
    w.gone()
    w.live.said.clear()
    w.connect()
    w.until(lambda: len(w.server.came) == 2 and w.said("open") and w.far.tls.open)
    assert tls_words(w.said("open")[0])["resumed"]
    assert tls_words(w.said("open")[0])["verified"]
    assert w.far.tls.tls.session_reused
    w.at_peer(lambda far: far.put(b"again"))
    w.until(lambda: w.heard() == b"again")


def test_without_verification_the_tape_says_so(wired, certs):
    w = wired(peer=server_context(certs, "stranger"), verify=False).open()
    opened = w.said("open")[0]
    assert opened.verify != 0
    assert not tls_words(opened)["verified"]


REFUSED = {
    "stranger": ("unknown_ca", "not signed by an authority that is trusted", "unknown_ca"),
    "alone": ("self_signed", "signed by itself", "unknown_ca"),
    "elsewhere": ("wrong_name", f"is for other names than {NAME}", "bad_certificate"),
}


@pytest.mark.parametrize("certificate", REFUSED)
@BOTH
def test_a_certificate_that_does_not_hold_ends_it_and_the_server_hears_why(
    wired, certs, certificate, version
):
    reason, sentence, alert = REFUSED[certificate]
    w = wired(peer=server_context(certs, certificate, version=version))
    last = w.gone()
    assert w.words() == ["failed"]
    assert (last.what, last.reason, tls_words(last)) == ("failed", reason, {"alert": alert})
    assert sentence in last.data.decode()
    assert last.verify > 0
    assert "ALERT_" + alert.upper() in str(w.far.tls.error).upper().replace(" ", "_")
    assert w.write(b"x") == "connection"
    stats = w.ended()
    assert (stats["opened"], stats["failed"], stats["reasons"]) == (0, 1, {reason: 1})


def test_a_server_that_refuses_us_is_told_with_its_alert(wired, certs):
    w = wired(peer=server_context(certs, client_ca="ca", version="1.2"))  # and we show no certificate
    last = w.gone()
    assert (last.what, last.reason, tls_words(last)) == (
        "failed", "peer_alert", {"alert": "handshake_failure"},
    )  # fmt: skip
    assert b"handshake_failure" in last.data
    assert w.ended()["reasons"] == {"peer_alert": 1}


def test_a_certificate_of_ours_is_shown(wired, certs):
    keys = {"cert_file": str(certs / "client.pem"), "key_file": str(certs / "client.key")}
    w = wired(peer=server_context(certs, client_ca="ca"), **keys).open()
    assert w.far.tls.tls.getpeercert()["subjectAltName"] == (("DNS", "trader.test"),)


def test_a_warning_is_told_and_ends_nothing(wired, certs):
    w = wired(greeting=b"\x15\x03\x03\x00\x02\x01\x5a").open()
    alert = w.said("alert")[0]
    assert (alert.code, alert.data) == (90, b"user_canceled")
    assert tls_words(alert) == {"alert": "user_canceled"}
    w.at_peer(lambda far: far.put(b"all is well"))
    w.until(lambda: w.heard() == b"all is well")


def test_an_answer_that_is_no_tls_is_named(wired):
    w = wired(peer=False, greeting=b"SSH-2.0-x\r\n")
    last = w.gone()
    assert (last.what, last.reason) == ("failed", "malformed")
    assert b"no TLS record" in last.data
    stats = w.ended()
    assert (stats["received"], stats["delivered"], stats["reasons"]) == (1, 0, {"malformed": 1})


@BOTH
def test_a_record_that_was_changed_on_the_way_ends_it(wired, certs, version):
    w = wired(peer=server_context(certs, version=version)).open()
    w.at_peer(lambda far: far.put(b"right"))
    w.until(lambda: w.heard() == b"right")

    def change(far):
        far.tls.say(b"wrong")
        record = bytearray(far.tls.take())
        record[-1] ^= 1
        far.out.extend(record)

    w.at_peer(change)
    last = w.gone()
    assert (last.what, last.reason, tls_words(last)) == ("failed", "record_bad", {"alert": "bad_record_mac"})
    assert w.heard() == b"right"
    assert "BAD_RECORD_MAC" in str(w.far.tls.error).upper().replace(" ", "_")  # the server heard of it
    stats = w.ended()
    assert stats["reasons"] == {"record_bad": 1}
    assert stats["received"] == stats["delivered"] + 1


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("rest", [b"", b"\x17\x03\x03\x00", b"\x17\x03\x03\x00\x40half"])
def test_a_peer_that_is_gone_without_close_notify(wired, how, rest):
    w = wired().open()
    w.at_peer(lambda far: far.put(b"first"))
    w.at_peer(lambda far: far.out.extend(rest))
    w.until(lambda: w.heard() == b"first" and not w.far.out)
    w.at_peer(lambda far: getattr(far.under, how)())
    w.until(lambda: w.said("failed"))
    last = w.said()[-1]
    assert (last.what, last.reason) == ("failed", "truncated")
    assert last.data
    w.gone()
    stats = w.ended()
    assert stats["failed"] == 1
    if how == "close":  # a reset may overtake what was sent before
        assert stats["reasons"] == ({"truncated": 1} if rest else {})


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x03\x00\x50\x02"])
def test_a_server_that_says_nothing_is_left(wired, begun):
    w = wired(peer=False, greeting=begun, handshake_timeout=0.5)
    last = w.gone()
    assert (last.what, last.reason) == ("failed", "timeout")
    stats = w.ended()
    assert stats["failed"] == 1
    assert stats["received"] == sum(stats["reasons"].values()) <= bool(begun)


def test_a_server_that_does_not_answer_our_close_is_left(wired):
    w = wired(close_timeout=0.2).open()
    w.far.silent = True
    assert w.ask("hang_up", w.connection)[0] == ""
    last = w.gone()
    assert (last.what, tls_words(last)) == ("closed", {"clean": False})
    assert w.ended()["closed"] == 1


@pytest.mark.parametrize("how", [["hang_up", "hang_up"], ["hang_up", "reset"], ["reset"]])
def test_hanging_up_twice_and_reset_end_at_once(wired, how):
    w = wired().open()
    w.far.silent = True
    for what in how:
        assert w.ask(what, w.connection)[0] == ""
    w.left()
    assert w.words() == ["open"]
    assert w.write(b"late") == "connection"
    assert w.ended()["cut"] == 1


def test_what_cannot_be_sent_is_refused_by_name(wired):
    w = wired(out_bytes=20480, options={"send_bytes": 4096})
    assert w.write(b"early") == "not_open"
    w.open()
    assert w.write(b"x", ping=True) == "message"  # TLS has none
    assert w.write(b"x" * 20_001) == "message"  # it would never fit
    sent = 0
    while (why := w.write(b"y" * 10_000)) == "":  # the server does not read meanwhile
        sent += 1
        assert sent < 1000
    assert why == "full"
    w.until(lambda: len(w.far.tls.heard) == sent * 10_000)
    w.until(lambda: w.write(b"z" * 19_000) == "")
    w.until(lambda: w.far.tls.heard.endswith(b"z" * 19_000))
    assert w.far.tls.heard == b"y" * sent * 10_000 + b"z" * 19_000


@BOTH
def test_however_it_is_cut_the_plain_text_is_the_same(tmp_path, certs, version):
    """Small rings on our side: pieces end where the rings do, and sending waits for room."""
    tight = {"send_bytes": 2048, "receive_bytes": 2048}
    with contextlib.ExitStack() as stack:
        peer = server_context(certs, version=version)
        w = Wired(tmp_path, stack, certs, peer=peer, options=tight).open()
        pieces = st.lists(st.integers(1, 20_000), max_size=4)

        @hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(pieces, pieces)
        def same(theirs, ours):
            w.live.said.clear()
            w.far.tls.heard = b""
            said = [bytes([number % 251]) * size for number, size in enumerate(theirs)]
            for piece in said:
                w.at_peer(lambda far, piece=piece: far.put(piece))
            w.until(lambda: len(w.heard()) == sum(theirs))
            assert w.heard() == b"".join(said)
            given = [bytes([number % 251]) * size for number, size in enumerate(ours)]
            for piece in given:
                w.until(lambda piece=piece: w.write(piece) == "")
            w.until(lambda: len(w.far.tls.heard) == sum(ours))
            assert w.far.tls.heard == b"".join(given)

        same()


def echo(far):
    while not far.closed and (data := far.take()):
        far.put(data)


@BOTH
def test_another_protocol_speaks_over_it(wired, certs, monkeypatch, version):
    monkeypatch.setitem(PROTOCOLS, "ws", Line)
    w = wired(peer=server_context(certs, version=version), over=Line())

    def until(condition):
        def so():
            if w.server.came:
                w.at_peer(echo)
            return condition()

        w.until(so)

    until(lambda: any(one.protocol == "ws" and one.what == "open" for one in w.said()))
    assert [(one.protocol, one.what) for one in w.said() if one.what == "open"] == [
        ("tls", "open"), ("ws", "open"),
    ]  # fmt: skip
    assert w.write(b"x" * 30_000, text=True) == ""  # more than a layer takes at once
    assert w.write(b"short", text=True) == ""
    until(lambda: len(w.said("message")) >= 2)
    until(lambda: sum(len(one.data) for one in w.said("message")) == 30_005)
    assert w.heard() == b"x" * 30_000 + b"short"
    assert {one.protocol for one in w.said("message")} == {"ws"}
    for one in w.said("message"):
        received, woken, begun, done, parsed, called = one.stages
        assert 0 < received <= woken <= begun <= done <= parsed <= called
    assert w.ask("hang_up", w.connection)[0] == ""
    until(lambda: w.said("closed"))
    until(lambda: w.far.tls.shut)  # the layer's close_notify came behind it
    w.at_peer(lambda far: far.close())
    w.gone()
    assert w.ended("ws")["closed"] == 1
    assert w.ended()["reasons"] == {}


def test_a_layer_that_is_refused_ends_what_would_be_over_it(wired, certs, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "ws", Line)
    w = wired(peer=server_context(certs, "stranger"), over=Line())
    last = w.gone()
    assert [(one.protocol, one.what, one.reason) for one in w.said()] == [("tls", "failed", "unknown_ca")]
    assert b"not signed by an authority" in last.data
    assert w.counted("ws")["begun"] == 0
    assert w.ended()["failed"] == 1


@pytest.mark.parametrize("how", ["bye", "cut"])
def test_what_is_over_it_hears_that_it_ended(wired, monkeypatch, how):
    monkeypatch.setitem(PROTOCOLS, "ws", Line)
    w = wired(over=Line())
    w.until(lambda: w.server.came and w.far.tls.open)
    w.at_peer(lambda far: far.put(b"hello\n"))
    w.until(lambda: len(w.said("open")) == 2)
    w.at_peer(lambda far: far.shutdown() if how == "bye" else far.under.shutdown())
    w.gone()
    ends = [(one.protocol, one.what, one.reason) for one in w.said("closed", "failed")]
    # Behind close_notify the protocol over it judges; what is cut is cut, and the layer says so.
    assert ends == (
        [("tls", "closed", ""), ("ws", "failed", "no_bye")]
        if how == "bye"
        else [("tls", "failed", "truncated")]
    )


@BOTH
def test_websocket_speaks_over_it(tmp_path, certs, version):
    """wss: wsproto over Python's ssl on the other side."""
    table = {
        "name": "wss", "protocol": "ws", "host": f"{NAME}:443", "path": "/v2", "tls": True,
        "ca_file": str(certs / "ca.pem"), "open_timeout": PATIENCE, "close_timeout": PATIENCE,
        "handshake_timeout": PATIENCE,
    }  # fmt: skip
    profile = SessionConfig.of(table)
    assert profile.tls.server_name == NAME
    with contextlib.ExitStack() as stack:
        live = Live(tmp_path, stack, sessions=[profile])
        server = WsServer(live, 80)
        server.listener = TlsListener(live, HTTPS, server_context(certs, version=version))
        live.start()
        why, connection = live.answer(live.commander.connect(B, HTTPS, session="wss"))
        assert why == ""

        def until(condition):
            def so():
                server.turn()
                return condition()

            live.until(so)

        def said(protocol, *what):
            return [one for one in live.said if one.protocol == protocol and one.what in what]

        until(lambda: said("ws", "open"))
        [request] = server.said(Request)
        assert (request.target, request.host) == ("/v2", f"{NAME}:443")
        assert tls_words(said("tls", "open")[0])["verified"]
        sent = ["größe", b"x" * 40_000, ""]
        for one in sent:
            data = one.encode() if isinstance(one, str) else one
            assert live.answer(live.commander.write(connection, data, text=isinstance(one, str)))[0] == ""
        until(lambda: server.messages() == sent)
        server.send(TextMessage("back"), BytesMessage(b"y" * 40_000))
        until(lambda: len(said("ws", "message")) == 2)
        assert [(one.data, one.text) for one in said("ws", "message")] == [
            (b"back", True),
            (b"y" * 40_000, False),
        ]
        for one in said("ws", "message"):
            received, woken, begun, done, parsed, called = one.stages
            assert 0 < received <= woken <= begun <= done <= parsed <= called
        assert not said("tls", "message")  # its plain text is WebSocket's alone
        assert live.answer(live.commander.hang_up(connection, code=4000, reason=b"done"))[0] == ""
        until(lambda: said("ws", "closing"))
        [close] = server.said(CloseConnection)
        assert (close.code, close.reason) == (4000, "done")
        server.hang_up()
        until(lambda: live.told(connection) & {"closed", "reset"} and said("ws", "closed", "failed"))
        assert [one.code for one in said("ws", "closed")] == [4000]
        assert [one.what for one in live.said if one.what in ("closed", "failed")] == ["closed", "closed"]
        wait(lambda: live.engine.publication.stats()["sessions"]["tls"]["closed"] == 1)
        for counted in live.engine.publication.stats()["sessions"].values():
            assert counted["received"] == counted["delivered"]


def test_fix_speaks_over_it(tmp_path, certs):
    """FIX to a venue of simplefix, over Python's ssl."""
    table = {
        "name": "venue", "protocol": "fix", "sender_comp_id": "BUYSIDE", "target_comp_id": "VENUE",
        "heartbeat": 600, "open_timeout": PATIENCE, "close_timeout": PATIENCE, "tls": True,
        "ca_file": str(certs / "ca.pem"), "handshake_timeout": PATIENCE,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="server_name: this key is needed"):
        SessionConfig.of(table)
    profile = SessionConfig.of({**table, "server_name": NAME})
    with contextlib.ExitStack() as stack:
        live = Live(tmp_path, stack, sessions=[profile])
        venue = Acceptor()
        server = FixServer(live, venue)
        server.listener = TlsListener(live, HTTPS, server_context(certs))
        live.start()
        why, connection = live.answer(live.commander.connect(B, HTTPS, session="venue"))
        assert why == ""

        def until(condition):
            def so():
                server.turn()
                return condition()

            live.until(so)

        def said(what):
            return [one for one in live.said if (one.protocol, one.what) == ("fix", what)]

        until(lambda: said("open"))
        for number in range(3):
            assert live.answer(live.commander.write(connection, order(number)))[0] == ""
        until(lambda: len(said("message")) == 3)
        assert [one[11] for one in venue.of("D")] == ["C-0", "C-1", "C-2"]
        for one in said("message"):
            received, woken, begun, done, parsed, called = one.stages
            assert 0 < received <= woken <= begun <= done <= parsed <= called
        assert live.answer(live.commander.hang_up(connection))[0] == ""
        until(lambda: said("closed") and live.told(connection) & {"closed", "reset"})
        assert len(venue.of("5")) == 1
        assert not [one for one in live.said if one.what == "failed"]
        for counted in live.engine.publication.stats()["sessions"].values():
            assert counted["received"] == counted["delivered"]


def test_a_table_becomes_a_profile_and_what_is_wrong_in_it_is_told_with_its_line(certs):
    good = '[[session]]\nname = "a"\nprotocol = "tls"\nserver_name = "x.example"\n'

    def read(text):
        return _sessions(TomlReader("t.toml", text), tomllib.loads(text))

    (one,) = read(
        good + 'alpn = ["fix", "h2"]\nversion_min = "1.3"\nca_file = "ca.pem"\nhandshake_timeout = 3\n'
    )
    assert (one.protocol, one.tls) == ("tls", None)
    assert one.settings == TlsSettings(
        server_name="x.example", alpn=["fix", "h2"], version_min="1.3", ca_file="ca.pem", handshake_timeout=3
    )
    for line, why in (
        ("alpn = 3", ":5: session.0.alpn: wanted a list of names"),
        ('alpn = ["a,b"]', ":5: session.0.alpn: wanted a list of names"),
        ('version_max = "1.1"', ":5: session.0.version_max: wanted '1.2' or '1.3', not '1.1'"),
        ('ciphers = "null"', ":5: session.0.ciphers: wanted 'auto' or 'aes' or 'chacha'"),
        ("tickets = 9", ":5: session.0.tickets: wanted 0 to 8, not 9"),
        ("handshake_timeout = 0", ":5: session.0.handshake_timeout: wanted more than 0 seconds"),
        ('key_file = "k"', ":5: session.0.key_file: a key without cert_file"),
        ("cafile = 1", ":5: session.0.cafile: unknown key .known: name, protocol, tls, alpn, ca_file"),
    ):
        with pytest.raises(ConfigError, match=why):
            read(good + line + "\n")
    with pytest.raises(ConfigError, match="server_name: this key is needed, to verify the server by"):
        read('[[session]]\nname = "a"\nprotocol = "tls"\n')


def test_files_are_read_at_set_up_and_nothing_is_left_where_one_is_not_there(tmp_path):
    tls = TlsSettings(server_name=NAME, ca_file=str(tmp_path / "none.pem"))
    profile = SessionConfig(name="a", protocol="tls", settings=tls)
    with Engine(EngineConfig(slow=0)) as engine:
        engine.publish(
            PublishConfig(tape=str(tmp_path / "tape")), CommandsConfig(ring=str(tmp_path / "ring")), [profile]
        )
        with pytest.raises(SetupError, match=r"tls: trust store .*none\.pem: No such file"):
            engine.start()
    assert list(tmp_path.iterdir()) == []


def test_what_is_counted_and_said_is_shown_in_words(wired, certs, tmp_path, capsys):
    w = wired(peer=server_context(certs, alpn=("fix",), version="1.3"), alpn=("fix",), name="tlsshow").open()
    w.at_peer(lambda far: far.put(b"hello"))
    w.until(lambda: w.heard() == b"hello")
    w.at_peer(lambda far: far.out.extend(b"\x17\x03\x03\x00\x20" + bytes(32)))
    w.gone()
    w.ended()
    seen = {}

    def shown():
        seen.update(Reader(w.live.engine.segment.path).values())
        return seen["session.tls.failed"] == 1

    wait(shown)
    assert seen["session.tls.reasons.record_bad"] == 1
    assert seen["session.tls.opened"] == 1
    capsys.readouterr()
    with TapeReader.open(tmp_path / "tape", "test", oldest=True) as reader:
        known = str(len(reader.read()))
    assert main(["shm", "tail", str(tmp_path / "tape"), "--oldest", "--json", "-n", known]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_what = {one["data"]["what"]: one["data"] for one in told if one["kind"] == "tls"}
    opened = by_what["open"]
    assert (opened["version"], opened["cipher"]) == ("1.3", "TLS_AES_128_GCM_SHA256")
    assert (opened["alpn"], opened["verified"], opened["group"]) == ("fix", True, "x25519")
    assert by_what["message"]["data"] == "hello"
    failed = by_what["failed"]
    assert (failed["reason"], failed["alert"], failed["session"]) == ("record_bad", "bad_record_mac", "venue")
    assert failed["data"].startswith("a record")


def test_the_example_is_true():
    [example] = re.findall(r"^ {4}\[\[session\]\].*?(?=\n\n)", xdpstack.tls.__doc__, re.S | re.M)
    text = textwrap.dedent(example)
    (one,) = _sessions(TomlReader("t.toml", text), tomllib.loads(text))
    assert (one.name, one.protocol, one.settings.server_name) == ("drop-copy", "tls", "exchange.example")


def test_every_reason_has_a_word_and_a_sentence():
    assert set(TlsSettings.reasons) == set(range(1, lib.XDS_TLS_REASONS))
    assert len(set(TlsSettings.reasons.values())) == lib.XDS_TLS_REASONS - 1
    assert all(ffi.string(lib.xds_tls_reason_text(number)) for number in TlsSettings.reasons)
