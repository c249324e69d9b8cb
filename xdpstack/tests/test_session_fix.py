"""engine/session_fix.c and xdpstack/fix.py: FIX over connections of an engine, with a venue of simplefix."""

from __future__ import annotations

import contextlib
import json
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xdpstack.streams
from xdpstack._ffi import lib
from xdpstack.cli import main
from xdpstack.config import Reader as TomlReader
from xdpstack.config import _sessions
from xdpstack.errors import ConfigError
from xdpstack.fix import VERSIONS, FixSettings, parse
from xdpstack.sessions import PROTOCOLS, SessionConfig
from xdpstack.stats import Reader
from xdpstack.tests.fix_acceptor import Acceptor
from xdpstack.tests.line_session import Veil
from xdpstack.tests.speaking import Speaking
from xdpstack.tests.test_publish_streams import PATIENCE, Live
from xdpstack.tests.test_stream_hooks import B, wait

VENUE = 9878


@pytest.fixture(autouse=True)
def close_at_once(monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)


def order(number, *more):
    """A NewOrderSingle's fields, as a command brings them."""
    fields = [(35, "D"), (11, f"C-{number}"), (55, "EUR/USD"), (54, 1), (38, 100), *more]
    return b"".join(b"%d=%b\x01" % (tag, str(value).encode()) for tag, value in fields)


def value(data, tag):
    return next((found.decode() for number, found in parse(data) if number == tag), None)


class Server:
    """A listener of the far stack; whoever connects last has the venue. Veiled: below a layer."""

    def __init__(self, live, venue, *, veiled=False):
        self.engine, self.venue, self.veiled = live.engine, venue, veiled
        self.listener = live.far.listen(VENUE)
        self.connection = None
        self.ended = self.stopped = self.keeps = False
        """Ended: the client's FIN came. Stopped: nothing is read. Keeps: it does not close then."""
        self.connections = 0
        self._out, self._kept, self._began = bytearray(), b"", False

    def turn(self):
        """Move what can be moved; the engine stands still meanwhile. A connection that was reset is left."""
        with self.engine.paused(), contextlib.suppress(ConnectionError):
            if (fresh := self.listener.take()) is not None:
                self.connection, self.ended = fresh, False
                self.connections += 1
                self._out, self._kept = bytearray(b"T" if self.veiled else b""), b""
                self._began = False
                self.venue.connected()
            if self.connection is None or self.connection.closed or self.stopped:
                return
            self.connection.streams.gather()  # whether its end came
            while not self.ended and (data := self.connection.take()) is not None:
                self.ended = data == b""
                self.venue.take(self.plain(data) if self.veiled else data)
            out = bytes(self.venue.out)
            self.venue.out.clear()
            if out and self.veiled:
                out = len(out).to_bytes(2, "big") + bytes(byte ^ 0x5A for byte in out)
            self._out += out
            if self._out:
                del self._out[: self.connection.put(bytes(self._out))]
            if self.ended and not self.keeps and not self._out:
                self.connection.close()

    def plain(self, data):
        data, found = self._kept + data, b""
        if data and not self._began:
            data, self._began = data.removeprefix(b"T"), True
        while len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2], "big"):
            size = int.from_bytes(data[:2], "big")
            found += bytes(byte ^ 0x5A for byte in data[2 : 2 + size])
            data = data[2 + size :]
        self._kept = data
        return found

    def hang_up(self):
        """First, and not in answer."""
        with self.engine.paused():
            self.connection.close()

    def reset(self):
        with self.engine.paused():
            self.connection.abort()

    @property
    def is_drained(self):
        return not self._out and not self.venue.out


