"""Sessions over connections of an engine: the seam alone, with protocols of a few lines (line_session.py)."""

from __future__ import annotations

import contextlib
import os
import tomllib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xdpstack.streams
from xdpstack._ffi import ffi, lib
from xdpstack.config import Reader as TomlReader
from xdpstack.config import _sessions
from xdpstack.errors import ConfigError, RemoteProtocolError
from xdpstack.publish import Commander
from xdpstack.screen import State, as_text
from xdpstack.sessions import KINDS, PROTOCOLS, SessionConfig, session_news
from xdpstack.stages import STAGES
from xdpstack.stats import Reader
from xdpstack.tests.line_session import Line, Veil
from xdpstack.tests.test_publish_streams import PORT, Live
from xdpstack.tests.test_stream_hooks import B, echo, wait
from xdpstack.watch import Watch, drops


@pytest.fixture(autouse=True)
def protocols(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)
    monkeypatch.setitem(PROTOCOLS, "ws", Line)
    monkeypatch.setitem(PROTOCOLS, "tls", Veil)
    echo.state[:] = 0


def profile(name="lines", *, tls=False, **keys):
    return SessionConfig(name=name, protocol="ws", settings=Line(**keys), tls=Veil() if tls else None)


@contextlib.contextmanager
def lively(folder, *profiles, **options):
    with contextlib.ExitStack() as stack:
        live = Live(folder, stack, sessions=profiles, **options)
        live.start()
        yield live


def opened(live, session="lines"):
    why, connection = live.answer(live.commander.connect(B, PORT, session=session))
    assert why == ""
    live.until(lambda: any(one.what == "open" for one in of(live, connection, "ws")))
    return connection


def of(live, connection, protocol=""):
    return [one for one in live.said if one.connection == connection and protocol in ("", one.protocol)]


def messages(live, connection):
    return [one.data for one in of(live, connection, "ws") if one.what == "message"]


def last(live, connection):
    said = of(live, connection, "ws")
    return said[-1].what if said else ""


@pytest.mark.parametrize("tls", [False, True])
def test_a_session_opens_speaks_and_ends_in_order(tmp_path, tls):
    with lively(tmp_path, profile("other"), profile(tls=tls)) as live:
        assert live.reader.sessions == ["other", "lines"]
        connection = opened(live)
        assert live.answer(live.commander.write(connection, b"first", text=True)) == ("", connection)
        assert live.answer(live.commander.write(connection, b"")) == ("", connection)
        assert live.answer(live.commander.write(connection, b"there?", ping=True)) == ("", connection)
        live.until(lambda: any(one.what == "ping" for one in of(live, connection)))
        assert live.answer(live.commander.write(connection, b"no\nline"))[0] == "message"
        assert live.answer(live.commander.hang_up(connection, code=1000)) == ("", connection)
        assert live.answer(live.commander.write(connection, b"late"))[0] in ("not_open", "connection")
        live.until(lambda: "closed" in live.told(connection))
        said = of(live, connection)
        assert [one.number for one in said] == list(range(1, len(said) + 1))
        assert {one.session for one in said} == {"lines"}
        spoken = [(one.what, one.data) for one in said if one.protocol == "ws"]
        assert spoken == [
            ("open", b"lines"), ("message", b"first"), ("message", b""), ("ping", b"there?"),
            ("closed", b"bye"),
        ]  # fmt: skip
        assert [one.what for one in said if one.protocol == "tls"] == (["open"] if tls else [])
        assert said[-1].code == 1000
        assert "open" in live.told(connection)
        assert connection not in live.got  # its bytes are not published besides
        first = next(one for one in said if one.what == "message")
        assert first.text
        received, woken, begun, done, parsed, called = first.stages
        assert 0 < received <= woken <= parsed <= called
        assert (0 < woken <= begun <= done <= parsed) if tls else (begun, done) == (0, 0)
    assert live.engine.publication is None  # it is gone with the engine, and the session with it


