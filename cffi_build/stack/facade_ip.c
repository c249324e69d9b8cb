/* facade_ip.c: getsockopt() and setsockopt() of IPPROTO_IP and IPPROTO_IPV6; groups are in facade_group.c. */
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

/* By which link: there is one. */
static int by_link4(const struct xds_socks *n, struct xdsi_sock *s, const void *value, uint32_t len)
{
    struct ip_mreqn r = {.imr_ifindex = 0};

    if (s->kind == SOCK_STREAM || len < sizeof(struct in_addr))
        return -EINVAL;
    if (len >= sizeof(struct ip_mreq))
        memcpy(&r, value, len < sizeof r ? sizeof(struct ip_mreq) : sizeof r);
    else
        memcpy(&r.imr_address, value, sizeof r.imr_address);
    if (!xdsi_by_ours4(n, r.imr_ifindex, r.imr_address.s_addr))
        return -EADDRNOTAVAIL;
    s->many_from = r.imr_address.s_addr;
    return 0;
}

static int by_link6(const struct xds_socks *n, struct xdsi_sock *s, int link)
{
    if (link && link != (int)n->cfg.scope)
        return -ENODEV;
    s->many_link = (uint32_t)link;
    return 0;
}

/* Datagrams are never cut, and TCP learns the path's MTU: that is _WANT for TCP and _DO. IPv6 has no other way for
 * _DONT either; IPv4 would have to send what may be cut. The rest would go past what was learned. */
static int discover(uint8_t *to, int v, bool four)
{
    if (v < IP_PMTUDISC_DONT || v > IP_PMTUDISC_OMIT)
        return -EINVAL;
    if (v > IP_PMTUDISC_DO || (four && v == IP_PMTUDISC_DONT))
        return -ENOPROTOOPT;
    *to = (uint8_t)v;
    return 0;
}

/* None are sent, and what may be there came with no connection. */
static int no_options(uint32_t len)
{
    return !len ? 0 : len > 40 ? -EINVAL : -ENOPROTOOPT;
}

/* The path's, of who has a peer. */
static int path_mtu(const struct xds_socks *n, const struct xdsi_sock *s, int *v)
{
    if (!s->peer.port)
        return -ENOTCONN;
    *v = xds_host_path_mtu(n->host, s->peer.ip, n->now);
    return *v > 0 ? 0 : -ENOTCONN;
}

/* A connection's packets have it from now on; a listener's, and what comes to it, from the first. */
static void change_hops(struct xds_socks *n, const struct xdsi_sock *s, bool four)
{
    const int16_t hops = four ? s->ttl : s->hops;

    if (s->kind == SOCK_STREAM && s->id && (s->listening ? !s->six == four : xdsi_is_ip4(s->peer.ip) == four))
        xds_stack_set_hops(n->stack, s->id, hops < 0 ? 0 : (uint8_t)hops);
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
    int v = 0, code;

    if (len >= sizeof v)
        memcpy(&v, value, sizeof v);
    else if (len)
        v = *(const uint8_t *)value;
    switch (option) {
    case IP_TOS:
        s->tos = (uint8_t)(stream ? v & ~ECN_BITS : v); /* TCP's lower two bits are ECN's */
        return stream ? change_mark(n, s, true) : 0;
    case IP_TTL:
        code = !len ? -EINVAL : set_hops(&s->ttl, v, 1);
        change_hops(n, s, true);
        return code;
    case IP_MULTICAST_TTL:
        return stream || !len ? -EINVAL : set_hops(&s->many_ttl, v == -1 ? 1 : v, 0);
    case IP_MULTICAST_LOOP:
        s->no_loop4 = len ? !v : s->no_loop4;
        return !len ? -EINVAL : 0;
    case IP_PKTINFO:
        s->tells4 = v != 0;
        return 0;
    case IP_RECVTTL:
        s->tells_ttl = v != 0;
        return 0;
    case IP_RECVTOS:
        s->tells_tos = v != 0;
        return 0;
    case IP_MULTICAST_IF:
        return by_link4(n, s, value, len);
    case IP_MTU_DISCOVER:
        return discover(&s->discover, v, true);
    case IP_BIND_ADDRESS_NO_PORT:
        s->late_port = v != 0;
        return 0;
    case IP_OPTIONS:
        return no_options(len);
    case IP_ADD_MEMBERSHIP:
    case IP_DROP_MEMBERSHIP:
        return xdsi_set_member4(n, s, option == IP_ADD_MEMBERSHIP, value, len);
    case IP_ADD_SOURCE_MEMBERSHIP:
    case IP_DROP_SOURCE_MEMBERSHIP:
    case IP_BLOCK_SOURCE:
    case IP_UNBLOCK_SOURCE:
        return xdsi_set_source4(n, s, option, value, len);
    case IP_MSFILTER:
    case MCAST_MSFILTER:
        return xdsi_set_filter(n, s, false, option, value, len);
    case IP_MULTICAST_ALL:
        if (!len || v < 0 || v > 1)
            return -EINVAL;
        s->not_all4 = !v;
        return 0;
    case MCAST_JOIN_GROUP:
    case MCAST_LEAVE_GROUP:
    case MCAST_JOIN_SOURCE_GROUP:
    case MCAST_LEAVE_SOURCE_GROUP:
    case MCAST_BLOCK_SOURCE:
    case MCAST_UNBLOCK_SOURCE:
        return xdsi_set_many(n, s, false, option, value, len);
    default:
        return -ENOPROTOOPT;
    }
}

