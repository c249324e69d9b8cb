/* runner.c: the thread of a free-running engine. After start it makes no system call of its own, but
 * for the nap when it was told to nap.
 */
#define _GNU_SOURCE /* CPU_SET, pthread_attr_setaffinity_np */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ground/ring_inl.h"
#include "publish_inl.h"
#include "xds/runner.h"

struct xds_runner {
    struct xds_engine *engine;
    struct xds_ring *out, *in;
    struct xds_publisher *publisher;
    struct xds_runner_config cfg;
    struct xds_batch batch;
    uint64_t lost;
    pthread_t thread;
    int joinable;
    atomic_int stop, state, error, tid;
    _Atomic(uint64_t) published, lost_total;
};

size_t xds_runner_size(void)
{
    return sizeof(struct xds_runner);
}

int xds_runner_init(void *mem, struct xds_engine *e, struct xds_ring *out, struct xds_ring *in,
                    const struct xds_runner_config *cfg)
{
    struct xds_runner *r = mem;
    memset(r, 0, sizeof *r);
    r->engine = e;
    r->out = out;
    r->in = in;
    r->cfg = *cfg;
    return 0;
}

void xds_runner_publish(struct xds_runner *r, struct xds_publisher *p)
{
    r->publisher = p;
}

static uint8_t *put(uint8_t *at, const void *from, size_t bytes)
{
    memcpy(at, from, bytes);
    return at + ((bytes + 63) & ~(size_t)63);
}

static void publish(struct xds_runner *r)
{
    const struct xds_batch *b = &r->batch;
    const size_t runs = b->n_runs * sizeof *b->runs, events = b->n_events * sizeof *b->events;
    const size_t size = sizeof(struct xds_published) + ((runs + 63) & ~(size_t)63) +
                        ((events + 63) & ~(size_t)63) + b->n_updates * sizeof *b->updates +
                        b->n_stages * sizeof *b->stages;
    void *room;
    if (xdsi_ring_claim(r->out, (uint32_t)size, &room) != 1) {
        r->lost++;
        atomic_fetch_add_explicit(&r->lost_total, 1, memory_order_relaxed);
        return;
    }
    struct xds_published *p = room;
    *p = (struct xds_published){.now = b->now,
                                .decoded_ns = b->decoded_ns,
                                .applied_ns = b->applied_ns,
                                .turn = b->turn,
                                .lost_before = r->lost,
                                .n_updates = b->n_updates,
                                .n_events = b->n_events,
                                .n_runs = b->n_runs,
                                .n_packets = b->n_packets,
                                .open_gaps = b->open_gaps,
                                .end = (uint16_t)b->end,
                                .n_stages = (uint16_t)b->n_stages};
    uint8_t *at = (uint8_t *)(p + 1);
    at = put(at, b->runs, runs);
    at = put(at, b->events, events);
    at = put(at, b->updates, b->n_updates * sizeof *b->updates);
    memcpy(at, b->stages, b->n_stages * sizeof *b->stages);
    xdsi_ring_commit(r->out, 0, (uint32_t)size);
    r->lost = 0;
    atomic_fetch_add_explicit(&r->published, 1, memory_order_relaxed);
}

static void obey(struct xds_runner *r)
{
    const struct xds_ring_record *record;
    while (xdsi_ring_peek(r->in, &record) == 1) {
        const struct xds_command *c = (const struct xds_command *)(record + 1);
        if (record->len < sizeof *c)
            continue;
        if (c->kind == XDS_COMMAND_STOP)
            atomic_store_explicit(&r->stop, 1, memory_order_relaxed);
        else if ((c->kind == XDS_COMMAND_SEND || c->kind == XDS_COMMAND_SEND6) &&
                 c->len <= record->len - sizeof *c)
            (void)xdsi_publish_send(r->engine, c, (const uint8_t *)(c + 1));
    }
    xdsi_ring_release(r->in);
}

/* One turn and what belongs to it. Returns packets, or a negative code that ends the loop. */
static int pass(struct xds_runner *r)
{
    if (r->in)
        obey(r);
    if (r->publisher && xds_publisher_obey(r->publisher, r->engine))
        atomic_store_explicit(&r->stop, 1, memory_order_relaxed);
    const int n = xds_engine_turn(r->engine, 0, &r->batch);
    if (r->out && (r->batch.n_updates || r->batch.n_events || r->batch.end))
        publish(r);
    if (r->publisher)
        xds_publisher_turn(r->publisher, r->engine, &r->batch);
    return n >= 0 && r->batch.hook_rc < 0 ? r->batch.hook_rc : n;
}

static void drain_captures(struct xds_runner *r)
{
    int more;
    do {
        more = xds_engine_finish(r->engine, &r->batch);
        if (r->out)
            publish(r);
        if (r->publisher)
            xds_publisher_turn(r->publisher, r->engine, &r->batch);
    } while (more > 0);
}

static void *runner_main(void *arg)
{
    struct xds_runner *r = arg;
    atomic_store(&r->tid, (int)syscall(SYS_gettid));
    const struct timespec nap = {.tv_nsec = (long)r->cfg.nap_us * 1000};
    uint32_t idle = 0;
    int rc = 0;
    while (!atomic_load_explicit(&r->stop, memory_order_relaxed)) {
        rc = pass(r);
        if (rc < 0 || r->batch.end)
            break;
        idle = rc ? 0 : idle + 1;
        if (r->cfg.idle_spins && idle >= r->cfg.idle_spins)
            nanosleep(&nap, NULL);
    }
    if (r->batch.end)
        drain_captures(r);
    atomic_store(&r->error, rc < 0 ? rc : 0);
    atomic_store(&r->state, rc < 0 ? XDS_RUNNER_FAILED : XDS_RUNNER_ENDED);
    return NULL;
}

int xds_runner_start(struct xds_runner *r)
{
    if (atomic_load(&r->state) == XDS_RUNNER_RUNNING)
        return XDS_ESTATE;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    if (r->cfg.cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((unsigned)r->cfg.cpu, &set);
        pthread_attr_setaffinity_np(&attr, sizeof set, &set);
    }
    if (r->cfg.rt_priority > 0) {
        const struct sched_param param = {.sched_priority = r->cfg.rt_priority};
        pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED);
        pthread_attr_setschedpolicy(&attr, SCHED_FIFO);
        pthread_attr_setschedparam(&attr, &param);
    }
    atomic_store(&r->stop, 0);
    atomic_store(&r->state, XDS_RUNNER_RUNNING);
    const int rc = pthread_create(&r->thread, &attr, runner_main, r);
    pthread_attr_destroy(&attr);
    r->joinable = rc == 0;
    if (rc == 0)
        pthread_setname_np(r->thread, "xds-engine");
    if (rc)
        atomic_store(&r->state, XDS_RUNNER_READY);
    return -rc;
}

int xds_runner_stop(struct xds_runner *r)
{
    atomic_store_explicit(&r->stop, 1, memory_order_relaxed);
    if (r->joinable) {
        pthread_join(r->thread, NULL);
        r->joinable = 0;
    }
    return atomic_load(&r->error);
}

int xds_runner_state(const struct xds_runner *r)
{
    return atomic_load(&((struct xds_runner *)r)->state);
}

int xds_runner_error(const struct xds_runner *r)
{
    return atomic_load(&((struct xds_runner *)r)->error);
}

int xds_runner_tid(const struct xds_runner *r)
{
    return atomic_load(&((struct xds_runner *)r)->tid);
}
