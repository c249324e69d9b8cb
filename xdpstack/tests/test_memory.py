"""The arena: aligned, zeroed, disjoint, given back together, and only when nobody looks at it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdpstack._ffi import ffi
from xdpstack.errors import CapacityError
from xdpstack.memory import Arena

SIZES = st.one_of(st.integers(0, 300), st.integers(0, 1 << 20), st.sampled_from([1 << 20, (2 << 20) + 1]))


@settings(max_examples=60, deadline=None)
@given(st.lists(SIZES, max_size=20))
def test_blocks_are_aligned_zeroed_and_apart(sizes: list[int]) -> None:
    arena, blocks = Arena(), []
    for number, size in enumerate(sizes):
        pointer = arena.alloc(size)
        at = int(ffi.cast("uintptr_t", pointer))
        assert at % (2 << 20 if size >= 2 << 20 else 64) == 0
        view = ffi.buffer(pointer, size)
        assert not any(view[:64])
        assert not any(view[-64:])
        ffi.memmove(pointer, bytes([number + 1]) * size, size)
        blocks.append((at, size, number))
    for at, size, number in blocks:  # nobody wrote over another
        assert bytes(ffi.buffer(ffi.cast("void *", at), size)) == bytes([number + 1]) * size
    assert arena.bytes >= sum(sizes)
    arena.close()


def test_small_blocks_share_a_mapping() -> None:
    arena = Arena()
    first = int(ffi.cast("uintptr_t", arena.alloc(1)))
    second = int(ffi.cast("uintptr_t", arena.alloc(1)))
    assert second - first == 64
    assert arena.bytes == 1 << 20
    arena.close()


def test_close_gives_the_memory_back_and_is_calm_twice() -> None:
    def mapped() -> int:
        return sum(1 for line in Path("/proc/self/smaps_rollup").read_text().splitlines()) and int(
            Path("/proc/self/statm").read_text().split()[0]
        )

    arena = Arena()
    before = mapped()
    arena.alloc(64 << 20)
    assert mapped() - before >= (64 << 20) // 4096
    arena.close()
    assert mapped() - before < (64 << 20) // 4096
    arena.close()


def test_what_cannot_be_mapped_is_a_bound_with_its_number() -> None:
    arena = Arena()
    for size in (1 << 62, 1 << 70):
        with pytest.raises(CapacityError, match=r"cannot map [\d,]+ bytes"):
            arena.alloc(size)
    arena.alloc(1)  # goes on
    arena.close()


def test_a_view_that_lives_keeps_the_arena_open() -> None:
    arena = Arena()
    arena.alloc(8)
    area, _ = arena._maps[0]
    view = np.frombuffer(area, np.uint8)
    with pytest.raises(BufferError):
        arena.close()
    del view
    arena.close()
