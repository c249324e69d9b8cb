/* recvmmsg_rx.c: the best a kernel UDP socket does: recvmmsg of 64, spinning, the same work a packet.
 *
 * 16 MiB of receive buffer, MSG_DONTWAIT in a loop (no sleep, so the sender pays for no wake-up). A
 * poll that found packets counts from before the call until its bytes are touched and counted.
 * --block 1 sleeps in the call instead (MSG_WAITFORONE); --room: bytes of each buffer.
 */
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

#define BURST 64

static uint8_t *buffers[BURST];
static struct mmsghdr messages[BURST];
static struct iovec vectors[BURST];

static int open_socket(const struct bench_options *o)
{
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    const int size = 16 << 20, one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
        bench_die("cannot set 16 MiB of receive buffer: %s", strerror(errno));
    const struct timeval tick = {.tv_usec = 100000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof tick);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)bench_number(o, "port", 9001))};
    inet_pton(AF_INET, bench_text(o, "dst", "0.0.0.0"), &address.sin_addr);
    if (bind(fd, (struct sockaddr *)&address, sizeof address))
        bench_die("cannot bind: %s", strerror(errno));
    const size_t room = (size_t)bench_number(o, "room", 2048);
    uint8_t *memory = aligned_alloc(4096, (BURST * room + 4095) / 4096 * 4096);
    if (!memory)
        bench_die("no memory for %d buffers of %zu bytes", BURST, room);
    memset(memory, 0, BURST * room);
    for (size_t i = 0; i < BURST; i++) {
        buffers[i] = memory + i * room;
        vectors[i] = (struct iovec){buffers[i], room};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    return fd;
}

int main(int argc, char **argv)
{
    const struct bench_options options = {argc, argv};
    bench_start(&options);
    const int fd = open_socket(&options);
    const int flags = bench_number(&options, "block", 0) != 0 ? MSG_WAITFORONE : MSG_DONTWAIT;
    struct bench_account account = {0};
    bench_account_init(&account, &options);
    const uint64_t count = (uint64_t)bench_number(&options, "count", 1e18);
    const int64_t deadline = bench_clock_ns(CLOCK_MONOTONIC) + (int64_t)(bench_seconds(&options) * 1e9);
    bench_ready();
    while (!bench_stop && account.seen < count) {
        const uint64_t begin = bench_ticks();
        const int n = recvmmsg(fd, messages, BURST, flags, NULL);
        account.polls++;
        if (n <= 0) {
            if (n < 0 && errno != EAGAIN && errno != EINTR)
                bench_die("cannot receive: %s", strerror(errno));
            if (bench_clock_ns(CLOCK_MONOTONIC) > deadline)
                break;
            continue;
        }
        uint64_t bytes = 0;
        for (int i = 0; i < n; i++) {
            account.sum += buffers[i][0];
            bytes += messages[i].msg_len;
        }
        bench_account_poll(&account, begin, (unsigned)n, bytes);
    }
    printf("{\"peer\": \"recvmmsg\", ");
    bench_print_account(&account);
    printf("}\n");
    close(fd);
    return 0;
}
