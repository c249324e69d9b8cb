/* xsk_inl.h: what xsk.c (the packet path) and xsk_open.c (setting up) share, and the audit of frame
 * ownership that a build with -DXDS_AUDIT makes: every frame has exactly one owner, and one that
 * goes back to the kernel is overwritten, so that stale use shows at once. */
#ifndef XDSI_XSK_INL_H
#define XDSI_XSK_INL_H

#include "ports/link_ops.h"
#include "xds/xsk.h"
#include "xds_shared.h"

#include <stdbool.h>
#include <xdp/xsk.h>

#ifdef XDS_AUDIT
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#endif

#ifndef SOL_XDP
#define SOL_XDP 283
#endif

#define XDSI_KERNEL_HEADROOM 256u /* XDP_PACKET_HEADROOM: before each received packet */

enum xdsi_owner { XDSI_OWNER_KERNEL = 0, XDSI_OWNER_CALLER = 1, XDSI_OWNER_FREE = 2 };

struct queue {
    struct xsk_ring_cons rx;
    struct xsk_ring_prod fill;
    uint8_t *area;   /* UMEM of this queue                                         */
    uint64_t tag;    /* queue index << 48, so that a frame's addr names its UMEM   */
    uint32_t leased; /* descriptors peeked and not yet released                    */
    int fd;
    uint16_t id; /* the NIC's number of the queue                              */
    struct xsk_umem *umem;
    struct xsk_socket *socket;
    struct xsk_ring_cons comp; /* of the UMEM; the sender reads it where it sends on this queue */
    uint8_t *owner;            /* enum xdsi_owner by frame, in audit builds                      */
    uint32_t frame_size;
};

/* Sending has a socket of its own: the kernel writes a socket's statistics and ring state where it
 * receives for it, on the softirq's core, and reads them where we kick, on ours. One socket for both
 * makes those lines travel with every packet. */
struct sender {
    struct xsk_ring_prod ring;
    struct xsk_ring_cons comp;
    uint8_t *area; /* the UMEM that the frames lie in: a receive queue's, or one of its own */
    uint8_t *owner;
    int fd;
    uint16_t id;     /* the NIC's number of the queue                                    */
    uint64_t base;   /* UMEM address of the first frame                                  */
    uint32_t room;   /* bytes of a frame that the interface can send                     */
    uint32_t frames; /* 0: the port only receives                                        */
    uint32_t frame_size;
    uint32_t free_count;
    uint32_t reserved; /* in the caller's hands                                          */
    uint32_t flying;   /* committed, not yet completed                                   */
    uint32_t *free;
    struct xsk_umem *umem; /* its own, NULL where it shares a receive queue's            */
    struct xsk_ring_prod no_fill;
    struct xsk_socket *socket;
};

struct xsk {
    struct xds_link link;
    uint32_t queues;
    uint32_t rx_next; /* the queue that the next rx begins with                    */
    uint32_t granted; /* enum xds_xsk_mode                                         */
    uint32_t frame_size;
    uint32_t rx_frames;
    uint32_t kick_stalls; /* kicks in a row without progress before flush gives way */
    bool need_wakeup, busy_poll, stamps;
    int poll_fd; /* epoll over several queues, -1 with one                        */
    struct sender tx;
    struct queue queue[];
};

extern const struct xdsi_link_ops xdsi_xsk_ops;
void xdsi_xsk_collect(struct xsk *x); /* take completed TX frames back */
void xdsi_xsk_undo(struct xsk *x);    /* delete what open made, in reverse; calm when half open */

#ifdef XDS_AUDIT
static inline void xdsi_audit_move(uint8_t *owners, unsigned id, uint32_t frame_size, uint64_t addr,
                                   enum xdsi_owner from, enum xdsi_owner to)
{
    if (owners[addr / frame_size] != from) {
        fprintf(stderr, "xsk audit: queue %u frame %llu: owner %u, expected %u\n", id,
                (unsigned long long)(addr / frame_size), owners[addr / frame_size], from);
        abort();
    }
    owners[addr / frame_size] = (uint8_t)to;
}

static inline void xdsi_audit_lease(struct queue *q, uint64_t addr)
{
    xdsi_audit_move(q->owner, q->id, q->frame_size, addr, XDSI_OWNER_KERNEL, XDSI_OWNER_CALLER);
}

static inline void xdsi_audit_release(struct queue *q)
{
    for (uint32_t i = 0; i < q->leased; i++) {
        uint64_t addr = *xsk_ring_prod__fill_addr(&q->fill, q->fill.cached_prod - q->leased + i);
        xdsi_audit_move(q->owner, q->id, q->frame_size, addr, XDSI_OWNER_CALLER, XDSI_OWNER_KERNEL);
        memset(q->area + addr / q->frame_size * q->frame_size, 0xdd, q->frame_size);
    }
}

static inline void xdsi_audit_tx(struct sender *t, uint64_t addr, enum xdsi_owner from, enum xdsi_owner to)
{
    xdsi_audit_move(t->owner, t->id, t->frame_size, addr, from, to);
}
#else
#define xdsi_audit_tx(t, addr, from, to) ((void)0)
#define xdsi_audit_lease(q, addr)        ((void)0)
#define xdsi_audit_release(q)            ((void)0)
#endif

#endif
