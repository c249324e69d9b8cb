#ifndef XDS_HOST_H
#define XDS_HOST_H
#include "base.h"
#include "dgram.h"
#include "link.h"
struct xds_host;
struct xds_host_config { uint32_t promiscuous; };
size_t xds_host_size(const struct xds_host_config *cfg);
int xds_host_init(void *mem, const struct xds_host_config *cfg);
int xds_host_input(struct xds_host *h, const struct xds_frame *f, struct xds_dgram *out, int64_t now);
int xds_host_udp(struct xds_host *h, struct xds_frame *room, uint16_t sport, uint32_t dst, uint16_t dport, const uint8_t *data, uint32_t len, int64_t now);
int64_t xds_host_deadline(const struct xds_host *h);
void xds_host_tick(struct xds_host *h, int64_t now);
int xds_host_pending(const struct xds_host *h);
int xds_host_output(struct xds_host *h, struct xds_frame *room, int64_t now);
#endif
