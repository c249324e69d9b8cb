/* host_neighbour.c: neighbours by IPv4 and IPv6: asked for, known, out of date (RFC 1122 2.3.2, RFC 4861 7.3).
 *
 * An entry that nothing confirmed for age_ns is used on, and asked for when it is; three questions unanswered end
 * it. That is RFC 4861's reachable, stale and probe; its delay, in which an ACK might come, is left out: a question to
 * the neighbour alone costs less than to be told of ACKs. */
#include "host6_int.h"

void xdsi_host_post(struct xds_host *h, unsigned kind, struct xdsi_addr ip, const uint8_t mac[6], int64_t now)
{
    if (h->ev_tail - h->ev_head == XDSI_HOST_EVENTS)
        h->ev_head++; /* the oldest is forgotten: the table itself holds what is true now */
    struct xds_host_event *e = &h->events[h->ev_tail++ % XDSI_HOST_EVENTS];
    *e = (struct xds_host_event){
        .ns = now, .ip = xdsi_addr_is4(ip) ? xdsi_addr_ip4(ip) : 0, .kind = (uint16_t)kind};
    memcpy(e->mac, mac, 6);
    xdsi_addr_put(e->address, ip);
}

static void post(struct xds_host *h, unsigned kind, const struct xdsi_neighbour *n, int64_t now)
{
    xdsi_host_post(h, kind, n->ip, n->mac, now);
}

struct xdsi_neighbour *xdsi_neighbour_find(const struct xds_host *h, struct xdsi_addr ip)
{
    for (uint32_t i = 0; i < h->neighbour_count; i++)
        if (xdsi_addr_same(h->neighbours[i].ip, ip) && h->neighbours[i].state != XDSI_NB_FREE)
            return &h->neighbours[i];
    return NULL;
}

/* A new entry; in a full table the one that was not heard of for longest goes, fixed ones stay. */
struct xdsi_neighbour *xdsi_neighbour_new(struct xds_host *h, struct xdsi_addr ip)
{
    struct xdsi_neighbour *n = NULL;

    for (uint32_t i = 0; i < h->neighbour_count && !n; i++)
        if (h->neighbours[i].state == XDSI_NB_FREE)
            n = &h->neighbours[i];
    if (!n && h->neighbour_count < h->cfg.neighbours)
        n = &h->neighbours[h->neighbour_count++];
    for (uint32_t i = 0; i < h->neighbour_count && (!n || n->state); i++) {
        struct xdsi_neighbour *o = &h->neighbours[i];
        if (o->state == XDSI_NB_KNOWN && (!n || o->seen_ns < n->seen_ns))
            n = o;
    }
    if (n)
        *n = (struct xdsi_neighbour){.ip = ip, .due_ns = XDS_NEVER};
    h->version++;
    return n;
}

/* What waited for it may go. */
static void release_held(struct xds_host *h, const struct xdsi_neighbour *n)
{
    for (uint32_t i = 0; i < h->cfg.slots; i++) {
        struct xdsi_host_slot *s = &h->slots[i];
        if (s->state != XDSI_SLOT_HELD || !xdsi_addr_same(s->hop, n->ip))
            continue;
        memcpy(h->slab + (size_t)i * h->cfg.slot_bytes, n->mac, 6);
        s->state = XDSI_SLOT_READY;
        h->ready++;
        h->stats.sent++;
    }
}

int xds_host_add_neighbour(struct xds_host *h, uint32_t ip, const uint8_t *mac)
{
    uint8_t a[16];

    xdsi_map4(a, ip);
    return xds_host_add_neighbour6(h, a, mac);
}

int xds_host_add_neighbour6(struct xds_host *h, const uint8_t ip[16], const uint8_t *mac)
{
    struct xdsi_neighbour *n = xdsi_neighbour_find(h, xdsi_addr_of(ip));

    if (!n && !(n = xdsi_neighbour_new(h, xdsi_addr_of(ip))))
        return XDS_ECAPACITY;
    n->state = XDSI_NB_FIXED;
    n->due_ns = XDS_NEVER;
    memcpy(n->mac, mac, 6);
    h->version++;
    release_held(h, n);
    return 0;
}

static void ask(struct xds_host *h, struct xdsi_neighbour *n, int64_t now)
{
    n->due_ns = now + h->cfg.ask_ns; /* a question that finds no slot counts as one unanswered */
    n->tries++;
    if (xdsi_addr_is4(n->ip))
        xdsi_arp_probe(h, n);
    else
        xdsi_ndp_ask(h, n);
}

