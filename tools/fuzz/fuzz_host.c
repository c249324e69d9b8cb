/* fuzz_host.c: libFuzzer over the host core: frames in, each from memory of exactly its size; answers and
 * a datagram out, into rooms of exactly theirs. It holds: received = delivered + reasons, a datagram lies
 * inside its frame, the fast checksum equals the obvious one, what the host builds it accepts.
 *
 * Some frames are the fuzzer's bytes as they are. No fuzzer guesses addresses, lengths and sums, so others are
 * packets round its bytes: ARP, ICMP, IGMP, UDP, TCP, extension headers, NDP and MLD, from whom and to whom it
 * says, about what the host sent last where it wants, and in pieces that lap over, are missing or out of order.
 */
#include "ground/csum_inl.h"
#include "xds/host.h"

#include <stdlib.h>
#include <string.h>

#define ME   0x0100000a /* 10.0.0.1, network order in memory */
#define PEER 0x0200000a

static const uint8_t me6[16] = {0x20, 1, 0xd, 0xb8, [15] = 1}, peer6[16] = {0x20, 1, 0xd, 0xb8, [15] = 2};
static const uint8_t link6[16] = {0xfe, 0x80, [15] = 1}, group6[16] = {0xff, 5, [15] = 9}, none6[16];

static void check(int holds)
{
    if (!holds)
        abort();
}

static uint16_t slow_sum(const uint8_t *p, uint32_t len)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < len; i++)
        sum += i & 1 ? (uint32_t)p[i] << 8 : p[i];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void check_stats(const struct xds_host *h)
{
    struct xds_host_stats s;
    uint64_t sum = 0;

    xds_host_stats(h, &s);
    for (int i = 0; i < XDS_HOST_REASONS; i++)
        sum += s.reasons[i];
    check(sum == s.received);
}

/* What was given lies in its frame, or, put together of fragments, in the host's memory. */
static int lies_inside(const uint8_t *p, uint32_t len, const struct xds_frame *f, const uint8_t *mem,
                       size_t mem_len)
{
    return (p >= f->data && p + len <= f->data + f->len) || (p >= mem && p + len <= mem + mem_len);
}

/* A record that is a packet begins with how it is made: HOW bytes of these, then the body. */
enum {
    HOW = 4,
    KINDS = 15,  /* how[0]: enum kind                                                            */
    CUT = 16,    /*         in two pieces, the first how[2] eights long                          */
    TAGGED = 32, /*         with a VLAN tag                                                      */
    ABOUT = 64,  /*         behind the first eight bytes stands what the host sent last          */
    WAYS = 6,    /* in which the host sends: send_all()                                          */
    WRONG = 128, /*         its sum is as the fuzzer has it                                      */
};
enum kind { ARP, ICMP, IGMP, UDP, TCP, OTHER, ICMP6, ALERTED6, UDP6, TCP6, HEADERS6 };

static const uint8_t own_mac[6] = {2, 0, 0, 0, 0, 1}, peer_mac[6] = {2, 0, 0, 0, 0, 2};
static const uint32_t sources[4] = {PEER, ME, 0, 0x0300000a};
static const uint32_t targets[4] = {ME, 0x010000ef, 0x010000e0, 0xff00000a};
static const uint8_t sources6[4][16] = {
    {0x20, 1, 0xd, 0xb8, [15] = 2}, {0xfe, 0x80, [15] = 2}, {0}, {0x20, 1, 0xd, 0xb8, [15] = 1}};
static const uint8_t targets6[5][16] = {{0x20, 1, 0xd, 0xb8, [15] = 1},
                                        {0xfe, 0x80, [15] = 1},
                                        {0xff, 5, [15] = 9},
                                        {0xff, 2, [15] = 1},
                                        {0xff, 2, [11] = 1, 0xff, 0, 0, 1}};

struct packet {
    uint8_t d[4096];
    uint32_t len, ip, load;  /* where the IP header begins, and what it carries */
    uint8_t last[WAYS][128]; /* what the host sent last in each way, from its IP header on */
    uint32_t last_len[WAYS];
};

static void put16(uint8_t *at, uint32_t v)
{
    at[0] = (uint8_t)(v >> 8);
    at[1] = (uint8_t)v;
}

/* Where the protocol has its sum behind its header's beginning; 0: it has none. */
static uint32_t sum_at(unsigned protocol)
{
    return protocol == 1 || protocol == 2 || protocol == 58 ? 2 : protocol == 17 ? 6 : protocol == 6 ? 16 : 0;
}

