/* session.h: what TLS, WebSocket and FIX have in common: one table of calls, so that whoever moves the bytes of
 * a connection knows none of them by name. A protocol's adapter (engine/session_ws.c, ...) fills a table over
 * its pure core.
 *
 *   input(bytes) -> event(), event(), ... until 0 -> input(the rest)      output(room) -> bytes to send
 *   deadline(), tick()               send(message), close(code, reason): what output() gives next
 *
 * Rules for who fills a table:
 * - No I/O, no clock, no waiting; memory is the caller's, size(config) bytes, aligned to 64.
 * - input() takes what it can (a piece of a frame too: it keeps what is not whole) and stops behind what made
 *   events. It may take 0 only while events wait, or while it wants output() to be taken first. data NULL and
 *   len 0: the peer sends no more. What is wrong with the bytes is told by an event XDS_SESSION_FAILED; a
 *   negative return says no more than that.
 * - event(): data is borrowed until the next input(), end of input or tick(), and may lie in the bytes that
 *   input() was given.
 * - CLOSED and FAILED are last: nothing comes after them but output(), which is sent before the connection
 *   ends.
 * - output() fills as much as there is room for and keeps the rest; 0: nothing now. Only called once the
 *   connection (or the layer under it) is open.
 * - send() takes a whole message or nothing. A layer takes XDS_SESSION_CHUNK bytes whenever it is open and
 *   its output() was taken to the last byte.
 * - A *layer* is a table of kind XDS_SESSION_TLS that stands under another: its OPEN starts the other, its
 *   MESSAGEs are the other's input, its CLOSED is the other's end of input, its FAILED ends both.
 */
#ifndef XDS_SESSION_H
#define XDS_SESSION_H

#include "base.h"

#define XDS_SESSION_CHUNK        16384 /* bytes that a layer takes at once                            */
#define XDS_SESSION_SEED         32    /* unpredictable bytes that each session begins with           */
#define XDS_SESSION_REASONS      32    /* that a protocol may count by                                */
#define XDS_SESSION_KINDS        3
#define XDS_SESSIONS_MAX         256 /* of an engine                                                 */
#define XDS_SESSION_PROFILES_MAX 64

/* Which protocol: less 1, its place among counters; plus 6, the kind of its records on a tape. */
enum xds_session_kind {
    XDS_SESSION_TLS = 1,
    XDS_SESSION_WS = 2,
    XDS_SESSION_FIX = 3,
};

/* What happened. The first four are common to all; those from 16 on are a protocol's own. */
enum xds_session_what {
    XDS_SESSION_OPEN = 1,    /* shaken hands, or logged on: messages may be sent            */
    XDS_SESSION_MESSAGE = 2, /* data: plain text, a whole message                           */
    XDS_SESSION_CLOSED = 3,  /* ended in order; last                                        */
    XDS_SESSION_FAILED = 4,  /* code: the protocol's reason, data: a sentence about it; last */

    XDS_SESSION_TLS_ALERT = 16,      /* a warning; code: RFC 8446 6                          */
    XDS_SESSION_TLS_TICKET = 17,     /* the next session may resume                          */
    XDS_SESSION_TLS_KEY_UPDATE = 18, /* the peer changed its keys                            */

    XDS_SESSION_WS_PING = 32,    /* data: its payload; answered already                      */
    XDS_SESSION_WS_PONG = 33,    /* data: its payload; until: ns of the round trip, 0: none of ours */
    XDS_SESSION_WS_CLOSING = 34, /* the peer's close frame: code, data: its reason           */

    XDS_SESSION_FIX_GAP = 48,       /* missing, and asked for: seq up to `until`             */
    XDS_SESSION_FIX_RESEND = 49,    /* the peer asked for seq up to `until`, and gets them   */
    XDS_SESSION_FIX_REJECT = 50,    /* session reject: code 373, detail 371, seq 45, data 58; flags: SENT */
    XDS_SESSION_FIX_HEARTBEAT = 51, /* until: ns of the round trip where it answers a test of ours  */
    XDS_SESSION_FIX_TEST = 52,      /* data: TestReqID; answered already                     */
    XDS_SESSION_FIX_LOGOUT = 53,    /* the peer's; data: its text                            */
    XDS_SESSION_FIX_RESET = 54,     /* SequenceReset; seq: what comes next                   */
    XDS_SESSION_FIX_FILLED = 55,    /* no gap is open any more; seq: what comes next */
    XDS_SESSION_FIX_TESTED = 56,    /* silence for too long: a TestRequest of ours went out */
};

