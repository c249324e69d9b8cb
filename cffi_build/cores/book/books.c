/* books.c: the books' memory, apply over an array, clearing, stale marks, statistics.
 */
#include <errno.h>
#include <string.h>

#include "index_inl.h"

#define ALIGN 4096

struct layout {
    size_t buckets, nodes, levels, books, keys, rungs, blocks, total;
    uint64_t n_buckets, n_nodes, n_levels, n_books, entries;
};

static size_t grow(size_t *at, uint64_t count, size_t each)
{
    size_t here = *at;
    *at = (here + count * each + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    return here;
}

static int layout_of(const struct xds_books_config *c, struct layout *o)
{
    if ((c->kind != 2 && c->kind != 3) || !c->max_instruments || c->max_instruments > 1u << 24 ||
        !c->max_levels || c->max_levels > 1u << 28 ||
        (c->kind == 3 && (!c->max_orders || c->max_orders > 1u << 30))) {
        return 0;
    }
    o->n_books = c->kind == 3 ? c->max_instruments : 2ull * c->max_instruments;
    o->n_nodes = c->kind == 3 ? c->max_orders + 1ull : 0;
    o->n_levels = c->max_levels + 1ull;
    o->n_buckets = 0;
    if (c->kind == 3) {
        o->n_buckets = 2;
        while (2 * o->n_buckets < c->max_orders) {
            o->n_buckets *= 2;
        }
    }
    o->entries = 4ull * c->max_levels + 2ull * XDSI_UNIT * o->n_books;
    o->entries = (o->entries + 1023) & ~1023ull;
    size_t at = (sizeof(struct xds_books) + 63) & ~(size_t)63;
    at = (at + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    o->buckets = grow(&at, o->n_buckets, sizeof(struct bucket));
    o->nodes = grow(&at, o->n_nodes, sizeof(struct node));
    o->levels = grow(&at, o->n_levels, sizeof(struct level));
    o->books = grow(&at, o->n_books, sizeof(struct book));
    o->keys = grow(&at, o->entries, sizeof(int64_t));
    o->rungs = grow(&at, o->entries, sizeof(uint32_t));
    o->blocks = grow(&at, o->entries >> XDSI_UNIT_SHIFT, 1);
    o->total = at;
    return 1;
}

size_t xds_books_size(const struct xds_books_config *cfg)
{
    struct layout o;
    return layout_of(cfg, &o) ? o.total : 0;
}

static void forget(struct xds_books *b)
{
    memset(b->buckets, 0, b->mask ? (b->mask + 1ull) * sizeof *b->buckets : 0);
    b->node_free = b->level_free = 0;
    b->node_fresh = b->level_fresh = 1;
    b->stats.orders = b->stats.levels = 0;
    b->crossed = XDSI_ENDS;
    for (uint32_t i = 0; i < b->n_books; i++) {
        struct book *k = &b->books[i];
        for (unsigned s = 0; s < 2; s++) {
            k->side[s] = (struct ladder){.block = XDSI_NO_BLOCK};
        }
        k->crossed = XDSI_NO_BLOCK;
    }
    xdsi_ladders_reset(b);
}

int xds_books_init(void *mem, const struct xds_books_config *cfg)
{
    struct layout o;
    struct xds_books *b = mem;
    char *base = mem;
    if (!layout_of(cfg, &o)) {
        return XDS_ECONFIG;
    }
    if ((uintptr_t)mem & 63) {
        return -EINVAL;
    }
    memset(b, 0, sizeof *b);
    b->cfg = *cfg;
    b->n_books = (uint32_t)o.n_books;
    b->mask = o.n_buckets ? (uint32_t)(o.n_buckets - 1) : 0;
    b->entries = (uint32_t)o.entries;
    b->buckets = (struct bucket *)(base + o.buckets);
    b->nodes = (struct node *)(base + o.nodes);
    b->levels = (struct level *)(base + o.levels);
    b->books = (struct book *)(base + o.books);
    b->keys = (int64_t *)(base + o.keys);
    b->rungs = (uint32_t *)(base + o.rungs);
    b->blocks = (uint8_t *)(base + o.blocks);
    b->stats.memory_bytes = o.total;
    memset(b->books, 0, o.n_books * sizeof *b->books);
    memset(b->levels, 0, sizeof *b->levels); /* level 0 and node 0 are read by the look ahead */
    if (o.n_nodes) {
        memset(b->nodes, 0, sizeof *b->nodes);
    }
    forget(b);
    return 0;
}

/* Crossed is judged at the end of an event, by then perhaps over several instruments: those that
 * an update left crossed wait in a list. */
static inline void note_crossed(struct xds_books *b, uint32_t book)
{
    struct book *k = &b->books[book];
    if (k->side[0].count && k->side[1].count && k->side[0].best >= ~k->side[1].best &&
        k->crossed == XDSI_NO_BLOCK) {
        k->crossed = b->crossed;
        b->crossed = book;
    }
}

static void count_crossed(struct xds_books *b)
{
    while (b->crossed != XDSI_ENDS) {
        struct book *k = &b->books[b->crossed];
        if (k->side[0].count && k->side[1].count && k->side[0].best >= ~k->side[1].best) {
            b->stats.reasons[XDS_BOOK_CROSSED]++;
        }
        b->crossed = k->crossed;
        k->crossed = XDSI_NO_BLOCK;
    }
}

static void book_clear(struct xds_books *b, uint32_t book)
{
    for (unsigned s = 0; s < 2; s++) {
        struct ladder *l = &b->books[book].side[s];
        for (uint32_t i = 0; i < l->count; i++) {
            uint32_t number = b->rungs[l->block + i];
            if (b->cfg.kind == 3) {
                xdsi_level_forget(b, number);
            }
            level_give(b, number);
        }
        xdsi_ladder_release(b, l);
    }
}

void xds_books_clear(struct xds_books *b, uint32_t instrument)
{
    if (instrument == XDSI_ALL) {
        forget(b);
        return;
    }
    if (instrument >= b->cfg.max_instruments) {
        return;
    }
    if (b->cfg.kind == 3) {
        book_clear(b, instrument);
    } else {
        book_clear(b, 2 * instrument);
        book_clear(b, 2 * instrument + 1);
    }
}

static inline struct book *first_book(const struct xds_books *b, uint32_t instrument)
{
    return &b->books[b->cfg.kind == 3 ? instrument : 2 * instrument];
}

/* An update of a book behind a gap. An instrument that counts its own entries proves by the next number
 * that none of them was among what the gap swallowed: the book holds all of them, or a snapshot of them
 * and all since. The snapshot itself proves nothing, for it may be older than what was lost. */
static void refresh(const struct xds_books *b, struct book *k, struct xds_update *u)
{
    if (b->sequenced && !(u->flags & (XDS_STALE | XDS_SNAPSHOT)) && u->kind != XDS_CLEAR) {
        k->stale = 0;
    } else {
        u->flags |= XDS_STALE;
    }
}

static inline int apply_one(struct xds_books *b, struct xds_update *u, struct hint h)
{
    if (u->kind == XDS_CLEAR && u->instrument == XDSI_ALL) {
        forget(b);
        return 0;
    }
    if (u->instrument >= b->cfg.max_instruments) {
        return XDS_BOOK_BAD_INSTRUMENT;
    }
    struct book *k = first_book(b, u->instrument);
    if (__builtin_expect(k->stale, 0)) {
        refresh(b, k, u);
    }
    if (u->kind == XDS_TRADE || u->kind == XDS_TRADE_BREAK) {
        b->stats.trades++;
        return 0;
    }
    if (u->kind == XDS_CLEAR) {
        xds_books_clear(b, u->instrument);
        return 0;
    }
    int why;
    uint32_t book;
    if (b->cfg.kind == 3) {
        why = xdsi_orders_apply(b, u, h);
        book = u->instrument;
    } else {
        why = xdsi_levels_apply(b, u);
        book = 2 * u->instrument + (u->flags & XDS_IMPLIED ? 1 : 0);
    }
    if (!why) {
        note_crossed(b, book);
    }
    return why;
}

int xds_books_apply(struct xds_books *b, struct xds_update *u, size_t n)
{
    int refused = 0;
    struct hint hints[XDSI_WINDOW];
    hints[0] = (struct hint){XDSI_NO_BLOCK, 0, 0};
    for (size_t done = 0; done < n; done += XDSI_WINDOW) {
        size_t m = n - done < XDSI_WINDOW ? n - done : XDSI_WINDOW;
        if (b->cfg.kind == 3 && m > 1) {
            xdsi_orders_prepare(b, u + done, hints, m);
        }
        for (size_t i = done; i < done + m; i++) {
            int why = apply_one(b, &u[i], hints[i - done]);
            if (why) {
                b->stats.reasons[why]++;
                u[i].flags |= XDS_REJECTED;
                refused++;
            }
            if (u[i].flags & XDS_LAST && b->crossed != XDSI_ENDS) {
                count_crossed(b);
            }
        }
    }
    b->stats.updates += n;
    b->stats.applied += n - (size_t)refused;
    return refused;
}

void xds_books_set_stale(struct xds_books *b, uint32_t instrument, int stale)
{
    uint32_t first = instrument == XDSI_ALL ? 0 : instrument;
    uint32_t end = instrument == XDSI_ALL ? b->cfg.max_instruments : instrument + 1;
    for (uint32_t i = first; i < end && i < b->cfg.max_instruments; i++) {
        first_book(b, i)->stale = stale != 0;
    }
}

void xds_books_set_sequenced(struct xds_books *b, int sequenced)
{
    b->sequenced = sequenced != 0;
}

int xds_books_stale(const struct xds_books *b, uint32_t instrument)
{
    return instrument < b->cfg.max_instruments ? first_book(b, instrument)->stale : XDS_ECONFIG;
}

int xds_books_set_depth(struct xds_books *b, uint32_t instrument, unsigned depth, unsigned implied)
{
    if (b->cfg.kind != 2 || instrument >= b->cfg.max_instruments || depth > 0xffff || implied > 0xffff) {
        return XDS_ECONFIG;
    }
    b->books[2 * instrument].depth = (uint16_t)depth;
    b->books[2 * instrument + 1].depth = (uint16_t)implied;
    return 0;
}

void xds_books_stats(const struct xds_books *b, struct xds_books_stats *out)
{
    *out = b->stats;
}
