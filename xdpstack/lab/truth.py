"""What a venue sent, undamaged, and a verifier for what somebody claims to have received of it.

A feed is a row of *epochs* (a MoldUDP64 session, an IEX-TP run between two restarts, a CME channel), an
epoch a row of *units* with consecutive sequences: messages with their length in front as they were on the
wire (MoldUDP64, IEX-TP) or packet bodies (CME). So a block of delivered messages is compared by one
comparison of bytes.

The promise that a :class:`Verifier` holds a receiver to: every unit was delivered once, in order, byte by
byte, or lies in a gap that the receiver reported as open; and no reported gap was delivered as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xdpstack.errors import ConfigError

__all__ = ["Epoch", "FeedTruth", "Hole", "LineTruth", "Report", "Verifier", "epochs_of", "parse"]


def parse(session: str, payload: bytes) -> tuple[bytes, int, int, bytes]:
    """``(session name, sequence, units, units as framed)`` of a whole packet of a venue that keeps its own
    rules.

    Sessions: ``mold64``, ``iextp``, ``cme``, ``plain``. For undamaged packets: no length is checked.
    """
    if session == "mold64":
        count = int.from_bytes(payload[18:20], "big")
        return (
            payload[:10],
            int.from_bytes(payload[10:18], "big"),
            0 if count == 0xFFFF else count,
            payload[20:],
        )
    if session == "iextp":
        count = int.from_bytes(payload[14:16], "little")
        return b"", int.from_bytes(payload[24:32], "little"), count, payload[40:]
    if session == "cme":
        return b"", int.from_bytes(payload[:4], "little"), 1, payload[12:]
    if session == "plain":
        return b"", int.from_bytes(payload[:4], "little"), 1, payload[8:]
    raise ConfigError(f"session {session!r}: mold64, iextp, cme or plain")


def _unit_sizes(session: str, body: bytes, count: int) -> list[int]:
    if session in ("cme", "plain"):
        return [len(body)]
    order, at, sizes = ("big" if session == "mold64" else "little"), 0, []
    for _ in range(count):
        size = 2 + int.from_bytes(body[at : at + 2], order)  # type: ignore[arg-type]
        sizes.append(size)
        at += size
    return sizes


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """Units with consecutive sequences."""

    session: bytes
    """MoldUDP64: its ten bytes; empty elsewhere."""
    first: int
    """Sequence of the first unit."""
    bounds: Any
    """int64 array: where unit i begins in ``data``, with the end behind the last."""
    data: bytes

    @property
    def count(self) -> int:
        """Units."""
        return len(self.bounds) - 1

    def slice(self, sequence: int, count: int) -> bytes:
        """Units ``sequence`` to ``sequence + count - 1`` as they were on the wire."""
        at = sequence - self.first
        return self.data[int(self.bounds[at]) : int(self.bounds[at + count])]

    def digest(self) -> str:
        """SHA-256 of all units."""
        return hashlib.sha256(self.data).hexdigest()


def epochs_of(session: str, payloads: Iterable[bytes]) -> tuple[list[Epoch], list[tuple[int, int, int]]]:
    """The epochs of an undamaged line, and for each of its packets ``(epoch, sequence, units)``.

    An epoch begins with another session name, or where the sequence is not the next one: a restart.
    """
    epochs: list[Epoch] = []
    places: list[tuple[int, int, int]] = []
    name, first, following = b"", 0, -1
    bodies: list[bytes] = []
    sizes: list[int] = []

    def close() -> None:
        bounds = np.concatenate(([0], np.cumsum(np.array(sizes, np.int64))))
        epochs.append(Epoch(name, first, bounds, b"".join(bodies)))

    for payload in payloads:
        session_name, sequence, count, body = parse(session, payload)
        if following < 0 or session_name != name or sequence != following:
            if following >= 0:
                close()
            name, first, bodies, sizes = session_name, sequence, [], []
        places.append((len(epochs), sequence, count))
        if count:
            own = _unit_sizes(session, body, count)
            bodies.append(body[: sum(own)])
            sizes += own
        following = sequence + count
    if following >= 0:
        close()
    return epochs, places


@dataclass(slots=True, kw_only=True)
class LineTruth:
    """What was done to one line; packets count from 0 in the undamaged line."""

    name: str
    group: str
    port: int
    source_port: int
    offered: int
    sent: int
    """Packets that leave, copies included."""
    bytes: int
    """UDP payload of them."""
    lost: list[int]
    duplicated: list[int]
    moved: list[int]
    lost_units: int
    """Sequence units that this line never carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """Units that no line carries."""

    epoch: int
    first: int
    count: int
    served: bool
    """The request server gives them out."""


