/* stack_io.c: segments in and out, timers, and what follows from them. */
#include "stack_int.h"

#define TRAIL_ROOM (XDSI_TRAIL_ROOM6 + XDSI_TCP_HEAD_MAX)

/* ---- what has changed ---------------------------------------------------------------------------- */

static uint32_t bits_of(struct xds_tcp *t)
{
    static const uint32_t bits[] = {
        [XDS_TCP_EVENT_OPEN] = XDS_STACK_OPEN,       [XDS_TCP_EVENT_FIN] = XDS_STACK_FIN,
        [XDS_TCP_EVENT_CLOSED] = XDS_STACK_CLOSED,   [XDS_TCP_EVENT_RESET] = XDS_STACK_RESET,
        [XDS_TCP_EVENT_REFUSED] = XDS_STACK_REFUSED, [XDS_TCP_EVENT_TIMEOUT] = XDS_STACK_TIMEOUT,
        [XDS_TCP_EVENT_STALLED] = XDS_STACK_STALLED,
    };
    struct xds_tcp_event e;
    uint32_t what = 0;

    if (t->ev_head == t->ev_tail)
        return 0;
    while (xds_tcp_event(t, &e))
        if (e.kind < sizeof bits / sizeof bits[0])
            what |= bits[e.kind];
    return what;
}

/* Half the buffer is free. */
static bool has_room(const struct xds_tcp *t)
{
    return t->snd_end - xdsi_max64(t->snd_una, 1) <= t->cfg.send_bytes / 2;
}

static struct xdsi_addr hop_to(struct xds_stack *s, const uint8_t remote[16], int64_t now)
{
    const struct xdsi_addr a = xdsi_addr_of(remote);
    struct xdsi_hop6 hop6;
    struct xdsi_hop hop;

    if (!xdsi_addr_is4(a))
        return xdsi_host_route6(s->host, a, &hop6, now) ? hop6.ip : XDSI_NO_HOP;
    return xdsi_host_route(s->host, xdsi_addr_ip4(a), &hop) ? xdsi_addr4(hop.ip) : XDSI_NO_HOP;
}

/* The listener's user may accept it. */
static void queue(struct xds_stack *s, struct xdsi_conn *c)
{
    struct xdsi_listener *l = &s->listeners[c->listener];
    const uint32_t place = xdsi_place(s, c);

    l->queued++;
    c->queued = c->owned = true; /* news are kept for who accepts it */
    xdsi_conn_hand(s, c, l->given);
    c->next = XDSI_NOWHERE;
    *(l->first == XDSI_NOWHERE ? &l->first : &s->conns[l->last].next) = place;
    l->last = place;
    s->acceptable = true;
}

/* Nobody reads what comes (RFC 2525 2.17), and a peer that never closes is not waited for. */
static void look_at_orphan(struct xds_stack *s, struct xdsi_conn *c, struct xds_tcp *t, int64_t now)
{
    const uint8_t *unread;

    if (t->state != XDS_TCP_CLOSED && t->state != XDS_TCP_TIME_WAIT && xds_tcp_peek(t, &unread) > 0) {
        xds_tcp_abort(t);
        xdsi_ready(s, c);
    }
    if (t->state == XDS_TCP_FIN_WAIT_2 && c->orphan_due == XDS_NEVER)
        c->orphan_due = now + s->cfg.orphan_ns;
    else if (t->state != XDS_TCP_FIN_WAIT_2)
        c->orphan_due = XDS_NEVER;
    xdsi_conn_waits(s, c, t->state == XDS_TCP_TIME_WAIT);
}

void xdsi_look(struct xds_stack *s, struct xdsi_conn *c, int64_t now)
{
    struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    if (t->ev_head == t->ev_tail && t->state == XDS_TCP_ESTABLISHED && c->owned && !c->wants_room &&
        c->listener == XDSI_NOWHERE) { /* as after most segments */
        xdsi_conn_time(s, c);
        return;
    }
    uint32_t what = bits_of(t);
    const bool half_open = c->listener != XDSI_NOWHERE && !c->queued;

    if (half_open && what & XDS_STACK_OPEN)
        queue(s, c);
    if (c->wants_room && has_room(t)) {
        c->wants_room = false;
        what |= XDS_STACK_WRITABLE;
    }
    if (what & XDS_STACK_STALLED) /* RFC 9293 3.8.3: at R1 */
        xdsi_neighbour_doubt(s->host, hop_to(s, c->ends.remote, now), now);
    xdsi_tell(s, c, what, now);
    if (!c->owned && c->listener == XDSI_NOWHERE)
        s->stats.orphans_timed_out += !!(what & XDS_STACK_TIMEOUT);
    if (!c->owned && c->listener == XDSI_NOWHERE)
        look_at_orphan(s, c, t, now);
    if (half_open && t->state == XDS_TCP_LISTEN) /* its peer took the SYN back */
        xds_tcp_close(t);
    if (t->state != XDS_TCP_CLOSED || t->rst_due) {
        xdsi_conn_time(s, c);
        return;
    }
    xdsi_conn_forget(s, c);
    if (!c->owned)
        xdsi_conn_free(s, c);
}

