"""The driver: what it says that it can, and what it grants when it is asked."""

from __future__ import annotations

import errno

from xdpstack.doctor.check import FAIL, OK, UNKNOWN, WARN, Finding
from xdpstack.doctor.host import Interface
from xdpstack.nic.drivers import quirks_of

NATIVE = "use a NIC whose driver has native XDP (mlx5, ice, i40e, ixgbe, igc, ena, gve)"
ZERO_COPY = "use a NIC with zero-copy (mlx5, ice, i40e, ixgbe, igc)"


def driver(i: Interface) -> Finding:
    """Its XDP features, as the kernel tells them, and what else is known of such a driver."""
    can, name = i.host.ask("capabilities", i["index"]) or {}, i.driver or "unknown"
    words = can.get("xdp")
    if words is None:
        found = f"{name}: the kernel does not tell its XDP features"
        return Finding(UNKNOWN, found, "a kernel of 6.3 or later tells")
    text = f"{name}: {', '.join(words) or 'no XDP features'}"
    known = quirks_of(i.driver)
    needs = f"; zero-copy needs {known.needs}" if known and known.needs and "zero-copy" in words else ""
    resets = f"; {known.resets}" if known and known.resets else ""
    if not {"basic", "redirect"} <= set(words):
        return Finding(WARN, f"{text}: generic mode only", NATIVE)
    text += (
        "; stamps by the NIC" if "timestamp" in (can.get("rx_metadata") or ()) else "; stamps at the XDP hook"
    )
    if "zero-copy" in words:
        return Finding(OK, text + needs + resets)
    remedy = "" if i.driver == "veth" else ZERO_COPY
    return Finding(WARN, f"{text}; frames are copied{resets}", remedy)


def mode(i: Interface) -> Finding:
    """What is granted, by trial: an AF_XDP socket on queue 0 for a moment, where nobody can mind."""
    insist = f"xdpstack doctor {i.name} --try"
    if not i["up"]:
        return Finding(UNKNOWN, "not tried: the interface is down", f"ip link set dev {i.name} up")
    if i["xdp"]:
        return Finding(UNKNOWN, "not tried: an XDP program is attached", f"xdpstack status {i.name}")
    if i["default_route"] and not i["insist"]:
        return Finding(UNKNOWN, "not tried: this host's way out goes over it", insist)
    result = i.ask("trial")
    if result is None:
        return Finding(UNKNOWN, "not tried", insist)
    if result["granted"]:
        return _granted(i, result["granted"])
    if result["errno"] == errno.EBUSY:
        return Finding(
            UNKNOWN, "not tried: somebody holds a socket on queue 0", "end that process, or ask it"
        )
    if result["errno"] in (errno.EPERM, errno.EACCES):
        return Finding(UNKNOWN, "not allowed to try", f"sudo xdpstack doctor {i.name}")
    sentence, _, remedy = result["error"].partition("; ")
    return Finding(FAIL, f"refused: {sentence}", remedy or f"xdpstack status {i.name}")


def _granted(i: Interface, granted: str) -> Finding:
    words = (i.host.ask("capabilities", i["index"]) or {}).get("xdp")
    way = "mode untold" if words is None else "native" if "basic" in words else "generic"
    if granted == "zerocopy":
        return Finding(OK, "native, zero-copy")
    # A veth copies always, and nothing mends it.
    remedy = "" if i["kind"] == "veth" else ZERO_COPY
    return Finding(WARN, f"{way}, frames are copied", remedy)
