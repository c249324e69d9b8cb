/* xsk.c: AF_XDP queues as one link: the packet path. Setting up is xsk_open.c, counters are xsk_look.c.
 *
 * Ownership is in the rings. An RX chunk that the caller leases still sits in the RX ring (its descriptor
 * is peeked, not released) and its place in the fill ring is reserved already, so release is two stores a
 * queue. That needs a fill ring with a place for every RX chunk, which open demands. TX frames lie behind
 * the RX chunks of the queue that is sent on, or in a UMEM of their own; free ones are on a stack; the TX
 * and the completion ring have room for all of them. So no ring operation here can fail for want of room.
 * Sending has a socket of its own (struct sender says why).
 *
 * A frame over several descriptors is the unlikely branch of the same path: received, it is joined in a slab
 * that is leased like the chunks (no slab left: it waits in the RX ring); sent, it is contiguous in its
 * chunks and cut where a descriptor must end; it is free again when its last piece has completed.
 *
 * The stamp that the XDP program put before the packet is copied out and wiped: a chunk is used again, and a
 * packet that came without a stamp must not inherit the last one.
 */
#include "ports/xsk_inl.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AHEAD 8u  /* frames whose first lines are asked for before they are read */
#define LINE  64u /* bytes of a cache line                                       */

#define HINTS        (XDS_FRAME_HASH | XDS_FRAME_VLAN)
#define FROM_META    (XDS_FRAME_HW_STAMP | HINTS) /* what the XDP program says, by the same numbers */
#define HINTS_BEFORE (sizeof(struct xds_rx_meta) + sizeof(struct xds_rx_hints))
_Static_assert((int)XDS_FRAME_HW_STAMP == XDS_META_NIC && (int)XDS_FRAME_HASH == XDS_META_HASH &&
                   (int)XDS_FRAME_VLAN == XDS_META_VLAN,
               "flags are taken over as they are");

