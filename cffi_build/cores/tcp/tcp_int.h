/* tcp_int.h: the memory of one connection, shared by tcp.c (set-up, buffers), tcp_in.c (segments in),
 * tcp_data.c (their bytes, the blocks of SACK), tcp_out.c (segments out, timers) and tcp_recover.c (loss).
 *
 * Sequence numbers are kept as 64-bit positions from the initial one: 0 is the SYN, 1 the first byte. They
 * never wrap, so they compare as numbers, and position p lies in its ring at (p - 1) & mask.
 */
#ifndef XDSI_TCP_INT_H
#define XDSI_TCP_INT_H

#include <stdbool.h>

#include "ground/csum_inl.h"
#include "ground/wire_inl.h"
#include "xds/tcp.h"

#define XDSI_IPPROTO_TCP    6
#define XDSI_TCP_BYTES      20 /* a header without options */
#define XDSI_TCP_HEAD_MAX   60
#define XDSI_TCP_HOLES      64 /* pieces of out-of-order data that are remembered */
#define XDSI_TCP_BLOCKS     4  /* of SACK in one option (RFC 2018 3); 3 beside a stamp */
#define XDSI_TCP_EVENTS     8  /* each kind happens at most once */
#define XDSI_TCP_CHALLENGES 10 /* a second (RFC 5961 7) */
#define XDSI_RTO_MAX        60000000000
#define XDSI_SECOND         1000000000
#define XDSI_STAMP_NS       1000000 /* a tick of our time stamps (RFC 7323 5.4)                */
#define XDSI_STAMP_BYTES    12      /* the option with its padding                              */
#define XDSI_STAMP_OLD      (24ll * 86400 * XDSI_SECOND) /* then an old one says nothing (5.5)  */

enum xdsi_tcp_flag { XDSI_FIN = 1, XDSI_SYN = 2, XDSI_RST = 4, XDSI_PSH = 8, XDSI_ACK = 16 };

struct xdsi_piece {
    int64_t from, to; /* positions, to excluded */
};

/* A segment as it was read; p: the position of its first byte. */
struct xdsi_in {
    const uint8_t *data;
    uint32_t len, seq, ack, wnd, tsval, tsecr;
    uint16_t sport, mss;
    uint8_t flags, shift;
    bool scales, stamped;
    int64_t p;
    const uint8_t *sack; /* the edges in a SACK option, as they came */
    uint32_t sack_count;
    bool sack_ok;
};

struct xds_tcp {
    struct xds_tcp_config cfg;
    uint64_t pseudo; /* the addresses' and the protocol's share of every checksum */
    uint32_t state, irs;
    uint8_t *tx, *rx;
    uint32_t mss; /* of what we send */
    uint8_t snd_shift, rcv_shift, ask_shift;
    uint8_t peer_scales;

    /* RFC 9293 3.3.1; snd_max: the highest that was ever sent, snd_end: behind the last byte written */
    int64_t snd_una, snd_nxt, snd_max, snd_end;
    int64_t snd_wnd, snd_wl1, snd_wl2, max_wnd;
    int64_t rcv_nxt, rcv_adv, rcv_read, rcv_fin; /* rcv_adv: the edge advertised; rcv_fin: -1 not seen */
    struct xdsi_piece pieces[XDSI_TCP_HOLES];
    uint32_t piece_count;

    /* RFC 2018 4: where the latest segment of each of the last pieces began; RFC 2883: what came twice */
    bool sack;
    uint32_t recent_count;
    int64_t recent[XDSI_TCP_BLOCKS];
    struct xdsi_piece twice;

    bool fin_wanted, ack_now, rtx_one, probe_now, push_now;
    uint32_t unacked; /* bytes received since the last ACK */

    /* RFC 5681, 6582 */
    int64_t cwnd, ssthresh, recover;
    uint32_t dupacks, backoffs;
    bool recovering, syn_timed_out;