/* Lengths and sums as they ought to be, of a message that goes to the packet's end. */
static void mend(struct packet *p, unsigned protocol, uint32_t message)
{
    uint8_t *ip = p->d + p->ip, *m = p->d + message;
    const uint32_t size = p->len - message, at = sum_at(protocol);
    const uint64_t pseudo = ((uint64_t)protocol << 8) + __builtin_bswap16((uint16_t)size);
    uint64_t sum = 0;

    if (!at || size < at + 2)
        return;
    if (protocol == 17)
        put16(m + 4, size);
    m[at] = m[at + 1] = 0;
    if (ip[0] >> 4 == 6)
        sum = xdsi_csum_add(pseudo, ip + 8, 32);
    else if (protocol == 17 || protocol == 6)
        sum = xdsi_csum_add(pseudo, ip + 12, 8);
    const uint16_t right = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(sum, m, size));
    memcpy(m + at, &right, 2);
}

/* The message's type: one that there is, or what the fuzzer has. */
static void type(struct packet *p, const uint8_t *how, uint32_t message)
{
    static const uint8_t of_icmp[16] = {0, 3, 8, 11, 12, 5, 4, 13, 3, 3},
                         of_igmp[16] = {0, 0x11, 0x12, 0x16, 0x17, 0x22, 0x11},
                         of_icmp6[16] = {0,   1,   2,   3,   4,   128, 130, 131,
                                         132, 133, 134, 135, 136, 137, 143, 135};
    const unsigned kind = how[0] & KINDS;
    const uint8_t *known = kind == ICMP ? of_icmp : kind == IGMP ? of_igmp : of_icmp6;

    if ((kind != ICMP && kind != IGMP && kind != ICMP6 && kind != ALERTED6) || p->len < message + 2)
        return;
    if (known[how[3] & 15])
        p->d[message] = known[how[3] & 15];
    if (known == of_icmp && (how[3] & 15) > 7)
        p->d[message + 1] = 4; /* too large for a router, which says how much would pass */
    if (known != of_icmp6 || p->d[message] < 128)
        return;
    p->d[message + 1] = 0; /* NDP and MLD know no codes */
    if (p->d[message] == 135 || p->d[message] == 136)
        if (how[2] & 96 && p->len >= message + 24) /* about an address of ours, or of the peer's */
            memcpy(p->d + message + 8, how[2] & 64 ? targets6[how[2] & 1] : peer6, 16);
}

static void head_sum(uint8_t *ip)
{
    const uint32_t size = (ip[0] & 15u) * 4;

    ip[10] = ip[11] = 0;
    const uint16_t right = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, ip, size));
    memcpy(ip + 10, &right, 2);
}

static void ether(struct packet *p, const uint8_t *how, uint32_t type, const uint8_t to[6])
{
    memcpy(p->d, to, 6);
    memcpy(p->d + 6, peer_mac, 6);
    p->ip = how[0] & TAGGED ? 18 : 14;
    if (how[0] & TAGGED)
        memcpy(p->d + 12, "\x81\0\0\x05", 4);
    put16(p->d + p->ip - 2, type);
}

/* The fuzzer's bytes behind what p holds, and in the midst of them what was sent last. */
static void carry(struct packet *p, const uint8_t *how, const uint8_t *body, uint32_t len)
{
    const uint32_t before = how[0] & ABOUT && len >= 8 ? 8 : len;

    memcpy(p->d + p->len, body, before);
    p->len += before;
    if (how[0] & ABOUT) {
        unsigned way = how[2];
        for (int n = 0; n < WAYS && !p->last_len[way % WAYS]; n++)
            way++;
        memcpy(p->d + p->len, p->last[way % WAYS], p->last_len[way % WAYS]);
        p->len += p->last_len[way % WAYS];
    }
    memcpy(p->d + p->len, body + before, len - before);
    p->len += len - before;
}

static void arp(struct packet *p, const uint8_t *how, const uint8_t *body, uint32_t len)
{
    static const uint8_t everybody[6] = {255, 255, 255, 255, 255, 255};
    uint8_t *a;

    ether(p, how, 0x0806, how[1] & 32 ? own_mac : everybody);
    a = p->d + p->ip;
    memset(a, 0, 28);
    memcpy(a, "\0\x01\x08\0\x06\x04\0\x01", 8);
    a[7] = how[1] & 16 ? 2 : 1;
    memcpy(a + 8, peer_mac, 6);
    memcpy(a + 14, &sources[how[1] & 3], 4);
    memcpy(a + 24, &targets[how[1] >> 2 & 3], 4);
    p->len = p->load = p->ip + 28;
    memcpy(p->d + p->len, body, len);
    p->len += len;
}

