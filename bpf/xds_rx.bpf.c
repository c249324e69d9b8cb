/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * xds_rx.bpf.c: steer frames into AF_XDP sockets by ordered rules.
 *
 * A frame is parsed into a key; each field of the key is turned into a class (a set of rules) by
 * one table look-up; the AND of the classes names the rules that match (see xds_shared.h). Rules
 * are ordered: the first that passes, drops or redirects ends, `count` only counts.
 *
 * Rules of this file:
 *  - What is not clearly ours goes to the kernel, untouched: no rule, no socket, no sense.
 *  - One door: every frame leaves by leave(), which counts exactly one reason.
 *  - Counters are per CPU and need no atomics: the program does not migrate while it runs.
 *  - All tables are one map value. The program reads the outer map once a frame, so that it sees
 *    the rules before a change or those after it.
 *  - Metadata is written only once a socket is known to be there: a frame that goes on to the
 *    kernel would carry it along, and GRO does not join frames whose metadata differ.
 *
 * Parts: xds_parse (frame to key), xds_classes (key to rules), xds_leave (verdict, counters, stamp, and
 * what is shown of refused frames), xds_maps. Here: deciding.
 *
 * Three programs, one source: xds_rx runs on any driver; xds_rx_meta is bound to one device and asks
 * its driver for the NIC's time stamp, hash and VLAN tag; xds_rx_chain is one of several in libxdp's
 * dispatcher. User space loads one of them. BPF_PROG_TEST_RUN takes xds_rx and xds_rx_chain. Least kernel:
 * 6.1 (bpf_ktime_get_tai_ns); xds_rx_meta: 6.3.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

typedef __u8 uint8_t;
typedef __u16 uint16_t;
typedef __u32 uint32_t;
typedef __u64 uint64_t;
typedef __s64 int64_t;
#include "xds_shared.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile struct xds_settings xds_settings SEC(".rodata.settings") = {.stamp = 1};

#include "xds_classes.bpf.h"
#include "xds_leave.bpf.h"

/* ---- Deciding ------------------------------------------------------------------------------ */

struct walk {
    const struct xds_tables *tables;
    const struct classes *first, *second;
    uint64_t bytes, bits; /* bits: rules of the word in hand that are still to be looked at */
    uint32_t summary;     /* words still to be looked at                                    */
    uint32_t word;
    struct xds_rule_entry found; /* id 0: none yet */
};

/* One step: take the next word in hand, or the next rule of it. Returns 1 at the end. */
static long step(uint32_t index, struct walk *w)
{
    const struct xds_tables *t = w->tables;
    if (!w->bits) {
        if (!w->summary)
            return 1;
        w->word = lowest(w->summary);
        w->summary &= w->summary - 1;
        w->bits = allowed(t, w->first, t->words, w->word) | allowed(t, w->second, t->words, w->word);
        return 0;
    }
    uint32_t at = w->word * 64 + lowest(w->bits);
    w->bits &= w->bits - 1;
    if (at >= XDS_RULES_MAX)
        return 1;
    struct xds_rule_entry rule = t->rule[at];
    count(&xds_rules, rule.id, w->bytes);
    if (rule.action == XDS_ACTION_COUNT)
        return 0;
    w->found = rule;
    return 1;
}

/* Any number of rules, count rules, and a second key. bpf_loop: the verifier looks at step() once. */
static __always_inline struct xds_rule_entry walk(const struct xds_tables *t, const struct classes *first,
                                                  const struct classes *second, uint64_t bytes)
{
    struct walk w = {.tables = t, .first = first, .second = second, .bytes = bytes};
    w.summary = summarise(t, first) | summarise(t, second);
    bpf_loop(XDS_RULES_MAX + XDS_WORDS_MAX, step, &w, 0);
    return w.found;
}

struct verdict {
    uint32_t reason; /* XDS_REASONS: the rule says */
    struct xds_rule_entry rule;
};

/* Any frame, any rules. */
__noinline int xds_decide(struct xdp_md *ctx, struct xds_tables *t, uint64_t bytes, struct verdict *v)
{
    struct parsed parsed = {};
    struct classes first = {}, second = {};
    if (!t || !v)
        return 0;
    int reason = xds_parse(ctx, &parsed, t->flags & XDS_TABLES_INNER);
    v->reason = reason;
    if (reason != PARSED)
        return 0;
    xds_classify(t, &parsed.first, &first);
    if (parsed.second.kind < XDS_KINDS)
        xds_classify(t, &parsed.second, &second);
    else
        second = first;
    v->rule = walk(t, &first, &second, bytes);
    v->reason = v->rule.id ? XDS_REASONS : XDS_REASON_UNMATCHED;
    return 0;
}

