/* facade_dgram.c: UDP sockets: what waits to be read or to leave, whom a datagram is for, and ICMP's answers. */
#include "facade_int.h"

/* ---- letters that wait --------------------------------------------------------------------------- */

static void copy_in(struct xdsi_mail *m, const void *data, uint32_t len)
{
    const uint32_t at = (m->first + m->used) % m->cap, first = len < m->cap - at ? len : m->cap - at;

    if (first)
        memcpy(m->bytes + at, data, first);
    if (first < len)
        memcpy(m->bytes, (const uint8_t *)data + first, len - first);
    m->used += len;
}

/* take bytes off the front, of which room at most are wanted. */
static void copy_out(struct xdsi_mail *m, void *data, uint32_t room, uint32_t take)
{
    const uint32_t len = take < room ? take : room;
    const uint32_t first = len < m->cap - m->first ? len : m->cap - m->first;

    if (first)
        memcpy(data, m->bytes + m->first, first);
    if (first < len)
        memcpy((uint8_t *)data + first, m->bytes, len - first);
    m->first = (uint32_t)(((uint64_t)m->first + take) % m->cap);
    m->used -= take;
}

bool xdsi_mail_put(struct xdsi_mail *m, const struct xdsi_letter *letter, const void *data)
{
    if (m->cap - m->used < sizeof *letter || m->cap - m->used - sizeof *letter < letter->len)
        return false;
    copy_in(m, letter, sizeof *letter);
    copy_in(m, data, letter->len);
    return true;
}

bool xdsi_mail_get(struct xdsi_mail *m, struct xdsi_letter *letter, void *data, uint32_t room)
{
    if (!m->used)
        return false;
    copy_out(m, letter, sizeof *letter, sizeof *letter);
    copy_out(m, data, room, letter->len);
    return true;
}

/* ---- in ------------------------------------------------------------------------------------------ */

static bool same(const struct xdsi_name *a, const struct xdsi_name *b)
{
    return a->port == b->port && !memcmp(a->ip, b->ip, 16);
}

/* How well it fits; 0: not at all. */
static int fits(const struct xdsi_sock *s, const struct xdsi_name *from, const struct xdsi_name *to)
{
    const uint32_t family = xdsi_addr_is4(xdsi_addr_of(to->ip)) ? XDS_STACK_IP4 : XDS_STACK_IP6;

    if (s->kind != SOCK_DGRAM || s->local.port != to->port || !(xdsi_name_families(s, &s->local) & family) ||
        (!xdsi_name_any(&s->local) && memcmp(s->local.ip, to->ip, 16)))
        return 0;
    if (s->connected && !same(&s->peer, from))
        return 0;
    return 1 + 2 * s->connected + !xdsi_name_any(&s->local);
}

static int give(struct xds_socks *n, struct xdsi_sock *s, const struct xdsi_letter *letter,
                const uint8_t *data)
{
    if (!xdsi_mail_put(s->mail, letter, data)) {
        n->stats.datagrams_full++;
        return XDS_ECAPACITY;
    }
    n->stats.datagrams++;
    return 0;
}

/* To the one that fits best; what goes to a group, to each that fits. */
static int deliver(struct xds_socks *n, const struct xds_frame *f, const struct xdsi_letter *letter,
                   const uint8_t *data)
{
    struct xdsi_sock *best = NULL;
    int most = 0, code = XDS_EFOREIGN;

    const bool many = xdsi_name_group(&letter->here);
    for (uint32_t i = 0; i < n->cfg.sockets; i++) {
        struct xdsi_sock *s = &n->socks[i];
        const int how = fits(s, &letter->there, &letter->here);
        if (how && many && !xdsi_group_allows(n, s, &letter->here, &letter->there))
            continue;
        if (how && many)
            code = give(n, s, letter, data);
        if (how > most) {
            most = how;
            best = s;
        }
    }
    if (best && !many)
        return give(n, best, letter, data);
    if (!best) {
        n->stats.datagrams_nobody++;
        xds_host_unreachable(n->host, f, 3, n->now);
    }
    return code;
}

