"""The XDP filter on an interface: load it, change its rules while traffic flows, give it sockets.

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
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from xdpstack import _ffi
from xdpstack._ffi import ffi, lib
from xdpstack.attached import MODE_NAMES, Attached, all_attached, attached, ifindex_of, refused
from xdpstack.closing import Closing
from xdpstack.dispatcher import (
    OBJECT,
    PRIORITY,
    cannot,
    chained,
    clean_up,
    evict,
    own,
    owner_of,
    release,
)
from xdpstack.errors import ConfigError, SetupError
from xdpstack.links import CARRIER_SECONDS, has_carrier, wait_for_carrier
from xdpstack.netdev import SINCE, Capabilities, capabilities
from xdpstack.nic import ethtool, quirks_of
from xdpstack.nic.surface import Host
from xdpstack.pins import BPFFS, forget, netns_cookie, owner, pin_dir, pinned, prepare_bpffs
from xdpstack.rules import Decision, Rule, compile_tables
from xdpstack.rulestate import RuleLike, RuleState, as_rules

__all__ = [
    "METADATA",
    "Attached",
    "Count",
    "Counters",
    "Filter",
    "all_attached",
    "asking",
    "attached",
    "detach_any",
    "netns_cookie",
    "ours",
    "owner",
    "pinned",
]

log = logging.getLogger("xdpstack.bpf")

MODES = {"auto": lib.XDS_ATTACH_AUTO, "native": lib.XDS_ATTACH_NATIVE, "generic": lib.XDS_ATTACH_GENERIC}
METADATA = {
    "timestamp": lib.XDS_META_NIC,
    "hash": lib.XDS_META_HASH,
    "vlan-tag": lib.XDS_META_VLAN,
}
"""What a driver can be asked about a received frame, in the words of ``netdev.RX_METADATA``."""
REASONS = {
    value: word
    for value, word in sorted(_ffi.names("xds_reason", "XDS_REASON_").items())
    if value < lib.XDS_REASONS
}
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x1


@dataclass(frozen=True, slots=True)
class Count:
    """Packets and bytes (whole frames)."""

    packets: int
    bytes: int

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)

    def __sub__(self, other: Count) -> Count:
        return Count(self.packets - other.packets, self.bytes - other.bytes)


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot, summed over CPUs. Every frame counts one reason; a rule counts what it matched."""

    rules: dict[int, Count]  # by rule id, every rule in force
    reasons: dict[str, Count]  # by the word of enum xds_reason
    no_socket: dict[tuple[str, int], Count]  # by (group, queue): redirects that found no socket


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


def _asked(ifname: str, ifindex: int, mode: str, stamp: bool, metadata: Collection[str]) -> int:
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


def asking(steering: Filter, metadata: Collection[str]) -> Filter:
    """``steering``, which is there already and asks the driver for ``metadata`` at least. SetupError: it does
    not, and no other can take its place while it is there."""
    asks = steering.info()["metadata"] or ()
    if set(metadata) <= set(asks):
        return steering
    raise SetupError(
        f"{steering.ifname}: ask its driver for {', '.join(metadata)}",
        f"the filter there asks for {', '.join(asks) or 'nothing'}",
        f"xdpstack unload {steering.ifname}, then load it --metadata {','.join(metadata)}",
        errno.EBUSY,
    )


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


