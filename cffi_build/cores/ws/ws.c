/* ws.c: configuration, events, timers and the end of a WebSocket connection. */
#include "cores/ws/ws_int.h"

#define SECOND     1000000000ll
#define GIB        (1u << 30)
#define HEAD_LEAST 128 /* below it no right answer fits */

static int64_t or_ns(int64_t ns, int64_t usual)
{
    return ns ? ns : usual;
}

/* What the configuration asks for, with the usual values in place of zeros; 0: it cannot be. */
static int settle(struct xds_ws *w, const struct xds_ws_config *cfg)
{
    const uint32_t request = xdsi_ws_request_len(cfg);

    w->message_max = cfg->message_max ? cfg->message_max : 1u << 20;
    w->send_bytes = cfg->send_bytes ? cfg->send_bytes : 65536;
    w->head_max = cfg->head_max ? cfg->head_max : 8192;
    w->handshake_ns = or_ns(cfg->handshake_ns, 10 * SECOND);
    w->ping_ns = cfg->ping_ns;
    w->pong_ns = or_ns(cfg->pong_ns, 20 * SECOND);
    w->close_ns = or_ns(cfg->close_ns, 10 * SECOND);
    if (!request || w->message_max > GIB || w->send_bytes < 1024 || w->send_bytes > GIB ||
        w->head_max < HEAD_LEAST || w->head_max > 1u << 20 || w->handshake_ns < 0 || w->ping_ns < 0 ||
        w->pong_ns < 0 || w->close_ns < 0)
        return 0;
    w->out_cap = (request > w->send_bytes ? request : w->send_bytes) + 2 * XDSI_WS_CONTROL;
    w->assembly_cap = w->message_max > w->head_max ? w->message_max : w->head_max;
    return 1;
}

static uint32_t offered_len(const struct xds_ws_config *cfg)
{
    return cfg->subprotocols ? (uint32_t)strlen(cfg->subprotocols) : 0;
}

size_t xds_ws_size(const struct xds_ws_config *cfg)
{
    struct xds_ws w;

    if (!settle(&w, cfg))
        return 0;
    return sizeof w + (size_t)w.out_cap + w.assembly_cap + offered_len(cfg) + 1;
}

int xds_ws_init(void *mem, const struct xds_ws_config *cfg, const uint8_t seed[16], int64_t now)
{
    struct xds_ws *w = mem;

    memset(w, 0, sizeof *w);
    if (!settle(w, cfg))
        return XDS_ECONFIG;
    w->out = (uint8_t *)(w + 1);
    w->assembly = w->out + w->out_cap;
    w->offered = (char *)w->assembly + w->assembly_cap;
    memcpy(w->offered, cfg->subprotocols ? cfg->subprotocols : "", offered_len(cfg) + 1);
    memcpy(w->prf_key, seed, sizeof w->prf_key);
    w->state = XDS_WS_CONNECTING;
    w->handshake_at = now + w->handshake_ns;
    w->ping_at = w->pong_at = w->close_at = XDS_NEVER;
    xdsi_ws_request(w, cfg);
    return 0;
}

int xds_ws_event(struct xds_ws *w, struct xds_ws_event *out)
{
    if (!w->n_events)
        return 0;
    *out = w->events[0];
    w->events[0] = w->events[1];
    w->n_events--;
    return 1;
}

int xds_ws_input(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now)
{
    int used;

    if (w->n_events)
        return 0;
    if (w->state >= XDS_WS_WAITING) {
        w->stats.late += len;
        used = (int)len;
    } else if (w->state == XDS_WS_CONNECTING) {
        used = xdsi_ws_answer(w, data, len, now);
    } else {
        used = xdsi_ws_frames(w, data, len, now);
    }
    w->stats.bytes_in += used < 0 ? len : (uint32_t)used;
    return used;
}

static void stop_timers(struct xds_ws *w)
{
    w->handshake_at = w->ping_at = w->pong_at = w->close_at = XDS_NEVER;
}

