/* host_route6.c: own addresses of IPv6, and which way a packet leaves from which of them: the longest prefix, then
 * the lowest metric, then who came first (RFC 4861 5.2, RFC 6724 5). */
#include "host6_int.h"

#define RA_METRIC 1024 /* of a router that advertises itself, as in Linux */

static bool holds(struct xdsi_addr prefix, uint32_t bits, struct xdsi_addr a)
{
    return xdsi_addr_common(prefix, a) >= bits;
}

int xds_host_add_address6(struct xds_host *h, const uint8_t ip[16], unsigned prefix_len)
{
    const struct xdsi_addr a = xdsi_addr_of(ip);
    struct xdsi_host6 *six = &h->six;

    if (xdsi_addr_is4(a))
        return xds_host_add_address(h, xdsi_addr_ip4(a), prefix_len);
    if (xdsi_addr_none(a) || xdsi_addr_multicast(a) || (!a.high && a.low == 1ull << 56) || prefix_len > 128 ||
        h->cfg.mtu < XDSI_IPV6_MTU_LEAST)
        return XDS_ECONFIG;
    if (xdsi_host_own(h, a))
        return 0;
    if (six->own_count == XDS_HOST_ADDRESSES)
        return XDS_ECAPACITY;
    const int code = xdsi_group6_join(h, xdsi_solicited(a), false);
    if (code)
        return code;
    six->own[six->own_count++] =
        (struct xdsi_own){.a = a, .bits = prefix_len, .due_ns = XDS_NEVER, .defended_ns = INT64_MIN / 2};
    if (h->flags & XDS_HOST_ROUTERS && six->own_count == 1)
        six->solicit_due = INT64_MIN;
    h->version++;
    return 0;
}

bool xdsi_host_is_ours6(const struct xds_host *h, struct xdsi_addr dst)
{
    if (!xdsi_addr_multicast(dst))
        return xdsi_host_own(h, dst) != NULL && !xdsi_addr_is4(dst);
    const struct xdsi_group6 *g = xdsi_group6_find(h, dst);
    return xdsi_addr_same(dst, xdsi_all_nodes()) || (g && (g->joined || g->solicited));
}

/* ---- routes -------------------------------------------------------------------------------------- */

static bool on_link(const struct xds_host *h, struct xdsi_addr a)
{
    if (xdsi_addr_link_local(a))
        return true;
    for (uint32_t i = 0; i < h->six.own_count; i++)
        if (holds(h->six.own[i].a, h->six.own[i].bits, a))
            return true;
    return false;
}

static struct xdsi_route6 *find(struct xds_host *h, struct xdsi_addr dst, uint32_t bits, uint32_t metric)
{
    for (uint32_t i = 0; i < h->six.route_count; i++) {
        struct xdsi_route6 *r = &h->six.routes[i];
        if (xdsi_addr_same(r->dst, dst) && r->bits == bits && r->metric == metric)
            return r;
    }
    return NULL;
}

/* The low bits of a mapped address's prefix; -1: an IPv4 prefix that cannot be. */
static int bits4(unsigned prefix_len)
{
    return prefix_len <= 32 ? (int)prefix_len : -1;
}

/* Behind the prefix everything is 0. */
static bool is_prefix(struct xdsi_addr a, uint32_t bits)
{
    const uint64_t high = __builtin_bswap64(a.high), low = __builtin_bswap64(a.low);

    if (bits >= 128)
        return true;
    return bits >= 64 ? !(bits == 64 ? low : low << (bits - 64)) : !low && !(bits ? high << bits : high);
}

int xds_host_add_route6(struct xds_host *h, const uint8_t dst[16], unsigned prefix_len,
                        const uint8_t gateway[16], const uint8_t source[16], uint32_t metric)
{
    const struct xdsi_addr d = xdsi_addr_of(dst), g = xdsi_addr_of(gateway), s = xdsi_addr_of(source);
    const uint32_t g4 = xdsi_addr_is4(g) ? xdsi_addr_ip4(g) : 0, s4 = xdsi_addr_is4(s) ? xdsi_addr_ip4(s) : 0;

    if (xdsi_addr_is4(d))
        return bits4(prefix_len) < 0 ? XDS_ECONFIG
                                     : xds_host_add_route(h, xdsi_addr_ip4(d), prefix_len, g4, s4, metric);
    if (prefix_len > 128 || !is_prefix(d, prefix_len) || xdsi_addr_is4(g) || xdsi_addr_is4(s) ||
        (!xdsi_addr_none(s) && !xdsi_host_own(h, s)))
        return XDS_ECONFIG;
    if (!xdsi_addr_none(g) && (!on_link(h, g) || xdsi_host_own(h, g)))
        return XDS_EFOREIGN;
    if (find(h, d, prefix_len, metric))
        return XDS_ESTATE;
    if (h->six.route_count == h->cfg.routes)
        return XDS_ECAPACITY;
    h->six.routes[h->six.route_count++] =
        (struct xdsi_route6){.dst = d, .gateway = g, .source = s, .bits = prefix_len, .metric = metric};
    h->version++;
    return 0;
}

