/* tcp.h: one TCP connection as a pure state machine (RFC 9293): segments in, segments out.
 * No I/O, no clock, no randomness, no allocation; one block of the caller's memory holds the state and
 * both buffers.
 *
 *   input(segment) -> state, received bytes, events;  output(room) -> one segment to send
 *   reserve/commit, write -> bytes to send;           peek/consume, read -> bytes received
 *   deadline(), tick() -> retransmission, zero-window probe, delayed ACK, keepalive, TIME-WAIT
 *
 * received = delivered + the sum of reasons, at all times. Addresses are 16 bytes in network order, IPv4
 * as ::ffff:a.b.c.d; ports in host order. Segments start at the TCP header; checksums are made and
 * verified here, with the pseudo-header. Buffers are rings: peek and reserve give the piece up to the
 * ring's end, and the rest after consume or commit.
 *
 * Kept: RFC 9293 (all states, both opens, zero-window probes, silly windows), 5681, 6582 and 9438 (NewReno,
 * CUBIC) with an initial window by 6928, black holes found as in 4821 7.5 (by timeouts), 6298 (but a timeout
 * of 200 ms is the least, as in Linux, not 1 s), window scale, timestamps and PAWS (7323), SACK and DSACK
 * (2018, 2883), RACK-TLP (8985), PRR (6937), Eifel (3522, 4015), 5961 and 1337 (resets), ECN (3168), user
 * timeouts (5482). Urgent data is taken as ordinary data. COMPLIANCE.md has it line by line.
 */
#ifndef XDS_TCP_H
#define XDS_TCP_H

#include "base.h"

enum xds_tcp_state {
    XDS_TCP_CLOSED = 0,
    XDS_TCP_LISTEN = 1,
    XDS_TCP_SYN_SENT = 2,
    XDS_TCP_SYN_RECEIVED = 3,
    XDS_TCP_ESTABLISHED = 4,
    XDS_TCP_FIN_WAIT_1 = 5,
    XDS_TCP_FIN_WAIT_2 = 6,
    XDS_TCP_CLOSE_WAIT = 7,
    XDS_TCP_CLOSING = 8,
    XDS_TCP_LAST_ACK = 9,
    XDS_TCP_TIME_WAIT = 10,
    XDS_TCP_STATES = 11,
};

enum xds_tcp_reason {
    XDS_TCP_DELIVERED = 0,   /* not a reason: the index of what the state machine took            */
    XDS_TCP_SHORT = 1,       /* ends inside its header, or the header is shorter than 20 bytes    */
    XDS_TCP_CHECKSUM = 2,    /*                                                                   */
    XDS_TCP_OPTIONS = 3,     /* an option of a length that cannot be                              */
    XDS_TCP_OTHER = 4,       /* other ports or addresses                                          */
    XDS_TCP_NO_STATE = 5,    /* closed: answered by a reset unless it is one                      */
    XDS_TCP_WINDOW = 6,      /* outside the receive window                                        */
    XDS_TCP_RESET_BAD = 7,   /* a reset that is not exactly the next byte (RFC 5961 3)            */
    XDS_TCP_SYN_BAD = 8,     /* a SYN in a connection (RFC 5961 4)                                */
    XDS_TCP_NO_ACK = 9,      /* neither SYN nor ACK where one is due                              */
    XDS_TCP_ACK_BAD = 10,    /* of what was not sent, or too old (RFC 5961 5)                     */
    XDS_TCP_DISORDERED = 11, /* out of order, and no room to note another hole                   */
    XDS_TCP_PAWS = 12,       /* its time stamp is older than one that has come (RFC 7323 5.3)     */
    XDS_TCP_NO_STAMP = 13,   /* no time stamp, though both agreed on them (RFC 7323 3.2)          */
    XDS_TCP_REASONS = 14,
};

enum xds_tcp_congestion { XDS_TCP_CUBIC = 0, XDS_TCP_NEWRENO = 1, XDS_TCP_NO_CONGESTION = 2 };

