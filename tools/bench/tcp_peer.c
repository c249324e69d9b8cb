/* tcp_peer.c: kernel TCP as the peer of ours: --mode echo, ping, serve, load, drain, pour.
 *
 *   echo, ping    one connection, both ends spinning with MSG_DONTWAIT: no sleep, no wake-up
 *   serve, load   many connections and one epoll each, spinning: --connections, each with one request under way
 *   drain, pour   one connection, --write bytes a write, as fast as it goes
 *
 * echo, serve and drain listen at --local:--lport and end with their last connection; the others connect to
 * --remote:--rport. TCP_NODELAY and CUBIC everywhere. Busy polling on veth is a loop of calls that do not wait,
 * for there is no NAPI of a device to poll.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "bench.h"

#define CONNECTIONS 256
#define WRITE_MAX   (4 << 20)

static struct sockaddr_in at(const struct bench_options *o, const char *ip, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)bench_number(o, port, 0))};
    if (inet_pton(AF_INET, bench_text(o, ip, "0.0.0.0"), &a.sin_addr) != 1)
        bench_die("--%s takes an IPv4 address", ip);
    return a;
}

/* CUBIC, as ours: a host's default may be another one, and then the figures would be of that. */
static void tune(int fd)
{
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5))
        bench_die("cannot set cubic: %s", strerror(errno));
}

static int listen_at(const struct bench_options *o)
{
    const struct sockaddr_in local = at(o, "local", "lport");
    const int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (const struct sockaddr *)&local, sizeof local) || listen(fd, CONNECTIONS))
        bench_die("cannot listen: %s", strerror(errno));
    bench_ready();
    return fd;
}

/* A connection that came: -1 when the time is over. Asleep until it is there: accept() makes a file before it
 * looks, and the kernel would still free what a second of spinning left while round trips are timed. */
static int accept_one(int listener, int64_t deadline)
{
    struct pollfd came = {.fd = listener, .events = POLLIN};

    while (!bench_stop && bench_clock_ns(CLOCK_MONOTONIC) < deadline) {
        if (poll(&came, 1, 100) <= 0)
            continue;
        const int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd >= 0) {
            tune(fd);
            return fd;
        }
        if (errno != EAGAIN && errno != EINTR)
            bench_die("cannot accept: %s", strerror(errno));
    }
    return -1;
}

static int connect_to(const struct bench_options *o)
{
    const struct sockaddr_in remote = at(o, "remote", "rport");
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    tune(fd);
    if (connect(fd, (const struct sockaddr *)&remote, sizeof remote))
        bench_die("cannot connect: %s", strerror(errno));
    return fd;
}

static void echo(int fd, int64_t deadline)
{
    uint8_t buffer[4096];
    for (uint32_t spins = 0; !bench_stop; spins++) {
        const ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (n > 0)
            (void)!send(fd, buffer, (size_t)n, MSG_DONTWAIT);
        else if (n == 0 || (errno != EAGAIN && errno != EINTR))
            break;
        else if ((spins & 0xff) == 0 && bench_clock_ns(CLOCK_MONOTONIC) > deadline)
            break;
    }
}

