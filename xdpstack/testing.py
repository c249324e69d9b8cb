"""Conformance: what every link and every datagram flow must do, for our ports and for yours.

``check_link`` takes a function that makes a fresh pair: a context manager of ``(sender, receiver)``, where
what the sender sends the receiver gets. AF_XDP over veth, a pipe and a capture pass the same checks; so must
a port of your own. ``check_flow`` does it for datagrams: kernel sockets, and any link under a host core
(``LinkFlow``), in any pairing. A broken promise is an AssertionError that names it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xdpstack._ffi import ffi, lib
from xdpstack.closing import Closing
from xdpstack.engine import Engine, EngineConfig
from xdpstack.errors import LocalProtocolError
from xdpstack.port import NEVER, Datagram, Frame, LinkPort, PcapPort, PcapWriter, Subscription
from xdpstack.port.base import raise_code
from xdpstack.port.sock import ends_of

__all__ = [
    "CaptureReceiver",
    "CaptureSender",
    "Flow",
    "LinkFlow",
    "Sender",
    "capture_pair",
    "check_flow",
    "check_link",
    "make_frames",
]

ETHERTYPE = b"\x88\xb5"
"""Local experimental (IEEE 802): no host answers it."""
_PATIENCE_S = 5.0


class Sender(Protocol):
    """What ``check_link`` sends with; every ``LinkPort`` is one."""

    def send(self, frames: Sequence[bytes], /) -> int:
        """Send whole Ethernet frames in order; returns how many were taken."""


MakePair = Callable[[], AbstractContextManager[tuple[Any, Any]]]


def make_frames(count: int, *, seed: int = 1, longest: int = 1514) -> list[bytes]:
    """``count`` different Ethernet frames of 60 to ``longest`` bytes; the same for the same seed."""
    chance, head = random.Random(seed), b"\xff" * 6 + b"\x02\0\0\0\0\x01" + ETHERTYPE
    frames = []
    for number in range(count):
        length = (
            (60, longest)[number] if number < 2 else min(longest, chance.choice((60, 61, 128, 1000, longest)))
        )
        body = number.to_bytes(4, "big") + chance.randbytes(8)
        frames.append((head + body * (1 + length // len(body)))[:length])
    return frames


def _ours(frame: Frame) -> bool:
    return bytes(frame.data[12:14]) == ETHERTYPE


def _collect(receiver: LinkPort, count: int) -> list[tuple[bytes, int]]:
    """``(bytes, rx_ns)`` of ``count`` frames of ours, or of what came within the time allowed."""
    got: list[tuple[bytes, int]] = []
    end = time.monotonic() + _PATIENCE_S
    while len(got) < count and time.monotonic() < end:
        got.extend((bytes(frame.data), frame.rx_ns) for frame in receiver.receive(64) if _ours(frame))
        if receiver.virtual_time and receiver.deadline == NEVER:
            break
    return got


def _whole_in_order_once(sender: Any, receiver: LinkPort) -> None:
    frames, got = make_frames(300, longest=min(1514, receiver.mtu + 14)), []
    for at in range(0, len(frames), 100):
        assert sender.send(frames[at : at + 100]) == 100, "a link with room takes what it is given"
        if not receiver.read_only:
            got += _collect(receiver, 100)
    if receiver.read_only:
        got = _collect(receiver, len(frames))
    assert [data for data, _ in got] == frames, "frames come whole, in order, each once"
    stamps = [stamp for _, stamp in got]
    assert all(stamp > 0 for stamp in stamps), "every frame has a stamp"
    assert stamps == sorted(stamps), "stamps of one line do not run backwards"
    if not receiver.virtual_time:
        assert stamps[-1] <= time.clock_gettime_ns(time.CLOCK_TAI), "a live stamp is not in the future"
    assert receiver.receive(64) == [], "nothing comes twice"
    assert sum(len(data) for data, _ in got) <= receiver.stats()["rx_bytes"], "bytes are counted"


def _counted(sender: Any, receiver: LinkPort) -> None:
    frames = make_frames(50, seed=2)
    before, polls = receiver.stats()["rx_frames"], receiver.stats()["rx_polls"]
    sender.send(frames)
    foreign = 0
    got: list[Frame] = []
    end = time.monotonic() + _PATIENCE_S
    seen = 0
    while seen < len(frames) and time.monotonic() < end:
        got = receiver.receive(64)
        seen += sum(map(_ours, got))
        foreign += sum(not _ours(frame) for frame in got)
    stats = receiver.stats()
    assert seen == len(frames), "all of them came"
    assert stats["rx_frames"] - before == seen + foreign, "every frame handed out is counted, none twice"
    assert stats["rx_polls"] > polls, "polls are counted"
    assert stats["rx_polls"] >= stats["rx_polls_empty"], "an empty poll is a poll"
    if isinstance(sender, LinkPort):
        assert sender.stats()["tx_frames"] >= len(frames), "what was sent is counted"


def _lease_holds(sender: Any, receiver: LinkPort) -> None:
    """Frames of several rx calls stay as they are until release, whatever comes after them."""
    frames = make_frames(48, seed=3, longest=128)
    sender.send(frames[:24])
    held = ffi.new("struct xds_frame[]", 64)
    at, end = 0, time.monotonic() + _PATIENCE_S
    while at < len(frames) and time.monotonic() < end:
        if at == 24 and not receiver.read_only:
            sender.send(frames[24:])
        elif at == 24:
            break
        got = lib.xds_link_rx(receiver.handle, held + at, min(8, 64 - at), NEVER)
        assert got >= 0, f"rx answers {got}"
        keep = [i for i in range(at, at + got) if bytes(ffi.buffer(held[i].data, 14))[12:14] == ETHERTYPE]
        for to, origin in enumerate(keep, at):
            held[to] = held[origin]
        at += len(keep)
    seen = [bytes(ffi.buffer(held[i].data, held[i].len)) for i in range(at)]
    assert seen == frames[:at], "leased frames keep their bytes"
    assert at >= 24, "leased frames do not stop the link"
    receiver.release()


def _views_end(sender: Any, receiver: LinkPort) -> None:
    sender.send(make_frames(1, seed=4))
    frame, end = None, time.monotonic() + _PATIENCE_S
    while frame is None and time.monotonic() < end:
        frame = next(iter(receiver.receive(1)), None)
    assert frame is not None, "the frame came"
    view = frame.data
    keep = np.frombuffer(view, dtype="u1")
    if isinstance(sender, LinkPort):
        sender.close()  # memory that both ends share lives as long as one of them
    try:
        receiver.close()
    except BufferError:
        pass
    else:
        raise AssertionError("a port refuses to close while a view lives")
    del keep
    receiver.release()
    try:
        bytes(view)
    except ValueError:
        return
    raise AssertionError("a view ends with its burst")


def _reserve_gives_back(sender: Any, receiver: LinkPort) -> None:
    if not isinstance(sender, LinkPort):
        return
    frames = ffi.new("struct xds_frame[]", 1 << 16)
    all_of_them = lib.xds_link_reserve(sender.handle, frames, 1 << 16)
    assert 0 < all_of_them < 1 << 16, "the frames to send are bounded"
    assert sender.stats()["tx_no_frame"] == (1 << 16) - all_of_them, "what could not be reserved is counted"
    assert len({int(ffi.cast("uintptr_t", frames[i].data)) for i in range(all_of_them)}) == all_of_them
    for index in range(all_of_them):
        frames[index].len = 0
    assert lib.xds_link_commit(sender.handle, frames, all_of_them) == 0, "frames of length 0 are not sent"
    assert sender.flush() == 0, "nothing is on its way"
    again = lib.xds_link_reserve(sender.handle, frames, 1 << 16)
    assert again == all_of_them, "frames that went back can be reserved again"
    for index in range(again):
        frames[index].len = 0
    lib.xds_link_commit(sender.handle, frames, again)
    assert not any(map(_ours, receiver.receive(64))), "nothing arrives"
    wrong = ffi.new("struct xds_frame[]", 1)
    assert lib.xds_link_reserve(sender.handle, wrong, 1) == 1
    room = wrong[0].len
    wrong[0].len = room + 1
    assert lib.xds_link_commit(sender.handle, wrong, 1) < 0, "more than the room is refused"
    wrong[0].len = 0
    lib.xds_link_commit(sender.handle, wrong, 1)
    with contextlib.suppress(ValueError):
        sender.send([bytes(room + 1)])
        raise AssertionError("a frame above the MTU is refused")


def _closes_calmly(sender: Any, receiver: LinkPort) -> None:
    assert receiver.receive(8) == [] or receiver.read_only, "nothing comes of nothing"
    receiver.release()
    receiver.close()
    receiver.close()
    assert receiver.stats()["rx_frames"] >= 0, "counters outlive the port"
    assert "closed" in repr(receiver), "repr shows the state"
    try:
        receiver.receive(1)
    except LocalProtocolError:
        return
    raise AssertionError("a closed port says so")


_LINK_CHECKS = (
    _whole_in_order_once,
    _counted,
    _lease_holds,
    _views_end,
    _reserve_gives_back,
    _closes_calmly,
)


def check_link(make_pair: MakePair) -> None:
    """Hold a link to every promise of ``xds/link.h``; each check has a pair of its own."""
    for check in _LINK_CHECKS:
        with make_pair() as (sender, receiver):
            try:
                check(sender, receiver)
            except AssertionError as error:
                raise AssertionError(f"{check.__name__.strip('_')} of {receiver!r}: {error}") from error


# ---- captures as links -------------------------------------------------------------------------------


class CaptureSender:
    """Sends into a capture file: frames stamped one microsecond apart."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.writer = PcapWriter(path)
        self._stamps = itertools.count(1_700_000_000_000_000_000, 1000)

    def send(self, frames: Sequence[bytes], /) -> int:
        """Append; all are taken."""
        for stamp, frame in zip(self._stamps, frames, strict=False):
            self.writer.write(stamp, frame)
        return len(frames)


