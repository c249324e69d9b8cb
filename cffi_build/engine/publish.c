/* publish.c: a turn's batch onto a tape that other processes read, and their commands out of a ring. What comes
 * by the ring was written by somebody else: every length is looked at, and nothing of it can stop the turn.
 */
#include "ground/ring_inl.h"
#include "publish_inl.h"

#define DATAGRAM 65507
#define SUBSCRIBABLE                                                                                         \
    (1u << XDS_PUBLISH_UPDATES | 1u << XDS_PUBLISH_EVENTS | 1u << XDS_PUBLISH_MESSAGES |                     \
     1u << XDS_PUBLISH_STATE)

int xds_publisher_init(struct xds_publisher *p, struct xds_tape_writer *tape, struct xds_ring *commands,
                       uint32_t what, uint32_t feeds, int64_t state_ns)
{
    if (what & ~SUBSCRIBABLE || feeds >> XDS_ENGINE_FEEDS || state_ns < 0 || tape->tape->record_len ||
        tape->bytes < 65536)
        return XDS_ECONFIG;
    memset(p, 0, sizeof *p);
    p->tape = tape;
    p->commands = commands;
    p->command_bytes = commands ? commands->bytes : 0;
    p->command_header = commands ? commands->header_bytes : 0;
    p->state_ns = state_ns;
    p->stats.what = what;
    p->stats.feeds = feeds;
    return 0;
}

static bool wants(const struct xds_publisher *p, enum xds_publish_kind kind)
{
    return p->stats.what >> kind & 1;
}

struct xds_publish_head *xdsi_publish_begin(struct xds_publisher *p, const struct xds_batch *b, uint32_t data)
{
    void *room;
    if (xdsi_tape_claim(p->tape, (uint32_t)sizeof(struct xds_publish_head) + data, &room) != 1)
        return NULL;
    struct xds_publish_head *head = room;
    *head = (struct xds_publish_head){.now = b->now,
                                      .decoded_ns = b->decoded_ns,
                                      .applied_ns = b->applied_ns,
                                      .turn = b->turn,
                                      .open_gaps = b->open_gaps};
    return head;
}

void xdsi_publish_end(struct xds_publisher *p, enum xds_publish_kind kind, uint32_t data)
{
    xdsi_tape_commit(p->tape, kind, (uint32_t)sizeof(struct xds_publish_head) + data);
    p->stats.records[kind]++;
}

/* An array of things in as many records as it takes. */
static void publish_array(struct xds_publisher *p, const struct xds_batch *b, enum xds_publish_kind kind,
                          const void *things, uint32_t count, uint32_t size, const struct xds_run *run)
{
    const uint32_t each = (xdsi_publish_most(p) - (uint32_t)sizeof(struct xds_publish_head)) / size;
    for (uint32_t done = 0; done < count;) {
        const uint32_t n = count - done < each ? count - done : each;
        struct xds_publish_head *head = xdsi_publish_begin(p, b, n * size);
        if (!head)
            return;
        head->count = n;
        head->feed = run ? run->feed : 0;
        head->channel = run ? run->channel : 0;
        memcpy(head + 1, (const uint8_t *)things + (size_t)done * size, (size_t)n * size);
        xdsi_publish_end(p, kind, n * size);
        done += n;
    }
}

/* The stages of updates first to end, whose packets' rows are ordered as they are; *from: the first that may be
 * theirs. A packet whose updates are in two records has a row in both. NULL: only count them. */
static uint32_t put_rows(const struct xds_batch *b, uint32_t *from, uint32_t first, uint32_t end,
                         struct xds_stages *out)
{
    uint32_t n = 0;
    while (*from < b->n_stages && b->stages[*from].first + b->stages[*from].count <= first)
        ++*from;
    for (uint32_t i = *from; i < b->n_stages && b->stages[i].first < end; i++) {
        const struct xds_stages *row = &b->stages[i];
        const uint32_t begins = row->first > first ? row->first : first,
                       ends = row->first + row->count < end ? row->first + row->count : end;
        if (begins >= ends)
            continue;
        if (out) {
            out[n] = *row;
            out[n].first = begins - first;
            out[n].count = (uint16_t)(ends - begins);
            out[n].first_message = out[n].messages = 0;
        }
        n++;
    }
    return n;
}

