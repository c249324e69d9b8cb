"""Memory that Python owns and the native core borrows: mapped once, never moved, never grown."""

from __future__ import annotations

import mmap
from typing import Any

from xdpstack._ffi import ffi
from xdpstack.errors import CapacityError, LocalProtocolError

__all__ = ["Arena", "Pointer"]

_HUGE = 2 << 20  # bytes of a huge page on x86-64 and (commonly) ARM64
_CHUNK = 1 << 20


class Arena:
    """Zeroed, 64-byte aligned blocks for one engine's cores, given back all together on close.

    Blocks of a mebibyte or more get a mapping of their own, and ask for transparent huge pages:
    an order book walks memory at random, and pays for each TLB miss.
    """

    def __init__(self) -> None:
        self._maps: list[tuple[mmap.mmap, Any]] = []
        self._chunk: Any = None
        self._used = 0
        self.bytes = 0
        self.closed = False

    def alloc(self, size: int) -> Any:
        """A cdata ``void *`` to ``size`` zeroed bytes, valid until :meth:`close`."""
        size = -(-max(size, 1) // 64) * 64
        if size >= _CHUNK:
            return self._map(size)
        if self._chunk is None or self._used + size > _CHUNK:
            self._chunk, self._used = self._map(_CHUNK), 0
        pointer = ffi.cast("uint8_t *", self._chunk) + self._used
        self._used += size
        return ffi.cast("void *", pointer)

    def _map(self, size: int) -> Any:
        whole = size + (_HUGE if size >= _HUGE else 0)
        try:
            area = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CapacityError(f"cannot map {whole:,} bytes: {reason}") from error
        buffer = ffi.from_buffer(area)
        base = int(ffi.cast("uintptr_t", buffer))
        skip = 0
        if size >= _HUGE:
            area.madvise(mmap.MADV_HUGEPAGE)
            skip = -base % _HUGE
        self._maps.append((area, buffer))
        self.bytes += whole
        return ffi.cast("void *", base + skip)

    def view(self, pointer: Any, size: int) -> memoryview:
        """``size`` bytes at a pointer into the arena. They stay mapped as long as the view, or an array
        over it, lives: after :meth:`close` it is stale, not dangling."""
        at = int(ffi.cast("uintptr_t", pointer))
        for area, buffer in self._maps:
            offset = at - int(ffi.cast("uintptr_t", buffer))
            if 0 <= offset <= len(area) - size:
                return memoryview(area)[offset : offset + size]
        raise LookupError(f"{size} bytes at {at:#x} are not this arena's")

    def close(self) -> None:
        """Unmap all that nobody looks at. Raises BufferError while a view lives; the rest is unmapped by
        a later close, or when the view ends."""
        self.closed = True
        self._chunk, seen = None, []
        for area, buffer in self._maps:
            ffi.release(buffer)
            try:
                area.close()
            except BufferError:
                seen.append((area, ffi.from_buffer(area)))
        self._maps = seen
        if seen:
            raise BufferError(f"{len(seen)} mappings of an engine are still looked at by a numpy view")


class Pointer:
    """An attribute that is a C pointer into the arena of its object (``.arena``). Read after the arena was
    closed it is a LocalProtocolError, where the pointer itself would end the process."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if instance.arena.closed:
            what = type(instance).__name__.lower()
            raise LocalProtocolError(f"this {what}'s engine was closed; take what must outlive it before")
        return instance.__dict__[self._name]

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value
