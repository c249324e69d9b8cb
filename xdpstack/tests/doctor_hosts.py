"""Hosts that are not there, for the doctor's tests: files and recorded answers of one that has no fault."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

from xdpstack.doctor import Host

CPU = "/sys/devices/system/cpu"
NET = "/sys/class/net/eth0"
CLOCK = "/sys/devices/system/clocksource/clocksource0"
HUGE = "/sys/kernel/mm/hugepages"
NEEDED = (
    "BPF_SYSCALL",
    "XDP_SOCKETS",
    "BPF_JIT",
    "NET_RX_BUSY_POLL",
    "HUGETLBFS",
    "DEBUG_INFO_BTF",
    "NO_HZ_FULL",
)


def config(*without: str) -> bytes:
    """A kernel's configuration with all that we use, but ``without``."""
    lines = [f"# CONFIG_{n} is not set" if n in without else f"CONFIG_{n}=y" for n in NEEDED]
    return gzip.compress("\n".join(lines).encode())


FILES: dict[str, str | bytes | None] = {
    "/proc/sys/kernel/osrelease": "6.12.0-amd64",
    "/proc/config.gz": config(),
    "/proc/sys/net/core/bpf_jit_enable": "1",
    "/proc/sys/net/core/bpf_jit_harden": "0",
    "/proc/sys/net/core/busy_poll": "0",
    "/proc/sys/net/core/busy_read": "0",
    "/proc/self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n",
    "/proc/self/mounts": "bpf /sys/fs/bpf bpf rw 0 0\n",
    f"{HUGE}/hugepages-2048kB/nr_hugepages": "128",
    f"{HUGE}/hugepages-2048kB/free_hugepages": "100",
    f"{HUGE}/hugepages-1048576kB/nr_hugepages": "0",
    f"{HUGE}/hugepages-1048576kB/free_hugepages": "0",
    "/proc/sys/kernel/numa_balancing": "0",
    "/proc/sys/kernel/sched_rt_runtime_us": "-1",
    "/proc/sys/kernel/sched_rt_period_us": "1000000",
    "/proc/1/comm": "init",
    "/proc/71/comm": "sshd",
    "/dev/cpu_dma_latency": struct.pack("i", 0),
    f"{CPU}/online": "0-3",
    f"{CPU}/isolated": "2-3",
    f"{CPU}/nohz_full": "2-3",
    f"{CPU}/smt/active": "0",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "performance",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "performance",
    f"{CPU}/cpu0/cpuidle/state0/latency": "0",
    f"{CPU}/cpu0/cpuidle/state0/name": "POLL",
    f"{CPU}/cpu0/cpuidle/state1/latency": "100",
    f"{CPU}/cpu0/cpuidle/state1/name": "C6",
    f"{CPU}/cpu0/cpuidle/state1/disable": "1",
    f"{CLOCK}/current_clocksource": "tsc",
    f"{CLOCK}/available_clocksource": "tsc hpet acpi_pm",
    "/sys/devices/system/node/node0/cpulist": "0-1",
    "/sys/devices/system/node/node1/cpulist": "2-3",
    "/sys/class/ptp/ptp0/clock_name": "nic clock",
    "/proc/irq/40/effective_affinity_list": "0",
    "/proc/irq/41/effective_affinity_list": "1",
    f"{NET}/ifindex": "2",
    f"{NET}/napi_defer_hard_irqs": "2",
    f"{NET}/gro_flush_timeout": "200000",
    f"{NET}/device/numa_node": "1",
    f"{NET}/device/msi_irqs/40": "",
    f"{NET}/device/msi_irqs/41": "",
}


def link(**facts: Any) -> dict[str, Any]:
    """A NIC's link, up, with one queue."""
    usual: dict[str, Any] = dict(
        index=2, up=True, loopback=False, carrier=True, mtu=1500, rx=1, tx=1, kind="", lower=None,
        lower_here=True, master=None, xdp={}, default_route=False,
    )  # fmt: skip
    return {**usual, **facts}


def able(*words: str, **facts: Any) -> dict[str, Any]:
    """What a device says that it can."""
    usual: dict[str, Any] = {"rx_metadata": ["timestamp"], "xsk": [], "zc_max_segs": 8}
    return {"xdp": list(words), **usual, **facts}


FULL = able("basic", "redirect", "rx-sg", "zero-copy")

ANSWERS: dict[str, Any] = {
    "af_xdp": "",
    "memlock": -1,
    "clock": {"source": "counter", "reason": "ok", "hertz": 2.4e9},
    "clock_sync": {"synchronized": True, "max_error_ns": 12_000},
    "tai": 37,
    "links": {"lo": link(index=1, loopback=True, mtu=65536), "eth0": link()},
    "capabilities": {2: FULL},
    "driver": {"eth0": {"driver": "ice", "firmware": "4.2", "bus": "0000:01:00.0"}},
    "channels": {"eth0": {"rx": 1, "tx": 1, "rx_max": 8}},
    "features": {"eth0": {"rx-lro": {"on": False, "changed": True}, "rx-gro": {"on": True, "changed": True}}},
    "coalescing": {"eth0": {"usecs": 0, "frames": 0, "adaptive": 0}},
    "stamping": {"eth0": {"hardware": True, "phc": 0}},
    "tc_programs": {"eth0": []},
    "program": {7: "foreign", 8: "xds_rx", 11: "xdp_dispatcher"},
    "dispatcher_trial": "",
    "chained": {"eth0": []},
    "left_by": {"eth0": 0},
    "napis": {2: [{"id": 257 + n, "irq": 40 + n, "defer": 2, "flush": 200_000} for n in (0, 1)]},
    "trial": {"eth0": {"granted": "zerocopy", "error": "", "errno": 0}},
}


def build(
    root: Path, files: dict[str, str | bytes | None] | None = None, answers: dict[str, Any] | None = None
) -> Host:
    """The good host under ``root``, with some files and answers changed, or (None) missing."""
    for path, content in {**FILES, **(files or {})}.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Host(root, {**ANSWERS, **(answers or {})})
