/* tcp_in.c: one segment in: RFC 9293 3.10.7, with the checks of RFC 5961 and RFC 1337. */
#include "tcp_int.h"

/* RFC 5961 7: an answer to what may be forged, so many a second. */
static void challenge(struct xds_tcp *t, int64_t now)
{
    if (!t->challenge_since || now - t->challenge_since >= XDSI_SECOND) {
        t->challenge_since = now;
        t->challenges = 0;
    }
    if (t->challenges >= XDSI_TCP_CHALLENGES) {
        t->stats.challenges_held++;
        return;
    }
    t->challenges++;
    t->stats.challenges++;
    t->ack_now = true;
}

/* RFC 9293 3.5.2: the reset that a segment gets where no connection is. */
static void answer_reset(struct xds_tcp *t, const struct xdsi_in *s)
{
    t->rst_due = true;
    t->rst_acks = !(s->flags & XDSI_ACK);
    t->rst_seq = s->flags & XDSI_ACK ? s->ack : 0;
    t->rst_ack = s->seq + s->len + !!(s->flags & XDSI_SYN) + !!(s->flags & XDSI_FIN);
}

bool xdsi_tcp_options(struct xdsi_in *s, const uint8_t *o, uint32_t len)
{
    while (len && o[0] != 0) {
        if (o[0] == 1) {
            o++, len--;
            continue;
        }
        if (len < 2 || o[1] < 2 || o[1] > len)
            return false;
        if (o[0] == 2 && o[1] == 4)
            s->mss = xdsi_be16(o + 2);
        if (o[0] == 3 && o[1] == 3) {
            s->scales = true;
            s->shift = o[2] > 14 ? 14 : o[2]; /* RFC 7323 2.3 */
        }
        if (o[0] == 8 && o[1] == 10) {
            s->stamped = true;
            s->tsval = xdsi_be32(o + 2);
            s->tsecr = xdsi_be32(o + 6);
        }
        if (o[0] == 4 && o[1] == 2)
            s->sack_ok = true;
        if (o[0] == 28 && o[1] == 4)
            s->uto = xdsi_be16(o + 2);
        if (o[0] == 5 && o[1] >= 10 && o[1] % 8 == 2) {
            s->sack = o + 2;
            s->sack_count = (o[1] - 2u) / 8;
        }
        len -= o[1];
        o += o[1];
    }
    return true;
}

/* The reason to refuse, or 0. */
static enum xds_tcp_reason read_segment(const struct xds_tcp *t, const struct xds_tcp_segment *seg,
                                        struct xdsi_in *s)
{
    const uint8_t *d = seg->data;
    uint64_t sum = t->pseudo;

    if (seg->len < XDSI_TCP_BYTES || seg->len > 65535)
        return XDS_TCP_SHORT;
    const uint32_t head = (d[12] >> 4) * 4u;
    if (head < XDSI_TCP_BYTES || head > seg->len)
        return XDS_TCP_SHORT;
    if (memcmp(seg->dst, t->cfg.local, 16) || xdsi_be16(d + 2) != t->cfg.local_port)
        return XDS_TCP_OTHER;
    s->sport = xdsi_be16(d);
    if (t->state != XDS_TCP_LISTEN) {
        if (memcmp(seg->src, t->cfg.remote, 16) || s->sport != t->cfg.remote_port)
            return XDS_TCP_OTHER;
    } else {
        sum = xdsi_csum_add(XDSI_IPPROTO_TCP << 8, seg->src, 16);
        sum = xdsi_csum_fold(xdsi_csum_add(sum, seg->dst, 16));
    }
    if (!seg->checked &&
        xdsi_csum_fold(xdsi_csum_add(sum + __builtin_bswap16((uint16_t)seg->len), d, seg->len)) != 0xffff)
        return XDS_TCP_CHECKSUM;
    s->seq = xdsi_be32(d + 4);
    s->ack = xdsi_be32(d + 8);
    s->flags = d[13] & (31 | XDSI_ECN);
    s->marked = (seg->tos & 3) == XDSI_CE;
    s->wnd = xdsi_be16(d + 14);
    s->data = d + head;
    s->len = seg->len - head;
    return xdsi_tcp_options(s, d + XDSI_TCP_BYTES, head - XDSI_TCP_BYTES) ? 0 : XDS_TCP_OPTIONS;
}

