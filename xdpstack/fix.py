"""One FIX session of the native core (``cffi_build/xds/fix.h``), and tools to parse and build messages.

No I/O: the caller brings the time (ns of CLOCK_TAI) and carries the bytes. FIX 4.2, 4.4
and FIXT 1.1, session layer.

:class:`FixSettings` make it the protocol of a ``[[session]]``: the initiator's side over an engine's
connection.

    [[session]]
    name = "venue"
    protocol = "fix"
    sender_comp_id = "BUYSIDE"
    target_comp_id = "VENUE"
    begin_string = "FIX.4.4"
    heartbeat = 30

Over TLS: ``tls = true`` and the keys of :mod:`xdpstack.tls`, of which ``server_name`` is needed: FIX names no
host.

Its numbers, and what was sent, outlive a connection while the engine runs: one connection has them at a time,
and the next goes on. Nothing is kept on disk: what a session's last event says (``seq`` comes next, ``until``
is sent next) are ``next_in`` and ``next_out`` of the next run. No dictionary, schedule or connecting again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from xdpstack._ffi import check, ffi, lib, names
from xdpstack.clock import tai_offset
from xdpstack.errors import ConfigError
from xdpstack.feed import refuse_faults
from xdpstack.memory import Arena
from xdpstack.spoken import Spoken

__all__ = [
    "ENDS",
    "EVENTS",
    "LEAP_NS",
    "REASONS",
    "SOH",
    "STATES",
    "VERSIONS",
    "FixCore",
    "FixEvent",
    "FixSettings",
    "build",
    "format_time",
    "parse",
    "parse_time",
]

SOH = b"\x01"
LEAP_NS = 37_000_000_000
"""TAI - UTC since 2017."""
STATES = names("xds_fix_state", "XDS_FIX_")
REASONS = names("xds_fix_reason", "XDS_FIX_")
EVENTS = names("xds_fix_event_kind", "XDS_FIX_EVENT_")
ENDS = REASONS | {
    lib.XDS_FIX_LOGON_TIMEOUT: "logon_timeout",
    lib.XDS_FIX_REFUSED: "refused",
    lib.XDS_FIX_SILENT: "silent",
    lib.XDS_FIX_UNANSWERED: "unanswered",
    lib.XDS_FIX_LOGOUT_LATE: "logout_late",
    lib.XDS_FIX_HUNG_UP: "hung_up",
}
"""Why a session ended, by number."""
VERSIONS = {"FIX.4.2": lib.XDS_FIX_42, "FIX.4.4": lib.XDS_FIX_44, "FIXT.1.1": lib.XDS_FIXT_11}


@dataclass(frozen=True, slots=True, kw_only=True)
class FixEvent:
    """One event with its message, copied: ``fields`` are (tag, value) in the message's order."""

    ns: int
    kind: str
    seq: int
    number: int
    reason: str
    tag: int
    poss_dup: bool
    poss_resend: bool
    msg_type: str
    text: str
    """Of a failure, or a message that was rejected: what we told the peer about it."""
    data: bytes
    fields: tuple[tuple[int, bytes], ...]

    def get(self, tag: int) -> bytes | None:
        """The value of the first field with this tag."""
        return next((value for number, value in self.fields if number == tag), None)


def parse(message: bytes) -> list[tuple[int, bytes]]:
    """The fields of one message, (tag, value) each. ValueError: a field without number, value or end."""
    cap = len(message) // 4 + 2
    fields = ffi.new("struct xds_fix_field[]", cap)
    count = lib.xds_fix_parse(message, len(message), fields, cap)
    if count < 0:
        raise ValueError(f"field {fields[cap - 1].tag or '?'} at byte {fields[cap - 1].at} has no form")
    return [(f.tag, message[f.at : f.at + f.len]) for f in fields[0:count]]


