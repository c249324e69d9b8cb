/* gather.c: the reader's side of publish.c: many small records of an engine's tape become one array of updates a
 * feed, so that a consumer pays for Python, or for a loop of its own, once a read. What was read is a copy that
 * somebody else wrote: each length is looked at before it is believed.
 */
#include <string.h>

#include "ground/tape_inl.h"
#include "xds/publish.h"

/* A record whose head and array are all there, in memory that holds so many bytes from it on. */
static const struct xds_publish_head *sound(const struct xds_tape_record *record, uint64_t bytes)
{
    const struct xds_publish_head *head = (const struct xds_publish_head *)(record + 1);
    if (bytes < sizeof *record || record->len > bytes - sizeof *record || record->len < sizeof *head)
        return NULL;
    if (record->kind == XDS_PUBLISH_UPDATES &&
        (head->feed >= XDS_ENGINE_FEEDS ||
         head->count > (record->len - sizeof *head) / sizeof(struct xds_update)))
        return NULL;
    return head;
}

/* First look: how many updates each feed has, and where the other records lie. */
static int count(const uint8_t *records, uint64_t bytes, uint64_t n, uint32_t *others, struct xds_gathered *g)
{
    uint64_t at = 0;
    for (uint64_t i = 0; i < n; i++) {
        const struct xds_tape_record *record = (const struct xds_tape_record *)(records + at);
        const struct xds_publish_head *head = at < bytes ? sound(record, bytes - at) : NULL;
        if (!head)
            return XDS_EMALFORMED;
        if (record->kind == XDS_PUBLISH_UPDATES)
            g->first[head->feed + 1] += head->count;
        else
            others[g->others++] = (uint32_t)at;
        g->open_gaps = head->open_gaps;
        g->now = head->now;
        at += xdsi_tape_space(record->len);
    }
    return 0;
}

int64_t xds_publish_gather(const void *records, uint64_t bytes, uint64_t n, struct xds_update *out,
                           uint64_t cap, uint32_t *others, uint64_t others_cap, struct xds_gathered *g)
{
    uint64_t next[XDS_ENGINE_FEEDS], at = 0;
    memset(g, 0, sizeof *g);
    if (n > others_cap || bytes > UINT32_MAX)
        return XDS_ECAPACITY;
    const int rc = count(records, bytes, n, others, g);
    if (rc)
        return rc;
    for (int feed = 0; feed < XDS_ENGINE_FEEDS; feed++) {
        next[feed] = g->first[feed];
        g->first[feed + 1] += g->first[feed];
    }
    if (g->first[XDS_ENGINE_FEEDS] > cap)
        return XDS_ECAPACITY;
    for (uint64_t i = 0; i < n; i++) {
        const struct xds_tape_record *record =
            (const struct xds_tape_record *)((const uint8_t *)records + at);
        const struct xds_publish_head *head = (const struct xds_publish_head *)(record + 1);
        if (record->kind == XDS_PUBLISH_UPDATES) {
            memcpy(out + next[head->feed], head + 1, (size_t)head->count * sizeof *out);
            next[head->feed] += head->count;
        }
        at += xdsi_tape_space(record->len);
    }
    return (int64_t)g->first[XDS_ENGINE_FEEDS];
}
