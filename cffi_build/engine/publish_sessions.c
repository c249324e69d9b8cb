/* publish_sessions.c: TLS, WebSocket and FIX over connections that commands opened: their bytes through a table
 * of calls (xds/session.h), their events onto the tape.
 *
 * A session takes its connection's bytes where they lie in the stack's ring; they are given back once all that was
 * made of them is used. What cannot go on (a session that wants its output sent first, a ring that is full) waits
 * as it is, and the peer's window closes behind it. All of it is the thread's that turns; memory was given before.
 *
 *   WAITS      the connection is being opened
 *   LAYER      TLS shakes hands
 *   LIVE       the session itself has begun
 *   OVER       it has told its end: what it still has to send goes out, what comes is dropped
 *   SHUT       our FIN is sent: the peer's is awaited for a moment
 */
#include "ground/siphash_inl.h"
#include "publish_inl.h"
#include "xds/session.h"

#define LINGER 2000000000 /* ns from the end of a session to the end of its connection, at most */
#define SHOWN  100000000  /* ns between two looks at what sessions count */
#define ALIGN  63u

_Static_assert(XDS_PUBLISH_TLS == XDS_PUBLISH_STREAM + XDS_SESSION_TLS, "a protocol's records");
_Static_assert(XDS_PUBLISH_FIX == XDS_PUBLISH_STREAM + XDS_SESSION_FIX, "a protocol's records");
_Static_assert(sizeof(struct xds_publish_session) == 136, "as tape.md has it");

enum state { WAITS, LAYER, LIVE, OVER, SHUT };

/* One protocol of a session. */
struct half {
    const struct xds_session_ops *ops; /* NULL: none */
    void *mem;                         /* NULL: it has not begun, or is gone */
    bool over;                         /* CLOSED or FAILED was told */
    bool bid;                          /* it was told to close */
};

struct xdsi_session {
    struct half top, layer;
    const struct xds_session_profile *profile;
    uint8_t *room;        /* of both */
    const uint8_t *above; /* plain text (without a layer: the connection's bytes) that top has not taken */
    const uint8_t *below; /* cipher text that the layer has not taken */
    uint32_t above_len, below_len, taken; /* taken: of the connection's ring, to be given back */
    uint32_t port, connection, state;
    uint64_t events;
    int64_t until;                    /* OVER, SHUT: when it ends, whatever the peer does */
    uint16_t number;                  /* of its profile, from 1 on */
    bool open, layer_open, fin, told; /* told: that the peer sends no more */
};

struct xds_sessions {
    uint64_t keys[XDS_SESSIONS_MAX]; /* by place: port and connection; 0: free */
    const struct xds_session_profile *profiles;
    uint32_t n_profiles, most;
    uint32_t used;     /* places from here on were never taken */
    uint32_t last;     /* place that was looked for last */
    int64_t due, look; /* timers of sessions; when their counters are next looked at */
    uint64_t seeds;
    uint8_t seed[XDS_SESSION_SEED];
    struct xds_publish_session_stats ended[XDS_SESSION_KINDS];  /* what sessions counted that are gone */
    struct xds_publish_session_stats *shown[XDS_SESSION_KINDS]; /* mapped memory, or NULL */
    size_t top_bytes, layer_bytes;
    uint8_t chunk[XDS_SESSION_CHUNK];
    struct xdsi_session places[];
};

/* One call's view. news: the event of its connection that is being handled; NULL: a command, or a timer. */
struct view {
    struct xds_publisher *p;
    struct xds_engine *e;
    struct xds_stack *stack;
    struct xdsi_session *s;
    const struct xds_stream *news;
    int64_t now;
};

static struct xds_publish_session_stats *counts(struct xds_sessions *all, const struct half *h)
{
    return &all->ended[h->ops->kind - 1];
}

/* ---- set-up ---- */

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN) & ~(size_t)ALIGN;
}