/* The updates of a run, each record with the stages of its packets. */
static void publish_run(struct xds_publisher *p, const struct xds_batch *b, const struct xds_run *run,
                        uint32_t *row)
{
    const uint32_t size = sizeof(struct xds_update),
                   most = size + (b->n_stages ? (uint32_t)sizeof(struct xds_stages) : 0),
                   each = (xdsi_publish_most(p) - (uint32_t)sizeof(struct xds_publish_head)) / most;
    for (uint32_t done = 0, n; done < run->count; done += n) {
        n = run->count - done < each ? run->count - done : each;
        const uint32_t first = run->first + done, rows = put_rows(b, row, first, first + n, NULL),
                       data = n * size + rows * (uint32_t)sizeof(struct xds_stages);
        struct xds_publish_head *head = xdsi_publish_begin(p, b, data);
        if (!head)
            return;
        head->count = n;
        head->feed = run->feed;
        head->channel = run->channel;
        memcpy(head + 1, b->updates + first, (size_t)n * size);
        head->n_stages = rows;
        head->stages = rows ? (uint32_t)sizeof *head + n * size : 0;
        put_rows(b, row, first, first + n, (struct xds_stages *)((uint8_t *)(head + 1) + n * size));
        xdsi_publish_end(p, XDS_PUBLISH_UPDATES, data);
    }
}

static void publish_updates(struct xds_publisher *p, const struct xds_batch *b)
{
    uint32_t row = 0;
    for (uint32_t i = 0; i < b->n_runs; i++)
        if (p->stats.feeds >> b->runs[i].feed & 1)
            publish_run(p, b, &b->runs[i], &row);
}

static bool message_wanted(const struct xds_publisher *p, const struct xds_message *m)
{
    return m->feed < XDS_ENGINE_FEEDS && p->stats.feeds >> m->feed & 1;
}

/* Bytes that a message takes beside its own: its row of the table, and where there are stages those of its packet. */
static uint32_t beside(const struct xds_batch *b)
{
    return (uint32_t)sizeof(struct xds_publish_message) +
           (b->n_stages ? (uint32_t)sizeof(struct xds_stages) : 0);
}

/* Message i is the k-th of its record: its packet's row, if there is one, goes behind the n that are there.
 * *from: the first row that may be its own. Returns how many there are now. */
static uint32_t put_row(const struct xds_batch *b, uint32_t *from, uint32_t i, uint32_t k,
                        struct xds_stages *out, uint32_t n)
{
    uint32_t at = *from;
    while (at < b->n_stages && b->stages[at].first_message + b->stages[at].messages <= i)
        at++;
    const bool same = at == *from && n;
    *from = at;
    if (at == b->n_stages || b->stages[at].first_message > i)
        return n;
    if (same) {
        out[n - 1].messages++;
        return n;
    }
    out[n] = b->stages[at];
    out[n].first = out[n].count = 0;
    out[n].first_message = k;
    out[n].messages = 1;
    return n + 1;
}

/* Those from *from on that fit in one record: how many of them are wanted, the bytes of these; *from moves on. */
static uint32_t gather(const struct xds_publisher *p, const struct xds_batch *b, uint32_t *from,
                       uint32_t *bytes)
{
    const uint32_t room = xdsi_publish_most(p) - (uint32_t)sizeof(struct xds_publish_head) - 8;
    uint32_t n = 0;
    *bytes = 0;
    for (; *from < b->n_messages; ++*from) {
        const struct xds_message *m = &b->messages[*from];
        if (!message_wanted(p, m))
            continue;
        if (*bytes + m->len + (n + 1) * beside(b) > room)
            break;
        *bytes += m->len;
        n++;
    }
    return n;
}

