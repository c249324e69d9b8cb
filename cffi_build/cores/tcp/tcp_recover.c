/* tcp_recover.c: what is lost, and what follows from it.
 *
 * With SACK: RACK-TLP (RFC 8985) by the time each piece was sent, a probe for the tail, cwnd by PRR (RFC 6937)
 * until what was out is acknowledged. Without: three duplicate ACKs (RFC 5681, 6582), each of which stands for
 * a segment that has left the pipe. After a timeout (RFC 6298) all is sent again from one segment on. What
 * turns out not to have been lost is undone: by the stamp of the first answer (Eifel, RFC 3522 and 4015), or
 * once DSACKs have named all that was sent again (RFC 3708).
 */
#include "tcp_int.h"

#define DUPTHRESH 3
#define TLP_ACK_DELAY                                                                                        \
    (XDSI_SECOND / 5)            /* RFC 8985 7.2: how long a peer may wait with the ACK of one segment */
#define TLP_MIN          2000000 /* peers' timers are no finer than this */
#define STALLED          3       /* retransmissions in a row (RFC 9293 3.8.3: R1) */
#define REO_MULT_PERSIST 16      /* recoveries (RFC 8985 6.2 step 4) */

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

/* What was sent once is timed in ns, by its oldest byte; what was sent again only a stamp can time, in its ticks
 * (RFC 7323 4.1). An echo is a bound too: without it, ACKs that were lost would be taken for a round trip. */
static void take_rtt(struct xds_tcp *t, const struct xdsi_heard *k)
{
    const int32_t ticks = (int32_t)(xdsi_tcp_stamp(t, k->now) - k->echo);
    const bool echoes = k->stamped && k->acked && ticks >= 0 && ticks < 600 * (XDSI_SECOND / XDSI_STAMP_NS);

    if (k->rtt_min >= 0)
        t->rtt_min = t->rtt_min ? xdsi_min64(t->rtt_min, k->rtt_min) : k->rtt_min;
    if (k->rtt >= 0 && !k->again)
        xdsi_tcp_rtt(t, echoes ? xdsi_min64(k->rtt, (ticks + 1ll) * XDSI_STAMP_NS) : k->rtt);
    else if (k->again && echoes)
        xdsi_tcp_rtt(t, xdsi_max64(ticks, 1) * XDSI_STAMP_NS);
}

/* RFC 8985 6.2 step 2: r, up to end, has come. */
void xdsi_rack_update(struct xds_tcp *t, const struct xdsi_sent *r, int64_t end, const struct xdsi_heard *k)
{
    const int64_t rtt = k->now - r->ns;

    /* Of what was sent again it may have been the first sending that came. A stamp tells only where the ACK moved on:
     * beside a hole each echo is of what came before it (RFC 7323 4.3), whatever a SACK names. */
    const bool told = k->stamped && !k->sacking;
    if (r->marks & XDSI_AGAIN &&
        (rtt < t->rtt_min || (told && (int32_t)(k->echo - xdsi_tcp_stamp(t, r->ns)) < 0)))
        return;
    t->rack_rtt = rtt;
    if (r->ns > t->rack_ns || (r->ns == t->rack_ns && end > t->rack_end)) {
        t->rack_ns = r->ns;
        t->rack_end = end;
    }
}

/* RFC 8985 6.2 step 4. */
static int64_t reorder_window(const struct xds_tcp *t)
{
    if (!t->reordering && (t->phase != XDSI_OPEN || t->sacked_count >= DUPTHRESH))
        return 0;
    return xdsi_min64(t->reo_mult * (t->rtt_min / 4), t->srtt);
}

static void count_dsack(struct xds_tcp *t, const struct xdsi_heard *k)
{
    if (t->dsack_round >= 0 && t->snd_una >= t->dsack_round)
        t->dsack_round = -1;
    if (k->dsack_bytes && t->dsack_round < 0) {
        t->dsack_round = t->snd_nxt;
        t->reo_mult += t->reo_mult < 255;
        t->reo_persist = REO_MULT_PERSIST;
    }
}

