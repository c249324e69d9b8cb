/* fix_bench.c: what FIX costs a message: ns of the fastest of 200 rounds, each of 1000 calls.
 *
 *   parse    an ExecutionReport of 240 bytes, 23 fields: framed (BodyLength, CheckSum) and indexed
 *   get      one of its fields by tag, by turns from the first to the last
 *   build    a NewOrderSingle of 134 bytes: header, seven fields, one time, BodyLength, CheckSum
 *   session  the same report through input() and event(): parsed, checked, in order
 *   send     the same order's body through send() and output(): header, sum, and a copy held for resending
 */
#include "xds/fix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROUNDS 200
#define CALLS  1000
#define NOW    1790000000000000000

static volatile int64_t sink;

static int64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(struct xds_fix_builder *b, uint32_t tag, const char *text)
{
    xds_fix_put(b, tag, (const uint8_t *)text, (uint32_t)strlen(text));
}

static int report(uint8_t *room, int64_t seq)
{
    static const struct {
        uint32_t tag;
        const char *value;
    } FIELDS[] = {{37, "O-000017"}, {11, "C-000017"}, {17, "E-000099"}, {150, "F"},      {39, "1"},
                  {55, "EUR/USD"},  {54, "1"},        {38, "1000000"},  {44, "1.08215"}, {32, "400000"},
                  {31, "1.08214"},  {151, "600000"},  {14, "400000"},   {6, "1.08214"}};
    struct xds_fix_builder b;
    uint32_t start;

    xds_fix_begin(&b, room, 512, "FIX.4.4", "8");
    put(&b, 49, "VENUE"), put(&b, 56, "BUYSIDE");
    xds_fix_put_integer(&b, 34, seq);
    xds_fix_put_time(&b, 52, NOW, 0, 3);
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++)
        put(&b, FIELDS[i].tag, FIELDS[i].value);
    xds_fix_put_time(&b, 60, NOW, 0, 3);
    const int len = xds_fix_finish(&b, &start);
    memmove(room, room + start, (size_t)len);
    return len;
}

static int order(uint8_t *room, int64_t seq)
{
    struct xds_fix_builder b;
    uint32_t start;

    xds_fix_begin(&b, room, 512, "FIX.4.4", "D");
    put(&b, 49, "BUYSIDE"), put(&b, 56, "VENUE");
    xds_fix_put_integer(&b, 34, seq);
    xds_fix_put_time(&b, 52, NOW + seq, 0, 3);
    xds_fix_put_integer(&b, 11, 1000 + seq);
    put(&b, 55, "EUR/USD"), put(&b, 54, "1"), put(&b, 40, "2"), put(&b, 59, "3");
    xds_fix_put_integer(&b, 38, 1000000);
    xds_fix_put_decimal(&b, 44, 108215, 5);
    return xds_fix_finish(&b, &start);
}

static struct xds_fix *session(void)
{
    struct xds_fix_config c = {
        .sender_comp_id = "BUYSIDE", .target_comp_id = "VENUE", .version = XDS_FIX_44, .leap_ns = 1};
    static uint8_t room[512];
    struct xds_fix_builder b;
    struct xds_fix_event e;
    uint32_t start;
    struct xds_fix *f = aligned_alloc(64, xds_fix_size(&c));

    xds_fix_init(f, &c);
    xds_fix_open(f, NOW);
    xds_fix_begin(&b, room, sizeof room, "FIX.4.4", "A");
    put(&b, 49, "VENUE"), put(&b, 56, "BUYSIDE"), put(&b, 34, "1");
    xds_fix_put_time(&b, 52, NOW, 0, 3);
    put(&b, 98, "0"), put(&b, 108, "30");
    const int len = xds_fix_finish(&b, &start);
    if (xds_fix_input(f, room + start, (uint32_t)len, NOW) != len || !xds_fix_event(f, &e) ||
        e.kind != XDS_FIX_EVENT_LOGON)
        exit(1);
    while (xds_fix_output(f, room, sizeof room, NOW))
        ;
    return f;
}

enum { PARSE, GET, BUILD, SESSION, SEND, WORDS };

/* One round of calls; what is made before it does not count. */
static int64_t round_of(int what, struct xds_fix *f, uint8_t (*reports)[512], int *lens)
{
    static const char ORDER[] =
        "35=D\00111=1017\00155=EUR/USD\00154=1\00140=2\00159=3\00138=1000000\00144=1.08215\001";
    static struct xds_fix_field fields[64];
    static uint8_t room[512];
    struct xds_fix_info info;
    struct xds_fix_event e;
    uint32_t reason, skip;
    int count = xds_fix_parse(reports[0], (uint32_t)lens[0], fields, 64);

    xds_fix_info(f, &info);
    for (int i = 0; what == SESSION && i < CALLS; i++)
        lens[i] = report(reports[i], (int64_t)info.next_in + i);
    const int64_t began = clock_ns();
    for (int i = 0; i < CALLS; i++) {
        switch (what) {
        case PARSE:
            sink += xds_fix_frame(reports[i], (uint32_t)lens[i], 16384, &reason, &skip);
            sink += xds_fix_parse(reports[i], (uint32_t)lens[i], fields, 64);
            break;
        case GET:
            sink += xds_fix_find(fields, (uint32_t)count, 0, fields[i % count].tag);
            break;
        case BUILD:
            sink += order(room, i);
            break;
        case SESSION:
            if (xds_fix_input(f, reports[i], (uint32_t)lens[i], NOW) != lens[i] ||
                xds_fix_event(f, &e) != 1 || e.kind != XDS_FIX_EVENT_MESSAGE)
                exit(1);
            break;
        case SEND:
            if (xds_fix_send(f, (const uint8_t *)ORDER, sizeof ORDER - 1, NOW + i))
                exit(1);
            sink += xds_fix_output(f, room, sizeof room, NOW);
        }
    }
    return clock_ns() - began;
}

int main(void)
{
    static const char *const NAMES[WORDS] = {"parse", "get", "build", "session", "send"};
    static uint8_t reports[CALLS][512];
    static int lens[CALLS];
    struct xds_fix *f = session();
    uint8_t room[512];

    for (int i = 0; i < CALLS; i++)
        lens[i] = report(reports[i], 2 + i);
    printf("report %d bytes, order %d bytes\n", lens[0], order(room, 1));
    for (int what = 0; what < WORDS; what++) {
        int64_t best = INT64_MAX;
        for (int i = 0; i < ROUNDS; i++) {
            const int64_t ns = round_of(what, f, reports, lens);
            best = ns < best ? ns : best;
        }
        printf("%-8s %6.1f ns\n", NAMES[what], (double)best / CALLS);
    }
    free(f);
    return 0;
}
