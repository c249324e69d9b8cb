/* ladder.c: the sorted array of one side's levels, and the buddy allocator that its block is from.
 *
 * A block doubles when it is full and halves when under a quarter is used, so the pool, which has
 * four entries a level and one unit a side, is enough but for fragmentation; when it is not, the
 * update is refused and counted (NO_LEVEL_ROOM). Free blocks are linked through the rungs of their
 * first unit: [0] next, [1] previous.
 */
#include <string.h>

#include "book.h"

static void push(struct xds_books *b, uint32_t at, unsigned order)
{
    uint32_t next = b->free_block[order];
    b->rungs[at] = next;
    b->rungs[at + 1] = XDSI_NO_BLOCK;
    if (next != XDSI_NO_BLOCK) {
        b->rungs[next + 1] = at;
    }
    b->free_block[order] = at;
    b->blocks[at >> XDSI_UNIT_SHIFT] = (uint8_t)(order + 1);
}

static void unlink_block(struct xds_books *b, uint32_t at, unsigned order)
{
    uint32_t next = b->rungs[at], prev = b->rungs[at + 1];
    if (next != XDSI_NO_BLOCK) {
        b->rungs[next + 1] = prev;
    }
    if (prev != XDSI_NO_BLOCK) {
        b->rungs[prev] = next;
    } else {
        b->free_block[order] = next;
    }
    b->blocks[at >> XDSI_UNIT_SHIFT] = 0;
}

static uint32_t take(struct xds_books *b, unsigned order)
{
    unsigned from = order;
    while (from <= XDSI_TOP_ORDER && b->free_block[from] == XDSI_NO_BLOCK) {
        from++;
    }
    if (from > XDSI_TOP_ORDER) {
        return XDSI_NO_BLOCK;
    }
    uint32_t at = b->free_block[from];
    unlink_block(b, at, from);
    while (from > order) { /* keep the lower half, give the upper back */
        from--;
        push(b, at + (XDSI_UNIT << from), from);
    }
    return at;
}

static void give(struct xds_books *b, uint32_t at, unsigned order)
{
    while (order < XDSI_TOP_ORDER) {
        uint32_t size = XDSI_UNIT << order;
        uint32_t buddy = at ^ size;
        if ((uint64_t)buddy + size > b->entries || b->blocks[buddy >> XDSI_UNIT_SHIFT] != order + 1) {
            break;
        }
        unlink_block(b, buddy, order);
        at &= ~size;
        order++;
    }
    push(b, at, order);
}

void xdsi_ladders_reset(struct xds_books *b)
{
    memset(b->blocks, 0, b->entries >> XDSI_UNIT_SHIFT);
    for (unsigned i = 0; i <= XDSI_TOP_ORDER; i++) {
        b->free_block[i] = XDSI_NO_BLOCK;
    }
    uint64_t at = b->entries; /* carved from the end, so that low blocks are used first */
    while (at) {
        unsigned order = 0;
        while (order < XDSI_TOP_ORDER && !(at & ((2ull * XDSI_UNIT << order) - 1))) {
            order++;
        }
        at -= (uint64_t)XDSI_UNIT << order;
        push(b, (uint32_t)at, order);
    }
}

static int resize(struct xds_books *b, struct ladder *l, unsigned order)
{
    uint32_t to = take(b, order);
    if (to == XDSI_NO_BLOCK) {
        return 0;
    }
    if (l->count) {
        memcpy(b->keys + to, b->keys + l->block, l->count * sizeof *b->keys);
        memcpy(b->rungs + to, b->rungs + l->block, l->count * sizeof *b->rungs);
        give(b, l->block, l->order);
    }
    l->block = to;
    l->order = (uint8_t)order;
    return 1;
}

int xdsi_ladder_reserve(struct xds_books *b, struct ladder *l)
{
    if (!l->count) {
        return l->block != XDSI_NO_BLOCK || resize(b, l, 0);
    }
    if (l->count < (uint32_t)XDSI_UNIT << l->order) {
        return 1;
    }
    return l->order < XDSI_TOP_ORDER && resize(b, l, l->order + 1u);
}

void xdsi_ladder_insert(struct xds_books *b, struct ladder *l, uint32_t at, int64_t key, uint32_t level)
{
    int64_t *k = b->keys + l->block;
    uint32_t *r = b->rungs + l->block;
    uint32_t move = l->count - at;
    if (move) {
        memmove(k + at + 1, k + at, move * sizeof *k);
        memmove(r + at + 1, r + at, move * sizeof *r);
    }
    k[at] = key;
    r[at] = level;
    l->best = k[l->count++];
}

void xdsi_ladder_remove(struct xds_books *b, struct ladder *l, uint32_t at)
{
    int64_t *k = b->keys + l->block;
    uint32_t *r = b->rungs + l->block;
    uint32_t move = --l->count - at;
    if (move) {
        memmove(k + at, k + at + 1, move * sizeof *k);
        memmove(r + at, r + at + 1, move * sizeof *r);
    }
    if (!l->count) {
        xdsi_ladder_release(b, l);
        return;
    }
    l->best = k[l->count - 1];
    if (l->order && l->count < (uint32_t)XDSI_UNIT << l->order >> 2) {
        resize(b, l, l->order - 1u); /* no room for the copy: it stays as it is */
    }
}

void xdsi_ladder_release(struct xds_books *b, struct ladder *l)
{
    if (l->block != XDSI_NO_BLOCK) {
        give(b, l->block, l->order);
    }
    l->block = XDSI_NO_BLOCK;
    l->count = 0;
    l->order = 0;
    l->by_level = 0;
}
