"""A tape of records in shared memory: one writer that never waits, any number of readers.

Each reader has a cursor of its own. Who falls a whole tape behind goes on at the oldest record that is
safe and is told how many records it lost; what it is given is whole. The layout is that of
``cffi_build/xds/tape.md``, and ``tape_reader_inl.h`` beside it a reader for C and C++.
(:class:`xdpstack.ring.Ring` is the other promise: one reader, nothing lost, a full ring says so.)
"""

from __future__ import annotations

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
from xdpstack.clock import tai_ns
from xdpstack.closing import Closing
from xdpstack.describe import describe, described
from xdpstack.errors import CapacityError, ConfigError, LocalProtocolError, RemoteProtocolError, SetupError
from xdpstack.ring import need_hugetlbfs
from xdpstack.stats import process_start
from xdpstack.waking import follow

__all__ = ["Tape", "TapeBatch", "TapeInfo", "TapeReader", "TapeRecord", "behind", "make_tape"]

_HEAD = int(ffi.sizeof("struct xds_tape_record"))
_next = lib.xds_tape_next
_VIEWS = 1024
"""Reads of so many records or fewer are given by a view that was made once."""


class TapeRecord(NamedTuple):
    """One record: ``number`` from 1 on, the writer's ``kind``, ``data`` (uint8) until the next read."""

    number: int
    kind: int
    data: np.ndarray[Any, Any]


class TapeBatch:
    """What one read gave: ``lost`` records are missing before the first of it.

    Its arrays are views of the reader's own copy, whole for good but overwritten by the next read.
    """

    __slots__ = ("_count", "_length", "_reader", "_stride", "lost")

    def __init__(self, reader: TapeReader, count: int, stride: int, length: int, lost: int) -> None:
        self._reader = reader
        self._count = count
        self._stride = stride
        self._length = length
        self.lost = lost

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[TapeRecord]:
        at = 0
        for _ in range(self._count):
            record = self.at(at)
            yield record
            at += _HEAD + (len(record.data) + 7) // 8 * 8

    def at(self, place: int) -> TapeRecord:
        """The record that begins so many bytes into what was read."""
        memory = self._reader._room
        number, sizes = memory[place : place + _HEAD].view(np.uint64).tolist()
        length = sizes & 0xFFFFFFFF
        return TapeRecord(number, sizes >> 32, memory[place + _HEAD : place + _HEAD + length])

    def array(self, form: Any = None) -> np.ndarray[Any, Any]:
        """Every record as one structured array, no copy; ``form`` is a dtype, else the tape's own.

        LocalProtocolError where the records differ in length or are not of the dtype's.
        """
        if form is None:
            rows = self._reader._rows
            if rows is None:
                raise LocalProtocolError("the tape has no dtype of its own: name one")
            if (self._length == rows.itemsize and self._stride) or not self._count:
                return self._reader._first(self._count)
            form = rows.dtype
        kind = np.dtype(form)
        if not self._count:
            return np.empty(0, kind)
        if not self._stride or self._length != kind.itemsize:
            raise LocalProtocolError(
                f"records of {f'{self._length} bytes' if self._stride else 'several lengths'} are no array "
                f"of {kind.itemsize} bytes each"
            )
        return np.ndarray((self._count,), kind, self._reader._room, _HEAD, (self._stride,))


class TapeInfo(NamedTuple):
    """A tape from outside: sizes in bytes, ``written`` records, ``state`` alive, closed, dead or idle."""

    path: Path
    bytes: int
    record_len: int
    dtype: np.dtype[Any] | None
    created_ns: int
    writer: int
    state: str
    written: int
    readers: list[dict[str, Any]]
    """Of each: ``name``, ``pid``, ``lag`` in bytes, ``lag_records`` (None: it was just lapped and does not
    know where it is), ``lost`` records, ``laps``."""

    @classmethod
    def read(cls, path: Path | str) -> TapeInfo:
        """Look at a tape without attaching; SetupError where there is none."""
        path = Path(path)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SetupError(f"open {path}", error.strerror or "", errno=error.errno) from None
        try:
            size = os.fstat(fd).st_size
            if size < lib.XDS_TAPE_HEADER:
                raise SetupError(f"open {path}", "not a tape: too short")
            with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
                head = ffi.new("struct xds_tape *")
                ffi.memmove(head, memory, lib.XDS_TAPE_HEADER)
        except (OSError, ValueError) as error:
            if isinstance(error, SetupError):
                raise
            raise SetupError(f"open {path}", f"not a tape: {error}") from None
        finally:
            os.close(fd)
        _sound(head, size, path)
        return cls._of(path, head)

    @classmethod
    def _of(cls, path: Path, head: Any) -> TapeInfo:
        alive = _alive(head.writer_pid, head.writer_start)
        readers = [
            {
                "name": ffi.string(slot.name, 16).decode(errors="replace"),
                "pid": int(slot.pid),
                "lag": max(0, int(head.tail) - int(slot.cursor)),
                "lag_records": _records_behind(head, int(slot.cursor), int(slot.next)),
                "lost": int(slot.lost),
                "laps": int(slot.laps),
            }
            for slot in head.slots
            if _alive(slot.pid, slot.start)
        ]
        state = "closed" if head.closed else "alive" if alive else "dead" if head.writer_pid else "idle"
        return cls(
            path=path,
            bytes=int(head.bytes),
            record_len=int(head.record_len),
            dtype=_form(head),
            created_ns=int(head.created_ns),
            writer=int(head.writer_pid) if alive else 0,
            state=state,
            written=int(head.written),
            readers=readers,
        )


