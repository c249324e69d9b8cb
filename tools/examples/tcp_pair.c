/* tcp_pair.c: two hosts with TCP in one process: frames in, frames out, a made-up wire, clock and randomness.
 *
 *   make cores
 *   cc -Ibuild/cores/include tools/examples/tcp_pair.c build/cores/libxds_cores.a -o tcp_pair && ./tcp_pair
 *
 * The client connects and sends a line; the server sends it back in capitals; both close. Every third frame
 * is lost on purpose. Waiting for a retransmission takes no time: time is an argument.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xds/stack.h"

#define MILLISECOND 1000000

struct end {
    struct xds_host *host;
    struct xds_stack *stack;
    int listener, id, lost, sent;
    char said[64];
};

/* An address 10.0.0.N/24 with the MAC 02:00:00:00:00:N. Nothing is allocated after this. */
static void begin(struct end *e, uint8_t n)
{
    const struct xds_host_config host = {.mac = {2, 0, 0, 0, 0, n}};
    struct xds_stack_config stack = {.connections = 4};
    uint32_t raw;

    memcpy(&raw, (uint8_t[]){10, 0, 0, n}, 4);
    memset(stack.secret, n, sizeof stack.secret); /* a real program asks getrandom() */
    e->host = aligned_alloc(64, (xds_host_size(&host) + 63) & ~(size_t)63);
    e->stack = aligned_alloc(64, (xds_stack_size(&stack) + 63) & ~(size_t)63);
    if (!e->host || !e->stack || xds_host_init(e->host, &host) || xds_host_add_address(e->host, raw, 24) ||
        xds_stack_init(e->stack, &stack, e->host))
        exit(1);
}

/* Everything that one end has to say goes to the other, but for every third frame. */
static void carry(struct end *from, struct end *to, int64_t now)
{
    uint8_t bytes[1514];
    struct xds_dgram unused;

    xds_stack_tick(from->stack, now);
    for (;;) {
        struct xds_frame f = {.data = bytes, .len = sizeof bytes};
        if (xds_stack_output(from->stack, &f, now) <= 0)
            return;
        if (++from->sent % 3)
            xds_stack_frame(to->stack, &f, &unused, now);
        else
            from->lost++;
    }
}

/* The line is kept where it came; the server says it in capitals. Either has nothing more to say then. */
static void listen_to(struct end *e, int64_t now)
{
    if (!e->id && (e->id = xds_stack_accept(e->stack, e->listener)) <= 0)
        return;
    const int n = xds_stack_read(e->stack, e->id, (uint8_t *)e->said, sizeof e->said - 1);
    for (int i = 0; e->listener && i < n; i++)
        e->said[i] = (char)toupper((unsigned char)e->said[i]);
    if (n > 0 && e->listener)
        xds_stack_write(e->stack, e->id, (const uint8_t *)e->said, (uint32_t)n);
    if (n > 0)
        xds_stack_close(e->stack, e->id, now);
}

int main(void)
{
    static const char line[] = "order 66 at 101.25\n";
    struct end a = {0}, b = {0};
    struct xds_stack_stats left = {.connections = 1};
    struct xds_tcp_config how;
    int64_t now = 1000 * MILLISECOND;

    begin(&a, 1);
    begin(&b, 2);
    b.listener = xds_stack_listen(b.stack, (uint8_t[16]){0}, 7000, 1);
    xds_stack_defaults(a.stack, &how);
    memcpy(how.remote, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\2", 16); /* ::ffff:10.0.0.2 */
    how.remote_port = 7000;
    a.id = xds_stack_connect(a.stack, &how, now);
    if (b.listener < 0 || xds_stack_write(a.stack, a.id, (const uint8_t *)line, sizeof line - 1) < 0)
        return 1;
    for (int step = 0; step < 600000 && left.connections; step++, now += MILLISECOND) {
        carry(&a, &b, now);
        carry(&b, &a, now);
        listen_to(&b, now);
        listen_to(&a, now);
        xds_stack_stats(a.stack, &left);
    }
    printf("%d frames sent, %d lost, %lld ms: %s", a.sent + b.sent, a.lost + b.lost,
           (long long)(now / MILLISECOND - 1000), a.said);
    return strcmp(a.said, "ORDER 66 AT 101.25\n") || left.connections;
}
