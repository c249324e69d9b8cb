/* stat_inl.h: the hot part: one writer adds with a plain load and a plain, untorn store. */
#ifndef XDS_STAT_INL_H
#define XDS_STAT_INL_H

#include "xds/stat.h"

static inline void xdsi_stat_add(uint64_t *word, uint64_t n)
{
    __atomic_store_n(word, *word + n, __ATOMIC_RELAXED);
}

static inline void xdsi_stat_set(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

#endif
