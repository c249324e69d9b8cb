/* fix_build.c: a message into given room. The body is written first, behind room for the longest header, and
 * the header then right before it, so that BodyLength has no leading zeros and nothing is moved.
 */
#include "fix_wire_inl.h"

#include <string.h>

#define HEAD    24 /* "8=" 11 SOH "9=" 7 SOH, and one to spare */
#define TRAILER 7

/* Two digits at a time. */
static inline uint8_t *two(uint8_t *p, uint32_t n)
{
    p[0] = (uint8_t)('0' + n / 10);
    p[1] = (uint8_t)('0' + n % 10);
    return p + 2;
}

/* The digits of n, and how many. */
static inline uint32_t digits(uint8_t *p, uint64_t n)
{
    uint8_t back[20];
    uint32_t count = 0;

    do
        back[19 - count++] = (uint8_t)('0' + n % 10);
    while (n /= 10);
    for (uint32_t i = 0; i < count; i++)
        p[i] = back[20 - count + i];
    return count;
}

void xds_fix_begin(struct xds_fix_builder *b, uint8_t *room, uint32_t cap, const char *begin_string,
                   const char *msg_type)
{
    const size_t len = strlen(begin_string);

    b->room = room, b->cap = cap, b->at = b->body = HEAD;
    b->fault = cap < HEAD + TRAILER || len > 11 ? XDS_ECAPACITY : 0;
    memcpy(b->begin_string, begin_string, len > 11 ? 11 : len);
    b->begin_string[len > 11 ? 11 : len] = 0;
    xds_fix_put(b, 35, (const uint8_t *)msg_type, (uint32_t)strlen(msg_type));
}

/* Room for a tag, len bytes, SOH, and the trailer; where the value goes. */
static inline uint8_t *open_field(struct xds_fix_builder *b, uint32_t tag, uint32_t len)
{
    if (b->fault || len > b->cap || b->cap - b->at < len + 12 + TRAILER) {
        b->fault = XDS_ECAPACITY;
        return NULL;
    }
    uint8_t *p = b->room + b->at;
    p += digits(p, tag);
    *p++ = '=';
    return p;
}

static inline void end_field(struct xds_fix_builder *b, uint8_t *p)
{
    *p++ = SOH;
    b->at = (uint32_t)(p - b->room);
}

void xds_fix_put(struct xds_fix_builder *b, uint32_t tag, const uint8_t *value, uint32_t len)
{
    uint8_t *p = open_field(b, tag, len);

    if (!p)
        return;
    memcpy(p, value, len);
    end_field(b, p + len);
}

void xds_fix_put_integer(struct xds_fix_builder *b, uint32_t tag, int64_t value)
{
    uint8_t *p = open_field(b, tag, 20);

    if (!p)
        return;
    if (value < 0)
        *p++ = '-';
    end_field(b, p + digits(p, value < 0 ? 0 - (uint64_t)value : (uint64_t)value));
}

void xds_fix_put_decimal(struct xds_fix_builder *b, uint32_t tag, int64_t mantissa, uint32_t scale)
{
    uint8_t *p = open_field(b, tag, 24 + (scale > 18 ? 18 : scale));
    uint64_t n = mantissa < 0 ? 0 - (uint64_t)mantissa : (uint64_t)mantissa, one = 1;

    if (!p || scale > 18) {
        b->fault = XDS_ECAPACITY;
        return;
    }
    for (uint32_t i = 0; i < scale; i++)
        one *= 10;
    if (mantissa < 0)
        *p++ = '-';
    p += digits(p, n / one);
    if (scale) {
        *p++ = '.';
        for (n %= one; one > 1; n %= one) {
            one /= 10;
            *p++ = (uint8_t)('0' + n / one);
        }
    }
    end_field(b, p);
}

int xds_fix_put_timestamp(uint8_t *room, int64_t tai_ns, int64_t leap_ns, uint32_t count)
{
    const uint64_t ns = (uint64_t)(tai_ns - leap_ns > 0 ? tai_ns - leap_ns : 0);
    const uint64_t seconds = ns / 1000000000;
    const uint32_t of_day = (uint32_t)(seconds % 86400), below = (uint32_t)(ns % 1000000000);
    /* The civil date of a day: eras of 400 years from 0000-03-01, as in fix_wire.c the other way round. */
    const uint32_t z = (uint32_t)(seconds / 86400) + 719468, era = z / 146097, doe = z % 146097;
    const uint32_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    const uint32_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    const uint32_t month = mp < 10 ? mp + 3 : mp - 9, year = yoe + era * 400 + (month <= 2);
    uint8_t *p = room;

    p = two(two(p, year / 100), year % 100);
    p = two(two(p, month), doy - (153 * mp + 2) / 5 + 1);
    *p++ = '-';
    p = two(p, of_day / 3600);
    *p++ = ':';
    p = two(p, of_day / 60 % 60);
    *p++ = ':';
    p = two(p, of_day % 60);
    if (count) {
        uint32_t unit = 1000000000, rest = below;
        *p++ = '.';
        for (uint32_t i = 0; i < count && i < 9; i++) {
            unit /= 10;
            *p++ = (uint8_t)('0' + rest / unit);
            rest %= unit;
        }
    }
    return (int)(p - room);
}

void xds_fix_put_time(struct xds_fix_builder *b, uint32_t tag, int64_t tai_ns, int64_t leap_ns,
                      uint32_t count)
{
    uint8_t *p = open_field(b, tag, 27);

    if (p)
        end_field(b, p + xds_fix_put_timestamp(p, tai_ns, leap_ns, count));
}

int xds_fix_finish(struct xds_fix_builder *b, uint32_t *start)
{
    uint8_t length[20];
    const uint32_t n = b->fault ? 0 : digits(length, b->at - b->body);
    const uint32_t begin = (uint32_t)strlen(b->begin_string);

    if (b->fault || n > 7)
        return XDS_ECAPACITY;
    *start = b->body - (2 + begin + 1 + 2 + n + 1);
    uint8_t *p = b->room + *start;
    memcpy(p, "8=", 2), p += 2;
    memcpy(p, b->begin_string, begin), p += begin;
    *p++ = SOH, *p++ = '9', *p++ = '=';
    memcpy(p, length, n), p += n;
    *p = SOH;
    const uint32_t sum = xdsi_fix_sum(b->room + *start, b->at - *start);
    p = b->room + b->at;
    *p++ = '1', *p++ = '0', *p++ = '=', *p++ = (uint8_t)('0' + sum / 100);
    p = two(p, sum % 100);
    *p++ = SOH;
    b->at += TRAILER;
    return (int)(b->at - *start);
}