/* The most that any profile needs, of each half. False: one is no profile. */
static bool needs(const struct xds_session_profile *profiles, unsigned n, size_t *top, size_t *layer)
{
    *top = *layer = 0;
    for (unsigned i = 0; i < n; i++) {
        const struct xds_session_profile *one = &profiles[i];
        const struct xds_session_ops *of[2] = {one->ops, one->layer};
        const void *configs[2] = {one->config, one->layer_config};
        size_t *most[2] = {top, layer};

        for (unsigned k = 0; k < 2; k++) {
            const struct xds_session_ops *ops = of[k];
            if (!ops && k)
                continue;
            if (!ops || !ops->kind || ops->kind > XDS_SESSION_KINDS || (k && ops->kind != XDS_SESSION_TLS))
                return false;
            const size_t bytes = ops->size(configs[k]);
            if (!bytes)
                return false;
            *most[k] = aligned(bytes) > *most[k] ? aligned(bytes) : *most[k];
        }
    }
    return true;
}

size_t xds_publisher_sessions_size(const struct xds_session_profile *profiles, unsigned n, unsigned most)
{
    size_t top, layer;

    if (!n || n > XDS_SESSION_PROFILES_MAX || !most || most > XDS_SESSIONS_MAX ||
        !needs(profiles, n, &top, &layer))
        return 0;
    return aligned(sizeof(struct xds_sessions) + most * sizeof(struct xdsi_session)) + most * (top + layer);
}

int xds_publisher_sessions(struct xds_publisher *p, void *mem, const struct xds_session_profile *profiles,
                           unsigned n, unsigned most, const uint8_t *seed,
                           struct xds_publish_session_stats *const *shown)
{
    struct xds_sessions *all = mem;

    if (p->sessions || !xds_publisher_sessions_size(profiles, n, most))
        return XDS_ECONFIG;
    memset(all, 0, sizeof *all + most * sizeof all->places[0]);
    needs(profiles, n, &all->top_bytes, &all->layer_bytes);
    all->profiles = profiles;
    all->n_profiles = n;
    all->most = most;
    all->due = XDS_NEVER;
    if (shown)
        memcpy(all->shown, shown, sizeof all->shown);
    memcpy(all->seed, seed, sizeof all->seed);
    uint8_t *room = (uint8_t *)mem + aligned(sizeof *all + most * sizeof all->places[0]);
    for (unsigned i = 0; i < most; i++, room += all->top_bytes + all->layer_bytes)
        all->places[i].room = room;
    p->sessions = all;
    return 0;
}

/* Each session's own, of the one that was given; nobody foresees the next from those before. */
static void seed_of(struct xds_sessions *all, uint8_t out[XDS_SESSION_SEED])
{
    uint8_t what[XDS_SESSION_SEED - 16 + 8];

    memcpy(what, all->seed + 16, XDS_SESSION_SEED - 16);
    for (unsigned i = 0; i < XDS_SESSION_SEED / 8; i++) {
        const uint64_t number = ++all->seeds;
        memcpy(what + XDS_SESSION_SEED - 16, &number, 8);
        const uint64_t word = xdsi_siphash(all->seed, what, sizeof what);
        memcpy(out + (size_t)i * 8, &word, 8);
    }
}

/* ---- places ---- */

static uint64_t key_of(uint32_t port, uint32_t connection)
{
    return (uint64_t)(port + 1) << 32 | connection;
}

struct xdsi_session *xdsi_session_at(struct xds_publisher *p, uint32_t port, uint32_t connection)
{
    struct xds_sessions *all = p->sessions;
    const uint64_t key = key_of(port, connection);

    if (!all)
        return NULL;
    if (all->keys[all->last] == key)
        return &all->places[all->last];
    for (uint32_t i = 0; i < all->used; i++)
        if (all->keys[i] == key) {
            all->last = i;
            return &all->places[i];
        }
    return NULL;
}

enum xds_command_refusal xdsi_session_check(const struct xds_publisher *p, uint32_t number)
{
    const struct xds_sessions *all = p->sessions;

