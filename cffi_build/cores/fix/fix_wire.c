/* fix_wire.c: framer, parser, and the values of fields.
 *
 * The framer never guesses: BodyLength must lead to a CheckSum field, and that must be right. What is garbled
 * is passed over up to the next "8=FIX", or as a whole where its frame held and only its sum did not. Its
 * verdict depends on the bytes alone, never on how they were cut (FIX session layer, "garbled message").
 */
#include "fix_wire_inl.h"

#include <string.h>

#define TRAILER    7  /* "10=ddd" SOH             */
#define BEGIN_MAX  11 /* bytes of BeginString     */
#define LENGTH_MAX 7  /* digits of BodyLength     */

static const char START[] = "8=FIX";

/* Where the next message could begin, from `from` on: a whole START, or the bytes so far of one. */
static uint32_t seek(const uint8_t *p, uint32_t len, uint32_t from)
{
    for (uint32_t at = from; at < len; at++) {
        const uint8_t *found = memchr(p + at, '8', len - at);
        if (!found)
            return len;
        at = (uint32_t)(found - p);
        const uint32_t n = len - at < 5 ? len - at : 5;
        if (!memcmp(found, START, n))
            return at;
    }
    return len;
}

static int garbled(const uint8_t *p, uint32_t len, uint32_t why, uint32_t *reason, uint32_t *skip)
{
    *reason = why;
    *skip = seek(p, len, 1);
    return XDS_EMALFORMED;
}

/* The sum is right where 10= is where BodyLength says. */
static int whole(const uint8_t *p, uint32_t total, uint32_t body, uint32_t *reason, uint32_t *skip)
{
    const uint8_t *t = p + total - TRAILER;

    if (memcmp(t, "10=", 3) || t[6] != SOH || t[-1] != SOH)
        return garbled(p, total, XDS_FIX_LENGTH, reason, skip);
    const uint32_t told = xdsi_fix_length(t + 3, 3);
    *skip = total;
    if (told != xdsi_fix_sum(p, total - TRAILER)) {
        *reason = XDS_FIX_CHECKSUM;
        return XDS_EMALFORMED;
    }
    if (memcmp(p + body, "35=", 3)) {
        *reason = XDS_FIX_BEGIN;
        return XDS_EMALFORMED;
    }
    return (int)total;
}

int xds_fix_frame(const uint8_t *p, uint32_t len, uint32_t message_max, uint32_t *reason, uint32_t *skip)
{
    uint32_t at = 2, n = 0, digits = 0;

    *reason = *skip = 0;
    if (!len)
        return 0;
    if (memcmp(p, START, len < 5 ? len : 5)) { /* between messages: not a message at all */
        *skip = seek(p, len, 1);
        return XDS_EMALFORMED;
    }
    while (at < len && p[at] != SOH && at <= 2 + BEGIN_MAX)
        at++;
    if (at >= len)
        return at <= 2 + BEGIN_MAX ? 0 : garbled(p, len, XDS_FIX_BEGIN, reason, skip);
    if (p[at] != SOH)
        return garbled(p, len, XDS_FIX_BEGIN, reason, skip);
    for (uint32_t i = 0; i < 2; i++) {
        if (++at >= len)
            return 0;
        if (p[at] != "9="[i])
            return garbled(p, len, XDS_FIX_BEGIN, reason, skip);
    }
    for (at++; at < len && digits < LENGTH_MAX && (uint8_t)(p[at] - '0') <= 9; at++, digits++)
        n = n * 10 + (uint32_t)(p[at] - '0');
    if (at >= len)
        return 0;
    if (p[at] != SOH || !digits)
        return garbled(p, len, XDS_FIX_BEGIN, reason, skip);
    at++;
    if (at + n + TRAILER > message_max)
        return garbled(p, len, XDS_FIX_TOO_LONG, reason, skip);
    if (n < 5)
        return garbled(p, len, XDS_FIX_LENGTH, reason, skip);
    *skip = at + n + TRAILER;
    if (*skip > len)
        return 0;
    return whole(p, *skip, at, reason, skip);
}

int xds_fix_parse(const uint8_t *message, uint32_t len, struct xds_fix_field *fields, uint32_t cap)
{
    struct xdsi_fix_data data = {0, 0};
    uint32_t at = 0, n = 0;

    while (at < len) {
        if (n == cap)
            return XDS_ECAPACITY;
        at = xdsi_fix_next(message, len, at, &fields[n], &data);
        if (!at) {
            fields[cap - 1] = fields[n];
            return XDS_EMALFORMED;
        }
        n++;
    }
    return (int)n;
}