/* What a SYN says of its sender. RFC 9293 3.7.1: 536 and 1220 where it names no size. */
static void take_syn(struct xds_tcp *t, const struct xdsi_in *s, int64_t now)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    const uint32_t silent = memcmp(t->cfg.remote, mapped, 12) ? 1220 : 536;
    const uint32_t theirs = s->mss ? s->mss : silent;

    t->mss = theirs < 64 ? 64 : theirs;
    t->mss = t->mss < t->cfg.mss ? t->mss : t->cfg.mss;
    t->stamps = s->stamped && !t->cfg.no_stamps;
    if (t->stamps) {
        t->mss -= XDSI_STAMP_BYTES; /* RFC 6691 2: the size that a SYN names counts no options */
        t->ts_recent = s->tsval;
        t->ts_recent_ns = now;
    }
    t->mss_agreed = t->mss;
    xdsi_tcp_agreed(t);
    t->sack = s->sack_ok && !t->cfg.no_sack;
    /* RFC 3168 6.1.1: a SYN has both flags, its answer ECE alone; not where our SYN went again without */
    t->ecn = t->cfg.ecn && !t->syn_timed_out &&
             (s->flags & XDSI_ECN) == (s->flags & XDSI_ACK ? XDSI_ECE : XDSI_ECN);
    if (s->uto)
        xdsi_uto_heard(t, s->uto);
    t->irs = s->seq;
    t->rcv_nxt = t->rcv_adv = 1;
    t->rcv_read = 1;
    t->peer_scales = s->scales;
    t->snd_shift = s->scales ? s->shift : 0;
    t->rcv_shift = s->scales ? t->ask_shift : 0;
    t->snd_wnd = t->max_wnd = s->wnd; /* never scaled in a SYN */
    t->snd_wl1 = 0;
}

void xdsi_tcp_cookie(struct xds_tcp *t, const struct xdsi_in *syn, int64_t now)
{
    take_syn(t, syn, now);
    t->state = XDS_TCP_SYN_RECEIVED;
    t->cookie = true; /* our stamp was none: no round trip can be taken from its echo */
    t->waiting_since = now;
    t->snd_nxt = t->snd_max = t->last_ack = 1;
    t->rcv_adv = 1 + xdsi_min64(t->cfg.receive_bytes, 65535);
}

static int in_listen(struct xds_tcp *t, const struct xds_tcp_segment *seg, const struct xdsi_in *s,
                     int64_t now)
{
    if (s->flags & XDSI_RST)
        return xdsi_tcp_drop(t, XDS_TCP_RESET_BAD, XDS_EFOREIGN);
    memcpy(t->cfg.remote, seg->src, 16); /* an answer goes there, whatever comes of it */
    t->cfg.remote_port = s->sport;
    xdsi_tcp_pseudo(t);
    if (s->flags & XDSI_ACK) {
        answer_reset(t, s);
        return xdsi_tcp_drop(t, XDS_TCP_ACK_BAD, XDS_EFOREIGN);
    }
    if (!(s->flags & XDSI_SYN))
        return xdsi_tcp_drop(t, XDS_TCP_NO_ACK, XDS_EFOREIGN);
    t->rst_due = false;
    take_syn(t, s, now);
    t->state = XDS_TCP_SYN_RECEIVED;
    t->waiting_since = now;
    return xdsi_tcp_taken(t);
}

