/* fuzz_fix.c: libFuzzer over one FIX session, its framer, parser and values. The input is a list of steps: bytes
 * as they are, messages with right sums round fuzzed bodies, time, calls. A second session gets the same bytes one
 * by one and must say the same. It holds: received = delivered + reasons, events lie inside what was given, answers
 * come to an end, nothing is due when it is over.
 */
#include "xds/fix.h"

#include <stdlib.h>
#include <string.h>

#define NOW  1790000000000000000
#define LONG 4096

static const char ORDER[] = "35=D\00111=1\00158=xxxxxxxxxxxxxxxxxxxxx\001";

static void check(int holds)
{
    if (!holds)
        abort();
}

static void check_event(const struct xds_fix_event *e)
{
    check(e->kind >= XDS_FIX_EVENT_LOGON && e->kind <= XDS_FIX_EVENT_FAILED);
    check(!e->msg_type[7]);
    if (!e->data)
        return;
    volatile uint8_t sink = e->data[0];
    (void)sink;
    check(e->len <= LONG && !memcmp(e->data, "8=FIX", 5) && e->data[e->len - 1] == 1);
    for (uint32_t i = 0; i < e->count; i++)
        check(e->fields[i].tag && e->fields[i].at + e->fields[i].len < e->len);
}

static void check_all(const struct xds_fix *f)
{
    struct xds_fix_stats s;
    struct xds_fix_info i;
    uint64_t sum = 0;

    xds_fix_stats(f, &s);
    for (int r = 0; r < XDS_FIX_REASONS; r++)
        sum += s.reasons[r];
    check(sum == s.received && s.skipped_bytes <= s.received_bytes);
    xds_fix_info(f, &i);
    check(i.next_in >= 1 && i.next_out >= 1 && i.held <= 8 && i.unsent <= 4 * LONG);
    check(i.state != XDS_FIX_ENDED || xds_fix_deadline(f) == XDS_NEVER);
}

/* What both sessions have said and told, folded. */
static void fold(uint64_t *sum, const void *data, size_t len)
{
    for (size_t i = 0; i < len; i++)
        *sum = (*sum ^ ((const uint8_t *)data)[i]) * 1099511628211u;
}

static void say(struct xds_fix *f, int64_t now, uint64_t *sum)
{
    uint8_t *room = malloc(777);
    int len, n = 0;

    while ((len = xds_fix_output(f, room, 777, now))) {
        check(len > 0 && len <= 777 && n++ < 1000);
        fold(sum, room, (size_t)len);
    }
    free(room);
}

static void give(struct xds_fix *f, const uint8_t *data, uint32_t len, uint32_t piece, int64_t now,
                 uint64_t *sum)
{
    for (uint32_t at = 0;;) {
        const uint32_t n = len - at < piece ? len - at : piece;
        uint8_t *copy = malloc(n + 1); /* its end is guarded */
        struct xds_fix_event e;
        int told = 0;
        if (n)
            memcpy(copy, data + at, n);
        const int taken = xds_fix_input(f, copy, n, now);
        check(taken <= (int)n);
        while (xds_fix_event(f, &e)) {
            check_event(&e);
            told++;
            const uint64_t words[] = {e.kind, e.seq, e.number, e.reason, e.tag, e.len};
            fold(sum, words, sizeof words);
        }
        free(copy);
        say(f, now, sum);
        if (taken < 0)
            return;
        at += (uint32_t)taken;
        if (!taken && !told && (at == len || n))
            return;
    }
}

