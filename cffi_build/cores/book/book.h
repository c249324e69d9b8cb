/* book.h: what the files of this core share: the arena's layout, the order index, the ladders.
 *
 * Four pools in one arena, all linked by u32 so that a node is 32 bytes, two to a cache line:
 *   nodes    one order: its id, quantity, neighbours in the queue and its level
 *   index    order id -> node, buckets of a cache line (index_inl.h)
 *   levels   one price: sum, count, ends of the queue, owner
 *   ladders  per side an ascending array of keys, the best LAST, so that work near the touch moves
 *            nothing; blocks of a power of two from a buddy allocator over entries of 12 bytes
 * A key is the price of a bid and the complement of an ask's, so larger is better on both sides.
 * Node 0 and level 0 mean none; they can be read, and node 0's links written, to save branches.
 */
#ifndef XDSI_BOOK_H
#define XDSI_BOOK_H

#include "../../xds/books.h"

#define XDSI_UNIT       8 /* entries in the smallest ladder block: one cache line of keys */
#define XDSI_UNIT_SHIFT 3
#define XDSI_TOP_ORDER  18 /* the largest block: XDSI_UNIT << 18 entries                   */
#define XDSI_NO_BLOCK   0xffffffffu
#define XDSI_WINDOW     32          /* updates looked ahead at together; their lines fit the first cache    */
#define XDSI_ALL        0xffffffffu /* the instrument that means all                          */
#define XDSI_ENDS       0xfffffffeu /* ends the list of crossed books; 0xffffffff: not listed      */

struct node {
    uint64_t id;
    int64_t qty;
    uint32_t next, prev; /* towards the back and the front of the queue; next links free ones */
    uint32_t level;      /* 0: free                                                            */
    uint32_t side;       /* 0 bid, 1 ask: the look ahead needs it before the level's line is here */
};

struct level {
    int64_t key;
    int64_t qty;
    uint32_t head, tail; /* L3: first and last in the queue; head links free ones              */
    uint32_t orders;
    uint32_t owner; /* ladder index << 1 | 1; 0: free                                    */
};

struct ladder {
    int64_t best;   /* keys[count - 1]; undefined when count is 0 */
    uint32_t block; /* first entry in the ladder pool             */
    uint32_t count;
    uint8_t order;    /* the block holds XDSI_UNIT << order entries */
    uint8_t by_level; /* L2: the venue places levels; prices may be in any order */
    uint8_t pad[6];
};

/* One book: L3 has one an instrument, L2 two, outright then implied. A cache line. */
struct book {
    struct ladder side[2]; /* bid, ask                                     */
    uint32_t crossed;      /* link of the list of books found crossed      */
    uint16_t depth;        /* L2 by level: levels kept, 0 all              */
    uint8_t stale;
    uint8_t pad[9];
};

_Static_assert(sizeof(struct node) == 32, "two orders a cache line");
_Static_assert(sizeof(struct level) == 32, "two levels a cache line");
_Static_assert(sizeof(struct book) == 64, "one book a cache line");

/* What the look ahead found: guesses, since an earlier update of the same array may have changed it.
 * Whoever uses one checks it against the book and searches again when it fails. */
struct hint {
    uint32_t slot; /* of the order, XDSI_NO_BLOCK: none found                        */
    uint32_t at;   /* ADD, REPLACE: position of the price in its ladder              */
    uint32_t item; /* while looking ahead: the node or level whose line is on its way */
};

struct xds_books {
    struct xds_books_config cfg;
    uint32_t n_books; /* instruments, twice for L2 */
    uint32_t mask;    /* buckets of the index - 1 */
    uint32_t node_free, node_fresh;
    uint32_t level_free, level_fresh;
    uint32_t crossed; /* head of the list of books found crossed in this event */
    uint32_t entries; /* of the ladder pool                                    */
    uint32_t sequenced;
    uint32_t free_block[XDSI_TOP_ORDER + 1];
    struct bucket *buckets;
    struct node *nodes;
    struct level *levels;
    struct book *books;
    int64_t *keys; /* the ladder pool: keys and, beside them, level numbers */
    uint32_t *rungs;
    uint8_t *blocks; /* a byte a unit: order + 1 of the free block that begins there, else 0 */
    struct xds_books_stats stats;
};

static inline int64_t key_of(unsigned side, int64_t price)
{
    return side ? ~price : price; /* its own inverse */
}

#pragma GCC visibility push(hidden) /* called directly, not by the linkage table */

/* ladder.c */
void xdsi_ladders_reset(struct xds_books *b);
int xdsi_ladder_reserve(struct xds_books *b, struct ladder *l); /* room for one more: 1, else 0 */
void xdsi_ladder_insert(struct xds_books *b, struct ladder *l, uint32_t at, int64_t key, uint32_t level);
void xdsi_ladder_remove(struct xds_books *b, struct ladder *l, uint32_t at);
void xdsi_ladder_release(struct xds_books *b, struct ladder *l);

/* The number of keys below key: where it is or would be. */
static inline uint32_t ladder_find(const struct xds_books *b, const struct ladder *l, int64_t key)
{
    const int64_t *k = b->keys + l->block, *at = k;
    uint32_t n = l->count;
    if (n > 64) { /* a deep book: first whether it is near the touch, whose lines are warm */
        int far = k[n - 16] >= key;
        at = far ? k : k + n - 16;
        n = far ? n - 15 : 16;
    }
    while (n > 1) { /* without a branch on the data: the compilers' own choice is a jump */
        uint32_t half = n / 2;
        at += half & -(uint32_t)(at[half - 1] < key);
        n -= half;
    }
    return (uint32_t)(at - k) + (n == 1 && *at < key);
}

/* The same with a guess. */
static inline uint32_t ladder_at(const struct xds_books *b, const struct ladder *l, int64_t key,
                                 uint32_t guess)
{
    const int64_t *k = b->keys + l->block;
    if (guess <= l->count && (guess == 0 || k[guess - 1] < key) && (guess == l->count || k[guess] >= key)) {
        return guess;
    }
    return ladder_find(b, l, key);
}

/* level numbers */
static inline uint32_t level_take(struct xds_books *b)
{
    uint32_t n = b->level_free;
    if (n) {
        b->level_free = b->levels[n].head;
    } else {
        n = b->level_fresh++;
    }
    if (++b->stats.levels > b->stats.levels_max) {
        b->stats.levels_max = b->stats.levels;
    }
    return n;
}

static inline void level_give(struct xds_books *b, uint32_t n)
{
    b->levels[n].owner = 0;
    b->levels[n].head = b->level_free;
    b->level_free = n;
    b->stats.levels--;
}

static inline struct ladder *ladder_of(struct xds_books *b, uint32_t owner)
{
    return &b->books[owner >> 2].side[(owner >> 1) & 1];
}

/* orders.c, levels.c: one update each; 0 or the reason of the refusal */
int xdsi_orders_apply(struct xds_books *b, struct xds_update *u, struct hint h);
int xdsi_levels_apply(struct xds_books *b, struct xds_update *u);
void xdsi_orders_prepare(const struct xds_books *b, const struct xds_update *u, struct hint *h, size_t n);
uint32_t xdsi_index_find(const struct xds_books *b, uint64_t id); /* node, 0: none */
void xdsi_level_forget(struct xds_books *b, uint32_t level);      /* its orders leave the index */

#pragma GCC visibility pop

#endif
