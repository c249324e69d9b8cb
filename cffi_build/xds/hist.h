/* hist.h: a latency histogram with a bounded relative error (HDR: log-linear buckets), 30 KiB.
 *
 * Whole nanoseconds. 0 .. 255 have a bucket each; above, every power of two up to 2^36 (68.7 s) is cut
 * into 128 equal buckets, so a bucket is at most 1/128 of its values wide and its middle is within
 * 0.4 % of each of them. What is negative counts as 0 and in `below`; what is 2^36 or more lies in the
 * last bucket and counts in `above`; min, max and sum are exact in any case.
 *
 * One thread writes, with plain stores; others, in other processes too, read the memory as it is.
 * They take the sum of the buckets for the count, so that what they show agrees with itself.
 */
#ifndef XDS_HIST_H
#define XDS_HIST_H

#include <stddef.h>
#include <stdint.h>

#define XDS_HIST_MAGIC    0x3154534948534458 /* "XDSHIST1", little-endian */
#define XDS_HIST_SUB_BITS 7                  /* 128 buckets a power of two        */
#define XDS_HIST_MAX_BITS 36                 /* 2^36 ns = 68.7 s                  */
#define XDS_HIST_BUCKETS  3840               /* 2 * 128 + (36 - 8) * 128          */

struct xds_hist {
    uint64_t magic;
    uint32_t sub_bits, n_buckets;
    uint64_t count;
    uint64_t sum;     /* ns, of what is not negative */
    int64_t min, max; /* ns; min is INT64_MAX and max INT64_MIN while there is nothing */
    uint64_t below, above;
    uint64_t buckets[XDS_HIST_BUCKETS];
};

_Static_assert(sizeof(struct xds_hist) == 64 + 8 * XDS_HIST_BUCKETS, "one header line, then buckets");

struct xds_hist_summary {
    uint64_t count, below, above;
    int64_t min, max; /* exact; 0 while there is nothing                         */
    double mean;      /* exact, ns                                               */
    double deviation; /* standard deviation, ns, from the middles of the buckets */
    int64_t p25, p50, p75, p90, p95, p99, p999, p9999; /* ns, see xds_hist_percentile      */
    uint64_t outliers; /* above p75 + 1.5 (p75 - p25), Tukey's upper fence        */
};

void xds_hist_init(struct xds_hist *h);  /* h: kept, sizeof(struct xds_hist) bytes */
void xds_hist_clear(struct xds_hist *h); /* the same: after a warm-up                 */
void xds_hist_record(struct xds_hist *h, int64_t ns);
/* The record of who asks again only after an answer, though it meant to ask every interval_ns: with ns, what those
 * would have waited that it did not send meanwhile: ns - interval_ns, ns - 2 * interval_ns … while positive
 * (coordinated omission). At most XDS_HIST_MISSED of them; interval_ns 0: as xds_hist_record(). */
#define XDS_HIST_MISSED 1000000
void xds_hist_record_paced(struct xds_hist *h, int64_t ns, int64_t interval_ns);
void xds_hist_record_many(struct xds_hist *h, const int64_t *ns, size_t n);
/* Add everything of `from`; neither may be written meanwhile. */
void xds_hist_merge(struct xds_hist *h, const struct xds_hist *from);
/* The smallest value that at least percent (0 .. 100) of the records do not exceed: the middle of its
 * bucket, clamped to min and max. 0 when there is nothing. */
int64_t xds_hist_percentile(const struct xds_hist *h, double percent);
void xds_hist_summary(const struct xds_hist *h, struct xds_hist_summary *out);
/* The bucket of a value, and the first value of a bucket (of XDS_HIST_BUCKETS: 2^36). */
unsigned xds_hist_bucket(int64_t ns);
int64_t xds_hist_bucket_start(unsigned bucket);

#endif
