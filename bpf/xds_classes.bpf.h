/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * xds_classes.bpf.h: from a key to classes, and from classes to the rules that match (see xds_shared.h).
 */
#ifndef XDS_CLASSES_BPF_H
#define XDS_CLASSES_BPF_H

#include "xds_parse.bpf.h"

/* ---- Classes ------------------------------------------------------------------------------- */

struct classes {
    uint32_t of[XDS_DIMS];
};

static __always_inline uint32_t class_of4(const struct xds_addresses4 *a, uint32_t address)
{
    if (a->hosts) {
        /* The high half of the product is the well-mixed one. */
        uint32_t at = (uint32_t)((address * a->multiplier) >> 40) & a->mask;
        if (at < XDS_BUCKETS_MAX) {
            const struct xds_bucket4 *b = &a->buckets[at];
#pragma unroll
            for (int i = 0; i < XDS_BUCKET_SLOTS; i++)
                if (b->address[i] == address && b->class_id[i])
                    return b->class_id[i];
        }
    }
    /* Branch-free: the sign of start - address - 1 is the mask of the step. */
    uint64_t low = 0;
    if (a->top) {
        uint64_t step = a->top;
        for (int i = 0; i < 12 && step; i++, step >>= 1) {
            uint64_t at = (low + step) & (XDS_RANGES_MAX - 1);
            low += step & (uint64_t)(((int64_t)a->start[at] - (int64_t)address - 1) >> 63);
        }
    }
    return a->class_id[low & (XDS_RANGES_MAX - 1)];
}

static __noinline uint32_t class_of6(const struct xds_addresses6 *a, uint64_t high, uint64_t low)
{
    if (a->hosts) {
        uint64_t mixed = (high ^ (low >> 32) ^ (low << 32)) * a->multiplier;
        uint32_t at = (uint32_t)(mixed >> 40) & a->mask;
        if (at < XDS_BUCKETS_MAX) {
            const struct xds_bucket6 *b = &a->buckets[at];
#pragma unroll
            for (int i = 0; i < XDS_BUCKET_SLOTS; i++)
                if (b->high[i] == high && b->low[i] == low && b->class_id[i])
                    return b->class_id[i];
        }
    }
    uint64_t base = 0;
    if (a->top) {
        uint64_t step = a->top;
        for (int i = 0; i < 12 && step; i++, step >>= 1) {
            uint64_t at = (base + step) & (XDS_RANGES_MAX - 1);
            uint64_t h = a->start_high[at];
            if (h < high || (h == high && a->start_low[at] <= low))
                base += step;
        }
    }
    return a->class_id[base & (XDS_RANGES_MAX - 1)];
}

/* Classes of the dimensions in use; class 0 (every rule) for the others. */
__noinline int xds_classify(struct xds_tables *t, struct key *k, struct classes *c)
{
    if (!t || !k || !c)
        return 0;
    uint32_t used = t->used;
#pragma unroll
    for (int d = 0; d < XDS_DIMS; d++)
        c->of[d] = 0;
    if (k->kind < XDS_KINDS)
        c->of[XDS_DIM_KIND] = t->kind[k->kind];
    if (used & (1 << XDS_DIM_VLAN) && k->vlan < XDS_VLANS)
        c->of[XDS_DIM_VLAN] = t->vlan[k->vlan];
    if (used & (1 << XDS_DIM_VLAN2) && k->vlan2 < XDS_VLANS)
        c->of[XDS_DIM_VLAN2] = t->vlan2[k->vlan2];
    if (used & (1 << XDS_DIM_SPORT) && k->sport < XDS_PORTS)
        c->of[XDS_DIM_SPORT] = t->sport[k->sport];
    if (used & (1 << XDS_DIM_DPORT) && k->dport < XDS_PORTS)
        c->of[XDS_DIM_DPORT] = t->dport[k->dport];
    if (k->family == 4) {
        if (used & (1 << XDS_DIM_SRC))
            c->of[XDS_DIM_SRC] = class_of4(&t->src4, (uint32_t)k->src_low);
        if (used & (1 << XDS_DIM_DST))
            c->of[XDS_DIM_DST] = class_of4(&t->dst4, (uint32_t)k->dst_low);
    } else if (k->family == 6) {
        if (used & (1 << XDS_DIM_SRC))
            c->of[XDS_DIM_SRC] = class_of6(&t->src6, k->src_high, k->src_low);
        if (used & (1 << XDS_DIM_DST))
            c->of[XDS_DIM_DST] = class_of6(&t->dst6, k->dst_high, k->dst_low);
    } else {
        if (used & (1 << XDS_DIM_SRC))
            c->of[XDS_DIM_SRC] = t->no_address[0];
        if (used & (1 << XDS_DIM_DST))
            c->of[XDS_DIM_DST] = t->no_address[1];
    }
    return 0;
}

static __always_inline uint64_t word_of(const struct xds_tables *t, uint32_t class_id, uint32_t words,
                                        uint32_t w)
{
    uint32_t at = class_id * words + w;
    return at < XDS_CLASS_WORDS ? t->word[at] : 0;
}

static __always_inline uint32_t summary_of(const struct xds_tables *t, uint32_t class_id)
{
    return class_id < XDS_CLASSES_MAX ? t->summary[class_id] : 0;
}

/* The rules of word w that allow this key. */
static __always_inline uint64_t allowed(const struct xds_tables *t, const struct classes *c, uint32_t words,
                                        uint32_t w)
{
    uint64_t bits = word_of(t, c->of[0], words, w);
#pragma unroll
    for (int d = 1; d < XDS_DIMS; d++)
        if (t->used & (1 << d))
            bits &= word_of(t, c->of[d], words, w);
    return bits;
}

static __always_inline uint32_t summarise(const struct xds_tables *t, const struct classes *c)
{
    uint32_t bits = summary_of(t, c->of[0]);
#pragma unroll
    for (int d = 1; d < XDS_DIMS; d++)
        if (t->used & (1 << d))
            bits &= summary_of(t, c->of[d]);
    return bits;
}

#endif
