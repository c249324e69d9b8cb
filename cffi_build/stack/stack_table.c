/* stack_table.c: places of connections: the table of ends, deadlines, queues, and what is unforeseeable. */
#include "stack_int.h"

/* ---- what hangs on the secret -------------------------------------------------------------------- */

static uint64_t sip_ends(const struct xds_stack *s, const struct xdsi_ends *ends, uint8_t purpose)
{
    uint8_t bytes[sizeof *ends + 1];

    memcpy(bytes, ends, sizeof *ends);
    bytes[sizeof *ends] = purpose;
    return xdsi_siphash(s->cfg.secret, bytes, sizeof bytes);
}

/* RFC 6528 3: a clock of 4 microseconds, and a place for each pair of ends. */
uint32_t xdsi_first_number(const struct xds_stack *s, const struct xdsi_ends *ends, int64_t now)
{
    return (uint32_t)(now / 4000) + (uint32_t)sip_ends(s, ends, 1);
}

/* RFC 7323 5.4: one clock for all connections of a pair of addresses. */
uint32_t xdsi_stamp_offset(const struct xds_stack *s, const struct xdsi_ends *ends)
{
    struct xdsi_ends hosts = *ends;

    hosts.remote_port = hosts.local_port = 0;
    return (uint32_t)sip_ends(s, &hosts, 2);
}

/* ---- the table of ends --------------------------------------------------------------------------- */

static inline uint64_t mix(uint64_t a, uint64_t b)
{
    const unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

/* Keyed, so that nobody can choose ends that all lie in one place; cheaper than a SipHash. */
static uint32_t slot_of(const struct xds_stack *s, const struct xdsi_ends *e)
{
    const uint64_t k0 = xdsi_le64(s->cfg.secret), k1 = xdsi_le64(s->cfg.secret + 8);
    const uint64_t ports = (uint64_t)e->remote_port << 16 | e->local_port;
    const uint64_t half =
        mix(xdsi_le64(e->remote + 8) ^ k0, (xdsi_le64(e->local + 8) + ports * 0x9e3779b97f4a7c15) ^ k1);

    return (uint32_t)mix(half ^ xdsi_le64(e->remote), xdsi_le64(e->local) ^ k1 ^ k0 >> 1) & s->table_mask;
}

/* Without a branch a byte, and without a call. */
static bool same_ends(const struct xdsi_ends *a, const struct xdsi_ends *b)
{
    return !((xdsi_le64(a->remote) ^ xdsi_le64(b->remote)) |
             (xdsi_le64(a->remote + 8) ^ xdsi_le64(b->remote + 8)) |
             (xdsi_le64(a->local) ^ xdsi_le64(b->local)) |
             (xdsi_le64(a->local + 8) ^ xdsi_le64(b->local + 8)) |
             (uint64_t)(a->remote_port ^ b->remote_port) | (uint64_t)(a->local_port ^ b->local_port));
}

_Static_assert(sizeof(struct xdsi_ends) == 36, "ends are compared and hashed as bytes");

struct xdsi_conn *xdsi_conn_find(struct xds_stack *s, const struct xdsi_ends *ends)
{
    struct xdsi_conn *latest = &s->conns[s->latest];

    if (latest->named && same_ends(&latest->ends, ends))
        return latest;
    for (uint32_t at = slot_of(s, ends); s->table[at]; at = (at + 1) & s->table_mask) {
        struct xdsi_conn *c = &s->conns[s->table[at] - 1];
        if (same_ends(&c->ends, ends)) {
            s->latest = s->table[at] - 1;
            return c;
        }
    }
    return NULL;
}

static void name(struct xds_stack *s, struct xdsi_conn *c)
{
    uint32_t at = slot_of(s, &c->ends);

    while (s->table[at])
        at = (at + 1) & s->table_mask;
    s->table[at] = 1 + xdsi_place(s, c);
    c->named = true;
}

/* Whoever was moved on for this one's sake moves back: no marks of the dead are left. */
void xdsi_conn_forget(struct xds_stack *s, struct xdsi_conn *c)
{
    uint32_t hole = slot_of(s, &c->ends);

    if (!c->named)
        return;
    c->named = false;
    while (s->table[hole] != 1 + xdsi_place(s, c))
        hole = (hole + 1) & s->table_mask;
    for (uint32_t at = hole;;) {
        s->table[hole] = 0;
        uint32_t wants;
        do {
            at = (at + 1) & s->table_mask;
            if (!s->table[at])
                return;
            wants = slot_of(s, &s->conns[s->table[at] - 1].ends);
        } while (hole <= at ? hole < wants && wants <= at : hole < wants || wants <= at);
        s->table[hole] = s->table[at];
        hole = at;
    }
}

/* ---- deadlines: a binary heap, kept lazily ------------------------------------------------------- */

int64_t xdsi_conn_due(const struct xds_stack *s, const struct xdsi_conn *c)
{
    return xdsi_min64(xdsi_tcp_due(xdsi_tcp_of(s, xdsi_place(s, c))), c->orphan_due);
}

static void put(struct xds_stack *s, uint32_t at, struct xdsi_due due)
{
    s->heap[at] = due;
    s->conns[due.place].heap_at = at + 1;
}

static void sift_up(struct xds_stack *s, uint32_t at, struct xdsi_due due)
{
    for (; at && s->heap[(at - 1) / 2].at > due.at; at = (at - 1) / 2)
        put(s, at, s->heap[(at - 1) / 2]);
    put(s, at, due);
}

static void sift_down(struct xds_stack *s, uint32_t at, struct xdsi_due due)
{
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < s->heap_count && s->heap[child + 1].at < s->heap[child].at)
            child++;
        if (child >= s->heap_count || s->heap[child].at >= due.at)
            break;
        put(s, at, s->heap[child]);
        at = child;
    }
    put(s, at, due);
}

