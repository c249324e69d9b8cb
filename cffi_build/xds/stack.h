/* stack.h: TCP over one host core: frames in, frames out; the connection table, listeners, ports and timers.
 * No I/O, no clock, no randomness (the caller's secret is stretched), no allocation after init.
 *
 *   frame(frame), or input(packet) where the caller feeds the host itself -> connections take segments
 *   output(room) -> one frame: what the host has to say, segments, resets
 *   deadline(), tick() -> timers of connections and of the host;  event() -> what happened to whom
 *
 * Who owns what: frames stay the caller's (a segment's bytes are copied into its connection's ring before
 * input returns, and output fills the caller's room), so a reader that stops holds no frame. Time is the
 * caller's, one `now` a call. Errors of a connection are told once, as bits of its event; those of a segment
 * are counted: received = taken + the sum of reasons. A connection is a number that is never used twice in
 * a row for two connections; it lives until close(), and then by itself to its end in TIME-WAIT.
 *
 * Kept: RFC 9293 3.5.2 (resets), 3.9.2 and 6191 (a SYN in TIME-WAIT), 6528 (initial numbers), 6056 algorithm 4
 * (ports), 2525 2.17 (a reset where data was not read), 5927 4.1, 5 and 7 (ICMP errors must name what is in
 * flight, and end nothing that is established; of ICMPv6 too), 1191 and 8201 (the path's MTU), 4987 3.6 (SYN
 * cookies).
 */
#ifndef XDS_STACK_H
#define XDS_STACK_H

#include "base.h"
#include "dgram.h"
#include "host.h"
#include "link.h"
#include "packet.h"
#include "tcp.h"

enum xds_stack_reason {
    XDS_STACK_TAKEN = 0,         /* not a reason: the index of what went to a connection         */
    XDS_STACK_OTHER = 1,         /* no TCP, or it ends inside its header                         */
    XDS_STACK_NO_CONNECTION = 2, /* answered by a reset, if there was room to note it; at a listener's
                                    port only where it has a SYN or an ACK                       */
    XDS_STACK_STRAY_RESET = 3,   /* a reset for no connection: never answered                    */
    XDS_STACK_BACKLOG = 4,       /* a SYN, and the listener has as many as it may                */
    XDS_STACK_FULL = 5,          /* a SYN, and every connection is in use                        */
    XDS_STACK_COOKIE = 6,        /* a SYN, answered by a cookie: nothing is remembered           */
    XDS_STACK_REASONS = 7,
};

/* Zero everywhere but secret is a good start: 0 takes the value in brackets. */
struct xds_stack_config {
    uint32_t connections; /* most at once, TIME-WAIT included, up to 131,072 [64]                    */
    uint32_t listeners;   /* most at once [8]                                                        */
    uint32_t send_bytes, receive_bytes; /* of a connection, powers of two [65536]                    */
    uint16_t port_first, port_last;     /* local ports to choose from [49152, 65535]                 */
    uint32_t resets;                    /* that may wait to be sent, and as many cookies [32]        */
    uint32_t no_cookies; /* 1: a SYN that finds the backlog half open is dropped (RFC 4987 3.6)      */
    uint32_t pad;
    int64_t orphan_ns;         /* FIN-WAIT-2 of a connection that its user has closed [60 s] */
    uint8_t secret[16];        /* unpredictable and the caller's: ports, numbers, places hang on it */
    struct xds_tcp_config tcp; /* of every connection; addresses, ports, iss and buffers are ignored */
};

struct xds_stack_stats {
    uint64_t received;
    uint64_t reasons[XDS_STACK_REASONS]; /* by enum xds_stack_reason; [0] = taken                    */
    uint64_t sent;                       /* segments in frames, resets too                           */
    uint64_t send_lost;         /* no way there, or no slot to wait in: as if lost on the wire         */
    uint64_t resets;            /* sent for no connection                                               */
    uint64_t resets_lost;       /* not sent: as many were waiting already                               */
    uint64_t opened;            /* by us                                                                */
    uint64_t accepted;          /* given out by accept()                                                */
    uint64_t refused;           /* connect() calls that returned a code                                 */
    uint64_t evicted;           /* ended in TIME-WAIT for a new one's sake                              */
    uint64_t reopened;          /* ended in TIME-WAIT by a SYN of the same peer                         */
    uint64_t orphans_ended;     /* FIN-WAIT-2 past orphan_ns                                            */
    uint64_t orphans_timed_out; /* closed by their user, and for give_up_ns nothing was acknowledged */
    uint64_t cookies_sent, cookies_taken; /* SYNs answered so; connections that came of it            */
    uint64_t cookies_bad;     /* an ACK that might have been of one: none, or too old                 */
    uint64_t cookies_lost;    /* not sent: as many were waiting already                               */
    uint64_t connections;     /* now, TIME-WAIT included                                              */
    uint64_t time_waits;      /* of them, in TIME-WAIT and closed by their user                       */
    uint64_t connections_max; /* the most at once                                                    */
    uint64_t errors;          /* ICMP errors that a connection took                                   */
    uint64_t errors_stray;    /* of no connection                                                     */
    uint64_t errors_forged;   /* about a sequence number that is not in flight, or too old            */
};

