"""Where an interface's work is done: the cores of its interrupts, the NUMA node of its memory."""

from __future__ import annotations

from xdpstack.doctor.check import OK, UNKNOWN, WARN, Finding
from xdpstack.doctor.host import Interface, cpus, cpus_text

IRQ = "/proc/irq/{}/{}"


def interrupts(i: Interface) -> Finding:
    """Interrupts on the cores that are kept for engines."""
    # virtio has its interrupts one device further up; the kernel tells of the others by their NAPI (6.8).
    numbers = i.list("device/msi_irqs") or (i.list("device/../msi_irqs") if "virtio" in i.driver else [])
    told = {str(napi["irq"]) for napi in i.host.ask("napis", i["index"]) or [] if napi["irq"]}
    numbers = sorted({*numbers, *told}, key=int)
    if not numbers:
        return Finding(OK, "it has none of its own")
    host = i.host
    placed = {}
    for number in numbers:
        text = host.read(IRQ.format(number, "effective_affinity_list"))
        text = text or host.read(IRQ.format(number, "smp_affinity_list"))
        placed[number] = cpus(text)
    if not any(placed.values()) and not i["up"]:
        found = f"{len(numbers)}, which get their cores when the link comes up"
        return Finding(UNKNOWN, found, f"ip link set dev {i.name} up")
    if not any(placed.values()):
        return Finding(UNKNOWN, f"{len(numbers)}, and their cores cannot be read")
    cores = cpus_text(set().union(*placed.values()))
    isolated = cpus(host.read("/sys/devices/system/cpu/isolated"))
    wrong = [number for number, on in placed.items() if on & isolated]
    if not wrong:
        return Finding(OK, f"on cores {cores}")
    others = cpus_text(cpus(host.read("/sys/devices/system/cpu/online")) - isolated) or "0"
    changes = tuple(i.change("file", IRQ.format(number, "smp_affinity_list"), others) for number in wrong)
    remedy = "; ".join(f"echo {others} > {IRQ.format(n, 'smp_affinity_list')}" for n in wrong[:4])
    kept = cpus_text(set().union(*(placed[n] for n in wrong)) & isolated)
    found = f"on cores {cores}, of which {kept} isolated"
    return Finding(WARN, found, remedy, changes)


def numa(i: Interface) -> Finding:
    """The node that the NIC hangs on, and whether isolated cores are there."""
    (text,) = i.read("device/numa_node")
    nodes = i.host.list("/sys/devices/system/node/node[0-9]*")
    if len(nodes) < 2 or text is None or not text.isdigit():  # -1: the device belongs to none
        return Finding(OK, "one node" if len(nodes) < 2 else "it belongs to no node")
    cores = i.host.read(f"/sys/devices/system/node/node{text}/cpulist") or ""
    isolated = cpus(i.host.read("/sys/devices/system/cpu/isolated"))
    found = f"node {text} of {len(nodes)}: run the engine on cores {cores}"
    if isolated and not isolated & cpus(cores):
        return Finding(
            WARN, f"{found}; none of them is isolated", f"boot with isolcpus=managed_irq,domain,{cores}"
        )
    return Finding(OK, found)