struct usual {
    uint32_t src, dst;
    uint32_t length; /* of Ethernet header and packet, as the packet says */
    uint16_t sport, dport, vlan;
    uint8_t protocol;
};

/* The usual frame: IPv4 with ports and at most one tag, no options, no fragment. 1 where it is one. */
static __always_inline int is_usual(struct xdp_md *ctx, struct usual *u)
{
    uint8_t *end = (void *)(long)ctx->data_end;
    struct ether *eth = (void *)(long)ctx->data;
    uint8_t *p = (void *)(eth + 1);
    struct tag *tag = (void *)p;
    if ((uint8_t *)(tag + 1) > end)
        return 0;
    uint16_t type = eth->type;
    u->vlan = XDS_VLAN_NONE;
    u->length = sizeof(*eth);
    if (type == ETH_VLAN || type == ETH_QINQ) {
        u->vlan = bpf_ntohs(tag->tci) & 4095;
        u->length += sizeof(*tag);
        type = tag->type;
        p += sizeof(*tag);
    }
    struct ip4 *ip = (void *)p;
    struct ports *ports = (void *)(ip + 1);
    if ((uint8_t *)(ports + 1) > end || type != ETH_IP4 || ip->version_ihl != 0x45 ||
        (ip->fragment & bpf_htons(0x3fff)) || (ip->protocol != PROTO_UDP && ip->protocol != PROTO_TCP) ||
        bpf_ntohs(ip->length) < sizeof(*ip))
        return 0;
    u->length += bpf_ntohs(ip->length);
    u->protocol = ip->protocol;
    u->src = bpf_ntohl(ip->src);
    u->dst = bpf_ntohl(ip->dst);
    u->sport = bpf_ntohs(ports->src);
    u->dport = bpf_ntohs(ports->dst);
    return 1;
}

/* The rule of a flow that address and port decide; id 0: look at the dimensions. One line of memory: what the
 * dimensions would read, a line or two each, is seldom all in the first cache when a single packet comes. */
static __always_inline struct xds_rule_entry flow_of(const struct xds_tables *t, const struct usual *u)
{
    struct xds_rule_entry none = {};
    uint32_t at = XDS_FLOW_HASH(u->dst, u->dport, u->protocol) & t->flow_mask;
    if (at < XDS_FLOW_BUCKETS) {
#pragma unroll
        for (int i = 0; i < XDS_FLOW_SLOTS; i++) {
            const struct xds_flow *f = &t->flow[at][i];
            if (f->dst == u->dst && f->dport == u->dport && f->protocol == u->protocol)
                return f->rule;
        }
    }
    return none;
}

/* The rules that match it, of at most 64: what classify() and allowed() would say, without memory in
 * between. The dimensions that most rules use come first. */
static __always_inline uint64_t allowed_usual(const struct xds_tables *t, const struct usual *u)
{
    uint32_t used = t->used;
    uint64_t bits = word_of(t, t->kind[XDS_KIND_IP4 + u->protocol], 1, 0);
    if (used & (1 << XDS_DIM_DPORT))
        bits &= word_of(t, t->dport[u->dport], 1, 0);
    if (used & (1 << XDS_DIM_DST))
        bits &= word_of(t, class_of4(&t->dst4, u->dst), 1, 0);
    if (used & (1 << XDS_DIM_SRC))
        bits &= word_of(t, class_of4(&t->src4, u->src), 1, 0);
    if (used & (1 << XDS_DIM_SPORT))
        bits &= word_of(t, t->sport[u->sport], 1, 0);
    if (used & (1 << XDS_DIM_VLAN))
        bits &= word_of(t, u->vlan < XDS_VLANS ? t->vlan[u->vlan] : 0, 1, 0);
    if (used & (1 << XDS_DIM_VLAN2))
        bits &= word_of(t, t->vlan2[XDS_VLAN_NONE], 1, 0);
    return bits;
}

/* The same for more than 64 rules: the number of the first rule that matches, or XDS_RULES_MAX. Every
 * dimension is looked up, in use or not: no branches, and the verifier sees few paths. */
