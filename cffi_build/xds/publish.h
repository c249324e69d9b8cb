/* publish.h: what a free-running engine tells other processes, by a tape, and what they ask of it, by a ring.
 *
 * Each record of the tape begins with struct xds_publish_head; its kind says what follows. A batch of a turn is
 * one record a run of updates, one of its events, one of its messages; behind updates and messages lie the stages
 * of the packets that brought them, with `first` and `first_message` counted within the record. What is longer than a record of
 * XDS_PUBLISH_BYTES (or an eighth of the tape) comes in several. The engine never waits: who is too slow has been
 * lapped, and the tape tells it how much it lost.
 *
 * Commands come one at a time by a ring (ring.h): struct xds_command, then data. Each is answered by a record of
 * kind XDS_PUBLISH_ANSWER; what cannot be done is refused there by name, and counted. The bytes are described in
 * tape.md.
 */
#ifndef XDS_PUBLISH_H
#define XDS_PUBLISH_H

#include "engine.h"
#include "ring.h"
#include "session.h"
#include "tape.h"

#define XDS_PUBLISH_BYTES    262144 /* of a record, at most        */
#define XDS_PUBLISH_COMMANDS 64     /* that a turn obeys, at most */
#define XDS_PUBLISH_BACKLOG  64     /* of a listener that says none */

enum xds_publish_kind {
    XDS_PUBLISH_UPDATES = 1,  /* struct xds_update, of one feed and channel                         */
    XDS_PUBLISH_EVENTS = 2,   /* struct xds_event                                                   */
    XDS_PUBLISH_MESSAGES = 3, /* bytes of messages, then a table of struct xds_publish_message      */
    XDS_PUBLISH_STATE = 4,    /* struct xds_engine_stats, struct xds_publish_stats                  */
    XDS_PUBLISH_ANSWER = 5,   /* struct xds_publish_answer                                          */
    XDS_PUBLISH_STREAM = 6,   /* struct xds_publish_stream, then its data                           */
    XDS_PUBLISH_TLS = 7,      /* struct xds_publish_session, then its data: of TLS                  */
    XDS_PUBLISH_WS = 8,       /* the same of WebSocket                                              */
    XDS_PUBLISH_FIX = 9,      /* the same of FIX                                                    */
};

struct xds_publish_head {
    int64_t now;                    /* CLOCK_TAI ns of the turn                                    */
    int64_t decoded_ns, applied_ns; /* as in struct xds_batch                                      */
    uint64_t turn;
    uint16_t feed, channel; /* updates: whose they are; indexes in the engine and in the feed      */
    uint32_t count;         /* things that follow                                                  */
    uint32_t open_gaps;     /* ranges missing now, over all channels                               */
    uint32_t table;         /* messages: offset of the table from the head                         */
    uint32_t stages;        /* updates, messages: offset of their rows of struct xds_stages        */
    uint32_t n_stages;      /* a row a packet; 0: the engine stamps none                           */
    uint64_t pad;
};

_Static_assert(sizeof(struct xds_publish_head) == 64, "what follows keeps its alignment");

struct xds_publish_message {
    int64_t rx_ns;
    uint64_t seq;
    uint32_t offset; /* of its bytes from the head */
    uint16_t len, type, channel;
    uint8_t feed, line;
    uint32_t pad;
};

/* What happened to a TCP connection that was given to the tape, or opened by a command. What its peer sent is read
 * at once and published: a reader of the tape that was lapped sees by `at` how much of it is missing. */
struct xds_publish_stream {
    int64_t ns;                       /* CLOCK_TAI: when the stack saw it                                 */
    uint64_t at;                      /* position in the stream of the data's first byte, from 0 on       */
    uint32_t connection;              /* its number in its port's stack                                   */
    uint32_t what;                    /* enum xds_stack_event_bit, or-ed; readable: data follows          */
    uint32_t len;                     /* bytes of data                                                    */
    uint16_t port;                    /* engine port                                                      */
    uint16_t local_port, remote_port; /* of open: whose it is                                         */
    uint16_t pad[3];
    uint8_t local[16], remote[16]; /* network order; IPv4 mapped                                       */
    int64_t stages[6]; /* of data, where the engine stamps: by enum xds_stage, CLOCK_TAI, 0 not reached */
};

/* What happened in a session over a connection that a command opened. What TCP does is told by stream records as
 * ever, but a session's bytes are not published beside what it makes of them. */
