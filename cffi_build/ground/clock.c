/* clock.c: calibrate, read and discipline. The only system interface is clock_gettime(CLOCK_TAI),
 * answered by the vDSO, at init and at ticks.
 *
 * now = anchor_ns + (counter - anchor) * mult. A tick moves the anchor to where the clock stands
 * (so it is continuous), measures the rate since the last tick, and chooses mult so that the error
 * found will be gone at the next tick. A sample is the narrowest of a few counter, clock, counter
 * triples; its own uncertainty (some 20 ns here) is the noise of the error.
 */
#include <errno.h>
#include <string.h>
#include <sys/timex.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "ground/clock_inl.h"

#define TRIES        8       /* triples a sample; the narrowest counts        */
#define CALIBRATE_NS 3000000 /* one calibration; three of them                */
#define ONE          ((uint64_t)1 << 48)
#define SLEW_MAX     (ONE / 10) /* a tenth: how much a correction may bend time */

static int64_t tai(void)
{
    struct timespec t;
    clock_gettime(CLOCK_TAI, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

struct sample {
    uint64_t counter, spread;
    int64_t ns;
};

static struct sample take_sample(void)
{
    struct sample best = {.spread = UINT64_MAX};
    for (int i = 0; i < TRIES; i++) {
        const uint64_t before = xdsi_clock_counter();
        const int64_t ns = tai();
        const uint64_t spread = xdsi_clock_counter() - before;
        if (spread < best.spread)
            best = (struct sample){.counter = before + spread / 2, .spread = spread, .ns = ns};
    }
    return best;
}

static int counter_reason(void)
{
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & (1u << 8))) /* AMD APM 3 E.4.6, Intel SDM 17.17.1 */
        return XDS_CLOCK_NOT_INVARIANT;
    return XDS_CLOCK_OK;
#elif defined(__aarch64__)
    return XDS_CLOCK_OK; /* the generic timer has one fixed rate (ARM DDI 0487, D12) */
#else
    return XDS_CLOCK_NO_COUNTER;
#endif
}

uint64_t xds_clock_rate(uint64_t counter0, int64_t ns0, uint64_t counter1, int64_t ns1)
{
    if (counter1 <= counter0 || ns1 <= ns0)
        return 0;
    const unsigned __int128 rate = ((unsigned __int128)(uint64_t)(ns1 - ns0) << 48) / (counter1 - counter0);
    return rate > UINT64_MAX ? 0 : (uint64_t)rate;
}

/* The median of three rates, 0 when they disagree by more than one in a thousand. */
static uint64_t calibrate(void)
{
    uint64_t r[3];
    for (int i = 0; i < 3; i++) {
        const struct sample first = take_sample();
        while (tai() - first.ns < CALIBRATE_NS)
            ;
        const struct sample last = take_sample();
        r[i] = xds_clock_rate(first.counter, first.ns, last.counter, last.ns);
    }
    for (int i = 0; i < 3; i++) /* three swaps sort three */
        for (int j = 0; j < 2; j++)
            if (r[j] > r[j + 1]) {
                const uint64_t t = r[j];
                r[j] = r[j + 1];
                r[j + 1] = t;
            }
    return r[0] && r[2] - r[0] <= r[1] / 1000 ? r[1] : 0;
}

/* What the clock says. Nobody may have read it for long: the correction ends when the tick was due,
 * or it would be made several times over. */
static int64_t say(const struct xds_clock *c, uint64_t counter)
{
    if (counter - c->anchor <= c->due - c->anchor)
        return xdsi_clock_at(c, counter);
    return xdsi_clock_at(c, c->due) + (int64_t)(((unsigned __int128)(counter - c->due) * c->rate) >> 48);
}

static void schedule(struct xds_clock *c, int64_t wait_ns)
{
    c->wait_ns = wait_ns;
    c->due = c->anchor + (uint64_t)(((unsigned __int128)(uint64_t)wait_ns << 48) / c->mult);
}

void xds_clock_set(struct xds_clock *c, uint64_t counter, int64_t tai_ns, uint64_t rate)
{
    memset(c, 0, sizeof(*c));
    c->source = XDS_CLOCK_COUNTER;
    c->anchor = c->ref = counter;
    c->anchor_ns = c->ref_ns = tai_ns;
    c->rate = c->mult = c->settled_rate = rate;
    schedule(c, XDS_CLOCK_FIRST_TICK_NS);
}

