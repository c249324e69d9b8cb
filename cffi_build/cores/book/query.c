/* query.c: what readers ask: levels, orders, one order, checksums. Nothing here changes a book.
 */
#include <string.h>

#include "book.h"

static const struct book *books_of(const struct xds_books *b, uint32_t instrument, unsigned *count)
{
    *count = b->cfg.kind == 3 ? 1 : 2;
    return &b->books[(uint64_t)instrument * *count];
}

static struct xds_level level_out(const struct xds_books *b, const struct ladder *l, unsigned side,
                                  uint32_t i, unsigned implied)
{
    const struct level *v = &b->levels[b->rungs[l->block + l->count - 1 - i]];
    return (struct xds_level){key_of(side, v->key), v->qty, v->orders, implied ? XDS_IMPLIED : 0};
}

/* Outright levels, and for L2 the implied ones merged in by price; at one price outright first. */
int xds_books_levels(const struct xds_books *b, uint32_t instrument, int side, struct xds_level *out,
                     unsigned cap)
{
    unsigned count;
    if (instrument >= b->cfg.max_instruments || (side != XDS_BID && side != XDS_ASK)) {
        return XDS_ECONFIG;
    }
    unsigned s = (unsigned)side - 1;
    const struct book *k = books_of(b, instrument, &count);
    const struct ladder *l = &k[0].side[s], *m = count == 2 ? &k[1].side[s] : NULL;
    uint32_t i = 0, j = 0;
    unsigned n = 0;
    while (n < cap && (i < l->count || (m && j < m->count))) {
        int implied =
            i == l->count || (m && j < m->count &&
                              b->keys[m->block + m->count - 1 - j] > b->keys[l->block + l->count - 1 - i]);
        out[n++] = implied ? level_out(b, m, s, j++, 1) : level_out(b, l, s, i++, 0);
    }
    return (int)n;
}

int xds_books_top(const struct xds_books *b, uint32_t first, struct xds_top *out, unsigned cap)
{
    unsigned n = 0;
    for (uint32_t i = first; i < b->cfg.max_instruments && n < cap; i++, n++) {
        struct xds_level bid = {XDS_NO_PRICE, 0, 0, 0}, ask = bid;
        xds_books_levels(b, i, XDS_BID, &bid, 1);
        xds_books_levels(b, i, XDS_ASK, &ask, 1);
        out[n] = (struct xds_top){bid.price,  bid.qty,    ask.price, ask.qty,
                                  bid.orders, ask.orders, i,         (uint32_t)xds_books_stale(b, i)};
    }
    return (int)n;
}

int xds_books_orders(const struct xds_books *b, uint32_t instrument, int side, struct xds_order *out,
                     unsigned cap)
{
    if (b->cfg.kind != 3 || instrument >= b->cfg.max_instruments || (side != XDS_BID && side != XDS_ASK)) {
        return XDS_ECONFIG;
    }
    const struct ladder *l = &b->books[instrument].side[side - 1];
    unsigned n = 0;
    for (uint32_t i = l->count; i-- && n < cap;) {
        const struct level *v = &b->levels[b->rungs[l->block + i]];
        uint64_t ahead = 0;
        for (uint32_t at = v->head; at && n < cap; at = b->nodes[at].next) {
            const struct node *o = &b->nodes[at];
            out[n++] = (struct xds_order){
                o->id, key_of((unsigned)side - 1, v->key), o->qty, instrument, (uint8_t)side, {0}, ahead};
            ahead += (uint64_t)o->qty;
        }
    }
    return (int)n;
}

int xds_books_order(const struct xds_books *b, uint64_t order_id, struct xds_order *out)
{
    uint32_t n = b->cfg.kind == 3 ? xdsi_index_find(b, order_id) : 0;
    if (!n) {
        return 0;
    }
    const struct node *o = &b->nodes[n];
    const struct level *v = &b->levels[o->level];
    unsigned side = (v->owner >> 1) & 1;
    uint64_t ahead = 0;
    for (uint32_t at = o->prev; at; at = b->nodes[at].prev) {
        ahead += (uint64_t)b->nodes[at].qty;
    }
    *out = (struct xds_order){order_id, key_of(side, v->key), o->qty, v->owner >> 2, (uint8_t)(side + 1), {0},
                              ahead};
    return 1;
}

#define FNV_START 0xcbf29ce484222325u
#define FNV_PRIME 0x100000001b3u

static uint64_t fnv(uint64_t h, uint64_t word, unsigned bytes)
{
    while (bytes--) { /* little-endian, whatever the host */
        h = (h ^ (word & 0xff)) * FNV_PRIME;
        word >>= 8;
    }
    return h;
}

static uint64_t fnv_ladder(const struct xds_books *b, const struct ladder *l, unsigned side, uint64_t h)
{
    h = fnv(h, l->count, 4);
    for (uint32_t i = l->count; i--;) {
        const struct level *v = &b->levels[b->rungs[l->block + i]];
        h = fnv(h, (uint64_t)key_of(side, v->key), 8);
        h = fnv(h, (uint64_t)v->qty, 8);
        h = fnv(h, v->orders, 4);
        for (uint32_t at = v->head; b->cfg.kind == 3 && at; at = b->nodes[at].next) {
            h = fnv(h, b->nodes[at].id, 8);
            h = fnv(h, (uint64_t)b->nodes[at].qty, 8);
        }
    }
    return h;
}

uint64_t xds_books_checksum(const struct xds_books *b, uint32_t instrument)
{
    unsigned count;
    uint64_t h = FNV_START;
    if (instrument >= b->cfg.max_instruments) {
        return 0;
    }
    const struct book *k = books_of(b, instrument, &count);
    for (unsigned i = 0; i < count; i++) {
        h = fnv_ladder(b, &k[i].side[0], 0, h);
        h = fnv_ladder(b, &k[i].side[1], 1, h);
    }
    return h;
}

uint64_t xds_books_checksum_all(const struct xds_books *b)
{
    uint64_t h = FNV_START;
    for (uint32_t i = 0; i < b->cfg.max_instruments; i++) {
        unsigned count;
        const struct book *k = books_of(b, i, &count);
        uint32_t levels = k[0].side[0].count | k[0].side[1].count;
        if (count == 2) {
            levels |= k[1].side[0].count | k[1].side[1].count;
        }
        if (levels) {
            h = fnv(fnv(h, i, 4), xds_books_checksum(b, i), 8);
        }
    }
    return h;
}
