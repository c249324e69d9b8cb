/* turn.c: one pass of the poll loop. No allocation, no lock, and no system call but the ports' own.
 *
 *   take      a burst from every port (releases the leases of the turn before)
 *   step      frames -> host -> datagrams -> line -> channel -> blocks -> decoder -> updates
 *   settle    books take the updates, hooks see them, ages go into the histograms
 *   timers    reorder windows, requests, ARP
 *   send      what hooks, cores and Python want on the wire
 *
 * The order of input, timers and output within a step is part of the recording's contract: a replay
 * runs the same steps at the same `now`, whatever the bursts were (recorder.c, DECISIONS.md).
 */
#include <errno.h>

#include "engine_inl.h"
#include "ports/recorder_inl.h"

/* ---- settle: books, hooks, histograms -------------------------------------------------------- */

static void call_hook(struct xds_engine *e, const struct xds_run *r)
{
    if (!e->hook)
        return;
    e->outbox.feed = r->feed;
    e->outbox.channel = r->channel;
    const int rc = e->hook(e->hook_ctx, e->sink.updates + r->first, r->count, &e->outbox, e->now);
    if (rc < 0) {
        e->stats.hook_failed++;
        e->hook_rc = rc;
    }
}

/* A venue sends so many levels and no more: a book by level must know, or its lowest would go stale. */
static void take_depths(struct xdsi_feed *f)
{
    if (!f->decoder->depth)
        return;
    const uint64_t version = xds_decoder_table_version(f->decoder, f->decoder_mem);
    if (version == f->table_version)
        return;
    f->table_version = version;
    const unsigned count = xds_decoder_instruments(f->decoder, f->decoder_mem);
    for (unsigned i = 0; i < count; i++) {
        const struct xds_instrument *instrument = xds_decoder_instrument(f->decoder, f->decoder_mem, i);
        if (instrument)
            xds_books_set_depth(f->books, i, instrument->depth, instrument->implied_depth);
    }
}

static void settle(struct xds_engine *e)
{
    const uint32_t first = e->settled;
    if (first == e->n_runs && e->aged == e->n_stages)
        return;
    e->decoded_ns = e->staged && e->n_stages ? e->stages[e->n_stages - 1].parsed : xdsi_engine_clock(e);
    for (uint32_t i = first; i < e->n_runs; i++) {
        const struct xds_run *r = &e->runs[i];
        struct xdsi_feed *f = &e->feeds[r->feed];
        if (!f->books)
            continue;
        take_depths(f);
        xds_books_apply(f->books, e->sink.updates + r->first, r->count);
    }
    e->applied_ns = xdsi_engine_clock(e);
    for (; e->settled < e->n_runs; e->settled++) {
        if (e->staged)
            xdsi_stages_enter(e, &e->runs[e->settled],
                              e->hook && e->settled != first ? xdsi_engine_clock(e) : e->applied_ns);
        call_hook(e, &e->runs[e->settled]);
    }
    xdsi_stages_age(e);
}

/* ---- books behind gaps and restarts ---------------------------------------------------------- */

enum book_mark { MARK_STALE, MARK_CLEAR };

static void mark_books(struct xds_engine *e, const struct xdsi_channel *c, enum book_mark mark)
{
    const struct xdsi_feed *f = &e->feeds[c->feed];
    if (!f->books)
        return;
    if (f->channels == 1) {
        if (mark == MARK_CLEAR)
            xds_books_clear(f->books, XDS_ALL_INSTRUMENTS);
        xds_books_set_stale(f->books, XDS_ALL_INSTRUMENTS, mark == MARK_STALE);
        return;
    }
    for (uint32_t i = 0; i < f->owners; i++) {
        if (f->owner[i] != c->number + 1)
            continue;
        if (mark == MARK_CLEAR)
            xds_books_clear(f->books, i);
        xds_books_set_stale(f->books, i, mark == MARK_STALE);
    }
}

/* ---- from a block to runs of updates --------------------------------------------------------- */