int xdsi_ws_fail(struct xds_ws *w, uint32_t reason, int64_t now)
{
    struct xds_ws_event *e = xdsi_ws_tell(w, XDS_WS_EVENT_FAILED, 0, 0, now);
    uint32_t code = XDSI_WS_PROTOCOL_ERROR;

    if (reason == XDS_WS_UTF8)
        code = XDSI_WS_BAD_TEXT;
    else if (reason == XDS_WS_BIG)
        code = XDSI_WS_TOO_BIG;
    else if (reason == XDS_WS_PONG_TIMEOUT)
        code = XDSI_WS_INTERNAL;
    w->stats.reasons[reason]++;
    if (w->state == XDS_WS_OPEN && reason != XDS_WS_EOF) {
        xdsi_ws_put_close(w, code, 0, 0);
    } else { /* a request that is not out yet, or frames that nobody takes, have no more use */
        code = XDSI_WS_ABNORMAL;
        if (w->state == XDS_WS_CONNECTING || reason == XDS_WS_EOF)
            w->out_head = w->out_tail = 0;
    }
    e->reason = (uint8_t)reason;
    e->code = (uint16_t)code;
    w->state = XDS_WS_CLOSED;
    stop_timers(w);
    return reason == XDS_WS_BIG || reason == XDS_WS_HTTP_LONG ? XDS_ECAPACITY
           : reason == XDS_WS_EOF                             ? XDS_ETRUNC
                                                              : XDS_EMALFORMED;
}

int xds_ws_eof(struct xds_ws *w, int64_t now)
{
    if (w->state == XDS_WS_CLOSED)
        return 0;
    if (w->state == XDS_WS_WAITING) {
        w->state = XDS_WS_CLOSED; /* a peer that only ended its side still gets our Close */
        stop_timers(w);
        return 0;
    }
    return xdsi_ws_fail(w, XDS_WS_EOF, now);
}

int64_t xds_ws_deadline(const struct xds_ws *w)
{
    int64_t at = w->handshake_at;

    at = w->ping_at < at ? w->ping_at : at;
    at = w->pong_at < at ? w->pong_at : at;
    return w->close_at < at ? w->close_at : at;
}

void xds_ws_tick(struct xds_ws *w, int64_t now)
{
    if (now >= w->handshake_at) {
        xdsi_ws_fail(w, XDS_WS_HANDSHAKE_TIMEOUT, now);
    } else if (now >= w->close_at) {
        if (w->state == XDS_WS_CLOSING)
            xdsi_ws_fail(w, XDS_WS_CLOSE_TIMEOUT, now);
        w->state = XDS_WS_CLOSED;
        stop_timers(w);
    } else if (now >= w->pong_at) {
        xdsi_ws_fail(w, XDS_WS_PONG_TIMEOUT, now);
    } else if (now >= w->ping_at) {
        const uint64_t payload = xdsi_ws_random(w);

        memcpy(w->ping_bytes, &payload, 8);
        w->ping_due = w->ping_out = 1;
        w->ping_sent_ns = now;
        w->ping_at = XDS_NEVER; /* until this one is answered */
        w->pong_at = now + w->pong_ns;
        w->stats.sent_pings++;
        xdsi_ws_put_due(w);
    }
}

int xds_ws_close(struct xds_ws *w, uint32_t code, const uint8_t *reason, uint32_t len, int64_t now)
{
    struct xdsi_utf8 utf8 = {0};

    if (w->state >= XDS_WS_CLOSING)
        return XDS_ESTATE;
    if (code ? !xdsi_ws_code_allowed(code) : len != 0)
        return XDS_ECONFIG;
    if (len > XDS_WS_CONTROL_MAX - 2 || !xdsi_utf8(&utf8, reason, len) || utf8.need)
        return XDS_ECONFIG;
    stop_timers(w);
    if (w->state == XDS_WS_CONNECTING) {
        w->out_head = w->out_tail = 0;
        w->state = XDS_WS_CLOSED;
        return 0;
    }
    xdsi_ws_put_close(w, code, reason, len);
    w->state = XDS_WS_CLOSING;
    w->close_at = now + w->close_ns;
    return 0;
}

uint32_t xds_ws_state(const struct xds_ws *w)
{
    return w->state;
}

void xds_ws_stats(const struct xds_ws *w, struct xds_ws_stats *out)
{
    uint64_t refused = 0;

    *out = w->stats;
    for (int r = XDS_WS_RSV; r <= XDS_WS_CLOSE_BAD; r++)
        refused += out->reasons[r];
    out->cut = w->in_frame || w->head_len ? out->frames - out->taken - refused : 0;
}
