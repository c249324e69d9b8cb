/* engine.h: the turn. One pass of the poll loop: take a burst from every port, run it through host,
 * channel, decoder and books, call the hook, send, and fill a batch.
 *
 *   stepped       Python calls xds_engine_turn() and reads the batch over the engine's own memory
 *   free-running  xds_runner_start(): a pinned native thread turns; batches go out by a ring
 *   hooked        either, plus a native function called between books and flush
 *
 * Python owns every byte: the engine, its links, channels, decoders and books live in memory that it
 * mapped, and outlive the engine. After start the engine allocates nothing, and makes no system call
 * but those of its ports. An engine is used by one thread at a time.
 *
 * Two kinds of time: over live ports `now` is read once a turn; over a capture (virtual time) a turn
 * takes a burst of packets, but each packet is its own step with now = its stamp, and timers that
 * end between two packets fire at their own time. So a capture gives the same result at any speed.
 */
#ifndef XDS_ENGINE_H
#define XDS_ENGINE_H

#include "base.h"
#include "books.h"
#include "channel.h"
#include "clock.h"
#include "decode.h"
#include "dgram.h"
#include "hist.h"
#include "host.h"
#include "link.h"
#include "sock.h"
#include "stack.h"
#include "stages.h"
#include "update.h"

#define XDS_ENGINE_PORTS    8
#define XDS_ENGINE_FEEDS    16
#define XDS_ENGINE_CHANNELS 64
#define XDS_ENGINE_BURST    64
#define XDS_TAPS            4 /* of a port */

enum xds_engine_flag {
    XDS_ENGINE_NO_STAGES = 1, /* no stamps but those of arrival, decoding and books */
};

struct xds_engine_config {
    uint32_t max_updates;  /* of one batch; also bounds what a turn takes from its ports     */
    uint32_t max_messages; /* of one batch; 0: no index of messages is kept                  */
    uint32_t max_events;   /* of one batch                                                   */
    uint32_t burst;        /* frames a port and turn, 1 .. XDS_ENGINE_BURST; 0: the largest  */
    uint32_t outbox_bytes; /* what hooks may send in one turn                                */
    uint32_t flags;        /* enum xds_engine_flag, or-ed                                    */
    int64_t slow_ns;       /* alert: a busy turn that took longer (spec: 10,000); 0: off       */
    int64_t alert_ns;      /* at most one alert is kept in that time, the others are counted   */
};

/* Updates of one feed and channel that lie together in a batch. */
struct xds_run {
    uint32_t first, count; /* in batch.updates */
    uint16_t feed, channel;
    uint32_t packets; /* blocks that made them */
};

/* What one turn gave. Every pointer is into the engine's memory: valid until the next turn. */
struct xds_batch {
    int64_t now;        /* CLOCK_TAI ns at the start of the turn (capture: last packet's stamp) */
    int64_t decoded_ns; /* when the last update was decoded (live ports only)                   */
    int64_t applied_ns; /* when the books had taken them                                        */
    uint64_t turn;
    struct xds_update *updates;
    struct xds_message *messages;
    struct xds_event *events;
    struct xds_run *runs;
    struct xds_dgram *dgrams;  /* datagrams of UDP endpoints without a handler                    */
    int64_t dgrams_ns;         /* when they were ready to be handed over (live ports only)        */
    struct xds_stages *stages; /* a row a packet that feeds decoded (live ports only)             */
    uint32_t n_updates, n_messages, n_events, n_runs, n_dgrams;
    uint32_t n_packets; /* frames and datagrams taken from the ports                            */
    uint32_t open_gaps; /* ranges missing now, over all channels; never hidden                  */
    uint32_t end;       /* 1: every port has ended (captures)                                   */
    int32_t hook_rc;    /* a negative return of the hook in this turn: ends a free-running loop */
    uint32_t n_stages;
};

/* An alert: a busy turn over live ports that took longer than slow_ns, rx to flush. */
struct xds_slow_turn {
    uint64_t turn;             /* as in its batch                                            */
    int64_t ns;                /* CLOCK_TAI when it began                                    */
    int64_t took_ns;           /* until everything was sent                                  */
    uint64_t packets, updates; /* that it took, that came of them                            */
    uint64_t since;            /* slow turns between the alert before and this one, not kept */
    int64_t since_ns;          /* the longest of those, 0 none                               */
};

