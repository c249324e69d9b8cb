/* clock.h: CLOCK_TAI in nanoseconds from the CPU's own counter (x86 TSC, ARM64 cntvct).
 *
 * Every stamp of this project is CLOCK_TAI ns. A clock maps the counter onto it: calibrated at init
 * (the median of three), then disciplined by a tick once a second, which xds_clock_now() does by
 * itself when it is due (a few vDSO reads, no system call) and which a caller may do earlier, off its
 * hot path. A tick never steps back: an error is worked off by running slower or faster until the
 * next one, so the readings of one clock never decrease. When CLOCK_TAI itself was set forward by
 * more than XDS_CLOCK_STEP_NS, the clock follows at once; when it was set back, it runs at nine
 * tenths of its speed until the two agree. Both are counted.
 *
 * One thread at a time, as an engine. Memory is the caller's; there are no globals.
 */
#ifndef XDS_CLOCK_H
#define XDS_CLOCK_H

#include <stdint.h>

#define XDS_CLOCK_STEP_NS       1000000    /* 1 ms: beyond it CLOCK_TAI was set, it did not drift      */
#define XDS_CLOCK_TICK_NS       1000000000 /* between two ticks once the first seconds are over        */
#define XDS_CLOCK_FIRST_TICK_NS 10000000   /* the first tick; then each wait is twice the one before */

enum xds_clock_source {
    XDS_CLOCK_COUNTER = 1, /* the CPU's counter                                               */
    XDS_CLOCK_SYSTEM = 2,  /* clock_gettime(CLOCK_TAI) at every read; clock.reason says why   */
};

enum xds_clock_reason {
    XDS_CLOCK_OK = 0,
    XDS_CLOCK_ASKED = 1,         /* the caller asked for clock_gettime                        */
    XDS_CLOCK_NO_COUNTER = 2,    /* not x86-64 and not ARM64                                  */
    XDS_CLOCK_NOT_INVARIANT = 3, /* the counter's rate follows the core's (CPUID 80000007h)   */
    XDS_CLOCK_UNSTABLE = 4,      /* three calibrations disagree by more than 1 in 1,000       */
    XDS_CLOCK_DISTRUSTED = 5,    /* the kernel found it unstable: its owner asked for no counter */
};

struct xds_clock {
    uint64_t anchor;      /* counter at the last tick                                           */
    int64_t anchor_ns;    /* what the clock said there                                          */
    uint64_t mult;        /* ns a count in 2^-48, with the correction that is being worked off  */
    uint64_t due;         /* counter of the next tick                                           */
    uint32_t source;      /* enum xds_clock_source                                              */
    uint32_t reason;      /* enum xds_clock_reason                                              */
    uint64_t rate;        /* ns a count in 2^-48, as measured                                   */
    uint64_t ref;         /* counter and CLOCK_TAI of the last sample: where the next           */
    int64_t ref_ns;       /* measurement of the rate starts                                     */
    int64_t wait_ns;      /* from the last tick to the next                                     */
    int64_t error_ns;     /* what the clock said minus CLOCK_TAI, at the last tick              */
    int64_t error_ns_max; /* the largest of these, either way, steps left out                 */
    uint64_t ticks;
    uint64_t steps;        /* CLOCK_TAI was set while we ran                                     */
    uint64_t spread;       /* counts that the last sample took: how well it is known             */
    uint64_t settled_rate; /* the rate when the waits had grown: drift is counted from there */
    uint64_t pad;
};

_Static_assert(sizeof(struct xds_clock) == 128, "hot words on the first line");

/* How it does, in words that other processes may read. One of each pair is 0. */
struct xds_clock_stats {
    uint64_t source, reason;      /* enum xds_clock_source, xds_clock_reason                          */
    uint64_t ahead_ns, behind_ns; /* of CLOCK_TAI, at the last tick                                   */
    uint64_t error_max_ns;        /* the largest of these, steps left out                             */
    uint64_t fast_ppb, slow_ppb;  /* how the counter's rate has moved since it was known well         */
    uint64_t spread_ns;           /* how well the last sample is known                                */
    uint64_t ticks, steps;        /* corrections; of them, those because CLOCK_TAI was set            */
    uint64_t tick_ns, wait_ns;    /* CLOCK_TAI of the last tick; from it to the next                  */
};

/* What the kernel says of its own clock (adjtimex(2)); whether it follows NTP, PTP or a pulse it does not say. */
struct xds_clock_system {
    int64_t offset_ns;                  /* that it still works off                        */
    int64_t max_error_ns, est_error_ns; /* as its master told: bound, estimate            */
    int64_t frequency_ppb;              /* how much faster it was told to run             */
    int32_t tai_s;                      /* between UTC and CLOCK_TAI; 0: nobody told      */
    int32_t synchronized;               /* 1: somebody keeps it                           */
    uint32_t status;                    /* STA_ bits of linux/timex.h                     */
    uint32_t pad;
};

/* Calibrate: takes about 10 ms. source: XDS_CLOCK_COUNTER (falls back by itself) or
 * XDS_CLOCK_SYSTEM. Returns the source that is used; clock.reason says why it is not the counter. */
int xds_clock_init(struct xds_clock *c, int source);
/* Nanoseconds of CLOCK_TAI; never less than the reading before. */
int64_t xds_clock_now(struct xds_clock *c);
/* Compare with CLOCK_TAI and correct, now. */
void xds_clock_tick(struct xds_clock *c);
void xds_clock_stats(const struct xds_clock *c, struct xds_clock_stats *out);
int xds_clock_system(struct xds_clock_system *out); /* a system call: 0, -errno */

/* The parts, with the counter and CLOCK_TAI as arguments: for tests and simulators.
 * Set the clock from one sample and a rate. */
void xds_clock_set(struct xds_clock *c, uint64_t counter, int64_t tai_ns, uint64_t rate);
/* What the clock says at a counter value at or after the last tick. */
int64_t xds_clock_at(const struct xds_clock *c, uint64_t counter);
/* The same of any counter value, before the last tick too: for stamps of a clock that this one is set to (phc.h). */
int64_t xds_clock_map(const struct xds_clock *c, uint64_t counter);
/* One tick, from one sample: counter and CLOCK_TAI of the same moment. */
void xds_clock_discipline(struct xds_clock *c, uint64_t counter, int64_t tai_ns);
/* The rate (2^-48 ns a count) between two samples, 0 when it cannot be told. */
uint64_t xds_clock_rate(uint64_t counter0, int64_t ns0, uint64_t counter1, int64_t ns1);
/* What the thread that disciplines a clock shows to those that map stamps by it. Two copies, so that who reads one
 * is not disturbed while the other is written; zeroed memory shows nothing yet. */
struct xds_clock_shown {
    uint64_t anchor;
    int64_t anchor_ns;
    uint64_t mult, rate;
};
struct xds_clock_face {
    uint64_t version; /* how often it was shown */
    struct xds_clock_shown shown[2];
};

/* Show it as it is now: one thread. */
void xds_clock_show(const struct xds_clock *c, struct xds_clock_face *face);
/* xds_clock_map() by what is shown, from any thread; 0: nothing is, or it changed twice while it was read. */
int64_t xds_clock_face_map(const struct xds_clock_face *face, uint64_t counter);
/* The raw counter; 0 where there is none. */
uint64_t xds_clock_counter(void);

#endif