static void add_run(struct xds_engine *e, const struct xdsi_channel *c, uint32_t first, uint32_t count)
{
    if (!count)
        return;
    struct xds_run *last = e->n_runs ? &e->runs[e->n_runs - 1] : NULL;
    if (last && e->n_runs > e->settled && last->feed == c->feed && last->channel == c->number) {
        last->count += count;
        last->packets++;
        return;
    }
    e->runs[e->n_runs++] =
        (struct xds_run){.first = first, .count = count, .feed = c->feed, .channel = c->number, .packets = 1};
}

/* A feed of several channels: note whose instruments these are; a venue's "everything clears" means
 * this channel's everything, so it must not reach the books as it is. */
static void add_owned_runs(struct xds_engine *e, const struct xdsi_channel *c, uint32_t first)
{
    const struct xdsi_feed *f = &e->feeds[c->feed];
    for (uint32_t i = first; i < e->sink.n_updates; i++) {
        const struct xds_update *u = &e->sink.updates[i];
        if (u->instrument < f->owners) {
            f->owner[u->instrument] = (uint8_t)(c->number + 1);
        } else if (u->kind == XDS_CLEAR && u->instrument == XDS_ALL_INSTRUMENTS) {
            add_run(e, c, first, i - first);
            settle(e);
            mark_books(e, c, MARK_CLEAR);
            add_run(e, c, i, 1);
            if (e->staged)
                xdsi_stages_enter(e, &e->runs[e->settled], xdsi_engine_clock(e));
            call_hook(e, &e->runs[e->settled++]);
            first = i + 1;
        }
    }
    add_run(e, c, first, e->sink.n_updates - first);
}

/* What an auditor compares with what the venue sent: every block as it was delivered. */
static void write_journal(struct xds_engine *e, const struct xdsi_channel *c, const struct xds_block *b)
{
    const uint64_t need = sizeof(struct xds_journal_entry) + ((b->len + 7) & ~7u);
    if (e->journal_used + need <= e->journal_cap) {
        struct xds_journal_entry *entry = (struct xds_journal_entry *)(e->journal + e->journal_used);
        *entry = (struct xds_journal_entry){.seq = b->seq,
                                            .len = b->len,
                                            .feed = c->feed,
                                            .channel = c->number,
                                            .flags = b->flags,
                                            .line = b->line,
                                            .count = b->count};
        memcpy(entry + 1, b->data, b->len);
    }
    e->journal_used += need;
}

/* Decode one block into the batch. Returns false when the batch has no room for it. */
static bool take_block(struct xds_engine *e, const struct xdsi_channel *c, const struct xds_block *b)
{
    const struct xdsi_feed *f = &e->feeds[c->feed];
    const uint64_t most = 1 + ((uint64_t)b->len * f->decoder->max_updates_per_byte_q8 >> 8);
    if (e->sink.cap_updates - e->sink.n_updates < most)
        return false;
    const uint64_t most_messages = 1 + ((uint64_t)b->len * f->decoder->max_messages_per_byte_q8 >> 8);
    if (e->sink.messages && e->sink.cap_messages - e->sink.n_messages < most_messages)
        return false;
    if (b->flags & (XDS_BLOCK_RESTART | XDS_BLOCK_AFTER_GAP)) {
        settle(e); /* what came before it belongs to the books as they were */
        mark_books(e, c, b->flags & XDS_BLOCK_RESTART ? MARK_CLEAR : MARK_STALE);
    }
    if (e->n_stages == XDS_STAGES_MAX) {
        settle(e);
        xdsi_stages_lose(e);
    }
    const uint32_t first = e->sink.n_updates, first_message = e->sink.n_messages;
    f->decoder->block(f->decoder_mem, b, &e->sink);
    if (!e->virtual_time) /* an age in virtual time says nothing */
        xdsi_stages_note(e, c, b, first, first_message);
    if (e->journal)
        write_journal(e, c, b);
    for (uint32_t i = first_message; i < e->sink.n_messages; i++) {
        e->sink.messages[i].channel = c->number;
        e->sink.messages[i].feed = (uint8_t)c->feed;
    }
    if (f->channels > 1)
        add_owned_runs(e, c, first);
    else
        add_run(e, c, first, e->sink.n_updates - first);
    return true;
}

