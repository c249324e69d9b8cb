/* stack_cookie.c: SYN cookies (RFC 4987 3.6): a SYN for which a listener has no room is answered, and nothing
 * is remembered. What its sender named lies in our first number, and in our time stamp where it sends stamps:
 *
 *   number  = H1(ends, its number) + minutes << 24 + (H2(ends, minutes) + size) mod 2^24
 *   stamp   = ours, its last six bits: window scale (4, 15: none), SACK (1), ECN (1); never ahead of the clock
 *
 * Only an ACK of such a number, some two minutes young, makes a connection: a guess has a chance of 2^-28. An ACK
 * is looked at only while the listener has sent cookies.
 */
#include "stack_int.h"

#define MINUTE      (64ll * 1000000000)
#define MINUTES     2 /* that a cookie is good for, its own included */
#define SIZES       8
#define STAMP_BITS  63u
#define SCALE_NONE  15u
#define SACK_BIT    16u
#define ECN_BIT     32u
#define NUMBER_BITS 0xffffffu

static const uint16_t sizes[SIZES] = {64, 536, 1220, 1300, 1400, 1440, 1460, 8960};

static uint32_t hash(const struct xds_stack *s, const struct xdsi_ends *ends, uint32_t word, uint8_t purpose)
{
    uint8_t bytes[sizeof *ends + 5];

    memcpy(bytes, ends, sizeof *ends);
    xdsi_put32(bytes + sizeof *ends, word);
    bytes[sizeof *ends + 4] = purpose;
    return (uint32_t)xdsi_siphash(s->cfg.secret, bytes, sizeof bytes);
}

static uint32_t base(const struct xds_stack *s, const struct xdsi_ends *ends, uint32_t theirs)
{
    return hash(s, ends, theirs, 3);
}

static uint32_t cookie_of(const struct xds_stack *s, const struct xdsi_ends *ends, uint32_t theirs,
                          uint32_t size, int64_t now)
{
    const uint32_t minutes = (uint32_t)(now / MINUTE);

    return base(s, ends, theirs) + (minutes << 24) + ((hash(s, ends, minutes, 4) + size) & NUMBER_BITS);
}

/* Which of the sizes a number of ours stands for; -1: it is no cookie, or an old one. */
static int size_of(const struct xds_stack *s, const struct xdsi_ends *ends, uint32_t theirs, uint32_t ours,
                   int64_t now)
{
    const uint32_t rest = ours - base(s, ends, theirs), minutes = (uint32_t)(now / MINUTE);
    const uint32_t age = (minutes - (rest >> 24)) & 0xff;

    if (age >= MINUTES)
        return -1;
    const uint32_t size = (rest - hash(s, ends, minutes - age, 4)) & NUMBER_BITS;
    return size < SIZES ? (int)size : -1;
}

static bool read_options(const uint8_t *d, struct xdsi_in *in)
{
    return xdsi_tcp_options(in, d + XDSI_TCP_BYTES, (d[12] >> 4) * 4u - XDSI_TCP_BYTES);
}

static uint32_t shift_of(uint32_t receive_bytes)
{
    uint32_t shift = 0;

    while (receive_bytes >> shift > 65535)
        shift++;
    return shift;
}

/* Behind our clock: what follows it is never older. */
static uint32_t stamp_with(uint32_t stamp, uint32_t bits)
{
    const uint32_t with = (stamp & ~STAMP_BITS) | bits;
    return (int32_t)(with - stamp) > 0 ? with - (STAMP_BITS + 1) : with;
}

bool xdsi_cookie_answer(struct xds_stack *s, struct xdsi_listener *l, const struct xdsi_ends *ends,
                        const uint8_t *d, int64_t now)
{
    const uint32_t silent = xdsi_is_ip4(ends->remote) ? 1 : 2; /* 536, 1220 (RFC 9293 3.7.1) */
    struct xdsi_in in = {0};
    uint32_t size = SIZES - 1;

    if (s->cfg.no_cookies || !read_options(d, &in))
        return false;
    if (s->cookie_count == s->cfg.resets) {
        s->stats.cookies_lost++;
        return true;
    }
    while (size && sizes[size] > in.mss)
        size--;
    size = in.mss ? size : silent;
    in.stamped &= !l->how.no_stamps;
    in.sack_ok &= in.stamped && !l->how.no_sack;
    in.scales &= in.stamped;
    const uint32_t theirs = xdsi_be32(d + 4);
    const bool ecn = in.stamped && l->how.ecn && (d[13] & XDSI_ECN) == XDSI_ECN;
    const uint32_t bits =
        (in.scales ? in.shift : SCALE_NONE) | (in.sack_ok ? SACK_BIT : 0) | (ecn ? ECN_BIT : 0);
    const uint32_t stamp = xdsi_stamp_offset(s, ends) + (uint32_t)(now / XDSI_STAMP_NS);
    s->cookies[(s->cookie_first + s->cookie_count++) % s->cfg.resets] =
        (struct xdsi_cookie){.ends = *ends,
                             .seq = cookie_of(s, ends, theirs, size, now),
                             .ack = theirs + 1,
                             .stamp = stamp_with(stamp, bits),
                             .echo = in.tsval,
                             .mss = xdsi_mss_to(s, ends->remote, l->how.mss),
                             .hops = l->hops,
                             .stamped = in.stamped,
                             .scales = in.scales,
                             .sack = in.sack_ok,
                             .ecn = ecn};
    l->cookie_until = (now / MINUTE + MINUTES) * MINUTE;
    return true;
}

