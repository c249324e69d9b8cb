/* traffic.c: the generator's pace loop and the counter at the other end.
 *
 * The pace is open loop: frame n is due at begin + n / rate, and a late sender catches up. So what a run of
 * rate and seconds sends is a number that can be computed, not a matter of timing, unless the path is
 * too slow for the rate. Whoever waits long sleeps; the last microseconds are spun.
 */
#include "ground/clock_inl.h"
#include "ground/csum_inl.h"
#include "ground/hist_inl.h"
#include "ground/wire_inl.h"
#include "xds/base.h"
#include "xds/traffic.h"
#include "xds/xsk.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#define SECOND    1000000000
#define SLEEP_NS  200000 /* a longer wait is slept ...                          */
#define WAKE_NS   100000 /* ... until so long before the frame is due           */
#define BURST     64
#define IDLE      64 /* empty polls before the receiver lets the core go    */
#define ETH_IPV6  0x86dd
#define IPV6_SIZE 40
#define TX_EXTRA  18 /* Ethernet header and a VLAN tag: what the kernel sends beyond the MTU */

uint64_t xds_traffic_due(const struct xds_traffic_send *t, int64_t elapsed_ns)
{
    if (elapsed_ns < 0)
        return 0;
    if (!t->rate)
        return elapsed_ns < t->duration_ns ? t->count : 0;
    /* Frames 0 .. n-1 with k / rate <= elapsed, and with k / rate < duration. */
    unsigned __int128 now = (unsigned __int128)(uint64_t)elapsed_ns * t->rate / SECOND + 1;
    unsigned __int128 end = ((unsigned __int128)(uint64_t)t->duration_ns * t->rate + SECOND - 1) / SECOND;
    if (now > end)
        now = end;
    return now > t->count ? t->count : (uint64_t)now;
}

/* Number and stamp, and the UDP checksum before them (traffic.h): eight words that are no longer 0. */
static void number(uint8_t *at, uint64_t word, int64_t ns)
{
    uint16_t was;

    memcpy(at, &word, 8);
    memcpy(at + 8, &ns, 8);
    memcpy(&was, at - 2, 2);
    if (!was)
        return;
    const uint16_t now = (uint16_t)~xdsi_csum_fold(xdsi_csum_add((uint16_t)~was, at, XDS_TRAFFIC_BYTES));
    was = now ? now : 0xffff;
    memcpy(at - 2, &was, 2);
}

static const struct xds_traffic_frame *template(const struct xds_traffic_send *t, uint64_t n)
{
    return &t->frames[n % t->frame_count];
}

static bool sound(const struct xds_traffic_send *t)
{
    if (!t->frames || !t->frame_count || !t->batch || t->batch > XDS_TRAFFIC_BATCH || t->duration_ns <= 0)
        return false;
    for (uint32_t i = 0; i < t->frame_count; i++) {
        const struct xds_traffic_frame *f = &t->frames[i];
        if (!f->len || (f->at && (f->at < 2 || f->at > f->len || f->len - f->at < XDS_TRAFFIC_BYTES)))
            return false;
    }
    return true;
}

/* What a frame is stamped with: see traffic.h. */
static int64_t stamp(struct xds_traffic_send *t, struct xds_clock *c, uint64_t n)
{
    const int64_t now = xdsi_clock_now(c);
    if (!t->rate)
        return now;
    const int64_t due = t->begin_ns + (int64_t)((unsigned __int128)n * SECOND / t->rate);
    if (t->late)
        xdsi_hist_record(t->late, now - due);
    return due < now ? due : now;
}

/* Fill n reserved frames from the templates. -EMSGSIZE: one does not fit, and all go back unsent. */
static int fill(struct xds_traffic_send *t, struct xds_link *l, struct xds_clock *c, struct xds_frame *out,
                unsigned n)
{
    uint64_t given = t->numbered;

    for (unsigned i = 0; i < n; i++) {
        const struct xds_traffic_frame *f = template(t, t->sent + i);
        if (f->len > out[i].len) {
            for (unsigned k = 0; k < n; k++)
                out[k].len = 0;
            xds_link_commit(l, out, n);
            return -EMSGSIZE;
        }
        memcpy(out[i].data, f->data, f->len);
        if (f->at)
            number(out[i].data + f->at, XDS_TRAFFIC_MARK | given++, stamp(t, c, t->sent + i));
        out[i].len = f->len;
        out[i].rx_ns = 0;
    }
    t->numbered = given;
    return 0;
}

