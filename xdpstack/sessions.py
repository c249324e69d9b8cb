"""Sessions over TCP connections of a free-running engine: what there may be, and what the tape tells of them.

A profile is a ``[[session]]`` table; a ``connect`` command names one, and the connection then speaks its
protocol (:mod:`xdpstack.publish`). Each protocol has a settings class in :data:`PROTOCOLS`: a frozen
dataclass whose fields are its keys in TOML, which raises ConfigError (``KEY: what is wrong``) for what cannot
be, and whose ``speak()`` gives the table of calls (``cffi_build/xds/session.h``) with its configuration.

    [[session]]
    name = "exchange"
    protocol = "ws"            # its keys follow; see the class
    host = "stream.exchange.example"
    tls = false                # true: over TLS, whose keys are here too
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xdpstack._ffi import check, ffi, lib, names
from xdpstack.closing import Closing
from xdpstack.errors import ConfigError, RemoteProtocolError
from xdpstack.feed import fault
from xdpstack.fix import FixSettings
from xdpstack.memory import Arena
from xdpstack.spoken import Settings, Spoken
from xdpstack.tls import TlsSettings
from xdpstack.ws import WsSettings

__all__ = [
    "KINDS",
    "PROTOCOLS",
    "Profiles",
    "SessionConfig",
    "SessionNews",
    "Settings",
    "Spoken",
    "session_news",
    "session_stats",
]

KINDS: dict[int, str] = names("xds_session_kind", "XDS_SESSION_")
"""Protocols by number: ``tls``, ``ws``, ``fix``."""
_WHAT = names("xds_session_what", "XDS_SESSION_")
_SIZE = int(ffi.sizeof("struct xds_publish_session"))
_STATS = "struct xds_publish_session_stats"


PROTOCOLS: dict[str, type[Any]] = {"fix": FixSettings, "tls": TlsSettings, "ws": WsSettings}
"""Settings by the word of ``protocol``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """One ``[[session]]``: what a connection may be opened as."""

    name: str
    protocol: str
    settings: Any
    tls: Any = None
    """Settings of TLS under it."""

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> SessionConfig:
        """From the keys of a table. ConfigError: ``KEY: what is wrong``."""
        rest = dict(table)
        name, protocol, secured = rest.pop("name", None), rest.pop("protocol", None), rest.pop("tls", False)
        if not isinstance(name, str) or not name.isprintable() or not name:
            raise ConfigError(f"name: wanted a name, not {name!r}")
        if protocol not in PROTOCOLS:
            raise ConfigError(f"protocol: wanted one of {', '.join(PROTOCOLS) or 'none'}, not {protocol!r}")
        if not isinstance(secured, bool):
            raise ConfigError(f"tls: wanted true or false, not {secured!r}")
        layered = secured and protocol != "tls"
        if layered and "tls" not in PROTOCOLS:
            raise ConfigError("tls: this build has no TLS")
        own = {field.name: field for field in dataclasses.fields(PROTOCOLS[protocol])}
        under = {field.name: field for field in dataclasses.fields(PROTOCOLS["tls"])} if layered else {}
        for key, value in rest.items():
            field = own.get(key) or under.get(key)
            if field is None:
                known = ", ".join(["name", "protocol", "tls", *sorted({*own, *under})])
                raise ConfigError(f"{key}: unknown key (known: {known})")
            if why := fault(field, value):
                raise ConfigError(f"{key}: {why}")
        settings = _built(PROTOCOLS[protocol], {key: rest[key] for key in rest if key in own})
        layer = None
        if layered:
            keys = {key: rest[key] for key in rest if key in under and key not in own}
            if "server_name" not in keys and (whom := getattr(settings, "tls_name", "")):
                keys["server_name"] = whom
            layer = _built(PROTOCOLS["tls"], keys)
        return cls(name=name, protocol=protocol, settings=settings, tls=layer)


def _built(form: type[Any], keys: Mapping[str, Any]) -> Any:
    for field in dataclasses.fields(form):
        if field.name not in keys and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{field.name}: this key is needed")
    return form(**keys)


