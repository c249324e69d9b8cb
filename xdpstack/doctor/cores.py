"""Cores: clocking down, idling deep, being shared with the scheduler, the tick and interrupts."""

from __future__ import annotations

import re
import struct

from xdpstack.doctor.check import OK, UNKNOWN, WARN, Change, Finding
from xdpstack.doctor.host import Host, cpus

CPU = "/sys/devices/system/cpu"
DEEP_US = 5  # an exit latency that shows next to a hand-off of 1 µs
RT = "/proc/sys/kernel/sched_rt_runtime_us"


def governor(host: Host) -> Finding:
    """The frequency governor of every core."""
    files = host.list(f"{CPU}/cpu[0-9]*/cpufreq/scaling_governor")
    found = {path: host.read(path) or "?" for path in files}
    if not found:
        return Finding(UNKNOWN, "no cpufreq here (a guest: the hypervisor decides)")
    wrong = [path for path, word in found.items() if word != "performance"]
    words = ", ".join(sorted(set(found.values())))
    if not wrong:
        return Finding(OK, words)
    changes = tuple(Change("file", "", path, "performance") for path in wrong)
    return Finding(WARN, words, "cpupower frequency-set -g performance", changes)


def _deep(host: Host) -> dict[str, str]:
    """Idle states that are on and deep: the file that switches each off, and its name with its latency."""
    found = {}
    for state in host.list(f"{CPU}/cpu[0-9]*/cpuidle/state[0-9]*"):
        latency, disabled = host.number(f"{state}/latency"), host.number(f"{state}/disable")
        if latency is not None and latency > DEEP_US and not disabled:
            found[f"{state}/disable"] = f"{host.read(f'{state}/name')} ({latency} µs)"
    return found


def c_states(host: Host) -> Finding:
    """Idle states that take long to leave."""
    if not host.list(f"{CPU}/cpu0/cpuidle/state[0-9]*/latency"):
        return Finding(UNKNOWN, "no cpuidle here (a guest: the hypervisor decides)")
    deep = _deep(host)
    if not deep:
        return Finding(OK, f"none deeper than {DEEP_US} µs")
    changes = tuple(Change("file", "", path, "1") for path in deep)
    remedy = f"cpupower idle-set -D {DEEP_US}   (or boot with processor.max_cstate=1)"
    return Finding(WARN, ", ".join(dict.fromkeys(deep.values())), remedy, changes)


def dma_latency(host: Host) -> Finding:
    """The longest wake-up that anybody asked for; held by a descriptor, so it ends with its process."""
    raw = host.raw("/dev/cpu_dma_latency")
    if raw is None or len(raw) != 4:
        return Finding(UNKNOWN, "/dev/cpu_dma_latency cannot be read", "sudo xdpstack doctor")
    limit = struct.unpack("i", raw)[0]
    if limit <= DEEP_US:
        return Finding(OK, f"somebody holds it at {limit} µs")
    found = f"nobody holds it: {limit:,} µs"
    if not _deep(host):
        return Finding(OK, f"{found}, and no idle state is deep")
    remedy = (
        "xdpstack run --cpu-latency 0, [engine] cpu_latency = 0.0   (or tuned-adm profile network-latency)"
    )
    return Finding(WARN, found, remedy)


def isolation(host: Host) -> Finding:
    """Cores that the scheduler leaves alone."""
    isolated = host.read(f"{CPU}/isolated")
    if isolated:
        return Finding(OK, f"isolated {isolated}")
    if isolated is None:
        return Finding(UNKNOWN, "cannot be read")
    remedy = "boot with isolcpus=managed_irq,domain,2-3   (your cores)"
    return Finding(WARN, "no core is isolated", remedy)


def tick(host: Host) -> Finding:
    """Cores without a timer tick, and whether the isolated ones are among them."""
    text = host.read(f"{CPU}/nohz_full")
    if text is None:
        return Finding(UNKNOWN, "the kernel has no nohz_full (CONFIG_NO_HZ_FULL)")
    without, isolated = cpus(text), cpus(host.read(f"{CPU}/isolated"))
    if without and isolated <= without:
        return Finding(OK, f"none on {text}")
    cores = host.read(f"{CPU}/isolated") or "2-3"
    found = f"none on {text}, and on isolated ones still" if without else "on every core"
    return Finding(WARN, found, f"boot with nohz_full={cores} rcu_nocbs={cores}")


def smt(host: Host) -> Finding:
    """Sibling threads. Not mended by --fix: taking cores away moves what is pinned to them."""
    active = host.number(f"{CPU}/smt/active")
    if active is None:
        return Finding(UNKNOWN, "cannot be read")
    if not active:
        return Finding(OK, "off")
    return Finding(
        WARN, "on", f"echo off > {CPU}/smt/control   (or leave the siblings of isolated cores idle)"
    )


def rt_throttle(host: Host) -> Finding:
    """Real-time throttling. --fix lifts it only where cores are isolated, or a spinning thread takes all."""
    runtime = host.number(RT)
    if runtime is None:
        return Finding(UNKNOWN, "cannot be read")
    period = host.number("/proc/sys/kernel/sched_rt_period_us") or 1_000_000
    if runtime < 0 or runtime >= period:  # as kernels are since a deadline server keeps the others alive
        return Finding(OK, "off")
    changes = (Change("file", "", RT, "-1"),) if cpus(host.read(f"{CPU}/isolated")) else ()
    found = f"{(period - runtime) / 1000:g} ms of every {period / 1000:g} ms"
    remedy = "sysctl -w kernel.sched_rt_runtime_us=-1   (with isolated cores only)"
    return Finding(WARN, found, remedy, changes)


def irqbalance(host: Host) -> Finding:
    """The daemon. --fix leaves services alone: they belong to whoever started them."""
    names = host.list("/proc/[0-9]*/comm")
    if not names:
        return Finding(UNKNOWN, "processes cannot be listed")
    running = [path for path in names if host.read(path) == "irqbalance"]
    if not running:
        return Finding(OK, "does not run")
    number = re.findall(r"\d+", running[0])[0]
    return Finding(WARN, f"runs (process {number})", "systemctl disable --now irqbalance")
