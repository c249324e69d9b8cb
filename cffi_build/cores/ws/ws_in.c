/* ws_in.c: frames to events (RFC 6455 5). A frame is refused at the first byte that shows what is wrong with
 * it, so the events do not depend on how the stream is cut; input stops behind each event. */
#include "cores/ws/ws_int.h"

#include <limits.h>

static int refuse(struct xds_ws *w, uint32_t reason, int64_t now)
{
    return xdsi_ws_fail(w, reason, now);
}

/* The first byte (5.2, 5.4, 5.5): 0 or a reason. */
static uint32_t first_byte(const struct xds_ws *w, uint8_t b)
{
    const uint32_t op = b & 15;

    if (b & 0x70)
        return XDS_WS_RSV;
    if (op >= XDSI_WS_CLOSE)
        return op > XDSI_WS_PONG ? XDS_WS_OPCODE : b & 0x80 ? 0 : XDS_WS_CONTROL;
    if (op > XDSI_WS_BINARY)
        return XDS_WS_OPCODE;
    if (op == XDSI_WS_CONT)
        return w->message_op ? 0 : XDS_WS_CONTINUATION;
    return w->message_op ? XDS_WS_INTERLEAVED : 0;
}

/* have bytes of a frame's head, at least one. Bytes of the head when it is whole (then the frame is begun), 0
 * when it is not, or minus a reason. */
static int take_head(struct xds_ws *w, const uint8_t *h, uint32_t have)
{
    const uint32_t reason = first_byte(w, h[0]);
    uint64_t len;
    int size = 2;

    if (reason)
        return -(int)reason;
    if (have < 2)
        return 0;
    if (h[1] & 0x80)
        return -XDS_WS_MASKED;
    len = h[1];
    if (len > 125) {
        if (h[0] & 8)
            return -XDS_WS_CONTROL;
        size = len == 126 ? 4 : 10;
        if (have < (uint32_t)size)
            return 0;
        len = size == 4 ? xdsi_be16(h + 2) : xdsi_be64(h + 2);
        if (len < (size == 4 ? 126 : 65536) || len >> 63)
            return -XDS_WS_LENGTH;
    }
    if (!(h[0] & 8) && len > w->message_max - w->message_len)
        return -XDS_WS_BIG;
    w->op = h[0] & 15;
    w->fin = h[0] >> 7;
    w->left = len;
    w->taken = 0;
    w->in_frame = 1;
    return size;
}

/* A head that may be cut anywhere. Bytes used, or a fault. */
static int head(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now)
{
    uint32_t used = 0;
    int got;

    if (!w->head_len) {
        w->stats.frames++;
        got = take_head(w, data, len);
        if (got)
            return got > 0 ? got : refuse(w, (uint32_t)-got, now);
    }
    do { /* what came is not a whole head: fewer than 10 bytes in all */
        w->head[w->head_len++] = data[used++];
        got = take_head(w, w->head, w->head_len);
    } while (!got && used < len);
    if (got < 0)
        return refuse(w, (uint32_t)-got, now);
    if (got)
        w->head_len = 0;
    return (int)used;
}

/* n more bytes of the frame's payload: where they lie, if they are all that will be told; else 0, and they
 * are put behind what came before. */
static const uint8_t *keep(struct xds_ws *w, const uint8_t *data, uint32_t n)
{
    const int control = w->op & 8;
    uint8_t *to = control ? w->control + w->taken : w->assembly + w->message_len + w->taken;

    if (!w->taken && n == w->left && (control || (w->fin && w->op)))
        return data;
    memcpy(to, data, n);
    return 0;
}

static void end_ping(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now)
{
    xdsi_ws_tell(w, XDS_WS_EVENT_PING, data, len, now);
    w->stats.pings++;
    if (w->state != XDS_WS_OPEN)
        return; /* nothing goes behind our Close */
    w->stats.pings_passed += w->pong_due;
    w->pong_due = 1;
    w->pong_len = (uint8_t)len;
    memcpy(w->pong, data, len);
    xdsi_ws_put_due(w);
}

