/* channel.c: what a packet of a channel is: in order, ahead, seen already, of an older run, the first of
 * a new one, or not ours. What waits and what is missing is channel_window.c's.
 *
 * Theory: the packet that everybody waits for takes one straight path through xds_channel_input():
 * nothing is missing, the session is the known one, the sequence is the next of the channel and of its
 * line. Everything else goes through classify(), which ends in exactly one counted outcome or leaves
 * the packet in c->pend. advance() then does all that needs no caller (give up, drop, begin a run, copy
 * the pending packet into a slot) until a block can be handed out or nothing is left to do; input(),
 * tick(), finish() and next() all end in it. xds/channel.h states the rules for restarts and wild jumps.
 */
#include "channel_int.h"

#define LIKELY(x)   __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

enum { READY_NONE = 0, READY_WORK = 1, READY_DIRECT = 2 };

static int config_ok(const struct xds_channel_config *g)
{
    int messages = g->session == XDS_SESSION_MOLD64 || g->session == XDS_SESSION_IEXTP;

    if (g->session < XDS_SESSION_PLAIN || g->session > XDS_SESSION_CME)
        return 0;
    if (g->framing < XDS_FRAMING_U16BE || g->framing > XDS_FRAMING_FIXED)
        return 0;
    if (messages && g->framing == XDS_FRAMING_FIXED) /* partly seen packets could not be cut */
        return 0;
    if (!g->lines || g->lines > XDS_LINES_MAX || g->start > XDS_START_FIRST || g->first_seq > XDSI_SEQ_MAX)
        return 0;
    if (!g->window_packets || g->window_packets > 65536 || (g->window_packets & (g->window_packets - 1)))
        return 0;
    if (!g->slot_bytes || g->slot_bytes > 65536 || g->window_ns < 0 || g->restart_ns < 0)
        return 0;
    if (!g->request_max)
        return 1;
    return g->session == XDS_SESSION_MOLD64 && g->request_max < 0xffff && g->retries && g->retry_ns > 0 &&
           g->give_up_ns > 0;
}

static size_t round_up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

size_t xds_channel_size(const struct xds_channel_config *cfg)
{
    if (!config_ok(cfg))
        return 0;
    size_t w = cfg->window_packets;
    return 64 + round_up(sizeof(struct xds_channel)) + round_up((w + 3) * sizeof(struct xdsi_gap)) +
           round_up(w * sizeof(struct xdsi_slot)) + round_up(2 * w * sizeof(uint32_t)) +
           round_up(w * sizeof(uint32_t)) + w * cfg->slot_bytes;
}

int xds_channel_init(void *mem, const struct xds_channel_config *cfg)
{
    struct xds_channel *c = mem;

    if (!config_ok(cfg))
        return XDS_ECONFIG;
    size_t w = cfg->window_packets;
    memset(c, 0, sizeof *c);
    c->cfg = *cfg;
    uint8_t *at = (uint8_t *)mem + round_up(sizeof *c);
    c->gaps = (struct xdsi_gap *)at;
    at += round_up((w + 3) * sizeof *c->gaps);
    c->slots = (struct xdsi_slot *)at;
    at += round_up(w * sizeof *c->slots);
    c->order = (uint32_t *)at;
    at += round_up(2 * w * sizeof *c->order);
    c->free_list = (uint32_t *)at;
    at += round_up(w * sizeof *c->free_list);
    c->slab = at;
    for (size_t i = 0; i < w; i++)
        c->free_list[i] = (uint32_t)(w - 1 - i);
    c->free_count = cfg->window_packets;
    c->held = XDSI_SLOT_NONE;
    c->session = cfg->session;
    c->lines = cfg->lines;
    c->far = (uint64_t)cfg->window_packets * XDS_CHANNEL_FAR;
    return 0;
}

static inline int parse(const struct xds_channel *c, const uint8_t *data, uint32_t len, struct xdsi_packet *p)
{
    switch (c->session) {
    case XDS_SESSION_MOLD64:
        return xdsi_parse_mold(data, len, p);
    case XDS_SESSION_IEXTP:
        return xdsi_parse_iextp(data, len, p);
    case XDS_SESSION_CME:
        return xdsi_parse_cme(data, len, p);
    default:
        return xdsi_parse_plain(data, len, p);
    }
}

