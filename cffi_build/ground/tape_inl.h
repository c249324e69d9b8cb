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

/* A record will end at `end`: what lies a tape before it, and before what is made 0 behind it, is void from here
 * on. Readers learn it before the first byte changes. */
static inline void xdsi_tape_advance(struct xds_tape_writer *w, uint64_t end)
{
    const uint64_t to = end + XDS_TAPE_AHEAD + 63;
    if (to <= w->front)
        return;
    w->front = (to + w->part - 1) & ~(w->part - 1);
    __atomic_store_n(&w->tape->front, w->front, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* A record will end at offset: the word behind it, the stamp of the next, is 0. Mostly it is already. */
static inline void xdsi_tape_end(struct xds_tape_writer *w, uint64_t end)
{
    if (__builtin_expect(w->cleared >= end + sizeof(uint64_t), 1))
        return;
    __atomic_store_n(&xdsi_tape_place(w, end)->stamp, 0, __ATOMIC_RELAXED);
    w->cleared = end + sizeof(uint64_t);
}

/* When a record is out: make the lines behind it 0 for those that follow. So the writer has them before it needs
 * them, and a record's stores wait for no line but that which a reader looks at: half of what a hop cost. */
static inline void xdsi_tape_clear(struct xds_tape_writer *w)
{
    const uint64_t to = (w->tail + XDS_TAPE_AHEAD + 63) & ~(uint64_t)63;
    if (w->cleared >= to)
        return;
    uint8_t *from = w->data + (w->cleared & (w->bytes - 1));
#ifdef __SANITIZE_THREAD__
    for (uint64_t at = 0; at < to - w->cleared; at += 8)
        __atomic_store_n((uint64_t *)(from + at), 0, __ATOMIC_RELAXED);
#else
    memset(from, 0, to - w->cleared);
#endif
    w->cleared = to;
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
    xdsi_tape_advance(w, w->tail + need);
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
    xdsi_tape_clear(w);
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
    if (need < w->claimed) /* what lies behind may have been written to */
        w->cleared = w->tail;
    w->claimed = 0;
    xdsi_tape_end(w, w->tail + need);
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
    xdsi_tape_advance(w, end);
    struct xds_tape_record *record = xdsi_tape_place(w, begin);
    xdsi_tape_end(w, end);
    xdsi_tape_fill((uint8_t *)(record + 1), (const uint8_t *)data, len);
    xdsi_tape_mark(w, begin);
    xdsi_tape_head(record, kind, len);
    xdsi_tape_publish(w, begin, end, w->next++);
    return 1;
}

#endif
