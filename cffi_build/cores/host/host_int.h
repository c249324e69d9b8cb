/* host_int.h: the memory of one host core, shared by host.c (what comes in), host_out.c (datagrams out),
 * host_ip4.c (other protocols, in and out), host_icmp.c, host_path.c (errors about ours, path MTU), host_frag.c,
 * host_route.c, host_neighbour.c, host_arp.c, host_claim.c (own addresses) and host_igmp.c (groups); IPv6 has
 * more in host6_int.h. */
#ifndef XDSI_HOST_INT_H
#define XDSI_HOST_INT_H

#include <stdbool.h>

#include "ground/address_inl.h"
#include "ground/csum_inl.h"
#include "ground/wire_inl.h"
#include "xds/host.h"

#define XDSI_ARP_TRIES   3
#define XDSI_HOST_EVENTS 32
#define XDSI_L2_MAX      22 /* Ethernet and two tags */
#define XDSI_WAYS        16 /* a power of two */
#define XDSI_HEAD_ROOM   48 /* Ethernet, a tag, IPv4 and UDP, in whole vectors */

enum xdsi_slot_state { XDSI_SLOT_FREE = 0, XDSI_SLOT_HELD = 1, XDSI_SLOT_READY = 2 };

struct xdsi_host_slot {
    uint64_t order;       /* first in, first out */
    struct xdsi_addr hop; /* HELD: the neighbour that it waits for */
    uint32_t len;
    uint32_t state;
};

enum xdsi_neighbour_state { XDSI_NB_FREE = 0, XDSI_NB_ASKED = 1, XDSI_NB_KNOWN = 2, XDSI_NB_FIXED = 3 };

struct xdsi_neighbour {
    int64_t seen_ns;
    int64_t due_ns; /* next request, XDS_NEVER when none is out */
    struct xdsi_addr ip;
    uint8_t mac[6];
    uint8_t state, tries;
};

/* Where datagrams went a moment ago: headers that lack the lengths and their share of the sums, so that the
 * next one there costs no search. Good while nothing that they were made of has changed (host's version) and
 * the neighbour needs no question. */
struct xdsi_way {
    uint32_t dst, ports; /* as they lie in the packet */
    int64_t until;
    uint64_t udp_sum;
    uint32_t ip_sum;
    uint32_t version;
    uint32_t most; /* bytes of payload */
    uint8_t head[XDSI_HEAD_ROOM];
};

struct xdsi_route {
    uint32_t dst, mask, gateway, source, metric;
};

/* Who is asked for a MAC, and the source to send from. */
struct xdsi_hop {
    uint32_t ip, src;
};

/* How large packets to dst may be, until then. cut: it is less than the least, so routers may cut them. */
struct xdsi_path {
    int64_t until;
    struct xdsi_addr dst;
    uint16_t mtu;
    bool cut;
    uint8_t pad[5];
};

struct xdsi_own {
    struct xdsi_addr a;
    uint32_t ip, mask;                     /* of IPv4 */
    uint32_t bits;                         /* of the prefix */
    int64_t due_ns, interval, defended_ns; /* XDS_NEVER: nothing to send */
    uint8_t state, left;                   /* enum xds_host_claim_state; probes or announcements */
    uint8_t mac[6];                        /* of the last who had it too */
};

/* source_count 0: from anybody. asked: of the sources, by queries that wait for answer_due. left: reports of the
 * last change; one that is not wanted lives until they are sent. */
/* sources: none: wanted from anybody. blocked: wanted no longer, until that was said. turned: from a list to anybody, or
 * back, as of the last change. */
struct xdsi_group {
    int64_t change_due, answer_due;
    uint32_t ip, asked;
    uint32_t sources[XDS_HOST_SOURCES], blocked[XDS_HOST_SOURCES];
    uint8_t source_count, blocked_count, left;
    bool wanted, turned;
    uint8_t pad[3];
};

struct xdsi_frag;

#define XDSI_TRAIL_ROOM  40 /* Ethernet with a VLAN tag and IPv4 take 38 */
#define XDSI_TRAIL_ROOM6 64 /* ... and IPv6 58 */