class CaptureReceiver:
    """A ``PcapPort`` that opens with its first use, when the sender has sent: then the file is closed."""

    def __init__(self, sender: CaptureSender) -> None:
        self._sender, self._port = sender, None

    def __getattr__(self, name: str) -> Any:
        if self._port is None:
            if name in ("read_only", "virtual_time"):
                return True
            if name == "mtu":
                return 1500
            if name == "stats" and not self._sender.writer.stats()["records"]:
                return lambda: dict.fromkeys(("rx_frames", "rx_polls"), 0)
            if not self._sender.writer.stats()["records"]:
                self._sender.send(make_frames(1))
            self._sender.writer.close()
            self._port = PcapPort(self._sender.writer.path)  # type: ignore[assignment]
        return getattr(self._port, name)

    def __repr__(self) -> str:
        return repr(self._port)


@contextlib.contextmanager
def capture_pair(path: str | os.PathLike[str]) -> Iterator[tuple[CaptureSender, Any]]:
    """A pair for ``check_link`` over a capture file of the suffix's kind."""
    sender = CaptureSender(path)
    receiver = CaptureReceiver(sender)
    try:
        yield sender, receiver
    finally:
        sender.writer.close()
        if receiver._port is not None:
            receiver._port.close()
        Path(path).unlink(missing_ok=True)


