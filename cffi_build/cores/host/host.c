/* host.c: what a frame is, from Ethernet up to UDP; see xds/host.h.
 *
 * Theory: dissect() is a straight walk that names the first thing wrong; each step checks its own bounds
 * before it reads. xds_host_input() counts the one reason that comes back. Answers are written as whole
 * frames into slots and leave by output(): so input() needs no room to send.
 */
#include "host6_int.h"

static size_t round_up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static struct xds_host_config with_defaults(const struct xds_host_config *cfg)
{
    struct xds_host_config c = *cfg;

    c.mtu = c.mtu ? c.mtu : 1500;
    c.groups = c.groups ? c.groups : 256;
    c.neighbours = c.neighbours ? c.neighbours : 64;
    c.slots = c.slots ? c.slots : 16;
    c.slot_bytes = c.slot_bytes ? c.slot_bytes : 2048;
    c.routes = c.routes ? c.routes : 16;
    c.fragment_bytes = c.fragment_bytes ? c.fragment_bytes : 65535 - XDSI_IPV4_BYTES;
    c.fragment_ns = c.fragment_ns ? c.fragment_ns : 30000000000;
    c.error_burst = c.error_burst ? c.error_burst : 10;
    c.error_ns = c.error_ns ? c.error_ns : 10000000;
    c.paths = c.paths ? c.paths : 64;
    c.path_least = c.path_least ? c.path_least : 552; /* as in Linux */
    c.path_ns = c.path_ns ? c.path_ns : 600000000000;
    c.ask_ns = c.ask_ns ? c.ask_ns : 1000000000;
    c.age_ns = c.age_ns ? c.age_ns : 60000000000;
    c.ttl = c.ttl ? c.ttl : 64;
    c.multicast_ttl = c.multicast_ttl ? c.multicast_ttl : 1;
    return c;
}

static uint32_t set_size(const struct xds_host_config *c)
{
    uint32_t n = 32;
    while (n < 2 * (c->groups + XDS_HOST_ADDRESSES + 1))
        n *= 2;
    return n;
}

size_t xds_host_size(const struct xds_host_config *cfg)
{
    struct xds_host_config c = with_defaults(cfg);

    if (c.groups > 65536 || c.neighbours > 4096 || c.slots > 4096 || c.slot_bytes < 64 ||
        c.slot_bytes > 65536 || c.mtu < 68 || c.mtu > 65535 || c.routes > 65536 || c.fragments > 65536 ||
        c.fragment_bytes > 65535 || c.fragment_ns < 0 || c.error_ns < 0 || c.error_burst > 65536 ||
        c.ask_ns < 0 || c.age_ns < 0 || c.vlan > 4094 || c.paths > 65536 || c.path_least < 68 ||
        c.path_least > 65535 || c.path_ns < 0)
        return 0;
    return 64 + round_up(sizeof(struct xds_host)) + round_up(set_size(&c) * sizeof(uint32_t)) +
           round_up(c.groups * sizeof(struct xdsi_group)) + round_up(c.routes * sizeof(struct xdsi_route)) +
           round_up(c.paths * sizeof(struct xdsi_path)) + round_up(c.routes * sizeof(struct xdsi_route6)) +
           round_up((c.groups + XDS_HOST_ADDRESSES) * sizeof(struct xdsi_group6)) +
           round_up(c.neighbours * sizeof(struct xdsi_neighbour)) +
           round_up(c.slots * sizeof(struct xdsi_host_slot)) + round_up((size_t)c.slots * c.slot_bytes) +
           xdsi_frag_bytes(&c);
}

void xds_host_set_mac(struct xds_host *h, const uint8_t *mac)
{
    memcpy(h->mac, mac, 6);
    h->has_mac = memcmp(h->mac, "\0\0\0\0\0\0", 6) != 0;
    h->version++;
}

