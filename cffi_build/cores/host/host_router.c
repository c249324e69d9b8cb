/* host_router.c: routers asked for, and what they advertise: themselves, what is on the link, its MTU, hop limits
 * (RFC 4861 6.3). Addresses are not made of prefixes: they are the caller's. */
#include "host6_int.h"

#define SOLICITS       3
#define SOLICIT_NS     4000000000
#define SECOND         1000000000ll
#define HEAD_BYTES     16
#define FOR_EVER       0xffffffffu
#define ON_LINK        0x80
#define ROUTER_SOLICIT 133

enum { SOURCE_LINK = 1, PREFIX = 3, MTU = 5 };

/* The entry for it, or one that is free, or the one that ends first. */
static struct xdsi_advert *entry(struct xdsi_advert *list, uint32_t count, struct xdsi_addr a, uint32_t bits)
{
    struct xdsi_advert *first = &list[0];

    for (uint32_t i = 0; i < count; i++) {
        if (list[i].until != INT64_MIN && xdsi_addr_same(list[i].a, a) && list[i].bits == bits)
            return &list[i];
        if (list[i].until < first->until)
            first = &list[i];
    }
    return first;
}

static void note(struct xdsi_advert *list, uint32_t count, struct xdsi_addr a, uint32_t bits,
                 uint32_t seconds, int64_t now)
{
    struct xdsi_advert *e = entry(list, count, a, bits);
    const bool there = e->until != INT64_MIN && xdsi_addr_same(e->a, a) && e->bits == bits;

    if (!seconds && !there)
        return;
    *e = (struct xdsi_advert){.a = a,
                              .bits = bits,
                              .until = !seconds              ? INT64_MIN
                                       : seconds == FOR_EVER ? XDS_NEVER
                                                             : now + seconds * SECOND};
}

static void take_prefix(struct xds_host *h, const uint8_t *o, int64_t now)
{
    if (o[1] != 4) /* its length: nothing behind it is read */
        return;
    struct xdsi_addr a = xdsi_addr_of(o + 16);
    const uint32_t bits = o[2];
    if (bits > 128 || !(o[3] & ON_LINK) || xdsi_addr_link_local(a) || xdsi_addr_multicast(a))
        return;
    a.high = bits ? a.high & __builtin_bswap64(bits < 64 ? ~(~0ull >> bits) : ~0ull) : 0;
    a.low = bits > 64 ? a.low & __builtin_bswap64(bits < 128 ? ~(~0ull >> (bits - 64)) : ~0ull) : 0;
    note(h->six.prefixes, XDSI_PREFIXES, a, bits, __builtin_bswap32(xdsi_raw32(o + 4)), now);
}

enum xds_host_reason xdsi_router_advert(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                        uint32_t len, int64_t now)
{
    bool bad;

    if (len < HEAD_BYTES || !xdsi_addr_link_local(p->src))
        return XDS_HOST_NDP_BAD; /* 6.1.2 */
    const uint8_t *mac = xdsi_ndp_option(m + HEAD_BYTES, len - HEAD_BYTES, SOURCE_LINK, &bad);
    if (bad || (mac && mac[0] & 1))
        return XDS_HOST_NDP_BAD;
    if (!(h->flags & XDS_HOST_ROUTERS) || xdsi_host_own(h, p->src))
        return XDS_HOST_NDP;
    h->stats.routers_heard++;
    h->six.solicit_due = XDS_NEVER;
    if (m[4])
        h->six.hops = m[4];
    note(h->six.routers, XDSI_ROUTERS, p->src, 128, xdsi_be16(m + 6), now);
    struct xdsi_neighbour *n = xdsi_neighbour_find(h, p->src);
    if (mac &&
        (!n || (n->state != XDSI_NB_FIXED && (n->state == XDSI_NB_ASKED || memcmp(n->mac, mac, 6) != 0)))) {
        if (n || (n = xdsi_neighbour_new(h, p->src))) {
            h->stats.ndp_learned++;
            xdsi_neighbour_is(h, n, mac, false, now);
        }
    }
    for (const uint8_t *o = m + HEAD_BYTES; o < m + len; o += o[1] * 8u) {
        const uint32_t said = o[0] == MTU && o[1] == 1 ? __builtin_bswap32(xdsi_raw32(o + 4)) : 0;
        if (o[0] == PREFIX)
            take_prefix(h, o, now);
        else if (said >= XDSI_IPV6_MTU_LEAST && said <= h->cfg.mtu)
            h->six.mtu = said;
    }
    h->version++; /* ways made before are not used again */
    return XDS_HOST_NDP;
}

/* ---- asking --------------------------------------------------------------------------------------- */

static bool solicit(struct xds_host *h)
{
    const struct xdsi_addr src = xdsi_source6(h, xdsi_all_routers());
    const uint32_t option = xdsi_addr_none(src) ? 0 : 8, len = 8 + option; /* 4.1: none without a source */
    uint8_t mac[6], *m;

    xdsi_group_mac6(xdsi_all_routers(), mac);
    m = xdsi_slot6(h, mac, src, xdsi_all_routers(), XDSI_NEXT_ICMP6, 255, len);
    if (!m)
        return false;
    memset(m, 0, len);
    m[0] = ROUTER_SOLICIT;
    if (option) {
        m[8] = SOURCE_LINK;
        m[9] = 1;
        memcpy(m + 10, h->mac, 6);
    }
    xdsi_seal6(m - XDSI_IPV6_BYTES, m, len);
    h->stats.routers_asked++;
    return true;
}

static int64_t first_end(const struct xdsi_advert *list, uint32_t count)
{
    int64_t first = XDS_NEVER;

    for (uint32_t i = 0; i < count; i++)
        if (list[i].until != INT64_MIN && list[i].until < first)
            first = list[i].until;
    return first;
}

int64_t xdsi_router_deadline(const struct xds_host *h)
{
    const int64_t a = first_end(h->six.routers, XDSI_ROUTERS), b = first_end(h->six.prefixes, XDSI_PREFIXES);
    const int64_t first = a < b ? a : b;

    return h->six.solicit_due < first ? h->six.solicit_due : first;
}

static void forget(struct xds_host *h, struct xdsi_advert *list, uint32_t count, int64_t now)
{
    for (uint32_t i = 0; i < count; i++)
        if (list[i].until != INT64_MIN && list[i].until <= now) {
            list[i].until = INT64_MIN;
            h->version++;
        }
}

void xdsi_router_tick(struct xds_host *h, int64_t now)
{
    forget(h, h->six.routers, XDSI_ROUTERS, now);
    forget(h, h->six.prefixes, XDSI_PREFIXES, now);
    if (h->six.solicit_due > now)
        return;
    h->six.solicits += solicit(h);
    h->six.solicit_due = h->six.solicits < SOLICITS ? now + SOLICIT_NS : XDS_NEVER;
}
