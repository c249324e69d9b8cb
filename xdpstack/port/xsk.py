"""AF_XDP queues as a link."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.port.base import LinkPort, Memory, fields, raise_code

__all__ = ["XskPort", "needs", "probe", "require_features"]

Mode = Literal["auto", "zerocopy", "copy"]
_MODES: Final = {"auto": 0, "zerocopy": 1, "copy": 2}
_WHOLE_PAGE_DRIVERS: Final = {"ena"}
"""Drivers that lose zero-copy with frames smaller than a page."""
_KERNEL_HEADROOM: Final = 256  # XDP_PACKET_HEADROOM
_BEYOND_MTU: Final = 22  # Ethernet header and two VLAN tags
_PAGE: Final = 4096
_INSTEAD: Final = {
    "jumbo": "lower the MTU to what one chunk holds (3818 with 4096-byte chunks), or run Linux 6.6 or later",
    "unaligned": "leave unaligned out",
    "busy_poll": "leave busy_poll out",
}
_HUGE_PAGE: Final = 2 << 20


class XskPort(LinkPort):
    """AF_XDP sockets on one or several receive queues of an interface, as one link.

    The filter still has to send frames here: ``Filter.set_socket`` of ``xdpstack.bpf`` takes ``fds()``.
    ``queues``: a number, or a range like ``range(0, 4)``. ``mode`` is a wish; with ``require`` the port
    refuses to open when another was granted. Sizes are frames and descriptors a queue, powers of two;
    ``tx_frames=0`` makes a port that only receives. ``tx_queue``: what is sent leaves by that queue, by
    default the first; on one that receives nothing, two cores share the least. ``busy_poll`` is in µs,
    0: off.

    ``frame_size``: bytes of a chunk of the UMEM, 2048 or 4096; 0: what the MTU and the driver ask for. With
    ``unaligned`` any size between. ``headroom``: bytes before a received packet, beside the kernel's 256.
    Where the MTU is above what a chunk holds, frames come and go in several (``jumbo``); ``slabs`` of them
    can be leased at once, the next wait in the RX ring. ``raw`` is for tests of the kernel (``post``).
    Raises ConfigError, SetupError.
    """

    kind = "xsk"

    def __init__(
        self,
        interface: str,
        queues: int | range = 0,
        *,
        tx_queue: int | None = None,
        mode: Mode = "auto",
        require: bool = False,
        need_wakeup: bool = True,
        stamps: bool = True,
        busy_poll: int = 0,
        busy_poll_budget: int = 64,
        rx_ring: int = 4096,
        rx_frames: int = 4096,
        tx_ring: int = 2048,
        tx_frames: int | None = None,
        frame_size: int = 0,
        unaligned: bool = False,
        headroom: int = 0,
        jumbo: bool = True,
        slabs: int = 256,
        huge_pages: bool = True,
        bind_wait_ms: int = 2000,
        raw: bool = False,
    ) -> None:
        super().__init__()
        numbers = range(queues, queues + 1) if isinstance(queues, int) else queues
        if mode not in _MODES:
            raise ConfigError(f"mode {mode!r}: one of auto, zerocopy, copy")
        if len(numbers) == 0 or numbers.step != 1 or numbers[0] < 0:
            raise ConfigError(f"queues {queues!r}: a number, or a range of consecutive numbers")
        if tx_queue is not None and tx_queue < 0:
            raise ConfigError(f"tx_queue {tx_queue}: a number from 0")
        self.interface, self.queues = interface, numbers
        nic = probe(interface)
        sends_on = numbers[0] if tx_queue is None else tx_queue
        self._check_queues(max(numbers[-1], sends_on), nic.rx_queues)
        driver = ffi.string(nic.driver).decode()
        small = nic.mtu + _BEYOND_MTU <= 2048 - _KERNEL_HEADROOM and driver not in _WHOLE_PAGE_DRIVERS
        frame_size = frame_size or (2048 if small else 4096)
        config = self._config = ffi.new("struct xds_xsk_config *")
        config.ifname = interface.encode()
        config.queue_first, config.queue_count, config.tx_queue = numbers[0], len(numbers), sends_on
        config.mode = _MODES[mode]
        config.flags = (
            (lib.XDS_XSK_REQUIRE if require else 0)
            | (lib.XDS_XSK_NEED_WAKEUP if need_wakeup else 0)
            | (lib.XDS_XSK_BUSY_POLL if busy_poll else 0)
            | (0 if stamps else lib.XDS_XSK_NO_STAMPS)
            | (lib.XDS_XSK_UNALIGNED if unaligned else 0)
            | (lib.XDS_XSK_RAW if raw else 0)
        )
        sizes = {
            "rx_ring": rx_ring,
            "rx_frames": rx_frames,
            "tx_ring": tx_ring if tx_frames != 0 else 0,
            "frame_size": frame_size,
            "headroom": headroom,
            "busy_poll_us": busy_poll,
            "busy_poll_budget": busy_poll_budget,
            "bind_wait_ms": bind_wait_ms,
        }
        if jumbo and nic.mtu + _BEYOND_MTU > frame_size - _KERNEL_HEADROOM - headroom:
            sizes["frame_max"], sizes["slabs"] = nic.mtu + _BEYOND_MTU, slabs
        self._set(sizes)
        self.jumbo = config.frame_max > 0
        """True where a frame may take several chunks."""
        wanted = {"jumbo": self.jumbo, "unaligned": unaligned, "busy_poll": busy_poll > 0}
        require_features(interface, *(name for name, want in wanted.items() if want))
        self._open(self._allocate(huge_pages, tx_frames), mode, driver)

    def _check_queues(self, last: int, count: int) -> None:
        if last >= count:
            raise SetupError(
                f"open queue {last} of {self.interface}",
                f"it has {count} receive queue{'s' if count > 1 else ''}, numbered from 0",
                f"choose one of them, or: ethtool -L {self.interface} combined {last + 1}",
                errno.EINVAL,
            )

    def _set(self, sizes: dict[str, int]) -> None:
        for name, value in sizes.items():
            if not 0 <= value < 1 << 32:
                raise ConfigError(f"port on {self.interface}: {name} {value}: a number from 0")
            setattr(self._config, name, value)

    def _size(self, tx_frames: int | None, page: int) -> int:
        """Bytes of memory, laid out for its pages. ConfigError with what is wrong."""
        config = self._config
        config.page_size = page
        if tx_frames is None:  # as many as there is room for; the size of a chunk is checked below
            tx_frames = (
                config.tx_ring // max(1, lib.xds_xsk_tx_descriptors(config)) if config.frame_size else 0
            )
        self._set({"tx_frames": tx_frames})
        fault = lib.xds_xsk_fault(config)
        if fault != ffi.NULL:
            raise ConfigError(f"port on {self.interface}: {ffi.string(fault).decode()}")
        return int(lib.xds_xsk_size(config))

    def _allocate(self, huge_pages: bool, tx_frames: int | None) -> Memory:
        memory = Memory(self._size(tx_frames, _HUGE_PAGE if huge_pages else _PAGE), huge_pages)
        if memory.fell_back:
            memory.close()
            memory = Memory(self._size(tx_frames, _PAGE), False)
            memory.fell_back = True
        return memory

    def _open(self, memory: Memory, mode: str, driver: str) -> None:
        self._memory = memory
        self._report = ffi.new("struct xds_xsk_report *")
        out = ffi.new("struct xds_link **")
        code = lib.xds_xsk_open(memory.pointer, self._config, out, self._report)
        if code < 0:
            memory.close()
            self._memory = None
            self._closed = True
            raise self._refused(code, mode, driver)
        self._handle = out[0]

    @property
    def granted(self) -> str:
        """``zerocopy`` or ``copy``, as the kernel says (several queues: the lesser)."""
        return "zerocopy" if self._report.granted == lib.XDS_XSK_ZEROCOPY else "copy"

    @property
    def tx_frames(self) -> int:
        """Frames to send that the port has."""
        return int(self._config.tx_frames)

    @property
    def bind_retries(self) -> int:
        """How often a busy queue was waited for while opening."""
        return int(self._report.bind_retries)

    def fds(self) -> dict[int, int]:
        """The socket of each queue, for the filter's map: ``{queue: fd}``."""
        return {queue: lib.xds_xsk_fd(self.handle, index) for index, queue in enumerate(self.queues)}

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
        return f"<XskPort {name} {'closed' if self._closed else self.granted}>"

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


def require_features(interface: str, *names: str) -> None:
    """SetupError where this kernel is older than a feature of ``needs()``."""
    running, table = _kernel(), needs()
    for name in names:
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
