/* stack_totals.c: what all connections of a stack have counted, those that are gone too, and how many are in which
 * state. For who watches from outside: a pass goes over a few connections at a time, since each lies on memory
 * that may be cold, and what it found counts when it is through.
 *
 * A connection is counted once a pass: when the pass comes to it, or when it ends before that; one that ends
 * behind it counts with what it had then, and in the next pass with what it had at its end. So sums only grow.
 */
#include "stack_int.h"

_Static_assert(sizeof(struct xds_tcp_stats) % sizeof(uint64_t) == 0, "counters throughout");

static void add(struct xds_tcp_stats *to, const struct xds_tcp_stats *more)
{
    uint64_t *sum = (uint64_t *)(void *)to;
    const uint64_t *one = (const uint64_t *)(const void *)more;
    for (size_t i = 0; i < sizeof *to / sizeof *sum; i++)
        sum[i] += one[i];
}

static void add_conn(const struct xds_stack *s, uint32_t place, struct xds_stack_totals *to)
{
    struct xds_tcp_stats stats;
    struct xds_tcp_info info;
    if (!s->conns[place].id)
        return;
    xds_tcp_stats(xdsi_tcp_of(s, place), &stats);
    xds_tcp_info(xdsi_tcp_of(s, place), &info);
    add(&to->tcp, &stats);
    to->states[info.state]++;
}

void xdsi_totals_end(struct xds_stack *s, uint32_t place)
{
    struct xds_tcp_stats stats;
    xds_tcp_stats(xdsi_tcp_of(s, place), &stats);
    add(&s->ended, &stats);
    if (place >= s->pass_at)
        add(&s->pass.tcp, &stats);
}

void xds_stack_pass(struct xds_stack *s, uint32_t n)
{
    for (; n && s->pass_at < s->fresh; n--)
        add_conn(s, s->pass_at++, &s->pass);
    if (s->pass_at < s->fresh)
        return;
    s->seen = s->pass;
    s->pass_at = 0;
    memset(&s->pass, 0, sizeof s->pass);
    s->pass.tcp = s->ended;
}

void xds_stack_seen(const struct xds_stack *s, struct xds_stack_totals *out)
{
    *out = s->seen;
}

void xds_stack_totals(const struct xds_stack *s, struct xds_stack_totals *out)
{
    memset(out, 0, sizeof *out);
    out->tcp = s->ended;
    for (uint32_t place = 0; place < s->fresh; place++)
        add_conn(s, place, out);
}