struct xds_publish_session {
    int64_t ns;                   /* CLOCK_TAI: when it was taken up                                  */
    uint64_t number;              /* of its session's events, from 1 on: a jump is what this reader lost */
    uint32_t connection;          /* its number in its port's stack                                   */
    uint32_t what;                /* enum xds_session_what                                            */
    uint32_t len;                 /* bytes of data that follow                                        */
    uint16_t port;                /* engine port                                                      */
    uint16_t profile;             /* from 1 on, as the connect command has it                         */
    uint32_t flags, code, detail; /* as struct xds_session_event has them                             */
    uint32_t verify;
    uint64_t seq, until;
    char name[16];
    uint32_t at, whole; /* the data's place in what is this long: more than a record comes in several   */
    int64_t stages[6];  /* where bytes brought it and the engine stamps: by enum xds_stage               */
};

enum xds_command_kind {
    XDS_COMMAND_SEND = 1,      /* one datagram; data follows                                  */
    XDS_COMMAND_STOP = 2,      /* shut down: the engine's thread ends after this turn         */
    XDS_COMMAND_SUBSCRIBE = 3, /* publish kinds (what: 1 << kind, or-ed) and, with feeds, feeds */
    XDS_COMMAND_CANCEL = 4,    /* do not publish them any more                                */
    XDS_COMMAND_CONNECT = 5,   /* TCP to dst:dport, or to the IPv6 address that is its data; the answer has
                                * the connection's number. feeds: the session over it, 0 none           */
    XDS_COMMAND_WRITE = 6,     /* data on a connection (what: its number), all of it or none; of a session a
                                * message, feeds: flags of struct xds_session_message                */
    XDS_COMMAND_CLOSE = 7,     /* let go of a connection: FIN after what was written; a listener ends. Of a
                                * session in order, dport: code, data: why; where that has begun, or it is not
                                * open, at once                                                        */
    XDS_COMMAND_RESET = 8,     /* end a connection, or a listener, at once                    */
    XDS_COMMAND_SEND6 = 9,     /* one datagram to the IPv6 address that its data begins with  */
    XDS_COMMAND_LISTEN = 10,   /* accept TCP at port sport of an own address: dst, or the IPv6 address that is
                                * its data, or any; what: backlog, 0: 64. The answer has the listener's number,
                                * whom it accepts tells of itself that it is open                       */
};

struct xds_command {
    uint32_t kind;         /* enum xds_command_kind                           */
    uint32_t len;          /* bytes of data                                   */
    uint32_t dst;          /* IPv4, network byte order                        */
    uint16_t dport, sport; /* host byte order                                 */
    uint16_t port;         /* engine port                                     */
    uint16_t feeds;        /* 1 << feed, or-ed; a profile; a message's flags  */
    uint32_t what;         /* 1 << enum xds_publish_kind, or-ed; a connection; a backlog */
    uint64_t number;       /* the commander's own; its answer carries it      */
};

enum xds_command_refusal {
    XDS_REFUSAL_NONE = 0,
    XDS_REFUSAL_SHORT = 1,   /* the record is shorter than a command, its data, or an address   */
    XDS_REFUSAL_KIND = 2,    /* no such command                                                 */
    XDS_REFUSAL_PORT = 3,    /* no such engine port, or nothing that it could be sent with      */
    XDS_REFUSAL_FULL = 4,    /* the port, or the connection, has no room for it now             */
    XDS_REFUSAL_LONG = 5,    /* a datagram of more than 65,507 bytes                            */
    XDS_REFUSAL_FEED = 6,    /* a feed that the engine does not have                            */
    XDS_REFUSAL_NOTHING = 7, /* no kind and no feed, or kinds that nobody can subscribe         */
    XDS_REFUSAL_BROKEN = 8,  /* the ring's own offsets: no more is taken from it                */
    XDS_REFUSAL_CONNECTION =
        9, /* no such connection (or listener), or none that was given to the tape; or it is closing */
    XDS_REFUSAL_STEERING =
        10,                 /* the port shares the kernel's address: it opens none by command, nor listens */
    XDS_REFUSAL_ROUTE = 11, /* no way there                                                        */
    XDS_REFUSAL_TAKEN = 12, /* these ends are in use                                               */
    XDS_REFUSAL_ADDRESS = 13,  /* no address of the port's own                                        */
    XDS_REFUSAL_PROFILE = 14,  /* no such profile of sessions                                       */
    XDS_REFUSAL_NOT_OPEN = 15, /* the session has not shaken hands yet, or is closing              */
    XDS_REFUSAL_MESSAGE = 16,  /* no message, or no end, that the session's protocol knows          */
    XDS_REFUSALS = 17,
};

struct xds_publish_answer {
    uint64_t number;
    uint32_t kind;       /* of the command                */
    uint32_t refusal;    /* enum xds_command_refusal      */
    uint32_t connection; /* that it was about, 0: none */
    uint32_t pad;
};

