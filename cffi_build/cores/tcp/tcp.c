/* tcp.c: a connection's set-up, its buffers as the user sees them, its end. */
#include "tcp_int.h"

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
    return value ? value : otherwise;
}

static bool good_buffer(uint32_t bytes)
{
    return bytes >= 256 && bytes <= 1u << 30 && !(bytes & (bytes - 1));
}

/* Twice as many pieces as full segments fill the buffer; a power of two. */
uint32_t xdsi_board_pieces(const struct xds_tcp_config *cfg)
{
    const uint32_t fits = 2 * or_default(cfg->send_bytes, 65536) / or_default(cfg->mss, 1460);
    const uint32_t want = or_default(cfg->pieces, fits);
    uint32_t cap = 64;

    while (cap < want && cap < XDSI_TCP_BOARD)
        cap *= 2;
    return cap;
}

size_t xds_tcp_size(const struct xds_tcp_config *cfg)
{
    uint32_t tx = or_default(cfg->send_bytes, 65536), rx = or_default(cfg->receive_bytes, 65536);

    if (!good_buffer(tx) || !good_buffer(rx) || !xdsi_tcp_good(cfg))
        return 0;
    return sizeof(struct xds_tcp) + xdsi_board_pieces(cfg) * sizeof(struct xdsi_sent) + tx + rx;
}

/* IPv4 as ::ffff:a.b.c.d adds 0xffff, which is 0 in ones' complement: one sum for both families. */
void xdsi_tcp_pseudo(struct xds_tcp *t)
{
    uint64_t sum = xdsi_csum_add(XDSI_IPPROTO_TCP << 8, t->cfg.local, 16);
    t->pseudo = xdsi_csum_fold(xdsi_csum_add(sum, t->cfg.remote, 16));
}

void xdsi_tcp_quiet(struct xds_tcp *t)
{
    t->rack_due = t->tlp_due = t->rtx_due = t->probe_due = t->ack_due = t->wait_due = t->keep_due = XDS_NEVER;
    t->ack_now = t->probe_now = t->push_now = t->tlp_now = t->keep_now = t->uto_due = false;
}

void xdsi_tcp_open(struct xds_tcp *t)
{
    t->state = t->cfg.passive ? XDS_TCP_LISTEN : XDS_TCP_SYN_SENT;
    t->mss = t->mss_agreed = t->cfg.mss;
    t->hole = XDSI_HOLE_NONE;
    t->snd_shift = t->rcv_shift = 0;
    t->peer_scales = 0;
    t->stamps = t->sack = t->ecn = t->ece = t->cwr_due = false;
    t->twice = (struct xdsi_piece){0, 0};
    t->recent_count = 0;
    t->snd_una = t->snd_nxt = t->snd_max = 0;
    t->snd_wnd = t->snd_wl1 = t->snd_wl2 = t->max_wnd = 0;
    t->rcv_nxt = t->rcv_adv = t->last_ack = 0;
    t->rcv_read = 1;
    t->rcv_fin = t->syn_ns = t->tlp_end = t->dsack_round = -1;
    t->phase = XDSI_OPEN;
    t->reo_mult = 1;
    xdsi_board_clear(t);
    t->rto = XDSI_SECOND;
    xdsi_tcp_quiet(t);
    t->syn_timed_out = t->stalled = false;
}

int xds_tcp_init(void *mem, const struct xds_tcp_config *cfg)
{
    struct xds_tcp *t = mem;

    if (!xds_tcp_size(cfg))
        return XDS_ECONFIG;
    memset(t, 0, sizeof *t);
    t->cfg = *cfg;
    t->cfg.send_bytes = or_default(cfg->send_bytes, 65536);
    t->cfg.receive_bytes = or_default(cfg->receive_bytes, 65536);
    t->cfg.mss = cfg->mss ? cfg->mss : 1460;
    t->cfg.rto_min_ns = cfg->rto_min_ns ? cfg->rto_min_ns : XDSI_SECOND / 5;
    xdsi_tcp_defaults(&t->cfg);
    t->give_up = t->cfg.give_up_ns;
    t->cfg.msl_ns = cfg->msl_ns ? cfg->msl_ns : 30ll * XDSI_SECOND;
    t->board = (struct xdsi_sent *)(t + 1);
    t->board_cap = xdsi_board_pieces(cfg);
    t->tx = (uint8_t *)(t->board + t->board_cap);
    t->rx = t->tx + t->cfg.send_bytes;
    t->snd_end = 1;
    while (t->cfg.receive_bytes >> t->ask_shift > 65535)
        t->ask_shift++;
    xdsi_tcp_open(t);
    xdsi_tcp_pseudo(t);
    return 0;
}

