/* fuzz_channel.c: libFuzzer over one channel of any session, driven as the engine drives it.
 *
 * The first byte picks session, server and window; then records {u8 line and step, u16 length, bytes} go
 * in, each from memory of exactly its size, with made-up time passing. Besides what the sanitizers see:
 * every unit at most once and in order, the books of lines and gaps add up, next() ends.
 */
#include "xds/channel.h"

#include <stdlib.h>
#include <string.h>

static void check(int holds)
{
    if (!holds)
        abort();
}

static void check_books(const struct xds_channel *c, const struct xds_channel_config *g)
{
    struct xds_channel_stats s;
    struct xds_line_stats l;

    xds_channel_stats(c, &s);
    check(s.gaps_found == s.gaps_filled + s.gaps_lost + s.gaps_open);
    check(s.units_missed == s.units_filled + s.units_lost + s.units_open);
    for (unsigned i = 0; i <= g->lines; i++) {
        check(xds_channel_line_stats(c, i, &l) == 0);
        check(l.packets == l.won + l.duplicate + l.late + l.heartbeat + l.malformed + l.truncated +
                               l.foreign + l.no_room + l.buffered);
    }
}

static void drain(struct xds_channel *c, const struct xds_channel_config *g, uint64_t *next)
{
    struct xds_block b;
    struct xds_event e;
    volatile uint8_t sum = 0;

    for (unsigned n = 0; xds_channel_next(c, &b); n++) {
        check(n <= 2 * g->window_packets + 2);
        if (b.flags & XDS_BLOCK_RESTART)
            *next = 0;
        check(b.seq >= *next);
        *next = b.seq + (b.count == 0xffff || g->session == XDS_SESSION_PLAIN ? 1 : b.count);
        for (uint32_t i = 0; i < b.len; i++)
            sum ^= b.data[i];
    }
    while (xds_channel_event(c, &e))
        check(e.kind >= XDS_EVENT_GAP_FOUND && e.kind <= XDS_EVENT_RESET);
    check_books(c, g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t framing[] = {0, XDS_FRAMING_FIXED, XDS_FRAMING_U16BE, XDS_FRAMING_U16LE,
                                       XDS_FRAMING_SBE};
    if (size < 1)
        return 0;
    struct xds_channel_config g = {.session = 1 + data[0] % 4,
                                   .lines = 2,
                                   .window_packets = 1u << ((data[0] >> 3) & 3),
                                   .slot_bytes = 64,
                                   .window_ns = 1000,
                                   .retry_ns = 500,
                                   .give_up_ns = 20000};
    g.framing = framing[g.session];
    if (g.session == XDS_SESSION_MOLD64 && (data[0] & 4)) {
        g.request_max = 7;
        g.retries = 2;
    }
    void *mem = malloc(xds_channel_size(&g));
    struct xds_channel *c = mem;
    check(xds_channel_init(mem, &g) == 0);
    uint64_t next = 0;
    int64_t now = 0;
    size_t at = 1;
    while (at + 3 <= size) {
        uint32_t len = data[at + 1] | (uint32_t)data[at + 2] << 8, line = data[at] & 3;
        now += (data[at] >> 2) * 50;
        at += 3;
        len = len < size - at ? len : (uint32_t)(size - at);
        uint8_t *packet = malloc(len ? len : 1), room[20];
        memcpy(packet, data + at, len);
        at += len;
        int rc = xds_channel_input(c, line, packet, len, now, now);
        check(rc <= 1 && rc >= XDS_ESTATE);
        drain(c, &g, &next);
        free(packet); /* nothing may lie in it any more */
        check(xds_channel_deadline(c) >= 0);
        while (xds_channel_output(c, room, sizeof room, now) > 0)
            ;
        xds_channel_tick(c, now);
        drain(c, &g, &next);
    }
    xds_channel_finish(c, now);
    drain(c, &g, &next);
    struct xds_channel_stats s;
    xds_channel_stats(c, &s);
    check(s.gaps_open == 0);
    free(mem);
    return 0;
}
