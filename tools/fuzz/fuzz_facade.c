/* fuzz_facade.c: libFuzzer over sequences of socket calls in two worlds that are joined by memory, of IPv4 alone or of
 * both families, now and then with frames lost or changed. It holds: codes are -errno, counts and lengths are within
 * what was asked, nothing is read or written past what was lent (each name, value and message is of its very size, so
 * that AddressSanitizer sees it), frames between the two come to an end, and when all is closed nothing is left.
 *
 * An input is a byte of settings, then six a call: which one and where, the descriptor, and four that it explains. The
 * upper two bits of the settings are what is there before the first call: sockets of UDP in groups, that want to be
 * told all there is (64), and a connection (128). No seed does it that soon.
 */
#define _GNU_SOURCE /* struct in6_pktinfo */
#include "xds/xds_sock.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SOCKETS     6
#define FRAME       1400
#define STEP        6
#define SCOPE       1
#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

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

/* ---- what is lent ----------------------------------------------------------------------------------- */

static uint8_t *lend(const void *data, size_t bytes)
{
    uint8_t *to = malloc(bytes ? bytes : 1);

    check(to != NULL);
    if (data)
        memcpy(to, data, bytes);
    else
        memset(to, 0, bytes ? bytes : 1);
    return bytes ? to : to + 1; /* nothing may be touched */
}

static void take_back(uint8_t *p, size_t bytes)
{
    free(bytes ? p : p - 1);
}

static int good(int code, int most)
{
    check(code <= most && code > -4096);
    return code;
}

static int flags_of(uint8_t x)
{
    static const int flags[] = {0,       0, MSG_PEEK, MSG_TRUNC, MSG_PEEK | MSG_TRUNC, MSG_OOB, MSG_ERRQUEUE,
                                MSG_MORE};
    return flags[x & 7];
}

/* ---- the worlds --------------------------------------------------------------------------------------- */

static void own(struct world *w, uint8_t i, uint8_t how)
{
    const uint8_t ip[4] = {10, 0, 0, i}, six[16] = {0xfd, [15] = i}, local[16] = {0xfe, 0x80, [15] = i};
    const uint8_t other[4] = {10, 0, 0, 3 - i}, other6[16] = {0xfd, [15] = 3 - i}, mac[6] = {2, [5] = 3 - i};
    uint32_t raw;

    memcpy(&raw, ip, 4);
    check(!xds_host_add_address(w->h, raw, 24));
    memcpy(&raw, other, 4);
    if (how & 32) /* else they ask */
        check(!xds_host_add_neighbour(w->h, raw, mac));
    if (!(how & 8))
        return;
    check(!xds_host_add_address6(w->h, six, 64) && !xds_host_add_address6(w->h, local, 64));
    if (how & 32)
        check(!xds_host_add_neighbour6(w->h, other6, mac));
}

static void begin(struct world *w, uint8_t i, uint8_t how)
{
    const struct xds_host_config host = {.mac = {2, 0, 0, 0, 0, i},
                                         .slots = 4,
                                         .mtu = how & 8 ? 1280 : 576,
                                         .slot_bytes = FRAME,
                                         .groups = 12,
                                         .flags = how & 16 ? XDS_HOST_REPORTS : 0,
                                         .seed = i};
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
        .sockets = SOCKETS, .datagram = 2, .receive_bytes = 300, .send_bytes = 400, .scope = SCOPE};

    w->h = malloc(xds_host_size(&host));
    check(!xds_host_init(w->h, &host));
    own(w, i, how);
    w->s = malloc(xds_stack_size(&cfg));
    check(!xds_stack_init(w->s, &cfg, w->h));
    w->n = malloc(xds_socks_size(&socks, w->s));
    check(!xds_socks_init(w->n, &socks, w->s, w->h));
}

static void carry(struct both *b, uint8_t how)
{
    for (int moved = 1, count = 0; moved;) {
        moved = 0;
        for (int i = 0; i < 2; i++) {
            uint8_t *bytes = malloc(FRAME);
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
            free(bytes);
        }
    }
}

