/* clock_inl.h: the hot part of the clock. One counter read, one comparison, one multiplication. */
#ifndef XDS_CLOCK_INL_H
#define XDS_CLOCK_INL_H

#include "xds/clock.h"

static inline uint64_t xdsi_clock_counter(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t count;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(count));
    return count;
#else
    return 0;
#endif
}

static inline int64_t xdsi_clock_at(const struct xds_clock *c, uint64_t counter)
{
    return c->anchor_ns + (int64_t)(((unsigned __int128)(counter - c->anchor) * c->mult) >> 48);
}

int64_t xdsi_clock_slow(struct xds_clock *c); /* a tick is due, or there is no counter */

/* A counter below the anchor can only be another core's, a few counts behind: time stands still. */
static inline int64_t xdsi_clock_now(struct xds_clock *c)
{
    const uint64_t counter = xdsi_clock_counter();
    if (__builtin_expect(counter - c->anchor >= c->due - c->anchor, 0))
        return xdsi_clock_slow(c);
    return xdsi_clock_at(c, counter);
}

#endif
