/* session_ws.c: the WebSocket core (xds/ws.h) as a session: its events in the words of all sessions, its end told
 * once, its counters summed. A profile's configuration is struct xds_ws_config, kept with its strings. */
#include "xds/session.h"
#include "xds/ws.h"

#include <stdbool.h>
#include <string.h>

#define WHY        256   /* bytes of a sentence about a failure */
#define USUAL      1000  /* RFC 6455 7.4.1: a normal closure */
#define NONE       1006  /* 7.1.5: no Close was received */
#define SEND_BYTES 65536 /* the core's, where 0 stands for it */

_Static_assert((int)XDS_WS_REASONS <= XDS_SESSION_REASONS, "each reason has its counter");
_Static_assert(XDS_WS_SEED_BYTES <= XDS_SESSION_SEED, "a session's seed is enough");

struct session {
    _Alignas(64) struct xds_ws *core; /* behind this struct */
    uint32_t most;                    /* bytes of a message of ours */
    bool opened, ended;               /* OPEN was told; CLOSED or FAILED */
    uint32_t code;                    /* of the peer's Close */
    uint32_t reason;                  /* of the failure */
    uint32_t unread;                  /* 1: the failure cut an answer or a frame that was not whole */
    char why[WHY];
};

static const char *const sentences[XDS_WS_REASONS] = {
    [XDS_WS_HTTP] = "the answer is not HTTP/1.1, or has a line that cannot be",
    [XDS_WS_HTTP_LONG] = "the answer's head is longer than head_max",
    [XDS_WS_STATUS] = "the server does not switch: ",
    [XDS_WS_UPGRADE] = "the answer has no Upgrade: websocket",
    [XDS_WS_CONNECTION] = "the answer has no Connection: Upgrade",
    [XDS_WS_ACCEPT] = "the answer's Sec-WebSocket-Accept is not that of our key",
    [XDS_WS_EXTENSION] = "the server uses an extension that was not offered",
    [XDS_WS_SUBPROTOCOL] = "the server chose a subprotocol that was not offered, or two",
    [XDS_WS_RSV] = "a frame has a reserved bit set",
    [XDS_WS_OPCODE] = "a frame has a reserved opcode",
    [XDS_WS_MASKED] = "the server masked a frame",
    [XDS_WS_LENGTH] = "a frame's length is not written in its shortest form, or is 2^63 or more",
    [XDS_WS_CONTROL] = "a control frame is longer than 125 bytes, or a fragment",
    [XDS_WS_CONTINUATION] = "a continuation came without a message that it continues",
    [XDS_WS_INTERLEAVED] = "a message began inside a fragmented one",
    [XDS_WS_UTF8] = "a text, or a close's reason, is not UTF-8",
    [XDS_WS_BIG] = "a message is longer than message_max",
    [XDS_WS_CLOSE_BAD] = "a close frame has one byte, or a code that may not be sent",
    [XDS_WS_HANDSHAKE_TIMEOUT] = "no whole answer came within open_timeout",
    [XDS_WS_PONG_TIMEOUT] = "a ping was not answered within ping_timeout",
    [XDS_WS_CLOSE_TIMEOUT] = "our close was not answered within close_timeout",
    [XDS_WS_EOF] = "the connection ended without a close frame",
};

static size_t ws_size(const void *config)
{
    const size_t core = xds_ws_size(config);

    return core ? sizeof(struct session) + core : 0;
}

static int ws_init(void *mem, void *config, int64_t now, const uint8_t *seed)
{
    const struct xds_ws_config *g = config;
    struct session *s = mem;

    *s = (struct session){.core = (struct xds_ws *)(s + 1),
                          .most = (g->send_bytes ? g->send_bytes : SEND_BYTES) - XDS_WS_OVERHEAD};
    return xds_ws_init(s->core, config, seed, now);
}

static int ws_input(void *mem, const uint8_t *data, uint32_t len, int64_t now)
{
    struct session *s = mem;

    if (data)
        return xds_ws_input(s->core, data, len, now);
    xds_ws_eof(s->core, now);
    return 0;
}

/* What was received when it failed, and will never be whole: it has the failure's reason. */
static uint32_t unread(const struct session *s, const struct xds_ws_stats *st)
{
    if (s->reason < XDS_WS_HANDSHAKE_TIMEOUT) /* it failed by what it received: that is counted */
        return 0;
    return s->opened ? (uint32_t)st->cut : st->bytes_in != 0;
}

static void fail(struct session *s, const struct xds_ws_event *from, struct xds_session_event *out)
{
    struct xds_ws_stats st;

    s->ended = true;
    s->reason = from->reason;
    xds_ws_stats(s->core, &st);
    s->unread = unread(s, &st);
    const char *sentence = sentences[from->reason];
    const size_t n = strlen(sentence), more = from->len < WHY - n ? from->len : WHY - n;
    memcpy(s->why, sentence, n);
    if (more) /* HTTP's status line */
        memcpy(s->why + n, from->data, more);
    out->what = XDS_SESSION_FAILED;
    out->code = from->reason;
    out->detail = from->code;
    out->data = (const uint8_t *)s->why;
    out->len = (uint32_t)(n + more);
}

