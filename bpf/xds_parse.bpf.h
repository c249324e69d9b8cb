/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * xds_parse.bpf.h: from a frame to a key: what the rules look at.
 *
 * Walk the headers with bounds checked at each step; what contradicts itself is refused with a reason.
 */
#ifndef XDS_PARSE_BPF_H
#define XDS_PARSE_BPF_H

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

#endif
