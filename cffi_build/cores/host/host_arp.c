/* host_arp.c: neighbours: asked for, answered, out of date; RFC 826 and RFC 1122 2.3.2. */
#include "host_int.h"

void xdsi_host_post(struct xds_host *h, unsigned kind, uint32_t ip, const uint8_t mac[6], int64_t now)
{
    if (h->ev_tail - h->ev_head == XDSI_HOST_EVENTS)
        h->ev_head++; /* the oldest is forgotten: the table itself holds what is true now */
    struct xds_host_event *e = &h->events[h->ev_tail++ % XDSI_HOST_EVENTS];
    *e = (struct xds_host_event){.ns = now, .ip = ip, .kind = (uint16_t)kind};
    memcpy(e->mac, mac, 6);
}

static void post(struct xds_host *h, unsigned kind, const struct xdsi_neighbour *n, int64_t now)
{
    xdsi_host_post(h, kind, n->ip, n->mac, now);
}

struct xdsi_neighbour *xdsi_neighbour_find(const struct xds_host *h, uint32_t ip)
{
    for (uint32_t i = 0; i < h->neighbour_count; i++)
        if (h->neighbours[i].ip == ip && h->neighbours[i].state != XDSI_NB_FREE)
            return &h->neighbours[i];
    return NULL;
}

/* A new entry; in a full table the one that was not heard of for longest goes, fixed ones stay. */
static struct xdsi_neighbour *neighbour_new(struct xds_host *h, uint32_t ip)
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
        if (s->state != XDSI_SLOT_HELD || s->ip != n->ip)
            continue;
        memcpy(h->slab + (size_t)i * h->cfg.slot_bytes, n->mac, 6);
        s->state = XDSI_SLOT_READY;
        h->ready++;
        h->stats.sent++;
    }
}

int xds_host_add_neighbour(struct xds_host *h, uint32_t ip, const uint8_t *mac)
{
    struct xdsi_neighbour *n = xdsi_neighbour_find(h, ip);

    if (!n && !(n = neighbour_new(h, ip)))
        return XDS_ECAPACITY;
    n->state = XDSI_NB_FIXED;
    n->due_ns = XDS_NEVER;
    memcpy(n->mac, mac, 6);
    h->version++;
    release_held(h, n);
    return 0;
}

static void write_arp(const struct xds_host *h, uint8_t *a, unsigned op, uint32_t sip, const uint8_t *tha,
                      uint32_t tip)
{
    memcpy(a, "\0\1\x08\0\6\4", 6);
    xdsi_put16(a + 6, op);
    memcpy(a + 8, h->mac, 6);
    xdsi_put_raw32(a + 14, sip);
    memcpy(a + 18, tha, 6);
    xdsi_put_raw32(a + 24, tip);
}

bool xdsi_arp_ask(struct xds_host *h, uint32_t sender, uint32_t target)
{
    uint8_t *out;

    if (!xdsi_host_slot(h, XDSI_FRAME_MIN + 4, XDSI_SLOT_READY, 0, &out))
        return false;
    memset(out, 0, XDSI_FRAME_MIN + 4);
    memset(out, 0xff, 6);
    memcpy(out + 6, h->mac, 6);
    if (h->cfg.vlan) {
        xdsi_put16(out + 12, XDSI_ETH_VLAN);
        xdsi_put16(out + 14, h->cfg.vlan);
    }
    xdsi_put16(out + h->l2_len - 2, XDSI_ETH_ARP);
    write_arp(h, out + h->l2_len, 1, sender, (const uint8_t *)"\0\0\0\0\0", target);
    return true;
}

static void ask(struct xds_host *h, struct xdsi_neighbour *n, int64_t now)
{
    uint32_t src = 0; /* while none may be used: a probe, which is answered all the same */

    n->due_ns = now + h->cfg.ask_ns; /* a question that finds no slot counts as one unanswered */
    n->tries++;
    for (uint32_t i = 0; i < h->own_count; i++)
        if (!h->own[i].state && (!src || !((h->own[i].ip ^ n->ip) & h->own[i].mask)))
            src = h->own[i].ip;
    h->stats.arp_asked += xdsi_arp_ask(h, src, n->ip);
}

