/* ws_out.c: frames on their way out: masked while they are copied (RFC 6455 5.3), and given piece by piece.
 *
 * The key of a frame must not be foreseen by who chose the payload (10.3): keys are SipHash-2-4 of a counter
 * under the connection's seed, a pseudorandom function; the handshake's key and our pings are of it, too. */
#include "cores/ws/ws_int.h"
#include "ground/siphash_inl.h"

typedef uint64_t words __attribute__((vector_size(16)));

uint64_t xdsi_ws_random(struct xds_ws *w)
{
    uint8_t counter[8];

    memcpy(counter, &w->prf_next, 8);
    w->prf_next++;
    return xdsi_siphash(w->prf_key, counter, 8);
}

static uint32_t next_mask(struct xds_ws *w)
{
    if (w->has_spare) { /* one call is good for two */
        w->has_spare = 0;
        return w->mask_spare;
    }
    const uint64_t both = xdsi_ws_random(w);
    w->mask_spare = (uint32_t)(both >> 32);
    w->has_spare = 1;
    return (uint32_t)both;
}

/* from, masked, to: 16 bytes at once. They do not overlap. */
static void mask_copy(uint8_t *to, const uint8_t *from, uint32_t len, uint32_t mask)
{
    const uint64_t two = (uint64_t)mask << 32 | mask;
    const words four = {two, two};
    uint32_t at = 0;

    for (; at + 16 <= len; at += 16) {
        words v;
        memcpy(&v, from + at, 16);
        v ^= four;
        memcpy(to + at, &v, 16);
    }
    if (at + 8 <= len) {
        const uint64_t v = xdsi_le64(from + at) ^ two;
        memcpy(to + at, &v, 8);
        at += 8;
    }
    for (; at < len; at++)
        to[at] = from[at] ^ (uint8_t)(mask >> 8 * (at & 3));
}

/* There is room, as the caller knows: len + XDS_WS_OVERHEAD, or of a control frame XDSI_WS_CONTROL. */
static void put_frame(struct xds_ws *w, uint32_t op, uint32_t fin, const uint8_t *data, uint32_t len)
{
    const uint32_t mask = next_mask(w);
    const uint32_t head = len < 126 ? 2 : len < 65536 ? 4 : 10;

    if (w->out_tail + head + 4 + len > w->out_cap) {
        memmove(w->out, w->out + w->out_head, w->out_tail - w->out_head);
        w->out_tail -= w->out_head;
        w->out_head = 0;
    }
    uint8_t *p = w->out + w->out_tail;
    p[0] = (uint8_t)(fin << 7 | op);
    p[1] = (uint8_t)(0x80 | (len < 126 ? len : len < 65536 ? 126 : 127));
    if (head == 4) {
        xdsi_put16(p + 2, len);
    } else if (head == 10) {
        const uint64_t wide = __builtin_bswap64(len);
        memcpy(p + 2, &wide, 8);
    }
    memcpy(p + head, &mask, 4);
    mask_copy(p + head + 4, data, len, mask);
    w->out_tail += head + 4 + len;
    w->stats.sent_frames++;
}

void xdsi_ws_put_due(struct xds_ws *w)
{
    if (w->pong_due && w->out_tail - w->out_head <= w->send_bytes) {
        put_frame(w, XDSI_WS_PONG, 1, w->pong, w->pong_len);
        w->pong_due = 0;
    }
    if (w->ping_due && w->out_tail - w->out_head <= w->send_bytes) {
        put_frame(w, XDSI_WS_PING, 1, w->ping_bytes, sizeof w->ping_bytes);
        w->ping_due = 0;
    }
}

/* The last frame of ours: nothing goes behind it (5.5.1). */
void xdsi_ws_put_close(struct xds_ws *w, uint32_t code, const uint8_t *reason, uint32_t len)
{
    uint8_t body[XDS_WS_CONTROL_MAX];

    w->pong_due = w->ping_due = 0;
    if (w->close_sent)
        return;
    w->close_sent = 1;
    xdsi_put16(body, code);
    if (len)
        memcpy(body + 2, reason, len);
    put_frame(w, XDSI_WS_CLOSE, 1, body, code ? 2 + len : 0);
}

static int send_control(struct xds_ws *w, uint32_t op, const uint8_t *data, uint32_t len, uint32_t more)
{
    if (more || len > XDS_WS_CONTROL_MAX)
        return XDS_ECONFIG;
    if (w->out_tail - w->out_head + len + XDS_WS_OVERHEAD > w->send_bytes) {
        w->stats.send_full++;
        return XDS_ECAPACITY;
    }
    put_frame(w, op, 1, data, len);
    return (int)len;
}

int xds_ws_send(struct xds_ws *w, uint32_t what, const uint8_t *data, uint32_t len, uint32_t more)
{
    const uint32_t op = what == XDS_WS_EVENT_TEXT ? XDSI_WS_TEXT : XDSI_WS_BINARY;
    struct xdsi_utf8 utf8 = w->send_utf8;

    if (w->state != XDS_WS_OPEN)
        return XDS_ESTATE;
    if (what == XDS_WS_EVENT_PING || what == XDS_WS_EVENT_PONG)
        return send_control(w, what == XDS_WS_EVENT_PING ? XDSI_WS_PING : XDSI_WS_PONG, data, len, more);
    if (what != XDS_WS_EVENT_TEXT && what != XDS_WS_EVENT_BINARY)
        return XDS_ECONFIG;
    if (w->send_op && w->send_op != op)
        return XDS_ESTATE;
    if (len > w->send_bytes || w->out_tail - w->out_head + len + XDS_WS_OVERHEAD > w->send_bytes) {
        w->stats.send_full++;
        return XDS_ECAPACITY;
    }
    if (op == XDSI_WS_TEXT && (!xdsi_utf8(&utf8, data, len) || (!more && utf8.need)))
        return XDS_EMALFORMED;
    put_frame(w, w->send_op ? XDSI_WS_CONT : op, !more, data, len);
    w->send_op = (uint8_t)(more ? op : 0);
    w->send_utf8 = more ? utf8 : (struct xdsi_utf8){0};
    return (int)len;
}

int xds_ws_output(struct xds_ws *w, uint8_t *room, uint32_t cap, int64_t now)
{
    uint32_t done = 0;

    (void)now;
    for (;;) {
        const uint32_t have = w->out_tail - w->out_head;
        const uint32_t n = have < cap - done ? have : cap - done;

        memcpy(room + done, w->out + w->out_head, n);
        w->out_head += n;
        done += n;
        if (w->out_head == w->out_tail)
            w->out_head = w->out_tail = 0;
        if (!w->pong_due && !w->ping_due)
            break;
        xdsi_ws_put_due(w);
        if (!n)
            break;
    }
    w->stats.bytes_out += done;
    return (int)done;
}
