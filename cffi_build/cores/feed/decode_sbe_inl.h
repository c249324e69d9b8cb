/* decode_sbe_inl.h: the walker under generated SBE decoders (FIX Simple Binary Encoding 1.0, as CME
 * frames it: u16 size that counts itself, message header, root block, repeating groups).
 *
 * Rules of reading:
 *  - Little-endian only. A field is read by the eight bytes that END with it: what lies before any
 *    field of the root or of an entry is at least the message's own 8-byte header, so such a load never
 *    leaves the message, and never runs past the end of the block.
 *  - The acting version and block lengths are the message's own. Longer blocks: the rest is skipped.
 *    Fields and groups that came later than the acting version are absent (mask 0). Fields that every
 *    known version has are required: an entry too short for them is XDS_DECODE_BAD_GROUP.
 *  - An instrument's own sequence (RptSeq) is watched in every group that carries it. A jump marks the
 *    instrument stale until a snapshot as new as its last entry comes; where there is such a
 *    sequence it, and not the channel's gap flag, decides XDS_STALE, because it knows who lost what;
 *    books behind a gap take an update without it for a proof (xds_books_set_sequenced), so whatever is
 *    no proof behind a gap must carry it: a first number but 1, one that fell, one after a reset.
 *    A snapshot older than the live book is withheld, and so are entries that a snapshot already has.
 *  - The end of the venue's event may come with a message that has no updates: then XDS_LAST goes to the
 *    block's latest update. (An event whose end stands alone in a later packet has no XDS_LAST.)
 */
#ifndef XDSI_DECODE_SBE_INL_H
#define XDSI_DECODE_SBE_INL_H

#include "cores/feed/decode_inl.h"

#define XDSI_SBE_HEADER 8 /* u16 block length, template, schema, version */

struct xdsi_sbe_slot {
    uint64_t mask; /* 0: absent                                           */
    uint64_t null; /* after sign extension; read as `instead`             */
    uint64_t instead;
    uint16_t end; /* offset behind the field                             */
    uint16_t since;
    uint8_t shift; /* 64 - bits                                           */
    uint8_t is_signed;
    uint8_t has_null;
    uint8_t pad;
};

struct xdsi_sbe_map {
    const uint8_t *table;
    uint16_t off;
    uint16_t pad[3];
};

/* What entries of a group (or a root block) become. */
struct xdsi_sbe_rule {
    struct xdsi_sbe_slot key, rpt, price, qty, order, ref, level, orders;
    struct xdsi_sbe_map kind, side, flags, over; /* over: kind instead, where not 0          */
    uint16_t required;   /* bytes of the fields that every known version has                 */
    uint16_t full;       /* bytes of all fields                                              */
    uint16_t since;      /* the version that has all fields                                  */
    uint8_t scale;       /* of price                                                         */
    uint8_t emits;       /* 0: only the instrument's sequence is watched                     */
    uint8_t key_in_root; /* snapshots: the root's instrument and sequence                    */
    uint8_t drop_empty;
};

struct xdsi_sbe_group {
    const struct xdsi_sbe_rule *rule; /* NULL: step over                                     */
    uint16_t since;
    uint8_t dim_size, len_off, count_off, count_size; /* the length is always u16            */
};

struct xdsi_sbe_define {
    struct xdsi_sbe_slot key, depth;
    uint16_t symbol_off, symbol_len, where_off, where_len;
    uint8_t where[2][8]; /* the depth is of entries with this value: outright, implied */
    int depth_group;     /* -1: none                                         */
};

enum xdsi_sbe_what { XDSI_SBE_PLAIN = 0, XDSI_SBE_SNAPSHOT = 1, XDSI_SBE_RESET = 2 };

struct xdsi_sbe_template {
    const struct xdsi_sbe_group *groups;
    const struct xdsi_sbe_define *define;
    struct xdsi_sbe_slot time, event, key, rpt; /* of the root                              */
    uint16_t n_groups;
    uint8_t what; /* enum xdsi_sbe_what */
};

