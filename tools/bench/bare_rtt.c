/* bare_rtt.c: a round trip over AF_XDP with nothing above it: --mode echo, --mode ping.
 *
 * The floor under udp-rtt: the echo swaps addresses in the frame it copies, nothing is parsed, looked
 * up or checked. What ours takes above it is the price of the filter, the host core and the engine.
 * It sends as ours does: by a socket, and with --tx-queue by a queue, that receives nothing.
 */
#include "frame.h"
#include "xsk.h"

/* Send the first frame of the sending socket's memory; the kick sends and completes it. */
static void send_one(struct bench_xsk *x, uint32_t len)
{
    uint32_t index = 0;
    if (xsk_ring_prod__reserve(&x->tx, 1, &index) != 1)
        return;
    *xsk_ring_prod__tx_desc(&x->tx, index) = (struct xdp_desc){.addr = 0, .len = len};
    xsk_ring_prod__submit(&x->tx, 1);
    uint32_t done = 0;
    while (!done && !bench_stop) {
        (void)!sendto(x->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
        done = xsk_ring_cons__peek(&x->comp, 1, &index);
    }
    xsk_ring_cons__release(&x->comp, done);
}

/* Copy one received frame to `out`; its length, 0 when there is none. */
static uint32_t receive_one(struct bench_xsk *x, uint8_t *out)
{
    uint32_t rx = 0, fill = 0;
    if (!xsk_ring_cons__peek(&x->rx, 1, &rx))
        return 0;
    const struct xdp_desc *d = xsk_ring_cons__rx_desc(&x->rx, rx);
    const uint32_t len = d->len;
    memcpy(out, x->area + d->addr, len);
    xsk_ring_prod__reserve(&x->fill, 1, &fill);
    *xsk_ring_prod__fill_addr(&x->fill, fill) = d->addr & ~(uint64_t)(BENCH_FRAME - 1);
    xsk_ring_prod__submit(&x->fill, 1);
    xsk_ring_cons__release(&x->rx, 1);
    return len;
}

static void swap(uint8_t *a, uint8_t *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const uint8_t t = a[i];
        a[i] = b[i];
        b[i] = t;
    }
}

static void echo(struct bench_xsk *x, struct bench_xsk *out, int64_t deadline)
{
    uint8_t *frame = out->area;
    for (uint32_t spins = 1; !bench_stop; spins++) {
        const uint32_t len = receive_one(x, frame);
        if (len >= BENCH_HEADERS) {
            swap(frame, frame + 6, 6);
            swap(frame + 26, frame + 30, 4);
            swap(frame + 34, frame + 36, 2);
            send_one(out, len);
        } else if (!(spins & 0xffff) && bench_clock_ns(CLOCK_MONOTONIC) > deadline) {
            break;
        }
    }
}

static uint64_t ping(const struct bench_options *o, struct bench_xsk *x, struct bench_xsk *out,
                     int64_t deadline, struct bench_samples *s)
{
    const uint32_t len = bench_frame(o, out->area, BENCH_FRAME);
    const uint64_t count = (uint64_t)bench_number(o, "count", 100000),
                   skip = (uint64_t)bench_number(o, "skip", 1000);
    const double ns_per_tick = bench_calibrate();
    const uint64_t patience = (uint64_t)(1e7 / ns_per_tick);
    uint8_t answer[BENCH_FRAME];
    uint64_t lost = 0;
    bench_samples_init(s, count);
    for (uint64_t i = 0; i < count + skip && !bench_stop; i++) {
        memcpy(out->area + BENCH_HEADERS, &i, 8);
        const uint64_t begin = bench_ticks();
        send_one(out, len);
        uint64_t got = ~0ull, now = begin;
        while (got != i && now - begin < patience) {
            if (receive_one(x, answer) >= BENCH_HEADERS + 8)
                memcpy(&got, answer + BENCH_HEADERS, 8);
            now = bench_ticks();
        }
        if (got != i)
            lost++;
        else if (i >= skip)
            bench_sample(s, (double)(now - begin) * ns_per_tick);
        if ((i & 0xff) == 0 && bench_clock_ns(CLOCK_MONOTONIC) > deadline)
            break;
    }
    return lost;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    struct bench_xsk x = {0}, out = {0};
    bench_xsk_open(&x, &options, true, (uint32_t)bench_number(&options, "queue", 0), false);
    bench_xsk_open(&out, &options, false, (uint32_t)bench_number(&options, "tx-queue", 1), true);
    const int64_t deadline = bench_clock_ns(CLOCK_MONOTONIC) + (int64_t)(bench_seconds(&options) * 1e9);
    struct bench_samples samples = {0};
    bench_ready();
    if (!strcmp(bench_text(&options, "mode", "echo"), "echo")) {
        echo(&x, &out, deadline);
        printf("{\"peer\": \"bare libxdp echo\"}\n");
    } else {
        const uint64_t lost = ping(&options, &x, &out, deadline, &samples);
        printf("{\"peer\": \"bare libxdp\", \"lost\": %lu, ", lost);
        bench_print_samples(&samples);
        printf("}\n");
    }
    bench_xsk_close(&out);
    bench_xsk_close(&x);
    return 0;
}
