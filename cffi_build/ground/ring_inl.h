/* ring_inl.h: claim, commit, peek, release for C users; see xds/ring.h for the rules. */
#ifndef XDS_RING_INL_H
#define XDS_RING_INL_H

#include <errno.h>

#include "xds/base.h"
#include "xds/ring.h"

static inline uint8_t *xdsi_ring_data(const struct xds_ring *r, uint64_t offset)
{
    return (uint8_t *)r + XDS_RING_HEADER + (offset & (r->bytes - 1));
}

static inline uint64_t xdsi_ring_space(uint32_t len)
{
    return (sizeof(struct xds_ring_record) + (uint64_t)len + 7) & ~(uint64_t)7;
}

static inline int xdsi_ring_claim(struct xds_ring *r, uint32_t len, void **out)
{
    const uint64_t need = xdsi_ring_space(len);
    if (r->claimed)
        return XDS_ESTATE;
    if (need > r->bytes)
        return XDS_ECAPACITY;
    if (r->tail + need - r->head_seen > r->bytes) {
        r->head_seen = __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
        if (r->tail + need - r->head_seen > r->bytes) {
            __atomic_store_n(&r->refused, r->refused + 1, __ATOMIC_RELAXED);
            return 0;
        }
    }
    r->claimed = need;
    *out = xdsi_ring_data(r, r->tail) + sizeof(struct xds_ring_record);
    return 1;
}

static inline int xdsi_ring_commit(struct xds_ring *r, uint32_t kind, uint32_t len)
{
    const uint64_t need = xdsi_ring_space(len);
    if (!r->claimed || need > r->claimed)
        return XDS_ESTATE;
    struct xds_ring_record *record = (struct xds_ring_record *)xdsi_ring_data(r, r->tail);
    record->len = len;
    record->kind = kind;
    r->claimed = 0;
    __atomic_store_n(&r->written, r->written + 1, __ATOMIC_RELAXED);
    __atomic_store_n(&r->tail, r->tail + need, __ATOMIC_RELEASE);
    return 0;
}

static inline int xdsi_ring_peek(struct xds_ring *r, const struct xds_ring_record **out)
{
    if (r->cursor == r->tail_seen) {
        /* closed before tail: a record committed before the close is never missed */
        const uint32_t closed = __atomic_load_n(&r->closed, __ATOMIC_ACQUIRE);
        r->tail_seen = __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE);
        if (r->cursor == r->tail_seen)
            return closed ? -EPIPE : 0;
        if (r->tail_seen - r->head > r->bytes || r->tail_seen % 8)
            return XDS_EMALFORMED;
    }
    const struct xds_ring_record *record = (const struct xds_ring_record *)xdsi_ring_data(r, r->cursor);
    const uint64_t need = xdsi_ring_space(record->len);
    if (need > r->tail_seen - r->cursor)
        return XDS_EMALFORMED;
    r->cursor += need;
    __atomic_store_n(&r->read, r->read + 1, __ATOMIC_RELAXED);
    *out = record;
    return 1;
}

static inline void xdsi_ring_release(struct xds_ring *r)
{
    if (r->cursor != r->head)
        __atomic_store_n(&r->head, r->cursor, __ATOMIC_RELEASE);
}

#endif
