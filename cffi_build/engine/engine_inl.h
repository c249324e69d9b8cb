/* engine_inl.h: the engine's own struct, shared by engine.c (set-up), turn.c (the turn) and runner.c
 * (the thread). Nobody outside engine/ reads it. */
#ifndef XDS_ENGINE_INL_H
#define XDS_ENGINE_INL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "ground/address_inl.h"
#include "ground/clock_inl.h"
#include "xds/engine.h"
#include "xds/ring.h"

#define XDSI_ROUTES     1024 /* slots, a power of two: lines and endpoints are few, so it stays sparse */
#define XDSI_ROUTES_MAX 512
#define XDSI_UDP_MAX    64
#define XDSI_DGRAMS     XDS_ENGINE_BURST
#define XDSI_OUT_MAX    256
#define XDSI_BLOCK_MAX  9216 /* the largest payload that a port may hand over: a jumbo frame            */
#define XDSI_NO_CHANNEL 0xffff
#define XDSI_FULL_TURNS 4096 /* turns that timers may wait for a port's backlog to be read */
#define XDSI_MIRRORS    512
#define XDSI_MOMENTS    64      /* messages of a stream between two folds */
#define XDSI_SLOW_KEPT  16      /* alerts that wait to be read, a power of two; at most one an alert_ns */
#define XDSI_PASS       8       /* connections that are looked at each time      */
#define XDSI_MIRROR_NS  1000000 /* readers look a few times a second; copying costs microseconds */

enum xdsi_route_kind { XDSI_ROUTE_NONE = 0, XDSI_ROUTE_LINE = 1, XDSI_ROUTE_UDP = 2 };

struct xdsi_route {
    uint32_t dst, src;
    uint16_t dport;
    uint8_t kind, line;
    uint16_t index; /* of the channel or endpoint */
    uint16_t pad;
};

struct xdsi_route6 {
    struct xdsi_addr dst, src;
    struct xdsi_route to; /* dport, kind, line, index */
};

struct xdsi_tap {
    struct xds_stack_ends ends;
    struct xds_recorder *recorder;
};

struct xdsi_port {
    struct xds_link *link; /* one of link and sock */
    struct xds_host *host;
    struct xds_stack *stack; /* NULL: no TCP here */
    xds_stream_hook streams; /* NULL: nobody takes what is given in the stack */
    void *streams_ctx;
    unsigned n_taps;
    bool framer; /* its hook tells of each message */
    struct xds_sock *sock;
    bool ended, dirty; /* dirty: something was committed since the last flush */
    unsigned n, next;  /* frames or datagrams taken, and those done           */
    union {
        struct xds_frame frames[XDS_ENGINE_BURST];
        struct xds_dgram dgrams[XDS_ENGINE_BURST];
    };
    struct xdsi_tap taps[XDS_TAPS];
};

struct xdsi_feed {
    const struct xds_decoder *decoder;
    void *decoder_mem;
    struct xds_books *books;
    struct xds_hist *decoded, *applied;
    struct xds_stage_hists stages;
    uint8_t *owner; /* by instrument: 1 + channel that last spoke of it; NULL: one channel only */
    uint32_t owners;
    unsigned channels;
    uint64_t table_version; /* of the instrument table whose depths the books have */
};

struct xdsi_channel {
    struct xds_channel *core;
    uint16_t feed, number; /* number: within its feed */
    uint32_t server;
    bool asks6;
    uint8_t server6[16];
    uint16_t server_port, via, sport;
    uint32_t open_gaps;
};

struct xdsi_udp {
    xds_dgram_hook handler;
    void *ctx;
    struct xds_stage_hists stages;
};

struct xdsi_mirror {
    uint64_t *words;
    uint16_t what, index, sub, pad;
};

/* Of one message. */
struct xdsi_moment {
    int64_t parsed, callback;
};