static void wait_on(struct both *b, int64_t ns)
{
    b->now += ns;
    for (int i = 0; i < 2; i++)
        xds_socks_tick(b->side[i].n, b->now);
}

/* ---- names -------------------------------------------------------------------------------------------- */

/* An end by four bits: of either side, to many, of nobody, any. */
static void end4(uint8_t kind, uint8_t out[4])
{
    static const uint8_t ends[8][4] = {{10, 0, 0, 1},  {10, 0, 0, 2}, {239, 1, 1, 1},       {239, 1, 1, 2},
                                       {10, 0, 0, 77}, {0},           {255, 255, 255, 255}, {224, 0, 0, 1}};
    memcpy(out, ends[kind & 7], 4);
}

static void end6(uint8_t kind, uint8_t out[16])
{
    static const uint8_t ends[8][16] = {{0xfd, [15] = 1},       {0xfd, [15] = 2},
                                        {0xff, 0x15, [15] = 1}, {0xff, 0x02, [15] = 1},
                                        {0xfe, 0x80, [15] = 1}, {0},
                                        {0xfe, 0x80, [15] = 2}, {0xff, 0x15, [15] = 2}};

    memcpy(out, ends[kind & 7], 16);
    if (kind & 8) { /* mapped */
        memset(out, 0, 16);
        out[10] = out[11] = 0xff;
        end4(kind, out + 12);
    }
}

/* Its bytes. x: four bits the end, one the family, two the port or an unusual length, one the scope. */
static uint32_t name(uint8_t x, uint8_t port, uint8_t out[28])
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(100 + port % 6))};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = in.sin_port};
    const uint32_t off = port / 6 % 8; /* mostly right */

    memset(out, 0, 28);
    in.sin_port = in6.sin6_port = port >= 250 ? 0 : in.sin_port;
    in.sin_family = in6.sin6_family = port == 249 ? AF_UNSPEC : port == 248 ? 77 : in.sin_family;
    in6.sin6_family = port == 249 || port == 248 ? in.sin_family : AF_INET6;
    if (x & 16) {
        end6(x & 15, (uint8_t *)&in6.sin6_addr);
        in6.sin6_scope_id = x & 32 ? SCOPE : x >> 6;
        memcpy(out, &in6, sizeof in6);
        return off == 7 ? 24 : off == 6 ? 23 : off == 5 ? port % 3 : sizeof in6;
    }
    end4(x & 15, (uint8_t *)&in.sin_addr);
    memcpy(out, &in, sizeof in);
    return off == 7 ? 28 : off == 6 ? 15 : off == 5 ? port % 3 : sizeof in;
}

/* ---- messages ----------------------------------------------------------------------------------------- */

/* Into pieces of odd sizes, with too little room for the rest as well. */
static void read_message(struct xds_socks *n, int fd, const uint8_t *how)
{
    const size_t sizes[3] = {how[2] & 31, how[2] >> 5, how[3]}, room = how[4] & 127;
    const uint32_t named = how[5] & 31;
    uint8_t *pieces[3], *control = lend(NULL, room), *whose = lend(NULL, named);
    struct iovec vector[3];
    struct msghdr m = {.msg_name = how[5] & 32 ? whose : NULL,
                       .msg_namelen = named,
                       .msg_iov = vector,
                       .msg_iovlen = how[5] >> 6,
                       .msg_control = how[4] & 128 ? control : NULL,
                       .msg_controllen = room};

    for (int i = 0; i < 3; i++) {
        pieces[i] = lend(NULL, sizes[i]);
        vector[i] = (struct iovec){pieces[i], sizes[i]};
    }
    if (good(xds_recvmsg(n, fd, &m, flags_of(how[0] >> 6 | how[1] >> 6 << 1)), 65535) >= 0)
        check(m.msg_controllen <= room && m.msg_namelen <= sizeof(struct sockaddr_in6) + named);
    for (int i = 0; i < 3; i++)
        take_back(pieces[i], sizes[i]);
    take_back(control, room);
    take_back(whose, named);
}

