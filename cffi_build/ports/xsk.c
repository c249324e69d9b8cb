/* xsk.c: AF_XDP queues as one link: the packet path. Setting up is xsk_open.c.
 *
 * Ownership is in the rings. An RX frame that the caller leases still sits in the RX ring (its
 * descriptor is peeked, not released) and its place in the fill ring is reserved already, so release
 * is two stores a queue. That needs a fill ring with a place for every RX frame, which open demands.
 * TX frames lie behind the RX frames of the queue that is sent on, or in a UMEM of their own; free ones
 * are on a stack; the TX and the completion ring have room for all of them. So no ring operation here
 * can fail for want of room. Sending has a socket of its own (struct sender says why).
 *
 * The stamp that the XDP program put before the packet is copied out and wiped: a frame is used
 * again, and a packet that came without a stamp must not inherit the last one.
 */
#include "ports/xsk_inl.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AHEAD 8u /* frames whose first lines are asked for before they are read */

static void wake(struct xsk *x, struct queue *q)
{
    if (x->busy_poll || (x->need_wakeup && xsk_ring_prod__needs_wakeup(&q->fill))) {
        x->link.stats.rx_wakeups++;
        (void)recvfrom(q->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    }
}

static inline void ask_for(const uint8_t *area, const struct xdp_desc *d, bool stamps)
{
    const uint8_t *data = area + d->addr;

    if (stamps)
        __builtin_prefetch(data - sizeof(struct xds_rx_meta), 1);
    __builtin_prefetch(data);
}

/* The kernel takes fill entries in their order, so the place where the next one goes still names the
 * frame that has just come: its bytes are asked for while its descriptor is on its way to this core.
 * In zero-copy the NIC may complete in another order; then this asked for the wrong frame, no more. */
static inline void ask_early(const struct queue *q, bool stamps)
{
    const uint64_t *entries = q->fill.ring;
    const uint64_t chunk = entries[q->fill.cached_prod & q->fill.mask] & ~(uint64_t)(q->frame_size - 1);
    const uint8_t *data = q->area + chunk + XDSI_KERNEL_HEADROOM;

    if (stamps)
        __builtin_prefetch(data - sizeof(struct xds_rx_meta), 1);
    __builtin_prefetch(data);
    __builtin_prefetch(data + 64);
}

/* One frame out of its descriptor. */
static inline void take(const struct queue *q, const struct xdp_desc *d, struct xds_frame *f, int64_t now_ns,
                        bool stamps)
{
    uint8_t *data = q->area + d->addr;
    struct xds_rx_meta *m = (struct xds_rx_meta *)(void *)(data - sizeof(*m));
    bool stamped = stamps && m->magic == XDS_META_MAGIC && m->length == d->len;

    f->data = data;
    f->rx_ns = stamped ? (int64_t)m->rx_ns : now_ns;
    f->addr = q->tag | d->addr;
    f->len = d->len;
    f->queue = q->id;
    f->flags = stamped ? (uint16_t)(m->flags & XDS_META_NIC ? XDS_FRAME_HW_STAMP : 0) : 0;
    if (stamped)
        m->magic = 0; /* only then: a line that is only read stays clean */
}

static unsigned queue_rx(struct xsk *x, struct queue *q, struct xds_frame *out, unsigned cap, int64_t now_ns)
{
    const struct xdp_desc *descs = q->rx.ring;
    uint32_t mask = q->rx.mask, at;
    uint64_t bytes = 0;
    unsigned n = xsk_ring_cons__peek(&q->rx, cap, &at);
    bool stamps = x->stamps;

    if (n == 0) {
        wake(x, q);
        return 0;
    }
    ask_early(q, stamps);
    for (unsigned i = 0; i < AHEAD && i < n; i++)
        ask_for(q->area, &descs[(at + i) & mask], stamps);
    for (unsigned i = 0; i < n; i++) {
        const struct xdp_desc *d = &descs[(at + i) & mask];
        if (i + AHEAD < n)
            ask_for(q->area, &descs[(at + i + AHEAD) & mask], stamps);
        *xsk_ring_prod__fill_addr(&q->fill, q->fill.cached_prod++) = d->addr;
        take(q, d, &out[i], now_ns, stamps);
        bytes += d->len;
        xdsi_audit_lease(q, d->addr);
    }
    q->leased += n;
    x->link.stats.rx_bytes += bytes;
    return n;
}

static int xsk_rx(struct xds_link *l, struct xds_frame *out, unsigned cap, int64_t now_ns)
{
    struct xsk *x = (struct xsk *)l;
    unsigned n = 0, at = x->rx_next;

    /* Begin with another queue each time, so that a busy one cannot starve the rest. */
    for (unsigned i = 0; i < x->queues && n < cap; i++) {
        n += queue_rx(x, &x->queue[at], out + n, cap - n, now_ns);
        at = at + 1 == x->queues ? 0 : at + 1;
    }
    x->rx_next = x->rx_next + 1 == x->queues ? 0 : x->rx_next + 1;
    l->stats.rx_polls++;
    l->stats.rx_polls_empty += n == 0;
    l->stats.rx_frames += n;
    return (int)n;
}

static void xsk_release(struct xds_link *l)
{
    struct xsk *x = (struct xsk *)l;

    for (unsigned i = 0; i < x->queues; i++) {
        struct queue *q = &x->queue[i];
        if (q->leased == 0)
            continue;
        xdsi_audit_release(q);
        xsk_ring_prod__submit(&q->fill, q->leased);
        xsk_ring_cons__release(&q->rx, q->leased);
        q->leased = 0;
    }
}

static int xsk_reserve(struct xds_link *l, struct xds_frame *out, unsigned n)
{
    struct xsk *x = (struct xsk *)l;
    struct sender *t = &x->tx;

    if (n > t->free_count)
        xdsi_xsk_collect(x);
    unsigned got = n < t->free_count ? n : t->free_count;
    for (unsigned i = 0; i < got; i++) {
        uint64_t addr = t->base + (uint64_t)t->free[--t->free_count] * t->frame_size;
        xdsi_audit_tx(t, addr, XDSI_OWNER_FREE, XDSI_OWNER_CALLER);
        out[i] = (struct xds_frame){.data = t->area + addr, .addr = addr, .len = t->room, .queue = t->id};
    }
    t->reserved += got;
    l->stats.tx_no_frame += n - got;
    return (int)got;
}

static bool ours(const struct sender *t, const struct xds_frame *f)
{
    uint64_t at = f->addr - t->base;
    return f->len <= t->room && f->addr >= t->base && at < (uint64_t)t->frames * t->frame_size;
}

static inline void give_back(struct sender *t, uint64_t addr)
{
    t->free[t->free_count++] = (uint32_t)((addr - t->base) / t->frame_size);
}

static int xsk_commit(struct xds_link *l, const struct xds_frame *frames, unsigned n)
{
    struct xsk *x = (struct xsk *)l;
    struct sender *t = &x->tx;
    uint64_t bytes = 0;
    unsigned sent = 0;

    if (n > t->reserved)
        return XDS_ESTATE;
    for (unsigned i = 0; i < n; i++)
        if (XDSI_UNLIKELY(!ours(t, &frames[i])))
            return -EMSGSIZE;
    for (unsigned i = 0; i < n; i++) {
        const struct xds_frame *f = &frames[i];
        if (f->len == 0) {
            xdsi_audit_tx(t, f->addr, XDSI_OWNER_CALLER, XDSI_OWNER_FREE);
            give_back(t, f->addr);
            continue;
        }
        xdsi_audit_tx(t, f->addr, XDSI_OWNER_CALLER, XDSI_OWNER_KERNEL);
        *xsk_ring_prod__tx_desc(&t->ring, t->ring.cached_prod++) =
            (struct xdp_desc){.addr = f->addr, .len = f->len, .options = 0};
        bytes += f->len;
        sent++;
    }
    t->reserved -= n;
    t->flying += sent;
    if (sent)
        xsk_ring_prod__submit(&t->ring, sent);
    l->stats.tx_frames += sent;
    l->stats.tx_bytes += bytes;
    return (int)sent;
}

void xdsi_xsk_collect(struct xsk *x)
{
    struct sender *t = &x->tx;
    uint32_t at;

    if (t->flying == 0)
        return;
    unsigned n = xsk_ring_cons__peek(&t->comp, t->flying, &at);
    for (unsigned i = 0; i < n; i++) {
        uint64_t addr = *xsk_ring_cons__comp_addr(&t->comp, at + i);
        xdsi_audit_tx(t, addr, XDSI_OWNER_KERNEL, XDSI_OWNER_FREE);
        give_back(t, addr);
    }
    if (n)
        xsk_ring_cons__release(&t->comp, n);
    t->flying -= n;
    x->link.stats.tx_completed += n;
}

static uint32_t tx_queued(const struct sender *t)
{
    return *t->ring.producer - __atomic_load_n(t->ring.consumer, __ATOMIC_ACQUIRE);
}

/* Copy mode sends in the caller's context, a limited batch a call (EAGAIN: the batch is full;
 * ENOBUFS, EBUSY: the socket's or the device's room is). What is not taken stays in the TX ring, so
 * nothing is lost: kick until it is empty, or until nothing has moved for `kick_stalls` kicks; the
 * next flush goes on from there. Zero-copy takes the ring by itself: one kick is enough.
 * syscall(), not sendto(): that is a point of cancellation, which costs two locked instructions. */
static int kick(struct xsk *x)
{
    struct sender *t = &x->tx;
    uint32_t queued = tx_queued(t), stalls = 0;

    while (queued && stalls < x->kick_stalls) {
        x->link.stats.tx_kicks++;
        bool again = false;
        if (syscall(SYS_sendto, t->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0) {
            again = errno == EAGAIN || errno == ENOBUFS || errno == EBUSY || errno == EINTR;
            if (!again)
                return -errno;
            x->link.stats.tx_kicks_again++;
        }
        if (x->granted == XDS_XSK_ZEROCOPY && !again)
            break;
        uint32_t left = tx_queued(t);
        stalls = left == queued ? stalls + 1 : 0;
        queued = left;
        xdsi_xsk_collect(x);
    }
    return 0;
}

static int xsk_flush(struct xds_link *l, int64_t now_ns)
{
    struct xsk *x = (struct xsk *)l;

    if (x->tx.flying == 0)
        return 0;
    if (tx_queued(&x->tx)) {
        if (x->granted == XDS_XSK_ZEROCOPY && x->need_wakeup && !xsk_ring_prod__needs_wakeup(&x->tx.ring)) {
            l->stats.tx_kicks_suppressed++;
        } else {
            int r = kick(x);
            if (r < 0)
                return r;
        }
    }
    xdsi_xsk_collect(x);
    return (int)x->tx.flying;
}

static int64_t xsk_deadline(struct xds_link *l)
{
    return XDS_NEVER;
}

static void xsk_stats(struct xds_link *l, struct xds_link_stats *out)
{
    struct xsk *x = (struct xsk *)l;

    for (unsigned i = 0; i <= x->queues; i++) {
        int fd = i < x->queues ? x->queue[i].fd : x->tx.fd;
        struct xdp_statistics s = {0};
        socklen_t len = sizeof(s);
        if (fd < 0 || getsockopt(fd, SOL_XDP, XDP_STATISTICS, &s, &len) < 0)
            continue;
        out->rx_dropped += s.rx_dropped;
        out->rx_invalid += s.rx_invalid_descs;
        out->rx_ring_full += s.rx_ring_full;
        out->rx_fill_empty += s.rx_fill_ring_empty_descs;
        out->tx_invalid += s.tx_invalid_descs;
        out->tx_ring_empty += s.tx_ring_empty_descs;
    }
}

static void xsk_close(struct xds_link *l)
{
    xdsi_xsk_undo((struct xsk *)l);
}

const struct xdsi_link_ops xdsi_xsk_ops = {
    .rx = xsk_rx,
    .release = xsk_release,
    .reserve = xsk_reserve,
    .commit = xsk_commit,
    .flush = xsk_flush,
    .deadline = xsk_deadline,
    .stats = xsk_stats,
    .close = xsk_close,
};

int xds_xsk_fd(const struct xds_link *l, unsigned index)
{
    const struct xsk *x = (const struct xsk *)l;
    return l->closed || index >= x->queues ? -1 : x->queue[index].fd;
}

unsigned xds_xsk_granted(const struct xds_link *l)
{
    return ((const struct xsk *)l)->granted;
}

int xds_xsk_census(const struct xds_link *l, struct xds_xsk_census *out)
{
    const struct xsk *x = (const struct xsk *)l;

    *out = (struct xds_xsk_census){0};
    if (l->closed)
        return -EBADF;
    for (unsigned i = 0; i < x->queues; i++) {
        const struct queue *q = &x->queue[i];
        uint32_t in_rx = __atomic_load_n(q->rx.producer, __ATOMIC_ACQUIRE) - *q->rx.consumer;
        uint32_t in_fill = *q->fill.producer - __atomic_load_n(q->fill.consumer, __ATOMIC_ACQUIRE);
        out->rx_leased += q->leased;
        out->rx_waiting += in_rx - q->leased;
        out->rx_filled += in_fill;
        out->rx_kernel += x->rx_frames - in_rx - in_fill;
    }
    const struct sender *t = &x->tx;
    if (t->frames) {
        out->tx_free = t->free_count;
        out->tx_reserved = t->reserved;
        out->tx_queued = tx_queued(t);
        out->tx_done = __atomic_load_n(t->comp.producer, __ATOMIC_ACQUIRE) - *t->comp.consumer;
        out->tx_flying = t->flying - out->tx_queued - out->tx_done;
    }
    return 0;
}
