/* ring.c: mapping, set-up and the callable forms of the ring. System calls at map and unmap only. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ground/ring_inl.h"

static int sound_size(uint64_t bytes)
{
    return bytes >= XDS_RING_HEADER && bytes <= (uint64_t)1 << 40 && !(bytes & (bytes - 1)) &&
           bytes % (uint64_t)sysconf(_SC_PAGESIZE) == 0;
}

/* Reserve the whole range first, so that the second half cannot meet somebody else's mapping. */
int xds_ring_map(int fd, uint64_t bytes, void **out)
{
    if (!sound_size(bytes) || XDS_RING_HEADER % sysconf(_SC_PAGESIZE))
        return XDS_ECONFIG;
    char *base = mmap(NULL, XDS_RING_HEADER + 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return -errno;
    const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
    if (mmap(base, XDS_RING_HEADER + bytes, prot, flags, fd, 0) == MAP_FAILED ||
        mmap(base + XDS_RING_HEADER + bytes, bytes, prot, flags, fd, XDS_RING_HEADER) == MAP_FAILED) {
        const int error = errno;
        munmap(base, XDS_RING_HEADER + 2 * bytes);
        return -error;
    }
    *out = base;
    return 0;
}

int xds_ring_map_private(uint64_t bytes, void **out)
{
    if (!sound_size(bytes))
        return XDS_ECONFIG;
    const int fd = memfd_create("xdpstack-ring", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = ftruncate(fd, (off_t)(XDS_RING_HEADER + bytes)) ? -errno : xds_ring_map(fd, bytes, out);
    close(fd); /* the mappings keep the memory */
    return rc;
}

int xds_ring_unmap(void *mem, uint64_t bytes)
{
    return munmap(mem, XDS_RING_HEADER + 2 * bytes) ? -errno : 0;
}

int xds_ring_init(void *mem, uint64_t bytes, const char *text)
{
    const size_t length = text ? strlen(text) : 0;
    if (!sound_size(bytes) || length >= XDS_RING_TEXT)
        return XDS_ECONFIG;
    struct xds_ring *r = mem;
    memset(mem, 0, XDS_RING_HEADER);
    if (length)
        memcpy((char *)mem + XDS_RING_TEXT_AT, text, length);
    r->endian = XDS_RING_ENDIAN;
    r->version = XDS_RING_VERSION;
    r->header_bytes = XDS_RING_HEADER;
    r->bytes = bytes;
    __atomic_store_n(&r->magic, XDS_RING_MAGIC, __ATOMIC_RELEASE);
    return 0;
}

const char *xds_ring_text(const struct xds_ring *r)
{
    return (const char *)r + XDS_RING_TEXT_AT;
}

int xds_ring_check(const struct xds_ring *r, uint64_t bytes)
{
    if (__atomic_load_n(&r->magic, __ATOMIC_ACQUIRE) != XDS_RING_MAGIC || r->version != XDS_RING_VERSION ||
        r->endian != XDS_RING_ENDIAN)
        return XDS_EFOREIGN;
    const uint64_t head = __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
    const uint64_t tail = __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE);
    if (r->header_bytes != XDS_RING_HEADER || r->bytes != bytes || tail - head > bytes || head % 8 ||
        tail % 8)
        return XDS_EMALFORMED;
    return 0;
}

void xds_ring_attach_writer(struct xds_ring *r, uint32_t pid, uint64_t pid_start)
{
    r->claimed = 0;
    r->head_seen = __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
    r->writer_start = pid_start;
    __atomic_store_n(&r->closed, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&r->writer_pid, pid, __ATOMIC_RELEASE);
}

void xds_ring_attach_reader(struct xds_ring *r, uint32_t pid, uint64_t pid_start)
{
    r->cursor = r->head;
    r->tail_seen = r->head;
    r->reader_start = pid_start;
    __atomic_store_n(&r->reader_pid, pid, __ATOMIC_RELEASE);
}

void xds_ring_close(struct xds_ring *r)
{
    __atomic_store_n(&r->closed, 1, __ATOMIC_RELEASE);
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

void xds_ring_release(struct xds_ring *r)
{
    xdsi_ring_release(r);
}

uint64_t xds_ring_used(const struct xds_ring *r)
{
    const uint64_t head = __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
    return __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE) - head;
}
