/* pipe.h: two link ends joined in memory, for the simulator and for tests. Both ends belong to one
 * thread. What one end flushes the other receives, in order; nothing is lost: a full direction gives
 * no frames to reserve (tx_no_frame).
 *
 * The sender may name the arrival time in xds_frame.rx_ns before commit (0: the time of the flush).
 * With XDS_LINK_VIRTUAL_TIME the receiver gets a frame when now has reached that stamp, and
 * xds_link_deadline() names the stamp of the next one; so a delay line needs no other timer.
 */
#ifndef XDS_PIPE_H
#define XDS_PIPE_H

#include <stddef.h>

#include "link.h"

struct xds_pipe_config {
    uint32_t slots;      /* frames a direction: on their way, received or reserved      */
    uint32_t slot_bytes; /* room of one frame, Ethernet header included                 */
    uint32_t flags;      /* XDS_LINK_VIRTUAL_TIME or 0                                  */
    uint32_t pad;
};

size_t xds_pipe_size(const struct xds_pipe_config *cfg); /* bytes to provide, 0 = bad config */
/* mem: kept until both ends are closed, aligned to 64. Returns 0, XDS_ECONFIG. */
int xds_pipe_open(void *mem, const struct xds_pipe_config *cfg, struct xds_link **left,
                  struct xds_link **right);

#endif
