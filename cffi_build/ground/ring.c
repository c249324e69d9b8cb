/* ring.c: mapping, set-up and the callable forms of the ring. System calls at map and unmap only. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create, syscall */
#endif
#include "ground/ring_inl.h"

_Static_assert(sizeof(struct xds_ring) == 512, "four pairs of cache lines");

static int sound_size(uint64_t header, uint64_t bytes)
{
    const uint64_t least = header == XDS_RING_HEADER ? (uint64_t)sysconf(_SC_PAGESIZE) : XDS_RING_HEADER_HUGE;
    return (header == XDS_RING_HEADER || header == XDS_RING_HEADER_HUGE) && bytes >= least &&
           bytes <= (uint64_t)1 << 40 && !(bytes & (bytes - 1)) &&
           header % (uint64_t)sysconf(_SC_PAGESIZE) == 0;
}

int xds_ring_map(int fd, uint64_t header, uint64_t bytes, void **out)
{
    return sound_size(header, bytes) ? xdsi_shared_map(fd, header, bytes, 2, out) : XDS_ECONFIG;
}

int xds_ring_map_private(uint64_t header, uint64_t bytes, void **out)
{
    if (!sound_size(header, bytes))
        return XDS_ECONFIG;
    const int fd = memfd_create("xdpstack-ring", MFD_CLOEXEC | (header == XDS_RING_HEADER ? 0 : MFD_HUGETLB));
    if (fd < 0)
        return -errno;
    int rc = ftruncate(fd, (off_t)(header + bytes)) ? -errno : xds_ring_map(fd, header, bytes, out);
    close(fd); /* the mappings keep the memory */
    return rc;
}

int xds_ring_unmap(void *mem, uint64_t header, uint64_t bytes)
{
    return munmap(mem, header + 2 * bytes) ? -errno : 0;
}

int xds_ring_init(void *mem, uint64_t header, uint64_t bytes, const char *text)
{
    const size_t length = text ? strlen(text) : 0;
    if (!sound_size(header, bytes) || length >= XDS_RING_TEXT)
        return XDS_ECONFIG;
    struct xds_ring *r = mem;
    memset(mem, 0, XDS_RING_HEADER);
    if (length)
        memcpy((char *)mem + XDS_RING_TEXT_AT, text, length);
    r->endian = XDS_RING_ENDIAN;
    r->version = XDS_RING_VERSION;
    r->header_bytes = (uint32_t)header;
    r->bytes = bytes;
    __atomic_store_n(&r->magic, XDS_RING_MAGIC, __ATOMIC_RELEASE);
    return 0;
}

const char *xds_ring_text(const struct xds_ring *r)
{
    return (const char *)r + XDS_RING_TEXT_AT;
}

int xds_ring_check(const struct xds_ring *r, uint64_t file_bytes)
{
    return xdsi_ring_sound(r, file_bytes);
}

/* The writer before may have been killed between any two stores of xdsi_ring_commit(): what lies before tail was
 * committed, and one of the two notes says how many that are. */
void xds_ring_attach_writer(struct xds_ring *r, uint32_t pid, uint64_t pid_start)
{
    const uint64_t tail = __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE);
    for (int i = 0; i < 2 && tail; i++)
        if (r->noted[i].tail == tail)
            __atomic_store_n(&r->written, r->noted[i].number, __ATOMIC_RELAXED);
    if (!tail)
        __atomic_store_n(&r->written, 0, __ATOMIC_RELAXED);
    r->claimed = 0;
    r->head_seen = __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
    r->writer_start = pid_start;
    __atomic_store_n(&r->closed, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&r->writer_pid, pid, __ATOMIC_RELEASE);
}

void xds_ring_attach_reader(struct xds_ring *r, uint32_t pid, uint64_t pid_start)
{
    xdsi_ring_attach(r, pid, pid_start);
}

void xdsi_ring_wake(struct xds_ring *r)
{
    __atomic_store_n(&r->sleep, 0, __ATOMIC_RELAXED);
    syscall(SYS_futex, &r->sleep, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void xds_ring_close(struct xds_ring *r)
{
    __atomic_store_n(&r->closed, 1, __ATOMIC_RELEASE);
    xdsi_ring_wake(r);
}

int xds_ring_claim(struct xds_ring *r, uint32_t len, void **out)
{
    return xdsi_ring_claim(r, len, out);
}

int xds_ring_commit(struct xds_ring *r, uint32_t kind, uint32_t len)
{
    return xdsi_ring_commit(r, kind, len);
}

void xds_ring_abort(struct xds_ring *r)
{
    r->claimed = 0;
}

int xds_ring_write(struct xds_ring *r, uint32_t kind, const void *data, uint32_t len)
{
    void *room;
    const int rc = xdsi_ring_claim(r, len, &room);
    if (rc != 1)
        return rc;
    memcpy(room, data, len);
    xdsi_ring_commit(r, kind, len);
    return 1;
}

int xds_ring_peek(struct xds_ring *r, const struct xds_ring_record **out)
{
    return xdsi_ring_peek(r, out);
}

int xds_ring_peek_many(struct xds_ring *r, const struct xds_ring_record **out, unsigned cap)
{
    unsigned n = 0;
    while (n < cap) {
        const int rc = xdsi_ring_peek(r, &out[n]);
        if (rc != 1)
            return n ? (int)n : rc;
        n++;
    }
    return (int)n;
}

int64_t xds_ring_peek_rows(struct xds_ring *r, uint32_t len, uint64_t *at)
{
    const uint64_t need = xdsi_ring_space(len);
    const struct xds_ring_record *record;
    *at = r->cursor & (r->bytes - 1);
    for (int64_t n = 0;; n++) {
        const uint64_t before = r->cursor;
        const int rc = xdsi_ring_peek(r, &record);
        if (rc != 1)
            return n ? n : rc;
        if (record->len != len || r->cursor - before != need) {
            r->cursor = before;
            __atomic_store_n(&r->read, r->read - 1, __ATOMIC_RELAXED);
            return n ? n : XDS_ESTATE;
        }
    }
}

void xds_ring_release(struct xds_ring *r)
{
    xdsi_ring_release(r);
}

int xds_ring_wait(struct xds_ring *r, int64_t ns)
{
    return xdsi_ring_wait(r, ns);
}

uint64_t xds_ring_used(const struct xds_ring *r)
{
    const uint64_t head = __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
    return __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE) - head;
}
