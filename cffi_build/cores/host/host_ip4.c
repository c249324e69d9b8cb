/* host_ip4.c: IPv4 for the protocols above: whole packets handed over, payloads of any protocol sent. */
#include "host6_int.h"

#define IPPROTO_OF_TCP 6
#define TCP_CHECKSUM   16

static bool is_mapped(const uint8_t a[16])
{
    return memcmp(a, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0;
}

int xds_host_take(struct xds_host *h, unsigned protocol)
{
    if (protocol > 255 || protocol == XDSI_IPPROTO_UDP || protocol == XDSI_IPPROTO_ICMP ||
        protocol == XDSI_NEXT_ICMP6)
        return XDS_ECONFIG;
    h->take[protocol >> 5] |= 1u << (protocol & 31);
    return 0;
}

const struct xds_packet *xds_host_packet(const struct xds_host *h)
{
    return &h->packet;
}

enum xds_host_reason xdsi_host_other(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t ihl,
                                     uint32_t total, int64_t now)
{
    const uint8_t *ip = frame + l2, *data = ip + ihl, protocol = ip[9];
    const uint32_t len = total - ihl, src = xdsi_raw32(ip + 12), dst = xdsi_raw32(ip + 16);

    if (protocol == XDSI_IPPROTO_ICMP)
        return xdsi_host_icmp(h, frame, l2, ihl, total, now);
    if (protocol == XDSI_IPPROTO_IGMP && h->flags & XDS_HOST_REPORTS)
        return xdsi_host_igmp(h, ip, data, len, now);
    if (!(h->take[protocol >> 5] >> (protocol & 31) & 1)) {
        if (h->flags & XDS_HOST_UNREACHABLE)
            xdsi_host_icmp_error(h, 3, 2, frame, l2, total, now);
        return XDS_HOST_PROTOCOL;
    }
    if (protocol == IPPROTO_OF_TCP) {
        const uint64_t pseudo = xdsi_csum_pseudo(src, dst, protocol, len);
        if (xdsi_csum_fold(xdsi_csum_add(pseudo, data, len)) != 0xffff) {
            if (!(h->flags & XDS_HOST_PARTIAL_CHECKSUM) || len < TCP_CHECKSUM + 2 ||
                xdsi_raw16(data + TCP_CHECKSUM) != xdsi_csum_fold(pseudo))
                return XDS_HOST_TCP_CHECKSUM;
            h->stats.partial_checksum++;
        }
    }
    h->packet.data = data;
    h->packet.len = len;
    h->packet.protocol = protocol;
    h->packet.tos = ip[1];
    h->packet.ttl = ip[8];
    xdsi_map4(h->packet.src, src);
    xdsi_map4(h->packet.dst, dst);
    return XDS_HOST_HANDED_OVER;
}

static uint32_t payload_max(const struct xds_host *h, uint32_t room, uint32_t mtu)
{
    const uint32_t head = h->l2_len + XDSI_IPV4_BYTES, most = mtu - XDSI_IPV4_BYTES;

    if (room < head)
        return 0;
    return room - head < most ? room - head : most;
}

/* Length, sums and the rest of the header round len bytes that are in their place. The frame's length. */
static uint32_t write_packet(struct xds_host *h, uint8_t *d, const struct xds_ip_head *head, uint32_t len)
{
    uint8_t *ip = d + h->l2_len, *data = ip + XDSI_IPV4_BYTES;
    const uint32_t src = xdsi_raw32(head->src + 12), dst = xdsi_raw32(head->dst + 12);
    const uint8_t ttl = xdsi_is_multicast(dst) ? h->cfg.multicast_ttl : h->cfg.ttl;

    ip[0] = 0x45;
    ip[1] = head->tos;
    xdsi_put16(ip + 2, XDSI_IPV4_BYTES + len);
    xdsi_put_raw32(ip + 4, xdsi_host_ident(h, dst, 0));
    ip[8] = head->ttl ? head->ttl : ttl;
    ip[9] = head->protocol;
    xdsi_put_raw16(ip + 10, 0);
    xdsi_put_raw32(ip + 12, src);
    xdsi_put_raw32(ip + 16, dst);
    xdsi_put_raw16(ip + 10, (uint16_t)~xdsi_csum_fold(xdsi_csum_ipv4(ip)));
    if (head->checksum_at != XDS_NO_CHECKSUM) {
        const uint64_t pseudo = xdsi_csum_pseudo(src, dst, head->protocol, len);
        xdsi_put_raw16(data + head->checksum_at, 0);
        const uint16_t sum = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(pseudo, data, len));
        xdsi_put_raw16(data + head->checksum_at, sum || head->protocol != XDSI_IPPROTO_UDP ? sum : 0xffff);
    }
    return h->l2_len + XDSI_IPV4_BYTES + len;
}

