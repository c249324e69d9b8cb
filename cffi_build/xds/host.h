/* host.h: the first floor over a link: Ethernet II (up to two VLAN tags), ARP, IPv4, ICMP, IGMP and UDP
 * (RFC 826, 5227, 791, 792, 3376, 768, 1122), IPv6 with its extension headers, ICMPv6, NDP and MLD (RFC 8200,
 * 4443, 4861, 4862, 3810). Pure: no I/O, no clock, no allocation; memory from the caller.
 *
 *   input(frame)  -> a datagram, or what the frame was instead, by name
 *   udp()         -> a whole frame into a link's reserved one; held while its neighbour is asked for
 *   output()      -> ARP questions and answers, echo replies, datagrams whose neighbour has answered
 *   deadline(), tick() -> questions again, entries out of date;  event() -> neighbours come and go
 *
 * received = delivered + the sum of reasons, at all times. Addresses are in network byte order, ports in
 * host order. Checksums are verified: IPv4's always, UDP's unless it is 0 (none sent). What goes out is not to
 * be cut: a router says where it does not fit (RFC 1191), and the path's MTU is kept for a while. Fragments are put
 * together where the config gives slabs, else refused. A frame that completes a datagram is the one counted as
 * delivered. ARP is answered for own addresses; entries are learned only from answers to what
 * was asked and from requests for an own address.
 *
 * IPv6 begins with the first own address or group of it; before, its frames are of no known type (of a capture they
 * always are known: there UDP alone is taken). Calls that end in 6 take
 * addresses of 16 bytes in network order, IPv4's mapped into them (::ffff:a.b.c.d), for which they do what the
 * call without the 6 does.
 */
#ifndef XDS_HOST_H
#define XDS_HOST_H

#include "base.h"
#include "dgram.h"
#include "link.h"
#include "packet.h"

#define XDS_HOST_ADDRESSES 8 /* own unicast addresses, of IPv4 and of IPv6 each */
#define XDS_HOST_SOURCES   8 /* of a group */

enum xds_host_reason {
    XDS_HOST_DELIVERED = 0,  /* not a reason: the index of what became a datagram           */
    XDS_HOST_ARP = 1,        /* taken: answered, learned or none of our business            */
    XDS_HOST_ICMP_ECHO = 2,  /* taken: a reply is queued                                    */
    XDS_HOST_SHORT = 3,      /* the frame ends inside its Ethernet, VLAN, ARP or IP header  */
    XDS_HOST_VLAN_DEPTH = 4, /* more than two tags                                          */
    XDS_HOST_ETHERTYPE = 5,  /* neither ARP nor IP of a version that we have an address or a group of */
    XDS_HOST_OTHER_MAC = 6,  /* unicast IPv4 in a frame that is not for our address         */
    XDS_HOST_ARP_BAD = 7,    /* not Ethernet and IPv4, or an unknown operation              */
    XDS_HOST_IP_VERSION = 8,
    XDS_HOST_IP_LENGTH = 9,     /* header or total length that cannot be                       */
    XDS_HOST_IP_TRUNCATED = 10, /* total length past the frame's end                           */
    XDS_HOST_IP_CHECKSUM = 11,
    XDS_HOST_IP_TTL = 12,        /* 0                                                           */
    XDS_HOST_IP_FRAGMENT = 13,   /* and config says: no slabs                                   */
    XDS_HOST_IP_SOURCE = 14,     /* multicast, broadcast, loopback, reserved, 0/8 or our own     */
    XDS_HOST_OTHER_ADDRESS = 15, /* no own address, no joined group                             */
    XDS_HOST_PROTOCOL = 16,      /* neither UDP nor ICMP nor one that is taken                  */
    XDS_HOST_UDP_LENGTH = 17,
    XDS_HOST_UDP_CHECKSUM = 18,
    XDS_HOST_ICMP_BAD = 19,    /* short, or its checksum is wrong                             */
    XDS_HOST_ICMP_OTHER = 20,  /* not an echo request                                         */
    XDS_HOST_NO_ROOM = 21,     /* an answer was due, but no slot free or large enough         */
    XDS_HOST_HANDED_OVER = 22, /* taken: a packet of a protocol that xds_host_take() named    */
    XDS_HOST_TCP_CHECKSUM = 23,
    XDS_HOST_FRAGMENT = 24,         /* taken: waits for the rest of its datagram               */
    XDS_HOST_FRAGMENT_COPY = 25,    /* taken: it is there already                              */
    XDS_HOST_FRAGMENT_BAD = 26,     /* lengths that cannot be                                  */
    XDS_HOST_FRAGMENT_OVERLAP = 27, /* laps over another, or lies behind the end               */
    XDS_HOST_FRAGMENT_ECN = 28,     /* capable and not capable of ECN in one datagram          */
    XDS_HOST_FRAGMENT_BROKEN = 29,  /* the rest of one that broke                              */
    XDS_HOST_FRAGMENT_LARGE = 30,   /* past fragment_bytes, or more than 32 pieces apart       */
    XDS_HOST_FRAGMENT_LENT = 31,    /* every slab holds what was given and not released        */
    XDS_HOST_ICMP_ERROR = 32,       /* taken: about a packet of ours, xds_host_error() has it  */
    XDS_HOST_ICMP_STRAY = 33,       /* an error about nothing that we sent                     */
    XDS_HOST_IGMP = 34,             /* taken: a query, or what others report                   */
    XDS_HOST_IGMP_BAD = 35,         /* short, a wrong checksum, TTL or destination             */
    XDS_HOST_DATAGRAM6 = 36,        /* taken: a datagram over IPv6, xds_host_dgram6() has it   */
    XDS_HOST_NDP = 37,              /* taken: answered, learned or none of our business        */
    XDS_HOST_NDP_BAD = 38,          /* hop limit, length, options or addresses that cannot be  */
    XDS_HOST_MLD = 39,              /* taken: a query, or what others report                   */
    XDS_HOST_MLD_BAD = 40,          /* short, its hop limit, source or option                  */
    XDS_HOST_HEADERS_BAD = 41,      /* extension headers past the end, in no order, or over 8  */
    XDS_HOST_OPTION = 42,           /* an option that asks to be dropped by who does not know it */
    XDS_HOST_ROUTING = 43,          /* a routing header that has somewhere to go yet           */
    XDS_HOST_FRAGMENT_HEADERS = 44, /* a first fragment without all headers (RFC 7112)         */
    XDS_HOST_REASONS = 48,
};

