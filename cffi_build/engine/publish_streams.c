/* publish_streams.c: TCP connections on an engine's tape, and commands about them out of its ring.
 *
 * The publisher is the stream hook of its ports. It reads whatever a peer has sent, at once and from the stack's own
 * memory into the tape's: the engine never waits for who reads the tape. A connection that has ended is told, and let
 * go of. Commands reach connections that were given to the publisher or opened by a command, and no others.
 */
#include <errno.h>

#include "publish_inl.h"

_Static_assert(offsetof(struct xds_stages, callback) == 40, "six stamps in the order of enum xds_stage");

void xdsi_publish_stream(struct xds_publisher *p, const struct xds_publish_stream *news, const uint8_t *data,
                         int64_t now)
{
    const struct xds_batch b = {.now = now};
    const uint32_t size = (uint32_t)sizeof *news + news->len;
    struct xds_publish_head *head = xdsi_publish_begin(p, &b, size);
    if (!head)
        return;
    head->count = 1;
    memcpy(head + 1, news, sizeof *news);
    if (data)
        memcpy((uint8_t *)(head + 1) + sizeof *news, data, news->len);
    p->stats.stream_bytes += news->len;
    xdsi_publish_end(p, XDS_PUBLISH_STREAM, size);
}

static void publish_open(struct xds_publisher *p, const struct xds_stream *s, struct xds_publish_stream news)
{
    struct xds_stack_ends ends;
    if (xds_stack_ends(s->stack, (int)s->id, &ends))
        return;
    news.what = XDS_STACK_OPEN;
    news.local_port = ends.local_port;
    news.remote_port = ends.remote_port;
    memcpy(news.local, ends.local, sizeof news.local);
    memcpy(news.remote, ends.remote, sizeof news.remote);
    xdsi_publish_stream(p, &news, NULL, s->now);
}

/* Everything that came, a piece of the connection's ring at a time. */
static void publish_data(struct xds_publisher *p, const struct xds_stream *s, struct xds_publish_stream news)
{
    const uint32_t most = xdsi_publish_most(p) - (uint32_t)(sizeof(struct xds_publish_head) + sizeof news);
    const struct xds_tcp *t = xds_stack_tcp(s->stack, (int)s->id);
    struct xds_tcp_stats stats;
    struct xds_tcp_info info;
    const uint8_t *data;
    int got;

    if (!t)
        return;
    xds_tcp_stats(t, &stats);
    xds_tcp_info(t, &info);
    if (s->stages && s->stages->receive &&
        !s->stages->callback) /* the port's sessions frame, this does not */
        s->engine->event.callback = xdsi_engine_clock(s->engine);
    if (s->stages)
        memcpy(news.stages, s->stages, sizeof news.stages); /* its first words */
    news.at = stats.received_bytes - info.unread;
    news.what = XDS_STACK_READABLE;
    while ((got = xds_stack_peek(s->stack, (int)s->id, &data)) > 0) {
        news.len = (uint32_t)got < most ? (uint32_t)got : most;
        xdsi_publish_stream(p, &news, data, s->now);
        xds_stack_consume(s->stack, (int)s->id, news.len);
        news.at += news.len;
    }
}

static int on_stream(void *ctx, const struct xds_stream *s)
{
    struct xds_publisher *p = ctx;
    struct xds_publish_stream news = {.ns = s->ns, .connection = s->id, .port = (uint16_t)s->port};

    if (s->what & XDS_STACK_ACCEPTABLE) { /* whom it accepts tells of itself that it is open */
        while (xds_stack_accept(s->stack, (int)s->id) > 0)
            ;
        return 0;
    }
    if (s->what & XDS_STACK_OPEN)
        publish_open(p, s, news);
    struct xdsi_session *session = xdsi_session_at(p, s->port, s->id);
    if (session)
        xdsi_session_news(p, session, s);
    else
        publish_data(p, s, news);
    news.what = s->what & ~(uint32_t)(XDS_STACK_OPEN | XDS_STACK_READABLE);
    if (news.what)
        xdsi_publish_stream(p, &news, NULL, s->now);
    if (s->what & XDSI_STREAM_ENDED)
        xds_stack_close(s->stack, (int)s->id, s->now);
    return 0;
}

int xds_publisher_streams(struct xds_publisher *p, struct xds_engine *e, unsigned port, int connects)
{
    const int rc = xds_engine_set_streams(e, port, on_stream, p);
    if (rc)
        return rc;
    p->streams |= 1u << port;
    if (connects)
        p->connects |= 1u << port;
    return 0;
}

/* ---- commands ---- */

/* The address that a command has: its data, or dst; all zero where both are empty. False: data of another length. */
static bool address_of(const struct xds_command *c, const uint8_t *data, uint8_t out[16])
{
    memset(out, 0, 16);
    if (c->len) {
        if (c->len != 16)
            return false;
        memcpy(out, data, 16);
    } else if (c->dst) {
        memset(out + 10, 0xff, 2);
        memcpy(out + 12, &c->dst, 4);
    }
    return true;
}

