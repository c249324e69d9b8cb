/* tcp_congestion.c: how large the congestion window is (RFC 5681). */
#include "tcp_int.h"

#define UNBOUNDED (1ll << 40)

int64_t xdsi_cc_initial(const struct xds_tcp *t) /* RFC 6928 2 */
{
    return xdsi_min64(10 * t->mss, xdsi_max64(2 * t->mss, 14600));
}

void xdsi_cc_start(struct xds_tcp *t)
{
    t->ssthresh = UNBOUNDED;
    if (t->cfg.congestion == XDS_TCP_NO_CONGESTION)
        t->cwnd = UNBOUNDED;
    else
        t->cwnd = t->syn_timed_out ? t->mss : xdsi_cc_initial(t); /* RFC 5681 3.1 */
}

/* ssthresh after a loss (RFC 5681 3.1). flight may be more than cwnd while SACKs come in. */
int64_t xdsi_cc_reduced(struct xds_tcp *t, int64_t flight)
{
    if (t->cfg.congestion == XDS_TCP_NO_CONGESTION)
        return UNBOUNDED;
    return xdsi_max64(xdsi_min64(flight, t->cwnd) / 2, 2 * t->mss);
}

void xdsi_cc_undo(struct xds_tcp *t) {}

/* RFC 5681 3.1; only where the window is what holds us back (RFC 9293 has no word on it; RFC 7661 has). */
void xdsi_cc_acked(struct xds_tcp *t, const struct xdsi_heard *k)
{
    const int64_t mss = t->mss, most = t->phase == XDSI_LOSS ? mss : 2 * mss; /* RFC 3465 2.3 */

    if (t->cfg.congestion == XDS_TCP_NO_CONGESTION || k->pipe + mss <= t->cwnd)
        return;
    if (t->cwnd < t->ssthresh)
        t->cwnd += xdsi_min64(k->acked, most);
    else
        t->cwnd += xdsi_max64(mss * xdsi_min64(k->acked, mss) / t->cwnd, 1);
    t->cwnd = xdsi_min64(t->cwnd, UNBOUNDED);
}
