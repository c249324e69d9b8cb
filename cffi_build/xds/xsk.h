/* xsk.h: AF_XDP queues as one link: a socket and a UMEM a queue, and one more socket to send by. Nothing
 * is loaded or attached here: our filter puts xds_xsk_fd() into its map of sockets.
 *
 * The memory (UMEM chunks, then the port's state) is the caller's: one mapping, page aligned, huge pages
 * where there are any. RX and TX frames are disjoint; TX goes out by one queue, so that what is sent keeps
 * its order, and through a socket of its own (two cores do not share what they write).
 * Redirected here = rx_frames + rx_dropped + rx_ring_full + rx_chain_long + rx_chain_malformed (+ what waits
 * in the RX ring); rx_fill_empty says how often that was for want of a chunk, and is no further loss.
 *
 * A frame that does not fit in one chunk comes in several (XDP_USE_SG, Linux 6.6) and is copied together.
 *
 * System calls after open: the wake-up (an empty RX ring whose driver asks for it, or busy polling)
 * and the kick. No allocation.
 */
#ifndef XDS_XSK_H
#define XDS_XSK_H

#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "link.h"

#define XDS_XSK_QUEUES_MAX 64

enum xds_xsk_mode {
    XDS_XSK_AUTO = 0, /* the kernel's choice: zero-copy where the driver has it        */
    XDS_XSK_ZEROCOPY = 1,
    XDS_XSK_COPY = 2,
};

enum xds_xsk_flag {
    XDS_XSK_REQUIRE = 1,                /* refuse to open when the granted mode is not `mode`     */
    XDS_XSK_NEED_WAKEUP = 2,            /* kick and wake only when the driver asks                */
    XDS_XSK_BUSY_POLL = 4,              /* SO_PREFER_BUSY_POLL: an empty receive drives the NAPI  */
    XDS_XSK_NO_STAMPS = 8,              /* the filter writes none: rx_ns = now, nothing is looked for */
    XDS_XSK_UNALIGNED = 16,             /* chunks of any size, anywhere                           */
    XDS_XSK_RAW = 32,                   /* for tests of the kernel: fills nothing, see xds_xsk_post() */
    XDS_XSK_TX_METADATA = 128,          /* room before each frame to be sent, see xds_xsk_tx_meta() */
    XDS_XSK_TX_SOFTWARE_CHECKSUM = 256, /* copy mode: the kernel computes it, not the driver */
    XDS_XSK_ONE_UMEM = 64,              /* one UMEM for all queues and the sender, not one each   */
    XDS_XSK_IN_A_ROW = 512,             /* copy mode: the pieces of a long frame lie one behind the other */
};

/* IN_A_ROW: each RX chunk begins where what the kernel may write to the one before it ends, less the headroom that
 * the kernel keeps before a packet: so a frame over several chunks is whole where it lies, and is not joined in a
 * slab. What is written before a packet (metadata) then goes over the last bytes of the chunk before it: our
 * filter moves a packet that would end there, see XDS_META_MOVED; with another program that writes metadata do
 * without. For frames of several chunks only; each queue has a UMEM of its own.
 *
 * `share`: a port whose UMEM this one uses. Its chunks come from what that one lends, for good; frame_size,
 * headroom and unaligned are the other's, and so is the mode. */
