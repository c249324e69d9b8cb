/* fuzz_stack.c: libFuzzer over a whole stack: frames near what its connections expect, with right checksums,
 * from several peers, and ICMP errors about what is in flight, while its user connects, listens, accepts, writes,
 * reads, closes and waits; some begin with a connection that is open. It holds:
 * received = taken + reasons, places and queues within their bounds, output() comes to an end, and when
 * everybody has let go nothing is left.
 */
#include "ground/csum_inl.h"
#include "ground/wire_inl.h"
#include "xds/stack.h"

#include <stdlib.h>
#include <string.h>

#define PLACES 4
#define FRAME  200
#define PEER   0x0200000a /* 10.0.0.2 in memory */
#define OURS   0x0100000a

static const uint8_t peer6[16] = {0x20, 1, 0xd, 0xb8, [15] = 2}, ours6[16] = {0x20, 1, 0xd, 0xb8, [15] = 1};

struct world {
    int six; /* over IPv6 */
    struct xds_stack *s;
    struct xds_host *h;
    int64_t now;
    int ids[8], listener;
    unsigned n_ids;
    uint32_t seq[4], ack[4]; /* by our last local ports' low bits: what we said last */
    uint32_t stamp[4];       /* and the stamp of it, for a peer to echo: a cookie's options are in there */
    uint16_t port[4];
};

static void check(int holds)
{
    if (!holds)
        abort();
}

static void check_all(struct world *w)
{
    struct xds_stack_stats s;
    uint64_t sum = 0;

    xds_stack_stats(w->s, &s);
    for (int r = 0; r < XDS_STACK_REASONS; r++)
        sum += s.reasons[r];
    check(sum == s.received);
    check(s.connections <= PLACES && s.time_waits <= s.connections);
}

/* What goes out tells where the connections stand: the peers' next numbers are near these. */
static void send_all(struct world *w)
{
    uint8_t *room = malloc(FRAME);

    for (int n = 0;; n++) {
        struct xds_frame f = {.data = room, .len = FRAME};
        const int len = xds_stack_output(w->s, &f, w->now);
        check(n < 4000 && len <= FRAME);
        if (len <= 0)
            break;
        const uint8_t *ip = room + XDSI_ETH_BYTES, *t = ip + (w->six ? 40 : XDSI_IPV4_BYTES);
        if (xdsi_be16(room + 12) != (w->six ? 0x86dd : XDSI_ETH_IPV4) || ip[w->six ? 6 : 9] != 6)
            continue;
        const unsigned i = t[3] & 3; /* by the peer's port */
        w->port[i] = xdsi_be16(t);
        w->ack[i] = (uint32_t)xdsi_be16(t + 4) << 16 | xdsi_be16(t + 6);
        w->ack[i] += t[13] & 3 ? 1 : 0;
        if (t[13] & 16)
            w->seq[i] = (uint32_t)xdsi_be16(t + 8) << 16 | xdsi_be16(t + 10);
        for (unsigned at = 20; at + 10 <= (t[12] >> 4) * 4u && t[at]; at += t[at] == 1 ? 1 : t[at + 1])
            if (t[at] == 8)
                w->stamp[i] = (uint32_t)xdsi_be16(t + at + 2) << 16 | xdsi_be16(t + at + 4);
    }
    free(room);
}

/* A SYN's usual options, or a stamp with the echo of our last one, or one beside it. */
static uint32_t options(const struct world *w, uint8_t *o, const uint8_t *how)
{
    const uint32_t echo = w->stamp[how[1] & 3] + (how[7] & 16 ? how[4] : 0);
    const int syn = how[0] & 2;

    if (!(how[7] & 8))
        return 0;
    memcpy(o, syn ? "\2\4\5\264\1\3\3\7\4\2\10\12" : "\1\1\10\12", syn ? 12 : 4);
    o += syn ? 12 : 4;
    xdsi_put16(o, how[7] >> 5), xdsi_put16(o + 2, how[4] * 256u + how[2]);
    xdsi_put16(o + 4, syn ? 0 : echo >> 16), xdsi_put16(o + 6, syn ? 0 : echo);
    return syn ? 20 : 12;
}

/* The header in front of size bytes; their pseudo-header. */
static uint64_t head(const struct world *w, uint8_t *d, uint32_t size, uint8_t tos, uint8_t protocol)
{
    uint8_t *ip = d + XDSI_ETH_BYTES;

    memcpy(d, "\2\0\0\0\0\1\2\0\0\0\0\2", 12);
    xdsi_put16(d + 12, w->six ? 0x86dd : XDSI_ETH_IPV4);
    if (w->six) {
        ip[0] = 0x60, ip[1] = (uint8_t)(tos << 4), ip[6] = protocol == 1 ? 58 : protocol, ip[7] = 64;
        xdsi_put16(ip + 4, size);
        memcpy(ip + 8, peer6, 16), memcpy(ip + 24, ours6, 16);
        return xdsi_csum_add(((uint64_t)ip[6] << 8) + __builtin_bswap16((uint16_t)size), ip + 8, 32);
    }
    ip[0] = 0x45, ip[1] = tos, ip[8] = 64, ip[9] = protocol;
    xdsi_put16(ip + 2, XDSI_IPV4_BYTES + size);
    xdsi_put_raw32(ip + 12, PEER), xdsi_put_raw32(ip + 16, OURS);
    xdsi_put_raw16(ip + 10, (uint16_t)~xdsi_csum_fold(xdsi_csum_ipv4(ip)));
    return xdsi_csum_pseudo(PEER, OURS, 6, size);
}

