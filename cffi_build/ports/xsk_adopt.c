/* xsk_adopt.c: an AF_XDP port goes from one process to another: from an opener to a worker that may open
 * nothing, from a worker to the one that replaces it.
 *
 * The sockets live as long as one descriptor of them does, and the kernel keeps the UMEM's pages, whoever
 * registered them. All that is known of received frames is in the rings: who maps them goes on at the
 * shared indices. Of frames to be sent the rings say only how many are in flight, so the list of free ones
 * goes along in a block. Both must be between two turns: nothing leased, nothing reserved.
 *
 * What changes together: struct sender (xsk_inl.h), xdsi_xsk_lay_out, sizes of rings, the block here, and
 * XDS_XSK_LAYOUT.
 */
#include "ports/xsk_inl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096u

/* The block: tx_frames addresses, of which the first tx_free count; then a byte a frame (struct sender's
 * `left`). */
size_t xds_xsk_parted_size(const struct xds_xsk_config *cfg)
{
    return cfg->tx_frames * (sizeof(uint64_t) + 1);
}

static bool between_turns(const struct xds_link *l, const struct xsk *x)
{
    if (l->closed || x->raw || x->umems == 0 || x->tx.reserved || x->slabs_used)
        return false;
    for (unsigned i = 0; i < x->queues; i++)
        if (x->queue[i].leased)
            return false;
    return true;
}

int xds_xsk_part(struct xds_link *l, struct xds_xsk_parted *out, uint8_t *block, int32_t *fds)
{
    struct xsk *x = (struct xsk *)l;
    struct sender *t = &x->tx;
    int n = 0;

    if (!between_turns(l, x))
        return XDS_ESTATE;
    if (t->live.burst)
        xdsi_live_submit(x); /* who goes on sees the ring, not what is held behind it */
    xdsi_xsk_collect(x);
    *out = (struct xds_xsk_parted){
        .mtu = l->mtu,
        .granted = x->granted,
        .rx_next = x->rx_next,
        .tx_free = t->free_count,
        .tx_flying = t->flying,
        .tx_descs = t->descs,
    };
    memcpy(block, t->free, t->frames * sizeof(uint64_t));
    memcpy(block + t->frames * sizeof(uint64_t), t->left, t->frames);
    for (unsigned i = 0; i < x->queues + (t->frames ? 1 : 0); i++) {
        fds[n] = fcntl(i < x->queues ? x->queue[i].fd : t->fd, F_DUPFD_CLOEXEC, 0);
        if (fds[n] < 0) {
            int code = -errno;
            while (n--)
                close(fds[n]);
            return code;
        }
        n++;
    }
    return n;
}

static int map_queue(struct queue *q, const struct xds_xsk_config *c)
{
    int r = xdsi_socket_producer(&q->socket, XDSI_RING_FILL, xdsi_xsk_fill_ring(c), &q->fill);
    if (r == 0)
        r = xdsi_socket_consumer(&q->socket, XDSI_RING_COMPLETION, xdsi_xsk_completions(c), &q->comp);
    if (r == 0)
        r = xdsi_socket_consumer(&q->socket, XDSI_RING_RX, c->rx_ring, &q->rx);
    q->fd = q->umem->fd = q->socket.fd;
    return r;
}

static int map_sender(struct xsk *x, const struct xds_xsk_config *c)
{
    struct sender *t = &x->tx;
    const uint32_t shared = xdsi_xsk_shared_queue(c);
    int r = 0;

    if (!t->frames)
        return 0;
    if (shared < c->queue_count) {
        t->comp = x->queue[shared].comp;
    } else {
        r = xdsi_socket_consumer(&t->socket, XDSI_RING_COMPLETION, xdsi_xsk_completions(c), &t->comp);
        t->umem->fd = t->socket.fd;
    }
    if (r == 0)
        r = xdsi_socket_producer(&t->socket, XDSI_RING_TX, c->tx_ring, &t->ring);
    t->fd = t->socket.fd;
    return r;
}

/* The free frames: whole chunks of the UMEM, none twice. Which ones they are is not fixed: a frame that was
 * forwarded changes places with a free one. */
static int take_free(struct sender *t, const struct xds_xsk_parted *p, const uint8_t *block)
{
    const struct umem *u = t->umem;

    if (p->tx_free > t->frames || p->tx_flying != t->frames - p->tx_free || p->tx_descs < p->tx_flying)
        return XDS_EMALFORMED;
    memset(u->owner, XDSI_OWNER_KERNEL, u->chunks);
    memcpy(t->free, block, t->frames * sizeof(uint64_t));
    for (uint32_t i = 0; i < p->tx_free; i++) {
        uint32_t number = xdsi_chunk_number(u, t->free[i]);
        if (t->free[i] >= t->high || number > u->chunks - t->each || t->free[i] != xdsi_chunk_at(u, number))
            return XDS_EMALFORMED;
        for (uint32_t j = 0; j < t->each; j++) {
            if (u->owner[number + j] != XDSI_OWNER_KERNEL)
                return XDS_EMALFORMED;
            u->owner[number + j] = XDSI_OWNER_FREE;
        }
    }
    memcpy(t->left, block + t->frames * sizeof(uint64_t), t->frames);
    t->free_count = p->tx_free;
    t->flying = p->tx_flying;
    t->descs = p->tx_descs;
    return 0;
}

static int refuse(const struct xds_xsk_config *cfg, const int32_t *fds, int code)
{
    uint32_t count = cfg->queue_count <= XDS_XSK_QUEUES_MAX ? cfg->queue_count + !!cfg->tx_frames : 0;
    for (uint32_t i = 0; i < count; i++)
        close(fds[i]);
    return code;
}

int xds_xsk_adopt(void *mem, const struct xds_xsk_config *cfg, const struct xds_xsk_parted *parted,
                  const uint8_t *block, const int32_t *fds, struct xds_link **out)
{
    *out = NULL;
    if (cfg->share || cfg->lend || xds_xsk_fault(cfg) || (uintptr_t)mem % PAGE ||
        (cfg->flags & XDS_XSK_RAW) || parted->rx_next >= cfg->queue_count)
        return refuse(cfg, fds, XDS_ECONFIG);
    struct xsk *x = xdsi_xsk_lay_out(mem, cfg, parted->mtu);
    x->granted = parted->granted;
    x->rx_next = parted->rx_next;
    for (unsigned i = 0; i < cfg->queue_count; i++)
        xdsi_socket_adopt(&x->queue[i].socket, fds[i]);
    if (x->tx.frames)
        xdsi_socket_adopt(&x->tx.socket, fds[cfg->queue_count]);
    int r = take_free(&x->tx, parted, block);
    for (unsigned i = 0; i < cfg->queue_count && r == 0; i++)
        r = map_queue(&x->queue[i], cfg);
    if (r == 0)
        r = map_sender(x, cfg);
    if (r < 0) {
        xdsi_xsk_undo(x);
        return r;
    }
    *out = &x->link;
    return 0;
}
