/* tcp_data.c: the bytes of a segment into the receive buffer, in order or not, and the blocks of SACK. */
#include "tcp_int.h"

void xdsi_tcp_time_wait(struct xds_tcp *t, int64_t now)
{
    if (t->state != XDS_TCP_TIME_WAIT)
        xdsi_tcp_event(t, XDS_TCP_EVENT_CLOSED, now);
    t->state = XDS_TCP_TIME_WAIT;
    t->rtx_due = t->probe_due = XDS_NEVER;
    t->wait_due = now + 2 * t->cfg.msl_ns;
}

static void store(struct xds_tcp *t, int64_t p, const uint8_t *data, uint32_t len)
{
    const uint32_t at = (uint32_t)(p - 1) & (t->cfg.receive_bytes - 1);
    const uint32_t first = len < t->cfg.receive_bytes - at ? len : t->cfg.receive_bytes - at;

    memcpy(t->rx + at, data, first);
    if (first < len)
        memcpy(t->rx, data + first, len - first);
}

/* Note [from, to) among the pieces, joined with those that it touches. False: no room for another. */
static bool note_piece(struct xds_tcp *t, int64_t from, int64_t to)
{
    uint32_t first = 0, last;

    while (first < t->piece_count && t->pieces[first].to < from)
        first++;
    for (last = first; last < t->piece_count && t->pieces[last].from <= to; last++) {
        from = xdsi_min64(from, t->pieces[last].from);
        to = xdsi_max64(to, t->pieces[last].to);
    }
    if (first == last && t->piece_count == XDSI_TCP_HOLES)
        return false;
    memmove(&t->pieces[first + 1], &t->pieces[last], (t->piece_count - last) * sizeof t->pieces[0]);
    t->pieces[first] = (struct xdsi_piece){from, to};
    t->piece_count += 1 - (last - first);
    return true;
}

/* rcv_nxt over what lies there already. */
static void join_pieces(struct xds_tcp *t)
{
    uint32_t n = 0;

    while (n < t->piece_count && t->pieces[n].from <= t->rcv_nxt) {
        t->rcv_nxt = xdsi_max64(t->rcv_nxt, t->pieces[n].to);
        n++;
    }
    t->piece_count -= n;
    memmove(t->pieces, t->pieces + n, t->piece_count * sizeof t->pieces[0]);
}

/* What a DSACK is to say (RFC 2883 4): the next ACK carries it, once. */
void xdsi_tcp_twice(struct xds_tcp *t, int64_t from, int64_t to)
{
    t->stats.duplicate_bytes += (uint64_t)(to - from);
    if (t->sack)
        t->twice = (struct xdsi_piece){from, to};
}

/* The first stretch of [from, to) that lies there already. */
static void find_twice(struct xds_tcp *t, int64_t from, int64_t to)
{
    for (uint32_t i = 0; i < t->piece_count && t->pieces[i].from < to; i++)
        if (t->pieces[i].to > from) {
            xdsi_tcp_twice(t, xdsi_max64(from, t->pieces[i].from), xdsi_min64(to, t->pieces[i].to));
            return;
        }
}

static const struct xdsi_piece *piece_at(const struct xds_tcp *t, int64_t p)
{
    for (uint32_t i = 0; i < t->piece_count; i++)
        if (p >= t->pieces[i].from && p < t->pieces[i].to)
            return &t->pieces[i];
    return NULL;
}

/* The piece that position lies in comes first in the next ACKs; no piece is named twice (RFC 2018 4). */
static void remember(struct xds_tcp *t, int64_t position)
{
    const struct xdsi_piece *piece = piece_at(t, position);
    uint32_t kept = 1;
    int64_t order[XDSI_TCP_BLOCKS] = {position};

    for (uint32_t i = 0; i < t->recent_count && kept < XDSI_TCP_BLOCKS; i++)
        if (!piece || t->recent[i] < piece->from || t->recent[i] >= piece->to)
            order[kept++] = t->recent[i];
    memcpy(t->recent, order, sizeof order);
    t->recent_count = kept;
}

