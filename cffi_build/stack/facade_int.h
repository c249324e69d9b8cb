/* facade_int.h: the memory of sockets over a stack, shared by facade.c (set-up, frames, descriptors, poll),
 * facade_name.c (addresses and ports), facade_stream.c (TCP), facade_dgram.c (UDP), facade_message.c (what is read),
 * facade_send.c (what is sent), facade_options.c, facade_ip.c, facade_group.c (who is in which group) and
 * facade_filter.c (lists as a whole).
 *
 * Linux keeps two states a socket, and its codes hang on both: its own (here `connecting`, `connected`) and TCP's
 * (here the connection's, xdsi_sock_state()). sockaddr is read and written in facade_name.c alone.
 */
#ifndef XDSI_FACADE_INT_H
#define XDSI_FACADE_INT_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "stack_int.h"
#include "xds/xds_sock.h"

enum { XDSI_READING = 1, XDSI_WRITING = 2 }; /* of xdsi_sock.shut: no more of it */

/* An address as the core knows it, and a port, 0: none. All zero is any, of each family that the socket has;
 * ::ffff:0.0.0.0, which AF_INET6 may name, any of IPv4. */
struct xdsi_name {
    uint8_t ip[16];
    uint32_t scope; /* as it was named: sin6_scope_id where the address has one */
    uint16_t port;
};

/* What goes before a datagram that waits: whom it is from, or goes to, and the own end. */
struct xdsi_letter {
    struct xdsi_name there, here;
    uint32_t len;
    uint8_t tos, ttl; /* ttl 0, of what leaves: the host's */
};

/* What a message says beside its bytes: of a connection nothing. */
struct xdsi_words {
    struct xdsi_name here; /* the address to send from; not with its port */
    uint32_t link;         /* 0: none was named */
    int16_t tos, ttl;      /* -1: the socket's */
    bool from;             /* `here` was named: all zero, the one that the routes choose */
};

struct xdsi_pktinfo6 { /* struct in6_pktinfo, which <netinet/in.h> keeps for _GNU_SOURCE */
    struct in6_addr address;
    unsigned link;
};

#define XDSI_MEMBERS 20 /* groups of a socket, as in Linux */

/* A socket in a group. As Linux has it: a list, even one that became empty, binds it to its kind; without one it may
 * change from "anybody" (but nobody is named) to "these alone" (nobody). */
struct xdsi_member {
    struct xdsi_addr a, sources[XDS_HOST_SOURCES]; /* in the order that they were named */
    uint32_t next;                                 /* of the same socket, or free: 1 + its place; 0: none */
    uint8_t count;
    bool used;
    bool ours;    /* the host joined for our sake */
    bool include; /* from these sources alone; else from all but these */
    bool listed;  /* it has a list */
};

/* Letters and their bytes, one behind the other, round and round. */
struct xdsi_mail {
    uint8_t *bytes;
    uint32_t cap, first, used;
};

struct xdsi_sock {
    uint8_t kind; /* 0: free; SOCK_STREAM, SOCK_DGRAM */
    uint8_t shut;
    bool six, only6, scoped; /* AF_INET6; IPV6_V6ONLY; the link was named, by bind() or connect() */
    bool connecting, connected, listening;
    bool at_end;            /* the peer sends no more */
    bool dead;              /* shut down after it could not be opened: SS_DISCONNECTING in Linux */
    bool bound, bound_port; /* by bind(): an address, a port, which outlive a connection */
    bool reuse, broadcast, lingers;
    bool late_port;               /* IP_BIND_ADDRESS_NO_PORT */
    bool whole6;                  /* IPV6_DONTFRAG, which changes nothing: no datagram is ever cut */
    bool no_loop4, no_loop6;      /* what goes to a group does not come to members here */
    bool not_all4, not_all6;      /* groups that it is not in do not come, either */
    bool tells4, tells6;          /* IP_PKTINFO, IPV6_RECVPKTINFO */
    bool tells_ttl, tells_tos;    /* IP_RECVTTL, IP_RECVTOS */
    bool tells_hops, tells_class; /* IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS */
    int id, error, linger;        /* id: the stack's; error: an errno that was not told yet */
    struct xdsi_name local, peer;
    struct xds_tcp_config how;
    uint8_t tos, tclass;
    int16_t ttl, hops, many_ttl, many_hops; /* -1: the host's */
    struct xdsi_mail *mail;                 /* UDP: what has come */
    uint32_t groups, group_count;           /* 1 + the first one's place, 0: none */
    uint32_t sticky;                        /* the link of IPV6_PKTINFO, 0: none */
    uint32_t many_from, many_link;          /* IP_MULTICAST_IF's address, IPV6_MULTICAST_IF */
    uint8_t discover, discover6;            /* IP_MTU_DISCOVER, IPV6_MTU_DISCOVER */
    struct timeval waits[2]; /* SO_RCVTIMEO, SO_SNDTIMEO, which change nothing: no call waits */
};

