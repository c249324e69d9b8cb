/* xsk_open.c: setting up and taking down what xsk.c receives and sends with.
 *
 * Order: probe, one UMEM and one socket a queue (bind retried while the queue is busy), the granted
 * mode read back, busy polling, the socket that sends, one descriptor to poll on. Any failure undoes
 * all of it.
 * Memory: struct xsk with its queues, the TX stack, the audit's bytes; then, page aligned, one UMEM a
 * queue. The kernel wants one UMEM for all sockets of a queue: where tx_queue is a receive queue of this
 * port, its UMEM holds the TX frames behind the RX frames; else they have a UMEM of their own.
 */
#include "ports/xsk_inl.h"

#include <errno.h>
#include <net/if.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE          4096u
#define FRAME_EXTRA   22u /* Ethernet header and two VLAN tags, beyond the MTU       */
#define TX_EXTRA      18u /* Ethernet header and one VLAN tag: the kernel takes no more */
#define KICK_STALLS   64u
#define BIND_PAUSE_MS 10u

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif
#ifndef SO_BUSY_POLL_BUDGET
#define SO_BUSY_POLL_BUDGET 70
#endif

static bool power_of_two(uint32_t n)
{
    return n && (n & (n - 1)) == 0;
}

static size_t up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static bool sound(const struct xds_xsk_config *c)
{
    return c->queue_count >= 1 && c->queue_count <= XDS_XSK_QUEUES_MAX && power_of_two(c->rx_ring) &&
           power_of_two(c->rx_frames) && (c->frame_size == 2048 || c->frame_size == 4096) &&
           (c->tx_ring == 0 || power_of_two(c->tx_ring)) && c->tx_frames <= c->tx_ring &&
           (c->tx_ring == 0) == (c->tx_frames == 0) && c->rx_ring <= 1u << 20 && c->rx_frames <= 1u << 20 &&
           c->tx_ring <= 1u << 20 && c->tx_queue < UINT16_MAX && c->mode <= XDS_XSK_COPY &&
           memchr(c->ifname, 0, sizeof(c->ifname));
}

/* Bytes of everything before the first UMEM. */
static size_t state_bytes(const struct xds_xsk_config *c)
{
    size_t audit = (size_t)c->rx_frames * c->queue_count + c->tx_frames;
    return up(sizeof(struct xsk) + c->queue_count * sizeof(struct queue) + c->tx_frames * sizeof(uint32_t) +
                  audit,
              PAGE);
}

/* The index of the receive queue that is sent on as well; queue_count: none. */
static uint32_t shared_queue(const struct xds_xsk_config *c)
{
    uint32_t index = c->tx_queue - c->queue_first;
    return index < c->queue_count ? index : c->queue_count;
}

/* Of a receive queue, or of the sender's own (index queue_count). */
static size_t umem_bytes(const struct xds_xsk_config *c, unsigned index)
{
    size_t frames = index < c->queue_count ? c->rx_frames : 0;
    return up((frames + (index == shared_queue(c) ? c->tx_frames : 0)) * c->frame_size, PAGE);
}

size_t xds_xsk_size(const struct xds_xsk_config *cfg)
{
    if (!sound(cfg))
        return 0;
    size_t n = state_bytes(cfg);
    for (unsigned i = 0; i <= cfg->queue_count; i++)
        n += umem_bytes(cfg, i);
    return n;
}

static uint32_t channels(int fd, struct ifreq *ifr)
{
    struct ethtool_channels ch = {.cmd = ETHTOOL_GCHANNELS};
    ifr->ifr_data = (void *)&ch;
    if (ioctl(fd, SIOCETHTOOL, ifr) < 0)
        return 1;
    uint32_t n = ch.combined_count + ch.rx_count;
    return n ? n : 1;
}

