/* host_frag.c: fragments put together (RFC 791 3.2, 815, 8200 4.5), within a bound.
 *
 * A datagram that is being put together owns a slab of the caller's memory. Its bytes lie where they belong
 * from the start; runs say which are there. A fragment that lies inside a run is a copy; one that laps over a
 * run's edge breaks the datagram, and with it whatever still comes of it (RFC 5722 4, 8.1). A broken one keeps
 * its name until its time is over, so that its rest does not begin another. When no slab is free, the oldest
 * goes.
 */
#include "host6_int.h"

enum state { FREE = 0, FILLING = 1, BROKEN = 2, LENT = 3 };

#define RUNS 32
#define HEAD 96 /* before the payload: Ethernet, tags and the longest IP header */

struct xdsi_frag {
    int64_t due_ns;
    struct xdsi_addr src, dst;
    uint32_t id;
    uint8_t protocol, state;
    uint8_t l2, ihl; /* 0: the first fragment is not there */
    bool six;
    uint8_t ecn; /* a bit a codepoint that was seen */
    uint8_t runs;
    uint32_t total; /* bytes of payload; 0: the last fragment is not there */
    struct {
        uint32_t from, to;
    } run[RUNS];
};

size_t xdsi_frag_bytes(const struct xds_host_config *c)
{
    return c->fragments * (sizeof(struct xdsi_frag) + HEAD + (size_t)c->fragment_bytes);
}

static uint8_t *payload_of(const struct xds_host *h, const struct xdsi_frag *g)
{
    uint8_t *slabs = (uint8_t *)(h->frags + h->cfg.fragments);

    return slabs + (size_t)(g - h->frags) * (HEAD + h->cfg.fragment_bytes) + HEAD;
}

/* The datagram that this is a piece of, or a slab for a new one, or NULL. */
static struct xdsi_frag *frag_for(struct xds_host *h, const struct xdsi_fragment *p, int64_t now)
{
    struct xdsi_frag *free = NULL, *oldest = NULL;

    for (uint32_t i = 0; i < h->cfg.fragments; i++) {
        struct xdsi_frag *g = &h->frags[i];
        const bool open = g->state == FILLING || g->state == BROKEN;
        if (open && xdsi_addr_same(g->src, p->src) && xdsi_addr_same(g->dst, p->dst) && g->id == p->id &&
            g->protocol == p->protocol)
            return g;
        if (g->state == FREE && !free)
            free = g;
        if (open && (!oldest || g->due_ns < oldest->due_ns))
            oldest = g;
    }
    if (!free && oldest) {
        h->stats.fragments_evicted += oldest->state == FILLING;
        h->frags_open--;
        free = oldest;
    }
    if (!free)
        return NULL;
    *free = (struct xdsi_frag){.due_ns = now + h->cfg.fragment_ns * (p->six ? 2 : 1),
                               .src = p->src,
                               .dst = p->dst,
                               .id = p->id,
                               .protocol = p->protocol,
                               .six = p->six,
                               .state = FILLING};
    h->frags_open++;
    return free;
}

/* Note [from, to) among the runs, which are sorted and do not touch. */
static enum xds_host_reason note_run(struct xdsi_frag *g, uint32_t from, uint32_t to)
{
    uint32_t i = 0;

    while (i < g->runs && g->run[i].to < from)
        i++;
    if (i < g->runs && g->run[i].from <= from && to <= g->run[i].to)
        return XDS_HOST_FRAGMENT_COPY;
    const bool left = i < g->runs && g->run[i].to == from;
    const uint32_t next = i + left;
    if (next < g->runs && g->run[next].from < to)
        return XDS_HOST_FRAGMENT_OVERLAP;
    const bool right = next < g->runs && g->run[next].from == to;
    if (!left && !right && g->runs == RUNS)
        return XDS_HOST_FRAGMENT_LARGE;
    if (left && right) {
        g->run[i].to = g->run[next].to;
        g->runs--;
        memmove(&g->run[next], &g->run[next + 1], (g->runs - next) * sizeof g->run[0]);
    } else if (left) {
        g->run[i].to = to;
    } else if (right) {
        g->run[next].from = from;
    } else {
        memmove(&g->run[i + 1], &g->run[i], (g->runs - i) * sizeof g->run[0]);
        g->run[i].from = from;
        g->run[i].to = to;
        g->runs++;
    }
    return XDS_HOST_FRAGMENT;
}

/* RFC 3168 5.3: what was marked anywhere is marked; marked and not capable together is broken, and so is
 * capable and not capable. */
static bool ecn_agrees(const struct xdsi_frag *g)
{
    return !(g->ecn & 1) || g->ecn == 1;
}

static enum xds_host_reason take_piece(struct xds_host *h, struct xdsi_frag *g, const struct xdsi_fragment *p)
{
    const uint32_t from = p->from, to = from + p->len;
    const bool more = p->more;
    const uint32_t reached = g->runs ? g->run[g->runs - 1].to : 0;

    const bool behind = more ? g->total && to > g->total : (g->total && to != g->total) || to < reached;

