/* tape_reader_inl.h: a whole reader of a tape, for C and C++ (GCC, Clang), with nothing to link.
 *
 *   struct xds_tape_reader r;
 *   int rc = xdsi_tape_open(&r, "/dev/shm/prices", "mine", XDS_TAPE_NEWEST);
 *   for (;;) {
 *       char data[64];
 *       struct xds_tape_record head;
 *       rc = xdsi_tape_take(&r, &head, data, sizeof data);   // 1, 0: spin or xds_tape_wait's, < 0: over
 *   }
 *   xdsi_tape_leave(&r);
 *
 * Without a copy: peek, use the record in place, then done(); when that says 0 the writer has come round
 * meanwhile and what was seen is void.
 */
#ifndef XDS_TAPE_READER_INL_H
#define XDS_TAPE_READER_INL_H

#include <linux/futex.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "shared_inl.h"
#include "tape.h"

static inline uint64_t xdsi_tape_space(uint32_t len)
{
    return (sizeof(struct xds_tape_record) + (uint64_t)len + 7) & ~(uint64_t)7;
}

/* What is copied may be overwritten meanwhile; the caller looks afterwards and forgets it then. The race
 * detector is shown words, so that it can judge all the rest. (Long runs line by line: what memcpy makes of
 * them, `rep movsb`, takes ten times as long between lines of another core on some hosts.) */
static inline void xdsi_tape_copy(void *to, const void *from, uint64_t bytes)
{
#ifdef __SANITIZE_THREAD__
    for (uint64_t i = 0; i < (bytes + 7) / 8; i++)
        __atomic_store_n((uint64_t *)to + i, __atomic_load_n((const uint64_t *)from + i, __ATOMIC_RELAXED),
                         __ATOMIC_RELAXED);
#else
    uint64_t at = 0;
    for (; bytes - at >= 64; at += 64)
        memcpy((char *)to + at, (const char *)from + at, 64);
    if (at < bytes)
        memcpy((char *)to + at, (const char *)from + at, bytes - at);
#endif
}

/* Is everything from the reader's cursor on still as it was written? To be asked after reading it. */
static inline int xdsi_tape_whole(const struct xds_tape_reader *r)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(&r->tape->front, __ATOMIC_RELAXED) - r->cursor <= r->bytes;
}

static inline const struct xds_tape_record *xdsi_tape_at(const struct xds_tape_reader *r, uint64_t offset)
{
    return (const struct xds_tape_record *)(r->data + (offset & (r->bytes - 1)));
}

static inline void xdsi_tape_show(const struct xds_tape_reader *r)
{
    struct xds_tape_slot *s = r->slot;
    if (!s)
        return;
    __atomic_store_n(&s->cursor, r->cursor, __ATOMIC_RELAXED);
    __atomic_store_n(&s->next, r->next, __ATOMIC_RELAXED);
    __atomic_store_n(&s->lost, r->lost, __ATOMIC_RELAXED);
    __atomic_store_n(&s->laps, r->laps, __ATOMIC_RELAXED);
}

/* The oldest record that begins a quarter of the tape before the writer can reach it, else the newest end. */
static inline uint64_t xdsi_tape_oldest(const struct xds_tape *t, uint64_t bytes)
{
    const uint64_t tail = __atomic_load_n(&t->tail, __ATOMIC_ACQUIRE);
    const uint64_t front = __atomic_load_n(&t->front, __ATOMIC_RELAXED);
    if (front <= bytes)
        return 0;
    const uint64_t part = bytes / XDS_TAPE_MARKS, safe = front - bytes + bytes / 4;
    for (uint64_t at = safe; at < tail; at += part) {
        const uint64_t mark = __atomic_load_n(&t->marks[at / part % XDS_TAPE_MARKS], __ATOMIC_ACQUIRE);
        if (mark >= safe && mark < tail)
            return mark;
    }
    return tail;
}

/* The writer has come round. */
static inline void xdsi_tape_lapped(struct xds_tape_reader *r)
{
    if (!r->before)
        r->before = r->next;
    r->next = 0;
    r->laps++;
    r->cursor = xdsi_tape_oldest(r->tape, r->bytes);
    xdsi_tape_show(r);
}

