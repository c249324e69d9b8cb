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
    const uint64_t number = offset / w->part;
    if (number == w->marked)
        return;
    w->marked = number;
    __atomic_store_n(&w->tape->marks[number % XDS_TAPE_MARKS], offset, __ATOMIC_RELAXED);
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
    __atomic_store_n(&xdsi_tape_place(w, end)->stamp, 0, __ATOMIC_RELAXED);
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
    xdsi_tape_mark(w, w->tail);
    xdsi_tape_head(xdsi_tape_place(w, w->tail), kind, len);
    xdsi_tape_publish(w, w->tail, w->tail + need, w->next++);
    return 0;
}

static inline int xdsi_tape_write(struct xds_tape_writer *w, uint32_t kind, const void *data, uint32_t len)
{
    void *room;
    if (w->tape->record_len && len != w->tape->record_len)
        return XDS_ECAPACITY;
    const int rc = xdsi_tape_claim(w, len, &room);
    if (rc != 1)
        return rc;
    xdsi_tape_copy(room, data, len);
    xdsi_tape_commit(w, kind, len);
    return 1;
}

#endif
