/* streams.c: native stream hooks that the TCP benches hang into the engine, as a user's own would be.
 *
 * Loaded by xdpstack/bench/tcp_worker.py, which knows struct bench_stream by the order of its fields. A hook
 * runs in the engine's thread, inside the turn; the worker reads the counters from another thread.
 */
#include "bench.h"
#include "xds/engine.h"

#define PIECE (1u << 20)

struct bench_stream {
    uint64_t messages, limit; /* ask: answers that came, and how many there are to be           */
    uint64_t bytes, total;    /* pour and drain                                                 */
    uint64_t skip;            /* samples to leave out; also messages before the rate is timed   */
    uint64_t count, cap;      /* samples                                                        */
    uint32_t *samples;        /* ticks                                                          */
    uint64_t sent;            /* ask, of one connection: ticks                                  */
    uint64_t first, last;     /* ticks: of the messages or bytes that are timed                 */
    uint64_t ended;           /* 1: the peer has closed                                         */
    uint32_t size, one;       /* of a message; one: a single connection, so round trips are timed */
};

static uint8_t nothing[PIECE];

static void sample(struct bench_stream *b, uint64_t ticks)
{
    if (b->skip) {
        b->skip--;
        return;
    }
    if (b->count < b->cap)
        b->samples[b->count++] = ticks > UINT32_MAX ? UINT32_MAX : (uint32_t)ticks;
}

static void accept_all(const struct xds_stream *s)
{
    while (s->calls->accept(s->stack, (int)s->id) > 0)
        ;
}

/* From the receive buffer into the send buffer: one copy. What does not fit waits for WRITABLE or the next. */
int bench_stream_echo(void *ctx, const struct xds_stream *s)
{
    const struct xds_stream_calls *c = s->calls;
    const int id = (int)s->id;
    const uint8_t *in;
    uint8_t *out;

    (void)ctx;
    if (s->what & XDS_STACK_ACCEPTABLE) {
        accept_all(s);
        return 0;
    }
    struct xds_tcp *t = c->tcp(s->stack, id);
    for (int have; t && (have = c->peek(t, &in)) > 0;) {
        const int room = c->reserve(t, &out), n = have < room ? have : room;
        if (n <= 0)
            break;
        memcpy(out, in, (size_t)n);
        c->consume(t, (uint32_t)n);
        c->commit(t, (uint32_t)n);
        c->touch(s->stack, id);
    }
    if (s->what & (XDS_STACK_FIN | XDS_STACK_RESET))
        c->close(s->stack, id, s->now);
    return 0;
}

static void put(struct bench_stream *b, const struct xds_stream *s)
{
    b->sent = bench_ticks();
    s->calls->write(s->stack, (int)s->id, nothing, b->size);
}

/* One request under way on each connection; its answer has as many bytes. */
int bench_stream_ask(void *ctx, const struct xds_stream *s)
{
    struct bench_stream *b = ctx;
    const uint8_t *in;

    if (s->what & XDS_STACK_OPEN)
        put(b, s);
    struct xds_tcp *t = s->calls->tcp(s->stack, (int)s->id);
    while (t && s->calls->peek(t, &in) >= (int)b->size) { /* the ring's end is a message's end too */
        s->calls->consume(t, b->size);
        if (b->one)
            sample(b, bench_ticks() - b->sent);
        else if (b->messages == b->skip)
            b->first = bench_ticks();
        if (++b->messages < b->limit)
            put(b, s);
        else if (b->messages == b->limit)
            b->last = bench_ticks();
    }
    if (s->what & (XDS_STACK_FIN | XDS_STACK_RESET))
        b->ended = 1;
    return 0;
}

int bench_stream_drain(void *ctx, const struct xds_stream *s)
{
    struct bench_stream *b = ctx;
    const uint8_t *in;

    if (s->what & XDS_STACK_ACCEPTABLE) {
        accept_all(s);
        return 0;
    }
    struct xds_tcp *t = s->calls->tcp(s->stack, (int)s->id);
    for (int n; t && (n = s->calls->peek(t, &in)) > 0;) {
        for (int at = 0; at < n; at += 64)
            nothing[0] ^= in[at]; /* as a reader that looks at each line */
        s->calls->consume(t, (uint32_t)n);
        s->calls->touch(s->stack, (int)s->id);
        b->last = bench_ticks();
        b->first = b->first ? b->first : b->last;
        b->bytes += (uint64_t)n;
    }
    if (s->what & (XDS_STACK_FIN | XDS_STACK_RESET)) {
        s->calls->close(s->stack, (int)s->id, s->now);
        b->ended = 1;
    }
    return 0;
}

/* Writes of `size` bytes while they fit. */
int bench_stream_pour(void *ctx, const struct xds_stream *s)
{
    struct bench_stream *b = ctx;

    if (s->what & (XDS_STACK_FIN | XDS_STACK_RESET)) { /* the other end has read everything, or is gone */
        s->calls->close(s->stack, (int)s->id, s->now);
        b->ended = 1;
        return 0;
    }
    while (b->bytes < b->total) {
        const uint64_t left = b->total - b->bytes, whole = b->size - b->bytes % b->size;
        const int n = s->calls->write(s->stack, (int)s->id, nothing, (uint32_t)(left < whole ? left : whole));
        if (n <= 0)
            return 0;
        b->bytes += (uint64_t)n;
    }
    s->calls->shutdown(s->stack, (int)s->id); /* twice is calm */
    return 0;
}

/* Messages of two bytes of length (big-endian) and so many behind them, whole in the ring's next piece. */
static int framed(struct bench_stream *b, const struct xds_stream *s, bool two)
{
    const struct xds_stream_calls *c = s->calls;
    const uint8_t *in;

    if (s->what & XDS_STACK_ACCEPTABLE) {
        accept_all(s);
        return 0;
    }
    struct xds_tcp *t = c->tcp(s->stack, (int)s->id);
    for (int have; t && (have = c->peek(t, &in)) >= 2;) {
        const int whole = 2 + (in[0] << 8 | in[1]);
        if (have < whole)
            break;
        if (two) {
            c->parsed(s->engine);
            c->entered(s->engine);
        } else {
            c->message(s->engine);
        }
        b->messages++;
        b->bytes += in[2] + (uint64_t)whole;
        c->consume(t, (uint32_t)whole);
    }
    c->touch(s->stack, (int)s->id);
    return 0;
}

/* Each is handed over as soon as it is whole: one reading of the clock. */
int bench_stream_framed(void *ctx, const struct xds_stream *s)
{
    return framed(ctx, s, false);
}

int bench_stream_framed_two(void *ctx, const struct xds_stream *s)
{
    return framed(ctx, s, true);
}