int xds_xsk_probe(const char *ifname, struct xds_xsk_interface *out)
{
    struct ifreq ifr = {0};
    struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
    int fd, r = 0;

    *out = (struct xds_xsk_interface){0};
    if (strlen(ifname) >= sizeof(ifr.ifr_name))
        return -ENODEV;
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", ifname);
    if (ioctl(fd, SIOCGIFINDEX, &ifr) < 0) {
        r = -errno;
        goto done;
    }
    out->ifindex = (uint32_t)ifr.ifr_ifindex;
    if (ioctl(fd, SIOCGIFMTU, &ifr) == 0)
        out->mtu = (uint32_t)ifr.ifr_mtu;
    if (ioctl(fd, SIOCGIFHWADDR, &ifr) == 0)
        memcpy(out->mac, ifr.ifr_hwaddr.sa_data, sizeof(out->mac));
    if (ioctl(fd, SIOCGIFFLAGS, &ifr) == 0) {
        out->up = !!(ifr.ifr_flags & IFF_UP);
        out->running = !!(ifr.ifr_flags & IFF_RUNNING);
    }
    ifr.ifr_data = (void *)&info;
    if (ioctl(fd, SIOCETHTOOL, &ifr) == 0)
        memcpy(out->driver, info.driver, sizeof(out->driver));
    out->driver[sizeof(out->driver) - 1] = 0;
    out->rx_queues = channels(fd, &ifr);
done:
    close(fd);
    return r;
}

static void pause_ms(unsigned ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* A queue whose last owner died moments ago is busy until the kernel has finished with it.
 * Exactly one of rx and tx is given. The second socket of a UMEM takes the first one's mode. */
static int bind_socket(struct xsk_socket **out, struct xsk_umem *umem, uint32_t queue,
                       struct xsk_ring_cons *rx, struct xsk_ring_prod *tx, const struct xds_xsk_config *c,
                       struct xds_xsk_report *rep)
{
    struct xsk_socket_config sc = {
        .rx_size = c->rx_ring,
        .tx_size = c->tx_ring,
        .libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
        .bind_flags = (c->flags & XDS_XSK_NEED_WAKEUP) ? XDP_USE_NEED_WAKEUP : 0,
    };

    if (c->mode == XDS_XSK_COPY)
        sc.bind_flags |= XDP_COPY;
    else if (c->mode == XDS_XSK_ZEROCOPY && (c->flags & XDS_XSK_REQUIRE))
        sc.bind_flags |= XDP_ZEROCOPY;
    for (unsigned waited = 0;; waited += BIND_PAUSE_MS) {
        int r = xsk_socket__create(out, c->ifname, queue, umem, rx, tx, &sc);
        if (r != -EBUSY || waited >= c->bind_wait_ms)
            return r;
        rep->bind_retries++;
        pause_ms(BIND_PAUSE_MS);
    }
}

static uint32_t granted_mode(int fd)
{
    struct xdp_options o = {0};
    socklen_t len = sizeof(o);

    if (getsockopt(fd, SOL_XDP, XDP_OPTIONS, &o, &len) < 0)
        return XDS_XSK_COPY; /* before Linux 5.3 nothing can be read back: claim the least */
    return o.flags & XDP_OPTIONS_ZEROCOPY ? XDS_XSK_ZEROCOPY : XDS_XSK_COPY;
}

static int set_busy_poll(int fd, const struct xds_xsk_config *c)
{
    const struct {
        int name, value;
    } options[] = {
        {SO_PREFER_BUSY_POLL, 1},
        {SO_BUSY_POLL, c->busy_poll_us ? (int)c->busy_poll_us : 20},
        {SO_BUSY_POLL_BUDGET, c->busy_poll_budget ? (int)c->busy_poll_budget : 64},
    };
    for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++)
        if (setsockopt(fd, SOL_SOCKET, options[i].name, &options[i].value, sizeof(int)) < 0)
            return -errno;
    return 0;
}

/* Hand every RX frame to the kernel. */
static void fill_all(struct queue *q, const struct xds_xsk_config *c)
{
    uint32_t at = 0;

    xsk_ring_prod__reserve(&q->fill, c->rx_frames, &at);
    for (uint32_t i = 0; i < c->rx_frames; i++)
        *xsk_ring_prod__fill_addr(&q->fill, at + i) = (uint64_t)i * c->frame_size;
    xsk_ring_prod__submit(&q->fill, c->rx_frames);
}

static uint32_t comp_size(const struct xds_xsk_config *c)
{
    uint32_t comp = 1;

    while (comp < c->tx_frames)
        comp *= 2;
    return comp;
}

