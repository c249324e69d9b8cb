/* facade_filter.c: a membership's list of sources as a whole (RFC 3678 4.1.3, 5.1.3), set and told, as
 * ip_mc_msfilter(), ip_mc_msfget(), ip_mc_gsfget() and their kin of IPv6 do. */
#include "facade_int.h"

#define HEAD4 offsetof(struct ip_msfilter, imsf_slist)
#define HEAD  offsetof(struct group_filter, gf_slist)
#define ENTRY sizeof(struct sockaddr_storage)

/* What is asked of which group. */
struct filter {
    struct xdsi_addr a, sources[XDS_HOST_SOURCES];
    uint32_t count, mode;
    bool by_ours;
};

static int set(struct xds_socks *n, struct xdsi_sock *s, bool six, const struct filter *f)
{
    struct xdsi_member *m = xdsi_member_of(n, s, f->a);

    if (!xdsi_group_is(f->a) || xdsi_addr_is4(f->a) == six ||
        (f->mode != MCAST_INCLUDE && f->mode != MCAST_EXCLUDE))
        return -EINVAL;
    if (!f->by_ours)
        return -ENODEV;
    if (f->mode == MCAST_INCLUDE && !f->count)
        return xdsi_member_leave(n, s, f->a);
    if (!m)
        return -EINVAL;
    struct xdsi_member now = *m;
    now.include = f->mode == MCAST_INCLUDE;
    now.listed = f->count != 0;
    now.count = (uint8_t)f->count;
    memcpy(now.sources, f->sources, sizeof now.sources);
    return xdsi_member_change(n, m, &now);
}

static int set4(struct xds_socks *n, struct xdsi_sock *s, const uint8_t *value, uint32_t len)
{
    struct ip_msfilter head;
    struct filter f;

    if (len < HEAD4)
        return -EINVAL;
    memcpy(&head, value, HEAD4);
    f = (struct filter){.a = xdsi_addr4(head.imsf_multiaddr.s_addr),
                        .count = head.imsf_numsrc,
                        .mode = head.imsf_fmode,
                        .by_ours = xdsi_by_ours4(n, 0, head.imsf_interface.s_addr)};
    if (f.count > XDS_HOST_SOURCES)
        return -ENOBUFS;
    if (HEAD4 + f.count * sizeof(struct in_addr) > len)
        return -EINVAL;
    for (uint32_t i = 0; i < f.count; i++)
        f.sources[i] = xdsi_addr4(xdsi_raw32(value + HEAD4 + i * sizeof(struct in_addr)));
    return set(n, s, false, &f);
}

/* IPv6 does not look at families, as Linux does not. */
static bool end_in(const uint8_t *value, bool six, struct xdsi_addr *out)
{
    struct sockaddr_storage end;

    memcpy(&end, value, ENTRY);
    end.ss_family = six ? AF_INET6 : end.ss_family;
    return xdsi_address_in(&end, six, out);
}

int xdsi_set_filter(struct xds_socks *n, struct xdsi_sock *s, bool six, int option, const void *value,
                    uint32_t len)
{
    const uint8_t *bytes = value;
    struct group_filter head;
    struct filter f;

    if (option == IP_MSFILTER)
        return set4(n, s, value, len);
    if (len < HEAD)
        return -EINVAL;
    memcpy(&head, value, HEAD);
    if (head.gf_numsrc > XDS_HOST_SOURCES)
        return -ENOBUFS;
    if (HEAD + head.gf_numsrc * ENTRY > len)
        return -EINVAL;
    f = (struct filter){.count = head.gf_numsrc,
                        .mode = head.gf_fmode,
                        .by_ours = !head.gf_interface || head.gf_interface == n->cfg.scope};
    bool known = end_in(bytes + offsetof(struct group_filter, gf_group), six, &f.a);
    for (uint32_t i = 0; i < f.count && known; i++)
        known = end_in(bytes + HEAD + i * ENTRY, six, &f.sources[i]);
    return known ? set(n, s, six, &f) : -EADDRNOTAVAIL;
}

/* ---- told ------------------------------------------------------------------------------------------ */

/* How many of the sources there is room for: both words say so, and Linux believes the first. */
static uint32_t fit(const struct xdsi_member *m, uint32_t asked, uint32_t bytes, uint32_t entry)
{
    const uint32_t most = bytes / entry < asked ? bytes / entry : asked;
    return m->count < most ? m->count : most;
}

static int get4(const struct xds_socks *n, const struct xdsi_sock *s, uint8_t *value, uint32_t *len)
{
    struct ip_msfilter head;

    if (*len < HEAD4)
        return -EINVAL;
    memcpy(&head, value, HEAD4);
    const struct xdsi_addr a = xdsi_addr4(head.imsf_multiaddr.s_addr);
    if (!xdsi_group_is(a))
        return -EINVAL;
    if (!xdsi_by_ours4(n, 0, head.imsf_interface.s_addr))
        return -ENODEV;
    const struct xdsi_member *m = xdsi_member_of(n, s, a);
    if (!m)
        return -EADDRNOTAVAIL;
    const uint32_t count = fit(m, head.imsf_numsrc, *len - HEAD4, sizeof(struct in_addr));
    head.imsf_fmode = m->include ? MCAST_INCLUDE : MCAST_EXCLUDE;
    head.imsf_numsrc = m->count;
    memcpy(value, &head, HEAD4);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t ip = xdsi_addr_ip4(m->sources[i]);
        memcpy(value + HEAD4 + i * sizeof ip, &ip, sizeof ip);
    }
    *len = (uint32_t)(HEAD4 + count * sizeof(struct in_addr));
    return 0;
}

static void end_out(uint8_t *to, bool six, struct xdsi_addr a)
{
    const sa_family_t family = six ? AF_INET6 : AF_INET;
    uint8_t raw[16];

    memset(to, 0, ENTRY);
    memcpy(to, &family, sizeof family);
    xdsi_addr_put(raw, a);
    if (six)
        memcpy(to + offsetof(struct sockaddr_in6, sin6_addr), raw, 16);
    else
        memcpy(to + offsetof(struct sockaddr_in, sin_addr), raw + 12, 4);
}

int xdsi_get_filter(const struct xds_socks *n, const struct xdsi_sock *s, bool six, int option, void *value,
                    uint32_t *len)
{
    uint8_t *bytes = value;
    struct group_filter head;
    struct xdsi_addr a;

    if (option == IP_MSFILTER)
        return get4(n, s, value, len);
    if (*len < HEAD)
        return -EINVAL;
    memcpy(&head, value, HEAD);
    if (!xdsi_address_in(&head.gf_group, six, &a))
        return six ? -EADDRNOTAVAIL : -EINVAL;
    if (!xdsi_group_is(a) || xdsi_addr_is4(a) == six)
        return -EINVAL;
    const struct xdsi_member *m = head.gf_interface == n->cfg.scope ? xdsi_member_of(n, s, a) : NULL;
    if (!m)
        return -EADDRNOTAVAIL;
    const uint32_t count = fit(m, head.gf_numsrc, *len - HEAD, ENTRY);
    head.gf_fmode = m->include ? MCAST_INCLUDE : MCAST_EXCLUDE;
    head.gf_numsrc = m->count;
    memcpy(value, &head, HEAD);
    for (uint32_t i = 0; i < count; i++)
        end_out(bytes + HEAD + i * ENTRY, six, m->sources[i]);
    *len = (uint32_t)(HEAD + count * ENTRY);
    return 0;
}