class Profiles(Closing):
    """Profiles in C's memory, which live as long as the publisher that has them."""

    def __init__(self, sessions: Sequence[SessionConfig]) -> None:
        self.closed = False
        self._keep: list[object] = []
        self._sessions = sessions
        self._raw = ffi.new("struct xds_session_profile[]", len(sessions))
        with contextlib.ExitStack() as self._undo:
            for raw, one in zip(self._raw, sessions, strict=True):
                raw.ops, raw.config = self._spoken(one.settings)
                if one.tls is not None:
                    raw.layer, raw.layer_config = self._spoken(one.tls)
            self._undo = self._undo.pop_all()

    def _spoken(self, settings: Settings) -> tuple[Any, Any]:
        spoken = settings.speak()
        self._keep.append(spoken)
        if spoken.close is not None:
            self._undo.callback(spoken.close)
        return spoken.ops, spoken.config

    def attach(self, publisher: Any, most: int, segment: Any = None) -> None:
        """Have connections of a ``struct xds_publisher *`` speak them, ``most`` at once. Before :meth:`close`
        comes ``xds_publisher_end``."""
        size = lib.xds_publisher_sessions_size(self._raw, len(self._raw), most)
        if not size:
            raise ConfigError("a [[session]] contradicts itself, or there are too many")
        arena = Arena()
        self._undo.callback(arena.close)
        seed = os.urandom(lib.XDS_SESSION_SEED)
        shown = ffi.new(f"{_STATS} *[]", len(KINDS))
        if segment is not None:
            spoken = {one.protocol for one in self._sessions} | {"tls" for one in self._sessions if one.tls}
            for number, kind in KINDS.items():
                if kind in spoken:
                    words = {"reasons": dict(PROTOCOLS[kind].reasons)}
                    shown[number - 1] = segment.struct(
                        f"session.{kind}", _STATS, gauges={"live"}, words=words
                    )
        code = lib.xds_publisher_sessions(
            publisher, arena.alloc(size), self._raw, len(self._raw), most, seed, shown
        )
        check(code, "sessions")

    def close(self) -> None:
        """Give back what protocols loaded."""
        if not self.closed:
            self.closed = True
            self._undo.close()

    def __repr__(self) -> str:
        return f"<Profiles {', '.join(one.name for one in self._sessions)}>"


class SessionNews(NamedTuple):
    """What happened in a session."""

    port: int
    """Engine port; with ``connection`` it names the connection."""
    connection: int
    session: str
    """Whose profile it is: the name of its ``[[session]]``."""
    protocol: str
    """``tls``, ``ws``, ``fix``: whose event it is (of a session over TLS also TLS's own)."""
    what: str
    """``open message closed failed``; of TLS ``alert ticket key_update``, of WebSocket ``ping pong closing``,
    of FIX ``gap filled resend reject heartbeat test tested logout reset``. Of all ``closed`` or ``failed`` is
    the last."""
    ns: int
    """CLOCK_TAI ns."""
    number: int
    """Of this session's events, from 1 on; a jump is what this reader has lost. Several records of one
    message have one number."""
    data: np.ndarray[Any, Any]
    """Message, payload, reason (uint8), valid until the next read."""
    at: int
    """Where ``data`` lies in what is ``whole`` bytes long."""
    whole: int
    flags: int
    """Or-ed bits of ``enum xds_session_flag``; see ``cffi_build/xds/tape.md`` for this and the next five."""
    code: int
    detail: int
    verify: int
    seq: int
    until: int
    name: str
    reason: str
    """Of ``failed``: the word for ``code``."""
    stages: tuple[int, ...]
    """CLOCK_TAI ns of the six stages, 0 where one was not reached or the engine does not stamp."""

    @property
    def text(self) -> bool:
        """Of a WebSocket message: text and not binary."""
        return bool(self.flags & lib.XDS_SESSION_TEXT)


def _words(protocol: str) -> Mapping[int, str]:
    form = PROTOCOLS.get(protocol)
    return form.reasons if form is not None else {}


def session_news(protocol: str, data: np.ndarray[Any, Any], sessions: Sequence[str]) -> SessionNews:
    """A record, behind its head. ``sessions``: the names of profiles."""
    raw = ffi.from_buffer("struct xds_publish_session *", data[:_SIZE])
    if not raw.at + raw.len <= raw.whole:
        raise RemoteProtocolError("a session's record contradicts itself")
    what = _WHAT.get(raw.what, str(raw.what)).removeprefix(f"{protocol}_")
    failed = raw.what == lib.XDS_SESSION_FAILED
    return SessionNews(
        port=raw.port,
        connection=raw.connection,
        session=sessions[raw.profile - 1] if 0 < raw.profile <= len(sessions) else str(raw.profile),
        protocol=protocol,
        what=what,
        ns=raw.ns,
        number=raw.number,
        data=data[_SIZE:][: raw.len],
        at=raw.at,
        whole=raw.whole,
        flags=raw.flags,
        code=raw.code,
        detail=raw.detail,
        verify=raw.verify,
        seq=raw.seq,
        until=raw.until,
        name=ffi.string(raw.name, len(raw.name)).decode(errors="replace"),
        reason=_words(protocol).get(raw.code, str(raw.code)) if failed else "",
        stages=tuple(raw.stages),
    )


def session_stats(raw: Any, protocol: str) -> dict[str, Any]:
    """A ``struct xds_publish_session_stats``, its reasons by word."""
    found: dict[str, Any] = {
        field: int(getattr(raw, field)) for field, _ in ffi.typeof(_STATS).fields if field != "reasons"
    }
    words = _words(protocol)
    counted = {words.get(number, str(number)): int(count) for number, count in enumerate(raw.reasons)}
    found["reasons"] = {word: count for word, count in counted.items() if count}
    return found