# ---- flows -------------------------------------------------------------------------------------------

Address = tuple[str, int]


class Flow(Protocol):
    """What ``check_flow`` holds to its promises; ``SockPort`` and ``LinkFlow`` are two."""

    def send(self, data: bytes, to: Address, /) -> int:
        """Send one datagram; returns its bytes."""

    def receive(self, count: int, /) -> list[Datagram]:
        """Up to ``count`` datagrams; their views end with the next call."""

    def local_port(self) -> int:
        """The UDP port that what is sent comes from."""

    def stats(self) -> dict[str, int]:
        """``rx_datagrams``, ``rx_bytes`` and ``rx_lost`` (a SockPort: truncated, dropped) at least."""

    def close(self) -> None:
        """Twice is calm."""


class LinkFlow(Closing):
    """A datagram flow over a link: an engine with a host core, one address and one UDP endpoint.

    What feeds see over AF_XDP and over a pipe. ``address`` is our own, ``listen`` what the endpoint
    receives (a group is joined), ``neighbours`` hardware addresses by address. Closes its port.
    """

    def __init__(
        self,
        port: LinkPort,
        address: str,
        listen: Address,
        *,
        mac: str,
        neighbours: Mapping[str, str] | None = None,
    ) -> None:
        self.port, self._listen, self._bytes, self._closed = port, listen, 0, False
        self._engine = Engine(EngineConfig())
        own, group = f"{address}/{64 if ':' in address else 24}", ip_address(listen[0]).is_multicast
        self._engine.add_link(port, addresses=[own], groups=[listen[0]] if group else [], mac=mac)
        self._host = self._engine.hosts[0]
        for neighbour, its_mac in (neighbours or {}).items():
            self._host.add_neighbour(neighbour, its_mac)
        self._engine.add_udp(*listen)
        self._out = ffi.new("struct xds_batch *")
        self._next = 0  # of the batch's datagrams, the first that was not given out
        self._last: dict[str, int] = {}

    def send(self, data: bytes, to: Address) -> int:
        """Send one datagram from the endpoint's port; returns its bytes."""
        self._engine.send(data, Subscription(address=to[0], port=to[1]), sport=self._listen[1])
        return len(data)

    def receive(self, count: int = 64) -> list[Datagram]:
        """Up to ``count`` datagrams of one turn; the views of the call before end here."""
        if self._closed:
            raise LocalProtocolError(f"{self!r} is closed")
        out = self._out
        if self._next == out.n_dgrams:
            raise_code(lib.xds_engine_turn(self._engine.core, 0, out), f"turn {self!r}")
            self._next = 0
        taken = out.dgrams[self._next : min(self._next + count, out.n_dgrams)]
        self._next += len(taken)
        self._bytes += sum(one.len for one in taken)
        return [
            Datagram(
                memoryview(ffi.buffer(one.data, one.len)),
                one.rx_ns,
                *ends_of(one),
            )
            for one in taken
        ]

    def local_port(self) -> int:
        """The endpoint's port."""
        return self._listen[1]

    def stats(self) -> dict[str, int]:
        """Datagrams that the host core delivered, payload bytes given out, what was lost on the way."""
        if not self._closed:
            host, link = self._host.stats(), self.port.stats()
            assert host["received"] == host["delivered"] + sum(host["reasons"].values()), "one way out"
            assert link["rx_frames"] == host["received"], "every frame of the link went to the host core"
            six = host["reasons"].get("datagram6", 0)  # given out, too
            refused = sum(n for name, n in host["reasons"].items() if name not in ("arp", "ndp", "datagram6"))
            dropped = ("rx_dropped", "rx_invalid", "rx_ring_full", "rx_fill_empty", "rx_truncated")
            self._last = {
                "rx_datagrams": host["delivered"] + six,
                "rx_bytes": self._bytes,
                "rx_lost": refused + sum(link[name] for name in dropped),
            }
        return dict(self._last)

    def close(self) -> None:
        """End the engine, then close the port; twice is calm."""
        if not self._closed:
            self.stats()
            self._closed = True
            self._engine.close()
            self.port.close()

    def __repr__(self) -> str:
        return f"<LinkFlow over {self.port!r}>"


