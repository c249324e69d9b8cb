"""AF_XDP queues as a link."""

from __future__ import annotations

import errno
import os
from typing import Any, Final, Literal

from xdpstack._ffi import ffi, lib
from xdpstack.errors import ConfigError, SetupError
from xdpstack.port.base import LinkPort, Memory, fields

__all__ = ["XskPort", "probe"]

Mode = Literal["auto", "zerocopy", "copy"]
_MODES: Final = {"auto": 0, "zerocopy": 1, "copy": 2}
_WHOLE_PAGE_DRIVERS: Final = {"ena"}
"""Drivers that lose zero-copy with frames smaller than a page."""


class XskPort(LinkPort):
    """AF_XDP sockets on one or several receive queues of an interface, as one link.

    The filter still has to send frames here: ``Filter.set_socket`` of ``xdpstack.bpf`` takes ``fds()``.
    ``queues``: a number, or a range like ``range(0, 4)``. ``mode`` is a wish; with ``require`` the port
    refuses to open when another was granted. Sizes are frames and descriptors a queue, powers of two;
    ``tx_frames=0`` makes a port that only receives. ``tx_queue``: what is sent leaves by that queue, by
    default the first; on one that receives nothing, two cores share the least. ``busy_poll`` is in µs,
    0: off.
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
        huge_pages: bool = True,
        bind_wait_ms: int = 2000,
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
        _in_range(interface, max(numbers[-1], sends_on), nic.rx_queues)
        driver = ffi.string(nic.driver).decode()
        small = nic.mtu + 22 <= 2048 - 256 and driver not in _WHOLE_PAGE_DRIVERS
        config = ffi.new("struct xds_xsk_config *")
        config.ifname = interface.encode()
        config.queue_first, config.queue_count, config.tx_queue = numbers[0], len(numbers), sends_on
        config.rx_ring, config.rx_frames, config.tx_ring = rx_ring, rx_frames, tx_ring
        config.tx_frames = tx_ring if tx_frames is None else tx_frames
        if tx_frames == 0:
            config.tx_ring = 0
        config.frame_size = frame_size or (2048 if small else 4096)
        config.mode = _MODES[mode]
        config.flags = (
            (lib.XDS_XSK_REQUIRE if require else 0)
            | (lib.XDS_XSK_NEED_WAKEUP if need_wakeup else 0)
            | (lib.XDS_XSK_BUSY_POLL if busy_poll else 0)
            | (0 if stamps else lib.XDS_XSK_NO_STAMPS)
        )
        config.busy_poll_us, config.busy_poll_budget = busy_poll, busy_poll_budget
        config.bind_wait_ms = bind_wait_ms
        size = lib.xds_xsk_size(config)
        if size == 0:
            raise ConfigError(
                f"port on {interface}: ring and frame counts must be powers of two, "
                f"tx_frames at most tx_ring, frame_size 2048 or 4096, at most {lib.XDS_XSK_QUEUES_MAX} queues"
            )
        self._memory = Memory(size, huge_pages)
        self._report = ffi.new("struct xds_xsk_report *")
        out = ffi.new("struct xds_link **")
        code = lib.xds_xsk_open(self._memory.pointer, config, out, self._report)
        if code < 0:
            self._memory.close()
            self._memory = None
            self._closed = True
            raise self._refused(code, mode, driver)
        self._handle = out[0]

    @property
    def granted(self) -> str:
        """``zerocopy`` or ``copy``, as the kernel says (several queues: the lesser)."""
        return "zerocopy" if self._report.granted == lib.XDS_XSK_ZEROCOPY else "copy"

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
                f"ip link set {self.interface} mtu {min(report.mtu_max, 3498)}"
                + ("" if report.mtu_max > 2048 else ", or frame_size=4096"),
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


def _in_range(interface: str, queue: int, count: int) -> None:
    if queue >= count:
        raise SetupError(
            f"open queue {queue} of {interface}",
            f"it has {count} receive queue{'s' if count > 1 else ''}, numbered from 0",
            f"choose one of them, or: ethtool -L {interface} combined {queue + 1}",
            errno.EINVAL,
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