/* What hooks send. Fill data + used .. (cap - used bytes), append to list, add to used and count. */
struct xds_outgoing {
    uint32_t offset, len;  /* in outbox.data                                             */
    uint32_t dst;          /* IPv4, network byte order                                   */
    uint16_t dport, sport; /* host byte order                                           */
    uint16_t port;         /* engine port                                                */
    uint16_t six;          /* 1: to dst6 (IPv4 mapped). 0 when a hook is given the entry   */
    uint8_t dst6[16];
    uint32_t pad;
};

struct xds_outbox {
    uint8_t *data;
    struct xds_outgoing *list;
    uint32_t used, cap;     /* bytes   */
    uint32_t count, max;    /* entries */
    uint16_t feed, channel; /* of the updates that the hook was called with */
    uint32_t n_stages;      /* rows of their packets (live ports only)      */
    const struct xds_stages *stages;
};

/* Called with the updates of one run, after the books took them. now: CLOCK_TAI ns of this turn.
 * Returns 0, or a negative number that ends the free-running loop. */
typedef int (*xds_hook)(void *ctx, const struct xds_update *u, size_t n, struct xds_outbox *out, int64_t now);
/* The same for datagrams of a UDP endpoint. */
typedef int (*xds_dgram_hook)(void *ctx, const struct xds_dgram *d, size_t n, struct xds_outbox *out,
                              int64_t now);

struct xds_engine;

/* What a stream hook may do within the turn: calls on the stack (stack.h) and on a connection (tcp.h), so that
 * a library that is loaded beside the extension needs no symbol of it. */
struct xds_stream_calls {
    int (*accept)(struct xds_stack *s, int listener);
    int (*read)(struct xds_stack *s, int id, uint8_t *data, uint32_t room);
    int (*write)(struct xds_stack *s, int id, const uint8_t *data, uint32_t len);
    int (*shutdown)(struct xds_stack *s, int id);
    void (*abort)(struct xds_stack *s, int id);
    void (*close)(struct xds_stack *s, int id, int64_t now);
    /* without a copy: bytes where they lie; touch() after consume and commit */
    struct xds_tcp *(*tcp)(struct xds_stack *s, int id);
    int (*peek)(const struct xds_tcp *t, const uint8_t **data);
    int (*consume)(struct xds_tcp *t, uint32_t len);
    int (*reserve)(struct xds_tcp *t, uint8_t **data);
    int (*commit)(struct xds_tcp *t, uint32_t len);
    void (*touch)(struct xds_stack *s, int id);
    /* what was prepared by xds_tcp_prepare(), with a few bytes changed */
    int (*send)(struct xds_stack *s, int id, struct xds_tcp_message *m, uint32_t at, const uint8_t *change,
                uint32_t change_len);
    /* who frames says of each message: it is whole; its handler is entered. Else entering the hook counts. */
    void (*parsed)(struct xds_engine *e);
    void (*entered)(struct xds_engine *e);
    void (*message)(
        struct xds_engine *e); /* both at once, where nothing lies between: one reading of the clock */
};

/* What happened to a connection or a listener that was given to the hook (xds_stack_give). */
struct xds_stream {
    const struct xds_stream_calls *calls;
    struct xds_stack *stack;
    int64_t now;   /* CLOCK_TAI ns of this turn                    */
    uint32_t id;   /* of the connection or listener                */
    uint32_t what; /* enum xds_stack_event_bit, or-ed               */
    uint32_t port; /* engine port                                  */
    uint32_t pad;
    struct xds_engine *engine;
    const struct xds_stages
        *stages; /* of the bytes that came: receive 0 where none did; NULL: switched off */
    int64_t ns;  /* CLOCK_TAI: when the stack saw the first of it   */
};

/* Called within the turn, when its segments were taken and before anything is sent: what it writes leaves with
 * the ACK of what it read. Returns 0, or a negative number that ends the free-running loop. */
typedef int (*xds_stream_hook)(void *ctx, const struct xds_stream *s);

