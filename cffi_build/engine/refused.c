/* refused.c: what the engine refuses, copied into its tap's ring while somebody reads there
 * (xdpstack/dropped.py). Out of the turn's way: only a refused frame that is watched comes here.
 */
#include <errno.h>
#include <signal.h>
#include "engine_inl.h"
#include "ground/ring_inl.h"

#define ASK_NS 1000000000

/* Nobody empties the ring: a reader that was killed is forgotten, looked for once a second at most. */
static void forget_the_dead(struct xds_engine *e)
{
    uint32_t pid = __atomic_load_n(&e->tap->reader_pid, __ATOMIC_RELAXED);
    if (!pid || e->now - e->tap_asked < ASK_NS)
        return;
    e->tap_asked = e->now;
    if (kill((pid_t)pid, 0) && errno == ESRCH)
        __atomic_compare_exchange_n(&e->tap->reader_pid, &pid, 0, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

static void show(struct xds_engine *e, const struct xds_refused *head, const uint8_t *data)
{
    const uint32_t len = head->len < XDS_REFUSED_BYTES ? head->len : XDS_REFUSED_BYTES;
    void *room;
    if (xdsi_ring_claim(e->tap, (uint32_t)sizeof *head + len, &room) != 1) {
        forget_the_dead(e); /* the ring counts the record */
        return;
    }
    memcpy(room, head, sizeof *head);
    memcpy((uint8_t *)room + sizeof *head, data, len);
    xdsi_ring_commit(e->tap, head->layer, (uint32_t)sizeof *head + len);
}

void xdsi_show_frame(struct xds_engine *e, unsigned port, const struct xds_frame *f)
{
    const struct xds_refused head = {.ns = f->rx_ns,
                                     .len = f->len,
                                     .port = (uint16_t)port,
                                     .layer = XDS_REFUSED_HOST,
                                     .reason = (uint8_t)xds_host_last_reason(e->ports[port].host)};
    show(e, &head, f->data);
}

void xdsi_show_dgram(struct xds_engine *e, const struct xds_dgram *d)
{
    struct xds_refused head = {.ns = d->rx_ns,
                               .len = d->len,
                               .src = d->src,
                               .dst = d->dst,
                               .sport = d->sport,
                               .dport = d->dport,
                               .port = d->port,
                               .layer = XDS_REFUSED_UNROUTED};
    if (d->six) {
        memcpy(head.src6, d->src6, 16);
        memcpy(head.dst6, d->dst6, 16);
    }
    show(e, &head, d->data);
}
