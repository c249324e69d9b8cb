/* host_send6.c: IPv6 as it goes out: whole packets, datagrams, and what the host says itself. Nothing is ever cut
 * here: a packet over the path's MTU is refused (RFC 8200 5, RFC 8201). */
#include "host6_int.h"

/* RFC 2464 7. */
void xdsi_group_mac6(struct xdsi_addr group, uint8_t mac[6])
{
    mac[0] = mac[1] = 0x33;
    memcpy(mac + 2, (const uint8_t *)&group.low + 4, 4);
}

int xdsi_resolve6(struct xds_host *h, struct xdsi_addr dst, uint8_t mac[6], struct xdsi_hop6 *hop,
                  int64_t now, int64_t *until)
{
    int code;

    *until = XDS_NEVER;
    if (!h->six.own_count)
        return XDS_EFOREIGN; /* no address of this family: no way to any */
    if (!h->has_mac)
        return XDS_ECONFIG;
    if (xdsi_addr_none(dst) || xdsi_host_own(h, dst) || !xdsi_host_route6(h, dst, hop, now))
        return XDS_EFOREIGN;
    const struct xdsi_own *own = xdsi_host_own(h, hop->src);
    if (!own || own->state != XDS_HOST_OWNED)
        return XDS_ESTATE;
    if (xdsi_addr_multicast(dst)) {
        xdsi_group_mac6(dst, mac);
        return 1;
    }
    const uint8_t *known = xdsi_neighbour_use(h, hop->ip, now, until, &code);
    if (!known)
        return code;
    memcpy(mac, known, 6);
    return 1;
}

static void write_link6(const struct xds_host *h, uint8_t *d, const uint8_t mac[6])
{
    xdsi_write_link(h, d, mac);
    xdsi_put16(d + h->l2_len - 2, XDSI_ETH_IPV6);
}

static void write_head(uint8_t *ip, struct xdsi_addr src, struct xdsi_addr dst, uint32_t next, uint32_t hops,
                       uint32_t tos, uint32_t len)
{
    xdsi_put16(ip, 0x6000 | tos << 4);
    xdsi_put16(ip + 2, 0); /* no flow label */
    xdsi_put16(ip + 4, len);
    ip[6] = (uint8_t)next;
    ip[7] = (uint8_t)hops;
    xdsi_addr_put(ip + 8, src);
    xdsi_addr_put(ip + 24, dst);
}

uint8_t *xdsi_slot6(struct xds_host *h, const uint8_t mac[6], struct xdsi_addr src, struct xdsi_addr dst,
                    uint32_t next, uint32_t hops, uint32_t len)
{
    uint8_t *d;

    if (!h->has_mac ||
        !xdsi_host_slot(h, h->l2_len + XDSI_IPV6_BYTES + len, XDSI_SLOT_READY, XDSI_NO_HOP, &d))
        return NULL;
    write_link6(h, d, mac);
    write_head(d + h->l2_len, src, dst, next, hops, 0, len);
    return d + h->l2_len + XDSI_IPV6_BYTES;
}

void xdsi_seal6(uint8_t *ip, uint8_t *m, uint32_t len)
{
    xdsi_put_raw16(m + 2, 0);
    xdsi_put_raw16(
        m + 2, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(xdsi_pseudo6(ip + 8, XDSI_NEXT_ICMP6, len), m, len)));
}

/* ---- packets of any protocol ---------------------------------------------------------------------- */

static uint32_t payload_max(const struct xds_host *h, uint32_t room, uint32_t mtu)
{
    const uint32_t head = h->l2_len + XDSI_IPV6_BYTES, most = mtu - XDSI_IPV6_BYTES;

    if (room < head)
        return 0;
    return room - head < most ? room - head : most;
}

static uint8_t hops_to(const struct xds_host *h, struct xdsi_addr dst)
{
    if (xdsi_addr_multicast(dst))
        return h->cfg.multicast_ttl;
    return h->six.hops ? h->six.hops : h->cfg.ttl;
}