MakeFlow = Callable[[], AbstractContextManager[tuple[Any, Any, Address]]]


def _gather(receiver: Flow, count: int) -> list[tuple[bytes, Datagram]]:
    got: list[tuple[bytes, Datagram]] = []
    end = time.monotonic() + _PATIENCE_S
    while len(got) < count and time.monotonic() < end:
        got.extend((bytes(one.data), one) for one in receiver.receive(64))
    return got


def _lost(stats: dict[str, int]) -> int:
    return stats["rx_lost"] if "rx_lost" in stats else stats["rx_truncated"] + stats["rx_dropped"]


def _stamped_by_now(sender: Flow, receiver: Flow, to: Address) -> int:
    """The kernel begins to stamp a little after the first socket asks. Returns the bytes that went."""
    sender.send(b"stamps on", to)
    assert [data for data, _ in _gather(receiver, 1)] == [b"stamps on"], "the first datagram comes"
    time.sleep(0.05)
    return len(b"stamps on")


def _datagrams_whole_in_order_once(sender: Flow, receiver: Flow, to: Address) -> None:
    first = _stamped_by_now(sender, receiver, to)
    chance = random.Random(5)
    sent = [b"", b"x"] + [chance.randbytes(chance.randrange(1, 1400)) for _ in range(200)]
    got: list[tuple[bytes, Datagram]] = []
    for at in range(0, len(sent), 50):
        for data in sent[at : at + 50]:
            assert sender.send(data, to) == len(data), "the whole datagram is taken"
        got += _gather(receiver, len(sent[at : at + 50]))
    assert [data for data, _ in got] == sent, "datagrams come whole, in order, each once, empty ones too"
    sources = {one.src for _, one in got}
    assert len(sources) == 1, "every one names its sender"
    assert next(iter(sources))[1] == sender.local_port(), "the sender's port"
    assert {one.dst for _, one in got} == {to}, "and where it was sent to"
    stamps = [one.rx_ns for _, one in got]
    assert stamps == sorted(stamps), "stamps do not run backwards"
    apart = time.clock_gettime_ns(time.CLOCK_TAI) - stamps[-1]
    assert 0 <= apart < 60 * 10**9, "stamps are CLOCK_TAI"
    stats = receiver.stats()
    assert stats["rx_datagrams"] == len(sent) + 1, "every one is counted"
    assert stats["rx_bytes"] == sum(map(len, sent)) + first, "and its bytes"
    assert _lost(stats) == 0, "none was lost"
    assert receiver.receive(8) == [], "nothing comes twice"