const uint8_t *xdsi_neighbour_use(struct xds_host *h, struct xdsi_addr ip, int64_t now, int64_t *until,
                                  int *code)
{
    struct xdsi_neighbour *n = xdsi_neighbour_find(h, ip);

    *code = 0;
    *until = XDS_NEVER;
    if (n && n->state == XDSI_NB_FIXED)
        return n->mac;
    if (n && n->state == XDSI_NB_KNOWN) {
        *until = n->seen_ns + h->cfg.age_ns;
        if (now - n->seen_ns > h->cfg.age_ns && n->due_ns == XDS_NEVER)
            ask(h, n, now); /* used on, until three questions stay unanswered */
        return n->mac;
    }
    if (!n) {
        if (!h->has_mac) {
            *code = XDS_ECONFIG;
            return NULL;
        }
        if (!(n = xdsi_neighbour_new(h, ip))) {
            *code = XDS_ECAPACITY;
            return NULL;
        }
        n->state = XDSI_NB_ASKED;
        ask(h, n, now);
    }
    return NULL;
}

void xdsi_neighbour_doubt(struct xds_host *h, struct xdsi_addr ip, int64_t now)
{
    struct xdsi_neighbour *n = xdsi_neighbour_find(h, ip);

    if (n && n->state == XDSI_NB_KNOWN && n->due_ns == XDS_NEVER && now - n->seen_ns > h->cfg.ask_ns) {
        h->stats.doubted++;
        ask(h, n, now); /* used on, until three questions stay unanswered */
    }
}

void xdsi_neighbour_is(struct xds_host *h, struct xdsi_neighbour *n, const uint8_t *mac, bool fresh,
                       int64_t now)
{
    const bool known = n->state == XDSI_NB_KNOWN, moved = known && memcmp(n->mac, mac, 6) != 0;

    memcpy(n->mac, mac, 6);
    n->state = XDSI_NB_KNOWN;
    n->seen_ns = fresh ? now : now - h->cfg.age_ns - 1;
    n->due_ns = XDS_NEVER;
    n->tries = 0;
    h->version++;
    if (!known || moved)
        post(h, moved ? XDS_HOST_EVENT_MOVED : XDS_HOST_EVENT_NEIGHBOUR, n, now);
    release_held(h, n);
}

int64_t xds_host_deadline(const struct xds_host *h)
{
    const int64_t frags = h->frags_open ? xdsi_frag_deadline(h) : XDS_NEVER, claim = xdsi_claim_deadline(h);
    const int64_t early = frags < claim ? frags : claim;
    int64_t first = early < h->igmp_due ? early : h->igmp_due;

    if (h->six.own_count || h->six.group_count) {
        const int64_t router = xdsi_router_deadline(h);
        first = h->six.mld_due < first ? h->six.mld_due : first;
        first = router < first ? router : first;
    }
    for (uint32_t i = 0; i < h->neighbour_count; i++)
        if (h->neighbours[i].state != XDSI_NB_FREE && h->neighbours[i].due_ns < first)
            first = h->neighbours[i].due_ns;
    return first;
}

void xds_host_tick(struct xds_host *h, int64_t now)
{
    if (h->frags_open)
        xdsi_frag_tick(h, now);
    xdsi_claim_tick(h, now);
    xdsi_igmp_tick(h, now);
    if (h->six.own_count || h->six.group_count) {
        xdsi_mld_tick(h, now);
        xdsi_router_tick(h, now);
    }
    for (uint32_t i = 0; i < h->neighbour_count; i++) {
        struct xdsi_neighbour *n = &h->neighbours[i];
        if (n->state == XDSI_NB_FREE || n->due_ns > now)
            continue;
        if (n->tries < XDSI_ARP_TRIES) {
            ask(h, n, now);
            continue;
        }
        for (uint32_t k = 0; k < h->cfg.slots; k++)
            if (h->slots[k].state == XDSI_SLOT_HELD && xdsi_addr_same(h->slots[k].hop, n->ip)) {
                h->slots[k].state = XDSI_SLOT_FREE;
                h->stats.held_lost++;
            }
        *(xdsi_addr_is4(n->ip) ? &h->stats.arp_failed : &h->stats.ndp_failed) += 1;
        post(h, XDS_HOST_EVENT_LOST, n, now);
        n->state = XDSI_NB_FREE;
        n->due_ns = XDS_NEVER;
        h->version++;
    }
}
