/* sock.c: datagrams from kernel UDP sockets.
 *
 * One burst is one recvmmsg a socket that has something: with several sockets an epoll of no timeout
 * says which, and their bursts are merged by the kernel's stamps: a loop that was held up finds long
 * queues, and must not read one line far ahead of another. Slots are used in order until the lease
 * ends, so a datagram never moves; what was read but not yet delivered outlives the lease.
 * The kernel stamps with CLOCK_REALTIME; the offset to CLOCK_TAI is whole seconds and is looked at
 * again once a second of `now`, since a time daemon may set it late.
 */
#define _GNU_SOURCE
#include "xds/sock.h"
#include "ports/nic_time_inl.h"
#include "xds/base.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS            1000000000ll
#define BURST         64u /* datagrams of one recvmmsg                             */
#define RCVBUF        (16u << 20)
#define SLOTS_MAX     65536u
#define SLOT_MIN      64u
#define SLOT_MAX      65536u
#define CONTROL_BYTES 160u /* stamps (64), whose (32), overflow count (24), packet info (40) */

/* Stamps that are asked for: the kernel's; the NIC's, and which NIC it was. */
#define KERNELS (SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE)
#define NICS    (SOF_TIMESTAMPING_RX_HARDWARE | SOF_TIMESTAMPING_RAW_HARDWARE | SOF_TIMESTAMPING_OPT_PKTINFO)

#define SENT                                                                                                 \
    (SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_OPT_ID | SOF_TIMESTAMPING_OPT_TSONLY |                  \
     SOF_TIMESTAMPING_OPT_CMSG)

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif

struct one {
    int fd;
    bool six;
    uint8_t address6[16];
    uint32_t address; /* what the datagrams' destination is; 0: ask IP_PKTINFO     */
    uint32_t ifindex; /* where its group is joined                                 */
    uint32_t scope;   /* of link-local addresses: the interface, 0 by route        */
    uint16_t port;
    uint16_t index;
    uint32_t drops; /* SO_RXQ_OVFL as last seen                                    */
    uint32_t used;  /* slots of this lease                                         */
    uint8_t *area;
    unsigned held, next; /* datagrams read ahead, and those delivered              */
    struct xds_dgram ahead[BURST];
};

struct message { /* what recvmmsg fills for one datagram */
    union {
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } from;
    struct iovec iov;
    uint8_t control[CONTROL_BYTES] __attribute__((aligned(8)));
};

struct xds_sock {
    uint32_t count, slots, slot_bytes;
    uint64_t ready; /* sockets that may have more                                   */
    uint16_t port_index;
    bool closed, nic_stamps, tx_stamps;
    const struct xds_clock_face *nic_clock; /* of nic_ifindex's clock */
    uint32_t nic_ifindex;
    int epoll;
    int64_t tai_ns;      /* TAI - REALTIME                                          */
    int64_t tai_checked; /* now when it was looked at                              */
    struct xds_sock_stats stats;
    struct one one[XDS_SOCK_MAX];
    struct mmsghdr head[BURST];
    struct message message[BURST];
};

static size_t up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static bool is_zero(const uint8_t a[16])
{
    static const uint8_t zero[16];
    return memcmp(a, zero, 16) == 0;
}

static bool is_group(const struct xds_sock_address *a)
{
    return a->six ? a->address6[0] == 0xff : IN_MULTICAST(ntohl(a->address));
}

static bool has_source(const struct xds_sock_address *a)
{
    return a->six ? !is_zero(a->source6) : a->source != 0;
}

size_t xds_sock_size(const struct xds_sock_config *c)
{
    if (c->count < 1 || c->count > XDS_SOCK_MAX || c->slots < 1 || c->slots > SLOTS_MAX ||
        c->slot_bytes < SLOT_MIN || c->slot_bytes > SLOT_MAX)
        return 0;
    for (unsigned i = 0; i < c->count; i++)
        if (has_source(&c->address[i]) && !is_group(&c->address[i]))
            return 0;
    return up(sizeof(struct xds_sock)) + (size_t)c->count * c->slots * up(c->slot_bytes);
}

/* ---- setting up ------------------------------------------------------------------------------- */

static int set(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof(value)) < 0 ? -errno : 0;
}

static int64_t tai_offset(void)
{
    struct timespec utc, tai;

    clock_gettime(CLOCK_REALTIME, &utc);
    clock_gettime(CLOCK_TAI, &tai);
    int64_t apart = (tai.tv_sec - utc.tv_sec) * NS + tai.tv_nsec - utc.tv_nsec;
    return (apart + NS / 2) / NS * NS;
}

