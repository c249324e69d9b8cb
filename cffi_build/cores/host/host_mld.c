/* host_mld.c: which groups are listened to, told to the routers of the link (RFC 3810, and 2710 where the querier
 * is older). Groups have no lists of sources here. A solicited-node group is one, as long as an own address is in it
 * (RFC 4861 7.2.1). */
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
enum { IS_EXCLUDE = 2, TO_INCLUDE = 3, TO_EXCLUDE = 4 };

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

int xds_host_join6(struct xds_host *h, const uint8_t group[16])
{
    const struct xdsi_addr a = xdsi_addr_of(group);
    uint32_t joined = 0;

    if (xdsi_addr_is4(a))
        return xds_host_join(h, xdsi_addr_ip4(a));
    if (!xdsi_addr_multicast(a) || !(a.high >> 8 & 15)) /* scope 0 is reserved (RFC 4291 2.7) */
        return XDS_ECONFIG;
    for (uint32_t i = 0; i < h->six.group_count; i++)
        joined += h->six.groups[i].joined;
    const struct xdsi_group6 *g = xdsi_group6_find(h, a);
    if ((!g || !g->joined) && joined == h->cfg.groups)
        return XDS_ECAPACITY;
    return xdsi_group6_join(h, a, true);
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
    if (g->solicited)
        return 0;
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

static bool send_record(struct xds_host *h, unsigned type, struct xdsi_addr group)
{
    const uint32_t len = RECORD_AT + RECORD_BYTES;
    uint8_t *m = packet(h, all_v2_routers(), len);

    if (!m)
        return false;
    m[0] = V2_REPORT;
    xdsi_put16(m + 6, 1);
    m[RECORD_AT] = (uint8_t)type;
    xdsi_addr_put(m + RECORD_AT + 4, group);
    xdsi_seal6(m - ROUTER_ALERT_BYTES - XDSI_IPV6_BYTES, m, len);
    h->stats.mld_reports++;
    return true;
}

static bool send_change(struct xds_host *h, const struct xdsi_group6 *g, bool old)
{
    if (old)
        return send_old(h, wanted(g) ? V1_REPORT : V1_DONE, g->a);
    return send_record(h, wanted(g) ? TO_EXCLUDE : TO_INCLUDE, g->a);
}

/* ---- queries -------------------------------------------------------------------------------------- */

/* 5.1.3: sixteen bits, in milliseconds. */
static int64_t longest_wait(uint32_t code)
{
    return MILLI * (code < 32768 ? code : ((code & 0xfffu) | 0x1000u) << ((code >> 12 & 7) + 3));
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
        const int64_t due = now + within(h, wait);
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
            const bool sent = old ? send_old(h, V1_REPORT, g->a) : send_record(h, IS_EXCLUDE, g->a);
            g->answer_due = sent ? XDS_NEVER : now + TENTH;
        }
        if (g->left && g->change_due <= now) {
            const bool sent = send_change(h, g, old);
            g->left -= sent;
            g->change_due = now + (sent ? 1 + within(h, old ? V1_UNSOLICITED : UNSOLICITED) : TENTH);
        }
        if (!g->left && !wanted(g))
            h->six.groups[i--] = h->six.groups[--h->six.group_count];
        else if (due_of(g) < h->six.mld_due)
            h->six.mld_due = due_of(g);
    }
}
