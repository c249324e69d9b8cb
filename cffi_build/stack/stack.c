/* stack.c: a stack's set-up, and what its user calls: connect, listen, accept, bytes, ends. */
#include "stack_int.h"

#define LISTENER_BIT  (1u << 30)
#define LISTENER_BITS 10
#define LISTENERS_MAX (1u << LISTENER_BITS)
#define IP4_TCP_BYTES 40 /* both headers, without options */

static size_t round_up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static struct xds_stack_config with_defaults(const struct xds_stack_config *cfg)
{
    struct xds_stack_config c = *cfg;

    c.connections = c.connections ? c.connections : 64;
    c.listeners = c.listeners ? c.listeners : 8;
    c.send_bytes = c.send_bytes ? c.send_bytes : 65536;
    c.receive_bytes = c.receive_bytes ? c.receive_bytes : 65536;
    c.port_first = c.port_first ? c.port_first : 49152;
    c.port_last = c.port_last ? c.port_last : 65535;
    c.resets = c.resets ? c.resets : 32;
    c.orphan_ns = c.orphan_ns ? c.orphan_ns : 60000000000;
    c.tcp.passive = 0;
    c.tcp.iss = c.tcp.stamp_offset = 0;
    c.tcp.send_bytes = c.send_bytes;
    c.tcp.receive_bytes = c.receive_bytes;
    memset(c.tcp.local, 0, 16);
    memset(c.tcp.remote, 0, 16);
    c.tcp.local_port = c.tcp.remote_port = 0;
    if (!c.tcp.pieces) /* one size for all, whatever mss a connection asks for */
        c.tcp.pieces = xdsi_board_pieces(&c.tcp);
    return c;
}

/* Bytes of one connection; 0: its settings cannot be. */
static size_t tcp_bytes(const struct xds_stack_config *c)
{
    struct xds_tcp_config one = c->tcp;

    one.local_port = one.remote_port = 1;
    return round_up(xds_tcp_size(&one));
}

static uint32_t table_size(const struct xds_stack_config *c)
{
    uint32_t n = 64;
    while (n < 2 * c->connections)
        n *= 2;
    return n;
}

size_t xds_stack_size(const struct xds_stack_config *cfg)
{
    const struct xds_stack_config c = with_defaults(cfg);

    if (c.connections > XDSI_PLACES_MAX || c.listeners > LISTENERS_MAX || c.port_first > c.port_last ||
        c.resets > 65536 || c.orphan_ns < 0 || !tcp_bytes(&c))
        return 0;
    return round_up(sizeof(struct xds_stack)) + round_up(c.connections * sizeof(struct xdsi_conn)) +
           round_up(c.listeners * sizeof(struct xdsi_listener)) +
           round_up(table_size(&c) * sizeof(uint32_t)) + round_up(c.connections * sizeof(struct xdsi_due)) +
           round_up(c.resets * sizeof(struct xdsi_reset)) + round_up(c.resets * sizeof(struct xdsi_cookie)) +
           round_up(65536) + (size_t)c.connections * tcp_bytes(&c);
}

static void *carve(uint8_t **at, size_t bytes)
{
    void *here = *at;
    *at += round_up(bytes);
    return here;
}

int xds_stack_init(void *mem, const struct xds_stack_config *cfg, struct xds_host *host)
{
    static const uint8_t nothing[16];
    struct xds_stack *s = mem;
    uint8_t *at = mem;

    if (!xds_stack_size(cfg) || !host || !memcmp(cfg->secret, nothing, 16))
        return XDS_ECONFIG;
    carve(&at, sizeof *s);
    memset(s, 0, sizeof *s);
    s->cfg = with_defaults(cfg);
    s->host = host;
    s->tcp_bytes = tcp_bytes(&s->cfg);
    s->conns = carve(&at, s->cfg.connections * sizeof *s->conns);
    s->listeners = carve(&at, s->cfg.listeners * sizeof *s->listeners);
    s->table_mask = table_size(&s->cfg) - 1;
    s->table = carve(&at, (s->table_mask + 1) * sizeof *s->table);
    s->heap = carve(&at, s->cfg.connections * sizeof *s->heap);
    s->resets = carve(&at, s->cfg.resets * sizeof *s->resets);
    s->cookies = carve(&at, s->cfg.resets * sizeof *s->cookies);
    s->scratch = carve(&at, 65536);
    s->tcps = at;
    memset(s->conns, 0, s->cfg.connections * sizeof *s->conns);
    memset(s->listeners, 0, s->cfg.listeners * sizeof *s->listeners);
    memset(s->table, 0, (s->table_mask + 1) * sizeof *s->table);
    s->scratch_bytes = host->cfg.mtu - XDSI_IPV4_BYTES;
    const uint32_t fits = host->cfg.mtu > IP4_TCP_BYTES + 64 ? host->cfg.mtu - IP4_TCP_BYTES : 64;
    if (!s->cfg.tcp.mss || s->cfg.tcp.mss > fits)
        s->cfg.tcp.mss = (uint16_t)fits;
    s->free_first = s->ready.first = s->waits.first = s->waits.last = XDSI_NOWHERE;
    s->news[0].first = s->news[1].first = XDSI_NOWHERE;
    return xds_host_take(host, XDSI_IPPROTO_TCP);
}

