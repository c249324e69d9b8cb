/* host_ip6.c: IPv6 as it comes in: its header, extension headers, fragments, UDP (RFC 8200, 6946, 7112).
 *
 * Headers are walked once, in the order in which they stand, eight at most, and with as many options each; what
 * cannot be is named, and where the sender is to be told (RFC 4443 3.4), it is told.
 */
#include "host6_int.h"

#define HEADERS_MAX 8
#define OPTIONS_MAX 8 /* but for padding */

enum { PAD1 = 0, PADN = 1, ROUTER_ALERT = 5 };
enum {
    POINT_VALUE = 0,
    POINT_NEXT = 1,
    POINT_OPTION = 2,
    POINT_CHAIN = 3
}; /* codes of a parameter problem */

const struct xds_dgram6 *xds_host_dgram6(const struct xds_host *h)
{
    return &h->six.dgram;
}

static enum xds_host_reason problem(struct xds_host *h, const struct xdsi_in6 *p, unsigned code, uint32_t at,
                                    enum xds_host_reason reason, int64_t now)
{
    xdsi_icmp6_error(h, XDSI_ICMP6_PARAMETER, code, at, p->frame, p->l2, p->total, now);
    return reason;
}

/* RFC 8200 4.2: the upper two bits of an unknown one say what is to be done. */
static enum xds_host_reason options(struct xds_host *h, struct xdsi_in6 *p, uint32_t end, bool hops,
                                    int64_t now)
{
    uint32_t at = p->at + 2, known = 0;

    while (at < end) {
        const uint8_t type = p->ip[at];
        if (type == PAD1) {
            at++;
            continue;
        }
        if (end - at < 2 || p->ip[at + 1] + 2u > end - at || (type != PADN && ++known > OPTIONS_MAX))
            return XDS_HOST_HEADERS_BAD;
        if (hops && type == ROUTER_ALERT)
            p->alert = true;
        else if (type >> 6 == 1)
            return XDS_HOST_OPTION;
        else if (type >> 6 == 2 || (type >> 6 == 3 && !xdsi_addr_multicast(p->dst)))
            return problem(h, p, POINT_OPTION, at, XDS_HOST_OPTION, now);
        else if (type >> 6 == 3)
            return XDS_HOST_OPTION;
        at += p->ip[at + 1] + 2u;
    }
    return XDS_HOST_DELIVERED;
}

static bool is_extension(uint8_t protocol)
{
    return protocol == XDSI_NEXT_HOPS || protocol == XDSI_NEXT_OPTIONS || protocol == XDSI_NEXT_ROUTING ||
           protocol == XDSI_NEXT_FRAGMENT;
}

/* One extension header of `bytes`; p moves behind it. */
static enum xds_host_reason pass(struct xds_host *h, struct xdsi_in6 *p, int64_t now)
{
    const uint8_t *e = p->ip + p->at;
    const uint32_t bytes = p->protocol == XDSI_NEXT_FRAGMENT ? 8 : (e[1] + 1u) * 8;
    enum xds_host_reason reason = XDS_HOST_DELIVERED;

    if (bytes > p->total - p->at)
        return XDS_HOST_HEADERS_BAD;
    if (p->protocol == XDSI_NEXT_ROUTING && e[3]) /* 4.4; type 0 too (RFC 5095) */
        return problem(h, p, POINT_VALUE, p->at + 2, XDS_HOST_ROUTING, now);
    if (p->protocol == XDSI_NEXT_HOPS || p->protocol == XDSI_NEXT_OPTIONS)
        reason = options(h, p, p->at + bytes, p->protocol == XDSI_NEXT_HOPS, now);
    p->named_at = p->at;
    p->protocol = e[0];
    p->at += bytes;
    return reason;
}

/* Up to what is no extension header, or to the header of a fragment. */
static enum xds_host_reason walk(struct xds_host *h, struct xdsi_in6 *p, int64_t now)
{
    const uint32_t first = p->at;

    for (unsigned n = 0; is_extension(p->protocol); n++) {
        if (n == HEADERS_MAX || p->total - p->at < 8)
            return XDS_HOST_HEADERS_BAD;
        if (p->protocol == XDSI_NEXT_HOPS && (p->at != first || p->was_whole))
            return problem(h, p, POINT_NEXT, p->named_at, XDS_HOST_HEADERS_BAD, now);
        if (p->protocol == XDSI_NEXT_FRAGMENT && xdsi_be16(p->ip + p->at + 2) & 0xfff9)
            return p->was_whole ? XDS_HOST_HEADERS_BAD : XDS_HOST_FRAGMENT;
        const enum xds_host_reason reason = pass(h, p, now);
        if (reason != XDS_HOST_DELIVERED)
            return reason;
    }
    return XDS_HOST_DELIVERED;
}

