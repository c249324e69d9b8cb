"""Words for tests in the virtual machine: programs, waiting, links and their cables."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LINKS = ("igb0", "igb1", "virtio0", "virtio1")


def run(*words: object, check: bool = True) -> str:
    """A program's output."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition; the emulation is slow, so that the limit is wide."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def carrier(link: str) -> bool:
    """Whether a link that is up has its cable."""
    return Path(f"/sys/class/net/{link}/carrier").read_text() == "1\n"


def up(*links: str) -> None:
    """Bring links up, and wait until each carries."""
    for link in links:
        write(
            f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6", 1
        )  # its neighbour discovery would be on the wire
        run("ip", "link", "set", link, "up")
    until(lambda: all(carrier(link) for link in links))


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


@contextlib.contextmanager
def mouth(link: str = "igb0") -> Iterator[socket.socket]:
    """A kernel socket that sends datagrams of at least 18 bytes to 10.9.0.2:9000 by ``link``."""
    run("ip", "addr", "replace", "10.9.0.1/24", "dev", link)
    run("ip", "neigh", "replace", "10.9.0.2", "lladdr", "52:54:00:00:00:02", "dev", link)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        sender.connect(("10.9.0.2", 9000))
        yield sender