void xdsi_tcp_event(struct xds_tcp *t, uint32_t kind, int64_t now)
{
    t->events[t->ev_tail++ % XDSI_TCP_EVENTS] = (struct xds_tcp_event){.ns = now, .kind = kind};
}

int xds_tcp_event(struct xds_tcp *t, struct xds_tcp_event *out)
{
    if (t->ev_head == t->ev_tail)
        return 0;
    *out = t->events[t->ev_head++ % XDSI_TCP_EVENTS];
    return 1;
}

void xdsi_tcp_end(struct xds_tcp *t)
{
    t->state = XDS_TCP_CLOSED;
    xdsi_tcp_quiet(t);
    xdsi_board_clear(t);
    t->snd_una = t->snd_nxt = t->snd_max = xdsi_tcp_total(t);
}

int64_t xdsi_tcp_edge(const struct xds_tcp *t)
{
    return t->rcv_read + t->cfg.receive_bytes;
}

static bool may_write(const struct xds_tcp *t)
{
    return !t->fin_wanted && t->state != XDS_TCP_CLOSED && t->state != XDS_TCP_LISTEN;
}

/* snd_una is 0 until the SYN is acknowledged: the first byte's place is 1. */
static int64_t room_left(const struct xds_tcp *t)
{
    return t->cfg.send_bytes - (t->snd_end - xdsi_max64(t->snd_una, 1));
}

int xds_tcp_reserve(struct xds_tcp *t, uint8_t **data)
{
    uint32_t at = (uint32_t)(t->snd_end - 1) & (t->cfg.send_bytes - 1);

    if (!may_write(t))
        return XDS_ESTATE;
    *data = t->tx + at;
    return (int)xdsi_min64(room_left(t), t->cfg.send_bytes - at);
}

int xds_tcp_commit(struct xds_tcp *t, uint32_t len)
{
    uint8_t *unused;
    int room = xds_tcp_reserve(t, &unused);

    if (room < 0)
        return room;
    if (len > (uint32_t)room)
        return XDS_ECAPACITY;
    t->snd_end += len;
    return 0;
}

int xds_tcp_write(struct xds_tcp *t, const uint8_t *data, uint32_t len)
{
    uint32_t done = 0;
    uint8_t *to;

    for (int piece = 0; piece < 2 && done < len; piece++) { /* up to the ring's end, then from its start */
        int room = xds_tcp_reserve(t, &to);
        if (room < 0)
            return room;
        uint32_t n = len - done < (uint32_t)room ? len - done : (uint32_t)room;
        memcpy(to, data + done, n);
        t->snd_end += n;
        done += n;
    }
    return (int)done;
}

void xds_tcp_prepare(struct xds_tcp_message *m, uint8_t *data, uint32_t len)
{
    *m = (struct xds_tcp_message){.data = data, .len = len, .sum = xdsi_csum_add(0, data, len)};
}

/* RFC 1624 3: the words that change go out of the sum, the new ones come in. Words begin at even places. */
int xds_tcp_patch(struct xds_tcp_message *m, uint32_t at, const uint8_t *bytes, uint32_t len)
{
    if (at > m->len || len > m->len - at)
        return XDS_ECAPACITY;
    const uint32_t from = at & ~1u, end = at + len < m->len ? (at + len + 1) & ~1u : m->len;
    const uint32_t span = end - from;
    const uint64_t out = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, m->data + from, span));

    if (len)
        memcpy(m->data + at, bytes, len);
    m->sum = xdsi_csum_fold(m->sum + out + xdsi_csum_add(0, m->data + from, span));
    return 0;
}

int xds_tcp_write_prepared(struct xds_tcp *t, const struct xds_tcp_message *m)
{
    if (!may_write(t))
        return XDS_ESTATE;
    if (!m->len || room_left(t) < m->len)
        return 0;
    t->ready_from = t->snd_end;
    t->ready_sum = m->sum;
    t->ready_len = m->len;
    return xds_tcp_write(t, m->data, m->len);
}

/* Behind the last byte that may be read: the FIN is none. */
static int64_t readable_end(const struct xds_tcp *t)
{
    int64_t end = xdsi_max64(t->rcv_nxt, 1);
    return t->rcv_fin >= 0 && end > t->rcv_fin ? t->rcv_fin : end;
}

int xds_tcp_peek(const struct xds_tcp *t, const uint8_t **data)
{
    uint32_t at = (uint32_t)(t->rcv_read - 1) & (t->cfg.receive_bytes - 1);

    *data = t->rx + at;
    return (int)xdsi_min64(readable_end(t) - t->rcv_read, t->cfg.receive_bytes - at);
}

