"""libxdp's dispatcher: who is in it, whether this kernel takes it, and whose the filter in it is.

The dispatcher is one XDP program that calls up to ten others in the order of their priorities. libxdp pins
it, so a filter in it does not end with the process that put it there: the folder of its pins then holds a
symbolic link that names the process. Where that process is dead, whoever comes next takes the filter out.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from xdpstack._ffi import check, ffi, lib
from xdpstack.attached import ifindex_of, refused
from xdpstack.errors import SetupError
from xdpstack.stats import process_start

__all__ = [
    "OBJECT",
    "PRIORITY",
    "Chained",
    "Owner",
    "cannot",
    "chained",
    "clean_up",
    "evict",
    "own",
    "owner_of",
    "pinned_dispatchers",
    "release",
    "trial",
]

log = logging.getLogger("xdpstack.bpf")

OBJECT = Path(__file__).parent / "_bpf" / "xds_rx.bpf.o"
LIBXDP = Path("/sys/fs/bpf/xdp")
"""Where libxdp pins what is in its dispatchers, by interface and dispatcher."""
PRIORITY = 60
"""Of our filter, where none is given: behind libxdp's default of 50, so that others see every frame."""
ACTIONS = ("aborted", "drop", "pass", "tx", "redirect")


@dataclass(frozen=True, slots=True)
class Chained:
    """A program of the dispatcher on an interface."""

    prog_id: int
    name: str
    priority: int  # lower ones run first
    goes_on: tuple[str, ...]  # after these verdicts the next program runs
    ours: bool

    def __str__(self) -> str:
        return f"program {self.prog_id} ({self.name or 'unnamed'}, priority {self.priority})"


def chained(ifname: str) -> list[Chained]:
    """The programs of the dispatcher on ``ifname``, in their order; none where there is no dispatcher, or one
    that libxdp cannot read. Raises SetupError for an unknown interface."""
    out = ffi.new("struct xds_chained[]", lib.XDS_CHAIN_MAX)
    count = lib.xds_chain_list(ifindex_of(ifname), out, lib.XDS_CHAIN_MAX)
    if count < 0:
        raise refused(f"{ifname}: ask for the programs of its dispatcher", count)
    return [
        Chained(
            one.prog_id,
            ffi.string(one.name).decode(),
            one.priority,
            tuple(word for action, word in enumerate(ACTIONS) if one.goes_on >> action & 1),
            bool(one.ours),
        )
        for one in out[0:count]
    ]


def trial() -> SetupError | None:
    """Whether libxdp's dispatcher can be used here, by trial: our program is put into one that is on no
    interface, and nothing of it stays. None: it can; else why not."""
    out = ffi.new("struct xds_filter **")
    code = lib.xds_filter_load(bytes(OBJECT), lib.XDS_FILTER_SHARED, 0, 0, 1, 0, out)
    if code < 0:
        return cannot(code)
    lib.xds_filter_close(out[0])
    return None


def cannot(code: int) -> SetupError:
    """Why a filter was not taken into a dispatcher: by the code of the load, which tried it."""
    if os.geteuid() != 0 and code in (-errno.EPERM, -errno.EACCES):
        return refused("load the XDP program", code)
    told = refused("", code)
    remedy = "without --dispatcher the filter has a link of its own"
    return SetupError("use libxdp's dispatcher", f"the kernel refuses it: {told.reason}", remedy, told.errno)


def pinned_dispatchers() -> set[int]:
    """The program numbers of the dispatchers of this host that libxdp has pins of."""
    return {int(path.name.rpartition("-")[2]) for path in LIBXDP.glob("dispatch-*-*")}


def evict(ifname: str) -> int:
    """Take filters of ours out of the dispatcher on ``ifname``; others stay. Returns how many."""
    count: int = lib.xds_chain_evict(ifindex_of(ifname))
    if count < 0:
        raise refused(f"{ifname}: take the filter out of the dispatcher", count)
    return count


# ---- Whose it is ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """The process with which a filter ends. ``started``: in clock ticks since boot."""

    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        """It still runs."""
        return process_start(self.pid) == self.started

    @property
    def is_us(self) -> bool:
        """It is this process."""
        return self == Owner.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Owner:
        """A process that runs."""
        return cls(pid, process_start(pid) or 0)


def own(directory: Path, pid: int) -> None:
    """Let the filter whose pins are in ``directory`` end with process ``pid``; the folder is made."""
    directory.mkdir(mode=0o700, exist_ok=True)
    owner, new = Owner.of(pid), directory / "owner-new"
    new.unlink(missing_ok=True)
    new.symlink_to(f"{owner.pid}-{owner.started}")
    os.replace(new, directory / "owner")


def owner_of(directory: Path) -> Owner | None:
    """With whom it ends; None: it is there to stay, or there is none."""
    with contextlib.suppress(OSError, ValueError):
        pid, _, started = os.readlink(directory / "owner").partition("-")
        return Owner(int(pid), int(started))
    return None


def release(directory: Path) -> None:
    """Let it stay after its process."""
    (directory / "owner").unlink(missing_ok=True)


def clean_up(ifname: str, directory: Path) -> bool:
    """Take out a filter whose process is dead, and its pins. False: there is none. Raises SetupError."""
    owner = owner_of(directory)
    if owner is None or owner.is_alive:
        return False
    evict(ifname)
    check(lib.xds_filter_unpin(bytes(directory)), f"remove {directory}")
    log.warning("%s: took the filter of dead process %d out of the dispatcher", ifname, owner.pid)
    return True
