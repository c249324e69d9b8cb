"""What a protocol's settings class gives, so that an engine's connections may speak it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

__all__ = ["Settings", "Spoken"]


class Spoken(NamedTuple):
    """A protocol as C has it. ``keep`` is held, ``close`` called when nobody speaks it any more."""

    ops: Any
    config: Any
    keep: object = None
    close: Callable[[], object] | None = None


class Settings(Protocol):
    """What a protocol's settings class offers."""

    reasons: ClassVar[Mapping[int, str]]
    """Words for its reasons: of counters, and of a failure's code."""

    def speak(self) -> Spoken:
        """Its table and configuration; may load what it needs. SetupError."""
        ...
