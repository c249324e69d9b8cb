"""What keeps this host from its best, why it matters, and the command that mends it.

``examine(interface)`` gives a list of :class:`Check`. Every check only looks; none changes anything, and
none needs root (what root alone may see is ``unknown`` and says so). ``Host(root)`` reads /proc and /sys
under another root, for tests.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import platform
import re
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from xdpstack.clock import Clock, tai_offset
from xdpstack.errors import ConfigError
from xdpstack.netdev import Capabilities, capabilities

__all__ = ["Check", "Host", "examine"]

OK, WARN, FAIL, UNKNOWN = "ok", "warn", "fail", "unknown"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding. ``state`` is ok, warn, fail (xdpstack cannot work so) or unknown."""

    name: str
    state: str
    found: str
    why: str
    remedy: str = ""


class Host:
    """The files that the checks read, under ``root``."""

    def __init__(self, root: Path | str = "/") -> None:
        self.root = Path(root)

    def read(self, path: str) -> str | None:
        """The text of a file, stripped; None when it is not there or not ours to read."""
        try:
            return (self.root / path.lstrip("/")).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None

    def number(self, path: str) -> int | None:
        """A file that holds one integer."""
        text = self.read(path)
        return int(text) if text and re.fullmatch(r"-?\d+", text) else None

    def list(self, pattern: str) -> list[Path]:
        """Paths that match a glob, sorted by the numbers in them."""
        found = self.root.glob(pattern.lstrip("/"))
        return sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)] or [0])


# ---- the host ------------------------------------------------------------------------------------

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


def _kernel(host: Host) -> Check:
    text = host.read("/proc/sys/kernel/osrelease") or platform.release()
    version = tuple(int(n) for n in re.findall(r"\d+", text)[:2])
    missing = "; ".join(what for least, what in KERNELS if version < least)
    state = FAIL if version < NEEDED else WARN if version < BETTER else OK
    return Check(
        name="kernel", state=state, found=text + (f", without: {missing}" if missing else ""),
        why="Stamps, links and busy polling came one by one; 6.1 has what we cannot do without.",
        remedy="" if state == OK else "apt install -t bookworm-backports linux-image-amd64",
    )  # fmt: skip


def _af_xdp(host: Host) -> Check:
    state, found, remedy = OK, "sockets can be made", ""
    try:
        socket.socket(44, socket.SOCK_RAW, 0).close()  # AF_XDP
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            state, found, remedy = FAIL, "the kernel has none", "boot a kernel with CONFIG_XDP_SOCKETS=y"
        else:
            state, found, remedy = UNKNOWN, f"not allowed to try: {error.strerror}", "sudo xdpstack doctor"
    return Check(
        name="af-xdp", state=state, found=found, remedy=remedy, why="Frames reach us through AF_XDP sockets."
    )


def _jit(host: Host) -> Check:
    on = host.number("/proc/sys/net/core/bpf_jit_enable")
    state = UNKNOWN if on is None else OK if on else WARN
    return Check(
        name="bpf-jit", state=state, found={None: "cannot be read", 0: "off"}.get(on, "on"),
        why="Without it the filter is interpreted, several times slower for every frame.",
        remedy="sysctl -w net.core.bpf_jit_enable=1" if state == WARN else "",
    )  # fmt: skip


CAPABILITIES = {"net_admin": 12, "net_raw": 13, "bpf": 39}
CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_NICE = 14, 21, 23


def _capability_bits(host: Host) -> int | None:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", host.read("/proc/self/status") or "", re.M)
    return int(match[1], 16) if match else None