static void give(struct world *w, const uint8_t *how, const uint8_t *data, uint32_t len)
{
    const unsigned i = how[1] & 3;
    uint8_t opts[20];
    const uint32_t n_opts = options(w, opts, how);
    const uint32_t before = XDSI_ETH_BYTES + (w->six ? 40 : XDSI_IPV4_BYTES), tcp = 20 + n_opts + len;
    const uint32_t seq = w->seq[i] + (uint32_t)(int32_t)(int8_t)how[2];
    const uint32_t ack = w->ack[i] + (uint32_t)(int32_t)(int8_t)how[3];
    uint8_t *d = calloc(1, before + tcp), *t = d + before;
    struct xds_frame f = {.data = d, .len = before + tcp};
    struct xds_dgram out;

    const uint64_t pseudo = head(w, d, tcp, how[4] & 3, 6);
    xdsi_put16(t, 0x1000 + i), xdsi_put16(t + 2, how[1] & 4 && w->port[i] ? w->port[i] : 80);
    xdsi_put16(t + 4, seq >> 16), xdsi_put16(t + 6, seq);
    xdsi_put16(t + 8, ack >> 16), xdsi_put16(t + 10, ack);
    t[12] = (uint8_t)(how[1] & 64 ? how[4] : (20 + n_opts) / 4 << 4);
    t[13] = how[0] & 223; /* all but URG */
    xdsi_put16(t + 14, how[4] * 16u);
    memcpy(t + 20, opts, n_opts);
    memcpy(t + 20 + n_opts, data, len);
    xdsi_put_raw16(t + 16, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(pseudo, t, tcp)));
    xds_stack_frame(w->s, &f, &out, w->now);
    free(d);
}

/* An ICMP error of a router's about a segment of ours near what is in flight. */
static void tell(struct world *w, const uint8_t *how)
{
    static const uint8_t types[2][4] = {{3, 11, 12, 5}, {1, 2, 3, 4}};
    const unsigned i = how[1] & 3;
    const uint32_t ip = w->six ? 40 : XDSI_IPV4_BYTES, before = XDSI_ETH_BYTES + ip, size = 8 + ip + 8;
    const uint32_t seq = w->ack[i] + (uint32_t)(int32_t)(int8_t)how[3];
    uint8_t *d = calloc(1, before + size), *m = d + before, *quoted = m + 8, *t = quoted + ip;
    struct xds_frame f = {.data = d, .len = before + size};
    struct xds_dgram out;

    const uint64_t pseudo = head(w, d, size, 0, 1);
    m[0] = types[w->six][how[0] & 3];
    m[1] = how[0] >> 2 & 15;
    xdsi_put16(m + 6, how[4] * 8u);
    if (w->six) {
        quoted[0] = 0x60, quoted[6] = 6, quoted[7] = 64;
        xdsi_put16(quoted + 4, how[5] * 8u);
        memcpy(quoted + 8, ours6, 16), memcpy(quoted + 24, peer6, 16);
    } else {
        quoted[0] = 0x45, quoted[8] = 64, quoted[9] = 6;
        xdsi_put16(quoted + 2, how[5] * 8u);
        xdsi_put_raw32(quoted + 12, OURS), xdsi_put_raw32(quoted + 16, PEER);
    }
    xdsi_put16(t, w->port[i]), xdsi_put16(t + 2, 0x1000 + i);
    xdsi_put16(t + 4, seq >> 16), xdsi_put16(t + 6, seq);
    xdsi_put_raw16(m + 2, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(w->six ? pseudo : 0, m, size)));
    xds_stack_frame(w->s, &f, &out, w->now);
    free(d);
}

static void keep(struct world *w, int id)
{
    if (id <= 0)
        return;
    if (w->n_ids == 8) {
        xds_stack_close(w->s, w->ids[0], w->now);
        memmove(w->ids, w->ids + 1, 7 * sizeof w->ids[0]);
        w->n_ids--;
    }
    w->ids[w->n_ids++] = id;
}

