"""Memory: huge pages of both sizes, and who moves pages around."""

from __future__ import annotations

from xdpstack.doctor.check import OK, UNKNOWN, WARN, Change, Finding
from xdpstack.doctor.host import Host

POOL = "/sys/kernel/mm/hugepages/hugepages-{kib}kB/{file}"
WANTED_2M = 128  # 256 MiB: frames of sixteen ports, or books of some thousand instruments
BALANCING = "/proc/sys/kernel/numa_balancing"


def _pool(host: Host, kib: int) -> tuple[int, int] | None:
    """Free and all pages of one size; None when the kernel or CPU has no such size."""
    total = host.number(POOL.format(kib=kib, file="nr_hugepages"))
    free = host.number(POOL.format(kib=kib, file="free_hugepages"))
    return None if total is None or free is None else (free, total)


def huge_2m(host: Host) -> Finding:
    """Pages of 2 MiB."""
    pool = _pool(host, 2048)
    if pool is None:
        return Finding(UNKNOWN, "the kernel tells of none")
    if pool[0]:
        return Finding(OK, f"{pool[0]} of {pool[1]} free")
    wanted = pool[1] + WANTED_2M
    change = Change("file", "", POOL.format(kib=2048, file="nr_hugepages"), str(wanted))
    return Finding(WARN, f"{pool[0]} of {pool[1]} free", f"sysctl -w vm.nr_hugepages={wanted}", (change,))


def huge_1g(host: Host) -> Finding:
    """Pages of 1 GiB: nice to have, so their absence is no fault."""
    pool = _pool(host, 1048576)
    if pool is None:
        return Finding(UNKNOWN, "this CPU or kernel has none")
    if pool[1] and not pool[0]:
        return Finding(WARN, f"0 of {pool[1]} free", "boot with hugepagesz=1G hugepages=N, one more")
    if not pool[1]:
        return Finding(
            OK, "none reserved, pages of 2 MiB serve; for books of gigabytes: hugepagesz=1G hugepages=4"
        )
    return Finding(OK, f"{pool[0]} of {pool[1]} free")


def balancing(host: Host) -> Finding:
    """Automatic NUMA balancing unmaps pages to see who uses them."""
    on = host.number(BALANCING)
    if on is None:
        return Finding(OK, "the kernel has none")
    if not on:
        return Finding(OK, "off")
    return Finding(WARN, "on", "sysctl -w kernel.numa_balancing=0", (Change("file", "", BALANCING, "0"),))