struct xds_engine_stats {
    uint64_t turns, turns_busy; /* busy: packets were found                                     */
    uint64_t busy_ns;           /* time of busy turns, from rx to flush                         */
    uint64_t packets;           /* frames and datagrams taken                                   */
    uint64_t delivered;         /* = packets - unrouted - segments - host_consumed - host_refused */
    uint64_t unrouted;          /* datagrams that no line and no endpoint wants                 */
    uint64_t segments;          /* packets for a port's stack                                   */
    uint64_t host_consumed;     /* ARP, ICMP: answered or learned                               */
    uint64_t host_refused;      /* see the host's reasons                                       */
    uint64_t updates, messages, events, events_lost;
    uint64_t sent, send_refused;
    uint64_t muted;         /* not sent: a capture has nobody to send to                    */
    uint64_t requests;      /* retransmission requests sent                                 */
    uint64_t slow_turns;    /* longer than slow_ns                                          */
    uint64_t slow_alerts;   /* of them, kept for xds_engine_slow()                          */
    uint64_t slow_worst_ns; /* the longest of them                                        */
    uint64_t hook_failed;
    uint64_t ring_batches, ring_lost; /* free-running: published, lost because the ring was full  */
    uint64_t recorded, record_lost;   /* frames written to the recording, lost: it is incomplete  */
    uint64_t stages_lost; /* rows that a batch has no place for: in the histograms, not beside it */
};

/* One delivered block, for audits; len bytes follow, padded to 8. */
struct xds_journal_entry {
    uint64_t seq;
    uint32_t len;
    uint16_t feed, channel;
    uint16_t count; /* messages announced          */
    uint8_t flags;  /* enum xds_block_flag, or-ed  */
    uint8_t line;
    uint32_t pad;
};

/* What the engine refused, one record of the tap's ring: this, then the frame, or the payload of a datagram
 * that nobody wanted. */
enum xds_refused_layer {
    XDS_REFUSED_HOST = 1,     /* reason: enum xds_host_reason; the whole frame follows         */
    XDS_REFUSED_UNROUTED = 2, /* no line and no endpoint wants it; its payload follows         */
};

struct xds_refused {
    int64_t ns;            /* CLOCK_TAI of its arrival                    */
    uint32_t len;          /* bytes of it; what follows may be fewer      */
    uint32_t src, dst;     /* of a datagram, network byte order           */
    uint16_t sport, dport; /* host byte order                             */
    uint16_t port;         /* engine port                                 */
    uint8_t layer, reason;
    uint8_t src6[16], dst6[16]; /* of a datagram over IPv6, whose src and dst are 0 */
};

#define XDS_REFUSED_BYTES 2048

enum xds_mirror {
    XDS_MIRROR_ENGINE = 0,  /* struct xds_engine_stats  */
    XDS_MIRROR_CHANNEL = 1, /* struct xds_channel_stats */
    XDS_MIRROR_LINE = 2,    /* struct xds_line_stats    */
    XDS_MIRROR_BOOKS = 3,   /* struct xds_books_stats   */
    XDS_MIRROR_HOST = 4,    /* struct xds_host_stats, of a port that is a link */
    XDS_MIRROR_CLOCK = 5,   /* struct xds_clock_stats */
    XDS_MIRROR_STACK = 6,   /* struct xds_stack_stats, of a port that has a stack */
    XDS_MIRROR_TCP = 7,     /* struct xds_stack_totals, a pass later */
};

struct xds_recorder;
struct xds_ring;

size_t xds_engine_size(const struct xds_engine_config *cfg);
int xds_engine_init(void *mem, const struct xds_engine_config *cfg);
/* The clock that live turns read (kept); without one an engine can only follow virtual time. */
void xds_engine_set_clock(struct xds_engine *e, struct xds_clock *clock);

/* Ports. A link needs a host core (kept), a kernel socket none. Returns the port's index. */
int xds_engine_add_link(struct xds_engine *e, struct xds_link *l, struct xds_host *h);
int xds_engine_add_sock(struct xds_engine *e, struct xds_sock *s);
/* TCP over a link port: s (kept) was made over that port's host. Its segments are taken within the turn, and
 * what it has to send leaves at the turn's end. 0, XDS_ECONFIG (no live link port, another stack). */
int xds_engine_set_stack(struct xds_engine *e, unsigned port, struct xds_stack *s);
/* Call hook with the events of what was given to it. hook NULL: they stay. 0, XDS_ECONFIG (no stack). */
int xds_engine_set_streams(struct xds_engine *e, unsigned port, xds_stream_hook hook, void *ctx);
/* Copy each frame of a connection, whichever way it goes, into r (kept until untap(), running): its interfaces 0 in,
 * 1 out. 0; XDS_ESTATE no such connection; XDS_ECAPACITY as many are tapped; XDS_ECONFIG. Between turns. */