def build(begin_string: str, msg_type: str, fields: list[tuple[int, Any]], room: int = 65536) -> bytes:
    """A whole message: values are bytes, str or int. ValueError: longer than ``room``."""
    memory = ffi.new("uint8_t[]", room)
    b = ffi.new("struct xds_fix_builder *")
    lib.xds_fix_begin(b, memory, room, begin_string.encode(), msg_type.encode())
    for tag, value in fields:
        if isinstance(value, int):
            lib.xds_fix_put_integer(b, tag, value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            lib.xds_fix_put(b, tag, raw, len(raw))
    start = ffi.new("uint32_t *")
    size = lib.xds_fix_finish(b, start)
    if size < 0:
        raise ValueError(f"the message needs more than {room} bytes")
    return bytes(ffi.buffer(memory + start[0], size))


def format_time(tai_ns: int, digits: int = 3, leap_ns: int = LEAP_NS) -> str:
    """UTCTimestamp of a moment, with 0 to 9 digits of a second."""
    room = ffi.new("uint8_t[32]")
    return bytes(ffi.buffer(room, lib.xds_fix_put_timestamp(room, tai_ns, leap_ns, digits))).decode()


def parse_time(text: str | bytes, leap_ns: int = LEAP_NS) -> int:
    """Ns of CLOCK_TAI of a UTCTimestamp. ValueError: it is none."""
    raw = text.encode() if isinstance(text, str) else text
    out = ffi.new("int64_t *")
    if lib.xds_fix_time(raw, len(raw), leap_ns, out):
        raise ValueError(f"{text!r} is no UTCTimestamp")
    return int(out[0])


class FixCore:
    """A session. ``settings`` are fields of ``struct xds_fix_config``, times in ns, texts as str.

    Raises ValueError for an unknown version and for settings that contradict each other.
    """

    def __init__(self, sender: str, target: str, *, version: str = "FIX.4.4", **settings: Any) -> None:
        if version not in VERSIONS:
            raise ValueError(f"version {version!r}: one of {', '.join(VERSIONS)}")
        words = {k: v.encode() if isinstance(v, str) else v for k, v in settings.items()}
        self._cfg = ffi.new(
            "struct xds_fix_config *",
            {
                "sender_comp_id": sender.encode(),
                "target_comp_id": target.encode(),
                "version": VERSIONS[version],
                "leap_ns": LEAP_NS,
                **words,
            },
        )
        size = lib.xds_fix_size(self._cfg)
        if not size:
            raise ValueError("FIX: the settings contradict each other: see struct xds_fix_config for bounds")
        self._memory = ffi.new("uint8_t[]", size + 64)
        base = int(ffi.cast("uintptr_t", self._memory))
        self._f = ffi.cast("struct xds_fix *", base + -base % 64)
        code = lib.xds_fix_init(self._f, self._cfg)
        assert code == 0  # size() said so
        self._room = ffi.new("uint8_t[]", 65536)

    def open(self, now: int) -> None:
        """A new connection; numbers and what was sent go on."""
        lib.xds_fix_open(self._f, now)

    def input(self, data: bytes, now: int) -> int:
        """Bytes taken, up to the end of what made an event; an XDS_E… code where the session is over."""
        self._data = data  # events may lie in it
        return int(lib.xds_fix_input(self._f, ffi.from_buffer(data), len(data), now))

    def events(self) -> list[FixEvent]:
        """What has happened, in order."""
        found = []
        e = ffi.new("struct xds_fix_event *")
        while lib.xds_fix_event(self._f, e):
            found.append(self._event(e))
        return found

    def _event(self, e: Any) -> FixEvent:
        data = bytes(ffi.buffer(e.data, e.len)) if e.data else b""
        return FixEvent(
            ns=e.ns,
            kind=EVENTS[e.kind],
            seq=e.seq,
            number=e.number,
            reason=ENDS[e.reason] if e.reason else "",
            tag=e.tag,
            poss_dup=bool(e.flags & lib.XDS_FIX_POSS_DUP),
            poss_resend=bool(e.flags & lib.XDS_FIX_POSS_RESEND),
            msg_type=ffi.string(e.msg_type).decode("latin-1"),
            text=ffi.string(e.text).decode() if e.text else "",
            data=data,
            fields=tuple((d.tag, data[d.at : d.at + d.len]) for d in e.fields[0 : e.count]) if data else (),
        )

    def feed(self, data: bytes, now: int) -> list[FixEvent]:
        """All of ``data``, and what it made; stops where the session ends, or output has to go first."""
        found: list[FixEvent] = []
        while True:
            taken = self.input(data, now)
            fresh = self.events()
            found += fresh
            if taken <= 0 and not fresh:
                return found
            data = data[max(taken, 0) :]

    def output(self, now: int, room: int = 65536) -> bytes:
        """Up to ``room`` bytes to be sent."""
        size = min(room, 65536)
        return bytes(ffi.buffer(self._room, lib.xds_fix_output(self._f, self._room, size, now)))

    def send(self, message: bytes, now: int) -> int:
        """An application message from ``35=`` on; 0 or an XDS_E… code."""
        return int(lib.xds_fix_send(self._f, message, len(message), now))

    def test_request(self, now: int) -> int:
        """Ask the peer for a Heartbeat: its event has the round trip."""
        return int(lib.xds_fix_test_request(self._f, now))

    def close(self, now: int, text: str = "") -> int:
        """Log out; 0 or an XDS_E… code."""
        return int(lib.xds_fix_close(self._f, text.encode() or ffi.NULL, now))

    def hang_up(self, now: int) -> None:
        """The peer's bytes have ended."""
        lib.xds_fix_hang_up(self._f, now)

    def deadline(self) -> int:
        """When :meth:`tick` is due, ns."""
        return int(lib.xds_fix_deadline(self._f))

    def tick(self, now: int) -> None:
        """Time has come."""
        lib.xds_fix_tick(self._f, now)

    @property
    def state(self) -> str:
        """One of STATES."""
        return STATES[self.info()["state"]]

    def info(self) -> dict[str, int]:
        """``struct xds_fix_info``."""
        out = ffi.new("struct xds_fix_info *")
        lib.xds_fix_info(self._f, out)
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof("struct xds_fix_info").fields}

    def stats(self) -> dict[str, int]:
        """``struct xds_fix_stats``, the reasons by their names."""
        out = ffi.new("struct xds_fix_stats *")
        lib.xds_fix_stats(self._f, out)
        plain = [n for n, _ in ffi.typeof("struct xds_fix_stats").fields if n != "reasons"]
        return {n: int(getattr(out, n)) for n in plain} | {
            word: int(out.reasons[i]) for i, word in REASONS.items() if word != "reasons"
        }

    def __repr__(self) -> str:
        info = self.info()
        return f"<FixCore {self.state}, sends {info['next_out']}, expects {info['next_in']}>"


