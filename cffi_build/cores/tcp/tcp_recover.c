/* tcp_recover.c: how much may be in flight, and when to send again (RFC 5681, 6582, 6298). */
#include "tcp_int.h"

#define UNBOUNDED (1ll << 40)

/* RFC 6928 2, RFC 5681 3.1. */
void xdsi_tcp_start(struct xds_tcp *t)
{
    const int64_t mss = t->mss;

    t->cwnd = t->cfg.congestion == XDS_TCP_NO_CONGESTION ? UNBOUNDED
                                                         : xdsi_min64(10 * mss, xdsi_max64(2 * mss, 14600));
    if (t->syn_timed_out && t->cfg.congestion != XDS_TCP_NO_CONGESTION)
        t->cwnd = mss;
    t->ssthresh = UNBOUNDED;
    t->recover = 0;
    t->dupacks = 0;
    t->recovering = false;
}

/* RFC 6298 2. */
void xdsi_tcp_rtt(struct xds_tcp *t, int64_t r)
{
    r = xdsi_max64(r, 1);
    if (!t->srtt) {
        t->srtt = r;
        t->rttvar = r / 2;
    } else {
        int64_t off = t->srtt > r ? t->srtt - r : r - t->srtt;
        t->rttvar += (off - t->rttvar) / 4;
        t->srtt += (r - t->srtt) / 8;
    }
    t->rto =
        xdsi_min64(xdsi_max64(t->srtt + xdsi_max64(4 * t->rttvar, 1000000), t->cfg.rto_min_ns), XDSI_RTO_MAX);
}

static void halve(struct xds_tcp *t)
{
    t->ssthresh = xdsi_max64(xdsi_tcp_flight(t) / 2, 2 * (int64_t)t->mss);
}

/* RFC 5681 3.1; RFC 6582 3.2 steps 3 to 5. */
void xdsi_tcp_acked(struct xds_tcp *t, int64_t acked, int64_t now)
{
    const int64_t mss = t->mss;
    const bool none = t->cfg.congestion == XDS_TCP_NO_CONGESTION;

    t->dupacks = 0;
    if (t->recovering && t->snd_una < t->recover) { /* partial: the next hole begins at snd_una */
        t->rtx_one = true;
        if (!none)
            t->cwnd = xdsi_max64(t->cwnd - acked + (acked >= mss ? mss : 0), mss);
        return;
    }
    if (t->recovering) {
        t->recovering = false;
        if (!none)
            t->cwnd = xdsi_min64(t->ssthresh, xdsi_max64(xdsi_tcp_flight(t), mss) + mss);
        return;
    }
    if (none)
        return;
    if (t->cwnd < t->ssthresh)
        t->cwnd += xdsi_min64(acked, mss);
    else
        t->cwnd += xdsi_max64(mss * xdsi_min64(acked, mss) / t->cwnd, 1);
    t->cwnd = xdsi_min64(t->cwnd, UNBOUNDED);
}

/* RFC 5681 3.2, RFC 6582 3.2 steps 2 and 4. */
void xdsi_tcp_duplicate(struct xds_tcp *t)
{
    const int64_t mss = t->mss;
    const bool none = t->cfg.congestion == XDS_TCP_NO_CONGESTION;

    t->stats.duplicate_acks++;
    t->dupacks++;
    if (t->recovering) {
        if (!none)
            t->cwnd += mss;
        return;
    }
    if (t->dupacks != 3 || t->snd_una <= t->recover)
        return;
    halve(t);
    t->recover = t->snd_max;
    t->recovering = t->rtx_one = true;
    t->stats.fast_retransmits++;
    if (!none)
        t->cwnd = t->ssthresh + 3 * mss;
}

/* Everything from snd_una counts as lost; what is acknowledged after all moves snd_nxt on again. */
void xdsi_tcp_timeout(struct xds_tcp *t, int64_t now)
{
    t->stats.timeouts++;
    if (t->state >= XDS_TCP_ESTABLISHED && t->cfg.congestion != XDS_TCP_NO_CONGESTION) {
        if (!t->backoffs) /* 5681 3.1: once for a loss, however often it is sent again */
            halve(t);
        t->cwnd = t->mss;
    }
    t->backoffs++;
    if (t->state < XDS_TCP_ESTABLISHED)
        t->syn_timed_out = true;
    t->recover = t->snd_max;
    t->recovering = t->rtx_one = false;
    t->dupacks = 0;
    t->rtt_pos = -1; /* Karn: what is sent again is not timed */
    t->snd_nxt = t->snd_una;
    t->rto = xdsi_min64(2 * t->rto, XDSI_RTO_MAX);
    t->rtx_due = XDS_NEVER; /* set again by what is sent */
}
