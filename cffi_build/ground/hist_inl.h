/* hist_inl.h: the hot part of the histogram: one bucket, two sums and two bounds. */
#ifndef XDS_HIST_INL_H
#define XDS_HIST_INL_H

#include "xds/hist.h"

static inline unsigned xdsi_hist_bucket(uint64_t ns)
{
    if (ns < (2u << XDS_HIST_SUB_BITS))
        return (unsigned)ns;
    const unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - XDS_HIST_SUB_BITS;
    return (shift << XDS_HIST_SUB_BITS) + (unsigned)(ns >> shift);
}

/* A reader elsewhere must never see half a word, nor wait for a value that sits in a register. */
#define XDSI_HIST_PUT(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

static inline void xdsi_hist_record(struct xds_hist *h, int64_t ns)
{
    if (ns < h->min)
        XDSI_HIST_PUT(h->min, ns);
    if (ns > h->max)
        XDSI_HIST_PUT(h->max, ns);
    uint64_t value = (uint64_t)ns;
    if (__builtin_expect(value >> XDS_HIST_MAX_BITS, 0)) {
        if (ns < 0) {
            XDSI_HIST_PUT(h->below, h->below + 1);
            value = 0;
        } else {
            XDSI_HIST_PUT(h->above, h->above + 1);
        }
    }
    XDSI_HIST_PUT(h->sum, h->sum + value);
    if (value >> XDS_HIST_MAX_BITS)
        value = ((uint64_t)1 << XDS_HIST_MAX_BITS) - 1;
    const unsigned bucket = xdsi_hist_bucket(value);
    XDSI_HIST_PUT(h->buckets[bucket], h->buckets[bucket] + 1);
    XDSI_HIST_PUT(h->count, h->count + 1);
}

/* Several values in a row: buckets at once, the rest when all are in. */
struct xdsi_hist_run {
    struct xds_hist *h;
    uint64_t sum, count;
    int64_t min, max;
};

static inline struct xdsi_hist_run xdsi_hist_begin(struct xds_hist *h)
{
    return (struct xdsi_hist_run){.h = h, .min = h->min, .max = h->max};
}

static inline void xdsi_hist_add(struct xdsi_hist_run *r, int64_t ns)
{
    const unsigned bucket = xdsi_hist_bucket((uint64_t)ns);
    r->min = ns < r->min ? ns : r->min;
    r->max = ns > r->max ? ns : r->max;
    r->sum += (uint64_t)ns;
    r->count++;
    XDSI_HIST_PUT(r->h->buckets[bucket], r->h->buckets[bucket] + 1);
}

static inline void xdsi_hist_end(const struct xdsi_hist_run *r)
{
    XDSI_HIST_PUT(r->h->min, r->min);
    XDSI_HIST_PUT(r->h->max, r->max);
    XDSI_HIST_PUT(r->h->sum, r->h->sum + r->sum);
    XDSI_HIST_PUT(r->h->count, r->h->count + r->count);
}

/* Whether a value has a bucket of its own: what has not is for xdsi_hist_record(). */
static inline int xdsi_hist_fits(int64_t ns)
{
    return !((uint64_t)ns >> XDS_HIST_MAX_BITS);
}

#endif
