/* tcp_out.c: one segment out, and the timers that ask for one. */
#include "tcp_int.h"

/* RTOs without progress, as long as which what is sent again puts the timeout off. Then its turn has come: who sends
 * again by RACK alone never learns that the path takes no such segment. */
#define PUT_OFF 4

/* What its header says, in host order. */
struct head {
    uint32_t seq, ack, window;
    uint8_t flags;
};

/* What one segment carries. */
struct out {
    int64_t from; /* position of its first byte */
    uint32_t len;
    uint8_t flags;
};

/* The window field; the edge moves by a segment or half the buffer at least (RFC 9293 3.8.6.2.2). Under data
 * of ours it is all of a buffer that has been read, which is no silly window: the field stays the same from
 * question to question, and a peer's header prediction goes by that (Linux looks closely at a segment that
 * changes it). A bare ACK keeps to the step, else who waits for room would see it in pieces of his size. */
static uint32_t window(struct xds_tcp *t, bool syn, uint32_t carries)
{
    const int64_t edge = xdsi_tcp_edge(t), step = xdsi_min64(t->cfg.receive_bytes / 2, t->cfg.mss);
    const uint32_t shift = syn ? 0 : t->rcv_shift;
    const bool answers = carries && t->rcv_read == t->rcv_nxt && edge > t->rcv_adv;

    if (edge - t->rcv_adv >= step || answers)
        t->rcv_adv = xdsi_min64(edge, t->rcv_nxt + (65535ll << shift));
    return (uint32_t)(xdsi_max64(t->rcv_adv - t->rcv_nxt, 0) >> shift);
}

static uint32_t write_stamps(struct xds_tcp *t, uint8_t *o, bool acks, int64_t now)
{
    o[0] = o[1] = 1, o[2] = 8, o[3] = 10;
    xdsi_put32(o + 4, xdsi_tcp_stamp(t, now));
    xdsi_put32(o + 8, acks ? t->ts_recent : 0);
    return XDSI_STAMP_BYTES;
}

/* SACK blocks into the bytes that are left; the pieces are named while there are any (RFC 2018 4). */
static uint32_t write_sack(struct xds_tcp *t, uint8_t *o, uint32_t room)
{
    struct xdsi_piece blocks[XDSI_TCP_BLOCKS];
    const uint32_t fit = room >= 12 ? (room - 4) / 8 : 0;
    const uint32_t n = xdsi_tcp_blocks(t, blocks, fit < XDSI_TCP_BLOCKS ? fit : XDSI_TCP_BLOCKS);

    if (!n)
        return 0;
    o[0] = o[1] = 1, o[2] = 5, o[3] = (uint8_t)(2 + 8 * n);
    for (uint32_t i = 0; i < n; i++) {
        xdsi_put32(o + 4 + 8 * i, t->irs + (uint32_t)blocks[i].from);
        xdsi_put32(o + 8 + 8 * i, t->irs + (uint32_t)blocks[i].to);
    }
    return 4 + 8 * n;
}

static uint32_t write_user_timeout(struct xds_tcp *t, uint8_t *o)
{
    o[0] = 28, o[1] = XDSI_UTO_BYTES;
    xdsi_put16(o + 2, xdsi_uto_word(t));
    t->uto_due = false;
    return XDSI_UTO_BYTES;
}

/* Those of a SYN. In the answer to one stands what the other side named too. */
static uint32_t write_options(struct xds_tcp *t, uint8_t *o, bool acks, int64_t now)
{
    uint32_t n = 4;

    o[0] = 2, o[1] = 4;
    xdsi_put16(o + 2, t->cfg.mss);
    if (!acks || t->peer_scales) {
        o[4] = 1, o[5] = 3, o[6] = 3, o[7] = t->ask_shift;
        n += 4;
    }
    if (acks ? t->sack : !t->cfg.no_sack) {
        o[n] = o[n + 1] = 1, o[n + 2] = 4, o[n + 3] = 2;
        n += 4;
    }
    if (acks ? t->stamps : !t->cfg.no_stamps)
        n += write_stamps(t, o + n, acks, now);
    if (t->cfg.user_timeout)
        n += write_user_timeout(t, o + n);
    return n;
}

