/* link_ops.h: what a link is inside: a table of operations at its head.
 *
 * A port's own struct begins with `struct xds_link`, so one pointer serves both. A burst costs one
 * indirect call. link.c dispatches; nothing but the ports includes this file.
 */
#ifndef XDSI_LINK_OPS_H
#define XDSI_LINK_OPS_H

#include "xds/base.h"
#include "xds/link.h"

struct xdsi_link_ops {
    int (*rx)(struct xds_link *l, struct xds_frame *out, unsigned cap, int64_t now_ns);
    void (*release)(struct xds_link *l);
    int (*reserve)(struct xds_link *l, struct xds_frame *out, unsigned n);
    int (*commit)(struct xds_link *l, const struct xds_frame *frames, unsigned n);
    int (*flush)(struct xds_link *l, int64_t now_ns);
    int64_t (*deadline)(struct xds_link *l);
    void (*stats)(struct xds_link *l, struct xds_link_stats *out);
    void (*close)(struct xds_link *l);
    int (*make_fd)(
        struct xds_link *l); /* when it is first asked for: sets l->fd; NULL: there it is, or never */
};

struct xds_link {
    const struct xdsi_link_ops *ops;
    uint32_t flags;              /* enum xds_link_flag                        */
    uint32_t mtu;                /* bytes behind the Ethernet header          */
    int32_t fd;                  /* to poll() on; XDS_LINK_NO_FD: none yet     */
    uint32_t closed;             /* close came: later calls are calm          */
    struct xds_link_stats stats; /* counted here, completed by ops->stats     */
};

#define XDSI_LIKELY(x)   __builtin_expect(!!(x), 1)
#define XDSI_UNLIKELY(x) __builtin_expect(!!(x), 0)

#endif
