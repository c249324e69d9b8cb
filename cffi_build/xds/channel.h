/* channel.h: one sequenced channel of a feed: any number of lines in, one stream in order out.
 * Pure: no I/O, no clock, no allocation. Session headers are stripped here; messages are not read.
 *
 *   input(line, payload)  ->  next(): blocks of messages, in order, each once
 *   output()              ->  a retransmission request to send (MoldUDP64)
 *   deadline(), tick()    ->  reorder window and request timers
 *   event()               ->  gaps found, asked, filled, lost; restarts; end of session
 *
 * First copy wins. A packet in order is lent as it lies in the caller's buffer. A packet ahead of a gap
 * is copied into a bounded slab (never kept in a link's frame).
 *
 * A gap is found; after window_ns it is asked for (request_max > 0) with retries whose wait doubles, only
 * what is still missing of it; it is filled, by any line, or given up: without a request server after
 * window_ns, with one after `retries` unanswered requests or give_up_ns. Only the gap that holds the
 * stream up is given up; one behind it waits its turn and may be filled meanwhile. When the slab is
 * full: with a request server the packet is dropped (no_room: it is asked for later) and every gap is
 * asked for at once; without one the oldest gap is given up.
 *
 * A sequence more than window_packets * XDS_CHANNEL_FAR units ahead is wild: counted foreign unless a
 * second packet goes on from it (within window_packets units), so one bad number cannot end a stream.
 *
 * A run of sequences begins again (event RESTART, the window of the old run is released first):
 *   IEXTP  the sequence falls while the send time rises. A fall with a send time that is not later than
 *          the latest one is late or duplicate; so are packets sent before the restart, on any line.
 *   CME    the same, where it falls to 1 or by more than window_packets.
 *   PLAIN  no time: on one line the sequence falls to 0, more than window_ns after the run began or from
 *          above window_packets; or it falls by more than window_packets and the line's next packet goes
 *          on from there. Another line's packets are of the old run (late) until it falls as well, or
 *          window_ns have passed. Passing 2^32 is no fall: block.seq goes on in 64 bits.
 *   MOLD64 only with another session name (event SESSION): at once where it begins at 1, else with the
 *          second packet of that name; a session that was left never comes back (foreign). IEXTP: another
 *          session id with a later send time.
 * Where a new run is first seen at most window_packets past its first sequence (1; PLAIN 0), what lies
 * between is a gap; further on it is a late join.
 *
 * Per line, at all times: packets = won + duplicate + late + heartbeat + malformed + truncated + foreign
 * + no_room + buffered; while a block is lent or due, that one packet may be missing from the sum.
 * gaps_found = filled + lost + open, in ranges (one that is filled in its middle becomes two) and in units.
 * A packet that is not in order is walked by its framing; in order, the decoder does that.
 */
#ifndef XDS_CHANNEL_H
#define XDS_CHANNEL_H

#include "base.h"

#define XDS_LINES_MAX   8
#define XDS_CHANNEL_FAR 64 /* units per slot of the window that a sequence may jump unconfirmed */

enum xds_session {
    XDS_SESSION_PLAIN = 1, /* {u32 sequence, u16 message count, u16 pad} little-endian; counts packets */
    XDS_SESSION_MOLD64 =
        2, /* MoldUDP64 1.00: session[10], u64 sequence, u16 count, big-endian; counts messages */
    XDS_SESSION_IEXTP = 3, /* IEX-TP 1.25: 40-byte header, little-endian; counts messages          */
    XDS_SESSION_CME = 4,   /* CME MDP 3.0: u32 packet sequence, u64 sending time; counts packets   */
};

/* How messages lie in a block; the channel needs it only to skip what was delivered already. */
enum xds_framing {
    XDS_FRAMING_U16BE = 1, /* u16 big-endian length before each message (MoldUDP64, BinaryFILE) */
    XDS_FRAMING_U16LE = 2, /* u16 little-endian length before each message (IEX-TP)             */
    XDS_FRAMING_SBE = 3,   /* CME: u16 little-endian size that counts itself, then SBE header   */
    XDS_FRAMING_FIXED = 4, /* back to back, size by type (plain: 28 bytes)                      */
};

enum xds_block_flag {
    XDS_BLOCK_RECOVERED = 1, /* came by retransmission                                         */
    XDS_BLOCK_AFTER_GAP = 2, /* the first block after a gap that was given up                  */
    XDS_BLOCK_STALE = 4,     /* an open gap lies before it in this session                     */
    XDS_BLOCK_RESTART = 8,   /* the first block of a new session or of a restarted sequence    */
};

