/* facade_stream.c: TCP sockets: which call gives what, and when, as Linux's inet_stream_connect(), tcp_sendmsg(),
 * tcp_recvmsg(), tcp_poll() and inet_shutdown() do. */
#include "facade_int.h"

/* TCP's state as Linux keeps it for a socket: what is left of it in TIME-WAIT is no longer the socket's. */
uint32_t xdsi_sock_state(const struct xds_socks *n, const struct xdsi_sock *s)
{
    if (s->listening)
        return XDS_TCP_LISTEN;
    const struct xds_tcp *t = s->id ? xds_stack_tcp(n->stack, s->id) : NULL;
    return !t || t->state == XDS_TCP_TIME_WAIT ? XDS_TCP_CLOSED : t->state;
}

static uint32_t *owner_of(struct xds_socks *n, int id)
{
    return &n->owner[(uint32_t)id & (XDSI_PLACES_MAX - 1)];
}

/* ---- what happened ------------------------------------------------------------------------------- */

static void take_event(struct xdsi_sock *s, uint32_t what)
{
    const bool close_wait = s->at_end && !(s->shut & XDSI_WRITING);

    if (what & (XDS_STACK_FIN | XDS_STACK_CLOSED)) {
        s->at_end = true;
        s->shut |= XDSI_READING;
    }
    if (what & XDS_STACK_CLOSED)
        s->shut = XDSI_READING | XDSI_WRITING;
    int error = 0;
    if (what & XDS_STACK_RESET)
        error = close_wait ? EPIPE : ECONNRESET;
    else if (what & XDS_STACK_REFUSED)
        error = ECONNREFUSED;
    else if (what & XDS_STACK_TIMEOUT)
        error = ETIMEDOUT;
    else if (what & XDS_STACK_UNREACHABLE)
        error = EHOSTUNREACH;
    if (error) {
        s->error = error;
        s->shut = XDSI_READING | XDSI_WRITING;
    }
}

/* Listeners are asked when somebody wants to know. */
void xdsi_stream_news(struct xds_socks *n)
{
    struct xds_stack_event e;

    while (xds_stack_event(n->stack, &e)) {
        if (e.what & XDS_STACK_ACCEPTABLE)
            continue;
        const uint32_t owner = *owner_of(n, (int)e.id);
        if (owner && n->socks[owner - 1].id == (int)e.id)
            take_event(&n->socks[owner - 1], e.what);
    }
}

void xdsi_stream_drop(struct xds_socks *n, struct xdsi_sock *s)
{
    if (s->listening) {
        xds_stack_unlisten(n->stack, s->id);
    } else if (s->id) {
        *owner_of(n, s->id) = 0;
        if (s->lingers && !s->linger)
            xds_stack_abort(n->stack, s->id);
        xds_stack_close(n->stack, s->id, n->now);
    }
    s->id = 0;
    s->listening = false;
}

/* As tcp_disconnect(): as new, but for what bind() and options said. */
static void disconnect(struct xds_socks *n, struct xdsi_sock *s)
{
    const uint32_t state = xdsi_sock_state(n, s);
    const bool reset = state == XDS_TCP_SYN_SENT || state == XDS_TCP_SYN_RECEIVED ||
                       state == XDS_TCP_ESTABLISHED || state == XDS_TCP_CLOSE_WAIT ||
                       state == XDS_TCP_FIN_WAIT_1 || state == XDS_TCP_FIN_WAIT_2;

    if (reset)
        xds_stack_abort(n->stack, s->id);
    xdsi_stream_drop(n, s);
    s->error = reset ? ECONNRESET : 0;
    s->shut = 0;
    s->at_end = s->connecting = s->connected = s->dead = false;
    s->peer = (struct xdsi_name){.port = 0};
    if (!s->bound)
        memset(s->local.ip, 0, 16);
    if (!s->bound_port)
        s->local.port = 0;
}

/* ---- opening ------------------------------------------------------------------------------------- */