class Wired(Speaking):
    """An engine whose connections may speak FIX, and the venue that they meet."""

    protocol = "fix"

    def __init__(self, folder, stack, *, venue=None, veiled=False, name="", options=None, **keys):
        patient = dict.fromkeys(("open_timeout", "close_timeout", "resend_timeout"), PATIENCE)
        names = {"sender_comp_id": "BUYSIDE", "target_comp_id": "VENUE"}
        self.settings = FixSettings(**{"heartbeat": 600, **patient, **names, **keys})
        profile = SessionConfig(
            name="venue", protocol="fix", settings=self.settings, tls=Veil() if veiled else None
        )
        self.live = Live(folder, stack, sessions=[profile], name=name, **(options or {}))
        self.venue = venue or Acceptor(begin=self.settings.begin_string)
        self.server = Server(self.live, self.venue, veiled=veiled)
        self.live.start()
        self.connect()

    def connect(self):
        why, self.connection = self.ask("connect", B, VENUE, session="venue")
        assert why == ""
        return self.connection

    def said(self, *what, protocol="fix"):
        """Events of the newest connection."""
        return [
            one
            for one in self.live.said
            if (one.connection, one.protocol) == (self.connection, protocol)
            and (not what or one.what in what)
        ]

    def words(self):
        return [one.what for one in self.said()]

    def open(self):
        self.until(lambda: self.said("open"))
        return self

    def gone(self):
        """The connection ended; its last event."""
        self.left()
        return self.said()[-1]

    def hang_up(self, **more):
        """In order; the last event."""
        assert self.ask("hang_up", self.connection, **more) == ("", self.connection)
        return self.gone()


@contextlib.contextmanager
def wired(folder, **keys):
    with contextlib.ExitStack() as stack:
        yield Wired(folder, stack, **keys)


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_go_both_ways_with_their_stages_and_the_end_is_in_order(tmp_path, version):
    more = {"sender_sub_id": "desk", "username": "u", "password": "p", "time_digits": 9}
    with wired(tmp_path, begin_string=version, heartbeat=20, **more) as w:
        w.open()
        [logon] = w.venue.of("A")
        assert [logon[tag] for tag in (8, 34, 49, 50, 56, 98, 108, 553, 554)] == [
            version, "1", "BUYSIDE", "desk", "VENUE", "0", "20", "u", "p",
        ]  # fmt: skip
        assert logon.get(1137) == ("9" if version == "FIXT.1.1" else None)
        assert len(logon[52]) == 27  # nanoseconds
        [opened] = w.said()
        assert (opened.what, opened.code, opened.seq, opened.name) == ("open", 20, 1, "A")
        assert (value(opened.data, 8), value(opened.data, 108)) == (version, "20")
        for number in range(3):
            assert w.write(order(number)) == ""
        w.until(lambda: len(w.said("message")) == 3)
        orders = w.venue.of("D")
        assert [one[11] for one in orders] == ["C-0", "C-1", "C-2"]
        assert [one[34] for one in orders] == ["2", "3", "4"]
        came = w.said("message")
        assert [(one.seq, one.name, value(one.data, 11)) for one in came] == [
            (2, "8", "C-0"), (3, "8", "C-1"), (4, "8", "C-2"),
        ]  # fmt: skip
        for one in came:
            assert one.data.startswith(b"8=" + version.encode())
            assert one.flags == 0
            received, woken, begun, done, parsed, called = one.stages
            assert 0 < received <= woken <= parsed <= called
            assert (begun, done) == (0, 0)
        assert w.ask("hang_up", w.connection, reason=b"enough for today") == ("", w.connection)
        assert w.write(b"late") == "not_open"
        last = w.gone()
        [logout] = w.venue.of("5")
        assert logout[58] == "enough for today"
        assert (last.what, last.seq, last.until) == ("closed", 6, 6)  # what comes, and goes, next
        assert w.words()[-2:] == ["logout", "closed"]
        assert [one.number for one in w.said()] == list(range(1, len(w.said()) + 1))
        assert w.connection not in w.live.got  # its bytes are not published besides
        stats = w.ended()
        assert (stats["opened"], stats["closed"], stats["reasons"]) == (1, 1, {})
        assert (stats["received"], stats["sent"]) == (1 + 3 + 1, 1 + 3 + 1)


def test_it_speaks_over_a_layer_and_the_layers_stamps_are_between(tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "tls", Veil)
    with wired(tmp_path, veiled=True) as w:
        w.open()
        assert w.write(order(1)) == ""
        w.until(lambda: w.said("message"))
        [one] = w.said("message")
        assert value(one.data, 11) == "C-1"
        received, woken, begun, done, parsed, called = one.stages
        assert 0 < received <= woken <= begun <= done <= parsed <= called
        assert w.hang_up().what == "closed"
        assert [one.what for one in w.said(protocol="tls")] == ["open"]  # its end is cut by the far side
        w.ended()


