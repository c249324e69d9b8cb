/* ws.h: one WebSocket connection, client side, as a pure state machine (RFC 6455): bytes in, messages out.
 * No I/O, no clock, no allocation; chance is the seed. One block of the caller's memory holds all of it.
 *
 *   input(bytes) -> event(): open, text, binary, ping, pong, close, failed;  output(room) -> bytes to send
 *   send(), close() -> output();  deadline(), tick() -> own pings, and who does not answer in time
 *
 * input() stops behind what made an event: take the event, then give the rest. A message of one frame that
 * lies whole in the input is lent where it lies; any other is put together in the caller's block. However the
 * stream is cut, the events are the same. Text is checked (UTF-8) as it comes.
 *
 * CONNECTING: the request goes out; the answer must be 101, with its Upgrade, Connection and Accept (4.1), no
 *     extension, and a subprotocol only out of those that were offered. Anything else: FAILED.
 * OPEN: messages both ways. A ping is answered (the latest, where the output is full: 5.5.3).
 * CLOSING: our Close went first; messages still come until the peer's Close, or FAILED after close_ns.
 * WAITING: Close went both ways. The server closes TCP (7.1.1), or after close_ns we do.
 * CLOSED: when output() gives nothing more, close the TCP connection.
 *
 * FAILED is the last event: reason, and in code the status that went to the peer (7.1.7; 1006: none went), or
 * HTTP's where the answer was not 101.
 * Frames begun = taken + the sum of the reasons from XDS_WS_RSV to XDS_WS_CLOSE_BAD + cut.
 *
 * Not here: the server's side, permessage-deflate (RFC 7692), connecting again, redirects, authentication.
 */
#ifndef XDS_WS_H
#define XDS_WS_H

#include "base.h"

#define XDS_WS_CONTROL_MAX 125 /* bytes of a ping, pong or close (5.5)                        */
#define XDS_WS_SEED_BYTES  16
#define XDS_WS_OVERHEAD    14 /* most bytes that send() adds to one frame                      */

enum xds_ws_state {
    XDS_WS_CONNECTING = 0,
    XDS_WS_OPEN = 1,
    XDS_WS_CLOSING = 2,
    XDS_WS_WAITING = 3,
    XDS_WS_CLOSED = 4,
    XDS_WS_STATES = 5,
};

enum xds_ws_what {
    XDS_WS_EVENT_OPEN = 1,   /* data: the subprotocol, or nothing                                */
    XDS_WS_EVENT_TEXT = 2,   /* data: a whole message, valid UTF-8                               */
    XDS_WS_EVENT_BINARY = 3, /* data: a whole message                                            */
    XDS_WS_EVENT_PING = 4,   /* data: what it carried; it is answered already                    */
    XDS_WS_EVENT_PONG = 5,   /* data: what it carried; rtt_ns where it answers our ping          */
    XDS_WS_EVENT_CLOSE = 6,  /* the peer's Close: code (1005: none), data: its reason in UTF-8   */
    XDS_WS_EVENT_FAILED = 7, /* reason, code; data: HTTP's status line where that was refused    */
    XDS_WS_EVENTS = 8,
};

/* Why it failed. 0 is no reason. */
enum xds_ws_reason {
    XDS_WS_NONE = 0,
    XDS_WS_HTTP = 1,               /* not an HTTP/1.1 answer, or a header line that cannot be              */
    XDS_WS_HTTP_LONG = 2,          /* the answer's head is longer than head_max                            */
    XDS_WS_STATUS = 3,             /* HTTP said something else than 101                                    */
    XDS_WS_UPGRADE = 4,            /* no `Upgrade: websocket`                                              */
    XDS_WS_CONNECTION = 5,         /* no `Connection: upgrade`                                             */
    XDS_WS_ACCEPT = 6,             /* Sec-WebSocket-Accept is missing, twice or not of our key             */
    XDS_WS_EXTENSION = 7,          /* an extension that nobody asked for                                   */
    XDS_WS_SUBPROTOCOL = 8,        /* a subprotocol that was not offered, or two                           */
    XDS_WS_RSV = 9,                /* a reserved bit (5.2)                                                 */
    XDS_WS_OPCODE = 10,            /* 3 to 7, 11 to 15                                                     */
    XDS_WS_MASKED = 11,            /* a server does not mask (5.1)                                         */
    XDS_WS_LENGTH = 12,            /* not the shortest way to write it, or 2^63 and more                   */
    XDS_WS_CONTROL = 13,           /* a control frame that is longer than 125 bytes, or a fragment         */
    XDS_WS_CONTINUATION = 14,      /* a continuation of nothing                                           */
    XDS_WS_INTERLEAVED = 15,       /* a new message inside a fragmented one                                */
    XDS_WS_UTF8 = 16,              /* text, or a close's reason, that is not UTF-8: 1007                   */
    XDS_WS_BIG = 17,               /* a message longer than message_max: 1009                              */
    XDS_WS_CLOSE_BAD = 18,         /* a Close of one byte, or with a code that may not be sent (7.4)       */
    XDS_WS_HANDSHAKE_TIMEOUT = 19, /* no whole answer within handshake_ns                            */
    XDS_WS_PONG_TIMEOUT = 20,      /* a ping was not answered within pong_ns: 1011                       */
    XDS_WS_CLOSE_TIMEOUT = 21,     /* our Close was not answered within close_ns                         */
    XDS_WS_EOF = 22,               /* the stream ended without a Close: 1006                             */
    XDS_WS_REASONS = 23,
};

