"""cores/ws: frames, messages, pings and the close of a WebSocket connection (RFC 6455), client side.

Second opinions: wsproto as the server, `websockets` for the close codes, Python's codec for UTF-8.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import EXTERNAL_CLOSE_CODES
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WsPing
from wsproto.events import Pong as WsPong

from xdpstack._ffi import ffi, lib
from xdpstack.tests.ws_driver import (
    BINARY,
    CLOSED,
    CLOSING,
    OPEN,
    PING,
    PONG,
    SECOND,
    TEXT,
    WAITING,
    Event,
    Ws,
    frame,
    frames,
    opened,
)

LIMIT = 4096


def text(data, count=1):
    return Event("text", data.encode() if isinstance(data, str) else data, frames=count)


def failed(reason, code=1002):
    return Event("failed", b"", reason, code)


# Events


@pytest.mark.rfc("6455", "5.7")
def test_the_examples_of_the_rfc():
    w = opened()
    assert w.give(bytes.fromhex("810548656c6c6f")) == [text("Hello")]
    assert w.give(bytes.fromhex("010348656c80026c6f")) == [text("Hello", 2)]
    assert w.give(bytes.fromhex("890548656c6c6f")) == [Event("ping", b"Hello")]
    assert [f[:3] for f in w.frames()] == [(1, 10, b"Hello")]
    data = bytes(range(256))
    assert w.give(bytes.fromhex("827e0100") + data) == [Event("binary", data, frames=1)]
    data *= 256
    assert w.give(bytes.fromhex("827f0000000000010000") + data) == [Event("binary", data, frames=1)]


@pytest.mark.rfc("6455", "5.7")
def test_the_masked_example_of_the_rfc_is_what_a_server_may_not_send():
    w = opened()
    assert w.give(bytes.fromhex("818537fa213d7f9f4d5158")) == [failed("MASKED")]


@pytest.mark.rfc("6455", "5.2")
@pytest.mark.parametrize("n", [0, 1, 124, 125, 126, 127, 1000, 65535, 65536, 65537, 200000])
@pytest.mark.parametrize("op", [1, 2])
def test_every_length_whole_and_cut(n, op):
    data = bytes(33 + i % 90 for i in range(n))
    told = [Event("text" if op == 1 else "binary", data, frames=1)]
    stream = frame(op, data)
    w = opened()
    assert w.give(stream) == told
    assert w.lent, "whole in the input: not copied"
    for cut in {1, 2, 3, 4, 9, 10, 11, n // 2, len(stream) - 1}:
        assert w.cut(stream, [cut]) == told
    assert w.stats.lent >= 1
    assert w.stats.frames == w.stats.taken


def test_a_message_that_is_cut_is_put_together_in_the_block():
    w = opened()
    assert w.cut(frame(2, b"abc"), [3]) == [Event("binary", b"abc", frames=1)]
    assert not w.lent
    assert w.stats.lent == 0


@pytest.mark.rfc("6455", "5.4", "5.5")
def test_control_frames_come_between_fragments():
    w = opened()
    stream = (
        frame(1, b"a", fin=0)
        + frame(9, b"one")
        + frame(0, b"", fin=0)
        + frame(10, b"two")
        + frame(0, b"b" * 300, fin=0)
        + frame(9, b"")
        + frame(0, b"", fin=1)
    )
    told = [Event("ping", b"one"), Event("pong", b"two"), Event("ping", b""), text("a" + "b" * 300, 4)]
    assert w.give(stream) == told
    assert [f[:3] for f in w.frames()] == [(1, 10, b"one"), (1, 10, b"")]
    assert w.cut(stream, range(len(stream))) == told


REFUSED = {
    "rsv1": (frame(1, b"x", rsv=4), "RSV", 1002, "5.2"),
    "rsv2": (frame(2, b"x", rsv=2), "RSV", 1002, "5.2"),
    "rsv3 of a ping": (frame(9, b"x", rsv=1), "RSV", 1002, "5.2"),
    **{
        f"opcode {op}": (frame(op, b"x"), "OPCODE", 1002, "5.2") for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "masked": (frame(1, b"x", mask=b"abcd"), "MASKED", 1002, "5.1"),
    "16 bits for 125": (b"\x82\x7e\x00\x7d", "LENGTH", 1002, "5.2"),
    "64 bits for 65535": (b"\x82\x7f" + (65535).to_bytes(8, "big"), "LENGTH", 1002, "5.2"),
    "the highest bit": (b"\x82\x7f\x80" + bytes(7), "LENGTH", 1002, "5.2"),
    "a ping of 126": (frame(9, b"x" * 126), "CONTROL", 1002, "5.5"),
    "a close of 64 KiB": (frame(8, b"x", length=65536), "CONTROL", 1002, "5.5"),
    "a ping in fragments": (frame(9, b"x", fin=0), "CONTROL", 1002, "5.5"),
    "a close in fragments": (frame(8, b"", fin=0), "CONTROL", 1002, "5.5"),
    "a continuation of nothing": (frame(0, b"x"), "CONTINUATION", 1002, "5.4"),
    "and after a message": (frame(1, b"x") + frame(0, b"x"), "CONTINUATION", 1002, "5.4"),
    "text inside text": (frame(1, b"x", fin=0) + frame(1, b"y"), "INTERLEAVED", 1002, "5.4"),
    "binary inside text": (frame(1, b"x", fin=0) + frame(9) + frame(2, b"y"), "INTERLEAVED", 1002, "5.4"),
    "too big": (frame(2, b"x" * (LIMIT + 1)), "BIG", 1009, "7.4.1"),
    "announced too big": (b"\x82\x7f\x7f" + b"\xff" * 7, "BIG", 1009, "7.4.1"),
    "too big in all": (frame(2, b"x" * LIMIT, fin=0) + frame(0, b"x"), "BIG", 1009, "7.4.1"),
    "not UTF-8": (frame(1, b"caf\xe9!"), "UTF8", 1007, "8.1"),
    "not UTF-8 over an edge": (frame(1, b"\xe2\x82", fin=0) + frame(0, b"x"), "UTF8", 1007, "8.1"),
    "UTF-8 that ends early": (frame(1, b"abc\xe2\x82"), "UTF8", 1007, "8.1"),
    "and with an empty end": (frame(1, b"abc\xe2\x82", fin=0) + frame(0, b""), "UTF8", 1007, "8.1"),
    "a reason that is not": (frame(8, b"\x03\xe8\xff"), "UTF8", 1007, "8.1"),
    "a reason that ends early": (frame(8, b"\x03\xe8\xe2"), "UTF8", 1007, "8.1"),
    "a close of one byte": (frame(8, b"\x03"), "CLOSE_BAD", 1002, "5.5.1"),
    "a close with 1005": (frame(8, b"\x03\xed"), "CLOSE_BAD", 1002, "7.4.1"),
}


@pytest.mark.rfc("6455", "5.1", "5.2", "5.4", "5.5", "7.1.7", "8.1")
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("way", ["whole", "byte by byte", "with more behind"])
def test_what_may_not_be_is_refused_by_its_name(name, way):
    stream, reason, code, _ = REFUSED[name]
    w = opened(message_max=LIMIT)
    if way == "byte by byte":
        events = w.cut(stream, range(len(stream)))
    else:
        events = w.give(stream + frame(1, b"more") * 3 * (way == "with more behind"))
    assert [e for e in events if e.what == "failed"] == [failed(reason, code)] == events[-1:]
    assert w.faults == [lib.XDS_ECAPACITY if reason == "BIG" else lib.XDS_EMALFORMED]
    last = w.frames()[-1]
    assert (last.op, last.data) == (8, code.to_bytes(2, "big")), "a Close tells the peer"
    assert w.state == CLOSED
    assert w.stats.reasons[getattr(lib, "XDS_WS_" + reason)] == 1
    assert w.give(frame(1, b"more")) == [], "nothing is taken any more"
    assert w.send("x") == w.close() == lib.XDS_ESTATE
    assert w.output() == b""
    assert w.eof() == (0, [])


PIECES = st.one_of(
    st.builds(
        frame,
        st.sampled_from([0, 0, 1, 1, 2, 8, 9, 10, 3, 11]),
        st.one_of(st.binary(max_size=130), st.text(max_size=40).map(str.encode)),
        fin=st.sampled_from([1, 1, 0]),
        rsv=st.sampled_from([0] * 20 + [4]),
        mask=st.sampled_from([None] * 20 + [b"mask"]),
    ),
    st.binary(max_size=12),
    st.text(max_size=300).map(lambda t: frame(1, t.encode())),
    st.integers(1000, 1015).map(lambda c: frame(8, c.to_bytes(2, "big") + b"bye")),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 5000), max_size=12))
def test_however_the_stream_is_cut_the_events_are_the_same(stream, cuts):
    whole, pieces, single = (opened(message_max=600) for _ in range(3))
    told = whole.give(stream)
    assert pieces.cut(stream, cuts) == told
    assert single.cut(stream, range(len(stream))) == told
    sent = [[f[:3] for f in w.frames()] for w in (whole, pieces, single)]
    assert sent[0] == sent[1] == sent[2]
    for a, b in ((whole.stats, pieces.stats), (whole.stats, single.stats)):
        assert list(a.reasons) == list(b.reasons)
        assert (a.frames, a.taken, a.texts, a.bytes_in) == (b.frames, b.taken, b.texts, b.bytes_in)


MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.lists(st.text(max_size=200), min_size=1, max_size=4)),
        st.tuples(st.just("binary"), st.lists(st.binary(max_size=400), min_size=1, max_size=4)),
        st.tuples(st.just("ping"), st.binary(max_size=125)),
        st.tuples(st.just("pong"), st.binary(max_size=125)),
    ),
    max_size=10,
)


def said(connection, kind, data):
    """The bytes of one thing that wsproto says, in as many frames as it has pieces."""
    if kind == "ping":
        return connection.send(WsPing(data))
    if kind == "pong":
        return connection.send(WsPong(data))
    message = TextMessage if kind == "text" else BytesMessage
    return b"".join(
        connection.send(message(piece, message_finished=i == len(data) - 1)) for i, piece in enumerate(data)
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.lists(st.integers(0, 20000), max_size=10))
def test_what_wsproto_says_is_what_we_hear(messages, cuts):
    server, w = Connection(ConnectionType.SERVER), opened()
    stream = b"".join(said(server, kind, data) for kind, data in messages)
    told = []
    for kind, data in messages:
        if kind in ("ping", "pong"):
            told.append(Event(kind, bytes(data)))
        else:
            whole = "".join(data).encode() if kind == "text" else b"".join(data)
            told.append(Event(kind, whole, frames=len(data)))
    assert w.cut(stream, cuts) == told
    server.receive_data(w.output())
    pings = [bytes(data) for kind, data in messages if kind == "ping"]
    assert [bytes(e.payload) for e in server.events() if isinstance(e, WsPong)] == pings


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.integers(1, 700))
def test_what_we_say_is_what_wsproto_hears(messages, cap):
    server, w = Connection(ConnectionType.SERVER), opened()
    for kind, data in messages:
        if kind in ("ping", "pong"):
            assert w.send(data, PING if kind == "ping" else PONG) == len(data)
            continue
        for i, piece in enumerate(data):
            raw = piece.encode() if kind == "text" else piece
            assert w.send(raw, TEXT if kind == "text" else BINARY, more=i < len(data) - 1) == len(raw)
    assert w.close(3001, "günstig".encode()) == 0
    server.receive_data(w.output(cap))
    heard, parts = [], []
    for e in server.events():
        if isinstance(e, TextMessage | BytesMessage):
            parts.append(e.data)
            if e.message_finished:
                empty = "" if isinstance(e, TextMessage) else b""
                heard.append(("text" if empty == "" else "binary", empty.join(parts)))
                parts = []
        elif isinstance(e, WsPing | WsPong):
            heard.append(("ping" if isinstance(e, WsPing) else "pong", bytes(e.payload)))
        else:
            assert isinstance(e, CloseConnection)
            heard.append(("close", e.code, e.reason))
    join = {"text": "".join, "binary": b"".join, "ping": bytes, "pong": bytes}
    assert heard == [(kind, join[kind](data)) for kind, data in messages] + [("close", 3001, "günstig")]


# UTF-8


ODD = [
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xe0\x9f\xbf",
    b"\xe0\xa0\x80",
    b"\xed\x9f\xbf",
    b"\xed\xa0\x80",
    b"\xee\x80\x80",
    b"\xef\xbf\xbf",
    b"\xf0\x8f\xbf\xbf",
    b"\xf0\x90\x80\x80",
    b"\xf4\x8f\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xff",
    b"\x80",
    b"\xc2",
    b"\xe2\x82",
    b"\xf0\x9f\x92",
]


@pytest.mark.rfc("6455", "8.1")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(st.text(max_size=30).map(str.encode), st.sampled_from(ODD), st.just(b"a" * 40)), max_size=6
    ).map(b"".join),
    st.lists(st.integers(0, 400), max_size=3),
)
def test_text_is_what_pythons_codec_takes(data, cuts):
    try:
        data.decode()
        told = [text(data)]
    except UnicodeDecodeError:
        told = [failed("UTF8", 1007)]
    assert opened().cut(frame(1, data), cuts) == told
    assert opened().give(frame(1, data)) == told
    assert opened().send(data) == (lib.XDS_EMALFORMED if told[0].what == "failed" else len(data))


@pytest.mark.rfc("6455", "8.1")
def test_every_lead_and_every_second_byte():
    seconds = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0]
    for lead, second in itertools.product(range(0x80, 0x100), seconds):
        for rest in (b"", b"\x80", b"\x80\x80"):
            data = bytes([lead, second]) + rest
            try:
                data.decode()
                told = "text"
            except UnicodeDecodeError:
                told = "failed"
            assert opened(message_max=64, send_bytes=1024).give(frame(1, data))[0].what == told, data


def test_bad_text_is_refused_before_its_frame_has_ended():
    w = opened()
    assert w.give(frame(1, b"ok\xff" + b"x" * 1000)[:8]) == [failed("UTF8", 1007)]


# Pings


@pytest.mark.rfc("6455", "5.5.2", "5.5.3")
def test_where_the_output_is_full_only_the_latest_ping_is_answered():
    w = opened(send_bytes=1024)
    assert w.send(b"x" * 1010, BINARY) == 1010
    assert w.send(b"", BINARY) == lib.XDS_ECAPACITY
    for i in range(5):
        assert w.give(frame(9, bytes([i]) * 125)) == [Event("ping", bytes([i]) * 125)]
    assert [(f.op, f.data[:1]) for f in w.frames()] == [(2, b"x"), (10, b"\0"), (10, b"\4")]
    assert w.stats.pings_passed == 3
    assert w.stats.send_full == 1


def test_we_ping_and_measure_and_ping_again():
    w = opened(ping_ns=5 * SECOND, pong_ns=2 * SECOND)
    assert w.deadline == 5 * SECOND
    assert w.tick() == []
    [ping] = w.frames()
    assert (ping.op, len(ping.data)) == (9, 8)
    assert w.deadline == 7 * SECOND
    assert w.give(frame(10, b"other"), 5 * SECOND + 1) == [Event("pong", b"other")]
    assert w.rtt_ns == 0
    assert w.give(frame(10, ping.data), 5 * SECOND + 300) == [Event("pong", ping.data)]
    assert w.rtt_ns == w.stats.rtt_ns == 300
    assert w.deadline == 10 * SECOND + 300
    assert w.give(frame(10, ping.data), 5 * SECOND + 900) == [Event("pong", ping.data)]
    assert w.rtt_ns == 0, "answered already"
    assert w.tick() == []
    [again] = w.frames()
    assert again.data != ping.data
    assert (w.stats.sent_pings, w.stats.pongs_matched) == (2, 1)


def test_a_peer_that_does_not_answer_a_ping_is_given_up():
    w = opened(ping_ns=SECOND, pong_ns=2 * SECOND)
    assert w.tick() == []
    assert w.tick(3 * SECOND - 1) == []
    assert w.tick() == [failed("PONG_TIMEOUT", 1011)]
    assert [(f.op, f.data) for f in w.frames()][1:] == [(8, (1011).to_bytes(2, "big"))]
    assert w.state == CLOSED


def test_without_an_interval_no_ping_goes():
    assert opened().deadline == lib.XDS_NEVER


# The close


@pytest.mark.rfc("6455", "5.5.1", "7.1.2", "7.1.5")
def test_the_peers_close_is_answered_with_its_code_and_the_server_closes_tcp():
    w = opened(close_ns=3 * SECOND)
    assert w.send("last") == 4
    assert w.give(frame(8, b"\x03\xe9going") + frame(1, b"dropped")) == [Event("close", b"going", code=1001)]
    assert w.state == WAITING
    assert [(f.op, f.data) for f in w.frames()] == [(1, b"last"), (8, b"\x03\xe9")]
    assert w.stats.late == len(frame(1, b"dropped"))
    assert w.send("x") == w.close() == lib.XDS_ESTATE
    assert w.deadline == 3 * SECOND
    assert w.eof() == (0, [])
    assert w.state == CLOSED


def test_a_server_that_ends_its_side_with_its_close_still_gets_ours():
    w = opened()
    assert w.send("last") == 4
    assert w.give(frame(8, b"\x03\xe9")) == [Event("close", b"", code=1001)]
    assert w.eof() == (0, [])
    assert w.state == CLOSED
    assert [(f.op, f.data) for f in w.frames()] == [(1, b"last"), (8, b"\x03\xe9")]


def test_a_server_that_does_not_close_tcp_is_left():
    w = opened(close_ns=3 * SECOND)
    assert w.give(frame(8)) == [Event("close", b"", code=1005)]
    assert [(f.op, f.data) for f in w.frames()] == [(8, b"")]
    assert w.tick() == []
    assert (w.now, w.state) == (3 * SECOND, CLOSED)


@pytest.mark.rfc("6455", "5.5.1", "7.1.2")
def test_our_close_goes_first_and_messages_come_until_the_peers():
    w = opened(ping_ns=SECOND)
    assert w.close(1000, b"done", now=5) == 0
    assert w.state == CLOSING
    assert w.close() == w.send("x") == lib.XDS_ESTATE
    assert w.give(frame(1, b"late") + frame(9, b"?"), 6) == [text("late"), Event("ping", b"?")]
    assert [(f.op, f.data) for f in w.frames()] == [(8, b"\x03\xe8done")], "nothing goes behind a Close"
    assert w.give(frame(8, b"\x03\xe8"), 7) == [Event("close", b"", code=1000)]
    assert w.state == WAITING
    assert w.output() == b""


def test_a_close_that_nobody_answers():
    w = opened(close_ns=SECOND)
    assert w.close(0) == 0
    assert w.tick() == [failed("CLOSE_TIMEOUT", 1006)]
    assert [(f.op, f.data) for f in w.frames()] == [(8, b"")]


def test_a_fault_while_closing_ends_it_without_a_second_close():
    w = opened()
    assert w.close() == 0
    assert w.give(frame(3)) == [failed("OPCODE", 1006)]
    assert [f.op for f in w.frames()] == [8]


@pytest.mark.rfc("6455", "7.4")
def test_close_codes_are_those_that_websockets_takes():
    for code in [*range(1100), *range(2990, 3010), *range(4990, 5010), 65535]:
        fine = code in EXTERNAL_CLOSE_CODES or 3000 <= code < 5000
        [event] = opened(message_max=64, send_bytes=1024).give(frame(8, code.to_bytes(2, "big")))
        assert event == (Event("close", b"", code=code) if fine else failed("CLOSE_BAD")), code
        w = opened(message_max=64, send_bytes=1024)
        assert w.close(code) == (0 if fine or code == 0 else lib.XDS_ECONFIG), code


def test_a_close_says_what_it_may():
    w = opened()
    assert (
        w.close(1000, b"x" * 124) == w.close(1000, b"\xff") == w.close(1000, b"\xe2\x82") == lib.XDS_ECONFIG
    )
    assert w.close(0, b"why") == lib.XDS_ECONFIG
    assert w.state == OPEN
    assert w.close(1000, b"x" * 123) == 0
    assert w.frames()[0].data == b"\x03\xe8" + b"x" * 123


@pytest.mark.parametrize("have", [b"", frame(1, b"abc")[:1], frame(1, b"abc")[:4], frame(1, b"a", fin=0)])
def test_a_stream_that_ends_without_a_close(have):
    w = opened()
    assert w.send("never out") == 9
    assert w.give(have) == []
    assert w.eof() == (lib.XDS_ETRUNC, [failed("EOF", 1006)])
    assert w.stats.cut == (0 < len(have) < len(frame(1, b"a", fin=0)) or have[:1] == b"\x81")
    assert (w.state, w.output(), w.deadline) == (CLOSED, b"", lib.XDS_NEVER)


# Sending


@pytest.mark.rfc("6455", "5.3", "10.3")
def test_no_key_comes_twice_and_the_seed_decides():
    def keys(seed):
        w = opened(seed=seed, send_bytes=1 << 20)
        for _ in range(3000):
            assert w.send(b"", BINARY) == 0
        return [f.mask for f in w.frames()]

    first, second = keys(b"a" * 16), keys(b"a" * 15 + b"b")
    assert len(set(first)) >= 2999
    assert len(set(first) & set(second)) < 3
    assert keys(b"a" * 16) == first
    for bit in range(32):
        ones = sum(int.from_bytes(k, "big") >> bit & 1 for k in first)
        assert 1300 < ones < 1700, "each bit is a coin: seven sigma"


@pytest.mark.parametrize("n", [*range(70), 125, 126, 127, 65535, 65536, 70001])
def test_every_length_is_masked_right(n):
    data = bytes((i * 7 + n) & 255 for i in range(n))
    w = opened(send_bytes=1 << 17)
    assert w.send(data, BINARY) == n
    assert [f[:3] for f in w.frames()] == [(1, 2, data)]


def test_what_does_not_fit_is_refused_whole_and_fits_later():
    w = opened(send_bytes=1024)
    assert w.send(b"x" * 1011, BINARY) == lib.XDS_ECAPACITY
    for _ in range(50):  # the output's start wanders through the block
        sent = 0
        while w.send(bytes([sent]) * 300, BINARY) == 300:
            sent += 1
        assert sent == 3
        part = lib.xds_ws_output(w.w, given := ffi.new("uint8_t[]", 500), 500, 0)
        assert part == 500
        assert w.send(b"late" * 50, BINARY) == 200
        whole = bytes(given) + w.output(77)
        assert [(f.data[:1], len(f.data)) for f in frames(whole)] == [
            (b"\0", 300),
            (b"\1", 300),
            (b"\2", 300),
            (b"l", 200),
        ]


@pytest.mark.rfc("6455", "5.4")
def test_fragments_of_ours_go_in_order_with_pings_between():
    w = opened()
    euro = "€".encode()
    assert w.send(euro[:1], more=1) == 1
    assert w.send(b"", BINARY) == lib.XDS_ESTATE, "another message is begun"
    assert w.send(b"?", PING) == 1
    assert w.send(b"x") == lib.XDS_EMALFORMED
    assert w.send(euro[1:2]) == lib.XDS_EMALFORMED, "it may not end there"
    assert w.send(euro[1:]) == 2
    assert w.send(b"b", BINARY) == 1
    assert [f[:3] for f in w.frames()] == [(0, 1, euro[:1]), (1, 9, b"?"), (1, 0, euro[1:]), (1, 2, b"b")]


def test_what_is_no_frame_is_not_sent():
    w = opened()
    assert w.send(b"x" * 126, PING) == w.send(b"", PONG, more=1) == lib.XDS_ECONFIG
    assert w.send(b"", lib.XDS_WS_EVENT_CLOSE) == lib.XDS_ECONFIG
    assert w.output() == b""
    w = Ws()
    assert w.send("early") == lib.XDS_ESTATE


def test_an_event_is_taken_before_the_next_input():
    w = opened()
    data = ffi.new("uint8_t[]", frame(1, b"abcde"))
    assert lib.xds_ws_input(w.w, data, 7, 0) == 7
    assert lib.xds_ws_input(w.w, data, 7, 0) == 0
    assert w.events() == [text("abcde")]
    assert lib.xds_ws_input(w.w, data, 7, 0) == 7
    assert w.eof()[1] == [text("abcde"), failed("EOF", 1006)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=16, max_size=16), st.binary(max_size=3000))
def test_binary_comes_back_as_it_went(seed, data):
    """What one core sends, unmasked, the other hears."""
    a, b = opened(seed=seed), opened()
    assert a.send(data, BINARY) == len(data)
    [sent] = a.frames()
    assert b.give(frame(sent.op, sent.data)) == [Event("binary", data, frames=1)]