/* All connections together, those that are gone too. */
struct xds_stack_totals {
    uint64_t states[XDS_TCP_STATES]; /* now, by enum xds_tcp_state */
    struct xds_tcp_stats tcp;        /* the sum of what each counted */
};

/* Bits: several things may have happened to a connection since its event was taken. */
enum xds_stack_event_bit {
    XDS_STACK_OPEN = 1,
    XDS_STACK_READABLE = 2,      /* bytes have come                                                   */
    XDS_STACK_WRITABLE = 4,      /* half the buffer is free again, after a write that did not fit     */
    XDS_STACK_FIN = 8,           /* the peer sends no more                                            */
    XDS_STACK_CLOSED = 16,       /* both directions ended in order                                    */
    XDS_STACK_RESET = 32,        /* by the peer                                                       */
    XDS_STACK_REFUSED = 64,      /* a reset, or an ICMP error of that meaning, before it was established */
    XDS_STACK_TIMEOUT = 128,     /* nothing was acknowledged for give_up_ns, or no keepalive          */
    XDS_STACK_UNREACHABLE = 256, /* the neighbour never answered, or an ICMP error said so, before it was
                                  * established: xds_stack_trouble() has the error              */
    XDS_STACK_ACCEPTABLE = 512,  /* of a listener: accept() has one                                   */
    XDS_STACK_STALLED = 1024,    /* three retransmissions, and no answer yet; it goes on              */
};

enum xds_stack_family {
    XDS_STACK_IP4 = 1,
    XDS_STACK_IP6 = 2,
};

struct xds_stack_event {
    int64_t ns;             /* of the call that saw the first of them                */
    int64_t rx_ns, read_ns; /* of the first of its bytes: when they came, the call that took them; 0: none */
    uint32_t id;            /* of a connection, or of a listener                     */
    uint32_t what;          /* enum xds_stack_event_bit, or-ed                       */
};

struct xds_stack_ends {
    uint8_t local[16], remote[16]; /* network order; IPv4 mapped        */
    uint16_t local_port, remote_port;
    uint32_t pad;
};

/* What a router, or the peer, said of a connection's packets, and nothing was acknowledged since (RFC 9293
 * 3.9.2.2: told, ends nothing). */
struct xds_stack_trouble {
    int64_t ns;       /* when                                                     */
    uint8_t from[16]; /* who                                                      */
    uint8_t type, code;
    uint8_t pad[6];
};

struct xds_stack;
size_t xds_stack_size(const struct xds_stack_config *cfg); /* bytes to provide, 0 = bad cfg           */
/* mem and host: kept; the host takes TCP from now on. 0, XDS_ECONFIG. */
int xds_stack_init(void *mem, const struct xds_stack_config *cfg, struct xds_host *host);

/* Take one frame (borrowed): as xds_host_input(), but TCP is taken and gives 0. */
int xds_stack_frame(struct xds_stack *s, const struct xds_frame *f, struct xds_dgram *out, int64_t now);
/* Take a packet (borrowed) that the host has handed over: 0 taken, XDS_EFOREIGN, XDS_ECAPACITY, and
 * xds_tcp_input()'s: counted by reason, by the connection where one took it. */
int xds_stack_input(struct xds_stack *s, const struct xds_packet *p, int64_t now);
/* Take an ICMP error that the host has: 0 taken; XDS_EFOREIGN: not about TCP, or of no
 * connection or forged, counted. */
int xds_stack_error(struct xds_stack *s, const struct xds_host_error *e, int64_t now);
/* One frame into room (room->len: the room there is, then the bytes). Returns them, 0: nothing now. */
int xds_stack_output(struct xds_stack *s, struct xds_frame *room, int64_t now);
int xds_stack_pending(const struct xds_stack *s);      /* 1: output() may have something now */
int64_t xds_stack_deadline(const struct xds_stack *s); /* may be early, never late */
void xds_stack_tick(struct xds_stack *s, int64_t now);
int xds_stack_event(struct xds_stack *s, struct xds_stack_event *out); /* 1 filled, 0 none */
/* Events have two readers. give() hands a connection, or a listener with all that it accepts, to the second:
 * given() has its events from now on, the first of them what holds now (open, readable, fin). 0, XDS_ESTATE. */
int xds_stack_give(struct xds_stack *s, int id, int64_t now);
int xds_stack_given(struct xds_stack *s, struct xds_stack_event *out); /* 1 filled, 0 none */
int xds_stack_is_given(const struct xds_stack *s, int id);             /* 1: a connection that is, and open */
void xds_stack_close_given(struct xds_stack *s, int64_t now); /* as close() of each connection given */

