"""What can go wrong, by whose fault it is and what to do about it."""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "ConfigError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "SetupError",
    "XdpstackError",
]


class XdpstackError(Exception):
    """The root of everything that this package raises on purpose."""


class ConfigError(XdpstackError, ValueError):
    """The caller's words: a bad rule, TOML key or flag. One sentence with file, line and key."""


class SetupError(XdpstackError, OSError):
    """The host refused: what was tried, why it failed, the command that mends it."""

    def __init__(self, tried: str, reason: str = "", remedy: str = "", errno: int | None = None) -> None:
        self.tried, self.reason, self.remedy = tried, reason, remedy
        text = tried + (f": {reason}" if reason else "") + (f"; {remedy}" if remedy else "")
        super().__init__(text)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class LocalProtocolError(XdpstackError):
    """A call that the protocol does not allow now: a bug on our side."""


class RemoteProtocolError(XdpstackError):
    """The peer or the venue sent what its specification does not allow."""


class CapacityError(XdpstackError):
    """A bound was reached; the message names the bound and its unit."""
