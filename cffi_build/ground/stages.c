/* stages.c: stages_inl.h for those who have rows of their own. Pure. */
#include "ground/stages_inl.h"

void xds_stages_fold(struct xds_stage_hists *h, const struct xds_stages *rows, size_t n)
{
    for (size_t i = 0; i < n; i++)
        xdsi_stages_fold(h, &rows[i]);
}
