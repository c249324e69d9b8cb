/* engine_udp.c: datagrams out, by a port's host or by a kernel socket; and the routes of those over IPv6. */
#include <errno.h>

#include "engine_inl.h"

/* ---- routes --------------------------------------------------------------------------------------- */

static uint32_t hash6(struct xdsi_addr dst, uint16_t dport)
{
    return xdsi_route_hash((uint32_t)((dst.low ^ dst.high) ^ (dst.low ^ dst.high) >> 32), dport);
}

static int add_route6(struct xds_engine *e, const struct xdsi_route6 *route)
{
    uint32_t at = hash6(route->dst, route->to.dport);

    if (e->n_routes6 == XDSI_ROUTES_MAX)
        return XDS_ECAPACITY;
    for (; e->routes6[at].to.kind; at = (at + 1) & (XDSI_ROUTES - 1)) {
        const struct xdsi_route6 *r = &e->routes6[at];
        if (xdsi_addr_same(r->dst, route->dst) && r->to.dport == route->to.dport &&
            xdsi_addr_same(r->src, route->src))
            return -EEXIST;
    }
    e->routes6[at] = *route;
    e->n_routes6++;
    return 0;
}

static const struct xdsi_route *find(const struct xds_engine *e, struct xdsi_addr dst, uint16_t dport,
                                     struct xdsi_addr src)
{
    for (uint32_t at = hash6(dst, dport); e->routes6[at].to.kind; at = (at + 1) & (XDSI_ROUTES - 1)) {
        const struct xdsi_route6 *r = &e->routes6[at];
        if (xdsi_addr_same(r->dst, dst) && r->to.dport == dport &&
            (xdsi_addr_none(r->src) || xdsi_addr_same(r->src, src)))
            return &r->to;
    }
    return NULL;
}

const struct xdsi_route *xdsi_find_route6(const struct xds_engine *e, const struct xds_dgram *d)
{
    const struct xdsi_addr src = xdsi_addr_of(d->src6);
    const struct xdsi_route *found = find(e, xdsi_addr_of(d->dst6), d->dport, src);

    return found ? found : find(e, (struct xdsi_addr){0, 0}, d->dport, src);
}

int xds_engine_add_line6(struct xds_engine *e, unsigned channel, unsigned line, const uint8_t dst[16],
                         uint16_t dport, const uint8_t src[16])
{
    const struct xdsi_addr to = xdsi_addr_of(dst), from = xdsi_addr_of(src);

    if (xdsi_addr_is4(to))
        return xds_engine_add_line(e, channel, line, xdsi_addr_ip4(to), dport,
                                   xdsi_addr_is4(from) ? xdsi_addr_ip4(from) : 0);
    if (channel >= e->n_channels || line > XDS_LINES_MAX || xdsi_addr_is4(from))
        return XDS_ECONFIG;
    const struct xdsi_route6 route = {
        .dst = to,
        .src = from,
        .to = {.dport = dport, .kind = XDSI_ROUTE_LINE, .line = (uint8_t)line, .index = (uint16_t)channel}};
    return add_route6(e, &route);
}

int xds_engine_add_udp6(struct xds_engine *e, const uint8_t dst[16], uint16_t dport, xds_dgram_hook handler,
                        void *ctx)
{
    const struct xdsi_addr to = xdsi_addr_of(dst);

    if (xdsi_addr_is4(to))
        return xds_engine_add_udp(e, xdsi_addr_ip4(to), dport, handler, ctx);
    if (e->n_udp == XDSI_UDP_MAX)
        return XDS_ECAPACITY;
    const struct xdsi_route6 route = {
        .dst = to, .to = {.dport = dport, .kind = XDSI_ROUTE_UDP, .index = (uint16_t)e->n_udp}};
    const int rc = add_route6(e, &route);
    if (rc < 0)
        return rc;
    e->udp[e->n_udp] = (struct xdsi_udp){.handler = handler, .ctx = ctx};
    return (int)e->n_udp++;
}