static void use(struct world *w, uint8_t what)
{
    uint8_t bytes[256] = {0};
    struct xds_tcp_config how;
    struct xds_stack_event e;
    const int id = w->n_ids ? w->ids[what % w->n_ids] : 0;

    switch (what >> 4) {
    case 0:
        xds_stack_defaults(w->s, &how);
        memcpy(how.remote, w->six ? peer6 : (const uint8_t *)"\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\2", 16);
        how.remote_port = (uint16_t)(0x1000 + (what & 3));
        how.local_port = what & 4 ? 80 : 0;
        keep(w, xds_stack_connect(w->s, &how, w->now));
        break;
    case 1:
        w->listener = w->listener > 0 ? w->listener : xds_stack_listen(w->s, bytes, 80, 1 + (what & 1));
        break;
    case 2:
        keep(w, xds_stack_accept(w->s, w->listener));
        break;
    case 3:
    case 4:
        check(xds_stack_write(w->s, id, bytes, what * 3u) <= 256);
        break;
    case 5:
    case 6:
        check(xds_stack_read(w->s, id, bytes, what) <= what);
        break;
    case 7:
        xds_stack_shutdown(w->s, id);
        break;
    case 8:
        xds_stack_close(w->s, id, w->now);
        break;
    case 9:
        if (what & 8)
            check(xds_stack_warm(w->s, id, what * 2u, w->now) <= FRAME + 1500);
        else
            xds_stack_abort(w->s, id);
        break;
    case 10:
        xds_stack_unlisten(w->s, w->listener);
        w->listener = 0;
        break;
    case 11:
        xds_host_set_mac(w->h, (const uint8_t *)"\2\0\0\0\0\1");
        break;
    case 12:
        w->now += 70000000000;
        break;
    default:
        w->now += what * 4000000ll;
    }
    for (int n = 0; xds_stack_event(w->s, &e); n++)
        check(n < PLACES + 8 && e.id && e.what);
}

static void begin(struct world *w, uint8_t how, void **memory)
{
    const struct xds_host_config host = {.mac = {2, 0, 0, 0, 0, 1}, .slots = 2, .slot_bytes = 256};
    const struct xds_stack_config cfg = {
        .connections = PLACES,
        .listeners = 2,
        .send_bytes = 256,
        .receive_bytes = 256,
        .port_first = 100,
        .port_last = 103,
        .resets = 3,
        .secret = {1},
        .no_cookies = how >> 2 & 1,
        .tcp = {.mss = 64, .no_stamps = how >> 1 & 1, .keepalive = how >> 3 & 1, .ecn = how >> 4 & 1}};

    w->h = memory[0] = malloc(xds_host_size(&host));
    check(xds_host_init(w->h, &host) == 0);
    w->six = how >> 5 & 1;
    check(w->six ? xds_host_add_address6(w->h, ours6, 64) == 0 : xds_host_add_address(w->h, OURS, 24) == 0);
    if (how & 1)
        check((w->six ? xds_host_add_neighbour6(w->h, peer6, (const uint8_t *)"\2\0\0\0\0\2")
                      : xds_host_add_neighbour(w->h, PEER, (const uint8_t *)"\2\0\0\0\0\2")) == 0);
    w->s = memory[1] = malloc(xds_stack_size(&cfg));
    check(xds_stack_init(w->s, &cfg, w->h) == 0);
}

/* A connection to port 80, or one of ours to the first peer. */
static void open_one(struct world *w, int passive)
{
    const uint8_t segments[][8] = {
        {2, 0, 0, 0, 0xfc, 0, 0, 8}, {16, 0, 1, 0, 0xfc, 0, 0, 0}, {18, 4, 0, 0, 0xfc, 0, 0, 8}};

    use(w, passive ? 0x10 : 0);
    send_all(w);
    give(w, segments[passive ? 0 : 2], segments[0], 0);
    send_all(w);
    if (passive)
        give(w, segments[1], segments[0], 0);
    use(w, 0x20);
    send_all(w);
}

/* Everybody lets go: at the latest when every timer has run nothing is left. */
static void finish(struct world *w)
{
    struct xds_stack_stats s;

    for (unsigned i = 0; i < w->n_ids; i++)
        xds_stack_close(w->s, w->ids[i], w->now);
    xds_stack_unlisten(w->s, w->listener);
    for (int n = 0; n < 200; n++) {
        send_all(w);
        w->now += 10000000000;
        xds_stack_tick(w->s, w->now);
    }
    send_all(w);
    xds_stack_stats(w->s, &s);
    check(s.connections == 0);
    check(xds_stack_deadline(w->s) == XDS_NEVER);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world w = {.now = 1000000000};
    void *memory[2];

    if (size < 1)
        return 0;
    begin(&w, data[0], memory);
    if (data[0] & 64)
        open_one(&w, data[0] >> 7);
    for (size_t at = 1; at + 8 <= size;) {
        const uint8_t *how = data + at;
        uint32_t len = how[5] & 63;
        at += 8;
        len = len < size - at ? len : (uint32_t)(size - at);
        if ((how[7] & 3) == 3 && how[1] & 128)
            tell(&w, how);
        else if (how[7] & 3)
            give(&w, how, data + at, len);
        use(&w, how[6]);
        if (xds_stack_deadline(w.s) <= w.now)
            xds_stack_tick(w.s, w.now);
        if (how[7] & 4)
            send_all(&w);
        check_all(&w);
        at += len;
    }
    finish(&w);
    free(memory[0]);
    free(memory[1]);
    return 0;
}
