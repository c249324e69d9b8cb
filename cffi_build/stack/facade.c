/* facade.c: sockets over a stack: set-up, frames, descriptors, and the calls that are the same for TCP and UDP. */
#include "facade_int.h"

static size_t round_up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static struct xds_socks_config with_defaults(const struct xds_socks_config *cfg)
{
    struct xds_socks_config c = *cfg;

    c.sockets = c.sockets ? c.sockets : 64;
    c.datagram = c.datagram ? c.datagram : 8;
    c.receive_bytes = c.receive_bytes ? c.receive_bytes : 65536;
    c.send_bytes = c.send_bytes ? c.send_bytes : 65536;
    c.scope = c.scope ? c.scope : 1;
    return c;
}

size_t xds_socks_size(const struct xds_socks_config *cfg, const struct xds_stack *stack)
{
    const struct xds_socks_config c = with_defaults(cfg);
    const uint32_t least = sizeof(struct xdsi_letter);

    if (!stack || c.sockets > XDSI_PLACES_MAX || c.datagram > c.sockets || c.receive_bytes < least ||
        c.send_bytes < least || c.receive_bytes > 1u << 30 || c.send_bytes > 1u << 30)
        return 0;
    return round_up(sizeof(struct xds_socks)) + round_up(c.sockets * sizeof(struct xdsi_sock)) +
           round_up(stack->cfg.connections * sizeof(uint32_t)) +
           round_up(c.datagram * sizeof(struct xdsi_mail)) + c.datagram * round_up(c.receive_bytes) +
           round_up(c.send_bytes) + round_up(c.datagram * XDSI_MEMBERS * sizeof(struct xdsi_member));
}

static void *carve(uint8_t **at, size_t bytes)
{
    void *here = *at;
    *at += round_up(bytes);
    return here;
}

int xds_socks_init(void *mem, const struct xds_socks_config *cfg, struct xds_stack *stack,
                   struct xds_host *host)
{
    struct xds_socks *n = mem;
    uint8_t *at = mem;

    if (!host || !xds_socks_size(cfg, stack))
        return XDS_ECONFIG;
    carve(&at, sizeof *n);
    memset(n, 0, sizeof *n);
    n->cfg = with_defaults(cfg);
    n->stack = stack;
    n->host = host;
    n->socks = carve(&at, n->cfg.sockets * sizeof *n->socks);
    n->owner = carve(&at, stack->cfg.connections * sizeof *n->owner);
    n->mails = carve(&at, n->cfg.datagram * sizeof *n->mails);
    memset(n->socks, 0, n->cfg.sockets * sizeof *n->socks);
    memset(n->owner, 0, stack->cfg.connections * sizeof *n->owner);
    for (uint32_t i = 0; i < n->cfg.datagram; i++)
        n->mails[i] =
            (struct xdsi_mail){.bytes = carve(&at, n->cfg.receive_bytes), .cap = n->cfg.receive_bytes};
    n->out = (struct xdsi_mail){.bytes = carve(&at, n->cfg.send_bytes), .cap = n->cfg.send_bytes};
    n->member_count = n->cfg.datagram * XDSI_MEMBERS;
    n->members = carve(&at, n->member_count * sizeof *n->members);
    for (uint32_t i = n->member_count; i--; n->members_free = i + 1)
        n->members[i] = (struct xdsi_member){.next = n->members_free};
    return 0;
}

/* ---- frames and time ----------------------------------------------------------------------------- */

int xds_socks_frame(struct xds_socks *n, const struct xds_frame *f, int64_t now)
{
    struct xds_dgram d;

    n->now = now;
    int code = xds_stack_frame(n->stack, f, &d, now);
    if (code == 1) {
        code = xdsi_dgram_take(n, f, &d);
    } else if (code == XDS_INPUT_DATAGRAM) {
        code = xdsi_dgram_take6(n, f, xds_host_dgram6(n->host));
    } else if (code == XDS_INPUT_ERROR) {
        xdsi_dgram_error(n, xds_host_error(n->host));
        code = 0;
    }
    xdsi_stream_news(n);
    return code;
}

int xds_socks_output(struct xds_socks *n, struct xds_frame *room, int64_t now)
{
    const uint32_t whole = room->len;

    n->now = now;
    int len = xdsi_dgram_output(n, room);
    if (len <= 0) {
        room->len = whole;
        len = xds_stack_output(n->stack, room, now);
    }
    xdsi_stream_news(n);
    return len;
}

