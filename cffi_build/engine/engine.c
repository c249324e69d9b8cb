/* engine.c: setting an engine up: ports, feeds, channels, lines and endpoints, before the first turn.
 * Everything here is called by Python on one thread and may refuse; nothing here runs in a turn.
 */
#include <errno.h>

#include "engine_inl.h"
#include "ground/copy_inl.h"

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

/* Where the batch's arrays lie behind the struct; with mem NULL only the size is computed. */
static size_t lay_out(struct xds_engine *e, uint8_t *mem, const struct xds_engine_config *cfg)
{
    const size_t updates = align64(sizeof(struct xds_engine));
    const size_t messages = updates + align64(sizeof(struct xds_update) * cfg->max_updates);
    const size_t events = messages + align64(sizeof(struct xds_message) * cfg->max_messages);
    const size_t runs = events + align64(sizeof(struct xds_event) * cfg->max_events);
    const size_t outbox = runs + align64(sizeof(struct xds_run) * cfg->max_updates); /* a run has an update */
    const size_t stages = outbox + align64(cfg->outbox_bytes);
    if (mem) {
        e->stages = (void *)(mem + stages);
        e->sink.updates = (void *)(mem + updates);
        e->sink.cap_updates = cfg->max_updates;
        e->sink.messages = cfg->max_messages ? (void *)(mem + messages) : NULL;
        e->sink.cap_messages = cfg->max_messages;
        e->events = (void *)(mem + events);
        e->runs = (void *)(mem + runs);
        e->cap_runs = cfg->max_updates;
        e->outbox.data = mem + outbox;
        e->outbox.cap = cfg->outbox_bytes;
        e->outbox.list = e->outgoing;
        e->outbox.max = XDSI_OUT_MAX;
    }
    return stages + sizeof(struct xds_stages) * XDS_STAGES_MAX;
}

size_t xds_engine_size(const struct xds_engine_config *cfg)
{
    if (!cfg->max_updates || !cfg->max_events || cfg->burst > XDS_ENGINE_BURST || cfg->slow_ns < 0 ||
        cfg->alert_ns < 0)
        return 0;
    return lay_out(NULL, NULL, cfg);
}

int xds_engine_init(void *mem, const struct xds_engine_config *cfg)
{
    struct xds_engine *e = mem;
    if (!xds_engine_size(cfg))
        return XDS_ECONFIG;
    memset(e, 0, sizeof *e);
    e->cfg = *cfg;
    if (!e->cfg.burst)
        e->cfg.burst = XDS_ENGINE_BURST;
    lay_out(e, mem, cfg);
    e->deadline = XDS_NEVER;
    e->held_channel = XDSI_NO_CHANNEL;
    e->turn_queue = -1;
    return 0;
}

void xds_engine_set_clock(struct xds_engine *e, struct xds_clock *clock)
{
    e->clock = clock;
}

int xds_engine_add_link(struct xds_engine *e, struct xds_link *l, struct xds_host *h)
{
    if (e->n_ports == XDS_ENGINE_PORTS)
        return XDS_ECAPACITY;
    const bool virtual_time = xds_link_flags(l) & XDS_LINK_VIRTUAL_TIME;
    if (!h || (e->n_ports && virtual_time != e->virtual_time))
        return XDS_ECONFIG; /* a capture and a live port have no common now */
    e->virtual_time = virtual_time;
    struct xdsi_port *p = &e->ports[e->n_ports];
    p->link = l;
    p->host = h;
    return (int)e->n_ports++;
}

int xds_engine_add_sock(struct xds_engine *e, struct xds_sock *s)
{
    if (e->n_ports == XDS_ENGINE_PORTS)
        return XDS_ECAPACITY;
    if (!s || e->virtual_time)
        return XDS_ECONFIG;
    e->ports[e->n_ports].sock = s;
    return (int)e->n_ports++;
}

int xds_engine_holds_frames(const struct xds_engine *e)
{
    return e->stalled || e->held_channel != XDSI_NO_CHANNEL;
}

int xds_engine_swap_link(struct xds_engine *e, unsigned port, struct xds_link *l, const uint8_t *mac)
{
    if (port >= e->n_ports || !e->ports[port].link || !l || e->virtual_time ||
        (xds_link_flags(l) & XDS_LINK_VIRTUAL_TIME))
        return XDS_ECONFIG;
    if (xds_engine_holds_frames(e))
        return XDS_ESTATE;
    struct xdsi_port *p = &e->ports[port];
    p->link = l;
    p->n = p->next = 0;
    p->ended = p->dirty = false;
    xds_host_set_mac(p->host, mac);
    return 0;
}

void xds_engine_touch(struct xds_engine *e)
{
    e->deadline = e->now;
}