/* The newest bytes of a connection whose user is told of them outside of a hook. */
struct xdsi_told {
    uint64_t key; /* whose: connections without a place share one     */
    int64_t receive, wake;
    bool frames; /* its user says of each message: events do not count */
    bool woke;   /* `wake` is in its histogram                         */
};

struct xds_engine {
    struct xds_engine_config cfg;
    struct xds_engine_stats stats;
    struct xds_clock *clock;

    struct xdsi_port ports[XDS_ENGINE_PORTS];
    struct xdsi_feed feeds[XDS_ENGINE_FEEDS];
    struct xdsi_channel channels[XDS_ENGINE_CHANNELS];
    struct xdsi_udp udp[XDSI_UDP_MAX];
    struct xdsi_route routes[XDSI_ROUTES];
    struct xdsi_route6 routes6[XDSI_ROUTES];
    unsigned n_ports, n_feeds, n_channels, n_udp, n_routes, n_routes6;
    bool virtual_time;
    bool has_stack; /* one of the ports does */

    xds_hook hook;
    void *hook_ctx;
    struct xds_recorder *recorder;
    struct xds_ring *tap; /* where refused frames are shown */
    int64_t tap_asked;    /* when its reader was last looked for */
    uint8_t *journal;
    uint64_t journal_used, journal_cap;

    struct xdsi_mirror mirrors[XDSI_MIRRORS];
    unsigned n_mirrors;

    /* Alerts: written by the thread that turns, read by any. */
    struct xds_slow_turn slow[XDSI_SLOW_KEPT];
    _Atomic(uint64_t) slow_count;
    uint64_t slow_since;
    int64_t slow_since_ns, slow_at; /* when the last alert was kept */
    int64_t mirrored;               /* when the mirrors were last brought up to date */

    /* The turn. */
    int64_t now;
    int64_t deadline; /* no channel and no host has one before it         */
    uint64_t touched; /* channels with input since their events were read */
    struct xds_sink sink;
    struct xds_event *events;
    uint32_t n_events;
    struct xds_run *runs;
    uint32_t n_runs, cap_runs, settled; /* runs before `settled` are in the books, hooks called */
    struct xds_dgram dgrams[XDSI_DGRAMS];
    uint8_t dgram_ends[XDSI_DGRAMS]; /* by datagram: whose it is, an index of udp */
    int64_t dgrams_ns;               /* when they were ready to be handed over   */
    uint32_t n_dgrams, n_packets;
    int64_t decoded_ns, applied_ns;
    uint32_t full_turns; /* in a row: a port had more than a burst, so timers wait */
    bool timers_wait;
    bool staged; /* this batch has stamps of stages */
    struct xds_stages *stages;
    uint32_t n_stages, aged,
        entered; /* rows; those before `aged` are in the ages, before `entered` have callbacks */
    int hook_rc;

    /* Stages of connections: by place, the last for those without one. Of the event under way. */
    struct xds_stage_conn *conns;
    unsigned n_conns;
    uint64_t conn_keys[XDS_STAGE_CONNS_MAX];
    unsigned conn_look;      /* the place that was looked at last, for who watches */
    struct xds_stages event; /* `callback`: its hook's, where messages have none of their own */
    struct xdsi_moment moments[XDSI_MOMENTS];
    uint32_t n_moments;
    bool moments_folded; /* some of this event already */
    int64_t tls_folded;  /* the record of this event whose stages were folded last, by its end */
    struct xdsi_port *event_port;
    struct xdsi_told told[XDS_STAGE_CONNS_MAX + 1]; /* by place */

    struct xds_outbox outbox;
    struct xds_outgoing outgoing[XDSI_OUT_MAX];

    /* A full batch stops the turn between two blocks; the next turn goes on from here. */
    bool stalled;
    uint16_t held_channel; /* XDSI_NO_CHANNEL: no block is held */
    struct xds_block held;
    bool step_open; /* virtual time: the last packet's step has not ended */
    uint32_t open_gaps;

