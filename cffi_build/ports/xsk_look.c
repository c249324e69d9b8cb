/* xsk_look.c: what an AF_XDP port shows of itself: the kernel's counters, who owns each frame, the features'
 * least kernels; and the tests' door to the raw rings.
 */
#include "ports/xsk_inl.h"

#include <errno.h>
#include <stdio.h>

void xdsi_xsk_stats(struct xds_link *l, struct xds_link_stats *out)
{
    struct xsk *x = (struct xsk *)l;

    for (unsigned i = 0; i <= x->queues; i++) {
        int fd = i < x->queues ? x->queue[i].fd : x->tx.fd;
        struct xdp_statistics s = {0};
        socklen_t len = sizeof(s);
        if (fd < 0 || getsockopt(fd, SOL_XDP, XDP_STATISTICS, &s, &len) < 0)
            continue;
        out->tx_invalid += s.tx_invalid_descs;
        out->tx_ring_empty += s.tx_ring_empty_descs;
        if (i == x->queues)
            continue; /* where it sends on a receive queue, the fill ring's count is that queue's once more */
        out->rx_dropped += s.rx_dropped;
        out->rx_invalid += s.rx_invalid_descs;
        out->rx_ring_full += s.rx_ring_full;
        out->rx_fill_empty += s.rx_fill_ring_empty_descs;
    }
}

int xds_xsk_fd(const struct xds_link *l, unsigned index)
{
    const struct xsk *x = (const struct xsk *)l;
    if (l->closed || index > x->queues)
        return -1;
    return index == x->queues ? x->tx.fd : x->queue[index].fd;
}

unsigned xds_xsk_napi(const struct xds_link *l, unsigned index)
{
    unsigned id = 0;
    socklen_t len = sizeof(id);
    int fd = xds_xsk_fd(l, index);

    return fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_INCOMING_NAPI_ID, &id, &len) == 0 ? id : 0;
}

unsigned xds_xsk_granted(const struct xds_link *l)
{
    return ((const struct xsk *)l)->granted;
}

/* Frames whose last descriptor the kernel has not taken yet. */
static uint32_t whole_frames_queued(const struct sender *t)
{
    const struct xdp_desc *descs = t->ring.ring;
    uint32_t at = t->ring.cached_prod - xdsi_tx_queued(t), n = 0;

    for (; at != t->ring.cached_prod; at++)
        n += !(descs[at & t->ring.mask].options & XDP_PKT_CONTD);
    return n;
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
        out->rx_kernel += x->raw ? 0 : x->rx_frames - in_rx - in_fill;
    }
    const struct sender *t = &x->tx;
    if (t->frames) {
        out->tx_free = t->free_count;
        out->tx_reserved = t->reserved;
        out->tx_queued = whole_frames_queued(t);
        if (!t->chains)
            out->tx_done = __atomic_load_n(t->comp.producer, __ATOMIC_ACQUIRE) - *t->comp.consumer;
        out->tx_flying = t->flying - out->tx_queued - out->tx_done;
    }
    return 0;
}

/* ---- The least kernel for each feature ------------------------------------------------------- */

#define FEATURE(id, name, major, minor, what) [id] = {name, major, minor, what},
static const struct {
    const char *name;
    uint32_t major, minor;
    const char *what;
} features[] = {XDSI_XSK_FEATURES(FEATURE)};

int xds_xsk_feature(unsigned index, struct xds_xsk_need *out)
{
    if (index >= sizeof(features) / sizeof(features[0]))
        return 0;
    *out = (struct xds_xsk_need){.major = features[index].major, .minor = features[index].minor};
    snprintf(out->name, sizeof(out->name), "%s", features[index].name);
    snprintf(out->what, sizeof(out->what), "%s", features[index].what);
    return 1;
}

/* ---- The tests' door ------------------------------------------------------------------------- */

int xds_xsk_post(struct xds_link *l, const struct xds_xsk_desc *descs, unsigned n)
{
    struct xsk *x = (struct xsk *)l;
    struct sender *t = &x->tx;

    if (l->closed || !x->raw || !t->frames)
        return XDS_ESTATE;
    uint32_t room = t->ring.size - xdsi_tx_queued(t);
    if (n > room)
        n = room;
    for (unsigned i = 0; i < n; i++)
        *xsk_ring_prod__tx_desc(&t->ring, t->ring.cached_prod++) =
            (struct xdp_desc){.addr = descs[i].addr, .len = descs[i].len, .options = descs[i].options};
    t->descs += n;
    t->flying += n;
    xsk_ring_prod__submit(&t->ring, n);
    return (int)n;
}

int xds_xsk_post_fill(struct xds_link *l, unsigned index, const uint64_t *addrs, unsigned n)
{
    struct xsk *x = (struct xsk *)l;

    if (l->closed || !x->raw || index >= x->queues)
        return XDS_ESTATE;
    struct queue *q = &x->queue[index];
    if (q->leased)
        return XDS_ESTATE; /* their places are taken already: release first */
    uint32_t room = q->fill.size - (*q->fill.producer - __atomic_load_n(q->fill.consumer, __ATOMIC_ACQUIRE));
    if (n > room)
        n = room;
    for (unsigned i = 0; i < n; i++)
        *xsk_ring_prod__fill_addr(&q->fill, q->fill.cached_prod++) = addrs[i];
    xsk_ring_prod__submit(&q->fill, n);
    return (int)n;
}

uint8_t *xds_xsk_umem(struct xds_link *l, unsigned index, uint64_t *bytes)
{
    struct xsk *x = (struct xsk *)l;
    const struct umem *u = index < x->queues ? x->queue[index].umem : x->tx.umem;

    *bytes = l->closed ? 0 : u->bytes;
    return l->closed ? NULL : u->area;
}