struct xds_xsk_config {
    struct xds_link *share;
    char ifname[16];
    uint32_t queue_first;
    uint32_t queue_count; /* 1 .. XDS_XSK_QUEUES_MAX                              */
    uint32_t tx_queue;    /* what is sent leaves by it; any queue of the interface */
    uint32_t rx_ring;     /* descriptors a queue, a power of two                  */
    uint32_t tx_ring;     /* descriptors, a power of two; 0: receive only         */
    uint32_t rx_frames;   /* chunks a queue, a power of two; its fill ring has twice the places */
    uint32_t tx_frames;   /* frames; times xds_xsk_tx_descriptors() at most tx_ring */
    uint32_t frame_size; /* bytes a chunk: 2048 or 4096, unaligned 2048 .. 4096; 256 are the kernel's on RX */
    uint32_t headroom;   /* bytes before a received packet, beside the kernel's 256 */
    uint32_t frame_max;  /* bytes of the longest frame, tags included; 0: what one chunk holds */
    uint32_t slabs;      /* frames over several chunks that may be leased at once */
    uint32_t lend;       /* chunks of the UMEM for ports that share it; needs XDS_XSK_ONE_UMEM */
    uint32_t page_size;  /* of mem, bytes: unaligned chunks cross none above 4096; 0: 4096 */
    uint32_t mode;       /* enum xds_xsk_mode                                    */
    uint32_t flags;      /* enum xds_xsk_flag, or-ed                             */
    uint32_t busy_poll_us;     /* SO_BUSY_POLL                                         */
    uint32_t busy_poll_budget; /* SO_BUSY_POLL_BUDGET, packets                         */
    uint32_t tx_budget;        /* copy mode: descriptors a kick may take, from 32; 0: the whole ring. Before
                                  Linux 6.17 it is 32, whatever is asked: see the report */
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
    XDS_XSK_STEP_READY = 7,
    XDS_XSK_STEP_SOCKET = 8,
};

