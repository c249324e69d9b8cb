/* channel_window.c: the reorder window of a channel: gaps, slots, requests, and each line's own loss.
 * See channel_int.h for the invariant; xds/channel.h for the life of a gap. */
#include "channel_int.h"

void xdsi_channel_post(struct xds_channel *c, uint32_t kind, uint64_t first, uint64_t count)
{
    if (c->ev_tail - c->ev_head == XDSI_EVENTS) {
        c->stats.events_lost++;
        return;
    }
    c->events[c->ev_tail++ % XDSI_EVENTS] =
        (struct xds_event){.ns = c->now_ns, .first = first, .count = count, .kind = kind};
}

/* Index of the first gap that ends past seq. Gaps are few; the newest is the likeliest. */
static uint32_t gap_after(const struct xds_channel *c, uint64_t seq)
{
    uint32_t i = c->gap_count;
    while (i && c->gaps[i - 1].end > seq)
        i--;
    return i;
}

int xdsi_channel_is_new(const struct xds_channel *c, uint64_t first, uint64_t end)
{
    if (end > c->top)
        return 1;
    uint32_t i = gap_after(c, first);
    return i < c->gap_count && c->gaps[i].first < end;
}

static void gap_remove(struct xds_channel *c, uint32_t i)
{
    memmove(&c->gaps[i], &c->gaps[i + 1], (c->gap_count - i - 1) * sizeof *c->gaps);
    c->gap_count--;
}

/* What is left of a gap after a part came by request: the whole answer is here, so ask for the rest at
 * once; or more packets of it may follow, so give them the reordering time. */
static void gap_progress(const struct xds_channel *c, struct xdsi_gap *g)
{
    if (!g->tries)
        return;
    int64_t wait = c->cfg.window_ns < c->cfg.retry_ns ? c->cfg.window_ns : c->cfg.retry_ns;
    g->tries = 0;
    g->due_ns = g->first >= g->asked_end ? c->now_ns : c->now_ns + wait;
}

void xdsi_channel_fill(struct xds_channel *c, uint64_t first, uint64_t end, int retransmitted)
{
    uint32_t i = gap_after(c, first);

    while (i < c->gap_count && c->gaps[i].first < end) {
        struct xdsi_gap *g = &c->gaps[i];
        uint64_t a = first > g->first ? first : g->first;
        uint64_t b = end < g->end ? end : g->end;
        c->stats.units_filled += b - a;
        xdsi_channel_post(c, XDS_EVENT_GAP_FILLED, a, b - a);
        if (a == g->first && b == g->end) {
            c->stats.gaps_filled++;
            gap_remove(c, i);
            continue;
        }
        if (a > g->first && b < g->end) { /* a hole inside: two ranges from now on */
            memmove(g + 1, g, (c->gap_count - i) * sizeof *g);
            c->gap_count++;
            c->stats.gaps_found++;
            g[0].end = a;
            g[1].first = b;
            if (retransmitted) {
                gap_progress(c, &g[0]);
                gap_progress(c, &g[1]);
            }
            return;
        }
        if (a == g->first)
            g->first = b;
        else
            g->end = a;
        if (retransmitted)
            gap_progress(c, g);
        i++;
    }
}

void xdsi_channel_missing(struct xds_channel *c, uint64_t end)
{
    uint64_t count = end - c->top;
    struct xdsi_gap *last = c->gap_count ? &c->gaps[c->gap_count - 1] : NULL;

    c->stats.units_missed += count;
    xdsi_channel_post(c, XDS_EVENT_GAP_FOUND, c->top, count);
    if (last && last->end == c->top) {
        last->end = end;
        if (last->tries >= c->cfg.retries) { /* the new part has not been asked for */
            last->tries = c->cfg.retries ? c->cfg.retries - 1 : 0;
        }
    } else {
        c->stats.gaps_found++;
        c->gaps[c->gap_count++] = (struct xdsi_gap){
            .first = c->top, .end = end, .found_ns = c->now_ns, .due_ns = c->now_ns + c->cfg.window_ns};
    }
    c->top = end;
}

/* Only the gap that holds the stream up is ever given up: so what is lost always lies before
 * next_seq, and a later gap uses the waiting time to be filled after all. */