static int64_t now_tai(void)
{
    struct timespec t;
    clock_gettime(CLOCK_TAI, &t);
    return t.tv_sec * NS + t.tv_nsec;
}

static int member6(int fd, const struct xds_sock_address *a, uint32_t ifindex, bool in)
{
    struct ipv6_mreq any = {.ipv6mr_interface = ifindex};
    struct group_source_req one = {.gsr_interface = ifindex};
    struct sockaddr_in6 group = {.sin6_family = AF_INET6}, source = group;
    int r;

    memcpy(&any.ipv6mr_multiaddr, a->address6, 16);
    memcpy(&group.sin6_addr, a->address6, 16);
    memcpy(&source.sin6_addr, a->source6, 16);
    memcpy(&one.gsr_group, &group, sizeof(group));
    memcpy(&one.gsr_source, &source, sizeof(source));
    if (has_source(a))
        r = setsockopt(fd, IPPROTO_IPV6, in ? MCAST_JOIN_SOURCE_GROUP : MCAST_LEAVE_SOURCE_GROUP, &one,
                       sizeof(one));
    else
        r = setsockopt(fd, IPPROTO_IPV6, in ? IPV6_JOIN_GROUP : IPV6_LEAVE_GROUP, &any, sizeof(any));
    return r < 0 ? -errno : 0;
}

/* Join or leave: the pair of options for a group from any sender, or from one. */
static int member(int fd, const struct xds_sock_address *a, uint32_t ifindex, bool in)
{
    if (a->six)
        return member6(fd, a, ifindex, in);
    struct ip_mreqn any = {.imr_multiaddr.s_addr = a->address, .imr_ifindex = (int)ifindex};
    struct group_source_req one = {.gsr_interface = ifindex};
    struct sockaddr_in group = {.sin_family = AF_INET, .sin_addr.s_addr = a->address};
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = a->source};
    int r;

    memcpy(&one.gsr_group, &group, sizeof(group));
    memcpy(&one.gsr_source, &source, sizeof(source));
    if (a->source)
        r = setsockopt(fd, IPPROTO_IP, in ? MCAST_JOIN_SOURCE_GROUP : MCAST_LEAVE_SOURCE_GROUP, &one,
                       sizeof(one));
    else
        r = setsockopt(fd, IPPROTO_IP, in ? IP_ADD_MEMBERSHIP : IP_DROP_MEMBERSHIP, &any, sizeof(any));
    return r < 0 ? -errno : 0;
}

/* Where it sends and, of a group, receives by. */
static int choose_interface(struct one *o, const struct xds_sock_address *a)
{
    struct ip_mreqn out = {.imr_ifindex = (int)a->ifindex};
    int r;

    if (a->six)
        r = a->ifindex ? set(o->fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, (int)a->ifindex) : 0;
    else
        r = a->ifindex && setsockopt(o->fd, IPPROTO_IP, IP_MULTICAST_IF, &out, sizeof(out)) < 0 ? -errno : 0;
    o->scope = a->ifindex;
    if (r < 0 || !is_group(a))
        return r;
    r = a->six ? set(o->fd, IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
               : set(o->fd, IPPROTO_IP, IP_MULTICAST_ALL, 0);
    if (r < 0 || (r = member(o->fd, a, a->ifindex, true)) < 0)
        return r;
    o->ifindex = a->ifindex;
    return 0;
}

static uint32_t receive_buffer(int fd, uint32_t bytes)
{
    int granted = 0;
    socklen_t len = sizeof(granted);

    if (set(fd, SOL_SOCKET, SO_RCVBUFFORCE, (int)bytes) < 0)
        (void)set(fd, SOL_SOCKET, SO_RCVBUF, (int)bytes); /* without CAP_NET_ADMIN: up to rmem_max */
    getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &granted, &len);
    return (uint32_t)granted / 2; /* the kernel doubles what is asked for */
}