/* The header's 20 bytes and the checksum over it, `len` bytes of segment of which `sum` is that of what lies
 * behind the header. From registers: reading back what was written a moment ago, in other pieces, waits until
 * it has left the store buffer. */
static int finish(struct xds_tcp *t, uint8_t *d, const struct head *h, uint32_t head, uint32_t len,
                  uint64_t sum)
{
    const uint32_t ports =
        __builtin_bswap16(t->cfg.local_port) | (uint32_t)__builtin_bswap16(t->cfg.remote_port) << 16;
    const uint32_t seq = __builtin_bswap32(h->seq), ack = __builtin_bswap32(h->ack);
    const uint32_t rest =
        head << 2 | (uint32_t)h->flags << 8 | (uint32_t)__builtin_bswap16((uint16_t)h->window) << 16;

    sum += t->pseudo + __builtin_bswap16((uint16_t)len);
    xdsi_put_raw32(d, ports);
    xdsi_put_raw32(d + 4, seq);
    xdsi_put_raw32(d + 8, ack);
    xdsi_put_raw32(d + 12, rest);
    xdsi_put_raw32(d + 16, (uint16_t)~xdsi_csum_fold(sum + ports + seq + ack + rest)); /* no urgent data */
    t->stats.sent++;
    return (int)len;
}

/* The stamp of a segment that is no SYN, and its share of the checksum. */
static uint64_t put_stamps(struct xds_tcp *t, uint8_t *o, bool acks, int64_t now)
{
    const uint32_t first = 0x0a080101, mine = __builtin_bswap32(xdsi_tcp_stamp(t, now)); /* as it lies */
    const uint32_t theirs = acks ? __builtin_bswap32(t->ts_recent) : 0;

    xdsi_put_raw32(o, first);
    xdsi_put_raw32(o + 4, mine);
    xdsi_put_raw32(o + 8, theirs);
    return (uint64_t)first + mine + theirs;
}

/* RFC 3168 6.1.3 to 6.1.5: marks are told with every ACK; only new data may be marked on its way. */
static void with_ecn(struct xds_tcp *t, struct out *s, bool fresh)
{
    if (t->ece)
        s->flags |= XDSI_ECE;
    if (!fresh || !s->len)
        return;
    t->tos |= XDSI_ECT;
    if (t->cwr_due)
        s->flags |= XDSI_CWR_FLAG;
    t->cwr_due = false;
}

/* What has come is acknowledged by the segment that is being built. */
static void told(struct xds_tcp *t)
{
    t->last_ack = t->rcv_nxt;
    t->ack_now = false;
    t->ack_due = XDS_NEVER;
    t->unacked = 0;
}

/* The payload, out of the send buffer, and its share of the checksum: one pass where it lies in one piece. */
static uint64_t put_text(const struct xds_tcp *t, uint8_t *o, const struct out *s)
{
    const uint32_t at = (uint32_t)(s->from - 1) & (t->cfg.send_bytes - 1), first = t->cfg.send_bytes - at;
    const bool ready = s->from == t->ready_from && s->len == t->ready_len;

    if (s->len <= first && !ready)
        return xdsi_csum_copy(0, o, t->tx + at, s->len);
    memcpy(o, t->tx + at, s->len < first ? s->len : first);
    if (first < s->len)
        memcpy(o + first, t->tx, s->len - first);
    return ready ? t->ready_sum : xdsi_csum_add(0, o, s->len);
}

