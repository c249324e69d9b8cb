/* ws_int.h: the state of one WebSocket connection, shared by the files of this folder.
 *
 * ws.c       configuration, events, timers, the end
 * ws_http.c  the request and its answer (RFC 6455 4)
 * ws_in.c    frames to events (5)
 * ws_out.c   what is sent to masked frames (5.3)
 *
 * The caller's block: this struct, then `out` (out_cap bytes), `assembly` (assembly_cap) and the subprotocols
 * that were offered. `out` has room for two control frames behind what send() may fill (send_bytes), so a
 * Close always fits; a pong or ping waits as `due` while more than send_bytes are in it.
 */
#ifndef XDSI_WS_INT_H
#define XDSI_WS_INT_H

#include "ground/utf8_inl.h"
#include "xds/ws.h"

#define XDSI_WS_KEY_BYTES    24                       /* base64 of 16 bytes (4.1, 7)                    */
#define XDSI_WS_ACCEPT_BYTES 28                       /* base64 of 20 (4.2.2, 5.4)                      */
#define XDSI_WS_CONTROL      (6 + XDS_WS_CONTROL_MAX) /* a masked control frame's most bytes */
#define XDSI_WS_HEAD         10                       /* a frame's head without a key                   */

enum xdsi_ws_opcode { /* 5.2 */
                      XDSI_WS_CONT = 0,
                      XDSI_WS_TEXT = 1,
                      XDSI_WS_BINARY = 2,
                      XDSI_WS_CLOSE = 8,
                      XDSI_WS_PING = 9,
                      XDSI_WS_PONG = 10,
};

enum {
    XDSI_WS_PROTOCOL_ERROR = 1002,
    XDSI_WS_NO_CODE = 1005,
    XDSI_WS_ABNORMAL = 1006,
    XDSI_WS_BAD_TEXT = 1007,
    XDSI_WS_TOO_BIG = 1009,
    XDSI_WS_INTERNAL = 1011
};

struct xds_ws {
    /* the frame that is being taken */
    uint64_t left;    /* bytes of its payload that have not come                         */
    uint32_t taken;   /* bytes that have                                                 */
    uint8_t in_frame; /* its head is whole                                               */
    uint8_t op, fin;
    uint8_t head_len; /* bytes of a head that is not whole, in head                      */
    uint8_t head[XDSI_WS_HEAD];
    /* the message that it belongs to */
    uint8_t message_op; /* 0: none is begun                                              */
    struct xdsi_utf8 utf8;
    uint32_t message_len, message_frames; /* in assembly                                     */

    uint8_t state, send_op;
    uint8_t n_events, close_sent;
    uint8_t pong_due, ping_due, ping_out; /* ping_out: our ping is not answered              */
    uint8_t pong_len, ping_bytes[8];
    struct xdsi_utf8 send_utf8;

    uint32_t message_max, send_bytes, head_max, assembly_cap, out_cap;
    uint32_t out_head, out_tail; /* [head, tail) of out goes out                             */
    uint8_t *out, *assembly;
    char *offered; /* subprotocols, NUL-terminated; as they were sent */

    uint8_t prf_key[16];
    uint64_t prf_next; /* the keystream's position (ws_out.c)                               */
    uint32_t mask_spare;
    uint32_t has_spare;

    int64_t handshake_ns, ping_ns, pong_ns, close_ns;
    int64_t handshake_at, ping_at, pong_at, close_at; /* XDS_NEVER: not running               */
    int64_t ping_sent_ns;

    struct xds_ws_event events[2]; /* of input one, and of tick or eof the last              */
    char accept[XDSI_WS_ACCEPT_BYTES];
    uint8_t control[XDS_WS_CONTROL_MAX], pong[XDS_WS_CONTROL_MAX];
    struct xds_ws_stats stats;
};

static inline struct xds_ws_event *xdsi_ws_tell(struct xds_ws *w, uint32_t what, const uint8_t *data,
                                                uint32_t len, int64_t now)
{
    struct xds_ws_event *e = &w->events[w->n_events++];

    *e = (struct xds_ws_event){.ns = now, .what = (uint8_t)what, .data = data, .len = len};
    return e;
}

/* Whether a Close may carry this code (7.4.1, 7.4.2, and IANA's 1012 to 1014). */
static inline int xdsi_ws_code_allowed(uint32_t code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

/* The connection fails (7.1.7): FAILED is told, a Close goes where the peer may understand one. The fault. */
int xdsi_ws_fail(struct xds_ws *w, uint32_t reason, int64_t now);

uint32_t xdsi_ws_request_len(const struct xds_ws_config *cfg); /* 0: it cannot be sent so */
void xdsi_ws_request(struct xds_ws *w, const struct xds_ws_config *cfg);
int xdsi_ws_answer(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now); /* as xds_ws_input */

int xdsi_ws_frames(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now); /* as xds_ws_input */

uint64_t xdsi_ws_random(struct xds_ws *w);
void xdsi_ws_put_close(struct xds_ws *w, uint32_t code, const uint8_t *reason,
                       uint32_t len);   /* code 0: none */
void xdsi_ws_put_due(struct xds_ws *w); /* pong and ping, where there is room */

#endif