/* ---- segments in --------------------------------------------------------------------------------- */

static int refuse(struct xds_stack *s, enum xds_stack_reason reason, int code)
{
    s->stats.reasons[reason]++;
    return code;
}

/* RFC 9293 3.5.2, group 1. */
static int stray(struct xds_stack *s, const struct xdsi_ends *ends, const uint8_t *d, uint32_t len)
{
    const uint32_t text = len - (d[12] >> 4) * 4u, flags = d[13];

    if (flags & XDSI_RST)
        return refuse(s, XDS_STACK_STRAY_RESET, XDS_EFOREIGN);
    if (s->reset_count == s->cfg.resets) {
        s->stats.resets_lost++;
    } else {
        const bool acked = flags & XDSI_ACK;
        s->resets[(s->reset_first + s->reset_count++) % s->cfg.resets] = (struct xdsi_reset){
            .ends = *ends,
            .acks = !acked,
            .seq = acked ? xdsi_be32(d + 8) : 0,
            .ack = acked ? 0 : xdsi_be32(d + 4) + text + !!(flags & XDSI_SYN) + !!(flags & XDSI_FIN)};
    }
    return refuse(s, XDS_STACK_NO_CONNECTION, XDS_EFOREIGN);
}

static struct xdsi_listener *listener_of(struct xds_stack *s, const struct xdsi_ends *ends)
{
    const uint32_t family = xdsi_is_ip4(ends->local) ? XDS_STACK_IP4 : XDS_STACK_IP6;
    struct xdsi_listener *any = NULL;

    for (uint32_t i = 0; i < s->cfg.listeners; i++) {
        struct xdsi_listener *l = &s->listeners[i];
        if (!l->id || l->port != ends->local_port)
            continue;
        if (l->any & family)
            any = l;
        else if (!memcmp(l->local, ends->local, 16))
            return l;
    }
    return any;
}

/* No room for a SYN: a cookie, or else the reason. */
static int cookie(struct xds_stack *s, struct xdsi_listener *l, const struct xdsi_ends *ends,
                  const uint8_t *d, enum xds_stack_reason reason, int64_t now)
{
    if (!xdsi_cookie_answer(s, l, ends, d, now))
        return refuse(s, reason, XDS_ECAPACITY);
    return refuse(s, XDS_STACK_COOKIE, 0);
}

/* An ACK of a cookie: the connection is as if it had been there since its SYN. */
static int open_by_cookie(struct xds_stack *s, struct xdsi_listener *l, const struct xdsi_ends *ends,
                          const struct xds_tcp_segment *seg, const struct xdsi_in *syn, int64_t now)
{
    struct xds_tcp_config cfg = l->how;

    if (l->queued >= l->backlog) /* it will ask again, with what it writes */
        return refuse(s, XDS_STACK_BACKLOG, XDS_ECAPACITY);
    cfg.iss = syn->ack;
    cfg.mss = xdsi_mss_to(s, ends->remote, cfg.mss);
    struct xdsi_conn *c = xdsi_conn_make(s, ends, &cfg);
    if (!c)
        return refuse(s, XDS_STACK_FULL, XDS_ECAPACITY);
    c->listener = (uint32_t)(l - s->listeners);
    c->hops = l->hops;
    l->pending++;
    s->stats.reasons[XDS_STACK_TAKEN]++;
    s->stats.cookies_taken++;
    xdsi_tcp_cookie(xdsi_tcp_of(s, xdsi_place(s, c)), syn, now);
    const int code = xds_tcp_input(xdsi_tcp_of(s, xdsi_place(s, c)), seg, now);
    xdsi_ready(s, c);
    xdsi_look(s, c, now);
    return code;
}

