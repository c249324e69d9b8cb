/* tape.c: set-up, the writer's recovery and the callable forms of the tape. System calls at set-up, in
 * a reader's sleep, and where the writer wakes one.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* syscall */
#endif
#include "ground/tape_inl.h"

_Static_assert(sizeof(struct xds_tape) == XDS_TAPE_HEADER, "the header is one page");
_Static_assert(sizeof(struct xds_tape_slot) == 128, "two cache lines a reader");

int xds_tape_map(int fd, uint64_t header, uint64_t bytes, int may, void **out)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if ((header != XDS_TAPE_HEADER && header != XDS_TAPE_HEADER_HUGE) || bytes < XDS_TAPE_HEADER ||
        bytes > (uint64_t)1 << 40 || bytes & (bytes - 1) || bytes % page || header % page)
        return XDS_ECONFIG;
    return xdsi_shared_map(fd, header, bytes, may, out);
}

int xds_tape_unmap(void *mem, uint64_t header, uint64_t bytes)
{
    return munmap(mem, header + 2 * bytes) ? -errno : 0;
}

int xds_tape_init(void *mem, uint64_t header, uint64_t bytes, uint32_t record_len, int64_t now,
                  const char *text)
{
    struct xds_tape *t = mem;
    const size_t length = strlen(text);
    if (length >= XDS_TAPE_TEXT || xdsi_tape_space(record_len) > bytes / 4)
        return XDS_ECONFIG;
    memset(t, 0, sizeof *t);
    t->version = XDS_TAPE_VERSION;
    t->endian = XDS_TAPE_ENDIAN;
    t->header_bytes = (uint32_t)header;
    t->readers = XDS_TAPE_READERS;
    t->bytes = bytes;
    t->part = bytes / XDS_TAPE_MARKS;
    t->created_ns = now;
    t->record_len = record_len;
    memcpy(t->text, text, length);
    __atomic_store_n(&t->magic, XDS_TAPE_MAGIC, __ATOMIC_RELEASE);
    return 0;
}

int xds_tape_check(const struct xds_tape *t, uint64_t file_bytes)
{
    return xdsi_tape_sound(t, file_bytes);
}

/* The writer before may have been killed between any two stores of xdsi_tape_publish(). What has its
 * stamp may have been read, so it counts; the rest never was. front stays: it only grows. */
static int recover(struct xds_tape_writer *w)
{
    struct xds_tape *t = w->tape;
    uint64_t last = t->last;
    const uint64_t waiting = xdsi_tape_place(w, w->tail)->stamp;
    if (last < w->tail && !xdsi_tape_place(w, last)->stamp)
        return XDS_EMALFORMED;
    w->next = !w->tail ? 1 : last < w->tail ? xdsi_tape_place(w, last)->stamp + 1 : waiting;
    while (w->next && xdsi_tape_place(w, w->tail)->stamp == w->next) {
        const uint64_t need = xdsi_tape_space(xdsi_tape_place(w, w->tail)->len);
        if (need > w->bytes / 4 || w->tail + need > w->front)
            return XDS_EMALFORMED;
        last = w->tail;
        w->tail += need;
        w->next++;
    }
    if (!w->next || xdsi_tape_place(w, w->tail)->stamp)
        return XDS_EMALFORMED;
    for (int i = 0; i < XDS_TAPE_MARKS; i++)
        if (t->marks[i] >= w->tail) /* of records that were never published: nothing need begin there now */
            __atomic_store_n(&t->marks[i], 0, __ATOMIC_RELAXED);
    __atomic_store_n(&t->last, last, __ATOMIC_RELEASE);
    __atomic_store_n(&t->tail, w->tail, __ATOMIC_RELEASE);
    __atomic_store_n(&t->written, w->next - 1, __ATOMIC_RELAXED);
    w->cleared = w->tail + sizeof(uint64_t);
    return 0;
}

