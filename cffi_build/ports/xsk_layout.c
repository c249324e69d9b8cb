/* xsk_layout.c: the memory of an AF_XDP port: what is asked for, whether it can be, where things lie.
 *
 * Order in memory: the UMEMs (one a queue, or one for all; the sender's frames behind the receive frames of
 * the queue that it sends on, or in a UMEM of their own), so that they begin where the caller's pages do;
 * then struct xsk with its queues, the UMEMs' heads, the stack of free TX frames, the audit's bytes, the
 * slabs in which frames over several chunks are joined. Pure arithmetic: no system call.
 */
#include "ports/xsk_inl.h"

#include <string.h>

#define PAGE         4096u
#define HUGE         (2u << 20)
#define TX_EXTRA     18u /* Ethernet header and one VLAN tag: the kernel takes no more           */
#define KICK_STALLS  64u
#define LINE         64u
#define STRIDE       8u
#define SEGMENTS_MAX 17u /* MAX_SKB_FRAGS: of the kernel's copy mode                              */

static bool power_of_two(uint32_t n)
{
    return n && (n & (n - 1)) == 0;
}

static size_t up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

uint32_t xdsi_xsk_payload(const struct xds_xsk_config *c)
{
    return c->frame_size - XDSI_KERNEL_HEADROOM - c->headroom;
}

static bool in_a_row(const struct xds_xsk_config *c)
{
    return c->flags & XDS_XSK_IN_A_ROW;
}

static bool unaligned(const struct xds_xsk_config *c)
{
    return c->flags & (XDS_XSK_UNALIGNED | XDS_XSK_IN_A_ROW);
}

/* From a chunk's first byte to that of the next. */
static uint32_t stride(const struct xds_xsk_config *c)
{
    return in_a_row(c) ? xdsi_xsk_payload(c) : (uint32_t)up(c->frame_size, unaligned(c) ? STRIDE : 1);
}

static uint32_t tx_meta(const struct xds_xsk_config *c)
{
    return c->flags & XDS_XSK_TX_METADATA ? XDS_XSK_TX_META_LEN : 0;
}

/* The head of a UMEM with so many chunks; area and owner are still to come. */
static struct umem shape(const struct xds_xsk_config *c, uint32_t chunks)
{
    struct umem u = {
        .chunk = c->frame_size,
        .stride = c->frame_size,
        .tile = c->frame_size,
        .per_tile = 1,
        .chunks = chunks,
        .headroom = c->headroom,
        .tx_meta = tx_meta(c),
        .unaligned = unaligned(c),
        .chains = c->frame_max > xdsi_xsk_payload(c),
        .lent = chunks - c->lend,
        .fd = -1,
    };
    u.mask = ~(uint64_t)(c->frame_size - 1);
    if (unaligned(c)) {
        u.mask = XDSI_LOW48;
        u.tile = c->page_size >= HUGE ? HUGE : PAGE;
        u.stride = stride(c);
        u.per_tile = u.stride < u.tile ? u.tile / u.stride : 1; /* larger ones: xds_xsk_fault refuses them */
    }
    if (in_a_row(c)) { /* one tile: the kernel copies, and sees the UMEM as it is mapped */
        u.tile = (uint32_t)up((size_t)chunks * u.stride + u.chunk, PAGE);
        u.per_tile = chunks ? chunks : 1;
    }
    /* The last chunk ends the UMEM: aligned chunks fill it, others may leave the rest of a tile. */
    u.bytes = chunks ? xdsi_chunk_at(&u, chunks - 1) + u.chunk : 0;
    return u;
}

/* The most bytes of one descriptor. */
static uint32_t tx_piece(const struct xds_xsk_config *c)
{
    return c->frame_size - tx_meta(c);
}

static uint32_t tx_room(const struct xds_xsk_config *c)
{
    return c->frame_max > tx_piece(c) ? c->frame_max : tx_piece(c);
}

/* Chunks that lie one behind the other and hold a frame to be sent and what is before it. */
static uint32_t chunks_each(const struct xds_xsk_config *c)
{
    return (tx_room(c) + tx_meta(c) + stride(c) - 1) / stride(c);
}

unsigned xds_xsk_tx_descriptors(const struct xds_xsk_config *c)
{
    uint32_t each = chunks_each(c), pieces = (tx_room(c) + tx_piece(c) - 1) / tx_piece(c);
    if (in_a_row(c))
        return pieces;
    if (each == 1 || !unaligned(c))
        return each;
    struct umem u = shape(c, each); /* a descriptor ends at each tile's end as well */
    return pieces + (uint32_t)((u.bytes + u.tile - 1) / u.tile);
}

