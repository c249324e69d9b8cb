"""Which interrupt belongs to which queue, who else moves interrupts, and which cores are near a NIC."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Iterator

from xdpstack.nic.surface import Link, Surface

__all__ = ["cpus_of_node", "irqbalance", "memory_on", "node_of", "parse_cpus", "queue_irqs"]


def queue_irqs(surface: Surface, link: Link) -> dict[int, int]:
    """Interrupt by receive queue; a queue whose interrupt cannot be told is left out.

    From the kernel's NAPI instances where it links queues to them, else from the names of the device's
    message-signalled interrupts in /proc/interrupts.
    """
    napis = {napi.id: napi.irq for napi in surface.napis(link.index) or []}
    found = {
        queue.id: irq
        for queue in surface.queues(link.index) or []
        if queue.kind == "rx" and queue.napi_id is not None and (irq := napis.get(queue.napi_id))
    }
    return found or _by_names(surface, link)


# eth0-TxRx-3, i40e-eth0-TxRx-3, eth0-rx-3, ena0-Tx-Rx-3, mlx5_comp3@pci:…, virtio2-input.3, gve-ntfy-blk3,
# eth0-fp-3; an `output`, `tx`, `config` or `async` interrupt receives nothing.
_RECEIVES = re.compile(r"(?:TxRx|Tx-Rx|(?<![a-z])rx|input|comp|ntfy-blk|fp)[-_.]?(\d+)", re.I)


def _by_names(surface: Surface, link: Link) -> dict[int, int]:
    device = f"/sys/class/net/{link.name}/device"
    # A virtio device has no interrupts of its own: they are its parent's, the PCI function.
    own = surface.names(f"{device}/msi_irqs") or surface.names(f"{device}/../msi_irqs")
    found: dict[int, int] = {}
    if not own:
        return found
    for line in surface.read("/proc/interrupts").splitlines():
        number, _, rest = line.strip().partition(":")
        match = _RECEIVES.search(rest.split()[-1]) if rest.split() else None
        if number in own and match:
            found.setdefault(int(match[1]), int(number))
    return found


def irqbalance(surface: Surface) -> int | None:
    """The process id of a running irqbalance, which would move interrupts back; None when there is none."""
    for name in surface.names("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if surface.read(f"/proc/{name}/comm") == "irqbalance":
                    return int(name)
    return None


def parse_cpus(text: str) -> list[int]:
    """``0,2-3`` as numbers. ValueError: it is no such list."""
    cpus: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def node_of(surface: Surface, link: Link) -> int | None:
    """The NUMA node that a NIC is attached to; None where there is one node only, or it does not tell."""
    nodes = [name for name in surface.names("/sys/devices/system/node") if re.fullmatch(r"node\d+", name)]
    if len(nodes) < 2:
        return None
    try:
        node = int(surface.read(f"/sys/class/net/{link.name}/device/numa_node"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def cpus_of_node(surface: Surface, node: int) -> list[int]:
    """The cores of a NUMA node; none when there is no such node."""
    try:
        return parse_cpus(surface.read(f"/sys/devices/system/node/node{node}/cpulist"))
    except (OSError, ValueError):
        return []


_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_DEFAULT, _PREFERRED = 0, 1  # linux/mempolicy.h


@contextlib.contextmanager
def memory_on(node: int | None) -> Iterator[None]:
    """Memory that this thread touches first within the block comes from a NUMA node, while it has any.

    None, one node, or a processor whose call number we do not know: nothing is asked.
    """
    number = _SET_MEMPOLICY.get(platform.machine())
    if node is None or number is None:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.c_ulong(1 << node)
    if libc.syscall(number, _PREFERRED, ctypes.byref(mask), 8 * ctypes.sizeof(mask) + 1):
        code = ctypes.get_errno()
        raise OSError(code, f"prefer memory of NUMA node {node}: {os.strerror(code)}")
    try:
        yield
    finally:
        libc.syscall(number, _DEFAULT, None, 0)
