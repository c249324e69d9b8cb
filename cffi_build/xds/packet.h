/* packet.h: what an IP packet carries for a protocol above the host core, coming and going.
 *
 * An address is 16 bytes: IPv6's, or IPv4's mapped into it (::ffff:a.b.c.d, RFC 4291 2.5.5.2), so that a
 * table of connections knows one kind. (struct xds_dgram keeps the 32 bits of IPv4.)
 */
#ifndef XDS_PACKET_H
#define XDS_PACKET_H

#include <stdint.h>

#define XDS_ADDRESS_BYTES  16
#define XDS_NO_CHECKSUM    0xffff
#define XDS_INPUT_PACKET   2 /* xds_host_input() returns it: xds_host_packet() has one */
#define XDS_INPUT_ERROR    3 /* the same: xds_host_error() has one                     */
#define XDS_INPUT_DATAGRAM 4 /* the same: xds_host_dgram6() has one                   */

struct xds_packet {
    const uint8_t *data; /* behind the IP header: borrowed, as a datagram's is             */
    int64_t rx_ns;       /* CLOCK_TAI ns                                                   */
    uint32_t len;        /* bytes                                                          */
    uint8_t src[16], dst[16];
    uint8_t protocol; /* IANA's number: 6 for TCP                                       */
    uint8_t tos;      /* DSCP in the upper six bits, ECN in the lower two               */
    uint8_t ttl;      /* or hop limit                                                   */
    uint8_t pad;
};

/* What goes round a payload. Zero everywhere but dst and protocol is a good start. */
struct xds_ip_head {
    uint8_t src[16]; /* an own address; all zero: chosen as the routes say, written here */
    uint8_t dst[16];
    uint8_t protocol;
    uint8_t tos; /* DSCP and ECN                                                   */
    uint8_t ttl; /* 0: the host's                                                  */
    uint8_t pad;
    uint16_t checksum_at; /* where in the payload the Internet checksum over it and the pseudo-header
                             * goes (TCP 16); XDS_NO_CHECKSUM: nowhere                        */
    uint16_t pad2;
};

/* An ICMP error about a packet of ours, by the flow inside it. Who sees nothing of the flow can forge one: see
 * xds_stack_error() and RFC 5927 for what is asked of it. */
struct xds_host_error {
    int64_t ns;            /* when it came: the caller's now                                 */
    uint8_t src[16];       /* of our packet: own                                             */
    uint8_t dst[16];       /* of our packet                                                  */
    uint8_t from[16];      /* who tells: a router, or the peer                               */
    uint16_t sport, dport; /* of our packet                                                  */
    uint32_t seq;          /* the four bytes behind the ports: TCP's sequence number         */
    uint32_t mtu;          /* type 3, code 4: what may pass, where it is not said by RFC 1191 7; else 0 */
    uint8_t type, code; /* RFC 792: 3 unreachable, 5 redirect, 11 time exceeded, 12 parameter; where src is of
                              IPv6, RFC 4443: 1 unreachable, 2 too big (mtu), 3 time exceeded, 4 parameter */
    uint8_t protocol;   /* of our packet                                                  */
    uint8_t pad;
};

#endif
