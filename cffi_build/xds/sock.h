/* sock.h: datagrams from kernel UDP sockets, one socket a subscription, so that the kernel sorts by
 * destination. The receive is a lease as with links: datagrams stay until xds_sock_release(). What
 * several sockets have is delivered in the order of the kernel's stamps.
 *
 * Each socket: SO_REUSEADDR, a receive buffer of rcvbuf_bytes (16 MiB), the membership on the chosen
 * interface ((S,G) where a source is named), IP_MULTICAST_ALL off, receive stamps (SO_TIMESTAMPING) turned into
 * CLOCK_TAI: the kernel's, or with XDS_SOCK_NIC_STAMPS and a clock to map by the NIC's where it gave one.
 * The kernel switches stamping on some milliseconds after the host's first such socket was
 * opened; until then a datagram has the time of the call. received by the kernel = rx_datagrams + rx_truncated + rx_dropped.
 */
#ifndef XDS_SOCK_H
#define XDS_SOCK_H

#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "dgram.h"
#include "tcp.h"

#define XDS_SOCK_MAX 64

struct xds_sock_address {
    uint32_t address;                  /* IPv4, network byte order: a group or a local address; 0: any      */
    uint32_t source;                   /* (S,G): only from this sender; 0: from any                         */
    uint32_t ifindex;                  /* interface of the membership and of multicast sent; 0: by route    */
    uint16_t port;                     /* host byte order; 0 on a local address: the kernel chooses         */
    uint16_t six;                      /* 1: of IPv6, by these two; address and source are 0                */
    uint8_t address6[16], source6[16]; /* network byte order; all zero: any               */
};

struct xds_sock_config {
    struct xds_sock_address address[XDS_SOCK_MAX];
    uint32_t count;        /* 1 .. XDS_SOCK_MAX                                              */
    uint32_t slots;        /* datagrams a socket that one lease can hold                     */
    uint32_t slot_bytes;   /* the largest datagram; a longer one is counted, not delivered   */
    uint32_t rcvbuf_bytes; /* 0: 16 MiB                                                      */
    uint32_t busy_poll_us; /* SO_BUSY_POLL and SO_PREFER_BUSY_POLL; 0: off                   */
    uint16_t port_index;   /* put into xds_dgram.port                                        */
    uint16_t flags;        /* enum xds_sock_flag                                             */
};

enum xds_sock_flag {
    XDS_SOCK_NIC_STAMPS = 1, /* ask for the NIC's stamps, too: see xds_sock_set_nic_clock()   */
    XDS_SOCK_TX_STAMPS = 2,  /* of what is sent, too: see xds_sock_tx_stamps()                */
};

enum xds_sock_step {
    XDS_SOCK_STEP_CONFIG = 0,
    XDS_SOCK_STEP_SOCKET = 1,
    XDS_SOCK_STEP_BIND = 2,
    XDS_SOCK_STEP_JOIN = 3,
    XDS_SOCK_STEP_STAMPS = 4,
    XDS_SOCK_STEP_BUSY_POLL = 5,
    XDS_SOCK_STEP_READY = 6,
};

struct xds_sock_report {
    uint32_t step;   /* enum xds_sock_step: the one that failed, or READY                    */
    uint32_t index;  /* of the address that it was for                                       */
    uint32_t rcvbuf; /* bytes that the kernel granted, the least of all sockets              */
    uint32_t pad;
};

struct xds_sock_stats {
    uint64_t rx_datagrams, rx_bytes; /* delivered                                            */
    uint64_t rx_polls, rx_polls_empty;
    uint64_t rx_calls;       /* recvmmsg                                                      */
    uint64_t rx_truncated;   /* longer than a slot: not delivered                             */
    uint64_t rx_dropped;     /* the kernel's socket buffer was full (SO_RXQ_OVFL)             */
    uint64_t rx_unstamped;   /* the kernel gave no stamp: rx_ns is the time of the call       */
    uint64_t rx_nic_stamped; /* of rx_datagrams: rx_ns is the NIC's stamp, mapped            */
    uint64_t
        rx_nic_refused; /* the NIC's stamp was another NIC's or could not be mapped: the kernel's counts */
    uint64_t tx_datagrams, tx_bytes;
    uint64_t tx_refused;     /* the kernel did not take it                                    */
    uint64_t tx_nic_refused; /* sent, and the NIC's stamp of it could not be mapped: it has none */
};