/* Take every block that a channel has ready; false: the batch is full, go on in the next turn. */
static bool drain(struct xds_engine *e, unsigned channel)
{
    const struct xdsi_channel *c = &e->channels[channel];
    if (e->held_channel == channel) {
        if (!take_block(e, c, &e->held))
            return false;
        e->held_channel = XDSI_NO_CHANNEL;
    }
    struct xds_block b;
    while (xds_channel_next(c->core, &b)) {
        if (take_block(e, c, &b))
            continue;
        e->held = b;
        e->held_channel = (uint16_t)channel;
        e->stalled = true;
        return false;
    }
    return true;
}

/* ---- timers and events ----------------------------------------------------------------------- */

static void read_events(struct xds_engine *e)
{
    for (uint64_t bits = e->touched; bits; bits &= bits - 1) {
        struct xdsi_channel *c = &e->channels[__builtin_ctzll(bits)];
        struct xds_event event;
        bool news = false;
        while (xds_channel_event(c->core, &event)) {
            news = true;
            event.feed = c->feed;
            event.channel = c->number;
            if (event.kind == XDS_EVENT_GAP_LOST) {
                settle(e);
                mark_books(e, c, MARK_STALE);
            }
            e->stats.events++;
            if (e->n_events < e->cfg.max_events)
                e->events[e->n_events++] = event;
            else
                e->stats.events_lost++;
        }
        if (news) {
            struct xds_channel_stats stats;
            xds_channel_stats(c->core, &stats);
            e->open_gaps += (uint32_t)stats.gaps_open - c->open_gaps;
            c->open_gaps = (uint32_t)stats.gaps_open;
        }
        const int64_t deadline = xds_channel_deadline(c->core);
        if (deadline < e->deadline)
            e->deadline = deadline;
    }
    e->touched = 0;
}

static void ask(struct xds_engine *e, const struct xdsi_channel *c)
{
    uint8_t request[64];
    int n;
    while ((n = xds_channel_output(c->core, request, sizeof request, e->now)) > 0) {
        if (!c->server && !c->asks6)
            continue;
        const uint8_t *server6 = c->asks6 ? c->server6 : NULL;
        if (xdsi_send_udp(e, c->via, c->server, server6, c->server_port, c->sport, request, (uint32_t)n) == 0)
            e->stats.requests++;
    }
}

static void host_timers(struct xds_engine *e, struct xdsi_port *p)
{
    if (xds_host_deadline(p->host) <= e->now)
        xds_host_tick(p->host, e->now);
    for (;;) {
        struct xds_frame room;
        if (!xds_host_pending(p->host) || xds_link_reserve(p->link, &room, 1) != 1)
            break;
        const int n = xds_host_output(p->host, &room, e->now);
        if (n <= 0)
            room.len = 0;
        xds_link_commit(p->link, &room, 1);
        p->dirty = true;
        if (n <= 0)
            break;
    }
    const int64_t deadline = xds_host_deadline(p->host);
    if (deadline < e->deadline)
        e->deadline = deadline;
}

/* Everything whose time has come. False: the batch is full; timers go on in the next turn. */
static bool timers(struct xds_engine *e)
{
    if (e->now < e->deadline)
        return true;
    e->deadline = XDS_NEVER;
    for (unsigned i = 0; i < e->n_channels; i++) {
        struct xdsi_channel *c = &e->channels[i];
        if (xds_channel_deadline(c->core) <= e->now) {
            xds_channel_tick(c->core, e->now);
            ask(e, c);
            e->touched |= 1ull << i;
            if (!drain(e, i)) {
                e->deadline = e->now;
                return false;
            }
        }
        const int64_t deadline = xds_channel_deadline(c->core);
        if (deadline < e->deadline)
            e->deadline = deadline;
    }
    for (unsigned i = 0; i < e->n_ports; i++)
        if (e->ports[i].host)
            host_timers(e, &e->ports[i]);
    return true;
}