    if (!number)
        return XDS_REFUSAL_NONE;
    if (!all || number > all->n_profiles)
        return XDS_REFUSAL_PROFILE;
    for (uint32_t i = 0; i < all->most; i++)
        if (!all->keys[i])
            return XDS_REFUSAL_NONE;
    return XDS_REFUSAL_FULL;
}

void xdsi_session_take(struct xds_publisher *p, uint32_t number, uint32_t port, uint32_t connection)
{
    struct xds_sessions *all = p->sessions;
    uint32_t i = 0;

    while (all->keys[i])
        i++;
    struct xdsi_session *s = &all->places[i];
    const struct xds_session_profile *profile = &all->profiles[number - 1];
    *s = (struct xdsi_session){.profile = profile,
                               .room = s->room,
                               .top.ops = profile->ops,
                               .layer.ops = profile->layer,
                               .port = port,
                               .connection = connection,
                               .until = XDS_NEVER,
                               .number = (uint16_t)number};
    all->keys[i] = key_of(port, connection);
    all->used = i < all->used ? all->used : i + 1;
}

static void count(struct xds_publish_session_stats *into, const struct half *h)
{
    struct xds_session_stats now = {0};

    h->ops->stats(h->mem, &now);
    into->received += now.received;
    into->delivered += now.delivered;
    into->sent += now.sent;
    for (unsigned i = 0; i < XDS_SESSION_REASONS; i++)
        into->reasons[i] += now.reasons[i];
}

static void end_half(struct xds_sessions *all, struct half *h)
{
    if (!h->mem)
        return;
    counts(all, h)->cut += !h->over;
    count(counts(all, h), h);
    if (h->ops->end)
        h->ops->end(h->mem);
    h->mem = NULL;
}

static void let_go(struct xds_publisher *p, struct xdsi_session *s)
{
    struct xds_sessions *all = p->sessions;

    end_half(all, &s->top);
    end_half(all, &s->layer);
    all->keys[s - all->places] = 0;
    all->look = 0;
}

/* ---- onto the tape ---- */

/* What is longer than a record may be comes in several, of one number. */
static void publish(struct view *v, const struct half *h, const struct xds_session_event *event,
                    const int64_t stages[6])
{
    struct xds_publisher *p = v->p;
    const struct xds_batch b = {.now = v->now};
    const uint32_t head_size = (uint32_t)sizeof(struct xds_publish_session),
                   most =
                       (xdsi_publish_most(p) - (uint32_t)sizeof(struct xds_publish_head) - head_size) & ~7u;
    struct xds_publish_session news = {.ns = v->now,
                                       .number = ++v->s->events,
                                       .connection = v->s->connection,
                                       .what = event->what,
                                       .port = (uint16_t)v->s->port,
                                       .profile = v->s->number,
                                       .flags = event->flags,
                                       .code = event->code,
                                       .detail = event->detail,
                                       .verify = event->verify,
                                       .seq = event->seq,
                                       .until = event->until,
                                       .whole = event->len};
    memcpy(news.name, event->name, sizeof news.name);
    if (stages)
        memcpy(news.stages, stages, sizeof news.stages);
    do {
        news.len = event->len - news.at < most ? event->len - news.at : most;
        struct xds_publish_head *head = xdsi_publish_begin(p, &b, head_size + news.len);
        if (!head)
            return;
        head->count = 1;
        memcpy(head + 1, &news, sizeof news);
        if (news.len)
            memcpy((uint8_t *)(head + 1) + sizeof news, event->data + news.at, news.len);
        xdsi_publish_end(p, (enum xds_publish_kind)(XDS_PUBLISH_STREAM + h->ops->kind), head_size + news.len);
        news.at += news.len;
    } while (news.at < news.whole);
}