/* A SYN for a listener. number: the first that may be used; 0: as ever. */
static int open_passive(struct xds_stack *s, struct xdsi_listener *l, const struct xdsi_ends *ends,
                        const struct xds_tcp_segment *seg, uint32_t number, int64_t now)
{
    struct xds_tcp_config cfg = l->how;

    if (l->queued >= l->backlog)
        return refuse(s, XDS_STACK_BACKLOG, XDS_ECAPACITY);
    if (l->pending >= l->backlog)
        return cookie(s, l, ends, seg->data, XDS_STACK_BACKLOG, now);
    cfg.iss = number ? number : xdsi_first_number(s, ends, now);
    cfg.mss = xdsi_mss_to(s, ends->remote, cfg.mss);
    struct xdsi_conn *c = xdsi_conn_make(s, ends, &cfg);
    if (!c)
        return cookie(s, l, ends, seg->data, XDS_STACK_FULL, now);
    c->listener = (uint32_t)(l - s->listeners);
    c->hops = l->hops;
    l->pending++;
    s->stats.reasons[XDS_STACK_TAKEN]++;
    const int code = xds_tcp_input(xdsi_tcp_of(s, xdsi_place(s, c)), seg, now);
    xdsi_ready(s, c);
    xdsi_look(s, c, now);
    return code;
}

static int no_connection(struct xds_stack *s, const struct xdsi_ends *ends, const struct xds_tcp_segment *seg,
                         uint32_t number, int64_t now)
{
    const uint8_t flags = seg->data[13] & (XDSI_SYN | XDSI_ACK | XDSI_RST | XDSI_FIN);
    struct xdsi_listener *l = listener_of(s, ends);

    if (l && !(flags & (XDSI_SYN | XDSI_ACK | XDSI_RST))) /* RFC 9293 3.10.7.2, fourth: not answered */
        return refuse(s, XDS_STACK_NO_CONNECTION, XDS_EFOREIGN);
    struct xdsi_in syn;
    if (l && (flags & ~(unsigned)XDSI_FIN) == XDSI_ACK && xdsi_cookie_taken(s, l, ends, seg->data, now, &syn))
        return open_by_cookie(s, l, ends, seg, &syn, now);
    return l && flags == XDSI_SYN ? open_passive(s, l, ends, seg, number, now)
                                  : stray(s, ends, seg->data, seg->len);
}

/* The time stamp of a segment; false: it has none. */
static bool stamp_of(const uint8_t *d, uint32_t *stamp)
{
    const uint8_t *o = d + XDSI_TCP_BYTES, *end = d + (d[12] >> 4) * 4u;

    while (o < end && *o) {
        if (*o == 1) {
            o++;
            continue;
        }
        if (end - o < 2 || o[1] < 2 || o[1] > end - o)
            return false;
        if (o[0] == 8 && o[1] == 10) {
            *stamp = xdsi_be32(o + 2);
            return true;
        }
        o += o[1];
    }
    return false;
}

/* RFC 9293 3.10.7.4, MAY-2, and RFC 6191 2: a SYN whose stamp, or where there is none its number, is behind
 * everything that the old connection had may open a new one, which begins behind everything that the old one
 * sent. Returns the number to begin with, 0: it may not. */
static uint32_t reopens(const struct xds_stack *s, const struct xdsi_conn *c, const struct xds_tcp *t,
                        const uint8_t *d)
{
    uint32_t stamp;

    if (t->state != XDS_TCP_TIME_WAIT || c->owned || (d[13] & (XDSI_SYN | XDSI_ACK | XDSI_RST)) != XDSI_SYN)
        return 0;
    const int32_t later = t->stamps && stamp_of(d, &stamp) ? (int32_t)(stamp - t->ts_recent) : 0;
    if (later < 0 || (!later && (int32_t)(xdsi_be32(d + 4) - (t->irs + (uint32_t)t->rcv_nxt)) <= 0))
        return 0;
    const uint32_t number = t->cfg.iss + (uint32_t)t->snd_max + 65537;
    return number ? number : 1;
}