enum xds_host_flag {
    XDS_HOST_PARTIAL_CHECKSUM = 1,      /* veth only: a pseudo-header sum in place of UDP's     */
    XDS_HOST_NO_MULTICAST_CHECKSUM = 2, /* do not verify UDP sent to groups                     */
    XDS_HOST_NO_ARP_ANSWER = 4,         /* the kernel shares the address and answers (NDP too)  */
    XDS_HOST_NO_ECHO = 8,
    XDS_HOST_UNREACHABLE = 32, /* a protocol that nobody takes is answered with ICMP unreachable  */
    XDS_HOST_ROUTERS = 128,    /* routers are asked for, and what they advertise is taken (RFC 4861 6.3)  */
    XDS_HOST_REPORTS = 64,     /* groups are reported by IGMP and MLD; else somebody else is their member */
    XDS_HOST_REWRITTEN = 16,   /* captures whose addresses were replaced: a wrong UDP sum is
                                         * counted (rewritten), not refused                         */
};

/* Zero everywhere is a good start for a listener: what is 0 takes the value in brackets. */
struct xds_host_config {
    uint32_t promiscuous;       /* captures: any destination address, no answers                      */
    uint32_t flags;             /* enum xds_host_flag                                                */
    uint32_t gateway;           /* for what no prefix holds; 0: refused                              */
    uint32_t mtu;               /* bytes of a packet that may go out [1500]; IPv6 asks for 1280      */
    uint32_t groups;            /* most that can be joined [256]                                     */
    uint32_t neighbours;        /* [64]                                                              */
    uint32_t slots;             /* frames held or queued [16]                                        */
    uint32_t slot_bytes;        /* [2048]                                                            */
    int64_t ask_ns;             /* between two ARP requests [1 s]; three unanswered: given up        */
    int64_t age_ns;             /* an entry older than this is asked for when used [60 s]            */
    uint8_t mac[6];             /* own; all zero: destinations are not compared                      */
    uint8_t ttl, multicast_ttl; /* [64], [1]                                                    */
    uint16_t vlan;              /* tag of what goes out; 0 none                                      */
    uint16_t pad[3];
    uint32_t routes;         /* most that can be added [16]                                       */
    uint32_t fragments;      /* slabs to put IPv4 datagrams together [none]                       */
    uint32_t fragment_bytes; /* most payload of such a one [65,515]                               */
    uint32_t error_burst;    /* ICMP errors that may be sent at once [10]                         */
    int64_t fragment_ns;     /* a datagram's time from its first piece on [30 s]; of IPv6 twice that */
    int64_t error_ns;        /* between ICMP errors in the long run [10 ms]                       */
    uint32_t paths;          /* destinations whose path has a smaller MTU, at most [64]           */
    uint32_t path_least;     /* no path is taken for smaller [552]; what is, routers may cut      */
    uint64_t seed;           /* of random waits (probes, reports): unpredictable, the caller's    */
    int64_t path_ns;         /* then a larger packet is tried again (RFC 1191 6.3) [10 min]       */
};

