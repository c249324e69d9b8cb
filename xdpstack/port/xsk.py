"""AF_XDP queues as a link."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pyroute2.ethtool.ioctl import IoctlEthtool

from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.netdev import capabilities
from xdpstack.port.base import SLICE, LinkPort, Memory, fields, now_tai, raise_code

__all__ = ["XskPort", "busy_verdict", "needs", "probe", "require_features", "row_of"]

Mode = Literal["auto", "zerocopy", "copy"]
Way = Literal["socket", "live", "auto"]
_MODES: Final = {"auto": 0, "zerocopy": 1, "copy": 2}
_WHOLE_PAGE_DRIVERS: Final = {"ena"}
"""Drivers that lose zero-copy with frames smaller than a page."""
_KIBIBYTE_DRIVERS: Final = {"igb", "igc"}
"""Drivers that tell the NIC the size of a zero-copy buffer in whole KiB, and give what it then cuts as frames
of their own: over igb of Linux 7.2, 1,514 bytes in 2048-byte chunks come as 1,024 and 490."""
_KERNEL_HEADROOM: Final = 256  # XDP_PACKET_HEADROOM
_BEYOND_MTU: Final = 22  # Ethernet header and two VLAN tags
_ROW_STEP: Final = 8  # bytes, of where a chunk may begin
_PAGE: Final = 4096
_FEW: Final = 64  # frames, before it is said who brought them
_SEND_OBJECT: Final = Path(__file__).parent.parent / "_bpf" / "xds_send.bpf.o"
_INSTEAD: Final = {
    "tx_live": "tx='socket'",
    "jumbo": "lower the MTU to what one chunk holds (3818 with 4096-byte chunks), or run Linux 6.6 or later",
    "unaligned": "leave unaligned out",
    "busy_poll": "leave busy_poll out",
}
_HUGE_PAGE: Final = 2 << 20


def _checked(queues: int | range, tx_queue: int | None, mode: str, tx: str) -> range:
    """The queues as a range. ConfigError: what no interface has."""
    numbers = range(queues, queues + 1) if isinstance(queues, int) else queues
    if len(numbers) == 0 or numbers.step != 1 or numbers[0] < 0:
        raise ConfigError(f"queues {queues!r}: a number, or a range of consecutive numbers")
    if tx_queue is not None and tx_queue < 0:
        raise ConfigError(f"tx_queue {tx_queue}: a number from 0")
    if mode not in _MODES:
        raise ConfigError(f"mode {mode!r}: one of auto, zerocopy, copy")
    if tx not in ("socket", "live", "auto"):
        raise ConfigError(f"tx {tx!r}: one of socket, live, auto")
    return numbers


def _flags(prefix: str = "XDS_XSK_", **on: bool) -> int:
    return sum(getattr(lib, prefix + name) for name, wanted in on.items() if wanted)


def _driver(nic: Any) -> str:
    return str(ffi.string(nic.driver).decode())


def _chunk_for(nic: Any) -> int:
    """Bytes of a chunk where none are asked for: small ones keep more of the cache."""
    large = _driver(nic) in _WHOLE_PAGE_DRIVERS | _KIBIBYTE_DRIVERS
    return 4096 if large or nic.mtu + _BEYOND_MTU > 2048 - _KERNEL_HEADROOM else 2048


def row_of(interface: str, options: Mapping[str, Any]) -> int:
    """For ``Filter.load(row=…)``: bytes of a frame in each chunk of a port that such options would open, if
    its chunks can lie in a row; else 0, and frames over several chunks are joined by a copy."""
    nic = probe(interface)
    payload = (options.get("frame_size") or _chunk_for(nic)) - _KERNEL_HEADROOM - options.get("headroom", 0)
    shares = options.get("one_umem") or options.get("lend") or options.get("share") or options.get("raw")
    copies = options.get("mode") == "copy" or capabilities(nic.ifindex).can("zero-copy") is False
    longer = options.get("jumbo", True) and nic.mtu + _BEYOND_MTU > payload
    return payload if longer and copies and not shares and payload % _ROW_STEP == 0 else 0


class _Polled:
    """``BusyPollRxPackets`` of the network namespace that this thread is in now, counted from here on."""

    def __init__(self) -> None:
        self._file = open("/proc/thread-self/net/netstat", encoding="ascii")  # noqa: SIM115
        self._start = self._read()

    def _read(self) -> int:
        self._file.seek(0)
        lines = [line.split() for line in self._file if line.startswith("TcpExt:")]
        return int(dict(zip(*lines, strict=True)).get("BusyPollRxPackets", 0))

    def since(self) -> int:
        return self._read() - self._start

    def close(self) -> None:
        self._file.close()


class _FarEnd:
    """What an interface's driver says that its other end refused of the XDP frames that it was given, counted
    from here on; the namespace is the one that this thread is in now."""

    _NAME = re.compile(r"tx_queue_\d+_xdp_xmit_errors")  # veth

    def __init__(self, interface: str) -> None:
        self._nic = IoctlEthtool(interface)
        self._start, self._last = 0, 0
        self._start = self.since()

    def since(self) -> int:
        """Frames; the last known number where the interface is gone or has no such counter."""
        with contextlib.suppress(Exception):  # pyroute2 raises many kinds; it is a counter, no condition
            found = self._nic.get_statistics()
            self._last = sum(int(value) for name, value in found if self._NAME.fullmatch(str(name)))
        return self._last - self._start

    def close(self) -> None:
        self._nic.close()


class XskPort(LinkPort):
    """AF_XDP sockets on one or several receive queues of an interface, as one link.

    The filter still has to send frames here: ``Filter.set_socket`` of ``xdpstack.bpf`` takes ``fds()``.
    ``queues``: a number, or a range like ``range(0, 4)``. ``mode`` is a wish; with ``require`` the port
    refuses to open when another was granted. Sizes are frames and descriptors a queue, powers of two;
    ``tx_frames=0`` makes a port that only receives. ``tx_queue``: what is sent leaves by that queue, by
    default the first; on one that receives nothing, two cores share the least. ``busy_poll`` is in µs,
    0: off. ``tx_budget``: descriptors that one kick may send in copy mode, 32 to ``tx_ring``; 0: the whole
    ring, so that a burst is one system call. Before Linux 6.17 it is 32 (property and ``stats`` say so).

    ``tx``: how frames leave in copy mode. ``socket``: as the kernel's packet buffers. ``live``: bursts of 24
    and more as live XDP frames, a third of the cost; shorter ones, and what the kernel does not take so, by
    the socket, in order. For an interface that takes XDP frames (``ndo-xmit`` of its features; veth: a
    native XDP program or GRO at its peer) and whose other end has the same MTU; SetupError where it does
    not. ``tx_queue`` is then for the socket only: XDP frames leave by the queue of the core. ``auto``: where
    it can be now and there is one queue. What is in force say ``sends_by`` and ``sends_why``, what left so
    ``stats()["tx_live"]``.

    ``frame_size``: bytes of a chunk of the UMEM, 2048 or 4096; 0: what the MTU and the driver ask for. With
    ``unaligned`` any size between. ``headroom``: bytes before a received packet, beside the kernel's 256.
    Where the MTU is above what a chunk holds, frames come and go in several (``jumbo``); ``slabs`` of them
    can be leased at once, the next wait in the RX ring.

    Memory lies in huge pages of ``huge_page_mib`` (2, or 1024) where there are any; ``stats`` count the steps
    down to smaller ones.

    ``row``: what the filter was given as ``Filter.load(row=row_of(…))``. Then a frame's chunks lie in a row,
    and it is whole where it lies; else frames over several chunks are joined by a copy. Where the filter
    writes stamps the port must look for them.

    ``one_umem``: one UMEM for all queues. ``lend``: chunks of it for ports, of this or another interface,
    that are opened with ``share=`` this port; between ports that share, ``relay`` moves frames without a
    copy. ``shared``: another process may take the port over, see ``xdpstack.port.parts``. ``tx_metadata``:
    ``send_one`` can ask for a checksum, a time stamp, a launch time (what is there say ``tx_features``); with
    ``tx_software_checksum`` the kernel computes the sum, in copy mode. ``raw`` is for
    tests of the kernel (``post``).
    Raises ConfigError, SetupError.
    """

    kind = "xsk"
    _shared_memory: Memory | None = None
    _polled: _Polled | None = None
    _far_end: _FarEnd | None = None
    sends_by: Literal["socket", "live"] = "socket"
    """How bursts leave, see ``tx``."""
    sends_why: str = "tx='socket'"
    """Why they leave so."""

    def __init__(
        self,
        interface: str,
        queues: int | range = 0,
        *,
        tx_queue: int | None = None,
        mode: Mode = "auto",
        require: bool = False,
        tx: Way = "socket",
        need_wakeup: bool = True,
        stamps: bool = True,
        busy_poll: int = 0,
        busy_poll_budget: int = 64,
        rx_ring: int = 4096,
        rx_frames: int = 4096,
        tx_ring: int = 2048,
        tx_frames: int | None = None,
        tx_budget: int = 0,
        frame_size: int = 0,
        unaligned: bool = False,
        headroom: int = 0,
        jumbo: bool = True,
        slabs: int = 256,
        row: int = 0,
        tx_metadata: bool = False,
        tx_software_checksum: bool = False,
        one_umem: bool = False,
        lend: int = 0,
        share: XskPort | None = None,
        huge_pages: bool = True,
        huge_page_mib: int = 2,
        bind_wait_ms: int = 2000,
        raw: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__()
        numbers, nic = _checked(queues, tx_queue, mode, tx), probe(interface)
        self.interface, self.queues, self._ifindex = interface, numbers, int(nic.ifindex)
        self._shared = shared
        sends_on = numbers[0] if tx_queue is None else tx_queue
        self._check_queues(max(numbers[-1], sends_on), nic.rx_queues)
        config = self._config = ffi.new("struct xds_xsk_config *")
        config.ifname, config.mode = interface.encode(), _MODES[mode]
        if share is not None:
            config.share = share.handle
            frame_size, headroom = share._config.frame_size, share._config.headroom
            unaligned = bool(share._config.flags & lib.XDS_XSK_UNALIGNED)
            tx_metadata = bool(share._config.flags & lib.XDS_XSK_TX_METADATA)
        config.flags = _flags(
            REQUIRE=require, NEED_WAKEUP=need_wakeup, BUSY_POLL=busy_poll > 0, NO_STAMPS=not stamps,
            UNALIGNED=unaligned, RAW=raw, ONE_UMEM=one_umem or lend > 0,
            TX_METADATA=tx_metadata, TX_SOFTWARE_CHECKSUM=tx_software_checksum,
        )  # fmt: skip
        self._set(
            queue_first=numbers[0], queue_count=len(numbers), tx_queue=sends_on, rx_ring=rx_ring,
            rx_frames=rx_frames, tx_ring=tx_ring if tx_frames != 0 else 0, headroom=headroom, lend=lend,
            frame_size=frame_size or _chunk_for(nic), busy_poll_us=busy_poll,
            busy_poll_budget=busy_poll_budget, bind_wait_ms=bind_wait_ms, tx_budget=tx_budget,
        )  # fmt: skip
        self._keep_whole(nic, require, raw)
        if jumbo and nic.mtu + _BEYOND_MTU > config.frame_size - _KERNEL_HEADROOM - headroom:
            self._take_chains(nic, slabs, require, raw, row)
        require_features(
            interface, jumbo=self.jumbo, unaligned=unaligned, busy_poll=busy_poll > 0,
            tx_metadata=tx_metadata, shared=share is not None or one_umem or lend > 0,
        )  # fmt: skip
        self._open(self._allocate(huge_page_mib << 20 if huge_pages else 0, tx_frames), mode, nic, share)
        self._choose_way(tx, nic)
        self._polled = _Polled() if busy_poll else None

    def _choose_way(self, tx: Way, nic: Any) -> None:
        """How frames leave. SetupError or ConfigError where ``live`` cannot be; the port is closed then."""
        if tx == "auto" and nic.rx_queues > 1:
            several = f"{self.interface} has {nic.rx_queues} queues"
            self.sends_why = f"{several}, and XDP frames leave by that of the core"
        elif tx != "socket":
            try:
                self._go_live()
            except (ConfigError, SetupError) as error:
                if tx == "live":
                    self.close()
                    raise
                self.sends_why = str(error)

    def _go_live(self) -> None:
        config, tried = self._config, f"send by live XDP frames on {self.interface}"
        for reason, there in {
            "a port that only receives": not config.tx_frames,
            "tx_metadata, which XDP frames cannot carry": bool(config.flags & lib.XDS_XSK_TX_METADATA),
            "raw": bool(config.flags & lib.XDS_XSK_RAW),
        }.items():
            if there:
                raise ConfigError(f"port on {self.interface}: tx='live' does not go with {reason}")
        require_features(self.interface, tx_live=True)
        if self.granted == "zerocopy":
            reason, remedy = (
                "the driver grants zero-copy, and that is cheaper",
                "leave tx out, or mode='copy'",
            )
            raise SetupError(tried, reason, remedy, errno.EOPNOTSUPP)
        if capabilities(self._ifindex).can("ndo-xmit") is False:
            raise SetupError(
                tried,
                "the kernel says that it takes no XDP frames (no ndo-xmit)",
                "over veth: a native XDP program at its peer, or ethtool -K PEER gro on; or tx='socket'",
                errno.EOPNOTSUPP,
            )
        code = lib.xds_xsk_live_open(self.handle, bytes(_SEND_OBJECT), self._ifindex)
        if code < 0:
            words = ffi.string(lib.xds_filter_message()).decode(errors="replace").strip()
            reason = words.splitlines()[0] if words else os.strerror(-code)
            raise SetupError(tried, reason, "run as root, or give it CAP_BPF; or tx='socket'", -code)
        self._sends_live("the interface takes XDP frames")

    @property
    def way(self) -> str:
        """How bursts leave and why, in words."""
        return f"{'live XDP frames' if self.sends_by == 'live' else 'the socket'}: {self.sends_why}"

    def _sends_live(self, why: str) -> None:
        self.sends_by, self.sends_why = "live", why
        self._far_end = _FarEnd(self.interface)

    def _keep_whole(self, nic: Any, require: bool, raw: bool) -> None:
        """Copy mode where zero-copy would cut frames in two; SetupError where that was required."""
        config = self._config
        if raw or _driver(nic) not in _KIBIBYTE_DRIVERS:
            return
        whole = (config.frame_size - _KERNEL_HEADROOM - config.headroom) // 1024 * 1024
        if config.mode == _MODES["copy"] or whole >= nic.mtu + _BEYOND_MTU:
            return
        if require:
            raise SetupError(
                f"open AF_XDP on {self.interface} in zero-copy",
                f"with these chunks driver {_driver(nic)} would cut frames of its MTU after {whole} bytes",
                "frame_size=4096 and no headroom, a smaller MTU, or mode='copy'",
                errno.EMSGSIZE,
            )
        config.mode = _MODES["copy"]

    def _take_chains(self, nic: Any, slabs: int, require: bool, raw: bool, row: int) -> None:
        """Frames over several chunks. Copy mode where one takes more than the driver has for a frame in
        zero-copy (the kernel asks only whether it takes several); SetupError where that was required."""
        config = self._config
        self._set(frame_max=nic.mtu + _BEYOND_MTU, slabs=slabs)
        if row:
            self._lie_in_a_row(row)
        if raw or config.mode == _MODES["copy"] or config.headroom >= config.frame_size - _KERNEL_HEADROOM:
            return  # the last is refused in words of its own
        most = capabilities(self._ifindex).zc_max_segs
        payload = config.frame_size - _KERNEL_HEADROOM - config.headroom
        takes = max(-(-config.frame_max // payload), lib.xds_xsk_tx_descriptors(config))
        if not most or takes <= most:  # unknown, or no zero-copy at all: bind says so
            return
        if require and config.mode == _MODES["zerocopy"]:
            fits = most * payload - _BEYOND_MTU
            raise SetupError(
                f"open AF_XDP on {self.interface} in zero-copy",
                f"a frame of its MTU {nic.mtu} takes {takes} buffers, and driver {_driver(nic)} has {most}",
                f"ip link set {self.interface} mtu {fits}, larger chunks, or mode='copy'",
                errno.EMSGSIZE,
            )
        config.mode = _MODES["copy"]

    def _lie_in_a_row(self, row: int) -> None:
        payload = self._config.frame_size - _KERNEL_HEADROOM - self._config.headroom
        if row != payload:
            raise ConfigError(f"port on {self.interface}: row {row}: its chunks hold {payload} bytes of one")
        self._config.flags |= lib.XDS_XSK_IN_A_ROW
        self._config.mode = _MODES["copy"]

    def map_stamps(self, clock: Any) -> None:
        """Turn the NIC's stamps into CLOCK_TAI by a :class:`xdpstack.phc.PhcKeeper`; not while it receives.
        None: there is no such clock, so a stamp of the NIC's counts as ``rx_nic_refused`` and the frame has
        the time of the call. Until this is called, ``rx_ns`` of such a frame is the NIC's own time."""
        face = ffi.new("struct xds_clock_face *") if clock is None else clock.face
        lib.xds_xsk_set_nic_clock(self.handle, face)
        self._nic_clock = face  # C points to it

    @property
    def row(self) -> int:
        """Bytes of a frame in each chunk where a frame's chunks lie in a row, else 0."""
        in_a_row = self._config.flags & lib.XDS_XSK_IN_A_ROW
        return self._config.frame_size - _KERNEL_HEADROOM - self._config.headroom if in_a_row else 0

    @property
    def jumbo(self) -> bool:
        """True where a frame may take several chunks."""
        return bool(self._config.frame_max > 0)

    def _check_queues(self, last: int, count: int) -> None:
        if last >= count:
            raise SetupError(
                f"open queue {last} of {self.interface}",
                f"it has {count} receive queue{'s' if count > 1 else ''}, numbered from 0",
                f"choose one of them, or: ethtool -L {self.interface} combined {last + 1}",
                errno.EINVAL,
            )

    def _set(self, **sizes: int) -> None:
        for name, value in sizes.items():
            if not 0 <= value < 1 << 32:
                raise ConfigError(f"port on {self.interface}: {name} {value}: a number from 0")
            setattr(self._config, name, value)

    def _size(self, tx_frames: int | None, page: int) -> int:
        """Bytes of memory, laid out for its pages. ConfigError with what is wrong."""
        config = self._config
        config.page_size = page
        if tx_frames is None:  # as many as there is room for; one without room is refused below
            tx_frames = 0
            if config.frame_size and config.tx_ring:
                tx_frames = max(1, config.tx_ring // max(1, lib.xds_xsk_tx_descriptors(config)))
        self._set(tx_frames=tx_frames)
        fault = lib.xds_xsk_fault(config)
        if fault != ffi.NULL:
            raise ConfigError(f"port on {self.interface}: {ffi.string(fault).decode()}")
        return int(lib.xds_xsk_size(config))

    def _allocate(self, huge: int, tx_frames: int | None) -> Memory:
        """The memory, in huge pages of that many bytes where there are any; 0: in small ones."""
        if huge not in (0, 2 << 20, 1 << 30):
            raise ConfigError(f"huge_page_mib {huge >> 20}: huge pages have 2 or 1024 MiB")
        memory = self._map_memory(tx_frames, huge)
        if huge and not memory.huge:  # unaligned chunks lie otherwise on small pages
            fallbacks = memory.fallbacks
            memory.close()
            memory = self._map_memory(tx_frames, 0)
            memory.fallbacks = fallbacks
        return memory

    def _map_memory(self, tx_frames: int | None, huge: int) -> Memory:
        size = self._size(tx_frames, _HUGE_PAGE if huge else _PAGE)
        if self._shared:
            size += lib.xds_xsk_parted_size(self._config)
        memory = Memory(size, huge > 0, huge, shared=self._shared)
        memory.keep_from_children()
        return memory

    def _open(self, memory: Memory, mode: str, nic: Any, share: XskPort | None) -> None:
        self._memory = memory
        self._report = ffi.new("struct xds_xsk_report *")
        out = ffi.new("struct xds_link **")
        code = lib.xds_xsk_open(memory.pointer, self._config, out, self._report)
        if code < 0:
            memory.close()
            self._memory = None
            self._closed = True
            raise self._refused(code, mode, _driver(nic))
        self._handle = out[0]
        self._config.tx_budget = self._report.tx_budget
        if share is not None and share._memory is not None:
            self._shared_memory = share._memory
            self._shared_memory.users += 1

    @property
    def mtu_max(self) -> int:
        """The largest MTU whose packets fit a frame, bytes."""
        return int(self._report.mtu_max)

    @property
    def granted(self) -> str:
        """``zerocopy`` or ``copy``, as the kernel says (several queues: the lesser)."""
        return "zerocopy" if self._report.granted == lib.XDS_XSK_ZEROCOPY else "copy"

    def _view(self, pointer: Any, length: int) -> memoryview:
        if self._shared_memory is None or not self._shared_memory.holds(pointer):
            return super()._view(pointer, length)
        view = self._shared_memory.view(pointer, length)
        self._views.append(view)
        return view

    def _close_native(self) -> None:
        super()._close_native()
        if self._polled is not None:
            self._polled.close()
        if self._far_end is not None:
            self._far_end.close()
        if self._shared_memory is not None:
            self._shared_memory.close()
            self._shared_memory = None

    def relay(self, to: XskPort, count: int = 64) -> int:
        """Send up to ``count`` frames that came here by ``to``, as they are; returns how many were taken.

        Without a copy where both ports use one UMEM (``stats()["tx_copied"]`` of ``to`` counts the others);
        fewer than came: ``to`` had no free frame, the rest is dropped and counted there as ``tx_no_frame``.
        """
        self.release()
        got = lib.xds_link_rx(self.handle, self._frames, min(SLICE, count), now_tai())
        raise_code(got, f"receive from {self!r}")
        taken = raise_code(lib.xds_xsk_forward(to.handle, self.handle, self._frames, got), f"relay to {to!r}")
        to.flush()
        self.release()
        return taken

    @property
    def tx_features(self) -> frozenset[str]:
        """Of ``tx-timestamp``, ``tx-checksum``, ``tx-launch-time-fifo``: what frames may be sent with.

        In zero-copy what the driver reports (netlink, family ``netdev``); in copy mode the kernel itself
        stamps, when it is done with the frame, and leaves checksums to the driver or does them.
        """
        if not self._config.flags & lib.XDS_XSK_TX_METADATA:
            return frozenset()
        if self.granted == "copy":
            return frozenset({"tx-timestamp", "tx-checksum"})
        return capabilities(self._ifindex).xsk or frozenset()

    def send_one(
        self,
        frame: bytes | memoryview,
        *,
        checksum: tuple[int, int] | None = None,
        stamp: bool = False,
        launch_ns: int | None = None,
        cookie: int = 0,
    ) -> bool:
        """Send one frame and ask something of the NIC. False: no frame was free.

        ``checksum``: (first byte to sum up, where from there the result goes); the pseudo-header's sum is in
        that place already. ``stamp``: when it left comes by ``tx_stamps``, with ``cookie``. ``launch_ns``:
        when it shall leave, by the NIC's clock. SetupError: ``tx_features`` has it not. ValueError: too long.
        """
        asked = {"tx-checksum": checksum, "tx-timestamp": stamp or None, "tx-launch-time-fifo": launch_ns}
        for feature in (name for name, value in asked.items() if value is not None):
            if feature not in self.tx_features:
                there = ", ".join(sorted(self.tx_features)) or "none"
                raise SetupError(
                    f"send with {feature} by {self!r}",
                    f"there is {there}",
                    "open with tx_metadata=True, on a driver that reports it: xdpstack doctor",
                    errno.EOPNOTSUPP,
                )
        if raise_code(lib.xds_link_reserve(self.handle, self._frames, 1), f"send by {self!r}") == 0:
            self.flush()
            return False
        slot = self._frames[0]
        if not 0 < len(frame) <= slot.len:
            room = slot.len
            self._give_back(1)
            raise ValueError(f"a frame of {len(frame)} bytes; this port takes 1 to {room}")
        ffi.memmove(slot.data, frame, len(frame))
        slot.len = len(frame)
        meta = lib.xds_xsk_tx_meta(self.handle, self._frames)
        if meta != ffi.NULL:
            meta.flags = _flags(
                "XDS_TX_", STAMP=stamp, CHECKSUM=checksum is not None, LAUNCH=launch_ns is not None
            )
            meta.csum_start, meta.csum_offset = checksum or (0, 0)
            meta.launch_ns, meta.cookie = launch_ns or 0, cookie
            slot.flags = lib.XDS_FRAME_TX_META
        raise_code(lib.xds_link_commit(self.handle, self._frames, 1), f"send by {self!r}")
        self.flush()
        return True

    def tx_stamps(self) -> list[tuple[int, int]]:
        """``(cookie, ns)`` of the stamped frames that completed since the last call, oldest first. Copy mode:
        CLOCK_TAI; zero-copy: the NIC's clock."""
        self.flush()
        out = ffi.new("struct xds_tx_stamp[]", 1024)
        count = lib.xds_xsk_tx_stamps(self.handle, out, 1024)
        return [(one.cookie, one.tx_ns) for one in out[0:count]]

    @property
    def busy_polling(self) -> str:
        """``off``, ``in force``, or why it is not, or not known.

        A socket option alone says nothing: a socket that knows no NAPI polls nothing, and where interrupts
        still drive the NAPI its frames are there before we poll. So: does each socket have a NAPI id, and
        has the kernel polled at least half of the frames for somebody (``BusyPollRxPackets`` of this network
        namespace, since the port was opened)?
        """
        if self._polled is None:
            return "off"
        if self._closed:
            return "closed"
        napis = [lib.xds_xsk_napi(self._handle, index) for index in range(len(self.queues))]
        return busy_verdict(self.interface, self.stats()["rx_frames"], self._polled.since(), napis)

    def stats(self) -> dict[str, int]:
        """The counters of ``struct xds_link_stats``, and ``tx_budget``; ``busy_polled``: frames that the
        kernel polled, see ``busy_polling``; ``tx_far_end_refused``: live XDP frames for which veth's other
        end had no room, or that are longer than its MTU. After close the last ones."""
        counters = super().stats()
        if self._far_end is not None and not self._closed:
            self._last_stats["tx_far_end_refused"] = counters["tx_far_end_refused"] = self._far_end.since()
        self._last_stats["tx_budget"] = counters["tx_budget"] = self.tx_budget
        if self._polled is not None and not self._closed:
            self._last_stats["busy_polled"] = counters["busy_polled"] = self._polled.since()
        return counters

    @property
    def tx_frames(self) -> int:
        """Frames to send that the port has."""
        return int(self._config.tx_frames)

    @property
    def tx_budget(self) -> int:
        """Descriptors that one kick takes in copy mode: as asked for, 32 before Linux 6.17; 0: it only
        receives."""
        return int(self._config.tx_budget)

    @property
    def bind_retries(self) -> int:
        """How often a busy queue was waited for while opening."""
        return int(self._report.bind_retries)

    def fds(self) -> dict[int, int]:
        """The socket of each queue, for the filter's map: ``{queue: fd}``."""
        return {queue: lib.xds_xsk_fd(self.handle, index) for index, queue in enumerate(self.queues)}

    def sockets(self) -> list[int]:
        """Every socket: one a queue, then the one that sends."""
        count = len(self.queues) + (self.tx_frames > 0)
        return [lib.xds_xsk_fd(self.handle, index) for index in range(count)]

    def census(self) -> dict[str, int]:
        """Frames by owner now; RX and TX ones each sum up to what the port has."""
        out = ffi.new("struct xds_xsk_census *")
        lib.xds_xsk_census(self.handle, out)
        return fields(out, "struct xds_xsk_census")

    def post(self, descriptors: Sequence[tuple[int, int, int]]) -> int:
        """For tests, ``raw`` ports only: ``(address, bytes, options)`` onto the TX ring as they are.

        Returns how many the ring had room for; ``flush`` kicks them. ValueError: the port is not raw.
        """
        out = ffi.new("struct xds_xsk_desc[]", [list(one) for one in descriptors])
        return raise_code(lib.xds_xsk_post(self.handle, out, len(descriptors)), f"post to {self!r}")

    def post_fill(self, addresses: Sequence[int], index: int = 0) -> int:
        """For tests, ``raw`` ports only: addresses onto the ``index``-th queue's fill ring as they are."""
        out = ffi.new("uint64_t[]", list(addresses))
        code = lib.xds_xsk_post_fill(self.handle, index, out, len(addresses))
        return raise_code(code, f"fill {self!r}")

    def umem(self, index: int = 0) -> memoryview:
        """For tests, until the next receive: the ``index``-th queue's UMEM; behind the last the sender's."""
        size = ffi.new("uint64_t *")
        area = lib.xds_xsk_umem(self.handle, index, size)
        return self._view(area, size[0])

    def __repr__(self) -> str:
        first, last = self.queues[0], self.queues[-1]
        name = f"xsk:{self.interface}:{first}" + (f"-{last}" if last != first else "")
        if self._closed:
            return f"<XskPort {name} closed>"
        busy = f", busy polling {self.busy_polling}" if self._polled is not None else ""
        live = ", sends live frames" if self.sends_by == "live" else ""
        return f"<XskPort {name} {self.granted}{live}{busy}>"

    def _refused(self, code: int, mode: str, driver: str) -> Exception:
        """The sentence for an open that failed."""
        step, report = self._report.step, self._report
        tried = f"open AF_XDP on queue {report.queue} of {self.interface}"
        if code <= -4097:
            return ConfigError(f"{tried}: {code}")
        name, text = -code, os.strerror(-code)
        sentences: dict[int, tuple[str, str]] = {
            errno.ENETDOWN: ("the interface is down", f"ip link set {self.interface} up"),
            errno.EMSGSIZE: (
                f"its MTU of {report.mtu} is above the {report.mtu_max} bytes that a frame holds",
                f"ip link set {self.interface} mtu {report.mtu_max}, or leave jumbo on",
            ),
            errno.EPERM: ("the process may not", "run as root, or give it CAP_NET_RAW and CAP_NET_ADMIN"),
            errno.EAFNOSUPPORT: ("this kernel has no AF_XDP", "use a kernel with CONFIG_XDP_SOCKETS"),
            errno.EBUSY: ("another socket holds the queue", "end that process, or choose another queue"),
            errno.ENOBUFS: ("locked memory is limited", "ulimit -l unlimited, or CAP_IPC_LOCK"),
            errno.ENOMEM: ("no memory for the rings", "smaller rings, or ulimit -l unlimited"),
            errno.EOPNOTSUPP: (
                f"tx_queue {report.queue} is none of the port's queues: in zero-copy nothing would fill it",
                "make it one of queues, or mode='copy'",
            )
            if report.granted == lib.XDS_XSK_ZEROCOPY
            else (
                f"{mode} was required and driver {driver or 'unknown'} grants copy",
                "drop require, or use a driver with zero-copy",
            ),
        }
        reason, remedy = sentences.get(name, (text, "xdpstack doctor says more"))
        if step == lib.XDS_XSK_STEP_BUSY_POLL:
            reason, remedy = (
                f"busy polling: {text}",
                "Linux 5.11 or later and CAP_NET_ADMIN, or leave busy_poll out",
            )
        return SetupError(tried, reason, remedy, name)


def busy_verdict(interface: str, frames: int, polled: int, napis: Sequence[int]) -> str:
    """``XskPort.busy_polling`` from frames received, frames that the kernel polled, NAPI ids (0: none)."""
    if not all(napis):
        return "not in force: the kernel knows no NAPI for a socket (generic mode, or a driver like veth)"
    if frames < _FEW:
        return f"not known yet: {frames} frames received"
    if polled * 2 >= frames:
        return "in force"
    return (
        f"not in force: {polled} of {frames} frames were polled, the rest came by interrupts; set "
        f"napi_defer_hard_irqs and gro_flush_timeout in /sys/class/net/{interface}"
    )


def needs() -> dict[str, tuple[int, int]]:
    """The least kernel for each feature, ``{name: (major, minor)}``; the table is ``ports/xsk_uapi.h``."""
    out = ffi.new("struct xds_xsk_need *")
    found: dict[str, tuple[int, int]] = {}
    while lib.xds_xsk_feature(len(found), out):
        found[ffi.string(out.name).decode()] = (int(out.major), int(out.minor))
    return found


def _kernel() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def require_features(interface: str, **wanted: bool) -> None:
    """SetupError where this kernel is older than a feature of ``needs()`` that is wanted."""
    running, table = _kernel(), needs()
    for name in (name for name, want in wanted.items() if want):
        if running < table[name]:
            least = ".".join(map(str, table[name]))
            raise SetupError(
                f"open AF_XDP on {interface} with {name}",
                f"that needs Linux {least} and this is {running[0]}.{running[1]}",
                _INSTEAD.get(name, f"run Linux {least} or later"),
                errno.EOPNOTSUPP,
            )


def probe(interface: str) -> Any:
    """``struct xds_xsk_interface`` of an interface that is up. SetupError: unknown or down."""
    nic = ffi.new("struct xds_xsk_interface *")
    code = lib.xds_xsk_probe(interface.encode(), nic)
    if code == -errno.ENODEV:
        raise SetupError(
            f"open {interface}",
            "no such interface in this network namespace",
            "ip link shows what there is",
            -code,
        )
    if code < 0:
        raise SetupError(f"open {interface}", os.strerror(-code), errno=-code)
    if not nic.up:
        raise SetupError(
            f"open {interface}", "the interface is down", f"ip link set {interface} up", errno.ENETDOWN
        )
    return nic
