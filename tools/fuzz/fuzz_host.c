/* fuzz_host.c: libFuzzer over the host core: frames in, each from memory of exactly its size; answers and
 * a datagram out, into rooms of exactly theirs. It holds: received = delivered + reasons, a datagram lies
 * inside its frame, the fast checksum equals the obvious one, what the host builds it accepts. Half of the IPv6
 * frames have their sum mended, since no fuzzer guesses one.
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

/* The sum of ICMPv6, UDP or TCP right behind IPv6, or behind eight bytes of options. */
static void mend(uint8_t *d, uint32_t len)
{
    uint8_t *ip = d + 14, *m = ip + 40, next;

    if (len < 14 + 48 || d[12] != 0x86 || d[13] != 0xdd)
        return;
    next = ip[6];
    if (next == 0 && ip[41] == 0) {
        next = ip[40];
        m += 8;
    }
    const uint32_t size = (uint32_t)(d + len - m), at = next == 58 ? 2 : next == 17 ? 6 : 16;
    if ((next != 58 && next != 17 && next != 6) || size < at + 2 || len - 14 - 40 > 65535)
        return;
    ip[4] = (uint8_t)((len - 54) >> 8);
    ip[5] = (uint8_t)(len - 54);
    if (next == 17) {
        m[4] = (uint8_t)(size >> 8);
        m[5] = (uint8_t)size;
    }
    m[at] = m[at + 1] = 0;
    uint64_t sum = xdsi_csum_add(((uint64_t)next << 8) + __builtin_bswap16((uint16_t)size), ip + 8, 32);
    const uint16_t right = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(sum, m, size));
    memcpy(m + at, &right, 2);
}

static void send_all(struct xds_host *h, uint32_t room_len, const uint8_t *data, uint32_t len, int64_t now)
{
    struct xds_frame f = {.data = malloc(room_len ? room_len : 1), .len = room_len};

    struct xds_ip_head head = {
        .dst = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1}, .protocol = 6, .checksum_at = 16};
    if (xds_host_ip(h, &f, &head, data, len < 1400 ? len : 1400, now) > 0)
        check(f.len <= room_len);
    f.len = room_len;
    if (xds_host_udp(h, &f, 1, PEER, 2, data, len < 1400 ? len : 1400, now) > 0)
        check(f.len <= room_len);
    f.len = room_len;
    if (xds_host_udp6(h, &f, 1, peer6, 2, data, len < 1400 ? len : 1400, now) > 0)
        check(f.len <= room_len);
    memcpy(head.dst, peer6, 16);
    memset(head.src, 0, 16);
    f.len = room_len;
    if (xds_host_ip(h, &f, &head, data, len < 1400 ? len : 1400, now) > 0)
        check(f.len <= room_len);
    while (xds_host_pending(h)) {
        f.len = room_len;
        int n = xds_host_output(h, &f, now);
        check(n == XDS_ECAPACITY || (n > 0 && (uint32_t)n <= room_len));
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
    check(xds_host_take(h, 6) == 0 && xds_host_take(h, 99) == 0);
    check(xds_host_add_route(h, 0, 0, PEER, 0, 0) == 0);
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
                                .groups = 3,
                                .paths = 2,
                                .path_ns = 1000000000,
                                .slot_bytes = 256,
                                .fragments = data[0] & 8 ? 2 : 0,
                                .fragment_bytes = 512,
                                .vlan = data[0] & 2 ? 5 : 0,
                                .mac = {2, 0, 0, 0, 0, 1}};
    void *mem = malloc(xds_host_size(&g));
    struct xds_host *h = mem;
    int64_t now = 0;
    uint32_t room_len = data[1] * 8u;
    set_up(h, &g, data[1]);
    for (size_t at = 2; at + 2 <= size;) {
        uint32_t len = data[at] | (data[at + 1] & 7u) << 8;
        now += data[at + 1] * 10000000ll;
        at += 2;
        len = len < size - at ? len : (uint32_t)(size - at);
        struct xds_frame f = {.data = malloc(len ? len : 1), .len = len};
        struct xds_dgram d = {0};
        memcpy(f.data, data + at, len);
        if (data[at - 1] & 8)
            mend(f.data, len);
        check(xdsi_csum_fold(xdsi_csum_add(0, f.data, len)) % 0xffff == slow_sum(f.data, len) % 0xffff);
        const int code = xds_host_input(h, &f, &d, now);
        if (code == 1)
            check(lies_inside(d.data, d.len, &f, mem, xds_host_size(&g)));
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
            check(lies_inside(d6->data, d6->len, &f, mem, xds_host_size(&g)));
        }
        if (code == XDS_INPUT_PACKET) {
            const struct xds_packet *p = xds_host_packet(h);
            check(lies_inside(p->data, p->len, &f, mem, xds_host_size(&g)));
        }
        const int told = xds_host_unreachable(h, &f, data[0] & 15, now);
        check(told == 1 || told == 0 || told == XDS_ECONFIG || told == XDS_ECAPACITY || told == XDS_EFOREIGN);
        if (data[0] & 4)
            xds_host_release(h);
        check_stats(h);
        send_all(h, room_len, f.data, len, now);
        xds_host_tick(h, now);
        check(xds_host_deadline(h) >= now);
        free(f.data);
        at += len;
    }
    free(mem);
    return 0;
}