/* The end of a step: events, then timers at `now`, then what they made. */
static bool end_step(struct xds_engine *e)
{
    read_events(e);
    const bool whole = e->timers_wait || timers(e);
    if (e->touched)
        read_events(e);
    if (e->has_stack) /* whatever else waits: a peer counts on its ACK */
        xdsi_pump_stacks(e);
    e->step_open = !whole;
    return whole;
}

/* ---- datagrams ------------------------------------------------------------------------------- */

static const struct xdsi_route *find_route(const struct xds_engine *e, uint32_t dst, uint16_t dport,
                                           uint32_t src)
{
    for (uint32_t at = xdsi_route_hash(dst, dport); e->routes[at].kind; at = (at + 1) & (XDSI_ROUTES - 1)) {
        const struct xdsi_route *r = &e->routes[at];
        if (r->dst == dst && r->dport == dport && (!r->src || r->src == src))
            return r;
    }
    return dst ? find_route(e, 0, dport, src) : NULL;
}

/* One datagram, wherever it came from. False: the batch is full (the datagram itself is taken). */
static bool take_dgram(struct xds_engine *e, const struct xds_dgram *d)
{
    const struct xdsi_route *r = d->six ? xdsi_find_route6(e, d) : find_route(e, d->dst, d->dport, d->src);
    if (!r) {
        e->stats.unrouted++;
        if (xdsi_watched(e))
            xdsi_show_dgram(e, d);
        return true;
    }
    e->stats.delivered++;
    if (r->kind == XDSI_ROUTE_LINE) {
        struct xdsi_channel *c = &e->channels[r->index];
        e->touched |= 1ull << r->index;
        if (xds_channel_input(c->core, r->line, d->data, d->len, d->rx_ns, e->now) > 0)
            return drain(e, r->index);
        return true;
    }
    struct xdsi_udp *u = &e->udp[r->index];
    if (u->handler) {
        if (e->staged)
            xdsi_stages_dgram(e, u, d);
        if (u->handler(u->ctx, d, 1, &e->outbox, e->now) < 0)
            e->stats.hook_failed++;
        if (e->outbox.count > e->outbox.max / 2)
            xdsi_send_outbox(e);
        return true;
    }
    e->dgram_ends[e->n_dgrams] = (uint8_t)r->index;
    e->dgrams[e->n_dgrams++] = *d;
    return e->n_dgrams < XDSI_DGRAMS || !(e->stalled = true);
}

/* The same over IPv6, which the host has. */
static __attribute__((noinline)) bool take_dgram6(struct xds_engine *e, unsigned port,
                                                  const struct xds_frame *f)
{
    const struct xds_dgram6 *six = xds_host_dgram6(e->ports[port].host);
    struct xds_dgram d = {.data = six->data,
                          .rx_ns = six->rx_ns,
                          .len = six->len,
                          .sport = six->sport,
                          .dport = six->dport,
                          .port = (uint16_t)port,
                          .queue = f->queue,
                          .six = 1};
    memcpy(d.src6, six->src, 16);
    memcpy(d.dst6, six->dst, 16);
    return take_dgram(e, &d);
}

static bool take_frame(struct xds_engine *e, unsigned port, const struct xds_frame *f)
{
    struct xds_dgram d;
    const int rc = xds_host_input(e->ports[port].host, f, &d, e->now);
    if (rc != 1) {
        if (rc == XDS_INPUT_DATAGRAM)
            return take_dgram6(e, port, f);
        if (rc == XDS_INPUT_PACKET) {
            xdsi_take_packet(e, &e->ports[port], f);
        } else if (rc == XDS_INPUT_ERROR) {
            xdsi_take_error(e, &e->ports[port]);
        } else if (rc == 0) {
            e->stats.host_consumed++;
            e->deadline = e->now; /* it may have an answer to send */
        } else {
            e->stats.host_refused++;
            if (xdsi_watched(e))
                xdsi_show_frame(e, port, f);
        }
        return true;
    }
    d.port = (uint16_t)port;
    d.queue = f->queue;
    return take_dgram(e, &d);
}

/* ---- the turn over live ports ---------------------------------------------------------------- */

