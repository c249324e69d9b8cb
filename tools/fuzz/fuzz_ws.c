/* fuzz_ws.c: libFuzzer over a WebSocket client: what a server may answer and send, cut in two ways. It holds:
 * both ways give the same events and bytes to send; frames begun = taken + reasons + cut; a connection
 * fails once, and then takes and sends nothing; what goes out is masked frames, none behind a Close; output()
 * and the timers come to an end.
 */
#include "ground/sha1_inl.h"
#include "ground/wire_inl.h"
#include "xds/ws.h"

#include <stdlib.h>
#include <string.h>

static void check(int holds)
{
    if (!holds)
        abort();
}

struct run {
    struct xds_ws *w;
    uint64_t events, sent; /* hashes of what came out, in order */
    int failed, open, requested, closed;
    int64_t now;
};

static uint64_t fold(uint64_t h, const void *data, uint32_t len)
{
    const uint8_t *p = data;

    for (uint32_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 0x100000001b3;
    return h;
}

static void take_events(struct run *r)
{
    struct xds_ws_event e;

    while (xds_ws_event(r->w, &e)) {
        check(!r->failed && e.what >= XDS_WS_EVENT_OPEN && e.what < XDS_WS_EVENTS);
        check((e.what == XDS_WS_EVENT_FAILED) == (e.reason != XDS_WS_NONE) && e.reason < XDS_WS_REASONS);
        check(e.len <= 4096);
        r->failed |= e.what == XDS_WS_EVENT_FAILED;
        r->open |= e.what == XDS_WS_EVENT_OPEN;
        const uint32_t heads[] = {e.what, e.reason, e.code, e.len, e.frames};
        r->events = fold(r->events, heads, sizeof heads);
        r->events = fold(r->events, e.data, e.len);
    }
}

/* Frame by frame: each masked, right, and nothing behind a Close. Returns bytes of whole frames. */
static void read_sent(struct run *r, const uint8_t *p, uint32_t len)
{
    for (uint32_t at = 0; at < len;) {
        uint64_t n = p[at + 1] & 127;
        uint32_t size = 2;

        check(len - at >= 6 && p[at + 1] & 0x80 && !(p[at] & 0x70) && !r->closed);
        if (n == 126)
            n = xdsi_be16(p + at + 2), size = 4;
        else if (n == 127)
            n = xdsi_be64(p + at + 2), size = 10;
        check(n <= len - at - size - 4);
        r->closed |= (p[at] & 15) == 8;
        r->sent = fold(r->sent, p + at, size);
        at += size + 4 + (uint32_t)n;
    }
}

static void send_all(struct run *r, uint32_t cap)
{
    uint8_t *all = malloc(65536), *room = malloc(cap);
    uint32_t len = 0;

    for (int n; (n = xds_ws_output(r->w, room, cap, r->now)) != 0; len += (uint32_t)n) {
        check(n > 0 && (uint32_t)n <= cap && len + (uint32_t)n <= 65536);
        memcpy(all + len, room, (uint32_t)n);
    }
    if (r->requested)
        read_sent(r, all, len);
    r->requested = 1;
    free(room);
    free(all);
}

static void give(struct run *r, const uint8_t *data, uint32_t len, uint32_t piece)
{
    for (uint32_t at = 0; at < len;) {
        const uint32_t n = len - at < piece ? len - at : piece;
        uint8_t *block = malloc(n);
        uint32_t used = 0;

        memcpy(block, data + at, n);
        while (used < n) {
            const int got = xds_ws_input(r->w, block + used, n - used, r->now);
            take_events(r);
            check(got != 0 && (got > 0 || r->failed));
            used = got < 0 ? n : used + (uint32_t)got;
        }
        free(block);
        at += n;
    }
}

static void check_all(const struct run *r)
{
    struct xds_ws_stats s;
    uint64_t refused = 0, fails = 0;

    xds_ws_stats(r->w, &s);
    for (int i = 0; i < XDS_WS_REASONS; i++) {
        fails += s.reasons[i];
        refused += i >= XDS_WS_RSV && i <= XDS_WS_CLOSE_BAD ? s.reasons[i] : 0;
    }
    check(s.frames == s.taken + refused + s.cut && s.cut <= 1 && fails == (uint64_t)r->failed);
    check(xds_ws_state(r->w) != XDS_WS_CLOSED || xds_ws_deadline(r->w) == XDS_NEVER);
}

/* The right answer to the request of the seed, so that frames are reached. */
static void answer(struct run *r, uint32_t piece)
{
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char head[256] = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: ";
    uint8_t request[1024] = {0}, digest[21] = {0}, key[60];
    const int n = xds_ws_output(r->w, request, sizeof request - 1, r->now);
    const char *at = strstr((char *)request, "Sec-WebSocket-Key: ");
    size_t len = strlen(head);

    check(n > 0 && at);
    memcpy(key, at + 19, 24);
    memcpy(key + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    xdsi_sha1(key, sizeof key, digest);
    for (int i = 0; i < 21; i += 3) {
        const uint32_t v = (uint32_t)digest[i] << 16 | (uint32_t)digest[i + 1] << 8 | digest[i + 2];
        head[len++] = set[v >> 18], head[len++] = set[v >> 12 & 63], head[len++] = set[v >> 6 & 63];
        head[len++] = set[v & 63];
    }
    memcpy(head + len - 1, "=\r\n\r\n", 5);
    r->requested = 1;
    give(r, (uint8_t *)head, (uint32_t)len + 4, piece);
    check(r->open && !r->failed);
}

/* data[0]: how; then steps of {what, length, bytes}. */
static struct run play(const uint8_t *data, size_t size, uint32_t piece)
{
    const struct xds_ws_config g = {.host = "a",
                                    .subprotocols = "p, q",
                                    .message_max = 4096,
                                    .head_max = 512,
                                    .send_bytes = 1024,
                                    .ping_ns = data[0] & 2 ? 1000 : 0};
    struct run r = {.now = 1};

    r.w = aligned_alloc(64, (xds_ws_size(&g) + 63) & ~(size_t)63);
    check(xds_ws_init(r.w, &g, (const uint8_t *)"0123456789abcdef", r.now) == 0);
    if (data[0] & 1)
        answer(&r, piece);
    else
        send_all(&r, 100);
    for (size_t at = 1; at + 2 <= size;) {
        const uint32_t what = data[at],
                       len = data[at + 1] < size - at - 2 ? data[at + 1] : (uint32_t)(size - at - 2);
        const uint8_t *bytes = data + at + 2;

        at += 2 + len;
        if (what < 192)
            give(&r, bytes, len, piece);
        else if (what < 216)
            check(xds_ws_send(r.w, what & 7, bytes, len, what >> 3 & 1) <= (int)len);
        else if (what < 224)
            xds_ws_close(r.w, 996 + what - 216, bytes, len, r.now);
        else if (what < 232)
            xds_ws_eof(r.w, r.now);
        else if (what < 244 && xds_ws_deadline(r.w) != XDS_NEVER)
            xds_ws_tick(r.w, r.now = xds_ws_deadline(r.w));
        else
            send_all(&r, 1 + what);
        take_events(&r);
        check_all(&r);
    }
    send_all(&r, 1000);
    for (int i = 0; xds_ws_deadline(r.w) != XDS_NEVER; i++) { /* a ping, then its timeout */
        check(i < 4);
        xds_ws_tick(r.w, r.now = xds_ws_deadline(r.w));
        take_events(&r);
        if (!(data[0] & 2) && xds_ws_state(r.w) == XDS_WS_OPEN)
            break;
    }
    send_all(&r, 50);
    check_all(&r);
    free(r.w);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    const struct run whole = play(data, size, 65536), cut = play(data, size, 1 + data[0] / 64);

    check(whole.events == cut.events && whole.sent == cut.sent);
    return 0;
}
