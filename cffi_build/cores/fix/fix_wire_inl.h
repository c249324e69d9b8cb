/* fix_wire_inl.h: one field of a message, in the straight line of parser and sender.
 *
 * A field is tag=value SOH: a tag of one to nine digits, the first no 0; a value of at least one byte, none of
 * them SOH. The exception are the data fields, whose length the field before them tells.
 */
#ifndef XDSI_FIX_WIRE_INL_H
#define XDSI_FIX_WIRE_INL_H

#include "xds/fix.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define SOH 1

/* Index of the first SOH at or behind `at`, or len. */
static inline uint32_t xdsi_fix_soh(const uint8_t *p, uint32_t at, uint32_t len)
{
#if defined(__SSE2__)
    const __m128i soh = _mm_set1_epi8(SOH);
    for (; len - at >= 16; at += 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(p + at));
        const int mask = _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, soh));
        if (mask)
            return at + (uint32_t)__builtin_ctz((unsigned)mask);
    }
#endif
    while (at < len && p[at] != SOH)
        at++;
    return at;
}

/* The data field that a length field speaks of, 0: the tag is no length field's. */
static inline uint32_t xdsi_fix_data_tag(uint32_t tag)
{
    switch (tag) {
    case 93: /* SignatureLength, Signature: the only pair that runs downwards */
        return 89;
    case 90:  /* SecureDataLen          */
    case 95:  /* RawDataLength          */
    case 212: /* XmlDataLen             */
    case 348: /* Encoded: Issuer, SecurityDesc, ListExecInst, Text, Subject, Headline, AllocText, */
    case 350: /* UnderlyingIssuer, UnderlyingSecurityDesc, ListStatusText, LegIssuer,              */
    case 352: /* LegSecurityDesc, SecurityXML, derivative ones, MktSegmDesc, passwords             */
    case 354:
    case 356:
    case 358:
    case 360:
    case 362:
    case 364:
    case 445:
    case 618:
    case 621:
    case 1184:
    case 1277:
    case 1280:
    case 1282:
    case 1397:
    case 1401:
    case 1403:
    case 1468:
        return tag + 1;
    }
    return 0;
}

/* What a length field announced for the field behind it. */
struct xdsi_fix_data {
    uint32_t tag; /* 0: nothing */
    uint32_t len;
};

static inline uint32_t xdsi_fix_length(const uint8_t *value, uint32_t len)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < len; i++) {
        if ((uint8_t)(value[i] - '0') > 9 || n > 99999999)
            return UINT32_MAX;
        n = n * 10 + (uint32_t)(value[i] - '0');
    }
    return n;
}

/* The field at `at`: where the next one begins; 0: none is here, f->tag says whether its number was right. */
static inline uint32_t xdsi_fix_next(const uint8_t *p, uint32_t len, uint32_t at, struct xds_fix_field *f,
                                     struct xdsi_fix_data *data)
{
    uint32_t i = at, tag = 0, end;

    f->tag = 0, f->at = at, f->len = 0;
    for (; i < len && i - at < 9 && (uint8_t)(p[i] - '0') <= 9; i++)
        tag = tag * 10 + (uint32_t)(p[i] - '0');
    if (i == at || i >= len || p[i] != '=' || p[at] == '0')
        return 0;
    f->tag = tag, f->at = ++i;
    if (__builtin_expect(data->tag != 0, 0)) {
        const uint32_t told = data->tag == tag ? data->len : 0, here = data->tag == tag;
        data->tag = 0;
        if (here) {
            if (told >= len - i || p[i + told] != SOH)
                return 0;
            f->len = told;
            return i + told + 1;
        }
    }
    end = xdsi_fix_soh(p, i, len);
    if (end == len || end == i)
        return 0;
    f->len = end - i;
    const uint32_t of = xdsi_fix_data_tag(tag);
    if (__builtin_expect(of != 0, 0))
        data->tag = of, data->len = xdsi_fix_length(p + i, f->len);
    return end + 1;
}

static inline uint32_t xdsi_fix_sum(const uint8_t *p, uint32_t len)
{
    uint8_t sum = 0; /* modulo 256: the compiler adds sixteen at once */

    for (uint32_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + p[i]);
    return sum;
}

#endif
