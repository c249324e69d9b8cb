/* tcp_int.h: the memory of one connection, shared by tcp.c (set-up, buffers), tcp_in.c (segments in),
 * tcp_data.c (their bytes, the blocks of SACK), tcp_out.c (segments out, timers), tcp_path.c (how large a segment
 * may be), tcp_recover.c (loss) and tcp_settings.c (what may be set).
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
#define XDSI_TCP_HOLES      64   /* pieces of out-of-order data that are remembered */
#define XDSI_TCP_BLOCKS     4    /* of SACK in one option (RFC 2018 3); 3 beside a stamp */
#define XDSI_TCP_BOARD      4096 /* pieces of the scoreboard, at most */
#define XDSI_TCP_EVENTS     8    /* each kind happens once, but STALLED: told while there is room */
#define XDSI_TCP_CHALLENGES 10   /* a second (RFC 5961 7) */
#define XDSI_RTO_MAX        60000000000
#define XDSI_SECOND         1000000000
#define XDSI_STAMP_NS       1000000 /* a tick of our time stamps (RFC 7323 5.4)                */
#define XDSI_UTO_BYTES      4
#define XDSI_STAMP_BYTES    12 /* the option with its padding                              */
#define XDSI_STAMP_OLD      (24ll * 86400 * XDSI_SECOND) /* then an old one says nothing (5.5)  */

enum xdsi_tcp_flag {
    XDSI_FIN = 1,
    XDSI_SYN = 2,
    XDSI_RST = 4,
    XDSI_PSH = 8,
    XDSI_ACK = 16,
    XDSI_ECE = 64,
    XDSI_CWR_FLAG = 128, /* CWR */
    XDSI_ECN = XDSI_ECE | XDSI_CWR_FLAG,
};
enum xdsi_ecn { XDSI_ECT = 2, XDSI_CE = 3 }; /* in the lower two bits of TOS (RFC 3168 5) */

struct xdsi_piece {
    int64_t from, to; /* positions, to excluded */
};

/* A segment as it was read; p: the position of its first byte. */
struct xdsi_in {
    const uint8_t *data;
    uint32_t len, seq, ack, wnd, tsval, tsecr;
    uint16_t sport, mss, uto; /* uto: 0 none */
    uint8_t flags, shift;
    bool scales, stamped;
    int64_t p;
    const uint8_t *sack; /* the edges in a SACK option, as they came */
    uint32_t sack_count;
    bool sack_ok, marked;
};

/* What an ACK said, while it is taken. */
struct xdsi_heard {
    int64_t now, pipe, flight; /* both as before it came */
    int64_t acked, delivered;  /* bytes: that snd_una moved on; that are new, by ACK or by SACK */
    int64_t rtt, rtt_min;      /* of what was sent once: the oldest, the least; -1 none */
    int64_t dsack_from, dsack_bytes;
    uint32_t echo;                           /* of our stamp, if stamped */
    bool stamped, again, duplicate, sacking; /* again: it names what was sent twice */
    bool blocks;                             /* it had a SACK option */
};

/* AGAIN: sent more than once; MANY: by more than one segment */
enum { XDSI_SACKED = 1, XDSI_LOST = 2, XDSI_AGAIN = 4, XDSI_MANY = 8 };
struct xdsi_sent {
    int64_t from, ns; /* ns: when it was sent last */
    uint32_t len, marks;
};

/* RFC 9438: bytes, but estimate in segments; since 0: the curve begins with the next ACK; k in seconds. */
struct xdsi_cubic {
    double w_max, prior, estimate, credit, k;
    int64_t since, seen;
};

enum xdsi_phase {
    XDSI_OPEN,
    XDSI_CWR,      /* the window shrinks, nothing is lost */
    XDSI_RECOVERY, /* something is */
    XDSI_LOSS,     /* after a timeout */
};

/* Whether segments of full size vanish (RFC 4821): after timeouts smaller ones are tried; where one passes, larger
 * ones are tried once more, since a peer that was away for a while looks just the same. */
enum xdsi_hole { XDSI_HOLE_NONE, XDSI_HOLE_TRYING, XDSI_HOLE_DOUBTED, XDSI_HOLE_BELIEVED };

struct xds_tcp {
    struct xds_tcp_config cfg;
    uint64_t pseudo; /* the addresses' and the protocol's share of every checksum */
    uint32_t state, irs;
    uint8_t *tx, *rx;
    uint32_t mss;                  /* of what we send, options taken off */
    uint32_t mss_agreed, mss_path; /* by both SYNs, options taken off; that the path takes, 0: all */
    uint32_t hole_mss;             /* tried, known to pass, or all that passes: by hole */
    uint32_t hole_lost;            /* what timed out before smaller ones were tried */
    uint8_t hole;                  /* enum xdsi_hole */
    int64_t hole_until;
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

