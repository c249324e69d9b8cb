"""What no file tells, asked of the running system: netlink, ethtool, bpf, a socket for a moment.

Each function is a question of ``Host.ask``; answers are plain values, so that they can be recorded. None
means that the system does not say. Nothing here changes anything, but ``trial``, which opens a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkError

from xdpstack.clock import Clock, system_clock, tai_offset
from xdpstack.errors import ConfigError, SetupError

AF_XDP = 44

_libc = ctypes.CDLL(None, use_errno=True)


# ---- the host ------------------------------------------------------------------------------------


def af_xdp() -> str:
    """Empty when an AF_XDP socket can be made, else the name of the error."""
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW, 0).close()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return ""


def memlock() -> int:
    """Bytes that this process may lock; -1 is no limit."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return -1 if soft == resource.RLIM_INFINITY else soft


def clock() -> dict[str, Any]:
    """What our clock reads: ``source`` counter or system, ``reason``, ``hertz``."""
    found = Clock()
    return {"source": found.source, "reason": found.reason, "hertz": found.hertz}


def clock_sync() -> dict[str, Any] | None:
    """Whether something keeps the kernel's clock, by its own word: ``synchronized``, ``max_error_ns``."""
    try:
        found = system_clock()
    except OSError:  # a sandbox may refuse the question
        return None
    return {"synchronized": found.synchronized, "max_error_ns": found.max_error_ns}


def tai() -> int:
    """Seconds between CLOCK_TAI and UTC."""
    return tai_offset()


# ---- links ---------------------------------------------------------------------------------------


def links() -> dict[str, dict[str, Any]]:
    """The interfaces of this network namespace by name.

    index, up, carrier, mtu, rx and tx (queues), kind (empty for a NIC), lower (index of what it stands
    on or of a veth's peer), lower_here (that is in this namespace), master (index), xdp (program by slot:
    native, generic, hw), default_route (this host's way out goes over it).
    """
    with IPRoute() as route:
        ways = {
            way.get_attr("RTA_OIF")
            for way in route.get_default_routes(family=socket.AF_INET)
            + route.get_default_routes(family=socket.AF_INET6)
        }
        return {str(link.get_attr("IFLA_IFNAME")): _link(link, ways) for link in route.get_links()}


def _link(link: Any, ways: set[Any]) -> dict[str, Any]:
    info = link.get_attr("IFLA_LINKINFO")
    index = int(link["index"])
    return {
        "index": index,
        "up": bool(link["flags"] & 1),
        "loopback": bool(link["flags"] & 8),
        "carrier": bool(link.get_attr("IFLA_CARRIER")),
        "mtu": int(link.get_attr("IFLA_MTU") or 0),
        "rx": int(link.get_attr("IFLA_NUM_RX_QUEUES") or 1),
        "tx": int(link.get_attr("IFLA_NUM_TX_QUEUES") or 1),
        "kind": str((info and info.get_attr("IFLA_INFO_KIND")) or ""),
        "lower": link.get_attr("IFLA_LINK"),
        "lower_here": link.get_attr("IFLA_LINK_NETNSID") is None,
        "master": link.get_attr("IFLA_MASTER"),
        "xdp": _slots(link.get_attr("IFLA_XDP")),
        "default_route": index in ways,
    }


def _slots(xdp: Any) -> dict[str, int]:
    """Program ids by XDP slot. A kernel before 4.19 names one without its slot, by PROG_ID alone."""
    if not xdp:
        return {}
    words = {"native": "DRV_", "generic": "SKB_", "hw": "HW_"}
    found = {word: xdp.get_attr(f"IFLA_XDP_{part}PROG_ID") for word, part in words.items()}
    found = {word: number for word, number in found.items() if number}
    alone = xdp.get_attr("IFLA_XDP_PROG_ID")
    return found or ({"native": alone} if alone else {})


def capabilities(index: int) -> dict[str, Any] | None:
    """What the device says that it can: xdp, rx_metadata, xsk (sorted words), zc_max_segs."""
    from xdpstack import netdev

    try:
        found = netdev.capabilities(index)
    except SetupError:  # it went away while we looked
        return None
    words = {"xdp": found.xdp, "rx_metadata": found.rx_metadata, "xsk": found.xsk}
    listed = {key: None if has is None else sorted(has) for key, has in words.items()}
    return {**listed, "zc_max_segs": found.zc_max_segs}