static int send_some(struct xds_traffic_send *t, struct xds_link *l, struct xds_clock *c, uint64_t due)
{
    struct xds_frame frames[XDS_TRAFFIC_BATCH];
    unsigned n = due - t->sent < t->batch ? (unsigned)(due - t->sent) : t->batch;
    int got = xds_link_reserve(l, frames, n);

    if (got < 0)
        return got;
    if (got > 0) {
        int r = fill(t, l, c, frames, (unsigned)got);
        if (r == 0)
            r = xds_link_commit(l, frames, (unsigned)got);
        if (r < 0)
            return r;
        for (int i = 0; i < got; i++)
            t->bytes += frames[i].len;
        t->sent += (uint64_t)got;
    } else {
        t->starved++;
    }
    int left = xds_link_flush(l, xdsi_clock_now(c));
    return left < 0 ? left : 0;
}

/* Until the next frame is due, or `until`, whichever is first. */
static void wait_for(const struct xds_traffic_send *t, struct xds_clock *c, int64_t until)
{
    int64_t due = t->begin_ns + (int64_t)((unsigned __int128)t->sent * SECOND / t->rate);
    int64_t left = (due < until ? due : until) - xdsi_clock_now(c);

    if (left > SLEEP_NS) {
        left -= WAKE_NS;
        struct timespec pause = {.tv_sec = left / SECOND, .tv_nsec = left % SECOND};
        nanosleep(&pause, NULL);
    }
}

int xds_traffic_send(struct xds_traffic_send *t, struct xds_link *l, struct xds_clock *c, int64_t slice_ns)
{
    if (!sound(t))
        return XDS_ECONFIG;
    int64_t now = xdsi_clock_now(c), until = now + slice_ns;

    if (!t->begin_ns)
        t->begin_ns = now;
    for (; now < until; now = xdsi_clock_now(c)) {
        int64_t elapsed = now - t->begin_ns;
        uint64_t due = xds_traffic_due(t, elapsed);
        t->end_ns = now;
        if (t->sent >= t->count || (elapsed >= t->duration_ns && t->sent >= due) ||
            elapsed >= t->duration_ns + XDS_TRAFFIC_GRACE_NS)
            return 1;
        if (t->sent >= due) {
            wait_for(t, c, until);
            continue;
        }
        int r = send_some(t, l, c, due);
        if (r < 0)
            return r;
    }
    return 0;
}

int xds_traffic_end(struct xds_traffic_send *t, struct xds_link *l, struct xds_clock *c)
{
    const struct xds_traffic_frame *f = NULL;
    struct xds_frame out;
    int sent = 0;

    for (uint32_t i = 0; i < t->frame_count && !f; i++)
        if (t->frames[i].at)
            f = &t->frames[i];
    if (!f)
        return 0;
    for (int64_t end = xdsi_clock_now(c) + XDS_TRAFFIC_GRACE_NS; sent < XDS_TRAFFIC_ENDS;) {
        int r = xds_link_reserve(l, &out, 1);
        if (r == 1) {
            memcpy(out.data, f->data, f->len);
            number(out.data + f->at, XDS_TRAFFIC_MARK | XDS_TRAFFIC_END | t->numbered, xdsi_clock_now(c));
            out.len = f->len;
            out.rx_ns = 0;
            r = xds_link_commit(l, &out, 1);
            sent += r == 1;
        }
        int left = r < 0 ? r : xds_link_flush(l, xdsi_clock_now(c));
        if (left < 0)
            return left;
        if (xdsi_clock_now(c) > end)
            break;
    }
    return sent;
}

/* ---- the counter ---------------------------------------------------------------------------- */

/* The payload of a UDP frame, NULL when it is none or has no room for number and stamp. */
static const uint8_t *payload(const uint8_t *f, uint32_t len)
{
    uint32_t at = XDSI_ETH_BYTES;

    if (len < XDSI_ETH_BYTES + XDSI_IPV4_BYTES)
        return NULL;
    uint16_t type = xdsi_be16(f + 12);
    for (int tags = 0; tags < 2 && (type == XDSI_ETH_VLAN || type == XDSI_ETH_QINQ); tags++, at += 4)
        type = xdsi_be16(f + at + 2);
    if (at + (type == ETH_IPV6 ? IPV6_SIZE : XDSI_IPV4_BYTES) > len)
        return NULL;
    uint8_t protocol = type == XDSI_ETH_IPV4 ? f[at + 9] : type == ETH_IPV6 ? f[at + 6] : 0;
    at += type == ETH_IPV6 ? IPV6_SIZE : (f[at] & 15u) * 4;
    at += XDSI_UDP_BYTES;
    return protocol == XDSI_IPPROTO_UDP && at + XDS_TRAFFIC_BYTES <= len ? f + at : NULL;
}

