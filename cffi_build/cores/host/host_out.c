/* host_out.c: whole frames out: datagrams, and the slots in which answers and held datagrams wait. */
#include "host6_int.h"

struct xdsi_host_slot *xdsi_host_slot(struct xds_host *h, uint32_t len, uint32_t state, struct xdsi_addr hop,
                                      uint8_t **bytes)
{
    if (len > h->cfg.slot_bytes)
        return NULL;
    for (uint32_t i = 0; i < h->cfg.slots; i++) {
        struct xdsi_host_slot *s = &h->slots[i];
        if (s->state != XDSI_SLOT_FREE)
            continue;
        *s = (struct xdsi_host_slot){.order = h->order++, .hop = hop, .len = len, .state = state};
        h->ready += state == XDSI_SLOT_READY;
        *bytes = h->slab + (size_t)i * h->cfg.slot_bytes;
        return s;
    }
    return NULL;
}

/* RFC 1112 6.4: the low 23 bits of the group. */
void xdsi_group_mac(uint32_t group, uint8_t mac[6])
{
    memcpy(mac, "\x01\x00\x5e", 3);
    memcpy(mac + 3, (const uint8_t *)&group + 1, 3);
    mac[3] &= 0x7f;
}

int xdsi_host_resolve(struct xds_host *h, uint32_t dst, uint8_t mac[6], struct xdsi_hop *hop, int64_t now,
                      int64_t *until)
{
    int code;

    *until = XDS_NEVER;
    if (!h->own_count || !h->has_mac)
        return XDS_ECONFIG;
    if (!dst || dst == 0xffffffff || !xdsi_host_route(h, dst, hop))
        return XDS_EFOREIGN;
    if (!xdsi_host_may_use(h, hop->src))
        return XDS_ESTATE;
    if (xdsi_is_multicast(dst)) {
        xdsi_group_mac(dst, mac);
        return 1;
    }
    const uint8_t *known = xdsi_neighbour_use(h, xdsi_addr4(hop->ip), now, until, &code);
    if (!known)
        return code;
    memcpy(mac, known, 6);
    return 1;
}

/* What the checksums need of a datagram's headers, as it lies in memory. */
struct flow4 {
    uint32_t src, dst, ports, ttl;
};

static struct flow4 flow_to(const struct xds_host *h, uint32_t src, uint32_t dst, uint16_t sport,
                            uint16_t dport)
{
    return (struct flow4){.src = src,
                          .dst = dst,
                          .ports = __builtin_bswap16(sport) | (uint32_t)__builtin_bswap16(dport) << 16,
                          .ttl = xdsi_is_multicast(dst) ? h->cfg.multicast_ttl : h->cfg.ttl};
}

void xdsi_write_link(const struct xds_host *h, uint8_t *d, const uint8_t mac[6])
{
    memcpy(d, mac, 6);
    memcpy(d + 6, h->mac, 6);
    if (h->cfg.vlan) {
        xdsi_put16(d + 12, XDSI_ETH_VLAN);
        xdsi_put16(d + 14, h->cfg.vlan);
    }
    xdsi_put16(d + h->l2_len - 2, XDSI_ETH_IPV4);
}

/* IPv4 and UDP around a payload whose sum is known. Sums are taken from registers: reading back what was
 * written a moment ago, in other pieces, waits until it has left the store buffer. */
static uint32_t write_headers(struct xds_host *h, uint8_t *d, const struct flow4 *f, uint32_t len,
                              uint64_t payload_sum)
{
    uint8_t *ip = d + h->l2_len, *u = ip + XDSI_IPV4_BYTES;
    const uint32_t udp_len = __builtin_bswap16((uint16_t)(XDSI_UDP_BYTES + len));
    const uint32_t first =
        0x45 | (uint32_t)__builtin_bswap16((uint16_t)(XDSI_IPV4_BYTES + XDSI_UDP_BYTES + len)) << 16;
    const uint32_t second = xdsi_host_ident(h, f->dst, 0);
    const uint32_t third = f->ttl | XDSI_IPPROTO_UDP << 8;
    const uint16_t ip_sum = (uint16_t)~xdsi_csum_fold((uint64_t)first + second + third + f->src + f->dst);
    const uint64_t pseudo = xdsi_csum_pseudo(f->src, f->dst, XDSI_IPPROTO_UDP, XDSI_UDP_BYTES + len);
    const uint16_t sum = (uint16_t)~xdsi_csum_fold(pseudo + f->ports + udp_len + payload_sum);

    xdsi_put_raw32(ip, first);
    xdsi_put_raw32(ip + 4, second);
    xdsi_put_raw32(ip + 8, third | (uint32_t)ip_sum << 16);
    xdsi_put_raw32(ip + 12, f->src);
    xdsi_put_raw32(ip + 16, f->dst);
    xdsi_put_raw32(u, f->ports);
    xdsi_put_raw32(u + 4, udp_len | (uint32_t)(sum ? sum : 0xffff) << 16); /* 0 would say: none */
    return h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES + len;
}

