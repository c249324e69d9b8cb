/* host_out.c: whole frames out: datagrams, and the slots in which answers and held datagrams wait. */
#include "host_int.h"

struct xdsi_host_slot *xdsi_host_slot(struct xds_host *h, uint32_t len, uint32_t state, uint32_t ip,
                                      uint8_t **bytes)
{
    if (len > h->cfg.slot_bytes)
        return NULL;
    for (uint32_t i = 0; i < h->cfg.slots; i++) {
        struct xdsi_host_slot *s = &h->slots[i];
        if (s->state != XDSI_SLOT_FREE)
            continue;
        *s = (struct xdsi_host_slot){.order = h->order++, .ip = ip, .len = len, .state = state};
        h->ready += state == XDSI_SLOT_READY;
        *bytes = h->slab + (size_t)i * h->cfg.slot_bytes;
        return s;
    }
    return NULL;
}

/* The address whose MAC the frame goes to. 0: no way there. */
static uint32_t next_hop(const struct xds_host *h, uint32_t dst)
{
    if (xdsi_neighbour_find(h, dst))
        return dst;
    for (uint32_t i = 0; i < h->own_count; i++)
        if (!((h->own[i].ip ^ dst) & h->own[i].mask))
            return dst;
    return h->cfg.gateway;
}

/* RFC 1112 6.4: the low 23 bits of the group. */
static void group_mac(uint32_t group, uint8_t mac[6])
{
    memcpy(mac, "\x01\x00\x5e", 3);
    memcpy(mac + 3, (const uint8_t *)&group + 1, 3);
    mac[3] &= 0x7f;
}

/* 1: mac is filled; 0: asked for, *hop says who; else a code. */
static int resolve(struct xds_host *h, uint32_t dst, uint8_t mac[6], uint32_t *hop, int64_t now)
{
    int code;

    if (!h->own_count || !h->has_mac)
        return XDS_ECONFIG;
    if (xdsi_is_multicast(dst)) {
        group_mac(dst, mac);
        return 1;
    }
    *hop = next_hop(h, dst);
    if (!dst || dst == 0xffffffff || !*hop)
        return XDS_EFOREIGN;
    const uint8_t *known = xdsi_neighbour_use(h, *hop, now, &code);
    if (!known)
        return code;
    memcpy(mac, known, 6);
    return 1;
}

/* Everything but lengths and checksums. */
static void write_headers(const struct xds_host *h, uint8_t *d, const uint8_t mac[6], uint16_t sport,
                          uint32_t dst, uint16_t dport)
{
    memcpy(d, mac, 6);
    memcpy(d + 6, h->mac, 6);
    if (h->cfg.vlan) {
        xdsi_put16(d + 12, XDSI_ETH_VLAN);
        xdsi_put16(d + 14, h->cfg.vlan);
    }
    xdsi_put16(d + h->l2_len - 2, XDSI_ETH_IPV4);
    uint8_t *ip = d + h->l2_len, *u = ip + XDSI_IPV4_BYTES;
    uint32_t src = h->own[0].ip;
    for (uint32_t i = h->own_count; i-- > 0;)
        if (!((h->own[i].ip ^ dst) & h->own[i].mask))
            src = h->own[i].ip;
    memset(ip, 0, XDSI_IPV4_BYTES);
    ip[0] = 0x45;
    ip[6] = 0x40; /* never a fragment, so the identification may be 0 (RFC 6864 4.1) */
    ip[8] = xdsi_is_multicast(dst) ? h->cfg.multicast_ttl : h->cfg.ttl;
    ip[9] = XDSI_IPPROTO_UDP;
    xdsi_put_raw32(ip + 12, src);
    xdsi_put_raw32(ip + 16, dst);
    xdsi_put16(u, sport);
    xdsi_put16(u + 2, dport);
}