def napis(index: int) -> list[dict[str, Any]] | None:
    """The NAPI instances of a device: id, irq, and their own deferral, polls and ns (``defer``, ``flush``).

    Linux 6.8 tells them, 6.13 their deferral; what it does not tell is None.
    """
    from xdpstack import netdev

    try:
        found = netdev.napis(index)
    except SetupError:
        return None
    if found is None:
        return None
    return [
        {"id": n.id, "irq": n.irq, "defer": n.defer_hard_irqs, "flush": n.gro_flush_timeout_ns} for n in found
    ]


# ---- ethtool -------------------------------------------------------------------------------------

# include/uapi/linux/ethtool.h
SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO, ETHTOOL_GCOALESCE, ETHTOOL_GCHANNELS, ETHTOOL_GET_TS_INFO = 0x03, 0x0E, 0x3C, 0x41
SOF_TX_HARDWARE, SOF_RX_HARDWARE, SOF_RAW_HARDWARE = 1 << 0, 1 << 2, 1 << 6


def _ethtool(interface: str, command: int, size: int) -> bytes | None:
    """One ETHTOOL ioctl: the struct that it fills, None when the driver has no answer."""
    buffer = ctypes.create_string_buffer(struct.pack("I", command), size)
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(buffer)).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
        except OSError:
            return None
    return buffer.raw


def driver(interface: str) -> dict[str, str] | None:
    """The ``driver``'s own name, its ``firmware`` and the ``bus`` address of the device."""
    info = _ethtool(interface, ETHTOOL_GDRVINFO, 196)
    if info is None:
        return None
    fields = {"driver": info[4:36], "firmware": info[68:100], "bus": info[100:132]}
    return {key: raw.split(b"\0")[0].decode(errors="replace") for key, raw in fields.items()}


def channels(interface: str) -> dict[str, int] | None:
    """Receive and transmit queues in use: ``rx``, ``tx``; the most there can be: ``rx_max``."""
    found = _ethtool(interface, ETHTOOL_GCHANNELS, 36)
    if found is None:
        return None
    _, rx_max, _, _, most, rx, tx, _, combined = struct.unpack("9I", found)
    return {"rx": rx + combined, "tx": tx + combined, "rx_max": rx_max + most}


def features(interface: str) -> dict[str, dict[str, bool]] | None:
    """Offloads by the name of ``ethtool -k``: whether each is ``on``, whether it can be ``changed``."""
    try:
        found = IoctlEthtool(interface).get_features()
        return {str(name): {"on": bool(on), "changed": bool(can)} for name, on, can, *_ in found}
    except Exception:  # pyroute2 raises many kinds; none of them is ours to explain
        return None


def coalescing(interface: str) -> dict[str, int] | None:
    """Interrupt moderation on receive: ``usecs``, ``frames``, ``adaptive`` (0 or 1)."""
    found = _ethtool(interface, ETHTOOL_GCOALESCE, 92)
    if found is None:
        return None
    words = struct.unpack("23I", found)
    return {"usecs": words[1], "frames": words[2], "adaptive": words[10]}


def stamping(interface: str) -> dict[str, Any] | None:
    """Hardware time stamps: ``hardware`` (the NIC stamps what it receives), ``phc`` (its clock, -1: none)."""
    found = _ethtool(interface, ETHTOOL_GET_TS_INFO, 44)
    if found is None:
        return None
    _, bits, phc = struct.unpack_from("IIi", found)
    needed = SOF_RX_HARDWARE | SOF_RAW_HARDWARE
    return {"hardware": bits & needed == needed, "phc": phc}


# ---- bpf -----------------------------------------------------------------------------------------

# include/uapi/linux/bpf.h
BPF_PROG_GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_QUERY = 13, 15, 16
_BPF_CALL = {"x86_64": 321, "aarch64": 280}
TCX = {"tcx ingress": 46, "tcx egress": 47}
CLSACT = {"tc ingress": 0xFFFFFFF2, "tc egress": 0xFFFFFFF3}


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2): its return value (-errno on failure) and the attributes, which some commands fill."""
    call = _BPF_CALL.get(platform.machine())
    if call is None:
        return -errno.ENOSYS, attributes
    buffer = ctypes.create_string_buffer(attributes, 128)
    code = _libc.syscall(call, command, buffer, 128)
    return (-ctypes.get_errno() if code < 0 else code), buffer.raw


def program(number: int) -> str:
    """The name of a loaded program; empty when we may not ask, or when it has none."""
    fd, _ = _bpf(BPF_PROG_GET_FD_BY_ID, struct.pack("III", number, 0, 0))
    if fd < 0:
        return ""
    try:
        info = ctypes.create_string_buffer(232)
        code, _ = _bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, 232, ctypes.addressof(info)))
        return "" if code < 0 else info.raw[64:80].split(b"\0")[0].decode(errors="replace")
    finally:
        os.close(fd)


def chained(interface: str) -> list[dict[str, Any]]:
    """The programs in libxdp's dispatcher on an interface: ``id``, ``name``, ``priority``, ``ours``."""
    from xdpstack import dispatcher

    try:
        found = dispatcher.chained(interface)
    except SetupError:
        return []
    return [{"id": p.prog_id, "name": p.name, "priority": p.priority, "ours": p.ours} for p in found]