def _capabilities(host: Host) -> Check:
    bits = _capability_bits(host)
    why = "Loading the filter needs CAP_BPF and CAP_NET_ADMIN, an AF_XDP socket CAP_NET_RAW."
    if bits is None:
        return Check(name="capabilities", state=UNKNOWN, found="cannot be read", why=why)
    missing = [name for name, bit in CAPABILITIES.items() if not bits >> bit & 1]
    if bits >> CAP_SYS_ADMIN & 1 and "bpf" in missing:
        missing.remove("bpf")
    if missing:
        return Check(
            name="capabilities", state=FAIL, why=why,
            found="missing: " + ", ".join(f"CAP_{m.upper()}" for m in missing),
            remedy="run as root, or: setcap cap_bpf,cap_net_admin,cap_net_raw,cap_ipc_lock,cap_sys_nice+ep F",
        )  # fmt: skip
    if not bits >> CAP_SYS_NICE & 1:
        return Check(
            name="capabilities", state=WARN, found="no CAP_SYS_NICE", remedy="add cap_sys_nice",
            why="Without it a free-running engine cannot ask for real-time priority.",
        )  # fmt: skip
    return Check(name="capabilities", state=OK, found="all that is needed", why=why)


def _memlock(host: Host) -> Check:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    bits = _capability_bits(host) or 0
    enough = soft == resource.RLIM_INFINITY or soft >= 64 << 20 or bool(bits >> CAP_IPC_LOCK & 1)
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if bits >> CAP_IPC_LOCK & 1:
        text += ", and CAP_IPC_LOCK passes it"
    return Check(
        name="memlock", state=OK if enough else WARN, found=text,
        why="The frames of a port are locked memory: 4,096 frames are 16 MiB.",
        remedy="" if enough else "ulimit -l unlimited   (for good: memlock in /etc/security/limits.conf)",
    )  # fmt: skip


def _bpffs(host: Host) -> Check:
    mounts = host.read("/proc/self/mounts")
    why = "`load` pins the filter there, so that it stays when the command ends."
    if mounts is None:
        return Check(name="bpffs", state=UNKNOWN, found="mounts cannot be read", why=why)
    mounted = any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in mounts.splitlines())
    return Check(
        name="bpffs", state=OK if mounted else WARN, why=why,
        found="mounted" if mounted else "not mounted at /sys/fs/bpf",
        remedy="" if mounted else "mount -t bpf bpf /sys/fs/bpf",
    )  # fmt: skip


def _hugepages(host: Host) -> Check:
    info = dict(re.findall(r"^(\w+):\s+(\d+)", host.read("/proc/meminfo") or "", re.M))
    free, total = int(info.get("HugePages_Free", 0)), int(info.get("HugePages_Total", 0))
    return Check(
        name="huge-pages", state=OK if free else WARN, found=f"{free} of {total} free",
        why="Frames and books in huge pages miss the TLB less; without them ports take small pages, counted.",
        remedy="" if free else "sysctl -w vm.nr_hugepages=128",
    )  # fmt: skip


