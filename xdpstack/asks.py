"""What a filter can ask a driver about received frames: in which words, and whether the driver has it."""

from __future__ import annotations

import errno
from collections.abc import Collection

from xdpstack._ffi import lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.netdev import SINCE, Capabilities, capabilities
from xdpstack.nic import ethtool
from xdpstack.nic.surface import Host

__all__ = ["METADATA", "asked"]

METADATA = {
    "timestamp": lib.XDS_META_NIC,
    "hash": lib.XDS_META_HASH,
    "vlan-tag": lib.XDS_META_VLAN,
}
"""What a driver can be asked about a received frame, in the words of ``netdev.RX_METADATA``."""


def asked(ifname: str, ifindex: int, mode: str, stamp: bool, metadata: Collection[str]) -> int:
    """The bits of what a driver is asked for. ConfigError: no such word, or it cannot be with the rest.
    SetupError: the driver has it not, as the kernel tells."""
    unknown = sorted(set(metadata) - set(METADATA))
    if unknown:
        raise ConfigError(f"metadata {unknown[0]!r} is none of {', '.join(METADATA)}")
    if metadata and not stamp:
        raise ConfigError("metadata lies beside the receive stamp: leave stamp on")
    if metadata and mode == "generic":
        raise ConfigError("metadata comes from the driver: in generic mode nobody asks it")
    there = capabilities(ifindex) if metadata else Capabilities()
    for word in metadata:
        if there.can(word):
            continue
        driver = ethtool.driver(Host(), ifname) or "of no name"
        has = ", ".join(sorted(there.rx_metadata or ())) or "nothing"
        raise SetupError(
            f"{ifname}: ask its driver for {word}",
            f"this kernel does not tell what driver {driver} has (Linux {SINCE['rx_metadata']} does)"
            if there.rx_metadata is None
            else f"driver {driver} tells {has} of received frames",
            f"leave {word} out of metadata",
            errno.EOPNOTSUPP,
        )
    return sum(METADATA[word] for word in set(metadata))