/* A record of that number was read whole: settle what was lost before it. */
static inline int xdsi_tape_count(struct xds_tape_reader *r, uint64_t stamp)
{
    if (r->next && stamp != r->next)
        return 0;
    if (r->before) {
        if (stamp < r->before)
            return 0;
        r->lost += stamp - r->before;
        r->before = 0;
    }
    r->next = stamp + 1;
    return 1;
}

/* The record at the cursor, in place. 1 and *out, 0 none now, -EPIPE none and the writer has closed,
 * XDS_EMALFORMED: what is there is no tape any more. */
static inline int xdsi_tape_peek(struct xds_tape_reader *r, const struct xds_tape_record **out)
{
    for (;;) {
        const struct xds_tape_record *record = xdsi_tape_at(r, r->cursor);
        uint64_t stamp = __atomic_load_n(&record->stamp, __ATOMIC_ACQUIRE);
        if (!stamp && __atomic_load_n(&r->tape->closed, __ATOMIC_ACQUIRE)) {
            stamp = __atomic_load_n(&record->stamp, __ATOMIC_ACQUIRE);
            if (!stamp && xdsi_tape_whole(r))
                return -EPIPE; /* closed after the last stamp: none was missed */
        }
        const uint32_t len = __atomic_load_n(&record->len, __ATOMIC_RELAXED);
        if (!xdsi_tape_whole(r)) {
            xdsi_tape_lapped(r);
            continue;
        }
        if (!stamp)
            return 0;
        r->need = xdsi_tape_space(len);
        if (r->need > r->bytes / 4 || (r->next && stamp != r->next))
            return XDS_EMALFORMED;
        *out = record;
        return 1;
    }
}

/* Go on behind what was peeked. 1: it was whole until now, 0: it was overwritten, forget it,
 * XDS_EMALFORMED. stamp: as it was read. */
static inline int xdsi_tape_done(struct xds_tape_reader *r, uint64_t stamp)
{
    if (!xdsi_tape_whole(r)) {
        xdsi_tape_lapped(r);
        return 0;
    }
    if (!xdsi_tape_count(r, stamp))
        return XDS_EMALFORMED;
    r->cursor += r->need;
    xdsi_tape_show(r);
    return 1;
}

/* Look up to `looks` times whether something waits (or the writer has closed): 1 so it does, 0 not yet. It pauses
 * between two looks: one that does not takes the line from the writer again while it is being filled. */
static inline int xdsi_tape_spin(const struct xds_tape_reader *r, uint64_t looks)
{
    const uint64_t *stamp = &xdsi_tape_at(r, r->cursor)->stamp;
    while (!__atomic_load_n(stamp, __ATOMIC_RELAXED) &&
           !__atomic_load_n(&r->tape->closed, __ATOMIC_RELAXED)) {
        if (!looks--)
            return 0;
        xdsi_shared_pause();
    }
    return 1;
}

/* Data out of the tape, where its length may still be rubbish: at most cap bytes, of which those behind len mean
 * nothing. The first line's worth does not wait for the length: that is half of what a hop costs. */
static inline void xdsi_tape_lift(const struct xds_tape_reader *r, void *to,
                                  const struct xds_tape_record *record, uint32_t len, uint32_t cap)
{
#ifdef __SANITIZE_THREAD__
    const uint32_t ahead = 0;
#else
    const uint32_t ahead = cap >= 64 ? 64 : 0;
    if (ahead)
        memcpy(to, record + 1, 64);
#endif
    if (len > ahead && len <= cap && len <= r->bytes / 4)
        xdsi_tape_copy((char *)to + ahead, (const char *)(record + 1) + ahead, len - ahead);
}

/* The next record, copied: to must hold cap bytes, a multiple of 8; what lies in it behind the record's len is
 * of no meaning. 1, 0 none now, -EPIPE, XDS_EMALFORMED, XDS_ECAPACITY: it has more than cap bytes (and stays
 * the next). */
