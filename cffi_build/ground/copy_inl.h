/* copy_inl.h: short pieces copied without a call: a single packet finds the library's lines of code cold. */
#ifndef XDSI_COPY_INL_H
#define XDSI_COPY_INL_H

#include <stdint.h>
#include <string.h>

/* Fewer than 8 bytes. */
static inline void xdsi_copy_rest(uint8_t *to, const uint8_t *from, uint32_t len)
{
    if (len & 4) {
        memcpy(to, from, 4);
        to += 4;
        from += 4;
    }
    if (len & 2) {
        memcpy(to, from, 2);
        to += 2;
        from += 2;
    }
    if (len & 1)
        *to = *from;
}

/* Any number; they do not overlap. */
static inline void xdsi_copy(uint8_t *to, const uint8_t *from, uint32_t len)
{
    for (; len >= 16; len -= 16, to += 16, from += 16)
        memcpy(to, from, 16);
    if (len & 8) {
        memcpy(to, from, 8);
        to += 8;
        from += 8;
    }
    xdsi_copy_rest(to, from, len & 7);
}

#endif
