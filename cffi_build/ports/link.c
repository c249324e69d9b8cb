/* link.c: the calls of xds/link.h, each one jump through the port's table.
 *
 * Rules: no work of its own and no branch on the kind of port; closing twice is calm, and a closed
 * link receives nothing and sends nothing.
 */
#include "ports/link_ops.h"

#include <errno.h>
#include <stddef.h>

int xds_link_rx(struct xds_link *l, struct xds_frame *out, unsigned cap, int64_t now_ns)
{
    return l->ops->rx(l, out, cap, now_ns);
}

void xds_link_release(struct xds_link *l)
{
    l->ops->release(l);
}

int xds_link_reserve(struct xds_link *l, struct xds_frame *out, unsigned n)
{
    return l->ops->reserve(l, out, n);
}

int xds_link_commit(struct xds_link *l, const struct xds_frame *frames, unsigned n)
{
    return l->ops->commit(l, frames, n);
}

int xds_link_flush(struct xds_link *l, int64_t now_ns)
{
    return l->ops->flush(l, now_ns);
}

int64_t xds_link_deadline(struct xds_link *l)
{
    return l->ops->deadline(l);
}

int xds_link_flags(const struct xds_link *l)
{
    return (int)l->flags;
}

int xds_link_fd(struct xds_link *l)
{
    int r = l->fd == XDS_LINK_NO_FD && l->ops->make_fd ? l->ops->make_fd(l) : 0;

    return r < 0 ? r : l->fd;
}

unsigned xds_link_mtu(const struct xds_link *l)
{
    return l->mtu;
}

void xds_link_stats(struct xds_link *l, struct xds_link_stats *out)
{
    *out = l->stats;
    if (!l->closed)
        l->ops->stats(l, out);
}

/* What a closed link answers: nothing comes, nothing goes. */
static int closed_rx(struct xds_link *l, struct xds_frame *out, unsigned cap, int64_t now_ns)
{
    return -EBADF;
}

static void closed_release(struct xds_link *l) {}

static int closed_reserve(struct xds_link *l, struct xds_frame *out, unsigned n)
{
    return -EBADF;
}

static int closed_commit(struct xds_link *l, const struct xds_frame *frames, unsigned n)
{
    return -EBADF;
}

static int closed_flush(struct xds_link *l, int64_t now_ns)
{
    return -EBADF;
}

static int64_t closed_deadline(struct xds_link *l)
{
    return XDS_NEVER;
}

static void closed_stats(struct xds_link *l, struct xds_link_stats *out) {}

static void closed_close(struct xds_link *l) {}

static const struct xdsi_link_ops closed_ops = {
    .rx = closed_rx,
    .release = closed_release,
    .reserve = closed_reserve,
    .commit = closed_commit,
    .flush = closed_flush,
    .deadline = closed_deadline,
    .stats = closed_stats,
    .close = closed_close,
};

void xds_link_close(struct xds_link *l)
{
    if (l->closed)
        return;
    l->ops->stats(l, &l->stats); /* the last word of the kernel's counters outlives the socket */
    l->ops->close(l);
    l->ops = &closed_ops;
    l->closed = 1;
    l->fd = -1;
}