/* Zero everywhere but addresses, ports and iss is a good start: 0 takes the value in brackets. */
struct xds_tcp_config {
    uint8_t local[16], remote[16]; /* remote: ignored when listening                              */
    uint16_t local_port, remote_port;
    uint16_t mss;          /* most bytes of payload a segment, either way [1460]                    */
    uint8_t congestion;    /* enum xds_tcp_congestion                                               */
    uint8_t passive;       /* 1: wait for a SYN                                                     */
    uint8_t nagle;         /* 1: a short segment waits while others are in flight; 2: until it is full,
                              for a retransmission timeout at most (Linux's TCP_CORK); 3: both      */
    uint8_t no_stamps;     /* 1: no timestamps option, 12 bytes a segment                           */
    uint8_t no_sack;       /* 1: neither asked for nor sent (RFC 2018)                              */
    uint8_t keepalive;     /* 1: an idle peer is asked whether it is there (RFC 9293 3.8.4)         */
    uint32_t iss;          /* initial sequence number (RFC 6528: unpredictable), the caller's       */
    uint32_t stamp_offset; /* of our time stamps (RFC 7323 5.4: unpredictable), the caller's        */
    uint32_t pieces;       /* of what is out, that are told apart [2 * send_bytes / mss, up to 4096]  */
    uint32_t send_bytes, receive_bytes; /* buffers, powers of two up to 1 GiB [65536]             */
    int64_t delayed_ack_ns;   /* longest wait of an ACK [0: none]                                    */
    int64_t rto_min_ns;       /* [200 ms; RFC 6298 2.4 would have 1 s]                               */
    int64_t give_up_ns;       /* the user timeout: nothing was acknowledged for so long [180 s]      */
    int64_t msl_ns;           /* TIME-WAIT lasts twice that [30 s]                                   */
    int64_t keep_idle_ns;     /* nothing was heard for so long: a probe [2 h], 10 ms to 30 days      */
    int64_t keep_interval_ns; /* until the next one [75 s], the same bounds                        */
    uint32_t keep_count;      /* unanswered: timed out [9], up to 127                              */
    uint8_t user_timeout;     /* 1: tell the peer give_up_ns, and heed its own (RFC 5482)          */
    uint8_t ecn;              /* 1: explicit congestion notification where both want it (RFC 3168) */
    uint8_t dscp;             /* of every segment, 0 to 63 (RFC 2474)                         */
    uint8_t give_up_fixed;    /* 1: the peer's changes nothing; so where give_up_ns was given      */
};

struct xds_tcp_segment {
    const uint8_t *data; /* the TCP header; borrowed */
    uint32_t len;
    uint8_t tos; /* of its IP packet: the lower two bits are ECN's */
    uint8_t pad[3];
    uint32_t checked; /* 1: the caller has verified the checksum, and found the connection by these ends */
    uint8_t src[16], dst[16];
};

struct xds_tcp_stats {
    uint64_t received;
    uint64_t reasons[XDS_TCP_REASONS];   /* by enum xds_tcp_reason; [0] = delivered                */
    uint64_t received_bytes, sent_bytes; /* of payload, each byte once                            */
    uint64_t sent;                       /* segments                                               */
    uint64_t retransmits, timeouts, fast_retransmits, probes, duplicate_acks;
    uint64_t out_of_order, challenges, challenges_held, resets_sent;
    uint64_t sack_blocks, sack_bad, dsacks; /* received; of what is not out; of what came twice          */
    uint64_t tail_probes, undone;           /* RFC 8985 7; reductions that turned out to be for nothing   */
    uint64_t duplicate_bytes, dsacks_sent;  /* payload that came again; blocks that said so (RFC 2883)   */
    uint64_t path_cuts;               /* times that segments on their way would not fit any more          */
    uint64_t hole_steps, black_holes; /* smaller segments tried after timeouts; only they pass, it showed */
    uint64_t marks_seen, marks_told;  /* segments that met congestion; reductions that the peer told us to */
    uint64_t keepalives;              /* probes of an idle peer                                    */
};

enum xds_tcp_recovery {
    XDS_TCP_RECOVERY_NONE = 0,
    XDS_TCP_RECOVERY_REDUCE = 1, /* the window shrinks, nothing is lost */
    XDS_TCP_RECOVERY_FAST = 2,   /* until what was out when a loss was seen is acknowledged */
    XDS_TCP_RECOVERY_TIMEOUT = 3,
};

struct xds_tcp_info {
    uint32_t state;  /* enum xds_tcp_state */
    uint32_t mss;    /* most bytes of payload in a segment of ours, options taken off */
    uint32_t stamps; /* 1: both sides send time stamps */
    uint32_t sack;   /* 1: both know SACK */
    uint64_t cwnd, ssthresh, in_flight, send_window, receive_window; /* bytes */
    uint64_t unsent, unread, disordered;                             /* bytes */
    int64_t srtt_ns, rttvar_ns, rto_ns, rtt_min_ns;
    uint64_t outstanding;  /* sent and not acknowledged; in_flight leaves out what is sacked or lost */
    uint64_t sacked, lost; /* bytes */
    uint32_t recovery;     /* enum xds_tcp_recovery */
    uint32_t ecn;          /* 1: both want it */
    int64_t give_up_ns;    /* as agreed */
};

enum xds_tcp_event_kind {
    XDS_TCP_EVENT_OPEN = 1,    /* established                                                     */
    XDS_TCP_EVENT_FIN = 2,     /* the peer sends no more                                          */
    XDS_TCP_EVENT_CLOSED = 3,  /* both directions ended in order; TIME-WAIT may go on             */
    XDS_TCP_EVENT_RESET = 4,   /* by the peer                                                     */
    XDS_TCP_EVENT_REFUSED = 5, /* a reset came before it was established                          */
    XDS_TCP_EVENT_TIMEOUT = 6, /* nothing was acknowledged for give_up_ns, or no keepalive answered */
    XDS_TCP_EVENT_STALLED = 7, /* three retransmissions, and no answer; told once a stall          */
};