static void wake(struct xsk *x, struct queue *q)
{
    if (x->busy_poll || (x->need_wakeup && xsk_ring_prod__needs_wakeup(&q->fill))) {
        x->link.stats.rx_wakeups++;
        (void)recvfrom(q->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    }
}

static inline void ask_for(const uint8_t *area, const struct xdp_desc *d, bool stamps)
{
    const uint8_t *data = area + xdsi_offset(d->addr);

    if (stamps)
        __builtin_prefetch(data - sizeof(struct xds_rx_meta), 1);
    __builtin_prefetch(data);
    if (d->len > LINE)
        __builtin_prefetch(data + LINE);
}

/* Descriptors come from the core that received, a line at a time: ask for all lines of a burst at once. */
static inline void ask_for_descs(const struct xdp_desc *descs, uint32_t mask, uint32_t at, unsigned n)
{
    for (unsigned k = LINE / sizeof(*descs); k < n; k += LINE / sizeof(*descs))
        __builtin_prefetch(&descs[(at + k) & mask]);
}

/* The kernel takes fill entries in their order, and as many are out as there are chunks: so far back stands
 * the chunk that has just come. Its bytes are asked for while its descriptor is on its way to this core.
 * In zero-copy the NIC may complete in another order; then this asked for the wrong chunk, no more. */
static inline void ask_early(const struct queue *q, uint32_t chunks, bool stamps)
{
    const uint64_t *entries = q->fill.ring;
    const uint64_t entry = entries[(q->fill.cached_prod - chunks) & q->fill.mask];
    const uint8_t *data = q->area + (entry & q->mask) + q->data_at;

    if (stamps)
        __builtin_prefetch(data - sizeof(struct xds_rx_meta), 1);
    __builtin_prefetch(data);
    __builtin_prefetch(data + LINE);
}

/* The filter put some bytes before the frame, see XDS_META_MOVED. What it knows of the frame moves along. */
static __attribute__((noinline, cold)) void moved(struct xds_frame *f)
{
    if (f->flags & HINTS)
        memcpy(f->data + XDS_MOVED - HINTS_BEFORE, f->data - HINTS_BEFORE, sizeof(struct xds_rx_hints));
    f->data += XDS_MOVED;
    f->len -= XDS_MOVED;
}

/* The time of the frame of f->len bytes at f->data. */
static inline void stamp(struct xds_frame *f, int64_t now_ns, bool stamps)
{
    struct xds_rx_meta *m = (struct xds_rx_meta *)(void *)(f->data - sizeof(*m));
    bool stamped = stamps && m->magic == XDS_META_MAGIC && m->length == f->len;

    f->rx_ns = now_ns;
    f->flags = 0;
    if (stamped) {
        const uint8_t flags = m->flags;
        f->rx_ns = (int64_t)m->rx_ns;
        f->flags = flags & FROM_META;
        m->magic = 0; /* only then: a line that is only read stays clean */
        if (XDSI_UNLIKELY(flags & XDS_META_MOVED && f->len > XDS_MOVED))
            moved(f);
    }
}

/* The chunk of a descriptor goes back to the kernel with the next release. Returns its place. */
static inline uint32_t lease(struct queue *q, const struct xdp_desc *d)
{
    uint32_t place = q->fill.cached_prod++;

    *xsk_ring_prod__fill_addr(&q->fill, place) = d->addr;
    xdsi_audit_lease(q, d->addr);
    return place;
}

/* One frame out of its descriptor. */
static inline void take(struct queue *q, const struct xdp_desc *d, struct xds_frame *f, int64_t now_ns,
                        bool stamps)
{
    uint8_t *data = q->area + xdsi_offset(d->addr);

    f->data = data;
    f->addr = q->tag | lease(q, d);
    f->len = d->len;
    f->queue = q->id;
    stamp(f, now_ns, stamps);
}

/* How many descriptors from `at` on make one frame, its bytes in *len, and in *whole whether they lie in one
 * piece. 0: the rest is still to come. */
static uint32_t chain_length(const struct queue *q, uint32_t at, uint64_t *len, bool *whole)
{
    uint32_t have = __atomic_load_n(q->rx.producer, __ATOMIC_ACQUIRE) - at, n = 0;
    bool more = true;

    *len = 0;
    *whole = true;
    for (uint64_t begin = 0; more && n < have;) {
        const struct xdp_desc *d = xsk_ring_cons__rx_desc(&q->rx, at + n++);
        uint64_t lies = xdsi_offset(d->addr);
        begin = n == 1 ? lies : begin;
        *whole &= lies == begin + *len;
        *len += d->len;
        more = d->options & XDP_PKT_CONTD;
    }
    return more && n < q->rx.size ? 0 : n; /* a ring full of one frame: it can never end */
}

/* A frame over several descriptors: in one piece where its chunks lie in a row, else joined in a slab. Returns the
 * descriptors it took, with f->data NULL where it was dropped and counted; 0: it stays in the ring, for the rest of
 * it or for a free slab. */
static __attribute__((noinline)) uint32_t gather(struct xsk *x, struct queue *q, uint32_t at,
                                                 struct xds_frame *f, int64_t now_ns)
{
    uint64_t len, done = 0;
    bool whole;
    uint32_t n = chain_length(q, at, &len, &whole);
    bool ends = n && !(xsk_ring_cons__rx_desc(&q->rx, at + n - 1)->options & XDP_PKT_CONTD);
    bool good = ends && len <= x->frame_max + XDS_MOVED;
    uint8_t *joined = NULL;

    if (n == 0 || (good && !whole && x->slabs_used == x->slab_count)) {
        x->link.stats.rx_chain_waits++;
        return 0;
    }
    if (good && !whole)
        joined = x->slabs + (size_t)x->slabs_used++ * x->slab_bytes + XDSI_SLAB_HEAD;
    uint8_t *first = q->area + xdsi_offset(xsk_ring_cons__rx_desc(&q->rx, at)->addr);
    *f = (struct xds_frame){.queue = q->id, .len = (uint32_t)len, .data = good ? first : NULL};
    for (uint32_t i = 0; i < n; i++) {
        const struct xdp_desc *d = xsk_ring_cons__rx_desc(&q->rx, at + i);
        if (joined)
            memcpy(joined + done, q->area + xdsi_offset(d->addr), d->len);
        done += d->len;
        uint32_t place = lease(q, d);
        f->addr = i ? f->addr : q->tag | place;
    }
    if (joined) {
        struct xds_rx_meta *m = (struct xds_rx_meta *)(void *)(first - sizeof(*m));
        memcpy(joined - HINTS_BEFORE, first - HINTS_BEFORE, HINTS_BEFORE);
        if (x->stamps)
            m->magic = 0;
        f->data = joined;
    }
    if (good) {
        stamp(f, now_ns, x->stamps);
        f->flags |= XDS_FRAME_JOINED;
        good = f->len <= x->frame_max;
        f->data = good ? f->data : NULL;
    }
    x->link.stats.rx_chain_long += ends && !good;
    x->link.stats.rx_chain_malformed += !ends;
    x->link.stats.rx_joined += good && joined;
    x->link.stats.rx_in_a_row += good && whole;
    return n;
}

/* Whether the kernel has put something in. Most looks of a spinning loop end here. */
static inline bool has_more(const struct queue *q)
{
    return __atomic_load_n(q->rx.producer, __ATOMIC_ACQUIRE) != q->rx.cached_cons;
}

/* Nothing has come: keep the line that the next descriptor will be written to at hand. When it is written it goes
 * to the other core, and this fetches it back while the producer index still is on its way. The packet's own
 * lines are left alone: they would be taken from under the kernel while it copies. */
static inline void await(const struct queue *q)
{
    const struct xdp_desc *descs = q->rx.ring;

    __builtin_prefetch(&descs[q->rx.cached_cons & q->rx.mask]);
}

static __attribute__((noinline)) unsigned queue_rx(struct xsk *x, struct queue *q, struct xds_frame *out,
                                                   unsigned cap, int64_t now_ns)
{
    const struct xdp_desc *descs = q->rx.ring;
    uint32_t mask = q->rx.mask, at, i = 0;
    uint64_t bytes = 0;
    unsigned n = xsk_ring_cons__peek(&q->rx, cap, &at), frames = 0;
    bool stamps = x->stamps;

    ask_early(q, x->rx_frames, stamps);
    ask_for_descs(descs, mask, at, n);
    for (unsigned k = 0; k < AHEAD && k < n; k++)
        ask_for(q->area, &descs[(at + k) & mask], stamps);
    while (i < n) {
        const struct xdp_desc *d = &descs[(at + i) & mask];
        if (i + AHEAD < n)
            ask_for(q->area, &descs[(at + i + AHEAD) & mask], stamps);
        struct xds_frame *f = &out[frames];
        if (XDSI_LIKELY(!(d->options & XDP_PKT_CONTD))) {
            take(q, d, f, now_ns, stamps);
            i++;
        } else {
            uint32_t took = gather(x, q, at + i, f, now_ns);
            if (took == 0)
                break;
            i += took;
            if (!f->data)
                continue;
        }
        bytes += f->len;
        frames++;
    }
    if (XDSI_UNLIKELY(i != n)) { /* a chain went on beyond what was peeked, or waits */
        q->rx.cached_cons = at + i;
        q->rx.cached_prod = __atomic_load_n(q->rx.producer, __ATOMIC_ACQUIRE);
    }
    q->leased += i;
    x->leased += i;
    x->link.stats.rx_bytes += bytes;
    return frames;
}

/* The NIC's stamps of a burst in our time line. */
static __attribute__((noinline, cold)) void map_stamps(struct xsk *x, struct xds_frame *f, unsigned n,
                                                       int64_t now_ns)
{
    for (unsigned i = 0; i < n; i++) {
        if (!(f[i].flags & XDS_FRAME_HW_STAMP))
            continue;
        const int64_t ns = xdsi_nic_time(x->nic_clock, f[i].rx_ns, now_ns);
        x->link.stats.rx_nic_stamped += ns != 0;
        x->link.stats.rx_nic_refused += ns == 0;
        f[i].rx_ns = ns ? ns : now_ns;
        f[i].flags &= (uint16_t)(ns ? 0xffff : ~XDS_FRAME_HW_STAMP);
    }
}

void xds_xsk_set_nic_clock(struct xds_link *l, const struct xds_clock_face *face)
{
    ((struct xsk *)l)->nic_clock = face;
}

static int xsk_rx(struct xds_link *l, struct xds_frame *out, unsigned cap, int64_t now_ns)
{
    struct xsk *x = (struct xsk *)l;
    unsigned n = 0, at = x->rx_next, first = at;

    /* Packets come in bursts: begin where the last ones were. Only where not all queues could be looked at does
     * it begin behind the last one that was, so that a busy one cannot starve the rest. */
    for (unsigned i = 0; i < x->queues && n < cap; i++) {
        struct queue *q = &x->queue[at];
        if (has_more(q)) {
            first = n ? first : at;
            n += queue_rx(x, q, out + n, cap - n, now_ns);
        } else {
            await(q);
            wake(x, q);
        }
        at = at + 1 == x->queues ? 0 : at + 1;
    }
    if (XDSI_UNLIKELY(x->nic_clock))
        map_stamps(x, out, n, now_ns);
    x->rx_next = n < cap ? first : at;
    l->stats.rx_polls++;
    l->stats.rx_polls_empty += n == 0;
    l->stats.rx_frames += n;
    return (int)n;
}

static void xsk_release(struct xds_link *l)
{
    struct xsk *x = (struct xsk *)l;

    for (unsigned at = x->rx_next; x->leased; at = at + 1 == x->queues ? 0 : at + 1) {
        struct queue *q = &x->queue[at];
        if (q->leased == 0)
            continue;
        xdsi_audit_release(q);
        xsk_ring_prod__submit(&q->fill, q->leased);
        xsk_ring_cons__release(&q->rx, q->leased);
        x->leased -= q->leased;
        q->leased = 0;
    }
    x->slabs_used = 0;
}

static int xsk_reserve(struct xds_link *l, struct xds_frame *out, unsigned n)
{
    struct xsk *x = (struct xsk *)l;
    struct sender *t = &x->tx;

    if (n > t->free_count)
        xdsi_xsk_collect(x);
    unsigned got = n < t->free_count ? n : t->free_count;
    for (unsigned i = 0; i < got; i++) {
        uint64_t addr = t->free[--t->free_count];
        xdsi_audit_tx(t, addr, XDSI_OWNER_FREE, XDSI_OWNER_CALLER);
        addr += t->lead;
        out[i] = (struct xds_frame){
            .data = t->area + xdsi_offset(addr), .addr = addr, .len = t->room, .queue = t->id};
    }
    t->reserved += got;
    l->stats.tx_no_frame += n - got;
    return (int)got;
}

static bool ours(const struct sender *t, const struct xds_frame *f)
{
    uint64_t at = xdsi_offset(f->addr);
    return f->len <= t->room && at < t->high;
}

static inline void give_back(struct sender *t, uint64_t addr)
{
    t->free[t->free_count++] = addr;
}

static inline uint32_t number_of(const struct sender *t, uint64_t addr)
{
    return (xdsi_chunk_number(t->umem, xdsi_offset(addr)) - t->first) / t->each;
}

static inline struct xds_tx_meta *meta_of(const struct sender *t, uint64_t addr)
{
    return (struct xds_tx_meta *)(void *)(t->area + xdsi_offset(addr) - t->meta);
}

/* Metadata of the frame's last use must not ask for anything. */
static uint32_t meta_options(const struct sender *t, const struct xds_frame *f)
{
    if (f->flags & XDS_FRAME_TX_META)
        return XDP_TX_METADATA;
    meta_of(t, f->addr)->flags = 0;
    return 0;
}

/* A frame has completed: where a stamp was asked for, the kernel has written it over the request. */
static void keep_stamp(struct xsk *x, uint64_t addr)
{
    struct sender *t = &x->tx;
    struct xds_tx_meta *m = meta_of(t, addr + t->lead);

    if (!(m->flags & XDS_TX_STAMP))
        return;
    m->flags = 0;
    if (t->stamps_count == XDSI_TX_STAMPS) {
        x->link.stats.tx_stamps_lost++;
        return;
    }
    struct xds_tx_stamp *s = &t->stamps[(t->stamps_at + t->stamps_count++) % XDSI_TX_STAMPS];
    s->cookie = m->cookie;
    memcpy(&s->tx_ns, &m->csum_start, sizeof(s->tx_ns)); /* struct xsk_tx_metadata's union */
}

/* Put a frame of several chunks onto the TX ring: a descriptor ends where its chunk's size or its tile does. */
static __attribute__((noinline)) uint32_t put_chain(struct sender *t, const struct xds_frame *f,
                                                    uint32_t options)
{
    uint64_t at = xdsi_offset(f->addr);
    uint32_t left = f->len, tile = t->umem->tile, n = 0;

    while (left) {
        uint32_t len = left < t->piece ? left : t->piece, room = tile - (uint32_t)(at % tile);
        len = len < room ? len : room;
        left -= len;
        *xsk_ring_prod__tx_desc(&t->ring, t->ring.cached_prod++) =
            (struct xdp_desc){.addr = at, .len = len, .options = options | (left ? XDP_PKT_CONTD : 0)};
        options = 0; /* what is asked for stands before the first */
        at += len;
        n++;
    }
    t->left[number_of(t, f->addr)] = (uint8_t)n;
    return n;
}

/* One frame of one descriptor that asks for nothing: what an order or an answer is. */
static inline int commit_plain(struct xds_link *l, struct sender *t, const struct xds_frame *f)
{
    xdsi_audit_tx(t, f->addr - t->lead, XDSI_OWNER_CALLER, XDSI_OWNER_KERNEL);
    *xsk_ring_prod__tx_desc(&t->ring, t->ring.cached_prod++) =
        (struct xdp_desc){.addr = f->addr, .len = f->len, .options = 0};
    t->reserved--;
    t->flying++;
    t->descs++;
    if (XDSI_LIKELY(!t->live.burst))
        xsk_ring_prod__submit(&t->ring, 1);
    l->stats.tx_frames++;
    l->stats.tx_bytes += f->len;
    return 1;
}

static int xsk_commit(struct xds_link *l, const struct xds_frame *frames, unsigned n)
{
    struct xsk *x = (struct xsk *)l;
    struct sender *t = &x->tx;
    uint64_t bytes = 0;
    uint32_t descs = 0;
    unsigned sent = 0;

    if (XDSI_LIKELY(n == 1 && t->reserved && frames->len && ours(t, frames) && !t->chains && !t->meta))
        return commit_plain(l, t, frames);

    if (n > t->reserved)
        return XDS_ESTATE;
    for (unsigned i = 0; i < n; i++)
        if (XDSI_UNLIKELY(!ours(t, &frames[i])))
            return -EMSGSIZE;
    for (unsigned i = 0; i < n; i++) {
        const struct xds_frame *f = &frames[i];
        if (f->len == 0) {
            xdsi_audit_tx(t, f->addr - t->lead, XDSI_OWNER_CALLER, XDSI_OWNER_FREE);
            give_back(t, f->addr - t->lead);
            continue;
        }
        xdsi_audit_tx(t, f->addr - t->lead, XDSI_OWNER_CALLER, XDSI_OWNER_KERNEL);
        uint32_t options = XDSI_UNLIKELY(t->meta) ? meta_options(t, f) : 0;
        if (XDSI_UNLIKELY(t->chains)) {
            descs += put_chain(t, f, options);
        } else {
            *xsk_ring_prod__tx_desc(&t->ring, t->ring.cached_prod++) =
                (struct xdp_desc){.addr = f->addr, .len = f->len, .options = options};
            descs++;
        }
        bytes += f->len;
        sent++;
    }
    t->reserved -= n;
    t->flying += sent;
    t->descs += descs;
    if (descs && !t->live.burst)
        xsk_ring_prod__submit(&t->ring, descs);
    l->stats.tx_frames += sent;
    l->stats.tx_bytes += bytes;
    return (int)sent;
}

/* A descriptor of a frame has completed. Returns whether it was the frame's last. */
static bool completes(struct sender *t, uint64_t *addr)
{
    uint32_t number = number_of(t, *addr);

    *addr = xdsi_chunk_at(t->umem, t->first + number * t->each);
    return --t->left[number] == 0;
}

/* A descriptor has completed, and with it its frame or not. */
static inline bool comes_back(struct xsk *x, uint64_t addr)
{
    struct sender *t = &x->tx;

    addr &= t->mask;
    if (XDSI_UNLIKELY(t->chains) && !completes(t, &addr))
        return false;
    if (XDSI_UNLIKELY(t->meta))
        keep_stamp(x, addr);
    xdsi_audit_tx(t, addr, XDSI_OWNER_KERNEL, XDSI_OWNER_FREE);
    give_back(t, addr);
    return true;
}

void xdsi_xsk_back(struct xsk *x, uint64_t addr)
{
    (void)comes_back(x, addr);
}

void xdsi_xsk_collect(struct xsk *x)
{
    struct sender *t = &x->tx;
    uint32_t at, done = 0;

    if (t->descs == 0)
        return;
    unsigned n = xsk_ring_cons__peek(&t->comp, t->descs, &at);
    for (unsigned i = 0; i < n && !x->raw; i++)
        done += comes_back(x, *xsk_ring_cons__comp_addr(&t->comp, at + i));
    if (n)
        xsk_ring_cons__release(&t->comp, n);
    if (XDSI_UNLIKELY(x->raw))
        done = n;
    t->descs -= n;
    t->flying -= done;
    x->link.stats.tx_completed += done;
}

/* Copy mode sends in the caller's context, at most tx_budget descriptors a call (EAGAIN: there are more;
 * ENOBUFS, EBUSY: the socket's or the device's room is full). What is not taken stays in the TX ring, so
 * nothing is lost: kick until it is empty, or until nothing has moved for `kick_stalls` kicks; the
 * next flush goes on from there. Zero-copy takes the ring by itself: one kick is enough.
 * syscall(), not sendto(): that is a point of cancellation, which costs two locked instructions. */
static int kick(struct xsk *x)
{
    struct sender *t = &x->tx;
    uint32_t queued = xdsi_tx_queued(t), stalls = 0;

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
        uint32_t left = xdsi_tx_queued(t);
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
    if (XDSI_UNLIKELY(x->tx.live.burst != NULL))
        xdsi_live_send(x);
    if (xdsi_tx_queued(&x->tx)) {
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

/* ---- TX metadata ----------------------------------------------------------------------------- */

const struct xds_rx_hints *xds_xsk_rx_hints(const struct xds_frame *frame)
{
    return frame->flags & HINTS ? (const void *)(frame->data - HINTS_BEFORE) : NULL;
}

struct xds_tx_meta *xds_xsk_tx_meta(struct xds_link *l, const struct xds_frame *frame)
{
    struct sender *t = &((struct xsk *)l)->tx;

    if (l->closed || !t->meta || !ours(t, frame))
        return NULL;
    struct xds_tx_meta *m = meta_of(t, frame->addr);
    *m = (struct xds_tx_meta){0};
    return m;
}

int xds_xsk_tx_stamps(struct xds_link *l, struct xds_tx_stamp *out, unsigned cap)
{
    struct sender *t = &((struct xsk *)l)->tx;
    unsigned n = 0;

    while (n < cap && t->stamps_count) {
        out[n++] = t->stamps[t->stamps_at];
        t->stamps_at = (t->stamps_at + 1) % XDSI_TX_STAMPS;
        t->stamps_count--;
    }
    return (int)n;
}

/* ---- Forwarding ----------------------------------------------------------------------------- */

/* The chunk of a leased frame and a free one of the sender change places: no byte is moved. */
static void swap(struct sender *t, struct queue *q, const struct xds_frame *f)
{
    const uint32_t place = (uint32_t)f->addr;
    const uint64_t taken = *xsk_ring_prod__fill_addr(&q->fill, place), given = t->free[--t->free_count];

    *xsk_ring_prod__fill_addr(&q->fill, place) = given;
    if (t->meta)
        meta_of(t, (taken & t->mask) + t->lead)->flags = 0; /* whatever lies there asks for nothing */
    xdsi_audit_tx(t, given, XDSI_OWNER_FREE, XDSI_OWNER_CALLER);
    xdsi_audit_tx(t, taken, XDSI_OWNER_CALLER, XDSI_OWNER_KERNEL);
    *xsk_ring_prod__tx_desc(&t->ring, t->ring.cached_prod++) =
        (struct xdp_desc){.addr = taken, .len = f->len, .options = 0};
}

/* So many swapped frames, put onto the ring one by one, are the kernel's from now on. */
static void submit_swapped(struct xsk *x, unsigned n, uint64_t bytes)
{
    x->tx.flying += n;
    x->tx.descs += n;
    x->link.stats.tx_frames += n;
    x->link.stats.tx_bytes += bytes;
    if (n && !x->tx.live.burst)
        xsk_ring_prod__submit(&x->tx.ring, n);
}

static int copy(struct xds_link *to, const struct xds_frame *f)
{
    struct xds_frame out;

    if (xsk_reserve(to, &out, 1) < 1)
        return 0;
    memcpy(out.data, f->data, f->len);
    out.len = f->len;
    to->stats.tx_copied++;
    return xsk_commit(to, &out, 1);
}

/* Whether a frame is of a lease of this port and fits what the sender takes. */
static int forwardable(const struct xsk *from, const struct sender *t, const struct xds_frame *f)
{
    uint64_t index = f->addr >> 48;

    if (!f->data || index >= from->queues)
        return XDS_ESTATE;
    const struct queue *q = &from->queue[index];
    if (q->fill.cached_prod - (uint32_t)f->addr - 1 >= q->leased)
        return XDS_ESTATE;
    return f->len == 0 || f->len > t->room ? -EMSGSIZE : 0;
}

int xds_xsk_forward(struct xds_link *to, struct xds_link *from, struct xds_frame *frames, unsigned n)
{
    struct xsk *x = (struct xsk *)to, *source = (struct xsk *)from;
    struct sender *t = &x->tx;
    unsigned done = 0, swapped = 0;
    uint64_t bytes = 0;

    if (to->ops != &xdsi_xsk_ops || from->ops != &xdsi_xsk_ops || x->raw)
        return XDS_ESTATE;
    for (unsigned i = 0; i < n; i++) {
        int why = forwardable(source, t, &frames[i]);
        if (why)
            return why;
    }
    for (; done < n; done++) {
        struct xds_frame *f = &frames[done];
        struct queue *q = &source->queue[f->addr >> 48];
        bool joined = f->flags & XDS_FRAME_JOINED;
        if (t->free_count == 0)
            xdsi_xsk_collect(x);
        if (t->free_count == 0) {
            to->stats.tx_no_frame += n - done;
            break;
        }
        if (joined || q->umem != t->umem || t->chains) {
            submit_swapped(x, swapped, bytes); /* what comes first leaves first */
            swapped = 0;
            bytes = 0;
            copy(to, f);
        } else {
            swap(t, q, f);
            swapped++;
            bytes += f->len;
        }
        f->data = NULL;
        f->len = 0;
    }
    submit_swapped(x, swapped, bytes);
    return (int)done;
}

int xds_xsk_shares(const struct xds_link *to, const struct xds_link *from)
{
    const struct xsk *x = (const struct xsk *)to, *source = (const struct xsk *)from;

    if (to->ops != &xdsi_xsk_ops || from->ops != &xdsi_xsk_ops || x->raw || !x->tx.frames || x->tx.chains)
        return 0;
    for (unsigned i = 0; i < source->queues; i++)
        if (source->queue[i].umem != x->tx.umem)
            return 0;
    return 1;
}

static void xsk_close(struct xds_link *l)
{
    xdsi_xsk_undo((struct xsk *)l);
}

/* One queue is its own descriptor. Several share an epoll, which the kernel wakes at each packet from then on:
 * whoever only spins never asks, and does not pay. */
static int xsk_make_fd(struct xds_link *l)
{
    struct xsk *x = (struct xsk *)l;

    if (x->queues == 1) {
        l->fd = x->queue[0].fd;
        return 0;
    }
    int joined = epoll_create1(EPOLL_CLOEXEC);
    if (joined < 0)
        return -errno;
    for (unsigned i = 0; i < x->queues; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(joined, EPOLL_CTL_ADD, x->queue[i].fd, &e) < 0) {
            int error = errno;
            close(joined);
            return -error;
        }
    }
    l->fd = x->poll_fd = joined;
    return 0;
}

const struct xdsi_link_ops xdsi_xsk_ops = {
    .rx = xsk_rx,
    .release = xsk_release,
    .reserve = xsk_reserve,
    .commit = xsk_commit,
    .flush = xsk_flush,
    .deadline = xsk_deadline,
    .stats = xdsi_xsk_stats,
    .close = xsk_close,
    .make_fd = xsk_make_fd,
};
