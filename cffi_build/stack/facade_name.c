/* facade_name.c: names of sockets: the one place that knows sockaddr; whose port is whose. */
#include "facade_int.h"

#define IN6_LEAST 24 /* SIN6_LEN_RFC2133: without a scope */

/* As __ipv6_addr_needs_scope_id(): it means something on one link alone. */
static bool needs_scope(struct xdsi_addr a)
{
    return xdsi_addr_link_local(a) || (xdsi_addr_multicast(a) && (a.high >> 8 & 15) <= 2);
}

static int name_in4(const void *address, uint32_t len, struct xdsi_name *out)
{
    struct sockaddr_in in;

    if (len < sizeof in)
        return -EINVAL;
    memcpy(&in, address, sizeof in);
    if (in.sin_family != AF_INET)
        return -EAFNOSUPPORT;
    out->port = xdsi_be16((const uint8_t *)&in.sin_port);
    if (in.sin_addr.s_addr)
        xdsi_map4(out->ip, in.sin_addr.s_addr);
    return 0;
}

/* An AF_INET6 socket for UDP takes both kinds to send to: `v4_too`. */
int xdsi_name_in(const struct xdsi_sock *s, const void *address, uint32_t len, bool v4_too,
                 struct xdsi_name *out)
{
    struct sockaddr_in6 in = {.sin6_scope_id = 0};
    sa_family_t family;

    *out = (struct xdsi_name){.port = 0};
    if (!address || len < sizeof family)
        return -EINVAL;
    memcpy(&family, address, sizeof family);
    if (!s->six || (v4_too && family == AF_INET))
        return name_in4(address, len, out);
    if (len < IN6_LEAST)
        return -EINVAL;
    if (family != AF_INET6)
        return -EAFNOSUPPORT;
    memcpy(&in, address, len < sizeof in ? len : sizeof in);
    out->port = xdsi_be16((const uint8_t *)&in.sin6_port);
    memcpy(out->ip, &in.sin6_addr, 16);
    if (needs_scope(xdsi_addr_of(out->ip)))
        out->scope = in.sin6_scope_id;
    return 0;
}

static void give(const void *found, uint32_t bytes, void *address, uint32_t *len)
{
    memcpy(address, found, *len < bytes ? *len : bytes);
    *len = bytes;
}

int xdsi_name_out(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *name,
                  void *address, uint32_t *len)
{
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
    struct sockaddr_in in = {.sin_family = AF_INET};

    if (!address)
        return 0;
    if (!len || *len > 0x7fffffff)
        return -EINVAL;
    if (!s->six) {
        xdsi_put16((uint8_t *)&in.sin_port, name->port);
        memcpy(&in.sin_addr, name->ip + 12, 4);
        give(&in, sizeof in, address, len);
        return 0;
    }
    xdsi_put16((uint8_t *)&in6.sin6_port, name->port);
    memcpy(&in6.sin6_addr, name->ip, 16);
    if (needs_scope(xdsi_addr_of(name->ip)))
        in6.sin6_scope_id = n->cfg.scope;
    give(&in6, sizeof in6, address, len);
    return 0;
}

/* Linux wants to be told the link by bind() or connect(), once: here it can be one alone. */
int xdsi_name_scope(const struct xds_socks *n, struct xdsi_sock *s, const struct xdsi_name *name, int other)
{
    if (!needs_scope(xdsi_addr_of(name->ip)))
        return 0;
    if (!name->scope)
        return s->scoped ? 0 : -EINVAL;
    if (name->scope != n->cfg.scope)
        return other;
    s->scoped = true;
    return 0;
}

bool xdsi_name_any(const struct xdsi_name *name)
{
    const struct xdsi_addr a = xdsi_addr_of(name->ip);
    return xdsi_addr_none(a) || xdsi_addr_same(a, xdsi_addr4(0));
}