int xds_stack_input(struct xds_stack *s, const struct xds_packet *p, int64_t now)
{
    const struct xds_tcp_segment *seg;
    struct xds_tcp_segment made = {
        .data = p->data, .len = p->len, .tos = p->tos, .checked = 1}; /* the host has */
    struct xdsi_ends ends;

    s->stats.received++;
    if (p->protocol != XDSI_IPPROTO_TCP || p->len < XDSI_TCP_BYTES)
        return refuse(s, XDS_STACK_OTHER, XDS_ETRUNC);
    const uint32_t head = (p->data[12] >> 4) * 4u;
    if (head > p->len || head < XDSI_TCP_BYTES)
        return refuse(s, XDS_STACK_OTHER, XDS_ETRUNC);
    seg = &made;
    memcpy(made.src, p->src, 16);
    memcpy(made.dst, p->dst, 16);
    memcpy(ends.remote, p->src, 16);
    memcpy(ends.local, p->dst, 16);
    ends.remote_port = xdsi_be16(p->data);
    ends.local_port = xdsi_be16(p->data + 2);
    struct xdsi_conn *c = xdsi_conn_find(s, &ends);
    if (!c)
        return no_connection(s, &ends, seg, 0, now);
    struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    const uint32_t number = reopens(s, c, t, p->data);
    if (number && listener_of(s, &ends)) {
        s->stats.reopened++;
        xdsi_conn_free(s, c);
        return no_connection(s, &ends, seg, number, now);
    }
    const int64_t before = t->rcv_nxt;
    const int code = xds_tcp_input(t, seg, now);
    s->stats.reasons[XDS_STACK_TAKEN]++;
    xdsi_ready(s, c);
    if (t->rcv_nxt > before && p->len > head) {
        if (!c->read_ns) {
            c->rx_ns = p->rx_ns;
            c->read_ns = now;
        }
        xdsi_tell(s, c, XDS_STACK_READABLE, now);
    }
    xdsi_look(s, c, now);
    return code;
}

int xds_stack_frame(struct xds_stack *s, const struct xds_frame *f, struct xds_dgram *out, int64_t now)
{
    xds_host_release(s->host);
    const int code = xds_host_input(s->host, f, out, now);
    if (code == XDS_INPUT_ERROR && xds_host_error(s->host)->protocol == XDSI_IPPROTO_TCP) {
        xds_stack_error(s, xds_host_error(s->host), now);
        return 0;
    }
    if (code != XDS_INPUT_PACKET)
        return code;
    const struct xds_packet *p = xds_host_packet(s->host);
    if (p->protocol != XDSI_IPPROTO_TCP)
        return code;
    xds_stack_input(s, p, now);
    return 0;
}

/* ---- segments out -------------------------------------------------------------------------------- */

/* By a path that is known. */
static int send_along(struct xds_stack *s, struct xdsi_conn *c, bool only_ack, struct xds_frame *room,
                      int64_t now)
{
    struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    const uint32_t head = c->trail.ip_bytes, bytes = s->host->l2_len + head;
    const uint32_t mtu = xdsi_trail_mtu(s->host, &c->trail) - head;
    const uint32_t left = room->len - bytes;
    const int space = (int)(left < mtu ? left : mtu);

    if (space != c->space) {
        c->space = space;
        xds_tcp_path(t, (uint32_t)space - XDSI_TCP_BYTES);
    }
    uint8_t *payload = xdsi_trail_begin(s->host, &c->trail, room->data);
    const int len = only_ack ? xdsi_tcp_output_ack(t, payload, (uint32_t)space, now)
                             : xds_tcp_output(t, payload, (uint32_t)space, now);

    if (len <= 0)
        return 0;
    s->stats.sent++;
    room->len = (uint32_t)xdsi_trail_end(s->host, &c->trail, room->data, (uint32_t)len, xds_tcp_tos(t));
    return (int)room->len;
}

/* One segment as a frame. Its bytes; 0: none to send; -1: it could not go now, and is as good as lost or
 * waits in the host for its neighbour. */