/* The bytes that name a session: MoldUDP64 0..9; IEX-TP 0..11 without the reserved one. */
static inline void ident_of(const struct xds_channel *c, const uint8_t *data, uint8_t out[16])
{
    memset(out, 0, 16);
    if (c->session == XDS_SESSION_MOLD64)
        memcpy(out, data, 10);
    else if (c->session == XDS_SESSION_IEXTP) {
        memcpy(out, data, 12);
        out[1] = 0;
    }
}

static inline int same_ident(const struct xds_channel *c, const uint8_t *data)
{
    if (c->session == XDS_SESSION_MOLD64)
        return xdsi_le64(data) == xdsi_le64(c->ident) && xdsi_le16(data + 8) == xdsi_le16(c->ident + 8);
    if (c->session == XDS_SESSION_IEXTP)
        return (xdsi_le64(data) & ~0xff00ull) == xdsi_le64(c->ident) &&
               xdsi_le32(data + 8) == xdsi_le32(c->ident + 8);
    return 1;
}

/* ---- a stream begins ------------------------------------------------------------------------- */

static void begin_at(struct xds_channel *c, uint64_t next)
{
    for (unsigned i = 0; i < c->lines; i++)
        xdsi_line_begin(&c->line[i], c->joined ? c->top : c->line[i].expect, next);
    c->next_seq = c->top = c->join_seq = next;
    c->lost_count = 0;
    c->cand_on = 0;
    c->ended = 0;
    c->flags_on = 0;
    c->venue_max = c->run_ns = c->pend.venue_ns;
    c->run_seq = c->pend.seq;
    c->run_rx_ns = c->pend.rx_ns;
}

static void join(struct xds_channel *c, const uint8_t ident[16])
{
    memcpy(c->ident, ident, 16);
    begin_at(c, c->cfg.start == XDS_START_FIRST ? c->cfg.first_seq : c->pend.seq);
    c->joined = c->named = 1;
    xdsi_channel_post(c, XDS_EVENT_JOINED, c->pend.seq, 0);
}

/* The old run is drained: the pending packet is the first of the next one. Where it is not far past the
 * first sequence there can be, what lies between is a gap like any other. */
static void begin_run(struct xds_channel *c)
{
    uint64_t first = c->session == XDS_SESSION_PLAIN ? 0 : 1, old_top = c->top;
    uint64_t seq = c->pend.seq;
    int session = c->pend_begin == XDSI_BEGIN_SESSION;

    if (session) {
        memcpy(c->former[c->former_count++ % XDSI_FORMER], c->ident, 16);
        memcpy(c->ident, c->pend_ident, 16);
        c->cand_ident_on = 0;
        c->stats.sessions++;
    } else {
        c->stats.restarts++;
    }
    c->old_ns = c->venue_max;
    begin_at(c, seq >= first && seq - first <= c->cfg.window_packets ? first : seq);
    c->restarted = !session;
    c->run++;
    for (unsigned i = 0; i < c->lines; i++) /* plain: each line changes by itself */
        if (c->session != XDS_SESSION_PLAIN || i == c->pend.line)
            c->line[i].run = c->run;
    c->flags_once = XDS_BLOCK_RESTART;
    c->pend_begin = XDSI_BEGIN_NONE;
    xdsi_channel_post(c, session ? XDS_EVENT_SESSION : XDS_EVENT_RESTART, seq, session ? 0 : old_top);
}

/* ---- one packet, one outcome ----------------------------------------------------------------- */

