/* host_icmp.c: ICMP: echoes answered, errors sent; RFC 792 and RFC 1122 3.2.2. */
#include "host6_int.h"

static bool is_error(unsigned type)
{
    return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* RFC 792: the same bytes back, source and destination swapped, type 0. */
enum xds_host_reason xdsi_host_icmp(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t ihl,
                                    uint32_t total, int64_t now)
{
    const uint8_t *ip = frame + l2, *m = ip + ihl;
    uint32_t len = total - ihl;
    uint8_t *out;

    if (len < 8 || xdsi_csum_fold(xdsi_csum_add(0, m, len)) != 0xffff)
        return XDS_HOST_ICMP_BAD;
    if (is_error(m[0]) && m[0] != 4) /* source quench says nothing any more (RFC 6633) */
        return xdsi_host_icmp_about(h, ip, m, len, now);
    if (m[0] != 8 || m[1] != 0 || (h->flags & XDS_HOST_NO_ECHO) || !xdsi_host_may_use(h, xdsi_raw32(ip + 16)))
        return XDS_HOST_ICMP_OTHER;
    uint32_t bytes = l2 + XDSI_IPV4_BYTES + len;
    struct xdsi_host_slot *s = XDSI_IPV4_BYTES + len > h->cfg.mtu
                                   ? NULL
                                   : xdsi_host_slot(h, bytes, XDSI_SLOT_READY, XDSI_NO_HOP, &out);
    if (!s)
        return XDS_HOST_NO_ROOM;
    memcpy(out, frame + 6, 6);
    memcpy(out + 6, h->has_mac ? h->mac : frame, 6);
    memcpy(out + 12, frame + 12, l2 - 12);
    uint8_t *o = out + l2;
    memset(o, 0, XDSI_IPV4_BYTES); /* options are not sent back */
    o[0] = 0x45;
    o[1] = ip[1];
    xdsi_put16(o + 2, XDSI_IPV4_BYTES + len);
    o[6] = 0x40;
    o[8] = h->cfg.ttl;
    o[9] = XDSI_IPPROTO_ICMP;
    memcpy(o + 12, ip + 16, 4);
    memcpy(o + 16, ip + 12, 4);
    xdsi_put_raw16(o + 10, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, o, XDSI_IPV4_BYTES)));
    o += XDSI_IPV4_BYTES;
    memcpy(o, m, len);
    o[0] = 0;
    xdsi_put_raw16(o + 2, 0);
    xdsi_put_raw16(o + 2, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, o, len)));
    h->stats.echo_answered++;
    return XDS_HOST_ICMP_ECHO;
}

/* ---- errors sent ---------------------------------------------------------------------------------- */

#define ERROR_BYTES 548 /* of what it is about: 576 in all (RFC 1812 4.3.2.3) */

/* A bucket of error_burst, filled by one each error_ns. */
bool xdsi_host_may_tell(struct xds_host *h, int64_t now)
{
    const int64_t full = now - (int64_t)(h->cfg.error_burst - 1) * h->cfg.error_ns;

    if (h->error_ns < full)
        h->error_ns = full;
    if (h->error_ns > now) {
        h->stats.icmp_limited++;
        return false;
    }
    h->error_ns += h->cfg.error_ns;
    return true;
}

/* RFC 1122 3.2.2: never about an error, a group, a broadcast, a later fragment or no single sender. */
static bool may_be_told(const struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t bytes)
{
    const uint8_t *ip = frame + l2;
    const uint32_t ihl = (ip[0] & 15u) * 4, src = xdsi_raw32(ip + 12);

    if (h->promiscuous || (frame[0] & 1) || (xdsi_be16(ip + 6) & 0x1fff) || bytes < ihl)
        return false;
    if (!src || xdsi_is_multicast(src) || src == 0xffffffff || (src & 0xff) == 127 ||
        !xdsi_host_may_use(h, xdsi_raw32(ip + 16)))
        return false;
    return ip[9] != XDSI_IPPROTO_ICMP || (bytes > ihl && !is_error(ip[ihl]));
}

int xdsi_host_icmp_error(struct xds_host *h, unsigned type, unsigned code, const uint8_t *frame, uint32_t l2,
                         uint32_t bytes, int64_t now)
{
    uint8_t m[8 + ERROR_BYTES] = {(uint8_t)type, (uint8_t)code};
    const uint8_t *ip = frame + l2;
    const uint32_t quoted = bytes < ERROR_BYTES ? bytes : ERROR_BYTES;
    struct xds_ip_head head = {.protocol = XDSI_IPPROTO_ICMP, .tos = 0xc0, .checksum_at = XDS_NO_CHECKSUM};

    if (!may_be_told(h, frame, l2, bytes) || !xdsi_host_may_tell(h, now))
        return 0;
    memcpy(m + 8, ip, quoted);
    xdsi_put_raw16(m + 2, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, m, 8 + quoted)));
    xdsi_map4(head.src, xdsi_raw32(ip + 16));
    xdsi_map4(head.dst, xdsi_raw32(ip + 12));
    const int rc = xdsi_host_ip_later(h, &head, m, 8 + quoted, now);
    h->stats.icmp_told += rc == 0;
    return rc < 0 ? rc : 1;
}

int xds_host_unreachable(struct xds_host *h, const struct xds_frame *f, unsigned code, int64_t now)
{
    uint32_t l2 = XDSI_ETH_BYTES;

    if (code > 15)
        return XDS_ECONFIG;
    while (l2 <= XDSI_L2_MAX && f->len >= l2 &&
           (xdsi_be16(f->data + l2 - 2) == XDSI_ETH_VLAN || xdsi_be16(f->data + l2 - 2) == XDSI_ETH_QINQ))
        l2 += 4;
    const uint8_t *ip = f->data + l2;
    if (l2 <= XDSI_L2_MAX && f->len >= l2 + XDSI_IPV6_BYTES && xdsi_be16(ip - 2) == XDSI_ETH_IPV6)
        return xdsi_unreachable6(h, f->data, l2, f->len - l2, code, now);
    if (l2 > XDSI_L2_MAX || f->len < l2 + XDSI_IPV4_BYTES || xdsi_be16(ip - 2) != XDSI_ETH_IPV4)
        return XDS_ECONFIG;
    const uint32_t total = xdsi_be16(ip + 2);
    if (ip[0] >> 4 != 4 || (ip[0] & 15) < 5 || total < (ip[0] & 15u) * 4 || total > f->len - l2)
        return XDS_ECONFIG;
    return xdsi_host_icmp_error(h, 3, code, f->data, l2, total, now);
}