struct xds_block {
    const uint8_t *data; /* framed messages: borrowed until the next input, tick or next     */
    int64_t rx_ns;       /* of the packet that carried it                                     */
    int64_t venue_ns;    /* the packet header's sending time, 0 where it has none             */
    uint64_t seq;        /* sequence of the first message (MOLD64, IEXTP) or of the packet    */
    uint32_t len;        /* bytes                                                             */
    uint16_t count;      /* messages that the header announced; 0xffff: not announced         */
    uint8_t line;
    uint8_t flags; /* enum xds_block_flag                                               */
};

enum xds_start {
    XDS_START_LATE = 0,  /* join at the first sequence seen                                   */
    XDS_START_FIRST = 1, /* from first_seq on: what lies before the first packet seen is a gap */
};

struct xds_channel_config {
    uint32_t session;        /* enum xds_session                                                */
    uint32_t framing;        /* enum xds_framing                                                */
    uint32_t lines;          /* 1 .. XDS_LINES_MAX                                              */
    uint32_t start;          /* enum xds_start                                                  */
    uint64_t first_seq;      /* with XDS_START_FIRST                                            */
    uint32_t window_packets; /* reorder slots, a power of two                                 */
    uint32_t slot_bytes;     /* largest payload that a slot holds                               */
    int64_t window_ns;       /* how long a gap may stay unasked (reordering, the other line)    */
    int64_t retry_ns;        /* first wait for an answer; doubles with each retry               */
    int64_t give_up_ns;      /* from found to lost, in all                                      */
    uint32_t request_max;    /* messages in one request; 0: there is no request server          */
    uint32_t retries;        /* requests for one range before it is given up                    */
    int64_t
        restart_ns; /* IEXTP: a lower sequence with a send time this much later is a restart; 0: any later */
    uint8_t session_name[16]; /* MOLD64: deliver this session only, NUL padded; all NUL: follow the wire */
};

struct xds_line_stats {
    uint64_t packets, bytes;
    uint64_t won;       /* first copy: delivered, now or out of the window                    */
    uint64_t duplicate; /* another line, or this one, was first                               */
    uint64_t late;      /* after its gap was given up, before the join, or of the run before  */
    uint64_t heartbeat; /* no messages                                                        */
    uint64_t malformed, truncated;
    uint64_t foreign;   /* another session or version; a wild sequence                        */
    uint64_t no_room;   /* the window was full, or the packet larger than a slot              */
    uint64_t buffered;  /* waiting in the window now                                          */
    uint64_t lost;      /* units since the join that this line never carried, as far as later
                         * packets of it, a restart or finish() show it; not for requests      */
    uint64_t reordered; /* came behind a later sequence of the same line, and had not come yet */
};

struct xds_channel_stats {
    uint64_t blocks, messages; /* delivered                                              */
    uint64_t next_seq;         /* the next sequence to deliver                           */
    uint64_t gaps_found, gaps_filled, gaps_lost, gaps_open;          /* ranges                */
    uint64_t units_missed, units_filled, units_lost, units_open;     /* sequence units        */
    uint64_t requests, retransmitted_packets, retransmitted_useless; /* useless: came already */
    uint64_t restarts, sessions, ended;
    uint64_t events_lost; /* the event queue was full                               */
};

struct xds_channel;
size_t xds_channel_size(const struct xds_channel_config *cfg);         /* bytes to provide, 0 = bad cfg */
int xds_channel_init(void *mem, const struct xds_channel_config *cfg); /* mem: kept until close */

/* Take one packet of a line; line == cfg.lines is the answer of the request server.
 * data: borrowed until the blocks that it made are taken (call next until 0 before the next input).
 * Returns 1 blocks are ready, 0 consumed, XDS_ESTATE blocks are still to be taken (not counted), XDS_ETRUNC, XDS_EMALFORMED, XDS_EFOREIGN, XDS_ECAPACITY:
 * counted, nothing to deliver. */
int xds_channel_input(struct xds_channel *c, unsigned line, const uint8_t *data, uint32_t len, int64_t rx_ns,
                      int64_t now_ns);
int xds_channel_next(struct xds_channel *c, struct xds_block *out); /* 1 filled, 0 none */
/* Write one request packet (MoldUDP64: 20 bytes). Returns its bytes, 0 nothing is due. */
int xds_channel_output(struct xds_channel *c, uint8_t *room, uint32_t cap, int64_t now_ns);
int64_t xds_channel_deadline(const struct xds_channel *c);
void xds_channel_tick(struct xds_channel *c, int64_t now_ns);        /* then next() until 0 */
int xds_channel_event(struct xds_channel *c, struct xds_event *out); /* 1 filled, 0 none */
/* The input has ended (a capture): give up what is missing and release the rest. */
void xds_channel_finish(struct xds_channel *c, int64_t now_ns);
void xds_channel_stats(const struct xds_channel *c, struct xds_channel_stats *out);
int xds_channel_line_stats(const struct xds_channel *c, unsigned line, struct xds_line_stats *out);

#endif