/* ---- opening ------------------------------------------------------------------------------------- */

void xds_stack_defaults(const struct xds_stack *s, struct xds_tcp_config *out)
{
    *out = s->cfg.tcp;
}

static bool is_zero(const uint8_t a[16])
{
    static const uint8_t zero[16];
    return !memcmp(a, zero, 16);
}

/* RFC 6056 3.3.4: the ports to one peer go up one by one from where the secret says, those to others do
 * not show it. 0: none is left. */
static uint16_t choose_port(struct xds_stack *s, struct xdsi_ends *ends)
{
    const uint32_t count = s->cfg.port_last - s->cfg.port_first + 1u;

    ends->local_port = 0;
    const uint64_t place = xdsi_siphash(s->cfg.secret, (const uint8_t *)ends, sizeof *ends);
    uint32_t *next = &s->port_counts[place >> 58];
    for (uint32_t i = 0; i < count; i++) {
        ends->local_port = (uint16_t)(s->cfg.port_first + ((uint32_t)place + (*next)++) % count);
        if (!xdsi_conn_find(s, ends))
            return ends->local_port;
    }
    return 0;
}

/* 0, and the own address from which a way leads there; or a code. */
static int way_to(const struct xds_stack *s, const uint8_t remote[16], struct xdsi_addr *local, int64_t now)
{
    const struct xdsi_addr a = xdsi_addr_of(remote);
    struct xdsi_hop hop;
    struct xdsi_hop6 hop6;

    if (xdsi_addr_is4(a)) {
        const uint32_t ip = xdsi_addr_ip4(a);
        if (!s->host->own_count)
            return XDS_ECONFIG;
        if (!ip || xdsi_is_multicast(ip) || ip == 0xffffffff || xdsi_host_is_own(s->host, ip) ||
            !xdsi_host_route(s->host, ip, &hop))
            return XDS_EFOREIGN;
        *local = xdsi_addr4(hop.src);
        return 0;
    }
    if (!s->host->six.own_count || xdsi_addr_none(a) || xdsi_addr_multicast(a) || xdsi_host_own(s->host, a) ||
        !xdsi_host_route6(s->host, a, &hop6, now))
        return XDS_EFOREIGN;
    *local = xdsi_addr_none(hop6.src) ? s->host->six.own[0].a : hop6.src; /* none may be used yet */
    return 0;
}

/* 0, or why there is no such pair of ends. */
static int find_ends(struct xds_stack *s, const struct xds_tcp_config *how, struct xdsi_ends *ends,
                     int64_t now)
{
    struct xdsi_addr chosen;

    if (!how->remote_port)
        return XDS_ECONFIG;
    const int code = way_to(s, how->remote, &chosen, now);
    if (code)
        return code;
    memcpy(ends->remote, how->remote, 16);
    ends->remote_port = how->remote_port;
    ends->local_port = how->local_port;
    if (is_zero(how->local))
        xdsi_addr_put(ends->local, chosen);
    else if (xdsi_is_ip4(how->local) == xdsi_is_ip4(how->remote) &&
             xdsi_host_own(s->host, xdsi_addr_of(how->local)))
        memcpy(ends->local, how->local, 16);
    else
        return XDS_ECONFIG;
    if (ends->local_port)
        return xdsi_conn_find(s, ends) ? XDSI_EADDRINUSE : 0;
    return choose_port(s, ends) ? 0 : XDS_ECAPACITY;
}