/* The header round len bytes that are in their place, and their checksum. */
static uint32_t write_packet(struct xds_host *h, uint8_t *d, const struct xds_ip_head *head, uint32_t len)
{
    uint8_t *ip = d + h->l2_len, *at = ip + XDSI_IPV6_BYTES + head->checksum_at;
    const struct xdsi_addr dst = xdsi_addr_of(head->dst);

    write_head(ip, xdsi_addr_of(head->src), dst, head->protocol, head->ttl ? head->ttl : hops_to(h, dst),
               head->tos, len);
    if (head->checksum_at != XDS_NO_CHECKSUM) {
        xdsi_put_raw16(at, 0);
        const uint64_t pseudo = xdsi_pseudo6(ip + 8, head->protocol, len);
        const uint16_t sum = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(pseudo, ip + XDSI_IPV6_BYTES, len));
        xdsi_put_raw16(at, sum || head->protocol != XDSI_IPPROTO_UDP ? sum : 0xffff);
    }
    return h->l2_len + XDSI_IPV6_BYTES + len;
}

/* As xdsi_resolve6(); head->src is checked, or chosen. */
static int way(struct xds_host *h, struct xds_ip_head *head, uint8_t mac[6], struct xdsi_hop6 *hop,
               int64_t now, int64_t *until)
{
    const struct xdsi_addr src = xdsi_addr_of(head->src);
    const struct xdsi_own *own = xdsi_host_own(h, src);

    if (!xdsi_addr_none(src) && (!own || xdsi_addr_is4(src)))
        return XDS_ECONFIG;
    if (own && own->state != XDS_HOST_OWNED)
        return XDS_ESTATE;
    const int code = xdsi_resolve6(h, xdsi_addr_of(head->dst), mac, hop, now, until);
    if (code >= 0 && !own)
        xdsi_addr_put(head->src, hop->src);
    return code;
}

int xdsi_ip6_later(struct xds_host *h, struct xds_ip_head *head, const uint8_t *data, uint32_t len,
                   int64_t now)
{
    const uint32_t bytes = h->l2_len + XDSI_IPV6_BYTES;
    uint8_t mac[6] = {0}, *to;
    struct xdsi_hop6 hop = {XDSI_NO_HOP, XDSI_NO_HOP};
    int64_t until;

    const int code = way(h, head, mac, &hop, now, &until);
    if (code < 0)
        return code;
    if (XDSI_IPV6_BYTES + len > xdsi_mtu6(h, xdsi_addr_of(head->dst), now) ||
        !xdsi_host_slot(h, bytes + len, code ? XDSI_SLOT_READY : XDSI_SLOT_HELD, hop.ip, &to))
        return XDS_ECAPACITY;
    write_link6(h, to, mac);
    memcpy(to + bytes, data, len);
    write_packet(h, to, head, len);
    return 0;
}

/* A frame into room, or into a slot while its neighbour is asked for; *at: where the payload goes, NULL: nowhere. */
static int begin(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head, uint32_t len,
                 uint8_t **at, int64_t now)
{
    const uint32_t bytes = h->l2_len + XDSI_IPV6_BYTES;
    uint8_t mac[6] = {0}, *to = room->data;
    struct xdsi_hop6 hop;
    int64_t until;

    *at = NULL;
    if (room->len < bytes || len > payload_max(h, room->len, h->cfg.mtu))
        return XDS_ECAPACITY;
    if (XDSI_IPV6_BYTES + len > xdsi_mtu6(h, xdsi_addr_of(head->dst), now)) {
        h->stats.path_too_large++;
        return XDS_ECAPACITY;
    }
    if (!xdsi_checksum_fits(head, len))
        return XDS_ECONFIG;
    const int code = way(h, head, mac, &hop, now, &until);
    if (code < 0)
        return code;
    if (code == 0 && !xdsi_host_slot(h, bytes + len, XDSI_SLOT_HELD, hop.ip, &to))
        return XDS_ECAPACITY;
    write_link6(h, to, mac);
    *at = to + bytes;
    return code;
}

static int end(struct xds_host *h, struct xds_frame *room, const struct xds_ip_head *head, uint8_t *payload,
               uint32_t len, int code)
{
    const uint32_t bytes = write_packet(h, payload - h->l2_len - XDSI_IPV6_BYTES, head, len);

    if (code == 0) {
        h->stats.held++;
        return 0;
    }
    room->len = bytes;
    h->stats.sent++;
    return (int)bytes;
}