static uint32_t payload_max(const struct xds_host *h, uint32_t room, uint32_t mtu)
{
    uint32_t head = h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES;
    uint32_t most = mtu - XDSI_IPV4_BYTES - XDSI_UDP_BYTES;

    if (room < head)
        return 0;
    return room - head < most ? room - head : most;
}

static int too_large(struct xds_host *h)
{
    h->stats.path_too_large++;
    return xdsi_refuse(h, XDS_ECAPACITY);
}

/* ---- ways: what was sent before ------------------------------------------------------------------ */

static struct xdsi_way *way_of(struct xds_host *h, uint32_t dst, uint32_t ports)
{
    return &h->ways[((dst ^ ports) * 0x9e3779b1u) >> 28];
}

_Static_assert(XDSI_WAYS == 1 << (32 - 28), "way_of() takes as many bits");

bool xdsi_host_way_is_known(const struct xds_host *h, uint32_t dst, uint32_t ports)
{
    const struct xdsi_way *w = way_of((struct xds_host *)h, dst, ports);
    return w->dst == dst && w->ports == ports;
}

/* Keep headers that were just written for the next datagram of this flow. What may be cut is numbered, one by
 * one: it is known, and never used. */
static void keep_way(struct xds_host *h, const struct flow4 *f, const uint8_t *head, int64_t until)
{
    const struct xdsi_path *p = h->path_count ? xdsi_host_path(h, xdsi_addr4(f->dst), 0) : NULL;
    struct xdsi_way *w = way_of(h, f->dst, f->ports);
    const uint8_t *ip = w->head + h->l2_len;

    *w = (struct xdsi_way){.dst = f->dst,
                           .ports = f->ports,
                           .until = !p                 ? until
                                    : p->cut           ? INT64_MIN
                                    : p->until < until ? p->until
                                                       : until,
                           .most = (p ? p->mtu : h->cfg.mtu) - XDSI_IPV4_BYTES - XDSI_UDP_BYTES,
                           .udp_sum = xdsi_csum_pseudo(f->src, f->dst, XDSI_IPPROTO_UDP, 0) + f->ports,
                           .version = h->version};
    if (p && (p->cut || p->until <= until))
        w->until = p->cut ? INT64_MIN : p->until - 1;
    memcpy(w->head, head, h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES);
    xdsi_put_raw16(w->head + h->l2_len + 2, 0);
    xdsi_put_raw16(w->head + h->l2_len + 10, 0);
    w->ip_sum = xdsi_csum_fold(xdsi_csum_ipv4(ip));
}

/* A datagram by a way that is known. Returns the frame's length. */
static uint32_t write_along(const struct xds_host *h, const struct xdsi_way *w, uint8_t *d,
                            const uint8_t *data, uint32_t len)
{
    uint8_t *ip = d + h->l2_len, *u = ip + XDSI_IPV4_BYTES;
    const uint16_t total = __builtin_bswap16((uint16_t)(XDSI_IPV4_BYTES + XDSI_UDP_BYTES + len));
    const uint16_t udp_len = __builtin_bswap16((uint16_t)(XDSI_UDP_BYTES + len));

    memcpy(d, w->head, XDSI_HEAD_ROOM);
    const uint64_t payload = xdsi_csum_copy(0, u + XDSI_UDP_BYTES, data, len);
    const uint16_t sum = (uint16_t)~xdsi_csum_fold(w->udp_sum + udp_len + udp_len + payload);
    xdsi_put_raw16(ip + 2, total);
    xdsi_put_raw16(ip + 10, (uint16_t)~xdsi_csum_fold((uint64_t)w->ip_sum + total));
    xdsi_put_raw32(u + 4, udp_len | (uint32_t)(sum ? sum : 0xffff) << 16);
    return h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES + len;
}

