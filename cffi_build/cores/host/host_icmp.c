/* host_icmp.c: ICMP echo; RFC 792 and RFC 1122 3.2.2.6. */
#include "host_int.h"

/* RFC 792: the same bytes back, source and destination swapped, type 0. */
enum xds_host_reason xdsi_host_icmp(struct xds_host *h, const uint8_t *frame, uint32_t l2, uint32_t ihl,
                                    uint32_t total)
{
    const uint8_t *ip = frame + l2, *m = ip + ihl;
    uint32_t len = total - ihl;
    uint8_t *out;

    if (len < 8 || xdsi_csum_fold(xdsi_csum_add(0, m, len)) != 0xffff)
        return XDS_HOST_ICMP_BAD;
    if (m[0] != 8 || m[1] != 0 || (h->flags & XDS_HOST_NO_ECHO) || !xdsi_host_is_own(h, xdsi_raw32(ip + 16)))
        return XDS_HOST_ICMP_OTHER;
    uint32_t bytes = l2 + XDSI_IPV4_BYTES + len;
    struct xdsi_host_slot *s =
        XDSI_IPV4_BYTES + len > h->cfg.mtu ? NULL : xdsi_host_slot(h, bytes, XDSI_SLOT_READY, 0, &out);
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