/* An event of a message counts into the connection's stages; all bear them where bytes brought them. */
static void tell(struct view *v, struct half *h, const struct xds_session_event *event)
{
    const bool stamps = v->news && v->news->stages && v->e->event.receive;
    int64_t stages[6] = {0};

    if (stamps) {
        memcpy(stages, &v->e->event, sizeof stages);
        stages[4] = stages[5] = xdsi_engine_clock(v->e);
    }
    publish(v, h, event, stamps ? stages : NULL);
    if (stamps && event->what == XDS_SESSION_MESSAGE && h == &v->s->top)
        xdsi_stream_message(v->e, stages[4], stages[5]);
}

/* ---- what happens ---- */

static void set_over(struct view *v)
{
    v->s->state = OVER;
    v->s->until = v->now + LINGER;
    v->s->above_len = v->s->below_len = 0;
}

/* The last of a half, told once. */
static void note_end(struct view *v, struct half *h, const struct xds_session_event *event)
{
    if (h->over || (event->what != XDS_SESSION_CLOSED && event->what != XDS_SESSION_FAILED))
        return;
    h->over = true;
    if (event->what == XDS_SESSION_CLOSED)
        counts(v->p->sessions, h)->closed++;
    else
        counts(v->p->sessions, h)->failed++;
}

/* It says no more itself, so its end is told here. */
static void fail(struct view *v, struct half *h, int code, const char *why)
{
    const struct xds_session_event event = {.data = (const uint8_t *)why,
                                            .len = (uint32_t)strlen(why),
                                            .what = XDS_SESSION_FAILED,
                                            .detail = (uint32_t)-code};
    tell(v, h, &event);
    note_end(v, h, &event);
    set_over(v);
}

static bool begin(struct view *v, struct half *h, void *mem, void *config)
{
    uint8_t seed[XDS_SESSION_SEED];

    seed_of(v->p->sessions, seed);
    counts(v->p->sessions, h)->begun++;
    const int rc = h->ops->init(mem, config, v->now, seed);
    if (rc < 0) {
        fail(v, h, rc, "it could not begin");
        return false;
    }
    h->mem = mem;
    return true;
}

static void begin_top(struct view *v)
{
    v->s->state = LIVE;
    begin(v, &v->s->top, v->s->room, v->s->profile->config);
}

static void begin_session(struct view *v)
{
    struct xdsi_session *s = v->s;

    if (!s->layer.ops) {
        begin_top(v);
        return;
    }
    s->state = LAYER;
    begin(v, &s->layer, s->room + v->p->sessions->top_bytes, s->profile->layer_config);
}

static bool top_event(struct view *v)
{
    struct xdsi_session *s = v->s;
    struct xds_session_event event = {0};

    if (!s->top.mem || s->top.over || s->top.ops->event(s->top.mem, &event) != 1)
        return false;
    if (event.what == XDS_SESSION_OPEN && !s->open) {
        s->open = true;
        counts(v->p->sessions, &s->top)->opened++;
    }
    tell(v, &s->top, &event);
    note_end(v, &s->top, &event);
    if (s->top.over)
        set_over(v);
    return true;
}

static bool layer_event(struct view *v)
{
    struct xdsi_session *s = v->s;
    struct xds_session_event event = {0};

    if (!s->layer.mem || s->layer.over || s->layer.ops->event(s->layer.mem, &event) != 1)
        return false;
    if (event.what == XDS_SESSION_MESSAGE) {
        s->above = event.data;
        s->above_len = event.len;
        return true;
    }
    tell(v, &s->layer, &event);
    note_end(v, &s->layer, &event);
    if (event.what == XDS_SESSION_OPEN && !s->layer_open) {
        s->layer_open = true;
        counts(v->p->sessions, &s->layer)->opened++;
        begin_top(v);
    } else if (event.what == XDS_SESSION_FAILED) {
        s->layer_open = false;
        set_over(v);
    } else if (event.what == XDS_SESSION_CLOSED) {
        s->fin = true; /* nobody sends any more */
        s->below_len = 0;
    }
    return true;
}

