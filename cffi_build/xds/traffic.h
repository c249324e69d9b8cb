/* traffic.h: a generator and its counter: numbered, stamped frames at a rate or flat out, counted at both
 * ends. For tests and trials of a path, never inside a turn.
 *
 * A numbered frame carries XDS_TRAFFIC_BYTES in its payload, little-endian: a mark and the number from 0,
 * then CLOCK_TAI ns: where there is a rate, of when it was due, so that a sender that was held up does not hide the
 * time that its frames lost (coordinated omission); flat out, of sending. After the last one come XDS_TRAFFIC_ENDS end marks with their count in place of
 * the number, so that the far end knows what was sent without another channel.
 */
#ifndef XDS_TRAFFIC_H
#define XDS_TRAFFIC_H

#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "hist.h"
#include "link.h"
#include "sock.h"

#define XDS_TRAFFIC_BYTES    16
#define XDS_TRAFFIC_MARK     0x5844000000000000 /* the top 16 bits of the first word                    */
#define XDS_TRAFFIC_END      0x0000800000000000 /* bit 47: an end mark; below it the number             */
#define XDS_TRAFFIC_ENDS     3
#define XDS_TRAFFIC_BATCH    256       /* frames a commit at most                                       */
#define XDS_TRAFFIC_WINDOW   1048576   /* numbers back that a doubled frame is still known as one       */
#define XDS_TRAFFIC_GRACE_NS 100000000 /* a late sender's time to send what was due within its seconds  */
#define XDS_TRAFFIC_QUIET_NS 50000000  /* after an end mark, for what was overtaken by it               */

struct xds_traffic_frame {
    const uint8_t *data; /* whole Ethernet frame, kept by the caller            */
    uint32_t len;        /* bytes                                               */
    uint32_t at;         /* where number and stamp go, right behind a UDP header whose checksum is 0 (none)
                          * or right for zeros there: it is kept right. 0: it is sent as it is */
};

struct xds_traffic_send {
    const struct xds_traffic_frame *frames; /* sent in turn, round and round                     */
    uint32_t frame_count;                   /* at least 1                                        */
    uint32_t batch;                         /* frames a commit, 1 .. XDS_TRAFFIC_BATCH           */
    uint64_t rate;                          /* frames a second, 0: flat out                      */
    uint64_t count;                         /* frames at most                                    */
    int64_t duration_ns;                    /* from the first frame, at most                     */
    uint64_t sent, bytes;                   /* taken by the link                                 */
    uint64_t numbered;                      /* of them with a number                             */
    uint64_t starved;                       /* turns in which the link had no free frame         */
    struct xds_hist *late;                  /* from due to sent, of a rate; NULL: not kept       */
    int64_t begin_ns, end_ns;               /* CLOCK_TAI of the first and the last turn, 0: none */
};

struct xds_traffic_receive {
    uint64_t *seen;        /* XDS_TRAFFIC_WINDOW bits, zeroed                                       */
    struct xds_hist *ages; /* from the stamp in them to that of reception, ns; NULL: not kept    */
    uint64_t want;         /* end when so many came, 0: no bound                                    */
    uint64_t received;     /* frames with our mark, every copy                                      */
    uint64_t bytes;        /* of them, as they came: frames of a link, payloads of a socket         */
    uint64_t foreign;      /* without our mark                                                      */
    uint64_t doubled;      /* further copies of a number                                            */
    uint64_t reordered;    /* first copies that came after a later number                           */
    uint64_t stale;        /* more than the window behind: a first copy or not, nobody knows        */
    uint64_t next;         /* the highest number seen, and one                                      */
    uint64_t announced;    /* numbers that the sender gave                                          */
    uint64_t ends;         /* end marks seen; 0: `announced` is not known                           */
    int64_t first_ns, last_ns, ended_ns;
};

struct xds_traffic_forward {
    uint8_t to[2][6];      /* MAC that frames leaving by link 0 and 1 get as destination  */
    uint8_t source[2][6];  /* and as source                                               */
    uint64_t forwarded[2]; /* left by link 0 and 1                                        */
    uint64_t refused;      /* no free frame to send in, longer than one, or shorter than Ethernet's header */
    struct xds_hist *ages; /* left by link 1: from stamp to kick, ns; NULL: not kept      */
    uint32_t pending;      /* bit n: link n has frames under way                          */
    uint32_t pad;
};

struct xds_traffic_live {
    const char *object;             /* path of xds_live.bpf.o                                       */
    uint32_t ifindex;               /* frames go out by it; of the calling thread's namespace       */
    uint32_t pass;                  /* 1: hand them to the interface itself, as if it had received  */
    struct xds_traffic_frame frame; /* at: never 0                                                  */
    uint64_t mark;                  /* added to the number: XDS_TRAFFIC_MARK, or 0                  */
    uint32_t batch;                 /* frames the kernel makes at once, 1 .. 256                    */
    uint32_t pad;
    uint64_t rate; /* frames a second, 0: flat out; below about 100,000 they come faster           */
    uint64_t count;
    int64_t duration_ns;
    uint64_t sent, runs;
    int64_t took_ns;
    uint64_t first_ns; /* CLOCK_MONOTONIC of the first frame; 0: a new run                          */
};

/* Send what is due for up to slice_ns. Returns 1 all was sent or the time is over, 0 call again,
 * -EMSGSIZE a frame is larger than the link's, XDS_ECONFIG, -errno. */
int xds_traffic_send(struct xds_traffic_send *t, struct xds_link *l, struct xds_clock *c, int64_t slice_ns);
/* Send the end marks, by the first frame that is numbered. Returns how many, 0 none is numbered, -errno. */
int xds_traffic_end(struct xds_traffic_send *t, struct xds_link *l, struct xds_clock *c);
/* Which frames are due `elapsed_ns` after the first: their count, bounded as the run is. */
uint64_t xds_traffic_due(const struct xds_traffic_send *t, int64_t elapsed_ns);

/* Count what comes for up to slice_ns. Returns 1 when `want` is reached or the end mark is XDS_TRAFFIC_QUIET_NS
 * old (or a capture ends), 0 call again, -errno. */
int xds_traffic_receive_link(struct xds_traffic_receive *t, struct xds_link *l, struct xds_clock *c,
                             int64_t slice_ns);
/* The same from kernel sockets. */
int xds_traffic_receive_sock(struct xds_traffic_receive *t, struct xds_sock *s, struct xds_clock *c,
                             int64_t slice_ns);

/* Two links joined: what comes by one leaves by the other with new MACs, both ways, for up to slice_ns. The least
 * forwarder there is, for trials and benches. Returns 0, -EPIPE both have ended, -errno. */
int xds_traffic_forward(struct xds_traffic_forward *t, struct xds_link *const links[2], struct xds_clock *c,
                        int64_t slice_ns);

/* Send by BPF_PROG_TEST_RUN with live XDP frames (Linux 5.18): one copy less than a socket has. The far end of
 * a veth pair must run an XDP program or GRO, else the kernel drops them silently. Returns 0 all was sent or
 * the time is over; 1 a signal came, or the process was stopped for a while: call again to go on; -ENOENT no
 * object, -EPERM, -EOPNOTSUPP, XDS_ECONFIG, -errno. */
int xds_traffic_live(struct xds_traffic_live *t);

#endif