static enum xds_host_reason udp6(struct xds_host *h, const struct xdsi_in6 *p)
{
    const uint8_t *u = p->ip + p->at;
    const uint32_t room = p->total - p->at, len = room < XDSI_UDP_BYTES ? 0 : xdsi_be16(u + 4);

    if (len < XDSI_UDP_BYTES || len > room)
        return XDS_HOST_UDP_LENGTH;
    const uint64_t pseudo = xdsi_pseudo6(p->ip + 8, XDSI_IPPROTO_UDP, len);
    const uint16_t given = xdsi_raw16(u + 6);
    if (given && (h->flags & XDS_HOST_NO_MULTICAST_CHECKSUM) && xdsi_addr_multicast(p->dst)) {
        h->stats.unverified++;
    } else if (!given || xdsi_csum_fold(xdsi_csum_add(pseudo, u, len)) != 0xffff) { /* 8.1: 0 is none */
        if (!given || !(h->flags & XDS_HOST_PARTIAL_CHECKSUM) || given != xdsi_csum_fold(pseudo))
            return XDS_HOST_UDP_CHECKSUM;
        h->stats.partial_checksum++;
    }
    h->six.dgram = (struct xds_dgram6){.data = u + XDSI_UDP_BYTES,
                                       .len = len - XDSI_UDP_BYTES,
                                       .sport = xdsi_be16(u),
                                       .dport = xdsi_be16(u + 2),
                                       .tos = (uint8_t)(xdsi_be16(p->ip) >> 4),
                                       .hops = p->ip[7]};
    xdsi_addr_put(h->six.dgram.src, p->src);
    xdsi_addr_put(h->six.dgram.dst, p->dst);
    return XDS_HOST_DATAGRAM6;
}

#define IPPROTO_OF_TCP 6
#define TCP_CHECKSUM   16

static enum xds_host_reason other(struct xds_host *h, const struct xdsi_in6 *p, int64_t now)
{
    const uint8_t *data = p->ip + p->at;
    const uint32_t len = p->total - p->at;

    if (!(h->take[p->protocol >> 5] >> (p->protocol & 31) & 1)) {
        if (h->flags & XDS_HOST_UNREACHABLE && p->protocol != XDSI_NEXT_NONE)
            return problem(h, p, POINT_NEXT, p->named_at, XDS_HOST_PROTOCOL, now);
        return XDS_HOST_PROTOCOL;
    }
    if (p->protocol == IPPROTO_OF_TCP) {
        const uint64_t pseudo = xdsi_pseudo6(p->ip + 8, p->protocol, len);
        if (xdsi_csum_fold(xdsi_csum_add(pseudo, data, len)) != 0xffff) {
            if (!(h->flags & XDS_HOST_PARTIAL_CHECKSUM) || len < TCP_CHECKSUM + 2 ||
                xdsi_raw16(data + TCP_CHECKSUM) != xdsi_csum_fold(pseudo))
                return XDS_HOST_TCP_CHECKSUM;
            h->stats.partial_checksum++;
        }
    }
    h->packet.data = data;
    h->packet.len = len;
    h->packet.protocol = p->protocol;
    h->packet.tos = (uint8_t)(xdsi_be16(p->ip) >> 4);
    h->packet.ttl = p->ip[7];
    xdsi_addr_put(h->packet.src, p->src);
    xdsi_addr_put(h->packet.dst, p->dst);
    return XDS_HOST_HANDED_OVER;
}

static enum xds_host_reason upper(struct xds_host *h, const struct xdsi_in6 *p, int64_t now)
{
    if (p->protocol == XDSI_NEXT_ICMP6)
        return h->six.own_count ? xdsi_host_icmp6(h, p, now) : XDS_HOST_ICMP_OTHER;
    if (xdsi_addr_none(p->src)) /* RFC 4291 2.5.2: only while an address is found */
        return XDS_HOST_IP_SOURCE;
    if (!xdsi_addr_multicast(p->dst) && xdsi_host_own(h, p->src)) /* nobody else has an address of ours */
        return XDS_HOST_IP_SOURCE;
    return p->protocol == XDSI_IPPROTO_UDP ? udp6(h, p) : other(h, p, now);
}

/* RFC 7112: a first fragment has all headers, or nobody could judge it by what it holds. */
static bool headers_are_there(const struct xdsi_in6 *fragment)
{
    struct xdsi_in6 p = *fragment;

    for (unsigned n = 0; is_extension(p.protocol) && n < HEADERS_MAX; n++) {
        if (p.total - p.at < 8)
            return false;
        const uint32_t bytes = p.protocol == XDSI_NEXT_FRAGMENT ? 8 : (p.ip[p.at + 1] + 1u) * 8;
        if (bytes > p.total - p.at)
            return false;
        p.protocol = p.ip[p.at];
        p.at += bytes;
    }
    const uint32_t least = p.protocol == IPPROTO_OF_TCP                                      ? 20
                           : p.protocol == XDSI_IPPROTO_UDP || p.protocol == XDSI_NEXT_ICMP6 ? 8
                                                                                             : 0;
    return p.total - p.at >= least;
}

