/* fuzz_books.c: libFuzzer over the books. The first byte picks L3 or L2, the second the bounds; then
 * every 8 bytes are one update with small ids, prices and levels, so that they meet. Arrays of a length
 * that the input picks are applied and audited: no sanitizer finding, every invariant, one way out.
 */
#include <stdlib.h>
#include <string.h>

#include "xds/books.h"

#define INSTRUMENTS 3
#define ARRAY       48

static void check(int holds)
{
    if (!holds) {
        abort();
    }
}

static struct xds_update update_of(const uint8_t *p)
{
    struct xds_update u = {.kind = p[0] % 18, .order_id = p[1] & 15, .ref = p[2] & 15, .qty = (int8_t)p[5]};
    u.instrument = p[3] == 255 ? 0xffffffff : p[3] % (INSTRUMENTS + 1);
    u.price = p[4] == 255 ? XDS_NO_PRICE : (p[4] & 31) - 8;
    u.qty = p[5] == 255 ? INT64_MAX - 3 : u.qty;
    u.side = p[6] % 4;
    u.flags = p[7];
    u.order_id |= p[2] & 0x80 ? (uint64_t)p[2] << 40 : 0;
    return u;
}

static void check_reads(const struct xds_books *b)
{
    struct xds_level levels[8];
    struct xds_order orders[8];
    for (uint32_t i = 0; i <= INSTRUMENTS; i++) {
        for (int side = 0; side < 4; side++) {
            check(xds_books_levels(b, i, side, levels, 8) <= 8);
            check(xds_books_orders(b, i, side, orders, 8) <= 8);
        }
        xds_books_checksum(b, i);
    }
    check(xds_books_order(b, 3, orders) <= 1);
    xds_books_checksum_all(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct xds_update array[ARRAY];
    if (size < 2 || size > 1 << 16) {
        return 0;
    }
    struct xds_books_config cfg = {.kind = data[0] & 1 ? 3 : 2, .max_instruments = INSTRUMENTS};
    cfg.max_orders = 1 + (data[1] & 31);
    cfg.max_levels = 1 + (data[1] >> 3);
    void *mem = aligned_alloc(64, (xds_books_size(&cfg) + 63) & ~(size_t)63);
    check(mem && xds_books_init(mem, &cfg) == 0);
    struct xds_books *b = mem;
    unsigned length = 1 + (data[0] >> 1) % ARRAY;
    if (cfg.kind == 2) {
        xds_books_set_depth(b, 1, 3, 1);
    }
    for (size_t at = 2; at + 8 <= size;) {
        unsigned n = 0, marked = 0;
        for (; n < length && at + 8 <= size; at += 8) {
            array[n] = update_of(data + at);
            array[n++].flags &= (uint8_t)~XDS_REJECTED;
        }
        int refused = xds_books_apply(b, array, n);
        for (unsigned i = 0; i < n; i++) {
            marked += (array[i].flags & XDS_REJECTED) != 0;
        }
        check(refused == (int)marked && xds_books_audit(b) == 0);
    }
    check_reads(b);
    free(mem);
    return 0;
}
