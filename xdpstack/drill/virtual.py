"""Our stack in virtual time as the machine of a script: sockets over :class:`xdpstack.stack.Stack`."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from xdpstack.drill.play import PORT, Refused, play
from xdpstack.drill.script import Script, state_names
from xdpstack.engine import Host
from xdpstack.errors import ConfigError
from xdpstack.memory import Arena
from xdpstack.sim import NEVER, SECOND
from xdpstack.stack import BITS, Stack
from xdpstack.tcp import CONGESTION

__all__ = ["Virtual", "run"]

_MAC, _PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
_FAMILIES = {"v4": ("192.0.2.2", "192.0.2.1", 24, 1500), "v6": ("fd00::2", "fd00::1", 64, 1520)}
"""Local, remote, prefix and MTU of a family: TCP has 1460 bytes in either."""
_BIT = {word: value for value, word in BITS.items()}
_ENDS = {"reset": errno.ECONNRESET, "refused": errno.ECONNREFUSED, "timeout": errno.ETIMEDOUT}
_STATE = {
    "established": "ESTABLISHED", "syn_sent": "SYN_SENT", "syn_received": "SYN_RECV",
    "fin_wait_1": "FIN_WAIT1", "fin_wait_2": "FIN_WAIT2", "time_wait": "TIME_WAIT", "closed": "CLOSE",
    "close_wait": "CLOSE_WAIT", "last_ack": "LAST_ACK", "listen": "LISTEN", "closing": "CLOSING",
}  # fmt: skip
_PHASE = (0, 2, 3, 4)  # enum xds_tcp_recovery as tcpi_ca_state

_SETTINGS: dict[str, dict[str, dict[str, int]]] = {
    "net.ipv4.tcp_timestamps": {"1": {}, "2": {}, "0": {"no_stamps": 1}},
    "net.ipv4.tcp_sack": {"1": {}, "0": {"no_sack": 1}},
    "net.ipv4.tcp_window_scaling": {"1": {}},
    "net.ipv4.tcp_rfc1337": {"1": {}},
    "net.ipv4.tcp_congestion_control": {
        "cubic": {"congestion": CONGESTION["cubic"]},
        "reno": {"congestion": CONGESTION["newreno"]},
    },
}
"""What a sysctl means here, by its value; other values are refused."""
_IN_NS = {
    "net.ipv4.tcp_rto_min_us": ("rto_min_ns", 1000),
}
_KERNELS_OWN = {
    "net.ipv4.tcp_invalid_ratelimit",  # ours answers ten of what may be forged a second
    "net.ipv4.tcp_challenge_ack_limit",
    "net.ipv4.tcp_no_metrics_save",  # ours keeps none
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_early_retrans",
    "net.ipv4.tcp_recovery",
    "net.ipv4.tcp_moderate_rcvbuf",
    "net.ipv4.tcp_autocorking",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_min_tso_segs",
    "net.ipv4.tcp_shrink_window",
    "net.ipv4.tcp_frto",
    "net.ipv4.tcp_syn_linear_timeouts",
}
"""Sysctls that bring the kernel nearer to a script, and have nothing to set here."""


@dataclass(slots=True)
class _Socket:
    options: dict[str, int] = field(default_factory=dict)
    port: int = 0
    listener: int | None = None
    number: int | None = None
    opened: bool = False
    told_open: bool = False
    ended: str = ""
    """How it ended, once that is known; told is whether the user has heard of it."""
    told: bool = False
    fin: bool = False
    shut: bool = False
    blocks: bool = True
    linger_none: bool = False


class Virtual:
    """One host core with its stack, a peer's MAC address beyond it, and nothing between."""

    early = late = 1_500_000
    slack = 0.0
    settle = 0

    def __init__(self, script: Script, family: str = "v4") -> None:
        """ConfigError, Refused: a setting of the script that does not exist here."""
        self.local, self.remote, prefix, mtu = _FAMILIES[family]
        self.arena = Arena()
        self.settings = _settings(script)
        self.made: dict[str, int] | None = None
        self.host = Host(self.arena, mac=_MAC, addresses=[f"{self.local}/{prefix}"], mtu=mtu, answer_arp=True)
        self.host.add_neighbour(self.remote, _PEER_MAC)
        self._stack: Stack | None = None
        self._now = 0
        self._out: deque[tuple[int, bytes]] = deque()
        self._sockets: dict[int, _Socket] = {}

    # -- time and the wire

    def now(self) -> int:
        return self._now - SECOND if self._now else 0

    @property
    def clock(self) -> int:
        """The core's time; a second at the script's start."""
        self._now = self._now or SECOND
        return self._now

    @property
    def stack(self) -> Stack:
        """Made with the settings of the socket that first listens or connects."""
        if self._stack is None:
            self._make({})
        assert self._stack is not None
        return self._stack

    def _make(self, options: dict[str, int]) -> None:
        wanted = {"nagle": 1} | self.settings | options
        if self._stack is None:
            self.made = wanted
            keys: dict[str, Any] = dict(wanted)
            congestion = {n: word for word, n in CONGESTION.items()}[keys.pop("congestion", 0)]
            self._stack = Stack(
                self.arena, self.host, connections=16, secret=b"drill" * 3 + b"!", congestion=congestion,
                **keys,
            )  # fmt: skip
        elif wanted != self.made:
            raise Refused("socket options differ from those of the first socket: one setting for all")

    def _drain(self) -> None:
        stack, now = self.stack, self.clock
        for _ in range(10_000):
            frame = stack.output(now)
            if not frame:
                break
            packet = frame[14:]
            total = int.from_bytes(packet[2:4], "big") if packet[0] >> 4 == 4 else len(packet)
            self._out.append((self.now(), packet[:total] if len(frame) == 60 else packet))
        else:
            raise AssertionError("output without an end")
        for number, bits in stack.events():
            for sock in self._sockets.values():
                if sock.number == number:
                    _note(sock, bits)

    def advance(self, until: int) -> None:
        until += SECOND
        while self._stack and (due := self._stack.deadline()) <= until and due != NEVER:
            self._now = max(self.clock, due)
            self.stack.tick(self._now)
            self._drain()
        self._now = max(self.clock, until)

    def inject(self, packet: bytes) -> None:
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        ends = bytes.fromhex((_MAC + _PEER_MAC).replace(":", ""))
        self.stack.frame(ends + kind + packet, self.clock)
        self._drain()

    def sent(self, until: int) -> tuple[int, bytes] | None:
        until += SECOND
        while not self._out:
            due = self._stack.deadline() if self._stack else NEVER
            if due > until:
                return None
            self.advance(due - SECOND)
        return self._out.popleft()

    # -- calls

    def _of(self, fd: int) -> _Socket:
        if fd not in self._sockets:
            raise OSError(errno.EBADF, "no such socket")
        return self._sockets[fd]

    def _connected(self, fd: int) -> tuple[_Socket, int]:
        sock = self._of(fd)
        if sock.number is None:
            raise OSError(errno.ENOTCONN, "not connected")
        return sock, sock.number

    def _place(self, sock: _Socket) -> int:
        fd = next(n for n in range(3, 1000) if n not in self._sockets)
        self._sockets[fd] = sock
        return fd

    def socket(self) -> int:
        return self._place(_Socket())

    def bind(self, fd: int, port: int) -> None:
        self._of(fd).port = port

    def listen(self, fd: int, backlog: int) -> None:
        sock = self._of(fd)
        self._make(sock.options)
        sock.listener = self.stack.listen(sock.port or PORT, backlog=max(backlog, 1))

    def accept(self, fd: int) -> int:
        sock = self._of(fd)
        if sock.listener is None:
            raise OSError(errno.EINVAL, "it does not listen")
        number = self.stack.accept(sock.listener)
        if not number:
            raise BlockingIOError(errno.EAGAIN, "nobody came")
        child = _Socket(number=number, opened=True, options=dict(sock.options))
        child.linger_none = sock.linger_none
        found = self._place(child)
        self._drain()
        return found

    def connect(self, fd: int, port: int) -> None:
        sock = self._of(fd)
        if sock.number is None:
            self._make(sock.options)
            sock.number = self.stack.connect((self.remote, port), self.clock, local=("", sock.port))
            self._drain()
            raise BlockingIOError(errno.EINPROGRESS, "under way")
        if sock.ended and not sock.told:
            self._tell(sock)
        if sock.opened and sock.told_open:
            raise OSError(errno.EISCONN, "it is connected")
        if sock.opened:
            sock.told_open = True
            return
        raise BlockingIOError(errno.EALREADY, "under way")

    def _tell(self, sock: _Socket) -> None:
        """An error of the connection is heard once."""
        if sock.ended in _ENDS and not sock.told:
            sock.told = True
            code = _ENDS[sock.ended]
            raise OSError(errno.EPIPE if sock.fin and code == errno.ECONNRESET else code, "it ended")

    def read(self, fd: int, most: int) -> bytes:
        sock, number = self._connected(fd)
        data = self.stack.read(number, most)
        self._drain()
        if data:
            return data
        if not sock.fin:  # after the peer's end a read says that, whatever comes later
            self._tell(sock)
        if sock.fin or sock.ended:
            return b""
        raise BlockingIOError(errno.EAGAIN, "nothing came")

    def write(self, fd: int, data: bytes) -> int:
        sock, number = self._connected(fd)
        self._tell(sock)
        if sock.shut or sock.ended:
            raise OSError(errno.EPIPE, "nothing may be sent")
        done = self.stack.write(number, data)
        self._drain()
        if not done:
            raise BlockingIOError(errno.EAGAIN, "no room")
        return done

    def shutdown(self, fd: int, how: int) -> None:
        sock, number = self._connected(fd)
        if sock.ended and sock.ended != "closed":
            raise OSError(errno.ENOTCONN, "it has ended")
        if how != socket.SHUT_RD and not sock.shut:
            sock.shut = True
            self.stack.shutdown(number)
            self._drain()

    def close(self, fd: int) -> None:
        sock = self._of(fd)
        del self._sockets[fd]
        if sock.listener is not None:
            self.stack.unlisten(sock.listener)
        if sock.number is not None:
            if sock.linger_none:
                self.stack.abort(sock.number)
            self.stack.close(sock.number, self.clock)
        if self._stack:
            self._drain()

    def setsockopt(self, fd: int, level: int, name: int, value: Any) -> None:
        sock = self._of(fd)
        if level == socket.SOL_SOCKET and name == socket.SO_LINGER:
            sock.linger_none = bool(value.get("onoff")) and not value.get("linger")
            return
        if (level, name) in _HARMLESS:
            return
        option = _OPTIONS.get((level, name))
        if option is None:
            raise Refused(f"setsockopt: our sockets have no option {name} of level {level}")
        key, meaning = option
        wanted = meaning(value)
        if (sock.number is not None or sock.listener is not None) and (self.made or {}).get(key) != wanted:
            raise Refused(f"setsockopt: {key} is settled when a connection begins")
        sock.options[key] = wanted

    def getsockopt(self, fd: int, level: int, name: int) -> int:
        sock = self._of(fd)
        if (level, name) != (socket.SOL_SOCKET, socket.SO_ERROR):
            raise Refused(f"getsockopt: our sockets have no option {name} of level {level}")
        try:
            self._tell(sock)
        except OSError as error:
            return error.errno or 0
        return 0

    def blocking(self, fd: int, does: bool | None = None) -> bool:
        sock = self._of(fd)
        if does is not None:
            sock.blocks = does
        return sock.blocks

    def info(self, fd: int) -> dict[str, int]:
        _, number = self._connected(fd)
        found = self.stack.info(number)
        mss = max(found["mss"], 1)
        numbers = state_names()
        return {
            "tcpi_state": numbers[f"TCP_{_STATE[found['state']]}"],
            "tcpi_ca_state": _PHASE[found["recovery"]],
            "tcpi_snd_mss": found["mss"],
            "tcpi_snd_cwnd": found["cwnd"] // mss,
            "tcpi_snd_ssthresh": min(found["ssthresh"] // mss, 0x7FFFFFFF) or 0x7FFFFFFF,
            "tcpi_unacked": -(-found["outstanding"] // mss),
            "tcpi_sacked": -(-found["sacked"] // mss),
            "tcpi_lost": -(-found["lost"] // mss),
            "tcpi_rto": found["rto_ns"] // 1000,
            "tcpi_rtt": found["srtt_ns"] // 1000,
            "tcpi_rttvar": found["rttvar_ns"] // 1000,
            "tcpi_min_rtt": found["rtt_min_ns"] // 1000,
            "tcpi_total_retrans": found["retransmits"],
            "tcpi_notsent_bytes": found["unsent"],
        }

    def verify(self) -> None:
        """What holds after every script: each frame and each segment has its outcome."""
        stats, host = self.stack.stats(), self.host.stats()
        assert stats["received"] == stats["taken"] + sum(stats["reasons"].values())
        assert host["received"] == host["delivered"] + sum(host["reasons"].values())


_HARMLESS = {
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    (socket.IPPROTO_TCP, socket.TCP_QUICKACK),
}
_OPTIONS: dict[tuple[int, int], tuple[str, Any]] = {
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): ("nagle", lambda value: int(not value)),
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG): ("mss", int),
    (socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP): ("receive_bytes", int),
    (socket.SOL_SOCKET, socket.SO_SNDBUF): ("send_bytes", int),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): ("give_up_ns", lambda value: value * 1_000_000),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): ("keepalive", lambda value: int(bool(value))),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): ("keep_idle_ns", lambda value: value * SECOND),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): ("keep_interval_ns", lambda value: value * SECOND),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): ("keep_count", int),
}