@dataclass(slots=True, kw_only=True)
class FeedTruth:
    """Everything there is to know about what the venue sends of a feed."""

    name: str
    session: str
    epochs: list[Epoch]
    lines: list[LineTruth]
    holes: list[Hole]

    @property
    def units(self) -> int:
        """Units of all epochs."""
        return sum(epoch.count for epoch in self.epochs)

    @property
    def open_units(self) -> int:
        """Units that nobody can have: in a hole that no request fills."""
        return sum(hole.count for hole in self.holes if not hole.served)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: counts, digests and holes, without the units themselves."""
        return {
            "name": self.name,
            "session": self.session,
            "units": self.units,
            "open_units": self.open_units,
            "epochs": [
                {
                    "session": epoch.session.decode("ascii", "replace"),
                    "first": epoch.first,
                    "count": epoch.count,
                    "sha256": epoch.digest(),
                }
                for epoch in self.epochs
            ],
            "lines": [asdict(line) for line in self.lines],
            "holes": [asdict(hole) for hole in self.holes],
        }

    def save(self, folder: Path) -> None:
        """Write ``NAME.truth.json`` and ``NAME.truth.npz`` (the units) into a folder."""
        (folder / f"{self.name}.truth.json").write_text(json.dumps(self.as_dict()))
        arrays: dict[str, Any] = {}
        for number, epoch in enumerate(self.epochs):
            arrays[f"bounds{number}"] = epoch.bounds
            arrays[f"data{number}"] = np.frombuffer(epoch.data, np.uint8)
        np.savez(folder / f"{self.name}.truth.npz", **arrays)

    @classmethod
    def load(cls, folder: Path, name: str) -> FeedTruth:
        """Read what :meth:`save` wrote."""
        told = json.loads((folder / f"{name}.truth.json").read_text())
        with np.load(folder / f"{name}.truth.npz") as arrays:
            epochs = [
                Epoch(
                    epoch["session"].encode("ascii"),
                    epoch["first"],
                    arrays[f"bounds{number}"],
                    arrays[f"data{number}"].tobytes(),
                )
                for number, epoch in enumerate(told["epochs"])
            ]
        return cls(
            name=told["name"],
            session=told["session"],
            epochs=epochs,
            lines=[LineTruth(**line) for line in told["lines"]],
            holes=[Hole(**hole) for hole in told["holes"]],
        )


def holes_of(
    epochs: Sequence[Epoch],
    carried: Sequence[Sequence[tuple[int, int, int]]],
    refused: Sequence[tuple[bytes, int, int]] | None,
) -> list[Hole]:
    """The ranges that no line carries, from ``(epoch, sequence, units)`` of each line's surviving packets.

    ``refused``: ranges (session, first, count) that the request server refuses; None: there is no such
    server.
    """
    holes = []
    for number, epoch in enumerate(epochs):
        cover = np.zeros(epoch.count, bool)
        for line in carried:
            for which, sequence, count in line:
                if which == number:
                    cover[sequence - epoch.first : sequence - epoch.first + count] = True
        served = np.full(epoch.count, refused is not None)
        for session, first, count in refused or ():
            if session == epoch.session:
                served[max(0, first - epoch.first) : max(0, first - epoch.first + count)] = False
        missing = np.flatnonzero(~cover)
        if not len(missing):
            continue
        breaks = np.flatnonzero((np.diff(missing) != 1) | (served[missing[1:]] != served[missing[:-1]])) + 1
        for run in np.split(missing, breaks):
            start = int(run[0])
            holes.append(
                Hole(epoch=number, first=epoch.first + start, count=len(run), served=bool(served[start]))
            )
    return holes


@dataclass(slots=True)
class Report:
    """A verifier's finding."""

    units: int = 0
    delivered: int = 0
    open: int = 0
    """Units in gaps that were reported as open."""
    silent: int = 0
    """Units neither delivered nor reported: the promise is broken."""
    needless: int = 0
    """Units reported open although a line carried them or the server had them: no breach, but no glory."""
    faults: list[str] = field(default_factory=list)
    """The first breaches, a sentence each."""
    breaches: int = 0

    @property
    def ok(self) -> bool:
        """Whether the promise held."""
        return self.breaches == 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ok": self.ok}