int xds_host_init(void *mem, const struct xds_host_config *cfg)
{
    struct xds_host *h = mem;
    uint8_t *at = (uint8_t *)mem + round_up(sizeof *h);

    if (!xds_host_size(cfg))
        return XDS_ECONFIG;
    memset(mem, 0, xds_host_size(cfg));
    h->cfg = with_defaults(cfg);
    h->promiscuous = cfg->promiscuous;
    h->flags = cfg->flags;
    xds_host_set_mac(h, cfg->mac);
    h->l2_len = XDSI_ETH_BYTES + (cfg->vlan ? 4 : 0);
    h->set = (uint32_t *)at;
    h->set_mask = set_size(&h->cfg) - 1;
    at += round_up(set_size(&h->cfg) * sizeof(uint32_t));
    h->groups = (struct xdsi_group *)at;
    at += round_up(h->cfg.groups * sizeof *h->groups);
    h->routes = (struct xdsi_route *)at;
    at += round_up(h->cfg.routes * sizeof *h->routes);
    h->paths = (struct xdsi_path *)at;
    at += round_up(h->cfg.paths * sizeof *h->paths);
    h->six.routes = (struct xdsi_route6 *)at;
    at += round_up(h->cfg.routes * sizeof *h->six.routes);
    h->six.groups = (struct xdsi_group6 *)at;
    at += round_up((h->cfg.groups + XDS_HOST_ADDRESSES) * sizeof *h->six.groups);
    h->neighbours = (struct xdsi_neighbour *)at;
    at += round_up(h->cfg.neighbours * sizeof *h->neighbours);
    h->slots = (struct xdsi_host_slot *)at;
    at += round_up(h->cfg.slots * sizeof *h->slots);
    h->error_ns = INT64_MIN / 2; /* long ago */
    h->random = cfg->seed;
    h->igmp_due = XDS_NEVER;
    h->igmp_robustness = 2; /* RFC 3376 8.1 */
    h->igmp_v1_until = h->igmp_v2_until = h->six.mld_v1_until = INT64_MIN;
    h->six.mld_due = h->six.solicit_due = XDS_NEVER;
    h->six.mld_robustness = 2; /* RFC 3810 9.1 */
    for (uint32_t i = 0; i < XDSI_ROUTERS; i++)
        h->six.routers[i].until = INT64_MIN;
    for (uint32_t i = 0; i < XDSI_PREFIXES; i++)
        h->six.prefixes[i].until = INT64_MIN;
    h->slab = at;
    at += round_up((size_t)h->cfg.slots * h->cfg.slot_bytes);
    h->frags = (struct xdsi_frag *)at;
    if (h->flags & XDS_HOST_REPORTS)
        h->set[xdsi_set_slot(XDSI_ALL_SYSTEMS, h->set_mask)] = XDSI_ALL_SYSTEMS;
    return 0;
}

static void set_add(struct xds_host *h, uint32_t ip)
{
    uint32_t i = xdsi_set_slot(ip, h->set_mask);

    while (h->set[i] && h->set[i] != ip)
        i = (i + 1) & h->set_mask;
    h->set[i] = ip;
}

int xds_host_add_address(struct xds_host *h, uint32_t ip, unsigned prefix_len)
{
    if (!ip || xdsi_is_multicast(ip) || prefix_len > 32)
        return XDS_ECONFIG;
    if (xdsi_host_is_own(h, ip))
        return 0;
    if (h->own_count == XDS_HOST_ADDRESSES)
        return XDS_ECAPACITY;
    h->own[h->own_count++] =
        (struct xdsi_own){.a = xdsi_addr4(ip),
                          .ip = ip,
                          .bits = prefix_len,
                          .mask = prefix_len ? __builtin_bswap32(0xffffffffu << (32 - prefix_len)) : 0,
                          .due_ns = XDS_NEVER,
                          .defended_ns = INT64_MIN / 2};
    set_add(h, ip);
    h->version++;
    return 0;
}

/* RFC 1122 3.2.1.3, 1112 4: never a source: this network, loopback, groups, broadcast and what is reserved. */
static inline bool bad_source(uint32_t raw)
{
    const uint32_t first = raw & 0xff;
    return first >= 224 || first == 127 || !first;
}

/* Who has no address yet may ask everybody for one, and switches that query groups have none (RFC 4541 2.1.1). */
static bool nobody_may(const uint8_t *ip)
{
    const uint32_t dst = xdsi_raw32(ip + 16);
    return !xdsi_raw32(ip + 12) &&
           (ip[9] == XDSI_IPPROTO_IGMP || dst == 0xffffffff || (dst & 0xffffff) == 0x0000e0);
}

/* Nobody else has an address of ours. What came to the only one needs no search. */
static inline bool from_ourselves(const struct xds_host *h, uint32_t src, uint32_t dst)
{
    return !xdsi_is_multicast(dst) && (h->own_count == 1 ? src == dst : xdsi_set_has(h, src));
}

/* A place for a group that is not wanted yet; one that is still being left is used again, and as routers may have it
 * from anybody or from a list, both ways of saying what is wanted now are a turn. */
