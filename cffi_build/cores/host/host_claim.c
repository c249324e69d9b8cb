/* host_claim.c: own addresses: probed for before they are used, announced, defended (RFC 5227, 4862). */
#include "host6_int.h"

#define PROBES        3           /* PROBE_NUM */
#define PROBES6       1           /* RFC 4862 5.1: DupAddrDetectTransmits */
#define ANNOUNCEMENTS 2           /* ANNOUNCE_NUM */
#define DEFEND_NS     10000000000 /* DEFEND_INTERVAL */

struct xdsi_own *xdsi_host_own(const struct xds_host *h, struct xdsi_addr ip)
{
    const bool four = xdsi_addr_is4(ip);
    const struct xdsi_own *own = four ? h->own : h->six.own;

    for (uint32_t i = 0; i < (four ? h->own_count : h->six.own_count); i++)
        if (xdsi_addr_same(own[i].a, ip))
            return (struct xdsi_own *)&own[i];
    return NULL;
}

/* The n-th of all own addresses, IPv4's first; NULL: there is none. */
static struct xdsi_own *nth(const struct xds_host *h, uint32_t n)
{
    if (n < h->own_count)
        return (struct xdsi_own *)&h->own[n];
    return n - h->own_count < h->six.own_count ? (struct xdsi_own *)&h->six.own[n - h->own_count] : NULL;
}

bool xdsi_host_may_use(const struct xds_host *h, uint32_t ip)
{
    const struct xdsi_own *o = xdsi_host_own(h, xdsi_addr4(ip));
    return o && o->state == XDS_HOST_OWNED;
}

/* SplitMix64: waits are to differ between hosts, no more. */
uint64_t xdsi_host_random(struct xds_host *h)
{
    uint64_t z = h->random += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int claim(struct xds_host *h, struct xdsi_addr ip, int64_t interval_ns, int64_t now)
{
    struct xdsi_own *o = xdsi_host_own(h, ip);

    if (!o)
        return XDS_ESTATE;
    if (!h->has_mac || interval_ns <= 0)
        return XDS_ECONFIG;
    o->state = XDS_HOST_PROBING;
    o->left = o->ip ? PROBES : PROBES6;
    o->interval = interval_ns;
    o->due_ns = now + (int64_t)(xdsi_host_random(h) % (uint64_t)interval_ns);
    h->version++; /* ways from it are not used again */
    return 0;
}

int xds_host_claim(struct xds_host *h, uint32_t ip, int64_t interval_ns, int64_t now)
{
    return claim(h, xdsi_addr4(ip), interval_ns, now);
}

int xds_host_claim6(struct xds_host *h, const uint8_t ip[16], int64_t interval_ns, int64_t now)
{
    return claim(h, xdsi_addr_of(ip), interval_ns, now);
}

int xds_host_claimed(const struct xds_host *h, uint32_t ip, uint8_t mac[6])
{
    uint8_t a[16];

    xdsi_map4(a, ip);
    return xds_host_claimed6(h, a, mac);
}

int xds_host_claimed6(const struct xds_host *h, const uint8_t ip[16], uint8_t mac[6])
{
    const struct xdsi_own *o = xdsi_host_own(h, xdsi_addr_of(ip));

    if (!o)
        return XDS_ESTATE;
    memcpy(mac, o->mac, 6);
    return o->state;
}

static bool announce(struct xds_host *h, const struct xdsi_own *o)
{
    const bool sent = o->ip ? xdsi_arp_ask(h, o->ip, o->ip) : xdsi_ndp_announce(h, o->a);
    *(o->ip ? &h->stats.arp_announced : &h->stats.ndp_announced) += sent;
    return sent;
}

void xdsi_claim_conflict(struct xds_host *h, struct xdsi_own *o, const uint8_t mac[6], int64_t now)
{
    if (o->state == XDS_HOST_TAKEN)
        return;
    memcpy(o->mac, mac, 6);
    h->stats.arp_conflicts++;
    xdsi_host_post(h, XDS_HOST_EVENT_CONFLICT, o->a, o->mac, now);
    if (o->state == XDS_HOST_PROBING) {
        o->state = XDS_HOST_TAKEN;
        o->due_ns = XDS_NEVER;
    } else if (now - o->defended_ns >= DEFEND_NS && announce(h, o)) {
        o->defended_ns = now;
        h->stats.arp_defended++;
    }
}

/* 2.1.1: while we probe a probe for the same address is a conflict too. 2.4: later it is defended. */
void xdsi_claim_saw(struct xds_host *h, const uint8_t *a, int64_t now)
{
    const uint32_t sender = xdsi_raw32(a + 14), target = xdsi_raw32(a + 24);

    if (!h->has_mac || h->flags & XDS_HOST_NO_ARP_ANSWER || !memcmp(a + 8, h->mac, 6))
        return; /* our own, by a switch that sends it back; or the kernel's address, and its business */
    for (uint32_t i = 0; i < h->own_count; i++) {
        struct xdsi_own *o = &h->own[i];
        const bool probes = !sender && target == o->ip && xdsi_be16(a + 6) == 1;
        if (o->ip == sender || (o->state == XDS_HOST_PROBING && probes))
            xdsi_claim_conflict(h, o, a + 8, now);
    }
}

int64_t xdsi_claim_deadline(const struct xds_host *h)
{
    int64_t first = XDS_NEVER;

    for (uint32_t i = 0; i < h->own_count; i++)
        if (h->own[i].due_ns < first)
            first = h->own[i].due_ns;
    for (uint32_t i = 0; i < h->six.own_count; i++)
        if (h->six.own[i].due_ns < first)
            first = h->six.own[i].due_ns;
    return first;
}

/* What finds no slot is tried again an interval later: three have been asked when it is claimed. */
static void probe(struct xds_host *h, struct xdsi_own *o, int64_t now)
{
    const int64_t wait = o->interval + (int64_t)(xdsi_host_random(h) % (uint64_t)o->interval);

    if (o->left) {
        const bool sent = o->ip ? xdsi_arp_ask(h, 0, o->ip) : xdsi_ndp_probe(h, o->a);
        *(o->ip ? &h->stats.arp_probed : &h->stats.ndp_probed) += sent;
        o->left -= sent;
        o->due_ns = now + (o->left ? wait : (o->ip ? 2 : 1) * o->interval);
        return;
    }
    o->state = XDS_HOST_OWNED;
    o->left = ANNOUNCEMENTS;
    h->version++;
    xdsi_host_post(h, XDS_HOST_EVENT_CLAIMED, o->a, h->mac, now);
}

void xdsi_claim_tick(struct xds_host *h, int64_t now)
{
    struct xdsi_own *o;

    for (uint32_t i = 0; (o = nth(h, i)); i++) {
        if (o->due_ns > now)
            continue;
        if (o->state == XDS_HOST_PROBING)
            probe(h, o, now);
        if (o->state != XDS_HOST_OWNED)
            continue;
        o->left -= announce(h, o);
        o->due_ns = o->left ? now + 2 * o->interval : XDS_NEVER;
    }
}
