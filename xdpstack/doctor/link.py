"""The link: what it is, whether it carries, its queues, frame sizes, offloads and interrupt moderation."""

from __future__ import annotations

from xdpstack.doctor.check import FAIL, OK, UNKNOWN, WARN, Finding
from xdpstack.doctor.host import Interface


def carrier(i: Interface) -> Finding:
    """Up, and something at the other end."""
    if not i["up"]:
        change = i.change("link", "state", "up")
        return Finding(FAIL, "down", f"ip link set dev {i.name} up", (change,))
    if not i["carrier"]:
        return Finding(FAIL, "up, without carrier", "look at the cable, or the veth's other end")
    return Finding(OK, "up, with carrier")


def _name(i: Interface, index: int | None) -> str:
    """The interface of that number in this namespace; empty when it is elsewhere."""
    return next((name for name, link in i.host.links().items() if link["index"] == index), "")


def kind(i: Interface) -> Finding:
    """A NIC, or something that stands on one: AF_XDP binds to the queues of what is below."""
    what = i["kind"]
    if what in ("bond", "team"):
        links = i.host.links().items()
        members = [name for name, link in links if link.get("master") == i["index"]]
        remedy = "; ".join(f"xdpstack doctor {name}" for name in members) or f"give {i.name} a member"
        found = f"a {what} of {', '.join(members) or 'nothing'}: its members have the queues"
        return Finding(WARN, f"{found}, load the filter on each", remedy)
    if what == "vlan":
        lower = (_name(i, i["lower"]) if i["lower_here"] else "") or "the interface below"
        found = f"a VLAN of {lower}: it has no queues, only generic mode"
        return Finding(WARN, found, f"use {lower}, with rules that name the VLAN")
    if what in ("bridge", "macvlan", "macvtap", "ipvlan", "dummy", "ifb"):
        found = f"a {what}: it has no queues of its own"
        return Finding(WARN, found, "use the NIC below it")
    if i["loopback"]:
        return Finding(WARN, "the loopback: generic mode, frames are copied", "use a NIC, or a veth pair")
    master = _name(i, i["master"])
    if master and i.host.links()[master]["kind"] in ("bond", "team"):
        found = f"a member of {master}: what the switch sends by the others does not come here"
        return Finding(WARN, found, f"load the filter on every member of {master}")
    return Finding(
        OK, "a veth: it shows that things work, not how fast a NIC is" if what == "veth" else what or "a NIC"
    )


def queues(i: Interface) -> Finding:
    """Several queues: open all, or steer to one."""
    rx, tx = int(i["rx"] or 1), int(i["tx"] or 1)
    channels = i.ask("channels")
    if channels:
        rx, tx = channels["rx"], channels["tx"]
    found = f"{rx} receive, {tx} transmit"
    if rx <= 1:
        return Finding(OK, found)
    remedy = f"xsk:{i.name}:0-{rx - 1} opens all; or ethtool -L {i.name} combined 1"
    return Finding(WARN, found, remedy)


# A page, less headroom (256) and the kernel's shared info (320): what one buffer holds, with its header.
SINGLE_BUFFER_MTU = 4096 - 256 - 320 - 14 - 8


def mtu(i: Interface) -> Finding:
    """Frames that take several buffers."""
    size, can = int(i["mtu"]), i.host.ask("capabilities", i["index"]) or {}
    if size <= SINGLE_BUFFER_MTU:
        return Finding(OK, str(size))
    words = can.get("xdp")
    if words and "rx-sg" in words:
        copied = "zero-copy" in words and (can.get("zc_max_segs") or 0) <= 1
        found = f"{size}, in several buffers" + (", not zero-copy" if copied else "")
        return Finding(
            WARN if copied else OK,
            found,
            f"ip link set dev {i.name} mtu {SINGLE_BUFFER_MTU}" if copied else "",
        )
    remedy = f"ip link set dev {i.name} mtu {SINGLE_BUFFER_MTU}"
    if words is None:
        return Finding(UNKNOWN, f"{size}, and the kernel does not tell whether that fits", remedy)
    if "basic" not in words:  # generic mode alone: no driver's limit to mend, but frames do not fit a chunk
        return Finding(FAIL, f"{size}, in generic mode", remedy)
    return Finding(
        FAIL,
        f"{size}, and the driver takes one buffer a frame",
        remedy,
        (i.change("link", "mtu", SINGLE_BUFFER_MTU),),
    )


