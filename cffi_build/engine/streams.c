/* streams.c: TCP within the turn: segments from a port's host to its stack, and what the stack sends.
 *
 * A segment is taken when its frame is; what it makes (ACKs, data, resets) leaves at the end of the step, by
 * frames that are reserved a few at a time, so that a burst of ACKs costs few commits. Where the link has no
 * free frame the stack keeps what it has, and the next turn goes on.
 */
#include "engine_inl.h"

#define FRAMES 16  /* reserved at once */
#define EVENTS 512 /* that a turn hands to the hook */

int xds_engine_set_stack(struct xds_engine *e, unsigned port, struct xds_stack *s)
{
    if (port >= e->n_ports || !e->ports[port].link || e->ports[port].stack || !s || e->virtual_time)
        return XDS_ECONFIG;
    e->ports[port].stack = s;
    e->has_stack = true;
    e->deadline = e->now;
    return 0;
}

/* Where nobody wants it, it is as if the host had not known it. */
void xdsi_take_packet(struct xds_engine *e, struct xdsi_port *p, const struct xds_frame *f)
{
    if (!p->stack) {
        e->stats.host_refused++;
        return;
    }
    e->stats.segments++;
    if (p->n_taps)
        xdsi_tap_in(e, p, f);
    xds_stack_input(p->stack, xds_host_packet(p->host), e->now);
}

/* An ICMP error: the host has counted it; connections look at those of theirs. */
void xdsi_take_error(struct xds_engine *e, struct xdsi_port *p)
{
    e->stats.host_consumed++;
    if (p->stack)
        xds_stack_error(p->stack, xds_host_error(p->host), e->now);
}

/* Most turns have one to send, so one is reserved first: what is given back unsent comes cold another time. */
static void send_all(struct xds_engine *e, struct xdsi_port *p)
{
    struct xds_frame frames[FRAMES];

    for (int want = 1; xds_stack_pending(p->stack); want = want * 4 < FRAMES ? want * 4 : FRAMES) {
        const int got = xds_link_reserve(p->link, frames, (unsigned)want);
        int used = 0;
        for (; used < got && xds_stack_output(p->stack, &frames[used], e->now) > 0; used++)
            if (p->n_taps)
                xdsi_tap_out(e, p, &frames[used]);
        for (int i = used; i < got; i++)
            frames[i].len = 0; /* back unsent */
        if (got > 0)
            xds_link_commit(p->link, frames, (unsigned)got);
        p->dirty |= used > 0;
        if (used < want)
            break;
    }
}

static const struct xds_stream_calls calls = {
    .accept = xds_stack_accept,
    .read = xds_stack_read,
    .write = xds_stack_write,
    .shutdown = xds_stack_shutdown,
    .abort = xds_stack_abort,
    .close = xds_stack_close,
    .tcp = xds_stack_tcp,
    .peek = xds_tcp_peek,
    .consume = xds_tcp_consume,
    .reserve = xds_tcp_reserve,
    .commit = xds_tcp_commit,
    .touch = xds_stack_touch,
    .send = xds_stack_send,
    .parsed = xds_engine_parsed,
    .entered = xds_engine_entered,
    .message = xds_engine_message,
};

int xds_engine_set_streams(struct xds_engine *e, unsigned port, xds_stream_hook hook, void *ctx)
{
    if (port >= e->n_ports || !e->ports[port].stack)
        return XDS_ECONFIG;
    e->ports[port].streams = hook;
    e->ports[port].framer = false;
    e->ports[port].streams_ctx = ctx;
    e->deadline = e->now; /* what was given before */
    return 0;
}

/* A bound, for a hook may make news itself: the rest has its turn after what is sent now. */
static void call_streams(struct xds_engine *e, struct xdsi_port *p)
{
    struct xds_stream stream = {
        .calls = &calls, .stack = p->stack, .now = e->now, .port = (uint32_t)(p - e->ports), .engine = e};
    struct xds_stack_event event;

    for (int left = EVENTS; left && xds_stack_given(p->stack, &event); left--) {
        stream.id = event.id;
        stream.what = event.what;
        if (e->n_conns) {
            xdsi_stream_begin(e, p, &event);
            stream.stages = &e->event;
        }
        stream.ns = event.ns ? event.ns : e->now;
        const int rc = p->streams(p->streams_ctx, &stream);
        if (e->n_conns)
            xdsi_stream_end(e);
        if (rc < 0) {
            e->stats.hook_failed++;
            e->hook_rc = rc;
        }
        if (left == 1)
            e->deadline = e->now;
    }
}

static void pump(struct xds_engine *e, struct xdsi_port *p)
{
    xds_stack_tick(p->stack, e->now);
    if (p->streams)
        call_streams(e, p);
    send_all(e, p);
    const int64_t due = xds_stack_pending(p->stack) ? e->now : xds_stack_deadline(p->stack);
    if (due < e->deadline)
        e->deadline = due;
}

void xdsi_pump_stacks(struct xds_engine *e)
{
    for (unsigned i = 0; i < e->n_ports; i++)
        if (e->ports[i].stack)
            pump(e, &e->ports[i]);
}

int xds_engine_pump(struct xds_engine *e, unsigned port)
{
    if (port >= e->n_ports || !e->ports[port].stack)
        return XDS_ECONFIG;
    struct xdsi_port *p = &e->ports[port];
    if (e->clock)
        e->now = xds_clock_now(e->clock);
    pump(e, p);
    if (p->dirty && xds_link_flush(p->link, e->now) <= 0)
        p->dirty = false;
    return 0;
}
