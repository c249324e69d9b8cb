"""The slab pool against a set, and its audit against damage."""

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xdpstack._ffi import ffi, lib

NONE = lib.XDS_POOL_NONE


def make(slabs=4, slab_bytes=100):
    memory = ffi.new("char[]", lib.xds_pool_size(slabs, slab_bytes) + 64)
    skip = -int(ffi.cast("uintptr_t", memory)) % 64
    pool = ffi.cast("struct xds_pool *", memory + skip)
    assert lib.xds_pool_init(pool, slabs, slab_bytes) == 0
    return pool, memory


def stats(pool):
    out = ffi.new("struct xds_pool_stats *")
    lib.xds_pool_stats(pool, out)
    return out


class Pool(RuleBasedStateMachine):
    """Takes and gives in any order; a slab's bytes stay its owner's until it gives it back."""

    def __init__(self):
        super().__init__()
        self.pool, self.memory = make(5, 65)
        self.taken = {}
        self.count = 0

    @rule()
    def take(self):
        slab = lib.xds_pool_take(self.pool)
        if len(self.taken) == 5:
            assert slab == NONE
            return
        assert slab < 5
        assert slab not in self.taken
        self.count += 1
        mark = bytes([self.count % 256]) * 65
        ffi.memmove(lib.xds_pool_at(self.pool, slab), mark, 65)
        self.taken[slab] = mark

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data):
        slab = data.draw(st.sampled_from(sorted(self.taken)))
        assert bytes(ffi.buffer(lib.xds_pool_at(self.pool, slab), 65)) == self.taken.pop(slab)
        assert lib.xds_pool_give(self.pool, slab) == 0

    @rule(slab=st.one_of(st.integers(0, 7), st.just(NONE)))
    def give_what_nobody_has(self, slab):
        if slab not in self.taken:
            refused = stats(self.pool).refused
            assert lib.xds_pool_give(self.pool, slab) == lib.XDS_ESTATE
            assert stats(self.pool).refused == refused + 1

    @invariant()
    def audit(self):
        assert lib.xds_pool_audit(self.pool) == 0
        assert stats(self.pool).taken == len(self.taken)


TestPool = Pool.TestCase


def test_slabs_are_aligned_and_do_not_overlap():
    pool, _memory = make(4, 100)
    at = [int(ffi.cast("uintptr_t", lib.xds_pool_at(pool, i))) for i in range(4)]
    assert all(a % 64 == 0 for a in at)
    assert [b - a for a, b in itertools.pairwise(at)] == [128] * 3
    assert lib.xds_pool_at(pool, 4) == ffi.NULL


def test_the_slab_given_last_is_taken_first():
    pool, _memory = make()
    lib.xds_pool_take(pool)
    warm = lib.xds_pool_take(pool)
    lib.xds_pool_give(pool, warm)
    assert lib.xds_pool_take(pool) == warm


def test_the_most_ever_taken_and_empty_takes_are_counted():
    pool, _memory = make(2)
    slabs = [lib.xds_pool_take(pool) for _ in range(3)]
    assert slabs[2] == NONE
    for slab in slabs[:2]:
        lib.xds_pool_give(pool, slab)
    s = stats(pool)
    assert (s.taken, s.taken_max, s.empty, s.takes, s.gives, s.slabs, s.slab_bytes) == (0, 2, 1, 2, 2, 2, 128)


@pytest.mark.parametrize(("slabs", "size"), [(0, 64), (4, 0), (NONE, 64), (4, 2**31)])
def test_a_pool_that_cannot_be_is_refused(slabs, size):
    assert lib.xds_pool_size(slabs, size) == 0


def test_memory_off_a_cache_line_is_refused():
    memory = ffi.new("char[]", lib.xds_pool_size(2, 64) + 128)
    skip = -int(ffi.cast("uintptr_t", memory)) % 64 + 8
    assert lib.xds_pool_init(memory + skip, 2, 64) == lib.XDS_ECONFIG


def test_the_audit_finds_a_damaged_free_list():
    pool, memory = make(3)
    skip = -int(ffi.cast("uintptr_t", memory)) % 64
    links = ffi.cast(
        "uint32_t *", memory + skip + 64 * ((ffi.sizeof("struct xds_pool_stats") + 16 + 63) // 64)
    )
    assert [links[i] for i in range(3)] == [1, 2, NONE]
    links[2] = 0
    assert lib.xds_pool_audit(pool) == 2  # a circle
    links[2] = 77
    assert lib.xds_pool_audit(pool) == 1  # out of the pool
    links[2] = NONE
    links[0] = 2
    assert lib.xds_pool_audit(pool) == 3  # slab 1 is lost
