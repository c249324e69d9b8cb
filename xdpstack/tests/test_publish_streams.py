"""TCP on an engine's tape: two stacks of one engine over a pipe, one of them published and commanded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

import xdpstack.streams
from xdpstack._ffi import ffi, lib
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import ConfigError, LocalProtocolError
from xdpstack.port import pipe
from xdpstack.publish import Commander, CommandsConfig, PublishConfig, SessionNews, StreamNews, Subscriber
from xdpstack.ring import Ring
from xdpstack.sock_streams import SockStreams
from xdpstack.streams import Streams
from xdpstack.tests.test_stream_hooks import MACS, A, B, echo, wait

PATIENCE = 60.0
PORT = 7


class Live:
    """An engine whose first port (10.0.0.1) is published; its second (10.0.0.2) echoes at port 7.
    ``settings`` are of the first's connections."""

    def __init__(
        self,
        folder: Path,
        stack: contextlib.ExitStack,
        *,
        sessions: Sequence[object] = (),
        most: int = 16,
        bytes: int = 1 << 20,
        name: str = "",
        warm_up: int = 64,
        **settings: object,
    ) -> None:
        ends = [stack.enter_context(end) for end in pipe(slots=64)]
        self.engine = stack.enter_context(Engine(EngineConfig(slow=0, name=name, stage_warm_up=warm_up)))
        self.engine.publish(
            PublishConfig(
                tape=str(folder / "tape"), bytes=bytes, what=["state"], state_every=0.0, sessions=most
            ),
            CommandsConfig(ring=str(folder / "ring")),
            sessions,
        )
        made = []
        for end, here, there in zip(ends, (A, B), (B, A), strict=True):
            index = self.engine.add_link(end, mac=MACS[here], addresses=[f"{here}/24"])
            self.engine.hosts[index].add_neighbour(there, MACS[there])
            made.append(Streams(self.engine, index, **(settings if here == A else {})))
        self.mine, self.far = made
        stack.callback(self.engine.detach)
        self.mine.publish()
        self.far.set_hook(echo)
        self.far.give(self.far.listen(PORT))
        self.folder, self._stack = folder, stack
        self.answers: dict[int, tuple[str, int]] = {}
        self.news: list[StreamNews] = []
        self.got: dict[int, bytes] = {}
        self.said: list[SessionNews] = []
        self.state: dict[str, object] = {}

    def start(self) -> None:
        self.engine.start()
        self.reader = self._stack.enter_context(Subscriber.open(self.folder / "tape", oldest=True))
        self.commander = self._stack.enter_context(
            Commander(self.folder / "ring", sessions=self.reader.sessions)
        )

    def look(self) -> None:
        for news in self.reader.read():
            if news.kind == "answer":
                number, why = news.answer()
                self.answers[number] = why, news.connection()
            elif news.kind == "stream":
                one = news.stream()
                if len(one.data):
                    before = self.got.get(one.connection, b"")
                    assert one.at == len(before)
                    self.got[one.connection] = before + one.data.tobytes()
                self.news.append(one._replace(data=one.data.copy()))
            elif news.kind in ("tls", "ws", "fix"):
                said = news.session()
                self.said.append(said._replace(data=said.data.tobytes()))
            elif news.kind == "state":
                self.state = news.state()

    def until(self, condition) -> None:
        def so() -> bool:
            self.look()
            return bool(condition())

        wait(so)

    def answer(self, number: int) -> tuple[str, int]:
        self.until(lambda: number in self.answers)
        return self.answers[number]

    def told(self, connection: int) -> set[str]:
        self.look()
        return {word for news in self.news if news.connection == connection for word in news.what}


@pytest.fixture
def live(tmp_path, monkeypatch):
    monkeypatch.setattr(xdpstack.streams, "LINGER", 0.0)
    echo.state[:] = 0
    with contextlib.ExitStack() as stack:
        yield Live(tmp_path, stack)


