/* utf8_inl.h: whether bytes are UTF-8 (RFC 3629), however they are cut: no overlong form, no surrogate,
 * nothing above U+10FFFF. The state between pieces is what the next byte may be. ASCII: 32 bytes at once. */
#ifndef XDSI_UTF8_INL_H
#define XDSI_UTF8_INL_H

#include "ground/wire_inl.h"

struct xdsi_utf8 {
    uint8_t need;   /* bytes that the character lacks; 0: a character may begin or the text end */
    uint8_t lo, hi; /* the next of them lies between; by need 0 nothing                        */
};

/* The first byte of a character that is not ASCII: 0 no character begins so (RFC 3629 4). */
static inline int xdsi_utf8_lead(struct xdsi_utf8 *s, uint8_t c)
{
    if (c < 0xc2 || c > 0xf4)
        return 0;
    s->need = (uint8_t)(1 + (c >= 0xe0) + (c >= 0xf0));
    s->lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    s->hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    return 1;
}

/* How many bytes of p are ASCII before the first that is not. */
static inline uint32_t xdsi_ascii(const uint8_t *p, uint32_t len)
{
    const uint64_t high = 0x8080808080808080;
    uint32_t at = 0;

    for (; at + 32 <= len; at += 32)
        if ((xdsi_le64(p + at) | xdsi_le64(p + at + 8) | xdsi_le64(p + at + 16) | xdsi_le64(p + at + 24)) &
            high)
            break;
    for (; at + 8 <= len; at += 8)
        if (xdsi_le64(p + at) & high)
            break;
    while (at < len && p[at] < 0x80)
        at++;
    return at;
}

/* 1: right so far, 0: never. A text ends well where need is 0. */
static inline int xdsi_utf8(struct xdsi_utf8 *s, const uint8_t *p, uint32_t len)
{
    uint32_t at = 0;

    for (;;) {
        while (s->need && at < len) {
            if (p[at] < s->lo || p[at] > s->hi)
                return 0;
            s->lo = 0x80;
            s->hi = 0xbf;
            s->need--;
            at++;
        }
        at += xdsi_ascii(p + at, len - at);
        if (at >= len)
            return 1;
        if (!xdsi_utf8_lead(s, p[at++]))
            return 0;
    }
}

#endif
