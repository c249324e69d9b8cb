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

/* Nothing is known of what has no receive stamp. */
static inline void xdsi_stages_fold(struct xds_stage_hists *h, const struct xds_stages *s)
{
    if (!s->receive)
        return;
    if (__builtin_expect(h->leave_out != 0, 0)) {
        h->leave_out--;
        if (h->warm_up)
            XDSI_HIST_PUT(*h->warm_up, *h->warm_up + 1);
        return;
    }
    int64_t at = xdsi_stage_end(h->of[XDS_STAGE_WAKE], s->receive, s->wake);
    at = xdsi_stage_end(h->of[XDS_STAGE_TLS_START], at, s->tls_start);
    at = xdsi_stage_end(h->of[XDS_STAGE_TLS_END], at, s->tls_end);
    at = xdsi_stage_end(h->of[XDS_STAGE_PARSED], at, s->parsed);
    if (xdsi_stage_end(h->of[XDS_STAGE_CALLBACK], at, s->callback) == s->callback && s->callback)
        xdsi_stage_record(h->of[XDS_STAGE_TOTAL], s->callback - s->receive);
}

#endif