static void packet4(struct packet *p, const uint8_t *how, const uint8_t *body, uint32_t len)
{
    static const uint8_t protocols[] = {[ICMP] = 1, [IGMP] = 2, [UDP] = 17, [TCP] = 6, [OTHER] = 99};
    const uint8_t protocol = protocols[how[0] & KINDS];
    const uint32_t to = targets[how[1] >> 2 & 3], head = how[1] & 32 ? 24 : 20;
    uint8_t group[6] = {1, 0, 0x5e}, *ip;

    memcpy(group + 3, (const uint8_t *)&to + 1, 3);
    ether(p, how, 0x0800, (to & 0xf0) == 0xe0 ? group : own_mac);
    ip = p->d + p->ip;
    memset(ip, 0, head);
    ip[0] = (uint8_t)(0x40 | head / 4);
    ip[8] = how[1] & 16 ? 64 : 1;
    ip[9] = protocol;
    memcpy(ip + 12, &sources[how[1] & 3], 4);
    memcpy(ip + 16, &to, 4);
    if (head == 24)
        memcpy(ip + 20, "\x94\x04\0\0", 4); /* router alert */
    p->len = p->load = p->ip + head;
    carry(p, how, body, len);
    type(p, how, p->load);
    if (!(how[0] & WRONG))
        mend(p, protocol, p->load);
    put16(ip + 2, p->len - p->ip);
    head_sum(ip);
}

static void packet6(struct packet *p, const uint8_t *how, const uint8_t *body, uint32_t len)
{
    static const uint8_t first[] = {[ICMP6] = 58, [ALERTED6] = 0, [UDP6] = 17, [TCP6] = 6};
    static const uint8_t headers[] = {0, 43, 44, 60, 51, 59, 135, 58};
    const unsigned kind = how[0] & KINDS;
    const uint8_t *to = targets6[(how[1] >> 2 & 7) % 5];
    uint8_t group[6] = {0x33, 0x33}, *ip;

    memcpy(group + 2, to + 12, 4);
    ether(p, how, 0x86dd, to[0] == 0xff ? group : own_mac);
    ip = p->d + p->ip;
    memset(ip, 0, 40);
    ip[0] = 0x60;
    ip[6] = kind == HEADERS6 ? headers[how[3] & 7] : first[kind];
    ip[7] = (kind == ALERTED6) == !(how[1] & 32) ? 1 : 255;          /* MLD wants the one, NDP the other */
    memcpy(ip + 8, sources6[(how[1] & 3) ^ (kind == ALERTED6)], 16); /* MLD is link-local */
    memcpy(ip + 24, to, 16);
    p->len = p->load = p->ip + 40;
    if (kind == ALERTED6) {
        memcpy(p->d + p->len, "\x3a\0\x05\x02\0\0\x01\0", 8);
        p->len += 8;
    }
    const uint32_t message = p->len;
    carry(p, how, body, len);
    type(p, how, message);
    if (!(how[0] & WRONG))
        mend(p, kind == ALERTED6 ? 58 : ip[6], message);
    put16(ip + 4, p->len - p->ip - 40);
}

/* Piece number 0 or 1 of a packet, into out: its length. Its identifier is one of two. */
static uint32_t piece_of(const struct packet *p, const uint8_t *how, unsigned number, uint8_t *out)
{
    const uint32_t size = p->len - p->load, eights = how[2] & 127;
    const uint32_t cut = eights * 8 < size ? eights * 8 : size & ~7u, lap = how[3] & 16 && cut ? 8 : 0;
    const uint32_t from = number ? cut - lap : 0, bytes = number ? size - from : cut;
    const int six = p->d[p->ip] >> 4 == 6;
    uint8_t *ip = out + p->ip;
    uint32_t at = p->load;

    memcpy(out, p->d, p->load);
    if (six) {
        memset(out + at, 0, 8);
        out[at] = ip[6];
        put16(out + at + 2, from | !number);
        out[at + 7] = how[3] >> 5 & 1;
        ip[6] = 44;
        at += 8;
        put16(ip + 4, at - p->ip - 40 + bytes);
    } else {
        put16(ip + 2, at - p->ip + bytes);
        put16(ip + 6, (number ? 0 : 0x2000) | from / 8);
        ip[5] = how[3] >> 5 & 1;
        head_sum(ip);
    }
    memcpy(out + at, p->d + p->load + from, bytes);
    return at + bytes;
}

