/* orders.c: books by order. Every update is checked whole before anything changes, so a refusal
 * leaves the book as it was.
 */
#include "book.h"

#define NONE UINT32_MAX

static uint32_t slot_find(const struct xds_books *b, uint64_t id)
{
    uint32_t tag = tag_of(id);
    for (uint32_t at = tag & b->mask;; at = (at + 1) & b->mask) {
        struct slot s = b->slots[at];
        if (!s.node) {
            return NONE;
        }
        if (s.tag == tag && b->nodes[s.node].id == id) {
            return at;
        }
    }
}

uint32_t xdsi_index_find(const struct xds_books *b, uint64_t id)
{
    uint32_t at = slot_find(b, id);
    return at == NONE ? 0 : b->slots[at].node;
}

static void slot_put(struct xds_books *b, uint64_t id, uint32_t node)
{
    uint32_t tag = tag_of(id), at = tag & b->mask;
    while (b->slots[at].node) {
        at = (at + 1) & b->mask;
    }
    b->slots[at] = (struct slot){tag, node};
}

/* Close the hole at `at`: what probed past it moves back. The tag alone tells each one's home. */
static void slot_drop(struct xds_books *b, uint32_t at)
{
    for (uint32_t i = (at + 1) & b->mask; b->slots[i].node; i = (i + 1) & b->mask) {
        uint32_t home = b->slots[i].tag & b->mask;
        if (((i - home) & b->mask) >= ((i - at) & b->mask)) {
            b->slots[at] = b->slots[i];
            at = i;
        }
    }
    b->slots[at].node = 0;
}

static uint32_t node_take(struct xds_books *b)
{
    uint32_t n = b->node_free;
    if (n) {
        b->node_free = b->nodes[n].next;
    } else {
        n = b->node_fresh++;
    }
    if (++b->stats.orders > b->stats.orders_max) {
        b->stats.orders_max = b->stats.orders;
    }
    return n;
}

static void node_give(struct xds_books *b, uint32_t n)
{
    b->nodes[n].level = 0;
    b->nodes[n].next = b->node_free;
    b->node_free = n;
    b->stats.orders--;
}

/* Where an order of this price goes, with room made for it. */
struct place {
    struct ladder *ladder;
    uint32_t at;
    uint32_t level; /* 0: to be made */
};

static int place_find(struct xds_books *b, uint32_t book, unsigned side, int64_t price, int64_t qty,
                      struct place *p)
{
    struct ladder *l = &b->books[book].side[side];
    int64_t key = key_of(side, price);
    p->ladder = l;
    p->at = ladder_find(b, l, key);
    p->level = 0;
    if (p->at < l->count && b->keys[l->block + p->at] == key) {
        p->level = b->rungs[l->block + p->at];
        return qty > INT64_MAX - b->levels[p->level].qty ? XDS_BOOK_BAD_UPDATE : 0;
    }
    if (b->stats.levels == b->cfg.max_levels || !xdsi_ladder_reserve(b, l)) {
        return XDS_BOOK_NO_LEVEL_ROOM;
    }
    return 0;
}

/* Put node n, its id set, last in the queue at p. */
static void enqueue(struct xds_books *b, uint32_t book, unsigned side, int64_t price, int64_t qty, uint32_t n,
                    struct place *p)
{
    struct node *o = &b->nodes[n];
    uint32_t number = p->level;
    o->qty = qty;
    o->next = 0;
    if (!number) {
        number = level_take(b);
        int64_t key = key_of(side, price);
        b->levels[number] = (struct level){key, qty, n, n, 1, book << 2 | side << 1 | 1};
        xdsi_ladder_insert(b, p->ladder, p->at, key, number);
        o->prev = 0;
    } else {
        struct level *v = &b->levels[number];
        o->prev = v->tail;
        b->nodes[v->tail].next = n;
        v->tail = n;
        v->qty += qty;
        v->orders++;
    }
    o->level = number;
}

static void dequeue(struct xds_books *b, uint32_t n)
{
    struct node *o = &b->nodes[n];
    struct level *v = &b->levels[o->level];
    if (!--v->orders) {
        struct ladder *l = ladder_of(b, v->owner);
        xdsi_ladder_remove(b, l, ladder_find(b, l, v->key));
        level_give(b, o->level);
        return;
    }
    v->qty -= o->qty;
    if (o->prev) {
        b->nodes[o->prev].next = o->next;
    } else {
        v->head = o->next;
    }
    if (o->next) {
        b->nodes[o->next].prev = o->prev;
    } else {
        v->tail = o->prev;
    }
}

void xdsi_level_forget(struct xds_books *b, uint32_t level)
{
    for (uint32_t n = b->levels[level].head, next; n; n = next) {
        next = b->nodes[n].next;
        slot_drop(b, slot_find(b, b->nodes[n].id));
        node_give(b, n);
    }
}

