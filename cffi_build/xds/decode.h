/* decode.h: what every generated decoder is: a block of framed messages in, normalised updates and
 * an index of messages out. Pure and total: any bytes give messages or a counted reason.
 *
 * Decoders are made from xdpstack/schemas by xdpstack/schema at build time (build/gen/NAME.c), or
 * from a user's own file by `xdpstack feed build` as a shared object that exports xds_decoder_entry.
 */
#ifndef XDS_DECODE_H
#define XDS_DECODE_H

#include "base.h"
#include "channel.h"
#include "update.h"

#define XDS_DECODER_ABI 2

enum xds_decode_reason {
    XDS_DECODE_OK = 0,
    XDS_DECODE_TRUNCATED = 1,     /* a message ends past the block's end: the rest is skipped     */
    XDS_DECODE_SHORT = 2,         /* shorter than its type's fixed part: skipped by its length    */
    XDS_DECODE_UNKNOWN_TYPE = 3,  /* a type that the schema does not know: skipped by its length  */
    XDS_DECODE_BAD_LENGTH = 4,    /* a length that cannot be stepped over (0 in SBE)              */
    XDS_DECODE_BAD_GROUP = 5,     /* a repeating group's count or block length overruns           */
    XDS_DECODE_TRAILING = 6,      /* bytes behind the announced number of messages                */
    XDS_DECODE_MISSING = 7,       /* fewer messages than announced                                */
    XDS_DECODE_BAD_VALUE = 8,     /* an enumeration out of its range where an update needs it     */
    XDS_DECODE_NO_INSTRUMENT = 9, /* the instrument table is full                                */
    XDS_DECODE_UNSUPPORTED = 10,  /* another schema id, or a version older than the first known   */
    XDS_DECODE_CAPACITY = 11,     /* the caller's arrays were full: a bug of the caller           */
    XDS_DECODE_REASONS = 12,
};

/* One message, where it lies. Views with the type's own dtype are made from it. 32 bytes. */
struct xds_message {
    const uint8_t *data; /* after the framing (SBE: at the SBE header); leased as the block is */
    int64_t rx_ns;
    uint64_t seq;
    uint16_t len;     /* bytes                                                              */
    uint16_t type;    /* index in the decoder's types[]; 0xffff unknown or shorter than it  */
    uint16_t channel; /* filled by the engine                                               */
    uint8_t feed;     /* filled by the engine                                               */
    uint8_t line;
};

_Static_assert(sizeof(struct xds_message) == 32, "two messages a cache line");

/* Where a decoder writes. Arrays are the caller's. */
struct xds_sink {
    struct xds_update *updates;
    struct xds_message *messages; /* NULL: no index is wanted                                  */
    uint32_t n_updates, cap_updates;
    uint32_t n_messages, cap_messages;
};

struct xds_type_info {
    char name[40];      /* the specification's name                                           */
    uint32_t id;        /* type byte or template id                                           */
    uint32_t fixed_len; /* bytes of its fixed part                                            */
};

/* messages = sum of by_type + SHORT + UNKNOWN_TYPE + UNSUPPORTED. A message with BAD_VALUE, BAD_GROUP or
 * NO_INSTRUMENT is counted in by_type too: it can be viewed, but (part of) its updates are withheld.
 * TRUNCATED, BAD_LENGTH, TRAILING, MISSING and CAPACITY count once a block. */
struct xds_decoder_stats {
    uint64_t blocks, bytes, messages, updates;
    uint64_t reasons[16];     /* by enum xds_decode_reason                                        */
    uint64_t by_type[64];     /* by index in types[]                                              */
    uint64_t instrument_gaps; /* jumps in an instrument's own sequence (CME RptSeq)           */
    uint64_t superseded;      /* updates withheld: a snapshot already holds them              */
};

struct xds_decoder_config {
    uint32_t max_instruments;
    uint32_t reserved;
};

/* A decoder's description. session and framing are the channel's defaults for this feed. */
struct xds_decoder {
    const char *name;          /* "itch50"                                             */
    uint32_t abi;              /* XDS_DECODER_ABI                                      */
    uint32_t session, framing; /* enum xds_session, enum xds_framing                   */
    uint32_t n_types;
    const struct xds_type_info *types;
    uint32_t book;                 /* 3: orders, 2: price levels, 0: none                  */
    uint32_t depth, implied_depth; /* of an instrument that no definition came for; 0 all  */
    uint32_t sequenced; /* 1: its instruments count their own entries (CME RptSeq), so an update without
                         * XDS_STALE behind a gap proves that its instrument missed nothing        */
    uint32_t max_updates_per_byte_q8;  /* bound: room for 1 + len * this / 256 updates is enough */
    uint32_t max_messages_per_byte_q8; /* bound: messages <= 1 + len * this / 256              */
    size_t (*size)(const struct xds_decoder_config *cfg);
    int (*init)(void *mem, const struct xds_decoder_config *cfg);
    /* Decode one block. Returns the number of messages stepped over. */
    int (*block)(void *mem, const struct xds_block *b, struct xds_sink *out);
};

/* The update's instrument that means "all of this channel" (CLEAR after a channel reset). */
#define XDS_ALL_INSTRUMENTS 0xffffffff

/* Wrappers, so that Python and tests need no function pointers. */
unsigned xds_decoder_count(void);
const struct xds_decoder *xds_decoder_at(unsigned i);
const struct xds_decoder *xds_decoder_find(const char *name); /* NULL: unknown */
size_t xds_decoder_size(const struct xds_decoder *d, const struct xds_decoder_config *cfg);
int xds_decoder_init(const struct xds_decoder *d, void *mem, const struct xds_decoder_config *cfg);
int xds_decoder_block(const struct xds_decoder *d, void *mem, const struct xds_block *b,
                      struct xds_sink *out);
/* Decode n blocks, emptying the sink before each: for benches and tools. Returns the messages. */
uint64_t xds_decoder_run(const struct xds_decoder *d, void *mem, const struct xds_block *blocks, size_t n,
                         struct xds_sink *out);
void xds_decoder_stats(const struct xds_decoder *d, const void *mem, struct xds_decoder_stats *out);

enum xds_instrument_flag {
    XDS_INSTRUMENT_USED = 1,    /* the entry is an instrument: a table indexed by key has holes */
    XDS_INSTRUMENT_SYMBOL = 2,  /* symbol is known                                            */
    XDS_INSTRUMENT_DEFINED = 4, /* a definition message came (directory, security definition) */
};

/* Instruments: every decoder's memory begins with a table of them. xds_decoder_instruments is the
 * number of entries to walk; entries without XDS_INSTRUMENT_USED are holes (NULL is returned). */
struct xds_instrument {
    char symbol[24];       /* trimmed, NUL padded                                                  */
    uint64_t key;          /* the venue's own: locate code, 8 symbol bytes, security id            */
    uint32_t index;        /* = xds_update.instrument                                              */
    uint8_t scale;         /* prices are integers of 10^-scale                                     */
    uint8_t depth;         /* levels that the venue sends; 0 all. Until a definition came: the schema's */
    uint8_t implied_depth; /* of the implied book                                             */
    uint8_t flags;         /* enum xds_instrument_flag, or-ed                                      */
};
/* Moves whenever an instrument was entered, named or given a depth: then look at the table again. */
uint64_t xds_decoder_table_version(const struct xds_decoder *d, const void *mem);
unsigned xds_decoder_instruments(const struct xds_decoder *d, const void *mem);
const struct xds_instrument *xds_decoder_instrument(const struct xds_decoder *d, const void *mem,
                                                    unsigned index);

#endif