static int code_of(int code)
{
    switch (code) {
    case XDS_EFOREIGN:
        return -ENETUNREACH;
    case XDS_ECAPACITY:
        return -ENOBUFS;
    case XDSI_EADDRINUSE:
    case XDS_ECONFIG:
    case XDS_ESTATE:
        return -EADDRNOTAVAIL;
    default:
        return code;
    }
}

static int begin(struct xds_socks *n, struct xdsi_sock *s, const struct xdsi_name *to)
{
    struct xds_tcp_config how = s->how;
    struct xds_stack_ends ends;

    memset(how.local, 0, 16);
    if (!xdsi_name_any(&s->local))
        memcpy(how.local, s->local.ip, 16);
    memcpy(how.remote, to->ip, 16);
    how.dscp = (xdsi_is_ip4(to->ip) ? s->tos : s->tclass) >> 2;
    how.local_port = s->local.port;
    how.remote_port = to->port ? to->port : 1;
    const int id = xds_stack_connect(n->stack, &how, n->now);
    if (id < 0)
        return code_of(id);
    if (!to->port) { /* nobody can listen there */
        xds_stack_abort(n->stack, id);
        xds_stack_close(n->stack, id, n->now);
        s->error = ECONNREFUSED;
        s->shut = XDSI_READING | XDSI_WRITING;
        return 0;
    }
    s->id = id;
    const int16_t hops = xdsi_is_ip4(to->ip) ? s->ttl : s->hops;
    xds_stack_set_hops(n->stack, id, hops < 0 ? 0 : (uint8_t)hops);
    *owner_of(n, id) = 1 + (uint32_t)(s - n->socks);
    xds_stack_ends(n->stack, id, &ends);
    memcpy(s->local.ip, ends.local, 16);
    s->local.port = ends.local_port;
    s->peer = *to;
    return 0;
}

/* As tcp_v4_connect() and tcp_v6_connect(). */
static int may_connect(const struct xds_socks *n, struct xdsi_sock *s, const struct xdsi_name *to)
{
    if (xdsi_name_group(to) || xdsi_name_any(to))
        return -ENETUNREACH;
    const int code = xdsi_name_scope(n, s, to, s->scoped ? -EINVAL : -ENETUNREACH);
    return code ? code : xdsi_name_crosses(s, to);
}

int xdsi_stream_connect(struct xds_socks *n, struct xdsi_sock *s, const void *address, uint32_t len)
{
    sa_family_t family;
    struct xdsi_name to;
    int code = -EALREADY;

    memcpy(&family, address, sizeof family);
    if (family == AF_UNSPEC) {
        disconnect(n, s);
        return 0;
    }
    if (s->connected)
        return -EISCONN;
    if (s->dead)
        return -EINVAL;
    if (!s->connecting) {
        if (xdsi_sock_state(n, s) != XDS_TCP_CLOSED)
            return -EISCONN;
        code = xdsi_name_in(s, address, len, false, &to);
        if (!code)
            code = may_connect(n, s, &to);
        if (!code)
            code = begin(n, s, &to);
        if (code)
            return code;
        s->connecting = true;
        return -EINPROGRESS;
    }
    const uint32_t state = xdsi_sock_state(n, s);
    if (state == XDS_TCP_SYN_SENT || state == XDS_TCP_SYN_RECEIVED)
        return code;
    if (state != XDS_TCP_CLOSED) {
        s->connecting = false;
        s->connected = true;
        return 0;
    }
    code = s->error ? xdsi_sock_error(s) : -ECONNABORTED;
    disconnect(n, s);
    return code;
}

