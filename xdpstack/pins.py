"""Pins: where the filters of this host's interfaces lie in bpffs, and whose they are.

/sys/fs/bpf/xdpstack/<cookie of the network namespace>-<ifindex>/, because two namespaces may give one number
to different interfaces. What is in it is ``cffi_build/ports/filter.c``'s, but for ``owner``, see
:mod:`xdpstack.dispatcher`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from xdpstack import _ffi
from xdpstack._ffi import ffi, lib
from xdpstack.attached import holders, ifindex_of, refused
from xdpstack.dispatcher import Owner, clean_up, owner_of

__all__ = [
    "BPFFS",
    "clean_up_dead",
    "discard",
    "forget",
    "netns_cookie",
    "owner",
    "pin_dir",
    "pinned",
    "prepare_bpffs",
]

log = logging.getLogger("xdpstack.bpf")

BPFFS = Path("/sys/fs/bpf")


def netns_cookie() -> int:
    """The cookie of this thread's network namespace: never used twice between two boots."""
    out = ffi.new("uint64_t *")
    _ffi.check(lib.xds_netns_cookie(out), "cookie of the network namespace")
    return int(out[0])


def pin_dir(ifindex: int) -> Path:
    """The folder of an interface of this thread's network namespace, whether or not it is there."""
    return BPFFS / "xdpstack" / f"{netns_cookie()}-{ifindex}"


def prepare_bpffs() -> bool:
    """A bpffs with our folder in it. True: it was mounted for that."""
    code: int = lib.xds_bpffs_prepare(bytes(BPFFS))
    if code < 0:
        raise refused(f"mount bpffs on {BPFFS}", code, "mount -t bpf bpf /sys/fs/bpf")
    if code == 1:
        log.warning("mounted bpffs on %s", BPFFS)
        with contextlib.suppress(OSError):
            if os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt"):
                log.warning("this is a private mount namespace: pins vanish with it")
    (BPFFS / "xdpstack").mkdir(mode=0o700, exist_ok=True)
    _sweep()
    return code == 1


def _sweep() -> None:
    """Remove the pins of filters whose interface is gone (a namespace that ended takes its devices along)
    and that no process holds, who may bring them back; and what a process left that was killed before it
    had a filter."""
    for path in (BPFFS / "xdpstack").iterdir():
        out, info = ffi.new("struct xds_filter **"), ffi.new("struct xds_filter_info *")
        if lib.xds_filter_reopen(bytes(path), out) < 0:
            ends_with = owner_of(path)
            gone = ends_with is not None and not ends_with.is_alive
        else:
            gone = lib.xds_filter_info(out[0], info) == 0 and info.ifindex == 0
            lib.xds_filter_close(out[0])
            gone = gone and not holders(info.prog_id)
        if gone:
            discard(path)


def discard(directory: Path) -> None:
    """Remove the pins of a filter whose interface is gone, or about to go: ours, and libxdp's of it."""
    out, info = ffi.new("struct xds_filter **"), ffi.new("struct xds_filter_info *")
    if lib.xds_filter_reopen(bytes(directory), out) == 0:
        if lib.xds_filter_info(out[0], info) == 0 and info.shared:
            lib.xds_filter_detach(out[0])
        lib.xds_filter_close(out[0])
    lib.xds_filter_unpin(bytes(directory))


def _folders() -> Iterator[tuple[str, Path]]:
    """The interfaces of this network namespace that have pins of ours."""
    prefix = f"{netns_cookie()}-"
    with contextlib.suppress(OSError):
        for path in sorted((BPFFS / "xdpstack").iterdir()):
            if path.name.startswith(prefix):
                with contextlib.suppress(OSError):
                    yield socket.if_indextoname(int(path.name[len(prefix) :])), path


def pinned() -> list[str]:
    """Interfaces of this network namespace with a filter that is there to stay."""
    return [name for name, path in _folders() if owner_of(path) is None]


def owner(ifname: str) -> Owner | None:
    """The process with which the filter in the dispatcher on ``ifname`` ends; None: there is none of such."""
    return owner_of(pin_dir(ifindex_of(ifname)))


def clean_up_dead(ifname: str | None = None) -> list[str]:
    """Take filters out of dispatchers whose process was killed: of ``ifname``, or of every interface here.
    Returns the interfaces. Raises SetupError."""
    return [name for name, path in list(_folders()) if ifname in (None, name) and clean_up(name, path)]


def forget(directory: Path) -> int:
    """Remove pins, and our folder where they were the last ones. The code of the first."""
    code: int = lib.xds_filter_unpin(bytes(directory))
    with contextlib.suppress(OSError):  # others' pins are in it
        directory.parent.rmdir()
    return code