/* When a datagram left: the driver took it, or (with NIC_STAMPS, where the NIC does) it was on the wire. */
struct xds_sock_tx_stamp {
    int64_t ns;      /* CLOCK_TAI                                                          */
    uint32_t number; /* of the datagram among those of its socket, from 0 on               */
    uint16_t index;  /* of the socket                                                      */
    uint16_t stamp;  /* enum xds_dgram_stamp: who took it                                  */
};

/* A kernel's TCP connection in the words of our stack's. What the kernel does not tell stays 0. */
struct xds_sock_tcp {
    struct xds_tcp_info info;
    struct xds_tcp_stats stats;
    uint64_t delivery_rate; /* bytes a second, of the last that were acknowledged        */
    uint32_t tells_send_window, tells_receive_window; /* 1: this kernel does (5.4, 6.2) */
};

struct xds_sock;
size_t xds_sock_size(const struct xds_sock_config *cfg); /* bytes to provide, 0 = bad config */
/* mem: kept until close, aligned to 64. report: may be NULL. Returns 0, XDS_ECONFIG, -errno. */
int xds_sock_open(void *mem, const struct xds_sock_config *cfg, struct xds_sock **out,
                  struct xds_sock_report *report);
/* An interface was made anew and is `ifindex` now: join there the groups of cfg (what was opened with, its
 * numbers brought up to date) and leave them where they were. Any thread. Returns 0, -errno. */
int xds_sock_rejoin(struct xds_sock *s, const struct xds_sock_config *cfg, uint32_t ifindex,
                    struct xds_sock_report *report);
/* Map the stamps of the NIC `ifindex` by a clock that somebody keeps (kept until close, NULL: none). Those of other
 * NICs are not used. Not while it receives. */
void xds_sock_set_nic_clock(struct xds_sock *s, const struct xds_clock_face *face, uint32_t ifindex);
/* Take up to cap datagrams. Returns the count, 0 none, -errno. */
int xds_sock_rx(struct xds_sock *s, struct xds_dgram *out, unsigned cap, int64_t now_ns);
void xds_sock_release(struct xds_sock *s);
/* Stamps of sent datagrams that came since the last call, each socket's in their order; what is not fetched stays in
 * the socket's buffer and ends the stamping when that is full. Returns the count, 0 none, -errno. */
int xds_sock_tx_stamps(struct xds_sock *s, struct xds_sock_tx_stamp *out, unsigned cap);
/* Send from the index-th socket. dst: network byte order, dport: host byte order. Returns len, -errno. */
int xds_sock_send(struct xds_sock *s, unsigned index, uint32_t dst, uint16_t dport, const uint8_t *data,
                  uint32_t len);
int xds_sock_send6(struct xds_sock *s, unsigned index, const uint8_t dst[16], uint16_t dport,
                   const uint8_t *data, uint32_t len);
int xds_sock_is_six(const struct xds_sock *s, unsigned index); /* 1: it is a socket of IPv6 */
int xds_sock_fd(const struct xds_sock *s);                     /* to poll() on */
int xds_sock_port(const struct xds_sock *s, unsigned index);   /* local port that it is bound to, -1 */
void xds_sock_stats(const struct xds_sock *s, struct xds_sock_stats *out);
/* When the kernel received the first bytes that a connected TCP socket has to read, CLOCK_TAI ns (of packets that
 * it joined, the newest): looked at, not read. SO_TIMESTAMPNS must be on. 0: no bytes, or the kernel says nothing. */
int64_t xds_sock_stream_stamp(int fd);
/* What the kernel says of a TCP socket (TCP_INFO, two queues, its time-out): three or four system calls. 0, -errno. */
int xds_sock_tcp(int fd, struct xds_sock_tcp *out);
void xds_sock_close(struct xds_sock *s); /* leaves the groups; twice is calm; memory stays the caller's */

#endif
