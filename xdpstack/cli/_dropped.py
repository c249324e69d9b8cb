"""``xdpstack capture --dropped``: refused frames to the terminal and into a pcapng file, with the reason."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xdpstack.clock import tai_offset
from xdpstack.dropped import Refused, Source, sources
from xdpstack.errors import ConfigError
from xdpstack.port import PcapWriter

__all__ = ["capture_dropped", "sentence"]

_WAIT = 0.05


def capture_dropped(
    what: str,
    path: str | Path | None = None,
    *,
    every: int = 1,
    count: int = 0,
    seconds: float = 0.0,
    snaplen: int = 65535,
    show: Callable[[Refused], None] | None = None,
    told: Sequence[int] = (),
) -> dict[str, Any]:
    """Take what ``what`` (an interface, or an engine's name or number) refuses, until ``count`` frames,
    ``seconds`` or ``told`` is not empty; each goes to ``show`` and into ``path``.

    Returns what the command prints. ConfigError: not a pcapng; SetupError: nothing to watch."""
    if path is not None and ".pcapng" not in Path(path).suffixes:
        raise ConfigError(f"capture --dropped: {path}: only .pcapng keeps the reason of each packet")
    reasons: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(sources(what, every))
        writer = stack.enter_context(PcapWriter(path, clock="tai", snaplen=snaplen)) if path else None
        numbers: dict[str, int] = {}
        end = time.monotonic() + seconds if seconds else float("inf")
        taken, ended_by = 0, "signal"
        while not told:
            if time.monotonic() >= end:
                ended_by = "seconds"
                break
            for one in _round(opened):
                reasons[f"{one.by}: {one.reason}"] += 1
                taken += 1
                if writer is not None:
                    _write(writer, numbers, one)
                if show is not None:
                    show(one)
                if taken == count:
                    break
            if count and taken >= count:
                ended_by = "count"
                break
        lost = {source.name: source.lost for source in opened}
    return {
        "watched": [source.name for source in opened],
        "file": str(path) if path else None,
        "ended_by": ended_by,
        "frames": taken,
        "every": every,
        "reasons": dict(reasons),
        "lost": lost,
    }


def _round(opened: Sequence[Source]) -> list[Refused]:
    """What all sources have, in order of time; waits a moment when there is nothing."""
    found = [one for source in opened for one in source.read(0.0)]
    if not found:
        found = opened[-1].read(_WAIT)
    return sorted(found, key=lambda one: one.ns)


def _write(writer: PcapWriter, numbers: dict[str, int], one: Refused) -> None:
    if one.by not in numbers:
        numbers[one.by] = writer.add_interface(one.by)
    writer.write(one.ns, one.data, interface=numbers[one.by], orig_len=one.length, comment=str(one))


def sentence(one: Refused, to: str) -> str:
    """One refused frame on the terminal: UTC, where it went to, how long it is, who refused it and why."""
    ns = one.ns - tai_offset() * 1_000_000_000
    clock = time.strftime("%H:%M:%S", time.gmtime(ns // 1_000_000_000))
    return f"{clock}.{ns % 1_000_000_000:09d} to {to} {one.length} bytes; {one}"