int xds_engine_tap(struct xds_engine *e, unsigned port, int id, struct xds_recorder *r);
void xds_engine_untap(struct xds_engine *e, unsigned port, const struct xds_recorder *r);
/* Between turns: send what the user's calls on the stack have made, now. Returns 0, XDS_ECONFIG. */
int xds_engine_pump(struct xds_engine *e, unsigned port);
/* Between turns: a host of ours has something to do that it had not before (a claim): the next turn looks at its timers. */
void xds_engine_touch(struct xds_engine *e);
/* Put another link in the place of a port's: its interface was made anew. mac: its own address now. The
 * old link is the caller's to close, before or after. Between turns only. Returns 0, XDS_ECONFIG, and
 * XDS_ESTATE where the last batch was cut and still points into frames: turn again first. */
int xds_engine_swap_link(struct xds_engine *e, unsigned port, struct xds_link *l, const uint8_t *mac);
int xds_engine_holds_frames(const struct xds_engine *e); /* 1: swap would say XDS_ESTATE */
/* A feed: a decoder with its memory, and books (NULL: none). Returns its index. */
int xds_engine_add_feed(struct xds_engine *e, const struct xds_decoder *d, void *decoder_mem,
                        struct xds_books *b);
/* One byte an instrument (kept, zeroed): which channel speaks of it. Needed before a feed's second
 * channel, so that a gap or a restart touches the books of its own channel only. */
int xds_engine_set_owners(struct xds_engine *e, unsigned feed, uint8_t *owner, uint32_t count);
/* A channel of a feed. Retransmission requests go to server:port (network, host order; 0: none) by
 * engine port `via` from local port sport. Returns its index in the engine. */
int xds_engine_add_channel(struct xds_engine *e, unsigned feed, struct xds_channel *c, uint32_t server,
                           uint16_t server_port, unsigned via, uint16_t sport);
/* The same where the server is one of IPv6, or IPv4's mapped: instead, after add_channel() without a server. 0,
 * XDS_ECONFIG. */
int xds_engine_set_server6(struct xds_engine *e, unsigned channel, const uint8_t server[16],
                           uint16_t server_port, unsigned via, uint16_t sport);
/* Datagrams to dst:dport (from src, 0 any) are that line of the channel; line == lines: the answers. Calls that
 * end in 6 take addresses of 16 bytes, IPv4's mapped; all zero is any of IPv6. */
int xds_engine_add_line(struct xds_engine *e, unsigned channel, unsigned line, uint32_t dst, uint16_t dport,
                        uint32_t src);
/* Datagrams to dst:dport (dst 0: any) go to the handler, or with NULL into batch.dgrams. */
int xds_engine_add_udp(struct xds_engine *e, uint32_t dst, uint16_t dport, xds_dgram_hook handler, void *ctx);
int xds_engine_add_line6(struct xds_engine *e, unsigned channel, unsigned line, const uint8_t dst[16],
                         uint16_t dport, const uint8_t src[16]);
int xds_engine_add_udp6(struct xds_engine *e, const uint8_t dst[16], uint16_t dport, xds_dgram_hook handler,
                        void *ctx);
void xds_engine_set_hook(struct xds_engine *e, xds_hook hook, void *ctx);
/* Histograms of packet ages (kept, each may be NULL): XDP hook or kernel stamp -> decoded, -> books. */
void xds_engine_set_hist(struct xds_engine *e, unsigned feed, struct xds_hist *decoded,
                         struct xds_hist *applied);
/* Histograms of a feed's stages. 0, XDS_ECONFIG. */
int xds_engine_set_stages(struct xds_engine *e, unsigned feed, const struct xds_stage_hists *hists);
/* Histograms of an endpoint's stages: wake, callback (its handler was entered; without one, the batch was ready),
 * total. endpoint: as xds_engine_add_udp() returned it. 0, XDS_ECONFIG. */
int xds_engine_set_udp_stages(struct xds_engine *e, unsigned endpoint, const struct xds_stage_hists *hists);
/* Histograms of connections (kept): a place each while there are any, the last for all others. A place goes to
 * another connection once its own is gone. n: 1 .. XDS_STAGE_CONNS_MAX + 1. 0, XDS_ECONFIG. */
int xds_engine_set_conn_stages(struct xds_engine *e, struct xds_stage_conn *conns, unsigned n);
/* xds_stack_event() of a port's stack, for who handles it now: its stages too. 1, 0, XDS_ECONFIG (no stack). */
int xds_engine_stream_event(struct xds_engine *e, unsigned port, struct xds_stack_event *out,
                            struct xds_stages *stages);
/* The same of connections that are none of a stack, kernel sockets: `mine` names one among them. begin() gives it a
 * place, entered() says that its handler is entered now with bytes that came at `receive` and were found at `wake`
 * (CLOCK_TAI ns), end() lets the place go. entered() returns the moment, 0: nothing is stamped here. */