@pytest.mark.parametrize("tls", [False, True])
def test_messages_count_in_the_connections_histograms_and_a_handshake_does_not(tmp_path, tls):
    """Against the stages on the tape: each message's own; of a record of the layer, and of an event, once."""
    count = 300
    with lively(tmp_path, profile(tls=tls), name=f"staged-{tls}-{os.getpid()}", warm_up=0) as live:
        connection = opened(live)
        for number in range(count):
            live.commander.write(connection, b"%0120d" % number)  # together more than a record of the layer
        live.until(lambda: len(messages(live, connection)) == count)
        rows = np.array([one.stages for one in of(live, connection, "ws") if one.what == "message"])
        seen = Reader(live.engine.segment.path)
        values, hists = seen.values(), seen.histograms()
        (place,) = [
            n for n in range(8) if (values[f"conn.{n}.id"], values[f"conn.{n}.port"]) == (connection, 0)
            and values[f"conn.{n}.connections"]
        ]  # fmt: skip
        live.until(lambda: len(hists[f"conn.{place}.stage.total"]) >= count)  # a moment behind the tape
        found = {word: hists[f"conn.{place}.stage.{word}"].summary() for word in STAGES.values()}
    receive, wake, begun, done, parsed, callback = rows.T
    _, records = np.unique(done, return_index=True)
    assert len(records) > 1 or not tls
    wanted = {
        "tls_start": (begun - wake)[records] if tls else [],
        "tls_end": (done - begun)[records] if tls else [],
        "parsed": parsed - (done if tls else wake),
        "callback": callback - parsed,
        "total": callback - receive,
    }
    for word, spent in wanted.items():
        assert found[word].count == len(spent), word
        if len(spent):
            assert (found[word].min, found[word].max) == (min(spent), max(spent)), word
    assert len(np.unique(wake)) <= found["wake"].count <= count


def counted(live, protocol="ws"):
    return live.engine.publication.stats()["sessions"][protocol]


@pytest.mark.parametrize("tls", [False, True])
def test_what_is_received_is_delivered_or_has_a_reason(tmp_path, tls):
    with lively(tmp_path, profile(tls=tls)) as live:
        connection = opened(live)
        for data in (b"!wrong", b"right", b"!wrong again", b"end"):
            assert live.answer(live.commander.write(connection, data))[0] == ""
        live.until(lambda: messages(live, connection) == [b"right", b"end"])
        wait(lambda: counted(live)["received"] == 5)
        stats = counted(live)
        assert stats["reasons"] == {"bang": 2}
        assert stats["received"] == stats["delivered"] + 2
        assert (stats["begun"], stats["live"], stats["opened"], stats["sent"]) == (1, 1, 1, 4)
        assert counted(live, "tls")["begun"] == tls
        assert live.answer(live.commander.reset(connection))[0] == ""
        wait(lambda: counted(live)["cut"] == 1)
        stats = counted(live)
        assert stats["begun"] == stats["live"] + stats["closed"] + stats["failed"] + stats["cut"] == 1
        assert counted(live, "tls")["cut"] == tls
        assert stats["received"] == 5


@pytest.mark.parametrize("tls", [False, True])
def test_a_session_that_fails_ends_its_connection(tmp_path, tls):
    with lively(tmp_path, profile(tls=tls)) as live:
        connection = opened(live)
        assert live.answer(live.commander.write(connection, b"fail"))[0] == ""
        live.until(lambda: "closed" in live.told(connection))
        end = of(live, connection, "ws")[-1]
        assert (end.what, end.code, end.reason, end.data) == ("failed", 2, "said_so", b"the peer said so")
        wait(lambda: counted(live)["failed"] == 1)
        assert live.answer(live.commander.write(connection, b"x"))[0] == "connection"
        wait(lambda: echo.state[18] == 1)  # our FIN came


def test_a_layer_that_fails_ends_what_is_over_it(tmp_path):
    veiled = SessionConfig(name="lines", protocol="ws", settings=Line(), tls=Veil(first="X"))
    with lively(tmp_path, veiled) as live:
        _, connection = live.answer(live.commander.connect(B, PORT, session="lines"))
        live.until(lambda: "closed" in live.told(connection))
        (only,) = of(live, connection)  # the session itself never began
        assert (only.protocol, only.what, only.reason, only.data) == ("tls", "failed", "no_t", b"no T")
        wait(lambda: counted(live, "tls")["failed"] == 1)
        assert counted(live, "tls")["reasons"] == {"no_t": 1}
        assert counted(live)["begun"] == 0