struct xdsi_sbe {
    const struct xdsi_sbe_template *templates;
    const uint8_t *index; /* by template id, XDSI_UNKNOWN_ROW                                  */
    uint32_t n_index, schema_id, first_version;
    uint64_t event_mask; /* of the root's event field: the event ends                          */
};

/* Everything that one message's walk shares. */
struct xdsi_sbe_walk {
    struct xdsi_decoder_mem *mem;
    const struct xds_block *b;
    struct xds_sink *out;
    uint64_t venue_ns, flags; /* flags: of the block and the template, in an update's byte   */
    uint64_t last_key;
    uint32_t inst; /* of last_key, or the root's                                  */
    uint32_t version;
};

XDSI_INLINE uint64_t xdsi_sbe_take(const uint8_t *p, const struct xdsi_sbe_slot *s)
{
    uint64_t v = xdsi_load64(p + s->end - sizeof(v));
    v = s->is_signed ? (uint64_t)((int64_t)v >> s->shift) : v >> s->shift;
    if (s->has_null && v == s->null)
        v = s->instead;
    return v & s->mask;
}

/* A field of the root: absent when the acting block or version lacks it. */
XDSI_INLINE uint64_t xdsi_sbe_root(const uint8_t *root, uint32_t len, uint32_t version,
                                   const struct xdsi_sbe_slot *s)
{
    return s->end <= len && s->since <= version ? xdsi_sbe_take(root, s) : 0;
}

/* A rule for a shorter or older block: what is not there gets mask 0. */
static __attribute__((noinline, cold, unused)) void xdsi_sbe_narrow(struct xdsi_sbe_rule *r, uint32_t len,
                                                                    uint32_t version)
{
    struct xdsi_sbe_slot *slots[] = {&r->rpt, &r->price, &r->qty, &r->order, &r->ref, &r->level, &r->orders};
    for (unsigned i = 0; i < sizeof(slots) / sizeof(slots[0]); i++)
        if (slots[i]->end > len || slots[i]->since > version)
            *slots[i] = (struct xdsi_sbe_slot){0};
}

static __attribute__((noinline, cold, unused)) uint32_t xdsi_sbe_learn(struct xdsi_symtab *t, uint64_t key)
{
    return xdsi_symtab_add(t, key);
}

XDSI_INLINE uint32_t xdsi_sbe_instrument(struct xdsi_symtab *t, uint64_t key)
{
    uint32_t inst = xdsi_symtab_find(t, key);
    return XDSI_LIKELY(inst != XDSI_NO_INSTRUMENT) ? inst : xdsi_sbe_learn(t, key);
}

/* Prices of one instrument go out in one scale, the first that it was seen with. Returns 0 when
 * the price cannot be said in it. */
static __attribute__((noinline, cold, unused)) int xdsi_sbe_rescale(struct xdsi_symtab *t, uint32_t inst,
                                                                    unsigned scale, uint64_t *price)
{
    struct xdsi_inst_state *s = &t->state[inst];
    if (!(s->flags & XDSI_INST_PRICED)) {
        s->flags |= XDSI_INST_PRICED;
        s->scale = t->inst[inst].scale = (uint8_t)scale;
        return 1;
    }
    int64_t v = (int64_t)*price;
    if (v == XDS_NO_PRICE)
        return 1;
    for (unsigned i = scale; i < s->scale; i++)
        if (__builtin_mul_overflow(v, 10, &v))
            return 0;
    for (unsigned i = s->scale; i < scale; i++, v /= 10)
        if (v % 10)
            return 0;
    *price = (uint64_t)v;
    return 1;
}