int xds_stack_connect(struct xds_stack *s, const struct xds_tcp_config *how, int64_t now)
{
    struct xds_tcp_config cfg = *how;
    struct xdsi_ends ends;
    int code = find_ends(s, how, &ends, now);

    cfg.passive = 0;
    cfg.iss = xdsi_first_number(s, &ends, now);
    if (!cfg.mss || cfg.mss > s->cfg.tcp.mss)
        cfg.mss = s->cfg.tcp.mss;
    cfg.mss = xdsi_mss_to(s, how->remote, cfg.mss);
    cfg.local_port = ends.local_port; /* so that only its own settings can be wrong */
    cfg.send_bytes = s->cfg.send_bytes;
    cfg.receive_bytes = s->cfg.receive_bytes;
    cfg.pieces = s->cfg.tcp.pieces;
    if (!code && !xds_tcp_size(&cfg))
        code = XDS_ECONFIG;
    struct xdsi_conn *c = code ? NULL : xdsi_conn_make(s, &ends, &cfg);
    if (!c) {
        s->stats.refused++;
        return code ? code : XDS_ECAPACITY;
    }
    s->stats.opened++;
    c->owned = true;
    xdsi_ready(s, c);
    return (int)c->id;
}

/* ---- listening ----------------------------------------------------------------------------------- */

struct xdsi_listener *xdsi_listener(const struct xds_stack *s, int id)
{
    const uint32_t place = (uint32_t)id & (LISTENERS_MAX - 1);

    if (id <= 0 || place >= s->cfg.listeners || s->listeners[place].id != (uint32_t)id)
        return NULL;
    return &s->listeners[place];
}

int xds_stack_listen(struct xds_stack *s, const uint8_t local[16], uint16_t port, uint32_t backlog)
{
    struct xds_tcp_config how = s->cfg.tcp;

    memcpy(how.local, local, 16);
    how.local_port = port;
    return xds_stack_listen_as(s, &how, backlog, XDS_STACK_IP4 | XDS_STACK_IP6);
}

/* The settings as a connection takes them. */
static struct xds_tcp_config settings_of(const struct xds_stack *s, const struct xds_tcp_config *how)
{
    struct xds_tcp_config c = *how;

    if (!c.mss || c.mss > s->cfg.tcp.mss)
        c.mss = s->cfg.tcp.mss;
    c.passive = 1;
    c.send_bytes = s->cfg.send_bytes;
    c.receive_bytes = s->cfg.receive_bytes;
    c.pieces = s->cfg.tcp.pieces;
    return c;
}

/* Both would take the same SYN. */
static bool contend(const struct xdsi_listener *l, const uint8_t local[16], uint32_t any)
{
    const uint32_t theirs = l->any ? l->any : xdsi_is_ip4(l->local) ? XDS_STACK_IP4 : XDS_STACK_IP6;
    const uint32_t ours = any ? any : xdsi_is_ip4(local) ? XDS_STACK_IP4 : XDS_STACK_IP6;
    return ours & theirs && (l->any || any || !memcmp(l->local, local, 16));
}

int xds_stack_listen_as(struct xds_stack *s, const struct xds_tcp_config *how, uint32_t backlog,
                        uint32_t families)
{
    const struct xds_tcp_config cfg = settings_of(s, how);
    const uint8_t *local = how->local;
    const uint16_t port = how->local_port;
    const uint32_t any = is_zero(local) ? families : 0;
    struct xdsi_listener *l = NULL;

    if (!port || !backlog || !xds_tcp_size(&cfg) || families > 3 ||
        (!any && !xdsi_host_own(s->host, xdsi_addr_of(local))))
        return XDS_ECONFIG;
    for (uint32_t i = 0; i < s->cfg.listeners; i++) {
        struct xdsi_listener *other = &s->listeners[i];
        if (other->id && other->port == port && contend(other, local, any))
            return XDSI_EADDRINUSE;
        if (!other->id && !l)
            l = other;
    }
    if (!l)
        return XDS_ECAPACITY;
    const uint32_t uses = l->uses % 8191 + 1;
    *l = (struct xdsi_listener){.uses = uses,
                                .id = LISTENER_BIT | uses << LISTENER_BITS | (uint32_t)(l - s->listeners),
                                .port = port,
                                .any = (uint8_t)any,
                                .backlog = backlog,
                                .first = XDSI_NOWHERE,
                                .last = XDSI_NOWHERE,
                                .how = cfg};
    memcpy(l->local, local, 16);
    return (int)l->id;
}