/* A datagram that was put together, as a frame. */
struct xdsi_whole {
    struct xdsi_frag *frag;
    const uint8_t *frame; /* NULL: not yet */
    uint32_t l2, ihl, total;
};

#include "host6_state.h"

struct xds_host {
    uint32_t *set; /* own addresses and groups, open addressing; 0 empty */
    uint32_t set_mask;
    uint32_t promiscuous, flags;
    uint8_t mac[6];
    uint8_t has_mac, l2_len;
    uint8_t last_reason; /* enum xds_host_reason of the last frame that was not delivered */
    struct xds_host_stats stats;
    struct xds_host_config cfg;
    struct xdsi_own own[XDS_HOST_ADDRESSES];
    uint64_t random;
    const uint8_t *udp4; /* the header of IPv4 of the datagram that was given, as long as that */
    uint32_t own_count, group_count, neighbour_count, ready;
    struct xdsi_group *groups;
    int64_t igmp_v1_until, igmp_v2_until; /* an older querier was heard (RFC 3376 7.2.1) */
    int64_t igmp_due;                     /* when a report is to be sent, of any group */
    uint8_t igmp_robustness;
    struct xdsi_neighbour *neighbours;
    struct xdsi_host_slot *slots;
    uint8_t *slab;
    uint64_t order;
    uint32_t version; /* of addresses and neighbours; a way of an older one is not used */
    struct xdsi_way ways[XDSI_WAYS];
    struct xds_host_event events[XDSI_HOST_EVENTS];
    uint32_t ev_head, ev_tail;
    struct xdsi_route *routes;
    uint32_t route_count;
    uint32_t take[8];         /* a bit an IP protocol */
    struct xds_packet packet; /* the last that was handed over */
    struct xdsi_frag *frags;  /* cfg.fragments heads, then as many slabs */
    uint32_t frags_open, frags_lent;
    struct xdsi_path *paths;
    uint32_t path_count;
    uint16_t ident; /* of the last packet that may be cut */
    struct xds_host_error error;
    int64_t error_ns; /* when the next ICMP error may be sent, were there no burst */
    struct xdsi_host6 six;
};

static inline uint32_t xdsi_set_slot(uint32_t ip, uint32_t mask)
{
    return (uint32_t)((ip * 0x9e3779b97f4a7c15ull) >> 40) & mask;
}

static inline int xdsi_set_has(const struct xds_host *h, uint32_t ip)
{
    for (uint32_t i = xdsi_set_slot(ip, h->set_mask);; i = (i + 1) & h->set_mask) {
        if (h->set[i] == ip)
            return ip != 0;
        if (!h->set[i])
            return 0;
    }
}

/* What is known of dst's path; NULL: as large as the link's. */
struct xdsi_path *xdsi_host_path(struct xds_host *h, struct xdsi_addr dst, int64_t now);
/* Bytes of an IPv4 packet that may go to dst. */
static inline uint32_t xdsi_host_mtu(struct xds_host *h, uint32_t dst, int64_t now)
{
    const struct xdsi_path *p = h->path_count ? xdsi_host_path(h, xdsi_addr4(dst), now) : NULL;
    return p ? p->mtu : h->cfg.mtu;
}

/* Identification and flags as they lie in memory: not to be cut, so it may be 0 (RFC 6864 4.1). */
static inline uint32_t xdsi_host_ident(struct xds_host *h, uint32_t dst, int64_t now)
{
    const struct xdsi_path *p = h->path_count ? xdsi_host_path(h, xdsi_addr4(dst), now) : NULL;
    return p && p->cut ? __builtin_bswap16(++h->ident) : 0x00400000;
}

static inline int xdsi_refuse(struct xds_host *h, int code)
{
    h->stats.refused++;
    return code;
}

int xdsi_host_is_own(const struct xds_host *h, uint32_t ip);
bool xdsi_host_may_use(const struct xds_host *h, uint32_t ip); /* own, and neither probed for nor taken */
uint64_t xdsi_host_random(struct xds_host *h);
void xdsi_host_post(struct xds_host *h, unsigned kind, struct xdsi_addr ip, const uint8_t mac[6],
                    int64_t now);