static struct xdsi_group *group_new(struct xds_host *h, uint32_t ip)
{
    struct xdsi_group *g = xdsi_group_find(h, ip);

    if (!g && h->group_count == h->cfg.groups)
        return NULL;
    const bool turned = g != NULL;
    g = g ? g : &h->groups[h->group_count++];
    *g = (struct xdsi_group){.ip = ip, .wanted = true, .turned = turned, .answer_due = XDS_NEVER};
    set_add(h, ip);
    return g;
}

int xds_host_join(struct xds_host *h, uint32_t group)
{
    struct xdsi_group *g = xdsi_group_find(h, group);

    if (!xdsi_is_multicast(group))
        return XDS_ECONFIG;
    if (g && g->wanted && !g->source_count)
        return 0;
    if (!g || !g->wanted)
        g = group_new(h, group);
    if (!g)
        return XDS_ECAPACITY;
    g->source_count = g->blocked_count = 0; /* from anybody from now on */
    g->turned = false;
    xdsi_group_changed(h, g);
    return 0;
}

int xds_host_join_source(struct xds_host *h, uint32_t group, uint32_t source)
{
    struct xdsi_group *g = xdsi_group_find(h, group);

    if (!xdsi_is_multicast(group) || bad_source(source))
        return XDS_ECONFIG;
    if (g && g->wanted && !g->source_count)
        return XDS_ESTATE;
    if (!g || !g->wanted)
        g = group_new(h, group);
    for (uint32_t i = 0; g && i < g->source_count; i++)
        if (g->sources[i] == source)
            return 0;
    if (!g || g->source_count == XDS_HOST_SOURCES)
        return XDS_ECAPACITY;
    g->sources[g->source_count++] = source;
    for (uint32_t i = 0; i < g->blocked_count; i++)
        if (g->blocked[i] == source)
            g->blocked[i--] = g->blocked[--g->blocked_count];
    xdsi_group_changed(h, g);
    return 0;
}

int xds_host_leave_source(struct xds_host *h, uint32_t group, uint32_t source)
{
    struct xdsi_group *g = xdsi_group_find(h, group);
    uint32_t at = 0;

    while (g && at < g->source_count && g->sources[at] != source)
        at++;
    if (!g || !g->wanted || at == g->source_count)
        return XDS_ESTATE;
    if (g->source_count == 1)
        return xds_host_leave(h, group);
    g->sources[at] = g->sources[--g->source_count];
    if (g->blocked_count == XDS_HOST_SOURCES) /* the last to go again will be told by the whole list */
        g->turned = true;
    else
        g->blocked[g->blocked_count++] = source;
    xdsi_group_changed(h, g);
    return 0;
}

static void build_set(struct xds_host *h)
{
    memset(h->set, 0, (h->set_mask + 1) * sizeof *h->set);
    if (h->flags & XDS_HOST_REPORTS)
        set_add(h, XDSI_ALL_SYSTEMS);
    for (uint32_t i = 0; i < h->own_count; i++)
        set_add(h, h->own[i].ip);
    for (uint32_t i = 0; i < h->group_count; i++)
        if (h->groups[i].wanted)
            set_add(h, h->groups[i].ip);
}

int xds_host_leave(struct xds_host *h, uint32_t group)
{
    struct xdsi_group *g = xdsi_group_find(h, group);

    if (!g || !g->wanted)
        return XDS_ESTATE;
    g->wanted = false;
    xdsi_group_changed(h, g);
    if (!g->left)
        *g = h->groups[--h->group_count];
    build_set(h);
    return 0;
}

int xdsi_host_is_own(const struct xds_host *h, uint32_t ip)
{
    for (uint32_t i = 0; i < h->own_count; i++)
        if (h->own[i].ip == ip)
            return 1;
    return 0;
}

