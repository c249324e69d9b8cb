/* hist.c: everything of the histogram that is not the hot path. Pure. */
#include <string.h>

#include "ground/hist_inl.h"

void xds_hist_init(struct xds_hist *h)
{
    memset(h, 0, sizeof(*h));
    h->min = INT64_MAX;
    h->max = INT64_MIN;
    h->sub_bits = XDS_HIST_SUB_BITS;
    h->n_buckets = XDS_HIST_BUCKETS;
    h->magic = XDS_HIST_MAGIC;
}

void xds_hist_clear(struct xds_hist *h)
{
    xds_hist_init(h);
}

void xds_hist_record(struct xds_hist *h, int64_t ns)
{
    xdsi_hist_record(h, ns);
}

void xds_hist_record_paced(struct xds_hist *h, int64_t ns, int64_t interval_ns)
{
    xdsi_hist_record(h, ns);
    if (interval_ns <= 0)
        return;
    for (int64_t missed = ns - interval_ns, n = 0; missed > 0 && n < XDS_HIST_MISSED;
         missed -= interval_ns, n++)
        xdsi_hist_record(h, missed);
}

void xds_hist_record_many(struct xds_hist *h, const int64_t *ns, size_t n)
{
    for (size_t i = 0; i < n; i++)
        xdsi_hist_record(h, ns[i]);
}

void xds_hist_merge(struct xds_hist *h, const struct xds_hist *from)
{
    for (unsigned i = 0; i < XDS_HIST_BUCKETS; i++)
        h->buckets[i] += from->buckets[i];
    h->count += from->count;
    h->sum += from->sum;
    h->below += from->below;
    h->above += from->above;
    if (from->min < h->min)
        h->min = from->min;
    if (from->max > h->max)
        h->max = from->max;
}

unsigned xds_hist_bucket(int64_t ns)
{
    if (ns < 0)
        return 0;
    return ns >> XDS_HIST_MAX_BITS ? XDS_HIST_BUCKETS - 1 : xdsi_hist_bucket((uint64_t)ns);
}

int64_t xds_hist_bucket_start(unsigned bucket)
{
    const unsigned sub = 1u << XDS_HIST_SUB_BITS;
    if (bucket >= XDS_HIST_BUCKETS)
        return (int64_t)1 << XDS_HIST_MAX_BITS;
    if (bucket < 2 * sub)
        return bucket;
    const unsigned shift = bucket / sub - 1;
    return (int64_t)(bucket - shift * sub) << shift;
}

static int64_t middle(unsigned bucket)
{
    const int64_t start = xds_hist_bucket_start(bucket);
    return start + (xds_hist_bucket_start(bucket + 1) - 1 - start) / 2;
}

static int64_t clamp(const struct xds_hist *h, int64_t ns)
{
    if (ns < h->min)
        ns = h->min;
    return ns > h->max ? h->max : ns;
}

static uint64_t bucket_total(const struct xds_hist *h)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < XDS_HIST_BUCKETS; i++)
        total += h->buckets[i];
    return total;
}

/* The rank of a percentile, counted from 1: the smallest integer not below total * percent / 100. */
static uint64_t rank_of(uint64_t total, double percent)
{
    const double exact = (double)total * percent / 100.0;
    uint64_t rank = exact <= 0 ? 0 : (uint64_t)exact;
    if ((double)rank < exact)
        rank++;
    if (rank < 1)
        rank = 1;
    return rank > total ? total : rank;
}

int64_t xds_hist_percentile(const struct xds_hist *h, double percent)
{
    const uint64_t total = bucket_total(h);
    if (!total)
        return 0;
    const uint64_t rank = rank_of(total, percent);
    if (rank == total)
        return h->max; /* the last record is the largest, and that is known exactly */
    uint64_t seen = 0;
    for (unsigned i = 0; i < XDS_HIST_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen >= rank)
            return clamp(h, middle(i));
    }
    return h->max;
}

/* Newton's square root: this layer does without libm. */
static double root(double x)
{
    if (x <= 0)
        return 0;
    double r = x > 1 ? x : 1;
    for (int i = 0; i < 128; i++) {
        const double next = 0.5 * (r + x / r);
        if (next >= r)
            break;
        r = next;
    }
    return r;
}

void xds_hist_summary(const struct xds_hist *h, struct xds_hist_summary *out)
{
    memset(out, 0, sizeof(*out));
    out->count = bucket_total(h);
    out->below = h->below;
    out->above = h->above;
    if (!out->count)
        return;
    out->min = h->min;
    out->max = h->max;
    out->mean = (double)h->sum / (double)out->count;

    struct {
        double percent;
        int64_t *to;
    } wanted[] = {{25, &out->p25}, {50, &out->p50}, {75, &out->p75},    {90, &out->p90},
                  {95, &out->p95}, {99, &out->p99}, {99.9, &out->p999}, {99.99, &out->p9999}};
    const unsigned n = sizeof(wanted) / sizeof(wanted[0]);
    uint64_t seen = 0;
    double squares = 0;
    unsigned next = 0;
    for (unsigned i = 0; i < XDS_HIST_BUCKETS; i++) {
        if (!h->buckets[i])
            continue;
        seen += h->buckets[i];
        const double off = (double)middle(i) - out->mean;
        squares += off * off * (double)h->buckets[i];
        for (; next < n && seen >= rank_of(out->count, wanted[next].percent); next++)
            *wanted[next].to = seen == out->count && rank_of(out->count, wanted[next].percent) == out->count
                                   ? h->max
                                   : clamp(h, middle(i));
    }
    out->deviation = root(squares / (double)out->count);
    const double fence = (double)out->p75 + 1.5 * (double)(out->p75 - out->p25);
    for (unsigned i = 0; i < XDS_HIST_BUCKETS; i++)
        if ((double)xds_hist_bucket_start(i) > fence)
            out->outliers += h->buckets[i];
}