static inline int xdsi_tape_take(struct xds_tape_reader *r, struct xds_tape_record *head, void *to,
                                 uint32_t cap)
{
    for (;;) {
        const struct xds_tape_record *record = xdsi_tape_at(r, r->cursor);
        if (!__atomic_load_n(&record->stamp, __ATOMIC_ACQUIRE)) {
            const int rc = xdsi_tape_peek(r, &record);
            if (rc != 1)
                return rc;
            continue;
        }
        xdsi_tape_copy(head, record, sizeof *head);
        xdsi_tape_lift(r, to, record, head->len, cap);
        if (!xdsi_tape_whole(r)) {
            xdsi_tape_lapped(r);
            continue;
        }
        r->need = xdsi_tape_space(head->len);
        if (r->need > r->bytes / 4)
            return XDS_EMALFORMED;
        if (head->len > cap)
            return XDS_ECAPACITY;
        if (!xdsi_tape_count(r, head->stamp))
            return XDS_EMALFORMED;
        r->cursor += r->need;
        xdsi_tape_show(r);
        return 1;
    }
}

/* The same of a tape whose records all have one length: none waits for the length of the one before it. */
static inline int64_t xdsi_tape_walk_even(struct xds_tape_reader *r, const uint8_t *copy, uint64_t bytes)
{
    const uint32_t length = r->tape->record_len;
    const uint64_t stride = xdsi_tape_space(length), n = bytes / stride;
    if (stride > r->bytes / 4)
        return XDS_EMALFORMED;
    if (!n)
        return 0;
    const uint64_t first = ((const struct xds_tape_record *)copy)->stamp;
    uint64_t differ = 0;
    for (uint64_t i = 0; i < n; i++) {
        const struct xds_tape_record *record = (const struct xds_tape_record *)(copy + i * stride);
        differ |= (record->stamp ^ (first + i)) | (record->len ^ length);
    }
    if (differ || !first || !xdsi_tape_count(r, first))
        return XDS_EMALFORMED;
    r->next = first + n;
    r->given = n;
    r->len = length;
    r->stride = stride;
    return (int64_t)(n * stride);
}

/* How many of the copied bytes are whole records, counted; XDS_EMALFORMED. */
static inline int64_t xdsi_tape_walk(struct xds_tape_reader *r, const uint8_t *copy, uint64_t bytes)
{
    const uint64_t most = r->bytes / 4;
    uint64_t at = 0, n = 0, next = 0;
    uint32_t length = 0, differ = 0;
    while (bytes - at >= sizeof(struct xds_tape_record)) {
        const struct xds_tape_record *record = (const struct xds_tape_record *)(copy + at);
        const uint64_t need = xdsi_tape_space(record->len);
        if (need > most || !record->stamp)
            return XDS_EMALFORMED;
        if (need > bytes - at)
            break;
        if (!n) {
            if (!xdsi_tape_count(r, record->stamp))
                return XDS_EMALFORMED;
            next = record->stamp;
            length = record->len;
        }
        if (record->stamp != next)
            return XDS_EMALFORMED;
        differ |= record->len ^ length;
        at += need;
        next++;
        n++;
    }
    if (n)
        r->next = next;
    r->given = n;
    r->len = length;
    r->stride = differ ? 0 : xdsi_tape_space(length);
    return (int64_t)at;
}

/* Ask for what will be copied all at once: where a line comes from a far core (200 ns) a read of 64 records takes
 * an eighth less, where it comes from a near one the same. */
static inline void xdsi_tape_ask(const void *from, uint64_t bytes)
{
    const uint64_t most = bytes < 8192 ? bytes : 8192;
    for (uint64_t at = 0; at < most; at += 64)
        __builtin_prefetch((const char *)from + at, 0, 2);
}