def _note(sock: _Socket, bits: int) -> None:
    sock.opened |= bool(bits & _BIT["open"])
    sock.fin |= bool(bits & _BIT["fin"])
    for word in ("reset", "refused", "timeout", "closed"):
        if bits & _BIT[word]:
            sock.ended = word


def _settings(script: Script) -> dict[str, int]:
    """Fields of ``struct xds_tcp_config`` by the script's sysctls and its ``--xds=name=value,...``."""
    found: dict[str, int] = {}
    for name, value in script.sysctls.items():
        if name in _KERNELS_OWN:
            continue
        if name in _IN_NS:
            key, unit = _IN_NS[name]
            found[key] = int(value) * unit
        elif value in _SETTINGS.get(name, {}):
            found |= _SETTINGS[name][value]
        else:
            raise Refused(f"{script.name}: our stack has no setting for {name}={value}")
    for pair in filter(None, script.options.get("xds", "").split(",")):
        name, _, text = pair.partition("=")
        try:
            found[name] = int(text.replace("_", ""))
        except ValueError:
            raise ConfigError(f"{script.name}: --xds={pair}: name=number was expected") from None
    return found


def run(script: Script, family: str = "v4") -> None:
    """Play a script against our stack, over IPv4 or IPv6 (``v6``). Raises what
    :func:`xdpstack.drill.play.play` does."""
    machine = Virtual(script, family)
    with contextlib.closing(machine.arena):
        play(script, machine)
        machine.verify()
