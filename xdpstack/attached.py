"""What is on an interface's XDP hook, whoever put it there, and who that may be."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from xdpstack._ffi import ffi, lib
from xdpstack.errors import SetupError

__all__ = ["MODE_NAMES", "Attached", "all_attached", "attached", "holders", "ifindex_of", "refused"]

MODE_NAMES = {
    lib.XDS_ATTACH_NONE: "none",
    lib.XDS_ATTACH_NATIVE: "native",
    lib.XDS_ATTACH_GENERIC: "generic",
    lib.XDS_ATTACH_OFFLOAD: "offload",
}


@dataclass(frozen=True, slots=True)
class Attached:
    """The program on an interface's XDP hook, whoever attached it."""

    prog_id: int
    link_id: int  # 0: attached over netlink, without a link
    mode: str  # native, generic or offload
    name: str
    uid: int = 0  # of who loaded it
    loaded_ns: int = 0  # CLOCK_BOOTTIME; 0: not known

    def __str__(self) -> str:
        return f"program {self.prog_id} ({self.name or 'unnamed'}, {self.mode} mode, {self.origin()})"

    def origin(self) -> str:
        """Who put it there, as far as the host can tell: by a link or over netlink, held by whom."""
        how = f"by link {self.link_id}" if self.link_id else "attached over netlink"
        held = [f"process {pid} ({word})" for pid, word in holders(self.prog_id)]
        if held:
            how += " of " if self.link_id else ", held by "
            how += ", ".join(held[:3])
        if self.name == "xdp_dispatcher":
            how += ", libxdp's dispatcher"
        if self.loaded_ns:
            ago = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.loaded_ns) / 1e9
            how += f", loaded {_ago(ago)} ago by {_user(self.uid)}"
        return how


def holders(prog_id: int) -> list[tuple[int, str]]:
    """The processes that hold a program, or its link, by a descriptor: (pid, what it is called)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fdinfo"):
        with contextlib.suppress(OSError):
            mark = f"prog_id:\t{prog_id}\n"
            if any(mark in file.read_text() for file in path.iterdir()):
                found.append((int(path.parent.name), (path.parent / "comm").read_text().strip()))
    return sorted(found)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ifindex_of(ifname: str) -> int:
    """Its number in this thread's network namespace. Raises SetupError."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        raise SetupError(
            f"{ifname}: no such interface in this network namespace", errno=errno.ENODEV
        ) from None


def refused(tried: str, code: int, remedy: str = "") -> SetupError:
    """What the kernel, and libbpf on the way there, said to a call of ``lib``."""
    words = ffi.string(lib.xds_filter_message()).decode(errors="replace")
    reason = os.strerror(-code) + (f" ({words})" if words else "")
    if -code in (errno.EPERM, errno.EACCES):
        remedy = remedy or "run it as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    return SetupError(tried, reason, remedy, errno=-code)


def attached(ifname: str) -> Attached | None:
    """What is attached to ``ifname``, None when nothing is; of several the one that the host's own frames
    meet (:func:`all_attached` has them all). Raises SetupError for an unknown interface."""
    there = all_attached(ifname)
    return there[0] if there else None


def all_attached(ifname: str) -> list[Attached]:
    """Every program on ``ifname``: native or generic, and offload. Raises SetupError."""
    out = ffi.new("struct xds_attached[]", lib.XDS_ATTACHED_MAX)
    count = lib.xds_attached_list(ifindex_of(ifname), out, lib.XDS_ATTACHED_MAX)
    if count < 0:
        raise refused(f"{ifname}: ask for its XDP program", count)
    return [
        Attached(
            one.prog_id,
            one.link_id,
            MODE_NAMES[one.mode],
            ffi.string(one.name).decode(),
            one.uid,
            one.loaded_ns,
        )
        for one in out[0:count]
    ]
