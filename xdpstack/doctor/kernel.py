"""The kernel: its version, how it was built, AF_XDP, the compiler of BPF, busy polling."""

from __future__ import annotations

import platform
import re

from xdpstack.doctor.check import FAIL, OK, UNKNOWN, WARN, Change, Finding
from xdpstack.doctor.host import Host

# The least kernel for what we use, and what it is.
KERNELS = [
    ((5, 9), "BPF links for XDP: a crash detaches"),
    ((5, 11), "preferred busy polling, memory charged to cgroups"),
    ((6, 1), "bpf_ktime_get_tai_ns: the stamp at the XDP hook"),
    ((6, 3), "NIC receive stamps by kfunc"),
    ((6, 6), "jumbo frames over AF_XDP (XDP_USE_SG)"),
]
NEEDED = (6, 1)
BETTER = (6, 6)

# Options that we need or like (False), and what is missing without them.
OPTIONS = {
    "BPF_SYSCALL": (True, "no BPF at all"),
    "XDP_SOCKETS": (True, "no AF_XDP"),
    "BPF_JIT": (False, "the filter is interpreted"),
    "NET_RX_BUSY_POLL": (False, "no busy polling"),
    "HUGETLBFS": (False, "no huge pages"),
    "DEBUG_INFO_BTF": (False, "no time stamps by kfunc"),
    "NO_HZ_FULL": (False, "ticks on isolated cores"),
}


def version(host: Host) -> Finding:
    """The version against what each feature needs."""
    text = host.read("/proc/sys/kernel/osrelease") or (platform.release() if host.real else "")
    numbers = tuple(int(n) for n in re.findall(r"\d+", text)[:2])
    if not numbers:
        return Finding(UNKNOWN, "its version cannot be read")
    missing = "; ".join(what for least, what in KERNELS if numbers < least)
    state = FAIL if numbers < NEEDED else WARN if numbers < BETTER else OK
    remedy = "" if state == OK else "apt install -t bookworm-backports linux-image-amd64"
    return Finding(state, text + (f", without: {missing}" if missing else ""), remedy)


def options(host: Host) -> Finding:
    """How it was built, from /proc/config.gz, /boot or /lib/modules."""
    release = host.read("/proc/sys/kernel/osrelease") or ""
    text = (
        host.gunzip("/proc/config.gz")
        or host.read(f"/boot/config-{release}")
        or host.read(f"/lib/modules/{release}/config")
    )
    if not text:
        return Finding(UNKNOWN, f"neither /proc/config.gz nor /boot/config-{release} is there")
    built = set(re.findall(r"^CONFIG_(\w+)=[ym]$", text, re.M))
    missing = [name for name in OPTIONS if name not in built]
    if not missing:
        return Finding(OK, f"all {len(OPTIONS)} that we use are built in")
    state = FAIL if any(OPTIONS[name][0] for name in missing) else WARN
    words = ", ".join(f"CONFIG_{name} ({OPTIONS[name][1]})" for name in missing)
    return Finding(state, f"without {words}", "boot a kernel that has them, as Debian's have")


def af_xdp(host: Host) -> Finding:
    """Whether a socket can be made."""
    error = host.ask("af_xdp")
    if error == "":
        return Finding(OK, "sockets can be made")
    if error in ("EAFNOSUPPORT", "EPROTONOSUPPORT"):
        return Finding(FAIL, "the kernel has none", "boot a kernel with CONFIG_XDP_SOCKETS=y")
    found = "cannot be tried here" if error is None else f"not allowed to try: {error}"
    return Finding(UNKNOWN, found, "sudo xdpstack doctor")


JIT, HARDEN = "/proc/sys/net/core/bpf_jit_enable", "/proc/sys/net/core/bpf_jit_harden"


def jit(host: Host) -> Finding:
    """Whether BPF is compiled, and for everybody without blinding."""
    on, harden = host.number(JIT), host.number(HARDEN)
    if on is None:
        # Compiled always and read by root only, or not there at all: the options tell.
        return Finding(UNKNOWN, "cannot be read", "sudo xdpstack doctor")
    if not on:
        return Finding(WARN, "off", "sysctl -w net.core.bpf_jit_enable=1", (Change("file", "", JIT, "1"),))
    if harden == 2:
        remedy, change = "sysctl -w net.core.bpf_jit_harden=1", Change("file", "", HARDEN, "1")
        return Finding(WARN, "on, and hardened for root too: constants are blinded", remedy, (change,))
    return Finding(OK, "on")


def busy_poll(host: Host) -> Finding:
    """The host-wide switches of busy polling; ports ask for it themselves, socket by socket."""
    values = {key: host.number(f"/proc/sys/net/core/{key}") for key in ("busy_poll", "busy_read")}
    if None in values.values():
        return Finding(UNKNOWN, "the kernel has no busy polling, or it cannot be read from here")
    if not any(values.values()):
        return Finding(OK, "off for the host: a port with busy_poll asks for itself")
    found = ", ".join(f"net.core.{key} {value} µs" for key, value in values.items() if value)
    changes = tuple(
        Change("file", "", f"/proc/sys/net/core/{key}", "0") for key, value in values.items() if value
    )
    remedy = "; ".join(f"sysctl -w net.core.{key}=0" for key, value in values.items() if value)
    return Finding(WARN, found, remedy, changes)
