/* wire_inl.h: unaligned reads and writes by byte order, and where fields of headers lie. */
#ifndef XDSI_WIRE_INL_H
#define XDSI_WIRE_INL_H

#include <stdint.h>
#include <string.h>

#define XDSI_ETH_BYTES    14
#define XDSI_ETH_IPV4     0x0800
#define XDSI_ETH_ARP      0x0806
#define XDSI_ETH_VLAN     0x8100 /* 802.1Q  */
#define XDSI_ETH_QINQ     0x88a8 /* 802.1ad */
#define XDSI_ARP_BYTES    28     /* RFC 826, Ethernet and IPv4 */
#define XDSI_IPV4_BYTES   20
#define XDSI_UDP_BYTES    8
#define XDSI_IPPROTO_ICMP 1
#define XDSI_IPPROTO_UDP  17
#define XDSI_FRAME_MIN    60 /* without the frame check sequence */

static inline uint16_t xdsi_be16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return __builtin_bswap16(v);
}

static inline uint64_t xdsi_be64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}

/* x86-64 and aarch64 are little-endian; a big-endian host would need swaps here. */
static inline uint16_t xdsi_le16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static inline uint32_t xdsi_le32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint64_t xdsi_le64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static inline void xdsi_put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* Addresses and checksums are moved as they lie, in network order. */
static inline uint32_t xdsi_raw32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint16_t xdsi_raw16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static inline void xdsi_put_raw32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

static inline void xdsi_put_raw16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, 2);
}

static inline int xdsi_is_multicast(uint32_t raw)
{
    return (raw & 0xf0) == 0xe0; /* the first byte of memory, little-endian */
}

#endif
