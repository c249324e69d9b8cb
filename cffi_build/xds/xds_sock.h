/* xds_sock.h: sockets without a kernel: TCP and UDP over one stack and its host, by the calls that everybody knows.
 * Frames in, frames out, no I/O, no clock, no allocation after init; nothing ever waits.
 *
 *   frame(frame) -> sockets take what is theirs;  output(room) -> one frame;  deadline(), tick() -> timers
 *   xds_socket(), xds_bind(), xds_listen(), xds_accept(), xds_connect(), xds_read(), xds_write(), xds_poll(), ...
 *
 * A descriptor is a number from 0 on, the lowest that is free, of its own struct xds_socks. Constants and structs are
 * the system's (<sys/socket.h>, <netinet/in.h>, <netinet/tcp.h>, <poll.h>); what fails returns -errno, and errno itself
 * is left alone. Results and codes are those of a non-blocking Linux socket, compared call by call by a test, but:
 *   - there is no loopback: who connects to an own address is told ENETUNREACH;
 *   - a datagram is never cut: EMSGSIZE past the path's MTU;
 *   - an option that cannot be kept is refused (ENOPROTOOPT; EISCONN where only a new connection takes it);
 *   - there is one link: a link-local name without a scope is not refused by sendto(), as it may be on Linux.
 * AF_INET6 has both families, until IPV6_V6ONLY: IPv4's addresses are ::ffff:a.b.c.d.
 * Calls take the time of the last frame(), output() or tick(): begin with a tick().
 */
#ifndef XDS_SOCK_FACADE_H
#define XDS_SOCK_FACADE_H

#include "stack.h"

struct pollfd;
struct msghdr;

/* Zero everywhere is a good start: 0 takes the value in brackets. */
struct xds_socks_config {
    uint32_t sockets;       /* descriptors at once, up to 131,072 [64]                            */
    uint32_t datagram;      /* of them for UDP [8]                                                */
    uint32_t receive_bytes; /* of datagrams that wait to be read, a socket; 56 more a datagram [65536] */
    uint32_t send_bytes;    /* of datagrams that wait for output(), all sockets [65536]           */
    uint32_t scope;         /* the link's number, sin6_scope_id of what is link-local [1]         */
};

struct xds_socks_stats {
    uint64_t datagrams;        /* given to a socket, once a socket                               */
    uint64_t datagrams_full;   /* not: as much was waiting there already                         */
    uint64_t datagrams_nobody; /* no socket; the sender is told (ICMP, port unreachable)         */
    uint64_t sent;             /* datagrams that left, or wait in the host for their neighbour   */
    uint64_t send_lost;        /* the host refused them after all                                */
    uint64_t errors;           /* ICMP errors that a connected UDP socket was told of            */
};

struct xds_socks;
/* Bytes to provide, 0: a configuration that cannot be. */
size_t xds_socks_size(const struct xds_socks_config *cfg, const struct xds_stack *stack);
/* mem, stack and its host: kept. The stack's events are read here from now on. 0, XDS_ECONFIG. */
int xds_socks_init(void *mem, const struct xds_socks_config *cfg, struct xds_stack *stack,
                   struct xds_host *host);

/* Take one frame (borrowed): 0 taken; XDS_EFOREIGN a datagram for nobody, XDS_ECAPACITY no room for it, else as
 * xds_host_input(). */
int xds_socks_frame(struct xds_socks *n, const struct xds_frame *f, int64_t now);
/* One frame into room (room->len: the room there is, then the bytes). Returns them, 0: nothing now. */
int xds_socks_output(struct xds_socks *n, struct xds_frame *room, int64_t now);
int64_t xds_socks_deadline(const struct xds_socks *n); /* may be early, never late */
void xds_socks_tick(struct xds_socks *n, int64_t now);
void xds_socks_stats(const struct xds_socks *n, struct xds_socks_stats *out);
/* The stack's number of a TCP socket's connection, for info and what else it knows; -EBADF, -ENOTCONN. */
int xds_socks_connection(const struct xds_socks *n, int fd);

/* As socket(2) and so on; each socket is non-blocking, with or without SOCK_NONBLOCK. Addresses are struct
 * sockaddr_in or sockaddr_in6; where one comes back, *len is the room for it, then its length. -errno. */
int xds_socket(struct xds_socks *n, int domain, int type, int protocol);
int xds_bind(struct xds_socks *n, int fd, const void *address, uint32_t len);
int xds_listen(struct xds_socks *n, int fd, int backlog);
int xds_accept(struct xds_socks *n, int fd, void *address, uint32_t *len);
int xds_connect(struct xds_socks *n, int fd, const void *address, uint32_t len);
int xds_read(struct xds_socks *n, int fd, void *data, uint32_t room);
int xds_write(struct xds_socks *n, int fd, const void *data, uint32_t len);
/* flags: of what is read MSG_PEEK, and MSG_TRUNC (a datagram's whole length is told; a stream's bytes are dropped);
 * nothing is ever in MSG_ERRQUEUE (EAGAIN) or urgent (MSG_OOB of TCP: EINVAL). Of what is sent those are refused that
 * would change it (EOPNOTSUPP): MSG_OOB, MSG_FASTOPEN, MSG_DONTROUTE, and MSG_MORE of UDP. Others change nothing. */
