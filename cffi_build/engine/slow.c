/* slow.c: alerts of turns that took too long: noted by the thread that turns, read by any. */
#include "engine_inl.h"

/* A turn took too long: an alert for whoever reads them, or one more that the next alert speaks of. */
void xdsi_note_slow(struct xds_engine *e, int64_t spent)
{
    e->stats.slow_turns++;
    if ((uint64_t)spent > e->stats.slow_worst_ns)
        e->stats.slow_worst_ns = (uint64_t)spent;
    if (e->stats.slow_alerts && e->now - e->slow_at < e->cfg.alert_ns) {
        e->slow_since++;
        if (spent > e->slow_since_ns)
            e->slow_since_ns = spent;
        return;
    }
    const uint64_t n = atomic_load_explicit(&e->slow_count, memory_order_relaxed);
    e->slow[n % XDSI_SLOW_KEPT] = (struct xds_slow_turn){.turn = e->stats.turns,
                                                         .ns = e->now,
                                                         .took_ns = spent,
                                                         .packets = e->n_packets,
                                                         .updates = e->sink.n_updates,
                                                         .since = e->slow_since,
                                                         .since_ns = e->slow_since_ns};
    atomic_store_explicit(&e->slow_count, n + 1, memory_order_release);
    e->stats.slow_alerts = n + 1;
    e->slow_at = e->now;
    e->slow_since = 0;
    e->slow_since_ns = 0;
}

int xds_engine_slow(const struct xds_engine *e, uint64_t *cursor, struct xds_slow_turn *out)
{
    struct xds_engine *shared = (struct xds_engine *)e; /* an atomic load wants it writable */
    for (;;) {
        const uint64_t count = atomic_load_explicit(&shared->slow_count, memory_order_acquire);
        if (*cursor >= count)
            return 0;
        if (count - *cursor >= XDSI_SLOW_KEPT) /* the oldest place may be in writing now */
            *cursor = count - XDSI_SLOW_KEPT + 1;
        *out = e->slow[*cursor % XDSI_SLOW_KEPT];
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&shared->slow_count, memory_order_relaxed) - *cursor < XDSI_SLOW_KEPT) {
            ++*cursor;
            return 1;
        }
    }
}