void xdsi_channel_give_up_head(struct xds_channel *c)
{
    struct xdsi_gap *g = &c->gaps[0];

    c->stats.gaps_lost++;
    c->stats.units_lost += g->end - g->first;
    xdsi_channel_post(c, XDS_EVENT_GAP_LOST, g->first, g->end - g->first);
    c->lost[c->lost_count++ % XDSI_LOST_KEPT] = (struct xdsi_range){g->first, g->end};
    c->next_seq = g->end;
    c->flags_once |= XDS_BLOCK_AFTER_GAP;
    c->flags_on |= XDS_BLOCK_STALE;
    gap_remove(c, 0);
}

int xdsi_channel_head_expired(const struct xds_channel *c)
{
    const struct xdsi_gap *g = &c->gaps[0];

    if (!c->cfg.request_max)
        return c->now_ns >= g->due_ns;
    return c->now_ns - g->found_ns >= c->cfg.give_up_ns ||
           (g->tries >= c->cfg.retries && c->now_ns >= g->due_ns);
}

void xdsi_channel_ask_now(struct xds_channel *c)
{
    for (uint32_t i = 0; i < c->gap_count; i++)
        if (!c->gaps[i].tries && c->gaps[i].due_ns > c->now_ns)
            c->gaps[i].due_ns = c->now_ns;
}

int xdsi_channel_was_lost(const struct xds_channel *c, uint64_t first, uint64_t end)
{
    uint64_t n = c->lost_count < XDSI_LOST_KEPT ? c->lost_count : XDSI_LOST_KEPT;

    for (uint64_t i = 0; i < n; i++)
        if (c->lost[i].first < end && first < c->lost[i].end)
            return 1;
    return 0;
}

/* ---- slots ---------------------------------------------------------------------------------- */

static void slot_release(struct xds_channel *c, uint32_t index)
{
    c->line[c->slots[index].p.line].stats.buffered--;
    c->free_list[c->free_count++] = index;
    c->slot_count--;
}

/* Keep a packet that is ahead. The caller made sure of a free slot, of its size, and that something in
 * it is new. Slots that it contains have nothing of their own any more. */
void xdsi_channel_store(struct xds_channel *c, const struct xdsi_packet *p)
{
    uint64_t end = p->seq + p->units;
    uint32_t index = c->free_list[--c->free_count];
    struct xdsi_slot *s = &c->slots[index];
    uint32_t hi, at;

    if (c->order_hi == 2 * c->cfg.window_packets) {
        memmove(c->order, c->order + c->order_lo, (c->order_hi - c->order_lo) * sizeof *c->order);
        c->order_hi -= c->order_lo;
        c->order_lo = 0;
    }
    at = c->order_hi;
    while (at > c->order_lo && c->slots[c->order[at - 1]].end > end)
        at--;
    hi = at; /* order[hi ..) end past it; those before, from its first unit on, lie inside it */
    while (at > c->order_lo && c->slots[c->order[at - 1]].p.seq >= p->seq) {
        at--;
        c->line[c->slots[c->order[at]].p.line].stats.duplicate++;
        slot_release(c, c->order[at]);
    }
    memmove(&c->order[at + 1], &c->order[hi], (c->order_hi - hi) * sizeof *c->order);
    c->order_hi += at + 1 - hi;
    c->order[at] = index;
    s->p = *p;
    s->p.data = memcpy(c->slab + (size_t)index * c->cfg.slot_bytes, p->data, p->len);
    s->end = end;
    c->slot_count++;
    c->line[p->line].stats.buffered++;
}

void xdsi_channel_drop_head(struct xds_channel *c)
{
    slot_release(c, c->order[c->order_lo++]);
}

/* The block that next() hands out borrows its slot until the next call. */
void xdsi_channel_hold_head(struct xds_channel *c)
{
    c->held = c->order[c->order_lo++];
    c->line[c->slots[c->held].p.line].stats.buffered--;
    c->slot_count--;
}

void xdsi_channel_unhold(struct xds_channel *c)
{
    if (c->held == XDSI_SLOT_NONE)
        return;
    c->free_list[c->free_count++] = c->held;
    c->held = XDSI_SLOT_NONE;
}

/* ---- requests ------------------------------------------------------------------------------- */

