/* decode_inl.h: the machinery under every generated decoder: rows, slots, and the loop over fixed
 * layouts. The SBE walker is in decode_sbe_inl.h. A generated file holds tables and three one-line
 * functions; everything here is inlined into them with the tables' constants folded.
 *
 * How a message becomes an update without a branch on its type. A *row* says for one message type
 * where each field of the update lies; a *slot* of it is eight bytes at `off`, byte-swapped where the
 * venue is big-endian, shifted and masked. The generator chooses `off` so that the eight bytes lie
 * inside the message's fixed part (a big-endian field is read by the eight bytes that END with it):
 * one length check a message makes every load safe. A field that a type lacks has mask 0. What is
 * an enumeration on the wire (side, kind, flags) goes through a 256-byte map. So the type decides
 * addresses, not jumps, and a mix of types costs no mispredicted branch.
 */
#ifndef XDSI_DECODE_INL_H
#define XDSI_DECODE_INL_H

#include "cores/feed/symtab.h"

#include <string.h>

#define XDSI_LIKELY(x)   __builtin_expect(!!(x), 1)
#define XDSI_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define XDSI_INLINE      static inline __attribute__((always_inline))

#define XDSI_UNKNOWN_ROW 0xff /* in the index of types */
#define XDSI_MAP_SKIP    0x40 /* in an overriding kind map: no update, whatever the kind */
#define XDSI_MAP_BAD     0x80 /* in a kind or side map: a value that the specification does not have */

enum xdsi_field { XDSI_ORDER = 0, XDSI_PRICE, XDSI_QTY, XDSI_REF, XDSI_TIME, XDSI_KEY, XDSI_FIELDS };

enum xdsi_need { /* what the instrument's known[] must have before the fast way is taken */
                 XDSI_NEED_INSTRUMENT = XDS_INSTRUMENT_USED,
                 XDSI_NEED_SYMBOL = XDS_INSTRUMENT_SYMBOL, /* the message carries it */
                 XDSI_NEED_DEFINE = 0x80,                  /* never set in known[]: always look */
};

struct xdsi_slot {
    uint64_t mask; /* 0: the type lacks this field         */
    uint8_t off;   /* of the eight bytes, in the message    */
    uint8_t shift; /* right, after the byte swap            */
    uint8_t sign;  /* bit of the sign; 0 unsigned (PRICE)   */
    uint8_t pad[5];
};

struct xdsi_row {
    struct xdsi_slot slot[XDSI_FIELDS];
    const uint8_t *kind, *side, *flags; /* maps by the byte at the offsets below             */
    uint32_t len;                       /* fixed part; 0xffffffff: not a type                */
    uint8_t kind_off, side_off, flags_off;
    uint8_t need; /* enum xdsi_need                                    */
    uint8_t symbol_off, symbol_len;
    uint8_t ref;        /* or-ed into the ref: a level that the type implies */
    uint8_t drop_empty; /* no update where qty is 0                          */
    uint8_t more;       /* row of this type's next update, 0: none           */
} __attribute__((aligned(64)));

/* One fixed-layout venue. Every member is a constant where the loop is instantiated. */
struct xdsi_fixed {
    const struct xdsi_row *rows; /* the first n_types are types, then the rows of `more`     */
    const uint8_t *index;        /* row by type byte, XDSI_UNKNOWN_ROW                       */
    uint32_t framing;            /* enum xds_framing                                         */
    uint32_t type_off;
    uint8_t big;                  /* big-endian                                               */
    uint8_t direct;               /* instruments are indexed by key                           */
    uint8_t shifts, signs, mores; /* whether any row uses them                                */
    uint8_t shorts;               /* whether a type is shorter than a slot; such have no update */
    uint8_t seq_step;             /* 1: the channel counts messages, 0: packets               */
    uint8_t last_of_block;        /* XDS_LAST belongs on the block's last update              */
    uint32_t unknown_len;         /* FRAMING_FIXED: the size of every type, 0: they differ    */
    struct xdsi_slot time, key;   /* where they are the same in every type, else mask 0       */
};

XDSI_INLINE uint64_t xdsi_load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

XDSI_INLINE uint32_t xdsi_load16(const uint8_t *p, int big)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return big ? __builtin_bswap16(v) : v;
}

