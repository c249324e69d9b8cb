/* gather.c: the reader's side of publish.c: many small records of an engine's tape become one array of updates a
 * feed, so that a consumer pays for Python, or for a loop of its own, once a read. What was read is a copy that
 * somebody else wrote: each length is looked at before it is believed.
 */
#include <stdbool.h>
#include <string.h>

#include "ground/tape_inl.h"
#include "xds/publish.h"

static const struct xds_stages *rows_of(const struct xds_publish_head *head)
{
    return (const struct xds_stages *)((const uint8_t *)head + head->stages);
}

/* Behind the updates, all there, and of no others. */
static bool sound_rows(const struct xds_publish_head *head, uint32_t len)
{
    if (head->stages % 8 || head->stages > len ||
        head->stages < sizeof *head + head->count * sizeof(struct xds_update) ||
        head->n_stages > (len - head->stages) / sizeof(struct xds_stages))
        return false;
    for (uint32_t i = 0; i < head->n_stages; i++) {
        const struct xds_stages *row = &rows_of(head)[i];
        if (row->first > head->count || row->count > head->count - row->first)
            return false;
    }
    return true;
}

/* A record whose head and array are all there, in memory that holds so many bytes from it on. */
static const struct xds_publish_head *sound(const struct xds_tape_record *record, uint64_t bytes)
{
    const struct xds_publish_head *head = (const struct xds_publish_head *)(record + 1);
    if (bytes < sizeof *record || record->len > bytes - sizeof *record || record->len < sizeof *head)
        return NULL;
    if (record->kind == XDS_PUBLISH_UPDATES &&
        (head->feed >= XDS_ENGINE_FEEDS ||
         head->count > (record->len - sizeof *head) / sizeof(struct xds_update) ||
         (head->n_stages && !sound_rows(head, record->len))))
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
        if (record->kind == XDS_PUBLISH_UPDATES) {
            g->first[head->feed + 1] += head->count;
            g->first_row[head->feed + 1] += head->n_stages;
        } else {
            others[g->others++] = (uint32_t)at;
        }
        g->open_gaps = head->open_gaps;
        g->now = head->now;
        at += xdsi_tape_space(record->len);
    }
    return 0;
}

int64_t xds_publish_gather(const void *records, uint64_t bytes, uint64_t n, struct xds_update *out,
                           uint64_t cap, struct xds_stages *rows, uint64_t rows_cap, uint32_t *others,
                           uint64_t others_cap, struct xds_gathered *g)
{
    uint64_t next[XDS_ENGINE_FEEDS], next_row[XDS_ENGINE_FEEDS], at = 0;
    memset(g, 0, sizeof *g);
    if (n > others_cap || bytes > UINT32_MAX)
        return XDS_ECAPACITY;
    const int rc = count(records, bytes, n, others, g);
    if (rc)
        return rc;
    for (int feed = 0; feed < XDS_ENGINE_FEEDS; feed++) {
        next[feed] = g->first[feed];
        next_row[feed] = g->first_row[feed];
        g->first[feed + 1] += g->first[feed];
        g->first_row[feed + 1] += g->first_row[feed];
    }
    if (g->first[XDS_ENGINE_FEEDS] > cap || g->first_row[XDS_ENGINE_FEEDS] > rows_cap)
        return XDS_ECAPACITY;
    for (uint64_t i = 0; i < n; i++) {
        const struct xds_tape_record *record =
            (const struct xds_tape_record *)((const uint8_t *)records + at);
        const struct xds_publish_head *head = (const struct xds_publish_head *)(record + 1);
        if (record->kind == XDS_PUBLISH_UPDATES) {
            memcpy(out + next[head->feed], head + 1, (size_t)head->count * sizeof *out);
            for (uint32_t k = 0; k < head->n_stages; k++) {
                struct xds_stages *row = &rows[next_row[head->feed]++];
                *row = rows_of(head)[k];
                row->first += (uint32_t)(next[head->feed] - g->first[head->feed]);
            }
            next[head->feed] += head->count;
        }
        at += xdsi_tape_space(record->len);
    }
    return (int64_t)g->first[XDS_ENGINE_FEEDS];
}