static int bind_six(struct one *o, const struct xds_sock_address *a)
{
    struct sockaddr_in6 at = {
        .sin6_family = AF_INET6, .sin6_port = htons(a->port), .sin6_scope_id = a->ifindex};
    socklen_t len = sizeof(at);

    memcpy(&at.sin6_addr, a->address6, 16);
    const int r = set(o->fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    if (r < 0)
        return r;
    if (bind(o->fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
        getsockname(o->fd, (struct sockaddr *)&at, &len) < 0)
        return -errno;
    memcpy(o->address6, a->address6, 16);
    o->port = ntohs(at.sin6_port);
    return is_zero(a->address6) ? set(o->fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1) : 0;
}

static int bind_one(struct one *o, const struct xds_sock_address *a)
{
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_addr.s_addr = a->address, .sin_port = htons(a->port)};
    socklen_t len = sizeof(at);

    int r = set(o->fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (r < 0)
        return r;
    if (a->six)
        return bind_six(o, a);
    if (bind(o->fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
        getsockname(o->fd, (struct sockaddr *)&at, &len) < 0)
        return -errno;
    o->address = a->address;
    o->port = ntohs(at.sin_port);
    return a->address ? 0 : set(o->fd, IPPROTO_IP, IP_PKTINFO, 1);
}

static int stamps_of(const struct xds_sock *s)
{
    int asked = KERNELS | (s->nic_stamps ? NICS : 0);

    if (s->tx_stamps)
        asked |= SENT | (s->nic_stamps ? SOF_TIMESTAMPING_TX_HARDWARE : 0);
    return asked;
}

static int open_one(struct xds_sock *s, unsigned i, const struct xds_sock_config *c,
                    struct xds_sock_report *rep)
{
    const struct xds_sock_address *a = &c->address[i];
    struct one *o = &s->one[i];

    rep->index = i;
    rep->step = XDS_SOCK_STEP_SOCKET;
    o->index = (uint16_t)i;
    o->six = a->six != 0;
    o->fd = socket(o->six ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (o->fd < 0)
        return -errno;
    uint32_t granted = receive_buffer(o->fd, c->rcvbuf_bytes ? c->rcvbuf_bytes : RCVBUF);
    rep->rcvbuf = i == 0 || granted < rep->rcvbuf ? granted : rep->rcvbuf;
    rep->step = XDS_SOCK_STEP_STAMPS;
    int r = set(o->fd, SOL_SOCKET, SO_TIMESTAMPING, stamps_of(s));
    if (r == 0)
        r = set(o->fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
    if (r < 0)
        return r;
    rep->step = XDS_SOCK_STEP_BIND;
    r = bind_one(o, a);
    if (r < 0)
        return r;
    rep->step = XDS_SOCK_STEP_JOIN;
    r = choose_interface(o, a);
    if (r < 0)
        return r;
    rep->step = XDS_SOCK_STEP_BUSY_POLL;
    if (c->busy_poll_us == 0)
        return 0;
    r = set(o->fd, SOL_SOCKET, SO_BUSY_POLL, (int)c->busy_poll_us);
    return r < 0 ? r : set(o->fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, 1);
}

static int make_epoll(struct xds_sock *s)
{
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (s->epoll < 0)
        return -errno;
    for (unsigned i = 0; i < s->count; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->one[i].fd, &e) < 0)
            return -errno;
    }
    return 0;
}

int xds_sock_open(void *mem, const struct xds_sock_config *cfg, struct xds_sock **out,
                  struct xds_sock_report *report)
{
    struct xds_sock_report unused, *rep = report ? report : &unused;
    struct xds_sock *s = mem;
    int r = 0;

    *out = NULL;
    *rep = (struct xds_sock_report){.step = XDS_SOCK_STEP_CONFIG};
    if (xds_sock_size(cfg) == 0 || (uintptr_t)mem % 64)
        return XDS_ECONFIG;
    memset(s, 0, sizeof(*s));
    s->count = cfg->count;
    s->slots = cfg->slots;
    s->slot_bytes = cfg->slot_bytes;
    s->port_index = cfg->port_index;
    s->nic_stamps = (cfg->flags & XDS_SOCK_NIC_STAMPS) != 0;
    s->tx_stamps = (cfg->flags & XDS_SOCK_TX_STAMPS) != 0;
    s->epoll = -1;
    s->tai_ns = tai_offset();
    for (unsigned i = 0; i < s->count; i++) {
        s->one[i].fd = -1;
        s->one[i].area = (uint8_t *)mem + up(sizeof(*s)) + (size_t)i * s->slots * up(s->slot_bytes);
    }
    for (unsigned i = 0; i < BURST; i++) {
        struct message *m = &s->message[i];
        s->head[i].msg_hdr = (struct msghdr){
            .msg_name = &m->from,
            .msg_iov = &m->iov,
            .msg_iovlen = 1,
            .msg_control = m->control,
        };
    }
    for (unsigned i = 0; i < s->count && r == 0; i++)
        r = open_one(s, i, cfg, rep);
    if (r == 0)
        r = make_epoll(s);
    if (r < 0) {
        xds_sock_close(s);
        return r;
    }
    rep->step = XDS_SOCK_STEP_READY;
    *out = s;
    return 0;
}

int xds_sock_rejoin(struct xds_sock *s, const struct xds_sock_config *cfg, uint32_t ifindex,
                    struct xds_sock_report *report)
{
    struct xds_sock_report unused, *rep = report ? report : &unused;

    *rep = (struct xds_sock_report){.step = XDS_SOCK_STEP_JOIN};
    if (cfg->count != s->count)
        return XDS_ECONFIG;
    for (unsigned i = 0; i < s->count; i++) {
        const struct xds_sock_address *a = &cfg->address[i];
        rep->index = i;
        if (a->ifindex != ifindex)
            continue; /* its membership has lived on */
        if (s->one[i].ifindex)
            (void)member(s->one[i].fd, a, s->one[i].ifindex, false);
        s->one[i].ifindex = 0;
        int r = choose_interface(&s->one[i], a);
        if (r < 0)
            return r;
    }
    rep->step = XDS_SOCK_STEP_READY;
    return 0;
}

/* ---- receiving -------------------------------------------------------------------------------- */

static int64_t ns_of(const struct timespec *t)
{
    return t->tv_sec * NS + t->tv_nsec;
}

/* Of what the kernel and the NIC stamped, the better. ifindex: which NIC it was, 0 unknown. */
static void choose_stamp(struct xds_sock *s, const struct scm_timestamping *t, uint32_t ifindex,
                         struct xds_dgram *d)
{
    const int64_t kernels = ns_of(&t->ts[0]), nics = ns_of(&t->ts[2]);

    d->rx_ns = kernels ? kernels + s->tai_ns : 0;
    if (!nics)
        return;
    const int64_t near = d->rx_ns ? d->rx_ns : now_tai();
    const bool mine = ifindex == s->nic_ifindex || ifindex == 0;
    const int64_t ns = mine ? xdsi_nic_time(s->nic_clock, nics, near) : 0;
    s->stats.rx_nic_stamped += ns != 0;
    s->stats.rx_nic_refused += ns == 0;
    if (ns) {
        d->rx_ns = ns;
        d->stamp = XDS_DGRAM_NIC;
    }
}

/* What the kernel said beside the datagram: stamps, what it dropped, the destination. */
static void ancillary(struct xds_sock *s, struct one *o, struct msghdr *h, struct xds_dgram *d)
{
    struct scm_timestamping stamps = {0};
    struct scm_ts_pktinfo whose = {0};

    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING) {
            memcpy(&stamps, CMSG_DATA(c), sizeof(stamps));
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING_PKTINFO) {
            memcpy(&whose, CMSG_DATA(c), sizeof(whose));
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
            uint32_t drops;
            memcpy(&drops, CMSG_DATA(c), sizeof(drops));
            s->stats.rx_dropped += (uint32_t)(drops - o->drops);
            o->drops = drops;
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            d->dst = info.ipi_addr.s_addr;
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            memcpy(d->dst6, &info.ipi6_addr, 16);
        }
    }
    choose_stamp(s, &stamps, whose.if_index, d);
}

static void ends(const struct one *o, const struct message *m, struct xds_dgram *d)
{
    if (o->six) {
        memcpy(d->src6, &m->from.in6.sin6_addr, 16);
        memcpy(d->dst6, o->address6, 16);
        d->sport = ntohs(m->from.in6.sin6_port);
        return;
    }
    d->src = m->from.in.sin_addr.s_addr;
    d->dst = o->address;
    d->sport = ntohs(m->from.in.sin_port);
}

/* One recvmmsg. Returns the datagrams delivered, -errno. *took: those that the kernel gave. */
static int burst(struct xds_sock *s, struct one *o, struct xds_dgram *out, unsigned cap, unsigned *took)
{
    unsigned want = cap < BURST ? cap : BURST, n = 0;

    *took = 0;
    for (unsigned i = 0; i < want; i++) {
        struct msghdr *h = &s->head[i].msg_hdr;
        s->message[i].iov =
            (struct iovec){o->area + (size_t)(o->used + i) * up(s->slot_bytes), s->slot_bytes};
        h->msg_namelen = sizeof(s->message[i].from);
        h->msg_controllen = CONTROL_BYTES;
    }
    s->stats.rx_calls++;
    int got = recvmmsg(o->fd, s->head, want, MSG_DONTWAIT, NULL);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR || errno == ECONNREFUSED ? 0 : -errno;
    for (int i = 0; i < got; i++) {
        const struct message *m = &s->message[i];
        struct msghdr *h = &s->head[i].msg_hdr;
        struct xds_dgram d = {
            .data = m->iov.iov_base,
            .len = s->head[i].msg_len,
            .dport = o->port,
            .port = s->port_index,
            .queue = o->index,
            .six = o->six,
        };
        ends(o, m, &d);
        ancillary(s, o, h, &d);
        if (h->msg_flags & MSG_TRUNC) {
            s->stats.rx_truncated++;
            continue;
        }
        if (d.rx_ns == 0) {
            s->stats.rx_unstamped++;
            d.rx_ns = now_tai();
            d.stamp = XDS_DGRAM_CALL;
        }
        s->stats.rx_bytes += d.len;
        out[n++] = d;
    }
    o->used += (uint32_t)got;
    s->stats.rx_datagrams += n;
    *took = (unsigned)got;
    return (int)n;
}

/* Everything that one socket has, up to cap. */
static int drain(struct xds_sock *s, struct one *o, struct xds_dgram *out, unsigned cap)
{
    unsigned n = 0, took;

    do {
        unsigned room = s->slots - o->used, want = cap - n < room ? cap - n : room;
        if (want == 0)
            break;
        int r = burst(s, o, out + n, want, &took);
        if (r < 0)
            return n ? (int)n : r;
        n += (unsigned)r;
    } while (took == BURST);
    return (int)n;
}

/* Read ahead of what is delivered, one burst. Returns datagrams, 0 none (or no slot left), -errno. */
static int refill(struct xds_sock *s, struct one *o)
{
    unsigned room = s->slots - o->used, want = room < BURST ? room : BURST, took = 0;

    o->held = o->next = 0;
    if (want == 0)
        return 0;
    int r = burst(s, o, o->ahead, want, &took);
    if (took < want)
        s->ready &= ~(1ull << o->index);
    o->held = r > 0 ? (unsigned)r : 0;
    return r;
}

/* The socket whose next datagram was received first; NULL: none has any, or *rc tells the error. */
static struct one *earliest(struct xds_sock *s, int *rc)
{
    struct one *first = NULL;

    for (unsigned i = 0; i < s->count; i++) {
        struct one *o = &s->one[i];
        while (o->next == o->held && (s->ready >> i & 1)) {
            if (o->used == s->slots)
                return NULL; /* it may have an earlier one, and there is no room to look */
            if ((*rc = refill(s, o)) < 0)
                return NULL;
        }
        if (o->next < o->held && (!first || o->ahead[o->next].rx_ns < first->ahead[first->next].rx_ns))
            first = o;
    }
    return first;
}

static int merge(struct xds_sock *s, struct xds_dgram *out, unsigned cap)
{
    struct epoll_event ready[XDS_SOCK_MAX];
    struct one *o;
    unsigned n = 0;
    int rc = 0;

    int count = epoll_wait(s->epoll, ready, XDS_SOCK_MAX, 0);
    if (count < 0 && errno != EINTR)
        return -errno;
    for (int i = 0; i < count; i++)
        s->ready |= 1ull << ready[i].data.u32;
    while (n < cap && (o = earliest(s, &rc)))
        out[n++] = o->ahead[o->next++];
    return n || rc >= 0 ? (int)n : rc;
}

int64_t xds_sock_stream_stamp(int fd)
{
    char control[CONTROL_BYTES] __attribute__((aligned(8)));
    char byte;
    struct iovec room = {.iov_base = &byte, .iov_len = 1};
    struct msghdr h = {
        .msg_iov = &room, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(fd, &h, MSG_PEEK | MSG_DONTWAIT) <= 0)
        return 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPNS)
            continue;
        struct timespec t;
        memcpy(&t, CMSG_DATA(c), sizeof t);
        return t.tv_sec * NS + t.tv_nsec + tai_offset();
    }
    return 0;
}

