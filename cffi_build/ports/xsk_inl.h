/* xsk_inl.h: what the files of the AF_XDP port share: xsk.c (the packet path), xsk_layout.c (the memory),
 * xsk_open.c (setting up), xsk_look.c (counters, census, the tests' door); and the audit of frame ownership
 * that a build with -DXDS_AUDIT makes: every chunk has exactly one owner, and one that goes back to the
 * kernel is overwritten, so that stale use shows at once.
 *
 * Words: a *chunk* is the kernel's unit of a UMEM (frame_size bytes); a *frame* is a packet: one chunk, or,
 * where the MTU asks for it, several. A descriptor's address names a chunk in its low 48 bits and, with
 * unaligned chunks, an offset in the others; `area + xdsi_offset(addr)` is right for both kinds.
 */
#ifndef XDSI_XSK_INL_H
#define XDSI_XSK_INL_H

#include "ports/link_ops.h"
#include "ports/nic_time_inl.h"
#include "ports/xsk_socket.h"
#include "xds/xsk.h"
#include "xds_shared.h"

#include <stdbool.h>

#ifdef XDS_AUDIT
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#endif

#define XDSI_KERNEL_HEADROOM 256u /* XDP_PACKET_HEADROOM: before each received packet */
#define XDSI_KERNEL_TAILROOM 320u /* skb_shared_info: Linux 6.18 wants it behind the packet,  */
#define XDSI_PACKET_LEAST    128u /* and between the two at least this                        */

enum xdsi_owner { XDSI_OWNER_KERNEL = 0, XDSI_OWNER_CALLER = 1, XDSI_OWNER_FREE = 2 };

/* Memory that the kernel knows under one registration. Chunks lie `per_tile` in a tile and cross none: a
 * tile is what is contiguous for a device too. Aligned chunks are their own tiles. Chunks of any size begin
 * `stride` bytes apart, an even number: Linux 6.18 keeps a mark in the lowest bit of a sent frame's address,
 * and so completes an odd one as the byte before it, which is the chunk before it. In a row (XDS_XSK_IN_A_ROW)
 * they overlap, by the headroom of the kernel's that it does not write to, in one tile. */
struct umem {
    uint8_t *area;
    uint64_t bytes;
    uint64_t mask; /* what of a descriptor's address names its chunk                 */
    uint32_t chunk, stride, tile, per_tile;
    uint32_t chunks, headroom, tx_meta;
    bool unaligned, chains; /* chains: bound for frames over several chunks              */
    uint32_t lent;          /* the first chunk that no port uses: chunks .. are still to lend */
    uint8_t *owner;         /* enum xdsi_owner by chunk, in audit builds                      */
    int fd;                 /* a socket bound with it, -1: nobody registered it yet           */
};

struct queue {
    struct xsk_ring_cons rx;
    struct xsk_ring_prod fill;
    uint8_t *area;   /* of its UMEM                                                    */
    uint64_t tag;    /* queue index << 48: a frame's handle is this and its place in the fill ring */
    uint32_t leased; /* descriptors peeked and not yet released                        */
    int fd;
    uint16_t id;      /* the NIC's number of the queue                                  */
    uint32_t data_at; /* from a chunk's first byte to a packet's                       */
    uint64_t mask;    /* what of an address names its chunk                            */
    struct umem *umem;
    uint32_t first;            /* its first chunk in the UMEM                          */
    struct xsk_ring_cons comp; /* the sender reads it where it sends on this queue     */
    struct xdsi_socket socket;
};

/* The second way to send, see xsk_live.c. */
enum { XDSI_LIVE_PROGRAM, XDSI_LIVE_MAP, XDSI_LIVE_FDS };
struct xdsi_live {
    struct xds_send_burst *burst; /* mapped; NULL: all goes by the socket                 */
    uint32_t pause;               /* bursts that are not tried                            */
    int fds[XDSI_LIVE_FDS];       /* -1: none                                             */
};

/* Sending has a socket of its own: the kernel writes a socket's statistics and ring state where it
 * receives for it, on the softirq's core, and reads them where we kick, on ours. One socket for both
 * makes those lines travel with every packet. */
struct sender {
    struct xsk_ring_prod ring;
    struct xsk_ring_cons comp;
    uint8_t *area; /* of the UMEM that the frames lie in: a receive queue's, or its own    */
    uint64_t mask; /* what of a descriptor's address names its frame                     */
    uint64_t lead; /* added to a frame's address: where its data begin                   */
    uint64_t high; /* frames lie below this address                                       */
    int fd;
    uint16_t id;     /* the NIC's number of the queue                                    */
    bool chains;     /* a frame may take several descriptors                             */
    uint32_t room;   /* bytes of a frame that the interface can send                     */
    uint32_t piece;  /* the most bytes of one descriptor                                 */
    uint32_t frames; /* 0: the port only receives                                        */
    uint32_t free_count;
    uint32_t reserved; /* in the caller's hands                                          */
    uint32_t flying;   /* frames committed, not yet completed                            */
    uint32_t descs;    /* their descriptors                                              */
    uint64_t *free;    /* addresses                                                      */
    uint8_t *left;     /* with chains: descriptors of each frame that are still to complete */
    uint32_t first;    /* its first chunk in the UMEM                                    */
    uint32_t each;     /* chunks a frame                                                 */
    uint32_t meta;     /* bytes before each frame for XDS_FRAME_TX_META, 0: none        */
    uint32_t stamps_at, stamps_count;
    struct xds_tx_stamp *stamps; /* a ring of TX_STAMPS                                    */
    struct umem *umem;
    struct xdsi_live live;
    struct xsk_ring_prod no_fill;
    struct xdsi_socket socket;
};

