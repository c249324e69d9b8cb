/* fix_int.h: one session, as its own files see it.
 *
 *   fix.c        life, time, events       fix_in.c   what a message that came means
 *   fix_out.c    messages that leave      fix_store.c  application messages held for resending
 *
 * Invariant: while no event waits and output has room for the longest answer (xdsi_fix_room), one more message
 * may be taken. So neither the events nor the answers of a message are ever lost.
 */
#ifndef XDSI_FIX_INT_H
#define XDSI_FIX_INT_H

#include "fix_wire_inl.h"

#include <string.h>

#define EVENTS 8    /* of one message at most 4, of ticks and calls before it is read 3 */
#define ADMIN  2048 /* room for the session's own answers to one message: a reject and a logout */
#define AROUND 512  /* the longest header and trailer: CompIDs, numbers, times */
#define DUE    5    /* a fifth of the heartbeat interval is "some reasonable transmission time" */

/* One message of the store: its bytes from 35= on. */
struct xdsi_fix_held {
    uint64_t seq;
    int64_t sent_ns;
    uint32_t at, len;
};

/* A ring of entries in order of seq, over a ring of bytes in which none is cut. */
struct xdsi_fix_store {
    struct xdsi_fix_held *held;
    uint8_t *bytes;
    uint32_t first, count, cap; /* of entries */
    uint32_t at, size;          /* of bytes: where the next one goes */
};

struct xds_fix {
    struct xds_fix_config c;
    const char *begin_string;
    uint32_t state, heartbeat_s;
    uint64_t next_out, next_in;
    int64_t now;   /* of the latest call */
    int64_t since; /* LOGON_SENT, LOGON_WAIT, LOGOUT_SENT: when it began */
    int64_t last_in, last_out, tested_ns, rtt_ns;
    uint32_t tested;  /* TestRequest out: 1 by silence, 2 by the user, 0 none is */
    uint32_t test_id; /* the number in the latest one of ours */
    uint32_t tries, parts;
    uint64_t gap_top, asked_top, asked_end; /* asked_end: 0 = everything */
    int64_t asked_ns;
    uint64_t resend_next, resend_end; /* what the peer is still to get: none where next > end */
    uint8_t prefix[4 * 68];           /* 49= 56= 50= 57= */
    uint32_t prefix_len;
    uint8_t *in; /* what is not whole yet, and what lies behind a garbled message */
    uint32_t in_at, in_len, need;
    uint8_t *out;
    uint32_t out_at, out_len;
    struct xds_fix_field *fields;
    uint32_t field_cap;
    struct xds_fix_event events[EVENTS];
    uint32_t event_first, event_count;
    struct xdsi_fix_store store;
    struct xds_fix_stats s;
};

/* The header of a message that came, and where it lies. */
struct xdsi_fix_head {
    const uint8_t *message;
    uint32_t len, count;
    uint64_t seq;
    int64_t sending, orig;
    uint32_t flags;            /* XDS_FIX_POSS_DUP, XDS_FIX_POSS_RESEND */
    uint32_t fault, fault_tag; /* a field without form: 1 + SessionRejectReason, 0: none */
    uint32_t seq_bad;          /* no MsgSeqNum that is a number */
    uint32_t sending_bad;      /* 1: none; 2: no time */
    uint32_t orig_bad;         /* the same */
    uint32_t version_bad, comp_bad;
    char type[8];
};

static inline int xdsi_fix_room(const struct xds_fix *f)
{
    return f->c.output_bytes - f->out_len >= f->c.message_max + ADMIN && f->resend_next > f->resend_end;
}

void xdsi_fix_store_clear(struct xdsi_fix_store *s);
/* Bytes for a message of len, behind the latest; older ones go: how many. */
uint32_t xdsi_fix_store_put(struct xdsi_fix_store *s, uint64_t seq, int64_t now, const uint8_t *data,
                            uint32_t len);
/* The first held message whose number is at least seq; NULL: none. */
const struct xdsi_fix_held *xdsi_fix_store_at(const struct xdsi_fix_store *s, uint64_t seq);

struct xds_fix_event *xdsi_fix_tell(struct xds_fix *f, uint32_t kind, const struct xdsi_fix_head *h);
void xdsi_fix_end(struct xds_fix *f, uint32_t reason, const struct xdsi_fix_head *h, const char *text);
void xdsi_fix_closed(struct xds_fix *f, const struct xdsi_fix_head *h);
void xdsi_fix_ask(struct xds_fix *f, int64_t now);
int xdsi_fix_take(struct xds_fix *f, const uint8_t *message, uint32_t len, int64_t now); /* its reason */

/* The session's own messages; 0, or XDS_ECAPACITY: nothing was sent and no number used. */
int xdsi_fix_logon(struct xds_fix *f, int reset, int64_t now);
int xdsi_fix_logout(struct xds_fix *f, const char *text, int64_t now);
int xdsi_fix_heartbeat(struct xds_fix *f, const uint8_t *id, uint32_t len, int64_t now);
int xdsi_fix_test(struct xds_fix *f, int64_t now);
int xdsi_fix_resend_request(struct xds_fix *f, uint64_t begin, uint64_t end, int64_t now);
int xdsi_fix_reject(struct xds_fix *f, const struct xdsi_fix_head *h, uint32_t why, uint32_t tag,
                    const char *text, int64_t now);
void xdsi_fix_pump(struct xds_fix *f, int64_t now); /* what the peer asked for, as far as there is room */

#endif
