/* tcp_congestion.c: how large the congestion window is: CUBIC (RFC 9438), NewReno (RFC 5681), or none.
 *
 * Before a loss, and up to ssthresh, all but `none` start slowly. Above it NewReno adds a segment a round trip;
 * CUBIC follows a cubic curve of the time since the last reduction, level around the window that was too much,
 * and is never slower than NewReno would be. The window grows only where it is what holds the sender back; the
 * curve's clock stands still meanwhile (RFC 9438 5.8).
 */
#include "tcp_int.h"

#define UNBOUNDED (1ll << 40)
#define C         0.4 /* RFC 9438 5: segments a second cubed */
#define BETA      0.7 /* 4.6 */
#define ALPHA     (3.0 * (1.0 - BETA) / (1.0 + BETA))

static bool none(const struct xds_tcp *t)
{
    return t->cfg.congestion == XDS_TCP_NO_CONGESTION;
}

int64_t xdsi_cc_initial(const struct xds_tcp *t) /* RFC 6928 2 */
{
    return xdsi_min64(10 * t->mss, xdsi_max64(2 * t->mss, 14600));
}

void xdsi_cc_start(struct xds_tcp *t)
{
    t->cubic = t->undo_cubic = (struct xdsi_cubic){0};
    t->ssthresh = UNBOUNDED;
    if (none(t))
        t->cwnd = UNBOUNDED;
    else
        t->cwnd = t->syn_timed_out ? t->mss : xdsi_cc_initial(t); /* RFC 5681 3.1 */
}

/* RFC 5681 4.1: after an idle time longer than the timeout nothing is known of the path any more. */
void xdsi_cc_idle(struct xds_tcp *t, int64_t now)
{
    if (!none(t) && t->sent_ns && now - t->sent_ns > t->rto)
        t->cwnd = xdsi_min64(t->cwnd, xdsi_cc_initial(t));
}

/* ssthresh after a loss (RFC 5681 3.1, 9438 4.6). flight may be more than cwnd while SACKs come in. */
int64_t xdsi_cc_reduced(struct xds_tcp *t, int64_t flight)
{
    const int64_t used = xdsi_min64(flight, t->cwnd);

    if (none(t))
        return UNBOUNDED;
    if (t->cfg.congestion == XDS_TCP_NEWRENO)
        return xdsi_max64(used / 2, 2 * t->mss);
    const double cwnd = (double)t->cwnd;
    t->undo_cubic = t->cubic;
    /* 4.7: less than the last time: another flow wants its share */
    t->cubic.w_max = cwnd < t->cubic.w_max ? cwnd * (1 + BETA) / 2 : cwnd;
    t->cubic.prior = cwnd;
    t->cubic.since = 0;
    return xdsi_max64((int64_t)((double)used * BETA), 2 * t->mss);
}

void xdsi_cc_undo(struct xds_tcp *t) /* RFC 9438 4.9 */
{
    t->cubic = t->undo_cubic;
    t->cubic.since = 0;
}

/* No libm for one function: Newton's, from above, a fixed number of times; x up to 2^40. */
static double cube_root(double x)
{
    double y = x > 1 ? x : 1;

    if (x <= 0)
        return 0;
    for (int i = 0; i < 80; i++)
        y -= (y - x / (y * y)) / 3;
    return y;
}

/* RFC 9438 4.2 to 4.4, in segments and seconds; the window after acked bytes came. */
static void cubic_avoidance(struct xds_tcp *t, int64_t acked, int64_t now)
{
    struct xdsi_cubic *c = &t->cubic;
    const double mss = t->mss, cwnd = (double)t->cwnd / mss, n = (double)acked / mss;

    if (!c->since) { /* 4.2: the curve begins here */
        c->since = now;
        c->estimate = cwnd;
        c->credit = 0;
        if (c->w_max / mss <= cwnd) {
            c->w_max = (double)t->cwnd;
            c->k = 0;
        } else {
            c->k = cube_root((c->w_max / mss - cwnd) / C);
        }
    }
    const double at = (double)(now - c->since) / XDSI_SECOND - c->k,
                 ahead = at + (double)t->srtt / XDSI_SECOND;
    const double curve = C * at * at * at + c->w_max / mss;
    double target = C * ahead * ahead * ahead + c->w_max / mss;
    target = target < cwnd ? cwnd : target > 1.5 * cwnd ? 1.5 * cwnd : target;
    c->estimate += (c->estimate * mss < c->prior ? ALPHA : 1.0) * n / cwnd; /* 4.3 */
    if (curve < c->estimate)
        target = c->estimate > cwnd ? c->estimate : cwnd;
    c->credit += curve < c->estimate ? (target - cwnd) * mss : (target - cwnd) / cwnd * (double)acked;
    const int64_t whole = (int64_t)c->credit;
    c->credit -= (double)whole;
    t->cwnd += whole;
}

/* New data has been acknowledged. */
void xdsi_cc_acked(struct xds_tcp *t, const struct xdsi_heard *k)
{
    const int64_t mss = t->mss, most = t->phase == XDSI_LOSS ? mss : 2 * mss; /* RFC 3465 2.3 */
    const int64_t pause = k->now - t->cubic.seen;

    if (none(t))
        return;
    t->cubic.seen = k->now;
    if (k->pipe + mss <= t->cwnd) { /* something else holds us back */
        if (t->cubic.since)
            t->cubic.since = xdsi_min64(t->cubic.since + pause, k->now);
        return;
    }
    if (t->cwnd < t->ssthresh)
        t->cwnd += xdsi_min64(k->acked, most);
    else if (t->cfg.congestion == XDS_TCP_NEWRENO)
        t->cwnd += xdsi_max64(mss * xdsi_min64(k->acked, mss) / t->cwnd, 1);
    else
        cubic_avoidance(t, k->acked, k->now);
    t->cwnd = xdsi_min64(t->cwnd, UNBOUNDED);
}
