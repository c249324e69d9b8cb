/* session_inl.h: the four session headers in front of the messages, as one struct.
 *
 * Total: any bytes give a packet, XDS_ETRUNC or XDS_EMALFORMED; nothing is read past len. What the
 * header does not say (MoldUDP64 has no payload length) is not checked here; the walk over the
 * messages is xdsi_session_walk().
 *
 *   MoldUDP64 1.00  session[10] | u64 sequence | u16 count           big-endian; 0 heartbeat, 0xffff end
 *   IEX-TP 1.x      u8 version | u8 reserved | u16 protocol | u32 channel | u32 session | u16 payload
 *                   length | u16 count | i64 stream offset | i64 first sequence | i64 send time ns
 *   CME MDP 3.0     u32 packet sequence | u64 sending time ns        little-endian
 *   plain           u32 sequence | u16 count | u16 pad               little-endian
 */
#ifndef XDSI_SESSION_INL_H
#define XDSI_SESSION_INL_H

#include <string.h>

#include "ground/wire_inl.h"
#include "xds/base.h"
#include "xds/channel.h"

#define XDSI_MOLD_BYTES  20
#define XDSI_IEXTP_BYTES 40
#define XDSI_CME_BYTES   12
#define XDSI_PLAIN_BYTES 8
#define XDSI_COUNT_NONE  0xffff             /* the header announces no number of messages       */
#define XDSI_SEQ_MAX     0x7fffffffffff0000 /* so that sequence + count never wraps             */

enum xdsi_packet_kind {
    XDSI_PACKET_DATA = 0,
    XDSI_PACKET_HEARTBEAT = 1, /* seq is the next one, nothing is carried                       */
    XDSI_PACKET_END = 2,       /* MoldUDP64: as a heartbeat, and the last                       */
};

struct xdsi_packet {
    const uint8_t *data; /* messages                                                            */
    uint64_t seq;
    int64_t venue_ns; /* 0: the header has none                                              */
    int64_t rx_ns;
    uint32_t len;
    uint32_t units; /* sequence numbers that it takes                                      */
    uint16_t count;
    uint8_t kind;
    uint8_t line;
};

static inline int xdsi_parse_mold(const uint8_t *d, uint32_t len, struct xdsi_packet *p)
{
    if (len < XDSI_MOLD_BYTES)
        return XDS_ETRUNC;
    p->seq = xdsi_be64(d + 10);
    p->count = xdsi_be16(d + 18);
    p->data = d + XDSI_MOLD_BYTES;
    p->len = len - XDSI_MOLD_BYTES;
    p->venue_ns = 0;
    p->kind = XDSI_PACKET_DATA;
    if (__builtin_expect(p->count == 0 || p->count == 0xffff, 0)) {
        p->kind = p->count ? XDSI_PACKET_END : XDSI_PACKET_HEARTBEAT;
        p->count = 0;
    }
    p->units = p->count;
    return p->len < 2u * p->count ? XDS_ETRUNC : 0; /* each message has its two bytes of length */
}

static inline int xdsi_parse_iextp(const uint8_t *d, uint32_t len, struct xdsi_packet *p)
{
    if (len < XDSI_IEXTP_BYTES)
        return XDS_ETRUNC;
    p->len = xdsi_le16(d + 12);
    p->count = xdsi_le16(d + 14);
    p->seq = xdsi_le64(d + 24);
    p->venue_ns = (int64_t)xdsi_le64(d + 32);
    p->data = d + XDSI_IEXTP_BYTES;
    p->kind = p->count ? XDSI_PACKET_DATA : XDSI_PACKET_HEARTBEAT;
    p->units = p->count;
    if (p->len > len - XDSI_IEXTP_BYTES)
        return XDS_ETRUNC;
    return p->len < 2u * p->count ? XDS_EMALFORMED : 0;
}

static inline int xdsi_parse_cme(const uint8_t *d, uint32_t len, struct xdsi_packet *p)
{
    if (len < XDSI_CME_BYTES)
        return XDS_ETRUNC;
    p->seq = xdsi_le32(d);
    p->venue_ns = (int64_t)xdsi_le64(d + 4);
    p->count = XDSI_COUNT_NONE;
    p->data = d + XDSI_CME_BYTES;
    p->len = len - XDSI_CME_BYTES;
    p->kind = XDSI_PACKET_DATA;
    p->units = 1;
    return 0;
}

static inline int xdsi_parse_plain(const uint8_t *d, uint32_t len, struct xdsi_packet *p)
{
    if (len < XDSI_PLAIN_BYTES)
        return XDS_ETRUNC;
    p->seq = xdsi_le32(d);
    p->venue_ns = 0;
    p->count = xdsi_le16(d + 4);
    p->data = d + XDSI_PLAIN_BYTES;
    p->len = len - XDSI_PLAIN_BYTES;
    p->kind = XDSI_PACKET_DATA;
    p->units = 1;
    return 0;
}

/* Step over n messages of a block. Returns the bytes stepped over, or XDS_ETRUNC where the block
 * ends before. Framings without a length of their own cannot be stepped: XDS_EMALFORMED. */
int xdsi_session_walk(uint32_t framing, const uint8_t *data, uint32_t len, uint32_t n);

#endif
