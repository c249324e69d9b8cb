/* fuzz_facade.c: libFuzzer over sequences of socket calls in two worlds that are joined by memory, now and then with
 * frames lost or changed. It holds: codes are -errno, counts are within what was
 * asked, frames between the two come to an end, and when all is closed nothing is left.
 */
#include "xds/xds_sock.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SOCKETS 6
#define FRAME   600

struct world {
    struct xds_socks *n;
    struct xds_stack *s;
    struct xds_host *h;
};

struct both {
    struct world side[2];
    int64_t now;
};

static void check(int holds)
{
    if (!holds)
        abort();
}

static void begin(struct world *w, uint8_t i, uint8_t how)
{
    const struct xds_host_config host = {
        .mac = {2, 0, 0, 0, 0, i}, .slots = 4, .mtu = 576, .slot_bytes = 600};
    const struct xds_stack_config cfg = {
        .connections = 4,
        .listeners = 2,
        .send_bytes = 256,
        .receive_bytes = 256,
        .port_first = 100,
        .port_last = 104,
        .resets = 3,
        .secret = {i},
        .tcp = {.nagle = how & 1, .keepalive = how >> 1 & 1, .no_stamps = how >> 2 & 1}};
    const struct xds_socks_config socks = {
        .sockets = SOCKETS, .datagram = 2, .receive_bytes = 200, .send_bytes = 300};
    const uint8_t ip[4] = {10, 0, 0, i};
    uint32_t raw;

    memcpy(&raw, ip, 4);
    w->h = malloc(xds_host_size(&host));
    check(!xds_host_init(w->h, &host) && !xds_host_add_address(w->h, raw, 24));
    w->s = malloc(xds_stack_size(&cfg));
    check(!xds_stack_init(w->s, &cfg, w->h));
    w->n = malloc(xds_socks_size(&socks, w->s));
    check(!xds_socks_init(w->n, &socks, w->s, w->h));
}

static void carry(struct both *b, uint8_t how)
{
    uint8_t bytes[FRAME];

    for (int moved = 1, count = 0; moved;) {
        moved = 0;
        for (int i = 0; i < 2; i++) {
            struct xds_frame f = {.data = bytes, .len = FRAME};
            for (int len; (len = xds_socks_output(b->side[i].n, &f, b->now)) > 0; f.len = FRAME) {
                check(len <= FRAME && ++count < 20000);
                moved = 1;
                if (how & 1 && count % 3 == 0)
                    continue;
                if (how & 2 && count % 5 == 0)
                    bytes[how % (unsigned)len] ^= how;
                xds_socks_frame(b->side[!i].n, &f, b->now);
            }
        }
    }
}

static void wait_on(struct both *b, int64_t ns)
{
    b->now += ns;
    for (int i = 0; i < 2; i++)
        xds_socks_tick(b->side[i].n, b->now);
}

static int good(int code, int most)
{
    check(code <= most && code > -4096);
    return code;
}

/* Into pieces of odd sizes, with too little room for the rest as well. */
static void read_message(struct xds_socks *n, int fd, const uint8_t *how)
{
    uint8_t bytes[300], control[64], name[28];
    struct iovec pieces[3] = {{bytes, how[2] & 31}, {bytes + 31, how[2] >> 5}, {bytes + 40, how[3]}};
    struct msghdr m = {.msg_name = how[3] & 1 ? name : NULL,
                       .msg_namelen = how[3] & 31u,
                       .msg_iov = pieces,
                       .msg_iovlen = how[2] & 3,
                       .msg_control = how[3] & 2 ? control : NULL,
                       .msg_controllen = how[3] & 63u};

    good(xds_recvmsg(n, fd, &m, how[1] & 128 ? MSG_TRUNC : how[1] & 64 ? MSG_PEEK : 0), 65535);
}

/* Groups of either family, from anybody and from lists, whose lengths are right or nearly so. */
static void groups(struct xds_socks *n, int fd, const uint8_t *how)
{
    static const int options[] = {IP_ADD_MEMBERSHIP,
                                  IP_DROP_MEMBERSHIP,
                                  IP_ADD_SOURCE_MEMBERSHIP,
                                  MCAST_JOIN_GROUP,
                                  IP_DROP_SOURCE_MEMBERSHIP,
                                  MCAST_LEAVE_GROUP,
                                  MCAST_JOIN_SOURCE_GROUP,
                                  MCAST_LEAVE_SOURCE_GROUP,
                                  IP_MULTICAST_LOOP,
                                  IP_PKTINFO,
                                  IP_TTL};
    const int option = options[how[2] % 11];
    uint8_t group[4] = {239, 1, 1, how[3] & 1}, source[4] = {10, 7, 7, how[3] >> 1 & 15};
    struct group_source_req r = {.gsr_interface = how[3] >> 7};
    uint8_t words[12] = {0};
    uint32_t len = how[3] & 64 ? sizeof words : 8;

    memcpy(words, group, 4);
    memcpy(words + 8, source, 4);
    if (option < MCAST_JOIN_GROUP) {
        good(xds_setsockopt(n, fd, IPPROTO_IP, option, words, len), 0);
        return;
    }
    struct sockaddr_in *to = (struct sockaddr_in *)&r.gsr_group, *from = (struct sockaddr_in *)&r.gsr_source;
    to->sin_family = from->sin_family = AF_INET;
    memcpy(&to->sin_addr, group, 4);
    memcpy(&from->sin_addr, source, 4);
    good(xds_setsockopt(n, fd, IPPROTO_IP, option, &r, sizeof r - (how[3] >> 5 & 1)), 0);
}