static int build(struct xds_tcp *t, uint8_t *d, const struct out *s, int64_t mss, int64_t now)
{
    const bool syn = s->flags & XDSI_SYN, acks = s->flags & XDSI_ACK;
    const struct head h = {.seq = t->cfg.iss + (uint32_t)s->from,
                           .ack = acks ? t->irs + (uint32_t)t->rcv_nxt : 0,
                           .window = window(t, syn, s->len),
                           .flags = s->flags};
    uint32_t head = XDSI_TCP_BYTES;
    uint64_t sum = 0;

    if (syn) {
        const uint32_t n = write_options(t, d + head, acks, now);
        sum = xdsi_csum_add(0, d + head, n);
        head += n;
    } else if (t->stamps) {
        sum = put_stamps(t, d + head, acks, now);
        head += XDSI_STAMP_BYTES;
    }
    if (t->uto_due && !syn) {
        const uint32_t n = write_user_timeout(t, d + head);
        sum = xdsi_csum_add(sum, d + head, n);
        head += n;
    }
    if (t->sack && acks && !syn && (t->piece_count || t->twice.to)) {
        const int64_t left = xdsi_min64(mss - s->len, XDSI_TCP_HEAD_MAX - head);
        const uint32_t n = write_sack(t, d + head, (uint32_t)xdsi_max64(left, 0));
        sum = xdsi_csum_add(sum, d + head, n);
        head += n;
    }
    if (s->len)
        sum += put_text(t, d + head, s);
    if (acks)
        told(t);
    return finish(t, d, &h, head, head + s->len, sum);
}

static int build_reset(struct xds_tcp *t, uint8_t *d, int64_t now)
{
    uint32_t head = XDSI_TCP_BYTES;

    t->rst_due = false;
    t->stats.resets_sent++;
    const struct head h = {.seq = t->rst_seq,
                           .ack = t->rst_acks ? t->rst_ack : 0,
                           .flags = XDSI_RST | (t->rst_acks ? XDSI_ACK : 0)};
    uint64_t sum = 0;
    if (t->stamps) { /* RFC 7323 3.2 */
        sum = put_stamps(t, d + head, t->rst_acks, now);
        head += XDSI_STAMP_BYTES;
    }
    return finish(t, d, &h, head, head, sum);
}

/* Piece i, or as much of its start as a segment holds, is sent again. */
static void take_piece(struct xds_tcp *t, uint32_t i, int64_t mss, struct out *s, int64_t now)
{
    struct xdsi_sent *r = xdsi_board_at(t, i);

    if (r->len > mss)
        xdsi_board_split(t, i, r->from + mss);
    const int64_t end = xdsi_min64(r->from + r->len, t->snd_end);
    s->from = r->from;
    s->len = (uint32_t)xdsi_max64(xdsi_min64(end - r->from, mss), 0);
    if (t->fin_wanted && r->from + r->len > t->snd_end && s->from + s->len == t->snd_end)
        s->flags |= XDSI_FIN;
    r->ns = now;
    xdsi_board_mark(t, r, XDSI_AGAIN | (r->marks & XDSI_MANY));
    t->prr_out += r->len;
    t->stats.retransmits++;
    t->undo_bytes += r->len;
    if (t->undo_unsent) { /* the first of them: later ones say nothing about what is answered first */
        t->undo_unsent = false;
        t->undo_stamped = true;
        t->undo_stamp = xdsi_tcp_stamp(t, now);
    }
    if (r->from == t->snd_una && (t->rtx_due == XDS_NEVER || now - t->waiting_since < PUT_OFF * t->rto))
        t->rtx_due = now + t->rto;
}

/* The first lost piece, as far as cwnd allows. */
static bool pick_again(struct xds_tcp *t, int64_t mss, struct out *s, int64_t now)
{
    const int64_t pipe = xdsi_tcp_pipe(t);
    uint32_t i = 0;

    if (!t->lost)
        return false;
    if (t->board_count == t->board_cap)
        xdsi_board_squeeze(t);
    while (!(xdsi_board_at(t, i)->marks & XDSI_LOST))
        i++;
    xdsi_board_join(t, i, mss);
    const int64_t len = xdsi_board_at(t, i)->len; /* a full board cannot split it: all of it counts */
    if (pipe && pipe + (t->board_count == t->board_cap ? len : xdsi_min64(len, mss)) > t->cwnd)
        return false;
    take_piece(t, i, mss, s, now);
    return true;
}

/* A closed window is asked with one byte (RFC 9293 3.8.6.1). */
static bool pick_probe(struct xds_tcp *t, struct out *s)
{
    if (!t->probe_now || t->snd_wnd || xdsi_tcp_flight(t) || xdsi_tcp_total(t) == t->snd_una)
        return false;
    s->from = t->snd_una;
    s->len = t->snd_end > t->snd_una;
    if (!s->len)
        s->flags |= XDSI_FIN;
    t->stats.probes++;
    return true;
}

