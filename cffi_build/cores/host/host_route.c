/* host_route.c: which way a packet leaves, and from which address: the longest prefix, then the lowest
 * metric, then who came first, as Linux's tables are read (RFC 1122 3.3.1 and 3.3.4.2). */
#include "host_int.h"

static uint32_t mask_of(unsigned prefix_len)
{
    return prefix_len ? __builtin_bswap32(0xffffffffu << (32 - prefix_len)) : 0;
}

/* The first own address whose prefix holds ip, or 0. */
static uint32_t own_beside(const struct xds_host *h, uint32_t ip)
{
    for (uint32_t i = 0; i < h->own_count; i++)
        if (!((h->own[i].ip ^ ip) & h->own[i].mask))
            return h->own[i].ip;
    return 0;
}

static struct xdsi_route *find(struct xds_host *h, uint32_t dst, uint32_t mask, uint32_t metric)
{
    for (uint32_t i = 0; i < h->route_count; i++)
        if (h->routes[i].dst == dst && h->routes[i].mask == mask && h->routes[i].metric == metric)
            return &h->routes[i];
    return NULL;
}

int xds_host_add_route(struct xds_host *h, uint32_t dst, unsigned prefix_len, uint32_t gateway,
                       uint32_t source, uint32_t metric)
{
    if (prefix_len > 32 || (dst & ~mask_of(prefix_len)) || (source && !xdsi_host_is_own(h, source)))
        return XDS_ECONFIG;
    if (gateway && (!own_beside(h, gateway) || xdsi_host_is_own(h, gateway)))
        return XDS_EFOREIGN;
    if (find(h, dst, mask_of(prefix_len), metric))
        return XDS_ESTATE;
    if (h->route_count == h->cfg.routes)
        return XDS_ECAPACITY;
    h->routes[h->route_count++] = (struct xdsi_route){
        .dst = dst, .mask = mask_of(prefix_len), .gateway = gateway, .source = source, .metric = metric};
    h->version++;
    return 0;
}

int xds_host_del_route(struct xds_host *h, uint32_t dst, unsigned prefix_len, uint32_t metric)
{
    struct xdsi_route *r = prefix_len > 32 ? NULL : find(h, dst, mask_of(prefix_len), metric);

    if (!r)
        return XDS_ESTATE;
    h->route_count--;
    memmove(r, r + 1, (size_t)((h->routes + h->route_count) - r) * sizeof *r); /* the order is kept */
    h->version++;
    return 0;
}

/* Masks compare as numbers in host order: the longer is the greater. */
static bool better(const struct xdsi_route *r, const struct xdsi_route *best)
{
    const uint32_t mine = __builtin_bswap32(r->mask), theirs = best ? __builtin_bswap32(best->mask) : 0;

    return !best || mine > theirs || (mine == theirs && r->metric < best->metric);
}

/* A group goes from the first address, unless a route says another. */
static int to_group(const struct xds_host *h, uint32_t dst, struct xdsi_hop *hop)
{
    const struct xdsi_route *best = NULL;

    for (uint32_t i = 0; i < h->route_count; i++)
        if (!((h->routes[i].dst ^ dst) & h->routes[i].mask) && better(&h->routes[i], best))
            best = &h->routes[i];
    *hop = (struct xdsi_hop){.ip = dst, .src = best && best->source ? best->source : h->own[0].ip};
    return 1;
}

int xdsi_host_route(const struct xds_host *h, uint32_t dst, struct xdsi_hop *hop)
{
    struct xdsi_route best = {0};
    bool found = false;

    if (xdsi_is_multicast(dst))
        return to_group(h, dst, hop);
    for (uint32_t i = 0; i < h->own_count; i++) {
        const struct xdsi_route r = {.mask = h->own[i].mask, .source = h->own[i].ip};
        if (!((h->own[i].ip ^ dst) & r.mask) && better(&r, found ? &best : NULL)) {
            best = r;
            found = true;
        }
    }
    const struct xdsi_route last = {.gateway = h->cfg.gateway};
    for (uint32_t i = 0; i <= h->route_count; i++) {
        const struct xdsi_route *r = i ? &h->routes[i - 1] : &last;
        if ((!i && !last.gateway) || ((r->dst ^ dst) & r->mask) || !better(r, found ? &best : NULL))
            continue;
        best = *r;
        found = true;
    }
    const bool direct =
        xdsi_neighbour_find(h, xdsi_addr4(dst)) != NULL; /* who is known to be here needs no gateway */
    hop->ip = !best.gateway || direct ? dst : best.gateway;
    hop->src = best.source ? best.source : best.gateway ? own_beside(h, best.gateway) : 0;
    if (!hop->src)
        hop->src = h->own[0].ip;
    return found || direct;
}