void xds_engine_conn_begin(struct xds_engine *e, uint32_t mine, const struct xds_stack_ends *ends);
int64_t xds_engine_conn_entered(struct xds_engine *e, uint32_t mine, int64_t receive, int64_t wake);
/* Of a connection, by either way (port XDS_ENGINE_PORTS: none of a stack): a message is whole among the bytes that
 * were told of last, and handed over. From then on its events do not count by themselves; of connections that share
 * the last place, as long as no other is told of in between. 1: its stages are in `out`; 0: nothing is stamped. */
int xds_engine_conn_message(struct xds_engine *e, unsigned port, uint32_t id, struct xds_stages *out);
/* How it does, for who watches: nothing where it has no place of its own. */
void xds_engine_conn_told(struct xds_engine *e, uint32_t mine, const struct xds_tcp_info *info,
                          uint64_t retransmits, uint64_t delivery_rate);
void xds_engine_conn_end(struct xds_engine *e, uint32_t mine);
void xds_engine_parsed(struct xds_engine *e); /* as in struct xds_stream_calls: within the hook only */
void xds_engine_entered(struct xds_engine *e);
void xds_engine_message(struct xds_engine *e);
void xds_engine_set_recorder(struct xds_engine *e, struct xds_recorder *r);
/* Copy what is refused into a ring (kept) while it has a reader; a full ring loses the record, counted in
 * `refused` there. Costs a load a refused frame otherwise. */
void xds_engine_set_tap(struct xds_engine *e, struct xds_ring *ring);
/* Copy every delivered block into `room` (kept; NULL: stop). xds_engine_journal() says how many bytes
 * that took: more than there were means that the journal is cut. For audits: it costs a copy. */
void xds_engine_set_journal(struct xds_engine *e, uint8_t *room, uint64_t bytes);
uint64_t xds_engine_journal(const struct xds_engine *e);
/* Copy a struct of counters into words that other processes read, once a millisecond at most: u64
 * fields in their order. what: enum xds_mirror; index: feed, channel or port; sub: line. Returns 0,
 * XDS_ECAPACITY, XDS_ECONFIG. */
int xds_engine_mirror(struct xds_engine *e, uint64_t *words, int what, unsigned index, unsigned sub);
/* Bring every mirror up to date now (end of a run). */
void xds_engine_reflect(struct xds_engine *e);
/* Follow a recording: interface `turn_queue` of the capture carries turn blocks (see recorder.h). */
void xds_engine_follow_turns(struct xds_engine *e, int turn_queue);

/* One turn. now_ns: 0 reads the clock. Returns packets taken, or -errno of a port. */
int xds_engine_turn(struct xds_engine *e, int64_t now_ns, struct xds_batch *out);
/* Turn until a batch holds at least `packets` packets or updates, an event, the end, or spins empty
 * turns have passed. Saves Python a call per empty poll. Returns packets taken, 0 none. */
int xds_engine_poll(struct xds_engine *e, uint32_t spins, struct xds_batch *out);
/* Queue a datagram from Python (port's host or socket). Returns 0, XDS_ECAPACITY, XDS_ECONFIG. */
int xds_engine_send(struct xds_engine *e, unsigned port, uint32_t dst, uint16_t dport, uint16_t sport,
                    const uint8_t *data, uint32_t len);
int xds_engine_send6(struct xds_engine *e, unsigned port, const uint8_t dst[16], uint16_t dport,
                     uint16_t sport, const uint8_t *data, uint32_t len);
/* The input has ended: give up what is missing and deliver the rest. Returns 1 when the batch was too
 * small for all of it: call again. */
int xds_engine_finish(struct xds_engine *e, struct xds_batch *out);
void xds_engine_stats(const struct xds_engine *e, struct xds_engine_stats *out);

/* The alert after the first *cursor ones, into out; *cursor moves on behind it. At most 16 are kept: what
 * was overwritten is passed over. May be called by another thread than the one that turns. Returns 1, 0. */
int xds_engine_slow(const struct xds_engine *e, uint64_t *cursor, struct xds_slow_turn *out);

/* A handler that sends every datagram back to where it came from; ctx unused. */
int xds_udp_echo(void *ctx, const struct xds_dgram *d, size_t n, struct xds_outbox *out, int64_t now);
xds_dgram_hook xds_udp_echo_handler(void);

#endif