static int send_segment(struct xds_stack *s, struct xdsi_conn *c, bool only_ack, struct xds_frame *room,
                        int64_t now)
{
    struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    if (xdsi_trail_holds(s->host, &c->trail, c->ends.remote, now) && room->len >= TRAIL_ROOM)
        return send_along(s, c, only_ack, room, now);
    struct xds_ip_head head = {.protocol = XDSI_IPPROTO_TCP, .ttl = c->hops, .checksum_at = XDS_NO_CHECKSUM};
    uint8_t *payload;

    memcpy(head.src, c->ends.local, 16);
    memcpy(head.dst, c->ends.remote, 16);
    const int space = xds_host_ip_reserve(s->host, room, &head, &payload, now);
    if (space >= XDSI_TCP_HEAD_MAX) {
        if (space != c->space) {
            c->space = space;
            xds_tcp_path(t, (uint32_t)space - XDSI_TCP_BYTES);
        }
        const int len = xds_tcp_output(t, payload, (uint32_t)space, now);
        if (len <= 0)
            return 0;
        s->stats.sent++;
        head.tos = xds_tcp_tos(t);
        xdsi_trail_learn(s->host, &c->trail, &head, now);
        return xds_host_ip_commit(s->host, room, &head, (uint32_t)len);
    }
    const uint32_t six = xdsi_is_ip4(c->ends.remote) ? 0 : XDSI_IPV6_BYTES - XDSI_IPV4_BYTES;
    const int len = xds_tcp_output(t, s->scratch, s->scratch_bytes - six, now);
    if (len <= 0)
        return 0;
    head.tos = xds_tcp_tos(t);
    const int code = space ? XDS_EFOREIGN : xds_host_ip(s->host, room, &head, s->scratch, (uint32_t)len, now);
    s->stats.sent += code >= 0;
    s->stats.send_lost += code < 0;
    return -1;
}

/* Only along a path that is known: to learn one would change the host. */
int xdsi_warm(struct xds_stack *s, struct xdsi_conn *c, uint32_t len, int64_t now)
{
    struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    const uint32_t head = s->host->l2_len + c->trail.ip_bytes;
    const uint64_t sent = s->host->stats.sent;

    if (!xdsi_trail_holds(s->host, &c->trail, c->ends.remote, now))
        return 0;
    uint8_t *payload = xdsi_trail_begin(s->host, &c->trail, s->scratch);
    const uint32_t mtu = xdsi_trail_mtu(s->host, &c->trail) - c->trail.ip_bytes, fits = 65536 - head;
    const int bytes = xds_tcp_warm(t, payload, mtu < fits ? mtu : fits, len, now);
    if (bytes <= 0)
        return 0;
    xdsi_trail_end(s->host, &c->trail, s->scratch, (uint32_t)bytes, xds_tcp_tos(t));
    s->host->stats.sent = sent;
    return (int)head + bytes;
}

/* The same for one that output() looks at; what follows from it. */
static int send_next(struct xds_stack *s, struct xdsi_conn *c, struct xds_frame *room, int64_t now)
{
    const struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    const bool only_ack = xdsi_tcp_only_ack(t);
    const int n = send_segment(s, c, only_ack, room, now);

    if (n > 0 && only_ack && c->owned)
        return n; /* it moved no timer and made no news */
    if (n && xdsi_tcp_wants(t))
        xdsi_ready(s, c);
    xdsi_look(s, c, now);
    return n;
}

static int send_reset(struct xds_stack *s, struct xds_frame *room, int64_t now)
{
    const struct xdsi_reset *r = &s->resets[s->reset_first];
    struct xds_ip_head head = {.protocol = XDSI_IPPROTO_TCP, .checksum_at = XDSI_TCP_CHECKSUM};
    uint8_t d[XDSI_TCP_BYTES] = {[12] = 5 << 4, [13] = XDSI_RST};

    s->reset_first = (s->reset_first + 1) % s->cfg.resets;
    s->reset_count--;
    memcpy(head.src, r->ends.local, 16);
    memcpy(head.dst, r->ends.remote, 16);
    xdsi_put16(d, r->ends.local_port);
    xdsi_put16(d + 2, r->ends.remote_port);
    xdsi_put32(d + 4, r->seq);
    xdsi_put32(d + 8, r->ack);
    d[13] |= r->acks ? XDSI_ACK : 0;
    const int code = xds_host_ip(s->host, room, &head, d, sizeof d, now);
    s->stats.sent += code >= 0;
    s->stats.resets += code >= 0;
    s->stats.send_lost += code < 0;
    return code;
}

int xds_stack_pending(const struct xds_stack *s)
{
    return s->ready.first != XDSI_NOWHERE || s->reset_count || s->cookie_count || xds_host_pending(s->host);
}