struct xsk {
    struct xds_link link;
    uint32_t queues;
    uint32_t rx_next; /* the queue that the next rx begins with                    */
    uint32_t leased;  /* of all queues                                             */
    uint32_t granted; /* enum xds_xsk_mode                                         */
    uint32_t frame_size;
    uint32_t rx_frames;
    uint32_t kick_stalls; /* kicks in a row without progress before flush gives way */
    bool need_wakeup, busy_poll, stamps, raw;
    int poll_fd;    /* epoll over several queues once somebody has asked, else -1      */
    uint8_t *slabs; /* where frames over several chunks are joined, leased like the chunks */
    uint32_t slab_bytes, slab_count, slabs_used;
    uint32_t frame_max; /* bytes of the longest frame that is taken                */
    uint32_t umems;
    struct umem *umem;
    const struct xds_clock_face *nic_clock; /* NULL: stamps of the NIC stay as they are */
    struct sender tx;
    struct queue queue[];
};

extern const struct xdsi_link_ops xdsi_xsk_ops;
void xdsi_xsk_collect(struct xsk *x);             /* take completed TX frames back */
void xdsi_xsk_back(struct xsk *x, uint64_t addr); /* a sent frame of one descriptor is free */
void xdsi_live_send(struct xsk *x);               /* by live frames what goes so, the rest onto the TX ring */
void xdsi_live_submit(struct xsk *x);             /* all that is held onto the TX ring */
void xdsi_live_close(struct xdsi_live *v);
void xdsi_xsk_stats(struct xds_link *l, struct xds_link_stats *out);
void xdsi_xsk_undo(struct xsk *x); /* delete what open made, in reverse; calm when half open */
/* Lay the caller's memory out; no system call. Returns where struct xsk is. */
struct xsk *xdsi_xsk_lay_out(void *mem, const struct xds_xsk_config *c, uint32_t mtu);
uint32_t xdsi_xsk_shared_queue(const struct xds_xsk_config *c);
uint32_t xdsi_xsk_fill_ring(const struct xds_xsk_config *c);   /* places of a fill ring           */
uint32_t xdsi_xsk_completions(const struct xds_xsk_config *c); /* places of the completion ring */
uint32_t xdsi_xsk_payload(const struct xds_xsk_config *c);     /* bytes of a received frame in one chunk */

#define XDSI_TX_STAMPS 1024u
#define XDSI_SLAB_HEAD 64u /* before a joined frame: its hints, and its first byte begins a line */

#define XDSI_LOW48 0xffffffffffffull

static inline uint64_t xdsi_offset(uint64_t addr)
{
    return (addr & XDSI_LOW48) + (addr >> 48);
}

static inline uint64_t xdsi_chunk_at(const struct umem *u, uint32_t number)
{
    return (uint64_t)(number / u->per_tile) * u->tile + (uint64_t)(number % u->per_tile) * u->stride;
}

static inline uint32_t xdsi_chunk_number(const struct umem *u, uint64_t at)
{
    return (uint32_t)(at / u->tile * u->per_tile + at % u->tile / u->stride);
}

/* Descriptors committed and not taken by the kernel: on the TX ring, or held for the second way. */
static inline uint32_t xdsi_tx_queued(const struct sender *t)
{
    return t->ring.cached_prod - __atomic_load_n(t->ring.consumer, __ATOMIC_ACQUIRE);
}

#ifdef XDS_AUDIT
static inline void xdsi_audit_chunk(struct umem *u, unsigned id, uint64_t addr, enum xdsi_owner from,
                                    enum xdsi_owner to)
{
    uint32_t number = xdsi_chunk_number(u, xdsi_offset(addr));
    if (number >= u->chunks || u->owner[number] != from) {
        fprintf(stderr, "xsk audit: queue %u chunk %u of %u: owner %u, expected %u\n", id, number, u->chunks,
                number < u->chunks ? u->owner[number] : 255, from);
        abort();
    }
    u->owner[number] = (uint8_t)to;
}

static inline void xdsi_audit_lease(struct queue *q, uint64_t addr)
{
    xdsi_audit_chunk(q->umem, q->id, addr, XDSI_OWNER_KERNEL, XDSI_OWNER_CALLER);
}

static inline void xdsi_audit_release(struct queue *q)
{
    for (uint32_t i = 0; i < q->leased; i++) {
        uint64_t addr = *xsk_ring_prod__fill_addr(&q->fill, q->fill.cached_prod - q->leased + i);
        xdsi_audit_chunk(q->umem, q->id, addr, XDSI_OWNER_CALLER, XDSI_OWNER_KERNEL);
        uint64_t at = xdsi_chunk_at(q->umem, xdsi_chunk_number(q->umem, xdsi_offset(addr)));
        bool row = q->umem->stride < q->umem->chunk; /* then the chunk's ends are others' too */
        memset(q->area + at + (row ? q->data_at : 0), 0xdd, row ? q->umem->stride : q->umem->chunk);
    }
}

static inline void xdsi_audit_tx(struct sender *t, uint64_t addr, enum xdsi_owner from, enum xdsi_owner to)
{
    uint64_t at = xdsi_chunk_at(t->umem, xdsi_chunk_number(t->umem, xdsi_offset(addr)));
    for (uint32_t i = 0; i < t->each; i++)
        xdsi_audit_chunk(t->umem, t->id, xdsi_chunk_at(t->umem, xdsi_chunk_number(t->umem, at) + i), from,
                         to);
}
#else
#define xdsi_audit_tx(t, addr, from, to) ((void)0)
#define xdsi_audit_lease(q, addr)        ((void)0)
#define xdsi_audit_release(q)            ((void)0)
#endif

#endif
