/* host_icmp6.c: ICMPv6 (RFC 4443): echoes answered, errors sent, errors about packets of ours. */
#include "host6_int.h"

#define QUOTE_BYTES (XDSI_IPV6_MTU_LEAST - XDSI_IPV6_BYTES - XDSI_ICMP6_BYTES)
#define WALK_MAX    8
#define REDIRECT    137

enum { ECHO = 128, ECHO_REPLY = 129 };

/* ---- errors sent ---------------------------------------------------------------------------------- */

/* What a packet carries behind its extension headers; false: that is not in these bytes. */
static bool carries_error(const uint8_t *ip, uint32_t bytes)
{
    uint32_t at = XDSI_IPV6_BYTES;
    uint8_t next = ip[6];

    for (unsigned n = 0; n < WALK_MAX; n++) {
        if (next != XDSI_NEXT_HOPS && next != XDSI_NEXT_ROUTING && next != XDSI_NEXT_OPTIONS &&
            next != XDSI_NEXT_FRAGMENT)
            break;
        if (bytes - at < 8)
            return true; /* it cannot be known, so nothing is said */
        if (next == XDSI_NEXT_FRAGMENT && xdsi_be16(ip + at + 2) & 0xfff8)
            return false; /* a later piece: only what is wrong with its own header is told */
        const uint32_t size = next == XDSI_NEXT_FRAGMENT ? 8 : (ip[at + 1] + 1u) * 8;
        next = ip[at];
        if (size > bytes - at)
            return true;
        at += size;
    }
    return next == XDSI_NEXT_ICMP6 && (at >= bytes || ip[at] < 128 || ip[at] == REDIRECT);
}

/* 2.4 e: never about an error, nor to who is not one; about what went to a group only as e.3 says. */
static bool may_be_told(const struct xds_host *h, unsigned type, unsigned code, const uint8_t *frame,
                        uint32_t l2, uint32_t bytes)
{
    const uint8_t *ip = frame + l2;
    const struct xdsi_addr src = xdsi_addr_of(ip + 8), dst = xdsi_addr_of(ip + 24);
    const bool to_many = frame[0] & 1 || xdsi_addr_multicast(dst);

    if (h->promiscuous || xdsi_addr_none(src) || xdsi_addr_multicast(src) || xdsi_addr_is4(src) ||
        (!src.high && src.low == 1ull << 56))
        return false;
    if (to_many && !(type == XDSI_ICMP6_PARAMETER && code == 2))
        return false;
    const struct xdsi_own *own = xdsi_addr_multicast(dst) ? NULL : xdsi_host_own(h, dst);
    if (!xdsi_addr_multicast(dst) && (!own || own->state != XDS_HOST_OWNED))
        return false;
    return !carries_error(ip, bytes);
}

int xdsi_icmp6_error(struct xds_host *h, unsigned type, unsigned code, uint32_t word, const uint8_t *frame,
                     uint32_t l2, uint32_t bytes, int64_t now)
{
    uint8_t m[XDSI_ICMP6_BYTES + QUOTE_BYTES] = {(uint8_t)type, (uint8_t)code};
    const uint8_t *ip = frame + l2;
    const uint32_t quoted = bytes < QUOTE_BYTES ? bytes : QUOTE_BYTES;
    struct xds_ip_head head = {.protocol = XDSI_NEXT_ICMP6, .checksum_at = 2};

    if (!may_be_told(h, type, code, frame, l2, bytes) || !xdsi_host_may_tell(h, now))
        return 0;
    xdsi_put_raw32(m + 4, __builtin_bswap32(word));
    memcpy(m + XDSI_ICMP6_BYTES, ip, quoted);
    if (ip[24] != 0xff) /* else the source is chosen (2.2) */
        memcpy(head.src, ip + 24, 16);
    memcpy(head.dst, ip + 8, 16);
    const int rc = xdsi_ip6_later(h, &head, m, XDSI_ICMP6_BYTES + quoted, now);
    h->stats.icmp_told += rc == 0;
    return rc < 0 ? rc : 1;
}

/* The codes of ICMP, and what says the same here. */
int xdsi_unreachable6(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t len, unsigned code,
                      int64_t now)
{
    static const uint8_t codes[16] = {[0] = 0, [1] = 3, [3] = 4, [9] = 1, [10] = 1, [13] = 1};
    const uint8_t *ip = frame + l2;
    const uint32_t total = XDSI_IPV6_BYTES + xdsi_be16(ip + 4);

    if (ip[0] >> 4 != 6 || total > len || (code && !codes[code]))
        return XDS_ECONFIG;
    return xdsi_icmp6_error(h, XDSI_ICMP6_UNREACHABLE, codes[code], 0, frame, l2, total, now);
}

/* ---- errors taken --------------------------------------------------------------------------------- */

/* A datagram's sender has no socket here: what became of it is counted. */
static enum xds_host_reason about_udp(struct xds_host *h, struct xdsi_addr dst, uint32_t ports, int64_t now)
{
    const struct xds_host_error *e = &h->error;
    const uint32_t at = ((uint32_t)dst.low ^ (uint32_t)(dst.low >> 32) ^ ports) * 0x9e3779b1u >> 28;
    const struct xdsi_flow6 *f = &h->six.flows[at];