class Verifier:
    """Holds a receiver's blocks and gaps against the truth, as they come."""

    FAULTS_KEPT = 20

    def __init__(self, truth: FeedTruth) -> None:
        self.truth = truth
        self.epoch = 0
        self._report = Report(units=truth.units)
        self._next = [epoch.first for epoch in truth.epochs]
        self._missing: list[list[tuple[int, int]]] = [[] for _ in truth.epochs]
        self._gaps: list[list[tuple[int, int]]] = [[] for _ in truth.epochs]

    def _fault(self, sentence: str) -> None:
        self._report.breaches += 1
        if len(self._report.faults) < self.FAULTS_KEPT:
            self._report.faults.append(f"{self.truth.name}: {sentence}")

    def restart(self, session: bytes | None = None) -> None:
        """The receiver entered the next epoch, or the one of a session name."""
        names = [epoch.session for epoch in self.truth.epochs]
        if session is None:
            following = self.epoch + 1
        elif session in names:
            following = names.index(session)
        else:
            following = len(names)
        if following >= len(names):
            self._fault(f"a restart after epoch {self.epoch} that the venue never made ({session!r})")
            return
        self.epoch = following

    def block(self, sequence: int, data: bytes | memoryview) -> None:
        """The receiver delivered framed units (CME, plain: one packet's body) from ``sequence`` on."""
        epoch, expected = self.truth.epochs[self.epoch], self._next[self.epoch]
        if sequence < expected:
            self._fault(f"sequence {sequence} of epoch {self.epoch} came again or late, {expected} was next")
            return
        if sequence >= epoch.first + epoch.count:
            self._fault(f"sequence {sequence} of epoch {self.epoch} was never sent")
            return
        begin = int(epoch.bounds[sequence - epoch.first])
        end = begin + len(data)
        behind = int(np.searchsorted(epoch.bounds, end))
        if end > len(epoch.data) or int(epoch.bounds[behind]) != end or behind == sequence - epoch.first:
            self._fault(
                f"the block at {sequence} of epoch {self.epoch} has {len(data)} bytes: no whole units"
            )
            return
        if epoch.data[begin:end] != data:
            self._fault(f"the block at {sequence} of epoch {self.epoch} has other bytes than were sent")
        if sequence > expected:
            self._missing[self.epoch].append((expected, sequence))
        self._next[self.epoch] = epoch.first + behind
        self._report.delivered += epoch.first + behind - sequence

    def gap(self, first: int, count: int, epoch: int | None = None) -> None:
        """The receiver reported units as an open gap, of the current epoch unless said otherwise."""
        where = self.epoch if epoch is None else epoch
        if not 0 <= where < len(self._gaps):
            self._fault(f"a gap in epoch {where}, which the venue never made")
            return
        self._gaps[where].append((first, first + count))

    def report(self) -> Report:
        """The finding; the receiver has said all."""
        report = self._report
        for number, epoch in enumerate(self.truth.epochs):
            missing = np.zeros(epoch.count, bool)
            for first, behind in [*self._missing[number], (self._next[number], epoch.first + epoch.count)]:
                missing[first - epoch.first : behind - epoch.first] = True
            said = np.zeros(epoch.count, bool)
            for first, behind in self._gaps[number]:
                low, high = max(0, first - epoch.first), min(epoch.count, behind - epoch.first)
                said[low:high] = True
                if low != first - epoch.first or high != behind - epoch.first:
                    self._fault(
                        f"the gap {first}..{behind - 1} of epoch {number} holds units that were never sent"
                    )
            for what, where in (
                ("reported open but delivered", said & ~missing),
                ("silently missing", missing & ~said),
            ):
                if where.any():
                    at = epoch.first + int(np.flatnonzero(where)[0])
                    self._fault(f"{int(where.sum())} units of epoch {number} {what}, the first is {at}")
            hopeless = np.zeros(epoch.count, bool)
            for hole in self.truth.holes:
                if hole.epoch == number and not hole.served:
                    hopeless[hole.first - epoch.first : hole.first - epoch.first + hole.count] = True
            report.open += int(said.sum())
            report.silent += int((missing & ~said).sum())
            report.needless += int((said & ~hopeless).sum())
        return report