static void established(struct xds_tcp *t, int64_t now)
{
    t->state = t->fin_wanted ? XDS_TCP_FIN_WAIT_1 : XDS_TCP_ESTABLISHED;
    xdsi_cc_start(t);
    t->heard_ns = now;
    xdsi_keep_arm(t, now);
    t->uto_due = t->cfg.user_timeout; /* RFC 5482 3: the SYN's may have got lost in a cookie */
    if (t->syn_timed_out)             /* RFC 6298 5.7 */
        t->rto = xdsi_max64(t->rto, 3ll * XDSI_SECOND);
    xdsi_tcp_event(t, XDS_TCP_EVENT_OPEN, now);
}

/* Back to LISTEN where a passive open is not through; nothing was told to the user. */
static bool listens_again(struct xds_tcp *t)
{
    if (t->state != XDS_TCP_SYN_RECEIVED || !t->cfg.passive)
        return false;
    t->snd_end = 1;
    t->fin_wanted = false;
    xdsi_tcp_open(t);
    return true;
}

/* Ended by the peer's reset. */
static int reset(struct xds_tcp *t, int64_t now)
{
    if (listens_again(t))
        return xdsi_tcp_taken(t);
    if (t->state != XDS_TCP_TIME_WAIT)
        xdsi_tcp_event(t, t->state < XDS_TCP_ESTABLISHED ? XDS_TCP_EVENT_REFUSED : XDS_TCP_EVENT_RESET, now);
    xdsi_tcp_end(t);
    return xdsi_tcp_taken(t);
}

static int64_t ack_position(const struct xds_tcp *t, uint32_t ack)
{
    return t->snd_una + (int32_t)(ack - (t->cfg.iss + (uint32_t)t->snd_una));
}

/* snd_una moves to a. */
static void acknowledge(struct xds_tcp *t, int64_t a, struct xdsi_heard *k)
{
    k->acked = a - t->snd_una;
    xdsi_board_acked(t, a, k);
    t->snd_una = a;
    t->snd_nxt = xdsi_max64(t->snd_nxt, a);
    t->backoffs = 0;
    t->stalled = false;
    t->waiting_since = k->now;
    if (__builtin_expect(t->hole, 0))
        xdsi_tcp_hole_acked(t, k->now);
    t->rtx_due = XDS_NEVER; /* RFC 6298 5.2; 5.3 is xdsi_tcp_heard()'s, which knows the new RTO */
}

/* Our SYN's: its round trip by our own clock, or by its stamp if it was sent again. */
static void syn_acknowledged(struct xds_tcp *t, const struct xdsi_in *s, int64_t now)
{
    const int32_t ticks = (int32_t)(xdsi_tcp_stamp(t, now) - s->tsecr);

    if (t->syn_ns >= 0)
        xdsi_tcp_rtt(t, now - t->syn_ns);
    else if (t->stamps && s->stamped && !t->cookie && ticks >= 0 &&
             ticks < 600 * (XDSI_SECOND / XDSI_STAMP_NS))
        xdsi_tcp_rtt(t, xdsi_max64(ticks, 1) * XDSI_STAMP_NS);
    t->syn_ns = -1;
}

/* RFC 2018 5, RFC 2883 5: the first block may lie below the ACK or inside the second: what came twice. */
static void take_blocks(struct xds_tcp *t, const struct xdsi_in *s, int64_t una, struct xdsi_heard *k)
{
    struct xdsi_piece first = {0, 0};

    for (uint32_t i = 0; i < s->sack_count; i++) {
        const uint32_t base = t->cfg.iss + (uint32_t)una;
        const struct xdsi_piece b = {una + (int32_t)(xdsi_be32(s->sack + 8 * i) - base),
                                     una + (int32_t)(xdsi_be32(s->sack + 8 * i + 4) - base)};
        t->stats.sack_blocks++;
        if (b.to <= b.from || b.to > t->snd_max || b.from < 1) {
            t->stats.sack_bad++;
            continue;
        }
        const bool within = i == 1 && first.to && first.from >= b.from && first.to <= b.to;
        if ((i == 0 && b.to <= t->snd_una) || within) {
            k->dsack_from = within ? first.from : b.from;
            k->dsack_bytes = within ? first.to - first.from : b.to - b.from;
            t->stats.dsacks++;
        }
        if (i == 0)
            first = b;
        if (b.from >= t->snd_una && b.to <= t->snd_nxt)
            xdsi_board_sacked(t, b.from, b.to, k);
        else if (b.to > t->snd_una)
            t->stats.sack_bad++;
    }
}

