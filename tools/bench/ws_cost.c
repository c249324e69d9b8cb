/* ws_cost.c: what one message costs the WebSocket core, alone: ns for input() and event() of a frame that
 * lies whole in the input, and for send() and output(). The least of many rounds: the rest is others'.
 *
 *   ws_cost [BYTES [ROUNDS]]: a message's bytes [128], rounds of 100,000 [20]; prints a line of JSON
 */
#include "ground/sha1_inl.h"
#include "xds/ws.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { TURNS = 100000, MOST = 60000 };

static double now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void must(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "ws_cost: %s\n", what);
        exit(1);
    }
}

/* The server's side of the handshake, as RFC 6455 4.2.2 has it. */
static void shake_hands(struct xds_ws *w)
{
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char head[256] = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: ";
    uint8_t request[1024] = {0}, digest[21] = {0}, key[60];
    struct xds_ws_event e;
    size_t len = strlen(head);
    const int n = xds_ws_output(w, request, sizeof request - 1, 0);
    const char *at = strstr((char *)request, "Sec-WebSocket-Key: ");

    must(n > 0 && at, "no request");
    memcpy(key, at + 19, 24);
    memcpy(key + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    xdsi_sha1(key, sizeof key, digest);
    for (int i = 0; i < 21; i += 3) {
        const uint32_t v = (uint32_t)digest[i] << 16 | (uint32_t)digest[i + 1] << 8 | digest[i + 2];
        for (int shift = 18; shift >= 0; shift -= 6)
            head[len++] = set[v >> shift & 63];
    }
    memcpy(head + len - 1, "=\r\n\r\n", 5);
    must(xds_ws_input(w, (uint8_t *)head, (uint32_t)len + 4, 0) > 0, "no handshake");
    must(xds_ws_event(w, &e) && e.what == XDS_WS_EVENT_OPEN, "not open");
}

static double receive(struct xds_ws *w, const uint8_t *frame, uint32_t len, uint32_t bytes)
{
    struct xds_ws_event e;
    uint64_t told = 0;
    const double begun = now_ns();

    for (int i = 0; i < TURNS; i++) {
        xds_ws_input(w, frame, len, i);
        told += (uint32_t)xds_ws_event(w, &e) * e.len;
    }
    const double took = (now_ns() - begun) / TURNS;
    must(told == (uint64_t)bytes * TURNS && e.what == XDS_WS_EVENT_TEXT && e.lent, "another message came");
    return took;
}

static double transmit(struct xds_ws *w, const uint8_t *text, uint32_t bytes)
{
    static uint8_t room[MOST + 64];
    uint64_t out = 0;
    const double begun = now_ns();

    for (int i = 0; i < TURNS; i++) {
        xds_ws_send(w, XDS_WS_EVENT_TEXT, text, bytes, 0);
        out += (uint32_t)xds_ws_output(w, room, sizeof room, i);
    }
    const double took = (now_ns() - begun) / TURNS;
    must(out == (uint64_t)(bytes + (bytes < 126 ? 6 : 8)) * TURNS, "not all went out");
    return took;
}

int main(int argc, char **argv)
{
    static uint8_t frame[MOST + 4];
    const uint32_t bytes = argc > 1 ? (uint32_t)atoi(argv[1]) : 128;
    const int rounds = argc > 2 ? atoi(argv[2]) : 20;
    const uint32_t head = bytes < 126 ? 2 : 4;
    const struct xds_ws_config g = {.host = "a"};
    double in = 1e9, out = 1e9;

    must(bytes <= MOST && rounds > 0 && rounds <= 1000, "BYTES up to 60000, ROUNDS 1 to 1000");
    struct xds_ws *w = aligned_alloc(64, (xds_ws_size(&g) + 63) & ~(size_t)63);
    must(w && xds_ws_init(w, &g, (const uint8_t *)"0123456789abcdef", 0) == 0, "no connection");
    shake_hands(w);
    frame[0] = 0x81;
    frame[1] = (uint8_t)(bytes < 126 ? bytes : 126);
    if (head == 4)
        xdsi_put16(frame + 2, bytes);
    memset(frame + head, 'x', bytes);
    for (int i = 0; i < rounds; i++) {
        const double a = receive(w, frame, head + bytes, bytes), b = transmit(w, frame + head, bytes);
        in = a < in ? a : in;
        out = b < out ? b : out;
    }
    printf("{\"bytes\": %u, \"receive_ns\": %.1f, \"send_ns\": %.1f}\n", bytes, in, out);
    free(w);
    return 0;
}