/* An ARP question for everybody into a slot; false: there is none. */
bool xdsi_arp_ask(struct xds_host *h, uint32_t sender, uint32_t target);
void xdsi_arp_probe(struct xds_host *h,
                    const struct xdsi_neighbour *n); /* ask for it from a fitting address */
/* An ARP packet that may speak of an own address as somebody else's. */
void xdsi_claim_saw(struct xds_host *h, const uint8_t *arp, int64_t now);
/* mac has the own address o, too. */
void xdsi_claim_conflict(struct xds_host *h, struct xdsi_own *o, const uint8_t mac[6], int64_t now);
struct xdsi_own *xdsi_host_own(const struct xds_host *h, struct xdsi_addr ip); /* NULL: it is not own */
#define XDSI_IPPROTO_IGMP 2
#define XDSI_ALL_SYSTEMS  0x010000e0u /* 224.0.0.1, in memory */
void xdsi_group_mac(uint32_t group, uint8_t mac[6]);
struct xdsi_group *xdsi_group_find(const struct xds_host *h, uint32_t ip);
void xdsi_group_changed(struct xds_host *h, struct xdsi_group *g); /* wanted, or its sources */
enum xds_host_reason xdsi_host_igmp(struct xds_host *h, const uint8_t *ip, const uint8_t *m, uint32_t len,
                                    int64_t now);
void xdsi_igmp_tick(struct xds_host *h, int64_t now);
int64_t xdsi_claim_deadline(const struct xds_host *h);
void xdsi_claim_tick(struct xds_host *h, int64_t now);
/* A slot of at least len bytes, READY or HELD for ip; NULL: none. *bytes: where to write. */
struct xdsi_host_slot *xdsi_host_slot(struct xds_host *h, uint32_t len, uint32_t state, struct xdsi_addr hop,
                                      uint8_t **bytes);
#define XDSI_NO_HOP ((struct xdsi_addr){0, 0})
struct xdsi_neighbour *xdsi_neighbour_find(const struct xds_host *h, struct xdsi_addr ip);
struct xdsi_neighbour *xdsi_neighbour_new(struct xds_host *h, struct xdsi_addr ip); /* NULL: no place */
/* Its MAC is this, known now, or (fresh false) not confirmed yet: asked for at its next use. */
void xdsi_neighbour_is(struct xds_host *h, struct xdsi_neighbour *n, const uint8_t *mac, bool fresh,
                       int64_t now);
/* What is sent by it comes to nothing, somebody above says (RFC 1122 2.3.2.1, RFC 9293 3.8.3): it is asked for anew. */
void xdsi_neighbour_doubt(struct xds_host *h, struct xdsi_addr ip, int64_t now);
/* The MAC of the next hop, or NULL: it is being asked for (*code 0) or cannot be (*code < 0). *until: the
 * MAC may be used again up to then, if the host's version is the same. */
const uint8_t *xdsi_neighbour_use(struct xds_host *h, struct xdsi_addr ip, int64_t now, int64_t *until,
                                  int *code);
/* 1: *hop is filled; 0: no way there. A group's hop is the group itself. */
int xdsi_host_route(const struct xds_host *h, uint32_t dst, struct xdsi_hop *hop);
/* 1: mac is filled, and good until then; 0: hop->ip is asked for; else a code. */
int xdsi_host_resolve(struct xds_host *h, uint32_t dst, uint8_t mac[6], struct xdsi_hop *hop, int64_t now,
                      int64_t *until);
void xdsi_write_link(const struct xds_host *h, uint8_t *d, const uint8_t mac[6]);
enum xds_host_reason xdsi_host_icmp(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t ihl,
                                    uint32_t total, int64_t now);
/* m: an ICMP error of len bytes in the packet at ip. */
enum xds_host_reason xdsi_host_icmp_about(struct xds_host *h, const uint8_t *ip, const uint8_t *m,
                                          uint32_t len, int64_t now);
bool xdsi_host_way_is_known(const struct xds_host *h, uint32_t dst, uint32_t ports);
/* Tell a packet's sender, where RFC 1122 3.2.2 allows it: 1, 0 not due, or a code. bytes: of it, in frame. */
bool xdsi_host_may_tell(struct xds_host *h, int64_t now); /* the rate of ICMP errors allows one */
int xdsi_host_icmp_error(struct xds_host *h, unsigned type, unsigned code, const uint8_t *frame, uint32_t l2,
                         uint32_t bytes, int64_t now);