/* What has left, for errors about it. */
static void note(struct packet *p, int way, const struct xds_frame *f, int len)
{
    const uint32_t ip = len > 18 && f->data[12] == 0x81 ? 18 : 14;

    if (len <= (int)ip || (f->data[ip - 2] == 8 && f->data[ip - 1] == 6))
        return;
    p->last_len[way] = (uint32_t)len - ip < sizeof p->last[way] ? (uint32_t)len - ip : sizeof p->last[way];
    memcpy(p->last[way], f->data + ip, p->last_len[way]);
}

static void send_all(struct xds_host *h, struct packet *p, uint32_t room_len, const uint8_t *data,
                     uint32_t len, int64_t now)
{
    struct xds_frame f = {.data = malloc(room_len ? room_len : 1), .len = room_len};
    uint8_t *payload;

    struct xds_ip_head head = {
        .dst = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1}, .protocol = 6, .checksum_at = 16};
    const uint32_t most = len < 1400 ? len : 1400;
    for (int way = 0; way < 5; way++) {
        int n = 0;
        f.len = room_len;
        if (way == 0)
            n = xds_host_ip(h, &f, &head, data, most, now);
        else if (way == 1)
            n = xds_host_udp(h, &f, 1, PEER, 2, data, most, now);
        else if (way == 2)
            n = xds_host_udp6(h, &f, 1, peer6, 2, data, most, now);
        else if (way == 3) {
            memcpy(head.dst, peer6, 16);
            memset(head.src, 0, 16);
            n = xds_host_ip(h, &f, &head, data, most, now);
        } else if ((n = xds_host_ip_reserve(h, &f, &head, &payload, now)) > 0) {
            const uint32_t room = (uint32_t)n;
            n = room < 20 ? 0 : xds_host_ip_commit(h, &f, &head, room < most + 20 ? room : most + 20);
        }
        check(n <= (int)room_len);
        note(p, way, &f, n);
    }
    while (xds_host_pending(h)) {
        f.len = room_len;
        int n = xds_host_output(h, &f, now);
        check(n == XDS_ECAPACITY || (n > 0 && (uint32_t)n <= room_len));
        note(p, 5, &f, n);
    }
    free(f.data);
}

static void set_up(struct xds_host *h, const struct xds_host_config *g, uint8_t bits)
{
    check(xds_host_init(h, g) == 0);
    check(xds_host_add_address(h, ME, 24) == 0);
    check(xds_host_join(h, 0x010000ef) == 0);
    check(xds_host_join_source(h, 0x020000ef, PEER) == 0);
    check(xds_host_join(h, 0x030000ef) == 0 && xds_host_leave(h, 0x030000ef) == 0);
    if (bits & 1)
        check(xds_host_claim(h, ME, 5000000, 0) == 0);
    if (bits & 8) {
        check(xds_host_add_address6(h, me6, 64) == 0 && xds_host_add_address6(h, link6, 64) == 0);
        check(xds_host_join6(h, group6) == 0);
        check(xds_host_add_route6(h, none6, 0, peer6, none6, 0) == 0);
        if (bits & 1)
            check(xds_host_claim6(h, me6, 5000000, 0) == 0);
    }
    if (bits & 32) { /* frames leave before anybody was asked */
        check(xds_host_add_neighbour(h, PEER, peer_mac) == 0);
        check(xds_host_add_neighbour6(h, peer6, peer_mac) == 0);
    }
    check(xds_host_take(h, 6) == 0 && xds_host_take(h, 99) == 0);
    check(xds_host_add_route(h, 0, 0, PEER, 0, 0) == 0);
}

/* One frame in, from memory of exactly its size, and all that may be asked about it. */
static void take(struct xds_host *h, const void *mem, size_t mem_len, const uint8_t *data, uint32_t len,
                 uint8_t bits, int64_t now)
{
    struct xds_frame f = {.data = malloc(len ? len : 1), .len = len};
    struct xds_dgram d = {0};

    memcpy(f.data, data, len);
    check(xdsi_csum_fold(xdsi_csum_add(0, f.data, len)) % 0xffff == slow_sum(f.data, len) % 0xffff);
    const int code = xds_host_input(h, &f, &d, now);
    if (code == 1)
        check(lies_inside(d.data, d.len, &f, mem, mem_len));
    if (code < 0)
        check(xds_host_last_reason(h) > 0 && xds_host_last_reason(h) < XDS_HOST_REASONS);
    if (code == XDS_INPUT_ERROR) { /* somebody vouches for all of it: the worst that can be learned */
        const struct xds_host_error *e = xds_host_error(h);
        const int six = memcmp(e->src, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) != 0;
        check(six ? e->type >= 1 && e->type <= 4
                  : e->type == 3 || e->type == 5 || e->type == 11 || e->type == 12);
        xds_host_path_learn(h, e->dst, e->mtu, now);
        const int mtu = xds_host_path_mtu(h, e->dst, now);
        check(mtu >= (six ? 1280 : 552) && mtu <= 1500);
    }
    if (code == XDS_INPUT_DATAGRAM) {
        const struct xds_dgram6 *d6 = xds_host_dgram6(h);
        check(lies_inside(d6->data, d6->len, &f, mem, mem_len));
    }
    if (code == XDS_INPUT_PACKET) {
        const struct xds_packet *p = xds_host_packet(h);
        check(lies_inside(p->data, p->len, &f, mem, mem_len));
    }
    const int told = xds_host_unreachable(h, &f, bits & 15, now);
    check(told == 1 || told == 0 || told == XDS_ECONFIG || told == XDS_ECAPACITY || told == XDS_EFOREIGN);
    if (bits & 4)
        xds_host_release(h);
    check_stats(h);
    free(f.data);
}

