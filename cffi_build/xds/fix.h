/* fix.h: the session layer of FIX 4.2, 4.4 and FIXT 1.1 as a pure state machine, and its tools: framer, parser,
 * builder, times. No I/O, no clock, no randomness, no allocation; one block of the caller's memory holds
 * numbers, buffers and what was sent.
 *
 *   open()                -> a connection is there: the Logon of an initiator lies in output()
 *   input(bytes), event() -> logon, application messages in order, each once, gaps, resends, rejects, logout
 *   send(message), close()
 *   output(room)          -> bytes to send;  deadline(), tick() -> heartbeats, test requests, timeouts
 *
 * received = delivered + the sum of reasons, in messages, at all times; what lies between messages is counted
 * in bytes. Nobody's bytes end a session but those that the specification has end it: garbled messages are
 * passed over, and what they carried comes by a resend.
 *
 * A message ahead of the expected number is dropped and everything from the gap on is asked for, once; no
 * progress for resend_ns: again, at most resend_tries times, then the session ends. Application messages that
 * were sent are held in store_bytes and resent as possible duplicates; older ones, and the session's own, are
 * filled over by SequenceReset. Nothing is kept on disk: next_in and next_out are configuration and
 * information, for a caller that keeps them. No dictionary: fields are checked for their form, and the
 * session's own for their content. No schedule.
 *
 * Times: int64 ns of CLOCK_TAI; leap_ns takes UTC from them. Messages end each field with SOH (1).
 */
#ifndef XDS_FIX_H
#define XDS_FIX_H

#include "base.h"

enum xds_fix_version { XDS_FIX_42 = 0, XDS_FIX_44 = 1, XDS_FIXT_11 = 2, XDS_FIX_VERSIONS = 3 };

enum xds_fix_state {
    XDS_FIX_IDLE = 0,       /* no connection: before open()                            */
    XDS_FIX_LOGON_SENT = 1, /* an initiator waits for the answer                       */
    XDS_FIX_LOGON_WAIT = 2, /* an acceptor waits for the first message                 */
    XDS_FIX_UP = 3,
    XDS_FIX_LOGOUT_SENT = 4, /* ours went first: the peer's is awaited                 */
    XDS_FIX_ENDED = 5,       /* send what output() has, then close the connection      */
    XDS_FIX_STATES = 6,
};

/* What became of a message that came. */
enum xds_fix_reason {
    XDS_FIX_DELIVERED = 0,     /* not a reason: in order and well formed, the session's own as well */
    XDS_FIX_BEGIN = 1,         /* garbled: not 8=, 9=, 35= in this order, or no number in 9=        */
    XDS_FIX_LENGTH = 2,        /* garbled: BodyLength does not lead to a CheckSum field             */
    XDS_FIX_CHECKSUM = 3,      /* garbled                                                           */
    XDS_FIX_TOO_LONG = 4,      /* more than message_max                                             */
    XDS_FIX_FIELD = 5,         /* a field without number, '=' or value: rejected (373=0, 4)         */
    XDS_FIX_REQUIRED = 6,      /* a field that must be there is not: rejected (373=1)               */
    XDS_FIX_VALUE = 7,         /* one that has an impossible value: rejected (373=5, 6)             */
    XDS_FIX_NO_SEQ = 8,        /* no MsgSeqNum: ends the session                                    */
    XDS_FIX_SEQ_LOW = 9,       /* lower than expected, and not PossDup: ends the session            */
    XDS_FIX_AHEAD = 10,        /* higher than expected: comes again by the resend                   */
    XDS_FIX_DUPLICATE = 11,    /* PossDup, of what had come                                         */
    XDS_FIX_VERSION = 12,      /* another BeginString: ends the session                             */
    XDS_FIX_COMP_ID = 13,      /* not from, or not to, whom we know: rejected (373=9), ends         */
    XDS_FIX_SENDING_TIME = 14, /* too far from our clock: rejected (373=10), ends                   */
    XDS_FIX_ORIG_TIME = 15,    /* OrigSendingTime behind SendingTime: rejected (373=10), ends       */
    XDS_FIX_NO_LOGON = 16,     /* the first message was no Logon: ends                              */
    XDS_FIX_LOGON_BAD = 17,    /* EncryptMethod, HeartBtInt, or a reset not from 1: ends            */
    XDS_FIX_LOGON_AGAIN = 18,  /* a Logon in a session, without ResetSeqNumFlag: rejected (373=99)  */
    XDS_FIX_REASONS = 19,
};

