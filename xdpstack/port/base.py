"""What every port shares: memory, life, views of the last burst; and the link's calls."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Self

from xdpstack._ffi import ffi, lib
from xdpstack.closing import Closing
from xdpstack.errors import LocalProtocolError, SetupError

__all__ = ["NEVER", "Datagram", "Frame", "Hints", "LinkPort", "Memory", "Port", "hints_of"]

NEVER: Final = 0x7FFFFFFFFFFFFFFF
"""The latest time there is, ns: as ``now`` it takes everything that a capture holds."""
_HUGE_PAGE: Final = 2 << 20
_HUGE_PAGES: Final = (1 << 30, _HUGE_PAGE)
_MAP_HUGETLB: Final = 0x40000
_MAP_HUGE_SHIFT: Final = 26
SLICE: Final = 64


def now_tai() -> int:
    """CLOCK_TAI, ns."""
    return time.clock_gettime_ns(time.CLOCK_TAI)


class Memory:
    """One mapping, huge pages where wanted and there are any; touched at once (MAP_POPULATE). It is
    anonymous, or, ``shared``, a memfd that another process may map as well: its size is sealed.

    ``page``: bytes of the huge pages to begin with, 2 MiB or 1 GiB; where there are none of that size the
    next smaller one is tried, and each step is counted in ``fallbacks``.
    """

    def __init__(self, size: int, huge: bool, page: int = _HUGE_PAGE, *, shared: bool = False) -> None:
        make = _shared if shared else _anonymous
        self.fallbacks = 0
        for bytes_ in [one for one in _HUGE_PAGES if huge and one <= page]:
            try:
                self._use(make(-(-size // bytes_) * bytes_, bytes_), bytes_)
                return
            except OSError:
                self.fallbacks += 1
        self._use(make(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE, 0), mmap.PAGESIZE)

    def _use(self, made: tuple[mmap.mmap, int], page: int) -> None:
        self._map, self.fd = made
        self.users, self.page = 1, page
        self.size = len(self._map)
        self.pointer: Any = ffi.from_buffer(self._map)
        self._base = int(ffi.cast("uintptr_t", self.pointer))

    @classmethod
    def of(cls, fd: int, page: int) -> Self:
        """The memory of another process's memfd, mapped here; ``fd`` is given. OSError: it cannot be."""
        memory = cls.__new__(cls)
        memory.fallbacks = 0
        try:
            memory._use((_map(fd, os.fstat(fd).st_size), fd), page)
        except (OSError, ValueError) as error:
            os.close(fd)
            raise OSError(getattr(error, "errno", None), f"map a port's memory: {error}") from None
        return memory

    @property
    def huge(self) -> bool:
        """True where the pages are huge ones."""
        return self.page > mmap.PAGESIZE

    @property
    def viewed(self) -> bool:
        """True while a view made by ``view``, an array over one, or a slice of one, lives."""
        ffi.release(self.pointer)  # our own claim; the mapping counts the others
        try:
            self._map.resize(len(self._map))  # changes nothing, but asks whether it could
        except BufferError:
            return True
        finally:
            self.pointer = ffi.from_buffer(self._map)
        return False

    def keep_from_children(self) -> None:
        """Leave it out of forked children. Pages that the kernel has pinned are not shared with a child
        but copied while it is made: it would cost their size and time each, and fails with ENOMEM where
        they are huge ones and the pool has no more. A shared memory is never copied."""
        if self.fd < 0:
            self._map.madvise(mmap.MADV_DONTFORK)

    def holds(self, pointer: Any) -> bool:
        """Whether a C pointer lies in this memory."""
        return 0 <= int(ffi.cast("uintptr_t", pointer)) - self._base < self.size

    def view(self, pointer: Any, length: int) -> memoryview:
        """A view of ``length`` bytes at a C pointer into this memory."""
        at = int(ffi.cast("uintptr_t", pointer)) - self._base
        return memoryview(self._map)[at : at + length]

    def close(self) -> None:
        """One user less; the last one unmaps."""
        self.users -= 1
        if self.users == 0:
            ffi.release(self.pointer)
            self._map.close()
            if self.fd >= 0:
                os.close(self.fd)


def _huge_flag(page: int, shift: int) -> int:
    """The size of a huge page as mmap and memfd_create have it; 0: not huge."""
    return (page.bit_length() - 1) << shift if page else 0


def _anonymous(size: int, page: int) -> tuple[mmap.mmap, int]:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE | (_MAP_HUGETLB if page else 0)
    return mmap.mmap(-1, size, flags=flags | _huge_flag(page, _MAP_HUGE_SHIFT)), -1


def _map(fd: int, size: int) -> mmap.mmap:
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _shared(size: int, page: int) -> tuple[mmap.mmap, int]:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if page else 0)
    fd = os.memfd_create("xdpstack-port", flags | _huge_flag(page, _MAP_HUGE_SHIFT))
    try:
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)  # who shrank it could kill who else maps it
        return _map(fd, size), fd
    except OSError:
        os.close(fd)
        raise


