/* xsk.h: AF_XDP queues as one link. One socket and one UMEM a queue, through libxdp with its own
 * program loading inhibited: our filter puts xds_xsk_fd() into its map of sockets.
 *
 * The memory (rings' state, then UMEM frames) is the caller's: one mapping, page aligned, huge pages
 * where there are any. RX and TX frames are disjoint; TX goes out by one queue, so that what is sent keeps
 * its order, and through a socket of its own (two cores do not share what they write). Redirected here = rx_frames + rx_dropped + rx_ring_full (+ what waits in the RX
 * ring); rx_fill_empty says how often that was for want of a frame, and is no further loss.
 *
 * System calls after open: the wake-up (an empty RX ring whose driver asks for it, or busy polling)
 * and the kick. No allocation.
 */
#ifndef XDS_XSK_H
#define XDS_XSK_H

#include <stddef.h>
#include <stdint.h>

#include "link.h"

#define XDS_XSK_QUEUES_MAX 64

enum xds_xsk_mode {
    XDS_XSK_AUTO = 0, /* the kernel's choice: zero-copy where the driver has it        */
    XDS_XSK_ZEROCOPY = 1,
    XDS_XSK_COPY = 2,
};

enum xds_xsk_flag {
    XDS_XSK_REQUIRE = 1,     /* refuse to open when the granted mode is not `mode`     */
    XDS_XSK_NEED_WAKEUP = 2, /* kick and wake only when the driver asks                */
    XDS_XSK_BUSY_POLL = 4,   /* SO_PREFER_BUSY_POLL: an empty receive drives the NAPI  */
    XDS_XSK_NO_STAMPS = 8,   /* the filter writes none: rx_ns = now, nothing is looked for */
};

struct xds_xsk_config {
    char ifname[16];
    uint32_t queue_first;
    uint32_t queue_count;      /* 1 .. XDS_XSK_QUEUES_MAX                              */
    uint32_t tx_queue;         /* what is sent leaves by it; any queue of the interface */
    uint32_t rx_ring;          /* descriptors a queue, a power of two                  */
    uint32_t tx_ring;          /* descriptors, a power of two; 0: receive only         */
    uint32_t rx_frames;        /* frames a queue = its fill ring, a power of two       */
    uint32_t tx_frames;        /* frames, at most tx_ring                              */
    uint32_t frame_size;       /* bytes: 2048 or 4096; 256 of them are the kernel's on RX */
    uint32_t mode;             /* enum xds_xsk_mode                                    */
    uint32_t flags;            /* enum xds_xsk_flag, or-ed                             */
    uint32_t busy_poll_us;     /* SO_BUSY_POLL                                         */
    uint32_t busy_poll_budget; /* SO_BUSY_POLL_BUDGET, packets                         */
    uint32_t bind_wait_ms;     /* how long a busy queue (EBUSY) is tried again         */
    uint32_t kick_stalls;      /* kicks in a row without progress before flush gives way; 0: 64 */
};

/* Where open got to: on success what was granted, on failure the step that failed. */
enum xds_xsk_step {
    XDS_XSK_STEP_CONFIG = 0,
    XDS_XSK_STEP_INTERFACE = 1,
    XDS_XSK_STEP_MTU = 2,
    XDS_XSK_STEP_UMEM = 3,
    XDS_XSK_STEP_BIND = 4,
    XDS_XSK_STEP_MODE = 5,
    XDS_XSK_STEP_BUSY_POLL = 6,
    XDS_XSK_STEP_POLL_FD = 7,
    XDS_XSK_STEP_READY = 8,
};

struct xds_xsk_report {
    uint32_t step;         /* enum xds_xsk_step                                        */
    uint32_t queue;        /* the receive queue that the step was for                  */
    uint32_t granted;      /* XDS_XSK_ZEROCOPY or XDS_XSK_COPY, read back by XDP_OPTIONS */
    uint32_t bind_retries; /* EBUSY answers that were waited out                       */
    uint32_t mtu;          /* of the interface                                         */
    uint32_t mtu_max;      /* that one frame can hold                                  */
};

struct xds_xsk_interface { /* what the kernel says about an interface of this namespace */
    uint32_t ifindex;
    uint32_t mtu;
    uint32_t up, running;
    uint32_t rx_queues; /* channels in use; 1 where the driver does not say            */
    uint8_t mac[6];
    uint8_t pad[2];
    char driver[32];
};

/* Returns 0, -ENODEV no such interface here, -errno. */
int xds_xsk_probe(const char *ifname, struct xds_xsk_interface *out);

size_t xds_xsk_size(const struct xds_xsk_config *cfg); /* bytes to provide, 0 = bad config */
/* mem: kept until close, page aligned, zeroed. report: may be NULL. Returns 0, XDS_ECONFIG,
 * -ENODEV, -ENETDOWN, -EMSGSIZE the MTU is above mtu_max, -EOPNOTSUPP another mode was granted,
 * -EOPNOTSUPP zero-copy and tx_queue is no receive queue of the port, -EBUSY the queue has a socket, -EINVAL no such queue, -EPERM, -ENOBUFS memlock, -errno. */
int xds_xsk_open(void *mem, const struct xds_xsk_config *cfg, struct xds_link **out,
                 struct xds_xsk_report *report);
/* The socket of the index-th queue (0 .. queue_count-1) for the filter's map; -1 none. */
int xds_xsk_fd(const struct xds_link *l, unsigned index);
unsigned xds_xsk_granted(const struct xds_link *l); /* enum xds_xsk_mode */
/* Frames by owner, for tests and audits: they sum up to rx_frames * queues and to tx_frames. */
struct xds_xsk_census {
    uint64_t rx_leased, rx_waiting, rx_filled, rx_kernel; /* caller, RX ring, fill ring, in the kernel */
    uint64_t tx_free, tx_reserved, tx_queued, tx_flying, tx_done; /* tx_done: completed, not collected */
};
int xds_xsk_census(const struct xds_link *l, struct xds_xsk_census *out);

#endif
