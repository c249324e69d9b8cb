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
 * Two programs, one source: xds_rx runs on any driver; xds_rx_meta is bound to one device and asks
 * its driver for the NIC's time stamp. User space loads one of them. BPF_PROG_TEST_RUN takes xds_rx
 * only. Least kernel: 6.1 (bpf_ktime_get_tai_ns); xds_rx_meta: 6.3.
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

/* ---- Maps ---------------------------------------------------------------------------------- */

struct xds_table_map {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(key_size, sizeof(uint32_t));
    __uint(value_size, sizeof(struct xds_tables)); /* clang 14 forgets the struct's body as __type() */
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
    __uint(max_entries, 1);
    __type(key, uint32_t);
    __array(values, struct xds_table_map);
} xds_tables SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, XDS_SOCKETS_MAX);
    __type(key, uint32_t);
    __type(value, uint32_t);
} xds_xsks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, XDS_RULE_IDS);
    __type(key, uint32_t);
    __type(value, struct xds_count);
} xds_rules SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, uint32_t);
    __type(value, struct xds_reason_counts);
} xds_reasons SEC(".maps");

struct { /* redirects that found no socket, by XSKMAP index */
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, XDS_SOCKETS_MAX);
    __type(key, uint32_t);
    __type(value, struct xds_count);
} xds_nosock SEC(".maps");

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym __weak;

/* ---- Headers ------------------------------------------------------------------------------- */

#define ETH_IP4  bpf_htons(0x0800)
#define ETH_ARP  bpf_htons(0x0806)
#define ETH_IP6  bpf_htons(0x86dd)
#define ETH_VLAN bpf_htons(0x8100) /* 802.1Q  */
#define ETH_QINQ bpf_htons(0x88a8) /* 802.1ad */

enum {
    PROTO_HOP = 0,
    PROTO_ICMP = 1,
    PROTO_TCP = 6,
    PROTO_UDP = 17,
    PROTO_DCCP = 33,
    PROTO_ROUTING = 43,
    PROTO_FRAGMENT = 44,
    PROTO_AH = 51,
    PROTO_ICMP6 = 58,
    PROTO_OPTIONS = 60,
    PROTO_SCTP = 132,
    PROTO_MOBILITY = 135,
    PROTO_UDPLITE = 136,
};

struct ether {
    uint8_t dst[6], src[6];
    uint16_t type;
} __attribute__((packed));

struct tag {
    uint16_t tci, type;
} __attribute__((packed));

struct ip4 {
    uint8_t version_ihl, tos;
    uint16_t length, id, fragment;
    uint8_t ttl, protocol;
    uint16_t sum;
    uint32_t src, dst;
} __attribute__((packed));

struct ip6 {
    uint32_t version_class_flow;
    uint16_t length;
    uint8_t next, hops;
    uint64_t src_high, src_low, dst_high, dst_low;
} __attribute__((packed));

struct extension {
    uint8_t next, length;
    uint16_t fragment; /* of a fragment header: offset, two spare bits, more */
    uint32_t id;
} __attribute__((packed));

struct arp {
    uint16_t hardware, protocol;
    uint8_t hardware_len, protocol_len;
    uint16_t operation;
    uint8_t sender_mac[6];
    uint32_t sender;
    uint8_t target_mac[6];
    uint32_t target;
} __attribute__((packed));

struct icmp {
    uint8_t type, code;
    uint16_t sum;
    uint32_t rest;
} __attribute__((packed));

struct ports {
    uint16_t src, dst;
} __attribute__((packed));

/* ---- Parsing ------------------------------------------------------------------------------- */

/* What the rules look at. Addresses in host byte order, IPv4 in the low word. */
struct key {
    uint64_t src_high, src_low, dst_high, dst_low;
    uint32_t kind, vlan, vlan2, sport, dport;
    uint32_t family; /* 0: no IP addresses, 4, 6 */
};

#define PARSED -1 /* else the xds_reason why not */

/* Ports of the transports that have them; those of a fragment would name only its first piece. */
static __always_inline int parse_ports(uint8_t *p, uint8_t *end, uint8_t protocol, struct key *k)
{
    if (protocol != PROTO_UDP && protocol != PROTO_TCP && protocol != PROTO_SCTP &&
        protocol != PROTO_UDPLITE && protocol != PROTO_DCCP)
        return PARSED;
    struct ports *ports = (void *)p;
    if ((uint8_t *)(ports + 1) > end)
        return XDS_REASON_MALFORMED;
    k->sport = bpf_ntohs(ports->src);
    k->dport = bpf_ntohs(ports->dst);
    return PARSED;
}

