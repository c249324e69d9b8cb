/* core_pair.c: ns for a cache line to reach the other core: one way of a ping-pong between two threads.
 *
 * A guest's cores may lie beside each other or a chip apart, and may move while it runs; every figure
 * of a spinning hand-off follows. So benches print this beside theirs.
 */
#include <pthread.h>

#include "bench.h"

#define TRIPS 20000

static _Alignas(128) volatile uint32_t ball;
static int64_t deadline; /* neither spins longer, whatever becomes of the other */

static bool late(void)
{
    return bench_stop || bench_clock_ns(CLOCK_MONOTONIC) > deadline;
}

static void *answer(void *unused)
{
    (void)unused;
    for (uint32_t i = 1; i < 2 * TRIPS; i += 2) {
        for (uint32_t spins = 1; ball != i; spins++)
            if (!(spins & 0xffff) && late())
                return NULL;
        ball = i + 1;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    deadline = bench_clock_ns(CLOCK_MONOTONIC) + 10000000000; /* both may have to wait for a core */
    pthread_attr_t other; /* on its core from its first instruction: ours never lets go of this one */
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((int)bench_number(&options, "other", 1), &set);
    pthread_attr_init(&other);
    if (pthread_attr_setaffinity_np(&other, sizeof set, &set))
        bench_die("cannot pin the other thread");
    const double ns_per_tick = bench_calibrate();
    struct bench_samples samples;
    bench_samples_init(&samples, TRIPS);
    pthread_t thread;
    if (pthread_create(&thread, &other, answer, NULL))
        bench_die("cannot start a thread");
    uint64_t begin = bench_ticks();
    for (uint32_t i = 0; i < 2 * TRIPS; i += 2) {
        ball = i + 1;
        for (uint32_t spins = 1; ball != i + 2; spins++)
            if (!(spins & 0xffff) && late())
                bench_die("the other core does not answer");
        const uint64_t end = bench_ticks();
        bench_sample(&samples, (double)(end - begin) * ns_per_tick / 2);
        begin = end;
    }
    pthread_join(thread, NULL);
    printf("{");
    bench_print_samples(&samples);
    printf("}\n");
    return 0;
}
