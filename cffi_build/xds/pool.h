/* pool.h: a bounded pool of slabs of one size, linked by u32 numbers. For what outlives a turn: copies
 * of packets that wait behind a gap, recordings, reassembly. Pure; take and give are a few instructions.
 *
 * A slab has one owner: giving one that is not taken is refused and counted, always. Built with
 * XDS_AUDIT (make asan), a slab that is given back is poisoned, so that stale use shows at once.
 */
#ifndef XDS_POOL_H
#define XDS_POOL_H

#include <stddef.h>
#include <stdint.h>

#define XDS_POOL_NONE   0xffffffff /* no slab: the pool is empty, or the end of a list of the caller's */
#define XDS_POOL_TAKEN  0xfffffffe /* in links: the slab has an owner                                  */
#define XDS_POOL_POISON 0xdb       /* every byte of a slab given back, with XDS_AUDIT                  */

struct xds_pool_stats {
    uint32_t slabs, slab_bytes;
    uint32_t taken, taken_max; /* now, most ever         */
    uint64_t takes, gives;
    uint64_t empty;   /* takes that found none  */
    uint64_t refused; /* gives of what was not taken, or of no slab of this pool */
};

struct xds_pool;
/* Bytes to provide; slab_bytes is rounded up to cache lines. 0: no such pool. */
size_t xds_pool_size(uint32_t slabs, uint32_t slab_bytes);
/* mem: kept, 64-byte aligned. Returns 0, XDS_ECONFIG. */
int xds_pool_init(void *mem, uint32_t slabs, uint32_t slab_bytes);
/* A slab's number, or XDS_POOL_NONE. Given until xds_pool_give. */
uint32_t xds_pool_take(struct xds_pool *p);
/* Returns 0, XDS_ESTATE: it was not taken. */
int xds_pool_give(struct xds_pool *p, uint32_t slab);
/* The slab's memory, cache-line aligned; NULL for a number that is none of this pool. */
void *xds_pool_at(struct xds_pool *p, uint32_t slab);
void xds_pool_stats(const struct xds_pool *p, struct xds_pool_stats *out);
/* Walk the free list: 0 when every slab is either free once or taken, else the number of the check. */
int xds_pool_audit(const struct xds_pool *p);

#endif