struct xds_xsk_report {
    uint32_t step;         /* enum xds_xsk_step                                        */
    uint32_t queue;        /* the receive queue that the step was for                  */
    uint32_t granted;      /* XDS_XSK_ZEROCOPY or XDS_XSK_COPY, read back by XDP_OPTIONS */
    uint32_t bind_retries; /* EBUSY answers that were waited out                       */
    uint32_t mtu;          /* of the interface                                         */
    uint32_t mtu_max;      /* that a frame of this port can hold                       */
    uint32_t tx_budget;    /* descriptors that one kick takes in copy mode             */
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

/* What is wrong with a configuration, in words; NULL: nothing. */
const char *xds_xsk_fault(const struct xds_xsk_config *cfg);
size_t xds_xsk_size(const struct xds_xsk_config *cfg); /* bytes to provide, 0 = bad config */
/* Places of the TX ring that the longest frame may take. */
unsigned xds_xsk_tx_descriptors(const struct xds_xsk_config *cfg);
/* mem: kept until close, page aligned, zeroed. report: may be NULL. Returns 0, XDS_ECONFIG (xds_xsk_fault
 * says why), -ENODEV, -ENETDOWN, -EMSGSIZE the MTU is above mtu_max, -EOPNOTSUPP another mode was granted, or
 * zero-copy and tx_queue is no receive queue of the port, -EBUSY the queue has a socket, -EINVAL no such queue
 * or a feature that this kernel lacks, -EPERM, -ENOBUFS memlock, -errno. */
int xds_xsk_open(void *mem, const struct xds_xsk_config *cfg, struct xds_link **out,
                 struct xds_xsk_report *report);
/* The socket of the index-th queue (0 .. queue_count-1) for the filter's map; behind them the sender's. -1
 * none. */
int xds_xsk_fd(const struct xds_link *l, unsigned index);
/* The NAPI instance that feeds the index-th queue's socket, as the kernel knows it; 0: none (yet). */
unsigned xds_xsk_napi(const struct xds_link *l, unsigned index);
unsigned xds_xsk_granted(const struct xds_link *l); /* enum xds_xsk_mode */
/* Map the NIC's stamps by a clock that somebody keeps (kept until close); what cannot be mapped is counted and gets
 * the time of the call. Without one they are left as they are, of the NIC's own clock. Not while it receives. */
void xds_xsk_set_nic_clock(struct xds_link *l, const struct xds_clock_face *face);
/* What the NIC told of a leased frame (struct xds_rx_hints of xds_shared.h), where its flags have XDS_FRAME_HASH or
 * XDS_FRAME_VLAN and its data were not moved; else NULL. Leased like the frame. */
const struct xds_rx_hints *xds_xsk_rx_hints(const struct xds_frame *frame);
/* Send leased frames of `from` by `to`, as they are now (data and len may have been changed in place). Where both
 * use one UMEM and a frame is one chunk it is not copied: it changes places with a free frame of `to`, which goes
 * to `from`'s fill ring instead. Else it is copied (tx_copied). Frames that were taken are the caller's no longer
 * (data NULL, len 0). Flush `to` and release `from` as ever. Returns how many were taken (fewer: `to` has no free
 * frame), -EMSGSIZE or XDS_ESTATE (no frame of a lease of `from`): none was taken. */
int xds_xsk_forward(struct xds_link *to, struct xds_link *from, struct xds_frame *frames, unsigned n);
/* Whether frames of `from` would leave by `to` without a copy: two AF_XDP ports on one UMEM. Returns 1 or 0. */
int xds_xsk_shares(const struct xds_link *to, const struct xds_link *from);

/* What the NIC is asked to do with a frame (Linux 6.8; launch_ns: 6.15), in the bytes before it. */
#define XDS_XSK_TX_META_LEN 64 /* a cache line before each frame                          */
enum xds_tx_meta_flag {
    XDS_TX_STAMP = 1,    /* say when it left: xds_xsk_tx_stamps()                          */
    XDS_TX_CHECKSUM = 2, /* sum up from csum_start on, put the result at csum_offset from there */
    XDS_TX_LAUNCH = 4,   /* let it leave at launch_ns                                      */
};
struct xds_tx_meta {
    uint64_t flags;       /* enum xds_tx_meta_flag, or-ed                                    */
    uint16_t csum_start;  /* from the frame's first byte                                    */
    uint16_t csum_offset; /* from csum_start; the pseudo-header's sum is there already      */
    uint32_t pad;
    uint64_t launch_ns; /* of the NIC's clock                                             */
    uint64_t cookie;    /* comes back with the stamp                                      */
};
struct xds_tx_stamp {
    uint64_t cookie;
    int64_t tx_ns; /* the NIC's clock; in copy mode CLOCK_TAI when the kernel was done with it */
};
/* Of a reserved frame, wiped: fill it and or XDS_FRAME_TX_META into the frame's flags before commit. NULL: the
 * port was opened without XDS_XSK_TX_METADATA. Leased until commit. */
struct xds_tx_meta *xds_xsk_tx_meta(struct xds_link *l, const struct xds_frame *frame);
/* Stamps of frames that completed since the last call, oldest first; the port keeps 1,024, the next is lost
 * and counted (tx_stamps_lost). Returns how many. */
int xds_xsk_tx_stamps(struct xds_link *l, struct xds_tx_stamp *out, unsigned cap);

/* Who owns what, for tests and audits. Chunks of receive frames sum up to rx_frames * queues, frames to be sent
 * to tx_frames. tx_done: completed, not collected; where frames take several descriptors those are in tx_flying. */
struct xds_xsk_census {
    uint64_t rx_leased, rx_waiting, rx_filled, rx_kernel; /* caller, RX ring, fill ring, in the kernel */
    uint64_t tx_free, tx_reserved, tx_queued, tx_flying, tx_done;
};
int xds_xsk_census(const struct xds_link *l, struct xds_xsk_census *out);

/* From process to process: one parts with a port between two turns, another goes on with it. The memory must
 * be shared (a memfd); sockets and rings are the same, so no frame is lost and none comes twice. */
struct xds_xsk_parted {
    uint32_t mtu, granted;
    uint32_t rx_next;
    uint32_t tx_free, tx_flying, tx_descs; /* frames that may be taken; in flight; their descriptors */
};
#define XDS_XSK_LAYOUT                                                                                       \
    2 /* how memory, rings and block lie: counted up when they change, and parts of another refused */
/* Bytes of the block that goes along: which TX frames are free. */
size_t xds_xsk_parted_size(const struct xds_xsk_config *cfg);
/* fds: queue_count sockets, then the sender's where the port sends: duplicates, given. block: filled. The port
 * stays to be closed, and must not turn again. Returns how many fds, XDS_ESTATE while a frame is leased or
 * reserved, or the port is closed or raw; -EMFILE. */
int xds_xsk_part(struct xds_link *l, struct xds_xsk_parted *out, uint8_t *block, int32_t *fds);
/* mem: that memory, mapped here. fds: given, whatever is returned. Returns 0, XDS_ECONFIG, XDS_EMALFORMED the
 * block contradicts itself, -errno. */
int xds_xsk_adopt(void *mem, const struct xds_xsk_config *cfg, const struct xds_xsk_parted *parted,
                  const uint8_t *block, const int32_t *fds, struct xds_link **out);

/* The second way to send, in copy mode: bursts of 24 frames and more leave as live XDP frames (BPF_PROG_TEST_RUN),
 * which costs a third of what the socket does; shorter ones, and all that the kernel does not take so, go by the
 * socket, and the order is kept. Whoever is at the interface's other end must take XDP frames (ndo_xdp_xmit: over
 * veth a native XDP program or GRO at the peer), and have the same MTU: a longer frame is dropped there, with those
 * behind it. They leave by the queue that the driver has for the core (veth: the core's number modulo the peer's
 * queues), whatever tx_queue says. To be called between open (or adopt) and the first commit.
 * object: the path of xds_send.bpf.o. Returns 0, XDS_ESTATE (zero-copy, raw, with TX metadata, only receiving, or
 * done already), -errno; xds_filter_message() has the kernel's words. */
int xds_xsk_live_open(struct xds_link *l, const char *object, uint32_t ifindex);
/* The two descriptors of it that go along with a port: duplicates, given. Returns 2, XDS_ESTATE: it has none;
 * -EMFILE. */
int xds_xsk_live_part(const struct xds_link *l, int32_t *fds);
/* fds: given, whatever is returned. Returns 0, XDS_ESTATE, -errno. No capability is needed. */
int xds_xsk_live_adopt(struct xds_link *l, const int32_t *fds);

/* The least kernel of the index-th feature. Returns 1, 0 behind the last. */
struct xds_xsk_need {
    char name[16];
    char what[64];
    uint32_t major, minor;
};
enum xds_xsk_feature {
    XDS_XSK_NEEDS_WAKEUP = 0,
    XDS_XSK_NEEDS_UNALIGNED = 1,
    XDS_XSK_NEEDS_SHARED = 2,
    XDS_XSK_NEEDS_BUSY_POLL = 3,
    XDS_XSK_NEEDS_RX_METADATA = 4,
    XDS_XSK_NEEDS_JUMBO = 5,
    XDS_XSK_NEEDS_TX_METADATA = 6,
    XDS_XSK_NEEDS_LAUNCH_TIME = 7,
    XDS_XSK_NEEDS_TX_BUDGET = 8,
    XDS_XSK_NEEDS_LIVE = 9,
};
int xds_xsk_feature(unsigned index, struct xds_xsk_need *out);

/* A door for tests of the kernel's own checks, on a port opened with XDS_XSK_RAW: it fills no chunk, lends no
 * frame to be sent (reserve finds none), and completions are counted, not given back. Receive, release, flush
 * and the counters work as ever. */
struct xds_xsk_desc {
    uint64_t addr;
    uint32_t len, options;
};
/* Descriptors onto the TX ring as they are. Returns how many it had room for, XDS_ESTATE not raw. */
int xds_xsk_post(struct xds_link *l, const struct xds_xsk_desc *descs, unsigned n);
/* Addresses onto the fill ring of the index-th queue as they are. Likewise; XDS_ESTATE while frames are leased. */
int xds_xsk_post_fill(struct xds_link *l, unsigned index, const uint64_t *addrs, unsigned n);
/* First byte and size of the index-th queue's UMEM; index queue_count: the sender's. NULL when closed. */
uint8_t *xds_xsk_umem(struct xds_link *l, unsigned index, uint64_t *bytes);

#endif
