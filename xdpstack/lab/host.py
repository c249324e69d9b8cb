"""What a lab asks of the kernel, and what a dead lab leaves: state files, the sweep, the warden.

Rules:

1. A lab writes down what it is about to make *before* it makes it, so that whoever comes later can take it
   away.
2. A thing is removed only if it is provably the dead lab's: an owner is a process id *and* its start time, a
   namespace is its cookie (never used twice between two boots), a process is one that lives in such a
   namespace.
3. Standard library only, and no import of ours: the warden is this file run as a script (``python -I -S``), a
   small process that waits for its owner's death and sweeps. It starts in some 20 ms and holds nothing open.

A namespace without a name is held by file descriptors and processes alone; the kernel takes it, and the
veth pairs in it, when the last one ends. Names (bind mounts), pinned BPF objects and shared memory need the
sweep.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import json
import os
import re
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "STATE_DIR",
    "alive",
    "live_states",
    "netns_cookie",
    "read_state",
    "start_time",
    "sweep",
    "sweep_state",
]

T = TypeVar("T")

STATE_DIR = Path("/run/xdpstack/lab")
PIN_DIR = Path("/sys/fs/bpf/xdpstack")
SHARED_MEMORY = Path("/dev/shm")
SWEPT_ROOTS = ("/dev/shm/", "/sys/fs/bpf/", "/run/xdpstack/", "/tmp/")
"""Where a lab may own files; anything else in a state file is ignored."""

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
SO_NETNS_COOKIE = 71

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def _checked(code: int, what: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def setns(fd: int) -> None:
    """Move the calling thread into the network namespace ``fd``; its view of bpffs stays as it was."""
    _checked(_libc.setns(fd, CLONE_NEWNET), "setns")


def die_with_parent(parent: int) -> None:
    """Have this process killed when the thread that started it ends; leave at once if ``parent`` is gone
    already.

    Async-signal-safe enough to run between fork and exec.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own, so that what it does to its namespaces dies with it."""
    outcome: list[T] = []
    fault: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            fault.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    if fault:
        raise fault[0]
    return outcome[0]


def open_current() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def new_namespace(mount_at: Path | None = None) -> int:
    """Make a network namespace and return a descriptor of it; with ``mount_at`` it has a name as well."""

    def make() -> int:
        _checked(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
        if mount_at is not None:
            mount_at.touch()
            _checked(
                _libc.mount(b"/proc/thread-self/ns/net", bytes(mount_at), None, MS_BIND, None),
                f"mount {mount_at}",
            )
        return open_current()

    return in_thread(make)


def netns_cookie(path: str | int) -> int:
    """The cookie of a namespace given by descriptor or path: a number that is never used again until
    reboot."""

    def ask() -> int:
        fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd)
        finally:
            if not isinstance(path, int):
                os.close(fd)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)

    return in_thread(ask)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def alive(state: dict[str, Any]) -> bool:
    """Whether a lab stands: it is persistent and complete, or the process that owns it lives."""
    if state.get("boot") != boot_id():
        return False
    if state.get("persistent"):
        return True
    return state.get("start") is not None and start_time(int(state.get("owner", 0))) == state["start"]


# ---- state files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One process at a time claims or sweeps; the lock ends with its holder. The last one out removes the
    folder."""
    path = STATE_DIR / ".lock"
    while True:
        STATE_DIR.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # somebody removed the folder just now
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                break
        os.close(fd)  # a lock whose file is gone locks nobody out
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.listdir(STATE_DIR) == [path.name]:
                path.unlink()
                STATE_DIR.rmdir()
                STATE_DIR.parent.rmdir()
        os.close(fd)


def read_state(path: Path) -> dict[str, Any]:
    """The state in a file; a file that is cut short or unreadable is an empty state, owned by nobody."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace a state file in one step: a reader sees the old or the new one."""
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps(state, indent=1))
    fresh.replace(path)


def live_states() -> list[dict[str, Any]]:
    """The states of all labs that stand, by name."""
    return [state for path in sorted(STATE_DIR.glob("*.json")) if alive(state := read_state(path))]


# ---- the sweep -------------------------------------------------------------------------------------------