int xdsi_dgram_take(struct xds_socks *n, const struct xds_frame *f, const struct xds_dgram *d)
{
    struct xdsi_letter letter = {.there.port = d->sport,
                                 .here.port = d->dport,
                                 .len = d->len,
                                 .tos = n->host->udp4[1],
                                 .ttl = n->host->udp4[8]};

    xdsi_map4(letter.there.ip, d->src);
    xdsi_map4(letter.here.ip, d->dst);
    return deliver(n, f, &letter, d->data);
}

int xdsi_dgram_take6(struct xds_socks *n, const struct xds_frame *f, const struct xds_dgram6 *d)
{
    struct xdsi_letter letter = {
        .there.port = d->sport, .here.port = d->dport, .len = d->len, .tos = d->tos, .ttl = d->hops};

    memcpy(letter.there.ip, d->src, 16);
    memcpy(letter.here.ip, d->dst, 16);
    return deliver(n, f, &letter, d->data);
}

/* What Linux tells a connected socket, as its icmp_err_convert[] and icmpv6_err_convert() have it; 0: nothing. */
static int error_of(const struct xds_host_error *e)
{
    static const int unreachable[16] = {
        [2] = ENOPROTOOPT, [3] = ECONNREFUSED,  [6] = ENETUNREACH,   [7] = EHOSTDOWN,     [8] = ENONET,
        [9] = ENETUNREACH, [10] = EHOSTUNREACH, [13] = EHOSTUNREACH, [14] = EHOSTUNREACH, [15] = EHOSTUNREACH,
    };
    static const int unreachable6[7] = {[1] = EACCES, [4] = ECONNREFUSED, [5] = EACCES, [6] = EACCES};

    if (e->mtu)
        return EMSGSIZE;
    if (xdsi_is_ip4(e->dst))
        return e->type == 12 ? EPROTO : e->type == 3 && e->code < 16 ? unreachable[e->code] : 0;
    if (e->type == XDSI_ICMP6_PARAMETER)
        return EPROTO;
    return e->type == XDSI_ICMP6_UNREACHABLE && e->code < 7 ? unreachable6[e->code] : 0;
}

void xdsi_dgram_error(struct xds_socks *n, const struct xds_host_error *e)
{
    struct xdsi_name here = {.port = e->sport}, there = {.port = e->dport};

    memcpy(here.ip, e->src, 16);
    memcpy(there.ip, e->dst, 16);
    const int error = error_of(e);
    for (uint32_t i = 0; error && i < n->cfg.sockets; i++) {
        struct xdsi_sock *s = &n->socks[i];
        if (!s->connected || !fits(s, &there, &here))
            continue;
        s->error = error;
        n->stats.errors++;
        if (e->mtu) /* it names a flow of ours */
            xds_host_path_learn(n->host, e->dst, e->mtu, n->now);
    }
}

int xdsi_dgram_read(struct xdsi_sock *s, void *data, uint32_t room, bool peek, struct xdsi_letter *letter)
{
    struct xdsi_mail look = *s->mail;

    if (s->error)
        return xdsi_sock_error(s);
    if (!xdsi_mail_get(peek ? &look : s->mail, letter, data, room))
        return -EAGAIN;
    return (int)(letter->len < room ? letter->len : room);
}

/* ---- out ----------------------------------------------------------------------------------------- */

static int whom(const struct xdsi_sock *s, const void *address, uint32_t len, struct xdsi_name *to)
{
    int code = xdsi_name_in(s, address, len, true, to);

    if (s->six && code == -EAFNOSUPPORT)
        code = -EINVAL; /* as udpv6_sendmsg() */
    if (!code && s->only6 && xdsi_is_ip4(to->ip))
        code = -ENETUNREACH;
    return code ? code : to->port ? 0 : -EINVAL;
}

/* Another link than ours leads nowhere; who asked for it decides how that is said. */
static int by_link(const struct xds_socks *n, const struct xdsi_sock *s, bool four,
                   const struct xdsi_words *words)
{
    const uint32_t link = words->link ? words->link : four ? 0 : s->sticky;

    if (four && words->from && !xdsi_name_any(&words->here) &&
        !xdsi_host_own(n->host, xdsi_addr_of(words->here.ip)))
        return -ENETUNREACH;
    if (!link || link == n->cfg.scope)
        return 0;
    return words->link ? -ENODEV : -ENETUNREACH;
}

