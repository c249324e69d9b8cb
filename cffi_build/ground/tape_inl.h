/* tape_inl.h: claim and commit of a tape for C users; see xds/tape.h for the rules, xds/tape.md for the order
 * of the stores, which is what a reader and the next writer rely on.
 */
#ifndef XDS_GROUND_TAPE_INL_H
#define XDS_GROUND_TAPE_INL_H

#include "xds/tape.h"
#include "xds/tape_reader_inl.h"

void xdsi_tape_wake(struct xds_tape *t);

static inline struct xds_tape_record *xdsi_tape_place(const struct xds_tape_writer *w, uint64_t offset)
{
    return (struct xds_tape_record *)(w->data + (offset & (w->bytes - 1)));
}

/* What lies a tape before `end` is void from here on: readers learn it before the first byte changes. */
static inline void xdsi_tape_advance(struct xds_tape_writer *w, uint64_t end)
{
    if (end <= w->front)
        return;
    w->front = (end + w->part - 1) & ~(w->part - 1);
    __atomic_store_n(&w->tape->front, w->front, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* A record begins at offset: remember the first one of each part. */
static inline void xdsi_tape_mark(struct xds_tape_writer *w, uint64_t offset)
{
    if (offset < w->unmarked)
        return;
    w->unmarked = (offset | (w->part - 1)) + 1;
    __atomic_store_n(&w->tape->marks[offset / w->part % XDS_TAPE_MARKS], offset, __ATOMIC_RELAXED);
}

static inline int xdsi_tape_claim(struct xds_tape_writer *w, uint32_t len, void **out)
{
    const uint64_t need = xdsi_tape_space(len);
    if (w->claimed)
        return XDS_ESTATE;
    if (need > w->bytes / 4)
        return XDS_ECAPACITY;
    xdsi_tape_advance(w, w->tail + need + sizeof(uint64_t));
    w->claimed = need;
    *out = xdsi_tape_place(w, w->tail) + 1;
    return 1;
}

/* Everything from tail to end is filled but for the first stamp: publish it. last: the newest of them. */
static inline void xdsi_tape_publish(struct xds_tape_writer *w, uint64_t last, uint64_t end, uint64_t first)
{
    struct xds_tape *t = w->tape;
    __atomic_store_n(&xdsi_tape_place(w, w->tail)->stamp, first, __ATOMIC_RELEASE);
    __atomic_store_n(&t->last, last, __ATOMIC_RELEASE);
    __atomic_store_n(&t->tail, end, __ATOMIC_RELEASE);
    __atomic_store_n(&t->written, w->next - 1, __ATOMIC_RELAXED);
    w->tail = end;
    if (__builtin_expect(__atomic_load_n(&t->sleep, __ATOMIC_RELAXED), 0))
        xdsi_tape_wake(t);
}

static inline void xdsi_tape_head(struct xds_tape_record *record, uint32_t kind, uint32_t len)
{
    __atomic_store_n(&record->len, len, __ATOMIC_RELAXED);
    __atomic_store_n(&record->kind, kind, __ATOMIC_RELAXED);
}

static inline int xdsi_tape_commit(struct xds_tape_writer *w, uint32_t kind, uint32_t len)
{
    const uint64_t need = xdsi_tape_space(len);
    if (!w->claimed || need > w->claimed)
        return XDS_ESTATE;
    if (w->tape->record_len && len != w->tape->record_len)
        return XDS_ECAPACITY;
    w->claimed = 0;
    __atomic_store_n(&xdsi_tape_place(w, w->tail + need)->stamp, 0, __ATOMIC_RELAXED);
    xdsi_tape_mark(w, w->tail);
    xdsi_tape_head(xdsi_tape_place(w, w->tail), kind, len);
    xdsi_tape_publish(w, w->tail, w->tail + need, w->next++);
    return 0;
}

/* From the end to the beginning: a reader that waits holds the line of the stamp, which is taken from it
 * once, when everything behind that line is written. */
static inline void xdsi_tape_fill(uint8_t *to, const uint8_t *from, uint32_t len)
{
#ifndef __SANITIZE_THREAD__
    if (len >= 16 && len <= 256) {
        for (uint32_t at = len; at > 16; at -= 16)
            memcpy(to + at - 16, from + at - 16, 16);
        memcpy(to, from, 16);
        return;
    }
#endif
    xdsi_tape_copy(to, from, len);
}

static inline int xdsi_tape_write(struct xds_tape_writer *w, uint32_t kind, const void *data, uint32_t len)
{
    const uint64_t need = xdsi_tape_space(len), begin = w->tail, end = begin + need;
    if (w->tape->record_len && len != w->tape->record_len)
        return XDS_ECAPACITY;
    if (w->claimed)
        return XDS_ESTATE;
    if (need > w->bytes / 4)
        return XDS_ECAPACITY;
    xdsi_tape_advance(w, end + sizeof(uint64_t));
    struct xds_tape_record *record = xdsi_tape_place(w, begin);
    __atomic_store_n(&xdsi_tape_place(w, end)->stamp, 0, __ATOMIC_RELAXED);
    xdsi_tape_fill((uint8_t *)(record + 1), (const uint8_t *)data, len);
    xdsi_tape_mark(w, begin);
    xdsi_tape_head(record, kind, len);
    xdsi_tape_publish(w, begin, end, w->next++);
    return 1;
}

#endif