static int open_queue(struct xsk *x, unsigned index, const struct xds_xsk_config *c,
                      struct xds_xsk_report *rep)
{
    struct queue *q = &x->queue[index];
    struct xsk_umem_config uc = {
        .fill_size = c->rx_frames, .comp_size = comp_size(c), .frame_size = c->frame_size};

    rep->queue = q->id;
    rep->step = XDS_XSK_STEP_UMEM;
    int r = xsk_umem__create(&q->umem, q->area, umem_bytes(c, index), &q->fill, &q->comp, &uc);
    if (r < 0)
        return r;
    fill_all(q, c);
    rep->step = XDS_XSK_STEP_BIND;
    r = bind_socket(&q->socket, q->umem, q->id, &q->rx, NULL, c, rep);
    if (r < 0)
        return r;
    q->fd = xsk_socket__fd(q->socket);
    rep->step = XDS_XSK_STEP_MODE;
    uint32_t granted = granted_mode(q->fd);
    rep->granted = x->granted = index && x->granted != granted ? XDS_XSK_COPY : granted;
    if ((c->flags & XDS_XSK_REQUIRE) && c->mode != XDS_XSK_AUTO && granted != c->mode)
        return -EOPNOTSUPP;
    rep->step = XDS_XSK_STEP_BUSY_POLL;
    return x->busy_poll ? set_busy_poll(q->fd, c) : 0;
}

static int open_sender(struct xsk *x, const struct xds_xsk_config *c, struct xds_xsk_report *rep)
{
    struct sender *t = &x->tx;
    const uint32_t shared = shared_queue(c);
    struct xsk_umem *umem = shared < c->queue_count ? x->queue[shared].umem : NULL;

    if (!t->frames)
        return 0;
    rep->queue = t->id;
    if (!umem) {
        struct xsk_umem_config uc = {.fill_size = 1, .comp_size = comp_size(c), .frame_size = c->frame_size};
        rep->step = XDS_XSK_STEP_UMEM;
        if (x->granted == XDS_XSK_ZEROCOPY)
            return -EOPNOTSUPP; /* its receive side would starve: nothing fills it */
        int r = xsk_umem__create(&t->umem, t->area, umem_bytes(c, shared), &t->no_fill, &t->comp, &uc);
        if (r < 0)
            return r;
        umem = t->umem;
    } else {
        t->comp = x->queue[shared].comp;
    }
    rep->step = XDS_XSK_STEP_BIND;
    int r = bind_socket(&t->socket, umem, t->id, NULL, &t->ring, c, rep);
    if (r < 0)
        return r;
    t->fd = xsk_socket__fd(t->socket);
    rep->step = XDS_XSK_STEP_BUSY_POLL;
    return x->busy_poll ? set_busy_poll(t->fd, c) : 0;
}

static int make_poll_fd(struct xsk *x)
{
    if (x->queues == 1) {
        x->link.fd = x->queue[0].fd;
        return 0;
    }
    x->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (x->poll_fd < 0)
        return -errno;
    for (unsigned i = 0; i < x->queues; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(x->poll_fd, EPOLL_CTL_ADD, x->queue[i].fd, &e) < 0)
            return -errno;
    }
    x->link.fd = x->poll_fd;
    return 0;
}

static void lay_out_sender(struct xsk *x, const struct xds_xsk_config *c, uint32_t mtu)
{
    struct sender *t = &x->tx;
    const uint32_t shared = shared_queue(c);

    t->fd = -1;
    t->id = (uint16_t)c->tx_queue;
    t->frame_size = c->frame_size;
    t->frames = t->free_count = c->tx_frames;
    t->room = mtu + TX_EXTRA < c->frame_size ? mtu + TX_EXTRA : c->frame_size;
    t->base = shared < c->queue_count ? (uint64_t)c->rx_frames * c->frame_size : 0;
    t->free = (uint32_t *)(void *)&x->queue[c->queue_count];
    for (uint32_t i = 0; i < c->tx_frames; i++)
        t->free[i] = c->tx_frames - 1 - i; /* frame 0 on top */
}