/* Twice the chunks: where the ring is full the kernel reads, on its core, the next entry of the very line that
 * a release writes on ours, and the line travels with every frame. Half a ring apart it travels once for
 * eight. */
uint32_t xdsi_xsk_fill_ring(const struct xds_xsk_config *c)
{
    return c->flags & XDS_XSK_RAW ? c->rx_frames : 2 * c->rx_frames;
}

uint32_t xdsi_xsk_completions(const struct xds_xsk_config *c)
{
    uint32_t n = 1;
    while (n < c->tx_frames * xds_xsk_tx_descriptors(c) || ((c->flags & XDS_XSK_RAW) && n < c->tx_ring))
        n *= 2;
    return n;
}

static const char *frame_fault(const struct xds_xsk_config *c)
{
    if (!unaligned(c) && c->frame_size != 2048 && c->frame_size != 4096)
        return "frame_size is 2048 or 4096 bytes; other sizes need unaligned chunks";
    if (c->frame_size < 2048 || c->frame_size > PAGE)
        return "frame_size is 2048 to 4096 bytes";
    if (c->headroom > c->frame_size - XDSI_KERNEL_HEADROOM - XDSI_KERNEL_TAILROOM - XDSI_PACKET_LEAST)
        return "headroom leaves no room: it, the kernel's 256 bytes before a packet and 320 behind, and a "
               "packet's 128";
    if (c->frame_max > 65536 + LINE)
        return "no frame is longer than 65,600 bytes";
    if (c->frame_max > xdsi_xsk_payload(c) && !c->slabs)
        return "frames longer than one chunk need slabs to be joined in";
    if (in_a_row(c) && (c->frame_max <= xdsi_xsk_payload(c) || xdsi_xsk_payload(c) % STRIDE))
        return "chunks in a row are for frames of several chunks, with a headroom of a multiple of 8";
    if (in_a_row(c) && (c->mode != XDS_XSK_COPY || c->share || c->flags & (XDS_XSK_ONE_UMEM | XDS_XSK_RAW)))
        return "chunks in a row need copy mode and a UMEM for each queue";
    if (tx_meta(c) && !unaligned(c) && chunks_each(c) > 1)
        return "TX metadata before each chunk leave no frame in one piece: unaligned chunks, or a smaller "
               "MTU";
    if (c->slabs > 1u << 16)
        return "at most 65,536 slabs";
    return NULL;
}

static uint32_t chunks_needed(const struct xds_xsk_config *c);

static const char *budget_fault(const struct xds_xsk_config *c)
{
    uint32_t least = c->tx_ring < XDSI_TX_BUDGET_LEAST ? c->tx_ring : XDSI_TX_BUDGET_LEAST;
    return c->tx_budget && (c->tx_budget < least || c->tx_budget > c->tx_ring)
               ? "tx_budget is 32 descriptors to tx_ring, or 0 for the whole ring"
               : NULL;
}

static const char *share_fault(const struct xds_xsk_config *c)
{
    if (c->lend > 1u << 24)
        return "a port lends at most 16,777,216 chunks";
    if (c->lend && (c->share || !(c->flags & XDS_XSK_ONE_UMEM)))
        return "only a port with one UMEM of its own lends chunks";
    if (!c->share)
        return NULL;
    if (c->share->ops != &xdsi_xsk_ops)
        return "only an open AF_XDP port shares its UMEM";
    const struct xsk *other = (const struct xsk *)c->share;
    const struct umem *u = other->umem;
    if (other->umems == 0)
        return "that port shares the UMEM of another: name that one";
    if (c->frame_max > xdsi_xsk_payload(c) && !u->chains)
        return "the shared UMEM was opened for frames of one chunk";
    if (c->frame_size != u->chunk || c->headroom != u->headroom || unaligned(c) != u->unaligned ||
        tx_meta(c) != u->tx_meta)
        return "frame_size, headroom, unaligned and TX metadata are those of the shared UMEM";
    if (chunks_needed(c) > u->chunks - u->lent)
        return "the shared UMEM has not that many chunks left to lend";
    return NULL;
}