def _records_behind(tape: Any, cursor: int, number: int) -> int | None:
    """Records from a reader's place on; ``number``: of the one there, 0 unknown. None: it has been lapped and
    does not know yet where it is, and records differ in length."""
    waits = max(0, int(tape.tail) - cursor)
    if not waits or number:
        return max(0, int(tape.written) + 1 - number) if waits else 0
    stride = (_HEAD + int(tape.record_len) + 7) & ~7
    return min(waits // stride, int(tape.written)) if tape.record_len else None


def behind(reader: dict[str, Any]) -> str:
    """How far one of ``readers`` is behind, in words."""
    records, size = reader["lag_records"], reader["lag"]
    return f"{size:,} bytes behind" if records is None else f"{records:,} records ({size:,} bytes) behind"


def make_tape(
    path: Path | str,
    bytes: int = lib.XDS_TAPE_BYTES,
    *,
    dtype: Any = None,
    mode: int = 0o600,
    owner: str | int | None = None,
    group: str | int | None = None,
    huge: bool = False,
) -> None:
    """Make an empty tape at ``path``, which must not exist; nobody is its writer yet.

    ``dtype``: what each record is, kept in the tape. ``huge``: for a path in a hugetlbfs, in pages of 2 MiB.
    Who may not write the file (``mode``) can read it, unseen by others. SetupError, ConfigError.
    """
    path, form = Path(path), None if dtype is None else np.dtype(dtype)
    header = int(lib.XDS_TAPE_HEADER_HUGE if huge else lib.XDS_TAPE_HEADER)
    least = 2 << 20 if huge else mmap.PAGESIZE
    if bytes < least or bytes & (bytes - 1):
        raise ConfigError(f"a tape has a power of two of bytes, {least} at least, not {bytes}")
    partial = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"make {partial}", error.strerror or "", errno=error.errno) from None
    try:
        if huge:
            need_hugetlbfs(fd, path)
        os.posix_fallocate(fd, 0, header + bytes)
        memory = _map(fd, header, bytes, 2, path)
        try:
            _init(memory, header, bytes, form)
        finally:
            lib.xds_tape_unmap(memory, header, bytes)
        if owner is not None:
            shutil.chown(partial, user=owner)
        if group is not None:
            shutil.chown(partial, group=group)
        os.chmod(partial, mode)
        os.link(partial, path)  # whole or not at all, and never over somebody else's
    except LookupError as error:
        raise SetupError(f"make {path}", str(error)) from None
    except SetupError:
        raise
    except OSError as error:
        raise SetupError(f"make {path}", error.strerror or str(error), errno=error.errno) from None
    finally:
        os.close(fd)
        partial.unlink(missing_ok=True)