/* RFC 9293 3.10.7.3. */
static int in_syn_sent(struct xds_tcp *t, const struct xdsi_in *s, int64_t now)
{
    const int64_t a = ack_position(t, s->ack);
    struct xdsi_heard k = {.now = now};

    if (s->flags & XDSI_ACK && (a < 1 || a > t->snd_max)) {
        if (!(s->flags & XDSI_RST))
            answer_reset(t, s);
        return xdsi_tcp_drop(t, XDS_TCP_ACK_BAD, XDS_EFOREIGN);
    }
    if (s->flags & XDSI_RST)
        return s->flags & XDSI_ACK ? reset(t, now) : xdsi_tcp_drop(t, XDS_TCP_RESET_BAD, XDS_EFOREIGN);
    if (!(s->flags & XDSI_SYN))
        return xdsi_tcp_drop(t, XDS_TCP_NO_ACK, XDS_EFOREIGN);
    take_syn(t, s, now);
    if (s->flags & XDSI_ACK) {
        acknowledge(t, a, &k);
        syn_acknowledged(t, s, now);
        t->snd_wl2 = a;
        established(t, now);
        t->ack_now = true;
    } else { /* both opened: our SYN goes again, with an ACK */
        t->state = XDS_TCP_SYN_RECEIVED;
        t->snd_nxt = 0;
        t->syn_ns = -1;
    }
    return xdsi_tcp_taken(t);
}

/* RFC 9293 3.10.7.4, first; an empty segment at the right edge is what a peer that filled the window sends. */
static bool acceptable(const struct xds_tcp *t, const struct xdsi_in *s, int64_t seq_len)
{
    const int64_t wnd = xdsi_max64(t->rcv_adv - t->rcv_nxt, 0);

    if (!seq_len)
        return s->p >= t->rcv_nxt && s->p <= t->rcv_nxt + wnd;
    return wnd && s->p + seq_len > t->rcv_nxt && s->p < t->rcv_nxt + wnd;
}

/* Fifth: false where the ACK is of nothing that we sent, or too old. */
static bool take_ack(struct xds_tcp *t, const struct xdsi_in *s, int64_t now)
{
    const int64_t a = ack_position(t, s->ack);
    const int64_t wnd = (int64_t)s->wnd << t->snd_shift, una = t->snd_una;
    struct xdsi_heard k = {.now = now,
                           .pipe = xdsi_tcp_pipe(t),
                           .flight = xdsi_tcp_flight(t),
                           .rtt = -1,
                           .rtt_min = -1,
                           .echo = s->tsecr,
                           .stamped = t->stamps && s->stamped,
                           .blocks = s->sack_count > 0};

    if (a > t->snd_max || a < t->snd_una - t->max_wnd) { /* RFC 5961 5.2 */
        challenge(t, now);
        return false;
    }
    if (a < t->snd_una)
        return true;
    k.duplicate =
        a == t->snd_una && xdsi_tcp_flight(t) && !s->len && !(s->flags & XDSI_FIN) && wnd == t->snd_wnd;
    if (a > t->snd_una)
        acknowledge(t, a, &k);
    if (t->sack && s->sack_count)
        take_blocks(t, s, una, &k);
    if (k.acked || k.duplicate || k.delivered || k.dsack_bytes)
        xdsi_tcp_heard(t, &k);
    if (s->flags & XDSI_ECE && t->ecn && k.acked)
        xdsi_ecn_heard(t, k.flight);
    if (!t->snd_wnd && !t->orphan)
        t->waiting_since = now; /* a closed window may stay closed for as long as the peer answers */
    /* an ACK of new data is new, whatever its number; else what it acknowledges would move the edge */
    if (a > una || t->snd_wl1 < s->p || (t->snd_wl1 == s->p && t->snd_wl2 <= a)) {
        t->snd_wnd = wnd;
        t->max_wnd = xdsi_max64(t->max_wnd, wnd);
        t->snd_wl1 = s->p;
        t->snd_wl2 = a;
        if (wnd) {
            t->probe_due = XDS_NEVER;
            t->probe_wait = 0;
        }
    }
    return true;
}