class Hints(NamedTuple):
    """What the NIC told of a frame; None: it did not."""

    hash: int | None
    """The number by which it spreads flows over queues."""
    hash_type: int
    """Over which headers: the kernel's ``enum xdp_rss_hash_type``, 0 where it did not say."""
    vlan: tuple[int, int] | None
    """The tag that it took off: its TPID (0x8100, 0x88a8), priority and VLAN id as the tag has them."""


class Frame(NamedTuple):
    """One received frame. ``data`` is a view until the next receive; ``bytes(frame.data)`` keeps it."""

    data: memoryview
    rx_ns: int
    """CLOCK_TAI ns (of a foreign capture: UTC)."""
    queue: int
    """Receive queue, or interface number inside a capture."""
    flags: int
    """``lib.XDS_FRAME_HW_STAMP``, ``lib.XDS_FRAME_CUT``."""
    hints: Hints | None = None
    """None but behind a filter that was loaded with ``metadata``."""


class Datagram(NamedTuple):
    """One received datagram. ``data`` is a view, valid until the next receive."""

    data: memoryview
    rx_ns: int
    """CLOCK_TAI ns: see ``stamp``."""
    src: tuple[str, int]
    dst: tuple[str, int]
    stamp: str = "kernel"
    """Who took ``rx_ns``: the ``kernel``, the ``nic``, or nobody: then it is the time of the ``call``."""