/* A packet as its record says, whole or in pieces. */
static void give(struct xds_host *h, struct packet *p, size_t mem_len, const uint8_t *how, uint32_t len,
                 uint8_t bits, int64_t now)
{
    const unsigned kind = how[0] & KINDS;
    uint8_t out[4096];

    if (kind == ARP)
        arp(p, how, how + HOW, len - HOW);
    else if (kind < ICMP6)
        packet4(p, how, how + HOW, len - HOW);
    else if (kind <= HEADERS6)
        packet6(p, how, how + HOW, len - HOW);
    else
        return;
    if (kind == ARP || !(how[0] & CUT)) {
        take(h, h, mem_len, p->d, p->len, bits, now);
        return;
    }
    for (unsigned n = 0; n < 2; n++) {
        const unsigned number = how[3] & 64 ? 1 - n : n;
        if (!(how[3] & 128) || number == 0)
            take(h, h, mem_len, out, piece_of(p, how, number, out), bits, now);
    }
}

/* Groups come and go. */
static void change(struct xds_host *h, uint8_t what)
{
    if (what & 1)
        xds_host_join6(h, group6);
    else
        xds_host_leave6(h, group6);
    if (what & 2)
        xds_host_join_source6(h, targets6[2], peer6);
    else
        xds_host_leave_source6(h, targets6[2], peer6);
    if (what & 4)
        xds_host_join_source(h, 0x020000ef, what & 16 ? PEER : 0x0300000a);
    else
        xds_host_leave_source(h, 0x020000ef, what & 16 ? PEER : 0x0300000a);
    if (what & 8)
        xds_host_add_neighbour6(h, sources6[1], peer_mac);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    struct xds_host_config g = {.promiscuous = data[0] & 1,
                                .flags = (data[0] >> 4) | (data[1] & 2 ? XDS_HOST_REPORTS : 0) |
                                         (data[1] & 4 ? XDS_HOST_ROUTERS : 0) |
                                         (data[1] & 16 ? XDS_HOST_UNREACHABLE : 0),
                                .slots = 3,
                                .neighbours = 2,
                                .groups = 5,
                                .paths = 2,
                                .path_ns = 1000000000,
                                .slot_bytes = 256,
                                .fragments = data[0] & 8 ? 2 : 0,
                                .fragment_bytes = 512,
                                .vlan = data[0] & 2 ? 5 : 0,
                                .mac = {2, 0, 0, 0, 0, 1}};
    const size_t mem_len = xds_host_size(&g);
    struct xds_host *h = malloc(mem_len);
    struct packet p = {.len = 0};
    struct xds_host_event event;
    int64_t now = 0;
    uint32_t room_len = data[1] * 8u;
    set_up(h, &g, data[1]);
    for (size_t at = 2; at + 2 <= size;) {
        uint32_t len = data[at] | (data[at + 1] & 7u) << 8;
        const uint8_t what = data[at + 1];
        now += what * 10000000ll;
        at += 2;
        len = len < size - at ? len : (uint32_t)(size - at);
        if (what & 16)
            change(h, what & 8 && len ? data[at] : what >> 4);
        if (what & 8 && len >= HOW)
            give(h, &p, mem_len, data + at, len, data[0], now);
        else
            take(h, h, mem_len, data + at, len, data[0], now);
        send_all(h, &p, room_len, data + at, len, now);
        while (xds_host_event(h, &event))
            check(event.kind >= XDS_HOST_EVENT_NEIGHBOUR && event.kind <= XDS_HOST_EVENT_CONFLICT);
        xds_host_tick(h, now);
        check(xds_host_deadline(h) >= now);
        at += len;
    }
    free(h);
    return 0;
}
