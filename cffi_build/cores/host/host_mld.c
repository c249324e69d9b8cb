/* host_mld.c: which groups are listened to, told to the routers of the link (RFC 3810, and 2710 where the querier
 * is older), from anybody or from a list of sources, as in host_igmp.c. A solicited-node group is one, as long as an
 * own address is in it (RFC 4861 7.2.1), and from anybody. */
#include "host6_int.h"

#define ROUTER_ALERT_BYTES 8
#define MESSAGE_BYTES      24 /* of version 1; of a query of version 2 28 */
#define RECORD_AT          8
#define RECORD_BYTES       20
#define UNSOLICITED        1000000000 /* RFC 3810 9.11 */
#define V1_UNSOLICITED     10000000000
#define MILLI              1000000ll
#define TENTH              (100 * MILLI)
#define OLDER              260000000000 /* 9.12: twice 125 s and 10 s */

enum { QUERY = 130, V1_REPORT = 131, V1_DONE = 132, V2_REPORT = 143 };
enum { IS_INCLUDE = 1, IS_EXCLUDE = 2, TO_INCLUDE = 3, TO_EXCLUDE = 4, ALLOW = 5, BLOCK = 6 };

static struct xdsi_addr all_v2_routers(void)
{
    return (struct xdsi_addr){0x02ff, 0x16ull << 56};
}

struct xdsi_group6 *xdsi_group6_find(const struct xds_host *h, struct xdsi_addr a)
{
    for (uint32_t i = 0; i < h->six.group_count; i++)
        if (xdsi_addr_same(h->six.groups[i].a, a))
            return &h->six.groups[i];
    return NULL;
}

static bool wanted(const struct xdsi_group6 *g)
{
    return g->joined || g->solicited;
}

/* RFC 3810 6: neither all nodes, nor what does not leave the interface. */
static bool is_told(const struct xds_host *h, struct xdsi_addr a)
{
    return h->flags & XDS_HOST_REPORTS && !xdsi_addr_same(a, xdsi_all_nodes()) && (a.high >> 8 & 15) >= 2;
}

/* Sources that count: who has a solicited-node group hears everybody. */
static uint32_t list_of(const struct xdsi_group6 *g)
{
    return g->solicited ? 0 : g->source_count;
}

static int64_t within(struct xds_host *h, int64_t ns)
{
    return ns > 0 ? (int64_t)(xdsi_host_random(h) % (uint64_t)ns) : 0;
}

static void changed(struct xds_host *h, struct xdsi_group6 *g)
{
    g->answer_due = XDS_NEVER;
    g->left = is_told(h, g->a) ? h->six.mld_robustness : 0;
    if (g->left)
        g->change_due = h->six.mld_due = INT64_MIN;
}

int xdsi_group6_join(struct xds_host *h, struct xdsi_addr a, bool by_user)
{
    struct xdsi_group6 *g = xdsi_group6_find(h, a);

    if (!g && h->six.group_count == h->cfg.groups + XDS_HOST_ADDRESSES)
        return XDS_ECAPACITY;
    if (!g) {
        g = &h->six.groups[h->six.group_count++];
        *g = (struct xdsi_group6){.a = a, .change_due = XDS_NEVER, .answer_due = XDS_NEVER};
    }
    const bool before = wanted(g);
    g->joined |= by_user;
    g->solicited += !by_user;
    if (!before)
        changed(h, g);
    return 0;
}

/* 0 where the user may have one group more, or has this one. */
static int may_join(const struct xds_host *h, struct xdsi_addr a)
{
    const struct xdsi_group6 *g = xdsi_group6_find(h, a);
    uint32_t joined = 0;

    if (!xdsi_addr_multicast(a) || !(a.high >> 8 & 15)) /* scope 0 is reserved (RFC 4291 2.7) */
        return XDS_ECONFIG;
    for (uint32_t i = 0; i < h->six.group_count; i++)
        joined += h->six.groups[i].joined;
    return (!g || !g->joined) && joined == h->cfg.groups ? XDS_ECAPACITY : 0;
}

int xds_host_join6(struct xds_host *h, const uint8_t group[16])
{
    const struct xdsi_addr a = xdsi_addr_of(group);

    if (xdsi_addr_is4(a))
        return xds_host_join(h, xdsi_addr_ip4(a));
    int code = may_join(h, a);
    if (!code)
        code = xdsi_group6_join(h, a, true);
    if (code)
        return code;
    struct xdsi_group6 *g = xdsi_group6_find(h, a);
    if (list_of(g))
        changed(h, g);
    g->source_count = g->blocked_count = 0; /* from anybody from now on */
    return 0;
}

