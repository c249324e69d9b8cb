"""Conformance: what TCP connections of a node must do, over AF_XDP and over kernel sockets alike.

``check_streams`` takes the :class:`~xdpstack.streams.Streams` of a node and a peer: a function that makes
plain kernel sockets somewhere else, and the addresses of both sides. A broken promise is an AssertionError
that names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from xdpstack.errors import ConfigError, LocalProtocolError
from xdpstack.stack import BITS
from xdpstack.streams import Connection, Streams

__all__ = ["CHECKS", "Peer", "check_streams"]

PATIENCE = 120.0
"""Seconds: of every wait, so that a broken promise is told and not waited for."""
_BIT = {word: value for value, word in BITS.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """``make()`` gives an IPv4 stream socket; its connections come from and go to ``address``, ours is
    ``own``."""

    make: Callable[[], socket.socket]
    address: str
    own: str

    @contextlib.contextmanager
    def server(self) -> Iterator[socket.socket]:
        """A listening socket."""
        with self.make() as one:
            one.settimeout(PATIENCE)
            one.bind((self.address, 0))
            one.listen(8)
            yield one

    @contextlib.contextmanager
    def accepted(self, streams: Streams, **settings: Any) -> Iterator[tuple[Connection, socket.socket]]:
        """A connection that we opened, and its other end."""
        with self.server() as server, self.opened(streams, server, **settings) as mine:
            theirs = server.accept()[0]
            theirs.settimeout(PATIENCE)
            with theirs:
                yield mine, theirs

    @contextlib.contextmanager
    def opened(self, streams: Streams, server: socket.socket, **settings: Any) -> Iterator[Connection]:
        """Our end of a connection to it."""
        port = server.getsockname()[1]
        with streams.connect(self.address, port, timeout=PATIENCE, **settings) as mine:
            mine.timeout = PATIENCE
            yield mine


def check_streams(streams: Streams, peer: Peer) -> None:
    """All of :data:`CHECKS`, one after another."""
    for check in CHECKS:
        check(streams, peer)


def _until(streams: Streams, done: Callable[[], bool], what: str) -> None:
    streams.wait(done, PATIENCE, what)


def _raises(kind: type[BaseException], call: Callable[[], object], what: str) -> BaseException:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{what}: {kind.__name__} is raised")


def bytes_go_both_ways_in_order(streams: Streams, peer: Peer) -> None:
    """A megabyte each way at once, larger than any buffer."""
    data = random.Random(7).randbytes(1 << 20)
    got: list[str] = []
    with peer.accepted(streams) as (mine, theirs):

        def echo() -> None:
            seen, sent = hashlib.sha256(), 0
            while sent < len(data):
                piece = theirs.recv(65536)
                if not piece:
                    break
                seen.update(piece)
                theirs.sendall(piece)
                sent += len(piece)
            got.append(seen.hexdigest())

        thread = threading.Thread(target=echo)
        thread.start()
        back = hashlib.sha256()
        for at in range(0, len(data), 16384):
            mine.write(data[at : at + 16384])
            back.update(mine.read_exactly(16384))
        thread.join(PATIENCE)
    want = hashlib.sha256(data).hexdigest()
    assert got == [want], "the peer has what was written"
    assert back.hexdigest() == want, "what came back is what the peer sent"


def names_and_state_are_told(streams: Streams, peer: Peer) -> None:
    """Ends, state, and the words of info()."""
    with peer.accepted(streams) as (mine, theirs):
        assert (mine.local, mine.remote) == (theirs.getpeername(), theirs.getsockname()), (
            "both ends are known"
        )
        mine.write(b"hello")
        assert theirs.recv(100) == b"hello", "what is written is sent"
        mine.drain()
        info = mine.info()
        words = {
            "state", "mss", "cwnd", "ssthresh", "in_flight", "unsent", "unread", "outstanding", "srtt_ns",
            "rttvar_ns", "rto_ns", "rtt_min_ns", "sack", "stamps", "ecn", "sacked", "lost", "recovery",
            "give_up_ns", "sent", "received", "sent_bytes", "received_bytes", "retransmits", "out_of_order",
            "dsacks", "trouble",
        }  # fmt: skip
        assert not words - info.keys(), f"info() has {words - info.keys()}"
        assert (info["state"], mine.state) == ("established", "established"), "the state is RFC 9293's word"
        assert info["sent_bytes"] == 5, "bytes are counted once"
        assert (info["unsent"], info["outstanding"]) == (0, 0), "drain() waits for what is acknowledged"
        assert info["srtt_ns"] > 0, "a round trip was measured"
        assert 200_000_000 <= info["rto_ns"] < 10_000_000_000, "times are nanoseconds"
        theirs.sendall(b"unread")
        _until(streams, lambda: mine.info()["unread"] == 6, "bytes that nobody has read")
    assert mine.state == "closed", "closed is told after close()"


def a_peer_connects(streams: Streams, peer: Peer) -> None:
    """Listening, accepting, the peer's end."""
    with streams.listen(7000) as listener, peer.make() as theirs:
        assert listener.take() is None, "nobody came yet"
        late = _raises(TimeoutError, lambda: listener.accept(timeout=0.05), "nobody comes")
        assert "7000" in str(late), "the port is named"
        theirs.settimeout(PATIENCE)
        with _connecting(theirs, (peer.own, 7000)), listener.accept(PATIENCE) as mine:
            mine.timeout = PATIENCE
            assert mine.remote[0] == peer.address, "who came is known"
            theirs.sendall(b"first")
            theirs.shutdown(socket.SHUT_WR)
            assert mine.read_exactly(5) == b"first", "what the peer sent is read"
            assert mine.read() == b"", "then its end"
            assert mine.take() == b"", "again and again"
            mine.write(b"an answer")
            assert theirs.recv(100) == b"an answer", "its end is not ours"
            _raises(EOFError, lambda: mine.read_exactly(1), "there is no more")