bool xdsi_name_group(const struct xdsi_name *name)
{
    const struct xdsi_addr a = xdsi_addr_of(name->ip);

    if (!xdsi_addr_is4(a))
        return xdsi_addr_multicast(a);
    return xdsi_addr_ip4(a) == 0xffffffff || xdsi_is_multicast(xdsi_addr_ip4(a));
}

uint32_t xdsi_name_families(const struct xdsi_sock *s, const struct xdsi_name *name)
{
    const struct xdsi_addr a = xdsi_addr_of(name->ip);

    if (xdsi_addr_is4(a) || !s->six)
        return XDS_STACK_IP4;
    return xdsi_addr_none(a) && !s->only6 ? XDS_STACK_IP4 | XDS_STACK_IP6 : XDS_STACK_IP6;
}

int xdsi_name_crosses(const struct xdsi_sock *s, const struct xdsi_name *to)
{
    const bool four = xdsi_addr_is4(xdsi_addr_of(to->ip));

    if (!s->six || xdsi_name_families(s, &s->local) & (four ? XDS_STACK_IP4 : XDS_STACK_IP6))
        return 0;
    return four ? -ENETUNREACH : -EAFNOSUPPORT;
}

static int source4(const struct xds_host *h, uint32_t ip, uint8_t src[16])
{
    struct xdsi_hop hop;

    if (!h->own_count || xdsi_host_is_own(h, ip) || !xdsi_host_route(h, ip, &hop))
        return -ENETUNREACH;
    xdsi_map4(src, hop.src);
    return 0;
}

int xdsi_name_source(const struct xds_socks *n, const struct xdsi_name *to, uint8_t src[16])
{
    const struct xdsi_addr a = xdsi_addr_of(to->ip);
    struct xdsi_hop6 hop;

    if (xdsi_name_any(to))
        return -ENETUNREACH;
    if (xdsi_addr_is4(a))
        return source4(n->host, xdsi_addr_ip4(a), src);
    if (!n->host->six.own_count || xdsi_host_own(n->host, a) || !xdsi_host_route6(n->host, a, &hop, n->now))
        return -ENETUNREACH;
    if (xdsi_addr_none(hop.src))
        return -EADDRNOTAVAIL; /* each is probed for, or somebody else's */
    xdsi_addr_put(src, hop.src);
    return 0;
}

/* ---- ports ---------------------------------------------------------------------------------------- */

/* As Linux: a port is shared where both sides say SO_REUSEADDR, but not with a listener. */
bool xdsi_name_taken(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *name)
{
    for (uint32_t i = 0; i < n->cfg.sockets; i++) {
        const struct xdsi_sock *o = &n->socks[i];
        if (o == s || o->kind != s->kind || o->local.port != name->port ||
            !(xdsi_name_families(s, name) & xdsi_name_families(o, &o->local)))
            continue;
        if (!xdsi_name_any(name) && !xdsi_name_any(&o->local) && memcmp(name->ip, o->local.ip, 16))
            continue;
        if (!s->reuse || !o->reuse || o->listening)
            return true;
    }
    return false;
}

/* From the stack's range, where nobody foresees it. */
int xdsi_name_port(struct xds_socks *n, const struct xdsi_sock *s, struct xdsi_name *name)
{
    const struct xds_stack_config *c = &n->stack->cfg;
    const uint32_t count = c->port_last - c->port_first + 1u;
    const uint64_t from[2] = {n->ports++, s->kind};
    const uint64_t first = xdsi_siphash(c->secret, (const uint8_t *)from, sizeof from);

    for (uint32_t i = 0; i < count; i++) {
        name->port = (uint16_t)(c->port_first + (uint32_t)((first + i) % count));
        if (!xdsi_name_taken(n, s, name))
            return 0;
    }
    name->port = 0;
    return -EADDRINUSE;
}

int xdsi_name_choose(struct xds_socks *n, struct xdsi_sock *s)
{
    return s->local.port ? 0 : xdsi_name_port(n, s, &s->local);
}
