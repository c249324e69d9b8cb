"""The XDP filter on an interface: load it, change its rules while traffic flows, give it sockets.

What is here is its life on a host: how it comes onto an interface, alone or beside others, stays there,
follows it and leaves. What it decides is :class:`xdpstack.loaded.Loaded`'s.

    with Filter.load("eth0", rules=["udp dst 233.54.12.111:26477 -> trader"]) as steering:
        steering.set_socket("trader", queue=0, fd=socket_fd)

Unless ``pin=True``, the filter lives as long as the object (or the process, however that ends). Pins lie
in bpffs (:mod:`xdpstack.pins`).

With ``dispatcher=True`` it stands with other programs in libxdp's dispatcher (:mod:`xdpstack.dispatcher`):
its frames bear no stamps, and it is pinned in any case; a process that is killed leaves it there, without
its sockets, until the next load or unload.

``ip netns exec`` hides bpffs (it mounts a new /sys): enter namespaces with setns.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

from xdpstack import _ffi
from xdpstack._ffi import ffi, lib
from xdpstack.asks import METADATA, asked
from xdpstack.attached import MODE_NAMES, Attached, all_attached, attached, ifindex_of, refused
from xdpstack.dispatcher import (
    OBJECT,
    PRIORITY,
    chained,
    clean_up,
    evict,
    own,
    owner_of,
    pinned_dispatchers,
    release,
)
from xdpstack.errors import ConfigError, SetupError
from xdpstack.links import CARRIER_SECONDS, has_carrier, wait_for_carrier
from xdpstack.loaded import Count, Counters, Loaded
from xdpstack.nic import ethtool, quirks_of
from xdpstack.nic.surface import Host
from xdpstack.pins import BPFFS, forget, netns_cookie, owner, pin_dir, pinned, prepare_bpffs
from xdpstack.rulestate import RuleLike, RuleState, as_rules

__all__ = [
    "METADATA",
    "Attached",
    "Count",
    "Counters",
    "Filter",
    "all_attached",
    "attached",
    "detach_any",
    "netns_cookie",
    "ours",
    "owner",
    "pinned",
]

log = logging.getLogger("xdpstack.bpf")

MODES = {"auto": lib.XDS_ATTACH_AUTO, "native": lib.XDS_ATTACH_NATIVE, "generic": lib.XDS_ATTACH_GENERIC}
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x1


# ---- The host -----------------------------------------------------------------------------------


def _flags(ifname: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH22x", ifname.encode(), 0))
    return int(struct.unpack_from("16xH", answer)[0])


def warn_of_reset(ifname: str) -> None:
    """Some drivers take a live link down when a program is attached: say so before."""
    with contextlib.suppress(OSError):
        driver = ethtool.driver(Host(), ifname)
        quirks = quirks_of(driver)
        if quirks is not None and quirks.resets and driver != "veth":  # nothing of a veth's goes down
            log.warning("%s: attaching may interrupt a live link: with %s, %s", ifname, driver, quirks.resets)


def ours(ifname: str) -> bool:
    """Whether what is attached to ``ifname``, or in the dispatcher there, is the filter that
    :meth:`Filter.load` pinned."""
    there = {one.prog_id for one in all_attached(ifname)} | {one.prog_id for one in chained(ifname)}
    if not there or ifname not in pinned():
        return False
    with Filter.open_pinned(ifname) as steering:
        return steering.info()["prog_id"] in there


def detach_any(ifname: str) -> None:
    """Detach whatever is on ``ifname``, whoever attached it, and remove pins of ours."""
    ifindex = ifindex_of(ifname)
    code = (lib.xds_chain_remove if chained(ifname) else lib.xds_attached_remove)(ifindex)
    if code < 0:
        raise refused(f"{ifname}: detach its XDP program", code)
    lib.xds_filter_unpin(bytes(pin_dir(ifindex)))


# ---- The filter ---------------------------------------------------------------------------------


class Filter(Loaded):
    """The steering filter of one interface. Make it with :meth:`load`, :meth:`open_pinned` or :meth:`dry`."""

    def __init__(self, handle: Any, ifname: str, mode: str = "none", pin_dir: Path | None = None) -> None:
        super().__init__(handle, ifname, mode, pin_dir)
        self._asked = mode if mode in MODES else "auto"
        self.replaced: list[str] = []
        """What ``force`` took off the interface, one sentence each."""
        self.row = 0
        """Bytes of a frame in each chunk of ports whose chunks may lie in a row; 0: none may."""
        self._owned = False  # in a dispatcher, and it ends with this process
        self._priority = PRIORITY
        self._emptied: set[int] = set()  # dispatchers out of reach that held nobody but it

    # -- life --

    @classmethod
    def load(
        cls,
        ifname: str,
        mode: str = "auto",
        rules: str | Sequence[RuleLike] = (),
        *,
        pin: bool = False,
        force: bool = False,
        device_bound: bool = False,
        metadata: Collection[str] = (),
        stamp: bool = True,
        carrier_wait: float = CARRIER_SECONDS,
        dispatcher: bool = False,
        priority: int = PRIORITY,
        row: int = 0,
    ) -> Filter:
        """Load the program, put ``rules`` in force, attach it to ``ifname``.

        ``mode``: native, generic, or auto (native, else generic; ``.mode`` says which was granted).
        ``pin`` leaves it there after the process, until :meth:`unload`. ``force`` replaces what somebody
        else attached (``.replaced`` says what). A link that had carrier is waited for, ``carrier_wait``
        seconds at most, 0: not at all. ``device_bound`` asks the driver for time stamps where it has them;
        ``metadata`` for each of ``METADATA`` that it names, and refuses where the driver has one not
        (``port.Frame.hints`` shows hash and VLAN tag). ``stamp=False`` writes none. ``dispatcher``: with
        others, in libxdp's, where it runs in the order of ``priority`` (lower ones first) and in the mode
        that is there. ``row``: see ``row_of`` of ``xdpstack.port``. Raises ConfigError for
        rules, SetupError for the host.
        """
        if mode not in MODES:
            raise ConfigError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if dispatcher and (device_bound or metadata):
            raise ConfigError("a program that is bound to a device cannot be in a dispatcher")
        if not 0 <= priority < 1 << 31:
            raise ConfigError(f"priority {priority} is not in 0..{(1 << 31) - 1}")
        parsed, ifindex = as_rules(rules), ifindex_of(ifname)
        if not _flags(ifname) & _IFF_UP:
            raise SetupError(f"{ifname} is down", remedy=f"ip link set {ifname} up", errno=errno.ENETDOWN)
        ask = asked(ifname, ifindex, mode, stamp, metadata) or (METADATA["timestamp"] if device_bound else 0)
        running = has_carrier(ifname)
        directory = pin_dir(ifindex)
        clean_up(ifname, directory)
        if not force:
            cls._refuse_others(ifname, directory, dispatcher)
        if running:
            warn_of_reset(ifname)
        kind = lib.XDS_FILTER_GENERIC if mode == "generic" and not ask else lib.XDS_FILTER_OWN
        kind = lib.XDS_FILTER_SHARED if dispatcher else kind
        row = 0 if dispatcher else row
        steering = cls._load(ifname, ifindex, stamp, ask, kind, row)
        steering.row = row
        try:
            steering._swap(RuleState().with_rules(parsed))
            steering._asked, steering._priority = mode, priority
            steering.replaced = cls._make_room(ifname, ifindex, directory, dispatcher)
            if dispatcher:
                steering._join(ifindex, directory, stay=pin)
            else:
                steering._attach(ifindex, "native" if ask else mode)
                if pin:
                    steering._pin(directory)
            if running and carrier_wait:
                wait_for_carrier(ifname, carrier_wait)
        except BaseException:
            steering.close()
            raise
        return steering

    @classmethod
    def open_pinned(cls, ifname: str) -> Filter:
        """Take up the filter that ``load(..., pin=True)`` left. Raises SetupError when there is none."""
        ifindex = ifindex_of(ifname)
        directory = pin_dir(ifindex)
        out = ffi.new("struct xds_filter **")
        code = lib.xds_filter_reopen(bytes(directory), out)
        if code == -errno.ENOENT:
            raise SetupError(
                f"{ifname}: no filter is loaded", remedy=f"xdpstack load {ifname}", errno=errno.ENOENT
            )
        if code < 0:
            raise refused(f"open the pinned filter in {directory}", code)
        there = attached(ifname)
        opened = cls(out[0], ifname, there.mode if there else "none", directory)
        if ends_with := owner_of(directory):
            opened.close()
            raise SetupError(
                f"{ifname}: the filter there ends with process {ends_with.pid}", errno=errno.ENOENT
            )
        return opened._learned()

    # -- from process to process --

    def fds(self) -> list[int]:
        """Descriptors of link, program and maps, still its own: for another process, see :meth:`adopt`."""
        out = ffi.new("int32_t[]", lib.XDS_FILTER_FDS)
        lib.xds_filter_fds(self._alive(), out)
        return [int(fd) for fd in out]

    @classmethod
    def adopt(cls, ifname: str, fds: Sequence[int], mode: str, pin_dir: Path | None = None) -> Filter:
        """The filter whose :meth:`fds` came from another process; the descriptors are given."""
        out = ffi.new("struct xds_filter **")
        code = lib.xds_filter_adopt(list(fds), bytes(pin_dir) if pin_dir else b"", out)
        _ffi.check(code, f"{ifname}: take the filter over")
        return cls(out[0], ifname, mode, pin_dir)._learned()

    def _learned(self) -> Self:
        """What its pins say of a filter in a dispatcher."""
        if self._pin_dir is not None and self.info()["shared"]:
            self._owned = owner_of(self._pin_dir) is not None
            with contextlib.suppress(SetupError):
                self._priority = next((one.priority for one in chained(self.ifname) if one.ours), PRIORITY)
        return self

    def hand_to(self, pid: int) -> None:
        """It has been given to process ``pid``, and ends with that one from now on."""
        if self._owned and self._pin_dir is not None:
            own(self._pin_dir, pid)

    @property
    def pin_dir(self) -> Path | None:
        """Where its pins lie; None: it has none."""
        return self._pin_dir

    @classmethod
    def _refuse_others(cls, ifname: str, directory: Path, shared: bool) -> None:
        """Nothing may be on the hook, in any mode, but a dispatcher that is to be joined."""
        ends_with = owner_of(directory)
        if ends_with is not None and not ends_with.is_us:
            what = f"the filter in its dispatcher ends with process {ends_with.pid}"
            raise SetupError(
                ifname, what, f"end that, or xdpstack unload {ifname} --force", errno=errno.EBUSY
            )
        there = all_attached(ifname)
        if there and not (shared and cls._can_join(ifname, there)):
            raise cls._taken(ifname, there)

    @staticmethod
    def _can_join(ifname: str, there: list[Attached]) -> bool:
        members = chained(ifname)
        return len(there) == 1 and bool(members) and not any(one.ours for one in members)

    @classmethod
    def _make_room(cls, ifname: str, ifindex: int, directory: Path, shared: bool) -> list[str]:
        """Take off what is there still, by ``force``; returns what that was. Others in a dispatcher that is
        to be joined stay."""
        there, members = all_attached(ifname), chained(ifname)
        stays = shared and len(there) == 1 and members
        replaced = [str(one) for one in members if one.ours] if stays else [str(one) for one in there]
        for one in replaced:
            log.warning("%s: replacing %s", ifname, one)
        if stays:
            evict(ifname)
        elif there:
            code = (lib.xds_chain_remove if members else lib.xds_attached_remove)(ifindex)
            if code < 0:
                raise refused(f"{ifname}: detach {replaced[0]}", code)
        if directory.exists():  # of a filter that is on the hook no more
            lib.xds_filter_unpin(bytes(directory))
        return replaced

    @staticmethod
    def _taken(ifname: str, there: list[Attached]) -> SetupError:
        words = " and ".join(map(str, there))
        what = f"{words} {'is' if len(there) == 1 else 'are'} attached already"
        if there[0].name == "xdp_dispatcher" and not chained(ifname):
            what += (
                ", and libxdp cannot read it (it came along from another namespace, or is another libxdp's)"
            )
        remedy = f"xdpstack load {ifname} --force replaces it"
        if ours(ifname):
            remedy = f"xdpstack unload {ifname}"
        elif Filter._can_join(ifname, there):
            joins = f"xdpstack load {ifname} --dispatcher joins it (in TOML: dispatcher = true)"
            remedy = f"{joins}, --force replaces it"
        return SetupError(ifname, what, remedy, errno=errno.EBUSY)

    def _attach(self, ifindex: int, mode: str) -> None:
        code = lib.xds_filter_attach(self._alive(), ifindex, MODES[mode])
        if code < 0:
            raise self._attach_error(code, self._asked)
        self.mode = MODE_NAMES[code]
        self._warn_of_generic()

    def _warn_of_generic(self) -> None:
        if self._asked == "auto" and self.mode == "generic":
            log.warning("%s: its driver refused native XDP, attached in generic mode", self.ifname)

    def _join(self, ifindex: int, directory: Path, *, stay: bool) -> None:
        """Into the dispatcher. From the first step on the pins name this process, so that whoever comes after
        a kill finds what is left; at the end, where it is to ``stay``, they name nobody."""
        mounted = prepare_bpffs()
        own(directory, os.getpid())
        try:
            asked = MODES[self._asked]
            code = lib.xds_filter_join(self._alive(), bytes(OBJECT), ifindex, asked, self._priority)
            if code < 0:
                raise self._join_error(code)
            self.mode = MODE_NAMES[code]
            code = lib.xds_filter_pin(self._alive(), bytes(directory))
            if code < 0:
                raise refused(f"pin the filter in {directory}", code)
        except BaseException:
            lib.xds_filter_detach(self._alive())
            forget(directory)
            if mounted:
                lib.xds_bpffs_forget(bytes(BPFFS))
            raise
        self._pin_dir, self._owned = directory, not stay
        if stay:
            release(directory)
        self._warn_of_generic()

    def _join_error(self, code: int) -> SetupError:
        if code == -errno.EADDRINUSE:
            there = attached(self.ifname)
            what = f"its dispatcher is in {there.mode if there else 'another'} mode, not in {self._asked}"
            return SetupError(self.ifname, what, "leave --mode out", errno=errno.EBUSY)
        if code == -errno.E2BIG:
            what = f"all {lib.XDS_CHAIN_MAX} places of its dispatcher are taken"
            return SetupError(self.ifname, what, errno=errno.EBUSY)
        told = refused("", code).reason  # before anything else is asked of libxdp
        if code == -errno.EBUSY and chained(self.ifname):  # of an older libxdp, which ours adds nothing to
            what = f"libxdp does not add to the dispatcher that is there ({told})"
            remedy = (
                f"xdpstack unload {self.ifname} --force takes all of it off; then load each program again"
            )
            return SetupError(self.ifname, what, remedy, errno=errno.EBUSY)
        return self._attach_error(code, self._asked)

    def _attach_error(self, code: int, mode: str) -> SetupError:
        if code == -errno.EBUSY and (there := all_attached(self.ifname)):
            return self._taken(self.ifname, there)
        remedy = "--mode generic works with every driver" if mode == "native" else ""
        if self.info()["device_bound"]:
            remedy = "it asks the driver of the device that it was loaded for, and of no other: load it again"
        return refused(f"{self.ifname}: attach the filter in {mode} mode", code, remedy)

    @property
    def is_pinned(self) -> bool:
        """Whether it stays after this object."""
        return self._pin_dir is not None and not self._owned

    @property
    def pin_is_there(self) -> bool:
        """Its pins are where they were made: nobody unloaded it."""
        return self._pin_dir is not None and os.path.exists(self._pin_dir / "xds_link")

    @property
    def is_in_place(self) -> bool:
        """It is attached to the interface of its name and pinned under its number. Raises SetupError where
        there is none of that name."""
        ifindex = ifindex_of(self.ifname)
        there = self.pin_is_there and self._pin_dir == pin_dir(ifindex)
        return there and self.info()["ifindex"] == ifindex

    def close(self) -> None:
        """Let go of it. An unpinned filter is detached; a pinned one stays. Calm when repeated."""
        if self._handle is not None and self._owned and self._pin_dir is not None:
            self._owned = False
            self._leave(self._pin_dir)
        super().close()

    def _leave(self, directory: Path) -> None:
        """Out of the dispatcher, unless another process has it now, or somebody took it out by force."""
        ends_with = owner_of(directory)
        if ends_with is None or (ends_with.is_alive and not ends_with.is_us):
            return
        code = lib.xds_filter_detach(self._alive())
        if code < 0:
            log.warning("%s", refused(f"{self.ifname}: take the filter out of the dispatcher", code))
        forget(directory)

    def let_go(self) -> None:
        """The interface is in another namespace: leave it there as it was found. A pinned filter stays."""
        if not self.is_pinned:
            self._detach()
            self.mode = "none"
            if self._pin_dir is not None:
                forget(self._pin_dir)
                self._pin_dir = None

    def reattach(self, ifname: str) -> bool:
        """The interface came back, or was made anew, as ``ifname``: attach the same program to it, with its
        rules and counters. False: it is still attached there, nothing is done. Raises SetupError."""
        ifindex, self.ifname = ifindex_of(ifname), ifname
        before, there = self._pin_dir, pin_dir(ifindex)
        if self.info()["ifindex"] == ifindex:  # in another namespace it may have got another number
            self._pin_again(before, there)
            return False
        stay, shared = self.is_pinned, bool(self.info()["shared"])
        kept = (
            stay and not shared and before != there
        )  # until it is pinned there: its pins lead to the tables
        if before is not None and not kept:
            lib.xds_filter_unpin(bytes(before))
            self._pin_dir = None
        self._detach()
        self._clear_emptied(ifname, ifindex)
        clean_up(ifname, there)
        self._refuse_others(ifname, there, shared)
        self._make_room(ifname, ifindex, there, shared)
        if shared:
            self._join(ifindex, there, stay=stay)
        else:
            self._attach(ifindex, self._asked)
            if kept:
                self._pin_again(before, there)
            elif stay:
                self._pin(there)
        return True

    def _detach(self) -> None:
        before = pinned_dispatchers()
        code = lib.xds_filter_detach(self._alive())
        if code < 0 and code != -errno.ENOLINK:
            raise refused(f"{self.ifname}: detach the filter", code)
        self._emptied |= before - pinned_dispatchers()

    def _clear_emptied(self, ifname: str, ifindex: int) -> None:
        """A dispatcher of ours that went with its interface to another namespace, and came back with it,
        without a program in it. libxdp knows it no more."""
        there = all_attached(ifname)
        if len(there) == 1 and there[0].prog_id in self._emptied and not chained(ifname):
            code = lib.xds_attached_remove(ifindex)
            if code < 0:
                raise refused(f"{ifname}: detach its empty dispatcher", code)

    def _pin_again(self, before: Path | None, there: Path) -> None:
        """Pin what is pinned elsewhere, before the old pins go: they lead to the tables."""
        if before is not None and before != there:
            self._pin(there)
            lib.xds_filter_unpin(bytes(before))

    def follow(self, ifname: str, pin_dir: Path | None) -> None:
        """Another process, which has this filter too, attached it again: to ``ifname``, pinned there."""
        self.ifname, self._pin_dir = ifname, pin_dir

    def _pin(self, directory: Path) -> None:
        if self._pin_dir is None:  # else bpffs is there, and the pins before are needed still
            prepare_bpffs()
        code = lib.xds_filter_pin(self._alive(), bytes(directory))
        if code < 0:
            raise refused(f"pin the filter in {directory}", code)
        self._pin_dir = directory

    def unload(self) -> None:
        """Detach, pinned or not, and remove the pins."""
        code = lib.xds_filter_detach(self._alive())
        if code < 0 and code != -errno.ENOLINK:
            raise refused(f"{self.ifname}: detach the filter", code)
        if self._pin_dir is not None:
            _ffi.check(forget(self._pin_dir), f"remove {self._pin_dir}")
            self._pin_dir = None
        self.mode = "none"
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        if self._handle is None:
            return f"<Filter {self.ifname or 'dry'}: closed>"
        pin = ", pinned" if self.is_pinned else ""
        return f"<Filter {self.ifname or 'dry'}: {self.mode}, {len(self.rules)} rules{pin}>"
