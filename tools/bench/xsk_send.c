/* xsk_send.c: the generator over AF_XDP: bounded count, a rate or flat out, batches of a set size, by
 * --queue or in turns by the first --queues of them (a socket each). --stamp 0 writes numbers, no stamps.
 *
 * Copy mode sends inside the kick, and on veth the receiver's softirq runs in the same call: so this
 * program's core carries the kernel's whole share of receiving. A batch is committed, kicked until
 * the kernel took it all (it takes at most 32 a call and says EAGAIN), and completed before the next.
 */
#include "frame.h"
#include "xsk.h"

#define QUEUES_MAX 8

static uint64_t kicks, again;

static void flush(struct bench_xsk *x, uint32_t n)
{
    uint32_t done = 0, index = 0;
    while (done < n && !bench_stop) {
        if (sendto(x->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0) {
            if (errno != EAGAIN && errno != EBUSY && errno != ENOBUFS)
                bench_die("cannot send: %s", strerror(errno));
            again++;
        }
        kicks++;
        const uint32_t got = xsk_ring_cons__peek(&x->comp, n - done, &index);
        xsk_ring_cons__release(&x->comp, got);
        done += got;
    }
}

/* Put the next n frames onto a ring. */
static void queue_frames(struct bench_xsk *x, uint64_t sent, uint32_t n, uint32_t len, bool stamp)
{
    uint32_t index = 0;
    while (xsk_ring_prod__reserve(&x->tx, n, &index) != n)
        if (bench_stop)
            return;
    for (uint32_t i = 0; i < n; i++) {
        struct xdp_desc *d = xsk_ring_prod__tx_desc(&x->tx, index + i);
        d->addr = (sent + i) % x->frames * BENCH_FRAME;
        d->len = len;
        d->options = 0;
        if (stamp)
            bench_stamp(x->area + d->addr, sent + i);
        else
            bench_number_frame(x->area + d->addr, sent + i);
    }
    xsk_ring_prod__submit(&x->tx, n);
    flush(x, n);
}

static uint32_t open_queues(const struct bench_options *o, struct bench_xsk *x, uint32_t queues)
{
    uint8_t frame[BENCH_FRAME];
    const uint32_t len = bench_frame(o, frame, sizeof frame);
    for (uint32_t q = 0; q < queues; q++) {
        bench_xsk_open(&x[q], o, false, queues > 1 ? q : (uint32_t)bench_number(o, "queue", 0), true);
        for (uint32_t i = 0; i < x[q].frames; i++)
            memcpy(x[q].area + (size_t)i * BENCH_FRAME, frame, len);
    }
    return len;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    struct bench_xsk x[QUEUES_MAX] = {0};
    const uint32_t queues = (uint32_t)bench_number(&options, "queues", 1);
    if (queues < 1 || queues > QUEUES_MAX)
        bench_die("--queues must be 1 to %d", QUEUES_MAX);
    const uint32_t len = open_queues(&options, x, queues);
    const uint64_t count = (uint64_t)bench_number(&options, "count", 100000);
    const uint32_t batch = (uint32_t)bench_number(&options, "batch", 32);
    const bool stamp = bench_number(&options, "stamp", 1) != 0;
    if (batch < 1 || batch > x[0].ring)
        bench_die("--batch must be 1 to %u", x[0].ring);
    const double ns_per_tick = bench_calibrate();
    const uint64_t deadline = bench_ticks() + (uint64_t)(bench_seconds(&options) * 1e9 / ns_per_tick);
    struct bench_pace pace;
    bench_pace_start(&pace, bench_number(&options, "rate", 0), ns_per_tick);
    uint64_t sent = 0;
    for (uint32_t turn = 0; sent < count && !bench_stop && bench_ticks() < deadline; turn++) {
        bench_pace_wait(&pace, sent);
        const uint32_t n = count - sent < batch ? (uint32_t)(count - sent) : batch;
        queue_frames(&x[turn % queues], sent, n, len, stamp);
        sent += n;
    }
    const double seconds = (double)(bench_ticks() - pace.begin) * ns_per_tick / 1e9;
    printf("{\"generator\": \"af_xdp\", \"sent\": %lu, \"seconds\": %.6f, \"rate\": %.0f, \"kicks\": %lu, "
           "\"again\": %lu}\n",
           sent, seconds, (double)sent / seconds, kicks, again);
    for (uint32_t q = 0; q < queues; q++)
        bench_xsk_close(&x[q]);
    return 0;
}