/* What follows from the ACK of our FIN. */
static void fin_acknowledged(struct xds_tcp *t, int64_t now)
{
    if (!t->fin_wanted || t->snd_una < xdsi_tcp_total(t))
        return;
    if (t->state == XDS_TCP_FIN_WAIT_1)
        t->state = XDS_TCP_FIN_WAIT_2;
    else if (t->state == XDS_TCP_CLOSING)
        xdsi_tcp_time_wait(t, now);
    else if (t->state == XDS_TCP_LAST_ACK) {
        xdsi_tcp_event(t, XDS_TCP_EVENT_CLOSED, now);
        xdsi_tcp_end(t);
    }
}

/* Sent again because our ACK was lost: R3 would leave such a segment out, and the ACK that it gets would echo
 * the first time it was sent, an outage for a round trip. No older than a window: else it may be forged. */
static bool again(const struct xds_tcp *t, const struct xdsi_in *s, int64_t seq_len)
{
    return seq_len && s->p + seq_len <= t->rcv_nxt && s->p >= t->rcv_nxt - t->cfg.receive_bytes;
}

/* Outside the window: an ACK, unless it is a reset. A closed window still takes ACKs (RFC 9293 3.10.7.4). */
static int outside(struct xds_tcp *t, const struct xdsi_in *s, int64_t seq_len, int64_t now)
{
    if (s->flags & XDSI_RST)
        return xdsi_tcp_drop(t, XDS_TCP_WINDOW, XDS_EFOREIGN);
    if (t->state == XDS_TCP_TIME_WAIT && s->flags & XDSI_FIN && s->p + seq_len == t->rcv_nxt)
        xdsi_tcp_time_wait(t, now); /* the peer's FIN again: our ACK was lost */
    else if (t->state != XDS_TCP_SYN_RECEIVED && s->flags & XDSI_ACK && t->rcv_adv == t->rcv_nxt &&
             s->p == t->rcv_nxt && take_ack(t, s, now))
        fin_acknowledged(t, now);
    if (t->state == XDS_TCP_CLOSED)
        return xdsi_tcp_drop(t, XDS_TCP_WINDOW, XDS_EFOREIGN);
    if (again(t, s, seq_len) && s->len)
        xdsi_tcp_twice(t, s->p, s->p + s->len);
    if (seq_len)
        t->ack_now = true;
    else
        challenge(t, now);
    return xdsi_tcp_drop(t, XDS_TCP_WINDOW, XDS_EFOREIGN);
}

/* RFC 7323 5.3 R1: the reason to refuse a segment for its stamp, or 0. Resets pass (5.2). */
static enum xds_tcp_reason stale(const struct xds_tcp *t, const struct xdsi_in *s, int64_t now)
{
    if (!t->stamps || s->flags & XDSI_RST)
        return 0;
    if (!s->stamped)
        return s->flags & XDSI_SYN ? 0 : XDS_TCP_NO_STAMP;
    if ((int32_t)(s->tsval - t->ts_recent) >= 0 || now - t->ts_recent_ns > XDSI_STAMP_OLD)
        return 0;
    return XDS_TCP_PAWS;
}