/* RFC 9293 3.8.6.2.2: an open window is told when it has grown by a segment or half the buffer. */
int xds_tcp_consume(struct xds_tcp *t, uint32_t len)
{
    if (len > (uint64_t)(readable_end(t) - t->rcv_read))
        return XDS_ECAPACITY;
    t->rcv_read += len;
    bool receives =
        t->state == XDS_TCP_ESTABLISHED || t->state == XDS_TCP_FIN_WAIT_1 || t->state == XDS_TCP_FIN_WAIT_2;
    if (receives && xdsi_tcp_edge(t) - t->rcv_adv >= xdsi_min64(t->cfg.receive_bytes / 2, t->cfg.mss) &&
        t->rcv_adv - t->rcv_nxt < t->cfg.receive_bytes / 2)
        t->ack_now = true;
    return 0;
}

int xds_tcp_read(struct xds_tcp *t, uint8_t *data, uint32_t room)
{
    uint32_t done = 0;
    const uint8_t *from;

    for (int piece = 0; piece < 2; piece++) {
        uint32_t n = (uint32_t)xds_tcp_peek(t, &from);
        n = n < room - done ? n : room - done;
        memcpy(data + done, from, n);
        xds_tcp_consume(t, n);
        done += n;
    }
    return (int)done;
}

/* RFC 9293 3.10.4: the FIN follows what was written; before a connection is there it ends at once. */
int xds_tcp_close(struct xds_tcp *t)
{
    if (t->fin_wanted || t->state == XDS_TCP_CLOSED)
        return XDS_ESTATE;
    if (t->state == XDS_TCP_LISTEN || t->state == XDS_TCP_SYN_SENT) {
        xdsi_tcp_end(t);
        return 0;
    }
    t->fin_wanted = true;
    if (t->state == XDS_TCP_ESTABLISHED)
        t->state = XDS_TCP_FIN_WAIT_1;
    else if (t->state == XDS_TCP_CLOSE_WAIT)
        t->state = XDS_TCP_LAST_ACK;
    return 0;
}

/* RFC 9293 3.10.5. */
void xds_tcp_abort(struct xds_tcp *t)
{
    bool tell = t->state == XDS_TCP_SYN_RECEIVED ||
                (t->state >= XDS_TCP_ESTABLISHED && t->state <= XDS_TCP_CLOSE_WAIT);

    if (tell) {
        t->rst_due = t->rst_acks = true;
        t->rst_seq = t->cfg.iss + (uint32_t)t->snd_nxt;
        t->rst_ack = t->irs + (uint32_t)t->rcv_nxt;
    }
    xdsi_tcp_end(t);
}

void xds_tcp_info(const struct xds_tcp *t, struct xds_tcp_info *out)
{
    *out = (struct xds_tcp_info){.state = t->state,
                                 .mss = t->mss,
                                 .stamps = t->stamps,
                                 .sack = t->sack,
                                 .ecn = t->ecn,
                                 .cwnd = (uint64_t)t->cwnd,
                                 .ssthresh = (uint64_t)t->ssthresh,
                                 .in_flight = (uint64_t)xdsi_tcp_pipe(t),
                                 .send_window = (uint64_t)t->snd_wnd,
                                 .receive_window = (uint64_t)xdsi_max64(t->rcv_adv - t->rcv_nxt, 0),
                                 .unread = (uint64_t)(readable_end(t) - t->rcv_read),
                                 .srtt_ns = t->srtt,
                                 .rttvar_ns = t->rttvar,
                                 .rto_ns = t->rto,
                                 .rtt_min_ns = t->rtt_min,
                                 .outstanding = (uint64_t)xdsi_tcp_flight(t),
                                 .sacked = (uint64_t)(t->sacked + t->reno),
                                 .lost = (uint64_t)t->lost,
                                 .recovery = t->phase,
                                 .give_up_ns = t->give_up};
    if (t->state != XDS_TCP_CLOSED)
        out->unsent = (uint64_t)(t->snd_end - xdsi_max64(xdsi_min64(t->snd_nxt, t->snd_end), 1));
    for (uint32_t i = 0; i < t->piece_count; i++)
        out->disordered += (uint64_t)(t->pieces[i].to - t->pieces[i].from);
}

uint8_t xds_tcp_tos(const struct xds_tcp *t)
{
    return t->tos;
}

void xds_tcp_stats(const struct xds_tcp *t, struct xds_tcp_stats *out)
{
    *out = t->stats;
}
