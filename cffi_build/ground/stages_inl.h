/* stages_inl.h: a row of stages into its histograms. */
#ifndef XDS_STAGES_INL_H
#define XDS_STAGES_INL_H

#include "ground/hist_inl.h"
#include "xds/stages.h"

static inline void xdsi_stage_record(struct xds_hist *h, int64_t ns)
{
    if (h)
        xdsi_hist_record(h, ns);
}

static inline int64_t xdsi_stage_end(struct xds_hist *h, int64_t from, int64_t to)
{
    if (!to)
        return from;
    xdsi_stage_record(h, to - from);
    return to;
}

/* Nothing is known of what has no receive stamp, and a warm-up is left out. */
static inline int xdsi_stages_counts(struct xds_stage_hists *h, const struct xds_stages *s)
{
    if (__builtin_expect(h->leave_out != 0, 0) && s->receive) {
        h->leave_out--;
        if (h->warm_up)
            XDSI_HIST_PUT(*h->warm_up, *h->warm_up + 1);
        return 0;
    }
    return s->receive != 0;
}

/* When its bytes could be read. */
static inline int64_t xdsi_stages_read(const struct xds_stages *s)
{
    return s->tls_end ? s->tls_end : s->wake;
}

static inline int64_t xdsi_stages_fold_read(struct xds_stage_hists *h, const struct xds_stages *s)
{
    int64_t at = xdsi_stage_end(h->of[XDS_STAGE_WAKE], s->receive, s->wake);
    at = xdsi_stage_end(h->of[XDS_STAGE_TLS_START], at, s->tls_start);
    return xdsi_stage_end(h->of[XDS_STAGE_TLS_END], at, s->tls_end);
}

/* What is each message's own, from `at` on. */
static inline void xdsi_stages_fold_message(struct xds_stage_hists *h, int64_t receive, int64_t at,
                                            int64_t parsed, int64_t callback)
{
    at = xdsi_stage_end(h->of[XDS_STAGE_PARSED], at, parsed);
    if (!callback)
        return;
    xdsi_stage_record(h->of[XDS_STAGE_CALLBACK], callback - at);
    xdsi_stage_record(h->of[XDS_STAGE_TOTAL], callback - receive);
}

static inline void xdsi_stages_fold(struct xds_stage_hists *h, const struct xds_stages *s)
{
    if (xdsi_stages_counts(h, s))
        xdsi_stages_fold_message(h, s->receive, xdsi_stages_fold_read(h, s), s->parsed, s->callback);
}

#endif
