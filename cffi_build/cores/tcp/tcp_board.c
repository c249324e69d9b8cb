/* tcp_board.c: the scoreboard: what is out between snd_una and snd_nxt, piece by piece in order, with the time
 * each was sent last. A piece is SACKED (the peer has it), LOST (to be sent again) or neither: in the pipe
 * (RFC 6675). Pieces are split where a block ends inside one; when the board is nearly full, what is sent next
 * becomes part of the last piece, so its bound costs precision and nothing else.
 */
#include "tcp_int.h"

#define SPARE 16 /* pieces kept free for splits */

static void count(struct xds_tcp *t, const struct xdsi_sent *r, int64_t sign)
{
    if (r->marks & XDSI_SACKED) {
        t->sacked += sign * r->len;
        t->sacked_count += (uint32_t)sign;
    } else if (r->marks & XDSI_LOST) {
        t->lost += sign * r->len;
    } else {
        t->pipe += sign * r->len;
    }
}

void xdsi_board_mark(struct xds_tcp *t, struct xdsi_sent *r, uint32_t marks)
{
    count(t, r, -1);
    r->marks = marks;
    count(t, r, 1);
}

void xdsi_board_clear(struct xds_tcp *t)
{
    t->board_head = t->board_count = t->sacked_count = 0;
    t->pipe = t->lost = t->sacked = t->reno = 0;
}

/* Whether there is a place for what is new. A last piece that is in the pipe takes it in; behind another it takes a
 * place of the spare ones, but for the last, which is for the split of what is sent again. */
bool xdsi_board_takes(const struct xds_tcp *t)
{
    if (t->board_count + SPARE < t->board_cap)
        return true;
    return !(xdsi_board_at(t, t->board_count - 1)->marks & (XDSI_SACKED | XDSI_LOST)) ||
           t->board_count + 1 < t->board_cap;
}

/* Needs xdsi_board_takes(). */
void xdsi_board_add(struct xds_tcp *t, int64_t from, int64_t to, int64_t now)
{
    struct xdsi_sent *last = t->board_count ? xdsi_board_at(t, t->board_count - 1) : NULL;
    const struct xdsi_sent new = {.from = from, .len = (uint32_t)(to - from), .ns = now};

    t->pipe += to - from;
    if (t->board_count + SPARE < t->board_cap || !last || last->marks & (XDSI_SACKED | XDSI_LOST)) {
        t->board_count++;
        *xdsi_board_at(t, t->board_count - 1) = new;
        return;
    }
    last->len += new.len;
    last->marks |= XDSI_MANY;
    last->ns = now;
}

/* Piece i ends at position at, a new one of the same marks begins there. False: the board is full. */
bool xdsi_board_split(struct xds_tcp *t, uint32_t i, int64_t at)
{
    if (t->board_count == t->board_cap)
        return false;
    for (uint32_t n = t->board_count++; n > i; n--)
        *xdsi_board_at(t, n) = *xdsi_board_at(t, n - 1);
    struct xdsi_sent *head = xdsi_board_at(t, i), *tail = xdsi_board_at(t, i + 1);
    tail->len = (uint32_t)(tail->from + tail->len - at);
    tail->from = at;
    head->len = (uint32_t)(at - head->from);
    t->sacked_count += !!(head->marks & XDSI_SACKED);
    return true;
}

/* Lost pieces behind piece i become part of it, as many as one segment of mss holds. */
void xdsi_board_join(struct xds_tcp *t, uint32_t i, int64_t mss)
{
    struct xdsi_sent *r = xdsi_board_at(t, i);
    uint32_t n = 0;

    while (i + n + 1 < t->board_count) {
        const struct xdsi_sent *next = xdsi_board_at(t, i + n + 1);
        if (!(next->marks & XDSI_LOST) || r->len + next->len > mss)
            break;
        r->len += next->len;
        r->marks |= (next->marks & XDSI_AGAIN) | XDSI_MANY; /* either may come as it was sent first */
        n++;
    }
    if (!n)
        return;
    for (uint32_t k = i + 1; k + n < t->board_count; k++)
        *xdsi_board_at(t, k) = *xdsi_board_at(t, k + n);
    t->board_count -= n;
}

