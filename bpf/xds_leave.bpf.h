/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * xds_leave.bpf.h: the one door: verdicts, counters, the stamp before a redirected frame.
 */
#ifndef XDS_LEAVE_BPF_H
#define XDS_LEAVE_BPF_H

#include "xds_maps.bpf.h"

/* ---- Leaving ------------------------------------------------------------------------------- */

/* The number of the lowest bit that is set (de Bruijn multiplication: BPF has no such instruction). */
static const uint8_t bit_number[64] = {
    0,  1,  48, 2,  57, 49, 28, 3,  61, 58, 50, 42, 38, 29, 17, 4,  62, 55, 59, 36, 53, 51,
    43, 22, 45, 39, 33, 30, 24, 18, 12, 5,  63, 47, 56, 27, 60, 41, 37, 16, 54, 35, 52, 21,
    44, 32, 23, 11, 46, 26, 40, 15, 34, 20, 31, 10, 25, 14, 19, 9,  13, 8,  7,  6,
};

static __always_inline uint32_t lowest(uint64_t bits)
{
    return bit_number[((bits & -bits) * 0x03f79d71b4cb0a89) >> 58];
}

static __always_inline void count(void *map, uint32_t index, uint64_t bytes)
{
    struct xds_count *c = bpf_map_lookup_elem(map, &index);
    if (c) {
        c->packets++;
        c->bytes += bytes;
    }
}

static __always_inline int leave(int verdict, enum xds_reason reason, uint64_t bytes)
{
    uint32_t zero = 0;
    struct xds_reason_counts *c = bpf_map_lookup_elem(&xds_reasons, &zero);
    if (c && reason < XDS_REASONS) {
        c->by_reason[reason].packets++;
        c->by_reason[reason].bytes += bytes;
    }
    return verdict;
}

/* Show a refused frame to the reader of the tap. Out of line: refused frames pay for the call, and
 * only while somebody looks. */
__noinline int xds_tell(struct xdp_md *ctx, uint32_t reason, uint32_t rule)
{
    uint32_t zero = 0;
    struct xds_tap *tap = bpf_map_lookup_elem(&xds_tap, &zero);
    if (!tap)
        return 0;
    uint64_t now = bpf_ktime_get_tai_ns();
    if (now > tap->until_ns) {
        tap->until_ns = 0; /* its reader is gone */
        return 0;
    }
    if (tap->every > 1 && bpf_get_prandom_u32() % tap->every)
        return 0;
    uint64_t length = bpf_xdp_get_buff_len(ctx);
    struct xds_drop drop = {
        .ns = now, .length = length, .queue = ctx->rx_queue_index, .rule = rule, .reason = reason};
    if (length > XDS_DROP_BYTES)
        length = XDS_DROP_BYTES;
    bpf_perf_event_output(ctx, &xds_dropped, BPF_F_CURRENT_CPU | length << 32, &drop, sizeof(drop));
    return 0;
}

/* Leave with a frame that was not taken as its rule, or the packet itself, wanted. */
static __always_inline int refuse(struct xdp_md *ctx, int verdict, enum xds_reason reason, uint16_t rule,
                                  uint64_t bytes)
{
    uint32_t zero = 0;
    const struct xds_tap *tap = bpf_map_lookup_elem(&xds_tap, &zero);
    if (tap && tap->until_ns)
        xds_tell(ctx, reason, rule);
    return leave(verdict, reason, bytes);
}

/* Where the stamp comes from: a constant of each entry, so that what it does not need is not compiled. */
enum stamping {
    STAMP_HOOK,   /* the clock, at the hook                                                              */
    STAMP_DRIVER, /* the NIC's own time where the driver gives it, else the clock                        */
    STAMP_NEVER,  /* nothing is written: no helper that moves the packet's start may be in such a program */
};
#define XDS_META_HINTS (XDS_META_HASH | XDS_META_VLAN)

