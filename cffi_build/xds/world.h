/* world.h: a host, its TCP and its sockets in one block of memory: the short way to xds_sock.h.
 *
 *   mem = aligned_alloc(64, xds_world_size(&cfg));  n = xds_world_init(mem, &cfg);  then the calls of xds_sock.h
 */
#ifndef XDS_WORLD_H
#define XDS_WORLD_H

#include "xds_sock.h"

/* Zero is a good start for all but host.mac, stack.secret (16 unpredictable bytes) and address. */
struct xds_world_config {
    struct xds_host_config host;
    struct xds_stack_config stack;
    struct xds_socks_config socks;
    uint8_t address[4]; /* of IPv4, as it is written; all 0: none yet   */
    uint32_t prefix;    /* bits of its network [24]                     */
};

size_t
xds_world_size(const struct xds_world_config *cfg); /* a multiple of 64; 0: a configuration that cannot be */
/* mem: on a cache line (64), kept. NULL: a configuration that cannot be; no secret. */
struct xds_socks *xds_world_init(void *mem, const struct xds_world_config *cfg);
/* Its host, for further addresses, routes and neighbours. */
struct xds_host *xds_socks_host(struct xds_socks *n);

#endif