XDSI_INLINE uint64_t xdsi_take(const uint8_t *msg, const struct xdsi_slot *s, int big, int shifts)
{
    uint64_t v = xdsi_load64(msg + s->off);
    if (big)
        v = __builtin_bswap64(v);
    if (shifts)
        v >>= s->shift;
    return v & s->mask;
}

/* The cold way to an instrument: make it, name it. Returns its index or XDSI_NO_INSTRUMENT. */
static __attribute__((noinline, cold, unused)) uint32_t
xdsi_learn(struct xdsi_symtab *t, const struct xdsi_row *row, const uint8_t *msg, uint64_t key)
{
    uint32_t index = xdsi_symtab_add(t, key);
    if (index == XDSI_NO_INSTRUMENT || !row->symbol_len)
        return index;
    if (row->need & XDSI_NEED_DEFINE)
        xdsi_symtab_name(t, index, msg + row->symbol_off, row->symbol_len, XDS_INSTRUMENT_DEFINED);
    else if (!(t->inst[index].flags & XDS_INSTRUMENT_SYMBOL))
        xdsi_symtab_name(t, index, msg + row->symbol_off, row->symbol_len, 0);
    return index;
}

XDSI_INLINE uint32_t xdsi_instrument(struct xdsi_symtab *t, const uint8_t *known, const struct xdsi_fixed *d,
                                     const struct xdsi_row *row, const uint8_t *msg)
{
    if (!d->direct && !row->need)
        return 0;
    uint64_t key = xdsi_take(msg, d->key.mask ? &d->key : &row->slot[XDSI_KEY], d->big, 1);
    if (d->direct) {
        if (XDSI_UNLIKELY(row->need & ~known[key & 0xffff]))
            return xdsi_learn(t, row, msg, key);
        return (uint32_t)key;
    }
    uint32_t index = xdsi_symtab_find(t, key);
    if (XDSI_UNLIKELY(index == XDSI_NO_INSTRUMENT || row->need & XDSI_NEED_DEFINE))
        return xdsi_learn(t, row, msg, key);
    return index;
}

/* Write one update at u (there is room). Returns 1 when it counts, 0 when the message has none;
 * a bad value is counted in reasons. */
XDSI_INLINE unsigned xdsi_emit(struct xds_update *u, struct xds_decoder_stats *st, const struct xdsi_fixed *d,
                               const struct xdsi_row *row, const uint8_t *msg, uint32_t inst,
                               uint64_t flags_line)
{
    uint64_t kind = row->kind[msg[row->kind_off]];
    uint64_t side = row->side[msg[row->side_off]];
    uint64_t flags = row->flags[msg[row->flags_off]];
    uint64_t price = xdsi_take(msg, &row->slot[XDSI_PRICE], d->big, d->shifts);
    if (d->signs) {
        uint64_t sign = row->slot[XDSI_PRICE].sign ? (uint64_t)1 << row->slot[XDSI_PRICE].sign : 0;
        price = (price ^ sign) - sign;
    }
    u->order_id = xdsi_take(msg, &row->slot[XDSI_ORDER], d->big, d->shifts);
    u->price = (int64_t)price;
    u->qty = (int64_t)xdsi_take(msg, &row->slot[XDSI_QTY], d->big, d->shifts);
    u->ref = xdsi_take(msg, &row->slot[XDSI_REF], d->big, d->shifts) | (d->mores ? row->ref : 0);
    uint64_t tail = inst | kind << 32 | side << 40 | flags << 48 | flags_line;
    memcpy(&u->instrument, &tail, sizeof(tail));
    if (XDSI_UNLIKELY((kind | side) & XDSI_MAP_BAD)) {
        st->reasons[XDS_DECODE_BAD_VALUE]++;
        return 0;
    }
    return kind != 0 && (!row->drop_empty || u->qty != 0);
}

/* A message that no row takes: counted, indexed as unknown. */
static __attribute__((noinline, cold, unused)) void
xdsi_odd(struct xds_decoder_stats *st, const struct xdsi_fixed *d, const uint8_t *msg, uint32_t len)
{
    int known = len > d->type_off && d->index[msg[d->type_off]] != XDSI_UNKNOWN_ROW;
    st->reasons[known || len <= d->type_off ? XDS_DECODE_SHORT : XDS_DECODE_UNKNOWN_TYPE]++;
}