const char *xds_xsk_fault(const struct xds_xsk_config *c)
{
    if (!memchr(c->ifname, 0, sizeof(c->ifname)))
        return "an interface's name has at most 15 bytes";
    if (c->queue_count < 1 || c->queue_count > XDS_XSK_QUEUES_MAX)
        return "a port has 1 to 64 queues";
    if (c->queue_first > UINT16_MAX - XDS_XSK_QUEUES_MAX || c->tx_queue >= UINT16_MAX)
        return "queues are numbered from 0 to 65,534";
    if (!power_of_two(c->rx_ring) || !power_of_two(c->rx_frames) || (c->tx_ring && !power_of_two(c->tx_ring)))
        return "rx_ring, rx_frames and tx_ring are powers of two";
    if (c->rx_ring > 1u << 20 || c->rx_frames > 1u << 20 || c->tx_ring > 1u << 20)
        return "rings have at most 1,048,576 places";
    if (c->mode > XDS_XSK_COPY)
        return "mode is auto, zerocopy or copy";
    const char *why = frame_fault(c);
    if (why || (why = budget_fault(c)))
        return why;
    if ((why = share_fault(c)))
        return why;
    if ((c->tx_ring == 0) != (c->tx_frames == 0))
        return "tx_ring and tx_frames: both, or none for a port that only receives";
    if (c->tx_frames && xds_xsk_tx_descriptors(c) > SEGMENTS_MAX)
        return "a frame of this length takes more than 17 descriptors: larger chunks, or a smaller MTU";
    if ((uint64_t)c->tx_frames * xds_xsk_tx_descriptors(c) > c->tx_ring)
        return "tx_ring has no room for tx_frames: each takes a place a chunk, unaligned one more where a "
               "page ends";
    return NULL;
}

/* The index of the receive queue that is sent on as well; queue_count: none. */
uint32_t xdsi_xsk_shared_queue(const struct xds_xsk_config *c)
{
    uint32_t index = c->tx_queue - c->queue_first;
    return index < c->queue_count ? index : c->queue_count;
}

static bool one_umem(const struct xds_xsk_config *c)
{
    return c->share || (c->flags & XDS_XSK_ONE_UMEM);
}

/* The sender's first chunk, where it follows receive chunks; in a row the last of those reaches into the next. */
static uint32_t behind_rx(const struct xds_xsk_config *c)
{
    return c->rx_frames + in_a_row(c);
}

/* Which UMEM of its own a queue uses; queue_count: the sender. */
static unsigned umem_index(const struct xds_xsk_config *c, unsigned queue)
{
    return one_umem(c) ? 0 : queue < c->queue_count ? queue : xdsi_xsk_shared_queue(c);
}

/* Chunks of the whole port. */
static uint32_t chunks_needed(const struct xds_xsk_config *c)
{
    return c->rx_frames * c->queue_count + c->tx_frames * chunks_each(c);
}

/* The index-th of the port's own UMEMs: of a receive queue, of the sender (index queue_count), or of all. */
static struct umem umem_of(const struct xds_xsk_config *c, unsigned index)
{
    if (c->share)
        return shape(c, 0);
    if (one_umem(c))
        return shape(c, index ? 0 : chunks_needed(c) + c->lend);
    uint32_t chunks = index < c->queue_count ? behind_rx(c) : 0;
    return shape(c, chunks + (index == xdsi_xsk_shared_queue(c) ? c->tx_frames * chunks_each(c) : 0));
}

/* Each UMEM begins where a page of the caller's memory does. */
static size_t umem_span(const struct xds_xsk_config *c, unsigned index)
{
    struct umem u = umem_of(c, index);
    return up(u.bytes, u.tile > PAGE ? u.tile : PAGE);
}

static uint32_t slab_bytes(const struct xds_xsk_config *c)
{
    return XDSI_SLAB_HEAD + (uint32_t)up(c->frame_max + XDS_MOVED, LINE);
}

struct places { /* of the parts behind struct xsk, from its first byte */
    size_t umems, free, stamps, left, owner, slabs, end;
};

static struct places places(const struct xds_xsk_config *c)
{
    struct places p;
    size_t owners = 0;

    for (unsigned i = 0; i <= c->queue_count; i++)
        owners += umem_of(c, i).chunks;
    p.umems = up(sizeof(struct xsk) + c->queue_count * sizeof(struct queue), LINE);
    p.free = up(p.umems + (c->queue_count + 1) * sizeof(struct umem), LINE);
    p.stamps = p.free + c->tx_frames * sizeof(uint64_t);
    p.left = p.stamps + (tx_meta(c) ? XDSI_TX_STAMPS * sizeof(struct xds_tx_stamp) : 0);
    p.owner = p.left + c->tx_frames;
    p.slabs = up(p.owner + owners, LINE);
    p.end = up(p.slabs + (size_t)c->slabs * slab_bytes(c), PAGE);
    return p;
}

static size_t state_at(const struct xds_xsk_config *c)
{
    size_t n = 0;
    for (unsigned i = 0; i <= c->queue_count; i++)
        n += umem_span(c, i);
    return n;
}