/* What the windows, Nagle and RFC 9293 3.8.6.2.1 allow. */
static bool pick_next(const struct xds_tcp *t, int64_t mss, struct out *s)
{
    const int64_t room = xdsi_min64(t->cwnd - xdsi_tcp_pipe(t), t->snd_una + t->snd_wnd - t->snd_nxt);
    const int64_t can = xdsi_min64(room, xdsi_tcp_total(t) - t->snd_nxt);

    if (can <= 0 || !xdsi_board_takes(t))
        return false;
    s->from = t->snd_nxt;
    s->len = (uint32_t)xdsi_max64(xdsi_min64(xdsi_min64(can, mss), t->snd_end - s->from), 0);
    if (t->fin_wanted && s->from + s->len == t->snd_end && can > s->len) {
        s->flags |= XDSI_FIN;
        return true;
    }
    if (s->len == mss || t->push_now)
        return true;
    if (s->from + s->len == t->snd_end)
        return !t->cfg.nagle || t->fin_wanted || (t->cfg.nagle == 1 && !xdsi_tcp_flight(t));
    return s->len >= t->max_wnd / 2;
}

/* RFC 8985 7.3: the tail is asked for with new data, else with its last segment. */
static bool pick_tail(struct xds_tcp *t, int64_t mss, struct out *s, int64_t now)
{
    if (!t->tlp_now || !t->board_count || t->phase != XDSI_OPEN)
        return false;
    t->tlp_now = false;
    t->stats.tail_probes++;
    t->rtx_due = now + t->rto;
    t->push_now = true;
    t->tlp_again = !pick_next(t, mss, s);
    if (!t->tlp_again) {
        t->tlp_end = s->from + s->len + !!(s->flags & XDSI_FIN);
        return false; /* it goes as what is next */
    }
    t->push_now = false;
    t->tlp_end = t->snd_nxt;
    t->tlp_flight = xdsi_tcp_flight(t);
    uint32_t last = t->board_count - 1;
    const struct xdsi_sent *r = xdsi_board_at(t, last);
    if (r->len > mss && xdsi_board_split(t, last, r->from + r->len - mss))
        last++;
    take_piece(t, last, mss, s, now);
    return true;
}

/* Bookkeeping of what takes sequence numbers and is not in the board yet. */
static void sent(struct xds_tcp *t, const struct out *s, bool moves, int64_t now)
{
    const int64_t end = s->from + s->len + !!(s->flags & (XDSI_SYN | XDSI_FIN));

    if (moves && !xdsi_tcp_flight(t) && !t->backoffs) /* a probe does not begin anew: nobody may be there */
        t->waiting_since = now;
    if (s->from < t->snd_max)
        t->stats.retransmits += moves;
    else
        t->syn_ns = s->flags & XDSI_SYN ? now : -1;
    if (end > t->snd_max)
        t->stats.sent_bytes +=
            s->len ? (uint64_t)(xdsi_min64(end, t->snd_end) - xdsi_max64(t->snd_max, s->from)) : 0;
    t->snd_max = xdsi_max64(t->snd_max, end);
    if (!moves)
        return;
    if (!(s->flags & XDSI_SYN)) {
        t->sent_ns = now;
        xdsi_board_add(t, s->from, end, now);
        t->prr_out += end - s->from;
    }
    t->snd_nxt = xdsi_max64(t->snd_nxt, end);
    t->probe_due = XDS_NEVER;
    if (t->rtx_due == XDS_NEVER)
        t->rtx_due = now + t->rto; /* RFC 6298 5.1 */
    xdsi_tlp_arm(t, now);
}

/* Nothing may go and nothing is out: only a probe can learn that the window has opened. */
static void arm_probe(struct xds_tcp *t, int64_t now)
{
    if (xdsi_tcp_flight(t) || xdsi_tcp_total(t) == t->snd_nxt || t->probe_due != XDS_NEVER)
        return;
    if (!t->backoffs && !t->probe_wait)
        t->waiting_since = now;
    t->probe_wait = xdsi_max64(t->probe_wait, t->rto);
    t->probe_due = now + t->probe_wait;
}