static enum xds_command_refusal listen(const struct xds_publisher *p, struct xds_stack *stack,
                                       const struct xds_command *c, const uint8_t *data, uint32_t *listener,
                                       int64_t now)
{
    uint8_t local[16];

    if (!(p->connects >> c->port & 1))
        return XDS_REFUSAL_STEERING;
    if (!address_of(c, data, local) || !c->sport)
        return XDS_REFUSAL_SHORT;
    const int id = xds_stack_listen(stack, local, c->sport, c->what ? c->what : XDS_PUBLISH_BACKLOG);
    if (id > 0) {
        *listener = (uint32_t)id;
        xds_stack_give(stack, id, now);
        return XDS_REFUSAL_NONE;
    }
    return id == XDS_ECAPACITY ? XDS_REFUSAL_FULL
           : id == -EADDRINUSE ? XDS_REFUSAL_TAKEN
                               : XDS_REFUSAL_ADDRESS;
}

static enum xds_command_refusal connect(struct xds_publisher *p, struct xds_stack *stack,
                                        const struct xds_command *c, const uint8_t *data,
                                        uint32_t *connection, int64_t now)
{
    struct xds_tcp_config how;

    if (!(p->connects >> c->port & 1))
        return XDS_REFUSAL_STEERING;
    xds_stack_defaults(stack, &how);
    if (!address_of(c, data, how.remote) || (!c->len && !c->dst) || !c->dport)
        return XDS_REFUSAL_SHORT;
    const enum xds_command_refusal refusal = xdsi_session_check(p, c->feeds);
    if (refusal)
        return refusal;
    how.remote_port = c->dport;
    how.local_port = c->sport;
    const int id = xds_stack_connect(stack, &how, now);
    if (id > 0) {
        *connection = (uint32_t)id;
        if (c->feeds)
            xdsi_session_take(p, c->feeds, c->port, (uint32_t)id);
        xds_stack_give(stack, id, now);
        return XDS_REFUSAL_NONE;
    }
    return id == XDS_ECAPACITY ? XDS_REFUSAL_FULL : id == -EADDRINUSE ? XDS_REFUSAL_TAKEN : XDS_REFUSAL_ROUTE;
}

static enum xds_command_refusal write_all(struct xds_stack *stack, const struct xds_command *c,
                                          const uint8_t *data)
{
    struct xds_tcp_message m;

    if (!c->len)
        return XDS_REFUSAL_SHORT;
    xds_tcp_prepare(&m, (uint8_t *)data, c->len); /* nothing is patched */
    const int rc = xds_stack_send(stack, (int)c->what, &m, 0, NULL, 0);
    return rc > 0 ? XDS_REFUSAL_NONE : rc == 0 ? XDS_REFUSAL_FULL : XDS_REFUSAL_CONNECTION;
}

/* It tells nothing of itself any more, so its end is told here. */
static void let_go(struct xds_publisher *p, struct xds_stack *stack, const struct xds_command *c, int64_t now)
{
    const struct xds_publish_stream news = {
        .ns = now, .connection = c->what, .port = c->port, .what = XDS_STACK_CLOSED};

    if (xds_stack_listens_given(stack, (int)c->what)) {
        xds_stack_unlisten(stack, (int)c->what);
    } else {
        if (c->kind == XDS_COMMAND_RESET)
            xds_stack_abort(stack, (int)c->what);
        xds_stack_close(stack, (int)c->what, now);
    }
    xdsi_publish_stream(p, &news, NULL, now);
}

enum xds_command_refusal xdsi_publish_command(struct xds_publisher *p, struct xds_engine *e,
                                              const struct xds_command *c, const uint8_t *data,
                                              uint32_t *connection)
{
    if (c->port >= e->n_ports || !(p->streams >> c->port & 1))
        return XDS_REFUSAL_PORT;
    struct xds_stack *stack = e->ports[c->port].stack;
    const int64_t now = e->clock ? xds_clock_now(e->clock) : e->now;
    e->deadline = now; /* the turn that follows sends what this makes */
    if (c->kind == XDS_COMMAND_CONNECT)
        return connect(p, stack, c, data, connection, now);
    if (c->kind == XDS_COMMAND_LISTEN)
        return listen(p, stack, c, data, connection, now);
    *connection = c->what;
    const bool listens = c->what <= INT32_MAX && xds_stack_listens_given(stack, (int)c->what);
    if (c->what > INT32_MAX || !(xds_stack_is_given(stack, (int)c->what) || listens))
        return XDS_REFUSAL_CONNECTION;
    if (listens && c->kind == XDS_COMMAND_WRITE)
        return XDS_REFUSAL_CONNECTION;
    struct xdsi_session *session = xdsi_session_at(p, c->port, c->what);
    enum xds_command_refusal refusal = XDS_REFUSAL_NONE;
    if (session && xdsi_session_command(p, e, session, c, data, now, &refusal))
        return refusal;
    if (c->kind == XDS_COMMAND_WRITE)
        return write_all(stack, c, data);
    let_go(p, stack, c, now);
    return XDS_REFUSAL_NONE;
}