int xds_listen(struct xds_socks *n, int fd, int backlog)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);

    if (!s)
        return -EBADF;
    if (s->kind != SOCK_STREAM)
        return -EOPNOTSUPP;
    if (s->connecting || s->connected || s->dead ||
        (!s->listening && xdsi_sock_state(n, s) != XDS_TCP_CLOSED))
        return -EINVAL;
    const uint32_t most = backlog < 0 || backlog > SOMAXCONN ? SOMAXCONN : backlog ? (uint32_t)backlog : 1;
    if (s->listening) {
        xdsi_listener(n->stack, s->id)->backlog = most;
        return 0;
    }
    struct xds_tcp_config how = s->how;
    int code = xdsi_name_choose(n, s);
    if (code)
        return code;
    memset(how.local, 0, 16);
    if (!xdsi_name_any(&s->local))
        memcpy(how.local, s->local.ip, 16);
    how.local_port = s->local.port;
    code = xds_stack_listen_as(n->stack, &how, most, xdsi_name_families(s, &s->local));
    if (code < 0)
        return code == XDSI_EADDRINUSE ? code : code_of(code);
    s->id = code;
    s->listening = true;
    const int16_t hops = s->six ? s->hops : s->ttl;
    xds_stack_set_hops(n->stack, code, hops < 0 ? 0 : (uint8_t)hops);
    return 0;
}

/* All that options said of the listener, and nothing else of it. */
static void inherit(struct xdsi_sock *child, const struct xdsi_sock *s)
{
    *child = *s;
    child->listening = child->at_end = child->connecting = child->dead = false;
    child->connected = child->bound = child->bound_port = true;
    child->groups = child->group_count = 0;
    child->error = child->shut = 0;
    child->local = child->peer = (struct xdsi_name){.port = 0};
}

int xds_accept(struct xds_socks *n, int fd, void *address, uint32_t *len)
{
    struct xdsi_sock *s = xdsi_sock_of(n, fd);
    struct xds_stack_ends ends;

    if (!s)
        return -EBADF;
    if (address && (!len || *len > 0x7fffffff))
        return -EINVAL;
    const int new = xdsi_sock_new(n, SOCK_STREAM, s->six);
    if (new < 0)
        return new;
    struct xdsi_sock *child = &n->socks[new];
    const int id = s->kind != SOCK_STREAM ? -EOPNOTSUPP
                   : !s->listening        ? -EINVAL
                                          : xds_stack_accept(n->stack, s->id);
    if (id <= 0) {
        child->kind = 0;
        return id ? id : -EAGAIN;
    }
    inherit(child, s);
    child->id = id;
    xds_stack_ends(n->stack, id, &ends);
    memcpy(child->local.ip, ends.local, 16);
    memcpy(child->peer.ip, ends.remote, 16);
    child->local.port = ends.local_port;
    child->peer.port = ends.remote_port;
    *owner_of(n, id) = 1 + (uint32_t) new;
    if (s->six && xdsi_is_ip4(child->peer.ip)) { /* the listener's mark and hop limit were IPv6's */
        xds_stack_set(n->stack, id, XDS_TCP_SET_DSCP, s->tos >> 2, n->now);
        xds_stack_set_hops(n->stack, id, s->ttl < 0 ? 0 : (uint8_t)s->ttl);
    }
    xdsi_stream_news(n);
    xdsi_name_out(n, child, &child->peer, address, len);
    return new;
}

/* ---- bytes --------------------------------------------------------------------------------------- */

/* What is there, round the end of its ring too. */
static int look(const struct xds_socks *n, const struct xdsi_sock *s, uint8_t *data, uint32_t room)
{
    struct xds_tcp *t = xds_stack_tcp(n->stack, s->id);
    const uint8_t *bytes;
    struct xds_tcp_info info;

    const int got = t ? xds_tcp_peek(t, &bytes) : 0;
    if (got <= 0)
        return got;
    const uint32_t first = (uint32_t)got < room ? (uint32_t)got : room;
    memcpy(data, bytes, first);
    xds_tcp_info(t, &info);
    const uint64_t left = xdsi_min64((int64_t)info.unread - first, room - first);
    memcpy(data + first, t->rx, left);
    return (int)(first + left);
}

