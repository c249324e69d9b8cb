"""A ring of records between two threads or two processes: one writer, one reader, no copy, no lock.

The data is mapped twice in a row, so a record never wraps and is one numpy view. Nothing is
overwritten before it was released; a full ring says so (``write`` returns False, ``refused`` counts).
The layout is that of ``cffi_build/xds/ring.md``, and ``ring_reader_inl.h`` beside it a reader for C and C++.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from xdpstack._ffi import check, ffi, lib, names_of_code
from xdpstack.closing import Closing
from xdpstack.describe import describe, described
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, RemoteProtocolError, SetupError
from xdpstack.stats import process_start
from xdpstack.waking import follow

__all__ = ["Record", "Ring", "need_hugetlbfs"]

_HEAD = int(ffi.sizeof("struct xds_ring_record"))
_MORE_PAGES = "sysctl -w vm.nr_hugepages=N"


def need_hugetlbfs(fd: int, path: Path) -> None:
    """Whether a file lies in huge pages. SetupError: it does not."""
    if os.fstat(fd).st_blksize != lib.XDS_RING_HEADER_HUGE:
        raise SetupError(
            f"make {path}", "no hugetlbfs of 2 MiB is there", "mount -t hugetlbfs -o pagesize=2M none DIR"
        )


def _refuse(bytes: int, huge: bool) -> None:
    least, word = (2 << 20, "2097152") if huge else (mmap.PAGESIZE, "a page")
    if bytes < least or bytes & (bytes - 1):
        raise ConfigError(f"a ring has a power of two of bytes, {word} at least, not {bytes}")


def _sizes(fd: int, path: Path) -> tuple[int, int]:
    """Header and data of a sound ring, in bytes. SetupError."""
    size = os.fstat(fd).st_size
    if size < lib.XDS_RING_HEADER + mmap.PAGESIZE:
        raise SetupError(f"open {path}", "not a ring: too short")
    try:
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            head = ffi.new("struct xds_ring *")
            ffi.memmove(head, memory, ffi.sizeof("struct xds_ring"))
    except (OSError, ValueError) as error:
        raise SetupError(f"open {path}", f"not a ring: {error}") from None
    code = lib.xds_ring_check(head, size)
    if code < 0:
        raise SetupError(f"open {path}", f"not a ring of this version and byte order ({names_of_code(code)})")
    return int(head.header_bytes), int(head.bytes)


class Record(NamedTuple):
    """One record: the writer's ``kind`` and ``data``, a view (uint8) that is valid until ``release``."""

    kind: int
    data: np.ndarray[Any, Any]