/* An ACK by itself: the highest number that the peer's window takes: after a timeout snd_nxt is an old one. */
static struct out bare_ack(const struct xds_tcp *t)
{
    return (struct out){.flags = (uint8_t)(t->ece ? XDSI_ACK | XDSI_ECE : XDSI_ACK),
                        .from = xdsi_min64(t->snd_max, xdsi_max64(t->snd_una + t->snd_wnd, t->snd_nxt))};
}

/* Bytes of payload that fit a segment with the options that are due. */
static int64_t text_max(const struct xds_tcp *t, uint32_t room)
{
    const int64_t once = t->uto_due ? XDSI_UTO_BYTES : 0;
    const int64_t options = once + (t->stamps ? XDSI_STAMP_BYTES : 0);

    return xdsi_min64(t->mss - once, room - XDSI_TCP_BYTES - options);
}

/* Half of all segments of who receives: straight to the header where a stamp is all that goes along. */
int xdsi_tcp_output_ack(struct xds_tcp *t, uint8_t *d, uint32_t room, int64_t now)
{
    const struct out s = bare_ack(t);
    uint32_t head = XDSI_TCP_BYTES;
    uint64_t sum = 0;

    if (room < XDSI_TCP_HEAD_MAX)
        return XDS_ECAPACITY;
    t->tos = (uint8_t)(t->cfg.dscp << 2);
    if (t->piece_count || t->twice.to || t->uto_due)
        return build(t, d, &s, text_max(t, room), now);
    const struct head h = {.seq = t->cfg.iss + (uint32_t)s.from,
                           .ack = t->irs + (uint32_t)t->rcv_nxt,
                           .window = window(t, false, 0),
                           .flags = s.flags};
    if (t->stamps) {
        sum = put_stamps(t, d + head, true, now);
        head += XDSI_STAMP_BYTES;
    }
    told(t);
    return finish(t, d, &h, head, head, sum);
}

static int send_data(struct xds_tcp *t, uint8_t *d, uint32_t room, int64_t now)
{
    const int64_t mss = text_max(t, room);
    struct out s = {.flags = XDSI_ACK};
    const bool sends = xdsi_tcp_sends(t);
    const bool apart =
        t->ack_now && t->sack && (t->piece_count || t->twice.to); /* data would leave no room */
    if (sends && !xdsi_tcp_flight(t))
        xdsi_cc_idle(t, now);
    const bool again = sends && !apart && (pick_again(t, mss, &s, now) || pick_tail(t, mss, &s, now));
    const bool probe = sends && !apart && !again && pick_probe(t, &s);

    if (again || probe || (sends && !apart && pick_next(t, mss, &s))) {
        if (t->ecn)
            with_ecn(t, &s, !again && !probe && s.from >= t->snd_max);
        if (!again)
            sent(t, &s, !probe, now);
        t->probe_now = t->push_now = t->keep_now = false;
        if (s.len && s.from + s.len == t->snd_end)
            s.flags |= XDSI_PSH;
        return build(t, d, &s, mss, now);
    }
    if (sends && !apart)
        arm_probe(t, now);
    if (t->keep_now && !xdsi_tcp_flight(t)) { /* a number that the peer has had, so that it answers */
        t->keep_now = false;
        t->stats.keepalives++;
        s = (struct out){.flags = XDSI_ACK, .from = t->snd_nxt - 1};
        return build(t, d, &s, mss, now);
    }
    if (!t->ack_now)
        return 0;
    s = bare_ack(t);
    return build(t, d, &s, mss, now);
}