class Port(Closing):
    """What every port shares: memory, views of the last burst, a holder, closing twice calmly."""

    kind = "port"

    def __init__(self) -> None:
        self._memory: Memory | None = None
        self._views: list[memoryview] = []
        self._holders = 0
        self._closed = False
        self._handle: Any = ffi.NULL

    @property
    def handle(self) -> Any:
        """The C pointer that the engine takes; valid until close."""
        if self._closed:
            raise LocalProtocolError(f"{self!r} is closed")
        return self._handle

    @property
    def closed(self) -> bool:
        """True once closed."""
        return self._closed

    def hold(self) -> None:
        """Called by who keeps the handle (the engine): close is refused until ``let_go``."""
        self._holders += 1

    def let_go(self) -> None:
        """The opposite of ``hold``."""
        self._holders -= 1

    def _drop_views(self) -> None:
        """End the views of the last burst. BufferError where something still looks through one."""
        while self._views:
            try:
                self._views[-1].release()
            except BufferError:
                raise BufferError(
                    f"a view of a frame of {self!r} is still in use: drop it, or keep bytes(view)"
                ) from None
            self._views.pop()

    def _view(self, pointer: Any, length: int) -> memoryview:
        assert self._memory is not None
        view = self._memory.view(pointer, length)
        self._views.append(view)
        return view

    def _close_native(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close the port; twice is calm. BufferError while a view lives, LocalProtocolError while held."""
        if self._closed:
            return
        if self._holders > 0:
            raise LocalProtocolError(f"{self!r} is in use by an engine: close that first")
        self._drop_views()
        if self._memory is not None and self._memory.users == 1 and self._memory.viewed:
            raise BufferError(f"a view into {self!r} still lives: drop it, or keep bytes(view)")
        self._close_native()
        self._closed = True
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._holders = 0
            self.close()


_HINTED: Final = lib.XDS_FRAME_HASH | lib.XDS_FRAME_VLAN


def hints_of(frame: Any) -> Hints | None:
    """What the NIC told of a ``struct xds_frame``."""
    flags = frame.flags
    if not flags & _HINTED:
        return None
    told = lib.xds_xsk_rx_hints(ffi.addressof(frame))
    return Hints(
        told.hash if flags & lib.XDS_FRAME_HASH else None,
        told.hash_type,
        (told.vlan_tpid, told.vlan_tci) if flags & lib.XDS_FRAME_VLAN else None,
    )


def fields(pointer: Any, ctype: str) -> dict[str, int]:
    return {name: getattr(pointer, name) for name, _ in ffi.typeof(ctype).fields}


class LinkPort(Port):
    """A port that moves frames. The four kinds differ in how they are made, not in how they are used."""

    def __init__(self) -> None:
        super().__init__()
        self._frames: Any = ffi.new("struct xds_frame[]", SLICE)
        self._last_stats: dict[str, int] = {}

    @property
    def virtual_time(self) -> bool:
        """True where ``now`` is the next frame's stamp: captures, pipes of a simulator."""
        return bool(lib.xds_link_flags(self.handle) & lib.XDS_LINK_VIRTUAL_TIME)

    @property
    def read_only(self) -> bool:
        """True where nothing can be sent."""
        return bool(lib.xds_link_flags(self.handle) & lib.XDS_LINK_READ_ONLY)

    @property
    def mtu(self) -> int:
        """Bytes behind the Ethernet header."""
        return int(lib.xds_link_mtu(self.handle))

    @property
    def granted(self) -> str:
        """The granted mode: ``zerocopy`` or ``copy``; ``memory`` or ``file`` for other kinds."""
        return "memory"

    def fileno(self) -> int:
        """A descriptor to poll on, -1 where there is none. SetupError: several queues could not be joined."""
        fd = int(lib.xds_link_fd(self.handle))
        if fd < lib.XDS_LINK_NO_FD:
            raise SetupError(f"join the queues of {self!r} to poll on them", os.strerror(-fd), errno=-fd)
        return fd

    @property
    def deadline(self) -> int:
        """Stamp of the next frame on a port of virtual time, ns; ``NEVER`` at its end or on a live port."""
        return int(lib.xds_link_deadline(self.handle))

    def receive(self, count: int = 64, now: int | None = None) -> list[Frame]:
        """Take up to ``count`` frames; empty when there are none, or at the end of a capture (``at_end``).

        The views of the call before end here. ``now`` is CLOCK_TAI ns; None: the clock, or on a port of
        virtual time everything. Raises OSError, or ValueError for a capture that contradicts itself.
        """
        self.release()
        if now is None:
            now = NEVER if self.virtual_time else now_tai()
        taken: list[Frame] = []
        while len(taken) < count:
            got = lib.xds_link_rx(self.handle, self._frames, min(SLICE, count - len(taken)), now)
            if got <= 0:
                if got < 0 and not taken:
                    self._ended(got)
                break
            for frame in self._frames[0:got]:
                view = self._view(frame.data, frame.len)
                taken.append(Frame(view, frame.rx_ns, frame.queue, frame.flags, hints_of(frame)))
        return taken

    def _ended(self, code: int) -> None:
        raise_code(code, f"receive from {self!r}")

    def release(self) -> None:
        """Give the last burst's frames back; its views end."""
        self._drop_views()
        lib.xds_link_release(self.handle)

    def send(
        self, frames: Iterable[bytes | memoryview], now: int | None = None, stamps: Sequence[int] = ()
    ) -> int:
        """Send whole Ethernet frames in order; returns how many were taken (fewer: no frame was free).

        ``stamps``: arrival times in ns, for a pipe of virtual time. ValueError: a frame larger than the MTU.
        """
        if now is None:
            now = now_tai()
        todo, done, stuck = list(frames), 0, 0
        while done < len(todo) and stuck < 100:
            got = lib.xds_link_reserve(self.handle, self._frames, min(SLICE, len(todo) - done))
            raise_code(got, f"send by {self!r}")
            for index in range(got):
                slot, data = self._frames[index], todo[done + index]
                room = slot.len
                if len(data) > room or len(data) == 0:
                    self._give_back(got)
                    self.flush(now)
                    raise ValueError(f"a frame of {len(data)} bytes; this port takes 1 to {room}")
                ffi.memmove(slot.data, data, len(data))
                slot.len = len(data)
                slot.rx_ns = stamps[done + index] if stamps else 0
            if got:
                raise_code(lib.xds_link_commit(self.handle, self._frames, got), f"send by {self!r}")
            done += got
            stuck = 0 if got else stuck + 1
            self.flush(now)
            if got == 0 and self.read_only:
                break
        return done

    def _give_back(self, count: int) -> None:
        for index in range(count):
            self._frames[index].len = 0
        lib.xds_link_commit(self.handle, self._frames, count)

    def flush(self, now: int | None = None) -> int:
        """Kick what was committed and collect completions; returns the frames still on their way."""
        moment = now_tai() if now is None else now
        return raise_code(lib.xds_link_flush(self.handle, moment), f"flush {self!r}")

    def stats(self) -> dict[str, int]:
        """The counters of ``struct xds_link_stats``; after close the last ones."""
        if not self._closed:
            out = ffi.new("struct xds_link_stats *")
            lib.xds_link_stats(self._handle, out)
            self._last_stats = fields(out, "struct xds_link_stats")
            if self._memory is not None:
                self._last_stats["huge_pages"] = int(self._memory.huge)
                self._last_stats["huge_page_fallbacks"] = self._memory.fallbacks
                self._last_stats["page_bytes"] = self._memory.page
        return dict(self._last_stats)

    def _close_native(self) -> None:
        if self._handle != ffi.NULL:
            self.stats()
            lib.xds_link_close(self._handle)


def raise_code(code: int, what: str) -> int:
    """``code`` when it is a count; OSError or ValueError else."""
    if code >= 0:
        return int(code)
    if code > -4096:
        raise OSError(-code, f"{what}: {os.strerror(-code)}")
    words = {
        lib.XDS_ETRUNC: "it ends before its own header does",
        lib.XDS_EMALFORMED: "a length or type that the format does not allow",
        lib.XDS_ECAPACITY: "a bound is reached",
        lib.XDS_ECONFIG: "the configuration contradicts itself",
        lib.XDS_ESTATE: "not allowed in this state",
    }
    raise ValueError(f"{what}: {words.get(code, code)}")
