/* host_igmp.c: groups as routers and switches are told of them: IGMPv3 (RFC 3376), and version 2 or 1 where that
 * is what is asked (RFC 2236, 1112).
 *
 * A group is either wanted from anybody, or from a list of sources. A change is reported at once, and again
 * robustness - 1 times, a random part of a second apart; a query is answered after a random part of the time that
 * it names. Everything lies in one table: what was left stays in it until that has been said often enough.
 */
#include "host_int.h"

#define ALL_ROUTERS    0x020000e0u
#define ALL_V3         0x160000e0u
#define IHL_BYTES      24         /* with the router alert */
#define RECORD_BYTES   8          /* without sources */
#define UNSOLICITED    1000000000 /* 8.11 */
#define V2_UNSOLICITED 10000000000
#define TENTH          100000000
#define OLDER          260000000000 /* 8.12: twice 125 s and 10 s */

enum { QUERY = 0x11, V1_REPORT = 0x12, V2_REPORT = 0x16, V2_LEAVE = 0x17, V3_REPORT = 0x22 };
enum { IS_INCLUDE = 1, IS_EXCLUDE = 2, TO_INCLUDE = 3, TO_EXCLUDE = 4, ALLOW = 5, BLOCK = 6 };

struct xdsi_group *xdsi_group_find(const struct xds_host *h, uint32_t ip)
{
    for (uint32_t i = 0; i < h->group_count; i++)
        if (h->groups[i].ip == ip)
            return &h->groups[i];
    return NULL;
}

static int64_t within(struct xds_host *h, int64_t ns)
{
    return ns > 0 ? (int64_t)(xdsi_host_random(h) % (uint64_t)ns) : 0;
}

static unsigned version(const struct xds_host *h, int64_t now)
{
    return now < h->igmp_v1_until ? 1 : now < h->igmp_v2_until ? 2 : 3;
}

/* ---- what is wanted ------------------------------------------------------------------------------ */

/* A change: robustness reports of it, the first at the next tick. */
void xdsi_group_changed(struct xds_host *h, struct xdsi_group *g)
{
    g->answer_due = XDS_NEVER;
    if (!(h->flags & XDS_HOST_REPORTS) || g->ip == XDSI_ALL_SYSTEMS)
        return;
    g->left = h->igmp_robustness;
    g->change_due = h->igmp_due = INT64_MIN;
}

/* ---- reports ------------------------------------------------------------------------------------- */

/* A slot with everything up to the IGMP message; NULL: none is free. */
static uint8_t *packet(struct xds_host *h, uint32_t dst, uint32_t len)
{
    const uint32_t bytes = h->l2_len + IHL_BYTES + len;
    uint8_t *d, mac[6];

    if (!h->has_mac ||
        !xdsi_host_slot(h, bytes < XDSI_FRAME_MIN ? XDSI_FRAME_MIN : bytes, XDSI_SLOT_READY, XDSI_NO_HOP, &d))
        return NULL;
    memset(d, 0, bytes < XDSI_FRAME_MIN ? XDSI_FRAME_MIN : bytes);
    xdsi_group_mac(dst, mac);
    xdsi_write_link(h, d, mac);
    uint8_t *ip = d + h->l2_len;
    ip[0] = 0x46;
    ip[1] = 0xc0; /* 4: internetwork control */
    xdsi_put16(ip + 2, IHL_BYTES + len);
    ip[6] = 0x40;
    ip[8] = 1;
    ip[9] = XDSI_IPPROTO_IGMP;
    xdsi_put_raw32(ip + 12, h->own_count && !h->own[0].state ? h->own[0].ip : 0); /* 4.2.13 */
    xdsi_put_raw32(ip + 16, dst);
    ip[20] = 0x94, ip[21] = 4; /* router alert */
    xdsi_put_raw16(ip + 10, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, ip, IHL_BYTES)));
    return ip + IHL_BYTES;
}

static void seal(struct xds_host *h, uint8_t *m, uint32_t len)
{
    xdsi_put_raw16(m + 2, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, m, len)));
    h->stats.igmp_reports++;
}