static void publish_messages(struct xds_publisher *p, const struct xds_batch *b)
{
    uint32_t bytes, packet = 0;
    for (uint32_t first = 0, next = 0; first < b->n_messages; first = next) {
        const uint32_t n = gather(p, b, &next, &bytes);
        const uint32_t table = (bytes + 7) & ~7u,
                       index = table + n * (uint32_t)sizeof(struct xds_publish_message),
                       data = table + n * beside(b);
        struct xds_publish_head *head = n ? xdsi_publish_begin(p, b, data) : NULL;
        if (!head)
            return;
        head->count = n;
        head->table = (uint32_t)sizeof *head + table;
        uint8_t *at = (uint8_t *)(head + 1);
        uint32_t done = 0;
        struct xds_publish_message *row = (struct xds_publish_message *)((uint8_t *)head + head->table);
        struct xds_stages *stages = (struct xds_stages *)((uint8_t *)(head + 1) + index);
        for (uint32_t i = first; i < next; i++) {
            const struct xds_message *m = &b->messages[i];
            if (!message_wanted(p, m))
                continue;
            head->n_stages = put_row(b, &packet, i, done++, stages, head->n_stages);
            *row++ = (struct xds_publish_message){.rx_ns = m->rx_ns,
                                                  .seq = m->seq,
                                                  .offset = (uint32_t)(at - (uint8_t *)head),
                                                  .len = m->len,
                                                  .type = m->type,
                                                  .channel = m->channel,
                                                  .feed = m->feed,
                                                  .line = m->line};
            memcpy(at, m->data, m->len);
            at += m->len;
        }
        memset(at, 0, table - bytes);
        head->stages = head->n_stages ? (uint32_t)sizeof *head + index : 0;
        xdsi_publish_end(p, XDS_PUBLISH_MESSAGES,
                         index + head->n_stages * (uint32_t)sizeof(struct xds_stages));
    }
}

static void publish_state(struct xds_publisher *p, struct xds_engine *e, const struct xds_batch *b)
{
    struct {
        struct xds_engine_stats engine;
        struct xds_publish_stats publisher;
    } state;
    if (p->stats.what >> XDS_PUBLISH_STATE & 1 && p->state_ns && (b->now >= p->state_due || b->end)) {
        p->state_due = b->now + p->state_ns;
        xds_engine_stats(e, &state.engine);
        state.publisher = p->stats;
        publish_array(p, b, XDS_PUBLISH_STATE, &state, 1, sizeof state, NULL);
    }
}

void xds_publisher_turn(struct xds_publisher *p, struct xds_engine *e, const struct xds_batch *b)
{
    if (b->n_runs && wants(p, XDS_PUBLISH_UPDATES))
        publish_updates(p, b);
    if (b->n_messages && wants(p, XDS_PUBLISH_MESSAGES))
        publish_messages(p, b);
    if (b->n_events && wants(p, XDS_PUBLISH_EVENTS))
        publish_array(p, b, XDS_PUBLISH_EVENTS, b->events, b->n_events, sizeof *b->events, NULL);
    if (p->sessions)
        xdsi_sessions_turn(p, e, b->now);
    publish_state(p, e, b);
}

/* ---- commands ---- */

enum xds_command_refusal xdsi_publish_send(struct xds_engine *e, const struct xds_command *c,
                                           const uint8_t *data)
{
    const uint32_t head = c->kind == XDS_COMMAND_SEND6 ? 16 : 0;
    if (c->len < head)
        return XDS_REFUSAL_SHORT;
    if (c->len - head > DATAGRAM)
        return XDS_REFUSAL_LONG;
    if (c->port >= e->n_ports)
        return XDS_REFUSAL_PORT;
    const int rc = head ? xds_engine_send6(e, c->port, data, c->dport, c->sport, data + head, c->len - head)
                        : xds_engine_send(e, c->port, c->dst, c->dport, c->sport, data, c->len);
    switch (rc) {
    case 0:
        return XDS_REFUSAL_NONE;
    case XDS_ECONFIG:
        return XDS_REFUSAL_PORT;
    case XDS_EFOREIGN:
        return XDS_REFUSAL_ROUTE;
    default:
        return XDS_REFUSAL_FULL;
    }
}

