/* facade_group.c: the groups that sockets are in, from anybody, from a list of sources or from all but a list, and
 * what the host is a member of for their sake: all that any of them wants, and no more, but that sources which are
 * blocked end here. As ip_mc_join_group(), ip_mc_source() and their kin of IPv6 have it (TCP sockets, too, to whom
 * nothing ever comes), but that a socket's list holds XDS_HOST_SOURCES, and so does the one of all sockets. */
#include "facade_int.h"

struct xdsi_member *xdsi_member_of(const struct xds_socks *n, const struct xdsi_sock *s, struct xdsi_addr a)
{
    for (uint32_t i = s->groups; i; i = n->members[i - 1].next)
        if (xdsi_addr_same(n->members[i - 1].a, a))
            return &n->members[i - 1];
    return NULL;
}

static int at(const struct xdsi_addr *list, uint32_t count, struct xdsi_addr a)
{
    for (uint32_t i = 0; i < count; i++)
        if (xdsi_addr_same(list[i], a))
            return (int)i;
    return -1;
}

bool xdsi_group_is(struct xdsi_addr a)
{
    return xdsi_addr_is4(a) ? xdsi_is_multicast(xdsi_addr_ip4(a)) : xdsi_addr_multicast(a);
}

/* As ip_mc_sf_allow() and inet6_mc_check(). */
bool xdsi_group_allows(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *group,
                       const struct xdsi_name *from)
{
    const struct xdsi_addr a = xdsi_addr_of(group->ip);
    const struct xdsi_member *m = xdsi_member_of(n, s, a);

    if (!m)
        return !xdsi_group_is(a) || !(xdsi_addr_is4(a) ? s->not_all4 : s->not_all6);
    return m->include == (at(m->sources, m->count, xdsi_addr_of(from->ip)) >= 0);
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

    for (uint32_t i = 0; i < n->member_count; i++) {
        const struct xdsi_member *m = &n->members[i];
        if (!m->used || !xdsi_addr_same(m->a, a))
            continue;
        w.there = true;
        w.ours |= m->ours;
        w.any |= !m->include;
        for (uint32_t k = 0; m->include && k < m->count; k++)
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
                                      bool include)
{
    struct xdsi_addr list[XDS_HOST_SOURCES];

    if (s->group_count == XDSI_MEMBERS || !n->members_free)
        return NULL;
    const struct wish before = all_wishes(n, a);
    const uint32_t place = n->members_free;
    struct xdsi_member *m = &n->members[place - 1];
    n->members_free = m->next;
    *m = (struct xdsi_member){.a = a,
                              .next = s->groups,
                              .used = true,
                              .ours = before.there ? before.ours : host_list(n->host, a, list) < 0,
                              .include = include};
    s->groups = place;
    s->group_count++;
    return m;
}

static void leave(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_member *m)
{
    const struct xdsi_member was = *m;
    const uint32_t place = (uint32_t)(m - n->members) + 1;
    uint32_t *at = &s->groups;

    while (*at != place)
        at = &n->members[*at - 1].next;
    *at = was.next;
    *m = (struct xdsi_member){.next = n->members_free};
    n->members_free = place;
    s->group_count--;
    if (was.ours)
        agree(n, was.a);
}

void xdsi_groups_leave(struct xds_socks *n, struct xdsi_sock *s)
{
    while (s->groups)
        leave(n, s, &n->members[s->groups - 1]);
}

int xdsi_member_leave(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_addr a)
{
    struct xdsi_member *m = xdsi_member_of(n, s, a);

    if (!m)
        return -EADDRNOTAVAIL;
    leave(n, s, m);
    return 0;
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

int xdsi_member_change(struct xds_socks *n, struct xdsi_member *m, const struct xdsi_member *now)
{
    const struct xdsi_member before = *m;

    *m = *now;
    const int code = agree(n, m->a);
    if (code) {
        *m = before;
        agree(n, m->a);
    }
    return code;
}

/* A source more, of a list that stays of its kind. */
static int name_source(struct xds_socks *n, struct xdsi_member *m, struct xdsi_addr from, bool include)
{
    struct xdsi_member now = *m;

    if (m->count == XDS_HOST_SOURCES)
        return -ENOBUFS;
    if (at(m->sources, m->count, from) >= 0)
        return -EADDRNOTAVAIL;
    now.include = include;
    now.listed = true;
    now.sources[now.count++] = from;
    return xdsi_member_change(n, m, &now);
}

/* One less; the last one of those that it wants is the end of it. */
static int unname_source(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_member *m,
                         struct xdsi_addr from, bool include)
{
    struct xdsi_member now = *m;
    const int i = at(m->sources, m->count, from);

    now.include = include;
    if (i < 0) { /* but of the kind that was named it is from now on */
        xdsi_member_change(n, m, &now);
        return -EADDRNOTAVAIL;
    }
    if (include && m->count == 1) {
        leave(n, s, m);
        return 0;
    }
    now.count--;
    memmove(now.sources + i, m->sources + i + 1, (now.count - (uint32_t)i) * sizeof *now.sources);
    return xdsi_member_change(n, m, &now);
}

/* ---- what setsockopt() is given ------------------------------------------------------------------------ */

/* A membership, by a link that is ours or not. */
static int member(struct xds_socks *n, struct xdsi_sock *s, bool in, struct xdsi_addr a, bool by_ours)
{
    const struct xdsi_member *m = xdsi_member_of(n, s, a);

    if (in)
        return !by_ours ? -ENODEV : m ? -EADDRINUSE : join(n, s, a);
    return by_ours ? xdsi_member_leave(n, s, a) : -EADDRNOTAVAIL;
}

bool xdsi_by_ours4(const struct xds_socks *n, int link, uint32_t address)
{
    return link ? link == (int)n->cfg.scope : !address || xdsi_host_is_own(n->host, address);
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
    if (in && !xdsi_group_is(a))
        return -EINVAL;
    return member(n, s, in, a, xdsi_by_ours4(n, r.imr_ifindex, r.imr_address.s_addr));
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

/* A source of a membership: wanted, or blocked, or no longer so. Only who wants one joins by that. */
static int source(struct xds_socks *n, struct xdsi_sock *s, bool include, bool in, struct xdsi_addr a,
                  struct xdsi_addr from, bool by_ours)
{
    struct xdsi_member *m = xdsi_member_of(n, s, a);

    if (!xdsi_group_is(a))
        return -EINVAL;
    if (!by_ours)
        return -ENODEV;
    const bool fresh = !m && include && in;
    if (fresh && !(m = new_member(n, s, a, true)))
        return -ENOBUFS;
    if (!m || (m->listed && m->include != include))
        return -EINVAL;
    const int code = in ? name_source(n, m, from, include) : unname_source(n, s, m, from, include);
    if (code && fresh)
        leave(n, s, m);
    return code;
}

int xdsi_set_source4(struct xds_socks *n, struct xdsi_sock *s, int option, const void *value, uint32_t len)
{
    const bool include = option == IP_ADD_SOURCE_MEMBERSHIP || option == IP_DROP_SOURCE_MEMBERSHIP;
    const bool in = option == IP_ADD_SOURCE_MEMBERSHIP || option == IP_BLOCK_SOURCE;
    struct ip_mreq_source r;

    if (len != sizeof r)
        return -EINVAL;
    memcpy(&r, value, sizeof r);
    return source(n, s, include, in, xdsi_addr4(r.imr_multiaddr.s_addr), xdsi_addr4(r.imr_sourceaddr.s_addr),
                  xdsi_by_ours4(n, 0, r.imr_interface.s_addr));
}

bool xdsi_address_in(const struct sockaddr_storage *in, bool six, struct xdsi_addr *out)
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
    const bool with_source = option != MCAST_JOIN_GROUP && option != MCAST_LEAVE_GROUP;
    const bool include = option == MCAST_JOIN_SOURCE_GROUP || option == MCAST_LEAVE_SOURCE_GROUP;
    const bool in = option == MCAST_JOIN_SOURCE_GROUP || option == MCAST_BLOCK_SOURCE;
    struct group_source_req r; /* begins as struct group_req does */
    struct xdsi_addr a, from;

    if (len < (with_source ? sizeof r : sizeof(struct group_req)))
        return -EINVAL;
    memcpy(&r, value, with_source ? sizeof r : sizeof(struct group_req));
    const bool by_ours = !r.gsr_interface || r.gsr_interface == n->cfg.scope;
    if (!xdsi_address_in(&r.gsr_group, six, &a))
        return with_source || six ? -EADDRNOTAVAIL : -EINVAL;
    if (with_source && !xdsi_address_in(&r.gsr_source, six, &from))
        return -EADDRNOTAVAIL;
    if (with_source)
        return xdsi_addr_is4(a) == six ? -EINVAL : source(n, s, include, in, a, from, by_ours);
    if (!xdsi_group_is(a) || xdsi_addr_is4(a) == six)
        return option == MCAST_JOIN_GROUP || six ? -EINVAL : -EADDRNOTAVAIL;
    return member(n, s, option == MCAST_JOIN_GROUP, a, by_ours);
}