struct xds_host_stats {
    uint64_t received, received_bytes;
    uint64_t reasons[XDS_HOST_REASONS]; /* by enum xds_host_reason; [0] = delivered              */
    uint64_t no_checksum;               /* delivered, UDP checksum 0                                     */
    uint64_t rewritten;                 /* delivered, wrong sum, as XDS_HOST_REWRITTEN allows           */
    uint64_t partial_checksum;          /* delivered, pseudo-header sum                                  */
    uint64_t unverified;                /* delivered, to a group whose checksums are not verified        */
    uint64_t sent;                      /* datagrams written                                             */
    uint64_t held, held_lost;           /* datagrams that waited; whose neighbour never answered         */
    uint64_t arp_asked, arp_answered, arp_learned, arp_failed, echo_answered;
    uint64_t arp_probed, arp_announced;      /* for own addresses (RFC 5227)                         */
    uint64_t arp_conflicts, arp_defended;    /* somebody else has one; said that it is ours          */
    uint64_t reassembled, fragments_expired; /* datagrams: whole; whose time was over            */
    uint64_t fragments_evicted;              /* datagrams that made room for a newer one              */
    uint64_t icmp_told, icmp_limited;        /* ICMP errors sent; not sent because of their rate      */
    uint64_t refused;         /* udp() and ip() calls that returned a code                     */
    uint64_t udp_refused;     /* ICMP: nobody listens where a datagram went                        */
    uint64_t udp_unreachable; /* ICMP: another reason why a datagram did not arrive                */
    uint64_t igmp_queries, igmp_reports; /* taken; sent                                          */
    uint64_t mld_queries, mld_reports;   /* the same                                             */
    uint64_t ndp_asked, ndp_answered, ndp_learned, ndp_failed;
    uint64_t ndp_probed, ndp_announced;    /* for own addresses (RFC 4862 5.4)                     */
    uint64_t routers_asked, routers_heard; /* solicitations; advertisements taken                  */
    uint64_t path_learned, path_forgotten; /* MTUs: lowered; grown old                             */
    uint64_t path_evicted;                 /* forgotten to make room for another                   */
    uint64_t path_too_large;               /* refused: more than the path's MTU, not the link's    */
    uint64_t doubted;                      /* neighbours asked for anew: nothing sent by them was answered */
};

enum xds_host_event_kind {
    XDS_HOST_EVENT_NEIGHBOUR = 1, /* resolved                                                    */
    XDS_HOST_EVENT_MOVED = 2,     /* another MAC than before                                     */
    XDS_HOST_EVENT_LOST = 3,      /* never answered                                              */
    XDS_HOST_EVENT_CLAIMED = 4,   /* an own address: nobody else has it                          */
    XDS_HOST_EVENT_CONFLICT = 5,  /* an own address: mac has it too                              */
};

struct xds_host_event {
    int64_t ns;
    uint32_t ip;   /* of IPv4; else 0 */
    uint16_t kind; /* enum xds_host_event_kind */
    uint8_t mac[6];
    uint8_t pad[4];
    uint8_t address[16];
};

enum xds_host_claim_state {
    XDS_HOST_OWNED = 0,
    XDS_HOST_PROBING = 1, /* not used yet: nothing leaves from it, no question for it is answered    */
    XDS_HOST_TAKEN = 2,   /* not used: somebody else has it                                          */
};

struct xds_host;
size_t xds_host_size(const struct xds_host_config *cfg);         /* bytes to provide, 0 = bad cfg */
int xds_host_init(void *mem, const struct xds_host_config *cfg); /* mem: kept until close         */