def processes_in(namespaces: list[dict[str, int]], token: str) -> list[int]:
    """The processes that live in these namespaces, or that a lab's own environment marks as its children."""
    inodes = {int(ns["inode"]): int(ns["cookie"]) for ns in namespaces}
    mark = b"XDPSTACK_LAB_TOKEN=" + token.encode() + b"\0"
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            inode = os.stat(f"/proc/{name}/ns/net").st_ino
            ours = inode in inodes and netns_cookie(f"/proc/{name}/ns/net") == inodes[inode]
            if not ours and token:
                ours = mark in Path(f"/proc/{name}/environ").read_bytes() + b"\0"
            if ours:
                found.append(int(name))
    return found


def kill_processes(find: Callable[[], list[int]], patience: float = 3.0) -> None:
    """SIGKILL what ``find`` finds until it finds nothing; processes may fork meanwhile, so look again."""
    deadline = time.monotonic() + patience
    while (pids := [pid for pid in find() if start_time(pid) is not None]) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def remove_tree(path: Path) -> None:
    """Remove a file, a folder or a pinned object; what is gone already is fine."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for child in path.iterdir():
                remove_tree(child)
            path.rmdir()
        else:
            path.unlink()


def _discard(pin: Path) -> None:
    """What libxdp pinned of a filter in its dispatcher goes, too. That needs the native core, which a lab
    does without else: the warden runs without the folders of packages, and finds them only now. Where there
    is no core, ours go all the same, by :func:`remove_tree`."""
    if "site" not in sys.modules:
        import site

        site.main()
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    with contextlib.suppress(ImportError):
        from xdpstack.pins import discard

        discard(pin)


def unmount(path: Path) -> None:
    """Take a namespace's name away, however often it is mounted there."""
    while _libc.umount2(bytes(path), MNT_DETACH) == 0:
        pass
    if (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOENT):
        raise OSError(number, f"umount {path}: {os.strerror(number)}")


def sweep_state(path: Path, state: dict[str, Any]) -> None:
    """Remove everything that the lab of this state file made; the file itself goes last."""
    namespaces = list(state.get("namespaces", {}).values())
    token = str(state.get("token", ""))
    if state.get("boot") == boot_id():
        kill_processes(lambda: processes_in(namespaces, token))
        for ns in namespaces:
            cookie = int(ns["cookie"])
            for pin in map(Path, [*glob.glob(f"{PIN_DIR}/{cookie}[-_:.]*"), f"{PIN_DIR}/{cookie}"]):
                if pin.is_dir():
                    _discard(pin)
                remove_tree(pin)
        with contextlib.suppress(OSError):
            PIN_DIR.rmdir()  # when nobody else's pins are in it
    for owned in state.get("owned", []):
        target = os.path.normpath(str(owned))
        if target.startswith(SWEPT_ROOTS):
            remove_tree(Path(target))
    folder = path.with_suffix("")
    if folder.is_dir():
        for name in folder.iterdir():
            unmount(name)
        shutil.rmtree(folder, ignore_errors=True)
    path.unlink(missing_ok=True)


def sweep_shared_memory() -> None:
    """Remove ``/dev/shm/xdpstack-PID-…`` of processes that are gone: by name such a file is its process's
    own."""
    for name in os.listdir(SHARED_MEMORY):
        owner = re.match(r"xdpstack-(\d+)-", name)
        if owner and start_time(int(owner[1])) is None:
            remove_tree(SHARED_MEMORY / name)


def sweep() -> list[str]:
    """Remove what dead labs left on this host; returns their names. Every lab does this when it starts."""
    sweep_shared_memory()
    if not STATE_DIR.is_dir():
        return []
    swept = []
    with locked():
        for path in sorted(STATE_DIR.glob("*.json")):
            state = read_state(path)
            if not alive(state):
                sweep_state(path, state)
                swept.append(path.stem)
        if swept:
            sweep_shared_memory()  # of those that were killed just now
        for litter in STATE_DIR.glob("*.tmp"):
            pid = litter.suffixes[-2].lstrip(".") if len(litter.suffixes) >= 2 else ""
            if not pid.isdigit() or start_time(int(pid)) is None:
                litter.unlink(missing_ok=True)
    return swept


# ---- the warden ------------------------------------------------------------------------------------------


def watch(owner: int, start: int) -> None:
    """Sleep until the owner's end, then sweep. The owner removes its state before it ends in peace."""
    try:
        fd = os.pidfd_open(owner)
    except ProcessLookupError:
        fd = -1
    if fd >= 0 and start_time(owner) == start:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll()
    sweep()


def warden_command(owner: int, start: int) -> list[str]:
    """How to start the warden of a lab."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(owner), str(start)]


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watch(int(sys.argv[1]), int(sys.argv[2]))
