/* fuzz_tcp.c: libFuzzer over one TCP connection: segments near its windows, with right checksums, in every
 * state; the user writes, reads, closes and waits in between. It holds: received = delivered + reasons, no
 * more in flight than the windows allow, no timer left when closed, output() comes to an end.
 */
#include "ground/csum_inl.h"
#include "ground/wire_inl.h"
#include "xds/tcp.h"

#include <stdlib.h>
#include <string.h>

static void check(int holds)
{
    if (!holds)
        abort();
}

static void check_all(const struct xds_tcp *t)
{
    struct xds_tcp_stats s;
    struct xds_tcp_info i;
    uint64_t sum = 0;

    xds_tcp_stats(t, &s);
    for (int r = 0; r < XDS_TCP_REASONS; r++)
        sum += s.reasons[r];
    check(sum == s.received);
    xds_tcp_info(t, &i);
    check(i.unread <= 1024 && i.unsent <= 256 && i.disordered <= 1024);
    check(i.state < XDS_TCP_ESTABLISHED || i.in_flight + i.sacked + i.lost >= i.outstanding);
    check(!i.sack || i.state < XDS_TCP_ESTABLISHED || i.in_flight + i.sacked + i.lost == i.outstanding);
    check(i.state < XDS_TCP_ESTABLISHED || i.cwnd >= 52);
    check(i.state != XDS_TCP_CLOSED || xds_tcp_deadline(t) == XDS_NEVER);
}

/* What goes out tells where the connection stands: the peer's next numbers are near these. */
static void send_all(struct xds_tcp *t, uint32_t *seq, uint32_t *ack, int64_t now)
{
    uint8_t *room = malloc(100);

    for (int n = 0;; n++) {
        const int len = xds_tcp_output(t, room, 100, now);
        check(n < 1000 && len >= 0 && len <= 100);
        if (!len)
            break;
        *ack = (uint32_t)xdsi_be16(room + 4) << 16 | xdsi_be16(room + 6);
        if (room[13] & 16)
            *seq = (uint32_t)xdsi_be16(room + 8) << 16 | xdsi_be16(room + 10);
    }
    free(room);
}

static void give(struct xds_tcp *t, const uint8_t *how, const uint8_t *data, uint32_t len, uint32_t seq,
                 uint32_t ack, int64_t now)
{
    const uint32_t stamps = how[4] & 32 ? 12 : 0, sacks = how[4] & 64 ? 20 : 0, utos = how[0] & 32 ? 4 : 0;
    const uint32_t head = 20 + stamps + sacks + utos;
    const uint32_t options = (how[4] & 7u) * 4 < len ? (how[4] & 7u) * 4 : 0;
    struct xds_tcp_segment s = {.len = head + len, .tos = how[3] & 3, .src = {[15] = 2}, .dst = {[15] = 1}};
    uint8_t *d = calloc(1, s.len);

    seq += (uint32_t)(int32_t)(int8_t)how[1] * (how[4] & 8 ? 16 : 1);
    ack += (uint32_t)(int32_t)(int8_t)how[2] * (how[4] & 16 ? 16 : 1);
    xdsi_put16(d, 2), xdsi_put16(d + 2, 1);
    xdsi_put16(d + 4, seq >> 16), xdsi_put16(d + 6, seq);
    xdsi_put16(d + 8, ack >> 16), xdsi_put16(d + 10, ack);
    d[12] = (uint8_t)((head + options) / 4 << 4);
    d[13] = how[0];
    xdsi_put16(d + 14, how[3] * 8u);
    if (stamps) { /* near the last one, and an echo from long ago to never */
        memcpy(d + 20, "\1\1\10\12", 4);
        xdsi_put16(d + 24, how[6] & 0x80 ? 0xffff : 0), xdsi_put16(d + 26, how[6]);
        xdsi_put16(d + 28, how[3] & 1 ? 0xffff : 0), xdsi_put16(d + 30, (uint32_t)(now / 1000000) - how[3]);
    }
    if (sacks) { /* two blocks near what is out; in a SYN the permission */
        memcpy(d + 20 + stamps, how[0] & 2 ? "\4\2\1\1" : "\1\1\5\22", 4);
        for (int i = 0; i < 4; i++) {
            const uint32_t edge = how[0] & 2 ? 0x01010101 : ack - 300 + (uint32_t)(how[i] ^ i * 85) * 2;
            xdsi_put16(d + 24 + stamps + 4 * i, edge >> 16), xdsi_put16(d + 26 + stamps + 4 * i, edge);
        }
    }
    if (utos)
        memcpy(d + head - 4, "\34\4", 2), xdsi_put16(d + head - 2, how[1] << 8 | how[2]);
    memcpy(d + head, data, len);
    uint64_t sum = xdsi_csum_add(6 << 8, s.src, 16);
    sum = xdsi_csum_add(sum + __builtin_bswap16((uint16_t)s.len), s.dst, 16);
    xdsi_put_raw16(d + 16, (uint16_t)~xdsi_csum_fold(xdsi_csum_add(sum, d, s.len)));
    s.data = d;
    xds_tcp_input(t, &s, now);
    free(d);
}

