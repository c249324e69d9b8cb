"""engine/session_ws.c and xdpstack/ws.py: WebSocket over an engine's connections, wsproto as the server."""

from __future__ import annotations

import contextlib
import json
import re
import textwrap
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

import xdpstack.config
import xdpstack.sessions
import xdpstack.streams
import xdpstack.ws
from xdpstack._ffi import ffi, lib
from xdpstack.cli import main
from xdpstack.config import Reader as TomlReader
from xdpstack.config import _sessions
from xdpstack.errors import ConfigError
from xdpstack.sessions import PROTOCOLS, SessionConfig
from xdpstack.stats import Reader
from xdpstack.tape import TapeReader
from xdpstack.tests.line_session import Veil
from xdpstack.tests.speaking import Speaking
from xdpstack.tests.test_publish_streams import PATIENCE, PORT, Live
from xdpstack.tests.test_stream_hooks import B, wait
from xdpstack.tests.ws_driver import frame
from xdpstack.tests.ws_server import Server
from xdpstack.ws import WsSettings

HTTP = 80


@pytest.fixture(autouse=True)
def close_at_once(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)


class Wired(Speaking):
    """An engine whose connections may speak WebSocket, and the server that they meet."""

    protocol = "ws"

    def __init__(self, folder, stack, *, answer=None, name="", options=None, **keys):
        patient = dict.fromkeys(("open_timeout", "ping_timeout", "close_timeout"), PATIENCE)
        self.settings = WsSettings(host="venue.example", **{**patient, **keys})
        profile = SessionConfig(name="venue", protocol="ws", settings=self.settings)
        self.live = Live(folder, stack, sessions=[profile], name=name, **(options or {}))
        self.server = Server(self.live, HTTP, answer)
        self.live.start()
        why, self.connection = self.ask("connect", B, HTTP, session="venue")
        assert why == ""

    def said(self, *what):
        return [one for one in self.live.said if not what or one.what in what]

    def words(self):
        return [one.what for one in self.said()]

    def open(self):
        self.until(lambda: self.said("open"))
        return self

    def gone(self):
        """The connection ended; its last event."""
        self.left()
        return self.said()[-1]


@contextlib.contextmanager
def wired(folder, **keys):
    with contextlib.ExitStack() as stack:
        yield Wired(folder, stack, **keys)


def test_messages_go_both_ways_with_their_stages_and_the_end_is_in_order(tmp_path):
    choose = lambda request: AcceptConnection(subprotocol=request.subprotocols[1])  # noqa: E731
    keys = {"path": "/feed?depth=5", "headers": {"Origin": "https://x"}, "subprotocols": ["v2", "v1"]}
    with wired(tmp_path, answer=choose, **keys) as w:
        w.open()
        [request] = w.server.said(Request)
        assert (request.target, request.host, request.subprotocols) == (
            "/feed?depth=5", "venue.example", ["v2", "v1"],
        )  # fmt: skip
        assert (b"origin", b"https://x") in request.extra_headers
        opened = w.said()[0]
        assert (opened.what, opened.data, opened.code, opened.session) == ("open", b"v1", 101, "venue")
        assert w.write("größe".encode(), text=True) == ""
        assert w.write(b"\x00\xff") == ""
        assert w.write(b"") == ""
        w.until(lambda: len(w.server.messages()) == 3)
        assert w.server.messages() == ["größe", b"\x00\xff", b""]
        w.server.send(TextMessage("back"), BytesMessage(b"\x01"), TextMessage(""))
        w.until(lambda: len(w.said("message")) == 3)
        came = w.said("message")
        assert [(one.data, one.text) for one in came] == [(b"back", True), (b"\x01", False), (b"", True)]
        for one in came:
            received, woken, begun, done, parsed, called = one.stages
            assert 0 < received <= woken <= parsed <= called
            assert (begun, done) == (0, 0)
        assert w.ask("hang_up", w.connection, code=4000, reason=b"done") == ("", w.connection)
        w.until(lambda: w.said("closing"))
        assert w.write(b"late") == "not_open"
        [close] = w.server.said(CloseConnection)
        assert (close.code, close.reason) == (4000, "done")
        w.server.hang_up()
        last = w.gone()
        assert (last.what, last.code) == ("closed", 4000)
        assert [one.number for one in w.said()] == list(range(1, len(w.said()) + 1))
        assert w.connection not in w.live.got  # its bytes are not published besides
        stats = w.ended()
        assert (stats["opened"], stats["closed"], stats["reasons"]) == (1, 1, {})
        assert stats["received"] == 1 + 3 + 1  # the answer, messages, a close
        assert stats["sent"] == 3 + 1


