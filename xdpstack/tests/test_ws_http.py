"""cores/ws/ws_http.c: the opening handshake (RFC 6455 4), with wsproto and h11 as second opinions."""

from __future__ import annotations

import base64
import hashlib

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage

from xdpstack._ffi import ffi, lib
from xdpstack.tests.ws_driver import CLOSED, CONNECTING, OPEN, SECOND, Event, Ws, frame


def failed(reason, code=1006, data=b""):
    return Event("failed", data, reason, code)


def parsed(request):
    """The request as h11 reads it: method, target, fields in order."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(request)
    event = server.next_event()
    assert isinstance(event, h11.Request)
    return event.method, event.target, [(bytes(k), bytes(v)) for k, v in event.headers]


@pytest.mark.rfc("6455", "4.1")
def test_the_request():
    w = Ws(
        host="venue.example:8443",
        path="/stream?symbol=ABC&depth=5",
        headers="Origin: https://venue.example\r\nAuthorization: Bearer x y\r\n",
        subprotocols="v2.feed, v1.feed",
    )
    request = w.output()
    method, target, fields = parsed(request)
    assert (method, target) == (b"GET", b"/stream?symbol=ABC&depth=5")
    key = dict(fields)[b"sec-websocket-key"]
    assert len(base64.b64decode(key, validate=True)) == 16
    assert fields == [
        (b"host", b"venue.example:8443"),
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-key", key),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-protocol", b"v2.feed, v1.feed"),
        (b"origin", b"https://venue.example"),
        (b"authorization", b"Bearer x y"),
    ]
    assert Ws(seed=b"another seed 016").output() != Ws().output()


@pytest.mark.rfc("6455", "4.1", "4.2.2")
@pytest.mark.parametrize("chosen", [None, "a", "b"])
@pytest.mark.parametrize("way", ["whole", "byte by byte"])
def test_wsproto_takes_the_request_and_we_its_answer(chosen, way):
    server = WSConnection(ConnectionType.SERVER)
    w = Ws(path="/x", subprotocols="a,b", headers="X-Extra: 1\r\n")
    server.receive_data(w.output())
    [request] = server.events()
    assert isinstance(request, Request)
    assert (request.target, request.host, request.subprotocols) == ("/x", "peer.example", ["a", "b"])
    answer = server.send(AcceptConnection(subprotocol=chosen, extra_headers=[(b"server", b"other")]))
    answer += server.send(TextMessage("at once"))
    events = w.give(answer) if way == "whole" else w.cut(answer, range(len(answer)))
    assert events == [Event("open", (chosen or "").encode()), Event("text", b"at once", frames=1)]
    assert w.state == OPEN
    assert w.deadline == lib.XDS_NEVER


@pytest.mark.rfc("6455", "1.3", "4.1")
def test_the_accept_of_many_keys():
    """SHA-1 and base64, by hashlib: the driver's answer is made with them."""
    for i in range(200):
        w = Ws(seed=i.to_bytes(16, "big"), message_max=64, send_bytes=1024)
        assert w.give(w.answer()) == [Event("open", b"")]


GOOD = [
    ["upgrade: WebSocket", "CONNECTION: keep-alive, UPGRADE"],
    ["Upgrade: h2c, websocket", "Connection: keep-alive", "Connection: Upgrade"],
    ["Upgrade:websocket  ", "Connection:\t upgrade\t"],
    [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "X-Empty:",
        "X-Latin: caf\xe9",
        "Sec-WebSocket-Extensions: ",
    ],
    ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Protocol: two"],
]


@pytest.mark.rfc("6455", "4.1")
@pytest.mark.parametrize("lines", GOOD)
@pytest.mark.parametrize("status", ["101 Switching Protocols", "101", "101 "])
def test_answers_that_are_right(lines, status):
    w = Ws(subprotocols="one, two")
    [event] = w.give(w.answer(*lines, status=status, drop=("Upgrade", "Connection")))
    assert event == Event("open", b"two" if any("two" in line for line in lines) else b"")