/* IP_MULTICAST_IF's, as udp_sendmsg() has it, for a group of IPv4: whether there is one. */
static bool by_interface(const struct xdsi_sock *s, const struct xdsi_name *to, struct xdsi_name *here)
{
    if (!s->many_from || !xdsi_is_ip4(to->ip) || !xdsi_is_multicast(xdsi_raw32(to->ip + 12)))
        return false;
    xdsi_map4(here->ip, s->many_from);
    return true;
}

/* The own end, chosen where neither bind() nor the message did: 0, -errno. */
static int from(struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *to,
                const struct xdsi_words *words, struct xdsi_name *here)
{
    if (xdsi_is_ip4(to->ip) && xdsi_raw32(to->ip + 12) == 0xffffffff)
        return s->broadcast ? -ENETUNREACH : -EACCES; /* the host sends to one, or to a group */
    int code = xdsi_name_crosses(s, to);
    if (!code)
        code = by_link(n, s, xdsi_is_ip4(to->ip), words);
    *here = s->local;
    if (words->from)
        memcpy(here->ip, words->here.ip, 16);
    if (code || (!xdsi_name_any(here) && !xdsi_name_group(here)))
        return code;
    if (by_interface(s, to, here))
        return xdsi_host_is_own(n->host, s->many_from) ? 0 : -ENETUNREACH;
    return xdsi_name_source(n, to, here->ip);
}

int xdsi_dgram_connect(struct xds_socks *n, struct xdsi_sock *s, const void *address, uint32_t len)
{
    struct xdsi_name to, here;
    sa_family_t family;

    memcpy(&family, address, sizeof family);
    if (family == AF_UNSPEC) {
        s->connected = false;
        s->peer = (struct xdsi_name){.port = 0};
        if (!s->bound)
            memset(s->local.ip, 0, 16);
        if (!s->bound_port)
            s->local.port = 0;
        return 0;
    }
    if (xdsi_name_choose(n, s))
        return -EAGAIN;
    int code = xdsi_name_in(s, address, len, true, &to);
    if (!code && s->only6 && xdsi_is_ip4(to.ip))
        code = family == AF_INET ? -EAFNOSUPPORT : -ENETUNREACH;
    if (!code)
        code = xdsi_name_scope(n, s, &to, s->scoped ? -EINVAL : -ENETUNREACH);
    if (!code)
        code = from(n, s, &to, &(struct xdsi_words){.tos = -1}, &here);
    if (code)
        return code;
    if (xdsi_name_any(&s->local))
        s->local = here;
    s->peer = to;
    s->connected = true;
    return 0;
}

/* What goes to a group of ours comes to its members here, too. */
static void come_back(struct xds_socks *n, const struct xdsi_letter *sent, const uint8_t *data)
{
    const struct xdsi_letter letter = {.there = sent->here,
                                       .here = sent->there,
                                       .len = sent->len,
                                       .tos = sent->tos,
                                       .ttl = sent->ttl ? sent->ttl : n->host->cfg.multicast_ttl};

    for (uint32_t i = 0; i < n->cfg.sockets; i++) {
        struct xdsi_sock *s = &n->socks[i];
        if (fits(s, &letter.there, &letter.here) && xdsi_group_allows(n, s, &letter.here, &letter.there))
            (void)give(n, s, &letter, data);
    }
}