/* RFC 8985 6.2 step 5: lost is what was sent before something that has come, a round trip and a bit ago. */
static void detect(struct xds_tcp *t, int64_t now)
{
    const int64_t wait = t->rack_rtt + reorder_window(t);

    t->rack_due = XDS_NEVER;
    for (uint32_t i = 0; t->rack_ns && i < t->board_count; i++) {
        struct xdsi_sent *r = xdsi_board_at(t, i);
        const bool after = r->ns > t->rack_ns || (r->ns == t->rack_ns && r->from + r->len >= t->rack_end);
        if (after && !(r->marks & XDSI_AGAIN))
            return; /* so are all behind it */
        if (after || r->marks & (XDSI_SACKED | XDSI_LOST))
            continue;
        if (r->ns + wait <= now)
            xdsi_board_mark(t, r, r->marks | XDSI_LOST);
        else
            t->rack_due = xdsi_min64(t->rack_due, r->ns + wait);
    }
}

static void lose_head(struct xds_tcp *t)
{
    struct xdsi_sent *r = xdsi_board_at(t, 0);

    if (!t->board_count || r->marks & (XDSI_LOST | XDSI_AGAIN))
        return;
    if (r->len > t->mss)
        xdsi_board_split(t, 0, r->from + t->mss);
    xdsi_board_mark(t, r, XDSI_LOST);
}

/* Without SACK: RFC 5681 3.2, 6582 3.2. A duplicate ACK says that a segment has come, not which. */
static void count_duplicates(struct xds_tcp *t, struct xdsi_heard *k)
{
    const int64_t mss = t->mss;

    if (k->acked) {
        const int64_t known = xdsi_min64(t->reno, xdsi_max64(k->acked - mss, 0));
        t->reno = t->phase == XDSI_RECOVERY ? t->reno - known : 0;
        k->delivered = k->acked - known;
        t->dupacks = 0;
        if (t->phase == XDSI_RECOVERY) /* partial: the next hole begins at snd_una */
            lose_head(t);
    } else if (k->duplicate && t->phase != XDSI_LOSS) {
        t->dupacks++;
        t->reno = xdsi_max64(xdsi_min64(t->reno + mss, xdsi_tcp_flight(t) - mss), 0);
        k->delivered += mss;
        if (t->phase == XDSI_OPEN && t->dupacks == DUPTHRESH && t->snd_una > t->recover)
            lose_head(t);
    }
}

/* A reduction: what is needed to undo it, and RFC 6937 3's start. */
static void reduce(struct xds_tcp *t, enum xdsi_phase phase, int64_t flight)
{
    t->undo_cwnd = t->cwnd;
    t->undo_ssthresh = t->ssthresh;
    t->undo_from = t->snd_una;
    t->undo_bytes = 0;
    t->undo_can = phase != XDSI_CWR;
    t->undo_unsent = true;
    t->undo_stamped = false;
    t->ssthresh = xdsi_cc_reduced(t, flight);
    t->cwr_due = t->ecn; /* RFC 3168 6.1.2: whatever it was reduced for */
    t->phase = phase;
    t->recover = t->snd_nxt;
    t->prr_flight = xdsi_max64(xdsi_tcp_flight(t), 1);
    t->prr_delivered = t->prr_out = 0;
}

static void enter_recovery(struct xds_tcp *t, int64_t flight)
{
    t->stats.fast_retransmits++;
    t->tlp_end = -1;
    if (t->phase != XDSI_CWR) {
        reduce(t, XDSI_RECOVERY, flight);
        return;
    }
    t->phase = XDSI_RECOVERY; /* reduced in this round trip already */
    t->recover = t->snd_nxt;
}