void xdsi_trail_learn(struct xds_host *h, struct xdsi_trail *w, const struct xds_ip_head *head, int64_t now)
{
    const uint32_t dst = xdsi_raw32(head->dst + 12);
    uint8_t mac[6], *ip = w->head + h->l2_len;
    struct xdsi_hop hop;
    int64_t until;

    *w = (struct xdsi_trail){.version = h->version, .ip_bytes = XDSI_IPV4_BYTES};
    if (!is_mapped(head->dst)) {
        xdsi_trail_learn6(h, w, head, now);
        return;
    }
    if (xdsi_host_resolve(h, dst, mac, &hop, now, &until) <= 0)
        return;
    xdsi_write_link(h, w->head, mac);
    write_packet(h, w->head, head, 0);
    ip[1] = 0;
    xdsi_put_raw16(ip + 2, 0);
    xdsi_put_raw16(ip + 10, 0);
    w->ip_sum = xdsi_csum_fold(xdsi_csum_ipv4(ip));
    w->version = h->version;
    w->until = until;
}

int xdsi_trail_end(struct xds_host *h, const struct xdsi_trail *w, uint8_t *frame, uint32_t len, uint8_t tos)
{
    uint8_t *ip = frame + h->l2_len;
    const uint16_t total = __builtin_bswap16((uint16_t)(XDSI_IPV4_BYTES + len));

    if (__builtin_expect(w->ip_bytes != XDSI_IPV4_BYTES, 0))
        return xdsi_trail_end6(h, ip, len, tos);
    ip[1] = tos;
    xdsi_put_raw16(ip + 2, total);
    xdsi_put_raw16(ip + 10, (uint16_t)~xdsi_csum_fold((uint64_t)w->ip_sum + total + ((uint64_t)tos << 8)));
    h->stats.sent++;
    return (int)(h->l2_len + XDSI_IPV4_BYTES + len);
}

bool xdsi_checksum_fits(const struct xds_ip_head *head, uint32_t len)
{
    return head->checksum_at == XDS_NO_CHECKSUM ||
           (!(head->checksum_at & 1) && head->checksum_at + 2u <= len);
}

/* As xdsi_host_resolve(); head->src is checked, or chosen. */
static int way(struct xds_host *h, struct xds_ip_head *head, uint8_t mac[6], struct xdsi_hop *hop,
               int64_t now)
{
    static const uint8_t none[16];
    int64_t until;

    const bool chosen = memcmp(head->src, none, 16) == 0;
    if (!chosen && (!is_mapped(head->src) || !xdsi_host_is_own(h, xdsi_raw32(head->src + 12))))
        return XDS_ECONFIG;
    if (!chosen && !xdsi_host_may_use(h, xdsi_raw32(head->src + 12)))
        return XDS_ESTATE;
    const int code = xdsi_host_resolve(h, xdsi_raw32(head->dst + 12), mac, hop, now, &until);
    if (code >= 0 && chosen)
        xdsi_map4(head->src, hop->src);
    return code;
}