    /* RFC 7323 4.3: the newest stamp that an ACK of ours is to echo, and when it came */
    bool stamps;
    uint32_t ts_recent;
    int64_t ts_recent_ns, last_ack;

    /* RFC 6298 */
    int64_t srtt, rttvar, rto, rtt_pos, rtt_ns; /* rtt_pos: what is being timed, -1 nothing */

    int64_t rtx_due, probe_due, probe_wait, ack_due, wait_due, waiting_since;
    int64_t challenge_since;
    uint32_t challenges;

    bool rst_due, rst_acks;
    uint32_t rst_seq, rst_ack;

    struct xds_tcp_event events[XDSI_TCP_EVENTS];
    uint32_t ev_head, ev_tail;
    struct xds_tcp_stats stats;
};

static inline uint32_t xdsi_be32(const uint8_t *p)
{
    return (uint32_t)xdsi_be16(p) << 16 | xdsi_be16(p + 2);
}

static inline void xdsi_put32(uint8_t *p, uint32_t v)
{
    xdsi_put16(p, v >> 16);
    xdsi_put16(p + 2, v);
}

static inline int64_t xdsi_min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t xdsi_max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Everything that takes sequence numbers: what was written, and the FIN behind it. */
static inline int64_t xdsi_tcp_total(const struct xds_tcp *t)
{
    return t->snd_end + t->fin_wanted;
}
static inline int64_t xdsi_tcp_flight(const struct xds_tcp *t)
{
    return t->snd_nxt - t->snd_una;
}

static inline uint32_t xdsi_tcp_stamp(const struct xds_tcp *t, int64_t now)
{
    return t->cfg.stamp_offset + (uint32_t)(now / XDSI_STAMP_NS);
}

static inline bool xdsi_tcp_sends(const struct xds_tcp *t) /* states in which data and FIN go out */
{
    return t->state >= XDS_TCP_ESTABLISHED && t->state != XDS_TCP_FIN_WAIT_2 && t->state != XDS_TCP_TIME_WAIT;
}

void xdsi_tcp_open(struct xds_tcp *t); /* everything about the peer as before the first SYN */
void xdsi_tcp_pseudo(struct xds_tcp *t);
void xdsi_tcp_event(struct xds_tcp *t, uint32_t kind, int64_t now);
void xdsi_tcp_end(struct xds_tcp *t);           /* to CLOSED: no timer, nothing to send */
int64_t xdsi_tcp_edge(const struct xds_tcp *t); /* the right edge that the buffer has room for */

static inline int xdsi_tcp_drop(struct xds_tcp *t, enum xds_tcp_reason reason, int code)
{
    t->stats.reasons[reason]++;
    return code;
}
static inline int xdsi_tcp_taken(struct xds_tcp *t)
{
    t->stats.reasons[XDS_TCP_DELIVERED]++;
    return 0;
}

/* tcp_data.c */
int xdsi_tcp_data(struct xds_tcp *t, const struct xdsi_in *s, int64_t now); /* text and FIN */
void xdsi_tcp_time_wait(struct xds_tcp *t, int64_t now);
void xdsi_tcp_twice(struct xds_tcp *t, int64_t from, int64_t to); /* bytes that came before */
uint32_t xdsi_tcp_blocks(struct xds_tcp *t, struct xdsi_piece *out, uint32_t most);

/* tcp_recover.c */
void xdsi_tcp_acked(struct xds_tcp *t, int64_t acked, int64_t now); /* snd_una has moved on by that much */
void xdsi_tcp_duplicate(struct xds_tcp *t);
void xdsi_tcp_rtt(struct xds_tcp *t, int64_t sample);
void xdsi_tcp_timeout(struct xds_tcp *t, int64_t now); /* RFC 6298 5.4 to 5.7 */
void xdsi_tcp_start(struct xds_tcp *t);                /* cwnd and ssthresh of a new connection */

#endif
