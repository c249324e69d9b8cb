/* ring_reader_inl.h: a whole reader of a ring, for C and C++ (GCC, Clang), with nothing to link.
 *
 *   struct xds_ring *ring;
 *   int rc = xdsi_ring_open(&ring, "/dev/shm/orders.ring");
 *   const struct xds_ring_record *record;                  // then record->kind, record->len, data behind it
 *   while ((rc = xdsi_ring_peek(ring, &record)) >= 0)      // 1, 0: none now, < 0: over
 *       if (rc) { use(record); xdsi_ring_release(ring); }  // or release several at once
 *       else xdsi_ring_wait(ring, 10000000);               // or xdsi_ring_spin
 *   xdsi_ring_leave(ring);
 *
 * One process at a time reads. What it had not released when it died comes again to the next.
 */
#ifndef XDS_RING_READER_INL_H
#define XDS_RING_READER_INL_H

#include <linux/futex.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "base.h"
#include "ring.h"
#include "shared_inl.h"

static inline uint8_t *xdsi_ring_data(const struct xds_ring *r, uint64_t offset)
{
    return (uint8_t *)(uintptr_t)r + r->header_bytes + (offset & (r->bytes - 1));
}

static inline uint64_t xdsi_ring_space(uint32_t len)
{
    return (sizeof(struct xds_ring_record) + (uint64_t)len + 7) & ~(uint64_t)7;
}

/* The next record, in place until release. 1 and *out, 0 none now, -EPIPE none and the writer has closed,
 * XDS_EMALFORMED: the other side broke the ring. */
static inline int xdsi_ring_peek(struct xds_ring *r, const struct xds_ring_record **out)
{
    if (r->cursor == r->tail_seen) {
        /* closed before tail: a record committed before the close is never missed */
        const uint32_t closed = __atomic_load_n(&r->closed, __ATOMIC_ACQUIRE);
        r->tail_seen = __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE);
        if (r->cursor == r->tail_seen)
            return closed ? -EPIPE : 0;
        if (r->tail_seen - r->head > r->bytes || r->tail_seen % 8)
            return XDS_EMALFORMED;
    }
    const struct xds_ring_record *record = (const struct xds_ring_record *)xdsi_ring_data(r, r->cursor);
    const uint64_t need = xdsi_ring_space(record->len);
    if (need > r->tail_seen - r->cursor)
        return XDS_EMALFORMED;
    r->cursor += need;
    __atomic_store_n(&r->read, r->read + 1, __ATOMIC_RELAXED);
    *out = record;
    return 1;
}

/* Give back everything that was peeked. */
static inline void xdsi_ring_release(struct xds_ring *r)
{
    if (r->cursor != r->head)
        __atomic_store_n(&r->head, r->cursor, __ATOMIC_RELEASE);
}

/* Something waits, or the writer has closed. */
static inline int xdsi_ring_news(const struct xds_ring *r)
{
    return __atomic_load_n(&r->tail, __ATOMIC_SEQ_CST) != r->cursor ||
           __atomic_load_n(&r->closed, __ATOMIC_ACQUIRE);
}

/* Look up to `looks` times whether something waits (or the writer has closed): 1 so it does, 0 not yet. */
static inline int xdsi_ring_spin(const struct xds_ring *r, uint64_t looks)
{
    while (!xdsi_ring_news(r)) {
        if (!looks--)
            return 0;
        xdsi_shared_pause();
    }
    return 1;
}

/* Sleep until something waits (or the writer has closed), for at most ns: 1 so it does, 0 not. It sleeps 1 ms at
 * first: a writer that looked for sleepers just before this one could be seen is caught up with then. */
static inline int xdsi_ring_wait(struct xds_ring *r, int64_t ns)
{
    for (int64_t most = 1000000;; most = 50000000) {
        __atomic_store_n(&r->sleep, 1, __ATOMIC_SEQ_CST);
        if (xdsi_ring_news(r))
            return 1;
        if (ns <= 0)
            return 0;
        const int64_t nap = ns < most ? ns : most;
        struct timespec span;
        span.tv_sec = 0;
        span.tv_nsec = (long)nap;
        syscall(SYS_futex, &r->sleep, FUTEX_WAIT, 1, &span, NULL, 0);
        ns -= nap;
    }
}