/* Look a number up in the window and enter it. */
static void classify(struct xds_traffic_receive *t, uint64_t n)
{
    uint64_t *word = &t->seen[n % XDS_TRAFFIC_WINDOW / 64], bit = 1ull << n % 64;

    if (n >= t->next) {
        if (n - t->next >= XDS_TRAFFIC_WINDOW) {
            memset(t->seen, 0, XDS_TRAFFIC_WINDOW / 8);
        } else {
            for (uint64_t k = t->next; k <= n; k++)
                t->seen[k % XDS_TRAFFIC_WINDOW / 64] &= ~(1ull << k % 64);
        }
        t->next = n + 1;
    } else if (t->next - n > XDS_TRAFFIC_WINDOW) {
        t->stale++;
        return;
    } else if (*word & bit) {
        t->doubled++;
        return;
    } else {
        t->reordered++;
    }
    *word |= bit;
}

static void count(struct xds_traffic_receive *t, const uint8_t *p, uint32_t bytes, int64_t rx_ns)
{
    uint64_t word = p ? xdsi_le64(p) : 0;

    if ((word & 0xffff000000000000) != XDS_TRAFFIC_MARK) {
        t->foreign++;
        return;
    }
    if (word & XDS_TRAFFIC_END) {
        t->announced = word & (XDS_TRAFFIC_END - 1);
        t->ended_ns = t->ends++ ? t->ended_ns : rx_ns;
        return;
    }
    if (!t->received++)
        t->first_ns = rx_ns;
    t->last_ns = rx_ns;
    t->bytes += bytes;
    if (t->ages)
        xdsi_hist_record(t->ages, rx_ns - (int64_t)xdsi_le64(p + 8));
    classify(t, word & (XDS_TRAFFIC_END - 1));
}

static bool over(const struct xds_traffic_receive *t, int64_t now)
{
    return (t->want && t->received >= t->want) || (t->ends && now - t->ended_ns > XDS_TRAFFIC_QUIET_NS);
}

/* Nothing came for a while: let the core go for a millisecond at most. */
static void rest(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (fd >= 0)
        (void)poll(&p, 1, 1);
}

int xds_traffic_receive_link(struct xds_traffic_receive *t, struct xds_link *l, struct xds_clock *c,
                             int64_t slice_ns)
{
    struct xds_frame frames[BURST];
    int64_t now = xdsi_clock_now(c), until = now + slice_ns;

    for (unsigned idle = 0; now < until; now = xdsi_clock_now(c)) {
        if (over(t, now))
            return 1;
        int n = xds_link_rx(l, frames, BURST, xds_link_flags(l) & XDS_LINK_VIRTUAL_TIME ? XDS_NEVER : now);
        if (n < 0)
            return n == -EPIPE ? 1 : n;
        for (int i = 0; i < n; i++)
            count(t, payload(frames[i].data, frames[i].len), frames[i].len, frames[i].rx_ns);
        xds_link_release(l);
        idle = n ? 0 : idle + 1;
        if (idle >= IDLE)
            rest(xds_link_fd(l));
    }
    return 0;
}

int xds_traffic_receive_sock(struct xds_traffic_receive *t, struct xds_sock *s, struct xds_clock *c,
                             int64_t slice_ns)
{
    struct xds_dgram dgrams[BURST];
    int64_t now = xdsi_clock_now(c), until = now + slice_ns;

    for (unsigned idle = 0; now < until; now = xdsi_clock_now(c)) {
        if (over(t, now))
            return 1;
        int n = xds_sock_rx(s, dgrams, BURST, now);
        if (n < 0)
            return n;
        for (int i = 0; i < n; i++)
            count(t, dgrams[i].len >= XDS_TRAFFIC_BYTES ? dgrams[i].data : NULL, dgrams[i].len,
                  dgrams[i].rx_ns);
        xds_sock_release(s);
        idle = n ? 0 : idle + 1;
        if (idle >= IDLE)
            rest(xds_sock_fd(s));
    }
    return 0;
}

/* ---- two links joined ------------------------------------------------------------------------ */

