/* host_path.c: what ICMP errors say of the ways that our packets took: told upwards with the flow inside them,
 * and how large a packet may be on its way (RFC 1191).
 *
 * An error may be forged by who sees nothing of the flow, so a path's MTU is learned when the flow's owner
 * vouches for it (RFC 5927 4.1), who compared sequence numbers; of datagrams, when the flow was used a moment
 * ago. An entry only shrinks, and is forgotten in time; of a full table the one that is forgotten first goes.
 */
#include "host6_int.h"

/* RFC 1191 7: for routers that do not say how large. */
static const uint16_t plateaus[] = {32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68};

static uint32_t plateau_below(uint32_t total)
{
    uint32_t i = 0;

    while (i + 1 < sizeof plateaus / sizeof *plateaus && plateaus[i] >= total)
        i++;
    return plateaus[i];
}

static void forget(struct xds_host *h, struct xdsi_path *p)
{
    *p = h->paths[--h->path_count];
    h->version++; /* ways made for other sizes are not used again */
}

struct xdsi_path *xdsi_host_path(struct xds_host *h, struct xdsi_addr dst, int64_t now)
{
    for (uint32_t i = 0; i < h->path_count; i++) {
        struct xdsi_path *p = &h->paths[i];
        if (!xdsi_addr_same(p->dst, dst))
            continue;
        if (p->until > now)
            return p;
        h->stats.path_forgotten++;
        forget(h, p);
        return NULL;
    }
    return NULL;
}

int xds_host_path_mtu(struct xds_host *h, const uint8_t dst[16], int64_t now)
{
    const struct xdsi_addr a = xdsi_addr_of(dst);

    if (!xdsi_addr_is4(a) && !h->six.own_count)
        return XDS_EFOREIGN;
    return (int)(xdsi_addr_is4(a) ? xdsi_host_mtu(h, xdsi_addr_ip4(a), now) : xdsi_mtu6(h, a, now));
}

static struct xdsi_path *path_new(struct xds_host *h)
{
    struct xdsi_path *first = &h->paths[0];

    if (h->path_count < h->cfg.paths)
        return &h->paths[h->path_count++];
    for (uint32_t i = 1; i < h->path_count; i++)
        if (h->paths[i].until < first->until)
            first = &h->paths[i];
    h->stats.path_evicted++;
    return first;
}

/* RFC 8201 4: a packet of 1,280 bytes passes everywhere, so what says less says nothing. */
static int learn(struct xds_host *h, struct xdsi_addr dst, uint32_t said, int64_t now)
{
    const bool six = !xdsi_addr_is4(dst);
    const uint32_t least = h->cfg.path_least < h->cfg.mtu ? h->cfg.path_least : h->cfg.mtu;
    const bool cut = !six && said < least;
    const uint32_t mtu = cut ? least : said;
    struct xdsi_path *p = xdsi_host_path(h, dst, now);

    if (six && (said < XDSI_IPV6_MTU_LEAST || !h->six.own_count))
        return 0;
    if (mtu > h->cfg.mtu || (mtu == h->cfg.mtu && !cut) ||
        (p && (mtu > p->mtu || (mtu == p->mtu && p->cut >= cut))))
        return 0;
    if (!p)
        p = path_new(h);
    *p = (struct xdsi_path){.until = now + h->cfg.path_ns, .dst = dst, .mtu = (uint16_t)mtu, .cut = cut};
    h->version++;
    h->stats.path_learned++;
    return 1;
}

int xds_host_path_learn(struct xds_host *h, const uint8_t dst[16], uint32_t mtu, int64_t now)
{
    return mtu ? learn(h, xdsi_addr_of(dst), mtu, now) : 0;
}

const struct xds_host_error *xds_host_error(const struct xds_host *h)
{
    return &h->error;
}

/* A datagram's sender has no socket here: what became of it is counted. */
static enum xds_host_reason about_udp(struct xds_host *h, uint32_t dst, uint32_t ports, int64_t now)
{
    const struct xds_host_error *e = &h->error;

    if (!xdsi_host_way_is_known(h, dst, ports))
        return XDS_HOST_ICMP_STRAY;
    if (e->mtu)
        learn(h, xdsi_addr4(dst), e->mtu, now);
    else if (e->type == 3 && (e->code == 2 || e->code == 3))
        h->stats.udp_refused++;
    else if (e->type != 5)
        h->stats.udp_unreachable++;
    return XDS_HOST_ICMP_ERROR;
}

enum xds_host_reason xdsi_host_icmp_about(struct xds_host *h, const uint8_t *ip, const uint8_t *m,
                                          uint32_t len, int64_t now)
{
    const uint8_t *q = m + 8; /* the packet that it is about */

    if (len < 8 + XDSI_IPV4_BYTES || q[0] >> 4 != 4)
        return XDS_HOST_ICMP_STRAY;
    const uint32_t ihl = (q[0] & 15u) * 4, total = xdsi_be16(q + 2), src = xdsi_raw32(q + 12);
    const uint32_t dst = xdsi_raw32(q + 16);
    if (ihl < XDSI_IPV4_BYTES || len < 8 + ihl + 8 || total < ihl + 8 || (xdsi_be16(q + 6) & 0x1fff) ||
        !xdsi_host_is_own(h, src) || src != xdsi_raw32(ip + 16) || !dst || xdsi_is_multicast(dst))
        return XDS_HOST_ICMP_STRAY; /* nothing that we sent */
    h->error = (struct xds_host_error){.ns = now,
                                       .type = m[0],
                                       .code = m[1],
                                       .protocol = q[9],
                                       .sport = xdsi_be16(q + ihl),
                                       .dport = xdsi_be16(q + ihl + 2),
                                       .seq = __builtin_bswap32(xdsi_raw32(q + ihl + 4))};
    xdsi_map4(h->error.src, src);
    xdsi_map4(h->error.dst, dst);
    xdsi_map4(h->error.from, xdsi_raw32(ip + 12));
    if (m[0] == 3 && m[1] == 4) {
        const uint32_t said = xdsi_be16(m + 6);
        h->error.mtu = said >= 68 && said < total ? said : plateau_below(total);
    }
    if (q[9] == XDSI_IPPROTO_UDP)
        return about_udp(h, dst, xdsi_raw32(q + ihl), now);
    return XDS_HOST_ICMP_ERROR;
}