int xds_clock_init(struct xds_clock *c, int source)
{
    uint64_t rate = 0;
    int reason = source == XDS_CLOCK_SYSTEM ? XDS_CLOCK_ASKED : counter_reason();
    if (reason == XDS_CLOCK_OK && !(rate = calibrate()))
        reason = XDS_CLOCK_UNSTABLE;
    if (reason == XDS_CLOCK_OK) {
        const struct sample s = take_sample();
        xds_clock_set(c, s.counter, s.ns, rate);
        c->spread = s.spread;
        return XDS_CLOCK_COUNTER;
    }
    memset(c, 0, sizeof(*c)); /* due == anchor: every read takes the slow way */
    c->source = XDS_CLOCK_SYSTEM;
    c->reason = (uint32_t)reason;
    c->anchor_ns = tai();
    return XDS_CLOCK_SYSTEM;
}

/* The speed at which an error is gone after wait_ns: rate * (1 - error / wait), within a tenth. */
static uint64_t bend(uint64_t rate, int64_t error_ns, int64_t wait_ns)
{
    __int128 part = (__int128)error_ns * (__int128)ONE / wait_ns;
    if (part > (__int128)SLEW_MAX)
        part = SLEW_MAX;
    if (part < -(__int128)SLEW_MAX)
        part = -(__int128)SLEW_MAX;
    return (uint64_t)(((unsigned __int128)rate * (uint64_t)((__int128)ONE - part)) >> 48);
}

/* The rate since the reference sample, smoothed once the waits have grown. Ticks that come early leave
 * the reference alone: a short baseline would teach us the noise of two samples. A set clock or a frozen
 * machine says nothing about the rate. Returns whether the reference has served. */
static int learn_rate(struct xds_clock *c, uint64_t counter, int64_t tai_ns)
{
    if (tai_ns - c->ref_ns < c->wait_ns / 2)
        return 0;
    const uint64_t rate = xds_clock_rate(c->ref, c->ref_ns, counter, tai_ns);
    const uint64_t off = rate > c->rate ? rate - c->rate : c->rate - rate;
    if (rate && off < c->rate / 500) /* NTP slews by at most 500 ppm (adjtimex), and slack for noise */
        c->rate = c->wait_ns < XDS_CLOCK_TICK_NS ? rate : c->rate - c->rate / 4 + rate / 4;
    if (c->wait_ns < XDS_CLOCK_TICK_NS)
        c->settled_rate = c->rate;
    return 1;
}

void xds_clock_discipline(struct xds_clock *c, uint64_t counter, int64_t tai_ns)
{
    if (counter <= c->anchor)
        return; /* nothing has passed */
    const int64_t said = say(c, counter);
    int64_t error = said - tai_ns;
    int64_t wait = c->wait_ns;
    int moved = 1;                                          /* the reference */
    const int was_behind = c->error_ns > XDS_CLOCK_STEP_NS; /* an earlier step is still being worked off */

    c->error_ns = error;
    c->anchor = counter;
    c->anchor_ns = said;
    if (error > XDS_CLOCK_STEP_NS || error < -XDS_CLOCK_STEP_NS) {
        c->steps += error < 0 || !was_behind;
        wait = XDS_CLOCK_TICK_NS; /* a correction ends with its wait, and this one is long */
        if (error < 0) {          /* set forward: follow at once */
            c->anchor_ns = tai_ns;
            error = 0;
        }
    } else {
        const int64_t size = error < 0 ? -error : error;
        if (size > c->error_ns_max)
            c->error_ns_max = size;
        moved = learn_rate(c, counter, tai_ns);
        if (moved)
            wait = wait * 2 > XDS_CLOCK_TICK_NS ? XDS_CLOCK_TICK_NS : wait * 2;
    }
    if (moved) {
        c->ref = counter;
        c->ref_ns = tai_ns;
    }
    c->ticks++;
    c->mult = bend(c->rate, error, wait);
    schedule(c, wait);
}

void xds_clock_tick(struct xds_clock *c)
{
    if (c->source != XDS_CLOCK_COUNTER)
        return;
    const struct sample s = take_sample();
    c->spread = s.spread;
    xds_clock_discipline(c, s.counter, s.ns);
}

