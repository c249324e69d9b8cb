/* pool.c: header, u32 links, slabs, in one piece of memory. The free list is a stack: the slab given
 * last is taken first, while it is still in the cache. */
#include <stdbool.h>
#include <string.h>

#include "xds/base.h"
#include "xds/pool.h"

#define LINE 64u

struct xds_pool {
    struct xds_pool_stats stats;
    uint32_t free; /* the first free slab, XDS_POOL_NONE: none */
    uint32_t pad;
    uint64_t data; /* offset of slab 0 from the start of the pool */
};

static size_t round_line(size_t n)
{
    return (n + LINE - 1) & ~(size_t)(LINE - 1);
}

static size_t data_offset(uint32_t slabs)
{
    return round_line(round_line(sizeof(struct xds_pool)) + (size_t)slabs * sizeof(uint32_t));
}

static uint32_t *links(const struct xds_pool *p)
{
    return (uint32_t *)((char *)p + round_line(sizeof(struct xds_pool)));
}

size_t xds_pool_size(uint32_t slabs, uint32_t slab_bytes)
{
    if (!slabs || slabs >= XDS_POOL_TAKEN || !slab_bytes || slab_bytes > (1u << 30))
        return 0;
    return data_offset(slabs) + (size_t)slabs * round_line(slab_bytes);
}

static void poison(struct xds_pool *p, uint32_t slab)
{
#ifdef XDS_AUDIT
    memset(xds_pool_at(p, slab), XDS_POOL_POISON, p->stats.slab_bytes);
#else
    (void)p, (void)slab;
#endif
}

int xds_pool_init(void *mem, uint32_t slabs, uint32_t slab_bytes)
{
    if (!xds_pool_size(slabs, slab_bytes) || ((uintptr_t)mem & (LINE - 1)))
        return XDS_ECONFIG;
    struct xds_pool *p = mem;
    memset(p, 0, sizeof(*p));
    p->stats.slabs = slabs;
    p->stats.slab_bytes = (uint32_t)round_line(slab_bytes);
    p->data = data_offset(slabs);
    for (uint32_t i = 0; i < slabs; i++) {
        links(p)[i] = i + 1 < slabs ? i + 1 : XDS_POOL_NONE;
        poison(p, i);
    }
    return 0;
}

uint32_t xds_pool_take(struct xds_pool *p)
{
    const uint32_t slab = p->free;
    if (slab == XDS_POOL_NONE) {
        p->stats.empty++;
        return XDS_POOL_NONE;
    }
    p->free = links(p)[slab];
    links(p)[slab] = XDS_POOL_TAKEN;
    p->stats.takes++;
    if (++p->stats.taken > p->stats.taken_max)
        p->stats.taken_max = p->stats.taken;
    return slab;
}

int xds_pool_give(struct xds_pool *p, uint32_t slab)
{
    if (slab >= p->stats.slabs || links(p)[slab] != XDS_POOL_TAKEN) {
        p->stats.refused++;
        return XDS_ESTATE;
    }
    poison(p, slab);
    links(p)[slab] = p->free;
    p->free = slab;
    p->stats.gives++;
    p->stats.taken--;
    return 0;
}

void *xds_pool_at(struct xds_pool *p, uint32_t slab)
{
    return slab < p->stats.slabs ? (char *)p + p->data + (size_t)slab * p->stats.slab_bytes : NULL;
}

void xds_pool_stats(const struct xds_pool *p, struct xds_pool_stats *out)
{
    *out = p->stats;
}

int xds_pool_audit(const struct xds_pool *p)
{
    uint32_t seen = 0, taken = 0;
    for (uint32_t i = p->free; i != XDS_POOL_NONE; i = links(p)[i], seen++) {
        if (i >= p->stats.slabs)
            return 1; /* a link out of the pool, or to a slab that has an owner */
        if (seen == p->stats.slabs)
            return 2; /* a circle */
    }
    for (uint32_t i = 0; i < p->stats.slabs; i++)
        taken += links(p)[i] == XDS_POOL_TAKEN;
    if (taken != p->stats.taken || seen + taken != p->stats.slabs)
        return 3; /* a slab in neither place */
    if (p->stats.takes - p->stats.gives != taken)
        return 4;
    return 0;
}