/* Why a session ended: reason of XDS_FIX_EVENT_FAILED. One of enum xds_fix_reason, or of these. */
#define XDS_FIX_LOGON_TIMEOUT 32 /* no answer within logon_ns                            */
#define XDS_FIX_REFUSED       33 /* a Logout where a Logon was due: event LOGOUT has its text */
#define XDS_FIX_SILENT        34 /* nothing came, not even in answer to a TestRequest    */
#define XDS_FIX_UNANSWERED    35 /* resend requests that brought nothing                 */
#define XDS_FIX_LOGOUT_LATE   36 /* no Logout in answer to ours within logout_ns         */
#define XDS_FIX_HUNG_UP       37 /* the peer ended the connection, and not the session   */

/* Zero but the CompIDs and leap_ns is a good start: 0 takes the value in brackets. Texts end with NUL. */
struct xds_fix_config {
    char sender_comp_id[64], target_comp_id[64];
    char sender_sub_id[64], target_sub_id[64]; /* 50, 57; empty: not sent                   */
    char username[64], password[64];           /* 553, 554; empty: not sent                 */
    char default_appl_ver_id[8];               /* 1137, FIXT 1.1 [9: FIX 5.0 SP2]           */
    uint32_t version;                          /* enum xds_fix_version                      */
    uint8_t acceptor;                          /* 1: waits for the peer's Logon             */
    uint8_t reset;       /* 1: both sides begin at 1 with each Logon (141=Y)                */
    uint8_t time_digits; /* of a second in times that are sent: 3, 6 or 9 [3]               */
    uint8_t no_time_check;
    uint64_t next_out, next_in; /* MsgSeqNum to send and to expect [1]                      */
    uint32_t heartbeat_s;       /* HeartBtInt; an acceptor takes the peer's [30], up to 86400 */
    uint32_t message_max;       /* longest message [16384], 1 KiB to 1 MiB; of ours 512 less        */
    uint32_t output_bytes;      /* what waits to be sent [4 * message_max], at least 2 * message_max + 2048 */
    uint32_t store_bytes;       /* bodies held for resending [65536], up to 1 GiB           */
    uint32_t store_messages;    /* and how many [1024], up to 2^20                          */
    uint32_t
        resend_max; /* messages in one ResendRequest; 0: all from the gap on (16=0). At least 8: requests have
                          * numbers too, and where both sides ask, a gap must shrink faster than it grows */
    uint32_t resend_tries; /* [3]                                                      */
    uint32_t pad;
    int64_t leap_ns;         /* TAI - UTC, as it is: 37 s since 2017, 0 where the clock knows of none */
    int64_t sending_time_ns; /* how far SendingTime may be from our clock [120 s]           */
    int64_t logon_ns;        /* [10 s]                                                      */
    int64_t logout_ns;       /* [10 s]                                                      */
    int64_t resend_ns;       /* [10 s]                                                      */
};

/* One field of a message: message[at, at + len) is its value. */
struct xds_fix_field {
    uint32_t tag, at, len;
};

enum xds_fix_event_kind {
    XDS_FIX_EVENT_LOGON = 1,     /* the session is up; seq: of the Logon, number: its HeartBtInt in s   */
    XDS_FIX_EVENT_MESSAGE = 2,   /* an application message                                              */
    XDS_FIX_EVENT_GAP = 3,       /* messages seq .. number are missing; they have been asked for        */
    XDS_FIX_EVENT_FILLED = 4,    /* no gap is open any more; seq: expected next                         */
    XDS_FIX_EVENT_RESEND = 5,    /* the peer asked for seq .. number: they go out                       */
    XDS_FIX_EVENT_RESET = 6,     /* SequenceReset, or Logon with 141=Y: number is expected next         */
    XDS_FIX_EVENT_REJECT = 7,    /* the peer rejected our message `number`                              */
    XDS_FIX_EVENT_REJECTED = 8,  /* we rejected its message seq: reason (enum), number: 373, tag: 371   */
    XDS_FIX_EVENT_HEARTBEAT = 9, /* number: ns of the round trip, where it answers a TestRequest of ours */
    XDS_FIX_EVENT_TEST_REQUEST = 10, /* from the peer: answered                                            */
    XDS_FIX_EVENT_TESTED = 11,       /* nothing came for too long: a TestRequest of ours went out           */
    XDS_FIX_EVENT_LOGOUT = 12,       /* from the peer: its Text, if any, is in the message                  */
    XDS_FIX_EVENT_CLOSED = 13,       /* both Logouts went: the session is over, politely                    */
    XDS_FIX_EVENT_FAILED = 14,       /* the session is over; reason says why                                */
};