const uint8_t *xdsi_neighbour_use(struct xds_host *h, uint32_t ip, int64_t now, int64_t *until, int *code)
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
        if (!h->own_count || !h->has_mac) {
            *code = XDS_ECONFIG;
            return NULL;
        }
        if (!(n = neighbour_new(h, ip))) {
            *code = XDS_ECAPACITY;
            return NULL;
        }
        n->state = XDSI_NB_ASKED;
        ask(h, n, now);
    }
    return NULL;
}

static void learn(struct xds_host *h, uint32_t ip, const uint8_t *mac, int may_add, int64_t now)
{
    struct xdsi_neighbour *n = xdsi_neighbour_find(h, ip);

    if (n && n->state == XDSI_NB_FIXED)
        return;
    if (!n && (!may_add || !(n = neighbour_new(h, ip))))
        return;
    int moved = n->state == XDSI_NB_KNOWN && memcmp(n->mac, mac, 6) != 0, known = n->state == XDSI_NB_KNOWN;
    memcpy(n->mac, mac, 6);
    n->state = XDSI_NB_KNOWN;
    n->seen_ns = now;
    n->due_ns = XDS_NEVER;
    n->tries = 0;
    h->version++;
    h->stats.arp_learned++;
    if (!known || moved)
        post(h, moved ? XDS_HOST_EVENT_MOVED : XDS_HOST_EVENT_NEIGHBOUR, n, now);
    release_held(h, n);
}

enum xds_host_reason xdsi_host_arp(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t len,
                                   int64_t now)
{
    const uint8_t *a = frame + l2;
    uint8_t *out;

    if (len - l2 < XDSI_ARP_BYTES)
        return XDS_HOST_SHORT;
    unsigned op = xdsi_be16(a + 6);
    if (memcmp(a, "\0\1\x08\0\6\4", 6) != 0 || (op != 1 && op != 2))
        return XDS_HOST_ARP_BAD;
    uint32_t sender = xdsi_raw32(a + 14), target = xdsi_raw32(a + 24);
    int usable = sender && !xdsi_is_multicast(sender) && sender != 0xffffffff && !(a[8] & 1);
    int for_us = xdsi_host_may_use(h, target);
    xdsi_claim_saw(h, a, now);
    if (usable && !xdsi_host_is_own(h, sender)) /* an answer updates, a question for us adds */
        learn(h, sender, a + 8, for_us && op == 1, now);
    if (op != 1 || !for_us || xdsi_host_is_own(h, sender) || !h->has_mac ||
        (h->flags & XDS_HOST_NO_ARP_ANSWER))
        return XDS_HOST_ARP;
    if (a[8] & 1) /* an answer to a group address would be a flood */
        return XDS_HOST_ARP_BAD;
    uint32_t bytes = l2 + XDSI_ARP_BYTES < XDSI_FRAME_MIN ? XDSI_FRAME_MIN : l2 + XDSI_ARP_BYTES;
    if (!xdsi_host_slot(h, bytes, XDSI_SLOT_READY, 0, &out))
        return XDS_HOST_NO_ROOM;
    memset(out, 0, bytes);
    memcpy(out, a + 8, 6);
    memcpy(out + 6, h->mac, 6);
    memcpy(out + 12, frame + 12, l2 - 12);
    write_arp(h, out + l2, 2, target, a + 8, sender);
    h->stats.arp_answered++;
    return XDS_HOST_ARP;
}

int64_t xds_host_deadline(const struct xds_host *h)
{
    const int64_t frags = h->frags_open ? xdsi_frag_deadline(h) : XDS_NEVER, claim = xdsi_claim_deadline(h);
    const int64_t early = frags < claim ? frags : claim;
    int64_t first = early < h->igmp_due ? early : h->igmp_due;

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
    for (uint32_t i = 0; i < h->neighbour_count; i++) {
        struct xdsi_neighbour *n = &h->neighbours[i];
        if (n->state == XDSI_NB_FREE || n->due_ns > now)
            continue;
        if (n->tries < XDSI_ARP_TRIES) {
            ask(h, n, now);
            continue;
        }
        for (uint32_t k = 0; k < h->cfg.slots; k++)
            if (h->slots[k].state == XDSI_SLOT_HELD && h->slots[k].ip == n->ip) {
                h->slots[k].state = XDSI_SLOT_FREE;
                h->stats.held_lost++;
            }
        h->stats.arp_failed++;
        post(h, XDS_HOST_EVENT_LOST, n, now);
        n->state = XDSI_NB_FREE;
        n->due_ns = XDS_NEVER;
        h->version++;
    }
}
