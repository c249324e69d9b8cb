/* csum_inl.h: the Internet checksum (RFC 1071) over bytes of any length and alignment.
 *
 * Sums are kept in the byte order of memory: ones' complement addition does not care (RFC 1071 2B), so
 * the folded sum is stored and compared as it is. 32-bit halves go into two 64-bit lanes, which cannot
 * overflow below 16 GiB and which the compiler turns into vector additions.
 */
#ifndef XDSI_CSUM_INL_H
#define XDSI_CSUM_INL_H

#include <stdint.h>
#include <string.h>

/* Add len bytes to a running sum. Only the last piece of a sum may have an odd length. */
static inline uint64_t xdsi_csum_add(uint64_t sum, const void *data, uint32_t len)
{
    const uint8_t *p = data;
    uint64_t lo = 0, hi = 0, w;
    uint32_t words = len / 8, rest = len % 8;

    for (uint32_t i = 0; i < words; i++) {
        memcpy(&w, p + 8 * i, 8);
        lo += w & 0xffffffff;
        hi += w >> 32;
    }
    w = 0;
    if (rest) {
        p += 8 * words;
        for (uint32_t i = 0; i < rest; i++) /* little-endian; bytes that are not there count as 0 */
            w |= (uint64_t)p[i] << (8 * i);
    }
    return sum + lo + hi + (w & 0xffffffff) + (w >> 32);
}

/* 0xffff for bytes that hold a right checksum. */
static inline uint16_t xdsi_csum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* The pseudo-header of UDP and TCP over IPv4; addresses in network order, len in host order. */
static inline uint64_t xdsi_csum_pseudo(uint32_t src, uint32_t dst, uint8_t protocol, uint32_t len)
{
    return (uint64_t)src + dst + ((uint64_t)protocol << 8) + __builtin_bswap16((uint16_t)len);
}

#endif