/* One word of control, right or nearly so. Returns its bytes. */
static size_t word(uint8_t kind, uint8_t value, uint8_t *to)
{
    static const int types[8][2] = {{IPPROTO_IP, IP_PKTINFO},      {IPPROTO_IP, IP_TTL},
                                    {IPPROTO_IP, IP_TOS},          {IPPROTO_IPV6, IPV6_PKTINFO},
                                    {IPPROTO_IPV6, IPV6_HOPLIMIT}, {IPPROTO_IPV6, IPV6_TCLASS},
                                    {IPPROTO_IPV6, IPV6_DONTFRAG}, {SOL_SOCKET, 1}};
    struct cmsghdr head = {.cmsg_level = types[kind & 7][0], .cmsg_type = types[kind & 7][1]};
    struct in_pktinfo four = {.ipi_ifindex = value >> 6};
    struct in6_pktinfo six = {.ipi6_ifindex = value >> 6};
    const int v = (int8_t)value;
    const void *data = &v;
    size_t len = kind & 8 && (kind & 7) == 2 ? 1 : sizeof v;

    end4(value & 15, (uint8_t *)&four.ipi_spec_dst);
    end6(value & 15, (uint8_t *)&six.ipi6_addr);
    if ((kind & 7) == 0)
        data = &four, len = sizeof four;
    if ((kind & 7) == 3)
        data = &six, len = sizeof six;
    memcpy(to + sizeof head, data, len);
    head.cmsg_len = CMSG_LEN(len) - (kind & 16 ? 1 : 0) + (kind & 32 ? 9 : 0);
    head.cmsg_len = kind >> 5 == 7 ? (size_t)value * 0x0101010101010101u : head.cmsg_len;
    memcpy(to, &head, sizeof head);
    return CMSG_SPACE(len);
}

/* To somebody or to the peer, with up to two words; the last one may be cut. */
static void send_message(struct xds_socks *n, int fd, const uint8_t *how)
{
    uint8_t words[2 * CMSG_SPACE(sizeof(struct in6_pktinfo))] = {0}, bytes[28];
    const uint32_t named = name(how[4], how[5], bytes);
    size_t used = how[1] & 64 ? word(how[2], how[3], words) : 0;

    used += how[1] & 128 ? word(how[3], how[2], words + used) : 0;
    used -= used && how[0] & 32 ? how[2] % used : 0;
    const size_t sizes[2] = {how[3] & 127, how[2] & 7};
    uint8_t *control = lend(words, used), *whom = lend(bytes, named);
    uint8_t *first = lend(NULL, sizes[0]), *second = lend(NULL, sizes[1]);
    struct iovec vector[2] = {{first, sizes[0]}, {second, sizes[1]}};
    const struct msghdr m = {.msg_name = how[5] % 3 ? whom : NULL,
                             .msg_namelen = named,
                             .msg_iov = vector,
                             .msg_iovlen = 2,
                             .msg_control = control,
                             .msg_controllen = used};

    good(xds_sendmsg(n, fd, &m, how[5] % 31 ? 0 : flags_of(how[2])), (int)(sizes[0] + sizes[1]));
    take_back(control, used);
    take_back(whom, named);
    take_back(first, sizes[0]);
    take_back(second, sizes[1]);
}

/* ---- options ------------------------------------------------------------------------------------------ */

static void set(struct xds_socks *n, int fd, int level, int option, const void *value, size_t len)
{
    uint8_t *lent = lend(value, len);

    good(xds_setsockopt(n, fd, level, option, lent, (uint32_t)len), 0);
    take_back(lent, len);
}

static void get(struct xds_socks *n, int fd, int level, int option, const void *ask, size_t len)
{
    uint8_t *lent = lend(ask, len);
    uint32_t told = (uint32_t)len;

    good(xds_getsockopt(n, fd, level, option, lent, &told), 0);
    check(told <= len);
    take_back(lent, len);
}

static void storage(struct sockaddr_storage *to, int six, uint8_t kind)
{
    to->ss_family = six ? AF_INET6 : AF_INET;
    if (six)
        end6(kind, (uint8_t *)&((struct sockaddr_in6 *)to)->sin6_addr);
    else
        end4(kind, (uint8_t *)&((struct sockaddr_in *)to)->sin_addr);
}