/* Returns round trips a second, over those that are samples too. */
static double ping(const struct bench_options *o, int fd, int64_t deadline, struct bench_samples *s)
{
    uint8_t buffer[4096] = {0};
    const size_t size = (size_t)bench_number(o, "size", 64);
    const uint64_t count = (uint64_t)bench_number(o, "count", 100000),
                   skip = (uint64_t)bench_number(o, "skip", 1000);
    const double ns_per_tick = bench_calibrate();
    uint64_t first = 0;
    if (!size || size > sizeof buffer)
        bench_die("--size must be 1 to %zu", sizeof buffer);
    bench_samples_init(s, count);
    for (uint64_t i = 0; i < count + skip && !bench_stop; i++) {
        const uint64_t begin = bench_ticks();
        if (i == skip)
            first = begin;
        if (send(fd, buffer, size, MSG_DONTWAIT) != (ssize_t)size)
            bench_die("cannot send: %s", strerror(errno));
        for (size_t got = 0; got < size;) {
            const ssize_t n = recv(fd, buffer, size - got, MSG_DONTWAIT);
            if (n > 0)
                got += (size_t)n;
            else if (n == 0 || errno != EAGAIN || bench_stop)
                bench_die("the other end is gone: %s", n ? strerror(errno) : "it closed");
        }
        if (i >= skip)
            bench_sample(s, (double)(bench_ticks() - begin) * ns_per_tick);
        if ((i & 0xff) == 0 && bench_clock_ns(CLOCK_MONOTONIC) > deadline)
            break;
    }
    return s->count ? (double)s->count * 1e9 / ((double)(bench_ticks() - first) * ns_per_tick) : 0;
}

/* ---- many connections ---- */

static int watch(int poll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
}

/* Whoever is readable is answered; ends when all who came are gone. */
static void serve(int listener, int64_t deadline)
{
    const int poll = epoll_create1(0);
    struct epoll_event events[64];
    uint8_t buffer[4096];
    int open = 0, came = 0;

    fcntl(listener, F_SETFL, O_NONBLOCK);
    watch(poll, listener);
    while (!bench_stop && (open || !came) && bench_clock_ns(CLOCK_MONOTONIC) < deadline) {
        const int n = epoll_wait(poll, events, 64, 0);
        for (int i = 0; i < n; i++) {
            const int fd = events[i].data.fd;
            if (fd == listener) {
                const int one = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (one < 0)
                    continue;
                tune(one);
                watch(poll, one);
                open++, came++;
                continue;
            }
            const ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (got > 0) {
                (void)!send(fd, buffer, (size_t)got, MSG_DONTWAIT);
            } else if (got == 0 || errno != EAGAIN) {
                close(fd);
                open--;
            }
        }
    }
}

/* One request under way on each connection, `count` in all; the first tenth is not timed. */
static void load(const struct bench_options *o, int64_t deadline)
{
    const int connections = (int)bench_number(o, "connections", 64), poll = epoll_create1(0);
    const size_t size = (size_t)bench_number(o, "size", 64);
    const uint64_t count = (uint64_t)bench_number(o, "count", 100000), warm = count / 10;
    struct epoll_event events[64];
    uint8_t buffer[4096] = {0};
    size_t got[CONNECTIONS] = {0};
    int fds[CONNECTIONS];
    uint64_t done = 0, begin = 0;

    if (connections < 1 || connections > CONNECTIONS || !size || size > sizeof buffer)
        bench_die("--connections: 1 to %d, --size: 1 to %zu", CONNECTIONS, sizeof buffer);
    for (int i = 0; i < connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        fds[i] = connect_to(o);
        epoll_ctl(poll, EPOLL_CTL_ADD, fds[i], &event);
    }
    for (int i = 0; i < connections; i++)
        (void)!send(fds[i], buffer, size, MSG_DONTWAIT);
    while (done < count && !bench_stop && bench_clock_ns(CLOCK_MONOTONIC) < deadline) {
        const int n = epoll_wait(poll, events, 64, 0);
        for (int i = 0; i < n; i++) {
            const uint32_t who = events[i].data.u32;
            const ssize_t came = recv(fds[who], buffer, size - got[who], MSG_DONTWAIT);
            if (came == 0 || (came < 0 && errno != EAGAIN))
                bench_die("the other end is gone");
            got[who] += came > 0 ? (size_t)came : 0;
            if (got[who] < size)
                continue;
            got[who] = 0;
            if (done++ == warm)
                begin = bench_ticks();
            (void)!send(fds[who], buffer, size, MSG_DONTWAIT);
        }
    }
    const double seconds = (double)(bench_ticks() - begin) * bench_calibrate() / 1e9;
    printf("{\"peer\": \"kernel epoll\", \"n\": %lu, \"rate\": %.1f}\n", done,
           done > warm ? (double)(done - warm) / seconds : 0);
}