int xds_sock_rx(struct xds_sock *s, struct xds_dgram *out, unsigned cap, int64_t now_ns)
{
    if (s->closed)
        return -EBADF;
    if (now_ns - s->tai_checked > NS || now_ns < s->tai_checked) {
        s->tai_ns = tai_offset();
        s->tai_checked = now_ns;
    }
    int n = s->count == 1 ? drain(s, &s->one[0], out, cap) : merge(s, out, cap);
    s->stats.rx_polls++;
    s->stats.rx_polls_empty += n <= 0;
    return n;
}

void xds_sock_set_nic_clock(struct xds_sock *s, const struct xds_clock_face *face, uint32_t ifindex)
{
    s->nic_clock = face;
    s->nic_ifindex = ifindex;
}

void xds_sock_release(struct xds_sock *s)
{
    for (unsigned i = 0; i < s->count; i++)
        if (s->one[i].next == s->one[i].held)
            s->one[i].used = 0;
}

/* One answer of the error queue. 1 filled, 0 it was no stamp or could not be mapped. */
static int sent_stamp(struct xds_sock *s, const struct one *o, struct msghdr *h,
                      struct xds_sock_tx_stamp *out)
{
    struct scm_timestamping stamps = {0};
    struct sock_extended_err error = {0};

    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING)
            memcpy(&stamps, CMSG_DATA(c), sizeof(stamps));
        else if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) ||
                 (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR))
            memcpy(&error, CMSG_DATA(c), sizeof(error));
    }
    if (error.ee_origin != SO_EE_ORIGIN_TIMESTAMPING)
        return 0;
    const int64_t kernels = ns_of(&stamps.ts[0]), nics = ns_of(&stamps.ts[2]);
    const int64_t ns = nics      ? xdsi_nic_time(s->nic_clock, nics, now_tai())
                       : kernels ? kernels + s->tai_ns
                                 : 0;
    *out = (struct xds_sock_tx_stamp){.ns = ns,
                                      .number = error.ee_data,
                                      .index = o->index,
                                      .stamp = nics ? XDS_DGRAM_NIC : XDS_DGRAM_KERNEL};
    s->stats.tx_nic_refused += nics && !ns;
    return ns != 0;
}