int xds_host_del_route6(struct xds_host *h, const uint8_t dst[16], unsigned prefix_len, uint32_t metric)
{
    const struct xdsi_addr d = xdsi_addr_of(dst);

    if (xdsi_addr_is4(d))
        return xds_host_del_route(h, xdsi_addr_ip4(d), prefix_len, metric);
    struct xdsi_route6 *r = find(h, d, prefix_len, metric);
    if (!r)
        return XDS_ESTATE;
    h->six.route_count--;
    memmove(r, r + 1, (size_t)((h->six.routes + h->six.route_count) - r) * sizeof *r); /* the order is kept */
    h->version++;
    return 0;
}

/* ---- the way of a packet -------------------------------------------------------------------------- */

/* Rules 2 and 8 of RFC 6724 5: the others ask for what own addresses here do not have. */
struct xdsi_addr xdsi_source6(const struct xds_host *h, struct xdsi_addr dst)
{
    const struct xdsi_own *best = NULL;
    /* ff01::/16 and ff02::/16 stay on the link, too */
    const bool local = xdsi_addr_link_local(dst) || (xdsi_addr_multicast(dst) && (dst.high >> 8 & 15) <= 2);

    for (uint32_t i = 0; i < h->six.own_count; i++) {
        const struct xdsi_own *o = &h->six.own[i];
        if (o->state != XDS_HOST_OWNED)
            continue;
        const bool fits = xdsi_addr_link_local(o->a) == local;
        const bool best_fits = best && xdsi_addr_link_local(best->a) == local;
        if (!best || (fits && !best_fits) ||
            (fits == best_fits && xdsi_addr_common(o->a, dst) > xdsi_addr_common(best->a, dst)))
            best = o;
    }
    return best ? best->a : XDSI_NO_HOP;
}

/* A router that answers goes before one that may not be there (RFC 4861 6.3.6). */
static struct xdsi_addr router_of(const struct xds_host *h, int64_t now)
{
    struct xdsi_addr found = XDSI_NO_HOP;

    for (uint32_t i = 0; i < XDSI_ROUTERS; i++) {
        const struct xdsi_advert *r = &h->six.routers[i];
        const struct xdsi_neighbour *n = r->until > now ? xdsi_neighbour_find(h, r->a) : NULL;
        if (n && (n->state == XDSI_NB_FIXED || (n->state == XDSI_NB_KNOWN && n->tries == 0)))
            return r->a;
        if (r->until > now && xdsi_addr_none(found))
            found = r->a;
    }
    return found;
}

static void consider(struct xdsi_route6 *best, bool *found, const struct xdsi_route6 *r, struct xdsi_addr dst)
{
    if (!holds(r->dst, r->bits, dst) ||
        (*found && (r->bits < best->bits || (r->bits == best->bits && r->metric >= best->metric))))
        return;
    *best = *r;
    *found = true;
}

int xdsi_host_route6(struct xds_host *h, struct xdsi_addr dst, struct xdsi_hop6 *hop, int64_t now)
{
    const struct xdsi_route6 link = {.dst = {0x80fe, 0}, .bits = 10};
    struct xdsi_route6 best = {.bits = 0};
    bool found = false;

    consider(&best, &found, &link, dst);
    for (uint32_t i = 0; i < h->six.own_count; i++) {
        const struct xdsi_own *o = &h->six.own[i];
        const struct xdsi_route6 r = {.dst = o->a, .bits = o->bits};
        consider(&best, &found, &r, dst);
    }
    for (uint32_t i = 0; i < h->six.route_count; i++)
        consider(&best, &found, &h->six.routes[i], dst);
    for (uint32_t i = 0; i < XDSI_PREFIXES; i++) {
        const struct xdsi_advert *p = &h->six.prefixes[i];
        const struct xdsi_route6 r = {.dst = p->a, .bits = p->bits, .metric = RA_METRIC};
        if (p->until > now)
            consider(&best, &found, &r, dst);
    }
    const struct xdsi_route6 last = {.gateway = router_of(h, now), .metric = RA_METRIC};
    if (!xdsi_addr_none(last.gateway))
        consider(&best, &found, &last, dst);
    const bool direct = xdsi_addr_multicast(dst) || xdsi_neighbour_find(h, dst) != NULL;
    hop->ip = direct || xdsi_addr_none(best.gateway) ? dst : best.gateway;
    hop->src = xdsi_addr_none(best.source) ? xdsi_source6(h, dst) : best.source;
    return found || direct;
}
