"""TLS as a client, over whatever carries bytes: settings, what sessions share, one session.

    context = TlsContext(TlsSettings(server_name="exchange.example", alpn=("fix",)))
    session = TlsSession(context)
    while not done:
        wire.write(session.output())
        for event in session.input(wire.read()):
            ...                              # handshake, data, closed, failed with its sentence

On an engine's connections it is the protocol of a ``[[session]]``, or the layer under one:

    [[session]]
    name = "drop-copy"
    protocol = "tls"                         # or another, with tls = true
    server_name = "exchange.example"
    ca_file = "/etc/xdpstack/exchange.pem"
    alpn = ["fix"]

No socket and no clock is touched by a session. The server's chain and name are verified unless ``verify``
is False. ``XDPSTACK_TLS_VERSION=1.2`` or ``1.3`` in the environment forces that version, whatever the
settings say.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from xdpstack._ffi import dtype, ffi, lib, names
from xdpstack.clock import tai_ns, tai_offset
from xdpstack.closing import Closing
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, SetupError
from xdpstack.feed import refuse_faults
from xdpstack.spoken import Spoken

__all__ = ["TlsContext", "TlsEvent", "TlsSession", "TlsSettings", "tls_words"]

VERSION_SWITCH = "XDPSTACK_TLS_VERSION"
_VERSIONS = {"1.2": lib.XDS_TLS_1_2, "1.3": lib.XDS_TLS_1_3}
_VERSION_WORDS = {value: word for word, value in _VERSIONS.items()}
_ORDERS = {
    "auto": lib.XDS_TLS_CIPHERS_AUTO,
    "aes": lib.XDS_TLS_CIPHERS_AES,
    "chacha": lib.XDS_TLS_CIPHERS_CHACHA,
}
_CHOICES: dict[str, Mapping[str, int]] = {
    "version_min": _VERSIONS, "version_max": _VERSIONS, "ciphers": _ORDERS,
}  # fmt: skip
_KINDS = names("xds_tls_kind", "XDS_TLS_")
_REASONS = names("xds_tls_reason", "XDS_TLS_")
_ALPN_MAX = 256
_OUT_MAX = 1 << 30
ROOM = 65536


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """What sessions of one profile have in common: keys of ``protocol = "tls"``, and of what goes over it by
    ``tls = true``. Times in seconds."""

    server_name: str = ""
    """Asked for (SNI) and verified; an IP address is verified as one and not asked for."""
    ca_file: str = ""
    """PEM: the only roots that are trusted; empty: the system's."""
    cert_file: str = ""
    """PEM: the client's chain, its own certificate first."""
    key_file: str = ""
    """PEM: the key; empty: it is in ``cert_file``."""
    alpn: Sequence[str] = ()
    """Protocols offered, the preferred one first."""
    version_min: str = "1.2"
    version_max: str = "1.3"
    ciphers: str = "auto"
    """``aes`` or ``chacha`` first; ``auto``: AES where the CPU has its instructions."""
    verify: bool = True
    """False trusts whoever answers; every handshake's event says so."""
    tickets: int = 4
    """Sessions kept in memory for resumption."""
    out_bytes: int = 0
    """Cipher text that may wait to be sent, and so the most that a message of ours may be; 0: 64 KiB."""
    update_records: int = 0
    """Records after which our own keys change (1.3); 0: 2^24."""
    handshake_timeout: float = 10.0
    close_timeout: float = 2.0
    """For the peer's close_notify; where TLS is under another protocol, nobody waits for it."""
    reasons: ClassVar[Mapping[int, str]] = {
        number: word for number, word in _REASONS.items() if lib.XDS_TLS_OK < number < lib.XDS_TLS_REASONS
    }

    def __post_init__(self) -> None:
        refuse_faults(self)
        for key, table in _CHOICES.items():
            if getattr(self, key) not in table:
                wanted = " or ".join(map(repr, table))
                raise ConfigError(f"{key}: wanted {wanted}, not {getattr(self, key)!r}")
        if self.version_min > self.version_max:
            raise ConfigError(f"version_min: wanted {self.version_max!r} at most, which is version_max")
        if self.verify and not self.server_name:
            raise ConfigError("server_name: this key is needed, to verify the server by")
        if len(self.server_name.encode()) >= lib.XDS_TLS_NAME_MAX:
            raise ConfigError(f"server_name: wanted at most {lib.XDS_TLS_NAME_MAX - 1} bytes")
        if not isinstance(self.alpn, (list, tuple)) or not all(map(_is_protocol, self.alpn)):
            raise ConfigError(f"alpn: wanted a list of names of 1 to 32 characters, not {self.alpn!r}")
        if sum(1 + len(name) for name in self.alpn) > _ALPN_MAX:
            raise ConfigError(f"alpn: wanted {_ALPN_MAX} characters at most, with one more for each name")
        if self.tickets > lib.XDS_TLS_TICKETS_MAX:
            raise ConfigError(f"tickets: wanted 0 to {lib.XDS_TLS_TICKETS_MAX}, not {self.tickets}")
        if self.out_bytes and not lib.XDS_TLS_OUT_MIN <= self.out_bytes <= _OUT_MAX:
            raise ConfigError(
                f"out_bytes: wanted 0, or {lib.XDS_TLS_OUT_MIN} to {_OUT_MAX}, not {self.out_bytes}"
            )
        for key in ("handshake_timeout", "close_timeout"):
            if not getattr(self, key):
                raise ConfigError(f"{key}: wanted more than 0 seconds")
        if self.key_file and not self.cert_file:
            raise ConfigError("key_file: a key without cert_file")

    def speak(self) -> Spoken:
        """Its table, and a context: reads the files. ConfigError, SetupError."""
        context = TlsContext(self)
        return Spoken(lib.xds_session_tls(), context.pointer, context, context.close)