static void end_pong(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now)
{
    struct xds_ws_event *e = xdsi_ws_tell(w, XDS_WS_EVENT_PONG, data, len, now);

    w->stats.pongs++;
    if (!w->ping_out || w->ping_due || len != sizeof w->ping_bytes || memcmp(data, w->ping_bytes, len))
        return; /* a heartbeat of the peer's own (5.5.3), or the answer to a ping of the user's */
    e->rtt_ns = w->stats.rtt_ns = now - w->ping_sent_ns;
    w->stats.pongs_matched++;
    w->ping_out = 0;
    w->pong_at = XDS_NEVER;
    if (w->state == XDS_WS_OPEN)
        w->ping_at = now + w->ping_ns;
}

/* 0, or a fault (5.5.1, 7.4). */
static int end_close(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now)
{
    const uint32_t code = len < 2 ? 0 : xdsi_be16(data);
    struct xdsi_utf8 utf8 = {0};

    if (len == 1 || (len && !xdsi_ws_code_allowed(code)))
        return refuse(w, XDS_WS_CLOSE_BAD, now);
    if (len && (!xdsi_utf8(&utf8, data + 2, len - 2) || utf8.need))
        return refuse(w, XDS_WS_UTF8, now);
    w->stats.closes++;
    xdsi_ws_tell(w, XDS_WS_EVENT_CLOSE, len ? data + 2 : data, len ? len - 2 : 0, now)->code =
        (uint16_t)(len ? code : XDSI_WS_NO_CODE);
    xdsi_ws_put_close(w, code, 0, 0);
    w->state = XDS_WS_WAITING;
    w->ping_at = w->pong_at = XDS_NEVER;
    w->close_at = now + w->close_ns;
    return 0;
}

static void end_message(struct xds_ws *w, const uint8_t *lent, uint32_t op, int64_t now)
{
    struct xds_ws_event *e = xdsi_ws_tell(w, op == XDSI_WS_TEXT ? XDS_WS_EVENT_TEXT : XDS_WS_EVENT_BINARY,
                                          lent ? lent : w->assembly, w->message_len + w->taken, now);

    e->frames = w->message_frames + 1;
    e->lent = lent != 0;
    w->stats.lent += lent != 0;
    w->stats.texts += op == XDSI_WS_TEXT;
    w->stats.binaries += op == XDSI_WS_BINARY;
    w->message_op = 0;
    w->message_len = w->message_frames = 0;
    w->utf8 = (struct xdsi_utf8){0};
}

/* The frame is whole; lent: its payload, where it lies in the input. 0, or a fault. */
static int end_frame(struct xds_ws *w, const uint8_t *lent, int64_t now)
{
    const uint32_t op = w->op ? w->op : w->message_op;
    const uint8_t *control = lent ? lent : w->control;
    int done = 0;

    if (op == XDSI_WS_TEXT && w->fin && w->utf8.need)
        return refuse(w, XDS_WS_UTF8, now);
    if (op == XDSI_WS_PING) {
        end_ping(w, control, w->taken, now);
    } else if (op == XDSI_WS_PONG) {
        end_pong(w, control, w->taken, now);
    } else if (op == XDSI_WS_CLOSE) {
        done = end_close(w, control, w->taken, now);
    } else if (w->fin) {
        end_message(w, lent, op, now);
    } else {
        w->message_op = (uint8_t)op;
        w->message_len += w->taken;
        w->message_frames++;
    }
    if (done < 0)
        return done;
    w->in_frame = 0;
    w->stats.taken++;
    return 0;
}

int xdsi_ws_frames(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now)
{
    uint32_t at = 0;
    int got;

    len = len < INT_MAX ? len : INT_MAX;
    while (at < len) {
        if (!w->in_frame) {
            got = head(w, data + at, len - at, now);
            if (got < 0)
                return got;
            at += (uint32_t)got;
            if (!w->in_frame)
                break;
        }
        const uint32_t n = w->left < len - at ? (uint32_t)w->left : len - at;
        const uint8_t *lent = keep(w, data + at, n);
        const uint32_t op = w->op ? w->op : w->message_op;

        if (op == XDSI_WS_TEXT && !xdsi_utf8(&w->utf8, data + at, n))
            return refuse(w, XDS_WS_UTF8, now);
        w->taken += n;
        w->left -= n;
        at += n;
        if (w->left)
            break;
        got = end_frame(w, lent, now);
        if (got < 0)
            return got;
        if (w->n_events)
            break;
    }
    return (int)at;
}