int xds_tape_attach_writer(struct xds_tape_writer *w, struct xds_tape *t, uint32_t pid, uint64_t pid_start)
{
    memset(w, 0, sizeof *w);
    w->tape = t;
    w->bytes = t->bytes;
    w->part = t->part;
    w->data = (uint8_t *)t + t->header_bytes;
    w->tail = __atomic_load_n(&t->tail, __ATOMIC_ACQUIRE);
    w->front = __atomic_load_n(&t->front, __ATOMIC_ACQUIRE);
    if (t->front - w->tail > w->bytes || w->tail % 8)
        return XDS_EMALFORMED;
    const int rc = recover(w);
    if (rc)
        return rc;
    t->writer_start = pid_start;
    __atomic_store_n(&t->closed, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&t->writer_pid, pid, __ATOMIC_RELEASE);
    return 0;
}

void xdsi_tape_wake(struct xds_tape *t)
{
    __atomic_store_n(&t->sleep, 0, __ATOMIC_RELAXED);
    syscall(SYS_futex, &t->sleep, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void xds_tape_close(struct xds_tape *t)
{
    __atomic_store_n(&t->closed, 1, __ATOMIC_RELEASE);
    xdsi_tape_wake(t);
}

int xds_tape_claim(struct xds_tape_writer *w, uint32_t len, void **out)
{
    if (w->tape->record_len && len != w->tape->record_len)
        return XDS_ECAPACITY;
    return xdsi_tape_claim(w, len, out);
}

int xds_tape_commit(struct xds_tape_writer *w, uint32_t kind, uint32_t len)
{
    return xdsi_tape_commit(w, kind, len);
}

void xds_tape_abort(struct xds_tape_writer *w)
{
    w->claimed = 0;
    w->cleared = w->tail + sizeof(uint64_t); /* who claimed may have written to the rest */
}

int xds_tape_write(struct xds_tape_writer *w, uint32_t kind, const void *data, uint32_t len)
{
    return xdsi_tape_write(w, kind, data, len);
}

/* n records behind the tail, published together. */
static void write_part(struct xds_tape_writer *w, uint32_t kind, const uint8_t *data, uint32_t len, size_t n)
{
    const uint64_t need = xdsi_tape_space(len), first = w->next, begin = w->tail;
    xdsi_tape_advance(w, begin + n * need);
    xdsi_tape_end(w, begin + n * need);
    for (size_t i = 0; i < n; i++) {
        const uint64_t at = begin + i * need;
        struct xds_tape_record *record = xdsi_tape_place(w, at);
        xdsi_tape_mark(w, at);
        if (i)
            __atomic_store_n(&record->stamp, first + i, __ATOMIC_RELAXED);
        xdsi_tape_head(record, kind, len);
        xdsi_tape_fill((uint8_t *)(record + 1), data + i * len, len);
    }
    w->next += n;
    xdsi_tape_publish(w, begin + (n - 1) * need, begin + n * need, first);
}

int xds_tape_write_many(struct xds_tape_writer *w, uint32_t kind, const void *data, uint32_t len, size_t n)
{
    const uint64_t need = xdsi_tape_space(len);
    if (w->claimed)
        return XDS_ESTATE;
    if (need > w->bytes / 4 || (w->tape->record_len && len != w->tape->record_len))
        return XDS_ECAPACITY;
    const size_t most = need > w->bytes / 8 ? 1 : (size_t)(w->bytes / 8 / need);
    for (size_t done = 0; done < n; done += most)
        write_part(w, kind, (const uint8_t *)data + done * len, len, n - done < most ? n - done : most);
    return 1;
}

int xds_tape_attach_reader(struct xds_tape_reader *r, struct xds_tape *t, struct xds_tape_slot *slot,
                           enum xds_tape_from from)
{
    return xdsi_tape_start(r, t, slot, from);
}

int64_t xds_tape_read(struct xds_tape_reader *r, void *to, uint64_t cap, uint64_t *n)
{
    return xdsi_tape_read(r, to, cap, n);
}

int64_t xds_tape_next(struct xds_tape_reader *r)
{
    uint64_t n;
    if (!r->room)
        return XDS_ESTATE;
    const int64_t got = xdsi_tape_read(r, r->room, r->room_bytes, &n);
    return got < 0 ? got : (int64_t)n;
}

int xds_tape_wait(struct xds_tape_reader *r, int64_t ns)
{
    return xdsi_tape_wait(r, ns);
}