/* Of all sessions of one protocol, a tenth of a second late. begun = live + closed + failed + cut; received =
 * delivered + the sum of reasons. */
struct xds_publish_session_stats {
    uint64_t begun, live;
    uint64_t opened;                    /* of them, shook hands                                    */
    uint64_t closed, failed;            /* as their last event says                                */
    uint64_t cut;                       /* ended without one: reset by a command, the engine ended */
    uint64_t received, delivered, sent; /* as struct xds_session_stats                            */
    uint64_t reasons[XDS_SESSION_REASONS];
};

struct xds_publish_stats {
    uint64_t records[16];                                         /* by enum xds_publish_kind         */
    uint64_t commands;                                            /* = the sum of answers             */
    uint64_t answers[24];                                         /* by enum xds_command_refusal; 0: done */
    uint64_t what, feeds;                                         /* subscribed now                  */
    uint64_t stream_bytes;                                        /* of TCP data                    */
    struct xds_publish_session_stats sessions[XDS_SESSION_KINDS]; /* by enum xds_session_kind, less 1 */
};

struct xds_sessions;

struct xds_publisher {
    struct xds_tape_writer *tape; /* kept                                             */
    struct xds_ring *commands;    /* kept; NULL: nobody asks                          */
    uint64_t command_bytes;       /* of its data, and before it: who writes to it may change its header */
    uint64_t command_header;
    int64_t state_ns, state_due; /* state is published so often; 0: never            */
    uint32_t streams, connects; /* engine ports, 1 << port: whose connections are published, that open some */
    struct xds_sessions *sessions; /* NULL: connections speak no protocol here */
    struct xds_publish_stats stats;
};

/* what, feeds: what is subscribed at first. state_ns: how often the engine's own state goes out, 0 never.
 * Returns 0, XDS_ECONFIG. */
int xds_publisher_init(struct xds_publisher *p, struct xds_tape_writer *tape, struct xds_ring *commands,
                       uint32_t what, uint32_t feeds, int64_t state_ns);
/* Publish what happens to connections of an engine port that are given (xds_stack_give), and obey commands about
 * them. connects: commands may open some. Returns 0, XDS_ECONFIG (no stack). */
int xds_publisher_streams(struct xds_publisher *p, struct xds_engine *e, unsigned port, int connects);
/* Connections that commands open may speak the protocol of a profile (kept; numbered from 1 on), at most so many
 * at once. size(): bytes to provide, aligned to 64; 0: a bad profile, or bound. seed: XDS_SESSION_SEED
 * unpredictable bytes. shown: by kind, less 1, where
 * other processes see what sessions count (each may be NULL), or NULL. 0, XDS_ECONFIG. */
size_t xds_publisher_sessions_size(const struct xds_session_profile *profiles, unsigned n, unsigned most);
int xds_publisher_sessions(struct xds_publisher *p, void *mem, const struct xds_session_profile *profiles,
                           unsigned n, unsigned most, const uint8_t *seed,
                           struct xds_publish_session_stats *const *shown);
/* Let go of all sessions: their peers are told nothing. Before their memory, or a profile, is given back. */
void xds_publisher_end(struct xds_publisher *p);
/* Publish what a turn gave. */
void xds_publisher_turn(struct xds_publisher *p, struct xds_engine *e, const struct xds_batch *b);
/* Obey what was asked since the last turn. Returns 1 when the engine is to stop, 0. */
int xds_publisher_obey(struct xds_publisher *p, struct xds_engine *e);

/* What one read of a tape gave, sorted. */
struct xds_gathered {
    int64_t now;                          /* of the last record                                            */
    uint64_t first[XDS_ENGINE_FEEDS + 1]; /* feed f has the updates first[f] .. first[f + 1] of the array  */
    uint64_t first_row[XDS_ENGINE_FEEDS + 1]; /* and these rows of stages                                  */
    uint32_t others;    /* records that are no updates                                   */
    uint32_t open_gaps; /* as of the last record                                         */
};

/* The updates of n records as xds_tape_read() gave them (bytes: of that memory), feed after feed and each feed's in
 * their order, into out (cap updates); their stages into rows, `first` of each counted within its feed; the offsets
 * of all other records into others. Returns updates; XDS_ECAPACITY: out or rows holds fewer, or others fewer than n;
 * XDS_EMALFORMED: a record contradicts itself. */
int64_t xds_publish_gather(const void *records, uint64_t bytes, uint64_t n, struct xds_update *out,
                           uint64_t cap, struct xds_stages *rows, uint64_t rows_cap, uint32_t *others,
                           uint64_t others_cap, struct xds_gathered *g);

#endif