/* A datagram to somewhere new, or where something changed. */
static __attribute__((noinline)) int write_anew(struct xds_host *h, struct xds_frame *room, uint16_t sport,
                                                uint32_t dst, uint16_t dport, const uint8_t *data,
                                                uint32_t len, int64_t now)
{
    uint32_t head = h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES;
    struct xdsi_hop hop;
    uint8_t mac[6] = {0}, *to = room->data;
    int64_t until;

    if (XDSI_IPV4_BYTES + XDSI_UDP_BYTES + len > xdsi_host_mtu(h, dst, now))
        return too_large(h);
    int code = xdsi_host_resolve(h, dst, mac, &hop, now, &until);
    if (code < 0)
        return xdsi_refuse(h, code);
    if (code == 0 && !xdsi_host_slot(h, head + len, XDSI_SLOT_HELD, xdsi_addr4(hop.ip), &to))
        return xdsi_refuse(h, XDS_ECAPACITY);
    const struct flow4 f = flow_to(h, hop.src, dst, sport, dport);
    xdsi_write_link(h, to, mac);
    write_headers(h, to, &f, len, xdsi_csum_add(0, data, len));
    if (len)
        memcpy(to + head, data, len);
    if (code == 0) {
        h->stats.held++;
        return 0;
    }
    keep_way(h, &f, to, until);
    room->len = head + len;
    h->stats.sent++;
    return (int)room->len;
}

int xds_host_udp(struct xds_host *h, struct xds_frame *room, uint16_t sport, uint32_t dst, uint16_t dport,
                 const uint8_t *data, uint32_t len, int64_t now)
{
    const uint32_t ports = __builtin_bswap16(sport) | (uint32_t)__builtin_bswap16(dport) << 16;
    const struct xdsi_way *w = way_of(h, dst, ports);

    const uint32_t head = h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES;
    const bool known = w->dst == dst && w->ports == ports && w->version == h->version && now <= w->until;

    if (room->len < head || len > payload_max(h, room->len, h->cfg.mtu))
        return xdsi_refuse(h, XDS_ECAPACITY);
    if (__builtin_expect(!known || room->len < XDSI_HEAD_ROOM, 0))
        return write_anew(h, room, sport, dst, dport, data, len, now);
    if (__builtin_expect(len > w->most, 0))
        return too_large(h);
    room->len = write_along(h, w, room->data, data, len);
    h->stats.sent++;
    return (int)room->len;
}

int xds_host_udp_reserve(struct xds_host *h, struct xds_frame *room, uint16_t sport, uint32_t dst,
                         uint16_t dport, uint8_t **payload, int64_t now)
{
    uint32_t head = h->l2_len + XDSI_IPV4_BYTES + XDSI_UDP_BYTES;
    struct xdsi_hop hop;
    uint8_t mac[6];
    int64_t until;

    if (room->len <= head)
        return xdsi_refuse(h, XDS_ECAPACITY);
    int code = xdsi_host_resolve(h, dst, mac, &hop, now, &until);
    if (code <= 0)
        return code ? xdsi_refuse(h, code) : 0;
    const struct flow4 f = flow_to(h, hop.src, dst, sport, dport);
    xdsi_write_link(h, room->data, mac);
    write_headers(h, room->data, &f, 0, 0); /* commit knows the length */
    *payload = room->data + head;
    return (int)payload_max(h, room->len, xdsi_host_mtu(h, dst, now));
}

int xds_host_udp_commit(struct xds_host *h, struct xds_frame *room, uint32_t len)
{
    if (len > payload_max(h, room->len, h->cfg.mtu))
        return xdsi_refuse(h, XDS_ECAPACITY);
    const uint8_t *ip = room->data + h->l2_len, *u = ip + XDSI_IPV4_BYTES;
    const struct flow4 f = {
        .src = xdsi_raw32(ip + 12), .dst = xdsi_raw32(ip + 16), .ports = xdsi_raw32(u), .ttl = ip[8]};
    room->len = write_headers(h, room->data, &f, len, xdsi_csum_add(0, u + XDSI_UDP_BYTES, len));
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
        return xdsi_refuse(h, XDS_ECAPACITY);
    memcpy(room->data, h->slab + (size_t)(first - h->slots) * h->cfg.slot_bytes, first->len);
    room->len = first->len;
    return (int)first->len;
}
