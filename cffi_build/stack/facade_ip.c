/* facade_ip.c: getsockopt() and setsockopt() of IPPROTO_IP and IPPROTO_IPV6, and the groups that sockets are in. */
#include "facade_int.h"

#define ECN_BITS 3

static int change_mark(struct xds_socks *n, struct xdsi_sock *s, bool four)
{
    s->how.dscp = (uint8_t)((s->six ? s->tclass : s->tos) >> 2);
    if (s->listening)
        xdsi_listener(n->stack, s->id)->how = s->how;
    if (!s->id || s->listening || xdsi_is_ip4(s->peer.ip) != four)
        return 0;
    const uint8_t mark = (four ? s->tos : s->tclass) >> 2;
    return xds_stack_set(n->stack, s->id, XDS_TCP_SET_DSCP, mark, n->now) ? -EINVAL : 0;
}

/* ---- groups --------------------------------------------------------------------------------------- */

static struct xdsi_member *find(struct xdsi_sock *s, struct xdsi_addr a)
{
    for (uint32_t i = 0; i < s->mail->group_count; i++)
        if (xdsi_addr_same(s->mail->groups[i].a, a))
            return &s->mail->groups[i];
    return NULL;
}

/* Another socket that is in it. */
static struct xdsi_member *other(struct xds_socks *n, const struct xdsi_sock *s, struct xdsi_addr a)
{
    for (uint32_t i = 0; i < n->cfg.sockets; i++) {
        struct xdsi_sock *o = &n->socks[i];
        struct xdsi_member *m = o != s && o->kind == SOCK_DGRAM ? find(o, a) : NULL;
        if (m)
            return m;
    }
    return NULL;
}

static bool host_is_in(const struct xds_host *h, struct xdsi_addr a)
{
    if (xdsi_addr_is4(a)) {
        const struct xdsi_group *g = xdsi_group_find(h, xdsi_addr_ip4(a));
        return g && (g->wanted || g->source_count);
    }
    const struct xdsi_group6 *g = xdsi_group6_find(h, a);
    return g && g->joined;
}

static int join(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_addr a)
{
    const struct xdsi_member *before = other(n, s, a);
    uint8_t raw[16];

    if (s->mail->group_count == XDSI_MEMBERS)
        return -ENOBUFS;
    const bool ours = before ? before->ours : !host_is_in(n->host, a);
    xdsi_addr_put(raw, a);
    const int code = before ? 0 : xds_host_join6(n->host, raw);
    if (code)
        return code == XDS_ECAPACITY ? -ENOBUFS : -EINVAL;
    s->mail->groups[s->mail->group_count++] = (struct xdsi_member){.a = a, .ours = ours};
    return 0;
}

static void leave(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_member *m)
{
    uint8_t raw[16];

    xdsi_addr_put(raw, m->a);
    if (m->ours && !other(n, s, m->a)) /* else it is of somebody else's choosing */
        xds_host_leave6(n->host, raw);
    *m = s->mail->groups[--s->mail->group_count];
}

void xdsi_groups_leave(struct xds_socks *n, struct xdsi_sock *s)
{
    while (s->mail->group_count)
        leave(n, s, s->mail->groups);
}

/* As ip_mc_join_group() and ip_mc_leave_group(). */
static int member4(struct xds_socks *n, struct xdsi_sock *s, bool in, const void *value, uint32_t len)
{
    struct ip_mreqn r = {.imr_ifindex = 0};

    if (s->kind == SOCK_STREAM)
        return -EPROTO;
    if (len < sizeof(struct ip_mreq))
        return -EINVAL;
    memcpy(&r, value, len < sizeof r ? sizeof(struct ip_mreq) : sizeof r);
    const struct xdsi_addr a = xdsi_addr4(r.imr_multiaddr.s_addr);
    struct xdsi_member *m = find(s, a);
    if (in && !xdsi_is_multicast(r.imr_multiaddr.s_addr))
        return -EINVAL;
    const uint32_t by = r.imr_address.s_addr;
    const bool ours =
        r.imr_ifindex ? r.imr_ifindex == (int)n->cfg.scope : !by || xdsi_host_is_own(n->host, by);
    if (in)
        return !ours ? -ENODEV : m ? -EADDRINUSE : join(n, s, a);
    if (!m || !ours)
        return -EADDRNOTAVAIL;
    leave(n, s, m);
    return 0;
}

