/* drops.h: the reader of what an XDP program of ours refuses (bpf/xds_leave.bpf.h): perf buffers that
 * exist while somebody reads. Control plane: these calls allocate and wait.
 */
#ifndef XDS_DROPS_H
#define XDS_DROPS_H

#include <stddef.h>
#include <stdint.h>
#include "xds_shared.h"

struct xds_drops;

/* Before each record that read() gives, 8-byte aligned: struct xds_drop and the frame's bytes follow. */
struct xds_drops_record {
    uint32_t len; /* bytes that follow, without padding */
    uint32_t pad;
};

/* prog_id: a program of ours, attached by whomever; its maps are found by their ids. *out: given, until
 * close. Returns 0, -ENOENT it is no program of ours (or gone), -EPERM (CAP_SYS_ADMIN), -errno. */
int xds_drops_open(uint32_t prog_id, struct xds_drops **out);
/* Put buffers in place, for one reader at a time: ask for the tap first. pages: of each CPU's, a power of
 * two. Returns 0, -EPERM (CAP_PERFMON), -errno; libbpf's words are in xds_filter_message(). */
int xds_drops_start(struct xds_drops *d, uint32_t pages);
/* Who holds the tap now; pid 0: nobody. -errno. */
int xds_drops_tap(const struct xds_drops *d, struct xds_tap *out);
/* Hold it until `tap->until_ns`: to be said again before that; until_ns 0 lets go. */
int xds_drops_hold(const struct xds_drops *d, const struct xds_tap *tap);
/* Wait up to timeout_ms for records; those that came lie in *out until the next read. Returns their bytes,
 * 0 none, -errno. */
int xds_drops_read(struct xds_drops *d, int timeout_ms, const uint8_t **out);
/* Frames that found no room since start, of all CPUs, up to now. */
uint64_t xds_drops_lost(const struct xds_drops *d);
void xds_drops_close(struct xds_drops *d);

#endif