int xds_recvfrom(struct xds_socks *n, int fd, void *data, uint32_t room, int flags, void *address,
                 uint32_t *len);
/* At most 64 KiB a call. msg_control: IP_PKTINFO, IP_TTL, IP_TOS, IPV6_PKTINFO, IPV6_HOPLIMIT, IPV6_TCLASS where they
 * are asked for; msg_flags: MSG_TRUNC, MSG_CTRUNC. */
int xds_recvmsg(struct xds_socks *n, int fd, struct msghdr *message, int flags);
int xds_sendto(struct xds_socks *n, int fd, const void *data, uint32_t bytes, int flags, const void *address,
               uint32_t len);
/* Pieces in one datagram, or one after the other. msg_control: the same, of UDP, for this one alone, and IPV6_DONTFRAG;
 * others of these levels, of SOL_SOCKET and of SOL_UDP are refused (EINVAL). */
int xds_sendmsg(struct xds_socks *n, int fd, const struct msghdr *message, int flags);
int xds_shutdown(struct xds_socks *n, int fd, int how);
int xds_close(struct xds_socks *n, int fd);
int xds_poll(struct xds_socks *n, struct pollfd *fds, uint32_t count); /* how many have something */
int xds_getsockname(struct xds_socks *n, int fd, void *address, uint32_t *len);
int xds_getpeername(struct xds_socks *n, int fd, void *address, uint32_t *len);
/* Each option, beside Linux: xds_sock.md. SOL_SOCKET: SO_REUSEADDR, SO_BROADCAST, SO_KEEPALIVE, SO_LINGER, SO_RCVTIMEO,
 * SO_SNDTIMEO, SO_BINDTODEVICE (none), SO_SNDBUF and SO_RCVBUF (which stay what they are); to be read also SO_TYPE, SO_DOMAIN,
 * SO_PROTOCOL, SO_ERROR, SO_ACCEPTCONN. IPPROTO_TCP: TCP_NODELAY, TCP_CORK, TCP_QUICKACK, TCP_MAXSEG, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT,
 * TCP_USER_TIMEOUT, TCP_CONGESTION; to be read also TCP_INFO. IPPROTO_IP: IP_TOS, IP_TTL, IP_PKTINFO, IP_RECVTTL,
 * IP_RECVTOS, IP_BIND_ADDRESS_NO_PORT, IP_MTU_DISCOVER, IP_OPTIONS (none), IP_MULTICAST_LOOP, IP_MULTICAST_ALL,
 * IP_ADD_SOURCE_MEMBERSHIP, IP_DROP_SOURCE_MEMBERSHIP, IP_BLOCK_SOURCE, IP_UNBLOCK_SOURCE, IP_MSFILTER; of UDP
 * IP_MULTICAST_TTL, IP_MULTICAST_IF, IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP; to be read also IP_MTU. IPPROTO_IPV6:
 * IPV6_V6ONLY, IPV6_TCLASS, IPV6_UNICAST_HOPS, IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS, IPV6_MTU_DISCOVER,
 * IPV6_DONTFRAG, IPV6_MULTICAST_LOOP, IPV6_MULTICAST_ALL; to be set IPV6_PKTINFO (its link; its address changes nothing, as
 * on Linux); to be read IPV6_MTU; of UDP IPV6_MULTICAST_HOPS, IPV6_MULTICAST_IF, IPV6_JOIN_GROUP, IPV6_LEAVE_GROUP. Both:
 * MCAST_JOIN_GROUP, MCAST_LEAVE_GROUP, MCAST_JOIN_SOURCE_GROUP, MCAST_LEAVE_SOURCE_GROUP, MCAST_BLOCK_SOURCE,
 * MCAST_UNBLOCK_SOURCE,
 * MCAST_MSFILTER. A group is joined by the host, until the last socket leaves it; its datagrams come to each UDP socket
 * that is bound to their port (not without IP_MULTICAST_ALL, which AF_INET6 begins without for IPv4), but to one that
 * named sources from these alone, or from all but those that it blocks. A list has eight (ENOBUFS), and so has that of
 * all sockets that want some alone. Routers are told what is wanted, not what is blocked: that ends here. Twenty groups
 * a socket; TCP sockets may be in those that UDP's leave. What is sent to a group of the host's comes back to its
 * members here unless IP_MULTICAST_LOOP is 0. */
int xds_setsockopt(struct xds_socks *n, int fd, int level, int option, const void *value, uint32_t len);
int xds_getsockopt(struct xds_socks *n, int fd, int level, int option, void *value, uint32_t *len);

#endif