static inline enum xds_host_reason udp(struct xds_host *h, const uint8_t *ip, const uint8_t *u, uint32_t room,
                                       struct xds_dgram *out)
{
    if (room < XDSI_UDP_BYTES)
        return XDS_HOST_UDP_LENGTH;
    uint32_t len = xdsi_be16(u + 4);
    if (len < XDSI_UDP_BYTES || len > room)
        return XDS_HOST_UDP_LENGTH;
    out->six = 0;
    out->src = xdsi_raw32(ip + 12);
    out->dst = xdsi_raw32(ip + 16);
    uint16_t given = xdsi_raw16(u + 6);
    if (given == 0) {
        h->stats.no_checksum++;
    } else if ((h->flags & XDS_HOST_NO_MULTICAST_CHECKSUM) && xdsi_is_multicast(out->dst)) {
        h->stats.unverified++;
    } else {
        uint64_t pseudo = xdsi_csum_pseudo(out->src, out->dst, XDSI_IPPROTO_UDP, len);
        if (__builtin_expect(xdsi_csum_fold(xdsi_csum_add(pseudo, u, len)) != 0xffff, 0)) {
            if ((h->flags & XDS_HOST_PARTIAL_CHECKSUM) && given == xdsi_csum_fold(pseudo))
                h->stats.partial_checksum++;
            else if (h->flags & XDS_HOST_REWRITTEN)
                h->stats.rewritten++;
            else
                return XDS_HOST_UDP_CHECKSUM;
        }
    }
    h->udp4 = ip;
    out->data = u + XDSI_UDP_BYTES;
    out->len = len - XDSI_UDP_BYTES;
    out->sport = xdsi_be16(u);
    out->dport = xdsi_be16(u + 2);
    return XDS_HOST_DELIVERED;
}

/* A fragment; the one that makes its datagram whole is what the datagram is. */
static __attribute__((noinline)) enum xds_host_reason piece(struct xds_host *h, const uint8_t *d, uint32_t l2,
                                                            uint32_t ihl, uint32_t total,
                                                            struct xds_dgram *out, int64_t now)
{
    struct xdsi_whole w;
    const uint8_t *ip = d + l2;
    const uint32_t word = xdsi_be16(ip + 6), len = total - ihl;
    const struct xdsi_fragment p = {.frame = d,
                                    .data = ip + ihl,
                                    .src = xdsi_addr4(xdsi_raw32(ip + 12)),
                                    .dst = xdsi_addr4(xdsi_raw32(ip + 16)),
                                    .l2 = l2,
                                    .head = ihl,
                                    .id = xdsi_raw16(ip + 4),
                                    .from = (word & 0x1fff) * 8,
                                    .len = len,
                                    .protocol = ip[9],
                                    .ecn = ip[1] & 3,
                                    .more = word & 0x2000};

    if (h->cfg.fragments && (!len || (p.more && len % 8) || p.from + total > 65535))
        return XDS_HOST_FRAGMENT_BAD;
    enum xds_host_reason reason = xdsi_host_fragment(h, &p, now, &w);
    if (!w.frame)
        return reason;
    ip = w.frame + w.l2;
    reason = ip[9] == XDSI_IPPROTO_UDP ? udp(h, ip, ip + w.ihl, w.total - w.ihl, out)
                                       : xdsi_host_other(h, w.frame, w.l2, w.ihl, w.total, now);
    xdsi_host_whole_done(h, &w, reason == XDS_HOST_DELIVERED || reason == XDS_HOST_HANDED_OVER);
    return reason;
}

/* Never a call, whatever the compiler holds for likely. */
static inline bool same_mac(const uint8_t *a, const uint8_t *b)
{
    return !((xdsi_raw32(a) ^ xdsi_raw32(b)) | (uint32_t)(xdsi_raw16(a + 4) ^ xdsi_raw16(b + 4)));
}