void xdsi_conn_untime(struct xds_stack *s, struct xdsi_conn *c)
{
    if (!c->heap_at)
        return;
    const uint32_t at = c->heap_at - 1;
    const struct xdsi_due last = s->heap[--s->heap_count];
    c->heap_at = 0;
    if (at == s->heap_count)
        return;
    if (at && s->heap[(at - 1) / 2].at > last.at)
        sift_up(s, at, last);
    else
        sift_down(s, at, last);
}

/* A deadline that went away or moved on is found out when its old one comes: each ACK moves one on. */
void xdsi_conn_time(struct xds_stack *s, struct xdsi_conn *c)
{
    const int64_t due = xdsi_conn_due(s, c);

    if (due == XDS_NEVER || (c->heap_at && s->heap[c->heap_at - 1].at <= due))
        return;
    xdsi_conn_untime(s, c);
    sift_up(s, s->heap_count++, (struct xdsi_due){.at = due, .place = xdsi_place(s, c)});
}

/* ---- queues -------------------------------------------------------------------------------------- */

void xdsi_ready(struct xds_stack *s, struct xdsi_conn *c)
{
    const uint32_t place = xdsi_place(s, c);

    if (c->ready)
        return;
    c->ready = true;
    c->ready_next = XDSI_NOWHERE;
    if (s->ready.first == XDSI_NOWHERE)
        s->ready.first = place;
    else
        s->conns[s->ready.last].ready_next = place;
    s->ready.last = place;
}

struct xdsi_conn *xdsi_ready_take(struct xds_stack *s)
{
    while (s->ready.first != XDSI_NOWHERE) {
        struct xdsi_conn *c = &s->conns[s->ready.first];
        s->ready.first = c->ready_next;
        c->ready = false;
        if (c->id) /* else it was freed meanwhile */
            return c;
    }
    return NULL;
}

void xdsi_tell(struct xds_stack *s, struct xdsi_conn *c, uint32_t what, int64_t now)
{
    const uint32_t place = xdsi_place(s, c);

    if (!what || !c->owned)
        return;
    if (!c->news)
        c->news_ns = now;
    c->news |= what;
    if (c->told)
        return;
    struct xdsi_queue *q = &s->news[c->given];
    c->told = true;
    c->news_next = XDSI_NOWHERE;
    if (q->first == XDSI_NOWHERE)
        q->first = place;
    else
        s->conns[q->last].news_next = place;
    q->last = place;
}

static void untell(struct xds_stack *s, struct xdsi_conn *c)
{
    struct xdsi_queue *q = &s->news[c->given];
    const uint32_t place = xdsi_place(s, c);
    uint32_t before = XDSI_NOWHERE;

    for (uint32_t at = q->first; at != place; at = s->conns[at].news_next)
        before = at;
    *(before == XDSI_NOWHERE ? &q->first : &s->conns[before].news_next) = c->news_next;
    if (q->last == place)
        q->last = before;
    c->told = false;
}