/* One step of an instrument's own sequence. Returns 0 when a snapshot already holds this entry. */
XDSI_INLINE int xdsi_sbe_step(struct xdsi_decoder_mem *mem, struct xdsi_inst_state *s, uint32_t rpt,
                              uint64_t flags)
{
    const unsigned missed = flags & XDS_STALE && rpt != 1 ? XDSI_INST_STALE : 0; /* where it began unseen */
    unsigned now = s->flags;
    if (XDSI_LIKELY(now & XDSI_INST_RPT && rpt == s->rpt_seq + 1)) {
        if (XDSI_UNLIKELY(now & XDSI_INST_ANEW)) /* by chance: the numbers may be another run's */
            now |= missed;
        now &= ~(unsigned)(XDSI_INST_SNAPSHOT | XDSI_INST_ANEW);
    } else if (!(now & XDSI_INST_RPT)) {
        now = (now & ~(unsigned)XDSI_INST_ANEW) | XDSI_INST_RPT | missed;
    } else if (rpt > s->rpt_seq) {
        mem->stats.instrument_gaps++;
        now = (now & ~(unsigned)(XDSI_INST_SNAPSHOT | XDSI_INST_ANEW)) | XDSI_INST_STALE;
    } else if (now & XDSI_INST_SNAPSHOT) {
        mem->stats.superseded++;
        return 0;
    } else if (now & XDSI_INST_ANEW) {
        now = (now & ~(unsigned)(XDSI_INST_STALE | XDSI_INST_ANEW)) | missed;
    } else if (flags & XDS_STALE) {
        now |= XDSI_INST_STALE; /* it fell for no reason that is known: nothing went on from anything */
    }
    s->flags = (uint8_t)now;
    s->rpt_seq = rpt;
    return 1;
}

/* One entry. The caller has checked that `required` bytes lie at e and that there is room. */
XDSI_INLINE void xdsi_sbe_entry(struct xdsi_sbe_walk *w, const struct xdsi_sbe_rule *r, const uint8_t *e)
{
    struct xdsi_decoder_mem *mem = w->mem;
    uint64_t flags = w->flags;
    if (!r->key_in_root) {
        uint64_t key = xdsi_sbe_take(e, &r->key);
        if (key != w->last_key || w->inst == XDSI_NO_INSTRUMENT) {
            w->inst = xdsi_sbe_instrument(&mem->tab, key);
            w->last_key = key;
        }
        if (XDSI_UNLIKELY(w->inst == XDSI_NO_INSTRUMENT)) {
            mem->stats.reasons[XDS_DECODE_NO_INSTRUMENT]++;
            return;
        }
        struct xdsi_inst_state *s = &mem->tab.state[w->inst];
        if (r->rpt.mask) {
            if (!xdsi_sbe_step(mem, s, (uint32_t)xdsi_sbe_take(e, &r->rpt), flags))
                return;
            flags = (flags & ~(uint64_t)XDS_STALE) | (s->flags & XDSI_INST_STALE ? XDS_STALE : 0);
        }
    }
    if (!r->emits)
        return;
    uint64_t kind = r->kind.table[e[r->kind.off]], over = r->over.table[e[r->over.off]];
    uint64_t side = r->side.table[e[r->side.off]];
    kind = over ? over & ~(uint64_t)XDSI_MAP_SKIP : kind;
    if (XDSI_UNLIKELY((kind | side) & XDSI_MAP_BAD)) {
        mem->stats.reasons[XDS_DECODE_BAD_VALUE]++;
        return;
    }
    uint64_t price = xdsi_sbe_take(e, &r->price), qty = xdsi_sbe_take(e, &r->qty);
    if (!kind || (r->drop_empty && !qty))
        return;
    struct xdsi_inst_state *s = &mem->tab.state[w->inst];
    if (XDSI_UNLIKELY(r->price.mask && (s->scale != r->scale || !(s->flags & XDSI_INST_PRICED)))) {
        if (!xdsi_sbe_rescale(&mem->tab, w->inst, r->scale, &price)) {
            mem->stats.reasons[XDS_DECODE_BAD_VALUE]++;
            return;
        }
    }
    struct xds_update *u = &w->out->updates[w->out->n_updates++];
    u->rx_ns = w->b->rx_ns;
    u->venue_ns = (int64_t)w->venue_ns;
    u->seq = w->b->seq;
    u->order_id = xdsi_sbe_take(e, &r->order);
    u->price = (int64_t)price;
    u->qty = (int64_t)qty;
    u->ref = xdsi_sbe_take(e, &r->ref) | xdsi_sbe_take(e, &r->level) | xdsi_sbe_take(e, &r->orders) << 32;
    flags |= r->flags.table[e[r->flags.off]];
    uint64_t tail = w->inst | kind << 32 | side << 40 | flags << 48 | (uint64_t)w->b->line << 56;
    memcpy(&u->instrument, &tail, sizeof(tail));
}