struct xds_socks {
    struct xds_socks_config cfg;
    struct xds_socks_stats stats;
    struct xds_stack *stack;
    struct xds_host *host;
    int64_t now;
    uint64_t ports; /* that were chosen so far */
    struct xdsi_sock *socks;
    uint32_t *owner; /* by a connection's place: 1 + the descriptor */
    struct xdsi_mail out, *mails;
    struct xdsi_member *members; /* of all sockets */
    uint32_t member_count, members_free;
};

/* facade.c */
struct xdsi_sock *xdsi_sock_of(const struct xds_socks *n, int fd); /* NULL: EBADF */
int xdsi_sock_new(struct xds_socks *n, uint8_t kind, bool six);    /* a descriptor, -EMFILE, -ENOBUFS */
static inline int xdsi_sock_error(struct xdsi_sock *s)             /* told once, as sock_error() */
{
    const int code = -s->error;
    s->error = 0;
    return code;
}
bool xdsi_mail_put(struct xdsi_mail *m, const struct xdsi_letter *letter, const void *data);
bool xdsi_mail_get(struct xdsi_mail *m, struct xdsi_letter *letter, void *data, uint32_t room);

/* facade_name.c: 0, -errno */
int xdsi_name_in(const struct xdsi_sock *s, const void *address, uint32_t len, bool v4_too,
                 struct xdsi_name *out);
int xdsi_name_out(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *name,
                  void *address, uint32_t *len);
/* other: the code for a scope that is not our link's. */
int xdsi_name_scope(const struct xds_socks *n, struct xdsi_sock *s, const struct xdsi_name *name, int other);
bool xdsi_name_any(const struct xdsi_name *name);
bool xdsi_name_group(const struct xdsi_name *name); /* to many: multicast or broadcast */
/* enum xds_stack_family, or-ed: what such a name of the socket stands for. */
uint32_t xdsi_name_families(const struct xdsi_sock *s, const struct xdsi_name *name);
int xdsi_name_crosses(const struct xdsi_sock *s,
                      const struct xdsi_name *to); /* from one family to the other */
int xdsi_name_source(const struct xds_socks *n, const struct xdsi_name *to, uint8_t src[16]);
bool xdsi_name_taken(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *name);
int xdsi_name_port(struct xds_socks *n, const struct xdsi_sock *s, struct xdsi_name *name);
int xdsi_name_choose(struct xds_socks *n, struct xdsi_sock *s); /* a port where there is none */

/* facade_ip.c: 0, -errno */
int xdsi_set_ip(struct xds_socks *n, struct xdsi_sock *s, int option, const void *value, uint32_t len);
int xdsi_set_ip6(struct xds_socks *n, struct xdsi_sock *s, int option, const void *value, uint32_t len);
int xdsi_get_ip(const struct xds_socks *n, const struct xdsi_sock *s, int option, int *v);
int xdsi_get_ip6(const struct xds_socks *n, const struct xdsi_sock *s, int option, int *v);
void xdsi_marks(const struct xdsi_sock *s, struct xdsi_letter *l); /* TOS and hops, by where it goes */

