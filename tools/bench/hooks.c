/* hooks.c: native datagram handlers that the benches hang into the engine, as a user's own would be.
 *
 * Loaded by xdpstack/bench/worker.py; struct bench_hook is known there by its size and the order of
 * its fields. A handler runs in the engine's thread, inside the turn; the worker reads the counters
 * from another thread and the samples when the engine has ended.
 */
#include "bench.h"
#include "xds/engine.h"

struct bench_hook {
    uint64_t packets, bytes, sum;
    int64_t first, last; /* CLOCK_TAI ns of the turns with the first and the last packet */
    uint64_t skip;       /* samples to leave out                                         */
    uint64_t count, cap; /* samples                                                      */
    uint32_t *samples;   /* wake: ns, ping: ticks                                           */
    uint64_t sequence;   /* ping: the one that is awaited                                */
    uint64_t limit;      /* ping: how many to send                                       */
    uint64_t sent;       /* ping: ticks, as the peers time theirs                           */
    uint32_t dst, len;   /* send: to whom (network order), bytes of payload                 */
    uint32_t batch;      /* send: datagrams a turn                                          */
    uint16_t port, tick; /* send: the far end's UDP port, the engine's port of the clock    */
};

double bench_hook_ns_per_tick(void)
{
    return bench_calibrate();
}

static void sample(struct bench_hook *h, int64_t ns)
{
    if (h->skip) {
        h->skip--;
        return;
    }
    if (h->count < h->cap)
        h->samples[h->count++] = ns < 0 ? 0 : ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

/* The work of the bare loop: touch a byte, count. */
int bench_hook_count(void *ctx, const struct xds_dgram *d, size_t n, struct xds_outbox *out, int64_t now)
{
    struct bench_hook *h = ctx;
    (void)out;
    for (size_t i = 0; i < n; i++) {
        h->sum += d[i].data[0];
        h->bytes += d[i].len;
    }
    if (!h->packets)
        h->first = now;
    h->last = now;
    h->packets += n;
    return 0;
}

/* How long ago the XDP program stamped the packet, read on entry. */
int bench_hook_wake(void *ctx, const struct xds_dgram *d, size_t n, struct xds_outbox *out, int64_t now)
{
    const int64_t entered = bench_clock_ns(CLOCK_TAI);
    struct bench_hook *h = ctx;
    (void)out, (void)now;
    for (size_t i = 0; i < n; i++)
        sample(h, entered - d[i].rx_ns);
    h->packets += n;
    return 0;
}

/* One in flight: the answer is timed and the next one leaves in the same turn. */
int bench_hook_ping(void *ctx, const struct xds_dgram *d, size_t n, struct xds_outbox *out, int64_t now)
{
    struct bench_hook *h = ctx;
    (void)now;
    for (size_t i = 0; i < n; i++) {
        uint64_t sequence;
        __builtin_memcpy(&sequence, d[i].data, sizeof sequence);
        if (d[i].len < sizeof sequence || sequence != h->sequence)
            continue; /* the late answer of one that was given up */
        if (h->sent)
            sample(h, (int64_t)(bench_ticks() - h->sent));
        h->packets++;
        h->sequence++;
        if (h->packets >= h->limit || out->count >= out->max || out->cap - out->used < d[i].len)
            continue;
        uint8_t *data = out->data + out->used;
        __builtin_memcpy(data, d[i].data, d[i].len);
        __builtin_memcpy(data, &h->sequence, sizeof h->sequence);
        out->list[out->count++] = (struct xds_outgoing){.offset = out->used,
                                                        .len = d[i].len,
                                                        .dst = d[i].src,
                                                        .dport = d[i].sport,
                                                        .sport = d[i].dport,
                                                        .port = d[i].port};
        out->used += d[i].len;
        h->sent = bench_ticks();
    }
    return 0;
}

static int send_one(struct xds_outbox *out, struct xds_outgoing one)
{
    if (out->count >= out->max || out->cap - out->used < one.len)
        return -1;
    one.offset = out->used;
    out->list[out->count++] = one;
    out->used += one.len;
    return 0;
}

/* A batch for the wire by engine port 0, and the datagram that comes back in the next turn through a pipe and
 * calls for another one. So an engine sends flat out with nobody to answer. */
int bench_hook_send(void *ctx, const struct xds_dgram *d, size_t n, struct xds_outbox *out, int64_t now)
{
    struct bench_hook *h = ctx;
    (void)n;
    if (!h->first)
        h->first = now;
    h->last = now;
    h->bytes = h->packets; /* what was sent before this turn */
    for (uint32_t i = 0; i < h->batch && h->packets < h->limit; i++) {
        uint8_t *data = out->data + out->used;
        if (send_one(out,
                     (struct xds_outgoing){.len = h->len, .dst = h->dst, .dport = h->port, .sport = h->port}))
            return -1;
        __builtin_memset(data, 0, h->len);
        __builtin_memcpy(data, &h->packets, 8);
        h->packets++;
    }
    if (h->packets < h->limit)
        send_one(out,
                 (struct xds_outgoing){
                     .len = d->len, .dst = d->dst, .dport = d->dport, .sport = d->sport, .port = h->tick});
    return 0;
}

/* Of a feed: looks at each update and counts. */
int bench_hook_updates(void *ctx, const struct xds_update *u, size_t n, struct xds_outbox *out, int64_t now)
{
    struct bench_hook *h = ctx;
    (void)out, (void)now;
    for (size_t i = 0; i < n; i++)
        h->sum += (uint64_t)u[i].price;
    h->packets += n;
    return 0;
}
