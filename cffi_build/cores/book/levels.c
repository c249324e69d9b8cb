/* levels.c: books by price level, either addressed by price (XDS_LEVEL) or placed by the venue
 * (XDS_LEVEL_INSERT and its kin, level 1 the best). A side is of one kind from its first level
 * until it is empty; updates of the other kind are refused meanwhile.
 *
 * Placed levels keep the venue's order, for the venue's numbers count on it; one that is out of
 * price order is applied and counted (XDS_BOOK_DISORDERED). With a depth set, what an insertion
 * pushes below it leaves.
 */
#include "book.h"

static void drop(struct xds_books *b, struct ladder *l, uint32_t at)
{
    level_give(b, b->rungs[l->block + at]);
    xdsi_ladder_remove(b, l, at);
}

static int insert(struct xds_books *b, struct xds_update *u, uint32_t owner, uint32_t at, uint32_t orders)
{
    struct ladder *l = ladder_of(b, owner);
    if (b->stats.levels == b->cfg.max_levels || !xdsi_ladder_reserve(b, l)) {
        return XDS_BOOK_NO_LEVEL_ROOM;
    }
    uint32_t number = level_take(b);
    int64_t key = key_of((owner >> 1) & 1, u->price);
    b->levels[number] = (struct level){key, u->qty, 0, 0, orders, owner};
    xdsi_ladder_insert(b, l, at, key, number);
    return 0;
}

static int by_price(struct xds_books *b, struct xds_update *u, uint32_t owner)
{
    struct ladder *l = ladder_of(b, owner);
    if (u->price == XDS_NO_PRICE || u->qty < 0 || (l->count && l->by_level)) {
        return XDS_BOOK_BAD_UPDATE;
    }
    int64_t key = key_of((owner >> 1) & 1, u->price);
    uint32_t at = ladder_find(b, l, key);
    if (at < l->count && b->keys[l->block + at] == key) {
        if (!u->qty) {
            drop(b, l, at);
            return 0;
        }
        struct level *v = &b->levels[b->rungs[l->block + at]];
        v->qty = u->qty;
        v->orders = (uint32_t)u->ref;
        return 0;
    }
    return u->qty ? insert(b, u, owner, at, (uint32_t)u->ref) : XDS_BOOK_BAD_LEVEL;
}

/* The level at `at` against its neighbours: better than the one below, worse than the one above. */
static void check_order(struct xds_books *b, const struct ladder *l, uint32_t at)
{
    const int64_t *k = b->keys + l->block;
    if ((at && k[at - 1] >= k[at]) || (at + 1 < l->count && k[at + 1] <= k[at])) {
        b->stats.reasons[XDS_BOOK_DISORDERED]++;
    }
}

static int put(struct xds_books *b, struct xds_update *u, uint32_t owner)
{
    struct ladder *l = ladder_of(b, owner);
    uint32_t number = (uint32_t)u->ref, orders = (uint32_t)(u->ref >> 32);
    unsigned depth = b->books[owner >> 2].depth;
    if (u->price == XDS_NO_PRICE || u->qty <= 0) {
        return XDS_BOOK_BAD_UPDATE;
    }
    if (u->kind == XDS_LEVEL_CHANGE) {
        if (number == 0 || number > l->count) {
            return XDS_BOOK_BAD_LEVEL;
        }
        uint32_t at = l->count - number;
        struct level *v = &b->levels[b->rungs[l->block + at]];
        v->key = b->keys[l->block + at] = key_of((owner >> 1) & 1, u->price);
        v->qty = u->qty;
        v->orders = orders;
        l->best = b->keys[l->block + l->count - 1];
        check_order(b, l, at);
        return 0;
    }
    if (number == 0 || number > l->count + 1 || (depth && number > depth)) {
        return XDS_BOOK_BAD_LEVEL;
    }
    while (depth && l->count >= depth) { /* pushed below the depth; room for the new one */
        drop(b, l, 0);
    }
    int why = insert(b, u, owner, l->count + 1 - number, orders);
    if (!why) {
        l->by_level = 1;
        check_order(b, l, l->count - number);
    }
    return why;
}

static int take(struct xds_books *b, struct xds_update *u, uint32_t owner)
{
    struct ladder *l = ladder_of(b, owner);
    uint32_t number = (uint32_t)u->ref;
    if (u->kind == XDS_LEVEL_DELETE_THRU) {
        number = l->count; /* all; none is none */
    } else if (number == 0 || number > l->count) {
        return XDS_BOOK_BAD_LEVEL;
    }
    if (u->kind == XDS_LEVEL_DELETE) {
        struct level *v = &b->levels[b->rungs[l->block + l->count - number]];
        u->price = key_of((owner >> 1) & 1, v->key);
        drop(b, l, l->count - number);
        return 0;
    }
    while (number--) {
        drop(b, l, l->count - 1);
    }
    return 0;
}

int xdsi_levels_apply(struct xds_books *b, struct xds_update *u)
{
    if (u->side != XDS_BID && u->side != XDS_ASK) {
        return XDS_BOOK_BAD_UPDATE;
    }
    uint32_t book = u->instrument * 2 + (u->flags & XDS_IMPLIED ? 1 : 0);
    uint32_t owner = book << 2 | (u->side - 1u) << 1 | 1;
    const struct ladder *l = ladder_of(b, owner);
    if (u->kind == XDS_LEVEL) {
        return by_price(b, u, owner);
    }
    if (l->count && !l->by_level && u->kind <= XDS_LEVEL_DELETE_FROM) {
        return XDS_BOOK_BAD_UPDATE;
    }
    switch (u->kind) {
    case XDS_LEVEL_INSERT:
    case XDS_LEVEL_CHANGE:
        return put(b, u, owner);
    case XDS_LEVEL_DELETE:
    case XDS_LEVEL_DELETE_THRU:
    case XDS_LEVEL_DELETE_FROM:
        return take(b, u, owner);
    default:
        return XDS_BOOK_BAD_UPDATE;
    }
}