/* Bytes into a half. A layer's lie between the stamps of stages 3 and 4. True: something moved. */
static bool input(struct view *v, struct half *h, const uint8_t **data, uint32_t *len)
{
    struct xds_stages *row = &v->e->event;
    const bool stamps = h->ops->kind == XDS_SESSION_TLS && v->news && v->news->stages && row->receive;

    if (stamps) {
        xdsi_stream_fold(v->e); /* messages of the record before have its stamps */
        row->tls_start = xdsi_engine_clock(v->e);
    }
    const int n = h->ops->input(h->mem, *data, *len, v->now);
    if (stamps)
        row->tls_end = xdsi_engine_clock(v->e);
    if (n > 0) {
        *data += n;
        *len -= (uint32_t)n;
    }
    if (h == &v->s->top ? top_event(v) : layer_event(v))
        return true;
    if (n < 0) {
        fail(v, h, n, "it took no more");
        if (h == &v->s->layer)
            v->s->layer_open = false;
    }
    return n != 0;
}

/* The next piece of the connection's ring, when the one before is used. */
static bool more(struct view *v)
{
    struct xdsi_session *s = v->s;
    const uint8_t *data;

    if (s->taken)
        xds_stack_consume(v->stack, (int)s->connection, s->taken);
    s->taken = 0;
    const int got = xds_stack_peek(v->stack, (int)s->connection, &data);
    if (got <= 0)
        return false;
    s->taken = (uint32_t)got;
    if (s->layer.ops) {
        s->below = data;
        s->below_len = (uint32_t)got;
    } else {
        s->above = data;
        s->above_len = (uint32_t)got;
    }
    return true;
}

/* Nobody sends any more: the session is told, and where it then does not end by itself it is cut. */
static bool end_of_input(struct view *v)
{
    struct xdsi_session *s = v->s;

    if (!s->fin)
        return false;
    if (s->told) {
        set_over(v);
        return false;
    }
    struct half *lowest = s->layer.mem && !s->layer.over ? &s->layer : &s->top;
    if (lowest == &s->top)
        s->told = true;
    if (!lowest->mem) {
        set_over(v);
        return false;
    }
    lowest->ops->input(lowest->mem, NULL, 0, v->now);
    if (lowest == &s->layer && !layer_event(v)) { /* it owes one */
        set_over(v);
        return false;
    }
    return true;
}

/* Move one thing on. False: nothing moves. */
static bool step(struct view *v)
{
    struct xdsi_session *s = v->s;

    if (s->state == WAITS || s->state >= OVER)
        return false;
    if (top_event(v))
        return true;
    if (s->above_len)
        return input(v, &s->top, &s->above, &s->above_len);
    if (s->layer.ops && layer_event(v))
        return true;
    if (s->below_len)
        return input(v, &s->layer, &s->below, &s->below_len);
    if (!(s->layer.ops && s->layer.over) && more(v))
        return true;
    return end_of_input(v);
}

/* ---- what is sent ---- */

/* All that a half has into the connection, as far as there is room. *dry: all of it. Returns bytes. */
static uint32_t drain(struct view *v, const struct half *h, bool *dry)
{
    uint32_t moved = 0;
    uint8_t *room;
    int cap;

    *dry = true;
    if (!h->mem)
        return 0;
    while ((cap = xds_stack_reserve(v->stack, (int)v->s->connection, &room)) > 0) {
        const int n = h->ops->output(h->mem, room, (uint32_t)cap, v->now);
        if (n <= 0)
            return moved;
        xds_stack_commit(v->stack, (int)v->s->connection, (uint32_t)n);
        moved += (uint32_t)n;
    }
    *dry = cap < 0; /* none of it can be sent any more */
    return moved;
}

