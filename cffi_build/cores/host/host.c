#include <string.h>
#include "xds/host.h"
struct xds_host { int x; };
size_t xds_host_size(const struct xds_host_config *cfg) { return 64; }
int xds_host_init(void *mem, const struct xds_host_config *cfg) { return 0; }
int xds_host_input(struct xds_host *h, const struct xds_frame *f, struct xds_dgram *out, int64_t now)
{
    if (f->len < 42 || f->data[12] != 8 || f->data[13] != 0 || f->data[23] != 17) return -4099;
    const uint8_t *u = f->data + 14 + (f->data[14] & 15) * 4;
    uint32_t len = ((uint32_t)u[4] << 8 | u[5]) - 8;
    if (u + 8 + len > f->data + f->len) return -4097;
    memcpy(&out->src, f->data + 26, 4); memcpy(&out->dst, f->data + 30, 4);
    out->sport = (uint16_t)(u[0] << 8 | u[1]); out->dport = (uint16_t)(u[2] << 8 | u[3]);
    out->data = u + 8; out->len = len; out->rx_ns = f->rx_ns;
    return 1;
}
int xds_host_udp(struct xds_host *h, struct xds_frame *room, uint16_t sport, uint32_t dst, uint16_t dport, const uint8_t *data, uint32_t len, int64_t now) { return -1; }
int64_t xds_host_deadline(const struct xds_host *h) { return XDS_NEVER; }
void xds_host_tick(struct xds_host *h, int64_t now) {}
int xds_host_pending(const struct xds_host *h) { return 0; }
int xds_host_output(struct xds_host *h, struct xds_frame *room, int64_t now) { return 0; }