/* *inside: where the packet inside an ICMP error starts, if this is one. */
static __always_inline int parse_ip4(uint8_t *p, uint8_t *end, uint32_t base, struct key *k, uint8_t **inside)
{
    struct ip4 *ip = (void *)p;
    if ((uint8_t *)(ip + 1) > end)
        return XDS_REASON_MALFORMED;
    uint32_t head = (ip->version_ihl & 15) * 4;
    if (ip->version_ihl >> 4 != 4 || head < sizeof(*ip) || bpf_ntohs(ip->length) < head)
        return XDS_REASON_MALFORMED;
    k->family = 4;
    k->kind = base + ip->protocol;
    k->src_low = bpf_ntohl(ip->src);
    k->dst_low = bpf_ntohl(ip->dst);
    if (ip->fragment & bpf_htons(0x3fff)) /* more fragments, or not the first */
        return PARSED;
    p += head;
    if (ip->protocol == PROTO_ICMP) {
        struct icmp *icmp = (void *)p;
        if ((uint8_t *)(icmp + 1) > end)
            return XDS_REASON_MALFORMED;
        if (icmp->type == 3 || icmp->type == 4 || icmp->type == 5 || icmp->type == 11 || icmp->type == 12)
            *inside = (uint8_t *)(icmp + 1);
        return PARSED;
    }
    return parse_ports(p, end, ip->protocol, k);
}

/* Walk the extension headers. *next: the protocol behind them; *fragment: the walk ended at a
 * fragment. Returns the first byte behind them, or 0 with *reason. */
static __always_inline uint8_t *walk_extensions(uint8_t *p, uint8_t *end, uint8_t *next, int *fragment,
                                                int *reason)
{
    for (int i = 0; i < XDS_EXTENSIONS_MAX + 1; i++) {
        struct extension *e = (void *)p;
        uint8_t kind = *next;
        if (kind != PROTO_HOP && kind != PROTO_ROUTING && kind != PROTO_OPTIONS && kind != PROTO_FRAGMENT &&
            kind != PROTO_AH && kind != PROTO_MOBILITY)
            return p;
        if (i == XDS_EXTENSIONS_MAX)
            break;
        if ((uint8_t *)(e + 1) > end) { /* each of them is at least 8 bytes */
            *reason = XDS_REASON_MALFORMED;
            return 0;
        }
        *next = e->next;
        if (kind == PROTO_FRAGMENT) {
            if (e->fragment & bpf_htons(0xfff9)) {
                *fragment = 1;
                return p;
            }
            p += 8; /* an atomic fragment is a whole packet (RFC 6946) */
        } else if (kind == PROTO_AH) {
            p += (e->length + 2) * 4; /* in 4-byte units, less two (RFC 4302) */
        } else {
            p += (e->length + 1) * 8;
        }
    }
    *reason = XDS_REASON_EXTENSIONS;
    return 0;
}

/* second: filled with the target of a neighbour solicitation or advertisement. */
static __always_inline int parse_ip6(uint8_t *p, uint8_t *end, uint32_t base, struct key *k,
                                     struct key *second, uint8_t **inside)
{
    struct ip6 *ip = (void *)p;
    int fragment = 0, reason = XDS_REASON_MALFORMED;
    if ((uint8_t *)(ip + 1) > end || (*p >> 4) != 6)
        return XDS_REASON_MALFORMED;
    uint8_t next = ip->next;
    k->family = 6;
    k->src_high = bpf_be64_to_cpu(ip->src_high);
    k->src_low = bpf_be64_to_cpu(ip->src_low);
    k->dst_high = bpf_be64_to_cpu(ip->dst_high);
    k->dst_low = bpf_be64_to_cpu(ip->dst_low);
    p = walk_extensions((uint8_t *)(ip + 1), end, &next, &fragment, &reason);
    if (!p)
        return reason;
    k->kind = base + next;
    if (fragment)
        return PARSED;
    if (next != PROTO_ICMP6)
        return parse_ports(p, end, next, k);
    struct icmp *icmp = (void *)p;
    if ((uint8_t *)(icmp + 1) > end)
        return XDS_REASON_MALFORMED;
    if (icmp->type >= 1 && icmp->type <= 4)
        *inside = (uint8_t *)(icmp + 1);
    if (second && (icmp->type == 135 || icmp->type == 136)) {
        uint64_t *target = (void *)(icmp + 1);
        if ((uint8_t *)(target + 2) > end)
            return XDS_REASON_MALFORMED;
        second->kind = XDS_KIND_NDP;
        second->family = 6;
        second->src_high = k->src_high;
        second->src_low = k->src_low;
        second->dst_high = bpf_be64_to_cpu(target[0]);
        second->dst_low = bpf_be64_to_cpu(target[1]);
    }
    return PARSED;
}