/* Lay the caller's memory out; no system call yet. */
static void lay_out(struct xsk *x, const struct xds_xsk_config *c, uint32_t mtu)
{
    memset(x, 0, state_bytes(c));
    x->link = (struct xds_link){.ops = &xdsi_xsk_ops, .mtu = mtu, .fd = -1};
    x->queues = c->queue_count;
    x->frame_size = c->frame_size;
    x->rx_frames = c->rx_frames;
    x->kick_stalls = c->kick_stalls ? c->kick_stalls : KICK_STALLS;
    x->need_wakeup = c->flags & XDS_XSK_NEED_WAKEUP;
    x->busy_poll = c->flags & XDS_XSK_BUSY_POLL;
    x->stamps = !(c->flags & XDS_XSK_NO_STAMPS);
    x->poll_fd = -1;
    lay_out_sender(x, c, mtu);
    uint8_t *owner = (uint8_t *)(x->tx.free + c->tx_frames);
    uint8_t *area = (uint8_t *)x + state_bytes(c);
    for (unsigned i = 0; i <= c->queue_count; i++) {
        if (i == shared_queue(c)) {
            x->tx.area = area;
            x->tx.owner = owner;
            memset(owner + x->tx.base / c->frame_size, XDSI_OWNER_FREE, c->tx_frames);
        }
        if (i < c->queue_count) {
            struct queue *q = &x->queue[i];
            q->fd = -1;
            q->id = (uint16_t)(c->queue_first + i);
            q->tag = (uint64_t)i << 48;
            q->area = area;
            q->frame_size = c->frame_size;
            q->owner = owner;
        }
        owner += (i < c->queue_count ? c->rx_frames : 0) + (i == shared_queue(c) ? c->tx_frames : 0);
        area += umem_bytes(c, i);
    }
}

static int check_interface(const struct xds_xsk_config *c, struct xds_xsk_report *rep)
{
    struct xds_xsk_interface nic;
    int r = xds_xsk_probe(c->ifname, &nic);

    rep->step = XDS_XSK_STEP_INTERFACE;
    rep->mtu = nic.mtu;
    rep->mtu_max = c->frame_size - XDSI_KERNEL_HEADROOM - FRAME_EXTRA;
    if (r < 0)
        return r;
    if (!nic.up)
        return -ENETDOWN;
    rep->step = XDS_XSK_STEP_MTU;
    return nic.mtu > rep->mtu_max ? -EMSGSIZE : 0;
}

int xds_xsk_open(void *mem, const struct xds_xsk_config *cfg, struct xds_link **out,
                 struct xds_xsk_report *report)
{
    struct xds_xsk_report unused, *rep = report ? report : &unused;
    struct xsk *x = mem;

    *out = NULL;
    *rep = (struct xds_xsk_report){.step = XDS_XSK_STEP_CONFIG, .queue = cfg->queue_first};
    if (!sound(cfg) || (uintptr_t)mem % PAGE)
        return XDS_ECONFIG;
    int r = check_interface(cfg, rep);
    if (r < 0)
        return r;
    lay_out(x, cfg, rep->mtu);
    for (unsigned i = 0; i < cfg->queue_count && r == 0; i++)
        r = open_queue(x, i, cfg, rep);
    if (r == 0)
        r = open_sender(x, cfg, rep);
    if (r == 0) {
        rep->step = XDS_XSK_STEP_POLL_FD;
        r = make_poll_fd(x);
    }
    if (r < 0) {
        xdsi_xsk_undo(x);
        return r;
    }
    rep->step = XDS_XSK_STEP_READY;
    *out = &x->link;
    return 0;
}

void xdsi_xsk_undo(struct xsk *x)
{
    if (x->poll_fd >= 0)
        close(x->poll_fd);
    if (x->tx.socket)
        xsk_socket__delete(x->tx.socket);
    if (x->tx.umem)
        (void)xsk_umem__delete(x->tx.umem);
    x->tx.socket = NULL;
    x->tx.umem = NULL;
    x->tx.fd = -1;
    for (unsigned i = x->queues; i-- > 0;) {
        struct queue *q = &x->queue[i];
        if (q->socket)
            xsk_socket__delete(q->socket);
        if (q->umem)
            (void)xsk_umem__delete(q->umem);
        q->socket = NULL;
        q->umem = NULL;
        q->fd = -1;
    }
    x->poll_fd = -1;
}