/* c->pend belongs to this run: account for it; it is kept pending where something in it is new. */
static int place(struct xds_channel *c)
{
    struct xdsi_packet *p = &c->pend;
    struct xdsi_line *l = &c->line[p->line];
    uint64_t end = p->seq + p->units;
    int by_request = p->line == c->lines;

    c->pend_on = 0;
    if (p->venue_ns > c->venue_max && !by_request)
        c->venue_max = p->venue_ns;
    if (!by_request)
        xdsi_line_track(l, p->seq, end);
    if (p->kind != XDSI_PACKET_DATA) {
        if (p->seq > c->top)
            xdsi_channel_missing(c, p->seq);
        if (p->kind == XDSI_PACKET_END && !c->ended) {
            c->ended = 1;
            c->stats.ended++;
            xdsi_channel_post(c, XDS_EVENT_END, p->seq, 0);
        }
        return 0; /* counted by the caller: a heartbeat whatever comes of it */
    }
    if (!xdsi_channel_is_new(c, p->seq, end)) {
        int late = p->seq < c->join_seq || xdsi_channel_was_lost(c, p->seq, end);
        *(late ? &l->stats.late : &l->stats.duplicate) += 1;
        c->stats.retransmitted_useless += (uint64_t)by_request;
        return 0;
    }
    if (p->seq > c->next_seq && (p->len > c->cfg.slot_bytes || !c->free_count)) {
        if (p->len > c->cfg.slot_bytes || c->cfg.request_max) {
            if (end > c->top)
                xdsi_channel_missing(c, end);
            if (c->cfg.request_max)
                xdsi_channel_ask_now(c);
            l->stats.no_room++;
            c->stats.retransmitted_useless += (uint64_t)by_request;
            return XDS_ECAPACITY;
        }
        c->doom_head = 1; /* the window ends by count: the oldest gap is given up for this packet */
    }
    xdsi_channel_fill(c, p->seq, end, by_request);
    if (p->seq > c->top)
        xdsi_channel_missing(c, p->seq);
    if (end > c->top)
        c->top = end;
    c->pend_on = 1;
    return 0;
}

/* Do what needs no caller. 1: the first slot can be delivered, 2: the pending packet can, 0: neither. */
static int advance(struct xds_channel *c)
{
    struct xdsi_packet *p = &c->pend;

    for (;;) {
        const struct xdsi_slot *s = xdsi_channel_head(c);
        if (s && s->p.seq <= c->next_seq) {
            if (s->end > c->next_seq)
                return 1;
            c->line[s->p.line].stats.duplicate++; /* overtaken by overlapping packets */
            xdsi_channel_drop_head(c);
            continue;
        }
        if (c->pend_on && !c->pend_begin && p->seq <= c->next_seq) {
            if (p->seq + p->units > c->next_seq)
                return 2;
            c->line[p->line].stats.duplicate++;
            c->pend_on = 0;
            continue;
        }
        if (c->gap_count && c->gaps[0].first <= c->next_seq &&
            (c->flush || c->doom_head || xdsi_channel_head_expired(c))) {
            c->doom_head = 0;
            xdsi_channel_give_up_head(c);
            continue;
        }
        if (c->pend_on && c->pend_begin) { /* flush has emptied the window */
            begin_run(c);
            c->flush = 0;
            c->begin_rc = place(c);
            continue;
        }
        if (c->pend_on) {
            if (!c->free_count) {
                c->doom_head = 1;
                continue;
            }
            xdsi_channel_store(c, p);
            c->pend_on = 0;
            continue;
        }
        c->flush = c->doom_head = 0;
        c->calm = c->joined && c->next_seq == c->top;
        return 0;
    }
}

static int refuse(struct xds_channel *c, struct xdsi_line *l, int code)
{
    uint64_t *n = code == XDS_ETRUNC       ? &l->stats.truncated
                  : code == XDS_EMALFORMED ? &l->stats.malformed
                                           : &l->stats.foreign;
    *n += 1;
    if (l == &c->line[c->lines])
        c->stats.retransmitted_useless++;
    return code;
}

/* Another session name than the one that is followed: XDSI_BEGIN_SESSION or XDS_EFOREIGN. */
static int other_session(struct xds_channel *c, const struct xdsi_packet *p, const uint8_t ident[16])
{
    if (p->line == c->lines)
        return XDS_EFOREIGN;
    for (unsigned i = 0; i < XDSI_FORMER && i < c->former_count; i++)
        if (!memcmp(c->former[i], ident, 16))
            return XDS_EFOREIGN;
    if (c->session == XDS_SESSION_IEXTP) { /* same protocol and channel, another day */
        if (memcmp(c->ident, ident, 8) || p->venue_ns <= c->venue_max)
            return XDS_EFOREIGN;
        return XDSI_BEGIN_SESSION;
    }
    if (c->cfg.session_name[0])
        return XDS_EFOREIGN;
    if (p->seq <= 1 || (c->cand_ident_on && !memcmp(c->cand_ident, ident, 16) && p->seq > c->cand_ident_seq))
        return XDSI_BEGIN_SESSION;
    c->cand_ident_on = 1;
    c->cand_ident_seq = p->seq;
    memcpy(c->cand_ident, ident, 16);
    return XDS_EFOREIGN;
}