int xds_fix_find(const struct xds_fix_field *fields, uint32_t count, uint32_t from, uint32_t tag)
{
    for (uint32_t i = from; i < count; i++)
        if (fields[i].tag == tag)
            return (int)i;
    return -1;
}

/* Digits up to the first that is none; -1: more than 2^62, or none at all. */
static int64_t digits_of(const uint8_t **at, const uint8_t *end)
{
    const uint8_t *p = *at;
    int64_t n = 0;

    for (; p < end && (uint8_t)(*p - '0') <= 9; p++) {
        if (n > (INT64_MAX / 2 - 9) / 10)
            return -1;
        n = n * 10 + (*p - '0');
    }
    if (p == *at)
        return -1;
    *at = p;
    return n;
}

int xds_fix_integer(const uint8_t *value, uint32_t len, int64_t *out)
{
    const uint8_t *p = value, *end = value + len;
    const int minus = len && *p == '-';

    p += minus;
    const int64_t n = digits_of(&p, end);
    if (n < 0 || p != end)
        return XDS_EMALFORMED;
    *out = minus ? -n : n;
    return 0;
}

int xds_fix_decimal(const uint8_t *value, uint32_t len, int64_t *mantissa, uint32_t *scale)
{
    const uint8_t *p = value, *end = value + len, *point = NULL;
    const int minus = len && *p == '-';
    int64_t n = 0;
    uint32_t digits = 0;

    for (p += minus; p < end; p++) {
        if (*p == '.' && !point) {
            point = p;
            continue;
        }
        if ((uint8_t)(*p - '0') > 9 || n > (INT64_MAX / 2 - 9) / 10)
            return XDS_EMALFORMED;
        n = n * 10 + (*p - '0');
        digits++;
    }
    if (!digits)
        return XDS_EMALFORMED;
    *mantissa = minus ? -n : n;
    *scale = point ? (uint32_t)(end - point - 1) : 0;
    return 0;
}

/* A number of exactly n digits, -1: not. */
static int32_t exactly(const uint8_t *p, uint32_t n)
{
    int32_t v = 0;

    for (uint32_t i = 0; i < n; i++) {
        if ((uint8_t)(p[i] - '0') > 9)
            return -1;
        v = v * 10 + (p[i] - '0');
    }
    return v;
}

/* Days since 1970-01-01 in the Gregorian calendar; years begin in March, so that the leap day is the last. */
static int64_t days_of(int32_t year, int32_t month, int32_t day)
{
    year -= month <= 2;
    const int32_t era = year / 400, of_era = year - era * 400;
    const int32_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return (int64_t)era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static int month_days(int32_t year, int32_t month)
{
    if (month == 2)
        return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28;
    return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

int xds_fix_time(const uint8_t *v, uint32_t len, int64_t leap_ns, int64_t *out)
{
    int64_t ns = 0;

    if (len < 17 || len == 18 || len > 30 || v[8] != '-' || v[11] != ':' || v[14] != ':')
        return XDS_EMALFORMED;
    const int32_t year = exactly(v, 4), month = exactly(v + 4, 2), day = exactly(v + 6, 2);
    const int32_t hour = exactly(v + 9, 2), minute = exactly(v + 12, 2), second = exactly(v + 15, 2);
    if (year < 1970 || year > 2261 || month < 1 || month > 12 || day < 1 || day > month_days(year, month))
        return XDS_EMALFORMED;
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 ||
        second > 60) /* 60: a leap second */
        return XDS_EMALFORMED;
    if (len > 18 && v[17] != '.')
        return XDS_EMALFORMED;
    for (uint32_t i = 0; i < 9; i++) {
        const uint8_t c = 18 + i < len ? v[18 + i] : '0';
        if ((uint8_t)(c - '0') > 9)
            return XDS_EMALFORMED;
        ns = ns * 10 + (c - '0');
    }
    for (uint32_t i = 27; i < len; i++) /* picoseconds are read over */
        if ((uint8_t)(v[i] - '0') > 9)
            return XDS_EMALFORMED;
    *out = ((days_of(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    *out = *out * 1000000000 + ns + leap_ns;
    return 0;
}
