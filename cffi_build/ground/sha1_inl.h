/* sha1_inl.h: SHA-1 (RFC 3174) of short inputs, for protocols that ask for it (RFC 6455 1.3). */
#ifndef XDSI_SHA1_INL_H
#define XDSI_SHA1_INL_H

#include "ground/wire_inl.h"

static inline uint32_t xdsi_rotate32(uint32_t x, unsigned by)
{
    return x << by | x >> (32 - by);
}

/* One block of 64 bytes (RFC 3174 6.1). */
static inline void xdsi_sha1_block(uint32_t h[5], const uint8_t block[64])
{
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];

    for (int t = 0; t < 16; t++)
        w[t] = __builtin_bswap32(xdsi_le32(block + 4 * t));
    for (int t = 16; t < 80; t++)
        w[t] = xdsi_rotate32(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    for (int t = 0; t < 80; t++) {
        const uint32_t f = t < 20              ? (b & c) | (~b & d)
                           : t < 40 || t >= 60 ? b ^ c ^ d
                                               : (b & c) | (b & d) | (c & d);
        const uint32_t k = t < 20 ? 0x5a827999 : t < 40 ? 0x6ed9eba1 : t < 60 ? 0x8f1bbcdc : 0xca62c1d6;
        const uint32_t next = xdsi_rotate32(a, 5) + f + e + w[t] + k;

        e = d;
        d = c;
        c = xdsi_rotate32(b, 30);
        b = a;
        a = next;
    }
    h[0] += a;
    h[1] += b;
    h[2] += c;
    h[3] += d;
    h[4] += e;
}

/* len bytes, fewer than 2^29. */
static inline void xdsi_sha1(const uint8_t *data, uint32_t len, uint8_t out[20])
{
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    uint8_t last[128] = {0};
    const uint32_t rest = len & 63, blocks = rest < 56 ? 1 : 2;

    for (uint32_t at = 0; at + 64 <= len; at += 64)
        xdsi_sha1_block(h, data + at);
    memcpy(last, data + (len - rest), rest);
    last[rest] = 0x80;
    const uint32_t bits = __builtin_bswap32(len << 3);
    memcpy(last + 64 * blocks - 4, &bits, 4);
    for (uint32_t i = 0; i < blocks; i++)
        xdsi_sha1_block(h, last + 64 * i);
    for (int i = 0; i < 5; i++) {
        const uint32_t word = __builtin_bswap32(h[i]);
        memcpy(out + 4 * i, &word, 4);
    }
}

#endif
