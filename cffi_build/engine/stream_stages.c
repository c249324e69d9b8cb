/* stream_stages.c: when the bytes and messages of connections passed each stage.
 *
 * Of an event with bytes the moment counts when its hook was entered; of a hook that frames, those of each message. A connection gets a place
 * with histograms of its own when it opens, as long as there is one; a place whose connection is gone is cleared for
 * the next.
 */
#include "engine_inl.h"
#include "ground/stages_inl.h"
#include "ground/wire_inl.h"

int xds_engine_set_conn_stages(struct xds_engine *e, struct xds_stage_conn *conns, unsigned n)
{
    if (!n || n > XDS_STAGE_CONNS_MAX + 1 || e->n_conns)
        return XDS_ECONFIG;
    if (e->cfg.flags & XDS_ENGINE_NO_STAGES)
        return 0;
    e->conns = conns;
    e->n_conns = n;
    return 0;
}

/* Of a key: no port of this engine, so it is a kernel socket's. */
#define FOREIGN ((uint64_t)(XDS_ENGINE_PORTS + 1) << 32)

static unsigned place_of(const struct xds_engine *e, uint64_t key)
{
    unsigned i = 0;
    while (i < e->n_conns - 1 && e->conn_keys[i] != key)
        i++;
    return i;
}

static bool is_free(const struct xds_engine *e, unsigned place)
{
    const uint64_t key = e->conn_keys[place];
    if (key >= FOREIGN)
        return false; /* until it says so */
    return !key || !xds_stack_tcp(e->ports[(key >> 32) - 1].stack, (int)(uint32_t)key);
}