/* See xds_tape_read(). */
static inline int64_t xdsi_tape_read(struct xds_tape_reader *r, void *to, uint64_t cap, uint64_t *n)
{
    *n = r->given = 0;
    for (;;) {
        const uint32_t closed = __atomic_load_n(&r->tape->closed, __ATOMIC_ACQUIRE);
        const uint64_t tail = __atomic_load_n(&r->tape->tail, __ATOMIC_ACQUIRE);
        const int64_t waits = (int64_t)(tail - r->cursor);
        if (waits <= 0 && xdsi_tape_whole(r))
            return closed ? -EPIPE : 0;
        const uint64_t bytes = (uint64_t)waits < cap ? (uint64_t)waits : cap & ~(uint64_t)7;
        xdsi_tape_ask(xdsi_tape_at(r, r->cursor), bytes);
        if (waits > (int64_t)r->bytes || !xdsi_tape_whole(r)) {
            xdsi_tape_lapped(r);
            continue;
        }
        xdsi_tape_copy(to, xdsi_tape_at(r, r->cursor), bytes);
        if (!xdsi_tape_whole(r)) {
            xdsi_tape_lapped(r);
            continue;
        }
        const int64_t got = r->tape->record_len ? xdsi_tape_walk_even(r, (const uint8_t *)to, bytes)
                                                : xdsi_tape_walk(r, (const uint8_t *)to, bytes);
        *n = r->given;
        if (got > 0) {
            r->cursor += (uint64_t)got;
            xdsi_tape_show(r);
        }
        return got || bytes == (uint64_t)waits ? got : XDS_ECAPACITY;
    }
}

/* See xds_tape_wait(). It sleeps 1 ms at first: a writer that looked for sleepers just before this one
 * could be seen is caught up with then. Without the right to write the header it naps instead. */
static inline int xdsi_tape_wait(struct xds_tape_reader *r, int64_t ns)
{
    struct xds_tape *t = r->tape;
    for (int64_t most = 1000000;; most = r->slot ? 50000000 : 1000000) {
        if (r->slot)
            __atomic_store_n(&t->sleep, 1, __ATOMIC_SEQ_CST);
        const uint64_t tail = __atomic_load_n(&t->tail, __ATOMIC_SEQ_CST);
        if ((int64_t)(tail - r->cursor) > 0 || __atomic_load_n(&t->closed, __ATOMIC_ACQUIRE))
            return 1;
        if (ns <= 0)
            return 0;
        const int64_t nap = ns < most ? ns : most;
        struct timespec span;
        span.tv_sec = 0;
        span.tv_nsec = (long)nap;
        if (r->slot)
            syscall(SYS_futex, &t->sleep, FUTEX_WAIT, 1, &span, NULL, 0);
        else
            nanosleep(&span, NULL);
        ns -= nap;
    }
}

/* The number of the record at the cursor, or that will be there; 0 where the writer is too quick to say. */
static inline uint64_t xdsi_tape_number(const struct xds_tape_reader *r)
{
    for (int i = 0; i < 100; i++) {
        const uint64_t tail = __atomic_load_n(&r->tape->tail, __ATOMIC_ACQUIRE);
        const uint64_t last = __atomic_load_n(&r->tape->last, __ATOMIC_ACQUIRE);
        if (!tail)
            return 1;
        const uint64_t at = r->cursor < tail ? r->cursor : last;
        const uint64_t stamp = __atomic_load_n(&xdsi_tape_at(r, at)->stamp, __ATOMIC_ACQUIRE);
        if (r->cursor < tail)
            return xdsi_tape_whole(r) ? stamp : 0;
        if (last < tail && xdsi_tape_whole(r) && __atomic_load_n(&r->tape->tail, __ATOMIC_RELAXED) == tail)
            return stamp + 1;
    }
    return 0;
}

static inline int xdsi_tape_start(struct xds_tape_reader *r, struct xds_tape *t, struct xds_tape_slot *slot,
                                  enum xds_tape_from from)
{
    memset(r, 0, sizeof *r);
    r->tape = t;
    r->data = (const uint8_t *)t + t->header_bytes;
    r->bytes = t->bytes;
    r->slot = slot;
    r->cursor =
        from == XDS_TAPE_OLDEST ? xdsi_tape_oldest(t, t->bytes) : __atomic_load_n(&t->tail, __ATOMIC_ACQUIRE);
    r->next = xdsi_tape_number(r);
    xdsi_tape_show(r);
    return 0;
}

/* ---- system calls ---- */

/* The process that writes, 0 when there is none or it is dead: who finds nothing to read asks now and then. What it
 * was filling never comes; the next writer goes on behind the last whole record. */
static inline uint32_t xdsi_tape_writer(const struct xds_tape_reader *r)
{
    return xdsi_shared_who(&r->tape->writer_pid, &r->tape->writer_start);
}

