/* stack_int.h: the memory of a stack, shared by stack.c (set-up, the user's calls), stack_table.c (places,
 * ends, timers), stack_io.c (segments in and out), stack_error.c (ICMP errors) and stack_cookie.c (SYN cookies).
 *
 * A connection is a place in an array; its number is the place and a count of uses. Places stand in up to
 * four structures: the table of ends (open addressing, a keyed hash), the heap of deadlines, the queue of
 * those that output() looks at (`ready`) and the queue of those with something to tell (`news`).
 */
#ifndef XDSI_STACK_INT_H
#define XDSI_STACK_INT_H

#include "cores/host/host6_int.h"
#include "cores/tcp/tcp_int.h"
#include "ground/siphash_inl.h"
#include "xds/stack.h"

#define XDSI_PLACE_BITS   17
#define XDSI_PLACES_MAX   (1u << XDSI_PLACE_BITS)
#define XDSI_NOWHERE      0xffffffffu
#define XDSI_PORT_SLOTS   64 /* counters of RFC 6056 algorithm 4 */
#define XDSI_EADDRINUSE   (-98)
#define XDSI_TCP_CHECKSUM 16 /* its place in the header */

struct xdsi_ends {
    uint8_t remote[16], local[16];
    uint16_t remote_port, local_port;
};

struct xdsi_conn {
    uint32_t id; /* 0: free */
    uint32_t uses;
    uint32_t listener; /* place, while it is half open or waits to be accepted; else XDSI_NOWHERE */
    uint32_t news;     /* enum xds_stack_event_bit */
    uint32_t ready_next, news_next, next; /* next: in the list of free places, or in an accept queue */
    uint32_t wait_prev, wait_next;        /* the list of those in TIME-WAIT, oldest first */
    uint32_t heap_at;                     /* 1 + its place in the heap; 0: in none */
    bool owned, ready, told, wants_room, named, waits, queued; /* told: in the news; named: in the table */
    bool given;                                                /* its news are for the second reader */
    int64_t orphan_due, news_ns, rx_ns, read_ns; /* rx, read: of the bytes that the news speak of */
    struct xdsi_ends ends;
    uint8_t hops; /* hop limit of its packets, 0: the host's */
    int space;    /* bytes of a segment that the path takes, as it was told */
    struct xds_stack_trouble trouble;
    struct xdsi_trail trail; /* to the peer */
};

struct xdsi_listener {
    uint32_t id; /* 0: free */
    uint32_t uses;
    uint8_t local[16];
    uint16_t port;
    uint8_t any; /* enum xds_stack_family, or-ed; 0: one address */
    uint8_t hops;
    bool told, given;
    uint32_t backlog, pending, queued; /* pending: half open, or queued */
    int64_t cookie_until;              /* an ACK may be of a cookie until then */
    struct xds_tcp_config how;
    uint32_t first, last; /* the accept queue */
};

struct xdsi_due {
    int64_t at;
    uint32_t place;
    uint32_t pad;
};

struct xdsi_reset {
    struct xdsi_ends ends;
    uint32_t seq, ack;
    bool acks;
};

/* A SYN-ACK that nobody remembers. */
struct xdsi_cookie {
    struct xdsi_ends ends;
    uint32_t seq, ack, stamp, echo;
    uint16_t mss;
    uint8_t hops;
    bool stamped, scales, sack, ecn;
};

struct xdsi_queue {
    uint32_t first, last;
};

struct xds_stack {
    struct xds_stack_config cfg;
    struct xds_stack_stats stats;
    struct xds_host *host;
    struct xdsi_conn *conns;
    struct xdsi_listener *listeners;
    uint8_t *tcps; /* one xds_tcp with its rings a place */
    size_t tcp_bytes;
    uint32_t *table; /* 1 + place; 0 empty */
    uint32_t table_mask;
    uint32_t latest; /* place of who was found last: segments come in bursts */
    struct xdsi_due *heap;
    uint32_t heap_count;
    struct xdsi_reset *resets;
    uint32_t reset_first, reset_count;
    struct xdsi_cookie *cookies;
    uint32_t cookie_first, cookie_count;
    uint8_t *scratch; /* a segment whose neighbour is not known yet */
    uint32_t scratch_bytes;
    uint32_t free_first, fresh; /* places never used lie behind fresh: their memory was not touched */
    struct xdsi_queue ready, news[2], waits; /* news: by reader, xdsi_conn.given */
    bool acceptable;                         /* a listener may have something that was not told yet */
    uint32_t port_counts[XDSI_PORT_SLOTS];
    struct xds_tcp_stats ended; /* what those that are gone had counted */
    struct xds_stack_totals pass,
        seen; /* as far as the pass has come, before place pass_at; the last whole one */
    uint32_t pass_at;
};

