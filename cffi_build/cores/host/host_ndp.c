/* host_ndp.c: neighbours asked for and answered over IPv6, and own addresses probed for (RFC 4861 7, 4862 5.4).
 * The entries are those of host_neighbour.c. */
#include "host6_int.h"

#define OPTION_BYTES 8
#define SOLICITED    0x40
#define OVERRIDE     0x20

enum { ROUTER_SOLICIT = 133, ROUTER_ADVERT = 134, SOLICIT = 135, ADVERT = 136 };
enum { SOURCE_LINK = 1, TARGET_LINK = 2 };

const uint8_t *xdsi_ndp_option(const uint8_t *options, uint32_t len, unsigned type, bool *bad)
{
    const uint8_t *found = NULL;

    *bad = false;
    while (len) {
        const uint32_t bytes = len < 2 ? 0 : options[1] * 8u;
        if (!bytes || bytes > len) {
            *bad = true;
            return NULL;
        }
        if (options[0] == type && !found)
            found = options + 2;
        options += bytes;
        len -= bytes;
    }
    return found;
}

/* ---- what is sent --------------------------------------------------------------------------------- */

/* A solicitation or an advertisement for `target`, with own MAC in an option of that type, 0: none. */
static bool send(struct xds_host *h, unsigned type, const uint8_t mac[6], struct xdsi_addr src,
                 struct xdsi_addr dst, struct xdsi_addr target, unsigned flags, unsigned option)
{
    const uint32_t len = XDSI_NDP_BYTES + (option ? OPTION_BYTES : 0);
    uint8_t *m = xdsi_slot6(h, mac, src, dst, XDSI_NEXT_ICMP6, 255, len);

    if (!m)
        return false;
    memset(m, 0, len);
    m[0] = (uint8_t)type;
    m[4] = (uint8_t)flags;
    xdsi_addr_put(m + 8, target);
    if (option) {
        m[XDSI_NDP_BYTES] = (uint8_t)option;
        m[XDSI_NDP_BYTES + 1] = 1;
        memcpy(m + XDSI_NDP_BYTES + 2, h->mac, 6);
    }
    xdsi_seal6(m - XDSI_IPV6_BYTES, m, len);
    return true;
}

/* 7.2.2; 7.3.3: who is known is asked alone. */
void xdsi_ndp_ask(struct xds_host *h, const struct xdsi_neighbour *n)
{
    const bool alone = n->state == XDSI_NB_KNOWN;
    const struct xdsi_addr src = xdsi_source6(h, n->ip), dst = alone ? n->ip : xdsi_solicited(n->ip);
    uint8_t mac[6];

    if (xdsi_addr_none(src))
        return; /* a question without a source is a probe for an address, and answered to all */
    if (alone)
        memcpy(mac, n->mac, 6);
    else
        xdsi_group_mac6(dst, mac);
    h->stats.ndp_asked += send(h, SOLICIT, mac, src, dst, n->ip, 0, SOURCE_LINK);
}

bool xdsi_ndp_probe(struct xds_host *h, struct xdsi_addr own)
{
    const struct xdsi_addr dst = xdsi_solicited(own);
    uint8_t mac[6];

    xdsi_group_mac6(dst, mac);
    return send(h, SOLICIT, mac, XDSI_NO_HOP, dst, own, 0, 0);
}

bool xdsi_ndp_announce(struct xds_host *h, struct xdsi_addr own)
{
    uint8_t mac[6];

    xdsi_group_mac6(xdsi_all_nodes(), mac);
    return send(h, ADVERT, mac, own, xdsi_all_nodes(), own, OVERRIDE, TARGET_LINK);
}

/* ---- what comes ----------------------------------------------------------------------------------- */

/* What a sender says of itself: new, or other than before, it is not confirmed yet (7.2.3). */
static void told(struct xds_host *h, struct xdsi_addr ip, const uint8_t *mac, bool may_add, int64_t now)
{
    struct xdsi_neighbour *n = xdsi_neighbour_find(h, ip);

    if (mac[0] & 1 || (n && n->state == XDSI_NB_FIXED) ||
        (n && n->state == XDSI_NB_KNOWN && !memcmp(n->mac, mac, 6)))
        return;
    if (!n && (!may_add || !(n = xdsi_neighbour_new(h, ip))))
        return;
    h->stats.ndp_learned++;
    xdsi_neighbour_is(h, n, mac, false, now);
}

/* 7.2.4; to who has no address yet, all are told. */
static enum xds_host_reason answer(struct xds_host *h, const struct xdsi_in6 *p, struct xdsi_addr target,
                                   const uint8_t *mac)
{
    const bool probe = xdsi_addr_none(p->src);
    const struct xdsi_addr dst = probe ? xdsi_all_nodes() : p->src;
    uint8_t all[6];

    if (!h->has_mac || h->flags & XDS_HOST_NO_ARP_ANSWER)
        return XDS_HOST_NDP;
    xdsi_group_mac6(xdsi_all_nodes(), all);
    if (!send(h, ADVERT, probe ? all : mac, target, dst, target, probe ? OVERRIDE : SOLICITED | OVERRIDE,
              TARGET_LINK))
        return XDS_HOST_NO_ROOM;
    h->stats.ndp_answered++;
    return XDS_HOST_NDP;
}