static enum xds_command_refusal subscribe(struct xds_publisher *p, const struct xds_engine *e,
                                          const struct xds_command *c)
{
    if (c->feeds >> e->n_feeds)
        return XDS_REFUSAL_FEED;
    if (c->what & ~SUBSCRIBABLE || !(c->what | c->feeds))
        return XDS_REFUSAL_NOTHING;
    if (c->kind == XDS_COMMAND_SUBSCRIBE) {
        p->stats.what |= c->what;
        p->stats.feeds |= c->feeds;
    } else {
        p->stats.what &= ~(uint64_t)c->what;
        p->stats.feeds &= ~(uint64_t)c->feeds;
    }
    return XDS_REFUSAL_NONE;
}

static void answer(struct xds_publisher *p, struct xds_engine *e, const struct xds_command *c,
                   enum xds_command_refusal refusal, uint32_t connection)
{
    const struct xds_batch now = {.now = e->now};
    const struct xds_publish_answer a = {
        .number = c->number, .kind = c->kind, .refusal = refusal, .connection = connection};
    p->stats.commands++;
    p->stats.answers[refusal]++;
    publish_array(p, &now, XDS_PUBLISH_ANSWER, &a, 1, sizeof a, NULL);
}

/* have: bytes of the record that are there, whatever its head says. Returns 1 when the engine is to stop. */
static int obey(struct xds_publisher *p, struct xds_engine *e, const uint8_t *record, uint64_t have)
{
    struct xds_command c = {0};
    memcpy(&c, record, have < sizeof c ? have : sizeof c);
    enum xds_command_refusal refusal = XDS_REFUSAL_KIND;
    uint32_t connection = 0;
    if (have < sizeof c || c.len > have - sizeof c)
        refusal = XDS_REFUSAL_SHORT;
    else if (c.kind == XDS_COMMAND_SEND || c.kind == XDS_COMMAND_SEND6)
        refusal = xdsi_publish_send(e, &c, record + sizeof c);
    else if (c.kind == XDS_COMMAND_SUBSCRIBE || c.kind == XDS_COMMAND_CANCEL)
        refusal = subscribe(p, e, &c);
    else if ((c.kind >= XDS_COMMAND_CONNECT && c.kind <= XDS_COMMAND_RESET) || c.kind == XDS_COMMAND_LISTEN)
        refusal = xdsi_publish_command(p, e, &c, record + sizeof c, &connection);
    else if (c.kind == XDS_COMMAND_STOP)
        refusal = XDS_REFUSAL_NONE;
    answer(p, e, &c, refusal, connection);
    return c.kind == XDS_COMMAND_STOP && !refusal;
}

/* The next command of a ring whose header anybody may have changed. As xdsi_ring_peek(); *have: its bytes. */
static int next(const struct xds_publisher *p, const struct xds_ring_record **record, uint64_t *have)
{
    struct xds_ring *ring = p->commands;
    const uint64_t from = ring->cursor;
    if (ring->bytes != p->command_bytes || ring->header_bytes != p->command_header)
        return XDS_EMALFORMED;
    const int rc = xdsi_ring_peek(ring, record);
    if (rc != 1)
        return rc;
    const uint64_t room = ring->cursor - from - sizeof **record, len = (*record)->len;
    *have = len < room ? len : room;
    return *have > p->command_bytes - sizeof **record ? XDS_EMALFORMED : 1;
}

int xds_publisher_obey(struct xds_publisher *p, struct xds_engine *e)
{
    const struct xds_ring_record *record;
    uint64_t have;
    int stop = 0, rc = 1;
    if (!p->commands)
        return 0;
    for (int left = XDS_PUBLISH_COMMANDS; left && !stop; left--) {
        rc = next(p, &record, &have);
        if (rc != 1)
            break;
        stop = obey(p, e, (const uint8_t *)(record + 1), have);
    }
    if (rc == XDS_EMALFORMED) {
        answer(p, e, &(struct xds_command){0}, XDS_REFUSAL_BROKEN, 0);
        p->commands = NULL;
    } else {
        xdsi_ring_release(p->commands);
    }
    return stop;
}