static enum xds_host_reason dissect(struct xds_host *h, const uint8_t *d, uint32_t len, struct xds_dgram *out,
                                    int64_t now)
{
    uint32_t l2 = XDSI_ETH_BYTES, type, total, ihl;

    if (len < XDSI_ETH_BYTES)
        return XDS_HOST_SHORT;
    type = xdsi_be16(d + 12);
    while (type == XDSI_ETH_VLAN || type == XDSI_ETH_QINQ) {
        if (l2 == XDSI_L2_MAX)
            return XDS_HOST_VLAN_DEPTH;
        l2 += 4;
        if (len < l2)
            return XDS_HOST_SHORT;
        type = xdsi_be16(d + l2 - 2);
    }
    if (type == XDSI_ETH_ARP)
        return xdsi_host_arp(h, d, l2, len, now);
    if (type != XDSI_ETH_IPV4)
        return type == XDSI_ETH_IPV6 ? xdsi_host_ip6(h, d, l2, len, now) : XDS_HOST_ETHERTYPE;
    const uint8_t *ip = d + l2;
    if (len - l2 < XDSI_IPV4_BYTES)
        return XDS_HOST_SHORT;
    if (ip[0] >> 4 != 4)
        return XDS_HOST_IP_VERSION;
    ihl = (ip[0] & 15u) * 4;
    total = xdsi_be16(ip + 2);
    if (ihl < XDSI_IPV4_BYTES || total < ihl)
        return XDS_HOST_IP_LENGTH;
    if (total > len - l2)
        return XDS_HOST_IP_TRUNCATED;
    const uint64_t sum = ihl == XDSI_IPV4_BYTES ? xdsi_csum_ipv4(ip) : xdsi_csum_add(0, ip, ihl);
    if (xdsi_csum_fold(sum) != 0xffff)
        return XDS_HOST_IP_CHECKSUM;
    uint32_t dst = xdsi_raw32(ip + 16);
    if (!h->promiscuous) {
        if (!xdsi_set_has(h, dst))
            return XDS_HOST_OTHER_ADDRESS;
        if (h->has_mac && !xdsi_is_multicast(dst) && !same_mac(d, h->mac))
            return XDS_HOST_OTHER_MAC;
    }
    if (ip[8] == 0)
        return XDS_HOST_IP_TTL;
    const uint32_t src = xdsi_raw32(ip + 12);
    if (__builtin_expect(bad_source(src), 0) && !nobody_may(ip))
        return XDS_HOST_IP_SOURCE;
    if (!h->promiscuous && from_ourselves(h, src, dst))
        return XDS_HOST_IP_SOURCE;
    if (__builtin_expect((xdsi_be16(ip + 6) & 0x3fff) != 0, 0))
        return piece(h, d, l2, ihl, total, out, now);
    if (ip[9] == XDSI_IPPROTO_UDP)
        return udp(h, ip, ip + ihl, total - ihl, out);
    return xdsi_host_other(h, d, l2, ihl, total, now);
}

static int code_of(enum xds_host_reason reason)
{
    switch (reason) {
    case XDS_HOST_DELIVERED:
        return 1;
    case XDS_HOST_ICMP_ERROR:
        return XDS_INPUT_ERROR;
    case XDS_HOST_DATAGRAM6:
        return XDS_INPUT_DATAGRAM;
    case XDS_HOST_NDP:
    case XDS_HOST_MLD:
    case XDS_HOST_ARP:
    case XDS_HOST_ICMP_ECHO:
    case XDS_HOST_IGMP:
    case XDS_HOST_FRAGMENT:
    case XDS_HOST_FRAGMENT_COPY:
        return 0;
    case XDS_HOST_SHORT:
    case XDS_HOST_IP_TRUNCATED:
        return XDS_ETRUNC;
    case XDS_HOST_NO_ROOM:
    case XDS_HOST_FRAGMENT_LARGE:
    case XDS_HOST_FRAGMENT_LENT:
        return XDS_ECAPACITY;
    case XDS_HOST_ETHERTYPE:
    case XDS_HOST_OTHER_MAC:
    case XDS_HOST_OTHER_ADDRESS:
    case XDS_HOST_PROTOCOL:
    case XDS_HOST_ICMP_OTHER:
    case XDS_HOST_ICMP_STRAY:
        return XDS_EFOREIGN;
    default:
        return XDS_EMALFORMED;
    }
}

int xds_host_input(struct xds_host *h, const struct xds_frame *f, struct xds_dgram *out, int64_t now)
{
    enum xds_host_reason reason = dissect(h, f->data, f->len, out, now);

    h->stats.received++;
    h->stats.received_bytes += f->len;
    h->stats.reasons[reason]++;
    if (__builtin_expect(reason == XDS_HOST_DELIVERED, 1)) {
        out->rx_ns = f->rx_ns;
        return 1;
    }
    if (reason == XDS_HOST_HANDED_OVER) {
        h->packet.rx_ns = f->rx_ns;
        return XDS_INPUT_PACKET;
    }
    h->last_reason = (uint8_t)reason;
    if (reason == XDS_HOST_DATAGRAM6)
        h->six.dgram.rx_ns = f->rx_ns;
    return code_of(reason);
}

int xds_host_last_reason(const struct xds_host *h)
{
    return h->last_reason;
}

int xds_host_event(struct xds_host *h, struct xds_host_event *out)
{
    if (h->ev_head == h->ev_tail)
        return 0;
    *out = h->events[h->ev_head++ % XDSI_HOST_EVENTS];
    return 1;
}

void xds_host_stats(const struct xds_host *h, struct xds_host_stats *out)
{
    *out = h->stats;
}
