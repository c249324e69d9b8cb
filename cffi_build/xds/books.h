/* books.h: the order books of all instruments of one feed, L3 (by order) or L2 (by price level).
 * Pure; memory is reserved at init and never grows. Takes arrays of updates: find, prefetch, apply.
 *
 * apply() completes updates in place: EXECUTE, REDUCE and DELETE get the order's side and price,
 * REPLACE its side; what the book refuses gets XDS_REJECTED and a counted reason.
 */
#ifndef XDS_BOOKS_H
#define XDS_BOOKS_H

#include "base.h"
#include "update.h"

enum xds_book_reason {
    XDS_BOOK_OK = 0,
    XDS_BOOK_UNKNOWN_ORDER = 1,
    XDS_BOOK_DUPLICATE_ORDER = 2,
    XDS_BOOK_EXCESS_QTY = 3,     /* execution or cancel above what the order has             */
    XDS_BOOK_BAD_LEVEL = 4,      /* L2 by level: a level that is not there                   */
    XDS_BOOK_BAD_UPDATE = 5,     /* no side, no price, quantity <= 0, unknown kind           */
    XDS_BOOK_BAD_INSTRUMENT = 6, /* index out of range, or another one than the order's      */
    XDS_BOOK_NO_ORDER_ROOM = 7,
    XDS_BOOK_NO_LEVEL_ROOM = 8,
    XDS_BOOK_CROSSED = 9,     /* applied, but best bid >= best ask at the end of an event */
    XDS_BOOK_DISORDERED = 10, /* applied, but a level that the venue placed is out of price order */
    XDS_BOOK_REASONS = 11,
};

struct xds_books_config {
    uint32_t kind; /* 3: orders, 2: price levels                                    */
    uint32_t max_instruments;
    uint32_t max_orders; /* alive at once (L3)                                            */
    uint32_t max_levels; /* price levels alive at once, all instruments                   */
};

struct xds_level {
    int64_t price; /* units of 10^-scale   */
    int64_t qty;
    uint32_t orders;
    uint32_t flags; /* XDS_IMPLIED: level of the implied book */
};

/* Best of both sides of one instrument, implied levels included; an empty side has XDS_NO_PRICE. */
struct xds_top {
    int64_t bid_price, bid_qty, ask_price, ask_qty;
    uint32_t bid_orders, ask_orders;
    uint32_t instrument;
    uint32_t stale;
};

struct xds_order {
    uint64_t order_id;
    int64_t price;
    int64_t qty;
    uint32_t instrument;
    uint8_t side;
    uint8_t pad[3];
    uint64_t ahead; /* quantity before it at its price (queue position) */
};

struct xds_books_stats {
    uint64_t updates;            /* taken                                                     */
    uint64_t applied;            /* = updates - the sum of refusals (all reasons but the two last) */
    uint64_t reasons[16];        /* by enum xds_book_reason                                   */
    uint64_t trades;             /* TRADE and TRADE_BREAK, which touch no book                */
    uint64_t orders, orders_max; /* alive now, most ever                                      */
    uint64_t levels, levels_max;
    uint64_t memory_bytes;
};

struct xds_books;
size_t xds_books_size(const struct xds_books_config *cfg); /* 0 = bad cfg */
int xds_books_init(void *mem, const struct xds_books_config *cfg);
/* Apply n updates in order; completes and marks them in place. Returns how many were refused. */
int xds_books_apply(struct xds_books *b, struct xds_update *u, size_t n);
/* Best levels of one side, best first. Returns the count, XDS_ECONFIG for a bad instrument. */
int xds_books_levels(const struct xds_books *b, uint32_t instrument, int side, struct xds_level *out,
                     unsigned cap);
/* The tops of instruments first, first + 1, ...: an array that numpy can view. Returns how many, at most cap. */
int xds_books_top(const struct xds_books *b, uint32_t first, struct xds_top *out, unsigned cap);
/* Orders of one side in price-time order (L3). */
int xds_books_orders(const struct xds_books *b, uint32_t instrument, int side, struct xds_order *out,
                     unsigned cap);
int xds_books_order(const struct xds_books *b, uint64_t order_id, struct xds_order *out); /* 1 found, 0 not */
/* FNV-1a 64 over one instrument's whole state; algorithm and order in cffi_build/cores/book/README.md. */
uint64_t xds_books_checksum(const struct xds_books *b, uint32_t instrument);
uint64_t xds_books_checksum_all(const struct xds_books *b);
void xds_books_clear(struct xds_books *b, uint32_t instrument);                /* 0xffffffff: all */
void xds_books_set_stale(struct xds_books *b, uint32_t instrument, int stale); /* 0xffffffff: all */
int xds_books_stale(const struct xds_books *b, uint32_t instrument);
/* L2 by level: keep at most so many levels a side (CME: MarketDepth of the outright and of the implied
 * book), 0 all. An insertion drops what it pushes below. XDS_ECONFIG: bad instrument, or L3. */
int xds_books_set_depth(struct xds_books *b, uint32_t instrument, unsigned depth, unsigned implied);
/* The updates come from a decoder that is sequenced (decode.h). Then a stale book is clean again with the
 * first update of its instrument, trades too, that carries neither XDS_STALE nor XDS_SNAPSHOT: the
 * instrument's own sequence went on from what the book holds. */
void xds_books_set_sequenced(struct xds_books *b, int sequenced);
void xds_books_stats(const struct xds_books *b, struct xds_books_stats *out);
/* Walk every list, index and sum; 0 consistent, else a line number of the check that failed. */
int xds_books_audit(const struct xds_books *b);

#endif