def test_pings_go_both_ways_and_round_trips_are_measured(tmp_path):
    with wired(tmp_path, ping_interval=0.05) as w:
        w.open()
        w.server.send(Ping(b"there?"))
        w.until(lambda: w.said("ping") and any(pong.payload == b"there?" for pong in w.server.said(Pong)))
        assert w.said("ping")[0].data == b"there?"
        w.until(lambda: len(w.said("pong")) >= 2)  # of our own pings
        assert all(pong.until > 0 and len(pong.data) == 8 for pong in w.said("pong"))
        assert w.write(b"by hand", ping=True) == ""
        w.until(lambda: any(pong.data == b"by hand" for pong in w.said("pong")))
        assert next(pong for pong in w.said("pong") if pong.data == b"by hand").until == 0
        assert w.write(b"x" * 126, ping=True) == "message"


def test_the_peer_closes_and_gets_ours_although_it_ended_its_side_at_once(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        w.server.send(CloseConnection(1001, "going"))
        w.server.turn()
        with w.live.engine.paused():
            w.server.connection.shutdown()
        w.until(lambda: w.said("closed") and w.server.ended)
        assert w.words() == ["open", "closing", "closed"]
        closing = w.said("closing")[0]
        assert (closing.code, closing.data, w.said()[-1].code) == (1001, b"going", 1001)
        assert [one.code for one in w.server.said(CloseConnection)] == [1001]
        w.server.hang_up()
        w.gone()
        assert w.ended()["closed"] == 1


def test_who_is_asked_to_hang_up_while_the_peer_closes_ends_in_order(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        w.server.send(CloseConnection(1000))
        w.until(lambda: w.said("closing") and w.server.said(CloseConnection))
        assert w.ask("hang_up", w.connection) == ("", w.connection)  # its TCP connection still stands
        w.server.hang_up()
        assert w.gone().what == "closed"
        assert w.ended()["closed"] == 1


def test_a_server_that_keeps_its_connection_is_left(tmp_path):
    with wired(tmp_path, close_timeout=0.2) as w:
        w.open()
        w.server.send(CloseConnection(1000))
        last = w.gone()  # although the server never ends its side
        assert (last.what, last.code) == ("closed", 1000)
        assert w.words() == ["open", "closing", "closed"]


@pytest.mark.parametrize("sent", [b"", b"\x81\x05ab"])
def test_a_server_that_does_not_answer_our_close(tmp_path, sent):
    with wired(tmp_path, close_timeout=0.2) as w:
        w.open()
        w.server.send(sent)  # a frame that never ends
        w.until(lambda: w.server.is_drained)
        w.server.silent = True
        assert w.ask("hang_up", w.connection)[0] == ""
        last = w.gone()
        assert (last.what, last.reason) == ("failed", "close_timeout")
        assert last.data == b"our close was not answered within close_timeout"
        stats = w.ended()
        assert stats["failed"] == 1
        assert stats["received"] <= 2  # the frame is counted where it came before the end
        assert set(stats["reasons"]) <= ({"close_timeout"} if sent else set())


@pytest.mark.parametrize("how", [["hang_up", "hang_up"], ["hang_up", "reset"], ["reset"]])
def test_hanging_up_twice_and_reset_end_at_once(tmp_path, how):
    with wired(tmp_path) as w:
        w.open()
        w.server.silent = True
        for what in how:
            assert w.ask(what, w.connection)[0] == ""
        w.until(lambda: w.live.told(w.connection) & {"closed", "reset"})
        assert w.words() == ["open"]
        assert w.write(b"late") == "connection"
        assert w.ended()["cut"] == 1


def wrong_accept(request):
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n"
    )


ANSWERS = {
    "refused": (
        lambda request: RejectConnection(status_code=403),
        "status", 403, b"the server does not switch: HTTP/1.1 403 ",
    ),
    "no HTTP": (
        lambda request: b"SSH-2.0-x\r\n",
        "http", 1006, b"the answer is not HTTP/1.1, or has a line that cannot be",
    ),
    "a wrong accept": (
        wrong_accept, "accept", 1006, b"the answer's Sec-WebSocket-Accept is not that of our key",
    ),
    "a long head": (
        lambda request: b"HTTP/1.1 101 x\r\nA: " + b"x" * 200,
        "http_long", 1006, b"the answer's head is longer than head_max",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_none_ends_it_with_a_sentence(tmp_path, case):
    answer, reason, detail, sentence = ANSWERS[case]
    with wired(tmp_path, answer=answer, head_max=200) as w:
        last = w.gone()
        assert (last.what, last.reason, last.detail, last.data) == ("failed", reason, detail, sentence)
        assert w.words() == ["failed"]
        assert w.write(b"x") == "connection"
        stats = w.ended()
        assert (stats["received"], stats["opened"], stats["failed"]) == (1, 0, 1)
        assert stats["reasons"] == {reason: 1}


FRAMES = {
    "rsv": frame(1, b"x", rsv=4),
    "opcode": frame(3),
    "masked": frame(1, b"x", mask=b"abcd"),
    "control": frame(9, b"x", fin=0),
    "continuation": frame(0, b"x"),
    "interleaved": frame(1, b"x", fin=0) + frame(1, b"y"),
    "utf8": frame(1, b"\xff"),
    "big": frame(2, b"x" * 5000),
    "close_bad": frame(8, b"\x03"),
}


@pytest.mark.parametrize("reason", FRAMES)
def test_a_frame_that_may_not_be_is_counted_told_and_answered(tmp_path, reason):
    code = {"utf8": 1007, "big": 1009}.get(reason, 1002)
    with wired(tmp_path, message_max=4096) as w:
        w.open()
        w.server.send(TextMessage("right"), FRAMES[reason])
        last = w.gone()
        assert (last.what, last.reason, last.detail) == ("failed", reason, code)
        assert last.data
        assert [one.data for one in w.said("message")] == [b"right"]
        w.until(lambda: w.server.ended)  # our FIN comes behind our close
        assert [close.code for close in w.server.said(CloseConnection)] == [code]
        stats = w.ended()
        assert stats["reasons"] == {reason: 1}
        assert stats["failed"] == 1


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 1"])
def test_a_server_that_says_nothing_is_left(tmp_path, begun):
    with wired(tmp_path, answer=lambda request: begun, open_timeout=0.5) as w:
        last = w.gone()
        assert (last.what, last.reason) == ("failed", "handshake_timeout")
        assert last.data == b"no whole answer came within open_timeout"
        stats = w.ended()
        assert stats["received"] == sum(stats["reasons"].values()) <= bool(begun)


def test_a_server_that_falls_silent_is_left(tmp_path):
    with wired(tmp_path, ping_interval=0.05, ping_timeout=0.2) as w:
        w.open()
        w.server.silent = True
        last = w.gone()
        assert (last.what, last.reason, last.detail) == ("failed", "pong_timeout", 1011)
        w.until(lambda: w.server.ended)
        assert b"\x88\x82" in w.server.raw  # a close of two bytes, masked, told the server


@pytest.mark.parametrize("how", ["hang_up", "reset"])
@pytest.mark.parametrize("rest", [b"", b"\x81\x7e\x01"])
def test_a_peer_that_is_gone_without_a_close(tmp_path, how, rest):
    with wired(tmp_path) as w:
        w.open()
        w.server.send(TextMessage("first"), rest)
        w.until(lambda: w.said("message") and w.server.is_drained)
        getattr(w.server, how)()
        w.until(lambda: w.said("failed"))
        last = w.said()[-1]
        assert (last.what, last.reason, last.detail) == ("failed", "eof", 1006)
        assert last.data == b"the connection ended without a close frame"
        w.gone()
        stats = w.ended()
        assert stats["failed"] == 1
        if how == "hang_up":  # a reset may overtake what was sent before
            assert stats["reasons"] == ({"eof": 1} if rest else {})


def test_messages_that_cannot_go_are_refused_by_name(tmp_path):
    with wired(tmp_path, send_bytes=4096, options={"send_bytes": 4096}) as w:
        assert w.write(b"early") == "not_open"
        w.open()
        assert w.write(b"\xff", text=True) == "message"
        assert w.write(b"x" * (4096 - 13)) == "message"  # it would never fit
        assert w.ask("hang_up", w.connection, code=1005)[0] == "message"
        assert w.ask("hang_up", w.connection, reason=b"x" * 124)[0] == "message"
        sent = 0
        while (why := w.write(b"y" * 4000)) == "":  # the server does not read meanwhile
            sent += 1
            assert sent < 1000
        assert why == "full"
        w.until(lambda: len(w.server.messages()) == sent)
        w.until(lambda: w.write(b"again") == "")
        w.until(lambda: w.server.messages()[-1] == b"again")
        wait(lambda: w.counted()["sent"] == sent + 1)


def test_however_it_is_cut_the_messages_are_the_same(tmp_path):
    """Small rings on our side: pieces end where the rings do."""
    tight = {"send_bytes": 2048, "receive_bytes": 2048}
    with wired(tmp_path, options=tight) as w:
        w.open()
        texts = st.text(max_size=900)
        fragments = st.lists(st.binary(max_size=3000), min_size=1, max_size=3)

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.one_of(texts, fragments), max_size=8))
        def same(given):
            w.live.said.clear()
            w.server.events.clear()
            for one in given:
                if isinstance(one, str):
                    w.server.send(TextMessage(one))
                    continue
                for piece in one[:-1]:
                    w.server.send(BytesMessage(piece, message_finished=False))
                w.server.send(BytesMessage(one[-1]))
            wanted = [one.encode() if isinstance(one, str) else b"".join(one) for one in given]
            w.until(lambda: len(w.said("message")) == len(wanted))
            assert [one.data for one in w.said("message")] == wanted
            for data, one in zip(wanted, given, strict=True):
                w.until(lambda d=data, o=one: w.write(d, text=isinstance(o, str)) == "")
            w.until(lambda: len(w.server.messages()) == len(wanted))
            assert [m.encode() if isinstance(m, str) else m for m in w.server.messages()] == wanted

        same()


def test_it_speaks_over_a_layer(tmp_path, monkeypatch):
    """What is asked goes through the layer, what the peer of the layer echoes is no answer to it."""
    monkeypatch.setitem(PROTOCOLS, "tls", Veil)
    profile = SessionConfig.of({"name": "v", "protocol": "ws", "host": "venue.example:8443", "tls": True})
    assert profile.tls.server_name == "venue.example"
    with contextlib.ExitStack() as stack:
        live = Live(tmp_path, stack, sessions=[profile])
        live.start()
        why, connection = live.answer(live.commander.connect(B, PORT, session="v"))
        assert why == ""
        live.until(lambda: "closed" in live.told(connection))
        assert [(one.protocol, one.what) for one in live.said][:2] == [("tls", "open"), ("ws", "failed")]
        assert live.said[1].reason == "http"  # our own request came back


def test_what_is_counted_and_said_is_shown_in_words(tmp_path, capsys):
    with wired(tmp_path, name="wsshow") as w:
        w.open()
        w.server.send(TextMessage("hello"), frame(8, b"\x03"))
        w.gone()
        w.ended()
        seen = {}

        def shown():
            seen.update(Reader(w.live.engine.segment.path).values())
            return seen["session.ws.failed"] == 1

        wait(shown)
        assert seen["session.ws.reasons.close_bad"] == 1
        capsys.readouterr()
        with TapeReader.open(tmp_path / "tape", "test", oldest=True) as reader:
            known = str(len(reader.read()))
        assert main(["shm", "tail", str(tmp_path / "tape"), "--oldest", "--json", "-n", known]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [record["data"] for record in records if record["kind"] == "ws"]
    assert [one["what"] for one in told] == ["open", "message", "failed"]
    assert (told[1]["data"], told[1]["session"], told[1]["protocol"]) == ("hello", "venue", "ws")
    assert len(told[1]["stages"]) == 6
    assert told[2]["reason"] == "close_bad"
    assert told[2]["data"] == "a close frame has one byte, or a code that may not be sent"


GOOD = '[[session]]\nname = "a"\nprotocol = "ws"\n'


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("", ":1: session.0.host: this key is needed"),
        ('host = ""', ":4: session.0.host: wanted a name or address"),
        ('host = "a b"', ":4: session.0.host: wanted a name or address"),
        ('host = "a/b"', ":4: session.0.host: wanted a name or address"),
        ('host = "é"', ":4: session.0.host: wanted a name or address"),
        ("host = 4", ":4: session.0.host: wanted a string, not 4"),
        ('host = "a"\npath = "x"', ":5: session.0.path: wanted / and what follows"),
        ('host = "a"\npath = "/€"', ":5: session.0.path: wanted / and what follows"),
        ('host = "a"\npath = "/#x"', ":5: session.0.path: wanted / and what follows"),
        ('host = "a"\nheaders = 3', ":5: session.0.headers: wanted names and values that HTTP may carry"),
        ('host = "a"\nheaders = {A = 3}', ":5: session.0.headers: wanted names and values"),
        ('host = "a"\nheaders = {A = "x\\r\\nB: y"}', ":5: session.0.headers: wanted names and values"),
        ('host = "a"\nheaders = {"A:" = "x"}', ":5: session.0.headers: wanted names and values"),
        ('host = "a"\nheaders = {Upgrade = "x"}', ":5: session.0.headers: wanted lines that are neither"),
        ('host = "a"\nsubprotocols = "x"', ":5: session.0.subprotocols: wanted a list of words"),
        ('host = "a"\nsubprotocols = ["x,y"]', ":5: session.0.subprotocols: wanted a list of words"),
        ('host = "a"\nsubprotocols = ["x", "x"]', ":5: session.0.subprotocols: wanted each word once"),
        ('host = "a"\nmessage_max = 0', ":5: session.0.message_max: wanted 1 to 1073741824 bytes, not 0"),
        ('host = "a"\nmessage_max = 1073741825', ":5: session.0.message_max: wanted 1 to 1073741824"),
        ('host = "a"\nsend_bytes = 1023', ":5: session.0.send_bytes: wanted 1024 to"),
        ('host = "a"\nhead_max = 127', ":5: session.0.head_max: wanted 128 to"),
        ('host = "a"\nopen_timeout = 0.0', ":5: session.0.open_timeout: wanted more than 0 seconds"),
        ('host = "a"\nclose_timeout = 0.0', ":5: session.0.close_timeout: wanted more than 0 seconds"),
        ('host = "a"\nping_timeout = 0.0', ":5: session.0.ping_timeout: wanted more than 0 seconds"),
        ('host = "a"\nping_interval = -1.0', ":5: session.0.ping_interval: wanted seconds"),
        ('host = "a"\nspeed = 1', ":5: session.0.speed: unknown key .known: name, protocol, tls, close_"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_with_its_line(lines, why):
    text = GOOD + lines + "\n"
    with pytest.raises(ConfigError, match=why):
        _sessions(TomlReader("t.toml", text), tomllib.loads(text))


def test_a_request_longer_than_1_mib_is_refused():
    with pytest.raises(ConfigError, match="headers: wanted lines"):
        WsSettings(host="a", headers={"A": "x" * (1 << 20)})
    with pytest.raises(ConfigError, match="headers: the request is longer than 1 MiB"):
        WsSettings(host="a" * (1 << 19), headers={"A": "x" * (1 << 19)})


def test_a_table_becomes_what_the_core_takes():
    text = GOOD + (
        'host = "[2001:db8::1]:8443"\npath = "/a?b=c"\nheaders = {Origin = "https://ä", Empty = ""}\n'
        'subprotocols = ["v2", "v1"]\nmessage_max = 5000\nsend_bytes = 6000\nhead_max = 700\n'
        "open_timeout = 1.5\nping_interval = 2\nping_timeout = 0.25\nclose_timeout = 3.0\n"
    )
    (one,) = _sessions(TomlReader("t.toml", text), tomllib.loads(text))
    assert one.settings.tls_name == "2001:db8::1"
    spoken = one.settings.speak()
    assert spoken.ops == lib.xds_session_ws()
    raw = spoken.config
    texts = {key: ffi.string(getattr(raw, key)) for key in ("host", "path", "headers", "subprotocols")}
    assert texts == {
        "host": b"[2001:db8::1]:8443",
        "path": b"/a?b=c",
        "headers": b"Origin: https://\xe4\r\nEmpty: \r\n",
        "subprotocols": b"v2, v1",
    }
    assert (raw.message_max, raw.send_bytes, raw.head_max) == (5000, 6000, 700)
    assert (raw.handshake_ns, raw.ping_ns, raw.pong_ns, raw.close_ns) == (
        1_500_000_000, 2_000_000_000, 250_000_000, 3_000_000_000,
    )  # fmt: skip


def test_a_time_shorter_than_the_clock_counts_is_not_the_usual_one():
    raw = WsSettings(host="a", ping_timeout=1e-12, ping_interval=1e-12).speak().config
    assert (raw.pong_ns, raw.ping_ns) == (1, 1)
    assert WsSettings(host="a").speak().config.ping_ns == 0  # none


@pytest.mark.parametrize("where", [xdpstack.config, xdpstack.sessions, xdpstack.ws])
def test_the_examples_are_true(where):
    [example] = re.findall(r"^ {4}\[\[session\]\].*?(?=\n\n|\n\w|\Z)", where.__doc__, re.S | re.M)
    text = textwrap.dedent(example)
    (one,) = _sessions(TomlReader("t.toml", text), tomllib.loads(text))
    assert (one.name, one.protocol, one.settings.host) == ("exchange", "ws", "stream.exchange.example")


def test_every_reason_has_a_word_and_a_sentence():
    assert set(WsSettings.reasons) == set(range(1, lib.XDS_WS_REASONS))
    assert len(set(WsSettings.reasons.values())) == lib.XDS_WS_REASONS - 1