static int may_join(const struct xds_channel *c, const struct xdsi_packet *p, const uint8_t ident[16])
{
    if (p->line == c->lines)
        return 0;
    if (c->session == XDS_SESSION_IEXTP)
        return ident[0] == 1;
    if (c->session == XDS_SESSION_MOLD64 && c->cfg.session_name[0]) {
        char want[10];
        memcpy(want, c->cfg.session_name, 10);
        for (int i = 0; i < 10; i++) /* the wire pads with spaces, the configuration with NUL */
            if (want[i] != (char)ident[i] && !(want[i] == 0 && ident[i] == ' '))
                return 0;
    }
    return 1;
}

enum { RUN_THIS = 0, RUN_OLD = 1, RUN_NEXT = 2 };

/* IEX-TP and CME: the send time tells. */
static int run_by_time(const struct xds_channel *c, const struct xdsi_packet *p)
{
    if (c->restarted && p->venue_ns < c->run_ns && (p->seq > c->run_seq || p->venue_ns <= c->old_ns))
        return RUN_OLD;
    if (p->seq >= c->top || p->venue_ns <= c->venue_max ||
        (uint64_t)p->venue_ns - (uint64_t)c->venue_max < (uint64_t)c->cfg.restart_ns)
        return RUN_THIS;
    if (c->session == XDS_SESSION_CME && p->seq != 1 && c->top - p->seq <= c->cfg.window_packets)
        return RUN_THIS;
    return RUN_NEXT;
}

/* Plain: no time in the header, so each line's own sequence tells, and each line changes by itself. */
static int run_by_line(struct xds_channel *c, struct xdsi_packet *p)
{
    struct xdsi_line *l = &c->line[p->line];
    uint64_t window = c->cfg.window_packets, s = p->seq;
    int settled = p->rx_ns - c->run_rx_ns > c->cfg.window_ns;

    if (l->run != c->run) {
        int fell = s < l->tail_first && (s == 0 || l->tail_first - s > window);
        if (!fell && !settled && l->stats.packets > 1)
            return RUN_OLD;
        l->run = c->run;
        return RUN_THIS;
    }
    if (s >= l->expect)
        return RUN_THIS;
    if (s == 0 && (settled || l->expect > window))
        return RUN_NEXT;
    if (l->expect - s <= window)
        return RUN_THIS;
    if (s && l->fall_next == s)
        return RUN_NEXT;
    l->fall_next = s + 1;
    return RUN_THIS;
}

/* The plain sequence has 32 bits and may wrap: close to the next one it goes on counting. */
static uint64_t unwrap(uint64_t next, uint64_t raw)
{
    int32_t d = (int32_t)((uint32_t)raw - (uint32_t)next);

    if (d > -(1 << 28) && d < (1 << 28) && (d >= 0 || next >= (uint64_t) - (int64_t)d))
        return next + (uint64_t)(int64_t)d;
    return (next & ~0xffffffffull) | raw;
}

/* A packet far ahead is believed when another one goes on from it. */
static int is_wild(struct xds_channel *c, const struct xdsi_packet *p)
{
    uint64_t end = p->seq + p->units;

    if (p->seq <= c->top || p->seq - c->top <= c->far)
        return 0;
    if (p->kind != XDSI_PACKET_DATA)
        return 1;
    if (c->cand_on && p->seq >= c->cand_end && p->seq - c->cand_end <= c->cfg.window_packets) {
        c->cand_on = 0;
        return 0;
    }
    c->cand_on = 1;
    c->cand_end = end;
    return 1;
}

static void begin_with_pend(struct xds_channel *c, int how)
{
    c->pend_begin = (uint8_t)how;
    c->pend_on = c->flush = 1;
}

