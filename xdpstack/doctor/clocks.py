"""Clocks: what a stamp costs, what it means, and the NIC's own clock."""

from __future__ import annotations

from xdpstack.doctor.check import OK, UNKNOWN, WARN, Finding
from xdpstack.doctor.host import Host, Interface

SOURCE = "/sys/devices/system/clocksource/clocksource0/{}_clocksource"
FAST = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")


def counter(host: Host) -> Finding:
    """Whether stamps come from the CPU's counter."""
    clock = host.ask("clock")
    if clock is None:
        return Finding(UNKNOWN, "cannot be asked")
    if clock["source"] == "counter":
        return Finding(OK, f"the CPU's counter at {clock['hertz'] / 1e6:.1f} MHz")
    found = f"the system's, since the counter is {clock['reason'].replace('_', ' ')}"
    return Finding(WARN, found, "a host or guest with an invariant TSC; ports with stamps = false need none")


def source(host: Host) -> Finding:
    """The kernel's own clock source."""
    current = host.read(SOURCE.format("current"))
    if current is None:
        return Finding(UNKNOWN, "cannot be read")
    if current in FAST:
        return Finding(OK, current)
    others = (host.read(SOURCE.format("available")) or "").split()
    there = next((name for name in FAST if name in others), None)
    if there is None:
        return Finding(WARN, current, "boot with tsc=reliable, when the hardware's TSC is")
    return Finding(WARN, f"{current}, and {there} is there", f"echo {there} > {SOURCE.format('current')}")


def sync(host: Host) -> Finding:
    """Whether NTP, PTP or a pulse keeps the kernel's clock, which stamps follow."""
    kept = host.ask("clock_sync")
    if kept is None:
        return Finding(UNKNOWN, "cannot be asked")
    if kept["synchronized"]:
        return Finding(OK, f"kept within {kept['max_error_ns'] / 1000:,.0f} µs, as who keeps it says")
    remedy = "systemctl enable --now chrony; where the NIC has PTP: ptp4l and phc2sys"
    return Finding(WARN, "nothing keeps it", remedy)


def tai(host: Host) -> Finding:
    """The offset that the kernel was told. Not mended by --fix: it would step the clock of everybody."""
    offset = host.ask("tai")
    if offset is None:
        return Finding(UNKNOWN, "cannot be asked")
    if offset:
        return Finding(OK, f"{offset} s")
    return Finding(WARN, "0 s", "set leapsectz in chrony.conf, or: adjtimex --tai 37")


def phc(i: Interface) -> Finding:
    """The NIC's clock."""
    stamping = i.ask("stamping")
    if stamping is None:
        return Finding(UNKNOWN, "the driver does not tell")
    if stamping["phc"] < 0:
        return Finding(OK, "it has none: stamps are taken at the XDP hook")
    device = f"/dev/ptp{stamping['phc']}"
    if not stamping["hardware"]:
        return Finding(WARN, f"{device}, but the NIC stamps no received frame", f"ethtool -T {i.name}")
    name = i.host.read(f"/sys/class/ptp/ptp{stamping['phc']}/clock_name") or "unnamed"
    return Finding(OK, f"{device} ({name}): a node that asks for its stamps maps them to CLOCK_TAI by itself")