class Ring(Closing):
    """A ring; ``Ring()`` is private to this process, ``create`` and ``open`` share one by path.

    ``bytes`` is a power of two, a page at least. Memory stays mapped as long as a view of it lives.
    ``pointer`` is the ``struct xds_ring *`` for C.
    """

    pages: str
    """The pages that it lies in, and why not in those that were wished for."""

    def __init__(self, bytes: int = lib.XDS_RING_BYTES, *, huge: bool = False) -> None:
        """Make a private ring, empty; both sides are this process. ``huge``: in pages of 2 MiB where enough
        are free, see :attr:`pages`."""
        _refuse(bytes, huge)
        out = ffi.new("void **")
        header, note = int(lib.XDS_RING_HEADER), ""
        if huge:
            header = int(lib.XDS_RING_HEADER_HUGE)
            code = lib.xds_ring_map_private(header, bytes, out)
            if code < 0:
                header, note = int(lib.XDS_RING_HEADER), f"no huge pages: {os.strerror(-code)}"
        if header == lib.XDS_RING_HEADER:
            check(lib.xds_ring_map_private(header, bytes, out), "map a ring")
        self._adopt(out[0], header, bytes, None)
        if note:
            self.pages = f"{self.pages} ({note}; {_MORE_PAGES})"
        check(lib.xds_ring_init(self.pointer, header, bytes, ffi.NULL), "make a ring")

    def _adopt(self, memory: Any, header: int, size: int, path: Path | None) -> None:
        self.path, self.size, self.closed = path, size, False
        self.pages = "2 MiB" if header == lib.XDS_RING_HEADER_HUGE else f"{mmap.PAGESIZE >> 10} KiB"
        self._owner = ffi.gc(memory, lambda at: lib.xds_ring_unmap(at, header, size), size)
        self.pointer: Any = ffi.cast("struct xds_ring *", self._owner)
        whole = header + 2 * size
        self._bytes: Any = np.frombuffer(ffi.buffer(self._owner, whole), dtype=np.uint8)
        self._base = int(ffi.cast("uintptr_t", self._owner))
        self._next = ffi.new("struct xds_ring_record const *[256]")
        self._room = ffi.new("void **")
        self._claimed = 0
        self._form: np.dtype[Any] | None = None
        self._data_at, self._at = header, ffi.new("uint64_t *")
        self._sides: set[str] = set()  # that were taken by this object: another of this process may have one

    @classmethod
    def _from_file(cls, fd: int, header: int, size: int, path: Path) -> Self:
        out = ffi.new("void **")
        code = lib.xds_ring_map(fd, header, size, out)
        if code < 0:
            reason = os.strerror(-code) if code > -4096 else names_of_code(code)
            raise SetupError(f"map {path}", reason, errno=-code if code > -4096 else None)
        ring = cls.__new__(cls)
        ring._adopt(out[0], header, size, path)
        return ring

    @classmethod
    def create(
        cls,
        path: Path | str,
        bytes: int = lib.XDS_RING_BYTES,
        *,
        dtype: Any = None,
        mode: int = 0o600,
        owner: str | int | None = None,
        group: str | int | None = None,
        huge: bool = False,
    ) -> Self:
        """Make a shared ring at ``path`` (in ``/dev/shm``), as its writer; the file must not exist.

        ``dtype``: what a record is, in words inside the ring. Both sides need the right to write it.
        ``huge``: for a path in a hugetlbfs, in pages of 2 MiB.
        """
        path = Path(path)
        _refuse(bytes, huge)
        header = int(lib.XDS_RING_HEADER_HUGE if huge else lib.XDS_RING_HEADER)
        partial = path.with_name(path.name + ".new")
        try:
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(f"make {partial}", error.strerror or "", errno=error.errno) from None
        try:
            if huge:
                need_hugetlbfs(fd, path)
            os.posix_fallocate(fd, 0, header + bytes)
            ring = cls._from_file(fd, header, bytes, path)
            text = describe(None if dtype is None else np.dtype(dtype)).encode()
            if lib.xds_ring_init(ring.pointer, header, bytes, text) == lib.XDS_ECONFIG:
                raise ConfigError(f"a dtype in {len(text)} characters: a ring keeps {lib.XDS_RING_TEXT - 1}")
            ring.attach_writer()
            if owner is not None:
                shutil.chown(partial, user=owner)
            if group is not None:
                shutil.chown(partial, group=group)
            os.chmod(partial, mode)
            os.link(partial, path)  # whole or not at all, and never over somebody else's
        except LookupError as error:
            raise SetupError(f"make {path}", str(error)) from None
        except OSError as error:
            if isinstance(error, SetupError):
                raise
            raise SetupError(f"make {path}", error.strerror or str(error), errno=error.errno) from None
        finally:
            os.close(fd)
            partial.unlink(missing_ok=True)
        return ring

    @classmethod
    def open(cls, path: Path | str, side: str = "reader") -> Self:
        """Attach to a shared ring as ``reader``, ``writer`` or ``watcher`` (which takes neither side)."""
        path = Path(path)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SetupError(f"open {path}", error.strerror or "", errno=error.errno) from None
        try:
            ring = cls._from_file(fd, *_sizes(fd, path), path)
            fcntl.flock(fd, fcntl.LOCK_EX)  # between the look and the taking
            if side == "reader":
                ring.attach_reader()
            elif side == "writer":
                ring.attach_writer()
            elif side != "watcher":
                raise ConfigError(f"a side is reader, writer or watcher, not {side!r}")
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # the mapping would keep it
            os.close(fd)
        return ring

    # -- sides ------------------------------------------------------------------------------

    def _take(self, side: str) -> tuple[int, int]:
        if self.path and self._holder(side) not in (0, os.getpid()):
            raise SetupError(f"attach to {self.path}", f"process {self._holder(side)} is its {side}")
        self._sides.add(side)
        return os.getpid(), process_start(os.getpid()) or 0

    def _holder(self, side: str) -> int:
        """The live process that has a side, 0 none."""
        pid = int(getattr(self.pointer, f"{side}_pid"))
        alive = pid and process_start(pid) == int(getattr(self.pointer, f"{side}_start"))
        return pid if alive else 0

    def attach_reader(self) -> None:
        """Become the reader; SetupError when a live process is it. What was not released comes again."""
        lib.xds_ring_attach_reader(self.pointer, *self._take("reader"))

    def attach_writer(self) -> None:
        """Become the writer; SetupError when a live process is it. A record it had not committed is gone."""
        lib.xds_ring_attach_writer(self.pointer, *self._take("writer"))

    @property
    def reader_alive(self) -> bool:
        """Whether the process that attached as the reader still runs."""
        return self._holder("reader") != 0

    @property
    def writer_alive(self) -> bool:
        """Whether the process that attached as the writer still runs."""
        return self._holder("writer") != 0

    # -- writer -----------------------------------------------------------------------------

    def write(self, kind: int, data: Any) -> bool:
        """Copy one record in; False (and counted) when there is no room now. CapacityError: it never fits."""
        source = ffi.from_buffer("char[]", data)
        return self._wrote(lib.xds_ring_write(self.pointer, kind, source, len(source)), len(source))

    def claim(self, length: int) -> np.ndarray[Any, Any] | None:
        """Room for ``length`` bytes to fill in place, then ``commit``; None when there is none now."""
        if not self._wrote(lib.xds_ring_claim(self.pointer, length, self._room), length):
            return None
        self._claimed = length
        return self._view(self._room[0], length)

    def commit(self, kind: int, length: int | None = None) -> None:
        """Publish the claimed record, or only its first ``length`` bytes."""
        wanted = self._claimed if length is None else length
        if lib.xds_ring_commit(self.pointer, kind, wanted) < 0:
            raise LocalProtocolError(f"commit of {wanted} bytes: nothing that long was claimed")

    def abort(self) -> None:
        """Give the claim up."""
        lib.xds_ring_abort(self.pointer)

    def finish(self) -> None:
        """Say that no more will come: a reader that has read everything sees the end."""
        lib.xds_ring_close(self.pointer)

    def _wrote(self, code: int, length: int) -> bool:
        if code == lib.XDS_ECAPACITY:
            raise CapacityError(f"a record of {length} bytes does not fit in a ring of {self.size} bytes")
        if code == lib.XDS_ESTATE:
            raise LocalProtocolError("another record is being filled: commit or abort it first")
        return bool(code)

    # -- reader -----------------------------------------------------------------------------

    def read(self, cap: int = 256) -> list[Record]:
        """Up to ``cap`` (256 at most) records that wait, none when there are none; then call ``release``.

        Raises EOFError when all was read and the writer has finished, RemoteProtocolError when the
        other side broke the ring.
        """
        n = lib.xds_ring_peek_many(self.pointer, self._next, min(cap, 256))
        if n < 0:
            raise self._ended(n)
        return [Record(r.kind, self._view(r, r.len, _HEAD)) for r in (self._next[i] for i in range(n))]

    def rows(self) -> np.ndarray[Any, Any]:
        """All records that wait as one array of the ring's dtype, in place; then call ``release``. One of
        another length ends them, and is for :meth:`read`.

        Raises as :meth:`read`, and LocalProtocolError: the ring has no dtype, or such a record is the next.
        """
        if self._form is None:
            self._form = self.dtype
        form = self._form
        if form is None:
            raise LocalProtocolError("the ring has no dtype of its own")
        n = lib.xds_ring_peek_rows(self.pointer, form.itemsize, self._at)
        if n == lib.XDS_ESTATE:
            raise LocalProtocolError(f"the next record has not {form.itemsize} bytes: read() gives it")
        if n < 0:
            raise self._ended(n)
        stride = _HEAD + (form.itemsize + 7) // 8 * 8
        return np.ndarray((n,), form, self._bytes, self._data_at + self._at[0] + _HEAD, (stride,))

    def _ended(self, code: int) -> Exception:
        if code == -errno.EPIPE:
            return EOFError("the writer has finished")
        return RemoteProtocolError("the ring is broken: a record is longer than what was committed")

    def release(self) -> None:
        """Give back everything that was read; its views are stale from now on."""
        lib.xds_ring_release(self.pointer)

    @contextlib.contextmanager
    def batch(self, cap: int = 256) -> Iterator[list[Record]]:
        """``read``, and ``release`` at the end of the block."""
        try:
            yield self.read(cap)
        finally:
            self.release()

    def wait(self, timeout: float) -> bool:
        """Sleep until something waits that ``read`` has not given, or the ring is finished, at most
        ``timeout`` s; False: neither."""
        return bool(lib.xds_ring_wait(self.pointer, int(timeout * 1e9)))

    def batches(
        self, *, busy: bool = False, on_writer: Callable[[bool], None] | None = None
    ) -> AsyncIterator[list[Record]]:
        """For asyncio: what comes, until the writer finishes; each batch is released when the next is asked
        for. ``busy``: poll each turn of the loop, never sleep.

        ``on_writer`` is called with False when no writer is found to live (within 0.1 s of its death), with
        True when there is one again.
        """

        def take() -> list[Record]:
            self.release()
            return self.read()

        return follow(take, self.wait, lambda: self.writer_alive, busy=busy, on_writer=on_writer)

    def _view(self, pointer: Any, length: int, skip: int = 0) -> np.ndarray[Any, Any]:
        at = int(ffi.cast("uintptr_t", pointer)) - self._base + skip
        part: np.ndarray[Any, Any] = self._bytes[at : at + length]
        return part

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """What a record is, where its maker said so."""
        return described(ffi.string(lib.xds_ring_text(self.pointer), lib.XDS_RING_TEXT))

    # -- both -------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes committed and not released, with headers and padding."""
        return int(lib.xds_ring_used(self.pointer))

    @property
    def stats(self) -> dict[str, int]:
        """``written``, ``refused`` and ``read`` records, ``used`` bytes."""
        r = self.pointer
        return {"written": int(r.written), "refused": int(r.refused), "read": int(r.read), "used": self.used}

    def close(self, *, unlink: bool = False) -> None:
        """Leave the side that was taken; ``unlink`` removes the file too. Views stay valid memory."""
        if self.closed:
            return
        self.closed = True
        if self.path:
            for side in sorted(self._sides):
                if getattr(self.pointer, f"{side}_pid") == os.getpid():
                    setattr(self.pointer, f"{side}_pid", 0)
            if unlink:
                self.path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        where = self.path or "private"
        return f"<Ring {where} {self.used}/{self.size} bytes{' closed' if self.closed else ''}>"