static int classify(struct xds_channel *c, const uint8_t *data)
{
    struct xdsi_packet *p = &c->pend;
    struct xdsi_line *l = &c->line[p->line];
    int messages = c->session == XDS_SESSION_MOLD64 || c->session == XDS_SESSION_IEXTP, rc, run = RUN_THIS;

    if (p->seq > XDSI_SEQ_MAX)
        return refuse(c, l, XDS_EMALFORMED);
    if (messages && p->kind == XDSI_PACKET_DATA &&
        (rc = xdsi_session_walk(c->cfg.framing, p->data, p->len, p->count)) < 0)
        return refuse(c, l, rc);
    if (!c->joined || !same_ident(c, data)) {
        uint8_t ident[16];
        ident_of(c, data, ident);
        if (!c->joined) {
            if (!may_join(c, p, ident))
                return refuse(c, l, XDS_EFOREIGN);
            join(c, ident);
        } else {
            if ((rc = other_session(c, p, ident)) < 0)
                return refuse(c, l, rc);
            memcpy(c->pend_ident, ident, 16);
            l->stats.heartbeat += p->kind != XDSI_PACKET_DATA;
            begin_with_pend(c, rc);
            return 0;
        }
    }
    if (c->session == XDS_SESSION_PLAIN) {
        p->seq = unwrap(c->next_seq, p->seq);
        run = run_by_line(c, p);
    } else if (c->session != XDS_SESSION_MOLD64 && p->line < c->lines) {
        run = run_by_time(c, p);
    }
    l->stats.heartbeat += p->kind != XDSI_PACKET_DATA;
    if (run == RUN_OLD) {
        xdsi_line_old_run(l, p->seq, p->seq + p->units);
        l->stats.late += p->kind == XDSI_PACKET_DATA;
        return 0;
    }
    if (run == RUN_NEXT) {
        if (c->session == XDS_SESSION_PLAIN)
            p->seq &= 0xffffffff;
        begin_with_pend(c, XDSI_BEGIN_RESTART);
        return 0;
    }
    if (is_wild(c, p))
        return p->kind == XDSI_PACKET_DATA ? refuse(c, l, XDS_EFOREIGN) : 0;
    return place(c);
}

/* The other line's copy, the commonest packet after the one in order: nothing waits, its line is in
 * order, all of it was delivered, and neither a restart, an older run nor a lost range can be meant. */
static inline int is_plain_duplicate(const struct xds_channel *c, const struct xdsi_line *l,
                                     const struct xdsi_packet *p)
{
    return c->calm && p->kind == XDSI_PACKET_DATA && p->seq == l->expect &&
           p->seq + p->units <= c->next_seq && p->seq >= c->join_seq && l->run == c->run &&
           p->venue_ns <= c->venue_max && p->venue_ns >= c->run_ns &&
           (!c->lost_count || p->seq >= c->lost[(c->lost_count - 1) % XDSI_LOST_KEPT].end);
}

int xds_channel_input(struct xds_channel *c, unsigned line, const uint8_t *data, uint32_t len, int64_t rx_ns,
                      int64_t now_ns)
{
    struct xdsi_packet *p = &c->pend;
    int rc;

    if (UNLIKELY(line > c->lines || c->ready))
        return XDS_ESTATE;
    struct xdsi_line *l = &c->line[line];
    l->stats.packets++;
    l->stats.bytes += len;
    rc = parse(c, data, len, p);
    if (UNLIKELY(rc)) {
        c->stats.retransmitted_packets += line == c->lines;
        return refuse(c, l, rc);
    }
    p->line = (uint8_t)line;
    p->rx_ns = rx_ns;
    if (LIKELY(c->calm && p->seq == c->next_seq && p->seq == l->expect && p->kind == XDSI_PACKET_DATA &&
               line < c->lines && p->venue_ns >= c->venue_max && l->run == c->run && same_ident(c, data) &&
               p->seq <= XDSI_SEQ_MAX)) {
        c->next_seq = c->top = l->expect = p->seq + p->units;
        c->venue_max = p->venue_ns;
        l->stats.won++;
        c->ready = READY_DIRECT;
        return 1;
    }
    if (LIKELY(is_plain_duplicate(c, l, p)) && line < c->lines && same_ident(c, data)) {
        l->expect = p->seq + p->units;
        l->stats.duplicate++;
        return 0;
    }
    c->now_ns = now_ns;
    xdsi_channel_unhold(c);
    c->stats.retransmitted_packets += line == c->lines;
    c->begin_rc = 0;
    rc = classify(c, data);
    c->ready = advance(c) ? READY_WORK : READY_NONE;
    return c->ready ? 1 : rc ? rc : c->begin_rc;
}