/* Neighbours that the peer has become one, and neighbours that are lost, so that there are places again. */
void xdsi_board_squeeze(struct xds_tcp *t)
{
    uint32_t kept = 0;

    for (uint32_t i = 1; i < t->board_count; i++) {
        struct xdsi_sent *r = xdsi_board_at(t, kept), *next = xdsi_board_at(t, i);
        const uint32_t kind = r->marks & (XDSI_SACKED | XDSI_LOST);
        if (!kind || kind != (next->marks & (XDSI_SACKED | XDSI_LOST))) {
            *xdsi_board_at(t, ++kept) = *next;
            continue;
        }
        r->len += next->len;
        r->marks |= (next->marks & XDSI_AGAIN) | XDSI_MANY;
        t->sacked_count -= kind == XDSI_SACKED;
    }
    t->board_count = kept + 1;
}

/* The peer has len bytes of r from now on. */
static void deliver(struct xds_tcp *t, struct xdsi_sent *r, uint32_t len, struct xdsi_heard *k)
{
    const int64_t end = r->from + len;

    k->delivered += len;
    if (__builtin_expect(t->hole, 0) && !(r->marks & XDSI_MANY))
        xdsi_tcp_hole_passed(t, len);
    if (r->marks & XDSI_AGAIN) {
        k->again = true;
    } else {
        const int64_t rtt = xdsi_max64(k->now - r->ns, 1);
        /* of the oldest: it holds what a delayed ACK waits. A SACK does not wait, but a hole does */
        k->rtt = k->rtt < 0 ? rtt : k->sacking ? xdsi_min64(k->rtt, rtt) : k->rtt;
        k->rtt_min = k->rtt_min < 0 ? rtt : xdsi_min64(k->rtt_min, rtt);
        t->reordering |= end < t->highest; /* RFC 8985 6.2 step 3 */
    }
    t->highest = xdsi_max64(t->highest, end);
    xdsi_rack_update(t, r, end, k);
}

void xdsi_board_acked(struct xds_tcp *t, int64_t a, struct xdsi_heard *k)
{
    while (t->board_count) {
        struct xdsi_sent *r = xdsi_board_at(t, 0);
        const int64_t n = xdsi_min64(a - r->from, r->len);
        if (n <= 0)
            return;
        if (!(r->marks & XDSI_SACKED))
            deliver(t, r, (uint32_t)n, k);
        count(t, r, -1);
        if (n == r->len) {
            t->board_head = (t->board_head + 1) & (t->board_cap - 1);
            t->board_count--;
            continue;
        }
        r->from += n;
        r->len -= (uint32_t)n;
        count(t, r, 1);
        return;
    }
}

/* The peer has [from, to), all of it behind snd_una. */
void xdsi_board_sacked(struct xds_tcp *t, int64_t from, int64_t to, struct xdsi_heard *k)
{
    k->sacking = true;
    for (uint32_t i = 0; i < t->board_count; i++) {
        struct xdsi_sent *r = xdsi_board_at(t, i);
        if (r->from >= to)
            return;
        if (r->marks & XDSI_SACKED || r->from + r->len <= from)
            continue;
        if (r->from < from) {
            if (!xdsi_board_split(t, i, from))
                continue;
            r = xdsi_board_at(t, ++i);
        }
        if (r->from + r->len > to && !xdsi_board_split(t, i, to))
            return;
        deliver(t, r, r->len, k);
        xdsi_board_mark(t, r, (r->marks & XDSI_AGAIN) | XDSI_SACKED);
    }
}

/* RFC 2018 8, RFC 5681 3.1: after a timeout nothing that a SACK said counts, and all is to be sent again. */
void xdsi_board_lose_all(struct xds_tcp *t)
{
    for (uint32_t i = 0; i < t->board_count; i++) {
        struct xdsi_sent *r = xdsi_board_at(t, i);
        /* Karn: what a SACK had named is old by the time it is named again */
        const uint32_t again = r->marks & (XDSI_AGAIN | XDSI_SACKED) ? XDSI_AGAIN : 0;
        xdsi_board_mark(t, r, again | XDSI_LOST | (r->marks & XDSI_MANY));
    }
    t->reno = 0;
}

/* What was taken for lost was not: it is in the pipe again. */
void xdsi_board_regain(struct xds_tcp *t)
{
    for (uint32_t i = 0; i < t->board_count && t->lost; i++) {
        struct xdsi_sent *r = xdsi_board_at(t, i);
        if (r->marks & XDSI_LOST)
            xdsi_board_mark(t, r, r->marks & (XDSI_AGAIN | XDSI_MANY));
    }
}