int xds_host_join_source6(struct xds_host *h, const uint8_t group[16], const uint8_t source[16])
{
    const struct xdsi_addr a = xdsi_addr_of(group), from = xdsi_addr_of(source);
    struct xdsi_group6 *g = xdsi_group6_find(h, a);

    if (xdsi_addr_is4(a) != xdsi_addr_is4(from))
        return XDS_ECONFIG;
    if (xdsi_addr_is4(a))
        return xds_host_join_source(h, xdsi_addr_ip4(a), xdsi_addr_ip4(from));
    if (xdsi_addr_multicast(from) || xdsi_addr_none(from))
        return XDS_ECONFIG;
    if (g && g->joined && !g->source_count)
        return XDS_ESTATE;
    const bool before = g && wanted(g), there = g != NULL;
    int code = may_join(h, a);
    if (!code)
        code = xdsi_group6_join(h, a, true);
    if (code)
        return code;
    g = xdsi_group6_find(h, a);
    if (!before && there) { /* it was still being left */
        g->source_count = g->blocked_count = 0;
        g->turned = true;
    }
    for (uint32_t i = 0; i < g->source_count; i++)
        if (xdsi_addr_same(g->sources[i], from))
            return 0;
    if (g->source_count == XDS_HOST_SOURCES)
        return XDS_ECAPACITY;
    g->sources[g->source_count++] = from;
    for (uint32_t i = 0; i < g->blocked_count; i++)
        if (xdsi_addr_same(g->blocked[i], from))
            g->blocked[i--] = g->blocked[--g->blocked_count];
    if (!g->solicited)
        changed(h, g);
    return 0;
}

int xds_host_leave_source6(struct xds_host *h, const uint8_t group[16], const uint8_t source[16])
{
    const struct xdsi_addr a = xdsi_addr_of(group), from = xdsi_addr_of(source);
    struct xdsi_group6 *g = xdsi_group6_find(h, a);
    uint32_t at = 0;

    if (xdsi_addr_is4(a) && xdsi_addr_is4(from))
        return xds_host_leave_source(h, xdsi_addr_ip4(a), xdsi_addr_ip4(from));
    while (g && at < g->source_count && !xdsi_addr_same(g->sources[at], from))
        at++;
    if (!g || !g->joined || at == g->source_count)
        return XDS_ESTATE;
    if (g->source_count == 1)
        return xds_host_leave6(h, group);
    g->sources[at] = g->sources[--g->source_count];
    if (g->blocked_count == XDS_HOST_SOURCES)
        g->turned = true;
    else
        g->blocked[g->blocked_count++] = from;
    if (!g->solicited)
        changed(h, g);
    return 0;
}

int xds_host_leave6(struct xds_host *h, const uint8_t group[16])
{
    const struct xdsi_addr a = xdsi_addr_of(group);
    struct xdsi_group6 *g = xdsi_group6_find(h, a);

    if (xdsi_addr_is4(a))
        return xds_host_leave(h, xdsi_addr_ip4(a));
    if (!g || !g->joined)
        return XDS_ESTATE;
    g->joined = false;
    if (g->solicited) {
        g->source_count = g->blocked_count = 0;
        return 0;
    }
    changed(h, g);
    if (!g->left)
        *g = h->six.groups[--h->six.group_count];
    return 0;
}

/* ---- reports -------------------------------------------------------------------------------------- */

/* From a link-local address, or while there is none from nobody (RFC 3590, 3810 5.2.13). */
static struct xdsi_addr source(const struct xds_host *h)
{
    for (uint32_t i = 0; i < h->six.own_count; i++)
        if (!h->six.own[i].state && xdsi_addr_link_local(h->six.own[i].a))
            return h->six.own[i].a;
    return XDSI_NO_HOP;
}