/* RFC 6937 3: as much as ssthresh is of the flight for each byte that comes; below ssthresh a slow start. */
static void prr(struct xds_tcp *t, int64_t delivered)
{
    const int64_t pipe = xdsi_tcp_pipe(t);
    int64_t send;

    t->prr_delivered += delivered;
    if (t->cfg.congestion == XDS_TCP_NO_CONGESTION)
        return;
    if (pipe > t->ssthresh)
        send = (t->prr_delivered * t->ssthresh + t->prr_flight - 1) / t->prr_flight - t->prr_out;
    else
        send = xdsi_min64(t->ssthresh - pipe, xdsi_max64(t->prr_delivered - t->prr_out, delivered) + t->mss);
    if (!t->prr_out && t->phase == XDSI_RECOVERY)
        send = xdsi_max64(send, t->mss); /* what is lost goes again at once */
    t->cwnd = pipe + xdsi_max64(send, 0);
}

static void leave(struct xds_tcp *t)
{
    if (t->phase != XDSI_LOSS) {
        t->reno = 0;
        t->cwnd = xdsi_max64(t->ssthresh, xdsi_tcp_pipe(t));
    }
    if (t->phase == XDSI_RECOVERY && t->reo_mult > 1 && !--t->reo_persist)
        t->reo_mult = 1;
    t->phase = XDSI_OPEN;
}

/* RFC 4015 3.2 after a timeout: what is out, and a bit, as far as the old window. */
static void undo(struct xds_tcp *t, const struct xdsi_heard *k)
{
    const bool timeout = t->phase == XDSI_LOSS;

    xdsi_board_regain(t);
    t->reno = 0;
    if (t->cfg.congestion != XDS_TCP_NO_CONGESTION) {
        const int64_t enough = xdsi_tcp_pipe(t) + xdsi_min64(k->acked, xdsi_cc_initial(t));
        t->cwnd = xdsi_max64(t->cwnd, timeout ? xdsi_max64(enough, t->mss) : t->undo_cwnd);
        t->ssthresh = xdsi_max64(t->undo_ssthresh, t->undo_cwnd);
        xdsi_cc_undo(t);
    }
    t->phase = XDSI_OPEN;
    t->undo_can = false;
    t->stats.undone++;
}

/* Whether what was sent again need not have been. */
static bool spurious(struct xds_tcp *t, const struct xdsi_heard *k)
{
    if (!t->undo_can)
        return false;
    if (k->dsack_bytes && k->dsack_from >= t->undo_from && t->undo_bytes) {
        t->undo_bytes -= k->dsack_bytes;
        if (t->undo_bytes <= 0)
            return true;
    }
    if (!k->acked || !t->undo_stamped)
        return false;
    t->undo_stamped = false; /* the first acceptable ACK decides (RFC 3522 3.2) */
    return k->stamped && k->echo && t->phase != XDSI_OPEN && (int32_t)(k->echo - t->undo_stamp) < 0;
}

/* The DSACK is of the probe: some peers count a FIN in it, some do not. */
static bool dsack_of_tail(const struct xds_tcp *t, const struct xdsi_heard *k)
{
    const int64_t end = k->dsack_from + k->dsack_bytes;

    return k->dsack_bytes && (end == t->tlp_end || (end == t->snd_end && t->tlp_end == end + 1));
}

/* RFC 8985 7.4.2: a probe that repaired a loss hid it from the congestion control. What was lost was lost of what was
 * out then: less may be by now, and one segment's share would be a window of two. */
static void tail_answered(struct xds_tcp *t, const struct xdsi_heard *k)
{
    if (t->tlp_end < 0 || t->snd_una < t->tlp_end)
        return;
    if (!t->tlp_again || dsack_of_tail(t, k) || (!k->acked && k->duplicate && !k->blocks)) {
        t->tlp_end = -1;
    } else if (t->snd_una > t->tlp_end) {
        t->tlp_end = -1;
        if (t->phase == XDSI_OPEN)
            reduce(t, XDSI_CWR, t->tlp_flight);
    }
}

/* RFC 3168 6.1.2: once a window, as after a loss; and not for what was sent before our last word on it came. */
void xdsi_ecn_heard(struct xds_tcp *t, int64_t flight)
{
    if (t->phase != XDSI_OPEN || t->snd_una <= t->recover)
        return;
    t->stats.marks_told++;
    reduce(t, XDSI_CWR, flight);
    prr(t, 0);
}