def test_a_layer_alone_gives_plain_text(tmp_path):
    with lively(tmp_path, SessionConfig(name="veil", protocol="tls", settings=Veil())) as live:
        why, connection = live.answer(live.commander.connect(B, PORT, session="veil"))
        assert why == ""
        live.until(lambda: any(one.what == "open" for one in of(live, connection, "tls")))
        assert live.answer(live.commander.write(connection, b"plain"))[0] == ""
        live.until(lambda: any(one.what == "message" for one in of(live, connection, "tls")))
        assert of(live, connection, "tls")[-1].data == b"plain"  # bare TLS gives plain text
        assert live.answer(live.commander.hang_up(connection))[0] == ""
        live.until(lambda: "closed" in live.told(connection))
        assert of(live, connection)[-1].what == "closed"


def test_a_timer_ends_a_session_that_nobody_answers(tmp_path):
    """The far end accepts and says nothing: the session's own deadline is kept by the turn."""
    with contextlib.ExitStack() as stack:
        live = Live(tmp_path, stack, sessions=[profile(patience=0.2)])
        live.far.listen(9)  # nobody reads
        live.start()
        why, connection = live.answer(live.commander.connect(B, 9, session="lines"))
        assert why == ""
        live.until(lambda: last(live, connection) == "failed")
        assert of(live, connection)[-1].reason == "late"
        live.until(lambda: "closed" in live.told(connection))  # although the peer never closes
        wait(lambda: counted(live)["failed"] == 1)


def test_a_peer_that_hangs_up_is_told_to_the_session(tmp_path):
    with contextlib.ExitStack() as stack:
        live = Live(tmp_path, stack, sessions=[profile(), profile("veiled", tls=True)])
        listener = live.far.listen(9)
        live.start()
        for session, protocol, code in (("lines", "ws", 4), ("veiled", "tls", 6)):
            _, connection = live.answer(live.commander.connect(B, 9, session=session))
            live.until(lambda n=connection: "open" in live.told(n))
            theirs = []

            def accepted(theirs=theirs) -> bool:
                with live.engine.paused():
                    one = listener.take()
                    if one is not None:
                        theirs.append(one)
                        one.take()  # else it is a reset, and no FIN
                        one.close()
                return bool(theirs)

            wait(accepted)
            live.until(lambda n=connection: any(one.what == "failed" for one in of(live, n)))
            end = [one for one in of(live, connection) if one.what == "failed"][-1]
            assert (end.protocol, end.code) == (protocol, code)


def test_places_are_bounded_and_given_back(tmp_path):
    with lively(tmp_path, profile(), most=2) as live:
        first, second = opened(live), opened(live)
        assert live.answer(live.commander.connect(B, PORT, session="lines"))[0] == "full"
        assert live.answer(live.commander.connect(B, PORT))[0] == ""  # one that speaks no protocol
        assert live.answer(live.commander.reset(first))[0] == ""
        third = opened(live)
        assert live.answer(live.commander.write(third, b"new"))[0] == ""
        assert live.answer(live.commander.write(second, b"old"))[0] == ""
        live.until(lambda: messages(live, third) == [b"new"] and messages(live, second) == [b"old"])


def test_a_plain_connection_beside_sessions_is_published_as_ever(tmp_path):
    with lively(tmp_path, profile()) as live:
        session = opened(live)
        _, plain = live.answer(live.commander.connect(B, PORT))
        live.until(lambda: "open" in live.told(plain))
        for number in range(3):
            assert live.answer(live.commander.write(session, b"line %d" % number))[0] == ""
            assert live.answer(live.commander.write(plain, b"raw %d" % number))[0] == ""
        live.until(lambda: live.got.get(plain) == b"raw 0raw 1raw 2" and len(messages(live, session)) == 3)
        came = [news for news in live.news if news.connection == plain and len(news.data)]
        assert all(0 < one.stages[0] <= one.stages[1] <= one.stages[5] for one in came)
        assert not of(live, plain)