struct xds_tcp_event {
    int64_t ns;
    uint32_t kind; /* enum xds_tcp_event_kind */
    uint32_t pad;
};

/* What xds_tcp_set() may change while it is open; 0 takes the default, or switches off. */
enum xds_tcp_setting {
    XDS_TCP_SET_NAGLE = 1, /* 0 to 3; 2 again: what waits goes now */
    XDS_TCP_SET_DELAYED_ACK_NS = 2,
    XDS_TCP_SET_GIVE_UP_NS = 3, /* from now on the peer's wish changes nothing; 0: it does again */
    XDS_TCP_SET_KEEPALIVE = 4,
    XDS_TCP_SET_KEEP_IDLE_NS = 5,
    XDS_TCP_SET_KEEP_INTERVAL_NS = 6,
    XDS_TCP_SET_KEEP_COUNT = 7,
    XDS_TCP_SET_DSCP = 8,
};

/* Bytes that are ready to be sent, with their share of the checksum. */
struct xds_tcp_message {
    uint8_t *data; /* the caller's, kept; changed by xds_tcp_patch() alone */
    uint64_t sum;
    uint32_t len;
    uint32_t pad;
};

struct xds_tcp;
size_t xds_tcp_size(const struct xds_tcp_config *cfg);         /* bytes to provide, 0 = bad cfg      */
int xds_tcp_init(void *mem, const struct xds_tcp_config *cfg); /* mem: kept; 0 or XDS_ECONFIG        */

/* Take one segment. 0: taken; XDS_ETRUNC, XDS_EMALFORMED, XDS_EFOREIGN, XDS_ECAPACITY: counted by
 * reason. In each case output() may have an answer. */
int xds_tcp_input(struct xds_tcp *t, const struct xds_tcp_segment *seg, int64_t now);
/* One segment into room bytes at data, to be sent to the remote address. Its length; 0: nothing to send
 * now; XDS_ECAPACITY: room is under 60 bytes. */
int xds_tcp_output(struct xds_tcp *t, uint8_t *data, uint32_t room, int64_t now);
/* The path takes segments of so many bytes behind 20 of header, options counted: fewer than before (what is out and
 * does not fit is sent again, which is no sign of congestion), or more again. */
void xds_tcp_path(struct xds_tcp *t, uint32_t mss);
/* As output() would build a segment of len bytes now, but nothing is sent and nothing changes: so that code and
 * memory are in the caches when it counts. Its length; 0: not established, or room is under 60 bytes. */
int xds_tcp_warm(struct xds_tcp *t, uint8_t *data, uint32_t room, uint32_t len, int64_t now);
uint8_t xds_tcp_tos(const struct xds_tcp *t); /* of the IP packet round the last one: DSCP and ECN */
int64_t xds_tcp_deadline(const struct xds_tcp *t);
void xds_tcp_tick(struct xds_tcp *t, int64_t now);
int xds_tcp_event(struct xds_tcp *t, struct xds_tcp_event *out); /* 1 filled, 0 none */

/* Bytes that may be written at *data (leased until commit); 0: full; XDS_ESTATE: closed for sending. */
int xds_tcp_reserve(struct xds_tcp *t, uint8_t **data);
int xds_tcp_commit(struct xds_tcp *t, uint32_t len); /* 0, XDS_ESTATE, XDS_ECAPACITY more than reserved */
int xds_tcp_write(struct xds_tcp *t, const uint8_t *data, uint32_t len); /* bytes taken, XDS_ESTATE */
/* Ahead of time: m is for len bytes at data. Then when it counts: change some of them, and write it as it is. As one
 * segment it costs no sum over its bytes; in what way it leaves, it is the same bytes on the wire as by write(). */
void xds_tcp_prepare(struct xds_tcp_message *m, uint8_t *data, uint32_t len);
int xds_tcp_patch(struct xds_tcp_message *m, uint32_t at, const uint8_t *bytes,
                  uint32_t len); /* 0, XDS_ECAPACITY */
int xds_tcp_write_prepared(struct xds_tcp *t,
                           const struct xds_tcp_message *m); /* len; 0: not all fits; XDS_ESTATE */
/* Bytes that lie at *data in order (leased until consume); 0: none. They stay after the peer's FIN, and
 * after a reset. */
int xds_tcp_peek(const struct xds_tcp *t, const uint8_t **data);
int xds_tcp_consume(struct xds_tcp *t, uint32_t len); /* 0, XDS_ECAPACITY more than there are */
int xds_tcp_read(struct xds_tcp *t, uint8_t *data, uint32_t room);

int xds_tcp_close(struct xds_tcp *t);  /* send no more: FIN after what was written; XDS_ESTATE twice */
void xds_tcp_abort(struct xds_tcp *t); /* reset at once; closed */
int xds_tcp_set(struct xds_tcp *t, uint32_t setting, int64_t value, int64_t now); /* 0, XDS_ECONFIG */
void xds_tcp_info(const struct xds_tcp *t, struct xds_tcp_info *out);
void xds_tcp_stats(const struct xds_tcp *t, struct xds_tcp_stats *out);

#endif