@contextlib.contextmanager
def _connecting(one: socket.socket, to: tuple[str, int]) -> Iterator[None]:
    """connect() waits for us, who have to turn meanwhile."""
    thread = threading.Thread(target=one.connect, args=(to,))
    thread.start()
    yield
    thread.join(PATIENCE)


def a_port_where_nobody_listens_refuses(streams: Streams, peer: Peer) -> None:
    """ConnectionRefusedError, and nothing is left of it."""
    before = streams.unfinished
    with peer.make() as silent:
        silent.bind((peer.address, 0))
        port = silent.getsockname()[1]

        def connect() -> None:
            streams.connect(peer.address, port, timeout=PATIENCE)

        error = _raises(ConnectionRefusedError, connect, "nobody listens")
        assert f"{peer.address}:{port}" in str(error), "the peer is named"
    assert streams.unfinished <= before, "a refused connection leaves nothing"


def a_reset_is_told_after_what_came_before(streams: Streams, peer: Peer) -> None:
    """Bytes first, then ConnectionResetError each time."""
    with peer.accepted(streams) as (mine, theirs):
        theirs.sendall(b"before")
        _until(streams, lambda: mine.info()["unread"] == 6, "the bytes")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        _until(streams, lambda: mine.error is not None, "the reset")
        assert mine.read() == b"before", "what came before it is read"
        for call in (mine.read, lambda: mine.write(b"x"), mine.take, lambda: mine.put(b"x"), mine.check):
            _raises(ConnectionResetError, call, "after a reset")


def shutting_down_ends_one_direction(streams: Streams, peer: Peer) -> None:
    """The peer reads our end; we read on."""
    with peer.accepted(streams) as (mine, theirs):
        mine.write(b"last words")
        mine.shutdown()
        mine.shutdown()
        got = b""
        while piece := theirs.recv(100):
            got += piece
        assert got == b"last words", "what was written before is sent"
        _raises(BrokenPipeError, lambda: mine.write(b"x"), "after shutdown()")
        theirs.sendall(b"still")
        assert mine.read_exactly(5) == b"still", "reading goes on"


def nothing_waits_longer_than_it_is_told(streams: Streams, peer: Peer) -> None:
    """TimeoutError, and the connection is as it was."""
    with peer.accepted(streams) as (mine, theirs):
        mine.timeout = 0.05
        _raises(TimeoutError, mine.read, "nothing comes")
        _raises(TimeoutError, lambda: mine.write(bytes(64 << 20)), "nobody reads")
        mine.timeout = PATIENCE
        theirs.sendall(b"late")
        assert mine.read() == b"late", "a timeout ends nothing"


def calls_that_do_not_wait(streams: Streams, peer: Peer) -> None:
    """take() and put(): None and 0, and callbacks when that changes."""
    with peer.accepted(streams) as (mine, theirs):
        bits: list[int] = []
        mine.callback = bits.append

        def seen(word: str) -> bool:
            return any(bit & _BIT[word] for bit in bits)

        assert mine.take() is None, "nothing came"
        theirs.sendall(b"news")
        _until(streams, lambda: seen("readable"), "a callback")
        assert mine.take() == b"news", "it is there when the callback says so"
        sent, idle = 0, 0
        while idle < 200:  # the peer's buffer takes some, which is seen when its answers come
            bits.clear()  # what is told after the last put() counts
            done = mine.put(bytes(65536))
            sent, idle = sent + done, 0 if done else idle + 1
            streams.turn(1)
        taken = threading.Thread(target=_swallow, args=(theirs, sent))
        taken.start()
        _until(streams, lambda: seen("writable"), "room again")
        _until(streams, lambda: not taken.is_alive(), "everything has come")
        theirs.shutdown(socket.SHUT_WR)
        _until(streams, lambda: seen("fin"), "the peer's end")
        assert mine.take() == b"", "its end is told"