/* What connect() takes, with the stack's settings: fill remote and remote_port. */
void xds_stack_defaults(const struct xds_stack *s, struct xds_tcp_config *out);
/* Open a connection; what is zero of local and local_port is chosen. Returns its number; XDS_EFOREIGN no way
 * there, XDS_ECONFIG (also: a local address that is not own), XDS_ECAPACITY every connection or port is in
 * use, -98 (EADDRINUSE) these ends are. */
int xds_stack_connect(struct xds_stack *s, const struct xds_tcp_config *how, int64_t now);
/* Wait for connections to a local address (all zero: any own one, of either family). backlog: most that are half
 * open or not
 * accepted yet; a SYN past it is answered by a cookie, and dropped where so many wait to be accepted. Returns the listener's number; XDS_ECONFIG, XDS_ECAPACITY, -98 (EADDRINUSE). */
int xds_stack_listen(struct xds_stack *s, const uint8_t local[16], uint16_t port, uint32_t backlog);
/* The same with settings for whom it will accept: as for connect(), with local and local_port filled. families: enum
 * xds_stack_family, or-ed, where any address is meant. */
int xds_stack_listen_as(struct xds_stack *s, const struct xds_tcp_config *how, uint32_t backlog,
                        uint32_t families);
int xds_stack_accept(struct xds_stack *s, int listener);   /* a connection's number, 0 none, XDS_ESTATE */
int xds_stack_unlisten(struct xds_stack *s, int listener); /* whom nobody accepted is reset; 0, XDS_ESTATE */
int xds_stack_listens_given(const struct xds_stack *s, int id); /* 1: a listener that was given */

/* The connection itself, for peek, reserve, info and stats; NULL: no such number. After consume, commit or
 * close on it call touch(), so that output() looks at it. */
struct xds_tcp *xds_stack_tcp(struct xds_stack *s, int id);
void xds_stack_touch(struct xds_stack *s, int id);
int xds_stack_trouble(const struct xds_stack *s, int id,
                      struct xds_stack_trouble *out); /* 1 filled, 0 none, XDS_ESTATE */
int xds_stack_ends(const struct xds_stack *s, int id, struct xds_stack_ends *out); /* 0, XDS_ESTATE */
int xds_stack_write(struct xds_stack *s, int id, const uint8_t *data,
                    uint32_t len);                                             /* bytes taken, XDS_ESTATE */
int xds_stack_read(struct xds_stack *s, int id, uint8_t *data, uint32_t room); /* bytes, XDS_ESTATE      */
/* Without a copy, as xds_tcp_peek(), consume(), reserve() and commit(): a piece up to the ring's end. What is peeked
 * at stays as it is until it is consumed, whatever comes meanwhile; close() ends both. XDS_ESTATE too. */
int xds_stack_peek(struct xds_stack *s, int id, const uint8_t **data);
int xds_stack_consume(struct xds_stack *s, int id, uint32_t len);
int xds_stack_reserve(struct xds_stack *s, int id, uint8_t **data); /* 0: full, and WRITABLE will be told */
int xds_stack_commit(struct xds_stack *s, int id, uint32_t len);
/* xds_tcp_patch() where change_len is not 0, then xds_tcp_write_prepared(): the message's length; 0: not all of it
 * fits now, and WRITABLE will be told; XDS_ECAPACITY: the change lies outside; XDS_ESTATE. */
int xds_stack_send(struct xds_stack *s, int id, struct xds_tcp_message *m, uint32_t at, const uint8_t *change,
                   uint32_t change_len);
/* Build a frame with len bytes of it where nobody sees it, and change nothing (xds_tcp_warm()): the frame's length,
 * 0: not established, or its neighbour is not known yet; XDS_ESTATE. */
int xds_stack_warm(struct xds_stack *s, int id, uint32_t len, int64_t now);
int xds_stack_shutdown(struct xds_stack *s, int id); /* send no more: 0, XDS_ESTATE */
/* xds_tcp_set() on it: 0, XDS_ESTATE, XDS_ECONFIG. */
int xds_stack_set(struct xds_stack *s, int id, uint32_t setting, int64_t value, int64_t now);
/* The hop limit, or TTL, of a connection's packets, or of those that come to a listener; 0: the host's. 0, XDS_ESTATE. */
int xds_stack_set_hops(struct xds_stack *s, int id, uint8_t hops);
void xds_stack_abort(struct xds_stack *s, int id); /* reset; the number stays until close() */
/* Let go of it: a FIN, or a reset where bytes were not read; it runs to its end by itself. */
void xds_stack_close(struct xds_stack *s, int id, int64_t now);
/* 1: the pair of ends that it had is still held, by TIME-WAIT or an end that is under way. */
int xds_stack_lingers(const struct xds_stack *s, int id);
void xds_stack_stats(const struct xds_stack *s, struct xds_stack_stats *out);
/* All of them, now: it looks at every connection. */
void xds_stack_totals(const struct xds_stack *s, struct xds_stack_totals *out);
/* The same at leisure: look at n places more; and what the last pass over all of them found. */
void xds_stack_pass(struct xds_stack *s, uint32_t n);
void xds_stack_seen(const struct xds_stack *s, struct xds_stack_totals *out);

#endif