def test_commands_that_make_no_sense_are_refused_by_name(tmp_path):
    with contextlib.ExitStack() as stack:
        live = Live(tmp_path, stack, sessions=[profile()])
        live.far.listen(9)
        live.start()
        assert live.answer(live.commander.connect(B, PORT, session=7))[0] == "profile"
        _, silent = live.answer(live.commander.connect(B, 9, session="lines"))
        live.until(lambda: "open" in live.told(silent))
        assert live.answer(live.commander.write(silent, b"early")) == ("not_open", silent)
        assert live.answer(live.commander.hang_up(silent)) == ("", silent)  # at once: it is not open
        live.until(lambda: "closed" in live.told(silent))
        wait(lambda: counted(live)["cut"] == 1)
        with pytest.raises(ConfigError, match="session 'none' is none of lines"):
            live.commander.connect(B, PORT, session="none")
        live.commander.close()
        with (
            Commander(tmp_path / "ring") as blind,
            pytest.raises(ConfigError, match="there is none"),
        ):
            blind.connect(B, PORT, session="lines")


def test_a_session_that_cannot_begin_says_so(tmp_path):
    with lively(tmp_path, profile(refuses=True)) as live:
        _, connection = live.answer(live.commander.connect(B, PORT, session="lines"))
        live.until(lambda: "closed" in live.told(connection))
        (only,) = of(live, connection)
        assert (only.what, only.data, only.detail) == ("failed", b"it could not begin", -lib.XDS_ECONFIG)
        wait(lambda: counted(live)["failed"] == 1)


def test_connections_that_are_refused_give_their_place_back(tmp_path):
    with lively(tmp_path, profile(), most=1) as live:
        for _ in range(3):
            _, connection = live.answer(live.commander.connect(B, 4444, session="lines"))
            live.until(lambda n=connection: "refused" in live.told(n))
            assert not of(live, connection)  # it never began
        opened(live)


def test_each_session_has_a_seed_of_its_own(tmp_path):
    one = profile()
    with lively(tmp_path, one) as live:
        for _ in range(3):
            opened(live)
        seeds = {half.seed for half in one.settings.made}
        assert len(seeds) == 3
        assert all(len(set(seed)) > 8 for seed in seeds)


def test_a_message_longer_than_a_record_comes_in_pieces_of_one_number(tmp_path):
    with lively(tmp_path, profile(), bytes=1 << 16) as live:  # records of 8 KiB
        connection = opened(live)
        data = bytes(32 + i % 90 for i in range(30_000))
        assert live.answer(live.commander.write(connection, data))[0] == ""
        live.until(lambda: sum(map(len, messages(live, connection))) == len(data))
        pieces = [one for one in of(live, connection) if one.what == "message"]
        assert len(pieces) > 1
        assert b"".join(one.data for one in pieces) == data
        assert {(one.number, one.whole) for one in pieces} == {(pieces[0].number, len(data))}
        assert [one.at for one in pieces] == list(np.cumsum([0, *(len(one.data) for one in pieces[:-1])]))


@pytest.mark.parametrize("tls", [False, True])
def test_however_the_stream_is_cut_the_messages_are_the_same(tmp_path, tls):
    """Small rings on our side, so that pieces end at the ring's end and sending waits for room."""
    tight = {"send_bytes": 2048, "receive_bytes": 2048}
    one = profile(tls=tls, blocks=600)
    with lively(tmp_path, one, **tight) as live:
        letters = st.binary(max_size=1500).map(lambda data: bytes(32 + byte % 26 for byte in data))

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(letters.map(lambda data: data.lstrip(b"!?")), max_size=12))
        def same(lines: list[bytes]) -> None:
            connection = opened(live)
            for line in lines:
                why = live.answer(live.commander.write(connection, line))[0]
                assert why == ""
            live.until(lambda: len(messages(live, connection)) == len(lines))
            assert messages(live, connection) == lines
            assert live.answer(live.commander.hang_up(connection))[0] == ""
            live.until(lambda: "closed" in live.told(connection))
            live.said.clear()
            live.news.clear()

        same()