# What breaks bypass, by ethtool's name and its short word. Software GRO comes after native XDP: harmless.
MERGING = {"rx-lro": "lro", "rx-gro-hw": "rx-gro-hw", "rx-vlan-hw-parse": "rxvlan"}
CHECKSUMS = "tx-checksum-ip-generic"


def offloads(i: Interface) -> Finding:
    """What changes frames before the filter sees them."""
    features = i.ask("features")
    if features is None:
        return Finding(UNKNOWN, "the driver does not tell")
    if i["kind"] == "veth":
        return _veth_offloads(i)
    on = [name for name in MERGING if features.get(name, {}).get("on")]
    filtered = features.get("rx-vlan-filter", {}).get("on")
    beside = (
        "; rx-vlan-filter: a rule with a VLAN tag needs its VLAN device, or promiscuous" if filtered else ""
    )
    if not on:
        return Finding(OK, f"none that breaks bypass{beside}")
    fixed = [name for name in on if not features[name]["changed"]]
    changes = tuple(i.change("feature", name, "off") for name in on if name not in fixed)
    found = "on: " + ", ".join(MERGING[name] + (" (fixed)" if name in fixed else "") for name in on)
    words = [f"{MERGING[name]} off" for name in on if name not in fixed]
    remedy = f"ethtool -K {i.name} {' '.join(words)}" if words else "none: the driver has them fixed"
    return Finding(WARN, found + beside, remedy, changes)


def _veth_offloads(i: Interface) -> Finding:
    """A veth's frames are as its other end sends them: with unfinished checksums, when it offloads."""
    peer = _name(i, i["lower"]) if i["lower_here"] else ""
    if not peer:
        found = "the other end's are not seen from here"
        return Finding(UNKNOWN, found, "at the kernel end: ethtool -K PEER tx off")
    features = i.host.ask("features", peer) or {}
    if not features.get(CHECKSUMS, {}).get("on"):
        return Finding(OK, f"the other end, {peer}, finishes its checksums")
    other = i.host.interface(peer)
    assert other is not None
    change = other.change("feature", CHECKSUMS, "off")
    return Finding(
        WARN, f"the other end, {peer}, leaves checksums unfinished", f"ethtool -K {peer} tx off", (change,)
    )


DEFER = {"napi_defer_hard_irqs": "2", "gro_flush_timeout": "200000"}


def napi(i: Interface) -> Finding:
    """Interrupt deferral, which preferred busy polling stands on: by NAPI instance from Linux 6.13."""
    napis = i.host.ask("napis", i["index"])
    told = [one for one in napis or [] if one["defer"] is not None]
    values = dict(zip(DEFER, i.read(*DEFER), strict=True))
    if napis == [] and not i["up"] and not i["kind"]:
        words = "not known while it is down: NAPI instances come with the link"
        return Finding(UNKNOWN, words, f"ip link set dev {i.name} up")
    if told:
        off = [one["id"] for one in told if not one["defer"] or not one["flush"]]
        found = f"off for {len(off)} of {len(told)} NAPI instances" if off else f"on for all {len(told)}"
        changes = tuple(i.change("napi", str(number), " ".join(DEFER.values())) for number in off)
    elif None in values.values():
        words = "cannot be read: /sys shows another network namespace"
        return Finding(UNKNOWN, words, "sudo xdpstack doctor")
    else:
        off = [file for file, value in values.items() if value == "0"]
        found = ", ".join(f"{file} {value}" for file, value in values.items()) + " ns"
        wanted = " ".join(DEFER[file] if file in off else str(value) for file, value in values.items())
        changes = (i.change("napi", "", wanted),)
    if not off:
        return Finding(OK, found)
    if i["loopback"] or i["kind"]:
        return Finding(OK, f"{found}: it has no interrupts to put off")
    remedy = "; ".join(f"echo {value} > /sys/class/net/{i.name}/{file}" for file, value in DEFER.items())
    return Finding(WARN, found, remedy, changes)


def coalescing(i: Interface) -> Finding:
    """Moderation: packets that wait. Not mended by --fix: what is right depends on busy polling."""
    found = i.ask("coalescing")
    if found is None:
        return Finding(OK, "the driver has none")
    if found["adaptive"] or found["usecs"] > 10:
        words = "adaptive" if found["adaptive"] else f"{found['usecs']} µs"
        remedy = f"ethtool -C {i.name} adaptive-rx off rx-usecs 0   (not with preferred busy polling)"
        return Finding(WARN, f"receive interrupts wait: {words}", remedy)
    return Finding(OK, f"{found['usecs']} µs")