static __always_inline int parse_arp(uint8_t *p, uint8_t *end, struct key *k)
{
    struct arp *arp = (void *)p;
    if ((uint8_t *)(arp + 1) > end)
        return XDS_REASON_MALFORMED;
    if (arp->hardware != bpf_htons(1) || arp->protocol != ETH_IP4 || arp->hardware_len != 6 ||
        arp->protocol_len != 4)
        return PARSED; /* not Ethernet and IPv4: a frame of another kind */
    k->kind = XDS_KIND_ARP;
    k->family = 4;
    k->src_low = bpf_ntohl(arp->sender);
    k->dst_low = bpf_ntohl(arp->target);
    return PARSED;
}

static __always_inline int parse_frame(uint8_t *p, uint8_t *end, struct key *k, struct key *second,
                                       uint8_t **inside)
{
    struct ether *eth = (void *)p;
    if ((uint8_t *)(eth + 1) > end)
        return XDS_REASON_MALFORMED;
    uint16_t type = eth->type;
    p = (uint8_t *)(eth + 1);
    k->vlan = k->vlan2 = XDS_VLAN_NONE;
    k->sport = k->dport = XDS_PORT_NONE;
    k->kind = XDS_KIND_OTHER;
    k->family = 0;
    if (type == ETH_VLAN || type == ETH_QINQ) {
        struct tag *tag = (void *)p;
        if ((uint8_t *)(tag + 1) > end)
            return XDS_REASON_MALFORMED;
        k->vlan = bpf_ntohs(tag->tci) & 4095;
        type = tag->type;
        p += sizeof(*tag);
        if (type == ETH_VLAN || type == ETH_QINQ) {
            tag = (void *)p;
            if ((uint8_t *)(tag + 1) > end)
                return XDS_REASON_MALFORMED;
            k->vlan2 = bpf_ntohs(tag->tci) & 4095;
            type = tag->type;
            p += sizeof(*tag);
        }
    }
    if (type == ETH_IP4)
        return parse_ip4(p, end, XDS_KIND_IP4, k, inside);
    if (type == ETH_IP6)
        return parse_ip6(p, end, XDS_KIND_IP6, k, second, inside);
    if (type == ETH_ARP)
        return parse_arp(p, end, k);
    return PARSED;
}

struct parsed {
    struct key first;
    struct key second; /* kind XDS_KINDS: there is none */
};

/* Global functions are verified once, on their own, and what they write is unknown to the caller:
 * that keeps the number of states the verifier walks a sum, not a product, over the stages. */

/* The flow inside an ICMP error becomes the second key; where it is cut there is none. */
__noinline int xds_inside(struct xdp_md *ctx, uint32_t offset, uint32_t family, struct key *second)
{
    uint8_t *p = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *inside = 0;
    if (!second || offset > 0x7fff)
        return 0;
    p += offset;
    int got = family == 4 ? parse_ip4(p, end, XDS_KIND_INNER4, second, &inside)
                          : parse_ip6(p, end, XDS_KIND_INNER6, second, 0, &inside);
    if (got != PARSED)
        second->kind = XDS_KINDS;
    return 0;
}

__noinline int xds_parse(struct xdp_md *ctx, struct parsed *out, uint32_t look_inside)
{
    uint8_t *inside = 0, *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (!out)
        return XDS_REASON_NO_TABLES;
    struct key *k = &out->first, *second = &out->second;
    second->kind = XDS_KINDS;
    int parsed = parse_frame(data, end, k, second, &inside);
    if (parsed != PARSED || !look_inside)
        return parsed;
    second->vlan = k->vlan;
    second->vlan2 = k->vlan2;
    second->sport = second->dport = XDS_PORT_NONE;
    if (inside)
        xds_inside(ctx, inside - data, k->family, second);
    return parsed;
}

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