/* The link of what is sent. Its address changes nothing, on Linux neither. */
static int set_sticky(struct xdsi_sock *s, const void *value, uint32_t len)
{
    struct xdsi_pktinfo6 info;

    if (len < sizeof info)
        return -EINVAL;
    memcpy(&info, value, sizeof info);
    s->sticky = info.link;
    return 0;
}

/* Those whose value is an int. */
static int set_ip6(struct xds_socks *n, struct xdsi_sock *s, int option, int v)
{
    const bool stream = s->kind == SOCK_STREAM;
    int code;

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
        code = set_hops(&s->hops, v, 0);
        change_hops(n, s, false);
        return code;
    case IPV6_MULTICAST_HOPS:
        return set_hops(&s->many_hops, v == -1 ? 1 : v, 0);
    case IPV6_MULTICAST_LOOP:
        if (v < 0 || v > 1)
            return -EINVAL;
        s->no_loop6 = !v;
        return 0;
    case IPV6_MULTICAST_ALL:
        s->not_all6 = !v;
        return 0;
    case IPV6_RECVPKTINFO:
        s->tells6 = v != 0;
        return 0;
    case IPV6_RECVHOPLIMIT:
        s->tells_hops = v != 0;
        return 0;
    case IPV6_RECVTCLASS:
        s->tells_class = v != 0;
        return 0;
    case IPV6_MTU_DISCOVER:
        return discover(&s->discover6, v, false);
    case IPV6_MTU: /* where to cut: never */
        return !v ? 0 : v < XDSI_IPV6_MTU_LEAST ? -EINVAL : -ENOPROTOOPT;
    default: /* IPV6_MULTICAST_IF */
        return by_link6(n, s, v);
    }
}

int xdsi_set_ip6(struct xds_socks *n, struct xdsi_sock *s, int option, const void *value, uint32_t len)
{
    int v;

    switch (option) {
    case IPV6_JOIN_GROUP:
    case IPV6_LEAVE_GROUP:
        return xdsi_set_member6(n, s, option == IPV6_JOIN_GROUP, value, len);
    case MCAST_JOIN_GROUP:
    case MCAST_LEAVE_GROUP:
    case MCAST_JOIN_SOURCE_GROUP:
    case MCAST_LEAVE_SOURCE_GROUP:
    case MCAST_BLOCK_SOURCE:
    case MCAST_UNBLOCK_SOURCE:
        return xdsi_set_many(n, s, true, option, value, len);
    case MCAST_MSFILTER:
        return xdsi_set_filter(n, s, true, option, value, len);
    case IPV6_PKTINFO:
        return set_sticky(s, value, len);
    case IPV6_MULTICAST_HOPS:
    case IPV6_MULTICAST_IF:
        if (s->kind == SOCK_STREAM)
            return -ENOPROTOOPT;
        break;
    case IPV6_V6ONLY:
    case IPV6_TCLASS:
    case IPV6_UNICAST_HOPS:
    case IPV6_MULTICAST_LOOP:
    case IPV6_MULTICAST_ALL:
    case IPV6_RECVPKTINFO:
    case IPV6_RECVHOPLIMIT:
    case IPV6_RECVTCLASS:
    case IPV6_MTU_DISCOVER:
    case IPV6_MTU:
        break;
    case IPV6_DONTFRAG:
        if (len >= sizeof v)
            memcpy(&v, value, sizeof v);
        s->whole6 = len >= sizeof v && v;
        return 0;
    default:
        return -ENOPROTOOPT;
    }
    if (len < sizeof v)
        return -EINVAL;
    memcpy(&v, value, sizeof v);
    return set_ip6(n, s, option, v);
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
        return 0;
    case IP_MULTICAST_TTL:
        *v = s->many_ttl < 0 ? n->host->cfg.multicast_ttl : s->many_ttl;
        return 0;
    case IP_MULTICAST_LOOP:
        *v = !s->no_loop4;
        return 0;
    case IP_MULTICAST_ALL:
        *v = !s->not_all4;
        return 0;
    case IP_PKTINFO:
        *v = s->tells4;
        return 0;
    case IP_RECVTTL:
        *v = s->tells_ttl;
        return 0;
    case IP_RECVTOS:
        *v = s->tells_tos;
        return 0;
    case IP_MTU_DISCOVER:
        *v = s->discover;
        return 0;
    case IP_BIND_ADDRESS_NO_PORT:
        *v = s->late_port;
        return 0;
    case IP_MTU:
        return path_mtu(n, s, v);
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
        return 0;
    case IPV6_MULTICAST_HOPS:
        *v = s->many_hops < 0 ? n->host->cfg.multicast_ttl : s->many_hops;
        return 0;
    case IPV6_MULTICAST_LOOP:
        *v = !s->no_loop6;
        return 0;
    case IPV6_MULTICAST_ALL:
        *v = !s->not_all6;
        return 0;
    case IPV6_RECVPKTINFO:
        *v = s->tells6;
        return 0;
    case IPV6_RECVHOPLIMIT:
        *v = s->tells_hops;
        return 0;
    case IPV6_RECVTCLASS:
        *v = s->tells_class;
        return 0;
    case IPV6_MTU_DISCOVER:
        *v = s->discover6;
        return 0;
    case IPV6_DONTFRAG:
        *v = s->whole6;
        return 0;
    case IPV6_MULTICAST_IF:
        *v = (int)s->many_link;
        return 0;
    case IPV6_MTU:
        return path_mtu(n, s, v);
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