/* The FIN takes a number behind the piece that it ends. */
static struct xdsi_piece with_fin(const struct xds_tcp *t, const struct xdsi_piece *p)
{
    return (struct xdsi_piece){p->from, p->to + (t->rcv_fin >= 0 && p->to == t->rcv_fin)};
}

/* The blocks of the next ACK: what came twice, then the pieces, the latest to grow first. Their number. */
uint32_t xdsi_tcp_blocks(struct xds_tcp *t, struct xdsi_piece *out, uint32_t most)
{
    uint32_t n = 0;

    if (!t->sack || !most)
        return 0;
    if (t->twice.to > t->twice.from) {
        out[n++] = t->twice;
        t->stats.dsacks_sent++;
        t->twice = (struct xdsi_piece){0, 0};
    }
    for (uint32_t i = 0; i < t->recent_count && n < most; i++) {
        const struct xdsi_piece *piece = piece_at(t, t->recent[i]);
        if (piece)
            out[n++] = with_fin(t, piece);
    }
    return n;
}

/* When what has come is acknowledged. */
static void owe_ack(struct xds_tcp *t, int64_t now)
{
    t->ack_now |= !t->cfg.delayed_ack_ns || t->unacked >= 2 * t->mss;
    t->ack_due = xdsi_min64(t->ack_due, now + t->cfg.delayed_ack_ns);
}

int xdsi_tcp_ordered(struct xds_tcp *t, const struct xdsi_in *s, int64_t now)
{
    store(t, s->p, s->data, s->len);
    t->rcv_nxt += s->len;
    t->unacked += s->len;
    t->stats.received_bytes += s->len;
    owe_ack(t, now);
    return xdsi_tcp_taken(t);
}

/* Seventh and eighth: text and FIN. */
int xdsi_tcp_data(struct xds_tcp *t, const struct xdsi_in *s, int64_t now)
{
    int64_t from = xdsi_max64(s->p, t->rcv_nxt), to = s->p + s->len;
    const int64_t before = t->rcv_nxt, limit = xdsi_tcp_edge(t);
    bool fin = s->flags & XDSI_FIN;

    if (to > limit) {
        to = limit;
        fin = false;
    }
    if (t->rcv_fin >= 0)
        to = xdsi_min64(to, t->rcv_fin);
    else if (fin && to >= t->rcv_nxt && !(t->piece_count && t->pieces[t->piece_count - 1].to > to))
        t->rcv_fin = to;
    if (to > from) {
        const bool ordered = from == t->rcv_nxt;
        if (s->p < t->rcv_nxt)
            xdsi_tcp_twice(t, s->p, t->rcv_nxt);
        else
            find_twice(t, from, to);
        if (!ordered && !note_piece(t, from, to)) {
            t->ack_now = true;
            return xdsi_tcp_drop(t, XDS_TCP_DISORDERED, XDS_ECAPACITY);
        }
        store(t, from, s->data + (from - s->p), (uint32_t)(to - from));
        t->stats.out_of_order += !ordered;
        if (!ordered)
            remember(t, from);
        t->ack_now |=
            !ordered || t->piece_count || t->twice.to; /* RFC 5681 4.2: at once while there is a hole */
        if (ordered)
            t->rcv_nxt = to;
        join_pieces(t);
        t->unacked += (uint32_t)(t->rcv_nxt - before);
        t->stats.received_bytes += (uint64_t)(t->rcv_nxt - before);
    } else if (s->len) {
        t->ack_now = true;
    }
    if (t->unacked)
        owe_ack(t, now);
    if (t->rcv_nxt != t->rcv_fin) {
        t->ack_now |= fin;
        return xdsi_tcp_taken(t);
    }
    t->rcv_nxt++;
    t->ack_now = true;
    xdsi_tcp_event(t, XDS_TCP_EVENT_FIN, now);
    if (t->state == XDS_TCP_ESTABLISHED)
        t->state = XDS_TCP_CLOSE_WAIT;
    else if (t->state == XDS_TCP_FIN_WAIT_1)
        t->state = XDS_TCP_CLOSING;
    else
        xdsi_tcp_time_wait(t, now);
    return xdsi_tcp_taken(t);
}
