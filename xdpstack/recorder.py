"""A tap on every port of an engine, into a pcapng that replays bit for bit.

The interface "turns" of the file opens with one record that says what was running (feeds, channels,
addresses), as JSON behind the magic ``CONF``; then come the turn blocks (``xds/recorder.h``). So a
recording needs no other file to be run again: ``xdpstack feed replay RECORDING``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from xdpstack._ffi import check, ffi, lib
from xdpstack.engine import Engine
from xdpstack.errors import SetupError
from xdpstack.feed import ChannelConfig, FeedConfig
from xdpstack.port import PcapPort, PcapWriter, Subscription
from xdpstack.ring import Ring
from xdpstack.tap import Drained

__all__ = ["Recorder", "Recording"]

_CONF = b"CONF"
_ETHERNET, _USER0 = 1, 147
_RING_BYTES = 64 << 20


class Recorder(Drained):
    """Records an engine from construction to close. Raises OSError, ConfigError. With a record lost, the file
    cannot be replayed bit for bit."""

    what, pieces = "recording", "records"

    def __init__(
        self,
        path: str | Path,
        engine: Engine,
        plan: dict[str, Any],
        *,
        ring_bytes: int = _RING_BYTES,
        cpu: int = -1,
    ) -> None:
        self.path, self._engine = Path(path), engine
        self._writer = PcapWriter(path, clock="tai", snaplen=1 << 17)
        for port in range(len(engine.ports)):
            self._writer.add_interface(f"port{port}", _ETHERNET)
        turns = self._writer.add_interface("turns", _USER0)
        self._writer.write(0, _CONF + json.dumps(plan).encode(), interface=turns)
        self._ring, self._ring_bytes = Ring(ring_bytes), ring_bytes
        self._core = ffi.cast("struct xds_recorder *", engine.arena.alloc(lib.xds_recorder_size()))
        check(
            lib.xds_recorder_init(self._core, self._ring.pointer, self._writer.handle, len(engine.ports)),
            "recorder",
        )
        check(lib.xds_recorder_start(self._core, cpu), "recorder thread")
        lib.xds_engine_set_recorder(engine.core, self._core)

    def _untie(self) -> None:
        lib.xds_engine_set_recorder(self._engine.core, ffi.NULL)

    def __repr__(self) -> str:
        return f"<Recorder {self.path}: {self.written} records, {self.lost} lost>"


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """What a recording of ours says of itself."""

    turns: int  # number of the interface with the turn blocks, frame.queue
    plan: dict[str, Any]

    @classmethod
    def of(cls, path: str | Path) -> Recording | None:
        """None where the capture is somebody else's. SetupError: it is ours, and damaged."""
        with PcapPort(path, all_types=True) as port:
            for frame in port.receive(1, lib.XDS_NEVER):
                if bytes(frame.data[:4]) == _CONF:
                    try:
                        found = cls(frame.queue, json.loads(bytes(frame.data[4:])))
                        found.feeds(), found.requests()
                    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                        raise SetupError(f"read recording {path}", "its description is damaged") from None
                    return found
        return None

    def feeds(self) -> list[FeedConfig]:
        """The feeds that were running, as they were configured."""
        return [feed_from_plan(feed) for feed in self.plan["feeds"]]

    def requests(self) -> dict[str, tuple[str, int]]:
        """By feed, the address and port that answers of its request server came to."""
        return {name: (str(address), int(port)) for name, (address, port) in self.plan["requests"].items()}


def feed_to_plan(config: FeedConfig) -> dict[str, Any]:
    """A feed's configuration as JSON values."""
    return dataclasses.asdict(config)


def feed_from_plan(plan: dict[str, Any]) -> FeedConfig:
    """The inverse of :func:`feed_to_plan`."""
    channels = []
    for channel in plan["channels"]:
        lines = tuple(Subscription(**line) for line in channel["lines"])
        request = Subscription(**channel["request"]) if channel["request"] else None
        channels.append(ChannelConfig(**{**channel, "lines": lines, "request": request}))
    return FeedConfig(**{**plan, "channels": tuple(channels)})