XDSI_INLINE void xdsi_index(struct xds_message *m, const struct xds_block *b, const uint8_t *msg,
                            uint32_t len, uint64_t seq, unsigned type)
{
    m->data = msg;
    m->rx_ns = b->rx_ns;
    m->seq = seq;
    uint64_t tail = len | (uint64_t)type << 16 | (uint64_t)b->line << 56;
    memcpy(&m->len, &tail, sizeof(tail));
}

XDSI_INLINE uint64_t xdsi_block_flags(const struct xds_block *b)
{
    uint64_t flags = b->flags & XDS_BLOCK_RECOVERED ? XDS_RECOVERED : 0;
    flags |= b->flags & XDS_BLOCK_STALE ? XDS_STALE : 0;
    return flags;
}

/* Where the next message lies. Returns its length, or -(a reason) that ends the block. */
XDSI_INLINE int xdsi_frame(const struct xdsi_fixed *d, const uint8_t **p, const uint8_t *end)
{
    size_t left = (size_t)(end - *p);
    if (d->framing == XDS_FRAMING_FIXED) {
        if (XDSI_UNLIKELY(left <= d->type_off))
            return -XDS_DECODE_TRUNCATED;
        unsigned row = d->index[(*p)[d->type_off]];
        uint32_t len = row == XDSI_UNKNOWN_ROW ? d->unknown_len : d->rows[row].len;
        if (XDSI_UNLIKELY(!len))
            return -XDS_DECODE_BAD_LENGTH;
        return XDSI_UNLIKELY(len > left) ? -XDS_DECODE_TRUNCATED : (int)len;
    }
    if (XDSI_UNLIKELY(left < 2))
        return -XDS_DECODE_TRUNCATED;
    uint32_t len = xdsi_load16(*p, d->framing == XDS_FRAMING_U16BE);
    *p += 2;
    return XDSI_UNLIKELY(len > left - 2) ? -XDS_DECODE_TRUNCATED : (int)len;
}

/* What the loop keeps in registers of the caller's sink and of the decoder's memory. */
struct xdsi_out {
    struct xds_update *updates;
    const uint8_t *known; /* of the instrument table, NULL unless indexed by key */
    uint32_t cap;
};

/* All updates of one message, written from updates[nu] on. Returns where the next one goes. */
XDSI_INLINE uint32_t xdsi_updates(struct xdsi_decoder_mem *mem, const struct xdsi_fixed *d,
                                  const struct xds_block *b, const struct xdsi_out *to,
                                  const struct xdsi_row *row, const uint8_t *msg, uint64_t seq, uint32_t nu)
{
    const uint64_t flags_line = xdsi_block_flags(b) << 48 | (uint64_t)b->line << 56;
    const uint32_t first = nu, inst = xdsi_instrument(&mem->tab, to->known, d, row, msg);
    if (XDSI_UNLIKELY(inst == XDSI_NO_INSTRUMENT)) {
        mem->stats.reasons[XDS_DECODE_NO_INSTRUMENT]++;
        return nu;
    }
    const struct xdsi_slot *time = d->time.mask ? &d->time : &row->slot[XDSI_TIME];
    const uint64_t venue_ns = xdsi_take(msg, time, d->big, 1);
    for (;;) {
        struct xds_update *u = &to->updates[nu];
        u->rx_ns = b->rx_ns;
        u->venue_ns = (int64_t)venue_ns;
        u->seq = seq;
        unsigned emitted = xdsi_emit(u, &mem->stats, d, row, msg, inst, flags_line);
        nu += emitted;
        if (!d->mores)
            return nu;
        if (!emitted && nu != first) /* the event ends with what is left of it */
            to->updates[nu - 1].flags |= u->flags & XDS_LAST;
        if (!row->more)
            return nu;
        row = &d->rows[row->more];
        if (XDSI_UNLIKELY(nu >= to->cap)) {
            mem->stats.reasons[XDS_DECODE_CAPACITY]++;
            return nu;
        }
    }
}