int xdsi_host_ip_later(struct xds_host *h, struct xds_ip_head *head, const uint8_t *data, uint32_t len,
                       int64_t now)
{
    uint8_t mac[6] = {0}, *to;
    struct xdsi_hop hop = {0};

    if (!is_mapped(head->dst))
        return xdsi_ip6_later(h, head, data, len, now);
    const int code = way(h, head, mac, &hop, now);
    if (code < 0)
        return code;
    if (XDSI_IPV4_BYTES + len > xdsi_host_mtu(h, xdsi_raw32(head->dst + 12), now) ||
        !xdsi_host_slot(h, h->l2_len + XDSI_IPV4_BYTES + len, code ? XDSI_SLOT_READY : XDSI_SLOT_HELD,
                        xdsi_addr4(hop.ip), &to))
        return XDS_ECAPACITY;
    xdsi_write_link(h, to, mac);
    memcpy(to + h->l2_len + XDSI_IPV4_BYTES, data, len);
    write_packet(h, to, head, len);
    return 0;
}

int xds_host_ip(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head, const uint8_t *data,
                uint32_t len, int64_t now)
{
    const uint32_t bytes = h->l2_len + XDSI_IPV4_BYTES;
    uint8_t mac[6] = {0}, *to = room->data;
    struct xdsi_hop hop;

    if (!is_mapped(head->dst))
        return xdsi_ip6(h, room, head, data, len, now);
    if (room->len < bytes || len > payload_max(h, room->len, h->cfg.mtu))
        return xdsi_refuse(h, XDS_ECAPACITY);
    if (XDSI_IPV4_BYTES + len > xdsi_host_mtu(h, xdsi_raw32(head->dst + 12), now)) {
        h->stats.path_too_large++;
        return xdsi_refuse(h, XDS_ECAPACITY);
    }
    if (!xdsi_checksum_fits(head, len))
        return xdsi_refuse(h, XDS_ECONFIG);
    const int code = way(h, head, mac, &hop, now);
    if (code < 0)
        return xdsi_refuse(h, code);
    if (code == 0 && !xdsi_host_slot(h, bytes + len, XDSI_SLOT_HELD, xdsi_addr4(hop.ip), &to))
        return xdsi_refuse(h, XDS_ECAPACITY);
    xdsi_write_link(h, to, mac);
    if (len)
        memcpy(to + bytes, data, len);
    write_packet(h, to, head, len);
    if (code == 0) {
        h->stats.held++;
        return 0;
    }
    room->len = bytes + len;
    h->stats.sent++;
    return (int)room->len;
}

int xds_host_ip_reserve(struct xds_host *h, struct xds_frame *room, struct xds_ip_head *head,
                        uint8_t **payload, int64_t now)
{
    const uint32_t bytes = h->l2_len + XDSI_IPV4_BYTES;
    uint8_t mac[6];
    struct xdsi_hop hop;

    if (!is_mapped(head->dst))
        return xdsi_ip6_reserve(h, room, head, payload, now);
    if (room->len <= bytes)
        return xdsi_refuse(h, XDS_ECAPACITY);
    const int code = way(h, head, mac, &hop, now);
    if (code <= 0)
        return code ? xdsi_refuse(h, code) : 0;
    xdsi_write_link(h, room->data, mac);
    *payload = room->data + bytes;
    return (int)payload_max(h, room->len, xdsi_host_mtu(h, xdsi_raw32(head->dst + 12), now));
}

int xds_host_ip_commit(struct xds_host *h, struct xds_frame *room, const struct xds_ip_head *head,
                       uint32_t len)
{
    if (!is_mapped(head->dst))
        return xdsi_ip6_commit(h, room, head, len);
    if (len > payload_max(h, room->len, h->cfg.mtu))
        return xdsi_refuse(h, XDS_ECAPACITY);
    if (!xdsi_checksum_fits(head, len))
        return xdsi_refuse(h, XDS_ECONFIG);
    room->len = write_packet(h, room->data, head, len);
    h->stats.sent++;
    return (int)room->len;
}