BAD = {
    "no upgrade": (dict(drop=("Upgrade",)), "UPGRADE"),
    "another upgrade": (dict(drop=("Upgrade",), lines=["Upgrade: websockets"]), "UPGRADE"),
    "part of the word": (dict(drop=("Upgrade",), lines=["Upgrade: websocke"]), "UPGRADE"),
    "no connection": (dict(drop=("Connection",)), "CONNECTION"),
    "another connection": (dict(drop=("Connection",), lines=["Connection: close, upgraded"]), "CONNECTION"),
    "no accept": (dict(drop=("Sec-WebSocket-Accept",)), "ACCEPT"),
    "a wrong accept": (dict(accept=base64.b64encode(hashlib.sha1(b"no").digest()).decode()), "ACCEPT"),
    "an empty accept": (dict(accept=""), "ACCEPT"),
    "a second accept": (dict(lines=["Sec-WebSocket-Accept: x"]), "ACCEPT"),
    "an extension": (dict(lines=["Sec-WebSocket-Extensions: permessage-deflate"]), "EXTENSION"),
    "a subprotocol of its own": (dict(lines=["Sec-WebSocket-Protocol: three"]), "SUBPROTOCOL"),
    "in other case": (dict(lines=["Sec-WebSocket-Protocol: One"]), "SUBPROTOCOL"),
    "an empty subprotocol": (dict(lines=["Sec-WebSocket-Protocol:"]), "SUBPROTOCOL"),
    "both subprotocols": (dict(lines=["Sec-WebSocket-Protocol: one, two"]), "SUBPROTOCOL"),
    "two subprotocols": (dict(lines=["Sec-WebSocket-Protocol: one"] * 2), "SUBPROTOCOL"),
    "a folded line": (dict(lines=["X: a", " b"]), "HTTP"),
    "a line without a colon": (dict(lines=["nothing"]), "HTTP"),
    "a blank before the colon": (dict(lines=["X : a"]), "HTTP"),
    "no name": (dict(lines=[": a"]), "HTTP"),
    "a control character": (dict(lines=["X: a\x01"]), "HTTP"),
    "a lone CR": (dict(lines=["X: a\rb"]), "HTTP"),
    "a lone LF": (dict(lines=["X: a\nY: b"]), "HTTP"),
    "a NUL": (dict(lines=["X\0: a"]), "HTTP"),
}


@pytest.mark.rfc("6455", "4.1")
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("way", ["whole", "byte by byte", "with more behind"])
def test_answers_that_are_refused_by_their_name(name, way):
    how, reason = BAD[name]
    w = Ws(subprotocols="one, two")
    answer = w.answer(*how.get("lines", ()), **{k: v for k, v in how.items() if k != "lines"})
    if way == "byte by byte":
        assert w.cut(answer, range(len(answer))) == [failed(reason)]
    else:
        assert w.give(answer + frame(1, b"x") * (way == "with more behind")) == [failed(reason)]
    assert (w.state, w.output()) == (CLOSED, b""), "no Close before a handshake"


@pytest.mark.parametrize("status", ["401 Unauthorized", "301", "503 Später", "200 OK", "100 Continue"])
def test_another_status_is_told_with_its_line(status):
    w = Ws()
    answer = w.answer("Location: /elsewhere", status=status) + b"<html>"
    assert w.give(answer) == [failed("STATUS", int(status[:3]), f"HTTP/1.1 {status}".encode("latin-1"))]


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.0 101 x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"http/1.1 101\r\n\r\n",
        b"HTTP/1.1 10\r\n\r\n",
        b"HTTP/1.1 1010\r\n\r\n",
        b"HTTP/1.1  101 x\r\n\r\n",
        b"HTTP/1.1 101\n\n\r\n\r\n",
        b"HTTP/1.1 099 x\r\n\r\n",
        b"HTTP/1.1 600 x\r\n\r\n",
        b"HTTP/1.1 101\x01\r\n\r\n",
        b"HTTP/1.1 \r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
)
@pytest.mark.parametrize("way", ["whole", "byte by byte"])
def test_what_is_no_answer(start, way):
    w = Ws()
    assert w.cut(start, range(len(start)) if way != "whole" else []) == [failed("HTTP")]
    assert w.faults == [lib.XDS_EMALFORMED]