static int take_burst(struct xds_engine *e)
{
    unsigned total = 0;
    bool full = false;
    for (unsigned i = 0; i < e->n_ports; i++) {
        struct xdsi_port *p = &e->ports[i];
        p->n = p->next = 0;
        int n;
        if (p->sock) {
            xds_sock_release(p->sock);
            n = xds_sock_rx(p->sock, p->dgrams, e->cfg.burst, e->now);
            for (int k = 0; k < n; k++)
                p->dgrams[k].port = (uint16_t)i;
        } else {
            xds_link_release(p->link);
            xds_host_release(p->host);
            n = xds_link_rx(p->link, p->frames, e->cfg.burst, e->now);
        }
        if (n < 0 && n != -EPIPE)
            return n;
        p->ended = n == -EPIPE;
        p->n = n > 0 ? (unsigned)n : 0;
        full |= p->n == e->cfg.burst;
        total += p->n;
    }
    /* A loop that was held up must not give up what already lies in its port's queue: timers wait until
     * the backlog has been read, within a bound. */
    e->full_turns = full ? e->full_turns + 1 : 0;
    e->timers_wait = full && e->full_turns % XDSI_FULL_TURNS;
    return (int)total;
}

static void record_turn(struct xds_engine *e, unsigned frames)
{
    xdsi_recorder_turn(e->recorder, e->stats.turns, e->now, frames, e->timers_wait);
    for (unsigned i = 0; i < e->n_ports; i++) {
        const struct xdsi_port *p = &e->ports[i];
        for (unsigned k = 0; k < p->n; k++) {
            if (p->sock)
                xdsi_recorder_dgram(e->recorder, i, &p->dgrams[k]);
            else
                xdsi_recorder_frame(e->recorder, i, &p->frames[k]);
        }
    }
}

static bool step_live(struct xds_engine *e)
{
    for (unsigned i = 0; i < e->n_ports; i++) {
        struct xdsi_port *p = &e->ports[i];
        while (p->next < p->n) {
            const unsigned k = p->next++;
            e->n_packets++;
            bool room;
            if (p->sock) {
                room = take_dgram(e, &p->dgrams[k]);
            } else {
                if (k + 1 < p->n)
                    __builtin_prefetch(p->frames[k + 1].data);
                room = take_frame(e, i, &p->frames[k]);
            }
            if (!room)
                return false;
        }
    }
    return end_step(e);
}

/* ---- the turn over captures ------------------------------------------------------------------ */

/* Every capture has ended: 0 where each is at its end, else the code of the first that is damaged. */
static int why_ended(struct xds_engine *e)
{
    for (unsigned i = 0; i < e->n_ports; i++) {
        const int rc = xds_link_rx(e->ports[i].link, e->ports[i].frames, 1, XDS_NEVER - 1);
        if (rc < 0 && rc != -EPIPE)
            return rc;
    }
    return 0;
}

/* Take a burst from the capture whose next packet is the earliest, up to the others' next. */
static int take_burst_virtual(struct xds_engine *e)
{
    int64_t first = XDS_NEVER, second = XDS_NEVER;
    unsigned port = 0, ended = 0;
    for (unsigned i = 0; i < e->n_ports; i++) {
        struct xdsi_port *p = &e->ports[i];
        xds_link_release(p->link);
        xds_host_release(p->host);
        p->n = p->next = 0;
        const int64_t next = xds_link_deadline(p->link);
        p->ended = next == XDS_NEVER;
        ended += p->ended;
        if (next < first) {
            second = first;
            first = next;
            port = i;
        } else if (next < second) {
            second = next;
        }
    }
    if (ended == e->n_ports)
        return why_ended(e);
    struct xdsi_port *p = &e->ports[port];
    const int n = xds_link_rx(p->link, p->frames, e->cfg.burst, second == XDS_NEVER ? XDS_NEVER - 1 : second);
    p->n = n > 0 ? (unsigned)n : 0;
    return n == -EPIPE ? 0 : n;
}