#define XDS_FIX_POSS_DUP    1 /* flags: 43=Y */
#define XDS_FIX_POSS_RESEND 2 /* 97=Y        */

struct xds_fix_event {
    int64_t ns;          /* the time given with what caused it                                         */
    uint64_t seq;        /* MsgSeqNum, or as the kind says                                             */
    uint64_t number;     /* as the kind says                                                           */
    const uint8_t *data; /* the whole message, 8= to 10=; NULL where none came; borrowed until the next
                          * input(), and where input() took it in place, while its caller keeps the bytes */
    const struct xds_fix_field *fields; /* of it, 8= first; borrowed until the next event() or input()  */
    uint32_t len, count;                /* bytes, fields                                               */
    uint32_t kind;                      /* enum xds_fix_event_kind                                     */
    uint32_t reason;                    /* REJECTED, FAILED                                            */
    uint32_t tag;                       /* REJECTED: RefTagID, 0: none                                 */
    uint32_t flags;                     /* XDS_FIX_POSS_DUP, XDS_FIX_POSS_RESEND                       */
    char msg_type[8];                   /* NUL padded, its first seven bytes                           */
    const char *text;                   /* REJECTED, FAILED: Text of what we said about it; NULL: nothing */
};

struct xds_fix_stats {
    uint64_t received;                      /* messages, garbled ones as well                             */
    uint64_t reasons[XDS_FIX_REASONS];      /* by enum xds_fix_reason; [0] = delivered                    */
    uint64_t received_bytes, skipped_bytes; /* skipped: between messages, and of garbled ones         */
    uint64_t sent, sent_bytes;              /* messages of all kinds, resent ones as well                 */
    uint64_t sent_messages;                 /* application messages, each once                            */
    uint64_t resent, filled;                /* possible duplicates; SequenceResets in answer to a request */
    uint64_t gaps, asked;                   /* found; ResendRequests sent                                 */
    uint64_t asked_of_us;                   /* ResendRequests that came                                   */
    uint64_t rejects, rejected;             /* from the peer; by us                                       */
    uint64_t forgotten;                     /* messages that left the store for newer ones                */
};

struct xds_fix_info {
    uint64_t next_out, next_in; /* MsgSeqNum to send and to expect: what to keep for the next connection */
    uint64_t gap_top;           /* the highest number seen while a gap is open, else 0                   */
    int64_t rtt_ns;             /* of the latest TestRequest of ours, 0: none was answered               */
    uint32_t state;             /* enum xds_fix_state                                                    */
    uint32_t heartbeat_s;       /* as agreed                                                             */
    uint32_t unsent;            /* bytes that output() has                                               */
    uint32_t held;              /* messages in the store                                                 */
};

struct xds_fix;
size_t xds_fix_size(const struct xds_fix_config *cfg);         /* bytes to provide, 0 = bad cfg */
int xds_fix_init(void *mem, const struct xds_fix_config *cfg); /* mem: kept; 0 or XDS_ECONFIG   */

/* A new connection, the first or a later one: numbers and store go on from the last, all else begins anew. */
void xds_fix_open(struct xds_fix *f, int64_t now);

/* Bytes taken, up to the end of the first message that made an event; the rest is given again. 0 as well: there
 * are events to be read, or output() has to send first; XDS_ESTATE: the session has not begun, or is over and
 * its events are read. event() goes on by itself with what input() had to keep. */
int xds_fix_input(struct xds_fix *f, const uint8_t *data, uint32_t len, int64_t now);
void xds_fix_hang_up(struct xds_fix *f,
                     int64_t now); /* the peer's bytes have ended: FAILED, where it had not */