_SECONDS = {
    "time_tolerance": "sending_time_ns",
    "open_timeout": "logon_ns",
    "close_timeout": "logout_ns",
    "resend_timeout": "resend_ns",
}
_FIELDS = {"begin_string": "version", "heartbeat": "heartbeat_s", "send_bytes": "output_bytes"}
"""Of ``struct xds_fix_config``, where its name is not the key."""
_TEXTS = (
    "sender_comp_id", "target_comp_id", "sender_sub_id", "target_sub_id", "username", "password",
    "default_appl_ver_id",
)  # fmt: skip
_BOUNDS = {
    "heartbeat": (1, 86400),
    "next_out": (1, (1 << 32) - 1),
    "next_in": (1, (1 << 32) - 1),
    "message_max": (1024, 1 << 20),
    "store_bytes": (1, 1 << 30),
    "store_messages": (1, 1 << 20),
    "resend_tries": (1, 1000),
}
_AROUND = 512  # of a message of ours: header and trailer


@dataclass(frozen=True, slots=True, kw_only=True)
class FixSettings:
    """Keys of ``protocol = "fix"``. Times in seconds."""

    sender_comp_id: str
    """Whom we are (49), as the peer knows us."""
    target_comp_id: str
    """Whom we talk to (56)."""
    begin_string: str = "FIX.4.4"
    """``FIX.4.2``, ``FIX.4.4`` or ``FIXT.1.1``."""
    sender_sub_id: str = ""
    target_sub_id: str = ""
    """50 and 57 of each message; empty: not sent."""
    username: str = ""
    password: str = dataclasses.field(default="", repr=False)
    """553 and 554 of the Logon; empty: not sent."""
    default_appl_ver_id: str = "9"
    """1137 of FIXT 1.1's Logon; 9: FIX 5.0 SP2."""
    heartbeat: int = 30
    """HeartBtInt (108)."""
    reset: bool = False
    """Both sides begin at 1 with each Logon (141=Y)."""
    next_out: int = 1
    """MsgSeqNum of the first message of ours, when the engine starts."""
    next_in: int = 1
    """And of the peer's that is expected."""
    time_digits: int = 3
    """Of a second, in times that are sent: 3, 6 or 9."""
    time_tolerance: float = 120.0
    """How far the peer's SendingTime may be from our clock; 0: it is not looked at."""
    message_max: int = 16384
    """Bytes of the longest message; of ours 512 less."""
    send_bytes: int = 65536
    """Bytes of messages that wait to be sent: at least 2048 and two of the longest."""
    store_bytes: int = 65536
    """Bytes of messages that are held to be sent again; older ones give way, and are filled over."""
    store_messages: int = 1024
    resend_max: int = 0
    """Messages that one ResendRequest asks for, at least 8; 0: all that are missing."""
    resend_tries: int = 3
    """Requests that may bring nothing, ``resend_timeout`` apart, before that ends the session."""
    resend_timeout: float = 10.0
    open_timeout: float = 10.0
    """For the answer to our Logon."""
    close_timeout: float = 10.0
    """For the answer to our Logout."""
    reasons: ClassVar[Mapping[int, str]] = {
        number: word for number, word in ENDS.items() if word not in ("delivered", "reasons")
    }

    def __post_init__(self) -> None:
        refuse_faults(self)
        if self.begin_string not in VERSIONS:
            raise ConfigError(f"begin_string: wanted one of {', '.join(VERSIONS)}, not {self.begin_string!r}")
        for key in _TEXTS:
            text, most = getattr(self, key), 7 if key == "default_appl_ver_id" else 63
            needed = key in ("sender_comp_id", "target_comp_id", "default_appl_ver_id")
            if not text.isascii() or not needed <= len(text) <= most:
                shown = "" if key == "password" else f", not {text!r}"
                raise ConfigError(f"{key}: wanted {int(needed)} to {most} letters of ASCII{shown}")
        for key, (least, most) in _BOUNDS.items():
            if not least <= getattr(self, key) <= most:
                raise ConfigError(f"{key}: wanted {least} to {most}, not {getattr(self, key)}")
        if self.time_digits not in (3, 6, 9):
            raise ConfigError(f"time_digits: wanted 3, 6 or 9, not {self.time_digits}")
        if 0 < self.resend_max < 8:
            raise ConfigError(f"resend_max: wanted 0 or 8 at least, not {self.resend_max}")
        least = 2 * self.message_max + 2048
        if not least <= self.send_bytes <= 1 << 30:
            raise ConfigError(f"send_bytes: wanted {least} to {1 << 30}, not {self.send_bytes}")
        for key in ("open_timeout", "close_timeout", "resend_timeout"):
            if not getattr(self, key) * 1e9 >= 1:
                raise ConfigError(f"{key}: wanted more than 0 seconds, not {getattr(self, key)}")

    def speak(self) -> Spoken:
        """Its table, and a session that has not begun."""
        raw = self._raw()
        arena = Arena()
        core = ffi.cast("struct xds_fix *", arena.alloc(lib.xds_fix_size(raw)))
        check(lib.xds_fix_init(core, raw), "FIX")
        config = ffi.new("struct xds_session_fix *", {"core": core, "longest": self.message_max - _AROUND})
        return Spoken(lib.xds_session_fix(), config, arena, arena.close)

    def _raw(self) -> Any:
        """``struct xds_fix_config *``."""
        raw = ffi.new("struct xds_fix_config *", {"leap_ns": tai_offset() * 1_000_000_000})
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name
            if name == "begin_string":
                value = VERSIONS[value]
            elif name in _TEXTS:
                value = value.encode()
            elif name in _SECONDS:
                value = int(value * 1e9)
            setattr(raw, _SECONDS.get(name) or _FIELDS.get(name, name), value)
        raw.no_time_check = self.time_tolerance == 0
        return raw