/* The SYN-ACK, its checksum left to the host. Its length. */
static uint32_t build(const struct xds_stack *s, const struct xdsi_cookie *k, uint8_t *d)
{
    const uint32_t window = s->cfg.receive_bytes < 65535 ? s->cfg.receive_bytes : 65535;
    uint8_t *o = d + XDSI_TCP_BYTES;

    xdsi_put16(d, k->ends.local_port);
    xdsi_put16(d + 2, k->ends.remote_port);
    xdsi_put32(d + 4, k->seq);
    xdsi_put32(d + 8, k->ack);
    d[13] = (uint8_t)(XDSI_SYN | XDSI_ACK | (k->ecn ? XDSI_ECE : 0));
    xdsi_put16(d + 14, window);
    o[0] = 2, o[1] = 4;
    xdsi_put16(o + 2, k->mss);
    o += 4;
    if (k->scales) {
        o[0] = 1, o[1] = 3, o[2] = 3, o[3] = (uint8_t)shift_of(s->cfg.receive_bytes);
        o += 4;
    }
    if (k->sack) {
        o[0] = o[1] = 1, o[2] = 4, o[3] = 2;
        o += 4;
    }
    if (k->stamped) {
        o[0] = o[1] = 1, o[2] = 8, o[3] = 10;
        xdsi_put32(o + 4, k->stamp);
        xdsi_put32(o + 8, k->echo);
        o += XDSI_STAMP_BYTES;
    }
    d[12] = (uint8_t)((o - d) / 4 << 4);
    return (uint32_t)(o - d);
}

int xdsi_cookie_send(struct xds_stack *s, struct xds_frame *room, int64_t now)
{
    const struct xdsi_cookie *k = &s->cookies[s->cookie_first];
    struct xds_ip_head head = {
        .protocol = XDSI_IPPROTO_TCP, .ttl = k->hops, .checksum_at = XDSI_TCP_CHECKSUM};
    uint8_t d[XDSI_TCP_HEAD_MAX] = {0};

    s->cookie_first = (s->cookie_first + 1) % s->cfg.resets;
    s->cookie_count--;
    memcpy(head.src, k->ends.local, 16);
    memcpy(head.dst, k->ends.remote, 16);
    const uint32_t len = build(s, k, d);
    const int code = xds_host_ip(s->host, room, &head, d, len, now);
    s->stats.sent += code >= 0;
    s->stats.cookies_sent += code >= 0;
    s->stats.send_lost += code < 0;
    return code;
}

bool xdsi_cookie_taken(struct xds_stack *s, const struct xdsi_listener *l, const struct xdsi_ends *ends,
                       const uint8_t *d, int64_t now, struct xdsi_in *syn)
{
    if (now >= l->cookie_until)
        return false;
    const uint32_t theirs = xdsi_be32(d + 4) - 1, ours = xdsi_be32(d + 8) - 1;
    const int size = size_of(s, ends, theirs, ours, now);
    struct xdsi_in in = {0};
    if (size < 0 || !read_options(d, &in)) {
        s->stats.cookies_bad++;
        return false;
    }
    const uint32_t bits = in.tsecr & STAMP_BITS;
    const bool stamped = in.stamped && !l->how.no_stamps;
    *syn = (struct xdsi_in){.seq = theirs,
                            .flags = stamped && bits & ECN_BIT ? XDSI_SYN | XDSI_ECN : XDSI_SYN,
                            .ack = ours,
                            .mss = sizes[size],
                            .stamped = stamped,
                            .tsval = in.tsval,
                            .scales = stamped && (bits & 15) != SCALE_NONE,
                            .shift = stamped && (bits & 15) != SCALE_NONE ? (uint8_t)(bits & 15) : 0,
                            .sack_ok = stamped && bits & SACK_BIT};
    return true;
}