/* Groups of either family, from anybody and from one source. */
static void groups(struct xds_socks *n, int fd, const uint8_t *how)
{
    static const int options[] = {IP_ADD_MEMBERSHIP,  IP_DROP_MEMBERSHIP,      IP_ADD_SOURCE_MEMBERSHIP,
                                  IP_BLOCK_SOURCE,    IP_UNBLOCK_SOURCE,       IP_DROP_SOURCE_MEMBERSHIP,
                                  IPV6_JOIN_GROUP,    IPV6_LEAVE_GROUP,        MCAST_JOIN_GROUP,
                                  MCAST_LEAVE_GROUP,  MCAST_JOIN_SOURCE_GROUP, MCAST_LEAVE_SOURCE_GROUP,
                                  MCAST_BLOCK_SOURCE, MCAST_UNBLOCK_SOURCE};
    const uint8_t which = how[2] % COUNT(options), six = how[0] >> 5 & 1;
    const int option = options[which];
    const size_t off = how[3] == 77;
    struct group_source_req r = {.gsr_interface = how[5] >> 6};
    struct ipv6_mreq six_of = {.ipv6mr_interface = how[5] >> 6};
    uint8_t words[12] = {0};

    if (which < 6) {
        end4(how[3], words);
        end4(how[3] >> 4, words + 4);
        words[8] = 10, words[11] = how[4];
        if (which < 2)
            memset(words + 8, 0, 4), words[8] = how[5] >> 6;
        set(n, fd, IPPROTO_IP, option, words, sizeof words - off);
    } else if (which < 8) {
        end6(how[3], (uint8_t *)&six_of.ipv6mr_multiaddr);
        set(n, fd, IPPROTO_IPV6, option, &six_of, sizeof six_of - off);
    } else {
        storage(&r.gsr_group, six, how[3]);
        storage(&r.gsr_source, six, how[4]);
        ((uint8_t *)&r.gsr_source)[7] ^= how[4] >> 4; /* many of them */
        set(n, fd, six ? IPPROTO_IPV6 : IPPROTO_IP, option, &r,
            (which < 10 ? sizeof(struct group_req) : sizeof r) - off);
    }
}

/* A list as a whole, set and asked for, whose number and length do not always agree. */
static void filters(struct xds_socks *n, int fd, const uint8_t *how)
{
    const uint8_t six = how[0] >> 5 & 1, count = how[4] & 15, told = how[2] & 2 ? how[5] : count;
    const size_t head = offsetof(struct group_filter, gf_slist),
                 head4 = offsetof(struct ip_msfilter, imsf_slist);
    union {
        struct group_filter f;
        struct ip_msfilter f4;
        uint8_t bytes[sizeof(struct group_filter) + 16 * sizeof(struct sockaddr_storage)];
    } u;
    size_t len;

    memset(&u, 0, sizeof u);
    if (how[2] & 1) {
        end4(how[3], (uint8_t *)&u.f4.imsf_multiaddr);
        u.f4.imsf_fmode = how[2] >> 2 & 3;
        u.f4.imsf_numsrc = told;
        for (unsigned i = 0; i < count; i++)
            memcpy(u.bytes + head4 + 4 * i, (uint8_t[4]){10, 0, 0, (uint8_t)(how[5] + i)}, 4);
        len = head4 + 4 * count;
    } else {
        u.f.gf_interface = how[2] >> 4 & 3;
        u.f.gf_fmode = how[2] >> 2 & 3;
        u.f.gf_numsrc = told;
        storage(&u.f.gf_group, six, how[3]);
        for (unsigned i = 0; i < count; i++) {
            struct sockaddr_storage *one = (struct sockaddr_storage *)(u.bytes + head) + i;
            storage(one, six, how[5]);
            ((uint8_t *)one)[six ? 23 : 7] = (uint8_t)(1 + i);
        }
        len = head + sizeof(struct sockaddr_storage) * count;
    }
    len -= how[2] & 64 ? how[5] % len : 0;
    const int level = six && !(how[2] & 1) ? IPPROTO_IPV6 : IPPROTO_IP;
    (how[2] & 128 ? get : set)(n, fd, level, how[2] & 1 ? IP_MSFILTER : MCAST_MSFILTER, &u, len);
}