int xds_engine_add_feed(struct xds_engine *e, const struct xds_decoder *d, void *decoder_mem,
                        struct xds_books *b)
{
    if (e->n_feeds == XDS_ENGINE_FEEDS)
        return XDS_ECAPACITY;
    const uint64_t largest = 1 + ((uint64_t)XDSI_BLOCK_MAX * d->max_updates_per_byte_q8 >> 8);
    if (d->abi != XDS_DECODER_ABI || largest > e->cfg.max_updates)
        return XDS_ECONFIG;
    const uint64_t most_messages = 1 + ((uint64_t)XDSI_BLOCK_MAX * d->max_messages_per_byte_q8 >> 8);
    if (e->sink.messages && most_messages > e->cfg.max_messages)
        return XDS_ECONFIG;
    if (b)
        xds_books_set_sequenced(b, (int)d->sequenced);
    e->feeds[e->n_feeds] = (struct xdsi_feed){.decoder = d, .decoder_mem = decoder_mem, .books = b};
    return (int)e->n_feeds++;
}

int xds_engine_set_owners(struct xds_engine *e, unsigned feed, uint8_t *owner, uint32_t count)
{
    if (feed >= e->n_feeds)
        return XDS_ECONFIG;
    e->feeds[feed].owner = owner;
    e->feeds[feed].owners = count;
    return 0;
}

int xds_engine_add_channel(struct xds_engine *e, unsigned feed, struct xds_channel *c, uint32_t server,
                           uint16_t server_port, unsigned via, uint16_t sport)
{
    if (e->n_channels == XDS_ENGINE_CHANNELS)
        return XDS_ECAPACITY;
    if (feed >= e->n_feeds || (server && via >= e->n_ports))
        return XDS_ECONFIG;
    struct xdsi_feed *f = &e->feeds[feed];
    if (f->channels && !f->owner)
        return XDS_ECONFIG; /* more than one channel: say first whose instruments are whose */
    e->channels[e->n_channels] = (struct xdsi_channel){.core = c,
                                                       .feed = (uint16_t)feed,
                                                       .number = (uint16_t)f->channels++,
                                                       .server = server,
                                                       .server_port = server_port,
                                                       .via = (uint16_t)via,
                                                       .sport = sport};
    return (int)e->n_channels++;
}

static int add_route(struct xds_engine *e, struct xdsi_route route)
{
    if (e->n_routes == XDSI_ROUTES_MAX)
        return XDS_ECAPACITY;
    uint32_t at = xdsi_route_hash(route.dst, route.dport);
    for (; e->routes[at].kind; at = (at + 1) & (XDSI_ROUTES - 1)) {
        const struct xdsi_route *r = &e->routes[at];
        if (r->dst == route.dst && r->dport == route.dport && r->src == route.src)
            return -EEXIST;
    }
    e->routes[at] = route;
    e->n_routes++;
    return 0;
}

int xds_engine_add_line(struct xds_engine *e, unsigned channel, unsigned line, uint32_t dst, uint16_t dport,
                        uint32_t src)
{
    if (channel >= e->n_channels || line > XDS_LINES_MAX)
        return XDS_ECONFIG;
    return add_route(e, (struct xdsi_route){.dst = dst,
                                            .src = src,
                                            .dport = dport,
                                            .kind = XDSI_ROUTE_LINE,
                                            .line = (uint8_t)line,
                                            .index = (uint16_t)channel});
}

int xds_engine_add_udp(struct xds_engine *e, uint32_t dst, uint16_t dport, xds_dgram_hook handler, void *ctx)
{
    if (e->n_udp == XDSI_UDP_MAX)
        return XDS_ECAPACITY;
    const int rc = add_route(
        e,
        (struct xdsi_route){.dst = dst, .dport = dport, .kind = XDSI_ROUTE_UDP, .index = (uint16_t)e->n_udp});
    if (rc < 0)
        return rc;
    e->udp[e->n_udp] = (struct xdsi_udp){.handler = handler, .ctx = ctx};
    return (int)e->n_udp++;
}

void xds_engine_set_hook(struct xds_engine *e, xds_hook hook, void *ctx)
{
    e->hook = hook;
    e->hook_ctx = ctx;
}

void xds_engine_set_hist(struct xds_engine *e, unsigned feed, struct xds_hist *decoded,
                         struct xds_hist *applied)
{
    if (feed < e->n_feeds) {
        e->feeds[feed].decoded = decoded;
        e->feeds[feed].applied = applied;
    }
}

void xds_engine_set_recorder(struct xds_engine *e, struct xds_recorder *r)
{
    e->recorder = r;
}

void xds_engine_set_tap(struct xds_engine *e, struct xds_ring *ring)
{
    e->tap = ring;
}

void xds_engine_set_journal(struct xds_engine *e, uint8_t *room, uint64_t bytes)
{
    e->journal = room;
    e->journal_cap = bytes;
    e->journal_used = 0;
}

