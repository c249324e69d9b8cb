/* runner.h: the free-running engine: a native thread, pinned, that never holds the GIL.
 *
 * Each turn that gave something goes out as one record of a ring (see ring.h): struct xds_published,
 * then the runs, the events, the updates and the stages, each array at a multiple of 64 bytes. Commands come in
 * by a second ring: struct xds_command (publish.h), then data. A full ring loses the batch, counted here and
 * told by the next one (lost_before): the engine never waits for its reader.
 */
#ifndef XDS_RUNNER_H
#define XDS_RUNNER_H

#include "engine.h"
#include "publish.h"
#include "ring.h"

struct xds_published {
    int64_t now, decoded_ns, applied_ns;
    uint64_t turn;
    uint64_t lost_before; /* batches lost since the one before */
    uint32_t n_updates, n_events, n_runs, n_packets;
    uint32_t open_gaps;
    uint16_t end, n_stages;
};

_Static_assert(sizeof(struct xds_published) == 64, "arrays behind it begin on a cache line");

struct xds_runner_config {
    int32_t cpu;         /* core to pin to, -1: anywhere                                          */
    int32_t rt_priority; /* SCHED_FIFO, 0: none                                                   */
    uint32_t idle_spins; /* empty turns before the thread naps; 0: it spins for ever              */
    uint32_t nap_us;
};

enum xds_runner_state {
    XDS_RUNNER_READY = 0,
    XDS_RUNNER_RUNNING = 1,
    XDS_RUNNER_ENDED = 2,  /* every port has ended, or a stop was asked for */
    XDS_RUNNER_FAILED = 3, /* see xds_runner_error()                        */
};

struct xds_runner;
size_t xds_runner_size(void);
/* out: kept, where batches go, or NULL (hooks only). in: kept, commands, or NULL. */
int xds_runner_init(void *mem, struct xds_engine *e, struct xds_ring *out, struct xds_ring *in,
                    const struct xds_runner_config *cfg);
/* Publish by a tape as well, and take commands from its ring; kept. Before start. */
void xds_runner_publish(struct xds_runner *r, struct xds_publisher *p);
int xds_runner_start(struct xds_runner *r); /* -errno of the thread */
int xds_runner_stop(struct xds_runner *r);  /* asks, waits for the thread; the state's error or 0 */
int xds_runner_state(const struct xds_runner *r);
int xds_runner_error(const struct xds_runner *r); /* -errno of the port or the hook that failed */
int xds_runner_tid(const struct xds_runner *r);   /* of the thread, 0 before start */

#endif