class Tape(Closing):
    """The writer's side. ``Tape()`` is private to this process, ``create`` and ``open`` share one by path."""

    def __init__(self, bytes: int = lib.XDS_TAPE_BYTES, *, dtype: Any = None) -> None:
        """Make a private tape; :meth:`reader` gives readers of it, for threads of this process."""
        if bytes < mmap.PAGESIZE or bytes & (bytes - 1):
            raise ConfigError(f"a tape has a power of two of bytes, a page at least, not {bytes}")
        header = int(lib.XDS_TAPE_HEADER)
        fd = os.memfd_create("xdpstack-tape", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, header + bytes)
            memory = _map(fd, header, bytes, 2, Path("a private tape"))
            _init(memory, header, bytes, None if dtype is None else np.dtype(dtype))
            self._adopt(fd, memory, header, bytes, None)
        except BaseException:
            os.close(fd)
            raise

    def _adopt(self, fd: int, memory: Any, header: int, size: int, path: Path | None) -> None:
        self.path, self.size, self.closed = path, size, False
        self._fd = fd
        self._memory = ffi.gc(memory, lambda at: lib.xds_tape_unmap(at, header, size), size)
        self.pointer: Any = ffi.cast("struct xds_tape *", memory)
        self._writer = ffi.new("struct xds_tape_writer *")
        self._room = ffi.new("void **")
        self._claimed = 0
        pid = os.getpid()
        code = lib.xds_tape_attach_writer(self._writer, self.pointer, pid, process_start(pid) or 0)
        if code < 0:
            raise SetupError(
                f"write to {path or 'a tape'}", "its offsets contradict each other", "make it anew"
            )

    @classmethod
    def create(cls, path: Path | str, bytes: int = lib.XDS_TAPE_BYTES, **options: Any) -> Self:
        """:func:`make_tape`, and become its writer."""
        make_tape(path, bytes, **options)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Become the writer of a tape; SetupError while a live process is it. Numbers of records go on."""
        path = Path(path)
        fd, header, size = _open(path, os.O_RDWR)
        try:
            memory = _map(fd, header, size, 2, path)
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                head = ffi.cast("struct xds_tape *", memory)
                if _alive(head.writer_pid, head.writer_start):
                    raise SetupError(f"write to {path}", f"process {head.writer_pid} is its writer")
                tape = cls.__new__(cls)
                tape._adopt(fd, memory, header, size, path)
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
        except BaseException:
            os.close(fd)
            raise
        return tape

    def reader(self, name: str = "", *, oldest: bool = False, room: int = 1 << 20) -> TapeReader:
        """A reader of this tape, from the newest record on; ``oldest``: from the oldest that is whole."""
        return TapeReader.open(self.path or f"/proc/self/fd/{self._fd}", name, oldest=oldest, room=room)

    def write(self, data: Any, kind: int = 0) -> None:
        """Copy one record in. CapacityError: more than a quarter of the tape, or not the tape's length."""
        source = ffi.from_buffer("char[]", data)
        self._wrote(lib.xds_tape_write(self._writer, kind, source, len(source)), len(source))

    def write_many(self, records: np.ndarray[Any, Any], kind: int = 0) -> None:
        """A record for each element of an array, published together."""
        rows = np.ascontiguousarray(records)
        if rows.size:
            source = ffi.from_buffer("char[]", rows.view(np.uint8).reshape(-1))
            self._wrote(
                lib.xds_tape_write_many(self._writer, kind, source, rows.itemsize, rows.size), rows.itemsize
            )

    def claim(self, length: int) -> np.ndarray[Any, Any]:
        """Room for ``length`` bytes to fill in place, then ``commit``."""
        self._wrote(lib.xds_tape_claim(self._writer, length, self._room), length)
        self._claimed = length
        return np.frombuffer(ffi.buffer(self._room[0], length), np.uint8) if length else np.empty(0, np.uint8)

    def commit(self, kind: int = 0, length: int | None = None) -> None:
        """Publish the claimed record, or only its first ``length`` bytes."""
        wanted = self._claimed if length is None else length
        code = lib.xds_tape_commit(self._writer, kind, wanted)
        if code == lib.XDS_ESTATE:
            raise LocalProtocolError(f"commit of {wanted} bytes: nothing that long was claimed")
        self._wrote(code, wanted)

    def abort(self) -> None:
        """Give the claim up."""
        lib.xds_tape_abort(self._writer)

    def _wrote(self, code: int, length: int) -> None:
        if code == lib.XDS_ECAPACITY:
            fixed = int(self.pointer.record_len)
            why = (
                f"has records of {fixed} bytes" if fixed else f"of {self.size} bytes takes a quarter of that"
            )
            raise CapacityError(f"a record of {length} bytes: the tape {why}")
        if code == lib.XDS_ESTATE:
            raise LocalProtocolError("another record is being filled: commit or abort it first")

    @property
    def written(self) -> int:
        """Records since the tape was made, other writers' too."""
        return int(self.pointer.written)

    def finish(self) -> None:
        """Say that no more will come: a reader that has read everything sees the end."""
        lib.xds_tape_close(self.pointer)

    def close(self, *, unlink: bool = False) -> None:
        """Leave the side; ``unlink`` finishes it and removes the file too."""
        if self.closed:
            return
        self.closed = True
        if unlink or not self.path:
            self.finish()
        self.pointer.writer_pid = 0
        os.close(self._fd)
        if unlink and self.path:
            self.path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<Tape {self.path or 'private'} {self.written} records{' closed' if self.closed else ''}>"