uint64_t xds_engine_journal(const struct xds_engine *e)
{
    return e->journal_used;
}

int xds_engine_mirror(struct xds_engine *e, uint64_t *words, int what, unsigned index, unsigned sub)
{
    const unsigned bounds[] = {1,          e->n_channels,    e->n_channels, e->n_feeds,
                               e->n_ports, e->clock != NULL, e->n_ports,    e->n_ports};
    if (what < 0 || what > XDS_MIRROR_TCP || index >= bounds[what] || !words)
        return XDS_ECONFIG;
    if (what == XDS_MIRROR_BOOKS && !e->feeds[index].books)
        return XDS_ECONFIG;
    if (what == XDS_MIRROR_HOST && !e->ports[index].host)
        return XDS_ECONFIG;
    if (what >= XDS_MIRROR_STACK && !e->ports[index].stack)
        return XDS_ECONFIG;
    if (e->n_mirrors == XDSI_MIRRORS)
        return XDS_ECAPACITY;
    e->mirrors[e->n_mirrors++] = (struct xdsi_mirror){
        .words = words, .what = (uint16_t)what, .index = (uint16_t)index, .sub = (uint16_t)sub};
    return 0;
}

union counters {
    struct xds_engine_stats engine;
    struct xds_channel_stats channel;
    struct xds_line_stats line;
    struct xds_books_stats books;
    struct xds_host_stats host;
    struct xds_clock_stats clock;
    struct xds_stack_stats stack;
    struct xds_stack_totals tcp;
};

void xds_engine_reflect(struct xds_engine *e)
{
    union counters now;
    const uint64_t *words = (const uint64_t *)(const void *)&now; /* all of them are u64 throughout */
    for (unsigned i = 0; i < e->n_mirrors; i++) {
        const struct xdsi_mirror *m = &e->mirrors[i];
        size_t bytes = 0;
        switch (m->what) {
        case XDS_MIRROR_ENGINE:
            now.engine = e->stats;
            bytes = sizeof now.engine;
            break;
        case XDS_MIRROR_CHANNEL:
            xds_channel_stats(e->channels[m->index].core, &now.channel);
            bytes = sizeof now.channel;
            break;
        case XDS_MIRROR_LINE:
            if (xds_channel_line_stats(e->channels[m->index].core, m->sub, &now.line) == 0)
                bytes = sizeof now.line;
            break;
        case XDS_MIRROR_BOOKS:
            xds_books_stats(e->feeds[m->index].books, &now.books);
            bytes = sizeof now.books;
            break;
        case XDS_MIRROR_HOST:
            xds_host_stats(e->ports[m->index].host, &now.host);
            bytes = sizeof now.host;
            break;
        case XDS_MIRROR_CLOCK:
            xds_clock_stats(e->clock, &now.clock);
            bytes = sizeof now.clock;
            break;
        case XDS_MIRROR_STACK:
            xds_stack_stats(e->ports[m->index].stack, &now.stack);
            bytes = sizeof now.stack;
            break;
        case XDS_MIRROR_TCP:
            xds_stack_pass(e->ports[m->index].stack, XDSI_PASS);
            xds_stack_seen(e->ports[m->index].stack, &now.tcp);
            bytes = sizeof now.tcp;
            break;
        }
        for (size_t k = 0; k < bytes / sizeof(uint64_t); k++)
            __atomic_store_n(&m->words[k], words[k], __ATOMIC_RELAXED);
    }
    xdsi_conns_look(e);
    e->mirrored = e->now;
}

void xds_engine_follow_turns(struct xds_engine *e, int turn_queue)
{
    e->turn_queue = turn_queue;
}

void xds_engine_stats(const struct xds_engine *e, struct xds_engine_stats *out)
{
    *out = e->stats;
}

int xds_udp_echo(void *ctx, const struct xds_dgram *d, size_t n, struct xds_outbox *out, int64_t now)
{
    for (size_t i = 0; i < n; i++) {
        if (out->count == out->max || out->cap - out->used < d[i].len)
            return 0; /* the bound is the outbox's: what does not fit is not answered */
        xdsi_copy(out->data + out->used, d[i].data, d[i].len);
        out->list[out->count++] = (struct xds_outgoing){.offset = out->used,
                                                        .len = d[i].len,
                                                        .dst = d[i].src,
                                                        .dport = d[i].sport,
                                                        .sport = d[i].dport,
                                                        .port = d[i].port,
                                                        .six = (uint16_t)d[i].six};
        if (d[i].six)
            memcpy(out->list[out->count - 1].dst6, d[i].src6, 16);
        out->used += d[i].len;
    }
    return 0;
}

xds_dgram_hook xds_udp_echo_handler(void)
{
    return xds_udp_echo;
}