static void call(struct both *b, const uint8_t *how)
{
    static const int options[] = {SO_REUSEADDR, SO_ERROR,         SO_KEEPALIVE,  SO_LINGER,
                                  SO_TYPE,      TCP_NODELAY,      TCP_KEEPIDLE,  TCP_KEEPCNT,
                                  TCP_MAXSEG,   TCP_USER_TIMEOUT, TCP_CONGESTION};
    struct xds_socks *n = b->side[how[0] & 1].n;
    const int fd = (int)(how[1] % (SOCKETS + 1)) - 1;
    struct sockaddr_in name = {.sin_family = how[3] == 255 ? AF_UNSPEC : AF_INET,
                               .sin_port = (uint16_t)((100 + how[2] % 6) << 8)};
    uint8_t bytes[300] = {how[2]}, *ip = (uint8_t *)&name.sin_addr;
    uint32_t len = how[3] & 31;

    if (how[3] & 32)
        memcpy(ip, (uint8_t[4]){10, 0, 0, (uint8_t)(1 + (how[2] >> 7))}, 4);
    switch (how[0] >> 1 & 15) {
    case 0:
        good(xds_socket(n, AF_INET, how[2] & 1 ? SOCK_STREAM : SOCK_DGRAM, 0), SOCKETS - 1);
        break;
    case 1:
        good(xds_bind(n, fd, &name, how[3] & 64 ? len : sizeof name), 0);
        break;
    case 2:
        good(xds_listen(n, fd, (int8_t)how[2]), 0);
        break;
    case 3:
        good(xds_accept(n, fd, bytes, &len), SOCKETS - 1);
        break;
    case 4:
        good(xds_connect(n, fd, &name, how[3] & 64 ? len : sizeof name), 0);
        break;
    case 5:
        good(xds_read(n, fd, bytes, how[2]), how[2]);
        break;
    case 6:
        good(xds_write(n, fd, bytes, how[2]), how[2]);
        break;
    case 7:
        if (how[3] & 128)
            read_message(n, fd, how);
        else
            good(xds_recvfrom(n, fd, bytes, how[2], 0, bytes + 260, &len), how[2]);
        break;
    case 8:
        good(xds_sendto(n, fd, bytes, how[2], 0, &name, how[3] & 64 ? len : sizeof name), how[2]);
        break;
    case 9:
        good(xds_shutdown(n, fd, how[2] & 3), 0);
        break;
    case 10:
        good(xds_close(n, fd), 0);
        break;
    case 11:
        good(how[2] & 1 ? xds_getsockname(n, fd, bytes, &len) : xds_getpeername(n, fd, bytes, &len), 0);
        break;
    case 13:
        groups(n, fd, how);
        break;
    case 12: {
        const int option = options[how[2] % 11], level = how[2] % 11 > 4 ? IPPROTO_TCP : SOL_SOCKET;
        memcpy(bytes, how, 4);
        if (how[0] & 32)
            good(xds_setsockopt(n, fd, level, option, bytes, len), 0);
        else
            good(xds_getsockopt(n, fd, level, option, bytes, &len), 0);
        break;
    }
    case 14:
        wait_on(b, how[2] * 1000000ll);
        break;
    default:
        wait_on(b, how[2] * 1000000000ll);
    }
}

static void look(struct both *b)
{
    for (int i = 0; i < 2; i++) {
        struct pollfd fds[SOCKETS];
        for (int k = 0; k < SOCKETS; k++)
            fds[k] = (struct pollfd){.fd = k - 1, .events = 0x7fff};
        check(xds_poll(b->side[i].n, fds, SOCKETS) <= SOCKETS && !fds[0].revents);
    }
}

static void finish(struct both *b)
{
    struct xds_stack_stats s;

    for (int i = 0; i < 2; i++)
        for (int fd = 0; fd < SOCKETS; fd++)
            xds_close(b->side[i].n, fd);
    for (int k = 0; k < 200; k++) {
        carry(b, 0);
        wait_on(b, 10000000000);
    }
    carry(b, 0);
    for (int i = 0; i < 2; i++) {
        xds_stack_stats(b->side[i].s, &s);
        check(s.connections == 0 && xds_socks_deadline(b->side[i].n) == XDS_NEVER);
        free(b->side[i].n);
        free(b->side[i].s);
        free(b->side[i].h);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct both b = {.now = 1000000000};

    if (!size)
        return 0;
    for (uint8_t i = 0; i < 2; i++)
        begin(&b.side[i], (uint8_t)(i + 1), data[0]);
    for (size_t at = 1; at + 4 <= size; at += 4) {
        call(&b, data + at);
        if (!(data[at] & 128)) /* else several calls go before the wire moves */
            carry(&b, data[at] & 64 ? data[at + 3] : 0);
        look(&b);
    }
    finish(&b);
    return 0;
}