/* Write the metadata. 0 where the driver has no room for it. */
static __always_inline int stamp(struct xdp_md *ctx, uint16_t rule, uint32_t bytes, int ask_driver)
{
    uint64_t ns = 0;
    uint8_t flags = 0;
    if (ask_driver && !bpf_xdp_metadata_rx_timestamp(ctx, &ns) && ns)
        flags = XDS_META_NIC;
    if (!flags)
        ns = bpf_ktime_get_tai_ns();
    if (bpf_xdp_adjust_meta(ctx, -XDS_META_LEN))
        return 0;
    struct xds_rx_meta *meta = (void *)(long)ctx->data_meta;
    if ((void *)(meta + 1) > (void *)(long)ctx->data)
        return 0;
    meta->rx_ns = ns;
    meta->length = bytes;
    meta->rule = rule;
    meta->flags = flags;
    meta->magic = XDS_META_MAGIC;
    return 1;
}

static __always_inline int redirect(struct xdp_md *ctx, uint32_t group, uint16_t rule, uint64_t bytes,
                                    int ask_driver)
{
    uint32_t queue = ctx->rx_queue_index;
    if (queue >= XDS_QUEUES_MAX)
        return leave(XDP_PASS, XDS_REASON_QUEUE_RANGE, bytes);
    uint32_t index = group * XDS_QUEUES_MAX + queue;
    int verdict = bpf_redirect_map(&xds_xsks, index, XDP_PASS);
    if (verdict != XDP_REDIRECT) {
        count(&xds_nosock, index, bytes);
        return leave(XDP_PASS, XDS_REASON_NO_SOCKET, bytes);
    }
    if (xds_settings.stamp && !stamp(ctx, rule, bytes, ask_driver))
        return leave(verdict, XDS_REASON_REDIRECTED_BARE, bytes);
    return leave(verdict, XDS_REASON_REDIRECTED, bytes);
}

static __always_inline int act(struct xdp_md *ctx, struct xds_rule_entry rule, uint64_t bytes, int ask_driver)
{
    if (rule.action == XDS_ACTION_REDIRECT)
        return redirect(ctx, rule.group, rule.id, bytes, ask_driver);
    if (rule.action == XDS_ACTION_DROP)
        return leave(XDP_DROP, XDS_REASON_DROPPED, bytes);
    return leave(XDP_PASS, XDS_REASON_PASSED, bytes);
}

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

static __always_inline int steer(struct xdp_md *ctx, int ask_driver)
{
    uint64_t bytes = ctx->data_end - ctx->data; /* of the first buffer, which is often the only one */
    uint32_t zero = 0;
    struct xds_tables *t = 0;
    void *inner = bpf_map_lookup_elem(&xds_tables, &zero);
    if (inner)
        t = bpf_map_lookup_elem(inner, &zero);
    if (!t)
        return leave(XDP_PASS, XDS_REASON_NO_TABLES, bpf_xdp_get_buff_len(ctx));

    struct usual usual;
    if (!t->counting_any && is_usual(ctx, &usual)) {
        if (usual.length > bytes) /* a call costs 15 ns where returns are protected: only if needed */
            bytes = bpf_xdp_get_buff_len(ctx);
        uint32_t first = XDS_RULES_MAX;
        if (t->words == 1) {
            uint64_t bits = allowed_usual(t, &usual);
            if (bits)
                first = lowest(bits);
        } else {
            first = first_usual(t, &usual);
        }
        if (first >= XDS_RULES_MAX)
            return leave(XDP_PASS, XDS_REASON_UNMATCHED, bytes);
        struct xds_rule_entry rule = t->rule[first];
        count(&xds_rules, rule.id, bytes);
        return act(ctx, rule, bytes, ask_driver);
    }
    bytes = bpf_xdp_get_buff_len(ctx);
    struct verdict v = {};
    xds_decide(ctx, t, bytes, &v);
    if (v.reason != XDS_REASONS)
        return leave(XDP_PASS, v.reason, bytes);
    return act(ctx, v.rule, bytes, ask_driver);
}

SEC("xdp.frags")
int xds_rx(struct xdp_md *ctx)
{
    return steer(ctx, 0);
}

SEC("?xdp.frags") /* not loaded unless asked for */
int xds_rx_meta(struct xdp_md *ctx)
{
    return steer(ctx, 1);
}