static bool send_old(struct xds_host *h, unsigned type, uint32_t group)
{
    uint8_t *m = packet(h, type == V2_LEAVE ? ALL_ROUTERS : group, 8);

    if (!m)
        return false;
    m[0] = (uint8_t)type;
    xdsi_put_raw32(m + 4, group);
    seal(h, m, 8);
    return true;
}

/* A record of a change, or of the state: those of a list of sources that the mask says. Its bytes. */
static uint32_t record(uint8_t *r, uint32_t group, unsigned type, const uint32_t *list, uint32_t mask)
{
    uint32_t n = 0;

    for (uint32_t i = 0; mask >> i; i++)
        if (mask >> i & 1)
            xdsi_put_raw32(r + RECORD_BYTES + 4 * n++, list[i]);
    r[0] = (uint8_t)type;
    xdsi_put16(r + 2, n);
    xdsi_put_raw32(r + 4, group);
    return RECORD_BYTES + 4 * n;
}

/* One record; gone: and one of what is blocked, 0: none. */
static bool send_one(struct xds_host *h, const struct xdsi_group *g, unsigned type, uint32_t mask,
                     uint32_t gone)
{
    const uint32_t first = RECORD_BYTES + 4 * (uint32_t)__builtin_popcount(mask);
    const uint32_t second = gone ? RECORD_BYTES + 4 * (uint32_t)__builtin_popcount(gone) : 0;
    uint8_t *m = packet(h, ALL_V3, 8 + first + second);

    if (!m)
        return false;
    m[0] = V3_REPORT;
    xdsi_put16(m + 6, gone ? 2 : 1);
    record(m + 8, g->ip, type, g->sources, mask);
    if (gone)
        record(m + 8 + first, g->ip, BLOCK, g->blocked, gone);
    seal(h, m, 8 + first + second);
    return true;
}

static uint32_t first_of(uint32_t count)
{
    return count ? 0xffffffffu >> (32 - count) : 0;
}

static uint32_t all_of(const struct xdsi_group *g)
{
    return first_of(g->source_count);
}

/* 5.1. */
static bool send_change(struct xds_host *h, const struct xdsi_group *g, int64_t now)
{
    const unsigned v = version(h, now);

    if (v < 3)
        return g->wanted ? send_old(h, v == 1 ? V1_REPORT : V2_REPORT, g->ip)
                         : v == 1 || send_old(h, V2_LEAVE, g->ip);
    if (g->source_count && g->turned)
        return send_one(h, g, TO_INCLUDE, g->wanted ? all_of(g) : 0, 0);
    if (g->source_count)
        return send_one(h, g, g->wanted ? ALLOW : BLOCK, all_of(g), first_of(g->blocked_count));
    return send_one(h, g, g->wanted ? TO_EXCLUDE : TO_INCLUDE, 0, 0);
}

static bool send_state(struct xds_host *h, struct xdsi_group *g, int64_t now)
{
    const unsigned v = version(h, now);

    if (v < 3)
        return send_old(h, v == 1 ? V1_REPORT : V2_REPORT, g->ip);
    return send_one(h, g, g->source_count ? IS_INCLUDE : IS_EXCLUDE, g->asked & all_of(g), 0);
}

/* ---- queries ------------------------------------------------------------------------------------- */

/* 4.1.1: eight bits, in tenths of a second. */
static int64_t longest_wait(unsigned code)
{
    return TENTH * (code < 128 ? code : ((code & 15u) | 16u) << ((code >> 4 & 7) + 3));
}

static void answer(struct xds_host *h, struct xdsi_group *g, uint32_t asked, int64_t wait, int64_t now)
{
    const int64_t due = now + within(h, wait);

    if (!g->wanted || g->ip == XDSI_ALL_SYSTEMS || !asked)
        return;
    g->asked =
        g->answer_due == XDS_NEVER ? asked : g->asked | asked; /* 5.2: two queries, one answer to both */
    if (due < g->answer_due)
        g->answer_due = due;
    if (due < h->igmp_due)
        h->igmp_due = due;
}