static uint32_t send_out(struct view *v, bool *dry)
{
    struct xdsi_session *s = v->s;
    uint32_t moved = 0;

    *dry = true;
    if (s->state == WAITS || s->state == SHUT)
        return 0;
    if (!s->layer.ops)
        return drain(v, &s->top, dry);
    for (;;) {
        moved += drain(v, &s->layer, dry);
        if (!*dry || !s->layer_open || s->layer.bid)
            return moved;
        uint8_t *chunk = v->p->sessions->chunk;
        const int n = s->top.mem ? s->top.ops->output(s->top.mem, chunk, XDS_SESSION_CHUNK, v->now) : 0;
        if (n > 0) {
            const struct xds_session_message m = {.data = chunk, .len = (uint32_t)n};
            const int rc = s->layer.ops->send(s->layer.mem, &m, v->now);
            if (rc < 0) { /* it owes us this much room */
                s->layer_open = false;
                fail(v, &s->layer, rc, "it did not take what was to be sent");
            }
        } else if (s->state == OVER) {
            s->layer.bid = true;
            s->layer.ops->close(s->layer.mem, 0, NULL, 0, v->now);
        } else {
            return moved;
        }
    }
}

static void drop(struct view *v)
{
    const uint8_t *data;
    int got;

    v->s->above_len = v->s->below_len = v->s->taken = 0;
    while ((got = xds_stack_peek(v->stack, (int)v->s->connection, &data)) > 0)
        xds_stack_consume(v->stack, (int)v->s->connection, (uint32_t)got);
}

static int64_t deadline_of(const struct xdsi_session *s)
{
    int64_t due = s->until;
    const struct half *halves[2] = {&s->layer, &s->top};

    for (unsigned i = 0; i < 2 && s->state < OVER; i++)
        if (halves[i]->mem) {
            const int64_t at = halves[i]->ops->deadline(halves[i]->mem);
            due = at < due ? at : due;
        }
    return due;
}

/* Everything that can go on goes on. */
static void run(struct view *v)
{
    struct xdsi_session *s = v->s;
    bool dry;
    uint32_t moved;

    do {
        while (step(v))
            ;
        moved = send_out(v, &dry);
    } while (moved); /* who waited for its output to be sent goes on, with what it keeps as well */
    if (s->state >= OVER)
        drop(v);
    if (s->state == OVER && dry) {
        s->state = SHUT;
        xds_stack_shutdown(v->stack, (int)s->connection);
    }
    const int64_t due = deadline_of(s);
    if (due < v->p->sessions->due)
        v->p->sessions->due = due;
}

void xdsi_session_news(struct xds_publisher *p, struct xdsi_session *s, const struct xds_stream *news)
{
    struct view v = {.p = p, .e = news->engine, .stack = news->stack, .s = s, .news = news, .now = news->now};

    if (news->stages)
        v.e->event.callback = 0; /* messages count, not the bytes of a handshake or a ping */
    if (news->what & XDS_STACK_OPEN && s->state == WAITS)
        begin_session(&v);
    if (news->what & (XDS_STACK_FIN | XDSI_STREAM_ENDED))
        s->fin = true;
    run(&v);
    if (news->what & XDSI_STREAM_ENDED)
        let_go(p, s);
}

/* ---- timers ---- */

static void end_late(struct view *v)
{
    const struct xds_publish_stream news = {
        .ns = v->now, .connection = v->s->connection, .port = (uint16_t)v->s->port, .what = XDS_STACK_CLOSED};
    const int id = (int)v->s->connection;

    if (v->s->state == OVER)
        xds_stack_abort(v->stack, id);
    drop(v);
    xds_stack_close(v->stack, id, v->now);
    let_go(v->p, v->s);
    xdsi_publish_stream(v->p, &news, NULL, v->now);
}

static void tick(struct view *v)
{
    struct xdsi_session *s = v->s;
    struct half *halves[2] = {&s->layer, &s->top};

    if (s->until <= v->now) {
        end_late(v);
        return;
    }
    for (unsigned i = 0; i < 2 && s->state < OVER; i++)
        if (halves[i]->mem && halves[i]->ops->deadline(halves[i]->mem) <= v->now)
            halves[i]->ops->tick(halves[i]->mem, v->now);
    run(v);
}

