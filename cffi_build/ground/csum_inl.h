/* csum_inl.h: the Internet checksum (RFC 1071) over bytes of any length and alignment.
 *
 * Sums are kept in the byte order of memory: ones' complement addition does not care (RFC 1071 2B), so
 * the folded sum is stored and compared as it is. Eight bytes are added at a time and each carry comes
 * round again (2C); what is returned fits 34 bits, so a few of them may simply be added.
 */
#ifndef XDSI_CSUM_INL_H
#define XDSI_CSUM_INL_H

#include <stdint.h>
#include <string.h>

#include "ground/copy_inl.h"

static inline uint64_t xdsi_csum_carry(uint64_t sum, uint64_t word)
{
    sum += word;
    return sum + (sum < word);
}

static inline uint64_t xdsi_csum_word(uint64_t sum, const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, 8);
    return xdsi_csum_carry(sum, w);
}

/* 32 bytes. In C every carry costs a comparison; as one chain of adc they cost nothing. Sanitizers do not see what
 * assembly reads, so their builds read in C. */
static inline uint64_t xdsi_csum_block(uint64_t sum, const uint8_t *p)
{
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
    __asm__("addq (%1), %0\n\tadcq 8(%1), %0\n\tadcq 16(%1), %0\n\tadcq 24(%1), %0\n\tadcq $0, %0"
            : "+r"(sum)
            : "r"(p), "m"(*(const uint8_t(*)[32])p)
            : "cc");
    return sum;
#else
    return xdsi_csum_word(xdsi_csum_word(xdsi_csum_word(xdsi_csum_word(sum, p), p + 8), p + 16), p + 24);
#endif
}

/* The bytes behind the last eight. 4 and 2 are even: each piece may be added where it is. */
static inline uint64_t xdsi_csum_rest(const uint8_t *p, uint32_t len)
{
    uint64_t sum = 0;
    uint32_t w4;
    uint16_t w2;
    if (len & 4) {
        memcpy(&w4, p, 4);
        sum = w4;
        p += 4;
    }
    if (len & 2) {
        memcpy(&w2, p, 2);
        sum += w2;
        p += 2;
    }
    if (len & 1)
        sum += *p; /* little-endian; the byte that is not there counts as 0 */
    return sum;
}

/* Add len bytes to a running sum. Only the last piece of a sum may have an odd length. */
static inline uint64_t xdsi_csum_add(uint64_t sum, const void *data, uint32_t len)
{
    const uint8_t *p = data;
    uint64_t a = 0;

    for (; len >= 32; len -= 32, p += 32)
        a = xdsi_csum_block(a, p);
    for (; len >= 8; len -= 8, p += 8)
        a = xdsi_csum_word(a, p);
    return sum + (a & 0xffffffff) + (a >> 32) + xdsi_csum_rest(p, len);
}

/* Two 64-bit sums of 32-bit words, which carry nothing for four billion of them; SSE2 and NEON have that. */
typedef uint64_t xdsi_lanes __attribute__((vector_size(16)));

static inline xdsi_lanes xdsi_csum_lanes(xdsi_lanes sum, xdsi_lanes w)
{
    return sum + (w & 0xffffffff) + (w >> 32);
}

/* The same while len bytes are copied; they do not overlap. */
static inline uint64_t xdsi_csum_copy(uint64_t sum, uint8_t *to, const uint8_t *from, uint32_t len)
{
    xdsi_lanes a = {0}, b = {0}, w[2];
    uint64_t word;

    for (; len >= 32; len -= 32, from += 32, to += 32) {
        memcpy(w, from, 32);
        memcpy(to, w, 32);
        a = xdsi_csum_lanes(a, w[0]);
        b = xdsi_csum_lanes(b, w[1]);
    }
    a += b;
    for (; len >= 8; len -= 8, from += 8, to += 8) {
        memcpy(&word, from, 8);
        memcpy(to, &word, 8);
        a[0] += (word & 0xffffffff) + (word >> 32);
    }
    sum += xdsi_csum_rest(from, len);
    xdsi_copy_rest(to, from, len);
    return sum + (a[0] & 0xffffffff) + (a[0] >> 32) + (a[1] & 0xffffffff) + (a[1] >> 32);
}

/* An IPv4 header without options. */
static inline uint64_t xdsi_csum_ipv4(const uint8_t *ip)
{
    uint32_t w[5];
    memcpy(w, ip, 20);
    return (uint64_t)w[0] + w[1] + w[2] + w[3] + w[4];
}

/* 0xffff for bytes that hold a right checksum. Both halves of a word, added to both halves the other way round: the
 * upper half of that is their sum with its carry come round. */
static inline uint16_t xdsi_csum_fold(uint64_t sum)
{
    const uint32_t half = (uint32_t)((sum + (sum << 32 | sum >> 32)) >> 32);
    return (uint16_t)((half + (half << 16 | half >> 16)) >> 16);
}

/* The pseudo-header of UDP and TCP over IPv4; addresses in network order, len in host order. */
static inline uint64_t xdsi_csum_pseudo(uint32_t src, uint32_t dst, uint8_t protocol, uint32_t len)
{
    return (uint64_t)src + dst + ((uint64_t)protocol << 8) + __builtin_bswap16((uint16_t)len);
}

#endif