/* RFC 3168 6.1.3: the peer has heard of the marks; here is another one. */
static void take_mark(struct xds_tcp *t, const struct xdsi_in *s)
{
    if (s->flags & XDSI_CWR_FLAG)
        t->ece = false;
    if (s->marked && s->len) {
        t->stats.marks_seen++;
        t->ece = true;
    }
}

/* RFC 9293 3.10.7.4: every state from SYN-RECEIVED on. */
static int in_others(struct xds_tcp *t, struct xdsi_in *s, int64_t now)
{
    const int64_t seq_len = s->len + !!(s->flags & XDSI_SYN) + !!(s->flags & XDSI_FIN);
    const enum xds_tcp_reason old = stale(t, s, now);

    s->p = t->rcv_nxt + (int32_t)(s->seq - (t->irs + (uint32_t)t->rcv_nxt));
    if (old == XDS_TCP_NO_STAMP) /* not a word (RFC 7323 3.2) */
        return xdsi_tcp_drop(t, old, XDS_EFOREIGN);
    if (old) {
        if (s->len && again(t, s, seq_len)) /* a copy of what came: a DSACK says so */
            xdsi_tcp_twice(t, s->p, s->p + s->len);
        if (seq_len)
            t->ack_now = true;
        else
            challenge(t, now);
        return xdsi_tcp_drop(t, old, XDS_EFOREIGN);
    }
    const bool fits = acceptable(t, s, seq_len);
    t->heard_ns = now;
    if (t->stamps && s->stamped && s->p <= t->last_ack && (fits || again(t, s, seq_len))) { /* 5.3 R3 */
        t->ts_recent = s->tsval;
        t->ts_recent_ns = now;
    }
    if (!fits)
        return outside(t, s, seq_len, now);
    if (s->flags & XDSI_RST) {
        if (t->state == XDS_TCP_TIME_WAIT) /* RFC 1337 3: ignored */
            return xdsi_tcp_drop(t, XDS_TCP_RESET_BAD, XDS_EFOREIGN);
        if (s->p == t->rcv_nxt)
            return reset(t, now);
        challenge(t, now);
        return xdsi_tcp_drop(t, XDS_TCP_RESET_BAD, XDS_EFOREIGN);
    }
    if (s->flags & XDSI_SYN) {
        if (!listens_again(t))
            challenge(t, now);
        return xdsi_tcp_drop(t, XDS_TCP_SYN_BAD, XDS_EFOREIGN);
    }
    if (!(s->flags & XDSI_ACK))
        return xdsi_tcp_drop(t, XDS_TCP_NO_ACK, XDS_EFOREIGN);
    if (t->state == XDS_TCP_SYN_RECEIVED) {
        const int64_t a = ack_position(t, s->ack);
        if (a <= t->snd_una || a > t->snd_max) {
            answer_reset(t, s);
            return xdsi_tcp_drop(t, XDS_TCP_ACK_BAD, XDS_EFOREIGN);
        }
        syn_acknowledged(t, s, now);
        established(t, now);
    }
    if (!take_ack(t, s, now))
        return xdsi_tcp_drop(t, XDS_TCP_ACK_BAD, XDS_EFOREIGN);
    if (s->uto)
        xdsi_uto_heard(t, s->uto);
    if (t->ecn)
        take_mark(t, s);
    fin_acknowledged(t, now);
    if (t->state == XDS_TCP_TIME_WAIT && seq_len) /* its peer has not heard that all has come */
        t->ack_now = true;
    if (t->state != XDS_TCP_ESTABLISHED && t->state != XDS_TCP_FIN_WAIT_1 && t->state != XDS_TCP_FIN_WAIT_2)
        return xdsi_tcp_taken(t);
    return xdsi_tcp_data(t, s, now);
}

/* ---- the usual segment --------------------------------------------------------------------------- */

/* Whether it is one of an established connection at rest in the other ways: in order, no hole, no FIN, flags
 * ACK or ACK and PSH, no option but the stamp where Linux and we write it, inside the window, its ACK neither
 * old nor of what was not sent. What is then left of the rules above is in take_usual(). */