/* What the driver tells of the frame, as far as it was asked for. Returns which it was. */
static __always_inline uint8_t ask(struct xdp_md *ctx, uint64_t *ns, struct xds_rx_hints *hints)
{
    uint32_t wanted = xds_settings.ask;
    uint8_t flags = 0;
    if (wanted & XDS_META_NIC && !bpf_xdp_metadata_rx_timestamp(ctx, ns) && *ns)
        flags |= XDS_META_NIC;
    if (wanted & XDS_META_HASH) {
        enum xdp_rss_hash_type type = XDP_RSS_TYPE_NONE;
        if (!bpf_xdp_metadata_rx_hash(ctx, &hints->hash, &type))
            flags |= XDS_META_HASH;
        hints->hash_type = type;
    }
    if (wanted & XDS_META_VLAN) {
        __be16 tpid = 0;
        if (!bpf_xdp_metadata_rx_vlan_tag(ctx, &tpid, &hints->vlan_tci))
            flags |= XDS_META_VLAN;
        hints->vlan_tpid = bpf_ntohs(tpid);
    }
    return flags;
}

/* Bytes to put before a frame that would end among the last of a chunk. */
static __always_inline uint32_t to_move(uint32_t bytes)
{
    uint32_t row = xds_settings.row;
    if (!row || bytes <= row - XDS_MOVED)
        return 0;
    uint32_t last = bytes % row; /* in the last chunk; 0: all of it */
    return last == 0 || last > row - XDS_MOVED ? XDS_MOVED : 0;
}

/* Write the metadata. 0 where the driver has no room for it. */
static __always_inline int stamp(struct xdp_md *ctx, uint16_t rule, uint32_t bytes, enum stamping how)
{
    uint64_t ns = 0;
    struct xds_rx_hints hints = {};
    uint8_t flags = how == STAMP_DRIVER ? ask(ctx, &ns, &hints) : 0;
    int hinted = how == STAMP_DRIVER && xds_settings.ask & XDS_META_HINTS;
    if (!(flags & XDS_META_NIC))
        ns = bpf_ktime_get_tai_ns();
    uint32_t moved = to_move(bytes);
    if (moved && bpf_xdp_adjust_head(ctx, -XDS_MOVED))
        return 0;
    if (bpf_xdp_adjust_meta(ctx, hinted ? -(XDS_META_LEN + XDS_HINTS_LEN) : -XDS_META_LEN))
        return 0;
    struct xds_rx_meta *meta = (void *)(long)ctx->data_meta;
    if (hinted) {
        struct xds_rx_hints *room = (void *)meta;
        if ((void *)(room + 1) > (void *)(long)ctx->data)
            return 0;
        *room = hints;
        meta = (void *)(room + 1);
    }
    if ((void *)(meta + 1) > (void *)(long)ctx->data)
        return 0;
    meta->rx_ns = ns;
    meta->length = bytes + moved;
    meta->rule = rule;
    meta->flags = moved ? flags | XDS_META_MOVED : flags;
    meta->magic = XDS_META_MAGIC;
    return 1;
}

static __always_inline int redirect(struct xdp_md *ctx, uint32_t group, uint16_t rule, uint64_t bytes,
                                    enum stamping how)
{
    uint32_t queue = ctx->rx_queue_index;
    if (queue >= XDS_QUEUES_MAX)
        return refuse(ctx, XDP_PASS, XDS_REASON_QUEUE_RANGE, rule, bytes);
    uint32_t index = group * XDS_QUEUES_MAX + queue;
    int verdict = bpf_redirect_map(&xds_xsks, index, XDP_PASS);
    if (verdict != XDP_REDIRECT) {
        count(&xds_nosock, index, bytes);
        return refuse(ctx, XDP_PASS, XDS_REASON_NO_SOCKET, rule, bytes);
    }
    if (xds_settings.stamp && (how == STAMP_NEVER || !stamp(ctx, rule, bytes, how)))
        return leave(verdict, XDS_REASON_REDIRECTED_BARE, bytes);
    return leave(verdict, XDS_REASON_REDIRECTED, bytes);
}

static __always_inline int act(struct xdp_md *ctx, struct xds_rule_entry rule, uint64_t bytes,
                               enum stamping how)
{
    if (rule.action == XDS_ACTION_REDIRECT)
        return redirect(ctx, rule.group, rule.id, bytes, how);
    if (rule.action == XDS_ACTION_DROP)
        return refuse(ctx, XDP_DROP, XDS_REASON_DROPPED, rule.id, bytes);
    return leave(XDP_PASS, XDS_REASON_PASSED, bytes);
}

#endif