/* Its news go to the other reader, those that wait too. */
void xdsi_conn_hand(struct xds_stack *s, struct xdsi_conn *c, bool given)
{
    if (c->given == given)
        return;
    if (c->told)
        untell(s, c);
    c->given = given;
    xdsi_tell(s, c, c->news, c->news_ns);
}

void xdsi_conn_waits(struct xds_stack *s, struct xdsi_conn *c, bool waits)
{
    const uint32_t place = xdsi_place(s, c);

    if (c->waits == waits)
        return;
    c->waits = waits;
    if (waits) {
        c->wait_prev = s->waits.last;
        c->wait_next = XDSI_NOWHERE;
        *(s->waits.last == XDSI_NOWHERE ? &s->waits.first : &s->conns[s->waits.last].wait_next) = place;
        s->waits.last = place;
        s->stats.time_waits++;
        return;
    }
    *(c->wait_prev == XDSI_NOWHERE ? &s->waits.first : &s->conns[c->wait_prev].wait_next) = c->wait_next;
    *(c->wait_next == XDSI_NOWHERE ? &s->waits.last : &s->conns[c->wait_next].wait_prev) = c->wait_prev;
    s->stats.time_waits--;
}

/* ---- places -------------------------------------------------------------------------------------- */

static uint32_t take_place(struct xds_stack *s)
{
    if (s->free_first == XDSI_NOWHERE && s->fresh < s->cfg.connections)
        return s->fresh++;
    if (s->free_first == XDSI_NOWHERE && s->waits.first != XDSI_NOWHERE) {
        s->stats.evicted++;
        xdsi_conn_free(s, &s->conns[s->waits.first]);
    }
    const uint32_t place = s->free_first;
    if (place != XDSI_NOWHERE)
        s->free_first = s->conns[place].next;
    return place;
}

struct xdsi_conn *xdsi_conn_make(struct xds_stack *s, const struct xdsi_ends *ends,
                                 const struct xds_tcp_config *cfg)
{
    struct xds_tcp_config mine = *cfg;

    memcpy(mine.local, ends->local, 16);
    memcpy(mine.remote, ends->remote, 16);
    mine.local_port = ends->local_port;
    mine.remote_port = ends->remote_port;
    mine.send_bytes = s->cfg.send_bytes;
    mine.receive_bytes = s->cfg.receive_bytes;
    mine.pieces = s->cfg.tcp.pieces;
    mine.stamp_offset = xdsi_stamp_offset(s, ends);
    if (!xds_tcp_size(&mine))
        return NULL;
    const uint32_t place = take_place(s);
    if (place == XDSI_NOWHERE)
        return NULL;
    struct xdsi_conn *c = &s->conns[place];
    c->uses = c->uses % 8191 + 1;
    c->id = c->uses << XDSI_PLACE_BITS | place;
    c->listener = c->next = XDSI_NOWHERE;
    c->news = 0; /* it may stand in a queue from its life before: ready and told stay */
    c->owned = c->wants_room = c->waits = c->queued = false;
    xdsi_conn_hand(s, c, false);
    c->orphan_due = XDS_NEVER;
    c->space = 0;
    c->trouble.type = 0;
    c->ends = *ends;
    c->trail.until = 0;
    c->hops = 0;
    xds_tcp_init(xdsi_tcp_of(s, place), &mine);
    name(s, c);
    if (++s->stats.connections > s->stats.connections_max)
        s->stats.connections_max = s->stats.connections;
    return c;
}

void xdsi_conn_free(struct xds_stack *s, struct xdsi_conn *c)
{
    xdsi_totals_end(s, xdsi_place(s, c));
    xdsi_conn_forget(s, c);
    xdsi_conn_waits(s, c, false);
    xdsi_conn_untime(s, c);
    if (c->listener != XDSI_NOWHERE)
        s->listeners[c->listener].pending--;
    if (c->listener != XDSI_NOWHERE && c->queued)
        s->listeners[c->listener].queued--;
    c->id = c->news = 0;
    c->owned = false;
    c->next = s->free_first;
    s->free_first = xdsi_place(s, c);
    s->stats.connections--;
}