@pytest.mark.parametrize("more", [0, 1])
def test_a_head_has_a_bound(more):
    w = Ws(head_max=512)
    short = w.answer("X: ")
    answer = short.replace(b"X: ", b"X: " + b"x" * (512 - len(short) + more))
    assert len(answer) == 512 + more
    assert w.give(answer) == ([failed("HTTP_LONG")] if more else [Event("open", b"")])
    assert w.faults == [lib.XDS_ECAPACITY] * more


def test_a_server_that_does_not_answer_in_time():
    w = Ws(now=5, handshake_ns=2 * SECOND)
    w.answer()
    assert w.give(b"HTTP/1.1 101") == []
    assert (w.state, w.deadline) == (CONNECTING, 2 * SECOND + 5)
    assert w.tick(2 * SECOND + 4) == []
    assert w.tick() == [failed("HANDSHAKE_TIMEOUT")]


def test_a_stream_that_ends_or_is_closed_while_connecting():
    w = Ws()
    assert w.eof() == (lib.XDS_ETRUNC, [failed("EOF")])
    w = Ws()
    assert (w.close(), w.state, w.output(), w.deadline) == (0, CLOSED, b"", lib.XDS_NEVER)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=300),
    st.lists(st.integers(0, 600), max_size=6),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_a_damaged_answer_is_cut_anywhere(noise, cuts, at, drop):
    told = []
    for pieces in ([], cuts, range(700)):
        w = Ws(message_max=256, head_max=512)
        answer = bytearray(w.answer("Sec-WebSocket-Version: 13"))
        answer[at : at + drop] = noise[: drop or 3]
        told.append((w.cut(bytes(answer), pieces), w.faults, w.output()[:1]))
    assert told[0] == told[1] == told[2]


REFUSED = [
    dict(host=""),
    dict(host="a b"),
    dict(host="a\r\nX: y"),
    dict(host="a/b"),
    dict(host="user@a"),
    dict(path="x"),
    dict(path="/a b"),
    dict(path="/a\r\nX: y"),
    dict(path="/a#b"),
    dict(path="/caf\xe9"),
    dict(headers="X: y"),
    dict(headers="X: y\n"),
    dict(headers="X y\r\n"),
    dict(headers="\r\n"),
    dict(headers="X: y\r\n\r\n"),
    dict(headers="Host: other\r\n"),
    dict(headers="sec-websocket-Extensions: permessage-deflate\r\n"),
    dict(headers="X: y\r\nConnection: close\r\n"),
    dict(headers="Upgrade: x\r\n"),
    dict(headers="Content-Length: 1\r\n"),
    dict(headers="Transfer-Encoding: chunked\r\n"),
    dict(subprotocols="a,"),
    dict(subprotocols="a b"),
    dict(subprotocols="a, a"),
    dict(subprotocols="a\r\nX: y"),
    dict(path="/" + "x" * (1 << 20)),
    dict(message_max=(1 << 30) + 1),
    dict(send_bytes=1023),
    dict(send_bytes=(1 << 30) + 1),
    dict(head_max=127),
    dict(head_max=(1 << 20) + 1),
    dict(handshake_ns=-1),
    dict(ping_ns=-1),
    dict(pong_ns=-1),
    dict(close_ns=-1),
]


@pytest.mark.parametrize("config", REFUSED)
def test_what_cannot_be_sent_is_refused_before_it_is(config):
    with pytest.raises(ValueError, match="bad configuration"):
        Ws(**config)
    none = ffi.new("struct xds_ws_config *")
    assert lib.xds_ws_size(none) == 0, "no host"
    mem = ffi.new("uint8_t[]", 1 << 16)
    assert lib.xds_ws_init(mem, none, bytes(16), 0) == lib.XDS_ECONFIG


def test_a_long_request_goes_out_whole_through_a_small_room():
    w = Ws(headers="".join(f"X-{i}: {'v' * 90}\r\n" for i in range(100)), send_bytes=1024)
    request = w.output(cap=7)
    assert len(parsed(request)[2]) == 105
