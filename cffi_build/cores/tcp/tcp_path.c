/* tcp_path.c: how large a segment may be: what both sides agreed on, less what the path takes, as somebody else
 * has found out (RFC 1191), or as timeouts show (a black hole: RFC 4821 7.5, RFC 2923 2.1).
 */
#include "tcp_int.h"

#define HOLE_TIMEOUTS 3            /* in a row, before a smaller segment is tried */
#define HOLE_LEAST    512          /* that passes everywhere: 552 bytes with both headers */
#define HOLE_NS       600000000000 /* then a larger one is tried again, as RFC 1191 6.3 has it */

/* Jumbo frames, Ethernet, tunnels (and IPv6's least), everything. */
static const uint16_t steps[] = {4312, 1460, 1240, HOLE_LEAST};

static uint32_t options(const struct xds_tcp *t)
{
    return t->stamps ? XDSI_STAMP_BYTES : 0;
}

/* What is out and would not pass is sent again at once. Nothing was lost by congestion: cwnd stays. */
static void cut(struct xds_tcp *t)
{
    bool any = false;

    for (uint32_t i = 0; i < t->board_count; i++) {
        struct xdsi_sent *r = xdsi_board_at(t, i);
        const int64_t bytes = xdsi_min64(r->from + r->len, t->snd_end) - r->from;
        if (bytes <= t->mss || r->marks & (XDSI_SACKED | XDSI_LOST))
            continue;
        xdsi_board_mark(t, r, r->marks | XDSI_LOST);
        any = true;
    }
    t->stats.path_cuts += any;
    if (!any || (t->phase != XDSI_OPEN && t->phase != XDSI_CWR))
        return;
    t->phase = XDSI_LOSS;
    t->recover = t->snd_nxt;
    t->undo_can = false;
    t->reno = 0;
    t->tlp_end = -1;
    t->tlp_due = t->rack_due = XDS_NEVER;
}

void xdsi_tcp_agreed(struct xds_tcp *t)
{
    const bool limited = t->hole == XDSI_HOLE_TRYING || t->hole == XDSI_HOLE_BELIEVED;
    int64_t mss = t->mss_agreed;
    const uint32_t before = t->mss;

    if (t->mss_path)
        mss = xdsi_min64(mss, (int64_t)t->mss_path - options(t));
    if (limited)
        mss = xdsi_min64(mss, (int64_t)t->hole_mss - options(t));
    t->mss = (uint32_t)xdsi_max64(mss, 16);
    if (t->mss < before)
        cut(t);
}

void xds_tcp_path(struct xds_tcp *t, uint32_t mss)
{
    t->mss_path = mss;
    xdsi_tcp_agreed(t);
}

/* A larger one vanished while smaller ones pass: believed. Else, after some in a row, the next step is tried. */
void xdsi_tcp_hole_timeout(struct xds_tcp *t, int64_t now)
{
    if (!t->board_count)
        return;
    const uint32_t size = (uint32_t)xdsi_min64(xdsi_board_at(t, 0)->len, t->mss) + options(t);
    if (t->hole == XDSI_HOLE_DOUBTED && size > t->hole_mss) {
        t->hole = XDSI_HOLE_BELIEVED;
        t->hole_until = now + HOLE_NS;
        t->stats.black_holes++;
    } else if (t->backoffs + 1 >= HOLE_TIMEOUTS && size > HOLE_LEAST) {
        uint32_t i = 0;
        if (t->hole != XDSI_HOLE_TRYING)
            t->hole_lost = size;
        while (steps[i] >= size)
            i++;
        t->hole_mss = steps[i];
        t->hole = XDSI_HOLE_TRYING;
        t->stats.hole_steps++;
    } else {
        return;
    }
    xdsi_tcp_agreed(t);
}

void xdsi_tcp_hole_acked(struct xds_tcp *t, int64_t now)
{
    if (t->hole == XDSI_HOLE_TRYING)
        t->hole = XDSI_HOLE_DOUBTED;
    else if (t->hole == XDSI_HOLE_BELIEVED && now >= t->hole_until)
        t->hole = XDSI_HOLE_NONE;
    else
        return;
    xdsi_tcp_agreed(t);
}

void xdsi_tcp_hole_passed(struct xds_tcp *t, uint32_t len)
{
    const uint32_t size = len + options(t);

    if (t->hole != XDSI_HOLE_DOUBTED)
        return;
    if (size >= t->hole_lost)
        t->hole = XDSI_HOLE_NONE;
    else if (size > t->hole_mss)
        t->hole_mss = size;
}