enum xds_session_flag {
    XDS_SESSION_TEXT = 1,        /* ws: a text message, else binary                           */
    XDS_SESSION_RESUMED = 1,     /* tls: the session was known before                         */
    XDS_SESSION_VERIFIED = 2,    /* tls: the peer's chain and name were verified              */
    XDS_SESSION_UNANSWERED = 4,  /* tls: closed, and the peer's close_notify did not come     */
    XDS_SESSION_POSS_DUP = 1,    /* fix: 43=Y                                                 */
    XDS_SESSION_POSS_RESEND = 2, /* fix: 97=Y                                                */
    XDS_SESSION_PING = 4,        /* to send: ws: a ping; fix: a test request; no message      */
    XDS_SESSION_SENT = 0x100,    /* what it tells of was sent by us                           */
};

/* What is not named with an event is 0. */
struct xds_session_event {
    const uint8_t *data; /* borrowed until the next input()                                */
    uint32_t len;
    uint32_t what;       /* enum xds_session_what                                          */
    uint32_t flags;      /* enum xds_session_flag, or-ed                                   */
    uint32_t code;       /* open: tls: 0x0303, 0x0304; fix: HeartBtInt, s; ws: 101.
                          * closed: ws: close code. failed: the protocol's reason          */
    uint32_t detail;     /* open: tls: number of the cipher suite (IANA). failed: ws: the code that went
                          * to the peer, or HTTP's status; tls: the alert, RFC 8446 6        */
    uint32_t verify;     /* open, failed: tls: X509_V_... of the peer's chain              */
    uint64_t seq, until; /* fix: MsgSeqNum; a range; at the end: what would come, and go, next.
                          * until of open: tls: ns of the handshake                        */
    char name[16];       /* fix message: MsgType, NUL-padded (cut where longer); tls: open: the group */
};                       /* data of open: ws: subprotocol; tls: ALPN; fix: the Logon. Of an alert: its name */

/* What is to be sent. */
struct xds_session_message {
    const uint8_t *data; /* borrowed. fix: fields from 35=TYPE on, without header and trailer */
    uint32_t len;
    uint32_t flags; /* enum xds_session_flag: TEXT, PING                                  */
};

/* Counters of one session, never less than before: received = delivered + the sum of reasons. */
struct xds_session_stats {
    uint64_t received;  /* messages, frames or records: what the protocol counts           */
    uint64_t delivered; /* of them, taken                                                  */
    uint64_t sent;
    uint64_t reasons[XDS_SESSION_REASONS]; /* by the protocol's own enum; [0] is not used  */
};

struct xds_session_ops {
    uint32_t kind; /* enum xds_session_kind */
    uint32_t pad;
    size_t (*size)(const void *config); /* bytes to provide; 0: bad config */
    /* mem, config: kept. now: CLOCK_TAI ns, the connection (or the layer under it) is open. seed:
     * XDS_SESSION_SEED bytes. 0, or a code: then it does not begin, and end() is not called. */
    int (*init)(void *mem, void *config, int64_t now, const uint8_t *seed);
    int (*input)(void *s, const uint8_t *data, uint32_t len, int64_t now); /* bytes taken */
    int (*event)(void *s, struct xds_session_event *out);                  /* 1 filled, 0 none */
    int (*output)(void *s, uint8_t *room, uint32_t cap, int64_t now);      /* bytes, 0 none now */
    int64_t (*deadline)(const void *s);                                    /* XDS_NEVER: none */
    void (*tick)(void *s, int64_t now);                                    /* may make events and output */
    /* 0 taken; XDS_ECAPACITY: no room now; XDS_ESTATE: not open; XDS_EMALFORMED: no message that it sends. */
    int (*send)(void *s, const struct xds_session_message *m, int64_t now);
    /* In order: a close frame, a logout, close_notify. code 0: the usual. 0, or as send(). CLOSED or FAILED
     * comes within a bound of its own. */
    int (*close)(void *s, uint32_t code, const uint8_t *reason, uint32_t len, int64_t now);
    void (*stats)(const void *s, struct xds_session_stats *out);
    void (*end)(void *s); /* give back what init() took beside mem; NULL: nothing */
};

/* What a connection may be opened as. */
struct xds_session_profile {
    const struct xds_session_ops *ops;   /* kept                                      */
    void *config;                        /* kept: the protocol's own                  */
    const struct xds_session_ops *layer; /* under it; NULL: none                    */
    void *layer_config;
};

/* A FIX session outlives its connections: its core (kept; an initiator, after xds_fix_init()) is the profile's, and
 * one connection has it at a time. */
struct xds_session_fix {
    struct xds_fix *core;
    void *user;       /* of the connection that has it; NULL: none does */
    uint32_t longest; /* bytes of a message of ours: message_max - 512  */
    uint32_t pad;
};

/* Tables of protocols; the configuration that each takes is kept, with the strings in it. */
const struct xds_session_ops *xds_session_tls(void); /* struct xds_tls_context, which is init already */
const struct xds_session_ops *xds_session_ws(void);  /* struct xds_ws_config   */
const struct xds_session_ops *xds_session_fix(void); /* struct xds_session_fix */

#endif