/* A CLEAR: of one instrument before its snapshot, of all after a channel reset. */
static __attribute__((noinline, unused)) void xdsi_sbe_clear(struct xdsi_sbe_walk *w, uint32_t inst)
{
    if (w->out->n_updates >= w->out->cap_updates) {
        w->mem->stats.reasons[XDS_DECODE_CAPACITY]++;
        return;
    }
    struct xds_update *u = &w->out->updates[w->out->n_updates++];
    *u = (struct xds_update){.rx_ns = w->b->rx_ns,
                             .venue_ns = (int64_t)w->venue_ns,
                             .seq = w->b->seq,
                             .instrument = inst,
                             .kind = XDS_CLEAR,
                             .flags = (uint8_t)w->flags,
                             .line = w->b->line};
}

/* The entries of one group: n of len bytes at e, all inside the message. */
XDSI_INLINE void xdsi_sbe_entries(struct xdsi_sbe_walk *w, const struct xdsi_sbe_rule *r, const uint8_t *e,
                                  uint32_t n, uint32_t len)
{
    struct xdsi_sbe_rule narrow;
    if (XDSI_UNLIKELY(len < r->full || w->version < r->since)) {
        if (len < r->required) {
            w->mem->stats.reasons[XDS_DECODE_BAD_GROUP] += n != 0;
            return;
        }
        narrow = *r;
        xdsi_sbe_narrow(&narrow, len, w->version);
        r = &narrow;
    }
    for (; n; n--, e += len) {
        if (XDSI_UNLIKELY(w->out->n_updates >= w->out->cap_updates)) {
            w->mem->stats.reasons[XDS_DECODE_CAPACITY]++;
            return;
        }
        xdsi_sbe_entry(w, r, e);
    }
}

/* Begin a snapshot of the root's instrument. Returns 0 when the book is newer than it. */
static __attribute__((noinline, unused)) int xdsi_sbe_snapshot(struct xdsi_sbe_walk *w,
                                                               const struct xdsi_sbe_template *t,
                                                               const uint8_t *root, uint32_t len)
{
    if (t->key.end > len || t->rpt.end > len) {
        w->mem->stats.reasons[XDS_DECODE_BAD_GROUP]++;
        return 0;
    }
    uint32_t rpt = (uint32_t)xdsi_sbe_take(root, &t->rpt);
    w->inst = xdsi_sbe_instrument(&w->mem->tab, xdsi_sbe_take(root, &t->key));
    if (w->inst == XDSI_NO_INSTRUMENT) {
        w->mem->stats.reasons[XDS_DECODE_NO_INSTRUMENT]++;
        return 0;
    }
    struct xdsi_inst_state *s = &w->mem->tab.state[w->inst];
    if (s->flags & XDSI_INST_RPT && rpt < s->rpt_seq) {
        w->mem->stats.superseded++;
        return 0;
    }
    s->rpt_seq = rpt;
    s->flags =
        (uint8_t)((s->flags & ~(XDSI_INST_STALE | XDSI_INST_ANEW)) | XDSI_INST_RPT | XDSI_INST_SNAPSHOT);
    w->flags = (w->flags & ~(uint64_t)XDS_STALE) | XDS_SNAPSHOT;
    xdsi_sbe_clear(w, w->inst);
    return 1;
}