int64_t xdsi_clock_slow(struct xds_clock *c)
{
    if (c->source != XDS_CLOCK_COUNTER) {
        const int64_t now = tai();
        if (now > c->anchor_ns)
            c->anchor_ns = now;
        return c->anchor_ns;
    }
    const uint64_t counter = xdsi_clock_counter();
    if (counter < c->anchor)
        return c->anchor_ns;
    xds_clock_tick(c);
    return c->anchor_ns; /* the tick's own sample: later than `counter` */
}

void xds_clock_stats(const struct xds_clock *c, struct xds_clock_stats *out)
{
    const uint64_t was = c->settled_rate, is = c->rate;
    *out = (struct xds_clock_stats){
        .source = c->source,
        .reason = c->reason,
        .ahead_ns = c->error_ns > 0 ? (uint64_t)c->error_ns : 0,
        .behind_ns = c->error_ns < 0 ? -(uint64_t)c->error_ns : 0,
        .error_max_ns = (uint64_t)c->error_ns_max,
        .fast_ppb = is < was ? (uint64_t)((unsigned __int128)(was - is) * 1000000000 / was) : 0,
        .slow_ppb = is > was ? (uint64_t)((unsigned __int128)(is - was) * 1000000000 / was) : 0,
        .spread_ns = (uint64_t)(((unsigned __int128)c->spread * is) >> 48),
        .ticks = c->ticks,
        .steps = c->steps,
        .tick_ns = (uint64_t)c->anchor_ns,
        .wait_ns = (uint64_t)c->wait_ns,
    };
}

int xds_clock_system(struct xds_clock_system *out)
{
    struct timex t = {.modes = 0};
    const int state = adjtimex(&t);
    if (state < 0)
        return -errno;
    *out = (struct xds_clock_system){
        .offset_ns = t.offset * (t.status & STA_NANO ? 1 : 1000),
        .max_error_ns = (int64_t)t.maxerror * 1000,
        .est_error_ns = (int64_t)t.esterror * 1000,
        .frequency_ppb = (int64_t)t.freq * 1000 / 65536, /* 2^-16 ppm */
        .tai_s = t.tai,
        .synchronized = !(t.status & STA_UNSYNC) && state != TIME_ERROR,
        .status = (uint32_t)t.status,
    };
    return 0;
}

int64_t xds_clock_now(struct xds_clock *c)
{
    return xdsi_clock_now(c);
}

int64_t xds_clock_at(const struct xds_clock *c, uint64_t counter)
{
    return say(c, counter);
}

int64_t xds_clock_map(const struct xds_clock *c, uint64_t counter)
{
    if ((int64_t)(counter - c->anchor) >= 0)
        return say(c, counter);
    return c->anchor_ns - (int64_t)(((unsigned __int128)(c->anchor - counter) * c->rate) >> 48);
}

void xds_clock_show(const struct xds_clock *c, struct xds_clock_face *face)
{
    const uint64_t next = face->version + 1;
    struct xds_clock_shown *to = &face->shown[next & 1];

    __atomic_thread_fence(
        __ATOMIC_RELEASE); /* who still reads this copy must see that the version moved on */
    __atomic_store_n(&to->anchor, c->anchor, __ATOMIC_RELAXED);
    __atomic_store_n(&to->anchor_ns, c->anchor_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&to->mult, c->mult, __ATOMIC_RELAXED);
    __atomic_store_n(&to->rate, c->rate, __ATOMIC_RELAXED);
    __atomic_store_n(&face->version, next, __ATOMIC_RELEASE);
}

int64_t xds_clock_face_map(const struct xds_clock_face *face, uint64_t counter)
{
    const uint64_t version = __atomic_load_n(&face->version, __ATOMIC_ACQUIRE);
    const struct xds_clock_shown *from = &face->shown[version & 1];
    struct xds_clock c = {0}; /* whole, or compilers without link-time optimization doubt it */

    c.anchor = __atomic_load_n(&from->anchor, __ATOMIC_RELAXED);
    c.anchor_ns = __atomic_load_n(&from->anchor_ns, __ATOMIC_RELAXED);
    c.mult = __atomic_load_n(&from->mult, __ATOMIC_RELAXED);
    c.rate = __atomic_load_n(&from->rate, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (version == 0 || __atomic_load_n(&face->version, __ATOMIC_RELAXED) != version)
        return 0;
    return xds_clock_map(&c, counter);
}

uint64_t xds_clock_counter(void)
{
    return xdsi_clock_counter();
}
