"""Numbers on the command line: each type refuses what no command means, such as nan or a negative time."""

from __future__ import annotations

import argparse
import math

__all__ = ["count", "microseconds", "seconds", "some_seconds", "speed"]


def count(text: str) -> int:
    """A whole number from 0 to 2**32 - 1: what a bound of the native core holds."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 0 <= value < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {(1 << 32) - 1}")
    return value


def seconds(text: str) -> float:
    """A time of 0 seconds or more, at most a century."""
    return _from_zero(text, "a number of seconds, 0 or more", 100 * 366 * 86400.0)


def some_seconds(text: str) -> float:
    """A time above 0."""
    value = seconds(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def microseconds(text: str) -> float:
    """A time of 0 µs or more, at most a thousand seconds."""
    return _from_zero(text, "a number of µs, 0 or more", 1e9)


def speed(text: str) -> float:
    """A factor of 0 (flat out) or more."""
    return _from_zero(text, "a speed, 0 (flat out) or more", 1e12)


def _from_zero(text: str, what: str, limit: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= limit:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
