/* siphash_inl.h: SipHash-2-4 (Aumasson and Bernstein, 2012): a keyed hash of short inputs that nobody can
 * foresee without the key. */
#ifndef XDSI_SIPHASH_INL_H
#define XDSI_SIPHASH_INL_H

#include "ground/wire_inl.h"

static inline uint64_t xdsi_rotate64(uint64_t x, unsigned by)
{
    return x << by | x >> (64 - by);
}

static inline void xdsi_sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = xdsi_rotate64(v[1], 13) ^ v[0];
    v[0] = xdsi_rotate64(v[0], 32);
    v[2] += v[3];
    v[3] = xdsi_rotate64(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = xdsi_rotate64(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = xdsi_rotate64(v[1], 17) ^ v[2];
    v[2] = xdsi_rotate64(v[2], 32);
}

/* len bytes, of which the last word is padded with zeros and holds the length, as the paper says. */
static inline uint64_t xdsi_siphash(const uint8_t key[16], const uint8_t *data, uint32_t len)
{
    const uint64_t k0 = xdsi_le64(key), k1 = xdsi_le64(key + 8);
    uint64_t v[4] = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261,
                     k1 ^ 0x7465646279746573};
    uint8_t last[8] = {[7] = (uint8_t)len};
    uint32_t at = 0;

    memcpy(last, data + (len & ~7u), len & 7);
    for (; at <= len; at += 8) {
        const uint64_t m = xdsi_le64(at + 8 <= len ? data + at : last);
        v[3] ^= m;
        xdsi_sip_round(v);
        xdsi_sip_round(v);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        xdsi_sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif
