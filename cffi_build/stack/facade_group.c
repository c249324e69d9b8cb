/* facade_group.c: the groups that UDP sockets are in, from anybody or from a list of sources, and what the host is a
 * member of for their sake: all that any of them wants, and no more. As ip_mc_join_group(), ip_mc_source() and their
 * kin of IPv6 have it, but that a socket's list holds XDS_HOST_SOURCES, and so does the one of all sockets. */
#include "facade_int.h"

static struct xdsi_member *find(const struct xdsi_sock *s, struct xdsi_addr a)
{
    for (uint32_t i = 0; i < s->mail->group_count; i++)
        if (xdsi_addr_same(s->mail->groups[i].a, a))
            return &s->mail->groups[i];
    return NULL;
}

static int at(const struct xdsi_addr *list, uint32_t count, struct xdsi_addr a)
{
    for (uint32_t i = 0; i < count; i++)
        if (xdsi_addr_same(list[i], a))
            return (int)i;
    return -1;
}

bool xdsi_group_allows(const struct xdsi_sock *s, const struct xdsi_name *group, const struct xdsi_name *from)
{
    const struct xdsi_member *m = find(s, xdsi_addr_of(group->ip));
    return !m || !m->listed || at(m->sources, m->count, xdsi_addr_of(from->ip)) >= 0;
}

/* ---- what the host is a member of ------------------------------------------------------------------ */

/* All that is wanted. count: of sources, where nobody wants any; XDS_HOST_SOURCES + 1: more than there may be. */
struct wish {
    struct xdsi_addr sources[XDS_HOST_SOURCES];
    uint32_t count;
    bool any, there, ours;
};

static struct wish all_wishes(const struct xds_socks *n, struct xdsi_addr a)
{
    struct wish w = {.count = 0};

    for (uint32_t i = 0; i < n->cfg.sockets; i++) {
        const struct xdsi_sock *s = &n->socks[i];
        const struct xdsi_member *m = s->kind == SOCK_DGRAM ? find(s, a) : NULL;
        if (!m)
            continue;
        w.there = true;
        w.ours |= m->ours;
        w.any |= !m->listed;
        for (uint32_t k = 0; k < m->count; k++)
            if (at(w.sources, w.count < XDS_HOST_SOURCES ? w.count : XDS_HOST_SOURCES, m->sources[k]) >= 0)
                continue;
            else if (w.count < XDS_HOST_SOURCES)
                w.sources[w.count++] = m->sources[k];
            else
                w.count = XDS_HOST_SOURCES + 1;
    }
    return w;
}

/* What the host has: its sources; -1: it is no member, 0: from anybody. */
static int host_list(const struct xds_host *h, struct xdsi_addr a, struct xdsi_addr *list)
{
    const struct xdsi_group *g = xdsi_addr_is4(a) ? xdsi_group_find(h, xdsi_addr_ip4(a)) : NULL;
    const struct xdsi_group6 *g6 = xdsi_addr_is4(a) ? NULL : xdsi_group6_find(h, a);

    if (g && g->wanted) {
        for (uint32_t i = 0; i < g->source_count; i++)
            list[i] = xdsi_addr4(g->sources[i]);
        return g->source_count;
    }
    if (!g6 || !g6->joined)
        return -1;
    memcpy(list, g6->sources, sizeof g6->sources);
    return g6->source_count;
}

bool xdsi_group_heard(const struct xds_host *h, const struct xdsi_name *group)
{
    const struct xdsi_addr a = xdsi_addr_of(group->ip);
    struct xdsi_addr list[XDS_HOST_SOURCES];

    if (host_list(h, a, list) >= 0 || xdsi_addr_same(a, xdsi_all_nodes()) ||
        (xdsi_addr_is4(a) && xdsi_addr_ip4(a) == XDSI_ALL_SYSTEMS))
        return true;
    return !xdsi_addr_is4(a) && xdsi_host_is_ours6(h, a);
}

/* A list: what is not wanted any more goes first, so that there is room for the rest. */
static int agree_on_list(struct xds_host *h, const uint8_t raw[16], const struct wish *w)
{
    struct xdsi_addr had[XDS_HOST_SOURCES];
    const int count = host_list(h, xdsi_addr_of(raw), had);
    uint8_t source[16];
    int code = 0;

    if (!count)
        xds_host_leave6(h, raw);
    for (int i = 0; i < count; i++) {
        xdsi_addr_put(source, had[i]);
        if (at(w->sources, w->count, had[i]) < 0)
            xds_host_leave_source6(h, raw, source);
    }
    for (uint32_t i = 0; i < w->count && !code; i++) {
        xdsi_addr_put(source, w->sources[i]);
        code = xds_host_join_source6(h, raw, source);
    }
    return code;
}

/* Where the host was a member before any socket, that is somebody else's and stays. 0, -errno. */
static int agree(struct xds_socks *n, struct xdsi_addr a)
{
    const struct wish w = all_wishes(n, a);
    uint8_t raw[16];
    int code = 0;

    if (w.there && !w.ours)
        return 0;
    xdsi_addr_put(raw, a);
    if (!w.any && w.count > XDS_HOST_SOURCES)
        return -ENOBUFS;
    if (w.any)
        code = xds_host_join6(n->host, raw);
    else if (w.count)
        code = agree_on_list(n->host, raw, &w);
    else
        xds_host_leave6(n->host, raw);
    return code == XDS_ECAPACITY ? -ENOBUFS : code ? -EINVAL : 0;
}

/* ---- what a socket is in ----------------------------------------------------------------------------- */

static struct xdsi_member *new_member(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_addr a,
                                      bool listed)
{
    struct xdsi_addr list[XDS_HOST_SOURCES];

    if (s->mail->group_count == XDSI_MEMBERS)
        return NULL;
    const struct wish before = all_wishes(n, a);
    struct xdsi_member *m = &s->mail->groups[s->mail->group_count++];
    *m = (struct xdsi_member){
        .a = a, .ours = before.there ? before.ours : host_list(n->host, a, list) < 0, .listed = listed};
    return m;
}

static void leave(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_member *m)
{
    const struct xdsi_addr a = m->a;
    const bool ours = m->ours;

    *m = s->mail->groups[--s->mail->group_count];
    if (ours)
        agree(n, a);
}

void xdsi_groups_leave(struct xds_socks *n, struct xdsi_sock *s)
{
    while (s->mail->group_count)
        leave(n, s, s->mail->groups);
}

static int join(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_addr a)
{
    struct xdsi_member *m = new_member(n, s, a, false);

    if (!m)
        return -ENOBUFS;
    const int code = agree(n, a);
    if (code)
        leave(n, s, m);
    return code;
}

static int join_source(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_addr a, struct xdsi_addr from)
{
    struct xdsi_member *m = find(s, a);

    if (m && m->listed && at(m->sources, m->count, from) >= 0)
        return -EADDRNOTAVAIL;
    if (m && m->listed && m->count == XDS_HOST_SOURCES)
        return -ENOBUFS;
    const struct xdsi_member before = m ? *m : (struct xdsi_member){.ours = true};
    struct xdsi_member *now = m ? m : new_member(n, s, a, true);
    if (!now)
        return -ENOBUFS;
    now->listed = true; /* from anybody: that ends */
    now->sources[now->count++] = from;
    const int code = agree(n, a);
    if (code && m) {
        *m = before;
        agree(n, a);
    } else if (code) {
        leave(n, s, now);
    }
    return code;
}

static int leave_source(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_addr a, struct xdsi_addr from)
{
    struct xdsi_member *m = find(s, a);

    if (!m)
        return -EINVAL;
    const int i = at(m->sources, m->count, from);
    if (i < 0)
        return -EADDRNOTAVAIL;
    if (m->count == 1) {
        leave(n, s, m);
        return 0;
    }
    m->sources[i] = m->sources[--m->count];
    return agree(n, a);
}

/* ---- what setsockopt() is given ------------------------------------------------------------------------ */

/* A membership, by a link that is ours or not. */
static int member(struct xds_socks *n, struct xdsi_sock *s, bool in, struct xdsi_addr a, bool by_ours)
{
    struct xdsi_member *m = find(s, a);

    if (in && xdsi_addr_is4(a))
        return !by_ours ? -ENODEV : m ? -EADDRINUSE : join(n, s, a);
    if (in)
        return m && by_ours ? -EADDRINUSE : !by_ours ? -ENODEV : join(n, s, a);
    if (!m || !by_ours)
        return -EADDRNOTAVAIL;
    leave(n, s, m);
    return 0;
}

static bool by_ours4(const struct xds_socks *n, int link, uint32_t address)
{
    return link ? link == (int)n->cfg.scope : !address || xdsi_host_is_own(n->host, address);
}

static bool is_many(struct xdsi_addr a)
{
    return xdsi_addr_is4(a) ? xdsi_is_multicast(xdsi_addr_ip4(a)) : xdsi_addr_multicast(a);
}

int xdsi_set_member4(struct xds_socks *n, struct xdsi_sock *s, bool in, const void *value, uint32_t len)
{
    struct ip_mreqn r = {.imr_ifindex = 0};

    if (s->kind == SOCK_STREAM)
        return -EPROTO;
    if (len < sizeof(struct ip_mreq))
        return -EINVAL;
    memcpy(&r, value, len < sizeof r ? sizeof(struct ip_mreq) : sizeof r);
    const struct xdsi_addr a = xdsi_addr4(r.imr_multiaddr.s_addr);
    if (in && !is_many(a))
        return -EINVAL;
    return member(n, s, in, a, by_ours4(n, r.imr_ifindex, r.imr_address.s_addr));
}

int xdsi_set_member6(struct xds_socks *n, struct xdsi_sock *s, bool in, const void *value, uint32_t len)
{
    struct ipv6_mreq r;

    if (len < sizeof r)
        return -EINVAL;
    if (s->kind == SOCK_STREAM)
        return -EPROTO;
    memcpy(&r, value, sizeof r);
    const struct xdsi_addr a = xdsi_addr_of((const uint8_t *)&r.ipv6mr_multiaddr);
    if (xdsi_addr_is4(a) || !xdsi_addr_multicast(a))
        return -EINVAL;
    return member(n, s, in, a, !r.ipv6mr_interface || r.ipv6mr_interface == n->cfg.scope);
}

/* A source of a membership. */
static int source(struct xds_socks *n, struct xdsi_sock *s, bool in, struct xdsi_addr a,
                  struct xdsi_addr from, bool by_ours)
{
    if (!is_many(a))
        return -EINVAL;
    if (!by_ours)
        return -ENODEV;
    return in ? join_source(n, s, a, from) : leave_source(n, s, a, from);
}

int xdsi_set_source4(struct xds_socks *n, struct xdsi_sock *s, bool in, const void *value, uint32_t len)
{
    struct ip_mreq_source r;

    if (len != sizeof r)
        return -EINVAL;
    if (s->kind == SOCK_STREAM)
        return -ENOPROTOOPT;
    memcpy(&r, value, sizeof r);
    return source(n, s, in, xdsi_addr4(r.imr_multiaddr.s_addr), xdsi_addr4(r.imr_sourceaddr.s_addr),
                  by_ours4(n, 0, r.imr_interface.s_addr));
}

/* An address of that family. */
static bool address_in(const struct sockaddr_storage *in, bool six, struct xdsi_addr *out)
{
    if (in->ss_family != (six ? AF_INET6 : AF_INET))
        return false;
    *out = six ? xdsi_addr_of((const uint8_t *)in + offsetof(struct sockaddr_in6, sin6_addr))
               : xdsi_addr4(xdsi_raw32((const uint8_t *)in + offsetof(struct sockaddr_in, sin_addr)));
    return true;
}

int xdsi_set_many(struct xds_socks *n, struct xdsi_sock *s, bool six, int option, const void *value,
                  uint32_t len)
{
    const bool with_source = option == MCAST_JOIN_SOURCE_GROUP || option == MCAST_LEAVE_SOURCE_GROUP;
    const bool in = option == MCAST_JOIN_SOURCE_GROUP || option == MCAST_JOIN_GROUP;
    struct group_source_req r; /* begins as struct group_req does */
    struct xdsi_addr a, from;

    if (len < (with_source ? sizeof r : sizeof(struct group_req)))
        return -EINVAL;
    if (s->kind == SOCK_STREAM)
        return -ENOPROTOOPT;
    memcpy(&r, value, with_source ? sizeof r : sizeof(struct group_req));
    const bool by_ours = !r.gsr_interface || r.gsr_interface == n->cfg.scope;
    if (!address_in(&r.gsr_group, six, &a))
        return with_source || six ? -EADDRNOTAVAIL : -EINVAL;
    if (with_source)
        return address_in(&r.gsr_source, six, &from) ? source(n, s, in, a, from, by_ours) : -EADDRNOTAVAIL;
    if (!is_many(a) || xdsi_addr_is4(a) == six)
        return in || six ? -EINVAL : -EADDRNOTAVAIL;
    return member(n, s, in, a, by_ours);
}
