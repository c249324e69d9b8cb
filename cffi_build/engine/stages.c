/* stages.c: the rows of a batch that say when its messages passed each stage. */
#include "engine_inl.h"
#include "ground/stages_inl.h"

int xds_engine_set_stages(struct xds_engine *e, unsigned feed, const struct xds_stage_hists *hists)
{
    if (feed >= e->n_feeds)
        return XDS_ECONFIG;
    e->feeds[feed].stages = *hists;
    return 0;
}

int xds_engine_set_udp_stages(struct xds_engine *e, unsigned endpoint, const struct xds_stage_hists *hists)
{
    if (endpoint >= e->n_udp)
        return XDS_ECONFIG;
    e->udp[endpoint].stages = *hists;
    return 0;
}

/* Its stages are its own stamp, the turn's, and one reading of the clock; nobody parses it. */
static void fold_dgram(struct xdsi_udp *u, const struct xds_dgram *d, int64_t wake, int64_t callback)
{
    const struct xds_stages row = {.receive = d->rx_ns, .wake = wake, .callback = callback};
    xdsi_stages_fold(&u->stages, &row);
}

void xdsi_stages_dgram(struct xds_engine *e, struct xdsi_udp *u, const struct xds_dgram *d)
{
    if (u->stages.of[XDS_STAGE_TOTAL] && d->rx_ns)
        fold_dgram(u, d, e->now, xdsi_engine_clock(e));
}

void xdsi_stages_dgrams(struct xds_engine *e)
{
    e->dgrams_ns = xdsi_engine_clock(e);
    for (uint32_t i = 0; i < e->n_dgrams; i++)
        fold_dgram(&e->udp[e->dgram_ends[i]], &e->dgrams[i], e->now, e->dgrams_ns);
}

void xdsi_stages_note(struct xds_engine *e, const struct xdsi_channel *c, const struct xds_block *b,
                      uint32_t first, uint32_t first_message)
{
    struct xds_stages *s = &e->stages[e->n_stages++];
    s->receive = b->rx_ns;
    s->wake = e->now;
    s->tls_start = s->tls_end = 0;
    s->parsed = e->staged ? xdsi_engine_clock(e) : 0;
    s->callback = 0;
    s->first = first;
    s->first_message = first_message;
    s->count = (uint16_t)(e->sink.n_updates - first);
    s->messages = (uint16_t)(e->sink.n_messages - first_message);
    s->feed = c->feed;
    s->channel = c->number;
}

/* The hook is about to see the updates of a run: its rows are beside them in the outbox. */
void xdsi_stages_enter(struct xds_engine *e, const struct xds_run *r, int64_t entered)
{
    const uint32_t end = r->first + r->count, begin = e->entered;
    uint32_t i = begin;
    bool cut = false;
    for (; i < e->n_stages && e->stages[i].first < end && !cut; i += !cut) {
        struct xds_stages *s = &e->stages[i];
        if (s->count && !s->callback)
            s->callback = entered;
        cut = s->first + s->count > end; /* the rest of its updates is another run */
    }
    e->outbox.stages = e->stages + begin;
    e->outbox.n_stages = i + cut - begin;
    e->entered = i;
}

void xdsi_stages_age(struct xds_engine *e)
{
    for (; e->aged < e->n_stages; e->aged++) {
        const struct xds_stages *s = &e->stages[e->aged];
        const struct xdsi_feed *f = &e->feeds[s->feed];
        if (f->decoded)
            xdsi_hist_record(f->decoded, (s->parsed ? s->parsed : e->decoded_ns) - s->receive);
        if (f->applied)
            xdsi_hist_record(f->applied, e->applied_ns - s->receive);
    }
}

void xdsi_stages_fold_all(struct xds_engine *e)
{
    for (uint32_t i = 0; i < e->n_stages; i++)
        xdsi_stages_fold(&e->feeds[e->stages[i].feed].stages, &e->stages[i]);
}

/* To the batch, not to the histograms. */
void xdsi_stages_lose(struct xds_engine *e)
{
    if (e->staged) {
        xdsi_stages_fold_all(e);
        e->stats.stages_lost += e->n_stages;
    }
    e->n_stages = e->aged = e->entered = 0;
}