    /* Following a recording: frames of the current turn block that are still to come. */
    int turn_queue; /* -1: not following */
    uint32_t turn_left;
};

static inline uint32_t xdsi_route_hash(uint32_t dst, uint16_t dport)
{
    const uint32_t h = (dst ^ ((uint32_t)dport << 16) ^ dport) * 0x9e3779b1u;
    return h >> 22; /* 10 bits: XDSI_ROUTES */
}

/* udp.c: IPv6's routes; datagrams out. dst6: NULL where dst counts. 0, or why not. */
const struct xdsi_route *xdsi_find_route6(const struct xds_engine *e, const struct xds_dgram *d);
int xdsi_send_udp(struct xds_engine *e, unsigned port, uint32_t dst, const uint8_t *dst6, uint16_t dport,
                  uint16_t sport, const uint8_t *data, uint32_t len);
void xdsi_send_outbox(struct xds_engine *e);

/* Whether somebody reads what is refused (refused.c shows it). */
static inline bool xdsi_watched(const struct xds_engine *e)
{
    return e->tap && __atomic_load_n(&e->tap->reader_pid, __ATOMIC_RELAXED);
}

/* streams.c: a packet, or an ICMP error, that the host has handed over; what stacks have to send, and their timers. */
void xdsi_take_packet(struct xds_engine *e, struct xdsi_port *p, const struct xds_frame *f);
void xdsi_take_error(struct xds_engine *e, struct xdsi_port *p);
void xdsi_pump_stacks(struct xds_engine *e);

/* CLOCK_TAI now; in virtual time that of the turn. */
static inline int64_t xdsi_engine_clock(struct xds_engine *e)
{
    return e->virtual_time || !e->clock ? e->now : xdsi_clock_now(e->clock);
}

/* stages.c: the row of a block that was just decoded; those of a run whose hook is about to be called; ages, once
 * books have taken their updates; all into their histograms; room for more, when all were delivered. */
void xdsi_stages_note(struct xds_engine *e, const struct xdsi_channel *c, const struct xds_block *b,
                      uint32_t first, uint32_t first_message);
void xdsi_stages_enter(struct xds_engine *e, const struct xds_run *r, int64_t entered);
void xdsi_stages_age(struct xds_engine *e);
void xdsi_stages_fold_all(struct xds_engine *e);
void xdsi_stages_lose(struct xds_engine *e);

/* A datagram's handler is about to be called; those without one are about to be handed over. */
void xdsi_stages_dgram(struct xds_engine *e, struct xdsi_udp *u, const struct xds_dgram *d);
void xdsi_stages_dgrams(struct xds_engine *e);

/* stream_stages.c: around the call that handles an event; behind it what was gathered goes into histograms. */
void xdsi_conns_look(struct xds_engine *e);
void xdsi_stream_begin(struct xds_engine *e, struct xdsi_port *p, const struct xds_stack_event *event);
void xdsi_stream_end(struct xds_engine *e);
/* Within it: a message, framed and handed over at these moments; those so far into histograms, as the event is now. */
void xdsi_stream_message(struct xds_engine *e, int64_t parsed, int64_t callback);
void xdsi_stream_fold(struct xds_engine *e);

/* A busy turn over live ports took longer than cfg.slow_ns. */
void xdsi_note_slow(struct xds_engine *e, int64_t spent);

void xdsi_show_frame(struct xds_engine *e, unsigned port, const struct xds_frame *f);
void xdsi_show_dgram(struct xds_engine *e, const struct xds_dgram *d);

/* tap.c: a frame that the host has handed over as TCP; one that the stack wrote. */
void xdsi_tap_in(const struct xds_engine *e, const struct xdsi_port *p, const struct xds_frame *f);
void xdsi_tap_out(const struct xds_engine *e, const struct xdsi_port *p, const struct xds_frame *f);

#endif