static inline int xdsi_tape_sound(const struct xds_tape *t, uint64_t file_bytes)
{
    if (__atomic_load_n(&t->magic, __ATOMIC_ACQUIRE) != XDS_TAPE_MAGIC || t->version != XDS_TAPE_VERSION ||
        t->endian != XDS_TAPE_ENDIAN)
        return XDS_EFOREIGN;
    const uint64_t tail = __atomic_load_n(&t->tail, __ATOMIC_ACQUIRE);
    const uint64_t front = __atomic_load_n(&t->front, __ATOMIC_ACQUIRE);
    const int sizes =
        xdsi_shared_sizes(t->header_bytes, XDS_TAPE_HEADER, XDS_TAPE_HEADER_HUGE, t->bytes, file_bytes) &&
        t->part == t->bytes / XDS_TAPE_MARKS;
    return sizes && t->readers == XDS_TAPE_READERS && tail % 8 == 0 && front - tail <= t->bytes &&
                   (t->last <= tail || t->last - tail <= t->bytes)
               ? 0
               : XDS_EMALFORMED;
}

/* A slot that is free or whose reader is dead; the file is locked. NULL: all are taken. */
static inline struct xds_tape_slot *xdsi_tape_slot(struct xds_tape *t, const char *name)
{
    for (int i = 0; i < XDS_TAPE_READERS; i++) {
        struct xds_tape_slot *s = &t->slots[i];
        const uint32_t pid = __atomic_load_n(&s->pid, __ATOMIC_ACQUIRE);
        if (pid && xdsi_shared_start(pid) == s->start)
            continue;
        memset(s, 0, sizeof *s);
        snprintf(s->name, sizeof s->name, "%s", name);
        s->start = xdsi_shared_start((uint32_t)getpid());
        __atomic_store_n(&s->pid, (uint32_t)getpid(), __ATOMIC_RELEASE);
        return s;
    }
    return NULL;
}

/* Map a checked header's file and take a slot where the header may be written. */
static inline int xdsi_tape_join(struct xds_tape_reader *r, int fd, int may, const char *name,
                                 enum xds_tape_from from)
{
    struct stat file;
    if (fstat(fd, &file))
        return -errno;
    if ((uint64_t)file.st_size < XDS_TAPE_HEADER)
        return XDS_EFOREIGN;
    void *mem = mmap(NULL, XDS_TAPE_HEADER, PROT_READ, MAP_SHARED, fd, 0);
    if (mem == MAP_FAILED)
        return -errno;
    const struct xds_tape *t = (const struct xds_tape *)mem;
    int rc = xdsi_tape_sound(t, (uint64_t)file.st_size);
    const uint64_t header = rc ? 0 : t->header_bytes, bytes = rc ? 0 : t->bytes;
    munmap(mem, XDS_TAPE_HEADER);
    if (!rc)
        rc = xdsi_shared_map(fd, header, bytes, may, &mem);
    if (rc)
        return rc;
    struct xds_tape_slot *slot = NULL;
    if (may) {
        flock(fd, LOCK_EX);
        slot = xdsi_tape_slot((struct xds_tape *)mem, name);
        flock(fd, LOCK_UN);
        if (!slot) {
            munmap(mem, header + 2 * bytes);
            return XDS_ECAPACITY;
        }
    }
    return xdsi_tape_start(r, (struct xds_tape *)mem, slot, from);
}

/* Open a tape by path, as a reader called name (15 bytes are kept). Who may not write the file reads
 * unseen. Returns 0, -errno, XDS_EFOREIGN, XDS_EMALFORMED, XDS_ECAPACITY: every slot has a live reader. */
static inline int xdsi_tape_open(struct xds_tape_reader *r, const char *path, const char *name,
                                 enum xds_tape_from from)
{
    int may = 1, fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 && (errno == EACCES || errno == EROFS)) {
        may = 0;
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (fd < 0)
        return -errno;
    const int rc = xdsi_tape_join(r, fd, may, name, from);
    close(fd);
    return rc;
}

/* Give the slot back and unmap. */
static inline void xdsi_tape_leave(struct xds_tape_reader *r)
{
    if (!r->tape)
        return;
    if (r->slot)
        __atomic_store_n(&r->slot->pid, 0, __ATOMIC_RELEASE);
    munmap(r->tape, r->tape->header_bytes + 2 * r->bytes);
    r->tape = NULL;
}

#endif
