/* host_claim.c: own addresses: probed for before they are used, announced, defended (RFC 5227). */
#include "host_int.h"

#define PROBES        3           /* PROBE_NUM */
#define ANNOUNCEMENTS 2           /* ANNOUNCE_NUM */
#define DEFEND_NS     10000000000 /* DEFEND_INTERVAL */

static struct xdsi_own *own(const struct xds_host *h, uint32_t ip)
{
    for (uint32_t i = 0; i < h->own_count; i++)
        if (h->own[i].ip == ip)
            return (struct xdsi_own *)&h->own[i];
    return NULL;
}

bool xdsi_host_may_use(const struct xds_host *h, uint32_t ip)
{
    const struct xdsi_own *o = own(h, ip);
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

int xds_host_claim(struct xds_host *h, uint32_t ip, int64_t interval_ns, int64_t now)
{
    struct xdsi_own *o = own(h, ip);

    if (!o)
        return XDS_ESTATE;
    if (!h->has_mac || interval_ns <= 0)
        return XDS_ECONFIG;
    o->state = XDS_HOST_PROBING;
    o->left = PROBES;
    o->interval = interval_ns;
    o->due_ns = now + (int64_t)(xdsi_host_random(h) % (uint64_t)interval_ns);
    h->version++; /* ways from it are not used again */
    return 0;
}

int xds_host_claimed(const struct xds_host *h, uint32_t ip, uint8_t mac[6])
{
    const struct xdsi_own *o = own(h, ip);

    if (!o)
        return XDS_ESTATE;
    memcpy(mac, o->mac, 6);
    return o->state;
}

static bool announce(struct xds_host *h, const struct xdsi_own *o)
{
    const bool sent = xdsi_arp_ask(h, o->ip, o->ip);
    h->stats.arp_announced += sent;
    return sent;
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
        if (o->state == XDS_HOST_TAKEN || (o->ip != sender && !(o->state == XDS_HOST_PROBING && probes)))
            continue;
        memcpy(o->mac, a + 8, 6);
        h->stats.arp_conflicts++;
        xdsi_host_post(h, XDS_HOST_EVENT_CONFLICT, o->ip, o->mac, now);
        if (o->state == XDS_HOST_PROBING) {
            o->state = XDS_HOST_TAKEN;
            o->due_ns = XDS_NEVER;
        } else if (now - o->defended_ns >= DEFEND_NS && announce(h, o)) {
            o->defended_ns = now;
            h->stats.arp_defended++;
        }
    }
}

int64_t xdsi_claim_deadline(const struct xds_host *h)
{
    int64_t first = XDS_NEVER;

    for (uint32_t i = 0; i < h->own_count; i++)
        if (h->own[i].due_ns < first)
            first = h->own[i].due_ns;
    return first;
}

/* What finds no slot is tried again an interval later: three have been asked when it is claimed. */
static void probe(struct xds_host *h, struct xdsi_own *o, int64_t now)
{
    const int64_t wait = o->interval + (int64_t)(xdsi_host_random(h) % (uint64_t)o->interval);

    if (o->left) {
        const bool sent = xdsi_arp_ask(h, 0, o->ip);
        h->stats.arp_probed += sent;
        o->left -= sent;
        o->due_ns = now + (o->left ? wait : 2 * o->interval);
        return;
    }
    o->state = XDS_HOST_OWNED;
    o->left = ANNOUNCEMENTS;
    h->version++;
    xdsi_host_post(h, XDS_HOST_EVENT_CLAIMED, o->ip, h->mac, now);
}

void xdsi_claim_tick(struct xds_host *h, int64_t now)
{
    for (uint32_t i = 0; i < h->own_count; i++) {
        struct xdsi_own *o = &h->own[i];
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