int xds_fix_event(struct xds_fix *f, struct xds_fix_event *out); /* 1 filled, 0 none */
/* Bytes put into room; 0: none wait. What does not fit goes with the next call. */
int xds_fix_output(struct xds_fix *f, uint8_t *room, uint32_t cap, int64_t now);
int64_t xds_fix_deadline(const struct xds_fix *f);
void xds_fix_tick(struct xds_fix *f, int64_t now);

/* An application message: "35=D" and the fields of its body, each with its SOH; header and trailer are made here.
 * 0; XDS_ESTATE: not logged on; XDS_ECAPACITY: longer than message_max - 512, or output() has to send first;
 * XDS_EMALFORMED: no MsgType in front, one of the session's own, a field without form, or one of the header. */
int xds_fix_send(struct xds_fix *f, const uint8_t *message, uint32_t len, int64_t now);
int xds_fix_test_request(struct xds_fix *f,
                         int64_t now); /* its round trip comes with the Heartbeat; as send() */
int xds_fix_close(struct xds_fix *f, const char *text,
                  int64_t now); /* Logout, text or NULL; 0, XDS_ESTATE     */
void xds_fix_stats(const struct xds_fix *f, struct xds_fix_stats *out);
void xds_fix_info(const struct xds_fix *f, struct xds_fix_info *out);

/* Framer. The length of the message that begins at data, CheckSum and all; 0: its end has not come, *skip is
 * its length where that is known. XDS_EMALFORMED: *skip bytes are surely no message; *reason says how it is
 * garbled, 0: it is no message at all, but what lies between two. */
int xds_fix_frame(const uint8_t *data, uint32_t len, uint32_t message_max, uint32_t *reason, uint32_t *skip);

/* Parser. The fields of one message in order, 8= and 10= as well; XDS_ECAPACITY: more than cap;
 * XDS_EMALFORMED: fields[cap - 1] is the one without number, '=', value or end. Data fields may hold SOH. */
int xds_fix_parse(const uint8_t *message, uint32_t len, struct xds_fix_field *fields, uint32_t cap);
/* Index of the first field with this tag from index `from` on, -1: none. */
int xds_fix_find(const struct xds_fix_field *fields, uint32_t count, uint32_t from, uint32_t tag);
/* Values of a field: 0, XDS_EMALFORMED. Decimal: mantissa * 10^-scale, as written. Time: ns of CLOCK_TAI. */
int xds_fix_integer(const uint8_t *value, uint32_t len, int64_t *out);
int xds_fix_decimal(const uint8_t *value, uint32_t len, int64_t *mantissa, uint32_t *scale);
int xds_fix_time(const uint8_t *value, uint32_t len, int64_t leap_ns, int64_t *out);
/* UTCTimestamp of CLOCK_TAI ns, 17 bytes and digits + 1 (none for 0) into room; its length. */
int xds_fix_put_timestamp(uint8_t *room, int64_t tai_ns, int64_t leap_ns, uint32_t digits);

/* Builder: begin(), fields, finish(). What does not fit is remembered and told by finish(). */
struct xds_fix_builder {
    uint8_t *room; /* the caller's, borrowed until finish()        */
    uint32_t cap, at;
    uint32_t body; /* where the body begins                        */
    int32_t fault; /* 0 or XDS_ECAPACITY                           */
    char begin_string[12];
};

void xds_fix_begin(struct xds_fix_builder *b, uint8_t *room, uint32_t cap, const char *begin_string,
                   const char *msg_type); /* begin_string: borrowed, up to 11 bytes */
void xds_fix_put(struct xds_fix_builder *b, uint32_t tag, const uint8_t *value, uint32_t len);
void xds_fix_put_integer(struct xds_fix_builder *b, uint32_t tag, int64_t value);
void xds_fix_put_decimal(struct xds_fix_builder *b, uint32_t tag, int64_t mantissa, uint32_t scale);
void xds_fix_put_time(struct xds_fix_builder *b, uint32_t tag, int64_t tai_ns, int64_t leap_ns,
                      uint32_t digits);
/* BodyLength and CheckSum. The length of the message, which begins at room + *start; XDS_ECAPACITY. */
int xds_fix_finish(struct xds_fix_builder *b, uint32_t *start);

#endif