/* ---- system calls ---- */

/* The process that writes, 0 when there is none or it is dead: who finds nothing to read asks now and then. What it
 * was filling never comes; the next writer goes on behind the last whole record. */
static inline uint32_t xdsi_ring_writer(const struct xds_ring *r)
{
    return xdsi_shared_who(&r->writer_pid, &r->writer_start);
}

/* What lies at r: a ring of that many bytes, behind a header of so many? 0, XDS_EFOREIGN, XDS_EMALFORMED. */
static inline int xdsi_ring_sound(const struct xds_ring *r, uint64_t file_bytes)
{
    if (__atomic_load_n(&r->magic, __ATOMIC_ACQUIRE) != XDS_RING_MAGIC || r->version != XDS_RING_VERSION ||
        r->endian != XDS_RING_ENDIAN)
        return XDS_EFOREIGN;
    const uint64_t head = __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
    const uint64_t tail = __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE);
    const int sizes =
        xdsi_shared_sizes(r->header_bytes, XDS_RING_HEADER, XDS_RING_HEADER_HUGE, r->bytes, file_bytes);
    return sizes && tail - head <= r->bytes && head % 8 == 0 && tail % 8 == 0 ? 0 : XDS_EMALFORMED;
}

/* The header and data sizes of a ring's file. 0, -errno, XDS_EFOREIGN, XDS_EMALFORMED. */
static inline int xdsi_ring_sizes(int fd, uint64_t *header, uint64_t *bytes)
{
    struct stat file;
    if (fstat(fd, &file))
        return -errno;
    if ((uint64_t)file.st_size < XDS_RING_HEADER)
        return XDS_EFOREIGN;
    const size_t part = file.st_blksize > XDS_RING_HEADER ? (size_t)file.st_blksize : XDS_RING_HEADER;
    void *mem = mmap(NULL, part, PROT_READ, MAP_SHARED, fd, 0);
    if (mem == MAP_FAILED)
        return -errno;
    const struct xds_ring *r = (const struct xds_ring *)mem;
    const int rc = xdsi_ring_sound(r, (uint64_t)file.st_size);
    *header = r->header_bytes;
    *bytes = r->bytes;
    munmap(mem, part);
    return rc;
}

/* Begin at what was released last: what a reader before had peeked comes again. */
static inline void xdsi_ring_attach(struct xds_ring *r, uint32_t pid, uint64_t pid_start)
{
    r->cursor = r->head;
    r->tail_seen = r->head;
    r->reader_start = pid_start;
    __atomic_store_n(&r->reader_pid, pid, __ATOMIC_RELEASE);
}

/* Become the reader of a ring by path; its data cannot be written then. Returns 0, -errno (-EBUSY: a live process
 * is its reader), XDS_EFOREIGN, XDS_EMALFORMED. */
static inline int xdsi_ring_open(struct xds_ring **out, const char *path)
{
    uint64_t header = 0, bytes = 0;
    void *mem = NULL;
    *out = NULL;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = xdsi_ring_sizes(fd, &header, &bytes);
    if (!rc)
        rc = xdsi_shared_map(fd, header, bytes, 1, &mem);
    if (!rc) {
        struct xds_ring *r = (struct xds_ring *)mem;
        flock(fd, LOCK_EX);
        const uint32_t pid = __atomic_load_n(&r->reader_pid, __ATOMIC_ACQUIRE);
        if (pid && xdsi_shared_start(pid) && xdsi_shared_start(pid) == r->reader_start)
            rc = -EBUSY;
        else
            xdsi_ring_attach(r, (uint32_t)getpid(), xdsi_shared_start((uint32_t)getpid()));
        flock(fd, LOCK_UN);
        if (rc)
            munmap(mem, header + 2 * bytes);
        else
            *out = r;
    }
    close(fd);
    return rc;
}

/* Give the side back and unmap. */
static inline void xdsi_ring_leave(struct xds_ring *r)
{
    __atomic_store_n(&r->reader_pid, 0, __ATOMIC_RELEASE);
    munmap(r, r->header_bytes + 2 * r->bytes);
}

#endif