static __always_inline uint32_t first_usual(const struct xds_tables *t, const struct usual *u)
{
    struct classes c;
    c.of[XDS_DIM_KIND] = t->kind[XDS_KIND_IP4 + u->protocol];
    c.of[XDS_DIM_VLAN] = u->vlan < XDS_VLANS ? t->vlan[u->vlan] : 0;
    c.of[XDS_DIM_VLAN2] = t->vlan2[XDS_VLAN_NONE];
    c.of[XDS_DIM_SPORT] = t->sport[u->sport];
    c.of[XDS_DIM_DPORT] = t->dport[u->dport];
    c.of[XDS_DIM_SRC] = class_of4(&t->src4, u->src);
    c.of[XDS_DIM_DST] = class_of4(&t->dst4, u->dst);
    uint32_t summary = 0xffff, words = t->words;
#pragma unroll
    for (int d = 0; d < XDS_DIMS; d++)
        summary &= summary_of(t, c.of[d]);
    for (int i = 0; i < XDS_WORDS_MAX; i++) {
        asm volatile("" : "+r"(i)); /* keep the counter, by which the verifier sees an end */
        if (!summary)
            break;
        uint32_t w = lowest(summary);
        uint64_t bits = ~0ULL;
        summary &= summary - 1;
#pragma unroll
        for (int d = 0; d < XDS_DIMS; d++)
            bits &= word_of(t, c.of[d], words, w);
        if (bits)
            return w * 64 + lowest(bits);
    }
    return XDS_RULES_MAX;
}

static __always_inline int steer(struct xdp_md *ctx, enum stamping how)
{
    uint64_t bytes = ctx->data_end - ctx->data; /* of the first buffer, which is often the only one */
    uint32_t zero = 0;
    struct xds_tables *t = 0;
    void *inner = bpf_map_lookup_elem(&xds_tables, &zero);
    if (inner)
        t = bpf_map_lookup_elem(inner, &zero);
    if (!t)
        return refuse(ctx, XDP_PASS, XDS_REASON_NO_TABLES, 0, bpf_xdp_get_buff_len(ctx));

    struct usual usual;
    if (!t->counting_any && is_usual(ctx, &usual)) {
        if (usual.length > bytes) /* a call costs 15 ns where returns are protected: only if needed */
            bytes = bpf_xdp_get_buff_len(ctx);
        struct xds_rule_entry rule = flow_of(t, &usual);
        uint32_t first = XDS_RULES_MAX;
        if (rule.id) {
            count(&xds_rules, rule.id, bytes);
            return act(ctx, rule, bytes, how);
        }
        if (t->words == 1) {
            uint64_t bits = allowed_usual(t, &usual);
            if (bits)
                first = lowest(bits);
        } else {
            first = first_usual(t, &usual);
        }
        if (first >= XDS_RULES_MAX)
            return leave(XDP_PASS, XDS_REASON_UNMATCHED, bytes);
        rule = t->rule[first];
        count(&xds_rules, rule.id, bytes);
        return act(ctx, rule, bytes, how);
    }
    bytes = bpf_xdp_get_buff_len(ctx);
    struct verdict v = {};
    xds_decide(ctx, t, bytes, &v);
    if (v.reason == XDS_REASON_UNMATCHED)
        return leave(XDP_PASS, v.reason, bytes);
    if (v.reason != XDS_REASONS)
        return refuse(ctx, XDP_PASS, v.reason, 0, bytes);
    return act(ctx, v.rule, bytes, how);
}

/* filter.c gives it frags (BPF_F_XDP_HAS_FRAGS) but for generic mode; libbpf would by the section's name alone. */
SEC("xdp")
int xds_rx(struct xdp_md *ctx)
{
    return steer(ctx, STAMP_HOOK);
}

/* Not loaded unless asked for, and then bound to a device. The kernel keeps a pointer to such a program as it
 * was loaded, so the verifier's rewriting must not outgrow its pages: the padding, dead code that is taken out
 * first, has made them large enough (may_have_moved() in filter.c). */
SEC("?xdp.frags")
int xds_rx_meta(struct xdp_md *ctx)
{
    if (xds_settings.room)
        asm volatile(".rept 2048\n\tr0 = r0\n\t.endr" ::: "r0");
    return steer(ctx, STAMP_DRIVER);
}

/* Not loaded unless asked for, and then in the place of a function of libxdp's dispatcher. That of Debian 12
 * does not move the packet's start, and from 6.13 on the kernel lets no program that does take its place:
 * frames leave without a stamp, counted as redirected_bare. */
SEC("?xdp.frags")
int xds_rx_chain(struct xdp_md *ctx)
{
    return steer(ctx, STAMP_NEVER);
}
