/* book_bench.c: the loops of the itch, book and sbe benches, compiled by book_bench.py into a small
 * shared object beside the library. No bench code lives in the core.
 *
 * Times are the thread's CPU time: other work on the machine shows in the caches only.
 */
#include <stdint.h>
#include <time.h>

#include "xds/books.h"
#include "xds/decode.h"

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Cut a framed stream (u16be lengths) into blocks of `count` messages: where each ends. Returns how many. */
uint64_t bench_cut(const uint8_t *data, uint64_t len, unsigned count, uint64_t *ends, uint64_t cap)
{
    uint64_t at = 0, n = 0;
    unsigned have = 0;
    while (at + 2 <= len && n < cap) {
        at += 2u + ((uint64_t)data[at] << 8 | data[at + 1]);
        if (++have == count || at >= len) {
            ends[n++] = at;
            have = 0;
        }
    }
    return n;
}

/* Decode, and with books apply, blocks [first, last) of a stream; `gather` blocks are decoded before
 * one call of apply. Each block begins `skip` bytes behind the end of the one before (a header that
 * is not part of the block). Returns CPU nanoseconds. */
int64_t bench_blocks(const struct xds_decoder *d, void *decoder, struct xds_books *books, const uint8_t *data,
                     const uint64_t *ends, uint64_t first, uint64_t last, unsigned skip, unsigned gather,
                     struct xds_sink *sink, uint64_t *updates)
{
    uint64_t at = first ? ends[first - 1] : 0, total = 0;
    int64_t begin = cpu_ns();
    for (uint64_t i = first; i < last;) {
        sink->n_updates = sink->n_messages = 0;
        for (unsigned g = 0; g < gather && i < last; g++, i++) {
            struct xds_block b = {data + at + skip, (int64_t)i, 0, i, (uint32_t)(ends[i] - at - skip),
                                  0xffff,           0,          0};
            d->block(decoder, &b, sink);
            at = ends[i];
        }
        total += sink->n_updates;
        if (books) {
            xds_books_apply(books, sink->updates, sink->n_updates);
        }
    }
    *updates = total;
    return cpu_ns() - begin;
}

static inline uint64_t ticks(void)
{
    unsigned aux;
    return __builtin_ia32_rdtscp(&aux);
}

/* Apply n updates, one a call, and write the TSC ticks of each: latency, not throughput. */
void bench_each(struct xds_books *books, struct xds_update *u, uint64_t n, uint32_t *out)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t t = ticks();
        xds_books_apply(books, &u[i], 1);
        out[i] = (uint32_t)(ticks() - t);
    }
}

/* Nanoseconds of 2^20 ticks, calibrated over 20 ms. */
uint64_t bench_tick_q20(void)
{
    struct timespec a, b;
    int64_t ns;
    clock_gettime(CLOCK_MONOTONIC, &a);
    uint64_t t = ticks();
    do {
        clock_gettime(CLOCK_MONOTONIC, &b);
        ns = (b.tv_sec - a.tv_sec) * 1000000000ll + b.tv_nsec - a.tv_nsec;
    } while (ns < 20000000);
    return (uint64_t)(ns * 1048576 / (int64_t)(ticks() - t));
}
