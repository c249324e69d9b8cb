"""A record of an engine's tape as plain words and figures, for who looks on: ``xdpstack shm tail``."""

from __future__ import annotations

from typing import Any

import numpy as np

from xdpstack.publish import News
from xdpstack.tls import tls_words

__all__ = ["as_plain"]

_BYTES = 256  # of data that are shown


def as_plain(news: News) -> dict[str, Any]:
    """What a record says, as JSON has it. Data is text where it is printable, else hex; 256 bytes of it."""
    found: dict[str, Any] = {"now": int(news.now), "turn": int(news.turn)}
    if news.kind == "answer":
        number, refused = news.answer()
        return {**found, "number": number, "refused": refused, "connection": news.connection()}
    if news.kind == "state":
        return {**found, **_plain(news.state())}
    if news.kind == "stream":
        return {**found, **_fields(news.stream())}
    if news.kind in ("tls", "ws", "fix"):
        said = news.session()
        return {**found, **_fields(said), **(tls_words(said) if news.kind == "tls" else {})}
    if news.kind == "messages":
        return {**found, "messages": [{**_row(row), "data": _bytes(data)} for row, data in news.messages()]}
    if news.kind == "updates":
        found |= {"feed": news.feed, "channel": int(news.channel)}
    return {**found, news.kind: [_row(row) for row in news.rows]}


def _fields(said: Any) -> dict[str, Any]:
    """Those of a record about a connection that say something."""
    values = {name: _plain(value) for name, value in said._asdict().items()}
    return {name: value for name, value in values.items() if value or name in ("port", "connection", "ns")}


def _row(row: np.void) -> dict[str, Any]:
    return {name: _plain(row[name]) for name in row.dtype.names or ()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return _bytes(value.tobytes())
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, bytes):
        return _bytes(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value] if any(value) else []
    return value


def _bytes(data: bytes) -> str:
    shown = data[:_BYTES]
    text = shown.decode(errors="replace").replace("\x01", "|")  # FIX ends fields with SOH
    return text if text.isprintable() and "\ufffd" not in text else shown.hex()