def _is_protocol(name: object) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name) <= 32
        and name.isascii()
        and name.isprintable()
        and "," not in name
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsEvent:
    """One thing that happened; what was negotiated stands in all of them once the handshake is done."""

    kind: str
    """``handshake``, ``ticket``, ``key_update``, ``alert``, ``data``, ``closed``, ``failed``."""
    data: bytes = b""
    reason: str = ""
    text: str = ""
    """Of ``failed``: one sentence."""
    alert: str = ""
    version: str = ""
    cipher: str = ""
    group: str = ""
    alpn: str = ""
    resumed: bool = False
    verified: bool = False
    verify: int = 0
    """OpenSSL's X509_V_...; 0: chain and name hold."""
    clean: bool = False
    handshake_ns: int = 0


class TlsContext(Closing):
    """What the sessions of one profile share: the trust store is read here. One thread."""

    def __init__(self, settings: TlsSettings, *, environ: Mapping[str, str] = os.environ) -> None:
        self.settings = settings
        self._mem = ffi.new("uint64_t[]", lib.xds_tls_context_size() // 8 + 1)
        self.pointer = ffi.cast("struct xds_tls_context *", self._mem)
        """``struct xds_tls_context *``, for who runs sessions in C."""
        self._open = True
        code = lib.xds_tls_context_init(self._mem, self._config(settings, environ)[0])
        if code < 0:
            said = ffi.string(lib.xds_tls_context_error(self.pointer)).decode(errors="replace")
            self.close()
            if code == lib.XDS_ECONFIG:
                raise ConfigError(f"tls: {said}")
            raise SetupError(f"tls: {said}", errno=-code)

    @staticmethod
    def _config(s: TlsSettings, environ: Mapping[str, str]) -> tuple[Any, list[Any]]:
        g = ffi.new("struct xds_tls_config *")
        kept = []
        texts = {key: getattr(s, key) for key in ("server_name", "ca_file", "cert_file", "key_file")}
        for key, text in (texts | {"alpn": ",".join(s.alpn)}).items():
            if text:
                kept.append(ffi.new("char[]", os.fsencode(text)))
                setattr(g, key, kept[-1])
        forced = environ.get(VERSION_SWITCH, "")
        if forced and forced not in _VERSIONS:
            raise ConfigError(f"{VERSION_SWITCH}={forced}: wanted 1.2 or 1.3")
        g.version_min = _VERSIONS[forced or s.version_min]
        g.version_max = _VERSIONS[forced or s.version_max]
        g.ciphers = _ORDERS[s.ciphers]
        g.verify_off = not s.verify
        g.tickets, g.out_bytes, g.update_records = s.tickets, s.out_bytes, s.update_records
        g.handshake_ns = max(1, int(s.handshake_timeout * 1e9))
        g.close_ns = max(1, int(s.close_timeout * 1e9))
        g.utc_offset_ns = tai_offset() * 1_000_000_000
        return ffi.gc(g, lambda _: kept.clear()), kept

    def stats(self) -> dict[str, Any]:
        """Counters over all sessions; ``started`` = live + closed + aborted + the sum of ``reasons``."""
        raw = ffi.new("struct xds_tls_context_stats *")
        lib.xds_tls_context_stats(self.pointer, raw)
        said = {
            name: int(getattr(raw, name))
            for name in _fields("struct xds_tls_context_stats")
            if name != "reasons"
        }
        return said | {"reasons": {_REASONS[i]: int(n) for i, n in enumerate(raw.reasons) if i and n}}

    def forget(self) -> None:
        """Drop the tickets: the next handshakes are full."""
        lib.xds_tls_context_forget(self.pointer)

    def close(self) -> None:
        """Give back what OpenSSL holds; every session is closed before."""
        if self._open:
            self._open = False
            lib.xds_tls_context_close(self.pointer)

    def __repr__(self) -> str:
        verify = "" if self.settings.verify else ", NOT VERIFIED"
        return f"TlsContext({self.settings.server_name!r}{verify}{'' if self._open else ', closed'})"


def _fields(struct: str) -> tuple[str, ...]:
    return dtype(struct).names or ()


class TlsSession(Closing):
    """One connection: bytes in, bytes and events out. ``now``: CLOCK_TAI ns, by default the system's."""

    def __init__(self, context: TlsContext, *, now: int | None = None) -> None:
        self.context = context
        self._mem = ffi.new("uint64_t[]", lib.xds_tls_size(context.pointer) // 8 + 1)
        self._t = ffi.cast("struct xds_tls *", self._mem)
        self._event = ffi.new("struct xds_tls_event *")
        self._room = ffi.new("uint8_t[]", ROOM)
        self._open = False
        if lib.xds_tls_init(self._mem, context.pointer, _now(now)) < 0:
            raise CapacityError("tls: OpenSSL has no memory for a session")
        self._open = True

    def feed(self, data: bytes, *, now: int | None = None) -> int:
        """Give cipher text once: the bytes taken, or a code below 0 when the session is over."""
        return int(lib.xds_tls_input(self._t, ffi.from_buffer(data), len(data), _now(now)))

    def input(self, data: bytes, *, now: int | None = None) -> list[TlsEvent]:
        """Give cipher text, all of it, and take the events that it made. What follows the end is dropped.

        What it wants to send by then waits for :meth:`output`; LocalProtocolError where too much waits.
        """
        events = self.events()
        while data and not self.over:
            taken = self.feed(data, now=now)
            more = self.events()
            if taken == 0 and not more:
                raise LocalProtocolError("tls: what it has to send fills its memory; take output() first")
            events += more
            data = data[max(taken, 0) :]
        return events

    def events(self) -> list[TlsEvent]:
        """Take what waits."""
        return list(iter(self._take, None))

    def _take(self) -> TlsEvent | None:
        e = self._event
        if not lib.xds_tls_event(self._t, e):
            return None
        shaken = e.version != 0
        return TlsEvent(
            kind=_KINDS[e.kind],
            data=bytes(ffi.buffer(e.data, e.len)) if e.len else b"",
            reason=_REASONS[e.reason] if e.reason else "",
            text=ffi.string(e.text).decode(errors="replace"),
            alert=ffi.string(lib.xds_tls_alert_name(e.alert)).decode() if e.alert else "",
            version=_VERSION_WORDS.get(e.version, ""),
            cipher=ffi.string(lib.xds_tls_cipher_name(e.cipher)).decode() if shaken else "",
            group=ffi.string(lib.xds_tls_group_name(e.group)).decode() if shaken else "",
            alpn=bytes(ffi.buffer(e.alpn, e.alpn_len)).decode(errors="replace"),
            resumed=bool(e.resumed),
            verified=bool(e.verified),
            verify=e.verify,
            clean=bool(e.clean),
            handshake_ns=e.handshake_ns,
        )

    def output(self, cap: int = ROOM, *, now: int | None = None) -> bytes:
        """At most ``cap`` bytes of cipher text for the wire; empty: nothing now."""
        n = lib.xds_tls_output(self._t, self._room, min(cap, ROOM), _now(now))
        return bytes(ffi.buffer(self._room, n))

    def send(self, data: bytes, *, now: int | None = None) -> int:
        """Encrypt: how many bytes were taken, 0 while output() has to be taken first."""
        return self._done(lib.xds_tls_send(self._t, ffi.from_buffer(data), len(data), _now(now)), "send")

    def update(self, *, both: bool = False, now: int | None = None) -> None:
        """Change our keys, with ``both`` ask the peer to change its own (1.3 alone)."""
        self._done(lib.xds_tls_update(self._t, both, _now(now)), "update")

    def end_session(self, *, now: int | None = None) -> None:
        """Send close_notify; ``closed`` follows when the peer's has come."""
        self._done(lib.xds_tls_close(self._t, _now(now)), "close")

    def ended(self, *, now: int | None = None) -> list[TlsEvent]:
        """The transport ended: ``failed``, truncated, where no close_notify had come."""
        lib.xds_tls_end(self._t, _now(now))
        return self.events()

    def tick(self, *, now: int | None = None) -> list[TlsEvent]:
        """Time passed."""
        lib.xds_tls_tick(self._t, _now(now))
        return self.events()

    @property
    def deadline(self) -> int:
        """When :meth:`tick` wants to be called."""
        return int(lib.xds_tls_deadline(self._t))

    @property
    def room(self) -> int:
        """Bytes that :meth:`send` would take now."""
        return int(lib.xds_tls_room(self._t))

    @property
    def over(self) -> bool:
        """Closed or failed: it takes nothing more, but may still have an alert to send."""
        return bool(lib.xds_tls_over(self._t))

    def stats(self) -> dict[str, int]:
        """Bytes, records, tickets, key updates and alerts of this session."""
        raw = ffi.new("struct xds_tls_stats *")
        lib.xds_tls_stats(self._t, raw)
        return {name: int(getattr(raw, name)) for name in _fields("struct xds_tls_stats")}

    def close(self) -> None:
        """Give back what OpenSSL holds for it."""
        if self._open:
            self._open = False
            lib.xds_tls_done(self._t)

    @staticmethod
    def _done(code: int, what: str) -> int:
        if code == lib.XDS_ESTATE:
            raise LocalProtocolError(f"tls: {what} is not allowed now")
        if code < 0:
            raise CapacityError(f"tls: {what}: what waits to be sent fills out_bytes; take output() first")
        return code


def tls_words(news: Any) -> dict[str, Any]:
    """What numbers of a TLS record of an engine's tape mean (:class:`xdpstack.publish.SessionNews`)."""
    if news.what == "open":
        return {
            "version": _VERSION_WORDS.get(news.code, hex(news.code)),
            "cipher": ffi.string(lib.xds_tls_cipher_name(news.detail)).decode(),
            "group": news.name,
            "alpn": bytes(news.data).decode(errors="replace"),
            "resumed": bool(news.flags & lib.XDS_SESSION_RESUMED),
            "verified": bool(news.flags & lib.XDS_SESSION_VERIFIED),
            "handshake_ns": news.until,
        }
    alert = {"alert": news.code, "failed": news.detail if news.code else 0}.get(news.what, 0)
    if alert:
        return {"alert": ffi.string(lib.xds_tls_alert_name(alert)).decode()}
    return {"clean": not news.flags & lib.XDS_SESSION_UNANSWERED} if news.what == "closed" else {}


def _now(now: int | None) -> int:
    return tai_ns() if now is None else now