def test_a_command_opens_writes_and_closes_and_the_tape_tells_what_the_peer_did(live):
    live.start()
    why, connection = live.answer(live.commander.connect(B, PORT))
    assert why == ""
    assert connection > 0
    live.until(lambda: "open" in live.told(connection))
    first = next(news for news in live.news if "open" in news.what)
    assert first.remote == (B, PORT)
    assert first.local[0] == A
    assert first.ns > 0
    assert live.answer(live.commander.write(connection, b"twelve bytes")) == ("", connection)
    assert live.answer(live.commander.write(connection, b", and more")) == ("", connection)
    live.until(lambda: live.got.get(connection) == b"twelve bytes, and more")
    came = next(news for news in live.news if len(news.data))
    assert 0 < came.stages[0] <= came.stages[1] <= came.stages[5]  # received, woken, called
    assert live.answer(live.commander.hang_up(connection)) == ("", connection)
    live.until(lambda: "closed" in live.told(connection))
    assert live.answer(live.commander.write(connection, b"late")) == ("connection", connection)
    wait(lambda: echo.state[18] == 1)  # the far end saw our FIN
    stats = live.engine.publication.stats()
    assert stats["stream_bytes"] == 22
    assert stats["answers"]["none"] == 4


def test_a_listener_that_is_given_publishes_whom_it_accepts(live):
    listener = live.mine.listen(80)
    live.mine.give(listener)
    caller = live.far.open(A, 80)
    live.start()
    live.until(lambda: any("open" in news.what for news in live.news))
    opened = next(news for news in live.news if "open" in news.what)
    assert opened.local == (A, 80)
    assert opened.remote[0] == B
    number = opened.connection
    with live.engine.paused():
        assert caller.put(b"x" * 5000) == 5000
    live.until(lambda: live.got.get(number) == b"x" * 5000)
    assert live.answer(live.commander.write(number, b"hello")) == ("", number)
    with live.engine.paused():
        caller.abort()
    live.until(lambda: "reset" in live.told(number))
    assert live.answer(live.commander.hang_up(number))[0] == "connection"


def test_a_command_listens_and_whom_it_accepts_is_on_the_tape(live):
    """At any own address or at one, until the listener ends; whom it accepted stays."""
    live.start()
    ask = live.commander
    why, any_own = live.answer(ask.listen(80))
    assert (why, any_own > 0) == ("", True)
    why, of_one = live.answer(ask.listen(81, address=A, backlog=3))
    assert (why, of_one not in (0, any_own)) == ("", True)
    with live.engine.paused():
        callers = [live.far.open(A, port) for port in (80, 81)]
    heard = bytearray()

    def answered() -> bool:
        with live.engine.paused():
            heard.extend(callers[0].take() or b"")
        return bytes(heard) == b"doneand more"

    def accepted() -> dict[int, int]:
        """Connections by the local port that they came to."""
        return {news.local[1]: news.connection for news in live.news if "open" in news.what}

    live.until(lambda: set(accepted()) == {80, 81})
    for news in live.news:
        if "open" in news.what:
            assert (news.local[0], news.remote[0]) == (A, B)
    with live.engine.paused():
        assert callers[0].put(b"order") == 5
    number = accepted()[80]
    live.until(lambda: live.got.get(number) == b"order")
    assert live.answer(ask.write(number, b"done")) == ("", number)
    assert live.answer(ask.listen(80))[0] == "taken"
    assert live.answer(ask.write(any_own, b"x")) == ("connection", any_own)
    for listener, end in ((any_own, ask.hang_up), (of_one, ask.reset)):
        assert live.answer(end(listener)) == ("", listener)
        live.until(lambda listener=listener: "closed" in live.told(listener))
        assert live.answer(end(listener)) == ("connection", listener)
    assert live.answer(ask.write(number, b"and more")) == ("", number)
    wait(answered)
    assert live.answer(ask.listen(80))[0] == ""


def test_a_command_to_listen_is_refused_by_name(live):
    live.start()
    ask = live.commander
    assert live.answer(ask.listen(0))[0] == "short"
    assert live.answer(ask.listen(80, address=B))[0] == "address"
    assert live.answer(ask.listen(80, address="2001:db8::1"))[0] == "address"
    assert live.answer(ask.listen(80, engine_port=1))[0] == "port"
    assert live.answer(ask.listen(80, engine_port=9))[0] == "port"
    many = [live.answer(ask.listen(1000 + number))[0] for number in range(20)]
    assert set(many) == {"", "full"}
    ask.close()
    with Ring.open(live.folder / "ring", "writer") as ring:
        head = ffi.new(
            "struct xds_command *", {"kind": lib.XDS_COMMAND_LISTEN, "len": 5, "sport": 80, "number": 500}
        )
        ring.write(0, bytes(ffi.buffer(head)) + b"12345")
        assert live.answer(500)[0] == "short"
        head.kind, head.number = lib.XDS_COMMAND_LISTEN + 1, 501
        ring.write(0, bytes(ffi.buffer(head)) + b"12345")
        assert live.answer(501)[0] == "kind"