int xds_stack_accept(struct xds_stack *s, int id)
{
    struct xdsi_listener *l = xdsi_listener(s, id);

    if (!l)
        return XDS_ESTATE;
    l->told = false;
    if (l->first == XDSI_NOWHERE)
        return 0;
    s->acceptable = true;
    struct xdsi_conn *c = &s->conns[l->first];
    l->first = c->next;
    l->pending--;
    l->queued--;
    c->listener = XDSI_NOWHERE;
    c->queued = false;
    xdsi_conn_hand(s, c, l->given);
    s->stats.accepted++;
    const uint32_t news = c->news;
    c->news = 0;
    xdsi_tell(s, c, news, c->news_ns); /* its event may have been passed over while it was in the queue */
    return (int)c->id;
}

int xds_stack_unlisten(struct xds_stack *s, int id)
{
    struct xdsi_listener *l = xdsi_listener(s, id);

    if (!l)
        return XDS_ESTATE;
    for (uint32_t i = 0; i < s->fresh; i++) {
        struct xdsi_conn *c = &s->conns[i];
        if (!c->id || c->listener != (uint32_t)(l - s->listeners))
            continue;
        c->listener = XDSI_NOWHERE;
        c->owned = c->queued = false;
        xds_tcp_abort(xdsi_tcp_of(s, i));
        xdsi_ready(s, c); /* output() sends the reset, and sees its end */
    }
    l->id = 0;
    return 0;
}

/* ---- a connection -------------------------------------------------------------------------------- */

static struct xdsi_conn *place_of(const struct xds_stack *s, int id)
{
    const uint32_t place = (uint32_t)id & (XDSI_PLACES_MAX - 1);

    if (id <= 0 || place >= s->fresh || s->conns[place].id != (uint32_t)id)
        return NULL;
    return &s->conns[place];
}

static struct xdsi_conn *owned(const struct xds_stack *s, int id)
{
    struct xdsi_conn *c = place_of(s, id);
    return c && c->owned && !c->queued ? c : NULL;
}

struct xds_tcp *xds_stack_tcp(struct xds_stack *s, int id)
{
    struct xdsi_conn *c = owned(s, id);
    return c ? xdsi_tcp_of(s, xdsi_place(s, c)) : NULL;
}

void xds_stack_touch(struct xds_stack *s, int id)
{
    struct xdsi_conn *c = owned(s, id);
    if (c)
        xdsi_ready(s, c);
}

int xds_stack_ends(const struct xds_stack *s, int id, struct xds_stack_ends *out)
{
    const struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    *out = (struct xds_stack_ends){.local_port = c->ends.local_port, .remote_port = c->ends.remote_port};
    memcpy(out->local, c->ends.local, 16);
    memcpy(out->remote, c->ends.remote, 16);
    return 0;
}

int xds_stack_trouble(const struct xds_stack *s, int id, struct xds_stack_trouble *out)
{
    const struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    *out = c->trouble;
    return c->trouble.type && c->trouble.ns >= xdsi_tcp_of(s, xdsi_place(s, c))->waiting_since;
}

int xds_stack_write(struct xds_stack *s, int id, const uint8_t *data, uint32_t len)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    const int done = xds_tcp_write(xdsi_tcp_of(s, xdsi_place(s, c)), data, len);
    if (done > 0)
        xdsi_ready(s, c);
    if (done >= 0 && (uint32_t)done < len)
        c->wants_room = true;
    return done;
}

int xds_stack_read(struct xds_stack *s, int id, uint8_t *data, uint32_t room)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    const int done = xds_tcp_read(xdsi_tcp_of(s, xdsi_place(s, c)), data, room);
    if (done > 0)
        xdsi_ready(s, c);
    return done;
}

int xds_stack_peek(struct xds_stack *s, int id, const uint8_t **data)
{
    struct xdsi_conn *c = owned(s, id);
    return c ? xds_tcp_peek(xdsi_tcp_of(s, xdsi_place(s, c)), data) : XDS_ESTATE;
}

int xds_stack_consume(struct xds_stack *s, int id, uint32_t len)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    xdsi_ready(s, c);
    return xds_tcp_consume(xdsi_tcp_of(s, xdsi_place(s, c)), len);
}

int xds_stack_reserve(struct xds_stack *s, int id, uint8_t **data)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    const int room = xds_tcp_reserve(xdsi_tcp_of(s, xdsi_place(s, c)), data);
    if (!room)
        c->wants_room = true;
    return room;
}