def test_other_processes_see_what_sessions_count(tmp_path):
    with lively(tmp_path, profile(tls=True), name="sessions") as live:
        connection = opened(live)
        assert live.answer(live.commander.write(connection, b"!odd"))[0] == ""
        seen: dict[str, int] = {}

        def shown() -> bool:
            seen.update(Reader(live.engine.segment.path).values())
            return seen["session.ws.received"] == 2

        wait(shown)
        words = {word: seen[f"session.ws.{word}"] for word in ("begun", "live", "opened", "delivered", "cut")}
        assert words == {"begun": 1, "live": 1, "opened": 1, "delivered": 1, "cut": 0}
        assert seen["session.ws.reasons.bang"] == seen["session.tls.live"] == 1
        assert not any(name.startswith("session.fix") for name in seen)  # nobody speaks it here
        (drop,) = [drop for drop in drops(seen) if drop.key.family == "session_messages"]
        assert (drop.where, drop.reason, drop.count) == ("sessions ws", "bang", 1)
        watch = Watch(only="sessions")
        watch.look()
        lines = as_text(watch, State(), 140).splitlines()
        head = next(number for number, line in enumerate(lines) if line.startswith("SESSIONS"))
        rows = {line.split()[0]: line.split() for line in lines[head + 1 : head + 3]}
        assert rows["ws"][-7:] == ["1", "1", "1", "0", "0", "0", "1"]  # live, begun, opened, ..., dropped
        assert rows["tls"][-7:] == ["1", "1", "1", "0", "0", "0", "0"]


def test_words_and_structs_agree():
    assert KINDS == {1: "tls", 2: "ws", 3: "fix"}
    for number, word in KINDS.items():
        assert getattr(lib, f"XDS_PUBLISH_{word.upper()}") == lib.XDS_PUBLISH_STREAM + number
    assert ffi.sizeof("struct xds_publish_session") == 136
    assert len(ffi.new("struct xds_publish_stats *").answers) >= lib.XDS_REFUSALS
    assert len(ffi.new("struct xds_publish_stats *").records) > lib.XDS_PUBLISH_FIX


def test_a_record_that_contradicts_itself_is_refused():
    raw = ffi.new("struct xds_publish_session *", {"at": 5, "len": 1, "whole": 5, "what": 77, "profile": 9})
    data = np.frombuffer(bytes(ffi.buffer(raw)) + b"x", np.uint8)
    with pytest.raises(RemoteProtocolError, match="contradicts itself"):
        session_news("ws", data, [])
    raw.whole = 6
    news = session_news("ws", np.frombuffer(bytes(ffi.buffer(raw)) + b"x", np.uint8), ["only"])
    assert (news.what, news.session, news.data.tobytes()) == ("77", "9", b"x")


GOOD = '[[session]]\nname = "a"\nprotocol = "ws"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[session]\nname = "a"\n', ":1: session: wanted tables"),
        ("[[session]]\nname = 3\n", ":2: session.0.name: wanted a name, not 3"),
        ('[[session]]\nname = "a"\nprotocol = "gopher"\n', ":3: .*wanted one of .*, not 'gopher'"),
        (GOOD + "tls = 1\n", ":4: session.0.tls: wanted true or false"),
        (GOOD + "speed = 1\n", ":4: .*unknown key .known: name, protocol, tls, blocks"),
        (GOOD + 'patience = "no"\n', ":4: .*wanted seconds"),
        (GOOD + GOOD, ":5: session.1.name: 'a' is there already"),
        (GOOD + 'server_name = "x"\n', ":4: .*unknown key"),  # without tls = true
    ],
)
def test_what_is_wrong_in_a_table_is_told_with_its_line(text, why):
    with pytest.raises(ConfigError, match=why):
        _sessions(TomlReader("t.toml", text), tomllib.loads(text))


def test_a_table_becomes_a_profile():
    text = GOOD + 'tls = true\nserver_name = "host"\npatience = 2.0\n'
    (one,) = _sessions(TomlReader("t.toml", text), tomllib.loads(text))
    assert (one.name, one.settings.patience, one.tls.server_name) == ("a", 2.0, "host")