static enum xds_host_reason solicited(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                      uint32_t len, int64_t now)
{
    const struct xdsi_addr target = xdsi_addr_of(m + 8);
    const bool probe = xdsi_addr_none(p->src);
    bool bad;
    const uint8_t *mac = xdsi_ndp_option(m + XDSI_NDP_BYTES, len - XDSI_NDP_BYTES, SOURCE_LINK, &bad);

    if (bad || xdsi_addr_multicast(target) ||
        (probe && (mac || !xdsi_addr_same(p->dst, xdsi_solicited(target)))) || (mac && mac[0] & 1))
        return XDS_HOST_NDP_BAD; /* 7.1.1 */
    struct xdsi_own *own = xdsi_addr_is4(target) ? NULL : xdsi_host_own(h, target);
    if (!own || !memcmp(p->frame + 6, h->mac, 6)) /* our own, by a switch that sends it back */
        return XDS_HOST_NDP;
    if (own->state != XDS_HOST_OWNED) {
        if (probe && own->state == XDS_HOST_PROBING &&
            !(h->flags & XDS_HOST_NO_ARP_ANSWER)) /* RFC 4862 5.4.3 */
            xdsi_claim_conflict(h, own, p->frame + 6, now);
        return XDS_HOST_NDP;
    }
    if (mac && !xdsi_host_own(h, p->src))
        told(h, p->src, mac, true, now);
    return answer(h, p, target, mac ? mac : p->frame + 6);
}

/* 7.2.5, but for a router that is none any more: its advertisement will say so. */
static void confirmed(struct xds_host *h, struct xdsi_neighbour *n, const uint8_t *mac, unsigned flags,
                      int64_t now)
{
    const bool same = !mac || !memcmp(mac, n->mac, 6), fresh = flags & SOLICITED;

    if (n->state == XDSI_NB_FIXED || (n->state == XDSI_NB_ASKED && !mac))
        return;
    if (n->state == XDSI_NB_KNOWN && !same && !(flags & OVERRIDE)) {
        if (n->seen_ns > now - h->cfg.age_ns - 1) { /* another claims it: the next use asks */
            n->seen_ns = now - h->cfg.age_ns - 1;
            h->version++;
        }
        return;
    }
    if (n->state == XDSI_NB_KNOWN && same && !fresh)
        return;
    h->stats.ndp_learned++;
    xdsi_neighbour_is(
        h, n,
        mac ? mac : (const uint8_t[6]){n->mac[0], n->mac[1], n->mac[2], n->mac[3], n->mac[4], n->mac[5]},
        fresh, now);
}

static enum xds_host_reason advertised(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                       uint32_t len, int64_t now)
{
    const struct xdsi_addr target = xdsi_addr_of(m + 8);
    bool bad;
    const uint8_t *mac = xdsi_ndp_option(m + XDSI_NDP_BYTES, len - XDSI_NDP_BYTES, TARGET_LINK, &bad);

    if (bad || xdsi_addr_multicast(target) || xdsi_addr_none(p->src) ||
        (xdsi_addr_multicast(p->dst) && m[4] & SOLICITED) || (mac && mac[0] & 1))
        return XDS_HOST_NDP_BAD; /* 7.1.2 */
    struct xdsi_own *own = xdsi_addr_is4(target) ? NULL : xdsi_host_own(h, target);
    if (own && memcmp(p->frame + 6, h->mac, 6) != 0 && !(h->flags & XDS_HOST_NO_ARP_ANSWER))
        xdsi_claim_conflict(h, own, mac ? mac : p->frame + 6, now);
    struct xdsi_neighbour *n = own ? NULL : xdsi_neighbour_find(h, target);
    if (n)
        confirmed(h, n, mac, m[4], now);
    return XDS_HOST_NDP;
}

enum xds_host_reason xdsi_host_ndp(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                   uint32_t len, int64_t now)
{
    if (p->ip[7] != 255 || m[1] != 0) /* nobody but a neighbour can send that */
        return XDS_HOST_NDP_BAD;
    if (m[0] == ROUTER_SOLICIT)
        return XDS_HOST_NDP; /* we are none */
    if (m[0] == ROUTER_ADVERT)
        return xdsi_router_advert(h, p, m, len, now);
    if (len < XDSI_NDP_BYTES)
        return XDS_HOST_NDP_BAD;
    return m[0] == SOLICIT ? solicited(h, p, m, len, now) : advertised(h, p, m, len, now);
}