int64_t xds_socks_deadline(const struct xds_socks *n)
{
    return xds_stack_deadline(n->stack);
}

void xds_socks_tick(struct xds_socks *n, int64_t now)
{
    n->now = now;
    xds_stack_tick(n->stack, now);
    xdsi_stream_news(n);
}

void xds_socks_stats(const struct xds_socks *n, struct xds_socks_stats *out)
{
    *out = n->stats;
}

/* ---- descriptors --------------------------------------------------------------------------------- */

struct xdsi_sock *xdsi_sock_of(const struct xds_socks *n, int fd)
{
    return fd < 0 || (uint32_t)fd >= n->cfg.sockets || !n->socks[fd].kind ? NULL : &n->socks[fd];
}

static struct xdsi_mail *mailbox(struct xds_socks *n)
{
    for (uint32_t i = 0; i < n->cfg.datagram; i++) {
        bool used = false;
        for (uint32_t k = 0; k < n->cfg.sockets; k++)
            used |= n->socks[k].kind == SOCK_DGRAM && n->socks[k].mail == &n->mails[i];
        if (!used) {
            n->mails[i].first = n->mails[i].used = 0;
            return &n->mails[i];
        }
    }
    return NULL;
}

int xdsi_sock_new(struct xds_socks *n, uint8_t kind, bool six)
{
    uint32_t fd = 0;

    while (fd < n->cfg.sockets && n->socks[fd].kind)
        fd++;
    if (fd == n->cfg.sockets)
        return -EMFILE;
    struct xdsi_mail *mail = kind == SOCK_DGRAM ? mailbox(n) : NULL;
    if (kind == SOCK_DGRAM && !mail)
        return -ENOBUFS;
    n->socks[fd] = (struct xdsi_sock){.kind = kind,
                                      .six = six,
                                      .mail = mail,
                                      .ttl = -1,
                                      .hops = -1,
                                      .many_ttl = -1,
                                      .many_hops = -1,
                                      .discover = IP_PMTUDISC_WANT,
                                      .discover6 = IPV6_PMTUDISC_WANT,
                                      .not_all4 = six}; /* as inet6_create() has it */
    if (kind == SOCK_STREAM)
        xds_stack_defaults(n->stack, &n->socks[fd].how);
    return (int)fd;
}

int xds_socket(struct xds_socks *n, int domain, int type, int protocol)
{
    const int kind = type & 15; /* the rest are flags */

    if (type & ~(15 | SOCK_NONBLOCK | SOCK_CLOEXEC))
        return -EINVAL;
    if (domain < 0 || domain >= AF_MAX)
        return -EAFNOSUPPORT;
    if (kind > SOCK_PACKET)
        return -EINVAL;
    if (domain != AF_INET && domain != AF_INET6)
        return -EAFNOSUPPORT;
    if (protocol < 0 || protocol > 255)
        return -EINVAL;
    if (kind != SOCK_STREAM && kind != SOCK_DGRAM)
        return -ESOCKTNOSUPPORT;
    if (protocol && protocol != (kind == SOCK_STREAM ? IPPROTO_TCP : IPPROTO_UDP))
        return -EPROTONOSUPPORT;
    return xdsi_sock_new(n, (uint8_t)kind, domain == AF_INET6);
}

static bool in_use(const struct xds_socks *n, const struct xdsi_sock *s)
{
    return s->local.port || (s->kind == SOCK_STREAM && xdsi_sock_state(n, s) != XDS_TCP_CLOSED);
}

static bool is_own(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *name)
{
    if (xdsi_name_any(name) || (s->kind == SOCK_DGRAM && xdsi_name_group(name)))
        return true;
    return xdsi_host_own(n->host, xdsi_addr_of(name->ip)) != NULL;
}

static int may_bind4(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *name)
{
    if (!is_own(n, s, name))
        return -EADDRNOTAVAIL;
    return in_use(n, s) ? -EINVAL : 0;
}

/* As __inet6_bind(), which asks in another order. */
static int may_bind6(const struct xds_socks *n, struct xdsi_sock *s, const struct xdsi_name *name)
{
    const bool four = xdsi_addr_is4(xdsi_addr_of(name->ip));

    if ((!four && s->kind == SOCK_STREAM && xdsi_name_group(name)) || in_use(n, s) || (four && s->only6))
        return -EINVAL;
    const int code = xdsi_name_scope(n, s, name, -ENODEV);
    return code ? code : is_own(n, s, name) ? 0 : -EADDRNOTAVAIL;
}