/* facade_group.c: 0, -errno. six: of IPPROTO_IPV6. */
int xdsi_set_member4(struct xds_socks *n, struct xdsi_sock *s, bool in, const void *value, uint32_t len);
int xdsi_set_member6(struct xds_socks *n, struct xdsi_sock *s, bool in, const void *value, uint32_t len);
int xdsi_set_source4(struct xds_socks *n, struct xdsi_sock *s, int option, const void *value, uint32_t len);
int xdsi_set_many(struct xds_socks *n, struct xdsi_sock *s, bool six, int option, const void *value,
                  uint32_t len); /* MCAST_JOIN_GROUP and its kin */
void xdsi_groups_leave(struct xds_socks *n, struct xdsi_sock *s);
bool xdsi_group_allows(const struct xds_socks *n, const struct xdsi_sock *s, const struct xdsi_name *group,
                       const struct xdsi_name *from);
bool xdsi_group_is(struct xdsi_addr a); /* multicast */
struct xdsi_member *xdsi_member_of(const struct xds_socks *n, const struct xdsi_sock *s, struct xdsi_addr a);
int xdsi_member_leave(struct xds_socks *n, struct xdsi_sock *s, struct xdsi_addr a);
/* It wants what now says, if the host can have that; else nothing has changed. */
int xdsi_member_change(struct xds_socks *n, struct xdsi_member *m, const struct xdsi_member *now);
bool xdsi_by_ours4(const struct xds_socks *n, int link, uint32_t address); /* a link that is ours */
/* An address of that family. */
bool xdsi_address_in(const struct sockaddr_storage *in, bool six, struct xdsi_addr *out);
bool xdsi_group_heard(const struct xds_host *h, const struct xdsi_name *group); /* the host is in it */

/* facade_filter.c: IP_MSFILTER, MCAST_MSFILTER (six: of IPPROTO_IPV6). 0, -errno. */
int xdsi_set_filter(struct xds_socks *n, struct xdsi_sock *s, bool six, int option, const void *value,
                    uint32_t len);
int xdsi_get_filter(const struct xds_socks *n, const struct xdsi_sock *s, bool six, int option, void *value,
                    uint32_t *len);

/* facade_stream.c */
uint32_t xdsi_sock_state(const struct xds_socks *n, const struct xdsi_sock *s); /* enum xds_tcp_state */
void xdsi_stream_news(struct xds_socks *n);
void xdsi_stream_drop(struct xds_socks *n, struct xdsi_sock *s); /* its connection or listener goes */
int xdsi_stream_connect(struct xds_socks *n, struct xdsi_sock *s, const void *address, uint32_t len);
/* peek: what is read stays. */
int xdsi_stream_read(struct xds_socks *n, struct xdsi_sock *s, void *data, uint32_t room, bool peek);
int xdsi_stream_write(struct xds_socks *n, struct xdsi_sock *s, const void *data, uint32_t len);
int xdsi_stream_shutdown(struct xds_socks *n, struct xdsi_sock *s, uint8_t how);
short xdsi_stream_poll(struct xds_socks *n, struct xdsi_sock *s);

/* facade_dgram.c */
int xdsi_dgram_take(struct xds_socks *n, const struct xds_frame *f, const struct xds_dgram *d);
int xdsi_dgram_take6(struct xds_socks *n, const struct xds_frame *f, const struct xds_dgram6 *d);
void xdsi_dgram_error(struct xds_socks *n, const struct xds_host_error *e);
int xdsi_dgram_output(struct xds_socks *n, struct xds_frame *room);
int xdsi_dgram_connect(struct xds_socks *n, struct xdsi_sock *s, const void *address, uint32_t len);
int xdsi_dgram_send(struct xds_socks *n, struct xdsi_sock *s, const void *data, uint32_t bytes,
                    const void *address, uint32_t len, const struct msghdr *control);
/* facade_message.c: bytes of all pieces; -EMSGSIZE, -EINVAL. */
int64_t xdsi_vector_bytes(const struct msghdr *m);
/* facade_send.c: whom it goes to decides which words it may carry. */
int xdsi_words_of(const struct xds_socks *n, const struct xdsi_sock *s, const struct msghdr *m, bool four,
                  struct xdsi_words *out);
int xdsi_dgram_read(struct xdsi_sock *s, void *data, uint32_t room, bool peek, struct xdsi_letter *letter);
short xdsi_dgram_poll(const struct xds_socks *n, const struct xdsi_sock *s);

#endif
