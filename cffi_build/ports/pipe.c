/* pipe.c: two link ends joined in memory.
 *
 * Each direction owns its slots. A slot is free (on the stack), reserved (the sender's), committed,
 * published by flush, or leased (the receiver's); published descriptors wait in a ring as large as
 * the number of slots, so the ring cannot overflow: the bound is the slots, and it is met at reserve.
 */
#include "xds/pipe.h"
#include "ports/link_ops.h"

#include <errno.h>
#include <string.h>

#define ALIGN           64u
#define SLOTS_MAX       (1u << 20)
#define SLOT_BYTES_MAX  (1u << 16)
#define SLOT_BYTES_MIN  64u
#define ETHERNET_HEADER 14u

struct desc {
    int64_t rx_ns; /* arrival, 0 until flush names it */
    uint32_t slot;
    uint32_t len;
};

struct way { /* one direction */
    uint8_t *area;
    uint32_t *free;     /* stack of slots                                 */
    struct desc *ring;  /* [slots], indices modulo slots                  */
    uint64_t committed; /* head <= leased <= published <= committed       */
    uint64_t published;
    uint64_t leased;
    uint64_t head;
    uint32_t free_count;
    uint32_t slots;
    uint32_t slot_bytes;
};

struct end {
    struct xds_link link;
    struct way *out;
    struct way *in;
};

struct pipe {
    struct end ends[2];
    struct way ways[2];
};

static size_t up(size_t n)
{
    return (n + ALIGN - 1) & ~(size_t)(ALIGN - 1);
}

static size_t way_bytes(const struct xds_pipe_config *cfg)
{
    return up((size_t)cfg->slots * sizeof(struct desc)) + up((size_t)cfg->slots * sizeof(uint32_t)) +
           (size_t)cfg->slots * up(cfg->slot_bytes);
}

size_t xds_pipe_size(const struct xds_pipe_config *cfg)
{
    if (cfg->slots == 0 || cfg->slots > SLOTS_MAX || cfg->slot_bytes < SLOT_BYTES_MIN ||
        cfg->slot_bytes > SLOT_BYTES_MAX || (cfg->flags & ~(uint32_t)XDS_LINK_VIRTUAL_TIME))
        return 0;
    return up(sizeof(struct pipe)) + 2 * way_bytes(cfg);
}

static int pipe_rx(struct xds_link *l, struct xds_frame *out, unsigned cap, int64_t now_ns)
{
    struct way *w = ((struct end *)l)->in;
    unsigned n = 0;

    l->stats.rx_polls++;
    while (n < cap && w->leased != w->published) {
        const struct desc *d = &w->ring[w->leased % w->slots];
        if ((l->flags & XDS_LINK_VIRTUAL_TIME) && d->rx_ns > now_ns)
            break;
        out[n++] = (struct xds_frame){
            .data = w->area + (size_t)d->slot * up(w->slot_bytes),
            .rx_ns = d->rx_ns,
            .addr = d->slot,
            .len = d->len,
        };
        l->stats.rx_bytes += d->len;
        w->leased++;
    }
    l->stats.rx_frames += n;
    l->stats.rx_polls_empty += n == 0;
    return (int)n;
}

static void pipe_release(struct xds_link *l)
{
    struct way *w = ((struct end *)l)->in;

    for (; w->head != w->leased; w->head++)
        w->free[w->free_count++] = w->ring[w->head % w->slots].slot;
}

static int pipe_reserve(struct xds_link *l, struct xds_frame *out, unsigned n)
{
    struct way *w = ((struct end *)l)->out;
    unsigned got = n < w->free_count ? n : w->free_count;

    for (unsigned i = 0; i < got; i++) {
        uint32_t slot = w->free[--w->free_count];
        out[i] = (struct xds_frame){
            .data = w->area + (size_t)slot * up(w->slot_bytes),
            .addr = slot,
            .len = w->slot_bytes,
        };
    }
    l->stats.tx_no_frame += n - got;
    return (int)got;
}

static int pipe_commit(struct xds_link *l, const struct xds_frame *frames, unsigned n)
{
    struct way *w = ((struct end *)l)->out;
    unsigned sent = 0;

    for (unsigned i = 0; i < n; i++)
        if (frames[i].len > w->slot_bytes || frames[i].addr >= w->slots)
            return -EMSGSIZE;
    for (unsigned i = 0; i < n; i++) {
        if (frames[i].len == 0) {
            w->free[w->free_count++] = (uint32_t)frames[i].addr;
            continue;
        }
        w->ring[w->committed++ % w->slots] = (struct desc){
            .rx_ns = frames[i].rx_ns,
            .slot = (uint32_t)frames[i].addr,
            .len = frames[i].len,
        };
        l->stats.tx_bytes += frames[i].len;
        sent++;
    }
    l->stats.tx_frames += sent;
    return (int)sent;
}

static int pipe_flush(struct xds_link *l, int64_t now_ns)
{
    struct way *w = ((struct end *)l)->out;

    l->stats.tx_completed += w->committed - w->published;
    for (; w->published != w->committed; w->published++) {
        struct desc *d = &w->ring[w->published % w->slots];
        if (d->rx_ns == 0)
            d->rx_ns = now_ns;
    }
    return 0;
}

static int64_t pipe_deadline(struct xds_link *l)
{
    const struct way *w = ((struct end *)l)->in;

    if (!(l->flags & XDS_LINK_VIRTUAL_TIME) || w->leased == w->published)
        return XDS_NEVER;
    return w->ring[w->leased % w->slots].rx_ns;
}

static void pipe_stats(struct xds_link *l, struct xds_link_stats *out) {}

static void pipe_close(struct xds_link *l)
{
    pipe_release(l);
}

static const struct xdsi_link_ops pipe_ops = {
    .rx = pipe_rx,
    .release = pipe_release,
    .reserve = pipe_reserve,
    .commit = pipe_commit,
    .flush = pipe_flush,
    .deadline = pipe_deadline,
    .stats = pipe_stats,
    .close = pipe_close,
};

int xds_pipe_open(void *mem, const struct xds_pipe_config *cfg, struct xds_link **left,
                  struct xds_link **right)
{
    struct pipe *p = mem;

    if (xds_pipe_size(cfg) == 0 || (uintptr_t)mem % ALIGN)
        return XDS_ECONFIG;
    memset(p, 0, sizeof(*p));
    uint8_t *at = (uint8_t *)mem + up(sizeof(*p));
    for (unsigned i = 0; i < 2; i++) {
        struct way *w = &p->ways[i];
        w->slots = w->free_count = cfg->slots;
        w->slot_bytes = cfg->slot_bytes;
        w->ring = (struct desc *)at;
        at += up((size_t)cfg->slots * sizeof(struct desc));
        w->free = (uint32_t *)at;
        at += up((size_t)cfg->slots * sizeof(uint32_t));
        w->area = at;
        at += (size_t)cfg->slots * up(cfg->slot_bytes);
        for (uint32_t s = 0; s < cfg->slots; s++)
            w->free[s] = cfg->slots - 1 - s; /* slot 0 on top */
    }
    for (unsigned i = 0; i < 2; i++) {
        struct end *e = &p->ends[i];
        e->link = (struct xds_link){
            .ops = &pipe_ops,
            .flags = cfg->flags,
            .mtu = cfg->slot_bytes - ETHERNET_HEADER,
            .fd = -1,
        };
        e->out = &p->ways[i];
        e->in = &p->ways[1 - i];
    }
    *left = &p->ends[0].link;
    *right = &p->ends[1].link;
    return 0;
}
