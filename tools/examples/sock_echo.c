/* sock_echo.c: sockets without a kernel: an echo server for TCP and UDP by xds_sock.h, behind a TAP device (as root).
 *
 *   make cores
 *   cc -Ibuild/cores/include tools/examples/sock_echo.c build/cores/libxds_cores.a -o sock_echo
 *   ./sock_echo tap0            10.9.0.2, fd09::2 and fe80::2, port 7000, until its end of input
 *   ip addr add 10.9.0.1/24 dev tap0 && ip link set tap0 up && nc 10.9.0.2 7000
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "xds/world.h"

#define SOCKETS 16
#define FRAME   1514

/* What comes on a socket goes back, where there is room for it; what ends is closed. */
static void serve(struct xds_socks *n, int listener, int udp)
{
    const int both = POLLIN | POLLOUT; /* out: half of the buffer is free */
    struct sockaddr_in6 from;          /* IPv4's are mapped into it */
    uint32_t len = sizeof from;
    char bytes[4096];
    int got;

    while (xds_accept(n, listener, NULL, NULL) >= 0)
        ;
    while ((got = xds_recvfrom(n, udp, bytes, sizeof bytes, 0, &from, &len)) >= 0)
        xds_sendto(n, udp, bytes, (uint32_t)got, 0, &from, len);
    for (int fd = 0; fd < SOCKETS; fd++) {
        struct pollfd ready = {.fd = fd, .events = (short)both};
        while (fd != listener && fd != udp && xds_poll(n, &ready, 1) && (ready.revents & both) == both) {
            if ((got = xds_read(n, fd, bytes, sizeof bytes)) > 0)
                xds_write(n, fd, bytes, (uint32_t)got);
            else
                xds_close(n, fd);
        }
    }
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(int count, char **words)
{
    struct xds_world_config world = {.host.mac = {2, 0, 0, 0, 9, 2},
                                     .stack.connections = SOCKETS,
                                     .socks.sockets = SOCKETS,
                                     .address = {10, 9, 0, 2}};
    const struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(7000)};
    const uint8_t ip6[2][16] = {{0xfd, 9, [15] = 2}, {0xfe, 0x80, [15] = 2}};
    struct ifreq what = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    const int tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    uint8_t bytes[2048];

    snprintf(what.ifr_name, sizeof what.ifr_name, "%s", count > 1 ? words[1] : "tap0");
    if (tap < 0 || ioctl(tap, TUNSETIFF, &what)) {
        perror("sock_echo: TAP device");
        return 1;
    }
    void *memory = aligned_alloc(64, xds_world_size(&world)); /* nothing is allocated after this */
    if (!memory || getrandom(world.stack.secret, sizeof world.stack.secret, 0) < 16)
        return 1;
    struct xds_socks *n = xds_world_init(memory, &world);
    const int tcp = xds_socket(n, AF_INET6, SOCK_STREAM, 0), udp = xds_socket(n, AF_INET6, SOCK_DGRAM, 0);
    if (xds_host_add_address6(xds_socks_host(n), ip6[0], 64) ||
        xds_host_add_address6(xds_socks_host(n), ip6[1], 64) || xds_bind(n, tcp, &any, sizeof any) ||
        xds_listen(n, tcp, 8) || xds_bind(n, udp, &any, sizeof any))
        return 1;
    puts("ready");
    fflush(stdout);
    for (struct pollfd fds[2] = {{.fd = tap, .events = POLLIN}, {.events = POLLIN}}; !fds[1].revents;) {
        const int64_t due = xds_socks_deadline(n) - now(); /* sleep until a frame or a timer */
        poll(fds, 2, due <= 0 ? 0 : due < 1000000000 ? (int)(due / 1000000) + 1 : 1000);
        xds_socks_tick(n, now());
        for (ssize_t got; (got = read(tap, bytes, sizeof bytes)) > 0;) {
            const struct xds_frame f = {.data = bytes, .len = (uint32_t)got};
            xds_socks_frame(n, &f, now());
            serve(n, tcp, udp);
        }
        serve(n, tcp, udp);
        for (struct xds_frame f = {.data = bytes, .len = FRAME}; xds_socks_output(n, &f, now()) > 0;
             f.len = FRAME)
            if (write(tap, f.data, f.len) < 0) /* as if the wire had lost it */
                break;
    }
    return 0;
}