static uint32_t finish_headers(const struct xds_host *h, uint8_t *d, uint32_t len)
{
    uint8_t *ip = d + h->l2_len, *u = ip + XDSI_IPV4_BYTES;
    uint32_t bytes = h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES + len;

    xdsi_put16(ip + 2, XDSI_IPV4_BYTES + XDSI_UDP_BYTES + len);
    xdsi_put_raw16(ip + 10, 0);
    xdsi_put_raw16(ip + 10, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, ip, XDSI_IPV4_BYTES)));
    xdsi_put16(u + 4, XDSI_UDP_BYTES + len);
    xdsi_put_raw16(u + 6, 0);
    uint64_t sum =
        xdsi_csum_pseudo(xdsi_raw32(ip + 12), xdsi_raw32(ip + 16), XDSI_IPPROTO_UDP, XDSI_UDP_BYTES + len);
    uint16_t check = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(sum, u, XDSI_UDP_BYTES + len));
    xdsi_put_raw16(u + 6, check ? check : 0xffff); /* 0 would say: none */
    return bytes;
}

static int refuse(struct xds_host *h, int code)
{
    h->stats.refused++;
    return code;
}

static uint32_t payload_max(const struct xds_host *h, uint32_t room)
{
    uint32_t head = h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES;
    uint32_t mtu = h->cfg.mtu - XDSI_IPV4_BYTES - XDSI_UDP_BYTES;

    if (room < head)
        return 0;
    return room - head < mtu ? room - head : mtu;
}

int xds_host_udp(struct xds_host *h, struct xds_frame *room, uint16_t sport, uint32_t dst, uint16_t dport,
                 const uint8_t *data, uint32_t len, int64_t now)
{
    uint32_t head = h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES, hop = 0;
    uint8_t mac[6] = {0}, *to = room->data;

    if (room->len < head || len > payload_max(h, room->len))
        return refuse(h, XDS_ECAPACITY);
    int code = resolve(h, dst, mac, &hop, now);
    if (code < 0)
        return refuse(h, code);
    if (code == 0 && !xdsi_host_slot(h, head + len, XDSI_SLOT_HELD, hop, &to))
        return refuse(h, XDS_ECAPACITY);
    write_headers(h, to, mac, sport, dst, dport);
    if (len)
        memcpy(to + head, data, len);
    finish_headers(h, to, len);
    if (code == 0) {
        h->stats.held++;
        return 0;
    }
    room->len = head + len;
    h->stats.sent++;
    return (int)room->len;
}

int xds_host_udp_reserve(struct xds_host *h, struct xds_frame *room, uint16_t sport, uint32_t dst,
                         uint16_t dport, uint8_t **payload, int64_t now)
{
    uint32_t head = h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES, hop;
    uint8_t mac[6];

    if (room->len <= head)
        return refuse(h, XDS_ECAPACITY);
    int code = resolve(h, dst, mac, &hop, now);
    if (code <= 0)
        return code ? refuse(h, code) : 0;
    write_headers(h, room->data, mac, sport, dst, dport);
    *payload = room->data + head;
    return (int)payload_max(h, room->len);
}

int xds_host_udp_commit(struct xds_host *h, struct xds_frame *room, uint32_t len)
{
    if (len > payload_max(h, room->len))
        return refuse(h, XDS_ECAPACITY);
    room->len = finish_headers(h, room->data, len);
    h->stats.sent++;
    return (int)room->len;
}

int xds_host_pending(const struct xds_host *h)
{
    return (int)h->ready;
}

int xds_host_output(struct xds_host *h, struct xds_frame *room, int64_t now)
{
    struct xdsi_host_slot *first = NULL;

    if (!h->ready)
        return 0;
    for (uint32_t i = 0; i < h->cfg.slots; i++)
        if (h->slots[i].state == XDSI_SLOT_READY && (!first || h->slots[i].order < first->order))
            first = &h->slots[i];
    first->state = XDSI_SLOT_FREE;
    h->ready--;
    if (room->len < first->len) /* it would never fit: dropped, so that the rest can leave */
        return refuse(h, XDS_ECAPACITY);
    memcpy(room->data, h->slab + (size_t)(first - h->slots) * h->cfg.slot_bytes, first->len);
    room->len = first->len;
    return (int)first->len;
}