/* Which of ours are among the sources of a query; those of everybody are all asked for at once. */
static uint32_t asked_of(const struct xdsi_group *g, const uint8_t *m, uint32_t count)
{
    uint32_t mask = 0;

    if (!count || !g->source_count)
        return 0xffffffff;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < g->source_count; k++)
            if (g->sources[k] == xdsi_raw32(m + 12 + 4 * i))
                mask |= 1u << k;
    return mask;
}

static enum xds_host_reason query(struct xds_host *h, const uint8_t *ip, const uint8_t *m, uint32_t len,
                                  int64_t now)
{
    const uint32_t group = xdsi_raw32(m + 4), count = len >= 12 ? xdsi_be16(m + 10) : 0;
    const uint32_t dst = xdsi_raw32(ip + 16);
    int64_t wait = len >= 12 ? longest_wait(m[1]) : TENTH * (int64_t)m[1];

    if (len > 8 && (len < 12 || len < 12 + 4 * count))
        return XDS_HOST_IGMP_BAD;
    if (group ? !xdsi_is_multicast(group) || (dst != group && !xdsi_host_is_own(h, dst))
              : dst != XDSI_ALL_SYSTEMS)
        return XDS_HOST_IGMP_BAD; /* 4.1.12, and the same for a group */
    if (len == 8 && !m[1]) {
        wait = V2_UNSOLICITED;
        h->igmp_v1_until = now + OLDER;
    } else if (len == 8) {
        h->igmp_v2_until = now + OLDER;
    } else if (m[8] & 7) {
        h->igmp_robustness = m[8] & 7;
    }
    h->stats.igmp_queries++;
    for (uint32_t i = 0; i < h->group_count; i++)
        if (!group || h->groups[i].ip == group)
            answer(h, &h->groups[i], asked_of(&h->groups[i], m, count), wait, now);
    return XDS_HOST_IGMP;
}

enum xds_host_reason xdsi_host_igmp(struct xds_host *h, const uint8_t *ip, const uint8_t *m, uint32_t len,
                                    int64_t now)
{
    if (len < 8 || xdsi_csum_fold(xdsi_csum_add(0, m, len)) != 0xffff || ip[8] != 1)
        return XDS_HOST_IGMP_BAD;
    if (m[0] == QUERY)
        return query(h, ip, m, len, now);
    struct xdsi_group *g = xdsi_group_find(h, xdsi_raw32(m + 4));
    if ((m[0] == V1_REPORT || m[0] == V2_REPORT) && g && version(h, now) < 3)
        g->answer_due = XDS_NEVER; /* RFC 2236 3: somebody has said it */
    return XDS_HOST_IGMP;
}

/* ---- time ---------------------------------------------------------------------------------------- */

static int64_t due_of(const struct xdsi_group *g)
{
    return g->left && g->change_due < g->answer_due ? g->change_due : g->answer_due;
}

/* What finds no slot waits a little. */
void xdsi_igmp_tick(struct xds_host *h, int64_t now)
{
    if (h->igmp_due > now)
        return;
    h->igmp_due = XDS_NEVER;
    for (uint32_t i = 0; i < h->group_count; i++) {
        struct xdsi_group *g = &h->groups[i];
        if (g->answer_due <= now)
            g->answer_due = send_state(h, g, now) ? XDS_NEVER : now + TENTH;
        if (g->left && g->change_due <= now) {
            const int64_t most = version(h, now) == 3 ? UNSOLICITED : V2_UNSOLICITED;
            const bool sent = send_change(h, g, now);
            g->left -= sent;
            g->change_due = now + (sent ? 1 + within(h, most) : TENTH);
        }
        if (!g->left) {
            g->blocked_count = 0;
            g->turned = false;
        }
        if (!g->left && !g->wanted)
            h->groups[i--] = h->groups[--h->group_count];
        else if (due_of(g) < h->igmp_due)
            h->igmp_due = due_of(g);
    }
}
