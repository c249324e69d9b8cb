/* xsk_open.c: setting up and taking down what xsk.c receives and sends with.
 *
 * Order: probe, one socket a queue with its UMEM (bind retried while the queue is busy), the granted mode
 * read back, busy polling, the sender's socket, one descriptor to poll on. Any failure undoes all of it.
 * Where things lie in the caller's memory says xsk_layout.c.
 */
#include "ports/xsk_inl.h"

#include <errno.h>
#include <net/if.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE          4096u
#define FRAME_EXTRA   22u /* Ethernet header and two VLAN tags, beyond the MTU       */
#define BIND_PAUSE_MS 10u

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

static uint16_t bind_flags(const struct xds_xsk_config *c)
{
    uint16_t flags = (c->flags & XDS_XSK_NEED_WAKEUP) ? XDP_USE_NEED_WAKEUP : 0;

    if (c->frame_max > xdsi_xsk_payload(c))
        flags |= XDP_USE_SG;
    if (c->mode == XDS_XSK_COPY)
        flags |= XDP_COPY;
    else if (c->mode == XDS_XSK_ZEROCOPY && (c->flags & XDS_XSK_REQUIRE))
        flags |= XDP_ZEROCOPY;
    return flags;
}

/* A queue whose last owner died moments ago is busy until the kernel has finished with it.
 * with: a bound socket whose UMEM this one uses, and so its mode; -1: it is the first. */