int xds_sock_tx_stamps(struct xds_sock *s, struct xds_sock_tx_stamp *out, unsigned cap)
{
    unsigned n = 0;

    if (s->closed)
        return -EBADF;
    for (unsigned i = 0; i < s->count; i++) {
        while (n < cap) {
            uint8_t control[2 * CONTROL_BYTES] __attribute__((aligned(8)));
            struct msghdr h = {.msg_control = control, .msg_controllen = sizeof(control)};
            if (recvmsg(s->one[i].fd, &h, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
                if (errno == EAGAIN || errno == EINTR)
                    break;
                return n ? (int)n : -errno;
            }
            n += (unsigned)sent_stamp(s, &s->one[i], &h, &out[n]);
        }
    }
    return (int)n;
}

static int send_to(struct xds_sock *s, unsigned index, const void *to, socklen_t bytes, const uint8_t *data,
                   uint32_t len)
{
    if (s->closed || index >= s->count)
        return -EBADF;
    ssize_t n = sendto(s->one[index].fd, data, len, MSG_DONTWAIT, to, bytes);
    if (n < 0) {
        s->stats.tx_refused++;
        return -errno;
    }
    s->stats.tx_datagrams++;
    s->stats.tx_bytes += (uint64_t)n;
    return (int)n;
}

int xds_sock_send(struct xds_sock *s, unsigned index, uint32_t dst, uint16_t dport, const uint8_t *data,
                  uint32_t len)
{
    const struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = dst, .sin_port = htons(dport)};
    return send_to(s, index, &to, sizeof(to), data, len);
}

int xds_sock_send6(struct xds_sock *s, unsigned index, const uint8_t dst[16], uint16_t dport,
                   const uint8_t *data, uint32_t len)
{
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(dport)};

    memcpy(&to.sin6_addr, dst, 16);
    if (index < s->count)
        to.sin6_scope_id = s->one[index].scope; /* of no meaning but where it is link-local */
    return send_to(s, index, &to, sizeof(to), data, len);
}

int xds_sock_is_six(const struct xds_sock *s, unsigned index)
{
    return index < s->count && s->one[index].six;
}

int xds_sock_fd(const struct xds_sock *s)
{
    return s->closed ? -1 : s->epoll;
}

int xds_sock_port(const struct xds_sock *s, unsigned index)
{
    return s->closed || index >= s->count ? -1 : s->one[index].port;
}

void xds_sock_stats(const struct xds_sock *s, struct xds_sock_stats *out)
{
    *out = s->stats;
}

void xds_sock_close(struct xds_sock *s)
{
    if (s->closed)
        return;
    for (unsigned i = 0; i < s->count; i++)
        if (s->one[i].fd >= 0)
            close(s->one[i].fd);
    if (s->epoll >= 0)
        close(s->epoll);
    s->closed = true;
}