/* Where 0 stands for something, it is in brackets. Strings: NUL-terminated, borrowed until init returns. */
struct xds_ws_config {
    const char *host;         /* Host's value: name or address, with the port where it is not the usual */
    const char *path;         /* the request's target, path and query [/]                             */
    const char *headers;      /* more lines, each `Name: value\r\n` [none]; not those of the handshake */
    const char *subprotocols; /* as they are sent: tokens with commas, the preferred one first [none]  */
    uint32_t message_max;     /* bytes of a message [1 MiB], up to 1 GiB                              */
    uint32_t send_bytes;      /* frames that wait for output() [64 KiB], 1 KiB to 1 GiB               */
    uint32_t head_max;        /* bytes of the answer's head [8 KiB], up to 1 MiB                      */
    uint32_t pad;
    int64_t handshake_ns; /* [10 s]                                                                */
    int64_t ping_ns;      /* from open, or from the last answer, to our next ping [0: none]        */
    int64_t pong_ns;      /* [20 s]                                                                */
    int64_t close_ns;     /* [10 s]                                                                */
};

struct xds_ws_event {
    int64_t ns;          /* of the call that made it                                                */
    const uint8_t *data; /* borrowed until the next input                                           */
    int64_t rtt_ns;      /* of a pong to our latest ping; else 0                                    */
    uint32_t len;
    uint32_t frames; /* of a message                                                            */
    uint8_t what;    /* enum xds_ws_what                                                        */
    uint8_t reason;  /* enum xds_ws_reason                                                      */
    uint16_t code;   /* of close and failed                                                     */
    uint8_t lent;    /* 1: data lies in the input, 0: in the connection's block                 */
    uint8_t pad[3];
};

struct xds_ws_stats {
    uint64_t bytes_in, bytes_out; /* taken by input, given by output                              */
    uint64_t late;                /* bytes behind the peer's Close or a failure: dropped (1.4)     */
    uint64_t frames, taken, cut;  /* begun; whole and right; not whole (yet)                       */
    uint64_t texts, binaries, pings, pongs, closes; /* events                                      */
    uint64_t lent;         /* messages that were not copied                                     */
    uint64_t pings_passed; /* pings that a later one came before the answer to: that is answered */
    uint64_t sent_frames;  /* of all kinds                                                      */
    uint64_t sent_pings, pongs_matched;
    uint64_t send_full;   /* send() that did not fit                                           */
    int64_t rtt_ns;       /* of the latest answered ping, 0: none yet                          */
    uint64_t reasons[23]; /* enum xds_ws_reason                                                  */
};

struct xds_ws;
size_t
xds_ws_size(const struct xds_ws_config *cfg); /* bytes to provide, aligned to 64; 0: a bad configuration */
/* mem: kept until the connection is no more used. seed: from the system's randomness, for this connection
 * only. The request is ready for output. 0, or XDS_ECONFIG: a string that cannot stand in the request, or a
 * bound. */
int xds_ws_init(void *mem, const struct xds_ws_config *cfg, const uint8_t seed[16], int64_t now);

/* Bytes taken: all, or up to what made an event; 0 while an event waits to be taken. data: borrowed until the
 * event was used. Behind the end (WAITING, CLOSED) everything is taken and dropped.
 * XDS_EMALFORMED, XDS_ECAPACITY (too big): FAILED is the next event; send what output() gives, close TCP. */
int xds_ws_input(struct xds_ws *w, const uint8_t *data, uint32_t len, int64_t now);
int xds_ws_eof(struct xds_ws *w,
               int64_t now); /* the stream ended (FIN, reset): 0, XDS_ETRUNC: FAILED is next */
int xds_ws_event(struct xds_ws *w, struct xds_ws_event *out); /* 1 filled, 0 none */
/* Bytes written to room, 0: none. What does not fit comes with the next call. */
int xds_ws_output(struct xds_ws *w, uint8_t *room, uint32_t cap, int64_t now);
int64_t xds_ws_deadline(const struct xds_ws *w);
void xds_ws_tick(struct xds_ws *w, int64_t now); /* then event() and output() */

/* One frame, masked: what is text or binary (enum xds_ws_what), PING or PONG. more: 1: a fragment, the next
 * send of that kind goes on. Returns len; XDS_ESTATE not open, or another message is begun; XDS_EMALFORMED
 * not UTF-8; XDS_ECONFIG what, or a control frame that is longer than 125 bytes or a fragment; XDS_ECAPACITY
 * full now: after output() there is room (more than send_bytes - 14 never fits at once). */
int xds_ws_send(struct xds_ws *w, uint32_t what, const uint8_t *data, uint32_t len, uint32_t more);
/* Behind what was sent, a Close. code: 1000 to 1003, 1007 to 1014, 3000 to 4999, or 0: none; reason: UTF-8,
 * up to 123 bytes. While connecting: the end at once. 0, XDS_ESTATE closed before, XDS_ECONFIG refused. */
int xds_ws_close(struct xds_ws *w, uint32_t code, const uint8_t *reason, uint32_t len, int64_t now);
uint32_t xds_ws_state(const struct xds_ws *w); /* enum xds_ws_state */
void xds_ws_stats(const struct xds_ws *w, struct xds_ws_stats *out);

#endif