static int deliver(struct xds_channel *c, const struct xdsi_packet *p, struct xds_block *out)
{
    uint32_t skip = 0, units = (uint32_t)(c->next_seq - p->seq);

    if (units) { /* walked when it came: cannot fail */
        int n = xdsi_session_walk(c->cfg.framing, p->data, p->len, units);
        skip = n < 0 ? p->len : (uint32_t)n;
    }
    *out = (struct xds_block){
        .data = p->data + skip,
        .rx_ns = p->rx_ns,
        .venue_ns = p->venue_ns,
        .seq = p->seq + units,
        .len = p->len - skip,
        .count = p->count == XDSI_COUNT_NONE ? p->count : (uint16_t)(p->count - units),
        .line = p->line,
        .flags = (uint8_t)(c->flags_once | c->flags_on | (p->line == c->lines ? XDS_BLOCK_RECOVERED : 0)),
    };
    c->flags_once = 0;
    c->next_seq = p->seq + p->units;
    c->blocks++;
    c->messages += out->count == XDSI_COUNT_NONE ? 0 : out->count;
    return 1;
}

int xds_channel_next(struct xds_channel *c, struct xds_block *out)
{
    if (LIKELY(c->ready == READY_DIRECT)) {
        const struct xdsi_packet *p = &c->pend;
        c->ready = READY_NONE;
        out->data = p->data;
        out->rx_ns = p->rx_ns;
        out->venue_ns = p->venue_ns;
        out->seq = p->seq;
        out->len = p->len;
        out->count = p->count;
        out->line = p->line;
        out->flags = c->flags_once | c->flags_on;
        c->flags_once = 0;
        c->blocks++;
        c->messages += p->count == XDSI_COUNT_NONE ? 0 : p->count;
        return 1;
    }
    if (!c->ready)
        return 0;
    xdsi_channel_unhold(c);
    switch (advance(c)) {
    case 1:
        deliver(c, &xdsi_channel_head(c)->p, out);
        c->line[out->line].stats.won++;
        xdsi_channel_hold_head(c);
        return 1;
    case 2:
        c->pend_on = 0;
        c->line[c->pend.line].stats.won++;
        return deliver(c, &c->pend, out);
    default:
        c->ready = READY_NONE;
        return 0;
    }
}

void xds_channel_tick(struct xds_channel *c, int64_t now_ns)
{
    c->now_ns = now_ns;
    if (c->ready || !c->gap_count)
        return;
    xdsi_channel_unhold(c);
    c->ready = advance(c) ? READY_WORK : READY_NONE;
}

int xds_channel_event(struct xds_channel *c, struct xds_event *out)
{
    if (c->ev_head == c->ev_tail)
        return 0;
    *out = c->events[c->ev_head++ % XDSI_EVENTS];
    return 1;
}

void xds_channel_finish(struct xds_channel *c, int64_t now_ns)
{
    c->now_ns = now_ns;
    if (!c->joined || c->ready)
        return;
    for (unsigned i = 0; i < c->lines; i++)
        xdsi_line_track(&c->line[i], c->top, c->top);
    xdsi_channel_unhold(c);
    c->flush = 1;
    c->ready = advance(c) ? READY_WORK : READY_NONE;
}

void xds_channel_stats(const struct xds_channel *c, struct xds_channel_stats *out)
{
    *out = c->stats;
    out->blocks = c->blocks;
    out->messages = c->messages;
    out->next_seq = c->next_seq;
    out->gaps_open = c->gap_count;
    out->units_open = 0;
    for (uint32_t i = 0; i < c->gap_count; i++)
        out->units_open += c->gaps[i].end - c->gaps[i].first;
}

int xds_channel_line_stats(const struct xds_channel *c, unsigned line, struct xds_line_stats *out)
{
    if (line > c->lines)
        return XDS_ECONFIG;
    *out = c->line[line].stats;
    return 0;
}
