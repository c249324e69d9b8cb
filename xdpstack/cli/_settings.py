"""``--set KEY=VALUE``: keys of a port on the command line, as in TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from xdpstack.errors import ConfigError

__all__ = ["SET", "settings"]

SET: dict[str, Any] = {
    "action": "append",
    "metavar": "KEY=VALUE",
    "help": "a key of the port as in TOML: channels=4, steer=true, irq_cpus=2-3 (NAME.KEY: of one port)",
}
"""Arguments for ``add_argument``."""


def settings(given: Sequence[str] | None) -> dict[str, Any]:
    """Keys and values. A value is TOML, and a word or range without quotes is a string. ConfigError."""
    taken: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--set {text}: wanted KEY=VALUE")
        if key in taken:
            raise ConfigError(f"--set {text}: {key} is set twice")
        try:
            taken[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            taken[key] = value
    return taken
