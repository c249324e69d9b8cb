"""The kernel's TCP as the machine of a script: real sockets behind a TUN device, in a namespace of its own.

Each script has a thread, whose network namespace is its own and goes with it; nothing has a name outside.
Time is real: a script waits most of its time, so many run at once, and one that the host has held up is
run again before it is believed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from xdpstack.drill.play import Mismatch, Refused, play
from xdpstack.drill.script import Script
from xdpstack.errors import SetupError, XdpstackError

__all__ = ["Kernel", "run", "run_many"]

_MS = 1_000_000
_ENDS = {"v4": ("192.0.2.2", "192.0.2.1"), "v6": ("fd00::2", "fd00::1")}
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8914, 0x8916, 0x891C, 0x8922
_UP = 1
_NAME = b"tun0"
_SYSCTLS = {
    "v4": {"net.ipv6.conf.all.disable_ipv6": "1"},
    "v6": {"net.ipv6.conf.default.router_solicitations": "0", "net.ipv6.conf.default.dad_transmits": "0"},
}
_CONGESTION = "net.ipv4.tcp_congestion_control"
_INFO = (
    "rto", "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans", "fackets", "last_data_sent",
    "last_ack_sent", "last_data_recv", "last_ack_recv", "pmtu", "rcv_ssthresh", "rtt", "rttvar",
    "snd_ssthresh", "snd_cwnd", "advmss", "reordering", "rcv_rtt", "rcv_space", "total_retrans",
)  # fmt: skip


class Kernel:
    """The namespace of the thread that makes it, from then on. Root only; close it in that thread."""

    early, late = 60 * _MS, 300 * _MS
    slack = 0.15  # the longer a timer, the coarser: an eighth
    settle = 5 * _MS

    def __init__(self, script: Script, family: str = "v4") -> None:
        """SetupError: no privilege, no TUN; Refused: a sysctl that this kernel does not have."""
        self.local, self.remote = _ENDS[family]
        self._family = socket.AF_INET if family == "v4" else socket.AF_INET6
        self._sockets: dict[int, socket.socket] = {}
        self._blocks: dict[int, bool] = {}
        self._out: deque[tuple[int, bytes]] = deque()
        _leave_for_own_namespace()
        settings = {**_SYSCTLS[family], _CONGESTION: "cubic", **script.sysctls}
        self._congestion = settings.pop(_CONGESTION)  # a namespace may not choose every one
        for name, value in settings.items():
            _set(name, value)
        self._tun = _tun(self.local)
        self._poll = select.poll()
        self._poll.register(self._tun, select.POLLIN)
        self._begin = time.monotonic_ns()

    def finish(self) -> None:
        """Sockets and the device are given back."""
        for sock in self._sockets.values():
            sock.close()
        os.close(self._tun)

    # -- time and the wire

    def now(self) -> int:
        return time.monotonic_ns() - self._begin

    def _look(self) -> None:
        while True:
            try:
                packet = os.read(self._tun, 65536)
            except BlockingIOError:
                return
            if packet[9 if packet[0] >> 4 == 4 else 6] == socket.IPPROTO_TCP:
                self._out.append((self.now(), packet))

    def advance(self, until: int) -> None:
        while (left := until - self.now()) > 0:
            self._poll.poll(left / _MS)
            self._look()
        self._look()

    def inject(self, packet: bytes) -> None:
        os.write(self._tun, packet)
        self._look()

    def sent(self, until: int) -> tuple[int, bytes] | None:
        self._look()
        while not self._out and (left := until - self.now()) > 0:
            self._poll.poll(max(left / _MS, 1))
            self._look()
        return self._out.popleft() if self._out else None

    # -- calls

    def _of(self, fd: int) -> socket.socket:
        if fd not in self._sockets:
            raise OSError(errno.EBADF, "no such socket")
        return self._sockets[fd]

    def _place(self, sock: socket.socket) -> int:
        sock.setblocking(False)
        fd = next(n for n in range(3, 1000) if n not in self._sockets)
        self._sockets[fd], self._blocks[fd] = sock, True
        return fd

    def socket(self) -> int:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion.encode())
        except OSError as error:
            sock.close()
            raise Refused(f"this kernel has no congestion control {self._congestion}: {error}") from None
        return self._place(sock)

    def bind(self, fd: int, port: int) -> None:
        self._of(fd).bind((self.local, port))

    def listen(self, fd: int, backlog: int) -> None:
        self._of(fd).listen(backlog)

    def accept(self, fd: int) -> int:
        return self._place(self._of(fd).accept()[0])

    def connect(self, fd: int, port: int) -> None:
        self._of(fd).connect((self.remote, port))

    def read(self, fd: int, most: int) -> bytes:
        return self._of(fd).recv(most)

    def write(self, fd: int, data: bytes) -> int:
        return self._of(fd).send(data, socket.MSG_NOSIGNAL)

    def shutdown(self, fd: int, how: int) -> None:
        self._of(fd).shutdown(how)

    def close(self, fd: int) -> None:
        self._of(fd).close()
        del self._sockets[fd]

    def setsockopt(self, fd: int, level: int, name: int, value: Any) -> None:
        if isinstance(value, dict):
            value = struct.pack("ii", value.get("onoff", 0), value.get("linger", 0))
        self._of(fd).setsockopt(level, name, value)

    def getsockopt(self, fd: int, level: int, name: int) -> int:
        return self._of(fd).getsockopt(level, name)

    def blocking(self, fd: int, does: bool | None = None) -> bool:
        self._of(fd)
        if does is not None:
            self._blocks[fd] = does
        return self._blocks[fd]

    def info(self, fd: int) -> dict[str, int]:
        raw = self._of(fd).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        found = {f"tcpi_{name}": n for name, n in zip(_INFO, struct.unpack_from("24I", raw, 8), strict=True)}
        small = ("state", "ca_state", "retransmits", "probes", "backoff")
        found |= {f"tcpi_{name}": raw[i] for i, name in enumerate(small)}
        found["tcpi_notsent_bytes"], found["tcpi_min_rtt"] = struct.unpack_from("II", raw, 144)
        return found


def _leave_for_own_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise SetupError("network namespace for a script", os.strerror(code), "run it as root", code)


def _set(name: str, value: str) -> None:
    path = Path("/proc/sys", *name.split("."))
    try:
        path.write_text(value)
    except FileNotFoundError:
        raise Refused(f"this kernel has no {name}") from None
    except OSError as error:
        raise Refused(f"this kernel does not take {name}={value}: {error.strerror}") from None


def _tun(local: str) -> int:
    """A TUN device with the local address, up; the file descriptor, which does not block. Its MTU leaves
    TCP 1460 bytes in either family."""
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SetupError("/dev/net/tun", error.strerror or "", "modprobe tun", error.errno) from error
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _NAME, _IFF_TUN | _IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            mtu = 1520 if ":" in local else 1500
            fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", _NAME, mtu))
            if ":" not in local:
                for request, address in ((_SIOCSIFADDR, local), (_SIOCSIFNETMASK, "255.255.255.0")):
                    packed = struct.pack("16sHH4s16x", _NAME, socket.AF_INET, 0, socket.inet_aton(address))
                    fcntl.ioctl(control, request, packed)
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", _NAME, _UP))
        if ":" in local:
            _add_address6(local)
    except OSError as error:
        os.close(tun)
        raise SetupError("a TUN device", error.strerror or "", "run it as root", error.errno) from error
    return tun


def _add_address6(local: str) -> None:
    """It may be used only after the kernel's own work on it, which no call waits for."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        index = socket.if_nametoindex(_NAME.decode())
        packed = struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, local), 64, index)
        fcntl.ioctl(control, _SIOCSIFADDR, packed)
        for left in reversed(range(5000)):
            try:
                control.bind((local, 0))
                return
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or not left:
                    raise
                time.sleep(0.002)