/* ---- one stream ---- */

static void drain(int fd, int64_t deadline)
{
    uint8_t *buffer = malloc(1 << 20);
    const double ns_per_tick = bench_calibrate();
    uint64_t bytes = 0, begin = 0, last = 0;

    for (uint32_t spins = 0; buffer && !bench_stop; spins++) {
        const ssize_t n = recv(fd, buffer, 1 << 20, MSG_DONTWAIT);
        if (n > 0) {
            last = bench_ticks();
            begin = begin ? begin : last;
            bytes += (uint64_t)n;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            break;
        } else if ((spins & 0xff) == 0 && bench_clock_ns(CLOCK_MONOTONIC) > deadline) {
            break;
        }
    }
    const double seconds = (double)(last - begin) * ns_per_tick / 1e9;
    printf("{\"peer\": \"kernel drain\", \"bytes\": %lu, \"seconds\": %.6f, \"rate\": %.1f}\n", bytes,
           seconds, seconds > 0 ? (double)bytes / seconds : 0);
    free(buffer);
}

static void pour(const struct bench_options *o, int fd, int64_t deadline)
{
    const size_t piece = (size_t)bench_number(o, "write", 1 << 20);
    const uint64_t total = (uint64_t)bench_number(o, "bytes", 256 << 20);
    uint8_t *buffer = piece && piece <= WRITE_MAX ? calloc(1, piece) : NULL;
    uint64_t sent = 0;

    if (!buffer)
        bench_die("--write must be 1 to %d", WRITE_MAX);
    while (sent < total && !bench_stop && bench_clock_ns(CLOCK_MONOTONIC) < deadline) {
        const ssize_t n = send(fd, buffer, piece < total - sent ? piece : total - sent, 0);
        if (n < 0 && errno != EINTR)
            bench_die("cannot send: %s", strerror(errno));
        sent += n > 0 ? (uint64_t)n : 0;
    }
    printf("{\"peer\": \"kernel pour\", \"bytes\": %lu}\n", sent);
    free(buffer);
}

static void one_listener(const struct bench_options *o, const char *mode, int64_t deadline)
{
    const int listener = listen_at(o);

    if (!strcmp(mode, "serve")) {
        serve(listener, deadline);
        printf("{\"peer\": \"kernel epoll serve\"}\n");
        return;
    }
    fcntl(listener, F_SETFL, O_NONBLOCK);
    const int fd = accept_one(listener, deadline);
    if (!strcmp(mode, "drain")) {
        drain(fd, deadline);
        return;
    }
    echo(fd, deadline);
    printf("{\"peer\": \"kernel tcp echo\"}\n");
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    const char *mode = bench_text(&options, "mode", "echo");
    bench_start(&options);
    const int64_t deadline = bench_clock_ns(CLOCK_MONOTONIC) + (int64_t)(bench_seconds(&options) * 1e9);

    if (!strcmp(mode, "echo") || !strcmp(mode, "serve") || !strcmp(mode, "drain")) {
        one_listener(&options, mode, deadline);
    } else if (!strcmp(mode, "load")) {
        load(&options, deadline);
    } else if (!strcmp(mode, "pour")) {
        pour(&options, connect_to(&options), deadline);
    } else if (!strcmp(mode, "ping")) {
        struct bench_samples samples = {0};
        const double rate = ping(&options, connect_to(&options), deadline, &samples);
        printf("{\"peer\": \"busy-polled kernel tcp\", \"lost\": 0, \"rate\": %.1f, ", rate);
        bench_print_samples(&samples);
        printf("}\n");
    } else {
        bench_die("--mode is echo, ping, serve, load, drain or pour");
    }
    return 0;
}
