"""The records of a tape or a ring on disk, and back: ``xdpstack shm record`` and ``play``.

The file is a pcapng (``.pcapng``, ``.zst`` or ``.gz`` behind it) with one interface of link type USER1. Its
first record is ``SHM1`` and JSON: what kind of segment it was, its bytes and its words. Each further record
is the number (u64, of a ring from 1 on in the file), the writer's kind (u32), how many were lost before it
(u32), then the data; its stamp is CLOCK_TAI when it was read.
"""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xdpstack import shm
from xdpstack._ffi import ffi, lib
from xdpstack.clock import tai_ns
from xdpstack.describe import described
from xdpstack.errors import CapacityError, SetupError
from xdpstack.port import PcapPort, PcapWriter
from xdpstack.ring import Ring
from xdpstack.tape import Tape, TapeReader, make_tape

__all__ = ["play", "record"]

_MAGIC, _USER1 = b"SHM1", 148
_HEAD = struct.Struct("=QII")
_MOST = (1 << 24) - _HEAD.size
_SLICE = 0.05
_Found = list[tuple[int, int, bytes, int]]  # number, kind, data, lost before it


def record(
    segment: Path,
    out: str | Path,
    *,
    oldest: bool = False,
    most: int | None = None,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Write what comes until the writer finishes, ``most`` records, ``seconds`` have passed or ``stop()``. A
    ring's records are taken from it: this is its reader. Returns ``records`` and ``lost``. Raises SetupError,
    CapacityError."""
    counts = {"records": 0, "lost": 0}
    end = None if seconds is None else time.monotonic() + seconds
    with contextlib.ExitStack() as undo:
        kind = shm.look(segment)["kind"]
        source: Iterator[_Found]
        if kind == "ring":
            ring = undo.enter_context(Ring.open(segment))
            text, size, source = _ring_text(ring), ring.size, _of_ring(ring)
        else:
            reader = undo.enter_context(TapeReader.open(segment, "record", oldest=oldest))
            text, size, source = _tape_text(reader.pointer), reader.size, _of_tape(reader)
        writer = undo.enter_context(contextlib.closing(PcapWriter(out, clock="tai", snaplen=1 << 24)))
        writer.add_interface(segment.name, _USER1)
        about = {"kind": kind, "bytes": size, "text": text, "path": str(segment)}
        writer.write(tai_ns(), _MAGIC + json.dumps(about).encode())
        for found in source:
            now = tai_ns()
            for number, word, data, lost in found:
                if len(data) > _MOST:
                    raise CapacityError(f"record {number} has {len(data)} bytes: a recording keeps {_MOST}")
                writer.write(now, _HEAD.pack(number, word, lost) + data)
                counts["records"] += 1
                counts["lost"] += lost
                if most is not None and counts["records"] >= most:
                    return counts
            if stop() or (end is not None and time.monotonic() > end):
                return counts
    return counts


def _of_tape(reader: TapeReader) -> Iterator[_Found]:
    while True:
        try:
            batch = reader.read()
        except EOFError:
            return
        lost = batch.lost
        found: _Found = []
        for one in batch:
            found.append((one.number, one.kind, one.data.tobytes(), min(lost, 0xFFFFFFFF)))
            lost = 0
        yield found
        if not found:
            reader.wait(_SLICE)


def _of_ring(ring: Ring) -> Iterator[_Found]:
    number = 0
    while True:
        try:
            records = ring.read()
        except EOFError:
            return
        yield [(number + i, r.kind, r.data.tobytes(), 0) for i, r in enumerate(records, 1)]
        number += len(records)
        ring.release()  # on disk, or on its way there: what a killed recorder had not written comes again
        if not records:
            ring.wait(_SLICE)


def _tape_text(head: Any) -> str:
    return bytes(ffi.string(head.text, lib.XDS_TAPE_TEXT)).decode(errors="replace")


def _ring_text(ring: Ring) -> str:
    return bytes(ffi.string(lib.xds_ring_text(ring.pointer), lib.XDS_RING_TEXT)).decode(errors="replace")


def play(
    recording: str | Path,
    segment: Path | None = None,
    *,
    speed: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Write a recording into a segment as it was recorded (``speed`` 0: flat out), and finish it. One that is
    not there is made as the recorded one was, by its name where none is said. A full ring is waited for.
    Returns ``records`` and ``lost``, as when it was recorded. SetupError, CapacityError."""
    counts = {"records": 0, "lost": 0}
    with PcapPort(recording, window=(1 << 24) + 65536, all_types=True) as port:
        about = _about(port, recording)
        path = segment or Path(about["path"])
        with contextlib.closing(_target(path, about)) as target:
            began, first = time.monotonic(), None
            while frames := port.receive(64):
                for frame in frames:
                    first = frame.rx_ns if first is None else first
                    ahead = (frame.rx_ns - first) / 1e9 / speed - (time.monotonic() - began) if speed else 0.0
                    if ahead > 0.0005:
                        time.sleep(ahead)
                    if stop():
                        return counts
                    _, word, lost = _HEAD.unpack_from(frame.data)
                    _put(target, bytes(frame.data[_HEAD.size :]), word, stop)
                    counts["records"] += 1
                    counts["lost"] += lost
            target.finish()
    return counts


def _about(port: PcapPort, recording: str | Path) -> dict[str, Any]:
    frames = port.receive(1)
    data = bytes(frames[0].data) if frames else b""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if data.startswith(_MAGIC):
            about: dict[str, Any] = json.loads(data[len(_MAGIC) :])
            if about["kind"] in ("tape", "ring") and int(about["bytes"]) and str(about["path"]):
                return {**about, "text": str(about["text"])}
    raise SetupError(f"play {recording}", "it is no recording of a tape or a ring")


def _target(path: Path, about: dict[str, Any]) -> Tape | Ring:
    """The segment's writing side."""
    if path.exists():
        return Ring.open(path, "writer") if shm.look(path)["kind"] == "ring" else Tape.open(path)
    text = about["text"].encode()
    form = described(text)
    if about["kind"] == "ring":
        return Ring.create(path, int(about["bytes"]), dtype=form)
    make_tape(path, int(about["bytes"]), dtype=form)
    tape = Tape.open(path)
    if form is None:  # an engine's: it says of itself what it holds
        ffi.buffer(tape.pointer.text)[:] = text.ljust(lib.XDS_TAPE_TEXT, b"\0")
    return tape


def _put(target: Tape | Ring, data: bytes, kind: int, stop: Callable[[], bool]) -> None:
    if isinstance(target, Tape):
        target.write(data, kind)
        return
    while not target.write(kind, data) and not stop():
        time.sleep(0.0002)