def run(script: Script, family: str = "v4") -> None:
    """Play a script once over IPv4 or IPv6 (``v6``), in a thread of its own. Raises what
    :func:`xdpstack.drill.play.play` does, and SetupError."""
    found: list[BaseException] = []

    def body() -> None:
        try:
            machine = Kernel(script, family)
            try:
                play(script, machine)
            finally:
                machine.finish()
        except Exception as error:  # for the thread that waits
            found.append(error)

    thread = threading.Thread(target=body, name=f"drill {script.name}", daemon=True)
    thread.start()
    thread.join()
    if found:
        raise found[0]


def run_many(
    scripts: Iterable[Script],
    *,
    family: str = "v4",
    at_once: int = 24,
    attempts: int = 3,
    good: Callable[[Script, XdpstackError | None], bool] = lambda script, outcome: outcome is None,
) -> dict[str, XdpstackError | None]:
    """What came of each script by its name: None, Mismatch or Refused.

    One whose outcome is not ``good`` is played again, few at a time: the host may have held it up.
    """
    left = list(scripts)
    found: dict[str, XdpstackError | None] = {}
    for attempt in range(attempts):
        _all(left, family, max(at_once >> (2 * attempt), 1), found)
        left = [script for script in left if not good(script, found[script.name])]
        if not left:
            break
    return found


def _all(scripts: list[Script], family: str, at_once: int, found: dict[str, XdpstackError | None]) -> None:
    queue: deque[Script] = deque(scripts)
    failed: list[Exception] = []

    def worker() -> None:
        while queue and not failed:
            try:
                script = queue.popleft()
            except IndexError:
                return
            try:
                run(script, family)
                found[script.name] = None
            except (Mismatch, Refused) as error:
                found[script.name] = error
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(at_once, len(scripts)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