static bool is_usual(const struct xds_tcp *t, const struct xds_tcp_segment *seg, struct xdsi_in *s)
{
    static const uint8_t stamp[4] = {1, 1, 8, 10};
    const uint32_t head = XDSI_TCP_BYTES + (t->stamps ? XDSI_STAMP_BYTES : 0);
    const uint8_t *d = seg->data;

    if (t->state != XDS_TCP_ESTABLISHED || t->piece_count || t->twice.to || t->rcv_fin >= 0)
        return false;
    if (seg->len <= head || (xdsi_raw16(d + 12) & ~(XDSI_PSH << 8)) != (head << 2 | XDSI_ACK << 8) ||
        (seg->tos & 3) == XDSI_CE)
        return false;
    if (t->stamps) {
        s->tsval = xdsi_be32(d + 24);
        s->tsecr = xdsi_be32(d + 28);
        if (memcmp(d + XDSI_TCP_BYTES, stamp, sizeof stamp) || (int32_t)(s->tsval - t->ts_recent) < 0)
            return false;
    }
    s->seq = xdsi_be32(d + 4);
    s->ack = xdsi_be32(d + 8);
    s->len = seg->len - head;
    const int64_t a = ack_position(t, s->ack);
    return s->seq == t->irs + (uint32_t)t->rcv_nxt && t->rcv_nxt + s->len <= t->rcv_adv && a >= t->snd_una &&
           a <= t->snd_max;
}

static int take_usual(struct xds_tcp *t, const struct xds_tcp_segment *seg, struct xdsi_in *s, int64_t now)
{
    s->data = seg->data + seg->len - s->len;
    s->wnd = xdsi_be16(seg->data + 14);
    s->p = t->rcv_nxt;
    s->stamped = t->stamps;
    s->flags = XDSI_ACK;
    t->stats.received++;
    t->heard_ns = now;
    if (t->stamps && s->p <= t->last_ack) { /* RFC 7323 5.3 R3 */
        t->ts_recent = s->tsval;
        t->ts_recent_ns = now;
    }
    if (s->ack == t->cfg.iss + (uint32_t)t->snd_una && t->snd_wnd &&
        (int64_t)s->wnd << t->snd_shift == t->snd_wnd) {
        t->snd_wl1 = s->p;
        t->snd_wl2 = t->snd_una;
        t->probe_due = XDS_NEVER;
        t->probe_wait = 0;
    } else {
        take_ack(t, s, now);
    }
    return xdsi_tcp_ordered(t, s, now);
}

int xds_tcp_input(struct xds_tcp *t, const struct xds_tcp_segment *seg, int64_t now)
{
    static const int codes[XDS_TCP_REASONS] = {[XDS_TCP_SHORT] = XDS_ETRUNC,
                                               [XDS_TCP_CHECKSUM] = XDS_EMALFORMED,
                                               [XDS_TCP_OPTIONS] = XDS_EMALFORMED,
                                               [XDS_TCP_OTHER] = XDS_EFOREIGN};
    struct xdsi_in s = {0};

    if (seg->checked && is_usual(t, seg, &s))
        return take_usual(t, seg, &s, now);
    const enum xds_tcp_reason refused = read_segment(t, seg, &s);
    t->stats.received++;
    if (refused)
        return xdsi_tcp_drop(t, refused, codes[refused]);
    switch (t->state) {
    case XDS_TCP_CLOSED:
        if (!(s.flags & XDSI_RST))
            answer_reset(t, &s);
        return xdsi_tcp_drop(t, XDS_TCP_NO_STATE, XDS_EFOREIGN);
    case XDS_TCP_LISTEN:
        return in_listen(t, seg, &s, now);
    case XDS_TCP_SYN_SENT:
        return in_syn_sent(t, &s, now);
    default:
        return in_others(t, &s, now);
    }
}