/* As ipv6_sock_mc_join() and ipv6_sock_mc_drop(). */
static int member6(struct xds_socks *n, struct xdsi_sock *s, bool in, const void *value, uint32_t len)
{
    struct ipv6_mreq r;

    if (len < sizeof r)
        return -EINVAL;
    if (s->kind == SOCK_STREAM)
        return -EPROTO;
    memcpy(&r, value, sizeof r);
    const struct xdsi_addr a = xdsi_addr_of((const uint8_t *)&r.ipv6mr_multiaddr);
    struct xdsi_member *m = find(s, a);
    const bool ours = !r.ipv6mr_interface || r.ipv6mr_interface == n->cfg.scope;
    if (xdsi_addr_is4(a) || !xdsi_addr_multicast(a))
        return -EINVAL;
    if (in)
        return m && ours ? -EADDRINUSE : !ours ? -ENODEV : join(n, s, a);
    if (!m || !ours)
        return -EADDRNOTAVAIL;
    leave(n, s, m);
    return 0;
}

/* By which link: there is one. */
static int by_link4(const struct xds_socks *n, const struct xdsi_sock *s, const void *value, uint32_t len)
{
    struct ip_mreqn r = {.imr_ifindex = 0};

    if (s->kind == SOCK_STREAM || len < sizeof(struct in_addr))
        return -EINVAL;
    if (len >= sizeof(struct ip_mreq))
        memcpy(&r, value, len < sizeof r ? sizeof(struct ip_mreq) : sizeof r);
    else
        memcpy(&r.imr_address, value, sizeof r.imr_address);
    if (r.imr_ifindex)
        return r.imr_ifindex == (int)n->cfg.scope ? 0 : -EADDRNOTAVAIL;
    const uint32_t by = r.imr_address.s_addr;
    return !by || xdsi_host_is_own(n->host, by) ? 0 : -EADDRNOTAVAIL;
}

/* ---- set ------------------------------------------------------------------------------------------- */

static int set_hops(int16_t *to, int v, int least)
{
    if (v != -1 && (v < least || v > 255))
        return -EINVAL;
    if (!v)
        return -ENOPROTOOPT; /* what goes nowhere is not sent */
    *to = (int16_t)v;
    return 0;
}

int xdsi_set_ip(struct xds_socks *n, struct xdsi_sock *s, int option, const void *value, uint32_t len)
{
    const bool stream = s->kind == SOCK_STREAM;
    int v = 0;

    if (len >= sizeof v)
        memcpy(&v, value, sizeof v);
    else if (len)
        v = *(const uint8_t *)value;
    switch (option) {
    case IP_TOS:
        s->tos = (uint8_t)(stream ? v & ~ECN_BITS : v); /* TCP's lower two bits are ECN's */
        return stream ? change_mark(n, s, true) : 0;
    case IP_TTL:
        return stream ? -ENOPROTOOPT : !len ? -EINVAL : set_hops(&s->ttl, v, 1);
    case IP_MULTICAST_TTL:
        return stream || !len ? -EINVAL : set_hops(&s->many_ttl, v == -1 ? 1 : v, 0);
    case IP_MULTICAST_LOOP:
        return !len ? -EINVAL : v ? -ENOPROTOOPT : 0;
    case IP_MULTICAST_IF:
        return by_link4(n, s, value, len);
    case IP_ADD_MEMBERSHIP:
    case IP_DROP_MEMBERSHIP:
        return member4(n, s, option == IP_ADD_MEMBERSHIP, value, len);
    default:
        return -ENOPROTOOPT;
    }
}

