"""What happens to interfaces: up, carrier, MTU, name, namespace, end and return, as the kernel tells it.

    watch = LinkWatch(["eth0"])
    for event in watch.read():        # never waits: what rtnetlink said since the last call
        print(event)                  # eth0: carrier lost

One netlink socket, no thread: whoever owns the watch reads it when it has time (a node between two
batches, a few times a second). An interface is followed by its number as long as it lives, whatever
it is called, then by its name: one of the same name that comes later is the same interface again.
The socket belongs to the network namespace that the calling thread was in when it was opened.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator

from xdpstack.clock import tai_ns
from xdpstack.closing import Closing
from xdpstack.errors import SetupError

__all__ = ["KINDS", "STATES", "Link", "LinkEvent", "LinkWatch", "has_carrier", "links", "wait_for_carrier"]

log = logging.getLogger("xdpstack.links")

STATES = ("up", "no_carrier", "down", "moved", "deleted")
"""``moved``: it is in another network namespace now."""
KINDS = (*STATES, "created", "renamed", "mtu", "recovered", "failed")
"""Of events: a state that was entered, or a change. The last two are what a node did about it."""

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18  # RTM_*, linux/rtnetlink.h
_ERROR, _DONE = 2, 3  # NLMSG_*
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_GROUP_LINK = 1  # RTMGRP_LINK
_IFNAME, _MTU, _CARRIER, _MOVED_TO = 3, 4, 33, 45  # IFLA_*; 45: IFLA_NEW_NETNSID
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_READ = 1 << 16
_DUMP_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """An interface as one netlink message shows it."""

    index: int
    name: str
    up: bool
    """Set up by its administrator."""
    carrier: bool
    mtu: int

    @property
    def state(self) -> str:
        """``up`` (with carrier), ``no_carrier`` or ``down``."""
        return "down" if not self.up else "up" if self.carrier else "no_carrier"


@dataclasses.dataclass(frozen=True, slots=True)
class LinkEvent:
    """One thing that happened to an interface. ``str()`` is its sentence."""

    kind: str
    """One of :data:`KINDS`."""
    interface: str
    """As it was called when the watch began."""
    text: str
    ns: int
    """CLOCK_TAI ns when it was read, which is later than when it happened."""

    def __str__(self) -> str:
        return f"{self.interface}: {self.text}"


@dataclasses.dataclass(slots=True)
class _Watched:
    """One interface that is followed."""

    name: str
    link: Link | None = None  # as last seen
    state: str = "deleted"

    @property
    def gone(self) -> bool:
        return self.state in ("moved", "deleted")

    def answers_to(self, name: str) -> bool:
        return name == self.name or (self.link is not None and name == self.link.name)


# ---- Netlink ------------------------------------------------------------------------------------


def parse(data: bytes) -> Iterator[tuple[int, Link | None, bool]]:
    """The messages of one datagram: (type, the link of a link message, whether it went to another namespace).

    What is cut ends it. Raises OSError for an error message.
    """
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 16:
            return
        body = data[at + 16 : at + length]
        at += (length + 3) & ~3
        if len(body) < (4 if kind == _ERROR else 16 if kind in (_NEWLINK, _DELLINK) else 0):
            return
        if kind == _ERROR:
            code = -struct.unpack_from("=i", body)[0]
            if code:
                raise OSError(code, os.strerror(code))
        if kind not in (_NEWLINK, _DELLINK):
            yield kind, None, False
        elif body[0] == socket.AF_UNSPEC:  # bridges and wireless say more about a link in messages of theirs
            yield kind, *_link(body)


def _link(body: bytes) -> tuple[Link, bool]:
    index, flags = struct.unpack_from("=4xiI", body)
    said = dict(_attributes(body[16:]))
    carrier = any(said[_CARRIER]) if _CARRIER in said else flags & _IFF_LOWER_UP
    name = said.get(_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    mtu = int.from_bytes(said.get(_MTU, b"")[:4], "little")
    return Link(index, name, bool(flags & _IFF_UP), bool(carrier), mtu), _MOVED_TO in said


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _ask(sock: socket.socket) -> None:
    """Ask for every link of the namespace."""
    sock.send(struct.pack("=IHHII", 32, _GETLINK, _DUMP, 1, 0) + bytes(16))


def links() -> dict[str, Link]:
    """Every interface of this thread's network namespace, by name. Raises SetupError."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.settimeout(_DUMP_SECONDS)
            _ask(sock)
            found: dict[str, Link] = {}
            while True:
                for kind, link, _ in parse(sock.recv(_READ)):
                    if kind == _DONE:
                        return found
                    if link is not None:
                        found[link.name] = link
    except OSError as error:
        raise SetupError("ask for the interfaces", error.strerror or str(error), errno=error.errno) from None


# ---- Carrier, after an attach -----------------------------------------------------------------