def _governor(host: Host) -> Check:
    governors = {
        p.read_text().strip() for p in host.list("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    }
    why = "A core that clocks down between packets takes microseconds to come back."
    if not governors:
        return Check(
            name="governor", state=UNKNOWN, found="no cpufreq here (a guest: the hypervisor decides)", why=why
        )
    good = governors == {"performance"}
    return Check(
        name="governor", state=OK if good else WARN, found=", ".join(sorted(governors)), why=why,
        remedy="" if good else "cpupower frequency-set -g performance",
    )  # fmt: skip


def _cstates(host: Host) -> Check:
    why = "Leaving a deep idle state takes 20 to 50 µs: a hand-off of 1 µs becomes that."
    deep = []
    states = host.list("/sys/devices/system/cpu/cpu0/cpuidle/state[0-9]*")
    for state in states:
        base = str(state.relative_to(host.root))
        latency, disabled = host.number(f"{base}/latency"), host.number(f"{base}/disable")
        if latency is not None and latency > 5 and not disabled:
            deep.append(f"{host.read(f'{base}/name')} ({latency} µs)")
    if not states:
        return Check(
            name="c-states", state=UNKNOWN, found="no cpuidle here (a guest: the hypervisor decides)", why=why
        )
    return Check(
        name="c-states", state=WARN if deep else OK, why=why,
        found=", ".join(deep) or "none deeper than 5 µs",
        remedy="cpupower idle-set -D 5   (or boot with processor.max_cstate=1)" if deep else "",
    )  # fmt: skip


def _isolation(host: Host) -> Check:
    isolated, ticks = (
        host.read("/sys/devices/system/cpu/isolated"),
        host.read("/sys/devices/system/cpu/nohz_full"),
    )
    why = "On a core that the scheduler also uses, a spinning engine is interrupted for milliseconds."
    if isolated:
        found = f"isolated {isolated}" + (f", without ticks {ticks}" if ticks and ticks != "(null)" else "")
        return Check(name="isolation", state=OK, found=found, why=why)
    return Check(
        name="isolation", state=WARN, found="no core is isolated", why=why,
        remedy="boot with isolcpus=managed_irq,domain,2-3 nohz_full=2-3 rcu_nocbs=2-3   (your cores)",
    )  # fmt: skip


def _smt(host: Host) -> Check:
    active = host.number("/sys/devices/system/cpu/smt/active")
    why = "A busy sibling takes half of the engine's core."
    if active is None:
        return Check(name="smt", state=UNKNOWN, found="cannot be read", why=why)
    remedy = "echo off > /sys/devices/system/cpu/smt/control" if active else ""
    return Check(
        name="smt", state=WARN if active else OK, found="on" if active else "off", why=why, remedy=remedy
    )


def _rt_throttle(host: Host) -> Check:
    runtime = host.number("/proc/sys/kernel/sched_rt_runtime_us")
    why = "A real-time thread that never sleeps is stopped for the rest of every period."
    if runtime is None:
        return Check(name="rt-throttling", state=UNKNOWN, found="cannot be read", why=why)
    period = host.number("/proc/sys/kernel/sched_rt_period_us") or 1_000_000
    found = "off" if runtime < 0 else f"{(period - runtime) / 1000:g} ms of every {period / 1000:g} ms"
    remedy = "" if runtime < 0 else "sysctl -w kernel.sched_rt_runtime_us=-1   (with isolated cores only)"
    return Check(name="rt-throttling", state=OK if runtime < 0 else WARN, found=found, why=why, remedy=remedy)


def _irqbalance(host: Host) -> Check:
    running = any(
        (host.read(str(p.relative_to(host.root))) == "irqbalance") for p in host.list("/proc/[0-9]*/comm")
    )
    return Check(
        name="irqbalance", state=WARN if running else OK, found="runs" if running else "does not run",
        why="It moves interrupts onto the engine's core.",
        remedy="systemctl disable --now irqbalance" if running else "",
    )  # fmt: skip


def _clock(host: Host) -> Check:
    clock = Clock()
    source = host.read("/sys/devices/system/clocksource/clocksource0/current_clocksource") or "unknown"
    state, why = OK, "Every stamp reads the clock: 10 ns by the CPU's counter, 20 to 300 ns by the system."
    found = f"{clock.source} at {clock.hertz / 1e6:.1f} MHz; the kernel uses {source}"
    remedy = ""
    if clock.source != "counter":
        state, found = (
            WARN,
            f"system, since the counter is {clock.reason.replace('_', ' ')}; the kernel uses {source}",
        )
    elif source not in ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"):
        state, remedy = WARN, "boot with tsc=reliable, when the hardware's TSC is"
    return Check(name="clock", state=state, found=found, why=why, remedy=remedy)


def _tai(host: Host) -> Check:
    offset = tai_offset()
    return Check(
        name="tai-offset", state=OK if offset else WARN, found=f"{offset} s",
        why="With 0 our stamps are one time line here, but 37 s away from those of other hosts.",
        remedy="" if offset else "set leapsectz in chrony.conf, or: adjtimex --tai 37",
    )  # fmt: skip


# ---- the interface -------------------------------------------------------------------------------

SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO, ETHTOOL_GFLAGS = 0x03, 0x25
FLAG_RXVLAN, FLAG_LRO, FLAG_NTUPLE = 1 << 8, 1 << 15, 1 << 27
ETHTOOL_GCHANNELS = 0x3C


def _ethtool(interface: str, command: int, size: int) -> bytes | None:
    """One ETHTOOL ioctl: the struct that it fills, None when the driver has no answer."""
    import fcntl

    buffer = ctypes.create_string_buffer(struct.pack("I", command), size)
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(buffer)).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
        except OSError:
            return None
    return buffer.raw


def driver_of(interface: str) -> str:
    """The driver's own name, e.g. ``veth``, ``mlx5_core``; empty when it does not tell."""
    info = _ethtool(interface, ETHTOOL_GDRVINFO, 196)
    return info[4:36].split(b"\0")[0].decode() if info else ""


@dataclasses.dataclass(frozen=True, slots=True)
class _Interface:
    host: Host
    name: str
    index: int
    driver: str
    features: Capabilities
    link: Any

    def sys(self, file: str) -> str | None:
        """A file of this interface in /sys; None where /sys shows another network namespace's."""
        if self.host.number(f"/sys/class/net/{self.name}/ifindex") != self.index:
            return None
        return self.host.read(f"/sys/class/net/{self.name}/{file}")


def _link(i: _Interface) -> Check:
    up, carrier = bool(i.link["flags"] & 1), i.link.get_attr("IFLA_CARRIER")
    found = "down" if not up else "up, with carrier" if carrier else "up, without carrier"
    remedy = (
        f"ip link set dev {i.name} up"
        if not up
        else ""
        if carrier
        else "look at the cable, or the veth's other end"
    )
    state = OK if up and carrier else FAIL
    return Check(
        name="link", state=state, found=found, why="A link without carrier delivers nothing.", remedy=remedy
    )


def _driver(i: _Interface) -> Check:
    why = "Native mode runs the filter in the driver; zero-copy lets the NIC write into our frames."
    has = i.features.xdp
    if has is None:
        found = f"{i.driver or 'unknown'}: the kernel does not tell its XDP features"
        return Check(
            name="driver", state=UNKNOWN, found=found, why=why, remedy="a kernel of 6.3 or later tells"
        )
    words = ", ".join(sorted(has)) or "no XDP features"
    stamps = "; stamps by the NIC" if i.features.can("timestamp") else "; stamps at the XDP hook"
    if not {"basic", "redirect"} <= has:
        return Check(
            name="driver", state=WARN, found=f"{i.driver}: {words}: generic mode only", why=why,
            remedy="use a NIC whose driver has native XDP (mlx5, ice, i40e, ixgbe, igc, ena, gve)",
        )  # fmt: skip
    if "zero-copy" not in has:
        return Check(
            name="driver", state=WARN, why=why,
            found=f"{i.driver}: {words}: native, but frames are copied{stamps}",
            remedy="" if i.driver == "veth" else "use a NIC with zero-copy (mlx5, ice, i40e, ixgbe, igc)",
        )  # fmt: skip
    return Check(name="driver", state=OK, found=f"{i.driver}: {words}{stamps}", why=why)


def _mode(i: _Interface) -> Check:
    return Check(
        name="mode", state=UNKNOWN, found="not tried",
        why="What a driver grants shows when a port is opened; it reports its mode, and `require` insists.",
        remedy=f"xdpstack load {i.name} && xdpstack status {i.name}",
    )  # fmt: skip


def _queues(i: _Interface) -> Check:
    rx, tx = int(i.link.get_attr("IFLA_NUM_RX_QUEUES") or 1), int(i.link.get_attr("IFLA_NUM_TX_QUEUES") or 1)
    channels = _ethtool(i.name, ETHTOOL_GCHANNELS, 36)
    if channels:  # max and current of: rx, tx, other, combined
        _, _, _, _, _, rx_now, tx_now, _, combined = struct.unpack("9I", channels)
        rx, tx = rx_now + combined, tx_now + combined
    found = f"{rx} receive, {tx} transmit"
    many = rx > 1
    return Check(
        name="queues", state=WARN if many else OK, found=found,
        why="A frame on a queue without a socket goes to the kernel: open all, or steer the flow to one.",
        remedy=f"xsk:{i.name}:0-{rx - 1} opens all; or ethtool -L {i.name} combined 1" if many else "",
    )  # fmt: skip


def _offloads(i: _Interface) -> Check:
    why = "Merged frames, stripped tags and unfinished checksums are not what was on the wire."
    flags = _ethtool(i.name, ETHTOOL_GFLAGS, 8)
    bits = struct.unpack("2I", flags)[1] if flags else 0
    bad = [word for bit, word in ((FLAG_LRO, "lro"), (FLAG_RXVLAN, "rxvlan")) if bits & bit]
    if i.driver == "veth" and "rxvlan" in bad:
        bad.remove("rxvlan")  # its tag is in the frame when an XDP program sees it
    if bad:
        remedy = f"ethtool -K {i.name} " + " ".join(f"{word} off" for word in bad)
        return Check(name="offloads", state=WARN, found="on: " + ", ".join(bad), why=why, remedy=remedy)
    if i.driver == "veth":
        return Check(
            name="offloads", state=UNKNOWN, found="the other end's are not seen from here", why=why,
            remedy="at the kernel end: ethtool -K PEER tx off",
        )  # fmt: skip
    state = OK if flags else UNKNOWN
    return Check(
        name="offloads",
        state=state,
        found="none that breaks bypass" if flags else "the driver does not tell",
        why=why,
    )


# A page, less headroom (256) and the kernel's shared info (320): what one buffer holds, with its header.
SINGLE_BUFFER_MTU = 4096 - 256 - 320 - 14 - 8


def _mtu(i: _Interface) -> Check:
    mtu = int(i.link.get_attr("IFLA_MTU"))
    why = f"Above {SINGLE_BUFFER_MTU} bytes a frame takes several buffers: the driver must have rx-sg."
    if mtu <= SINGLE_BUFFER_MTU:
        return Check(name="mtu", state=OK, found=str(mtu), why=why)
    if i.features.can("rx-sg"):
        copied = bool(i.features.can("zero-copy")) and (i.features.zc_max_segs or 0) <= 1
        found = f"{mtu}, in several buffers" + (", not zero-copy" if copied else "")
        return Check(name="mtu", state=WARN if copied else OK, found=found, why=why)
    remedy = f"ip link set dev {i.name} mtu {SINGLE_BUFFER_MTU}"
    return Check(
        name="mtu", state=FAIL if i.features.known else UNKNOWN, found=str(mtu), why=why, remedy=remedy
    )


def _busy_poll(i: _Interface) -> Check:
    defer, flush = i.sys("napi_defer_hard_irqs"), i.sys("gro_flush_timeout")
    why = "Preferred busy polling keeps interrupts away only while both are set."
    if defer is None or flush is None:
        found = "cannot be read: /sys shows another network namespace"
        return Check(name="busy-poll", state=UNKNOWN, found=found, why=why)
    good = defer != "0" and flush != "0"
    return Check(
        name="busy-poll", state=OK if good or i.driver == "veth" else WARN,
        found=f"napi_defer_hard_irqs {defer}, gro_flush_timeout {flush} ns", why=why,
        remedy="" if good or i.driver == "veth" else (
            f"echo 2 > /sys/class/net/{i.name}/napi_defer_hard_irqs; "
            f"echo 200000 > /sys/class/net/{i.name}/gro_flush_timeout"
        ),
    )  # fmt: skip


def _program(i: _Interface) -> Check:
    why = "We never replace a program that somebody else has attached, unless told to."
    xdp = i.link.get_attr("IFLA_XDP")
    mode = xdp.get_attr("IFLA_XDP_ATTACHED") if xdp else 0
    if not mode:
        return Check(name="xdp-program", state=OK, found="none attached", why=why)
    number = next((value for name, value in xdp["attrs"] if name.endswith("PROG_ID") and value), None)
    name = _program_name(number)
    ours = name.startswith("xds_")
    found = f"{name or 'a program'} (id {number}) is attached" + (", ours" if ours else "")
    remedy = "" if ours else f"bpftool prog show id {number}; ip link set dev {i.name} xdp off"
    return Check(name="xdp-program", state=OK if ours else FAIL, found=found, why=why, remedy=remedy)


def _program_name(number: int | None) -> str:
    """The name of a loaded program, by bpf(BPF_OBJ_GET_INFO_BY_FD); empty when we may not ask."""
    calls = {"x86_64": 321, "aarch64": 280}
    call = calls.get(platform.machine())
    if number is None or call is None:
        return ""
    libc = ctypes.CDLL(None, use_errno=True)
    get_fd = ctypes.create_string_buffer(struct.pack("III", number, 0, 0), 128)
    fd = libc.syscall(call, 13, get_fd, 12)  # BPF_PROG_GET_FD_BY_ID
    if fd < 0:
        return ""
    try:
        info = ctypes.create_string_buffer(232)
        query = ctypes.create_string_buffer(struct.pack("IIQ", fd, 232, ctypes.addressof(info)), 128)
        if libc.syscall(call, 15, query, 16) < 0:
            return ""
        return info.raw[64:80].split(b"\0")[0].decode(errors="replace")  # bpf_prog_info.name
    finally:
        os.close(fd)


def _cpus(text: str) -> set[int]:
    """``0,2-3`` as a set."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _interrupts(i: _Interface) -> Check:
    why = "An interrupt on the engine's core delays what it is polling for."
    numbers = [p.name for p in i.host.list(f"/sys/class/net/{i.name}/device/msi_irqs/*")]
    isolated = _cpus(i.host.read("/sys/devices/system/cpu/isolated") or "")
    if not numbers or i.sys("ifindex") is None:
        return Check(name="interrupts", state=OK, found="it has none of its own", why=why)
    placed = {n: _cpus(i.host.read(f"/proc/irq/{n}/effective_affinity_list") or "") for n in numbers}
    wrong = [n for n, cpus in placed.items() if cpus & isolated]
    cores = ",".join(map(str, sorted(set().union(*placed.values()))))
    remedy = "; ".join(f"echo 0 > /proc/irq/{n}/smp_affinity_list" for n in wrong[:4])
    return Check(
        name="interrupts", state=WARN if wrong else OK, found=f"on cores {cores}", why=why, remedy=remedy
    )


def _numa(i: _Interface) -> Check:
    node = i.host.number(f"/sys/class/net/{i.name}/device/numa_node")
    nodes = len(i.host.list("/sys/devices/system/node/node[0-9]*"))
    why = "Frames that cross to another node pay for it with every cache line."
    if nodes < 2 or node is None or node < 0:
        return Check(name="numa", state=OK, found="one node", why=why)
    cores = i.host.read(f"/sys/devices/system/node/node{node}/cpulist")
    return Check(
        name="numa", state=OK, found=f"node {node} of {nodes}: run the engine on cores {cores}", why=why
    )


# ---- all of it -----------------------------------------------------------------------------------

HOST_CHECKS: list[Callable[[Host], Check]] = [
    _kernel, _af_xdp, _jit, _capabilities, _memlock, _bpffs, _hugepages, _governor, _cstates, _isolation,
    _smt, _rt_throttle, _irqbalance, _clock, _tai,
]  # fmt: skip
INTERFACE_CHECKS: list[Callable[[_Interface], Check]] = [
    _link, _driver, _mode, _queues, _offloads, _mtu, _busy_poll, _program, _interrupts, _numa,
]  # fmt: skip


def examine(interface: str | None = None, *, host: Host | None = None) -> list[Check]:
    """Every check of this host, and of one interface of it. ConfigError when there is no such interface."""
    host = host or Host()
    return list(_examine(host, interface))


def _examine(host: Host, interface: str | None) -> Iterator[Check]:
    subject = _look_up(host, interface) if interface is not None else None
    for check in HOST_CHECKS:
        yield check(host)
    if subject is not None:
        for look in INTERFACE_CHECKS:
            yield look(subject)


def _look_up(host: Host, interface: str) -> _Interface:
    with IPRoute() as netlink:
        links = netlink.get_links()
        known = sorted(link.get_attr("IFLA_IFNAME") for link in links)
        for link in links:
            if link.get_attr("IFLA_IFNAME") == interface:
                index = int(link["index"])
                return _Interface(host, interface, index, driver_of(interface), capabilities(index), link)
    raise ConfigError(f"there is no interface {interface!r}; there are: {', '.join(known)}")