/* Copy what fits into reserved frames of `out`; what does not is reserved no more. */
static unsigned rewrite(struct xds_traffic_forward *t, unsigned out, const struct xds_frame *in, unsigned n,
                        struct xds_frame *room, unsigned got)
{
    unsigned made = 0;

    for (unsigned i = 0; i < n; i++) {
        const struct xds_frame *f = &in[i];
        if (made == got || f->len > room[made].len || f->len < XDSI_ETH_BYTES) {
            t->refused++;
            continue;
        }
        struct xds_frame *r = &room[made++];
        memcpy(r->data, t->to[out], 6);
        memcpy(r->data + 6, t->source[out], 6);
        memcpy(r->data + 12, f->data + 12, f->len - 12);
        r->len = f->len;
        r->rx_ns = f->rx_ns;
    }
    for (unsigned i = made; i < got; i++)
        room[i].len = 0;
    return made;
}

/* Received frames leave by `out` as copies. Returns how many, -errno. */
static int pass_copies(struct xds_traffic_forward *t, struct xds_link *to, unsigned out,
                       const struct xds_frame *in, unsigned n)
{
    struct xds_frame room[BURST];
    int got = xds_link_reserve(to, room, n);

    if (got < 0)
        return got;
    unsigned made = rewrite(t, out, in, n, room, (unsigned)got);
    int sent = xds_link_commit(to, room, (unsigned)got);
    return sent < 0 ? sent : (int)made;
}

/* Received frames leave by `out` where they lie, with new MACs. Returns how many, -errno. */
static int pass_in_place(struct xds_traffic_forward *t, struct xds_link *to, struct xds_link *from,
                         unsigned out, struct xds_frame *in, unsigned n)
{
    unsigned fit = 0;
    uint8_t macs[12];

    memcpy(macs, t->to[out], 6);
    memcpy(macs + 6, t->source[out], 6);
    for (unsigned i = 0; i < n; i++) {
        if (in[i].len < XDSI_ETH_BYTES || in[i].len > xds_link_mtu(to) + TX_EXTRA)
            continue;
        memcpy(in[i].data, macs, sizeof(macs));
        if (fit != i)
            in[fit] = in[i];
        fit++;
    }
    int taken = xds_xsk_forward(to, from, in, fit);
    t->refused += taken < 0 ? 0 : n - (unsigned)taken;
    return taken;
}

static void keep_ages(struct xds_hist *ages, const struct xds_frame *f, int n, int64_t now)
{
    for (int i = 0; i < n; i++)
        if (f[i].rx_ns)
            xdsi_hist_record(ages, now - f[i].rx_ns);
}

static int forward_some(struct xds_traffic_forward *t, struct xds_link *const links[2], unsigned out,
                        struct xds_clock *c, int64_t now)
{
    struct xds_link *from = links[!out], *to = links[out];
    struct xds_frame in[BURST];
    int64_t until = xds_link_flags(from) & XDS_LINK_VIRTUAL_TIME ? XDS_NEVER : now;
    int n = xds_link_rx(from, in, BURST, until), sent = 0;

    if (n < 0)
        return n;
    if (n > 0) {
        sent = xds_xsk_shares(to, from) ? pass_in_place(t, to, from, out, in, (unsigned)n)
                                        : pass_copies(t, to, out, in, (unsigned)n);
        if (sent < 0)
            return sent;
        t->forwarded[out] += (unsigned)sent;
        t->pending |= 1u << out;
        xds_link_release(from);
    }
    if (t->pending & 1u << out) {
        int left = xds_link_flush(to, now);
        if (left < 0)
            return left;
        if (left == 0)
            t->pending &= ~(1u << out);
    }
    if (t->ages && out && sent > 0)
        keep_ages(t->ages, in, sent, xdsi_clock_now(c));
    return n;
}

int xds_traffic_forward(struct xds_traffic_forward *t, struct xds_link *const links[2], struct xds_clock *c,
                        int64_t slice_ns)
{
    int64_t now = xdsi_clock_now(c), until = now + slice_ns;

    for (; now < until; now = xdsi_clock_now(c)) {
        int there = forward_some(t, links, 1, c, now);
        int back = forward_some(t, links, 0, c, now);
        if (there == -EPIPE && back == -EPIPE)
            return -EPIPE;
        if (there < 0 && there != -EPIPE)
            return there;
        if (back < 0 && back != -EPIPE)
            return back;
    }
    return 0;
}