int xds_bind(struct xds_socks *n, int fd, const void *address, uint32_t len)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);
    struct xdsi_name name;

    if (!s)
        return -EBADF;
    int code = xdsi_name_in(s, address, len, false, &name);
    if (!code)
        code = s->six ? may_bind6(n, s, &name) : may_bind4(n, s, &name);
    if (code)
        return code;
    const bool asked = name.port != 0;
    if (asked)
        code = xdsi_name_taken(n, s, &name) ? -EADDRINUSE : 0;
    else if (!s->late_port)
        code = xdsi_name_port(n, s, &name);
    if (code)
        return code;
    s->local = name;
    s->bound = !xdsi_name_any(&name);
    s->bound_port = asked;
    return 0;
}

int xds_connect(struct xds_socks *n, int fd, const void *address, uint32_t len)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);

    if (!s)
        return -EBADF;
    if (!address || len < sizeof(sa_family_t))
        return -EINVAL;
    return s->kind == SOCK_STREAM ? xdsi_stream_connect(n, s, address, len)
                                  : xdsi_dgram_connect(n, s, address, len);
}

int xds_read(struct xds_socks *n, int fd, void *data, uint32_t room)
{
    if (!room && xdsi_sock_of(n, fd))
        return 0;
    return xds_recvfrom(n, fd, data, room, 0, NULL, NULL);
}

int xds_write(struct xds_socks *n, int fd, const void *data, uint32_t len)
{
    return xds_sendto(n, fd, data, len, 0, NULL, 0);
}

int xds_shutdown(struct xds_socks *n, int fd, int how)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);

    if (!s)
        return -EBADF;
    if (how < SHUT_RD || how > SHUT_RDWR)
        return -EINVAL;
    const uint8_t bits = (uint8_t)(how + 1); /* as in Linux: 1 reading, 2 writing */
    if (s->kind == SOCK_STREAM)
        return xdsi_stream_shutdown(n, s, bits);
    s->shut |= bits;
    return s->connected ? 0 : -ENOTCONN;
}

int xds_close(struct xds_socks *n, int fd)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);

    if (!s)
        return -EBADF;
    if (s->kind == SOCK_STREAM)
        xdsi_stream_drop(n, s);
    xdsi_groups_leave(n, s);
    s->kind = 0;
    s->local.port = 0;
    return 0;
}

int xds_poll(struct xds_socks *n, struct pollfd *fds, uint32_t count)
{
    int found = 0;

    for (uint32_t i = 0; i < count; i++) {
        struct xdsi_sock *s = xdsi_sock_of(n, fds[i].fd);
        fds[i].revents = 0;
        if (fds[i].fd < 0)
            continue;
        if (!s)
            fds[i].revents = POLLNVAL;
        else
            fds[i].revents =
                (short)((fds[i].events | POLLERR | POLLHUP) &
                        (s->kind == SOCK_STREAM ? xdsi_stream_poll(n, s) : xdsi_dgram_poll(n, s)));
        found += fds[i].revents != 0;
    }
    return found;
}

int xds_getsockname(struct xds_socks *n, int fd, void *address, uint32_t *len)
{
    const struct xdsi_sock *s = xdsi_sock_of(n, fd);
    return s ? xdsi_name_out(n, s, &s->local, address, len) : -EBADF;
}

int xds_getpeername(struct xds_socks *n, int fd, void *address, uint32_t *len)
{
    const struct xdsi_sock *s = xdsi_sock_of(n, fd);

    if (!s)
        return -EBADF;
    const uint32_t state = s->kind == SOCK_STREAM ? xdsi_sock_state(n, s) : XDS_TCP_ESTABLISHED;
    if (!s->peer.port || state == XDS_TCP_CLOSED || state == XDS_TCP_SYN_SENT)
        return -ENOTCONN;
    return xdsi_name_out(n, s, &s->peer, address, len);
}

int xds_socks_connection(const struct xds_socks *n, int fd)
{
    const struct xdsi_sock *s = xdsi_sock_of(n, fd);

    if (!s)
        return -EBADF;
    return s->kind == SOCK_STREAM && s->id && !s->listening ? s->id : -ENOTCONN;
}