static void translate(struct session *s, const struct xds_ws_event *from, struct xds_session_event *out)
{
    out->data = from->data;
    out->len = from->len;
    switch ((enum xds_ws_what)from->what) {
    case XDS_WS_EVENT_OPEN:
        s->opened = true;
        out->what = XDS_SESSION_OPEN;
        out->code = 101;
        break;
    case XDS_WS_EVENT_TEXT:
        out->flags = XDS_SESSION_TEXT; /* fall through */
    case XDS_WS_EVENT_BINARY:
        out->what = XDS_SESSION_MESSAGE;
        break;
    case XDS_WS_EVENT_PING:
        out->what = XDS_SESSION_WS_PING;
        break;
    case XDS_WS_EVENT_PONG:
        out->what = XDS_SESSION_WS_PONG;
        out->until = (uint64_t)from->rtt_ns;
        break;
    case XDS_WS_EVENT_CLOSE:
        out->what = XDS_SESSION_WS_CLOSING;
        out->code = s->code = from->code;
        break;
    case XDS_WS_EVENT_FAILED:
    case XDS_WS_EVENTS:
        fail(s, from, out);
        break;
    }
}

static int ws_event(void *mem, struct xds_session_event *out)
{
    struct session *s = mem;
    struct xds_ws_event from;

    if (s->ended)
        return 0;
    *out = (struct xds_session_event){0};
    if (xds_ws_event(s->core, &from)) {
        translate(s, &from, out);
        return 1;
    }
    if (xds_ws_state(s->core) != XDS_WS_CLOSED)
        return 0;
    s->ended = true; /* the core leaves its end to who looks at its state */
    out->what = XDS_SESSION_CLOSED;
    out->code = s->code ? s->code : NONE;
    return 1;
}

static int ws_output(void *mem, uint8_t *room, uint32_t cap, int64_t now)
{
    return xds_ws_output(((struct session *)mem)->core, room, cap, now);
}

static int64_t ws_deadline(const void *mem)
{
    return xds_ws_deadline(((const struct session *)mem)->core);
}

static void ws_tick(void *mem, int64_t now)
{
    xds_ws_tick(((struct session *)mem)->core, now);
}

/* The core's word for what is asked wrongly is not one of a session's. */
static int said(int rc)
{
    return rc >= 0 ? 0 : rc == XDS_ECONFIG ? XDS_EMALFORMED : rc;
}

static int ws_send(void *mem, const struct xds_session_message *m, int64_t now)
{
    struct session *s = mem;
    const uint32_t what = m->flags & XDS_SESSION_PING   ? XDS_WS_EVENT_PING
                          : m->flags & XDS_SESSION_TEXT ? XDS_WS_EVENT_TEXT
                                                        : XDS_WS_EVENT_BINARY;

    (void)now;
    if (m->len > s->most) /* it will never have room */
        return xds_ws_state(s->core) == XDS_WS_OPEN ? XDS_EMALFORMED : XDS_ESTATE;
    return said(xds_ws_send(s->core, what, m->data, m->len, 0));
}

/* Where the peer's Close came first, the end in order is on its way. */
static int ws_close(void *mem, uint32_t code, const uint8_t *reason, uint32_t len, int64_t now)
{
    struct session *s = mem;

    if (xds_ws_state(s->core) == XDS_WS_WAITING)
        return 0;
    return said(xds_ws_close(s->core, code ? code : USUAL, reason, len, now));
}

/* The answer counts as one, and each frame that is whole, refused, or cut by a failure. */
static void ws_stats(const void *mem, struct xds_session_stats *out)
{
    const struct session *s = mem;
    struct xds_ws_stats st;
    uint64_t answers = s->opened;

    xds_ws_stats(s->core, &st);
    *out = (struct xds_session_stats){.delivered = s->opened + st.taken, .sent = st.sent_frames};
    for (unsigned r = XDS_WS_HTTP; r < XDS_WS_HANDSHAKE_TIMEOUT; r++) {
        out->reasons[r] = st.reasons[r];
        answers += r < XDS_WS_RSV ? st.reasons[r] : 0;
    }
    out->reasons[s->reason] += s->unread;
    if (s->unread)
        answers += !s->opened;
    out->received = answers + st.frames - (s->unread ? 0 : st.cut);
}

static const struct xds_session_ops ops = {
    .kind = XDS_SESSION_WS,
    .size = ws_size,
    .init = ws_init,
    .input = ws_input,
    .event = ws_event,
    .output = ws_output,
    .deadline = ws_deadline,
    .tick = ws_tick,
    .send = ws_send,
    .close = ws_close,
    .stats = ws_stats,
};

const struct xds_session_ops *xds_session_ws(void)
{
    return &ops;
}