/* A message with right sums; its number is near the expected one. */
static uint32_t make(const struct xds_fix *f, const uint8_t *how, const uint8_t *body, uint32_t len,
                     uint8_t *room)
{
    static const char *const TYPES[16] = {"0", "1", "2",  "3", "4", "5", "A", "8",
                                          "8", "D", "AE", "4", "2", "1", "8", "W"};
    struct xds_fix_builder b;
    struct xds_fix_info i;
    uint32_t start;

    xds_fix_info(f, &i);
    xds_fix_begin(&b, room, LONG, how[0] & 128 ? "FIX.4.2" : "FIX.4.4", TYPES[how[0] & 15]);
    xds_fix_put(&b, 49, (const uint8_t *)"YOU", 3);
    xds_fix_put(&b, 56, (const uint8_t *)"ME", 2);
    xds_fix_put_integer(&b, 34, (int64_t)i.next_in + (how[1] & 64 ? (int8_t)(how[1] << 4) >> 4 : 0));
    xds_fix_put_time(&b, 52, NOW, 0, 3);
    if (how[1] & 128)
        xds_fix_put(&b, 43, (const uint8_t *)"Y", 1), xds_fix_put_time(&b, 122, NOW - 1, 0, 3);
    if (how[0] & 32)
        xds_fix_put_integer(&b, 36, (int64_t)i.next_in + how[1] % 16),
            xds_fix_put(&b, 123, (const uint8_t *)"Y", 1);
    if (how[0] & 16)
        xds_fix_put_integer(&b, 98, 0), xds_fix_put_integer(&b, 108, how[1] % 64);
    if (how[0] & 64)
        xds_fix_put_integer(&b, 7, 1), xds_fix_put_integer(&b, 16, how[1] % 4);
    if (len) /* the separator of the last field is put behind: any bytes */
        xds_fix_put(&b, 112, body, len);
    const int n = xds_fix_finish(&b, &start);
    if (n < 0)
        return 0;
    memmove(room, room + start, (uint32_t)n);
    return (uint32_t)n;
}

static struct xds_fix *begin(uint8_t flags)
{
    struct xds_fix_config c = {.sender_comp_id = "ME",
                               .target_comp_id = "YOU",
                               .version = XDS_FIX_44,
                               .acceptor = flags & 1,
                               .reset = flags >> 1 & 1,
                               .resend_max = flags & 4 ? 8 : 0,
                               .message_max = LONG,
                               .output_bytes = 4 * LONG,
                               .store_bytes = 300,
                               .store_messages = 8,
                               .leap_ns = 1,
                               .no_time_check = flags >> 4 & 1};
    struct xds_fix *f = malloc(xds_fix_size(&c));

    check(xds_fix_init(f, &c) == 0);
    xds_fix_open(f, NOW);
    return f;
}

static void call(struct xds_fix *f, uint8_t what, const uint8_t *data, uint32_t len, int64_t now)
{
    switch (what) {
    case 0:
        xds_fix_send(f, data, len, now);
        break;
    case 1:
        xds_fix_test_request(f, now);
        break;
    case 2:
        xds_fix_tick(f, now);
        break;
    case 3:
        xds_fix_close(f, "bye", now);
        break;
    case 4:
        xds_fix_open(f, now);
        break;
    case 5:
        xds_fix_send(f, (const uint8_t *)ORDER, sizeof ORDER - 1, now);
        break;
    }
}

static void values(const uint8_t *data, uint32_t len)
{
    struct xds_fix_field fields[64];
    uint32_t reason, skip, scale;
    int64_t out;

    const int n = xds_fix_frame(data, len, LONG, &reason, &skip);
    check(n <= (int)len && (n >= 0 || (skip > 0 && skip <= len)));
    check(xds_fix_parse(data, len, fields, 64) <= 64);
    xds_fix_integer(data, len, &out);
    xds_fix_decimal(data, len, &out, &scale);
    xds_fix_time(data, len, 0, &out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t room[LONG];
    int64_t now = NOW;
    uint64_t one = 0, other = 0;

    if (size < 1)
        return 0;
    values(data, (uint32_t)size);
    struct xds_fix *f = begin(data[0]), *g = begin(data[0]);
    say(f, now, &one), say(g, now, &other);
    for (size_t at = 1; at + 4 <= size;) {
        const uint8_t *how = data + at;
        const uint32_t len = (uint32_t)(how[3] < size - at - 4 ? how[3] : size - at - 4);
        if (how[2] < 96) {
            give(f, how + 4, len, how[2] + 1, now, &one), give(g, how + 4, len, 1, now, &other);
        } else if (how[2] < 224) {
            const uint32_t n = make(f, how, how + 4, len, room);
            give(f, room, n, LONG, now, &one), give(g, room, n, 1, now, &other);
        } else {
            now += (int64_t)how[1] * 200000000;
            call(f, how[2] % 8, how + 4, len, now), call(g, how[2] % 8, how + 4, len, now);
            give(f, NULL, 0, 1, now, &one), give(g, NULL, 0, 1, now, &other);
        }
        check_all(f), check_all(g);
        check(one == other);
        at += 4 + len;
    }
    free(f), free(g);
    return 0;
}