/* Connections take turns, a segment each: a long answer does not keep a short one waiting. */
int xds_stack_output(struct xds_stack *s, struct xds_frame *room, int64_t now)
{
    const uint32_t whole = room->len;
    struct xdsi_conn *c;

    for (;;) {
        room->len = whole;
        if (xds_host_pending(s->host)) {
            const int n = xds_host_output(s->host, room, now);
            if (n > 0)
                return n;
        } else if ((c = xdsi_ready_take(s))) {
            const int n = send_next(s, c, room, now);
            if (n > 0)
                return n;
        } else if (s->cookie_count) {
            const int n = xdsi_cookie_send(s, room, now);
            if (n > 0)
                return n;
        } else if (s->reset_count) {
            const int n = send_reset(s, room, now);
            if (n > 0)
                return n;
        } else {
            return 0;
        }
    }
}

/* ---- timers -------------------------------------------------------------------------------------- */

/* A neighbour never answered: who waits for its first answer over it need not wait for its timer. */
static void lost_neighbour(struct xds_stack *s, struct xdsi_addr ip, int64_t now)
{
    for (uint32_t i = 0; i < s->fresh; i++) {
        struct xdsi_conn *c = &s->conns[i];
        struct xds_tcp *t = xdsi_tcp_of(s, i);
        if (!c->id || t->state != XDS_TCP_SYN_SENT || !xdsi_addr_same(hop_to(s, c->ends.remote, now), ip))
            continue;
        xds_tcp_abort(t);
        xdsi_tell(s, c, XDS_STACK_UNREACHABLE, now);
        xdsi_look(s, c, now);
    }
}

static void expire(struct xds_stack *s, struct xdsi_conn *c, int64_t now)
{
    struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));

    if (c->orphan_due <= now) {
        s->stats.orphans_ended++;
        xds_tcp_abort(t);
        t->rst_due = false; /* RFC 9293 knows no such timer: the peer learns when it sends */
    } else {
        xds_tcp_tick(t, now);
    }
    xdsi_ready(s, c);
    xdsi_look(s, c, now);
}

int64_t xds_stack_deadline(const struct xds_stack *s)
{
    const int64_t host = xds_host_deadline(s->host);
    return s->heap_count ? xdsi_min64(s->heap[0].at, host) : host;
}

void xds_stack_tick(struct xds_stack *s, int64_t now)
{
    struct xds_host_event e;

    if (xds_host_deadline(s->host) <= now)
        xds_host_tick(s->host, now);
    while (xds_host_event(s->host, &e))
        if (e.kind == XDS_HOST_EVENT_LOST)
            lost_neighbour(s, xdsi_addr_of(e.address), now);
    while (s->heap_count && s->heap[0].at <= now) {
        struct xdsi_conn *c = &s->conns[s->heap[0].place];
        const bool due = xdsi_conn_due(s, c) <= now;
        xdsi_conn_untime(s, c);
        if (due)
            expire(s, c, now);
        else
            xdsi_conn_time(s, c);
    }
}

/* ---- events -------------------------------------------------------------------------------------- */

static bool listener_news(struct xds_stack *s, bool given, struct xds_stack_event *out)
{
    bool others = false;

    for (uint32_t i = 0; i < s->cfg.listeners; i++) {
        struct xdsi_listener *l = &s->listeners[i];
        if (!l->id || l->told || l->first == XDSI_NOWHERE)
            continue;
        if (l->given != given) {
            others = true;
            continue;
        }
        l->told = true;
        *out = (struct xds_stack_event){.id = l->id, .what = XDS_STACK_ACCEPTABLE};
        return true;
    }
    s->acceptable = others;
    return false;
}

static int next_event(struct xds_stack *s, bool given, struct xds_stack_event *out)
{
    struct xdsi_queue *q = &s->news[given];

    if (s->acceptable && listener_news(s, given, out))
        return 1;
    while (q->first != XDSI_NOWHERE) {
        struct xdsi_conn *c = &s->conns[q->first];
        q->first = c->news_next;
        c->told = false;
        if (!c->id || !c->news || c->queued)
            continue;
        *out = (struct xds_stack_event){
            .ns = c->news_ns, .rx_ns = c->rx_ns, .read_ns = c->read_ns, .id = c->id, .what = c->news};
        c->news = 0;
        c->rx_ns = c->read_ns = 0;
        return 1;
    }
    return 0;
}

int xds_stack_event(struct xds_stack *s, struct xds_stack_event *out)
{
    return next_event(s, false, out);
}

int xds_stack_given(struct xds_stack *s, struct xds_stack_event *out)
{
    return next_event(s, true, out);
}