/* RFC 8985 7.2. */
void xdsi_tlp_arm(struct xds_tcp *t, int64_t now)
{
    int64_t wait = t->srtt ? xdsi_max64(2 * t->srtt, TLP_MIN) : XDSI_SECOND;

    t->tlp_due = XDS_NEVER;
    if (!t->sack || t->phase != XDSI_OPEN || !t->board_count || t->sacked || t->lost || t->tlp_end >= 0)
        return;
    if (t->board_count == 1)
        wait += TLP_ACK_DELAY;
    t->tlp_due = xdsi_min64(now + wait, t->rtx_due);
}

/* An ACK has been taken into the board. */
void xdsi_tcp_heard(struct xds_tcp *t, struct xdsi_heard *k)
{
    const bool grows = t->phase == XDSI_OPEN || t->phase == XDSI_LOSS;

    take_rtt(t, k);
    if (k->acked &&
        xdsi_tcp_flight(t)) /* RFC 6298 5.3: by what was just measured, not as it was backed off */
        t->rtx_due = k->now + t->rto;
    t->stats.duplicate_acks += k->duplicate;
    count_dsack(t, k);
    tail_answered(t, k);
    if (spurious(t, k))
        undo(t, k);
    if (t->phase != XDSI_OPEN && t->snd_una >= t->recover)
        leave(t);
    if (t->sack)
        detect(t, k->now);
    else
        count_duplicates(t, k);
    if (t->lost && (t->phase == XDSI_OPEN || t->phase == XDSI_CWR))
        enter_recovery(t, k->flight);
    if (t->phase == XDSI_RECOVERY || t->phase == XDSI_CWR)
        prr(t, k->delivered);
    else if (k->acked && grows)
        xdsi_cc_acked(t, k);
    if (k->acked || t->sacked || t->phase != XDSI_OPEN)
        xdsi_tlp_arm(t, k->now);
}

/* RFC 8985 6.3: what was waited for has not come. */
void xdsi_rack_timeout(struct xds_tcp *t, int64_t now)
{
    detect(t, now);
    if (t->lost && (t->phase == XDSI_OPEN || t->phase == XDSI_CWR))
        enter_recovery(t, xdsi_tcp_flight(t));
    if (t->phase == XDSI_RECOVERY)
        prr(t, 0);
}

/* RFC 6298 5.4 to 5.7, RFC 5681 3.1. A loss reduces once, however often it is sent again. */
void xdsi_tcp_timeout(struct xds_tcp *t, int64_t now)
{
    t->stats.timeouts++;
    if (t->state >= XDS_TCP_ESTABLISHED) {
        xdsi_tcp_hole_timeout(t, now);
        if (t->phase == XDSI_OPEN || t->snd_una >= t->recover || (t->phase == XDSI_LOSS && !t->backoffs))
            reduce(t, XDSI_LOSS, xdsi_tcp_flight(t));
        t->phase = XDSI_LOSS;
        t->recover = t->snd_nxt;
        if (t->cfg.congestion != XDS_TCP_NO_CONGESTION)
            t->cwnd = t->mss;
        xdsi_board_lose_all(t);
    } else {
        t->syn_timed_out = true;
        t->syn_ns = -1; /* Karn: what is sent again is not timed */
        t->snd_nxt = t->snd_una;
    }
    if (++t->backoffs >= STALLED && !t->stalled) { /* R1 (RFC 9293 3.8.3) */
        t->stalled = true;
        if (t->ev_tail - t->ev_head < XDSI_TCP_EVENTS - 6)
            xdsi_tcp_event(t, XDS_TCP_EVENT_STALLED, now);
    }
    t->dupacks = 0;
    t->tlp_end = -1;
    t->tlp_due = t->rack_due = XDS_NEVER;
    t->rto = xdsi_max64(t->rto, xdsi_min64(2 * t->rto, xdsi_tcp_wait_max(t)));
    t->rtx_due = XDS_NEVER; /* set again by what is sent */
}
