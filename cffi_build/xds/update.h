/* update.h: the normalised update, 64 bytes, one cache line. What decoders write, books apply,
 * hooks and Python read; the numpy dtype is derived from this struct.
 *
 * Prices are integers in units of the instrument's scale (10^-scale); they become floats only
 * where they leave by an edge that wants doubles. A consumer acts on XDS_LAST: before it, it sees
 * half of the venue's event.
 */
#ifndef XDS_UPDATE_H
#define XDS_UPDATE_H

#include <stdint.h>

enum xds_kind {
    XDS_ADD = 1,           /* L3: a new order. order_id, side, price, qty                                   */
    XDS_EXECUTE = 2,       /* L3: qty of order_id traded at its own price; ref = match number. A trade.     */
    XDS_EXECUTE_AT = 3,    /* L3: the same at another price (price set); ref = match number. A trade.     */
    XDS_REDUCE = 4,        /* L3: qty of order_id was cancelled                                            */
    XDS_DELETE = 5,        /* L3: order_id leaves the book                                                 */
    XDS_REPLACE = 6,       /* L3: order ref leaves, order_id takes its side at price and qty, last in queue */
    XDS_LEVEL = 7,         /* L2 by price: qty at price is now qty, 0 clears; ref = number of orders       */
    XDS_LEVEL_INSERT = 8,  /* L2 by level: ref = level (1 is best) | orders << 32; lower levels move down */
    XDS_LEVEL_CHANGE = 9,  /* L2 by level: ref as above, price and qty overwritten                      */
    XDS_LEVEL_DELETE = 10, /* L2 by level: ref as above; levels below move up                          */
    XDS_LEVEL_DELETE_THRU = 11, /* L2 by level: all levels of the side go                              */
    XDS_LEVEL_DELETE_FROM = 12, /* L2 by level: levels 1 .. ref go                                     */
    XDS_CLEAR = 13,       /* every level and order of the instrument goes                                 */
    XDS_TRADE = 14,       /* a trade that touches no visible order; ref = match or trade number           */
    XDS_TRADE_BREAK = 15, /* trade ref is undone                                                      */
    XDS_MODIFY = 16,      /* L3: order_id now has price and qty (venues that modify in place)             */
};

enum xds_side {
    XDS_NO_SIDE = 0,
    XDS_BID = 1,
    XDS_ASK = 2,
};

enum xds_flag {
    XDS_LAST = 1,            /* last update of the venue's event: the book is whole again              */
    XDS_STALE = 2,           /* the instrument stands behind an open gap                                */
    XDS_SNAPSHOT = 4,        /* from a snapshot or a recovery, not from the live stream                 */
    XDS_IMPLIED = 8,         /* an implied level or trade: the venue's implied book, not the outright's */
    XDS_RECOVERED = 16,      /* came by retransmission                                                */
    XDS_KEEPS_PRIORITY = 32, /* MODIFY: the order keeps its place in the queue                    */
    XDS_HIDDEN = 64,         /* a trade that should not be printed (ITCH C with Printable = N)          */
    XDS_REJECTED = 128,      /* the book refused it; the reason is counted (enum xds_book_reason)      */
};

#define XDS_NO_PRICE 0x7fffffffffffffff /* no price: market orders, null prices of SBE */

struct xds_update {
    int64_t rx_ns;    /* CLOCK_TAI ns: NIC or XDP hook, or the kernel's stamp      */
    int64_t venue_ns; /* the venue's own time, ns since its epoch (see the schema) */
    uint64_t seq;     /* the channel's sequence number of the message or packet    */
    uint64_t order_id;
    int64_t price; /* units of 10^-scale of the instrument, or XDS_NO_PRICE     */
    int64_t qty;
    uint64_t ref;        /* by kind: replaced id, match number, level and order count */
    uint32_t instrument; /* index in the feed's instrument table                      */
    uint8_t kind;        /* enum xds_kind                                             */
    uint8_t side;        /* enum xds_side                                             */
    uint8_t flags;       /* enum xds_flag, or-ed                                      */
    uint8_t line;        /* the line that won, counted from 0                         */
};

_Static_assert(sizeof(struct xds_update) == 64, "an update is one cache line");

#endif
