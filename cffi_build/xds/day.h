/* day.h: a generated trading day, ITCH 5.0 messages each behind its big-endian 16-bit length (the
 * framing of Nasdaq's files). Sound by construction: every order that leaves exists, executions take
 * the front of the best queue, no book is ever crossed. Integer arithmetic and a generator of its own,
 * so a seed gives the same bytes on every machine. What it models: xdpstack/venues/README.md.
 */
#ifndef XDS_DAY_H
#define XDS_DAY_H

#include "base.h"

struct xds_day_config {
    uint64_t seed;
    uint64_t messages;     /* in all, the opening's directory and state messages included */
    uint32_t symbols;      /* 1 .. 65535; locate codes begin at 1                         */
    uint32_t orders_alive; /* the level that the day climbs to, then stays at             */
};

size_t xds_day_size(const struct xds_day_config *cfg); /* 0: bad configuration */
int xds_day_init(void *mem, const struct xds_day_config *cfg);
/* Write whole messages while at least XDS_DAY_ROOM bytes are left. Returns the bytes written, 0 at the end. */
int64_t xds_day_next(void *mem, uint8_t *out, size_t cap);
uint64_t xds_day_messages(const void *mem); /* written so far */
uint64_t xds_day_orders(const void *mem);   /* alive now      */

#define XDS_DAY_ROOM 64

#endif