/* A whole packet that is not UDP. */
enum xds_host_reason xdsi_host_other(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t ihl,
                                     uint32_t total, int64_t now);
/* In one store: who reads the 16 bytes at once a moment later would wait for several to leave the buffer. */
static inline void xdsi_map4(uint8_t to[16], uint32_t ip)
{
    typedef uint64_t pair __attribute__((vector_size(16)));
    const pair both = {0, 0xffff0000u | (uint64_t)ip << 32};

    memcpy(to, &both, 16);
}

/* Where packets between two addresses go, kept by who sends many: the headers but for length, TOS and checksum. */
struct xdsi_trail {
    int64_t until; /* 0: not known */
    uint32_t version;
    uint16_t ip_sum;
    uint16_t ip_bytes; /* of the IP header: IPv4's or IPv6's */
    uint8_t head[XDSI_TRAIL_ROOM6];
};
static inline bool xdsi_trail_holds(struct xds_host *h, const struct xdsi_trail *w, const uint8_t dst[16],
                                    int64_t now)
{
    return now <= w->until && w->version == h->version &&
           (!h->path_count ||
            !xdsi_host_path(h, xdsi_addr_of(dst), now)); /* a path with an MTU of its own goes the long way */
}
static inline uint32_t xdsi_trail_mtu(const struct xds_host *h, const struct xdsi_trail *w)
{
    return w->ip_bytes == XDSI_IPV4_BYTES || !h->six.mtu ? h->cfg.mtu : h->six.mtu;
}
/* Learn it after a packet with that head has gone there. */
void xdsi_trail_learn(struct xds_host *h, struct xdsi_trail *w, const struct xds_ip_head *head, int64_t now);
/* The headers, before the payload is written behind them (the copy goes a little beyond); then, when its
 * length is known, what hangs on it. The frame's length. */
static inline uint8_t *xdsi_trail_begin(const struct xds_host *h, const struct xdsi_trail *w, uint8_t *frame)
{
    memcpy(frame, w->head, XDSI_TRAIL_ROOM);
    if (__builtin_expect(w->ip_bytes != XDSI_IPV4_BYTES, 0))
        memcpy(frame + XDSI_TRAIL_ROOM, w->head + XDSI_TRAIL_ROOM, XDSI_TRAIL_ROOM6 - XDSI_TRAIL_ROOM);
    return frame + h->l2_len + w->ip_bytes;
}
int xdsi_trail_end(struct xds_host *h, const struct xdsi_trail *w, uint8_t *frame, uint32_t len, uint8_t tos);
/* A whole packet into a slot, to leave when its neighbour is known: 0, or a code. */
int xdsi_host_ip_later(struct xds_host *h, struct xds_ip_head *head, const uint8_t *data, uint32_t len,
                       int64_t now);
size_t xdsi_frag_bytes(const struct xds_host_config *c);
/* A fragment: len bytes of data that belong to `from`, of the packet in frame, whose first head bytes behind l2 are
 * to stand before the whole. next: IPv6's protocol of the whole; of IPv4 nothing. */
struct xdsi_fragment {
    const uint8_t *frame, *data;
    struct xdsi_addr src, dst;
    uint32_t l2, head, id, from, len;
    uint8_t protocol, next, ecn; /* protocol: part of IPv4's identity, else 0 */
    bool more, six;
};
/* w->frame: the datagram is whole, and whole_done() is due. */
enum xds_host_reason xdsi_host_fragment(struct xds_host *h, const struct xdsi_fragment *p, int64_t now,
                                        struct xdsi_whole *w);
void xdsi_host_whole_done(struct xds_host *h, const struct xdsi_whole *w, bool lent);
int64_t xdsi_frag_deadline(const struct xds_host *h);
void xdsi_frag_tick(struct xds_host *h, int64_t now);
enum xds_host_reason xdsi_host_arp(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t len,
                                   int64_t now);

#endif