static const int known[][2] = {
    {SOL_SOCKET, SO_REUSEADDR},
    {SOL_SOCKET, SO_ERROR},
    {SOL_SOCKET, SO_KEEPALIVE},
    {SOL_SOCKET, SO_LINGER},
    {SOL_SOCKET, SO_TYPE},
    {SOL_SOCKET, SO_BROADCAST},
    {SOL_SOCKET, SO_DOMAIN},
    {SOL_SOCKET, SO_PROTOCOL},
    {SOL_SOCKET, SO_ACCEPTCONN},
    {SOL_SOCKET, SO_SNDBUF},
    {SOL_SOCKET, SO_RCVTIMEO},
    {SOL_SOCKET, SO_BINDTODEVICE},
    {IPPROTO_TCP, TCP_QUICKACK},
    {IPPROTO_TCP, TCP_CORK},
    {IPPROTO_IP, IP_MTU},
    {IPPROTO_IP, IP_MTU_DISCOVER},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IP, IP_OPTIONS},
    {IPPROTO_IPV6, IPV6_MTU},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER},
    {IPPROTO_IPV6, IPV6_DONTFRAG},
    {SOL_SOCKET, 250},
    {IPPROTO_IP, 250},
    {IPPROTO_IPV6, 250},
    {IPPROTO_UDP, 1},
    {SOL_SOCKET, SO_RCVBUF},
    {IPPROTO_TCP, TCP_NODELAY},
    {IPPROTO_TCP, TCP_KEEPIDLE},
    {IPPROTO_TCP, TCP_KEEPCNT},
    {IPPROTO_TCP, TCP_KEEPINTVL},
    {IPPROTO_TCP, TCP_MAXSEG},
    {IPPROTO_TCP, TCP_USER_TIMEOUT},
    {IPPROTO_TCP, TCP_CONGESTION},
    {IPPROTO_TCP, TCP_INFO},
    {IPPROTO_IP, IP_TOS},
    {IPPROTO_IP, IP_TTL},
    {IPPROTO_IP, IP_MULTICAST_TTL},
    {IPPROTO_IP, IP_MULTICAST_IF},
    {IPPROTO_IP, IP_MULTICAST_LOOP},
    {IPPROTO_IP, IP_MULTICAST_ALL},
    {IPPROTO_IP, IP_PKTINFO},
    {IPPROTO_IP, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS},
    {IPPROTO_IPV6, IPV6_V6ONLY},
    {IPPROTO_IPV6, IPV6_TCLASS},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_IF},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP},
    {IPPROTO_IPV6, IPV6_MULTICAST_ALL},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},
    {IPPROTO_IPV6, IPV6_PKTINFO},
    {IPPROTO_TCP, 250},
};

static void options(struct xds_socks *n, int fd, const uint8_t *how)
{
    const int *const one = known[how[2] % COUNT(known)];
    uint8_t value[300] = {how[3], how[4], 0, 0};
    size_t len = how[5];

    if (how[4] & 128) /* negative */
        value[2] = value[3] = 255;
    if (one[0] == IPPROTO_TCP && one[1] == TCP_CONGESTION && how[3] & 1)
        memcpy(value, how[3] & 2 ? "reno" : "cubic", 5);
    if (one[0] == IPPROTO_IPV6 && one[1] == IPV6_PKTINFO) {
        end6(how[3], value);
        memset(value + 16, 0, 4);
        value[16] = how[4] & 3;
        len = how[5] & 1 ? 20 : len;
    } else if (how[5] & 128) {
        len = 4;
    }
    (how[0] & 32 ? set : get)(n, fd, one[0], one[1], value, len);
}

/* ---- calls -------------------------------------------------------------------------------------------- */

