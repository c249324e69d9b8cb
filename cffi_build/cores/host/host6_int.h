/* host6_int.h: IPv6 in the host core: host_ip6.c (what comes in, up to UDP), host_send6.c (what goes out),
 * host_route6.c (addresses and ways), host_icmp6.c, host_ndp.c (neighbours), host_router.c (advertisements) and
 * host_mld.c (groups). Neighbours, own addresses, paths, slots and fragments are those of IPv4: see host_int.h. */
#ifndef XDSI_HOST6_INT_H
#define XDSI_HOST6_INT_H

#include "host_int.h"

#define XDSI_ETH_IPV6       0x86dd
#define XDSI_IPV6_BYTES     40
#define XDSI_IPV6_MTU_LEAST 1280
#define XDSI_ICMP6_BYTES    8
#define XDSI_NDP_BYTES      24 /* of a solicitation or an advertisement, without options */

enum {
    XDSI_NEXT_HOPS = 0,
    XDSI_NEXT_ROUTING = 43,
    XDSI_NEXT_FRAGMENT = 44,
    XDSI_NEXT_ICMP6 = 58,
    XDSI_NEXT_NONE = 59,
    XDSI_NEXT_OPTIONS = 60
};
enum { XDSI_ICMP6_UNREACHABLE = 1, XDSI_ICMP6_TOO_BIG = 2, XDSI_ICMP6_TIME = 3, XDSI_ICMP6_PARAMETER = 4 };

/* A packet as it is walked. at, named_at: from its first byte on: what is looked at, and the byte that named it. */
struct xdsi_in6 {
    const uint8_t *frame, *ip;
    struct xdsi_addr src, dst;
    uint32_t l2, total, at, named_at;
    uint8_t protocol;
    bool alert;     /* the hop-by-hop options have a router alert */
    bool was_whole; /* it was put together: not again */
};

struct xdsi_hop6 {
    struct xdsi_addr ip, src;
};

static inline struct xdsi_addr xdsi_all_nodes(void)
{
    return (struct xdsi_addr){0x02ff, 1ull << 56};
}
static inline struct xdsi_addr xdsi_all_routers(void)
{
    return (struct xdsi_addr){0x02ff, 2ull << 56};
}
/* RFC 4291 2.7.1. */
static inline struct xdsi_addr xdsi_solicited(struct xdsi_addr a)
{
    return (struct xdsi_addr){0x02ff, (a.low & 0xffffff0000000000ull) | 0xff01000000ull};
}
/* The pseudo-header of everything above IPv6 (RFC 8200 8.1). */
static inline uint64_t xdsi_pseudo6(const uint8_t *addresses, uint32_t protocol, uint32_t len)
{
    return xdsi_csum_add(((uint64_t)protocol << 8) + __builtin_bswap16((uint16_t)len), addresses, 32);
}

/* Bytes of a packet that may go to dst. */
static inline uint32_t xdsi_mtu6(struct xds_host *h, struct xdsi_addr dst, int64_t now)
{
    const struct xdsi_path *p = h->path_count ? xdsi_host_path(h, dst, now) : NULL;
    const uint32_t link = h->six.mtu ? h->six.mtu : h->cfg.mtu;
    return p && p->mtu < link ? p->mtu : link;
}

/* host_ip6.c */
enum xds_host_reason xdsi_host_ip6(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t len,
                                   int64_t now);

/* host_route6.c */
bool xdsi_host_is_ours6(const struct xds_host *h, struct xdsi_addr dst); /* own, or a group of ours */
int xdsi_host_route6(struct xds_host *h, struct xdsi_addr dst, struct xdsi_hop6 *hop, int64_t now);
/* An own address for what goes to dst (RFC 6724 5); none where no own one may be used. */
struct xdsi_addr xdsi_source6(const struct xds_host *h, struct xdsi_addr dst);

/* host_send6.c */
int xdsi_resolve6(struct xds_host *h, struct xdsi_addr dst, uint8_t mac[6], struct xdsi_hop6 *hop,
                  int64_t now, int64_t *until);
void xdsi_group_mac6(struct xdsi_addr group, uint8_t mac[6]);
/* A slot with Ethernet and IPv6 written, to mac; NULL: none is free. Returns where the payload goes. */
uint8_t *xdsi_slot6(struct xds_host *h, const uint8_t mac[6], struct xdsi_addr src, struct xdsi_addr dst,
                    uint32_t next, uint32_t hops, uint32_t len);
/* The checksum of an ICMPv6 message that lies behind such a header, or behind one extension of 8 bytes. */
void xdsi_seal6(uint8_t *ip, uint8_t *m, uint32_t len);
int xdsi_ip6(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head, const uint8_t *data,
             uint32_t len, int64_t now);
int xdsi_ip6_reserve(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head, uint8_t **payload,
                     int64_t now);
int xdsi_ip6_commit(struct xds_host *h, struct xds_frame *room, const struct xds_ip_head *head, uint32_t len);
int xdsi_ip6_later(struct xds_host *h, struct xds_ip_head *head, const uint8_t *data, uint32_t len,
                   int64_t now);
bool xdsi_checksum_fits(const struct xds_ip_head *head, uint32_t len); /* host_ip4.c */
int xdsi_trail_end6(struct xds_host *h, uint8_t *ip, uint32_t len, uint8_t tos);
void xdsi_trail_learn6(struct xds_host *h, struct xdsi_trail *w, const struct xds_ip_head *head, int64_t now);

/* host_icmp6.c; word: a pointer, or 0. Tell the packet's sender, where RFC 4443 2.4 allows it: as
 * xdsi_host_icmp_error(). */
int xdsi_icmp6_error(struct xds_host *h, unsigned type, unsigned code, uint32_t word, const uint8_t *frame,
                     uint32_t l2, uint32_t bytes, int64_t now);
enum xds_host_reason xdsi_host_icmp6(struct xds_host *h, const struct xdsi_in6 *p, int64_t now);
int xdsi_unreachable6(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t len, unsigned code,
                      int64_t now);

/* host_ndp.c */
enum xds_host_reason xdsi_host_ndp(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                   uint32_t len, int64_t now);
/* The link-layer address in an option of that type, NULL: none, or *bad: options that cannot be. */
const uint8_t *xdsi_ndp_option(const uint8_t *options, uint32_t len, unsigned type, bool *bad);
void xdsi_ndp_ask(struct xds_host *h, const struct xdsi_neighbour *n);
bool xdsi_ndp_probe(struct xds_host *h, struct xdsi_addr own);    /* RFC 4862 5.4.2; false: no slot */
bool xdsi_ndp_announce(struct xds_host *h, struct xdsi_addr own); /* RFC 4861 7.2.6 */

/* host_router.c */
enum xds_host_reason xdsi_router_advert(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                        uint32_t len, int64_t now);
void xdsi_router_tick(struct xds_host *h, int64_t now);
int64_t xdsi_router_deadline(const struct xds_host *h);

/* host_mld.c */
struct xdsi_group6 *xdsi_group6_find(const struct xds_host *h, struct xdsi_addr a);
int xdsi_group6_join(struct xds_host *h, struct xdsi_addr a, bool by_user); /* 0, XDS_ECAPACITY */
enum xds_host_reason xdsi_host_mld(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                   uint32_t len, int64_t now);
void xdsi_mld_tick(struct xds_host *h, int64_t now);

#endif
