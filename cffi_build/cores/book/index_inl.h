/* index_inl.h: order id -> node. Buckets of one cache line: seven tags, seven nodes, and how many ids
 * that belong here or before had to go on past it, so that a removal leaves no tombstone and moves
 * nothing, and an absent id is known after one line unless something went on.
 *
 * Four neighbouring ids have one home: venues count upwards, and what came lately is what is touched
 * next. Half as many buckets as orders, or more: a quarter of the room is used at most.
 */
#ifndef XDSI_BOOK_INDEX_H
#define XDSI_BOOK_INDEX_H

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "book.h"

#define LANES   7
#define NO_SLOT 0xffffffffu

struct bucket {
    uint32_t tag[LANES]; /* 0: empty */
    uint32_t passed;
    uint32_t node[LANES];
    uint32_t unused;
};

_Static_assert(sizeof(struct bucket) == 64, "a bucket is one cache line");

struct home {
    uint32_t bucket, tag;
};

static inline struct home home_of(const struct xds_books *b, uint64_t id)
{
    uint64_t x = (id >> 2) * 0x9e3779b97f4a7c15u;
    uint32_t tag = (uint32_t)(x >> 16) + (uint32_t)(id & 3) * 0x9e3779b2u;
    return (struct home){(uint32_t)((x >> 32) ^ x) & b->mask, tag | 1};
}

/* A bit for each lane that has the tag. */
static inline unsigned lanes_with(const struct bucket *k, uint32_t tag)
{
#ifdef __SSE2__
    __m128i t = _mm_set1_epi32((int)tag);
    __m128i a = _mm_cmpeq_epi32(t, _mm_load_si128((const __m128i *)k->tag));
    __m128i c = _mm_cmpeq_epi32(t, _mm_load_si128((const __m128i *)(k->tag + 4)));
    return ((unsigned)_mm_movemask_ps(_mm_castsi128_ps(a)) | (unsigned)_mm_movemask_ps(_mm_castsi128_ps(c))
                                                                 << 4) &
           0x7f;
#else
    unsigned found = 0;
    for (unsigned i = 0; i < LANES; i++) {
        found |= (unsigned)(k->tag[i] == tag) << i;
    }
    return found;
#endif
}

/* The slot (bucket * 8 + lane) of an id, or NO_SLOT. */
static inline uint32_t index_find(const struct xds_books *b, uint64_t id, struct home h)
{
    uint32_t at = h.bucket;
    for (uint32_t tries = 0; tries <= b->mask; tries++) {
        const struct bucket *k = &b->buckets[at];
        for (unsigned found = lanes_with(k, h.tag); found; found &= found - 1) {
            unsigned lane = (unsigned)__builtin_ctz(found);
            if (b->nodes[k->node[lane]].id == id) {
                return at * 8 + lane;
            }
        }
        if (!k->passed) {
            return NO_SLOT;
        }
        at = (at + 1) & b->mask;
    }
    return NO_SLOT;
}

static inline uint32_t index_node(const struct xds_books *b, uint32_t slot)
{
    return b->buckets[slot >> 3].node[slot & 7];
}

/* The id is not there, and there is room: seven lanes for each half of an order. */
static inline void index_put(struct xds_books *b, struct home h, uint32_t node)
{
    uint32_t at = h.bucket;
    unsigned empty;
    while (!(empty = lanes_with(&b->buckets[at], 0))) {
        b->buckets[at].passed++;
        at = (at + 1) & b->mask;
    }
    unsigned lane = (unsigned)__builtin_ctz(empty);
    b->buckets[at].tag[lane] = h.tag;
    b->buckets[at].node[lane] = node;
}

static inline void index_drop(struct xds_books *b, struct home h, uint32_t slot)
{
    for (uint32_t at = h.bucket; at != slot >> 3; at = (at + 1) & b->mask) {
        b->buckets[at].passed--;
    }
    b->buckets[slot >> 3].tag[slot & 7] = 0;
    b->buckets[slot >> 3].node[slot & 7] = 0;
}

#endif
