"""What can be seen of a host from outside: to hold that a program left it as it found it."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, fields
from pathlib import Path

from pyroute2 import IPRoute

from xdpstack.lab import host

__all__ = ["Snapshot"]


def _walk(root: str) -> frozenset[str]:
    return frozenset(os.path.join(at, name) for at, dirs, files in os.walk(root) for name in [*dirs, *files])


def _bpf_ids(kind: str) -> frozenset[str]:
    """Ids of loaded BPF objects; empty where bpftool is not installed."""
    try:
        listing = subprocess.run(["bpftool", kind, "list"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return frozenset()
    return frozenset(line.partition(":")[0] for line in listing.stdout.splitlines() if line[:1].isdigit())


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
    """Links, namespaces, mounts, pinned and loaded BPF objects, shared memory, state files and processes."""

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
            programs=_bpf_ids("prog"),
            shared_memory=_walk("/dev/shm"),
            state=_walk("/run/xdpstack"),
            processes=_processes(),
        )

    def added(self, before: Snapshot, *, processes: bool = False) -> dict[str, list[str]]:
        """What is here now and was not then; a shared host's processes only when asked for."""
        found = {}
        for field in fields(self):
            if field.name == "processes" and not processes:
                continue
            fresh = sorted(getattr(self, field.name) - getattr(before, field.name))
            if fresh:
                found[field.name] = fresh
        return found

    def wait_restored(self, timeout: float = 5.0) -> dict[str, list[str]]:
        """Wait until the host shows nothing that this snapshot lacks; returns what is left at the end."""
        deadline = time.monotonic() + timeout
        while (left := Snapshot.take().added(self)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left