def _every_length_comes_as_it_was_sent(sender: Flow, receiver: Flow, to: Address) -> None:
    """Odd, even, and around the shortest frame; all ones and zeros, whose checksums are the corners."""
    longest = 1452 if ":" in to[0] else 1472  # of an MTU of 1,500
    sizes = [*range(40), longest - 1, longest]
    for fill in (b"\0", b"\xff", b"\x80\x7f"):
        for size in sizes:
            sender.send((fill * size)[:size], to)
        got = [data for data, _ in _gather(receiver, len(sizes))]
        assert got == [(fill * size)[:size] for size in sizes], f"every length of {fill!r}"
    assert _lost(receiver.stats()) == 0, "none was refused"


def _small_bursts_and_leases(sender: Flow, receiver: Flow, to: Address) -> None:
    """A receive of fewer than there are leaves the others; one for none is empty; a view is of its burst."""
    assert receiver.receive(4) == [], "nothing comes of nothing"
    sent = [b"%d" % number for number in range(30)]
    for data in sent:
        sender.send(data, to)
    got: list[bytes] = []
    end = time.monotonic() + _PATIENCE_S
    while len(got) < len(sent) and time.monotonic() < end:
        burst = receiver.receive(7)
        assert len(burst) <= 7, "no more than asked for"
        got += [bytes(one.data) for one in burst]
    assert got == sent, "none is lost between two bursts"


def _flow_closes_calmly(sender: Flow, receiver: Flow, to: Address) -> None:
    sender.send(b"last", to)
    assert len(_gather(receiver, 1)) == 1, "what is sent comes"
    receiver.close()
    receiver.close()
    assert receiver.stats()["rx_datagrams"] == 1, "counters outlive the flow"
    assert "closed" in repr(receiver), "repr shows the state"
    try:
        receiver.receive(1)
    except LocalProtocolError:
        return
    raise AssertionError("a closed flow says so")


_FLOW_CHECKS = (
    _datagrams_whole_in_order_once,
    _every_length_comes_as_it_was_sent,
    _small_bursts_and_leases,
    _flow_closes_calmly,
)


def check_flow(make_flow: MakeFlow) -> None:
    """Hold a datagram flow to its promises; each check has a pair of its own.

    ``make_flow`` gives ``(sender, receiver, address)``: what is sent to ``address`` the receiver gets. The
    two need not be of one kind: an AF_XDP sender and a kernel socket that receives are a flow as well.
    """
    for check in _FLOW_CHECKS:
        with make_flow() as (sender, receiver, to):
            try:
                check(sender, receiver, to)
            except AssertionError as error:
                what = f"{check.__name__.strip('_')} of {sender!r} -> {receiver!r}: {error}"
                raise AssertionError(what) from error
