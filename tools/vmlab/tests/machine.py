"""Words for tests in the virtual machine: programs, waiting, links and their cables."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xdpstack.links import parse

LINKS = ("igb0", "igb1", "virtio0", "virtio1")
ZERO_COPY: dict[str, Any] = {"mode": "zerocopy", "require": True, "bind_wait_ms": 120_000}
"""A port's options. igb lets go of a queue a moment after its socket's close; the emulation is slow at it."""
PATIENCE = 300.0


def run(*words: object, check: bool = True) -> str:
    """A program's output."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


class Patience:
    """True for so many seconds. The emulation is slow, and its clock leaps when the host has no time for it:
    the limit is wide, and a leap counts as one second of it."""

    def __init__(self, seconds: float = PATIENCE) -> None:
        self._left, self._seen = seconds, time.monotonic()

    def __bool__(self) -> bool:
        now = time.monotonic()
        self._left -= min(now - self._seen, 1.0)
        self._seen = now
        return self._left > 0


def until(holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for a condition."""
    patience = Patience(seconds)
    while not holds():
        assert patience, "it did not come true in time"
        time.sleep(0.02)


def carrier(link: str) -> bool:
    """Whether a link is up and has its cable. Asked by RTM_GETLINK for the one link: before it answers that,
    the kernel starts the queues of a link whose carrier has come, and until then it loses what is sent."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        index = socket.if_nametoindex(link)
        sock.send(struct.pack("=IHHIIBxHiII", 32, 18, 1, 1, 0, 0, 0, index, 0, 0))
        return any(found is not None and found.state == "up" for _, found, _ in parse(sock.recv(65536)))


def up(*links: str) -> None:
    """Bring links up, and wait until each carries and sends."""
    for link in links:
        write(
            f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6", 1
        )  # its neighbour discovery would be on the wire
        run("ip", "link", "set", link, "up")
    until(lambda: all(carrier(link) for link in links))
    assert all(carrier(link) for link in links)  # it may have come between the start of queues and the answer


def write(path: str, text: object) -> None:
    """A word into a file of /proc or /sys."""
    Path(path).write_text(f"{text}\n")


def cable(link: str, plugged: bool) -> str:
    """Pull or plug a link's cable on the host's side; its answer."""
    with open("/dev/vmlab", "r+b", buffering=0) as wire:
        wire.write(f"link {link} {'on' if plugged else 'off'}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            answer += wire.read(1)
    return answer.decode().strip()


def put_links_back() -> None:
    """Links plugged, down, without addresses or programs; cards with two queues."""
    for link in LINKS:
        cable(link, True)
    words = [f"link set {link} xdp off\naddr flush dev {link}\nlink set {link} down" for link in LINKS]
    subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(words), text=True, capture_output=True)
    for link in LINKS[:2]:
        if "Combined:\t2" not in run("ethtool", "-l", link).rpartition("settings")[2]:
            run("ethtool", "-L", link, "combined", "2")


@contextlib.contextmanager
def mouth(link: str = "igb0") -> Iterator[socket.socket]:
    """A kernel socket that sends datagrams of at least 18 bytes to 10.9.0.2:9000 by ``link``."""
    run("ip", "addr", "replace", "10.9.0.1/24", "dev", link)
    run("ip", "neigh", "replace", "10.9.0.2", "lladdr", "52:54:00:00:00:02", "dev", link)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        sender.connect(("10.9.0.2", 9000))
        yield sender
