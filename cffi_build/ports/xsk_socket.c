/* xsk_socket.c: the calls of xsk_socket.h.
 *
 * libxdp's xsk_umem__create and xsk_socket__create of Debian 12 know neither several buffers a frame nor
 * TX metadata, and keep state of their own for shared UMEMs; the kernel's interface (AF_XDP in the
 * kernel's documentation, net/xdp/xsk.c) is small enough to speak directly.
 */
#include "ports/xsk_socket.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static const struct {
    int size_option;
    uint64_t page_offset;
    uint32_t entry;
} rings[XDSI_RINGS] = {
    [XDSI_RING_RX] = {XDP_RX_RING, XDP_PGOFF_RX_RING, sizeof(struct xdp_desc)},
    [XDSI_RING_TX] = {XDP_TX_RING, XDP_PGOFF_TX_RING, sizeof(struct xdp_desc)},
    [XDSI_RING_FILL] = {XDP_UMEM_FILL_RING, XDP_UMEM_PGOFF_FILL_RING, sizeof(uint64_t)},
    [XDSI_RING_COMPLETION] = {XDP_UMEM_COMPLETION_RING, XDP_UMEM_PGOFF_COMPLETION_RING, sizeof(uint64_t)},
};

int xdsi_socket_open(struct xdsi_socket *s)
{
    *s = (struct xdsi_socket){.fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)};
    return s->fd < 0 ? -errno : 0;
}

void xdsi_socket_adopt(struct xdsi_socket *s, int fd)
{
    *s = (struct xdsi_socket){.fd = fd, .given = 1};
}

int xdsi_socket_umem(const struct xdsi_socket *s, const struct xdsi_umem_shape *shape)
{
    struct xdsi_umem_reg reg = {
        .addr = (uintptr_t)shape->area,
        .len = shape->len,
        .chunk_size = shape->chunk_size,
        .headroom = shape->headroom,
        .flags = shape->flags | (shape->tx_metadata_len ? XDP_UMEM_TX_METADATA_LEN : 0),
        .tx_metadata_len = shape->tx_metadata_len,
    };
    if (setsockopt(s->fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)) == 0)
        return 0;
    if (errno != EINVAL || !shape->tx_metadata_len)
        return -errno;
    reg.flags = shape->flags; /* Linux 6.8 to 6.10 do not know the flag */
    return setsockopt(s->fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)) < 0 ? -errno : 0;
}

struct ring { /* what libxdp's producer and consumer rings have in common */
    uint32_t *producer, *consumer, *flags;
    void *entries;
};

static int map_ring(struct xdsi_socket *s, int which, uint32_t count, struct ring *out)
{
    struct xdp_mmap_offsets all;
    socklen_t len = sizeof(all);

    if ((!s->given && setsockopt(s->fd, SOL_XDP, rings[which].size_option, &count, sizeof(count)) < 0) ||
        getsockopt(s->fd, SOL_XDP, XDP_MMAP_OFFSETS, &all, &len) < 0)
        return -errno;
    if (len != sizeof(all))
        return -EPROTO; /* Linux before 5.4: no flags word, so no need_wakeup */
    const struct xdp_ring_offset *at = which == XDSI_RING_RX     ? &all.rx
                                       : which == XDSI_RING_TX   ? &all.tx
                                       : which == XDSI_RING_FILL ? &all.fr
                                                                 : &all.cr;
    size_t bytes = at->desc + (size_t)count * rings[which].entry;
    uint8_t *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, s->fd,
                        (off_t)rings[which].page_offset);
    if (map == MAP_FAILED)
        return -errno;
    s->map[which].at = map;
    s->map[which].len = bytes;
    *out = (struct ring){
        .producer = (uint32_t *)(void *)(map + at->producer),
        .consumer = (uint32_t *)(void *)(map + at->consumer),
        .flags = (uint32_t *)(void *)(map + at->flags),
        .entries = map + at->desc,
    };
    return 0;
}

/* libxdp's two kinds of ring are two types of the same members. */
#define TAKE_RING(out, r, count)                                                                             \
    (*(out) = (__typeof__(*(out))){                                                                          \
         .cached_prod = *(r).producer,                                                                       \
         .cached_cons = *(r).consumer,                                                                       \
         .mask = (count)-1,                                                                                  \
         .size = (count),                                                                                    \
         .producer = (r).producer,                                                                           \
         .consumer = (r).consumer,                                                                           \
         .flags = (r).flags,                                                                                 \
         .ring = (r).entries,                                                                                \
     })

int xdsi_socket_producer(struct xdsi_socket *s, int which, uint32_t count, struct xsk_ring_prod *out)
{
    struct ring r = {0};
    int code = map_ring(s, which, count, &r);

    if (code < 0)
        return code;
    TAKE_RING(out, r, count);
    out->cached_cons += count; /* libxdp keeps it a ring's size ahead */
    return 0;
}

int xdsi_socket_consumer(struct xdsi_socket *s, int which, uint32_t count, struct xsk_ring_cons *out)
{
    struct ring r = {0};
    int code = map_ring(s, which, count, &r);

    if (code < 0)
        return code;
    TAKE_RING(out, r, count);
    return 0;
}

int xdsi_socket_tx_budget(const struct xdsi_socket *s, uint32_t descriptors)
{
    return setsockopt(s->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &descriptors, sizeof(descriptors)) < 0 ? -errno
                                                                                                    : 0;
}

int xdsi_socket_bind(const struct xdsi_socket *s, uint32_t ifindex, uint32_t queue, uint16_t flags,
                     int shared_fd)
{
    struct sockaddr_xdp to = {
        .sxdp_family = AF_XDP,
        .sxdp_flags = shared_fd >= 0 ? XDP_SHARED_UMEM : flags,
        .sxdp_ifindex = ifindex,
        .sxdp_queue_id = queue,
        .sxdp_shared_umem_fd = shared_fd >= 0 ? (uint32_t)shared_fd : 0,
    };
    return bind(s->fd, (struct sockaddr *)(void *)&to, sizeof(to)) < 0 ? -errno : 0;
}

void xdsi_socket_close(struct xdsi_socket *s)
{
    for (int i = XDSI_RINGS; i-- > 0;)
        if (s->map[i].at)
            munmap(s->map[i].at, s->map[i].len);
    if (s->fd >= 0)
        close(s->fd);
    *s = (struct xdsi_socket){.fd = -1};
}