class TapeReader(Closing):
    """A reader with a cursor of its own; one thread at a time may use it."""

    def __init__(
        self, memory: Any, header: int, size: int, path: Path, slot: Any, *, oldest: bool, room: int
    ):
        self.path, self.size, self.closed = path, size, False
        self._memory = ffi.gc(memory, lambda at: lib.xds_tape_unmap(at, header, size), size)
        self.pointer: Any = ffi.cast("struct xds_tape *", memory)
        self._slot = slot
        self._reader = ffi.new("struct xds_tape_reader *")
        lib.xds_tape_attach_reader(
            self._reader, self.pointer, slot, lib.XDS_TAPE_OLDEST if oldest else lib.XDS_TAPE_NEWEST
        )
        self._room = np.empty(max(room, size // 4) // 8 * 8, np.uint8)
        self._to = ffi.from_buffer("char[]", self._room)
        self._reader.room, self._reader.room_bytes = self._to, self._room.size
        first = ffi.offsetof("struct xds_tape_reader", "lost") // 8
        self._figures = np.frombuffer(ffi.buffer(self._reader), np.uint64)[first : first + 4]
        self._lost = 0
        self.dtype = _form(self.pointer)
        self._rows: np.ndarray[Any, Any] | None = None
        self._views: dict[int, np.ndarray[Any, Any]] = {}
        self._typed = ffi.new("struct xds_tape_reader *")  # without room: whoever asks for rows is refused
        if self.dtype is not None:  # every batch is the beginning of this
            stride = _HEAD + (self.dtype.itemsize + 7) // 8 * 8
            self._rows = np.ndarray((self._room.size // stride,), self.dtype, self._room, _HEAD, (stride,))
            self._typed = self._reader

    @classmethod
    def open(
        cls, path: Path | str, name: str = "", *, oldest: bool = False, room: int = 1 << 20
    ) -> TapeReader:
        """Attach from the newest record on, or from the ``oldest`` that is whole.

        ``room``: bytes that one read can give. Others see the reader by ``name`` (15 bytes), with its lag;
        who may not write the file reads unseen. SetupError: no tape, or 16 live readers.
        """
        path = Path(path)
        seen = True
        try:
            fd, header, size = _open(path, os.O_RDWR)
        except SetupError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise
            seen = False
            fd, header, size = _open(path, os.O_RDONLY)
        try:
            memory = _map(fd, header, size, 1 if seen else 0, path)
            slot = _take_slot(fd, ffi.cast("struct xds_tape *", memory), name, path) if seen else ffi.NULL
        finally:
            os.close(fd)
        return cls(memory, header, size, path, slot, oldest=oldest, room=room)

    def read(self) -> TapeBatch:
        """Everything that waits, as far as there is room for it; an empty batch when nothing does.

        EOFError: all was read and the writer has finished. RemoteProtocolError: this is no tape any more.
        """
        count = _next(self._reader)
        if count < 0:
            raise self._ended(count)
        total, _, stride, length = self._figures.tolist()
        lost = total - self._lost
        self._lost = total
        return TapeBatch(self, count, stride, length, lost)

    def rows(self) -> np.ndarray[Any, Any]:
        """What waits as one array of the tape's dtype, the same as ``read().array()`` in half its time.

        ``lost`` of the reader grows by what is missing before it. The next read overwrites it, and one of the
        same length gives the same view. LocalProtocolError: the tape has no dtype.
        """
        count = _next(self._typed)
        try:
            return self._views[count]
        except KeyError:
            return self._first(count)

    def _first(self, count: int) -> np.ndarray[Any, Any]:
        """The first records of what was read, or what a code of ``xds_tape_next`` means."""
        if count < 0:
            raise self._ended(count)
        rows = self._views.get(count)
        if rows is None:
            assert self._rows is not None
            rows = self._rows[:count]
            if count <= _VIEWS:
                self._views[count] = rows
        return rows

    def _ended(self, code: int) -> Exception:
        if code == -errno.EPIPE:
            return EOFError("the writer has finished")
        if code == lib.XDS_ESTATE:
            return LocalProtocolError(
                "the reader is closed" if self.closed else "the tape has no dtype of its own"
            )
        return RemoteProtocolError(f"{self.path} is broken: {names_of_code(code)}")

    def wait(self, timeout: float) -> bool:
        """Sleep until something waits or the tape is finished, at most ``timeout`` s; False: neither."""
        return bool(lib.xds_tape_wait(self._reader, int(timeout * 1e9)))

    def batches(
        self, *, busy: bool = False, on_writer: Callable[[bool], None] | None = None
    ) -> AsyncIterator[TapeBatch]:
        """Batches as they come, until the writer finishes. ``busy``: poll each turn of the loop, never sleep.

        ``on_writer`` is called with False when no writer is found to live (within 0.1 s of its death), with
        True when there is one again.
        """
        return follow(self.read, self.wait, lambda: self.writer_alive, busy=busy, on_writer=on_writer)

    @property
    def lost(self) -> int:
        """Records that were overwritten before this reader came to them."""
        return int(self._reader.lost)

    @property
    def laps(self) -> int:
        """How often the writer came round."""
        return int(self._reader.laps)

    @property
    def lag(self) -> int:
        """Bytes written and not read yet, with headers and padding."""
        return max(0, int(self.pointer.tail) - int(self._reader.cursor))

    @property
    def lag_records(self) -> int | None:
        """Records written and not read yet; None: just lapped, see :class:`TapeInfo`."""
        return _records_behind(self.pointer, int(self._reader.cursor), int(self._reader.next))

    @property
    def writer_alive(self) -> bool:
        """Whether the process that attached as the writer still runs."""
        return _alive(self.pointer.writer_pid, self.pointer.writer_start)

    def close(self) -> None:
        """Give the slot back."""
        if not self.closed:
            self.closed = True
            self._reader.room = ffi.NULL  # what is called from now on is refused
            if self._slot:
                self._slot.pid = 0

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<TapeReader {self.path} {self.lag} bytes behind, {self.lost} lost{state}>"


# -- the segment ----------------------------------------------------------------------------------------


def _alive(pid: int, start: int) -> bool:
    return bool(pid) and process_start(int(pid)) == int(start)


def _open(path: Path, flags: int) -> tuple[int, int, int]:
    """A descriptor, the header's and the data's bytes of a sound tape."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise SetupError(f"open {path}", error.strerror or "", errno=error.errno) from None
    try:
        size = os.fstat(fd).st_size
        if size < lib.XDS_TAPE_HEADER:
            raise SetupError(f"open {path}", "not a tape: too short")
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            head = ffi.new("struct xds_tape *")
            ffi.memmove(head, memory, lib.XDS_TAPE_HEADER)
        _sound(head, size, path)
    except BaseException:
        os.close(fd)
        raise
    return fd, int(head.header_bytes), int(head.bytes)


def _sound(head: Any, size: int, path: Path) -> None:
    code = lib.xds_tape_check(head, size)
    if code < 0:
        raise SetupError(f"open {path}", f"not a tape of this version and byte order ({names_of_code(code)})")


def _map(fd: int, header: int, size: int, may: int, path: Path) -> Any:
    out = ffi.new("void **")
    code = lib.xds_tape_map(fd, header, size, may, out)
    if code < 0:
        reason = os.strerror(-code) if code > -4096 else names_of_code(code)
        raise SetupError(f"map {path}", reason, errno=-code if code > -4096 else None)
    return out[0]


def _take_slot(fd: int, head: Any, name: str, path: Path) -> Any:
    fcntl.flock(fd, fcntl.LOCK_EX)  # between the look and the taking
    try:
        for slot in head.slots:
            if not _alive(slot.pid, slot.start):
                ffi.memmove(ffi.addressof(slot), bytes(ffi.sizeof("struct xds_tape_slot")), 128)
                slot.name = (name or f"pid {os.getpid()}").encode()[:15]
                slot.start = process_start(os.getpid()) or 0
                slot.pid = os.getpid()
                return ffi.addressof(slot)
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
    raise SetupError(f"read {path}", f"it has {len(head.slots)} live readers, and no slot for more")


def _init(memory: Any, header: int, size: int, form: np.dtype[Any] | None) -> None:
    text = describe(form)
    length = form.itemsize if form is not None else 0
    code = lib.xds_tape_init(memory, header, size, length, tai_ns(), text.encode())
    if code == lib.XDS_ECONFIG:
        raise ConfigError(
            f"a record of {length} bytes described in {len(text)} characters: a tape of {size} bytes takes "
            f"a quarter of that and {lib.XDS_TAPE_TEXT - 1} characters"
        )
    check(code, "make a tape")


def _form(head: Any) -> np.dtype[Any] | None:
    """The dtype that the tape describes; None where it has none or one that is not this long."""
    form = described(ffi.string(head.text, 1024))
    return form if form is not None and form.itemsize == head.record_len else None