class Filter(Closing):
    """The steering filter of one interface. Make it with :meth:`load`, :meth:`open_pinned` or :meth:`dry`."""

    def __init__(self, handle: Any, ifname: str, mode: str, pin_dir: Path | None = None) -> None:
        self._handle, self.ifname, self.mode, self._pin_dir = handle, ifname, mode, pin_dir
        self._asked = mode if mode in MODES else "auto"
        self.replaced: list[str] = []
        """What ``force`` took off the interface, one sentence each."""
        self._owned = False  # in a dispatcher, and it ends with this process
        self._priority = PRIORITY
        self._scratch: Filter | None = None
        self._known: tuple[int, RuleState] = (0, RuleState())  # version of the tables, what they say

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
    ) -> Filter:
        """Load the program, put ``rules`` in force, attach it to ``ifname``.

        ``mode``: native, generic, or auto (native, else generic; ``.mode`` says which was granted).
        ``pin`` leaves it there after the process, until :meth:`unload`. ``force`` replaces what somebody
        else attached (``.replaced`` says what). A link that had carrier is waited for, ``carrier_wait``
        seconds at most, 0: not at all. ``device_bound`` asks the driver for time stamps where it has them;
        ``metadata`` for each of ``METADATA`` that it names, and refuses where the driver has one not
        (``port.Frame.hints`` shows hash and VLAN tag). ``stamp=False`` writes none. ``dispatcher``: with
        others, in libxdp's, where it runs in the order of ``priority`` (lower ones first) and in the mode
        that is there. Raises ConfigError for rules, SetupError for the host.
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
        ask = _asked(ifname, ifindex, mode, stamp, metadata) or (METADATA["timestamp"] if device_bound else 0)
        running = has_carrier(ifname)
        directory = pin_dir(ifindex)
        clean_up(ifname, directory)
        if not force:
            cls._refuse_others(ifname, directory, dispatcher)
        if running:
            warn_of_reset(ifname)
        kind = lib.XDS_FILTER_SHARED if dispatcher else lib.XDS_FILTER_OWN
        steering = cls._load(ifname, ifindex, stamp, ask, kind)
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

    @classmethod
    def dry(cls, rules: str | Sequence[RuleLike] = (), *, dispatcher: bool = False) -> Filter:
        """A filter that is on no interface: for :meth:`test`. ``dispatcher``: the program for one."""
        kind = lib.XDS_FILTER_SHARED_DRY if dispatcher else lib.XDS_FILTER_OWN
        steering = cls._load("", 0, True, 0, kind)
        try:
            steering._swap(RuleState().with_rules(as_rules(rules)))
        except BaseException:
            steering.close()
            raise
        return steering

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
    def _load(
        cls, ifname: str, ifindex: int, stamp: bool, ask: int = 0, kind: int = lib.XDS_FILTER_OWN
    ) -> Filter:
        """``ask``: bits of ``METADATA``; with any, the program is bound to the device ``ifindex``."""
        out = ffi.new("struct xds_filter **")
        code = lib.xds_filter_load(bytes(OBJECT), kind, ifindex if ask else 0, ask, stamp, out)
        if code == -errno.ENOENT and not OBJECT.exists():
            raise SetupError(f"load {OBJECT}", "it was not built", "make bpf", errno=errno.ENOENT)
        if code < 0 and kind == lib.XDS_FILTER_SHARED:
            raise cannot(code)
        if code < 0:
            remedy = "leave device_bound and metadata out: no program can be bound to it" if ask else ""
            raise refused(f"{ifname or 'dry run'}: load the XDP program", code, remedy)
        return cls(out[0], ifname, "none")

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
        handle, self._handle = self._handle, None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        if handle is not None:
            if self._owned and self._pin_dir is not None:
                self._leave(handle, self._pin_dir)
            lib.xds_filter_close(handle)

    def _leave(self, handle: Any, directory: Path) -> None:
        """Out of the dispatcher, unless another process has it now, or somebody took it out by force."""
        ends_with = owner_of(directory)
        if ends_with is None or (ends_with.is_alive and not ends_with.is_us):
            return
        code = lib.xds_filter_detach(handle)
        if code < 0:
            log.warning("%s", refused(f"{self.ifname}: take the filter out of the dispatcher", code))
        forget(directory)

    def let_go(self) -> None:
        """The interface is in another namespace: leave it there as it was found. A pinned filter stays."""
        if not self.is_pinned:
            code = lib.xds_filter_detach(self._alive())
            if code < 0 and code != -errno.ENOLINK:
                raise refused(f"{self.ifname}: detach the filter", code)
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
        code = lib.xds_filter_detach(self._alive())
        if code < 0 and code != -errno.ENOLINK:
            raise refused(f"{ifname}: detach the filter", code)
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

    def _alive(self) -> Any:
        if self._handle is None:
            raise SetupError("the filter is closed", errno=errno.EBADF)
        return self._handle

    # -- rules --

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: a pinned filter may be changed by several processes."""
        if self._pin_dir is None:
            yield
            return
        try:
            fd = os.open(self._pin_dir, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise SetupError(
                f"{self.ifname}: change its filter", "it was unloaded meanwhile", errno=errno.ENOENT
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _state(self) -> RuleState:
        version = ffi.new("uint32_t *")
        code = lib.xds_filter_version(self._alive(), version)
        if code == -errno.ENOENT:
            return RuleState()
        _ffi.check(code, "read the version of the rules")
        if version[0] != self._known[0]:
            tables = ffi.new("struct xds_tables *")
            _ffi.check(lib.xds_filter_current(self._alive(), tables), "read the rules in force")
            # Published between the two calls: newer than its version says, and read again next time.
            self._known = version[0], RuleState.decode(bytes(ffi.buffer(tables.notes, tables.notes_len)))
        return self._known[1]

    def _swap(self, change: tuple[RuleState, list[int]]) -> None:
        state, fresh = change
        tables = compile_tables(state.rules, state.groups, state.encode())
        for number in fresh:
            _ffi.check(lib.xds_filter_clear_rule(self._alive(), number), "clear a counter")
        code = lib.xds_filter_publish(self._alive(), tables)
        if code < 0:
            raise refused(f"{self.ifname}: publish {len(state.rules)} rules", code)

    @property
    def rules(self) -> list[Rule]:
        """The rules in force, in order, with their ids."""
        return list(self._state().rules)

    @property
    def groups(self) -> dict[str, int]:
        """Numbers of the socket groups by name."""
        return dict(self._state().groups)

    def add_rule(self, rule: RuleLike, *, before: int | None = None) -> int:
        """Put a rule in force, last or before the rule with id ``before``. Returns its id."""
        (parsed,) = as_rules([rule])
        with self._locked():
            state = self._state()
            at = len(state.rules) if before is None else self._index(state, before)
            rules = [*state.rules[:at], parsed, *state.rules[at:]]
            state, fresh = state.with_rules(rules)
            self._swap((state, fresh))
        return fresh[0]

    def delete_rule(self, number: int) -> Rule:
        """Take the rule with this id out of force. Returns it."""
        with self._locked():
            state = self._state()
            rules = list(state.rules)
            gone = rules.pop(self._index(state, number))
            self._swap(state.with_rules(rules))
        return gone

    def replace_rules(self, rules: str | Sequence[RuleLike]) -> list[int]:
        """Put these rules in force instead, at once. A rule that was there before keeps id and counters."""
        parsed = as_rules(rules)
        with self._locked():
            state = self._state()
            kept: dict[str, list[int]] = {}
            for old in state.rules:
                kept.setdefault(str(old), []).append(old.id)
            merged = [replace(r, id=ids.pop(0)) if (ids := kept.get(str(r))) else r for r in parsed]
            state, fresh = state.with_rules(merged)
            self._swap((state, fresh))
        return [rule.id for rule in state.rules]

    @staticmethod
    def _index(state: RuleState, number: int) -> int:
        for i, rule in enumerate(state.rules):
            if rule.id == number:
                return i
        raise ConfigError(f"no rule has the id {number}")

    # -- sockets --

    def set_socket(self, group: str, queue: int, fd: int | None) -> None:
        """Let an AF_XDP socket take the frames of ``group`` on queue ``queue``; None takes it away."""
        if not 0 <= queue < lib.XDS_QUEUES_MAX:
            raise ConfigError(f"queue {queue} is not in 0..{lib.XDS_QUEUES_MAX - 1}")
        with self._locked():
            before = self._state()
            state, number = before.group(group)
            if state is not before:
                self._swap((state, []))
        code = lib.xds_filter_set_socket(self._alive(), number, queue, -1 if fd is None else fd)
        if code < 0:
            raise refused(f"{self.ifname}: give group {group!r} its socket on queue {queue}", code)

    # -- reading --

    def counters(self) -> Counters:
        """Counters of the rules in force, the reasons, and the queues without a socket."""
        state = self._state()
        by_id = self._counts(lib.XDS_COUNT_RULES, lib.XDS_RULE_IDS)
        reasons = self._counts(lib.XDS_COUNT_REASONS, lib.XDS_REASONS)
        missing = self._counts(lib.XDS_COUNT_NO_SOCKET, lib.XDS_SOCKETS_MAX)
        names = {number: name for name, number in state.groups.items()}
        no_socket = {}
        for index in missing["packets"].nonzero()[0].tolist():
            group, queue = divmod(index, lib.XDS_QUEUES_MAX)
            no_socket[names.get(group, str(group)), queue] = _count(missing[index])
        return Counters(
            rules={rule.id: _count(by_id[rule.id]) for rule in state.rules},
            reasons={word: _count(reasons[value]) for value, word in REASONS.items()},
            no_socket=no_socket,
        )

    def _counts(self, which: int, count: int) -> Any:
        out = ffi.new("struct xds_count[]", count)
        _ffi.check(lib.xds_filter_counters(self._alive(), which, out, count), "read counters")
        return _ffi.view(out, count, "struct xds_count").copy()

    def info(self) -> dict[str, Any]:
        """Ids and sizes of program and link, as the kernel tells them. ``metadata``: the words that it asks
        its driver for, whoever loaded it (None: not told without CAP_SYS_ADMIN)."""
        out = ffi.new("struct xds_filter_info *")
        _ffi.check(lib.xds_filter_info(self._alive(), out), "ask for the program")
        keys = ("prog_id", "link_id", "ifindex", "verified", "jited_len", "device_bound", "shared")
        words = None if out.ask < 0 else [word for word, bit in METADATA.items() if out.ask & bit]
        return {**{key: int(getattr(out, key)) for key in keys}, "metadata": words}

    # -- dry run --

    def test(self, frame: bytes) -> Decision:
        """What the program does with a frame (14 bytes or more): a run in the kernel, on a copy of the
        filter, so that no counter of the live one moves. Redirects are shown as if every socket were there.
        """
        tester = self._tester()
        before = tester._snapshot()
        tester.run(frame)
        after = tester._snapshot()
        counted = {int(number) for number in (after[0]["packets"] != before[0]["packets"]).nonzero()[0]}
        (reason,) = (after[1]["packets"] != before[1]["packets"]).nonzero()[0].tolist()
        rules = tuple(rule for rule in tester.rules if rule.id in counted)
        word = REASONS[reason]
        ended = rules[-1] if rules and rules[-1].action != "count" else None
        action = ended.action if ended else "pass"
        return Decision(action, "redirected" if word == "no_socket" else word, ended, rules)

    def test_all(self, frames: Iterable[bytes]) -> Counters:
        """Counters of a dry run of many frames, as if every socket were there. Frames under 14 bytes, which
        the kernel does not run, count as malformed."""
        tester = self._tester()
        before, short = tester.counters(), [0, 0]
        for frame in frames:
            if len(frame) < 14:
                short = [short[0] + 1, short[1] + len(frame)]
            else:
                tester.run(frame)
        after = tester.counters()
        reasons = {word: after.reasons[word] - before.reasons[word] for word in after.reasons}
        reasons["redirected"] += reasons["no_socket"]
        reasons["no_socket"] = Count(0, 0)
        reasons["malformed"] += Count(*short)
        rules = {number: after.rules[number] - before.rules[number] for number in after.rules}
        return Counters(rules, reasons, {})

    def run(self, frame: bytes, repeat: int = 1) -> int:
        """Run the program on a frame ``repeat`` times (it counts). Returns ns a run."""
        verdict, ns = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        code = lib.xds_filter_test(self._alive(), frame, len(frame), repeat, verdict, ns)
        if code == -errno.EINVAL and len(frame) < 14:
            raise ConfigError(f"a frame of {len(frame)} bytes is no Ethernet frame: 14 or more")
        if code < 0:
            raise refused("run the program on a frame", code)
        return int(ns[0])

    def _snapshot(self) -> tuple[Any, Any]:
        return self._counts(lib.XDS_COUNT_RULES, lib.XDS_RULE_IDS), self._counts(
            lib.XDS_COUNT_REASONS, lib.XDS_REASONS
        )

    def _tester(self) -> Filter:
        """Itself when it is on no interface, else a copy with the rules in force."""
        if not self.ifname:
            return self
        if self._scratch is None:
            self._scratch = Filter._load("", 0, stamp=True)
        state = self._state()
        if self._scratch._state() != state:
            self._scratch._swap((state, []))
        return self._scratch


def _count(row: Any) -> Count:
    return Count(int(row["packets"]), int(row["bytes"]))