def left_by(interface: str) -> int:
    """The dead process that left a filter in the dispatcher; 0: there is none."""
    from xdpstack import pins

    try:
        owner = pins.owner(interface)
    except SetupError:
        return 0
    return owner.pid if owner is not None and not owner.is_alive else 0


def dispatcher_trial() -> str | None:
    """Why libxdp's dispatcher cannot be used here; empty when it can, None where only root could try. Loads
    programs for a moment, on no interface."""
    from xdpstack import dispatcher

    if os.geteuid() != 0:
        return None
    told = dispatcher.trial()
    return told.reason if told is not None else ""


def tc_programs(interface: str) -> list[dict[str, Any]]:
    """BPF programs that see the packets of an interface outside of XDP: ``hook``, ``id``, ``name``."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return []
    return _classic(index) + _tcx(index)


def _classic(index: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with IPRoute() as route:
        for hook, parent in CLSACT.items():
            try:
                filters = list(route.get_filters(index=index, parent=parent))
            except NetlinkError:  # no such discipline on it
                continue
            for one in filters:
                options = one.get_attr("TCA_OPTIONS") if one.get_attr("TCA_KIND") == "bpf" else None
                number = options.get_attr("TCA_BPF_ID") if options else None
                if options:
                    name = str(options.get_attr("TCA_BPF_NAME") or "")
                    found.append({"hook": hook, "id": number, "name": name})
    return found


def _tcx(index: int) -> list[dict[str, Any]]:
    """Linux 6.6 has it, and tells by BPF_PROG_QUERY; at most 64 programs on a hook."""
    found = []
    for hook, kind in TCX.items():
        ids = (ctypes.c_uint32 * 64)()
        query = struct.pack("IIIIQI", index, kind, 0, 0, ctypes.addressof(ids), 64)
        code, answer = _bpf(BPF_PROG_QUERY, query)
        if code >= 0:
            count = struct.unpack_from("I", answer, 24)[0]
            found += [{"hook": hook, "id": n, "name": program(n)} for n in list(ids)[:count]]
    return found


# ---- a trial -------------------------------------------------------------------------------------


def trial(interface: str) -> dict[str, Any]:
    """Open an AF_XDP socket on queue 0 for a moment: ``granted`` zerocopy or copy, else ``error``.

    The kernel refuses a queue that another socket holds (``errno`` EBUSY). No program is attached, so
    nobody's packets come this way; a driver may still re-arrange the queue for zero-copy.
    """
    from xdpstack.port.xsk import XskPort

    try:
        with XskPort(
            interface, 0, rx_ring=64, rx_frames=64, tx_ring=64, tx_frames=64, huge_pages=False, bind_wait_ms=0
        ) as port:
            return {"granted": port.granted, "error": "", "errno": 0}
    except (SetupError, ConfigError) as error:
        return {"granted": "", "error": str(error), "errno": getattr(error, "errno", 0) or 0}


# ---- /sys of another namespace -------------------------------------------------------------------

FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432  # one number on every architecture; Linux 5.2
FSOPEN_CLOEXEC, FSCONFIG_CMD_CREATE, FSMOUNT_CLOEXEC = 1, 6, 1


@contextlib.contextmanager
def sysfs() -> Iterator[Path | None]:
    """A view of /sys for the calling thread's network namespace, mounted nowhere. None: not allowed."""
    context = _libc.syscall(FSOPEN, b"sysfs", FSOPEN_CLOEXEC)
    if context < 0:
        yield None
        return
    view = -1
    try:
        if _libc.syscall(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0) >= 0:
            view = _libc.syscall(FSMOUNT, context, FSMOUNT_CLOEXEC, 0)
        yield None if view < 0 else Path(f"/proc/self/fd/{view}")
    finally:
        os.close(context)
        if view >= 0:
            os.close(view)