static void put(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* A few microseconds, once a connection, where the place was another's. */
static void give_place(struct xds_engine *e, unsigned place, uint64_t key, const struct xds_stack_ends *ends)
{
    struct xds_stage_conn *c = &e->conns[place];
    struct xds_stage_conn_words *w = c->words;

    if (w->connections)
        for (unsigned i = 0; i < XDS_STAGES; i++)
            if (c->hists.of[i])
                xds_hist_clear(c->hists.of[i]);
    c->hists.leave_out = c->warm_up;
    e->told[place] = (struct xdsi_told){.key = 0};
    e->conn_keys[place] = key;
    put(&w->connections, w->connections + 1);
    put(&w->id, (uint32_t)key);
    put(&w->port, (key >> 32) - 1);
    put(&w->local_port, ends->local_port);
    put(&w->remote_port, ends->remote_port);
    put(&w->remote_high, xdsi_be64(ends->remote));
    put(&w->remote_low, xdsi_be64(ends->remote + 8));
}

/* ends: NULL where the stack knows them. */
static unsigned take_place(struct xds_engine *e, uint64_t key, const struct xds_stack_ends *ends)
{
    struct xds_stack_ends own;
    const unsigned last = e->n_conns - 1;
    unsigned place = place_of(e, key);

    if (place != last)
        return place;
    for (place = 0; place < last && !is_free(e, place); place++)
        ;
    if (!ends) {
        if (xds_stack_ends(e->ports[(key >> 32) - 1].stack, (int)(uint32_t)key, &own) < 0)
            memset(&own, 0, sizeof own);
        ends = &own;
    }
    if (place != last)
        give_place(e, place, key, ends);
    else
        put(&e->conns[last].words->connections, e->conns[last].words->connections + 1);
    if (e->told[place].key == key)
        e->told[place] = (struct xdsi_told){.key = 0}; /* one that is gone had the same number */
    return place;
}

void xdsi_stream_begin(struct xds_engine *e, struct xdsi_port *p, const struct xds_stack_event *event)
{
    struct xds_stages *row = &e->event;
    const uint64_t key = (uint64_t)(p - e->ports + 1) << 32 | event->id;

    row->channel = (uint16_t)(event->what & XDS_STACK_OPEN ? take_place(e, key, NULL) : place_of(e, key));
    row->receive = event->rx_ns;
    row->wake = event->read_ns;
    row->tls_start = row->tls_end = 0;
    row->callback = event->rx_ns && !p->framer ? xdsi_engine_clock(e) : 0;
    e->moments[0].parsed = 0;
    e->n_moments = 0;
    e->moments_folded = false;
    e->event_port = p;
}

/* What is each message's own, of messages from i on that all count; `at`: when they could be read. */
static void fold_messages(struct xds_engine *e, struct xds_stage_hists *h, uint32_t i, int64_t at)
{
    const int64_t receive = e->event.receive;
    struct xdsi_hist_run parsed = xdsi_hist_begin(h->of[XDS_STAGE_PARSED]),
                         callback = xdsi_hist_begin(h->of[XDS_STAGE_CALLBACK]),
                         total = xdsi_hist_begin(h->of[XDS_STAGE_TOTAL]);
    uint32_t n_odd = 0; /* kept at the beginning: not framed, or a clock that stepped */

    for (; i < e->n_moments; i++) {
        const struct xdsi_moment m = e->moments[i];
        const int64_t to_parsed = m.parsed - at, to_callback = m.callback - m.parsed,
                      whole = m.callback - receive;
        if (__builtin_expect(!m.parsed || !xdsi_hist_fits(to_parsed | to_callback | whole), 0)) {
            e->moments[n_odd++] = m;
            continue;
        }
        xdsi_hist_add(&parsed, to_parsed);
        xdsi_hist_add(&callback, to_callback);
        xdsi_hist_add(&total, whole);
    }
    xdsi_hist_end(&parsed);
    xdsi_hist_end(&callback);
    xdsi_hist_end(&total);
    for (i = 0; i < n_odd; i++)
        xdsi_stages_fold_message(h, receive, at, e->moments[i].parsed, e->moments[i].callback);
}

/* As xds_engine_set_conn_stages() was given them, any of which may not be there. */
static bool has_all(const struct xds_stage_hists *h)
{
    return h->of[XDS_STAGE_PARSED] && h->of[XDS_STAGE_CALLBACK] && h->of[XDS_STAGE_TOTAL];
}

/* When the messages under way could be read. The wake is the event's, and counted once; an event may bring several
 * records of TLS, whose two moments count once each. */
static int64_t fold_read(struct xds_engine *e, struct xds_stage_hists *h)
{
    const struct xds_stages *s = &e->event;
    const bool again = e->moments_folded, same = e->tls_folded == s->tls_end;

    e->moments_folded = true;
    e->tls_folded = s->tls_end;
    if (!again)
        return xdsi_stages_fold_read(h, s);
    if (same)
        return xdsi_stages_read(s);
    const int64_t at =
        xdsi_stage_end(h->of[XDS_STAGE_TLS_START], s->wake ? s->wake : s->receive, s->tls_start);
    return xdsi_stage_end(h->of[XDS_STAGE_TLS_END], at, s->tls_end);
}

/* What is not each message's own first, then that. */
static void fold(struct xds_engine *e)
{
    const struct xds_stages *s = &e->event;
    struct xds_stage_hists *h = &e->conns[s->channel].hists;
    uint32_t i = 0;

    while (i < e->n_moments && (h->leave_out || !s->receive) && !xdsi_stages_counts(h, s))
        i++;
    if (i < e->n_moments) {
        const int64_t at = fold_read(e, h);
        if (has_all(h))
            fold_messages(e, h, i, at);
        else
            for (; i < e->n_moments; i++)
                xdsi_stages_fold_message(h, s->receive, at, e->moments[i].parsed, e->moments[i].callback);
    }
    e->n_moments = 0;
    e->moments[0].parsed = 0;
}

void xdsi_stream_end(struct xds_engine *e)
{
    if (!e->n_moments && !e->moments_folded && e->event.callback)
        e->moments[e->n_moments++] = (struct xdsi_moment){.callback = e->event.callback};
    if (e->n_moments)
        fold(e);
}

/* Its user is told of bytes now. Returns whether that counts, and not the messages among them. */
static bool tell(struct xds_engine *e, unsigned place, uint64_t key, int64_t receive, int64_t wake)
{
    struct xdsi_told *t = &e->told[place];
    const bool frames = t->key == key && t->frames;

    *t = (struct xdsi_told){.key = key, .receive = receive, .wake = wake, .frames = frames, .woke = !frames};
    return !frames;
}

int xds_engine_conn_message(struct xds_engine *e, unsigned port, uint32_t id, struct xds_stages *out)
{
    const uint64_t key = (uint64_t)(port + 1) << 32 | id;

    if (!e->n_conns)
        return 0;
    const unsigned place = place_of(e, key);
    struct xdsi_told *t = &e->told[place];
    struct xds_stage_hists *h = &e->conns[place].hists;
    if (t->key != key)
        return 0;
    const int64_t now =
        port < XDS_ENGINE_PORTS || !e->clock ? xdsi_engine_clock(e) : xdsi_clock_now(e->clock);
    *out = (struct xds_stages){.receive = t->receive, .wake = t->wake, .parsed = now, .callback = now};
    if (xdsi_stages_counts(h, out)) {
        const int64_t at = t->woke ? xdsi_stages_read(out) : xdsi_stages_fold_read(h, out);
        xdsi_stages_fold_message(h, out->receive, at, now, now);
        t->woke = true;
    }
    t->frames = true;
    return 1;
}

void xds_engine_conn_begin(struct xds_engine *e, uint32_t mine, const struct xds_stack_ends *ends)
{
    if (e->n_conns)
        take_place(e, FOREIGN | mine, ends);
}

int64_t xds_engine_conn_entered(struct xds_engine *e, uint32_t mine, int64_t receive, int64_t wake)
{
    if (!e->n_conns || !receive)
        return 0;
    const struct xds_stages row = {
        .receive = receive, .wake = wake, .callback = e->clock ? xdsi_clock_now(e->clock) : wake};
    const unsigned place = place_of(e, FOREIGN | mine);
    if (tell(e, place, FOREIGN | mine, receive, wake))
        xdsi_stages_fold(&e->conns[place].hists, &row);
    return row.callback;
}

static void show(struct xds_stage_conn_words *w, const struct xds_tcp_info *info, uint64_t retransmits,
                 uint64_t delivery_rate)
{
    put(&w->state, info->state);
    put(&w->srtt_ns, (uint64_t)info->srtt_ns);
    put(&w->rtt_min_ns, (uint64_t)info->rtt_min_ns);
    put(&w->cwnd, info->cwnd);
    put(&w->in_flight, info->in_flight);
    put(&w->outstanding, info->outstanding);
    put(&w->lost, info->lost);
    put(&w->retransmits, retransmits);
    put(&w->delivery_rate, delivery_rate);
}

static const struct xds_tcp_info gone = {.state = XDS_TCP_CLOSED};

/* One place a time: what it looks at may be cold. */
void xdsi_conns_look(struct xds_engine *e)
{
    struct xds_tcp_info info = gone;
    struct xds_tcp_stats stats = {.retransmits = 0};

    if (e->n_conns < 2)
        return;
    e->conn_look = e->conn_look + 1 < e->n_conns - 1 ? e->conn_look + 1 : 0;
    const uint64_t key = e->conn_keys[e->conn_look];
    if (!key || key >= FOREIGN)
        return; /* nobody's; or it says so itself */
    const struct xds_tcp *t = xds_stack_tcp(e->ports[(key >> 32) - 1].stack, (int)(uint32_t)key);
    if (t) {
        xds_tcp_info(t, &info);
        xds_tcp_stats(t, &stats);
    }
    show(e->conns[e->conn_look].words, &info, stats.retransmits, 0);
}

void xds_engine_conn_told(struct xds_engine *e, uint32_t mine, const struct xds_tcp_info *info,
                          uint64_t retransmits, uint64_t delivery_rate)
{
    if (!e->n_conns)
        return;
    const unsigned place = place_of(e, FOREIGN | mine);
    if (place < e->n_conns - 1)
        show(e->conns[place].words, info, retransmits, delivery_rate);
}

void xds_engine_conn_end(struct xds_engine *e, uint32_t mine)
{
    for (unsigned i = 0; i + 1 < e->n_conns; i++)
        if (e->conn_keys[i] == (FOREIGN | mine)) {
            e->conn_keys[i] = 0;
            show(e->conns[i].words, &gone, 0, 0);
        }
}

void xds_engine_parsed(struct xds_engine *e)
{
    if (e->n_conns)
        e->moments[e->n_moments].parsed = xdsi_engine_clock(e);
}

static inline void next_moment(struct xds_engine *e, int64_t callback)
{
    e->event_port->framer = true;
    e->moments[e->n_moments++].callback = callback;
    if (e->n_moments == XDSI_MOMENTS)
        fold(e);
    else
        e->moments[e->n_moments].parsed = 0;
}

void xds_engine_entered(struct xds_engine *e)
{
    if (e->n_conns)
        next_moment(e, xdsi_engine_clock(e));
}

void xds_engine_message(struct xds_engine *e)
{
    if (!e->n_conns)
        return;
    const int64_t now = xdsi_engine_clock(e);
    e->moments[e->n_moments].parsed = now;
    next_moment(e, now);
}

void xdsi_stream_message(struct xds_engine *e, int64_t parsed, int64_t callback)
{
    if (!e->n_conns)
        return;
    e->moments[e->n_moments].parsed = parsed;
    next_moment(e, callback);
}

void xdsi_stream_fold(struct xds_engine *e)
{
    if (e->n_moments)
        fold(e);
}

int xds_engine_stream_event(struct xds_engine *e, unsigned port, struct xds_stack_event *out,
                            struct xds_stages *stages)
{
    if (port >= e->n_ports || !e->ports[port].stack)
        return XDS_ECONFIG;
    if (!xds_stack_event(e->ports[port].stack, out))
        return 0;
    stages->receive = 0;
    if (!e->n_conns)
        return 1;
    xdsi_stream_begin(e, &e->ports[port], out);
    if (out->rx_ns && !e->event.callback)
        e->event.callback = xdsi_engine_clock(e);
    *stages = e->event;
    if (out->rx_ns &&
        tell(e, stages->channel, (uint64_t)(port + 1) << 32 | out->id, out->rx_ns, out->read_ns))
        xdsi_stream_end(e);
    return 1;
}