/* One packet of a foreign capture: timers that end before it fire first, each at its own time. */
static bool step_packet(struct xds_engine *e, unsigned port, const struct xds_frame *f)
{
    while (e->deadline < f->rx_ns) {
        if (e->deadline > e->now)
            e->now = e->deadline;
        if (!end_step(e))
            return false;
    }
    if (f->rx_ns > e->now)
        e->now = f->rx_ns; /* stamps of a capture may run backwards a little; time does not */
    struct xdsi_port *p = &e->ports[port];
    p->next++;
    e->n_packets++;
    e->stats.packets++;
    e->step_open = true;
    return take_frame(e, port, f) && end_step(e);
}

/* One record of a recording: a turn block sets now and says how many frames it covers. */
static bool step_recorded(struct xds_engine *e, unsigned port, const struct xds_frame *f)
{
    struct xdsi_port *p = &e->ports[port];
    p->next++;
    bool room = true;
    if (f->queue == (uint16_t)e->turn_queue) {
        struct xdsi_turn_block block;
        if (xdsi_recorder_parse(f, &block) < 0)
            return true;
        e->now = block.now_ns;
        e->timers_wait = block.timers_wait;
        e->turn_left = block.frames;
    } else {
        e->n_packets++;
        e->stats.packets++;
        if (e->turn_left)
            e->turn_left--;
        room = take_frame(e, port, f);
    }
    e->step_open = !e->turn_left;
    return room && (e->turn_left || end_step(e));
}

static bool step_virtual(struct xds_engine *e)
{
    for (unsigned i = 0; i < e->n_ports; i++) {
        struct xdsi_port *p = &e->ports[i];
        while (p->next < p->n) {
            const struct xds_frame *f = &p->frames[p->next];
            if (!(e->turn_queue >= 0 ? step_recorded(e, i, f) : step_packet(e, i, f)))
                return false;
        }
    }
    return true;
}

/* ---- the calls ------------------------------------------------------------------------------- */

static void begin_batch(struct xds_engine *e)
{
    e->sink.n_updates = e->sink.n_messages = 0;
    e->n_runs = e->settled = e->n_events = e->n_dgrams = e->n_packets = 0;
    e->n_stages = e->aged = e->entered = 0;
    e->staged = !e->virtual_time && !(e->cfg.flags & XDS_ENGINE_NO_STAGES);
    e->decoded_ns = e->applied_ns = e->dgrams_ns = 0;
    e->hook_rc = 0;
}

/* Go on where a full batch stopped the turn before. False: full again. */
static bool resume(struct xds_engine *e)
{
    e->stalled = false;
    if (e->held_channel != XDSI_NO_CHANNEL && !drain(e, e->held_channel)) {
        e->stalled = true;
        return false;
    }
    if (e->virtual_time && e->step_open && !end_step(e)) {
        e->stalled = true;
        return false;
    }
    return true;
}

/* What the turn made. Field by field: a literal would clear the whole of it first, every turn. */
static void show_batch(struct xds_engine *e, bool ended, struct xds_batch *out)
{
    out->now = e->now;
    out->decoded_ns = e->decoded_ns;
    out->applied_ns = e->applied_ns;
    out->turn = e->stats.turns;
    out->updates = e->sink.updates;
    out->messages = e->sink.messages;
    out->events = e->events;
    out->runs = e->runs;
    out->dgrams = e->dgrams;
    out->dgrams_ns = e->dgrams_ns;
    out->n_updates = e->sink.n_updates;
    out->n_messages = e->sink.n_messages;
    out->n_events = e->n_events;
    out->n_runs = e->n_runs;
    out->n_dgrams = e->n_dgrams;
    out->n_packets = e->n_packets;
    out->open_gaps = e->open_gaps;
    out->end = ended;
    out->hook_rc = e->hook_rc;
    out->n_stages = e->staged ? e->n_stages : 0;
    out->stages = e->stages;
}

static bool flush_ports(struct xds_engine *e)
{
    bool ended = e->n_ports > 0 && !e->stalled;
    for (unsigned i = 0; i < e->n_ports; i++) {
        struct xdsi_port *p = &e->ports[i];
        if (p->dirty && p->link && xds_link_flush(p->link, e->now) <= 0)
            p->dirty = false;
        ended &= p->ended;
    }
    return ended;
}