    if (to > h->cfg.fragment_bytes)
        return XDS_HOST_FRAGMENT_LARGE;
    if (behind)
        return XDS_HOST_FRAGMENT_OVERLAP; /* bytes behind the end */
    const enum xds_host_reason reason = note_run(g, from, to);
    if (reason != XDS_HOST_FRAGMENT)
        return reason;
    g->ecn |= (uint8_t)(1u << p->ecn);
    if (!ecn_agrees(g))
        return XDS_HOST_FRAGMENT_ECN;
    uint8_t *payload = payload_of(h, g);
    memcpy(payload + from, p->data, p->len);
    if (!more)
        g->total = to;
    if (from == 0) {
        g->l2 = (uint8_t)p->l2;
        g->ihl = (uint8_t)p->head;
        memcpy(payload - p->head - p->l2, p->frame, p->l2 + p->head);
        if (p->six)
            (payload - p->head)[6] = p->next;
    }
    return XDS_HOST_FRAGMENT;
}

/* All of it is there: a frame as if it had come in one. */
static void make_whole(const struct xds_host *h, struct xdsi_frag *g, struct xdsi_whole *w)
{
    uint8_t *ip = payload_of(h, g) - g->ihl;

    *w = (struct xdsi_whole){.frag = g, .frame = ip - g->l2, .l2 = g->l2, .ihl = g->ihl};
    w->total = g->ihl + g->total;
    if (g->six) {
        xdsi_put16(ip + 4, g->total);
        if (g->ecn & 8)
            ip[1] |= 0x30;
        return;
    }
    if (w->total > 65535) {
        w->frame = NULL;
        return;
    }
    xdsi_put16(ip + 2, w->total);
    xdsi_put16(ip + 6, xdsi_be16(ip + 6) & 0x4000);
    if (g->ecn & 8)
        ip[1] |= 3;
    xdsi_put_raw16(ip + 10, 0);
    xdsi_put_raw16(ip + 10, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, ip, g->ihl)));
}

enum xds_host_reason xdsi_host_fragment(struct xds_host *h, const struct xdsi_fragment *p, int64_t now,
                                        struct xdsi_whole *w)
{
    w->frame = NULL;
    if (!h->cfg.fragments)
        return XDS_HOST_IP_FRAGMENT;
    struct xdsi_frag *g = frag_for(h, p, now);
    if (!g)
        return XDS_HOST_FRAGMENT_LENT;
    if (g->state == BROKEN)
        return XDS_HOST_FRAGMENT_BROKEN;
    enum xds_host_reason reason = take_piece(h, g, p);
    if (reason != XDS_HOST_FRAGMENT) {
        if (reason != XDS_HOST_FRAGMENT_COPY)
            g->state = BROKEN;
        return reason;
    }
    if (g->runs == 1 && g->run[0].from == 0 && g->run[0].to == g->total) {
        make_whole(h, g, w);
        if (!w->frame) {
            g->state = BROKEN;
            return XDS_HOST_FRAGMENT_BAD;
        }
        h->stats.reassembled++;
    }
    return reason;
}

void xdsi_host_whole_done(struct xds_host *h, const struct xdsi_whole *w, bool lent)
{
    w->frag->state = lent ? LENT : FREE;
    h->frags_open--;
    h->frags_lent += lent;
}

void xds_host_release(struct xds_host *h)
{
    if (!h->frags_lent)
        return;
    for (uint32_t i = 0; i < h->cfg.fragments; i++)
        if (h->frags[i].state == LENT)
            h->frags[i].state = FREE;
    h->frags_lent = 0;
}

int64_t xdsi_frag_deadline(const struct xds_host *h)
{
    int64_t first = XDS_NEVER;

    for (uint32_t i = 0; i < h->cfg.fragments; i++)
        if ((h->frags[i].state == FILLING || h->frags[i].state == BROKEN) && h->frags[i].due_ns < first)
            first = h->frags[i].due_ns;
    return first;
}

void xdsi_frag_tick(struct xds_host *h, int64_t now)
{
    for (uint32_t i = 0; i < h->cfg.fragments; i++) {
        struct xdsi_frag *g = &h->frags[i];
        if ((g->state != FILLING && g->state != BROKEN) || g->due_ns > now)
            continue;
        if (g->state == FILLING) {
            h->stats.fragments_expired++;
            if (g->ihl) { /* RFC 792: without the first fragment there is nothing to quote */
                uint8_t *payload = payload_of(h, g);
                const uint8_t *frame = payload - g->ihl - g->l2;
                if (g->six) {
                    xdsi_put16(payload - g->ihl + 4, g->run[0].to);
                    xdsi_icmp6_error(h, XDSI_ICMP6_TIME, 1, 0, frame, g->l2, g->ihl + g->run[0].to, now);
                } else {
                    xdsi_host_icmp_error(h, 11, 1, frame, g->l2, g->ihl + g->run[0].to, now);
                }
            }
        }
        g->state = FREE;
        h->frags_open--;
    }
}