def test_who_does_not_answer_and_who_refuses_are_told(live):
    live.start()
    _, refused = live.answer(live.commander.connect(B, 9))
    live.until(lambda: "refused" in live.told(refused))
    assert live.answer(live.commander.reset(refused))[0] == "connection"
    _, reset = live.answer(live.commander.connect(B, PORT))
    live.until(lambda: "open" in live.told(reset))
    assert live.answer(live.commander.reset(reset)) == ("", reset)
    assert live.answer(live.commander.reset(reset))[0] == "connection"


def test_a_command_about_a_connection_is_refused_by_name(live):
    private = live.mine.open(B, PORT)  # Python's own: never given
    live.start()
    ask = live.commander
    assert live.answer(ask.write(private.number, b"x"))[0] == "connection"
    assert live.answer(ask.hang_up(private.number))[0] == "connection"
    assert live.answer(ask.reset(1 << 31))[0] == "connection"
    assert live.answer(ask.connect(B, PORT, engine_port=1))[0] == "port"
    assert live.answer(ask.connect(B, PORT, engine_port=9))[0] == "port"
    assert live.answer(ask.connect("192.0.2.1", PORT))[0] == "route"
    assert live.answer(ask.connect("2001:db8::1", PORT))[0] == "route"
    assert live.answer(ask.connect(B, 0))[0] == "short"
    _, one = live.answer(ask.connect(B, PORT, sport=5000))
    assert live.answer(ask.connect(B, PORT, sport=5000))[0] == "taken"
    assert live.answer(ask.write(one, b""))[0] == "short"
    assert live.answer(ask.write(one, bytes(70_000)))[0] == "full"  # more than its send buffer
    many = [live.answer(ask.connect(B, PORT))[0] for _ in range(70)]
    assert set(many) == {"", "full"}
    with pytest.raises(LocalProtocolError):
        live.mine.publish()


def test_a_connect_of_another_length_is_refused(live):
    live.start()
    live.commander.close()
    with Ring.open(live.folder / "ring", "writer") as ring:
        head = ffi.new(
            "struct xds_command *", {"kind": lib.XDS_COMMAND_CONNECT, "len": 5, "dport": 7, "number": 1}
        )
        ring.write(0, bytes(ffi.buffer(head)) + b"12345")
        assert live.answer(1)[0] == "short"
        head.len, head.number, head.dst = 0, 2, int.from_bytes(bytes(map(int, B.split("."))), "little")
        ring.write(0, bytes(ffi.buffer(head)))  # IPv4 in the head itself
        why, connection = live.answer(2)
        assert why == ""
        live.until(lambda: "open" in live.told(connection))


def test_a_port_that_shares_the_kernels_address_opens_none_by_command(live):
    live.engine._published_streams[0] = False
    live.start()
    assert live.answer(live.commander.connect(B, PORT))[0] == "steering"
    assert live.answer(live.commander.listen(80))[0] == "steering"


def test_what_needs_an_engine_that_publishes_says_so(tmp_path):
    with contextlib.ExitStack() as stack:
        end, _ = (stack.enter_context(end) for end in pipe(slots=64))
        engine = stack.enter_context(Engine(EngineConfig(slow=0)))
        streams = Streams(engine, engine.add_link(end, mac=MACS[A], addresses=[f"{A}/24"]))
        with pytest.raises(LocalProtocolError, match="say first"):
            streams.publish()
        with pytest.raises(ConfigError, match="kernel sockets"):
            SockStreams(engine).publish()
        engine.detach()


def test_the_formats_are_as_documented():
    assert ffi.sizeof("struct xds_publish_stream") == 120
    names = ("at", "connection", "what", "len", "port", "local_port", "remote_port", "local", "remote")
    assert [ffi.offsetof("struct xds_publish_stream", n) for n in names] == [
        8,
        16,
        20,
        24,
        28,
        30,
        32,
        40,
        56,
    ]
    assert ffi.sizeof("struct xds_publish_answer") == 24
