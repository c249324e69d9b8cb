/* channel_int.h: the memory of one channel, shared by channel.c (what a packet is) and
 * channel_window.c (what is missing, what waits, what is asked for).
 *
 * The invariant that both keep: [next_seq, top) is the disjoint union of the gaps and of what the
 * slots hold; gaps are sorted, apart, and never touch; slots are sorted by first and by last unit at
 * once (none lies inside another). So "is anything new in this packet" is a question to the gaps.
 */
#ifndef XDSI_CHANNEL_INT_H
#define XDSI_CHANNEL_INT_H

#include "session_inl.h"

#define XDSI_EVENTS      256 /* queued events, a power of two                                  */
#define XDSI_LOST_KEPT   64  /* ranges given up that `late` is told by                         */
#define XDSI_MISSES      16  /* open holes remembered by line, to tell reordered from new      */
#define XDSI_FORMER      4   /* sessions that have ended; their packets never begin one again  */
#define XDSI_SLOT_NONE   0xffffffff
#define XDSI_IDENT_BYTES 10

enum xdsi_begin { XDSI_BEGIN_NONE = 0, XDSI_BEGIN_RESTART = 1, XDSI_BEGIN_SESSION = 2 };

struct xdsi_range {
    uint64_t first, end; /* [first, end)                                                        */
};

struct xdsi_gap {
    uint64_t first, end;
    uint64_t asked_end; /* of the latest request                                                */
    int64_t found_ns;
    int64_t due_ns; /* when to ask (again); past the last request: when to give up          */
    uint32_t tries; /* requests since the last progress                                     */
    uint32_t pad;
};

struct xdsi_slot {
    struct xdsi_packet p; /* p.data lies in the slab                                            */
    uint64_t end;
};

struct xdsi_line {
    struct xds_line_stats stats;
    uint64_t expect;               /* the next sequence of this line                                      */
    uint64_t fall_next;            /* plain: what would confirm a fall seen on this line                  */
    uint64_t tail_first, tail_end; /* what it had not carried when the run before ended         */
    uint32_t run;                  /* plain: the run that this line is in                                 */
    uint32_t misses;
    struct xdsi_range miss[XDSI_MISSES];
};

struct xds_channel {
    /* the in-order path */
    uint64_t next_seq; /* to deliver                                                          */
    uint64_t top;      /* one past the highest that is known to exist                         */
    int64_t venue_max; /* latest send time of this run                                        */
    int64_t now_ns;    /* of the latest input or tick: never read from a clock                */
    uint32_t session, lines, run;
    uint8_t ready;           /* next() has work                                                     */
    uint8_t calm;            /* joined, nothing missing, nothing waiting                            */
    uint8_t flags_once;      /* for the next block                                                  */
    uint8_t flags_on;        /* for every block                                                     */
    uint8_t ident[16];       /* MoldUDP64: session name; IEX-TP: bytes 0 and 2..11 of the header    */
    struct xdsi_packet pend; /* the packet of the latest input                                  */
    uint64_t blocks, messages;

    uint8_t pend_on, pend_begin, joined, flush, named, ended, doom_head, heads;
    uint8_t pend_ident[16];
    uint8_t cand_ident[16], former[XDSI_FORMER][16];
    uint32_t former_count;
    uint32_t cand_ident_on;
    uint64_t cand_ident_seq;
    uint64_t far;           /* units ahead that need a second packet to be believed            */
    uint64_t join_seq;      /* what lies before is late                                        */
    uint64_t cand_end;      /* a lone packet far ahead ended here                              */
    int64_t run_ns, old_ns; /* send time of the run's first packet, and of the last one before */
    uint64_t run_seq;
    int64_t run_rx_ns;
    uint32_t restarted, cand_on;
    int begin_rc; /* what place() said of a packet that began a run */

    struct xdsi_gap *gaps;
    uint32_t gap_count;
    uint32_t slot_count, free_count, held;
    uint32_t order_lo, order_hi; /* slots by sequence: order[lo .. hi)                          */
    uint32_t *order, *free_list;
    struct xdsi_slot *slots;
    uint8_t *slab;

    uint32_t ev_head, ev_tail;
    uint64_t lost_count;
    struct xds_channel_stats stats;
    struct xds_channel_config cfg;
    struct xdsi_line line[XDS_LINES_MAX + 1];
    struct xdsi_range lost[XDSI_LOST_KEPT];
    struct xds_event events[XDSI_EVENTS];
};

void xdsi_channel_post(struct xds_channel *c, uint32_t kind, uint64_t first, uint64_t count);
/* Is any unit of [first, end) missing, or not yet known to exist? */
int xdsi_channel_is_new(const struct xds_channel *c, uint64_t first, uint64_t end);
/* [first, end) came: take it out of the gaps. retransmitted: by the request server. */
void xdsi_channel_fill(struct xds_channel *c, uint64_t first, uint64_t end, int retransmitted);
/* Sequences up to end exist and are missing from top on: a new gap, or the last one grows. */
void xdsi_channel_missing(struct xds_channel *c, uint64_t end);
void xdsi_channel_give_up_head(struct xds_channel *c);
int xdsi_channel_head_expired(const struct xds_channel *c);
void xdsi_channel_ask_now(struct xds_channel *c);
void xdsi_channel_store(struct xds_channel *c, const struct xdsi_packet *p);
void xdsi_channel_drop_head(struct xds_channel *c);
void xdsi_channel_hold_head(struct xds_channel *c);
void xdsi_channel_unhold(struct xds_channel *c);
int xdsi_channel_was_lost(const struct xds_channel *c, uint64_t first, uint64_t end);

/* A line carried [first, end); end == first: it said that first comes next. */
void xdsi_line_track(struct xdsi_line *l, uint64_t first, uint64_t end);
void xdsi_line_begin(struct xdsi_line *l, uint64_t old_top, uint64_t first);
void xdsi_line_old_run(struct xdsi_line *l, uint64_t first, uint64_t end);

static inline struct xdsi_slot *xdsi_channel_head(const struct xds_channel *c)
{
    return c->order_lo == c->order_hi ? NULL : &c->slots[c->order[c->order_lo]];
}

#endif
