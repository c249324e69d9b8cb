/* orders.c: books by order. Every update is checked whole before anything changes, so a refusal
 * leaves the book as it was.
 */
#include "index_inl.h"

/* index_find with a guess: right when the slot still leads to the id, wherever the order has gone. */
static inline uint32_t slot_of(const struct xds_books *b, uint64_t id, struct home h, uint32_t guess)
{
    if (guess != NO_SLOT) {
        uint32_t n = index_node(b, guess);
        if (n && b->nodes[n].id == id) {
            return guess;
        }
    }
    return index_find(b, id, h);
}

uint32_t xdsi_index_find(const struct xds_books *b, uint64_t id)
{
    uint32_t slot = index_find(b, id, home_of(b, id));
    return slot == NO_SLOT ? 0 : index_node(b, slot);
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

static inline int place_find(struct xds_books *b, uint32_t book, unsigned side, int64_t price, int64_t qty,
                             uint32_t guess, struct place *p)
{
    struct ladder *l = &b->books[book].side[side];
    int64_t key = key_of(side, price);
    p->ladder = l;
    p->at = ladder_at(b, l, key, guess);
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
    b->nodes[o->prev].next = o->next; /* node 0 takes the writes that are for nobody: no branch */
    b->nodes[o->next].prev = o->prev;
    v->head = o->prev ? v->head : o->next;
    v->tail = o->next ? v->tail : o->prev;
}

void xdsi_level_forget(struct xds_books *b, uint32_t level)
{
    for (uint32_t n = b->levels[level].head, next; n; n = next) {
        next = b->nodes[n].next;
        struct home h = home_of(b, b->nodes[n].id);
        index_drop(b, h, index_find(b, b->nodes[n].id, h));
        node_give(b, n);
    }
}

static inline int add(struct xds_books *b, struct xds_update *u, struct hint h)
{
    struct home home = home_of(b, u->order_id);
    struct place p;
    if ((u->side != XDS_BID && u->side != XDS_ASK) || u->price == XDS_NO_PRICE || u->qty <= 0) {
        return XDS_BOOK_BAD_UPDATE;
    }
    if (index_find(b, u->order_id, home) != NO_SLOT) {
        return XDS_BOOK_DUPLICATE_ORDER;
    }
    if (b->stats.orders == b->cfg.max_orders) {
        return XDS_BOOK_NO_ORDER_ROOM;
    }
    unsigned side = u->side - 1u;
    int why = place_find(b, u->instrument, side, u->price, u->qty, h.at, &p);
    if (why) {
        return why;
    }
    uint32_t n = node_take(b);
    b->nodes[n].id = u->order_id;
    b->nodes[n].side = side;
    index_put(b, home, n);
    enqueue(b, u->instrument, side, u->price, u->qty, n, &p);
    return 0;
}

/* EXECUTE, EXECUTE_AT, REDUCE and DELETE: quantity leaves, and the order with its last. */
static inline int take_qty(struct xds_books *b, struct xds_update *u, struct hint h)
{
    struct home home = home_of(b, u->order_id);
    uint32_t slot = slot_of(b, u->order_id, home, h.slot);
    if (slot == NO_SLOT) {
        return XDS_BOOK_UNKNOWN_ORDER;
    }
    uint32_t n = index_node(b, slot);
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
    index_drop(b, home, slot);
    dequeue(b, n);
    node_give(b, n);
    return 0;
}

/* REPLACE takes a new id and the back of a queue; MODIFY keeps the id, and its place if the venue
 * says so and the price stays. */
static inline int move(struct xds_books *b, struct xds_update *u, struct hint h)
{
    struct place p;
    uint64_t old = u->kind == XDS_REPLACE ? u->ref : u->order_id;
    if (u->price == XDS_NO_PRICE || u->qty <= 0) {
        return XDS_BOOK_BAD_UPDATE;
    }
    struct home home = home_of(b, old), fresh = home_of(b, u->order_id);
    uint32_t slot = slot_of(b, old, home, h.slot);
    if (slot == NO_SLOT) {
        return XDS_BOOK_UNKNOWN_ORDER;
    }
    uint32_t n = index_node(b, slot);
    struct node *o = &b->nodes[n];
    struct level *v = &b->levels[o->level];
    if (v->owner >> 2 != u->instrument) {
        return XDS_BOOK_BAD_INSTRUMENT;
    }
    if (u->order_id != old && index_find(b, u->order_id, fresh) != NO_SLOT) {
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
    int why = place_find(b, u->instrument, side, u->price, u->qty, h.at, &p);
    if (why) {
        return why;
    }
    u->side = (uint8_t)(side + 1);
    if (u->order_id != old) {
        index_drop(b, home, slot);
        index_put(b, fresh, n);
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

int xdsi_orders_apply(struct xds_books *b, struct xds_update *u, struct hint h)
{
    switch (u->kind) {
    case XDS_ADD:
        return add(b, u, h);
    case XDS_EXECUTE:
    case XDS_EXECUTE_AT:
    case XDS_REDUCE:
    case XDS_DELETE:
        return take_qty(b, u, h);
    case XDS_REPLACE:
    case XDS_MODIFY:
        return move(b, u, h);
    default:
        return XDS_BOOK_BAD_UPDATE;
    }
}

/* ---- Looking ahead ---------------------------------------------------------------------------
 * Every memory access of an update is started before the first update is applied: one pass a step of
 * the chain slot -> node -> level and neighbours, or ladder -> level -> tail. The updates are sorted
 * into three lists first, so that the passes do not branch on their kind. */

struct lists {
    uint32_t n_enter, n_leave, n_replace;
    uint8_t enter[XDSI_WINDOW], leave[XDSI_WINDOW], replace[XDSI_WINDOW]; /* replace: also in leave */
};

static void look_1(const struct xds_books *b, const struct xds_update *u, struct hint *h, size_t n,
                   struct lists *l)
{
    l->n_enter = l->n_leave = l->n_replace = 0;
    for (size_t i = 0; i < n; i++) {
        int replace = u[i].kind == XDS_REPLACE;
        int enter = (u[i].kind == XDS_ADD) & ((u[i].side - 1u) < 2);
        int known = u[i].instrument < b->cfg.max_instruments;
        uint64_t ids[2] = {u[i].order_id, u[i].ref}; /* indexed, not chosen: a kind is as good as random */
        struct home home = home_of(b, ids[replace]);
        h[i] = (struct hint){home.bucket, 0, home.tag};
        __builtin_prefetch(&b->buckets[home.bucket]);
        __builtin_prefetch(&b->books[known ? u[i].instrument : 0]);
        l->enter[l->n_enter] = l->leave[l->n_leave] = l->replace[l->n_replace] = (uint8_t)i;
        l->n_enter += (uint32_t)(enter & known);
        l->n_leave += (uint32_t)((enter ^ 1) & known);
        l->n_replace += (uint32_t)(replace & known);
    }
}

static inline void prefetch_best(const struct xds_books *b, const struct ladder *l)
{
    uint32_t last =
        l->block + l->count - 1; /* of an empty ladder: out of the pool, which a prefetch forgives */
    __builtin_prefetch(&b->keys[last]);
    __builtin_prefetch(&b->rungs[last]);
}

static void look_2(const struct xds_books *b, const struct xds_update *u, struct hint *h,
                   const struct lists *l)
{
    for (uint32_t j = 0; j < l->n_enter; j++) {
        const struct xds_update *e = &u[l->enter[j]];
        prefetch_best(b, &b->books[e->instrument].side[e->side - 1]);
    }
    for (uint32_t j = 0; j < l->n_leave; j++) {
        struct hint *o = &h[l->leave[j]];
        const struct bucket *k = &b->buckets[o->slot];
        unsigned found = lanes_with(k, o->item);
        unsigned lane = (unsigned)__builtin_ctz(found | 1u << LANES);
        o->item = lane == LANES ? 0 : k->node[lane]; /* what went on to another bucket is looked up later */
        o->slot = lane == LANES ? NO_SLOT : o->slot * 8 + lane;
        __builtin_prefetch(&b->nodes[o->item]);
    }
    for (uint32_t j = 0; j < l->n_replace; j++) {
        __builtin_prefetch(&b->buckets[home_of(b, u[l->replace[j]].order_id).bucket]);
    }
}

/* Guess the price's position and start on its level, whose number stays in h->item: 0 none yet. */
static inline void look_price(const struct xds_books *b, uint32_t book, unsigned side, int64_t price,
                              struct hint *h)
{
    const struct ladder *l = &b->books[book].side[side];
    int64_t key = key_of(side, price);
    h->item = 0;
    if (!l->count) {
        return;
    }
    h->at = ladder_find(b, l, key);
    uint32_t in = h->at < l->count ? h->at : l->count - 1;
    h->item = b->keys[l->block + in] == key ? b->rungs[l->block + in] : 0;
    __builtin_prefetch(&b->levels[h->item]);
}

static void look_3(const struct xds_books *b, const struct xds_update *u, struct hint *h,
                   const struct lists *l)
{
    for (uint32_t j = 0; j < l->n_leave; j++) {
        const struct node *o = &b->nodes[h[l->leave[j]].item];
        const struct book *k = &b->books[u[l->leave[j]].instrument];
        __builtin_prefetch(&b->levels[o->level]);
        __builtin_prefetch(&b->nodes[o->next]);
        __builtin_prefetch(&b->nodes[o->prev]);
        prefetch_best(b, &k->side[o->side]);
    }
    for (uint32_t j = 0; j < l->n_enter; j++) {
        const struct xds_update *e = &u[l->enter[j]];
        look_price(b, e->instrument, e->side - 1u, e->price, &h[l->enter[j]]);
    }
}

static void look_4(const struct xds_books *b, const struct xds_update *u, struct hint *h,
                   const struct lists *l)
{
    for (uint32_t j = 0; j < l->n_replace; j++) {
        const struct xds_update *e = &u[l->replace[j]];
        struct hint *o = &h[l->replace[j]];
        look_price(b, e->instrument, b->nodes[o->item].side, e->price, o);
    }
    for (uint32_t j = 0; j < l->n_enter; j++) {
        __builtin_prefetch(&b->nodes[b->levels[h[l->enter[j]].item].tail]);
    }
}

void xdsi_orders_prepare(const struct xds_books *b, const struct xds_update *u, struct hint *h, size_t n)
{
    struct lists l;
    look_1(b, u, h, n, &l);
    look_2(b, u, h, &l);
    look_3(b, u, h, &l);
    look_4(b, u, h, &l);
}