    /* of the message that was written last as it had been prepared: where it lies, and its share of a checksum */
    int64_t ready_from;
    uint64_t ready_sum;
    uint32_t ready_len;

    bool fin_wanted, ack_now, probe_now, push_now, tlp_now;
    bool keep_now, uto_due, stalled, orphan,
        cookie;             /* orphan: a closed window is waited for give_up_ns at most */
    bool ecn, ece, cwr_due; /* agreed; a mark is told until a CWR comes; ours is due (RFC 3168 6.1) */
    uint8_t tos;            /* of what output() gave last */
    uint32_t unacked;       /* bytes received since the last ACK */

    /* The scoreboard: a ring of pieces that cover snd_una to snd_nxt. Bytes of it by mark; reno: those that
     * duplicate ACKs stand for; highest: the end of what has come. */
    struct xdsi_sent *board;
    uint32_t board_cap, board_head, board_count, sacked_count;
    int64_t pipe, lost, sacked, reno, highest;

    /* RFC 5681, 6937; what a reduction would be undone to, and by which answers */
    int64_t cwnd, ssthresh, recover;
    int64_t prr_flight, prr_delivered, prr_out;
    int64_t undo_cwnd, undo_ssthresh, undo_from, undo_bytes;
    enum xdsi_phase phase;
    uint32_t dupacks, backoffs, undo_stamp;
    bool undo_can, undo_unsent, undo_stamped, syn_timed_out; /* unsent: nothing was sent again yet */

    int64_t sent_ns; /* when data was sent last */
    struct xdsi_cubic cubic, undo_cubic;

    /* RFC 8985 */
    bool reordering, tlp_again;
    int64_t rack_ns, rack_end, rack_rtt, rtt_min, reo_mult, dsack_round, tlp_end;
    int64_t tlp_flight; /* bytes that were out when the probe went */
    int32_t reo_persist;

    /* RFC 7323 4.3: the newest stamp that an ACK of ours is to echo, and when it came */
    bool stamps;
    uint32_t ts_recent;
    int64_t ts_recent_ns, last_ack;

    /* RFC 6298 */
    int64_t srtt, rttvar, rto, syn_ns; /* syn_ns: when our SYN was sent, -1 not once */

    /* keepalive: when something came, when a probe went */
    int64_t heard_ns, keep_ns, keep_due;
    int64_t give_up; /* cfg.give_up_ns, or what the peer made of it (RFC 5482 3.1) */
    uint32_t keep_tried;

    int64_t rack_due, tlp_due, rtx_due, probe_due, probe_wait, ack_due, wait_due, waiting_since;
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
    return __builtin_bswap32(xdsi_raw32(p));
}

