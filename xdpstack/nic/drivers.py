"""What we know of drivers beyond what the kernel tells: what zero-copy needs, what resets the link, where the
MTU ends. Data only; what a device can is asked of the kernel (``xdpstack.netdev``), never looked up here.

The table in this folder's README is made from it: ``python -m xdpstack.nic``; a test fails when it is stale.
"""

from __future__ import annotations

import dataclasses

from xdpstack.nic.surface import Link

__all__ = ["DRIVERS", "Driver", "quirks_of", "table", "unsuitable"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """One driver's ways. Empty text: nothing that we know of."""

    hardware: str
    zero_copy: str
    """Since which Linux, or why not."""
    needs: str = ""
    """What zero-copy or native mode needs before it works."""
    resets: str = ""
    """What takes the carrier or the queues down for a moment."""
    mtu: str = ""
    """Where the MTU ends while a program without frags is attached."""
    whole_pages: bool = False
    """Frames must be whole pages, or zero-copy is lost."""
    steering: str = ""


DRIVERS: dict[str, Driver] = {
    "mlx5_core": Driver(
        hardware="NVIDIA ConnectX-4 Lx and later",
        zero_copy="5.3",
        needs="LRO off; before 5.15 zero-copy queues are numbered from the channel count on (N to 2N-1)",
        resets="channels, rings and attach re-open all queues (some ms)",
        mtu="about 3,498; frags since 5.18",
        steering="ntuple; RSS contexts",
    ),
    "ice": Driver(
        hardware="Intel E810, E822, E823",
        zero_copy="5.5",
        needs="one XDP transmit queue a core; a ring that is a multiple of 32",
        resets="attach and channels rebuild all queues; the carrier may drop for a second",
        mtu="about 3,050; frags since 6.3, zero-copy with several buffers since 6.6",
        steering="ntuple (Flow Director); RSS contexts by tc channels only",
    ),
    "i40e": Driver(
        hardware="Intel X710, XL710, X722",
        zero_copy="4.20",
        resets="attach resets the port: seconds without carrier",
        mtu="about 3,050; frags since 6.4, zero-copy with several buffers since 6.6",
        steering="ntuple (Flow Director); all rules of a kind share one mask",
    ),
    "ixgbe": Driver(
        hardware="Intel 82599, X540, X550",
        zero_copy="4.20",
        needs="LRO off; not with SR-IOV or DCB",
        resets="attach resets the port: up to 30 s without carrier were seen",
        mtu="about 3,050",
        steering="ntuple (Flow Director perfect filters); all rules share one mask",
    ),
    "igb": Driver(
        hardware="Intel 82576, I350, I210",
        zero_copy="6.14",
        needs="4096-byte chunks: buffers count in whole KiB, and longer frames come cut in two",
        resets="attach re-opens the port; re-opening a queue at once gives EBUSY for a moment",
        mtu="about 3,050 (one page); stamps of all frames from 82580 on",
        steering="82576: RSS table; I350, I210: ntuple by MAC address, EtherType, VLAN priority: no ports",
    ),
    "igc": Driver(
        hardware="Intel I225, I226",
        zero_copy="5.14",
        needs="4096-byte chunks: buffers count in whole KiB",
        resets="attach re-opens the port: 2 to 5 s without carrier",
        mtu="1,500",
        steering="ntuple by MAC address, EtherType and VLAN; receive stamps by metadata",
    ),
    "ena": Driver(
        hardware="Amazon Nitro",
        zero_copy="Amazon's driver 2.13; the kernel's own copies",
        needs="at most half of the channels: ethtool -L IFACE combined N/2; frames of a page",
        resets="attach and channels re-create the queues",
        mtu="3,498",
        whole_pages=True,
        steering="RSS table; flow rules on few instance types",
    ),
    "gve": Driver(
        hardware="Google Virtual NIC",
        zero_copy="6.4 (GQI queues), 6.16 (DQO queues)",
        needs="at most half of the channels; on DQO queues header split off",
        resets="attach re-opens the queues when the ring format changes",
        mtu="2,048 less headers on GQI queues",
        steering="ntuple since 6.12 where the device offers it",
    ),
    "virtio_net": Driver(
        hardware="virtio",
        zero_copy="6.11; transmit 6.14",
        needs="guest offloads off (LRO, GRO-HW); queues for XDP beside the others: half of the channels",
        resets="attach takes queues: channels change while a program is attached",
        mtu="about 3,500; frags since 6.3 when the host merges buffers",
        steering="none; RSS table where the host offers it",
    ),
    "bnxt_en": Driver(
        hardware="Broadcom NetXtreme-C, -E",
        zero_copy="none in the kernel",
        needs="combined channels, LRO off",
        resets="attach re-opens the port",
        mtu="3,498 with page mode; frags since 5.19",
        steering="ntuple; RSS contexts",
    ),
    "stmmac": Driver(
        hardware="Synopsys GMAC (Intel Elkhart Lake, many SoCs)",
        zero_copy="5.13",
        resets="attach and binding a socket stop and start the queues",
        mtu="1,500",
        steering="by tc flower: EtherType, VLAN priority, ports on some cores",
    ),
    "atlantic": Driver(
        hardware="Marvell AQtion",
        zero_copy="none",
        resets="attach re-opens the port",
        mtu="about 2,048 without frags; frags since 5.19",
        steering="ntuple",
    ),
    "mvneta": Driver(
        hardware="Marvell Armada",
        zero_copy="none",
        resets="attach re-opens the port",
        mtu="about 3,500; frags since 5.18",
    ),
    "sfc": Driver(
        hardware="AMD Solarflare",
        zero_copy="none",
        needs="a transmit queue a core for XDP",
        resets="attach re-opens the port",
        mtu="about 3,500",
        steering="ntuple; RSS contexts",
    ),
    "hv_netvsc": Driver(
        hardware="Hyper-V",
        zero_copy="none",
        needs="LRO off; the program goes to the virtual function by itself",
        mtu="about 3,500",
        steering="RSS table",
    ),
    "veth": Driver(
        hardware="a pair of virtual links",
        zero_copy="none: frames are copied",
        needs="checksum and segmentation offloads off at the kernel's end; receive queues at least the "
        "peer's transmit queues",
        resets="attach limits the peer's MTU and its offloads",
        mtu="about 3,520; frags since 5.18",
        steering="none: the sender's queue decides",
    ),
}  # fmt: skip
"""By the name that ``ethtool -i`` shows."""


def quirks_of(driver: str) -> Driver | None:
    """What we know of a driver; None: nothing."""
    return DRIVERS.get(driver)


_UNSUITABLE = {
    "bond": ("a bond has no queues of its own", "open its ports: one port each, both lines of the feed"),
    "team": ("a team has no queues of its own", "open its ports: one port each, both lines of the feed"),
    "vlan": ("a VLAN device has no queues of its own", "open {lower}, and match the tag: `vlan N` in a rule"),
    "macvlan": ("a macvlan has no queues of its own", "open {lower}"),
    "ipvlan": ("an ipvlan has no queues of its own", "open {lower}"),
    "bridge": ("a bridge has no queues of its own", "open the port of it that the feed comes by"),
    "dummy": ("a dummy receives nothing", "open the interface that the feed comes by"),
    "vxlan": ("a tunnel has no queues of its own", "open the interface that carries it"),
    "wireguard": ("a tunnel has no queues of its own", "open the interface that carries it"),
}


def unsuitable(link: Link) -> tuple[str, str] | None:
    """Why an interface is none to bind queues of, and what to use instead; None when it is one."""
    if link.is_loopback:
        return "loopback has no queues", "use a veth pair (`xdpstack lab up`), or sock:lo"
    found = _UNSUITABLE.get(link.kind)
    if found is None:
        return None
    reason, instead = found
    return reason, instead.format(lower=link.lower or "the device below it")


COLUMNS = ("driver", "hardware", "zero-copy since Linux", "needs", "resets the link", "MTU", "steering")


def table() -> str:
    """The drivers as a table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for name, one in DRIVERS.items():
        needs = "; ".join(filter(None, (one.needs, "whole-page frames" if one.whole_pages else "")))
        cells = (name, one.hardware, one.zero_copy, needs, one.resets, one.mtu, one.steering)
        lines.append("| " + " | ".join(cell or "–" for cell in cells) + " |")
    return "\n".join(lines) + "\n"
