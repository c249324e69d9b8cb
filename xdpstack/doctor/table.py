"""The checks, as data: a row is a name, why it matters in one sentence, and the function that looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from xdpstack.doctor import (
    clocks,
    cores,
    driver,
    engines,
    kernel,
    link,
    memory,
    placement,
    privilege,
    programs,
)
from xdpstack.doctor.check import Finding
from xdpstack.doctor.host import Host, Interface

__all__ = ["HOST_CHECKS", "INTERFACE_CHECKS", "HostRow", "InterfaceRow"]


class HostRow(NamedTuple):
    """A check of the host."""

    name: str
    why: str
    look: Callable[[Host], Finding]


class InterfaceRow(NamedTuple):
    """A check of one interface."""

    name: str
    why: str
    look: Callable[[Interface], Finding]


# fmt: off
HOST_CHECKS: tuple[HostRow, ...] = (
    HostRow("kernel",
            "Stamps, links and busy polling came one by one; 6.1 has what we cannot do without.",
            kernel.version),
    HostRow("kernel-options",
            "What the kernel was built without, no command brings back.",
            kernel.options),
    HostRow("af-xdp",
            "Frames reach us through AF_XDP sockets.",
            kernel.af_xdp),
    HostRow("bpf-jit",
            "Without it the filter is interpreted, several times slower for every frame.",
            kernel.jit),
    HostRow("busy-poll",
            "Set for the whole host it makes every socket's poll spin, beside the ports that ask for it.",
            kernel.busy_poll),
    HostRow("capabilities",
            "Loading the filter needs CAP_BPF and CAP_NET_ADMIN, an AF_XDP socket CAP_NET_RAW.",
            privilege.capabilities),
    HostRow("memlock",
            "The frames of a port are locked memory: 4,096 frames are 16 MiB.",
            privilege.memlock),
    HostRow("bpffs",
            "`load` pins the filter there, so that it stays when the command ends.",
            privilege.bpffs),
    HostRow("dispatcher",
            "Only with it can our filter share an interface with other XDP programs (--dispatcher).",
            programs.dispatcher),
    HostRow("huge-pages",
            "Frames and books in huge pages miss the TLB less; without them ports take small pages, counted.",
            memory.huge_2m),
    HostRow("huge-pages-1g",
            "One page of 1 GiB is one TLB entry for all of a large book.",
            memory.huge_1g),
    HostRow("numa-balancing",
            "It unmaps pages to see who touches them: a page fault in the middle of a burst.",
            memory.balancing),
    HostRow("governor",
            "A core that clocks down between packets takes microseconds to come back.",
            cores.governor),
    HostRow("c-states",
            "Leaving a deep idle state takes 20 to 50 µs: a hand-off of 1 µs becomes that.",
            cores.c_states),
    HostRow("dma-latency",
            "While a process holds it at 0 no core idles deep, whatever the idle states are.",
            cores.dma_latency),
    HostRow("isolation",
            "On a core that the scheduler also uses, a spinning engine is interrupted for milliseconds.",
            cores.isolation),
    HostRow("tick",
            "Where the timer ticks, an engine loses some microseconds up to a thousand times a second.",
            cores.tick),
    HostRow("smt",
            "A busy sibling takes half of the engine's core.",
            cores.smt),
    HostRow("rt-throttling",
            "A real-time thread that never sleeps is stopped for the rest of every period.",
            cores.rt_throttle),
    HostRow("irqbalance",
            "It moves interrupts onto the engine's core.",
            cores.irqbalance),
    HostRow("engines",
            "An engine that is moved between cores loses what their caches held, and waits for others.",
            engines.running),
    HostRow("clock",
            "Every stamp reads the clock: 10 ns by the CPU's counter, 20 to 300 ns by the system.",
            clocks.counter),
    HostRow("clock-source",
            "Stamps at the XDP hook read the kernel's clock source: hpet and acpi_pm take a microsecond.",
            clocks.source),
    HostRow("clock-sync",
            "Stamps follow the kernel's clock; where nothing keeps it, those of two hosts drift apart.",
            clocks.sync),
    HostRow("tai-offset",
            "With 0 our stamps are one time line here, but 37 s away from those of other hosts.",
            clocks.tai),
)

INTERFACE_CHECKS: tuple[InterfaceRow, ...] = (
    InterfaceRow("link",
                 "A link without carrier delivers nothing.",
                 link.carrier),
    InterfaceRow("kind",
                 "AF_XDP sockets bind to a NIC's queues; what stands on a NIC has none.",
                 link.kind),
    InterfaceRow("driver",
                 "Native mode runs the filter in the driver; zero-copy lets the NIC write into our frames.",
                 driver.driver),
    InterfaceRow("mode",
                 "What a driver says that it can, it may still refuse; a trial shows what is granted.",
                 driver.mode),
    InterfaceRow("queues",
                 "A frame on a queue without a socket goes to the kernel: open all, or steer to one.",
                 link.queues),
    InterfaceRow("offloads",
                 "Merged frames, stripped tags and unfinished checksums are not what was on the wire.",
                 link.offloads),
    InterfaceRow("mtu",
                 f"Above {link.SINGLE_BUFFER_MTU} bytes a frame takes several buffers: that takes rx-sg.",
                 link.mtu),
    InterfaceRow("napi-deferral",
                 "Preferred busy polling keeps interrupts away only while both are set.",
                 link.napi),
    InterfaceRow("coalescing",
                 "Without busy polling, a packet waits for the interrupt that moderation holds back.",
                 link.coalescing),
    InterfaceRow("xdp-program",
                 "We never replace a program that somebody else has attached, unless told to.",
                 programs.xdp),
    InterfaceRow("tc-programs",
                 "What bypasses the kernel bypasses its programs at tc: policies there do not hold for us.",
                 programs.tc),
    InterfaceRow("interrupts",
                 "An interrupt on the engine's core delays what it is polling for.",
                 placement.interrupts),
    InterfaceRow("numa",
                 "Frames that cross to another node pay for it with every cache line.",
                 placement.numa),
    InterfaceRow("phc",
                 "The NIC's clock stamps a frame when it arrives, before any queue.",
                 clocks.phc),
)
# fmt: on