static inline void xdsi_put32(uint8_t *p, uint32_t v)
{
    xdsi_put_raw32(p, __builtin_bswap32(v));
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

/* The longest wait of a timer that backs off: one more try at least before the peer is given up. */
static inline int64_t xdsi_tcp_wait_max(const struct xds_tcp *t)
{
    return xdsi_min64(XDSI_RTO_MAX, t->give_up / 2 + 1);
}

void xdsi_tcp_quiet(struct xds_tcp *t); /* no timer, nothing to send */
void xdsi_tcp_open(struct xds_tcp *t);  /* everything about the peer as before the first SYN */
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

/* 1: output() has something, or has to look: what is due, and what was written and not sent. */
static inline bool xdsi_tcp_wants(const struct xds_tcp *t)
{
    return t->rst_due | t->ack_now | t->probe_now | t->tlp_now | t->keep_now || t->lost ||
           xdsi_tcp_total(t) > t->snd_nxt;
}

/* An ACK by itself is all that output() would have. */
static inline bool xdsi_tcp_only_ack(const struct xds_tcp *t)
{
    return t->ack_now && t->state == XDS_TCP_ESTABLISHED && xdsi_tcp_total(t) == t->snd_nxt && !t->lost &&
           !(t->tlp_now | t->probe_now | t->keep_now | t->rst_due);
}

static inline int64_t xdsi_tcp_due(const struct xds_tcp *t)
{
    const int64_t send =
        xdsi_min64(xdsi_min64(t->rtx_due, t->probe_due), xdsi_min64(t->rack_due, t->tlp_due));
    return xdsi_min64(xdsi_min64(send, t->keep_due), xdsi_min64(t->ack_due, t->wait_due));
}

/* tcp_in.c: options into s (false: a length that cannot be); as if its SYN had come, and been answered from
 * nothing but a cookie */
bool xdsi_tcp_options(struct xdsi_in *s, const uint8_t *o, uint32_t len);
void xdsi_tcp_cookie(struct xds_tcp *t, const struct xdsi_in *syn, int64_t now);

/* tcp_data.c */
int xdsi_tcp_data(struct xds_tcp *t, const struct xdsi_in *s, int64_t now); /* text and FIN */
/* Text that begins at rcv_nxt and ends inside the window, where there is neither a hole nor a FIN. */
int xdsi_tcp_ordered(struct xds_tcp *t, const struct xdsi_in *s, int64_t now);
void xdsi_tcp_time_wait(struct xds_tcp *t, int64_t now);
void xdsi_tcp_twice(struct xds_tcp *t, int64_t from, int64_t to); /* bytes that came before */
uint32_t xdsi_tcp_blocks(struct xds_tcp *t, struct xdsi_piece *out, uint32_t most);

/* tcp_board.c */
static inline struct xdsi_sent *xdsi_board_at(const struct xds_tcp *t, uint32_t i)
{
    return &t->board[(t->board_head + i) & (t->board_cap - 1)];
}
/* What is thought to be on its way: never sent into above cwnd. */
static inline int64_t xdsi_tcp_pipe(const struct xds_tcp *t)
{
    return xdsi_max64(t->pipe - t->reno, 0);
}
uint32_t xdsi_board_pieces(const struct xds_tcp_config *cfg);
void xdsi_board_clear(struct xds_tcp *t);
void xdsi_board_add(struct xds_tcp *t, int64_t from, int64_t to, int64_t now);
bool xdsi_board_split(struct xds_tcp *t, uint32_t i, int64_t at);
bool xdsi_board_takes(const struct xds_tcp *t);
void xdsi_board_squeeze(struct xds_tcp *t);
void xdsi_board_join(struct xds_tcp *t, uint32_t i, int64_t mss);
void xdsi_board_mark(struct xds_tcp *t, struct xdsi_sent *r, uint32_t marks);
void xdsi_board_acked(struct xds_tcp *t, int64_t a, struct xdsi_heard *k);
void xdsi_board_sacked(struct xds_tcp *t, int64_t from, int64_t to, struct xdsi_heard *k);
void xdsi_board_lose_all(struct xds_tcp *t);
void xdsi_board_regain(struct xds_tcp *t);

/* tcp_recover.c */
void xdsi_tcp_heard(struct xds_tcp *t, struct xdsi_heard *k); /* an ACK was taken into the board */
void xdsi_rack_update(struct xds_tcp *t, const struct xdsi_sent *r, int64_t end, const struct xdsi_heard *k);
void xdsi_rack_timeout(struct xds_tcp *t, int64_t now);
void xdsi_ecn_heard(struct xds_tcp *t, int64_t flight); /* an ACK with ECE was taken */
void xdsi_tlp_arm(struct xds_tcp *t, int64_t now);
void xdsi_tcp_rtt(struct xds_tcp *t, int64_t sample);
void xdsi_tcp_timeout(struct xds_tcp *t, int64_t now); /* RFC 6298 5.4 to 5.7 */

/* tcp_path.c */
void xdsi_tcp_agreed(struct xds_tcp *t);                    /* mss_agreed, or what limits it, has changed */
void xdsi_tcp_hole_timeout(struct xds_tcp *t, int64_t now); /* before what is out is taken for lost */
void xdsi_tcp_hole_acked(struct xds_tcp *t, int64_t now);   /* snd_una has moved, hole is not none */
void xdsi_tcp_hole_passed(struct xds_tcp *t, uint32_t len); /* so many bytes came by one segment */

/* tcp_out.c: what output() gives where xdsi_tcp_only_ack() holds */
int xdsi_tcp_output_ack(struct xds_tcp *t, uint8_t *d, uint32_t room, int64_t now);

/* tcp_settings.c */
bool xdsi_tcp_good(const struct xds_tcp_config *c);
void xdsi_tcp_defaults(struct xds_tcp_config *c);
void xdsi_keep_arm(struct xds_tcp *t, int64_t now);
void xdsi_keep_timeout(struct xds_tcp *t, int64_t now);
uint16_t xdsi_uto_word(const struct xds_tcp *t);
void xdsi_uto_heard(struct xds_tcp *t, uint16_t word);

/* tcp_congestion.c */
int64_t xdsi_cc_initial(const struct xds_tcp *t);
void xdsi_cc_start(struct xds_tcp *t);
void xdsi_cc_idle(struct xds_tcp *t, int64_t now);          /* before what is sent with nothing out */
int64_t xdsi_cc_reduced(struct xds_tcp *t, int64_t flight); /* ssthresh after a loss */
void xdsi_cc_undo(struct xds_tcp *t);                       /* that was none */
void xdsi_cc_acked(struct xds_tcp *t, const struct xdsi_heard *k);

#endif
