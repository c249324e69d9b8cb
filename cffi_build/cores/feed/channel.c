/* channel.c: one sequenced channel, see xds/channel.h. The in-order path. */
#include "session_inl.h"

struct xds_channel {
    struct xds_channel_config cfg;
    struct xds_channel_stats stats;
    struct xds_line_stats lines[XDS_LINES_MAX + 1];
    struct xdsi_packet pend;
    struct xds_event events[64];
    uint64_t next_seq;
    uint32_t ev_head, ev_tail;
    uint8_t joined, ready, flags, sticky;
};

size_t xds_channel_size(const struct xds_channel_config *cfg)
{
    if (cfg->session < XDS_SESSION_PLAIN || cfg->session > XDS_SESSION_CME || !cfg->lines ||
        cfg->lines > XDS_LINES_MAX)
        return 0;
    return sizeof(struct xds_channel);
}

int xds_channel_init(void *mem, const struct xds_channel_config *cfg)
{
    struct xds_channel *c = mem;

    if (!xds_channel_size(cfg))
        return XDS_ECONFIG;
    memset(c, 0, sizeof *c);
    c->cfg = *cfg;
    c->joined = cfg->start == XDS_START_FIRST;
    c->next_seq = cfg->first_seq;
    return 0;
}

static void post(struct xds_channel *c, uint32_t kind, uint64_t first, uint64_t count, int64_t now)
{
    if (c->ev_tail - c->ev_head == 64) {
        c->stats.events_lost++;
        return;
    }
    c->events[c->ev_tail++ % 64] =
        (struct xds_event){.ns = now, .first = first, .count = count, .kind = kind};
}

int xds_channel_input(struct xds_channel *c, unsigned line, const uint8_t *data, uint32_t len, int64_t rx_ns,
                      int64_t now_ns)
{
    struct xdsi_packet *p = &c->pend;
    struct xds_line_stats *l = &c->lines[line];
    int rc;

    if (line > c->cfg.lines)
        return XDS_ESTATE;
    l->packets++;
    l->bytes += len;
    switch (c->cfg.session) {
    case XDS_SESSION_MOLD64:
        rc = xdsi_parse_mold(data, len, p);
        break;
    case XDS_SESSION_IEXTP:
        rc = xdsi_parse_iextp(data, len, p);
        break;
    case XDS_SESSION_CME:
        rc = xdsi_parse_cme(data, len, p);
        break;
    default:
        rc = xdsi_parse_plain(data, len, p);
        break;
    }
    if (rc) {
        *(rc == XDS_ETRUNC ? &l->truncated : &l->malformed) += 1;
        return rc;
    }
    if (!c->joined) {
        c->joined = 1;
        c->next_seq = p->seq;
        post(c, XDS_EVENT_JOINED, p->seq, 0, now_ns);
    }
    if (p->kind != XDSI_PACKET_DATA) {
        l->heartbeat++;
        return 0;
    }
    if (p->seq < c->next_seq) {
        l->duplicate++;
        return 0;
    }
    if (p->seq > c->next_seq) {
        uint64_t n = p->seq - c->next_seq;
        post(c, XDS_EVENT_GAP_FOUND, c->next_seq, n, now_ns);
        post(c, XDS_EVENT_GAP_LOST, c->next_seq, n, now_ns);
        c->stats.gaps_found++, c->stats.gaps_lost++;
        c->stats.units_missed += n, c->stats.units_lost += n;
        c->flags |= XDS_BLOCK_AFTER_GAP;
        c->sticky |= XDS_BLOCK_STALE;
    }
    l->won++;
    p->line = (uint8_t)line;
    p->rx_ns = rx_ns;
    c->next_seq = p->seq + p->units;
    c->ready = 1;
    return 1;
}

int xds_channel_next(struct xds_channel *c, struct xds_block *out)
{
    const struct xdsi_packet *p = &c->pend;

    if (!c->ready)
        return 0;
    c->ready = 0;
    *out = (struct xds_block){.data = p->data,
                              .rx_ns = p->rx_ns,
                              .venue_ns = p->venue_ns,
                              .seq = p->seq,
                              .len = p->len,
                              .count = p->count,
                              .line = p->line,
                              .flags = (uint8_t)(c->flags | c->sticky)};
    c->flags = 0;
    c->stats.blocks++;
    c->stats.messages += p->count == XDSI_COUNT_NONE ? 0 : p->count;
    return 1;
}

int xds_channel_output(struct xds_channel *c, uint8_t *room, uint32_t cap, int64_t now_ns)
{
    return 0;
}

int64_t xds_channel_deadline(const struct xds_channel *c)
{
    return XDS_NEVER;
}

void xds_channel_tick(struct xds_channel *c, int64_t now_ns) {}

int xds_channel_event(struct xds_channel *c, struct xds_event *out)
{
    if (c->ev_head == c->ev_tail)
        return 0;
    *out = c->events[c->ev_head++ % 64];
    return 1;
}

void xds_channel_finish(struct xds_channel *c, int64_t now_ns) {}

void xds_channel_stats(const struct xds_channel *c, struct xds_channel_stats *out)
{
    *out = c->stats;
    out->next_seq = c->next_seq;
}

int xds_channel_line_stats(const struct xds_channel *c, unsigned line, struct xds_line_stats *out)
{
    if (line > c->cfg.lines)
        return XDS_ECONFIG;
    *out = c->lines[line];
    return 0;
}
