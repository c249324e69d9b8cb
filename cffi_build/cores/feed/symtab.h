/* symtab.h: the instruments of one decoder, in the memory that the caller lends at init.
 *
 * Two shapes, chosen by the schema: indexed by the venue's own small number (Nasdaq's locate, the
 * plain symbol id: no search at all), or open addressing by a 64-bit key (eight symbol bytes, CME's
 * security id). Entries are never removed: an instrument's index is good until the memory is.
 *
 * This struct is the head of every decoder's memory (xds/decode.h relies on it, and so do loaded
 * decoders that were built elsewhere): a change here is a change of XDS_DECODER_ABI.
 */
#ifndef XDSI_SYMTAB_H
#define XDSI_SYMTAB_H

#include "xds/decode.h"

#define XDSI_NO_INSTRUMENT 0xfffffffeu /* the table is full, or the key is out of its range */
#define XDSI_DIRECT_KEYS   65536u      /* keys of the indexed shape: 16 bits                */

/* What a decoder remembers of an instrument besides its public entry. */
struct xdsi_inst_state {
    uint32_t rpt_seq; /* last of the instrument's own sequence                  */
    uint8_t scale;    /* of the prices that go out                              */
    uint8_t flags;    /* enum xdsi_inst_flag                                    */
    uint16_t pad;
};

enum xdsi_inst_flag {
    XDSI_INST_RPT = 1,      /* rpt_seq holds a value                                   */
    XDSI_INST_STALE = 2,    /* its own sequence jumped, and no snapshot came since     */
    XDSI_INST_SNAPSHOT = 4, /* rpt_seq is a snapshot's: what is not above it is in it  */
    XDSI_INST_PRICED = 8,   /* scale is decided                                        */
    XDSI_INST_ANEW = 16,    /* its channel may have begun anew: a fall ends staleness   */
};

struct xdsi_sym_slot {
    uint64_t key;
    uint32_t index1; /* index + 1; 0 is an empty slot */
    uint32_t pad;
};

struct xdsi_symtab {
    struct xds_instrument *inst;
    struct xdsi_inst_state *state;
    struct xdsi_sym_slot *slots;  /* NULL: indexed by key                                       */
    uint8_t *known;               /* indexed by key: enum xds_instrument_flag, 0 beyond max     */
    uint32_t max, used;           /* entries; used: how many to walk                            */
    uint32_t mask;                /* slots - 1                                                  */
    uint8_t scale;                /* of a new instrument                                        */
    uint8_t depth, implied_depth; /* of a new instrument                                       */
    uint8_t pad;
    uint64_t version; /* moves with every change of an entry                        */
};

/* The head of every decoder's memory. */
struct xdsi_decoder_mem {
    struct xdsi_symtab tab;
    struct xds_decoder_stats stats;
};

size_t xdsi_symtab_size(const struct xds_decoder_config *cfg, int direct); /* bytes, 0 = bad cfg */
/* scale, depth and implied_depth are the caller's to set. */
void xdsi_symtab_init(struct xdsi_symtab *t, void *room, const struct xds_decoder_config *cfg, int direct);
/* Find key or make room for it. Returns its index or XDSI_NO_INSTRUMENT. */
uint32_t xdsi_symtab_add(struct xdsi_symtab *t, uint64_t key);
/* Name an instrument: symbol bytes padded with spaces or NULs. flags: XDS_INSTRUMENT_*. */
void xdsi_symtab_name(struct xdsi_symtab *t, uint32_t index, const uint8_t *symbol, unsigned len,
                      unsigned flags);
/* A channel began anew. Whose instruments these are is not known here (a feed may have several
 * channels), so from now on a sequence that falls is a fresh start, and one that goes on goes on. */
void xdsi_symtab_anew(struct xdsi_symtab *t);

static inline uint64_t xdsi_sym_hash(uint64_t key)
{
    key ^= key >> 32; /* fold first: symbols padded with spaces differ in their low bytes only */
    key *= 0x9e3779b97f4a7c15u;
    return key >> 32 ^ key >> 13;
}

/* The index of a known key, or XDSI_NO_INSTRUMENT. At most half of the slots are ever in use. */
static inline uint32_t xdsi_symtab_find(const struct xdsi_symtab *t, uint64_t key)
{
    for (uint64_t at = xdsi_sym_hash(key) & t->mask;; at = (at + 1) & t->mask) {
        const struct xdsi_sym_slot *s = &t->slots[at];
        if (s->key == key && s->index1)
            return s->index1 - 1;
        if (!s->index1)
            return XDSI_NO_INSTRUMENT;
    }
}

#endif
