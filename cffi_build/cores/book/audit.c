/* audit.c: every invariant of the books, walked. Slow; for tests and fuzzing.
 */
#include "index_inl.h"

#define HOLDS(x)                                                                                             \
    do {                                                                                                     \
        if (!(x))                                                                                            \
            return __LINE__;                                                                                 \
    } while (0)

static int audit_queue(const struct xds_books *b, uint32_t number, uint64_t *orders)
{
    const struct level *v = &b->levels[number];
    uint32_t last = 0, count = 0;
    uint64_t sum = 0;
    for (uint32_t at = v->head; at; at = b->nodes[at].next) {
        HOLDS(at < b->node_fresh);
        const struct node *o = &b->nodes[at];
        HOLDS(o->prev == last && o->level == number && o->qty > 0);
        HOLDS(xdsi_index_find(b, o->id) == at);
        HOLDS(++count <= v->orders);
        sum += (uint64_t)o->qty;
        last = at;
    }
    HOLDS(v->tail == last && count == v->orders && count && sum == (uint64_t)v->qty);
    *orders += count;
    return 0;
}

static int audit_ladder(const struct xds_books *b, uint32_t book, unsigned side, uint64_t *orders,
                        uint64_t *levels)
{
    const struct ladder *l = &b->books[book].side[side];
    if (!l->count) {
        HOLDS(l->block == XDSI_NO_BLOCK || b->blocks[l->block >> XDSI_UNIT_SHIFT] == 0);
        return 0;
    }
    HOLDS(l->order <= XDSI_TOP_ORDER && l->count <= (uint32_t)XDSI_UNIT << l->order);
    HOLDS(!(l->block & (((uint32_t)XDSI_UNIT << l->order) - 1)));
    HOLDS((uint64_t)l->block + ((uint64_t)XDSI_UNIT << l->order) <= b->entries);
    HOLDS(l->best == b->keys[l->block + l->count - 1]);
    for (uint32_t i = 0; i < l->count; i++) {
        uint32_t number = b->rungs[l->block + i];
        HOLDS(number && number < b->level_fresh);
        const struct level *v = &b->levels[number];
        HOLDS(v->owner == (book << 2 | side << 1 | 1) && v->key == b->keys[l->block + i] && v->qty > 0);
        HOLDS(l->by_level || !i || b->keys[l->block + i - 1] < v->key);
        if (b->cfg.kind == 3) {
            int line = audit_queue(b, number, orders);
            HOLDS(!line);
        }
        ++*levels;
    }
    return 0;
}

static int audit_blocks(const struct xds_books *b)
{
    uint64_t room = 0;
    for (unsigned order = 0; order <= XDSI_TOP_ORDER; order++) {
        uint32_t last = XDSI_NO_BLOCK;
        for (uint32_t at = b->free_block[order]; at != XDSI_NO_BLOCK; at = b->rungs[at]) {
            HOLDS(b->blocks[at >> XDSI_UNIT_SHIFT] == order + 1 && b->rungs[at + 1] == last);
            HOLDS(!(at & ((XDSI_UNIT << order) - 1)));
            room += (uint64_t)XDSI_UNIT << order;
            HOLDS(room <= b->entries);
            last = at;
        }
    }
    for (uint32_t i = 0; i < b->n_books; i++) {
        for (unsigned s = 0; s < 2; s++) {
            const struct ladder *l = &b->books[i].side[s];
            room += l->block != XDSI_NO_BLOCK ? (uint64_t)XDSI_UNIT << l->order : 0;
        }
    }
    HOLDS(room == b->entries);
    return 0;
}

static int audit_free(const struct xds_books *b)
{
    uint64_t nodes = 0, levels = 0, used = 0, passed = 0, went_on = 0;
    for (uint32_t at = b->node_free; at; at = b->nodes[at].next) {
        HOLDS(at < b->node_fresh && !b->nodes[at].level && ++nodes < b->node_fresh);
    }
    for (uint32_t at = b->level_free; at; at = b->levels[at].head) {
        HOLDS(at < b->level_fresh && !b->levels[at].owner && ++levels < b->level_fresh);
    }
    HOLDS(nodes + b->stats.orders + 1 == b->node_fresh && b->stats.orders <= b->cfg.max_orders);
    HOLDS(levels + b->stats.levels + 1 == b->level_fresh && b->stats.levels <= b->cfg.max_levels);
    for (uint64_t i = 0; b->mask && i <= b->mask; i++) {
        const struct bucket *k = &b->buckets[i];
        for (unsigned lane = 0; lane < LANES; lane++) {
            HOLDS(!k->node[lane] == !k->tag[lane]);
            if (k->node[lane]) {
                struct home h = home_of(b, b->nodes[k->node[lane]].id);
                HOLDS(k->tag[lane] == h.tag);
                went_on += ((uint32_t)i - h.bucket) & b->mask;
                used++;
            }
        }
        passed += k->passed;
    }
    HOLDS(used == b->stats.orders && passed == went_on);
    return 0;
}

int xds_books_audit(const struct xds_books *b)
{
    uint64_t orders = 0, levels = 0, refused = 0;
    int line;
    for (uint32_t i = 0; i < b->n_books; i++) {
        for (unsigned s = 0; s < 2; s++) {
            if ((line = audit_ladder(b, i, s, &orders, &levels))) {
                return line;
            }
        }
    }
    HOLDS(levels == b->stats.levels && (b->cfg.kind == 2 || orders == b->stats.orders));
    if ((line = audit_free(b)) || (line = audit_blocks(b))) {
        return line;
    }
    for (unsigned i = 1; i < XDS_BOOK_CROSSED; i++) {
        refused += b->stats.reasons[i];
    }
    HOLDS(b->stats.applied + refused == b->stats.updates);
    return 0;
}
