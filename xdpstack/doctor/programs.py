"""Other people's BPF programs: in every XDP slot, and at tc."""

from __future__ import annotations

from xdpstack.doctor.check import FAIL, OK, UNKNOWN, WARN, Finding
from xdpstack.doctor.host import Host, Interface

OURS = "xds_"  # how the names of our programs begin
OFF = {"native": "xdpdrv", "generic": "xdpgeneric", "hw": "xdpoffload"}


def xdp(i: Interface) -> Finding:
    """The native, generic and hardware slots."""
    slots = i["xdp"] or {}
    if not slots:
        return Finding(OK, "none attached, native, generic or hw")
    names = {slot: i.host.ask("program", number) or "" for slot, number in slots.items()}
    parts = [f"{names[slot] or 'a program'} (id {number}, {slot})" for slot, number in slots.items()]
    if "xdp_dispatcher" in names.values():
        return _dispatcher(i, ", ".join(parts))
    foreign = [slot for slot, name in names.items() if not name.startswith(OURS)]
    found = f"{', '.join(parts)} {'is' if len(parts) == 1 else 'are'} attached"
    if not foreign:
        return Finding(OK, f"{found}, ours")
    commands = [f"bpftool prog show id {slots[slot]}" for slot in foreign]
    commands += [f"ip link set dev {i.name} {OFF[slot]} off" for slot in foreign]
    return Finding(FAIL, found, "; ".join(commands))


def _dispatcher(i: Interface, slots: str) -> Finding:
    """Others' programs are no fault there: the dispatcher is how they share the hook."""
    members = i.ask("chained") or []
    words = [f"{m['name'] or 'a program'} (id {m['id']}, priority {m['priority']})" for m in members]
    found = f"{slots}, in it {', '.join(words) or 'what cannot be read'}"
    left = i.ask("left_by")
    if left:
        return Finding(WARN, f"{found}; ours was left by dead process {left}", f"xdpstack unload {i.name}")
    if not members:
        return Finding(FAIL, found, f"xdp-loader status {i.name}")
    if any(m["ours"] for m in members):
        return Finding(OK, found)
    return Finding(
        WARN, f"{found}: only --dispatcher loads beside it", f"xdpstack load {i.name} --dispatcher"
    )


def dispatcher(host: Host) -> Finding:
    """Whether libxdp's dispatcher takes our filter, by trial."""
    why = host.ask("dispatcher_trial")
    if why is None:
        return Finding(UNKNOWN, "only root can try", "sudo xdpstack doctor")
    if why:
        return Finding(OK, f"not to be had, so filters stand alone: {why}")
    return Finding(OK, "libxdp's dispatcher takes our filter, tried on no interface")


def tc(i: Interface) -> Finding:
    """Programs at tc and tcx: after XDP on receive, so they see what the filter passes on, and never ours."""
    found = i.ask("tc_programs") or []
    if not found:
        return Finding(OK, "none at tc or tcx")
    words = [f"{p['name'] or 'a program'} (id {p['id']}, {p['hook']})" for p in found]
    egress = [p for p in found if "egress" in p["hook"]]
    text = ", ".join(words)
    if not egress:
        return Finding(OK, f"{text}: behind the filter, they see only what it passes")
    remedy = f"bpftool net show dev {i.name}"
    return Finding(WARN, f"{text}: frames that we send do not pass the ones on egress", remedy)
