/* udp_rtt.c: a round trip over kernel UDP sockets, both ends spinning: --mode echo, --mode ping.
 *
 * Busy polling on veth is a loop of MSG_DONTWAIT (there is no NAPI of a device to poll), so neither
 * end sleeps and no wake-up is paid: the fastest that a kernel socket answers. Connected sockets.
 */
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

static struct sockaddr_in at(const struct bench_options *o, const char *ip, const char *port, double number)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)bench_number(o, port, number))};
    if (inet_pton(AF_INET, bench_text(o, ip, "0.0.0.0"), &a.sin_addr) != 1)
        bench_die("--%s takes an IPv4 address", ip);
    return a;
}

static int open_socket(const struct bench_options *o)
{
    const int fd = socket(AF_INET, SOCK_DGRAM, 0), one = 1;
    struct sockaddr_in local = at(o, "local", "lport", 9001), remote = at(o, "remote", "rport", 9002);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&local, sizeof local) ||
        connect(fd, (struct sockaddr *)&remote, sizeof remote))
        bench_die("cannot open the socket: %s", strerror(errno));
    return fd;
}

static void echo(int fd, int64_t deadline)
{
    uint8_t buffer[2048];
    for (uint32_t spins = 0; !bench_stop; spins++) {
        const ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (n > 0)
            (void)!send(fd, buffer, (size_t)n, MSG_DONTWAIT);
        else if ((spins & 0xff) == 0 && bench_clock_ns(CLOCK_MONOTONIC) > deadline)
            break;
    }
}

/* One in flight; a lost one (none is expected) is given up after 10 ms and counted. */
static uint64_t ping(const struct bench_options *o, int fd, int64_t deadline, struct bench_samples *s)
{
    uint8_t buffer[2048] = {0};
    const size_t size = (size_t)bench_number(o, "size", 64);
    const uint64_t count = (uint64_t)bench_number(o, "count", 100000),
                   skip = (uint64_t)bench_number(o, "skip", 1000);
    const double ns_per_tick = bench_calibrate();
    const uint64_t patience = (uint64_t)(1e7 / ns_per_tick);
    uint64_t lost = 0;
    if (size < 8 || size > sizeof buffer)
        bench_die("--size must be 8 to %zu", sizeof buffer);
    bench_samples_init(s, count);
    for (uint64_t i = 0; i < count + skip && !bench_stop; i++) {
        memcpy(buffer, &i, 8);
        const uint64_t begin = bench_ticks();
        if (send(fd, buffer, size, MSG_DONTWAIT) < 0 && errno != EAGAIN && errno != ECONNREFUSED)
            bench_die("cannot send: %s", strerror(errno));
        uint64_t answer = ~0ull, now = begin;
        while (answer != i && now - begin < patience) {
            if (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) >= 8)
                memcpy(&answer, buffer, 8);
            now = bench_ticks();
        }
        if (answer != i)
            lost++;
        else if (i >= skip)
            bench_sample(s, (double)(now - begin) * ns_per_tick);
        if ((i & 0xff) == 0 && bench_clock_ns(CLOCK_MONOTONIC) > deadline)
            break;
    }
    return lost;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    const int fd = open_socket(&options);
    const int64_t deadline = bench_clock_ns(CLOCK_MONOTONIC) + (int64_t)(bench_seconds(&options) * 1e9);
    struct bench_samples samples = {0};
    if (!strcmp(bench_text(&options, "mode", "echo"), "echo")) {
        bench_ready();
        echo(fd, deadline);
        printf("{\"peer\": \"kernel udp echo\"}\n");
    } else {
        const uint64_t lost = ping(&options, fd, deadline, &samples);
        printf("{\"peer\": \"busy-polled kernel udp\", \"lost\": %lu, ", lost);
        bench_print_samples(&samples);
        printf("}\n");
    }
    close(fd);
    return 0;
}
