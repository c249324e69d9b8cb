/* host6_state.h: the part of a host core's memory that is IPv6's; see host6_int.h for what is done with it. */
#ifndef XDSI_HOST6_STATE_H
#define XDSI_HOST6_STATE_H

#define XDSI_ROUTERS  4
#define XDSI_PREFIXES 8
#define XDSI_FLOWS6   16 /* a power of two */

struct xdsi_route6 {
    struct xdsi_addr dst, gateway, source; /* gateway, source: none where all zero */
    uint32_t bits, metric;
};

/* joined: by the user; solicited: own addresses whose solicited-node group it is. left: reports of the last change;
 * one that is not wanted lives until they are sent. sources, blocked, turned: as in struct xdsi_group. */
struct xdsi_group6 {
    int64_t change_due, answer_due;
    struct xdsi_addr a;
    struct xdsi_addr sources[XDS_HOST_SOURCES], blocked[XDS_HOST_SOURCES];
    uint32_t asked; /* of the sources, a bit each */
    uint8_t solicited, left, source_count, blocked_count;
    bool joined, turned;
    uint8_t pad[6];
};

/* A default router, or a prefix that is on the link, as an advertisement said. */
struct xdsi_advert {
    struct xdsi_addr a;
    int64_t until; /* XDS_NEVER: for ever; INT64_MIN: no entry */
    uint32_t bits;
    uint32_t pad;
};

struct xdsi_flow6 {
    struct xdsi_addr dst;
    uint32_t ports;
    uint32_t pad;
};

struct xdsi_host6 {
    struct xdsi_own own[XDS_HOST_ADDRESSES];
    uint32_t own_count, route_count, group_count;
    uint32_t mtu; /* as a router says; 0: the link's */
    struct xdsi_route6 *routes;
    struct xdsi_group6 *groups;
    int64_t mld_v1_until, mld_due;
    struct xdsi_advert routers[XDSI_ROUTERS], prefixes[XDSI_PREFIXES];
    int64_t solicit_due; /* of the next router solicitation */
    struct xdsi_flow6
        flows[XDSI_FLOWS6];  /* of datagrams that went a moment ago: whom an error may be about */
    struct xds_dgram6 dgram; /* the last that was given */
    uint8_t solicits, hops, mld_robustness;
    uint8_t pad[5];
};

#endif
