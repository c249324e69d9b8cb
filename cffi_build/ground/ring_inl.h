/* ring_inl.h: claim and commit of a ring for C users, and its reader; see xds/ring.h for the rules. */
#ifndef XDS_RING_INL_H
#define XDS_RING_INL_H

#include "xds/ring.h"
#include "xds/ring_reader_inl.h"

void xdsi_ring_wake(struct xds_ring *r);

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

/* The number that goes with the new tail is noted before it: who takes over from a writer that was killed between
 * any two stores finds it there (xds_ring_attach_writer). */
static inline int xdsi_ring_commit(struct xds_ring *r, uint32_t kind, uint32_t len)
{
    const uint64_t need = xdsi_ring_space(len), end = r->tail + need, number = r->written + 1;
    if (!r->claimed || need > r->claimed)
        return XDS_ESTATE;
    struct xds_ring_record *record = (struct xds_ring_record *)xdsi_ring_data(r, r->tail);
    record->len = len;
    record->kind = kind;
    r->claimed = 0;
    __atomic_store_n(&r->noted[number & 1].number, number, __ATOMIC_RELAXED);
    __atomic_store_n(&r->noted[number & 1].tail, end, __ATOMIC_RELEASE);
    __atomic_store_n(&r->tail, end, __ATOMIC_RELEASE);
    __atomic_store_n(&r->written, number, __ATOMIC_RELAXED);
    if (__builtin_expect(__atomic_load_n(&r->sleep, __ATOMIC_RELAXED), 0))
        xdsi_ring_wake(r);
    return 0;
}

#endif