CARRIER_SECONDS = 30.0  # ixgbe was seen to take that long after an attach


def has_carrier(ifname: str) -> bool:
    """Whether ``ifname`` is up, with carrier."""
    link = links().get(ifname)
    return link is not None and link.state == "up"


def wait_for_carrier(ifname: str, limit: float = CARRIER_SECONDS) -> bool:
    """Attaching a program or zero-copy sockets resets some devices, and nothing arrives until they are back:
    wait for that, ``limit`` seconds at most. False, and a warning: it is not back."""
    begin = time.monotonic()
    while not has_carrier(ifname):
        if time.monotonic() - begin > limit:
            log.warning("%s: no carrier %g s after attaching the filter", ifname, limit)
            return False
        time.sleep(0.01)
    if (took := time.monotonic() - begin) > 0.1:
        log.info("%s: its carrier was gone for %.1f s after attaching", ifname, took)
    return True


# ---- The watch ----------------------------------------------------------------------------------


class LinkWatch(Closing):
    """Follows interfaces by name. A context manager; read it whenever there is time, it never waits."""

    def __init__(self, names: Iterable[str], *, buffer: int = 1 << 20) -> None:
        """Begin to watch. A name that no interface has is ``deleted`` until one comes. ``buffer``: bytes
        that the kernel may keep between two reads; what does not fit is made up for by asking again.
        Raises SetupError."""
        self._watched = {name: _Watched(name) for name in names}
        self.overruns = 0
        """How often the kernel had more to say than ``buffer`` holds."""
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self._socket.bind((0, _GROUP_LINK))
        except OSError as error:
            raise SetupError("watch the interfaces", error.strerror or "", errno=error.errno) from None
        self._resync()  # after the socket listens: nothing falls between

    def fileno(self) -> int:
        """Readable when there is something to read; -1 once closed."""
        return self._socket.fileno()

    def state(self, name: str) -> str:
        """One of :data:`STATES`, as of the last read."""
        return self._watched[name].state

    def link(self, name: str) -> Link | None:
        """The interface as it was last seen, also when it is gone; None: it was never there."""
        return self._watched[name].link

    def __iter__(self) -> Iterator[str]:
        return iter(self._watched)

    def read(self) -> list[LinkEvent]:
        """What happened since the last read, in order."""
        events: list[LinkEvent] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(_READ)
            except BlockingIOError:
                if not lost:
                    return events
                lost = False
                events += self._resync()  # last: what was kept is older than what did not fit
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                self.overruns += 1
                continue
            for kind, link, moved in parse(data):
                if link is not None:
                    events += self._take(kind, link, moved)

    def _resync(self) -> list[LinkEvent]:
        """Compare with what there is now. What came and went meanwhile is not known."""
        now = links()
        by_index = {link.index: link for link in now.values()}
        events: list[LinkEvent] = []
        for one in self._watched.values():
            if one.link is not None and not one.gone and one.link.index not in by_index:
                events += self._take(_DELLINK, one.link, False)
        for link in now.values():
            events += self._take(_NEWLINK, link, False)
        return events

    def _take(self, kind: int, link: Link, moved: bool) -> Iterator[LinkEvent]:
        for one in self._watched.values():
            for word, text in _changes(one, kind, link, moved):
                yield LinkEvent(word, one.name, text, tai_ns())

    def close(self) -> None:
        """End it; twice is calm."""
        self._socket.close()

    def __repr__(self) -> str:
        states = ", ".join(f"{one.name} {one.state}" for one in self._watched.values())
        return f"<LinkWatch {states or 'nothing'}>"


_NOW = {"up": "up", "no_carrier": "without carrier", "down": "down"}
_WORDS = {"up": "up, with carrier", "no_carrier": "carrier lost", "down": "set down"}


def _changes(one: _Watched, kind: int, link: Link, moved: bool) -> Iterator[tuple[str, str]]:
    """What a message says about a watched interface; its state is brought up to date."""
    before = one.link
    if kind == _DELLINK:
        if before is not None and not one.gone and before.index == link.index:
            one.state = "moved" if moved else "deleted"
            yield one.state, "moved to another network namespace" if moved else "deleted"
        return
    if one.gone:
        if not one.answers_to(link.name):
            return
        when = "there" if before is None else "there again"
        one.link, one.state = link, link.state
        yield "created", f"{when}, as interface {link.index}, {_NOW[link.state]}"
        return
    assert before is not None
    if before.index != link.index:
        return
    one.link = link
    if link.name != before.name:
        yield "renamed", f"renamed from {before.name} to {link.name}"
    if link.mtu != before.mtu:
        yield "mtu", f"MTU changed from {before.mtu} to {link.mtu}"
    if link.state != one.state:
        waits = one.state == "down" and link.state == "no_carrier"
        one.state = link.state
        yield link.state, "set up, no carrier yet" if waits else _WORDS[link.state]