/* The first address is the source of what goes to groups and by no route. XDS_ECAPACITY: the table is full. */
int xds_host_add_address(struct xds_host *h, uint32_t ip, unsigned prefix_len);
/* Probe before an own address is used (RFC 5227 2.1): three questions, interval_ns to twice that apart, then it is
 * announced, twice. (The RFC's times are an interval_ns of 1 s.) Later on a conflict is counted and defended
 * against once in ten seconds (2.4 c). 0; XDS_ESTATE not own; XDS_ECONFIG no MAC, or an interval of 0. */
int xds_host_claim(struct xds_host *h, uint32_t ip, int64_t interval_ns, int64_t now);
/* enum xds_host_claim_state, mac: the last who had it too; XDS_ESTATE: not own. */
int xds_host_claimed(const struct xds_host *h, uint32_t ip, uint8_t mac[6]);
/* Where dst's first prefix_len bits lead: to gateway (0: straight there), from source (0: chosen as Linux
 * does: the first own address whose prefix holds the gateway, else the first). The longest prefix counts,
 * then the lowest metric, then who came first; own prefixes and the configured gateway count as metric 0. 0,
 * XDS_ECONFIG bits behind the prefix, or a source that is not own; XDS_EFOREIGN no own prefix holds the
 * gateway; XDS_ESTATE the same prefix and metric again; XDS_ECAPACITY. */
int xds_host_add_route(struct xds_host *h, uint32_t dst, unsigned prefix_len, uint32_t gateway,
                       uint32_t source, uint32_t metric);
int xds_host_del_route(struct xds_host *h, uint32_t dst, unsigned prefix_len,
                       uint32_t metric); /* 0, XDS_ESTATE */
/* Packets of this IP protocol are handed over. 0, XDS_ECONFIG: ICMP and UDP are the host's own. */
int xds_host_take(struct xds_host *h, unsigned protocol);
int xds_host_join(struct xds_host *h, uint32_t group); /* 0, XDS_ECONFIG no group, XDS_ECAPACITY */
/* What one source sends to it (RFC 4607); several calls: several sources. Reports say so; which packets come is the
 * steering rules' business. 0, XDS_ECONFIG, XDS_ECAPACITY, XDS_ESTATE: it is wanted from anybody already. */
int xds_host_join_source(struct xds_host *h, uint32_t group, uint32_t source);
int xds_host_leave(struct xds_host *h, uint32_t group); /* 0, XDS_ESTATE was not joined           */
/* From that source no longer; the last one to go is the end of it. 0, XDS_ESTATE: it was not wanted from there. */
int xds_host_leave_source(struct xds_host *h, uint32_t group, uint32_t source);
void xds_host_set_mac(struct xds_host *h, const uint8_t *mac);                   /* a new own address */
int xds_host_add_neighbour(struct xds_host *h, uint32_t ip, const uint8_t *mac); /* never ages */

/* The same with addresses of 16 bytes. IPv6: probes are neighbour solicitations (RFC 4862 5.4: one), the source is
 * chosen by RFC 6724 5 (scope, then the longest prefix), and every own address is in its solicited-node group.
 * XDS_ECONFIG also: an MTU under 1280; a source of the other family. A gateway may be link-local. */
int xds_host_add_address6(struct xds_host *h, const uint8_t ip[16], unsigned prefix_len);
int xds_host_claim6(struct xds_host *h, const uint8_t ip[16], int64_t interval_ns, int64_t now);
int xds_host_claimed6(const struct xds_host *h, const uint8_t ip[16], uint8_t mac[6]);
int xds_host_add_route6(struct xds_host *h, const uint8_t dst[16], unsigned prefix_len,
                        const uint8_t gateway[16], const uint8_t source[16], uint32_t metric);
int xds_host_del_route6(struct xds_host *h, const uint8_t dst[16], unsigned prefix_len, uint32_t metric);
int xds_host_join6(struct xds_host *h, const uint8_t group[16]);
int xds_host_leave6(struct xds_host *h, const uint8_t group[16]);
int xds_host_join_source6(struct xds_host *h, const uint8_t group[16], const uint8_t source[16]);
int xds_host_leave_source6(struct xds_host *h, const uint8_t group[16], const uint8_t source[16]);
int xds_host_add_neighbour6(struct xds_host *h, const uint8_t ip[16], const uint8_t *mac);

