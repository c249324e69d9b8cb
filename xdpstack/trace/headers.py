"""What bcc needs of a host before it compiles anything: kernel headers and tracefs.

Where the running kernel ships no headers, Debian's of another version serve, since the probes are
tracepoints only. Debian splits them into two folders; bcc is shown one, made of links in a tmpfs that is
mounted nowhere. tracefs is mounted in a mount namespace of our own when it is not there. Both go with the
process, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from xdpstack.errors import SetupError

__all__ = ["Headers", "find", "need_tracefs", "tracefs"]

MODULES, SOURCES = Path("/lib/modules"), Path("/usr/src")
INSTALL = "sudo make trace-deps   (python3-bpfcc and linux-headers)"
ARCHITECTURES = {"x86_64": ("amd64", "x86"), "aarch64": ("arm64", "arm64")}  # Debian's name, the kernel's
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432  # one number on every architecture; Linux 5.2
CLOEXEC, CREATE = 1, 6
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 1 << 14, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Headers:
    """Kernel headers: ``version`` as their folder has it, ``borrowed`` when it is another kernel's."""

    version: str
    borrowed: bool
    parts: tuple[Path, ...]
    """The folders that together are one tree; empty where bcc finds the running kernel's by itself."""


def find(modules: Path = MODULES, sources: Path = SOURCES, release: str = "") -> Headers:
    """The running kernel's headers, else the newest of Debian's. SetupError: there are none."""
    release = release or os.uname().release
    if (modules / release / "build/include/linux/kconfig.h").exists() or (
        (modules / release / "source/include/linux/kconfig.h").exists()
        and (modules / release / "build/include/generated/autoconf.h").exists()
    ):
        return Headers(release, False, ())
    debian, _ = ARCHITECTURES.get(platform.machine(), ("", ""))
    folders = [
        path
        for path in sources.glob(f"linux-headers-*-{debian}")
        if (path / "include/generated/autoconf.h").exists() and _common(path).is_dir()
    ]
    if not debian or not folders:
        raise SetupError("trace", f"no kernel headers, neither for {release} nor Debian's", INSTALL)
    newest = max(folders, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    return Headers(newest.name.removeprefix("linux-headers-"), True, (_common(newest), newest))


def _common(path: Path) -> Path:
    """Debian's other half: linux-headers-6.1.0-9-amd64 stands on linux-headers-6.1.0-9-common."""
    return path.with_name(re.sub(r"(-cloud|-rt)?-[a-z0-9]+$", "-common", path.name))


class Tree:
    """The parts of headers as one folder, for as long as the ``with`` block lasts."""

    def __init__(self, headers: Headers) -> None:
        self._parts = headers.parts
        self._fd = -1

    def __enter__(self) -> None:
        if not self._parts:
            return
        self._fd = _detached_tmpfs()
        root = Path(f"/proc/self/fd/{self._fd}")
        _, architecture = ARCHITECTURES[platform.machine()]
        for folder in ("include", f"arch/{architecture}/include"):
            (root / folder).mkdir(parents=True)
            for part in self._parts:
                for entry in (part / folder).iterdir():
                    link = root / folder / entry.name
                    if not link.is_symlink():
                        link.symlink_to(entry)
        os.environ["BCC_KERNEL_SOURCE"] = str(root)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            del os.environ["BCC_KERNEL_SOURCE"]
            os.close(self._fd)
            self._fd = -1


def _detached_tmpfs() -> int:
    context = _call("open a tmpfs", FSOPEN, b"tmpfs", CLOEXEC)
    try:
        _call("make a tmpfs", FSCONFIG, context, CREATE, None, None, 0)
        return _call("mount a tmpfs", FSMOUNT, context, CLOEXEC, 0)
    finally:
        os.close(context)


def _call(tried: str, number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise _refused(tried)
    return result


def _refused(tried: str) -> SetupError:
    number = ctypes.get_errno()
    return SetupError(f"trace: {tried}", os.strerror(number), "run it by sudo", number)


def tracefs() -> Path | None:
    """Where tracefs is mounted, where bcc looks for it; None when it is not."""
    for path in (Path("/sys/kernel/debug/tracing"), Path("/sys/kernel/tracing")):
        if (path / "events").is_dir():
            return path
    return None


def need_tracefs() -> Path:
    """Have tracefs, in a mount namespace of this thread's own when it is not mounted. SetupError."""
    there = tracefs()
    if there is not None:
        return there
    if _libc.unshare(CLONE_NEWNS) < 0:
        raise _refused("mount tracefs")
    path = Path("/sys/kernel/tracing")
    for source, target, kind, flags in (
        (b"none", b"/", None, MS_REC | MS_PRIVATE),
        (b"tracefs", bytes(path), b"tracefs", 0),
    ):
        if _libc.mount(source, target, kind, flags, None) < 0:
            raise _refused("mount tracefs")
    if tracefs() is None:
        raise SetupError("trace", "the kernel has no tracepoints (CONFIG_EVENT_TRACING)", "boot another")
    return path
