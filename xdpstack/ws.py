"""WebSocket as the protocol of a ``[[session]]``: the client's side of RFC 6455 over an engine's connection.

    [[session]]
    name = "exchange"
    protocol = "ws"
    host = "stream.exchange.example"
    path = "/v2?symbol=ABC"
    headers = { Authorization = "Bearer 1234" }
    subprotocols = ["v2.json", "v1.json"]
    ping_interval = 15.0

The core is ``cffi_build/xds/ws.h``: no permessage-deflate, no redirects, no connecting again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from xdpstack._ffi import ffi, lib, names
from xdpstack.errors import ConfigError
from xdpstack.feed import refuse_faults
from xdpstack.spoken import Spoken

__all__ = ["WsSettings"]

_SECONDS = {
    "open_timeout": "handshake_ns",
    "ping_interval": "ping_ns",
    "ping_timeout": "pong_ns",
    "close_timeout": "close_ns",
}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_WANTED = {
    "host": "a name or address, with :PORT where it is not the usual, in ASCII",
    "path": "/ and what follows it, in visible ASCII without #",
    "headers": "lines that are neither the handshake's nor a body's",
    "subprotocols": "each word once",
    "message_max": "1 to 1073741824 bytes",
    "send_bytes": "1024 to 1073741824 bytes",
    "head_max": "128 to 1048576 bytes",
    "open_timeout": "more than 0 seconds",
    "ping_timeout": "more than 0 seconds",
    "close_timeout": "more than 0 seconds",
}
_MAY_BE_EMPTY = ("headers", "subprotocols")


def _reasons() -> dict[int, str]:
    words = names("xds_ws_reason", "XDS_WS_")
    return {number: word for number, word in words.items() if lib.XDS_WS_NONE < number < lib.XDS_WS_REASONS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WsSettings:
    """Keys of ``protocol = "ws"``. Times in seconds. Of a key that TLS has too, this is the session's."""

    host: str
    """Name or address that is asked for, with a port where it is not the usual: ``name:8443``, ``[::1]``."""
    path: str = "/"
    """The request's target, with its query."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More lines of the request; the handshake's own are not to be given."""
    subprotocols: Sequence[str] = ()
    """Offered, the preferred one first; the one that the server chose is the data of ``open``."""
    message_max: int = 1 << 20
    """Bytes of a message of the peer's; each place for a session has room for one."""
    send_bytes: int = 1 << 16
    """Bytes of frames that wait to be sent; a message of ours is 14 shorter at most."""
    head_max: int = 8192
    """Bytes of the answer's head."""
    open_timeout: float = 10.0
    """For the whole answer, from the moment that the connection (or TLS) is open."""
    ping_interval: float = 0.0
    """From open, or the last answer, to our next ping; 0: none."""
    ping_timeout: float = 20.0
    close_timeout: float = 10.0
    """For the peer's close, and then for the end of its connection."""
    reasons: ClassVar[Mapping[int, str]] = _reasons()

    def __post_init__(self) -> None:
        refuse_faults(self)
        if not isinstance(self.headers, Mapping) or not all(_is_line(*line) for line in self.headers.items()):
            raise ConfigError(f"headers: wanted names and values that HTTP may carry, not {self.headers!r}")
        if not isinstance(self.subprotocols, (list, tuple)) or not all(map(_is_token, self.subprotocols)):
            raise ConfigError(f"subprotocols: wanted a list of words, not {self.subprotocols!r}")
        for key, why in _WANTED.items():
            value = getattr(self, key)
            alone = {"host": "a", **{key: value}}  # the core says whether it takes it, beside usual ones
            if not (value or key in _MAY_BE_EMPTY) or not _fits(alone):
                raise ConfigError(f"{key}: wanted {why}, not {value!r}")
        if not _fits(_keys(self)):
            raise ConfigError("headers: the request is longer than 1 MiB")

    @property
    def tls_name(self) -> str:
        """Whom TLS under it verifies, where ``server_name`` says nothing else."""
        name = self.host
        if name.startswith("["):
            return name[1:].partition("]")[0]
        return name.partition(":")[0]

    def speak(self) -> Spoken:
        """Its table and configuration."""
        config, texts = _raw(_keys(self))
        return Spoken(lib.xds_session_ws(), config, texts)


def _is_token(word: object) -> bool:
    return isinstance(word, str) and _TOKEN.fullmatch(word) is not None


def _is_line(name: object, value: object) -> bool:
    """Whether it is one line of a head: a value may not bring another."""
    printable = isinstance(value, str) and value.isprintable()
    return _is_token(name) and printable and all(letter < "\u0100" for letter in str(value))


def _keys(settings: WsSettings) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def _fits(keys: Mapping[str, Any]) -> bool:
    """Whether the core takes them."""
    config, texts = _raw(keys)
    return lib.xds_ws_size(config) > 0 and bool(texts)  # which live until here


def _raw(keys: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """``struct xds_ws_config *`` of these keys, and the texts that it points to."""
    raw, texts = ffi.new("struct xds_ws_config *"), []
    for key, value in keys.items():
        if key == "headers":
            value = "".join(f"{name}: {said}\r\n" for name, said in value.items())
        elif key == "subprotocols":
            value = ", ".join(value)
        if isinstance(value, str):
            texts.append(ffi.new("char[]", value.encode("latin-1" if key == "headers" else "utf-8")))
            setattr(raw, key, texts[-1])
        elif key in _SECONDS:
            setattr(raw, _SECONDS[key], math.ceil(value * 1e9))  # 0 would be the core's own
        else:
            setattr(raw, key, value)
    return raw, texts
