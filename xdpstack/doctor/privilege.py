"""What this process may do: capabilities, locked memory, a place for pins."""

from __future__ import annotations

import re

from xdpstack.doctor.check import FAIL, OK, UNKNOWN, WARN, Finding
from xdpstack.doctor.host import Host

# include/uapi/linux/capability.h
CAPABILITIES = {"net_admin": 12, "net_raw": 13, "bpf": 39}
CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_NICE = 14, 21, 23
ENOUGH = 64 << 20  # bytes: four ports of 4,096 frames of 4 KiB
GRANT = "run as root, or: setcap cap_bpf,cap_net_admin,cap_net_raw,cap_ipc_lock,cap_sys_nice+ep F"


def bits(host: Host) -> int | None:
    """The effective capabilities of this process."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", host.read("/proc/self/status") or "", re.M)
    return int(match[1], 16) if match else None


def capabilities(host: Host) -> Finding:
    """Those that loading, opening and pinning threads take."""
    has = bits(host)
    if has is None:
        return Finding(UNKNOWN, "cannot be read")
    missing = [name for name, bit in CAPABILITIES.items() if not has >> bit & 1]
    if has >> CAP_SYS_ADMIN & 1 and "bpf" in missing:
        missing.remove("bpf")
    if missing:
        return Finding(FAIL, "missing: " + ", ".join(f"CAP_{m.upper()}" for m in missing), GRANT)
    if not has >> CAP_SYS_NICE & 1:
        found = "no CAP_SYS_NICE: a free-running engine cannot ask for real-time priority"
        return Finding(WARN, found, "add cap_sys_nice")
    return Finding(OK, "all that is needed")


def memlock(host: Host) -> Finding:
    """How much memory may be locked."""
    limit = host.ask("memlock")
    if limit is None:
        return Finding(UNKNOWN, "cannot be asked")
    passes = bool((bits(host) or 0) >> CAP_IPC_LOCK & 1)
    text = "unlimited" if limit < 0 else f"{limit >> 10} KiB"
    text += ", and CAP_IPC_LOCK passes it" if passes else ""
    if limit < 0 or limit >= ENOUGH or passes:
        return Finding(OK, text)
    return Finding(WARN, text, "ulimit -l unlimited   (for good: memlock in /etc/security/limits.conf)")


def bpffs(host: Host) -> Finding:
    """The file system of pins."""
    mounts = host.read("/proc/self/mounts")
    if mounts is None:
        return Finding(UNKNOWN, "mounts cannot be read")
    if any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in mounts.splitlines()):
        return Finding(OK, "mounted")
    return Finding(WARN, "not mounted at /sys/fs/bpf", "mount -t bpf bpf /sys/fs/bpf   (`load` does it, too)")
