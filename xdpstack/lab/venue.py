"""The venue: plays feeds as multicast in real time, damaged beforehand, so that the truth is known.

    play = Play([feeds.cme(), feeds.iex(), feeds.itch()], faults=Faults(loss=0.01, duplicate=0.005))
    with Player(venue, play, source="10.77.0.1", cpu=0) as player:
        report = player.wait()
    play.truths["itch50"]      # what was sent, undamaged, and every hole

The player is a process of its own, pinned to a core: it sleeps while the next packet is far and spins while
it is near. It sends ``rate_max`` packets a second at most; a play that falls behind its times catches up at
that rate, in bursts of at most ``BURST`` packets, says how late it was, and is given up after ``patience``
times its length and five seconds.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import socket
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from xdpstack.errors import ConfigError, SetupError
from xdpstack.lab import mold
from xdpstack.lab.faults import Faults, impair
from xdpstack.lab.feeds import Feed
from xdpstack.lab.truth import FeedTruth, LineTruth, epochs_of, holes_of

if TYPE_CHECKING:
    from xdpstack.lab.namespace import Namespace

__all__ = ["Play", "Player"]

_SPIN_NS = 150_000
"""Nearer than this to the next packet we spin: a sleep may end that much late."""
_PROGRESS_NS = 100_000_000
BURST = 256
"""Packets that may leave back to back when the play is late: less than any receiver's ring."""


