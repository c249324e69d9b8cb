/* bench.h: what the peers of `xdpstack bench` share: options, pinning, time, samples, one JSON line.
 *
 * Every peer is one small program that knows nothing of xdpstack: it takes long options, prints
 * "ready" when it can be measured (receivers), stops at --count, --seconds or SIGTERM, whichever is
 * first, and prints one JSON object. Nothing runs without a bound. xdpstack/bench reads these
 * objects; a key that changes here must change there (xdpstack/bench/peers.py).
 */
#ifndef BENCH_H
#define BENCH_H

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BENCH_SECONDS_MAX 60 /* no peer runs longer, whatever it was asked for */

static volatile sig_atomic_t bench_stop;

static inline void bench_on_signal(int signal_number)
{
    (void)signal_number;
    bench_stop = 1;
}

static inline void __attribute__((format(printf, 1, 2), noreturn)) bench_die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

/* ---- options: "--name value" pairs, all optional; an unknown name is an error of the caller ---- */

struct bench_options {
    int argc;
    char **argv;
};

static inline const char *bench_text(const struct bench_options *o, const char *name, const char *otherwise)
{
    for (int i = 1; i + 1 < o->argc; i += 2)
        if (!strncmp(o->argv[i], "--", 2) && !strcmp(o->argv[i] + 2, name))
            return o->argv[i + 1];
    return otherwise;
}

static inline double bench_number(const struct bench_options *o, const char *name, double otherwise)
{
    const char *text = bench_text(o, name, NULL);
    if (!text)
        return otherwise;
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end)
        bench_die("--%s takes a number, not '%s'", name, text);
    return value;
}

/* ---- time: the TSC, calibrated once against CLOCK_MONOTONIC_RAW ---- */

static inline int64_t bench_clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#if defined(__x86_64__)
static inline uint64_t bench_ticks(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}
/* The end of an interval: only when every load before it has its value, else a poll's cache misses
 * would be counted nowhere. */
static inline uint64_t bench_ticks_end(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtscp" : "=a"(low), "=d"(high)::"rcx", "memory");
    return (uint64_t)high << 32 | low;
}
static inline void bench_pause(void)
{
    __builtin_ia32_pause();
}
#elif defined(__aarch64__)
static inline uint64_t bench_ticks(void)
{
    uint64_t ticks;
    __asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(ticks)::"memory");
    return ticks;
}
static inline void bench_pause(void)
{
    __asm__ volatile("yield");
}
#endif

/* ns per tick, measured over 20 ms: good to about 0.01 %, far below the spread of any result. */
static inline double bench_calibrate(void)
{
    const int64_t ns = bench_clock_ns(CLOCK_MONOTONIC_RAW);
    const uint64_t ticks = bench_ticks();
    while (bench_clock_ns(CLOCK_MONOTONIC_RAW) - ns < 20000000)
        ;
    return (double)(bench_clock_ns(CLOCK_MONOTONIC_RAW) - ns) / (double)(bench_ticks() - ticks);
}

