/* address_inl.h: an address of 16 bytes as two words: IPv6's, or IPv4's mapped into it (RFC 4291 2.5.5.2). The
 * words are as they lie in memory, so `high` holds the bytes that come first. */
#ifndef XDSI_ADDRESS_INL_H
#define XDSI_ADDRESS_INL_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct xdsi_addr {
    uint64_t high, low;
};

static inline struct xdsi_addr xdsi_addr_of(const uint8_t *p)
{
    struct xdsi_addr a;
    memcpy(&a, p, 16);
    return a;
}

static inline void xdsi_addr_put(uint8_t *p, struct xdsi_addr a)
{
    memcpy(p, &a, 16);
}

static inline struct xdsi_addr xdsi_addr4(uint32_t ip)
{
    return (struct xdsi_addr){0, 0xffff0000u | (uint64_t)ip << 32};
}

static inline bool xdsi_addr_is4(struct xdsi_addr a)
{
    return !a.high && (uint32_t)a.low == 0xffff0000u;
}

/* IPv4 as it lies in a packet; of no meaning where it is not mapped. */
static inline uint32_t xdsi_addr_ip4(struct xdsi_addr a)
{
    return (uint32_t)(a.low >> 32);
}

static inline bool xdsi_addr_same(struct xdsi_addr a, struct xdsi_addr b)
{
    return !((a.high ^ b.high) | (a.low ^ b.low));
}

static inline bool xdsi_addr_none(struct xdsi_addr a)
{
    return !(a.high | a.low);
}

static inline bool xdsi_addr_multicast(struct xdsi_addr a)
{
    return (a.high & 0xff) == 0xff;
}

/* fe80::/10. */
static inline bool xdsi_addr_link_local(struct xdsi_addr a)
{
    return (a.high & 0xc0ff) == 0x80fe;
}

/* Bits that both begin with. */
static inline unsigned xdsi_addr_common(struct xdsi_addr a, struct xdsi_addr b)
{
    const uint64_t high = __builtin_bswap64(a.high ^ b.high), low = __builtin_bswap64(a.low ^ b.low);

    if (high)
        return (unsigned)__builtin_clzll(high);
    return low ? 64 + (unsigned)__builtin_clzll(low) : 128;
}

#endif