int xds_tcp_output(struct xds_tcp *t, uint8_t *data, uint32_t room, int64_t now)
{
    if (room < XDSI_TCP_HEAD_MAX)
        return XDS_ECAPACITY;
    if (xdsi_tcp_only_ack(t))
        return xdsi_tcp_output_ack(t, data, room, now);
    t->tos = (uint8_t)(t->cfg.dscp << 2);
    if (t->rst_due)
        return build_reset(t, data, now);
    if (t->state == XDS_TCP_CLOSED || t->state == XDS_TCP_LISTEN)
        return 0;
    if (t->state >= XDS_TCP_ESTABLISHED)
        return send_data(t, data, room, now);

    struct out s = {.flags = t->state == XDS_TCP_SYN_SENT ? XDSI_SYN : XDSI_SYN | XDSI_ACK};
    if (!t->snd_nxt) {
        if (t->state == XDS_TCP_SYN_RECEIVED)
            s.flags |= t->ecn ? XDSI_ECE : 0;
        else if (t->cfg.ecn && !t->syn_timed_out) /* a path that drops such SYNs is taken without */
            s.flags |= XDSI_ECN;
        sent(t, &s, true, now);
        return build(t, data, &s, t->mss, now);
    }
    if (!t->ack_now)
        return 0;
    s = (struct out){.flags = XDSI_ACK, .from = t->snd_nxt};
    return build(t, data, &s, t->mss, now);
}

/* What build() changes is put back; the bytes are what happens to lie where the next ones will. */
int xds_tcp_warm(struct xds_tcp *t, uint8_t *data, uint32_t room, uint32_t len, int64_t now)
{
    const int64_t rcv_adv = t->rcv_adv, last_ack = t->last_ack, ack_due = t->ack_due;
    const uint64_t sent_before = t->stats.sent, dsacks = t->stats.dsacks_sent;
    const struct xdsi_piece twice = t->twice;
    const uint32_t unacked = t->unacked;
    const bool ack_now = t->ack_now, uto_due = t->uto_due;

    if (t->state != XDS_TCP_ESTABLISHED || room < XDSI_TCP_HEAD_MAX)
        return 0;
    const int64_t mss = xdsi_min64(t->mss, room - XDSI_TCP_HEAD_MAX);
    const int64_t most = xdsi_min64(mss, t->cfg.send_bytes);
    const struct out s = {.flags = XDSI_ACK | XDSI_PSH,
                          .from = xdsi_max64(t->snd_nxt, 1),
                          .len = (uint32_t)xdsi_min64(len, most)};
    const int bytes = build(t, data, &s, mss, now);
    t->rcv_adv = rcv_adv;
    t->last_ack = last_ack;
    t->ack_due = ack_due;
    t->stats.sent = sent_before;
    t->stats.dsacks_sent = dsacks;
    t->twice = twice;
    t->unacked = unacked;
    t->ack_now = ack_now;
    t->uto_due = uto_due;
    return bytes;
}

int64_t xds_tcp_deadline(const struct xds_tcp *t)
{
    return xdsi_tcp_due(t);
}

static bool gave_up(struct xds_tcp *t, int64_t now)
{
    if (now - t->waiting_since < t->give_up)
        return false;
    if (t->orphan)
        xds_tcp_abort(t); /* its peer may be there, with a closed window: nobody else would tell it */
    else
        xdsi_tcp_end(t);
    xdsi_tcp_event(t, XDS_TCP_EVENT_TIMEOUT, now);
    return true;
}

void xds_tcp_tick(struct xds_tcp *t, int64_t now)
{
    if (t->ack_due <= now) {
        t->ack_due = XDS_NEVER;
        t->ack_now = true;
    }
    if (t->wait_due <= now) {
        xdsi_tcp_end(t);
        return;
    }
    if (t->rack_due <= now)
        xdsi_rack_timeout(t, now);
    if (t->tlp_due <= now) {
        t->tlp_due = XDS_NEVER;
        t->tlp_now = true;
        t->rtx_due = xdsi_max64(t->rtx_due, now + 1); /* the probe first; it sets the timer anew */
    }
    if (t->rtx_due <= now && !gave_up(t, now))
        xdsi_tcp_timeout(t, now);
    if (t->keep_due <= now)
        xdsi_keep_timeout(t, now);
    if (t->probe_due <= now && !gave_up(t, now)) {
        t->probe_wait = xdsi_min64(2 * t->probe_wait, xdsi_tcp_wait_max(t));
        t->probe_due = now + t->probe_wait;
        *(t->snd_wnd ? &t->push_now : &t->probe_now) = true;
    }
}