/* Count one block: n messages stepped over, `left` bytes untouched, reason: what ended it early. */
XDSI_INLINE void xdsi_account(struct xds_decoder_stats *st, const struct xds_block *b, uint32_t n,
                              size_t left, unsigned reason, uint32_t updates)
{
    if (!reason && left)
        reason = XDS_DECODE_TRAILING;
    else if (!reason && b->count != 0xffff && n < b->count)
        reason = XDS_DECODE_MISSING;
    if (reason)
        st->reasons[reason]++;
    st->blocks++;
    st->bytes += b->len;
    st->messages += n;
    st->updates += updates;
}

/* Decode one block of a fixed-layout venue. Returns the messages stepped over. */
XDSI_INLINE int xdsi_fixed_block(struct xdsi_decoder_mem *mem, const struct xdsi_fixed *d,
                                 const struct xds_block *in, struct xds_sink *out)
{
    struct xds_decoder_stats *st = &mem->stats;
    /* Copies, for every store to an update might be one to the caller's structs, as C sees it. */
    const struct xds_block block = *in, *const b = &block;
    const struct xdsi_out to = {out->updates, mem->tab.known, out->cap_updates};
    const uint8_t *p = b->data, *const end = b->data + b->len;
    const uint32_t announced = b->count == 0xffff ? UINT32_MAX : b->count;
    struct xds_message *const messages = out->messages;
    const uint32_t cap_messages = messages ? out->cap_messages : UINT32_MAX;
    uint32_t n = 0, nu = out->n_updates, nm = out->n_messages;
    unsigned reason = 0;

    for (; p != end && n < announced; n++) {
        int framed = xdsi_frame(d, &p, end);
        if (XDSI_UNLIKELY(framed < 0)) {
            reason = (unsigned)-framed;
            break;
        }
        if (XDSI_UNLIKELY(nu >= to.cap || nm >= cap_messages)) {
            reason = XDS_DECODE_CAPACITY;
            break;
        }
        const uint8_t *msg = p;
        const uint32_t len = (uint32_t)framed;
        const uint64_t seq = b->seq + (d->seq_step ? n : 0);
        p += len;
        unsigned type = len > d->type_off ? d->index[msg[d->type_off]] : XDSI_UNKNOWN_ROW;
        if (XDSI_UNLIKELY(type == XDSI_UNKNOWN_ROW || len < d->rows[type].len)) {
            xdsi_odd(st, d, msg, len);
            if (messages)
                xdsi_index(&messages[nm++], b, msg, len, seq, 0xffff);
            continue;
        }
        st->by_type[type]++;
        if (messages)
            xdsi_index(&messages[nm++], b, msg, len, seq, type);
        if (!d->shorts || d->rows[type].len >= sizeof(uint64_t))
            nu = xdsi_updates(mem, d, b, &to, &d->rows[type], msg, seq, nu);
    }
    if (d->last_of_block && nu != out->n_updates)
        out->updates[nu - 1].flags |= XDS_LAST;
    xdsi_account(st, b, n, (size_t)(end - p), reason, nu - out->n_updates);
    out->n_updates = nu;
    out->n_messages = nm;
    return (int)n;
}

XDSI_INLINE size_t xdsi_decoder_size(const struct xds_decoder_config *cfg, int direct)
{
    size_t table = xdsi_symtab_size(cfg, direct);
    return table ? sizeof(struct xdsi_decoder_mem) + table : 0;
}

XDSI_INLINE int xdsi_decoder_init(void *mem, const struct xds_decoder_config *cfg,
                                  const struct xds_decoder *d, int direct, unsigned scale)
{
    struct xdsi_decoder_mem *m = mem;
    if (!xdsi_symtab_size(cfg, direct))
        return XDS_ECONFIG;
    memset(m, 0, sizeof(*m));
    xdsi_symtab_init(&m->tab, m + 1, cfg, direct);
    m->tab.scale = (uint8_t)scale;
    m->tab.depth = (uint8_t)d->depth;
    m->tab.implied_depth = (uint8_t)d->implied_depth;
    return 0;
}

/* A loaded decoder (xdpstack feed build) is found by this one function. */
#ifdef XDS_PLUGIN
#define XDSI_DECODER_ENTRY(decoder)                                                                          \
    __attribute__((visibility("default"))) const struct xds_decoder *xds_decoder_entry(void);                \
    const struct xds_decoder *xds_decoder_entry(void)                                                        \
    {                                                                                                        \
        return &(decoder);                                                                                   \
    }
#else
#define XDSI_DECODER_ENTRY(decoder)
#endif

#endif
