/* stages.h: six moments in the life of a message, kept beside it and folded into histograms.
 *
 *   receive    the NIC or the XDP hook had its packet (kernel sockets: the kernel's stamp)
 *   wake       the turn that took it began: read once a turn
 *   tls_start, tls_end    its record was opened (0: not encrypted)
 *   parsed     it was framed and decoded: read once a packet, of a stream once a message
 *   callback   the hook was entered; without one, the batch was ready to be handed over
 *
 * Each is CLOCK_TAI ns, 0 where there was no such moment. A histogram is named by the moment that ends its
 * interval, which began with the moment before it that there was.
 */
#ifndef XDS_STAGES_H
#define XDS_STAGES_H

#include <stddef.h>
#include <stdint.h>

#include "hist.h"

#define XDS_STAGES_MAX      2048 /* rows of one batch                           */
#define XDS_STAGE_CONNS_MAX 64   /* connections with histograms of their own */

enum xds_stage {
    XDS_STAGE_TOTAL = 0, /* of histograms: from receive to the callback */
    XDS_STAGE_WAKE = 1,
    XDS_STAGE_TLS_START = 2,
    XDS_STAGE_TLS_END = 3,
    XDS_STAGE_PARSED = 4,
    XDS_STAGE_CALLBACK = 5,
    XDS_STAGES = 6,
};

/* Of one packet's messages. Its updates and messages lie together in the batch. */
struct xds_stages {
    int64_t receive, wake, tls_start, tls_end, parsed, callback; /* CLOCK_TAI ns */
    uint32_t first, first_message;                               /* in batch.updates, batch.messages */
    uint16_t count, messages;                                    /* how many of them */
    uint16_t feed, channel;
};

_Static_assert(sizeof(struct xds_stages) == 64, "a row is one cache line");

/* Where the rows of one feed or connection go. Kept; each histogram may be NULL. */
struct xds_stage_hists {
    struct xds_hist *of[XDS_STAGES]; /* by enum xds_stage */
    uint64_t *warm_up;               /* rows that were left out because they were the first; may be NULL */
    uint64_t leave_out;              /* so many rows yet */
};

/* A connection's place, or (the last of them) what all share that have none: what mapped memory says of it. */
struct xds_stage_conn_words {
    uint64_t connections; /* that had this place so far                           */
    uint64_t id, port;    /* who has it now; engine port (XDS_ENGINE_PORTS: a kernel socket's) */
    uint64_t local_port, remote_port;
    uint64_t remote_high, remote_low; /* the address's 16 bytes as two numbers, IPv4 mapped */
    /* How it does, as struct xds_tcp_info has it: looked at every 64 ms or more often, 0 once it is gone. */
    uint64_t state, srtt_ns, rtt_min_ns, cwnd, in_flight, outstanding, lost;
    uint64_t retransmits;   /* of this connection                                              */
    uint64_t delivery_rate; /* bytes a second; 0: not known, as of our own stack               */
};

struct xds_stage_conn {
    struct xds_stage_hists hists;
    struct xds_stage_conn_words *words;
    uint64_t warm_up; /* rows of each connection to leave out */
};

/* Rows into their histograms, in their order. An engine does it once a turn. */
void xds_stages_fold(struct xds_stage_hists *h, const struct xds_stages *rows, size_t n);

#endif
