"""What can be seen of a host from outside: to hold that a program left it as it found it."""

from __future__ import annotations

import contextlib
import glob
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from pyroute2 import IPRoute

from xdpstack.lab import host

__all__ = ["Snapshot", "other_labs"]

_SHARED = ("/run/xdpstack", "/run/xdpstack/lab", "/run/xdpstack/lab/.lock", "/sys/fs/bpf/xdpstack")


def _walk(root: str) -> frozenset[str]:
    return frozenset(os.path.join(at, name) for at, dirs, files in os.walk(root) for name in [*dirs, *files])


def _held_programs() -> set[str]:
    """Ids of the BPF programs that living processes hold by a descriptor of the program or of its link."""
    found = set()
    for path in glob.iglob("/proc/[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            for line in file:
                if line.startswith(b"prog_id:"):
                    found.add(line.split()[1].decode())
    return found


def _kept_programs() -> frozenset[str]:
    """Ids of loaded BPF programs that no process holds: kept by a pin or an attachment alone.

    Empty where bpftool is not installed.
    """
    try:
        listing = subprocess.run(["bpftool", "prog", "list"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return frozenset()
    loaded = {line.partition(":")[0] for line in listing.stdout.splitlines() if line[:1].isdigit()}
    return frozenset(loaded - _held_programs() if loaded else loaded)


def other_labs(item: str) -> bool:
    """Whether something in a snapshot belongs to a lab that stands now, or to the folders that labs share."""
    if item in _SHARED:
        return True
    for state in host.live_states():
        marks = [f"/{state['name']}.json", f"/{state['name']}/", f"xdpstack-{state['owner']}-"]
        for ns in state["namespaces"].values():
            marks += [f"net:[{ns['inode']}]", f"/{ns['cookie']}-"]
        if any(mark in item for mark in marks):
            return True
    return False


def _processes() -> frozenset[str]:
    """Every process that is not a kernel thread, by number and start time."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (start := host.start_time(int(name))) is not None:
            found.append(f"{name}@{start}")
    return frozenset(found)


def _namespaces() -> frozenset[str]:
    """The network namespaces that some process lives in."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.add(os.readlink(f"/proc/{name}/ns/net"))
            except OSError:
                continue
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Links, namespaces, mounts, pinned BPF objects, programs that outlive their process, shared memory,
    state files and processes."""

    links: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    pins: frozenset[str]
    programs: frozenset[str]
    shared_memory: frozenset[str]
    state: frozenset[str]
    processes: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        """Look at the host from the calling thread's namespaces."""
        with IPRoute() as route:
            links = frozenset(str(link.get_attr("IFLA_IFNAME")) for link in route.get_links())
        mounts = frozenset(line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines())
        return cls(
            links=links,
            namespaces=_namespaces(),
            mounts=mounts,
            pins=_walk("/sys/fs/bpf"),
            programs=_kept_programs(),
            shared_memory=_walk("/dev/shm"),
            state=_walk("/run/xdpstack"),
            processes=_processes(),
        )

    def added(
        self, before: Snapshot, *, processes: bool = False, but: Callable[[str], bool] | None = None
    ) -> dict[str, list[str]]:
        """What is here now and was not then; a shared host's processes only when asked for.

        ``but``: says what does not count, e.g. :func:`other_labs`.
        """
        found = {}
        for field in fields(self):
            if field.name == "processes" and not processes:
                continue
            fresh = sorted(getattr(self, field.name) - getattr(before, field.name))
            fresh = [item for item in fresh if but is None or not but(item)]
            if fresh:
                found[field.name] = fresh
        return found

    def wait_restored(
        self, timeout: float = 5.0, *, but: Callable[[str], bool] | None = None
    ) -> dict[str, list[str]]:
        """Wait until the host shows nothing that this snapshot lacks; returns what is left at the end."""
        deadline = time.monotonic() + timeout
        while (left := Snapshot.take().added(self, but=but)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left