/* Running the way of a write changes nothing that can be seen. */
static void warm(struct xds_tcp *t, uint32_t len, int64_t now)
{
    struct xds_tcp_info before, after;
    struct xds_tcp_stats counted, still;
    uint8_t *room = malloc(100);

    memset(&before, 0, sizeof before), memset(&after, 0, sizeof after);
    memset(&counted, 0, sizeof counted), memset(&still, 0, sizeof still);
    xds_tcp_info(t, &before), xds_tcp_stats(t, &counted);
    const int64_t due = xds_tcp_deadline(t);
    const int bytes = xds_tcp_warm(t, room, 100, len, now);
    check(bytes >= 0 && bytes <= 100 && (bytes > 0) == (before.state == XDS_TCP_ESTABLISHED));
    xds_tcp_info(t, &after), xds_tcp_stats(t, &still);
    check(!memcmp(&before, &after, sizeof before) && !memcmp(&counted, &still, sizeof counted));
    check(xds_tcp_deadline(t) == due);
    free(room);
}

static void use(struct xds_tcp *t, uint8_t what, int64_t now)
{
    uint8_t bytes[256] = {0};
    struct xds_tcp_event e;
    const uint32_t setting = 1 + what % XDS_TCP_SET_DSCP;

    if (what & 1)
        xds_tcp_write(t, bytes, what);
    if (what & 2)
        check(xds_tcp_read(t, bytes, what < 200 ? what : 200) <= 200);
    if ((what & 0x1c) == 0x1c)
        xds_tcp_close(t);
    if ((what & 0xe3) == 0x60)
        check(xds_tcp_set(t, setting, setting >= XDS_TCP_SET_KEEP_COUNT ? 2 : (what >> 2 & 1) * 20000000,
                          now) == 0);
    if ((what & 0x90) == 0x90)
        warm(t, what & 0x6f, now);
    if (what == 0xfe)
        xds_tcp_abort(t);
    while (xds_tcp_event(t, &e))
        check(e.kind >= XDS_TCP_EVENT_OPEN && e.kind <= XDS_TCP_EVENT_STALLED);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    struct xds_tcp_config g = {.local = {[15] = 1},
                               .remote = {[15] = 2},
                               .local_port = 1,
                               .remote_port = 2,
                               .passive = data[0] & 1,
                               .nagle = data[0] >> 1 & 1,
                               .congestion = data[0] & 4 ? XDS_TCP_NO_CONGESTION : data[0] >> 7,
                               .delayed_ack_ns = data[0] & 8 ? 40000000 : 0,
                               .no_stamps = data[0] >> 5 & 1,
                               .no_sack = data[0] >> 6 & 1,
                               .iss = data[0] & 16 ? 0xfffffff0 : 5,
                               .ecn = data[0] >> 3 & 1,
                               .dscp = data[0] >> 2,
                               .user_timeout = data[0] >> 4 & 1,
                               .keepalive = data[0] >> 1 & 1,
                               .keep_idle_ns = 100000000,
                               .keep_interval_ns = 50000000,
                               .mss = 64,
                               .send_bytes = 256,
                               .receive_bytes = 1024};
    struct xds_tcp *t = malloc(xds_tcp_size(&g));
    uint32_t seq = 0xffffffe0, ack = g.iss + 1;
    int64_t now = 1000000000;

    check(xds_tcp_init(t, &g) == 0);
    send_all(t, &seq, &ack, now);
    for (size_t at = 1; at + 8 <= size;) {
        const uint8_t *how = data + at;
        uint32_t len = how[7];
        at += 8;
        len = len < size - at ? len : (uint32_t)(size - at);
        give(t, how, data + at, len, seq, ack, now);
        use(t, how[5], now);
        send_all(t, &seq, &ack, now);
        check_all(t);
        now += how[6] * 5000000ll;
        if (how[6] & 1 && xds_tcp_deadline(t) != XDS_NEVER && xds_tcp_deadline(t) > now)
            now = xds_tcp_deadline(t);
        xds_tcp_tick(t, now);
        send_all(t, &seq, &ack, now);
        check_all(t);
        at += len;
    }
    free(t);
    return 0;
}
