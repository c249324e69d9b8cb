/* host_arp.c: what ARP asks and answers (RFC 826); the entries themselves are in host_neighbour.c. */
#include "host_int.h"

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

    if (!xdsi_host_slot(h, XDSI_FRAME_MIN + 4, XDSI_SLOT_READY, XDSI_NO_HOP, &out))
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

void xdsi_arp_probe(struct xds_host *h, const struct xdsi_neighbour *n)
{
    const uint32_t ip = xdsi_addr_ip4(n->ip);
    uint32_t src = 0; /* while none may be used: a probe, which is answered all the same */

    for (uint32_t i = 0; i < h->own_count; i++)
        if (!h->own[i].state && (!src || !((h->own[i].ip ^ ip) & h->own[i].mask)))
            src = h->own[i].ip;
    h->stats.arp_asked += xdsi_arp_ask(h, src, ip);
}

static void learn(struct xds_host *h, uint32_t ip, const uint8_t *mac, bool may_add, int64_t now)
{
    struct xdsi_neighbour *n = xdsi_neighbour_find(h, xdsi_addr4(ip));

    if (n && n->state == XDSI_NB_FIXED)
        return;
    if (!n && (!may_add || !(n = xdsi_neighbour_new(h, xdsi_addr4(ip)))))
        return;
    h->stats.arp_learned++;
    xdsi_neighbour_is(h, n, mac, true, now);
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
    if (!xdsi_host_slot(h, bytes, XDSI_SLOT_READY, XDSI_NO_HOP, &out))
        return XDS_HOST_NO_ROOM;
    memset(out, 0, bytes);
    memcpy(out, a + 8, 6);
    memcpy(out + 6, h->mac, 6);
    memcpy(out + 12, frame + 12, l2 - 12);
    write_arp(h, out + l2, 2, target, a + 8, sender);
    h->stats.arp_answered++;
    return XDS_HOST_ARP;
}