/* A slot with everything up to the message; NULL: none is free. */
static uint8_t *packet(struct xds_host *h, struct xdsi_addr dst, uint32_t len)
{
    uint8_t mac[6];

    xdsi_group_mac6(dst, mac);
    uint8_t *o = xdsi_slot6(h, mac, source(h), dst, XDSI_NEXT_HOPS, 1, ROUTER_ALERT_BYTES + len);
    if (!o)
        return NULL;
    memcpy(o, "\x3a\0\5\2\0\0\1\0", ROUTER_ALERT_BYTES); /* RFC 2711, and padding */
    memset(o + ROUTER_ALERT_BYTES, 0, len);
    return o + ROUTER_ALERT_BYTES;
}

static bool send_old(struct xds_host *h, unsigned type, struct xdsi_addr group)
{
    uint8_t *m = packet(h, type == V1_DONE ? xdsi_all_routers() : group, MESSAGE_BYTES);

    if (!m)
        return false;
    m[0] = (uint8_t)type;
    xdsi_addr_put(m + 8, group);
    xdsi_seal6(m - ROUTER_ALERT_BYTES - XDSI_IPV6_BYTES, m, MESSAGE_BYTES);
    h->stats.mld_reports++;
    return true;
}

/* A record of a change, or of the state: those of a list of sources that the mask says. Its bytes. */
static uint32_t record(uint8_t *r, struct xdsi_addr group, unsigned type, const struct xdsi_addr *list,
                       uint32_t mask)
{
    uint32_t n = 0;

    for (uint32_t i = 0; mask >> i; i++)
        if (mask >> i & 1)
            xdsi_addr_put(r + RECORD_BYTES + 16 * n++, list[i]);
    r[0] = (uint8_t)type;
    xdsi_put16(r + 2, n);
    xdsi_addr_put(r + 4, group);
    return RECORD_BYTES + 16 * n;
}

static uint32_t first_of(uint32_t count)
{
    return count ? 0xffffffffu >> (32 - count) : 0;
}

/* One record; gone: and one of what is blocked, 0: none. */
static bool send_record(struct xds_host *h, const struct xdsi_group6 *g, unsigned type, uint32_t mask,
                        uint32_t gone)
{
    const uint32_t first = RECORD_BYTES + 16 * (uint32_t)__builtin_popcount(mask);
    const uint32_t len =
        RECORD_AT + first + (gone ? RECORD_BYTES + 16 * (uint32_t)__builtin_popcount(gone) : 0);
    uint8_t *m = packet(h, all_v2_routers(), len);

    if (!m)
        return false;
    m[0] = V2_REPORT;
    xdsi_put16(m + 6, gone ? 2 : 1);
    record(m + RECORD_AT, g->a, type, g->sources, mask);
    if (gone)
        record(m + RECORD_AT + first, g->a, BLOCK, g->blocked, gone);
    xdsi_seal6(m - ROUTER_ALERT_BYTES - XDSI_IPV6_BYTES, m, len);
    h->stats.mld_reports++;
    return true;
}

static bool send_change(struct xds_host *h, const struct xdsi_group6 *g, bool old)
{
    const uint32_t all = first_of(list_of(g));

    if (old)
        return send_old(h, wanted(g) ? V1_REPORT : V1_DONE, g->a);
    if (all && g->turned)
        return send_record(h, g, TO_INCLUDE, wanted(g) ? all : 0, 0);
    if (all)
        return send_record(h, g, wanted(g) ? ALLOW : BLOCK, all, first_of(g->blocked_count));
    return send_record(h, g, wanted(g) ? TO_EXCLUDE : TO_INCLUDE, 0, 0);
}

static bool send_state(struct xds_host *h, const struct xdsi_group6 *g, bool old)
{
    const uint32_t all = first_of(list_of(g));

    if (old)
        return send_old(h, V1_REPORT, g->a);
    return send_record(h, g, all ? IS_INCLUDE : IS_EXCLUDE, g->asked & all, 0);
}

/* ---- queries -------------------------------------------------------------------------------------- */

/* 5.1.3: sixteen bits, in milliseconds. */
static int64_t longest_wait(uint32_t code)
{
    return MILLI * (code < 32768 ? code : ((code & 0xfffu) | 0x1000u) << ((code >> 12 & 7) + 3));
}

/* Which of ours are among the sources of a query; those of everybody are all asked for at once. */
static uint32_t asked_of(const struct xdsi_group6 *g, const uint8_t *m, uint32_t count)
{
    uint32_t mask = 0;

    if (!count || !list_of(g))
        return 0xffffffff;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < g->source_count; k++)
            if (xdsi_addr_same(g->sources[k], xdsi_addr_of(m + MESSAGE_BYTES + 4 + 16 * i)))
                mask |= 1u << k;
    return mask;
}