class Play:
    """Feeds merged into one schedule, each line damaged by a seed of its own; and the truth about it."""

    def __init__(
        self, feeds: Sequence[Feed], *, faults: Faults | None = None, rate_max: int = 60_000, seed: int = 1
    ) -> None:
        """``faults``: chances for every line (its seed is replaced by one made of ``seed``, feed and
        line)."""
        self.rate_max = rate_max
        self.truths: dict[str, FeedTruth] = {}
        self.destinations: list[tuple[str, str, str, int, int]] = []
        """``(feed, line, group, port, source port)`` of each line."""
        self.refused = {feed.name: feed.refused for feed in feeds}
        times: list[int] = []
        lines: list[int] = []
        payloads: list[bytes] = []
        for feed in feeds:
            if feed.name in self.truths:
                raise ConfigError(f"play: two feeds are named {feed.name}")
            for number, sent in self._damage(feed, faults or Faults(), seed):
                lines.append(number)
                times.append(sent[0])
                payloads.append(sent[1])
        order = np.argsort(np.array(times, np.int64), kind="stable")
        self.times = [times[at] for at in order]
        """When each packet leaves, ns from the start."""
        self.lines = [lines[at] for at in order]
        """Which destination it goes to."""
        self.payloads = [payloads[at] for at in order]

    def __repr__(self) -> str:
        return f"<Play of {', '.join(self.truths)}: {len(self.times)} packets in {self.seconds:.1f} s>"

    @property
    def seconds(self) -> float:
        """How long it lasts when nothing is late."""
        return self.times[-1] / 1e9 if self.times else 0.0

    def _damage(self, feed: Feed, faults: Faults, seed: int) -> list[tuple[int, tuple[int, bytes]]]:
        epochs, places = epochs_of(feed.session, (payload for _, payload in feed.lines[0].packets))
        kept = set(feed.guarded)
        out: list[tuple[int, tuple[int, bytes]]] = []
        truths: list[LineTruth] = []
        carried = []
        for line in feed.lines:
            if len(line.packets) != len(places):
                raise ConfigError(
                    f"{feed.name}: line {line.name} has not the packets of line {feed.lines[0].name}"
                )
            own = replace(faults, seed=zlib.crc32(f"{seed}/{feed.name}/{line.name}".encode()))
            result = impair(line.packets, own, lose=set(feed.holes), keep=kept)
            number = len(self.destinations)
            self.destinations.append((feed.name, line.name, line.group, line.port, line.source_port))
            out += [(number, (sent.ns, sent.payload)) for sent in result.packets]
            lost = set(result.truth.lost) | set(result.truth.overflowed)
            kept |= lost
            carried.append([place for index, place in enumerate(places) if index not in lost])
            truths.append(
                LineTruth(
                    name=line.name,
                    group=line.group,
                    port=line.port,
                    source_port=line.source_port,
                    offered=len(line.packets),
                    sent=len(result.packets),
                    bytes=sum(len(sent.payload) for sent in result.packets),
                    lost=sorted(lost),
                    duplicated=result.truth.duplicated,
                    moved=result.truth.moved,
                    lost_units=sum(places[index][2] for index in lost),
                )
            )
        holes = holes_of(epochs, carried, feed.refused)
        self.truths[feed.name] = FeedTruth(
            name=feed.name, session=feed.session, epochs=epochs, lines=truths, holes=holes
        )
        return out

    def answerer(self, feed: str, *, loss: float = 0.0, seed: int = 0) -> mold.Answerer:
        """The request server's mind for a MoldUDP64 feed of this play."""
        refused = self.refused[feed]
        if refused is None:
            raise ConfigError(f"feed {feed} has no request server")
        return mold.Answerer(self.truths[feed].epochs, refused=refused, loss=loss, seed=seed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "packets": len(self.times),
            "seconds": self.seconds,
            "rate_max": self.rate_max,
            "feeds": {name: truth.as_dict() for name, truth in self.truths.items()},
        }

    def save(self, folder: Path) -> None:
        """Write every feed's truth into a folder, and ``play.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        for truth in self.truths.values():
            truth.save(folder)
        (folder / "play.json").write_text(json.dumps(self.as_dict()))


class Player:
    """Sends a play from a namespace, by kernel sockets, in a process of its own. Start it again for another
    run."""

    def __init__(
        self, namespace: Namespace, play: Play, *, source: str, cpu: int | None = 0, patience: float = 5.0
    ) -> None:
        """``source``: the namespace's own address that packets come from; ``cpu``: the core to run on."""
        self.namespace = namespace
        self.play = play
        self.source = source
        self.cpu = cpu
        self.patience = patience
        self.report: dict[str, Any] | None = None
        self._child: Any = None
        self._pipe = -1
        self._rest = b""

    def __enter__(self) -> Player:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Player:
        """Open the sockets and begin to play; SetupError when an address cannot be had."""
        self.close()
        self.report = None
        try:
            sockets = [self._socket(*destination[2:]) for destination in self.play.destinations]
        except OSError as error:
            raise SetupError(f"play from {self.source}", str(error)) from error
        reader, writer = os.pipe()

        def run() -> int:
            os.close(reader)
            return _play(self.play, sockets, writer, self.cpu, self.patience)

        self._child = self.namespace.fork(run)
        os.close(writer)
        for opened in set(sockets):
            opened.close()
        self._pipe, self._rest = reader, b""
        os.set_blocking(reader, False)
        return self

    def _socket(self, group: str, port: int, source_port: int) -> socket.socket:
        opened = self.namespace.socket()
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(self.source))
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            opened.bind((self.source, source_port))
            opened.connect((group, port))
        except BaseException:
            opened.close()
            raise
        return opened

    @property
    def running(self) -> bool:
        """Whether the process still plays."""
        return self._child is not None and self._child.poll() is None

    def progress(self) -> dict[str, Any] | None:
        """The newest word from the process: ``sent``, ``total``, ``seconds``; None when there is nothing
        new."""
        newest = None
        while True:
            try:
                piece = os.read(self._pipe, 65536) if self._pipe >= 0 else b""
            except BlockingIOError:
                break
            if not piece:
                break
            self._rest += piece
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            word = json.loads(line)
            if "lines" in word:
                self.report = word
            newest = word
        return newest

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end and return the report; TimeoutError after ``timeout`` seconds.

        ``lines``: packets and bytes sent by feed and line; ``complete``; ``refused`` sends; ``late_ns``
        median, p99 and max behind schedule; ``seconds``, and of them ``cpu_seconds`` on the core.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._child is not None and self._child.poll() is None:
            self.progress()
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"the player still plays after {timeout} s")
            select.select([self._pipe], [], [], 0.05)
        self.progress()
        if self.report is None:
            code = None if self._child is None else self._child.returncode
            raise SetupError("play", f"the player ended with code {code} before it could report")
        return self.report

    def close(self) -> None:
        """End the play at once."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(2)
            self._child = None
        if self._pipe >= 0:
            self.progress()
            os.close(self._pipe)
            self._pipe = -1


def _play(play: Play, sockets: list[socket.socket], pipe: int, cpu: int | None, patience: float) -> int:
    """The player's process."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    signal.signal(signal.SIGINT, lambda *_: stopping.append(1))
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    gc.disable()
    sends = [opened.send for opened in sockets]
    total, spacing = len(play.times), 1_000_000_000 // play.rate_max
    counts, sizes, refused = [0] * len(sends), [0] * len(sends), 0
    late = np.zeros(total, np.int64)
    clock, sleep = time.monotonic_ns, time.sleep
    begin = clock() + 1_000_000
    limit = begin + int(play.seconds * 1e9 * patience) + 5_000_000_000
    due = told = begin
    done = 0
    for offset, line, payload in zip(play.times, play.lines, play.payloads, strict=True):
        due = max(begin + offset, due + spacing)
        now = clock()
        while now < due:
            if due - now > _SPIN_NS:
                sleep(min((due - now - _SPIN_NS) / 1e9, 0.05))
                if stopping:
                    break
            now = clock()
        if now - told > _PROGRESS_NS:
            told = now
            if (
                stopping
                or now > limit
                or not _tell(pipe, {"sent": done, "total": total, "seconds": (now - begin) / 1e9})
            ):
                break
        if stopping:
            break
        try:
            sends[line](payload)
        except OSError as error:
            if not _again(sends[line], payload, error):
                refused += 1
                continue
        late[done] = now - begin - offset
        due = max(due, now - BURST * spacing)  # catch up by short bursts only
        counts[line] += 1
        sizes[line] += len(payload)
        done += 1
    behind = late[:done] if done else np.zeros(1, np.int64)
    lines = [
        {"feed": feed, "line": name, "group": group, "port": port, "packets": counts[at], "bytes": sizes[at]}
        for at, (feed, name, group, port, _) in enumerate(play.destinations)
    ]
    word = {
        "complete": done == total,
        "sent": done,
        "total": total,
        "refused": refused,
        "seconds": (clock() - begin) / 1e9,
        "cpu_seconds": time.process_time(),
        "late_ns": {
            "p50": int(np.percentile(behind, 50)),
            "p99": int(np.percentile(behind, 99)),
            "max": int(behind.max()),
        },
        "lines": lines,
    }
    os.set_blocking(pipe, True)
    _tell(pipe, word)
    return 0 if done == total else 1


def _tell(pipe: int, word: dict[str, Any]) -> bool:
    """Write one line to the parent; False when it is gone. Progress that finds the pipe full is dropped."""
    try:
        os.write(pipe, json.dumps(word).encode() + b"\n")
    except BlockingIOError:
        return True
    except BrokenPipeError:
        return False
    return True


def _again(send: Any, payload: bytes, error: OSError) -> bool:
    """Try a send again that the kernel put off; False when it will not have it."""
    for _ in range(200):
        if error.errno not in (errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM, errno.ENETDOWN, errno.ENETUNREACH):
            return False
        time.sleep(0.0005)
        try:
            send(payload)
        except OSError as latest:
            error = latest
        else:
            return True
    return False