/* Take one frame (borrowed). 1: *out is a datagram inside the frame; XDS_INPUT_PACKET: a packet of a taken
 * protocol (TCP's checksum was verified), which xds_host_packet() has up to the next call; XDS_INPUT_ERROR: an ICMP error about
 * a packet of ours, which xds_host_error() has; XDS_INPUT_DATAGRAM: a datagram over IPv6, which xds_host_dgram6()
 * has; 0: taken (ARP, echo: output() may have an answer); XDS_ETRUNC, XDS_EMALFORMED, XDS_EFOREIGN, XDS_ECAPACITY: counted by reason.
 * out->port and queue are the caller's to fill. */
int xds_host_input(struct xds_host *h, const struct xds_frame *f, struct xds_dgram *out, int64_t now);
const struct xds_packet *xds_host_packet(const struct xds_host *h);
const struct xds_host_error *xds_host_error(const struct xds_host *h);
const struct xds_dgram6 *xds_host_dgram6(const struct xds_host *h);
/* How large a packet to dst may be, in bytes; XDS_EFOREIGN: we have no address of its family. */
int xds_host_path_mtu(struct xds_host *h, const uint8_t dst[16], int64_t now);
/* Somebody who can tell vouches for it: packets of more than mtu bytes do not pass. (What a router says of a
 * datagram that went a moment ago is learned without that.) 1 lowered; 0 it was no larger before. */
int xds_host_path_learn(struct xds_host *h, const uint8_t dst[16], uint32_t mtu, int64_t now);
/* What was given and lay in the host's memory (it came in fragments) is used no more. Cheap when there is none. */
void xds_host_release(struct xds_host *h);
/* Tell the sender of a frame that input() took, or refused, that it is unreachable: ICMP type 3 with this code
 * (3: no such port), or what ICMPv6 has for it. 1 queued, 0 none is due (RFC 1122 3.2.2, or the rate); XDS_ECONFIG no whole packet
 * or no code; XDS_ECAPACITY no slot; XDS_EFOREIGN no way back. */
int xds_host_unreachable(struct xds_host *h, const struct xds_frame *f, unsigned code, int64_t now);

/* Write a datagram as a whole frame into room (room->len: the room there is, then the bytes). Returns
 * them; 0: held until its neighbour answers, room is unused; XDS_ECAPACITY larger than the MTU (the path's
 * too), room or slots; XDS_EFOREIGN no way there; XDS_ECONFIG no own address; XDS_ESTATE the address to send from is probed
 * for, or somebody else's. */
int xds_host_udp(struct xds_host *h, struct xds_frame *room, uint16_t sport, uint32_t dst, uint16_t dport,
                 const uint8_t *data, uint32_t len, int64_t now);
/* The same without a copy: reserve returns the bytes of payload that fit at *payload (inside room), or
 * 0 where the neighbour is unknown (it is asked for; use udp() or try again); commit writes lengths and
 * checksums for len bytes and returns the frame's. */
int xds_host_udp_reserve(struct xds_host *h, struct xds_frame *room, uint16_t sport, uint32_t dst,
                         uint16_t dport, uint8_t **payload, int64_t now);
int xds_host_udp_commit(struct xds_host *h, struct xds_frame *room, uint32_t len);
int xds_host_udp6(struct xds_host *h, struct xds_frame *room, uint16_t sport, const uint8_t dst[16],
                  uint16_t dport, const uint8_t *data, uint32_t len, int64_t now);

/* A payload of any protocol in a packet that is never a fragment; room, returns and waiting as for
 * udp(). XDS_ECONFIG also: head->src is not own, or the checksum's place lies outside the payload. reserve() sets head->src; commit() takes the same head. */
int xds_host_ip(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head, const uint8_t *data,
                uint32_t len, int64_t now);
int xds_host_ip_reserve(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head,
                        uint8_t **payload, int64_t now);
int xds_host_ip_commit(struct xds_host *h, struct xds_frame *room, const struct xds_ip_head *head,
                       uint32_t len);

int xds_host_pending(const struct xds_host *h); /* frames that output() would write now */
int xds_host_output(struct xds_host *h, struct xds_frame *room,
                    int64_t now);                   /* bytes, 0 none, XDS_ECAPACITY */
int xds_host_last_reason(const struct xds_host *h); /* of the last frame that was not delivered */
int64_t xds_host_deadline(const struct xds_host *h);
void xds_host_tick(struct xds_host *h, int64_t now);
int xds_host_event(struct xds_host *h, struct xds_host_event *out); /* 1 filled, 0 none */
void xds_host_stats(const struct xds_host *h, struct xds_host_stats *out);

#endif