static void by_name(struct xds_socks *n, int fd, const uint8_t *how, int what)
{
    uint8_t bytes[28];
    const uint32_t len = name(how[4], how[5], bytes);
    uint8_t *lent = lend(bytes, len), *data = lend(NULL, how[2]);

    if (what == 1)
        good(xds_bind(n, fd, lent, len), 0);
    else if (what == 4)
        good(xds_connect(n, fd, lent, len), 0);
    else
        good(xds_sendto(n, fd, data, how[2], 0, lent, len), how[2]);
    take_back(lent, len);
    take_back(data, how[2]);
}

/* Who tells a name: into room that may be too small. */
static void tell(struct xds_socks *n, int fd, const uint8_t *how, int what)
{
    const uint32_t room = how[3] & 31;
    uint32_t len = room;
    uint8_t *lent = lend(NULL, room), *data = lend(NULL, how[2]);

    if (what == 3)
        good(xds_accept(n, fd, lent, &len), SOCKETS - 1);
    else if (what == 7)
        good(xds_recvfrom(n, fd, data, how[2], flags_of(how[4]), lent, &len),
             flags_of(how[4]) & MSG_TRUNC ? 65535 : how[2]);
    else if (how[2] & 1)
        good(xds_getsockname(n, fd, lent, &len), 0);
    else
        good(xds_getpeername(n, fd, lent, &len), 0);
    check(len <= room || len <= sizeof(struct sockaddr_in6));
    take_back(lent, room);
    take_back(data, how[2]);
}

static void stream(struct xds_socks *n, int fd, const uint8_t *how, int what)
{
    uint8_t *data = lend(NULL, how[2]);

    good(what == 5 ? xds_read(n, fd, data, how[2]) : xds_write(n, fd, data, how[2]), how[2]);
    take_back(data, how[2]);
}

static void call(struct both *b, const uint8_t *how)
{
    struct xds_socks *n = b->side[how[0] & 1].n;
    const int fd = (int)((how[1] & 63) % (SOCKETS + 1)) - 1, what = how[0] >> 1 & 15;

    switch (what) {
    case 0:
        good(xds_socket(n, how[2] & 2 ? AF_INET6 : AF_INET, how[2] & 1 ? SOCK_STREAM : SOCK_DGRAM, 0),
             SOCKETS - 1);
        break;
    case 2:
        good(xds_listen(n, fd, (int8_t)how[2]), 0);
        break;
    case 1:
    case 4:
    case 8:
        by_name(n, fd, how, what);
        break;
    case 5:
    case 6:
        stream(n, fd, how, what);
        break;
    case 3:
    case 11:
        tell(n, fd, how, what);
        break;
    case 7:
        if (how[0] & 32)
            read_message(n, fd, how);
        else
            tell(n, fd, how, what);
        break;
    case 9:
        if (how[0] & 32)
            good(xds_close(n, fd), 0);
        else
            good(xds_shutdown(n, fd, how[2] & 3), 0);
        break;
    case 10:
        send_message(n, fd, how);
        break;
    case 12:
        options(n, fd, how);
        break;
    case 13:
        groups(n, fd, how);
        break;
    case 14:
        filters(n, fd, how);
        break;
    default:
        wait_on(b, how[2] * (how[0] & 32 ? 1000000000ll : 1000000ll));
    }
}

/* ---- what is there at first --------------------------------------------------------------------------- */

static void switch_on(struct xds_socks *n, int fd, int level, int option)
{
    set(n, fd, level, option, &(int){1}, sizeof(int));
}