size_t xds_xsk_size(const struct xds_xsk_config *cfg)
{
    return xds_xsk_fault(cfg) ? 0 : state_at(cfg) + places(cfg).end;
}

static void lay_out_sender(struct xsk *x, const struct xds_xsk_config *c, uint32_t mtu,
                           const struct places *p, uint32_t first)
{
    struct sender *t = &x->tx;
    struct umem *u = t->umem;

    t->fd = t->socket.fd = -1;
    t->live = (struct xdsi_live){.fds = {-1, -1}};
    t->id = (uint16_t)c->tx_queue;
    t->area = u->area;
    t->mask = u->mask;
    t->first = first;
    t->each = chunks_each(c);
    t->chains = t->each > 1;
    t->frames = c->tx_frames;
    t->room = mtu + TX_EXTRA < tx_room(c) ? mtu + TX_EXTRA : tx_room(c);
    t->piece = tx_piece(c);
    t->meta = tx_meta(c);
    t->lead = unaligned(c) ? (uint64_t)t->meta << 48 : t->meta;
    t->stamps = (struct xds_tx_stamp *)(void *)((uint8_t *)x + p->stamps);
    t->free = (uint64_t *)(void *)((uint8_t *)x + p->free);
    t->left = (uint8_t *)x + p->left;
    if (!c->tx_frames)
        return;
    t->high = u->bytes;
    if (x->raw) /* the sender's frames are the test's */
        return;
    t->free_count = c->tx_frames;
    for (uint32_t i = 0; i < c->tx_frames; i++) /* the first on top */
        t->free[i] = xdsi_chunk_at(u, t->first + (c->tx_frames - 1 - i) * t->each);
    memset(u->owner + t->first, XDSI_OWNER_FREE, (size_t)c->tx_frames * t->each);
}

struct xsk *xdsi_xsk_lay_out(void *mem, const struct xds_xsk_config *c, uint32_t mtu)
{
    struct places p = places(c);
    struct xsk *x = (struct xsk *)(void *)((uint8_t *)mem + state_at(c));
    uint8_t *area = mem, *owner = (uint8_t *)x + p.owner;

    memset(x, 0, p.slabs);
    x->link = (struct xds_link){.ops = &xdsi_xsk_ops, .mtu = mtu, .fd = -1};
    x->queues = c->queue_count;
    x->frame_size = c->frame_size;
    x->rx_frames = c->rx_frames;
    x->kick_stalls = c->kick_stalls ? c->kick_stalls : KICK_STALLS;
    x->need_wakeup = c->flags & XDS_XSK_NEED_WAKEUP;
    x->busy_poll = c->flags & XDS_XSK_BUSY_POLL;
    x->stamps = !(c->flags & XDS_XSK_NO_STAMPS);
    x->raw = c->flags & XDS_XSK_RAW;
    x->poll_fd = -1;
    x->slabs = (uint8_t *)x + p.slabs;
    x->slab_bytes = slab_bytes(c);
    x->slab_count = c->slabs;
    x->frame_max = c->frame_max;
    x->umems = c->share ? 0 : c->queue_count + 1;
    x->umem = (struct umem *)(void *)((uint8_t *)x + p.umems);
    for (unsigned i = 0; i < x->umems; i++) {
        struct umem *u = &x->umem[i];
        *u = umem_of(c, i);
        u->area = area;
        u->owner = owner;
        owner += u->chunks;
        area += umem_span(c, i);
    }
    struct umem *umems = c->share ? ((struct xsk *)c->share)->umem : x->umem;
    uint32_t next = c->share ? umems->lent : 0; /* with one UMEM: its next chunk */
    if (c->share)
        umems->lent += chunks_needed(c);
    for (unsigned i = 0; i < c->queue_count; i++) {
        struct queue *q = &x->queue[i];
        q->fd = q->socket.fd = -1;
        q->id = (uint16_t)(c->queue_first + i);
        q->tag = (uint64_t)i << 48;
        q->umem = &umems[umem_index(c, i)];
        q->area = q->umem->area;
        q->mask = q->umem->mask;
        q->data_at = XDSI_KERNEL_HEADROOM + c->headroom;
        q->first = one_umem(c) ? next : 0;
        next += c->rx_frames;
    }
    x->tx.umem = &umems[umem_index(c, c->queue_count)];
    uint32_t behind = xdsi_xsk_shared_queue(c) < c->queue_count ? behind_rx(c) : 0;
    lay_out_sender(x, c, mtu, &p, one_umem(c) ? next : behind);
    return x;
}