int xds_channel_output(struct xds_channel *c, uint8_t *room, uint32_t cap, int64_t now_ns)
{
    if (!c->cfg.request_max || !c->named)
        return 0;
    for (uint32_t i = 0; i < c->gap_count; i++) {
        struct xdsi_gap *g = &c->gaps[i];
        if (g->tries >= c->cfg.retries || g->due_ns > now_ns || now_ns - g->found_ns >= c->cfg.give_up_ns)
            continue;
        if (cap < XDSI_MOLD_BYTES)
            return XDS_ECAPACITY;
        uint64_t count = g->end - g->first;
        if (count > c->cfg.request_max)
            count = c->cfg.request_max;
        uint64_t seq_be = __builtin_bswap64(g->first);
        uint16_t count_be = __builtin_bswap16((uint16_t)count);
        memcpy(room, c->ident, 10);
        memcpy(room + 10, &seq_be, 8);
        memcpy(room + 18, &count_be, 2);
        uint32_t shift = g->tries < 20 ? g->tries : 20;
        int64_t wait =
            c->cfg.retry_ns > (c->cfg.give_up_ns >> shift) ? c->cfg.give_up_ns : c->cfg.retry_ns << shift;
        g->asked_end = g->first + count;
        g->due_ns = now_ns + wait;
        g->tries++;
        c->stats.requests++;
        c->now_ns = now_ns;
        xdsi_channel_post(c, XDS_EVENT_GAP_ASKED, g->first, count);
        return XDSI_MOLD_BYTES;
    }
    return 0;
}

int64_t xds_channel_deadline(const struct xds_channel *c)
{
    int64_t first = XDS_NEVER;

    for (uint32_t i = 0; i < c->gap_count; i++) {
        const struct xdsi_gap *g = &c->gaps[i];
        if (i == 0 || (c->cfg.request_max && g->tries < c->cfg.retries))
            first = g->due_ns < first ? g->due_ns : first;
        if (i == 0 && c->cfg.request_max && g->found_ns + c->cfg.give_up_ns < first)
            first = g->found_ns + c->cfg.give_up_ns;
    }
    return first;
}

/* ---- what each line carried ------------------------------------------------------------------ */

static void line_miss(struct xdsi_line *l, uint64_t first, uint64_t end)
{
    l->stats.lost += end - first;
    if (l->misses == XDSI_MISSES) { /* the oldest hole stays lost for good */
        memmove(&l->miss[0], &l->miss[1], (XDSI_MISSES - 1) * sizeof l->miss[0]);
        l->misses--;
    }
    l->miss[l->misses++] = (struct xdsi_range){first, end};
}

static void line_carried(struct xdsi_line *l, uint64_t first, uint64_t end)
{
    int found = 0;

    for (uint32_t i = 0; i < l->misses; i++) {
        struct xdsi_range *m = &l->miss[i];
        if (m->first >= end || first >= m->end)
            continue;
        uint64_t a = first > m->first ? first : m->first, b = end < m->end ? end : m->end;
        found = 1;
        l->stats.lost -= b - a;
        if (a > m->first && b < m->end) {
            struct xdsi_range rest = {b, m->end};
            m->end = a;
            if (l->misses < XDSI_MISSES) {
                memmove(m + 2, m + 1, (l->misses - i - 1) * sizeof *m);
                m[1] = rest;
                l->misses++;
            }
        } else if (a > m->first) {
            m->end = a;
        } else {
            m->first = b;
        }
        if (m->first == m->end) {
            memmove(m, m + 1, (l->misses - i - 1) * sizeof *m);
            l->misses--;
            i--;
        }
    }
    l->stats.reordered += (uint64_t)found;
}

void xdsi_line_track(struct xdsi_line *l, uint64_t first, uint64_t end)
{
    if (first > l->expect)
        line_miss(l, l->expect, first);
    else if (first < l->expect && end > first)
        line_carried(l, first, end);
    if (end > l->expect)
        l->expect = end;
}

/* Another run begins at first: what this line did not carry of the old one is its loss. */
void xdsi_line_begin(struct xdsi_line *l, uint64_t old_top, uint64_t first)
{
    l->tail_first = l->expect;
    l->tail_end = old_top > l->expect ? old_top : l->expect;
    l->stats.lost += l->tail_end - l->tail_first;
    l->misses = 0;
    l->expect = first;
    l->fall_next = 0;
}

/* ...unless it comes now, behind the restart that another line was first to show. */
void xdsi_line_old_run(struct xdsi_line *l, uint64_t first, uint64_t end)
{
    if (first < l->tail_first)
        first = l->tail_first;
    if (end > l->tail_end)
        end = l->tail_end;
    if (first >= end)
        return;
    l->stats.lost -= end - first;
    l->tail_first = end;
}