static void put(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* What all have counted, now. */
static void look(struct xds_publisher *p)
{
    struct xds_sessions *all = p->sessions;
    const unsigned words = sizeof all->ended[0] / sizeof(uint64_t);
    struct xds_publish_session_stats sum[XDS_SESSION_KINDS];

    memcpy(sum, all->ended, sizeof sum);
    for (uint32_t i = 0; i < all->used; i++) {
        if (!all->keys[i])
            continue;
        const struct half *halves[2] = {&all->places[i].layer, &all->places[i].top};
        for (unsigned k = 0; k < 2; k++)
            if (halves[k]->mem) {
                count(&sum[halves[k]->ops->kind - 1], halves[k]);
                sum[halves[k]->ops->kind - 1].live += !halves[k]->over;
            }
    }
    memcpy(p->stats.sessions, sum, sizeof sum);
    for (unsigned k = 0; k < XDS_SESSION_KINDS; k++)
        for (unsigned i = 0; all->shown[k] && i < words; i++)
            put((uint64_t *)all->shown[k] + i, ((const uint64_t *)&sum[k])[i]);
}

void xdsi_sessions_turn(struct xds_publisher *p, struct xds_engine *e, int64_t now)
{
    struct xds_sessions *all = p->sessions;

    if (now >= all->due) {
        all->due = XDS_NEVER;
        for (uint32_t i = 0; i < all->used; i++) {
            if (!all->keys[i])
                continue;
            struct xdsi_session *s = &all->places[i];
            struct view v = {.p = p, .e = e, .stack = e->ports[s->port].stack, .s = s, .now = now};
            int64_t due = deadline_of(s);
            if (due <= now) {
                tick(&v);
                e->deadline = now; /* the next turn sends what that made */
                due = all->keys[i] ? deadline_of(s) : XDS_NEVER;
            }
            all->due = due < all->due ? due : all->due;
        }
    }
    if (now >= all->look) {
        all->look = now + SHOWN;
        look(p);
    }
}

/* ---- commands ---- */

static enum xds_command_refusal refusal_of(int rc)
{
    return rc >= 0               ? XDS_REFUSAL_NONE
           : rc == XDS_ECAPACITY ? XDS_REFUSAL_FULL
           : rc == XDS_ESTATE    ? XDS_REFUSAL_NOT_OPEN
                                 : XDS_REFUSAL_MESSAGE;
}

static bool close_politely(struct view *v, const struct xds_command *c, const uint8_t *data, int *rc)
{
    struct xdsi_session *s = v->s;

    if (s->state != LIVE || !s->open || !s->top.mem || s->top.bid)
        return false;
    *rc = s->top.ops->close(s->top.mem, c->dport, c->len ? data : NULL, c->len, v->now);
    s->top.bid = *rc == 0;
    return *rc != XDS_ESTATE;
}

bool xdsi_session_command(struct xds_publisher *p, struct xds_engine *e, struct xdsi_session *s,
                          const struct xds_command *c, const uint8_t *data, int64_t now,
                          enum xds_command_refusal *refusal)
{
    struct view v = {.p = p, .e = e, .stack = e->ports[s->port].stack, .s = s, .now = now};
    int rc = XDS_ESTATE;

    if (c->kind == XDS_COMMAND_WRITE) {
        const struct xds_session_message m = {.data = data, .len = c->len, .flags = c->feeds};
        if (s->state == LIVE && s->top.mem && !s->top.bid)
            rc = s->top.ops->send(s->top.mem, &m, now);
    } else if (c->kind == XDS_COMMAND_RESET || !close_politely(&v, c, data, &rc)) {
        drop(&v);
        let_go(p, s);
        return false;
    }
    *refusal = refusal_of(rc);
    run(&v);
    return true;
}

void xds_publisher_end(struct xds_publisher *p)
{
    struct xds_sessions *all = p->sessions;

    if (!all)
        return;
    for (uint32_t i = 0; i < all->used; i++)
        if (all->keys[i])
            let_go(p, &all->places[i]);
    look(p);
    p->sessions = NULL;
}