/* Pin to --core (default: stay), SCHED_FIFO (--fifo 0: not), catch SIGTERM and SIGINT, bound the life of the process. */
static inline void bench_start(const struct bench_options *o)
{
    const int core = (int)bench_number(o, "core", -1);
    if (core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(core, &set);
        if (sched_setaffinity(0, sizeof set, &set))
            bench_die("cannot pin to core %d: %s", core, strerror(errno));
    }
    /* Others on the core wait: a receiver that is off it for 8 ms loses packets to the scheduler, not to
     * what is measured. Refused without the right, and then so be it. */
    const struct sched_param fifo = {.sched_priority = (int)bench_number(o, "fifo", 10)};
    if (fifo.sched_priority)
        (void)!sched_setscheduler(0, SCHED_FIFO, &fifo);
    alarm(BENCH_SECONDS_MAX + 5); /* SIGALRM is not caught: it ends what spins for ever */
    struct sigaction action = {.sa_handler = bench_on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

static inline double bench_seconds(const struct bench_options *o)
{
    const double seconds = bench_number(o, "seconds", 10);
    return seconds > 0 && seconds < BENCH_SECONDS_MAX ? seconds : BENCH_SECONDS_MAX;
}

/* ---- samples: kept whole, sorted once at the end; percentiles are real samples, no buckets ---- */

struct bench_samples {
    uint32_t *ns;
    size_t count, cap;
};

static inline void bench_samples_init(struct bench_samples *s, size_t cap)
{
    s->ns = calloc(cap ? cap : 1, sizeof *s->ns);
    if (!s->ns)
        bench_die("out of memory for %zu samples", cap);
    s->count = 0;
    s->cap = cap;
}

static inline void bench_sample(struct bench_samples *s, double ns)
{
    if (s->count < s->cap)
        s->ns[s->count++] = ns < 0 ? 0 : ns > 4e9 ? 4000000000u : (uint32_t)ns;
}

static inline int bench_compare(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static inline uint32_t bench_percentile(const struct bench_samples *s, double p)
{
    return s->count ? s->ns[(size_t)((double)(s->count - 1) * p / 100)] : 0;
}

static inline void bench_print_samples(struct bench_samples *s)
{
    qsort(s->ns, s->count, sizeof *s->ns, bench_compare);
    printf("\"n\": %zu, \"min\": %u, \"p50\": %u, \"p90\": %u, \"p99\": %u, \"p999\": %u, \"max\": %u",
           s->count, bench_percentile(s, 0), bench_percentile(s, 50), bench_percentile(s, 90),
           bench_percentile(s, 99), bench_percentile(s, 99.9), bench_percentile(s, 100));
}

/* ---- the receivers' account: one poll that found packets is one busy interval ----
 *
 * A guest is taken off its core now and then, and a poll that this happens to shows it. So beside the
 * plain mean there is a sample a slice of packets; the median of slices is what a packet costs while
 * the thread runs. */

#define BENCH_SLICE 1000 /* packets */

struct bench_account {
    uint64_t packets, bytes, polls, polls_busy, busy_ticks;
    uint64_t skip;        /* packets of the warm-up still to leave out */
    uint64_t seen;        /* packets, the warm-up included             */
    uint64_t first, last; /* ticks                                     */
    uint64_t slice_packets, slice_ticks;
    uint32_t sum;               /* of the bytes touched: keeps the work real */
    struct bench_samples picos; /* a packet, by slice                     */
    double ns_per_tick;
};

static inline void bench_account_init(struct bench_account *a, const struct bench_options *o)
{
    a->skip = (uint64_t)bench_number(o, "skip", 0);
    a->ns_per_tick = bench_calibrate();
    bench_samples_init(&a->picos, 1 << 17);
}

static inline void bench_account_poll(struct bench_account *a, uint64_t begin, unsigned packets,
                                      uint64_t bytes)
{
    const uint64_t end = bench_ticks_end();
    a->seen += packets;
    if (a->skip >= packets) {
        a->skip -= packets;
        return;
    }
    a->skip = 0;
    if (!a->first)
        a->first = begin;
    a->last = end;
    a->packets += packets;
    a->bytes += bytes;
    a->polls_busy++;
    a->busy_ticks += end - begin;
    a->slice_packets += packets;
    a->slice_ticks += end - begin;
    if (a->slice_packets >= BENCH_SLICE) {
        bench_sample(&a->picos, (double)a->slice_ticks * a->ns_per_tick * 1000 / (double)a->slice_packets);
        a->slice_packets = a->slice_ticks = 0;
    }
}

static inline void bench_print_account(struct bench_account *a)
{
    const double busy_ns = (double)a->busy_ticks * a->ns_per_tick;
    printf("\"seen\": %lu, \"packets\": %lu, \"bytes\": %lu, \"polls\": %lu, \"polls_busy\": %lu, ", a->seen,
           a->packets, a->bytes, a->polls, a->polls_busy);
    printf("\"busy_ns\": %.0f, \"span_ns\": %.0f, \"sum\": %u, \"slice_ps\": {", busy_ns,
           (double)(a->last - a->first) * a->ns_per_tick, a->sum);
    bench_print_samples(&a->picos);
    printf("}, \"slices_ps\": [");
    for (size_t i = 0; i < a->picos.count; i++)
        printf("%s%u", i ? ", " : "", a->picos.ns[i]);
    printf("]");
}

static inline void bench_ready(void)
{
    printf("ready\n");
    fflush(stdout);
}

#endif