static inline struct xds_tcp *xdsi_tcp_of(const struct xds_stack *s, uint32_t place)
{
    return (struct xds_tcp *)(void *)(s->tcps + place * s->tcp_bytes);
}
static inline uint32_t xdsi_place(const struct xds_stack *s, const struct xdsi_conn *c)
{
    return (uint32_t)(c - s->conns);
}

struct xdsi_listener *xdsi_listener(const struct xds_stack *s, int id); /* stack.c; NULL: there is none */

static inline bool xdsi_is_ip4(const uint8_t a[16])
{
    return xdsi_addr_is4(xdsi_addr_of(a));
}

/* Payload of a segment that our link takes, to an address of that family, where `mss` is what is wanted. */
static inline uint16_t xdsi_mss_to(const struct xds_stack *s, const uint8_t remote[16], uint16_t mss)
{
    const uint32_t heads = (xdsi_is_ip4(remote) ? XDSI_IPV4_BYTES : XDSI_IPV6_BYTES) + XDSI_TCP_BYTES;
    const uint32_t mtu = s->host->cfg.mtu, fits = mtu > heads + 64 ? mtu - heads : 64;

    return mss < fits ? mss : (uint16_t)fits;
}

/* stack_table.c */
struct xdsi_conn *xdsi_conn_find(struct xds_stack *s, const struct xdsi_ends *ends);
/* A place for these ends, with a connection by cfg in it; NULL: full, or cfg cannot be. */
struct xdsi_conn *xdsi_conn_make(struct xds_stack *s, const struct xdsi_ends *ends,
                                 const struct xds_tcp_config *cfg);
void xdsi_conn_free(struct xds_stack *s, struct xdsi_conn *c);
void xdsi_conn_forget(struct xds_stack *s, struct xdsi_conn *c); /* out of the table of ends */
void xdsi_conn_time(struct xds_stack *s, struct xdsi_conn *c);   /* its deadline may have come nearer */
void xdsi_conn_untime(struct xds_stack *s, struct xdsi_conn *c);
void xdsi_conn_waits(struct xds_stack *s, struct xdsi_conn *c, bool waits);
void xdsi_ready(struct xds_stack *s, struct xdsi_conn *c);
struct xdsi_conn *xdsi_ready_take(struct xds_stack *s);
void xdsi_conn_hand(struct xds_stack *s, struct xdsi_conn *c, bool given);
void xdsi_tell(struct xds_stack *s, struct xdsi_conn *c, uint32_t what, int64_t now);
int64_t xdsi_conn_due(const struct xds_stack *s, const struct xdsi_conn *c);
uint32_t xdsi_first_number(const struct xds_stack *s, const struct xdsi_ends *ends, int64_t now);
uint32_t xdsi_stamp_offset(const struct xds_stack *s, const struct xdsi_ends *ends);

void xdsi_totals_end(struct xds_stack *s,
                     uint32_t place); /* stack_totals.c: before a connection is forgotten */

int xdsi_warm(struct xds_stack *s, struct xdsi_conn *c, uint32_t len, int64_t now); /* stack_io.c */

/* stack_cookie.c: answer a SYN by a cookie (false: they are off); write one; whether an ACK is of one, and what
 * its SYN had said. */
bool xdsi_cookie_answer(struct xds_stack *s, struct xdsi_listener *l, const struct xdsi_ends *ends,
                        const uint8_t *d, int64_t now);
int xdsi_cookie_send(struct xds_stack *s, struct xds_frame *room, int64_t now);
bool xdsi_cookie_taken(struct xds_stack *s, const struct xdsi_listener *l, const struct xdsi_ends *ends,
                       const uint8_t *d, int64_t now, struct xdsi_in *syn);

/* stack_io.c: what a call on the connection has changed: events, timers, its end. May free it. */
void xdsi_look(struct xds_stack *s, struct xdsi_conn *c, int64_t now);

#endif