/* On port 100 and connected: one of each family, where there are both. */
static void letters(struct world *w, uint8_t other, uint8_t how)
{
    static const int told[][2] = {{IPPROTO_IP, IP_PKTINFO},          {IPPROTO_IP, IP_RECVTTL},
                                  {IPPROTO_IP, IP_RECVTOS},          {IPPROTO_IPV6, IPV6_RECVPKTINFO},
                                  {IPPROTO_IPV6, IPV6_RECVHOPLIMIT}, {IPPROTO_IPV6, IPV6_RECVTCLASS}};
    uint8_t bytes[28];
    struct group_source_req from = {.gsr_interface = SCOPE};
    struct ipv6_mreq six = {.ipv6mr_interface = SCOPE};
    struct ip_mreqn four = {.imr_ifindex = SCOPE};

    end4(2, (uint8_t *)&four.imr_multiaddr);
    end6(2, (uint8_t *)&six.ipv6mr_multiaddr);
    for (int kind = 0; kind <= (how >> 3 & 1); kind++) {
        const int fd = xds_socket(w->n, kind ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
        check(fd == kind);
        if (kind)
            switch_on(w->n, fd, IPPROTO_IPV6, IPV6_V6ONLY);
        check(!xds_bind(w->n, fd, bytes, name(kind ? 16 + 5 : 5, 2, bytes)));
        for (size_t i = 0; i < COUNT(told); i++)
            switch_on(w->n, fd, told[i][0], told[i][1]);
        set(w->n, fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &four, sizeof four);
        if (kind)
            set(w->n, fd, IPPROTO_IPV6, IPV6_JOIN_GROUP, &six, sizeof six);
        storage(&from.gsr_group, kind, kind ? 7 : 3);
        storage(&from.gsr_source, kind, other - 1);
        set(w->n, fd, kind ? IPPROTO_IPV6 : IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, &from, sizeof from);
        if (how & 16)
            check(!xds_connect(w->n, fd, bytes, name(kind ? 16 + other - 1 : other - 1, 2, bytes)));
    }
}

/* From the first world to the second one, where it was accepted: over IPv6, where there is one. */
static void connection(struct both *b, uint8_t how)
{
    struct xds_socks *a = b->side[0].n, *z = b->side[1].n;
    const int family = how & 8 ? AF_INET6 : AF_INET;
    const uint8_t any = how & 8 ? 16 + 5 : 5, there = how & 8 ? 16 + 1 : 1;
    uint8_t bytes[28];
    const int listener = xds_socket(z, family, SOCK_STREAM, 0), to = xds_socket(a, family, SOCK_STREAM, 0);

    check(listener >= 0 && to >= 0);
    check(!xds_bind(z, listener, bytes, name(any, 1, bytes)) && !xds_listen(z, listener, 2));
    check(xds_connect(a, to, bytes, name(there, 1, bytes)) == -EINPROGRESS);
    carry(b, 0);
    check(xds_accept(z, listener, NULL, NULL) >= 0 && !xds_connect(a, to, bytes, name(there, 1, bytes)));
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
    for (uint8_t i = 0; i < 2 && data[0] & 64; i++)
        letters(&b.side[i], 2 - i, data[0]);
    if (data[0] & 128)
        connection(&b, data[0]);
    for (size_t at = 1; at + STEP <= size; at += STEP) {
        call(&b, data + at);
        if (!(data[at] & 128)) /* else several calls go before the wire moves */
            carry(&b, data[at] & 64 ? data[at + 3] : 0);
        look(&b);
    }
    finish(&b);
    return 0;
}

/* ---- what is tried ---------------------------------------------------------------------------------------- */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

static uint8_t chance(unsigned *seed)
{
    *seed = *seed * 1103515245u + 12345u;
    return (uint8_t)(*seed >> 16);
}

/* A call more, less or another, as a whole, three times out of four: else what comes behind would be read at an odd
 * place, and mean nothing like it did. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    const size_t calls = size ? (size - 1) / STEP : 0;
    const uint8_t what = chance(&seed) & 7;

    if (what < 2 || !size)
        return LLVMFuzzerMutate(data, size, room);
    const size_t i = calls ? (chance(&seed) | chance(&seed) << 8) % calls : 0;
    uint8_t *at = data + 1 + i * STEP;
    if (what < 4 && calls > 1) {
        memmove(at, at + STEP, size - 1 - (i + 1) * STEP);
        return size - STEP;
    }
    if (what < 7 && size + STEP <= room) {
        memmove(at + STEP, at, size - 1 - i * STEP);
        size += STEP;
        if (what == 6 && calls) /* twice the same, but for a byte */
            at[chance(&seed) % STEP] = chance(&seed);
        for (int k = 0; k < STEP && (what < 6 || !calls); k++)
            at[k] = chance(&seed);
        return size;
    }
    if (calls)
        at[chance(&seed) % STEP] = chance(&seed);
    return size;
}
