/* dgram.h: what a datagram flow delivers, whether it came over a link and the host core or from a
 * kernel socket. */
#ifndef XDS_DGRAM_H
#define XDS_DGRAM_H

#include <stdint.h>

enum xds_dgram_stamp { /* who took rx_ns, of kernel sockets */
                       XDS_DGRAM_KERNEL = 0,
                       XDS_DGRAM_NIC =
                           1, /* mapped from its own clock                                            */
                       XDS_DGRAM_CALL =
                           2, /* nobody: it is the time of the call                                   */
};

struct xds_dgram {
    const uint8_t *data;   /* UDP payload: borrowed, as long as its frame is leased */
    int64_t rx_ns;         /* CLOCK_TAI ns                                          */
    uint32_t len;          /* bytes                                                 */
    uint32_t src, dst;     /* IPv4, network byte order                              */
    uint16_t sport, dport; /* host byte order                                     */
    uint16_t port;         /* index of the engine's port that it came by            */
    uint16_t queue;
    uint16_t stamp; /* enum xds_dgram_stamp */
    uint16_t six;   /* 1: over IPv6; src and dst are 0, and these count, else nothing is in them: */
    uint8_t src6[16], dst6[16]; /* network byte order */
};

/* A datagram over IPv6, as the host core gives it. */
struct xds_dgram6 {
    const uint8_t *data; /* UDP payload: borrowed, as long as its frame is leased */
    int64_t rx_ns;       /* CLOCK_TAI ns                                          */
    uint32_t len;        /* bytes                                                 */
    uint16_t sport, dport;
    uint8_t src[16], dst[16];
    uint8_t tos, hops; /* traffic class, hop limit */
    uint8_t pad[6];
};

#endif