def test_both_sides_test_the_line_and_the_round_trip_is_measured(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        w.venue.say("1", (112, "are you there?"))
        w.until(lambda: any(one.get(112) == "are you there?" for one in w.venue.of("0")))
        [test] = w.said("test")
        assert (test.data, test.seq) == (b"are you there?", 2)
        assert w.write(b"", ping=True) == ""
        w.until(lambda: any(one.until for one in w.said("heartbeat")))
        [asked] = w.venue.of("1")
        assert asked[112]
        assert 0 < next(one.until for one in w.said("heartbeat") if one.until) < PATIENCE * 1e9
        w.venue.say("0")
        w.until(lambda: len(w.said("heartbeat")) == 2)
        assert w.said("heartbeat")[-1].until == 0
        assert w.write(b"x", ping=True) == "message"


def test_silence_is_broken_and_asked_about(tmp_path):
    """The venue says nothing of its own accord, and answers what it is asked."""
    with wired(tmp_path, heartbeat=6) as w:  # seconds; it has as long to answer
        w.open()
        w.until(lambda: any(112 not in one for one in w.venue.of("0")))
        w.until(lambda: w.said("tested") and any(one.until for one in w.said("heartbeat")))
        assert w.write(order(1)) == ""
        w.until(lambda: w.said("message"))


def test_what_was_missed_is_asked_for_and_comes_in_order(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        w.venue.say("8", (11, "first"), lost=True)
        w.venue.say("0", lost=True)
        w.venue.say("8", (11, "second"))
        w.until(lambda: w.said("filled"))
        assert w.words() == ["open", "gap", "message", "reset", "message", "filled"]
        gap, first, reset, second, filled = w.said()[1:]
        assert (gap.seq, gap.until) == (2, 3)
        assert [(one[7], one[16]) for one in w.venue.of("2")] == [("2", "0")]
        assert (first.seq, value(first.data, 11), first.flags) == (2, "first", lib.XDS_SESSION_POSS_DUP)
        assert (second.seq, value(second.data, 11), second.flags) == (4, "second", lib.XDS_SESSION_POSS_DUP)
        assert (reset.seq, filled.seq) == (4, 5)
        assert w.hang_up().what == "closed"
        assert w.ended()["reasons"] == {"ahead": 1}


def test_what_the_venue_missed_it_gets_again(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        w.venue.deaf = 2
        for number in range(3):
            assert w.write(order(number)) == ""
        w.until(lambda: len(w.said("message")) == 3)
        [resend] = w.said("resend")
        assert (resend.seq, resend.until) == (2, 4)
        [first, *others] = w.venue.of("D")
        assert (first[34], 43 in first) == ("4", False)  # by which it saw what it missed
        assert [(one[34], one[11], one[43]) for one in others] == [
            ("2", "C-0", "Y"), ("3", "C-1", "Y"), ("4", "C-2", "Y"),
        ]  # fmt: skip
        assert [value(one.data, 11) for one in w.said("message")] == ["C-0", "C-1", "C-2"]


def test_rejects_are_told_whoever_sent_them(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        assert w.write(order(1, (40, "?"))) == ""
        w.until(lambda: w.venue.of("D"))
        w.venue.say("3", (45, 2), (371, 40), (372, "D"), (373, 5), (58, "no such order type"))
        w.until(lambda: w.said("reject"))
        [theirs] = w.said("reject")
        assert (theirs.code, theirs.detail, theirs.seq, theirs.flags) == (5, 40, 2, 0)
        assert theirs.data == b"no such order type"
        w.venue.say("1")  # without TestReqID
        w.until(lambda: len(w.said("reject")) == 2 and w.venue.of("3"))
        ours = w.said("reject")[-1]
        assert (ours.code, ours.detail, ours.flags) == (1, 112, lib.XDS_SESSION_SENT)
        [heard] = w.venue.of("3")
        assert (heard[45], heard[371], heard[373]) == (str(ours.seq), "112", "1")
        assert ours.data.decode() == heard[58]
        assert w.hang_up().what == "closed"
        assert w.ended()["reasons"] == {"required": 1}


def spoilt(w, how):
    """A message of the venue's, with something wrong."""
    raw = w.venue.built("8", w.venue.next_out, ((11, "x"), (58, "y" * 40)))
    if how == "checksum":
        return raw[:-2] + (b"0" if raw[-2:-1] != b"0" else b"1") + raw[-1:]
    if how == "length":
        return raw.replace(b"\x0135=", b"x\x0135=", 1)
    return b"8=FIX.4.4\x0110=000\x01"


@pytest.mark.parametrize("how", ["checksum", "length", "begin"])
def test_what_is_garbled_is_counted_passed_over_and_comes_again(tmp_path, how):
    with wired(tmp_path) as w:
        w.open()
        w.venue.out += spoilt(w, how)
        w.venue.say("8", (11, "whole"), lost=True)
        w.venue.say("8", (11, "next"))
        w.until(lambda: w.said("filled"))
        assert [value(one.data, 11) for one in w.said("message")] == ["whole", "next"]
        assert w.hang_up().what == "closed"
        stats = w.ended()
        assert stats["reasons"].pop("ahead") == 1
        assert sum(stats["reasons"].values()) >= 1
        assert set(stats["reasons"]) <= {"checksum", "length", "begin"}


def test_what_is_kept_behind_garbage_goes_on_once_there_is_room(tmp_path):
    """All of it is taken; whole messages in it wait behind the answer to a request that fills the output."""
    with wired(tmp_path, message_max=1024, send_bytes=4096) as w:
        w.open()
        w.venue.silent = True
        for number in range(20):
            w.until(lambda n=number: w.write(order(n, (58, "y" * 400))) == "")
        w.until(lambda: len(w.venue.of("D")) == 20)
        asks = w.venue.built("2", 2, ((7, 2), (16, 0)))
        news = w.venue.built("B", 3, ((148, "headline"),))
        rest = b"35=8\x01" + asks + news + b"\r\n\r"
        garbled = b"8=FIX.4.4\x019=%d\x01" % (len(rest) - 7) + rest
        w.venue.out += garbled[:50]
        w.until(lambda: w.server.is_drained)
        assert w.write(order(20)) == ""
        w.until(lambda: len(w.venue.of("D")) == 21)  # by then the beginning was taken, and is kept
        w.venue.out += garbled[50:]
        w.venue.next_out = 4
        w.until(lambda: w.said("message"))
        assert w.words() == ["open", "resend", "message"]
        w.until(lambda: len(w.venue.of("D")) == 42)
        w.venue.silent = False
        wait(lambda: w.counted()["reasons"] == {"length": 1})


@pytest.mark.parametrize(
    ("wrong", "reason", "why"),
    [
        ("stranger", "comp_id", b"CompID problem"),
        ("refused", "refused", b"the Logon was refused: market is closed"),
        ("wordless", "refused", b"the Logon was refused: no reason given"),
        ("no_logon", "no_logon", b"the first message is no Logon"),
        ("method", "logon_bad", b"EncryptMethod must be 0"),
        ("low", "seq_low", b"MsgSeqNum too low"),
        ("version", "version", b"BeginString is another version's"),
        ("clock", "sending_time", b"SendingTime accuracy problem"),
    ],
)
def test_a_venue_that_we_cannot_talk_to(tmp_path, wrong, reason, why):
    venue, keys = Acceptor(), {}
    if wrong == "stranger":
        venue.me = "SOMEBODY"
    elif wrong == "refused":
        venue.refuses = "market is closed"
    elif wrong == "low":
        keys = {"next_in": 5}
    elif wrong == "version":
        venue.begin = "FIX.4.2"
    else:
        venue.silent = True
    with wired(tmp_path, venue=venue, **keys) as w:
        w.until(lambda: venue.of("A"))
        if wrong == "wordless":
            venue.say("5")
        elif wrong == "no_logon":
            venue.say("0")
        elif wrong == "method":
            venue.say("A", (98, 1), (108, 30))
        elif wrong == "clock":
            raw = venue.built("A", 1, ((98, 0), (108, 30)))
            old = raw[: raw.index(b"\x0152=") + 4] + b"2001" + raw[raw.index(b"\x0152=") + 8 : -7]
            venue.out += old + b"10=%03d\x01" % (sum(old) % 256)
        last = w.gone()
        assert (last.what, last.reason, last.data) == ("failed", reason, why)
        assert w.words() == (["logout", "failed"] if reason == "refused" else ["failed"])
        stats = w.ended()
        assert (stats["failed"], stats["opened"]) == (1, 0)
        assert stats["reasons"] == ({} if reason == "refused" else {reason: 1})


@pytest.mark.parametrize("when", ["logon", "logout", "up"])
def test_a_venue_that_says_nothing(tmp_path, when):
    keys = {"logon": {"open_timeout": 0.2}, "logout": {"close_timeout": 0.2}, "up": {"heartbeat": 1}}[when]
    venue = Acceptor()
    venue.silent, venue.hushes = when == "logon", True
    with wired(tmp_path, venue=venue, **keys) as w:
        if when != "logon":
            w.open()
        if when == "logout":
            assert w.ask("hang_up", w.connection)[0] == ""
        last = w.gone()
        reason, why = {
            "logon": ("logon_timeout", b"the Logon was not answered within open_timeout"),
            "logout": ("logout_late", b"our Logout was not answered within close_timeout"),
            "up": ("silent", b"nothing came, not even in answer to a TestRequest"),
        }[when]
        assert (last.what, last.reason, last.data) == ("failed", reason, why)
        if when == "up":
            assert w.words() == ["open", "tested", "failed"]
            assert w.venue.of("1")
        assert w.ended()["failed"] == 1


@pytest.mark.parametrize("how", ["hang_up", "reset"])
def test_a_peer_that_is_gone_without_a_logout(tmp_path, how):
    with wired(tmp_path) as w:
        w.open()
        getattr(w.server, how)()
        w.until(lambda: w.said("failed"))
        last = w.said()[-1]
        assert (last.what, last.reason, last.seq, last.until) == ("failed", "hung_up", 2, 2)
        assert last.data == b"the peer ended the connection, and not the session"
        w.gone()
        assert w.ended()["failed"] == 1


def test_the_venue_logs_out_and_is_answered(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        w.venue.silent = True
        w.venue.say("5", (58, "end of day"))
        w.until(lambda: w.said("closed") and w.venue.of("5"))
        assert w.words() == ["open", "logout", "closed"]
        assert w.said("logout")[0].data == b"end of day"
        assert w.gone().what == "closed"
        assert w.ended()["closed"] == 1


def test_who_resets_says_no_logout_and_the_next_connection_may_begin(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        assert w.ask("reset", w.connection)[0] == ""
        wait(lambda: w.counted()["cut"] == 1)
        w.connect()
        w.open()
        assert [one[34] for one in w.venue.of("A")] == ["1", "2"]  # numbers go on
        assert not w.venue.of("5")
        assert w.hang_up().what == "closed"
        stats = w.ended(begun=2)
        assert (stats["cut"], stats["closed"]) == (1, 1)


def test_numbers_and_what_was_sent_outlive_a_connection(tmp_path):
    with wired(tmp_path) as w:
        w.open()
        w.until(lambda: w.server.is_drained)
        w.server.stopped = True  # what is sent now never comes to be read
        for number in range(2):
            assert w.write(order(number)) == ""
        w.server.reset()
        w.until(lambda: w.said("failed"))
        last = w.gone()
        assert (last.reason, last.seq, last.until) == ("hung_up", 2, 4)
        w.server.stopped = False
        w.connect()
        w.open()
        w.until(lambda: len(w.said("message")) == 2)  # of the orders, once it asked for them
        assert [(one[34], one[11], one[43]) for one in w.venue.of("D")] == [
            ("2", "C-0", "Y"), ("3", "C-1", "Y"),
        ]  # fmt: skip
        assert w.venue.of("A")[-1][34] == "4"
        assert w.hang_up().what == "closed"
        stats = w.ended(begun=2)
        assert (stats["failed"], stats["closed"], stats["opened"]) == (1, 1, 2)


def test_one_connection_has_the_session_at_a_time(tmp_path):
    with wired(tmp_path) as w:
        first = w.open().connection
        w.connect()
        last = w.gone()
        assert (last.what, last.data, last.detail) == ("failed", b"it could not begin", -lib.XDS_ESTATE)
        assert w.words() == ["failed"]
        w.connection = first
        assert w.write(order(1)) == ""  # of the one that has it
        assert w.said()[-1].what != "failed"


def test_a_session_that_ended_does_not_keep_the_next_from_beginning(tmp_path):
    """The venue leaves its connection open: ours lingers, while the next one speaks."""
    with wired(tmp_path) as w:
        w.open()
        w.server.keeps = True
        first = w.connection
        assert w.ask("hang_up", first)[0] == ""
        w.until(lambda: w.said("closed"))
        w.connect()
        w.open()
        assert w.write(order(1)) == ""
        w.until(lambda: w.said("message"))
        w.until(lambda: w.live.told(first) & {"closed"})
        w.server.keeps = False
        assert w.hang_up().what == "closed"
        stats = w.ended(begun=2)
        assert (stats["closed"], stats["received"], stats["sent"]) == (2, 2 + 3, 2 + 3)


def test_the_next_engine_goes_on_with_what_the_last_event_said(tmp_path):
    venue = Acceptor()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with wired(tmp_path / "a", venue=venue) as w:
        w.open()
        assert w.write(order(1)) == ""
        w.until(lambda: w.said("message"))
        last = w.hang_up()
    with wired(tmp_path / "b", venue=venue, next_in=last.seq, next_out=last.until) as w:
        w.open()
        assert w.write(order(2)) == ""
        w.until(lambda: w.said("message"))
        assert w.words() == ["open", "message"]  # no gap on either side
        assert not venue.of("2")


def test_both_begin_at_1_where_that_is_asked(tmp_path):
    with wired(tmp_path, reset=True, next_out=7, next_in=9) as w:
        w.open()
        assert (w.venue.of("A")[0][34], w.venue.of("A")[0][141]) == ("1", "Y")
        assert w.said("open")[0].seq == 1


def test_messages_that_cannot_go_are_refused_by_name(tmp_path):
    venue = Acceptor()
    venue.silent = True
    tight = {"send_bytes": 4096}
    with wired(tmp_path, venue=venue, message_max=1024, send_bytes=4096, options=tight) as w:
        w.until(lambda: venue.of("A"))
        assert w.write(order(0)) == "not_open"
        assert w.write(b"", ping=True) == "not_open"
        venue.silent = False
        venue.say("A", (98, 0), (108, 30))
        venue.next_in = 2
        w.open()
        bad = (b"", b"35=D", b"55=X\x01", b"35=0\x01", order(1)[:-1], order(1, (34, 5)), b"35=D\x01x\x01")
        for data in bad:
            assert w.write(data) == "message"
        assert w.write(b"35=D\x0158=" + b"x" * 512 + b"\x01") == "message"  # it would never fit
        assert w.ask("hang_up", w.connection, code=1000)[0] == "message"
        assert w.ask("hang_up", w.connection, reason=b"a\x0134=7")[0] == "message"
        assert w.ask("hang_up", w.connection, reason=b"x" * 1025)[0] == "message"
        w.server.stopped = True
        sent = 0
        while (why := w.write(order(sent, (58, "y" * 400)))) == "":  # the venue does not read meanwhile
            sent += 1
            assert sent < 1000
        assert why == "full"
        w.server.stopped = False
        w.until(lambda: len(w.said("message")) == sent)
        w.until(lambda: w.write(order("again")) == "")
        w.until(lambda: len(w.said("message")) == sent + 1)
        assert [one[11] for one in w.venue.of("D")] == [f"C-{n}" for n in [*range(sent), "again"]]


def test_however_it_is_cut_the_messages_are_the_same(tmp_path):
    """Small rings on our side: pieces end where the rings do."""
    tight = {"send_bytes": 2048, "receive_bytes": 2048}
    with wired(tmp_path, options=tight) as w:
        w.open()
        texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=3000)

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.tuples(texts, st.booleans()), max_size=8))
        def same(given):
            w.live.said.clear()
            w.venue.heard.clear()
            kept = [text for text, lost in given if not lost]
            for text, lost in given:
                w.venue.say("B", (148, text), lost=lost)
            w.venue.say("B", (148, "last"))
            w.until(lambda: len(w.said("message")) == len(given) + 1 and w.server.is_drained)
            came = [value(one.data, 148) for one in w.said("message")]
            assert came == [*(text for text, _ in given), "last"]
            assert bool(w.said("gap")) == (len(kept) < len(given))
            for text, _ in given:
                w.until(lambda t=text: w.write(b"35=B\x01148=%b\x01" % t.encode()) == "")
            w.until(lambda: len(w.venue.of("B")) == len(given))
            assert [one[148] for one in w.venue.of("B")] == [text for text, _ in given]

        same()


def test_what_is_counted_and_said_is_shown_in_words(tmp_path, capsys):
    with wired(tmp_path, name="fixshow") as w:
        w.open()
        w.venue.say("B", (148, "headline"))
        w.until(lambda: w.said("message"))
        w.venue.me = "SOMEBODY"
        w.venue.say("0")
        assert w.gone().reason == "comp_id"
        w.ended()
        seen = {}

        def shown():
            seen.update(Reader(w.live.engine.segment.path).values())
            return seen["session.fix.failed"] == 1

        wait(shown)
        assert seen["session.fix.reasons.comp_id"] == 1
        assert "session.fix.reasons.hung_up" not in seen  # which counts no message
        capsys.readouterr()
        assert main(["shm", "tail", str(tmp_path / "tape"), "--oldest", "--json", "--seconds", "0.2"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [record["data"] for record in records if record["kind"] == "fix"]
    assert [one["what"] for one in told] == ["open", "message", "reject", "failed"]
    assert (told[1]["session"], told[1]["protocol"], told[1]["name"]) == ("venue", "fix", "B")
    assert "|35=B|49=VENUE|56=BUYSIDE|34=2|" in told[1]["data"]
    assert len(told[1]["stages"]) == 6
    assert (told[2]["code"], told[2]["detail"]) == (9, 49)
    assert (told[3]["reason"], told[3]["data"]) == ("comp_id", "CompID problem")


GOOD = '[[session]]\nname = "a"\nprotocol = "fix"\nsender_comp_id = "ME"\ntarget_comp_id = "YOU"\n'


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ('begin_string = "FIX.5.0"', ":6: session.0.begin_string: wanted one of FIX.4.2, FIX.4.4, FIXT"),
        ('sender_sub_id = "é"', ":6: session.0.sender_sub_id: wanted 0 to 63 letters of ASCII"),
        ("username = 3", ":6: session.0.username: wanted a string, not 3"),
        (f'password = "{"x" * 64}"', ":6: session.0.password: wanted 0 to 63 letters of ASCII$"),
        ('default_appl_ver_id = ""', ":6: session.0.default_appl_ver_id: wanted 1 to 7 letters"),
        ('default_appl_ver_id = "12345678"', ":6: session.0.default_appl_ver_id: wanted 1 to 7 letters"),
        ("heartbeat = 0", ":6: session.0.heartbeat: wanted 1 to 86400, not 0"),
        ("heartbeat = 86401", ":6: session.0.heartbeat: wanted 1 to 86400"),
        ("heartbeat = 1.5", ":6: session.0.heartbeat: wanted a whole number"),
        ("next_out = 0", ":6: session.0.next_out: wanted 1 to"),
        ("next_in = 0", ":6: session.0.next_in: wanted 1 to"),
        ("time_digits = 4", ":6: session.0.time_digits: wanted 3, 6 or 9, not 4"),
        ("time_tolerance = -1.0", ":6: session.0.time_tolerance: wanted seconds"),
        ("message_max = 1023", ":6: session.0.message_max: wanted 1024 to 1048576"),
        ("send_bytes = 34815", ":6: session.0.send_bytes: wanted 34816 to"),
        ("store_bytes = 0", ":6: session.0.store_bytes: wanted 1 to"),
        ("store_messages = 2000000", ":6: session.0.store_messages: wanted 1 to 1048576"),
        ("resend_max = 7", ":6: session.0.resend_max: wanted 0 or 8 at least, not 7"),
        ("resend_tries = 0", ":6: session.0.resend_tries: wanted 1 to 1000"),
        ("resend_timeout = 0.0", ":6: session.0.resend_timeout: wanted more than 0 seconds"),
        ("open_timeout = 0.0", ":6: session.0.open_timeout: wanted more than 0 seconds"),
        ("close_timeout = 0.0", ":6: session.0.close_timeout: wanted more than 0 seconds"),
        ("reset = 1", ":6: session.0.reset: wanted true or false"),
        ("speed = 1", ":6: session.0.speed: unknown key .known: name, protocol, tls, begin_string"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_with_its_line(lines, why):
    text = GOOD + lines + "\n"
    with pytest.raises(ConfigError, match=why):
        _sessions(TomlReader("t.toml", text), tomllib.loads(text))


@pytest.mark.parametrize("key", ["sender_comp_id", "target_comp_id"])
def test_both_names_are_needed(key):
    text = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(key))
    with pytest.raises(ConfigError, match=f"session.0.{key}: this key is needed"):
        _sessions(TomlReader("t.toml", text), tomllib.loads(text))
    text += f'{key} = ""\n'
    with pytest.raises(ConfigError, match=f":5: session.0.{key}: wanted 1 to 63 letters"):
        _sessions(TomlReader("t.toml", text), tomllib.loads(text))


def test_a_table_becomes_what_the_core_takes():
    text = GOOD + (
        'begin_string = "FIXT.1.1"\nsender_sub_id = "desk"\ntarget_sub_id = "gate"\n'
        'username = "u"\npassword = "secret"\n'
        'default_appl_ver_id = "7"\nheartbeat = 5\nreset = true\nnext_out = 3\nnext_in = 4\ntime_digits = 6\n'
        "time_tolerance = 0\nmessage_max = 2048\nsend_bytes = 8192\nstore_bytes = 100\nstore_messages = 9\n"
        "resend_max = 8\nresend_tries = 2\nresend_timeout = 1.5\nopen_timeout = 2.5\nclose_timeout = 0.25\n"
    )
    (one,) = _sessions(TomlReader("t.toml", text), tomllib.loads(text))
    assert "secret" not in repr(one)
    raw = one.settings._raw()
    assert (raw.version, raw.heartbeat_s, raw.reset) == (lib.XDS_FIXT_11, 5, 1)
    assert (raw.next_out, raw.next_in) == (3, 4)
    assert (raw.time_digits, raw.no_time_check, raw.message_max, raw.output_bytes) == (6, 1, 2048, 8192)
    assert (raw.store_bytes, raw.store_messages, raw.resend_max, raw.resend_tries) == (100, 9, 8, 2)
    assert (raw.resend_ns, raw.logon_ns, raw.logout_ns) == (1_500_000_000, 2_500_000_000, 250_000_000)
    spoken = one.settings.speak()
    assert spoken.ops == lib.xds_session_fix()
    assert spoken.config.longest == 2048 - 512
    spoken.close()


def test_every_reason_has_a_word_and_no_setting_of_its_bounds_is_refused_by_the_core():
    assert set(FixSettings.reasons) == {*range(1, lib.XDS_FIX_REASONS), *range(32, 38)}
    assert len(set(FixSettings.reasons.values())) == len(FixSettings.reasons)
    for keys in (
        {"heartbeat": 86400, "next_out": (1 << 32) - 1, "next_in": (1 << 32) - 1, "time_tolerance": 1e9},
        {"message_max": 1 << 20, "send_bytes": 1 << 30, "store_bytes": 1 << 30, "store_messages": 1 << 20},
        {"message_max": 1024, "send_bytes": 4096, "store_bytes": 1, "store_messages": 1},
        {"open_timeout": 1e9, "close_timeout": 1e9, "resend_timeout": 1e9, "sender_comp_id": "x" * 63},
    ):
        raw = FixSettings(**{"sender_comp_id": "A", "target_comp_id": "B", **keys})._raw()
        assert lib.xds_fix_size(raw) > 0
