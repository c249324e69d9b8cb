/* sock_pair.c: two worlds of sockets (xds_sock.h) in one process, joined by memory, with a clock of their own.
 *
 *   make cores
 *   cc -Ibuild/cores/include tools/examples/sock_pair.c build/cores/libxds_cores.a -o sock_pair && ./sock_pair
 *
 * A client connects, waits until it may write, sends a line; the server sends back what comes.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xds/world.h"

#define FRAME 1514

/* A host 10.9.0.N; a real program takes its secret from getrandom(). */
static struct xds_socks *begin(uint8_t n)
{
    struct xds_world_config world = {
        .host.mac = {2, 0, 0, 0, 9, n}, .stack.connections = 4, .socks.sockets = 16, .address = {10, 9, 0, n}};

    memset(world.stack.secret, n, sizeof world.stack.secret);
    void *memory = aligned_alloc(64, xds_world_size(&world));
    return memory ? xds_world_init(memory, &world) : NULL;
}

/* Everything that one has to say goes to the other. */
static void carry(struct xds_socks *from, struct xds_socks *to, int64_t now)
{
    uint8_t bytes[FRAME];
    struct xds_frame f = {.data = bytes, .len = FRAME};

    for (; xds_socks_output(from, &f, now) > 0; f.len = FRAME)
        xds_socks_frame(to, &f, now);
}

int main(void)
{
    static const char order[] = "order 66 at 101.25";
    const struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(7000)};
    struct sockaddr_in there = any;
    struct xds_socks *client = begin(1), *server = begin(2);
    int peer = -1, got = -EAGAIN, n, wrote = 0;
    char said[64] = "", bytes[64];

    if (!client || !server) {
        fputs("sock_pair: a configuration that cannot be, or no memory\n", stderr);
        return 1;
    }
    const int listener = xds_socket(server, AF_INET, SOCK_STREAM, 0);
    if (xds_bind(server, listener, &any, sizeof any) || xds_listen(server, listener, 1))
        return 1;
    inet_pton(AF_INET, "10.9.0.2", &there.sin_addr);
    struct pollfd mine = {.fd = xds_socket(client, AF_INET, SOCK_STREAM, 0), .events = POLLOUT};
    const int code = xds_connect(client, mine.fd, &there, sizeof there);
    for (int64_t now = 1000000; got == -EAGAIN && now < 5000000000; now += 1000000) {
        xds_socks_tick(client, now);
        xds_socks_tick(server, now);
        if (!wrote && xds_poll(client, &mine, 1) > 0)
            wrote = xds_write(client, mine.fd, order, sizeof order - 1);
        carry(client, server, now);
        if (peer < 0)
            peer = xds_accept(server, listener, NULL, NULL);
        if (peer >= 0 && (n = xds_read(server, peer, bytes, sizeof bytes)) > 0)
            xds_write(server, peer, bytes, (uint32_t)n);
        carry(server, client, now);
        got = xds_read(client, mine.fd, said, sizeof said - 1);
        if (!wrote)
            got = -EAGAIN; /* not connected yet */
    }
    printf("connect: %s; %d bytes came back: %s\n", strerror(-code), got, said);
    return got != (int)sizeof order - 1 || strcmp(said, order) != 0;
}