static void end_batch(struct xds_engine *e, struct xds_batch *out)
{
    settle(e);
    if (e->outbox.count)
        xdsi_send_outbox(e);
    if (e->staged && e->n_stages)
        xdsi_stages_fold_all(e);
    if (e->staged && e->n_dgrams)
        xdsi_stages_dgrams(e);
    const bool ended = flush_ports(e);
    e->stats.updates += e->sink.n_updates;
    e->stats.messages += e->sink.n_messages;
    show_batch(e, ended, out);
}

static inline void reflect_at_times(struct xds_engine *e)
{
    if (e->now - e->mirrored >= XDSI_MIRROR_NS && e->n_mirrors)
        xds_engine_reflect(e);
}

int xds_engine_turn(struct xds_engine *e, int64_t now_ns, struct xds_batch *out)
{
    begin_batch(e);
    const bool resumed = e->stalled;
    int taken = 0;
    if (resumed) {
        if (!resume(e)) {
            end_batch(e, out);
            return (int)e->n_packets;
        }
    } else if (e->virtual_time) {
        taken = take_burst_virtual(e);
    } else {
        e->now = now_ns ? now_ns : xdsi_engine_clock(e);
        taken = take_burst(e);
        if (taken > 0)
            e->stats.packets += (unsigned)taken;
    }
    if (taken < 0) {
        end_batch(e, out);
        return taken;
    }
    e->stats.turns++;
    if (!taken && !resumed && !e->virtual_time && e->now < e->deadline) { /* most turns of a spinning loop */
        show_batch(e, flush_ports(e), out);
        reflect_at_times(e);
        return 0;
    }
    if (e->recorder && !resumed && (taken || e->now >= e->deadline))
        record_turn(e, (unsigned)taken);
    e->stalled |= !(e->virtual_time ? step_virtual(e) : step_live(e));
    end_batch(e, out);
    if (e->n_packets && !e->virtual_time) {
        const int64_t spent = xdsi_engine_clock(e) - e->now;
        e->stats.turns_busy++;
        e->stats.busy_ns += (uint64_t)spent;
        if (__builtin_expect(e->cfg.slow_ns && spent > e->cfg.slow_ns, 0))
            xdsi_note_slow(e, spent);
    }
    reflect_at_times(e);
    return (int)e->n_packets;
}

int xds_engine_poll(struct xds_engine *e, uint32_t spins, struct xds_batch *out)
{
    for (;;) {
        const int rc = xds_engine_turn(e, 0, out);
        if (rc || out->n_updates || out->n_events || out->end || !spins--)
            return rc;
    }
}

/* What was committed leaves now. */
static int sent(struct xds_engine *e, unsigned port, int rc)
{
    if (rc == 0 && e->ports[port].link && xds_link_flush(e->ports[port].link, e->now) <= 0)
        e->ports[port].dirty = false;
    return rc;
}

int xds_engine_send(struct xds_engine *e, unsigned port, uint32_t dst, uint16_t dport, uint16_t sport,
                    const uint8_t *data, uint32_t len)
{
    if (!e->virtual_time)
        e->now = xdsi_engine_clock(e);
    return sent(e, port, xdsi_send_udp(e, port, dst, NULL, dport, sport, data, len));
}

int xds_engine_send6(struct xds_engine *e, unsigned port, const uint8_t dst[16], uint16_t dport,
                     uint16_t sport, const uint8_t *data, uint32_t len)
{
    const struct xdsi_addr a = xdsi_addr_of(dst);

    if (xdsi_addr_is4(a))
        return xds_engine_send(e, port, xdsi_addr_ip4(a), dport, sport, data, len);
    if (!e->virtual_time)
        e->now = xdsi_engine_clock(e);
    return sent(e, port, xdsi_send_udp(e, port, 0, dst, dport, sport, data, len));
}

int xds_engine_finish(struct xds_engine *e, struct xds_batch *out)
{
    begin_batch(e);
    if (resume(e)) {
        for (unsigned i = 0; i < e->n_channels; i++) {
            xds_channel_finish(e->channels[i].core, e->now);
            e->touched |= 1ull << i;
            if (!drain(e, i))
                break;
        }
        read_events(e);
    }
    end_batch(e, out);
    return e->stalled;
}