int xdsi_stream_read(struct xds_socks *n, struct xdsi_sock *s, void *data, uint32_t room, bool peek)
{
    const uint32_t state = xdsi_sock_state(n, s);

    if (state == XDS_TCP_LISTEN)
        return -ENOTCONN;
    const int got = !s->id ? 0 : peek ? look(n, s, data, room) : xds_stack_read(n->stack, s->id, data, room);
    if (got > 0)
        return got;
    if (s->at_end)
        return 0;
    if (s->error)
        return xdsi_sock_error(s);
    if (s->shut & XDSI_READING)
        return 0;
    return state == XDS_TCP_CLOSED ? -ENOTCONN : -EAGAIN;
}

int xdsi_stream_write(struct xds_socks *n, struct xdsi_sock *s, const void *data, uint32_t len)
{
    const uint32_t state = xdsi_sock_state(n, s);

    if (s->error)
        return xdsi_sock_error(s);
    if (state == XDS_TCP_SYN_SENT || state == XDS_TCP_SYN_RECEIVED)
        return -EAGAIN;
    if ((state != XDS_TCP_ESTABLISHED && state != XDS_TCP_CLOSE_WAIT) || s->shut & XDSI_WRITING)
        return -EPIPE;
    if (!len)
        return 0;
    const int done = xds_stack_write(n->stack, s->id, data, len);
    return done > 0 ? done : done ? -EPIPE : -EAGAIN;
}

int xdsi_stream_shutdown(struct xds_socks *n, struct xdsi_sock *s, uint8_t how)
{
    const uint32_t state = xdsi_sock_state(n, s);

    if (s->connecting && state != XDS_TCP_SYN_SENT) {
        s->connecting = false;
        s->connected = state != XDS_TCP_CLOSED;
        s->dead = !s->connected;
    }
    if (state == XDS_TCP_SYN_SENT || (state == XDS_TCP_LISTEN && how & XDSI_READING)) {
        disconnect(n, s);
        return 0;
    }
    if (state == XDS_TCP_LISTEN)
        return 0;
    s->shut |= how;
    if (state == XDS_TCP_CLOSED)
        return -ENOTCONN;
    if (how & XDSI_WRITING)
        xds_stack_shutdown(n->stack, s->id); /* twice is calm */
    return 0;
}

/* ---- poll ---------------------------------------------------------------------------------------- */

static bool has_room(const struct xds_tcp *t)
{
    const uint32_t size = t->cfg.send_bytes, used = (uint32_t)(t->snd_end - xdsi_max64(t->snd_una, 1));
    return size - used >= used / 2; /* as __sk_stream_is_writeable() */
}

short xdsi_stream_poll(struct xds_socks *n, struct xdsi_sock *s)
{
    const uint32_t state = xdsi_sock_state(n, s);
    struct xds_tcp *t = s->id && !s->listening ? xds_stack_tcp(n->stack, s->id) : NULL;
    const uint8_t *bytes;
    int found = 0;

    if (state == XDS_TCP_LISTEN)
        return xdsi_listener(n->stack, s->id)->first == XDSI_NOWHERE ? 0 : POLLIN | POLLRDNORM;
    if (state == XDS_TCP_CLOSED || s->shut == (XDSI_READING | XDSI_WRITING))
        found |= POLLHUP;
    if (s->shut & XDSI_READING)
        found |= POLLIN | POLLRDNORM | 0x2000; /* POLLRDHUP, which <poll.h> keeps for _GNU_SOURCE */
    if (state != XDS_TCP_SYN_SENT && state != XDS_TCP_SYN_RECEIVED) {
        if (t && xds_tcp_peek(t, &bytes) > 0)
            found |= POLLIN | POLLRDNORM;
        if (s->shut & XDSI_WRITING || !t || has_room(t))
            found |= POLLOUT | POLLWRNORM;
    }
    if (s->error)
        found |= POLLERR;
    return (short)found;
}