/* An instrument definition: symbol and depth. Groups are walked again, this is rare. */
static __attribute__((noinline, cold, unused)) void
xdsi_sbe_define(struct xdsi_sbe_walk *w, const struct xdsi_sbe_define *d, const uint8_t *root, uint32_t len)
{
    if (d->key.end > len || (uint32_t)(d->symbol_off + d->symbol_len) > len)
        return;
    uint32_t inst = xdsi_sbe_instrument(&w->mem->tab, xdsi_sbe_take(root, &d->key));
    if (inst == XDSI_NO_INSTRUMENT) {
        w->mem->stats.reasons[XDS_DECODE_NO_INSTRUMENT]++;
        return;
    }
    xdsi_symtab_name(&w->mem->tab, inst, root + d->symbol_off, d->symbol_len, XDS_INSTRUMENT_DEFINED);
    w->inst = inst;
}

static __attribute__((noinline, cold, unused)) void xdsi_sbe_depth(struct xdsi_sbe_walk *w,
                                                                   const struct xdsi_sbe_define *d,
                                                                   const uint8_t *e, uint32_t n, uint32_t len)
{
    if (d->depth.end > len || (uint32_t)(d->where_off + d->where_len) > len || w->inst == XDSI_NO_INSTRUMENT)
        return;
    struct xds_instrument *inst = &w->mem->tab.inst[w->inst];
    w->mem->tab.version++;
    for (; n; n--, e += len) {
        uint8_t depth = (uint8_t)xdsi_sbe_take(e, &d->depth);
        if (!memcmp(e + d->where_off, d->where[0], d->where_len))
            inst->depth = depth;
        else if (!memcmp(e + d->where_off, d->where[1], d->where_len))
            inst->implied_depth = depth;
    }
}

/* Walk the groups behind the root. p..end is what is left of the message. */
XDSI_INLINE void xdsi_sbe_groups(struct xdsi_sbe_walk *w, const struct xdsi_sbe_template *t, const uint8_t *p,
                                 const uint8_t *end)
{
    for (unsigned g = 0; g < t->n_groups; g++) {
        const struct xdsi_sbe_group *group = &t->groups[g];
        if (group->since > w->version)
            continue;
        size_t left = (size_t)(end - p);
        if (XDSI_UNLIKELY(left < group->dim_size)) {
            w->mem->stats.reasons[XDS_DECODE_BAD_GROUP]++;
            return;
        }
        uint32_t len = xdsi_load16(p + group->len_off, 0);
        uint32_t n = group->count_size == 1 ? p[group->count_off] : xdsi_load16(p + group->count_off, 0);
        p += group->dim_size;
        if (XDSI_UNLIKELY((uint64_t)n * len > left - group->dim_size)) {
            w->mem->stats.reasons[XDS_DECODE_BAD_GROUP]++;
            return;
        }
        if (group->rule)
            xdsi_sbe_entries(w, group->rule, p, n, len);
        if (XDSI_UNLIKELY(t->define && t->define->depth_group == (int)g))
            xdsi_sbe_depth(w, t->define, p, n, len);
        p += (size_t)n * len;
    }
}