/* p->at is a fragment header; the one that makes its datagram whole is what the datagram is. */
static __attribute__((noinline)) enum xds_host_reason fragment(struct xds_host *h, struct xdsi_in6 *p,
                                                               int64_t now)
{
    const uint8_t *e = p->ip + p->at;
    const uint32_t word = xdsi_be16(e + 2), from = word & 0xfff8, at = p->at;
    struct xdsi_fragment piece = {.frame = p->frame,
                                  .data = e + 8,
                                  .src = p->src,
                                  .dst = p->dst,
                                  .l2 = p->l2,
                                  .head = XDSI_IPV6_BYTES,
                                  .id = xdsi_raw32(e + 4),
                                  .from = from,
                                  .len = p->total - p->at - 8,
                                  .next = e[0],
                                  .ecn = p->ip[1] >> 4 & 3,
                                  .more = word & 1,
                                  .six = true};
    struct xdsi_whole w;

    if (!h->cfg.fragments)
        return XDS_HOST_IP_FRAGMENT;
    if (!piece.len)
        return XDS_HOST_FRAGMENT_BAD;
    if (piece.more && piece.len % 8) /* 4.5 */
        return problem(h, p, POINT_VALUE, 4, XDS_HOST_FRAGMENT_BAD, now);
    if (from + piece.len > 65535)
        return problem(h, p, POINT_VALUE, at + 2, XDS_HOST_FRAGMENT_BAD, now);
    p->protocol = e[0];
    p->at += 8;
    if (!from && !headers_are_there(p))
        return problem(h, p, POINT_CHAIN, 0, XDS_HOST_FRAGMENT_HEADERS, now);
    enum xds_host_reason reason = xdsi_host_fragment(h, &piece, now, &w);
    if (!w.frame)
        return reason;
    struct xdsi_in6 all = {.frame = w.frame,
                           .ip = w.frame + w.l2,
                           .src = p->src,
                           .dst = p->dst,
                           .l2 = w.l2,
                           .total = w.total,
                           .at = XDSI_IPV6_BYTES,
                           .named_at = 6,
                           .protocol = w.frame[w.l2 + 6],
                           .was_whole = true};
    reason = walk(h, &all, now);
    if (reason == XDS_HOST_DELIVERED)
        reason = upper(h, &all, now);
    xdsi_host_whole_done(h, &w, reason == XDS_HOST_DATAGRAM6 || reason == XDS_HOST_HANDED_OVER);
    return reason;
}

/* Never a source: a group, loopback, an IPv4 address in disguise (RFC 4291 2.7, 2.5.3; RFC 4942 2.2). */
static bool bad_source(struct xdsi_addr a)
{
    return xdsi_addr_multicast(a) || xdsi_addr_is4(a) || (!a.high && a.low == 1ull << 56);
}

__attribute__((noinline)) /* IPv4's way keeps its registers */
enum xds_host_reason
xdsi_host_ip6(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t len, int64_t now)
{
    const uint8_t *ip = frame + l2;

    if (!h->six.own_count && !h->six.group_count && !h->promiscuous)
        return XDS_HOST_ETHERTYPE;
    if (len - l2 < XDSI_IPV6_BYTES)
        return XDS_HOST_SHORT;
    if (ip[0] >> 4 != 6)
        return XDS_HOST_IP_VERSION;
    struct xdsi_in6 p = {.frame = frame,
                         .ip = ip,
                         .src = xdsi_addr_of(ip + 8),
                         .dst = xdsi_addr_of(ip + 24),
                         .l2 = l2,
                         .total = XDSI_IPV6_BYTES + xdsi_be16(ip + 4),
                         .at = XDSI_IPV6_BYTES,
                         .named_at = 6,
                         .protocol = ip[6]};
    if (p.total > len - l2)
        return XDS_HOST_IP_TRUNCATED;
    if (!h->promiscuous) {
        if (!xdsi_host_is_ours6(h, p.dst))
            return XDS_HOST_OTHER_ADDRESS;
        if (h->has_mac && !xdsi_addr_multicast(p.dst) && memcmp(frame, h->mac, 6) != 0)
            return XDS_HOST_OTHER_MAC;
    }
    if (bad_source(p.src))
        return XDS_HOST_IP_SOURCE;
    const enum xds_host_reason reason = walk(h, &p, now);
    if (reason == XDS_HOST_DELIVERED)
        return upper(h, &p, now);
    return reason == XDS_HOST_FRAGMENT ? fragment(h, &p, now) : reason;
}