static int add(struct xds_books *b, struct xds_update *u)
{
    struct place p;
    if ((u->side != XDS_BID && u->side != XDS_ASK) || u->price == XDS_NO_PRICE || u->qty <= 0) {
        return XDS_BOOK_BAD_UPDATE;
    }
    if (slot_find(b, u->order_id) != NONE) {
        return XDS_BOOK_DUPLICATE_ORDER;
    }
    if (b->stats.orders == b->cfg.max_orders) {
        return XDS_BOOK_NO_ORDER_ROOM;
    }
    unsigned side = u->side - 1u;
    int why = place_find(b, u->instrument, side, u->price, u->qty, &p);
    if (why) {
        return why;
    }
    uint32_t n = node_take(b);
    b->nodes[n].id = u->order_id;
    slot_put(b, u->order_id, n);
    enqueue(b, u->instrument, side, u->price, u->qty, n, &p);
    return 0;
}

/* EXECUTE, EXECUTE_AT, REDUCE and DELETE: quantity leaves, and the order with its last. */
static int take_qty(struct xds_books *b, struct xds_update *u)
{
    uint32_t at = slot_find(b, u->order_id);
    if (at == NONE) {
        return XDS_BOOK_UNKNOWN_ORDER;
    }
    uint32_t n = b->slots[at].node;
    struct node *o = &b->nodes[n];
    struct level *v = &b->levels[o->level];
    if (v->owner >> 2 != u->instrument) {
        return XDS_BOOK_BAD_INSTRUMENT;
    }
    if (u->kind == XDS_DELETE) {
        u->qty = o->qty; /* what left the book */
    } else if (u->qty <= 0 || (u->kind == XDS_EXECUTE_AT && u->price == XDS_NO_PRICE)) {
        return XDS_BOOK_BAD_UPDATE;
    } else if (u->qty > o->qty) {
        return XDS_BOOK_EXCESS_QTY;
    }
    unsigned side = (v->owner >> 1) & 1;
    u->side = (uint8_t)(side + 1);
    if (u->kind != XDS_EXECUTE_AT) {
        u->price = key_of(side, v->key);
    }
    if (u->qty < o->qty) {
        o->qty -= u->qty;
        v->qty -= u->qty;
        return 0;
    }
    slot_drop(b, at);
    dequeue(b, n);
    node_give(b, n);
    return 0;
}

/* REPLACE takes a new id and the back of a queue; MODIFY keeps the id, and its place if the venue
 * says so and the price stays. */
static int move(struct xds_books *b, struct xds_update *u)
{
    struct place p;
    uint64_t old = u->kind == XDS_REPLACE ? u->ref : u->order_id;
    if (u->price == XDS_NO_PRICE || u->qty <= 0) {
        return XDS_BOOK_BAD_UPDATE;
    }
    uint32_t at = slot_find(b, old);
    if (at == NONE) {
        return XDS_BOOK_UNKNOWN_ORDER;
    }
    uint32_t n = b->slots[at].node;
    struct node *o = &b->nodes[n];
    struct level *v = &b->levels[o->level];
    if (v->owner >> 2 != u->instrument) {
        return XDS_BOOK_BAD_INSTRUMENT;
    }
    if (u->order_id != old && slot_find(b, u->order_id) != NONE) {
        return XDS_BOOK_DUPLICATE_ORDER;
    }
    unsigned side = (v->owner >> 1) & 1;
    if (u->kind == XDS_MODIFY && (u->flags & XDS_KEEPS_PRIORITY) && v->key == key_of(side, u->price)) {
        if (u->qty > INT64_MAX - (v->qty - o->qty)) {
            return XDS_BOOK_BAD_UPDATE;
        }
        u->side = (uint8_t)(side + 1);
        v->qty += u->qty - o->qty;
        o->qty = u->qty;
        return 0;
    }
    int why = place_find(b, u->instrument, side, u->price, u->qty, &p);
    if (why) {
        return why;
    }
    u->side = (uint8_t)(side + 1);
    if (u->order_id != old) {
        slot_drop(b, at);
        slot_put(b, u->order_id, n);
        o->id = u->order_id;
    }
    uint32_t levels = (uint32_t)b->stats.levels;
    int64_t key = key_of(side, u->price);
    dequeue(b, n);
    if (b->stats.levels != levels) { /* the old level went: the ladder moved, perhaps this very level */
        p.at = ladder_find(b, p.ladder, key);
        if (p.ladder->count == 0 || p.at >= p.ladder->count || b->keys[p.ladder->block + p.at] != key) {
            p.level = 0;
            xdsi_ladder_reserve(b, p.ladder); /* cannot fail: a rung has just been given back */
        }
    }
    enqueue(b, u->instrument, side, u->price, u->qty, n, &p);
    return 0;
}

int xdsi_orders_apply(struct xds_books *b, struct xds_update *u)
{
    switch (u->kind) {
    case XDS_ADD:
        return add(b, u);
    case XDS_EXECUTE:
    case XDS_EXECUTE_AT:
    case XDS_REDUCE:
    case XDS_DELETE:
        return take_qty(b, u);
    case XDS_REPLACE:
    case XDS_MODIFY:
        return move(b, u);
    default:
        return XDS_BOOK_BAD_UPDATE;
    }
}

void xdsi_orders_prefetch(struct xds_books *b, const struct xds_update *u, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t id = u[i].kind == XDS_REPLACE ? u[i].ref : u[i].order_id;
        __builtin_prefetch(&b->slots[tag_of(id) & b->mask]);
    }
}