def _swallow(one: socket.socket, count: int) -> None:
    while count > 0 and (piece := one.recv(1 << 20)):
        count -= len(piece)


def an_abort_is_a_reset_for_the_peer(streams: Streams, peer: Peer) -> None:
    """And ConnectionAbortedError here."""
    with peer.accepted(streams) as (mine, theirs):
        mine.abort()
        _raises(ConnectionResetError, lambda: theirs.recv(100), "the peer reads")
        _raises(ConnectionAbortedError, mine.read, "after abort()")
        _raises(ConnectionAbortedError, lambda: mine.write(b"x"), "after abort()")


def bytes_that_nobody_read_are_a_reset_for_the_peer(streams: Streams, peer: Peer) -> None:
    """close() does not pretend that they were read (RFC 2525 2.17)."""
    with peer.accepted(streams) as (mine, theirs):
        theirs.sendall(b"nobody reads this")
        _until(streams, lambda: mine.info()["unread"] == 17, "the bytes")
        mine.close()
        _raises(ConnectionResetError, lambda: theirs.recv(100), "the peer reads")


def what_is_closed_is_used_no_more(streams: Streams, peer: Peer) -> None:
    """LocalProtocolError; closing twice is calm."""
    with peer.accepted(streams) as (mine, theirs):
        mine.write(b"sent before")
        for _ in range(2):
            mine.close()
        assert theirs.recv(100) == b"sent before", "close() sends what was written"
        for call in (mine.take, lambda: mine.put(b"x"), mine.info, mine.check):
            _raises(LocalProtocolError, call, "after close()")
    listener = streams.listen(7001)
    for _ in range(2):
        listener.close()
    _raises(LocalProtocolError, listener.take, "after close()")


def settings_are_kept_or_refused_by_name(streams: Streams, peer: Peer) -> None:
    """ConfigError in one sentence with the name."""
    bad: list[dict[str, Any]] = [
        {"congestion": "fast"}, {"keep_count": 128}, {"colour": 1}, {"dscp": 64}, {"nagle": "yes"},
    ]  # fmt: skip
    for settings in bad:

        def connect(settings: dict[str, Any] = settings) -> None:
            streams.connect(peer.address, 9, **settings)

        error = _raises(ConfigError, connect, f"with {settings}")
        assert next(iter(settings)) in str(error), "the setting is named"
    good: dict[str, Any] = {
        "congestion": "newreno",
        "nagle": 1,
        "keepalive": 1,
        "keep_idle_ns": 30_000_000_000,
        "dscp": 46,
    }
    with peer.accepted(streams, **good) as (mine, theirs):
        mine.set(nagle=0, give_up_ns=20_000_000_000)
        assert mine.info()["give_up_ns"] == 20_000_000_000, "what was set is in force"
        error = _raises(ConfigError, lambda: mine.set(mss=500), "of a connection that is there")
        assert "only a new connection" in str(error), "and the reason is told"
        mine.write(b"x")
        assert theirs.recv(100) == b"x", "it goes on with them"


def a_port_is_taken_once(streams: Streams, peer: Peer) -> None:
    """OSError, EADDRINUSE."""
    with streams.listen(7002) as first:
        error = _raises(OSError, lambda: streams.listen(7002), "a second listener")
        assert getattr(error, "errno", 0) == errno.EADDRINUSE, "it says why"
        assert first.take() is None, "the first one stays"
    streams.listen(7002).close()


CHECKS = [
    bytes_go_both_ways_in_order, names_and_state_are_told, a_peer_connects,
    a_port_where_nobody_listens_refuses, a_reset_is_told_after_what_came_before,
    shutting_down_ends_one_direction, nothing_waits_longer_than_it_is_told, calls_that_do_not_wait,
    an_abort_is_a_reset_for_the_peer, bytes_that_nobody_read_are_a_reset_for_the_peer,
    what_is_closed_is_used_no_more, settings_are_kept_or_refused_by_name, a_port_is_taken_once,
]  # fmt: skip
"""Functions of (streams, peer); each is a promise."""
