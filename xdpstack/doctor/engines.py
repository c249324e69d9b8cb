"""Engines that run now: where their threads may run, how they are scheduled, what memory is locked."""

from __future__ import annotations

import re

from xdpstack.doctor.check import OK, UNKNOWN, WARN, Finding
from xdpstack.doctor.host import Host, cpus, cpus_text

THREAD = "xds-engine"  # its name, see cffi_build/engine/runner.c
SCHED = {0: "", 1: "FIFO", 2: "RR"}  # linux/sched.h


def running(host: Host) -> Finding:
    """Every thread of an engine: its cores, priority, and the locked memory of its process."""
    tasks = [path for path in host.list("/proc/[0-9]*/task/[0-9]*/comm") if host.read(path) == THREAD]
    if not tasks:
        return Finding(OK, "none")
    isolated = cpus(host.read("/sys/devices/system/cpu/isolated"))
    found, wrong = [], []
    for path in tasks:
        folder = path.removesuffix("/comm")
        pid = path.split("/")[2]
        allowed = _field(host, f"{folder}/status", "Cpus_allowed_list")
        if allowed is None:
            continue  # it has ended meanwhile
        on = cpus(allowed)
        words = [f"process {pid} on core{'s' if len(on) > 1 else ''} {cpus_text(on)}"]
        words += [_scheduled(host.read(f"{folder}/stat") or ""), _locked(host, pid)]
        found.append(", ".join(word for word in words if word))
        if len(on) > 1:
            wrong.append(f"process {pid} is on no core of its own")
        elif isolated and not on & isolated:
            wrong.append(f"core {cpus_text(on)} of process {pid} is not isolated")
    if not found:
        return Finding(UNKNOWN, "they ended while we looked")
    if wrong:
        remedy = f"[engine] cpu = {min(isolated) if isolated else 'N'}   (or: xdpstack run --cpu)"
        return Finding(WARN, f"{'; '.join(found)}: {'; '.join(wrong)}", remedy)
    return Finding(OK, "; ".join(found))


def _field(host: Host, path: str, word: str) -> str | None:
    match = re.search(rf"^{word}:\s*(\S+)", host.read(path) or "", re.M)
    return match[1] if match else None


def _scheduled(stat: str) -> str:
    """Policy and priority out of /proc/PID/task/TID/stat: fields 41 and 40, counted after the name."""
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 39:
        return ""
    name = SCHED.get(int(fields[38]), f"policy {fields[38]}")
    return f"{name} {fields[37]}".strip() if name else ""


def _locked(host: Host, pid: str) -> str:
    kib = int(_field(host, f"/proc/{pid}/status", "VmLck") or 0)
    return f"{kib >> 10:,} MiB locked" if kib else ""