static enum xds_host_reason query(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                  uint32_t len, int64_t now)
{
    const struct xdsi_addr group = xdsi_addr_of(m + 8);
    const bool all = xdsi_addr_none(group), old = len == MESSAGE_BYTES;
    const int64_t wait = old ? MILLI * xdsi_be16(m + 4) : longest_wait(xdsi_be16(m + 4));

    if (!old && (len < MESSAGE_BYTES + 4 || len < MESSAGE_BYTES + 4 + 16u * xdsi_be16(m + 26)))
        return XDS_HOST_MLD_BAD;
    if (all ? !xdsi_addr_same(p->dst, xdsi_all_nodes()) && xdsi_addr_multicast(p->dst)
            : !xdsi_addr_multicast(group) || (!xdsi_addr_same(p->dst, group) && xdsi_addr_multicast(p->dst)))
        return XDS_HOST_MLD_BAD;
    if (old)
        h->six.mld_v1_until = now + OLDER;
    else if (m[24] & 7)
        h->six.mld_robustness = m[24] & 7;
    h->stats.mld_queries++;
    for (uint32_t i = 0; i < h->six.group_count; i++) {
        struct xdsi_group6 *g = &h->six.groups[i];
        if ((!all && !xdsi_addr_same(g->a, group)) || !wanted(g) || !is_told(h, g->a))
            continue;
        const uint32_t asked = asked_of(g, m, old ? 0 : xdsi_be16(m + 26));
        if (!asked)
            continue;
        const int64_t due = now + within(h, wait);
        g->asked = g->answer_due == XDS_NEVER ? asked : g->asked | asked;
        g->answer_due = due < g->answer_due ? due : g->answer_due; /* 6.2: two queries, one answer */
        h->six.mld_due = g->answer_due < h->six.mld_due ? g->answer_due : h->six.mld_due;
    }
    return XDS_HOST_MLD;
}

enum xds_host_reason xdsi_host_mld(struct xds_host *h, const struct xdsi_in6 *p, const uint8_t *m,
                                   uint32_t len, int64_t now)
{
    const bool v2_report = m[0] == V2_REPORT;

    if (!(h->flags & XDS_HOST_REPORTS))
        return XDS_HOST_ICMP_OTHER;
    if (len < (v2_report ? 8 : MESSAGE_BYTES) || p->ip[7] != 1 || !p->alert ||
        (!xdsi_addr_link_local(p->src) && !(m[0] != QUERY && xdsi_addr_none(p->src))))
        return XDS_HOST_MLD_BAD; /* 6.2 */
    if (m[0] == QUERY)
        return query(h, p, m, len, now);
    struct xdsi_group6 *g = m[0] == V1_REPORT ? xdsi_group6_find(h, xdsi_addr_of(m + 8)) : NULL;
    if (g && now < h->six.mld_v1_until)
        g->answer_due = XDS_NEVER; /* RFC 2710 4: somebody has said it */
    return XDS_HOST_MLD;
}

/* ---- time ----------------------------------------------------------------------------------------- */

static int64_t due_of(const struct xdsi_group6 *g)
{
    return g->left && g->change_due < g->answer_due ? g->change_due : g->answer_due;
}

/* What finds no slot waits a little. */
void xdsi_mld_tick(struct xds_host *h, int64_t now)
{
    const bool old = now < h->six.mld_v1_until;

    if (h->six.mld_due > now)
        return;
    h->six.mld_due = XDS_NEVER;
    for (uint32_t i = 0; i < h->six.group_count; i++) {
        struct xdsi_group6 *g = &h->six.groups[i];
        if (g->answer_due <= now) {
            g->answer_due = send_state(h, g, old) ? XDS_NEVER : now + TENTH;
        }
        if (g->left && g->change_due <= now) {
            const bool sent = send_change(h, g, old);
            g->left -= sent;
            g->change_due = now + (sent ? 1 + within(h, old ? V1_UNSOLICITED : UNSOLICITED) : TENTH);
        }
        if (!g->left) {
            g->blocked_count = 0;
            g->turned = false;
        }
        if (!g->left && !wanted(g))
            h->six.groups[i--] = h->six.groups[--h->six.group_count];
        else if (due_of(g) < h->six.mld_due)
            h->six.mld_due = due_of(g);
    }
}