/* One message whose root block is inside it. */
XDSI_INLINE void xdsi_sbe_message(struct xdsi_sbe_walk *w, const struct xdsi_sbe *d,
                                  const struct xdsi_sbe_template *t, const uint8_t *root, uint32_t len,
                                  const uint8_t *end, uint32_t first_update)
{
    const uint64_t block_flags = xdsi_block_flags(w->b);
    w->venue_ns = xdsi_sbe_root(root, len, w->version, &t->time);
    w->flags = block_flags;
    w->inst = XDSI_NO_INSTRUMENT;
    uint32_t before = w->out->n_updates;
    int ends = (xdsi_sbe_root(root, len, w->version, &t->event) & d->event_mask) != 0;
    if (XDSI_UNLIKELY(t->what == XDSI_SBE_RESET)) {
        xdsi_symtab_anew(&w->mem->tab);
        xdsi_sbe_clear(w, XDS_ALL_INSTRUMENTS);
        ends = 1;
    }
    if (XDSI_UNLIKELY(t->define))
        xdsi_sbe_define(w, t->define, root, len);
    if (XDSI_UNLIKELY(t->what == XDSI_SBE_SNAPSHOT)) {
        if (!xdsi_sbe_snapshot(w, t, root, len))
            return;
        ends = 1;
    }
    xdsi_sbe_groups(w, t, root + len, end);
    uint32_t after = w->out->n_updates;
    if (ends && after > (t->what == XDSI_SBE_PLAIN ? first_update : before))
        w->out->updates[after - 1].flags |= XDS_LAST;
}

/* Decode one block of a CME packet. Returns the messages stepped over. */
XDSI_INLINE int xdsi_sbe_block(struct xdsi_decoder_mem *mem, const struct xdsi_sbe *d,
                               const struct xds_block *b, struct xds_sink *out)
{
    struct xds_decoder_stats *st = &mem->stats;
    struct xdsi_sbe_walk w = {.mem = mem, .b = b, .out = out};
    const uint8_t *p = b->data, *const end = b->data + b->len;
    const uint32_t announced = b->count == 0xffff ? UINT32_MAX : b->count, first = out->n_updates;
    uint32_t n = 0;
    unsigned reason = 0;

    if (XDSI_UNLIKELY(b->flags & XDS_BLOCK_RESTART))
        xdsi_symtab_anew(&mem->tab);
    for (; p != end && n < announced; n++) {
        size_t left = (size_t)(end - p);
        uint32_t size = left < 2 ? 0 : xdsi_load16(p, 0);
        if (XDSI_UNLIKELY(left < 2 || size < 2 || size > left)) {
            reason = left < 2 || size > left ? XDS_DECODE_TRUNCATED : XDS_DECODE_BAD_LENGTH;
            break;
        }
        if (XDSI_UNLIKELY(out->messages && out->n_messages >= out->cap_messages)) {
            reason = XDS_DECODE_CAPACITY;
            break;
        }
        const uint8_t *msg = p + 2;
        uint32_t len = size - 2, type = XDSI_UNKNOWN_ROW, block = 0;
        p += size;
        if (XDSI_UNLIKELY(len < XDSI_SBE_HEADER)) {
            st->reasons[XDS_DECODE_SHORT]++;
        } else {
            uint32_t id = xdsi_load16(msg + 2, 0);
            w.version = xdsi_load16(msg + 6, 0);
            block = xdsi_load16(msg, 0);
            if (XDSI_UNLIKELY(xdsi_load16(msg + 4, 0) != d->schema_id || w.version < d->first_version))
                st->reasons[XDS_DECODE_UNSUPPORTED]++;
            else if (XDSI_UNLIKELY(id >= d->n_index || d->index[id] == XDSI_UNKNOWN_ROW))
                st->reasons[XDS_DECODE_UNKNOWN_TYPE]++;
            else if (XDSI_UNLIKELY(block > len - XDSI_SBE_HEADER))
                st->reasons[XDS_DECODE_SHORT]++;
            else
                type = d->index[id];
        }
        if (out->messages)
            xdsi_index(&out->messages[out->n_messages++], b, msg, len, b->seq,
                       type == XDSI_UNKNOWN_ROW ? 0xffff : type);
        if (XDSI_UNLIKELY(type == XDSI_UNKNOWN_ROW))
            continue;
        st->by_type[type]++;
        xdsi_sbe_message(&w, d, &d->templates[type], msg + XDSI_SBE_HEADER, block, p, first);
    }
    xdsi_account(st, b, n, (size_t)(end - p), reason, out->n_updates - first);
    return (int)n;
}

#endif