int xds_stack_commit(struct xds_stack *s, int id, uint32_t len)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    xdsi_ready(s, c);
    return xds_tcp_commit(xdsi_tcp_of(s, xdsi_place(s, c)), len);
}

int xds_stack_send(struct xds_stack *s, int id, struct xds_tcp_message *m, uint32_t at, const uint8_t *change,
                   uint32_t change_len)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    if (change_len && xds_tcp_patch(m, at, change, change_len))
        return XDS_ECAPACITY;
    const int done = xds_tcp_write_prepared(xdsi_tcp_of(s, xdsi_place(s, c)), m);
    if (done > 0)
        xdsi_ready(s, c);
    c->wants_room |= done == 0;
    return done;
}

int xds_stack_warm(struct xds_stack *s, int id, uint32_t len, int64_t now)
{
    struct xdsi_conn *c = owned(s, id);
    return c ? xdsi_warm(s, c, len, now) : XDS_ESTATE;
}

int xds_stack_shutdown(struct xds_stack *s, int id)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    xdsi_ready(s, c);
    return xds_tcp_close(xdsi_tcp_of(s, xdsi_place(s, c)));
}

int xds_stack_set(struct xds_stack *s, int id, uint32_t setting, int64_t value, int64_t now)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return XDS_ESTATE;
    const int code = xds_tcp_set(xdsi_tcp_of(s, xdsi_place(s, c)), setting, value, now);
    xdsi_ready(s, c);
    xdsi_look(s, c, now);
    return code;
}

int xds_stack_set_hops(struct xds_stack *s, int id, uint8_t hops)
{
    struct xdsi_listener *l = xdsi_listener(s, id);
    struct xdsi_conn *c = l ? NULL : owned(s, id);

    if (l)
        l->hops = hops;
    else if (!c)
        return XDS_ESTATE;
    if (c) {
        c->hops = hops;
        c->trail.until = 0; /* it has the one before */
    }
    return 0;
}

void xds_stack_abort(struct xds_stack *s, int id)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return;
    xds_tcp_abort(xdsi_tcp_of(s, xdsi_place(s, c)));
    xdsi_ready(s, c);
}

void xds_stack_close(struct xds_stack *s, int id, int64_t now)
{
    struct xdsi_conn *c = owned(s, id);

    if (!c)
        return;
    struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    c->owned = false;
    c->news = 0;
    t->orphan = true;
    xds_tcp_close(t); /* it may have been said before, or be too late */
    xdsi_ready(s, c);
    xdsi_look(s, c, now);
}

int xds_stack_give(struct xds_stack *s, int id, int64_t now)
{
    struct xdsi_listener *l = xdsi_listener(s, id);
    struct xdsi_conn *c = owned(s, id);
    const uint8_t *unread;

    if (l) {
        l->given = s->acceptable = true;
        l->told = false;
        return 0;
    }
    if (!c)
        return XDS_ESTATE;
    const struct xds_tcp *t = xdsi_tcp_of(s, xdsi_place(s, c));
    uint32_t what = t->state >= XDS_TCP_ESTABLISHED ? XDS_STACK_OPEN : 0;
    if (xds_tcp_peek(t, &unread) > 0)
        what |= XDS_STACK_READABLE;
    if (t->rcv_fin >= 0 && t->rcv_nxt > t->rcv_fin)
        what |= XDS_STACK_FIN;
    xdsi_conn_hand(s, c, true);
    xdsi_tell(s, c, what, now);
    return 0;
}

int xds_stack_listens_given(const struct xds_stack *s, int id)
{
    const struct xdsi_listener *l = xdsi_listener(s, id);
    return l && l->given;
}

int xds_stack_is_given(const struct xds_stack *s, int id)
{
    const struct xdsi_conn *c = owned(s, id);
    return c && c->given;
}

void xds_stack_close_given(struct xds_stack *s, int64_t now)
{
    for (uint32_t i = 0; i < s->fresh; i++)
        if (s->conns[i].id && s->conns[i].given)
            xds_stack_close(s, (int)s->conns[i].id, now);
}

int xds_stack_lingers(const struct xds_stack *s, int id)
{
    const struct xdsi_conn *c = place_of(s, id);
    return c && c->named;
}

void xds_stack_stats(const struct xds_stack *s, struct xds_stack_stats *out)
{
    *out = s->stats;
}
