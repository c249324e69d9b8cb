/* bare_xsk.c: the least that a program can do to receive over AF_XDP: peek, touch, count, refill.
 *
 * The floor that the bench `rx` measures the engine against: no parsing, no checksum, no clock but
 * the two TSC reads around a poll. A poll that found packets counts from before the peek until the
 * frames are back in the fill ring.
 */
#include "xsk.h"

#define BURST 64

static unsigned poll_once(struct bench_xsk *x, struct bench_account *a)
{
    uint32_t rx, fill;
    const uint64_t begin = bench_ticks();
    const unsigned n = xsk_ring_cons__peek(&x->rx, BURST, &rx);
    a->polls++;
    if (!n)
        return 0;
    while (xsk_ring_prod__reserve(&x->fill, n, &fill) != n)
        ; /* never waits: as many frames as ring entries, and these n are ours */
    uint64_t bytes = 0;
    for (unsigned i = 0; i < n; i++) {
        const struct xdp_desc *d = xsk_ring_cons__rx_desc(&x->rx, rx + i);
        const uint8_t *data = x->area + d->addr;
        a->sum += data[0] + data[42]; /* the header's line and the first of the payload */
        bytes += d->len;
        *xsk_ring_prod__fill_addr(&x->fill, fill + i) = d->addr & ~(uint64_t)(BENCH_FRAME - 1);
    }
    xsk_ring_prod__submit(&x->fill, n);
    xsk_ring_cons__release(&x->rx, n);
    if (xsk_ring_prod__needs_wakeup(&x->fill))
        recvfrom(x->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    bench_account_poll(a, begin, n, bytes);
    return n;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    struct bench_xsk x = {0};
    bench_xsk_open(&x, &options, true, (uint32_t)bench_number(&options, "queue", 0), false);
    struct bench_account account = {0};
    bench_account_init(&account, &options);
    const uint64_t count = (uint64_t)bench_number(&options, "count", 1e18);
    const int64_t deadline = bench_clock_ns(CLOCK_MONOTONIC) + (int64_t)(bench_seconds(&options) * 1e9);
    bench_ready();
    for (uint32_t spins = 0; !bench_stop && account.seen < count; spins++) {
        if (poll_once(&x, &account))
            spins = 0;
        else if ((spins & 0xfff) == 0xfff && bench_clock_ns(CLOCK_MONOTONIC) > deadline)
            break;
    }
    printf("{\"peer\": \"bare libxdp\", ");
    bench_print_account(&account);
    printf(", ");
    bench_xsk_print_statistics(&x);
    printf("}\n");
    bench_xsk_close(&x);
    return 0;
}