static int bind_socket(const struct xdsi_socket *s, int with, uint32_t queue, uint32_t ifindex,
                       const struct xds_xsk_config *c, struct xds_xsk_report *rep)
{
    rep->step = XDS_XSK_STEP_BIND;
    for (unsigned waited = 0;; waited += BIND_PAUSE_MS) {
        int r = xdsi_socket_bind(s, ifindex, queue, bind_flags(c), with);
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
static void fill_all(struct queue *q, uint32_t frames)
{
    uint32_t at = 0;

    xsk_ring_prod__reserve(&q->fill, frames, &at);
    for (uint32_t i = 0; i < frames; i++)
        *xsk_ring_prod__fill_addr(&q->fill, at + i) = xdsi_chunk_at(q->umem, q->first + i);
    xsk_ring_prod__submit(&q->fill, frames);
}

/* A socket's own fill and completion rings, and its UMEM where it is the first to use it. */
static int open_pool(struct xdsi_socket *s, struct umem *u, const struct xds_xsk_config *c,
                     uint32_t fill_size, struct xsk_ring_prod *fill, struct xsk_ring_cons *comp,
                     struct xds_xsk_report *rep)
{
    const struct xdsi_umem_shape shape = {
        .area = u->area,
        .len = u->bytes,
        .chunk_size = u->chunk,
        .headroom = c->headroom,
        .flags = (c->flags & (XDS_XSK_UNALIGNED | XDS_XSK_IN_A_ROW) ? XDP_UMEM_UNALIGNED_CHUNK_FLAG : 0) |
                 (c->flags & XDS_XSK_TX_SOFTWARE_CHECKSUM ? XDP_UMEM_TX_SW_CSUM : 0),
        .tx_metadata_len = u->tx_meta,
    };
    rep->step = XDS_XSK_STEP_UMEM;
    int r = u->fd < 0 ? xdsi_socket_umem(s, &shape) : 0;
    if (r == 0)
        r = xdsi_socket_producer(s, XDSI_RING_FILL, fill_size, fill);
    if (r == 0)
        r = xdsi_socket_consumer(s, XDSI_RING_COMPLETION, xdsi_xsk_completions(c), comp);
    return r;
}

static int open_queue(struct xsk *x, unsigned index, uint32_t ifindex, const struct xds_xsk_config *c,
                      struct xds_xsk_report *rep)
{
    struct queue *q = &x->queue[index];

    rep->queue = q->id;
    rep->step = XDS_XSK_STEP_SOCKET;
    int r = xdsi_socket_open(&q->socket);
    if (r == 0)
        r = open_pool(&q->socket, q->umem, c, xdsi_xsk_fill_ring(c), &q->fill, &q->comp, rep);
    if (r == 0)
        r = xdsi_socket_consumer(&q->socket, XDSI_RING_RX, c->rx_ring, &q->rx);
    if (r < 0)
        return r;
    if (!x->raw)
        fill_all(q, c->rx_frames);
    r = bind_socket(&q->socket, q->umem->fd, q->id, ifindex, c, rep);
    if (r < 0)
        return r;
    q->fd = q->socket.fd;
    if (q->umem->fd < 0)
        q->umem->fd = q->fd;
    rep->step = XDS_XSK_STEP_MODE;
    uint32_t granted = granted_mode(q->fd);
    rep->granted = x->granted = index && x->granted != granted ? XDS_XSK_COPY : granted;
    if ((c->flags & XDS_XSK_REQUIRE) && c->mode != XDS_XSK_AUTO && granted != c->mode)
        return -EOPNOTSUPP;
    rep->step = XDS_XSK_STEP_BUSY_POLL;
    return x->busy_poll ? set_busy_poll(q->fd, c) : 0;
}

/* A kick shall take as much as was asked for. A kernel that knows no budget has one all the same: that is
 * reported, and flush kicks more often. */
static int set_tx_budget(const struct xdsi_socket *s, const struct xds_xsk_config *c,
                         struct xds_xsk_report *rep)
{
    rep->step = XDS_XSK_STEP_SOCKET;
    rep->tx_budget = c->tx_budget ? c->tx_budget : c->tx_ring;
    if (c->tx_ring < XDSI_TX_BUDGET_LEAST)
        return 0; /* one kick takes it whole anyhow */
    int r = xdsi_socket_tx_budget(s, rep->tx_budget);
    if (r != -ENOPROTOOPT)
        return r;
    rep->tx_budget = XDSI_TX_BUDGET_LEAST;
    return 0;
}

static int open_sender(struct xsk *x, uint32_t ifindex, const struct xds_xsk_config *c,
                       struct xds_xsk_report *rep)
{
    struct sender *t = &x->tx;
    const uint32_t shared = xdsi_xsk_shared_queue(c);

    if (!t->frames)
        return 0;
    rep->queue = t->id;
    rep->step = XDS_XSK_STEP_SOCKET;
    int r = xdsi_socket_open(&t->socket);
    if (r < 0)
        return r;
    if (shared < c->queue_count) {
        t->comp = x->queue[shared].comp;
    } else {
        rep->step = XDS_XSK_STEP_UMEM;
        if (x->granted == XDS_XSK_ZEROCOPY)
            return -EOPNOTSUPP; /* its receive side would starve: nothing fills it */
        r = open_pool(&t->socket, t->umem, c, 1, &t->no_fill, &t->comp, rep);
    }
    if (r == 0)
        r = xdsi_socket_producer(&t->socket, XDSI_RING_TX, c->tx_ring, &t->ring);
    if (r == 0)
        r = set_tx_budget(&t->socket, c, rep);
    if (r == 0)
        r = bind_socket(&t->socket, shared < c->queue_count ? x->queue[shared].fd : t->umem->fd, t->id,
                        ifindex, c, rep);
    if (r < 0)
        return r;
    t->fd = t->socket.fd;
    rep->step = XDS_XSK_STEP_BUSY_POLL;
    /* In zero-copy the kernel wakes no sender that prefers to poll, and polls the instance of its receive queue:
     * where the driver has another one for what is sent (igb with few queues) nothing would ever leave. */
    return x->busy_poll && x->granted != XDS_XSK_ZEROCOPY ? set_busy_poll(t->fd, c) : 0;
}

static int check_interface(const struct xds_xsk_config *c, uint32_t *ifindex, struct xds_xsk_report *rep)
{
    struct xds_xsk_interface nic;
    int r = xds_xsk_probe(c->ifname, &nic);
    uint32_t longest = c->frame_max > xdsi_xsk_payload(c) ? c->frame_max : xdsi_xsk_payload(c);

    *ifindex = nic.ifindex;
    rep->step = XDS_XSK_STEP_INTERFACE;
    rep->mtu = nic.mtu;
    rep->mtu_max = longest > FRAME_EXTRA ? longest - FRAME_EXTRA : 0;
    if (r < 0)
        return r;
    if (!nic.up)
        return -ENETDOWN;
    rep->step = XDS_XSK_STEP_MTU;
    return nic.mtu > rep->mtu_max && !(c->flags & XDS_XSK_RAW) ? -EMSGSIZE : 0;
}

int xds_xsk_open(void *mem, const struct xds_xsk_config *cfg, struct xds_link **out,
                 struct xds_xsk_report *report)
{
    struct xds_xsk_report unused, *rep = report ? report : &unused;
    struct umem *lender;
    uint32_t ifindex, lent = 0;

    *out = NULL;
    *rep = (struct xds_xsk_report){.step = XDS_XSK_STEP_CONFIG, .queue = cfg->queue_first};
    if (xds_xsk_fault(cfg) || (uintptr_t)mem % PAGE)
        return XDS_ECONFIG;
    int r = check_interface(cfg, &ifindex, rep);
    if (r < 0)
        return r;
    lender = cfg->share ? ((struct xsk *)cfg->share)->umem : NULL;
    if (lender)
        lent = lender->lent;
    struct xsk *x = xdsi_xsk_lay_out(mem, cfg, rep->mtu);
    for (unsigned i = 0; i < cfg->queue_count && r == 0; i++)
        r = open_queue(x, i, ifindex, cfg, rep);
    if (r == 0)
        r = open_sender(x, ifindex, cfg, rep);
    if (r < 0) {
        xdsi_xsk_undo(x);
        if (lender)
            lender->lent = lent;
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
    x->poll_fd = -1;
    xdsi_live_close(&x->tx.live);
    xdsi_socket_close(&x->tx.socket);
    x->tx.fd = -1;
    for (unsigned i = x->queues; i-- > 0;) {
        xdsi_socket_close(&x->queue[i].socket);
        x->queue[i].fd = -1;
    }
    for (unsigned i = 0; i < x->umems; i++)
        x->umem[i].fd = -1;
}