int xdsi_ip6(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head, const uint8_t *data,
             uint32_t len, int64_t now)
{
    uint8_t *at;
    const int code = begin(h, room, head, len, &at, now);

    if (!at)
        return xdsi_refuse(h, code);
    if (len)
        memcpy(at, data, len);
    return end(h, room, head, at, len, code);
}

int xdsi_ip6_reserve(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head, uint8_t **payload,
                     int64_t now)
{
    const uint32_t bytes = h->l2_len + XDSI_IPV6_BYTES;
    struct xdsi_hop6 hop;
    uint8_t mac[6];
    int64_t until;

    if (room->len <= bytes)
        return xdsi_refuse(h, XDS_ECAPACITY);
    const int code = way(h, head, mac, &hop, now, &until);
    if (code <= 0)
        return code ? xdsi_refuse(h, code) : 0;
    write_link6(h, room->data, mac);
    *payload = room->data + bytes;
    return (int)payload_max(h, room->len, xdsi_mtu6(h, xdsi_addr_of(head->dst), now));
}

int xdsi_ip6_commit(struct xds_host *h, struct xds_frame *room, const struct xds_ip_head *head, uint32_t len)
{
    if (len > payload_max(h, room->len, h->cfg.mtu))
        return xdsi_refuse(h, XDS_ECAPACITY);
    if (!xdsi_checksum_fits(head, len))
        return xdsi_refuse(h, XDS_ECONFIG);
    room->len = write_packet(h, room->data, head, len);
    h->stats.sent++;
    return (int)room->len;
}

/* ---- trails --------------------------------------------------------------------------------------- */

void xdsi_trail_learn6(struct xds_host *h, struct xdsi_trail *w, const struct xds_ip_head *head, int64_t now)
{
    struct xds_ip_head same = *head;
    struct xdsi_hop6 hop;
    uint8_t mac[6];
    int64_t until;

    w->ip_bytes = XDSI_IPV6_BYTES;
    same.checksum_at = XDS_NO_CHECKSUM;
    if (way(h, &same, mac, &hop, now, &until) <= 0)
        return;
    write_link6(h, w->head, mac);
    write_packet(h, w->head, &same, 0);
    for (uint32_t i = 0; i < XDSI_ROUTERS; i++) /* what a router said holds no longer than it said */
        if (h->six.routers[i].until > now && h->six.routers[i].until < until)
            until = h->six.routers[i].until - 1;
    w->version = h->version;
    w->until = until;
}

int xdsi_trail_end6(struct xds_host *h, uint8_t *ip, uint32_t len, uint8_t tos)
{
    xdsi_put16(ip, 0x6000 | (uint32_t)tos << 4);
    xdsi_put16(ip + 4, len);
    h->stats.sent++;
    return (int)(h->l2_len + XDSI_IPV6_BYTES + len);
}

/* ---- datagrams ------------------------------------------------------------------------------------ */

int xds_host_udp6(struct xds_host *h, struct xds_frame *room, uint16_t sport, const uint8_t dst[16],
                  uint16_t dport, const uint8_t *data, uint32_t len, int64_t now)
{
    const struct xdsi_addr d = xdsi_addr_of(dst);
    struct xds_ip_head head = {.protocol = XDSI_IPPROTO_UDP, .checksum_at = 6};
    uint8_t *u;

    if (xdsi_addr_is4(d))
        return xds_host_udp(h, room, sport, xdsi_addr_ip4(d), dport, data, len, now);
    if (len > 65535 - XDSI_UDP_BYTES)
        return xdsi_refuse(h, XDS_ECAPACITY);
    memcpy(head.dst, dst, 16);
    const int code = begin(h, room, &head, XDSI_UDP_BYTES + len, &u, now);
    if (!u)
        return xdsi_refuse(h, code);
    xdsi_put16(u, sport);
    xdsi_put16(u + 2, dport);
    xdsi_put16(u + 4, XDSI_UDP_BYTES + len);
    if (len)
        memcpy(u + XDSI_UDP_BYTES, data, len);
    const uint32_t ports = xdsi_raw32(u);
    h->six.flows[((uint32_t)d.low ^ (uint32_t)(d.low >> 32) ^ ports) * 0x9e3779b1u >> 28] =
        (struct xdsi_flow6){.dst = d, .ports = ports};
    return end(h, room, &head, u, XDSI_UDP_BYTES + len, code);
}