int xdsi_dgram_send(struct xds_socks *n, struct xdsi_sock *s, const void *data, uint32_t bytes,
                    const void *address, uint32_t len, const struct msghdr *control)
{
    struct xdsi_letter letter = {.there = s->peer, .len = bytes};
    struct xdsi_words words = {.tos = -1, .ttl = -1};

    if (bytes > 0xffff && !s->six)
        return -EMSGSIZE;
    int code = address ? whom(s, address, len, &letter.there) : s->connected ? 0 : -EDESTADDRREQ;
    if (!code)
        code = xdsi_words_of(n, s, control, xdsi_is_ip4(letter.there.ip), &words);
    if (!code && xdsi_name_choose(n, s))
        code = -EAGAIN;
    if (!code)
        code = from(n, s, &letter.there, &words, &letter.here);
    if (code)
        return code;
    if (s->error)
        return xdsi_sock_error(s);
    if (s->shut & XDSI_WRITING)
        return -EPIPE;
    const int mtu = xds_host_path_mtu(n->host, letter.there.ip, n->now);
    const int head = xdsi_is_ip4(letter.there.ip) ? XDSI_IPV4_BYTES : XDSI_IPV6_BYTES;
    if ((int)bytes + head + XDSI_UDP_BYTES > mtu || bytes + sizeof letter > n->out.cap)
        return -EMSGSIZE;
    xdsi_marks(s, &letter);
    letter.tos = words.tos < 0 ? letter.tos : (uint8_t)words.tos;
    letter.ttl = words.ttl < 0 ? letter.ttl : (uint8_t)words.ttl;
    if (!xdsi_mail_put(&n->out, &letter, data))
        return -EAGAIN;
    const bool loops = !(xdsi_is_ip4(letter.there.ip) ? s->no_loop4 : s->no_loop6);
    if (loops && xdsi_name_group(&letter.there) && xdsi_group_heard(n->host, &letter.there))
        come_back(n, &letter, data);
    return (int)bytes;
}

/* From an own address that is not the one that the routes would choose, or marked. */
static int send_as(struct xds_socks *n, struct xds_frame *room, const struct xdsi_letter *l, uint8_t *u)
{
    struct xds_ip_head head = {.protocol = XDSI_IPPROTO_UDP, .checksum_at = 6, .tos = l->tos, .ttl = l->ttl};
    const uint32_t len = XDSI_UDP_BYTES + l->len;

    memcpy(head.src, l->here.ip, 16);
    memcpy(head.dst, l->there.ip, 16);
    xdsi_put16(u, l->here.port);
    xdsi_put16(u + 2, l->there.port);
    xdsi_put16(u + 4, len);
    xdsi_put16(u + 6, 0);
    return xds_host_ip(n->host, room, &head, u, len, n->now);
}

static int send_letter(struct xds_socks *n, struct xds_frame *room, const struct xdsi_letter *l, uint8_t *u)
{
    uint8_t src[16];

    if (l->tos || l->ttl || (!xdsi_name_source(n, &l->there, src) && memcmp(src, l->here.ip, 16)))
        return send_as(n, room, l, u);
    return xds_host_udp6(n->host, room, l->here.port, l->there.ip, l->there.port, u + XDSI_UDP_BYTES, l->len,
                         n->now);
}

int xdsi_dgram_output(struct xds_socks *n, struct xds_frame *room)
{
    uint8_t *u = n->stack->scratch; /* 64 KiB, and nobody's between two calls */
    const uint32_t whole = room->len;
    struct xdsi_letter letter;

    while (xdsi_mail_get(&n->out, &letter, u + XDSI_UDP_BYTES, 65536 - XDSI_UDP_BYTES)) {
        room->len = whole;
        const int len = send_letter(n, room, &letter, u);
        n->stats.sent += len >= 0;
        n->stats.send_lost += len < 0;
        if (len > 0)
            return len;
    }
    return 0;
}

short xdsi_dgram_poll(const struct xds_socks *n, const struct xdsi_sock *s)
{
    int found = 0;

    if (s->error)
        found |= POLLERR;
    if (s->shut & XDSI_READING)
        found |= POLLIN | POLLRDNORM | 0x2000; /* POLLRDHUP */
    if (s->shut == (XDSI_READING | XDSI_WRITING))
        found |= POLLHUP;
    if (s->mail->used)
        found |= POLLIN | POLLRDNORM;
    if (n->out.cap - n->out.used >= n->host->cfg.mtu + sizeof(struct xdsi_letter) || !n->out.used)
        found |= POLLOUT | POLLWRNORM | POLLWRBAND;
    return (short)found;
}