int xdsi_set_ip6(struct xds_socks *n, struct xdsi_sock *s, int option, const void *value, uint32_t len)
{
    const bool stream = s->kind == SOCK_STREAM;
    int v;

    if (option == IPV6_JOIN_GROUP || option == IPV6_LEAVE_GROUP)
        return member6(n, s, option == IPV6_JOIN_GROUP, value, len);
    if (stream &&
        (option == IPV6_UNICAST_HOPS || option == IPV6_MULTICAST_HOPS || option == IPV6_MULTICAST_IF))
        return -ENOPROTOOPT;
    if (option != IPV6_V6ONLY && option != IPV6_TCLASS && option != IPV6_UNICAST_HOPS &&
        option != IPV6_MULTICAST_HOPS && option != IPV6_MULTICAST_LOOP && option != IPV6_MULTICAST_IF)
        return -ENOPROTOOPT;
    if (len < sizeof v)
        return -EINVAL;
    memcpy(&v, value, sizeof v);
    switch (option) {
    case IPV6_V6ONLY:
        if (s->local.port)
            return -EINVAL;
        s->only6 = v != 0;
        return 0;
    case IPV6_TCLASS:
        if (v < -1 || v > 255)
            return -EINVAL;
        s->tclass = (uint8_t)(v < 0 ? 0 : stream ? v & ~ECN_BITS : v);
        return stream ? change_mark(n, s, false) : 0;
    case IPV6_UNICAST_HOPS:
        return set_hops(&s->hops, v, 0);
    case IPV6_MULTICAST_HOPS:
        return set_hops(&s->many_hops, v == -1 ? 1 : v, 0);
    case IPV6_MULTICAST_LOOP:
        return v < 0 || v > 1 ? -EINVAL : v ? -ENOPROTOOPT : 0;
    default: /* IPV6_MULTICAST_IF */
        return !v || v == (int)n->cfg.scope ? 0 : -ENODEV;
    }
}

/* ---- get ------------------------------------------------------------------------------------------- */

int xdsi_get_ip(const struct xds_socks *n, const struct xdsi_sock *s, int option, int *v)
{
    switch (option) {
    case IP_TOS:
        *v = s->tos;
        return 0;
    case IP_TTL:
        *v = s->ttl < 0 ? n->host->cfg.ttl : s->ttl;
        return s->kind == SOCK_STREAM ? -ENOPROTOOPT : 0;
    case IP_MULTICAST_TTL:
        *v = s->many_ttl < 0 ? n->host->cfg.multicast_ttl : s->many_ttl;
        return 0;
    case IP_MULTICAST_LOOP:
        *v = 0;
        return 0;
    default:
        return -ENOPROTOOPT;
    }
}

int xdsi_get_ip6(const struct xds_socks *n, const struct xdsi_sock *s, int option, int *v)
{
    switch (option) {
    case IPV6_V6ONLY:
        *v = s->only6;
        return 0;
    case IPV6_TCLASS:
        *v = s->tclass;
        return 0;
    case IPV6_UNICAST_HOPS:
        *v = s->hops >= 0 ? s->hops : n->host->six.hops ? n->host->six.hops : n->host->cfg.ttl;
        return s->kind == SOCK_STREAM ? -ENOPROTOOPT : 0;
    case IPV6_MULTICAST_HOPS:
        *v = s->many_hops < 0 ? n->host->cfg.multicast_ttl : s->many_hops;
        return 0;
    case IPV6_MULTICAST_LOOP:
        *v = 0;
        return 0;
    default:
        return -ENOPROTOOPT;
    }
}

void xdsi_marks(const struct xdsi_sock *s, struct xdsi_letter *l)
{
    const bool four = xdsi_is_ip4(l->there.ip), many = xdsi_name_group(&l->there);
    const int16_t hops = four ? (many ? s->many_ttl : s->ttl) : (many ? s->many_hops : s->hops);

    l->tos = four ? s->tos : s->tclass;
    l->ttl = (uint8_t)(hops < 0 ? 0 : hops);
}