int xds_engine_set_server6(struct xds_engine *e, unsigned channel, const uint8_t server[16],
                           uint16_t server_port, unsigned via, uint16_t sport)
{
    const struct xdsi_addr a = xdsi_addr_of(server);

    if (channel >= e->n_channels || via >= e->n_ports || xdsi_addr_none(a))
        return XDS_ECONFIG;
    struct xdsi_channel *c = &e->channels[channel];
    c->server = xdsi_addr_is4(a) ? xdsi_addr_ip4(a) : 0;
    c->asks6 = !xdsi_addr_is4(a);
    xdsi_addr_put(c->server6, a);
    c->server_port = server_port;
    c->via = (uint16_t)via;
    c->sport = sport;
    return 0;
}

/* ---- sending -------------------------------------------------------------------------------------- */

/* From the kernel socket that is bound to that local port. */
static int send_from(struct xds_sock *s, uint32_t dst, const uint8_t *dst6, uint16_t dport, uint16_t sport,
                     const uint8_t *data, uint32_t len)
{
    for (unsigned i = 0;; i++) {
        const int port = xds_sock_port(s, i);
        if (port < 0)
            return XDS_ECONFIG;
        if (port != sport || xds_sock_is_six(s, i) != (dst6 != NULL))
            continue;
        return dst6 ? xds_sock_send6(s, i, dst6, dport, data, len)
                    : xds_sock_send(s, i, dst, dport, data, len);
    }
}

int xdsi_send_udp(struct xds_engine *e, unsigned port, uint32_t dst, const uint8_t *dst6, uint16_t dport,
                  uint16_t sport, const uint8_t *data, uint32_t len)
{
    if (port >= e->n_ports)
        return XDS_ECONFIG;
    if (e->virtual_time) {
        e->stats.muted++;
        return 0;
    }
    struct xdsi_port *p = &e->ports[port];
    int rc;
    if (p->sock) {
        rc = send_from(p->sock, dst, dst6, dport, sport, data, len);
    } else {
        struct xds_frame room;
        if (xds_link_reserve(p->link, &room, 1) != 1) {
            e->stats.send_refused++;
            return XDS_ECAPACITY;
        }
        rc = dst6 ? xds_host_udp6(p->host, &room, sport, dst6, dport, data, len, e->now)
                  : xds_host_udp(p->host, &room, sport, dst, dport, data, len, e->now);
        if (rc <= 0)
            room.len = 0; /* held until its neighbour answers, or refused: the frame goes back */
        xds_link_commit(p->link, &room, 1);
        p->dirty = true;
        if (rc == 0)
            e->deadline = e->now; /* the host has a question to ask first */
    }
    if (rc < 0)
        e->stats.send_refused++;
    else
        e->stats.sent++;
    return rc < 0 ? rc : 0;
}

static void send_entry(struct xds_engine *e, const struct xds_outgoing *o)
{
    const uint8_t *data = e->outbox.data + o->offset;
    const struct xdsi_addr to = xdsi_addr_of(o->dst6);

    if (o->six && !xdsi_addr_is4(to))
        xdsi_send_udp(e, o->port, 0, o->dst6, o->dport, o->sport, data, o->len);
    else
        xdsi_send_udp(e, o->port, o->six ? xdsi_addr_ip4(to) : o->dst, NULL, o->dport, o->sport, data,
                      o->len);
}

void xdsi_send_outbox(struct xds_engine *e)
{
    for (uint32_t i = 0; i < e->outbox.count && i < e->outbox.max; i++) {
        struct xds_outgoing *o = &e->outbox.list[i];
        if (o->offset > e->outbox.cap || o->len > e->outbox.cap - o->offset)
            e->stats.send_refused++; /* a hook's arithmetic went wrong */
        else
            send_entry(e, o);
        o->six = 0; /* so that a hook that knows IPv4 alone finds it so */
    }
    e->outbox.count = e->outbox.used = 0;
}