    if (!xdsi_addr_same(f->dst, dst) || f->ports != ports)
        return XDS_HOST_ICMP_STRAY;
    if (e->mtu)
        xds_host_path_learn(h, e->dst, e->mtu, now);
    else if (e->type == XDSI_ICMP6_UNREACHABLE && e->code == 4)
        h->stats.udp_refused++;
    else
        h->stats.udp_unreachable++;
    return XDS_HOST_ICMP_ERROR;
}

/* What was sent had no extension headers. */
static enum xds_host_reason about(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                  uint32_t len, int64_t now)
{
    const uint8_t *q = m + XDSI_ICMP6_BYTES;

    if (len < XDSI_ICMP6_BYTES + XDSI_IPV6_BYTES + 8 || q[0] >> 4 != 6)
        return XDS_HOST_ICMP_STRAY;
    const struct xdsi_addr src = xdsi_addr_of(q + 8), dst = xdsi_addr_of(q + 24);
    const uint32_t total = XDSI_IPV6_BYTES + xdsi_be16(q + 4);
    const uint32_t said = __builtin_bswap32(xdsi_raw32(m + 4));
    if (total < XDSI_IPV6_BYTES + 8 || xdsi_addr_is4(src) || !xdsi_host_own(h, src) ||
        !xdsi_addr_same(src, p->dst) || xdsi_addr_none(dst) || xdsi_addr_multicast(dst) ||
        (m[0] == XDSI_ICMP6_TOO_BIG && (said < XDSI_IPV6_MTU_LEAST || said >= total))) /* RFC 8201 4 */
        return XDS_HOST_ICMP_STRAY;
    const uint8_t *u = q + XDSI_IPV6_BYTES;
    h->error = (struct xds_host_error){.ns = now,
                                       .type = m[0],
                                       .code = m[1],
                                       .protocol = q[6],
                                       .sport = xdsi_be16(u),
                                       .dport = xdsi_be16(u + 2),
                                       .seq = __builtin_bswap32(xdsi_raw32(u + 4)),
                                       .mtu = m[0] == XDSI_ICMP6_TOO_BIG ? said : 0};
    xdsi_addr_put(h->error.src, src);
    xdsi_addr_put(h->error.dst, dst);
    xdsi_addr_put(h->error.from, p->src);
    return q[6] == XDSI_IPPROTO_UDP ? about_udp(h, dst, xdsi_raw32(u), now) : XDS_HOST_ICMP_ERROR;
}

/* ---- what comes ----------------------------------------------------------------------------------- */

/* 4.2: the same bytes back, from the address that was asked, or of a group's members from one of theirs. */
static enum xds_host_reason echo(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m, uint32_t len)
{
    const bool group = xdsi_addr_multicast(p->dst);
    const struct xdsi_addr src = group ? xdsi_source6(h, p->src) : p->dst;
    const struct xdsi_own *own = xdsi_host_own(h, src);

    if (h->flags & XDS_HOST_NO_ECHO || !own || own->state != XDS_HOST_OWNED || xdsi_addr_none(p->src))
        return XDS_HOST_ICMP_OTHER;
    uint8_t *out = XDSI_IPV6_BYTES + len > xdsi_mtu6(h, p->src, 0)
                       ? NULL
                       : xdsi_slot6(h, p->frame + 6, src, p->src, XDSI_NEXT_ICMP6, h->cfg.ttl, len);
    if (!out)
        return XDS_HOST_NO_ROOM;
    out[-XDSI_IPV6_BYTES + 1] = (uint8_t)(p->ip[1] & 0xf0); /* the traffic class, as it came */
    out[-XDSI_IPV6_BYTES] = (uint8_t)(0x60 | (p->ip[0] & 15));
    memcpy(out, m, len);
    out[0] = ECHO_REPLY;
    xdsi_seal6(out - XDSI_IPV6_BYTES, out, len);
    h->stats.echo_answered++;
    return XDS_HOST_ICMP_ECHO;
}

enum xds_host_reason xdsi_host_icmp6(struct xds_host *h, const struct xdsi_in6 *p, int64_t now)
{
    const uint8_t *m = p->ip + p->at;
    const uint32_t len = p->total - p->at;

    if (len < 4 ||
        xdsi_csum_fold(xdsi_csum_add(xdsi_pseudo6(p->ip + 8, XDSI_NEXT_ICMP6, len), m, len)) != 0xffff)
        return XDS_HOST_ICMP_BAD;
    if (m[0] >= XDSI_ICMP6_UNREACHABLE && m[0] <= XDSI_ICMP6_PARAMETER)
        return about(h, p, m, len, now);
    if (m[0] >= 133 && m[0] <= 136)
        return xdsi_host_ndp(h, p, m, len, now);
    if ((m[0] >= 130 && m[0] <= 132) || m[0] == 143)
        return xdsi_host_mld(h, p, m, len, now);
    if (m[0] == ECHO && m[1] == 0 && len >= XDSI_ICMP6_BYTES)
        return echo(h, p, m, len);
    return XDS_HOST_ICMP_OTHER; /* redirects too: they are the business of who has the routes */
}
