/* sock_echo.c: sockets without a kernel: an echo server by xds_sock.h, for a client in the same process or for Linux.
 *
 *   make cores
 *   cc -Ibuild/cores/include tools/examples/sock_echo.c build/cores/libxds_cores.a -o sock_echo
 *   ./sock_echo                 two worlds of sockets, joined by memory
 *   ./sock_echo tap0            10.9.0.2, fd09::2 and fe80::2 behind a TAP device (as root); until its end of input
 *   ip addr add 10.9.0.1/24 dev tap0 && ip link set tap0 up && nc 10.9.0.2 7000
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "xds/xds_sock.h"

#define SOCKETS 16
#define FRAME   1514

static void *memory(size_t bytes)
{
    void *mem = bytes ? aligned_alloc(64, (bytes + 63) & ~(size_t)63) : NULL;
    if (!mem)
        exit(1);
    return mem;
}

/* A host 10.9.0.N, fd09::N, fe80::N with TCP and sockets; nothing is allocated after this. */
static struct xds_socks *begin(uint8_t n)
{
    const struct xds_host_config host_is = {.mac = {2, 0, 0, 0, 9, n}};
    const struct xds_socks_config socks_are = {.sockets = SOCKETS};
    struct xds_stack_config stack_is = {.connections = SOCKETS};
    const uint8_t ip[4] = {10, 9, 0, n}, ip6[16] = {0xfd, 9, [15] = n}, local[16] = {0xfe, 0x80, [15] = n};
    uint32_t raw;

    memcpy(&raw, ip, 4);
    if (getrandom(stack_is.secret, sizeof stack_is.secret, 0) != sizeof stack_is.secret)
        exit(1);
    struct xds_host *host = memory(xds_host_size(&host_is));
    struct xds_stack *stack = memory(xds_stack_size(&stack_is));
    if (xds_host_init(host, &host_is) || xds_host_add_address(host, raw, 24) ||
        xds_host_add_address6(host, ip6, 64) || xds_host_add_address6(host, local, 64) ||
        xds_stack_init(stack, &stack_is, host))
        exit(1);
    struct xds_socks *n_socks = memory(xds_socks_size(&socks_are, stack));
    return xds_socks_init(n_socks, &socks_are, stack, host) ? NULL : n_socks;
}

/* What comes on a socket goes back; what ends is closed. A listener and a UDP socket stand at port 7000, each for
 * both families. */
static void serve(struct xds_socks *n, int listener, int udp)
{
    static char bytes[SOCKETS][4096];
    static int waits[SOCKETS], gone[SOCKETS]; /* bytes of it that could not go back yet */
    struct sockaddr_in6 from;
    uint32_t len = sizeof from;
    int got;

    while (xds_accept(n, listener, NULL, NULL) >= 0)
        ;
    while ((got = xds_recvfrom(n, udp, bytes[udp], sizeof bytes[udp], 0, &from, &len)) >= 0)
        xds_sendto(n, udp, bytes[udp], (uint32_t)got, 0, &from, len);
    for (int fd = 0; fd < SOCKETS; fd++) {
        while (fd != listener && fd != udp) {
            if (!waits[fd]) {
                gone[fd] = 0;
                got = xds_read(n, fd, bytes[fd], sizeof bytes[fd]);
                if (got == 0 || (got < 0 && got != -EAGAIN && got != -EBADF))
                    xds_close(n, fd);
                if (got <= 0)
                    break;
                waits[fd] = got;
            }
            const int done = xds_write(n, fd, bytes[fd] + gone[fd], (uint32_t)waits[fd]);
            if (done == -EAGAIN)
                break;
            gone[fd] += done > 0 ? done : 0;
            waits[fd] -= done > 0 ? done : waits[fd];
        }
    }
}

static void open_both(struct xds_socks *n, int *listener, int *udp)
{
    const struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(7000)};

    *listener = xds_socket(n, AF_INET6, SOCK_STREAM, 0);
    *udp = xds_socket(n, AF_INET6, SOCK_DGRAM, 0);
    if (xds_bind(n, *listener, &any, sizeof any) || xds_listen(n, *listener, 8) ||
        xds_bind(n, *udp, &any, sizeof any))
        exit(1);
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Until standard input ends: frames from the device, frames to it, and sleep until either or a timer. */
static int behind_tap(const char *name)
{
    struct ifreq what = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    struct xds_socks *n = begin(2);
    uint8_t bytes[2048];
    int listener, udp, tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

    snprintf(what.ifr_name, sizeof what.ifr_name, "%s", name);
    if (tap < 0 || ioctl(tap, TUNSETIFF, &what)) {
        perror("sock_echo: TAP device");
        return 1;
    }
    open_both(n, &listener, &udp);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd fds[2] = {{.fd = tap, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        struct xds_frame f = {.data = bytes, .len = FRAME};
        const int64_t due = xds_socks_deadline(n) - now();
        poll(fds, 2, due <= 0 ? 0 : due < 1000000000 ? (int)(due / 1000000) + 1 : 1000);
        if (fds[1].revents)
            return 0;
        xds_socks_tick(n, now());
        for (ssize_t got; (got = read(tap, bytes, sizeof bytes)) > 0;) {
            f = (struct xds_frame){.data = bytes, .len = (uint32_t)got};
            xds_socks_frame(n, &f, now());
            serve(n, listener, udp);
        }
        serve(n, listener, udp);
        for (f.data = bytes, f.len = FRAME; xds_socks_output(n, &f, now()) > 0; f.len = FRAME)
            if (write(tap, f.data, f.len) < 0) /* as if the wire had lost it */
                break;
    }
}

static void carry(struct xds_socks *from, struct xds_socks *to, int64_t when)
{
    uint8_t bytes[FRAME];

    for (struct xds_frame f = {.data = bytes, .len = FRAME}; xds_socks_output(from, &f, when) > 0;
         f.len = FRAME)
        xds_socks_frame(to, &f, when);
}

static int in_memory(void)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(7000)};
    struct xds_socks *client = begin(1), *server = begin(2);
    char said[64] = "";
    int listener, udp, got = -EAGAIN, wrote = 0;

    open_both(server, &listener, &udp);
    inet_pton(AF_INET, "10.9.0.2", &there.sin_addr);
    const int fd = xds_socket(client, AF_INET, SOCK_STREAM, 0);
    const int code = xds_connect(client, fd, &there, sizeof there);
    struct pollfd waits = {.fd = fd, .events = POLLOUT};
    for (int64_t when = 1; got == -EAGAIN && when < 5000; when++) {
        xds_socks_tick(client, when * 1000000);
        xds_socks_tick(server, when * 1000000);
        if (!wrote && xds_poll(client, &waits, 1) > 0)
            wrote = xds_write(client, fd, "order 66 at 101.25", 18);
        carry(client, server, when * 1000000);
        serve(server, listener, udp);
        carry(server, client, when * 1000000);
        if (wrote)
            got = xds_read(client, fd, said, sizeof said - 1);
    }
    printf("connect: %s; %d bytes came back: %s\n", strerror(-code), got, said);
    return got != 18 || strcmp(said, "order 66 at 101.25");
}

int main(int count, char **words)
{
    return count > 1 ? behind_tap(words[1]) : in_memory();
}
